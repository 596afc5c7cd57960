//! A registry that misbehaves on purpose: what our client makes of tokens, limits, cuts and redirects.
//!
//! The registry is a few lines of HTTP/1.1 with one connection a request; what it answers is a function of the
//! request, so each test reads as the conversation it is about.

use crate::support::{Site, architecture, quick, small_image};
use fs_err as fs;
use slurm_factory::image::{self, ClientConfig, Credentials, ImageError, Login, ResolveOptions};
use slurm_factory::report::Ctx;
use slurm_factory::secret::Secret;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One request, headers in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn range_start(&self) -> usize {
        self.header("range").and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0)
    }
}

/// What is sent back: a status line, headers, a body, and how much of the body before the connection is cut.
struct Answer {
    status: &'static str,
    headers: Vec<String>,
    body: Vec<u8>,
    cut: Option<usize>,
    /// Keeps the connection open, silent, instead of cutting it.
    hang: bool,
}

fn answer(status: &'static str, headers: &[String], body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: headers.to_vec(), body: body.into(), cut: None, hang: false }
}

/// Serves on a loopback port for as long as the test process lives; returns `127.0.0.1:PORT` and what was asked.
fn serve(respond: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<Request>>>) {
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
    let mut lines = BufReader::new(stream).lines();
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
    Some(Request { target, headers })
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
    let _ = stream.write_all(body);
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
struct Content {
    blobs: PathBuf,
    manifest: String,
    /// The larger of the two layers.
    large: String,
}

impl Content {
    fn new(site: &Site) -> Self {
        small_image(site, "layout", architecture());
        let layout = site.path("layout");
        let index: serde_json::Value = read_json(&layout.join("index.json"));
        let blobs = layout.join("blobs/sha256");
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let document = read_json(&blobs.join(hex(&manifest)));
        let large = document["layers"].as_array().unwrap().iter().max_by_key(|l| l["size"].as_u64()).unwrap();
        Self { large: large["digest"].as_str().unwrap().to_owned(), blobs, manifest }
    }

    fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        fs::read(self.blobs.join(hex(digest))).ok()
    }

    /// What an honest registry answers.
    fn honest(&self, request: &Request) -> Answer {
        let last = request.target.rsplit('/').next().unwrap();
        if request.target.contains("/manifests/") {
            let digest = if last == "t" { &self.manifest } else { last };
            let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json".to_owned();
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

fn hex(digest: &str) -> &str {
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
    let with = |password: &str| {
        let mut credentials = Credentials::default();
        credentials.insert(&address, Login { user: "me".to_owned(), password: Secret::new(password.to_owned()) });
        ClientConfig { credentials, ..quick() }
    };
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
    let mut credentials = Credentials::default();
    credentials.insert(&address, Login { user: "me".to_owned(), password: Secret::new("pass".to_owned()) });
    site.pull_with(&format!("{address}/small:t"), &ClientConfig { credentials, ..quick() }).unwrap();
    let stored = stored.lock().unwrap();
    assert_eq!(stored.len(), 3);
    assert!(stored.iter().all(|r| r.header("authorization").is_none()), "{stored:?}");
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
