//! Waiting for a node of this server to be there.

use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::target::Target;
use quorate_api::view::{NodeState, NodeView, Overview, Standing};
use quorate_model::id::NodeId;
use std::path::Path;
use std::time::{Duration, Instant};

/// The poll interval: shorter than what a person notices.
const EVERY: Duration = Duration::from_millis(50);
/// Entries that a node with the cluster's data may be behind.
const LAG_MAX: u64 = 100;

/// How long a manager that is to vote may take until it does, after it has the cluster's data.
const VOTES_WITHIN: Duration = Duration::from_secs(10);

/// Waits until the node in this directory answers and knows a leader.
///
/// # Errors
/// Exit 10 when it takes longer than the command may.
pub(crate) fn until_serving(context: &Context, data_dir: &Path) -> Result<Client, Failure> {
    let client = at(context, data_dir);
    until(&client, |overview| overview.cluster.leader.is_some())?;
    Ok(client)
}

/// Waits until a node that joined has the cluster's data, and votes if it is to. Says whether it does.
///
/// # Errors
/// Exit 10 when it takes longer than the command may.
pub(crate) fn until_joined(context: &Context, data_dir: &Path, node: NodeId) -> Result<Option<Standing>, Failure> {
    let client = at(context, data_dir);
    let copied = |overview: &Overview| {
        let me = overview.nodes.iter().find(|known| known.id == node);
        overview.cluster.leader.is_some()
            && me.is_some_and(|me| me.state == NodeState::Joined && me.lag.is_some_and(|lag| lag <= LAG_MAX))
    };
    let mut seen = until(&client, copied)?;
    let until = Instant::now() + VOTES_WITHIN.min(client.remaining());
    while is_to_vote(&seen, node) && Instant::now() < until {
        std::thread::sleep(EVERY);
        seen = client.get("/v1/status")?;
    }
    Ok(seen.nodes.iter().find(|known| known.id == node).and_then(|known| known.standing))
}

/// Whether the node stands by although the number of managers is odd: it is promoted soon then.
fn is_to_vote(overview: &Overview, node: NodeId) -> bool {
    let standing = |standing| move |known: &&NodeView| known.standing == Some(standing);
    let managers = overview.nodes.iter().filter(|known| known.standing.is_some() && known.state != NodeState::Removed);
    managers.count() % 2 == 1 && overview.nodes.iter().filter(standing(Standing::Standby)).any(|known| known.id == node)
}

fn at(context: &Context, data_dir: &Path) -> Client {
    let socket = format!("unix:{}", data_dir.join("api.sock").display());
    context.client_for(&Target { servers: vec![socket], dev: None, tls: None })
}

fn until(client: &Client, ready: impl Fn(&Overview) -> bool) -> Result<Overview, Failure> {
    while !client.remaining().is_zero() {
        if let Ok(overview) = client.get::<Overview>("/v1/status")
            && ready(&overview)
        {
            return Ok(overview);
        }
        std::thread::sleep(EVERY);
    }
    Err(Failure::new(Exit::TimedOut, "not-serving", "the node was started and does not serve yet")
        .fix("journalctl -u quorate.service"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Managers by what they are; the last is the one that joins.
    fn overview(standings: &[(&str, &str)]) -> (Overview, NodeId) {
        let id = |number: usize| NodeId::from_u128(number as u128 + 1);
        let nodes: Vec<serde_json::Value> = (0..)
            .zip(standings)
            .map(|(number, (standing, state))| {
                json!({
                    "id": id(number), "name": format!("n{number}"), "state": state, "mode": "passive",
                    "roles": ["manager"], "api": "", "link": "", "generation": 1, "since": 0, "lag": 0,
                    "replicas": 0, "standing": standing,
                })
            })
            .collect();
        let overview = serde_json::from_value(json!({
            "sequence": 1, "answered_by": "n0", "nodes": nodes, "services": [], "events": [], "gateways": [],
            "cluster": {
                "id": NodeId::from_u128(9), "name": "prod", "health": "healthy", "summary": "", "leader": "n0",
                "term": 1, "voters": 1, "voters_joined": 1, "can_lose": 0, "applied": 1, "version": "0.0.0",
            },
        }));
        (overview.unwrap(), id(standings.len() - 1))
    }

    #[test]
    fn u4_a_manager_is_waited_for_only_where_it_is_about_to_vote() {
        let is_to_vote = |standings: &[(&str, &str)]| {
            let (overview, node) = overview(standings);
            is_to_vote(&overview, node)
        };
        assert!(!is_to_vote(&[("voter", "joined"), ("standby", "joined")]), "the second stands by");
        assert!(is_to_vote(&[("voter", "joined"), ("standby", "joined"), ("standby", "joined")]));
        assert!(!is_to_vote(&[("voter", "joined"), ("voter", "joined"), ("voter", "joined")]), "it votes");
        let left = [("voter", "joined"), ("standby", "removed"), ("standby", "joined")];
        assert!(!is_to_vote(&left), "one that left does not make the third");
    }
}
