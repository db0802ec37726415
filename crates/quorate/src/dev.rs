//! `quorate dev`: a whole cluster on one machine, to look at and to break.
//!
//! Nothing in it is a simulation: real processes of this binary, real sockets, real fsync. This
//! process is the parent of all of them and does what a service manager does on servers.
//!
//! # Invariants
//! - Whatever it starts ends with it, however it ends: every process watches this one's pid
//!   ([`crate::lifeline`]), and an orderly end checks that nothing is left.
//! - Nothing is half started: a failed start stops what it began and removes what it made.
//! - Times that it prints are measured: from its own first signal to the event's own time.

pub(crate) mod cluster;
pub(crate) mod control;
pub(crate) mod layout;
pub(crate) mod procfs;
pub(crate) mod registry;
pub(crate) mod report;

use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate dev\n  quorate dev --nodes 5 --keep ./cluster\n  quorate dev --service web.toml --port-base 9000\nand in another terminal:\n  quorate status\n  quorate dev kill n1"
)]
pub(crate) struct DevArgs {
    /// How many nodes, 1 to 9 [default: 3, or as many as the directory has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,
    /// The gateway's port; node I has its API on the I-th after it. 0 chooses free ports
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port_base: u16,
    /// Run what this spec file says instead of the demo
    #[arg(long, value_name = "FILE")]
    service: Option<PathBuf>,
    /// When all is ready print one line of JSON, and nothing else
    #[arg(long)]
    json: bool,
    /// One more argument for the gateway; repeat for each. To see what retries and draining are good for
    #[arg(long, value_name = "ARG", hide = true, allow_hyphen_values = true)]
    gateway_arg: Vec<String>,
    /// Bytes of log that each node keeps for others that were away
    #[arg(long, hide = true, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(crate::config::RETAIN_MIN..))]
    log_retain: Option<u64>,
    #[command(subcommand)]
    command: Option<DevCommand>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Kill a node of the running cluster: its server and all its copies, at once
    #[command(after_help = "Examples:\n  quorate dev kill n1\n  quorate dev kill n1 --server-only -o json")]
    Kill {
        /// Name of the node
        node: String,
        /// Leave the copies of services alone
        #[arg(long)]
        server_only: bool,
    },
    /// Stop a node of the running cluster in an orderly way
    #[command(after_help = "Examples:\n  quorate dev stop n2")]
    Stop {
        /// Name of the node
        node: String,
    },
    /// Start a node that was killed or stopped
    #[command(after_help = "Examples:\n  quorate dev start n1")]
    Start {
        /// Name of the node
        node: String,
    },
    /// Where the running cluster can be reached
    #[command(after_help = "Examples:\n  quorate dev urls\n  quorate dev urls -o json")]
    Urls,
}

pub(crate) fn run(context: &Context, args: DevArgs) -> Result<ExitCode, Failure> {
    use control::Order;
    match args.command {
        Some(DevCommand::Kill { node, server_only }) => report::run(context, &Order::Kill { node, server_only })?,
        Some(DevCommand::Stop { node }) => report::run(context, &Order::Stop { node })?,
        Some(DevCommand::Start { node }) => report::run(context, &Order::Start { node })?,
        Some(DevCommand::Urls) => {
            let record = context.choice.find_dev()?;
            if context.screen.is_json() {
                context.screen.json(&record);
            } else {
                context.screen.data(&cluster::url_tree(&record));
            }
        }
        None => {
            let options = layout::Options {
                nodes: args.nodes,
                keep: context.choice.keep.clone(),
                port_base: args.port_base,
                gateway_args: args.gateway_arg,
                log_retain: args.log_retain,
            };
            return cluster::run(context, &options, args.service.as_deref(), args.json || context.screen.is_json());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends `signal` to a process; one that has ended already is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // The only other error is that it is not ours to signal, and then it is none of ours.
        let _ = kill_process(pid, signal);
    }
}

/// An I/O error of `dev` itself.
fn io_failure(what: impl Into<String>, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, "io", what).why(error)
}
