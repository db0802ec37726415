//! The router and the loop that serves it.
//!
//! Why not `axum::serve`: it sets neither deadlines for what a client has to say or to take, nor a
//! bound on how many keep it waiting, nor TCP_NODELAY, nor an end for streams that never end by
//! themselves.

use crate::access::password::Hashing;
use crate::access::{AuthMode, Denials, Gate, Peer, audit, gate, login, roles, tokens, users};
use crate::backend::Backend;
use crate::problem::Failure;
use crate::waiting::{Arriving, Client, Leaving, Limits, Waiting};
use crate::{
    activation, autoscale, certificates, cluster, console, database, drills, externals, failover, guard, ha, health,
    join, kuzzle, log, managers, members, openapi, placement, reconfigure, rqlite, secrets, stream, switch, updates,
    vips,
};
use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, get, on};
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use quorate_model::access::policy::Operation as O;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long requests in flight may take once the server is asked to end.
const END_WITHIN: Duration = Duration::from_secs(2);
/// Pause after the system refused a connection (too many open files), so that it is no busy loop.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How one node serves its API.
#[derive(Debug, Clone, Default)]
pub struct ApiOptions {
    /// Lets a browser that has it change things. `None`: no browser can.
    pub console_token: Option<String>,
    /// Name of this node, for log lines.
    pub node_name: String,
    /// Where the API listens; [`serve`] fills it in.
    pub listen: Option<SocketAddr>,
    /// Further host names under which the API may be addressed, without port.
    pub hosts: Vec<String>,
    /// Who is let in without a login.
    pub auth: AuthMode,
    /// Whether browsers come over TLS: the session's cookie is then `__Host-quorate` and `Secure`.
    pub tls: bool,
    /// What clients may make it wait for.
    pub limits: Limits,
}

impl ApiOptions {
    /// The cookie that carries a session.
    pub(crate) fn session_cookie(&self) -> &'static str {
        if self.tls { "__Host-quorate" } else { "quorate_session" }
    }
}

/// What handlers share.
#[derive(Debug)]
pub(crate) struct App<B> {
    pub backend: B,
    pub options: ApiOptions,
    pub hashing: Hashing,
    pub denials: Denials,
    /// Its sender goes when the server ends; streams end then.
    pub open: watch::Receiver<()>,
    /// That sender, where no server holds it: streams then live as long as the router.
    _ends_with_router: Option<watch::Sender<()>>,
}

pub(crate) type Shared<B> = Arc<App<B>>;

/// One path: what answers each method, and what that does. There is no method without an
/// [`Operation`](O): who may call it follows from that alone.
pub(crate) struct Route<B> {
    pub path: &'static str,
    pub methods: Vec<(Method, O, MethodRouter<Shared<B>>)>,
}

fn at<B: Backend>(path: &'static str) -> Route<B> {
    Route { path, methods: Vec::new() }
}

impl<B: Backend> Route<B> {
    fn get<T: 'static>(self, operation: O, handler: impl Handler<T, Shared<B>>) -> Self {
        self.with(Method::GET, MethodFilter::GET, operation, handler)
    }

    fn post<T: 'static>(self, operation: O, handler: impl Handler<T, Shared<B>>) -> Self {
        self.with(Method::POST, MethodFilter::POST, operation, handler)
    }

    fn put<T: 'static>(self, operation: O, handler: impl Handler<T, Shared<B>>) -> Self {
        self.with(Method::PUT, MethodFilter::PUT, operation, handler)
    }

    fn delete<T: 'static>(self, operation: O, handler: impl Handler<T, Shared<B>>) -> Self {
        self.with(Method::DELETE, MethodFilter::DELETE, operation, handler)
    }

    fn with<T: 'static>(
        mut self,
        method: Method,
        filter: MethodFilter,
        operation: O,
        handler: impl Handler<T, Shared<B>>,
    ) -> Self {
        self.methods.push((method, operation, on(filter, handler)));
        self
    }
}

/// The native paths, all of them described in `/openapi.json`.
pub(crate) fn native<B: Backend>() -> Vec<Route<B>> {
    vec![
        at("/v1/status").get(O::ClusterRead, cluster::status::<B>),
        at("/v1/nodes").get(O::ClusterRead, cluster::nodes::<B>),
        at("/v1/nodes/{node}").get(O::ClusterRead, members::node::<B>).delete(O::NodeRemove, members::remove::<B>),
        at("/v1/nodes/{node}/log").get(O::NodeLogRead, log::node_log::<B>),
        at("/v1/nodes/{node}/alias").put(O::NodeAlias, members::alias::<B>),
        at("/v1/nodes/{node}/confirm-dead").post(O::NodeConfirmDead, members::confirm_dead::<B>),
        at("/v1/nodes/{node}/roles").put(O::NodeRoles, members::roles::<B>),
        at("/v1/nodes/{node}/restart").post(O::NodeRestart, managers::restart_node::<B>),
        at("/v1/nodes/{node}/vote").put(O::NodeVote, members::vote::<B>),
        at("/v1/nodes/{node}/labels").post(O::NodeLabel, placement::labels::<B>),
        at("/v1/nodes/{node}/attributes").post(O::NodeLabel, placement::attribute::<B>),
        at("/v1/nodes/{node}/availability").put(O::NodeAvailability, placement::availability::<B>),
        at("/v1/rebalance")
            .get(O::ClusterRead, placement::to_rebalance::<B>)
            .post(O::Rebalance, placement::rebalance::<B>),
        at("/v1/whatif/kill/{node}").get(O::ClusterRead, placement::what_if_kill::<B>),
        at("/v1/drills").get(O::ClusterRead, drills::list::<B>).post(O::NodeDrill, drills::begin::<B>),
        at("/v1/drills/{id}").get(O::ClusterRead, drills::show::<B>),
        at("/v1/drills/forecast/{node}").get(O::ClusterRead, drills::forecast::<B>),
        at("/v1/managers/stop").post(O::ManagerStop, managers::stop::<B>),
        at("/v1/managers/start").post(O::ManagerStart, managers::start::<B>),
        at("/v1/managers/restart").post(O::ManagerRestart, managers::restart::<B>),
        at("/v1/managers/restart-active").post(O::ActiveRestart, managers::restart_active::<B>),
        at("/v1/managers/rule").put(O::ManagerRule, managers::rule::<B>),
        at("/v1/failover").get(O::ClusterRead, failover::show::<B>).put(O::FailoverSet, failover::set::<B>),
        at("/v1/ha").get(O::ClusterRead, ha::show::<B>).put(O::HaSet, ha::set::<B>),
        at("/v1/settings").get(O::ClusterRead, reconfigure::list::<B>).post(O::Reconfigure, reconfigure::change::<B>),
        at("/v1/leave").post(O::NodeLeave, members::leave::<B>),
        at("/v1/join-tokens")
            .get(O::JoinTokenRead, members::tokens::<B>)
            .post(O::JoinTokenCreate, members::invite::<B>),
        at("/v1/join-tokens/{id}").delete(O::JoinTokenRevoke, members::revoke::<B>),
        at("/v1/join").post(O::Join, join::join::<B>),
        at("/v1/join/check").post(O::Join, join::check::<B>),
        at("/v1/certificates")
            .get(O::ClusterRead, certificates::show::<B>)
            .post(O::CertificateRenew, certificates::renew::<B>),
        at("/v1/certificates/rotation").post(O::CertificateRotate, certificates::rotate::<B>),
        at("/v1/secrets").get(O::SecretRead, secrets::list::<B>),
        at("/v1/secrets/{name}")
            .get(O::SecretRead, secrets::show::<B>)
            .put(O::SecretSet, secrets::set::<B>)
            .delete(O::SecretRemove, secrets::remove::<B>),
        at("/v1/quota").get(O::ClusterRead, members::quota::<B>).put(O::QuotaSet, members::set_quota::<B>),
        at("/v1/services").get(O::ClusterRead, cluster::services::<B>),
        at("/v1/services/{name}")
            .get(O::ClusterRead, cluster::service::<B>)
            .delete(O::ServiceRemove, cluster::remove_service::<B>),
        at("/v1/services/{name}/explain").get(O::ClusterRead, placement::explain::<B>),
        at("/v1/services/{name}/history").get(O::ClusterRead, updates::history::<B>),
        at("/v1/services/{name}/rollback").post(O::ServiceApply, updates::rollback::<B>),
        at("/v1/services/{name}/update").post(O::ServiceApply, updates::update::<B>),
        at("/v1/services/{name}/scale").post(O::ServiceScale, cluster::scale::<B>),
        at("/v1/services/{name}/autoscale")
            .get(O::ClusterRead, autoscale::show::<B>)
            .put(O::ServiceAutoscale, autoscale::set::<B>),
        at("/v1/services/{name}/activate").post(O::ServiceActivate, activation::activate::<B>),
        at("/v1/services/{name}/stop").post(O::ServiceStop, switch::stop::<B>),
        at("/v1/services/{name}/start").post(O::ServiceStart, switch::start::<B>),
        at("/v1/services/{name}/restart").post(O::ServiceRestart, cluster::restart::<B>),
        at("/v1/vips").get(O::ClusterRead, vips::list::<B>).post(O::VipAdd, vips::add::<B>),
        at("/v1/vips/{ip}").delete(O::VipRemove, vips::remove::<B>),
        at("/v1/externals").get(O::ClusterRead, externals::list::<B>),
        at("/v1/externals/{name}")
            .get(O::ClusterRead, externals::show::<B>)
            .put(O::ExternalSet, externals::set::<B>)
            .delete(O::ExternalRemove, externals::remove::<B>),
        at("/v1/externals/{name}/test").post(O::ExternalTest, externals::test::<B>),
        at("/v1/events").get(O::ClusterRead, cluster::events::<B>),
        at("/v1/active").get(O::HealthRead, cluster::active::<B>),
        at("/v1/health").get(O::HealthRead, health::health::<B>),
        at("/v1/specs").post(O::ServiceApply, cluster::apply_specs::<B>),
        at("/v1/raft/transfer").post(O::LeaderTransfer, cluster::transfer::<B>),
        at("/v1/db/exec").post(O::SqlWrite, database::exec::<B>),
        at("/v1/db/query").post(O::SqlRead, database::query::<B>).get(O::SqlRead, database::query_get::<B>),
        at("/v1/stream").get(O::ClusterRead, stream::overview::<B>),
        at("/v1/gateway/stream").get(O::GatewayFeed, stream::routing::<B>),
        at("/v1/gateway/report").post(O::GatewayFeed, stream::gateway_report::<B>),
        at("/v1/replicas/{id}/log").get(O::LogRead, log::replica_log::<B>),
        at("/v1/login").post(O::LogIn, login::log_in::<B>),
        at("/v1/logout").post(O::LogOut, login::log_out::<B>),
        at("/v1/confirm").post(O::Confirm, login::confirm::<B>),
        at("/v1/me").get(O::WhoAmI, login::me::<B>),
        at("/v1/me/password").post(O::OwnPassword, login::own_password::<B>),
        at("/v1/me/tokens").get(O::OwnTokenRead, tokens::own::<B>).post(O::OwnTokenCreate, tokens::create_own::<B>),
        at("/v1/me/tokens/{id}").delete(O::OwnTokenRevoke, tokens::revoke_own::<B>),
        at("/v1/me/sessions").get(O::OwnSessionRead, tokens::own_sessions::<B>),
        at("/v1/me/sessions/{id}").delete(O::OwnSessionEnd, tokens::end_own_session::<B>),
        at("/v1/first-admin").post(O::UserCreate, users::first_admin::<B>),
        at("/v1/users").get(O::UserRead, users::list::<B>).post(O::UserCreate, users::create::<B>),
        at("/v1/users/{name}").get(O::UserRead, users::get::<B>).delete(O::UserRemove, users::remove::<B>),
        at("/v1/users/{name}/password").put(O::UserPassword, users::password::<B>),
        at("/v1/users/{name}/disable").post(O::UserDisable, users::disable::<B>),
        at("/v1/users/{name}/enable").post(O::UserEnable, users::enable::<B>),
        at("/v1/users/{name}/tokens").post(O::UserToken, tokens::create_for::<B>),
        at("/v1/users/{name}/roles/{role}")
            .put(O::RoleGrant, users::grant::<B>)
            .delete(O::RoleRevoke, users::revoke::<B>),
        at("/v1/roles").get(O::RoleRead, roles::list::<B>).post(O::RoleClone, roles::clone::<B>),
        at("/v1/roles/{name}").get(O::RoleRead, roles::get::<B>).delete(O::RoleRemove, roles::remove::<B>),
        at("/v1/roles/{name}/permissions/{permission}")
            .put(O::RoleChange, roles::add::<B>)
            .delete(O::RoleChange, roles::take::<B>),
        at("/v1/sessions").get(O::SessionRead, tokens::sessions::<B>),
        at("/v1/sessions/{id}").delete(O::SessionRevoke, tokens::end_session::<B>),
        at("/v1/tokens").get(O::TokenRead, tokens::all::<B>),
        at("/v1/tokens/{id}").delete(O::TokenRevoke, tokens::revoke_any::<B>),
        at("/v1/audit").get(O::AuditRead, audit::list::<B>),
        at("/v1/audit/verify").get(O::AuditRead, audit::verify::<B>),
        at("/v1/audit/export").get(O::AuditRead, audit::export::<B>),
    ]
}

/// Paths of other systems' protocols.
fn facades<B: Backend>() -> Vec<Route<B>> {
    vec![
        at("/db/execute").post(O::SqlWrite, rqlite::execute::<B>),
        at("/db/query").get(O::SqlRead, rqlite::query_get::<B>).post(O::SqlRead, rqlite::query::<B>),
        at("/_plugin/cluster/health").get(O::HealthRead, kuzzle::health::<B>),
        at("/_plugin/cluster/status").get(O::ClusterRead, kuzzle::status::<B>),
    ]
}

/// The API of one node. Its streams end with it.
pub fn router<B: Backend>(backend: B, options: ApiOptions) -> Router {
    let (sender, open) = watch::channel(());
    build(&Arc::new(App::new(backend, options, open, Some(sender))))
}

impl<B> App<B> {
    fn new(
        backend: B,
        options: ApiOptions,
        open: watch::Receiver<()>,
        ends_with_router: Option<watch::Sender<()>>,
    ) -> App<B> {
        let (hashing, denials) = (Hashing::new(), Denials::new());
        App { backend, options, hashing, denials, open, _ends_with_router: ends_with_router }
    }
}

fn build<B: Backend>(app: &Shared<B>) -> Router {
    let mut router = Router::new();
    for route in native::<B>().into_iter().chain(facades()) {
        let mut all = MethodRouter::new();
        for (_, operation, methods) in route.methods {
            let gated = Gate { app: app.clone(), operation };
            all = all.merge(methods.route_layer(from_fn_with_state(gated, gate::<B>)));
        }
        router = router.route(route.path, all);
    }
    router
        .route("/openapi.json", get(openapi::serve))
        .route("/", get(console::root))
        .route("/ui", get(console::root))
        .route("/ui/", get(console::index::<B>))
        .route("/ui/{*path}", get(console::asset::<B>))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), guard::guard::<B>))
        .with_state(app.clone())
}

async fn unknown_path(request: Request) -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        "unknown-path",
        format!("there is no path {}", request.uri().path()),
        "GET /openapi.json lists every path",
    )
}

async fn wrong_method(request: Request) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong-method",
        format!("{} does not take {}", request.uri().path(), request.method()),
        "GET /openapi.json lists the methods of every path",
    )
}

/// Makes something to read and write out of an accepted connection: TLS, or nothing at all.
pub trait Accept<S>: Clone + Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self, socket: S) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Plain HTTP: for loopback and for sockets of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Accept<S> for Plain {
    type Stream = S;

    async fn accept(&self, socket: S) -> io::Result<S> {
        Ok(socket)
    }
}

/// One connection's requests, with who is at its other end.
#[derive(Clone)]
struct WithPeer {
    service: TowerToHyperService<Router>,
    peer: Peer,
    client: Arc<Client>,
    limits: Limits,
}

impl hyper::service::Service<http::Request<hyper::body::Incoming>> for WithPeer {
    type Response = http::Response<Leaving>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        let mut request: http::Request<Arriving> = request.map(|body| self.client.arriving(body, self.limits));
        request.extensions_mut().insert(self.peer);
        let (answer, client) = (self.service.call(request), self.client.clone());
        Box::pin(async move { answer.await.map(|answer| client.leaving(answer)) })
    }
}

/// A way by which connections come.
trait Door: Send {
    type Socket: Send + 'static;

    /// The next connection; `None` for one that was turned away.
    fn next(&self) -> impl Future<Output = std::io::Result<Option<(Self::Socket, Peer)>>> + Send;
}

impl Door for TcpListener {
    type Socket = TcpStream;

    async fn next(&self) -> std::io::Result<Option<(Self::Socket, Peer)>> {
        let (socket, address) = self.accept().await?;
        // Answers are small and complete: waiting for more to send only adds latency.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        Ok(Some((socket, Peer::tcp(address.ip()))))
    }
}

/// The node's own socket, for root and the user that the server runs as.
struct LocalDoor {
    listener: UnixListener,
    owner: u32,
}

impl Door for LocalDoor {
    type Socket = UnixStream;

    async fn next(&self) -> std::io::Result<Option<(Self::Socket, Peer)>> {
        let (socket, _) = self.listener.accept().await?;
        // The kernel says who connected; the file's mode is a second lock on the same door.
        match socket.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == self.owner => Ok(Some((socket, Peer::Root))),
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), "a process of another user was turned away from the node's socket");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, "nobody knows who connected to the node's socket");
                Ok(None)
            }
        }
    }
}

/// Serves the API until `shutdown` is done. Requests in flight may then take 2 s more.
pub async fn serve<B: Backend>(
    listener: TcpListener,
    acceptor: impl Accept<TcpStream>,
    backend: B,
    mut options: ApiOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    options.listen = options.listen.or_else(|| listener.local_addr().ok());
    run(listener, acceptor, backend, options, shutdown).await;
}

/// Serves the API on the node's own socket: whoever connects as root, or as user `owner`, may do
/// everything without a login. Others are turned away.
pub async fn serve_unix<B: Backend>(
    listener: UnixListener,
    owner: u32,
    backend: B,
    options: ApiOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    run(LocalDoor { listener, owner }, Plain, backend, options, shutdown).await;
}

async fn run<B: Backend, D: Door>(
    door: D,
    acceptor: impl Accept<D::Socket>,
    backend: B,
    options: ApiOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    let (node, limits) = (options.node_name.clone(), options.limits);
    let (sender, open) = watch::channel(());
    let app = Arc::new(App::new(backend, options, open.clone(), None));
    let service = TowerToHyperService::new(build(&app));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).pipeline_flush(true);
    let waiting = Waiting::new(limits);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = door.next() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (socket, peer) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%node, %error, "the API could not accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        let client = waiting.connected();
        let answer = WithPeer { service: service.clone(), peer, client: client.clone(), limits };
        let (http, acceptor, mut open) = (http.clone(), acceptor.clone(), open.clone());
        let app = app.clone();
        // What hangs on this node's word, as gateways elsewhere do, is to find another one. Whoever comes then is
        // told why; the machine itself is still answered.
        let cut_off = async move {
            if app.backend.away().is_some() || matches!(peer, Peer::Root) {
                return std::future::pending().await;
            }
            app.backend.goes_away().await;
        };
        let talk = async move {
            let stream = match tokio::time::timeout(limits.handshake, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => answer.client.taking(stream, limits),
                Ok(Err(error)) => return tracing::debug!(?peer, %error, "a client's handshake failed"),
                Err(_) => return tracing::debug!(?peer, "a client's handshake took too long"),
            };
            let connection = http.serve_connection(TokioIo::new(stream), answer);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                _ = open.changed() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(?peer, %error, "a connection to the API ended early");
            }
        };
        connections.spawn(async move {
            tokio::select! {
                () = talk => {}
                () = cut_off => tracing::debug!(?peer, "this node goes away for a drill"),
                () = client.cut_off() => tracing::debug!(?peer, "the client that was waited for longest makes room"),
            }
        });
    }
    drop(door);
    drop(sender);
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(END_WITHIN, all_done).await.is_err() {
        tracing::debug!(%node, "requests were still in flight when the API ended");
    }
}
