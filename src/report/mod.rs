//! What stages tell the outside: typed events, and the token by which the outside tells them to stop.
//!
//! Stages draw nothing. They send an [`Event`] to the [`Reporter`] in their [`Ctx`]; a renderer (terminal,
//! plain lines, JSON lines) turns it into output. The same `Ctx` carries the [`Interrupt`] that signal
//! handling sets, which long loops ask between two items.

mod interrupt;
mod render;

pub use interrupt::{Interrupt, Interrupted};
pub use render::{Bar, ColorChoice, LogFormat, Verbosity, renderer};

use serde::Serialize;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// The stages of a build in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Turning flags and configuration into a plan.
    Plan,
    /// Fetching the base image.
    Image,
    /// Unpacking the image and installing the build tools.
    Rootfs,
    /// Bringing Spack and the recipes.
    Sources,
    /// Spack solves the environment.
    Concretize,
    /// Spack brings the source archives.
    Fetch,
    /// Spack builds and installs.
    Install,
    /// The staged copy is pruned, stripped and made relocatable.
    Relocate,
    /// The archive is written, hashed and signed.
    Package,
    /// The finished package is checked.
    Verify,
    /// The package is sent to where others find it.
    Publish,
}

impl Stage {
    /// The word shown to people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Image => "image",
            Self::Rootfs => "rootfs",
            Self::Sources => "spack",
            Self::Concretize => "concretize",
            Self::Fetch => "fetch",
            Self::Install => "install",
            Self::Relocate => "relocate",
            Self::Package => "package",
            Self::Verify => "verify",
            Self::Publish => "publish",
        }
    }
}

/// One thing that happened. Field units: bytes for sizes, seconds for times.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A stage begins.
    StageStarted {
        /// Which.
        stage: Stage,
        /// What exactly, in a few words.
        detail: String,
    },
    /// A stage ended well.
    StageDone {
        /// Which.
        stage: Stage,
        /// What came of it, in a few words.
        detail: String,
        /// Wall time.
        seconds: f64,
        /// True when it was taken from the cache.
        cached: bool,
    },
    /// Progress within a stage; `total` is 0 when it is not known.
    Progress {
        /// Which.
        stage: Stage,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// The unit: `bytes`, `files`, `packages`.
        unit: &'static str,
        /// What is worked on now.
        current: String,
    },
    /// A Spack package changed its state.
    Package {
        /// Name and version.
        name: String,
        /// `building`, `phase NAME`, `installed`, `from cache`, `failed`.
        state: String,
        /// Packages done.
        done: usize,
        /// Packages in all, 0 when not known.
        total: usize,
    },
    /// Something worth knowing.
    Note {
        /// The text, one line.
        text: String,
    },
    /// Which file or rule decided something, for `--verbose`.
    Detail {
        /// The text, one line.
        text: String,
    },
    /// Something that may surprise later.
    Warning {
        /// The text, one line.
        text: String,
    },
    /// A log file that can be followed.
    LogFile {
        /// Which stage writes it.
        stage: Stage,
        /// Where it is.
        path: PathBuf,
    },
    /// A line of a program's output, for `--verbose`.
    Output {
        /// Which stage's program.
        stage: Stage,
        /// The line without its end.
        line: String,
    },
}

/// Takes events. Implementations must be quick and must not fail.
pub trait Reporter: Send + Sync {
    /// Takes one event.
    fn event(&self, event: &Event);
    /// Removes anything drawn that moves, so that plain text can follow.
    fn finish(&self) {}
}

/// A reporter that drops everything, for library users and tests.
pub struct Silent;

impl Reporter for Silent {
    fn event(&self, _event: &Event) {}
}

/// What every stage is given: where to report, and whether to stop.
#[derive(Clone)]
pub struct Ctx {
    /// Where events go.
    pub reporter: Arc<dyn Reporter>,
    /// Set when the user or the system wants the program to end.
    pub interrupt: Interrupt,
}

impl Ctx {
    /// A context that reports nowhere and is never interrupted.
    pub fn silent() -> Self {
        Self { reporter: Arc::new(Silent), interrupt: Interrupt::new() }
    }

    /// Reports one event.
    pub fn event(&self, event: &Event) {
        self.reporter.event(event);
    }

    /// Reports something worth knowing.
    pub fn note(&self, text: impl Into<String>) {
        self.event(&Event::Note { text: text.into() });
    }

    /// Reports which file or rule decided something, to those who ask with `--verbose`.
    pub fn detail(&self, text: impl Into<String>) {
        self.event(&Event::Detail { text: text.into() });
    }

    /// Reports something that may surprise later.
    pub fn warn(&self, text: impl Into<String>) {
        self.event(&Event::Warning { text: text.into() });
    }

    /// Reports that a stage begins, and returns what reports its end.
    pub fn stage(&self, stage: Stage, detail: impl Into<String>) -> StageTimer<'_> {
        self.event(&Event::StageStarted { stage, detail: detail.into() });
        StageTimer { ctx: self, stage, start: std::time::Instant::now() }
    }

    /// An error when the program has been told to stop.
    pub fn check(&self) -> Result<(), Interrupted> {
        self.interrupt.check()
    }
}

/// Measures a stage from [`Ctx::stage`] to [`StageTimer::done`].
pub struct StageTimer<'a> {
    ctx: &'a Ctx,
    stage: Stage,
    start: std::time::Instant,
}

impl StageTimer<'_> {
    /// The stage ended well by doing the work.
    pub fn done(self, detail: impl Into<String>) {
        self.end(detail.into(), false);
    }

    /// The stage's result was found in the cache.
    pub fn cached(self, detail: impl Into<String>) {
        self.end(detail.into(), true);
    }

    fn end(self, detail: String, cached: bool) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.ctx.event(&Event::StageDone { stage: self.stage, detail, seconds, cached });
    }
}

/// An error and its causes in one line, without saying the same twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
