//! Where a build has its install tree and its views, by the paths that the sandbox shows: what of a compiled-in path is the
//! folder of a package, which in the finished package is the view.
//!
//! ```text
//! ROOT/store/zlib-1.3-HASH/lib    ROOT/view/ID/lib    ROOT/view/._ID/HASH/lib        ROOT/stage/x/zlib.c
//! ^-----------------------^       ^----------^        ^-----------------^            in no package's folder
//! ```

use super::text::MapPath;
use crate::plan::inside;

/// The folders of a build. Absolute paths without a slash at their end; the latter two are below the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout<'a> {
    /// The mount that holds all of it: what no file of a package may name.
    pub root: &'a str,
    /// The install tree: a folder a package.
    pub store: &'a str,
    /// The folder of views, and of what they link to.
    pub views: &'a str,
}

impl Layout<'static> {
    /// That of our builds.
    pub const BUILD: Self = Self { root: inside::ROOT, store: inside::INSTALL_TREE, views: inside::VIEWS };
}

impl Layout<'_> {
    /// [`MapPath::prefix_len`] where it is the folder of a package or a view; `None` for any other path of the build.
    pub fn folder_len(&self, text: &[u8]) -> Option<usize> {
        let component = |from: usize| {
            let tail = &text[from..];
            let end = |b: &u8| !(b.is_ascii_alphanumeric() || b"._+-@=".contains(b));
            from + tail.iter().position(end).unwrap_or(tail.len())
        };
        let below = |folder: &str| text.starts_with(folder.as_bytes()) && text.get(folder.len()) == Some(&b'/');
        if below(self.store) {
            return Some(component(self.store.len() + 1));
        }
        if !below(self.views) {
            return None;
        }
        let start = self.views.len() + 1;
        let first = component(start);
        // The view itself, or the folder behind it: `._view/HASH`.
        if text[start..].starts_with(b"._") && text.get(first) == Some(&b'/') {
            return Some(component(first + 1));
        }
        Some(first)
    }
}

impl MapPath for Layout<'_> {
    fn prefix_len(&self, text: &[u8]) -> usize {
        self.folder_len(text).unwrap_or(self.root.len())
    }
}
