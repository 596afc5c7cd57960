//! Every kind of file in which build systems leave the prefix, with its outcome: in a package (the staged copy) and in a tree
//! that is moved where it lies. docs/relocate.md has the same table.

use crate::util::run_in as run;
use fs_err as fs;
use slurm_factory::catalog::{PathRule, RelocateRules};
use slurm_factory::elf::{self, Edit, Edited, SearchPath, Strip};
use slurm_factory::relocate::verify::Problem;
use slurm_factory::relocate::{Compressed, Origin, Request, Rules, in_place, relocate};
use slurm_factory::report::Ctx;
use slurm_factory::workflows::verify::files;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const ROOT: &str = slurm_factory::plan::inside::ROOT;

/// Path, content with `@` for the prefix, what becomes of it in a package.
#[derive(Debug, PartialEq, Clone, Copy)]
enum Becomes {
    /// Left out by a rule.
    Pruned,
    /// Kept, without the prefix.
    Free,
    /// Kept, listed for `install` to fill in.
    Listed,
}

const KINDS: [(&str, &str, Becomes); 13] = [
    ("lib/libz.la", "libdir='@/lib'\ndependency_libs=' -L@/lib'\n", Becomes::Pruned),
    ("lib/pkgconfig/z.pc", "prefix=@\nlibdir=${prefix}/lib\n", Becomes::Pruned),
    ("lib/cmake/z/zConfig.cmake", "set(Z_DIR \"@/include\")\n", Becomes::Pruned),
    ("lib64/cmake/y/y-targets.cmake", "set(_IMPORT_PREFIX \"@\")\n", Becomes::Pruned),
    ("bin/z-config", "#!/bin/sh\nprefix=@\necho $prefix\n", Becomes::Pruned),
    ("lib/python3.11/_sysconfigdata__linux.py", "build_time_vars = {'prefix': '@'}\n", Becomes::Pruned),
    ("lib/python3.11/__pycache__/x.pyc", "\0\0@/lib\0", Becomes::Pruned),
    ("lib/perl5/Config_heavy.pl", "installprefix='@'\n", Becomes::Listed),
    ("etc/tool.conf", "PluginDir=@/lib/plugins:@/lib/more\n", Becomes::Listed),
    ("bin/short", "#!@/bin/perl -w\nprint 1;\n", Becomes::Free),
    ("bin/long", "#!@/LONG/bin/perl\nprint 1;\n", Becomes::Free),
    ("bin/sbang", "#!/bin/sh @/../bin/sbang\n#!@/LONG/bin/perl -w\nprint 1;\n", Becomes::Free),
    ("bin/plain", "#!/bin/sh\necho nothing of the build\n", Becomes::Free),
];

fn long(text: &str, prefix: &str) -> String {
    text.replace("LONG", &"very-long/".repeat(20)).replace('@', prefix)
}

fn origin(dir: &Path) -> Origin {
    Origin {
        host_root: dir.to_owned(),
        inside_root: ROOT.into(),
        inside_store: format!("{ROOT}/store"),
        inside_views: format!("{ROOT}/view"),
        inside_view: format!("{ROOT}/view/v"),
    }
}

/// A slot with a view of these files and a library with -g3: macros and paths in debug sections.
fn slot(dir: &Path) -> Origin {
    let view = dir.join("view/v");
    for (path, content, _) in KINDS {
        let to = view.join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(&to, long(content, &format!("{ROOT}/store/pkg-1-hash"))).unwrap();
    }
    library(&view.join("lib/libdebug.so"), ROOT, dir, "-gz=none");
    library(&view.join("lib/libzdebug.so"), ROOT, dir, "-gz=zlib");
    origin(dir)
}

/// The prefix stands in `.debug_macro`'s strings, in `.debug_line` and as the folder that it was compiled in.
fn library(to: &Path, prefix: &str, dir: &Path, compressed: &str) {
    fs::write(dir.join("d.c"), "int one(void) { return 1; }\n").unwrap();
    let define = format!("-DWHERE=\"{prefix}/etc\"");
    let map = format!("-fdebug-prefix-map={}={prefix}/stage", dir.display());
    run("gcc", &["-g3", compressed, &define, &map, "-shared", "-fPIC", "-o", to.to_str().unwrap(), "d.c"], dir);
}

#[test]
fn in_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let origin = slot(dir.path());
    let debug = fs::read(dir.path().join("view/v/lib/libdebug.so")).unwrap();
    assert!(memchr::memmem::find_iter(&debug, ROOT).count() >= 2, "-g3 was expected to leave the prefix");
    let rules = Rules::embedded().unwrap();
    let tree = dir.path().join("tree");
    let relocated = relocate(&origin, &rules, &tree, &Ctx::silent()).unwrap();
    let listed = &relocated.report().fill_in;
    for (path, _, becomes) in KINDS {
        let found = match fs::read(tree.join(path)) {
            Err(_) => Becomes::Pruned,
            Ok(_) if listed.iter().any(|p| p == Path::new(path)) => Becomes::Listed,
            Ok(text) if memchr::memmem::find(&text, ROOT.as_bytes()).is_none() => Becomes::Free,
            Ok(text) => panic!("{path}: a silent leftover: {}", String::from_utf8_lossy(&text)),
        };
        assert_eq!(found, becomes, "{path}");
    }
    for (script, line) in [
        ("short", "#!/usr/bin/env -S perl -w\n"),
        ("long", "#!/usr/bin/env perl\n"),
        ("sbang", "#!/usr/bin/env -S perl -w\n"),
    ] {
        assert!(fs::read_to_string(tree.join("bin").join(script)).unwrap().starts_with(line), "{script}");
    }
    let problems = files(&tree, &rules, &Ctx::silent()).unwrap().problems;
    let leaks: Vec<_> = problems.into_iter().filter(|p| matches!(p, Problem::Leak { .. })).collect();
    assert_eq!(leaks, [], "debug sections are gone too");
}

/// A site that wants the files for building keeps them: then they are listed, not forgotten.
#[test]
fn what_a_site_keeps_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let origin = slot(dir.path());
    let keep =
        |glob: &str| PathRule { glob: glob.into(), string: None, reason: "this site compiles against it".into() };
    let globs = ["lib*/{pkgconfig,cmake,python3*}/**", "*.la", "bin/*-config"];
    let site = RelocateRules { keep: globs.map(keep).into(), ..RelocateRules::default() };
    let tree = dir.path().join("tree");
    let relocated = relocate(&origin, &Rules::of_site(&site).unwrap(), &tree, &Ctx::silent()).unwrap();
    let listed: Vec<_> = relocated.report().fill_in.iter().map(|p| p.to_str().unwrap()).collect();
    for (path, ..) in KINDS.iter().filter(|(path, ..)| !path.starts_with("bin/") || path.ends_with("-config")) {
        if !path.contains("__pycache__") {
            assert!(listed.contains(path), "{path} is not among {listed:?}");
        }
    }
    // Compiled Python is no text: nothing can be filled in, and verify names it with string and offset.
    let rules = Rules::of_site(&site).unwrap();
    let problems = files(&tree, &rules, &Ctx::silent()).unwrap().problems;
    let pyc = problems.iter().find(|p| matches!(p, Problem::Leak { path, .. } if path.ends_with("x.pyc")));
    assert!(matches!(pyc, Some(Problem::Leak { strings, .. }) if strings[0].offset == 2), "{problems:?}");
}

#[test]
fn in_a_tree_that_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("the/old/prefix/of/the/tree"), dir.path().join("new"));
    let shown = from.to_str().unwrap();
    for (path, content, _) in KINDS {
        let file = from.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, long(content, shown)).unwrap();
    }
    library(&from.join("lib/libdebug.so"), shown, dir.path(), "-gz=none");
    fs::rename(&from, &to).unwrap();
    let request = Request { dir: &to, from: &from, to: &to, dry_run: false, force: false };
    let moved = in_place(&request, &Ctx::silent()).unwrap();
    assert_eq!(moved.leftovers, []);
    let new = to.to_str().unwrap();
    for (path, content, _) in KINDS {
        let text = fs::read(to.join(path)).unwrap();
        assert_eq!(memchr::memmem::find(&text, shown.as_bytes()), None, "{path}");
        if !path.starts_with("bin/") && !path.contains("__pycache__") {
            assert_eq!(String::from_utf8(text).unwrap(), long(content, new), "{path}");
        }
    }
    assert!(fs::read_to_string(to.join("bin/long")).unwrap().starts_with("#!/usr/bin/env perl\n"));
    // In binaries nothing moves: the new prefix, filled up with slashes.
    let debug = fs::read(to.join("lib/libdebug.so")).unwrap();
    assert_eq!(memchr::memmem::find(&debug, shown.as_bytes()), None);
    let padded = format!("{new}{}/etc", "/".repeat(shown.len() - new.len()));
    assert!(memchr::memmem::find(&debug, padded.as_bytes()).is_some(), "{padded}");
    run("readelf", &["--debug-dump=macro,info,decodedline", to.join("lib/libdebug.so").to_str().unwrap()], dir.path());
}

/// A library of which only parts are read, and the kernel copies the rest: the same bytes as when all of it is edited in memory.
#[test]
fn a_large_library_in_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let view = dir.path().join("view/v");
    for folder in ["bin", "lib"] {
        fs::create_dir_all(view.join(folder)).unwrap();
    }
    let numbers: Vec<String> = (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 16).to_string()).collect();
    let sum: u64 = numbers.iter().map(|n| n.parse::<u64>().unwrap()).sum();
    let text = format!(
        "static int t[] = {{{}}};\nlong sum(void) {{ long s = 0; for (int i = 0; i < 200000; i++) s += t[i]; return s; }}\n",
        numbers.join(",")
    );
    fs::write(dir.path().join("b.c"), text).unwrap();
    fs::write(
        dir.path().join("p.c"),
        "#include <stdio.h>\nlong sum(void);\nint main(void) { printf(\"%ld\", sum()); }\n",
    )
    .unwrap();
    let path = |name: &str| view.join(name).to_str().unwrap().to_owned();
    let (big, rpath) = (path("lib/libbig.so"), format!("-Wl,-rpath,{ROOT}/store/b-1-hash/lib"));
    run("gcc", &["-g3", "-shared", "-fPIC", "-o", &big, "-Wl,-soname,libbig.so", &rpath, "b.c"], dir.path());
    run("gcc", &["-o", &path("bin/p"), "p.c", &big, &rpath], dir.path());
    let whole = fs::read(&big).unwrap();
    assert!(whole.len() > 800_000, "{}", whole.len());

    let tree = dir.path().join("tree");
    relocate(&origin(dir.path()), &Rules::embedded().unwrap(), &tree, &Ctx::silent()).unwrap();
    let edit = Edit { search_path: SearchPath::Remove, strip: Strip::All, bare_below: Some(ROOT.into()) };
    let Ok(Edited::Changed(wanted)) = elf::edit(&whole, &edit) else { panic!("nothing to edit") };
    assert!(fs::read(tree.join("lib/libbig.so")).unwrap() == wanted, "other bytes");
    assert_eq!(run(tree.join("bin/p").to_str().unwrap(), &[], dir.path()), sum.to_string());
    // What grows moves the rest of the file.
    let moved = view.join("lib/deep/er/and/deeper");
    fs::create_dir_all(&moved).unwrap();
    let one = "int one(void) { return 1; }\nlong sum(void); long both(void) { return sum() + one(); }\n";
    fs::write(
        dir.path().join("n.c"),
        format!("static char t[] = \"{}\";\nchar *s(void) {{ return t; }}\n{one}", "x".repeat(90_000)),
    )
    .unwrap();
    let needs = moved.join("libneeds.so");
    run("gcc", &["-g3", "-shared", "-fPIC", "-o", needs.to_str().unwrap(), "n.c", &big], dir.path());
    let whole = fs::read(&needs).unwrap();
    let again = dir.path().join("again");
    relocate(&origin(dir.path()), &Rules::embedded().unwrap(), &again, &Ctx::silent()).unwrap();
    let edit = Edit { search_path: SearchPath::Rpath("$ORIGIN/../../../..".into()), ..edit };
    let Ok(Edited::Changed(wanted)) = elf::edit(&whole, &edit) else { panic!("nothing to edit") };
    let made = again.join("lib/deep/er/and/deeper/libneeds.so");
    assert!(fs::read(&made).unwrap() == wanted, "other bytes");
    let shown = run("ldd", &[made.to_str().unwrap()], dir.path());
    assert!(shown.contains("libbig.so => ") && !shown.contains("not found"), "{shown}");
}

/// What a compiler compressed is not moved silently: it stops the move, and is told where it was forced.
#[test]
fn compressed_sections_of_a_tree_that_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("the/old/prefix/of/the/tree"), dir.path().join("new"));
    fs::create_dir_all(from.join("lib")).unwrap();
    for how in ["zlib", "zstd"] {
        let made = from.join(format!("lib/lib{how}.so"));
        library(&made, from.to_str().unwrap(), dir.path(), "-gz=none");
        run("objcopy", &[&format!("--compress-debug-sections={how}"), made.to_str().unwrap()], dir.path());
    }
    fs::rename(&from, &to).unwrap();
    let before = ["zlib", "zstd"].map(|how| fs::read(to.join(format!("lib/lib{how}.so"))).unwrap());
    let request = Request { dir: &to, from: &from, to: &to, dry_run: false, force: false };
    let error = in_place(&request, &Ctx::silent()).unwrap_err().to_string();
    for how in ["zlib", "zstd"] {
        assert!(error.contains(&format!("lib/lib{how}.so at offset ")), "{error}");
    }
    assert!(error.contains("of its section .debug_") && error.contains(from.to_str().unwrap()), "{error}");
    assert!(error.contains("objcopy --decompress-debug-sections") && !error.contains("characters"), "{error}");
    let moved = in_place(&Request { force: true, ..request }, &Ctx::silent()).unwrap();
    assert!(
        moved
            .leftovers
            .iter()
            .all(|l| matches!(&l.compressed, Some(Compressed::Section(s)) if s.starts_with(".debug_"))),
        "{moved:?}"
    );
    assert_eq!(before, ["zlib", "zstd"].map(|how| fs::read(to.join(format!("lib/lib{how}.so"))).unwrap()));
    // What the error says helps.
    run("objcopy", &["--decompress-debug-sections", to.join("lib/libzlib.so").to_str().unwrap()], dir.path());
    run("strip", &["--strip-debug", to.join("lib/libzstd.so").to_str().unwrap()], dir.path());
    let moved = in_place(&request, &Ctx::silent()).unwrap();
    assert_eq!(moved.leftovers, []);
    assert!(moved.strings > 0);
}

/// Files that are compressed as a whole, named by several programs' own packing: what is in them is told like that.
#[test]
fn compressed_files_of_a_tree_that_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("the/old/prefix/of/the/tree"), dir.path().join("new"));
    fs::create_dir(&to).unwrap();
    for (name, text) in [("a", from.to_str().unwrap()), ("b", "nothing of it")] {
        fs::write(to.join(name), format!("see {text}/etc\n")).unwrap();
        for packer in ["gzip", "zstd", "xz"] {
            run(packer, &["-q", "-k", name], &to);
        }
        fs::remove_file(to.join(name)).unwrap();
    }
    let request = Request { dir: &to, from: &from, to: &to, dry_run: false, force: false };
    let error = in_place(&request, &Ctx::silent()).unwrap_err().to_string();
    for part in ["a.gz at offset 4 of what it holds, decompressed (gzip): `", "a.zst at offset 4 of what", "gunzip"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("b.") && !error.contains("objcopy"), "{error}");
    let moved = in_place(&Request { force: true, ..request }, &Ctx::silent()).unwrap();
    let unseen: Vec<_> = moved.unseen.iter().map(|u| (u.path.to_str().unwrap(), u.reason.contains("xz"))).collect();
    assert_eq!(unseen, [("a.xz", true), ("b.xz", true)]);
    // What the error says helps.
    run("gunzip", &["-q", "a.gz"], &to);
    fs::remove_file(to.join("a.zst")).unwrap();
    let moved = in_place(&request, &Ctx::silent()).unwrap();
    assert_eq!((moved.leftovers, moved.text), (vec![], 1));
}

/// In a package, a library that is named by its path in the build is found by its name; a loader of the build is refused; and
/// what a compiler compressed is looked into.
#[test]
fn names_loaders_and_compressed_sections() {
    let dir = tempfile::tempdir().unwrap();
    let view = dir.path().join("view/v");
    for folder in ["bin", "lib/deep"] {
        fs::create_dir_all(view.join(folder)).unwrap();
    }
    let origin = origin(dir.path());
    fs::write(dir.path().join("l.c"), "int one(void) { return 1; }\n").unwrap();
    fs::write(dir.path().join("p.c"), "int one(void);\nint main(void) { return one() - 1; }\n").unwrap();
    let path = |name: &str| view.join(name).to_str().unwrap().to_owned();
    let soname = format!("-Wl,-soname,{ROOT}/store/l-1-hash/lib/deep/libl.so");
    run("gcc", &["-shared", "-fPIC", "-o", &path("lib/deep/libl.so"), &soname, "l.c"], dir.path());
    run("gcc", &["-o", &path("bin/p"), "p.c", &path("lib/deep/libl.so")], dir.path());
    // One that was installed with the name that it had where it was built, in no package's folder.
    let soname = format!("-Wl,-soname,{ROOT}/stage/s-1/src/.libs/libs.so");
    run("gcc", &["-shared", "-fPIC", "-o", &path("lib/deep/libs.so"), &soname, "l.c"], dir.path());
    run("gcc", &["-o", &path("bin/staged"), "p.c", &path("lib/deep/libs.so")], dir.path());
    let loader = format!("{ROOT}/store/glibc/lib/ld.so");
    run(
        "gcc",
        &["-o", &path("bin/own"), "p.c", &path("lib/deep/libl.so"), &format!("-Wl,--dynamic-linker={loader}")],
        dir.path(),
    );
    let (rules, tree) = (Rules::embedded().unwrap(), dir.path().join("tree"));
    relocate(&origin, &rules, &tree, &Ctx::silent()).unwrap();
    for (program, library) in [("bin/p", "libl.so"), ("bin/staged", "libs.so")] {
        let program = tree.join(program);
        run(program.to_str().unwrap(), &[], dir.path());
        let dynamic = run("readelf", &["-dW", program.to_str().unwrap()], dir.path());
        let named = dynamic.contains(&format!("Shared library: [{library}]"));
        assert!(named && dynamic.contains("[$ORIGIN/../lib/deep]"), "{dynamic}");
    }
    let problems = files(&tree, &rules, &Ctx::silent()).unwrap().problems;
    let own = Path::new("bin/own");
    assert!(
        problems
            .iter()
            .any(|p| matches!(p, Problem::Interpreter { path, interpreter } if path == own && *interpreter == loader)),
        "{problems:?}"
    );
    assert!(problems.iter().all(|p| p.to_string().starts_with("bin/own: ")), "{problems:?}");

    // The same tree before that, and libraries whose debug sections nobody took out.
    for how in ["zlib", "zstd", "none"] {
        let made = Path::new("lib").join(format!("lib{how}.so"));
        library(&view.join(&made), ROOT, dir.path(), "-gz=none");
        run("objcopy", &[&format!("--compress-debug-sections={how}"), &path(made.to_str().unwrap())], dir.path());
    }
    fs::write(view.join("page"), format!("see {ROOT}/etc and {ROOT}/lib\n")).unwrap();
    run("gzip", &["page"], &view);
    fs::write(view.join("closed"), "who knows\n").unwrap();
    run("xz", &["closed"], &view);
    let findings = files(&view, &rules, &Ctx::silent()).unwrap();
    let unseen: Vec<_> = findings.unseen.iter().map(|u| format!("{}: {}", u.path.display(), u.reason)).collect();
    assert_eq!(unseen, ["closed.xz: it is compressed (xz), and not looked into"]);
    let found = findings.problems;
    let page = found.iter().find(|p| matches!(p, Problem::Leak { path, .. } if path == Path::new("page.gz"))).unwrap();
    let want = format!(
        "page.gz: names the build at offset 4 of what it holds, decompressed (gzip): `{ROOT}/etc and {ROOT}/lib`, "
    );
    assert!(page.to_string().starts_with(&want), "{page}");
    let by_path =
        |p: &Problem| matches!(p, Problem::NamedByPath { library, .. } if library.ends_with("/lib/deep/libl.so"));
    assert_eq!(found.iter().filter(|p| by_path(p)).count(), 2, "{found:?}");
    let of_stage = |p: &Problem| matches!(p, Problem::NamedByPath { library, .. } if library.ends_with("/libs.so"));
    assert_eq!(found.iter().filter(|p| of_stage(p)).count(), 1, "{found:?}");
    for how in ["zlib", "zstd", "none"] {
        let leak = |p: &Problem| match p {
            Problem::Leak { path, compressed, strings, .. } if path.ends_with(format!("lib{how}.so")) => {
                compressed.is_some() == (how != "none") && strings[0].text.starts_with(ROOT)
            }
            _ => false,
        };
        let count = found.iter().filter(|p| leak(p)).count();
        assert!(count > 0, "{how}: {found:#?}");
        assert!(how == "none" || found.iter().any(|p| p.to_string().contains("of its section .debug_")), "{found:#?}");
    }
}

/// Programs of one content in two folders, as `make install` of git links them: each finds the library from where it is.
#[test]
fn a_program_with_names_in_two_folders_of_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let view = dir.path().join("view/v");
    for folder in ["bin", "lib", "libexec/git-core"] {
        fs::create_dir_all(view.join(folder)).unwrap();
    }
    fs::write(dir.path().join("l.c"), "int one(void) { return 0; }\n").unwrap();
    fs::write(dir.path().join("p.c"), "int one(void); int main(void) { return one(); }\n").unwrap();
    let text = |name: &str| view.join(name).to_str().unwrap().to_owned();
    let lib = text("lib/libl.so");
    run("gcc", &["-shared", "-fPIC", "-Wl,-soname,libl.so", "-o", &lib, "l.c"], dir.path());
    run("gcc", &["-o", &text("bin/git"), "p.c", &lib, &format!("-Wl,-rpath,{ROOT}/store/git-2-h/lib")], dir.path());
    for name in ["bin/git-shell", "libexec/git-core/git", "libexec/git-core/git-add", "libexec/git"] {
        fs::hard_link(view.join("bin/git"), view.join(name)).unwrap();
    }
    let (rules, tree) = (Rules::embedded().unwrap(), dir.path().join("tree"));
    let relocated = relocate(&origin(dir.path()), &rules, &tree, &Ctx::silent()).unwrap();
    assert_eq!(relocated.report().files, 6);
    assert_eq!(files(&tree, &rules, &Ctx::silent()).unwrap().problems, []);
    let ino = |name: &str| fs::metadata(tree.join(name)).unwrap().ino();
    for name in ["bin/git", "bin/git-shell", "libexec/git-core/git", "libexec/git-core/git-add", "libexec/git"] {
        run(tree.join(name).to_str().unwrap(), &[], dir.path());
    }
    // Names for which the path is the same stay one file.
    assert_eq!((ino("bin/git"), ino("libexec/git-core/git")), (ino("bin/git-shell"), ino("libexec/git-core/git-add")));
    assert_eq!(ino("bin/git"), ino("libexec/git"));
    assert_ne!(ino("bin/git"), ino("libexec/git-core/git"));
}
