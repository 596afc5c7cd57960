//! How a package was made: an in-toto statement (github.com/in-toto/attestation, spec/v1) with SLSA's provenance predicate
//! (slsa.dev/spec/v1.0/provenance).
//!
//! ```text
//! subject                the archive and its bill of materials, by sum
//! buildDefinition
//!   externalParameters   what the user asked for
//!   internalParameters   the plan and the lockfile, by sum
//!   resolvedDependencies base image, Spack, recipes, source archives
//! runDetails.builder     this program and its version
//! ```
//!
//! No time, no host and no user is in it, so a build that is repeated has the same statement. It is signed as the archive
//! is, detached (docs/decisions/0014-attestations.md says why it is no DSSE envelope), and whoever trusts it has the sum
//! of the archive from it.

use super::manifest::{Manifest, Source};
use serde::Deserialize;
use serde_json::{Value, json};

const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// Names the meaning of the parameters. docs/formats.md describes them.
const BUILD_TYPE: &str = "urn:slurm-factory:build:v1";

/// The statement's bytes. `subjects` are names and SHA-256 sums.
pub(super) fn statement(manifest: &Manifest, subjects: &[(&str, &str)]) -> Result<Vec<u8>, serde_json::Error> {
    let facts = &manifest.facts;
    let subjects: Vec<_> =
        subjects.iter().map(|(name, sum)| json!({"name": name, "digest": {"sha256": sum}})).collect();
    let mut image = json!({"name": "image"});
    if let Some(reference) = published(&facts.image.reference) {
        image["uri"] = json!(format!("oci:{reference}"));
    }
    let mut dependencies = vec![with_digest(image, &facts.image.digest)];
    dependencies.push(repository(&facts.spack));
    dependencies.extend(facts.recipes.iter().map(repository));
    for package in &facts.packages {
        let Some(source) = &package.source else { continue };
        let mut entry = json!({"name": format!("source:{}@{}", package.name, package.version)});
        if let Some(url) = &source.url {
            entry["uri"] = json!(url);
        }
        if let Some(sha256) = &source.sha256 {
            entry["digest"]["sha256"] = json!(sha256);
        }
        if let Some(commit) = &source.commit {
            entry["digest"]["gitCommit"] = json!(commit);
        }
        dependencies.push(entry);
    }
    let mut asked = match &facts.slurm {
        Some(slurm) => json!({"slurm": slurm.requested}),
        None => json!({}),
    };
    asked["compiler"] = json!(facts.compiler.requested);
    asked["toolchain"] = json!(facts.toolchain);
    asked["target"] = json!(facts.target);
    asked["options"] = json!(facts.options);
    asked["specs"] = json!(facts.specs);
    let statement = json!({
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": asked,
                "internalParameters": {"plan_sha256": facts.plan_sha256, "lock_sha256": facts.lock_sha256},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {
                    "id": format!("urn:slurm-factory:builder:{}", facts.tool.version),
                    "version": {facts.tool.name.as_str(): facts.tool.version},
                },
                "metadata": {"invocationId": format!("urn:slurm-factory:plan:{}", facts.plan_sha256)},
            },
        },
    });
    let mut bytes = serde_json::to_vec_pretty(&statement)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// An image's name, unless it is a file or folder of the builder's: that means nothing to others.
pub(super) fn published(reference: &str) -> Option<&str> {
    let local = ["oci:", "oci-archive:", "docker-archive:", "dir:"].iter().any(|kind| reference.starts_with(kind));
    (!local).then_some(reference)
}

fn repository(source: &Source) -> Value {
    let mut entry = json!({"name": source.name});
    // One that lay on the builder's disk is a bare name there.
    if source.url.contains("://") {
        let reference = if source.reference.is_empty() { String::new() } else { format!("@{}", source.reference) };
        entry["uri"] = json!(format!("git+{}{reference}", source.url));
    }
    with_digest(entry, &source.revision)
}

/// A commit, or `sha256:` and a sum.
fn with_digest(mut entry: Value, revision: &str) -> Value {
    match revision.split_once(':') {
        Some((algorithm, sum)) => entry["digest"][algorithm] = json!(sum),
        None if !revision.is_empty() => entry["digest"]["gitCommit"] = json!(revision),
        None => {}
    }
    entry
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: std::collections::BTreeMap<String, String>,
}

/// Why a statement does not vouch for these files, if it does not.
pub(super) fn disagrees(bytes: &[u8], files: &[(&str, &str)]) -> Option<String> {
    let statement: Statement = match serde_json::from_slice(bytes) {
        Ok(statement) => statement,
        Err(error) => return Some(format!("it is no in-toto statement: {error}")),
    };
    if statement.kind != STATEMENT || statement.predicate != PREDICATE {
        return Some(format!("it is a {} with {}, not SLSA's provenance", statement.kind, statement.predicate));
    }
    files.iter().find_map(|(name, sum)| {
        // By sum, not by name: a file may have been renamed.
        let vouched = statement.subject.iter().any(|s| s.digest.get("sha256").map(String::as_str) == Some(*sum));
        (!vouched).then(|| format!("it does not name {name} with sha256 {sum}"))
    })
}
