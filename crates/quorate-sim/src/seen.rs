//! What invariants are shown.

use crate::agent::Single;
use crate::keys::Keys;
use crate::machine::Durable;
use quorate_model::entry::Proposal;
use quorate_model::id::{LogIndex, NodeId, RequestId, Term};
use quorate_model::observed::ReplicaStatus;
use quorate_model::state::ClusterState;
use quorate_model::time::Timestamp;
use quorate_node::consensus::{Append, CommittedEntry};
use quorate_node::{Configuration, Node};
use quorate_store::databases::AppliedEntry;

/// Something that just happened on a machine (numbered from 0).
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    /// A node's process started on what its disk held, which had promised this before. The runs of
    /// terms are those of the log's entries behind `before`.
    Started {
        machine: usize,
        state: &'a ClusterState,
        promised: Durable,
        found: Durable,
        runs: &'a [(LogIndex, Term)],
        before: LogIndex,
        /// Up to where its database knows the configuration; may be above what is applied everywhere.
        configured: LogIndex,
    },
    /// Consensus wants this written.
    Appends { machine: usize, append: &'a Append },
    /// The log wrote these entries.
    Written { machine: usize, entries: &'a [quorate_store::log::LogEntry] },
    /// The log said that all it wrote is durable, or the databases said so. So many sectors of their
    /// files are not on the device all the same.
    CalledDurable { machine: usize, what: Durably, unsynced: u64 },
    /// A node took a turn.
    Turned { machine: usize, node: &'a Node },
    /// A node's turn is over and its effects are on their way: its configuration is in force.
    Configured { machine: usize, node: &'a Node },
    /// A node decided to put a snapshot in force.
    Installs { machine: usize, configured: LogIndex },
    /// What the members prove themselves with changed on one of them.
    Keys { members: &'a [(usize, Keys)] },
    /// Consensus gave entries out as committed.
    Committed { machine: usize, entries: &'a [CommittedEntry] },
    /// An entry was applied to the databases of a machine, whose state is as after its whole batch.
    Applied { machine: usize, entry: &'a AppliedEntry },
    /// A batch was applied.
    BatchApplied { machine: usize, state: &'a ClusterState },
    /// The log was shortened and begins here now; the databases hold everything up to `durable`.
    Shortened { machine: usize, first: LogIndex, durable: LogIndex },
    /// A node tells a peer that its log holds everything up to here in this term.
    Acknowledged { machine: usize, index: u64, durable: u64 },
    /// A node tells a peer that it votes for this one, by its consensus number.
    Voted { machine: usize, term: u64, candidate: u64, durable: Durable },
    /// A client was told that its mutation is done.
    Answered { request: RequestId, index: LogIndex, proposal: &'a Proposal },
    /// A database came in force on a machine.
    Installed { machine: usize, index: LogIndex },
    /// An agent decided what its node is to run.
    Assigned { machine: usize, revision: LogIndex },
    /// A machine's agent says what it runs.
    Reported { statuses: &'a [ReplicaStatus] },
    /// What runs on a machine of services that run once may have changed.
    Singles { machine: usize, running: &'a [Single] },
    /// The cluster has healed and is quiet: what every living machine holds.
    Healed { machines: &'a [Held] },
}

/// What says that it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durably {
    Log,
    Databases,
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
    /// Who votes, as kept in its databases.
    pub configuration: Configuration,
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
