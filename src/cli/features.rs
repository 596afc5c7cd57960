//! Flags that say what of Slurm is built, and how a plan tells that and for which processors.

use crate::catalog::Catalog;
use crate::config::Settings;
use clap::Args;

/// Features.
#[derive(Debug, Args, Default)]
pub struct FeatureArgs {
    /// Add a feature to the variant; may be given several times. A name that is not known is answered with the list
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub with: Vec<String>,
    /// Leave a feature of the variant out; may be given several times
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub without: Vec<String>,
    /// For experts: variants and dependencies in Spack's words, laid over everything else, as in "+hdf5 ^openssl@3.0"
    #[arg(long, value_name = "SPEC", allow_hyphen_values = true)]
    pub spec: Option<String>,
}

impl FeatureArgs {
    /// The settings with what these flags say.
    pub fn over(&self, settings: Settings) -> Settings {
        let list = |values: &Vec<String>| (!values.is_empty()).then(|| values.clone());
        Settings { with: list(&self.with), without: list(&self.without), spec: self.spec.clone(), ..settings }
    }
}

/// Features in a row of a plan.
pub fn listed(features: &[String]) -> String {
    if features.is_empty() { "none".to_owned() } else { features.join(", ") }
}

/// A target and what it means for old nodes.
pub fn target(name: &str, catalog: &Catalog) -> String {
    let known = catalog.target.iter().find(|t| t.name == name);
    known.map_or_else(|| name.to_owned(), |t| format!("{name}: {}", t.runs))
}
