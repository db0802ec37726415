//! Where the managers are, and how they and this gateway prove themselves to each other.
//!
//! A gateway beside a node takes its routes from that node's own socket: the node is a member and has
//! proved itself by its certificate, so there is no second credential. A gateway that stands alone
//! reaches managers over TLS and shows an API token, for which the scope `gateway-feed` is enough.
//!
//! What TLS believes is not known here; whoever starts the gateway brings it ([`SecureManagers`]).
//!
//! # Invariants
//! - A token is sent over TLS, to this machine, and nowhere else.
//! - Nothing is sent over `https` before the manager has proved itself.
//! - A token's file is read again whenever a manager does not take the token: it can be replaced while
//!   the gateway runs.

use crate::GatewayConfig;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request};
use hyper::body::Body;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, ToSocketAddrs, UnixStream};

/// A connection to a manager, of whatever kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What becomes of a connection that a manager has to prove itself on.
pub type Secured<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send + 'a>>;

/// Makes managers that are reached by `https` prove themselves.
pub trait SecureManagers: fmt::Debug + Send + Sync {
    /// TLS over `stream`, which was dialled as `host`. Done when the other side has proved itself.
    ///
    /// # Errors
    /// It has not.
    fn secure<'a>(&'a self, stream: TcpStream, host: &'a str) -> Secured<'a>;
}

/// A manager cannot be used as it was given. Nothing was sent to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadManager {
    #[error("`{0}` is not a manager's address: write https://HOST:PORT, unix:/PATH, or http://HOST:PORT in a test")]
    Address(String),
    #[error("{0} would not have to prove itself: give --ca-pin FINGERPRINT or --ca-file FILE")]
    NoTrust(String),
    #[error("{0} would get the token where others can read it: write https://HOST:PORT")]
    InTheClear(String),
    #[error("the token in {file} cannot be used")]
    Token {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why there is no connection to a manager.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoConnection {
    #[error("it cannot be reached")]
    Connect(#[source] io::Error),
    #[error("it does not prove itself")]
    Unproven(#[source] io::Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Plain,
    Tls { host: String },
    Socket { path: PathBuf },
}

/// One manager.
#[derive(Debug, Clone)]
pub(crate) struct Manager {
    place: Place,
    /// `HOST:PORT`, or the socket's path; for people too.
    pub(crate) authority: Arc<str>,
    host: HeaderValue,
}

impl Manager {
    /// # Errors
    /// [`BadManager::Address`].
    fn parse(url: &str) -> Result<Manager, BadManager> {
        let bad = || BadManager::Address(url.to_owned());
        if let Some(path) = url.strip_prefix("unix:") {
            let path = Path::new(path).to_owned();
            if !path.is_absolute() {
                return Err(bad());
            }
            let (authority, host) = (path.display().to_string().into(), HeaderValue::from_static("localhost"));
            return Ok(Manager { place: Place::Socket { path }, authority, host });
        }
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|authority| authority.port_u16().is_some()).ok_or_else(bad)?;
        if !matches!(uri.path(), "" | "/") || authority.as_str().contains('@') {
            return Err(bad());
        }
        let place = match uri.scheme_str() {
            Some("http") => Place::Plain,
            Some("https") => Place::Tls { host: bare(authority.host()).to_owned() },
            _ => return Err(bad()),
        };
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
        Ok(Manager { place, authority: authority.as_str().into(), host })
    }

    /// Whether what is said to it can be read on the way.
    fn is_in_the_clear(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host);
        let here = host == "localhost" || bare(host).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        self.place == Place::Plain && !here
    }
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// All managers of a gateway.
#[derive(Debug)]
pub(crate) struct Managers {
    pub(crate) list: Vec<Manager>,
    tls: Option<Arc<dyn SecureManagers>>,
    token_file: Option<PathBuf>,
    /// `Bearer …`, as read last.
    token: Mutex<Option<HeaderValue>>,
}

impl Managers {
    /// # Errors
    /// [`BadManager`].
    pub(crate) fn new(config: &GatewayConfig) -> Result<Managers, BadManager> {
        let list = config.managers.iter().map(|url| Manager::parse(url)).collect::<Result<Vec<_>, _>>()?;
        for (manager, url) in list.iter().zip(&config.managers) {
            if matches!(manager.place, Place::Tls { .. }) && config.tls.is_none() {
                return Err(BadManager::NoTrust(url.clone()));
            }
            if config.token_file.is_some() && manager.is_in_the_clear() {
                return Err(BadManager::InTheClear(url.clone()));
            }
        }
        let token = config
            .token_file
            .as_deref()
            .map(|file| read_token(file).map_err(|source| BadManager::Token { file: file.to_owned(), source }));
        let (tls, token_file) = (config.tls.clone(), config.token_file.clone());
        Ok(Managers { list, tls, token_file, token: Mutex::new(token.transpose()?) })
    }

    /// A connection for a few requests. It is driven by a task that ends with the sender.
    pub(crate) async fn open<B>(&self, manager: &Manager) -> Result<SendRequest<B>, NoConnection>
    where
        B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
    {
        let stream: Box<dyn Stream> = match &manager.place {
            Place::Socket { path } => Box::new(UnixStream::connect(path).await.map_err(NoConnection::Connect)?),
            Place::Plain => Box::new(connect(&*manager.authority).await.map_err(NoConnection::Connect)?),
            Place::Tls { host } => {
                let stream = connect(&*manager.authority).await.map_err(NoConnection::Connect)?;
                let tls = self.tls.as_ref().expect("a gateway with such a manager has it");
                tls.secure(stream, host).await.map_err(NoConnection::Unproven)?
            }
        };
        begin(stream).await.map_err(NoConnection::Connect)
    }

    /// Says who is asked, and who asks.
    pub(crate) fn address<B>(&self, manager: &Manager, request: &mut Request<B>) {
        request.headers_mut().insert(HOST, manager.host.clone());
        if let Some(token) = &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
    }

    /// A manager did not take the token: perhaps its file has another one by now.
    pub(crate) async fn read_token_again(&self) {
        let Some(file) = self.token_file.clone() else { return };
        let read = tokio::task::spawn_blocking(move || read_token(&file)).await;
        match read {
            Ok(Ok(token)) => *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token),
            Ok(Err(error)) => tracing::warn!(%error, "the token's file cannot be read; the last one is used on"),
            Err(_ends) => {}
        }
    }
}

/// The first line of the file.
fn read_token(file: &Path) -> io::Result<HeaderValue> {
    let text = std::fs::read_to_string(file)?;
    let token = text.lines().next().map(str::trim).unwrap_or_default();
    let unusable = || io::Error::new(io::ErrorKind::InvalidData, "its first line is no token");
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable());
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| unusable())?;
    value.set_sensitive(true);
    Ok(value)
}

async fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn begin<S, B>(stream: S) -> io::Result<SendRequest<B>>
where
    S: Stream + 'static,
    B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Its errors reach whoever waits for the response.
    tokio::spawn(connection);
    Ok(sender)
}

/// A connection of our own to anything that speaks plain HTTP.
pub(crate) async fn open<B>(address: impl ToSocketAddrs) -> io::Result<SendRequest<B>>
where
    B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    begin(connect(address).await?).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::config;

    #[derive(Debug)]
    struct Anybody;

    impl SecureManagers for Anybody {
        fn secure<'a>(&'a self, stream: TcpStream, _: &'a str) -> Secured<'a> {
            Box::pin(async { Ok(Box::new(stream) as Box<dyn Stream>) })
        }
    }

    fn with(url: &str, tls: bool, token_file: Option<&Path>) -> Result<Managers, BadManager> {
        let tls: Option<Arc<dyn SecureManagers>> = if tls { Some(Arc::new(Anybody)) } else { None };
        let managers = vec![url.to_owned()];
        Managers::new(&GatewayConfig { managers, tls, token_file: token_file.map(Path::to_owned), ..config(&[]) })
    }

    #[test]
    fn a_manager_is_named_by_scheme_host_and_port_or_by_its_socket() {
        for (url, good) in [
            ("http://127.0.0.1:8001", true),
            ("http://node-1:7000/", true),
            ("https://node-1:7000", true),
            ("https://[2001:db8::1]:7000", true),
            ("unix:/var/lib/quorate/api.sock", true),
            ("unix:api.sock", false),
            ("ftp://127.0.0.1:8001", false),
            ("127.0.0.1:8001", false),
            ("http://node-1", false),
            ("http://node-1:7000/v1", false),
            ("https://anna@node-1:7000", false),
        ] {
            assert_eq!(with(url, true, None).is_ok(), good, "{url}");
        }
        let managers = with("https://[2001:db8::1]:7000", true, None).unwrap();
        assert_eq!(managers.list[0].place, Place::Tls { host: "2001:db8::1".into() });
    }

    #[test]
    fn a_manager_has_to_prove_itself_and_a_token_is_sent_nowhere_else() {
        assert!(matches!(with("https://node-1:7000", false, None), Err(BadManager::NoTrust(_))));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "qt_gw_secret\n").unwrap();
        for (url, sent) in [
            ("https://node-1:7000", true),
            ("unix:/run/api.sock", true),
            ("http://127.0.0.1:8001", true),
            ("http://[::1]:8001", true),
            ("http://node-1:7000", false),
            ("http://192.0.2.1:7000", false),
        ] {
            match with(url, true, Some(&file)) {
                Ok(managers) => {
                    let mut request = Request::new(());
                    managers.address(&managers.list[0], &mut request);
                    assert!(sent && request.headers()[AUTHORIZATION] == "Bearer qt_gw_secret", "{url}");
                    assert!(!format!("{managers:?}").contains("qt_gw_secret"), "logs do not show it");
                }
                Err(why) => assert!(!sent && matches!(why, BadManager::InTheClear(_)), "{url}: {why}"),
            }
        }
        std::fs::write(&file, "").unwrap();
        assert!(matches!(with("unix:/run/api.sock", true, Some(&file)), Err(BadManager::Token { .. })));
    }
}
