//! Libraries that are named by a path: `-soname /build/...`, or one without a soname that was given to the linker by its path.
//! After the edit they are found by name along the search path, from another folder, with the old one gone; the version tables
//! name them too, and glibc's loader ends with an assertion where they do not agree.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use slurm_factory::elf::{Edit, Edited, SearchPath, Strip, edit, parse};

use crate::tools::{edited, elflint, folder, readelf_warnings, run, tool, worse, write_program};

#[test]
fn paths_become_names() {
    for linker in ["bfd", "gold", "lld", "mold"] {
        for more in [&[][..], &["-O2", "-Wl,-O2"], &["-Wl,--hash-style=sysv", "-s"]] {
            try_linker(&format!("-fuse-ld={linker}"), more);
        }
    }
}

fn try_linker(linker: &str, more: &[&str]) {
    let name = format!("{linker} {more:?}");
    let (_guard, dir) = folder();
    let build = dir.join("the-build/lib");
    std::fs::create_dir_all(&build).unwrap();
    std::fs::write(dir.join("v.map"), "V1 { global: one; local: *; };\n").unwrap();
    std::fs::write(dir.join("one.c"), "int one(void){return 1;}\n").unwrap();
    std::fs::write(dir.join("two.c"), "int one(void); int two(void){return 1 + one();}\n").unwrap();
    std::fs::write(dir.join("three.c"), "int two(void); int three(void){return 1 + two();}\n").unwrap();
    std::fs::write(dir.join("main.c"), "int three(void); int one(void); int main(){return three() + one() - 4;}\n")
        .unwrap();
    let path = |file: &str| build.join(file).to_str().unwrap().to_owned();
    let soname = |file: &str| format!("-Wl,-soname,{}", path(file));
    let gcc = |args: &[&str]| drop(tool("gcc", &[args, &[linker], more].concat(), &dir));
    // With versions and a path as its soname; with a path as its soname; without a soname, so that its path is used.
    let shared = ["-shared", "-fPIC"];
    gcc(&[&shared[..], &["-o", &path("libone.so"), "one.c", &soname("libone.so"), "-Wl,--version-script=v.map"]]
        .concat());
    gcc(&[&shared[..], &["-o", &path("libtwo.so"), "two.c", &soname("libtwo.so"), &path("libone.so")]].concat());
    gcc(&[&shared[..], &["-o", &path("libthree.so"), "three.c", &path("libtwo.so")]].concat());
    gcc(&["-o", &path("main"), "main.c", &path("libthree.so"), &path("libone.so")]);
    assert_eq!(run(&mut Command::new(path("main")), Duration::from_secs(20)).code, Some(0), "{name}");

    let new = dir.join("new");
    std::fs::create_dir(&new).unwrap();
    let text = dir.join("the-build").to_str().unwrap().as_bytes().to_vec();
    for file in ["libone.so", "libtwo.so", "libthree.so", "main"] {
        let name = format!("{name}: {file}");
        let data = std::fs::read(build.join(file)).unwrap();
        let before = parse(&data).unwrap();
        let what = Edit {
            search_path: SearchPath::Rpath(b"$ORIGIN".to_vec()),
            bare_below: Some(text.clone()),
            strip: Strip::Debug,
        };
        let bytes = edited(&data, &what, &name);
        let after = parse(&bytes).unwrap();
        let shown = |names: &[Vec<u8>]| -> Vec<String> {
            names.iter().map(|name| String::from_utf8(name.clone()).unwrap()).collect()
        };
        let bare = |names: &[Vec<u8>]| -> Vec<String> {
            shown(names).iter().map(|n| Path::new(n).file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(shown(&after.needed), bare(&before.needed), "{name}");
        let soname: Vec<_> = before.soname.clone().into_iter().collect();
        assert_eq!(shown(&after.soname.clone().into_iter().collect::<Vec<_>>()), bare(&soname), "{name}");
        for need in &after.version_needs {
            assert!(after.needed.contains(&need.library), "{name}: the version table names {:?}", need.library);
        }
        let leak = bytes.windows(text.len()).any(|window| window == text);
        assert!(!leak, "{name}: the old folder is still there");
        let out = new.join(file);
        write_program(&out, &bytes);
        let added = worse(&elflint(&build.join(file)), &elflint(&out));
        assert!(added.is_empty(), "{name}: eu-elflint: {added:#?}");
        assert!(readelf_warnings(&out) <= readelf_warnings(&build.join(file)), "{name}: readelf warns");

        // Without another search path, and for another folder.
        let names_only = Edit { bare_below: Some(text.clone()), ..Edit::default() };
        let kept = parse(&edited(&data, &names_only, &name)).unwrap();
        assert_eq!((&kept.needed, kept.search_path()), (&after.needed, before.search_path()), "{name}");
        let other = Edit { bare_below: Some(b"/somewhere/else".to_vec()), ..Edit::default() };
        assert_eq!(edit(&data, &other), Ok(Edited::Unchanged), "{name}");
    }
    std::fs::rename(dir.join("the-build"), dir.join("gone")).unwrap();
    let ended = run(&mut Command::new(new.join("main")), Duration::from_secs(20));
    assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
    tool("strip", &["main", "libone.so", "libtwo.so", "libthree.so"], &new);
    let ended = run(&mut Command::new(new.join("main")), Duration::from_secs(20));
    assert_eq!(ended.code, Some(0), "{name}, stripped: {ended:?}");
}
