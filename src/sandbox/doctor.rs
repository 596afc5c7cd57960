//! Everything that decides whether and how sandboxes work on this host, each with what was tried, what it
//! means and what helps: the rows that `doctor` shows.

use super::error::SandboxError;
use super::facts::Facts;
use super::findings::{Finding, Outcome, classify};
use super::{Backend, beneath, folders, podman, resources, run};
use crate::report::Interrupt;
use std::path::Path;

/// Tries everything. `chosen` is the backend that builds would use, none when none works; `folders` are what builds
/// write to, by a name that begins their ids (`cache`, `build-dir`).
pub fn probe(
    chosen: Option<Backend>,
    folders: &[(&str, &Path)],
    interrupt: &Interrupt,
) -> Result<Vec<Finding>, SandboxError> {
    let facts = Facts::read();
    let mut findings: Vec<_> = run::probe(true)?.iter().map(|trial| classify(trial, &facts)).collect();
    findings.extend(limits(&facts));
    if chosen == Some(Backend::Podman) {
        // They are in the way of our own sandbox only, and another is used.
        for finding in findings.iter_mut().filter(|finding| finding.outcome == Outcome::Fail) {
            finding.outcome = Outcome::Warn;
        }
    }
    findings.extend([landlock(), newuidmap(&facts), subordinate(&facts), no_new_privs(&facts)]);
    findings.extend(resources::look(&facts, interrupt)?);
    for (what, folder) in folders {
        findings.extend(folders::look(what, folder, interrupt)?);
    }
    findings.extend(podman(chosen, interrupt)?);
    Ok(findings)
}

/// Which podman there is, and whether a container starts. Who has none and needs none is not told twice.
fn podman(chosen: Option<Backend>, interrupt: &Interrupt) -> Result<Vec<Finding>, SandboxError> {
    let version = podman::version(interrupt)?;
    if version.outcome != Outcome::Ok {
        return Ok(vec![version]);
    }
    let tried = "starting a container with podman";
    let started = match podman::Podman::open(interrupt)? {
        Ok(podman) => row("podman-run", tried, Outcome::Ok, podman.describe()),
        Err(finding) if chosen == Some(Backend::Userns) => Finding { outcome: Outcome::Warn, ..finding },
        Err(finding) => finding,
    };
    Ok(vec![version, started])
}

pub(super) fn row(id: &str, tried: impl Into<String>, outcome: Outcome, meaning: impl Into<String>) -> Finding {
    Finding { id: id.into(), tried: tried.into(), outcome, errno: None, meaning: meaning.into(), remedy: None }
}

fn limits(facts: &Facts) -> Vec<Finding> {
    let mut rows = Vec::new();
    if let Some(limit) = facts.max_user_namespaces {
        let outcome = if limit == 0 { Outcome::Fail } else { Outcome::Ok };
        rows.push(row("max-user-namespaces", "the limit user.max_user_namespaces", outcome, limit.to_string()));
    }
    if let Some(value) = facts.apparmor_restrict {
        let meaning = if value == 1 { "restricts programs without a profile" } else { "off" };
        let outcome = if value == 1 { Outcome::Warn } else { Outcome::Ok };
        rows.push(row("apparmor-userns", "kernel.apparmor_restrict_unprivileged_userns", outcome, meaning));
    }
    rows
}

/// The second wall, which only newer kernels have.
fn landlock() -> Finding {
    let tried = "holding a thread to its folders with Landlock";
    if let Some(version) = beneath::version() {
        return row("landlock", tried, Outcome::Ok, format!("version {version}"));
    }
    let mut finding = row("landlock", tried, Outcome::Warn, "not on this kernel; mounts alone keep files apart");
    let remedy = "For a second wall ask an administrator for Linux 5.19 or newer with CONFIG_SECURITY_LANDLOCK and \
                  `landlock` among the `lsm=` of its command line.";
    finding.remedy = Some(remedy.into());
    finding
}

/// Only for `--ownership range`, which nobody needs, and for podman: never worse than a warning.
fn newuidmap(facts: &Facts) -> Finding {
    let tried = "newuidmap, for --ownership range";
    match &facts.newuidmap {
        None => row("newuidmap", tried, Outcome::Warn, "not installed; one id is enough, root is stood in for"),
        Some(path) if !facts.newuidmap_privileged => {
            row("newuidmap", tried, Outcome::Warn, format!("{} is not setuid root; one id is enough", path.display()))
        }
        Some(path) => row("newuidmap", tried, Outcome::Ok, path.display().to_string()),
    }
}

fn subordinate(facts: &Facts) -> Finding {
    let tried = "your lines in /etc/subuid and /etc/subgid";
    if let (Some(uid), Some(gid)) = (&facts.subuid, &facts.subgid) {
        return row("subuid", tried, Outcome::Ok, format!("{uid} and {gid}"));
    }
    let mut finding = row("subuid", tried, Outcome::Warn, "none; not needed, one id is enough");
    let user = facts.user.clone().unwrap_or_else(|| facts.uid.to_string());
    finding.remedy = Some(format!(
        "Should `--ownership range` or podman need them, ask an administrator for:\n  usermod --add-subuids 100000-165535 --add-subgids \
         100000-165535 {user}"
    ));
    finding
}

fn no_new_privs(facts: &Facts) -> Finding {
    let tried = "whether this process may gain privilege (no_new_privs)";
    if facts.no_new_privs {
        row(
            "no-new-privs",
            tried,
            Outcome::Warn,
            "no; newuidmap (--ownership range) and rootless podman with many ids cannot work",
        )
    } else {
        row("no-new-privs", tried, Outcome::Ok, "yes")
    }
}
