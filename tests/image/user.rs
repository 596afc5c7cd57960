//! An ordinary user, made for one test, and the program as that user runs it.
#![allow(clippy::disallowed_methods)] // tests start their own programs

use crate::support::place_for;
use fs_err as fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// A user without subordinate ids, with a home and a copy of the program that it may read. When the tests are run by an
/// ordinary user, that one.
pub struct User {
    made: Option<String>,
    id: u32,
    dir: TempDir,
    home: TempDir,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl User {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("image-tests-").tempdir().unwrap();
        fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        // The target folder may be closed to other users.
        fs::copy(env!("CARGO_BIN_EXE_slurm-factory"), dir.path().join("slurm-factory")).unwrap();
        // In memory where there is room, but builds refuse a folder in which nothing can be run.
        let place = Some(place_for(20_000)).filter(|place| !slurm_factory::fsutil::mounted_noexec(place));
        let place = place.unwrap_or_else(std::env::temp_dir);
        let home = tempfile::Builder::new().prefix("image-tests-").tempdir_in(place).unwrap();
        fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let own = nix::unistd::geteuid();
        let mut user = Self { made: None, id: own.as_raw(), dir, home };
        if own.is_root() {
            let name = format!("imagetest{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            // -K: without subordinate ids, which Debian gives to each new user by itself.
            let made = Command::new("useradd")
                .args(["--no-create-home", "--user-group", "-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", &name])
                .status()
                .unwrap_or_else(|e| panic!("cannot start `useradd`: {e}; install it: apt-get install passwd"));
            assert!(made.success(), "useradd {name}: {made}");
            user.id = nix::unistd::User::from_name(&name).unwrap().unwrap().uid.as_raw();
            user.made = Some(name);
        }
        fs::create_dir(user.home()).unwrap();
        chown(user.home(), Some(user.id), Some(user.id)).unwrap();
        user
    }

    pub fn home(&self) -> PathBuf {
        self.home.path().join("home")
    }

    /// The program as this user, in its home, with nothing of the tester's environment. Its process id is that of what is
    /// spawned: setpriv becomes it.
    pub fn program(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.dir.path().join("slurm-factory"));
        command.args(["--cache-dir", "cache"]).args(args);
        command
    }

    /// This test program as this user, with temporary folders in its home.
    pub fn this_program(&self) -> Command {
        let copy = self.dir.path().join("tests");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        let mut command = self.command(&copy);
        command.env("TMPDIR", self.home());
        command
    }

    fn command(&self, program: &Path) -> Command {
        let id = self.id.to_string();
        let mut command = Command::new(if self.made.is_some() { "setpriv" } else { "env" });
        if self.made.is_some() {
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
        }
        command.arg(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.home());
        command.current_dir(self.home()).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end: exit code, what it printed, and what it said.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.program(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// Makes the user the owner of what the test put into its home.
    pub fn give(&self, path: &Path) {
        for entry in walkdir::WalkDir::new(path) {
            std::os::unix::fs::lchown(entry.unwrap().path(), Some(self.id), Some(self.id)).unwrap();
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = slurm_factory::fsutil::remove_tree(&self.home());
        if let Some(name) = &self.made {
            let _ = Command::new("userdel").args(["--force", name]).stderr(Stdio::null()).status();
        }
    }
}
