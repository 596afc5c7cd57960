//! What apt and dnf have in common, as the rest of the prepare stage sees them: the files that say where packages come
//! from, the steps that install a list, and the command that lists what is installed.

use super::tree::{self, Tree};
use super::{apt, dnf};
use crate::catalog::Family;
use std::path::Path;

/// A file that says where packages come from: its name, which tells the package manager the form, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// `NAME.list`, `NAME.sources` or `NAME.repo`.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// One command inside the sandbox.
#[derive(Debug)]
pub struct Step {
    /// What errors call it.
    pub name: &'static str,
    /// The command.
    pub argv: Vec<String>,
}

/// What the package manager is told.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// Packages to install.
    pub packages: &'a [String],
    /// Whether the sources are seen at [`inside`], in place of the image's.
    pub own_sources: bool,
    /// Where a CA bundle of the host is seen inside.
    pub ca_bundle: Option<&'a str>,
    /// Whether the archive is looked at as it was at an earlier time.
    pub snapshot: bool,
}

/// The folder inside where sources that are not the image's are seen.
pub fn inside(family: Family) -> &'static str {
    match family {
        Family::Apt => apt::INSIDE,
        Family::Dnf => dnf::INSIDE,
    }
}

/// What installs the packages, and what then removes traces of where they came from.
pub fn steps(family: Family, given: Given<'_>) -> (Vec<Step>, Vec<Step>) {
    match family {
        Family::Apt => apt::steps(given),
        Family::Dnf => dnf::steps(given),
    }
}

/// The command that prints `NAME=VERSION` for each installed package.
pub fn list(family: Family) -> Vec<String> {
    match family {
        Family::Apt => words("dpkg-query -W -f ${Package}=${Version}\\n"),
        Family::Dnf => words("rpm -qa --qf %{NAME}=%{EVR}\\n"),
    }
}

/// The sources to use in place of the image's; `Ok(None)` for the image's own as they are, and `Err(None)` when a mirror was
/// named and nothing is there that it could stand for.
///
/// The site's text is used if there is one, else the image's; a mirror then takes the place of the distribution's
/// addresses in it. A folder as a mirror must be absolute.
pub fn sources(
    family: Family,
    site: Option<&str>,
    mirror: Option<&str>,
    snapshot: Option<&str>,
    root: &Path,
) -> Result<Option<Vec<Sources>>, Option<std::io::Error>> {
    let site = site.map(|text| match family {
        Family::Apt => apt::of_site(text),
        Family::Dnf => dnf::of_site(text),
    });
    let Some(mirror) = mirror else { return Ok(site.map(|file| vec![file])) };
    let mut sources = match site {
        Some(file) => vec![file],
        None => match family {
            Family::Apt => apt::of_image(root)?,
            Family::Dnf => dnf::of_image(root)?,
        },
    };
    let address = if mirror.starts_with('/') { format!("file://{mirror}") } else { mirror.to_owned() };
    let replaced = match family {
        Family::Apt => apt::through_mirror(&mut sources, &address, snapshot),
        Family::Dnf => dnf::through_mirror(&mut sources, &address),
    };
    if replaced == 0 { Err(None) } else { Ok(Some(sources)) }
}

/// Folders of the host that a mirror means, to be seen inside at the same path.
pub fn folders(family: Family, mirror: &str, snapshot: Option<&str>) -> Vec<String> {
    let candidates = match family {
        Family::Apt => ["", "-security"].map(|archive| apt::address(mirror, archive, snapshot)).to_vec(),
        Family::Dnf => vec![mirror.to_owned()],
    };
    candidates.into_iter().filter(|f| Path::new(f).is_absolute() && Path::new(f).is_dir()).collect()
}

/// Larger files are no lists of sources.
const MAX_SOURCES: u64 = 1 << 20;

/// Plain files of an image's folder with one of these ends, by name. A symlink of the image, also one on the way, is not
/// followed on the host.
pub fn plain_files(root: &Path, folder: &str, ends: &[&str]) -> std::io::Result<Vec<Sources>> {
    let tree = Tree::open(root)?;
    // The descriptor is good for names only; listing needs another one.
    let Ok(dir) = tree.dir(folder.as_bytes()).and_then(|dir| tree::open_dir(&dir, b".")) else { return Ok(Vec::new()) };
    let listed = tree::list(&dir)?.into_iter();
    let mut names: Vec<String> = listed.filter_map(|(name, _)| String::from_utf8(name).ok()).collect();
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let known = Path::new(&name).extension().is_some_and(|e| ends.iter().any(|end| e == *end));
        if let (true, Some(text)) = (known, tree::read_text(&dir, name.as_bytes(), MAX_SOURCES)?) {
            found.push(Sources { name, text });
        }
    }
    Ok(found)
}

/// A command of words without spaces.
pub fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}
