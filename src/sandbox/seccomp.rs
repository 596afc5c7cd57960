//! The two filters on system calls (`seccomp(2)`), as data compiled to BPF.
//!
//! **Fake root.** With one id mapped, a chown to any other is EINVAL, and device nodes are EPERM; package
//! scripts do both. The filter answers these calls with success without doing them: after installing, every
//! file belongs to the caller, and nothing misses the difference, because the image is used with one id too.
//! What can be done for real stays real: fifos and sockets made by mknod, and `setfsuid(-1)`, which asks.
//! Extended attributes are answered so too: rpm gives a package up when `security.capability` cannot be set, as on
//! NFS, and a filter cannot read which name was asked for; nothing in a build root needs any.
//!
//! **Deny.** What a build has no use for and what exploits of the kernel begin with fails with EPERM;
//! `clone3` says ENOSYS, because its flags are in memory that a filter cannot read, and every libc then
//! falls back to `clone`.
//!
//! Calls by another ABI of the same machine (32-bit on x86_64) end the program: the numbers mean other calls
//! there.

use super::ops::Filter;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;

/// Why a filter could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It could not be compiled: not one of the architectures that have numbers here.
    #[error("no system call filter for {arch}: {reason}", arch = std::env::consts::ARCH)]
    Compile {
        /// The compiler's words.
        reason: String,
    },
    /// The kernel refused it.
    #[error("the kernel refused the system call filter: {0}")]
    Install(seccompiler::Error),
    /// It is there but does not do what it must.
    #[error("the kernel took the system call filter, but a chown to another id still fails")]
    Ineffective,
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A system call by name and number.
type Call = (&'static str, i64);

/// Names and numbers cannot disagree.
macro_rules! calls {
    ($($name:ident)*) => { [$((&stringify!($name)["SYS_".len()..], libc::$name)),*] };
}

/// When a rule applies. Modes, ids, flags and requests are 32 bits: the kernel ignores what is above them.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// Argument, mask, value: the masked argument equals the value.
    Masked(u8, u32, u32),
    /// Argument, value: the argument is another.
    Not(u8, u32),
}

/// One line of a filter.
#[derive(Clone, Copy)]
struct Rule {
    call: Call,
    when: When,
    /// What the call returns: 0 is success.
    errno: i32,
}

/// Installs a filter for this process and all it will start. Implies `PR_SET_NO_NEW_PRIVS`.
pub fn install(filter: Filter) -> Result<(), FilterError> {
    for (rules, errno) in rules(filter)? {
        let program = compile(rules, errno)?;
        seccompiler::apply_filter(&program).map_err(FilterError::Install)?;
    }
    if filter == Filter::FakeRoot { self_test() } else { Ok(()) }
}

/// A chown that cannot succeed for real, since the id is not mapped, does succeed.
fn self_test() -> Result<(), FilterError> {
    let id = 65_533;
    nix::unistd::chown("/", Some(id.into()), Some(id.into())).map_err(|_| FilterError::Ineffective)
}

fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, FilterError> {
    let arch = std::env::consts::ARCH.try_into().map_err(failed)?;
    let action = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch).and_then(TryInto::try_into).map_err(failed)
}

#[allow(clippy::needless_pass_by_value)] // as map_err hands it over
fn failed(error: seccompiler::BackendError) -> FilterError {
    FilterError::Compile { reason: error.to_string() }
}

/// The compiler knows one answer a program, so there is one program for each answer.
fn rules(filter: Filter) -> Result<Vec<(Rules, i32)>, FilterError> {
    let mut programs: BTreeMap<i32, Rules> = BTreeMap::new();
    for Rule { call: (_, number), when, errno } in lines(filter) {
        let rules = programs.entry(errno).or_default().entry(number).or_default();
        let (index, operator, value) = match when {
            When::Always => continue,
            When::Masked(index, mask, value) => (index, SeccompCmpOp::MaskedEq(mask.into()), value),
            When::Not(index, value) => (index, SeccompCmpOp::Ne, value),
        };
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into());
        rules.push(condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(failed)?);
    }
    Ok(programs.into_iter().map(|(errno, rules)| (rules, errno)).collect())
}

fn lines(filter: Filter) -> Vec<Rule> {
    match filter {
        Filter::FakeRoot => fake_root(),
        Filter::Deny => deny(),
    }
}

fn fake_root() -> Vec<Rule> {
    let rule = |when| move |call| Rule { call, when, errno: 0 };
    let mut rules: Vec<Rule> = calls![
        SYS_capset SYS_fchown SYS_fchownat SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid
        SYS_setresgid SYS_setgroups SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_kexec_load
    ]
    .map(rule(When::Always))
    .into();
    rules.extend(calls![SYS_setfsuid SYS_setfsgid].map(rule(When::Not(0, u32::MAX))));
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        rules.extend(calls![SYS_mknodat].map(rule(When::Masked(2, libc::S_IFMT, kind))));
        #[cfg(target_arch = "x86_64")]
        rules.extend(calls![SYS_mknod].map(rule(When::Masked(1, libc::S_IFMT, kind))));
    }
    // Newer architectures have only the calls that take a folder.
    #[cfg(target_arch = "x86_64")]
    rules.extend(calls![SYS_chown SYS_lchown].map(rule(When::Always)));
    rules
}

fn deny() -> Vec<Rule> {
    let rule = |when| move |call| Rule { call, when, errno: libc::EPERM };
    let mut rules: Vec<Rule> = calls![
        SYS_mount SYS_umount2 SYS_pivot_root SYS_move_mount SYS_open_tree SYS_fsopen SYS_fsconfig SYS_fsmount
        SYS_fspick SYS_mount_setattr SYS_setns SYS_add_key SYS_request_key SYS_keyctl SYS_bpf SYS_userfaultfd
        SYS_perf_event_open SYS_init_module SYS_finit_module SYS_delete_module SYS_reboot SYS_swapon SYS_swapoff
        SYS_acct SYS_quotactl SYS_open_by_handle_at
    ]
    .map(rule(When::Always))
    .into();
    let new_user = libc::CLONE_NEWUSER.unsigned_abs();
    rules.extend(calls![SYS_clone SYS_unshare].map(rule(When::Masked(0, new_user, new_user))));
    // Input pushed into a terminal that the caller shares would be run by the caller's shell (ioctl_tty(2)).
    for request in [TIOCSTI, TIOCLINUX] {
        rules.extend(calls![SYS_ioctl].map(rule(When::Masked(1, u32::MAX, request))));
    }
    rules.extend(calls![SYS_clone3].map(|call| Rule { call, when: When::Always, errno: libc::ENOSYS }));
    rules
}

/// The same numbers on all architectures that have a filter here; libc's type for them is not.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

/// The filters in the form that container runtimes read (the OCI runtime specification, "Seccomp").
pub fn oci_profile(filters: &[Filter]) -> serde_json::Value {
    let line = |rule: Rule| {
        let compare = |index: u8, op: &str, value: u32, second: u32| serde_json::json!([{ "index": index, "op": op, "value": value, "valueTwo": second }]);
        let arguments = match rule.when {
            When::Always => serde_json::json!([]),
            When::Masked(index, mask, value) => compare(index, "SCMP_CMP_MASKED_EQ", mask, value),
            When::Not(index, value) => compare(index, "SCMP_CMP_NE", value, 0),
        };
        serde_json::json!({
            "names": [rule.call.0], "action": "SCMP_ACT_ERRNO", "errnoRet": rule.errno, "args": arguments,
        })
    };
    let lines: Vec<_> = filters.iter().flat_map(|filter| lines(*filter)).map(line).collect();
    serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_numbers_own() {
        assert_eq!(calls![SYS_fchownat SYS_ioctl].map(|call| call.0), ["fchownat", "ioctl"]);
        let text = oci_profile(&[Filter::FakeRoot, Filter::Deny]).to_string();
        assert!(text.contains(r#"{"names":["fchownat"],"action":"SCMP_ACT_ERRNO","errnoRet":0,"args":[]}"#), "{text}");
        assert!(
            text.contains(r#""args":[{"index":1,"op":"SCMP_CMP_MASKED_EQ","value":4294967295,"valueTwo":21522}]"#),
            "{text}"
        );
    }

    #[test]
    fn both_filters_compile_here() {
        for filter in [Filter::FakeRoot, Filter::Deny] {
            for (rules, errno) in rules(filter).unwrap() {
                assert!(!compile(rules, errno).unwrap().is_empty());
            }
        }
    }
}
