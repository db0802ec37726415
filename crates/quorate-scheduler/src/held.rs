//! What a plan leaves undone and why, in words for the operator.
//!
//! Names instead of ids: these texts are read at night. docs/concepts/scheduling.md explains each.

use quorate_model::id::ServiceName;
use quorate_model::time::Span;
use std::fmt;
use std::time::Duration;

/// Something that a plan does not do for a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub service: ServiceName,
    pub reason: HeldReason,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.service, self.reason)
    }
}

/// A replica's place in its service, shown as `web.1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    pub service: ServiceName,
    pub ordinal: u32,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.ordinal)
    }
}

/// Why something is not done. Nodes are given by name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldReason {
    /// The node is down, and its replicas are replaced only after `remaining`.
    AwaitsReturn { node: String, remaining: Duration },
    /// A majority does not hear the node, and it is not marked down yet.
    Unreachable { node: String, silent_for: Duration },
    /// No node can run the replica, nor `more` others of the service.
    NoNode { slot: Slot, more: u32, nodes: Vec<(String, Unfit)> },
    /// The plan has its largest number of placements; the next one goes on.
    PlanFull { left: u32 },
    /// The replica cannot be started or ended for good. It is not moved: elsewhere it would
    /// probably fail too, and its logs would be lost from sight.
    Failed { slot: Slot, node: String, detail: String },
    /// An update goes on when this new replica is healthy.
    UpdateWaits { slot: Slot, version: u64 },
    /// An update does not go on, because this new replica is not well.
    UpdateFailed { slot: Slot, version: u64, detail: String },
    /// The old replica must end first.
    Ending { slot: Slot, node: String },
}

/// Why a node cannot run a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unfit {
    Down,
    Unreachable,
    NoWorker,
    /// It is to be expelled.
    Leaving,
    PortTaken {
        port: u16,
        by: Slot,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Down => f.write_str("is down"),
            Unfit::Unreachable => f.write_str("is unreachable"),
            Unfit::NoWorker => f.write_str("is no worker"),
            Unfit::Leaving => f.write_str("is to be expelled"),
            Unfit::PortTaken { port, by } => write!(f, "has port {port} taken by {by}"),
        }
    }
}

impl fmt::Display for HeldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeldReason::AwaitsReturn { node, remaining } => {
                write!(f, "waits {} more for {node} to come back", rounded_up(*remaining))
            }
            HeldReason::Unreachable { node, silent_for } => {
                write!(
                    f,
                    "{node} has been silent for {}; its replicas stay until it is marked down",
                    rounded_up(*silent_for)
                )
            }
            HeldReason::NoNode { slot, more, nodes } => no_node(f, slot, *more, nodes),
            HeldReason::PlanFull { left: 1 } => f.write_str("1 more placement waits for the next plan"),
            HeldReason::PlanFull { left } => write!(f, "{left} more placements wait for the next plan"),
            HeldReason::Failed { slot, node, detail } => {
                write!(f, "{slot} failed on {node} and is not moved by itself{}", Detail(detail))
            }
            HeldReason::UpdateWaits { slot, version } => {
                write!(f, "the update waits for {slot} of version {version} to become healthy")
            }
            HeldReason::UpdateFailed { slot, version, detail } => {
                write!(f, "{slot} of version {version} does not become healthy{}", Detail(detail))
            }
            HeldReason::Ending { slot, node } => write!(f, "the update waits for the old {slot} on {node} to end"),
        }
    }
}

fn no_node(f: &mut fmt::Formatter<'_>, slot: &Slot, more: u32, nodes: &[(String, Unfit)]) -> fmt::Result {
    write!(f, "no node can take {slot}")?;
    if more > 0 {
        write!(f, " and {more} more")?;
    }
    f.write_str(": ")?;
    if nodes.is_empty() {
        return f.write_str("the cluster has no node");
    }
    if let Some((_, Unfit::PortTaken { port, .. })) = nodes.first()
        && nodes.iter().all(|(_, unfit)| matches!(unfit, Unfit::PortTaken { port: other, .. } if other == port))
    {
        return write!(f, "fixed port {port} is taken on every node");
    }
    for (at, (node, unfit)) in nodes.iter().enumerate() {
        write!(f, "{}{node} {unfit}", if at == 0 { "" } else { ", " })?;
    }
    Ok(())
}

struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// Whole seconds, so that a count-down ends at 1s and never shows 0s while something is waited for.
fn rounded_up(span: Duration) -> Span {
    Span::from_secs(span.as_secs() + u64::from(span.subsec_nanos() > 0))
}
