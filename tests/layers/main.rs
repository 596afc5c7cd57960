//! The layer rule of `src/lib.rs`, kept by reading every `crate::` path in the sources, in bodies and in macros'
//! arguments too: a module uses only what is below it, and sideways only along the edges named here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Module and layer.
const LAYERS: [(&str, u8); 28] = [
    ("cache", 0),
    ("fsutil", 0),
    ("gzip", 0),
    ("pax", 0),
    ("process", 0),
    ("report", 0),
    ("secret", 0),
    ("sha256", 0),
    ("wait", 0),
    ("catalog", 1),
    ("config", 1),
    ("elf", 1),
    ("oldest", 1),
    ("plan", 1),
    ("buildcache", 2),
    ("image", 2),
    ("package", 2),
    ("publish", 2),
    ("relocate", 2),
    ("rootfs", 2),
    ("sandbox", 2),
    ("sign", 2),
    ("spack", 2),
    ("pipeline", 3),
    ("resolve", 3),
    ("workflows", 3),
    ("cli", 4),
    ("main", 4),
];

/// Stages that use another stage's types. Leaves and pure modules may use each other; a cycle is an error anyway.
///
/// `publish` uses `image` for its client of registries: logins, tokens, certificates and proxies of a registry are one thing,
/// whether it is read or written.
const SIDEWAYS: [(&str, &str); 7] = [
    ("buildcache", "publish"),
    ("buildcache", "sign"),
    ("package", "sign"),
    ("publish", "image"),
    ("rootfs", "image"),
    ("rootfs", "sandbox"),
    ("spack", "sandbox"),
];

fn layer(module: &str) -> u8 {
    let found = LAYERS.iter().find(|(name, _)| *name == module);
    found.unwrap_or_else(|| panic!("module `{module}` has no layer: add it to tests/layers and to src/lib.rs")).1
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

fn module_of(src: &Path, file: &Path) -> String {
    let first = file.strip_prefix(src).unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The names after each `crate::`, groups (`crate::{a, b::c}`) included.
fn crate_paths(tokens: TokenStream, into: &mut BTreeSet<(String, usize)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (index, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            crate_paths(group.stream(), into);
        }
        let is_crate = matches!(token, TokenTree::Ident(ident) if ident == "crate");
        if !is_crate
            || !(1..=2).all(|i| matches!(tokens.get(index + i), Some(TokenTree::Punct(p)) if p.as_char() == ':'))
        {
            continue;
        }
        match tokens.get(index + 3) {
            Some(TokenTree::Ident(name)) => {
                into.insert((name.to_string(), name.span().start().line));
            }
            Some(TokenTree::Group(group)) => {
                let mut first = true;
                for token in group.stream() {
                    match token {
                        TokenTree::Ident(name) if first => {
                            into.insert((name.to_string(), name.span().start().line));
                            first = false;
                        }
                        TokenTree::Punct(p) if p.as_char() == ',' => first = true,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// Every use of one module by another, with where it stands.
fn edges(src: &Path) -> BTreeMap<(String, String), String> {
    let mut edges = BTreeMap::new();
    for file in sources(src) {
        let text = fs_err::read_to_string(&file).unwrap();
        let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        syn::parse2::<syn::File>(tokens.clone()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let from = module_of(src, &file);
        if from == "lib" {
            continue;
        }
        let mut paths = BTreeSet::new();
        crate_paths(tokens, &mut paths);
        for (to, line) in paths.into_iter().filter(|(to, _)| *to != from) {
            edges.entry((from.clone(), to)).or_insert_with(|| format!("{}:{line}", file.display()));
        }
    }
    edges
}

#[test]
fn a_module_uses_only_what_is_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let edges = edges(&src);
    assert!(edges.len() > 30, "the sources were not read: {} edges", edges.len());
    let mut offences = Vec::new();
    for ((from, to), place) in &edges {
        let (above, below) = (layer(from), layer(to));
        let sideways = SIDEWAYS.contains(&(from.as_str(), to.as_str())) || (above == below && above != 2);
        if below > above || (below == above && !sideways) {
            offences.push(format!("{place}: {from} (L{above}) uses {to} (L{below})"));
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn pure_modules_do_no_io() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in sources(&src) {
        let module = module_of(&src, &file);
        if module == "lib" || layer(&module) != 1 {
            continue;
        }
        let text = fs_err::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in [
            "std::fs",
            "fs_err",
            "std::env::",
            "SystemTime",
            "Instant::now",
            "Timestamp::now",
            "std::net",
            "std::process",
        ] {
            assert!(!code.contains(word), "{}: a pure module names {word}", file.display());
        }
    }
}

#[test]
fn only_the_top_reads_the_environment() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in sources(&src) {
        let module = module_of(&src, &file);
        // process passes PATH and proxies on to programs of the host; the helper of the sandbox reads its argv.
        if ["lib", "main", "cli", "resolve", "process"].contains(&module.as_str()) {
            continue;
        }
        let text = fs_err::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in ["env::var(", "env::var_os(", "env::vars"] {
            assert!(!code.contains(word), "{}: a stage reads the environment ({word})", file.display());
        }
    }
}

#[test]
fn the_reader_sees_uses_in_bodies_groups_and_macros() {
    let text = "fn f() { crate::a::g(); vec![crate::b::X]; } use crate::{c, d::{e, f}};";
    let mut paths = BTreeSet::new();
    crate_paths(text.parse().unwrap(), &mut paths);
    let names: Vec<_> = paths.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}
