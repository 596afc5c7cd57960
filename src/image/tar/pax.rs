//! What members say about the next one: PAX records, and GNU's long names.

/// Linux lists no more than 64 KiB of their names.
const MAX_XATTRS: usize = 1000;

/// What `x`, `L` and `K` members said about the next one.
#[derive(Default)]
pub struct Pending {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub long_path: Option<Vec<u8>>,
    pub long_link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

#[derive(Default)]
pub struct PaxSparse {
    pub version_1: bool,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub numbers: Option<Vec<u64>>,
}

impl Pending {
    /// Reads PAX records. An empty value takes back what an earlier record said.
    pub fn read_pax(&mut self, mut records: &[u8]) -> Result<(), String> {
        while !records.is_empty() {
            let (key, value, rest) = pax_record(records).ok_or("a PAX record is malformed")?;
            records = rest;
            let number =
                || decimal(value).ok_or_else(|| format!("PAX {} is not a number", String::from_utf8_lossy(key)));
            let text = || {
                if value.contains(&0) {
                    return Err(format!("PAX {} holds a zero byte", String::from_utf8_lossy(key)));
                }
                Ok((!value.is_empty()).then(|| value.to_vec()))
            };
            match key {
                b"path" => self.path = text()?,
                b"linkpath" => self.link = text()?,
                b"size" => self.size = if value.is_empty() { None } else { Some(number()?) },
                b"mtime" => {
                    self.mtime =
                        if value.is_empty() { None } else { Some(pax_time(value).ok_or("PAX mtime is not a time")?) };
                }
                b"uid" => self.uid = decimal(value),
                b"gid" => self.gid = decimal(value),
                b"GNU.sparse.name" => self.sparse.name = text()?,
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number()?),
                b"GNU.sparse.major" => self.sparse.version_1 = number()? == 1,
                b"GNU.sparse.map" => {
                    let numbers: Option<Vec<u64>> = if value.is_empty() {
                        Some(Vec::new())
                    } else {
                        value.split(|b| *b == b',').map(decimal).collect()
                    };
                    self.sparse.numbers = Some(numbers.ok_or("PAX GNU.sparse.map is malformed")?);
                }
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    self.sparse.numbers.get_or_insert_default().push(number()?);
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.retain(|(known, _)| known != name);
                        if self.xattrs.len() == MAX_XATTRS {
                            return Err(format!("there are more than {MAX_XATTRS} extended attributes"));
                        }
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// One record and what follows it.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if length > bytes.len() || length <= space + 1 {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    (equals > 0).then(|| (&record[..equals], &record[equals + 1..], rest))
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-1.5`, `1700000000.123456789`; more than nine decimals are cut.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if negative && nanos > 0 {
        // 1.5 s before 1970 is second -2 and half a second.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}
