//! A small install tree in Spack's form, made without Spack: `app` links `lib`, `tool` was needed to build, one external.

use serde_json::{Value, json};
use slurm_factory::buildcache::check::{self, Kind, Report};
use slurm_factory::buildcache::manifest::{Blob, Manifest, TARBALL};
use slurm_factory::buildcache::{Again, BuildcacheError, Pushed, Request, Selection, Tree, Wanted, index, push, spec};
use slurm_factory::publish::{FolderStore, Store};
use slurm_factory::report::Ctx;
use slurm_factory::secret::Secret;
use slurm_factory::sign::{Algorithm, Keyring, SigningKey, clearsign, generate};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

pub const ROOT: &str = slurm_factory::plan::inside::INSTALL_TREE;

/// How many ways, rounds and kills; `tests/deep` says more.
pub const WAYS: &str = "SLURM_FACTORY_TEST_PUBLISH_WAYS";
pub const ROUNDS: &str = "SLURM_FACTORY_TEST_PUBLISH_ROUNDS";
pub const KILLS: &str = "SLURM_FACTORY_TEST_PUBLISH_KILLS";

pub fn count(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |n| n.parse().unwrap())
}

/// What was needed to build, too.
pub fn all() -> Selection {
    Selection { build_dependencies: true, ..Selection::default() }
}

/// Of the packages of the world only this.
pub fn only(name: &str) -> Selection {
    let mut exclude = globset::GlobSetBuilder::new();
    for other in ["app", "lib", "tool"].iter().filter(|n| **n != name) {
        exclude.add(globset::Glob::new(other).unwrap());
    }
    Selection { roots: vec![name.into()], exclude: exclude.build().unwrap(), ..Selection::default() }
}

pub fn report(store: &dyn Store, keyring: &Keyring, unsigned: bool) -> Report {
    let scratch = tempfile::tempdir().unwrap();
    check::check(store, keyring, unsigned, Some(scratch.path()), &Ctx::silent()).unwrap()
}

/// What is wrong with a cache.
pub fn kinds(store: &dyn Store, keyring: &Keyring) -> Vec<Kind> {
    report(store, keyring, false).faults.iter().map(|f| f.kind).collect()
}

/// Names of what the index has.
pub fn names(store: &dyn Store) -> Vec<String> {
    index::read(store, &Ctx::silent()).unwrap().0.entries().into_iter().map(|e| e.name).collect()
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub tree: Tree,
    pub key: SigningKey,
}

fn node(name: &str, version: &str, dependencies: &[(&Value, &[&str])], external: bool) -> Value {
    let mut node = json!({
        "name": name, "version": version,
        "arch": {"platform": "linux", "platform_os": "debian12", "target": "x86_64"},
        "namespace": "test", "parameters": {"build_system": "generic", "cflags": ["-DNAME=\"é\""]},
    });
    if external {
        node["external"] = json!({"path": "/usr", "module": null, "extra_attributes": {}});
    }
    if !dependencies.is_empty() {
        let list: Vec<Value> = dependencies
            .iter()
            .map(|(d, kinds)| json!({"name": d["name"], "hash": d["hash"], "parameters": {"deptypes": kinds, "virtuals": []}}))
            .collect();
        node["dependencies"] = list.into();
    }
    node["hash"] = spec::dag_hash(&node).into();
    node
}

fn write(path: &Path, bytes: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let gmake = node("gmake", "4.3", &[], true);
        let tool = node("tool", "1", &[], false);
        let lib = node("lib", "0.5.16", &[(&gmake, &["build"])], false);
        let app =
            node("app", "git.x/y=2", &[(&gmake, &["build"]), (&tool, &["build"]), (&lib, &["build", "link"])], false);
        let mut installs = serde_json::Map::new();
        let mut place = |nodes: &[&Value], explicit: bool| -> PathBuf {
            let root = nodes[0];
            let hash = root["hash"].as_str().unwrap();
            let name = format!("{}-{hash}", root["name"].as_str().unwrap());
            let spec = json!({"spec": {"_meta": {"version": 5}, "nodes": nodes}}).to_string();
            write(&store.join(&name).join(".spack/spec.json"), spec.as_bytes(), 0o644);
            let record =
                json!({"spec": root, "path": format!("{ROOT}/{name}"), "installed": true, "explicit": explicit});
            installs.insert(hash.to_owned(), record);
            store.join(name)
        };
        let lib_dir = place(&[&lib, &gmake], false);
        let tool_dir = place(&[&tool], false);
        let app_dir = place(&[&app, &lib, &tool, &gmake], true);
        installs.insert(
            gmake["hash"].as_str().unwrap().to_owned(),
            json!({"spec": gmake, "path": "/usr", "installed": true, "explicit": false}),
        );
        let lib_prefix = format!("{ROOT}/{}", lib_dir.file_name().unwrap().to_str().unwrap());
        write(&tool_dir.join("bin/tool"), b"#!/bin/sh\n", 0o755);
        write(
            &lib_dir.join("lib/liblib.so"),
            &[b"\x7fELF\x02\x01\x01\0".as_slice(), &vec![7; 3 << 20]].concat(),
            0o755,
        );
        symlink("liblib.so", lib_dir.join("lib/liblib.so.1")).unwrap();
        symlink(format!("{lib_prefix}/lib/liblib.so"), app_dir.join("absolute")).unwrap();
        write(&app_dir.join("bin/app"), format!("#!/bin/sh\n{lib_prefix}/lib\n").as_bytes(), 0o755);
        fs::hard_link(app_dir.join("bin/app"), app_dir.join("bin/also")).unwrap();
        write(&app_dir.join("share/none.txt"), b"names no store\n", 0o600);
        write(
            &app_dir.join("share/far.txt"),
            &[vec![b'.'; (1 << 20) - 9], lib_prefix.as_bytes().to_vec()].concat(),
            0o644,
        );
        write(&app_dir.join("share/empty"), b"", 0o644);
        let long = format!("share/{}/{}/naïve file", "x".repeat(60), "y".repeat(60));
        write(&app_dir.join(&long), b"content", 0o644);
        symlink(format!("{}/target", "z".repeat(120)), app_dir.join("share/long-link")).unwrap();
        write(&app_dir.join(".spack/log"), format!("{ROOT}\n").as_bytes(), 0o644);
        // Left by an installation from a cache; written anew.
        write(&app_dir.join(".spack/binary_distribution"), b"{old: true}", 0o644);
        let database = json!({"database": {"version": "8", "installs": installs}}).to_string();
        write(&store.join(".spack-db/index.json"), database.as_bytes(), 0o644);
        let made = generate("Test", "", None, Algorithm::Ed25519).unwrap();
        let secret = Secret::new(made.secret.expose().clone());
        let key = SigningKey::from_bytes("the test", &secret, None).unwrap();
        Self { tree: Tree::open(&store).unwrap(), dir, key }
    }

    pub fn keyring(&self) -> Keyring {
        let mut keyring = Keyring::new();
        keyring.add_key(&self.key);
        keyring
    }

    pub fn hash(&self, name: &str) -> String {
        self.tree.packages().values().find(|p| p.name == name).unwrap().hash.clone()
    }

    /// Name and version.
    pub fn wanted(&self, name: &str) -> Wanted {
        let package = self.tree.packages().values().find(|p| p.name == name).unwrap();
        (package.name.clone(), package.version.clone())
    }

    /// Pushes to any store.
    pub fn push_to(&self, store: &dyn Store, selection: &Selection) -> Result<Pushed, BuildcacheError> {
        self.push_into(store, &self.tree, selection, 2, &Again::Nothing, None)
    }

    /// The same, with the tarballs that another cache has.
    pub fn push_taking(&self, store: &dyn Store, from: &dyn Store) -> Result<Pushed, BuildcacheError> {
        self.push_into(store, &self.tree, &all(), 2, &Again::Nothing, Some(from))
    }

    pub fn push(&self, cache: &Path, selection: &Selection) -> Pushed {
        self.push_tree(&self.tree, cache, selection, 2)
    }

    pub fn try_push(&self, cache: &Path) -> Result<Pushed, BuildcacheError> {
        self.push_with(&self.tree, cache, &Selection::default(), 2, &Again::Nothing)
    }

    pub fn push_tree(&self, tree: &Tree, cache: &Path, selection: &Selection, threads: usize) -> Pushed {
        self.push_with(tree, cache, selection, threads, &Again::Nothing).unwrap()
    }

    /// Everything, and again what is named.
    pub fn push_again(&self, cache: &Path, again: &Again) -> Pushed {
        self.push_with(&self.tree, cache, &all(), 2, again).unwrap()
    }

    fn push_with(
        &self,
        tree: &Tree,
        cache: &Path,
        selection: &Selection,
        threads: usize,
        again: &Again,
    ) -> Result<Pushed, BuildcacheError> {
        self.push_into(&FolderStore::new(cache), tree, selection, threads, again, None)
    }

    fn push_into(
        &self,
        store: &dyn Store,
        tree: &Tree,
        selection: &Selection,
        threads: usize,
        again: &Again,
        made: Option<&dyn Store>,
    ) -> Result<Pushed, BuildcacheError> {
        let scratch = tempfile::tempdir().unwrap();
        let request = Request {
            tree,
            packages: tree.select(selection)?,
            spack: "/opt/spack",
            key: &self.key,
            keyring: &self.keyring(),
            scratch: scratch.path(),
            threads,
            again,
            made,
        };
        push(store, &request, &Ctx::silent())
    }

    /// Gives `app` a manifest, well signed, that names the tarball of `lib`.
    pub fn lie(&self, cache: &Path) {
        let read = |name: &str| {
            let dir = cache.join("v3/manifests/spec").join(name);
            let path = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let inner = text[text.find('{').unwrap()..=text.rfind('}').unwrap()].to_owned();
            (path, Manifest::parse(&inner).unwrap())
        };
        let (path, app) = read("app");
        let (_, lib) = read("lib");
        let spec: Blob = app.data[1].clone();
        let lie = Manifest::new(vec![lib.blob(TARBALL).unwrap().clone(), spec]);
        fs::write(path, clearsign(&self.key, &lie.text()).unwrap()).unwrap();
    }
}
