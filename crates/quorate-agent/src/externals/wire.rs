//! A connection to one host, encrypted or not, that ends at a deadline.

use super::Try;
use crate::needs::authorities;
use quorate_model::external::{External, LoginProblem, Tls, Why};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest message that an answer may be: errors of servers are short.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What a login speaks through.
pub(super) enum Wire {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

/// A socket each of whose operations ends at the deadline.
pub(super) struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read(into),
            Wire::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

impl Wire {
    /// A connection to the first address of the host that takes one.
    pub(super) fn connect(host: &str, port: u16, deadline: Instant) -> Result<Wire, LoginProblem> {
        let unresolved =
            |error: io::Error| LoginProblem::new(Why::Unresolved, format!("its name has no address: {error}"));
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(unresolved)?.collect();
        let mut last = LoginProblem::new(Why::Unresolved, "its name has no address");
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return Ok(Wire::Plain(Timed { stream, deadline })),
                Err(error) => last = broken(&error),
            }
        }
        Err(last)
    }

    /// The same connection, encrypted as the external wants it.
    pub(super) fn encrypted(self, to: &Try<'_>) -> Result<Wire, LoginProblem> {
        let Wire::Plain(stream) = self else { return Ok(self) };
        if to.external.tls() == Tls::Off {
            return Ok(Wire::Plain(stream));
        }
        let failed = |problem: String| LoginProblem::new(Why::Tls, format!("no TLS: {problem}"));
        let config = config(to.external).map_err(failed)?;
        let name = ServerName::try_from(to.host.to_owned()).map_err(|error| failed(error.to_string()))?;
        let session = ClientConnection::new(config, name).map_err(|error| failed(error.to_string()))?;
        let mut stream = StreamOwned::new(session, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => broken(&error),
                _ => failed(error.to_string()),
            })?;
        }
        Ok(Wire::Tls(Box::new(stream)))
    }
}

/// What a server says, fit for a line of ours.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

/// What the system says of a connection, in the words of a login.
pub(super) fn broken(error: &io::Error) -> LoginProblem {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => LoginProblem::new(Why::Refused, "it refuses the connection"),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            LoginProblem::new(Why::Unreachable, format!("no answer within {} s", super::WITHIN.as_secs()))
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            LoginProblem::new(Why::Unreachable, format!("it cannot be reached: {error}"))
        }
        io::ErrorKind::UnexpectedEof => LoginProblem::new(Why::Protocol, "it ended the connection without a word"),
        _ => LoginProblem::new(Why::Protocol, format!("the connection broke: {error}")),
    }
}

fn config(external: &External) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    if external.tls() == Tls::Unverified {
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
        return Ok(Arc::new(builder.with_no_client_auth()));
    }
    let pem = match &external.ca {
        Some(ca) => ca.clone().into_bytes(),
        None => authorities().map_err(|error| error.to_string())?,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    if roots.is_empty() {
        return Err("there is no certificate among the authorities to believe".into());
    }
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// Believes every certificate, as whoever sets `tls = "unverified"` asks for; the signature of the handshake is
/// checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
