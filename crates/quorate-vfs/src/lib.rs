//! SQLite's doors to time and disk, and the few calls that its Rust binding does not offer.
//!
//! Replicas must not ask their own clocks: a [`ClockVfs`] answers every question about the time
//! with what the log entry says. The preupdate hook shows every row change to whoever computes the
//! digest. A simulator puts whole machines into [`memory`], with disks that forget and fail. All
//! of it needs C calls, so the unsafe code of the store lives here, and nowhere else.
//!
//! # Invariants
//! - A VFS outlives every connection that was opened through it: its owner drops it last, by the
//!   order of fields, and it is never unregistered while in use.
//! - [`ClockVfs`] changes nothing that SQLite does with files.
#![allow(unsafe_code, reason = "this crate is where SQLite's C interface is wrapped")]

mod calls;
mod clock;
pub mod memory;
mod rows;

pub use calls::{deferred_foreign_keys, reset_last_insert_rowid, use_utc};
pub use clock::ClockVfs;
pub use rows::{RowChange, RowHook, RowOperation};
