//! What a sandbox shall look like, as data that anyone can make, print and store.
//!
//! A [`Spec`] says *what*; [`super::plan`] turns it into the ordered list of *how*. Nothing here looks at the
//! machine, at the environment or at a configuration file: whoever fills it in passes what is wanted.

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where the files that are made for a sandbox (`/etc/passwd` and the like) live inside it, read-only.
pub const FILES_INSIDE: &str = "/run/slurm-factory";

/// Where a CA bundle of the host is found inside, when [`Spec::ca_bundle`] was called.
///
/// Not the image's own path: `update-ca-certificates` replaces that file by renaming over it, which fails on
/// a mount point.
pub const CA_BUNDLE_INSIDE: &str = "/run/slurm-factory/ca-certificates.crt";

/// The uid and gid that a build gets when the caller is uid 0 (a job in a container, say).
///
/// Not 0: GNU tar run by uid 0 restores the owners recorded in an archive, and a chown to an id that is not
/// mapped is EINVAL, so that a source archive with foreign owners would not unpack.
pub const BUILD_ID_FOR_ROOT: u32 = 1000;

/// Whether something may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading and executing.
    ReadOnly,
    /// Writing too.
    ReadWrite,
}

/// Who the command is inside. Both need no entry in `/etc/subuid`: one id is mapped (`user_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// For installing packages: uid 0 inside is the caller outside, and calls that need true root (chown to
    /// another id, making device nodes) are answered with success by a seccomp filter without being done.
    FakeRoot,
    /// For building: the caller's own uid inside and outside (1000 inside when the caller is uid 0), so that
    /// nothing believes itself to be root, and all capabilities vanish at exec.
    Builder,
}

/// Which network is seen inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// The host's, abstract Unix sockets included.
    Host,
    /// A network namespace of its own with loopback up and nothing else.
    None,
}

/// What system calls are refused, whatever the identity (`seccomp(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confinement {
    /// Calls that a build does not need and that kernel exploits do: mounts, new user namespaces, keyrings,
    /// bpf, userfaultfd, modules, pushing input into the terminal. They return EPERM.
    Strict,
    /// Only what the kernel refuses anyway. For sites whose recipes use user namespaces themselves.
    Relaxed,
}

/// A folder or file of the host that is seen inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host, absolute. Must exist.
    #[serde(with = "super::text")]
    pub source: PathBuf,
    /// Inside, absolute, not `/` and not below `/proc`, `/sys` or `/dev`. Made when it is missing and the
    /// rootfs can be written by the caller.
    #[serde(with = "super::text")]
    pub target: PathBuf,
    /// Whether it can be written inside.
    pub access: Access,
}

/// A folder in memory, empty at the start and gone at the end (`tmpfs(5)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Inside, absolute.
    #[serde(with = "super::text")]
    pub target: PathBuf,
    /// The most it may hold in bytes; half of the memory when not said.
    pub size: Option<u64>,
    /// The permission bits of its root.
    pub mode: u32,
}

/// What a file made for the sandbox holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// This text.
    Text(String),
    /// A copy of a file of the host, taken at the start, and then this text. A file that is not there counts
    /// as empty: a host without `/etc/hosts` is no reason to fail.
    HostFile {
        /// On the host, absolute.
        #[serde(with = "super::text")]
        path: PathBuf,
        /// What follows it.
        then: String,
    },
}

/// A read-only file that is put over the image's own. The image itself is not changed, but for an empty file
/// made where there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Inside, absolute. A symlink in the image is followed within the image.
    #[serde(with = "super::text")]
    pub target: PathBuf,
    /// What it holds.
    pub content: Content,
}

/// The name and home that uid and gid get in `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Home folder inside.
    #[serde(with = "super::text")]
    pub home: PathBuf,
}

/// What is put over a read-only rootfs, so that a command can write to it without changing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// overlayfs (`userxattr`).
    Overlay {
        /// An empty folder of the host for what is written; in memory when none.
        upper: Option<PathBuf>,
        /// In memory, the most that it may hold in bytes; half of the memory when not said.
        size: Option<u64>,
    },
    /// The same by a program of the host, which serves it from within the sandbox.
    Fuse {
        /// `fuse-overlayfs`.
        program: PathBuf,
        /// An empty folder of the host for what is written.
        upper: PathBuf,
    },
}

/// A sandbox, described in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The folder that becomes `/`, absolute.
    #[serde(with = "super::text")]
    pub rootfs: PathBuf,
    /// Read-only for builds, so that any number of them shares one rootfs, on a shared file system too.
    pub rootfs_access: Access,
    /// What is written goes here, and the read-only rootfs stays as it is. With none it cannot be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// Who the command is.
    pub identity: Identity,
    /// The builder's name and home. Not used by [`Identity::FakeRoot`], which keeps the image's own users.
    pub user: User,
    /// What of the host is seen, in the order in which it is mounted.
    pub mounts: Vec<Mount>,
    /// Folders in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Files put over the image's own.
    pub overlays: Vec<Overlay>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Which network.
    pub network: Network,
    /// The whole environment: nothing is inherited.
    #[serde(with = "super::text::pairs")]
    pub env: Vec<(OsString, OsString)>,
    /// Where the command starts.
    #[serde(with = "super::text")]
    pub cwd: PathBuf,
    /// The host name inside.
    pub hostname: String,
    /// How many of the processors allowed to the caller may be used; all when not said.
    pub cpus: Option<usize>,
    /// Which calls are refused.
    pub confinement: Confinement,
    /// How long what runs inside has to end after a TERM before it is killed, in milliseconds.
    pub grace_ms: u64,
}

/// The search path inside.
pub const PATH_INSIDE: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const GIB: u64 = 1 << 30;

impl Spec {
    /// The *prepare* sandbox: fake root that writes into `rootfs`, for `apt` and `dnf`.
    ///
    /// apt must be told not to change to its `_apt` user (`-o APT::Sandbox::User=root`), an id that is not mapped.
    pub fn prepare(rootfs: impl Into<PathBuf>) -> Self {
        let user = User { name: "root".into(), home: "/root".into() };
        let mut spec = Self::base(rootfs.into(), Access::ReadWrite, Identity::FakeRoot, user);
        spec.env.push(("DEBIAN_FRONTEND".into(), "noninteractive".into()));
        spec
    }

    /// The *build* sandbox: an ordinary user in a read-only `rootfs`, with a home in memory.
    pub fn build(rootfs: impl Into<PathBuf>) -> Self {
        let user = User { name: "builder".into(), home: "/tmp/home".into() };
        let mut spec = Self::base(rootfs.into(), Access::ReadOnly, Identity::Builder, user);
        spec.tmpfs.push(Tmpfs { target: "/var/tmp".into(), size: None, mode: 0o1777 });
        spec.tmpfs.push(Tmpfs { target: spec.user.home.clone(), size: None, mode: 0o755 });
        spec
    }

    fn base(rootfs: PathBuf, rootfs_access: Access, identity: Identity, user: User) -> Self {
        let env = [
            ("PATH", OsString::from(PATH_INSIDE)),
            ("HOME", user.home.clone().into_os_string()),
            ("USER", OsString::from(&user.name)),
            ("LOGNAME", OsString::from(&user.name)),
            ("LC_ALL", OsString::from("C.UTF-8")),
            ("TMPDIR", OsString::from("/tmp")),
        ];
        Self {
            rootfs,
            rootfs_access,
            layer: None,
            identity,
            user,
            mounts: Vec::new(),
            tmpfs: vec![
                Tmpfs { target: "/tmp".into(), size: None, mode: 0o1777 },
                Tmpfs { target: "/run".into(), size: None, mode: 0o755 },
            ],
            overlays: Vec::new(),
            shm_size: 2 * GIB,
            network: Network::Host,
            env: env.map(|(name, value)| (name.into(), value)).into(),
            cwd: "/".into(),
            hostname: "slurm-factory".into(),
            cpus: None,
            confinement: Confinement::Strict,
            grace_ms: 700,
        }
    }

    /// Shows a folder or file of the host inside.
    #[must_use]
    pub fn mount(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>, access: Access) -> Self {
        self.mounts.push(Mount { source: source.into(), target: target.into(), access });
        self
    }

    /// Sets one variable, in place of an earlier value.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let name = name.into();
        self.env.retain(|(have, _)| *have != name);
        self.env.push((name, value.into()));
        self
    }

    /// Sets the folder in which the command starts.
    #[must_use]
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.cwd = cwd.into();
        self
    }

    /// Puts a file over the image's own.
    #[must_use]
    pub fn overlay(mut self, target: impl Into<PathBuf>, content: Content) -> Self {
        self.overlays.push(Overlay { target: target.into(), content });
        self
    }

    /// Names are looked up as the host does: its `resolv.conf`, and its `hosts` with this sandbox's name added.
    #[must_use]
    pub fn host_names(self) -> Self {
        let own = format!("\n127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {}\n", self.hostname);
        self.overlay("/etc/resolv.conf", Content::HostFile { path: "/etc/resolv.conf".into(), then: String::new() })
            .overlay("/etc/hosts", Content::HostFile { path: "/etc/hosts".into(), then: own })
    }

    /// TLS trusts what this bundle of the host holds: copied to [`CA_BUNDLE_INSIDE`], and named in the
    /// variables that OpenSSL, curl, git, Python and apt's helpers read.
    #[must_use]
    pub fn ca_bundle(self, bundle: &Path) -> Self {
        let content = Content::HostFile { path: bundle.to_owned(), then: String::new() };
        let mut spec = self.overlay(CA_BUNDLE_INSIDE, content);
        for name in ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"] {
            spec = spec.env(name, CA_BUNDLE_INSIDE);
        }
        spec
    }
}
