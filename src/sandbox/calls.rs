//! Which system calls are answered by the filters, as data, with the numbers of each machine.
//!
//! [`super::seccomp`] makes programs for the kernel of it, `docs/security.md` lists it, and a test compares the two.
//!
//! `ptrace` and its kin (`process_vm_readv`, `pidfd_getfd`, `kcmp`) are not refused: debuggers and the test suites of
//! libraries use them on their own children. They reach nobody else: other processes have no number inside, and one
//! of a parent's user namespace may not be traced from a child's whoever owns it (`ptrace(2)`, "access mode checking").

use super::ops::Filter;
use nix::libc;
use seccompiler::TargetArch;
use syscalls::{aarch64, x86_64};

/// A system call: its name, and its number on each machine that has it.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub name: &'static str,
    x86_64: Option<u32>,
    aarch64: Option<u32>,
}

impl Call {
    /// Its number there, if it has one.
    pub fn number(self, machine: TargetArch) -> Option<i64> {
        match machine {
            TargetArch::x86_64 => self.x86_64.map(i64::from),
            TargetArch::aarch64 => self.aarch64.map(i64::from),
            TargetArch::riscv64 => None,
        }
    }
}

/// Names and numbers cannot disagree.
macro_rules! calls {
    ($($name:ident)*) => { [$(Call {
        name: stringify!($name),
        x86_64: Some(x86_64::Sysno::$name as u32),
        aarch64: Some(aarch64::Sysno::$name as u32),
    }),*] };
}

/// Calls that newer machines do not have: there a folder is always passed.
macro_rules! old_calls {
    ($($name:ident)*) => { [$(Call {
        name: stringify!($name),
        x86_64: Some(x86_64::Sysno::$name as u32),
        aarch64: None,
    }),*] };
}

/// When a rule applies. Modes, ids, flags and requests are 32 bits: the kernel ignores what is above them.
#[derive(Debug, Clone, Copy)]
pub enum When {
    Always,
    /// Argument, mask, value: the masked argument equals the value.
    Masked(u8, u32, u32),
    /// Argument, value: the argument is another.
    Not(u8, u32),
}

/// One line of a filter.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub call: Call,
    pub when: When,
    /// What the call returns: 0 is success.
    pub errno: i32,
}

/// The lines of a filter. Where two filters answer the same call, [`Filter::FakeRoot`]'s answer holds.
pub fn rules(filter: Filter) -> Vec<Rule> {
    match filter {
        Filter::FakeRoot => fake_root(),
        Filter::Deny => deny(),
    }
}

fn fake_root() -> Vec<Rule> {
    let rule = |when| move |call| Rule { call, when, errno: 0 };
    let mut rules: Vec<Rule> = calls![
        capset fchown fchownat setuid setgid setreuid setregid setresuid setresgid setgroups setxattr lsetxattr fsetxattr
        kexec_load
    ]
    .map(rule(When::Always))
    .into();
    rules.extend(old_calls![chown lchown].map(rule(When::Always)));
    rules.extend(calls![setfsuid setfsgid].map(rule(When::Not(0, u32::MAX))));
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        rules.extend(calls![mknodat].map(rule(When::Masked(2, libc::S_IFMT, kind))));
        rules.extend(old_calls![mknod].map(rule(When::Masked(1, libc::S_IFMT, kind))));
    }
    rules
}

fn deny() -> Vec<Rule> {
    let rule = |when, errno| move |call| Rule { call, when, errno };
    let mut rules: Vec<Rule> = Vec::new();
    // What is mounted, and into what namespaces one can get.
    rules.extend(
        calls![
            mount umount2 pivot_root move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr
            setns swapon swapoff quotactl quotactl_fd acct
        ]
        .map(rule(When::Always, libc::EPERM)),
    );
    // Files by a number that needs no path.
    rules.extend(calls![open_by_handle_at].map(rule(When::Always, libc::EPERM)));
    // The user's keyrings are not kept apart by namespaces.
    rules.extend(calls![add_key request_key keyctl].map(rule(When::Always, libc::EPERM)));
    // What exploits of the kernel begin with.
    rules.extend(
        calls![bpf userfaultfd perf_event_open fanotify_init vhangup syslog].map(rule(When::Always, libc::EPERM)),
    );
    // The kernel itself.
    rules.extend(
        calls![init_module finit_module delete_module kexec_load kexec_file_load reboot settimeofday clock_settime]
            .map(rule(When::Always, libc::EPERM)),
    );
    rules.extend(old_calls![iopl ioperm modify_ldt].map(rule(When::Always, libc::EPERM)));
    let new_user = libc::CLONE_NEWUSER.unsigned_abs();
    rules.extend(calls![clone unshare].map(rule(When::Masked(0, new_user, new_user), libc::EPERM)));
    // Input pushed into a terminal that the caller shares would be run by the caller's shell (ioctl_tty(2)).
    for request in [TIOCSTI, TIOCLINUX] {
        rules.extend(calls![ioctl].map(rule(When::Masked(1, u32::MAX, request), libc::EPERM)));
    }
    // Flags in memory, and file operations that no filter sees: programs do without both, as on an older kernel.
    rules.extend(calls![clone3 io_uring_setup io_uring_enter io_uring_register].map(rule(When::Always, libc::ENOSYS)));
    // Sockets that a network namespace does not hold back (of a virtual machine's host), or that are the kernel's
    // own cryptography, as on a kernel that is made without them.
    for family in [libc::AF_VSOCK, libc::AF_ALG] {
        let family = family.unsigned_abs();
        rules.extend(calls![socket].map(rule(When::Masked(0, u32::MAX, family), libc::EAFNOSUPPORT)));
    }
    rules
}

/// The same numbers on all machines that have a filter here; libc's type for them is not.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_on_security_lists_what_is_refused() {
        let page = include_str!("../../docs/security.md");
        let listed = |heading: &str| -> Vec<&str> {
            let (_, after) = page.split_once(heading).unwrap_or_else(|| panic!("no `{heading}` in docs/security.md"));
            let block = after.split("```").nth(1).unwrap_or_default();
            let mut names: Vec<_> = block.split_whitespace().filter(|word| *word != "text").collect();
            names.sort_unstable();
            names
        };
        for (filter, heading) in [(Filter::Deny, "Calls that are refused"), (Filter::FakeRoot, "Calls that are faked")]
        {
            let mut names: Vec<_> = rules(filter).iter().map(|rule| rule.call.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(listed(heading), names, "docs/security.md, under `{heading}`");
        }
    }

    #[test]
    fn the_numbers_are_the_machines_own() {
        for rule in [rules(Filter::Deny), rules(Filter::FakeRoot)].concat() {
            let here = std::env::consts::ARCH.try_into().unwrap();
            match rule.call.name {
                "mount" => assert_eq!(rule.call.number(here), Some(libc::SYS_mount)),
                "fchownat" => assert_eq!(rule.call.number(here), Some(libc::SYS_fchownat)),
                "ioctl" => {
                    assert_eq!(rule.call.number(TargetArch::aarch64), Some(29));
                    assert_eq!(rule.call.number(TargetArch::x86_64), Some(16));
                }
                "chown" => assert_eq!(rule.call.number(TargetArch::aarch64), None),
                _ => {}
            }
        }
    }
}
