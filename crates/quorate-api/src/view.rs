//! What people and scripts see: the shapes of the API's answers, of `-o json` and of the console.
//!
//! A view joins what was decided ([`quorate_model::state`]) with what is observed
//! ([`quorate_model::observed`]). It is made in one place (the shell), served here and read by the
//! CLI and the console. Fields are only ever added.

use crate::placement::Availability;
use crate::updates::DeploymentView;
use crate::vips::VipView;
use quorate_model::id::{ClusterId, LogIndex, NodeId, ReplicaId, ServiceName, TokenId};
use quorate_model::resource::{Amount, Usage};
use quorate_model::spec::{Driver, Mode, RouteSpec, ServiceSpec};
use quorate_model::state::Role;
use quorate_model::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The cluster at one moment, as one node sees it. `GET /v1/status`, and each `overview` event of
/// `GET /v1/stream`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Overview {
    /// Grows with every change on the node that answers; compare only answers of one node.
    pub sequence: u64,
    /// The node that answers.
    pub answered_by: String,
    pub cluster: ClusterView,
    pub nodes: Vec<NodeView>,
    pub services: Vec<ServiceView>,
    pub gateways: Vec<GatewayView>,
    /// Virtual addresses of gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<VipView>,
    /// The newest 50, newest first.
    pub events: Vec<EventView>,
    /// The node that says that the one that answers was removed from the cluster, as long as it hears no
    /// leader. What it shows is then as old as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expelled_by: Option<String>,
    /// Nodes that do not believe the certificate of the one that answers, or whose certificates it does not
    /// believe, when they are so many that it can hear no leader any more: the CA was rotated while it was
    /// away. What it shows is then as old as that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<String>,
    /// Under which address the node that answers is reached, if it had to be chosen, and why that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<AnnouncedView>,
}

/// An address that was chosen when the node was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AnnouncedView {
    /// HOST:PORT of the API.
    pub api: String,
    /// HOST:PORT of the node link.
    pub link: String,
    /// A sentence for people.
    pub because: String,
}

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClusterView {
    #[schema(value_type = uuid::Uuid)]
    pub id: ClusterId,
    pub name: String,
    pub health: ClusterHealth,
    /// One sentence for people: what is wrong, or that nothing is.
    pub summary: String,
    /// Name of the Active node; absent while there is none.
    pub leader: Option<String>,
    pub term: u64,
    /// Whether high availability is on. Off, the one node is alone: nothing about managers is shown.
    #[serde(default = "on")]
    pub ha: bool,
    /// Absent while `ha` is false.
    #[serde(flatten)]
    pub electors: Option<ElectorsView>,
    /// The failover time that was decided for the cluster; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub failover: Option<Span>,
    /// 1, and one more for each time that the cluster was recovered from the loss of its majority.
    #[serde(default)]
    pub incarnation: u64,
    /// What this node has applied.
    #[schema(value_type = u64)]
    pub applied: LogIndex,
    /// How often, since its start, this node compared its databases' digests with another node's
    /// at one index. A difference is an event, `diverged`; 0 means that nothing was checked yet.
    #[serde(default)]
    pub digests_compared: u64,
    pub version: String,
}

/// What an older node does not say.
fn on() -> bool {
    true
}

/// Those who decide, and how many of them may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ElectorsView {
    #[schema(required = false)]
    pub voters: u32,
    /// Voters that answer.
    #[schema(required = false)]
    pub voters_joined: u32,
    /// How many more voters may be lost before writes stop.
    #[schema(required = false)]
    pub can_lose: u32,
    /// The same once all that vote are up.
    #[serde(default)]
    pub can_lose_when_up: u32,
    /// While the voters change, who decides meanwhile, for people.
    #[serde(default)]
    pub voters_change: Option<String>,
    /// What the Active node does about the voters next, and why. A passive one says what it expects.
    #[serde(default)]
    pub voters_next: Option<VotersNext>,
    /// Managers are only on nodes that have this role too; `null`: on any.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub manager_requires: Option<Role>,
}

/// What happens to the voters next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VotersNext {
    pub step: VotersStep,
    /// For people.
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VotersStep {
    /// They change.
    Change,
    /// Another node leads first.
    HandOver,
    /// They should change and cannot now.
    Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterHealth {
    Healthy,
    /// It works, but something needs a look: a node is away or a service has too few replicas.
    Degraded,
    /// No leader: reads are local and old, writes wait.
    NoQuorum,
}

/// A node. `quorate node list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeView {
    #[schema(value_type = uuid::Uuid)]
    pub id: NodeId,
    pub name: String,
    pub state: NodeState,
    /// A manager's role in consensus; absent for other nodes, and while high availability is off.
    pub mode: Option<NodeMode>,
    #[schema(value_type = Vec<String>)]
    pub roles: BTreeSet<Role>,
    /// URL of its API.
    pub api: String,
    /// HOST:PORT of its node link.
    pub link: String,
    pub generation: u64,
    /// Since when it is in its state.
    #[schema(value_type = u64)]
    pub since: WallTime,
    /// Entries that it has not applied yet, as far as known; absent while high availability is off.
    pub lag: Option<u64>,
    /// Replicas that run on it.
    pub replicas: u32,
    /// Another name for people.
    #[serde(default)]
    pub alias: Option<String>,
    /// Whether a manager votes; absent for other nodes, and while high availability is off.
    #[serde(default)]
    pub standing: Option<Standing>,
    /// How many microseconds its clock was ahead of the answering node's when it was heard last,
    /// less the time that its word took. Absent for the answering node itself and for one that is
    /// not heard.
    #[serde(default)]
    pub clock_ahead_us: Option<i64>,
    /// What it has applied, as it said itself; absent while it is not heard.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub applied: Option<LogIndex>,
    /// The version of Quorate that it runs, or ran when it was heard last.
    #[serde(default)]
    pub version: Option<String>,
    /// What an operator says of it, for services to be placed by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What resource agents there say of it, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What it takes of services.
    #[serde(default)]
    pub availability: Availability,
    /// While it is draining: after this, replicas that found no other place are stopped. Absent: they stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub drain_deadline: Option<Span>,
    /// The directory on it with its server's own log, as it said when it was heard last.
    #[serde(default)]
    pub log_dir: Option<String>,
    /// What its file of settings says and is not in force before its server begins anew; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingView>,
    /// What it has for replicas together, `cpu_millis` and `memory_bytes`, as it said last. Absent for one that is
    /// no worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub capacity: Option<Amount>,
    /// What of that is set aside for its replicas.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub reserved: Amount,
    /// What it has for running services, as it said last: some of `process`, `podman`, `docker`, `ocf`, `systemd`,
    /// `vip`. Absent for one that is no worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub drivers: Option<BTreeSet<String>>,
}

/// Settings of a node's file that wait for its server to begin anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PendingView {
    /// Like `log.keep_mib 64 → 4`.
    pub changes: Vec<String>,
    /// What is wrong with the file: a server that began anew now would not come back. Empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mistake: String,
}

/// A manager's part in decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its vote counts.
    Voter,
    /// It holds everything that voters hold, and takes the place of one that is lost.
    Standby,
    /// Its manager role was stopped: it holds everything and serves nobody as a manager.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    Joined,
    /// The node that answers does not hear it; nothing has been decided.
    Unreachable,
    Down,
    /// It left: it was stopped cleanly and may come back.
    Removed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMode {
    Active,
    Passive,
}

/// A service. `quorate service show NAME -o json` is one of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceView {
    #[schema(value_type = String)]
    pub name: ServiceName,
    #[schema(value_type = String)]
    pub mode: Mode,
    #[schema(value_type = String)]
    pub driver: Driver,
    pub want: u32,
    pub healthy: u32,
    pub version: u64,
    #[schema(value_type = Vec<Object>)]
    pub routes: Vec<RouteSpec>,
    pub replicas: Vec<ReplicaView>,
    /// What the scheduler does not do, and why, for people.
    pub held: Vec<String>,
    /// Who may run it; absent unless it runs once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseView>,
    /// Who stopped it; absent: it is to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StoppedView>,
    /// When its schedule starts it next, if it is stopped, or stops it; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<MomentView>,
    /// The newest update; absent for a service that is older than updates are known of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentView>,
    #[schema(value_type = Object)]
    pub spec: ServiceSpec,
}

/// Since when a service is stopped, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StoppedView {
    #[schema(value_type = u64)]
    pub since: WallTime,
    /// Its schedule stopped it; false: somebody did.
    pub by_schedule: bool,
    /// Who did it by hand, where somebody is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A moment of a service's schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MomentView {
    #[schema(value_type = u64)]
    pub at: WallTime,
    /// False: it is stopped then.
    pub starts: bool,
}

/// Who may run what runs once, and how long moving it may take and took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeaseView {
    /// The failover time that holds for the next holder.
    #[schema(value_type = String)]
    pub failover: Span,
    /// Name of the node that holds the lease; absent while nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Of the holder, or of the last one; 0 before the first.
    pub epoch: u64,
    /// The holder goes on without a quorum: nobody else starts it before an operator says that its node is dead.
    #[serde(default)]
    pub keeps: bool,
    /// The lease is being taken away: its holder was silent for too long.
    #[serde(default)]
    pub fenced: bool,
    /// The last failover that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<FailoverView>,
}

/// A failover as the leader measured it: from when the old node was last heard until the new copy ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailoverView {
    /// Name of the node that was lost.
    pub from: String,
    /// Name of the node that took over.
    pub to: String,
    #[schema(value_type = String)]
    pub took: Span,
    #[schema(value_type = u64)]
    pub at: WallTime,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReplicaView {
    #[schema(value_type = uuid::Uuid)]
    pub id: ReplicaId,
    pub ordinal: u32,
    /// Name of its node.
    pub node: String,
    #[schema(value_type = uuid::Uuid)]
    pub node_id: NodeId,
    /// `starting`, `healthy`, `unhealthy`, `backing-off`, `draining`, `stopping`, `stopped`,
    /// `failed`; `pending` before its node has said anything; `unknown` while its node is away.
    pub state: String,
    /// Of a copy of an active-passive service: `standby`, `promoting`, `active` or `demoting`; absent of others, and
    /// while its node is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub pid: Option<u32>,
    /// HOST:PORT of each port by name.
    pub addresses: BTreeMap<String, String>,
    pub version: u64,
    pub restarts: u32,
    #[schema(value_type = Option<u64>)]
    pub started_at: Option<WallTime>,
    pub detail: String,
    pub log_dir: String,
    /// What it uses, as measured in the last seconds: `cpu_millis`, `memory_bytes`, and `pressure` with the shares of
    /// time, in thousandths, in which something of it waited. Absent where nothing measures it, and at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub usage: Option<Usage>,
}

/// A gateway that some manager feeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GatewayView {
    pub name: String,
    pub url: String,
    /// Name of the manager that feeds it.
    pub fed_by: String,
    pub revision: u64,
    pub requests: u64,
    pub failed: u64,
}

/// An event with its sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventView {
    #[schema(value_type = u64)]
    pub index: LogIndex,
    #[schema(value_type = u64)]
    pub at: WallTime,
    /// The kind of [`quorate_model::event::Happening`].
    pub kind: String,
    pub text: String,
    /// The node it is about, by name.
    pub node: Option<String>,
    #[schema(value_type = Option<String>)]
    pub service: Option<ServiceName>,
}

/// What is decided about members besides the nodes themselves.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MembersView {
    /// Join tokens that wait, and those that were used or expired less than a day ago.
    pub tokens: Vec<JoinTokenView>,
    pub quota: QuotaView,
    /// What this node has applied.
    #[schema(value_type = u64)]
    pub applied: LogIndex,
}

/// A permission to join. Its secret is shown once, by the answer that made it, and never here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinTokenView {
    #[schema(value_type = uuid::Uuid)]
    pub id: TokenId,
    /// What the server that uses it becomes.
    #[schema(value_type = String)]
    pub role: Role,
    /// Only a server of this name may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[schema(value_type = u64)]
    pub created: WallTime,
    #[schema(value_type = u64)]
    pub expires: WallTime,
    /// Name of the node that used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub used_at: Option<WallTime>,
}

/// How many nodes may run, and how many do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QuotaView {
    /// Workers and gateways; a node that is both counts once. `null`: any number.
    pub nodes: Option<u32>,
    /// From then on no node is admitted; those that run go on.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub expires: Option<WallTime>,
    /// Nodes that have a place now.
    pub used: u32,
}

/// What every failed request answers, with the HTTP status that fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// Stable, for programs: `unknown-service`, `overloaded`, …
    pub code: String,
    /// What went wrong, for people.
    pub message: String,
    /// What to do about it, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
}
