//! The modulefile under the real Lmod.

use crate::util::*;
use slurm_factory::package::modulefile;
use std::path::Path;
use std::process::Command;

const INIT: &str = "/usr/share/lmod/lmod/init/bash";

/// An unpacked package with the rendered modulefile, whose `sinfo` prints where it lies.
fn install(root: &Path) {
    assert!(Path::new(INIT).is_file(), "`{INIT}` is missing; these tests need it: apt-get install lmod");
    for dir in ["view/bin", "view/sbin", "view/share/man/man1", "view/lib/pkgconfig", "modules/slurm"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let sinfo = root.join("view/bin/sinfo");
    std::fs::write(&sinfo, "#!/bin/sh\necho \"sinfo in $(dirname \"$0\")\"\n").unwrap();
    std::fs::set_permissions(&sinfo, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(root.join(name().modulefile()), modulefile::render(&name(), &facts()).unwrap()).unwrap();
}

/// Runs a script in a bash that has Lmod and an environment of its own.
fn lmod(script: &str, set: &[(&str, &Path)]) -> std::process::Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/bash");
    command.env_clear().env("HOME", home.path()).env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
    command.envs(set.iter().copied());
    command.args(["--noprofile", "--norc", "-c", &format!("source {INIT}\n{script}")]);
    command.output().unwrap()
}

fn says(script: &str, set: &[(&str, &Path)]) -> String {
    let output = lmod(script, set);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

const LOAD: &str = "module use \"$M\"\nmodule load slurm || exit 1\n";

#[test]
fn it_finds_its_place_in_every_way() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("a place with spaces ü").join("d".repeat(180));
    install(&home);
    let modules = home.join("modules");
    let view = home.join("view");
    let want = format!("sinfo in {}", view.join("bin").display());
    let script = format!("{LOAD}sinfo");
    assert_eq!(says(&script, &[("M", &modules)]).trim(), want, "from its own place");
    for given in [&home, &view, &home.join("")] {
        assert_eq!(says(&script, &[("M", &modules), ("SLURM_INSTALL_PREFIX", given)]).trim(), want);
    }
    // A site's module tree that links to ours: the folder, and the file.
    let site = dir.path().join("site");
    std::fs::create_dir_all(&site).unwrap();
    std::os::unix::fs::symlink(modules.join("slurm"), site.join("slurm")).unwrap();
    assert_eq!(says(&script, &[("M", &site)]).trim(), want, "through a linked folder");
    let other = dir.path().join("other");
    std::fs::create_dir_all(other.join("slurm")).unwrap();
    std::os::unix::fs::symlink(home.join(name().modulefile()), other.join("slurm/1.lua")).unwrap();
    assert_eq!(says(&script, &[("M", &other)]).trim(), want, "through a linked file");
    // A modulefile that was copied away needs to be told.
    let copied = dir.path().join("copied");
    std::fs::create_dir_all(copied.join("slurm")).unwrap();
    std::fs::copy(home.join(name().modulefile()), copied.join("slurm/1.lua")).unwrap();
    assert_eq!(says(&script, &[("M", &copied), ("SLURM_INSTALL_PREFIX", &home)]).trim(), want);
    let output = lmod(&script, &[("M", &copied)]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("SLURM_INSTALL_PREFIX"), "{text}");
    let output = lmod(&script, &[("M", &modules), ("SLURM_INSTALL_PREFIX", dir.path())]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("no Slurm there"), "{text}");
}

#[test]
fn it_sets_what_it_says_and_takes_it_back() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path());
    let view = dir.path().join("view");
    let modules = dir.path().join("modules");
    let show = "for v in PATH MANPATH CMAKE_PREFIX_PATH PKG_CONFIG_PATH SLURM_ROOT SLURM_PREFIX LD_LIBRARY_PATH CPATH; do\n\
        echo \"$v=${!v-unset}\"; done\n";
    // How many empty parts Lmod writes at the end of MANPATH depends on its version; one or more mean the same.
    let text = says(&format!("{LOAD}{show}"), &[("M", &modules)]).replace("::\n", ":\n");
    let v = view.display();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            &*format!("PATH={v}/bin:{v}/sbin:/usr/bin:/bin"),
            &*format!("MANPATH={v}/share/man:"),
            &*format!("CMAKE_PREFIX_PATH={v}"),
            &*format!("PKG_CONFIG_PATH={v}/lib/pkgconfig"),
            &*format!("SLURM_ROOT={v}"),
            &*format!("SLURM_PREFIX={v}"),
            "LD_LIBRARY_PATH=unset",
            "CPATH=unset",
        ]
    );
    // Unloading takes back what was loaded, even when the prefix has been changed in between.
    let text =
        says(&format!("{LOAD}export SLURM_INSTALL_PREFIX=/elsewhere\nmodule unload slurm\n{show}"), &[("M", &modules)]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "PATH=/usr/bin:/bin");
    assert!(lines[1..8].iter().all(|l| l.ends_with("=unset")), "{text}");
    // The whole name, listing and help.
    let text = says(
        "module use \"$M\"\nmodule -t avail 2>&1; module load slurm/24.11-gcc13.3.0 && module -t list 2>&1; module help slurm 2>&1; module whatis slurm 2>&1",
        &[("M", &modules)],
    );
    assert!(text.matches("slurm/24.11-gcc13.3.0").count() >= 2 && text.contains("24.11.5"), "{text}");
}

#[test]
fn one_slurm_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    install(&one);
    install(&two);
    std::fs::rename(two.join(name().modulefile()), two.join("modules/slurm/25.11-gcc13.3.0.lua")).unwrap();
    let text = says(
        "module use \"$ONE\" \"$TWO\"\nmodule load slurm/24.11-gcc13.3.0\nmodule load slurm/25.11-gcc13.3.0\necho $PATH",
        &[("ONE", &one.join("modules")), ("TWO", &two.join("modules"))],
    );
    let path = text.lines().next().unwrap();
    assert!(path.contains("/two/view/bin") && !path.contains("/one/"), "{text}");
}
