//! What people have configured about registries, against real registries: the program and `skopeo` with the same
//! home, hence the same files, must find the same image.

use crate::protocol::{answer, serve};
use crate::support::{Authority, Registry, Site, architecture, run, small_image};
use assert_cmd::Command;
use fs_err as fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// base64 of `me:pass word`, and the line of a htpasswd file: bcrypt, cost 4.
const LOGIN: &str = "bWU6cGFzcyB3b3Jk";
const HTPASSWD: &str = "me:$2b$04$zoIJXxi117D8ADlT4WzDZ.nRKBPYlzIohoHaJsptrBs.g2lVmQeha\n";

/// A user's home with what is configured in it, and a cache that each pull begins anew.
struct Home(TempDir);

struct Answer {
    code: i32,
    /// The digest.
    out: String,
    err: String,
}

impl Answer {
    fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.err.contains(part), "`{part}` is not in: {}", self.err);
        }
    }

    fn says_nothing_of(&self, secret: &str) {
        assert!(!self.err.contains(secret) && !self.out.contains(secret), "the secret shows: {}", self.err);
    }

    fn fails(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}", self.err);
        self.says(parts);
        self
    }

    fn pulls(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, 0, "{}", self.err);
        self.says(parts);
        self
    }
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Deletes a certificate and its key.
    fn forget(&self, folder: &str, name: &str) {
        for end in ["cert", "key"] {
            fs::remove_file(self.path(&format!("{folder}/{name}.{end}"))).unwrap();
        }
    }

    fn conf(&self, text: &str) -> &Self {
        self.write(".config/containers/registries.conf", text)
    }

    /// A credential helper in the home's own `bin`.
    fn helper(&self, script: &str) -> &Self {
        self.write("bin/docker-credential-test", &format!("#!/bin/sh\n{script}\n"));
        let mode = std::fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path("bin/docker-credential-test"), mode).unwrap();
        self
    }

    /// Runs a program with nothing in its environment but this home.
    fn call(&self, program: &Path, args: &[&str]) -> Answer {
        let output = Command::new(program)
            .args(args)
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", self.path("bin").display()))
            .env("HOME", self.0.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .current_dir(self.0.path())
            .timeout(Duration::from_mins(1))
            .output()
            .unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap().trim().to_owned(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn pull(&self, image: &str) -> Answer {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path().to_str().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_slurm-factory"));
        self.call(program, &["--cache-dir", cache, "image", "pull", "-v", image])
    }

    fn skopeo(&self, image: &str) -> Answer {
        let args = ["inspect", "--no-tags", "--format={{.Digest}}", &format!("docker://{image}")];
        self.call(Path::new("/usr/bin/skopeo"), &args)
    }

    /// Both find the image, and the same one.
    fn agrees(&self, image: &str, parts: &[&str]) -> Answer {
        let (ours, theirs) = (self.pull(image).pulls(parts), self.skopeo(image));
        assert_eq!((theirs.code, &theirs.out), (0, &ours.out), "{image}: skopeo: {}", theirs.err);
        ours
    }

    /// Neither gets it.
    fn both_fail(&self, image: &str, code: i32, parts: &[&str]) -> Answer {
        let theirs = self.skopeo(image);
        assert_ne!(theirs.code, 0, "{image}: skopeo finds {}", theirs.out);
        self.pull(image).fails(code, parts)
    }
}

fn digest(source: &str) -> String {
    run("skopeo", ["inspect", "--format={{.Digest}}", source]).trim().to_owned()
}

fn nobody() -> String {
    format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
}

#[test]
fn mirrors_in_their_order_and_then_the_location() {
    let site = Site::new();
    let (mirror, location) = (Registry::start(), Registry::start());
    let first = small_image(&site, "first", architecture());
    mirror.push(&first, "hub/both:1", &[]);
    mirror.push(&first, "hub/mirrored:1", &[]);
    location.push(&small_image(&site, "second", architecture()), "own/both:1", &[]);
    location.push(&small_image(&site, "third", architecture()), "own/unmirrored:1", &[]);
    let home = Home::new();
    let conf = |more: &str| {
        format!(
            "[[registry]]\nprefix = 'registry.example/base'\nlocation = '{}'\ninsecure = true\n{more}\n\
             [[registry.mirror]]\nlocation = '{}/dead'\ninsecure = true\n\
             [[registry.mirror]]\nlocation = '{}'\ninsecure = true\n",
            location.name("own"),
            nobody(),
            mirror.name("hub"),
        )
    };
    home.conf(&conf("colour = 'red'"));
    let served = format!("its manifest: from mirror {}/both (insecure)", mirror.name("hub"));
    let prefix =
        format!("the prefix `registry.example/base` in {}", home.path(".config/containers/registries.conf").display());
    let ours =
        home.agrees("registry.example/base/both:1", &[&served, &prefix, "/dead", "Connection refused", "`colour`"]);
    assert_eq!(ours.out, digest(&first), "the mirror's, not the location's");
    home.agrees("registry.example/base/mirrored:1", &["from mirror"]);
    home.agrees("registry.example/base/unmirrored:1", &[&format!("from {}/unmirrored", location.name("own"))]);
    let nowhere = home.both_fail(
        "registry.example/base/nowhere:1",
        4,
        &["none of the places", "registry.example/base/nowhere:1"],
    );
    nowhere.says(&["/dead", &mirror.name("hub/nowhere"), &location.name("own/nowhere")]);

    // A tag may change between mirror and home; a digest may not.
    home.conf(&conf("mirror-by-digest-only = true"));
    let ours = home.agrees("registry.example/base/both:1", &["left out", "for digests only"]);
    assert_ne!(ours.out, digest(&first));
    let pinned = format!("registry.example/base/mirrored@{}", digest(&first));
    home.agrees(&pinned, &["from mirror"]);

    // The same from our own configuration alone, which comes first.
    let conf = conf("").replace("[[registry", "[[registries.registry");
    home.conf("[[registry]]\nprefix = 'registry.example/base'\nblocked = true");
    home.write("slurm-factory.toml", &conf);
    let ours = home.pull("registry.example/base/mirrored:1").pulls(&["slurm-factory.toml", "from mirror"]);
    assert_eq!(ours.out, digest(&first));
}

#[test]
fn a_layer_that_the_mirror_has_damaged_comes_from_the_location() {
    let site = Site::new();
    let (mirror, location) = (Registry::start(), Registry::start());
    let source = small_image(&site, "layout", architecture());
    let mut layers = Vec::new();
    for registry in [&mirror, &location] {
        registry.push(&source, "small:1", &[]);
        let pulled = Site::new().pull(&registry.name("small:1")).unwrap();
        layers = pulled.layers().iter().map(|l| l.digest().to_string()).collect();
    }
    let stored = mirror.stored(&layers[0]);
    let mut bytes = fs::read(&stored).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&stored, bytes).unwrap();
    fs::remove_file(mirror.stored(&layers[1])).unwrap();
    let home = Home::new();
    let conf = format!(
        "[[registry]]\nprefix = 'a.example'\nlocation = '127.0.0.1:{}'\ninsecure = true\n\
         [[registry.mirror]]\nlocation = '127.0.0.1:{}'\ninsecure = true\n",
        location.port, mirror.port
    );
    let ours = home.conf(&conf).pull("a.example/small:1").pulls(&["its manifest: from mirror", "wrong content"]);
    assert_eq!(ours.out, digest(&source));
}

#[test]
fn what_is_blocked_and_what_is_version_1() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "team/small:1", &[]);
    let home = Home::new();
    let host = format!("127.0.0.1:{}", registry.port);
    home.conf(&format!("[[registry]]\nlocation = '{host}'\ninsecure = true\n[[registry]]\nprefix = '{host}/team'\nlocation = '{host}/team'\nblocked = true\ninsecure = true"));
    home.both_fail(
        &registry.name("team/small:1"),
        3,
        &["forbidden", "blocked = true", ".config/containers/registries.conf"],
    );
    home.conf(&format!("[registries.insecure]\nregistries = ['{host}']"));
    home.pull(&registry.name("team/small:1"))
        .fails(3, &["version 1", "version 2", ".config/containers/registries.conf"]);
}

#[test]
fn short_names() {
    let site = Site::new();
    let registry = Registry::start();
    registry.push(&small_image(&site, "layout", architecture()), "base/small:1", &[]);
    let home = Home::new();
    let host = format!("127.0.0.1:{}", registry.port);
    let insecure = format!("[[registry]]\nlocation = '{host}'\ninsecure = true\n");
    home.conf(&insecure);
    let want = home.agrees(&registry.name("base/small:1"), &["speaks http"]).out;

    // skopeo knows no short names: podman and buildah do.
    home.conf(&format!("{insecure}[aliases]\n'little' = '{host}/base/small'"));
    assert_eq!(home.pull("little:1").pulls(&["`little:1` is", "an alias in"]).out, want);
    home.conf(&format!("unqualified-search-registries = ['{host}']\n{insecure}"));
    assert_eq!(home.pull("base/small:1").pulls(&["unqualified-search-registries in"]).out, want);
    home.conf(&format!("unqualified-search-registries = ['{host}', 'b.example']\n{insecure}"));
    home.pull("base/small:1").fails(2, &[&registry.name("base/small:1"), "b.example/base/small:1", "alias"]);
}

#[test]
fn certificates_of_a_registry() {
    let site = Site::new();
    let authority = Authority::new("Site CA");
    authority.sign("r", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n");
    authority.sign("client", "extendedKeyUsage=clientAuth\n");
    let registry = Registry::with(&authority.tls("r", ""), "https");
    registry.push(&small_image(&site, "layout", architecture()), "small:1", &[]);
    let name = registry.name("small:1");
    let host = format!("127.0.0.1:{}", registry.port);
    let home = Home::new();

    home.conf(&format!("[[registry]]\nlocation = '{host}'\ninsecure = false"));
    home.both_fail(&name, 4, &["certificate is not trusted", "certs.d"]);
    home.conf(&format!("[[registry]]\nlocation = '{host}'\ninsecure = true"));
    home.agrees(&name, &["speaks https"]);

    home.conf("");
    let folder = format!(".config/containers/certs.d/{host}");
    home.write(&format!("{folder}/site.crt"), &fs::read_to_string(authority.path("ca.crt")).unwrap());
    home.agrees(&name, &[&folder, "trusts site.crt"]);
    // Trust for one registry is trust for no other.
    home.write(
        "slurm-factory.toml",
        &format!(
            "[[registries.registry]]\nprefix='other.example'\nlocation='localhost:{}'\ninsecure=false",
            registry.port
        ),
    );
    home.pull("other.example/small:1").fails(4, &["certificate"]);

    // A registry that wants to know who asks.
    let clients = format!(", clientcas: [{}]", authority.path("ca.crt"));
    let registry = Registry::with(&authority.tls("r", &clients), "https");
    let folder = format!(".config/containers/certs.d/127.0.0.1:{}", registry.port);
    let copy = |from: &str, to: &str| {
        home.write(&format!("{folder}/{to}"), &fs::read_to_string(authority.path(from)).unwrap())
    };
    copy("ca.crt", "ca.crt");
    home.both_fail(&registry.name("small:1"), 4, &["ertificate"]);
    copy("client.crt", "client.cert");
    home.both_fail(&registry.name("small:1"), 3, &["client.cert", ".key is missing"]);
    copy("client.key", "client.key");
    let dir = home.path(&folder);
    registry.push(&small_image(&site, "more", architecture()), "small:1", &["--dest-cert-dir", dir.to_str().unwrap()]);
    home.agrees(&registry.name("small:1"), &["shows client.cert with client.key"]);

    // Another registry's authority signed the first of several: the one is shown that this registry accepts, whatever
    // the order of their names.
    home.forget(&folder, "client");
    let other = Authority::new("Other CA");
    other.sign("client", "extendedKeyUsage=clientAuth\n");
    for (own, foreign) in [("b", "a"), ("a", "b")] {
        for (authority, name) in [(&authority, own), (&other, foreign)] {
            for (from, to) in [("client.crt", "cert"), ("client.key", "key")] {
                let text = fs::read_to_string(authority.path(from)).unwrap();
                home.write(&format!("{folder}/{name}.{to}"), &text);
            }
        }
        home.agrees(&registry.name("small:1"), &["shows a.cert with a.key or b.cert with b.key"]);
    }
    // The foreign one alone is shown, and refused.
    home.forget(&folder, "a");
    home.both_fail(&registry.name("small:1"), 4, &["ertificate"]);

    // What cannot be used is said with its file, and how to mend it.
    copy("client.key", "b.key");
    home.pull(&registry.name("small:1")).fails(3, &["b.key", "not the key of", "b.cert"]);
    copy("client.crt", "b.cert");
    home.agrees(&registry.name("small:1"), &["shows b.cert with b.key"]);
    for (name, traditional) in [("pkcs8", false), ("old", true)] {
        let encrypted = authority.path(name);
        let key = authority.path("client.key");
        let how: &[&str] = if traditional { &["ec", "-aes128"] } else { &["pkcs8", "-topk8"] };
        let files = ["-passout", "pass:secret", "-in", &key, "-out", &encrypted];
        run("openssl", how.iter().chain(&files));
        home.write(&format!("{folder}/b.key"), &fs::read_to_string(&encrypted).unwrap());
        let wanted = ["b.key", "is encrypted", "openssl pkey -in", "umask 077"];
        home.pull(&registry.name("small:1")).fails(3, &wanted);
    }
}

#[test]
fn logins_from_files_and_helpers() {
    let site = Site::new();
    let secrets = tempfile::tempdir().unwrap();
    let htpasswd = secrets.path().join("htpasswd");
    fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", htpasswd.display());
    let registry = Registry::with(&auth, "http");
    let source = small_image(&site, "layout", architecture());
    registry.push(&source, "team/small:1", &["--dest-creds=me:pass word"]);
    registry.push(&source, "other/small:1", &["--dest-creds=me:pass word"]);
    let host = format!("127.0.0.1:{}", registry.port);
    let (team, other) = (registry.name("team/small:1"), registry.name("other/small:1"));
    let conf = format!("[[registry]]\nlocation = '{host}'\ninsecure = true\n");
    let file = |key: &str, auth: &str| format!(r#"{{"auths": {{"{key}": {{"auth": "{auth}"}}}}}}"#);
    let home = Home::new();
    home.conf(&conf);
    home.both_fail(&team, 4, &["no login", "files with logins: none"]);

    // By namespace, in the file that podman writes.
    home.write("run/containers/auth.json", &file(&format!("{host}/team"), LOGIN));
    home.agrees(&team, &[&format!("key `{host}/team` in"), "run/containers/auth.json"]).says_nothing_of(LOGIN);
    home.both_fail(&other, 4, &["no login"]);

    // Docker's file comes last.
    home.write(".docker/config.json", &file(&host, LOGIN));
    home.agrees(&other, &[".docker/config.json"]).says_nothing_of("pass word");
    // base64 of `me:wrong`
    home.write(".config/containers/auth.json", &file(&host, "bWU6d3Jvbmc="));
    home.both_fail(&other, 4, &["the stored login is refused", ".config/containers/auth.json"])
        .says_nothing_of("wrong");
    fs::remove_file(home.path(".config/containers/auth.json")).unwrap();
    fs::remove_file(home.path("run/containers/auth.json")).unwrap();

    // A program that knows it: named for the registry, as the store of all, by registries.conf.
    let knows = format!(
        r#"test "$1" = get && test "$(cat)" = {host} && echo '{{"ServerURL":"{host}","Username":"me","Secret":"pass word"}}'"#
    );
    home.helper(&knows);
    home.write(".docker/config.json", &format!(r#"{{"credHelpers": {{"{host}": "test"}}}}"#));
    home.agrees(&team, &["docker-credential-test of credHelpers", ".docker/config.json"]).says_nothing_of("pass word");
    home.write(".docker/config.json", r#"{"credsStore": "test"}"#);
    home.pull(&team).pulls(&["docker-credential-test of credsStore"]).says_nothing_of("pass word");
    fs::remove_file(home.path(".docker/config.json")).unwrap();
    home.conf(&format!("credential-helpers = ['containers-auth.json', 'test']\n{conf}"));
    home.agrees(&team, &["docker-credential-test of credential-helpers"]).says_nothing_of("pass word");

    // It has none, it fails, it is not there.
    home.helper("echo 'credentials not found in native keychain'; exit 1");
    home.both_fail(&team, 4, &["no login for", "docker-credential-test"]);
    home.helper(r#"echo '{"Secret":"pass word"}'; echo pass word >&2; exit 1"#);
    let failed = home.both_fail(&team, 4, &["docker-credential-test", "credential-helpers in", "it failed"]);
    failed.says_nothing_of("pass word");
    fs::remove_file(home.path("bin/docker-credential-test")).unwrap();
    home.both_fail(&team, 4, &["docker-credential-test", "is it installed"]);
}

/// A real registry whose tokens a server of ours signs: it checks signature, audience and rights.
#[test]
fn tokens_that_a_registry_checks() {
    let site = Site::new();
    let authority = Authority::new("Token CA");
    let signed = authority.path("signed");
    fs::create_dir(&signed).unwrap();
    let certificate = fs::read_to_string(authority.path("ca.crt")).unwrap();
    let der: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = authority.path("ca.key");
    let (realm, asked) = serve(move |request| {
        let basic = format!("Basic {LOGIN}");
        let url = request.target.clone();
        let scope = url.split(['?', '&']).find_map(|part| part.strip_prefix("scope=repository%3A")).unwrap_or_default();
        let (name, actions) = scope.rsplit_once("%3A").unwrap_or_default();
        let allowed = request.header("authorization") == Some(&basic);
        let actions: Vec<&str> = if allowed { actions.split("%2C").collect() } else { Vec::new() };
        let now = jiff::Timestamp::now().as_second();
        let access = serde_json::json!([{"type": "repository", "name": name.replace("%2F", "/"), "actions": actions}]);
        let claims = serde_json::json!({
            "iss": "tests", "sub": "me", "aud": "registry.test", "jti": "1", "access": access,
            "nbf": now - 10, "iat": now - 10, "exp": now + 60,
        });
        let header = serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [der]});
        let token = jwt(&header, &claims, &key, Path::new(&signed));
        answer("200 OK", &[], serde_json::json!({ "token": token }).to_string())
    });
    let auth = format!(
        "auth: {{token: {{realm: 'http://{realm}/token', service: registry.test, issuer: tests, rootcertbundle: {}}}}}",
        authority.path("ca.crt")
    );
    let registry = Registry::with(&auth, "http");
    registry.push(&small_image(&site, "layout", architecture()), "team/small:1", &["--dest-creds=me:pass word"]);
    let name = registry.name("team/small:1");
    let home = Home::new();
    home.conf(&format!("[[registry]]\nlocation = '127.0.0.1:{}'\ninsecure = true\n", registry.port));
    home.both_fail(&name, 4, &["no login", "UNAUTHORIZED"]);
    home.write(
        "run/containers/auth.json",
        &format!(r#"{{"auths": {{"127.0.0.1:{}": {{"auth": "{LOGIN}"}}}}}}"#, registry.port),
    );
    asked.lock().unwrap().clear();
    home.pull(&name).pulls(&["run/containers/auth.json"]).says_nothing_of(LOGIN);
    assert_eq!(asked.lock().unwrap().len(), 2, "one to resolve, one to pull");
    home.agrees(&name, &[]);
}

/// RFC 7515 by `openssl`, whose signature of two numbers in DER is taken apart.
fn jwt(header: &serde_json::Value, claims: &serde_json::Value, key: &str, dir: &Path) -> String {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let text = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    let dir = tempfile::tempdir_in(dir).unwrap();
    let [input, output] = ["in", "out"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    fs::write(&input, &text).unwrap();
    run("openssl", ["dgst", "-sha256", "-sign", key, "-out", &output, &input]);
    let der = fs::read(&output).unwrap();
    let mut numbers = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(rest[1].into());
        let number = &number[number.len().saturating_sub(32)..];
        numbers.extend(std::iter::repeat_n(0, 32 - number.len()).chain(number.iter().copied()));
        rest = after;
    }
    format!("{text}.{}", encode(&numbers))
}
