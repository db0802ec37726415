//! Whom the link lets in, and what it says of those it does not.

use crate::config::NodeConfig;
use crate::trust::NodeFiles;
use quorate_model::id::{ClusterId, NodeId};
use quorate_trust::peer::{Credentials, LinkTrust, MembershipCheck, identity_of};
use quorate_trust::refusal::{Refusal, Verdict};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::time_provider::DefaultTimeProvider;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
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
#[derive(Debug, Clone)]
pub(in crate::serve) struct LinkTls {
    trust: LinkTrust,
    credentials: Credentials,
    server: Arc<rustls::ServerConfig>,
    expelled: Expelled,
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
        let credentials = files.credentials(cluster, node)?;
        let trust = LinkTrust {
            cluster,
            authorities: files.authorities.clone(),
            members: Arc::new(Members(expelled.clone())),
            clock: Arc::new(DefaultTimeProvider),
        };
        let server = Arc::new(trust.server(&credentials)?);
        Ok(LinkTls { trust, credentials, server, expelled })
    }

    /// Returns once `node` is expelled: its connections end then.
    pub(in crate::serve) async fn is_expelled(&self, node: NodeId) -> io::Error {
        let mut expelled = self.expelled.clone();
        // Without a core there is nothing left to say it.
        if expelled.wait_for(|expelled| expelled.contains(&node)).await.is_err() {
            std::future::pending::<()>().await;
        }
        refused(Refusal::Expelled.to_string())
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<(Accepted, NodeId)> {
        let stream = BufReader::with_capacity(READ, stream);
        let stream = TlsAcceptor::from(self.server.clone()).accept(stream).await.map_err(explain)?;
        let peer = named(stream.get_ref().1.peer_certificates())?;
        Ok((stream, peer))
    }

    /// Ends with nobody but `peer`.
    pub(super) async fn dial(&self, stream: TcpStream, peer: NodeId, address: SocketAddr) -> io::Result<Dialled> {
        let config = self.trust.client(&self.credentials, peer).map_err(io::Error::other)?;
        let name = ServerName::from(address.ip());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(explain)
    }
}

fn named(chain: Option<&[CertificateDer<'_>]>) -> io::Result<NodeId> {
    let peer = identity_of(chain).ok_or_else(|| refused("the other side shows no certificate of a node".into()))?;
    Ok(peer.node)
}

/// One side does not believe the other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

pub(super) fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Refused(why))
}

/// The words of a TLS error that is about certificates; others as they are.
pub(super) fn explain(error: io::Error) -> io::Error {
    match (Refusal::of_io(&error), Verdict::of_io(&error)) {
        (Some(refusal), _) => refused(format!("the other side is refused: {refusal}")),
        (None, Some(verdict)) => refused(verdict.to_string()),
        (None, None) => error,
    }
}

/// Whether a connection failed because one side does not believe the other.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refused>())
}

/// A connection of the link in either direction.
pub(in crate::serve) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}
