//! What `quorate serve` needs to know to be one node of a cluster: `node.toml` in its data directory.
//!
//! `quorate dev` writes it; `init` and `join` will. An unknown key is an error.

use quorate_model::id::{ClusterId, NodeId};
use quorate_model::state::Role;
use quorate_model::time::Span;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Name of the file in the data directory.
pub(crate) const FILE: &str = "node.toml";

/// One node's place in its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeConfig {
    pub cluster: ClusterConfig,
    pub node: ThisNode,
    #[serde(default)]
    pub timers: Timers,
    /// Every voter of the cluster, this node too.
    #[serde(rename = "voter")]
    pub voters: Vec<Voter>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterConfig {
    pub id: ClusterId,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ThisNode {
    pub id: NodeId,
    pub name: String,
    pub roles: BTreeSet<Role>,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where the node link listens.
    pub link: SocketAddr,
    /// Opens the console in a browser and lets it change things. Kept in memory only by the browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_token: Option<String>,
    /// Replicas end when this process does. `quorate dev` gives its own pid, so that nothing is left behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_with_pid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Voter {
    pub id: NodeId,
    pub name: String,
    pub link: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timers {
    /// How long a node may be away before its replicas are replaced. Default 30s; `dev` sets 0s.
    pub replace_after: Span,
}

impl Default for Timers {
    fn default() -> Self {
        Timers { replace_after: Span::from_secs(30) }
    }
}
