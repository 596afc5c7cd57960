//! Which glibc an image has, told without unpacking it.
//!
//! The library says so itself, in the text that it prints when it is run: `GNU C Library (Debian GLIBC 2.36-9) stable release version
//! 2.36.` It is `libc.so.6`, or, before 2.34, what that name leads to: `libc-2.28.so`. An image may hold others, for other machines or
//! in a program's own folder: it is the one where the system has its libraries, and of the image's machine.

use super::archive::decoder;
use super::{ImageError, Platform, PulledImage};
use crate::fsutil;
use crate::report::Ctx;
use fs_err as fs;
use memchr::memmem;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path};

/// No glibc is larger.
const LIMIT: u64 = 64 << 20;

impl PulledImage {
    /// The version of its glibc, as `2.36`; `None` when it has none, as images with musl or without any library. Reads its layers,
    /// the topmost first, until one has it.
    pub fn glibc(&self, ctx: &Ctx) -> Result<Option<String>, ImageError> {
        for layer in self.layers().iter().rev() {
            let path = self.layer_path(layer);
            let failed = |e: io::Error| ImageError::Io(fsutil::with_path(&e, "read the layer", &path));
            let blob = BufReader::new(fs::File::open(&path).map_err(ImageError::Io)?);
            let mut archive = tar::Archive::new(decoder(blob, layer.compression()).map_err(failed)?);
            for entry in archive.entries().map_err(failed)? {
                ctx.check()?;
                let entry = entry.map_err(failed)?;
                if !entry.header().entry_type().is_file() || !is_libc(&entry.path().map_err(failed)?) {
                    continue;
                }
                let mut bytes = Vec::new();
                entry.take(LIMIT).read_to_end(&mut bytes).map_err(failed)?;
                if is_for(&bytes, self.resolved().platform())
                    && let Some(version) = version(&bytes)
                {
                    return Ok(Some(version));
                }
            }
        }
        Ok(None)
    }
}

/// Whether a system has its glibc under this name: in `/lib*` or `/usr/lib*`, or one folder below (`x86_64-linux-gnu`).
fn is_libc(path: &Path) -> bool {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { name.to_str() } else { None })
        .collect();
    let (["usr", folders @ .., name] | [folders @ .., name]) = parts.as_slice() else { return false };
    let is_name =
        *name == "libc.so.6" || name.strip_prefix("libc-2.").is_some_and(|rest| rest.strip_suffix(".so").is_some());
    is_name && (1..=2).contains(&folders.len()) && folders[0].starts_with("lib")
}

/// Whether it is a 64 bit program or library of this machine (gABI, "ELF Header": `EI_CLASS` 2, `e_machine` at byte 18).
fn is_for(bytes: &[u8], platform: Platform) -> bool {
    let machine: u16 = match platform {
        Platform::LinuxAmd64 => 62,
        Platform::LinuxArm64 => 183,
    };
    bytes.starts_with(b"\x7fELF\x02") && bytes.get(18..20) == Some(&machine.to_le_bytes())
}

/// The version that a glibc says that it is.
fn version(bytes: &[u8]) -> Option<String> {
    let text = bytes.get(memmem::find(bytes, b"GNU C Library")?..)?;
    let word = b"release version ";
    let rest = text.get(memmem::find(text, word)? + word.len()..)?;
    let digits: String =
        rest.iter().take(12).map(|b| char::from(*b)).take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let version = digits.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glibc_says_which_it_is() {
        let says = |text: &str| version(&[b"\x7fELF\0", text.as_bytes(), b"\0"].concat());
        assert_eq!(
            says("GNU C Library (Debian GLIBC 2.36-9+deb12u7) stable release version 2.36.\nCopy").as_deref(),
            Some("2.36")
        );
        assert_eq!(says("GNU C Library (GNU libc) stable release version 2.28.").as_deref(), Some("2.28"));
        assert_eq!(says("GNU C Library (GNU libc) stable release version x"), None);
        assert_eq!(says("musl libc"), None);
    }

    #[test]
    fn of_several_it_is_that_of_the_system_and_of_its_machine() {
        for path in
            ["usr/lib/x86_64-linux-gnu/libc.so.6", "./lib64/libc-2.28.so", "/lib/libc.so.6", "usr/lib64/libc.so.6"]
        {
            assert!(is_libc(Path::new(path)), "{path}");
        }
        for path in [
            "lib/libcap.so.2",
            "libc.so.6",
            "usr/libc.so.6",
            "opt/tool/lib/libc.so.6",
            "usr/aarch64-linux-gnu/lib/libc.so.6",
            "usr/lib/tool/lib/libc.so.6",
            "lib/libc.so.6/x",
        ] {
            assert!(!is_libc(Path::new(path)), "{path}");
        }
        let elf = |class: u8, machine: u8| [b"\x7fELF".as_slice(), &[class], &[0; 13], &[machine, 0]].concat();
        assert!(is_for(&elf(2, 62), Platform::LinuxAmd64) && is_for(&elf(2, 183), Platform::LinuxArm64));
        // i386, x32, another machine, a linker script.
        for other in [elf(1, 3), elf(1, 62), elf(2, 183), b"/* GNU ld script */".to_vec(), Vec::new()] {
            assert!(!is_for(&other, Platform::LinuxAmd64));
        }
    }
}
