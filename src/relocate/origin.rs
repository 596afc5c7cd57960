//! Where the view and the store of a build are, on the host and inside the sandbox, and what a path of the build is called in
//! the view.

use super::layout::Layout;
use super::stage::RelocateError;
use super::text::MapPath;
use crate::fsutil;
use crate::plan::inside;
use fs_err as fs;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where the view and the store are, on the host and inside the sandbox.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Folder of the host that was mounted at `inside_root`.
    pub host_root: PathBuf,
    /// The mount point inside the sandbox.
    pub inside_root: String,
    /// The install tree inside, below `inside_root`.
    pub inside_store: String,
    /// The folder inside, below `inside_root`, that holds the view and what it links to.
    pub inside_views: String,
    /// The view inside; it may be a symlink.
    pub inside_view: String,
}

impl Origin {
    /// The view `inside_view` of a slot, the folder of the host that the sandbox has at [`inside::ROOT`].
    pub fn of_slot(slot: &Path, inside_view: &str) -> Self {
        Self {
            host_root: slot.to_owned(),
            inside_root: inside::ROOT.to_owned(),
            inside_store: inside::INSTALL_TREE.to_owned(),
            inside_views: fsutil::parent_of(Path::new(inside_view)).display().to_string(),
            inside_view: inside_view.to_owned(),
        }
    }

    /// The folders inside.
    fn layout(&self) -> Layout<'_> {
        Layout { root: &self.inside_root, store: &self.inside_store, views: &self.inside_views }
    }

    /// The host's path for a path inside the sandbox.
    fn on_host(&self, inside: &Path) -> Option<PathBuf> {
        fsutil::join_below(&self.host_root, inside.strip_prefix(&self.inside_root).ok()?)
    }

    /// The view's real folder on the host: Spack makes the view a symlink to a folder named by its content.
    pub(super) fn view(&self) -> Result<PathBuf, RelocateError> {
        let view = Path::new(&self.inside_view);
        let missing = |path: &Path| RelocateError::NoView { path: path.to_owned() };
        let host = self.on_host(view).ok_or_else(|| missing(view))?;
        let kind = fs::symlink_metadata(&host).map_err(|_| missing(&host))?;
        if !kind.is_symlink() {
            return Ok(host);
        }
        let target = fsutil::parent_of(view).join(fs::read_link(&host)?);
        let real = self.on_host(&target).ok_or_else(|| missing(&target))?;
        if real.is_dir() { Ok(real) } else { Err(missing(&real)) }
    }

    /// The path in the view for an absolute path of the build; `None` for paths outside store and views.
    pub(super) fn in_view(&self, path: &[u8]) -> Option<PathBuf> {
        let rest = path.get(self.layout().folder_len(path)?..)?;
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        Some(normalise(Path::new(OsStr::from_bytes(rest))))
    }
}

/// Removes `.` and `x/..` from a relative path, by name.
fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

impl MapPath for Origin {
    fn prefix_len(&self, text: &[u8]) -> usize {
        self.layout().prefix_len(text)
    }
}

#[cfg(test)]
impl Origin {
    /// That of the units' tests: a build below `/sfb` whose view is `x`, and which lies at `host`.
    pub(super) fn of_tests(host: &Path) -> Self {
        Self {
            host_root: host.to_owned(),
            inside_root: "/sfb".into(),
            inside_store: "/sfb/store".into(),
            inside_views: "/sfb/view".into(),
            inside_view: "/sfb/view/x".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_paths_map_into_the_view() {
        let origin = Origin::of_tests(Path::new("/h"));
        for (path, want) in [
            ("/sfb/store/zlib-1.3-abc/lib", Some("lib")),
            ("/sfb/store/zlib-1.3-abc", Some("")),
            ("/sfb/view/x/lib/slurm", Some("lib/slurm")),
            ("/sfb/view/._x/hash/lib", Some("lib")),
            ("/sfb/store/zlib/lib/../lib64", Some("lib64")),
            ("/sfb/stage/tmp", None),
            ("/usr/lib", None),
        ] {
            assert_eq!(origin.in_view(path.as_bytes()), want.map(PathBuf::from), "{path}");
        }
    }
}
