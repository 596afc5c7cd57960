//! The bill of materials beside a package: SPDX 2.3 in JSON (spdx.github.io/spdx-spec/v2.3, ISO/IEC 5962 is 2.2.1 of it).
//!
//! ```text
//! DOCUMENT --DESCRIBES--> the archive --CONTAINS--> slurm, munge, ...
//!                                       slurm --DEPENDS_ON--> munge         (what is linked or run)
//!                                       pkgconf --BUILD_DEPENDENCY_OF--> the archive
//! ```
//!
//! It is made from the manifest and the archive's sum alone, so the same package always has the same one. What is taken
//! from the host (glibc) is not in the package and not listed. A licence that is no SPDX expression is quoted in a
//! comment, not made into one.

use super::manifest::{Installed, Manifest};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const NOTHING_SAID: &str = "NOASSERTION";

/// The document's bytes. `archive` is the archive's name.
pub(super) fn document(manifest: &Manifest, archive: &str, sha256: &str) -> Result<Vec<u8>, serde_json::Error> {
    let facts = &manifest.facts;
    let known: BTreeSet<&str> = facts.packages.iter().map(|p| p.hash.as_str()).collect();
    let image = super::provenance::published(&facts.image.reference).unwrap_or("an image");
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-Archive",
        "name": archive,
        "versionInfo": facts.release(),
        "packageFileName": archive,
        "primaryPackagePurpose": "ARCHIVE",
        "supplier": NOTHING_SAID,
        "downloadLocation": NOTHING_SAID,
        "filesAnalyzed": false,
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "licenseConcluded": NOTHING_SAID,
        "licenseDeclared": NOTHING_SAID,
        "copyrightText": NOTHING_SAID,
        "sourceInfo": format!(
            "Built by {} {} in {} ({}) with GCC {} for {}", facts.tool.name, facts.tool.version, image,
            facts.image.digest, facts.compiler.release, facts.target
        ),
    })];
    packages.extend(facts.packages.iter().map(package));
    let mut relationships = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Archive")];
    for package in &facts.packages {
        if package.build_only {
            relationships.push(relation(&id(&package.hash), "BUILD_DEPENDENCY_OF", "SPDXRef-Archive"));
        } else {
            relationships.push(relation("SPDXRef-Archive", "CONTAINS", &id(&package.hash)));
        }
        for dependency in package.dependencies.iter().filter(|d| known.contains(d.as_str())) {
            relationships.push(relation(&id(&package.hash), "DEPENDS_ON", &id(dependency)));
        }
    }
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": archive,
        // A name, not an address: nothing has to be there.
        "documentNamespace": format!("urn:slurm-factory:spdx:sha256:{sha256}"),
        "creationInfo": {
            "created": time(facts.created),
            "creators": [format!("Tool: {}-{}", facts.tool.name, facts.tool.version)],
        },
        "packages": packages,
        "relationships": relationships,
    });
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn package(package: &Installed) -> Value {
    let source = package.source.clone().unwrap_or_default();
    let location = match (source.url, &source.commit) {
        (Some(url), Some(commit)) => format!("git+{url}@{commit}"),
        (Some(url), None) => url,
        (None, _) => NOTHING_SAID.to_owned(),
    };
    let license = package.license.as_deref().unwrap_or_default();
    let is_expression = spdx::Expression::parse(license).is_ok();
    let mut entry = json!({
        "SPDXID": id(&package.hash),
        "name": package.name,
        "versionInfo": package.version,
        "supplier": NOTHING_SAID,
        "downloadLocation": location,
        "filesAnalyzed": false,
        "licenseConcluded": NOTHING_SAID,
        "licenseDeclared": if is_expression { license } else { NOTHING_SAID },
        "copyrightText": NOTHING_SAID,
        "sourceInfo": format!("Spack recipe {}.{}, DAG hash {}", package.namespace, package.name, package.hash),
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": format!("pkg:generic/{}@{}", percent(&package.name), percent(&package.version)),
        }],
    });
    if let Some(sha256) = source.sha256 {
        entry["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": sha256}]);
    }
    if !is_expression && !license.is_empty() {
        entry["licenseComments"] = json!(format!("the recipe says: {license}"));
    }
    entry
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

/// An identifier may hold letters, digits, `.` and `-`.
fn id(hash: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("SPDXRef-Package-{}", hash.chars().map(plain).collect::<String>())
}

/// What a package URL's parts may hold as they are.
fn percent(text: &str) -> String {
    const MEANT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~');
    utf8_percent_encode(text, MEANT).to_string()
}

/// Seconds since 1970 as SPDX and RFC 3339 write them.
fn time(seconds: u64) -> String {
    i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok()).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_that_are_none_are_quoted_and_identifiers_are_plain() {
        let entry = |license: &str| {
            package(&Installed { license: Some(license.into()), hash: "a_b/c".into(), ..Installed::default() })
        };
        assert_eq!(entry("GPL-2.0-or-later")["licenseDeclared"], "GPL-2.0-or-later");
        assert_eq!(entry("Apache-2.0 WITH LLVM-exception")["licenseDeclared"], "Apache-2.0 WITH LLVM-exception");
        assert_eq!(entry("custom")["licenseDeclared"], NOTHING_SAID);
        assert_eq!(entry("custom")["licenseComments"], "the recipe says: custom");
        assert_eq!(entry("MIT")["SPDXID"], "SPDXRef-Package-a-b-c");
        assert_eq!(time(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(percent("c++ 1"), "c%2B%2B%201");
    }
}
