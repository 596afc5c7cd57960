//! Writes an image as an OCI layout, a folder or an archive, that skopeo, podman, umoci and our own [`super::load`] read.
//!
//! ```text
//! DIR/blobs/sha256/<hex>     byte for byte what was pulled, so every digest is the same
//! DIR/oci-layout
//! DIR/index.json             written last: a reader never sees the name of what is not there
//!   { "mediaType", "digest", "size", "platform",
//!     "annotations": { "org.opencontainers.image.ref.name": "24.04",                        for oci:DIR:24.04
//!                      "io.containerd.image.name": "docker.io/library/ubuntu:24.04" } }     the whole name
//! ```
//!
//! The whole name makes the image travel under it: after `image load`, `ubuntu:24.04` means the same image as where
//! it was saved. When the name pins an index, the index comes along as a blob that nothing else names, as proof.
//!
//! A Docker manifest is not made into an OCI one, as that would be another digest; skopeo and umoci, which look for OCI
//! manifests only, do not see such an image in a layout.
//!
//! A layout that is there already gets one more entry; one with the same tag for the same platform is replaced. An
//! archive is written whole, beside its place, and renamed.

use super::layout::{IMAGE_NAME, REF_NAME, blob_name};
use super::manifest::{MAX_MANIFEST, OCI_MANIFEST};
use super::reference::is_whole_name;
use super::tarball::{Member, Writer};
use super::{Digest, ImageError, PulledImage, Reference, RegistryReference};
use crate::fsutil;
use crate::report::{Ctx, Event, Stage};
use crate::sha256::Sha256;
use fs_err as fs;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const OCI_LAYOUT: &str = "{\"imageLayoutVersion\": \"1.0.0\"}";

/// What an image is called where it is saved.
#[derive(Clone, Debug, Default)]
pub struct Name {
    tag: Option<String>,
    whole: Option<RegistryReference>,
}

impl Name {
    /// The name that a reference gives: whole for one in a registry, a tag for one in a layout, none for a folder.
    pub fn of(reference: &Reference) -> Self {
        let whole = match reference {
            Reference::Registry(r) => Some(r.clone()),
            Reference::DockerArchive(d) => match d.which() {
                Some(super::Which::Named(name)) => Some(name.clone()),
                _ => None,
            },
            Reference::Layout(l) | Reference::OciArchive(l) => {
                let whole = l.tag().filter(|tag| is_whole_name(tag)).and_then(|tag| tag.parse().ok());
                if let Some(Reference::Registry(r)) = whole { Some(r) } else { None }
            }
            Reference::Folder(_) => None,
        };
        match whole {
            Some(whole) => Self { tag: whole.tag().map(str::to_owned), whole: Some(whole) },
            None => Self { tag: reference.tag().map(str::to_owned), whole: None },
        }
    }

    /// The tag in the layout, if any.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

/// How an archive is compressed, by its name's end.
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

fn packing(target: &Path) -> Option<Packing> {
    let name = target.file_name()?.to_str()?;
    [(".tar", Packing::Plain), (".tar.gz", Packing::Gzip), (".tgz", Packing::Gzip), (".tar.zst", Packing::Zstd)]
        .into_iter()
        .find(|(end, _)| name.ends_with(end))
        .map(|(_, packing)| packing)
}

/// A blob to write.
struct Blob {
    digest: Digest,
    size: u64,
    from: PathBuf,
}

/// Writes `image` to `target`: an archive when its name ends like one, else a folder.
pub fn save(image: &PulledImage, name: &Name, target: &Path, ctx: &Ctx) -> Result<(), ImageError> {
    let mut blobs: Vec<Blob> =
        image.blobs().into_iter().map(|(digest, size)| Blob { digest, size, from: image.blob_path(&digest) }).collect();
    if let Some(pinned) = name.whole.as_ref().and_then(RegistryReference::digest)
        && *pinned != *image.resolved().digest()
        && let Ok(meta) = fs::metadata(image.blob_path(pinned))
        && meta.len() <= MAX_MANIFEST
    {
        blobs.push(Blob { digest: *pinned, size: meta.len(), from: image.blob_path(pinned) });
    }
    let entry = entry(image, name);
    if entry["mediaType"] != OCI_MANIFEST {
        ctx.note("its manifest is Docker's and is kept as it is, so that its digest stays the same: `image load`, oci: and oci-archive: read it, skopeo and umoci look for OCI manifests only");
    }
    let mut progress = Progress { ctx, done: 0, total: blobs.iter().map(|b| b.size).sum() };
    check_target(target)?;
    match packing(target) {
        Some(packing) if !target.is_dir() => to_archive(&blobs, &entry, target, &packing, &mut progress),
        _ => to_folder(&blobs, entry, target, &mut progress),
    }
}

/// Refuses a name by which another kind of archive is meant: what is not one of ours becomes a folder.
pub fn check_target(target: &Path) -> Result<(), ImageError> {
    let other = [".zip", ".tar.xz", ".tar.bz2", ".txz", ".tar.lz4"];
    let named = target.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if other.iter().any(|end| named.ends_with(end)) && !target.is_dir() {
        let reason = "archives are made as .tar, .tar.gz or .tar.zst".to_owned();
        return Err(ImageError::Target { path: target.to_owned(), reason });
    }
    Ok(())
}

/// The image's line in index.json.
fn entry(image: &PulledImage, name: &Name) -> Value {
    let media_type =
        image.manifest().media_type().as_ref().map_or_else(|| OCI_MANIFEST.to_owned(), ToString::to_string);
    let (digest, size) = image.blobs().first().copied().unwrap_or((*image.resolved().digest(), 0));
    let mut entry = json!({
        "mediaType": media_type,
        "digest": digest,
        "size": size,
        "platform": {"architecture": image.resolved().platform().architecture(), "os": "linux"},
    });
    if let Some(tag) = &name.tag {
        entry["annotations"][REF_NAME] = json!(tag);
    }
    if let Some(whole) = &name.whole {
        entry["annotations"][IMAGE_NAME] = json!(whole.to_string());
    }
    entry
}

fn new_index(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries})
}

struct Progress<'a> {
    ctx: &'a Ctx,
    done: u64,
    total: u64,
}

/// Copies a blob of the cache and checks it, so that damage does not travel.
fn copy(
    blob: &Blob,
    to: &mut dyn Write,
    failed: &dyn Fn(io::Error) -> ImageError,
    progress: &mut Progress<'_>,
) -> Result<(), ImageError> {
    let mut file = fs::File::open(&blob.from).map_err(ImageError::Io)?;
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        progress.ctx.check()?;
        let n = file.read(&mut buffer).map_err(ImageError::Io)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n]).map_err(failed)?;
        size += n as u64;
        progress.done += n as u64;
        progress.ctx.event(&Event::Progress {
            stage: Stage::Image,
            done: progress.done,
            total: progress.total,
            unit: "bytes",
            current: blob.digest.short(),
        });
    }
    let actual = Digest::finish(hasher);
    if actual != blob.digest || size != blob.size {
        fs::remove_file(&blob.from).map_err(ImageError::Io)?;
        return Err(ImageError::DigestMismatch {
            what: format!("the blob {}", blob.digest),
            place: "the cache".to_owned(),
            expected: Box::new(blob.digest),
            actual: Box::new(actual),
            remedy: "it was deleted; pull the image again",
        });
    }
    Ok(())
}

fn to_folder(blobs: &[Blob], entry: Value, dir: &Path, progress: &mut Progress<'_>) -> Result<(), ImageError> {
    let target = |reason: String| ImageError::Target { path: dir.to_owned(), reason };
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            let is_layout = dir.join("oci-layout").is_file();
            if !is_layout && entries.next().is_some() {
                return Err(target("it is a folder with other things in it; name a new one, an OCI layout, or a file that ends in .tar, .tar.gz or .tar.zst".to_owned()));
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(target("it is a file; an archive's name ends in .tar, .tar.gz or .tar.zst".to_owned()));
        }
        Err(e) => return Err(ImageError::Io(e)),
    }
    let blobs_dir = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs_dir).map_err(ImageError::Io)?;
    for blob in blobs {
        let path = dir.join(blob_name(&blob.digest));
        if holds(&path, blob, progress.ctx)? {
            progress.done += blob.size;
            continue;
        }
        let failed = |e| ImageError::io(e, "write", &path, "the saved image", blob.size);
        let mut file = tempfile::Builder::new()
            .prefix(fsutil::TEMPORARY)
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(&blobs_dir)
            .map_err(failed)?;
        copy(blob, &mut file, &failed, progress)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
    }
    let marker = dir.join("oci-layout");
    let write = |path: &Path, text: &[u8]| {
        fsutil::write_atomic(path, text, 0o644)
            .map_err(|e| ImageError::io(e, "write", path, "the saved image", text.len() as u64))
    };
    if !marker.exists() {
        write(&marker, OCI_LAYOUT.as_bytes())?;
    }
    // Two that save into one layout: each sees what the other added. Where locks are not known, one at a time.
    let lock = fs::File::open(&marker).map_err(ImageError::Io)?;
    let _ = lock.file().lock();
    let path = dir.join("index.json");
    let index = match fs::read(&path) {
        Ok(bytes) => {
            let index: Value = serde_json::from_slice(&bytes).map_err(|e| target(format!("its index.json: {e}")))?;
            merge(index, entry, progress.ctx).ok_or_else(|| target("its index.json is no index".to_owned()))?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => new_index(&[entry]),
        Err(e) => return Err(ImageError::Io(e)),
    };
    write(&path, index.to_string().as_bytes())
}

/// Whether the blob is there and right.
fn holds(path: &Path, blob: &Blob, ctx: &Ctx) -> Result<bool, ImageError> {
    if !fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() == blob.size) {
        return Ok(false);
    }
    let mut file = fs::File::open(path).map_err(ImageError::Io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        ctx.check()?;
        match file.read(&mut buffer).map_err(ImageError::Io)? {
            0 => return Ok(Digest::finish(hasher) == blob.digest),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// The index with the entry in place of one of the same name and platform, or with the same digest and no other tag. Where
/// the tag is that of an image of another name (`alpha:24.04`, `beta:24.04`), the whole name stands in its place.
fn merge(mut index: Value, mut entry: Value, ctx: &Ctx) -> Option<Value> {
    let tag = entry["annotations"][REF_NAME].clone();
    let name = entry["annotations"][IMAGE_NAME].clone();
    let entries = index.get_mut("manifests")?.as_array_mut()?;
    let is_another = |old: &Value| {
        let old = &old["annotations"][IMAGE_NAME];
        !name.is_null() && !old.is_null() && *old != name
    };
    if entries.iter().any(|old| old["annotations"][REF_NAME] == tag && is_another(old))
        && let Some(whole) = name.as_str()
    {
        ctx.note(format!("the tag {tag} of this layout is another image's; this one is `{whole}` there"));
        entry["annotations"][REF_NAME] = json!(whole);
    }
    entries.retain(|old| {
        let same_name = !name.is_null() && old["annotations"][IMAGE_NAME] == name;
        let same_tag = same_name || old["annotations"][REF_NAME] == tag && !is_another(old);
        let replaces = match (&tag, &old["platform"]) {
            (Value::Null, _) => old["digest"] == entry["digest"],
            (_, Value::Null) => true,
            (_, platform) => {
                platform["architecture"] == entry["platform"]["architecture"]
                    && platform["os"] == entry["platform"]["os"]
            }
        };
        !(same_tag && replaces)
    });
    entries.push(entry);
    Some(index)
}

fn to_archive(
    blobs: &[Blob],
    entry: &Value,
    target: &Path,
    packing: &Packing,
    progress: &mut Progress<'_>,
) -> Result<(), ImageError> {
    let parent = fsutil::parent_of(target);
    let needed = progress.total;
    let failed = |e| ImageError::io(e, "write", target, "the saved image", needed);
    fs::create_dir_all(parent).map_err(ImageError::Io)?;
    let file = tempfile::Builder::new()
        .prefix(fsutil::TEMPORARY)
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(parent)
        .map_err(failed)?;
    let index = new_index(std::slice::from_ref(entry)).to_string();
    let mut out = io::BufWriter::with_capacity(1 << 20, file.as_file());
    match packing {
        Packing::Plain => write_members(blobs, &index, &mut out, &failed, progress)?,
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::default());
            write_members(blobs, &index, &mut encoder, &failed, progress)?;
            encoder.finish().map_err(failed)?;
        }
        Packing::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(&mut out, 3).map_err(failed)?;
            encoder.include_checksum(true).map_err(failed)?;
            write_members(blobs, &index, &mut encoder, &failed, progress)?;
            encoder.finish().map_err(failed)?;
        }
    }
    out.flush().map_err(failed)?;
    drop(out);
    file.as_file().sync_all().map_err(failed)?;
    file.persist(target).map_err(|e| failed(e.error))?;
    Ok(())
}

fn write_members(
    blobs: &[Blob],
    index: &str,
    to: &mut dyn Write,
    failed: &dyn Fn(io::Error) -> ImageError,
    progress: &mut Progress<'_>,
) -> Result<(), ImageError> {
    let mut writer = Writer::new(to);
    for (name, text) in [("oci-layout", OCI_LAYOUT), ("index.json", index)] {
        writer.append(&Member::file(name, text.len() as u64), &mut text.as_bytes()).map_err(failed)?;
    }
    for name in ["blobs", "blobs/sha256"] {
        writer.append(&Member::directory(name), &mut io::empty()).map_err(failed)?;
    }
    for blob in blobs {
        let member = Member::file(&blob_name(&blob.digest), blob.size);
        writer.begin(&member).map_err(failed)?;
        copy(blob, writer.inner(), failed, progress)?;
        writer.pad(blob.size).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}
