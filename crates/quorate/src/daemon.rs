//! The seam between the command line and the daemon.
//!
//! TO BE REPLACED by the daemon itself: nothing here runs a node yet.

use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    /// API of a manager that may feed it; repeat for each
    #[arg(long = "manager", value_name = "URL", required = true)]
    pub managers: Vec<String>,
    /// Where it keeps its last snapshot of the routes
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// End when the process with this id ends
    #[arg(long, value_name = "PID")]
    pub end_with_pid: Option<u32>,
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

/// Runs the node whose `node.toml` is in `data_dir`, until SIGTERM or SIGINT.
pub(crate) fn serve(data_dir: &Path) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon to run in {}", data_dir.display())
}

/// Runs a gateway until SIGTERM or SIGINT.
pub(crate) fn gateway(args: &GatewayArgs) -> anyhow::Result<()> {
    anyhow::bail!("this build has no gateway to run on {}", args.listen)
}

/// Runs the supervisor of one replica. Called on the main thread, before there is any other.
pub(crate) fn shim(args: &ShimArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no shim to run in {}", args.dir.display())
}
