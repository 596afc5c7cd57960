//! Who we say we are to a registry that asks for a client's certificate.
//!
//! A registry sends the names of the authorities that it accepts (RFC 8446 4.2.4, RFC 5246 7.4.4). Of several certificates the
//! first is shown that one of these signed, or signed a certificate of its chain, as Go's TLS and so podman and skopeo choose.
//! When the registry names nobody, or none of ours fits, it is the first that the registry can check at all: an authority may
//! be accepted under another name, and no certificate is refused for certain.
//!
//! The HTTP client takes one certificate by itself; so for its choice its TLS is set up here, with the same verifier.

use super::ImageError;
use super::tls::client_error;
use crate::secret::Secret;
use fs_err as fs;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// Certificates with their keys, in the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct Identities(Vec<Arc<Identity>>);

#[derive(Debug)]
struct Identity {
    key: Arc<CertifiedKey>,
    /// Who signed the certificates of its chain, in DER.
    issuers: Vec<DistinguishedName>,
}

impl Identities {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the certificate of a file, with those that follow it, and its key.
    pub fn read(&mut self, cert: &Path, key: &Path) -> Result<(), ImageError> {
        let unreadable = |path: &Path, reason: String| client_error(&format!("`{}`", path.display()), reason);
        let read = |path: &Path| fs::read(path).map_err(|e| unreadable(path, e.to_string()));
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(cert)?)
            .collect::<Result<_, _>>()
            .map_err(|e| unreadable(cert, format!("it is no PEM file: {e}")))?;
        if chain.is_empty() {
            return Err(unreadable(cert, "it holds no PEM certificate".to_owned()));
        }
        let issuers = chain
            .iter()
            .map(|der| webpki::EndEntityCert::try_from(der).map(|cert| DistinguishedName::in_sequence(cert.issuer())))
            .collect::<Result<_, _>>()
            .map_err(|e| unreadable(cert, format!("it is no certificate that can be used: {e}")))?;
        let text = Secret::new(read(key)?);
        if is_encrypted(text.expose()) {
            let path = key.display();
            let reason = format!(
                "the key is encrypted, and nobody is asked for a passphrase in a batch job (podman and skopeo do not read it \
                 either); decrypt it to a file that only you can read: (umask 077; openssl pkey -in {path} -out NEW.key), and \
                 put that in its place"
            );
            return Err(unreadable(key, reason));
        }
        let private = PrivateKeyDer::from_pem_slice(text.expose())
            .map_err(|_| unreadable(key, "it holds no unencrypted PEM key".to_owned()))?;
        let key = CertifiedKey::from_der(chain, private, &provider()).map_err(|e| match e {
            Error::InconsistentKeys(_) => unreadable(key, format!("it is not the key of `{}`", cert.display())),
            e => unreadable(key, e.to_string()),
        })?;
        self.0.push(Arc::new(Identity { key: Arc::new(key), issuers }));
        Ok(())
    }

    /// TLS that shows one of these, and trusts the system's authorities and `more`; or anybody, when `unverified`.
    pub fn tls(&self, more: Vec<CertificateDer<'static>>, unverified: bool) -> Result<ClientConfig, Error> {
        let provider = provider();
        let verifier: Arc<dyn ServerCertVerifier> = if unverified {
            Arc::new(Unverified(provider.clone()))
        } else {
            Arc::new(rustls_platform_verifier::Verifier::new_with_extra_roots(more, provider.clone())?)
        };
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(self.clone()));
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }
}

impl ResolvesClientCert for Identities {
    fn resolve(&self, accepted: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let able = || self.0.iter().filter(|identity| identity.key.key.choose_scheme(schemes).is_some());
        let fits =
            |identity: &&Arc<Identity>| identity.issuers.iter().any(|issuer| accepted.contains(&issuer.as_ref()));
        able().find(fits).or_else(|| able().next()).map(|identity| identity.key.clone())
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The same as the HTTP client takes.
fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// PKCS #8 (RFC 7468 section 11), or OpenSSL's older form (RFC 1421).
fn is_encrypted(pem: &[u8]) -> bool {
    let has = |text: &str| memchr::memmem::find(pem, text.as_bytes()).is_some();
    has("-----BEGIN ENCRYPTED PRIVATE KEY-----") || has("Proc-Type: 4,ENCRYPTED")
}

/// Trusts whoever answers, for registries that are configured as insecure.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
