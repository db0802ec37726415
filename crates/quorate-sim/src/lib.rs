//! Whole clusters in one thread, under simulated time, network, disks and power.
//!
//! The core, the log, the databases with real SQLite and the agent's rules are the shipped ones; what
//! is made up is what they touch: clocks, connections, disks, processes. A seed decides everything, so
//! a failure is repeated by its number.
//!
//! A run has two phases. In the first, faults happen while clients work, and every invariant looks at
//! every event. In the second, all faults end and nobody helps: the cluster must work again, and all
//! nodes must hold the same. Then the clients' history is judged.
//!
//! # Invariants
//! - No clock, no randomness but the seed's, no threads; one run at a time in a process (SQLite has
//!   generators and registries of its own, which belong to the process).
//! - What stands for the shell decides when things happen, never what: every rule that matters is in
//!   a shipped crate.
//!
//! # Sources
//! FoundationDB's simulation; TigerBeetle's VOPR (phases, kinds of faults); openraft's turmoil tests
//! (the oracle of clients).

mod agent;
mod clients;
mod dice;
mod faults;
mod invariants;
mod keys;
mod loss;
mod machine;
mod network;
pub mod planted;
mod run;
mod scenario;
mod seen;
mod trace;
mod world;

pub use faults::FaultKind;
pub use run::{Report, run};
pub use scenario::Scenario;
pub use seen::Violation;
