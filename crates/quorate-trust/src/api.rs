//! TLS of the API: for programs, browsers and servers that join.
//!
//! TLS 1.3, and 1.2 for older clients (the library has only AEAD ciphers in it). Nobody is asked for
//! a certificate: users prove themselves by what they send.
//!
//! A node shows its certificate of the cluster's authority, or one that the operator got elsewhere.
//! Who has pinned the cluster's authority says so ([`ALPN_PINNED`]) and is always shown the former.

use crate::peer::{Credentials, provider};
use crate::pin::ALPN_PINNED;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

const ALPN_HTTP: &[u8] = b"http/1.1";

/// A certificate that the operator got from another authority, and its key.
#[derive(Debug, Clone)]
pub struct OwnCertificate(Arc<CertifiedKey>);

/// TLS of the API cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ApiTlsError {
    #[error("it is not a certificate or key in PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("there is no certificate in it")]
    Empty,
    /// A kind of key that is not known, or one of another certificate.
    #[error("the certificate and the key cannot be used together")]
    Unusable(#[source] rustls::Error),
}

impl OwnCertificate {
    /// From PEM: the server's certificate first, then those up to its authority; and its private key.
    ///
    /// # Errors
    /// [`ApiTlsError`].
    pub fn from_pem(chain: &str, key: &str) -> Result<OwnCertificate, ApiTlsError> {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(ApiTlsError::Pem)?;
        certified(certificates(chain)?, key).map(OwnCertificate)
    }
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, ApiTlsError> {
    let all: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(ApiTlsError::Pem)?;
    if all.is_empty() { Err(ApiTlsError::Empty) } else { Ok(all) }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, ApiTlsError> {
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(ApiTlsError::Unusable)
}

#[derive(Debug)]
struct Shown {
    cluster: Arc<CertifiedKey>,
    own: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pinned = hello.alpn().is_some_and(|mut offered| offered.any(|name| name == ALPN_PINNED));
        Some(self.own.clone().filter(|_| !pinned).unwrap_or_else(|| self.cluster.clone()))
    }
}

/// For the side that serves the API.
///
/// # Errors
/// [`ApiTlsError::Unusable`], which credentials that were read never give.
pub fn server(
    cluster: &Credentials,
    own: Option<OwnCertificate>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, ApiTlsError> {
    let shown = Shown { cluster: certified(cluster.chain(), cluster.key())?, own: own.map(|own| own.0) };
    let mut config = ServerConfig::builder_with_details(provider(), clock)
        .with_safe_default_protocol_versions()
        .map_err(ApiTlsError::Unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![ALPN_PINNED.to_vec(), ALPN_HTTP.to_vec()];
    Ok(config)
}

/// For a client that believes the authorities in `text` (PEM) and compares the dialled name.
///
/// # Errors
/// [`ApiTlsError`].
pub fn client(text: &str) -> Result<ClientConfig, ApiTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(text)? {
        roots.add(certificate).map_err(ApiTlsError::Unusable)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(ApiTlsError::Unusable)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    Ok(config)
}
