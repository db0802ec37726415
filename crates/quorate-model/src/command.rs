//! What may be asked of the cluster's own state machine.
//!
//! JSON inside the log entry: commands are rare, and a person who reads the log should
//! understand them. Variants and fields are only ever added; a removed one keeps its name reserved.

use crate::access::{AccessCommand, AccessRefusal};
use crate::event::Happening;
use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName, TokenId};
use crate::member::managers::Harm;
use crate::member::{MemberCommand, NotAdmitted};
use crate::spec::SpecDocument;
use crate::state::{Health, NodeIdentity, Role};
use crate::time::WallTime;
use crate::trust::{KeyKind, Stage, TrustCommand};
use serde::{Deserialize, Serialize};

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
    RemoveService {
        service: ServiceName,
    },
    /// Who belongs to the cluster.
    Member(MemberCommand),
    /// The scheduler's steps, valid only while nothing that it planned on has changed.
    CarryOut {
        expected: LogIndex,
        steps: Vec<Step>,
    },
    /// A transition that only was observed.
    Record {
        at: WallTime,
        what: Happening,
    },
    /// Users, sessions, tokens, roles, secrets.
    Access(AccessCommand),
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
    /// A new replica of the service's present version.
    Place { replica: ReplicaId, service: ServiceName, ordinal: u32, node: NodeId },
    /// The replica gets nothing new and ends when gateways have finished with it.
    Retire { replica: ReplicaId },
    /// Gateways have finished with it, or the time for that is over: the process may end.
    Release { replica: ReplicaId },
    /// The replica is gone (or its node is, which comes to the same): forget it.
    Forget { replica: ReplicaId },
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
    #[error("`{field}` {problem}")]
    Invalid { field: String, problem: String },
    #[error("{harm}")]
    Harm { harm: Harm },
    #[error("{node} is no manager")]
    NotManager { node: String },
    #[error("a manager must have the role {requires:?} as well in this cluster, and {node} would not")]
    ManagerNeeds { node: String, requires: Role },
    #[error(transparent)]
    Access(AccessRefusal),
    #[error("the {key} key is being changed already, or was a moment ago: number {number}, {stage:?}")]
    KeyChanging { key: KeyKind, number: u32, stage: Stage },
}

fn suggest(similar: Option<&ServiceName>) -> String {
    similar.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
