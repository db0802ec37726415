//! HTTPS to nodes of a cluster of which only the authority's fingerprint is known.
//!
//! The connection is made by [`quorate_trust::pin`]: a server of another cluster gets to know nothing,
//! because it is refused before a byte of the request is sent.

use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::pin::{self, PinRefusal};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, TcpConnector, Transport, TransportAdapter,
};

/// An agent whose every connection is to a node of the cluster whose authority has this fingerprint.
///
/// # Errors
/// The crypto library has nothing for TLS 1.3, which the one that is built in has.
pub(crate) fn agent(config: ureq::config::Config, authority: Fingerprint) -> Result<ureq::Agent, rustls::Error> {
    let clock = Arc::new(rustls::time_provider::DefaultTimeProvider);
    let tls = Pinned(Arc::new(pin::pinned(authority, clock)?));
    Ok(ureq::Agent::with_parts(config, TcpConnector::default().chain(tls), DefaultResolver::default()))
}

/// Why a server is not taken for the cluster, if that is what went wrong.
pub(crate) fn refusal(error: &ureq::Error) -> Option<PinRefusal> {
    match error {
        ureq::Error::Io(error) => PinRefusal::of_io(error),
        _ => None,
    }
}

struct Pinned(Arc<ClientConfig>);

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pinned")
    }
}

impl<In: Transport> Connector<In> for Pinned {
    type Out = Connection;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Connection>, ureq::Error> {
        let transport = chained.ok_or(ureq::Error::ConnectionFailed)?;
        let host = details.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|_| ureq::Error::HostNotFound)?;
        let tls = ClientConnection::new(self.0.clone(), name).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(tls, TransportAdapter::new(transport.boxed(), details.current_time.clone()));
        stream.sock.set_timeout(details.timeout);
        // The whole handshake, so that what is wrong with the server is known before anything is sent.
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Connection { buffers, stream }))
    }
}

struct Connection {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let read = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
