//! Which files Spack must edit when it installs a package elsewhere, found while they are read for the archive.
//!
//! The same answers as Spack's own writer (`file_type` in its `binary_distribution.py`): ELF and Mach-O files by their first
//! bytes; text is what is UTF-8 throughout, or has no byte that ISO 8859-1 leaves to control characters; and text matters only
//! if it names the store.

use memchr::memmem::Finder;

/// How much is remembered of what went before: a name of the store is found across two reads, with the word that stands
/// before it.
const TAIL: usize = 4096;

/// What is to be done with a file where it is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An ELF or Mach-O file.
    Binary,
    /// A text that names the store.
    Text,
    /// Nothing.
    Other,
}

/// Sees the bytes of one file pass by.
pub struct Classifier<'s> {
    store: &'s [Finder<'s>],
    begin: Vec<u8>,
    utf8: bool,
    /// The begin of a character whose end has not been read.
    partial: Vec<u8>,
    latin: bool,
    named: bool,
    tail: Vec<u8>,
    /// The tail is all that was read so far.
    whole: bool,
}

impl<'s> Classifier<'s> {
    /// `store` finds the paths of the store.
    pub fn new(store: &'s [Finder<'s>]) -> Self {
        Self {
            store,
            begin: Vec::new(),
            utf8: true,
            partial: Vec::new(),
            latin: true,
            named: false,
            tail: Vec::new(),
            whole: true,
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let wanted = 8 - self.begin.len();
        self.begin.extend(bytes.iter().take(wanted));
        if is_object(&self.begin) {
            return;
        }
        if self.latin {
            self.latin = !bytes.iter().any(|b| matches!(b, 0 | 0x7f..=0x9f));
        }
        if self.utf8 {
            self.utf8 = self.is_utf8(bytes);
        }
        if !self.named && (self.utf8 || self.latin) {
            if self.tail.is_empty() {
                self.named = names(self.store, bytes, true);
                self.tail.extend(bytes.get(bytes.len().saturating_sub(TAIL)..).unwrap_or_default());
                self.whole = bytes.len() <= TAIL;
            } else {
                let (near, rest) = bytes.split_at(bytes.len().min(TAIL));
                self.tail.extend(near);
                self.named = names(self.store, &self.tail, self.whole) || names(self.store, bytes, false);
                if rest.is_empty() {
                    let surplus = self.tail.len().saturating_sub(2 * TAIL);
                    self.whole &= surplus == 0;
                    self.tail.drain(..surplus);
                } else {
                    self.whole = false;
                    self.tail.clear();
                    self.tail.extend(bytes.get(bytes.len().saturating_sub(TAIL)..).unwrap_or_default());
                }
            }
        }
    }

    fn is_utf8(&mut self, mut bytes: &[u8]) -> bool {
        while !self.partial.is_empty() {
            let Some((first, rest)) = bytes.split_first() else { return true };
            self.partial.push(*first);
            bytes = rest;
            match std::str::from_utf8(&self.partial) {
                Ok(_) => self.partial.clear(),
                Err(e) if e.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        match std::str::from_utf8(bytes) {
            Ok(_) => true,
            Err(e) if e.error_len().is_none() => {
                self.partial = bytes.get(e.valid_up_to()..).unwrap_or_default().to_vec();
                true
            }
            Err(_) => false,
        }
    }

    /// The answer, after the last byte.
    pub fn finish(self) -> Class {
        if self.begin.len() < 8 {
            return Class::Other;
        }
        if is_object(&self.begin) {
            return Class::Binary;
        }
        let text = (self.utf8 && self.partial.is_empty()) || self.latin;
        if text && self.named { Class::Text } else { Class::Other }
    }
}

/// ELF, Mach-O, and Mach-O of several machines in one (which begins as Java's class files do, whose next number is larger).
fn is_object(begin: &[u8]) -> bool {
    let Some((magic, next)) = begin.split_first_chunk::<4>() else { return false };
    let Ok(next) = <[u8; 4]>::try_from(next) else { return false };
    match magic {
        [0x7f, b'E', b'L', b'F'] | [0xcf | 0xce, 0xfa, 0xed, 0xfe] | [0xfe, 0xed, 0xfa, 0xcf | 0xce] => true,
        [0xca, 0xfe, 0xba, 0xbe] => u32::from_be_bytes(next) < 10,
        [0xbe, 0xba, 0xfe, 0xca] => u32::from_le_bytes(next) < 10,
        _ => false,
    }
}

/// Whether the store is named in a way that Spack would replace: with at most a word (`-L`, `prefix-`) directly before it, and
/// not as the end of a longer path. Unless `begins`, what stands before the first byte is not known, and is not guessed.
fn names(store: &[Finder<'_>], bytes: &[u8], begins: bool) -> bool {
    store.iter().flat_map(|path| path.find_iter(bytes)).any(|at| {
        let before = bytes.get(..at).unwrap_or_default();
        let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        before.iter().rev().find(|b| !word(b)).map_or(begins, |b| *b != b'/')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(content: &[u8], step: usize) -> Class {
        let finder = [Finder::new(b"/s/store")];
        let mut classifier = Classifier::new(&finder);
        for part in content.chunks(step) {
            classifier.update(part);
        }
        classifier.finish()
    }

    #[test]
    fn files_are_told_apart_as_spack_does_however_they_are_read() {
        let slash = [vec![b'.'; TAIL - 8], b"/x/s/store".to_vec(), vec![b'y'; 3 * TAIL]].concat();
        let far = [vec![b'x'; 5 * TAIL], b" /s/store/zlib\n".to_vec(), vec![b'y'; 3 * TAIL]].concat();
        let cases: [(&[u8], Class); 15] = [
            (b"\x7fELF\x02\x01\x01\x00/s/store", Class::Binary),
            (b"\xca\xfe\xba\xbe\x00\x00\x00\x02", Class::Binary),
            (b"\xca\xfe\xba\xbe\x00\x00\x00\x34/s/store", Class::Other),
            (b"/s/store/bin/sh\n", Class::Text),
            (b"-L/s/store/lib\n", Class::Text),
            (b"foo/bar/s/store\n", Class::Other),
            (b"file:///s/store\n", Class::Other),
            (b"nothing here", Class::Other),
            (b"short", Class::Other),
            (b"/s/store with \xe9 in latin\n", Class::Text),
            (b"/s/store with \x80 in between\n", Class::Other),
            ("/s/store with \u{20ac} in utf-8\n".as_bytes(), Class::Text),
            (b"/s/store cut \xe2\x82", Class::Other),
            (&far, Class::Text),
            (&slash, Class::Other),
        ];
        for (content, want) in cases {
            for step in [1, 3, 7, TAIL - 1, TAIL, 1 << 20] {
                assert_eq!(class(content, step), want, "{} by {step}", content.escape_ascii());
            }
        }
    }
}
