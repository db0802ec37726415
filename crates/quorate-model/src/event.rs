//! What happened, for people: the cluster's own record of transitions.

use crate::access::name::ExternalName;
use crate::deployment::Stage as UpdateStage;
use crate::drill::Verdict;
use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName, Term};
use crate::time::{Span, WallTime};
use crate::trust::{KeyKind, Stage};
use crate::vip::VipAddress;
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
    /// Its server is about to end: what runs once there is brought elsewhere first.
    NodeHandsOver {
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
    /// It takes replicas again.
    NodeOpened {
        node: NodeId,
    },
    /// It takes no more replicas; those that it has stay.
    NodeCordoned {
        node: NodeId,
    },
    /// It takes no more replicas, and those that it has are brought elsewhere.
    NodeDraining {
        node: NodeId,
    },
    /// So many replicas are to be brought to other nodes; 0: what was to be is not any more.
    Rebalancing {
        replicas: u32,
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
    /// Another number of copies is right for what they have to do.
    ServiceAutoscaled {
        service: ServiceName,
        from: u32,
        to: u32,
        why: String,
    },
    /// Somebody switched autoscaling, or changed what it goes by.
    AutoscaleSet {
        service: ServiceName,
        on: bool,
        min: u32,
        max: u32,
    },
    /// Its replicas are replaced one after another.
    ServiceRestarted {
        service: ServiceName,
    },
    ServiceRemoved {
        service: ServiceName,
    },
    /// It keeps what it is to be, and none of it runs any more.
    ServiceStopped {
        service: ServiceName,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        by_schedule: bool,
    },
    /// It runs again.
    ServiceStarted {
        service: ServiceName,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        by_schedule: bool,
    },
    /// An update is further, or goes back.
    UpdateStage {
        service: ServiceName,
        version: u64,
        from: Option<u64>,
        stage: UpdateStage,
        /// Why it goes back.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// An update goes no further by itself.
    UpdateHeld {
        service: ServiceName,
        version: u64,
        why: String,
    },
    UpdateResumed {
        service: ServiceName,
        version: u64,
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
    /// Whoever ran a service that runs once can do so no more: another may.
    LeaseRaised {
        service: ServiceName,
        /// Which held it.
        node: NodeId,
        /// Which is over.
        epoch: u64,
    },
    /// A copy of an active-passive service becomes the active one.
    Promoted {
        service: ServiceName,
        node: NodeId,
        epoch: u64,
    },
    /// The active copy gave its role back, and is a standby.
    Demoted {
        service: ServiceName,
        node: NodeId,
        epoch: u64,
    },
    /// Somebody wants another copy to be the active one: that on this node, or the best one.
    ActivationAsked {
        service: ServiceName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeId>,
    },
    /// An operator said that the node is dead: what it would have gone on with may start elsewhere.
    DeathConfirmed {
        node: NodeId,
    },
    /// What ran once on a node that fell silent runs elsewhere, so long after that node was last heard.
    FailedOver {
        service: ServiceName,
        from: NodeId,
        to: NodeId,
        took: Span,
    },
    /// The failover time of the cluster was set; `None`: to its default.
    FailoverSet {
        failover: Option<Span>,
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
    /// Gateways hold this address from now on.
    VipAdded {
        address: VipAddress,
    },
    VipRemoved {
        address: VipAddress,
    },
    /// An external was added or changed. `unchecked`: though not every node could log in there.
    ExternalSet {
        external: ExternalName,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unchecked: bool,
    },
    ExternalRemoved {
        external: ExternalName,
    },
    /// A node is taken away on purpose, for a while.
    DrillBegan {
        drill: u64,
        node: NodeId,
        away: Span,
    },
    /// It is known how long a service had fewer copies than it wants.
    DrillMeasured {
        drill: u64,
        service: ServiceName,
        /// `None`: until the node was back, or for longer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        took: Option<Span>,
        limit: Span,
        verdict: Verdict,
    },
    /// How many services came back within their limit, later, and not before the node did.
    DrillEnded {
        drill: u64,
        node: NodeId,
        ok: u32,
        late: u32,
        not_recovered: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        returned: Option<Span>,
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
