//! Other machines' files: 32 and 64 bits, both byte orders. Small ones that are kept here, which `readelf` and `eu-elflint`
//! judge; and programs built by Debian's cross compilers, which run under `qemu-user`.

use std::process::Command;
use std::time::Duration;

use slurm_factory::elf::{Class, Endian, SearchPath, Strip, parse};

use crate::tools::{edit_of, edited, elflint, folder, readelf_warnings, run, tool, worse, write_program};

/// Name, bytes, class, byte order, `e_machine`.
pub const FILES: [(&str, &[u8], Class, Endian, u16); 7] = [
    ("aarch64", include_bytes!("data/aarch64.so"), Class::Elf64, Endian::Little, 183),
    ("arm", include_bytes!("data/arm.so"), Class::Elf32, Endian::Little, 40),
    ("mipsel", include_bytes!("data/mipsel.so"), Class::Elf32, Endian::Little, 8),
    ("powerpc", include_bytes!("data/powerpc.so"), Class::Elf32, Endian::Big, 20),
    ("ppc64le", include_bytes!("data/ppc64le.so"), Class::Elf64, Endian::Little, 21),
    ("riscv64", include_bytes!("data/riscv64.so"), Class::Elf64, Endian::Little, 243),
    ("s390x", include_bytes!("data/s390x.so"), Class::Elf64, Endian::Big, 22),
];

#[test]
fn are_described() {
    for (name, data, class, endian, machine) in FILES {
        let elf = parse(data).unwrap();
        assert_eq!((elf.class, elf.endian, elf.machine), (class, endian, machine), "{name}");
        assert_eq!(elf.soname.as_deref(), Some(&b"libprobe.so"[..]), "{name}");
        assert_eq!(elf.needed, [b"libother.so".to_vec()], "{name}");
        assert_eq!(elf.search_path(), Some(&b"/build/spack/lib"[..]), "{name}");
    }
}

#[test]
fn are_edited() {
    let (_guard, dir) = folder();
    let (before, after) = (dir.join("before.so"), dir.join("after.so"));
    for (name, data, ..) in FILES {
        std::fs::write(&before, data).unwrap();
        let (complaints, warnings) = (elflint(&before), readelf_warnings(&before));
        for path in ["$ORIGIN", "$ORIGIN/../lib", &"/long".repeat(80)] {
            for strip in [Strip::Keep, Strip::All] {
                let bytes = edited(data, &edit_of(SearchPath::Rpath(path.into()), strip), name);
                std::fs::write(&after, &bytes).unwrap();
                let added = worse(&complaints, &elflint(&after));
                assert!(added.is_empty(), "{name}: eu-elflint: {added:#?}");
                assert!(readelf_warnings(&after) <= warnings, "{name}: readelf warns");
                let shown = run(Command::new("readelf").arg("-dW").arg(&after), Duration::from_secs(20)).stdout;
                for text in [&format!("Library rpath: [{path}]"), "libother.so", "libprobe.so"] {
                    assert!(shown.contains(text), "{name}: {text} is missing in {shown}");
                }
                assert!(!bytes.windows(12).any(|window| window == b"/build/spack"), "{name}: the old path");
            }
        }
        let bytes = edited(data, &edit_of(SearchPath::Remove, Strip::Keep), name);
        assert_eq!((parse(&bytes).unwrap().search_path(), bytes.len()), (None, data.len()), "{name}");
    }
}

/// Debian's name of the machine, and qemu's.
const CROSS: [(&str, &str, Class, Endian); 4] = [
    ("arm-linux-gnueabihf", "qemu-arm", Class::Elf32, Endian::Little),
    ("powerpc-linux-gnu", "qemu-ppc", Class::Elf32, Endian::Big),
    ("s390x-linux-gnu", "qemu-s390x", Class::Elf64, Endian::Big),
    ("aarch64-linux-gnu", "qemu-aarch64", Class::Elf64, Endian::Little),
];

const LIBRARY: &str =
    "static __thread int tls = 40; static int t[] = {1}; static int *p = t; int foo(void){return tls + *p + 1;}\n";
const PROGRAM: &str = "#include <stdio.h>\nextern int foo(void);\nint main(void){printf(\"%d\\n\", foo());return 0;}\n";

#[test]
fn run_after_edits() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("foo.c"), LIBRARY).unwrap();
    std::fs::write(dir.join("main.c"), PROGRAM).unwrap();
    let long = "long-".repeat(44);
    for (machine, qemu, class, endian) in CROSS {
        for flags in [
            &["-pie"][..],
            &["-no-pie"],
            &["-pie", "-Wl,-z,max-page-size=65536,--hash-style=sysv", "-g"],
            &["-pie", "-s"],
        ] {
            let name = format!("{machine} {flags:?}");
            let compiler = format!("{machine}-gcc");
            tool(&compiler, &["-shared", "-fPIC", "-o", "libfoo.so", "foo.c", "-Wl,-rpath,/build/spack/lib"], &dir);
            let main = ["-o", "main", "main.c", "-L.", "-lfoo", "-Wl,-rpath,/build/spack/lib"];
            tool(&compiler, &[&main[..], flags].concat(), &dir);
            let program = std::fs::read(dir.join("main")).unwrap();
            let elf = parse(&program).unwrap();
            assert_eq!((elf.class, elf.endian), (class, endian), "{name}");
            let library = std::fs::read(dir.join("libfoo.so")).unwrap();
            for (path, strip) in
                [("$ORIGIN/lib".to_owned(), Strip::Keep), (format!("/no/{long}:$ORIGIN/lib"), Strip::Debug)]
            {
                let what = edit_of(SearchPath::Rpath(path.clone().into()), strip);
                let _ = std::fs::create_dir(dir.join("lib"));
                std::fs::write(dir.join("lib/libfoo.so"), edited(&library, &what, &name)).unwrap();
                write_program(&dir.join("edited"), &edited(&program, &what, &name));
                for stripped in [false, true] {
                    if stripped {
                        tool(&format!("{machine}-strip"), &["edited", "lib/libfoo.so"], &dir);
                    }
                    let mut command = Command::new(qemu);
                    command.args(["-L", &format!("/usr/{machine}")]).arg(dir.join("edited"));
                    let ended = run(&mut command, Duration::from_mins(1));
                    assert_eq!(
                        (ended.code, ended.stdout.as_str()),
                        (Some(0), "42\n"),
                        "{name} {path}, {stripped}: {ended:?}"
                    );
                }
            }
        }
    }
}
