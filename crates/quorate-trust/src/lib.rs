//! Whom a node believes, and how it proves who it is: the cluster's certificate authority, node
//! certificates, join tokens, TLS configurations, sealing of secrets.
//!
//! Why a crate of its own: TLS and its crypto library are a heavy dependency that nothing else
//! needs to compile with. It opens no socket and no file and reads no clock; whoever calls it
//! passes the time, and the bytes to the network.
//!
//! # Invariants
//! - What a certificate says is what the authority decided: of a request only its public key counts.
//! - A peer's names are read by the same parser that verified its chain.
//! - No handshake is shortened by an earlier one (no tickets, no resumption), so that each one asks
//!   whether the peer is still a member.
//! - Keys and secrets are overwritten when they are dropped and never shown by `Debug`.
//!
//! # Sources
//! ADR 0007; RFC 5280 (certificates), RFC 8446 (TLS 1.3), RFC 8452 (AES-GCM-SIV), RFC 4648 (base32).
//! [`envelope`]: the construction of RFC 9180 (HPKE), in its simplest form.

pub mod api;
pub mod ca;
pub mod envelope;
pub mod fingerprint;
pub mod identity;
pub mod key;
pub mod peer;
mod pem;
pub mod pin;
pub mod refusal;
pub mod renewal;
pub mod sealing;
pub mod token;
