//! The files that tell Spack what to do, as data: `spack.yaml` and a configuration scope.
//!
//! Values are built as trees and written by `serde-saphyr`, which quotes every scalar that a YAML 1.1 reader
//! (PyYAML, hence Spack) would take for something else. Keys that end in `:` are Spack's "replace, do not
//! merge" marker: `mirrors::` in YAML is the key `mirrors:`. Sources: Spack v1.0 documentation, "Configuration
//! Files" and "Environments".

use super::Compiler;
use crate::catalog::Probe;
use crate::plan::{BuildPlan, inside};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A program of the rootfs that Spack takes as it is instead of building it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Spack's name for the package.
    pub name: String,
    /// The version found in the rootfs.
    pub version: String,
    /// Its variants in Spack's words: `+threads`, or empty.
    pub variants: String,
    /// Where it is installed, `/usr`.
    pub prefix: String,
}

impl External {
    /// The rootfs's own programs, of those that were looked for. A program that the rootfs does not have is built.
    pub fn found(probes: &[Probe], versions: &BTreeMap<String, String>) -> Vec<Self> {
        let of = |probe: &Probe| {
            Some(Self {
                name: probe.name.clone(),
                version: versions.get(&probe.name)?.clone(),
                variants: probe.variants.clone(),
                prefix: "/usr".into(),
            })
        };
        probes.iter().filter_map(of).collect()
    }
}

/// Why a file cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {file} as YAML: {source}")]
pub struct RenderError {
    file: String,
    source: serde_saphyr::ser_error::Error,
}

/// The rendered files: name to text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The environment.
    pub spack_yaml: String,
    /// File name to text, for the folder given to `spack -C`.
    pub scope: BTreeMap<String, String>,
}

/// The path of the environment inside the sandbox.
pub fn environment_dir(plan: &BuildPlan) -> String {
    format!("{}/{}", inside::ENVIRONMENTS, plan.environment.short())
}

/// The path of the view inside the sandbox. Each has a folder of its own: Spack makes the new symlink as
/// `._view_link` beside the view, and builds that run at once would take each other's.
pub fn view_dir(plan: &BuildPlan) -> String {
    format!("{}/{}/view", inside::VIEWS, plan.environment.short())
}

/// The path of the configuration scope inside the sandbox.
pub fn scope_dir(plan: &BuildPlan) -> String {
    format!("{}/{}", inside::SCOPES, plan.environment.short())
}

/// Renders the files. `gcc` compiles.
pub fn render(plan: &BuildPlan, gcc: &Compiler, externals: &[External]) -> Result<Rendered, RenderError> {
    let files = [
        ("config.yaml", config(plan)),
        ("packages.yaml", packages(plan, gcc, externals)),
        ("repos.yaml", repos(plan)),
        // Binary caches are named when there are keys to check them with.
        (MIRRORS, mirrors(plan, false)),
        ("bootstrap.yaml", bootstrap()),
        ("concretizer.yaml", concretizer()),
    ];
    let mut scope = BTreeMap::new();
    for (name, value) in files {
        scope.insert(name.to_owned(), to_yaml(name, &value)?);
    }
    Ok(Rendered { spack_yaml: to_yaml("spack.yaml", &environment(plan, gcc))?, scope })
}

/// The file of mirrors.
pub const MIRRORS: &str = "mirrors.yaml";

/// The file of mirrors for the installation. `checked`: binaries that were checked are mounted as the first of
/// [`inside::BINARIES`].
pub fn mirrors_file(plan: &BuildPlan, checked: bool) -> Result<String, RenderError> {
    to_yaml(MIRRORS, &mirrors(plan, checked))
}

fn to_yaml(file: &str, value: &Value) -> Result<String, RenderError> {
    serde_saphyr::to_string(value).map_err(|source| RenderError { file: file.to_owned(), source })
}

fn environment(plan: &BuildPlan, gcc: &Compiler) -> Value {
    let roots = std::iter::once(&plan.identity.spec).chain(&plan.identity.roots);
    let specs: Vec<String> = roots.map(|spec| gcc.root(spec)).collect();
    json!({"spack": {
        "specs": specs,
        "view": {"default": {
            "root": view_dir(plan),
            // Spack's word for link and run dependencies; build dependencies stay out.
            "link": "all",
            "link_type": "hardlink",
        }},
        "concretizer": {"unify": true},
    }})
}

fn config(plan: &BuildPlan) -> Value {
    json!({"config": {
        "install_tree": {
            "root": inside::STORE,
            "padded_length": inside::PADDED_LENGTH,
            "projections": {"all": "{name}-{version}-{hash}"},
        },
        "build_stage": [inside::STAGE],
        "test_stage": format!("{}/test", inside::STAGE),
        "source_cache": inside::SOURCE_CACHE,
        "misc_cache": super::index::recipes_inside(&plan.identity),
        "license_dir": format!("{}/licenses", inside::USER),
        "build_jobs": plan.execution.jobs,
        "verify_ssl": true,
        "checksum": true,
        // Libraries are found by the path in each file, never by the environment.
        "shared_linking": {"type": "rpath", "bind": false},
        "connect_timeout": 20,
        // Another build in the same store may hold a package for as long as its compilation takes.
        "db_lock_timeout": 3600,
        "install_status": true,
        "suppress_gpg_warnings": true,
    }})
}

fn packages(plan: &BuildPlan, gcc: &Compiler, externals: &[External]) -> Value {
    let mut packages = Map::new();
    packages.insert("all".into(), json!({"target": [plan.identity.target], "providers": plan.identity.providers}));
    for external in externals {
        packages.insert(
            external.name.clone(),
            json!({
                "externals": [{
                    "spec": format!("{}@{}{}", external.name, external.version, external.variants),
                    "prefix": external.prefix,
                }],
                "buildable": false,
            }),
        );
    }
    packages.insert("gcc".into(), gcc.package());
    for (name, constraint) in &plan.identity.pins {
        let entry = packages.entry(name.clone()).or_insert_with(|| json!({}));
        if let Some(entry) = entry.as_object_mut() {
            entry.insert("require".into(), json!([constraint]));
        }
    }
    json!({"packages": packages})
}

fn repos(plan: &BuildPlan) -> Value {
    let mut repos = Map::new();
    for (index, repo) in plan.execution.repos.iter().enumerate() {
        repos.insert(repo.namespace.clone(), json!(overlay_repo_dir(index, &repo.namespace)));
    }
    repos.insert("slurm_factory".into(), json!(format!("{}/spack_repo/slurm_factory", inside::OWN_REPO)));
    repos.insert("builtin".into(), json!(format!("{}/repos/spack_repo/builtin", inside::PACKAGES)));
    json!({"repos:": repos})
}

/// Where the site's recipe repository number `index` is seen inside the sandbox. The folder names matter:
/// Spack's package API v2 imports recipes as `spack_repo.<namespace>`.
pub fn overlay_repo_dir(index: usize, namespace: &str) -> String {
    format!("{}/{index}/spack_repo/{namespace}", inside::OVERLAYS)
}

/// Mirrors of binaries are not named, wherever they are: what is taken from them was checked, and lies in one place when there is
/// any.
fn mirrors(plan: &BuildPlan, checked: bool) -> Value {
    let mut mirrors = Map::new();
    for (index, mirror) in plan.execution.source_mirrors.iter().enumerate() {
        let url = if mirror.contains("://") { mirror.clone() } else { format!("file://{}/{index}", inside::MIRRORS) };
        mirrors.insert(format!("source-{index}"), json!({"url": url, "source": true, "binary": false}));
    }
    if checked {
        let url = format!("file://{}/0", inside::BINARIES);
        mirrors.insert("checked".into(), json!({"url": url, "source": false, "binary": true, "signed": true}));
    }
    json!({"mirrors:": mirrors})
}

fn bootstrap() -> Value {
    // `enable: false` breaks Spack v1.0.0 (`spack gpg` fails although gpg is in PATH); no sources is what keeps
    // it from the network.
    json!({"bootstrap:": {"enable": true, "root": format!("{}/bootstrap", inside::USER), "sources": [], "trusted": {}}})
}

fn concretizer() -> Value {
    // What the solver chooses follows from the plan alone: with `reuse`, it would also follow from what happens to
    // be in the store. Equal choices have equal hashes, so what is there is still used and not built again.
    json!({"concretizer": {"reuse": false, "unify": true, "targets": {"granularity": "generic"}}})
}
