//! The cluster's certificate authority.
//!
//! A cluster is its own authority: nothing outside must be asked, bought or renewed for nodes to
//! trust each other. It signs certificates of nodes and nothing else, for 30 days: whoever is not a
//! member any more is refused at the handshake, so that no list of revoked certificates is needed,
//! and a stolen disk is worth little after a month.
//!
//! # Invariants
//! - A certificate names the node that the caller decided on. What the request asks for, except its
//!   public key, is not looked at.
//! - No clock and no counter: the time and the serial number are given. The signature is random, as
//!   ECDSA's is, so equal calls give different bytes with equal meaning.

use crate::fingerprint::Fingerprint;
use crate::identity::{PeerIdentity, cluster_of, cluster_uri};
use crate::key::{CertificateRequest, KeyError, NodeKey};
use crate::pem;
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor};
use std::time::Duration;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// How long a node's certificate lasts.
pub const NODE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long an authority lasts. It is exchanged by rotation, which nobody should be forced to do;
/// this is as long as Docker Swarm's.
pub const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Certificates begin this long before they are made, for servers whose clocks are behind.
pub const BACKDATED: Duration = Duration::from_secs(3600);

/// The authority's certificate: what others need in order to believe it.
#[derive(Debug, Clone)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    fingerprint: Fingerprint,
    cluster: ClusterId,
}

/// The text or bytes are not the certificate of a cluster's authority.
#[derive(Debug, thiserror::Error)]
pub enum CaCertificateError {
    #[error("it is not a certificate in PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("the certificate cannot be read: {0}")]
    Malformed(webpki::Error),
    #[error("the certificate is not that of a cluster's CA")]
    NoCluster,
    #[error("there is no certificate in it")]
    Empty,
    #[error("the dates of the certificate cannot be read")]
    Dates,
}

impl CaCertificate {
    /// # Errors
    /// [`CaCertificateError::Malformed`] or [`CaCertificateError::NoCluster`].
    pub fn from_der(der: CertificateDer<'static>) -> Result<CaCertificate, CaCertificateError> {
        let fingerprint = fingerprint_of(&der)?;
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(CaCertificateError::Malformed)?.to_owned();
        let cluster = cluster_of(&der).ok_or(CaCertificateError::NoCluster)?;
        Ok(CaCertificate { der, anchor, fingerprint, cluster })
    }

    /// Every authority in a text: one, or two while a new one takes over.
    ///
    /// # Errors
    /// [`CaCertificateError`]; [`CaCertificateError::Empty`] if there is none.
    pub fn all_from_pem(text: &str) -> Result<Vec<CaCertificate>, CaCertificateError> {
        let all: Vec<CaCertificate> = CertificateDer::pem_slice_iter(text.as_bytes())
            .map(|der| CaCertificate::from_der(der.map_err(CaCertificateError::Pem)?))
            .collect::<Result<_, _>>()?;
        if all.is_empty() { Err(CaCertificateError::Empty) } else { Ok(all) }
    }

    #[must_use]
    pub fn to_pem(&self) -> String {
        certificate_pem(&self.der)
    }

    #[must_use]
    pub fn as_der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// What a join token carries and a joiner compares.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// From when to when it is valid.
    ///
    /// # Errors
    /// [`CaCertificateError::Dates`], which one that an authority made never gives.
    pub fn lasts(&self) -> Result<(WallTime, WallTime), CaCertificateError> {
        let parsed = x509_parser::parse_x509_certificate(&self.der).map_err(|_| CaCertificateError::Dates)?;
        Ok(span_of(&parsed.1))
    }

    pub(crate) fn anchor(&self) -> &TrustAnchor<'static> {
        &self.anchor
    }
}

/// The fingerprint of the key in any certificate.
pub(crate) fn fingerprint_of(certificate: &CertificateDer<'_>) -> Result<Fingerprint, CaCertificateError> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(CaCertificateError::Malformed)?;
    Ok(Fingerprint::of_spki(&parsed.subject_public_key_info()))
}

/// The authority: its certificate and its key. Whoever has it can make any node.
#[derive(Debug)]
pub struct Ca {
    certificate: CaCertificate,
    key: NodeKey,
}

/// No authority could be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the CA's key")]
    Key(#[from] KeyError),
    #[error("the CA's certificate")]
    Certificate(#[from] CaCertificateError),
    /// Two authorities' files were mixed up.
    #[error("the CA's key and certificate do not belong together")]
    Mismatch,
    #[error("the CA's certificate cannot be written")]
    Write(#[source] rcgen::Error),
    #[error("the time {} is outside of what a certificate can hold", .0.as_micros())]
    Time(WallTime),
}

/// No certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("`{0}` cannot be a name in a certificate")]
    Name(String),
    #[error("the certificate cannot be written")]
    Write(#[source] rcgen::Error),
    #[error("the time {} is outside of what a certificate can hold", .0.as_micros())]
    Time(WallTime),
}

/// What a node shows: its certificate and that of the authority that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    chain: Vec<CertificateDer<'static>>,
}

/// The text is not what a node can show.
#[derive(Debug, thiserror::Error)]
pub enum NodeCertificateError {
    #[error("it is not a certificate in PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("there is no certificate in it")]
    Empty,
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("the certificate names no node")]
    NoIdentity,
}

impl Ca {
    /// A new authority for `cluster`, with a key from the system's randomness.
    ///
    /// `serial` is any number that was not used before; random is best.
    ///
    /// # Errors
    /// [`CaError::Key`] without randomness, [`CaError::Time`] for a time centuries away.
    pub fn create(cluster: ClusterId, now: WallTime, serial: u128) -> Result<Ca, CaError> {
        let key = NodeKey::generate()?;
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = validity(now, CA_LIFE).ok_or(CaError::Time(now))?;
        params.serial_number = Some(serial_number(serial));
        params.distinguished_name = common_name(format!("Quorate cluster {cluster}"));
        params.subject_alt_names = vec![uri(cluster_uri(cluster)).map_err(CaError::Write)?];
        // 0: it signs nodes, and no other authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let written = params.self_signed(key.pair()).map_err(CaError::Write)?;
        Ok(Ca { certificate: CaCertificate::from_der(written.der().clone())?, key })
    }

    /// Reads what [`certificate`](Self::certificate) and [`key_pem`](Self::key_pem) wrote.
    ///
    /// # Errors
    /// [`CaError`]; [`CaError::Mismatch`] if they belong to two authorities.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Ca, CaError> {
        let key = NodeKey::from_pem(key)?;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(CaCertificateError::Pem)?;
        let certificate = CaCertificate::from_der(certificate)?;
        if Fingerprint::of_spki(&key.public()) != certificate.fingerprint() {
            return Err(CaError::Mismatch);
        }
        Ok(Ca { certificate, key })
    }

    #[must_use]
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// The key, for a sealed place.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }

    /// Makes `node`'s certificate for the key in `request`.
    ///
    /// `names` are those under which clients reach the node's API (DNS names and addresses); they
    /// mean nothing between nodes. It is valid from [`BACKDATED`] before `now` for [`NODE_LIFE`]
    /// after it. `serial` is any number that was not used before; random is best.
    ///
    /// # Errors
    /// [`IssueError::Name`] for a name that a certificate cannot hold, [`IssueError::Time`] for
    /// a time centuries away.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        node: NodeId,
        names: &[ServerName<'_>],
        now: WallTime,
        serial: u128,
    ) -> Result<NodeCertificate, IssueError> {
        let identity = PeerIdentity { cluster: self.certificate.cluster, node };
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = validity(now, NODE_LIFE).ok_or(IssueError::Time(now))?;
        params.serial_number = Some(serial_number(serial));
        params.distinguished_name = common_name(format!("Quorate node {node}"));
        params.subject_alt_names = vec![uri(identity.to_string()).map_err(IssueError::Write)?];
        for name in names {
            params.subject_alt_names.push(alternative_name(name)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(self.certificate.as_der(), self.key.pair()).map_err(IssueError::Write)?;
        let public = SubjectPublicKeyInfo::from_der(request.public()).map_err(IssueError::Write)?;
        let written = params.signed_by(&public, &issuer).map_err(IssueError::Write)?;
        Ok(NodeCertificate { chain: vec![written.der().clone(), self.certificate.der.clone()] })
    }
}

impl NodeCertificate {
    /// Reads what [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// [`NodeCertificateError`].
    pub fn from_pem(text: &str) -> Result<NodeCertificate, NodeCertificateError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(NodeCertificateError::Pem)?;
        NodeCertificate::from_chain(chain)
    }

    /// # Errors
    /// [`NodeCertificateError`].
    pub fn from_chain(chain: Vec<CertificateDer<'static>>) -> Result<NodeCertificate, NodeCertificateError> {
        if chain.is_empty() {
            return Err(NodeCertificateError::Empty);
        }
        let certificate = NodeCertificate { chain };
        certificate.identity()?;
        certificate.lasts()?;
        Ok(certificate)
    }

    /// The node's certificate first, then the authority's, as TLS sends them.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.chain.iter().map(certificate_pem).collect()
    }

    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whom it names. It was not verified here.
    ///
    /// # Errors
    /// [`NodeCertificateError::NoIdentity`], which one that was read by this type never gives.
    pub fn identity(&self) -> Result<PeerIdentity, NodeCertificateError> {
        let parsed = webpki::EndEntityCert::try_from(&self.chain[0]).map_err(|_| NodeCertificateError::Malformed)?;
        crate::identity::node_of(&parsed).ok_or(NodeCertificateError::NoIdentity)
    }

    /// The fingerprint of the authority that made it, as far as it says so itself.
    #[must_use]
    pub fn authority(&self) -> Option<Fingerprint> {
        fingerprint_of(self.chain.get(1)?).ok()
    }

    /// SHA-256 of the certificate, by which people tell one from another.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_spki(&self.chain[0])
    }

    /// From when to when it is valid.
    ///
    /// # Errors
    /// [`NodeCertificateError::Malformed`], which one that was read by this type never gives.
    pub fn lasts(&self) -> Result<(WallTime, WallTime), NodeCertificateError> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&self.chain[0]).map_err(|_| NodeCertificateError::Malformed)?;
        Ok(span_of(&parsed))
    }

    /// The node's public key in DER (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// [`NodeCertificateError::Malformed`], which one that was read by this type never gives.
    pub fn public(&self) -> Result<Vec<u8>, NodeCertificateError> {
        let parsed = webpki::EndEntityCert::try_from(&self.chain[0]).map_err(|_| NodeCertificateError::Malformed)?;
        Ok(parsed.subject_public_key_info().to_vec())
    }
}

fn span_of(parsed: &x509_parser::certificate::X509Certificate<'_>) -> (WallTime, WallTime) {
    let micros = |secs: i64| WallTime(u64::try_from(secs).unwrap_or(0).saturating_mul(1_000_000));
    let validity = parsed.validity();
    (micros(validity.not_before.timestamp()), micros(validity.not_after.timestamp()))
}

fn certificate_pem(der: &CertificateDer<'_>) -> String {
    pem::write("CERTIFICATE", der).to_string()
}

fn validity(now: WallTime, life: Duration) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let now = i64::try_from(now.as_micros() / 1_000_000).ok()?;
    let moment = |secs: i64| OffsetDateTime::from_unix_timestamp(secs).ok().filter(|moment| moment.year() < 10_000);
    let (before, life) = (i64::try_from(BACKDATED.as_secs()).ok()?, i64::try_from(life.as_secs()).ok()?);
    Some((moment(now.saturating_sub(before).max(0))?, moment(now.checked_add(life)?)?))
}

/// RFC 5280: positive, at most 20 bytes.
fn serial_number(serial: u128) -> SerialNumber {
    SerialNumber::from_slice(&serial.max(1).to_be_bytes())
}

fn common_name(text: String) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn uri(text: String) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(text.try_into()?))
}

fn alternative_name(name: &ServerName<'_>) -> Result<SanType, IssueError> {
    let refuse = || IssueError::Name(name.to_str().into_owned());
    match name {
        ServerName::DnsName(dns) => Ok(SanType::DnsName(dns.as_ref().try_into().map_err(|_| refuse())?)),
        ServerName::IpAddress(ip) => Ok(SanType::IpAddress((*ip).into())),
        _ => Err(refuse()),
    }
}
