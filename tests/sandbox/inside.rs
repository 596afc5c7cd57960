//! Who one is inside, what is seen, what can be written, and what root's calls do.

use crate::Test;
use crate::world::World;
use fs_err as fs;
use slurm_factory::report::Interrupt;
use slurm_factory::sandbox::{Access, Content, Io, Network, Spec};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::path::Path;

pub const TESTS: &[Test] = &[
    ("ids", ids),
    ("environment_is_what_was_given", environment_is_what_was_given),
    ("no_descriptor_leaks_in", no_descriptor_leaks_in),
    ("signal_mask_is_empty", signal_mask_is_empty),
    ("umask_hostname_cwd_cpus", umask_hostname_cwd_cpus),
    ("devices", devices),
    ("shared_memory_has_its_size", shared_memory_has_its_size),
    ("rootfs_of_a_build_is_read_only", rootfs_of_a_build_is_read_only),
    ("prepare_writes_the_rootfs", prepare_writes_the_rootfs),
    ("mounts_read_only_and_read_write", mounts_read_only_and_read_write),
    ("read_only_reaches_submounts", read_only_reaches_submounts),
    ("mounts_of_files_and_odd_names", mounts_of_files_and_odd_names),
    ("files_are_put_over_the_images_own", files_are_put_over_the_images_own),
    ("fake_root_chowns_and_makes_nodes", fake_root_chowns_and_makes_nodes),
    ("foreign_owners_unpack", foreign_owners_unpack),
    ("only_own_processes", only_own_processes),
    ("network_of_the_host", network_of_the_host),
    ("network_none_is_loopback_only", network_none_is_loopback_only),
    ("capabilities_are_gone", capabilities_are_gone),
    ("nothing_of_the_host_is_visible", nothing_of_the_host_is_visible),
    ("two_at_once", two_at_once),
];

fn ids(world: &World) {
    let uid = nix::unistd::geteuid().as_raw();
    let inside = if uid == 0 { 1000 } else { uid };
    assert_eq!(world.ok(&world.build(), "id -u; id -g; id -un").trim(), format!("{inside}\n{inside}\nbuilder"));
    assert_eq!(world.ok(&world.prepare(), "id -u; id -un").trim(), "0\nroot");
    assert!(
        world.ok(&world.prepare(), "getent passwd _apt").starts_with("_apt:x:42"),
        "prepare keeps the image's users"
    );
}

fn environment_is_what_was_given(world: &World) {
    let mut spec = world.build();
    spec.env = vec![("PATH".into(), "/usr/bin".into()), ("A".into(), "b c\nd".into())];
    let exit = world.run(&spec, &["env", "-0"]).unwrap();
    let text = String::from_utf8(exit.stdout).unwrap();
    let seen: BTreeSet<_> = text.split_terminator('\0').collect();
    assert_eq!(seen, BTreeSet::from(["PATH=/usr/bin", "A=b c\nd"]));
}

fn no_descriptor_leaks_in(world: &World) {
    let leaky = fs::File::open("/etc/passwd").unwrap();
    nix::fcntl::fcntl(&leaky, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    assert!(leaky.as_raw_fd() > 2);
    // The fourth is of the folder that ls reads.
    assert_eq!(world.ok(&world.build(), "exec ls /proc/self/fd"), "0\n1\n2\n3\n");
    assert_eq!(world.ok(&world.prepare(), "exec ls /proc/self/fd"), "0\n1\n2\n3\n");
}

fn signal_mask_is_empty(world: &World) {
    // Not through a shell, which may clear the mask itself.
    let exit = world.run(&world.build(), &["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]).unwrap();
    let status = String::from_utf8(exit.stdout).unwrap();
    let pipe_ignored = |line: &str| {
        let bits = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        bits >> (nix::libc::SIGPIPE - 1) & 1 == 1
    };
    assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    assert!(!status.lines().any(pipe_ignored), "{status}");
}

fn umask_hostname_cwd_cpus(world: &World) {
    let mut spec = world.build().cwd("/var");
    spec.hostname = "some-host".into();
    spec.cpus = Some(1);
    assert_eq!(world.ok(&spec, "umask; uname -n; pwd; nproc").trim(), "0022\nsome-host\n/var\n1");
    let error = world.run(&world.build().cwd("/not/there"), &["true"]).unwrap_err().to_string();
    assert!(error.contains("chdir /not/there") && error.contains("does not exist in the image"), "{error}");
}

fn devices(world: &World) {
    let out = world.ok(
        &world.build(),
        "echo gone > /dev/null; dd if=/dev/zero bs=4 count=1 2>/dev/null | cat -v; echo; \
         (echo x > /dev/full) 2>/dev/null || echo full; echo err > /dev/stderr; echo in | cat /dev/stdin; \
         dd if=/dev/urandom of=/dev/null bs=16 count=1 2>/dev/null && echo random; stat -c %F /dev/ptmx; ls /dev",
    );
    assert!(out.starts_with("^@^@^@^@\nfull\nin\nrandom\nsymbolic link\n"), "{out}");
    assert!(
        out.ends_with("fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"),
        "{out}"
    );
    // A new pseudo-terminal can be made.
    world.ok(&world.build(), "exec 3<>/dev/ptmx && ls /dev/pts | grep 0");
}

fn shared_memory_has_its_size(world: &World) {
    let mut spec = world.build();
    spec.shm_size = 8 << 20;
    assert_eq!(world.ok(&spec, "df -k --output=size /dev/shm | grep -v K; stat -c %a /dev/shm").trim(), "8192\n1777");
}

fn rootfs_of_a_build_is_read_only(world: &World) {
    let out = world.ok(
        &world.build(),
        "for at in / /etc /usr/bin /var; do touch $at/x 2>/dev/null && echo wrote $at; done; \
         for at in /tmp /run /var/tmp /dev/shm $HOME; do touch $at/x || echo cannot write $at; done; echo done",
    );
    assert_eq!(out, "done\n");
    assert!(!world.rootfs.join("etc/x").exists());
}

fn prepare_writes_the_rootfs(world: &World) {
    let rootfs = world.own_rootfs("prepare-writes");
    let spec = Spec::prepare(&rootfs);
    world.ok(&spec, "mkdir -p /usr/share/new && echo text > /usr/share/new/file && touch /tmp/gone && chmod 4755 /usr/share/new/file");
    assert_eq!(fs::read_to_string(rootfs.join("usr/share/new/file")).unwrap(), "text\n");
    assert!(!rootfs.join("tmp/gone").exists());
    assert_eq!(world.ok(&Spec::build(&rootfs), "cat /usr/share/new/file"), "text\n");
}

fn mounts_read_only_and_read_write(world: &World) {
    let dir = world.folder("mounts");
    for name in ["ro", "rw"] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("file"), name).unwrap();
    }
    let spec = world
        .build()
        .mount(dir.join("ro"), "/cache/source", Access::ReadOnly)
        .mount(dir.join("rw"), "/opt/store", Access::ReadWrite)
        .mount(dir.join("rw"), "/tmp/below", Access::ReadWrite);
    let out = world.ok(
        &spec,
        "cat /cache/source/file /opt/store/file; touch /cache/source/no 2>/dev/null || echo; \
         rm -f /cache/source/file 2>/dev/null || echo kept; echo new > /opt/store/new; cat /tmp/below/new",
    );
    assert_eq!(out, "rorw\nkept\nnew\n");
    assert_eq!(fs::read_to_string(dir.join("rw/new")).unwrap(), "new\n");
    assert!(dir.join("ro/file").exists() && !dir.join("ro/no").exists());
    // What was made on the host belongs to the caller there, whoever that is inside.
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(dir.join("rw/new")).unwrap().uid(), nix::unistd::geteuid().as_raw());
}

/// A user cannot mount on the host, so this is for root alone.
fn read_only_reaches_submounts(world: &World) {
    if !world.is_root() {
        return;
    }
    let dir = world.folder("submounts");
    let below = dir.join("a/below");
    fs::create_dir_all(&below).unwrap();
    let none: Option<&str> = None;
    nix::mount::mount(Some("tmpfs"), &below, Some("tmpfs"), nix::mount::MsFlags::MS_NOEXEC, none).unwrap();
    let result = std::panic::catch_unwind(|| {
        fs::write(below.join("file"), "x").unwrap();
        let spec = world.build().mount(dir.join("a"), "/a", Access::ReadOnly);
        let out = world.ok(&spec, "cat /a/below/file; touch /a/below/no 2>&1 || true; touch /a/no 2>&1 || true");
        assert_eq!(out.matches("Read-only file system").count(), 2, "{out}");
        assert!(out.starts_with('x'), "{out}");
    });
    nix::mount::umount(&below).unwrap();
    result.unwrap();
}

fn mounts_of_files_and_odd_names(world: &World) {
    let dir = world.folder("odd names \\040 here");
    let file = dir.join("a file");
    fs::write(&file, "one").unwrap();
    let odd = <OsString as std::os::unix::ffi::OsStringExt>::from_vec(b"/opt/\xff odd".to_vec());
    let spec = world.build().mount(&file, "/opt/the file", Access::ReadOnly).mount(&dir, odd, Access::ReadOnly);
    assert_eq!(world.ok(&spec, "cat '/opt/the file' /opt/*odd/a*"), "oneone");
}

fn files_are_put_over_the_images_own(world: &World) {
    let bundle = world.folder("bundle").join("ca.crt");
    fs::write(&bundle, "CA").unwrap();
    for spec in [world.build(), world.prepare()] {
        let spec = spec
            .host_names()
            .ca_bundle(&bundle)
            .overlay("/etc/a/deep/file", Content::Text("deep\n".into()))
            .overlay("/etc/none", Content::HostFile { path: "/no/such/file".into(), then: "then\n".into() });
        let out = world.ok(
            &spec,
            "cat /etc/resolv.conf; cat /etc/hosts | grep slurm-factory; cat /etc/a/deep/file /etc/none $SSL_CERT_FILE; \
             echo > /etc/hosts; echo > /run/slurm-factory/ca-certificates.crt; echo",
        );
        let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert_eq!(out, format!("{resolv}127.0.1.1 slurm-factory\ndeep\nthen\nCA\n"));
    }
}

fn fake_root_chowns_and_makes_nodes(world: &World) {
    let rootfs = world.own_rootfs("fake-root");
    let out = world.ok(
        &Spec::prepare(&rootfs),
        "cd /root; touch f; chown 0:42 f && chown -h 33:33 f && echo chowned; stat -c %u:%g f; \
         mknod fifo p && stat -c %F fifo; mknod char c 1 3 && mknod block b 7 0 && echo faked; ls; \
         chmod 1777 . && stat -c %a .",
    );
    assert_eq!(out, "chowned\n0:0\nfifo\nfaked\nf\nfifo\n1777\n");
}

fn foreign_owners_unpack(world: &World) {
    let dir = world.folder("foreign");
    let make = "cd /w; echo x > file; tar --numeric-owner --owner=4000000000 --group=77 -cf a.tar file; rm file";
    let spec = |spec: Spec| spec.mount(&dir, "/w", Access::ReadWrite);
    world.ok(&spec(world.build()), make);
    world.ok(&spec(world.build()), "mkdir /w/build; tar -C /w/build -xf /w/a.tar && cat /w/build/file");
    world.ok(&spec(world.prepare()), "mkdir /w/prepare; tar -C /w/prepare -xf /w/a.tar && cat /w/prepare/file");
    // Nothing is faked in a build.
    assert!(!world.sh(&spec(world.build()), "chown 12345 /w/a.tar").success());
}

fn only_own_processes(world: &World) {
    let out = world.ok(&world.build(), "for p in /proc/[0-9]*; do echo ${p#/proc/}; done; cat /proc/1/comm");
    let lines: Vec<_> = out.lines().collect();
    assert!(lines.len() <= 4 && lines[0] == "1", "{out}");
}

fn network_of_the_host(world: &World) {
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(world.ok(&world.build(), "readlink /proc/self/ns/net").trim(), own.to_str().unwrap());
}

fn network_none_is_loopback_only(world: &World) {
    let mut spec = world.build();
    spec.network = Network::None;
    let out = world.ok(
        &spec,
        "grep -c : /proc/net/dev; grep -c lo: /proc/net/dev; ls /sys/class/net; cat /sys/class/net/lo/flags",
    );
    assert_eq!(out, "1\n1\nlo\n0x9\n", "0x9 is UP and LOOPBACK");
    // Loopback answers (nobody listens there), the outside is not even reachable.
    let exit = world.run(&spec, &["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9"]).unwrap();
    assert!(String::from_utf8_lossy(&exit.stderr).contains("refused"), "{exit:?}");
    let exit = world.run(&spec, &["bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/9"]).unwrap();
    assert!(String::from_utf8_lossy(&exit.stderr).contains("unreachable"), "{exit:?}");
}

fn capabilities_are_gone(world: &World) {
    let sets = |text: String| -> BTreeSet<String> {
        text.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
    };
    let script = "grep -E 'CapInh|CapPrm|CapEff|CapAmb|CapBnd' /proc/self/status";
    assert_eq!(sets(world.ok(&world.build(), script)), BTreeSet::from(["0".repeat(16)]));
    let prepare = world.ok(&world.prepare(), "grep CapBnd /proc/self/status");
    let held = u64::from_str_radix(prepare.split_whitespace().nth(1).unwrap(), 16).unwrap();
    let sys_admin = 21;
    assert_eq!(held >> sys_admin & 1, 0, "{prepare}");
    assert!(world.ok(&world.build(), "grep NoNewPrivs /proc/self/status").contains('1'));
}

fn nothing_of_the_host_is_visible(world: &World) {
    let out = world.ok(&world.build(), "cat /proc/self/mountinfo");
    let points: Vec<_> = out.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    let allowed = ["/", "/dev", "/proc", "/sys", "/tmp", "/run", "/var/tmp", "/etc/passwd", "/etc/group"];
    for point in points {
        let below = ["/dev/", "/proc/", "/sys/", "/run/", "/tmp/home"].iter().any(|top| point.starts_with(top));
        assert!(allowed.contains(&point) || below, "{point} in\n{out}");
    }
    assert!(!Path::new("/oldroot").exists());
    assert_eq!(world.ok(&world.build(), "ls /home /work /mnt 2>/dev/null || true"), "");
}

fn two_at_once(world: &World) {
    let dir = world.folder("two");
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let spec = world.build().mount(&dir, "/shared/new/mount-point", Access::ReadWrite);
            let sandbox = world.sandbox.clone();
            scope.spawn(move || {
                let script = format!("sleep 0.2; echo {name} > /shared/new/mount-point/{name}");
                let argv = ["sh".into(), "-c".into(), script.into()];
                let exit = sandbox.run(&spec, &argv, Io::Capture, &Interrupt::new()).unwrap();
                assert!(exit.success(), "{exit:?}");
            });
        }
    });
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 4);
}
