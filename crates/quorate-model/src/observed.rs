//! What is seen, not decided: it lives in memory and is never written to the log.

use crate::access::name::Digest;
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::need::Prepared;
use crate::resource::{Amount, Usage};
use crate::time::WallTime;
use crate::traffic::Traffic;
use crate::trust::{KeyKind, Stage};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// What the replicas of a node tell of themselves, where their number goes by that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// In thousandths.
    pub numbers: BTreeMap<ReplicaId, u64>,
    /// Of services with a replica that tells nothing: why, for people.
    pub untold: BTreeMap<ServiceName, String>,
}

/// Life of a replica's process as its node sees it.
///
/// ```text
/// Starting ──first check passed──▶ Healthy ◀──▶ Unhealthy
///    ▲  │ exit                        │ exit        │ exit
///    │  └──────────▶ BackingOff ◀─────┴─────────────┘
///    └─ pause over ──────┘
/// any ──retired──▶ Draining ──▶ Stopping ──▶ Stopped
/// any ──exit, and it is not to be restarted──▶ Failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// The process runs and no check has passed yet.
    Starting,
    /// Also a copy of an active-passive service that stands by cold, when nothing is missing to start it.
    Healthy,
    Unhealthy,
    /// The process ended and will be started again.
    BackingOff,
    /// Still serving what gateways sent; gets nothing new.
    Draining,
    Stopping,
    Stopped,
    /// It cannot be started, or ended and is not to be restarted; see the detail.
    Failed,
}

impl ReplicaState {
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, ReplicaState::Stopped)
    }
}

/// What ends a replica's processes when its lease ends, whatever has become of the agent and the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fencing {
    /// They are in a PID namespace of their own, which the kernel ends as a whole.
    PidNamespace,
    /// Its main process ends in time. One that left its process group may live on until the agent or the
    /// shim finds it, so nothing is claimed.
    ProcessGroup,
    /// Its processes are in a PID namespace of their own, but what else its agent makes (an address, a device) is
    /// taken away by the agent alone.
    Agent,
    /// It belongs to another supervisor (systemd, Docker), which is asked to end it before its lease does.
    Asked,
}

impl Fencing {
    /// Whether nothing of the replica can outlive its lease.
    #[must_use]
    pub fn is_claimed(self) -> bool {
        self == Fencing::PidNamespace
    }
}

impl fmt::Display for Fencing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fencing::PidNamespace => "fenced by a PID namespace",
            Fencing::ProcessGroup => "not fenced: only its process group ends with its lease",
            Fencing::Agent => "not fenced: what its agent makes beside processes may outlive its lease",
            Fencing::Asked => "not fenced: it is asked to end before its lease does, and no more",
        })
    }
}

/// What a copy of an active-passive service is at the moment.
///
/// ```text
/// Standby ──lease held──▶ Promoting ──▶ Active ──given back, or lost──▶ Demoting ──▶ Standby
///    ▲                        │                                            │
///    └─── killed ◀── it failed, or was late ◀──────────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    Standby,
    Promoting,
    Active,
    Demoting,
}

/// The part of a copy, and what its node promises about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Casting {
    pub part: Part,
    /// Under which it is more than a standby; 0 of a standby.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    /// This epoch was to be given back, and is: nothing here is active under it, or will be. 0: none was.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub yielded: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a node says about one of its replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    pub replica: ReplicaId,
    pub service: ServiceName,
    pub state: ReplicaState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Chosen ports by name.
    #[serde(default)]
    pub ports: BTreeMap<String, u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<WallTime>,
    /// How often the process was started again after it ended.
    #[serde(default)]
    pub restarts: u32,
    /// The last exit or the reason of a failure, for people. Empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Directory of its logs on its node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log_dir: String,
    /// Of a replica that runs under a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fencing: Option<Fencing>,
    /// Of a copy of an active-passive service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub casting: Option<Casting>,
}

/// Settings of a node's file that wait for its server to begin anew.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pending {
    /// Like `log.keep_mib 64 → 4`, in the order of the table of settings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// What is wrong with the file: a server that began anew now would not come back. Empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mistake: String,
}

impl Pending {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.mistake.is_empty()
    }
}

/// What one node says about itself, sent to every manager when it changes and each second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    pub node: NodeId,
    /// Grows with each report of one run of the node; a lower one is old news.
    pub sequence: u64,
    pub replicas: Vec<ReplicaStatus>,
    /// Peers whose link is open.
    pub reachable: Vec<NodeId>,
    /// Gateways that take their routes from this node.
    #[serde(default)]
    pub gateways: Vec<GatewayReport>,
    /// Of the program that it runs; empty from one that did not say it yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The directory on it with its server's own log; empty from one that has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log_dir: String,
    /// What its file of settings says and is not in force before its server begins anew.
    #[serde(default, skip_serializing_if = "Pending::is_empty")]
    pub pending: Pending,
    /// All that replicas may have of it together; absent from one that did not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Amount>,
    /// What its replicas use, as far as it is measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub usage: BTreeMap<ReplicaId, Usage>,
    /// What its replicas tell of themselves, in thousandths, where their number goes by that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scraped: BTreeMap<ReplicaId, u64>,
    /// Of services whose number goes by that, with a replica here that tells nothing: why, for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub untold: BTreeMap<ServiceName, String>,
    /// What it proves itself with; absent until it has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustReport>,
    /// What it has for running services: `podman`, `systemd` and so on; see [`ServiceSpec::driven_by`]. Absent from
    /// one that did not say it. Words, and no enum: a newer node may say more.
    ///
    /// [`ServiceSpec::driven_by`]: crate::spec::ServiceSpec::driven_by
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drivers: Option<BTreeSet<String>>,
    /// Of the services that it may run and that need something, those that it has looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prepared: Vec<Prepared>,
}

/// What a node proves itself with, and how far it is with the cluster's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustReport {
    /// The public key of its certificate (DER, SubjectPublicKeyInfo) as base64: what is sealed for it
    /// is sealed with this.
    pub public: String,
    /// SHA-256 of its certificate.
    pub certificate: Digest,
    /// Fingerprint of the authority that made it.
    pub authority: Digest,
    pub from: WallTime,
    pub until: WallTime,
    /// The newest key of each kind that it has, and the last stage that it has carried out, durably.
    /// Number 0: it has none.
    pub keys: BTreeMap<KeyKind, KeyStep>,
}

/// Ordered: more is further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyStep {
    pub number: u32,
    pub stage: Stage,
}

/// What a gateway says to the manager that feeds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayReport {
    /// Name that the gateway gave itself; one gateway, one name.
    pub gateway: String,
    /// URL under which clients reach it.
    pub url: String,
    /// The revision of the routing table that its next request will use.
    pub revision: u64,
    /// Replicas with requests in flight that the table no longer offers for new ones.
    #[serde(default)]
    pub busy: Vec<ReplicaId>,
    #[serde(default)]
    pub requests: u64,
    /// Requests that the gateway itself could not get answered (502, 503, 504).
    #[serde(default)]
    pub failed: u64,
    /// Virtual addresses that it may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<VipReport>,
    /// What it has had to do for the services whose number of copies goes by that.
    #[serde(default, skip_serializing_if = "Traffic::is_nothing")]
    pub traffic: Traffic,
}

/// What a gateway has to do with a virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipReport {
    pub address: IpAddr,
    pub state: VipState,
    /// Of the holder; 0 of others.
    #[serde(default)]
    pub epoch: u64,
    /// Why it could not serve there, or who else says that it has the address. Empty: nothing is wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VipState {
    /// Its server answers there.
    Holding,
    /// It would take the address.
    Standby,
    /// It could not serve there.
    Unfit,
}
