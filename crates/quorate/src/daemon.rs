//! What a server runs: a node, a gateway, the supervisor of a replica.
//!
//! Each is a process of its own and ends on SIGTERM. This file turns their command lines into what
//! the crates that do the work want to know.

mod managers;

use crate::cli::failure::Failure;
use crate::cli::join::seed;
use crate::cli::target::ServerTrust;
use crate::serve::Configured;
use crate::settings::{Loaded, LogFormat, LogSettings, Source};
use anyhow::Context as _;
use clap::Args;
use managers::ManagersTls;
use quorate_gateway::{GatewayConfig, SecureManagers};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

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
    let log = log_to_stderr(&loaded.settings.log)?;
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
    log_to_stderr(&LogSettings { level, ..LogSettings::default() })?;
    std::fs::create_dir_all(&args.data_dir).with_context(|| format!("creating {}", args.data_dir.display()))?;
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
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let end = end_signal()?;
        let ready = |address: SocketAddr| tracing::info!(%address, "serving");
        quorate_gateway::run(config, ready, end).await.context("running the gateway")
    })
}

/// Runs the supervisor of one replica. Called on the main thread, before there is any other.
pub(crate) fn shim(args: &ShimArgs) -> ExitCode {
    let args = quorate_agent::shim::ShimArgs { dir: args.dir.clone(), end_with_pid: args.end_with_pid };
    quorate_agent::shim::shim(&args)
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

/// Changes the level of this process's log while it runs.
pub(crate) struct LogControl(reload::Handle<EnvFilter, Registry>);

impl LogControl {
    /// # Errors
    /// The text is no level and no filter.
    pub(crate) fn set_level(&self, level: &str) -> anyhow::Result<()> {
        self.0.reload(filter(level)?).context("changing the level of the log")
    }
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(level).with_context(|| format!("`{level}` is no level of a log"))
}

/// A daemon's log goes to stderr, for journald or a file.
fn log_to_stderr(settings: &LogSettings) -> anyhow::Result<LogControl> {
    let (filter, control) = reload::Layer::new(filter(&settings.level)?);
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(LogControl(control))
}
