//! What an agent has to run, and until when: its rules, without processes, files and clocks.
//!
//! A crate of its own so that the simulator runs these very rules and compiles nothing of what carries them
//! out.
//!
//! # Invariants
//! See [`desired`] and [`lease`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod desired;
pub mod lease;

pub use lease::BootTime;
