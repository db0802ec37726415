//! `quorate status`, `quorate node list` and the hand-over of leadership: the cluster for people.

use crate::cli::client::Client;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::screen::{self, age, moment, took, wall_now};
use crate::cli::{Context, managers, placement, service, update};
use crate::serve::{BRING_BACK, MISSED_ROTATION, join_anew};
use crate::settings::binding;
use clap::Args;
use quorate_api::placement::Availability;
use quorate_api::view::{ClusterHealth, ElectorsView, NodeMode, NodeState, NodeView, Overview, Standing, VotersStep};
use quorate_model::deployment::Stage;
use quorate_model::member::ha::TWO_NODES;
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
        context.screen.data(&render(&overview, wall_now(), target.dev.is_some(), context.screen.is_wide()));
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

fn render(overview: &Overview, now: WallTime, dev: bool, wide: bool) -> String {
    let cluster = &overview.cluster;
    let health = match cluster.health {
        ClusterHealth::Healthy => "✔ healthy",
        ClusterHealth::Degraded => "▲ degraded",
        ClusterHealth::NoQuorum if overview.expelled_by.is_some() => "✕ not a member",
        ClusterHealth::NoQuorum if !overview.strangers.is_empty() => "✕ not believed",
        ClusterHealth::NoQuorum => "✕ no quorum",
    };
    let mut head = format!("Cluster {} · {health}", cluster.name);
    match &cluster.electors {
        None => head.push_str(" · 1 node"),
        Some(electors) => {
            let leader = match &cluster.leader {
                Some(leader) => format!("leader {leader} (term {})", cluster.term),
                None => "no leader".into(),
            };
            let (joined, voters, lose) = (electors.voters_joined, electors.voters, managers::can_lose(electors));
            head.push_str(&format!(" · {joined}/{voters} managers, {lose} · {leader}"));
        }
    }
    if cluster.incarnation > 1 {
        head.push_str(&format!(" · incarnation {}", cluster.incarnation));
    }
    let mut parts = vec![head];
    let electors = || cluster.electors.iter();
    parts.extend(electors().flat_map(|electors| &electors.voters_change).map(|words| format!("~ {words}")));
    parts.extend(electors().flat_map(|electors| &electors.voters_next).map(|next| {
        let word = match next.step {
            VotersStep::Change => "next",
            VotersStep::HandOver => "first",
            VotersStep::Wait => "waits",
        };
        format!("~ {word}: {}", next.why)
    }));
    parts.push(nodes_table(&overview.nodes, now, wide));
    if !overview.services.is_empty() {
        parts.push(service::list_table(&overview.services));
    }
    parts.extend(service::leases_table(&overview.services));
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
    if let Some(by) = &overview.expelled_by {
        let here = &overview.answered_by;
        return vec![
            format!("✕ {here} was removed from the cluster, says {by}.  What is above is as old as that."),
            "  Nothing that it does counts, and its services are stopped here: they run elsewhere.".into(),
            format!("  Next: {BRING_BACK}"),
        ];
    }
    if !overview.strangers.is_empty() {
        let (here, strangers) = (&overview.answered_by, overview.strangers.join(", "));
        return vec![
            format!("✕ {here} {MISSED_ROTATION}: it and {strangers} do not believe each other's certificates."),
            "  What is above is as old as that. Its services are stopped here: they run elsewhere.".into(),
            format!("  Next: {}", join_anew(here)),
        ];
    }
    if cluster.health == ClusterHealth::NoQuorum {
        let missing = |electors: &ElectorsView| (electors.voters / 2 + 1).saturating_sub(electors.voters_joined);
        lines.push(match cluster.electors.as_ref().map(missing) {
            Some(0) => format!("✕ {}  Writes wait until a leader is elected.", cluster.summary),
            Some(missing) => format!("✕ {}  Managers that must come back: {missing}.", cluster.summary),
            None => format!("✕ {}  Writes wait.", cluster.summary),
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
        let open = service.deployment.as_ref().filter(|it| it.from.is_some() && it.stage != Stage::RolledBack);
        if let Some(line) = open.and_then(|_| update::line(service)) {
            lines.push(format!("~ {} {line}", service.name));
        }
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
    if lines.is_empty() && cluster.electors.as_ref().is_some_and(|electors| electors.can_lose == 0) {
        lines.push(match quorate_api::ha::is_two_nodes(overview) {
            true => format!("! No manager may be lost; {TWO_NODES}.  Next: quorate add-node"),
            false => "! No manager may be lost.  Three of them survive the loss of one.".into(),
        });
    }
    // Nothing is wrong with that.
    lines.extend(overview.services.iter().filter_map(|service| {
        let symbol = if service.stopped.is_some() { "○" } else { "~" };
        Some(format!("{symbol} {} {}", service.name, service::switched(service)?))
    }));
    lines
}

const COLUMNS: [&str; 15] = [
    "NODE",
    "ALIAS",
    "MODE",
    "STATE",
    "TAKES",
    "ROLES",
    "LAG",
    "REPLICAS",
    "SINCE",
    "API",
    "LINK",
    "GENERATION",
    "ID",
    "LABELS",
    "LOG",
];

pub(crate) fn nodes_table(nodes: &[NodeView], now: WallTime, wide: bool) -> String {
    // A cluster has a manager; one that shows none has high availability off.
    let ha = nodes.iter().any(|node| node.mode.is_some());
    let aliased = nodes.iter().any(|node| node.alias.is_some());
    let closed = nodes.iter().any(|node| node.availability != Availability::Open);
    let shown = |column: &&str| match *column {
        "TAKES" => closed,
        "MODE" | "LAG" => ha,
        "ALIAS" => aliased,
        "API" | "LINK" | "GENERATION" | "ID" | "LABELS" | "LOG" => wide,
        _ => true,
    };
    let cell = |node: &NodeView, column: &str| match column {
        "NODE" => node.name.clone(),
        "ALIAS" => node.alias.clone().unwrap_or_else(|| "-".into()),
        "MODE" => mode_word(node).into(),
        "STATE" => state(node.state).into(),
        "ROLES" => node.roles.iter().map(|role| role_name(*role)).collect::<Vec<_>>().join(","),
        "LAG" => node.lag.map_or_else(|| "-".into(), |lag| lag.to_string()),
        "REPLICAS" => node.replicas.to_string(),
        "SINCE" => age(now.since(node.since)),
        "API" => node.api.clone(),
        "LINK" => node.link.clone(),
        "GENERATION" => node.generation.to_string(),
        "TAKES" => takes(node.availability).into(),
        "LABELS" => placement::labels_text(&node.labels),
        "LOG" => node.log_dir.clone().unwrap_or_else(|| "-".into()),
        _ => node.id.to_string(),
    };
    let header: Vec<&str> = COLUMNS.into_iter().filter(shown).collect();
    let numbers: Vec<usize> =
        (0..header.len()).filter(|column| ["LAG", "REPLICAS"].contains(&header[*column])).collect();
    let rows = nodes.iter().map(|node| header.iter().map(|column| cell(node, column)).collect());
    screen::table(&header, &numbers, rows)
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

fn takes(availability: Availability) -> &'static str {
    match availability {
        Availability::Open => "anything",
        Availability::Cordoned => "nothing new",
        Availability::Draining => "drains",
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
