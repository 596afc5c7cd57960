//! Layers are unpacked while they and later ones still come. The registry waits, in the middle of a layer, for what can only
//! be there when its begin has been unpacked; and it breaks off, starts anew and lies while someone reads.

use crate::protocol::{Content, hex, serve};
use crate::support::{Site, architecture, contains, make_image, make_layer, quick};
use fs_err as fs;
use slurm_factory::image::{self, ClientConfig, ResolveOptions};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, UnpackError, UnpackReport, unpack_owned};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes that do not compress.
fn noise(seed: u32, len: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24).to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Two layers of 4 MB in two files each, and a small one.
fn image(site: &Site) -> Content {
    let layers: Vec<PathBuf> = (1..=2)
        .map(|layer| {
            make_layer(site, &format!("l{layer}"), |tree| {
                for file in ["a", "b"] {
                    let name = format!("{file}{layer}");
                    fs::write(tree.join(&name), noise(layer, 2_000_000)).unwrap();
                }
            })
        })
        .chain([make_layer(site, "l3", |tree| {
            fs::write(tree.join(".wh.a1"), "").unwrap();
            fs::write(tree.join("last"), "last\n").unwrap();
        })])
        .collect();
    make_image(site, "layout", "t", architecture(), &layers);
    Content::of(site)
}

fn take(site: &Site, name: &str, dest: &Path, client: &ClientConfig) -> Result<UnpackReport, UnpackError> {
    take_until(site, name, dest, client, &Ctx::silent())
}

fn take_until(
    site: &Site,
    name: &str,
    dest: &Path,
    client: &ClientConfig,
    ctx: &Ctx,
) -> Result<UnpackReport, UnpackError> {
    let resolved = site.resolve(name, ResolveOptions::default()).unwrap();
    fs::create_dir_all(dest).unwrap();
    let arriving = image::begin(&resolved, &site.cache, client, false, ctx)?;
    let (pulled, report, _) = unpack_owned(arriving, dest, &Limits::default(), ctx)?;
    assert_eq!(pulled.layers().len(), 3);
    Ok(report)
}

fn assert_whole(dest: &Path) {
    assert_eq!(fs::read(dest.join("b1")).unwrap(), noise(1, 2_000_000));
    assert_eq!(fs::read(dest.join("a2")).unwrap(), noise(2, 2_000_000));
    assert_eq!(fs::read_to_string(dest.join("last")).unwrap(), "last\n");
    assert!(!dest.join("a1").exists(), "the last layer deletes it");
}

/// Whether it came to be within half a minute.
fn comes(what: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !what() {
        if start.elapsed() > Duration::from_secs(30) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn one_at_a_time() -> ClientConfig {
    ClientConfig { parallel: 1, read_timeout: Duration::from_secs(40), ..quick() }
}

#[test]
fn the_begin_of_a_layer_is_unpacked_before_its_end_is_there() {
    let site = Site::new();
    let content = image(&site);
    let dest = site.path("dest");
    let seen = Arc::new(AtomicUsize::new(0));
    let (address, _) = serve({
        let (dest, seen, layers) = (dest.clone(), seen.clone(), content.layers.clone());
        move |request| {
            let mut answer = content.honest(request);
            // Layer 1 ends only when one of its files is unpacked, layer 2 comes only when both are.
            for (layer, (at, files)) in layers.iter().zip([(3_000_000, 1), (0, 2)]) {
                if request.target.ends_with(layer) {
                    let (dest, seen) = (dest.clone(), seen.clone());
                    let whole = move |name: &&str| fs::metadata(dest.join(name)).is_ok_and(|m| m.len() == 2_000_000);
                    let unpacked = move || comes(|| ["a1", "b1"].iter().filter(|name| whole(name)).count() >= files);
                    let wait = move || _ = seen.fetch_add(usize::from(unpacked()), Ordering::SeqCst);
                    answer.pause = Some((at, Box::new(wait)));
                }
            }
            answer
        }
    });
    take(&site, &format!("{address}/x:t"), &dest, &one_at_a_time()).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 2, "the registry waited in vain");
    assert_whole(&dest);
}

#[test]
fn a_layer_that_is_cut_while_it_is_unpacked_goes_on() {
    let site = Site::new();
    let content = image(&site);
    let first = content.layers[0].clone();
    let (address, log) = serve(move |request| {
        let first = request.target.ends_with(&content.layers[0]);
        let mut answer = content.honest(request);
        if first && answer.body.len() > 1_000_000 {
            answer.cut = Some(1_000_000);
        }
        answer
    });
    take(&site, &format!("{address}/x:t"), &site.path("dest"), &quick()).unwrap();
    assert_whole(&site.path("dest"));
    let asked = log.lock().unwrap().iter().filter(|r| r.target.ends_with(&first)).count();
    assert!(asked >= 4, "{asked} requests");
}

/// A registry that knows no ranges sends a cut layer from its begin. What was read of it stays right as far as anyone knows,
/// and yet all is done again: only the digest of the whole tells.
#[test]
fn a_layer_that_begins_anew_while_it_is_unpacked() {
    let site = Site::new();
    let content = image(&site);
    let dest = site.path("dest");
    let cuts = AtomicUsize::new(1);
    let (address, log) = serve({
        let dest = dest.clone();
        move |request| {
            let first = request.target.ends_with(&content.layers[0]);
            let mut answer = content.honest(request);
            if first {
                answer = crate::protocol::answer("200 OK", &[], content.blob(&content.layers[0]).unwrap());
                if cuts.swap(0, Ordering::SeqCst) == 1 {
                    // Other bytes than the second time, and some of them have been unpacked.
                    answer.body[500_000..500_100].fill(0);
                    answer.cut = Some(3_000_000);
                    let file = dest.join("a1");
                    answer.pause = Some((2_900_000, Box::new(move || _ = comes(|| file.exists()))));
                }
            }
            answer
        }
    });
    take(&site, &format!("{address}/x:t"), &dest, &quick()).unwrap();
    assert_whole(&dest);
    assert!(log.lock().unwrap().iter().any(|r| r.header("range").is_some()), "it was cut");
}

#[test]
fn a_layer_with_other_bytes_is_an_error_and_is_not_kept() {
    let site = Site::new();
    let content = image(&site);
    let layer = content.layers[1].clone();
    let (address, _) = serve(move |request| {
        let second = request.target.ends_with(&content.layers[1]);
        let mut answer = content.honest(request);
        if second {
            // In the middle of a file's content, stored or in a deflated block: wherever it is, the digest is another.
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 1;
        }
        answer
    });
    let error = take(&site, &format!("{address}/x:t"), &site.path("dest"), &quick()).unwrap_err();
    contains(&error, &[&layer, "expected"]);
    site.assert_no_blob(&layer);
}

#[test]
fn a_layer_that_never_comes_is_the_download_s_error() {
    let site = Site::new();
    let content = image(&site);
    let (address, _) = serve(move |request| {
        if request.target.ends_with(&content.layers[1]) {
            return crate::protocol::answer("404 Not Found", &[], "");
        }
        content.honest(request)
    });
    let error = take(&site, &format!("{address}/x:t"), &site.path("dest"), &quick()).unwrap_err();
    contains(&error, &["has no blob", "404"]);
}

/// What is wrong with a layer is said at once, whatever is still under way.
#[test]
fn a_refused_layer_ends_the_download() {
    let site = Site::new();
    let hostile = make_layer(&site, "hostile", |tree| fs::write(tree.join("x"), "x").unwrap());
    crate::support::run(
        "tar",
        ["--append", "--absolute-names", "--transform=s,.*,../../x,", "-f", hostile.to_str().unwrap(), "/etc/hostname"],
    );
    let long = make_layer(&site, "long", |tree| fs::write(tree.join("long"), noise(3, 2_000_000)).unwrap());
    make_image(&site, "layout", "t", architecture(), &[hostile, long]);
    let content = Content::of(&site);
    let let_go = Arc::new(AtomicBool::new(false));
    let (address, _) = serve({
        let let_go = let_go.clone();
        move |request| {
            let mut answer = content.honest(request);
            if request.target.ends_with(&content.layers[1]) {
                let let_go = let_go.clone();
                answer.pause = Some((1000, Box::new(move || _ = comes(|| let_go.load(Ordering::SeqCst)))));
            }
            answer
        }
    });
    let start = Instant::now();
    let error = take(&site, &format!("{address}/x:t"), &site.path("dest"), &one_at_a_time()).unwrap_err();
    let took = start.elapsed();
    let_go.store(true, Ordering::SeqCst);
    contains(&error, &["is refused", "../../x"]);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn an_interrupt_ends_both() {
    let site = Site::new();
    let content = image(&site);
    let first = content.layers[0].clone();
    let (address, _) = serve(move |request| {
        let mut answer = content.honest(request);
        if request.target.ends_with(&content.layers[0]) {
            answer.pause = Some((1_000_000, Box::new(|| std::thread::sleep(Duration::from_secs(20)))));
        }
        answer
    });
    let ctx = Ctx::silent();
    let partial = site.cache.dir("blobs").join("partial").join(hex(&first));
    let (error, took) = std::thread::scope(|scope| {
        let (name, dest, client) = (format!("{address}/x:t"), site.path("dest"), one_at_a_time());
        let (site, ctx) = (&site, &ctx);
        let taking = scope.spawn(move || take_until(site, &name, &dest, &client, ctx).unwrap_err());
        assert!(comes(|| fs::metadata(&partial).is_ok_and(|m| m.len() >= 1_000_000)));
        let asked = Instant::now();
        ctx.interrupt.set(2);
        (taking.join().unwrap(), asked.elapsed())
    });
    assert!(matches!(error, UnpackError::Interrupted(_)), "{error}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    site.assert_no_blob(&first);
    assert!(partial.exists(), "the next run goes on with it");
}
