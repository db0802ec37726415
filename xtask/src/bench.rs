//! Benches: against a peer, in the same run, on this machine, wherever there is one.
//!
//! The peers' scripts and the load generator live outside this repository, in a folder that
//! `--anchors` (or `QUORATE_ANCHORS`) names; our own scripts are in `bench/`.

use crate::{must, needs, root};
use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Three nodes: durable writes, reads, failover, idle; against etcd and ZooKeeper.
    First(Options),
    /// One gateway core: CPU per request against HAProxy.
    Gateway(Options),
    /// How long the scheduler takes for 1,000 services on 50 nodes. Alone: nobody else's can be called like that.
    Plan,
    /// Ten nodes in network namespaces: how soon a lost one is seen, false alarms, idle gossip, joins; and five,
    /// whose other calls are timed while passwords are guessed. Alone; nobody else has the same. Needs root.
    Members {
        /// What to measure: any of gone, alarms, idle, join, guessing. Default: all.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// How many nodes.
        #[arg(long, default_value_t = 10)]
        nodes: u32,
        /// How often each kind of loss is tried.
        #[arg(long, default_value_t = 20)]
        runs: u32,
    },
    /// Services that run once, on clusters of three nodes in network namespaces: does any ever run twice, whatever
    /// is killed, stands still, is cut off or has its clock set? Needs root.
    Fencing {
        /// How often a node is taken from the others.
        #[arg(long, default_value_t = 1000)]
        runs: u32,
        /// The failover time of the services, in seconds: below 10 the same with a lease that is scaled down.
        #[arg(long, default_value_t = 2)]
        failover: u32,
        /// Clusters side by side.
        #[arg(long, default_value_t = 3)]
        clusters: u32,
        /// With servers that fence nothing: fails when no two copies are seen at once.
        #[arg(long)]
        unfenced: bool,
    },
    /// Services on five nodes in network namespaces: how long work stands still when a process, a node or the
    /// leader is lost. Needs root.
    Failover {
        /// What to measure: any of process, singleton, leader, leave, traffic, restart, managers, autoscale, vip. Default: all.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// How often each.
        #[arg(long, default_value_t = 10)]
        runs: u32,
        /// The failover time of the singletons, in seconds.
        #[arg(long, default_value_t = 10)]
        failover: u32,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The folder with the peers' scripts and the load generator. Default: `shared/anchors` beside the checkout.
    #[arg(long, env = "QUORATE_ANCHORS")]
    anchors: Option<PathBuf>,
    /// What to measure: any of write, read, failover, idle. Default: all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave the peers out (their figures then come from elsewhere: say so).
    #[arg(long)]
    without_peers: bool,
}

pub(crate) fn run(what: &Bench) -> Result<()> {
    if matches!(what, Bench::Plan) {
        return must("cargo", &["bench", "--quiet", "--package", "quorate-scheduler", "--bench", "plan"]);
    }
    if let Bench::Fencing { runs, failover, clusters, unfenced } = what {
        return fencing(&[("--runs", *runs), ("--failover", *failover), ("--clusters", *clusters)], *unfenced);
    }
    must("cargo", &["build", "--release", "--quiet", "--package", "quorate"])?;
    match what {
        Bench::Plan | Bench::Fencing { .. } => Ok(()),
        Bench::First(options) => first(options),
        Bench::Gateway(options) => gateway(options),
        Bench::Members { only, nodes, runs } => rigged("members.py", only, &[("--nodes", *nodes), ("--runs", *runs)]),
        Bench::Failover { only, runs, failover } => {
            needs::debian(&[("keepalived", "keepalived"), ("wrk", "wrk")])?;
            rigged("failover.py", only, &[("--runs", *runs), ("--failover", *failover)])
        }
    }
}

const PEERS: &[(&str, &str)] =
    &[("etcd-server", "etcd"), ("etcd-client", "etcdctl"), ("protobuf-compiler", "protoc"), ("cmake", "cmake")];
const ZOOKEEPER: &[(&str, &str)] = &[("zookeeper", "zookeeper-server"), ("default-jre-headless", "java")];

impl Options {
    fn anchors(&self) -> Result<PathBuf> {
        let folder = self.anchors.clone().unwrap_or_else(|| root().join("../shared/anchors"));
        if !folder.join("lib/anchor.py").is_file() {
            bail!("there are no peers' scripts in {}: name their folder with --anchors", folder.display());
        }
        folder.canonicalize().context("the folder of the peers' scripts")
    }
}

fn first(options: &Options) -> Result<()> {
    let anchors = options.anchors()?;
    needs::debian(PEERS)?;
    if !options.without_peers {
        script(options, anchors.join("etcd.py"))?;
        if !std::path::Path::new("/usr/share/zookeeper").exists() {
            needs::debian(ZOOKEEPER)?;
        }
        script(options, anchors.join("zookeeper.py"))?;
    }
    script(options, root().join("bench/quorate.py"))
}

fn gateway(options: &Options) -> Result<()> {
    needs::debian(&[
        ("haproxy", "haproxy"),
        ("nginx-light", "nginx"),
        ("wrk", "wrk"),
        ("protobuf-compiler", "protoc"),
    ])?;
    script(options, root().join("bench/gateway.py"))
}

/// A binary that does not fence is built where nobody takes it for another.
const UNFENCED: &str = "target/unfenced";

fn fencing(numbers: &[(&str, u32)], unfenced: bool) -> Result<()> {
    needs::debian(&[("faketime", "faketime")])?;
    if !unfenced {
        must("cargo", &["build", "--release", "--quiet", "--package", "quorate"])?;
        return rigged("fencing.py", &[], numbers);
    }
    let features = ["--package", "quorate", "--features", "unfenced", "--target-dir", UNFENCED];
    must("cargo", &[&["build", "--quiet"], &features[..]].concat())?;
    let numbers = [numbers, &[("--unfenced", 1)]].concat();
    rig(&root().join(UNFENCED).join("debug/quorate"), "fencing.py", &[], &numbers)
}

/// A script of ours that makes its own nodes.
fn rigged(name: &str, only: &[String], numbers: &[(&str, u32)]) -> Result<()> {
    rig(&root().join("target/release/quorate"), name, only, numbers)
}

fn rig(binary: &Path, name: &str, only: &[String], numbers: &[(&str, u32)]) -> Result<()> {
    needs::debian(&[("iproute2", "ip")])?;
    let status = Command::new("python3")
        .arg(root().join("bench").join(name))
        .args(only)
        .args(numbers.iter().flat_map(|(flag, number)| [(*flag).to_owned(), number.to_string()]))
        .env("QUORATE_BINARY", binary)
        .status()
        .with_context(|| format!("starting {name}"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

fn script(options: &Options, path: PathBuf) -> Result<()> {
    let shown = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    println!("\n## {shown}\n");
    let status = Command::new("python3")
        .arg(&path)
        .args(&options.only)
        .env("QUORATE_ANCHORS", options.anchors()?)
        .env("QUORATE_BINARY", root().join("target/release/quorate"))
        .env("ANCHOR_TARGET", root().join("target/anchors"))
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .status()
        .with_context(|| format!("starting {shown}"))?;
    if !status.success() {
        bail!("{shown} failed: {status}");
    }
    Ok(())
}
