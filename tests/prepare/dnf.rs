//! dnf: a mirror in the place of a list of mirrors, packages whose scriptlets need a root, and what is refused.

use crate::Test;
use crate::world::{Asked, World, files_with};
use fs_err as fs;
use slurm_factory::catalog::Family;
use slurm_factory::plan::HostAccess;
use slurm_factory::rootfs::PrepareError;
use std::os::unix::fs::PermissionsExt;

pub const TESTS: &[Test] = &[
    ("dnf_installs_what_needs_a_root", installs_what_needs_a_root),
    ("dnf_takes_a_folder_for_a_mirror", takes_a_folder_for_a_mirror),
    ("dnf_takes_a_sites_repositories", takes_a_sites_repositories),
    ("dnf_refuses_what_is_not_signed", refuses_what_is_not_signed),
    ("dnf_says_what_to_do", says_what_to_do),
];

fn hard() -> Asked {
    Asked::of(Family::Dnf, &["hard"])
}

fn mirrored(world: &World) -> HostAccess {
    HostAccess { package_mirror: Some(format!("{}/rocky", world.https.address)), ..world.trusting() }
}

fn refused(error: &PrepareError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn installs_what_needs_a_root(world: &World) {
    let rootfs = world.prepare(&hard(), &mirrored(world)).unwrap_or_else(|e| panic!("{e}"));
    let meta = rootfs.meta();
    assert_eq!((meta.gcc.as_str(), meta.packages["hard"].as_str()), ("11.5.0", "1.0-1"));
    assert!(!meta.packages.contains_key("weak"), "a package that is only recommended was installed");
    assert!(!meta.glibc.is_empty());
    // A scriptlet that fails is a warning to dnf, and a package that does not work.
    let log = world.log(&rootfs);
    for word in ["scriptlet failed", "error:", "Error:", "cpio"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
    let root = rootfs.root();
    let mode = |path: &str| fs::symlink_metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("usr/bin/hard-setuid"), 0o4755);
    assert_eq!(mode("usr/bin/hard-setgid"), 0o2755);
    assert_eq!(mode("etc/hard.conf"), 0o640);
    assert_eq!(mode("var/lib/hard"), 0o1770);
    assert_eq!(mode("usr/bin/hard-post"), 0o2750);
    assert!(root.join("usr/bin/hard-caps").is_file() && root.join("var/lib/hard/data").is_file());
    assert!(fs::read_to_string(root.join("var/lib/hard/user")).unwrap().starts_with("harduser:"));
    // It came from the mirror, and the rootfs does not say so anywhere.
    assert!(world.https.requests().contains("GET /rocky/9/BaseOS/"), "{}", world.https.requests());
    assert_eq!(files_with(root, &format!("localhost:{}", world.https.port)), Vec::<std::path::PathBuf>::new());
    assert!(fs::read_to_string(root.join("etc/yum.repos.d/rocky.repo")).unwrap().contains("\nmirrorlist="));
}

fn takes_a_folder_for_a_mirror(world: &World) {
    let folder = world.dir.join("site/rocky").display().to_string();
    let host = HostAccess { package_mirror: Some(folder), ..HostAccess::default() };
    let rootfs = world.prepare(&hard(), &host).unwrap_or_else(|e| panic!("{e}"));
    assert!(rootfs.meta().packages.contains_key("hard"));
}

/// Over http with a login: the signatures are what counts.
fn takes_a_sites_repositories(world: &World) {
    let base = format!("http://me:p4ssw0rd@localhost:{}/private/rocky/9/BaseOS/$basearch/os/", world.http.port);
    let key = "gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-test";
    let text = format!("[site]\nname=site\nbaseurl={base}\nenabled=1\n{key}\n");
    let asked = Asked { sources: Some(text), ..hard() };
    let rootfs = world.prepare(&asked, &HostAccess::default()).unwrap_or_else(|e| panic!("{e}"));
    assert!(rootfs.meta().packages.contains_key("hard"));
    assert!(world.http.requests().contains("GET /private/rocky/9/BaseOS/"), "{}", world.http.requests());
    let told = world.files_with("p4ssw0rd");
    assert!(told.is_empty(), "the password is in {told:?}");
}

fn refuses_what_is_not_signed(world: &World) {
    let asked = Asked::of(Family::Dnf, &["gcc", "unsigned"]);
    let error = world.prepare(&asked, &mirrored(world)).unwrap_err();
    refused(&error, &["dnf install", "unsigned-1.0-1.noarch.rpm is not signed", "gpgkey="]);
}

fn says_what_to_do(world: &World) {
    // The list of mirrors that the image names is at no host.
    let error = world.prepare(&hard(), &world.trusting()).unwrap_err();
    refused(&error, &["cannot be reached", "--dnf-mirror"]);
    let untrusting = HostAccess { ca_bundle: None, ..mirrored(world) };
    refused(&world.prepare(&hard(), &untrusting).unwrap_err(), &["SSL_CERT_FILE"]);
    let missing = Asked::of(Family::Dnf, &["gcc", "no-such-package"]);
    refused(&world.prepare(&missing, &mirrored(world)).unwrap_err(), &["no-such-package", "full mirror"]);
    let others = Asked { sources: Some("[x]\nname=x\nbaseurl=https://localhost/x\n".into()), ..hard() };
    refused(&world.prepare(&others, &mirrored(world)).unwrap_err(), &["--dnf-mirror", "--dnf-repos"]);
}
