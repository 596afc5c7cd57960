//! What is left out of a package, what may still name the build prefix, and which libraries are loaded by name
//! at run time: data (`assets/relocate.toml`, and what a site adds to it), each entry with its reason.

use super::layout::Layout;
use super::strings;
use crate::catalog::{DlopenRule, PathRule, RelocateRules, RewriteRule};
use globset::{GlobBuilder, GlobMatcher};
use sha2::{Digest, Sha256};
use std::path::Path;

static RULES: &str = include_str!("../../assets/relocate.toml");
/// What is left out of a compiler's package, and what its files may name: another tree, which is there to be compiled and linked
/// with.
static COMPILER_RULES: &str = include_str!("../../assets/relocate-compiler.toml");

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

/// All rules about the package of a Slurm, and beside them those about the package of a compiler.
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
    /// Libraries that come from the host, by SONAME; a trailing `*` matches any end: glibc's own, and others, with the reason.
    host: Vec<HostLibrary>,
    digest: String,
    /// Those about a compiler's package; nothing in those themselves.
    compiler: Option<Box<Self>>,
}

fn compile(pattern: &str) -> Result<GlobMatcher, RulesError> {
    // Without this, `lib{,64}` would mean lib64 alone.
    GlobBuilder::new(pattern)
        .empty_alternates(true)
        .build()
        .map(|g| g.compile_matcher())
        .map_err(|source| RulesError::Pattern { pattern: pattern.to_owned(), source })
}

/// A library that no package brings.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct HostLibrary {
    library: String,
    #[allow(dead_code)] // for whoever reads the file, and there must be one
    reason: String,
}

/// Reads our own file, which has two tables more than a site's. Not by `flatten`, which takes a misspelt table for none.
fn own(text: &str) -> Result<(Vec<HostLibrary>, RelocateRules), RulesError> {
    let mut table: toml::Table = toml::from_str(text).map_err(Box::new)?;
    let mut taken = |name| table.remove(name).unwrap_or_else(|| toml::Value::Array(Vec::new()));
    let (libc, host) = (taken("libc"), taken("host"));
    let libc: Vec<String> = libc.try_into().map_err(Box::new)?;
    let mut host: Vec<HostLibrary> = host.try_into().map_err(Box::new)?;
    host.extend(libc.into_iter().map(|library| HostLibrary { library, reason: "of the C library, glibc".to_owned() }));
    Ok((host, table.try_into().map_err(Box::new)?))
}

impl Rules {
    /// The embedded rules.
    pub fn embedded() -> Result<Self, RulesError> {
        Self::of_site(&RelocateRules::default())
    }

    /// The embedded rules, and before them a site's, which are about the packages of compilers too.
    pub fn of_site(site: &RelocateRules) -> Result<Self, RulesError> {
        let (host, rules) = own(RULES)?;
        let (_, compiler) = own(COMPILER_RULES)?;
        let compiler = Self::made(COMPILER_RULES, host.clone(), compiler, site)?;
        Ok(Self { compiler: Some(Box::new(compiler)), ..Self::made(RULES, host, rules, site)? })
    }

    fn made(
        text: &str,
        host: Vec<HostLibrary>,
        rules: RelocateRules,
        site: &RelocateRules,
    ) -> Result<Self, RulesError> {
        let mut digest = Sha256::new_with_prefix(text);
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
            host,
            digest: hex::encode(digest.finalize()),
            compiler: None,
        })
    }

    /// Those about what others made for a prefix of theirs: nothing is known of it, so nothing may name that.
    #[must_use]
    pub fn of_others(&self) -> Self {
        Self {
            prune: Vec::new(),
            keep: Vec::new(),
            allow: Vec::new(),
            rewrite: Vec::new(),
            dlopen: Vec::new(),
            host: self.host.clone(),
            digest: self.digest.clone(),
            compiler: None,
        }
    }

    /// Those about a compiler's package.
    pub fn of_compiler(&self) -> &Self {
        self.compiler.as_deref().unwrap_or(self)
    }

    /// Whether some of the file's strings are to be written over.
    pub fn rewrites(&self, path: &Path) -> bool {
        self.rewrite.iter().any(|rewrite| rewrite.rule.matches(path))
    }

    /// The rule about this string of this file.
    pub fn rewrite_of(&self, path: &Path, string: &str) -> Option<&Rewrite> {
        self.rewrite.iter().find(|rewrite| rewrite.rule.matches(path) && rewrite.rule.allows(string))
    }

    /// Why this string may name the build prefix in this file: because a rule lets it, or because `install` writes over it,
    /// which it does for folders of packages alone.
    pub fn allowed(&self, path: &Path, string: &str, layout: &Layout<'_>) -> Option<&str> {
        let is_filled_in = || strings::folder_len(string, layout.root.as_bytes(), layout).is_some();
        let rewrite = self.rewrite_of(path, string).filter(|rewrite| rewrite.to == To::View && is_filled_in());
        let filled_in = rewrite.map(Rewrite::reason);
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

    /// Whether a library is the host's, which no package brings: glibc's own, which every host has, and a few others.
    pub fn is_of_host(&self, soname: &str) -> bool {
        self.host.iter().any(|known| match known.library.strip_suffix('*') {
            Some(front) => soname.starts_with(front),
            None => soname == known.library,
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
    fn pmix_finds_its_package_and_not_a_stage_of_the_same_name() {
        let rules = Rules::embedded().unwrap();
        let allowed = |text: String| rules.allowed(Path::new("lib/libpmix.so.2"), &text, &Layout::BUILD).is_some();
        assert!(allowed(format!("{}/pmix-5.0.3-hash/share/pmix", Layout::BUILD.store)));
        assert!(!allowed(format!("{}/user/pmix-5.0.3/src/mca", Layout::BUILD.root)));
        assert!(!allowed(format!("{}/stage/x/store/y/pmix-5.0.3/src/mca", Layout::BUILD.root)));
    }

    #[test]
    fn spacks_record_may_name_the_compiler_and_nothing_else_of_the_store() {
        let rules = Rules::embedded().unwrap();
        let lock = Path::new("data/slurm_assets/spack.lock");
        let allowed = |text: String| rules.allowed(lock, &text, &Layout::BUILD).is_some();
        let Layout { root, store, .. } = Layout::BUILD;
        assert!(allowed(format!(r#"{store}/gcc-13.4.0-hash","module":null}},"namespace":"builtin""#)));
        assert!(allowed(format!(r#"{store}/gcc-13.4.0-hash/bin/g++"}}"#)));
        // The file is one line, so that the text goes on behind what is named.
        assert!(!allowed(format!(r#"{store}/munge-0.5.16-hash","path":"{store}/gcc-13.4.0-hash""#)));
        assert!(!allowed(format!(r#"{store}/gcc-runtime-13.4.0-hash""#)));
        assert!(!allowed(format!(r#"{root}/stage/user/gcc-13.4.0/x""#)));
        let elsewhere = Path::new("data/slurm_assets/spack.yaml");
        assert!(rules.allowed(elsewhere, &format!("{store}/gcc-13.4.0-hash"), &Layout::BUILD).is_none());
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
    fn a_compiler_keeps_what_is_linked_with_and_hides_the_libraries_that_it_is_made_of() {
        let rules = Rules::embedded().unwrap();
        let rules = rules.of_compiler();
        for rule in rules.prune.iter().chain(&rules.allow).chain(&rules.keep) {
            assert!(rule.reason.len() > 10, "{}: a reason is a sentence", rule.glob);
        }
        assert!(rules.is_of_host("libc.so.6"));
        for gone in [
            "lib/gcc/x86_64-pc-linux-gnu/14.2.0/specs",
            "lib/gcc/x86_64-pc-linux-gnu/14.2.0/include-fixed/pthread.h",
            "lib/gcc/x86_64-pc-linux-gnu/14.2.0/plugin/include/configargs.h",
            "libexec/gcc/x86_64-pc-linux-gnu/14.2.0/install-tools/mkheaders",
            "include/zlib.h",
            "include/gmp.h",
            "lib/libz.so",
            "lib/libgmp.a",
            "lib/libstdc++.so.6",
            "lib/libgcc_s.so.1",
            "lib/libgmpxx.so.4",
            "lib64/libstdc++.la",
            "x86_64-pc-linux-gnu/lib/ldscripts/elf_x86_64.x",
        ] {
            assert!(rules.pruned_by(Path::new(gone)).is_some(), "{gone}");
        }
        for kept in [
            "bin/gcc",
            "lib/gcc/x86_64-pc-linux-gnu/14.2.0/libgcc.a",
            "lib/gcc/x86_64-pc-linux-gnu/14.2.0/crtbegin.o",
            "lib/gcc/x86_64-pc-linux-gnu/14.2.0/include/stddef.h",
            "lib/gcc/x86_64-pc-linux-gnu/7.5.0/include-fixed/limits.h",
            "lib/gcc/x86_64-pc-linux-gnu/14.2.0/plugin/libcc1plugin.so",
            "libexec/gcc/x86_64-pc-linux-gnu/14.2.0/cc1",
            "include/c++/14.2.0/vector",
            "include/x86_64-linux-gnu/c++/12/bits/c++config.h",
            "lib64/libstdc++.a",
            "lib64/libstdc++.so",
            "lib64/libgfortran.spec",
            "lib64/libgcc_s.so.1",
            "lib/libz.so.1",
            "lib/libbfd-2.44.so",
            "x86_64-pc-linux-gnu/bin/as",
        ] {
            assert!(rules.pruned_by(Path::new(kept)).is_none(), "{kept}");
        }
    }

    #[test]
    fn embedded_rules_parse_and_have_reasons() {
        let rules = Rules::embedded().unwrap();
        for rule in rules.prune.iter().chain(&rules.allow).chain(&rules.keep) {
            assert!(rule.reason.len() > 10, "{}: a reason is a sentence", rule.glob);
        }
        assert!(rules.is_of_host("libc.so.6") && rules.is_of_host("ld-linux-x86-64.so.2"));
        assert!(rules.is_of_host("libpam.so.0") && rules.host.iter().all(|library| library.reason.len() > 10));
        assert!(!rules.is_of_host("libcurl.so.4") && !rules.is_of_host("libgcc_s.so.1"));
        for gone in [
            "lib/libz.a",
            "lib/security/pam_unix.so",
            "lib/libpam.so.0.85.1",
            "share/doc/x/y",
            "bin/curl-config",
            "lib64/pkgconfig/z.pc",
            "lib/pkgconfig/z.pc",
            "lib/cmake/z/z.cmake",
            "etc/environment",
            "etc/openssl/openssl.cnf",
            "include/openssl/ssl.h",
            "include/numa.h",
            "bin/h5dump",
            "lib/libz.so",
            "lib64/libcrypto.so",
            "lib/libncursesw.so",
            "bin/curl",
            "share/man/man3/MPI_Send.3",
            "man/man1/bzdiff.1",
            "lib/libasan.so.8",
        ] {
            assert!(rules.pruned_by(Path::new(gone)).is_some(), "{gone}");
        }
        for kept in [
            "lib/slurm/libslurmfull.so",
            "lib/security/pam_slurm.so",
            "bin/sinfo",
            "sbin/munged",
            "share/man/man1/srun.1",
            "share/man/man8/spank.8",
            "include/slurm/spank.h",
            "include/mpi.h",
            "include/pmix_common.h",
            "include/pmix/src/include/pmix_config.h",
            "include/openmpi/mpiext/mpiext_cuda_c.h",
            "lib/libslurm.so",
            "lib/libmpi.so",
            "lib/libpmix.so",
            "lib/liblua.so",
            "lib/libz.so.1",
            "lib/libstdc++.so.6",
            "lib/libgomp.so.1",
        ] {
            assert!(rules.pruned_by(Path::new(kept)).is_none(), "{kept}");
        }
    }
}
