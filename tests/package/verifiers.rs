//! What we sign, in the hands of verifiers other than gpg 2.2; and gpg-agent, which signs for us.

use crate::util::*;
use slurm_factory::package::{Compression, Package, Trust};
use slurm_factory::report::{Ctx, Interrupt};
use slurm_factory::sign::{
    Agent, Algorithm, Fingerprint, Keyring, SignError, SigningKey, clearsign, generate, sign_reader,
};
use std::path::{Path, PathBuf};
use std::process::Command;

const DATA: &[u8] = b"some data\nthat is signed\n";

/// A key of each kind that we make, its public half, a file and its signatures in a folder.
struct Case {
    dir: tempfile::TempDir,
    key: SigningKey,
}

impl Case {
    fn new(algorithm: Algorithm) -> Self {
        let dir = tempfile::Builder::new().prefix("sig").tempdir_in("/tmp").unwrap();
        let made = generate("Site", "site@example.org", None, algorithm).unwrap();
        let key = SigningKey::from_bytes("it", &made.secret, None).unwrap();
        std::fs::write(dir.path().join("key.asc"), &made.public).unwrap();
        std::fs::write(dir.path().join("data"), DATA).unwrap();
        std::fs::write(dir.path().join("data.asc"), sign_reader(&key, DATA).unwrap().1.armored).unwrap();
        std::fs::write(dir.path().join("clear.asc"), clearsign(&key, "{\"version\":3}\n").unwrap()).unwrap();
        Self { dir, key }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn sq_believes_what_we_sign_and_refuses_what_was_changed() {
    for algorithm in [Algorithm::Ed25519, Algorithm::Rsa4096] {
        let case = Case::new(algorithm);
        let verify = |data: &Path| {
            let mut sq = tool("sq", "sq");
            sq.args(["verify", "--signer-cert"]).arg(case.path("key.asc"));
            sq.arg("--detached").arg(case.path("data.asc")).arg(data);
            sq
        };
        run(&mut verify(&case.path("data")));
        std::fs::write(case.path("other"), b"other data").unwrap();
        assert!(!verify(&case.path("other")).output().unwrap().status.success());
        let text = stdout(
            tool("sq", "sq").args(["verify", "--signer-cert"]).arg(case.path("key.asc")).arg(case.path("clear.asc")),
        );
        assert_eq!(text.trim_end(), "{\"version\":3}");
        // sqv, which package managers call.
        let answer = stdout(
            tool("sqv", "sqv")
                .arg("--keyring")
                .arg(case.path("key.asc"))
                .arg(case.path("data.asc"))
                .arg(case.path("data")),
        );
        assert!(answer.contains(case.key.fingerprint().as_str()), "{answer}");
    }
}

#[test]
fn gpgv_and_rpm_take_our_keys() {
    for algorithm in [Algorithm::Ed25519, Algorithm::Rsa4096] {
        let case = Case::new(algorithm);
        let gpg = Gpg::new();
        let ring = case.path("ring.gpg");
        run(gpg.command().args(["--dearmor", "-o"]).arg(&ring).arg(case.path("key.asc")));
        let status = stdout(
            tool("gpgv", "gpgv")
                .args(["--status-fd", "1", "--keyring"])
                .arg(&ring)
                .arg(case.path("data.asc"))
                .arg(case.path("data")),
        );
        assert!(status.contains("VALIDSIG"), "{status}");
        // rpm parses a key with the code that it verifies packages with.
        let db = case.path("rpmdb");
        run(tool("rpm", "rpm").arg("--dbpath").arg(&db).arg("--initdb"));
        run(tool("rpmkeys", "rpm").arg("--dbpath").arg(&db).arg("--import").arg(case.path("key.asc")));
        let keys =
            stdout(tool("rpm", "rpm").arg("--dbpath").arg(&db).args(["-q", "gpg-pubkey", "--qf", "%{SUMMARY}\n"]));
        assert!(keys.contains("site@example.org"), "{keys}");
    }
}

#[test]
fn no_signature_of_ours_uses_sha_1() {
    for algorithm in [Algorithm::Ed25519, Algorithm::Rsa4096] {
        let case = Case::new(algorithm);
        let gpg = Gpg::new();
        for name in ["data.asc", "key.asc"] {
            let packets = stdout(gpg.command().arg("--list-packets").arg(case.path(name)));
            let digests: Vec<_> = packets.lines().filter(|line| line.contains("digest algo")).collect();
            assert!(!digests.is_empty(), "{packets}");
            // 8 is SHA-256, 10 is SHA-512 (RFC 9580, section 9.5).
            for line in digests {
                assert!(line.contains("digest algo 8,") || line.contains("digest algo 10,"), "{line}");
            }
        }
    }
}

fn agent(gpg: &Gpg) -> Agent {
    let home = gpg.home.path().display().to_string();
    Agent { env: vec![("GNUPGHOME".into(), home)], interrupt: Interrupt::new() }
}

/// Makes a key in gpg; its secret never leaves there.
fn in_gpg(gpg: &Gpg, algorithm: &str, usage: &str, expires: &str, passphrase: &str) -> Fingerprint {
    let user = format!("{algorithm} {usage} in the agent");
    run(gpg.command().args(["--pinentry-mode", "loopback", "--passphrase", passphrase, "--quick-gen-key"]).args([
        user.as_str(),
        algorithm,
        usage,
        expires,
    ]));
    let listing = stdout(gpg.command().args(["--with-colons", "--list-keys", &format!("={user}")]));
    listing.lines().find(|l| l.starts_with("fpr:")).unwrap().split(':').nth(9).unwrap().parse().unwrap()
}

#[test]
fn gpg_agent_signs_for_us() {
    for (algorithm, usage) in [("ed25519", "sign"), ("rsa2048", "sign"), ("nistp256", "sign"), ("nistp384", "sign")] {
        let gpg = Gpg::new();
        let fingerprint = in_gpg(&gpg, algorithm, usage, "never", "");
        let key = SigningKey::from_agent(&agent(&gpg), &fingerprint).unwrap_or_else(|e| panic!("{algorithm}: {e}"));
        assert_eq!(key.fingerprint(), fingerprint);
        let dir = tempfile::tempdir().unwrap();
        let [data, detached, clear] = ["data", "data.asc", "clear.asc"].map(|name| dir.path().join(name));
        std::fs::write(&data, DATA).unwrap();
        std::fs::write(&detached, sign_reader(&key, DATA).unwrap().1.armored).unwrap();
        assert!(gpg.verify(&detached, &data).contains("VALIDSIG"), "{algorithm}");
        std::fs::write(&clear, clearsign(&key, "text\n").unwrap()).unwrap();
        assert_eq!(stdout(gpg.command().arg("--decrypt").arg(&clear)), "text\n");
        let mut keyring = Keyring::new();
        keyring.add_key(&key);
        keyring.verify_detached("data", &std::fs::read(&detached).unwrap(), DATA).unwrap();
    }
}

#[test]
fn gpg_agent_s_subkey_signs_and_what_it_cannot_do_is_said_at_once() {
    let gpg = Gpg::new();
    let agent = agent(&gpg);
    let fingerprint = in_gpg(&gpg, "ed25519", "cert", "never", "");
    let error = SigningKey::from_agent(&agent, &fingerprint).unwrap_err();
    assert!(matches!(error, SignError::CannotSign { .. }), "{error}");
    run(gpg.command().args(["--pinentry-mode", "loopback", "--passphrase", "", "--quick-add-key"]).args([
        fingerprint.as_str(),
        "ed25519",
        "sign",
        "never",
    ]));
    let key = SigningKey::from_agent(&agent, &fingerprint).unwrap();
    assert_ne!(key.signing_fingerprint(), fingerprint);

    let unknown: Fingerprint = "0".repeat(40).parse().unwrap();
    let error = SigningKey::from_agent(&agent, &unknown).unwrap_err();
    assert!(matches!(error, SignError::NotInGpg { .. }), "{error}");

    // The public half alone.
    let made = generate("Elsewhere", "", None, Algorithm::Ed25519).unwrap();
    gpg.import(made.public.as_bytes());
    let error = SigningKey::from_agent(&agent, &made.fingerprint).unwrap_err();
    assert!(error.to_string().contains("gpg has no secret"), "{error}");

    // A passphrase that nobody can be asked for: the agent has no terminal here, and does not remember it.
    let locked = in_gpg(&gpg, "ed25519", "sign", "never", "open sesame");
    let reload =
        Command::new("gpg-connect-agent").env("GNUPGHOME", gpg.home.path()).args(["reloadagent", "/bye"]).output();
    assert!(reload.unwrap().status.success());
    std::fs::write(gpg.home.path().join("gpg-agent.conf"), "pinentry-program /bin/false\n").unwrap();
    run(tool("gpgconf", "gnupg").env("GNUPGHOME", gpg.home.path()).args(["--kill", "gpg-agent"]));
    let error = SigningKey::from_agent(&agent, &locked).unwrap_err();
    assert!(matches!(error, SignError::Agent { .. }), "{error}");
    assert!(error.to_string().contains(locked.as_str()), "{error}");
}

/// The program with a home of its own.
fn program(home: &Path) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", home).current_dir(home);
    command.timeout(std::time::Duration::from_mins(1));
    command
}

#[test]
fn the_program_signs_from_every_place_and_verify_takes_pins() {
    use base64::Engine;
    let made = make(Compression::GZIP);
    let package = made.path();
    let home = tempfile::Builder::new().prefix("sf").tempdir_in("/tmp").unwrap();
    let fresh = generate("Second", "", None, Algorithm::Ed25519).unwrap();
    let secret_file = home.path().join("second.asc");
    std::fs::write(&secret_file, fresh.secret.expose()).unwrap();
    let first_public = home.path().join("first.pub");
    std::fs::write(&first_public, key().public_armored().unwrap()).unwrap();
    let ring = home.path().join("ring.asc");
    std::fs::write(&ring, format!("{}{}", key().public_armored().unwrap(), fresh.public)).unwrap();
    let [package, secret, public, ring] = [&package, &secret_file, &first_public, &ring].map(|p| p.to_str().unwrap());

    // A file that others can read, and none at all.
    let loose = answer(program(home.path()).args(["sign", package, "--key", secret]));
    assert_eq!(loose.code, 3, "{}", loose.err);
    assert!(loose.err.contains("chmod 600"), "{}", loose.err);
    let none = answer(program(home.path()).args(["sign", package]));
    assert!(none.code == 3 && none.err.contains("key generate"), "{}", none.err);

    let by_second = |out: &Answer| {
        assert_eq!(out.code, 0, "{}", out.err);
        let verify = answer(program(home.path()).args(["verify", package, "--key", ring, "--all-signers"]));
        // Signed again: the first signature is kept beside the new one.
        let signers = [key().fingerprint(), fresh.fingerprint.clone()];
        let rows =
            |f: &Fingerprint| verify.out.lines().filter(|l| l.contains("good, by") && l.contains(f.as_str())).count();
        assert!(signers.iter().all(|f| rows(f) == 1), "{}{}", verify.out, verify.err);
        // Two of its files are not right where plain tar puts them.
        let waits = verify.out.find("2 files wait for `slurm-factory install`").expect(&verify.out);
        assert!(verify.out[waits..].contains("view/lib64/pkgconfig/slurm.pc"), "{}", verify.out);
        let answer = answer(program(home.path()).args(["verify", package, "--key", ring, "--all-signers", "--json"]));
        let found: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
        let page = include_str!("../../docs/formats.md").split("## What verify finds").nth(1).unwrap();
        let told = page.split("\n## ").next().unwrap();
        for field in found.as_object().unwrap().keys() {
            assert!(told.contains(&format!("`{field}`")), "docs/formats.md does not name {field} of verify --json");
        }
        let (_, good) = {
            let mut trusted = Keyring::new();
            trusted.add_bytes("it", fresh.public.as_bytes()).unwrap();
            Package::open(&made.path(), Trust::Require(&trusted), &Ctx::silent()).unwrap()
        };
        assert_eq!(good[0].fingerprint, fresh.fingerprint);
        // Back to the first signature alone.
        made.package.sign(key(), slurm_factory::sign::Others::Replace, &Ctx::silent()).unwrap();
    };
    let text = String::from_utf8(fresh.secret.expose().clone()).unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(&text);
    for value in [&text, &encoded] {
        by_second(&answer(program(home.path()).env("SLURM_FACTORY_SIGNING_KEY", value).args(["sign", package])));
    }
    let shell = format!("exec \"$0\" sign \"$1\" --key-fd 7 7<\"{secret}\"");
    let by_descriptor = |script: &str| {
        let mut sh = assert_cmd::Command::new("bash");
        sh.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home.path());
        answer(sh.args(["-c", script, env!("CARGO_BIN_EXE_slurm-factory"), package]))
    };
    by_second(&by_descriptor(&shell));
    by_second(&by_descriptor(&format!("exec \"$0\" sign \"$1\" --key-fd 7 7< <(cat \"{secret}\")")));
    let closed = by_descriptor("exec \"$0\" sign \"$1\" --key-fd 9");
    assert!(closed.code == 2 && closed.err.contains("--key-fd 9"), "{}", closed.err);
    let twice =
        answer(program(home.path()).env("SLURM_FACTORY_SIGNING_KEY", &text).args(["sign", package, "--key", secret]));
    assert!(twice.code == 2 && twice.err.contains("SLURM_FACTORY_SIGNING_KEY"), "{}", twice.err);

    // Pins.
    let pin = |keys: &str, fingerprint: &Fingerprint, more: &[&str]| {
        answer(
            program(home.path())
                .args(["verify", package, "--key", keys, "--fingerprint", fingerprint.as_str()])
                .args(more),
        )
    };
    let good = pin(ring, &key().fingerprint(), &[]);
    assert!(good.out.contains(&format!("good, by {}", key().fingerprint())), "{}{}", good.out, good.err);
    let stranger = pin(ring, &fresh.fingerprint, &[]);
    assert!(stranger.code == 5 && stranger.err.contains("not among the trusted"), "{} {}", stranger.code, stranger.err);
    let unknown = pin(public, &fresh.fingerprint, &[]);
    assert!(unknown.code == 3 && unknown.err.contains(fresh.fingerprint.as_str()), "{}", unknown.err);
    let all = answer(program(home.path()).args(["verify", package, "--key", ring, "--all-signers"]));
    assert!(all.code == 5 && all.err.contains(fresh.fingerprint.as_str()), "{} {}", all.code, all.err);
}

/// What is in a package may need no newer glibc than the toolchain has that it says it was built on.
#[test]
fn a_newer_glibc_than_the_toolchain_s_is_told() {
    let home = tempfile::tempdir().unwrap();
    let (ring, mut keys) = (home.path().join("ring.asc"), Keyring::new());
    keys.add_key(key());
    std::fs::write(&ring, keys.armored().unwrap()).unwrap();
    let verify = |version: &[u8; 4]| {
        let made = make_with(Compression::GZIP, 0, |tree| {
            let mut program = std::fs::read("/bin/true").unwrap();
            // In the table of strings alone, where the version's name stands; the dynamic linker would go by its hash too.
            let at = program.windows(11).position(|text| text == b"GLIBC_2.34\0").expect("a program of Debian 12");
            program[at + 6..at + 10].copy_from_slice(version);
            std::fs::write(tree.join("bin/true"), program).unwrap();
        });
        answer(program(home.path()).args(["verify", made.path().to_str().unwrap(), "--key", ring.to_str().unwrap()]))
    };
    let new = verify(b"2.99");
    assert!(new.code == 5 && new.err.contains("bin/true: needs glibc 2.99"), "{}: {}", new.code, new.err);
    assert!(new.err.contains("the toolchain noble"), "{}", new.err);
    let old = verify(b"2.34");
    assert!(!old.err.contains("needs glibc") && old.out.contains("made for"), "{}{}", old.out, old.err);
}

#[test]
fn a_secret_is_in_no_output_no_child_and_no_readable_memory() {
    let made = make(Compression::GZIP);
    let home = tempfile::Builder::new().prefix("sf").tempdir_in("/tmp").unwrap();
    let fresh = generate("Secret", "", None, Algorithm::Ed25519).unwrap();
    let secret = String::from_utf8(fresh.secret.expose().clone()).unwrap();
    let passphrase = "correct horse battery staple";
    // A line from the middle of the armor: no other key has it.
    let needle = secret.lines().nth(4).unwrap().to_owned();
    assert!(needle.len() > 40);
    // With every level of logging, the key good, wrong and cut.
    for key in [secret.clone(), secret.replace(&needle, &needle.to_lowercase()), secret[..secret.len() / 2].to_owned()]
    {
        let out = answer(
            program(home.path())
                .env("SLURM_FACTORY_SIGNING_KEY", &key)
                .env("SLURM_FACTORY_KEY_PASSPHRASE", passphrase)
                .env("SLURM_FACTORY_LOG", "trace")
                .args(["-v", "sign", made.path().to_str().unwrap()]),
        );
        for text in [&out.out, &out.err] {
            assert!(!text.contains(&needle) && !text.contains(passphrase), "{text}");
            assert!(!text.contains(&needle.to_lowercase()), "{text}");
        }
    }

    // While it runs: a pipe that never ends keeps the program at reading the package.
    let fifo = home.path().join("package.tar.gz");
    run(tool("mkfifo", "coreutils").arg(&fifo));
    let mut child = Command::new(env!("CARGO_BIN_EXE_slurm-factory"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home.path())
        .env("SLURM_FACTORY_SIGNING_KEY", &secret)
        .args(["sign", fifo.to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // It opens the pipe once the key is loaded.
    let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let proc_dir = PathBuf::from(format!("/proc/{}", child.id()));
    let limits = std::fs::read_to_string(proc_dir.join("limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let argv = std::fs::read(proc_dir.join("cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&argv).contains(&needle));
    drop(writer);
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn children_see_no_secret() {
    // A gpg-connect-agent of ours writes down what it was started with.
    let gpg = Gpg::new();
    let fingerprint = in_gpg(&gpg, "ed25519", "sign", "never", "");
    let made = make(Compression::GZIP);
    let home = tempfile::Builder::new().prefix("sf").tempdir_in("/tmp").unwrap();
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let seen = home.path().join("seen");
    for name in ["gpg", "gpg-connect-agent"] {
        let wrapper = bin.join(name);
        let text = format!(
            "#!/bin/sh\ntr '\\0' '\\n' </proc/$$/environ >>{0}\ntr '\\0' ' ' </proc/$$/cmdline >>{0}\nexec /usr/bin/{name} \"$@\"\n",
            seen.display()
        );
        std::fs::write(&wrapper, text).unwrap();
        std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = program(home.path());
    command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    command.env("GNUPGHOME", gpg.home.path()).env("SLURM_FACTORY_KEY_PASSPHRASE", "correct horse battery staple");
    let out = answer(command.args(["sign", made.path().to_str().unwrap(), "--key-agent", fingerprint.as_str()]));
    assert_eq!(out.code, 0, "{}", out.err);
    let seen = String::from_utf8_lossy(&std::fs::read(seen).unwrap()).into_owned();
    assert!(seen.contains("GNUPGHOME=") && seen.contains("gpg-connect-agent"), "{seen}");
    assert!(!seen.contains("correct horse") && !seen.contains("SLURM_FACTORY_"), "{seen}");
}

#[test]
fn children_do_not_get_the_descriptor_of_the_key() {
    // A git of ours writes down what it was given.
    let home = tempfile::Builder::new().prefix("sf").tempdir_in("/tmp").unwrap();
    let path = |name: &str| home.path().join(name);
    for folder in ["bin", "packages/x", "base/usr/lib"] {
        std::fs::create_dir_all(path(folder)).unwrap();
    }
    let fresh = generate("Fresh", "", None, Algorithm::Ed25519).unwrap();
    std::fs::write(path("key.asc"), fresh.secret.expose()).unwrap();
    std::fs::write(path("base/usr/lib/os-release"), "ID=ubuntu\nVERSION_ID=\"24.04\"\n").unwrap();
    std::fs::write(path("bin/git"), format!("#!/bin/sh\nls -l /proc/$$/fd >>{}\nexit 1\n", path("seen").display()))
        .unwrap();
    std::fs::set_permissions(path("bin/git"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut sh = assert_cmd::Command::new("bash");
    sh.env_clear().env("HOME", home.path()).env("PATH", format!("{}:/usr/bin:/bin", path("bin").display()));
    // Port 9 (discard) of loopback; git never asks there.
    let script = "exec \"$0\" plan --key-fd 7 --image dir:base --spack-source http://127.0.0.1:9/spack.git \
                  --spack-packages packages 7<key.asc";
    let out = answer(sh.current_dir(home.path()).args(["-c", script, env!("CARGO_BIN_EXE_slurm-factory")]));
    assert!(out.code != 0 && out.err.contains("ls-remote"), "{} {}", out.code, out.err);
    let seen = std::fs::read_to_string(path("seen")).unwrap();
    assert!(seen.contains(" 0 -> ") && !seen.contains("key.asc"), "{seen}");
}
