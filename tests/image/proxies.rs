//! `*_proxy` and `no_proxy` as the program reads them, and what the proxies are asked: real pulls of a name that this machine
//! knows and that is not its own (a hosts file in a mount namespace), so that each way there can be told from the others.

use crate::protocol::{Content, Request, answer, serve};
use crate::support::{Authority, Registry, Site, architecture, run, small_image};
use assert_cmd::Command;
use fs_err as fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const HOST: &str = "registry.test";

/// Variables and their values.
type Environment<'a> = &'a [(&'a str, &'a str)];

/// What a proxy was asked for: each a line, with the login that came along.
type Log = Arc<Mutex<Vec<String>>>;

/// A home where [`HOST`] is this machine, and whose registries may be insecure.
struct Home(TempDir);

impl Home {
    fn new(insecure: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hosts"), format!("127.0.0.1 localhost {HOST}\n")).unwrap();
        let conf = dir.path().join(".config/containers");
        fs::create_dir_all(&conf).unwrap();
        let text = format!("[[registry]]\nprefix = \"{insecure}\"\ninsecure = true\n");
        fs::write(conf.join("registries.conf"), text).unwrap();
        Self(dir)
    }

    /// Pulls with nothing else in the environment; returns whether it went well, and what was said.
    fn pull(&self, image: &str, env: Environment) -> (bool, String) {
        let cache = tempfile::tempdir().unwrap();
        let mount =
            format!("mount --bind '{}' /etc/hosts && exec \"$0\" \"$@\"", self.0.path().join("hosts").display());
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount, env!("CARGO_BIN_EXE_slurm-factory")])
            .args(["--cache-dir", cache.path().to_str().unwrap(), "image", "pull", "-v", image])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.0.path())
            .envs(env.iter().copied())
            .timeout(Duration::from_mins(1))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Leads everything from one connection to the other until both have ended.
fn join(client: &TcpStream, port: u16) {
    let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to).map(|_| to.shutdown(Shutdown::Write)));
    let _ = std::io::copy(&mut &server, &mut &*client);
    let _ = client.shutdown(Shutdown::Both);
}

fn listen(talk: impl Fn(TcpStream, &Log) -> Option<()> + Send + Sync + 'static) -> (u16, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, log) = (listener.local_addr().unwrap().port(), Log::default());
    let (seen, talk) = (log.clone(), Arc::new(talk));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (seen, talk) = (seen.clone(), talk.clone());
            std::thread::spawn(move || talk(client, &seen));
        }
    });
    (port, log)
}

/// A proxy that speaks CONNECT, leads to one local port, and takes only who sends `login` when there is one.
fn connecting(to: u16, login: Option<&'static str>) -> (u16, Log) {
    listen(move |mut client, log| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let asked = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
        let given = head.lines().find_map(|l| {
            l.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization")).map(|(_, v)| v)
        });
        log.lock().unwrap().push(format!("{asked} {}", given.unwrap_or("-")));
        if login.is_some() && given != login {
            let refused =
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
            return client.write_all(refused).ok();
        }
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
        join(&client, to);
        Some(())
    })
}

/// A SOCKS5 proxy (RFC 1928) without logins, which is told names and leads to one local port.
fn socks(to: u16) -> (u16, Log) {
    listen(move |client, log| {
        let read = |count: usize| {
            let mut bytes = vec![0; count];
            (&client).read_exact(&mut bytes).ok().map(|()| bytes)
        };
        let methods = read(2)?[1];
        read(methods.into())?;
        (&client).write_all(&[5, 0]).ok()?;
        let head = read(5)?;
        assert_eq!(head[..4], [5, 1, 0, 3], "it is told a name");
        let name = String::from_utf8(read(head[4].into())?).unwrap();
        let port = read(2)?;
        log.lock().unwrap().push(format!("{name}:{}", u16::from_be_bytes([port[0], port[1]])));
        (&client).write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
        join(&client, to);
        Some(())
    })
}

/// Whether each of what was asked is this, and there was something.
fn asked(log: &Log, what: &str) -> bool {
    let mut log = log.lock().unwrap();
    assert!(log.iter().all(|line| line == what), "{log:?}");
    !std::mem::take(&mut *log).is_empty()
}

#[test]
fn https_goes_through_the_proxy_unless_no_proxy_says_otherwise() {
    let site = Site::new();
    let authority = Authority::new("Site CA");
    authority.sign("r", &format!("subjectAltName=DNS:{HOST},IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"));
    let registry = Registry::with(&authority.tls("r", ""), "https");
    let ca = authority.path("ca.crt");
    let target = format!("docker://{}", registry.name("small:1"));
    let source = small_image(&site, "layout", architecture());
    run("skopeo", ["copy", "--quiet", "--dest-tls-verify=false", &source, &target]);
    let home = Home::new("nothing.test");
    let place = format!("{HOST}:{}", registry.port);
    let image = format!("{place}/small:1");
    let (port, log) = connecting(registry.port, None);
    let proxy = format!("http://127.0.0.1:{port}");
    let without_scheme = format!("127.0.0.1:{port}");
    let without_login = format!("{place} -");

    let cases: &[(Environment, bool)] = &[
        (&[], false),
        (&[("https_proxy", &proxy)], true),
        (&[("https_proxy", &without_scheme)], true),
        (&[("HTTPS_PROXY", &proxy)], true),
        (&[("all_proxy", &proxy)], true),
        (&[("http_proxy", &proxy)], false),
        // An empty one is not set.
        (&[("https_proxy", ""), ("HTTPS_PROXY", &proxy)], true),
        (&[("https_proxy", ""), ("HTTPS_PROXY", ""), ("all_proxy", &proxy)], true),
        (&[("https_proxy", &proxy), ("no_proxy", HOST)], false),
        (&[("https_proxy", &proxy), ("no_proxy", "other.test, .test")], false),
        (&[("https_proxy", &proxy), ("no_proxy", ""), ("NO_PROXY", HOST)], false),
        (&[("https_proxy", &proxy), ("no_proxy", "*")], false),
        (&[("https_proxy", &proxy), ("no_proxy", "other.test,gistry.test")], true),
    ];
    for (env, through) in cases {
        let env = [env, &[("SSL_CERT_FILE", ca.as_str())][..]].concat();
        let (well, said) = home.pull(&image, &env);
        assert!(well, "{env:?}: {said}");
        assert_eq!(asked(&log, &without_login), *through, "{env:?}: {said}");
    }

    // A login in the address, as it is written there; it is never shown.
    let (port, log) = connecting(registry.port, Some("Basic bWU6aHVudGVyQDI=")); // me:hunter@2
    for (password, well) in [("hunter%402", true), ("hunter%403", false)] {
        let proxy = format!("http://me:{password}@127.0.0.1:{port}");
        let (done, said) = home.pull(&image, &[("https_proxy", &proxy), ("SSL_CERT_FILE", &ca)]);
        assert_eq!(done, well, "{said}");
        assert!(!said.contains("hunter"), "the password shows: {said}");
        assert!(well || said.to_lowercase().contains("proxy auth"), "{said}");
        assert!(!std::mem::take(&mut *log.lock().unwrap()).is_empty());
    }

    // The other kind of proxy; and what is none.
    let (port, log) = socks(registry.port);
    let proxy = format!("socks5h://127.0.0.1:{port}");
    let (well, said) = home.pull(&image, &[("all_proxy", &proxy), ("SSL_CERT_FILE", &ca)]);
    assert!(well && asked(&log, &place), "{said}");
    let (well, said) = home.pull(&image, &[("all_proxy", "gopher://me:hunter@127.0.0.1:1"), ("SSL_CERT_FILE", &ca)]);
    assert!(!well && said.contains("the proxy's address") && said.contains("socks5h://"), "{said}");
    assert!(!said.contains("hunter"), "the password shows: {said}");
}

#[test]
fn http_goes_through_its_proxy_and_this_machines_registry_through_none() {
    let site = Site::new();
    small_image(&site, "layout", architecture());
    let content = Arc::new(Content::of(&site));
    let serve_it = || {
        let content = content.clone();
        let look = |request: &Request| request.target.ends_with("/v2/");
        serve(move |request| if look(request) { answer("200 OK", &[], "{}") } else { content.honest(request) })
    };
    // A proxy for http is sent whole addresses, and else is as any server.
    let ((registry, direct), (proxy, through)) = (serve_it(), serve_it());
    let port = registry.rsplit_once(':').unwrap().1;
    let home = Home::new(HOST);
    let proxy = format!("http://me:hunter2@{proxy}");
    let cases: &[(&str, Environment, bool)] = &[
        (HOST, &[("http_proxy", &proxy)], true),
        (HOST, &[("http_proxy", ""), ("ALL_PROXY", &proxy), ("https_proxy", "http://127.0.0.1:9")], true),
        // Not in capitals: a CGI request could set it.
        (HOST, &[("HTTP_PROXY", &proxy)], false),
        (HOST, &[("http_proxy", &proxy), ("no_proxy", HOST)], false),
        ("127.0.0.1", &[("http_proxy", &proxy), ("https_proxy", &proxy)], false),
        ("127.0.0.1", &[("http_proxy", &proxy), ("no_proxy", "other.test")], false),
        ("localhost", &[("http_proxy", &proxy)], false),
    ];
    for (host, env, by_proxy) in cases {
        let (well, said) = home.pull(&format!("{host}:{port}/small:t"), env);
        assert!(well && !said.contains("hunter2"), "{host} {env:?}: {said}");
        let through = std::mem::take(&mut *through.lock().unwrap());
        let direct = std::mem::take(&mut *direct.lock().unwrap());
        assert_eq!((!through.is_empty(), !direct.is_empty()), (*by_proxy, !by_proxy), "{host} {env:?}: {said}");
        // base64 of `me:hunter2`
        let login = Some("Basic bWU6aHVudGVyMg==");
        assert!(through.iter().all(|r| r.target.starts_with("http://") && r.header("proxy-authorization") == login));
        assert!(direct.iter().all(|r| r.header("proxy-authorization").is_none()));
    }
}
