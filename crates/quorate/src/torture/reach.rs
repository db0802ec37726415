//! How clients of a run reach the cluster: which nodes there are, by whom those prove themselves, and
//! the token that lets clients in.
//!
//! Clients do what a careful user does: TLS to every node with the authorities of the cluster in a file
//! (`--ca-file`), names compared, and an API token. The cluster's authority changes during a run, so a
//! client that is shown a certificate of one that it does not know reads the authorities again, as they
//! are given to people: from `ca.crt` of the nodes. The attempt that showed it fails, like a user's.

use crate::cli::client::is_unproved;
use crate::cli::client::tls::{TlsConnector, TlsTransport};
use crate::trust;
use quorate_model::secret::Secret;
use quorate_trust::api;
use rustls::ClientConfig;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectionDetails, Connector, Either, TcpConnector, Transport};

/// A node as clients know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// Of its API, without a slash at the end.
    pub(crate) url: String,
    /// Where it keeps everything: also the authorities that it believes.
    pub(crate) data_dir: PathBuf,
}

impl Node {
    fn authorities(&self) -> PathBuf {
        self.data_dir.join(trust::DIR).join(trust::AUTHORITIES)
    }
}

/// See the module. Shared by all clients of a run and the rig, which keeps it right.
#[derive(Debug)]
pub(crate) struct Reach {
    nodes: Mutex<Arc<[Node]>>,
    believed: Mutex<Option<Arc<ClientConfig>>>,
    token: Mutex<Secret<String>>,
}

impl Reach {
    /// Nobody is known yet.
    pub(crate) fn new() -> Arc<Reach> {
        let nodes = Mutex::new(Vec::new().into());
        Arc::new(Reach { nodes, believed: Mutex::default(), token: Mutex::new(Secret::new(String::new())) })
    }

    /// Those that serve clients now.
    pub(crate) fn nodes(&self) -> Arc<[Node]> {
        lock(&self.nodes).clone()
    }

    pub(crate) fn set_nodes(&self, nodes: Vec<Node>) {
        *lock(&self.nodes) = nodes.into();
    }

    pub(crate) fn set_token(&self, token: Secret<String>) {
        *lock(&self.token) = token;
    }

    /// What the header `Authorization` says.
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", lock(&self.token).expose())
    }

    /// An HTTP client that believes the cluster, whatever its authority is at the moment.
    pub(crate) fn agent(self: &Arc<Reach>, config: ureq::config::Config) -> ureq::Agent {
        let connector = TcpConnector::default().chain(Believing(self.clone()));
        ureq::Agent::with_parts(config, connector, DefaultResolver::default())
    }

    fn believed(&self) -> Result<Arc<ClientConfig>, ureq::Error> {
        let mut believed = lock(&self.believed);
        if let Some(config) = &*believed {
            return Ok(config.clone());
        }
        // A disk without power cannot be read; there are others.
        let authorities: BTreeSet<String> =
            self.nodes().iter().filter_map(|node| std::fs::read_to_string(node.authorities()).ok()).collect();
        let text: String = authorities.into_iter().collect();
        let config = api::client(&text).map_err(|error| ureq::Error::Io(std::io::Error::other(error)))?;
        Ok(believed.insert(Arc::new(config)).clone())
    }

    /// The next connection reads the authorities again.
    fn doubt(&self, shown_to: &Arc<ClientConfig>) {
        let mut believed = lock(&self.believed);
        if believed.as_ref().is_some_and(|now| Arc::ptr_eq(now, shown_to)) {
            *believed = None;
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts TLS over connections, by what is believed when they are made.
struct Believing(Arc<Reach>);

impl fmt::Debug for Believing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Believing")
    }
}

impl<In: Transport> Connector<In> for Believing {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, below: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let config = self.0.believed()?;
        let connected = TlsConnector(config.clone()).connect(details, below);
        if let Err(ureq::Error::Io(error)) = &connected
            && is_unproved(error)
        {
            self.0.doubt(&config);
        }
        connected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::screen::wall_now;
    use quorate_model::id::ClusterId;
    use quorate_trust::ca::Ca;

    #[test]
    fn what_was_doubted_is_read_again_and_an_unreadable_disk_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(trust::DIR).join(trust::AUTHORITIES);
        std::fs::create_dir(dir.path().join(trust::DIR)).unwrap();
        let authority =
            |serial| Ca::create(ClusterId::from_u128(1), wall_now(), serial).unwrap().certificate().to_pem();
        std::fs::write(&file, authority(1)).unwrap();
        let node = |data_dir: PathBuf| Node { name: "n1".into(), url: String::new(), data_dir };
        let reach = Reach::new();
        assert!(reach.believed().is_err(), "nobody is believed without a reason");
        reach.set_nodes(vec![node(dir.path().join("gone")), node(dir.path().to_owned())]);
        let first = reach.believed().unwrap();
        std::fs::write(&file, authority(2)).unwrap();
        assert!(Arc::ptr_eq(&first, &reach.believed().unwrap()), "as long as nothing is wrong");
        reach.doubt(&first);
        let second = reach.believed().unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        reach.doubt(&first);
        assert!(Arc::ptr_eq(&second, &reach.believed().unwrap()), "another client has read them meanwhile");
    }
}
