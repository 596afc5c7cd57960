//! Search paths, a whole tree, and its check, beside patchelf, `cp` and `ldd`, on this machine's own files in tmpfs.
//!
//! - a new search path for 300 and 3,000 ELF files (real ones, some of them several times): ours reads, edits and writes a
//!   copy; `patchelf` edits a copy that `cp` made, one file after another or two at a time; the floor is `cp`
//! - a tree of a gigabyte and 40,000 files made relocatable into a copy, against `cp -a`; and a quarter and a half of it
//! - that copy looked at by `verify`, against `ldd` of each of its programs and libraries

use crate::{Cost, best, command, measure, remove, row, text, together};
use rayon::prelude::*;
use slurm_factory::elf::{self, Edit, Elf, ElfError, SearchPath};
use slurm_factory::relocate::copy::{Change, Copier, Wants};
use slurm_factory::relocate::{Layout, Origin, Rules, relocate};
use slurm_factory::report::Ctx;
use slurm_factory::workflows::verify;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const ROUNDS: usize = 5;
const RPATH: &str = "$ORIGIN/../lib:$ORIGIN/../lib/slurm:$ORIGIN/../lib64/some/folder/that/is/longer/than/before";

struct SetPath(Edit);

impl Change for SetPath {
    type Error = std::io::Error;

    fn wants(&self, _: &[u8]) -> Wants {
        Wants::Edit
    }

    fn asked(&mut self, _: &Elf) -> Option<Edit> {
        Some(self.0.clone())
    }

    fn edited(&mut self, outcome: Result<bool, ElfError>) -> std::io::Result<()> {
        outcome.map(drop).map_err(std::io::Error::other)
    }

    fn change(&mut self, _: &[u8], _: &mut Vec<u8>) -> std::io::Result<bool> {
        Ok(false)
    }
}

/// The part that runs as a program of its own: `--ours-elf FROM TO`. Each file by what copies and edits them for a package.
pub fn ours(from: &Path, to: &Path) {
    let edit = Edit { search_path: SearchPath::Rpath(RPATH.into()), ..Edit::default() };
    let files: Vec<_> = fs_err::read_dir(from).unwrap().map(|e| e.unwrap().path()).collect();
    let copier = Copier::default();
    files.par_iter().for_each(|path| {
        let new = to.join(path.file_name().unwrap());
        let mode = fs_err::metadata(path).unwrap().permissions().mode();
        copier.copy(path, &new, mode & 0o7777, &mut SetPath(edit.clone())).unwrap();
    });
}

/// `--ours-tree ROOT TO`: the view in ROOT made relocatable.
pub fn ours_tree(root: &Path, to: &Path) {
    let origin = Origin {
        host_root: root.to_owned(),
        inside_root: "/usr".into(),
        inside_store: "/usr/store".into(),
        inside_views: "/usr".into(),
        inside_view: "/usr/view".into(),
    };
    relocate(&origin, &Rules::embedded().unwrap(), to, &Ctx::silent()).unwrap();
}

/// `--ours-verify TREE`
pub fn ours_verify(tree: &Path) {
    let found = verify::tree(tree, &Rules::embedded().unwrap(), Layout::BUILD, &Ctx::silent()).unwrap();
    assert!(found.findings.elf_files > 0);
}

fn walk(folders: &[&str]) -> impl Iterator<Item = PathBuf> {
    let folders: Vec<_> = folders.iter().map(|f| (*f).to_owned()).collect();
    folders.into_iter().flat_map(|folder| {
        let walk = walkdir::WalkDir::new(folder).same_file_system(true).sort_by_file_name();
        walk.into_iter().filter_map(Result::ok).filter(|e| e.file_type().is_file()).map(walkdir::DirEntry::into_path)
    })
}

/// Programs and libraries that need others, and that both sides can edit.
fn elf_files(count: usize) -> Vec<PathBuf> {
    let good = |path: &PathBuf| {
        let bytes = fs_err::read(path).unwrap_or_default();
        let plain = bytes.len() < 20_000_000 && elf::is_elf(&bytes);
        let edit = Edit { search_path: SearchPath::Rpath(RPATH.into()), ..Edit::default() };
        plain && elf::parse(&bytes).is_ok_and(|f| !f.needed.is_empty()) && elf::edit(&bytes, &edit).is_ok()
    };
    let found: Vec<_> = walk(&["/usr/bin", "/usr/sbin", "/usr/lib"]).filter(good).take(count).collect();
    assert!(found.len() > 200, "too few programs on this machine");
    found.iter().cycle().take(count).cloned().collect()
}

/// All of it, in a fresh folder of `work`.
pub fn compare(work: &Path) {
    let me = text(&std::env::current_exe().unwrap());
    for count in [300, 3000] {
        search_paths(&me, work, count);
    }
    whole_tree(&me, work);
}

fn search_paths(me: &str, work: &Path, count: usize) {
    let from = work.join("elf");
    fs_err::create_dir(&from).unwrap();
    for (index, path) in elf_files(count).iter().enumerate() {
        fs_err::copy(path, from.join(format!("{index}-{}", path.file_name().unwrap().to_str().unwrap()))).unwrap();
    }
    let bytes: u64 = fs_err::read_dir(&from).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    println!("{count} ELF files, {} MB", bytes / 1_000_000);
    let to = work.join("elf-to");
    let (from_text, to_text) = (text(&from), text(&to));
    let peers = [
        ("", format!("mkdir {to_text} && '{me}' --ours-elf {from_text} {to_text}")),
        ("cp", format!("cp -r {from_text} {to_text}")),
        (
            "patchelf one by one",
            format!(
                "cp -r {from_text} {to_text}; cd {to_text}; for f in *; do patchelf --force-rpath --set-rpath '{RPATH}' $f; done"
            ),
        ),
        (
            "patchelf two at a time",
            format!(
                "cp -r {from_text} {to_text}; cd {to_text}; printf '%s\\0' * | xargs -0 -n 1 -P 2 patchelf --force-rpath --set-rpath '{RPATH}'"
            ),
        ),
    ];
    // In turns, so that what the machine does meanwhile disturbs all of them.
    let mut costs = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for ((_, script), costs) in peers.iter().zip(&mut costs) {
            costs.push(measure(|| drop(command(&["bash", "-c", script]))));
            remove(&to);
        }
    }
    let [ours, others @ ..] = costs.map(together);
    for ((peer, _), theirs) in peers.iter().skip(1).zip(others) {
        row(&format!("rpath of {count}"), ours, peer, theirs);
    }
    remove(&from);
}

fn whole_tree(me: &str, work: &Path) {
    // A view as Spack makes it, of the first gigabyte and 40,000 files that this machine has.
    let (mut files, mut bytes) = (0_u32, 0);
    let mut chosen = Vec::new();
    let of_code = walk(&["/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]);
    for path in of_code.chain(walk(&["/usr/share", "/usr/include", "/usr/lib/python3"])) {
        let len = fs_err::metadata(&path).map_or(0, |m| m.len());
        if files >= 40_000 || len > 50_000_000 || (bytes > 1_000_000_000 && len > 10_000) {
            continue;
        }
        (files, bytes) = (files + 1, bytes + len);
        chosen.push(path);
    }
    println!("a tree of {files} files, {} MB", bytes / 1_000_000);
    for part in [4, 2, 1] {
        let root = work.join("tree");
        let chosen: Vec<_> = chosen.iter().step_by(part).collect();
        for path in &chosen {
            let to = root.join("view").join(path.strip_prefix("/usr").unwrap());
            fs_err::create_dir_all(to.parent().unwrap()).unwrap();
            fs_err::copy(path, &to).unwrap();
        }
        let to = work.join("tree-to");
        let (root_text, to_text) = (text(&root), text(&to));
        let run = |argv: &[&str], keep: bool| -> Cost {
            best(ROUNDS, |round| {
                let cost = measure(|| drop(command(argv)));
                if !(keep && round + 1 == ROUNDS) {
                    remove(&to);
                }
                cost
            })
        };
        let copied = run(&["cp", "-a", &format!("{root_text}/view"), &to_text], false);
        let ours = run(&[me, "--ours-tree", &root_text, &to_text], true);
        row(&format!("tree, {} files", chosen.len()), ours, "cp -a", copied);
        if part == 1 {
            let checked = best(ROUNDS, |_| measure(|| drop(command(&[me, "--ours-verify", &to_text]))));
            let each = format!(
                "find {to_text} -type f \\( -perm -100 -o -name '*.so*' \\) -exec ldd {{}} \\; >/dev/null 2>&1; true"
            );
            let ldd = best(1, |_| measure(|| drop(command(&["bash", "-c", &each]))));
            row("verify of the tree", checked, "ldd of each file", ldd);
        }
        remove(&to);
        remove(&root);
    }
}
