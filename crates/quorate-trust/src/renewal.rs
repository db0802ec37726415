//! When a node's certificate is exchanged for a new one, and who may have a new one.
//!
//! At a random moment between half and four fifths of its life, as Docker Swarm does: a cluster
//! whose nodes all joined in one minute does not renew in one minute a month later, and what fails
//! has days to be repaired.

use crate::ca::{CaCertificate, NodeCertificate};
use crate::fingerprint::sha256;
use crate::identity::PeerIdentity;
use crate::key::{CertificateRequest, KeyError, NodeKey};
use crate::refusal::{Refusal, Side, verify};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use quorate_model::time::WallTime;
use rcgen::SigningKey as _;
use rustls::pki_types::{TrustAnchor, UnixTime};
use std::time::Duration;

/// When the certificate that lasts from `from` to `until` should be renewed.
///
/// `seed` is random and kept as long as the certificate, so that the answer does not move.
#[must_use]
pub fn renew_at(from: WallTime, until: WallTime, seed: u64) -> WallTime {
    let life = until.as_micros().saturating_sub(from.as_micros());
    // Half of its life, and up to 0.3 more. The upper half of the seed is fine enough, and with it
    // nothing overflows.
    let extra = (u128::from(life) * 3 * u128::from(seed >> 32) / 10) >> 32;
    let extra = u64::try_from(extra).expect("less than the life");
    WallTime(from.as_micros().saturating_add(life / 2).saturating_add(extra))
}

/// The seed of [`renew_at`] that belongs to a certificate: random, because its serial number and its
/// signature are, and the same for as long as the certificate is there.
#[must_use]
pub fn seed_of(certificate: &NodeCertificate) -> u64 {
    let hash = sha256(&certificate.chain()[0]);
    hash.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// No new certificate for the old one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    #[error("the old certificate: {0}")]
    Old(Refusal),
    /// Whoever asks shows a certificate and has not shown that its key is theirs.
    #[error("the request is not vouched for with the key of the old certificate")]
    NotVouched,
}

/// What is signed, so that no other signature of the same key means this.
fn vouched(request: &CertificateRequest) -> Vec<u8> {
    [b"quorate: a new certificate for this request\0".as_slice(), request.as_der()].concat()
}

/// Says with the key of the old certificate that a request is one's own.
///
/// # Errors
/// The crypto library could not sign.
pub fn vouch(old: &NodeKey, request: &CertificateRequest) -> Result<Vec<u8>, KeyError> {
    old.pair().sign(&vouched(request)).map_err(KeyError::Generate)
}

/// Whom a certificate of one of these authorities names, also one that has ended: it is verified as
/// what it was in its last moment.
///
/// # Errors
/// [`Refusal`]: another authority made it, or it names no node.
pub fn verified(authorities: &[CaCertificate], certificate: &NodeCertificate) -> Result<PeerIdentity, Refusal> {
    let anchors: Vec<TrustAnchor<'static>> = authorities.iter().map(|ca| ca.anchor().clone()).collect();
    let (_, until) = certificate.lasts().map_err(|_| Refusal::NoIdentity)?;
    let then = UnixTime::since_unix_epoch(Duration::from_micros(until.as_micros()));
    verify(&anchors, &certificate.chain()[0], Side::Client, then)
}

/// Says who asks for a new certificate by showing an old one, also an expired one: servers that were
/// switched off for months come back. The request may be for a new key; `voucher` is [`vouch`]'s.
///
/// Nobody but the old key's owner can ask, and who repeats what was asked gets a certificate for a key
/// that is not theirs. Whether the node is still a member is the caller's question.
///
/// # Errors
/// [`RenewError`].
pub fn renewing(
    authorities: &[CaCertificate],
    old: &NodeCertificate,
    request: &CertificateRequest,
    voucher: &[u8],
) -> Result<PeerIdentity, RenewError> {
    let identity = verified(authorities, old).map_err(RenewError::Old)?;
    let public = old.public().map_err(|_| RenewError::Old(Refusal::NoIdentity))?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public);
    key.verify(&vouched(request), voucher).map_err(|_| RenewError::NotVouched)?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 24 * 3600 * 1_000_000;

    #[test]
    fn renewal_is_spread_from_half_to_four_fifths_of_the_life() {
        let (from, until) = (WallTime(100 * DAY), WallTime(130 * DAY));
        assert_eq!(renew_at(from, until, 0), WallTime(115 * DAY));
        assert_eq!(renew_at(from, until, 1 << 63), WallTime(119 * DAY + DAY / 2));
        assert!(renew_at(from, until, u64::MAX) < WallTime(124 * DAY));
        assert!(renew_at(from, until, u64::MAX) > WallTime(124 * DAY - 1_000));
    }

    proptest! {
        #[test]
        fn renewal_is_never_after_the_end(from: u64, until: u64, seed: u64) {
            let at = renew_at(WallTime(from), WallTime(until), seed);
            prop_assert!(at.as_micros() >= from && at.as_micros() <= from.max(until));
        }
    }
}
