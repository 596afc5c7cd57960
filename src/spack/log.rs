//! Reads Spack's console output as it comes: which package, which phase, how many of how many, and, when it
//! fails, what the compiler said.
//!
//! The forms are those of Spack v1.0 and v1.1 (`==> Installing NAME-VERSION-HASH [3/25]`, `==> NAME: Executing
//! phase: 'build'`, `==> NAME: Successfully installed ...`, `==> Error: ...`). A line of another form changes
//! nothing, so a new wording costs progress display and never a build.

use std::collections::{BTreeSet, VecDeque};

/// How many of the compiler's own lines an error carries.
const ERROR_LINES: usize = 12;

/// How many candidates are remembered.
const KEPT: usize = 400;

/// What a line meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A package begins; `total` is 0 when Spack does not say.
    Installing {
        /// Name and version.
        package: String,
        /// Its number.
        number: usize,
        /// How many there are.
        total: usize,
    },
    /// A phase of the current package.
    Phase {
        /// Name and version.
        package: String,
        /// `configure`, `build`, `install` ...
        phase: String,
    },
    /// A package is in place.
    Installed {
        /// Name and version.
        package: String,
        /// True when it came from a binary mirror.
        from_binary: bool,
    },
}

/// What is known of a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// Name and version of the package that failed, empty when Spack failed before any.
    pub package: String,
    /// Its phase, empty when not in one.
    pub phase: String,
    /// What the compiler, make or Spack said, oldest first.
    pub errors: Vec<String>,
    /// The log that Spack names, a path inside the sandbox.
    pub log: Option<String>,
}

/// Reads output line by line.
#[derive(Debug, Default)]
pub struct Progress {
    current: String,
    phase: String,
    installed: BTreeSet<String>,
    errors: VecDeque<(String, bool)>,
    log: Option<String>,
    log_follows: bool,
    reasons_follow: bool,
    binary: bool,
}

impl Progress {
    /// Takes one line.
    pub fn line(&mut self, line: &str) -> Option<Step> {
        let line = line.trim_end();
        if self.log_follows {
            self.log_follows = false;
            if line.trim_start().starts_with('/') {
                self.log = Some(line.trim().to_owned());
            }
        }
        if let Some(message) = line.strip_prefix("==> ") {
            self.reasons_follow = false;
            return self.message(message);
        }
        // After `All fetchers failed`, each address that was tried with its reason, indented.
        self.reasons_follow &= line.starts_with(' ');
        if self.reasons_follow {
            self.error(line.trim(), true);
            return None;
        }
        if line.trim() == "See build log for details:" {
            self.log_follows = true;
        } else if let Some((text, strong)) = error_line(line) {
            self.error(text, strong);
        }
        None
    }

    fn message(&mut self, message: &str) -> Option<Step> {
        if let Some(rest) = message.strip_prefix("Installing ") {
            let (package, number, total) = parse_installing(rest);
            self.current.clone_from(&package);
            self.phase.clear();
            self.binary = false;
            return Some(Step::Installing { package, number, total });
        }
        if let Some((_, stage)) = message.split_once("All fetchers failed for spack-stage-") {
            self.current = without_hash(stage.trim_end_matches(':'));
            "fetch".clone_into(&mut self.phase);
            self.reasons_follow = true;
            return None;
        }
        if let Some(rest) = message.strip_prefix("Error: ") {
            self.error(rest, false);
            return None;
        }
        if message.starts_with("Extracting ") && message.contains("from binary cache") {
            self.binary = true;
            return None;
        }
        let (package, rest) = message.split_once(": ")?;
        if let Some(phase) = rest.strip_prefix("Executing phase: ") {
            phase.trim_matches(['\'', '"']).clone_into(&mut self.phase);
            return Some(Step::Phase { package: self.full(package), phase: self.phase.clone() });
        }
        if rest.starts_with("Successfully installed") {
            let package = self.full(package);
            if self.installed.insert(package.clone()) {
                self.phase.clear();
                return Some(Step::Installed { package, from_binary: self.binary });
            }
        }
        None
    }

    /// The current package with its version, when `name` is the start of it.
    fn full(&self, name: &str) -> String {
        if self.current.starts_with(name) { self.current.clone() } else { name.to_owned() }
    }

    fn error(&mut self, text: &str, strong: bool) {
        if self.errors.back().is_none_or(|(last, _)| last != text) {
            self.errors.push_back((text.to_owned(), strong));
        }
        if self.errors.len() > KEPT {
            self.errors.pop_front();
        }
    }

    /// How many packages were put in place.
    pub fn installed(&self) -> usize {
        self.installed.len()
    }

    /// What is known of the failure, once the program ended with one. Where the compiler, the linker, configure or
    /// make spoke, theirs are the lines that are kept: Spack's own log scanner also marks what only looks like it.
    pub fn failure(self) -> Failure {
        let any_strong = self.errors.iter().any(|(_, strong)| *strong);
        let mut errors: Vec<String> =
            self.errors.into_iter().filter(|(_, strong)| *strong || !any_strong).map(|(text, _)| text).collect();
        // The first error is mostly the cause, the last ones are its consequences.
        errors.truncate(ERROR_LINES);
        Failure { package: self.current, phase: self.phase, errors, log: self.log }
    }
}

/// `munge-0.5.16-abc...32 [3/25]` to name-version, number and total.
fn parse_installing(rest: &str) -> (String, usize, usize) {
    let (name, counts) = match rest.split_once(" [") {
        Some((name, counts)) => (name, counts.trim_end_matches(']')),
        None => (rest, ""),
    };
    let (number, total) =
        counts.split_once('/').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))).unwrap_or_default();
    (without_hash(name), number, total)
}

/// Drops the DAG hash (32 characters of base32) at the end of `name-version-hash`.
fn without_hash(name: &str) -> String {
    match name.rsplit_once('-') {
        Some((front, hash)) if hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_alphanumeric()) => front.to_owned(),
        _ => name.to_owned(),
    }
}

/// The text of a line that may say why a build failed, and whether it surely does. Spack marks what its log scanner
/// found with `>>` and the line's number.
fn error_line(line: &str) -> Option<(&str, bool)> {
    let trimmed = line.trim();
    let marked = trimmed.strip_prefix(">>").map(str::trim_start);
    let text = marked.map_or(trimmed, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start());
    let strong = text.contains(" error: ")
        || text.contains("fatal error: ")
        || text.contains("undefined reference to")
        || text.contains("configure: error:")
        || text.contains("No space left on device")
        || (text.starts_with("make") && text.contains("*** "));
    ((marked.is_some() && !text.is_empty()) || strong).then_some((text, strong))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "abcdefghijklmnopqrstuvwxyz234567";

    #[test]
    fn a_build_from_source_is_followed() {
        let mut progress = Progress::default();
        let text = format!(
            "==> Installing munge-0.5.16-{HASH} [3/25]\n==> No binary for munge-0.5.16-{HASH} found: installing from source\n\
             ==> munge: Executing phase: 'configure'\n==> munge: Successfully installed munge-0.5.16-{HASH}\n\
             ==> munge: Successfully installed munge-0.5.16-{HASH}"
        );
        let steps: Vec<_> = text.lines().filter_map(|line| progress.line(line)).collect();
        assert_eq!(
            steps,
            [
                Step::Installing { package: "munge-0.5.16".into(), number: 3, total: 25 },
                Step::Phase { package: "munge-0.5.16".into(), phase: "configure".into() },
                Step::Installed { package: "munge-0.5.16".into(), from_binary: false },
            ]
        );
        assert_eq!(progress.installed(), 1);
    }

    #[test]
    fn a_failure_names_package_phase_lines_and_log() {
        let mut progress = Progress::default();
        for line in format!(
            "==> Installing slurm-24-11-5-1-{HASH} [25/25]\n==> slurm: Executing phase: 'build'\n\
             ==> Error: ProcessError: Command exited with status 2:\n    'make' '-j2'\n\n2 errors found in build log:\n\
             \x20 >> 9     installing 'build-aux/compile'\n     10    checking\n  >> 11    read_config.c:5:2: error: unknown type name 'foo'\n\n\
             See build log for details:\n  /slurm-factory.build/stage/x/spack-build-out.txt\n"
        )
        .lines()
        {
            progress.line(line);
        }
        let failure = progress.failure();
        assert_eq!((failure.package.as_str(), failure.phase.as_str()), ("slurm-24-11-5-1", "build"));
        assert_eq!(failure.errors, ["read_config.c:5:2: error: unknown type name 'foo'"]);
        assert_eq!(failure.log.as_deref(), Some("/slurm-factory.build/stage/x/spack-build-out.txt"));
    }

    #[test]
    fn a_full_disk_is_seen_in_a_traceback() {
        let mut progress = Progress::default();
        for line in [
            "Traceback (most recent call last):",
            "  File \"x\", line 1, in copy",
            "OSError: [Errno 28] No space left on device: 'a'",
        ] {
            progress.line(line);
        }
        assert_eq!(progress.failure().errors, ["OSError: [Errno 28] No space left on device: 'a'"]);
    }

    #[test]
    fn sources_that_cannot_be_had_are_named_with_every_address() {
        let mut progress = Progress::default();
        for line in format!(
            "==> Fetching file:///m/a.tar.gz\n==> Error: FetchError: All fetchers failed for spack-stage-munge-0.5.16-{HASH}\n\
             \x20       file:///m/b: URLError: <urlopen error [Errno 2] No such file or directory: '/m/b'>\n\
             \x20       https://example.org/b: URLError: <urlopen error [Errno -3] Temporary failure in name resolution>\nrest\n"
        )
        .lines()
        {
            progress.line(line);
        }
        let failure = progress.failure();
        assert_eq!((failure.package.as_str(), failure.phase.as_str()), ("munge-0.5.16", "fetch"));
        assert_eq!(failure.errors.len(), 2, "{:?}", failure.errors);
        assert!(failure.errors[1].starts_with("https://example.org/b: URLError"));
    }

    #[test]
    fn other_lines_change_nothing() {
        let mut progress = Progress::default();
        for line in ["", "==> ", "random", "==> Installing", "==> a: b", "[+] /x"] {
            assert_eq!(progress.line(line), None, "{line}");
        }
        assert_eq!(progress.failure(), Failure::default());
    }
}
