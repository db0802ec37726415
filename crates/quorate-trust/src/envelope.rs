//! What only one node can open: keys of the cluster on their way to those who shall hold them.
//!
//! A new key must reach every holder, survive whoever made it, and not reach a node that was expelled.
//! So it goes through the replicated state, sealed once for each holder with the public key of its
//! certificate. Sealed with a key of the cluster it could be opened by whoever left with that key.
//!
//! ECDH on P-256 with a key pair that is made for this one envelope; HKDF-SHA256 over both public
//! keys gives a key of AES-256-GCM that seals nothing else. What it is for is authenticated, so an
//! envelope that is put in another's place does not open.
//!
//! A node's key signs handshakes, and opens envelopes: one key for two purposes. The two meet in no
//! message: a signature is over a TLS transcript, here a point is multiplied and hashed with a label.
//!
//! # Format
//! `1` · public key of the envelope (65 bytes, X9.62) · ciphertext · tag (16).

use crate::fingerprint::Fingerprint;
use crate::key::NodeKey;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, EphemeralPrivateKey, PrivateKey, UnparsedPublicKey, agree, agree_ephemeral};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::SystemRandom;
use zeroize::Zeroizing;

const FORMAT: u8 = 1;
const POINT: usize = 65;
const TAG: usize = 16;
const SALT: &[u8] = b"quorate envelope 1";
/// What stands before the point in a P-256 key's SubjectPublicKeyInfo.
const SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Nothing was sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncloseError {
    #[error("this is not the public key of a node")]
    PublicKey,
    #[error("this server gives no random numbers")]
    NoRandomness,
}

/// An envelope stays closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscloseError {
    #[error("it is not an envelope of a version that this server knows")]
    Format,
    /// It is for another key (the node's certificate was renewed), for another purpose, or altered.
    #[error("it is not for this node and this purpose, or it was altered")]
    NotForUs,
}

/// Seals `secret` for the owner of `public` (DER, SubjectPublicKeyInfo), for what `purpose` says.
///
/// # Errors
/// [`EncloseError`].
pub fn enclose(public: &[u8], purpose: &[u8], secret: &[u8]) -> Result<Vec<u8>, EncloseError> {
    let recipient = point(public).ok_or(EncloseError::PublicKey)?;
    let ours =
        EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).map_err(|_| EncloseError::NoRandomness)?;
    let shown = ours.compute_public_key().map_err(|_| EncloseError::NoRandomness)?;
    let key =
        agree_ephemeral(ours, UnparsedPublicKey::new(&ECDH_P256, recipient), EncloseError::PublicKey, |shared| {
            Ok(derive(shared, shown.as_ref(), recipient))
        })?;
    let mut body = Zeroizing::new(Vec::with_capacity(secret.len() + TAG));
    body.extend_from_slice(secret);
    key.seal_in_place_append_tag(nonce(), Aad::from(purpose), &mut *body).map_err(|_| EncloseError::NoRandomness)?;
    Ok([&[FORMAT], shown.as_ref(), &body].concat())
}

/// Opens what was sealed for `key` and `purpose`.
///
/// # Errors
/// [`DiscloseError`].
pub fn disclose(key: &NodeKey, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DiscloseError> {
    let (shown, body) = match sealed.split_first() {
        Some((&FORMAT, rest)) if rest.len() >= POINT + TAG => rest.split_at(POINT),
        _ => return Err(DiscloseError::Format),
    };
    let public = key.public();
    let recipient = point(&public).ok_or(DiscloseError::NotForUs)?;
    let private =
        PrivateKey::from_private_key_der(&ECDH_P256, key.der().secret_der()).map_err(|_| DiscloseError::NotForUs)?;
    let key = agree(&private, UnparsedPublicKey::new(&ECDH_P256, shown), DiscloseError::NotForUs, |shared| {
        Ok(derive(shared, shown, recipient))
    })?;
    let mut body = Zeroizing::new(body.to_vec());
    let length = key.open_in_place(nonce(), Aad::from(purpose), &mut body).map_err(|_| DiscloseError::NotForUs)?.len();
    body.truncate(length);
    Ok(body)
}

/// Names a public key in what is said about envelopes.
#[must_use]
pub fn holder(public: &[u8]) -> Fingerprint {
    Fingerprint::of_spki(public)
}

fn point(public: &[u8]) -> Option<&[u8]> {
    public.strip_prefix(SPKI).filter(|point| point.len() == POINT)
}

/// The key is used for one envelope, so its nonce need not differ from any other.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn derive(shared: &[u8], shown: &[u8], recipient: &[u8]) -> LessSafeKey {
    let master = Salt::new(HKDF_SHA256, SALT).extract(shared);
    let both = [shown, recipient];
    let derived = master.expand(&both, &AES_256_GCM).expect("HKDF gives as many bytes as a key has");
    LessSafeKey::new(UnboundKey::from(derived))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const PURPOSE: &[u8] = b"secrets 2";

    #[test]
    fn only_its_owner_opens_an_envelope_and_only_for_its_purpose() {
        let (mine, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let sealed = enclose(&mine.public(), PURPOSE, b"hunter2").unwrap();
        assert_eq!(*disclose(&mine, PURPOSE, &sealed).unwrap(), b"hunter2");
        // Also after the key was written and read.
        let read = NodeKey::from_pem(&mine.to_pem()).unwrap();
        assert_eq!(*disclose(&read, PURPOSE, &sealed).unwrap(), b"hunter2");
        assert_eq!(disclose(&other, PURPOSE, &sealed).unwrap_err(), DiscloseError::NotForUs);
        assert_eq!(disclose(&mine, b"secrets 3", &sealed).unwrap_err(), DiscloseError::NotForUs);
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert_ne!(sealed, enclose(&mine.public(), PURPOSE, b"hunter2").unwrap());
    }

    #[test]
    fn what_was_altered_stays_closed() {
        let mine = NodeKey::generate().unwrap();
        let sealed = enclose(&mine.public(), PURPOSE, b"hunter2").unwrap();
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            disclose(&mine, PURPOSE, &altered).unwrap_err();
            disclose(&mine, PURPOSE, &sealed[..at]).unwrap_err();
        }
        assert_eq!(enclose(b"no key", PURPOSE, b"x"), Err(EncloseError::PublicKey));
    }
}
