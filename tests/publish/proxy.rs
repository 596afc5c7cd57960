//! A proxy in front of a server that does, to chosen requests, what networks and busy servers do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never reaches the server.
    CutBefore,
    /// Half of its body does.
    CutWithin,
    /// The server does it, and its answer is lost.
    CutAfter,
    /// Half of the answer comes.
    CutAnswer,
    /// 503 ServiceUnavailable.
    Unavailable,
    /// 503 SlowDown.
    SlowDown,
    /// It comes late.
    Delay(Duration),
}

pub const ALL: [Fault; 7] = [
    Fault::CutBefore,
    Fault::CutWithin,
    Fault::CutAfter,
    Fault::CutAnswer,
    Fault::Unavailable,
    Fault::SlowDown,
    Fault::Delay(Duration::from_millis(300)),
];

/// Says what is done to the request of this number, counted from 0.
type Rule = Box<dyn Fn(usize) -> Option<Fault> + Send>;

struct State {
    rule: Rule,
    seen: usize,
    /// First lines of the requests.
    heads: Vec<String>,
    /// Headers that never reach the server.
    dropped: Vec<&'static str>,
    /// Headers of answers that never reach the client.
    hidden: Vec<&'static str>,
    /// Held while the server works on a request, when it may only have one at a time.
    turn: Option<Arc<Mutex<()>>>,
}

/// The proxy; its threads end with the test binary.
pub struct Proxy {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            rule: Box::new(|_| None),
            seen: 0,
            heads: Vec::new(),
            dropped: Vec::new(),
            hidden: Vec::new(),
            turn: None,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || {
                    let _ = one(client, server, &state);
                });
            }
        });
        Self { port, state }
    }

    /// From now on; counting begins anew.
    pub fn rule(&self, rule: impl Fn(usize) -> Option<Fault> + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.rule = Box::new(rule);
        state.seen = 0;
        state.heads.clear();
    }

    #[allow(dead_code)] // not by every binary that has this file
    pub fn drop_headers(&self, names: &[&'static str]) {
        self.state.lock().unwrap().dropped = names.to_vec();
    }

    #[allow(dead_code)] // as above
    pub fn hide_headers(&self, names: &[&'static str]) {
        self.state.lock().unwrap().hidden = names.to_vec();
    }

    /// The server gets one request at a time: moto looks at a condition and writes in two steps, where S3 does both in one.
    #[allow(dead_code)] // as above
    pub fn one_at_a_time(&self) {
        self.state.lock().unwrap().turn = Some(Arc::default());
    }

    /// First lines of the requests since the rule was set.
    pub fn heads(&self) -> Vec<String> {
        self.state.lock().unwrap().heads.clone()
    }
}

/// One request and its answer; then the connection is closed, so that each request is its own.
fn one(client: TcpStream, server: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let mut to = client;
    let mut head = Vec::new();
    let mut length = 0_usize;
    let mut foreign = false;
    let dropped = state.lock().unwrap().dropped.clone();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        assert!(!lower.starts_with("transfer-encoding:"), "a body of unknown length: {line}");
        if lower.starts_with("expect:") {
            to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            continue;
        }
        if lower.starts_with("connection:") || dropped.iter().any(|name| lower.starts_with(name)) {
            continue;
        }
        if head.is_empty()
            && let Some((verb, rest)) = line.split_once(" http://")
        {
            // As to a site's proxy: the whole URL. The server gets the path.
            line = format!("{verb} /{}", rest.split_once('/').unwrap().1);
            foreign = true;
        }
        if foreign && lower.starts_with("host:") {
            line = format!("host: 127.0.0.1:{server}\r\n");
        }
        if line == "\r\n" {
            head.extend_from_slice(b"connection: close\r\n\r\n");
            break;
        }
        head.extend_from_slice(line.as_bytes());
    }
    let fault = {
        let mut state = state.lock().unwrap();
        let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
        state.heads.push(first);
        let number = state.seen;
        state.seen += 1;
        (state.rule)(number)
    };
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let busy = |code: &str, text: &str| {
        let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{text}</Message></Error>");
        format!(
            "HTTP/1.1 503 Busy\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{xml}",
            xml.len()
        )
    };
    match fault {
        Some(Fault::CutBefore) => return to.shutdown(Shutdown::Both),
        Some(Fault::Unavailable) => return to.write_all(busy("ServiceUnavailable", "Try later.").as_bytes()),
        Some(Fault::SlowDown) => return to.write_all(busy("SlowDown", "Reduce your request rate.").as_bytes()),
        Some(Fault::Delay(time)) => std::thread::sleep(time),
        _ => {}
    }
    let turn = state.lock().unwrap().turn.clone();
    let _turn = turn.as_ref().map(|turn| turn.lock().unwrap());
    let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
    upstream.write_all(&head)?;
    if fault == Some(Fault::CutWithin) {
        upstream.write_all(&body[..body.len() / 2])?;
        upstream.shutdown(Shutdown::Both)?;
        return to.shutdown(Shutdown::Both);
    }
    upstream.write_all(&body)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    // moto's metadata service leaves out how long its token is good.
    if head.starts_with(b"PUT /latest/api/token") {
        let at = answer.windows(2).position(|window| window == b"\r\n").unwrap() + 2;
        answer.splice(at..at, *b"x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n");
    }
    // moto names the root of this answer otherwise than S3 does, and the SDK refuses it.
    for (wrong, right) in
        [("<ListPartsResponse ", "<ListPartsResult   "), ("</ListPartsResponse>", "</ListPartsResult  >")]
    {
        if let Some(at) = answer.windows(wrong.len()).position(|window| window == wrong.as_bytes()) {
            answer[at..at + right.len()].copy_from_slice(right.as_bytes());
        }
    }
    let hidden = state.lock().unwrap().hidden.clone();
    if !hidden.is_empty() {
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 2;
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let kept = |line: &&str| !hidden.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
        let head: String = head.split_inclusive("\r\n").filter(kept).collect();
        answer.splice(..end, head.into_bytes());
    }
    match fault {
        Some(Fault::CutAfter) => {}
        Some(Fault::CutAnswer) => to.write_all(&answer[..answer.len() / 2])?,
        _ => to.write_all(&answer)?,
    }
    to.flush()?;
    to.shutdown(Shutdown::Both)
}
