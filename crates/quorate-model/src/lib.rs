//! The vocabulary of Quorate: ids, specs, commands, the cluster's state and how a command changes it.
//!
//! Everything here is plain data and pure functions. Every other crate depends on this one and
//! this one depends on none of them, so a word means the same thing on the wire, in the log, in
//! the database and on the screen.
//!
//! # Invariants
//! - No clock, no randomness, no I/O, no iteration over hashed collections.
//! - [`state::ClusterState`] changes only by [`state::ClusterState::absorb`]; what a command
//!   changes is computed by [`state::ClusterState::decide`] alone, so the node that applies the log
//!   and the nodes that mirror it cannot disagree.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod access;
pub mod active;
pub mod assignment;
pub mod attribute;
pub mod autoscale;
pub mod command;
pub mod deployment;
pub mod discovery;
pub mod drill;
pub mod entry;
pub mod event;
pub mod external;
pub mod fence;
pub mod id;
pub mod lease;
pub mod member;
pub mod need;
pub mod observed;
pub mod place;
pub mod planted;
pub mod reconfigure;
pub mod resource;
pub mod routing;
pub mod secret;
pub mod spec;
pub mod sql;
pub mod state;
pub mod stopped;
pub mod template;
pub mod time;
pub mod traffic;
pub mod trust;
pub mod vip;
