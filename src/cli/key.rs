//! `key`

use super::args::{Global, KeyVerb};
use super::signer::fingerprint as parse;
use super::{exit, open_cache, print, print_json, settings, variable};
use crate::config::Settings;
use crate::report::Ctx;
use crate::resolve::PASSPHRASE;
use crate::secret::Secret;
use crate::sign::{Algorithm, Fingerprint, KeyInfo, KeyStore, day, keep_private};
use anyhow::Result;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

const DAY: u64 = 24 * 60 * 60;
/// OpenPGP counts a key's life in seconds, in 32 bits (RFC 9580, section 5.2.3.13).
const LONGEST: u32 = u32::MAX / (24 * 60 * 60);

/// `key generate|import|export|list|default|remove`
pub fn run(global: &Global, verb: &KeyVerb, ctx: &Ctx) -> Result<ExitCode> {
    let settings = settings(global, Settings::default())?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    let store = KeyStore::new(&cache);
    match verb {
        KeyVerb::Generate { name, email, expires, rsa } => {
            let valid_for = expires.map(lifetime).transpose()?;
            let algorithm = if *rsa { Algorithm::Rsa4096 } else { Algorithm::Ed25519 };
            let fingerprint = store.generate(ctx, name, email, valid_for, algorithm)?;
            store.set_default(&fingerprint)?;
            ctx.note("packages are signed with it from now on; keys made before stay trusted (`key list`)");
            print(&format!("{fingerprint}\n"))?;
        }
        KeyVerb::Import { file } => import(&store, file, ctx)?,
        KeyVerb::Export { fingerprint, secret } => {
            let fingerprint = match fingerprint {
                Some(text) => parse(text)?,
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
                print(&table(&keys))?;
            }
        }
        KeyVerb::Default { fingerprint } => {
            let fingerprint = parse(fingerprint)?;
            // Whether it can sign is said now, and not at the end of a build.
            let key = store.info(&fingerprint)?;
            if !key.can_sign {
                let why = key.why_not.as_deref().unwrap_or("its secret is not here");
                return Err(exit::HostFault(format!("the key {fingerprint} cannot sign here: {why}")).into());
            }
            store.set_default(&fingerprint)?;
            ctx.note(format!("packages are signed with {fingerprint} from now on"));
        }
        KeyVerb::Remove { fingerprint, force } => {
            let removed = store.remove(ctx, &parse(fingerprint)?, *force)?;
            if removed.has_secret {
                ctx.warn(format!("the secret key {} is gone: nothing is signed with it any more", removed.fingerprint));
            }
            ctx.note(format!("what {} signed is no longer trusted here", removed.fingerprint));
            if removed.default {
                ctx.note("no key is the default now: the next build makes one, unless `key default`, `key generate` or `key import` gives it one");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn lifetime(days: u32) -> Result<Duration> {
    match days {
        0 => Err(exit::Usage(
            "--expires 0: a key that expires at once signs nothing; leave the flag out for one that never expires"
                .into(),
        )
        .into()),
        days if days > LONGEST => {
            Err(exit::Usage(format!("--expires {days}: OpenPGP keys last at most {LONGEST} days")).into())
        }
        days => Ok(Duration::from_secs(u64::from(days) * DAY)),
    }
}

/// Takes keys in. One secret key that can sign becomes the default; of several none does, because the order in a file
/// means nothing.
fn import(store: &KeyStore, file: &Path, ctx: &Ctx) -> Result<()> {
    keep_private()?;
    let failed = |e| exit::Usage(format!("key import: {e}"));
    let bytes = if file == Path::new("-") {
        Secret::read(&mut std::io::stdin().lock()).map_err(failed)?
    } else {
        let mut file = fs_err::File::open(file).map_err(failed)?;
        Secret::read(&mut file).map_err(failed)?
    };
    let imported = store.import(ctx, &file.display().to_string(), &bytes)?;
    let keys: Vec<KeyInfo> = store.list()?.into_iter().filter(|key| imported.contains(&key.fingerprint)).collect();
    let passphrase = variable(PASSPHRASE).map(Secret::new);
    for key in keys.iter().filter(|key| key.can_sign && key.protected && passphrase.is_some()) {
        // Said now, not at the end of the first build. The key is kept: it is the passphrase that is wrong.
        store.load(&key.fingerprint, passphrase.as_ref())?;
    }
    for key in keys.iter().filter(|key| key.has_secret && !key.can_sign) {
        ctx.warn(format!("kept, but it signs nothing: {}", key.why_not.as_deref().unwrap_or("unfit")));
    }
    let signers: Vec<&Fingerprint> = keys.iter().filter(|key| key.can_sign).map(|key| &key.fingerprint).collect();
    match signers.as_slice() {
        [] => {}
        [one] => {
            store.set_default(one)?;
            ctx.note("packages are signed with it from now on; keys made before stay trusted (`key list`)");
        }
        several => ctx.warn(format!(
            "{} of these keys can sign; the default stays {}: `slurm-factory key default FINGERPRINT` says which signs",
            several.len(),
            store.default_fingerprint()?.map_or_else(|| "unset".to_owned(), |f| f.to_string())
        )),
    }
    for key in &keys {
        print(&format!("{}\n", key.fingerprint))?;
    }
    Ok(())
}

/// A key a line: `*` for the one that signs, the fingerprint, the algorithm, until when, what it can do here, whose it is.
fn table(keys: &[KeyInfo]) -> String {
    let mut text = String::new();
    for key in keys {
        let mark = if key.default { '*' } else { ' ' };
        let expires = key.expires.map_or_else(
            || "never expires".to_owned(),
            |t| format!("expires {}", day(UNIX_EPOCH + Duration::from_secs(t))),
        );
        let can = match (key.can_sign, key.protected, key.has_secret) {
            (true, true, _) => "signs (passphrase)",
            (true, false, _) => "signs",
            (false, _, true) => "cannot sign",
            (false, _, false) if key.revoked => "revoked",
            (false, _, false) => "verifies",
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{mark} {} {:<10} {expires:<18} {can:<18} {}",
            key.fingerprint,
            key.algorithm,
            key.user_ids.join(", ")
        );
        if let Some(why) = key.why_not.as_deref().filter(|_| key.has_secret) {
            let _ = writeln!(text, "    {why}");
        }
    }
    text
}
