//! The shared libraries and programs of this host: edited to a long search path and stripped of debug information,
//! each must load or start as before, satisfy `eu-elflint` as before, and still do so after GNU `strip`.
//!
//! `SLURM_FACTORY_ELF_CORPUS` says how many files to take (`all` for every one); the sample is always the same.
//! With `SLURM_FACTORY_ELF_PATCHELF=1` patchelf gets the same files and the same search path, and what it makes of them is
//! looked at in the same way; its failures are counted beside ours and fail nothing. `tests/deep/corpus.sh` does both for a
//! whole Debian installation.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use slurm_factory::elf::{Edited, Elf, ElfError, Kind, SearchPath, Strip, edit, is_elf, parse};

use crate::tools::{Ended, by_parts, edit_of, elflint, folder, readelf_warnings, run, tool, worse, write_program};

const PROBE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
  void *handle = dlopen(argv[1], RTLD_NOW);
  if (handle) printf("loaded\n"); else printf("%s\n", dlerror());
  fflush(stdout);
  _exit(handle ? 0 : 1);
}
"#;

/// Every ELF file below the folders, once per inode, in a fixed order.
fn files() -> Vec<PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![
        PathBuf::from("/usr/lib"),
        PathBuf::from("/usr/bin"),
        PathBuf::from("/usr/sbin"),
        PathBuf::from("/usr/libexec"),
    ];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() && !path.starts_with("/usr/lib/debug") {
                folders.push(path);
            } else if kind.is_file() && starts_as_elf(&path) {
                let Ok(metadata) = entry.metadata() else { continue };
                let first = found.entry((metadata.dev(), metadata.ino())).or_insert(path.clone());
                if path < *first {
                    *first = path;
                }
            }
        }
    }
    let mut files: Vec<PathBuf> = found.into_values().collect();
    files.sort();
    files
}

fn starts_as_elf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && is_elf(&magic)
}

/// A sample that depends on nothing but the list: every n-th.
fn sample(files: Vec<PathBuf>) -> Vec<PathBuf> {
    let asked = std::env::var("SLURM_FACTORY_ELF_CORPUS").unwrap_or_else(|_| "150".into());
    let count =
        if asked == "all" { files.len() } else { asked.parse().expect("SLURM_FACTORY_ELF_CORPUS: a number, or all") };
    let length = files.len();
    files
        .into_iter()
        .enumerate()
        .filter(|(index, _)| index * count / length != (index + 1) * count / length)
        .map(|(_, path)| path)
        .collect()
}

/// What happened to one file.
enum Outcome {
    Passed,
    Untouched,
    Refused(String),
    Failed(String),
}

struct Bench {
    dir: PathBuf,
    probe: PathBuf,
    with_patchelf: bool,
    patchelf_failed: Mutex<Vec<String>>,
}

impl Bench {
    /// Loads or starts a file; what can differ between two runs of the same file is left out.
    fn try_file(&self, path: &Path, like: &Path, elf: &Elf, folders: Option<&str>) -> Ended {
        let is_program = elf.interpreter.is_some() && (elf.kind == Kind::Executable || elf.is_pie) && !is_library(like);
        let mut command = Command::new(if is_program { path } else { &self.probe });
        if !is_program {
            command.arg(path);
        } else if like.starts_with("/usr/bin") {
            command.arg0(like).arg("--version");
        } else {
            // Daemons and helpers are not started: the kernel maps them, and the loader loads and binds everything.
            command.arg0(like);
        }
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.dir)
            .env("TERM", "dumb")
            .current_dir(&self.dir);
        if is_program && !like.starts_with("/usr/bin") {
            command.env("LD_TRACE_LOADED_OBJECTS", "1").env("LD_WARN", "1").env("LD_BIND_NOW", "1");
        }
        if let Some(folders) = folders {
            command.env("LD_LIBRARY_PATH", folders);
        }
        let mut ended = run(&mut command, Duration::from_secs(4));
        for text in [&mut ended.stdout, &mut ended.stderr] {
            *text = text.replace(&path.display().to_string(), "FILE").replace(&like.display().to_string(), "FILE");
            *text = without_addresses(text);
            text.retain(|letter| !letter.is_ascii_digit()); // process numbers, times
        }
        ended
    }

    /// Whether an edited file does what the original did: the same as `expected`; or, for one whose output is never the
    /// same twice, at least ends as it did.
    fn same(&self, path: &Path, elf: &Elf, expected: &[Ended], found: &Ended) -> bool {
        let outcome = |ended: &Ended| (ended.code, ended.signal, ended.timed_out);
        expected.contains(found)
            || expected.iter().any(|one| outcome(one) == outcome(found))
                && !expected.contains(&self.try_file(path, path, elf, None))
    }

    /// What is wrong with the file at `out`, made of `path` whose bytes are `data`; nothing when it is as good as that.
    /// It is stripped on the way.
    fn judge(&self, path: &Path, out: &Path, data: &[u8], elf: &Elf, folders: &str, stripper: &str) -> Option<String> {
        let bytes = std::fs::read(out).unwrap();
        let mut expected = vec![self.try_file(path, path, elf, None)];
        let after = self.try_file(out, path, elf, None);
        if after != expected[0] {
            // Some find their data beside themselves: compare with an unedited copy in the same place.
            write_program(out, data);
            expected.push(self.try_file(out, path, elf, Some(folders)));
            if !self.same(path, elf, &expected, &after) {
                return Some(format!("runs differently: {after:?} instead of {expected:?}"));
            }
            write_program(out, &bytes);
        }
        let added = worse(&elflint(path), &elflint(out));
        if !added.is_empty() {
            return Some(format!("eu-elflint: {added:?}"));
        }
        if readelf_warnings(out) > readelf_warnings(path) {
            return Some("readelf warns".into());
        }
        let ended = run(Command::new(stripper).arg(out), Duration::from_mins(2));
        if ended.code != Some(0) {
            return Some(format!("{stripper}: {}", ended.stderr));
        }
        let stripped = self.try_file(out, path, elf, None);
        (!self.same(path, elf, &expected, &stripped))
            .then(|| format!("runs differently after {stripper}: {stripped:?} instead of {expected:?}"))
    }

    /// The same edit by patchelf: `None` when it is as good.
    fn patchelf(&self, path: &Path, out: &Path, data: &[u8], elf: &Elf, edit: (&str, &str, &str)) -> Option<String> {
        let (text, folders, stripper) = edit;
        write_program(out, data);
        let mut command = Command::new("patchelf");
        let ended = run(command.args(["--force-rpath", "--set-rpath", text]).arg(out), Duration::from_mins(2));
        if ended.code != Some(0) {
            return Some(format!("refused: {}", ended.stderr.trim()));
        }
        self.judge(path, out, data, elf, folders, stripper)
    }

    fn check(&self, path: &Path, number: usize) -> Outcome {
        let data = std::fs::read(path).unwrap();
        let elf = match parse(&data) {
            Ok(elf) => elf,
            Err(error) => return Outcome::Refused(format!("parse: {error}")),
        };
        if !matches!(elf.kind, Kind::Executable | Kind::SharedObject) || elf.is_debug_file {
            return Outcome::Untouched;
        }
        // The path must still lead where the old one did, from another folder.
        let home = path.parent().unwrap().display().to_string();
        let old = elf
            .search_path()
            .map(|text| String::from_utf8_lossy(text).replace("${ORIGIN}", &home).replace("$ORIGIN", &home));
        let mut folders = home.clone();
        if let Some(old) = old {
            folders = format!("{old}:{folders}");
        }
        let text = format!("{folders}:/{}", "x".repeat(300));
        let what = edit_of(SearchPath::Rpath(text.clone().into_bytes()), Strip::Debug);
        let bytes = match edit(&data, &what) {
            Ok(Edited::Changed(bytes)) => bytes,
            Ok(Edited::Unchanged) => return Outcome::Untouched,
            Err(error @ ElfError::Unsupported(_)) => return Outcome::Refused(error.to_string()),
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        if edit(&bytes, &what) != Ok(Edited::Unchanged) {
            return Outcome::Failed("editing twice".into());
        }
        // Other edits of the same file, whose results are only checked by edit itself.
        for (search_path, strip) in [
            (SearchPath::Remove, Strip::All),
            (SearchPath::Runpath(vec![b'y'; 1000]), Strip::Keep),
            (SearchPath::Runpath(b"$ORIGIN".to_vec()), Strip::Keep),
        ] {
            let other = edit_of(search_path, strip);
            for data in [&data, &bytes] {
                let result = edit(data, &other);
                if by_parts(data, &other) != result {
                    return Outcome::Failed(format!("{other:?}: of parts, the edit is another"));
                }
                let again = match &result {
                    Ok(Edited::Changed(bytes)) => edit(bytes, &other),
                    Ok(Edited::Unchanged) => Ok(Edited::Unchanged),
                    Err(error) => return Outcome::Failed(format!("{other:?}: {error}")),
                };
                if again != Ok(Edited::Unchanged) {
                    return Outcome::Failed(format!("{other:?} twice: {:?}", again.err()));
                }
            }
        }

        let out = self.dir.join(format!("{number}-{}", path.file_name().unwrap().to_string_lossy()));
        let stripper = if number.is_multiple_of(2) { "strip" } else { "eu-strip" };
        write_program(&out, &bytes);
        let wrong = self.judge(path, &out, &data, &elf, &folders, stripper);
        if self.with_patchelf
            && let Some(why) = self.patchelf(path, &out, &data, &elf, (&text, &folders, stripper))
        {
            self.patchelf_failed.lock().unwrap().push(format!("{}: {why}", path.display()));
        }
        std::fs::remove_file(&out).unwrap();
        if let Some(why) = wrong {
            return Outcome::Failed(why);
        }
        Outcome::Passed
    }
}

/// The text with every hexadecimal number (`0x7f12ab`) as `0x`: where the kernel put something is another place each time,
/// and dropping digits alone would leave the letters.
fn without_addresses(text: &str) -> String {
    let mut parts = text.split("0x");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str("0x");
        kept.push_str(part.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()));
    }
    kept
}

/// Libraries that can also be started (libc.so.6) are tried as libraries.
fn is_library(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"))
}

#[test]
fn files_of_this_host_work_as_before() {
    let (_guard, dir) = folder();
    std::fs::write(dir.join("probe.c"), PROBE).unwrap();
    tool("gcc", &["-o", "probe", "probe.c"], &dir);
    let with_patchelf = std::env::var("SLURM_FACTORY_ELF_PATCHELF").is_ok_and(|value| value == "1");
    let bench = Bench { probe: dir.join("probe"), dir, with_patchelf, patchelf_failed: Mutex::default() };
    let files = sample(files());
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = files.get(index) else { break };
                    let start = std::time::Instant::now();
                    let outcome = bench.check(path, index);
                    if start.elapsed() > Duration::from_secs(2) {
                        println!("{:?} for {}", start.elapsed(), path.display());
                    }
                    outcomes.lock().unwrap().push((path.clone(), outcome));
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    assert_eq!(outcomes.len(), files.len());
    let (mut passed, mut untouched, mut refused, mut failed) = (0, 0, Vec::new(), Vec::new());
    for (path, outcome) in outcomes {
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::Untouched => untouched += 1,
            Outcome::Refused(why) => refused.push(format!("{}: {why}", path.display())),
            Outcome::Failed(why) => failed.push(format!("{}: {why}", path.display())),
        }
    }
    println!(
        "{} files: {passed} passed, {untouched} untouched, {} refused, {} failed",
        files.len(),
        refused.len(),
        failed.len()
    );
    println!("{}", refused.join("\n"));
    if with_patchelf {
        let theirs = bench.patchelf_failed.into_inner().unwrap();
        println!("patchelf, the same files: {} failed\n{}", theirs.len(), theirs.join("\n"));
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
