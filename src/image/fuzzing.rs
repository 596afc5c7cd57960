//! Doors for the fuzz targets in `tests/fuzz`: the parsers of what comes from strangers, given any bytes. Nothing here is
//! part of the program.

use super::tar::TarReader;
use super::testing::finish_header;
use super::{ImageError, Platform, Reference, manifest};

/// Reads an archive to its end. Headers get a right checksum first: chance would never find one.
pub fn archive(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            let mut header = [0; 512];
            header.copy_from_slice(block);
            block.copy_from_slice(&finish_header(header));
        }
    }
    let mut reader = TarReader::new(bytes.as_slice());
    let mut total = 0_usize;
    while let Ok(Some(_)) = reader.next_entry() {
        let read = reader.read_data(|data| {
            total += data.len();
            Ok::<_, super::TarError>(())
        });
        if read.is_err() {
            break;
        }
    }
    assert!(total <= bytes.len(), "more data than the archive has");
}

/// Reads a document as index, manifest and configuration.
pub fn document(bytes: &[u8]) -> Result<(), ImageError> {
    let platform: Platform = "linux/amd64".parse().expect("a platform");
    let config = manifest::parse_config(bytes, platform, "fuzz");
    match manifest::parse(bytes, "fuzz")? {
        manifest::Document::Index(index) => {
            let chosen = manifest::choose(&index, platform, "fuzz")?;
            manifest::digest_of(&chosen, "the index", "fuzz")?;
        }
        manifest::Document::Manifest(found) => {
            manifest::check_config_descriptor(&found, "fuzz")?;
            manifest::layers(&found, &config?, "fuzz")?;
        }
    }
    Ok(())
}

/// A reference that parses is written as one that means the same.
pub fn reference(text: &str) {
    if let Ok(parsed) = text.parse::<Reference>() {
        let written = parsed.to_string();
        assert_eq!(written.parse::<Reference>().ok(), Some(parsed), "{text:?} is written as {written:?}");
    }
}
