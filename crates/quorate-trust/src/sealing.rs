//! Small secrets in the replicated store: sealed before they are proposed, so that the log, the
//! databases, snapshots and backups hold only ciphertext.
//!
//! AES-256-GCM-SIV (RFC 8452): nonces are random, and on many nodes; with plain GCM two equal ones
//! would give the key away, here they show only that two secrets are equal. What a secret belongs to
//! is authenticated with it: a row that is copied to another place cannot be opened there.
//!
//! # Format
//! `1` · key version (4 bytes, big-endian) · nonce (12) · ciphertext · tag (16).

use crate::key::fill_random;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use std::fmt;
use zeroize::Zeroizing;

/// The largest secret, in bytes: it goes through the log with everything else.
pub const SECRET_MAX: usize = 64 << 10;
const FORMAT: u8 = 1;
const HEAD: usize = 1 + 4 + NONCE_LEN;

/// Which of the cluster's keys sealed something. Grows with each rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyVersion(pub u32);

/// A key of 256 bits that seals the cluster's secrets.
#[derive(Clone)]
pub struct ClusterKey {
    version: KeyVersion,
    bytes: Zeroizing<[u8; 32]>,
}

/// What a secret belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub table: &'a str,
    pub row: &'a str,
}

/// Nothing was sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("a secret of {found} bytes is too large: {SECRET_MAX} is the limit")]
    TooLarge { found: usize },
    #[error("this server gives no random numbers")]
    NoRandomness,
}

/// What was sealed stays closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("it is not a sealed secret of a version that this server knows")]
    Format,
    /// It was sealed before the last two rotations, or this server missed one.
    #[error("it was sealed with key {0:?}, which this server does not have")]
    UnknownKey(KeyVersion),
    /// It was altered, it was moved from another place, or the key is another one of this number.
    #[error("it was altered, or it belongs somewhere else")]
    Altered,
}

impl ClusterKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// [`SealError::NoRandomness`].
    pub fn generate(version: KeyVersion) -> Result<ClusterKey, SealError> {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(&mut *bytes).map_err(|_| SealError::NoRandomness)?;
        Ok(ClusterKey { version, bytes })
    }

    #[must_use]
    pub fn from_bytes(version: KeyVersion, bytes: [u8; 32]) -> ClusterKey {
        ClusterKey { version, bytes: Zeroizing::new(bytes) }
    }

    /// For a file that only the owner may read, or for sealing it with another key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    #[must_use]
    pub fn version(&self) -> KeyVersion {
        self.version
    }

    fn cipher(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM_SIV, &*self.bytes).expect("the key has the length of this cipher")
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({:?}, …)", self.version)
    }
}

/// The key that seals, and the one before or after it, which opens as well until everything is sealed
/// anew.
#[derive(Debug, Clone)]
pub struct KeyRing {
    current: ClusterKey,
    previous: Option<ClusterKey>,
}

impl KeyRing {
    #[must_use]
    pub fn new(current: ClusterKey) -> KeyRing {
        KeyRing { current, previous: None }
    }

    /// Seals with `next` from now on. The key before the current one is forgotten.
    #[must_use]
    pub fn rotated(self, next: ClusterKey) -> KeyRing {
        KeyRing { current: next, previous: Some(self.current) }
    }

    /// Everything is sealed with the current key.
    #[must_use]
    pub fn without_previous(self) -> KeyRing {
        KeyRing { previous: None, ..self }
    }

    /// Opens with `next` as well, and seals with it once it is the one [`in use`](Self::using). The
    /// key beside the current one is forgotten.
    #[must_use]
    pub fn with(self, next: ClusterKey) -> KeyRing {
        KeyRing { previous: Some(next), ..self }
    }

    /// Seals with the key of this number from now on, if it is here; the other one still opens.
    #[must_use]
    pub fn using(self, version: KeyVersion) -> KeyRing {
        match self.previous {
            Some(other) if other.version == version => KeyRing { current: other, previous: Some(self.current) },
            previous => KeyRing { previous, ..self },
        }
    }

    #[must_use]
    pub fn current(&self) -> &ClusterKey {
        &self.current
    }

    #[must_use]
    pub fn previous(&self) -> Option<&ClusterKey> {
        self.previous.as_ref()
    }

    /// Seals `secret` for `place`. Two calls give different bytes, so do it before proposing.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&self, place: Place<'_>, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        if secret.len() > SECRET_MAX {
            return Err(SealError::TooLarge { found: secret.len() });
        }
        let version = self.current.version;
        // The room is there from the start: a buffer that grows would leave the secret behind.
        let mut body = Zeroizing::new(Vec::with_capacity(secret.len() + AES_256_GCM_SIV.tag_len()));
        body.extend_from_slice(secret);
        let nonce = self
            .current
            .cipher()
            .seal_in_place_append_tag(Aad::from(context(place, version)), &mut *body)
            .map_err(|_| SealError::NoRandomness)?;
        let mut sealed = Vec::with_capacity(HEAD + body.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(&version.0.to_be_bytes());
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&body);
        Ok(sealed)
    }

    /// Opens what was sealed for `place` with the current or the previous key.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let version = version_of(sealed)?;
        let key = [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|key| key.version == version)
            .ok_or(OpenError::UnknownKey(version))?;
        let (head, body) = sealed.split_at(HEAD);
        let nonce = Nonce::try_assume_unique_for_key(&head[5..]).map_err(|_| OpenError::Format)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = key
            .cipher()
            .open_in_place(nonce, Aad::from(context(place, version)), &mut body)
            .map_err(|_| OpenError::Altered)?
            .len();
        body.truncate(length);
        Ok(body)
    }

    /// Whether the current key sealed it; if not, it must be sealed anew before the next rotation.
    ///
    /// # Errors
    /// [`OpenError::Format`].
    pub fn is_current(&self, sealed: &[u8]) -> Result<bool, OpenError> {
        Ok(version_of(sealed)? == self.current.version)
    }
}

/// Which key sealed it.
///
/// # Errors
/// [`OpenError::Format`].
pub fn version_of(sealed: &[u8]) -> Result<KeyVersion, OpenError> {
    match sealed {
        [FORMAT, a, b, c, d, rest @ ..] if rest.len() >= NONCE_LEN + AES_256_GCM_SIV.tag_len() => {
            Ok(KeyVersion(u32::from_be_bytes([*a, *b, *c, *d])))
        }
        _ => Err(OpenError::Format),
    }
}

/// Lengths before texts, so that no two places give the same bytes.
fn context(place: Place<'_>, version: KeyVersion) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.extend_from_slice(&version.0.to_be_bytes());
    for text in [place.table, place.row] {
        bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const PLACE: Place<'static> = Place { table: "secret", row: "db-password" };

    fn ring() -> KeyRing {
        KeyRing::new(ClusterKey::from_bytes(KeyVersion(1), [1; 32]))
    }

    fn next(version: u32) -> ClusterKey {
        ClusterKey::generate(KeyVersion(version)).unwrap()
    }

    #[test]
    fn a_secret_comes_back_as_it_was() {
        for secret in [&b""[..], b"hunter2", &[0; SECRET_MAX]] {
            let sealed = ring().seal(PLACE, secret).unwrap();
            assert_eq!(*ring().open(PLACE, &sealed).unwrap(), secret);
        }
        assert_eq!(ring().seal(PLACE, &[0; SECRET_MAX + 1]), Err(SealError::TooLarge { found: SECRET_MAX + 1 }));
    }

    #[test]
    fn what_is_sealed_shows_nothing_of_the_secret_and_is_never_the_same() {
        let (one, two) = (ring().seal(PLACE, b"hunter2").unwrap(), ring().seal(PLACE, b"hunter2").unwrap());
        assert_ne!(one, two);
        assert!(!one.windows(4).any(|window| window == b"hunt"));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let sealed = ring().seal(PLACE, b"hunter2").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            ring().open(PLACE, &altered).unwrap_err();
        }
        for length in 0..sealed.len() {
            ring().open(PLACE, &sealed[..length]).unwrap_err();
        }
    }

    #[test]
    fn a_secret_opens_only_where_it_belongs() {
        let sealed = ring().seal(PLACE, b"hunter2").unwrap();
        for place in [
            Place { row: "other", ..PLACE },
            Place { table: "other", ..PLACE },
            // The same letters, cut at another place.
            Place { table: "secretdb", row: "-password" },
        ] {
            assert_eq!(ring().open(place, &sealed).unwrap_err(), OpenError::Altered);
        }
    }

    #[test]
    fn the_previous_key_opens_and_the_one_before_it_does_not() {
        let old = ring().seal(PLACE, b"hunter2").unwrap();
        let rotated = ring().rotated(next(2));
        assert_eq!(*rotated.open(PLACE, &old).unwrap(), b"hunter2");
        assert_eq!(rotated.is_current(&old), Ok(false));
        assert_eq!(rotated.is_current(&rotated.seal(PLACE, b"x").unwrap()), Ok(true));
        let gone = OpenError::UnknownKey(KeyVersion(1));
        assert_eq!(rotated.clone().rotated(next(3)).open(PLACE, &old).unwrap_err(), gone);
        assert_eq!(rotated.without_previous().open(PLACE, &old).unwrap_err(), gone);
    }

    #[test]
    fn a_coming_key_opens_before_it_seals() {
        let next = |number| ClusterKey::generate(KeyVersion(number)).unwrap();
        let key = next(2);
        let ahead = KeyRing::new(key.clone()).seal(PLACE, b"x").unwrap();
        let both = ring().with(key);
        assert_eq!(both.current().version(), KeyVersion(1));
        assert_eq!(*both.open(PLACE, &ahead).unwrap(), b"x");
        let old = both.seal(PLACE, b"y").unwrap();
        let switched = both.using(KeyVersion(2));
        assert_eq!(switched.current().version(), KeyVersion(2));
        assert_eq!(*switched.open(PLACE, &old).unwrap(), b"y");
        // Asking twice, or for one that is not here, changes nothing.
        assert_eq!(switched.clone().using(KeyVersion(2)).current().version(), KeyVersion(2));
        assert_eq!(switched.using(KeyVersion(9)).current().version(), KeyVersion(2));
    }

    #[test]
    fn another_key_of_the_same_number_opens_nothing() {
        let sealed = ring().seal(PLACE, b"hunter2").unwrap();
        assert_eq!(KeyRing::new(next(1)).open(PLACE, &sealed).unwrap_err(), OpenError::Altered);
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", ring().current()), "ClusterKey(KeyVersion(1), …)");
    }
}
