//! `cargo bench`: ours beside its peers, in one sitting, on the same machine and input. Prints ratios of processor time and of
//! the least wall time; asserts nothing, because a time is no test.
//!
//! - image: pull from a loopback registry and unpack, against `skopeo copy` + `umoci unpack --rootless`
//! - sandbox: start of `/bin/true` in a read-only rootfs, against `bwrap`
//!
//! Needs docker-registry, skopeo, umoci, bwrap, mmdebstrap (Debian's packages). Targets are fresh folders on tmpfs
//! (`/dev/shm`). Both sides run as programs of their own, so that their processor time is counted alike.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

use slurm_factory::cache::Cache;
use slurm_factory::image::{self, ClientConfig, Platform, Reference, ResolveOptions};
use slurm_factory::report::Ctx;
use slurm_factory::rootfs::{Limits, unpack};
use slurm_factory::sandbox::{Backend, Io, Sandbox, Spec};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const STARTS: usize = 30;

fn main() {
    slurm_factory::sandbox::init_if_helper();
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("--ours-image") => ours_image(&args[2], Path::new(&args[3]), Path::new(&args[4])),
        Some("--ours-sandbox") => ours_sandbox(Path::new(&args[2])),
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
    let pulled = image::pull(&resolved, &cache, &client, false, &ctx).unwrap();
    fs_err::create_dir_all(dest).unwrap();
    unpack(&pulled, dest, &Limits::default(), &ctx).unwrap();
}

fn ours_sandbox(root: &Path) {
    let ctx = Ctx::silent();
    let sandbox = Sandbox::open(Backend::Userns, &ctx.interrupt).unwrap();
    let exit = sandbox.run(&Spec::build(root), &[OsString::from("/bin/true")], Io::Capture, &ctx.interrupt).unwrap();
    assert!(exit.success(), "{exit:?}");
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

fn command(argv: &[&str]) {
    let output = Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot start {}: {e}; it is a package of Debian", argv[0]));
    assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn best(rounds: usize, mut run: impl FnMut(usize) -> Cost) -> Cost {
    let costs: Vec<Cost> = (0..rounds).map(&mut run).collect();
    let count = u32::try_from(costs.len()).unwrap();
    Cost {
        cpu: costs.iter().map(|c| c.cpu).sum::<Duration>() / count,
        wall: costs.iter().map(|c| c.wall).min().unwrap(),
    }
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

fn compare() {
    let work =
        tempfile::Builder::new().prefix("slurm-factory-bench.").tempdir_in("/dev/shm").expect("/dev/shm, a tmpfs");
    let work = work.path();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let me = text(std::env::current_exe().unwrap());
    let make = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/make-base-image.sh");
    println!("making a base image ...");
    command(&[make, &text(work.to_owned())]);
    let registry = registry(work);
    for (name, options) in [("gzip", vec![]), ("zstd", vec!["--dest-compress", "--dest-compress-format", "zstd"])] {
        let layout = text(work.join(format!("layout-{name}")));
        let mut copy = vec!["skopeo", "copy", "--quiet"];
        copy.extend(options);
        let (from, to) = (format!("oci:{}/oci:debian12", work.display()), format!("oci:{layout}:t"));
        copy.extend([from.as_str(), to.as_str()]);
        command(&copy);
        let image = format!("{}/bench/{name}:t", registry.address);
        command(&["skopeo", "copy", "--quiet", "--dest-tls-verify=false", &to, &format!("docker://{image}")]);
    }
    for name in ["gzip", "zstd"] {
        let image = format!("{}/bench/{name}:t", registry.address);
        let ours = best(ROUNDS, |round| {
            let (cache, dest) = (work.join(format!("c-{name}-{round}")), work.join(format!("o-{name}-{round}")));
            measure(|| command(&[&me, "--ours-image", &image, &text(cache), &text(dest)]))
        });
        let theirs = best(ROUNDS, |round| {
            let (layout, dest) = (work.join(format!("l-{name}-{round}")), work.join(format!("u-{name}-{round}")));
            measure(|| {
                let to = format!("oci:{}:t", layout.display());
                command(&["skopeo", "copy", "--quiet", "--src-tls-verify=false", &format!("docker://{image}"), &to]);
                command(&["umoci", "unpack", "--rootless", "--image", &format!("{}:t", layout.display()), &text(dest)]);
            })
        });
        row(&format!("image {name}"), ours, "skopeo+umoci", theirs);
    }
    let root = text(work.join("o-gzip-0"));
    let ours = best(STARTS, |_| measure(|| command(&[&me, "--ours-sandbox", &root])));
    let theirs = best(STARTS, |_| {
        measure(|| {
            command(&[
                "bwrap",
                "--unshare-user",
                "--unshare-pid",
                "--unshare-ipc",
                "--unshare-uts",
                "--ro-bind",
                &root,
                "/",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--tmpfs",
                "/tmp",
                "--die-with-parent",
                "/bin/true",
            ]);
        })
    });
    row("sandbox start", ours, "bwrap", theirs);
}
