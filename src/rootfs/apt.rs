//! Where apt takes packages from while a rootfs is prepared: the image's own sources, a site's mirror in their place, or
//! a sources file of the site.
//!
//! The image's files are read and never changed: apt is given a folder of its own for the run
//! (`Dir::Etc::sourceparts`), so a prepared rootfs does not remember a mirror. Formats: sources.list(5), both the
//! one-line form and deb822.

use super::tree::{self, Tree};
use regex::{Captures, Regex};
use std::path::Path;
use std::sync::LazyLock;

/// An address of one of the distributions' own archives: the last part of its path says which.
#[allow(clippy::expect_used)] // a constant, and a test uses it
static ARCHIVE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:https?|ftp|file)://\S*/(ubuntu-ports|ubuntu|debian-security|debian)/?(\s|$)").expect("a constant")
});

/// A sources file: its name, which tells apt the form, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// `NAME.list` for the one-line form, `NAME.sources` for deb822.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// Larger files are no lists of sources.
const MAX_SOURCES: u64 = 1 << 20;

/// Reads the sources of an unpacked image. Only plain files count: a symlink of an image, also one on the way, is not
/// followed on the host.
pub fn of_image(root: &Path) -> std::io::Result<Vec<Sources>> {
    let tree = Tree::open(root)?;
    let mut found = Vec::new();
    for (dir, only) in [("etc/apt", Some("sources.list")), ("etc/apt/sources.list.d", None)] {
        // The descriptor is good for names only; listing needs another one.
        let Ok(dir) = tree.dir(dir.as_bytes()).and_then(|dir| tree::open_dir(&dir, b".")) else { continue };
        let mut names: Vec<String> = match only {
            Some(name) => vec![name.to_owned()],
            None => tree::list(&dir)?.into_iter().filter_map(|(name, _)| String::from_utf8(name).ok()).collect(),
        };
        names.sort();
        for name in names {
            let known = Path::new(&name).extension().is_some_and(|e| e == "list" || e == "sources");
            if let (true, Some(text)) = (known, tree::read_text(&dir, name.as_bytes(), MAX_SOURCES)?) {
                found.push(Sources { name, text });
            }
        }
    }
    Ok(found)
}

/// A site's sources as a file: deb822 when it has a `Types:` field, else the one-line form.
pub fn of_site(text: &str) -> Sources {
    let deb822 = text.lines().any(|line| line.to_ascii_lowercase().starts_with("types:"));
    Sources { name: format!("site.{}", if deb822 { "sources" } else { "list" }), text: text.to_owned() }
}

/// Puts `mirror` in the place of every archive of the distribution: `.../ubuntu`, `.../ubuntu-ports` and `.../debian` become the
/// mirror, `.../debian-security` the mirror with `-security` at its end, as mirrors of Debian are laid out. Other
/// addresses and comments stay. Returns how many addresses were replaced.
pub fn through_mirror(sources: &mut [Sources], mirror: &str) -> usize {
    let mirror = mirror.trim_end_matches('/');
    let mut replaced = 0;
    for file in sources {
        let lines: Vec<String> = file
            .text
            .lines()
            .map(|line| {
                if line.trim_start().starts_with('#') {
                    return line.to_owned();
                }
                let new = ARCHIVE.replace_all(line, |found: &Captures<'_>| {
                    replaced += 1;
                    let security = if found[1].ends_with("-security") { "-security" } else { "" };
                    format!("{mirror}{security}{}", &found[2])
                });
                new.into_owned()
            })
            .collect();
        file.text = lines.join("\n") + "\n";
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_takes_the_place_of_the_archives_alone() {
        let ubuntu = "Types: deb\nURIs: http://archive.ubuntu.com/ubuntu/\nSuites: noble noble-updates\n\
                      # URIs: http://archive.ubuntu.com/ubuntu/\n\nTypes: deb\nURIs: http://security.ubuntu.com/ubuntu/\n\
                      Suites: noble-security\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n";
        let debian = "deb [signed-by=/k.gpg] https://deb.debian.org/debian bookworm main\n\
                      deb http://deb.debian.org/debian-security bookworm-security main\n\
                      deb https://packages.example.org/tools/debian-extras stable main\n";
        let mut sources = vec![
            Sources { name: "ubuntu.sources".into(), text: ubuntu.into() },
            Sources { name: "sources.list".into(), text: debian.into() },
        ];
        assert_eq!(through_mirror(&mut sources, "https://mirror.site/pool/debian/"), 4);
        let text = &sources[0].text;
        assert_eq!(text.matches("URIs: https://mirror.site/pool/debian\n").count(), 2, "{text}");
        assert!(text.contains("# URIs: http://archive.ubuntu.com/ubuntu/\n"), "comments stay: {text}");
        assert_eq!(
            sources[1].text,
            "deb [signed-by=/k.gpg] https://mirror.site/pool/debian bookworm main\n\
             deb https://mirror.site/pool/debian-security bookworm-security main\n\
             deb https://packages.example.org/tools/debian-extras stable main\n"
        );
    }

    #[test]
    fn the_form_of_a_sites_file_gives_its_name() {
        assert_eq!(of_site("types: deb\nURIs: x\n").name, "site.sources");
        assert_eq!(of_site("# Types: deb\ndeb http://x y main\n").name, "site.list");
    }

    #[test]
    fn links_of_an_image_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let apt = root.path().join("etc/apt/sources.list.d");
        fs_err::create_dir_all(&apt).unwrap();
        fs_err::write(apt.join("a.sources"), "Types: deb\n").unwrap();
        fs_err::write(apt.join("a.sources.save"), "no").unwrap();
        fs_err::os::unix::fs::symlink("/etc/passwd", apt.join("b.list")).unwrap();
        let names: Vec<_> = of_image(root.path()).unwrap().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["a.sources"]);

        // Nor on the way: `etc` of another tree is not this image's.
        let other = tempfile::tempdir().unwrap();
        fs_err::os::unix::fs::symlink(root.path().join("etc"), other.path().join("etc")).unwrap();
        assert_eq!(of_image(other.path()).unwrap(), []);
        // A pipe that nobody writes to, and a file without an end, are no sources.
        let dir = fs_err::File::open(&apt).unwrap();
        rustix::fs::mknodat(&dir, "p.list", rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        fs_err::File::create(apt.join("huge.list")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(of_image(root.path()).unwrap().len(), 1);
    }
}
