//! The sandbox: a command runs in a rootfs of our own, seeing what it was given and nothing else, without
//! root, without a daemon and without a setuid program.
//!
//! ```text
//! spec.rs       what is wanted                        data
//! plan.rs       Spec + Host -> Plan: ordered Ops      pure
//! ops.rs        the operations and their words        data
//! run.rs        starts the helper, carries output     in the program
//!   terminal.rs the sandbox's own terminal, and what is carried to and from it
//! wire.rs       what the two say to each other
//! helper.rs     namespaces, id maps, init             in the helper
//! apply.rs      does the operations                   in the helper, inside
//!   rootdir.rs mounts.rs seccomp.rs calls.rs beneath.rs loopback.rs family.rs
//! probe.rs      tries what the host allows            in the helper
//! facts.rs      reads what explains a refusal
//! findings.rs   errno + facts -> meaning and remedy   pure
//! doctor.rs     all findings about this host
//!   folders.rs resources.rs
//! ids.rs        one id or a range of subordinate ones
//!   tend.rs    files that belong to a range: given away, deleted
//! layer.rs      what is written to a read-only rootfs, and thrown away
//! known.rs      what probing found is kept for the next run
//! podman.rs     the other way to make a sandbox
//! limits.rs     processors, memory, disk, nice: put on the helper before it works
//!   cgroup.rs quota.rs
//! ```
//!
//! Two uses: [`Spec::prepare`] installs packages into a rootfs as fake root, [`Spec::build`] builds in a
//! read-only rootfs as an ordinary user. The rootfs of a build is *bound read-only*; what a build writes goes
//! to the folders mounted into it. No overlay is needed, so a rootfs may lie on NFS or Lustre, and any number
//! of builds share it. Mount points that it lacks are made in it before it is sealed; where it cannot be
//! written (a site's shared rootfs) the prepare stage must have made them, and the error says so.
//!
//! `main` must call [`init_if_helper`] first: the program starts itself again as the helper.

mod apply;
mod beneath;
mod calls;
mod cgroup;
mod doctor;
mod error;
mod facts;
mod family;
mod findings;
mod folders;
mod helper;
mod ids;
mod known;
mod layer;
mod limits;
mod loopback;
mod mounts;
mod ops;
mod plan;
mod podman;
mod probe;
mod quota;
mod resources;
mod rootdir;
mod run;
mod seccomp;
mod spec;
mod tend;
mod terminal;
mod text;
mod wire;

pub use beneath::version as landlock_version;
pub use doctor::probe;
pub use error::SandboxError;
pub use facts::Facts;
pub use findings::{Finding, Outcome, classify};
pub use helper::init_if_helper;
pub use ids::{Ids, SubIds};
pub use layer::{Writable, as_root, layers};
pub use limits::{LEAST_DISK, LEAST_MEMORY, Limits};
pub use ops::{Filter, Op};
pub use plan::{Host, IdMap, Namespace, Plan, SpecError, plan};
pub use probe::{Trial, Try};
pub use resources::machine_memory;
pub use run::{Ended, Exit, Io};
pub use spec::{
    Access, BUILD_ID_FOR_ROOT, CA_BUNDLE_INSIDE, Confinement, Content, FILES_INSIDE, Identity, Layer, Mount, Network,
    Overlay, PATH_INSIDE, Spec, Tmpfs, User,
};
pub use tend::Owner;
pub use wire::{Failure, Step};

use crate::cache::Cache;
use crate::report::Interrupt;
use known::Known;
use nix::unistd::{getegid, geteuid};
use std::borrow::Cow;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

/// Which way a sandbox is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The first that works.
    Auto,
    /// User namespaces, by ourselves.
    Userns,
    /// podman.
    Podman,
}

/// Why, when it was not tried now.
const WORKED: &str = "user namespaces: they worked before";

/// Proof that a sandbox can be made on this host: it has been tried.
#[derive(Debug, Clone)]
pub struct Sandbox {
    host: Host,
    /// In place of our own namespaces.
    podman: Option<podman::Podman>,
    why: String,
    /// Not tried now, but by an earlier run: where that is kept, and what to try if it holds no longer.
    kept: Option<(Known, Backend)>,
    /// Of all sandboxes made with this, whatever their [`Spec`] says, if it is the weaker one.
    confinement: Confinement,
    limited: Option<Arc<limits::Limited>>,
    layered: Option<layer::Layered>,
}

impl Sandbox {
    /// Tries whether sandboxes work here. Nothing is remembered between calls; with [`Backend::Userns`], and with
    /// [`Backend::Auto`] where that works, it takes a few milliseconds, with podman a second.
    pub fn open(backend: Backend, interrupt: &Interrupt) -> Result<Self, SandboxError> {
        let facts = Facts::read();
        let mut findings = Vec::new();
        let mut host = Host { uid: facts.uid, gid: facts.gid, own_proc: true, ids: Ids::Single };
        if backend != Backend::Podman {
            let trials = run::probe(false)?;
            findings =
                trials.iter().filter(|trial| trial.errno.is_some()).map(|trial| classify(trial, &facts)).collect();
            if findings.iter().all(|finding| finding.outcome != Outcome::Fail) {
                let lacks = |step| trials.iter().any(|trial: &Trial| trial.step == step && trial.errno.is_some());
                host.own_proc = !lacks(Try::Proc) && !lacks(Try::Namespace(Namespace::Pid));
                let why = findings.first().map_or("user namespaces: they work".into(), |finding: &Finding| {
                    format!("user namespaces, with one restriction: {}", finding.meaning)
                });
                return Ok(Self { why, ..Self::remembered(host) });
            }
        }
        if backend != Backend::Userns {
            match podman::Podman::open(interrupt)? {
                Ok(podman) => {
                    let asked = "as asked".to_owned();
                    let why = findings
                        .first()
                        .map_or(asked, |finding| format!("{} fails: {}", finding.tried, finding.meaning));
                    let why = format!("{}: {why}", podman.describe());
                    return Ok(Self { why, podman: Some(podman), ..Self::remembered(host) });
                }
                Err(finding) => findings.push(finding),
            }
        }
        Err(SandboxError::Unavailable { findings })
    }

    /// As [`Sandbox::open`], but asks `folder` first whether user namespaces worked for an earlier run under the same
    /// conditions, and keeps there that they do ([`known`]). Should a kept "yes" no longer hold, [`Sandbox::run`]
    /// tries everything anew.
    pub fn open_known(backend: Backend, folder: &Path, interrupt: &Interrupt) -> Result<Self, SandboxError> {
        let known = if backend == Backend::Podman { None } else { Known::now(folder) };
        let Some(known) = known else { return Self::open(backend, interrupt) };
        if known.worked() {
            let host = Host { uid: geteuid().as_raw(), gid: getegid().as_raw(), own_proc: true, ids: Ids::Single };
            return Ok(Self { kept: Some((known, backend)), ..Self::remembered(host) });
        }
        let sandbox = Self::open(backend, interrupt)?;
        // With a restriction or under podman it is asked anew each time: a host may have been mended.
        if sandbox.podman.is_none() && sandbox.host.own_proc {
            known.keep();
        }
        Ok(sandbox)
    }

    /// Takes the word of an earlier [`Sandbox::open`] that chose user namespaces, of the same user on the same
    /// boot of the same host. Should it no longer hold, [`Sandbox::run`] says so, as the failure of the step
    /// that does not work.
    pub fn remembered(host: Host) -> Self {
        Self {
            host,
            podman: None,
            why: WORKED.into(),
            kept: None,
            confinement: Confinement::Strict,
            limited: None,
            layered: None,
        }
    }

    /// The same with limits, which hold for everything that it runs; how they are enforced here is found out now, by
    /// trying.
    pub fn limited(mut self, limits: Limits, interrupt: &Interrupt) -> Result<Self, SandboxError> {
        self.limited = None;
        if limits != Limits::default() {
            let limited = limits::Limited::new(limits, self.podman.as_ref(), interrupt)?;
            self.limited = Some(Arc::new(limited));
        }
        Ok(self)
    }

    /// The same with the range of subordinate ids that this host gives the caller, which is tried now.
    pub fn with_range(mut self) -> Result<Self, SandboxError> {
        if self.podman.is_some() {
            return Err(SandboxError::NoRange {
                reason: "podman is the sandbox here, and is given one id".into(),
                remedy: "it goes with `--backend userns`; `slurm-factory doctor` says what is in its way".into(),
            });
        }
        self.host.ids = ids::range(&Facts::read())?;
        run::tend(&self.host, tend::Task::Try)?;
        self.why.push_str("; with your subordinate ids, by newuidmap");
        Ok(self)
    }

    /// The same, and what is written to a read-only rootfs goes to a layer that each command has for itself and that ends with
    /// it. `folder` is on a local disk; a way is found by trying. In memory a layer is no larger than the limit of the disk.
    pub fn writable(mut self, wanted: Writable, folder: &Path, cache: &Cache) -> Result<Self, SandboxError> {
        let disk = self.limited.as_ref().and_then(|limited| limited.limits().disk);
        let found = layer::Layered::find(wanted, folder, cache, self.host, self.podman.is_some(), disk)?;
        self.why = format!("{}; {}", self.why, found.why);
        self.layered = Some(found);
        Ok(self)
    }

    /// Which ids the files of a rootfs can have.
    pub fn ids(&self) -> Ids {
        self.host.ids
    }

    /// Gives files below `root`, all the caller's until then, to their owners: by inode, uid and gid inside.
    pub fn own(&self, root: &Path, owners: Vec<Owner>) -> Result<(), SandboxError> {
        run::tend(&self.host, tend::Task::Own { root: root.to_owned(), owners })
    }

    /// Each limit that was set, and how it is enforced.
    pub fn limits(&self) -> Vec<String> {
        self.limited.as_ref().map(|limited| limited.describe()).unwrap_or_default()
    }

    /// What is known of the host, for [`plan`] and for [`Sandbox::remembered`].
    pub fn host(&self) -> Host {
        self.host
    }

    /// Which backend was chosen.
    pub fn backend(&self) -> Backend {
        if self.podman.is_some() { Backend::Podman } else { Backend::Userns }
    }

    /// Which backend was chosen and why, in one line.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// With [`Confinement::Relaxed`], no sandbox made with this refuses calls of its own: a site's own choice.
    #[must_use]
    pub fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = confinement;
        if confinement == Confinement::Relaxed {
            self.why.push_str("; confinement is relaxed, as the settings say");
        }
        self
    }

    /// What is done for `spec` here, its layer included.
    pub fn plan(&self, spec: &Spec) -> Result<Plan, SpecError> {
        let shown = self.layered.as_ref().map(|layered| layered.shown(spec));
        self.plan_as_it_is(shown.as_ref().unwrap_or(spec))
    }

    /// For a spec that has its layer, if it gets one.
    fn plan_as_it_is(&self, spec: &Spec) -> Result<Plan, SpecError> {
        plan(&self.confine(spec), &self.host)
    }

    fn confine<'a>(&self, spec: &'a Spec) -> Cow<'a, Spec> {
        if self.confinement == Confinement::Strict || spec.confinement == self.confinement {
            return Cow::Borrowed(spec);
        }
        Cow::Owned(Spec { confinement: self.confinement, ..spec.clone() })
    }

    /// Runs `argv` in a sandbox made for it, which ends with it. Blocks; the calling thread must live as long.
    pub fn run(&self, spec: &Spec, argv: &[OsString], io: Io<'_>, interrupt: &Interrupt) -> Result<Exit, SandboxError> {
        self.run_first(spec, argv, io, interrupt, &mut || ())
    }

    /// As [`Sandbox::run`], and calls `begin` when the sandbox is being made. A program that starts its first thread
    /// then, and not before, gets its sandbox in half the time: it need not be loaded a second time. (Not with limits,
    /// which are put on a helper before it works.)
    pub fn run_first(
        &self,
        spec: &Spec,
        argv: &[OsString],
        mut io: Io<'_>,
        interrupt: &Interrupt,
        begin: &mut dyn FnMut(),
    ) -> Result<Exit, SandboxError> {
        // Thrown away when it goes.
        let over = self.layered.as_ref().map_or(Ok(None), |layered| layered.over(spec))?;
        let spec = over.as_ref().map_or(spec, |(spec, _)| spec);
        let ended = self.within(spec, io.again(), interrupt, |spec, io, interrupt, limits| match &self.podman {
            Some(podman) => {
                begin();
                podman.run(&self.confine(spec), &self.host, argv, io, interrupt, limits)
            }
            None => run::run(self.plan_as_it_is(spec)?, argv, io, interrupt, limits, begin),
        });
        match (&self.kept, ended) {
            // The command was not started. Perhaps the host has changed: what is true now decides.
            (Some((known, backend)), Err(SandboxError::Setup { .. })) => {
                known.forget();
                let mut anew = Self::open(*backend, interrupt)?.confined(self.confinement);
                anew.layered.clone_from(&self.layered);
                if self.host.ids != Ids::Single {
                    anew = anew.with_range()?;
                }
                if let Some(limited) = &self.limited {
                    anew = anew.limited(limited.limits(), interrupt)?;
                }
                anew.run(spec, argv, io, interrupt)
            }
            (_, ended) => ended,
        }
    }

    /// Runs a command by `start`, within the limits.
    fn within(
        &self,
        spec: &Spec,
        io: Io<'_>,
        interrupt: &Interrupt,
        start: impl FnOnce(&Spec, Io<'_>, &Interrupt, &limits::Enter<'_>) -> Result<Exit, SandboxError>,
    ) -> Result<Exit, SandboxError> {
        match &self.limited {
            None => start(spec, io, interrupt, &limits::Enter::freely(interrupt)),
            Some(limited) => limited.run(spec, io, interrupt, start),
        }
    }
}

/// Deletes a tree in which there is something of the caller's subordinate ids, for [`crate::fsutil::delete_others_by`].
pub fn remove_of_range(path: &Path) -> std::io::Result<()> {
    let facts = Facts::read();
    let removed = ids::range(&facts).and_then(|ids| {
        let host = Host { uid: facts.uid, gid: facts.gid, own_proc: true, ids };
        run::tend(&host, tend::Task::Remove { path: path.to_owned() })
    });
    removed.map_err(|e| {
        let what =
            format!("`{}` holds files of subordinate ids, which only newuidmap lets you delete: {e}", path.display());
        std::io::Error::other(what)
    })
}
