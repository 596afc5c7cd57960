//! Bill of materials and provenance, against the validators of their own projects.

use crate::util::*;
use slurm_factory::package::{Beside, Compression, Package, PackageError, Trust};
use slurm_factory::report::Ctx;
use slurm_factory::sign::{Algorithm, Keyring, Others, SignError, SigningKey, generate};
use std::path::Path;
use std::process::Command;

/// Runs Python with modules from PyPI.
fn python(script: &str, file: &Path) -> String {
    let output = tool("python3", "python3").args(["-c", script]).arg(file).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !error.contains("ModuleNotFoundError"),
        "{error}these tests need: pip install --break-system-packages spdx-tools in-toto-attestation"
    );
    assert!(output.status.success(), "{error}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_bill_of_materials_is_valid_spdx() {
    let made = make(Compression::GZIP);
    let script = r"
import sys
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
document = parse_file(sys.argv[1])
problems = validate_full_spdx_document(document)
assert not problems, problems
for package in document.packages:
    print(package.name, package.version, package.license_declared, [c.value for c in package.checksums])
for r in document.relationships:
    print(r.spdx_element_id, r.relationship_type.name, r.related_spdx_element_id)
";
    let said = python(script, &made.package.beside().sbom);
    for line in [
        format!("slurm 24-11-5-1 GPL-2.0-or-later ['{}']", "5".repeat(64)),
        "munge 0.5.16 NOASSERTION []".to_owned(),
        made.package.sha256().to_owned(),
        "SPDXRef-Archive CONTAINS SPDXRef-Package-abc".to_owned(),
        "SPDXRef-Package-abc DEPENDS_ON SPDXRef-Package-def".to_owned(),
        "SPDXRef-Package-ghi BUILD_DEPENDENCY_OF SPDXRef-Archive".to_owned(),
    ] {
        assert!(said.contains(&line), "no `{line}` in:\n{said}");
    }
    assert!(!said.contains("SPDXRef-Archive CONTAINS SPDXRef-Package-ghi"), "{said}");
}

#[test]
fn the_provenance_is_a_valid_statement_and_gpg_believes_it() {
    let made = make(Compression::GZIP);
    let beside = made.package.beside();
    let script = r#"
import json, sys
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2, resource_descriptor
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
text = json.load(open(sys.argv[1]))
# An unknown field is an error to both.
pb = json_format.ParseDict(text, statement_pb2.Statement())
Statement.copy_from_pb(pb).validate()
predicate = json_format.ParseDict(text["predicate"], provenance_pb2.Provenance())
for dependency in predicate.build_definition.resolved_dependencies:
    resource_descriptor.ResourceDescriptor.copy_from_pb(dependency).validate()
    print(dependency.name, dependency.uri, dict(dependency.digest))
assert predicate.build_definition.build_type and predicate.run_details.builder.id
print([(s.name, s.digest["sha256"]) for s in pb.subject])
"#;
    let said = python(script, &beside.provenance);
    for part in [
        made.package.sha256(),
        "software.tar.gz.spdx.json",
        "image oci:ubuntu:24.04 {'sha256': '0000",
        "spack  {'gitCommit': '1111",
        "source:slurm@24-11-5-1 https://example.org/slurm-24.11.5.tar.bz2 {'sha256': '5555",
        "source:munge@0.5.16 https://example.org/munge.git {'gitCommit': '6666",
    ] {
        assert!(said.contains(part), "no `{part}` in:\n{said}");
    }
    let gpg = Gpg::new();
    gpg.import(key().public_armored().unwrap().as_bytes());
    let status = gpg.verify(&beside.provenance_signature, &beside.provenance);
    assert!(status.contains("VALIDSIG"), "{status}");
    let sums = run(Command::new("sha256sum").arg("-c").arg(&beside.sums).current_dir(made.path().parent().unwrap()));
    assert_eq!(String::from_utf8_lossy(&sums.stdout).lines().count(), 3);
}

#[test]
fn the_same_package_has_the_same_attestations() {
    let [one, other] = [1, 4].map(|threads| make_with(Compression::GZIP, threads, |_| {}));
    let read = |path: &Path| std::fs::read(path).unwrap();
    let [a, b] = [&one, &other].map(|made| made.package.beside());
    assert_eq!(read(&a.sbom), read(&b.sbom));
    assert_eq!(read(&a.provenance), read(&b.provenance));
    assert_eq!(read(&a.sums), read(&b.sums));
    let text = String::from_utf8(read(&a.provenance)).unwrap() + &String::from_utf8(read(&a.sbom)).unwrap();
    for tell in [one.dir.path().to_str().unwrap(), "/tmp", "/root", "/home"] {
        assert!(!text.contains(tell), "{tell}");
    }
}

#[test]
fn attestations_that_do_not_belong_to_the_archive_are_refused() {
    let made = make(Compression::GZIP);
    let path = made.path();
    let beside = Beside::of(&path);
    let ctx = Ctx::silent();
    let mut trusted = Keyring::new();
    trusted.add_key(key());
    let open = || Package::open(&path, Trust::Require(&trusted), &ctx).map(|_| ());
    open().unwrap();
    let other = make_with(Compression::GZIP, 0, |tree| std::fs::write(tree.join("bin/more"), "x").unwrap());
    let theirs = other.package.beside();
    let keep: Vec<_> = [&beside.sbom, &beside.provenance, &beside.provenance_signature, &beside.sums]
        .map(|p| (p.clone(), std::fs::read(p).unwrap()))
        .into();
    let restore = || keep.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    // Another package's, signed by the right key, without sums that would tell.
    std::fs::remove_file(&beside.sums).unwrap();
    std::fs::copy(&theirs.provenance, &beside.provenance).unwrap();
    std::fs::copy(&theirs.provenance_signature, &beside.provenance_signature).unwrap();
    assert!(matches!(open(), Err(PackageError::Attestation { .. })));
    restore();
    std::fs::remove_file(&beside.sums).unwrap();
    std::fs::copy(&theirs.sbom, &beside.sbom).unwrap();
    assert!(matches!(open(), Err(PackageError::Attestation { .. })));
    restore();
    // Changed, with sums that tell and with sums that go along.
    let text = String::from_utf8(std::fs::read(&beside.provenance).unwrap()).unwrap();
    std::fs::write(&beside.provenance, text.replace("noble", "jammy")).unwrap();
    assert!(matches!(open(), Err(PackageError::Attestation { .. })));
    std::fs::remove_file(&beside.sums).unwrap();
    assert!(matches!(open(), Err(PackageError::Sign(SignError::BadSignature { .. }))));
    restore();
    std::fs::remove_file(&beside.provenance_signature).unwrap();
    assert!(matches!(open(), Err(PackageError::NotSigned { .. })));
    restore();
    // None of them is missed.
    for file in [&beside.sbom, &beside.provenance] {
        std::fs::remove_file(file).unwrap();
    }
    open().unwrap();
    restore();
    // All of it under another name.
    let renamed = path.with_file_name("site.tar.gz");
    let theirs = Beside::of(&renamed);
    for (from, to) in [
        (&path, &renamed),
        (&beside.sums, &theirs.sums),
        (&beside.signature, &theirs.signature),
        (&beside.manifest, &theirs.manifest),
        (&beside.sbom, &theirs.sbom),
        (&beside.provenance, &theirs.provenance),
        (&beside.provenance_signature, &theirs.provenance_signature),
    ] {
        std::fs::copy(from, to).unwrap();
    }
    Package::open(&renamed, Trust::Require(&trusted), &ctx).unwrap();
    std::fs::write(&theirs.sbom, "{}").unwrap();
    let changed = Package::open(&renamed, Trust::Require(&trusted), &ctx);
    assert!(matches!(changed, Err(PackageError::Attestation { .. })));
    // Who signs the package signs the statement.
    let fresh = slurm_factory::sign::generate("Other", "", None, slurm_factory::sign::Algorithm::Ed25519).unwrap();
    let second = slurm_factory::sign::SigningKey::from_bytes("it", &fresh.secret, None).unwrap();
    made.package.sign(&second, Others::Keep, &ctx).unwrap();
    trusted.add_key(&second);
    Package::open(&path, Trust::RequireAll(&trusted), &ctx).unwrap();
}

#[test]
fn sizes_are_told_by_spack_package() {
    let made = make(Compression::GZIP);
    let home = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
        answer(command.env_clear().env("HOME", home.path()).args(args))
    };
    let path = made.path().display().to_string();
    let table = ask(&["package", "--sizes", &path]);
    assert_eq!(table.code, 0, "{}", table.err);
    let rows: Vec<&str> = table.out.lines().collect();
    assert!(
        rows[1].starts_with("slurm ") && rows[1].contains("8.58 MiB") && rows[1].contains("4.77 MiB"),
        "{}",
        table.out
    );
    assert!(rows[3].starts_with("pkgconf ") && rows[3].trim_end().ends_with('-'), "{}", table.out);
    let json: serde_json::Value = serde_json::from_str(&ask(&["package", "--sizes", "--json", &path]).out).unwrap();
    assert_eq!(json["packages"][1]["packaged"], 200);
    assert_eq!(json["total"], made.package.manifest().totals.bytes);
    // By its plan, and after another plan has put its own package under the same name.
    let builds = home.path().join(".slurm-factory/builds");
    std::fs::create_dir_all(builds.join(".plans")).unwrap();
    for file in
        std::fs::read_dir(made.path().parent().unwrap()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file())
    {
        std::fs::copy(&file, builds.join(file.file_name().unwrap())).unwrap();
    }
    let archive = made.path().file_name().unwrap().to_str().unwrap().to_owned();
    for plan in ["4".repeat(64), "7".repeat(64)] {
        let record = serde_json::json!({ "archive": archive }).to_string();
        std::fs::write(builds.join(".plans").join(format!("{plan}.json")), record).unwrap();
    }
    let by_plan = ask(&["package", "--sizes", "444444"]);
    assert_eq!((by_plan.code, &by_plan.out), (0, &table.out), "{}", by_plan.err);
    let gone = ask(&["package", "--sizes", "777777"]);
    assert!(gone.code == 2 && gone.err.contains("another plan"), "{} {}", gone.code, gone.err);
    let unknown = ask(&["package", "--sizes", "0123456789"]);
    assert!(unknown.code == 2 && unknown.err.contains("0123456789"), "{} {}", unknown.code, unknown.err);
}

/// Whoever opens a package learns what lay beside it, and who else signed.
#[test]
fn what_lay_beside_is_told() {
    let written = make(Compression::GZIP);
    let (path, ctx) = (written.path(), Ctx::silent());
    let beside = Beside::of(&path);
    let mut trusted = Keyring::new();
    trusted.add_key(key());
    let open = |trust: Trust<'_>| Package::open(&path, trust, &ctx).unwrap().0;
    let package = open(Trust::Require(&trusted));
    let [bill, statement] = package.attested() else { panic!("{:?}", package.attested()) };
    assert!(bill.file.ends_with(".spdx.json") && statement.file.ends_with(".provenance.json"), "{package:?}");
    for one in [bill, statement] {
        assert_eq!((one.signers.as_slice(), one.strangers.len()), (&trusted.fingerprints()[..], 0));
    }
    assert!(package.strangers().is_empty());
    assert!(open(Trust::Skip).attested().iter().all(|one| one.signers.is_empty()), "nobody asked who signed");

    // A second signature, by a key that nobody here knows.
    let made = generate("Somebody else", "else@example.org", None, Algorithm::Ed25519).unwrap();
    let other = SigningKey::from_bytes("another key", &made.secret, None).unwrap();
    package.sign(&other, Others::Keep, &ctx).unwrap();
    let package = open(Trust::Require(&trusted));
    let [stranger] = package.strangers() else { panic!("{:?}", package.strangers()) };
    assert!(other.fingerprint().as_str().eq_ignore_ascii_case(stranger), "{stranger}");
    assert_eq!(package.attested()[1].strangers, package.strangers());
    for file in [&beside.sbom, &beside.provenance, &beside.sums] {
        std::fs::remove_file(file).unwrap();
    }
    assert!(open(Trust::Require(&trusted)).attested().is_empty());
}
