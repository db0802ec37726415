//! Replicas, managers, clients and a gateway for tests, on ports that the system chooses.

use crate::{GatewayConfig, Limits, manager, run_with};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::observed::GatewayReport;
use quorate_model::routing::{Endpoint, EndpointState, RoutingTable, Upstream};
use quorate_model::spec::RouteSpec;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Longest wait for anything.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

pub(super) async fn reaches(what: &str, counter: &watch::Sender<usize>, least: usize) {
    let mut counter = counter.subscribe();
    within(what, counter.wait_for(|&count| count >= least)).await.unwrap();
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

/// Listens, and serves each connection in a task, until it is dropped or killed: then the port is
/// closed and every connection with it.
struct Server {
    address: SocketAddr,
    /// Keeps the port from everybody else on this machine: who is dead refuses connections, and no
    /// other test's server answers in its place.
    _port: TcpSocket,
    task: Option<JoinHandle<()>>,
}

impl Server {
    async fn start<F: Future<Output = ()> + Send + 'static>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Server {
        let port = TcpSocket::new_v4().unwrap();
        port.set_reuseaddr(true).unwrap();
        port.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = port.local_addr().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream));
            }
        });
        Server { address, _port: port, task: Some(task) }
    }

    async fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A replica. What it does depends on the path.
pub(super) struct Replica {
    pub id: ReplicaId,
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    server: Server,
}

/// What a replica has seen so far.
pub(super) struct Seen {
    pub connections: watch::Sender<usize>,
    pub requests: watch::Sender<usize>,
    /// Requests to `/hold` wait until this is true.
    pub released: watch::Sender<bool>,
    name: String,
}

impl Replica {
    pub(super) async fn start(number: u128) -> Replica {
        let seen = Arc::new(Seen {
            connections: watch::Sender::new(0),
            requests: watch::Sender::new(0),
            released: watch::Sender::new(false),
            name: format!("r{number}"),
        });
        let inner = seen.clone();
        let server = Server::start(move |stream| {
            let seen = inner.clone();
            async move {
                seen.connections.send_modify(|count| *count += 1);
                let service = service_fn(move |request| reply(seen.clone(), request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        })
        .await;
        Replica { id: ReplicaId::from_u128(number), address: server.address, seen, server }
    }

    pub(super) fn endpoint(&self, state: EndpointState) -> Endpoint {
        Endpoint { replica: self.id, node: NodeId::from_u128(1), address: self.address, state }
    }

    pub(super) fn requests(&self) -> usize {
        *self.seen.requests.borrow()
    }

    pub(super) fn connections(&self) -> usize {
        *self.seen.connections.borrow()
    }

    /// As `kill -9` does: the port is closed, connections break.
    pub(super) async fn kill(&mut self) {
        self.server.kill().await;
    }
}

async fn reply(seen: Arc<Seen>, mut request: Request<Incoming>) -> Result<Answer, std::io::Error> {
    if request.uri().path() != "/check" {
        seen.requests.send_modify(|count| *count += 1);
    }
    Ok(match request.uri().path() {
        "/hold" => {
            let _ = seen.released.subscribe().wait_for(|&released| released).await;
            answer(StatusCode::OK, seen.name.clone())
        }
        "/echo" => Response::new(request.into_body().boxed()),
        "/count" => {
            let mut bytes = 0;
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                bytes += frame.map_err(std::io::Error::other)?.data_ref().map_or(0, Bytes::len);
            }
            answer(StatusCode::OK, bytes.to_string())
        }
        "/headers" => {
            let mut lines: Vec<String> = request
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
                .collect();
            lines.sort();
            let mut response = answer(StatusCode::OK, lines.join("\n"));
            for (name, value) in [
                ("connection", "X-Private"),
                ("x-private", "1"),
                ("keep-alive", "timeout=9"),
                ("x-quorate-error", "fake"),
            ] {
                response.headers_mut().append(name, value.parse().unwrap());
            }
            response
        }
        // Reads what came and hangs up without a word.
        "/hang-up" => {
            let _ = request.into_body().collect().await;
            return Err(std::io::Error::other("told to hang up"));
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let (mut read, mut write) = tokio::io::split(&mut io);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let mut response = answer(StatusCode::SWITCHING_PROTOCOLS, "");
            response.headers_mut().insert("connection", "upgrade".parse().unwrap());
            response.headers_mut().insert("upgrade", "echo".parse().unwrap());
            response
        }
        _ => answer(StatusCode::OK, seen.name.clone()),
    })
}

/// The gateway API of a manager.
pub(crate) struct Manager {
    pub table: watch::Sender<RoutingTable>,
    pub reports: watch::Receiver<Option<GatewayReport>>,
    /// What it wants to see. `None`: it does not ask.
    pub token: watch::Sender<Option<String>>,
    /// How often it let nobody in.
    pub turned_away: watch::Sender<usize>,
    pub url: String,
    server: Server,
}

impl Manager {
    pub(super) async fn start(table: RoutingTable) -> Manager {
        let table = watch::Sender::new(table);
        let (reported, reports) = watch::channel(None);
        let (token, turned_away) = (watch::Sender::new(None), watch::Sender::new(0));
        let shared = Arc::new((table.clone(), reported, token.clone(), turned_away.clone()));
        let server = Server::start(move |stream| {
            let shared = shared.clone();
            async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let shared = shared.clone();
                    async move {
                        let (table, reported, token, turned_away) = &*shared;
                        let shown = request.headers().get("authorization").cloned();
                        let wanted = token.borrow().clone();
                        if wanted.is_some_and(|wanted| shown.is_none_or(|shown| shown != format!("Bearer {wanted}"))) {
                            turned_away.send_modify(|count| *count += 1);
                            return Ok(answer(StatusCode::UNAUTHORIZED, ""));
                        }
                        Ok::<_, Infallible>(if request.uri().path() == "/v1/gateway/report" {
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            reported.send_replace(Some(serde_json::from_slice(&body).unwrap()));
                            answer(StatusCode::NO_CONTENT, "")
                        } else {
                            assert_eq!(request.uri(), "/v1/gateway/stream?name=gw");
                            Response::new(lines(table.subscribe()))
                        })
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        })
        .await;
        Manager { table, reports, token, turned_away, url: format!("http://{}", server.address), server }
    }

    pub(super) async fn kill(&mut self) {
        self.server.kill().await;
    }

    /// Publishes a table and waits until the gateway says that it is in force.
    pub(super) async fn publish(&mut self, table: RoutingTable) {
        let revision = table.revision;
        self.table.send_replace(table);
        self.reported(|report| report.revision == revision).await;
    }

    pub(super) async fn reported(&mut self, fits: impl Fn(&GatewayReport) -> bool) -> GatewayReport {
        let report = within("a report", self.reports.wait_for(|report| report.as_ref().is_some_and(&fits))).await;
        report.unwrap().clone().unwrap()
    }
}

fn lines(table: watch::Receiver<RoutingTable>) -> BoxBody<Bytes, hyper::Error> {
    let tables = futures_util::stream::unfold((table, true), async |(mut table, first)| {
        let line = if first {
            serde_json::to_vec(&*table.borrow_and_update()).unwrap()
        } else {
            match tokio::time::timeout(Duration::from_secs(1), table.changed()).await {
                Ok(Ok(())) => serde_json::to_vec(&*table.borrow_and_update()).unwrap(),
                Ok(Err(_)) => return None,
                Err(_heartbeat) => Vec::new(),
            }
        };
        Some((Bytes::from([&line[..], b"\n"].concat()), (table, false)))
    });
    let body = StreamBody::new(tables.map(|line| Ok::<_, Infallible>(Frame::data(line))));
    // A stream made of `async` blocks is not `Sync`, which the box asks for.
    BoxBody::new(SyncBody(std::sync::Mutex::new(Box::pin(body)))).map_err(|never| match never {}).boxed()
}

struct SyncBody<B>(std::sync::Mutex<std::pin::Pin<Box<B>>>);

impl<B: hyper::body::Body> hyper::body::Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.get_mut().0.get_mut().unwrap().as_mut().poll_frame(cx)
    }
}

/// A table with one route `/` of one service `web`.
pub(super) fn table(revision: u64, endpoints: Vec<Endpoint>) -> RoutingTable {
    RoutingTable {
        revision,
        routes: vec![route("default", "/", "web")],
        services: vec![Upstream {
            service: "web".parse().unwrap(),
            balance: Default::default(),
            check_path: Some("/check".into()),
            endpoints,
            counted: true,
        }],
        vips: Vec::new(),
    }
}

pub(super) fn route(listen: &str, path: &str, service: &str) -> RouteSpec {
    RouteSpec {
        listen: listen.into(),
        host: "*".into(),
        path: path.into(),
        service: service.parse().unwrap(),
        balance: Default::default(),
    }
}

pub(crate) fn config(managers: &[&Manager]) -> GatewayConfig {
    GatewayConfig {
        name: "gw".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        url: "http://gateway.test".into(),
        managers: managers.iter().map(|manager| manager.url.clone()).collect(),
        tls: None,
        token_file: None,
        snapshot_file: None,
        retries: true,
        draining: true,
        active_checks: false,
        beside: None,
    }
}

pub(super) struct Gateway {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Gateway {
    pub(super) async fn start(config: GatewayConfig) -> Gateway {
        Gateway::start_with(config, Limits::default()).await
    }

    pub(super) async fn start_with(config: GatewayConfig, limits: Limits) -> Gateway {
        let (ready, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            run_with(config, limits, |address| ready.send(address).unwrap(), shutdown).await.unwrap();
        });
        Gateway { address: within("the gateway", address).await.unwrap(), stop: Some(stop), task }
    }

    pub(super) fn tell_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(super) async fn stopped(self) {
        within("the end of the gateway", self.task).await.unwrap();
    }

    pub(super) async fn client(&self) -> Browser {
        Browser { sender: manager::open(self.address).await.unwrap(), address: self.address }
    }

    pub(super) async fn get(&self, path: &str) -> Got {
        self.client().await.get(path).await
    }

    /// Sends bytes as they are and returns everything until the gateway closes.
    pub(super) async fn raw(&self, bytes: &[u8]) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut all = Vec::new();
        within("the gateway closing", stream.read_to_end(&mut all)).await.unwrap();
        String::from_utf8(all).unwrap()
    }
}

/// One connection of a client.
pub(super) struct Browser {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The word that says which failure of the gateway it is.
    pub(super) fn error(&self) -> Option<&str> {
        self.headers.get("x-quorate-error").map(|value| value.to_str().unwrap())
    }
}

impl Browser {
    pub(super) async fn get(&mut self, path: &str) -> Got {
        self.send(Request::get(path), "").await
    }

    pub(super) async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Got {
        self.send(Request::post(path), body).await
    }

    pub(super) async fn send(&mut self, request: http::request::Builder, body: impl Into<Bytes>) -> Got {
        let mut request = request.body(Full::new(body.into())).unwrap();
        if !request.headers().contains_key("host") {
            request.headers_mut().insert("host", self.address.to_string().parse().unwrap());
        }
        within("a response", async {
            self.sender.ready().await.unwrap();
            let (head, body) = self.sender.send_request(request).await.unwrap().into_parts();
            Got { status: head.status.as_u16(), headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
        })
        .await
    }
}
