//! The router and the loop that serves it.
//!
//! Why not `axum::serve`: it sets neither a deadline for a request's head, nor TCP_NODELAY, nor an
//! end for streams that never end by themselves.

use crate::backend::Backend;
use crate::problem::Failure;
use crate::{cluster, console, database, guard, log, openapi, rqlite, stream};
use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post};
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// Longest wait for the head of a request, also on a connection that is kept open.
const HEAD_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for a handshake, as for a head: whoever is slower holds a connection for nothing.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
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
    /// Serves over TLS with this. `None`: plain HTTP, which belongs on loopback.
    pub tls: Option<Arc<ServerConfig>>,
}

/// What handlers share.
#[derive(Debug)]
pub(crate) struct App<B> {
    pub backend: B,
    pub options: ApiOptions,
    /// Its sender goes when the server ends; streams end then.
    pub open: watch::Receiver<()>,
    /// That sender, where no server holds it: streams then live as long as the router.
    _ends_with_router: Option<watch::Sender<()>>,
}

pub(crate) type Shared<B> = Arc<App<B>>;

/// The native paths, all of them described in `/openapi.json`.
pub(crate) fn native<B: Backend>() -> Vec<(&'static str, MethodRouter<Shared<B>>)> {
    vec![
        ("/v1/status", get(cluster::status::<B>)),
        ("/v1/nodes", get(cluster::nodes::<B>)),
        ("/v1/services", get(cluster::services::<B>)),
        ("/v1/services/{name}", get(cluster::service::<B>).merge(delete(cluster::remove_service::<B>))),
        ("/v1/services/{name}/scale", post(cluster::scale::<B>)),
        ("/v1/events", get(cluster::events::<B>)),
        ("/v1/active", get(cluster::active::<B>)),
        ("/v1/health", get(cluster::health::<B>)),
        ("/v1/specs", post(cluster::apply_specs::<B>)),
        ("/v1/raft/transfer", post(cluster::transfer::<B>)),
        ("/v1/db/exec", post(database::exec::<B>)),
        ("/v1/db/query", post(database::query::<B>).merge(get(database::query_get::<B>))),
        ("/v1/stream", get(stream::overview::<B>)),
        ("/v1/gateway/stream", get(stream::routing::<B>)),
        ("/v1/gateway/report", post(stream::gateway_report::<B>)),
        ("/v1/replicas/{id}/log", get(log::replica_log::<B>)),
    ]
}

/// The API of one node. Its streams end with it.
pub fn router<B: Backend>(backend: B, options: ApiOptions) -> Router {
    let (sender, open) = watch::channel(());
    build(App { backend, options, open, _ends_with_router: Some(sender) })
}

fn build<B: Backend>(app: App<B>) -> Router {
    let app = Arc::new(app);
    let mut router = Router::new();
    for (path, methods) in native::<B>() {
        router = router.route(path, methods);
    }
    router
        .route("/db/execute", post(rqlite::execute::<B>))
        .route("/db/query", get(rqlite::query_get::<B>).merge(post(rqlite::query::<B>)))
        .route("/openapi.json", get(openapi::serve))
        .route("/", get(console::root))
        .route("/ui", get(console::root))
        .route("/ui/", get(console::index::<B>))
        .route("/ui/{*path}", get(console::asset))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), guard::guard::<B>))
        .with_state(app)
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

/// Serves the API until `shutdown` is done. Requests in flight may then take 2 s more.
pub async fn serve<B: Backend>(
    listener: TcpListener,
    backend: B,
    mut options: ApiOptions,
    shutdown: impl Future<Output = ()> + Send,
) {
    options.listen = options.listen.or_else(|| listener.local_addr().ok());
    let node = options.node_name.clone();
    let tls = options.tls.clone().map(TlsAcceptor::from);
    let (sender, open) = watch::channel(());
    let service =
        TowerToHyperService::new(build(App { backend, options, open: open.clone(), _ends_with_router: None }));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).pipeline_flush(true);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%node, %error, "the API could not accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        // Answers are small and complete: waiting for more to send only adds latency.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%node, %error, "TCP_NODELAY could not be set");
        }
        let (http, service, open) = (http.clone(), service.clone(), open.clone());
        match tls.clone() {
            None => connections.spawn(converse(http, socket, service, open)),
            Some(tls) => connections.spawn(async move {
                match tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(socket)).await {
                    Ok(Ok(stream)) => converse(http, stream, service, open).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a client of the API did not finish its handshake"),
                    Err(_) => tracing::debug!("a client of the API was too slow with its handshake"),
                }
            }),
        };
    }
    drop(listener);
    drop(sender);
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(END_WITHIN, all_done).await.is_err() {
        tracing::debug!(%node, "requests were still in flight when the API ended");
    }
}

/// One connection, until the client has enough or the server ends.
async fn converse<S>(
    http: http1::Builder,
    stream: S,
    service: TowerToHyperService<Router>,
    mut open: watch::Receiver<()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = open.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the API ended early");
    }
}
