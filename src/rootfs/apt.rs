//! Where apt takes packages from while a rootfs is prepared: the image's own sources, a site's mirror in their place, or
//! a sources file of the site.
//!
//! The image's files are read and never changed: apt is given a folder of its own for the run
//! (`Dir::Etc::sourceparts`), so a prepared rootfs does not remember a mirror. Formats: sources.list(5), both the
//! one-line form and deb822.

use regex::{Captures, Regex};
use std::path::{Path, PathBuf};
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

/// Reads the sources of an unpacked image. Only plain files count: a symlink of an image is not followed on the host.
pub fn of_image(root: &Path) -> std::io::Result<Vec<Sources>> {
    let plain = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_file());
    let apt = root.join("etc/apt");
    let mut paths: Vec<PathBuf> = vec![apt.join("sources.list")];
    if apt.join("sources.list.d").symlink_metadata().is_ok_and(|m| m.is_dir()) {
        for entry in fs_err::read_dir(apt.join("sources.list.d"))? {
            paths.push(entry?.path());
        }
    }
    paths[1..].sort();
    let mut found = Vec::new();
    for path in paths.into_iter().filter(|path| plain(path)) {
        let known = path.extension().is_some_and(|e| e == "list" || e == "sources");
        if let (true, Some(name)) = (known, path.file_name()) {
            let name = name.to_string_lossy().into_owned();
            found.push(Sources { name, text: fs_err::read_to_string(&path)? });
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
    }
}
