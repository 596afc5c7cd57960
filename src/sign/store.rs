//! The key store: a folder of the cache, private to its owner (drawn in [`super`]).
//!
//! A key is made on first use when none is configured. Two programs may come to that at once; the cache's lock
//! `keys` lets one make it and the other find it. The file `default` is written last, so that a killed run leaves
//! either no default or a whole one.

use super::key::{Algorithm, KeyInfo, SigningKey, armored_public, generate, parse_certs, read_secret_file};
use super::verify::Keyring;
use super::{Fingerprint, SignError};
use crate::cache::Cache;
use crate::fsutil;
use crate::report::Ctx;
use crate::secret::Secret;
use fs_err as fs;
use sequoia_openpgp as openpgp;

use openpgp::cert::Cert;
use openpgp::serialize::SerializeInto;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const DEFAULT: &str = "default";

/// The folder of keys.
#[derive(Clone, Debug)]
pub struct KeyStore {
    dir: PathBuf,
    cache: Cache,
}

/// Whether [`KeyStore::load_or_create`] had to make a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It was there.
    No,
    /// It was made now: tell the user its fingerprint and how to export it.
    Yes,
}

impl KeyStore {
    /// The key store of a cache. The folder is made when something is first written to it.
    pub fn new(cache: &Cache) -> Self {
        Self { dir: cache.dir("keys"), cache: cache.clone() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn secret_path(&self, fingerprint: &Fingerprint) -> PathBuf {
        self.dir.join(format!("{fingerprint}.asc"))
    }

    /// The file that users are given.
    pub fn public_path(&self, fingerprint: &Fingerprint) -> PathBuf {
        self.dir.join(format!("{fingerprint}.pub.asc"))
    }

    fn make_dir(&self) -> Result<(), SignError> {
        fs::create_dir_all(&self.dir).map_err(SignError::Io)?;
        fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o700)).map_err(SignError::Io)
    }

    /// The fingerprint of the key that signs when none is configured.
    pub fn default_fingerprint(&self) -> Result<Option<Fingerprint>, SignError> {
        match fs::read_to_string(self.dir.join(DEFAULT)) {
            Ok(text) => text.parse().map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SignError::Io(error)),
        }
    }

    /// Makes `fingerprint` the key that signs when none is configured.
    pub fn set_default(&self, fingerprint: &Fingerprint) -> Result<(), SignError> {
        if !self.secret_path(fingerprint).exists() {
            return Err(self.unknown(fingerprint));
        }
        fsutil::write_atomic(&self.dir.join(DEFAULT), format!("{fingerprint}\n").as_bytes(), 0o600)
            .map_err(SignError::Io)
    }

    /// One key, unlocked.
    pub fn load(
        &self,
        fingerprint: &Fingerprint,
        passphrase: Option<&Secret<String>>,
    ) -> Result<SigningKey, SignError> {
        let path = self.secret_path(fingerprint);
        if !path.exists() {
            return Err(self.unknown(fingerprint));
        }
        SigningKey::from_file(&path, passphrase)
    }

    /// The default key, made now when there is none. `owner` is a name for its user id.
    pub fn load_or_create(
        &self,
        ctx: &Ctx,
        owner: &str,
        passphrase: Option<&Secret<String>>,
    ) -> Result<(SigningKey, Created), SignError> {
        if let Some(fingerprint) = self.default_fingerprint()? {
            return Ok((self.load(&fingerprint, passphrase)?, Created::No));
        }
        let _lock = self.cache.lock(ctx, "keys", "the signing keys")?;
        // Asked again: whoever held the lock may have made it.
        if let Some(fingerprint) = self.default_fingerprint()? {
            return Ok((self.load(&fingerprint, passphrase)?, Created::No));
        }
        let fingerprint = self.generate_locked(owner, "", None, Algorithm::default())?;
        self.set_default(&fingerprint)?;
        Ok((self.load(&fingerprint, None)?, Created::Yes))
    }

    /// Makes a key and keeps it; the first one becomes the default.
    pub fn generate(
        &self,
        ctx: &Ctx,
        name: &str,
        mail: &str,
        valid_for: Option<Duration>,
        algorithm: Algorithm,
    ) -> Result<Fingerprint, SignError> {
        let _lock = self.cache.lock(ctx, "keys", "the signing keys")?;
        let fingerprint = self.generate_locked(name, mail, valid_for, algorithm)?;
        if self.default_fingerprint()?.is_none() {
            self.set_default(&fingerprint)?;
        }
        Ok(fingerprint)
    }

    fn generate_locked(
        &self,
        name: &str,
        mail: &str,
        valid_for: Option<Duration>,
        algorithm: Algorithm,
    ) -> Result<Fingerprint, SignError> {
        let made = generate(name, mail, valid_for, algorithm)?;
        self.write(&made.fingerprint, Some(&made.secret), &made.public)?;
        Ok(made.fingerprint)
    }

    fn write(
        &self,
        fingerprint: &Fingerprint,
        secret: Option<&Secret<Vec<u8>>>,
        public: &str,
    ) -> Result<(), SignError> {
        self.make_dir()?;
        if let Some(secret) = secret {
            fsutil::write_atomic(&self.secret_path(fingerprint), secret.expose(), 0o600).map_err(SignError::Io)?;
        }
        fsutil::write_atomic(&self.public_path(fingerprint), public.as_bytes(), 0o644).map_err(SignError::Io)
    }

    /// Keeps keys exported by gpg or by us: secret ones as they are (locked ones stay locked), public ones so that
    /// what they signed is believed. What is known about a key already is kept and added to. Which one signs is not
    /// decided here ([`Self::set_default`]). Returns their fingerprints.
    pub fn import(&self, ctx: &Ctx, origin: &str, bytes: &Secret<Vec<u8>>) -> Result<Vec<Fingerprint>, SignError> {
        let certs = parse_certs(origin, bytes.expose())?;
        let _lock = self.cache.lock(ctx, "keys", "the signing keys")?;
        let mut imported = Vec::new();
        for cert in certs {
            let fingerprint = Fingerprint::of(&cert.fingerprint());
            let cert = match self.read(&fingerprint)? {
                Some(known) => {
                    known.merge_public_and_secret(cert).map_err(|error| crypto("import", &fingerprint, &error))?
                }
                None => cert,
            };
            let secret = if cert.is_tsk() { Some(armored_secret(&cert)?) } else { None };
            self.write(&fingerprint, secret.as_ref(), &armored_public(&cert)?)?;
            imported.push(fingerprint);
        }
        Ok(imported)
    }

    /// Removes a key. One whose secret is here goes only by `force`: what it signed can be checked with an exported
    /// copy, but nothing can be signed with it again. Whatever it was, it is no longer trusted. Returns what was
    /// removed.
    pub fn remove(&self, ctx: &Ctx, fingerprint: &Fingerprint, force: bool) -> Result<KeyInfo, SignError> {
        let _lock = self.cache.lock(ctx, "keys", "the signing keys")?;
        let cert = self.read(fingerprint)?.ok_or_else(|| self.unknown(fingerprint))?;
        let default = self.default_fingerprint()?.as_ref() == Some(fingerprint);
        let why = match (default, cert.is_tsk()) {
            _ if force => None,
            (true, _) => Some("signs packages (it is the default), and its secret is here"),
            (false, true) => Some("has its secret here"),
            (false, false) => None,
        };
        if let Some(why) = why {
            return Err(SignError::WouldLose { fingerprint: fingerprint.clone(), why });
        }
        // The default goes first: a killed run leaves a key that is not the default, never a default without a key.
        let files = default.then(|| self.dir.join(DEFAULT));
        for path in files.into_iter().chain([self.secret_path(fingerprint), self.public_path(fingerprint)]) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(SignError::Io(error)),
                _ => {}
            }
        }
        Ok(KeyInfo::of(&cert, default, SystemTime::now()))
    }

    /// The armored public key.
    pub fn export_public(&self, fingerprint: &Fingerprint) -> Result<String, SignError> {
        match self.read(fingerprint)? {
            Some(cert) => armored_public(&cert),
            None => Err(self.unknown(fingerprint)),
        }
    }

    /// The armored secret key, still locked when it is.
    pub fn export_secret(&self, fingerprint: &Fingerprint) -> Result<Secret<Vec<u8>>, SignError> {
        match self.read(fingerprint)? {
            Some(cert) if cert.is_tsk() => armored_secret(&cert),
            Some(_) => Err(SignError::NoSecret {
                origin: format!("`{}`", self.dir.display()),
                fingerprint: fingerprint.clone(),
            }),
            None => Err(self.unknown(fingerprint)),
        }
    }

    /// One key.
    pub fn info(&self, fingerprint: &Fingerprint) -> Result<KeyInfo, SignError> {
        let cert = self.read(fingerprint)?.ok_or_else(|| self.unknown(fingerprint))?;
        Ok(KeyInfo::of(&cert, self.default_fingerprint()?.as_ref() == Some(fingerprint), SystemTime::now()))
    }

    /// Every key, sorted by fingerprint.
    pub fn list(&self) -> Result<Vec<KeyInfo>, SignError> {
        let default = self.default_fingerprint()?;
        let mut keys = Vec::new();
        for fingerprint in self.fingerprints()? {
            if let Some(cert) = self.read(&fingerprint)? {
                keys.push(KeyInfo::of(&cert, default.as_ref() == Some(&fingerprint), SystemTime::now()));
            }
        }
        Ok(keys)
    }

    /// The public halves of every key here: what is trusted unless the user says otherwise.
    pub fn keyring(&self) -> Result<Keyring, SignError> {
        let mut keyring = Keyring::new();
        for fingerprint in self.fingerprints()? {
            if let Some(cert) = self.read(&fingerprint)? {
                keyring.add(cert);
            }
        }
        Ok(keyring)
    }

    fn fingerprints(&self) -> Result<Vec<Fingerprint>, SignError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(SignError::Io(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(SignError::Io)?.file_name();
            if let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".pub.asc"))
                && let Ok(fingerprint) = stem.parse::<Fingerprint>()
            {
                found.push(fingerprint);
            }
        }
        found.sort();
        Ok(found)
    }

    /// The certificate with all that is known of it.
    fn read(&self, fingerprint: &Fingerprint) -> Result<Option<Cert>, SignError> {
        let secret = self.secret_path(fingerprint);
        let public = self.public_path(fingerprint);
        let (path, bytes) = if secret.exists() {
            let bytes = read_secret_file(&secret)?;
            (secret, bytes)
        } else if public.exists() {
            let bytes = fs::read(&public).map_err(SignError::Io)?;
            (public, Secret::new(bytes))
        } else {
            return Ok(None);
        };
        let origin = format!("`{}`", path.display());
        let found = parse_certs(&origin, bytes.expose())?
            .into_iter()
            .find(|cert| Fingerprint::of(&cert.fingerprint()) == *fingerprint);
        match found {
            Some(cert) => Ok(Some(cert)),
            None => Err(SignError::NotAKey { origin, reason: format!("it should be {fingerprint} and is another") }),
        }
    }

    fn unknown(&self, fingerprint: &Fingerprint) -> SignError {
        SignError::UnknownKey { fingerprint: fingerprint.clone(), dir: self.dir.clone() }
    }
}

fn armored_secret(cert: &Cert) -> Result<Secret<Vec<u8>>, SignError> {
    cert.as_tsk()
        .armored()
        .to_vec()
        .map(Secret::new)
        .map_err(|error| crypto("export", &Fingerprint::of(&cert.fingerprint()), &error))
}

fn crypto(verb: &'static str, fingerprint: &Fingerprint, error: &openpgp::anyhow::Error) -> SignError {
    SignError::Crypto { verb, fingerprint: fingerprint.to_string(), reason: super::key::chain(error) }
}
