//! `key`

use super::args::{Global, KeyVerb};
use super::{exit, open_cache, print, print_json, settings};
use crate::config::Settings;
use crate::report::Ctx;
use crate::secret::Secret;
use crate::sign::{Algorithm, Fingerprint, KeyStore};
use anyhow::Result;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

const DAY: u64 = 24 * 60 * 60;

/// `key generate|import|export|list`
pub fn run(global: &Global, verb: &KeyVerb, ctx: &Ctx) -> Result<ExitCode> {
    let settings = settings(global, Settings::default())?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let store = KeyStore::new(&cache);
    match verb {
        KeyVerb::Generate { name, email, expires, rsa } => {
            let algorithm = if *rsa { Algorithm::Rsa4096 } else { Algorithm::Ed25519 };
            let valid_for = expires.map(|days| Duration::from_secs(u64::from(days) * DAY));
            let fingerprint = store.generate(ctx, name, email, valid_for, algorithm)?;
            store.set_default(&fingerprint)?;
            ctx.note("packages are signed with it from now on; keys made before stay trusted (`key list`)");
            print(&format!("{fingerprint}\n"))?;
        }
        KeyVerb::Import { file } => {
            let bytes = Secret::new(fs_err::read(file).map_err(|e| exit::Usage(format!("key import: {e}")))?);
            let imported = store.import(ctx, &file.display().to_string(), &bytes)?;
            for key in store.list()?.iter().filter(|key| imported.contains(&key.fingerprint)) {
                if key.has_secret {
                    store.set_default(&key.fingerprint)?;
                    ctx.note("packages are signed with it from now on; keys made before stay trusted (`key list`)");
                }
                print(&format!("{}\n", key.fingerprint))?;
            }
        }
        KeyVerb::Export { fingerprint, secret } => {
            let fingerprint = match fingerprint {
                Some(text) => text.parse::<Fingerprint>().map_err(|e| exit::Usage(e.to_string()))?,
                None => store.default_fingerprint()?.ok_or_else(|| {
                    exit::HostFault(
                        "there is no signing key yet; `slurm-factory key generate` makes one, and so does the first build (an imported \
                         public key is exported by its fingerprint)"
                            .into(),
                    )
                })?,
            };
            if *secret {
                let bytes = store.export_secret(&fingerprint)?;
                print(&String::from_utf8_lossy(bytes.expose()))?;
            } else {
                print(&store.export_public(&fingerprint)?)?;
            }
        }
        KeyVerb::List { json } => {
            let keys = store.list()?;
            if *json {
                print_json(&keys)?;
            } else {
                let default = store.default_fingerprint()?;
                let mut text = String::new();
                for key in keys {
                    let mark = if default.as_ref() == Some(&key.fingerprint) { '*' } else { ' ' };
                    // Writing to a string does not fail.
                    let _ = writeln!(text, "{mark} {} {}", key.fingerprint, key.user_ids.join(", "));
                }
                print(&text)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
