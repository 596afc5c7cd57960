//! SIGKILL in the middle of a download and in the middle of unpacking, to the real program run by an ordinary user against a
//! real registry: the next run goes on where the last one was, and nothing that was left can be taken for good.

use crate::oci::{Blob, Member, Pack, archive, image};
use crate::prepared;
use crate::support::{Registry, Site, contains, count};
use crate::user::User;
use fs_err as fs;
use slurm_factory::image::Digest;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How many times to kill at random; `tests/deep` says more.
const KILLS: &str = "SLURM_FACTORY_TEST_KILLS";

/// A proxy in front of a registry that writes down what is asked and can be slow.
struct Recorder {
    port: u16,
    slow: Arc<AtomicBool>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    fn before(registry: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (slow, heads) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let recorder = Self { port, slow: slow.clone(), heads: heads.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (slow, heads) = (slow.clone(), heads.clone());
                std::thread::spawn(move || {
                    let server = TcpStream::connect(("127.0.0.1", registry)).unwrap();
                    let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    std::thread::spawn(move || record(from, to, &heads));
                    pass(server, client, &slow);
                });
            }
        });
        recorder
    }

    /// The `Range` of each request for this blob since the last call, `None` for the whole.
    fn ranges(&self, digest: &str) -> Vec<Option<String>> {
        let heads = std::mem::take(&mut *self.heads.lock().unwrap());
        let asked = heads.iter().filter(|head| head.lines().next().is_some_and(|line| line.contains(digest)));
        asked
            .map(|head| {
                let lines = head.lines().map(str::to_ascii_lowercase);
                lines.into_iter().find_map(|line| line.strip_prefix("range: ").map(str::to_owned))
            })
            .collect()
    }
}

/// Requests have no body: what a client sends is heads.
fn record(mut from: TcpStream, mut to: TcpStream, heads: &Mutex<Vec<String>>) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        while let Some(end) = text.find("\r\n\r\n") {
            heads.lock().unwrap().push(text.drain(..end + 4).collect());
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// About 10 MB a second when slow.
fn pass(mut from: TcpStream, mut to: TcpStream, slow: &AtomicBool) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
        if slow.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(3));
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8).to_le_bytes()[0]
    };
    (0..len).map(next).collect()
}

/// SIGKILL, and then nobody of it is left.
fn kill(mut child: Child) {
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success(), "it was quicker than the test: {status}");
}

/// Waits until `ready`, for at most half a minute; ends early when the child has ended.
fn wait_until(child: &mut Child, mut ready: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happens");
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Every whole blob is what its name says; returns how many there are.
fn sound(cache: &Path) -> usize {
    let blobs = fs::read_dir(cache.join("blobs/sha256")).into_iter().flatten();
    let check = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with(".tmp-") {
            return 0;
        }
        let digest = Digest::of(&fs::read(&path).unwrap()).hex();
        assert_eq!(path.file_name().unwrap().to_str(), Some(digest.as_str()), "it is not what its name says");
        1
    };
    blobs.map(check).sum()
}

#[test]
fn a_download_that_is_killed_goes_on_where_it_was() {
    const SIZE: usize = 16 << 20;
    let site = Site::new();
    let registry = Registry::start();
    let content = archive(&[Member::file("noise", noise(SIZE, 7))]);
    let small = archive(&[Member::file("small", "small")]);
    let layers = [Blob::new(Pack::Gzip, &content), Blob::new(Pack::Gzip, &small)];
    let (digest, size) = (layers[0].digest, layers[0].size);
    let source = image(&site.path("image"), &layers);
    registry.push(&source, "killed:1", &[]);
    let recorder = Recorder::before(registry.port);
    let user = User::new();
    let cache = user.home().join("cache");
    let name = format!("127.0.0.1:{}/killed:1", recorder.port);
    let pull = ["-q", "image", "pull", &name];
    let partial = cache.join("blobs/partial").join(digest.hex());
    let there = || fs::metadata(&partial).map_or(0, |m| m.len());

    let mut before = 0;
    for step in 1..=4_u64 {
        let mut child = user.program(&pull).stdout(Stdio::null()).spawn().unwrap();
        let caught = wait_until(&mut child, || there() > before && there() >= step * 2_500_000);
        assert!(caught, "it ended by itself");
        kill(child);
        let left = there();
        assert!(left > before && left < size, "{left} of {size}");
        assert!(!cache.join("blobs/sha256").join(digest.hex()).exists(), "a part under the name of the whole");
        sound(&cache);
        // What a build or a save would take is what is whole.
        let (code, _, said) = user.run(&["-q", "image", "save", &name, "out", "--offline"]);
        assert_eq!(code, 3, "{said}");
        contains(&said, &["offline", &digest.to_string()]);

        // Exactly the next byte is asked for, also by the one after this.
        let wanted = if before == 0 { None } else { Some(format!("bytes={before}-")) };
        assert_eq!(recorder.ranges(&digest.to_string()), [wanted], "step {step}");
        before = left;
    }
    recorder.slow.store(false, Ordering::Relaxed);
    let (code, printed, said) = user.run(&pull);
    assert_eq!(code, 0, "{said}");
    assert_eq!(recorder.ranges(&digest.to_string()), [Some(format!("bytes={before}-"))]);
    assert!(!partial.exists());
    assert_eq!(sound(&cache), 4, "manifest, configuration, two layers");
    assert!(cache.join("blobs/sha256").join(printed.trim().strip_prefix("sha256:").unwrap()).exists());

    // And once whole, nothing is asked again.
    assert_eq!(user.run(&pull).0, 0);
    assert_eq!(recorder.ranges(&digest.to_string()), []);
}

#[test]
fn kills_at_any_time_leave_nothing_that_could_be_taken_for_good() {
    let site = Site::new();
    let registry = Registry::start();
    let layers: Vec<Blob> = (0..4)
        .map(|i| Blob::new(Pack::Zstd, &archive(&[Member::file(format!("noise{i}"), noise(1 << 20, i + 3))])))
        .collect();
    registry.push(&image(&site.path("image"), &layers), "killed:1", &[]);
    let recorder = Recorder::before(registry.port);
    let user = User::new();
    let cache = user.home().join("cache");
    let name = format!("127.0.0.1:{}/killed:1", recorder.port);
    let pull = ["-q", "image", "pull", &name];
    let mut killed = 0;
    for round in 0..count(KILLS, 40) as u64 {
        recorder.slow.store(round % 3 == 0, Ordering::Relaxed);
        let mut child = user.program(&pull).stdout(Stdio::null()).spawn().unwrap();
        // From before anything is opened to after everything is done.
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(7919) % 60 * 2000));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        if sound(&cache) == 6 {
            slurm_factory::fsutil::remove_tree(&cache).unwrap();
        }
    }
    assert!(killed > 5, "{killed}");
    recorder.slow.store(false, Ordering::Relaxed);
    let (code, _, said) = user.run(&pull);
    assert_eq!(code, 0, "{said}");
    assert_eq!(sound(&cache), 6);
    let (code, _, said) = user.run(&["-q", "image", "save", &name, "out"]);
    assert_eq!(code, 0, "{said}");
}

/// A prepared rootfs that was loaded is unpacked by `build`, which then finds that Spack is none.
#[test]
fn unpacking_that_is_killed_is_begun_again() {
    const DIRS: usize = 60;
    const FILES: usize = 50;
    let user = User::new();
    let home = user.home();
    let base = "registry.test/site/base:1";
    fs::create_dir_all(home.join("base/etc")).unwrap();
    user.give(&home);
    let run = |args: &[&str]| {
        let (code, out, said) = user.run(args);
        assert_eq!(code, 0, "{args:?}: {said}");
        out
    };
    run(&["-q", "image", "save", "dir:base", "base.tar", "--name", base]);
    run(&["-q", "image", "load", "base.tar"]);
    let digest = run(&["-q", "image", "pull", base, "--offline"]).trim().to_owned();
    let entries = home.join("cache/rootfs");
    let entry = prepared::debian12(&home.join("cache"), base, &digest);
    for dir in 0..DIRS {
        let dir = entry.join(format!("root/d{dir:03}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..FILES {
            fs::write(dir.join(file.to_string()), noise(2000, u32::try_from(file).unwrap())).unwrap();
        }
    }
    user.give(&home);
    run(&["-q", "image", "save", "--prepared", base, "prepared.tar"]);
    slurm_factory::fsutil::remove_tree(&entries).unwrap();
    run(&["-q", "image", "load", "prepared.tar"]);

    for tree in ["spack", "packages"] {
        fs::create_dir_all(home.join(tree).join("x")).unwrap();
    }
    user.give(&home);
    let build = [
        ["build", "--offline", "--toolchain", "debian12", "--image", base].as_slice(),
        &["--spack-source", "spack", "--spack-packages", "packages"],
    ]
    .concat();
    let under_way = || -> usize {
        let staged = fs::read_dir(&entries).into_iter().flatten().map(|e| e.unwrap().path().join("root"));
        staged.filter_map(|root| fs::read_dir(root).ok()).map(Iterator::count).sum()
    };
    let mut caught = 0;
    for step in [0, 1, 15, 30, 45, DIRS - 1] {
        let mut child = user.program(&build).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until(&mut child, || under_way() > step);
        // Quicker than we can look is possible on the last steps; then it is done, and there is nothing to see.
        let _ = child.kill();
        child.wait().unwrap();
        if entry.exists() {
            slurm_factory::fsutil::remove_tree(&entry).unwrap();
            continue;
        }
        caught += 1;
        assert!(under_way() > 0 || step == 0, "it was in the middle");
        // Nothing but what is named as under way.
        for left in fs::read_dir(&entries).unwrap() {
            let left = left.unwrap().file_name();
            assert!(slurm_factory::fsutil::is_temporary(&left), "{}", left.display());
        }
    }
    assert!(caught >= 4, "{caught}");
    let (code, _, said) = user.run(&build);
    assert_ne!(code, 0, "there is no Spack");
    contains(&said, &["unpacked as it was saved, GCC 12.2.0"]);
    for dir in 0..DIRS {
        for file in 0..FILES {
            let path = entry.join(format!("root/d{dir:03}/{file}"));
            assert_eq!(fs::read(&path).unwrap(), noise(2000, u32::try_from(file).unwrap()), "{}", path.display());
        }
    }
    // What the killed runs left is gone.
    let names: Vec<_> = fs::read_dir(&entries).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [entry.file_name().unwrap()]);
}
