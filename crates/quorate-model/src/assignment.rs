//! What one node is to run.

use crate::external::External;
use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use crate::spec::{Scrape, ServiceSpec};
use crate::time::Span;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that one node is to run, complete, as of a revision.
///
/// An agent obeys the newest revision that it has seen, over restarts too: a replica that is not
/// in it is stopped, an older assignment is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub node: NodeId,
    /// The log index of the newest decision in it.
    pub revision: LogIndex,
    pub replicas: Vec<AssignedReplica>,
    /// The number that each replica of a service is to be asked for, because its copies follow it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scrapes: BTreeMap<ServiceName, Scrape>,
}

/// One replica that the node is to run, or to end in an orderly way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedReplica {
    pub replica: ReplicaId,
    /// 0, 1, 2, … within the service.
    pub ordinal: u32,
    pub spec: ServiceSpec,
    pub phase: Phase,
    /// It may run only while it holds this; absent: nothing is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<AssignedLease>,
    /// What it is told of the externals that its spec names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub externals: Vec<External>,
}

impl AssignedReplica {
    /// Whether it has its place and nothing of it is to run: a cold standby that is not to be the active copy, or
    /// not any more.
    #[must_use]
    pub fn stands_by_cold(&self) -> bool {
        self.spec.stands_by_cold() && self.lease.is_none_or(|lease| lease.yields)
    }
}

/// What a replica must hold to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedLease {
    pub epoch: u64,
    /// How long a renewal holds.
    pub ttl: Span,
    /// Only its start needs a renewal: once it runs it goes on without any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps: bool,
    /// The active copy of several is to give it back. That is never taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub yields: bool,
}

/// What is wanted of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Run,
    /// Gateways send it nothing new; it still runs until they have finished with it.
    Drain,
    /// No gateway needs it any more, or the time for that is over: end the process.
    Stop,
}
