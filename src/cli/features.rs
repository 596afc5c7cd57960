//! Flags that say what of Slurm is built and for which processors, and how a plan tells it.

use crate::catalog::Catalog;
use crate::config::Settings;
use clap::Args;

/// Features and target.
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
    /// What code is made for: x86_64, x86_64_v2, x86_64_v3, x86_64_v4 or aarch64. Older processors stop with an illegal
    /// instruction [default: every processor of the image's architecture]
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
}

impl FeatureArgs {
    /// The settings with what these flags say.
    pub fn over(&self, settings: Settings) -> Settings {
        let list = |values: &Vec<String>| (!values.is_empty()).then(|| values.clone());
        Settings {
            with: list(&self.with),
            without: list(&self.without),
            spec: self.spec.clone(),
            target: self.target.clone(),
            ..settings
        }
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
