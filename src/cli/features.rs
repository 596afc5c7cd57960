//! Flags that say what of Slurm is built, and how a plan tells that and for which processors.

use crate::catalog::{Catalog, glibc_number};
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
        let trimmed = |name: &String| name.trim().to_owned();
        let list = |values: &Vec<String>| (!values.is_empty()).then(|| values.iter().map(trimmed).collect());
        Settings { with: list(&self.with), without: list(&self.without), spec: self.spec.clone(), ..settings }
    }
}

/// Features in a row of a plan.
pub fn listed(features: &[String]) -> String {
    if features.is_empty() { "none".to_owned() } else { features.join(", ") }
}

/// A target and what it means for old nodes. `glibc` is the toolchain's, the oldest that the package may meet.
pub fn target(name: &str, glibc: &str, catalog: &Catalog) -> String {
    let Some(known) = catalog.target.iter().find(|t| t.name == name) else { return name.to_owned() };
    let says_so = glibc_number(glibc) >= glibc_number("2.33");
    let older = match known.level {
        Some(2..) if says_so => "; on an older one Slurm's programs do not start and say why, munged may end by SIGILL",
        Some(2..) => "; an older one is only noticed where glibc is 2.33 or newer, elsewhere programs end by SIGILL",
        _ => "",
    };
    format!("{name}: {}{older}", known.runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_what_older_processors_do() {
        let catalog = Catalog::embedded().unwrap();
        for (name, glibc, says, says_not) in [
            ("x86_64", "2.39", "every 64-bit x86", ";"),
            ("x86_64_v3", "2.39", "do not start and say why", "only noticed"),
            ("x86_64_v3", "2.28", "only noticed where glibc is 2.33", "say why"),
            ("zen4", "2.39", "zen4", ":"),
        ] {
            let text = target(name, glibc, &catalog);
            assert!(text.contains(says) && !text.contains(says_not), "{name} on {glibc}: {text}");
        }
    }
}
