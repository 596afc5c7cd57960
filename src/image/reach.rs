//! Whether an image's registry, and its mirrors, answer: for `doctor --online`. Asked as a pull would ask, with the site's
//! proxies, certificates and logins, and nothing is kept.

use super::client::ClientConfig;
use super::reference::RegistryReference;
use super::registry::Registry;
use super::{ImageError, source};
use crate::report::Ctx;
use jiff::Timestamp;

/// A place where the image may be had, and what it said.
#[derive(Debug)]
pub struct Reached {
    /// The image's name there.
    pub place: String,
    /// The time that it says it is, when it says so; or why there is no answer.
    pub answer: Result<Option<Timestamp>, ImageError>,
}

/// Asks each place for the image's manifest.
pub fn reach(reference: &RegistryReference, client: &ClientConfig, ctx: &Ctx) -> Result<Vec<Reached>, ImageError> {
    let name = reference.to_string();
    let places = client.registries.route(reference)?.endpoints;
    source::run(ctx, async {
        let mut reached = Vec::new();
        for endpoint in places {
            let place = endpoint.reference.to_string();
            let answer = match Registry::new(endpoint, &name, client, 0, ctx) {
                Ok(registry) => registry.date().await.map(|text| text.as_deref().and_then(parse)),
                Err(e) => Err(e),
            };
            reached.push(Reached { place, answer });
        }
        Ok(reached)
    })
}

/// An HTTP date: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110).
fn parse(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http() {
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT").unwrap().as_second(), 784_111_777);
        assert_eq!(parse("yesterday"), None);
    }
}
