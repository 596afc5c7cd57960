//! Landlock (`landlock(7)`): a second wall that does not hang on mounts.
//!
//! The first wall is that the host is not mounted. Should something of it come into view all the same (a descriptor
//! that leaked, a hole in the mount code), its files are beneath none of the folders named here, and the kernel says
//! EACCES. The rules follow from the same mount list: everything beneath the new root may be read and executed, and
//! what is mounted read-write may be written. Two more things are kept inside, which matters where there is no pid
//! namespace or where the host's network is shown: signals, and connections to abstract Unix sockets (Linux 6.12).
//!
//! Best effort: a kernel without it, or one whose Landlock refuses every link from one folder into another (Linux 5.13
//! to 5.18: Spack and `ln` need them), has the first wall only. Mounting is refused beneath it, so a sandbox whose
//! confinement is relaxed does without.

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, LandlockStatus, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::FileType;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The rights that rules are made of. Later kernels know more, which are then not held back.
const RIGHTS: ABI = ABI::V3;

/// Holds this process and all it will start to `writable` and what the rest of the root lets be read.
///
/// To be called inside, with no_new_privs set. `Ok` where the kernel has no Landlock.
pub fn restrict(writable: &[PathBuf]) -> Result<(), (io::Error, Option<PathBuf>)> {
    let other = |e: RulesetError| (io::Error::other(e), None);
    let mut ruleset = ruleset().and_then(Ruleset::create).map_err(other)?;
    let open = |path: &Path| PathFd::new(path).map_err(|e| (io::Error::other(e), Some(path.to_owned())));
    ruleset = ruleset.add_rule(PathBeneath::new(open("/".as_ref())?, AccessFs::from_read(RIGHTS))).map_err(other)?;
    for path in writable {
        let all = AccessFs::from_all(RIGHTS);
        ruleset = ruleset.add_rule(PathBeneath::new(open(path)?, all)).map_err(other)?;
    }
    // `/dev/stdout` opens what the caller gave once more, and that is the host's: a file, a terminal.
    let streams = [io::stdin().as_fd().try_clone_to_owned(), io::stdout().as_fd().try_clone_to_owned()];
    for stream in streams.into_iter().chain([io::stderr().as_fd().try_clone_to_owned()]).flatten() {
        if is_on_a_file_system(stream.as_fd()) {
            ruleset = ruleset.add_rule(PathBeneath::new(stream, AccessFs::from_file(RIGHTS))).map_err(other)?;
        }
    }
    ruleset.restrict_self().map(|_| ()).map_err(other)
}

/// The version of Landlock by which sandboxes are held on this host, none where there is none.
///
/// Tried by a thread of its own, which ends with it.
pub fn version() -> Option<i32> {
    let tried = || ruleset().and_then(Ruleset::create).and_then(landlock::RulesetCreated::restrict_self);
    match std::thread::spawn(tried).join().ok()?.ok()? {
        RestrictionStatus { ruleset: RulesetStatus::NotEnforced, .. } => None,
        RestrictionStatus { landlock: LandlockStatus::Available { effective_abi, kernel_abi }, .. } => {
            Some(kernel_abi.unwrap_or(effective_abi as i32))
        }
        _ => None,
    }
}

fn ruleset() -> Result<Ruleset, RulesetError> {
    // Without the right to link between folders all such links are refused: then rather no Landlock at all.
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::SoftRequirement).handle_access(AccessFs::Refer)?;
    let ruleset = ruleset.set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(RIGHTS))?;
    ruleset.scope(Scope::from_all(ABI::V6))
}

/// A pipe or a socket has no place in a file system, and rules are about places.
fn is_on_a_file_system(stream: BorrowedFd<'_>) -> bool {
    let kind = rustix::fs::fstat(stream).map(|found| FileType::from_raw_mode(found.st_mode));
    matches!(kind, Ok(FileType::RegularFile | FileType::CharacterDevice))
}
