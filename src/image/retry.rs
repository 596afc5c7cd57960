//! What may go better a little later, and how long to wait for that: one rule for registries and web servers.
//!
//! A request that failed in passing is sent again, so many times as the site says (`retries`). A body that was cut goes on where it
//! was cut (RFC 9110, "Range Requests"), as often in a row as that says. A cut after new bytes is the first of a new row: so a
//! connection that brings something is no reason to give up, unless the site wants no second try at all.

use crate::wait::chance;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, HeaderMap, RETRY_AFTER};
use std::time::Duration;

/// The longest wait that a server may ask for between two tries.
pub(crate) const MAX_WAIT: Duration = Duration::from_mins(1);

/// Whether the same request may be answered otherwise a little later.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// `Content-Range: bytes 100-199/200` must begin where we asked.
pub(crate) fn starts_at(headers: &HeaderMap, offset: u64) -> bool {
    headers
        .get(CONTENT_RANGE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse::<u64>().ok())
        .is_some_and(|start| start == offset)
}

/// Seconds, or a date (which front ends send that registries stand behind).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // Whether the day of the week is right is nobody's business here.
    let until = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()?;
    Some(Duration::try_from(until.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

/// 0.5 s, 1 s, 2 s ..., half as much more or less, so that many clients do not come back together.
pub(crate) fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(500 << attempt.min(6)).mul_f64(0.5 + chance())
}

/// How long to wait before the next try: as long as the server said and up to a quarter more, as all whom it told the same would
/// come back together; else [`backoff`].
pub(crate) fn pause(attempt: u32, told: Option<Duration>) -> Duration {
    told.map_or_else(|| backoff(attempt), |told| told + told.mul_f64(0.25 * chance()))
}

/// Counts the cuts of one body.
#[derive(Debug)]
pub(crate) struct Cuts {
    allowed: u32,
    in_a_row: u32,
}

impl Cuts {
    /// So many in a row are allowed.
    pub fn new(retries: u32) -> Self {
        Self { allowed: retries, in_a_row: 0 }
    }

    /// Another one: how long to wait before going on; `None` when it is time to give up. `brought`: bytes came that had not come
    /// before.
    pub fn another(&mut self, brought: bool) -> Option<Duration> {
        self.in_a_row = if brought { 1 } else { self.in_a_row + 1 };
        (self.in_a_row <= self.allowed).then(|| backoff(self.in_a_row - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_spread() {
        for (attempt, low, high) in [(0, 250, 751), (2, 1000, 3001)] {
            let waits: Vec<u128> = (0..50).map(|_| backoff(attempt).as_millis()).collect();
            assert!(waits.iter().all(|wait| (low..high).contains(wait)), "{attempt}: {waits:?}");
            let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(most - least > (high - low) / 4, "not spread: {waits:?}");
        }
        let told = Duration::from_secs(8);
        assert!((0..50).all(|_| (told..Duration::from_secs(10)).contains(&pause(0, Some(told)))));
    }

    #[test]
    fn a_wait_is_told_in_seconds_or_as_a_date() {
        let wait = |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(wait(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(wait("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        assert!(wait("Fri, 31 Dec 2199 23:59:59 GMT").unwrap() > MAX_WAIT);
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn a_part_says_where_it_begins() {
        let starts = |text: &str| starts_at(&HeaderMap::from_iter([(CONTENT_RANGE, text.parse().unwrap())]), 100);
        assert!(starts("bytes 100-199/200") && starts("bytes 100-199/*"));
        assert!(!starts("bytes 0-199/200") && !starts("bytes */200") && !starts("100-199/200"));
        assert!(!starts_at(&HeaderMap::new(), 100));
    }

    #[test]
    fn a_cut_after_new_bytes_is_the_first_of_a_new_row() {
        let mut cuts = Cuts::new(2);
        assert!((0..20).all(|_| cuts.another(true).is_some()));
        assert!(cuts.another(false).is_some() && cuts.another(false).is_none());
        assert!(cuts.another(true).is_some());
        assert!(Cuts::new(0).another(true).is_none());
    }
}
