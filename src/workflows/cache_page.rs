//! `index.html` of a published cache: what is there, who signed it, and how it is used.
//!
//! A pure function from a listing to text. The page has no script, loads nothing from anywhere, and names its files
//! relative to itself, so it is the same from S3, a web server and a disk. Every value is escaped; one that the
//! template does not know is an error.

use crate::sign::Fingerprint;
use humansize::{BINARY, format_size};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use serde::Serialize;

const TEMPLATE: &str = include_str!("../../templates/cache.html");

/// What a published place holds.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// The page's heading.
    pub title: String,
    /// The place as Spack's mirrors name it: `https://...`, `s3://...`, `file:///...`, `oci://...`.
    pub mirror: String,
    /// Who signed.
    pub fingerprint: Fingerprint,
    /// The public key's file, relative to the page.
    pub key_file: String,
    /// Packages, in the order in which they are shown.
    pub packages: Vec<PackageLine>,
    /// Binaries of Spack, in the order in which they are shown.
    pub specs: Vec<SpecLine>,
    /// What to ask Spack for, for instance `slurm@24-11-5-1`.
    pub spec: String,
    /// Program and version that published.
    pub tool: String,
}

/// A finished package.
#[derive(Debug, Clone, Serialize)]
pub struct PackageLine {
    /// Slurm's release.
    pub slurm: String,
    /// The compiler's version.
    pub gcc: String,
    /// The toolchain: the distribution that it was built in.
    pub system: String,
    /// The oldest glibc on which it runs.
    pub glibc: Option<String>,
    /// The archive, relative to the page.
    pub path: String,
    /// In bytes.
    pub bytes: u64,
    /// Of the archive, hexadecimal.
    pub sha256: String,
}

/// A binary of Spack.
#[derive(Debug, Clone, Serialize)]
pub struct SpecLine {
    /// Spack's name.
    pub name: String,
    /// Spack's version.
    pub version: String,
    /// For instance `gcc@13.3.0`.
    pub compiler: String,
    /// DAG hash.
    pub hash: String,
    /// Of the blob, in bytes.
    pub bytes: u64,
}

/// The page.
pub fn render(listing: &Listing) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("cache.html", TEMPLATE)?;
    let packages: Vec<_> = listing
        .packages
        .iter()
        .map(|p| {
            let name = p.path.rsplit('/').next().unwrap_or_default();
            let size = format_size(p.bytes, BINARY);
            context! {
                slurm => &p.slurm, gcc => &p.gcc, system => &p.system, glibc => &p.glibc, sha256 => &p.sha256,
                href => relative(&p.path), name, size,
            }
        })
        .collect();
    let specs: Vec<_> = listing
        .specs
        .iter()
        .map(|s| {
            let hash: String = s.hash.chars().take(7).collect();
            let size = format_size(s.bytes, BINARY);
            context! { name => &s.name, version => &s.version, compiler => &s.compiler, hash, size }
        })
        .collect();
    let commands = [
        format!("spack mirror add --signed slurm {}", shell(&listing.mirror)),
        "spack buildcache keys --install --trust".to_owned(),
        format!("spack install --cache-only {}", shell(&listing.spec)),
    ];
    let values = context! {
        title => &listing.title,
        fingerprint => listing.fingerprint.as_str(),
        key_file => relative(&listing.key_file),
        tool => &listing.tool,
        commands, packages, specs,
    };
    environment.get_template("cache.html")?.render(values).map(|text| text + "\n")
}

/// A word of a shell line: people copy it.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A link below the page: bytes that mean something in a URL are escaped, and no path is taken for a scheme.
fn relative(path: &str) -> Value {
    use std::fmt::Write as _;
    let mut link = String::from("./");
    for byte in path.trim_start_matches('/').bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            link.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(link, "%{byte:02X}");
        }
    }
    // Nothing in it needs an escape of HTML's.
    Value::from_safe_string(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        Listing {
            title: "Slurm at <Site> & friends".into(),
            mirror: "s3://bucket/a b".into(),
            fingerprint: "0123456789ABCDEF0123456789ABCDEF01234567".parse().unwrap(),
            key_file: "keys/site.pub.asc".into(),
            packages: vec![PackageLine {
                slurm: "24.11.5".into(),
                gcc: "13.3.0".into(),
                system: "noble".into(),
                glibc: Some("2.38".into()),
                path: "slurm/24.11/slurm-24.11-gcc13.3.0-software.tar.gz".into(),
                bytes: 123_456_789,
                sha256: "ab".repeat(32),
            }],
            specs: vec![SpecLine {
                name: "munge\"><script>alert(1)</script>".into(),
                version: "0.5.16".into(),
                compiler: "gcc@13.3.0".into(),
                hash: "abcdefghijklmnop".into(),
                bytes: 4096,
            }],
            spec: "slurm@24-11-5-1".into(),
            tool: "slurm-factory 0.1.0".into(),
        }
    }

    #[test]
    fn the_page_is_escaped_loads_nothing_and_links_relative_to_itself() {
        let page = render(&listing()).unwrap();
        assert!(page.contains("Slurm at &lt;Site&gt; &amp; friends") && page.contains("&lt;script&gt;"), "{page}");
        assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("src="), "{page}");
        for word in ["117.74 MiB", "2.38 or newer", "abcdefg</code>", "spack mirror add --signed slurm &#x27;s3:"] {
            assert!(page.contains(word), "no `{word}` in {page}");
        }
        let links = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        assert_eq!(links.clone().count(), 6);
        assert!(links.clone().all(|link| link.starts_with("./") && !link.contains("//")), "{page}");
        assert_eq!(page, render(&listing()).unwrap());
    }

    #[test]
    fn an_empty_cache_has_a_page_and_odd_names_stay_links() {
        let page = render(&Listing { packages: Vec::new(), specs: Vec::new(), ..listing() }).unwrap();
        assert!(page.contains("No package has been published") && !page.contains("<table"), "{page}");
        assert_eq!(relative("a b/c:d?e#f\u{e9}.tar.gz").as_str().unwrap(), "./a%20b/c%3Ad%3Fe%23f%C3%A9.tar.gz");
        assert_eq!(shell("it's"), "'it'\\''s'");
    }
}
