//! What a plan leaves undone and why, in words for the operator.
//!
//! Names instead of ids: these texts are read at night. docs/concepts/scheduling.md explains each.

use quorate_model::id::ServiceName;
use quorate_model::resource::{Amount, CpuMillis, MemoryBytes};
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
    /// It runs once, and the last replica may still run there: until that has ended, or its lease has.
    LeaseHeld { node: String },
    /// It runs once and goes on without a quorum, and its node is away: nobody but an operator can know whether it
    /// still runs.
    Kept { node: String },
    /// The plan has its largest number of placements; the next one goes on.
    PlanFull { left: u32 },
    /// The replica cannot be started or ended for good. It is not moved: elsewhere it would
    /// probably fail too, and its logs would be lost from sight.
    Failed { slot: Slot, node: String, detail: String },
    /// An update goes on when this new replica is healthy.
    UpdateWaits { slot: Slot, version: u64 },
    /// An update does not go on, because this new replica is not well.
    UpdateFailed { slot: Slot, version: u64, detail: String },
    /// An update goes on when this new replica has been healthy for long enough.
    UpdateBakes { slot: Slot, version: u64, healthy_for: Span },
    /// The canaries of an update are well, and somebody has to say that it may go on.
    AwaitsPromotion { service: ServiceName, version: u64 },
    /// An update goes no further by itself.
    UpdateHeld { service: ServiceName, version: u64, why: String },
    /// The replica goes from one node to another, and stays until its successor is healthy.
    MoveWaits { slot: Slot, from: String, to: String },
    /// A service that runs on every node has none on this one.
    Misses { node: String, unfit: Unfit },
    /// No copy of an active-passive service is healthy, so none can be the active one.
    NobodyActive,
    /// Some are healthy, and none of them is to be promoted, as their resource agents say.
    NobodyToPromote,
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
    /// Its server is about to end.
    Stopping,
    /// It takes nothing new.
    Cordoned,
    /// It is being emptied.
    Draining,
    /// The replica is to leave it.
    Left,
    /// It does not meet what the service requires.
    Unmet {
        constraint: String,
    },
    /// It has not said yet whether it has what the service needs.
    Unprepared,
    /// It has not what the service needs.
    Lacks {
        what: Vec<String>,
    },
    /// It has not what runs such services.
    NoDriver {
        any_of: &'static [&'static str],
    },
    PortTaken {
        port: u16,
        by: Slot,
    },
    /// Another copy of a service that has one on a node.
    HasCopy {
        copy: Slot,
    },
    /// Less is free than a replica needs.
    NoRoom {
        needs: Amount,
        free: Amount,
    },
    /// It has not said how much it has.
    RoomUnknown,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Down => f.write_str("is down"),
            Unfit::Unreachable => f.write_str("is unreachable"),
            Unfit::NoWorker => f.write_str("is no worker"),
            Unfit::Leaving => f.write_str("is to be expelled"),
            Unfit::Stopping => f.write_str("is being stopped"),
            Unfit::Cordoned => f.write_str("is cordoned"),
            Unfit::Draining => f.write_str("is draining"),
            Unfit::Left => f.write_str("is where it is to go from"),
            Unfit::Unmet { constraint } => write!(f, "does not meet {constraint}"),
            Unfit::Unprepared => f.write_str("has not said yet whether it has what is needed"),
            Unfit::Lacks { what } => write!(f, "lacks {}", what.join(" and ")),
            Unfit::NoDriver { any_of } => write!(f, "has no {}", any_of.join(" and no ")),
            Unfit::PortTaken { port, by } => write!(f, "has port {port} taken by {by}"),
            Unfit::HasCopy { copy } => write!(f, "has {copy} already"),
            Unfit::NoRoom { needs, free } => no_room(f, *needs, *free),
            Unfit::RoomUnknown => f.write_str("has not said what it has room for"),
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
            HeldReason::NobodyToPromote => {
                f.write_str("no copy is active: no agent says that its copy may be promoted")
            }
            HeldReason::NobodyActive => f.write_str("no copy is active: none is healthy"),
            HeldReason::LeaseHeld { node } => {
                write!(f, "{node} may still run it; another starts when that has ended, or its lease has")
            }
            HeldReason::Kept { node } => {
                write!(
                    f,
                    "{node} may still run it, and it goes on without a quorum; if {node} has no power or is destroyed, \
                     say so: quorate node confirm-dead {node}"
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
            HeldReason::UpdateBakes { slot, version, healthy_for } => {
                write!(f, "the update waits until {slot} of version {version} has been healthy for {healthy_for}")
            }
            HeldReason::AwaitsPromotion { service, version } => {
                write!(
                    f,
                    "the canaries of version {version} are well; the others follow at: quorate update continue {service}"
                )
            }
            HeldReason::UpdateHeld { service, version, why } => {
                write!(
                    f,
                    "the update to version {version} is held: {why}; go on: quorate update continue {service}, or give it up: quorate update abort {service}"
                )
            }
            HeldReason::MoveWaits { slot, from, to } => {
                write!(f, "{slot} stays on {from} until its successor on {to} is healthy")
            }
            HeldReason::Misses { node, unfit } => write!(f, "{node} runs none: it {unfit}"),
            HeldReason::Ending { slot, node } => write!(f, "the update waits for the old {slot} on {node} to end"),
        }
    }
}

fn no_room(f: &mut fmt::Formatter<'_>, needs: Amount, free: Amount) -> fmt::Result {
    let (cpu, memory) = (needs.cpu_millis > free.cpu_millis, needs.memory_bytes > free.memory_bytes);
    match (cpu, memory) {
        (true, false) => {
            write!(f, "has {} CPU free and {} is needed", CpuMillis(free.cpu_millis), CpuMillis(needs.cpu_millis))
        }
        (false, true) => {
            let (free, needs) = (MemoryBytes(free.memory_bytes), MemoryBytes(needs.memory_bytes));
            write!(f, "has {free} of memory free and {needs} is needed")
        }
        _ => write!(f, "has {free} free and {needs} is needed"),
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
