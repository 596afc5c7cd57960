//! Everything that decides whether and how sandboxes work on this host, each with what was tried, what it
//! means and what helps: the rows that `doctor` shows.

use super::error::SandboxError;
use super::facts::Facts;
use super::findings::{Finding, Outcome, classify};
use super::rootdir::open_host;
use super::run;
use crate::process::{ProcessError, Program};
use crate::report::Interrupt;
use fs_err as fs;
use nix::errno::Errno;
use rustix::fs::OFlags;
use std::io::{self, Write};
use std::path::Path;

/// Tries everything, and whether programs can run from `folders` (the cache and the build folder).
pub fn probe(folders: &[&Path], interrupt: &Interrupt) -> Result<Vec<Finding>, SandboxError> {
    let facts = Facts::read();
    let mut findings: Vec<_> = run::probe(true)?.iter().map(|trial| classify(trial, &facts)).collect();
    findings.extend(limits(&facts));
    findings.extend([newuidmap(&facts), subordinate(&facts), no_new_privs(&facts)]);
    for folder in folders {
        findings.push(executable(folder, interrupt)?);
    }
    findings.push(super::podman::version(interrupt)?);
    Ok(findings)
}

fn row(id: &str, tried: impl Into<String>, outcome: Outcome, meaning: impl Into<String>) -> Finding {
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
    // A build with a few jobs has some hundred processes at a time, and the limit counts all of the user's.
    let few = facts.max_processes.is_some_and(|limit| limit < 512);
    let outcome = if few { Outcome::Warn } else { Outcome::Ok };
    let limit = facts.max_processes.map_or("no limit".into(), |limit| limit.to_string());
    let mut processes = row("processes", "the limit of your processes (RLIMIT_NPROC)", outcome, limit);
    processes.remedy = few.then(|| "Raise it (`ulimit -u 4096`), or build with fewer jobs.".into());
    rows.push(processes);
    rows
}

/// Only for the mode with many ids, which is optional: never worse than a warning.
fn newuidmap(facts: &Facts) -> Finding {
    let tried = "newuidmap, for images with many users";
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
        "Should podman need them, ask an administrator for:\n  usermod --add-subuids 100000-165535 --add-subgids \
         100000-165535 {user}"
    ));
    finding
}

fn no_new_privs(facts: &Facts) -> Finding {
    let tried = "whether this process may gain privilege (no_new_privs)";
    if facts.no_new_privs {
        row("no-new-privs", tried, Outcome::Warn, "no; newuidmap and rootless podman with many ids cannot work")
    } else {
        row("no-new-privs", tried, Outcome::Ok, "yes")
    }
}

/// Runs a program in `folder`: a file system mounted noexec answers EACCES.
fn executable(folder: &Path, interrupt: &Interrupt) -> Result<Finding, SandboxError> {
    let tried = format!("running a program in {}", folder.display());
    let path = folder.join(format!(".tmp-exec-{}", std::process::id()));
    // Closed at once: a file open for writing is ETXTBSY.
    let made = open_host(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC).map_err(io::Error::from);
    if let Err(e) = made.and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 0\n")) {
        let _ = fs::remove_file(&path);
        let mut finding = row("exec", tried, Outcome::Fail, "no file can be made there");
        finding.errno = e.raw_os_error();
        finding.remedy = Some("Choose a folder of yours with --cache-dir or --build-dir.".into());
        return Ok(finding);
    }
    let ran = Program::new(&path).output(interrupt);
    let _ = fs::remove_file(&path);
    match ran {
        Ok(_) => Ok(row("exec", tried, Outcome::Ok, "works")),
        Err(ProcessError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(ProcessError::Start { source, .. }) => {
            let errno = source.raw_os_error();
            let noexec = errno == Some(Errno::EACCES as i32);
            let meaning = if noexec { "its file system is mounted noexec" } else { "programs cannot run from there" };
            let mut finding = row("exec", tried, Outcome::Fail, meaning);
            finding.errno = errno;
            finding.remedy = Some("Choose another folder with --cache-dir and --build-dir.".into());
            Ok(finding)
        }
        Err(e) => Ok(row("exec", tried, Outcome::Fail, e.to_string())),
    }
}
