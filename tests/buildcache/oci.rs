//! Binary caches in a real registry: what is written is what Spack's `oci://` mirrors have, signed beside it; every request fails
//! in turn; publishers at once lose nothing; a run that is killed is ended by the next.

use crate::faults::{Places, every_request};
use crate::proxy::{ALL, Fault, Proxy};
use crate::registry::{Registry, store};
use crate::support::{KILLS, ROOT, ROUNDS, World, all, count, kinds, names, only, report};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use slurm_factory::buildcache::check::Kind;
use slurm_factory::buildcache::{Wanted, excerpt, index, keys, prune};
use slurm_factory::publish::{self, Condition, Keep, Key, OCI_MANIFEST, OciStore, Put, Source, Store};
use slurm_factory::report::Ctx;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

fn tag_of(store: &dyn Store, name: &str) -> Key {
    let tags = store.list("tags/", &Ctx::silent()).unwrap();
    tags.into_iter().map(|e| e.key).find(|key| key.as_str().starts_with(&format!("tags/{name}-"))).unwrap()
}

fn manifest(store: &dyn Store, name: &str) -> Value {
    let (bytes, _) = store.read(&tag_of(store, name), 1 << 20, &Ctx::silent()).unwrap().unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// The configuration of a package's image.
pub fn configuration(store: &dyn Store, name: &str) -> Value {
    serde_json::from_slice(&blob(store, &manifest(store, name)["config"])).unwrap()
}

fn put_manifest(store: &dyn Store, at: &Key, manifest: &Value) {
    let how = Put { content_type: OCI_MANIFEST, keep: Keep::Briefly, condition: Condition::Always };
    store.put(at, manifest.to_string().as_bytes(), &how, &Ctx::silent()).unwrap();
}

fn blob_key(digest: &str) -> Key {
    publish::blob_key(digest.strip_prefix("sha256:").unwrap()).unwrap()
}

fn blob(store: &dyn Store, descriptor: &Value) -> Vec<u8> {
    let key = blob_key(descriptor["digest"].as_str().unwrap());
    let (bytes, _) = store.read(&key, 1 << 30, &Ctx::silent()).unwrap().unwrap();
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

#[test]
fn what_is_pushed_is_what_spack_has_in_registries_and_signed() {
    let (world, registry) = (World::new(), Registry::start());
    let store = store(registry.port, "site/cache", 1);
    store.check(&Ctx::silent()).unwrap();
    let pushed = world.push_to(&store, &all()).unwrap();
    assert_eq!((pushed.pushed.len(), pushed.there, pushed.index_changed), (3, 0, true));
    let tags: Vec<String> = store.list("tags/", &Ctx::silent()).unwrap().iter().map(|e| e.key.to_string()).collect();
    let (app, lib, tool) = (world.hash("app"), world.hash("lib"), world.hash("tool"));
    let expected = [
        // Spack's `ensure_valid_tag`: `=` and `/` have no place in a tag.
        format!("tags/app-git.x_y_2-{app}.spack"),
        "tags/index.spack".to_owned(),
        format!("tags/lib-0.5.16-{lib}.spack"),
        format!("tags/tool-1-{tool}.spack"),
    ];
    assert_eq!(tags, expected);
    // The last layer is the package's own, those before it are of what it links; the configuration is the spec.
    let (of_app, of_lib) = (manifest(&store, "app"), manifest(&store, "lib"));
    assert_eq!(of_app["layers"].as_array().unwrap().len(), 2);
    assert_eq!(of_app["layers"][0], of_lib["layers"][0]);
    let config: Value = serde_json::from_slice(&blob(&store, &of_app["config"])).unwrap();
    assert_eq!((&config["spec"]["nodes"][0]["hash"], &config["os"]), (&json!(app), &json!("linux")));
    assert_eq!(config["architecture"], "amd64");
    let path = config["config"]["Env"][0].as_str().unwrap();
    assert!(path.contains(&format!("/app-{app}/bin:")) && path.ends_with(":/bin:/usr/bin"), "{path}");
    for (layer, diff_id) in
        of_app["layers"].as_array().unwrap().iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap())
    {
        let mut tar = Vec::new();
        std::io::copy(&mut flate2::read::MultiGzDecoder::new(blob(&store, layer).as_slice()), &mut tar).unwrap();
        assert_eq!(*diff_id, format!("sha256:{}", hex::encode(Sha256::digest(&tar))));
    }
    let report = report(&store, &world.keyring(), false);
    assert_eq!((report.faults, report.notes, report.good.len(), report.unsigned), (vec![], vec![], 3, 0));
    assert_eq!(names(&store), ["app", "lib", "tool"]);
    // Another tool reads the same.
    let name = format!("docker://127.0.0.1:{}/site/cache:{}", registry.port, expected[2].trim_start_matches("tags/"));
    let out = Command::new("skopeo").args(["inspect", "--tls-verify=false", &name]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && said.contains(of_lib["layers"][0]["digest"].as_str().unwrap()), "{said}");

    // A second push asks for each manifest of a package once to see that it is there.
    let proxy = Proxy::before(registry.port);
    let again = world.push_to(&crate::registry::store(proxy.port, "site/cache", 1), &all()).unwrap();
    assert_eq!((again.pushed.len(), again.there, again.index_changed), (0, 3, false));
    let asked =
        |part: &str| proxy.heads().iter().filter(|head| head.starts_with("GET ") && head.contains(part)).count();
    assert_eq!(["/app-git", "/lib-0", "/tool-1"].map(asked), [1; 3], "{:?}", proxy.heads());
    // The tarball is that of any other cache.
    let folder = world.dir.path().join("folder");
    world.push(&folder, &all());
    let sum = of_lib["layers"][0]["digest"].as_str().unwrap();
    assert!(folder.join(blob_key(sum).as_str()).is_file());
    assert!(keys::offered(&store, &Ctx::silent()).unwrap_err().to_string().contains("no keys"));

    // What a build takes is right in a folder, too, where all that Spack sees is.
    let to = world.dir.path().join("excerpt");
    fs::create_dir(&to).unwrap();
    let wanted: BTreeMap<String, Wanted> =
        ["app", "lib"].map(|name| (world.hash(name), world.wanted(name))).into_iter().collect();
    let taken = excerpt(&store, &world.keyring(), &wanted, ROOT, &to, &Ctx::silent()).unwrap();
    assert_eq!((taken.taken, taken.faults), (BTreeSet::from([app, lib]), vec![]));
    assert_eq!(crate::kinds(&to, &world.keyring()), []);
}

#[test]
fn every_fault_is_named() {
    let (world, registry) = (World::new(), Registry::that_deletes());
    let keyring = world.keyring();
    let fresh = |name: &str| {
        let store = store(registry.port, name, 0);
        world.push_to(&store, &all()).unwrap();
        store
    };
    let changed = |name: &str, change: &dyn Fn(&OciStore, &mut Value)| {
        let store = fresh(name);
        let mut lib = manifest(&store, "lib");
        change(&store, &mut lib);
        put_manifest(&store, &tag_of(&store, "lib"), &lib);
        store
    };
    // As Spack writes it.
    let unsigned = changed("unsigned", &|_, lib| lib["annotations"] = json!({}));
    assert_eq!(kinds(&unsigned, &keyring), [Kind::NotSigned]);
    let allowed = report(&unsigned, &keyring, true);
    assert_eq!((allowed.faults, allowed.unsigned, allowed.good.len()), (vec![], 1, 3));
    // All of another package, signature and all.
    let swapped = changed("swapped", &|store, lib| *lib = manifest(store, "tool"));
    assert_eq!(kinds(&swapped, &keyring), [Kind::Substituted]);
    // The signature of what was signed, and another's tarball: Spack looks at the tarball alone.
    let lured = changed("lured", &|store, lib| lib["layers"] = manifest(store, "tool")["layers"].clone());
    assert_eq!(kinds(&lured, &keyring), [Kind::Substituted]);
    // Without a signature there is the archive's own word.
    let both = changed("both", &|store, lib| {
        lib["layers"] = manifest(store, "tool")["layers"].clone();
        lib["annotations"] = json!({});
    });
    assert_eq!(report(&both, &keyring, true).faults.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::BadTarball]);
    let nothing = changed("nothing", &|_, lib| lib["layers"] = json!([]));
    assert_eq!(kinds(&nothing, &keyring), [Kind::BadManifest]);
    assert_eq!(kinds(&fresh("foreign"), &World::new().keyring()), [Kind::ForeignKey; 3]);
    let gone = fresh("gone");
    gone.delete(&tag_of(&gone, "lib"), &Ctx::silent()).unwrap();
    assert_eq!(kinds(&gone, &keyring), [Kind::MissingManifest]);
    // An index that is none is made again of the tags, also by the next push.
    let index = changed("index", &|store, lib| {
        put_manifest(store, &Key::new("tags/index.spack").unwrap(), &manifest(store, "tool"));
        *lib = manifest(store, "lib");
    });
    assert_eq!(kinds(&index, &keyring), [Kind::BadIndex]);
    assert!(world.push_to(&index, &only("tool")).unwrap().index_changed);
    assert_eq!((kinds(&index, &keyring), names(&index).len()), (vec![], 3));

    // A blob that the registry lost, and one that it keeps wrong. Blobs are shared by all repositories of a registry.
    let store = fresh("disk");
    let lib = manifest(&store, "lib");
    let sum = lib["layers"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let mut bytes = fs::read(registry.blob(&sum)).unwrap();
    bytes[500] ^= 1;
    fs::write(registry.blob(&sum), bytes).unwrap();
    assert_eq!(kinds(&store, &keyring), [Kind::ChangedBlob]);
    fs::remove_file(registry.blob(&sum)).unwrap();
    assert_eq!(kinds(&store, &keyring), [Kind::MissingBlob]);
}

#[test]
fn what_fails_in_passing_is_tried_again_and_what_fails_for_good_is_ended_by_the_next_run() {
    let (world, registry) = (World::new(), Registry::start());
    let proxy = Proxy::before(registry.port);
    let place = |port, retries| move |name: &str| Box::new(store(port, name, retries)) as Box<dyn Store>;
    let places =
        Places { patient: &place(proxy.port, 2), impatient: &place(proxy.port, 0), direct: &place(registry.port, 0) };
    every_request(&world, &proxy, &places, Fault::Unavailable);
}

#[test]
fn a_large_blob_goes_in_pieces_and_goes_on_after_a_cut() {
    let registry = Registry::start();
    let proxy = Proxy::before(registry.port);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    let mut state = 7_u64;
    let mut noise = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33).to_le_bytes()
    };
    let bytes: Vec<u8> = (0..(40 << 20) / 8).flat_map(&mut noise).collect();
    fs::write(&path, &bytes).unwrap();
    let sha256 = hex::encode(Sha256::digest(&bytes));
    let source = Source { path: path.clone(), size: bytes.len() as u64, sha256: sha256.clone() };
    let key = blob_key(&format!("sha256:{sha256}"));
    let how = Put { content_type: "", keep: Keep::Forever, condition: Condition::Always };
    let ctx = Ctx::silent();
    store(proxy.port, "whole", 0).put_file(&key, &source, &how, &ctx).unwrap();
    let requests = proxy.heads();
    assert_eq!(requests.iter().filter(|head| head.starts_with("PATCH ")).count(), 3, "{requests:?}");
    for number in 0..requests.len() {
        for fault in ALL {
            fs::remove_file(registry.blob(&sha256)).unwrap();
            let name = format!("cut/{number}-{}", format!("{fault:?}").to_lowercase().split('(').next().unwrap());
            proxy.rule(move |n| (n == number).then_some(fault));
            let store = store(proxy.port, &name, 3);
            store.put_file(&key, &source, &how, &ctx).unwrap_or_else(|e| panic!("{fault:?} at {number}: {e}"));
            assert!(store.holds(&key, &source, &ctx).unwrap() && fs::read(registry.blob(&sha256)).unwrap() == bytes);
        }
    }
    // A download goes on as well.
    for fault in [Fault::CutAnswer, Fault::CutAfter] {
        proxy.rule(move |n| (n == 0).then_some(fault));
        let mut got = Vec::new();
        store(proxy.port, "whole", 3).download(&key, &mut got, &ctx).unwrap().unwrap();
        assert!(got == bytes, "{fault:?}");
    }
    // As often as it takes, when each time something came; else as often as is said.
    proxy.rule(|n| (n < 8).then_some(Fault::CutAnswer));
    let mut got = Vec::new();
    store(proxy.port, "whole", 1).download(&key, &mut got, &ctx).unwrap().unwrap();
    assert!(got == bytes && proxy.heads().len() == 9, "{:?}", proxy.heads());
    // A size that is not said is found out.
    proxy.rule(|_| None);
    proxy.hide_headers(&["content-length:"]);
    let silent = store(proxy.port, "whole", 0);
    assert_eq!(silent.size(&key, &ctx).unwrap(), Some(source.size));
    assert!(silent.holds(&key, &source, &ctx).unwrap());
    silent.put_file(&key, &source, &how, &ctx).unwrap();
    assert!(!proxy.heads().iter().any(|head| head.starts_with("POST ")), "it is there: {:?}", proxy.heads());
    fs::write(&path, b"another").unwrap();
    fs::remove_file(registry.blob(&sha256)).unwrap();
    let short = Source { size: 7, ..source };
    let error = store(registry.port, "other", 0).put_file(&key, &short, &how, &ctx).unwrap_err().to_string();
    assert!(error.contains("changed since it was made"), "{error}");
}

#[test]
fn publishers_at_once_lose_nothing() {
    let (world, registry) = (World::new(), Registry::start());
    for round in 0..count(ROUNDS, 10) {
        let name = format!("at-once/{round}");
        std::thread::scope(|scope| {
            for package in ["app", "lib", "tool"] {
                let (world, store) = (&world, store(registry.port, &name, 2));
                scope.spawn(move || world.push_to(&store, &only(package)).unwrap());
            }
        });
        let store = store(registry.port, &name, 0);
        assert_eq!(names(&store), ["app", "lib", "tool"], "round {round}");
        assert_eq!(kinds(&store, &world.keyring()), [], "round {round}");
    }
}

#[test]
fn removal_is_refused_where_the_registry_does_not_allow_it() {
    let world = World::new();
    let (ctx, later) = (Ctx::silent(), SystemTime::now() + Duration::from_mins(1));
    for (registry, allowed) in [(Registry::start(), false), (Registry::that_deletes(), true)] {
        let store = store(registry.port, "cache", 0);
        world.push_to(&store, &all()).unwrap();
        // One that cannot be used, so that no index names it.
        let mut lib = manifest(&store, "lib");
        lib["config"] = manifest(&store, "tool")["config"].clone();
        put_manifest(&store, &tag_of(&store, "lib"), &lib);
        index::rebuild(&store, &world.keyring(), &ctx).unwrap();
        assert_eq!(names(&store), ["app", "tool"]);
        let young = prune::prune(&store, SystemTime::now() - Duration::from_mins(1), false, &ctx).unwrap();
        assert_eq!(young.manifests.len(), 0, "it may be on its way into the index");
        let would = prune::prune(&store, later, true, &ctx).unwrap();
        assert_eq!(would.manifests, [tag_of(&store, "lib").to_string()]);
        match prune::prune(&store, later, false, &ctx) {
            Ok(_) => assert!(allowed),
            Err(e) => assert!(!allowed && e.to_string().contains("does not allow removal"), "{e}"),
        }
        assert_eq!(store.list("tags/lib", &ctx).unwrap().is_empty(), allowed);
    }
}

/// What another publisher pushes while a cache is pruned, at whatever moment, stays.
#[test]
fn a_push_during_a_prune_loses_nothing() {
    let (world, registry) = (Arc::new(World::new()), Registry::that_deletes());
    let proxy = Proxy::before(registry.port);
    let later = SystemTime::now() + Duration::from_mins(1);
    for number in 0..6 {
        let name = format!("prune/{number}");
        let direct = store(registry.port, &name, 0);
        world.push_to(&direct, &only("tool")).unwrap();
        let (other, at) = (world.clone(), name.clone());
        let port = registry.port;
        let came = Arc::new(AtomicBool::new(false));
        let told = came.clone();
        proxy.rule(move |n| {
            if n == number {
                other.push_to(&store(port, &at, 0), &only("lib")).unwrap();
                told.store(true, Ordering::SeqCst);
            }
            None
        });
        let pruned = prune::prune(&store(proxy.port, &name, 0), later, false, &Ctx::silent()).unwrap();
        let expected: &[&str] = if came.load(Ordering::SeqCst) { &["lib", "tool"] } else { &["tool"] };
        assert_eq!(pruned.manifests, [] as [String; 0], "pushed before request {number} of {:?}", proxy.heads());
        assert_eq!(
            (names(&direct), kinds(&direct, &world.keyring())),
            (expected.iter().map(|n| (*n).to_owned()).collect(), vec![])
        );
        assert!(number > 2 || came.load(Ordering::SeqCst), "{:?}", proxy.heads());
    }
}

/// The program with a cache of its own.
fn program(world: &World) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
    command.env("SLURM_FACTORY_CACHE_DIR", world.dir.path().join("program")).env("HOME", world.dir.path());
    for name in ["SSL_CERT_FILE", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "http_proxy", "https_proxy"] {
        command.env_remove(name);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn killed_at_any_time_and_the_next_run_ends_the_work() {
    let (world, registry) = (World::new(), Registry::start());
    let proxy = Proxy::before(registry.port);
    proxy.rule(|_| Some(Fault::Delay(Duration::from_millis(15))));
    let from = world.dir.path().join("store");
    let push = |name: &str| {
        let mut command = program(&world);
        command.args(["-q", "buildcache", "push", "--with-build-deps", "--from"]).arg(&from);
        command.args(["--to", &format!("oci://127.0.0.1:{}/{name}", proxy.port)]);
        command
    };
    let begin = Instant::now();
    let (code, said) = run(&mut push("whole"));
    assert_eq!(code, 0, "{said}");
    let whole = begin.elapsed();
    let check = |name: &str| {
        let mut command = program(&world);
        run(command.args(["-q", "buildcache", "check", &format!("oci://127.0.0.1:{}/{name}", registry.port)]))
    };
    let kills = count(KILLS, 4);
    let mut ended = 0;
    for round in 0..kills {
        let name = format!("kill/{round}");
        let mut child = push(&name).spawn().unwrap();
        std::thread::sleep(whole * u32::try_from(2 * round + 1).unwrap() / u32::try_from(2 * kills).unwrap());
        ended += usize::from(child.try_wait().unwrap().is_some());
        let _ = child.kill();
        child.wait().unwrap();
        let (_, said) = check(&name);
        assert!(!said.contains("faults") || said.contains("1 faults") && said.contains("there is no index"), "{said}");
        let (code, said) = run(&mut push(&name));
        assert_eq!(code, 0, "{said}");
        let (code, said) = check(&name);
        assert!(code == 0 && said.contains("3 packages, 3 of them good"), "{said}");
    }
    assert!(ended < kills, "every run had ended before it was killed");
}

/// A registry with TLS by an authority of its own and a login, as sites have it.
#[test]
fn a_login_and_a_private_authority_are_those_of_the_site() {
    let world = World::new();
    let dir = world.dir.path();
    let openssl = |args: &str| {
        let output = Command::new("openssl").args(args.split_whitespace()).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::write(dir.join("san"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
    openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem");
    // bcrypt of `pass word`, cost 4.
    fs::write(dir.join("users"), "me:$2b$04$zoIJXxi117D8ADlT4WzDZ.nRKBPYlzIohoHaJsptrBs.g2lVmQeha\n").unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let registry = Registry::with(
        "",
        &format!("  tls: {{certificate: {}, key: {}}}\n", at("server.pem"), at("server.key")),
        &format!("auth: {{htpasswd: {{realm: site, path: {}}}}}\n", at("users")),
    );
    let to = format!("oci://localhost:{}/site/cache", registry.port);
    let push = |auth: Option<&Path>, authority: bool| {
        let mut command = program(&world);
        command.args(["-v", "buildcache", "push", "--from"]).arg(dir.join("store")).args(["--to", &to]);
        // Loopback speaks plain text unless something says otherwise: a folder of certificates does.
        let certificates = dir.join(".config/containers/certs.d").join(format!("localhost:{}", registry.port));
        fs::create_dir_all(&certificates).unwrap();
        let _ = fs::remove_file(certificates.join("ca.crt"));
        if authority {
            fs::copy(dir.join("ca.pem"), certificates.join("ca.crt")).unwrap();
        }
        if let Some(auth) = auth {
            command.env("REGISTRY_AUTH_FILE", auth);
        }
        run(&mut command)
    };
    let login = |password: &str| {
        let path = dir.join("auth.json");
        let script = format!("import base64; print(base64.b64encode(b'me:{password}').decode())");
        let output = Command::new("python3").args(["-c", &script]).output().unwrap();
        let auth = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let host = format!("localhost:{}", registry.port);
        fs::write(&path, json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
        path
    };
    let (code, said) = push(Some(&login("pass word")), false);
    assert!(code == 6 && said.contains("certificate"), "{code} {said}");
    let (code, said) = push(None, true);
    assert!(code == 6 && said.contains("log in"), "{code} {said}");
    let (code, said) = push(Some(&login("wrongPassword")), true);
    assert!(code == 6 && said.contains("log in") && !said.contains("wrongPassword"), "{code} {said}");
    let (code, said) = push(Some(&login("pass word")), true);
    assert!(code == 0 && said.contains("login for localhost"), "{code} {said}");
}
