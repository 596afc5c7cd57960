//! `index.html` of a published place: what is there, who signed it, and how it is used.
//!
//! Derived from `index.json` and from which binary caches lie beside the packages, so it says nothing of its own and can be made
//! again at any time. The page has no script, loads nothing from anywhere, and names its files relative to itself, so it is
//! the same from S3, a web server and a disk. Every value is escaped; one that the template does not know is an error.

use super::index::{self, Index, Listed};
use super::{PublishError, key_file};
use crate::buildcache::{beside, manifest::INDEX_MANIFEST};
use crate::process::shell_word;
use crate::publish::{Condition, Keep, Key, Put, Store};
use crate::report::Ctx;
use humansize::{BINARY, format_size};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::collections::BTreeSet;

/// Where it is, below the address.
pub const KEY: &str = "index.html";

const TEMPLATE: &str = include_str!("../../../templates/index.html");

/// By this a page is known for ours; any other is left alone. The template has it.
const GENERATOR: &str = "<meta name=\"generator\" content=\"slurm-factory ";

/// The largest page that is read, bytes.
const LIMIT: u64 = 64 << 20;

/// How often a page that became old while it was written is written again.
const TRIES: usize = 50;

/// Writes the page of the index that is there, unless it is there already. Of two publishers who write at once each looks at the
/// index again after it wrote, so that the page that stays is that of the last index.
pub fn write(store: &dyn Store, ctx: &Ctx) -> Result<(), PublishError> {
    let at = Key::new(KEY)?;
    let mut written = None;
    for _ in 0..TRIES {
        let index = index::read(store, ctx)?.0;
        if written.as_ref() == Some(&index) {
            break;
        }
        let caches = caches(&index, store, ctx)?;
        let page = render(&index, &caches, store.address())?;
        match store.read(&at, LIMIT, ctx)? {
            Some((there, _)) if there == page.as_bytes() => break,
            Some((there, _)) if memchr::memmem::find(&there, GENERATOR.as_bytes()).is_none() => {
                ctx.note(format!("{}/{KEY} was not made by slurm-factory and is left as it is", store.address()));
                break;
            }
            _ => {}
        }
        let how = Put { content_type: "text/html; charset=utf-8", keep: Keep::Briefly, condition: Condition::Always };
        store.put(&at, page.as_bytes(), &how, ctx)?;
        written = Some(index);
    }
    Ok(())
}

/// The folders of packages beside which the packages of Spack were published.
fn caches(index: &Index, store: &dyn Store, ctx: &Ctx) -> Result<BTreeSet<String>, PublishError> {
    let folders: BTreeSet<&str> = index.packages.iter().filter_map(|p| Some(p.path.rsplit_once('/')?.0)).collect();
    let mut caches = BTreeSet::new();
    for folder in folders {
        let cache = beside(folder);
        if store.size(&Key::new(format!("{cache}/{INDEX_MANIFEST}"))?, ctx)?.is_some() {
            caches.insert(cache);
        }
    }
    Ok(caches)
}

/// The page. `address` is how the store is named.
fn render(index: &Index, caches: &BTreeSet<String>, address: &str) -> Result<String, PublishError> {
    let failed = |e: minijinja::Error| PublishError::Page { address: address.to_owned(), reason: e.to_string() };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("index.html", TEMPLATE).map_err(failed)?;
    let signers: BTreeSet<&str> = index.packages.iter().map(|p| p.signed_by.as_str()).collect();
    let signers: Vec<_> =
        signers.into_iter().map(|f| context! { fingerprint => f, href => relative(&key_file(f)) }).collect();
    let packages: Vec<_> = index
        .packages
        .iter()
        .map(|p| {
            let name = p.path.rsplit('/').next().unwrap_or_default();
            let size = format_size(p.bytes, BINARY);
            context! {
                slurm => &p.slurm, compiler => &p.compiler, toolchain => &p.toolchain, target => &p.target,
                glibc => &p.glibc, sha256 => &p.sha256, href => relative(&p.path), name, size,
            }
        })
        .collect();
    let slurm = index.packages.iter().any(|p| p.slurm.is_some());
    let gcc = index.packages.iter().find(|p| p.slurm.is_none()).map(|p| p.compiler.as_str());
    let caches: Vec<_> = caches.iter().map(|path| cache(path, index, address)).collect();
    let values = context! { tool => env!("CARGO_PKG_VERSION"), signers, packages, slurm, gcc, caches };
    environment.get_template("index.html").and_then(|t| t.render(values)).map(|t| t + "\n").map_err(failed)
}

/// A cache `slurm/VERSION/GCC/buildcache` or `compilers/GCC/buildcache` and the commands by which Spack uses it. By its hash, which is
/// exact.
fn cache(path: &str, index: &Index, address: &str) -> Value {
    let within = |p: &&Listed| p.path.rsplit_once('/').is_some_and(|(folder, _)| beside(folder) == path);
    let hash = index.packages.iter().filter(within).find_map(|p| p.spack_hash.as_deref()).unwrap_or("HASH");
    let parts: Vec<&str> = path.split('/').collect();
    let (title, name) = match parts.as_slice() {
        [_, version, gcc, _] => (format!("Slurm {version}, GCC {gcc}"), format!("slurm-{version}")),
        [_, gcc, _] => (format!("GCC {gcc}"), format!("gcc-{gcc}")),
        _ => (path.to_owned(), "slurm-factory".to_owned()),
    };
    let mirror = format!("{}/{path}", address.trim_end_matches('/'));
    let commands = [
        format!("spack mirror add --signed {} {}", shell_word(&name), shell_word(&mirror)),
        "spack buildcache keys --install --trust".to_owned(),
        format!("spack install --cache-only {}", shell_word(&format!("/{hash}"))),
    ];
    context! { title, commands }
}

/// A link below the page: bytes that mean something in a URL are escaped, and no path is taken for a scheme.
fn relative(path: &str) -> Value {
    const MEANT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~').remove(b'/');
    // Nothing in it needs an escape of HTML's.
    Value::from_safe_string(format!("./{}", utf8_percent_encode(path.trim_start_matches('/'), MEANT)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::FolderStore;
    use fs_err as fs;

    fn listed(path: &str, toolchain: &str) -> Listed {
        Listed {
            path: path.into(),
            slurm: Some("24.11.5".into()),
            compiler: "13.3.0".into(),
            toolchain: toolchain.into(),
            target: "x86_64".into(),
            glibc: Some("2.38".into()),
            bytes: 123_456_789,
            sha256: "ab".repeat(32),
            signed_by: "0123456789ABCDEF0123456789ABCDEF01234567".into(),
            plan: "c".repeat(64),
            spack_hash: Some("abcdefgh".into()),
        }
    }

    fn index(packages: Vec<Listed>) -> Index {
        Index { schema: 1, packages }
    }

    #[test]
    fn the_page_is_escaped_loads_nothing_and_links_relative_to_itself() {
        let packages =
            index(vec![listed("slurm/24.11/13.3.0/slurm-24.11.tar.gz", "no\"><script>alert(1)</script>ble")]);
        let caches = BTreeSet::from(["slurm/24.11/13.3.0/buildcache".to_owned()]);
        let page = render(&packages, &caches, "s3://bucket/a b").unwrap();
        assert!(page.contains("&lt;script&gt;") && page.contains(GENERATOR), "{page}");
        assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("src="), "{page}");
        for word in ["117.74 MiB", "2.38 or newer", "--cache-only &#x2f;abcdefgh", "add --signed slurm-24.11 &#x27;s3:"]
        {
            assert!(page.contains(word), "no `{word}` in {page}");
        }
        let links = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        assert_eq!(links.clone().count(), 6);
        assert!(links.clone().all(|link| link.starts_with("./") && !link.contains("//")), "{page}");
    }

    #[test]
    fn each_kind_of_package_has_its_own_way_in() {
        let slurm = || listed("slurm/24.11/13.4.0/slurm-24.11.tar.gz", "noble");
        let gcc =
            || Listed { slurm: None, compiler: "14.2.0".into(), ..listed("compilers/14.2.0/gcc.tar.gz", "noble") };
        for (packages, of_slurm, of_gcc) in
            [(vec![slurm()], true, false), (vec![gcc()], false, true), (vec![slurm(), gcc()], true, true)]
        {
            let page = render(&index(packages), &BTreeSet::new(), "file:///srv").unwrap();
            assert_eq!(page.contains("module load slurm"), of_slurm, "{page}");
            assert_eq!(page.contains("module load gcc/14.2.0"), of_gcc, "{page}");
        }
    }

    #[test]
    fn an_empty_place_has_a_page_and_odd_names_stay_links() {
        let page = render(&index(Vec::new()), &BTreeSet::new(), "file:///srv").unwrap();
        assert!(page.contains("No package has been published") && !page.contains("<table"), "{page}");
        assert_eq!(relative("a b/c:d?e#f\u{e9}.tar.gz").as_str().unwrap(), "./a%20b/c%3Ad%3Fe%23f%C3%A9.tar.gz");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
    }

    #[test]
    fn it_follows_the_index_and_leaves_a_page_of_somebody_else_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (store, ctx) = (FolderStore::new(dir.path()), Ctx::silent());
        let read = || fs::read_to_string(dir.path().join(KEY)).unwrap();
        let path = "slurm/24.11/13.3.0/slurm-24.11.tar.gz";
        index::update(&store, &ctx, |index| index.insert(&listed(path, "noble"), false)).unwrap();
        write(&store, &ctx).unwrap();
        assert!(read().contains(path) && !read().contains("spack install"), "{}", read());

        let manifest = dir.path().join("slurm/24.11/13.3.0/buildcache").join(INDEX_MANIFEST);
        fs::create_dir_all(manifest.parent().unwrap()).unwrap();
        fs::write(manifest, "{}").unwrap();
        write(&store, &ctx).unwrap();
        assert!(read().contains("spack install --cache-only &#x2f;abcdefgh"), "{}", read());

        fs::write(dir.path().join(KEY), "<h1>Our site</h1>").unwrap();
        write(&store, &ctx).unwrap();
        assert_eq!(read(), "<h1>Our site</h1>");
    }
}
