//! What the tests share: real programs, a tree with everything in it, a private gpg.

use slurm_factory::cache::Cache;
use slurm_factory::package::manifest::{Image, Installed, Size, Source, SourceArchive, StringPlace, Tool, Version};
use slurm_factory::package::{Compression, Content, Facts, PREFIX_PLACEHOLDER, Package, PackageName, Request, Signed};
use slurm_factory::report::Ctx;
use slurm_factory::sign::{Algorithm, SigningKey, generate};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// A program of the host; `package` is what to install when it is missing.
pub fn tool(program: &str, package: &str) -> Command {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    assert!(found, "`{program}` is missing; these tests need it: apt-get install {package}");
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// Runs it; a failure shows all that it printed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

pub fn stdout(command: &mut Command) -> String {
    // gpg prints signature notations as they are, and Sequoia's salt is one.
    String::from_utf8_lossy(&run(command).stdout).into_owned()
}

/// A gpg of its own, whose agent ends with it.
pub struct Gpg {
    pub home: tempfile::TempDir,
}

impl Gpg {
    pub fn new() -> Self {
        // Under /tmp whatever TMPDIR says: the agent's socket path has a limit of 108 bytes.
        let home = tempfile::Builder::new().prefix("gpg").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { home }
    }

    pub fn command(&self) -> Command {
        let mut command = tool("gpg", "gnupg");
        command.env("GNUPGHOME", self.home.path()).args(["--batch", "--yes", "--no-tty", "--quiet"]);
        command
    }

    pub fn import(&self, key: &[u8]) {
        let path = self.home.path().join("import.asc");
        std::fs::write(&path, key).unwrap();
        run(self.command().arg("--import").arg(&path));
    }

    /// What gpg says about a detached signature, as status lines; success is asserted.
    pub fn verify(&self, signature: &Path, data: &Path) -> String {
        stdout(self.command().args(["--status-fd", "1", "--verify"]).arg(signature).arg(data))
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf").env("GNUPGHOME", self.home.path()).args(["--kill", "all"]).status();
    }
}

/// One key for all tests that do not care which.
pub fn key() -> &'static SigningKey {
    static KEY: LazyLock<SigningKey> = LazyLock::new(|| {
        let made = generate("Test", "test@example.org", None, Algorithm::Ed25519).unwrap();
        SigningKey::from_bytes("the test key", &made.secret, None).unwrap()
    });
    &KEY
}

pub const LONG: &str = "a-name-that-is-much-longer-than-the-hundred-bytes-that-an-old-header-has-and-goes-on-and-on-until-\
    it-is-longer-than-one-hundred-and-fifty-five-as-well-so-that-neither-name-nor-prefix-can-hold-it-0123456789";

/// A folder in a binary over which `install` writes the view's, with room for one of 64 bytes.
pub const PLACE: &str = "/slurm-factory.build/store/pmix-4.2.2-abcdefghijklmnopqrstuvwxyz";

/// A tree with files of many sizes, programs, links of both kinds, odd and long names.
pub fn make_tree(root: &Path) {
    let dirs = ["bin", "sbin", "lib/slurm", "lib64/pkgconfig", "share/man/man1", "empty"];
    for dir in dirs {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    write(root, "bin/sinfo", b"#!/bin/sh\necho sinfo here\n", 0o775);
    write(root, "sbin/slurmd", &pattern(3 << 20), 0o700);
    write(root, "lib/libslurm.so.42", &pattern(2_500_000), 0o755);
    write(root, "lib/slurm/auth_munge.so", &pattern(70_000), 0o644);
    write(root, "lib64/pkgconfig/slurm.pc", format!("prefix={PREFIX_PLACEHOLDER}\n").as_bytes(), 0o600);
    write(root, "lib/libplace.so", format!("\x7f\0dir={PLACE}/share\0{PLACE}\0").as_bytes(), 0o755);
    write(root, "share/man/man1/sinfo.1", b".TH sinfo\n", 0o664);
    write(root, "share/empty-file", b"", 0o644);
    write(root, "share/exactly-512", &pattern(512), 0o644);
    write(root, &format!("share/{LONG}"), b"long\n", 0o644);
    write(root, &format!("share/{}/{LONG}/deep", "d".repeat(200)), b"deep\n", 0o644);
    write(root, "share/mit Leerzeichen \u{fc}", b"odd\n", 0o644);
    let latin = Path::new(OsStr::from_bytes(b"share/caf\xe9"));
    std::fs::write(root.join(latin), b"not UTF-8\n").unwrap();
    symlink("libslurm.so.42", root.join("lib/libslurm.so")).unwrap();
    symlink("../bin/sinfo", root.join("sbin/also-sinfo")).unwrap();
    symlink("nowhere-at-all", root.join("share/dangling")).unwrap();
    std::fs::hard_link(root.join("bin/sinfo"), root.join("bin/sinfo-too")).unwrap();
}

fn write(root: &Path, name: &str, content: &[u8], mode: u32) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Bytes that compress, but not to nothing.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(i | 3) >> 9).to_le_bytes()[0] & 0x3f).collect()
}

pub fn name() -> PackageName {
    PackageName { version: "24.11".into(), compiler: "13.3.0".into() }
}

pub fn facts() -> Facts {
    Facts {
        tool: Tool { name: "slurm-factory".into(), version: "0.1.0".into() },
        slurm: Some(Version { requested: "24.11".into(), release: "24.11.5".into() }),
        compiler: Version { requested: "system".into(), release: "13.3.0".into() },
        toolchain: "noble".into(),
        target: "x86_64".into(),
        image: Image { reference: "ubuntu:24.04".into(), digest: format!("sha256:{}", "0".repeat(64)) },
        spack: Source { name: "spack".into(), revision: "1".repeat(40), ..Source::default() },
        recipes: vec![Source { name: "builtin".into(), revision: "2".repeat(40), ..Source::default() }],
        specs: vec!["slurm@24.11".into()],
        lock_sha256: "3".repeat(64),
        plan_sha256: "4".repeat(64),
        created: 1_700_000_000,
        packages: vec![
            Installed {
                name: "slurm".into(),
                version: "24-11-5-1".into(),
                hash: "abc".into(),
                namespace: "slurm_factory".into(),
                dependencies: vec!["def".into(), "not-in-the-package".into()],
                license: Some("GPL-2.0-or-later".into()),
                source: Some(SourceArchive {
                    url: Some("https://example.org/slurm-24.11.5.tar.bz2".into()),
                    sha256: Some("5".repeat(64)),
                    commit: None,
                }),
                size: Some(Size { installed: 9_000_000, packaged: 5_000_000 }),
                ..Installed::default()
            },
            Installed {
                name: "munge".into(),
                version: "0.5.16".into(),
                hash: "def".into(),
                namespace: "builtin".into(),
                license: Some("a licence of its own".into()),
                source: Some(SourceArchive {
                    url: Some("https://example.org/munge.git".into()),
                    sha256: None,
                    commit: Some("6".repeat(40)),
                }),
                size: Some(Size { installed: 300, packaged: 200 }),
                ..Installed::default()
            },
            Installed {
                name: "pkgconf".into(),
                version: "2.5".into(),
                hash: "ghi".into(),
                build_only: true,
                size: Some(Size { installed: 100, packaged: 0 }),
                ..Installed::default()
            },
        ],
        placeholder: PREFIX_PLACEHOLDER.into(),
        fill_in: vec!["view/lib64/pkgconfig/slurm.pc".into()],
        strings: [6, 13 + PLACE.len() as u64]
            .map(|offset| StringPlace {
                path: "view/lib/libplace.so".into(),
                offset,
                text: PLACE.into(),
                reason: "PMIx does not find its help texts".into(),
            })
            .into(),
        ..Facts::default()
    }
}

/// A finished package of [`make_tree`], in a folder of its own.
pub struct Made {
    pub dir: tempfile::TempDir,
    pub package: Package,
    pub signed: Signed,
}

impl Made {
    pub fn path(&self) -> PathBuf {
        self.package.path().to_owned()
    }
}

pub fn make(compression: Compression) -> Made {
    make_with(compression, 0, |_| {})
}

/// The same with a number of threads, after `change` has worked on the tree.
pub fn make_with(compression: Compression, threads: usize, change: impl FnOnce(&Path)) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    change(&tree);
    let contents = contents(&tree);
    let (package, signed) = create(&dir.path().join("builds"), contents, compression, threads).unwrap();
    Made { dir, package, signed }
}

pub fn contents(tree: &Path) -> Vec<Content> {
    vec![
        Content::Tree { root: tree.to_owned(), name: "view".into() },
        Content::Bytes { name: name().modulefile(), bytes: b"-- lua\n".to_vec(), executable: false },
        Content::Bytes {
            name: "data/slurm_assets/slurm_install.sh".into(),
            bytes: b"#!/bin/sh\n".to_vec(),
            executable: true,
        },
    ]
}

pub fn create(
    builds: &Path,
    contents: Vec<Content>,
    compression: Compression,
    threads: usize,
) -> Result<(Package, Signed), slurm_factory::package::PackageError> {
    let cache = Cache::open(&builds.join(".cache")).unwrap();
    let name = name();
    let request = Request { dir: builds, name: &name, contents, facts: facts(), compression, threads, key: key() };
    Package::create(&cache, request, &Ctx::silent())
}

/// Every entry below a folder: kind, mode, content or target, and which names are one file.
pub fn snapshot(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut inodes = std::collections::HashMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap().to_owned();
        let metadata = entry.path().symlink_metadata().unwrap();
        let what = if metadata.is_dir() {
            "dir".to_owned()
        } else if metadata.is_symlink() {
            format!("-> {}", std::fs::read_link(entry.path()).unwrap().display())
        } else {
            let first = inodes.entry(metadata.ino()).or_insert_with(|| path.clone());
            let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(std::fs::read(entry.path()).unwrap()));
            format!("{:o} {} {} = {first:?}", metadata.mode() & 0o7777, metadata.mtime(), sum)
        };
        lines.push(format!("{path:?} {what}"));
    }
    lines
}

/// How a run of the program itself ended, and what it printed.
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the program, or a tool around it, to its end.
pub fn answer(command: &mut assert_cmd::Command) -> Answer {
    let output = command.output().unwrap();
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a compiler or another tool in a folder; returns what it printed.
pub fn run_in(program: &str, args: &[&str], dir: &Path) -> String {
    let command = Command::new(program).args(args).current_dir(dir).env_remove("LD_LIBRARY_PATH").output();
    let output = command.unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
