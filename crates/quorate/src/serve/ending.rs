//! Why this server is to end, and what is done before.
//!
//! | asked by | what runs once here |
//! |---|---|
//! | `quorate leave` | is started elsewhere first |
//! | SIGTERM while the host shuts down | is started elsewhere first: it would end with the host anyway |
//! | SIGTERM otherwise: `systemctl restart`, `systemctl stop`, an upgrade | goes on untouched |
//! | `quorate restart` of the server | goes on untouched |
//!
//! A stop that is followed by a start cannot be told from one that is not, and systemd sends the same signal for
//! both; so a plain stop is taken for a restart. Whoever stops a server for long says `quorate leave` first.

use quorate_node::Event;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

use super::inbox::Inbox;

/// What systemd may need for its answer; it is busy when a host shuts down.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The node gives up before; this is for one that does not think any more.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(80);

/// Why the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// To begin anew in the same process.
    Anew,
    /// A signal.
    Signal,
    /// `quorate leave`.
    Leave,
}

impl Why {
    /// Whether this node will be away for longer than a restart takes.
    pub(super) async fn is_for_long(self) -> bool {
        match self {
            Why::Anew => false,
            Why::Leave => true,
            Why::Signal => host_shuts_down().await,
        }
    }
}

/// Brings elsewhere what runs once here. A second signal ends the waiting.
pub(super) async fn hand_over(inbox: &Inbox, mut handed_over: watch::Receiver<bool>) -> anyhow::Result<()> {
    info!("what runs once here is started elsewhere first");
    inbox.send(Event::HandOver).await;
    tokio::select! {
        over = tokio::time::timeout(HANDED_OVER_WITHIN, handed_over.wait_for(|over| *over)) => {
            if over.is_err() {
                warn!("what runs once here was not handed over in time");
            }
        }
        () = crate::daemon::end_signal()? => warn!("asked to end again: what runs once here is left to its lease"),
    }
    Ok(())
}

/// Whether systemd is taking the host down.
async fn host_shuts_down() -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    let ask = || Command::new("systemctl").arg("is-system-running").output();
    let asked = tokio::time::timeout(ANSWERS_WITHIN, tokio::task::spawn_blocking(ask)).await;
    // No answer is none: what is kept without need is started elsewhere when its lease is over.
    matches!(asked, Ok(Ok(Ok(output))) if says_stopping(&output.stdout))
}

/// systemctl(1): "stopping: The manager is shutting down."
fn says_stopping(output: &[u8]) -> bool {
    output.trim_ascii() == b"stopping"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_that_shuts_down_takes_what_runs_once_with_it() {
        assert!(says_stopping(b"stopping\n"));
        for other in ["running\n", "degraded\n", "starting\n", "offline\n", ""] {
            assert!(!says_stopping(other.as_bytes()), "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_restart_is_short_and_leaving_is_not() {
        assert!(!Why::Anew.is_for_long().await);
        assert!(Why::Leave.is_for_long().await);
    }
}
