//! From an address to a store.

use super::{FolderStore, OciStore, S3Options, S3Store, Store, StoreError, WebStore, oci};
use crate::image::ClientConfig;
use crate::report::Ctx;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How stores in the network are reached. The default trusts the system's certificates and uses no proxy.
#[derive(Debug, Default)]
pub struct Reach {
    /// Buckets.
    pub s3: S3Options,
    /// Registries, and the web.
    pub registries: Arc<ClientConfig>,
}

/// Whether, to reach this address, [`Reach::registries`] counts.
pub fn is_by_registries(address: &str) -> bool {
    is_web(address) || oci::parse(address).is_some()
}

fn is_web(address: &str) -> bool {
    matches!(address.split_once("://"), Some(("http" | "https", _)))
}

/// The store that an address names: `s3://bucket/prefix`, `oci://host/repository`, `file:///folder` or a folder's path.
///
/// For a bucket, credentials are looked for now; nothing is written and nothing is asked of the store.
pub fn open(address: &str, reach: &Reach, ctx: &Ctx) -> Result<Box<dyn Store>, StoreError> {
    if address.starts_with("s3://") {
        return Ok(Box::new(S3Store::open(address, &reach.s3, ctx)?));
    }
    if oci::parse(address).is_some() {
        return Ok(Box::new(OciStore::open(address, &reach.registries, ctx)?));
    }
    folder(address).map(|folder| Box::new(FolderStore::new(&folder)) as Box<dyn Store>)
}

/// The same, and web servers, which can be read and not written to.
pub fn open_to_read(address: &str, reach: &Reach, ctx: &Ctx) -> Result<Box<dyn Store>, StoreError> {
    if is_web(address) {
        return Ok(Box::new(WebStore::open(address, &reach.registries)?));
    }
    open(address, reach, ctx)
}

/// The folder that an address names.
fn folder(address: &str) -> Result<PathBuf, StoreError> {
    let refuse = |reason: &str| Err(StoreError::BadAddress { address: address.to_owned(), reason: reason.to_owned() });
    let path = match address.split_once("://") {
        Some(("file", path)) => {
            // RFC 8089: the host is empty or this one.
            let path = path.strip_prefix("localhost").unwrap_or(path);
            if !path.starts_with('/') {
                return refuse("a file:// address has a whole path, with three slashes: file:///srv/mirror");
            }
            if path.contains('%') {
                return refuse("escapes such as %20 are not read here; give the folder as a plain path");
            }
            path
        }
        Some(_) if is_web(address) => {
            return refuse(
                "a web server cannot be written to; a bucket is s3://bucket/prefix, its server is named with --s3-endpoint",
            );
        }
        Some((scheme, _)) => {
            return refuse(&format!(
                "`{scheme}` is not one of s3://bucket/prefix, oci://host/repository, file:///folder and a folder's path"
            ));
        }
        None => address,
    };
    if path.is_empty() {
        return refuse(
            "it is empty; name s3://bucket/prefix, oci://host/repository, file:///folder or a folder's path",
        );
    }
    std::path::absolute(Path::new(path)).or_else(|e| refuse(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_folders() {
        for (address, want) in [("file:///srv/m", "/srv/m"), ("file://localhost/srv", "/srv"), ("/a b/c", "/a b/c")] {
            assert_eq!(folder(address).unwrap(), Path::new(want));
        }
        assert!(folder("mirror").unwrap().is_absolute());
        for (address, hint) in [
            ("https://site/x", "--s3-endpoint"),
            ("file://host/x", "three slashes"),
            ("gs://x", "s3://bucket"),
            ("file:///a%20b", "plain path"),
            ("", "empty"),
        ] {
            let error = folder(address).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
