//! Which processors a package runs on: what its manifest promises, what its files ask for, and what this machine has.
//!
//! Levels are those of the x86-64 psABI, 1 to 4. Spack's names for them are `x86_64`, `x86_64_v2` and so on, the linker's
//! `x86-64-v2`.

use crate::relocate::verify::{Findings, Problem};

/// The level that a name means, in Spack's form or the linker's; none for anything that is no level.
fn level(name: &str) -> Option<u8> {
    let rest = name.strip_prefix("x86_64").or_else(|| name.strip_prefix("x86-64"))?;
    match rest.strip_prefix(['_', '-']) {
        None if rest.is_empty() => Some(1),
        Some(level) => level.strip_prefix('v')?.parse().ok().filter(|level| (2..=4).contains(level)),
        None => None,
    }
}

/// Adds a problem when a file asks for more than the target that the manifest names.
pub fn check(findings: &mut Findings, target: &str) {
    if let (Some(promised), Some(isa)) = (level(target), &findings.isa)
        && level(&isa.level).is_some_and(|needed| needed > promised)
    {
        findings.problems.push(Problem::Processor {
            path: isa.path.clone(),
            level: isa.level.clone(),
            target: target.to_owned(),
        });
    }
}

/// Whether this machine runs what is made for a target; none when it cannot be told.
pub fn runs_here(target: &str) -> Option<bool> {
    Some(level(target)? <= here())
}

/// The level of this machine's processor.
#[cfg(target_arch = "x86_64")]
fn here() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt");
    let v3 = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("f16c");
    let v3 = v3 && has!("lzcnt") && has!("movbe");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v2, v3, v4) {
        (true, true, true) => 4,
        (true, true, false) => 3,
        (true, false, _) => 2,
        (false, ..) => 1,
    }
}

/// None of them: other machines do not run x86-64 code.
#[cfg(not(target_arch = "x86_64"))]
fn here() -> u8 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relocate::verify::Isa;

    #[test]
    fn levels_in_both_spellings() {
        for (name, want) in [
            ("x86_64", Some(1)),
            ("x86-64", Some(1)),
            ("x86_64_v3", Some(3)),
            ("x86-64-v4", Some(4)),
            ("aarch64", None),
            ("zen4", None),
            ("x86_64_v9", None),
            ("x86_64v3", None),
        ] {
            assert_eq!(level(name), want, "{name}");
        }
    }

    #[test]
    fn a_file_that_asks_for_more_than_was_promised_is_a_problem() {
        let problems = |target: &str| {
            let isa = Isa { level: "x86-64-v3".into(), path: "lib/a.so".into() };
            let mut findings = Findings { isa: Some(isa), ..Findings::default() };
            check(&mut findings, target);
            findings.problems
        };
        assert!(problems("x86_64_v3").is_empty() && problems("x86_64_v4").is_empty() && problems("aarch64").is_empty());
        let [problem] = &problems("x86_64")[..] else { panic!() };
        let text = problem.to_string();
        assert!(text.contains("lib/a.so") && text.contains("x86-64-v3") && text.contains("x86_64"), "{text}");
    }
}
