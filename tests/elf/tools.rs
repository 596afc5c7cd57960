//! The outside programs that these tests need, each run with a time limit. A missing one is a failure, not a skip.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use slurm_factory::elf::{Edit, Edited, ElfError, Parts, Piece, SearchPath, Strip, edit, edit_parts};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub timed_out: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end, or to the end of our patience.
pub fn run(command: &mut Command, patience: Duration) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match spawn(command) {
        Ok(child) => child,
        // A program for another machine, or whose loader is not installed: that is an outcome too.
        Err(error) if error.raw_os_error() == Some(8) || Path::new(command.get_program()).exists() => {
            let (stdout, stderr) = (String::new(), error.to_string());
            return Ended { code: None, signal: None, timed_out: false, stdout, stderr };
        }
        Err(error) => panic!("cannot start {command:?}: {error}"),
    };
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = reader(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = reader(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let end = Instant::now() + patience;
    let mut timed_out = false;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > end {
            timed_out = true;
            child.kill().expect("kill");
            break child.wait().expect("wait");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    // A daemon that was left behind may keep the pipes open: do not wait for it.
    let take = |reader: std::thread::JoinHandle<String>| {
        let end = Instant::now() + Duration::from_secs(2);
        while !reader.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if reader.is_finished() { reader.join().expect("reader") } else { String::new() }
    };
    let (stdout, stderr) = (take(stdout), take(stderr));
    Ended { code: status.code(), signal: status.signal(), timed_out, stdout, stderr }
}

/// A file that another thread's child still holds open for writing cannot be started; that passes.
fn spawn(command: &mut Command) -> std::io::Result<std::process::Child> {
    for _ in 0..200 {
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
    panic!("still busy: {command:?}");
}

/// Runs a tool that must succeed.
pub fn tool(name: &str, args: &[&str], dir: &Path) -> Output {
    let output = Command::new(name).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{name} is needed by this test: {error}"));
    assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Writes a file that may be run.
pub fn write_program(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o755).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

/// The complaints of `eu-elflint`, without their numbers: an edit may add none.
pub fn elflint(path: &Path) -> Vec<String> {
    let ended = run(Command::new("eu-elflint").arg("--gnu-ld").arg(path), Duration::from_mins(2));
    assert!(!ended.timed_out, "eu-elflint on {}", path.display());
    let mut lines: Vec<String> = ended
        .stdout
        .lines()
        .chain(ended.stderr.lines())
        .filter(|line| *line != "No errors" && !line.is_empty())
        .map(|line| {
            let mut text = String::new();
            for word in line.split_inclusive([' ', ',', ':', '\'', '[', ']', '(', ')', '+']) {
                let digits = word.trim_end_matches([' ', ',', ':', '\'', '[', ']', '(', ')', '+']);
                let number = digits.strip_prefix("0x").unwrap_or(digits);
                let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_hexdigit());
                text.push_str(if is_number { "#" } else { word });
            }
            text
        })
        .collect();
    lines.sort();
    lines
}

/// The complaints in `after` that are not in `before`, each as often as it is too many.
pub fn worse(before: &[String], after: &[String]) -> Vec<String> {
    let mut left = before.to_vec();
    let mut added = Vec::new();
    for line in after {
        match left.iter().position(|other| other == line) {
            Some(index) => {
                left.swap_remove(index);
            }
            None => added.push(line.clone()),
        }
    }
    added
}

/// `readelf` must not warn about an edited file more than about the original.
pub fn readelf_warnings(path: &Path) -> usize {
    let ended = run(Command::new("readelf").arg("-hlSdrVnW").arg(path), Duration::from_mins(2));
    ended.stderr.lines().filter(|line| line.contains("arning") || line.contains("rror")).count()
}

pub fn edit_of(search_path: SearchPath, strip: Strip) -> Edit {
    Edit { search_path, strip, ..Edit::default() }
}

/// Edits, and checks that the edit of the result changes nothing.
pub fn edited(data: &[u8], what: &Edit, name: &str) -> Vec<u8> {
    let once = match edit(data, what) {
        Ok(Edited::Changed(bytes)) => bytes,
        Ok(Edited::Unchanged) => data.to_vec(),
        Err(error) => panic!("{name}: {error}"),
    };
    assert_eq!(edit(&once, what), Ok(Edited::Unchanged), "{name}: editing twice");
    assert!(by_parts(data, what) == edit(data, what), "{name}: of parts, the edit is another");
    once
}

/// The same edit by whoever reads no more of the file than is asked for.
pub fn by_parts(data: &[u8], what: &Edit) -> Result<Edited, ElfError> {
    let mut parts = Parts::new(data.len() as u64);
    let at = |offset: u64| usize::try_from(offset).unwrap().min(data.len());
    loop {
        match edit_parts(&parts, |_| Some(what.clone())) {
            Err(ElfError::NotRead { offset, length }) => {
                let (start, end) = (offset / 64 * 64, (offset + length).next_multiple_of(64));
                let before = parts.clone();
                parts.add(start, data[at(start)..at(end)].to_vec());
                assert!(parts != before, "the same is asked for again: {length} bytes at {offset}");
            }
            Err(error) => return Err(error),
            Ok(None) => return Ok(Edited::Unchanged),
            Ok(Some(edits)) => {
                let (mut new, mut pieces) = (Vec::new(), Vec::new());
                edits.apply(data, &mut new);
                for piece in edits.pieces() {
                    pieces.extend_from_slice(match piece {
                        Piece::Bytes(bytes) => bytes,
                        Piece::Copied(copied) => {
                            assert_eq!(copied.to, pieces.len() as u64);
                            &data[at(copied.from)..at(copied.from + copied.length)]
                        }
                    });
                }
                assert!(new == pieces, "two ways to one file");
                return Ok(Edited::Changed(new));
            }
        }
    }
}

/// A folder for one test, removed at its end.
pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().canonicalize().expect("canonical");
    (folder, path)
}
