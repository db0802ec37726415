//! What invariants are shown.

use quorate_model::entry::Proposal;
use quorate_model::id::{LogIndex, NodeId, RequestId};
use quorate_model::state::ClusterState;
use quorate_model::time::Timestamp;
use quorate_node::Node;
use quorate_node::consensus::LogEntry;
use quorate_store::databases::AppliedEntry;

/// Something that just happened on a machine (numbered from 0).
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    /// A node's process started on what its disk held.
    Started { machine: usize, state: &'a ClusterState },
    /// A node took a turn.
    Turned { machine: usize, node: &'a Node },
    /// Consensus gave entries out as committed.
    Committed { machine: usize, entries: &'a [LogEntry] },
    /// An entry was applied to the databases of a machine, whose state is as after its whole batch.
    Applied { machine: usize, entry: &'a AppliedEntry },
    /// A batch was applied.
    BatchApplied { machine: usize, state: &'a ClusterState },
    /// A node tells a peer that its log holds everything up to here in this term.
    Acknowledged { machine: usize, index: u64, durable: u64 },
    /// A node tells a peer that it voted for it.
    Voted { machine: usize, term: u64, durable: u64 },
    /// A client was told that its mutation is done.
    Answered { request: RequestId, index: LogIndex, proposal: &'a Proposal },
    /// A database came in force on a machine.
    Installed { machine: usize },
    /// An agent decided what its node is to run.
    Assigned { machine: usize, revision: LogIndex },
    /// The cluster has healed and is quiet: what every living machine holds.
    Healed { machines: &'a [Held] },
}

/// What one machine holds in the end.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub machine: usize,
    pub node: NodeId,
    pub applied: LogIndex,
    pub state: ClusterState,
    /// Every user table, row by row.
    pub tables: String,
    pub voters: Vec<u8>,
    /// Replicas that run on it.
    pub running: Vec<quorate_model::id::ReplicaId>,
    /// Comparisons of digests that its node made.
    pub digests_compared: u64,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
    pub at: Timestamp,
}
