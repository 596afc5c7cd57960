//! The platform an image is made for: the operating system is Linux, the architecture is the host's or given.
//!
//! Names are those of the OCI image-spec (`config.md`, Go's GOOS and GOARCH): `linux/amd64`, `linux/arm64`.

use super::ImageError;
use oci_spec::image::{Arch, Os};
use std::fmt;
use std::str::FromStr;

/// `linux/amd64` or `linux/arm64`: the machines that Slurm packages are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// 64 bit x86.
    LinuxAmd64,
    /// 64 bit ARM.
    LinuxArm64,
}

impl Platform {
    /// The platform this program was compiled for.
    pub fn host() -> Result<Self, ImageError> {
        std::env::consts::ARCH.parse()
    }

    /// Whether an image or an index entry with these values runs on this platform.
    pub fn accepts(self, os: &Os, arch: &Arch, variant: Option<&str>) -> bool {
        *os == Os::Linux
            && match self {
                // Entries for amd64/v2 and later need newer processors than the host may have.
                Self::LinuxAmd64 => *arch == Arch::Amd64 && matches!(variant, None | Some("" | "v1")),
                Self::LinuxArm64 => *arch == Arch::ARM64 && matches!(variant, None | Some("" | "v8")),
            }
    }

    /// GOARCH's name, which Debian and Ubuntu use as well.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::LinuxAmd64 => "amd64",
            Self::LinuxArm64 => "arm64",
        }
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        match text.strip_prefix("linux/").unwrap_or(text) {
            "amd64" | "x86_64" => Ok(Self::LinuxAmd64),
            "arm64" | "aarch64" | "arm64/v8" => Ok(Self::LinuxArm64),
            _ => Err(ImageError::UnknownPlatform { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variants() {
        for (text, want) in [("linux/amd64", "linux/amd64"), ("aarch64", "linux/arm64"), ("x86_64", "linux/amd64")] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), want);
        }
        assert!("linux/s390x".parse::<Platform>().is_err());
        let arm = Platform::LinuxArm64;
        assert!(arm.accepts(&Os::Linux, &Arch::ARM64, Some("v8")));
        assert!(!arm.accepts(&Os::Linux, &Arch::Amd64, None));
        assert!(!Platform::LinuxAmd64.accepts(&Os::Windows, &Arch::Amd64, None));
        assert!(!Platform::LinuxAmd64.accepts(&Os::Linux, &Arch::Amd64, Some("v3")));
    }
}
