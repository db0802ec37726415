//! `quorate status`, `quorate node list` and the hand-over of leadership: the cluster for people.

use crate::cli::client::Client;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::screen::{self, age, moment, took, wall_now};
use crate::cli::{Context, managers, service};
use crate::settings::binding;
use clap::Args;
use quorate_api::view::{ClusterHealth, NodeMode, NodeState, NodeView, Overview, Standing, VotersStep};
use quorate_model::state::Role;
use quorate_model::time::WallTime;
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;
use ureq::http::Method;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// End with status 5 unless all is well
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(context: &Context, args: &StatusArgs) -> Result<ExitCode, Failure> {
    let target = context.choice.find()?;
    let overview: Overview = context.client_for(&target).get("/v1/status")?;
    if context.screen.is_json() {
        context.screen.json(&overview);
    } else {
        context.screen.data(&render(&overview, wall_now(), target.dev.is_some()));
    }
    let unwell = overview.cluster.health != ClusterHealth::Healthy;
    Ok(if args.check && unwell { ExitCode::from(Exit::Unhealthy as u8) } else { ExitCode::SUCCESS })
}

pub(crate) fn list_nodes(context: &Context, explain: bool) -> Result<(), Failure> {
    let nodes: Vec<NodeView> = context.client()?.get("/v1/nodes")?;
    if context.screen.is_json() {
        context.screen.json(&nodes);
    } else {
        let mut text = nodes_table(&nodes, wall_now(), context.screen.is_wide());
        if explain {
            // One that left, or whose role is stopped, has no part in it.
            let takes_part = |node: &&NodeView| node.standing.is_some_and(|standing| standing != Standing::Stopped);
            let managers = nodes.iter().filter(takes_part).filter(|node| node.state != NodeState::Removed).count();
            text.push_str(&format!("\n\n{}", managers::explain(managers)));
        }
        context.screen.data(&text);
    }
    Ok(())
}

pub(crate) fn transfer(context: &Context, name: &str) -> Result<(), Failure> {
    let client: Client = context.client()?;
    let nodes: Vec<NodeView> = client.get("/v1/nodes")?;
    if !nodes.iter().any(|node| node.name == name || node.id.to_string() == name) {
        return Err(failure::unknown("node", name, nodes.iter().map(|node| node.name.as_str()), "quorate node list"));
    }
    let started = Instant::now();
    client.change(Method::POST, "/v1/raft/transfer", Some(&json!({ "node": name })))?;
    let elapsed = started.elapsed();
    if context.screen.is_json() {
        context
            .screen
            .json(&json!({ "leader": name, "took_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) }));
    } else {
        context.screen.data(&format!("✔ {name} is Active   {}", took(elapsed)));
    }
    Ok(())
}

fn render(overview: &Overview, now: WallTime, dev: bool) -> String {
    let cluster = &overview.cluster;
    let health = match cluster.health {
        ClusterHealth::Healthy => "✔ healthy",
        ClusterHealth::Degraded => "▲ degraded",
        ClusterHealth::NoQuorum => "✕ no quorum",
    };
    let leader = match &cluster.leader {
        Some(leader) => format!("leader {leader} (term {})", cluster.term),
        None => "no leader".into(),
    };
    let lose = managers::can_lose(cluster);
    let mut head = format!(
        "Cluster {} · {health} · {}/{} managers, {lose} · {leader}",
        cluster.name, cluster.voters_joined, cluster.voters
    );
    if cluster.incarnation > 1 {
        head.push_str(&format!(" · incarnation {}", cluster.incarnation));
    }
    let mut parts = vec![head];
    parts.extend(cluster.voters_change.iter().map(|words| format!("~ {words}")));
    parts.extend(cluster.voters_next.iter().map(|next| {
        let word = match next.step {
            VotersStep::Change => "next",
            VotersStep::HandOver => "first",
            VotersStep::Wait => "waits",
        };
        format!("~ {word}: {}", next.why)
    }));
    parts.push(nodes_table(&overview.nodes, now, false));
    if !overview.services.is_empty() {
        parts.push(service::list_table(&overview.services));
    }
    if !overview.gateways.is_empty() {
        parts.push(screen::table(
            &["GATEWAY", "URL", "FED BY", "REQUESTS", "FAILED"],
            &[3, 4],
            overview.gateways.iter().map(|gateway| {
                vec![
                    gateway.name.clone(),
                    gateway.url.clone(),
                    gateway.fed_by.clone(),
                    gateway.requests.to_string(),
                    gateway.failed.to_string(),
                ]
            }),
        ));
    }
    // Which address was chosen is news only where one was chosen.
    if let Some(announced) = overview.announced.as_ref().filter(|it| !binding::is_as_written(&it.because)) {
        parts.push(format!("{} is reached at {}: {}", overview.answered_by, announced.api, announced.because));
    }
    parts.extend(advice(overview, now, dev));
    parts.join("\n")
}

/// What is wrong and what to do next, most urgent first.
fn advice(overview: &Overview, now: WallTime, dev: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let cluster = &overview.cluster;
    if cluster.health == ClusterHealth::NoQuorum {
        let missing = (cluster.voters / 2 + 1).saturating_sub(cluster.voters_joined);
        lines.push(if missing > 0 {
            format!("✕ {}  Managers that must come back: {missing}.", cluster.summary)
        } else {
            format!("✕ {}  Writes wait until a leader is elected.", cluster.summary)
        });
    }
    for node in &overview.nodes {
        let word = match node.state {
            NodeState::Joined | NodeState::Removed => continue,
            NodeState::Unreachable => "unreachable",
            NodeState::Down => "down",
        };
        let next = if dev {
            format!("quorate dev start {}", node.name)
        } else {
            format!("systemctl status quorate   (on {})", node.name)
        };
        let since = moment(node.since, false);
        lines.push(format!("! {} is {word} since {since} ({}).  Next: {next}", node.name, age(now.since(node.since))));
    }
    for service in &overview.services {
        if !service.held.is_empty() {
            lines.extend(service.held.iter().map(|held| format!("! {held}")));
        } else if service.healthy < service.want {
            lines.push(format!(
                "! {} has {} of {} copies healthy.  Next: quorate service show {}",
                service.name, service.healthy, service.want, service.name
            ));
        }
    }
    if lines.is_empty() && cluster.health != ClusterHealth::Healthy {
        lines.push(format!("! {}  Next: quorate events", cluster.summary));
    }
    if lines.is_empty() && cluster.can_lose == 0 {
        lines.push("! No manager may be lost.  Three of them survive the loss of one.".into());
    }
    lines
}

pub(crate) fn nodes_table(nodes: &[NodeView], now: WallTime, wide: bool) -> String {
    let has_alias = nodes.iter().any(|node| node.alias.is_some());
    let mut header = vec!["NODE", "MODE", "STATE", "ROLES", "LAG", "REPLICAS", "SINCE"];
    if has_alias {
        header.insert(1, "ALIAS");
    }
    if wide {
        header.extend(["API", "LINK", "GENERATION", "ID"]);
    }
    let rows = nodes.iter().map(|node| {
        let mut row = vec![
            node.name.clone(),
            mode_word(node).into(),
            state(node.state).into(),
            node.roles.iter().map(|role| role_name(*role)).collect::<Vec<_>>().join(","),
            node.lag.map_or_else(|| "-".into(), |lag| lag.to_string()),
            node.replicas.to_string(),
            age(now.since(node.since)),
        ];
        if has_alias {
            row.insert(1, node.alias.clone().unwrap_or_else(|| "-".into()));
        }
        if wide {
            row.extend([node.api.clone(), node.link.clone(), node.generation.to_string(), node.id.to_string()]);
        }
        row
    });
    let lag = 4 + usize::from(has_alias);
    screen::table(&header, &[lag, lag + 1], rows)
}

pub(crate) fn mode(mode: Option<NodeMode>) -> &'static str {
    match mode {
        Some(NodeMode::Active) => "Active",
        Some(NodeMode::Passive) => "Passive",
        None => "-",
    }
}

/// The mode, and what keeps a passive manager from becoming active at once.
fn mode_word(node: &NodeView) -> &'static str {
    match (node.mode, node.standing) {
        (Some(NodeMode::Passive), Some(Standing::Standby)) => "standby",
        (Some(NodeMode::Passive), Some(Standing::Stopped)) => "stopped",
        (other, _) => mode(other),
    }
}

fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Joined => "● joined",
        NodeState::Unreachable => "▲ unreachable",
        NodeState::Down => "✕ down",
        NodeState::Removed => "○ removed",
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
        Role::Gateway => "gateway",
    }
}
