//! The agent's place in the server: assignments, what is held and what is needed in, states of replicas and of
//! what they need out.

use super::inbox::Inbox;
use crate::config::{self, NodeConfig};
use crate::trust;
use quorate_agent::{Agent, AgentConfig, Api, Hold, Secrets, ServiceTokens, needs};
use quorate_model::assignment::Assignment;
use quorate_model::discovery::Directory;
use quorate_model::id::ReplicaId;
use quorate_model::need::NodeNeeds;
use quorate_node::Event;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info};

/// A node that finds no leader starts what it ran last after this; one that does waits for what
/// the cluster wants now, which may well be nothing.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// How often a node looks for what can run services: that is installed and removed by people.
const LOOKED_EVERY: Duration = Duration::from_secs(30);

/// Where artifacts lie, below the data directory.
const ARTIFACTS: &str = "artifacts";

/// Looks after what services need of this node, for as long as it runs.
pub(super) async fn prepare(data_dir: PathBuf, Needed { needs: wanted, secrets }: Needed, inbox: Inbox) {
    let (told, mut heard) = watch::channel(Arc::default());
    tokio::spawn(needs::prepare(data_dir.join(ARTIFACTS), wanted, secrets, told));
    while heard.changed().await.is_ok() {
        let now = heard.borrow_and_update().as_ref().clone();
        inbox.send(Event::Prepared(now)).await;
    }
}

/// What the core says to the agent.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) assignments: watch::Receiver<Option<Assignment>>,
    pub(super) holds: watch::Receiver<BTreeMap<ReplicaId, Hold>>,
    pub(super) secrets: watch::Receiver<Arc<Secrets>>,
    pub(super) tokens: watch::Receiver<Arc<ServiceTokens>>,
    pub(super) directory: watch::Receiver<Arc<Directory>>,
}

/// What this node is to look after, and the secrets that it has.
#[derive(Debug)]
pub(super) struct Needed {
    pub(super) needs: watch::Receiver<Arc<NodeNeeds>>,
    pub(super) secrets: watch::Receiver<Arc<Secrets>>,
}

/// Starts the agent when it is known what to run, and feeds it for as long as the node runs.
pub(super) async fn run(config: NodeConfig, data_dir: std::path::PathBuf, wanted: Wanted, inbox: Inbox) {
    let Wanted { mut assignments, mut holds, secrets, tokens, directory } = wanted;
    let known = tokio::time::timeout(ALONE_AFTER, assignments.wait_for(Option::is_some)).await.is_ok();
    if !known {
        info!("no leader yet: going on with the last assignment that this node knows");
    }
    let agent = match start(&config, &data_dir, Given { secrets, tokens, directory }).await {
        Ok(agent) => agent,
        Err(error) => {
            error!(error = %super::disk::chain(&error), "the agent cannot start: this node runs no services");
            return;
        }
    };
    let (mut statuses, mut usage, mut scraped) = (agent.statuses(), agent.usage(), agent.scraped());
    // What was there before the first change counts as one.
    statuses.mark_changed();
    assignments.mark_changed();
    holds.mark_changed();
    loop {
        tokio::select! {
            changed = statuses.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = statuses.borrow_and_update().as_ref().clone();
                inbox.send(Event::Replicas(now)).await;
            }
            changed = usage.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = usage.borrow_and_update().as_ref().clone();
                inbox.send(Event::Usage(now)).await;
            }
            changed = scraped.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = scraped.borrow_and_update().as_ref().clone();
                inbox.send(Event::Scraped(now)).await;
            }
            changed = holds.changed() => {
                if changed.is_err() {
                    return;
                }
                agent.hold(holds.borrow_and_update().values().copied());
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

/// Tells what this node has for running services, at once and whenever that is different.
pub(super) async fn look_for_drivers(inbox: Inbox) {
    let mut often = tokio::time::interval(LOOKED_EVERY);
    often.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        often.tick().await;
        let Ok(here) = tokio::task::spawn_blocking(quorate_agent::drivers_here).await else { return };
        if told.as_ref() != Some(&here) {
            told = Some(here.clone());
            inbox.send(Event::Drivers(here)).await;
        }
    }
}

async fn start(
    config: &NodeConfig,
    data_dir: &Path,
    Given { secrets, tokens, directory }: Given,
) -> Result<Agent, quorate_agent::StartAgentError> {
    let program = std::env::current_exe().unwrap_or_else(|_| "quorate".into());
    Agent::start(AgentConfig {
        node: config.node.id,
        node_name: config.node.name.clone(),
        host: config.node.api_address().ip().to_string(),
        dir: data_dir.join("services"),
        artifacts: data_dir.join(ARTIFACTS),
        secrets,
        tokens,
        directory,
        api: api(config, data_dir),
        shim_command: vec![program.into(), "shim".into()],
        end_with_pid: config.node.end_with_pid,
    })
    .await
}

/// What replicas are given besides what they are.
struct Given {
    secrets: watch::Receiver<Arc<Secrets>>,
    tokens: watch::Receiver<Arc<ServiceTokens>>,
    directory: watch::Receiver<Arc<Directory>>,
}

/// How replicas on this node reach its API.
fn api(config: &NodeConfig, data_dir: &Path) -> Api {
    let (address, socket) = (config.node.api_address(), data_dir.join(config::API_SOCKET));
    if config.node.plain_http {
        return Api { url: format!("http://{address}"), authorities: None, socket };
    }
    let authorities = data_dir.join(trust::DIR).join(trust::AUTHORITIES);
    Api { url: format!("https://{address}"), authorities: Some(authorities), socket }
}
