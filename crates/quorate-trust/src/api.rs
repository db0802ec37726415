//! TLS of the API as a node serves it with its own certificate.
//!
//! Nobody has to show a certificate here: people and programs say who they are in their requests.
//! The authority's certificate goes along, so that a client that knows its fingerprint can check it
//! ([`crate::pin`]).

use crate::peer::{Credentials, CredentialsError, provider};
use crate::pin::ALPN_PINNED;
use rustls::ServerConfig;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;

/// For a node's API: TLS 1.3, and 1.2 for programs that know no better.
///
/// # Errors
/// [`CredentialsError`].
pub fn server(credentials: &Credentials, clock: Arc<dyn TimeProvider>) -> Result<ServerConfig, CredentialsError> {
    let mut config = ServerConfig::builder_with_details(provider(), clock)
        .with_safe_default_protocol_versions()
        .map_err(CredentialsError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(credentials.chain(), credentials.key())
        .map_err(CredentialsError::Unusable)?;
    config.alpn_protocols = vec![ALPN_PINNED.to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
