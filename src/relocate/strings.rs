//! Paths that are compiled into programs: what a `rewrite` rule says about them.
//!
//! In a binary nothing may move, and code may know how long a string is. So a path is written over another one with slashes
//! before it, as many as there are bytes to spare: `/////etc/ssl/certs` is `/etc/ssl/certs`, and its end stays where it was. (Three
//! slashes or more at the begin of a path are one: POSIX.1-2017, 4.13 "Pathname Resolution". Linux takes two for one too.)
//!
//! A path of the host is written when the package is made. The folder of the package itself is only known when it is
//! installed: where it belongs is noted, with what stands there.

use super::rules::{Rules, To};
use super::text::MapPath;
use super::verify::{LONGEST, printable};
use crate::fsutil::write_over;
use memchr::memmem::Finder;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A place in a binary where `install` writes the folder of the view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, relative to the view.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: usize,
    /// The folder that stands there: as many bytes may be written.
    pub text: String,
    /// What goes without it, in words.
    pub reason: String,
}

/// A path that a rule says and for which there is no room.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the rule for `{glob}` writes `{to}` over `{text}` at offset {offset}, which is shorter; correct the rule")]
pub struct TooLong {
    /// The rule's pattern.
    pub glob: String,
    /// What it says.
    pub to: String,
    /// What stands in the file.
    pub text: String,
    /// Where.
    pub offset: usize,
}

/// How long the folder at the begin of a compiled-in text is, in bytes, that `install` can write over; `None` where it is in no
/// package's folder (nothing of the view is there), or where no end is in sight, so that nothing is known of what follows.
pub(super) fn folder_len(text: &str, root: &[u8], map: &dyn MapPath) -> Option<usize> {
    let length = map.prefix_len(text.as_bytes()).min(text.len());
    (text.len() < LONGEST && length > root.len()).then_some(length)
}

/// Does what the rules say about this file; says what is left to `install`. Strings that no rule is about stay.
pub fn rewrite(
    rules: &Rules,
    path: &Path,
    bytes: &mut [u8],
    root: &[u8],
    map: &dyn MapPath,
) -> Result<Vec<Place>, TooLong> {
    let finder = Finder::new(root);
    let found: Vec<usize> = finder.find_iter(bytes).collect();
    let mut places = Vec::new();
    for offset in found {
        let text = printable(&bytes[offset..]);
        // Where no end is in sight, nothing is known of what would be written over.
        let Some(rule) = rules.rewrite_of(path, &text).filter(|_| text.len() < LONGEST) else { continue };
        match &rule.to {
            To::Path(to) => {
                let over = &mut bytes[offset..offset + text.len()];
                write_over(over, to.as_bytes()).ok_or_else(|| TooLong {
                    glob: rule.glob().to_owned(),
                    to: to.clone(),
                    text: text.clone(),
                    offset,
                })?;
            }
            To::View => {
                let Some(length) = folder_len(&text, root, map) else { continue };
                places.push(Place {
                    path: path.to_owned(),
                    offset,
                    text: text[..length].to_owned(),
                    reason: rule.reason().to_owned(),
                });
            }
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::RelocateRules;

    struct Store;

    impl MapPath for Store {
        fn prefix_len(&self, text: &[u8]) -> usize {
            text.iter().enumerate().filter(|(_, b)| **b == b'/').nth(3).map_or(text.len(), |(at, _)| at)
        }
    }

    fn rules(text: &str) -> Rules {
        let site: RelocateRules = toml::from_str(text).unwrap();
        Rules::of_site(&site).unwrap()
    }

    #[test]
    fn a_path_of_the_host_is_written_at_once_and_nothing_moves() {
        let rules = rules(
            "[[rewrite]]\nglob = 'lib/x'\nstring = '*/etc/certs'\nto = '/etc/ssl/certs'\nreason = 'the host has them'",
        );
        let mut bytes = b"\x01/b/store/openssl-3-hash/etc/certs\0/b/store/openssl-3-hash/etc/other\0".to_vec();
        assert_eq!(rewrite(&rules, Path::new("lib/x"), &mut bytes, b"/b", &Store), Ok(vec![]));
        assert_eq!(bytes, b"\x01////////////////////etc/ssl/certs\0/b/store/openssl-3-hash/etc/other\0");
        let mut same = bytes.clone();
        assert_eq!(rewrite(&rules, Path::new("lib/x"), &mut same, b"/b", &Store), Ok(vec![]));
        assert_eq!(same, bytes, "twice is once");
        let mut other = b"/b/store/openssl-3-hash/etc/certs\0".to_vec();
        assert_eq!(rewrite(&rules, Path::new("lib/y"), &mut other, b"/b", &Store), Ok(vec![]));
        assert!(other.starts_with(b"/b/store"), "another file");
    }

    #[test]
    fn a_long_string_is_seen_to_its_end() {
        let rules = rules("[[rewrite]]\nglob = '*'\nstring = '*/certs'\nto = '/etc/ssl/certs'\nreason = 'r'");
        let long = format!("/b/store/{}/certs", "x".repeat(600));
        let mut bytes = format!("{long}\0rest").into_bytes();
        assert_eq!(rewrite(&rules, Path::new("lib/x"), &mut bytes, b"/b", &Store), Ok(vec![]));
        assert!(bytes.starts_with(b"////") && bytes.ends_with(b"///etc/ssl/certs\0rest"));
        let mut endless = format!("/b/store/{}/certs", "x".repeat(LONGEST)).into_bytes();
        let before = endless.clone();
        assert_eq!(rewrite(&rules, Path::new("lib/x"), &mut endless, b"/b", &Store), Ok(vec![]));
        assert_eq!(endless, before);
    }

    #[test]
    fn what_has_no_room_is_an_error_and_changes_nothing() {
        let rules = rules("[[rewrite]]\nglob = '*'\nto = '/a/path/that/is/too/long'\nreason = 'r'");
        let mut bytes = b"/b/store/x/etc\0".to_vec();
        let error = rewrite(&rules, Path::new("lib/x"), &mut bytes, b"/b", &Store).unwrap_err();
        assert_eq!((error.offset, error.text.as_str()), (0, "/b/store/x/etc"));
        assert_eq!(bytes, b"/b/store/x/etc\0");
    }

    #[test]
    fn the_place_of_the_package_is_left_to_install() {
        let rules = rules("[[rewrite]]\nglob = 'lib/p'\nto = '{view}'\nreason = 'its help texts'");
        let mut bytes = b"..../b/store/pmix-4-hash/share/x\0".to_vec();
        let places = rewrite(&rules, Path::new("lib/p"), &mut bytes, b"/b", &Store).unwrap();
        assert_eq!(places.len(), 1);
        assert_eq!((places[0].offset, places[0].text.as_str()), (4, "/b/store/pmix-4-hash"));
        assert_eq!(write_over(&mut bytes[4..24], b"/opt/s/view"), Some(()));
        let written = b"....//////////opt/s/view/share/x\0";
        assert_eq!(bytes, written);
        assert_eq!(write_over(&mut bytes[4..24], b"/a/folder/whose/name/is/longer"), None);
        assert_eq!(bytes, written);
    }
}
