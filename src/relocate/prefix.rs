//! Where a prefix stands in bytes, as a prefix of paths and not as part of another name; and how another one takes its place.
//!
//! ```text
//! /opt/old          matches in   "-I/opt/old/include"   "PATH=/opt/old:/usr"   "file:///opt/old/x"
//!          and not in            "/opt/older"           "/srv/opt/old"         "/opt/old-2"
//! ```
//!
//! In text the new prefix simply takes the old one's place. In binaries nothing may move: a string is found by its address,
//! its length may be compiled in, and linkers let strings share their tails. So a new prefix that is no longer than the old
//! one is written over it, and what is left is filled up with slashes: `/opt/new/////lib` is `/opt/new/lib` (POSIX.1-2017,
//! 4.13 "Pathname Resolution"). Every byte after the prefix stays where it was.

use memchr::memmem::Finder;

/// The old and the new prefix. Both absolute, without a slash at their end, and not the root.
#[derive(Debug)]
pub struct Prefixes<'a> {
    from: &'a [u8],
    to: &'a [u8],
    finder: Finder<'a>,
}

/// Bytes that a name of a file is made of, as far as the end of a prefix is concerned.
fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._+-@%~".contains(&byte) || byte >= 0x80
}

impl<'a> Prefixes<'a> {
    /// `from` is looked for, `to` takes its place.
    pub fn new(from: &'a [u8], to: &'a [u8]) -> Self {
        Self { from, to, finder: Finder::new(from) }
    }

    /// The old one.
    pub fn from(&self) -> &'a [u8] {
        self.from
    }

    /// The new one.
    pub fn to(&self) -> &'a [u8] {
        self.to
    }

    /// Whether the new one fits where the old one was.
    pub fn fits(&self) -> bool {
        self.to.len() <= self.from.len()
    }

    /// The path below the old prefix that `path` is, without a slash at its begin; `None` when it is elsewhere.
    pub fn below<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        match path.strip_prefix(self.from)? {
            [] => Some(&[]),
            [b'/', rest @ ..] => Some(rest),
            _ => None,
        }
    }

    /// The offsets at which the old prefix stands.
    pub fn find<'p>(&'p self, bytes: &'p [u8]) -> impl Iterator<Item = usize> + 'p {
        self.finder.find_iter(bytes).filter(|at| self.is_whole(bytes, *at))
    }

    fn is_whole(&self, bytes: &[u8], at: usize) -> bool {
        if bytes.get(at + self.from.len()).is_some_and(|next| is_of_a_name(*next)) {
            return false;
        }
        // `/srv` before `/opt/old` makes it another path; `-I`, `=` or a second slash do not.
        let before = &bytes[..at];
        let name = before.iter().rev().take_while(|byte| is_of_a_name(**byte)).count();
        name == 0 || before.len().checked_sub(name + 1).is_none_or(|slash| before[slash] != b'/')
    }

    /// Text with the new prefix in place of the old; `None` when it does not name the old one.
    pub fn in_text(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut end = 0;
        for at in self.find(text) {
            out.extend_from_slice(&text[end..at]);
            out.extend_from_slice(self.to);
            end = at + self.from.len();
        }
        (end > 0).then(|| {
            out.extend_from_slice(&text[end..]);
            out
        })
    }

    /// Writes the new prefix over the old one wherever it stands in a binary; says how often. Only when it [fits](Self::fits).
    pub fn in_binary(&self, bytes: &mut [u8]) -> usize {
        let places: Vec<usize> = self.find(bytes).collect();
        for at in &places {
            let (new, rest) = bytes[*at..*at + self.from.len()].split_at_mut(self.to.len());
            new.copy_from_slice(self.to);
            rest.fill(b'/');
        }
        places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Prefixes;

    #[test]
    fn a_prefix_is_whole_names() {
        let prefixes = Prefixes::new(b"/opt/old", b"/srv");
        for (text, want) in [
            ("/opt/old", "/srv"),
            ("/opt/old/lib", "/srv/lib"),
            ("-I/opt/old/include -L/opt/old/lib", "-I/srv/include -L/srv/lib"),
            ("PATH=/opt/old:/usr", "PATH=/srv:/usr"),
            ("file:///opt/old/x", "file:///srv/x"),
            ("'/opt/old'", "'/srv'"),
        ] {
            let changed = prefixes.in_text(text.as_bytes()).unwrap_or_default();
            assert_eq!(String::from_utf8(changed).unwrap(), want, "{text}");
        }
        for text in
            ["/opt/older", "/srv/opt/old", "/opt/old-2/x", "/opt/old.bak", "opt/old", "/x.y/opt/old/lib", "/opt/oldé"]
        {
            assert_eq!(prefixes.in_text(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn in_binaries_nothing_moves() {
        let prefixes = Prefixes::new(b"/opt/older/prefix", b"/new");
        let mut bytes = b"\x01/opt/older/prefix/lib/x\0/opt/older/prefix\0/opt/older/prefixes\0".to_vec();
        assert_eq!(prefixes.in_binary(&mut bytes), 2);
        assert_eq!(bytes, b"\x01/new//////////////lib/x\0/new/////////////\0/opt/older/prefixes\0");
        assert_eq!(prefixes.in_binary(&mut bytes), 0, "twice is once");
    }
}
