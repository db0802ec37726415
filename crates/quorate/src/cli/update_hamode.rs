//! `quorate update-hamode`: what waits in nodes' files of settings comes into force (E5).
//!
//! Settings of one server are in its own file, and each node says which of them are not in force. Their servers
//! begin anew, one after another: those that decide last, and of them the Active one at the end, which hands over
//! first. What they run for users is not touched. The cluster itself refuses a second one while the first is away,
//! so two that do this at one time cannot take a majority along; and whoever ends this half-way has ended it
//! between two whole nodes.

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::took;
use clap::Args;
use quorate_api::managers::Managers;
use quorate_api::view::{NodeMode, NodeState, NodeView, Overview, Standing};
use quorate_model::id::{NodeId, ReplicaId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use ureq::http::Method;

/// The poll interval: shorter than what a person notices.
const EVERY: Duration = Duration::from_millis(100);
/// Entries that a node that has caught up may lag behind: those of the last moments, in a cluster that writes.
const LAG_MAX: u64 = 1_000;

#[derive(Debug, Args)]
pub(crate) struct UpdateHamodeArgs {
    /// Only show which servers would begin anew, why and in what order
    #[arg(long)]
    plan: bool,
    /// Only the node that is asked: this server's own, unless `--server` names another
    #[arg(long)]
    this_node: bool,
}

/// What is done, and for what reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Walk {
    /// In this order.
    nodes: Vec<Stop>,
    /// Nodes that do not say what waits there, because they are not heard.
    unseen: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Stop {
    node: String,
    changes: Vec<String>,
    /// What is wrong with its file.
    #[serde(skip_serializing_if = "String::is_empty")]
    mistake: String,
}

pub(crate) fn run(context: &Context, args: &UpdateHamodeArgs) -> Result<(), Failure> {
    let overview: Overview = context.client()?.get("/v1/status")?;
    let walk = walk(&overview, args.this_node);
    if args.plan || walk.nodes.is_empty() {
        return context.show(&walk, text);
    }
    if let Some(stop) = walk.nodes.iter().find(|stop| !stop.mistake.is_empty()) {
        return Err(Failure::new(Exit::Conflict, "bad-settings", format!("{} would not come back", stop.node))
            .why(&stop.mistake)
            .fix("correct its file; `quorate config validate` there says whether it is good"));
    }
    for stop in &walk.nodes {
        let started = Instant::now();
        restart(context, stop)?;
        if !context.screen.is_json() {
            let line = format!("✔ {} runs with {}   {}", stop.node, stop.changes.join(", "), took(started.elapsed()));
            context.screen.data(&line);
        }
    }
    if context.screen.is_json() {
        context.screen.json(&walk);
    }
    for node in &walk.unseen {
        context.screen.say(&format!("! {node} is not heard: whether anything waits there is not known"));
    }
    Ok(())
}

/// Which servers begin anew, those that decide last.
fn walk(overview: &Overview, this_node: bool) -> Walk {
    let meant = |node: &&NodeView| !this_node || node.name == overview.answered_by;
    let mut nodes: Vec<&NodeView> = overview.nodes.iter().filter(meant).collect();
    nodes.sort_by_key(|node| (rank(node), node.name.clone()));
    let unseen = nodes.iter().filter(|node| matches!(node.state, NodeState::Unreachable | NodeState::Down));
    let unseen = unseen.map(|node| node.name.clone()).collect();
    let stop = |node: &NodeView| {
        let pending = node.pending.clone()?;
        Some(Stop { node: node.name.clone(), changes: pending.changes, mistake: pending.mistake })
    };
    Walk { nodes: nodes.into_iter().filter_map(stop).collect(), unseen }
}

fn rank(node: &NodeView) -> u8 {
    match (node.mode, node.standing) {
        (Some(NodeMode::Active), _) => 3,
        (_, Some(Standing::Voter)) => 2,
        (Some(NodeMode::Passive), _) => 1,
        (None, _) => 0,
    }
}

fn text(walk: &Walk) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (at, stop) in walk.nodes.iter().enumerate() {
        let why = if stop.mistake.is_empty() { stop.changes.join(", ") } else { format!("! {}", stop.mistake) };
        lines.push(format!("{}. {}   {why}", at + 1, stop.node));
    }
    if walk.nodes.is_empty() {
        lines.push("nothing waits: every server that is heard runs with the settings of its file".to_owned());
    }
    lines.extend(
        walk.unseen.iter().map(|node| format!("! {node} is not heard: whether anything waits there is not known")),
    );
    lines.join("\n")
}

/// One server begins anew, and all of it is there again when this returns.
fn restart(context: &Context, stop: &Stop) -> Result<(), Failure> {
    // Each node has the time that a command has.
    let client = context.client()?;
    let before = wait(&client, "other-away", |overview| {
        let away = overview.nodes.iter().find(|node| !is_whole(node)).map(|node| node.name.clone());
        match away {
            Some(node) => Err(format!("{node} is not there, or has not caught up, so {} was not touched", stop.node)),
            None => Ok(()),
        }
    })?;
    let path = format!("/v1/nodes/{}/restart", crate::cli::members::in_path(&stop.node));
    let begun: Managers = client.change(Method::POST, &path, None::<&()>)?.json()?;
    let Some(node) = begun.nodes.first() else {
        return Err(Failure::new(Exit::Failed, "strange-answer", "the node's answer names no node"));
    };
    let ran = running(&before, node.id);
    wait(&client, "not-back", |overview| {
        let now = overview.nodes.iter().find(|known| known.id == node.id);
        let Some(now) = now.filter(|now| now.generation > node.generation && is_whole(now)) else {
            return Err(format!("{} began anew and is not back yet; no other server is touched", stop.node));
        };
        let here = running(overview, now.id);
        if let Some((replica, _)) = ran.iter().find(|(replica, pid)| here.get(replica) != Some(pid)) {
            return Err(format!("{} is back and does not show replica {replica} as it was", stop.node));
        }
        match &now.pending {
            Some(pending) if !pending.changes.is_empty() => {
                Err(format!("{} is back and still waits for {}", stop.node, pending.changes.join(", ")))
            }
            _ => Ok(()),
        }
    })?;
    Ok(())
}

/// Whether it is there, unless it left on purpose, with all that the others have.
fn is_whole(node: &NodeView) -> bool {
    match node.state {
        NodeState::Joined => node.lag.is_none_or(|lag| lag <= LAG_MAX),
        NodeState::Removed => !matches!(node.standing, Some(Standing::Voter | Standing::Standby)),
        NodeState::Unreachable | NodeState::Down => false,
    }
}

/// Its copies that run, by process.
fn running(overview: &Overview, node: NodeId) -> BTreeMap<ReplicaId, u32> {
    let replicas = overview.services.iter().flat_map(|service| &service.replicas);
    let here = replicas.filter(|replica| replica.node_id == node && replica.state == "healthy");
    here.filter_map(|replica| Some((replica.id, replica.pid?))).collect()
}

/// Asks until it is so, or says at the end what is missing.
fn wait(
    client: &crate::cli::client::Client,
    code: &'static str,
    check: impl Fn(&Overview) -> Result<(), String>,
) -> Result<Overview, Failure> {
    let mut missing = "no node answers".to_owned();
    while !client.remaining().is_zero() {
        // Whoever is asked may be the one that begins anew.
        let answer = client.get::<Overview>("/v1/status").ok().filter(|overview| overview.cluster.leader.is_some());
        if let Some(overview) = answer {
            match check(&overview) {
                Ok(()) => return Ok(overview),
                Err(what) => missing = what,
            }
        }
        std::thread::sleep(EVERY);
    }
    Err(Failure::new(Exit::TimedOut, code, missing)
        .fix("quorate status\nthen again: quorate update-hamode   it goes on with those that still wait"))
}
