//! What a refusal means and what helps: from the errno and from what explains it, pure, so that the causes
//! that cannot be made on a test machine are tested too.

use super::error::reason;
use super::facts::Facts;
use super::ops::Op;
use super::plan::Namespace;
use super::probe::{Trial, Try};
use super::wire::{Failure, Step};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It works.
    Ok,
    /// It does not, and the program goes on without.
    Warn,
    /// It does not, and no sandbox is possible without.
    Fail,
}

/// One thing that was tried or looked at, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable name for scripts.
    pub id: String,
    /// What was done to find out.
    pub tried: String,
    /// How it went.
    pub outcome: Outcome,
    /// The kernel's answer, when it was no.
    pub errno: Option<i32>,
    /// What that means on this host.
    pub meaning: String,
    /// What to type, or to ask an administrator for, word for word.
    pub remedy: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tried)?;
        if let Some(errno) = self.errno {
            write!(f, ": {}", reason(errno))?;
        }
        write!(f, ": {}", self.meaning)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "\n    {}", remedy.replace('\n', "\n    ")))
    }
}

/// A cause: what it means, and what helps.
struct Cause {
    meaning: String,
    remedy: Option<String>,
}

fn cause(meaning: impl Into<String>, remedy: impl Into<String>) -> Cause {
    Cause { meaning: meaning.into(), remedy: Some(remedy.into()) }
}

/// What one trial means.
pub fn classify(trial: &Trial, facts: &Facts) -> Finding {
    let (id, tried) = names(trial.step);
    let Some(errno) = trial.errno else {
        return Finding { id, tried, outcome: Outcome::Ok, errno: None, meaning: "works".into(), remedy: None };
    };
    let Cause { meaning, remedy } = explain(trial.step, Errno::from_raw(errno), facts);
    let outcome = match trial.step {
        Try::Proc
        | Try::Sysfs
        | Try::Nested
        | Try::Layer
        | Try::Deny
        | Try::Namespace(Namespace::Pid | Namespace::Net) => Outcome::Warn,
        _ => Outcome::Fail,
    };
    Finding { id, tried, outcome, errno: Some(errno), meaning, remedy }
}

fn names(step: Try) -> (String, String) {
    match step {
        Try::Namespace(kind) => (format!("{}-namespace", kind.name()), format!("a new {} namespace", kind.name())),
        Try::MapIds => ("id-map".into(), "mapping your uid and gid into it".into()),
        Try::DetachMounts => ("mount-detach".into(), "making its mounts its own".into()),
        Try::Tmpfs => ("mount-tmpfs".into(), "mounting a folder in memory".into()),
        Try::Devpts => ("mount-devpts".into(), "mounting pseudo-terminals".into()),
        Try::Proc => ("mount-proc".into(), "mounting a new /proc".into()),
        Try::Sysfs => ("mount-sysfs".into(), "mounting a new /sys".into()),
        Try::FakeRoot => ("seccomp-fake-root".into(), "the system call filter that stands in for root".into()),
        Try::Deny => ("seccomp-deny".into(), "the system call filter that refuses dangerous calls".into()),
        Try::Layer => ("layer".into(), "a layer, and removing a folder of what is below".into()),
        Try::Nested => ("nested-user-namespace".into(), "a user namespace in a user namespace".into()),
    }
}

fn explain(step: Try, errno: Errno, facts: &Facts) -> Cause {
    match (step, errno) {
        (_, Errno::EAGAIN) => processes(facts),
        (Try::Namespace(kind), Errno::ENOSPC | Errno::EUSERS) => too_many(kind, facts),
        (Try::Nested, Errno::ENOSPC | Errno::EUSERS) => too_many(Namespace::User, facts),
        (Try::Namespace(_) | Try::Nested, Errno::EINVAL | Errno::ENOSYS) => cause(
            "this kernel is built without that kind of namespace",
            "Ask an administrator for a kernel with CONFIG_USER_NS, CONFIG_PID_NS and CONFIG_NET_NS.",
        ),
        (Try::Proc, Errno::EPERM) if facts.apparmor_restrict != Some(1) => Cause {
            meaning: "parts of /proc are masked here, as in a container; the host's /proc is shown instead, and \
                      processes are not kept apart"
                .into(),
            remedy: Some(
                "For full isolation run the container with an unmasked /proc (docker: \
                          --security-opt systempaths=unconfined; podman: --security-opt unmask=ALL)."
                    .into(),
            ),
        },
        (Try::Sysfs, Errno::EPERM) if facts.apparmor_restrict != Some(1) => Cause {
            meaning: "parts of /sys are masked here; the host's /sys is shown read-only instead".into(),
            remedy: None,
        },
        (Try::FakeRoot | Try::Deny, _) => cause(
            "system call filters do not work here",
            "Ask an administrator for a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64.",
        ),
        (_, Errno::EPERM | Errno::EACCES) => refused(step, errno, facts),
        (_, errno) => Cause { meaning: format!("unexpected here ({})", errno.desc()), remedy: None },
    }
}

fn processes(facts: &Facts) -> Cause {
    let limit = facts.max_processes.map_or("no limit is set for you".into(), |limit| format!("yours is {limit}"));
    cause(
        format!("no more processes can be made ({limit}); a job's pids limit counts too"),
        "End other processes of yours, raise the limit (`ulimit -u`), or ask for a larger pids limit of the job.",
    )
}

fn too_many(kind: Namespace, facts: &Facts) -> Cause {
    let (name, limit) = match kind {
        Namespace::User => ("user", facts.max_user_namespaces),
        Namespace::Mount => ("mnt", facts.max_mnt_namespaces),
        Namespace::Pid => ("pid", facts.max_pid_namespaces),
        Namespace::Ipc => ("ipc", None),
        Namespace::Uts => ("uts", None),
        Namespace::Net => ("net", None),
    };
    let sysctl = format!("user.max_{name}_namespaces");
    match limit {
        Some(limit) if limit > 0 && kind == Namespace::User => cause(
            format!("too many user namespaces: more than 32 in each other, or more than {sysctl}={limit}"),
            "Run it outside the containers around it.",
        ),
        _ => {
            let value = limit.map_or(String::new(), |limit| format!("={limit}"));
            cause(
                format!("the limit {sysctl}{value} allows none"),
                format!(
                    "Ask an administrator for:\n  echo '{sysctl} = 31000' > /etc/sysctl.d/90-slurm-factory.conf\n  sysctl --system"
                ),
            )
        }
    }
}

/// EPERM and EACCES have many fathers. The most specific explanation that fits comes first.
fn refused(step: Try, errno: Errno, facts: &Facts) -> Cause {
    let clone = matches!(step, Try::Namespace(_) | Try::Nested);
    if clone && facts.unprivileged_userns_clone == Some(0) {
        return cause(
            "this kernel allows user namespaces to root only: kernel.unprivileged_userns_clone=0",
            "Ask an administrator for:\n  echo 'kernel.unprivileged_userns_clone = 1' > \
             /etc/sysctl.d/90-slurm-factory.conf\n  sysctl --system",
        );
    }
    if facts.apparmor_restrict == Some(1) && facts.uid != 0 {
        return apparmor(facts);
    }
    if step == Try::MapIds && facts.uid == 0 && !facts.cap_setfcap {
        return cause(
            "you are root without CAP_SETFCAP, as in a container, and that root may not map itself",
            "Run the container as an ordinary user, or give it the capability (docker, podman: --cap-add SETFCAP).",
        );
    }
    if clone && facts.chroot {
        return cause(
            "this process is in a chroot, where the kernel refuses user namespaces",
            "Run it outside the chroot, or enter the folder with pivot_root (systemd-nspawn, bwrap) in place of chroot.",
        );
    }
    if errno == Errno::EACCES && facts.selinux_enforcing {
        return cause(
            "SELinux refuses it",
            "Ask an administrator to allow it; the reason is in `ausearch -m AVC -ts recent` (class user_namespace).",
        );
    }
    if facts.seccomp {
        return cause(
            "a system call filter around this process refuses it, as in a container",
            "Ask for a runner whose containers may make user namespaces (docker, podman: --security-opt \
             seccomp=unconfined; Kubernetes: seccompProfile Unconfined), or run outside the container.",
        );
    }
    if facts.selinux_enforcing {
        return cause(
            "refused; SELinux enforces here and may be why",
            "Ask an administrator to look at `ausearch -m AVC -ts recent`.",
        );
    }
    Cause { meaning: "refused, and nothing that is known explains it".into(), remedy: None }
}

fn apparmor(facts: &Facts) -> Cause {
    let program = facts.program.as_deref().unwrap_or(std::path::Path::new("/usr/local/bin/slurm-factory"));
    cause(
        "AppArmor takes all rights from user namespaces made by programs without a profile (Ubuntu 23.10 and later: \
         kernel.apparmor_restrict_unprivileged_userns=1)",
        format!(
            "Ask an administrator to install this as /etc/apparmor.d/slurm-factory:\n  \
             abi <abi/4.0>,\n  include <tunables/global>\n  profile slurm-factory \"{}\" flags=(unconfined) {{\n    \
             userns,\n  }}\nand to run:\n  apparmor_parser --replace /etc/apparmor.d/slurm-factory",
            program.display()
        ),
    )
}

/// What helps against a step of the set-up that failed although probing said it would work.
pub(super) fn remedy_for(failure: &Failure) -> Option<String> {
    let facts = Facts::read();
    let errno = Errno::from_raw(failure.errno);
    let known = |step| {
        let Cause { meaning, remedy } = explain(step, errno, &facts);
        Some(remedy.map_or(meaning.clone(), |remedy| format!("{meaning}. {remedy}")))
    };
    match (&failure.step, errno) {
        (Step::Namespaces(_), _) | (Step::Start(_) | Step::Internal(_), Errno::EAGAIN) => {
            known(Try::Namespace(Namespace::User))
        }
        (Step::MapIds, _) if failure.errno != 0 => known(Try::MapIds),
        (Step::Op(op), errno) => for_op(op, errno, &facts),
        (Step::Start(_) | Step::Internal(_) | Step::Tend | Step::MapIds, _) => None,
    }
}

fn for_op(op: &Op, errno: Errno, facts: &Facts) -> Option<String> {
    let text = match (op, errno) {
        (Op::Bind { .. }, Errno::EROFS | Errno::EACCES | Errno::EPERM) => {
            "the mount point is missing in the rootfs and cannot be made there, or the source is closed to you"
        }
        (Op::Alias { .. } | Op::Tmpfs { .. } | Op::Proc | Op::Sys { .. }, Errno::EROFS | Errno::EACCES) => {
            "it is missing in the rootfs, and the rootfs cannot be written by you"
        }
        (_, Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP) => {
            "the image has something else at this place (a symlink, or a file for a folder): it is not usable as it is"
        }
        (Op::Root { .. }, Errno::ENOENT) => "the rootfs is gone",
        (Op::Bind { .. }, Errno::ENOENT) => "the source does not exist on this host",
        (Op::Chdir { .. }, Errno::ENOENT) => "the working folder does not exist in the image",
        (Op::Pivot, Errno::EINVAL) => {
            "this host runs from its initial RAM file system (rootfs), which pivot_root cannot leave; ask an \
             administrator to boot it with switch_root into a tmpfs"
        }
        (_, Errno::ENOSPC) => "the limit of mounts is reached (fs.mount-max), or memory is",
        (_, Errno::EPERM | Errno::EACCES) if facts.apparmor_restrict == Some(1) => {
            return apparmor(facts).remedy;
        }
        _ => return None,
    };
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc::{EACCES, EAGAIN, EINVAL, ENOSPC, ENOSYS, EPERM};

    const USER: Try = Try::Namespace(Namespace::User);

    fn facts(change: impl Fn(&mut Facts)) -> Facts {
        let mut facts = Facts {
            uid: 1000,
            cap_setfcap: false,
            max_user_namespaces: Some(1000),
            max_mnt_namespaces: Some(1000),
            max_pid_namespaces: Some(1000),
            program: Some("/opt/slurm factory/bin/slurm-factory".into()),
            ..Facts::default()
        };
        change(&mut facts);
        facts
    }

    /// Each row of the table of causes, those that no test machine shows included.
    #[test]
    fn every_cause_is_told_apart() {
        type Case = (Try, i32, Facts, Outcome, &'static str, &'static str);
        let cases: Vec<Case> = vec![
            (
                USER,
                ENOSPC,
                facts(|f| f.max_user_namespaces = Some(0)),
                Outcome::Fail,
                "user.max_user_namespaces=0",
                "sysctl --system",
            ),
            (USER, ENOSPC, facts(|_| ()), Outcome::Fail, "more than 32 in each other", "outside the containers"),
            (
                Try::Namespace(Namespace::Mount),
                ENOSPC,
                facts(|f| f.max_mnt_namespaces = Some(0)),
                Outcome::Fail,
                "user.max_mnt_namespaces=0",
                "sysctl",
            ),
            (
                Try::Namespace(Namespace::Pid),
                ENOSPC,
                facts(|f| f.max_pid_namespaces = Some(0)),
                Outcome::Warn,
                "user.max_pid_namespaces=0",
                "sysctl",
            ),
            (
                USER,
                EPERM,
                facts(|f| f.unprivileged_userns_clone = Some(0)),
                Outcome::Fail,
                "kernel.unprivileged_userns_clone=0",
                "'kernel.unprivileged_userns_clone = 1'",
            ),
            (
                Try::MapIds,
                EPERM,
                facts(|f| f.apparmor_restrict = Some(1)),
                Outcome::Fail,
                "AppArmor",
                "profile slurm-factory \"/opt/slurm factory/bin/slurm-factory\" flags=(unconfined)",
            ),
            (
                Try::DetachMounts,
                EACCES,
                facts(|f| f.apparmor_restrict = Some(1)),
                Outcome::Fail,
                "AppArmor",
                "apparmor_parser --replace",
            ),
            (Try::Proc, EPERM, facts(|f| f.apparmor_restrict = Some(1)), Outcome::Warn, "AppArmor", "userns,"),
            (USER, EACCES, facts(|f| f.selinux_enforcing = true), Outcome::Fail, "SELinux refuses", "ausearch"),
            (USER, EPERM, facts(|f| f.seccomp = true), Outcome::Fail, "system call filter", "seccomp=unconfined"),
            (
                USER,
                EPERM,
                facts(|f| (f.seccomp, f.chroot) = (true, true)),
                Outcome::Fail,
                "in a chroot",
                "outside the chroot",
            ),
            (Try::MapIds, EPERM, facts(|f| f.uid = 0), Outcome::Fail, "CAP_SETFCAP", "--cap-add SETFCAP"),
            (Try::Proc, EPERM, facts(|_| ()), Outcome::Warn, "masked", "unmask=ALL"),
            (USER, EAGAIN, facts(|f| f.max_processes = Some(7)), Outcome::Fail, "yours is 7", "ulimit -u"),
            (USER, EINVAL, facts(|_| ()), Outcome::Fail, "built without", "CONFIG_USER_NS"),
            (USER, ENOSYS, facts(|_| ()), Outcome::Fail, "built without", "CONFIG_USER_NS"),
            (Try::FakeRoot, EINVAL, facts(|_| ()), Outcome::Fail, "filters do not work", "CONFIG_SECCOMP_FILTER"),
        ];
        for (step, errno, facts, outcome, meaning, remedy) in cases {
            let finding = classify(&Trial::new(step, Some(errno)), &facts);
            assert_eq!((finding.outcome, finding.errno), (outcome, Some(errno)), "{finding}");
            assert!(finding.meaning.contains(meaning), "no `{meaning}` in: {finding}");
            assert!(finding.remedy.as_deref().is_some_and(|text| text.contains(remedy)), "no `{remedy}` in: {finding}");
        }
    }

    #[test]
    fn what_works_and_what_nothing_explains() {
        let fine = classify(&Trial::new(USER, None), &facts(|_| ()));
        assert_eq!((fine.outcome, fine.remedy), (Outcome::Ok, None));
        let unknown = classify(&Trial::new(USER, Some(EPERM)), &facts(|_| ()));
        assert!(unknown.meaning.contains("nothing that is known explains it"), "{unknown}");
        let sys = classify(&Trial::new(Try::Sysfs, Some(EPERM)), &facts(|_| ()));
        assert_eq!(sys.outcome, Outcome::Warn);
    }

    #[test]
    fn failed_operations_say_what_helps() {
        let root = Op::Root { rootfs: "/r".into() };
        let text = |op: &Op, errno: Errno| for_op(op, errno, &facts(|_| ())).unwrap_or_default();
        assert!(text(&root, Errno::ENOENT).contains("gone"));
        assert!(text(&Op::Pivot, Errno::EINVAL).contains("switch_root"));
        assert!(text(&Op::Proc, Errno::ENOTDIR).contains("not usable"));
        assert_eq!(text(&Op::Loopback, Errno::EPERM), "");
    }
}
