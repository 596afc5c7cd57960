//! The key that signs, wherever it is kept. It is looked at before any work, because an hour's build without a
//! signature is worth nothing.
//!
//! | place | how it is named |
//! |---|---|
//! | a file, mode 0600 | `--key FILE`, setting `key` |
//! | a file descriptor | `--key-fd N` |
//! | gpg-agent | `--key-agent FINGERPRINT` |
//! | the environment, also in base64 | `SLURM_FACTORY_SIGNING_KEY` |
//! | the cache's own | none of these; made on first use |
//!
//! Never the command line: everyone on the host reads it. A passphrase comes from `SLURM_FACTORY_KEY_PASSPHRASE`, or is
//! asked for when somebody sits at a terminal.

use super::{Lookup, ResolveError};
use crate::cache::Cache;
use crate::config::Settings;
use crate::report::Ctx;
use crate::secret::Secret;
use crate::sign::{Agent, Created, Fingerprint, KeyStore, SignError, SigningKey, keep_private};
use fs_err as fs;
use std::io::{self, Read};
use std::path::Path;

/// The variable that holds the passphrase of a locked signing key.
pub const PASSPHRASE: &str = "SLURM_FACTORY_KEY_PASSPHRASE";
/// The variable that holds a signing key, armored or in base64.
pub const SIGNING_KEY: &str = "SLURM_FACTORY_SIGNING_KEY";

/// More than any key: RSA with 16384 bits and a hundred user ids is under it.
const LONGEST_KEY: usize = 1 << 20;

/// Asks for the passphrase of the key that is named; `None` when nobody is there to answer.
pub type AskPassphrase<'a> = &'a dyn Fn(&Fingerprint) -> io::Result<Option<Secret<String>>>;

/// What flags say about the key.
#[derive(Debug, Clone, Default)]
pub struct KeySource {
    /// A file descriptor to read it from, to its end.
    pub descriptor: Option<i32>,
    /// A key that gpg-agent keeps.
    pub agent: Option<Fingerprint>,
}

/// The key that is named, or the cache's own if it has one, unlocked and fit to sign. `None` when one is still to be made.
pub fn key_there(
    settings: &Settings,
    source: &KeySource,
    cache: &Cache,
    lookup: Lookup<'_>,
    ask: AskPassphrase<'_>,
    ctx: &Ctx,
) -> Result<Option<SigningKey>, ResolveError> {
    let in_environment = lookup(SIGNING_KEY).filter(|key| !key.is_empty());
    let mut named = [
        settings.key.is_some().then_some("`key` (--key)"),
        source.descriptor.is_some().then_some("--key-fd"),
        source.agent.is_some().then_some("--key-agent"),
        in_environment.is_some().then_some(SIGNING_KEY),
    ]
    .into_iter()
    .flatten();
    if let (Some(first), Some(second)) = (named.next(), named.next()) {
        return Err(ResolveError::TwoKeys { first, second });
    }
    if let Some(fingerprint) = &source.agent {
        let env = ["GNUPGHOME", "GPG_TTY", "DISPLAY", "WAYLAND_DISPLAY", "TERM", "DBUS_SESSION_BUS_ADDRESS"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), lookup(name)?)))
            .collect();
        let agent = Agent { env, interrupt: ctx.interrupt.clone() };
        return Ok(Some(SigningKey::from_agent(&agent, fingerprint)?));
    }
    let passphrase = lookup(PASSPHRASE).map(Secret::new);
    let passphrase = passphrase.as_ref();
    if let Some(path) = &settings.key {
        return unlocked(|p| SigningKey::from_file(path, p), passphrase, ask).map(Some);
    }
    let given = match (source.descriptor, in_environment) {
        (Some(number), _) => Some((format!("file descriptor {number}"), read_descriptor(number)?)),
        (None, Some(text)) => Some((format!("the variable {SIGNING_KEY}"), Secret::new(text.into_bytes()))),
        (None, None) => None,
    };
    if let Some((origin, bytes)) = given {
        return unlocked(|p| SigningKey::from_bytes(&origin, &bytes, p), passphrase, ask).map(Some);
    }
    let store = KeyStore::new(cache);
    match store.default_fingerprint()? {
        Some(fingerprint) => unlocked(|p| store.load(&fingerprint, p), passphrase, ask).map(Some),
        None => Ok(None),
    }
}

/// The cache's own key, made now unless somebody else was quicker.
pub fn make_key(cache: &Cache, lookup: Lookup<'_>, ctx: &Ctx) -> Result<SigningKey, ResolveError> {
    let store = KeyStore::new(cache);
    let (key, created) = store.load_or_create(ctx, "slurm-factory", lookup(PASSPHRASE).map(Secret::new).as_ref())?;
    if created == Created::Yes {
        let public = store.public_path(&key.fingerprint());
        ctx.note(format!("made a signing key, fingerprint {}", key.fingerprint()));
        ctx.note(format!("its public half is for those who install: {}", public.display()));
        ctx.note("`slurm-factory key export` prints it");
    }
    Ok(key)
}

/// A key that turns out to be locked is tried again with what somebody types.
fn unlocked(
    load: impl Fn(Option<&Secret<String>>) -> Result<SigningKey, SignError>,
    passphrase: Option<&Secret<String>>,
    ask: AskPassphrase<'_>,
) -> Result<SigningKey, ResolveError> {
    keep_private()?;
    match load(passphrase) {
        Err(SignError::NeedsPassphrase { fingerprint }) => match ask(&fingerprint).map_err(ResolveError::Ask)? {
            Some(typed) => Ok(load(Some(&typed))?),
            None => Err(SignError::NeedsPassphrase { fingerprint }.into()),
        },
        other => Ok(other?),
    }
}

/// Whether we were started with this open descriptor. Those that we open ourselves are close-on-exec, all of them, and that
/// those are not closed from here is why it is asked (proc(5), `fdinfo`; the flags are octal).
fn was_given(number: i32) -> io::Result<bool> {
    let text = fs::read_to_string(Path::new("/proc/self/fdinfo").join(number.to_string()))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    Ok(flags.is_some_and(|flags| flags & nix::fcntl::OFlag::O_CLOEXEC.bits() == 0))
}

/// Reads a descriptor that we were started with, and closes it. It is opened anew by its name in /proc, which needs no trust in the
/// number: one that is not open is an error like any other.
fn read_descriptor(number: i32) -> Result<Secret<Vec<u8>>, ResolveError> {
    let failed = |source| ResolveError::KeyDescriptor { number, source };
    // Opened before the process is closed to others: /proc/self/fd then belongs to root.
    let file = fs::File::open(Path::new("/proc/self/fd").join(number.to_string())).map_err(failed)?;
    if !was_given(number).map_err(failed)? {
        return Err(failed(nix::errno::Errno::EBADF.into()));
    }
    // Every program that is started from now on would get it too. The standard streams stay.
    if number > 2 {
        nix::unistd::close(number).map_err(|e| failed(e.into()))?;
    }
    keep_private()?;
    let mut bytes = Secret::new(Vec::with_capacity(LONGEST_KEY + 1));
    file.take(LONGEST_KEY as u64 + 1).read_to_end(bytes.expose_mut()).map_err(failed)?;
    if bytes.expose().len() > LONGEST_KEY {
        return Err(failed(io::Error::other("what it gives is longer than any key")));
    }
    Ok(bytes)
}
