//! The agent's place in the server: assignments in, states of replicas out.

use super::inbox::Inbox;
use crate::config::NodeConfig;
use quorate_agent::{Agent, AgentConfig, log};
use quorate_api::backend::{LogChunk, LogError, LogFrom, LogPiece};
use quorate_model::assignment::Assignment;
use quorate_node::Event;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info};

/// A node that finds no leader starts what it ran last after this; one that does waits for what
/// the cluster wants now, which may well be nothing.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// Starts the agent when it is known what to run, and feeds it for as long as the node runs.
pub(super) async fn run(
    config: NodeConfig,
    data_dir: std::path::PathBuf,
    mut assignments: watch::Receiver<Option<Assignment>>,
    inbox: Inbox,
    place: Arc<OnceLock<Agent>>,
) {
    let known = tokio::time::timeout(ALONE_AFTER, assignments.wait_for(Option::is_some)).await.is_ok();
    if !known {
        info!("no leader yet: going on with the last assignment that this node knows");
    }
    let agent = match start(&config, &data_dir).await {
        Ok(agent) => agent,
        Err(error) => {
            error!(error = %super::disk::chain(&error), "the agent cannot start: this node runs no services");
            return;
        }
    };
    let _ = place.set(agent.clone());
    let mut statuses = agent.statuses();
    // What was there before the first change counts as one.
    statuses.mark_changed();
    assignments.mark_changed();
    loop {
        tokio::select! {
            changed = statuses.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = statuses.borrow_and_update().as_ref().clone();
                inbox.send(Event::Replicas(now)).await;
            }
            changed = assignments.changed() => {
                if changed.is_err() {
                    return;
                }
                let assignment = assignments.borrow_and_update().clone();
                if let Some(assignment) = assignment {
                    agent.assign(assignment);
                }
            }
        }
    }
}

async fn start(config: &NodeConfig, data_dir: &Path) -> Result<Agent, quorate_agent::StartAgentError> {
    let program = std::env::current_exe().unwrap_or_else(|_| "quorate".into());
    Agent::start(AgentConfig {
        node: config.node.id,
        node_name: config.node.name.clone(),
        host: config.node.api_address().ip().to_string(),
        dir: data_dir.join("services"),
        shim_command: vec![program.into(), "shim".into()],
        end_with_pid: config.node.end_with_pid,
    })
    .await
}

/// A piece of a replica's log, for the API.
pub(super) async fn replica_log(agent: &Agent, piece: LogPiece) -> Result<LogChunk, LogError> {
    let from = match piece.from {
        LogFrom::Offset(offset) => log::LogFrom::Offset(offset),
        LogFrom::LastLines(lines) => log::LogFrom::LastLines(lines),
    };
    match agent.log(piece.replica, from, piece.bytes_max).await {
        Ok(chunk) => Ok(LogChunk { data: chunk.data.into(), next: chunk.next }),
        Err(log::ReadLogError::Unknown(replica)) => Err(LogError::Unknown(replica)),
        Err(error) => Err(LogError::Io(super::disk::chain(&error))),
    }
}
