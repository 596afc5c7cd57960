//! Where dnf takes packages from while a rootfs is prepared, and how it is called: the image's own repositories, a site's
//! mirror in their place, or `.repo` files of the site.
//!
//! The image's files are read and never changed: dnf is given a folder of its own for the run (`reposdir`), and writes its
//! logs, which name addresses, where they are gone afterwards. So a prepared rootfs does not remember a mirror.
//!
//! Format of `.repo` files: dnf.conf(5), "Repo Options". Rocky's own name a list of mirrors and, in a comment, the address
//! below which every mirror has the same tree:
//!
//! ```text
//! [baseos]
//! mirrorlist=https://mirrors.rockylinux.org/mirrorlist?arch=$basearch&repo=BaseOS-$releasever
//! #baseurl=http://dl.rockylinux.org/$contentdir/$releasever/BaseOS/$basearch/os/
//! gpgcheck=1
//! ```
//!
//! dnf 4 is what Rocky 8, 9 and 10 have.

use super::packages::{Given, Sources, Step, plain_files, words};
use regex::Regex;
use std::path::Path;
use std::sync::LazyLock;

/// Where repositories are seen inside, when they are not the image's.
pub const INSIDE: &str = "/run/slurm-factory-dnf";

/// An address of the distribution's own repositories: what follows its top folder is the same on every mirror.
#[allow(clippy::expect_used)] // a constant, and a test uses it
static BASE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)^#?\s*baseurl\s*=\s*(?:https?|ftp|file)://\S*?/(?:\$contentdir|pub/rocky|rocky)/(\S+)")
        .expect("a constant")
});

/// The repositories of an unpacked image.
pub fn of_image(root: &Path) -> std::io::Result<Vec<Sources>> {
    plain_files(root, "etc/yum.repos.d", &["repo"])
}

/// A site's repositories as a file.
pub fn of_site(text: &str) -> Sources {
    Sources { name: "site.repo".to_owned(), text: text.to_owned() }
}

/// Puts `mirror` in the place of what the distribution's repositories name: the list of mirrors goes, and the address (in
/// Rocky's files a comment) becomes the mirror's. Repositories of others stay as they are. Returns how many were changed.
pub fn through_mirror(sources: &mut [Sources], mirror: &str) -> usize {
    let mirror = mirror.trim_end_matches('/');
    let mut replaced = 0;
    for file in sources {
        let mut lines: Vec<String> = Vec::new();
        for section in sections(&file.text) {
            let Some((path, [head, rest @ ..])) = below(&section).zip(section.get(..)) else {
                lines.extend(section.iter().map(|line| (*line).to_owned()));
                continue;
            };
            replaced += 1;
            lines.push((*head).to_owned());
            lines.push(format!("baseurl={mirror}/{path}"));
            lines.extend(without_addresses(rest));
        }
        file.text = lines.join("\n") + "\n";
    }
    replaced
}

/// The lines of a file, cut before each `[name]`.
fn sections(text: &str) -> Vec<Vec<&str>> {
    let mut sections: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        match sections.last_mut() {
            Some(section) if !line.starts_with('[') => section.push(line),
            _ => sections.push(vec![line]),
        }
    }
    sections
}

/// The path of a repository below the top of a mirror, when it is the distribution's. An address that counts goes before
/// one in a comment.
fn below(section: &[&str]) -> Option<String> {
    let path = |line: &&str| BASE.captures(line).map(|found| found[1].to_owned());
    let (comments, live): (Vec<&str>, Vec<&str>) = section.iter().partition(|line| line.starts_with('#'));
    if !section.first()?.starts_with('[') {
        return None;
    }
    if live.iter().any(|line| key(line) == "baseurl") {
        return live.iter().find_map(path);
    }
    comments.iter().find_map(path)
}

fn key(line: &str) -> String {
    line.split('=').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The lines but those that say where the repository is, and the lines by which such a list goes on.
fn without_addresses(lines: &[&str]) -> Vec<String> {
    let mut address = false;
    let keep = |line: &&&str| {
        if !line.starts_with([' ', '\t']) {
            address = ["baseurl", "mirrorlist", "metalink"].contains(&key(line).as_str());
        }
        !address
    };
    lines.iter().filter(keep).map(|line| (*line).to_owned()).collect()
}

/// See [`super::packages::steps`].
pub fn steps(given: Given<'_>) -> (Vec<Step>, Vec<Step>) {
    let mut dnf = words("dnf -y --setopt=install_weak_deps=False --setopt=tsflags=nodocs --setopt=keepcache=False");
    // A repository that cannot be reached is an error and not a package that is missing later. Signatures are checked
    // wherever a repository does not say otherwise itself. The log, which holds addresses, goes with the sandbox.
    dnf.extend(words(
        "--setopt=retries=3 --setopt=skip_if_unavailable=False --setopt=gpgcheck=True --setopt=logdir=/tmp",
    ));
    if given.own_sources {
        dnf.push(format!("--setopt=reposdir={INSIDE}"));
    }
    if let Some(bundle) = given.ca_bundle {
        // dnf asks neither OpenSSL nor curl's variables.
        dnf.push(format!("--setopt=sslcacert={bundle}"));
    }
    let mut install = dnf.clone();
    install.push("install".to_owned());
    install.extend(given.packages.iter().cloned());
    let before = vec![Step { name: "dnf install", argv: install }];
    // `dnf clean all` leaves folders named after repositories.
    let after = vec![Step { name: "removing dnf's cache", argv: words("rm -rf /var/cache/dnf /var/cache/yum") }];
    (before, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROCKY: &str = "# rocky.repo\n#baseurl=http://dl.rockylinux.org/$contentdir/x\n\n[baseos]\nname=Rocky Linux $releasever - BaseOS\n\
        mirrorlist=https://mirrors.rockylinux.org/mirrorlist?arch=$basearch&repo=BaseOS-$releasever$rltype\n\
        #baseurl=http://dl.rockylinux.org/$contentdir/$releasever/BaseOS/$basearch/os/\ngpgcheck=1\n";

    fn mirrored(text: &str) -> (usize, String) {
        let mut sources = vec![of_site(text)];
        let count = through_mirror(&mut sources, "https://mirror.site/rocky/");
        (count, sources.remove(0).text)
    }

    #[test]
    fn a_mirror_takes_the_place_of_the_list_of_mirrors() {
        let (count, text) = mirrored(ROCKY);
        assert_eq!(count, 1);
        assert_eq!(
            text,
            "# rocky.repo\n#baseurl=http://dl.rockylinux.org/$contentdir/x\n\n[baseos]\n\
             baseurl=https://mirror.site/rocky/$releasever/BaseOS/$basearch/os/\nname=Rocky Linux $releasever - BaseOS\n\
             #baseurl=http://dl.rockylinux.org/$contentdir/$releasever/BaseOS/$basearch/os/\ngpgcheck=1\n"
        );
    }

    #[test]
    fn an_address_that_counts_is_replaced_with_the_lines_that_follow_it() {
        let (count, text) = mirrored(
            "[crb]\nbaseurl = https://download.rockylinux.org/pub/rocky/9/CRB/x86_64/os/\n  https://two/x\nmetalink=https://m\n\
             enabled=0\n",
        );
        assert_eq!(
            (count, text.as_str()),
            (1, "[crb]\nbaseurl=https://mirror.site/rocky/9/CRB/x86_64/os/\nenabled=0\n")
        );
    }

    #[test]
    fn repositories_of_others_stay() {
        let others = "[site]\nbaseurl=https://site/tools/9/\n#baseurl=http://dl.rockylinux.org/$contentdir/9/x\n\n\
                      [epel]\nmetalink=https://mirrors.fedoraproject.org/metalink?repo=epel-9\n";
        assert_eq!(mirrored(others), (0, others.to_owned()));
    }

    #[test]
    fn signatures_are_checked_and_no_address_is_on_the_command_line() {
        let packages = ["gcc".to_owned()];
        let given = Given { packages: &packages, own_sources: true, ca_bundle: Some("/run/ca"), snapshot: false };
        let (before, _) = steps(given);
        let line = before[0].argv.join(" ");
        for part in ["gpgcheck=True", "sslcacert=/run/ca", "install gcc", "reposdir=/run/slurm-factory-dnf", "-y"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("nogpgcheck") && !line.contains("://"), "{line}");
    }
}
