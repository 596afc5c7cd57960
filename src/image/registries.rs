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

mod file;
mod lookup;
#[cfg(test)]
mod tests;

pub use lookup::is_short_name;

use super::BadReference;
use super::reference::{Reference, RegistryReference};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

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

impl Registries {
    /// What was passed over while reading.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where logins are looked for, best first, and the file that says so.
    pub fn credential_helpers(&self) -> (&[String], Option<&str>) {
        self.helpers.as_ref().map_or((&[], None), |h| (&h.value, Some(&h.origin)))
    }
}
