//! Publishes a finished package: the archive and what vouches for it, then the index of packages.
//!
//! ```text
//! TO/slurm/25.11/13.3.0/slurm-25.11-gcc13.3.0-software.tar.gz                  first: only one of two publishers gets the name
//! TO/slurm/25.11/13.3.0/slurm-25.11-gcc13.3.0-software.tar.gz.manifest.json
//! TO/slurm/25.11/13.3.0/slurm-25.11-gcc13.3.0-software.tar.gz.sha256
//! TO/slurm/25.11/13.3.0/slurm-25.11-gcc13.3.0-software.tar.gz.asc
//! TO/slurm/25.11/13.3.0/slurm-25.11-gcc13.3.0-software.tar.gz.spdx.json        and .provenance.json with its .asc
//! TO/slurm/25.11/13.3.0/buildcache/                                            with `--publish all`: the packages of Spack
//! TO/compilers/13.4.0/gcc-13.4.0-compiler.tar.gz                              a compiler's package, and the same beside it
//! TO/keys/FINGERPRINT.asc                                                     the public key that signed
//! TO/index.json                                                               last of what counts, by a conditional write
//! TO/index.html                                                               the same for people, made from it
//! ```
//!
//! In an OCI registry there are no such places: a package is an artifact there ([`mod@artifact`]).
//!
//! The name of an archive does not name its content, so another archive of the same name is not overwritten unless that is asked
//! for ([`Options::replace`]); then the index forgets the old one first. What is there with the same bytes is not sent again, so a
//! run that was cut is ended by the next. docs/publish.md is for those who use it.

mod artifact;
pub mod index;
mod page;

use crate::buildcache::{beside, compiler_folder, slurm_folder, slurm_path};
use crate::cache::Cache;
use crate::config::Settings;
use crate::package::{Compression, Package, PackageError, PackageName, Trust};
use crate::plan::Publish;
use crate::publish::{self, Condition, Keep, Key, Put, Reach, Source, Store, StoreError, TAGS, Written};
use crate::report::{Ctx, Interrupted, Stage};
use crate::resolve::{self, Flags, Lookup, ResolveError};
use crate::sign::{Fingerprint, Keyring, SignError, SigningKey};
use crate::spack::Installed;
use crate::workflows::buildcache::{self, How, PushError};
use artifact::There;
use fs_err as fs;
use humansize::{BINARY, format_size};
use index::{Index, Listed};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// The largest public key that is read, bytes.
const KEY_LIMIT: u64 = 4 << 20;

/// Why nothing, or not all, was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The place refused, or could not be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The package is not one, or not signed.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// Keys.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Settings.
    #[error(transparent)]
    Resolve(#[from] Box<ResolveError>),
    /// Nobody said where to.
    #[error(
        "publish: where to? give --to s3://bucket/prefix, oci://host/repository, file:///folder or a folder, or set `publish-to`"
    )]
    NoDestination,
    /// Published packages are signed by a key that those who install know.
    #[error(
        "publish: there is no signing key yet; make one (`slurm-factory key generate`) or take one (`slurm-factory key import`, --key), so \
         that what is published is signed by a key that outlives this run"
    )]
    NoKey,
    /// Asked to use no network.
    #[error(
        "publish: `{address}` cannot be reached with --offline; publish to a folder, or later with `slurm-factory publish`"
    )]
    Offline {
        /// The address.
        address: String,
    },
    /// A folder.
    #[error(
        "`{path}` is a folder; `publish` sends a finished package (its .tar.gz or .tar.zst). A buildcache needs its index merged with the one \
         that is there, which this version does not do: use `slurm-factory buildcache push`"
    )]
    Folder {
        /// What was given.
        path: PathBuf,
    },
    /// The packages of Spack were not published.
    #[error(transparent)]
    Packages(#[from] PushError),
    /// A file that belongs to the package is missing.
    #[error("the package is not whole: {source}; its .sha256, .asc and .manifest.json are published with it")]
    Beside {
        /// The file and the reason.
        source: io::Error,
    },
    /// The manifest beside the archive is another's.
    #[error("`{path}` is not the manifest in the archive; build the package again, or fetch both files again")]
    OtherManifest {
        /// The file.
        path: PathBuf,
    },
    /// A name that no key can have.
    #[error("`{path}` has no file name that can be published")]
    BadName {
        /// The archive.
        path: PathBuf,
    },
    /// The name is taken by other bytes.
    #[error(
        "{address}/{key} is there already with other content; --replace publishes this one in its place (who reads both meanwhile sees a \
         signature that does not fit), or choose another --to"
    )]
    Taken {
        /// The store.
        address: String,
        /// The archive's key.
        key: Key,
    },
    /// What can be read back is not what was sent.
    #[error(
        "{address}/{key}: read back, it is not what was sent: SHA-256 {expected}, found {found}; publish again with --replace"
    )]
    NotAsSent {
        /// The store.
        address: String,
        /// The object.
        key: Key,
        /// SHA-256 of the file.
        expected: String,
        /// What was read.
        found: String,
    },
    /// The index is none.
    #[error("{address}/{}: {reason}", index::KEY)]
    Index {
        /// The store.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The page could not be made of the index.
    #[error("{address}/{}: {reason}", page::KEY)]
    Page {
        /// The store.
        address: String,
        /// The template engine's reason.
        reason: String,
    },
    /// We were told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// How to publish.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether another archive of the same name is replaced, and the signature of the same archive by another one.
    pub replace: bool,
    /// Whether everything is read back and compared.
    pub verify: bool,
}

/// What becomes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is to be sent.
    New,
    /// It is there with the same bytes.
    There,
    /// It is there with other bytes, which are to be replaced.
    Replace,
}

/// One object.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Where it goes.
    pub key: String,
    /// In bytes.
    pub bytes: u64,
    /// What becomes of it.
    pub state: State,
    #[serde(skip)]
    at: Key,
    #[serde(skip)]
    source: Source,
    #[serde(skip)]
    content_type: &'static str,
}

/// What will be published, looked at and compared with what is there.
pub struct Outgoing {
    /// In the order in which they go.
    pub items: Vec<Item>,
    entry: Listed,
    /// The keys that signed.
    signers: Keyring,
    /// Who signed what is there and stays, when that is another.
    stays: Option<String>,
    /// What is there of it, in a registry.
    artifact: Option<There>,
}

impl Outgoing {
    /// Bytes that have to be sent.
    pub fn bytes(&self) -> u64 {
        self.items.iter().filter(|item| item.state != State::There).map(|item| item.bytes).sum()
    }

    /// Whether it may be sent: another archive of the same name is not replaced unless that is said.
    pub fn allowed(&self, options: Options, address: &str) -> Result<(), PublishError> {
        match self.items.first() {
            Some(archive) if archive.state == State::Replace && !options.replace => {
                Err(PublishError::Taken { address: address.to_owned(), key: archive.at.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// A place that was looked at before the work began.
pub struct Target {
    store: Box<dyn Store>,
    /// With `--publish all`: how the place is reached, for what is below it.
    all: Option<Reach>,
    signer: Keyring,
    options: Options,
}

/// For a build that is to be published: whether there is a key, and whether the place can be written to, before anything else is
/// done. `dry` asks nothing that would leave something there. `None` when nothing is to be published.
pub fn planned(
    settings: &Settings,
    flags: Flags,
    key: Option<&SigningKey>,
    lookup: Lookup<'_>,
    dry: bool,
    ctx: &Ctx,
) -> Result<Option<Target>, PublishError> {
    if matches!(flags.publish, None | Some(Publish::None)) {
        return Ok(None);
    }
    let address = settings.publish_to.as_deref().ok_or(PublishError::NoDestination)?;
    if flags.offline && address.contains("://") && !address.starts_with("file:") {
        return Err(PublishError::Offline { address: address.to_owned() });
    }
    let key = key.ok_or(PublishError::NoKey)?;
    let reach = resolve::reach([address], settings, lookup, ctx).map_err(Box::new)?;
    let store = publish::open(address, &reach, ctx)?;
    if dry && store.registry() {
        store.list(TAGS, ctx)?;
    } else if dry {
        index::read(store.as_ref(), ctx)?;
    } else {
        store.check(ctx)?;
    }
    let all = (flags.publish == Some(Publish::All)).then_some(reach);
    Ok(Some(Target { store, all, signer: Keyring::of(key), options: Options::default() }))
}

/// Whether the packages of Spack are to be published too.
pub fn wants_packages(target: Option<&Target>) -> bool {
    target.is_some_and(|target| target.all.is_some())
}

/// Publishes the packages of Spack that a build installed, with what they link and run, if that was asked for: before the
/// package, so that who finds it finds them.
pub fn packages(
    target: Option<&Target>,
    name: &PackageName,
    installed: &Installed,
    key: &SigningKey,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<(), PublishError> {
    push_below(target, &slurm_path(&name.version, &name.compiler), installed, false, key, cache, ctx)
}

/// Publishes the packages of a GCC, where whoever builds with it looks for them: `--publish all`.
pub fn compiler(
    target: Option<&Target>,
    gcc: &str,
    installed: &Installed,
    key: &SigningKey,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<(), PublishError> {
    // With what it was built with: Spack wants that too, where it is free to build what a cache has not.
    push_below(target, &beside(&compiler_folder(gcc)), installed, true, key, cache, ctx)
}

fn push_below(
    target: Option<&Target>,
    below: &str,
    installed: &Installed,
    with_build_only: bool,
    key: &SigningKey,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<(), PublishError> {
    let Some(Target { store, all: Some(reach), .. }) = target else { return Ok(()) };
    let store = publish::open(&format!("{}/{below}", store.address().trim_end_matches('/')), reach, ctx)?;
    // The build has just put them into the cache's own binary cache.
    let how = How { taking: true, ..How::default() };
    buildcache::push_installed(store.as_ref(), installed, with_build_only, &how, key, cache, ctx)?;
    Ok(())
}

/// Publishes what was built, or was found built, signed by the key that was there when it was planned.
pub fn finish(target: Option<Target>, package: &Package, ctx: &Ctx) -> Result<(), PublishError> {
    let Some(Target { store, signer, options, .. }) = target else { return Ok(()) };
    let Some(first) = signer.fingerprints().first().cloned() else { return Err(PublishError::NoKey) };
    let outgoing = plan(package, &first, &signer, store.as_ref(), options, ctx)?;
    send(&outgoing, store.as_ref(), options, ctx)
}

/// Opens a package as whoever gets it would, and sees what of it is there already, and with `options` may stay.
pub fn look(
    path: &Path,
    keyring: &Keyring,
    store: &dyn Store,
    options: Options,
    ctx: &Ctx,
) -> Result<Outgoing, PublishError> {
    if path.is_dir() {
        return Err(PublishError::Folder { path: path.to_owned() });
    }
    let (package, good) = Package::open(path, Trust::Require(keyring), ctx)?;
    let not_signed = || PackageError::NotSigned { path: path.to_owned(), signature: package.beside().signature };
    let signers: Vec<Fingerprint> = good.into_iter().map(|signature| signature.fingerprint).collect();
    let first = signers.first().ok_or_else(not_signed)?.clone();
    plan(&package, &first, &keyring.pinned(&signers)?, store, options, ctx)
}

/// `signers` are the keys that signed, and `first` the one that the index names.
fn plan(
    package: &Package,
    first: &Fingerprint,
    signers: &Keyring,
    store: &dyn Store,
    options: Options,
    ctx: &Ctx,
) -> Result<Outgoing, PublishError> {
    let bad_name = || PublishError::BadName { path: package.path().to_owned() };
    let name = package.path().file_name().and_then(|name| name.to_str()).ok_or_else(bad_name)?;
    let facts = &package.manifest().facts;
    let gcc = &facts.compiler.release;
    let folder = facts.slurm.as_ref().map_or_else(|| compiler_folder(gcc), |slurm| slurm_folder(&slurm.requested, gcc));
    let beside = package.beside();
    let archive_type = match package.manifest().archive.compression {
        Compression::Gzip { .. } => "application/gzip",
        Compression::Zstd { .. } => "application/zstd",
    };
    let archive = Source { path: package.path().to_owned(), size: package.size(), sha256: package.sha256().to_owned() };
    let artifact = if store.registry() { Some(There::look(store, name, ctx)?) } else { None };
    // There all files of a package are under one tag.
    let folder = if artifact.is_some() { name.to_owned() } else { folder };
    let state = |at: &Key, file: &str, source: &Source| match &artifact {
        Some(there) => Ok(there.state(file, source)),
        None => state(store, at, source, ctx),
    };
    let mut items = Vec::new();
    let archive_key = Key::new(format!("{folder}/{name}"))?;
    let archive_state = state(&archive_key, name, &archive)?;
    let entry = Listed::new(archive_key.as_str(), package, first.as_str().to_owned());
    let known = if let Some(there) = &artifact {
        there.signed_by.clone().filter(|_| archive_state == State::There)
    } else {
        let mut listed = index::read(store, ctx)?.0.packages.into_iter();
        let same = |there: &Listed| there.path == entry.path && there.sha256 == entry.sha256;
        listed.find(same).map(|there| there.signed_by)
    };
    // A signature of another day of the same archive is as good: what the index names is left as it is, unless it is to be
    // replaced.
    let keeps = known.is_some() && archive_state == State::There && !options.replace;
    let mut kept = false;
    items.push(Item {
        key: archive_key.to_string(),
        bytes: archive.size,
        state: archive_state,
        at: archive_key,
        source: archive,
        content_type: archive_type,
    });
    check_manifest(package, &beside.manifest)?;
    // A package made before there were attestations has none, and its sums name none.
    let sums = fs::read_to_string(&beside.sums).map_err(|source| PublishError::Beside { source })?;
    let name_of = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned).ok_or_else(bad_name);
    // By the end of the name: a package may have been renamed since.
    let named = |path: &Path| {
        let file = name_of(path)?;
        Ok::<_, PublishError>(sums.contains(file.strip_prefix(name).unwrap_or(&file)))
    };
    let (described, attested) = (named(&beside.sbom)?, named(&beside.provenance)?);
    for (path, content_type, expected) in [
        (beside.manifest, "application/json", true),
        (beside.sbom, "application/spdx+json", described),
        (beside.provenance, "application/vnd.in-toto+json", attested),
        (beside.provenance_signature, "application/pgp-signature", attested),
        (beside.sums, "text/plain; charset=utf-8", true),
        (beside.signature, "application/pgp-signature", true),
    ] {
        if !expected {
            continue;
        }
        let bytes = fs::read(&path).map_err(|source| PublishError::Beside { source })?;
        let file = name_of(&path)?;
        let at = Key::new(format!("{folder}/{file}"))?;
        let source = Source { path, size: bytes.len() as u64, sha256: hex::encode(Sha256::digest(&bytes)) };
        let mut state = state(&at, &file, &source)?;
        if keeps && state == State::Replace {
            (state, kept) = (State::There, true);
        }
        items.push(Item { key: at.to_string(), bytes: source.size, state, at, source, content_type });
    }
    // That of the same key alone, of another day, is as good.
    let differs = |there: &str| signers.fingerprints().iter().any(|f| f.as_str() != there);
    let stays = known.filter(|there| kept && differs(there));
    Ok(Outgoing { items, entry, signers: signers.clone(), stays, artifact })
}

/// What is to be done so that the file is there.
fn state(store: &dyn Store, at: &Key, source: &Source, ctx: &Ctx) -> Result<State, StoreError> {
    Ok(if store.holds(at, source, ctx)? {
        State::There
    } else if store.size(at, ctx)?.is_some() {
        State::Replace
    } else {
        State::New
    })
}

/// The copy beside the archive is what people and programs look at first: it must be of this archive.
fn check_manifest(package: &Package, path: &Path) -> Result<(), PublishError> {
    let bytes = fs::read(path).map_err(|source| PublishError::Beside { source })?;
    let beside: Option<crate::package::Manifest> = serde_json::from_slice(&bytes).ok();
    if beside.as_ref() == Some(package.manifest()) {
        Ok(())
    } else {
        Err(PublishError::OtherManifest { path: path.to_owned() })
    }
}

/// Sends what is not there, in order, and the index last.
pub fn send(outgoing: &Outgoing, store: &dyn Store, options: Options, ctx: &Ctx) -> Result<(), PublishError> {
    if let Some(there) = &outgoing.artifact {
        return artifact::send(outgoing, there, store, options, ctx);
    }
    let address = store.address();
    let timer = ctx.stage(Stage::Publish, address);
    let Some((archive, _)) = outgoing.items.split_first() else { return Ok(()) };
    let taken = || PublishError::Taken { address: address.to_owned(), key: archive.at.clone() };
    outgoing.allowed(options, address)?;
    if archive.state == State::Replace {
        // Nobody is sent to the old one any more.
        index::update(store, ctx, |index| index.remove(&outgoing.entry.path))?;
    }
    let mut sent = 0;
    for (position, item) in outgoing.items.iter().enumerate() {
        if item.state == State::There {
            continue;
        }
        let condition = if position == 0 && item.state == State::New { Condition::Absent } else { Condition::Always };
        // The name does not name the content, so nobody may keep it for long.
        let how = Put { content_type: item.content_type, keep: Keep::Briefly, condition };
        if store.put_file(&item.at, &item.source, &how, ctx)? == Written::Conflict
            && !store.holds(&item.at, &item.source, ctx)?
        {
            return Err(taken());
        }
        sent += item.bytes;
    }
    if options.verify {
        verify(outgoing, store, ctx)?;
    }
    match &outgoing.stays {
        None => offer_keys(&outgoing.signers, store, ctx)?,
        Some(there) => {
            let signers = outgoing.signers.fingerprints();
            let signers: Vec<_> = signers.iter().map(Fingerprint::as_str).collect();
            ctx.warn(format!(
                "{} is there, signed by {there}, and that signature stays; --replace puts what {} signed in its place",
                outgoing.entry.path,
                signers.join(" and ")
            ));
        }
    }
    let listed = index::update(store, ctx, |index| index.insert(&outgoing.entry, options.replace))?;
    // What counts is there: the page is only made of it, and the next run makes it again.
    if let Err(e) = page::write(store, ctx) {
        ctx.check()?;
        ctx.warn(format!("everything is published but the page for people: {e}"));
    }
    match (sent, listed) {
        (0, false) => timer.cached("everything is there"),
        _ => timer.done(format!("{} sent, the index names {}", format_size(sent, BINARY), outgoing.entry.path)),
    }
    Ok(())
}

/// Where the public key of this fingerprint is, below the address.
fn key_file(fingerprint: &str) -> String {
    format!("keys/{fingerprint}.asc")
}

/// Puts the public key that signed where the page links it. What is there of the same key, a later expiry, say, is kept.
fn offer_keys(signers: &Keyring, store: &dyn Store, ctx: &Ctx) -> Result<(), PublishError> {
    for fingerprint in signers.fingerprints() {
        let at = Key::new(key_file(fingerprint.as_str()))?;
        let there = store.read(&at, KEY_LIMIT, ctx)?.map(|(bytes, _)| bytes).unwrap_or_default();
        let mut merged = signers.clone();
        // What is no key is replaced.
        let _ = merged.add_bytes(&at.to_string(), &there);
        let armored = merged.pinned(&[fingerprint])?.armored()?;
        if there != armored.as_bytes() {
            let how = Put { content_type: "application/pgp-keys", keep: Keep::Briefly, condition: Condition::Always };
            store.put(&at, armored.as_bytes(), &how, ctx)?;
        }
    }
    Ok(())
}

/// Reads everything back.
fn verify(outgoing: &Outgoing, store: &dyn Store, ctx: &Ctx) -> Result<(), PublishError> {
    // Of the files beside an archive that was there before, those that are left are not ours to compare.
    for item in outgoing.items.iter().filter(|item| item.state != State::There || item.at == outgoing.items[0].at) {
        let found = publish::sum(store, &item.at, ctx)?;
        if found.as_ref() != Some(&item.source.sha256) {
            return Err(PublishError::NotAsSent {
                address: store.address().to_owned(),
                key: item.at.clone(),
                expected: item.source.sha256.clone(),
                found: found.unwrap_or_else(|| "nothing".to_owned()),
            });
        }
    }
    Ok(())
}

/// The index as it is; empty where nothing was published yet.
pub fn list(store: &dyn Store, ctx: &Ctx) -> Result<Index, PublishError> {
    Ok(index::read(store, ctx)?.0)
}
