//! The agent: makes one node match its [`Assignment`](quorate_model::assignment::Assignment).
//!
//! Each replica is run by a *shim* ([`shim`]), a small process of its own that owns the workload,
//! its log and its restarts. The agent only starts shims, listens to them and asks them to stop,
//! so it may end, crash or be upgraded while every replica goes on; the next agent takes them over.
//!
//! ```text
//! Agent ─ one task ─┬─ Runner (a task a replica) ── unix socket ── quorate shim ── workload
//!   assign()        ├─ Runner ───────────────────── unix socket ── quorate shim ── workload
//!   statuses()      └─ …                 pushes each change            restarts it
//! ```
//!
//! A replica's directory is `<dir>/<service>/<replica id>/`:
//!
//! | name | written by | meaning |
//! |---|---|---|
//! | `spec.json` | agent | how to launch it, with the ports it keeps for life; its presence means "may run" |
//! | `state.json` | shim | the newest state, for people and for counting restarts |
//! | `exit.json` | shim | the last words of a shim that ended in an orderly way |
//! | `sock` | shim | where it listens |
//! | `lock` | shim | held for the shim's life: a replica never has two |
//! | `shim.log` | shim | trouble of the shim itself; normally empty |
//! | `work/` | workload | its working directory and `HOME` |
//! | `log/` | shim | see [`log`] |
//!
//! # Invariants
//! - An assignment with a lower revision than one already obeyed changes nothing, over restarts too.
//! - A replica has at most one shim, a shim at most one workload.
//! - A workload does not outlive its shim (PDEATHSIG for the process itself; what it left behind is
//!   swept up by the mark in its environment).
//! - Nothing polls: changes arrive on the shim's socket or on process descriptors. Only health
//!   checks and a pause before a restart use a timer.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod agent;
pub mod desired;
mod driver;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod launch;
pub mod log;
mod ports;
mod process;
mod protocol;
mod runner;
pub mod shim;
mod sweep;

pub use agent::{Agent, AgentConfig, StartAgentError, check_owner};
