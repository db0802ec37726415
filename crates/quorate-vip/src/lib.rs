//! Virtual addresses on one machine: the door to the kernel, and which of several gateways holds one.
//!
//! - [`kernel`] puts an address on an interface for a few seconds and takes it off; nothing of it is kept by
//!   this crate. [`neighbours`] asks the network whether somebody has an address, tells it that this machine
//!   has it, and hears who else says so.
//! - [`election`] is how gateways settle between themselves who holds a VIP: no clock, no sockets.
//!
//! A VIP of a service needs the door alone: its lease says who holds it (ADR 13).
//!
//! # Invariants
//! - An address that this crate adds goes away by itself: the kernel removes it when nobody renews it,
//!   whatever has become of the process that did.
//! - It is marked, so that nothing is ever removed that somebody else added.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod advert;
pub mod election;
pub mod kernel;
mod message;
pub mod neighbours;
