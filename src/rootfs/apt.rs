//! Where apt takes packages from while a rootfs is prepared: the image's own sources, a site's mirror in their place, or
//! a sources file of the site.
//!
//! The image's files are read and never changed: apt is given a folder of its own for the run
//! (`Dir::Etc::sourceparts`), so a prepared rootfs does not remember a mirror. Formats: sources.list(5), both the
//! one-line form and deb822.

use super::packages::{Given, Sources, Step, plain_files, words};
use regex::{Captures, Regex};
use std::path::Path;
use std::sync::LazyLock;

/// Where sources are seen inside, when they are not the image's.
pub const INSIDE: &str = "/run/slurm-factory-apt";

/// Stands for the time of a snapshot in a mirror's address.
const SNAPSHOT: &str = "{snapshot}";

/// An address of one of the distributions' own archives: the last part of its path says which.
#[allow(clippy::expect_used)] // a constant, and a test uses it
static ARCHIVE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:https?|ftp|file)://\S*/(ubuntu-ports|ubuntu|debian-security|debian)/?(\s|$)").expect("a constant")
});

/// The sources of an unpacked image.
pub fn of_image(root: &Path) -> std::io::Result<Vec<Sources>> {
    let mut found = plain_files(root, "etc/apt", &["list"])?;
    found.retain(|file| file.name == "sources.list");
    found.extend(plain_files(root, "etc/apt/sources.list.d", &["list", "sources"])?);
    Ok(found)
}

/// A site's sources as a file: deb822 when it has a `Types:` field, else the one-line form.
pub fn of_site(text: &str) -> Sources {
    let deb822 = text.lines().any(|line| line.to_ascii_lowercase().starts_with("types:"));
    Sources { name: format!("site.{}", if deb822 { "sources" } else { "list" }), text: text.to_owned() }
}

/// Puts `mirror` in the place of every archive of the distribution: `.../ubuntu`, `.../ubuntu-ports` and `.../debian` become the
/// mirror, `.../debian-security` the mirror with `-security` at its end, as mirrors of Debian are laid out (see
/// [`address`]). Other addresses and comments stay. Returns how many addresses were replaced.
pub fn through_mirror(sources: &mut [Sources], mirror: &str, snapshot: Option<&str>) -> usize {
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
                    format!("{}{}", address(mirror, security, snapshot), &found[2])
                });
                new.into_owned()
            })
            .collect();
        file.text = lines.join("\n") + "\n";
    }
    replaced
}

/// A mirror's address for an archive whose name ends in `suffix`, at the time of a snapshot: the suffix goes to the end, but
/// before the time when that is last (`https://mirror.site/debian/{snapshot}`), as in both public snapshot archives.
pub fn address(mirror: &str, suffix: &str, snapshot: Option<&str>) -> String {
    let mirror = mirror.trim_end_matches('/');
    let (base, time) = match mirror.strip_suffix(SNAPSHOT) {
        Some(base) => (base.trim_end_matches('/'), snapshot.map(|time| format!("/{time}")).unwrap_or_default()),
        None => (mirror, String::new()),
    };
    format!("{base}{suffix}{time}").replace(SNAPSHOT, snapshot.unwrap_or_default())
}

/// See [`super::packages::steps`].
pub fn steps(given: Given<'_>) -> (Vec<Step>, Vec<Step>) {
    // A rootfs is thrown away when the run is cut, so dpkg need not wait for the disk after each file. apt's own
    // user is an id that is not mapped.
    let mut apt =
        words("apt-get -q -o APT::Sandbox::User=root -o Dpkg::Options::=--force-unsafe-io -o Acquire::Retries=3");
    // Without it an archive that cannot be reached is a warning, and every package is missing later.
    apt.extend(words("-o APT::Update::Error-Mode=any"));
    let mut option = |text: String| apt.extend(["-o".to_owned(), text]);
    if given.own_sources {
        option("Dir::Etc::sourcelist=/dev/null".to_owned());
        option(format!("Dir::Etc::sourceparts={INSIDE}"));
    }
    if let Some(bundle) = given.ca_bundle {
        // apt asks neither OpenSSL nor its variables.
        option(format!("Acquire::https::CaInfo={bundle}"));
    }
    if given.snapshot {
        // A Release file says how long it is the newest one. An old one is what was asked for; it is signed all the same.
        option("Acquire::Check-Valid-Until=false".to_owned());
    }
    let with = |words: &[&str]| apt.iter().cloned().chain(words.iter().map(|w| (*w).to_owned())).collect::<Vec<_>>();
    let mut install = with(&["install", "-y", "--no-install-recommends"]);
    install.extend(given.packages.iter().cloned());
    let before =
        vec![Step { name: "apt-get update", argv: with(&["update"]) }, Step { name: "apt-get install", argv: install }];
    let after = vec![
        Step { name: "apt-get clean", argv: with(&["clean"]) },
        // Its files are named after the mirror.
        Step { name: "removing apt's lists", argv: words("rm -rf /var/lib/apt/lists") },
    ];
    (before, after)
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
        assert_eq!(through_mirror(&mut sources, "https://mirror.site/pool/debian/", None), 4);
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
    fn the_time_of_a_snapshot_stands_where_the_archives_have_it() {
        let time = Some("20260101T000000Z");
        for (mirror, suffix, want) in [
            ("https://snap/archive/debian/{snapshot}", "", "https://snap/archive/debian/20260101T000000Z"),
            (
                "https://snap/archive/debian/{snapshot}/",
                "-security",
                "https://snap/archive/debian-security/20260101T000000Z",
            ),
            ("https://site/{snapshot}/debian", "-security", "https://site/20260101T000000Z/debian-security"),
            ("/srv/{snapshot}/debian", "", "/srv/20260101T000000Z/debian"),
        ] {
            assert_eq!(address(mirror, suffix, time), want);
        }
        assert_eq!(address("https://site/debian/", "-security", None), "https://site/debian-security");
    }

    #[test]
    fn an_old_release_file_counts_for_a_snapshot_alone() {
        let line = |snapshot| {
            let given = Given { packages: &[], own_sources: true, ca_bundle: None, snapshot };
            steps(given).0[0].argv.join(" ")
        };
        assert!(line(true).contains("Check-Valid-Until=false"));
        assert!(!line(false).contains("Valid-Until") && !line(false).contains("CaInfo"));
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
