//! What an agent and a shim say to each other: one JSON object a line, over the shim's socket.
//!
//! The agent sends [`Request`]s; each `status` and `stop` is answered by one [`ShimState`], `watch`
//! by the present one and then by each further one. A shim may be older or newer than the agent
//! that talks to it, so fields are only ever added and unknown ones are ignored; [`VERSION`] grows
//! when that is not enough.

use quorate_model::id::ReplicaId;
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
}
