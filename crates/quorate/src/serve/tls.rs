//! How clients' connections to the API begin: with TLS, or on loopback without.

use crate::config::{self, NodeConfig};
use crate::trust::NodeFiles;
use anyhow::Context as _;
use quorate_api::Accept;
use quorate_trust::api::OwnCertificate;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Makes a stream of an accepted connection.
#[derive(Clone)]
pub(super) struct Acceptor(Option<Arc<Tls>>);

struct Tls {
    own: Option<OwnCertificate>,
    in_force: RwLock<TlsAcceptor>,
}

impl Acceptor {
    /// # Errors
    /// The node's certificate is not its own, or cannot be used.
    pub(super) fn new(config: &NodeConfig, files: &NodeFiles) -> anyhow::Result<Acceptor> {
        if config.node.plain_http {
            if !config.node.api.ip().is_loopback() {
                let api = config.node.api;
                tracing::warn!(%api, "node.plain_http: the API speaks HTTP without TLS where others can reach it");
            }
            return Ok(Acceptor(None));
        }
        let own = config.node.api_certificate.as_ref().map(read).transpose()?;
        let in_force = RwLock::new(acceptor(config, files, own.clone())?);
        Ok(Acceptor(Some(Arc::new(Tls { own, in_force }))))
    }

    /// Connections that are accepted from now on are shown this node's certificate in `files`. Those
    /// that are open go on.
    ///
    /// # Errors
    /// The files are not those of this node; nothing has changed then.
    pub(super) fn put_in_force(&self, config: &NodeConfig, files: &NodeFiles) -> anyhow::Result<()> {
        if let Some(tls) = &self.0 {
            let next = acceptor(config, files, tls.own.clone())?;
            *tls.in_force.write().unwrap_or_else(PoisonError::into_inner) = next;
        }
        Ok(())
    }
}

fn acceptor(config: &NodeConfig, files: &NodeFiles, own: Option<OwnCertificate>) -> anyhow::Result<TlsAcceptor> {
    let credentials = files.credentials(config.cluster.id, config.node.id)?;
    let clock = Arc::new(rustls::time_provider::DefaultTimeProvider);
    let tls = quorate_trust::api::server(&credentials, own, clock).context("the API's TLS")?;
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn read(own: &config::OwnCertificate) -> anyhow::Result<OwnCertificate> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    OwnCertificate::from_pem(&read(&own.certificate)?, &read(&own.key)?)
        .with_context(|| format!("in {} and {}", own.certificate.display(), own.key.display()))
}

impl Accept<TcpStream> for Acceptor {
    type Stream = Stream;

    async fn accept(&self, socket: TcpStream) -> io::Result<Stream> {
        match &self.0 {
            None => Ok(Stream::Plain(socket)),
            Some(tls) => {
                let acceptor = tls.in_force.read().unwrap_or_else(PoisonError::into_inner).clone();
                Ok(Stream::Tls(Box::new(acceptor.accept(socket).await?)))
            }
        }
    }
}

/// A connection of either kind.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
