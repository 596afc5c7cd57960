//! Which ids of the host are seen as which inside, and who may say so.
//!
//! One id is mapped by the process itself, without privilege. A *range* of subordinate ids, which the administrator gave
//! the user in `/etc/subuid` and `/etc/subgid`, is mapped by `newuidmap(1)` and `newgidmap(1)`, which are setuid root and
//! hold the caller to those lines:
//!
//! ```text
//! prepare   0 -> the user            build   U -> the user (U: the uid itself, or 1000 for root)
//!           1 -> first sub-id                1 -> first sub-id, 2 -> the next ..., U left out
//!           2 -> the next ...
//! ```
//!
//! So a file is the same id's in both, but for root's own, which are the builder's in a build. See subuid(5),
//! newuidmap(1), user_namespaces(7).

use super::error::SandboxError;
use super::facts::Facts;
use super::plan::IdMap;
use super::wire::{Failure, Step};
use crate::process::{ProcessError, Program};
use crate::report::Interrupt;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Images have ids up to 65534 (`nobody`): with fewer, some files could not be given to their owners.
const LEAST_RANGE: u32 = 65_534;

/// More than 16 bits are never used: an id is the same in every range that is large enough.
const MOST: u32 = 65_536;

/// `newuidmap` is quick; a directory service that it asks may not be.
const PATIENCE: Duration = Duration::from_mins(1);

/// A part of the host's ids that is the user's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubIds {
    /// The first, on the host.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl SubIds {
    /// From a line of `/etc/subuid`.
    pub fn of_line(line: &str) -> Option<Self> {
        let mut fields = line.split(':').skip(1).map(|field| field.trim().parse().ok());
        let (first, count): (u32, u32) = (fields.next()??, fields.next()??);
        first.checked_add(count)?;
        Some(Self { first, count: count.min(MOST) })
    }
}

/// Whose ids the files of a rootfs can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ids {
    /// The user's alone.
    Single,
    /// The user's, as root's, and those of a range.
    Range {
        /// Users.
        uids: SubIds,
        /// Groups.
        gids: SubIds,
    },
}

impl Ids {
    /// The highest uid and gid that a file can have inside; none when all files are the user's.
    pub fn highest(self) -> Option<(u32, u32)> {
        match self {
            Self::Single => None,
            Self::Range { uids, gids } => Some((uids.count, gids.count)),
        }
    }

    /// A word that tells two ranges apart, for what is kept.
    pub fn key(self) -> Option<String> {
        match self {
            Self::Single => None,
            Self::Range { uids, gids } => {
                Some(format!("uids {}+{}, gids {}+{}", uids.first, uids.count, gids.first, gids.count))
            }
        }
    }

    /// The maps of uids and gids, with the caller's own as these inside.
    pub fn maps(self, uid: IdMap, gid: IdMap) -> (Vec<IdMap>, Vec<IdMap>) {
        match self {
            Self::Single => (vec![uid], vec![gid]),
            Self::Range { uids, gids } => (with_range(uid, uids), with_range(gid, gids)),
        }
    }
}

/// The range around one id, which keeps its own meaning.
fn with_range(own: IdMap, range: SubIds) -> Vec<IdMap> {
    let part = |from: u32, to: u32| {
        (from <= to).then(|| IdMap { inside: from, outside: range.first + from - 1, count: to + 1 - from })
    };
    let below = part(1, range.count.min(own.inside.saturating_sub(1)));
    let above = part(own.inside + 1, range.count);
    let mut maps: Vec<_> =
        if own.inside == 0 { vec![Some(own), part(1, range.count)] } else { vec![below, Some(own), above] }
            .into_iter()
            .flatten()
            .collect();
    maps.sort_by_key(|map| map.inside);
    maps
}

/// What the host gives the caller, or why it gives none and what helps.
pub fn range(facts: &Facts) -> Result<Ids, SandboxError> {
    let user = facts.user.clone().unwrap_or_else(|| facts.uid.to_string());
    let refuse = |reason: String, remedy: String| Err(SandboxError::NoRange { reason, remedy });
    let lines = || {
        format!(
            "ask an administrator for a line `{user}:100000:65536` in /etc/subuid and in /etc/subgid, with numbers that \
             nobody else has there (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user})"
        )
    };
    match &facts.newuidmap {
        None => {
            let package = "ask an administrator to install the package uidmap (Debian, Ubuntu) or shadow-utils (RHEL)";
            return refuse("newuidmap is not installed".into(), package.into());
        }
        Some(path) if !facts.newuidmap_privileged => {
            let path = path.display();
            return refuse(format!("{path} is not setuid root"), format!("ask an administrator for: chmod u+s {path}"));
        }
        Some(_) if facts.no_new_privs => {
            let reason = "this process may not gain privilege (no_new_privs), so newuidmap cannot work";
            return refuse(reason.into(), "run it outside of the container or service that sets that".into());
        }
        Some(_) => {}
    }
    let read = |line: &Option<String>| line.as_deref().and_then(SubIds::of_line);
    let (Some(uids), Some(gids)) = (read(&facts.subuid), read(&facts.subgid)) else {
        let missing = if read(&facts.subuid).is_none() { "/etc/subuid" } else { "/etc/subgid" };
        return refuse(format!("{user} has no line in {missing}"), lines());
    };
    if uids.count.min(gids.count) < LEAST_RANGE {
        let reason = format!("{user} has {} uids and {} gids, images need {LEAST_RANGE}", uids.count, gids.count);
        return refuse(reason, lines());
    }
    Ok(Ids::Range { uids, gids })
}

/// Writes the maps of a process in a new user namespace by the two setuid programs beside each other.
pub fn map_range(child: Pid, uids: &[IdMap], gids: &[IdMap]) -> Result<(), Failure> {
    let facts = Facts::read();
    let uid_program = facts.newuidmap.unwrap_or_else(|| "/usr/bin/newuidmap".into());
    let gid_program = uid_program.with_file_name("newgidmap");
    for (program, maps) in [(uid_program, uids), (gid_program, gids)] {
        run(&program, child, maps).map_err(|error| {
            let detail = match &error {
                ProcessError::Failed { tail, .. } if !tail.is_empty() => tail.join("; "),
                other => other.to_string(),
            };
            Failure { step: Step::MapIds, path: Some(program), errno: 0, detail }
        })?;
    }
    Ok(())
}

fn run(program: &Path, child: Pid, maps: &[IdMap]) -> Result<(), ProcessError> {
    let numbers = maps.iter().flat_map(|map| [map.inside, map.outside, map.count]).map(|number| number.to_string());
    let program = Program::new(program).arg(child.to_string()).args(numbers).timeout(PATIENCE);
    program.output(&Interrupt::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: SubIds = SubIds { first: 100_000, count: 65_536 };

    fn triples(inside: u32, range: SubIds) -> Vec<(u32, u32, u32)> {
        let own = IdMap { inside, outside: 1234, count: 1 };
        with_range(own, range).into_iter().map(|map| (map.inside, map.outside, map.count)).collect()
    }

    #[test]
    fn an_id_is_the_same_for_whoever_looks() {
        assert_eq!(triples(0, RANGE), [(0, 1234, 1), (1, 100_000, 65_536)]);
        // A builder with a number in the range takes it for itself.
        assert_eq!(triples(1234, RANGE), [(1, 100_000, 1233), (1234, 1234, 1), (1235, 101_234, 64_302)]);
        assert_eq!(triples(70_000, RANGE), [(1, 100_000, 65_536), (70_000, 1234, 1)]);
        assert_eq!(triples(1, RANGE), [(1, 1234, 1), (2, 100_001, 65_535)]);
        assert_eq!(triples(65_536, RANGE), [(1, 100_000, 65_535), (65_536, 1234, 1)]);
    }

    #[test]
    fn lines_are_read_and_nonsense_is_none() {
        assert_eq!(SubIds::of_line("ann:100000:65536"), Some(RANGE));
        assert_eq!(SubIds::of_line("ann:100000:1000000"), Some(RANGE), "more than 16 bits are not used");
        for line in ["ann", "ann:1", "ann:x:1", "ann:4294967295:2"] {
            assert_eq!(SubIds::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn a_host_without_says_what_is_missing_and_whom_to_ask() {
        let facts = Facts {
            user: Some("ann".into()),
            newuidmap: Some("/usr/bin/newuidmap".into()),
            newuidmap_privileged: true,
            subuid: Some("ann:100000:65536".into()),
            subgid: Some("ann:100000:65536".into()),
            ..Facts::default()
        };
        assert_eq!(range(&facts).unwrap().highest(), Some((65_536, 65_536)));
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = facts.clone();
            change(&mut facts);
            range(&facts).unwrap_err().to_string()
        };
        for (error, parts) in [
            (with(&|f| f.newuidmap = None), ["not installed", "uidmap"]),
            (with(&|f| f.newuidmap_privileged = false), ["not setuid", "chmod u+s /usr/bin/newuidmap"]),
            (with(&|f| f.no_new_privs = true), ["no_new_privs", "outside"]),
            (with(&|f| f.subuid = None), ["no line in /etc/subuid", "`ann:100000:65536`"]),
            (with(&|f| f.subgid = None), ["no line in /etc/subgid", "--add-subgids"]),
            (with(&|f| f.subgid = Some("ann:1:1000".into())), ["1000 gids", "--add-subgids"]),
        ] {
            for part in parts {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
}
