//! `cargo bench`: ours beside its peers, in one sitting, on the same machine and input. Prints ratios of processor time and of
//! the least wall time; asserts nothing, because a time is no test.
//!
//! - image: pull from a loopback registry and unpack, against `skopeo copy` + `umoci unpack --rootless`, `podman pull`,
//!   `buildah pull`, and the floor: `curl | inflate | tar` with `openssl` hashing both streams, all of it counted
//! - sandbox: start of `/bin/true` in a read-only rootfs, against `bwrap`, `crun`, `ch-run` and `podman`; ten thousand forks
//!   and a walk of `/usr`, against the same without a sandbox
//!
//! ```text
//! cargo bench --bench peers               Debian's minbase (170 MB)
//! cargo bench --bench peers -- sandbox    only sandboxes (a few minutes); see sandbox.rs for the release's figures
//! cargo bench --bench peers -- sandbox walks    these rows alone (also `starts`, `forks`)
//! cargo bench --bench peers -- large      also an image of 1 GB and 40,000 files (4 GB of memory, ten minutes)
//! cargo bench --bench peers -- large podman    the same, with this peer alone (also `skopeo`, `buildah`, `curl`)
//! cargo bench --bench peers -- elf        search paths and whole trees, see elf.rs
//! cargo bench --bench peers -- archive    the package's archive, see archive.rs
//! cargo bench --bench peers -- buildcache    a push of the Slurm stack, see buildcache.rs
//! ```
//!
//! Needs docker-registry, skopeo, umoci, podman, buildah, bwrap, crun, charliecloud, mmdebstrap, curl, openssl, isal, pigz, zstd (Debian's packages).
//! Targets are fresh folders on tmpfs (`/dev/shm`). All sides run as programs of their own, so that their processor time
//! is counted alike.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod archive;
mod buildcache;
mod elf;

use slurm_factory::cache::Cache;
use slurm_factory::image::{self, ClientConfig, Platform, Reference, ResolveOptions};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, unpack_owned};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

mod sandbox;

fn main() {
    slurm_factory::sandbox::init_if_helper();
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("--ours-image") => ours_image(&args[2], Path::new(&args[3]), Path::new(&args[4])),
        Some("--ours-again") => ours_again(&args[2], Path::new(&args[3])),
        Some("--ours-elf") => elf::ours(Path::new(&args[2]), Path::new(&args[3])),
        Some("--ours-tree") => elf::ours_tree(Path::new(&args[2]), Path::new(&args[3])),
        Some("--ours-verify") => elf::ours_verify(Path::new(&args[2])),
        _ if args.iter().any(|a| a == "elf") => elf::compare(work().path()),
        Some("--ours-archive") => archive::ours(Path::new(&args[2]), Path::new(&args[3]), &args[4]),
        Some("--ours-signature") => archive::signature(Path::new(&args[2])),
        Some("archive") => archive::compare(work().path()),
        Some("buildcache") => buildcache::compare(work().path()),
        Some("sandbox") => sandbox_alone(),
        _ => compare(),
    }
}

fn ours_image(reference: &str, cache: &Path, dest: &Path) {
    let ctx = Ctx::silent();
    let cache = Cache::open(cache).unwrap();
    let reference: Reference = reference.parse().unwrap();
    let client = ClientConfig::default();
    let platform = Platform::host().unwrap();
    let resolved = image::resolve(&reference, platform, &cache, &client, ResolveOptions::default(), &ctx).unwrap();
    let arriving = image::begin(&resolved, &cache, &client, false, &ctx).unwrap();
    fs_err::create_dir_all(dest).unwrap();
    unpack_owned(arriving, dest, &Limits::default(), &ctx).unwrap();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    println!("{}", usage.max_rss());
}

fn ours_again(reference: &str, cache: &Path) {
    let ctx = Ctx::silent();
    let cache = Cache::open(cache).unwrap();
    let (reference, client): (Reference, _) = (reference.parse().unwrap(), ClientConfig::default());
    let options = ResolveOptions { refresh: true, ..ResolveOptions::default() };
    let resolved = image::resolve(&reference, Platform::host().unwrap(), &cache, &client, options, &ctx).unwrap();
    image::pull(&resolved, &cache, &client, false, &ctx).unwrap();
}

/// Processor time and wall time of a command and all that it started.
#[derive(Clone, Copy)]
struct Cost {
    cpu: Duration,
    wall: Duration,
}

fn children_cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap();
    let time = |t: nix::sys::time::TimeVal| {
        Duration::new(u64::try_from(t.tv_sec()).unwrap(), u32::try_from(t.tv_usec()).unwrap() * 1000)
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn measure(run: impl FnOnce()) -> Cost {
    let (cpu, start) = (children_cpu(), Instant::now());
    run();
    Cost { cpu: children_cpu().saturating_sub(cpu), wall: start.elapsed() }
}

fn command(argv: &[&str]) -> String {
    let output = Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot start {}: {e}; it is a package of Debian", argv[0]));
    assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn best(rounds: usize, run: impl FnMut(usize) -> Cost) -> Cost {
    together((0..rounds).map(run))
}

/// The least of each: what disturbs a run only ever adds to it. (A virtual machine's memory that was not used for a while costs more
/// processor time than the copy that is written to it.)
fn together(costs: impl IntoIterator<Item = Cost>) -> Cost {
    let least = |a: Cost, b: Cost| Cost { cpu: a.cpu.min(b.cpu), wall: a.wall.min(b.wall) };
    costs.into_iter().reduce(least).unwrap()
}

fn row(what: &str, ours: Cost, peer: &str, theirs: Cost) {
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    println!(
        "{what:<22} ours: {:>8.1} ms cpu {:>8.1} ms wall | {peer}: {:>8.1} ms cpu {:>8.1} ms wall | ratio cpu {:.2} wall {:.2}",
        ms(ours.cpu),
        ms(ours.wall),
        ms(theirs.cpu),
        ms(theirs.wall),
        ours.cpu.as_secs_f64() / theirs.cpu.as_secs_f64(),
        ours.wall.as_secs_f64() / theirs.wall.as_secs_f64(),
    );
}

struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn registry(work: &Path) -> Registry {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let config = work.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}}}\n",
        work.join("registry").display()
    );
    fs_err::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry (package docker-registry)");
    for _ in 0..100 {
        if std::net::TcpStream::connect(&address).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Registry { child, address }
}

/// Packages that make an image of more than 1 GB and 40,000 files.
const LARGE: &str = "build-essential,gfortran,git,cmake,clang,python3-dev,python3-numpy,openjdk-17-jdk-headless,\
                     linux-headers-amd64,golang-go,perl-doc,texinfo,libboost-dev";

/// A folder on tmpfs that goes with the value.
fn work() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sfb.").tempdir_in("/dev/shm").expect("/dev/shm, a tmpfs")
}

fn compare() {
    let work = work();
    let work = work.path();
    let make = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/make-base-image.sh");
    println!("making images ...");
    command(&[make, &text(work)]);
    let registry = registry(work);
    let small = format!("oci:{}/oci:debian12", work.display());
    let mut images = vec![("minbase", small)];
    if std::env::args().any(|a| a == "large") {
        images.push(("large", large(work)));
    }
    for (image, from) in &images {
        for (format, inflate) in [("gzip", "igzip -d -c"), ("zstd", "zstd -d -c -q")] {
            let tag = format!("{image}-{format}");
            // Through a layout: a registry that holds the gzip blobs would use them again.
            let layout = format!("oci:{}:{tag}", work.join(format!("layout-{tag}")).display());
            let mut copy = vec!["skopeo", "copy", "--quiet", "--dest-compress", "--dest-compress-format", format];
            copy.extend(["--dest-compress-level", if format == "zstd" { "3" } else { "6" }, from, &layout]);
            command(&copy);
            let name = format!("{}/bench/{tag}:t", registry.address);
            command(&["skopeo", "copy", "--quiet", "--dest-tls-verify=false", &layout, &format!("docker://{name}")]);
            images_of_one_kind(work, &registry, &tag, inflate);
        }
    }
    sandbox::compare(&work.join("o-minbase-gzip-0"), work);
}

fn sandbox_alone() {
    let work = tempfile::Builder::new().prefix("sfb.").tempdir_in("/dev/shm").expect("/dev/shm, a tmpfs");
    let root = work.path().join("root");
    println!("making a root file system ...");
    command(&["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "bookworm", &text(&root)]);
    sandbox::compare(&root, work.path());
    remove(&root);
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn large(work: &Path) -> String {
    let (tar, layout) = (text(&work.join("large.tar")), text(&work.join("large")));
    command(&[
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--mode=root",
        &format!("--include={LARGE}"),
        "bookworm",
        &tar,
    ]);
    let image = format!("{layout}:t");
    command(&["umoci", "init", "--layout", &layout]);
    command(&["umoci", "new", "--image", &image]);
    command(&["umoci", "raw", "add-layer", "--image", &image, &tar]);
    command(&["umoci", "config", "--image", &image, "--architecture", "amd64", "--os", "linux"]);
    let listed = command(&["tar", "-tf", &tar]).lines().count();
    println!("large: {listed} entries, {} MB", fs_err::metadata(&tar).unwrap().len() / 1_000_000);
    fs_err::remove_file(&tar).unwrap();
    format!("oci:{image}")
}

/// Its name, and how it pulls and unpacks into a folder.
type Peer<'a> = (&'a str, &'a dyn Fn(&Path));

/// Ours and every peer on one image, in turns: what the machine does meanwhile, and whether memory is fresh, meets all alike.
/// Each round is in a folder that was never used, deleted after it.
fn images_of_one_kind(work: &Path, registry: &Registry, tag: &str, inflate: &str) {
    let me = text(&std::env::current_exe().unwrap());
    let name = format!("{}/bench/{tag}:t", registry.address);
    let source = format!("docker://{name}");
    let fresh = |who: &str, round: usize| work.join(format!("{who}-{tag}-{round}"));
    // umoci of Debian 12 reads no zstd layers: there skopeo alone is measured, without the unpacking.
    let unpacks = tag.ends_with("gzip");
    let skopeo = |dir: &Path| {
        let layout = format!("{}/l:t", dir.display());
        command(&["skopeo", "copy", "--quiet", "--src-tls-verify=false", &source, &format!("oci:{layout}")]);
        if unpacks {
            command(&["umoci", "unpack", "--rootless", "--image", &layout, &text(&dir.join("u"))]);
        }
    };
    let containers = |program: &str, dir: &Path| {
        // podman takes no runroot of more than 50 characters.
        let (root, run) = (text(&dir.join("root")), text(&work.join("run")));
        let storage = ["--root", &root, "--runroot", &run, "--storage-driver", "overlay"];
        command(&[&[program], &storage[..], &["pull", "--quiet", "--tls-verify=false", &name]].concat());
        // A mount of the store would keep it from being deleted.
        let _ = nix::mount::umount(&dir.join("root/overlay"));
    };
    let (podman, buildah) = (|dir: &Path| containers("podman", dir), |dir: &Path| containers("buildah", dir));
    let manifest = command(&["skopeo", "inspect", "--raw", "--tls-verify=false", &source]);
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let blob = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let url = format!("http://{}/v2/bench/{tag}/blobs/{blob}", registry.address);
    // The shell's own `>(openssl)` would be a child of `tee`, which nobody waits for and whose time nobody counts.
    let floor = |dir: &Path| {
        let script = format!(
            "set -euo pipefail; cd '{}'; mkdir tree; mkfifo blob content; \
             openssl dgst -sha256 <blob >blob.sum & openssl dgst -sha256 <content >content.sum & \
             curl -sf {url} | tee blob | {inflate} | tee content | tar -x -C tree && wait",
            dir.display()
        );
        command(&["bash", "-c", &script]);
        let sum = fs_err::read_to_string(dir.join("blob.sum")).unwrap();
        assert!(sum.contains(&blob["sha256:".len()..]), "{sum}");
    };
    let all: [Peer<'_>; 4] = [
        (if unpacks { "skopeo+umoci" } else { "skopeo alone" }, &skopeo),
        ("podman", &podman),
        ("buildah", &buildah),
        ("curl, inflate, tar", &floor),
    ];
    let asked: Vec<String> =
        std::env::args().filter(|a| ["skopeo", "podman", "buildah", "curl"].contains(&a.as_str())).collect();
    let wanted = |who: &str| asked.is_empty() || asked.iter().any(|a| who.starts_with(a.as_str()));
    let mut peers: Vec<_> = all.iter().filter(|(who, _)| wanted(who)).map(|peer| (peer, Vec::new())).collect();
    let (mut ours, mut memory) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let (cache, dest) = (fresh("c", round), fresh("o", round));
        let mut rss = String::new();
        ours.push(measure(|| rss = command(&[&me, "--ours-image", &name, &text(&cache), &text(&dest)])));
        memory = memory.max(rss.trim().parse::<u64>().unwrap());
        remove(&cache);
        // The first one stays: the sandbox starts in it.
        if round > 0 {
            remove(&dest);
        }
        for ((who, run), costs) in &mut peers {
            let dir = fresh(who, round);
            fs_err::create_dir_all(&dir).unwrap();
            costs.push(measure(|| run(&dir)));
            remove(&dir);
        }
    }
    println!("{tag:<22} ours: at most {} MB of memory", memory / 1000);
    for ((who, _), costs) in peers {
        row(tag, together(ours.iter().copied()), who, together(costs));
    }
    // What is measured is the pull and the unpacking of an image that is not there; a second pull is another matter.
    let cache = work.join(format!("again-{tag}"));
    command(&[&me, "--ours-image", &name, &text(&cache), &text(&fresh("a", 0))]);
    let again = best(ROUNDS, |_| measure(|| drop(command(&[&me, "--ours-again", &name, &text(&cache)]))));
    println!(
        "{tag:<22} ours: a second pull, the tag asked for again: {:.1} ms wall",
        again.wall.as_secs_f64() * 1000.0
    );
    remove(&fresh("a", 0));
    remove(&cache);
}

fn remove(dir: &Path) {
    slurm_factory::fsutil::remove_tree(dir).unwrap();
}
