//! SHA-256 of bytes as they come, and of what passes on its way from a reader or to a writer: packages, layers and tarballs are
//! hashed in the one pass that moves them.
//!
//! AWS-LC's, which the TLS library brings: on a processor with SHA instructions a seventh quicker than the `sha2` crate, and
//! several gigabytes of every image go through it twice.

use aws_lc_rs::digest;
use std::io::{self, Read, Write};

/// Hashes bytes as they come.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Sha256 {
    /// Of no bytes yet.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The sum of all that came.
    pub fn finish(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        bytes
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// Hashes and counts what passes through to `inner`, or from it. [`io::sink`] where only the sum matters.
pub struct Hashing<I> {
    inner: I,
    hasher: Sha256,
    size: u64,
}

impl<I> Hashing<I> {
    /// Around it, with nothing passed yet.
    pub fn new(inner: I) -> Self {
        Self { inner, hasher: Sha256::new(), size: 0 }
    }

    /// Bytes that have passed.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What it was around, and the sum of what has passed.
    pub fn finish(self) -> (I, [u8; 32]) {
        (self.inner, self.hasher.finish())
    }

    /// The sum in lower-case hexadecimal.
    pub fn hex(self) -> String {
        hex::encode(self.hasher.finish())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(out)?;
        self.hasher.update(out.get(..got).unwrap_or_default());
        self.size += got as u64;
        Ok(got)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::Hashing;
    use std::io::{self, Write as _};

    /// FIPS 180-2, B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn what_passes_is_hashed_and_counted() {
        let mut reading = Hashing::new(&b"abc"[..]);
        assert_eq!((io::copy(&mut reading, &mut io::sink()).unwrap(), reading.size()), (3, 3));
        assert_eq!(reading.hex(), ABC);
        // Only what was taken counts.
        let mut room = [0; 3];
        let mut writing = Hashing::new(&mut room[..]);
        assert_eq!((writing.write(b"abcdef").unwrap(), writing.size()), (3, 3));
        assert_eq!(hex::encode(writing.finish().1), ABC);
    }
}
