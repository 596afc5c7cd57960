//! Layers made by chance, honest ones: what is unpacked must be what umoci makes of them, entry by entry.
//!
//! A layer is a list of operations on few names, so that they meet: files, directories, links and pipes over each other,
//! through symlinks, hard links to what other layers brought, whiteouts. A seed gives the same image again; it is named when
//! an image differs.

use crate::oci::{Blob, Member, Pack, archive, image};
use crate::support::{Site, count, place_for};
use crate::unpack::compare;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How many images; `tests/deep` says more.
const IMAGES: &str = "SLURM_FACTORY_TEST_RANDOM_IMAGES";

/// The first seed, to begin with the one that failed.
const SEED: &str = "SLURM_FACTORY_TEST_RANDOM_SEED";

const NAMES: [&str; 8] = ["a", "b", "c", "usr", "lib", "x y", "\u{e9}\u{1f332}", ".hidden"];

/// xorshift64*; quality does not matter, repetition does.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize;
        high % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    Dir,
    File,
    Link,
    Pipe,
}

/// What the layers so far come to, as far as their maker must know it.
#[derive(Default)]
struct Made {
    there: BTreeMap<String, Is>,
    /// Names of the current layer, which its whiteouts leave alone.
    touched: BTreeSet<String>,
    /// Symlinks by an absolute name to a directory.
    leads: BTreeMap<String, String>,
    /// Files that were written through a symlink.
    reached: usize,
}

fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Made {
    fn of(&self, kind: Is) -> Vec<String> {
        self.there.iter().filter(|(_, is)| **is == kind).map(|(path, _)| path.clone()).collect()
    }

    fn remove(&mut self, path: &str) {
        self.there.retain(|known, _| known != path && !below(known, path));
        self.leads.retain(|known, _| known != path && !below(known, path));
    }

    /// A symlink to a directory that is there still, and the directory.
    fn way(&self, chance: &mut Chance) -> Option<(String, String)> {
        let is_dir = |to: &String| self.there.get(to) == Some(&Is::Dir);
        let ways: Vec<_> = self.leads.iter().filter(|(_, to)| is_dir(to)).collect();
        (!ways.is_empty()).then(|| chance.pick(&ways)).map(|(link, to)| ((*link).clone(), (*to).clone()))
    }

    fn put(&mut self, path: &str, is: Is) {
        if !(is == Is::Dir && self.there.get(path) == Some(&Is::Dir)) {
            self.remove(path);
        }
        self.there.insert(path.to_owned(), is);
        self.touched.insert(path.to_owned());
    }

    fn is_touched(&self, path: &str) -> bool {
        self.touched.iter().any(|known| known == path || below(known, path))
    }

    /// A new or an old name in a directory that is there.
    fn place(&self, chance: &mut Chance) -> String {
        let mut dirs = self.of(Is::Dir);
        dirs.push(String::new());
        let dir = chance.pick(&dirs).clone();
        let name = chance.pick(&NAMES);
        if dir.is_empty() || dir.matches('/').count() > 3 { (*name).to_owned() } else { format!("{dir}/{name}") }
    }
}

const MODES: [u32; 8] = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o444, 0o640];
const DIR_MODES: [u32; 5] = [0o755, 0o700, 0o1777, 0o2775, 0o555];

fn member(chance: &mut Chance, layer: &mut Vec<Member>, mut member: Member) {
    member.mode = *chance.pick(if member.flag == b'5' { &DIR_MODES[..] } else { &MODES[..] });
    member.mtime = 1_000_000_000 + chance.below(700_000_000) as u64;
    let name = String::from_utf8(member.name.clone()).unwrap();
    let time = format!("{}.{:09}", member.mtime, chance.below(1_000_000_000));
    let mut records: Vec<(&str, &[u8])> = Vec::new();
    if chance.one_in(3) {
        records.push(("mtime", time.as_bytes()));
    }
    if chance.one_in(4) && member.flag != b'1' {
        records.push(("path", name.as_bytes()));
        member.name = b"in a record".to_vec();
    }
    if chance.one_in(6) && matches!(member.flag, b'0' | b'5') {
        records.push(("SCHILY.xattr.user.test", b"any \0 value"));
    }
    if !records.is_empty() {
        layer.push(Member::pax(&records));
    } else if chance.one_in(5) {
        layer.push(Member { data: [name.as_bytes(), b"\0"].concat(), ..Member::new(b'L', "././@LongLink") });
    }
    layer.push(member);
}

/// One layer; `made` is what is below it.
fn layer(chance: &mut Chance, made: &mut Made) -> Vec<u8> {
    let mut members = Vec::new();
    made.touched.clear();
    let lower = made.there.clone();
    if lower.is_empty() {
        // umoci gives a root that no layer describes the year 1970, we leave it as it came to be.
        members.push(Member::dir("./"));
    }
    for _ in 0..10 + chance.below(40) {
        let path = made.place(chance);
        match chance.below(20) {
            0..=6 => {
                let most = if chance.one_in(10) { 200_000 } else { 2000 };
                let len = chance.below(most);
                let data: Vec<u8> = (0..len).map(|i| (i ^ len).to_le_bytes()[0]).collect();
                let mut name = path.clone();
                let mut real = path;
                if chance.one_in(4)
                    && let Some((link, to)) = made.way(chance)
                {
                    let last = chance.pick(&NAMES);
                    (name, real) = (format!("{link}/{last}"), format!("{to}/{last}"));
                    made.reached += 1;
                }
                member(chance, &mut members, Member::file(name, data));
                made.put(&real, Is::File);
            }
            7..=11 => {
                member(chance, &mut members, Member::dir(&path));
                made.put(&path, Is::Dir);
            }
            12 | 13 => {
                // Not to what the link's own name replaces.
                let dirs: Vec<_> = made.of(Is::Dir).into_iter().filter(|d| *d != path && !below(d, &path)).collect();
                let to = (!dirs.is_empty()).then(|| chance.pick(&dirs).clone());
                let target = match (chance.below(5), &to) {
                    (0, _) => "nowhere/at/all".to_owned(),
                    (1, _) => "../../../..".to_owned(),
                    (2 | 3, Some(to)) => format!("/{to}"),
                    _ => chance.pick(&NAMES).to_string(),
                };
                member(chance, &mut members, Member::symlink(&path, &target));
                made.put(&path, Is::Link);
                if let Some(to) = to.filter(|to| target == format!("/{to}")) {
                    made.leads.insert(path, to);
                }
            }
            14 | 15 => {
                let files = made.of(Is::File);
                // Not to what the link's own name replaces.
                let files: Vec<_> = files.into_iter().filter(|f| *f != path && !below(f, &path)).collect();
                if !files.is_empty() {
                    let link = Member::hard_link(&path, chance.pick(&files));
                    members.push(link);
                    made.put(&path, Is::File);
                }
            }
            16 => {
                member(chance, &mut members, Member::new(b'6', &path));
                made.put(&path, Is::Pipe);
            }
            // What lower layers brought and this one has not touched.
            17 | 18 => {
                let hidden: Vec<_> =
                    lower.keys().filter(|p| made.there.contains_key(*p) && !made.is_touched(p)).collect();
                if !hidden.is_empty() {
                    let path = (*chance.pick(&hidden)).clone();
                    let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
                    let mark = if dir.is_empty() { format!(".wh.{name}") } else { format!("{dir}/.wh.{name}") };
                    members.push(Member::file(mark, ""));
                    made.remove(&path);
                }
            }
            _ => {
                let dirs: Vec<_> = lower
                    .iter()
                    .filter(|(p, is)| **is == Is::Dir && made.there.get(*p) == Some(&Is::Dir) && !made.is_touched(p))
                    .map(|(p, _)| p.clone())
                    .collect();
                if !dirs.is_empty() {
                    let dir = chance.pick(&dirs).clone();
                    members.push(Member::file(format!("{dir}/.wh..wh..opq"), ""));
                    made.there.retain(|path, _| !below(path, &dir));
                    made.leads.retain(|path, _| !below(path, &dir));
                    made.touched.insert(dir);
                }
            }
        }
    }
    archive(&members)
}

#[test]
fn images_made_by_chance_are_what_umoci_makes_of_them() {
    let first = count(SEED, 1);
    let (mut entries, mut reached) = (0, 0);
    for seed in first..first + count(IMAGES, 5) {
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15 ^ (seed as u64).wrapping_mul(0xD134_2543_DE82_EF95));
        let site = Site::at(&place_for(10_000));
        let mut made = Made::default();
        let layers: Vec<Blob> = (0..2 + chance.below(4))
            .map(|_| {
                let content = layer(&mut chance, &mut made);
                Blob::new(if chance.one_in(3) { Pack::Plain } else { Pack::Gzip }, &content)
            })
            .collect();
        let source = image(&site.path("image"), &layers);
        println!("seed {seed}: {} layers, {} entries", layers.len(), made.there.len());
        compare(&site, &source, |_| false);
        // Who made the layers agrees with both.
        for (path, is) in &made.there {
            let meta = site.path("ours").join(path).symlink_metadata();
            let kind = meta.unwrap_or_else(|e| panic!("seed {seed}: {path}: {e}")).file_type();
            let found = if kind.is_dir() {
                Is::Dir
            } else if kind.is_symlink() {
                Is::Link
            } else if kind.is_file() {
                Is::File
            } else {
                Is::Pipe
            };
            assert_eq!(found, *is, "seed {seed}: {path}");
            assert!(Path::new(parent(path)).as_os_str().is_empty() || made.there.contains_key(parent(path)));
        }
        entries += made.there.len();
        reached += made.reached;
    }
    assert!(entries > 0 && reached > 0, "{entries}, {reached}");
}
