//! Which glibc an image has, told without unpacking it.
//!
//! The library says so itself, in the text that it prints when it is run: `GNU C Library (Debian GLIBC 2.36-9) stable release version
//! 2.36.` It is `libc.so.6`, or, before 2.34, what that name leads to: `libc-2.28.so`.

use super::archive::decoder;
use super::{ImageError, PulledImage};
use crate::fsutil;
use crate::report::Ctx;
use fs_err as fs;
use memchr::memmem;
use std::io::{self, BufReader, Read};
use std::path::Path;

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
                if let Some(version) = version(&bytes) {
                    return Ok(Some(version));
                }
            }
        }
        Ok(None)
    }
}

fn is_libc(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name == "libc.so.6" || (name.starts_with("libc-2.") && path.extension().is_some_and(|end| end == "so"))
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
        assert!(is_libc(Path::new("usr/lib/x86_64-linux-gnu/libc.so.6")) && is_libc(Path::new("lib64/libc-2.28.so")));
        assert!(!is_libc(Path::new("lib/libcap.so.2")));
    }
}
