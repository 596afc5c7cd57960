//! Does what the plan says, one operation after the other, in the sandbox's first process.
//!
//! This runs in new namespaces with all capabilities *there*, and still with the host's file system in view
//! until [`Op::Pivot`]. Sources are looked up on the host, targets within the new root only ([`RootDir`]);
//! both are then named by file descriptor, so that nothing is looked up twice.

use super::beneath;
use super::layer;
use super::loopback;
use super::mounts::{seal, seal_tree};
use super::ops::Op;
use super::rootdir::{RootDir, Want, fd_path, open_host};
use super::seccomp;
use super::spec::{Access, Content};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, chdir, fchdir, pivot_root, sethostname};
use rustix::fs::{FileType, Mode, OFlags, openat, symlinkat};
use std::collections::HashSet;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const NONE: Option<&str> = None;

/// The most that is copied of a file of the host: larger ones are no `resolv.conf` and no CA bundle.
const MAX_HOST_FILE: u64 = 8 << 20;

/// Why an operation failed: the kernel's word, which path if not the operation's own, and what it was about.
#[derive(Debug)]
pub struct Trouble {
    pub errno: i32,
    pub path: Option<PathBuf>,
    pub detail: String,
}

impl Trouble {
    pub(super) fn at(errno: Number, path: &Path, detail: &str) -> Self {
        Self { errno: errno.0, path: Some(path.to_owned()), detail: detail.into() }
    }

    pub(super) fn io(error: &io::Error, path: &Path, detail: &str) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(0), path: Some(path.to_owned()), detail: detail.into() }
    }

    pub(super) fn why(errno: Errno, detail: impl Into<String>) -> Self {
        Self { errno: errno as i32, path: None, detail: detail.into() }
    }
}

/// An errno of either of the two libraries that call the kernel.
#[derive(Clone, Copy)]
pub(super) struct Number(i32);

impl From<Errno> for Number {
    fn from(errno: Errno) -> Self {
        Self(errno as i32)
    }
}

impl From<rustix::io::Errno> for Number {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self::why(errno, "")
    }
}

impl From<rustix::io::Errno> for Trouble {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::why(Errno::from_raw(errno.raw_os_error()), "")
    }
}

/// What one operation leaves for the next.
#[derive(Default)]
pub struct Setup {
    root: Option<RootDir>,
    /// `/proc` is new, so that nothing is mounted below it.
    own_proc: bool,
}

impl Setup {
    /// Applies one operation.
    pub fn apply(&mut self, op: &Op) -> Result<(), Trouble> {
        match op {
            Op::DetachMounts => Ok(mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?),
            Op::Root { rootfs } => self.enter(rootfs),
            Op::Layer { rootfs, layer } => {
                // What serves it, if a program does, is ended with the sandbox.
                layer::enter(rootfs, layer)?;
                self.root = Some(RootDir::open(rootfs)?);
                Ok(())
            }
            Op::Tmpfs { target, size, mode } => self.tmpfs(target, *size, *mode),
            Op::Device { name } => self.device(name),
            Op::Devpts => {
                let at = self.target(Path::new("/dev/pts"), Want::Dir)?;
                let options = "newinstance,ptmxmode=0666,mode=620";
                // Not nodev: ptmx is a device, and opening it would be EACCES.
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
                Ok(mount(Some("devpts"), &fd_path(&at), Some("devpts"), flags, Some(options))?)
            }
            Op::Symlink { target, to } => {
                let (parent, name) = self.root()?.parent(target)?;
                Ok(symlinkat(to, parent, name)?)
            }
            Op::Proc => {
                let at = self.target(Path::new("/proc"), Want::TrueDir)?;
                self.own_proc = true;
                Ok(mount(Some("proc"), &fd_path(&at), Some("proc"), quiet() | MsFlags::MS_NOEXEC, NONE)?)
            }
            Op::HostProc => self.host_tree("/proc", false),
            Op::Sys { own } => self.sys(*own),
            Op::File { target, content } => self.file(target, content),
            Op::Alias { source, target } => {
                let source = self.root()?.resolve(source, Want::Any)?;
                self.bind_handle(&source, target)
            }
            Op::Bind { source, target, access } => self.bind(source, target, *access),
            Op::Seal { target } => {
                let at = if target == Path::new("/") {
                    self.root()?.as_fd().try_clone_to_owned().map_err(|e| Trouble::io(&e, target, "open"))?
                } else {
                    self.root()?.resolve(target, Want::Any)?
                };
                Ok(seal(&at)?)
            }
            Op::Protect { target } => self.protect(target),
            Op::Mask { target } => self.mask(target),
            Op::Loopback => Ok(loopback::up()?),
            Op::Hostname { name } => Ok(sethostname(name)?),
            Op::Pivot => self.pivot(),
            Op::Chdir { dir } => Ok(chdir(dir)?),
            Op::Cpus { count } => limit_cpus(*count),
            Op::NoNewPrivs => Ok(nix::sys::prctl::set_no_new_privs()?),
            Op::Capabilities { keep } => capabilities(keep),
            Op::Landlock { writable } => beneath::restrict(writable).map_err(|(error, path)| Trouble {
                errno: error.raw_os_error().unwrap_or(0),
                path,
                detail: error.to_string(),
            }),
            Op::Seccomp { filter } => seccomp::install(*filter).map_err(|e| Trouble::why(Errno::EINVAL, e.to_string())),
        }
    }

    fn root(&self) -> Result<&RootDir, Trouble> {
        self.root.as_ref().ok_or_else(|| Trouble::why(Errno::EINVAL, "the plan has no root at this point"))
    }

    fn enter(&mut self, rootfs: &Path) -> Result<(), Trouble> {
        mount(Some(rootfs), rootfs, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
        self.root = Some(RootDir::open(rootfs)?);
        Ok(())
    }

    /// A place to mount on, which is not the root: what is mounted over the root is not seen, and what was
    /// meant to be covered stays visible.
    fn target(&self, path: &Path, want: Want) -> Result<OwnedFd, Trouble> {
        let root = self.root()?;
        let handle = root.resolve(path, want)?;
        if root.is_root(&handle)? {
            return Err(Trouble::why(Errno::ELOOP, "in the image it leads to the image's own /"));
        }
        Ok(handle)
    }

    fn tmpfs(&self, target: &Path, size: Option<u64>, mode: u32) -> Result<(), Trouble> {
        let want = if target == Path::new("/dev") { Want::TrueDir } else { Want::Dir };
        let at = self.target(target, want)?;
        let options = match size {
            Some(size) => format!("mode={mode:o},size={size}"),
            None => format!("mode={mode:o}"),
        };
        Ok(mount(Some("tmpfs"), &fd_path(&at), Some("tmpfs"), quiet(), Some(options.as_str()))?)
    }

    fn device(&self, name: &str) -> Result<(), Trouble> {
        let source = Path::new("/dev").join(name);
        let found = rustix::fs::stat(&source).map_err(|e| Trouble::at(e.into(), &source, "look at the host's"))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice {
            return Err(Trouble::at(Errno::ENODEV.into(), &source, "not a device on this host"));
        }
        let at = self.target(&source, Want::File)?;
        Ok(mount(Some(&source), &fd_path(&at), NONE, MsFlags::MS_BIND, NONE)?)
    }

    /// The whole of a kernel file system of the host. Recursive: in a user namespace, showing it without what
    /// is mounted over parts of it is EINVAL, because that would uncover them.
    fn host_tree(&self, path: &str, read_only: bool) -> Result<(), Trouble> {
        let at = self.target(Path::new(path), Want::TrueDir)?;
        mount(Some(path), &fd_path(&at), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
        if read_only { sealed(&self.root()?.resolve(Path::new(path), Want::TrueDir)?) } else { Ok(()) }
    }

    fn sys(&self, own: bool) -> Result<(), Trouble> {
        if own {
            let at = self.target(Path::new("/sys"), Want::TrueDir)?;
            let flags = quiet() | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
            match mount(Some("sysfs"), &fd_path(&at), Some("sysfs"), flags, NONE) {
                Err(Errno::EPERM) => {} // parts of the host's are masked: a container
                done => return Ok(done?),
            }
        }
        self.host_tree("/sys", true)
    }

    fn file(&self, target: &Path, content: &Content) -> Result<(), Trouble> {
        let bytes = match content {
            Content::Text(text) => text.as_bytes().to_vec(),
            Content::HostFile { path, then } => {
                let mut bytes = host_file(path)?;
                bytes.extend(then.as_bytes());
                bytes
            }
        };
        let (parent, name) = self.root()?.parent(target)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::from_raw_mode(0o644))?;
        std::fs::File::from(file).write_all(&bytes).map_err(|e| Trouble::io(&e, target, "write"))
    }

    fn bind(&self, source: &Path, target: &Path, access: Access) -> Result<(), Trouble> {
        let opened = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let source_handle = opened.map_err(|e| Trouble::at(e.into(), source, "open the host's"))?;
        self.bind_handle(&source_handle, target)?;
        match access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => sealed(&self.root()?.resolve(target, Want::Any)?),
        }
    }

    fn bind_handle(&self, source: &OwnedFd, target: &Path) -> Result<(), Trouble> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode);
        let want = if kind == FileType::Directory { Want::Dir } else { Want::File };
        let at = self.target(target, want)?;
        Ok(mount(Some(&fd_path(source)), &fd_path(&at), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?)
    }

    fn protect(&self, target: &Path) -> Result<(), Trouble> {
        let handle = match self.root()?.resolve(target, Want::Any) {
            Err(rustix::io::Errno::NOENT) => return Ok(()), // this kernel has no such switch
            other => other?,
        };
        mount(Some(&fd_path(&handle)), &fd_path(&handle), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
        let covered = self.root()?.resolve(target, Want::Any)?;
        if self.own_proc { Ok(seal(&covered)?) } else { sealed(&covered) }
    }

    fn mask(&self, target: &Path) -> Result<(), Trouble> {
        let handle = match self.root()?.resolve(target, Want::Any) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) => return Ok(()),
            other => other?,
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) == FileType::Directory {
            let flags = quiet() | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
            return Ok(mount(Some("tmpfs"), &fd_path(&handle), Some("tmpfs"), flags, Some("mode=755,size=0"))?);
        }
        let null = self.root()?.resolve(Path::new("/dev/null"), Want::Any)?;
        Ok(mount(Some(&fd_path(&null)), &fd_path(&handle), NONE, MsFlags::MS_BIND, NONE)?)
    }

    fn pivot(&mut self) -> Result<(), Trouble> {
        // Handles of the old view are closed with it.
        let root = self.root.take().ok_or_else(|| Trouble::why(Errno::EINVAL, "pivoted twice"))?;
        fchdir(root)?;
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        Ok(chdir("/")?)
    }
}

/// What every mount made here gets.
fn quiet() -> MsFlags {
    MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV)
}

fn sealed(handle: &OwnedFd) -> Result<(), Trouble> {
    seal_tree(handle).map_err(|(errno, path)| Trouble { errno: errno as i32, path, detail: "make read-only".into() })
}

fn host_file(path: &Path) -> Result<Vec<u8>, Trouble> {
    use std::io::Read;
    let file = match open_host(path, OFlags::RDONLY) {
        Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
        other => other.map_err(|e| Trouble::at(e.into(), path, "read the host's"))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_HOST_FILE + 1).read_to_end(&mut bytes).map_err(|e| Trouble::io(&e, path, "read the host's"))?;
    if bytes.len() as u64 > MAX_HOST_FILE {
        return Err(Trouble::at(Errno::EFBIG.into(), path, "copy the host's"));
    }
    Ok(bytes)
}

fn limit_cpus(count: usize) -> Result<(), Trouble> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut wanted = CpuSet::new();
    let usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    for cpu in usable.take(count) {
        wanted.set(cpu)?;
    }
    Ok(sched_setaffinity(this, &wanted)?)
}

fn capabilities(keep: &[String]) -> Result<(), Trouble> {
    let failed = |e: caps::errors::CapsError| Trouble::why(Errno::last(), e.to_string());
    let keep = keep.iter().map(|name| name.parse()).collect::<Result<HashSet<_>, _>>().map_err(failed)?;
    for cap in caps::read(None, caps::CapSet::Bounding).map_err(failed)?.difference(&keep) {
        caps::drop(None, caps::CapSet::Bounding, *cap).map_err(failed)?;
    }
    let held = caps::read(None, caps::CapSet::Permitted).map_err(failed)?;
    let keep: HashSet<_> = held.intersection(&keep).copied().collect();
    caps::clear(None, caps::CapSet::Inheritable).map_err(failed)?;
    caps::set(None, caps::CapSet::Effective, &keep).map_err(failed)?;
    caps::set(None, caps::CapSet::Permitted, &keep).map_err(failed)
}
