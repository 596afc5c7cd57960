//! What is left out of a package, what may still name the build prefix, and which libraries are loaded by name
//! at run time: data (`assets/relocate.toml`), each entry with its reason.

use globset::{Glob, GlobMatcher};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::Path;

static RULES: &str = include_str!("../../assets/relocate.toml");

/// Rules that do not parse.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The file is not of this form.
    #[error("relocation rules do not parse: {0}")]
    Parse(#[from] Box<toml::de::Error>),
    /// A pattern is none.
    #[error("relocation rules: pattern `{pattern}`: {source}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why not.
        source: globset::Error,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    prune: Vec<RawRule>,
    #[serde(default)]
    keep: Vec<RawRule>,
    #[serde(default)]
    allow: Vec<RawRule>,
    #[serde(default)]
    dlopen: Vec<RawDlopen>,
    libc: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    glob: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDlopen {
    glob: String,
    library: String,
    reason: String,
}

/// A pattern for paths relative to the view, and why it is there.
#[derive(Debug)]
pub struct Rule {
    matcher: GlobMatcher,
    /// The pattern as written.
    pub glob: String,
    /// Why.
    pub reason: String,
}

impl Rule {
    fn new(raw: RawRule) -> Result<Self, RulesError> {
        Ok(Self { matcher: compile(&raw.glob)?, glob: raw.glob, reason: raw.reason })
    }

    /// Whether the rule is about this path.
    pub fn matches(&self, path: &Path) -> bool {
        self.matcher.is_match(path)
    }
}

/// A library that a file opens by name at run time, so that its folder belongs on the file's search path.
#[derive(Debug)]
pub struct Dlopen {
    rule: Rule,
    /// The name given to dlopen(3).
    pub library: String,
}

impl Dlopen {
    /// Whether the file opens it.
    pub fn matches(&self, path: &Path) -> bool {
        self.rule.matches(path)
    }
}

/// All rules.
#[derive(Debug)]
pub struct Rules {
    /// What is left out; the first that matches counts.
    prune: Vec<Rule>,
    /// What stays although a prune rule matches.
    keep: Vec<Rule>,
    /// Files that may still name the build prefix; the first that matches counts.
    pub allow: Vec<Rule>,
    /// Libraries opened by name.
    pub dlopen: Vec<Dlopen>,
    /// Libraries that come from the host: glibc's own, by SONAME; a trailing `*` matches any end.
    libc: Vec<String>,
    digest: String,
}

fn compile(pattern: &str) -> Result<GlobMatcher, RulesError> {
    Glob::new(pattern)
        .map(|g| g.compile_matcher())
        .map_err(|source| RulesError::Pattern { pattern: pattern.to_owned(), source })
}

impl Rules {
    /// The embedded rules.
    pub fn embedded() -> Result<Self, RulesError> {
        Self::parse(RULES)
    }

    fn parse(text: &str) -> Result<Self, RulesError> {
        let file: File = toml::from_str(text).map_err(Box::new)?;
        let rules = |raw: Vec<RawRule>| raw.into_iter().map(Rule::new).collect::<Result<Vec<_>, _>>();
        let dlopen = file
            .dlopen
            .into_iter()
            .map(|raw| {
                Ok(Dlopen { rule: Rule::new(RawRule { glob: raw.glob, reason: raw.reason })?, library: raw.library })
            })
            .collect::<Result<_, RulesError>>()?;
        Ok(Self {
            prune: rules(file.prune)?,
            keep: rules(file.keep)?,
            allow: rules(file.allow)?,
            dlopen,
            libc: file.libc,
            digest: hex::encode(Sha256::digest(text)),
        })
    }

    /// The rules that leave files out.
    pub fn prunes(&self) -> &[Rule] {
        &self.prune
    }

    /// The rule that leaves a file out, by its place in [`Rules::prunes`].
    pub fn pruned_by(&self, path: &Path) -> Option<usize> {
        let found = self.prune.iter().position(|rule| rule.matches(path))?;
        (!self.keep.iter().any(|rule| rule.matches(path))).then_some(found)
    }

    /// SHA-256 of the rules' text.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether a library is one of glibc's own, which every host has and no package may bring.
    pub fn is_libc(&self, soname: &str) -> bool {
        self.libc.iter().any(|known| match known.strip_suffix('*') {
            Some(front) => soname.starts_with(front),
            None => soname == known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_rules_parse_and_have_reasons() {
        let rules = Rules::embedded().unwrap();
        for rule in rules.prune.iter().chain(&rules.allow).chain(&rules.keep) {
            assert!(rule.reason.len() > 10, "{}: a reason is a sentence", rule.glob);
        }
        assert!(rules.is_libc("libc.so.6") && rules.is_libc("ld-linux-x86-64.so.2"));
        assert!(!rules.is_libc("libcurl.so.4") && !rules.is_libc("libgcc_s.so.1"));
        for gone in
            ["lib/libz.a", "lib/security/pam_unix.so", "share/doc/x/y", "bin/curl-config", "lib64/pkgconfig/z.pc"]
        {
            assert!(rules.pruned_by(Path::new(gone)).is_some(), "{gone}");
        }
        for kept in [
            "lib/slurm/libslurmfull.so",
            "lib/security/pam_slurm.so",
            "bin/sinfo",
            "sbin/munged",
            "share/man/man1/srun.1",
        ] {
            assert!(rules.pruned_by(Path::new(kept)).is_none(), "{kept}");
        }
    }
}
