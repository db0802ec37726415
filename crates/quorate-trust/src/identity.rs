//! Which node a certificate speaks for.
//!
//! It is written as a URI among the certificate's names: `quorate://CLUSTER/node/NODE`. A URI and
//! not a DNS name, because a node is not a name that anybody resolves, and because no certificate
//! that was issued for a web server can contain one by accident.

use quorate_model::id::{ClusterId, NodeId};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;
use webpki::EndEntityCert;

/// A node of a cluster, as a certificate names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
}

/// The text is not `quorate://CLUSTER/node/NODE` with both ids as lower-case UUIDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not the name of a node")]
pub struct NotANode;

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quorate://{}/node/{}", self.cluster, self.node)
    }
}

impl FromStr for PeerIdentity {
    type Err = NotANode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (cluster, node) =
            text.strip_prefix("quorate://").and_then(|rest| rest.split_once("/node/")).ok_or(NotANode)?;
        let identity =
            PeerIdentity { cluster: cluster.parse().map_err(|_| NotANode)?, node: node.parse().map_err(|_| NotANode)? };
        // UUIDs may be written in several ways, a name only in one.
        if identity.to_string() == text { Ok(identity) } else { Err(NotANode) }
    }
}

/// How the authority of a cluster names itself.
pub(crate) fn cluster_uri(cluster: ClusterId) -> String {
    format!("quorate://{cluster}")
}

pub(crate) fn cluster_of(certificate: &CertificateDer<'_>) -> Option<ClusterId> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let cluster = only(parsed.valid_uri_names())?.strip_prefix("quorate://")?.parse().ok()?;
    Some(cluster)
}

/// Says what is written in a certificate, whoever wrote it: believe it only once its chain was verified.
pub(crate) fn node_of(parsed: &EndEntityCert<'_>) -> Option<PeerIdentity> {
    only(parsed.valid_uri_names())?.parse().ok()
}

/// A certificate that gives two answers gives none.
fn only<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names.next().filter(|_| names.next().is_none())
}
