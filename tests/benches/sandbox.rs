//! Sandboxes: how long one takes to start, and what it costs while it is there.
//!
//! All take turns, so that a busy moment of the machine hits all alike. Ours is the program as users start it
//! (`slurm-factory shell -- /bin/true`), which loads its configuration, locks the cache and says how it ended.

use super::{Cost, measure, text};
use slurm_factory::sandbox::Spec;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const STARTS: usize = 30;
/// podman's take a quarter of a second each.
const SLOW_STARTS: usize = 8;
const ROUNDS: usize = 5;
const FORKS: usize = 10_000;

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
    let shell: Vec<String> =
        [env!("CARGO_BIN_EXE_slurm-factory"), "--cache-dir", &text(&cache), "shell", "--"].map(str::to_owned).into();
    starts(&shell, root, work);
    let inside = |script: String| [shell.clone(), ["/bin/sh", "-c", &script].map(str::to_owned).into()].concat();
    let outside = |script: String| ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    let forks_of = |n: usize| format!("i=0; while [ $i -lt {n} ]; do /bin/true; i=$((i+1)); done");
    against_native("10,000 forks", inside(forks_of(FORKS)), outside(forks_of(FORKS)));
    let walk = |top: &str| format!("for i in 1 2 3 4 5 6 7 8; do find {top} -size +3 -newer {top}/bin; done | wc -l");
    against_native("walk of /usr", inside(walk("/usr")), outside(walk(&text(&root.join("usr")))));
    let over: Vec<String> = [&shell[..shell.len() - 1], &["--writable=overlay", "--"].map(str::to_owned)].concat();
    let over = |script: String| [over.clone(), ["/bin/sh", "-c", &script].map(str::to_owned).into()].concat();
    against_native("10,000 forks, overlay", over(forks_of(FORKS)), outside(forks_of(FORKS)));
    against_native("walk of /usr, overlay", over(walk("/usr")), outside(walk(&text(&root.join("usr")))));
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
    config["root"] = serde_json::json!({ "path": text(root), "readonly": true });
    fs_err::write(&file, config.to_string()).unwrap();
    ["crun", "run", "--bundle", &text(&bundle), "slurm-factory-bench"].map(str::to_owned).into()
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
