//! The modulefiles under the real Lmod and the real Environment Modules.

use crate::util::*;
use slurm_factory::package::manifest::Installed;
use slurm_factory::package::{Facts, modulefile};
use std::path::Path;
use std::process::Command;

/// A program that reads modulefiles: a file of it, what makes `module` of that in bash, and how to get it.
type Reader = (&'static str, &'static str, &'static str);
const LMOD: Reader = ("/usr/share/lmod/lmod/init/bash", "source FILE", "apt-get install lmod");
/// Debian's packages of the two exclude each other; tests/run.sh unpacks this one beside.
const TCL: Reader = (
    "/var/lib/slurm-factory-tests/environment-modules/usr/lib/modulecmd.tcl",
    "module() { eval \"$(tclsh FILE bash \"$@\")\"; }",
    "tests/run.sh unpacks Debian's package environment-modules there",
);

/// An unpacked package with its modulefiles, whose `sinfo` prints where it lies.
fn install(root: &Path) {
    install_with(root, &facts());
}

fn install_with(root: &Path, facts: &Facts) {
    for dir in ["view/bin", "view/sbin", "view/share/man/man1", "modules/slurm"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let sinfo = root.join("view/bin/sinfo");
    std::fs::write(&sinfo, "#!/bin/sh\necho \"sinfo in $(dirname \"$0\")\"\n").unwrap();
    std::fs::set_permissions(&sinfo, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (path, text) in modulefile::files(&name(), facts).unwrap() {
        std::fs::create_dir_all(root.join(&path).parent().unwrap()).unwrap();
        std::fs::write(root.join(path), text).unwrap();
    }
}

/// Runs a script in a bash that has `module` and an environment of its own.
fn module((file, init, remedy): Reader, script: &str, set: &[(&str, &Path)]) -> std::process::Output {
    assert!(Path::new(file).is_file(), "`{file}` is missing; these tests need it: {remedy}");
    let init = init.replace("FILE", file);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/bash");
    command.env_clear().env("HOME", home.path()).env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
    command.envs(set.iter().copied());
    command.args(["--noprofile", "--norc", "-c", &format!("{init}\n{script}")]);
    command.output().unwrap()
}

fn says(reader: Reader, script: &str, set: &[(&str, &Path)]) -> String {
    let output = module(reader, script, set);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

const LOAD: &str = "module use \"$M\"\nmodule load slurm || exit 1\n";

#[test]
fn it_finds_its_place_in_every_way() {
    for reader in [LMOD, TCL] {
        finds_its_place(reader);
    }
}

fn finds_its_place(reader: Reader) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("a place with spaces ü").join("d".repeat(180));
    install(&home);
    let modules = home.join("modules");
    let view = home.join("view");
    let want = format!("sinfo in {}", view.join("bin").display());
    let script = format!("{LOAD}sinfo");
    let finds =
        |set: &[(&str, &Path)], how: &str| assert_eq!(says(reader, &script, set).trim(), want, "{reader:?} {how}");
    finds(&[("M", &modules)], "from its own place");
    for given in [&home, &view, &home.join("")] {
        finds(&[("M", &modules), ("SLURM_INSTALL_PREFIX", given)], "told");
    }
    // A site's module tree that links to ours: the folder, and the file.
    let site = dir.path().join("site");
    std::fs::create_dir_all(&site).unwrap();
    std::os::unix::fs::symlink(modules.join("slurm"), site.join("slurm")).unwrap();
    finds(&[("M", &site)], "through a linked folder");
    // Lmod's files have a suffix.
    let (ours, theirs) = match reader {
        LMOD => (home.join(name().modulefile()), "1.lua"),
        _ => (home.join(name().modulefile()).with_extension(""), "1"),
    };
    let other = dir.path().join("other");
    std::fs::create_dir_all(other.join("slurm")).unwrap();
    std::os::unix::fs::symlink(&ours, other.join("slurm").join(theirs)).unwrap();
    finds(&[("M", &other)], "through a linked file");
    // A modulefile that was copied away needs to be told.
    let copied = dir.path().join("copied");
    std::fs::create_dir_all(copied.join("slurm")).unwrap();
    std::fs::copy(&ours, copied.join("slurm").join(theirs)).unwrap();
    finds(&[("M", &copied), ("SLURM_INSTALL_PREFIX", &home)], "copied and told");
    let refuses = |set: &[(&str, &Path)], reason: &str| {
        let output = module(reader, &script, set);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(reason), "{reader:?}: {text}");
    };
    refuses(&[("M", &copied)], "SLURM_INSTALL_PREFIX");
    refuses(&[("M", &modules), ("SLURM_INSTALL_PREFIX", dir.path())], "no Slurm there");
}

#[test]
fn it_sets_what_it_says_and_takes_it_back() {
    for reader in [LMOD, TCL] {
        sets_and_takes_back(reader);
    }
}

fn sets_and_takes_back(reader: Reader) {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path());
    let view = dir.path().join("view");
    let modules = dir.path().join("modules");
    let show = "for v in PATH MANPATH CMAKE_PREFIX_PATH PKG_CONFIG_PATH SLURM_ROOT SLURM_PREFIX LD_LIBRARY_PATH CPATH; do\n\
        echo \"$v=${!v-unset}\"; done\n";
    // How many empty parts Lmod writes at the end of MANPATH depends on its version; one or more mean the same.
    let text = says(reader, &format!("{LOAD}{show}"), &[("M", &modules)]).replace("::\n", ":\n");
    let v = view.display();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            &*format!("PATH={v}/bin:{v}/sbin:/usr/bin:/bin"),
            &*format!("MANPATH={v}/share/man:"),
            &*format!("CMAKE_PREFIX_PATH={v}"),
            "PKG_CONFIG_PATH=unset",
            &*format!("SLURM_ROOT={v}"),
            &*format!("SLURM_PREFIX={v}"),
            "LD_LIBRARY_PATH=unset",
            "CPATH=unset",
        ]
    );
    // Files for pkg-config are in a package when a site's rule keeps them.
    let folder = view.join("lib/pkgconfig");
    std::fs::create_dir_all(&folder).unwrap();
    let text = says(reader, &format!("{LOAD}echo \"$PKG_CONFIG_PATH\"\n"), &[("M", &modules)]);
    assert_eq!(text.trim(), folder.to_str().unwrap());
    std::fs::remove_dir(&folder).unwrap();
    // Unloading takes back what was loaded, even when the prefix has been changed in between.
    let text = says(
        reader,
        &format!("{LOAD}export SLURM_INSTALL_PREFIX=/elsewhere\nmodule unload slurm\n{show}"),
        &[("M", &modules)],
    );
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "PATH=/usr/bin:/bin");
    assert!(lines[1..8].iter().all(|l| l.ends_with("=unset")), "{text}");
    // The whole name, listing and help.
    let text = says(
        reader,
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
        LMOD,
        "module use \"$ONE\" \"$TWO\"\nmodule load slurm/24.11-gcc13.3.0\nmodule load slurm/25.11-gcc13.3.0\necho $PATH",
        &[("ONE", &one.join("modules")), ("TWO", &two.join("modules"))],
    );
    let path = text.lines().next().unwrap();
    assert!(path.contains("/two/view/bin") && !path.contains("/one/"), "{text}");
    // Environment Modules exchanges nothing unasked: it refuses, and `switch` exchanges.
    let set: [(&str, &Path); 2] = [("ONE", &one.join("modules")), ("TWO", &two.join("modules"))];
    let tcl = two.join(name().modulefile()).with_extension("");
    std::fs::rename(tcl, two.join("modules/slurm/25.11-gcc13.3.0")).unwrap();
    let script = "module use \"$ONE\" \"$TWO\"\nmodule load slurm/24.11-gcc13.3.0\n\
        module load slurm/25.11-gcc13.3.0 && exit 1\nmodule switch slurm slurm/25.11-gcc13.3.0\necho $PATH";
    let text = says(TCL, script, &set);
    let path = text.lines().next().unwrap();
    assert!(path.contains("/two/view/bin") && !path.contains("/one/"), "{text}");
}

/// Two versions side by side in a site's folder: `slurm` is the one that the folder's own file names.
#[test]
fn there_is_a_default() {
    let dir = tempfile::tempdir().unwrap();
    install(dir.path());
    let slurm = dir.path().join("modules/slurm");
    std::fs::copy(slurm.join("24.11-gcc13.3.0.lua"), slurm.join("99.1-gcc13.3.0.lua")).unwrap();
    let text = says(LMOD, &format!("{LOAD}module -t list 2>&1"), &[("M", &dir.path().join("modules"))]);
    assert!(text.contains("slurm/24.11-gcc13.3.0") && !text.contains("99.1"), "{text}");
}

/// Core opens Compiler, which has Slurm and MPI, which opens MPI; unloading the compiler closes all again.
#[test]
fn a_hierarchy() {
    let dir = tempfile::tempdir().unwrap();
    let mut facts = facts();
    facts.packages.push(Installed {
        name: "openmpi".into(),
        version: "5.0.7".into(),
        hash: "x".into(),
        ..Default::default()
    });
    install_with(dir.path(), &facts);
    // A program of the site, built with that MPI.
    let site = dir.path().join("hierarchy/MPI/gcc/13.3.0/openmpi/5.0.7/fftw");
    std::fs::create_dir_all(&site).unwrap();
    std::fs::write(site.join("3.lua"), "setenv(\"FFTW\", \"3\")\n").unwrap();
    std::fs::write(site.join("3"), "#%Module1.0\nsetenv FFTW 3\n").unwrap();
    let core = dir.path().join("hierarchy/Core");
    let view = dir.path().join("view");
    for reader in [LMOD, TCL] {
        // What `install --enable-hierarchy` prints.
        let load = modulefile::load_in_hierarchy(&facts);
        assert_eq!(load, "module load gcc/13.3.0 slurm/24.11");
        let script = "module use \"$M\"\nmodule load slurm 2>/dev/null && exit 1\nLOAD || exit 1\nsinfo\nmodule load fftw 2>/dev/null && exit 1\n\
            module load openmpi || exit 1\necho $MPI_HOME\nmodule load fftw || exit 1\necho fftw $FFTW\n\
            echo ld ${LD_LIBRARY_PATH-unset}\nmodule purge\necho $PATH ${SLURM_ROOT-unset} ${MPI_HOME-unset}";
        let text = says(reader, &script.replace("LOAD", &load), &[("M", &core)]);
        let v = view.display();
        let want = format!("sinfo in {v}/bin\n{v}\nfftw 3\nld unset\n/usr/bin:/bin unset unset\n");
        assert_eq!(text, want, "{reader:?}");
    }
}
