//! The flags that say who signs and who is trusted, and what they mean.

use super::{exit, open_cache, settings, variable};
use crate::cache::Cache;
use crate::cli::args::Global;
use crate::config::Settings;
use crate::package::Trust;
use crate::report::Ctx;
use crate::resolve::{self, KeySource, ResolveError};
use crate::secret::Secret;
use crate::sign::{Fingerprint, KeyStore, Keyring, SigningKey, keep_private};
use anyhow::Result;
use clap::Args;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

/// Who signs.
#[derive(Debug, Clone, Default, Args)]
pub struct KeyArgs {
    /// Secret key that signs [default: SLURM_FACTORY_SIGNING_KEY, or the cache's own key, made on first use]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Read the secret key from this file descriptor, as in `--key-fd 3 3<key.asc`
    #[arg(long, value_name = "N", conflicts_with = "key")]
    pub key_fd: Option<i32>,
    /// Sign with this key of gpg's, through gpg-agent: the secret stays there, or on its card
    #[arg(long, value_name = "FINGERPRINT", conflicts_with_all = ["key", "key_fd"])]
    pub key_agent: Option<String>,
}

impl KeyArgs {
    /// What they name; the file is a setting.
    pub fn source(&self) -> Result<KeySource> {
        let agent = self.key_agent.as_deref().map(fingerprint).transpose()?;
        Ok(KeySource { descriptor: self.key_fd, agent })
    }
}

/// Whose signatures are believed.
#[derive(Debug, Clone, Default, Args)]
pub struct KeysArgs {
    /// Public key, or keyring with several, one of which must have signed it [default: the cache's keys]
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// Of these keys only the one with this fingerprint; may be given several times
    #[arg(long, value_name = "FINGERPRINT")]
    pub fingerprint: Vec<String>,
}

/// Who is trusted, of several that may have signed.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustArgs {
    /// Whom.
    #[command(flatten)]
    pub keys: KeysArgs,
    /// Every one of these keys must have signed it
    #[arg(long)]
    pub all_signers: bool,
}

impl KeysArgs {
    /// The keys that are meant. `own` gives the cache's.
    pub fn keyring(&self, own: impl FnOnce() -> Result<Keyring>) -> Result<Keyring> {
        let keyring = if self.key.is_empty() {
            own()?
        } else {
            let mut keyring = Keyring::new();
            for key in &self.key {
                keyring.add_file(key)?;
            }
            keyring
        };
        if self.fingerprint.is_empty() {
            return Ok(keyring);
        }
        let pins = self.fingerprint.iter().map(|text| fingerprint(text)).collect::<Result<Vec<_>>>()?;
        Ok(keyring.pinned(&pins)?)
    }
}

impl TrustArgs {
    /// The keys that are meant.
    pub fn keyring(&self, global: &Global, ctx: &Ctx) -> Result<Keyring> {
        self.keys.keyring(|| own_keyring(global, ctx))
    }

    /// What is asked of a signature.
    pub fn trust<'k>(&self, keyring: &'k Keyring) -> Trust<'k> {
        if self.all_signers { Trust::RequireAll(keyring) } else { Trust::Require(keyring) }
    }
}

/// The cache's keys.
pub fn own_keyring(global: &Global, ctx: &Ctx) -> Result<Keyring> {
    let settings = settings(global, Settings::default())?;
    let (cache, _lock) = open_cache(&settings, ctx)?;
    Ok(KeyStore::new(&cache).keyring()?)
}

/// A fingerprint that was typed.
pub fn fingerprint(text: &str) -> Result<Fingerprint> {
    text.parse().map_err(|e: crate::sign::SignError| exit::Usage(e.to_string()).into())
}

/// The key that signs, unlocked: asked for its passphrase where somebody can answer. `None` when one is still to be made.
pub fn signing_key(
    settings: &Settings,
    source: &KeySource,
    cache: &Cache,
    ctx: &Ctx,
) -> Result<Option<SigningKey>, ResolveError> {
    let ask = |fingerprint: &Fingerprint| {
        ctx.reporter.finish();
        ask_passphrase(fingerprint)
    };
    resolve::key_there(settings, source, cache, &variable, &ask, ctx)
}

/// Asks on the terminal, without showing what is typed; `None` when there is none.
fn ask_passphrase(fingerprint: &Fingerprint) -> io::Result<Option<Secret<String>>> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(None);
    }
    keep_private().map_err(io::Error::other)?;
    rpassword::prompt_password(format!("Passphrase of the key {fingerprint}: ")).map(|typed| Some(Secret::new(typed)))
}
