//! The operations that make a sandbox, each one a thing that the kernel does, in words.
//!
//! A plan is a list of these. The list is made without privilege ([`super::plan`]), can be printed, stored and
//! compared, and is applied once, in order, by the sandbox's first process ([`super::apply`]).

use super::spec::{Access, Content, Layer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One step. Targets are paths inside; a symlink in them is followed within the new root, never out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// Mounts made here do not reach the host (`mount_namespaces(7)`: `MS_SLAVE`, so that an automounter's
    /// mounts still arrive).
    DetachMounts,
    /// The rootfs is bound on itself, because `pivot_root(2)` takes only a mount point.
    Root {
        /// On the host.
        #[serde(with = "super::text")]
        rootfs: PathBuf,
    },
    /// The rootfs with a layer over it, for what is written.
    Layer {
        /// On the host.
        #[serde(with = "super::text")]
        rootfs: PathBuf,
        /// Which.
        layer: Layer,
    },
    /// A folder in memory.
    Tmpfs {
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
        /// Bytes; half of the memory when not said.
        size: Option<u64>,
        /// Permission bits.
        mode: u32,
    },
    /// A device of the host, bound: `mknod(2)` is EPERM in a user namespace.
    Device {
        /// Its name in `/dev`.
        name: String,
    },
    /// Pseudo-terminals of its own. No `gid=5`: that id is not mapped.
    Devpts,
    /// A symlink in one of the folders in memory.
    Symlink {
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
        /// What it says.
        #[serde(with = "super::text")]
        to: PathBuf,
    },
    /// A new `proc(5)` that shows this sandbox's processes only.
    Proc,
    /// The host's `/proc`, where a new one may not be mounted (a container that masks parts of its own).
    HostProc,
    /// The host's `/sys` read-only, or, with a network of its own where the kernel allows it, a new one.
    Sys {
        /// Try a new one first.
        own: bool,
    },
    /// A file in memory.
    File {
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
        /// What it holds.
        content: Content,
    },
    /// Something inside shown at a second place inside.
    Alias {
        /// Inside.
        #[serde(with = "super::text")]
        source: PathBuf,
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
    },
    /// A folder or file of the host.
    Bind {
        /// On the host.
        #[serde(with = "super::text")]
        source: PathBuf,
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
        /// Read-only includes everything mounted below.
        access: Access,
    },
    /// One mount becomes read-only, what is mounted below it does not.
    Seal {
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
    },
    /// Part of `/proc` becomes read-only: for a caller with uid 0 the kernel's own check lets it be written. What
    /// this kernel does not have is left out.
    Protect {
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
    },
    /// Part of `/proc` or `/sys` is covered: a folder by an empty one, a file by `/dev/null`. What this kernel does not
    /// have, or does not let this user reach, is left out.
    Mask {
        /// Inside.
        #[serde(with = "super::text")]
        target: PathBuf,
    },
    /// Loopback up (`rtnetlink(7)`).
    Loopback,
    /// The host name inside.
    Hostname {
        /// The name.
        name: String,
    },
    /// The new root becomes `/` and the host's is let go (`pivot_root(2)`).
    Pivot,
    /// The folder in which the command starts.
    Chdir {
        /// Inside.
        #[serde(with = "super::text")]
        dir: PathBuf,
    },
    /// Only so many of the allowed processors (`sched_setaffinity(2)`).
    Cpus {
        /// How many.
        count: usize,
    },
    /// Nothing started from here gains privilege at exec (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivs,
    /// All capabilities but these leave the bounding set (`capabilities(7)`).
    Capabilities {
        /// What stays, by name.
        keep: Vec<String>,
    },
    /// Nothing beneath other folders is reached, whatever is mounted (`landlock(7)`); where the kernel has it.
    Landlock {
        /// Inside, beneath which may be written. All else may be read only.
        #[serde(with = "super::text::list")]
        writable: Vec<PathBuf>,
    },
    /// A filter on system calls (`seccomp(2)`).
    Seccomp {
        /// Which.
        filter: Filter,
    },
}

/// The filters on system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Calls that need true root succeed without being done.
    FakeRoot,
    /// Calls that a build does not need fail with EPERM.
    Deny,
}

impl Op {
    /// The path that the operation is about, for error messages.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Root { rootfs: path }
            | Self::Layer { rootfs: path, .. }
            | Self::Tmpfs { target: path, .. }
            | Self::Symlink { target: path, .. }
            | Self::File { target: path, .. }
            | Self::Alias { target: path, .. }
            | Self::Bind { target: path, .. }
            | Self::Seal { target: path }
            | Self::Protect { target: path }
            | Self::Mask { target: path }
            | Self::Chdir { dir: path } => Some(path.clone()),
            Self::Device { name } => Some(PathBuf::from("/dev").join(name)),
            Self::Devpts => Some("/dev/pts".into()),
            Self::Proc | Self::HostProc => Some("/proc".into()),
            Self::Sys { .. } => Some("/sys".into()),
            Self::DetachMounts
            | Self::Loopback
            | Self::Hostname { .. }
            | Self::Pivot
            | Self::Cpus { .. }
            | Self::NoNewPrivs
            | Self::Capabilities { .. }
            | Self::Landlock { .. }
            | Self::Seccomp { .. } => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DetachMounts => write!(f, "mount --make-rslave /"),
            Self::Root { rootfs } => write!(f, "root {}", rootfs.display()),
            Self::Layer { rootfs, layer } => {
                write!(f, "root {}, with what is written in ", rootfs.display())?;
                match layer {
                    Layer::Overlay { upper: Some(upper), .. } => write!(f, "an overlay, {}", upper.display()),
                    Layer::Overlay { upper: None, size: None } => write!(f, "an overlay in memory"),
                    Layer::Overlay { upper: None, size: Some(size) } => write!(f, "an overlay in memory size={size}"),
                    Layer::Fuse { program, upper } => write!(f, "{} by {}", upper.display(), program.display()),
                }
            }
            Self::Tmpfs { target, size, mode } => {
                write!(f, "tmpfs {} mode={mode:o}", target.display())?;
                size.map_or(Ok(()), |size| write!(f, " size={size}"))
            }
            Self::Device { name } => write!(f, "device /dev/{name}"),
            Self::Devpts => write!(f, "devpts /dev/pts"),
            Self::Symlink { target, to } => write!(f, "symlink {} -> {}", target.display(), to.display()),
            Self::Proc => write!(f, "proc /proc"),
            Self::HostProc => write!(f, "bind /proc (the host's)"),
            Self::Sys { own: true } => write!(f, "sysfs /sys read-only"),
            Self::Sys { own: false } => write!(f, "bind /sys read-only"),
            Self::File { target, content: Content::Text(text) } => {
                write!(f, "file {} ({} bytes)", target.display(), text.len())
            }
            Self::File { target, content: Content::HostFile { path, .. } } => {
                write!(f, "file {} (copy of the host's {})", target.display(), path.display())
            }
            Self::Alias { source, target } => write!(f, "alias {} at {}", source.display(), target.display()),
            Self::Bind { source, target, access } => {
                let access = match access {
                    Access::ReadOnly => "read-only",
                    Access::ReadWrite => "read-write",
                };
                write!(f, "bind {} at {} {access}", source.display(), target.display())
            }
            Self::Seal { target } => write!(f, "remount {} read-only", target.display()),
            Self::Protect { target } => write!(f, "protect {} read-only", target.display()),
            Self::Mask { target } => write!(f, "mask {}", target.display()),
            Self::Loopback => write!(f, "loopback up"),
            Self::Hostname { name } => write!(f, "hostname {name}"),
            Self::Pivot => write!(f, "pivot_root"),
            Self::Chdir { dir } => write!(f, "chdir {}", dir.display()),
            Self::Cpus { count } => write!(f, "use {count} processors"),
            Self::NoNewPrivs => write!(f, "no_new_privs"),
            Self::Capabilities { keep } if keep.is_empty() => write!(f, "drop all capabilities"),
            Self::Capabilities { keep } => write!(f, "drop all capabilities but {}", keep.join(" ")),
            Self::Landlock { writable } => {
                let writable: Vec<_> = writable.iter().map(|path| path.display().to_string()).collect();
                write!(f, "landlock: only {} can be written", writable.join(" "))
            }
            Self::Seccomp { filter: Filter::FakeRoot } => write!(f, "seccomp: calls of root are faked"),
            Self::Seccomp { filter: Filter::Deny } => write!(f, "seccomp: dangerous calls are refused"),
        }
    }
}
