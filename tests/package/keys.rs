//! Keys and signatures, against gpg.

use crate::util::*;
use slurm_factory::cache::Cache;
use slurm_factory::report::Ctx;
use slurm_factory::secret::Secret;
use slurm_factory::sign::{
    Algorithm, Created, Fingerprint, KeyStore, Keyring, SignError, SigningHasher, SigningKey, clearsign, generate,
    sign_reader,
};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const DATA: &[u8] = b"some data\nthat is signed\n";

/// gpg makes a key and gives its secret half and fingerprint.
fn gpg_key(gpg: &Gpg, algorithm: &str, usage: &str, expires: &str, passphrase: &str) -> (Fingerprint, Vec<u8>) {
    let user = format!("{algorithm} {usage} {passphrase}").trim().to_owned();
    run(gpg.command().args(["--pinentry-mode", "loopback", "--passphrase", passphrase, "--quick-gen-key"]).args([
        user.as_str(),
        algorithm,
        usage,
        expires,
    ]));
    let fingerprint = fingerprint_of(gpg, &format!("={user}"));
    let secret = export(gpg, &fingerprint, passphrase);
    (fingerprint, secret)
}

fn fingerprint_of(gpg: &Gpg, user: &str) -> Fingerprint {
    let listing = stdout(gpg.command().args(["--with-colons", "--list-keys", user]));
    let line = listing.lines().find(|l| l.starts_with("fpr:")).unwrap();
    line.split(':').nth(9).unwrap().parse().unwrap()
}

fn export(gpg: &Gpg, fingerprint: &Fingerprint, passphrase: &str) -> Vec<u8> {
    run(gpg
        .command()
        .args(["--pinentry-mode", "loopback", "--passphrase", passphrase, "--armor", "--export-secret-keys"])
        .arg(fingerprint.as_str()))
    .stdout
}

fn load(secret: &[u8], passphrase: Option<&str>) -> Result<SigningKey, SignError> {
    let passphrase = passphrase.map(|p| Secret::new(p.to_owned()));
    SigningKey::from_bytes("the key", &Secret::new(secret.to_vec()), passphrase.as_ref())
}

/// gpg must find our detached and clear-signed output good.
fn gpg_believes(gpg: &Gpg, key: &SigningKey) {
    let dir = tempfile::tempdir().unwrap();
    let (data, signature, clear) = (dir.path().join("data"), dir.path().join("data.asc"), dir.path().join("clear.asc"));
    std::fs::write(&data, DATA).unwrap();
    let (sum, made) = sign_reader(key, DATA).unwrap();
    let want = stdout(tool("sha256sum", "coreutils").arg(&data));
    assert!(want.starts_with(&sum), "{want} {sum}");
    std::fs::write(&signature, made.armored).unwrap();
    let status = gpg.verify(&signature, &data);
    assert!(status.contains("GOODSIG") && status.contains(key.signing_fingerprint().as_str()), "{status}");
    std::fs::write(&clear, clearsign(key, "{\"version\":3}\n- dash\n").unwrap()).unwrap();
    let status = stdout(gpg.command().args(["--status-fd", "1", "--verify"]).arg(&clear));
    assert!(status.contains("GOODSIG"), "{status}");
    let text = stdout(gpg.command().arg("--decrypt").arg(&clear));
    assert_eq!(text, "{\"version\":3}\n- dash\n");
}

#[test]
fn gpg_believes_what_our_own_keys_sign() {
    let gpg = Gpg::new();
    let made =
        generate("Site Builder", "builder@example.org", Some(Duration::from_hours(720)), Algorithm::Ed25519).unwrap();
    gpg.import(made.public.as_bytes());
    let key = SigningKey::from_bytes("it", &made.secret, None).unwrap();
    assert_eq!(key.fingerprint(), made.fingerprint);
    assert_eq!(key.signing_fingerprint(), made.fingerprint);
    assert_eq!(fingerprint_of(&gpg, "builder@example.org"), made.fingerprint);
    assert!(key.expires().is_some());
    gpg_believes(&gpg, &key);
    // And the secret half is one that gpg can use.
    gpg.import(made.secret.expose());
    let path = gpg.home.path().join("f");
    std::fs::write(&path, DATA).unwrap();
    run(gpg.command().args(["--detach-sign", "--armor"]).arg(&path));
    let mut keyring = Keyring::new();
    keyring.add_bytes("it", made.public.as_bytes()).unwrap();
    let signature = std::fs::read(gpg.home.path().join("f.asc")).unwrap();
    assert_eq!(keyring.verify_detached("f", &signature, DATA).unwrap().fingerprint, made.fingerprint);
}

#[test]
fn keys_that_gpg_made_sign() {
    let gpg = Gpg::new();
    for (algorithm, usage) in [
        ("ed25519", "cert,sign"),
        ("rsa2048", "cert,sign"),
        ("nistp256", "sign"),
        ("nistp384", "sign"),
        ("nistp521", "sign"),
    ] {
        let (fingerprint, secret) = gpg_key(&gpg, algorithm, usage, "never", "");
        let key = load(&secret, None).unwrap_or_else(|e| panic!("{algorithm}: {e}"));
        assert_eq!(key.fingerprint(), fingerprint, "{algorithm}");
        gpg_believes(&gpg, &key);
    }
}

#[test]
fn rsa_4096_is_made_and_believed() {
    let gpg = Gpg::new();
    let made = generate("Old", "old@example.org", None, Algorithm::Rsa4096).unwrap();
    gpg.import(made.public.as_bytes());
    gpg_believes(&gpg, &SigningKey::from_bytes("it", &made.secret, None).unwrap());
}

#[test]
fn the_newest_signing_subkey_is_chosen() {
    let gpg = Gpg::new();
    let (fingerprint, _) = gpg_key(&gpg, "ed25519", "cert", "never", "");
    let add = |usage: &str, algorithm: &str| {
        run(gpg.command().args(["--pinentry-mode", "loopback", "--passphrase", "", "--quick-add-key"]).args([
            fingerprint.as_str(),
            algorithm,
            usage,
            "never",
        ]));
    };
    add("encr", "cv25519");
    let error = load(&export(&gpg, &fingerprint, ""), None).unwrap_err();
    assert!(matches!(error, SignError::CannotSign { .. }), "{error}");
    add("sign", "ed25519");
    let secret = export(&gpg, &fingerprint, "");
    let key = load(&secret, None).unwrap();
    assert_eq!(key.fingerprint(), fingerprint);
    assert_ne!(key.signing_fingerprint(), fingerprint);
    gpg_believes(&gpg, &key);
    let mut keyring = Keyring::new();
    keyring.add_bytes("it", &secret).unwrap();
    let (_, signature) = sign_reader(&key, DATA).unwrap();
    let good = keyring.verify_detached("data", signature.armored.as_bytes(), DATA).unwrap();
    assert_eq!(good.fingerprint, fingerprint);
    assert_eq!(good.signing_fingerprint, key.signing_fingerprint());
    // `gpg --export-secret-subkeys` leaves a stub in place of the primary key: the subkey still signs.
    let subkeys = run(gpg.command().args(["--armor", "--export-secret-subkeys", fingerprint.as_str()])).stdout;
    gpg_believes(&gpg, &load(&subkeys, None).unwrap());
}

#[test]
fn what_is_wrong_with_a_key_is_said() {
    let gpg = Gpg::new();
    let (fingerprint, locked) = gpg_key(&gpg, "ed25519", "sign", "never", "open sesame");
    assert!(matches!(load(&locked, None), Err(SignError::NeedsPassphrase { .. })));
    let error = load(&locked, Some("wrong")).unwrap_err();
    assert!(matches!(error, SignError::WrongPassphrase { .. }), "{error}");
    let key = load(&locked, Some("open sesame")).unwrap();
    gpg_believes(&gpg, &key);

    let public = run(gpg.command().args(["--armor", "--export", fingerprint.as_str()])).stdout;
    assert!(matches!(load(&public, None), Err(SignError::NoSecret { .. })));

    let (_, expired) = gpg_key(&gpg, "ed25519", "sign", "seconds=1", "");
    std::thread::sleep(Duration::from_millis(2100));
    let error = load(&expired, None).unwrap_err();
    assert!(matches!(error, SignError::Expired { .. }), "{error}");

    let (fingerprint, secret) = gpg_key(&gpg, "rsa2048", "sign", "never", "");
    let revocation = gpg.home.path().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
    let text = std::fs::read_to_string(revocation).unwrap().replace(":-----BEGIN", "-----BEGIN");
    gpg.import(text.as_bytes());
    let error = load(&export(&gpg, &fingerprint, ""), None).unwrap_err();
    assert!(matches!(error, SignError::Revoked { .. }), "{error}");
    drop(secret);

    for garbage in [&b""[..], b"hello", b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nnonsense\n", &[0xff; 300]] {
        let error = load(garbage, None).unwrap_err();
        assert!(matches!(error, SignError::NotAKey { .. }), "{error}");
    }
    let two = [gpg_key(&gpg, "ed25519", "sign", "never", "").1, locked].concat();
    assert!(matches!(load(&two, None), Err(SignError::SeveralKeys { .. })));
}

#[test]
fn secrets_come_armored_binary_and_in_base64_and_from_private_files_only() {
    use base64::Engine;
    let gpg = Gpg::new();
    let (fingerprint, armored) = gpg_key(&gpg, "ed25519", "sign", "never", "");
    let binary = run(gpg.command().args([
        "--pinentry-mode",
        "loopback",
        "--passphrase",
        "",
        "--export-secret-keys",
        fingerprint.as_str(),
    ]))
    .stdout;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes();
    let mut lines = encode(&armored);
    lines.insert(70, b'\n');
    for form in [armored.clone(), binary.clone(), encode(&binary), lines] {
        assert_eq!(load(&form, None).unwrap().fingerprint(), fingerprint);
    }
    let path = gpg.home.path().join("key file.asc");
    std::fs::write(&path, &armored).unwrap();
    for (mode, good) in [(0o644, false), (0o640, false), (0o604, false), (0o600, true), (0o400, true)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        match SigningKey::from_file(&path, None) {
            Ok(_) => assert!(good, "{mode:o}"),
            Err(error) => assert!(!good && error.to_string().contains("chmod 600 '"), "{mode:o} {error}"),
        }
    }
}

#[test]
fn bad_signatures_are_told_apart() {
    let key = key();
    let mut trusted = Keyring::new();
    trusted.add_key(key);
    let (_, signature) = sign_reader(key, DATA).unwrap();
    let signature = signature.armored.into_bytes();
    let good = trusted.verify_detached("data", &signature, DATA).unwrap();
    assert_eq!((good.fingerprint, good.key_expired), (key.fingerprint(), None));

    let error = trusted.verify_detached("data", &signature, &b"other data"[..]).unwrap_err();
    assert!(
        matches!(&error, SignError::BadSignature { fingerprint, .. } if *fingerprint == key.fingerprint()),
        "{error}"
    );
    let error = Keyring::new().verify_detached("data", &signature, DATA).unwrap_err();
    assert!(
        matches!(&error, SignError::UnknownSigner { issuer, .. } if issuer == key.fingerprint().as_str()),
        "{error}"
    );
    assert!(matches!(Keyring::new().pinned(&[key.fingerprint()]), Err(SignError::PinNotTrusted { .. })));
    for garbage in [&b""[..], b"x", b"-----BEGIN PGP SIGNATURE-----\n\n=\n", key.public_armored().unwrap().as_bytes()] {
        let error = trusted.verify_detached("data", garbage, DATA).unwrap_err();
        assert!(matches!(error, SignError::NoSignature { .. }), "{error}");
    }
    let clear = clearsign(key, "text\n").unwrap();
    assert_eq!(trusted.verify_clearsigned("text", &clear).unwrap().0, "text");
    let error = trusted.verify_clearsigned("text", &clear.replace("text\n", "evil\n")).unwrap_err();
    assert!(matches!(error, SignError::BadSignature { .. }), "{error}");
    let error = trusted.verify_clearsigned("text", "text\n").unwrap_err();
    assert!(matches!(error, SignError::NoSignature { .. }), "{error}");
    assert!(matches!(clearsign(key, &"x".repeat(20_000)), Err(SignError::LongLine { line: 1, .. })));
}

#[test]
fn a_key_that_expired_since_still_vouches_and_one_that_had_expired_does_not() {
    let gpg = Gpg::new();
    let (_, secret) = gpg_key(&gpg, "ed25519", "sign", "seconds=3", "");
    let key = load(&secret, None).unwrap();
    let (_, signature) = sign_reader(&key, DATA).unwrap();
    let mut trusted = Keyring::new();
    trusted.add_key(&key);
    std::thread::sleep(Duration::from_millis(4200));
    let good = trusted.verify_detached("data", signature.armored.as_bytes(), DATA).unwrap();
    assert!(good.key_expired.is_some());
    // The unlocked key would still sign; whoever verifies does not take it.
    let (_, late) = sign_reader(&key, DATA).unwrap();
    let error = trusted.verify_detached("data", late.armored.as_bytes(), DATA).unwrap_err();
    assert!(matches!(error, SignError::BadKey { .. }), "{error}");
}

#[test]
fn clear_signed_text_has_the_form_that_spack_expects() {
    let text = clearsign(key(), "{\"a\":1}").unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "-----BEGIN PGP SIGNED MESSAGE-----");
    assert!(lines[1].starts_with("Hash: SHA"), "{text}");
    assert_eq!((lines[2], lines[3]), ("", "{\"a\":1}"));
    assert_eq!(lines[4], "-----BEGIN PGP SIGNATURE-----");
}

#[test]
fn hashing_in_pieces_is_hashing_at_once() {
    let mut hasher = SigningHasher::new(key()).unwrap();
    for byte in DATA {
        hasher.write_all(std::slice::from_ref(byte)).unwrap();
    }
    assert_eq!(hasher.length(), DATA.len() as u64);
    let (sum, _) = hasher.finish().unwrap();
    assert_eq!(sum, sign_reader(key(), DATA).unwrap().0);
}

fn store(dir: &Path) -> KeyStore {
    KeyStore::new(&Cache::open(dir).unwrap())
}

#[test]
fn the_first_use_makes_one_key_however_many_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store(dir.path()).load_or_create(&Ctx::silent(), "builder@host", None).unwrap()))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let created = results.iter().filter(|(_, created)| *created == Created::Yes).count();
    assert_eq!(created, 1);
    let first = results[0].0.fingerprint();
    assert!(results.iter().all(|(key, _)| key.fingerprint() == first));
    let keys = store(dir.path()).list().unwrap();
    assert_eq!(keys.len(), 1);
    let info = &keys[0];
    assert!(info.can_sign && info.default && info.has_secret && !info.protected, "{info:?}");
    assert_eq!(info.user_ids, ["builder@host"]);
    let mode = |name: &str| std::fs::metadata(dir.path().join("keys").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    assert_eq!(mode(&format!("{first}.asc")), 0o600);
    assert_eq!(mode(&format!("{first}.pub.asc")), 0o644);
}

#[test]
fn keys_are_imported_listed_and_exported() {
    let gpg = Gpg::new();
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let ctx = Ctx::silent();
    assert!(store.list().unwrap().is_empty());
    let (locked, secret) = gpg_key(&gpg, "ed25519", "sign", "never", "pw");
    let (public_only, _) = gpg_key(&gpg, "rsa2048", "sign", "2y", "");
    let public = run(gpg.command().args(["--export", public_only.as_str()])).stdout;
    assert_eq!(store.import(&ctx, "it", &Secret::new(public)).unwrap(), std::slice::from_ref(&public_only));
    assert_eq!(store.default_fingerprint().unwrap(), None, "a public key cannot be the default");
    assert_eq!(store.import(&ctx, "it", &Secret::new(secret)).unwrap(), std::slice::from_ref(&locked));
    assert_eq!(store.default_fingerprint().unwrap(), None, "which one signs is the caller's to say");
    store.set_default(&locked).unwrap();
    let list = store.list().unwrap();
    let info = |f: &Fingerprint| list.iter().find(|k| k.fingerprint == *f).unwrap().clone();
    assert!(info(&locked).protected && info(&locked).can_sign && info(&locked).default);
    let other = info(&public_only);
    assert!(
        !other.has_secret && !other.can_sign && other.expires.is_some() && other.algorithm == "RSA 2048",
        "{other:?}"
    );
    assert!(matches!(store.load(&locked, None), Err(SignError::NeedsPassphrase { .. })));
    store.load(&locked, Some(&Secret::new("pw".to_owned()))).unwrap();
    assert!(matches!(store.export_secret(&public_only), Err(SignError::NoSecret { .. })));
    let fresh = Gpg::new();
    fresh.import(store.export_public(&locked).unwrap().as_bytes());
    assert_eq!(fingerprint_of(&fresh, "=ed25519 sign pw"), locked);
    let secret = store.export_secret(&locked).unwrap();
    load(secret.expose(), Some("pw")).unwrap();
    // The public half comes again, without the secret: the secret stays.
    let public = run(gpg.command().args(["--export", locked.as_str()])).stdout;
    store.import(&ctx, "it", &Secret::new(public)).unwrap();
    store.export_secret(&locked).unwrap();
    assert_eq!(store.keyring().unwrap().fingerprints().len(), 2);
    let unknown: Fingerprint = "0".repeat(40).parse().unwrap();
    assert!(matches!(store.load(&unknown, None), Err(SignError::UnknownKey { .. })));
}
