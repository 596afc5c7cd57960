//! What is left out of a package, what may still name the build prefix, and which libraries are loaded by name
//! at run time: data (`assets/relocate.toml`, and what a site adds to it), each entry with its reason.

use crate::catalog::{DlopenRule, PathRule, RelocateRules, RewriteRule};
use globset::{GlobBuilder, GlobMatcher};
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
    /// Not something that can stand in place of a path.
    #[error("relocation rules: `to = \"{to}\"` is neither an absolute path nor {{view}}")]
    To {
        /// What is written.
        to: String,
    },
}

/// A pattern for paths relative to the view, and why it is there.
#[derive(Debug)]
pub struct Rule {
    matcher: GlobMatcher,
    string: Option<GlobMatcher>,
    /// The pattern as written.
    pub glob: String,
    /// Why.
    pub reason: String,
}

impl Rule {
    fn new(raw: PathRule) -> Result<Self, RulesError> {
        let string = raw.string.as_deref().map(compile).transpose()?;
        Ok(Self { matcher: compile(&raw.glob)?, string, glob: raw.glob, reason: raw.reason })
    }

    /// Whether the rule is about this path.
    pub fn matches(&self, path: &Path) -> bool {
        self.matcher.is_match(path)
    }

    /// Whether the rule is about this string in a file that it [matches](Self::matches).
    pub fn allows(&self, string: &str) -> bool {
        self.string.as_ref().is_none_or(|matcher| matcher.is_match(string))
    }
}

/// What stands in a program in place of a path of the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A path of the host.
    Path(String),
    /// The folder of the view, which `install` knows.
    View,
}

/// Paths that are compiled into programs, and what they become.
#[derive(Debug)]
pub struct Rewrite {
    rule: Rule,
    /// What they become.
    pub to: To,
}

impl Rewrite {
    fn new(raw: RewriteRule) -> Result<Self, RulesError> {
        let to = match raw.to.as_str() {
            "{view}" => To::View,
            path if path.starts_with('/') && !path.bytes().any(|b| b.is_ascii_control()) => To::Path(path.to_owned()),
            _ => return Err(RulesError::To { to: raw.to }),
        };
        Ok(Self { rule: Rule::new(PathRule { glob: raw.glob, string: raw.string, reason: raw.reason })?, to })
    }

    /// The pattern as written.
    pub fn glob(&self) -> &str {
        &self.rule.glob
    }

    /// Why.
    pub fn reason(&self) -> &str {
        &self.rule.reason
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
    /// Strings that may still name the build prefix, by file; the first that matches counts.
    pub allow: Vec<Rule>,
    /// Paths that are written over; the first that matches counts.
    rewrite: Vec<Rewrite>,
    /// Libraries opened by name.
    pub dlopen: Vec<Dlopen>,
    /// Libraries that come from the host: glibc's own, by SONAME; a trailing `*` matches any end.
    libc: Vec<String>,
    digest: String,
}

fn compile(pattern: &str) -> Result<GlobMatcher, RulesError> {
    // Without this, `lib{,64}` would mean lib64 alone.
    GlobBuilder::new(pattern)
        .empty_alternates(true)
        .build()
        .map(|g| g.compile_matcher())
        .map_err(|source| RulesError::Pattern { pattern: pattern.to_owned(), source })
}

/// Reads our own file, which has one table more than a site's. Not by `flatten`, which takes a misspelt table for none.
fn own(text: &str) -> Result<(Vec<String>, RelocateRules), RulesError> {
    let mut table: toml::Table = toml::from_str(text).map_err(Box::new)?;
    let libc = table.remove("libc").unwrap_or_else(|| toml::Value::Array(Vec::new()));
    Ok((libc.try_into().map_err(Box::new)?, table.try_into().map_err(Box::new)?))
}

impl Rules {
    /// The embedded rules.
    pub fn embedded() -> Result<Self, RulesError> {
        Self::of_site(&RelocateRules::default())
    }

    /// The embedded rules, and before them a site's.
    pub fn of_site(site: &RelocateRules) -> Result<Self, RulesError> {
        let (libc, rules) = own(RULES)?;
        let mut digest = Sha256::new_with_prefix(RULES);
        if *site != RelocateRules::default() {
            // A struct of strings always serialises.
            digest.update(serde_json::to_vec(site).unwrap_or_default());
        }
        let both = |site: &[PathRule], own: Vec<PathRule>| {
            site.iter().cloned().chain(own).map(Rule::new).collect::<Result<Vec<_>, _>>()
        };
        let rewrite = site.rewrite.iter().cloned().chain(rules.rewrite).map(Rewrite::new);
        let dlopen = site.dlopen.iter().cloned().chain(rules.dlopen).map(|DlopenRule { glob, library, reason }| {
            Ok(Dlopen { rule: Rule::new(PathRule { glob, string: None, reason })?, library })
        });
        Ok(Self {
            prune: both(&site.prune, rules.prune)?,
            keep: both(&site.keep, rules.keep)?,
            allow: both(&site.allow, rules.allow)?,
            rewrite: rewrite.collect::<Result<_, RulesError>>()?,
            dlopen: dlopen.collect::<Result<_, RulesError>>()?,
            libc,
            digest: hex::encode(digest.finalize()),
        })
    }

    /// Whether some of the file's strings are to be written over.
    pub fn rewrites(&self, path: &Path) -> bool {
        self.rewrite.iter().any(|rewrite| rewrite.rule.matches(path))
    }

    /// The rule about this string of this file.
    pub fn rewrite_of(&self, path: &Path, string: &str) -> Option<&Rewrite> {
        self.rewrite.iter().find(|rewrite| rewrite.rule.matches(path) && rewrite.rule.allows(string))
    }

    /// Why this string may name the build prefix in this file: because a rule lets it, or because `install` writes over it.
    pub fn allowed(&self, path: &Path, string: &str) -> Option<&str> {
        let filled_in = self.rewrite_of(path, string).filter(|rewrite| rewrite.to == To::View).map(Rewrite::reason);
        let stays =
            || self.allow.iter().find(|rule| rule.matches(path) && rule.allows(string)).map(|r| r.reason.as_str());
        filled_in.or_else(stays)
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
    fn a_misspelt_table_is_no_rule_that_is_missing() {
        let rule = "glob = 'x'\nreason = 'y'\n";
        assert_eq!(own(&format!("libc = ['libc.so.*']\n[[allow]]\n{rule}")).unwrap().1.allow.len(), 1);
        let error = own(&format!("libc = ['libc.so.*']\n[[alow]]\n{rule}")).unwrap_err().to_string();
        assert!(error.contains("alow"), "{error}");
    }

    #[test]
    fn a_sites_rules_come_first_and_change_the_digest() {
        let site: RelocateRules = toml::from_str(
            r#"
            [[keep]]
            glob = "share/doc/slurm/**"
            reason = "our users read it on the login nodes"
            [[allow]]
            glob = "lib/libsite.so*"
            string = "*/etc/site.conf"
            reason = "the file is only looked for when SITE_DEBUG is set"
            [[dlopen]]
            glob = "lib/slurm/spank_site.so"
            library = "libsite.so.1"
            reason = "opened when a job asks for it"
            "#,
        )
        .unwrap();
        let (own, rules) = (Rules::embedded().unwrap(), Rules::of_site(&site).unwrap());
        assert_ne!(own.digest(), rules.digest(), "another package");
        let doc = Path::new("share/doc/slurm/x");
        assert!(own.pruned_by(doc).is_some() && rules.pruned_by(doc).is_none());
        assert!(rules.allow[0].allows("/b/store/x/etc/site.conf") && !rules.allow[0].allows("/b/store/x/etc/other"));
        assert!(rules.dlopen[0].matches(Path::new("lib/slurm/spank_site.so")));
        let broken = PathRule { glob: "[".into(), string: None, reason: String::new() };
        let site = RelocateRules { prune: vec![broken], ..RelocateRules::default() };
        assert!(Rules::of_site(&site).unwrap_err().to_string().contains("pattern `[`"));
    }

    #[test]
    fn embedded_rules_parse_and_have_reasons() {
        let rules = Rules::embedded().unwrap();
        for rule in rules.prune.iter().chain(&rules.allow).chain(&rules.keep) {
            assert!(rule.reason.len() > 10, "{}: a reason is a sentence", rule.glob);
        }
        assert!(rules.is_libc("libc.so.6") && rules.is_libc("ld-linux-x86-64.so.2"));
        assert!(!rules.is_libc("libcurl.so.4") && !rules.is_libc("libgcc_s.so.1"));
        for gone in [
            "lib/libz.a",
            "lib/security/pam_unix.so",
            "share/doc/x/y",
            "bin/curl-config",
            "lib64/pkgconfig/z.pc",
            "lib/pkgconfig/z.pc",
            "lib/cmake/z/z.cmake",
            "etc/environment",
            "etc/openssl/openssl.cnf",
        ] {
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
