//! Sandboxes: how long one takes to start, and what it costs while it is there.
//!
//! All take turns, so that a busy moment of the machine hits all alike. Ours is the program as users start it
//! (`slurm-factory shell -- /bin/true`), which loads its configuration, locks the cache and says how it ended: the bench's own
//! build of it, or the one that `BENCH_PROGRAM` names (the release is linked otherwise).
//!
//! crun refuses hosts with both kinds of control groups, which it tells by the file system of `/sys/fs/cgroup`. Run by root on
//! such a host, the bench shows itself and its peers the newer kind alone, in a mount namespace of its own.

use super::{Cost, measure, text};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use slurm_factory::sandbox::Spec;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const STARTS: usize = 30;
/// podman's take a quarter of a second each.
const SLOW_STARTS: usize = 8;
const ROUNDS: usize = 5;
const FORKS: usize = 10_000;
/// In one sandbox, so that its start does not count.
const WALKS: usize = 30;

struct Peer {
    name: &'static str,
    argv: Vec<String>,
    rounds: usize,
}

/// Measures in `root`, a root file system of Debian with nothing mounted in it; `work` is for what peers need.
pub fn compare(root: &Path, work: &Path) {
    // Mount points: a read-only rootfs has them all, as one that we prepared.
    for dir in ["dev", "proc", "sys", "run", "tmp", "var/tmp", "root", "home", "mnt"] {
        fs_err::create_dir_all(root.join(dir)).unwrap();
    }
    let cache = work.join("shell-cache");
    fs_err::create_dir_all(&cache).unwrap();
    fs_err::write(cache.join("last-build.json"), serde_json::to_vec(&Spec::build(root)).unwrap()).unwrap();
    let program = std::env::var("BENCH_PROGRAM");
    let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_slurm-factory").into());
    let shell: Vec<String> = [&program, "--cache-dir", &text(&cache), "shell", "--"].map(str::to_owned).into();
    newer_control_groups_only();
    let asked: Vec<String> =
        std::env::args().filter(|word| ["starts", "walks", "forks"].contains(&word.as_str())).collect();
    let wanted = |what: &str| asked.is_empty() || asked.iter().any(|word| word == what);
    if wanted("starts") {
        starts(&shell, root, work);
    }
    let inside = |script: String| [shell.clone(), ["/bin/sh", "-c", &script].map(str::to_owned).into()].concat();
    let outside = |script: String| ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    let over: Vec<String> = [&shell[..shell.len() - 1], &["--writable=overlay", "--"].map(str::to_owned)].concat();
    let over = |script: String| [over.clone(), ["/bin/sh", "-c", &script].map(str::to_owned).into()].concat();
    let forks = format!("i=0; while [ $i -lt {FORKS} ]; do /bin/true; i=$((i+1)); done");
    if wanted("forks") {
        against_native("10,000 forks", inside(forks.clone()), outside(forks.clone()));
        against_native("10,000 forks, overlay", over(forks.clone()), outside(forks));
    }
    if !wanted("walks") {
        return;
    }
    let usr = text(&root.join("usr"));
    let native = || outside(walks(&usr));
    least_walks("walks of /usr", &inside(walks("/usr")), &native());
    let relaxed = work.join("relaxed.toml");
    fs_err::write(&relaxed, "confinement = \"relaxed\"\n").unwrap();
    let relaxed = [&shell[..1], &["--config".to_owned(), text(&relaxed)], &shell[1..]].concat();
    let relaxed = [relaxed, ["/bin/sh", "-c", &walks("/usr")].map(str::to_owned).into()].concat();
    least_walks("walks of /usr, relaxed", &relaxed, &native());
    least_walks("walks of /usr, overlay", &over(walks("/usr")), &native());
    // What the kernel takes for a filter that does nothing, and for an overlay that nobody confines: less cannot be had.
    least_walks("walks, bwrap with an empty filter", &filtered(root, work, &walks("/usr")), &native());
    if nix::unistd::geteuid().is_root() {
        least_walks("walks, the kernel's overlay", &overlaid(root, work, &walks("/mnt/usr")), &native());
    }
}

/// Walks of `top`, one after the other; says what the quickest took, in microseconds.
fn walks(top: &str) -> String {
    format!(
        "exec perl -MTime::HiRes=time -e '
            for (1..{WALKS}) {{
                my $began = time;
                system(\"find {top} -size +3 -newer {top}/bin >/dev/null\") == 0 or die;
                my $took = time - $began;
                $least = $took if !defined $least || $took < $least;
            }}
            printf \"%d\", 1e6 * $least'"
    )
}

/// The quickest walk of many: of all that can be said of so short a time only that repeats itself.
fn least_walks(what: &str, ours: &[String], native: &[String]) {
    let mut least = [u64::MAX; 2];
    for _ in 0..ROUNDS {
        for (argv, least) in [ours, native].into_iter().zip(&mut least) {
            let output = run(argv);
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            *least = said.parse::<u64>().unwrap_or_else(|_| panic!("{argv:?}: {said}, {output:?}")).min(*least);
        }
    }
    let [ours, native] = least.map(|us| u32::try_from(us).map(f64::from).unwrap() / 1000.0);
    println!("{what:<34} ours: {ours:>8.2} ms | native: {native:>8.2} ms | ratio wall {:.3}", ours / native);
}

/// `script` under bwrap with one filter, which allows every call.
fn filtered(root: &Path, work: &Path, script: &str) -> Vec<String> {
    let filter = work.join("allow-all.bpf");
    // One `struct sock_filter` (linux/filter.h): BPF_RET | BPF_K, SECCOMP_RET_ALLOW.
    fs_err::write(&filter, [&6_u16.to_ne_bytes()[..], &[0, 0], &0x7fff_0000_u32.to_ne_bytes()].concat()).unwrap();
    let bwrap =
        "exec bwrap --unshare-all --ro-bind \"$1\" / --proc /proc --dev /dev --seccomp 9 /bin/sh -c \"$3\" 9<\"$2\"";
    ["/bin/sh", "-c", bwrap, "sh", &text(root), &text(&filter), script].map(str::to_owned).into()
}

/// `script` where `/mnt` is an overlay over `root` with an empty upper folder, in a mount namespace and nothing else.
fn overlaid(root: &Path, work: &Path, script: &str) -> Vec<String> {
    let [upper, scratch] = ["overlay-upper", "overlay-work"].map(|name| work.join(name));
    for dir in [&upper, &scratch] {
        fs_err::create_dir_all(dir).unwrap();
    }
    let mount = "mount -t overlay -o \"lowerdir=$1,upperdir=$2,workdir=$3\" overlay /mnt && exec /bin/sh -c \"$4\"";
    ["unshare", "-m", "/bin/sh", "-c", mount, "sh", &text(root), &text(&upper), &text(&scratch), script]
        .map(str::to_owned)
        .into()
}

fn newer_control_groups_only() {
    let newer = Path::new("/sys/fs/cgroup/unified");
    if !nix::unistd::geteuid().is_root() || !newer.join("cgroup.procs").exists() {
        return;
    }
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some(newer), "/sys/fs/cgroup", none, MsFlags::MS_BIND, none).unwrap();
    println!("start: this host has both kinds of control groups; the newer alone is shown to all, for crun's sake");
}

fn starts(shell: &[String], root: &Path, work: &Path) {
    let root_text = text(root);
    let words = |line: &str| line.split_whitespace().map(|word| word.replace("ROOT", &root_text)).collect::<Vec<_>>();
    let ours = Peer { name: "ours", argv: [shell, &["/bin/true".to_owned()]].concat(), rounds: STARTS };
    let bwrap = "bwrap --unshare-all --ro-bind ROOT / --proc /proc --dev /dev --tmpfs /tmp --die-with-parent /bin/true";
    let mut peers = vec![ours, Peer { name: "bwrap --unshare-all", argv: words(bwrap), rounds: STARTS }];
    peers.push(Peer { name: "crun run", argv: crun(root, work), rounds: STARTS });
    peers.push(Peer { name: "ch-run", argv: words("ch-run ROOT -- /bin/true"), rounds: STARTS });
    // runc cannot do without control groups, crun not with the old kind. Podman's own limits may be above the hard ones.
    for (name, start) in
        [("podman run", "podman run --cgroups=disabled"), ("podman run, runc", "podman --runtime=runc run")]
    {
        let limits = "--ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024";
        let argv = words(&format!("{start} --rm --network=host {limits} --rootfs ROOT /bin/true"));
        peers.push(Peer { name, argv, rounds: SLOW_STARTS });
    }
    // What refuses to run here is said, and is no figure.
    peers.retain(|peer| {
        let output = run(&peer.argv);
        let said = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
        if !output.status.success() {
            println!("start: {} does not run here: {said}", peer.name);
        }
        assert!(output.status.success() || peer.name != "ours", "{said}");
        output.status.success()
    });
    let costs = in_turns(&peers);
    for (peer, cost) in peers.iter().zip(&costs).skip(1) {
        super::row("start of /bin/true", costs[0], peer.name, *cost);
    }
}

/// A bundle, as the OCI runtime specification has it.
fn crun(root: &Path, work: &Path) -> Vec<String> {
    let bundle = work.join("bundle");
    fs_err::create_dir_all(&bundle).unwrap();
    let mut spec = Command::new("crun");
    spec.arg("spec").current_dir(&bundle);
    if !nix::unistd::geteuid().is_root() {
        spec.arg("--rootless");
    }
    assert!(spec.status().expect("crun is missing: apt-get install crun").success());
    let file = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs_err::read(&file).unwrap()).unwrap();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    // Without limits of its own, as ours: the newer control groups keep devices by a program for which memory must be locked.
    config["linux"].as_object_mut().unwrap().remove("resources");
    config["root"] = serde_json::json!({ "path": text(root), "readonly": true });
    fs_err::write(&file, config.to_string()).unwrap();
    ["crun", "--cgroup-manager=disabled", "run", "--bundle", &text(&bundle), "slurm-factory-bench"]
        .map(str::to_owned)
        .into()
}

fn run(argv: &[String]) -> std::process::Output {
    let user = std::env::var("USER").unwrap_or_else(|_| "root".into()); // ch-run asks for it
    let output = Command::new(&argv[0]).args(&argv[1..]).env("USER", user).stdin(Stdio::null()).output();
    output.unwrap_or_else(|e| panic!("cannot start {}: {e}; it is a package of Debian", argv[0]))
}

fn in_turns(peers: &[Peer]) -> Vec<Cost> {
    let mut costs = vec![Cost { cpu: Duration::ZERO, wall: Duration::MAX }; peers.len()];
    for round in 0..STARTS {
        for (peer, cost) in peers.iter().zip(&mut costs).filter(|(peer, _)| round < peer.rounds) {
            let mut success = false;
            let this = measure(|| success = run(&peer.argv).status.success());
            assert!(success, "{:?}", peer.argv);
            cost.cpu += this.cpu / u32::try_from(peer.rounds).unwrap();
            cost.wall = cost.wall.min(this.wall);
        }
    }
    costs
}

fn against_native(what: &str, ours: Vec<String>, native: Vec<String>) {
    let peers = [("ours", ours), ("native", native)].map(|(name, argv)| Peer { name, argv, rounds: ROUNDS });
    let costs = in_turns(&peers);
    super::row(what, costs[0], "native", costs[1]);
}
