//! What of Slurm is built: a variant of the catalog, features laid over it, and the expert's own words over that.
//!
//! All of it ends as one Spack spec. A variant that is said twice would be an error of Spack's, so texts are taken apart into
//! single variants and the later one counts.

use super::PlanError;
use crate::catalog::{Catalog, Feature, VariantSpec};
use serde::Serialize;
use std::collections::BTreeSet;

/// What the user chose beyond the variant. Names are the catalog's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Features to add.
    pub with: Vec<String>,
    /// Features to leave out.
    pub without: Vec<String>,
    /// Variants, flags and dependencies in Spack's words, laid over everything else.
    pub spec: Option<String>,
    /// What code is made for, in Spack's words.
    pub target: Option<String>,
    /// Whether a GCC that Spack builds is compiled once, and not again by itself.
    pub no_bootstrap: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Slurm's spec without name and version.
    pub spec: String,
    /// Packages beside Slurm, sorted.
    pub roots: Vec<String>,
    /// Features that are in, sorted.
    pub features: Vec<String>,
}

/// One piece of a spec: what it speaks about, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    about: String,
    text: String,
}

/// A spec without name and version: variants in order, then what is said about dependencies, untouched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Words {
    pieces: Vec<Piece>,
    dependencies: Vec<String>,
}

impl Words {
    fn parse(text: &str) -> Result<Self, PlanError> {
        // Where it was said: on the command line, or as `spec` of a setting or of an entry of the catalog.
        let bad = |word: &str, why: &str| PlanError::Conflict(format!("spec: `{word}` in `{text}`: {why}"));
        let mut words = Self::default();
        for word in split(text).ok_or_else(|| bad(text, "a quote is not closed"))? {
            if word.starts_with(['^', '%']) || !words.dependencies.is_empty() {
                words.dependencies.push(word);
            } else if word.starts_with(['+', '~']) {
                for piece in booleans(&word) {
                    if piece.about.is_empty() || !piece.about.chars().all(is_name) {
                        return Err(bad(&word, "a variant is +NAME, ~NAME or NAME=VALUE"));
                    }
                    words.pieces.push(piece);
                }
            } else if let Some((name, _)) = word.split_once('=').filter(|(name, _)| !name.is_empty()) {
                let about = name.trim_end_matches([':', '=']).to_owned();
                if about == "target" || about == "arch" {
                    return Err(bad(&word, "what code is made for is said with --target"));
                }
                words.pieces.push(Piece { about, text: word });
            } else if word.starts_with('@') || word.starts_with("slurm") {
                return Err(bad(&word, "name and version are said with --slurm-version"));
            } else {
                return Err(bad(&word, "a variant is +NAME, ~NAME or NAME=VALUE, a dependency ^SPEC"));
            }
        }
        Ok(words)
    }

    /// What a user wrote. That which no spec can have is refused here, before anything is fetched for it; the rest is Spack's to
    /// judge, which alone knows packages and variants.
    fn of_user(text: &str) -> Result<Self, PlanError> {
        let bad = |reason: String| Err(PlanError::Conflict(format!("--spec `{}`: {reason}", text.escape_debug())));
        if text.trim().is_empty() {
            return bad(
                "it is empty; leave it out, or say what is to be another than in the variant: \"+lua ^openssl@3.0\""
                    .into(),
            );
        }
        if let Some(wrong) = impossible(text) {
            return bad(wrong);
        }
        Self::parse(text)
    }

    /// Lays `over` on this: what it speaks about is replaced where it stands.
    fn lay(&mut self, over: Self) {
        for piece in over.pieces {
            match self.pieces.iter_mut().find(|known| known.about == piece.about) {
                Some(known) => *known = piece,
                None => self.pieces.push(piece),
            }
        }
        self.dependencies.extend(over.dependencies);
    }

    fn has(&self, piece: &Piece) -> bool {
        self.pieces.contains(piece)
    }

    /// The same with each `+` turned to `~`: what a feature is when it is left out.
    fn off(&self) -> Self {
        let turn = |piece: &Piece| Some(Piece { text: format!("~{}", piece.text.strip_prefix('+')?), ..piece.clone() });
        Self { pieces: self.pieces.iter().filter_map(turn).collect(), dependencies: Vec::new() }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            // `+a~b` needs no space, `name=value` swallows what stands beside it.
            if !(text.is_empty() || piece.text.starts_with(['+', '~']) && !text.contains(['=', ' '])) {
                text.push(' ');
            }
            text.push_str(&piece.text);
        }
        for dependency in &self.dependencies {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(dependency);
        }
        text
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// `+a~b` as two pieces.
fn booleans(word: &str) -> Vec<Piece> {
    let mut starts: Vec<usize> = word.match_indices(['+', '~']).map(|(at, _)| at).collect();
    starts.push(word.len());
    let piece = |range: &[usize]| {
        let text = word[range[0]..range[1]].to_owned();
        Piece { about: text[1..].to_owned(), text }
    };
    starts.windows(2).map(piece).collect()
}

/// Words of a spec; blanks within quotes belong to the word. `None` for a quote without an end.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for c in text.chars() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if open == c => quote = None,
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

/// What no spec has outside of quotes: characters of the shell that Spack's tokens do not know, and brackets that do not belong
/// together. In quotes everything may stand. Source: `VALUE` and `SpecTokens` in `spec_parser.py` of Spack v1.0.0 and v1.1.0.
fn impossible(text: &str) -> Option<String> {
    let mut quote = None;
    let mut open = 0_u32;
    for c in text.chars() {
        match (quote, c) {
            (Some(mark), _) if mark == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => open += 1,
            (None, ']') if open == 0 => return Some("`]` closes what no `[` opened".into()),
            (None, ']') => open -= 1,
            (None, ';' | '&' | '|' | '<' | '>' | '$' | '`' | '(' | ')' | '{' | '}') => {
                return Some(format!(
                    "`{c}` stands in no spec: a value that holds it goes in quotes of its own, as in --spec \"cflags='...'\""
                ));
            }
            (None, c) if c.is_control() && !c.is_whitespace() => return Some("it holds a control character".into()),
            _ => {}
        }
    }
    (open > 0).then(|| "`[` is not closed".into())
}

/// Lays the later of these specs over the earlier ones: what is said twice counts as it was said last.
pub(super) fn laid_over(specs: &[&str]) -> Result<String, PlanError> {
    let mut words = Words::default();
    for spec in specs {
        words.lay(Words::parse(spec)?);
    }
    Ok(words.text())
}

/// Lays a choice over a variant.
pub fn choose(variant: &VariantSpec, choice: &Choice, catalog: &Catalog) -> Result<Chosen, PlanError> {
    let mut words = Words::parse(&variant.spec)?;
    let mut roots = variant.roots.clone();
    if let Some(name) = choice.with.iter().find(|name| choice.without.contains(name)) {
        return Err(PlanError::Conflict(format!("--with {name} and --without {name}: which of them?")));
    }
    for name in &choice.without {
        let feature = catalog.feature(name)?;
        words.lay(Words::parse(&feature.spec)?.off());
        roots.retain(|root| !feature.roots.contains(root));
    }
    // Last, so that what a feature needs wins over a variant that leaves it out.
    let mut adding: Vec<&str> = choice.with.iter().map(String::as_str).collect();
    let mut added = BTreeSet::new();
    while let Some(name) = adding.pop() {
        // Features of a site may need each other.
        if !added.insert(name) {
            continue;
        }
        let feature = catalog.feature(name)?;
        if let Some(why) = &feature.refused {
            return Err(PlanError::NotYet { what: format!("--with {name}"), why: why.clone() });
        }
        words.lay(Words::parse(&feature.spec)?);
        roots.extend(feature.roots.iter().cloned());
        for needed in &feature.needs {
            if choice.without.contains(needed) {
                return Err(PlanError::Conflict(format!(
                    "--with {name} needs {needed}, and --without {needed} was said"
                )));
            }
            adding.push(needed);
        }
    }
    // The level is written into Slurm's files: on an older processor the loader says so (glibc 2.33 and newer), where there
    // would be an illegal instruction, and `verify` sees it. An older ld passes over it.
    let level = choice.target.as_ref().and_then(|name| catalog.target.iter().find(|t| t.name == *name)?.level);
    let mark = level.filter(|level| *level >= 2).map(|level| format!("x86-64-v{level}"));
    if let Some(mark) = &mark {
        words.lay(Words::parse(&format!("ldflags='-Wl,-z,{mark}'"))?);
    }
    if let Some(spec) = &choice.spec {
        words.lay(Words::of_user(spec)?);
        agree(&words, spec, choice, catalog)?;
        let marks = |piece: &Piece, mark: &str| piece.about == "ldflags" && piece.text.contains(mark);
        if let Some(mark) = mark.filter(|mark| !words.pieces.iter().any(|piece| marks(piece, mark))) {
            return Err(PlanError::Conflict(format!(
                "the ldflags of the spec `{spec}` take the place of those that mark Slurm's files for the target: add -Wl,-z,{mark} to \
                 them"
            )));
        }
    }
    roots.sort();
    roots.dedup();
    let features = features_in(&words, &roots, catalog)?;
    Ok(Chosen { spec: words.text(), roots, features })
}

/// Refuses a spec that takes back what was said of a feature, or the other way round.
fn agree(words: &Words, spec: &str, choice: &Choice, catalog: &Catalog) -> Result<(), PlanError> {
    for (flag, names) in [("--with", &choice.with), ("--without", &choice.without)] {
        for name in names {
            let on = Words::parse(&catalog.feature(name)?.spec)?;
            let wanted = if flag == "--with" { on } else { on.off() };
            if !wanted.pieces.iter().all(|piece| words.has(piece)) {
                return Err(PlanError::Conflict(format!("{flag} {name} and the spec `{spec}`: which of them?")));
            }
        }
    }
    Ok(())
}

/// The features that a spec has. One that another needs and that was left out is an error.
fn features_in(words: &Words, roots: &[String], catalog: &Catalog) -> Result<Vec<String>, PlanError> {
    let mut found = Vec::new();
    let is_in = |feature: &Feature| -> Result<bool, PlanError> {
        let spec = Words::parse(&feature.spec)?;
        let some = !spec.pieces.is_empty() || !feature.roots.is_empty();
        Ok(some && spec.pieces.iter().all(|p| words.has(p)) && feature.roots.iter().all(|root| roots.contains(root)))
    };
    for (name, feature) in &catalog.features {
        if !is_in(feature)? {
            continue;
        }
        for needed in &feature.needs {
            if Words::parse(&catalog.feature(needed)?.spec)?.off().pieces.iter().any(|off| words.has(off)) {
                return Err(PlanError::Conflict(format!(
                    "{name} needs {needed}, which is left out: leave out both, --without {needed} --without {name}"
                )));
            }
        }
        found.push(name.clone());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn of(spec: &str) -> VariantSpec {
        VariantSpec { spec: spec.to_owned(), roots: Vec::new() }
    }

    fn chosen(variant: &str, with: &[&str], without: &[&str], spec: Option<&str>) -> Result<Chosen, String> {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let choice =
            Choice { with: names(with), without: names(without), spec: spec.map(str::to_owned), ..Choice::default() };
        let catalog = Catalog::embedded().unwrap();
        let variant = catalog.variants.get(variant).cloned().unwrap_or_else(|| of(variant));
        choose(&variant, &choice, &catalog).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_touched_stays_as_the_catalog_has_it() {
        let catalog = Catalog::embedded().unwrap();
        for (name, spec) in &catalog.variants {
            let chosen = chosen(name, &[], &[], None).unwrap();
            assert_eq!((chosen.spec, chosen.roots), (spec.spec.clone(), spec.roots.clone()));
        }
        assert!(chosen("minimal", &[], &[], None).unwrap().features.is_empty());
        let features = |variant| chosen(variant, &[], &[], None).unwrap().features;
        assert!(!features("default").contains(&"nvml".to_owned()) && features("gpu").contains(&"nvml".to_owned()));
    }

    #[test]
    fn features_are_laid_over_a_variant_and_the_experts_words_over_both() {
        for (with, without, spec, want) in [
            (&["lua"][..], &[][..], None, "~hwloc+lua sysconfdir=/etc/slurm"),
            (&[], &["hwloc"], None, "~hwloc~lua sysconfdir=/etc/slurm"),
            (&["hdf5"], &[], None, "~hwloc~lua sysconfdir=/etc/slurm +hdf5"),
            (&["lua"], &[], Some("+hwloc sysconfdir=/opt/etc"), "+hwloc+lua sysconfdir=/opt/etc"),
            (
                &[],
                &[],
                Some("cflags='-O3 -g' ^openssl@3.0 +shared"),
                "~hwloc~lua sysconfdir=/etc/slurm cflags='-O3 -g' ^openssl@3.0 +shared",
            ),
        ] {
            assert_eq!(chosen("~hwloc~lua sysconfdir=/etc/slurm", with, without, spec).unwrap().spec, want);
        }
    }

    #[test]
    fn what_spack_reads_is_not_refused() {
        for spec in [
            "sysconfdir=/opt/a-b_c.d/%x,y:z*=~^w\\v",
            "cflags='-DX=$(id) -O3; {a} | <b> (c) & `d` [e'",
            "ldflags=\"-Wl,-z,[x\"",
            "^[virtuals=mpi,pmi] openmpi@4:5.0,=5.0.1 fabrics:=ucx,auto",
            "%[when='%c' virtuals=c] gcc@13 ^openssl@git.abc/def=3.0 /uoeupcay",
            "^hdf5@1.14: ~~shared ++pic\n^python@3.11",
        ] {
            let spec = format!("+lua {spec}");
            Words::of_user(&spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
        }
    }

    #[test]
    fn what_a_feature_needs_comes_along_or_is_an_error() {
        assert_eq!(chosen("~restd~jwt", &["rest"], &[], None).unwrap().spec, "+restd+jwt");
        for (with, without) in [(&["rest"][..], &["jwt"][..]), (&[], &["jwt"])] {
            let error = chosen("default", with, without, None).unwrap_err();
            assert!(error.contains("rest") && error.contains("--without jwt"), "{error}");
        }
        let both = chosen("default", &[], &["rest", "jwt"], None).unwrap();
        assert!(!both.features.iter().any(|name| name == "rest" || name == "jwt"), "{both:?}");
    }

    #[test]
    fn features_that_need_each_other_are_added_once() {
        let mut catalog = Catalog::embedded().unwrap();
        for (name, needed) in [("one", "two"), ("two", "one")] {
            let needs = vec![needed.to_owned()];
            let feature = Feature {
                spec: String::new(),
                needs,
                roots: vec![name.to_owned()],
                ..catalog.feature("rest").unwrap().clone()
            };
            catalog.features.insert(name.to_owned(), feature);
        }
        let choice = Choice { with: vec!["one".into()], ..Choice::default() };
        let mut roots = choose(&of("+lua"), &choice, &catalog).unwrap().roots;
        roots.sort();
        assert_eq!(roots, ["one", "two"]);
    }

    #[test]
    fn a_level_is_written_into_slurms_files() {
        let catalog = Catalog::embedded().unwrap();
        let choice = |target: &str| Choice { target: Some(target.into()), ..Choice::default() };
        let spec = |target| choose(&of("+lua"), &choice(target), &catalog).unwrap().spec;
        assert_eq!(spec("x86_64_v3"), "+lua ldflags='-Wl,-z,x86-64-v3'");
        assert_eq!((spec("x86_64"), spec("aarch64")), ("+lua".to_owned(), "+lua".to_owned()));
        // An expert's ldflags take the place of ours: they have to bring the mark.
        let with = |spec: &str| Choice { spec: Some(spec.into()), ..choice("x86_64_v3") };
        let error = choose(&of("+lua"), &with("ldflags=-s"), &catalog).unwrap_err().to_string();
        assert!(error.contains("`ldflags=-s`") && error.contains("add -Wl,-z,x86-64-v3"), "{error}");
        assert!(choose(&of("+lua"), &with("ldflags='-s -Wl,-z,x86-64-v3'"), &catalog).is_ok());
    }

    #[test]
    fn packages_beside_slurm() {
        let chosen = chosen("minimal", &["pyxis", "pyxis"], &[], None).unwrap();
        assert_eq!((chosen.roots, chosen.features), (vec!["pyxis".to_owned()], vec!["pyxis".to_owned()]));
    }

    /// What a variant has beside Slurm is left out like any feature, and so is what needs a feature that is left out.
    #[test]
    fn packages_beside_a_variants_slurm_are_left_out() {
        let roots = |with, without| chosen("default", with, without, None).map(|chosen| chosen.roots);
        assert_eq!(roots(&[], &[]).unwrap(), ["openmpi"]);
        assert_eq!(roots(&["pyxis"], &["openmpi"]).unwrap(), ["pyxis"]);
        let chosen = chosen("gpu", &[], &["openmpi", "pmix"], None).unwrap();
        assert!(!chosen.features.iter().any(|name| name == "openmpi" || name == "pmix"), "{chosen:?}");
        let error = roots(&[], &["pmix"]).unwrap_err();
        assert!(error.contains("--without pmix --without openmpi"), "{error}");
    }

    #[test]
    fn a_variant_is_a_spec_or_a_table() {
        let read =
            |text: &str| toml::from_str::<BTreeMap<String, VariantSpec>>(text).map(|mut all| all.remove("x").unwrap());
        let with = VariantSpec { roots: vec!["openmpi".into()], ..of("+lua") };
        assert_eq!(read("x = '+lua'").unwrap(), of("+lua"));
        assert_eq!(read("x = { spec = '+lua' }").unwrap(), of("+lua"));
        assert_eq!(read("[x]\nspec = '+lua'\nroots = ['openmpi']").unwrap(), with);
        for (text, part) in [("x = 7", "a table with `spec`"), ("x = { spec = '', root = [] }", "unknown field `root`")]
        {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_is_said_with_what_can() {
        for (with, without, spec, parts) in [
            (&["gpus"][..], &[][..], None, &["unknown feature `gpus`", "nvml, openmpi, pam"][..]),
            (&["sview"], &[], None, &["--with sview", "GTK"]),
            (&["lua"], &["lua"], None, &["--with lua and --without lua"]),
            (&[], &[], Some("@24.05"), &["@24.05", "--slurm-version"]),
            (&[], &[], Some("target=zen4"), &["target=zen4", "--target"]),
            (&[], &[], Some("hwloc"), &["`hwloc`", "+NAME"]),
            (&["lua"], &[], Some("~lua"), &["--with lua", "`~lua`", "which of them"]),
            (&[], &["hdf5"], Some("+hdf5"), &["--without hdf5", "`+hdf5`", "which of them"]),
            (&[], &[], Some("+"), &["`+`"]),
            (&[], &[], Some("cflags='-O3"), &["quote"]),
            (&[], &[], Some(" "), &["empty", "leave it out"]),
            (&[], &[], Some("^[virtuals=mpi openmpi"), &["`[` is not closed"]),
            (&[], &[], Some("+lua ^openmpi]"), &["`]` closes"]),
            (&[], &[], Some("sysconfdir=$HOME/etc"), &["`$`", "quotes"]),
            (&[], &[], Some("+lua; rm -rf x"), &["`;`"]),
            (&[], &[], Some("^openssl@>3"), &["`>`"]),
            (&[], &[], Some("a=\u{1b}x"), &["control character"]),
        ] {
            let error = chosen("default", with, without, spec).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
