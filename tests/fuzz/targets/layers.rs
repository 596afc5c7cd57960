//! Layers made of awkward members: few names, so that they meet; every type flag; links that climb.
#![no_main]
use arbitrary::Arbitrary;
use slurm_factory::rootfs::fuzzing::{Entry, layers};

const PARTS: [&str; 16] = [
    "a", "b", "c", "..", ".", "", "etc", "usr", ".wh.a", ".wh.b", ".wh...wh..opq", ".wh..wh..opq", ".wh...", ".wh.", "a b",
    "\u{e9}",
];
const FLAGS: [u8; 10] = *b"0\x00123456A7";

#[derive(Arbitrary, Debug)]
struct Name {
    absolute: bool,
    parts: [u8; 4],
    length: u8,
}

#[derive(Arbitrary, Debug)]
struct Member {
    flag: u8,
    name: Name,
    link: Name,
    mode: u16,
    data: u8,
}

fn name(name: &Name) -> Vec<u8> {
    let count = usize::from(name.length % 4) + 1;
    let parts: Vec<&str> = name.parts[..count].iter().map(|part| PARTS[usize::from(*part) % PARTS.len()]).collect();
    format!("{}{}", if name.absolute { "/" } else { "" }, parts.join("/")).into_bytes()
}

libfuzzer_sys::fuzz_target!(|image: Vec<Vec<Member>>| {
    let image: Vec<Vec<Entry>> = image
        .iter()
        .take(3)
        .map(|layer| {
            let entry = |member: &Member| {
                let flag = FLAGS[usize::from(member.flag) % FLAGS.len()];
                let is_file = matches!(flag, b'0' | 0 | b'7');
                Entry {
                    flag,
                    name: name(&member.name),
                    link: name(&member.link),
                    mode: u32::from(member.mode & 0o7777),
                    data: if is_file { vec![b'x'; usize::from(member.data)] } else { Vec::new() },
                }
            };
            layer.iter().take(12).map(entry).collect()
        })
        .collect();
    layers(&image);
});
