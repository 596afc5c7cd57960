//! A package in a real registry: one artifact, which other clients take apart; every request fails in turn.

use crate::program::Program;
use crate::proxy::{ALL, Fault, Proxy};
use crate::registry::{Registry, store};
use crate::world::{keyring, package, publish_to};
use serde_json::Value;
use sha2::{Digest, Sha256};
use slurm_factory::publish::{Condition, Keep, Key, OCI_MANIFEST, Put, Store, blob_key};
use slurm_factory::report::Ctx;
use slurm_factory::workflows::publish::{self, Options, PublishError};
use std::path::Path;
use std::process::Command;

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn manifest(store: &dyn Store, package: &Path) -> Option<Value> {
    let key = Key::new(format!("tags/{}", file_name(package))).unwrap();
    let found = store.read(&key, 1 << 20, &Ctx::silent()).unwrap();
    found.map(|(bytes, _)| serde_json::from_slice(&bytes).unwrap())
}

/// All of the package is there, or nothing is. Returns how many files.
fn assert_whole(store: &dyn Store, package: &Path) -> usize {
    let Some(manifest) = manifest(store, package) else { return 0 };
    let layers = manifest["layers"].as_array().unwrap();
    for layer in layers {
        let sum = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
        let key = blob_key(sum).unwrap();
        let mut bytes = Vec::new();
        store.download(&key, &mut bytes, &Ctx::silent()).unwrap().expect("a blob that is named is not there");
        assert_eq!(hex::encode(Sha256::digest(&bytes)), sum);
        let title = layer["annotations"]["org.opencontainers.image.title"].as_str().unwrap();
        if title.starts_with(file_name(package)) {
            assert!(bytes == std::fs::read(package.parent().unwrap().join(title)).unwrap(), "{title}");
        }
    }
    layers.len()
}

#[test]
fn a_package_is_one_artifact_that_others_copy() {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let path = package(dir.path(), "25.11", 31, 3 << 20);
    let program = Program::bare();
    let to = format!("oci://127.0.0.1:{}/site/packages", registry.port);
    let package_text = path.to_str().unwrap();
    let dry = program.say(&["publish", package_text, "--to", &to, "--dry-run"]);
    assert!(dry.code == 0 && dry.out.contains("would be sent") && dry.out.contains("new"), "{} {}", dry.out, dry.err);
    let there = store(registry.port, "site/packages", 0);
    assert_eq!(assert_whole(&there, &path), 0, "a dry run wrote");
    let answer = program.say(&["publish", package_text, "--to", &to, "--verify-upload"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    // The key that signed is with it.
    assert!(assert_whole(&there, &path) >= 5);
    let again = program.say(&["publish", package_text, "--to", &to]);
    assert!(again.code == 0 && again.out.contains("0 bytes"), "{} {}", again.out, again.err);

    // By another client.
    let copy = dir.path().join("copy");
    let from = format!("docker://127.0.0.1:{}/site/packages:{}", registry.port, file_name(&path));
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--src-tls-verify=false", &from]).arg(format!("dir:{}", copy.display()));
    let output = skopeo.output().expect("skopeo is missing; these tests need it: apt-get install skopeo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(&path).unwrap();
    assert!(std::fs::read(copy.join(hex::encode(Sha256::digest(&bytes)))).unwrap() == bytes);

    // Another package of the same name is not put in its place unless that is said.
    let other = tempfile::tempdir().unwrap();
    let changed = package(other.path(), "25.11", 32, 1 << 20);
    let changed_text = changed.to_str().unwrap();
    for more in [&["--dry-run"][..], &[]] {
        let args = [&["publish", changed_text, "--to", &to], more].concat();
        let refused = program.say(&args);
        assert!(refused.code == 6 && refused.err.contains("--replace"), "{} {}", refused.code, refused.err);
    }
    assert!(assert_whole(&there, &path) >= 5);
    let replaced = program.say(&["publish", changed_text, "--to", &to, "--replace"]);
    assert_eq!(replaced.code, 0, "{}", replaced.err);
    assert!(assert_whole(&there, &changed) >= 5);
    // What is no package is left alone.
    let key = Key::new(format!("tags/{}", file_name(&path))).unwrap();
    let how = Put { content_type: OCI_MANIFEST, keep: Keep::Briefly, condition: Condition::Always };
    let mut image = manifest(&there, &changed).unwrap();
    image["artifactType"] = "something/else".into();
    there.put(&key, image.to_string().as_bytes(), &how, &Ctx::silent()).unwrap();
    let refused = program.say(&["publish", package_text, "--to", &to, "--replace"]);
    assert!(refused.code == 6 && refused.err.contains("something else has this tag"), "{}", refused.err);
}

#[test]
fn every_request_fails_once_and_for_good() {
    let registry = Registry::start();
    let proxy = Proxy::before(registry.port);
    let dir = tempfile::tempdir().unwrap();
    let path = package(dir.path(), "25.11", 33, 1 << 20);
    publish_to(&store(proxy.port, "count", 0), &path).unwrap();
    let requests = proxy.heads().len();
    assert!(requests > 20, "{requests}");
    for (number, fault) in (0..requests).zip(ALL.iter().cycle()) {
        let name = format!("once/{number}");
        proxy.rule(move |n| (n == number).then_some(*fault));
        publish_to(&store(proxy.port, &name, 2), &path)
            .unwrap_or_else(|e| panic!("{fault:?} at request {number} of {requests}: {e}"));
        assert!(assert_whole(&store(registry.port, &name, 0), &path) >= 5, "{fault:?} at request {number}");
    }
    for number in 0..requests {
        let name = format!("for-good/{number}");
        let fault = [Fault::CutBefore, Fault::CutAfter, Fault::Unavailable][number % 3];
        proxy.rule(move |n| (n >= number).then_some(fault));
        let (through, direct) = (store(proxy.port, &name, 0), store(registry.port, &name, 0));
        let _ = publish_to(&through, &path);
        assert_whole(&direct, &path);
        proxy.rule(|_| None);
        publish_to(&through, &path).unwrap_or_else(|e| panic!("after {fault:?} from request {number}: {e}"));
        assert!(assert_whole(&direct, &path) >= 5);
    }
}

#[test]
fn of_two_publishers_of_one_name_one_wins() {
    let registry = Registry::start();
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let packages: Vec<_> =
        dirs.iter().zip(34..).map(|(dir, seed)| package(dir.path(), "25.11", seed, 1 << 20)).collect();
    for round in 0..5 {
        let name = format!("two/{round}");
        let results: Vec<Result<(), PublishError>> = std::thread::scope(|scope| {
            let runs: Vec<_> = packages
                .iter()
                .map(|path| {
                    let store = store(registry.port, &name, 1);
                    scope.spawn(move || {
                        let ctx = Ctx::silent();
                        let options = Options { verify: true, ..Options::default() };
                        let outgoing = publish::look(path, &keyring(), &store, options, &ctx)?;
                        publish::send(&outgoing, &store, options, &ctx)
                    })
                })
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let direct = store(registry.port, &name, 0);
        let found = manifest(&direct, &packages[0]).unwrap()["layers"][0]["digest"].as_str().unwrap().to_owned();
        let own = |path: &Path| format!("sha256:{}", hex::encode(Sha256::digest(std::fs::read(path).unwrap())));
        let winner = packages.iter().find(|path| own(path) == found).expect("half of each");
        assert!(assert_whole(&direct, winner) >= 5);
        assert!(results.iter().any(Result::is_ok), "nobody was told that it is there: {results:?}");
        for error in results.into_iter().filter_map(Result::err) {
            assert!(matches!(error, PublishError::Taken { .. }), "{error}");
        }
    }
}
