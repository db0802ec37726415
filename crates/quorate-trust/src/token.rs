//! The join token: the one line that a person carries to a new server.
//!
//! ```text
//! HOST:PORT/SECRET/FINGERPRINT
//! 192.0.2.7:7000/mfrggzdfmztwq2lknnwg23tpobyxe43u/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ```
//! An address of the cluster, a secret that admits one node (160 bits, base32 in lower case without
//! padding), and the fingerprint of the cluster's authority, by which the new server knows that it
//! speaks to the right cluster before it tells the secret. The cluster keeps only the secret's hash;
//! no slow hash is needed, because nobody guesses 160 random bits.
//!
//! Parsing is strict: there is one way to write a token, so that a damaged one is noticed where it is
//! pasted and not by a refusal from afar.

use crate::fingerprint::{Fingerprint, ParseFingerprintError, sha256};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls::pki_types::ServerName;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use zeroize::Zeroizing;

const SECRET_BYTES: usize = 20;
/// Five bits a character.
const SECRET_CHARS: usize = SECRET_BYTES * 8 / 5;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A join token in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub address: JoinAddress,
    pub secret: JoinSecret,
    /// Of the cluster's authority.
    pub authority: Fingerprint,
}

/// Where a cluster's API is reached: a DNS name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAddress {
    host: ServerName<'static>,
    port: u16,
}

/// What admits one node. Compared in constant time, never shown by `Debug`.
#[derive(Clone)]
pub struct JoinSecret(Zeroizing<[u8; SECRET_BYTES]>);

/// SHA-256 of a [`JoinSecret`]: what the cluster keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretDigest([u8; 32]);

/// The text is not a join token. It says what is wrong and repeats nothing of the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTokenError {
    #[error("a join token is HOST:PORT/SECRET/FINGERPRINT, and this has {found} of the 3 parts")]
    Parts { found: usize },
    #[error("`{0}` is not HOST:PORT, where HOST is a name, an IPv4 address or an IPv6 address in brackets")]
    Address(String),
    /// Something is missing or was added in the middle: what is behind it is complete.
    #[error("the secret has {found} characters and should have {SECRET_CHARS}")]
    SecretLength { found: usize },
    #[error("the secret holds a character that is none of a-z and 2-7")]
    SecretAlphabet,
    #[error("the token was cut off: its last part has {found} of 64 digits")]
    Truncated { found: usize },
    #[error("the last part of the token is not a fingerprint")]
    Fingerprint(#[source] ParseFingerprintError),
}

impl JoinSecret {
    /// From 160 random bits.
    #[must_use]
    pub fn from_random(bytes: [u8; SECRET_BYTES]) -> JoinSecret {
        JoinSecret(Zeroizing::new(bytes))
    }

    /// What the cluster keeps of it.
    #[must_use]
    pub fn digest(&self) -> SecretDigest {
        SecretDigest(sha256(&*self.0))
    }

    /// As it is written in a token: the one way by which it is shown.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Five bytes are eight characters, and 20 are four times five.
        let mut text = String::with_capacity(SECRET_CHARS);
        for group in self.0.chunks(5) {
            let bits = group.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            text.extend((0..8).rev().map(|i| char::from(ALPHABET[(bits >> (5 * i) & 31) as usize])));
        }
        text
    }
}

impl FromStr for JoinSecret {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value = |c: u8| match c {
            b'a'..=b'z' => Ok(u64::from(c - b'a')),
            b'2'..=b'7' => Ok(u64::from(c - b'2') + 26),
            _ => Err(ParseTokenError::SecretAlphabet),
        };
        let found = text.chars().count();
        if found != SECRET_CHARS {
            return Err(ParseTokenError::SecretLength { found });
        }
        let mut secret = JoinSecret::from_random([0; SECRET_BYTES]);
        for (bytes, group) in secret.0.chunks_mut(5).zip(text.as_bytes().chunks(8)) {
            let bits = group.iter().try_fold(0u64, |bits, c| Ok(bits << 5 | value(*c)?))?;
            bytes.copy_from_slice(&bits.to_be_bytes()[3..]);
        }
        Ok(secret)
    }
}

impl PartialEq for JoinSecret {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&*self.0, &*other.0).is_ok()
    }
}

impl Eq for JoinSecret {}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(…)")
    }
}

impl SecretDigest {
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> SecretDigest {
        SecretDigest(bytes)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether this is the hash of `secret`. Takes as long for every wrong one.
    #[must_use]
    pub fn matches(&self, secret: &JoinSecret) -> bool {
        verify_slices_are_equal(&self.0, &secret.digest().0).is_ok()
    }
}

impl JoinAddress {
    /// # Errors
    /// [`ParseTokenError::Address`] for port 0.
    pub fn new(host: ServerName<'static>, port: u16) -> Result<JoinAddress, ParseTokenError> {
        let address = JoinAddress { host, port };
        if port == 0 { Err(ParseTokenError::Address(address.to_string())) } else { Ok(address) }
    }

    #[must_use]
    pub fn host(&self) -> &ServerName<'static> {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for JoinAddress {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseTokenError::Address(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => ServerName::from(std::net::IpAddr::from(v6.parse::<Ipv6Addr>().map_err(|_| bad())?)),
            None => match host.parse::<Ipv4Addr>() {
                Ok(v4) => ServerName::from(std::net::IpAddr::from(v4)),
                Err(_) if host.contains(':') => return Err(bad()),
                Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| bad())?,
            },
        };
        let address = JoinAddress::new(host, port)?;
        // `+7000`, `07000` and `[0::1]` mean something, but are not how it is written.
        if address.to_string() == text { Ok(address) } else { Err(bad()) }
    }
}

impl fmt::Display for JoinAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            ServerName::IpAddress(rustls::pki_types::IpAddr::V6(v6)) => {
                write!(f, "[{}]:{}", Ipv6Addr::from(*v6), self.port)
            }
            host => write!(f, "{}:{}", host.to_str(), self.port),
        }
    }
}

impl JoinToken {
    /// The line that `quorate join` takes. It holds the secret.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}/{}/{}", self.address, self.secret.to_text(), self.authority)
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let &[address, secret, authority] = parts.as_slice() else {
            return Err(ParseTokenError::Parts { found: parts.len() });
        };
        Ok(JoinToken {
            address: address.parse()?,
            secret: secret.parse()?,
            authority: authority.parse().map_err(|error| match error {
                ParseFingerprintError::Length { found } if found < 64 => ParseTokenError::Truncated { found },
                error => ParseTokenError::Fingerprint(error),
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "192.0.2.7:7000/mfrggzdfmztwq2lknnwg23tpobyxe43u/\
                        9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn a_token_is_written_as_it_was_read() {
        let token: JoinToken = TEXT.parse().unwrap();
        assert_eq!(token.to_text(), TEXT);
        // The bytes that RFC 4648 gives for these characters.
        assert_eq!(token.secret, JoinSecret::from_random(*b"abcdefghijklmnopqrst"));
        for address in ["[2001:db8::7]:7000", "node-1.example.org:1", "localhost:65535"] {
            let text = TEXT.replace("192.0.2.7:7000", address);
            assert_eq!(text.parse::<JoinToken>().unwrap().to_text(), text);
        }
    }

    #[test]
    fn a_token_that_was_cut_off_anywhere_is_refused_and_said_to_be_short() {
        for length in 0..TEXT.len() {
            let error = TEXT[..length].parse::<JoinToken>().unwrap_err();
            let secret_ends = TEXT.rfind('/').unwrap();
            match error {
                ParseTokenError::Parts { found } => assert!(found < 3 && length <= secret_ends),
                ParseTokenError::Truncated { found } => assert_eq!(found, length - secret_ends - 1),
                other => panic!("{length}: {other:?}"),
            }
        }
    }

    #[test]
    fn each_kind_of_damage_has_its_own_error() {
        let check = |from: &str, to: &str, expected: ParseTokenError| {
            assert_eq!(TEXT.replacen(from, to, 1).parse::<JoinToken>().unwrap_err(), expected);
        };
        check("/mfrgg", "/", ParseTokenError::SecretLength { found: 27 });
        check("/mfrgg", "/mfrggg", ParseTokenError::SecretLength { found: 33 });
        check("mfrgg", "MFRGG", ParseTokenError::SecretAlphabet);
        check("mfrgg", "mfrg1", ParseTokenError::SecretAlphabet);
        check("mfrggzdf", "mfrggzd\u{e9}", ParseTokenError::SecretAlphabet);
        check("0a08", "0A08", ParseTokenError::Fingerprint(ParseFingerprintError::Digit { found: 'A' }));
        check("0a08", "0a080", ParseTokenError::Fingerprint(ParseFingerprintError::Length { found: 65 }));
        check("0a08", "0a08/", ParseTokenError::Parts { found: 4 });
        check("0a08", "0a08 ", ParseTokenError::Fingerprint(ParseFingerprintError::Digit { found: ' ' }));
        for address in [
            "192.0.2.7",
            ":7000",
            "192.0.2.7:0",
            "192.0.2.7:70000",
            "192.0.2.7:+7",
            "::1:7000",
            "a b:7",
            "[::1:7",
            "h:07",
        ] {
            check("192.0.2.7:7000", address, ParseTokenError::Address(address.to_owned()));
        }
    }

    #[test]
    fn only_its_own_secret_matches_a_digest() {
        let secret = JoinSecret::from_random([7; 20]);
        let mut near = [7; 20];
        near[19] ^= 1;
        assert!(secret.digest().matches(&secret));
        assert!(!secret.digest().matches(&JoinSecret::from_random(near)));
        assert_ne!(secret, JoinSecret::from_random(near));
    }

    #[test]
    fn a_secret_is_not_shown_by_accident() {
        let token: JoinToken = TEXT.parse().unwrap();
        let shown = format!("{token:?}");
        assert!(!shown.contains("mfrgg") && !shown.contains("97, 98"), "{shown}");
        let error = TEXT.replacen("mfrgg", "mfrg1", 1).parse::<JoinToken>().unwrap_err();
        assert!(!error.to_string().contains("zdfm"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".{0,200}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_text(), text);
            }
        }

        #[test]
        fn text_that_looks_like_a_token_is_one_or_an_error(
            text in r"[a-z0-9.:\[\]-]{0,30}/[a-z2-7]{30,34}/[0-9a-f]{62,66}",
        ) {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_text(), text);
            }
        }

        #[test]
        fn every_secret_survives_being_written(bytes: [u8; 20]) {
            let secret = JoinSecret::from_random(bytes);
            prop_assert_eq!(secret.to_text().parse::<JoinSecret>().unwrap(), secret);
        }
    }
}
