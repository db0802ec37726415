//! What may be asked of the cluster's own state machine.
//!
//! JSON inside the log entry: commands are rare, and a person who reads the log should
//! understand them. Variants and fields are only ever added; a removed one keeps its name reserved.

use crate::access::name::{Digest, ExternalName};
use crate::access::{AccessCommand, AccessRefusal};
use crate::autoscale::AutoscaleCommand;
use crate::deployment::Advance;
use crate::drill::{DrillCommand, NoDrill};
use crate::event::Happening;
use crate::external::ExternalCommand;
use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName, TokenId};
use crate::lease::LeaseCommand;
use crate::member::managers::Harm;
use crate::member::{MemberCommand, NotAdmitted};
use crate::reconfigure::Setting;
use crate::spec::SpecDocument;
use crate::state::{Health, NodeIdentity, Role};
use crate::stopped::SwitchCommand;
use crate::time::WallTime;
use crate::trust::{KeyKind, Stage, TrustCommand};
use crate::vip::VipCommand;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A mutation of [`crate::state::ClusterState`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Command {
    /// A node says who it is, at each of its starts. `boot` differs from start to start.
    RegisterNode {
        node: NodeIdentity,
        boot: u64,
    },
    /// The leader's verdict on a node. Ignored when the node's generation has moved on.
    ChangeHealth {
        node: NodeId,
        generation: u64,
        health: Health,
        at: WallTime,
    },
    /// Creates or replaces the services in the document, and replaces their routes.
    ApplySpec {
        document: SpecDocument,
    },
    ScaleService {
        service: ServiceName,
        replicas: u32,
    },
    /// Replaces every replica by another of the same program, one after another as an update does.
    RestartService {
        service: ServiceName,
    },
    /// Exactly these are to be brought to other nodes, one after another; of those that were to be before and are
    /// not here, nothing is moved any more. What has ended meanwhile, and what runs once, is left out.
    Rebalance {
        replicas: BTreeSet<ReplicaId>,
    },
    /// Another copy of an active-passive service is to be the active one: that on this node; `None`: the best one.
    Activate {
        service: ServiceName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeId>,
    },
    RemoveService {
        service: ServiceName,
    },
    /// Back to a version that was there before; `None`: the last stable one but the present.
    RollBackService {
        service: ServiceName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
    },
    /// An update that waits goes on.
    ContinueUpdate {
        service: ServiceName,
    },
    /// An update ends, and what it did is undone.
    AbortUpdate {
        service: ServiceName,
    },
    /// How many copies follow what they have to do.
    Autoscale(AutoscaleCommand),
    /// A service is stopped, or runs again.
    Switch(SwitchCommand),
    /// Several settings at once; see [`crate::reconfigure`].
    Reconfigure {
        settings: Vec<Setting>,
    },
    /// Who belongs to the cluster.
    Member(MemberCommand),
    /// The scheduler's steps, valid only while nothing that it planned on has changed.
    CarryOut {
        expected: LogIndex,
        steps: Vec<Step>,
    },
    /// The end of what a silent holder held.
    Lease(LeaseCommand),
    /// Virtual addresses of gateways.
    Vip(VipCommand),
    /// Systems that services use and that Quorate does not run.
    External(ExternalCommand),
    /// A node is taken away for a while, and what becomes of its services is measured.
    Drill(DrillCommand),
    /// A transition that only was observed.
    Record {
        at: WallTime,
        what: Happening,
    },
    /// Users, sessions, tokens, roles, secrets.
    Access(AccessCommand),
    /// A node has handed a replica a token with this hash; see [`crate::access::service`].
    ServiceToken {
        replica: ReplicaId,
        hash: Digest,
    },
    /// The cluster's own keys.
    Trust(TrustCommand),
    /// Stands in the log for a command that the leader did not let in, for a reason that only it can
    /// see: whoever asked is answered, and the audit has it.
    Withheld {
        why: Refusal,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A new replica, of the service's present version unless another is named.
    Place {
        replica: ReplicaId,
        service: ServiceName,
        ordinal: u32,
        node: NodeId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        /// Of a service that runs once: the epoch that it gets. It stands here for whoever has the entry and not
        /// the leases: the database that refuses older epochs. Absent in plans of earlier versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
    },
    /// A running replica of an active-passive service becomes the active one, under this epoch.
    Promote { replica: ReplicaId, service: ServiceName, epoch: u64 },
    /// The active replica is to give its role back, and runs on as a standby.
    Yield { replica: ReplicaId },
    /// It has done so: its node says that the epoch which it gave back is over.
    Demoted { replica: ReplicaId },
    /// The replica gets nothing new and ends when gateways have finished with it.
    Retire { replica: ReplicaId },
    /// Gateways have finished with it, or the time for that is over: the process may end.
    Release { replica: ReplicaId },
    /// The replica is gone (or its node is, which comes to the same): forget it.
    Forget { replica: ReplicaId },
    /// An update gets further, or no further.
    Advance { service: ServiceName, to: Advance },
}

/// Why a command changed nothing. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Refusal {
    #[error("there is no service `{service}`{}", suggest(.similar.as_ref()))]
    UnknownService { service: ServiceName, similar: Option<ServiceName> },
    #[error("there is no node {node}")]
    UnknownNode { node: NodeId },
    #[error("there is no join token {token}; it was used long ago, or revoked")]
    UnknownToken { token: TokenId },
    #[error("{why}")]
    NotAdmitted { why: NotAdmitted },
    #[error("the plan was made for index {expected} and the cluster has moved on to {actual}")]
    StalePlan { expected: LogIndex, actual: LogIndex },
    #[error("route {host}{path} on {listen} already belongs to service `{owner}`")]
    RouteTaken { listen: String, host: String, path: String, owner: ServiceName },
    #[error("a route names service `{service}`, which neither exists nor is in this file")]
    RouteWithoutService { service: ServiceName },
    #[error("{address} belongs to {owner} already")]
    VipTaken { address: IpAddr, owner: String },
    #[error("there is no VIP {address}")]
    UnknownVip { address: IpAddr },
    #[error("there is no external `{external}`{}", .similar.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default())]
    UnknownExternal { external: ExternalName, similar: Option<ExternalName> },
    #[error("`{service}` uses the external `{external}`")]
    ExternalInUse { external: ExternalName, service: ServiceName },
    #[error("`{service}` runs once, and node {node} may still run it")]
    LeaseHeld { service: ServiceName, node: NodeId },
    #[error("{node} is joined, or was after you looked: it is not dead")]
    NodeLives { node: String },
    #[error("{node} may still run `{service}`, which goes on without a quorum")]
    KeepsService { node: String, service: ServiceName },
    #[error("no drill begins: {why}")]
    NoDrill { why: NoDrill },
    #[error("`{field}` {problem}")]
    Invalid { field: String, problem: String },
    /// Nobody chooses how many replicas it has.
    #[error("no other copy of `{service}` is made the active one: {why}")]
    NotActivated { service: ServiceName, why: String },
    #[error("{service} cannot be scaled: it {why}")]
    NotScalable { service: ServiceName, why: String },
    /// The leader alone chooses how many replicas it has.
    #[error("{service} cannot be scaled by hand: it is autoscaled, from {min} to {max} copies")]
    Autoscaled { service: ServiceName, min: u32, max: u32 },
    /// Nobody can go back to it; `None`: to none at all.
    #[error("{}", no_version(.service, *.version, .known))]
    NoVersion { service: ServiceName, version: Option<u64>, known: Vec<u64> },
    #[error("{service} is not being updated")]
    NoUpdate { service: ServiceName },
    #[error("there is no replica {replica} whose service is granted anything")]
    NothingGranted { replica: ReplicaId },
    #[error("{harm}")]
    Harm { harm: Harm },
    /// Two servers that begin anew at one time could together be too many.
    #[error("{node} is away, or begins anew at this moment, and no second server does meanwhile")]
    OtherAway { node: String },
    #[error("{node} is no manager")]
    NotManager { node: String },
    #[error("a manager must have the role {requires:?} as well in this cluster, and {node} would not")]
    ManagerNeeds { node: String, requires: Role },
    #[error(transparent)]
    Access(AccessRefusal),
    #[error("the {key} key is being changed already, or was a moment ago: number {number}, {stage:?}")]
    KeyChanging { key: KeyKind, number: u32, stage: Stage },
}

fn no_version(service: &ServiceName, version: Option<u64>, known: &[u64]) -> String {
    let Some(version) = version else { return format!("there is no earlier version of {service} that was stable") };
    let known: Vec<String> = known.iter().map(u64::to_string).collect();
    format!("{service} has no version {version}; known: {}", known.join(", "))
}

fn suggest(similar: Option<&ServiceName>) -> String {
    similar.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
