//! Every plan that the catalog can make, and what Spack is told for it, beside what they were before: a change of catalog,
//! plan or rendering shows which combinations it touches. `UPDATE_SNAPSHOTS=1 cargo test --test catalog` writes them anew.
//!
//! With `SLURM_FACTORY_TEST_RENDER=DIR` the same is written to DIR for tests/deep/concretize.sh, which asks real Spack.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

use sha2::{Digest, Sha256};
use slurm_factory::cache::Cache;
use slurm_factory::catalog::Catalog;
use slurm_factory::package::manifest::Installed;
use slurm_factory::package::{CompilerName, Content, PackageName, modulefile};
use slurm_factory::plan::compiler::recipes;
use slurm_factory::plan::{
    BuildPlan, BuildRequest, Choice, Compression, Facts, Network, Publish, SourcePin, Variant, plan,
};
use slurm_factory::spack::render::{MIRRORS, Rendered, mirrors_file, render};
use slurm_factory::spack::{Compiler, External, own_repo};
use slurm_factory::workflows::payload;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const VARIANTS: [Variant; 3] = [Variant::Default, Variant::Minimal, Variant::Gpu];

/// These are kept whole, to be read.
const WHOLE: [&str; 5] =
    ["25.11-default-noble", "24.11-gpu-rockylinux8", "23.11-minimal-debian12", "gcc-13.4.0", "compiled-by-gcc-13.4.0"];

#[derive(Clone)]
struct Case {
    name: String,
    plan: BuildPlan,
    rendered: Rendered,
}

fn request(slurm: &str, variant: Variant, toolchain: &str, choice: Choice) -> BuildRequest {
    BuildRequest {
        slurm_version: slurm.into(),
        compiler_version: "system".into(),
        toolchain: toolchain.into(),
        variant,
        choice,
        compression: Compression::Gzip,
        jobs: 4,
        cpus: 0,
        memory: 0,
        shm_size: 2 << 30,
        disk: 0,
        nice: 0,
        network: Network::Host,
        offline: false,
        use_cache: true,
        publish: Publish::None,
    }
}

fn facts(catalog: &Catalog, toolchain: &str) -> Facts {
    let pin = |pin: &slurm_factory::catalog::GitPin| SourcePin {
        source: pin.source.clone(),
        reference: pin.reference.clone(),
        commit: "c".repeat(40),
    };
    Facts {
        image: catalog.toolchain(toolchain).unwrap().image,
        image_digest: format!("sha256:{}", "a".repeat(64)),
        platform: "linux/amd64".into(),
        spack: pin(&catalog.spack),
        spack_packages: pin(&catalog.spack_packages),
        own_repo_digest: "b".repeat(64),
        bare_repo_digest: "0".repeat(64),
        rules_digest: "d".repeat(64),
        repos: vec![],
        source_mirrors: vec![],
        binary_mirrors: vec![],
        package_sources: None,
        snapshot: None,
        host_cpus: 8,
    }
}

/// The programs of a toolchain's distribution.
fn externals(catalog: &Catalog, toolchain: &str) -> Vec<External> {
    let versions: BTreeMap<String, BTreeMap<String, String>> = toml::from_str(include_str!("externals.toml")).unwrap();
    let probes = catalog.toolchain(toolchain).unwrap().external;
    let found = External::found(&probes, &versions[toolchain]);
    assert_eq!(found.len(), probes.len(), "tests/catalog/externals.toml names all of {toolchain}'s");
    found
}

fn case(catalog: &Catalog, name: String, request: &BuildRequest) -> Case {
    let plan = plan(request, catalog, facts(catalog, &request.toolchain)).unwrap();
    let gcc = Compiler::of_rootfs(&catalog.toolchain(&request.toolchain).unwrap().gcc);
    let rendered = render(&plan, &gcc, &externals(catalog, &request.toolchain)).unwrap();
    Case { name, plan, rendered }
}

/// Every version on every toolchain in every variant.
fn all(catalog: &Catalog) -> Vec<Case> {
    let mut cases = Vec::new();
    for release in &catalog.slurm {
        for variant in VARIANTS {
            for toolchain in catalog.toolchains() {
                let name = format!("{}-{}-{toolchain}", release.version, variant.name());
                let request = request(&release.version, variant, &toolchain, Choice::default());
                cases.push(case(catalog, name, &request));
            }
        }
    }
    cases
}

/// Each feature alone over the least that runs, on the default toolchain, and the targets.
fn single(catalog: &Catalog) -> Vec<Case> {
    let of = |name: String, choice| {
        let defaults = &catalog.defaults;
        case(catalog, name, &request(&defaults.slurm, Variant::Minimal, &defaults.toolchain, choice))
    };
    let features = catalog
        .features
        .iter()
        .filter(|(_, feature)| feature.refused.is_none())
        .map(|(name, _)| of(format!("with-{name}"), Choice { with: vec![name.clone()], ..Choice::default() }));
    let targets = catalog
        .target
        .iter()
        .filter(|t| t.platform == "linux/amd64" && t.level != Some(1))
        .map(|t| of(format!("target-{}", t.name), Choice { target: Some(t.name.clone()), ..Choice::default() }));
    features.chain(targets).collect()
}

/// Each GCC that is built, on the default toolchain, the default one on each, and a Slurm that it compiles.
fn compiled(catalog: &Catalog) -> Vec<Case> {
    let defaults = &catalog.defaults;
    let versions = catalog.compiler.iter().map(|compiler| (compiler.version.clone(), defaults.toolchain.clone()));
    let others = catalog.toolchains().into_iter().filter(|toolchain| *toolchain != defaults.toolchain);
    let toolchains = others.map(|toolchain| (defaults.gcc.clone(), toolchain));
    let of = |(version, toolchain): (String, String)| {
        let mut request = request(&defaults.slurm, Variant::Default, &toolchain, Choice::default());
        request.compiler_version.clone_from(&version);
        let mut facts = facts(catalog, &toolchain);
        recipes(&version, &catalog.toolchain(&toolchain).unwrap(), catalog)
            .clone_into(&mut facts.spack_packages.reference);
        let externals = externals(catalog, &toolchain);
        let slurm = plan(&request, catalog, facts).unwrap();
        let gcc = slurm.compiler().unwrap().unwrap();
        let own = Compiler::of_rootfs(&catalog.toolchain(&toolchain).unwrap().gcc);
        let first = render(&gcc, &own.that_builds_gcc(), &externals).unwrap();
        let then = render(&slurm, &Compiler::in_store(&version, &"h".repeat(32)), &externals).unwrap();
        let on = if toolchain == defaults.toolchain { String::new() } else { format!("-{toolchain}") };
        [
            Case { name: format!("gcc-{version}{on}"), plan: gcc, rendered: first },
            Case { name: format!("compiled-by-gcc-{version}{on}"), plan: slurm, rendered: then },
        ]
    };
    versions.chain(toolchains).flat_map(of).collect()
}

/// The default build for aarch64, on each toolchain that has an image for it.
fn arm(catalog: &Catalog) -> Vec<Case> {
    let of = |name: String| {
        let toolchain = catalog.toolchain(&name).unwrap();
        let request = request(&catalog.defaults.slurm, Variant::Default, &name, Choice::default());
        let facts = Facts { platform: "linux/arm64".into(), ..facts(catalog, &name) };
        let plan = plan(&request, catalog, facts).unwrap();
        let rendered = render(&plan, &Compiler::of_rootfs(&toolchain.gcc), &externals(catalog, &name)).unwrap();
        toolchain.platforms.contains(&"linux/arm64".to_owned()).then(|| Case {
            name: format!("arm64-{name}"),
            plan,
            rendered,
        })
    };
    catalog.toolchains().into_iter().filter_map(of).collect()
}

/// What a package of this plan says of itself and how it is loaded, as far as the plan decides it: `manifest.json` and the
/// modulefiles of both kinds.
fn package(catalog: &Catalog, case: &Case) -> String {
    let identity = &case.plan.identity;
    let own = catalog.toolchain(&identity.toolchain.name).unwrap().gcc;
    let gcc = identity.gcc.as_ref().map_or(own, |built| built.version.clone());
    let root = |name: &str| Installed { name: name.into(), version: "1.0".into(), ..Installed::default() };
    let packages = identity.roots.iter().map(|name| root(name)).collect();
    let facts = slurm_factory::package::Facts { packages, ..payload::planned(&case.plan, &gcc) };
    let files = if identity.slurm_version.is_empty() {
        modulefile::compiler_files(&CompilerName(gcc), &facts)
    } else {
        modulefile::files(&PackageName { version: identity.slurm_version.clone(), compiler: gcc }, &facts)
    };
    let mut text = format!("# manifest.json\n{}\n", serde_json::to_string_pretty(&facts).unwrap());
    for (path, content) in files.unwrap() {
        let _ = write!(text, "\n# {}\n{content}", path.display());
    }
    text
}

fn text(catalog: &Catalog, case: &Case) -> String {
    let mut text = serde_json::to_string_pretty(&case.plan).unwrap();
    let _ = write!(text, "\n\n# spack.yaml\n{}", case.rendered.spack_yaml);
    for (name, content) in &case.rendered.scope {
        let _ = write!(text, "\n# {name}\n{content}");
    }
    text + "\n" + &package(catalog, case)
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))[..16].to_owned()
}

fn compare(file: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/catalog/snapshots").join(file);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, now).unwrap();
        return;
    }
    let before = fs_err::read_to_string(&path).unwrap();
    let changed = before.lines().zip(now.lines()).find(|(before, now)| before != now);
    assert!(
        before == now,
        "{file} is not what it was: first `{changed:?}`. If that is meant: UPDATE_SNAPSHOTS=1 cargo test --test catalog"
    );
}

#[test]
fn every_combination_is_what_it_was() {
    let catalog = Catalog::embedded().unwrap();
    let mut table = String::from(
        "# combination; sums of its plan as JSON, of spack.yaml, of the scope, of manifest and modulefiles; what is built\n",
    );
    let cases = [all(&catalog), single(&catalog), compiled(&catalog), arm(&catalog)].concat();
    assert!(cases.len() > 100 && cases.iter().any(|case| case.name == "arm64-noble"));
    for case in &cases {
        let plan = serde_json::to_string(&case.plan).unwrap();
        let files = case.rendered.scope.iter().map(|(name, text)| [name, text].map(String::as_str).join("\n"));
        let scope: String = files.collect();
        let files = [plan, case.rendered.spack_yaml.clone(), scope, package(&catalog, case)];
        let sums = files.map(|text| digest(&text)).join(" ");
        let identity = &case.plan.identity;
        let what =
            std::iter::once(&identity.spec).chain(&identity.roots).map(String::as_str).collect::<Vec<_>>().join(" + ");
        let _ = writeln!(table, "{:<32} {sums} {} {what}", case.name, identity.target);
        if WHOLE.contains(&case.name.as_str()) {
            compare(&format!("{}.txt", case.name), &text(&catalog, case));
        }
    }
    compare("table.txt", &table);
}

/// What ships in every package, whatever is built: names, sums, and what may be run.
#[test]
fn what_ships_beside_is_what_it_was() {
    let mut table = String::from("# sum, whether it is run, name\n");
    let mut files: Vec<_> = payload::assets()
        .into_iter()
        .map(|content| match content {
            Content::Bytes { name, bytes, executable } => (name, hex::encode(Sha256::digest(&bytes)), executable),
            Content::Tree { root, .. } => panic!("{} is a folder", root.display()),
        })
        .collect();
    files.sort();
    for (name, sum, executable) in files {
        let _ = writeln!(table, "{} {} {}", &sum[..16], if executable { 'x' } else { '-' }, name.display());
    }
    compare("assets.txt", &table);
}

#[test]
fn combinations_differ_where_they_should() {
    let catalog = Catalog::embedded().unwrap();
    let cases = all(&catalog);
    let digests: std::collections::BTreeSet<_> = cases.iter().map(|c| c.plan.digest.to_string()).collect();
    assert_eq!(digests.len(), catalog.slurm.len() * VARIANTS.len() * catalog.toolchains().len());
    for case in &cases {
        let gpu = case.name.contains("-gpu-");
        assert_eq!(case.plan.identity.features.contains(&"nvml".to_owned()), gpu, "{}", case.name);
        assert!(case.rendered.spack_yaml.contains(&case.plan.identity.release.recipe), "{}", case.name);
    }
}

/// What tests/deep/concretize.sh gives to Spack: a folder a case with the files, and what must and must not come of it.
#[test]
fn rendered_for_real_spack() {
    let Some(dir) = std::env::var_os("SLURM_FACTORY_TEST_RENDER").map(PathBuf::from) else {
        // Without a folder, to one of its own: that everything can be written is worth knowing.
        let dir = tempfile::tempdir().unwrap();
        return write(dir.path());
    };
    write(&dir);
}

fn write(dir: &Path) {
    let catalog = Catalog::embedded().unwrap();
    let cache = Cache::open(&dir.join("cache")).unwrap();
    write_compilers(&catalog, &cache, dir);
    let compiled: Vec<_> = compiled(&catalog).into_iter().filter(|case| case.plan.identity.gcc.is_some()).collect();
    for case in all(&catalog).iter().chain(&single(&catalog)).chain(&compiled) {
        let identity = &case.plan.identity;
        let folder = dir.join("cases").join(&case.name);
        write_files(&folder, &case.rendered);
        let repo = own_repo::write(&cache, &own_repo::digest(&identity.release), &identity.release).unwrap();
        let (on, off): (Vec<_>, Vec<_>) =
            catalog.features.iter().partition(|(name, _)| identity.features.contains(*name));
        let brings = |list: &[(&String, &slurm_factory::catalog::Feature)]| -> Vec<String> {
            list.iter().flat_map(|(_, feature)| feature.brings.clone()).collect()
        };
        let toolchain = catalog.toolchain(&identity.toolchain.name).unwrap();
        let expected = serde_json::json!({
            "root": ["slurm", identity.release.recipe],
            "recipes": recipes(&identity.compiler, &toolchain, &catalog),
            "gcc": identity.gcc.as_ref().map_or(toolchain.gcc, |built| built.version.clone()),
            "target": identity.target,
            "repo": repo,
            "with": brings(&on),
            "without": brings(&off),
        });
        fs_err::write(folder.join("expected.json"), expected.to_string()).unwrap();
    }
}

/// The environment of each GCC that the catalog names, as `build-compiler` has it.
fn write_compilers(catalog: &Catalog, cache: &Cache, dir: &Path) {
    for case in compiled(catalog).iter().filter(|case| case.plan.identity.gcc.is_none()) {
        let spec = case.plan.identity.spec.strip_prefix("gcc@=").unwrap();
        let version = spec.split(' ').next().unwrap();
        let folder = dir.join("cases").join(&case.name);
        write_files(&folder, &case.rendered);
        let release = &case.plan.identity.release;
        let expected = serde_json::json!({
            "root": ["gcc", version],
            "recipes": recipes(version, &catalog.toolchain(&case.plan.identity.toolchain.name).unwrap(), catalog),
            "target": case.plan.identity.target,
            "repo": own_repo::write(cache, &own_repo::digest(release), release).unwrap(),
            "with": ["gmp", "mpfr", "mpc", "binutils"],
            "without": ["slurm", "texinfo", "gawk"],
        });
        fs_err::write(folder.join("expected.json"), expected.to_string()).unwrap();
    }
}

fn write_files(folder: &Path, rendered: &Rendered) {
    fs_err::create_dir_all(folder.join("scope")).unwrap();
    fs_err::create_dir_all(folder.join("env")).unwrap();
    fs_err::write(folder.join("env/spack.yaml"), &rendered.spack_yaml).unwrap();
    for (name, text) in &rendered.scope {
        fs_err::write(folder.join("scope").join(name), text).unwrap();
    }
}

const PREFACE: &str = "\
# What can be built

Generated from `assets/catalog.toml` and `rootfs/`; `UPDATE_DOCS=1 cargo test --test catalog` writes it anew. A site adds its own:
[configuration.md](configuration.md#other-releases-and-pins). `slurm-factory plan` shows what came of it all.

Asked for something that is not here, the program answers with the list.
";

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|s| (*s).to_owned()).collect();
    let rule: Vec<String> = head.iter().map(|_| "---".to_owned()).collect();
    let rows: String = rows.into_iter().map(|row| line(&row)).collect();
    format!("\n{}|{}|\n{rows}", line(&head), rule.join("|"))
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// Marks what stands in for what was not said.
fn or_default(name: &str, default: &str) -> String {
    if name == default { format!("`{name}` (default)") } else { code(name) }
}

fn document(catalog: &Catalog) -> String {
    let mut text = PREFACE.to_owned();
    text += "\n## Slurm\n";
    text += &table(
        &["`--slurm-version`", "release"],
        catalog.slurm.iter().map(|r| vec![or_default(&r.version, &catalog.defaults.slurm), r.patch.clone()]),
    );
    text += "\n## Features\n\n`--with` adds one, `--without` leaves one out; both may be given several times. `--spec` takes Spack's own \
             words, laid over the rest; one that takes back a feature that was named is refused: `--spec '+hdf5 ^openssl@3.0'`.\n";
    let features_of = |variant: Variant| {
        let toolchain = &catalog.defaults.toolchain;
        let request = request(&catalog.defaults.slurm, variant, toolchain, Choice::default());
        plan(&request, catalog, facts(catalog, toolchain)).unwrap().identity.features
    };
    let of: Vec<_> = [Variant::Default, Variant::Gpu, Variant::Minimal].map(features_of).to_vec();
    text += &table(
        &["feature", "default", "`--gpu`", "`--minimal`", "what it is for"],
        catalog.features.iter().filter(|(_, f)| f.refused.is_none()).map(|(name, feature)| {
            let mut row = vec![code(name)];
            row.extend(of.iter().map(|list| if list.contains(name) { "yes" } else { "" }.to_owned()));
            row.push(feature.why.clone());
            row
        }),
    );
    text += "\nGPUs: [decisions/0010](decisions/0010-gpu-headers.md) says what is taken of CUDA and ROCm, and why so little.\n\nRefused, with what \
             to do instead:\n";
    for (name, feature) in &catalog.features {
        if let Some(why) = &feature.refused {
            let _ = write!(text, "\n- `{name}` ({}): {why}.", feature.why);
        }
    }
    text += "\n\n## Toolchains\n\nA package runs where glibc is as new as its toolchain's, or newer; `verify` says what it really needs.\n";
    text += &table(
        &["`--toolchain`", "image", "GCC", "glibc", "platforms"],
        catalog.toolchains().iter().map(|name| {
            let t = catalog.toolchain(name).unwrap();
            vec![or_default(name, &catalog.defaults.toolchain), code(&t.image), t.gcc, t.glibc, t.platforms.join(", ")]
        }),
    );
    text += "\nThe packages of each, with the reason for every one, are in `rootfs/NAME/packages.toml`.\n\n## Compilers\n\n`--compiler-version \
             system` (default), or the exact version of the toolchain's own GCC, which is the same and says so. Built by \
             Spack first, with the toolchain's GCC, or taken from a binary cache ([compilers.md](compilers.md)): ";
    text += &catalog
        .compiler
        .iter()
        .map(|c| match &c.recipes {
            Some(tag) => format!("{} (with the recipes {tag}, unless others are named)", c.version),
            None if c.version == catalog.defaults.gcc => format!("{} (the default of `build-compiler`)", c.version),
            None => c.version.clone(),
        })
        .collect::<Vec<_>>()
        .join(", ");
    text += ".\n\n## Targets\n";
    text += &table(
        &["`--target`", "platform", "runs on"],
        catalog.target.iter().map(|t| vec![code(&t.name), t.platform.clone(), t.runs.clone()]),
    );
    text += "\nFor a level above the first, Slurm's files carry it: the loader of glibc 2.33 and newer refuses them on an older processor with \
             a message in place of an illegal instruction, and `verify` fails where a file asks for more than the manifest's target. The \
             ld of Rocky Linux 8 cannot write it. The libraries below Slurm do not carry it.\n\n## Pins\n\nWhat Spack is told of packages below Slurm. A site's pin takes the place \
             of ours whole.\n";
    text += &table(&["package", "pin"], catalog.pins.iter().map(|(name, pin)| vec![code(name), code(pin)]));
    text += "\n## Binary caches of others\n";
    text += &table(
        &["name", "`why`: whose", "`url`: address"],
        catalog.caches.iter().map(|(name, cache)| vec![code(name), cache.why.clone(), code(&cache.url)]),
    );
    text += "\nNone is asked unless a site trusts its key by the whole fingerprint (`fingerprint` in `[catalog.caches.NAME]`); then it is the last \
             of the `binary-mirrors`, and of the keys that it offers that one is believed. `plan` names it then. A package is taken from a \
             binary cache by its hash, which recipes, compiler, image and the length of the store's path decide: expect nothing of a cache \
             that was filled by the older tool, whose recipes and paths are others. Its caches of whole Slurms (`.../slurm/VERSION`) and of \
             compilers (`.../compilers/VERSION`) are named by a `url` of your own, or as `binary-mirrors`.\n";
    text
}

#[test]
fn the_document_is_what_the_catalog_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/catalog.md");
    let now = document(&Catalog::embedded().unwrap());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs_err::write(&path, now).unwrap();
        return;
    }
    assert_eq!(
        fs_err::read_to_string(&path).unwrap(),
        now,
        "docs/catalog.md is old: UPDATE_DOCS=1 cargo test --test catalog"
    );
}

/// Spack is told only of binaries that were checked, wherever they came from.
#[test]
fn binary_caches_are_named_when_they_were_checked() {
    let catalog = Catalog::embedded().unwrap();
    let request = request("25.11", Variant::Minimal, "noble", Choice::default());
    let facts = Facts {
        source_mirrors: vec!["/srv/sources".into()],
        binary_mirrors: vec!["/srv/binaries".into(), "https://site.test/binaries".into()],
        ..facts(&catalog, "noble")
    };
    let plan = plan(&request, &catalog, facts).unwrap();
    let before =
        render(&plan, &Compiler::of_rootfs("13.3.0"), &externals(&catalog, "noble")).unwrap().scope[MIRRORS].clone();
    assert_eq!(before, mirrors_file(&plan, false).unwrap(), "not before they are there");
    for checked in [false, true] {
        let text = mirrors_file(&plan, checked).unwrap();
        assert!(text.contains("source-0") && !text.contains("/srv/"), "{text}");
        assert_eq!(text.contains("checked"), checked, "{text}");
        assert!(!text.contains("site.test"), "{text}");
        assert_eq!(text.matches("signed: true").count(), usize::from(checked), "{text}");
    }
}
