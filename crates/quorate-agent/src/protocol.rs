//! What an agent and a shim say to each other: one JSON object a line, over the shim's socket.
//!
//! The agent sends [`Request`]s; each `status` and `stop` is answered by one [`ShimState`], `watch`
//! by the present one and then by each further one. A shim may be older or newer than the agent
//! that talks to it, so fields are only ever added and unknown ones are ignored; [`VERSION`] grows
//! when that is not enough. What a shim is asked for beyond `stop` must show in its state first: one that
//! says nothing of a lease understands no `hold`.

use quorate_agent_core::lease::BootTime;
use quorate_model::assignment::AssignedLease;
use quorate_model::id::ReplicaId;
use quorate_model::observed::{Casting, Fencing};
use quorate_model::spec::{Backoff, StopSignal};
use quorate_model::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Version of the protocol and of `spec.json`, `state.json` and `exit.json`.
pub(crate) const VERSION: u32 = 1;

/// Longest line either side accepts. A state is well under 1 KiB plus its ports and last error.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) v: u32,
    #[serde(flatten)]
    pub(crate) what: Ask,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Ask {
    Status,
    Watch,
    /// Ends the workload and then the shim. Asked twice, the earlier deadline counts.
    Stop {
        signal: StopSignal,
        grace_ms: u64,
    },
    /// The lease is held longer. Of another epoch, or not longer than is known: nothing changes. To a watcher
    /// there is no answer.
    Hold {
        epoch: u64,
        /// When the kernel is to kill; see [`crate::lease`].
        deadline: BootTime,
    },
    /// Tells the workload that its files have changed. Only a program that the shim starts itself is told.
    Signal {
        signal: StopSignal,
    },
    /// The copy is to be the active one of several, for as long as this lease is held. Shows in
    /// [`ShimState::casting`]; without that, nothing happens.
    Activate {
        lease: AssignedLease,
        deadline: BootTime,
    },
    /// It is to give this epoch back: whatever it is, it is not active under it from when its state says so.
    Resign {
        epoch: u64,
    },
    /// Has a keeper make its charge the active one of several. The outcome shows in [`ShimState::kept`]; without
    /// a keeper nothing happens.
    Promote,
    /// The other way round.
    Demote,
}

/// What a shim knows about its workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimState {
    pub(crate) v: u32,
    pub(crate) replica: ReplicaId,
    pub(crate) shim_pid: u32,
    pub(crate) state: ProcessState,
    /// The workload's process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    /// When the present or last process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<WallTime>,
    #[serde(default)]
    pub(crate) restarts: u32,
    /// How the last process ended, or why none could be started. Empty before the first end.
    #[serde(default)]
    pub(crate) detail: String,
    #[serde(default)]
    pub(crate) ports: BTreeMap<String, u16>,
    /// Absent: it runs without a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lease: Option<ShimLease>,
    /// Of a copy of an active-passive service: what it is at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) casting: Option<Casting>,
    /// What of its spec is not enforced here, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    /// What its keeper last said, if its driver has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<Report>,
}

/// What a keeper says of what it keeps; see [`crate::keeper`]. One JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) seen: Seen,
    /// For people. Empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
    /// What may be claimed where the keeper is in a PID namespace.
    pub(crate) fencing: Fencing,
    /// Something of it may still be there when the keeper has ended.
    #[serde(default)]
    pub(crate) may_be_left: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Seen {
    Starting,
    Up,
    /// Up, and as the active one of several.
    Promoted,
    /// It is there, and does not do its work.
    Failing,
    /// Whoever could tell does not answer. It is as it was, as far as anybody knows.
    Unknown,
    Stopping,
    /// It is over.
    Ended,
    /// It can never start like this: what it needs is missing, or it was told something wrong.
    Cannot,
}

/// What a shim asks of its keeper, a line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Order {
    Promote,
    Demote,
}

/// The lease that a shim enforces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimLease {
    pub(crate) epoch: u64,
    /// Of the present or last process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fencing: Option<Fencing>,
    /// The init of the present process's PID namespace: when that has ended, nothing of the process is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init: Option<u32>,
    /// The workload was asked to end because the lease was not held longer. That is not taken back.
    #[serde(default)]
    pub(crate) let_go: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProcessState {
    Running,
    /// It ended and is started again after a pause.
    BackingOff,
    /// The program could not be executed; tried again after a pause.
    CannotStart,
    /// It was asked to end and has not ended yet.
    Stopping,
    /// It ended because that was asked for. The shim ends too.
    Stopped,
    /// It ended by itself and its restart policy says that this is it. The shim ends too.
    GaveUp,
}

/// What is said of a replica that is to be over and is not.
pub(crate) const UNDYING: &str = "its processes do not die; they may be held by the kernel";

/// Pause before a restart after `streak` ends in a row: none, then `first`, then doubling to `longest`.
pub(crate) fn pause(backoff: Backoff, streak: u32) -> Duration {
    match streak {
        0 | 1 => Duration::ZERO,
        _ => backoff.first.0.saturating_mul(1 << (streak - 2).min(30)).min(backoff.longest.0),
    }
}

/// A process that ran this long starts a new streak.
pub(crate) const STREAK_ENDS_AFTER: Duration = Duration::from_secs(600);

/// The wall clock, for what is shown to people.
pub(crate) fn wall_now() -> WallTime {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_comes_at_once_and_pauses_double_up_to_the_longest() {
        let backoff: Backoff = serde_json::from_str("\"200ms..1s\"").unwrap();
        let pauses: Vec<u128> = (1..7).map(|streak| pause(backoff, streak).as_millis()).collect();
        assert_eq!(pauses, [0, 200, 400, 800, 1000, 1000]);
        assert_eq!(pause(backoff, u32::MAX), Duration::from_secs(1));
    }

    #[test]
    fn a_shim_understands_what_it_does_not_know_yet() {
        let request: Request =
            serde_json::from_str(r#"{"v":1,"do":"stop","signal":"INT","grace_ms":5,"new":1}"#).unwrap();
        assert_eq!(request.what, Ask::Stop { signal: StopSignal::Int, grace_ms: 5 });
    }

    #[test]
    fn a_shim_that_knows_no_leases_is_understood() {
        let text = r#"{"v":1,"replica":"00000000-0000-0000-0000-000000000001","shim_pid":7,"state":"running","pid":8}"#;
        let state: ShimState = serde_json::from_str(text).unwrap();
        assert_eq!((state.state, state.lease.clone()), (ProcessState::Running, None));
        assert!(!serde_json::to_string(&state).unwrap().contains("lease"), "nor does it hear of one");
    }
}
