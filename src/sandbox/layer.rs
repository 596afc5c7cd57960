//! A layer over a read-only rootfs, for what a command writes to it: thrown away with the sandbox, and the rootfs stays as it was.
//!
//! ```text
//! overlay         the kernel's overlayfs with `userxattr`: upper and work in a folder on a local disk, or in memory
//! fuse-overlayfs  the same by a program of the host, where the kernel's cannot be had and /dev/fuse can
//! copy            the whole rootfs once more (blocks are shared where the file system can)
//! ```
//!
//! Which of them works is found out by doing it in the folder where it would be done, and removing a folder of the lower
//! layer: without `userxattr` that alone fails. Names of folders may hold `:` and `,`, which mean something in the mount's
//! options, so they are given as `/proc/self/fd/N`. See the kernel's `overlayfs.rst`, fuse-overlayfs(1).

use super::apply::Trouble;
use super::error::{SandboxError, reason};
use super::findings::{Finding, Outcome};
use super::plan::{Host, Namespace};
use super::probe::{Trial, Try, attempt};
use super::rootdir::{fd_path, open_host};
use super::run;
use super::spec::{Access, Identity, Layer, Spec};
use super::tend::Task;
use crate::cache::{Cache, CacheError, Staging};
use crate::fsutil;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How the layer is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writable {
    /// The first that works, in the order below.
    Auto,
    /// overlayfs; its upper layer on the disk, or in memory where the disk's file system cannot hold one.
    Overlay,
    /// The program of this name.
    FuseOverlayfs,
    /// A copy of the rootfs.
    Copy,
}

/// A way that works here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Overlay,
    InMemory,
    Fuse(PathBuf),
    Copy,
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Overlay | Self::InMemory => "overlay",
            Self::Fuse(_) => "fuse-overlayfs",
            Self::Copy => "copy",
        }
    }

    /// Where its layers are, when they are made in `folder`.
    fn place(&self, folder: &Path) -> String {
        if *self == Self::InMemory { "memory".to_owned() } else { folder.display().to_string() }
    }
}

/// Where fuse-overlayfs is. Not by PATH: what is found there first is run with rights over the sandbox's mounts.
const FUSE_PROGRAMS: [&str; 2] = ["/usr/bin/fuse-overlayfs", "/usr/local/bin/fuse-overlayfs"];

/// As long as a mount by fuse-overlayfs may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most of what that program said that is told on. Bytes.
const SAID: usize = 1000;

/// All sandboxes with a read-only rootfs get a layer of their own, made this way.
#[derive(Debug, Clone)]
pub(super) struct Layered {
    way: Way,
    folder: PathBuf,
    cache: Cache,
    host: Host,
    in_memory: Option<u64>,
    pub why: String,
}

impl Layered {
    /// Finds a way. `folder` is where layers are made, one folder each; `in_memory` the most that one in memory may hold.
    pub fn find(
        wanted: Writable,
        folder: &Path,
        cache: &Cache,
        host: Host,
        podman: bool,
        in_memory: Option<u64>,
    ) -> Result<Self, SandboxError> {
        cache.sweep(folder).map_err(failed(folder))?;
        let staging = cache.staging(folder).map_err(failed(folder))?;
        let mut refused = Vec::new();
        for way in ways(wanted) {
            if podman && way != Way::Copy {
                refused.push(format!("{}: podman makes the sandbox here, and gets a copy or nothing", way.name()));
                continue;
            }
            match attempted(&way, staging.path())? {
                Ok(()) => {
                    let mut why = format!("the rootfs can be written: {} in {}", way.name(), way.place(folder));
                    if !refused.is_empty() {
                        why = format!("{why} ({})", refused.join("; "));
                    }
                    let (folder, cache) = (folder.to_owned(), cache.clone());
                    return Ok(Self { way, folder, cache, host, in_memory, why });
                }
                Err(no) => refused.push(no),
            }
        }
        Err(SandboxError::NotWritable { refused })
    }

    /// A layer over the rootfs of `spec`, which is deleted when it is dropped; none when nothing of it is written anyway, or
    /// when all of it may be.
    pub fn over(&self, spec: &Spec) -> Result<Option<(Spec, Staging)>, SandboxError> {
        if spec.rootfs_access == Access::ReadWrite {
            return Ok(None);
        }
        let staging = self.cache.staging(&self.folder).map_err(failed(&self.folder))?;
        let over = self.with(spec, staging.path().to_owned());
        if self.way == Way::Copy {
            run::tend(&self.host, Task::Copy { from: spec.rootfs.clone(), to: over.rootfs.clone() })?;
        }
        Ok(Some((over, staging)))
    }

    /// As [`Layered::over`], to be looked at: nothing is made, and its folder has the name that one will begin with.
    pub fn shown(&self, spec: &Spec) -> Spec {
        if spec.rootfs_access == Access::ReadWrite {
            return spec.clone();
        }
        self.with(spec, self.folder.join(format!("{}...", fsutil::TEMPORARY)))
    }

    /// The layer, or the copy, in its own folder `at`.
    fn with(&self, spec: &Spec, at: PathBuf) -> Spec {
        let mut spec = spec.clone();
        match &self.way {
            Way::Overlay => spec.layer = Some(Layer::Overlay { upper: Some(at), size: None }),
            Way::InMemory => spec.layer = Some(Layer::Overlay { upper: None, size: self.in_memory }),
            Way::Fuse(program) => spec.layer = Some(Layer::Fuse { program: program.clone(), upper: at }),
            Way::Copy => (spec.rootfs, spec.rootfs_access) = (at.join("root"), Access::ReadWrite),
        }
        spec
    }
}

/// The command is root inside, so that the distribution's own tools install packages, into a layer or not at all.
#[must_use]
pub fn as_root(mut spec: Spec) -> Spec {
    spec.identity = Identity::FakeRoot;
    // apt changes to a user of its own, an id that is not mapped.
    let options = super::spec::Content::Text("APT::Sandbox::User \"root\";\n".into());
    if spec.rootfs.join("etc/apt/apt.conf.d").is_dir() {
        spec = spec.overlay("/etc/apt/apt.conf.d/99slurm-factory", options);
    }
    for (name, value) in
        [("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root"), ("DEBIAN_FRONTEND", "noninteractive")]
    {
        spec = spec.env(name, value);
    }
    spec
}

/// The rows of `doctor` for layers that are made in this folder.
pub fn layers(folder: &Path, cache: &Cache) -> Result<Vec<Finding>, SandboxError> {
    let staging = cache.staging(folder).map_err(failed(folder))?;
    let mut rows = Vec::new();
    for way in ways(Writable::Auto) {
        let id = match way {
            Way::InMemory => "writable-overlay-memory".to_owned(),
            _ => format!("writable-{}", way.name()),
        };
        let tried = format!("--writable {} in {}", way.name(), way.place(folder));
        let (outcome, meaning) = match attempted(&way, staging.path())? {
            Ok(()) if way == Way::Copy && !shares_blocks(staging.path()) => {
                (Outcome::Ok, "works; each copy takes the space and the time of the whole rootfs".to_owned())
            }
            Ok(()) => (Outcome::Ok, "works".to_owned()),
            Err(no) => (Outcome::Warn, format!("{no}; only --writable asks for it")),
        };
        rows.push(super::doctor::row(&id, tried, outcome, meaning));
    }
    Ok(rows)
}

fn failed(folder: &Path) -> impl Fn(CacheError) -> SandboxError {
    let folder = folder.to_owned();
    move |source| SandboxError::LayerFolder { folder: folder.clone(), source }
}

fn ways(wanted: Writable) -> Vec<Way> {
    let overlay = [Way::Overlay, Way::InMemory];
    let program = FUSE_PROGRAMS.iter().find(|path| Path::new(path).exists()).unwrap_or(&FUSE_PROGRAMS[0]);
    let fuse = Way::Fuse(program.into());
    match wanted {
        Writable::Auto => overlay.into_iter().chain([fuse, Way::Copy]).collect(),
        Writable::Overlay => overlay.into(),
        Writable::FuseOverlayfs => vec![fuse],
        Writable::Copy => vec![Way::Copy],
    }
}

/// Whether copies share their blocks in this folder.
fn shares_blocks(folder: &Path) -> bool {
    let (from, to) = (folder.join("reflink"), folder.join("reflink-copy"));
    fs_err::write(&from, "x").is_ok() && reflink_copy::reflink(&from, &to).is_ok()
}

/// Tries one in an empty folder; why it does not work, in words.
fn attempted(way: &Way, folder: &Path) -> Result<Result<(), String>, SandboxError> {
    let at = folder.join(way.name()).with_extension(if *way == Way::InMemory { "memory" } else { "disk" });
    fs_err::create_dir(&at)
        .map_err(|source| SandboxError::LayerFolder { folder: folder.to_owned(), source: CacheError::Io(source) })?;
    let try_of = |upper: Option<PathBuf>, program: Option<PathBuf>| LayerTrial { folder: at.clone(), upper, program };
    let trial = match way {
        Way::Overlay => try_of(Some(at.clone()), None),
        Way::InMemory => try_of(None, None),
        Way::Fuse(program) if !program.exists() => {
            return Ok(Err("fuse-overlayfs: not installed (the package of this name has it)".into()));
        }
        Way::Fuse(_) if [':', ','].iter().any(|sign| folder.to_string_lossy().contains(*sign)) => {
            return Ok(Err(format!(
                "fuse-overlayfs: it takes no folder with `:` or `,` in its name ({})",
                folder.display()
            )));
        }
        Way::Fuse(_) if open_host(Path::new("/dev/fuse"), OFlags::RDWR).is_err() => {
            return Ok(Err(
                "fuse-overlayfs: /dev/fuse is not there or closed to you (its group or mode is an administrator's)"
                    .into(),
            ));
        }
        Way::Fuse(program) => try_of(Some(at.clone()), Some(program.clone())),
        // What can fail is the folder itself, and that has just been written to.
        Way::Copy => return Ok(Ok(())),
    };
    let trials = run::try_layer(trial)?;
    let place = way.place(fsutil::parent_of(folder));
    Ok(answer(&trials).map_err(|why| format!("{} with its upper layer in {place}: {why}", way.name())))
}

/// What the trials say: the layer works when it was made and used, and not because nothing failed.
fn answer(trials: &[Trial]) -> Result<(), String> {
    match trials.iter().find_map(|trial| Some((trial.errno?, &trial.said))) {
        Some((errno, said)) if said.is_empty() => Err(reason(errno)),
        Some((errno, said)) => Err(format!("{}: {said}", reason(errno))),
        None if trials.iter().any(|trial| trial.step == Try::Layer) => Ok(()),
        None => Err("the process that tried it ended without an answer".into()),
    }
}

/// A layer that is tried: `folder` is empty, and gets a lower layer and what it is mounted on.
#[derive(Debug, Serialize, Deserialize)]
pub struct LayerTrial {
    #[serde(with = "super::text")]
    folder: PathBuf,
    upper: Option<PathBuf>,
    program: Option<PathBuf>,
}

/// In the helper.
pub fn try_layer(trial: &LayerTrial) -> Vec<Trial> {
    attempt(&[Namespace::User, Namespace::Mount], &mut || {
        let trouble = removes_a_lower_folder(trial).err();
        let errno = trouble.as_ref().map(|trouble| trouble.errno);
        vec![Trial { said: trouble.map(|trouble| trouble.detail).unwrap_or_default(), ..Trial::new(Try::Layer, errno) }]
    })
}

fn removes_a_lower_folder(trial: &LayerTrial) -> Result<(), Trouble> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    let lower = trial.folder.join("lower");
    for dir in [lower.clone(), lower.join("folder")] {
        nix::unistd::mkdir(&dir, nix::sys::stat::Mode::S_IRWXU)?;
    }
    let layer = match (&trial.program, &trial.upper) {
        (Some(program), Some(upper)) => Layer::Fuse { program: program.clone(), upper: upper.clone() },
        (_, upper) => Layer::Overlay { upper: upper.clone(), size: Some(1 << 20) },
    };
    let mut daemon = enter(&lower, &layer)?;
    let removed =
        nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, &lower.join("folder"), nix::unistd::UnlinkatFlags::RemoveDir);
    let made = nix::unistd::mkdir(&lower.join("folder"), nix::sys::stat::Mode::S_IRWXU);
    if let Some(daemon) = &mut daemon {
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
    removed?;
    Ok(made?)
}

/// Mounts a layer over `rootfs`, in its place. The program that serves it, if one does, ends with the sandbox.
pub fn enter(rootfs: &Path, layer: &Layer) -> Result<Option<Child>, Trouble> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Trouble::at(e.into(), path, "open"))
    };
    let lower = open(rootfs)?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&lower)?.st_mode & 0o7777);
    let base = match layer {
        Layer::Overlay { upper: Some(upper), .. } | Layer::Fuse { upper, .. } => open(upper)?,
        Layer::Overlay { upper: None, size } => {
            let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
            let options = format!("mode=755{size}");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), rootfs, Some("tmpfs"), flags, Some(options.as_str()))?;
            open(rootfs)?
        }
    };
    let folder = |name: &str| -> Result<OwnedFd, Trouble> {
        mkdirat(&base, name, Mode::RWXU)?;
        Ok(openat(&base, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    };
    let (upper, work) = (folder("upper")?, folder("work")?);
    // The root that is seen is the upper layer's.
    rustix::fs::fchmod(&upper, mode)?;
    match layer {
        Layer::Overlay { .. } => {
            let options = format!(
                "lowerdir={},upperdir={},workdir={},userxattr",
                fd_path(&lower).display(),
                fd_path(&upper).display(),
                fd_path(&work).display()
            );
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("overlay"), rootfs, Some("overlay"), flags, Some(options.as_str()))?;
            Ok(None)
        }
        Layer::Fuse { program, .. } => fuse(program, rootfs, &base, [&lower, &upper, &work]).map(Some),
    }
}

/// fuse-overlayfs in the foreground, as a child: when the sandbox's first process ends, it ends.
#[allow(clippy::disallowed_methods)] // within the namespaces; process.rs is the door to programs that run outside
fn fuse(program: &Path, rootfs: &Path, base: &OwnedFd, folders: [&OwnedFd; 3]) -> Result<Child, Trouble> {
    let said = |e: &io::Error| Trouble::io(e, program, "start");
    let log = openat(base, "log", OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
    let mut names = Vec::new();
    for folder in folders {
        // It is to have these three.
        rustix::io::fcntl_setfd(folder, rustix::io::FdFlags::empty())?;
        names.push(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", names[0], names[1], names[2]);
    let log_handle = log.try_clone().map_err(|e| said(&e))?;
    // It mounts. A program that is started by another id than 0 has no rights but those that are said to stay (capabilities(7)).
    let rights = caps::read(None, caps::CapSet::Permitted).map_err(|e| Trouble::why(Errno::EPERM, e.to_string()))?;
    let keep = |set, rights: &_| caps::set(None, set, rights).map_err(|e| Trouble::why(Errno::EPERM, e.to_string()));
    keep(caps::CapSet::Inheritable, &rights)?;
    keep(caps::CapSet::Ambient, &rights)?;
    let spawned = std::process::Command::new(program)
        .args(["-f", "-o", &options])
        .arg(rootfs)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log_handle))
        .spawn();
    let none = std::collections::HashSet::new();
    keep(caps::CapSet::Ambient, &none)?;
    keep(caps::CapSet::Inheritable, &none)?;
    let mut child = spawned.map_err(|e| said(&e))?;
    let start = Instant::now();
    // Another file system than the lower layer's is there when it is mounted. Not that one of its kind is: the rootfs itself may
    // lie on FUSE (sshfs, ceph-fuse), and would be written to before the layer covers it.
    let below = rustix::fs::fstat(folders[0])?.st_dev;
    loop {
        if rustix::fs::stat(rootfs).is_ok_and(|found| found.st_dev != below) {
            return Ok(child);
        }
        let ended = child.try_wait().map_err(|e| said(&e))?;
        if ended.is_some() || start.elapsed() > PATIENCE {
            let _ = child.kill();
            let mut text = [0; SAID];
            let read = rustix::io::pread(&log, &mut text[..], 0).unwrap_or(0);
            let text = String::from_utf8_lossy(&text[..read]).trim().replace('\n', "; ");
            return Err(Trouble::why(Errno::EIO, format!("fuse-overlayfs did not mount it: {text}")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_without_an_answer_is_a_refusal() {
        let made = [Trial::new(Try::Namespace(Namespace::User), None), Trial::new(Try::MapIds, None)];
        assert!(answer(&made).unwrap_err().contains("without an answer"));
        assert!(answer(&[]).is_err());
        let with = |last| [made.as_slice(), &[last]].concat();
        assert_eq!(answer(&with(Trial::new(Try::Layer, None))), Ok(()));
        let said = Trial { said: "no such option".into(), ..Trial::new(Try::Layer, Some(Errno::EIO as i32)) };
        let why = answer(&with(said)).unwrap_err();
        assert!(why.contains("EIO") && why.ends_with(": no such option"), "{why}");
    }
}
