//! Why a peer's certificate was refused, in words that an operator can act on.
//!
//! A TLS library tells its caller *bad certificate* and the other side an alert. Both ends deserve
//! more: [`Refusal`] is what this side found, [`Verdict`] is what the other side's alert means.

use crate::identity::{PeerIdentity, node_of};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::Span;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::{AlertDescription, CertificateError, OtherError};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};

/// What this side found wrong with a peer's certificate. Nothing was sent but the handshake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    #[error("its certificate is not from the CA of this cluster")]
    ForeignCa,
    /// Its renewal failed for weeks, it was switched off, or a clock is wrong.
    #[error("its certificate expired {} ago by this server's clock", whole_seconds(.ago))]
    Expired { ago: Duration },
    /// Certificates begin an hour before they are made: a clock is wrong by more than that. Between
    /// members it is forgiven; a joiner is told.
    #[error("its certificate begins {} from now by this server's clock: is the clock right?", whole_seconds(.ahead))]
    NotYetValid { ahead: Duration },
    #[error("it belongs to cluster {found}, not to {expected}")]
    WrongCluster { expected: ClusterId, found: ClusterId },
    #[error("it is node {found}, not {expected}")]
    WrongNode { expected: NodeId, found: NodeId },
    #[error("it was expelled from this cluster")]
    Expelled,
    #[error("its certificate names no node")]
    NoIdentity,
    /// Not readable, or made for something else.
    #[error("its certificate cannot be used: {0}")]
    Unusable(webpki::Error),
}

fn whole_seconds(span: &Duration) -> Span {
    Span::from_secs(span.as_secs())
}

/// What the other side's alert says about this side's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Verdict {
    #[error("the other side says that this node was expelled")]
    Expelled,
    #[error("the other side says that this node's certificate is expired or not valid yet: compare the clocks")]
    Expired,
    #[error("the other side does not know the CA of this node's certificate")]
    ForeignCa,
    /// Wrong cluster, another node than it expected, or not readable: its log says which.
    #[error("the other side does not accept this node's certificate")]
    Refused,
    #[error("the other side wants a certificate and this node showed none")]
    NoCertificate,
}

impl Refusal {
    /// What a failed handshake found, if it was the peer's certificate.
    #[must_use]
    pub fn of(error: &rustls::Error) -> Option<Refusal> {
        let rustls::Error::InvalidCertificate(error) = error else { return None };
        Some(match error {
            CertificateError::UnknownIssuer => Refusal::ForeignCa,
            CertificateError::ExpiredContext { time, not_after } => {
                Refusal::Expired { ago: between(*not_after, *time) }
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Refusal::NotYetValid { ahead: between(*time, *not_before) }
            }
            CertificateError::ApplicationVerificationFailure => Refusal::Expelled,
            CertificateError::Other(OtherError(inner)) => inner.downcast_ref::<Refusal>()?.clone(),
            _ => return None,
        })
    }

    /// The same, out of what a TLS stream returned.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Option<Refusal> {
        Refusal::of(tls_error(error)?)
    }

    /// As the library wants it, so that the peer gets the alert that says most.
    pub(crate) fn into_tls(self, now: UnixTime) -> rustls::Error {
        let moment = |span: Duration, back: bool| {
            let secs = now.as_secs();
            let other = if back { secs.saturating_sub(span.as_secs()) } else { secs.saturating_add(span.as_secs()) };
            UnixTime::since_unix_epoch(Duration::from_secs(other))
        };
        rustls::Error::InvalidCertificate(match self {
            Refusal::ForeignCa => CertificateError::UnknownIssuer,
            Refusal::Expired { ago } => CertificateError::ExpiredContext { time: now, not_after: moment(ago, true) },
            Refusal::NotYetValid { ahead } => {
                CertificateError::NotValidYetContext { time: now, not_before: moment(ahead, false) }
            }
            Refusal::Expelled => CertificateError::ApplicationVerificationFailure,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

impl Verdict {
    /// What a failed connection was told, if it was about this side's certificate.
    #[must_use]
    pub fn of(error: &rustls::Error) -> Option<Verdict> {
        let rustls::Error::AlertReceived(alert) = error else { return None };
        Some(match alert {
            AlertDescription::AccessDenied => Verdict::Expelled,
            AlertDescription::CertificateExpired => Verdict::Expired,
            AlertDescription::UnknownCA => Verdict::ForeignCa,
            AlertDescription::CertificateRequired => Verdict::NoCertificate,
            AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError => Verdict::Refused,
            _ => return None,
        })
    }

    /// The same, out of what a TLS stream returned.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Option<Verdict> {
        Verdict::of(tls_error(error)?)
    }
}

/// TLS streams wrap the library's error into one of I/O.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a certificate is used for at the moment.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    /// The peer was dialled.
    Server,
    /// The peer dialled.
    Client,
}

/// Verifies that one of `anchors` made this certificate, now, for a node, and says for which.
///
/// Nobody may stand between: what else a peer sends is not looked at.
pub(crate) fn verify(
    anchors: &[TrustAnchor<'_>],
    certificate: &CertificateDer<'_>,
    side: Side,
    now: UnixTime,
) -> Result<PeerIdentity, Refusal> {
    let parsed = EndEntityCert::try_from(certificate).map_err(Refusal::Unusable)?;
    let usage = match side {
        Side::Server => KeyUsage::server_auth(),
        Side::Client => KeyUsage::client_auth(),
    };
    // The only kind of signature that the authority makes.
    let algorithms = [webpki::aws_lc_rs::ECDSA_P256_SHA256];
    parsed.verify_for_usage(&algorithms, anchors, &[], now, usage, None, None).map_err(|error| match error {
        // The second: an authority of the same name with another key.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => Refusal::ForeignCa,
        webpki::Error::CertExpired { time, not_after } => Refusal::Expired { ago: between(not_after, time) },
        webpki::Error::CertNotValidYet { time, not_before } => {
            Refusal::NotYetValid { ahead: between(time, not_before) }
        }
        other => Refusal::Unusable(other),
    })?;
    node_of(&parsed).ok_or(Refusal::NoIdentity)
}

fn between(earlier: UnixTime, later: UnixTime) -> Duration {
    Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs()))
}
