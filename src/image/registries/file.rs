//! Reads a file, and lays it over what was read before it.

use super::lookup::ShortName;
use super::{Mirror, Registries, RegistriesError, Rule, Sourced, UnknownKeys, Usage};
use crate::image::Digest;
use crate::image::reference::{self, Reference};
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::{Table, Value};

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
