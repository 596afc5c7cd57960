//! Records of pax extended headers: what a tar header has no room for. Written by packages, images and binary caches alike.

/// Appends `LENGTH KEY=VALUE\n`, where LENGTH, decimal, counts the whole record, itself included (POSIX.1-2017, pax, "pax
/// Extended Header").
pub fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::record;

    #[test]
    fn the_length_counts_itself() {
        // Over the steps at which the length gets a digit more.
        for size in (0..120).chain([960, 985, 986, 987, 990, 999, 9_985, 99_980]) {
            let mut out = Vec::new();
            record(&mut out, "path", &vec![b'x'; size]);
            let text = String::from_utf8(out.clone()).unwrap();
            let (length, rest) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), out.len(), "{size}");
            assert!(rest.starts_with("path=") && rest.ends_with('\n'));
        }
    }
}
