//! The data plane: takes requests of clients and sends each to a replica that can answer it.
//!
//! A gateway is a process of its own. Managers feed it complete routing tables; when none of them
//! answers, it goes on with the last table, so that the loss of every manager never stops traffic.
//!
//! ```text
//! managers ──tables──▶ control ──▶ plane (table, endpoints) ◀── checks
//!          ◀─reports──             │
//! clients ──▶ listeners ──▶ downstream ──▶ proxy ──▶ upstream ──▶ replicas
//! ```
//!
//! # Invariants
//! - A request whose body a replica may have seen is never sent twice; a request that a replica may
//!   have acted on is sent again only when its method is idempotent.
//! - An endpoint that the table in force does not offer gets no new request, and it is reported as
//!   busy until the last request it got before is answered.
//! - Nothing in the path of a request waits for a manager, a disk or a lock.
//!
//! # Sources
//! RFC 9110 and 9112; the probe of other proxies that the table of cases in `tests` comes from.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod check;
mod control;
mod counters;
mod downstream;
mod endpoint;
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod listeners;
mod manager;
mod plane;
mod proxy;
mod reply;
mod table;
mod upstream;

#[cfg(test)]
mod tests;

pub use crate::manager::{BadManager, SecureManagers, Secured, Stream};

use crate::manager::Managers;
use crate::plane::Plane;
use quorate_model::observed::VipReport;
use quorate_model::routing::RoutingTable;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a gateway is told when it starts.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Name under which it reports. One gateway, one name.
    pub name: String,
    /// Where the listener `default` listens. Listeners `:PORT` use the same IP address.
    pub listen: SocketAddr,
    /// How clients reach it, for people: `http://HOST:PORT`.
    pub url: String,
    /// `https://HOST:PORT` or `unix:/PATH` of managers; `http://HOST:PORT` in a test. Any of them feeds it;
    /// the first that answers does.
    pub managers: Vec<String>,
    /// What managers that are reached by `https` prove themselves to. Default: there are none.
    pub tls: Option<Arc<dyn SecureManagers>>,
    /// The file with the API token that managers are shown. Default: they do not ask.
    pub token_file: Option<PathBuf>,
    /// Where the last table is kept, so that a gateway that starts while no manager answers can work.
    pub snapshot_file: Option<PathBuf>,
    /// Sends a request again, elsewhere, when that is safe. Off only to prove that it matters.
    pub retries: bool,
    /// Leaves draining endpoints alone. Off only to prove that it matters.
    pub draining: bool,
    /// Asks every endpoint each second whether it is there.
    pub active_checks: bool,
    /// What has to do with virtual addresses. Default: nobody does.
    pub beside: Option<Beside>,
}

/// Whoever runs beside the data plane, in its process: sees each table that comes in force, and is reported
/// with the gateway.
#[derive(Debug, Clone)]
pub struct Beside {
    pub tables: watch::Sender<Option<Arc<RoutingTable>>>,
    pub vips: watch::Receiver<Vec<VipReport>>,
}

/// Why a gateway could not start. Nothing was served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    #[error("the gateway cannot listen on {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    BadManager(#[from] BadManager),
}

/// How long things may take. Tests shorten some of them.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// A connect to a replica when nothing else is there to try.
    pub connect: Duration,
    /// A connect to a replica while another one is there: a lost SYN costs one change of replica,
    /// a server without power costs a client no more than this.
    pub connect_with_alternative: Duration,
    /// From the last byte of the request that was taken to the head of the response.
    pub response: Duration,
    /// Between two requests of a client's connection.
    pub client_idle: Duration,
    /// From the first byte of a request to the end of its head.
    pub request_head: Duration,
    /// How long a request waits for a replica to appear.
    pub hold: Duration,
    /// Between two attempts of a request that waits.
    pub hold_step: Duration,
    /// Idle time after which a pooled connection is closed. Below the 60 s and more that servers
    /// usually keep them; one that is closed earlier by the replica is noticed when it is taken.
    pub upstream_idle: Duration,
    /// Step of the coarse clock that client deadlines are measured with.
    pub tick: Duration,
    /// Silence after which a manager counts as gone.
    pub manager_silence: Duration,
    pub report_every: Duration,
    pub check_every: Duration,
    /// Between two looks at where requests wait; after two in vain a replica is checked out of turn.
    pub look_every: Duration,
    /// First ejection after a refused connection; it doubles up to `eject_longest`.
    pub eject_first: Duration,
    pub eject_longest: Duration,
    /// How long a gateway that ends waits for requests in flight.
    pub stop_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(1),
            connect_with_alternative: Duration::from_millis(250),
            response: Duration::from_secs(60),
            client_idle: Duration::from_secs(30),
            request_head: Duration::from_secs(10),
            hold: Duration::from_secs(1),
            hold_step: Duration::from_millis(50),
            upstream_idle: Duration::from_secs(30),
            tick: Duration::from_secs(1),
            manager_silence: Duration::from_secs(3),
            report_every: Duration::from_secs(1),
            check_every: Duration::from_secs(1),
            look_every: Duration::from_millis(100),
            eject_first: Duration::from_secs(1),
            eject_longest: Duration::from_secs(10),
            stop_grace: Duration::from_secs(10),
        }
    }
}

/// Runs a gateway until `shutdown` resolves; then it takes no new connections and ends when the
/// requests in flight are answered, at most 10 s later.
///
/// Needs a tokio runtime with I/O and time; a current-thread one is what it is made for. `ready`
/// is called once with the bound address, before any table is known: until one is, requests wait
/// up to 1 s and are then answered 503.
///
/// # Errors
/// [`GatewayError`] when it could not start. A listener of a route that cannot be opened is logged
/// and tried again each second.
pub async fn run(
    config: GatewayConfig,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    run_with(config, Limits::default(), ready, shutdown).await
}

pub(crate) async fn run_with(
    config: GatewayConfig,
    limits: Limits,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    let managers = Arc::new(Managers::new(&config)?);
    let listener =
        listeners::bind(config.listen).map_err(|source| GatewayError::Bind { address: config.listen, source })?;
    let address = listener.local_addr().map_err(|source| GatewayError::Bind { address: config.listen, source })?;
    let plane = Arc::new(Plane::new(config, limits, address));
    if let Some(table) = control::read_snapshot(&plane) {
        plane.install(table, plane::Origin::Snapshot);
    }

    // Dropping the set ends the tasks, so that a cancelled `run` leaves nothing behind.
    let mut tasks = JoinSet::new();
    tasks.spawn(downstream::sweep(plane.clone()));
    tasks.spawn(check::look(plane.clone()));
    tasks.spawn(control::write_snapshots(plane.clone()));
    let (feeder, fed_by) = tokio::sync::watch::channel(None);
    tasks.spawn(control::follow(plane.clone(), managers.clone(), feeder));
    tasks.spawn(control::report(plane.clone(), managers, fed_by));
    let listening = tasks.spawn(listeners::run(plane.clone(), listener));
    ready(address);

    shutdown.await;
    listening.abort();
    plane.clients.close();
    // Past the grace the process ends and with it what is left; a client sees a closed connection.
    let _ = tokio::time::timeout(plane.limits.stop_grace, plane.clients.empty()).await;
    plane.stop_checks();
    Ok(())
}
