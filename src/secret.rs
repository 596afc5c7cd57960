//! Values that must never reach a log, an error message or a debug bundle.
//!
//! [`Secret`] has neither `Debug` with content nor `Display`; its memory is zeroed when it is dropped.
//! Reading it takes a call that can be searched for: [`Secret::expose`].

use serde::{Deserialize, Deserializer};
use std::io::{self, Read};
use zeroize::{Zeroize, Zeroizing};

/// The longest secret that is read, bytes: a file of many OpenPGP keys.
pub const LONGEST: usize = 4 << 20;

/// A value that is zeroed on drop and that cannot be printed by accident.
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Takes the value into keeping.
    pub fn new(value: T) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value itself. Every call is a place to review.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself, to be filled in.
    pub fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl Secret<Vec<u8>> {
    /// Reads to the end, from wherever it comes; at most [`LONGEST`] bytes. Room is reserved at once, because growing would leave
    /// copies of a secret in freed memory.
    pub fn read(from: &mut dyn Read) -> io::Result<Self> {
        let mut bytes = Self::new(Vec::with_capacity(LONGEST + 1));
        from.take(LONGEST as u64 + 1).read_to_end(bytes.expose_mut())?;
        if bytes.expose().len() > LONGEST {
            let text = format!("it is longer than {LONGEST} bytes, which is no key");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(bytes)
    }
}

impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(Self::new)
    }
}

impl<T: Zeroize> std::fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// An address as it may be shown and kept: without user name and password (RFC 3986, "userinfo"). Of what does not parse as a
/// URL nobody can say where a password ends, so all is cut that stands before its last `@`. What is no URL stays as it is.
pub fn without_login(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let end = match reqwest::Url::parse(address) {
        Ok(_) => rest.find(['/', '?', '#']).unwrap_or(rest.len()),
        Err(_) => rest.len(),
    };
    let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}://{}", &rest[host..])
}

#[cfg(test)]
mod tests {
    use super::{Secret, without_login};

    #[test]
    fn debug_shows_nothing() {
        let secret = Secret::new(String::from("hunter2"));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn what_never_ends_is_refused() {
        assert_eq!(Secret::read(&mut &b"key"[..]).unwrap().expose(), b"key");
        let error = Secret::read(&mut std::io::repeat(0)).unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }

    #[test]
    fn an_address_is_shown_without_its_login() {
        for (address, shown) in [
            ("https://user:secret@host/x.git", "https://host/x.git"),
            ("https://user:se@cret@host:8443/x.git", "https://host:8443/x.git"),
            ("ssh://user:secret@host/x@y.git", "ssh://host/x@y.git"),
            ("https://host/x@y.git?a=b@c", "https://host/x@y.git?a=b@c"),
            ("s3://key:secret@bucket", "s3://bucket"),
            // These are no URLs: what is before their `/`, `?` or `#` would be a port.
            ("https://user:se/cret@host/", "https://host/"),
            ("https://user:se?cr#et@host/x", "https://host/x"),
            ("https://user:secret@host:port/x", "https://host:port/x"),
            ("/srv/a@b", "/srv/a@b"),
            ("git@host:x.git", "git@host:x.git"),
        ] {
            assert_eq!(without_login(address), shown);
        }
    }
}
