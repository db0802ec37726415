//! What `quorate serve` needs to know to be one node of a cluster: `node.toml` in its data directory.
//!
//! `quorate dev`, `init` and `join` write it. An unknown key is an error. What an operator chooses
//! is elsewhere, in [`crate::settings`]; what the node proves itself with is beside it, under fixed
//! names: [`crate::trust`].

use quorate_api::AuthMode;
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::state::Role;
use quorate_model::time::Span;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Name of the file in the data directory.
pub(crate) const FILE: &str = "node.toml";

/// Name of the local socket in the data directory.
pub(crate) const API_SOCKET: &str = "api.sock";

/// One node's place in its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeConfig {
    pub cluster: ClusterConfig,
    pub node: ThisNode,
    #[serde(default)]
    pub timers: Timers,
    #[serde(default)]
    pub log: LogConfig,
    /// Every voter with which the cluster began, this node too. A node that joined later has none.
    #[serde(rename = "voter", default, skip_serializing_if = "Vec::is_empty")]
    pub voters: Vec<Voter>,
    /// Nodes that a joining one was told of. Once it has the cluster's records, those count.
    #[serde(rename = "peer", default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Voter>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterConfig {
    pub id: ClusterId,
    pub name: String,
    /// Grows by one when `quorate recover` goes on with one survivor; members of others are not spoken to.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub incarnation: u64,
    /// It begins with high availability on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ha: bool,
}

/// The incarnation with which every cluster begins.
pub(crate) const fn first() -> u64 {
    1
}

fn is_first(incarnation: &u64) -> bool {
    *incarnation == first()
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
    /// Under which addresses others reach both ports, and how they were found. Default: those where
    /// they listen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<Announced>,
    /// The API speaks HTTP without TLS, and lets nobody join. For loopback: `quorate dev` sets it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
    /// Opens the console in a browser and lets it change things. Kept in memory only by the browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_token: Option<String>,
    /// Whether the API asks who is there. Default `required`; `dev` sets `open`.
    #[serde(default)]
    pub auth: AuthMode,
    /// Replicas end when this process does. `quorate dev` gives its own pid, so that nothing is left behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_with_pid: Option<u32>,
    /// A certificate of another authority for the API. Default: the node's own, of the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_certificate: Option<OwnCertificate>,
}

/// Addresses that were chosen when the node was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Announced {
    pub api: SocketAddr,
    pub link: SocketAddr,
    /// A sentence for people.
    pub because: String,
}

/// A certificate of another authority, in PEM. Who has pinned the cluster's is still shown that one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OwnCertificate {
    /// The server's certificate, then those up to its authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl ThisNode {
    /// Where others reach the API.
    pub(crate) fn api_address(&self) -> SocketAddr {
        self.announced.as_ref().map_or(self.api, |announced| announced.api)
    }

    /// Where others reach the node link.
    pub(crate) fn link_address(&self) -> SocketAddr {
        self.announced.as_ref().map_or(self.link, |announced| announced.link)
    }

    /// Every address under which the API may be reached, the advertised one first: all of this
    /// machine's own if it listens everywhere. Loopback is only among them if it is the only one.
    pub(crate) fn api_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = vec![self.api_address()];
        if self.api.ip().is_unspecified() {
            let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
            let others = interfaces.iter().filter(|interface| !interface.is_loopback() && !interface.is_link_local());
            // A wildcard of IPv4 does not accept IPv6.
            let others = others.map(if_addrs::Interface::ip).filter(|ip| ip.is_ipv4() || self.api.is_ipv6());
            addresses.extend(others.map(|ip| SocketAddr::new(ip, self.api.port())));
        }
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses
    }
}

/// Another node and where its link is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Voter {
    pub id: NodeId,
    pub name: String,
    pub link: SocketAddr,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timers {
    /// How long a node may be away before its replicas are replaced. Default: the setting
    /// `ha.failover_time`; `dev` sets 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_after: Option<Span>,
    /// How long a voter may be away before a standby votes in its place. Default 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replace_voter_after: Option<Span>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// Bytes of log that are kept for nodes that were away, beyond what this node's own databases
    /// need; at least [`RETAIN_MIN`], default 1 GiB. Who missed more gets a whole snapshot.
    pub retain: u64,
}

/// The least of [`LogConfig::retain`]: segments are an eighth of it and need some room.
pub(crate) const RETAIN_MIN: u64 = 1 << 20;

impl LogConfig {
    /// Size of one segment: what is purged at once.
    pub(crate) fn segment_bytes(&self) -> u64 {
        (self.retain / 8).min(16 << 20)
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { retain: 1 << 30 }
    }
}
