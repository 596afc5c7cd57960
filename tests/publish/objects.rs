//! What a store promises, kept by buckets on both servers.

use crate::proxy::{Fault, Proxy};
use crate::servers::{BUCKET, Kind, Server};
use crate::world::{noise, options, source, store};
use slurm_factory::publish::{Condition, Keep, Key, Put, S3Store, Source, Store, StoreError, Version, Written};
use slurm_factory::report::{Ctx, Interrupt, Silent};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn how(condition: Condition) -> Put<'static> {
    Put { content_type: "application/x-test", keep: Keep::Forever, condition }
}

fn yes(written: Written) -> Version {
    match written {
        Written::Yes(version) => version,
        Written::Conflict => panic!("a conflict"),
    }
}

fn file(dir: &tempfile::TempDir, name: &str, seed: u64, size: usize) -> Source {
    let path = dir.path().join(name);
    std::fs::write(&path, noise(seed, size)).unwrap();
    source(&path)
}

fn read_back(store: &dyn Store, at: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.download(&key(at), &mut bytes, &Ctx::silent()).unwrap().unwrap();
    bytes
}

fn keeps_its_promises(kind: Kind) {
    let server = Server::start(kind);
    let store = store(server.port, &server, "a/b");
    let ctx = Ctx::silent();
    store.check(&ctx).unwrap();
    let x = key("dir/x y+\u{fc}");
    assert_eq!(store.size(&x, &ctx).unwrap(), None);
    assert_eq!(store.read(&x, 10, &ctx).unwrap(), None);
    assert_eq!(store.download(&x, &mut Vec::new(), &ctx).unwrap(), None);
    assert_eq!(
        store.put(&x, b"1", &how(Condition::Unchanged(Version("\"0\"".into()))), &ctx).unwrap(),
        Written::Conflict
    );

    let first = yes(store.put(&x, b"one", &how(Condition::Absent), &ctx).unwrap());
    assert_eq!(store.put(&x, b"two", &how(Condition::Absent), &ctx).unwrap(), Written::Conflict);
    let second = yes(store.put(&x, b"two", &how(Condition::Unchanged(first.clone())), &ctx).unwrap());
    assert_ne!(first, second);
    assert_eq!(store.put(&x, b"three", &how(Condition::Unchanged(first)), &ctx).unwrap(), Written::Conflict);
    assert_eq!(store.read(&x, 3, &ctx).unwrap(), Some((b"two".to_vec(), second)));
    assert!(matches!(store.read(&x, 2, &ctx), Err(StoreError::TooLarge { size: 3, limit: 2, .. })));

    let dir = tempfile::tempdir().unwrap();
    let small = file(&dir, "small", 1, 3 * MIB);
    let large = file(&dir, "large", 2, 12 * MIB + 5);
    let other = file(&dir, "other", 3, 12 * MIB + 5);
    for (at, source) in [("small", &small), ("dir/large", &large)] {
        assert!(!store.holds(&key(at), source, &ctx).unwrap());
        let version = yes(store.put_file(&key(at), source, &how(Condition::Absent), &ctx).unwrap());
        assert_eq!(store.size(&key(at), &ctx).unwrap(), Some(source.size));
        assert_eq!(store.read(&key(at), source.size, &ctx).unwrap().unwrap().1, version);
        assert!(read_back(&store, at) == std::fs::read(&source.path).unwrap());
        assert!(store.holds(&key(at), source, &ctx).unwrap());
        assert_eq!(store.put_file(&key(at), source, &how(Condition::Absent), &ctx).unwrap(), Written::Conflict);
    }
    assert!(!store.holds(&key("dir/large"), &other, &ctx).unwrap(), "the same size is not the same content");

    // A file that is not what it was leaves nothing, whole or in parts.
    for source in [small, large] {
        let wrong = Source { sha256: "0".repeat(64), ..source };
        let error = store.put_file(&key("wrong"), &wrong, &how(Condition::Always), &ctx).unwrap_err().to_string();
        assert!(error.contains("changed since it was made"), "{error}");
        assert_eq!(store.size(&key("wrong"), &ctx).unwrap(), None);
    }

    let listed: Vec<_> = store.list("dir/", &ctx).unwrap().into_iter().map(|e| (e.key.to_string(), e.size)).collect();
    assert_eq!(listed, [("dir/large".to_owned(), 12 * MIB as u64 + 5), ("dir/x y+\u{fc}".to_owned(), 3)]);
    assert_eq!(store.list("", &ctx).unwrap().len(), 3, "our own objects are not listed");
    store.delete(&x, &ctx).unwrap();
    store.delete(&x, &ctx).unwrap();
    assert_eq!(store.size(&x, &ctx).unwrap(), None);
}

#[test]
fn s3s_keeps_a_stores_promises() {
    keeps_its_promises(Kind::S3s);
}

#[test]
fn moto_keeps_a_stores_promises() {
    keeps_its_promises(Kind::Moto);
}

#[test]
fn another_client_sees_the_headers_and_no_unfinished_upload() {
    let server = Server::start(Kind::Moto);
    let store = store(server.port, &server, "");
    let ctx = Ctx::silent();
    let dir = tempfile::tempdir().unwrap();
    store
        .put(
            &key("index"),
            b"{}",
            &Put { content_type: "application/json", keep: Keep::Briefly, condition: Condition::Always },
            &ctx,
        )
        .unwrap();
    store.put_file(&key("large"), &file(&dir, "l", 1, 11 * MIB), &how(Condition::Absent), &ctx).unwrap();
    let wrong = Source { sha256: "0".repeat(64), ..file(&dir, "w", 2, 11 * MIB) };
    store.put_file(&key("wrong"), &wrong, &how(Condition::Absent), &ctx).unwrap_err();
    let seen = server.boto(&format!(
        "for key in ['index', 'large']:\n    head = s3.head_object(Bucket='{BUCKET}', Key=key)\n    \
         print(head['ContentType'], '|', head['CacheControl'])\n\
         print(len(s3.list_multipart_uploads(Bucket='{BUCKET}').get('Uploads', [])))\n"
    ));
    assert_eq!(
        seen,
        "application/json | public, max-age=60\napplication/x-test | public, max-age=31536000, immutable\n0\n"
    );
}

#[test]
fn an_upload_that_was_cut_goes_on_where_it_was() {
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    let store = store(proxy.port, &server, "p");
    let ctx = Ctx::silent();
    let dir = tempfile::tempdir().unwrap();
    let large = file(&dir, "large", 7, 26 * MIB);
    store.check(&ctx).unwrap();
    // After the beginning and three parts of six everything is cut.
    let parts = |heads: &[String]| -> BTreeSet<String> {
        let number = |head: &String| head.split_once("partNumber=")?.1.split(['&', ' ']).next().map(str::to_owned);
        heads.iter().filter(|head| head.starts_with("PUT")).filter_map(number).collect()
    };
    proxy.rule(|number| (number >= 6).then_some(Fault::CutBefore));
    let error = store.put_file(&key("large"), &large, &how(Condition::Absent), &ctx).unwrap_err().to_string();
    assert!(error.contains("large"), "{error}");
    // A part that was on its way when the others failed comes late: it is cut as they were.
    let there = server.boto(&format!(
            "u = s3.list_multipart_uploads(Bucket='{BUCKET}')['Uploads']\nassert len(u) == 1\n\
             print(*[p['PartNumber'] for p in s3.list_parts(Bucket='{BUCKET}', Key=u[0]['Key'], UploadId=u[0]['UploadId']).get('Parts', [])])"
        ));
    let there: BTreeSet<String> = there.split_whitespace().map(str::to_owned).collect();
    assert!(!there.is_empty(), "nothing was there to go on with");
    proxy.rule(|_| None);
    yes(store.put_file(&key("large"), &large, &how(Condition::Absent), &ctx).unwrap());
    // A part whose answer comes late is sent twice, so it is their numbers that count.
    let sent = parts(&proxy.heads());
    assert!(sent.is_disjoint(&there), "sent again: {sent:?}, there were {there:?}");
    assert_eq!(sent.len() + there.len(), 6);
    assert!(read_back(&store, "large") == std::fs::read(&large.path).unwrap());

    // One that holds another file's parts is not taken for this one's.
    proxy.rule(|number| (number >= 6).then_some(Fault::CutBefore));
    store.put_file(&key("second"), &large, &how(Condition::Absent), &ctx).unwrap_err();
    proxy.rule(|_| None);
    let other = file(&dir, "other", 8, 26 * MIB);
    yes(store.put_file(&key("second"), &other, &how(Condition::Absent), &ctx).unwrap());
    assert!(read_back(&store, "second") == std::fs::read(&other.path).unwrap());
    assert_eq!(
        server.boto(&format!("print(len(s3.list_multipart_uploads(Bucket='{BUCKET}').get('Uploads', [])))")).trim(),
        "0"
    );
}

#[test]
fn a_read_that_is_cut_goes_on() {
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    let store = store(proxy.port, &server, "");
    let ctx = Ctx::silent();
    let dir = tempfile::tempdir().unwrap();
    let large = file(&dir, "large", 9, 9 * MIB);
    store.put_file(&key("large"), &large, &how(Condition::Always), &ctx).unwrap();
    proxy.rule(|number| (number < 3).then_some(Fault::CutAnswer));
    assert!(read_back(&store, "large") == std::fs::read(&large.path).unwrap());
    assert_eq!(proxy.heads().len(), 4);
    proxy.rule(|number| (number < 2).then_some(Fault::CutAnswer));
    assert_eq!(store.read(&key("large"), 10 << 20, &ctx).unwrap().unwrap().0.len(), 9 * MIB);
}

#[test]
fn without_conditional_writes_a_claim_keeps_writers_apart() {
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    proxy.drop_headers(&["if-match", "if-none-match"]);
    let counter = key("counter");
    let writers = 3;
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                let store = store(proxy.port, &server, "c");
                for _ in 0..4 {
                    add_one(&store, &counter);
                }
            });
        }
    });
    let store = store(proxy.port, &server, "c");
    assert_eq!(store.read(&counter, 100, &Ctx::silent()).unwrap().unwrap().0, (writers * 4).to_string().as_bytes());
    assert!(proxy.heads().iter().any(|head| head.contains("claims")), "no claim was made");
    let left = server
        .boto(&format!("print(s3.list_objects_v2(Bucket='{BUCKET}', Prefix='c/.slurm-factory/claims/')['KeyCount'])"));
    assert_eq!(left.trim(), "0");
}

fn add_one(store: &S3Store, counter: &Key) {
    let ctx = Ctx::silent();
    loop {
        let (value, condition) = match store.read(counter, 100, &ctx).unwrap() {
            None => (0, Condition::Absent),
            Some((bytes, version)) => {
                (String::from_utf8(bytes).unwrap().parse::<u32>().unwrap(), Condition::Unchanged(version))
            }
        };
        if store.put(counter, (value + 1).to_string().as_bytes(), &how(condition), &ctx).unwrap() != Written::Conflict {
            return;
        }
    }
}

#[test]
fn told_to_stop_it_stops() {
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    let ctx = Ctx { reporter: Arc::new(Silent), interrupt: Interrupt::new() };
    let store = store(proxy.port, &server, "");
    proxy.rule(|_| Some(Fault::Delay(Duration::from_secs(30))));
    let begin = Instant::now();
    let interrupt = ctx.interrupt.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        interrupt.set(15);
    });
    let answer = store.put(&key("x"), b"x", &how(Condition::Always), &ctx);
    assert!(matches!(answer, Err(StoreError::Interrupted(_))), "{answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn a_place_that_cannot_be_written_to_is_told_at_once() {
    let s3s = Server::start(Kind::S3s);
    let iam = Server::start(Kind::MotoIam);
    let moto = Server::start(Kind::Moto);
    let ctx = Ctx::silent();
    let refusal = |address: &str, options| {
        let begin = Instant::now();
        let error = S3Store::open(address, &options, &ctx).unwrap().check(&ctx).unwrap_err().to_string();
        assert!(begin.elapsed() < Duration::from_secs(20), "{address}: {:?}", begin.elapsed());
        error
    };
    let with = |server: &Server, access: &str, secret: &str| {
        let mut options = options(server.port, server);
        options.credentials = Some((access.to_owned(), slurm_factory::secret::Secret::new(secret.to_owned())));
        options
    };
    let here = format!("s3://{BUCKET}");
    let secret = "notTheSecretThatBelongsToTheKey";
    let cases = [
        (refusal(&here, with(&s3s, &s3s.access, secret)), "secret key is not the one"),
        (refusal("s3://nosuchbucket", options(moto.port, &moto)), "make the bucket `nosuchbucket` first"),
        (refusal(&here, options(iam.port, &iam)), "s3:PutObject"),
        (refusal(&here, options(1, &s3s)), "is the endpoint right"),
    ];
    for (error, hint) in cases {
        assert!(error.contains(hint) && error.starts_with("s3://") && !error.contains(secret), "{error}");
    }
}
