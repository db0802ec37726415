//! What a server runs: a node, a gateway, the supervisor of a replica.
//!
//! Each is a process of its own and ends on SIGTERM. This file turns their command lines into what
//! the crates that do the work want to know.

mod managers;
mod own_log;
mod vip;

use crate::cli::failure::Failure;
use crate::cli::join::seed;
use crate::cli::target::ServerTrust;
use crate::serve::Configured;
use crate::settings::{Loaded, LogFormat, LogSettings, Source};
use anyhow::Context as _;
use clap::Args;
use managers::ManagersTls;
use own_log::OwnLog;
use quorate_gateway::{Beside, GatewayConfig, SecureManagers};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

/// A gateway that ends waits this long until its VIPs are down. They end by themselves, too.
const VIPS_DOWN_WITHIN: Duration = Duration::from_millis(500);

/// What a gateway needs to know.
#[derive(Debug, Args)]
pub(crate) struct GatewayArgs {
    /// Where its default listener accepts clients
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// Its name in the cluster
    #[arg(long)]
    pub name: String,
    /// The URL under which clients reach it
    #[arg(long)]
    pub url: String,
    /// API of a manager that may feed it, or `unix:PATH`, the socket of the node here; repeat for each
    #[arg(long = "manager", value_name = "URL", required = true)]
    pub managers: Vec<String>,
    /// Where it keeps its last snapshot of the routes
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// UDP port on which gateways that may hold the same VIPs hear each other; the same on all of them
    #[arg(long, value_name = "PORT", default_value_t = vip::PORT)]
    pub vip_port: u16,
    /// End when the process with this id ends
    #[arg(long, value_name = "PID")]
    pub end_with_pid: Option<u32>,
    /// Answer 502 at the first failure; to see what retries are good for
    #[arg(long, hide = true)]
    pub without_retries: bool,
    /// Go on choosing replicas that are being retired; to see what draining is good for
    #[arg(long, hide = true)]
    pub without_draining: bool,
}

/// What a shim is given by the agent that starts it.
#[derive(Debug, Args)]
pub(crate) struct ShimArgs {
    /// The replica's directory
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// End when the process with this id ends
    #[arg(long, value_name = "PID")]
    pub end_with_pid: Option<u32>,
    /// Keep what a supervisor's driver is for
    #[arg(id = "as-keeper", long)]
    pub keep: bool,
    /// End what is left of the replica, and start nothing
    #[arg(long)]
    pub clean_up: bool,
}

/// Runs the node whose `node.toml` is in `data_dir`, or in the one that the settings name, until
/// SIGTERM or SIGINT. A server that is no node yet joins first, if its settings name seeds. `loaded` is
/// what `source` says now. `local_health`: on, unless to see what gossip does without.
///
/// # Errors
/// It cannot join, or cannot serve.
pub(crate) fn serve(
    data_dir: Option<&Path>,
    source: Source,
    mut loaded: Loaded,
    local_health: bool,
) -> Result<(), Failure> {
    let log = begin_log(&loaded.settings.log, Some(OwnLog::new()))?;
    if let Some(data_dir) = data_dir {
        data_dir.clone_into(&mut loaded.settings.node.data_dir);
    }
    let data_dir = loaded.settings.node.data_dir.clone();
    if seed::is_due(&data_dir, &loaded.settings) {
        seed::join(&loaded, std::thread::sleep)?;
    }
    Ok(crate::serve::run(&data_dir, Configured { source, settings: loaded.settings, log, local_health })?)
}

/// Runs a gateway until SIGTERM or SIGINT. `trust`: by what managers that are reached by `https` prove
/// themselves; `token_file`: what it shows to those that ask who it is.
///
/// # Errors
/// It cannot serve, or its managers cannot be used.
pub(crate) fn gateway(
    args: &GatewayArgs,
    trust: Option<&ServerTrust>,
    token_file: Option<PathBuf>,
) -> Result<(), Failure> {
    let tls = trust.map(ServerTrust::config).transpose()?;
    Ok(run_gateway(args, tls, token_file)?)
}

fn run_gateway(
    args: &GatewayArgs,
    tls: Option<Arc<rustls::ClientConfig>>,
    token_file: Option<PathBuf>,
) -> anyhow::Result<()> {
    let level = std::env::var("QUORATE_LOG").unwrap_or_else(|_| LogSettings::default().level);
    begin_log(&LogSettings { level, ..LogSettings::default() }, None)?;
    std::fs::create_dir_all(&args.data_dir).with_context(|| format!("creating {}", args.data_dir.display()))?;
    let (tables, table_seen) = watch::channel(None);
    let (reports, vips) = watch::channel(Vec::new());
    let config = GatewayConfig {
        name: args.name.clone(),
        listen: args.listen,
        url: args.url.clone(),
        managers: args.managers.clone(),
        tls: tls.map(|tls| Arc::new(ManagersTls::new(tls)) as Arc<dyn SecureManagers>),
        token_file,
        snapshot_file: Some(args.data_dir.join("routes.json")),
        retries: !args.without_retries,
        draining: !args.without_draining,
        active_checks: true,
        beside: Some(Beside { tables, vips }),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let asked = end_signal()?;
        let (leave, leaves) = oneshot::channel();
        if let Some(node) = vip::node_dir(&args.managers) {
            tokio::spawn(vip::run(node, args.vip_port, vip::Ears { tables: table_seen, reports, leave: leaves }));
        }
        let end = async {
            asked.await;
            // Others take the addresses while this gateway still serves whom it has.
            let (done, is_done) = oneshot::channel();
            if leave.send(done).is_ok() {
                let _ = tokio::time::timeout(VIPS_DOWN_WITHIN, is_done).await;
            }
        };
        let ready = |address: SocketAddr| tracing::info!(%address, "serving");
        quorate_gateway::run(config, ready, end).await.context("running the gateway")
    })
}

/// Runs the supervisor of one replica. Called on the main thread, before there is any other.
pub(crate) fn shim(args: &ShimArgs) -> ExitCode {
    let &ShimArgs { ref dir, end_with_pid, keep, clean_up } = args;
    quorate_agent::shim::shim(&quorate_agent::shim::ShimArgs { dir: dir.clone(), end_with_pid, keep, clean_up })
}

/// Completes when the process is asked to end (SIGTERM or SIGINT).
pub(crate) fn end_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// The log of this process, while it runs.
pub(crate) struct LogControl {
    level: reload::Handle<EnvFilter, Registry>,
    own: Option<OwnLog>,
}

impl LogControl {
    /// # Errors
    /// The text is no level and no filter.
    pub(crate) fn set_level(&self, level: &str) -> anyhow::Result<()> {
        self.level.reload(filter(level)?).context("changing the level of the log")
    }

    /// Keeps a server's log in this directory from now on, and what was said before; about `bytes` of it.
    ///
    /// # Errors
    /// There can be no thread for it.
    pub(crate) fn keep_in(&self, dir: PathBuf, bytes: u64) -> anyhow::Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        own.keep_in(dir, bytes / 2).context("starting the thread that keeps the log")
    }
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(level).with_context(|| format!("`{level}` is no level of a log"))
}

/// A daemon's log goes to stderr, for journald or a file; a server's own goes into its data directory too.
fn begin_log(settings: &LogSettings, own: Option<OwnLog>) -> anyhow::Result<LogControl> {
    type Lines =
        Box<dyn tracing_subscriber::Layer<Layered<reload::Layer<EnvFilter, Registry>, Registry>> + Send + Sync>;
    let (filter, level) = reload::Layer::new(filter(&settings.level)?);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let said = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    let kept = own.clone().map(|own| fmt::layer().with_writer(own).with_ansi(false).with_target(false));
    let mut lines: Vec<Lines> = Vec::new();
    match settings.format {
        LogFormat::Text => {
            lines.push(said.boxed());
            lines.extend(kept.map(tracing_subscriber::Layer::boxed));
        }
        LogFormat::Json => {
            lines.push(said.json().boxed());
            lines.extend(kept.map(|kept| kept.json().boxed()));
        }
    }
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(LogControl { level, own })
}
