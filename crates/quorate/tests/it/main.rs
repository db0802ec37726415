//! The binary as its users run it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli;
mod cluster;
mod determinism;
mod durability;
mod fake;
mod storage;
