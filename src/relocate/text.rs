//! Text files that name the build prefix: scripts, their first lines, configuration.
//!
//! A first line (`#!`, execve(2)) that names a program of the package becomes `#!/usr/bin/env NAME`: the kernel
//! takes no relative interpreter, and the module puts the package's `bin` first in PATH. Where that line would have been too
//! long, Spack put one of its own before it, `#!/bin/sh STORE/bin/sbang`: it goes, and the second is the first again (which may
//! begin as a comment of its language, `//!` or `--!`; Spack's `bin/sbang`). Anything else that
//! names the prefix gets [`PLACEHOLDER`] in its place, and the file is listed for `install`, which writes the
//! folder it installed to.

use std::borrow::Cow;
use std::path::Path;

/// What stands for the view's folder until `install` fills it in.
pub const PLACEHOLDER: &str = "@SLURM_FACTORY_PREFIX@";

/// What became of a text file.
#[derive(Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The new content.
    pub bytes: Vec<u8>,
    /// Whether `install` has to fill in [`PLACEHOLDER`].
    pub fill_in: bool,
}

/// Turns absolute paths of the build into paths in the view.
pub trait MapPath {
    /// How many bytes at the start of `text` (which begins with the build root) stand for the view's folder:
    /// `/root/store/zlib-1.3-hash` in `/root/store/zlib-1.3-hash/lib`.
    fn prefix_len(&self, text: &[u8]) -> usize;
}

/// Rewrites a text file; `None` when it does not name the build root.
pub fn rewrite(bytes: &[u8], root: &[u8], map: &dyn MapPath) -> Option<Rewritten> {
    let finder = memchr::memmem::Finder::new(root);
    finder.find(bytes)?;
    let bytes = without_sbang(bytes, root);
    let (first, rest) = split_first_line(&bytes);
    let mut out = Vec::with_capacity(bytes.len());
    match shebang(first, root, map) {
        Some(line) => out.extend_from_slice(&line),
        None => replace(first, &finder, map, &mut out),
    }
    replace(rest, &finder, map, &mut out);
    let fill_in = memchr::memmem::find(&out, PLACEHOLDER.as_bytes()).is_some();
    Some(Rewritten { bytes: out, fill_in })
}

/// Whether content is text: no NUL byte in its first 8 KiB (what grep and git go by).
pub fn is_text(bytes: &[u8]) -> bool {
    memchr::memchr(0, &bytes[..bytes.len().min(8192)]).is_none()
}

/// The script as it was before Spack put its helper before the interpreter.
fn without_sbang<'b>(bytes: &'b [u8], root: &[u8]) -> Cow<'b, [u8]> {
    let (first, rest) = split_first_line(bytes);
    let helper = first.strip_prefix(b"#!/bin/sh ").map(<[u8]>::trim_ascii);
    if !helper.is_some_and(|path| path.starts_with(root) && path.ends_with(b"/bin/sbang")) {
        return Cow::Borrowed(bytes);
    }
    let script = rest.strip_prefix(b"\n").unwrap_or(rest);
    if script.starts_with(b"#!") {
        return Cow::Borrowed(script);
    }
    for comment in [b"//!", b"--!"] {
        if let Some(line) = script.strip_prefix(comment) {
            return Cow::Owned([b"#!", line].concat());
        }
    }
    Cow::Borrowed(bytes)
}

fn split_first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'\n', bytes) {
        Some(end) if bytes.starts_with(b"#!") => bytes.split_at(end),
        None if bytes.starts_with(b"#!") => (bytes, &[]),
        _ => (&[], bytes),
    }
}

fn shebang(line: &[u8], root: &[u8], map: &dyn MapPath) -> Option<Vec<u8>> {
    let command = line.strip_prefix(b"#!")?.trim_ascii();
    if !command.starts_with(root) {
        return None;
    }
    let end = command.iter().position(u8::is_ascii_whitespace).unwrap_or(command.len());
    let (interpreter, arguments) = command.split_at(end);
    let inside = interpreter.get(map.prefix_len(interpreter)..)?;
    let name = Path::new(std::str::from_utf8(inside).ok()?).file_name()?.to_str()?;
    let arguments = arguments.trim_ascii();
    Some(through_env(name.as_bytes(), arguments))
}

/// The first line that has env(1) find the interpreter in PATH; it takes several arguments with -S (coreutils 8.30).
pub(super) fn through_env(name: &[u8], arguments: &[u8]) -> Vec<u8> {
    if arguments.is_empty() {
        return [b"#!/usr/bin/env ", name].concat();
    }
    [b"#!/usr/bin/env -S ", name, b" ", arguments].concat()
}

fn replace(bytes: &[u8], finder: &memchr::memmem::Finder<'_>, map: &dyn MapPath, out: &mut Vec<u8>) {
    let mut at = 0;
    for found in finder.find_iter(bytes) {
        if found < at {
            continue;
        }
        out.extend_from_slice(&bytes[at..found]);
        out.extend_from_slice(PLACEHOLDER.as_bytes());
        at = found + map.prefix_len(&bytes[found..]);
    }
    out.extend_from_slice(&bytes[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Store;

    impl MapPath for Store {
        fn prefix_len(&self, text: &[u8]) -> usize {
            // /b/store/NAME
            let tail = &text[b"/b/store/".len().min(text.len())..];
            let name =
                tail.iter().position(|b| *b == b'/' || b.is_ascii_whitespace() || *b == b'"').unwrap_or(tail.len());
            text.len() - tail.len() + name
        }
    }

    fn run(text: &str) -> Option<(String, bool)> {
        rewrite(text.as_bytes(), b"/b/store", &Store).map(|r| (String::from_utf8(r.bytes).unwrap(), r.fill_in))
    }

    #[test]
    fn first_lines_lose_the_prefix_and_need_no_filling_in() {
        assert_eq!(run("#!/b/store/perl-5/bin/perl\nx\n"), Some(("#!/usr/bin/env perl\nx\n".into(), false)));
        assert_eq!(run("#! /b/store/perl-5/bin/perl -w -T\n"), Some(("#!/usr/bin/env -S perl -w -T\n".into(), false)));
    }

    #[test]
    fn the_line_that_spack_put_before_a_long_first_line_goes() {
        let sbang = "#!/bin/sh /b/store/bin/sbang\n";
        for (script, want) in [
            ("#!/b/store/perl-5/bin/perl -w\nx\n", "#!/usr/bin/env -S perl -w\nx\n"),
            ("--!/b/store/lua-5/bin/lua\nx\n", "#!/usr/bin/env lua\nx\n"),
            ("//!/b/store/node-5/bin/node\nx\n", "#!/usr/bin/env node\nx\n"),
        ] {
            assert_eq!(run(&format!("{sbang}{script}")), Some((want.into(), false)), "{script}");
        }
        let other = format!("{sbang}no interpreter\n");
        assert!(run(&other).is_some_and(|(text, fill_in)| fill_in && text.contains("sbang")), "is not guessed at");
    }

    #[test]
    fn other_text_is_listed_for_install() {
        assert_eq!(
            run("#!/bin/sh\nexec \"/b/store/x-1/bin/x\" /b/store/y/lib\n"),
            Some((format!("#!/bin/sh\nexec \"{PLACEHOLDER}/bin/x\" {PLACEHOLDER}/lib\n"), true))
        );
        assert_eq!(run("nothing here"), None);
    }
}
