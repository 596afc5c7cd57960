//! Flags of the verbs that make a sandbox: whose ids are in it, and what becomes of what is written to its rootfs.

use crate::config::Settings;
use clap::Args;

/// How a sandbox is made, beside its backend.
#[derive(Debug, Clone, Default, Args)]
pub struct ModeArgs {
    /// Whose the files of the rootfs are: single (all yours) or range (as the image says, by newuidmap and your
    /// subordinate ids) [default: single]
    #[arg(long, value_name = "WHOSE")]
    pub ownership: Option<String>,
    /// Let the rootfs be written, in a layer that is thrown away: auto (the first that works here), overlay, fuse-overlayfs or
    /// copy; none keeps it read-only [default: none]
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub writable: Option<String>,
}

impl ModeArgs {
    /// As settings.
    pub fn settings(&self) -> Settings {
        Settings { ownership: self.ownership.clone(), writable: self.writable.clone(), ..Settings::default() }
    }
}
