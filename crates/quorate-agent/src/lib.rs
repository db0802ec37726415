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
//! A workload is a program, or where the driver is another than `process` a *keeper* ([`keeper`]), which stands
//! for what it keeps: an OCF agent's resource, a container, a systemd unit.
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
//! | `work/` | workload | its working directory and `HOME`; files of templates are made in it |
//! | `log/` | shim | see [`log`] |
//!
//! What services need of the node (artifacts, requirements) is looked after by [`needs::prepare`], beside the
//! agent and before anything is assigned.
//!
//! # Invariants
//! - An assignment with a lower revision than one already obeyed changes nothing, over restarts too.
//! - A replica has at most one shim, a shim at most one workload.
//! - A workload does not outlive its shim (PDEATHSIG for the process itself; what it left behind is
//!   known by the replica's cgroup, or by the mark in its environment where none can be made).
//!   What a keeper made outside of itself is ended by another one.
//! - What runs under a lease does not outlive that, whoever stands still or is dead: the kernel ends it
//!   ([`Hold`], and the private modules `lease`, `kernel` and `shim::deadline`). And it is called stopped only
//!   when nothing of it is left.
//! - Nothing polls: changes arrive on the shim's socket or on process descriptors. Only health
//!   checks, a pause before a restart and the measuring of what is used have a timer.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod agent;
mod cgroup;
mod driver;
mod drivers;
mod endpoints;
pub mod externals;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod keeper;
mod kernel;
mod launch;
mod lease;
pub mod log;
pub mod needs;
mod ports;
mod process;
mod protocol;
mod runner;
mod scrape;
mod secrets;
mod service_token;
pub mod shim;
mod sweep;
mod templates;
mod usage;

pub use agent::{Agent, AgentConfig, StartAgentError, check_owner};
pub use cgroup::capacity;
pub use drivers::drivers_here;
pub use lease::boot_time;
pub use quorate_agent_core::lease::{BootTime, Hold};
pub use secrets::{HeldSecret, Secrets};
pub use service_token::{Api, ServiceTokens};
