//! The fields of a header: names, and numbers in octal or in base 256.

/// The name field, with the prefix that POSIX and star put before it.
pub fn name_of(header: &[u8; 512]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    if &header[257..263] != b"ustar\0" {
        return name.to_vec();
    }
    let prefix = if &header[508..512] == b"tar\0" { &header[345..476] } else { &header[345..500] };
    let prefix = until_nul(prefix);
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

pub fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

pub fn sum<T: std::iter::Sum>(block: &[u8; 512], value: impl Fn(u8) -> T) -> T {
    block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { value(b' ') } else { value(*b) }).sum()
}

/// A header's number that cannot be negative.
pub fn number(field: &[u8]) -> Option<u64> {
    u64::try_from(signed_number(field)?).ok()
}

pub fn signed_number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Two's complement, big-endian; the first bit only marks the form, the second is the sign.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value: i128 = if negative { i128::from(first.cast_signed()) } else { i128::from(first) };
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let is_blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !is_blank(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}
