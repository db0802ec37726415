//! TLS between nodes: both sides show a certificate of the cluster's authority, and each asks
//! whether the other is still a member.
//!
//! TLS 1.3 only; there is no older node to speak to. The dialling side knows whom it wants and
//! takes nobody else. While the authority is exchanged there are two that are believed.
//!
//! # Invariants
//! - A handshake that succeeds was between two members of the same cluster, by both sides' word.
//! - A clock that is behind cuts nobody off: the authority makes no certificates for later, so one
//!   that seems to begin in the future only shows that this server's clock is wrong, and the cluster
//!   lives with wrong clocks. That a certificate has *ended* is taken seriously.
//! - Each connection makes a whole handshake: tickets are neither given nor kept. With one, a node
//!   that was expelled could come back without showing its certificate again.

use crate::ca::{CaCertificate, NodeCertificate};
use crate::identity::PeerIdentity;
use crate::key::NodeKey;
use crate::refusal::{Refusal, Side, verify};
use quorate_model::id::{ClusterId, NodeId};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, PeerMisbehaved, ServerConfig, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What both sides say that they speak, so that a connection that was led to another port of the
/// same node ends at the handshake (RFC 7301).
pub const ALPN_LINK: &[u8] = b"quorate-link/1";

/// Who is a member, asked at every handshake.
pub trait MembershipCheck: fmt::Debug + Send + Sync {
    /// Whether `node` may be spoken to.
    ///
    /// No only for those who were expelled. A node that this one has never heard of may have been
    /// admitted while this one was away; if it were refused, a node that was away while all others
    /// were replaced could never catch up.
    fn admits(&self, node: NodeId) -> bool;
}

/// Everybody with a certificate is a member.
#[derive(Debug, Clone, Copy)]
pub struct NobodyExpelled;

impl MembershipCheck for NobodyExpelled {
    fn admits(&self, _: NodeId) -> bool {
        true
    }
}

/// Whom this node believes on the link, and what it shows.
#[derive(Debug, Clone)]
pub struct LinkTrust {
    pub cluster: ClusterId,
    /// The authorities that are believed: one, or two while a new one takes over.
    pub authorities: Vec<CaCertificate>,
    pub members: Arc<dyn MembershipCheck>,
    /// By which certificates begin and end.
    pub clock: Arc<dyn TimeProvider>,
}

/// The node's key does not fit its certificate, or no authority is believed.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("the node's key and certificate do not belong together")]
    Mismatch,
    #[error("the node's certificate cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// What this node shows.
#[derive(Clone)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Credentials {
    /// # Errors
    /// [`CredentialsError::Mismatch`] if the certificate is for another key.
    pub fn new(certificate: &NodeCertificate, key: &NodeKey) -> Result<Credentials, CredentialsError> {
        if certificate.public().map_err(|_| CredentialsError::Mismatch)? != key.public() {
            return Err(CredentialsError::Mismatch);
        }
        Ok(Credentials { chain: certificate.chain().to_vec(), key: Arc::new(key.der()) })
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} certificates)", self.chain.len())
    }
}

/// The one crypto library, named wherever a configuration is made: no global default can replace it.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl LinkTrust {
    /// For the side that accepts. [`identity_of`] says who it was.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn server(&self, credentials: &Credentials) -> Result<ServerConfig, CredentialsError> {
        let verifier = Arc::new(Verifier::new(self, None));
        let mut config = ServerConfig::builder_with_details(provider(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CredentialsError::Unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(credentials.chain(), credentials.key())
            .map_err(CredentialsError::Unusable)?;
        config.alpn_protocols = vec![ALPN_LINK.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For dialling `expected`, and nobody else.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn client(&self, credentials: &Credentials, expected: NodeId) -> Result<ClientConfig, CredentialsError> {
        let verifier = Arc::new(Verifier::new(self, Some(expected)));
        let mut config = ClientConfig::builder_with_details(provider(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CredentialsError::Unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(credentials.chain(), credentials.key())
            .map_err(CredentialsError::Unusable)?;
        config.alpn_protocols = vec![ALPN_LINK.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }
}

/// Whom the certificates of a finished handshake name. They were verified by it.
#[must_use]
pub fn identity_of(verified: Option<&[CertificateDer<'_>]>) -> Option<PeerIdentity> {
    let parsed = webpki::EndEntityCert::try_from(verified?.first()?).ok()?;
    crate::identity::node_of(&parsed)
}

#[derive(Debug)]
struct Verifier {
    cluster: ClusterId,
    anchors: Vec<TrustAnchor<'static>>,
    members: Arc<dyn MembershipCheck>,
    /// On the dialling side.
    expected: Option<NodeId>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(trust: &LinkTrust, expected: Option<NodeId>) -> Verifier {
        Verifier {
            cluster: trust.cluster,
            anchors: trust.authorities.iter().map(|ca| ca.anchor().clone()).collect(),
            members: trust.members.clone(),
            expected,
            provider: provider(),
        }
    }

    fn check(&self, certificate: &CertificateDer<'_>, side: Side, now: UnixTime) -> Result<(), Refusal> {
        let peer = match verify(&self.anchors, certificate, side, now) {
            Err(Refusal::NotYetValid { ahead }) => {
                let begins = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()).saturating_add(ahead));
                verify(&self.anchors, certificate, side, begins)?
            }
            verified => verified?,
        };
        if peer.cluster != self.cluster {
            return Err(Refusal::WrongCluster { expected: self.cluster, found: peer.cluster });
        }
        match self.expected {
            Some(expected) if expected != peer.node => Err(Refusal::WrongNode { expected, found: peer.node }),
            _ if !self.members.admits(peer.node) => Err(Refusal::Expelled),
            _ => Ok(()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The versions that are offered make this impossible.
pub(crate) fn no_tls12() -> rustls::Error {
    PeerMisbehaved::SelectedUnofferedCipherSuite.into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate, Side::Server, now).map_err(|refusal| refusal.into_tls(now))?;
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
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A node has one certificate; there is nothing to choose between.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate, Side::Client, now).map_err(|refusal| refusal.into_tls(now))?;
        Ok(ClientCertVerified::assertion())
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
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
