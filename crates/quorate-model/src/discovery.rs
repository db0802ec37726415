//! Where the replicas of services are reached, as this node sees it.
//!
//! What was decided (who is placed where) joined with what is observed (ports, health). It is made anew on each
//! node from what that node has absorbed and heard, so it needs no quorum, and two nodes may differ for a moment.

use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::routing::EndpointState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The zone in which services have names, for DNS.
pub const ZONE: &str = "quorate";

/// All services and what is there of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Directory {
    /// The applied log index that it was made for.
    pub revision: u64,
    pub services: BTreeMap<ServiceName, Listed>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listed {
    /// The name of its main port, if it has ports.
    pub main_port: Option<String>,
    /// The number of that port, if the spec says it and no node chooses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_port: Option<u16>,
    /// The names of its ports.
    pub ports: Vec<String>,
    /// Replicas that accept connections, by ordinal and then the newest first. Of what runs once: only that of
    /// the newest epoch.
    pub instances: Vec<Instance>,
}

/// One replica that accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub replica: ReplicaId,
    pub ordinal: u32,
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    pub address: IpAddr,
    /// The numbers of its ports, by name.
    pub ports: BTreeMap<String, u16>,
    pub state: EndpointState,
}

impl Listed {
    /// Those that a client is sent to, one for each ordinal: all that are healthy, and only if none is, those
    /// that are in doubt. As gateways choose, so that a name and a route lead to the same.
    pub fn reachable(&self) -> impl Iterator<Item = &Instance> {
        let any = self.instances.iter().any(|instance| instance.state == EndpointState::Healthy);
        let wanted = if any { EndpointState::Healthy } else { EndpointState::Doubtful };
        let mut last = None;
        self.instances.iter().filter(move |instance| {
            instance.state == wanted && last.replace(instance.ordinal) != Some(instance.ordinal)
        })
    }
}
