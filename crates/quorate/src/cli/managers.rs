//! Managers: `manager …`, and how many of them may be lost.

use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::members::{describe, in_path};
use crate::cli::screen::{self, took, wall_now};
use crate::cli::{Context, ha, status};
use clap::{Args, Subcommand, ValueEnum};
use quorate_api::managers::{ManagerRule, Managers, One, Which};
use quorate_api::view::{ElectorsView, NodeMode, NodeState, NodeView, Overview, Standing, VotersStep};
use quorate_model::id::NodeId;
use quorate_model::state::Role;
use serde_json::json;
use std::time::{Duration, Instant};
use ureq::http::Method;

/// The poll interval: shorter than what a person notices.
const EVERY: Duration = Duration::from_millis(100);
/// Voters that have not changed for this long will not, unless somebody comes back.
const RESTED: Duration = Duration::from_secs(3);

#[derive(Debug, Subcommand)]
pub(crate) enum ManagerCommand {
    /// The managers with their part in decisions
    #[command(after_help = "Examples:\n  quorate manager list\n  quorate manager list -o json")]
    List,
    /// One manager
    #[command(after_help = "Examples:\n  quorate manager show n2")]
    Show {
        /// Name, id, or how the id begins
        node: String,
    },
    /// Make a passive manager the Active one
    #[command(after_help = "Examples:\n  quorate manager promote n2")]
    Promote {
        /// Name of the node that shall lead
        node: String,
    },
    /// Stop the manager role of passive managers; their services and gateways go on
    #[command(after_help = "Examples:\n  quorate manager stop n2\n  quorate manager stop --all-passive")]
    Stop(WhichArgs),
    /// Start the manager role again
    #[command(after_help = "Examples:\n  quorate manager start n2\n  quorate manager start --all-passive")]
    Start(WhichArgs),
    /// Restart the servers of managers, one after the other; their services and gateways go on
    #[command(
        after_help = "Examples:\n  quorate manager restart n2\n  quorate manager restart --all-passive\n  quorate manager restart --active"
    )]
    Restart {
        #[command(flatten)]
        which: WhichArgs,
        /// The Active one, after another has taken over
        #[arg(long, conflicts_with_all = ["nodes", "all_passive"])]
        active: bool,
    },
    /// Show where managers may be, or set it: only on nodes that have this role too
    #[command(
        after_help = "Examples:\n  quorate manager rule\n  quorate manager rule worker\n  quorate manager rule none"
    )]
    Rule {
        /// The role that managers must have too
        requires: Option<RuleArg>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// Names, ids, or how the ids begin
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Every manager but the Active one
    #[arg(long, conflicts_with = "nodes")]
    all_passive: bool,
}

/// Where managers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuleArg {
    /// On nodes that run services
    Worker,
    /// On nodes that let clients in
    Gateway,
    /// On any node
    None,
}

impl WhichArgs {
    fn read(&self) -> Result<Which, Failure> {
        if self.nodes.is_empty() && !self.all_passive {
            return Err(Failure::new(Exit::Usage, "which-manager", "it is not said which managers are meant")
                .fix("name them, or give --all-passive"));
        }
        Ok(Which { nodes: self.nodes.clone(), all_passive: self.all_passive })
    }
}

pub(crate) fn run(context: &Context, command: ManagerCommand) -> Result<(), Failure> {
    match command {
        ManagerCommand::List => {
            let nodes: Vec<NodeView> = context.client()?.get("/v1/nodes")?;
            let managers: Vec<NodeView> = nodes.into_iter().filter(|node| node.mode.is_some()).collect();
            context.show(&managers, |managers| match managers[..] {
                [] => ha::OFF.to_owned(),
                _ => status::nodes_table(managers, wall_now(), context.screen.is_wide()),
            })
        }
        ManagerCommand::Show { node } => {
            let view: NodeView = context.client()?.get(&format!("/v1/nodes/{}", in_path(&node)))?;
            context.show(&view, describe)
        }
        ManagerCommand::Promote { node } => status::transfer(context, &node),
        ManagerCommand::Stop(which) => turn(context, &which, "stop"),
        ManagerCommand::Start(which) => turn(context, &which, "start"),
        ManagerCommand::Restart { active: true, .. } => restart_active(context),
        ManagerCommand::Restart { which, active: false } => restart(context, &which),
        ManagerCommand::Rule { requires: None } => {
            let overview: Overview = context.client()?.get("/v1/status")?;
            let requires = overview.cluster.electors.and_then(|electors| electors.manager_requires);
            let rule = ManagerRule { requires };
            context.show(&rule, rule_text)
        }
        ManagerCommand::Rule { requires: Some(requires) } => {
            let requires = match requires {
                RuleArg::Worker => Some(Role::Worker),
                RuleArg::Gateway => Some(Role::Gateway),
                RuleArg::None => None,
            };
            let body = ManagerRule { requires };
            let rule = context.client()?.change(Method::PUT, "/v1/managers/rule", Some(&body))?.json()?;
            context.show(&rule, rule_text)
        }
    }
}

fn rule_text(rule: &ManagerRule) -> String {
    match rule.requires {
        Some(role) => format!("managers are only on nodes with the role {}", format!("{role:?}").to_lowercase()),
        None => "managers may be on any node".to_owned(),
    }
}

/// Stops or starts, and waits until the voters are as they then are to be, so that what is printed is true.
fn turn(context: &Context, which: &WhichArgs, verb: &str) -> Result<(), Failure> {
    let client = context.client()?;
    let path = format!("/v1/managers/{verb}");
    let done: Managers = client.change(Method::POST, &path, Some(&which.read()?))?.json()?;
    let settled = until_settled(&client, done.index)?;
    let electors = settled.cluster.electors.as_ref();
    let ids: Vec<NodeId> = done.nodes.iter().map(|node| node.id).collect();
    let nodes: Vec<&NodeView> = settled.nodes.iter().filter(|node| ids.contains(&node.id)).collect();
    let result = json!({
        "nodes": nodes,
        "index": done.index,
        "voters": electors.map(|electors| electors.voters),
        "can_lose": electors.map(|electors| electors.can_lose),
    });
    let done = if verb == "stop" { "stopped" } else { "started" };
    let names = nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    let tolerance = electors.map_or_else(String::new, |electors| format!(" · {}", tolerance(electors)));
    context.done(&result, &format!("✔ {names} {done}{tolerance}"))
}

/// What the cluster looks like when the change is through, or as far as it is when that takes too long.
fn until_settled(client: &Client, index: u64) -> Result<Overview, Failure> {
    let mut rests_since = None;
    loop {
        // The node that was asked may be one that is now stopped; the next one answers.
        let overview: Overview = client.get("/v1/status")?;
        let cluster = &overview.cluster;
        // Switched off meanwhile: there is nothing to settle.
        let Some(electors) = &cluster.electors else { return Ok(overview) };
        let waits = electors.voters_next.as_ref().is_some_and(|next| next.step == VotersStep::Wait);
        let rests = electors.voters_change.is_none() && electors.voters_next.is_none() && cluster.leader.is_some();
        // A standby that has just started is not counted on before it has been heard and has caught up.
        rests_since = if rests { rests_since.or(Some(Instant::now())) } else { None };
        let rested = rests_since.is_some_and(|since| since.elapsed() >= RESTED);
        let settled = waits || rests && (electors.voters == expected_voters(&overview.nodes) || rested);
        let late = client.remaining() < Duration::from_secs(1);
        if cluster.applied.0 >= index && settled || late {
            return Ok(overview);
        }
        std::thread::sleep(EVERY);
    }
}

/// How many of those that answer vote when all is done: an odd number.
fn expected_voters(nodes: &[NodeView]) -> u32 {
    let may_vote = |node: &&NodeView| matches!(node.standing, Some(Standing::Voter | Standing::Standby));
    let there = nodes.iter().filter(may_vote).filter(|node| node.state == NodeState::Joined).count();
    u32::try_from(if there.is_multiple_of(2) { there.saturating_sub(1) } else { there }).unwrap_or(u32::MAX)
}

/// `3 managers vote, can lose 1`
pub(crate) fn tolerance(electors: &ElectorsView) -> String {
    let votes =
        if electors.voters == 1 { "1 manager votes".into() } else { format!("{} managers vote", electors.voters) };
    format!("{votes}, {}", can_lose(electors))
}

/// `can lose 1`, with what it will be once all are up if that is more.
pub(crate) fn can_lose(electors: &ElectorsView) -> String {
    let now = match electors.can_lose {
        0 => "cannot lose any".to_owned(),
        count => format!("can lose {count}"),
    };
    match electors.can_lose_when_up {
        up if up > electors.can_lose => format!("{now} now, {up} when all are up"),
        _ => now,
    }
}

fn restart(context: &Context, which: &WhichArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let which = which.read()?;
    let names: Vec<String> = if which.all_passive {
        let nodes: Vec<NodeView> = client.get("/v1/nodes")?;
        let passive = nodes.into_iter().filter(|node| node.mode == Some(NodeMode::Passive));
        passive.map(|node| node.name).collect()
    } else {
        which.nodes
    };
    if names.is_empty() {
        return Err(Failure::new(Exit::Conflict, "no-passive", "there is no passive manager")
            .fix("quorate manager restart --active"));
    }
    // One after the other: two at once could take the majority along.
    let mut restarted = Vec::new();
    for node in names {
        let started = Instant::now();
        let body = One { node };
        let begun: Managers = client.change(Method::POST, "/v1/managers/restart", Some(&body))?.json()?;
        restarted.push(until_back(context, &client, &begun, started)?);
    }
    finish(context, &restarted)
}

fn restart_active(context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let started = Instant::now();
    let begun: Managers = client.change(Method::POST, "/v1/managers/restart-active", None::<&()>)?.json()?;
    let restarted = vec![until_back(context, &client, &begun, started)?];
    finish(context, &restarted)
}

fn finish(context: &Context, restarted: &[NodeView]) -> Result<(), Failure> {
    if context.screen.is_json() {
        context.screen.json(&restarted);
    }
    Ok(())
}

/// Waits until the node has begun anew and is joined.
fn until_back(context: &Context, client: &Client, begun: &Managers, started: Instant) -> Result<NodeView, Failure> {
    let Some(before) = begun.nodes.first() else {
        return Err(Failure::new(Exit::Failed, "strange-answer", "the node's answer names no manager"));
    };
    while !client.remaining().is_zero() {
        // Whoever is asked may be the one that begins anew.
        let now = client.get::<Overview>("/v1/status").ok();
        let now = now.filter(|overview| overview.cluster.leader.is_some());
        let node = now.and_then(|overview| overview.nodes.into_iter().find(|node| node.id == before.id));
        let back = |node: &NodeView| node.generation > before.generation && node.state == NodeState::Joined;
        if let Some(node) = node.filter(back) {
            if !context.screen.is_json() {
                context.screen.data(&format!("✔ {} restarted   {}", node.name, took(started.elapsed())));
            }
            return Ok(node);
        }
        std::thread::sleep(EVERY);
    }
    Err(Failure::new(Exit::TimedOut, "not-back", format!("{} was restarted and is not back yet", before.name))
        .fix("quorate status"))
}

/// How many managers may be lost, with the row where this cluster is marked (U4).
pub(crate) fn explain(managers: usize) -> String {
    let row = |count: usize| {
        let voters = if count.is_multiple_of(2) { count - 1 } else { count };
        let here = if count == managers { "◀ now" } else { "" };
        vec![
            count.to_string(),
            voters.to_string(),
            (count - voters).to_string(),
            ((voters - 1) / 2).to_string(),
            here.to_owned(),
        ]
    };
    let table = screen::table(&["MANAGERS", "VOTERS", "STANDBY", "CAN LOSE", ""], &[0, 1, 2, 3], (1..=9).map(row));
    let why = "The number of voters is odd: an even one tolerates no more losses than the odd one below it.\n\
               A standby takes the place of a voter that is lost, so two of four may be lost one after the other.";
    format!("{table}\n{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u4_the_table_of_losses() {
        expect_test::expect![[r"
            MANAGERS  VOTERS  STANDBY  CAN LOSE
                   1       1        0         0
                   2       1        1         0
                   3       3        0         1
                   4       3        1         1  ◀ now
                   5       5        0         2
                   6       5        1         2
                   7       7        0         3
                   8       7        1         3
                   9       9        0         4
            The number of voters is odd: an even one tolerates no more losses than the odd one below it.
            A standby takes the place of a voter that is lost, so two of four may be lost one after the other."]]
        .assert_eq(&explain(4).lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
    }
}
