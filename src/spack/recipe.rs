//! What a recipe (`package.py`) says about licence and source, read without running it.
//!
//! Spack keeps the recipes that a package was built with in `PREFIX/.spack/repos`. They are Python; what is wanted here are
//! arguments of directives that are plain strings nearly everywhere:
//!
//! ```text
//! from spack_repo.builtin.packages.zlib.package import Zlib as Builtin      a recipe that changes another
//! license("GPL-2.0-or-later", checked_by="...")
//! version("1.3.1", sha256="9a93...", url="https://...")
//! ```
//!
//! What is no plain string, or hangs on a condition (`when=`), is left unsaid: nothing is better than a guess in a bill
//! of materials.

use super::LockedPackage;
use crate::cache::Cache;
use crate::plan::SourcePin;
use fs_err as fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a recipe says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// The licence, as the recipe writes it: mostly an SPDX expression.
    pub license: Option<String>,
    /// Where this version's source archive comes from, when the recipe names it for this version.
    pub url: Option<String>,
    /// The archive's SHA-256, hexadecimal.
    pub sha256: Option<String>,
    /// The commit, for a version that comes from git.
    pub commit: Option<String>,
}

/// How many recipes may stand on each other.
const DEEPEST: usize = 4;

/// Where the builtin recipes of a pin are in the cache.
pub fn builtin_dir(cache: &Cache, pin: &SourcePin) -> PathBuf {
    super::source::tree_dir(cache, pin).join("repos/spack_repo/builtin/packages")
}

/// What the recipe of an installed package says, and where it says nothing, the builtin one that it stands on.
pub fn of(prefix: &Path, package: &LockedPackage, builtin: &Path) -> io::Result<Recipe> {
    let Some(mut path) = kept(prefix, package)? else { return Ok(Recipe::default()) };
    let mut recipe = Recipe::default();
    for _ in 0..DEEPEST {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let (said, base) = parse(&text, &package.version);
        if recipe.sha256.is_none() && recipe.commit.is_none() {
            (recipe.url, recipe.sha256, recipe.commit) = (said.url, said.sha256, said.commit);
        }
        recipe.license = recipe.license.or(said.license);
        let complete = recipe.license.is_some() && (recipe.sha256.is_some() || recipe.commit.is_some());
        match base.filter(|_| !complete) {
            Some(base) => path = builtin.join(base).join("package.py"),
            None => break,
        }
    }
    Ok(recipe)
}

/// The recipe that Spack kept: `.spack/repos/.../NAMESPACE/packages/NAME/package.py`, where a name is written as a Python
/// module since Spack 1.0 (`gcc_runtime`, `_7zip`).
fn kept(prefix: &Path, package: &LockedPackage) -> io::Result<Option<PathBuf>> {
    let repos = prefix.join(".spack/repos");
    if !repos.is_dir() {
        return Ok(None);
    }
    let module = package.name.replace('-', "_");
    for entry in walkdir::WalkDir::new(&repos).max_depth(8).sort_by_file_name() {
        let entry = entry.map_err(io::Error::from)?;
        let dir = entry.path().parent().and_then(Path::file_name).unwrap_or_default();
        let is_it = dir == package.name.as_str() || dir == module.as_str() || *dir == *format!("_{module}");
        if is_it && entry.file_name() == "package.py" {
            return Ok(Some(entry.into_path()));
        }
    }
    Ok(None)
}

/// Reads a recipe; also which builtin one it is made from.
fn parse(text: &str, version: &str) -> (Recipe, Option<String>) {
    let mut recipe = Recipe::default();
    let licenses = calls(text, "license");
    if let [arguments] = licenses.as_slice()
        && keyword(arguments, "when").is_none()
    {
        recipe.license = string(arguments);
    }
    let ours = calls(text, "version").into_iter().find(|arguments| string(arguments).as_deref() == Some(version));
    if let Some(arguments) = ours {
        recipe.sha256 = keyword(arguments, "sha256").and_then(string).filter(|s| s.len() == 64);
        recipe.commit = keyword(arguments, "commit").and_then(string);
        recipe.url = keyword(arguments, "url").and_then(string);
        // A class's address is that of one version; for others Spack makes one from it by rules of its own.
        recipe.url = recipe.url.or_else(|| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix("url = "))?;
            string(line).filter(|url| url.contains(version))
        });
    }
    let base = text.lines().find_map(|line| {
        let rest = line.trim_start().strip_prefix("from spack_repo.builtin.packages.")?;
        Some(rest.split_once(".package import")?.0.to_owned())
    });
    (recipe, base)
}

/// The arguments of each call of a directive that stands at the beginning of a line.
fn calls<'t>(text: &'t str, directive: &str) -> Vec<&'t str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(line) = rest.lines().next() {
        let indent = line.len() - line.trim_start().len();
        let call = line.get(indent..).and_then(|l| l.strip_prefix(directive)).is_some_and(|l| l.starts_with('('));
        let start = indent + directive.len() + 1;
        if call
            && let Some(after) = rest.get(start..)
            && let Some(end) = closing(after)
        {
            found.extend(after.get(..end));
        }
        rest = rest.get(line.len()..).unwrap_or_default();
        rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')).unwrap_or(rest);
    }
    found
}

/// Where the bracket that was open before `text` closes; brackets in strings and comments do not count.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut quote = None;
    let mut escaped = false;
    let mut comment = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if comment => comment = c != '\n',
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') => comment = true,
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return Some(at),
            },
            _ => {}
        }
    }
    None
}

/// The plain string that `text` begins with.
fn string(text: &str) -> Option<String> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (content, after) = text.get(1..)?.split_once(quote)?;
    // `"a" "b"`, `"a" + b`, `"{}".format(..)`: no plain string.
    let ends = after.trim_start().chars().next().is_none_or(|c| matches!(c, ',' | ')' | '#'));
    (ends && !content.contains('\\') && !content.is_empty()).then(|| content.to_owned())
}

/// What follows `name=` among the arguments.
fn keyword<'t>(arguments: &'t str, name: &str) -> Option<&'t str> {
    arguments.match_indices(name).find_map(|(at, _)| {
        let before = arguments.get(..at)?.chars().next_back();
        let after = arguments.get(at + name.len()..)?.trim_start().strip_prefix('=')?;
        before.is_none_or(|c| c == ',' || c == '(' || c.is_whitespace()).then_some(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
from spack_repo.builtin.packages.zlib.package import Zlib as Builtin
# license("no")
class Zlib(Builtin):
    url = "https://example.org/zlib-1.3.1.tar.gz"
    license("Zlib", checked_by="someone (else)")
    version(
        "1.3.1",
        # a comment with ) in it
        sha256="60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb",
    )
    version("1.2", sha256="0000000000000000000000000000000000000000000000000000000000000000", url='https://x/1.2')
    version("main", branch="main")
    version("9", commit="abc", submodules=True)
"#;

    #[test]
    fn plain_strings_are_read_and_the_rest_is_left_unsaid() {
        let (recipe, base) = parse(RECIPE, "1.3.1");
        assert_eq!(recipe.license.as_deref(), Some("Zlib"));
        assert!(recipe.sha256.unwrap().starts_with("60dd"));
        assert_eq!(recipe.url.as_deref(), Some("https://example.org/zlib-1.3.1.tar.gz"));
        assert_eq!(base.as_deref(), Some("zlib"));
        assert_eq!(parse(RECIPE, "1.2").0.url.as_deref(), Some("https://x/1.2"));
        assert_eq!(parse(RECIPE, "9").0.commit.as_deref(), Some("abc"));
        assert_eq!(parse(RECIPE, "2").0, Recipe { license: Some("Zlib".into()), ..Recipe::default() });
        for odd in [
            "license(NAME)",
            "license(\"A\" if X else \"B\")",
            "license(\"A\", when=\"@2:\")",
            "license(\"A\")\nlicense(\"B\", when=\"@2:\")",
            "license(\"A\"",
            "    version(\"1\", sha256=SUMS[1])",
        ] {
            assert_eq!(parse(odd, "1").0, Recipe::default(), "{odd}");
        }
    }

    #[test]
    fn a_recipe_that_changes_another_has_its_licence() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("store/gcc-runtime-12");
        let own = prefix.join(".spack/repos/spack_repo/site/packages/gcc_runtime");
        let builtin = dir.path().join("builtin");
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(builtin.join("base")).unwrap();
        let text = "from spack_repo.builtin.packages.base.package import Base\nversion('12', sha256=\"";
        fs::write(own.join("package.py"), format!("{text}{}\")\n", "a".repeat(64))).unwrap();
        fs::write(builtin.join("base/package.py"), "    license('MIT')\n    version('12', sha256='bad')\n").unwrap();
        let package = LockedPackage {
            name: "gcc-runtime".into(),
            version: "12".into(),
            hash: "h".into(),
            namespace: "site".into(),
            target: "x86_64".into(),
            external: false,
            root: false,
            needed: true,
            dependencies: Vec::new(),
        };
        let recipe = of(&prefix, &package, &builtin).unwrap();
        assert_eq!((recipe.license.as_deref(), recipe.sha256.unwrap().len()), (Some("MIT"), 64));
        assert_eq!(of(Path::new("/nonexistent"), &package, &builtin).unwrap(), Recipe::default());
    }
}
