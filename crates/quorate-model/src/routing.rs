//! What a gateway needs to know, complete, as of a revision.

use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::spec::{Balance, RouteSpec};
use crate::vip::{Interface, VipAddress};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Routes and the replicas behind them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoutingTable {
    /// Grows with each change, on whichever manager the table was made: the applied log index.
    /// Two tables of one revision may differ in what was observed, never in what was decided.
    pub revision: u64,
    pub routes: Vec<RouteSpec>,
    pub services: Vec<Upstream>,
    /// Virtual addresses, and which gateways may hold them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<OfferedVip>,
}

/// A virtual address as gateways see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedVip {
    pub address: VipAddress,
    /// Default: the one that has an address in the same subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Nodes whose gateways may hold it, the first choice first.
    pub candidates: Vec<Candidate>,
}

/// A node whose gateway may hold a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub node: NodeId,
    /// Where its gateway hears of the others; the port is the same for all.
    pub address: IpAddr,
}

/// A service as a gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub service: ServiceName,
    #[serde(default)]
    pub balance: Balance,
    /// Path of the gateway's own active check (GET, 200 to 399); none: a TCP connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_path: Option<String>,
    pub endpoints: Vec<Endpoint>,
    /// Managers want to be told how much there is to do for it.
    #[serde(default, skip_serializing_if = "is_not")]
    pub counted: bool,
}

fn is_not(flag: &bool) -> bool {
    !*flag
}

/// One replica that accepts connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub replica: ReplicaId,
    pub node: NodeId,
    pub address: SocketAddr,
    pub state: EndpointState,
}

/// Whether a gateway may choose an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Its node's checks pass.
    Healthy,
    /// Chosen only when nothing healthy is left: its node cannot be asked, or its checks fail.
    Doubtful,
    /// Gets nothing new; what is in flight may finish.
    Draining,
}
