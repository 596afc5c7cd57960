//! Programs and libraries built with every linker and flag that lays a file out differently.
//!
//! Each program finds `libfoo.so` through its search path and nothing else, so that running it shows that the path
//! was written right and that all else still works.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use slurm_factory::elf::{
    Edit, Edited, Elf, ElfError, Kind, SearchPath, Strip, edit, glibc_floor, glibc_symbol, parse, set_interpreter,
};

use crate::tools::{edit_of, edited, elflint, folder, readelf_warnings, run, tool, worse, write_program};

const LIBRARY: &str = r#"
#include <stdlib.h>
#include <string.h>
static __thread int tls = 40;
static int table[] = {1, 2, 3};
static int *pointers[] = {&table[0], &table[1], &table[2]};
static char bss[1 << 20];
__attribute__((constructor)) static void start(void) { bss[sizeof bss - 1] = 1; }
int foo(void) {
  char *text = strdup("x");
  int sum = tls + *pointers[0] + bss[sizeof bss - 1] + (text[0] == 'x') - 1;
  free(text);
  return sum;
}
"#;

const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <link.h>
#include <string.h>
extern int foo(void);
static char bss[3 << 20];
static const char *names[] = {"one", "two", "three"};
/* The headers that the loader shows must be readable, and the build id where they say. */
static int look(struct dl_phdr_info *info, size_t size, void *data) {
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *h = &info->dlpi_phdr[i];
    if (h->p_type == PT_NOTE) {
      const char *note = (const char *)(info->dlpi_addr + h->p_vaddr);
      *(int *)data += *(const int *)note != 0;
    }
  }
  return 0;
}
int main(int argc, char **argv) {
  int notes = 0;
  for (size_t i = 0; i < sizeof bss; i += 4096) if (bss[i]) return 3;
  dl_iterate_phdr(look, &notes);
  printf("%d %s %d\n", foo(), names[argc + 1], notes > 0);
  return 0;
}
"#;

/// Name, flags of the compiler, flags of the linker.
const VARIANTS: &[(&str, &[&str])] = &[
    ("plain", &[]),
    ("now", &["-Wl,-z,relro,-z,now"]),
    ("lazy-norelro", &["-Wl,-z,lazy,-z,norelro"]),
    ("relr", &["-Wl,-z,pack-relative-relocs"]),
    ("noseparate", &["-Wl,-z,noseparate-code"]),
    ("separate", &["-Wl,-z,separate-code"]),
    ("sysv", &["-Wl,--hash-style=sysv"]),
    ("gnu", &["-Wl,--hash-style=gnu"]),
    ("both", &["-Wl,--hash-style=both"]),
    ("page64k", &["-Wl,-z,max-page-size=65536"]),
    ("page2m", &["-Wl,-z,max-page-size=2097152"]),
    ("page2m-noseparate", &["-Wl,-z,max-page-size=2097152,-z,noseparate-code"]),
    ("tails", &["-O2", "-Wl,-O2"]),
    ("debug", &["-g3"]),
    ("debug-zlib", &["-g3", "-gz=zlib"]),
    ("debug-dwarf4-split", &["-g", "-gdwarf-4", "-ffunction-sections", "-Wl,--gc-sections"]),
    ("emit-relocs", &["-g", "-Wl,--emit-relocs"]),
    ("no-build-id", &["-Wl,--build-id=none"]),
    ("full-dynamic", &["-Wl,-z,nodlopen", "-Wl,--spare-dynamic-tags=0"]),
    ("execstack", &["-Wl,-z,execstack"]),
    ("old-dtags", &["-Wl,--disable-new-dtags"]),
    ("origin", &["-Wl,-z,origin,--enable-new-dtags"]),
    ("stripped", &["-s"]),
    ("gold", &["-fuse-ld=gold"]),
    ("gold-debug", &["-fuse-ld=gold", "-g3", "-Wl,--gdb-index"]),
    ("lld", &["-fuse-ld=lld"]),
    ("lld-separate", &["-fuse-ld=lld", "-Wl,-z,separate-code"]),
    ("lld-norosegment", &["-fuse-ld=lld", "-Wl,--no-rosegment"]),
    ("lld-debug", &["-fuse-ld=lld", "-g3", "-Wl,-O2"]),
    ("lld-both-no-id", &["-fuse-ld=lld", "-Wl,--hash-style=both", "-Wl,--build-id=none"]),
    ("lld-loadable", &["-fuse-ld=lld", "-Wl,-z,separate-loadable-segments"]),
    ("lld-page64k", &["-fuse-ld=lld", "-Wl,-z,max-page-size=65536"]),
    ("mold", &["-fuse-ld=mold"]),
    ("mold-debug", &["-fuse-ld=mold", "-g3", "-Wl,--gdb-index"]),
    ("mold-sysv", &["-fuse-ld=mold", "-Wl,--hash-style=sysv,-z,now"]),
    ("mold-both-spare0", &["-fuse-ld=mold", "-Wl,--hash-style=both,--spare-dynamic-tags=0,--build-id=none"]),
    ("mold-stripped", &["-fuse-ld=mold", "-s"]),
    ("clang", &[CLANG]),
    ("clang-lld", &[CLANG, "-fuse-ld=lld", "-g3"]),
    ("clang-mold-now", &[CLANG, "-fuse-ld=mold", "-Wl,-z,relro,-z,now"]),
    ("gold-now-both", &["-fuse-ld=gold", "-Wl,-z,now,--hash-style=both", "-s"]),
    ("isa-note", &["-Wl,-z,x86-64-v2", "-fcf-protection=full"]),
    ("common-page64k", &["-Wl,-z,max-page-size=65536,-z,common-page-size=65536"]),
    ("no-gnu-stack", &["-Wl,-z,nognustack"]),
    ("text-far", &["-Wl,-Ttext-segment=0x70000000"]),
    ("relro-one-segment", &["-Wl,-z,relro,-z,noseparate-code,-z,max-page-size=2097152"]),
    ("bsymbolic", &["-Wl,-Bsymbolic,-z,initfirst"]),
];

/// Among a variant's flags: built by clang. Everything else is built by gcc.
const CLANG: &str = "CLANG";

/// The initial search path, long enough that shorter ones fit in it.
pub const INITIAL: &str = "/build/spack/opt/linux-x86_64/slurm-25.11.0-abcdefghijklmnop/lib:/build/spack/opt/lib64";

/// A folder name that makes a path longer than any linker leaves room for.
pub fn long() -> String {
    "long-".repeat(44)
}

pub struct Built {
    pub dir: PathBuf,
    pub program: PathBuf,
    library: PathBuf,
    _folder: tempfile::TempDir,
}

pub fn build(flags: &[&str], pie: &str, rpath: Option<&str>) -> Built {
    let (guard, dir) = folder();
    std::fs::write(dir.join("foo.c"), LIBRARY).unwrap();
    std::fs::write(dir.join("main.c"), PROGRAM).unwrap();
    let compiler = if flags.contains(&CLANG) { "clang" } else { "gcc" };
    let flags: Vec<&str> = flags.iter().copied().filter(|flag| *flag != CLANG).collect();
    let rpath = rpath.map(|rpath| format!("-Wl,-rpath,{rpath}"));
    let mut library: Vec<&str> = vec!["-shared", "-o", "libfoo.so", "foo.c", "-Wl,-soname,libfoo.so"];
    library.extend_from_slice(&flags);
    library.push("-fPIC");
    library.extend(rpath.as_deref());
    tool(compiler, &library, &dir);
    let mut program: Vec<&str> = vec!["-o", "main", "main.c", "-L.", "-lfoo", pie];
    program.extend_from_slice(&flags);
    program.extend(rpath.as_deref());
    tool(compiler, &program, &dir);
    for lib in ["lib", &long()] {
        std::fs::create_dir(dir.join(lib)).unwrap();
        std::fs::copy(dir.join("libfoo.so"), dir.join(lib).join("libfoo.so")).unwrap();
    }
    let library = dir.join("libfoo.so");
    std::fs::rename(&library, dir.join("original.so")).unwrap();
    Built { program: dir.join("main"), library: dir.join("original.so"), dir, _folder: guard }
}

/// Runs a program that should find its library and print what it computed.
pub fn runs(path: &Path, name: &str) {
    let ended = run(&mut Command::new(path), Duration::from_secs(20));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "42 three 1\n"), "{name}: {ended:?}");
}

/// Runs a program that should not find its library any more.
pub fn does_not_find(path: &Path, name: &str) {
    let ended = run(&mut Command::new(path), Duration::from_secs(20));
    assert_eq!(ended.code, Some(127), "{name}: {ended:?}");
    assert!(ended.stderr.contains("libfoo.so"), "{name}: {ended:?}");
}

pub fn rpath(text: &str) -> SearchPath {
    SearchPath::Rpath(text.as_bytes().to_vec())
}

fn runpath(text: &str) -> SearchPath {
    SearchPath::Runpath(text.as_bytes().to_vec())
}

fn read(path: &Path) -> (Vec<u8>, Elf) {
    let data = std::fs::read(path).unwrap();
    let elf = parse(&data).unwrap();
    (data, elf)
}

fn try_variant(name: &str, flags: &[&str], pie: &str, initial: Option<&str>) {
    let built = build(flags, pie, initial);
    let (original, before) = read(&built.program);
    let out = built.dir.join("edited");
    let long_path = format!("/nowhere/{}:$ORIGIN/{}:/also/nowhere", "x".repeat(60), long());
    let cases = [
        ("longer rpath", rpath(&long_path), Strip::Keep, true),
        ("longer runpath, debug", runpath(&long_path), Strip::Debug, true),
        ("short runpath, all", runpath("$ORIGIN/lib"), Strip::All, true),
        ("short rpath", rpath("$ORIGIN/lib"), Strip::Keep, true),
        ("remove, debug", SearchPath::Remove, Strip::Debug, false),
    ];
    let complaints = elflint(&built.program);
    let warnings = readelf_warnings(&built.program);
    if std::env::var("SLURM_FACTORY_ELF_PATCHELF").is_ok_and(|value| value == "1") {
        let verdict = patchelf(&built, &long_path, &complaints, warnings);
        println!("patchelf: {name} {pie} {initial:?}: {}", verdict.err().unwrap_or_else(|| "good".into()));
    }
    for (case, search_path, strip, found) in cases {
        let name = format!("{name} {pie} {initial:?}: {case}");
        let bytes = edited(&original, &edit_of(search_path, strip), &name);
        write_program(&out, &bytes);
        if found {
            runs(&out, &name);
        } else {
            does_not_find(&out, &name);
        }
        let after = parse(&bytes).unwrap();
        assert_eq!(after.needed, before.needed, "{name}");
        assert!(after.rpath.is_none() || after.runpath.is_none(), "{name}: both kinds");
        let leak = bytes.windows(12).any(|window| window == b"/build/spack");
        assert!(!leak, "{name}: the old path is still there");
        if case.starts_with("longer") || case.contains("all") {
            let added = worse(&complaints, &elflint(&out));
            assert!(added.is_empty(), "{name}: eu-elflint: {added:#?}");
            assert!(readelf_warnings(&out) <= warnings, "{name}: readelf warns");
            for stripper in ["strip", "eu-strip"] {
                tool(stripper, &["-o", "stripped", "edited"], &built.dir);
                runs(&built.dir.join("stripped"), &format!("{name}, {stripper}"));
            }
            tool("strip", &["-g", "-o", "stripped", "edited"], &built.dir);
            runs(&built.dir.join("stripped"), &format!("{name}, strip -g"));
            let stripped = std::fs::read(built.dir.join("stripped")).unwrap();
            // After GNU strip the file can be edited again.
            let again = edited(&stripped, &edit_of(rpath("$ORIGIN/lib"), Strip::All), &name);
            write_program(&out, &again);
            runs(&out, &format!("{name}, edited after strip"));
        }
        // From one of our results to another: at most one PT_LOAD more than the original.
        let other = format!("$ORIGIN/lib:{}", "y".repeat(900));
        let again = edited(&bytes, &edit_of(rpath(&other), Strip::Keep), &name);
        assert!(loads(&again) <= loads(&original) + 1, "{name}: a PT_LOAD for each edit");
        if case == "longer rpath" {
            write_program(&out, &again);
            runs(&out, &format!("{name}, edited again"));
        }
    }

    // The library, edited too, is still found and works.
    let library = edited(&std::fs::read(&built.library).unwrap(), &edit_of(runpath(&long_path), Strip::Debug), name);
    std::fs::write(built.dir.join("lib/libfoo.so"), &library).unwrap();
    let program = edited(&original, &edit_of(rpath("$ORIGIN/lib"), Strip::Keep), name);
    write_program(&out, &program);
    runs(&out, &format!("{name}: edited library"));
    tool("strip", &["--strip-unneeded", "lib/libfoo.so"], &built.dir);
    runs(&out, &format!("{name}: edited and stripped library"));
}

/// The longer search path by patchelf, judged as ours is: it runs, `eu-elflint` and `readelf` find no more than before, and it
/// still runs after strip. Its failures fail nothing: `tests/deep/flags.sh` counts them beside ours.
fn patchelf(built: &Built, path: &str, complaints: &[String], warnings: usize) -> Result<(), String> {
    let out = built.dir.join("theirs");
    write_program(&out, &std::fs::read(&built.program).unwrap());
    let good = |program: &Path, what: &str| {
        let ended = run(&mut Command::new(program), Duration::from_secs(20));
        let same = (ended.code, ended.stdout.as_str()) == (Some(0), "42 three 1\n");
        if same { Ok(()) } else { Err(format!("{what}: {ended:?}")) }
    };
    let mut command = Command::new("patchelf");
    let ended = run(command.args(["--force-rpath", "--set-rpath", path]).arg(&out), Duration::from_mins(1));
    if ended.code != Some(0) {
        return Err(format!("refused: {}", ended.stderr.trim()));
    }
    good(&out, "runs differently")?;
    let added = worse(complaints, &elflint(&out));
    if !added.is_empty() {
        return Err(format!("eu-elflint: {added:?}"));
    }
    if readelf_warnings(&out) > warnings {
        return Err("readelf warns".into());
    }
    for stripper in ["strip", "eu-strip"] {
        let ended = run(
            Command::new(stripper).args(["-o", "their-stripped", "theirs"]).current_dir(&built.dir),
            Duration::from_mins(1),
        );
        if ended.code != Some(0) {
            return Err(format!("{stripper}: {}", ended.stderr.trim()));
        }
        good(&built.dir.join("their-stripped"), stripper)?;
    }
    Ok(())
}

fn loads(bytes: &[u8]) -> usize {
    let elf = goblin::elf::Elf::parse(bytes).unwrap();
    elf.program_headers.iter().filter(|header| header.p_type == goblin::elf::program_header::PT_LOAD).count()
}

/// The variants are shared out over tests, so that they run side by side.
fn try_share(share: usize) {
    for (name, flags) in VARIANTS.iter().skip(share).step_by(4) {
        try_variant(name, flags, "-pie", Some(INITIAL));
    }
}

#[test]
fn variants_1_of_4() {
    try_share(0);
}

#[test]
fn variants_2_of_4() {
    try_share(1);
}

#[test]
fn variants_3_of_4() {
    try_share(2);
}

#[test]
fn variants_4_of_4() {
    try_share(3);
}

#[test]
fn programs_with_fixed_addresses() {
    for name in ["plain", "relr", "noseparate", "page2m", "full-dynamic", "gold", "lld"] {
        let (_, flags) = VARIANTS.iter().find(|(other, _)| *other == name).unwrap();
        let flags: Vec<&str> = flags.iter().copied().chain(["-fno-pie"]).collect();
        try_variant(name, &flags, "-no-pie", Some(INITIAL));
    }
}

#[test]
fn files_without_a_path_get_one() {
    for name in ["plain", "full-dynamic", "gold", "lld", "tails"] {
        let (_, flags) = VARIANTS.iter().find(|(other, _)| *other == name).unwrap();
        try_variant(name, flags, "-pie", None);
    }
}

#[test]
fn static_programs_keep_their_bytes_and_can_be_stripped() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("main.c"), "#include <stdio.h>\nint main(){puts(\"hello\");return 0;}\n").unwrap();
    for (kind, flags) in [("static", &["-static", "-g"][..]), ("static-pie", &["-static-pie", "-g"])] {
        let mut args = vec!["-o", kind, "main.c"];
        args.extend_from_slice(flags);
        tool("gcc", &args, &dir);
        let (data, elf) = read(&dir.join(kind));
        assert!(elf.is_static && elf.needed.is_empty(), "{kind}");
        for path in [rpath("/some/where"), runpath(&"x".repeat(300)), SearchPath::Remove] {
            assert_eq!(edit(&data, &edit_of(path, Strip::Keep)), Ok(Edited::Unchanged), "{kind}");
        }
        for strip in [Strip::Debug, Strip::All] {
            let bytes = edited(&data, &edit_of(rpath("/some/where"), strip), kind);
            assert!(bytes.len() < data.len() && !parse(&bytes).unwrap().has_debug, "{kind}");
            assert_eq!(parse(&bytes).unwrap().has_symtab, strip == Strip::Debug, "{kind}");
            write_program(&dir.join("edited"), &bytes);
            assert_eq!(run(&mut Command::new(dir.join("edited")), Duration::from_secs(20)).stdout, "hello\n", "{kind}");
        }
    }
}

/// glibc's own start code crashes on these, so they are not run: but they are not ours to change.
#[test]
fn static_pie_with_a_path_is_left_alone() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("main.c"), "int main(){return 0;}\n").unwrap();
    tool("gcc", &["-static-pie", "-o", "main", "main.c", "-Wl,-rpath,/build/spack"], &dir);
    let (data, elf) = read(&dir.join("main"));
    assert!(elf.is_static && elf.search_path() == Some(b"/build/spack"));
    for path in [rpath("/x"), runpath(&"x".repeat(300)), SearchPath::Remove] {
        assert_eq!(edit(&data, &edit_of(path, Strip::Keep)), Ok(Edited::Unchanged));
    }
}

/// `ld -O2` stores short names inside long ones: what another name uses must survive.
#[test]
fn shared_tails_survive() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("a.c"), "int a(void){return 1;}\n").unwrap();
    std::fs::write(dir.join("b.c"), "extern int a(void); int lib(void){return a();}\n").unwrap();
    tool("gcc", &["-shared", "-fPIC", "-o", "liba.so", "a.c", "-Wl,-soname,spack/lib/liba.so"], &dir);
    let path = "-Wl,-rpath,/build/spack/lib/liba.so:/build/my/lib";
    let args = ["-shared", "-fPIC", "-O2", "-Wl,-O2", "-o", "libb.so", "b.c", "liba.so", path];
    tool("gcc", &[&args[..], &["-Wl,-soname,my/lib"]].concat(), &dir);
    let (data, before) = read(&dir.join("libb.so"));
    assert_eq!(before.soname.as_deref(), Some(&b"my/lib"[..]));
    let one = data.windows(7).filter(|window| *window == b"my/lib\0").count();
    assert_eq!(one, 1, "the linker was expected to share the tail");
    for path in [rpath("/x"), rpath("/much/longer/than/the/one/that/was/there/before/in/this/file"), SearchPath::Remove]
    {
        let bytes = edited(&data, &edit_of(path.clone(), Strip::Keep), "shared tail");
        let after = parse(&bytes).unwrap();
        assert_eq!((&after.soname, &after.needed), (&before.soname, &before.needed), "{path:?}");
        assert!(!bytes.windows(12).any(|window| window == b"/build/spack"), "{path:?}: the old path is still there");
    }
}

#[test]
fn both_kinds_become_one() {
    // No linker writes both: make the second from a DT_FLAGS entry, which nothing here needs.
    let built = build(&["-Wl,-z,now,--enable-new-dtags"], "-pie", Some(INITIAL));
    let (mut data, before) = read(&built.program);
    let elf = goblin::elf::Elf::parse(&data).unwrap();
    let dynamic = elf.program_headers.iter().find(|header| header.p_type == 2).unwrap().p_offset;
    let entries = &elf.dynamic.as_ref().unwrap().dyns;
    let path = entries.iter().find(|entry| entry.d_tag == 29).unwrap().d_val;
    let flags = entries.iter().position(|entry| entry.d_tag == 30).unwrap();
    let at = usize::try_from(dynamic).unwrap() + flags * 16;
    data[at..at + 8].copy_from_slice(&15_u64.to_le_bytes());
    data[at + 8..at + 16].copy_from_slice(&path.to_le_bytes());
    let both = parse(&data).unwrap();
    assert!(both.rpath.is_some() && both.runpath == before.runpath);
    let long_path = format!("$ORIGIN/lib:{}", long());
    for (path, expected) in [
        (rpath(INITIAL), (Some(INITIAL), None)),
        (runpath(INITIAL), (None, Some(INITIAL))),
        (rpath("$ORIGIN/lib"), (Some("$ORIGIN/lib"), None)),
        (runpath(&long_path), (None, Some(long_path.as_str()))),
        (SearchPath::Remove, (None, None)),
    ] {
        let bytes = edited(&data, &edit_of(path.clone(), Strip::Keep), "both");
        let after = parse(&bytes).unwrap();
        let text = |path: Option<Vec<u8>>| path.map(|path| String::from_utf8(path).unwrap());
        let expected = (expected.0.map(String::from), expected.1.map(String::from));
        assert_eq!((text(after.rpath), text(after.runpath)), expected, "{path:?}");
    }
}

#[test]
fn files_without_section_headers_work() {
    for name in ["plain", "both", "lld"] {
        let (_, flags) = VARIANTS.iter().find(|(other, _)| *other == name).unwrap();
        let built = build(flags, "-pie", Some(INITIAL));
        let (mut data, with) = read(&built.program);
        data[40..48].fill(0); // e_shoff
        data[58..64].fill(0); // e_shentsize, e_shnum, e_shstrndx
        let without = parse(&data).unwrap();
        assert!(!without.has_sections);
        assert_eq!(
            (&with.needed, &with.version_needs, &with.runpath),
            (&without.needed, &without.version_needs, &without.runpath)
        );
        let out = built.dir.join("edited");
        for path in ["$ORIGIN/lib".to_string(), format!("$ORIGIN/lib:{}", long())] {
            let bytes = edited(&data, &edit_of(rpath(&path), Strip::All), name);
            write_program(&out, &bytes);
            runs(&out, &format!("{name} without sections, {} bytes of path", path.len()));
        }
    }
}

#[test]
fn what_is_no_program_is_refused_by_name() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("a.c"), "int a(void){return 1;}\n").unwrap();
    tool("gcc", &["-g", "-c", "-o", "a.o", "a.c"], &dir);
    tool("ar", &["rc", "liba.a", "a.o"], &dir);
    tool("gcc", &["-g", "-shared", "-fPIC", "-o", "liba.so", "a.c"], &dir);
    tool("objcopy", &["--only-keep-debug", "liba.so", "liba.debug"], &dir);
    let what = edit_of(rpath("/x"), Strip::Debug);
    for (name, expected) in
        [("a.o", "relocatable object"), ("liba.a", "ar archive"), ("liba.debug", "separate debug file")]
    {
        let data = std::fs::read(dir.join(name)).unwrap();
        let error = edit(&data, &what).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        if name != "liba.a" {
            assert_eq!(edit(&data, &Edit::default()), Ok(Edited::Unchanged), "{name}");
        }
    }
    assert_eq!(parse(&std::fs::read(dir.join("a.o")).unwrap()).unwrap().kind, Kind::Relocatable);
    assert!(parse(&std::fs::read(dir.join("liba.debug")).unwrap()).unwrap().is_debug_file);
}

/// A library that needs none is given no path, and loses one that it has.
#[test]
fn libraries_that_need_nothing_get_no_path() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("data.c"), "const int data[] = {1, 2, 3};\n").unwrap();
    tool("gcc", &["-shared", "-fPIC", "-nostdlib", "-o", "with.so", "data.c", "-Wl,-rpath,/build/spack/lib"], &dir);
    tool("gcc", &["-shared", "-fPIC", "-nostdlib", "-o", "without.so", "data.c"], &dir);
    let (with, elf) = read(&dir.join("with.so"));
    assert!(elf.needed.is_empty() && !elf.is_static && elf.search_path().is_some());
    let bytes = edited(&with, &edit_of(rpath(&long()), Strip::Keep), "leaf");
    assert_eq!(parse(&bytes).unwrap().search_path(), None);
    assert!(!bytes.windows(12).any(|window| window == b"/build/spack"));
    let (without, _) = read(&dir.join("without.so"));
    assert_eq!(edit(&without, &edit_of(rpath(&long()), Strip::Keep)), Ok(Edited::Unchanged));
}

#[test]
fn bytes_behind_the_file_stay_behind_it() {
    let built = build(&["-g"], "-pie", Some(INITIAL));
    let (mut data, _) = read(&built.program);
    data.extend_from_slice(b"PAYLOAD of a self-extracting program");
    for strip in [Strip::Keep, Strip::Debug, Strip::All] {
        let bytes = edited(&data, &edit_of(rpath(&format!("$ORIGIN/lib:{}", long())), strip), "payload");
        assert!(bytes.ends_with(b"PAYLOAD of a self-extracting program"), "{strip:?}");
        let out = built.dir.join("edited");
        write_program(&out, &bytes);
        runs(&out, "payload");
    }
}

#[test]
fn descriptions_are_those_of_readelf() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("v.map"), "V1 { global: one; local: *; }; V2 { global: two; } V1;\n").unwrap();
    std::fs::write(dir.join("v.c"), "int one(void){return 1;} int two(void){return 2;}\n").unwrap();
    let args = ["-shared", "-fPIC", "-o", "libv.so", "v.c", "-Wl,--version-script=v.map,-soname,libv.so.1"];
    tool("gcc", &[&args[..], &["-Wl,--build-id=0x0123456789abcdef", "-Wl,-rpath,/r"]].concat(), &dir);
    let (_, elf) = read(&dir.join("libv.so"));
    assert_eq!(elf.soname.as_deref(), Some(&b"libv.so.1"[..]));
    assert_eq!(elf.version_defs, [b"V1".to_vec(), b"V2".to_vec()]);
    assert_eq!(elf.build_id.as_deref(), Some(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef][..]));
    assert_eq!(elf.search_path(), Some(&b"/r"[..]));
    assert_eq!((elf.machine, elf.kind, elf.is_pie), (62, Kind::SharedObject, false));

    std::fs::write(dir.join("u.c"), "extern int one(void), two(void); int main(){return one()+two();}\n").unwrap();
    tool("gcc", &["-o", "u", "u.c", "./libv.so", "-Wl,-z,pack-relative-relocs"], &dir);
    let (data, elf) = read(&dir.join("u"));
    assert!(elf.is_pie && elf.interpreter.is_some() && !elf.is_static);
    assert_eq!(elf.needed, [b"libv.so.1".to_vec(), b"libc.so.6".to_vec()]);
    let need = elf.version_needs.iter().find(|need| need.library == b"libv.so.1").unwrap();
    assert_eq!(need.versions.len(), 2);
    let floor = glibc_floor(&elf).unwrap();
    assert_eq!((floor.version.to_string().as_str(), floor.text.as_slice()), ("2.36", &b"GLIBC_ABI_DT_RELR"[..]));
    assert_eq!(glibc_symbol(&data, &floor), Ok(None), "a mark of the format is no symbol's version");

    // Whoever asks for a version is named.
    std::fs::write(dir.join("c.c"), "#define _GNU_SOURCE\n#include <math.h>\n#include <unistd.h>\nint main(int c, char **v){return (int)fmod(c, 3) + gettid();}\n").unwrap();
    tool("gcc", &["-shared", "-fPIC", "-fno-builtin", "-o", "libc_user.so", "c.c", "-lm"], &dir);
    let (data, elf) = read(&dir.join("libc_user.so"));
    let floor = glibc_floor(&elf).unwrap();
    let shown = tool("readelf", &["-W", "--dyn-syms", "libc_user.so"], &dir).stdout;
    let shown = String::from_utf8(shown).unwrap();
    let name = String::from_utf8(glibc_symbol(&data, &floor).unwrap().unwrap()).unwrap();
    let (version, library) = (String::from_utf8(floor.text).unwrap(), String::from_utf8(floor.library).unwrap());
    assert!(shown.contains(&format!("{name}@{version}")), "{name}@{version} of {library} is not in {shown}");
}

/// Programs start by a copy of the loader at another place, with a shorter and a longer path.
#[test]
fn interpreters_are_set() {
    for name in ["plain", "noseparate", "page2m", "relr", "sysv", "stripped", "full-dynamic", "gold", "lld", "mold"] {
        let (_, flags) = VARIANTS.iter().find(|(other, _)| *other == name).unwrap();
        for pie in ["-pie", "-no-pie"] {
            let flags: Vec<&str> = flags.iter().copied().chain((pie == "-no-pie").then_some("-fno-pie")).collect();
            let built = build(&flags, pie, Some("$ORIGIN/lib"));
            let (data, before) = read(&built.program);
            let old = before.interpreter.clone().unwrap();
            assert_eq!(set_interpreter(&data, &old), Ok(Edited::Unchanged), "{name}");
            let folder = built.dir.join(long());
            let loader = std::path::absolute(folder.join("ld.so")).unwrap();
            std::fs::copy(String::from_utf8(old).unwrap(), &loader).unwrap();
            let short = tempfile::Builder::new().prefix("l").rand_bytes(3).tempdir_in("/tmp").unwrap();
            let near = short.path().join("ld");
            std::fs::copy(&loader, &near).unwrap();
            let out = built.dir.join("edited");
            let mut data = data;
            // One after the other, each on the last one's result: longer, shorter, and longer again.
            for place in [&loader, &near, &loader] {
                let name = format!("{name} {pie} {}", place.display());
                let text = place.to_str().unwrap().as_bytes();
                let bytes = match set_interpreter(&data, text) {
                    Ok(Edited::Changed(bytes)) => bytes,
                    other => panic!("{name}: {other:?}"),
                };
                assert_eq!(set_interpreter(&bytes, text), Ok(Edited::Unchanged), "{name}: twice");
                assert_eq!(parse(&bytes).unwrap().interpreter.as_deref(), Some(text), "{name}");
                write_program(&out, &bytes);
                runs(&out, &name);
                let shown = tool("readelf", &["-lW", "edited"], &built.dir).stdout;
                let shown = String::from_utf8(shown).unwrap();
                assert!(shown.contains(&format!("interpreter: {}]", place.display())), "{name}: {shown}");
                let added = worse(&elflint(&built.program), &elflint(&out));
                assert!(added.is_empty(), "{name}: eu-elflint: {added:#?}");
                tool("strip", &["-o", "stripped", "edited"], &built.dir);
                runs(&built.dir.join("stripped"), &format!("{name}, strip"));
                // And the search path can still be changed.
                let path = rpath(&format!("$ORIGIN/lib:{}", long()));
                write_program(&out, &edited(&bytes, &edit_of(path, Strip::All), &name));
                runs(&out, &format!("{name}, search path"));
                data = bytes;
            }
            std::fs::remove_file(&near).unwrap();
            std::fs::remove_file(&loader).unwrap();
            does_not_start(&out, name);
            assert_eq!(set_interpreter(&std::fs::read(&built.library).unwrap(), b"/x"), Ok(Edited::Unchanged));
            for bad in [&b"ld.so"[..], b"/a\0b", &[b'/'; 4096]] {
                assert!(matches!(set_interpreter(&data, bad), Err(ElfError::Interpreter(_))), "{name}");
            }
        }
    }
}

/// The kernel does not find the interpreter.
fn does_not_start(path: &Path, name: &str) {
    let ended = run(&mut Command::new(path), Duration::from_secs(20));
    assert_eq!(ended.code, None, "{name}: {ended:?}");
}
