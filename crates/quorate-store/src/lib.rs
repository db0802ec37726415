//! The log and the databases: what a node keeps.
//!
//! [`log`] is the truth: an append-only file of entries, durable before anything is acknowledged.
//! [`databases`] is what the entries lead to: two SQLite files, derived and replayable. [`disk`] is
//! the seam through which the log touches files, [`volume`] the databases'. [`storage`] puts log and
//! databases together.
//!
//! # Invariants
//! - No threads and no clock of its own: the shell decides when and where things run.
//! - A failed sync is never retried; whoever meets one stops.

pub mod databases;
pub mod disk;
pub mod log;
pub mod storage;
pub mod volume;
