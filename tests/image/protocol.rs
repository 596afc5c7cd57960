//! A registry that misbehaves on purpose: what our client makes of tokens, limits, cuts and redirects.
//!
//! The registry is a few lines of HTTP/1.1 with one connection a request; what it answers is a function of the
//! request, so each test reads as the conversation it is about.

use crate::oci::MANIFEST;
use crate::support::{Site, architecture, contains, make_image, make_layer, quick, small_image};
use fs_err as fs;
use slurm_factory::image::{
    self, ClientConfig, Credentials, ImageError, Login, Registries, ResolveOptions, UnknownKeys,
};
use slurm_factory::report::Ctx;
use slurm_factory::secret::Secret;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// One request, headers in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn range_start(&self) -> usize {
        self.header("range").and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0)
    }
}

/// What is sent back: a status line, headers, a body, and how much of the body before the connection is cut.
pub struct Answer {
    status: &'static str,
    headers: Vec<String>,
    pub body: Vec<u8>,
    pub cut: Option<usize>,
    /// Keeps the connection open, silent, instead of cutting it.
    hang: bool,
    /// After so many bytes of the body, this is waited for.
    pub pause: Option<(usize, Box<dyn Fn() + Send + Sync>)>,
}

pub fn answer(status: &'static str, headers: &[String], body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: headers.to_vec(), body: body.into(), cut: None, hang: false, pause: None }
}

/// Serves on a loopback port for as long as the test process lives; returns `127.0.0.1:PORT` and what was asked.
pub fn serve(respond: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<Request>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    let respond = Arc::new(respond);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (respond, seen) = (respond.clone(), seen.clone());
            std::thread::spawn(move || {
                if let Some(request) = read_request(&stream) {
                    seen.lock().unwrap().push(request.clone());
                    send(&stream, &respond(&request));
                }
            });
        }
    });
    (address, log)
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    // Whoever tries TLS first is not kept waiting.
    if reader.fill_buf().ok()?.first() == Some(&0x16) {
        return None;
    }
    let mut lines = reader.by_ref().lines();
    let first = lines.next()?.ok()?;
    let target = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { target, headers, body: String::new() };
    let length = request.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_string(&mut request.body).ok()?;
    Some(request)
}

fn send(mut stream: &TcpStream, answer: &Answer) {
    let mut head =
        format!("HTTP/1.1 {}\r\nContent-Length: {}\r\nConnection: close\r\n", answer.status, answer.body.len());
    for header in &answer.headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    let body = &answer.body[..answer.cut.unwrap_or(answer.body.len())];
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(b"\r\n");
    let (first, rest) = body.split_at(answer.pause.as_ref().map_or(0, |(at, _)| *at));
    let _ = stream.write_all(first);
    let _ = stream.flush();
    if let Some((_, wait)) = &answer.pause {
        wait();
    }
    let _ = stream.write_all(rest);
    let _ = stream.flush();
    if answer.hang {
        std::thread::sleep(Duration::from_mins(1));
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// A proxy that leads every CONNECT to one local port.
pub fn tunnel(port: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                assert!(head.starts_with(b"CONNECT "), "{}", String::from_utf8_lossy(&head));
                let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from, &mut to).map(|_| to.shutdown(Shutdown::Write)));
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

/// The small image as files: manifest bytes and the folder of its blobs.
pub struct Content {
    blobs: PathBuf,
    manifest: String,
    /// The largest of the layers.
    large: String,
    pub layers: Vec<String>,
}

impl Content {
    fn new(site: &Site) -> Self {
        small_image(site, "layout", architecture());
        Self::of(site)
    }

    /// What is in the site's folder `layout`.
    pub fn of(site: &Site) -> Self {
        let layout = site.path("layout");
        let index: serde_json::Value = read_json(&layout.join("index.json"));
        let blobs = layout.join("blobs/sha256");
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let document = read_json(&blobs.join(hex(&manifest)));
        let layers = document["layers"].as_array().unwrap();
        let large = layers.iter().max_by_key(|l| l["size"].as_u64()).unwrap();
        let digest = |layer: &serde_json::Value| layer["digest"].as_str().unwrap().to_owned();
        Self { large: digest(large), layers: layers.iter().map(digest).collect(), blobs, manifest }
    }

    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        fs::read(self.blobs.join(hex(digest))).ok()
    }

    /// What an honest registry answers.
    pub fn honest(&self, request: &Request) -> Answer {
        let last = request.target.rsplit('/').next().unwrap();
        if request.target.contains("/manifests/") {
            let digest = if last == "t" { &self.manifest } else { last };
            let kind = format!("Content-Type: {MANIFEST}");
            return answer("200 OK", &[kind], self.blob(digest).unwrap());
        }
        match self.blob(last) {
            Some(bytes) => part(request, &bytes),
            None => answer("404 Not Found", &[], ""),
        }
    }
}

fn part(request: &Request, bytes: &[u8]) -> Answer {
    match request.range_start() {
        0 => answer("200 OK", &[], bytes),
        start if start >= bytes.len() => answer("416 Range Not Satisfiable", &[], ""),
        start => {
            let range = format!("Content-Range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            answer("206 Partial Content", &[range], &bytes[start..])
        }
    }
}

fn read_json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap()
}

#[test]
fn a_cut_layer_goes_on_where_it_was() {
    let site = Site::new();
    let content = Content::new(&site);
    let large = content.large.clone();
    let (address, log) = serve({
        let large = large.clone();
        let cuts = Mutex::new(0);
        move |request| {
            let mut answer = content.honest(request);
            let mut cuts = cuts.lock().unwrap();
            if request.target.ends_with(&large) && *cuts < 3 {
                *cuts += 1;
                answer.cut = Some(100_000);
            }
            answer
        }
    });
    site.pull(&format!("{address}/small:t")).unwrap();
    let starts: Vec<usize> =
        log.lock().unwrap().iter().filter(|r| r.target.ends_with(&large)).map(Request::range_start).collect();
    assert_eq!(starts, [0, 100_000, 200_000, 300_000]);
}

#[test]
fn a_layer_that_is_always_cut_says_how_far_it_came_and_is_gone_on_with_later() {
    let site = Site::new();
    let content = Content::new(&site);
    let large = content.large.clone();
    let broken = Arc::new(Mutex::new(true));
    let (address, log) = serve({
        let (large, broken) = (large.clone(), broken.clone());
        move |request| {
            let mut answer = content.honest(request);
            if request.target.ends_with(&large) && *broken.lock().unwrap() {
                answer.cut = Some(if request.range_start() == 0 { 5000 } else { 0 });
            }
            answer
        }
    });
    let name = format!("{address}/small:t");
    let error = site.pull(&name).unwrap_err();
    assert!(matches!(error, ImageError::Cut { got: 5000, .. }), "{error}");
    site.assert_no_blob(&large);
    *broken.lock().unwrap() = false;
    log.lock().unwrap().clear();
    site.pull(&name).unwrap();
    let log = log.lock().unwrap();
    let requests: Vec<&Request> = log.iter().filter(|r| r.target.contains("/blobs/")).collect();
    assert_eq!((requests.len(), requests[0].range_start()), (1, 5000), "only what was missing: {requests:?}");
}

#[test]
fn a_registry_without_ranges_and_one_with_another_blob() {
    let site = Site::new();
    let content = Content::new(&site);
    let large = content.large.clone();
    let (address, _) = serve({
        let large = large.clone();
        let first = Mutex::new(true);
        move |request| {
            let is_first = std::mem::take(&mut *first.lock().unwrap()) || !request.target.ends_with(&large);
            let mut answer = if request.target.ends_with(&large) {
                answer("200 OK", &[], content.blob(&large).unwrap())
            } else {
                content.honest(request)
            };
            if request.target.ends_with(&large) && is_first {
                answer.cut = Some(7000);
            }
            answer
        }
    });
    site.pull(&format!("{address}/small:t")).unwrap();

    // What an earlier run left is not the beginning of the blob.
    let site = Site::new();
    let content = Content::new(&site);
    let partial = site.cache.dir("blobs").join("partial");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join(hex(&content.large)), vec![0; 9000]).unwrap();
    let (address, _) = serve(move |request| content.honest(request));
    site.pull(&format!("{address}/small:t")).unwrap();
}

#[test]
fn too_many_requests_waits_as_long_as_it_is_told() {
    let site = Site::new();
    let content = Content::new(&site);
    let first = Mutex::new(true);
    let (address, _) = serve(move |request| {
        if std::mem::take(&mut *first.lock().unwrap()) {
            return answer("429 Too Many Requests", &["Retry-After: 2".to_owned()], "");
        }
        content.honest(request)
    });
    let start = Instant::now();
    site.pull(&format!("{address}/small:t")).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2));

    let (address, log) = serve(|_| answer("429 Too Many Requests", &["Retry-After: 7200".to_owned()], ""));
    let error = Site::new().pull(&format!("{address}/small:t")).unwrap_err();
    assert!(matches!(error, ImageError::RateLimited { .. }), "{error}");
    assert!(error.to_string().contains("again in 7200 s"), "{error}");
    assert_eq!(log.lock().unwrap().len(), 1, "nobody waits for two hours");
}

#[test]
fn server_errors_are_tried_again_and_then_told() {
    let site = Site::new();
    let content = Content::new(&site);
    let first = Mutex::new(true);
    let (address, _) = serve(move |request| {
        if std::mem::take(&mut *first.lock().unwrap()) {
            return answer("503 Service Unavailable", &[], "");
        }
        content.honest(request)
    });
    site.pull(&format!("{address}/small:t")).unwrap();
    let (address, log) = serve(|_| answer("502 Bad Gateway", &[], "<h1>upstream\nis down</h1>"));
    let error = Site::new().pull(&format!("{address}/small:t")).unwrap_err();
    assert!(error.to_string().contains("502") && error.to_string().contains("<h1>upstream is down</h1>"), "{error}");
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[test]
fn tokens_are_fetched_used_and_renewed() {
    let site = Site::new();
    let content = Content::new(&site);
    let (realm, tokens) = serve(|request| {
        // base64 of `me:pass`
        if request.header("authorization") != Some("Basic bWU6cGFzcw==") {
            return answer("401 Unauthorized", &[], "who are you");
        }
        answer("200 OK", &[], r#"{"token": "opaque"}"#)
    });
    let used = Mutex::new(0);
    let (address, _) = serve(move |request| {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\",service=\"test\"");
        if request.header("authorization") != Some("Bearer opaque") {
            return answer("401 Unauthorized", &[challenge], "");
        }
        // Every third request finds the token expired.
        let mut used = used.lock().unwrap();
        *used += 1;
        if *used == 3 {
            return answer("401 Unauthorized", &[challenge], "");
        }
        content.honest(request)
    });
    let name = format!("{address}/small:t");
    let with = |password: &str| login(&address, "me", password);
    let error = site.pull(&name).unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    let error = site.pull_with(&name, &with("wrong")).unwrap_err();
    assert!(error.to_string().contains("who are you"), "{error}");
    site.pull_with(&name, &with("pass")).unwrap();
    let tokens = tokens.lock().unwrap();
    let last = tokens.last().unwrap();
    assert!(
        last.target.contains("scope=repository%3Asmall%3Apull") && last.target.contains("service=test"),
        "{}",
        last.target
    );
    assert!(tokens.iter().filter(|r| r.header("authorization") == Some("Basic bWU6cGFzcw==")).count() >= 2, "renewed");
}

/// Mirrors of `a.example` and its location, which is asked last.
fn mirrored(places: &[&str]) -> ClientConfig {
    let (location, mirrors) = places.split_last().unwrap();
    let mut conf = format!("[[registry]]\nprefix = 'a.example'\nlocation = '{location}'\n");
    for mirror in mirrors {
        conf.extend(["[[registry.mirror]]\nlocation = '", mirror, "'\n"]);
    }
    let mut registries = Registries::default();
    registries.add("test", &conf, UnknownKeys::Refuse).unwrap();
    ClientConfig { registries, ..quick() }
}

fn blobs(log: &Mutex<Vec<Request>>) -> usize {
    log.lock().unwrap().iter().filter(|r| r.target.contains("/blobs/")).count()
}

#[test]
fn a_mirror_without_one_layer_serves_the_others_and_one_that_breaks_down_is_left_alone() {
    let site = Site::new();
    let content = Arc::new(Content::new(&site));
    let (location, at_location) = serve({
        let content = content.clone();
        move |request| content.honest(request)
    });
    let (partial, at_partial) = serve({
        let content = content.clone();
        move |request| {
            if request.target.ends_with(&content.large) {
                answer("404 Not Found", &[], "")
            } else {
                content.honest(request)
            }
        }
    });
    let pulled = site.pull_with("a.example/small:t", &mirrored(&[&partial, &location])).unwrap();
    assert_eq!(pulled.resolved().reference().to_string(), "a.example/small:t", "its name is that which was asked for");
    assert_eq!((blobs(&at_partial), blobs(&at_location)), (3, 1));

    // Down after the manifest: it is asked once more for the configuration (tried twice), and then no more.
    at_location.lock().unwrap().clear();
    let (broken, at_broken) =
        serve(
            move |request| {
                if request.target.contains("/blobs/") { answer("500 Oops", &[], "") } else { content.honest(request) }
            },
        );
    Site::new().pull_with("a.example/small:t", &mirrored(&[&broken, &location])).unwrap();
    assert_eq!((blobs(&at_broken), blobs(&at_location)), (2, 3));

    // A login portal that answers everything is no mirror.
    let (portal, _) = serve(|_| answer("200 OK", &[], "<html>please log in</html>"));
    Site::new().pull_with("a.example/small:t", &mirrored(&[&portal, &location])).unwrap();
}

#[test]
fn a_mirror_gets_no_login_of_the_location_and_a_layer_goes_on_at_another_place() {
    let site = Site::new();
    let content = Arc::new(Content::new(&site));
    let large = content.large.clone();
    let (mirror, at_mirror) = serve({
        let (content, large) = (content.clone(), large.clone());
        move |request| {
            let mut answer = content.honest(request);
            if request.target.ends_with(&large) {
                answer.cut = Some(if request.range_start() == 0 { 5000 } else { 0 });
            }
            answer
        }
    });
    let (location, at_location) = serve(move |request| match request.header("authorization") {
        Some(_) => content.honest(request),
        None => answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\"".to_owned()], ""),
    });
    let credentials = login(&location, "me", "pass").credentials;
    site.pull_with("a.example/small:t", &ClientConfig { credentials, ..mirrored(&[&mirror, &location]) }).unwrap();
    assert!(at_mirror.lock().unwrap().iter().all(|r| r.header("authorization").is_none()));
    let at_location = at_location.lock().unwrap();
    let starts: Vec<_> = at_location.iter().filter(|r| r.target.ends_with(&large)).map(Request::range_start).collect();
    assert_eq!(starts, [5000, 5000], "first without, then with the login");
}

/// A user and password for one registry.
fn login(address: &str, user: &str, password: &str) -> ClientConfig {
    let mut credentials = Credentials::default();
    credentials.insert(address, Login { user: user.to_owned(), password: Secret::new(password.to_owned()) });
    ClientConfig { credentials, ..quick() }
}

/// Four layers are under way when their token expires: one of them asks for a new one, and all go on with it.
#[test]
fn layers_that_find_their_token_expired_together_ask_for_one_new_token() {
    const LAYERS: usize = 4;
    let site = Site::new();
    let layers: Vec<PathBuf> = (0..LAYERS)
        .map(|i| make_layer(&site, &format!("l{i}"), |tree| fs::write(tree.join("f"), format!("{i}")).unwrap()))
        .collect();
    make_image(&site, "layout", "t", architecture(), &layers);
    let content = Content::of(&site);
    let issued = Arc::new(Mutex::new(0));
    let (realm, tokens) = serve({
        let issued = issued.clone();
        move |_| {
            let mut issued = issued.lock().unwrap();
            *issued += 1;
            answer("200 OK", &[], format!(r#"{{"token": "t{issued}", "expires_in": 60}}"#))
        }
    });
    let refused = (Mutex::new(0), Condvar::new());
    let (address, _) = serve(move |request| {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\"");
        let token = request.header("authorization").and_then(|v| v.strip_prefix("Bearer t")?.parse::<usize>().ok());
        let is_layer = content.layers.iter().any(|layer| request.target.ends_with(layer));
        match token {
            // The first was to resolve. The second was good for the configuration; all layers learn that it is no more.
            Some(2) if is_layer => {
                let mut count = refused.0.lock().unwrap();
                *count += 1;
                refused.1.notify_all();
                let enough = |count: &mut usize| *count < LAYERS;
                drop(refused.1.wait_timeout_while(count, Duration::from_secs(3), enough).unwrap());
                answer("401 Unauthorized", &[challenge], "")
            }
            Some(_) => content.honest(request),
            None => answer("401 Unauthorized", &[challenge], ""),
        }
    });
    site.pull(&format!("{address}/small:t")).unwrap();
    // The third is the one that four layers waited for.
    assert_eq!(tokens.lock().unwrap().len(), 3);
    assert_eq!(*issued.lock().unwrap(), 3);
}

#[test]
fn a_token_that_expires_while_a_request_is_tried_again_is_renewed_again() {
    let site = Site::new();
    let content = Content::new(&site);
    let issued = Arc::new(Mutex::new(0));
    let (realm, _) = serve({
        let issued = issued.clone();
        move |_| {
            *issued.lock().unwrap() += 1;
            answer("200 OK", &[], r#"{"access_token": "opaque"}"#)
        }
    });
    let conversation = Mutex::new(0);
    let large = content.large.clone();
    let (address, log) = serve(move |request| {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\"");
        if request.header("authorization").is_none() {
            return answer("401 Unauthorized", &[challenge], "");
        }
        if !request.target.ends_with(&large) {
            return content.honest(request);
        }
        let mut step = conversation.lock().unwrap();
        *step += 1;
        match *step {
            1 | 3 => answer("401 Unauthorized", &[challenge], "expired"),
            2 => answer("503 Service Unavailable", &[], ""),
            _ => content.honest(request),
        }
    });
    site.pull(&format!("{address}/small:t")).unwrap();
    // To resolve, to pull, and twice for the one layer.
    assert_eq!(*issued.lock().unwrap(), 4);
    assert_eq!(log.lock().unwrap().iter().filter(|r| r.target.contains("/blobs/")).count(), 7);
}

#[test]
fn a_token_that_is_refused_at_once_is_the_end() {
    let (realm, tokens) = serve(|_| answer("200 OK", &[], r#"{"token": "opaque"}"#));
    let (address, log) = serve(move |_| {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\"");
        answer("401 Unauthorized", &[challenge], r#"{"errors":[{"code":"UNAUTHORIZED","message":"not you"}]}"#)
    });
    let error = Site::new().pull(&format!("{address}/small:t")).unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("not you"), "{error}");
    assert_eq!((tokens.lock().unwrap().len(), log.lock().unwrap().len()), (1, 2));
}

#[test]
fn a_token_server_that_is_busy_is_asked_again_and_an_identity_token_is_exchanged() {
    let site = Site::new();
    let content = Content::new(&site);
    let first = Mutex::new(true);
    let (realm, tokens) = serve(move |request| {
        if std::mem::take(&mut *first.lock().unwrap()) {
            return answer("429 Too Many Requests", &["Retry-After: 1".to_owned()], "");
        }
        if request.body.contains("grant_type=refresh_token") && request.body.contains("refresh_token=id%2Ftoken") {
            return answer("200 OK", &[], r#"{"access_token": "opaque"}"#);
        }
        answer("401 Unauthorized", &[], "")
    });
    let (address, _) = serve(move |request| {
        if request.header("authorization") == Some("Bearer opaque") {
            return content.honest(request);
        }
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\",service=\"s\"");
        answer("401 Unauthorized", &[challenge], "")
    });
    let start = Instant::now();
    site.pull_with(&format!("{address}/small:t"), &login(&address, "<token>", "id/token")).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    let tokens = tokens.lock().unwrap();
    assert!(tokens.iter().all(|r| r.header("authorization").is_none() && !r.target.contains("token=")), "{tokens:?}");
    assert!(tokens[1].body.contains("scope=repository%3Asmall%3Apull"), "{tokens:?}");
}

#[test]
fn a_login_is_sent_to_no_address_that_makes_no_sense() {
    for realm in ["ftp://127.0.0.1/token", "not a url", "file:///etc/passwd"] {
        let (address, _) =
            serve(move |_| answer("401 Unauthorized", &[format!("WWW-Authenticate: Bearer realm=\"{realm}\"")], ""));
        let error = Site::new().pull_with(&format!("{address}/a:t"), &login(&address, "me", "s3cret")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(realm) && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn a_redirect_to_another_host_gets_no_credentials() {
    let site = Site::new();
    let content = Arc::new(Content::new(&site));
    let (storage, stored) = serve({
        let content = content.clone();
        move |request| content.honest(request)
    });
    let (address, _) = serve(move |request| {
        if request.header("authorization").is_none() {
            return answer("401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\"".to_owned()], "");
        }
        if request.target.contains("/blobs/") {
            return answer("307 Temporary Redirect", &[format!("Location: http://{storage}{}", request.target)], "");
        }
        content.honest(request)
    });
    site.pull_with(&format!("{address}/small:t"), &login(&address, "me", "pass")).unwrap();
    let stored = stored.lock().unwrap();
    assert_eq!(stored.len(), 3);
    assert!(stored.iter().all(|r| r.header("authorization").is_none()), "{stored:?}");
}

/// A storage that says 401 itself, and names a token server of its own: neither of them is sent anything.
#[test]
fn a_place_that_a_redirect_leads_to_is_given_no_login_when_it_asks_for_one() {
    for scheme in ["Bearer", "Basic"] {
        for what in ["/blobs/", "/manifests/"] {
            let site = Site::new();
            let content = Content::new(&site);
            let (realm, asked) = serve(|_| answer("200 OK", &[], r#"{"token": "opaque"}"#));
            let (storage, stored) = serve(move |_| {
                let challenge = format!("WWW-Authenticate: {scheme} realm=\"http://{realm}/token\",service=\"s\"");
                answer("401 Unauthorized", &[challenge], "")
            });
            let (address, _) = serve({
                let storage = storage.clone();
                move |request| {
                    if request.target.contains(what) {
                        let place = format!("Location: http://{storage}{}?signature=s3cret", request.target);
                        return answer("307 Temporary Redirect", &[place], "");
                    }
                    content.honest(request)
                }
            });
            let error = site.pull_with(&format!("{address}/small:t"), &login(&address, "me", "pass")).unwrap_err();
            assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
            contains(&error, &[&format!("leads to http://{storage}, which asks"), "to the registry alone"]);
            assert!(!error.to_string().contains("s3cret"), "{error}");
            assert!(asked.lock().unwrap().is_empty(), "{asked:?}");
            let stored = stored.lock().unwrap();
            assert!(!stored.is_empty() && stored.iter().all(|r| r.header("authorization").is_none()), "{stored:?}");
        }
    }
}

#[test]
fn documents_without_an_end_are_refused() {
    let (address, _) = serve(|_| answer("200 OK", &[], vec![b' '; 5 << 20]));
    let error = Site::new().pull(&format!("{address}/small:t")).unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    let (address, _) = serve(|_| answer("200 OK", &[], "<html>a captive portal</html>"));
    let error = Site::new().pull(&format!("{address}/small:t")).unwrap_err();
    assert!(matches!(error, ImageError::Malformed { .. }), "{error}");
}

#[test]
fn an_interrupt_ends_a_pull_at_once_and_the_next_one_goes_on() {
    let site = Site::new();
    let content = Content::new(&site);
    let large = content.large.clone();
    let hang = Arc::new(Mutex::new(true));
    let (address, log) = serve({
        let (large, hang) = (large.clone(), hang.clone());
        move |request| {
            let mut answer = content.honest(request);
            if request.target.ends_with(&large) && *hang.lock().unwrap() {
                (answer.cut, answer.hang) = (Some(6000), true);
            }
            answer
        }
    });
    let name = format!("{address}/small:t");
    let resolved = site.resolve(&name, ResolveOptions::default()).unwrap();
    let ctx = Ctx::silent();
    let pull = |ctx: &Ctx| image::pull(&resolved, &site.cache, &ClientConfig::default(), false, ctx);
    let asked = std::thread::scope(|scope| {
        let pulling = scope.spawn(|| pull(&ctx));
        let partial = site.cache.dir("blobs").join("partial").join(hex(&large));
        while fs::metadata(&partial).map_or(0, |m| m.len()) < 6000 {
            std::thread::sleep(Duration::from_millis(20));
        }
        let asked = Instant::now();
        ctx.interrupt.set(15);
        let error = pulling.join().unwrap().unwrap_err();
        assert!(matches!(error, ImageError::Interrupted(_)), "{error}");
        asked
    });
    assert!(asked.elapsed() < Duration::from_millis(800), "{:?}", asked.elapsed());
    site.assert_no_blob(&large);

    *hang.lock().unwrap() = false;
    pull(&Ctx::silent()).unwrap();
    let log = log.lock().unwrap();
    let starts: Vec<usize> = log.iter().filter(|r| r.target.ends_with(&large)).map(Request::range_start).collect();
    assert_eq!(starts, [0, 6000]);
}

/// The promise of docs/images.md: what is there is asked for once when it shall be as new as the tag, and else not at all.
#[test]
fn a_second_pull_is_one_request_or_none() {
    let site = Site::new();
    let content = Content::new(&site);
    let manifest = content.manifest.clone();
    let (address, log) = serve(move |request| content.honest(request));
    let name = format!("{address}/small:t");
    site.pull(&name).unwrap();
    let again = |options: ResolveOptions| {
        log.lock().unwrap().clear();
        let resolved = site.resolve(&name, options).unwrap();
        assert_eq!(resolved.digest().to_string(), manifest);
        image::pull(&resolved, &site.cache, &quick(), false, &Ctx::silent()).unwrap();
        log.lock().unwrap().iter().map(|r| r.target.clone()).collect::<Vec<_>>()
    };
    assert_eq!(again(ResolveOptions { refresh: true, ..ResolveOptions::default() }), ["/v2/small/manifests/t"]);
    assert_eq!(again(ResolveOptions::default()), [""; 0]);
}

#[test]
fn two_pulls_at_once_fetch_each_blob_once() {
    let site = Site::new();
    let content = Content::new(&site);
    let large = content.large.clone();
    let (address, log) = serve(move |request| content.honest(request));
    let name = format!("{address}/small:t");
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| site.pull(&name).map(|_| ()))).collect();
        for run in runs {
            run.join().unwrap().unwrap();
        }
    });
    let log = log.lock().unwrap();
    assert_eq!(log.iter().filter(|r| r.target.ends_with(&large)).count(), 1);
}
