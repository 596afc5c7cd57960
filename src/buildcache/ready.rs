//! Takes a tarball as another cache of this host has it, so that a package that goes to several places is compressed once.
//!
//! It must be what would be made: signed by somebody who is believed, whole, and with the very bytes of this tree in it. The tree is
//! read for that, which takes a fraction of compressing it; what differs, as of another build of the same hash, is made anew.

use super::tarball::{self, Distribution, Made};
use super::{InTree, Request, read};
use crate::gzip;
use crate::publish::Store;
use crate::report::{Ctx, Interrupted};
use crate::sha256::Hashing;
use std::fs::File;
use std::io::{self, Seek};

/// Copies the tarball of `package` from `cache` to `copy`, an empty file; `None` when it must be made.
pub(super) fn take(
    cache: &dyn Store,
    request: &Request<'_>,
    package: &InTree,
    wanted: &Distribution,
    copy: &mut File,
    ctx: &Ctx,
) -> Result<Option<Made>, Interrupted> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let mut taken = || {
        let at = read::spec_key(cache, &package.name, &package.version, &package.hash).map_err(|e| text(&e))?;
        let found = read::package(cache, Some(request.keyring), &at, &package.hash, ctx).map_err(|e| text(&e))?;
        let found = found.map_err(|fault| fault.detail)?;
        read::copied(cache, &found, copy, ctx).map_err(|e| text(&e))?.map_err(|fault| fault.detail)?;
        // With the same bytes in it, there is nothing else to look for.
        let unpacked = unpacked(copy).map_err(|e| text(&e))?;
        if unpacked != tarball::sum(package, wanted.clone(), ctx).map_err(|e| text(&e))? {
            return Err("the one that is there is of another build".to_owned());
        }
        let (size, sha256) = (found.tarball.content_length, found.tarball.checksum);
        Ok(Made { size, sha256, unpacked: Some(unpacked) })
    };
    let taken = taken();
    ctx.check()?;
    Ok(taken.inspect_err(|reason| ctx.detail(format!("{} is compressed anew: {reason}", package.label()))).ok())
}

/// SHA-256 of what is compressed, hexadecimal.
fn unpacked(copy: &mut File) -> io::Result<String> {
    copy.rewind()?;
    let mut out = Hashing::new(io::sink());
    io::copy(&mut gzip::reader(copy, 1)?, &mut out)?;
    Ok(out.hex())
}
