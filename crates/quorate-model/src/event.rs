//! What happened, for people: the cluster's own record of transitions.

use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName, Term};
use crate::time::WallTime;
use crate::trust::{KeyKind, Stage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One line of the cluster's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The log entry that recorded it.
    pub index: LogIndex,
    /// When it was observed, by the clock of the node that observed it. This may be earlier than
    /// the entry that records it.
    pub at: WallTime,
    #[serde(flatten)]
    pub what: Happening,
}

/// What an event tells. In JSON the tag is `kind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Happening {
    NodeJoined {
        node: NodeId,
    },
    NodeDown {
        node: NodeId,
    },
    NodeReturned {
        node: NodeId,
    },
    /// It stopped cleanly, and its seat is free.
    NodeLeft {
        node: NodeId,
    },
    /// It was removed for ever. Its record is gone, so its name is told here.
    NodeExpelled {
        node: NodeId,
        name: String,
    },
    /// Its manager role was stopped.
    ManagerStopped {
        node: NodeId,
    },
    ManagerStarted {
        node: NodeId,
    },
    /// Somebody wants its server to begin anew.
    RestartAsked {
        node: NodeId,
    },
    /// The cluster went on with this node alone, after the majority of its managers was lost for ever.
    Recovered {
        node: NodeId,
        incarnation: u64,
    },
    /// High availability was switched.
    HaSet {
        on: bool,
    },
    /// `None`: any number of nodes.
    QuotaSet {
        nodes: Option<u32>,
    },
    LeaderElected {
        node: NodeId,
        term: Term,
    },
    ServiceApplied {
        service: ServiceName,
        replicas: u32,
    },
    ServiceScaled {
        service: ServiceName,
        from: u32,
        to: u32,
    },
    ServiceRemoved {
        service: ServiceName,
    },
    ReplicaPlaced {
        service: ServiceName,
        replica: ReplicaId,
        ordinal: u32,
        node: NodeId,
    },
    ReplicaRetired {
        service: ServiceName,
        replica: ReplicaId,
        ordinal: u32,
        node: NodeId,
    },
    /// All wanted copies are healthy again after some were not.
    ServiceHealthy {
        service: ServiceName,
        replicas: u32,
    },
    /// Fewer copies are healthy than wanted.
    ServiceDegraded {
        service: ServiceName,
        healthy: u32,
        wanted: u32,
    },
    /// A key of the cluster is being changed, or has been. Nodes that were away too long are behind.
    KeyStage {
        key: KeyKind,
        number: u32,
        stage: Stage,
        #[serde(default)]
        behind: BTreeSet<NodeId>,
    },
    /// Somebody showed a certificate on the node link and was not let in.
    PeerRefused {
        /// The node that refused.
        node: NodeId,
        /// The address it came from.
        from: String,
        why: String,
        /// How many others were refused since the last time that one was written down.
        #[serde(default)]
        unwritten: u64,
    },
    /// Two nodes computed different contents from the same log. One of them is wrong.
    Diverged {
        node: NodeId,
        database: String,
        at_index: LogIndex,
    },
}
