//! Who showed a certificate on the link and was not let in, as an event of the cluster.
//!
//! Anybody can knock, and an event is an entry in the log: one is written a minute at most, with how
//! many were not.

use super::backend::NodeBackend;
use crate::cli::screen::wall_now;
use crate::trust::serial;
use quorate_api::backend::Backend as _;
use quorate_model::command::Command;
use quorate_model::entry::Proposal;
use quorate_model::event::Happening;
use quorate_model::id::{NodeId, RequestId};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::debug;

/// Those who wait to be written down; others are not.
pub(super) const WAITING: usize = 16;
const EVERY: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(5);

/// Where somebody came from, and why it was not let in.
pub(super) type TurnedAway = (SocketAddr, String);

/// Runs as long as the server does.
pub(super) async fn run(me: NodeId, backend: NodeBackend, mut refused: mpsc::Receiver<TurnedAway>) {
    let mut written: Option<Instant> = None;
    let mut unwritten = 0;
    while let Some((from, why)) = refused.recv().await {
        if written.is_some_and(|written| written.elapsed() < EVERY) {
            unwritten += 1;
            continue;
        }
        let what = Happening::PeerRefused { node: me, from: from.ip().to_string(), why, unwritten };
        let Ok(id) = serial() else { continue };
        let proposal = Proposal::command(RequestId::from_u128(id), &Command::Record { at: wall_now(), what });
        match backend.propose(proposal, PATIENCE).await {
            Ok(_) => (written, unwritten) = (Some(Instant::now()), 0),
            // Without a leader it stands in this node's log alone.
            Err(error) => debug!(%error, "a refused peer is not written down"),
        }
    }
}
