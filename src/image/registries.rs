//! What people have configured about registries, and what it means for one image. Pure: text in, decisions out.
//!
//! ```toml
//! unqualified-search-registries = ["registry.site"]
//! credential-helpers = ["containers-auth.json", "secretservice"]
//!
//! [[registry]]                             # for images whose name begins with the prefix; the longest wins
//! prefix = "docker.io/library"             # HOST[:PORT][/NAMESPACE...][:TAG|@DIGEST], or *.example.com
//! location = "mirror.site:5000/hub"        # what is asked in place of the prefix; the prefix when not given
//! insecure = false                         # true: also http, and TLS that is not verified
//! blocked = false
//! mirror-by-digest-only = false
//!
//! [[registry.mirror]]                      # asked in this order, and then the location
//! location = "mirror.rack:5000/hub"
//! insecure = true
//! pull-from-mirror = "all"                 # or digest-only, tag-only
//!
//! [aliases]
//! "ubuntu" = "docker.io/library/ubuntu"    # what a name without a registry means
//! ```
//!
//! Several files are laid over each other, see [`Registries::add`]. An image keeps the name that was asked for,
//! wherever it comes from: a [`Route`] says where, [`Registries::expand`] which name a short one means.
//!
//! Format: containers-registries.conf(5), containers-registries.conf.d(5), version 2.

use super::reference::{self, Reference, RegistryReference};
use super::{BadReference, Digest};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use toml::{Table, Value};

/// The value of `credential-helpers` that means the files with logins.
pub const AUTH_FILES: &str = "containers-auth.json";

/// Why a configuration of registries cannot be used, or forbids what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    /// Not TOML, or a value of the wrong kind.
    #[error("{origin}: {message}")]
    Parse {
        /// The file.
        origin: String,
        /// What is wrong, with the line when it is known.
        message: String,
    },
    /// The deprecated format.
    #[error(
        "{origin} is in version 1 of the format ([registries.search], [registries.insecure], [registries.block]), which is not supported: write it as version 2, see containers-registries.conf(5), or have another file read in its place with CONTAINERS_REGISTRIES_CONF"
    )]
    Version1 {
        /// The file.
        origin: String,
    },
    /// A short name that could be in several registries.
    #[error(
        "`{name}` names no registry, and {origin} lists several to search: write one of {}, or add an alias for it",
        candidates.join(", ")
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What it could mean.
        candidates: Vec<String>,
        /// The file with `unqualified-search-registries`.
        origin: String,
    },
    /// The administrator, or the user, does not want it.
    #[error("pulling `{reference}` is forbidden: `blocked = true` for the prefix `{prefix}` in {origin}")]
    Blocked {
        /// The image.
        reference: String,
        /// Which entry.
        prefix: String,
        /// The file.
        origin: String,
    },
    /// A location that makes no name of an image.
    #[error("{origin}: the entry for `{prefix}`: {source}")]
    Location {
        /// The file.
        origin: String,
        /// Which entry.
        prefix: String,
        /// Why.
        source: BadReference,
    },
    /// What was asked for is no image.
    #[error(transparent)]
    Reference(#[from] BadReference),
}

/// What to do with keys that are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownKeys {
    /// Other programs may know them: keep a note.
    Note,
    /// The file is ours alone: an error, so that a misspelt one does not silently do nothing.
    Refuse,
}

/// A value, and the file that it came from.
#[derive(Clone, Debug)]
struct Sourced<T> {
    value: T,
    origin: String,
}

/// All that is configured about registries. The default is a host without any of it.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// By prefix.
    rules: BTreeMap<String, Sourced<Rule>>,
    search: Option<Sourced<Vec<String>>>,
    helpers: Option<Sourced<Vec<String>>>,
    aliases: BTreeMap<String, Sourced<String>>,
    notes: Vec<String>,
}

#[derive(Clone, Debug)]
struct Rule {
    location: String,
    insecure: Option<bool>,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug)]
struct Mirror {
    location: String,
    insecure: Option<bool>,
    usage: Usage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Usage {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

/// A place where an image may be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The image's name there.
    pub reference: RegistryReference,
    /// `insecure` of the entry; `None` when it is not said.
    pub insecure: Option<bool>,
    /// Whether it stands in for another place.
    pub mirror: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let insecure = if self.insecure == Some(true) { " (insecure)" } else { "" };
        let kind = if self.mirror { "mirror " } else { "" };
        write!(f, "{kind}{}/{}{insecure}", self.reference.host(), self.reference.repository())
    }
}

/// Where an image is asked for, in this order.
#[derive(Clone, Debug)]
pub struct Route {
    /// The prefix that matched, and the file that has it.
    pub rule: Option<(String, String)>,
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// Places that are left out, and why.
    pub skipped: Vec<String>,
}

/// What a text names, and why.
#[derive(Clone, Debug)]
pub struct Expanded {
    /// The full name.
    pub reference: Reference,
    /// For a short name: what decided, in a few words with the file.
    pub because: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    credential_helpers: Option<Vec<String>>,
    /// Says when to ask on a terminal, which is never done here; read so that a wrong value is told.
    short_name_mode: Option<ShortNameMode>,
    #[serde(default)]
    registry: Vec<RegistryTable>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ShortNameMode {
    Enforcing,
    #[serde(alias = "")]
    Permissive,
    Disabled,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistryTable {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    insecure: Option<bool>,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorTable>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorTable {
    #[serde(default)]
    location: String,
    insecure: Option<bool>,
    pull_from_mirror: Option<Usage>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

impl Registries {
    /// Lays the text of a file over what is there: lists replace, entries with the same prefix replace, aliases
    /// with the same name replace, and an empty alias takes one away.
    pub fn add(&mut self, origin: &str, text: &str, unknown: UnknownKeys) -> Result<(), RegistriesError> {
        let broken = |e: toml::de::Error| parse_error(origin, e.to_string().trim());
        let table: Table = toml::from_str(text).map_err(broken)?;
        if is_version_1(&table) {
            return Err(RegistriesError::Version1 { origin: origin.to_owned() });
        }
        // Once more from the text, so that errors know the line.
        self.add_file(origin, toml::from_str(text).map_err(broken)?, unknown)
    }

    /// The same from a table that has been read already.
    pub fn add_table(&mut self, origin: &str, table: Table, unknown: UnknownKeys) -> Result<(), RegistriesError> {
        let broken = |e: toml::de::Error| parse_error(origin, e.to_string().trim());
        self.add_file(origin, table.try_into().map_err(broken)?, unknown)
    }

    fn add_file(&mut self, origin: &str, file: File, unknown: UnknownKeys) -> Result<(), RegistriesError> {
        self.notice(origin, "", &file.unknown, unknown)?;
        let _: Option<ShortNameMode> = file.short_name_mode;
        let sourced = |value| Sourced { value, origin: origin.to_owned() };
        if let Some(list) = file.unqualified_search_registries {
            for host in &list {
                reference::check_host(host)
                    .map_err(|e| parse_error(origin, &format!("unqualified-search-registries: {e}")))?;
            }
            self.search = Some(sourced(list));
        }
        if let Some(list) = file.credential_helpers {
            self.helpers = Some(sourced(list));
        }
        self.add_aliases(origin, file.aliases)?;
        self.add_rules(origin, file.registry, unknown)
    }

    fn add_aliases(&mut self, origin: &str, aliases: BTreeMap<String, String>) -> Result<(), RegistriesError> {
        for (name, value) in aliases {
            let bad = |why: &str| parse_error(origin, &format!("the alias `{name}`: {why}"));
            let Some(short) = ShortName::parse(&name).filter(|short| short.suffix.is_empty()) else {
                return Err(bad("the name must have no registry, no tag and no digest"));
            };
            if value.is_empty() {
                self.aliases.remove(&short.name);
                continue;
            }
            let full = match value.parse() {
                Ok(Reference::Registry(full)) if ShortName::parse(&value).is_none() => full,
                _ => return Err(bad(&format!("`{value}` must be HOST/NAME"))),
            };
            if value.contains('@') || value.rsplit_once('/').is_some_and(|(_, last)| last.contains(':')) {
                return Err(bad(&format!("`{value}` must have no tag and no digest")));
            }
            let value = format!("{}/{}", full.host(), full.repository());
            self.aliases.insert(short.name, Sourced { value, origin: origin.to_owned() });
        }
        Ok(())
    }

    fn add_rules(
        &mut self,
        origin: &str,
        tables: Vec<RegistryTable>,
        unknown: UnknownKeys,
    ) -> Result<(), RegistriesError> {
        let mut seen: BTreeMap<String, (bool, bool)> = BTreeMap::new();
        for table in tables {
            let (prefix, rule) = self.rule(origin, table, unknown)?;
            // The same place must be meant the same way in one file, whichever prefix leads to it.
            let flags = (rule.insecure == Some(true), rule.blocked);
            let place = if rule.location.is_empty() { &prefix } else { &rule.location };
            if *seen.entry(place.clone()).or_insert(flags) != flags {
                let message =
                    format!("[[registry]] `{place}` is given several times with another `insecure` or `blocked`");
                return Err(parse_error(origin, &message));
            }
            self.rules.insert(prefix, Sourced { value: rule, origin: origin.to_owned() });
        }
        Ok(())
    }

    fn rule(
        &mut self,
        origin: &str,
        table: RegistryTable,
        unknown: UnknownKeys,
    ) -> Result<(String, Rule), RegistriesError> {
        let given = if table.prefix.is_empty() { &table.location } else { &table.prefix };
        let bad = |what: &str, why: &str| parse_error(origin, &format!("[[registry]] `{given}`: {what}{why}"));
        if given.is_empty() {
            return Err(parse_error(origin, "a [[registry]] has neither `prefix` nor `location`"));
        }
        let prefix = place(given).map_err(|e| bad("", &e))?;
        let wildcard = prefix.starts_with("*.");
        if prefix.contains('*') && (!wildcard || prefix[1..].contains(['*', '/', ':', '@'])) {
            return Err(bad("", "`*` may only stand as `*.` before a host's name"));
        }
        let location = match table.location.as_str() {
            // Nothing is rewritten.
            "" if wildcard => String::new(),
            "" => prefix.clone(),
            location => place(location).map_err(|e| bad("location: ", &e))?,
        };
        if location.contains('*') {
            return Err(bad("", "a location has no `*`"));
        }
        self.notice(origin, &format!("[[registry]] `{prefix}`: "), &table.unknown, unknown)?;
        let mut mirrors = Vec::new();
        for mirror in table.mirror {
            let at = place(&mirror.location).map_err(|e| bad("mirror: ", &e))?;
            if at.is_empty() {
                return Err(bad("", "a mirror has no `location`"));
            }
            if table.mirror_by_digest_only && mirror.pull_from_mirror.is_some_and(|u| u != Usage::All) {
                return Err(bad(
                    "",
                    &format!("`mirror-by-digest-only` and `pull-from-mirror` of the mirror `{at}` exclude each other"),
                ));
            }
            self.notice(origin, &format!("mirror `{at}` of `{prefix}`: "), &mirror.unknown, unknown)?;
            let usage = if table.mirror_by_digest_only {
                Usage::DigestOnly
            } else {
                mirror.pull_from_mirror.unwrap_or_default()
            };
            mirrors.push(Mirror { location: at, insecure: mirror.insecure, usage });
        }
        Ok((prefix, Rule { location, insecure: table.insecure, blocked: table.blocked, mirrors }))
    }

    fn notice(
        &mut self,
        origin: &str,
        context: &str,
        keys: &BTreeMap<String, Value>,
        unknown: UnknownKeys,
    ) -> Result<(), RegistriesError> {
        for key in keys.keys() {
            let message = format!("{context}the key `{key}` is not known");
            match unknown {
                UnknownKeys::Refuse => return Err(parse_error(origin, &message)),
                UnknownKeys::Note => self.notes.push(format!("{origin}: {message} and does nothing")),
            }
        }
        Ok(())
    }

    /// What was passed over while reading.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where logins are looked for, best first, and the file that says so.
    pub fn credential_helpers(&self) -> (&[String], Option<&str>) {
        self.helpers.as_ref().map_or((&[], None), |h| (&h.value, Some(&h.origin)))
    }

    /// What a user's text names: a short name through its alias, else in the one registry that is searched, else
    /// in Docker Hub's library.
    pub fn expand(&self, text: &str) -> Result<Expanded, RegistriesError> {
        let plain =
            |because| -> Result<Expanded, RegistriesError> { Ok(Expanded { reference: text.parse()?, because }) };
        let Some(short) = ShortName::parse(text) else { return plain(None) };
        if let Some(alias) = self.aliases.get(&short.name) {
            let reference = format!("{}{}", alias.value, short.suffix).parse()?;
            return Ok(Expanded { reference, because: Some(format!("an alias in {}", alias.origin)) });
        }
        let Some(Sourced { value: hosts, origin }) = self.search.as_ref().filter(|s| !s.value.is_empty()) else {
            return plain(Some("no alias and no registry to search is configured".to_owned()));
        };
        let full = |host: &str| format!("{host}/{}{}", short.name, short.suffix).parse::<Reference>();
        // A bad tag is told before anything else.
        let mut candidates = hosts.iter().map(|host| full(host)).collect::<Result<Vec<_>, _>>()?;
        if candidates.len() > 1 {
            return Err(RegistriesError::Ambiguous {
                name: text.to_owned(),
                candidates: candidates.iter().map(ToString::to_string).collect(),
                origin: origin.clone(),
            });
        }
        match candidates.pop() {
            Some(reference) => Ok(Expanded {
                reference,
                because: Some(format!("the only one of unqualified-search-registries in {origin}")),
            }),
            None => plain(None),
        }
    }

    /// Where `reference` is asked for.
    pub fn route(&self, reference: &RegistryReference) -> Result<Route, RegistriesError> {
        let name = reference.to_string();
        let Some((prefix, length, rule)) = self.matching(&name) else {
            let endpoint = Endpoint { reference: reference.clone(), insecure: None, mirror: false };
            return Ok(Route { rule: None, endpoints: vec![endpoint], skipped: Vec::new() });
        };
        let blocked = || RegistriesError::Blocked {
            reference: name.clone(),
            prefix: prefix.to_owned(),
            origin: rule.origin.clone(),
        };
        if rule.value.blocked {
            return Err(blocked());
        }
        let rewrite = |location: &str| -> Result<RegistryReference, RegistriesError> {
            if location.is_empty() {
                return Ok(reference.clone());
            }
            let text = format!("{location}{}", &name[length..]);
            reference::parse_full(&text).map_err(|source| RegistriesError::Location {
                origin: rule.origin.clone(),
                prefix: prefix.to_owned(),
                source,
            })
        };
        let pinned = reference.digest().is_some();
        let (mut endpoints, mut skipped) = (Vec::new(), Vec::new());
        for mirror in &rule.value.mirrors {
            let endpoint = Endpoint { reference: rewrite(&mirror.location)?, insecure: mirror.insecure, mirror: true };
            match mirror.usage {
                Usage::DigestOnly if !pinned => skipped.push(format!("{endpoint}: for digests only")),
                Usage::TagOnly if pinned => skipped.push(format!("{endpoint}: for tags only")),
                _ => endpoints.push(endpoint),
            }
        }
        endpoints.push(Endpoint {
            reference: rewrite(&rule.value.location)?,
            insecure: rule.value.insecure,
            mirror: false,
        });
        // A place may be forbidden under its own name, too.
        let mut forbidden = None;
        endpoints.retain(|endpoint| {
            let own = endpoint.reference.to_string();
            match self.matching(&own) {
                Some((prefix, _, rule)) if rule.value.blocked => {
                    skipped.push(format!("{endpoint}: blocked by the prefix `{prefix}` in {}", rule.origin));
                    forbidden.get_or_insert_with(|| RegistriesError::Blocked {
                        reference: own.clone(),
                        prefix: prefix.to_owned(),
                        origin: rule.origin.clone(),
                    });
                    false
                }
                _ => true,
            }
        });
        if endpoints.is_empty() {
            return Err(forbidden.unwrap_or_else(blocked));
        }
        Ok(Route { rule: Some((prefix.to_owned(), rule.origin.clone())), endpoints, skipped })
    }

    /// The entry with the longest prefix, and how much of the name it covers.
    fn matching(&self, name: &str) -> Option<(&str, usize, &Sourced<Rule>)> {
        self.rules
            .iter()
            .filter_map(|(prefix, rule)| Some((prefix.as_str(), covers(prefix, name)?, rule)))
            .max_by_key(|(prefix, ..)| prefix.len())
    }
}

/// How much of `name` the prefix covers; `None` when it is no prefix of it. As the containers tools do it, a host
/// without a port covers all of its ports.
fn covers(prefix: &str, name: &str) -> Option<usize> {
    let end = match prefix.strip_prefix('*') {
        Some(domain) => {
            let host = &name[..name.find([':', '/', '@']).unwrap_or(name.len())];
            host.ends_with(domain).then_some(host.len())?
        }
        None => name.starts_with(prefix).then_some(prefix.len())?,
    };
    matches!(name.as_bytes().get(end), None | Some(b':' | b'/' | b'@')).then_some(end)
}

/// A prefix or location as it is compared: without a slash at its end. A scheme has no place in it.
fn place(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    if text.contains("://") {
        return Err(format!("`{text}` must have no scheme; `insecure = true` allows http"));
    }
    let host = text.split('/').next().unwrap_or_default();
    // A tag or digest may follow a whole name only, which has a slash.
    if !text.is_empty() && !host.starts_with("*.") {
        reference::check_host(host)?;
    }
    if let Some((_, digest)) = text.split_once('@') {
        digest.parse::<Digest>().map_err(|e| e.to_string())?;
    }
    Ok(text.to_owned())
}

fn parse_error(origin: &str, message: &str) -> RegistriesError {
    RegistriesError::Parse { origin: origin.to_owned(), message: message.to_owned() }
}

/// `[registries.search]`, `[registries.insecure]` or `[registries.block]` that names a registry.
fn is_version_1(table: &Table) -> bool {
    let lists = |value: &Value| {
        let list = value.get("registries").and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    };
    table
        .get("registries")
        .and_then(Value::as_table)
        .is_some_and(|t| ["search", "insecure", "block"].iter().any(|key| t.get(*key).is_some_and(lists)))
}

/// Whether what a text names depends on what is configured about short names.
pub fn is_short_name(text: &str) -> bool {
    ShortName::parse(text).is_some()
}

/// A name without a registry, and the tag or digest after it.
struct ShortName {
    name: String,
    suffix: String,
}

impl ShortName {
    /// `None` for what names a registry, and for anything that is no name in a registry.
    fn parse(text: &str) -> Option<Self> {
        let first = text.split_once('/').map(|(first, _)| first);
        if text.is_empty() || first.is_some_and(reference::is_host) || reference::transport(text).is_some() {
            return None;
        }
        let at = text.find(['@', ':']).unwrap_or(text.len());
        Some(Self { name: text[..at].to_owned(), suffix: text[at..].to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Registries {
        let mut registries = Registries::default();
        for (origin, text) in files {
            registries.add(origin, text, UnknownKeys::Note).unwrap_or_else(|e| panic!("{e}"));
        }
        registries
    }

    fn refused(text: &str) -> String {
        Registries::default().add("/etc/x.conf", text, UnknownKeys::Note).unwrap_err().to_string()
    }

    fn registry(text: &str) -> RegistryReference {
        let Reference::Registry(r) = text.parse().unwrap() else { panic!("{text}") };
        r
    }

    /// The places in order; `!` marks insecure ones.
    fn places(registries: &Registries, image: &str) -> Vec<String> {
        let route = registries.route(&registry(image)).unwrap_or_else(|e| panic!("{e}"));
        let show = |e: &Endpoint| {
            let mark = if e.insecure == Some(true) { "!" } else { "" };
            format!("{mark}{}", e.reference)
        };
        route.endpoints.iter().map(show).collect()
    }

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_longest_prefix_wins_and_the_rest_of_the_name_stays() {
        let registries = load(&[(
            "f",
            r#"
            [[registry]]
            prefix = "docker.io"
            location = "mirror.site:5000/hub/"
            [[registry]]
            prefix = "docker.io/library"
            location = "mirror.site:5000/library"
            [[registry]]
            prefix = "docker.io/library/ubuntu:24.04"
            location = "pinned.site/noble:1"
            [[registry]]
            prefix = "*.example.com"
            insecure = true
            [[registry]]
            prefix = "*.deep.example.com"
            location = "deep.site/d"
            [[registry]]
            prefix = "*.plain.example.com"
            [[registry]]
            location = "plain.site"
            insecure = true
            [[registry]]
            prefix = "defaulted.site/a"
            "#,
        )]);
        for (image, want) in [
            ("team/app:1", "mirror.site:5000/hub/team/app:1"),
            ("debian:12", "mirror.site:5000/library/debian:12"),
            ("ubuntu:24.04", "pinned.site/noble:1"),
            ("ubuntu:24.10", "mirror.site:5000/library/ubuntu:24.10"),
            ("docker.io/librarything/a:1", "mirror.site:5000/hub/librarything/a:1"),
            ("a.example.com/x/y:1", "!a.example.com/x/y:1"),
            ("a.b.example.com:5000/x:1", "!a.b.example.com:5000/x:1"),
            ("a.deep.example.com/x:1", "deep.site/d/x:1"),
            ("a.plain.example.com/x:1", "a.plain.example.com/x:1"),
            ("plain.example.com:5000/x:1", "!plain.example.com:5000/x:1"),
            ("example.com/x:1", "example.com/x:1"),
            ("notexample.com/x:1", "notexample.com/x:1"),
            ("a.example.com.evil.net/x:1", "a.example.com.evil.net/x:1"),
            ("plain.site/x:1", "!plain.site/x:1"),
            ("plain.site.net/x:1", "plain.site.net/x:1"),
            ("defaulted.site/a/b:1", "defaulted.site/a/b:1"),
            ("quay.io/x/y:1", "quay.io/x/y:1"),
        ] {
            assert_eq!(places(&registries, image), [want], "{image}");
        }
        let route = registries.route(&registry("debian:12")).unwrap();
        assert_eq!(route.rule, Some(("docker.io/library".to_owned(), "f".to_owned())));
    }

    #[test]
    fn mirrors_come_first_and_as_they_may_be_used() {
        let text = r#"
            [[registry]]
            location = "quay.io"
            [[registry.mirror]]
            location = "a.site/q"
            insecure = true
            [[registry.mirror]]
            location = "b.site"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "c.site"
            pull-from-mirror = "tag-only"
            [[registry]]
            location = "ghcr.io"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "d.site"
            "#;
        let registries = load(&[("f", text)]);
        for (image, want) in [
            ("quay.io/x:1", vec!["!a.site/q/x:1", "c.site/x:1", "quay.io/x:1"]),
            (
                &format!("quay.io/x@{DIGEST}"),
                vec![
                    &*format!("!a.site/q/x@{DIGEST}"),
                    &*format!("b.site/x@{DIGEST}"),
                    &*format!("quay.io/x@{DIGEST}"),
                ],
            ),
            ("ghcr.io/x:1", vec!["ghcr.io/x:1"]),
            (
                &format!("ghcr.io/x:1@{DIGEST}"),
                vec![&*format!("d.site/x:1@{DIGEST}"), &*format!("ghcr.io/x:1@{DIGEST}")],
            ),
        ] {
            assert_eq!(places(&registries, image), want, "{image}");
        }
    }

    #[test]
    fn what_is_blocked_is_refused_with_file_and_prefix() {
        let text = r#"
            [[registry]]
            prefix = "docker.io"
            blocked = true
            [[registry]]
            prefix = "docker.io/library"
            location = "docker.io/library"
            [[registry]]
            prefix = "quay.io"
            [[registry.mirror]]
            location = "bad.site/q"
            [[registry]]
            location = "bad.site"
            blocked = true
            [[registry]]
            prefix = "led.astray"
            location = "bad.site/x"
            "#;
        let registries = load(&[("/etc/r.conf", text)]);
        let blocked = |image: &str| registries.route(&registry(image)).unwrap_err().to_string();
        for (image, prefix) in [("team/app", "docker.io"), ("bad.site/y", "bad.site"), ("led.astray/z", "bad.site")] {
            let error = blocked(image);
            assert!(error.contains(&format!("`{prefix}`")) && error.contains("/etc/r.conf"), "{error}");
        }
        assert_eq!(places(&registries, "ubuntu:1"), ["docker.io/library/ubuntu:1"]);
        assert_eq!(places(&registries, "quay.io/x:1"), ["quay.io/x:1"]);
        assert_eq!(registries.route(&registry("quay.io/x:1")).unwrap().skipped.len(), 1);
    }

    #[test]
    fn short_names() {
        let aliases = r#"
            [aliases]
            ubuntu = "mirror.site:5000/base/ubuntu"
            "team/app" = "quay.io/team/app"
            debian = "docker.io/debian"
            "#;
        let one = r#"unqualified-search-registries = ["registry.site"]"#;
        let two = r#"unqualified-search-registries = ["a.site", "docker.io"]"#;
        let pinned = format!("ubuntu@{DIGEST}");
        let pinned_full = format!("mirror.site:5000/base/ubuntu@{DIGEST}");
        for (files, text, want) in [
            (vec![aliases], "ubuntu:24.04", "mirror.site:5000/base/ubuntu:24.04"),
            (vec![aliases], "ubuntu", "mirror.site:5000/base/ubuntu:latest"),
            (vec![aliases], &pinned, &pinned_full),
            (vec![aliases, one], "team/app:1", "quay.io/team/app:1"),
            (vec![aliases], "debian:12", "docker.io/library/debian:12"),
            (vec![aliases], "alpine:3", "docker.io/library/alpine:3"),
            (vec![aliases, one], "alpine:3", "registry.site/alpine:3"),
            (vec![r#"unqualified-search-registries = ["docker.io"]"#], "alpine", "docker.io/library/alpine:latest"),
            (vec![aliases, "[aliases]\nubuntu = ''", one], "ubuntu:1", "registry.site/ubuntu:1"),
            (vec![two, one], "a:1", "registry.site/a:1"),
            (vec![two, "unqualified-search-registries = []"], "a:1", "docker.io/library/a:1"),
            (vec![aliases, two], "ubuntu:1", "mirror.site:5000/base/ubuntu:1"),
            // These name where they are.
            (vec![aliases, two], "docker.io/library/ubuntu:1", "docker.io/library/ubuntu:1"),
            (vec![aliases, two], "docker://ubuntu:1", "docker.io/library/ubuntu:1"),
            (vec![aliases, two], "localhost/ubuntu:1", "localhost/ubuntu:1"),
            (vec![aliases, two], "oci:ubuntu:1", "oci:ubuntu:1"),
        ] {
            let files: Vec<_> = files.iter().map(|text| ("f", *text)).collect();
            let got = load(&files).expand(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(got.reference.to_string(), want, "{text}");
        }
        let because = |files: &[(&str, &str)], text: &str| load(files).expand(text).unwrap().because;
        assert_eq!(because(&[("/a.conf", aliases)], "ubuntu").as_deref(), Some("an alias in /a.conf"));
        assert!(because(&[("/a.conf", one)], "x").unwrap().contains("/a.conf"));
        assert_eq!(because(&[("/a.conf", one)], "quay.io/x"), None);

        let error = load(&[("/etc/r.conf", two)]).expand("alpine:3").unwrap_err().to_string();
        for part in ["`alpine:3`", "a.site/alpine:3", "docker.io/library/alpine:3", "/etc/r.conf", "alias"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn later_files_replace_by_prefix_and_name() {
        let registries = load(&[
            (
                "1",
                "credential-helpers = ['a']\n[[registry]]\nprefix='quay.io'\nlocation='one.site'\ninsecure=true\n[[registry]]\nlocation='ghcr.io'\n[[registry.mirror]]\nlocation='m.site'",
            ),
            (
                "2",
                "credential-helpers = ['b', 'containers-auth.json']\n[[registry]]\nprefix='quay.io'\nlocation='two.site'",
            ),
        ]);
        assert_eq!(places(&registries, "quay.io/x:1"), ["two.site/x:1"]);
        assert_eq!(places(&registries, "ghcr.io/x:1"), ["m.site/x:1", "ghcr.io/x:1"]);
        let (helpers, origin) = registries.credential_helpers();
        assert_eq!((helpers.join(" ").as_str(), origin), ("b containers-auth.json", Some("2")));
    }

    #[test]
    fn refusals_name_file_and_cause() {
        for (text, parts) in [
            ("[registries.search]\nregistries = ['a.site']", vec!["version 1", "version 2"]),
            ("[registries.block]\nregistries = ['a.site']", vec!["version 1"]),
            ("unqualified-search-registries = 'a'", vec!["unqualified-search-registries"]),
            ("x = [\n1", vec!["line 2"]),
            ("[[registry]]\ninsecure = true", vec!["neither"]),
            ("[[registry]]\nlocation = 'https://a.site'", vec!["scheme", "insecure"]),
            ("[[registry]]\nlocation = 'a.*.site'", vec!["*"]),
            ("[[registry]]\nprefix = '*.a.site/b'", vec!["*"]),
            ("[[registry]]\nprefix = 'a.site'\nlocation = '*.b.site'", vec!["*"]),
            ("[[registry]]\nprefix = 'a.site'\n[[registry.mirror]]\ninsecure = true", vec!["mirror"]),
            (
                "[[registry]]\nprefix = 'a.site'\n[[registry.mirror]]\nlocation='b'\npull-from-mirror='x'",
                vec!["digest-only"],
            ),
            (
                "[[registry]]\nprefix = 'a.site'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation='b'\npull-from-mirror='tag-only'",
                vec!["mirror-by-digest-only", "pull-from-mirror"],
            ),
            (
                "[[registry]]\nlocation='a.site'\n[[registry]]\nprefix='b.site'\nlocation='a.site'\ninsecure=true",
                vec!["a.site", "insecure"],
            ),
            ("short-name-mode = 'loud'", vec!["loud", "enforcing"]),
            ("[aliases]\nx = 'y'", vec!["`x`", "HOST/NAME"]),
            ("[aliases]\nx = 'a.site/y:1'", vec!["tag"]),
            ("[aliases]\n'a.site/x' = 'a.site/y'", vec!["a.site/x"]),
            ("[aliases]\n'x:1' = 'a.site/y'", vec!["x:1"]),
        ] {
            let error = refused(text);
            assert!(error.contains("/etc/x.conf"), "{text}: {error}");
            for part in parts {
                assert!(error.contains(part), "{text}: `{part}` is not in: {error}");
            }
        }
        // What was version 1 and says nothing is nothing.
        load(&[("f", "[registries.search]\nregistries = []")]);
        // A location that makes no name.
        let registries = load(&[("/etc/x.conf", "[[registry]]\nprefix='a.site'\nlocation='b.site:1'")]);
        assert_eq!(places(&registries, "a.site/x:1"), ["b.site:1/x:1"]);
        let registries = load(&[("/etc/x.conf", "[[registry]]\nprefix='a.site/x'\nlocation='b.site'")]);
        let error = registries.route(&registry("a.site/x:1")).unwrap_err().to_string();
        assert!(error.contains("/etc/x.conf") && error.contains("a.site/x"), "{error}");
    }

    #[test]
    fn unknown_keys_are_noted_or_refused() {
        let text =
            "future = 1\n[[registry]]\nlocation = 'a.site'\nspeed = 2\n[[registry.mirror]]\nlocation = 'b'\nx = 3";
        let notes = load(&[("/etc/x.conf", text)]);
        let notes = notes.notes();
        assert_eq!(notes.len(), 3, "{notes:?}");
        for (note, key) in notes.iter().zip(["`future`", "`speed`", "`x`"]) {
            assert!(note.contains(key) && note.contains("/etc/x.conf"), "{note}");
        }
        let error = Registries::default().add("ours", text, UnknownKeys::Refuse).unwrap_err().to_string();
        assert!(error.contains("future"), "{error}");
    }
}
