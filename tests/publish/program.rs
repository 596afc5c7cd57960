//! The program as people and CI call it: what is sent, what is said, what is refused before any work.

use crate::servers::{BUCKET, Kind, SECRET, Server};
use crate::world::{address, package, signing_key};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program with an environment of its own.
pub struct Program {
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
}

pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Program {
    /// Credentials in the environment; the public key of the test's packages is trusted.
    pub fn new(port: u16, server: &Server) -> Self {
        let mut program = Self::bare();
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", server.access.as_str()),
            ("AWS_SECRET_ACCESS_KEY", &server.secret),
            ("SLURM_FACTORY_S3_ENDPOINT", &format!("http://127.0.0.1:{port}")),
        ] {
            program.env.push((name.to_owned(), value.to_owned()));
        }
        program
    }

    /// Without any.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = Self { dir, env: Vec::new() };
        let key = program.dir.path().join("key.asc");
        std::fs::write(&key, signing_key().public_armored().unwrap()).unwrap();
        let answer = program.run(&["key", "import", key.to_str().unwrap()].map(str::to_owned));
        assert_eq!(answer.code, 0, "{}", answer.err);
        program
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn command(&self, args: &[String]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slurm-factory"));
        command.args(args).env_clear().current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("PATH", std::env::var_os("PATH").unwrap());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[String]) -> Answer {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Answer { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    pub fn say(&self, args: &[&str]) -> Answer {
        self.run(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }
}

fn publish_twice(program: &Program, to: &str, package: &Path) {
    let package = package.to_str().unwrap();
    let dry = program.say(&["publish", package, "--to", to, "--dry-run", "--json"]);
    assert_eq!(dry.code, 0, "{}", dry.err);
    let dry: serde_json::Value = serde_json::from_str(&dry.out).unwrap();
    assert_eq!(dry["objects"].as_array().unwrap().len(), 7);
    assert!(dry["objects"].as_array().unwrap().iter().all(|object| object["state"] == "new"));
    let bytes = dry["bytes"].as_u64().unwrap();
    assert!(bytes > 6 << 20);

    let first = program.say(&["-v", "publish", package, "--to", to, "--verify-upload", "--json"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let answer: serde_json::Value = serde_json::from_str(&first.out).unwrap();
    assert_eq!(answer["bytes"].as_u64(), Some(bytes), "what the dry run said is what was sent");
    let second = program.say(&["publish", package, "--to", to]);
    assert!(second.code == 0 && second.out.contains("\n0 bytes"), "{}{}", second.out, second.err);
}

/// As a CI job has them, that was given a role: all three count, and none of them is told.
#[test]
fn credentials_of_a_session_are_a_key_and_a_token() {
    let mut server = Server::start(Kind::Moto);
    let token = server.assume_role();
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 41, 1 << 20);
    let publish = |program: Program| {
        program.say(&["-v", "publish", package.to_str().unwrap(), "--to", &address("session"), "--verify-upload"])
    };
    let with = |token: &str| Program::new(server.port, &server).with("AWS_SESSION_TOKEN", token);
    // The key alone is nobody's, and so is the token of another session.
    let alone = publish(Program::new(server.port, &server));
    assert!(alone.code == 6 && alone.err.contains("does not know this access key"), "{} {}", alone.code, alone.err);
    let other = publish(with(&token.chars().rev().collect::<String>()));
    assert!(other.code == 6 && other.err.contains("session token"), "{} {}", other.code, other.err);
    let answer = publish(with(&token).with("SLURM_FACTORY_LOG", "debug"));
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.err.contains("with a session token"), "{}", answer.err);
    for said in [&answer.out, &answer.err] {
        assert!(!said.contains(&token) && !said.contains(&server.secret), "a secret is in the log");
    }
}

#[test]
fn a_package_goes_to_a_bucket_and_no_secret_is_told() {
    for kind in [Kind::S3s, Kind::Moto] {
        let server = Server::start(kind);
        let dir = tempfile::tempdir().unwrap();
        let first = package(dir.path(), "25.11", 11, 6 << 20);
        let program = Program::new(server.port, &server);
        publish_twice(&program, &address("site"), &first);
        let log =
            program.say(&["-v", "--log-format", "json", "publish", first.to_str().unwrap(), "--to", &address("site")]);
        assert!(log.err.contains("credentials from the environment (AWS_ACCESS_KEY_ID)"), "{}", log.err);
        let traced = Program::new(server.port, &server).with("SLURM_FACTORY_LOG", "debug");
        let traced = traced.say(&["-v", "publish", first.to_str().unwrap(), "--to", &address("other")]);
        assert_eq!(traced.code, 0, "{}", traced.err);
        for text in [&log.err, &log.out, &traced.err, &traced.out] {
            assert!(!text.contains(SECRET), "the secret is in the log");
        }

        // Another package of the same name is not put over it, unless that is said.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = package(elsewhere.path(), "25.11", 12, 6 << 20);
        let other = other.to_str().unwrap();
        let tried = program.say(&["publish", other, "--to", &address("site"), "--dry-run"]);
        assert!(tried.code == 6 && tried.err.contains("--replace"), "{} {}", tried.code, tried.err);
        let refused = program.say(&["publish", other, "--to", &address("site")]);
        assert!(refused.code == 6 && refused.err.contains("--replace"), "{} {}", refused.code, refused.err);
        let replaced = program.say(&["publish", other, "--to", &address("site"), "--replace", "--verify-upload"]);
        assert_eq!(replaced.code, 0, "{}", replaced.err);
        assert!(program.say(&["publish", other, "--to", &address("site")]).out.contains("\n0 bytes"));
    }
}

#[test]
fn a_package_goes_to_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 13, 7 << 20);
    let program = Program::bare();
    let site = dir.path().join("site");
    publish_twice(&program, &format!("file://{}", site.display()), &package);
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(site.join("index.json")).unwrap()).unwrap();
    let listed = site.join(index["packages"][0]["path"].as_str().unwrap());
    assert!(listed.starts_with(site.join("slurm/25.11/13.3.0")), "{}", listed.display());
    let page = std::fs::read_to_string(site.join("index.html")).unwrap();
    let key = format!("keys/{}.asc", index["packages"][0]["signed_by"].as_str().unwrap());
    for link in [index["packages"][0]["path"].as_str().unwrap(), &key] {
        assert!(page.contains(&format!("href=\"./{link}\"")) && site.join(link).is_file(), "{link}: {page}");
    }
    let by_page = program.say(&["verify", listed.to_str().unwrap(), "--key", site.join(&key).to_str().unwrap()]);
    assert_eq!(by_page.code, 0, "{}", by_page.err);
    let verified = program.say(&["verify", listed.to_str().unwrap()]);
    assert!(verified.err.contains("good") || verified.out.contains("good"), "{}{}", verified.out, verified.err);
}

#[test]
fn what_cannot_be_published_is_refused_before_any_work() {
    let server = Server::start(Kind::S3s);
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 14, 1000);
    let package = package.to_str().unwrap();
    let to = address("x");
    let program = Program::new(server.port, &server);
    let refuse = |program: &Program, args: &[&str], code: i32, hints: &[&str]| {
        let begin = Instant::now();
        let answer = program.say(args);
        assert_eq!(answer.code, code, "{args:?}: {}", answer.err);
        for hint in hints {
            assert!(answer.err.contains(hint), "{args:?} does not say `{hint}`: {}", answer.err);
        }
        assert!(!answer.err.contains(SECRET) && !answer.out.contains(SECRET));
        assert!(begin.elapsed() < Duration::from_secs(30), "{args:?} took {:?}", begin.elapsed());
    };
    let wrong = Program::new(server.port, &server).with("AWS_SECRET_ACCESS_KEY", "wrongSecret0000");
    let nobody = Program::bare().with("SLURM_FACTORY_S3_ENDPOINT", &format!("http://127.0.0.1:{}", server.port));
    refuse(&program, &["publish", package], 2, &["--to"]);
    refuse(&program, &["publish", package, "--to", "oci://site/x"], 2, &["no host"]);
    refuse(&program, &["publish", package, "--to", "https://site/x"], 2, &["s3://"]);
    refuse(&program, &["publish", dir.path().to_str().unwrap(), "--to", &to], 2, &["folder"]);
    // s3s-fs makes a bucket that is missing.
    let moto = Server::start(Kind::Moto);
    let missing = Program::new(moto.port, &moto);
    assert_eq!(missing.say(&["key", "generate"]).code, 0);
    refuse(&missing, &["publish", package, "--to", "s3://nosuchbucket/x"], 6, &["nosuchbucket", "make the bucket"]);
    refuse(&wrong, &["-v", "publish", package, "--to", &to], 6, &["secret key is not the one"]);
    refuse(&nobody, &["publish", package, "--to", &to], 6, &["find credentials", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"]);
    refuse(&program, &["build", "--to", &to], 2, &["--publish"]);
    refuse(&program, &["build", "--publish", "all", "--to", &to], 3, &["no signing key"]);
    refuse(&program, &["build", "--publish", "slurm-only"], 2, &["--to"]);
    refuse(&program, &["build", "--publish", "slurm-only", "--to", &to], 3, &["no signing key", "key generate"]);
    assert_eq!(program.say(&["key", "generate"]).code, 0);
    refuse(&missing, &["build", "--publish", "slurm-only", "--to", "s3://nosuchbucket/x"], 6, &["make the bucket"]);
    refuse(&program, &["build", "--offline", "--publish", "slurm-only", "--to", &to], 2, &["--offline"]);

    // A package that nobody signed, or one that another signed, is not published.
    std::fs::rename(format!("{package}.asc"), dir.path().join("away")).unwrap();
    refuse(&program, &["publish", package, "--to", &to], 5, &["not signed"]);
    std::fs::rename(dir.path().join("away"), format!("{package}.asc")).unwrap();
    std::fs::write(format!("{package}.manifest.json"), "{}").unwrap();
    refuse(&program, &["publish", package, "--to", &to], 5, &["manifest"]);
    let there = server.boto(&format!("print([o['Key'] for o in s3.list_objects_v2(Bucket='{BUCKET}')['Contents']])"));
    assert_eq!(there.trim(), "['x/.slurm-factory/probe']");
}

#[test]
fn credentials_come_by_the_standard_chain() {
    let server = Server::start(Kind::S3s);
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 15, 1000);
    let package = package.to_str().unwrap();
    let endpoint = format!("http://127.0.0.1:{}", server.port);
    let profile = dir.path().join("config");
    let answer = dir.path().join("credentials.json");
    std::fs::write(
        &answer,
        format!(r#"{{"Version": 1, "AccessKeyId": "{}", "SecretAccessKey": "{}"}}"#, server.access, server.secret),
    )
    .unwrap();
    std::fs::write(
        &profile,
        format!(
            "[profile site]\naws_access_key_id = {}\naws_secret_access_key = {}\nregion = eu-test-1\n\
             [profile program]\ncredential_process = /bin/cat {}\n",
            server.access,
            server.secret,
            answer.display()
        ),
    )
    .unwrap();
    for (name, said) in [("site", "a profile"), ("program", "the program that the profile names")] {
        let program = Program::bare()
            .with("AWS_CONFIG_FILE", profile.to_str().unwrap())
            .with("AWS_PROFILE", name)
            .with("AWS_ENDPOINT_URL_S3", &endpoint);
        let answer = program.say(&["publish", package, "--to", &address(name)]);
        assert!(answer.code == 0 && answer.err.contains(said), "{name}: {} {}", answer.code, answer.err);
        assert!(!answer.err.contains(SECRET));
    }
    // The next two are given by moto, which has both services, and takes anybody's requests.
    let moto = Server::start(Kind::Moto);
    let of_moto = format!("http://127.0.0.1:{}", moto.port);
    let metadata = crate::proxy::Proxy::before(moto.port);
    let role = Program::bare()
        .with("AWS_EC2_METADATA_DISABLED", "false")
        .with("AWS_EC2_METADATA_SERVICE_ENDPOINT", &format!("http://127.0.0.1:{}", metadata.port))
        .with("SLURM_FACTORY_S3_ENDPOINT", &of_moto);
    let answer = role.say(&["publish", package, "--to", &address("role")]);
    assert!(answer.code == 0 && answer.err.contains("the instance's role"), "{} {}", answer.code, answer.err);
    let token = dir.path().join("token");
    std::fs::write(&token, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjaSJ9.x").unwrap();
    let oidc = Program::bare()
        .with("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap())
        .with("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/publisher")
        .with("AWS_ENDPOINT_URL_STS", &of_moto)
        .with("AWS_REGION", "us-east-1")
        .with("SLURM_FACTORY_S3_ENDPOINT", &of_moto);
    let answer = oidc.say(&["publish", package, "--to", &address("oidc")]);
    assert!(answer.code == 0 && answer.err.contains("a web identity token"), "{} {}", answer.code, answer.err);

    // No metadata service answers here: that is not waited for long.
    let begin = Instant::now();
    let program = Program::bare()
        .with("AWS_EC2_METADATA_DISABLED", "false")
        .with("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9");
    let answer = program.say(&["publish", package, "--to", &address("x")]);
    assert!(answer.code == 6 && answer.err.contains("find credentials"), "{}", answer.err);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn a_private_authority_and_a_proxy_are_those_of_the_site() {
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 16, 1000);
    let package = package.to_str().unwrap();
    let (server, authority) = Server::start_tls(dir.path());
    let program = Program::new(server.port, &server)
        .with("SLURM_FACTORY_S3_ENDPOINT", &format!("https://localhost:{}", server.port));
    let refused = program.say(&["publish", package, "--to", &address("x")]);
    assert!(refused.code == 6 && refused.err.contains("SSL_CERT_FILE"), "{} {}", refused.code, refused.err);
    for name in ["SSL_CERT_FILE", "AWS_CA_BUNDLE"] {
        let program = Program::new(server.port, &server)
            .with("SLURM_FACTORY_S3_ENDPOINT", &format!("https://localhost:{}", server.port))
            .with(name, authority.to_str().unwrap());
        let answer = program.say(&["publish", package, "--to", &address(name)]);
        assert_eq!(answer.code, 0, "{name}: {}", answer.err);
    }
    let no_bundle = Program::new(server.port, &server).with("AWS_CA_BUNDLE", package);
    let refused = no_bundle.say(&["publish", package, "--to", &address("x")]);
    assert!(refused.code == 2 && refused.err.contains("CA file"), "{} {}", refused.code, refused.err);

    // A name that only the proxy can reach.
    let plain = Server::start(Kind::Moto);
    let proxy = crate::proxy::Proxy::before(plain.port);
    let program = Program::new(plain.port, &plain)
        .with("SLURM_FACTORY_S3_ENDPOINT", "http://s3.site.test:9000")
        .with("http_proxy", &format!("http://user:proxyPassword@127.0.0.1:{}", proxy.port));
    let answer = program.say(&["-v", "publish", package, "--to", &address("through")]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(proxy.heads().len() > 10 && !answer.err.contains("proxyPassword"));

    // The same server when it is named as other tools have it named: in a variable, in a profile.
    let profile = dir.path().join("aws");
    let to_proxy = format!("http://127.0.0.1:{}", proxy.port);
    std::fs::write(&profile, "[default]\nregion = us-east-1\nendpoint_url = http://s3.site.test:9000\n").unwrap();
    let elsewhere = || {
        Program::bare()
            .with("AWS_ACCESS_KEY_ID", &plain.access)
            .with("AWS_SECRET_ACCESS_KEY", &plain.secret)
            .with("http_proxy", &to_proxy)
    };
    let named = [
        elsewhere().with("AWS_ENDPOINT_URL_S3", "http://s3.site.test:9000"),
        elsewhere().with("AWS_CONFIG_FILE", profile.to_str().unwrap()),
    ];
    for (number, program) in named.iter().enumerate() {
        proxy.rule(|_| None);
        let answer = program.say(&["publish", package, "--to", &address(&format!("named-{number}"))]);
        assert!(answer.code == 0 && proxy.heads().len() > 10, "{number}: {}", answer.err);
    }
    let secret = elsewhere().with("AWS_ENDPOINT_URL_S3", "http://user:endpointPassword@s3.site.test:9000");
    let refused = secret.say(&["publish", package, "--to", &address("secret")]);
    assert!(refused.code == 2 && refused.err.contains("a password"), "{} {}", refused.code, refused.err);
    assert!(!refused.err.contains("endpointPassword"));
}
