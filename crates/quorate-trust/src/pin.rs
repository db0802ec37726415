//! TLS for those who know of a cluster only its authority's fingerprint: a node that joins with a
//! token, and a command line on another machine.
//!
//! The server sends its authority's certificate along with its own. It is believed only if its key
//! has the pinned fingerprint, and then the server's must be made by it, now, for a node. All this is
//! over before the first byte of a request is sent, so whoever stands between learns no secret.
//!
//! The name that was dialled is not compared: the pin says more than a name, and addresses change.

use crate::ca::{CaCertificate, fingerprint_of};
use crate::fingerprint::Fingerprint;
use crate::peer::{no_tls12, provider};
use crate::refusal::{Refusal, Side, verify};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use std::io;
use std::sync::Arc;

/// Asks a server that also has another certificate for the one of its cluster's authority.
///
/// An operator may give the API a certificate of the company's own authority. A pin would never fit
/// that one.
pub const ALPN_PINNED: &[u8] = b"quorate-pinned/1";

/// Why the server is not taken for the cluster whose fingerprint is known. Nothing was sent to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinRefusal {
    /// Another cluster, a fingerprint of before the CA was rotated, or somebody in between.
    #[error("the server's CA is not the one with fingerprint {pinned}")]
    OtherCa { pinned: Fingerprint },
    /// It sent the right CA certificate, which is public, and one of its own that does not fit.
    #[error("the server shows the right CA, but {0}")]
    Server(Refusal),
}

impl PinRefusal {
    /// What a failed handshake with [`pinned`] found, if it was the server's certificate.
    #[must_use]
    pub fn of(error: &rustls::Error) -> Option<PinRefusal> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))
                if inner.is::<PinRefusal>() =>
            {
                inner.downcast_ref().cloned()
            }
            error => Refusal::of(error).map(PinRefusal::Server),
        }
    }

    /// The same, out of what a TLS stream returned.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Option<PinRefusal> {
        PinRefusal::of(error.get_ref()?.downcast_ref()?)
    }
}

/// A configuration that takes only servers of the cluster whose authority's key is `pinned`.
///
/// # Errors
/// The crypto library has nothing for TLS 1.3, which the one that is built in has.
pub fn pinned(pinned: Fingerprint, clock: Arc<dyn TimeProvider>) -> Result<ClientConfig, rustls::Error> {
    let verifier = Arc::new(PinVerifier { pinned, provider: provider() });
    let mut config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_PINNED.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The authority's certificate out of the chain of a handshake with [`pinned`], to be kept.
#[must_use]
pub fn authority_of(chain: Option<&[CertificateDer<'_>]>, pinned: Fingerprint) -> Option<CaCertificate> {
    let der = find(chain?, pinned)?;
    CaCertificate::from_der(der.clone().into_owned()).ok()
}

fn find<'a, 'b>(chain: &'a [CertificateDer<'b>], pinned: Fingerprint) -> Option<&'a CertificateDer<'b>> {
    chain.iter().find(|der| fingerprint_of(der).is_ok_and(|found| found == pinned))
}

#[derive(Debug)]
struct PinVerifier {
    pinned: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other_ca = || {
            let refusal = PinRefusal::OtherCa { pinned: self.pinned };
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
        };
        let ca = find(others, self.pinned).ok_or_else(other_ca)?;
        let anchor = webpki::anchor_from_trusted_cert(ca).map_err(|_| other_ca())?;
        verify(&[anchor], certificate, Side::Server, now).map_err(|refusal| refusal.into_tls(now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
