//! What the configuration means for a name: which image, and where it is asked for.

use super::{Endpoint, Expanded, Registries, RegistriesError, Route, Rule, Sourced, Usage};
use crate::image::reference::{self, Reference, RegistryReference};

impl Registries {
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

/// Whether what a text names depends on what is configured about short names.
pub fn is_short_name(text: &str) -> bool {
    ShortName::parse(text).is_some()
}

/// A name without a registry, and the tag or digest after it.
pub(super) struct ShortName {
    pub name: String,
    pub suffix: String,
}

impl ShortName {
    /// `None` for what names a registry, and for anything that is no name in a registry.
    pub fn parse(text: &str) -> Option<Self> {
        let first = text.split_once('/').map(|(first, _)| first);
        if text.is_empty() || first.is_some_and(reference::is_host) || reference::transport(text).is_some() {
            return None;
        }
        let at = text.find(['@', ':']).unwrap_or(text.len());
        Some(Self { name: text[..at].to_owned(), suffix: text[at..].to_owned() })
    }
}
