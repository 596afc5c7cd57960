//! What goes into a package beside the view, and what its manifest says.

use crate::package::{self, Content, PackageName, layout, manifest, modulefile};
use crate::pipeline::BuildError;
use crate::plan::{BuildPlan, Compression, SourcePin, Variant};
use crate::relocate::Report;
use crate::relocate::text::PLACEHOLDER;
use crate::relocate::verify::Findings;
use crate::secret::without_login;
use crate::spack::Installed;
use fs_err as fs;
use include_dir::{Dir, include_dir};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

static PAYLOAD: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/payload");

/// Modulefiles, payload and lockfile.
pub fn contents(name: &PackageName, facts: &package::Facts, installed: &Installed) -> Result<Vec<Content>, BuildError> {
    let file = |name: PathBuf, bytes: Vec<u8>, executable: bool| Content::Bytes { name, bytes, executable };
    let mut contents: Vec<Content> =
        modulefile::files(name, facts)?.into_iter().map(|(path, text)| file(path, text.into_bytes(), false)).collect();
    contents.extend(assets());
    contents.push(file(Path::new(layout::ASSETS).join("spack.lock"), fs::read(installed.lock_file())?, false));
    Ok(contents)
}

/// What ships whatever is built: `assets/payload` with all of its folders. What lies at its top and ends in `.sh` is there to be
/// run; the rest is read.
pub fn assets() -> Vec<Content> {
    let mut contents = Vec::new();
    let mut folders = vec![&PAYLOAD];
    while let Some(folder) = folders.pop() {
        folders.extend(folder.dirs());
        contents.extend(folder.files().map(|entry| Content::Bytes {
            name: Path::new(layout::ASSETS).join(entry.path()),
            bytes: entry.contents().to_vec(),
            executable: folder.path() == Path::new("") && entry.path().extension().is_some_and(|e| e == "sh"),
        }));
    }
    contents
}

/// The archive's compression for the plan's.
pub fn compression(kind: Compression) -> package::Compression {
    match kind {
        Compression::Gzip => package::Compression::GZIP,
        Compression::Zstd => package::Compression::ZSTD,
    }
}

/// What of it a plan decides, and `gcc`, the version that compiles.
pub fn planned(plan: &BuildPlan, gcc: &str) -> package::Facts {
    let identity = &plan.identity;
    let source = |name: &str, pin: &SourcePin| manifest::Source {
        name: name.to_owned(),
        url: without_credentials(&pin.source),
        reference: pin.reference.clone(),
        revision: pin.commit.clone(),
    };
    let mut recipes: Vec<_> = plan
        .execution
        .repos
        .iter()
        .map(|repo| manifest::Source {
            name: repo.namespace.clone(),
            revision: format!("sha256:{}", repo.digest),
            ..manifest::Source::default()
        })
        .collect();
    recipes.push(manifest::Source {
        name: "slurm_factory".into(),
        revision: format!("sha256:{}", identity.own_repo_digest),
        ..manifest::Source::default()
    });
    recipes.push(source("builtin", &identity.spack_packages));
    let mut options = BTreeMap::new();
    if identity.variant != Variant::Default {
        options.insert("variant".to_owned(), identity.variant.name().to_owned());
    }
    if !identity.features.is_empty() {
        options.insert("features".to_owned(), identity.features.join(","));
    }
    package::Facts {
        tool: manifest::Tool { name: env!("CARGO_PKG_NAME").into(), version: identity.tool.clone() },
        // The plan of a compiler has no Slurm.
        slurm: (!identity.slurm_version.is_empty()).then(|| manifest::Version {
            requested: identity.slurm_version.clone(),
            release: identity.release.patch.clone(),
        }),
        compiler: manifest::Version { requested: identity.compiler.clone(), release: gcc.to_owned() },
        toolchain: identity.toolchain.name.clone(),
        target: identity.target.clone(),
        options,
        image: manifest::Image {
            reference: identity.toolchain.image.clone(),
            digest: identity.toolchain.image_digest.clone(),
        },
        spack: source("spack", &identity.spack),
        recipes,
        specs: std::iter::once(&identity.spec).chain(&identity.roots).cloned().collect(),
        plan_sha256: plan.digest.to_string(),
        created: identity.epoch,
        placeholder: PLACEHOLDER.to_owned(),
        ..package::Facts::default()
    }
}

/// What the manifest says.
pub fn facts(
    plan: &BuildPlan,
    gcc: &str,
    installed: &Installed,
    report: &Report,
    findings: &Findings,
    packages: Vec<manifest::Installed>,
) -> package::Facts {
    package::Facts {
        lock_sha256: installed.lock_digest().to_owned(),
        packages,
        glibc: findings.glibc.as_ref().map(|floor| manifest::GlibcFloor {
            version: floor.version.clone(),
            file: in_view(&floor.path),
            symbol: floor.symbol.clone().unwrap_or_default(),
            library: floor.library.clone(),
        }),
        fill_in: report.fill_in.iter().map(|p| in_view(p)).collect(),
        strings: report
            .places
            .iter()
            .map(|place| manifest::StringPlace {
                path: in_view(&place.path),
                offset: place.offset as u64,
                text: place.text.clone(),
                reason: place.reason.clone(),
            })
            .collect(),
        leaks: findings
            .allowed
            .iter()
            .map(|leak| manifest::Leak {
                path: in_view(&leak.path),
                text: leak.strings.first().map(|named| named.text.clone()).unwrap_or_default(),
                reason: leak.reason.clone(),
            })
            .collect(),
        relocation: manifest::Relocation {
            elf_files: findings.elf_files as u64,
            elf_changed: report.elf_edited,
            symlinks_changed: report.links_rewritten,
            text_changed: report.text_rewritten,
            pruned_files: report.pruned.iter().map(|p| p.files).sum(),
            pruned_bytes: report.pruned.iter().map(|p| p.bytes).sum(),
            stripped_bytes: report.bytes_before.saturating_sub(report.bytes_after),
        },
        ..planned(plan, gcc)
    }
}

fn in_view(path: &Path) -> String {
    package::encode_path(&Path::new("view").join(path))
}

/// A URL without user name and password; a path is named by its last part, because where it lay on the builder's
/// disk tells nothing to anyone else.
pub(super) fn without_credentials(source: &str) -> String {
    if source.contains("://") {
        return without_login(source);
    }
    Path::new(source).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::{assets, without_credentials};
    use crate::package::Content;

    #[test]
    fn the_payload_is_whole_and_its_script_can_be_run() {
        let names: Vec<_> = assets()
            .into_iter()
            .map(|content| match content {
                Content::Bytes { name, executable, .. } => (name.to_string_lossy().into_owned(), executable),
                tree @ Content::Tree { .. } => panic!("{tree:?}"),
            })
            .collect();
        for (name, executable) in [
            ("slurm_install.sh", true),
            ("lib/act.sh", false),
            ("config/slurm.conf", false),
            ("systemd/slurmd.service", false),
        ] {
            assert!(names.contains(&(format!("data/slurm_assets/{name}"), executable)), "{name} in {names:?}");
        }
    }

    #[test]
    fn no_password_and_no_path_of_the_builder_in_a_manifest() {
        assert_eq!(without_credentials("https://user:secret@host/x.git"), "https://host/x.git");
        assert_eq!(without_credentials("https://user:p@ss@host/x@y.git"), "https://host/x@y.git");
        assert_eq!(without_credentials("/home/me/spack"), "spack");
    }
}
