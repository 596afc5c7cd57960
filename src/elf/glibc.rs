//! Which glibc a file needs. Apart from the parser, because these are glibc's naming rules and not the format's.

use std::fmt;

use super::error::ElfError;
use super::parse::Elf;
use super::view::View;

/// A glibc version. Ordered as versions are: 2.9 is below 2.34.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GlibcVersion {
    /// 2, since 1997.
    pub major: u32,
    /// The release.
    pub minor: u32,
    /// Only old symbols have one: `GLIBC_2.2.5`.
    pub patch: u32,
}

impl fmt::Display for GlibcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch == 0 { Ok(()) } else { write!(f, ".{}", self.patch) }
    }
}

/// The oldest glibc that a file can be loaded with, and what asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlibcFloor {
    /// The version of glibc.
    pub version: GlibcVersion,
    /// Which of glibc's libraries is asked for it: `libc.so.6`, `libm.so.6`, ...
    pub library: Vec<u8>,
    /// The version as the file spells it: `GLIBC_2.34`, or `GLIBC_ABI_DT_RELR`.
    pub text: Vec<u8>,
}

/// The highest glibc version that a file needs, or `None` if it needs none.
///
/// `GLIBC_PRIVATE` says "this very glibc" and orders nowhere: ignored. `GLIBC_ABI_DT_RELR` marks files with packed
/// relative relocations, which glibc reads since 2.36; other `GLIBC_ABI_*` marks that we know are treated alike.
pub fn glibc_floor(elf: &Elf) -> Option<GlibcFloor> {
    let mut floor: Option<GlibcFloor> = None;
    for need in &elf.version_needs {
        for text in &need.versions {
            let Some(version) = glibc_version(text) else { continue };
            if floor.as_ref().is_none_or(|floor| floor.version < version) {
                floor = Some(GlibcFloor { version, library: need.library.clone(), text: text.clone() });
            }
        }
    }
    floor
}

/// The symbol that a file needs in the version of its floor: what to look for in the sources. Nothing for a version that
/// marks the format of the file (`GLIBC_ABI_DT_RELR`).
///
/// # Errors
///
/// The file cannot be read.
pub fn glibc_symbol(data: &[u8], floor: &GlibcFloor) -> Result<Option<Vec<u8>>, ElfError> {
    let view = View::parse(data)?;
    Ok(view.symbol_of_version(&floor.library, &floor.text)?.map(<[u8]>::to_vec))
}

/// Reads `GLIBC_2.34`, `GLIBC_2.2.5` and the marks in the list below; `None` for all else.
pub fn glibc_version(text: &[u8]) -> Option<GlibcVersion> {
    let rest = text.strip_prefix(b"GLIBC_")?;
    match rest {
        b"ABI_DT_RELR" => return Some(GlibcVersion { major: 2, minor: 36, patch: 0 }),
        // TLS descriptors that keep all registers, and 32-bit x86's: glibc NEWS for 2.42 (and backports).
        b"ABI_DT_X86_64_PLT" | b"ABI_GNU2_TLS" | b"ABI_GNU_TLS" => {
            return Some(GlibcVersion { major: 2, minor: 42, patch: 0 });
        }
        _ => {}
    }
    let mut parts = std::str::from_utf8(rest).ok()?.split('.');
    let mut number = || -> Option<Option<u32>> {
        match parts.next() {
            None => Some(None),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok().map(Some),
            Some(_) => None,
        }
    };
    let (major, minor) = (number()??, number()??);
    let patch = number()?.unwrap_or(0);
    number()?.is_none().then_some(GlibcVersion { major, minor, patch })
}

#[cfg(test)]
mod tests {
    use super::{GlibcVersion, glibc_version};

    #[test]
    fn versions_are_read_and_ordered() {
        let version = |major, minor, patch| Some(GlibcVersion { major, minor, patch });
        for (text, expected) in [
            ("GLIBC_2.34", version(2, 34, 0)),
            ("GLIBC_2.2.5", version(2, 2, 5)),
            ("GLIBC_ABI_DT_RELR", version(2, 36, 0)),
            ("GLIBC_PRIVATE", None),
            ("GLIBC_", None),
            ("GLIBC_2", None),
            ("GLIBC_2.x", None),
            ("GLIBC_2.3.4.5", None),
            ("GLIBC_2.+3", None),
            ("GLIBC_99999999999.1", None),
            ("GLIBCXX_3.4", None),
            ("", None),
        ] {
            assert_eq!(glibc_version(text.as_bytes()), expected, "{text}");
        }
        assert!(version(2, 9, 0) < version(2, 34, 0));
        assert_eq!(glibc_version(b"GLIBC_2.2.5").map(|v| v.to_string()).as_deref(), Some("2.2.5"));
        assert_eq!(glibc_version(b"GLIBC_2.34").map(|v| v.to_string()).as_deref(), Some("2.34"));
    }
}
