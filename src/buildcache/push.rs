//! Pushes packages of an install tree: what is not there yet, several at once, each read once.
//!
//! For each package: tarball blob, spec blob, and only then the manifest that names them; when all are there, the index. So a
//! reader never sees a name of what is not there, and a run that was cut leaves at most blobs that nobody names (`prune`
//! removes them) and packages that the index does not name yet (the next push adds them).

use super::manifest::{self, Blob, JSON, Manifest, SPEC, TARBALL};
use super::spec::Spec;
use super::tarball::{self, Distribution};
use super::tree::PLACEHOLDER;
use super::{BuildcacheError, InTree, Tree, index, key, keys, oci, read, ready};
use crate::gzip::{self, Pool};
use crate::publish::{Condition, Keep, Put, Source, Store, Written};
use crate::report::{Ctx, Event};
use crate::sign::{Keyring, SigningKey, clearsign};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// libdeflate's level 5 gives a little less than zlib's 6, which Spack uses, at a fraction of its work.
const LEVEL: u8 = 5;
/// More packages at once than this only take memory: compression has all cores anyway.
const MOST_WRITERS: usize = 4;

/// What to push, and how.
pub struct Request<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// Packages of it, from [`Tree::select`].
    pub packages: Vec<(&'a InTree, Spec)>,
    /// Where Spack was when it built them. Written down as Spack does; no reader of today uses it.
    pub spack: &'a str,
    /// Signs the manifests.
    pub key: &'a SigningKey,
    /// Whose packages count as being there.
    pub keyring: &'a Keyring,
    /// A folder of this host for tarballs under way, four at most.
    pub scratch: &'a Path,
    /// Threads that compress; 0 means all.
    pub threads: usize,
    /// What is pushed although it is there.
    pub again: &'a Again,
    /// A cache of this host that may have the tarballs of this tree, which are then taken as they are.
    pub made: Option<&'a dyn Store>,
}

/// Packages that are pushed although they are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Again {
    /// None.
    #[default]
    Nothing,
    /// These, by hash.
    These(BTreeSet<String>),
    /// All.
    Everything,
}

impl Again {
    fn is_about(&self, hash: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::These(hashes) => hashes.contains(hash),
            Self::Everything => true,
        }
    }
}

/// What was pushed of one package.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Done {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its DAG hash.
    pub hash: String,
    /// Bytes of its tarball, compressed; 0 when it was only to be said what would be done.
    pub size: u64,
    /// SHA-256 of the tarball.
    pub sha256: String,
}

/// A package that is there already, in a way that its reader may not like.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Undone {
    /// Its name.
    pub name: String,
    /// Its DAG hash.
    pub hash: String,
    /// Why it was left alone.
    pub reason: String,
}

/// What a push did.
#[derive(Debug, Default, serde::Serialize)]
pub struct Pushed {
    /// Pushed now.
    pub pushed: Vec<Done>,
    /// How many were there.
    pub there: usize,
    /// Left alone: there, and signed by somebody else.
    pub foreign: Vec<Undone>,
    /// How many of the pushed were taken as another cache has them, and not compressed again.
    pub taken: usize,
    /// Whether the index changed.
    pub index_changed: bool,
}

/// What is to be done with each of the packages.
#[derive(Default)]
struct Todo<'r> {
    missing: Vec<(&'r InTree, &'r Spec)>,
    present: Vec<&'r Spec>,
    foreign: Vec<Undone>,
}

fn todo<'r>(
    store: &dyn Store,
    packages: &'r [(&InTree, Spec)],
    keyring: &Keyring,
    again: &Again,
    ctx: &Ctx,
) -> Result<Todo<'r>, BuildcacheError> {
    if read::only_older_layout(store, ctx)? {
        return Err(BuildcacheError::OlderLayout { address: store.address().to_owned() });
    }
    let mut todo = Todo::default();
    let mut there = if *again == Again::Everything { BTreeMap::new() } else { read::manifests(store, ctx)?.0 };
    there.retain(|hash, _| !again.is_about(hash));
    // A registry lists none: the blobs that a package names are asked for.
    let blobs: Option<BTreeMap<String, u64>> = if there.is_empty() || store.registry() {
        None
    } else {
        Some(store.list(manifest::BLOBS, ctx)?.into_iter().map(|e| (e.key.as_str().to_owned(), e.size)).collect())
    };
    let states = read::at_once(store, packages, |(package, _)| {
        state(store, keyring, there.get(&package.hash), blobs.as_ref(), ctx)
    })?;
    for ((package, spec), state) in packages.iter().zip(states) {
        match state {
            State::Absent => todo.missing.push((*package, spec)),
            State::There => todo.present.push(spec),
            State::Foreign(reason) => {
                let (name, hash) = (package.name.clone(), package.hash.clone());
                todo.foreign.push(Undone { name, hash, reason });
            }
        }
    }
    Ok(todo)
}

/// Says what [`push`] would do. Needs no key that signs, and changes nothing.
pub fn would_push(
    store: &dyn Store,
    packages: &[(&InTree, Spec)],
    keyring: &Keyring,
    again: &Again,
    ctx: &Ctx,
) -> Result<Pushed, BuildcacheError> {
    let todo = todo(store, packages, keyring, again, ctx)?;
    let would = |(p, _): &(&InTree, &Spec)| Done {
        name: p.name.clone(),
        version: p.version.clone(),
        hash: p.hash.clone(),
        size: 0,
        sha256: String::new(),
    };
    Ok(Pushed {
        pushed: todo.missing.iter().map(would).collect(),
        there: todo.present.len(),
        foreign: todo.foreign,
        ..Pushed::default()
    })
}

/// Pushes; returns when everything, the index included, is there.
pub fn push(store: &dyn Store, request: &Request<'_>, ctx: &Ctx) -> Result<Pushed, BuildcacheError> {
    let Todo { missing, present, foreign } = todo(store, &request.packages, request.keyring, request.again, ctx)?;
    let mut pushed = Pushed { there: present.len(), foreign, ..Pushed::default() };
    if !missing.is_empty() && !store.registry() {
        let how = Put { content_type: JSON, keep: Keep::Briefly, condition: Condition::Absent };
        store.put(&key(manifest::LAYOUT.to_owned())?, manifest::LAYOUT_TEXT, &how, ctx)?;
    }
    let made = all(store, request, &missing, ctx)?;
    if store.registry() {
        // When all the layers are there that they name.
        let made: Vec<_> =
            made.iter().filter_map(|made| Some((made.package, made.spec, made.layer.as_ref()?))).collect();
        oci::manifests(store, request, &made, ctx)?;
    }
    pushed.taken = made.iter().filter(|made| made.taken).count();
    pushed.pushed = made.into_iter().map(|made| made.done).collect();
    keys::publish(store, request.key, ctx)?;
    // Those that were there too: a run that was cut may have left them out of the index.
    let specs: Vec<&Spec> = missing.iter().map(|(_, spec)| *spec).chain(present).collect();
    if !specs.is_empty() {
        pushed.index_changed = index::update(store, ctx, |index| {
            for spec in specs.iter().filter(|spec| !index.has(&spec.root().hash)).collect::<Vec<_>>() {
                index.add(spec);
            }
        })?;
    }
    Ok(pushed)
}

enum State {
    Absent,
    There,
    Foreign(String),
}

/// Whether a package is there: a manifest with a good signature, whose blobs are there with the sizes that it says. Without a list
/// of `blobs` the store is asked for each.
fn state(
    store: &dyn Store,
    keyring: &Keyring,
    at: Option<&crate::publish::Key>,
    blobs: Option<&BTreeMap<String, u64>>,
    ctx: &Ctx,
) -> Result<State, BuildcacheError> {
    let Some(at) = at else { return Ok(State::Absent) };
    match read::signed(store, Some(keyring), at, ctx)? {
        Ok(signed) => {
            for blob in &signed.manifest.data {
                let at = blob.key()?;
                let size = match blobs {
                    Some(blobs) => blobs.get(at.as_str()).copied(),
                    None => store.size(&at, ctx)?,
                };
                if size != Some(blob.content_length) {
                    return Ok(State::Absent);
                }
            }
            Ok(State::There)
        }
        Err(fault) if fault.kind == super::check::Kind::ForeignKey => Ok(State::Foreign(fault.detail)),
        Err(_) => Ok(State::Absent),
    }
}

/// Pushes these, several at once. The first failure ends all: what is whole by then stays.
fn all<'r>(
    store: &dyn Store,
    request: &Request<'_>,
    missing: &[(&'r InTree, &'r Spec)],
    ctx: &Ctx,
) -> Result<Vec<Made<'r>>, BuildcacheError> {
    let writers = gzip::threads(request.threads, MOST_WRITERS)?.min(missing.len()).max(1);
    let pool = Pool::new(request.threads, writers)?;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let failed: Mutex<Option<BuildcacheError>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                while let Some((package, spec)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match one(store, request, package, spec, &pool, ctx) {
                        Ok(made) => {
                            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                            done.push(made);
                            let name = format!("{}-{}", package.name, package.version);
                            let (state, done, total) = ("pushed".to_owned(), done.len(), missing.len());
                            ctx.event(&Event::Package { name, state, done, total });
                        }
                        Err(e) => {
                            next.store(missing.len(), Ordering::Relaxed);
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                        }
                    }
                }
            });
        }
    });
    if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by(|Made { done: a, .. }, Made { done: b, .. }| (&a.name, &a.hash).cmp(&(&b.name, &b.hash)));
    Ok(done)
}

/// What was done of a package.
struct Made<'r> {
    package: &'r InTree,
    spec: &'r Spec,
    done: Done,
    /// For a registry, what its manifest is to name.
    layer: Option<oci::Layer>,
    /// It was not compressed for that.
    taken: bool,
}

/// One package: tarball, spec, manifest; for a registry the tarball alone.
fn one<'r>(
    store: &dyn Store,
    request: &Request<'_>,
    package: &'r InTree,
    spec: &'r Spec,
    pool: &Pool,
    ctx: &Ctx,
) -> Result<Made<'r>, BuildcacheError> {
    let registry = store.registry();
    let mut file = tempfile::Builder::new().prefix("tarball-").tempfile_in(request.scratch)?;
    let distribution = distribution(request, package, spec)?;
    let ready = match request.made {
        Some(cache) => ready::take(cache, request, package, &distribution, file.as_file_mut(), ctx)?,
        None => None,
    };
    let taken = ready.is_some();
    let made = match ready {
        Some(made) => made,
        None => tarball::write(package, distribution, file.path(), (LEVEL, registry), pool, ctx)?,
    };
    let archive = Blob::new(TARBALL, "gzip", made.size, made.sha256.clone());
    let source = Source { path: file.path().to_owned(), size: made.size, sha256: made.sha256.clone() };
    let how = |content_type| Put { content_type, keep: Keep::Forever, condition: Condition::Always };
    store.put_file(&archive.key()?, &source, &how("application/gzip"), ctx)?;

    ctx.detail(format!("{} pushed, {} bytes", package.label(), made.size));
    let done = Done {
        name: package.name.clone(),
        version: package.version.clone(),
        hash: package.hash.clone(),
        size: made.size,
        sha256: made.sha256.clone(),
    };
    if registry {
        let layer = made.unpacked.map(|diff_id| oci::Layer { sha256: made.sha256, size: made.size, diff_id });
        return Ok(Made { package, spec, done, layer, taken });
    }

    let text = gzip::pack(&spec.for_cache(), LEVEL)?;
    let described = Blob::new(SPEC, "gzip", text.len() as u64, hex::encode(Sha256::digest(&text)));
    store.put(&described.key()?, &text, &how("application/gzip"), ctx)?;

    let signed = clearsign(request.key, &Manifest::new(vec![archive, described]).text())?;
    let how = Put { content_type: JSON, keep: Keep::Briefly, condition: Condition::Always };
    let at = manifest::spec_key(&package.name, &package.version, &package.hash)?;
    let Written::Yes(_) = store.put(&at, signed.as_bytes(), &how, ctx)? else {
        return Err(BuildcacheError::Format {
            address: store.address().to_owned(),
            key: at,
            reason: "the store refused a write that had no condition".into(),
        });
    };
    Ok(Made { package, spec, done, layer: None, taken })
}

/// The root of a tree without what Spack pads it with.
fn unpadded(root: &str) -> &str {
    root.split_once(&format!("/{PLACEHOLDER}")).map_or(root, |(before, _)| before)
}

/// All but the lists, which come of reading the files.
fn distribution(request: &Request<'_>, package: &InTree, spec: &Spec) -> Result<Distribution, BuildcacheError> {
    let root = request.tree.root();
    let mut hash_to_prefix = BTreeMap::new();
    for node in spec.relocated() {
        let there = request.tree.packages().get(&node.hash).ok_or_else(|| BuildcacheError::Package {
            package: package.label(),
            path: package.dir.clone(),
            reason: format!("it may name {}-{} ({}), which is not installed", node.name, node.version, node.hash),
        })?;
        hash_to_prefix.insert(node.hash.clone(), there.prefix.clone());
    }
    Ok(Distribution {
        // Not below the padding of `install_tree:padded_length`: its own path must be short.
        sbang_install_path: format!("{}/bin/sbang", unpadded(root)),
        buildpath: root.to_owned(),
        spackprefix: request.spack.to_owned(),
        relative_prefix: package
            .prefix
            .strip_prefix(root)
            .unwrap_or(&package.prefix)
            .trim_start_matches('/')
            .to_owned(),
        hardlinks_deduped: true,
        hash_to_prefix,
        relocate_binaries: Vec::new(),
        relocate_links: Vec::new(),
        relocate_textfiles: Vec::new(),
    })
}
