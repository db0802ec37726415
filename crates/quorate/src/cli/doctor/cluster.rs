//! Checks of the cluster, through the API and by connecting to every port of every node.

use super::Finding;
use crate::cli::Context;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::screen::took;
use crate::cli::target::Target;
use crate::serve::{BRING_BACK, MISSED_ROTATION, join_anew};
use quorate_api::ha::is_two_nodes;
use quorate_api::view::{ClusterHealth, ElectorsView, NodeState, NodeView, Overview};
use quorate_model::member::ha::TWO_NODES;
use quorate_model::state::Role;
use std::collections::BTreeMap;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// Longest wait for a connection; a node in the same building takes milliseconds.
const CONNECT: Duration = Duration::from_millis(1_500);
/// Longest wait for what one node says of itself.
const ANSWER: Duration = Duration::from_secs(3);
/// How far a clock may be off the others': the leader's rule (`quorate-node`, `clocks`).
const SKEW_MAX: Duration = Duration::from_millis(500);
/// Half of it is worth a look.
const SKEW_GOOD: Duration = Duration::from_millis(250);

pub(super) fn not_found(failure: &Failure) -> Finding {
    let fix = failure.fix.replace('\n', ", ");
    Finding::bad("cluster", failure.error.clone(), "nothing of the cluster could be looked at", fix)
}

/// Everything about the cluster.
pub(super) fn examine(context: &Context, target: &Target) -> Vec<Finding> {
    let overview: Overview = match context.client_for(target).get("/v1/status") {
        Ok(overview) => overview,
        Err(failure) => return vec![not_found(&failure)],
    };
    let dev = target.dev.is_some();
    let probes = probe(&overview, target);
    let mut findings = Vec::new();
    if let Some(by) = &overview.expelled_by {
        // Whatever else it says is as old as its removal.
        return vec![Finding::bad(
            "membership",
            format!("{} was removed from the cluster, says {by}", overview.answered_by),
            "nothing that it does counts, and its services are stopped here",
            BRING_BACK,
        )];
    }
    if !overview.strangers.is_empty() {
        let (here, strangers) = (&overview.answered_by, overview.strangers.join(", "));
        return vec![Finding::bad(
            "membership",
            format!("{here} {MISSED_ROTATION}: it and {strangers} do not believe each other's certificates"),
            "nothing that it does counts, and its services are stopped here",
            join_anew(here),
        )];
    }
    // A node alone decides alone.
    if let Some(electors) = &overview.cluster.electors {
        findings.push(quorum(&overview, electors));
        findings.extend(odd_number(electors));
    } else if overview.cluster.health == ClusterHealth::NoQuorum {
        findings.push(starting());
    }
    findings.extend(nodes(&overview.nodes, dev));
    findings.extend(ports(&probes, dev));
    findings.extend(clocks(&overview));
    findings.push(identities(&overview, &probes));
    findings.extend(versions(&overview, &probes));
    findings
}

/// The port for other nodes.
const LINK: &str = "node link";

/// What was learned by turning to one node itself.
struct Probe {
    name: String,
    state: NodeState,
    /// Each port with what came of connecting to it.
    ports: Vec<(Port, Result<(), Unreached>)>,
    /// What it says of itself.
    says: Option<Overview>,
}

#[derive(Debug, Clone)]
struct Port {
    what: &'static str,
    address: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreached {
    /// The machine is there and nothing listens.
    Refused,
    /// Nobody says anything.
    Silent,
    Other(io::ErrorKind),
}

/// Turns to all nodes at once.
fn probe(overview: &Overview, target: &Target) -> Vec<Probe> {
    let ha = overview.cluster.ha;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            overview.nodes.iter().map(|node| scope.spawn(move || probe_one(node, target, ha))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn probe_one(node: &NodeView, target: &Target, ha: bool) -> Probe {
    let api = node.api.rsplit('/').next().unwrap_or(&node.api).to_owned();
    let ports: Vec<_> = [Port { what: "API", address: api }, Port { what: LINK, address: node.link.clone() }]
        .into_iter()
        // Nobody listens for other nodes while there can be none.
        .filter(|port| ha || port.what != LINK)
        .map(|port| {
            let reached = connect(&port.address);
            (port, reached)
        })
        .collect();
    let answers = ports.first().is_some_and(|(_, reached)| reached.is_ok());
    let target = Target { servers: vec![node.api.clone()], dev: None, tls: target.tls.clone() };
    let says = answers.then(|| Client::new(&target, ANSWER).get("/v1/status").ok()).flatten();
    Probe { name: node.name.clone(), state: node.state, ports, says }
}

fn connect(address: &str) -> Result<(), Unreached> {
    let reached = address.to_socket_addrs().and_then(|mut addresses| {
        let first = addresses.next().ok_or(io::ErrorKind::NotFound)?;
        TcpStream::connect_timeout(&first, CONNECT)
    });
    match reached {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused => Unreached::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Unreached::Silent
            }
            other => Unreached::Other(other),
        }),
    }
}

fn starting() -> Finding {
    let why = "it reads what it has written before, and changes wait meanwhile";
    Finding::bad("changes", "the node does not take any yet", why, "wait a moment; see journalctl -u quorate.service")
}

fn quorum(overview: &Overview, electors: &ElectorsView) -> Finding {
    let cluster = &overview.cluster;
    let ElectorsView { voters, voters_joined, can_lose, .. } = electors;
    let what = format!("{voters_joined} of {voters} managers answer, can lose {can_lose}");
    let missing = (voters / 2 + 1).saturating_sub(*voters_joined);
    match (cluster.health, &cluster.leader) {
        (ClusterHealth::NoQuorum, _) | (_, None) => Finding::bad(
            "quorum",
            format!("{what}, no leader"),
            "without a majority nothing can be changed, and services are not moved off dead nodes",
            match missing {
                0 => "wait for the election; if it does not end, look at the other findings".to_owned(),
                missing => format!("start {missing} more of the managers"),
            },
        ),
        (_, Some(_)) if *can_lose == 0 => Finding::doubtful(
            "quorum",
            what,
            if is_two_nodes(overview) { TWO_NODES } else { "the next manager that is lost stops every change" },
            if voters_joined < voters {
                "bring the missing managers back"
            } else {
                "three managers survive the loss of one"
            },
        ),
        (_, Some(leader)) => Finding::well("quorum", format!("{what}, leader {leader}")),
    }
}

fn odd_number(electors: &ElectorsView) -> Option<Finding> {
    let voters = electors.voters;
    (voters > 0 && voters.is_multiple_of(2)).then(|| {
        Finding::bad(
            "voters",
            format!("{voters} is an even number"),
            format!("{voters} voters survive no more losses than {}, and there is one more to lose", voters - 1),
            format!("make it {} or {}", voters - 1, voters + 1),
        )
    })
}

fn nodes(nodes: &[NodeView], dev: bool) -> Vec<Finding> {
    let away: Vec<Finding> = nodes
        .iter()
        .filter_map(|node| {
            let word = match node.state {
                NodeState::Joined | NodeState::Removed => return None,
                NodeState::Unreachable => "unreachable",
                NodeState::Down => "down",
            };
            let why = "its services run elsewhere or not at all, and one loss is used up if it is a manager";
            Some(Finding::bad("nodes", format!("{} is {word}", node.name), why, start(&node.name, dev)))
        })
        .collect();
    if !away.is_empty() {
        return away;
    }
    let left = nodes.iter().filter(|node| node.state == NodeState::Removed).count();
    let mut what = format!("{} of {} joined", nodes.len() - left, nodes.len());
    if left > 0 {
        what.push_str(&format!(", {left} stopped cleanly"));
    }
    vec![Finding::well("nodes", what)]
}

fn start(node: &str, dev: bool) -> String {
    if dev { format!("quorate dev start {node}") } else { format!("systemctl start quorate   (on {node})") }
}

fn ports(probes: &[Probe], dev: bool) -> Vec<Finding> {
    let expected = || probes.iter().filter(|probe| probe.state != NodeState::Removed);
    let failed: Vec<Finding> = expected()
        .flat_map(|probe| probe.ports.iter().map(move |(port, reached)| (probe, port, reached)))
        .filter_map(|(probe, port, reached)| {
            let at = format!("{} of {} at {}", port.what, probe.name, port.address);
            let (what, fix) = match reached {
                Ok(()) => return None,
                Err(Unreached::Refused) => (format!("{at}: nothing listens"), start(&probe.name, dev)),
                Err(Unreached::Silent) => (
                    format!("{at}: no answer"),
                    "open this port between the servers; see their firewalls and cables".to_owned(),
                ),
                Err(Unreached::Other(kind)) => (format!("{at}: {kind}"), "see whether the address is right".to_owned()),
            };
            Some(Finding::bad("ports", what, "nodes and clients reach each other through these ports", fix))
        })
        .collect();
    let count: usize = expected().map(|probe| probe.ports.len()).sum();
    if failed.is_empty() {
        vec![Finding::well("ports", format!("{count} of {count} answer from here"))]
    } else {
        failed
    }
}

/// Each clock against the middle one, so that one that is wrong is named and not all the others.
fn clocks(overview: &Overview) -> Vec<Finding> {
    let heard = overview.nodes.iter().filter_map(|node| Some((node.name.as_str(), node.clock_ahead_us?)));
    let clocks: Vec<(&str, i64)> = heard.chain([(overview.answered_by.as_str(), 0)]).collect();
    if clocks.len() < 2 {
        return Vec::new();
    }
    let mut sorted: Vec<i64> = clocks.iter().map(|(_, ahead)| *ahead).collect();
    sorted.sort_unstable();
    let middle = sorted[(sorted.len() - 1) / 2];
    let off = |ahead: i64| Duration::from_micros(ahead.abs_diff(middle));
    let mut findings: Vec<Finding> = clocks
        .iter()
        .filter(|(_, ahead)| off(*ahead) > SKEW_GOOD)
        .map(|(name, ahead)| {
            let direction = if *ahead > middle { "ahead of" } else { "behind" };
            let what = format!("{} to {name}, which is {direction} the others", took(off(*ahead)));
            let why = "certificates, tokens and everything with a time are judged by it; a leader that is 0.5 s off is not believed";
            let fix = format!("systemctl enable --now chronyd   (on {name})");
            if off(*ahead) > SKEW_MAX {
                Finding::bad("clock skew", what, why, fix)
            } else {
                Finding::doubtful("clock skew", what, why, fix)
            }
        })
        .collect();
    if findings.is_empty() {
        let most = clocks.iter().map(|(_, ahead)| off(*ahead)).max().unwrap_or_default();
        findings.push(Finding::well("clock skew", format!("{:.1} ms at most", most.as_secs_f64() * 1_000.0)));
    }
    findings
}

/// No two nodes with one name or address, and behind each address the node that it should be.
fn identities(overview: &Overview, probes: &[Probe]) -> Finding {
    const CHECK: &str = "identities";
    let present = || overview.nodes.iter().filter(|node| node.state != NodeState::Removed);
    let mut problems = Vec::new();
    for (what, of) in [
        ("the name", (|node: &NodeView| node.name.clone()) as fn(&NodeView) -> String),
        ("the ID", |node| node.id.to_string()),
        ("the API address", |node| node.api.clone()),
        ("the link address", |node| node.link.clone()),
    ] {
        let mut owners: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        present().for_each(|node| owners.entry(of(node)).or_default().push(&node.name));
        let shared = owners.iter().filter(|(_, names)| names.len() > 1);
        problems.extend(shared.map(|(value, names)| format!("{} have {what} {value}", names.join(" and "))));
    }
    for (probe, says) in probes.iter().filter_map(|probe| Some((probe, probe.says.as_ref()?))) {
        if says.cluster.id != overview.cluster.id {
            problems.push(format!("at the address of {} is a node of cluster {}", probe.name, says.cluster.name));
        } else if says.answered_by != probe.name {
            problems.push(format!("at the address of {} is {}", probe.name, says.answered_by));
        }
    }
    if problems.is_empty() {
        return Finding::well(CHECK, "every node has its own name, ID and addresses");
    }
    Finding::bad(
        CHECK,
        problems.join("; "),
        "two nodes that others take for one lose data: a copied data directory or a copied virtual machine does this",
        "stop the copy, remove its data directory and let it join as a new node",
    )
}

fn versions(overview: &Overview, probes: &[Probe]) -> Option<Finding> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    versions.entry(&overview.cluster.version).or_default();
    for (probe, says) in probes.iter().filter_map(|probe| Some((probe, probe.says.as_ref()?))) {
        versions.entry(&says.cluster.version).or_default().push(&probe.name);
    }
    let managers = overview.nodes.iter().filter(|node| node.roles.contains(&Role::Manager)).count();
    if versions.len() == 1 {
        return (managers > 1)
            .then(|| Finding::well("versions", format!("all nodes run {}", overview.cluster.version)));
    }
    let all: Vec<String> =
        versions.iter().map(|(version, names)| format!("{version} on {}", names.join(" "))).collect();
    Some(Finding::doubtful(
        "versions",
        all.join(", "),
        "nodes of different versions work together during an upgrade, and not for ever",
        "upgrade the older ones",
    ))
}

#[cfg(test)]
mod tests;
