//! Who is in the cluster and who answers: two ways to know, and what each may lead to.
//!
//! | | [`LinkState`] | [`swim::Gossip`] |
//! |---|---|---|
//! | learns from | the links between the nodes, and what voters report of theirs | probes and rumors in sealed datagrams ([`seal`]) |
//! | costs a node | as much as there are nodes | the same in a cluster of any size |
//! | says | since when a majority of the voters has not heard a node | alive, unreachable, dead, left |
//! | leads to | `down`, by the leader's command, and so to services being moved | what people and gateways are shown |
//!
//! A node may be called silent only by a majority of the voters: one that merely lost its own cable
//! would otherwise mark everybody else down. Gossip asks no majority, works without any leader and may
//! be wrong for a moment, so nothing is decided on it.
//!
//! Opinions and rumors live in memory. The leader turns the majority's opinion into a command, and
//! services move on that alone.
//!
//! # Invariants
//! - No clock, no I/O: time comes with each input.
//! - The node itself is always heard.
//! - A voter that is itself unheard, or whose report is older than [`REPORT_LIFETIME`], has no say.
//! - Gossip never makes a node `down`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod lifeguard;
mod link_state;
pub mod seal;
pub mod swim;
mod timers;

pub use link_state::LinkState;
pub use timers::{Attempt, JoinSchedule, Timers};

use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For how long a report counts. Nodes report every second, so this forgives two that were lost.
pub const REPORT_LIFETIME: Duration = Duration::from_secs(3);

/// Something that was learned about the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A peer became known, and is not heard yet.
    Known(NodeId),
    /// A link to the peer is open and passed its handshake.
    LinkUp(NodeId),
    /// The last link to the peer has ended.
    LinkDown(NodeId),
    /// What a peer says it hears. It opens no link: a report may come through another node.
    Report { from: NodeId, reachable: Vec<NodeId> },
    /// The peer is not of the cluster any more.
    Removed(NodeId),
}

/// What this node thinks of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opinion {
    Heard,
    /// Not since this moment.
    Unheard {
        since: Timestamp,
    },
    /// Nobody has told of such a node.
    Unknown,
}

/// Collects opinions about nodes.
pub trait Membership {
    /// Feeds one input. `now` never runs backwards.
    fn step(&mut self, now: Timestamp, input: Input);

    /// What this node itself thinks of `node`.
    fn opinion(&self, node: NodeId) -> Opinion;

    /// This node's opinion of every node it knows, itself included.
    fn view(&self) -> BTreeMap<NodeId, Opinion>;

    /// For how long a majority of `voters` has not heard `node`; `None` while there is none.
    ///
    /// The moment counts at which the last voter needed for the majority stopped hearing it.
    fn unheard_by_majority(&self, node: NodeId, voters: &BTreeSet<NodeId>, now: Timestamp) -> Option<Duration>;
}
