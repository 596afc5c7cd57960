//! The two filters on system calls (`seccomp(2)`), compiled to BPF. What they answer is in [`super::calls`].
//!
//! **Fake root.** With one id mapped, a chown to any other is EINVAL, and device nodes are EPERM; package
//! scripts do both. The filter answers these calls with success without doing them: after installing, every
//! file belongs to the caller, and nothing misses the difference, because the image is used with one id too.
//! What can be done for real stays real: fifos and sockets made by mknod, and `setfsuid(-1)`, which asks.
//! Extended attributes are answered so too: rpm gives a package up when `security.capability` cannot be set, as on
//! NFS, and a filter cannot read which name was asked for; nothing in a build root needs any.
//!
//! **Deny.** What a build has no use for and what exploits of the kernel begin with fails with EPERM; what programs
//! find missing on older kernels as well (`clone3`, whose flags are in memory that a filter cannot read, and
//! `io_uring`, whose operations no filter sees) says ENOSYS, and every libc and library then does without.
//!
//! Calls by another ABI of the same machine do not get past either: the numbers mean other calls there. 32-bit calls
//! on x86_64 end the program; x32's, which have the same architecture and a bit in the number, say ENOSYS, as they do
//! on most kernels.
//!
//! Most calls cost nothing: their answer depends on the number alone, and the kernel keeps it (since Linux 5.11). For that
//! it tries a new filter for each number of the machine, so that a filter is a search tree here and not a row: half of
//! the time of loading it. (The compiler that comes with the library that loads it makes rows, and one program an answer.)

use super::calls::{Rule, When, rules};
use super::ops::Filter;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use seccompiler::{BpfProgram, TargetArch, sock_filter};
use std::collections::BTreeMap;
use std::io;

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
    #[error("the kernel took the system call filter, but {call} is not answered by it ({answer})")]
    Ineffective {
        /// What was tried.
        call: &'static str,
        /// What came back.
        answer: String,
    },
}

/// Installs a filter for this process and all it will start, and tries it. Implies `PR_SET_NO_NEW_PRIVS`.
///
/// Of two filters, [`Filter::FakeRoot`] comes last: of two answers the kernel gives the later filter's.
pub fn install(filter: Filter) -> Result<(), FilterError> {
    let failed = |e: seccompiler::BackendError| FilterError::Compile { reason: e.to_string() };
    let machine = std::env::consts::ARCH.try_into().map_err(failed)?;
    seccompiler::apply_filter(&program(filter, machine)?).map_err(FilterError::Install)?;
    match filter {
        Filter::FakeRoot => fakes(),
        Filter::Deny => refuses(),
    }
}

/// A chown that cannot succeed for real, since the id is not mapped, does succeed.
fn fakes() -> Result<(), FilterError> {
    let id = 65_533;
    let answer = nix::unistd::chown("/", Some(id.into()), Some(id.into()));
    answer.map_err(|e| FilterError::Ineffective { call: "chown", answer: e.to_string() })
}

/// A call that changes nothing and to which the kernel itself would say EINVAL says EPERM: no namespace is meant by
/// the descriptor.
fn refuses() -> Result<(), FilterError> {
    let (not_a_namespace, _other) =
        io::pipe().map_err(|e| FilterError::Ineffective { call: "setns", answer: e.to_string() })?;
    match setns(not_a_namespace, CloneFlags::empty()) {
        Err(Errno::EPERM) => Ok(()),
        answer => Err(FilterError::Ineffective { call: "setns", answer: format!("{answer:?}") }),
    }
}

/// The instructions of classic BPF that filters need (`linux/bpf_common.h`).
mod code {
    pub const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, of struct seccomp_data
    pub const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    pub const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    pub const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    pub const RETURN: u16 = 0x06; // BPF_RET | BPF_K
}

/// Where `struct seccomp_data` has the number of the call.
const NUMBER: u32 = 0;
/// Where it has the architecture.
const ARCHITECTURE: u32 = 4;
/// Where it has the arguments, of 8 bytes each. Of both machines the lower half comes first.
const ARGUMENTS: u32 = 16;
/// The bit that x32's numbers have: all of them are above those of the machine itself (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;

fn line(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// The architecture as the kernel names it (`linux/audit.h`).
fn audit(machine: TargetArch) -> Result<u32, FilterError> {
    match machine {
        TargetArch::x86_64 => Ok(0xc000_003e),
        TargetArch::aarch64 => Ok(0xc000_00b7),
        TargetArch::riscv64 => Err(FilterError::Compile { reason: "it has no numbers here".into() }),
    }
}

/// ```text
/// another architecture: the process ends
/// numbers below the middle one: ...   by halves, down to one number and what is said to it
/// else: ...
/// ```
fn program(filter: Filter, machine: TargetArch) -> Result<BpfProgram, FilterError> {
    let mut by_number: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for rule in rules(filter) {
        let number = rule.call.number(machine).and_then(|number| u32::try_from(number).ok());
        if let Some(number) = number {
            by_number.entry(number).or_default().push(rule);
        }
    }
    // From each of these numbers on to the next, the answer is this one.
    let mut answers = BTreeMap::from([(0, allow())]);
    for (number, rules) in by_number {
        answers.insert(number, answer(&rules));
        answers.insert(number + 1, allow());
    }
    if machine == TargetArch::x86_64 {
        answers.insert(X32, vec![line(code::RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs())]);
    }
    let mut answers: Vec<(u32, BpfProgram)> = answers.into_iter().collect();
    answers.dedup_by(|next, last| next.1 == last.1);
    let mut program = vec![
        line(code::LOAD, ARCHITECTURE),
        sock_filter { jt: 1, ..line(code::IF_EQUAL, audit(machine)?) },
        line(code::RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        line(code::LOAD, NUMBER),
    ];
    program.extend(tree(&answers)?);
    Ok(program)
}

fn tree(answers: &[(u32, BpfProgram)]) -> Result<BpfProgram, FilterError> {
    let (below, from) = answers.split_at(answers.len() / 2);
    let ([_, ..], [(middle, _), ..]) = (below, from) else {
        return Ok(answers.iter().flat_map(|(_, answer)| answer.iter().cloned()).collect());
    };
    let (below, rest) = (tree(below)?, tree(from)?);
    let over = u8::try_from(below.len());
    let over = over.map_err(|_| FilterError::Compile { reason: "a jump of more than 255 lines".into() })?;
    let mut program = vec![sock_filter { jt: over, ..line(code::IF_AT_LEAST, *middle) }];
    program.extend(below);
    program.extend(rest);
    Ok(program)
}

fn allow() -> BpfProgram {
    vec![line(code::RETURN, libc::SECCOMP_RET_ALLOW)]
}

/// What is said to one number: the first rule that applies decides.
fn answer(rules: &[Rule]) -> BpfProgram {
    let mut program = Vec::new();
    for rule in rules {
        let refuse = line(code::RETURN, libc::SECCOMP_RET_ERRNO | rule.errno.unsigned_abs());
        let argument = |index: u8| line(code::LOAD, ARGUMENTS + 8 * u32::from(index));
        match rule.when {
            When::Always => {
                program.push(refuse);
                return program;
            }
            When::Masked(index, mask, value) => program.extend([
                argument(index),
                line(code::AND, mask),
                sock_filter { jf: 1, ..line(code::IF_EQUAL, value) },
                refuse,
            ]),
            When::Not(index, value) => {
                program.extend([argument(index), sock_filter { jt: 1, ..line(code::IF_EQUAL, value) }, refuse]);
            }
        }
    }
    program.extend(allow());
    program
}

/// The filters in the form that container runtimes read (the OCI runtime specification, "Seccomp").
pub fn oci_profile(filters: &[Filter]) -> serde_json::Value {
    let mut lines = Vec::new();
    let mut answered: Vec<&str> = Vec::new();
    let faked = |filter: &Filter| *filter != Filter::FakeRoot;
    let mut filters = filters.to_vec();
    filters.sort_by_key(faked); // a runtime takes one answer a call
    for filter in filters {
        let of_filter = rules(filter);
        for rule in of_filter.iter().filter(|rule| !answered.contains(&rule.call.name)) {
            let compare = |index: u8, op: &str, value: u32, second: u32| serde_json::json!([{ "index": index, "op": op, "value": value, "valueTwo": second }]);
            let arguments = match rule.when {
                When::Always => serde_json::json!([]),
                When::Masked(index, mask, value) => compare(index, "SCMP_CMP_MASKED_EQ", mask, value),
                When::Not(index, value) => compare(index, "SCMP_CMP_NE", value, 0),
            };
            lines.push(serde_json::json!({
                "names": [rule.call.name], "action": "SCMP_ACT_ERRNO", "errnoRet": rule.errno, "args": arguments,
            }));
        }
        answered.extend(of_filter.iter().map(|rule| rule.call.name));
    }
    serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINES: [TargetArch; 2] = [TargetArch::x86_64, TargetArch::aarch64];
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    const I386: u32 = 0x4000_0003; // AUDIT_ARCH_I386
    const ARM: u32 = 0x4000_0028; // AUDIT_ARCH_ARM

    /// What the kernel would make of a program: the few instructions that such programs are made of.
    fn run(program: &[sock_filter], data: &[u8; 64]) -> u32 {
        count(program, data).0
    }

    fn steps(program: &[sock_filter], arch: u32, number: u32) -> usize {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        count(program, &data).1
    }

    /// The answer, and how many instructions there were to it.
    fn count(program: &[sock_filter], data: &[u8; 64]) -> (u32, usize) {
        let (mut at, mut a) = (0, 0_u32);
        for taken in 1.. {
            let line = &program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { line.jt } else { line.jf });
            match line.code {
                0x20 => {
                    let from = line.k as usize;
                    a = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                }
                0x54 => a &= line.k,
                0x05 => at += line.k as usize,
                0x15 => at += jump(a == line.k),
                0x25 => at += jump(a > line.k),
                0x35 => at += jump(a >= line.k),
                0x45 => at += jump(a & line.k != 0),
                0x06 => return (line.k, taken),
                other => panic!("instruction {other:#x} is not known here"),
            }
        }
        unreachable!()
    }

    /// The answer of several filters: the strictest, and of equally strict ones the last one's.
    fn answer(filters: &[Filter], machine: TargetArch, arch: u32, number: i64, args: [u64; 6]) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (index, arg) in args.iter().enumerate() {
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_le_bytes());
        }
        let action = |answer: u32| (answer & libc::SECCOMP_RET_ACTION_FULL).cast_signed();
        let programs = filters.iter().map(|filter| program(*filter, machine).unwrap());
        programs
            .map(|program| run(&program, &data))
            .fold(ALLOW, |strictest, answer| if action(answer) <= action(strictest) { answer } else { strictest })
    }

    fn errno(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()
    }

    fn number(filter: Filter, name: &str, machine: TargetArch) -> i64 {
        rules(filter).iter().find(|rule| rule.call.name == name).unwrap().call.number(machine).unwrap()
    }

    #[test]
    fn every_rule_gives_its_answer_on_both_machines() {
        for machine in MACHINES {
            for filter in [Filter::FakeRoot, Filter::Deny] {
                for rule in rules(filter) {
                    let Some(number) = rule.call.number(machine) else { continue };
                    let (hit, miss) = match rule.when {
                        When::Always => ([0; 6], None),
                        When::Masked(index, _, value) => {
                            let mut hit = [0; 6];
                            hit[usize::from(index)] = u64::from(value) | 1 << 40;
                            (hit, Some([0; 6]))
                        }
                        When::Not(index, value) => {
                            let mut miss = [0; 6];
                            miss[usize::from(index)] = u64::from(value);
                            ([0; 6], Some(miss))
                        }
                    };
                    let arch = audit(machine).unwrap();
                    let expected = errno(rule.errno);
                    assert_eq!(answer(&[filter], machine, arch, number, hit), expected, "{rule:?}");
                    if let Some(miss) = miss {
                        assert_eq!(answer(&[filter], machine, arch, number, miss), ALLOW, "{rule:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_builds_use_is_allowed_on_both_machines() {
        use syscalls::{aarch64, x86_64};
        let both = [Filter::Deny, Filter::FakeRoot];
        for machine in MACHINES {
            macro_rules! numbers {
                ($($name:ident)*) => { [$(match machine {
                    TargetArch::x86_64 => x86_64::Sysno::$name as i64,
                    _ => aarch64::Sysno::$name as i64,
                }),*] };
            }
            for call in
                numbers![read write openat execve clone unshare linkat renameat2 ptrace prctl ioctl socket mmap exit]
            {
                assert_eq!(answer(&both, machine, audit(machine).unwrap(), call, [0; 6]), ALLOW, "{call}");
            }
        }
    }

    #[test]
    fn other_abis_do_not_get_past() {
        for filter in [Filter::FakeRoot, Filter::Deny] {
            // getpid by the 32-bit tables, and anything by the other machine's.
            assert_eq!(answer(&[filter], TargetArch::x86_64, I386, 20, [0; 6]), KILL);
            assert_eq!(answer(&[filter], TargetArch::aarch64, ARM, 20, [0; 6]), KILL);
            let x32 = 0x4000_0000 | 0x27;
            let arch = audit(TargetArch::x86_64).unwrap();
            assert_eq!(answer(&[filter], TargetArch::x86_64, arch, x32, [0; 6]), errno(libc::ENOSYS));
        }
    }

    /// Every number of the machine, with arguments that no rule is about, is answered as the rules say: none slips between two.
    #[test]
    fn every_number_is_answered_as_the_rules_say() {
        for machine in MACHINES {
            for filter in [Filter::FakeRoot, Filter::Deny] {
                let always: BTreeMap<i64, i32> = rules(filter)
                    .iter()
                    .filter(|rule| matches!(rule.when, When::Always | When::Not(..)))
                    .filter_map(|rule| Some((rule.call.number(machine)?, rule.errno)))
                    .collect();
                for number in (0..2048).chain([0x3fff_ffff]) {
                    let expected = always.get(&number).map_or(ALLOW, |code| errno(*code));
                    let found = answer(&[filter], machine, audit(machine).unwrap(), number, [0; 6]);
                    assert_eq!(found, expected, "{filter:?} {machine:?} {number}");
                }
                let program = program(filter, machine).unwrap();
                let longest = 4 + 8 + 16;
                for number in 0..2048_u32 {
                    let steps = steps(&program, audit(machine).unwrap(), number);
                    assert!(steps <= longest, "{filter:?} {machine:?} {number}: {steps}");
                }
            }
        }
    }

    #[test]
    fn what_fake_root_answers_is_not_refused() {
        for machine in MACHINES {
            let number = number(Filter::Deny, "kexec_load", machine);
            let arch = audit(machine).unwrap();
            assert_eq!(answer(&[Filter::Deny], machine, arch, number, [0; 6]), errno(libc::EPERM));
            assert_eq!(answer(&[Filter::Deny, Filter::FakeRoot], machine, arch, number, [0; 6]), errno(0));
        }
    }

    #[test]
    fn the_profile_for_a_runtime_names_each_call_with_one_answer() {
        let text = oci_profile(&[Filter::Deny, Filter::FakeRoot]).to_string();
        assert!(text.contains(r#"{"names":["fchownat"],"action":"SCMP_ACT_ERRNO","errnoRet":0,"args":[]}"#), "{text}");
        assert!(
            text.contains(r#""args":[{"index":1,"op":"SCMP_CMP_MASKED_EQ","value":4294967295,"valueTwo":21522}]"#),
            "{text}"
        );
        assert_eq!(text.matches("kexec_load").count(), 1);
        assert!(
            text.contains(r#"{"names":["kexec_load"],"action":"SCMP_ACT_ERRNO","errnoRet":0,"args":[]}"#),
            "{text}"
        );
    }
}
