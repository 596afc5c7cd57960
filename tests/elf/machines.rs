//! Other machines' files: 32 and 64 bits, both byte orders. They cannot be run here, so `readelf` and `eu-elflint`
//! judge what `edit`'s own check has passed.

use std::process::Command;
use std::time::Duration;

use slurm_factory::elf::{Class, Endian, SearchPath, Strip, parse};

use crate::tools::{edit_of, edited, elflint, folder, readelf_warnings, run, worse};

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
