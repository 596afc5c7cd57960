//! `doctor --online`: the registry and Spack's sources, asked through the configured proxies, and the clock against theirs.
//!
//! What does not answer is no obstacle when the cache has what would be fetched from there.

use super::doctor::{fail, finding};
use super::{catalog, variable};
use crate::cache::Cache;
use crate::catalog::{Catalog, GitPin};
use crate::config::Settings;
use crate::image::{self, Platform, Reached, Reference};
use crate::report::Ctx;
use crate::resolve;
use crate::sandbox::{Finding, Outcome};
use crate::secret::without_login;
use crate::spack::source;
use anyhow::Result;
use jiff::Timestamp;

/// Tokens and certificates are refused at about this. Seconds.
const SKEW: i64 = 300;

/// The rows.
pub fn look(settings: &Settings, cache: &Cache, ctx: &Ctx) -> Result<Vec<Finding>> {
    let catalog = catalog(settings)?;
    let mut rows = registry(settings, &catalog, cache, ctx)?;
    let git = |id, what, given: &Option<String>, reference: &Option<String>, pin: &GitPin| {
        let given = given.as_deref().unwrap_or(&pin.source);
        let reference = reference.as_deref().unwrap_or(&pin.reference);
        let tried = format!("asking {} for {reference}", without_login(given));
        match source::reach(what, given, reference, ctx) {
            Ok(true) => finding(id, &tried, Outcome::Ok, "answers".into(), None),
            Ok(false) => fail(id, &tried, format!("answers, and has no {reference}"), None),
            Err(e) => {
                let there = source::resolve(what, given, reference, true, cache, ctx).is_ok();
                let remedy = "Set https_proxy, or name a mirror or a folder: see --spack-source and --spack-packages.";
                unreachable(id, &tried, &e, there, remedy)
            }
        }
    };
    rows.push(git("online-spack", "Spack", &settings.spack_source, &settings.spack_reference, &catalog.spack));
    let reference = &settings.spack_packages_reference;
    let packages = &settings.spack_packages;
    let pin = resolve::toolchain(settings, &catalog).map_or_else(
        |_| catalog.spack_packages.clone(),
        |toolchain| resolve::recipes_pin(settings, &toolchain, &catalog),
    );
    rows.push(git("online-spack-packages", "Spack recipes", packages, reference, &pin));
    ctx.check()?;
    Ok(rows)
}

fn unreachable(id: &str, tried: &str, error: &dyn std::error::Error, there: bool, remedy: &str) -> Finding {
    let outcome = if there { Outcome::Warn } else { Outcome::Fail };
    let cached = if there { "; the cache has what is needed from there" } else { "" };
    finding(id, tried, outcome, format!("{error}{cached}"), Some(remedy.to_owned()))
}

fn registry(settings: &Settings, catalog: &Catalog, cache: &Cache, ctx: &Ctx) -> Result<Vec<Finding>> {
    const ID: &str = "online-registry";
    let image = match &settings.image {
        Some(image) => image.clone(),
        None => resolve::toolchain(settings, catalog)?.image,
    };
    let (reference, client) = resolve::image_reference(&image, settings, &variable, ctx)?;
    let Reference::Registry(of_registry) = &reference else {
        let meaning = "the image is a file or a folder".to_owned();
        return Ok(vec![finding(ID, &format!("asking for {image}"), Outcome::Ok, meaning, None)]);
    };
    let there = image::recall(cache, &reference, Platform::host()?)?.is_some();
    let reached = image::reach(of_registry, &client, ctx)?;
    // One place that answers is enough.
    let there = there || reached.iter().any(|place| place.answer.is_ok());
    let mut rows: Vec<_> = reached.iter().map(|place| answered(ID, place, there)).collect();
    let now = Timestamp::now();
    rows.extend(
        reached.iter().find_map(|place| place.answer.as_ref().ok().copied().flatten()).map(|date| skew(now, date)),
    );
    Ok(rows)
}

fn answered(id: &str, place: &Reached, there: bool) -> Finding {
    let tried = format!("asking for {}", place.place);
    match &place.answer {
        Ok(_) => finding(id, &tried, Outcome::Ok, "answers".into(), None),
        Err(e) => {
            let remedy = "Set https_proxy, configure a mirror (docs/registries.md), or carry the image here (`slurm-factory \
                          image save` and `image load`).";
            unreachable(id, &tried, e, there, remedy)
        }
    }
}

fn skew(ours: Timestamp, theirs: Timestamp) -> Finding {
    let seconds = ours.as_second() - theirs.as_second();
    let wrong = seconds.abs() > SKEW;
    let outcome = if wrong { Outcome::Warn } else { Outcome::Ok };
    let which = if seconds < 0 { "behind" } else { "ahead of" };
    let meaning = format!("{} s {which} the registry's", seconds.abs());
    let remedy = wrong.then(|| "Ask an administrator to set it:\n  timedatectl set-ntp true".to_owned());
    finding("clock-skew", "the clock against the registry's", outcome, meaning, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skew_is_told_both_ways() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(skew(at(1000), at(990)).outcome, Outcome::Ok);
        let behind = skew(at(1000), at(5000));
        assert!(behind.outcome == Outcome::Warn && behind.meaning == "4000 s behind the registry's", "{behind}");
        assert!(behind.remedy.is_some());
    }
}
