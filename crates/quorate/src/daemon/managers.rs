//! How managers prove themselves to a gateway: by the cluster's authority, as to the command line.

use quorate_gateway::{SecureManagers, Secured, Stream};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// TLS with what is believed of managers.
pub(super) struct ManagersTls(TlsConnector);

impl ManagersTls {
    pub(super) fn new(config: Arc<ClientConfig>) -> ManagersTls {
        ManagersTls(TlsConnector::from(config))
    }
}

impl std::fmt::Debug for ManagersTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ManagersTls")
    }
}

impl SecureManagers for ManagersTls {
    fn secure<'a>(&'a self, stream: TcpStream, host: &'a str) -> Secured<'a> {
        Box::pin(async move {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            // The whole handshake: nothing of a request is sent before the manager has proved itself.
            let stream = self.0.connect(name, stream).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}
