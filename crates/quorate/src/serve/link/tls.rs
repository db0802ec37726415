//! Whom the link lets in, and what it says of those it does not.
//!
//! What this node shows and whom it believes may change while it runs ([`LinkTls::put_in_force`]):
//! connections that are open go on, new ones are made with what is in force then. Only when an
//! authority is not believed any more, all connections are made anew: one of them may have begun with
//! a certificate of that authority.

use crate::config::NodeConfig;
use crate::trust::NodeFiles;
use quorate_model::id::{ClusterId, NodeId};
use quorate_trust::ca::CaCertificate;
use quorate_trust::peer::{Credentials, LinkTrust, MembershipCheck, identity_of};
use quorate_trust::refusal::{Refusal, Verdict};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::time_provider::DefaultTimeProvider;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Read from the socket at once. The TLS library alone would ask for 4 KiB at a time.
const READ: usize = 64 << 10;

/// A connection that was accepted.
pub(in crate::serve) type Accepted = server::TlsStream<BufReader<TcpStream>>;
/// A connection that was dialled.
pub(in crate::serve) type Dialled = client::TlsStream<TcpStream>;

/// Who was expelled: the core's view of the replicated state.
pub(in crate::serve) type Expelled = watch::Receiver<BTreeSet<NodeId>>;

/// What this node shows on the link, and whom it believes.
#[derive(Debug)]
pub(in crate::serve) struct LinkTls {
    cluster: ClusterId,
    node: NodeId,
    expelled: Expelled,
    in_force: RwLock<Arc<InForce>>,
    /// How often an authority was dropped: connections of before are over.
    dropped: watch::Sender<u64>,
}

#[derive(Debug)]
struct InForce {
    trust: LinkTrust,
    credentials: Credentials,
    server: Arc<rustls::ServerConfig>,
}

#[derive(Debug)]
struct Members(Expelled);

impl MembershipCheck for Members {
    fn admits(&self, node: NodeId) -> bool {
        !self.0.borrow().contains(&node)
    }
}

impl LinkTls {
    /// # Errors
    /// The files are not those of this node.
    pub(in crate::serve) fn new(files: &NodeFiles, config: &NodeConfig, expelled: Expelled) -> anyhow::Result<LinkTls> {
        LinkTls::of(files, config.cluster.id, config.node.id, expelled)
    }

    pub(super) fn of(
        files: &NodeFiles,
        cluster: ClusterId,
        node: NodeId,
        expelled: Expelled,
    ) -> anyhow::Result<LinkTls> {
        let in_force = InForce::of(files, cluster, node, &expelled)?;
        Ok(LinkTls {
            cluster,
            node,
            expelled,
            in_force: RwLock::new(Arc::new(in_force)),
            dropped: watch::Sender::new(0),
        })
    }

    /// New connections are made with these from now on.
    ///
    /// # Errors
    /// The files are not those of this node; nothing has changed then.
    pub(in crate::serve) fn put_in_force(&self, files: &NodeFiles) -> anyhow::Result<()> {
        let next = Arc::new(InForce::of(files, self.cluster, self.node, &self.expelled)?);
        let before = {
            let mut in_force = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *in_force, next)
        };
        let is_kept = |old: &CaCertificate| files.authorities.iter().any(|ca| ca.fingerprint() == old.fingerprint());
        if !before.trust.authorities.iter().all(is_kept) {
            self.dropped.send_modify(|times| *times += 1);
        }
        Ok(())
    }

    fn in_force(&self) -> Arc<InForce> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// To be asked before the handshake of a connection: it tells when that is [over](Validity::over).
    pub(in crate::serve) fn validity(&self) -> Validity {
        Validity { dropped: self.dropped.subscribe(), expelled: self.expelled.clone() }
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<(Accepted, NodeId)> {
        let stream = BufReader::with_capacity(READ, stream);
        let stream = TlsAcceptor::from(self.in_force().server.clone()).accept(stream).await.map_err(explain)?;
        let peer = named(stream.get_ref().1.peer_certificates())?;
        Ok((stream, peer))
    }

    /// Ends with nobody but `peer`.
    pub(super) async fn dial(&self, stream: TcpStream, peer: NodeId, address: SocketAddr) -> io::Result<Dialled> {
        let in_force = self.in_force();
        let config = in_force.trust.client(&in_force.credentials, peer).map_err(io::Error::other)?;
        let name = ServerName::from(address.ip());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(explain)
    }
}

impl InForce {
    fn of(files: &NodeFiles, cluster: ClusterId, node: NodeId, expelled: &Expelled) -> anyhow::Result<InForce> {
        let credentials = files.credentials(cluster, node)?;
        let trust = LinkTrust {
            cluster,
            authorities: files.authorities.clone(),
            members: Arc::new(Members(expelled.clone())),
            clock: Arc::new(DefaultTimeProvider),
        };
        let server = Arc::new(trust.server(&credentials)?);
        Ok(InForce { trust, credentials, server })
    }
}

/// For how long a connection may be there.
#[derive(Debug)]
pub(in crate::serve) struct Validity {
    dropped: watch::Receiver<u64>,
    expelled: Expelled,
}

impl Validity {
    /// Returns once `node` is expelled, or an authority is not believed any more.
    pub(in crate::serve) async fn over(mut self, node: NodeId) -> io::Error {
        // Without a core there is nothing left to say it.
        let expelled = async { self.expelled.wait_for(|expelled| expelled.contains(&node)).await.is_ok() };
        tokio::select! {
            true = expelled => refused(Refusal::Expelled.to_string()),
            Ok(()) = self.dropped.changed() => io::Error::other("an authority is not believed any more"),
            else => std::future::pending().await,
        }
    }
}

fn named(chain: Option<&[CertificateDer<'_>]>) -> io::Result<NodeId> {
    let peer = identity_of(chain).ok_or_else(|| refused("the other side shows no certificate of a node".into()))?;
    Ok(peer.node)
}

/// How it comes that a member is taken for a stranger, and what to do.
const ROTATED: &str =
    " (if the CA was rotated while one of them was away: `quorate cert show` names it, and it joins anew)";

/// One side does not believe the other.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
struct Refused {
    why: String,
    whom: Whom,
}

/// What a refusal means for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// The other side says that it was expelled.
    Expelled,
    /// The two are of different authorities.
    Stranger,
    /// Anything else; it may pass.
    Other,
}

pub(super) fn refused(why: String) -> io::Error {
    refused_as(why, Whom::Other)
}

fn refused_as(why: String, whom: Whom) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Refused { why, whom })
}

/// The words of a TLS error that is about certificates; others as they are.
pub(super) fn explain(error: io::Error) -> io::Error {
    match (Refusal::of_io(&error), Verdict::of_io(&error)) {
        (Some(refusal @ Refusal::ForeignCa), _) => {
            refused_as(format!("the other side is refused: {refusal}{ROTATED}"), Whom::Stranger)
        }
        (Some(refusal), _) => refused(format!("the other side is refused: {refusal}")),
        (None, Some(verdict)) => {
            let (hint, whom) = match verdict {
                Verdict::ForeignCa => (ROTATED, Whom::Stranger),
                Verdict::Expelled => ("", Whom::Expelled),
                _ => ("", Whom::Other),
            };
            refused_as(format!("{verdict}{hint}"), whom)
        }
        (None, None) => error,
    }
}

/// Whether a connection failed because one side does not believe the other.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refused>())
}

/// Whether the other side says that this node was expelled.
pub(super) fn says_expelled(error: &io::Error) -> bool {
    whom(error) == Some(Whom::Expelled)
}

/// Whether the two have certificates of different authorities.
pub(super) fn is_of_another_authority(error: &io::Error) -> bool {
    whom(error) == Some(Whom::Stranger)
}

fn whom(error: &io::Error) -> Option<Whom> {
    error.get_ref()?.downcast_ref::<Refused>().map(|refused| refused.whom)
}

/// A connection of the link in either direction.
pub(in crate::serve) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
