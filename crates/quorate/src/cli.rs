//! The command line: what people type, and what comes of it.
//!
//! # Invariants
//! - Data on standard output, messages on standard error; nothing is asked without a terminal.
//! - Every leaf of the tree has an example in its help, and no short flag means two things (a test
//!   walks the tree).
//! - Exit statuses are those of [`failure::Exit`].

mod activation;
pub(crate) mod api;
pub(crate) mod artifact;
pub(crate) mod audit;
mod autoscale;
pub(crate) mod cert;
pub(crate) mod client;
pub(crate) mod config;
pub(crate) mod db;
pub(crate) mod doctor;
pub(crate) mod drill;
pub(crate) mod events;
pub(crate) mod external;
pub(crate) mod failure;
pub(crate) mod ha;
pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod logs;
pub(crate) mod managers;
pub(crate) mod members;
pub(crate) mod password;
pub(crate) mod pinned;
pub(crate) mod place;
pub(crate) mod placement;
mod reconfigure;
pub(crate) mod recover;
pub(crate) mod screen;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod switch;
pub(crate) mod target;
pub(crate) mod tokens;
pub(crate) mod unix;
pub(crate) mod update;
mod update_hamode;
pub(crate) mod users;
pub(crate) mod vip;
pub(crate) mod waiting;

use crate::{daemon, demo, dev, torture};
use clap::{Args, CommandFactory, Parser, Subcommand};
use client::Client;
use failure::{Exit, Failure};
use quorate_model::secret::Secret;
use quorate_model::time::Span;
use quorate_trust::fingerprint::Fingerprint;
use screen::{Colour, Format, Screen};
use std::path::PathBuf;
use std::process::ExitCode;
use target::{Choice, ServerTrust, Target};

/// A few servers become one highly available cluster.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    propagate_version = false,
    arg_required_else_help = true,
    after_help = "Begin with a cluster on this machine:\n  quorate dev",
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// How results are written: table, wide or json
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table, hide_possible_values = true)]
    pub output: Format,
    /// Directory of a `quorate dev` cluster: the one to talk to, or the one to start
    #[arg(long, global = true, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Nodes to talk to, separated by commas; `unix:PATH` is the socket of the node here
    #[arg(long, global = true, value_name = "URL", env = "QUORATE_SERVER", hide_env_values = true)]
    pub server: Option<String>,
    /// File with an API token
    #[arg(long, global = true, value_name = "FILE", env = "QUORATE_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,
    /// Fingerprint of the cluster's CA, by which servers prove themselves
    #[arg(
        long,
        global = true,
        value_name = "FINGERPRINT",
        env = "QUORATE_CA_PIN",
        hide_env_values = true,
        conflicts_with = "ca_file"
    )]
    pub ca_pin: Option<Fingerprint>,
    /// Certificates of the authorities that servers may have theirs from, in PEM
    #[arg(long, global = true, value_name = "FILE", env = "QUORATE_CA_FILE", hide_env_values = true)]
    pub ca_file: Option<PathBuf>,
    /// Longest that the command may take
    #[arg(long, global = true, value_name = "SPAN", default_value = "30s")]
    pub timeout: Span,
    /// When to use colours: auto, always or never
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Colour::Auto, hide_possible_values = true)]
    pub color: Colour,
    /// Only results and errors, no messages
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cluster on this machine, to look at and to break
    Dev(dev::DevArgs),
    /// Break a cluster of this machine in every way, and prove that it keeps its promises
    Torture(torture::TortureArgs),
    /// Make a cluster, with this server as its first node
    #[command(
        after_help = "Examples:\n  sudo quorate init --name prod\n  quorate init --name prod --data-dir ./n1 --listen 127.0.0.1:7000 --no-start"
    )]
    Init(init::InitArgs),
    /// Make this server a node of a cluster
    #[command(
        after_help = "Examples:\n  sudo quorate join 192.168.1.51:7000/SECRET/FINGERPRINT\n  sudo quorate join 192.168.1.51:7000/SECRET/FINGERPRINT --name msk-2 --role worker"
    )]
    Join(join::JoinArgs),
    /// Print the command by which another server joins
    #[command(after_help = "Examples:\n  quorate add-node\n  quorate add-node --role worker --ttl 15m")]
    AddNode(members::AddNodeArgs),
    /// Take this node out of the cluster; started again, it comes back
    #[command(after_help = "Examples:\n  sudo quorate leave\n  quorate --server unix:./n1/api.sock leave --yes")]
    Leave(members::LeaveArgs),
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(members::ClusterCommand),
    /// How the cluster is, and what to do next
    #[command(after_help = "Examples:\n  quorate status\n  quorate status --check && deploy")]
    Status(status::StatusArgs),
    /// The servers of the cluster
    #[command(subcommand)]
    Node(members::NodeCommand),
    /// Whether nodes stand in for each other
    #[command(subcommand)]
    Ha(ha::HaCommand),
    /// The nodes that decide
    #[command(subcommand)]
    Manager(managers::ManagerCommand),
    /// The services that the cluster runs
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Set how many copies of a service run
    #[command(after_help = "Examples:\n  quorate scale web 5\n  quorate scale all 2")]
    Scale(service::ScaleArgs),
    /// Let the number of a service's copies follow what they have to do
    #[command(subcommand)]
    Autoscale(autoscale::AutoscaleCommand),
    /// Replace the copies of a service, or of all, one after another
    #[command(after_help = "Examples:\n  quorate restart web\n  quorate restart all")]
    Restart(service::RestartArgs),
    /// End the copies of a service, or of all; what they are to be is kept
    #[command(after_help = "Examples:\n  quorate stop web\n  quorate stop all --yes")]
    Stop(switch::StopArgs),
    /// Run a service that was stopped, or all
    #[command(after_help = "Examples:\n  quorate start web\n  quorate start all")]
    Start(switch::StartArgs),
    /// Make a service an earlier version of itself
    #[command(after_help = "Examples:\n  quorate rollback web\n  quorate rollback web --to 3")]
    Rollback(update::RollbackArgs),
    /// Updates that are under way
    #[command(subcommand)]
    Update(update::UpdateCommand),
    /// Why a service's copies run where they do, and why others run nowhere
    #[command(after_help = "Examples:\n  quorate explain web\n  quorate explain web -o json")]
    Explain {
        /// Name of the service
        service: String,
    },
    /// Change settings of the cluster and of its services while they run; several at once, all or none
    #[command(
        after_help = "Examples:\n  quorate reconfigure\n  quorate reconfigure --list\n  quorate reconfigure --set failover=20s --set replicas.web=4\n  quorate reconfigure --set 'autoscale.web=2..6 cpu=70%' --plan"
    )]
    Reconfigure(reconfigure::ReconfigureArgs),
    /// Bring what waits in nodes' files of settings into force: their servers begin anew, one after another
    #[command(
        after_help = "Examples:\n  quorate update-hamode --plan\n  quorate update-hamode\n  quorate --timeout 2m update-hamode\n  sudo quorate update-hamode --this-node"
    )]
    UpdateHamode(update_hamode::UpdateHamodeArgs),
    /// What the cluster would do if something happened
    #[command(subcommand)]
    Whatif(placement::WhatifCommand),
    /// Bring copies to where they would run better by now, one after another
    #[command(
        after_help = "Examples:\n  quorate rebalance --plan\n  quorate rebalance --moves 3\n  quorate rebalance --stop"
    )]
    Rebalance(placement::RebalanceArgs),
    /// Take a node away for a while, and measure how each service recovers
    #[command(
        after_help = "Examples:\n  quorate drill n2 --plan\n  quorate drill n2\n  quorate drill n2 --for 1m --yes -o json\n  quorate drill show"
    )]
    Drill(drill::DrillArgs),
    /// What a service's copies print, or a node's server says about itself; any node may be asked
    #[command(
        after_help = "Examples:\n  quorate logs web\n  quorate logs web -f --replica 0 -n 100\n  quorate logs --node n2 -f\n  quorate logs web --download ./web-logs"
    )]
    Logs(logs::LogsArgs),
    /// Virtual addresses that gateways hold
    #[command(subcommand)]
    Vip(vip::VipCommand),
    /// What happened in the cluster
    #[command(after_help = "Examples:\n  quorate events\n  quorate events -f -o json")]
    Events(events::EventsArgs),
    /// The cluster's database
    #[command(subcommand)]
    Db(db::DbCommand),
    /// Who may use the cluster
    #[command(subcommand)]
    User(users::UserCommand),
    /// What users may do
    #[command(subcommand)]
    Role(users::RoleCommand),
    /// Who is logged in
    #[command(subcommand)]
    Session(tokens::SessionCommand),
    /// What programs are let in with
    #[command(subcommand)]
    Token(tokens::TokenCommand),
    /// Passwords and keys of services, sealed
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// Databases and the like that services use and others run
    #[command(subcommand)]
    External(Box<external::ExternalCommand>),
    /// Files that services need on their nodes
    #[command(subcommand)]
    Artifact(artifact::ArtifactCommand),
    /// What nodes prove themselves with
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Who did what
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Begin a session; later commands on this machine use it
    #[command(
        after_help = "Examples:\n  quorate --server n1:7000 login anna\n  quorate login ci --password-file ./password"
    )]
    Login(tokens::LogInArgs),
    /// End the session of `login`
    #[command(after_help = "Examples:\n  quorate --server n1:7000 logout")]
    Logout,
    /// Consensus among the managers
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Go on with this manager alone, after the majority of them was lost for ever
    #[command(
        after_help = "Examples:\n  sudo quorate recover --plan\n  sudo quorate recover\n  sudo quorate recover --others-are-destroyed"
    )]
    Recover(recover::RecoverArgs),
    /// Look for what is wrong with this server and its cluster, and say what to do
    #[command(after_help = "Examples:\n  quorate doctor\n  quorate doctor -o wide\n  quorate doctor -o json || alert")]
    Doctor(doctor::DoctorArgs),
    /// The settings of this server
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Call the HTTP API as it is
    #[command(
        after_help = "Examples:\n  quorate api GET /v1/status\n  quorate api POST /v1/services/web/scale --data '{\"replicas\":3}'\n  quorate api POST /v1/specs --data @web.toml --type application/toml"
    )]
    Api(api::ApiArgs),
    /// Print the completions for a shell
    #[command(after_help = "Examples:\n  quorate completion bash > ~/.local/share/bash-completion/completions/quorate")]
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the version
    #[command(after_help = "Examples:\n  quorate version")]
    Version,
    /// Run one node of a cluster
    #[command(
        hide = true,
        after_help = "Examples:\n  quorate serve\n  quorate serve --config /etc/quorate/quorate.toml --data-dir /var/lib/quorate"
    )]
    Serve {
        /// Where the node keeps everything; its `node.toml` is in it. Without it, `node.data_dir`
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        #[command(flatten)]
        file: config::ConfigFile,
        /// End when the process with this id ends
        #[arg(long, value_name = "PID")]
        end_with_pid: Option<u32>,
        /// Trust the own judgement of others also when slow; to see what gossip's local health is good for
        #[arg(long, hide = true)]
        without_local_health: bool,
    },
    /// Run a gateway
    #[command(
        hide = true,
        after_help = "Examples:\n  quorate gateway --listen 0.0.0.0:80 --name gw1 --url http://gw1 --manager unix:/var/lib/quorate/api.sock --data-dir /var/lib/quorate/gw1\n  quorate gateway --listen 0.0.0.0:80 --name gw1 --url http://gw1 --manager https://n1:7000 --manager https://n2:7000 --ca-pin FINGERPRINT --token-file /etc/quorate/gateway.token --data-dir /var/lib/quorate-gw1"
    )]
    Gateway(daemon::GatewayArgs),
    /// Run the supervisor of one replica
    #[command(hide = true, after_help = "Examples:\n  The agent starts it; it is of no use by hand.")]
    Shim(daemon::ShimArgs),
    /// Run the service that `quorate dev` shows
    #[command(hide = true, after_help = "Examples:\n  quorate demo --port 8080")]
    Demo(demo::DemoArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RaftCommand {
    /// Make another node the Active one
    #[command(after_help = "Examples:\n  quorate raft transfer n2")]
    Transfer {
        /// Name of the node that shall lead
        node: String,
    },
}

/// What a command needs to do its work.
#[derive(Debug)]
pub(crate) struct Context {
    pub screen: Screen,
    pub choice: Choice,
    pub timeout: std::time::Duration,
    /// Of `--token-file`.
    pub token: Option<Secret<String>>,
}

impl Context {
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(self.client_for(&self.choice.find()?))
    }

    /// Writes a result: as JSON, or as `text` makes it.
    pub(crate) fn show<T: serde::Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.screen.is_json() {
            self.screen.json(value);
        } else {
            self.screen.data(&text(value));
        }
        Ok(())
    }

    /// Writes what was done.
    pub(crate) fn done<T: serde::Serialize>(&self, value: &T, text: &str) -> Result<(), Failure> {
        self.show(value, |_| text.to_owned())
    }

    pub(crate) fn client_for(&self, target: &Target) -> Client {
        let client = Client::new(target, self.timeout);
        match &self.token {
            Some(token) => client.with_token(token.clone()),
            None => client,
        }
    }
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.global.color.choose();
    let screen = Screen { format: cli.global.output, quiet: cli.global.quiet };
    match run(cli, screen) {
        Ok(code) => code,
        Err(failure) => {
            report(screen, &failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Errors are never silenced.
fn report(screen: Screen, failure: &Failure) {
    screen.progress_over();
    let text = if screen.is_json() { failure.to_json().to_string() } else { failure.to_string() };
    Screen { quiet: false, ..screen }.say(&text);
}

fn run(cli: Cli, screen: Screen) -> Result<ExitCode, Failure> {
    let trust = cli.global.ca_pin.map(ServerTrust::Pin).or(cli.global.ca_file.map(ServerTrust::Authorities));
    let token_file = cli.global.token_file;
    let context = Context {
        screen,
        choice: Choice { server: cli.global.server, keep: cli.global.keep, trust },
        timeout: cli.global.timeout.0,
        token: token_file.as_deref().map(password::from_file).transpose()?,
    };
    match cli.command {
        Command::Dev(args) => return dev::run(&context, args),
        Command::Torture(args) => return torture::run(&context, &args),
        Command::Status(args) => return status::run(&context, &args),
        Command::Init(args) => init::run(&context, &args)?,
        Command::Join(args) => join::run(&context, &args)?,
        Command::AddNode(args) => members::add_node(&context, &args)?,
        Command::Leave(args) => members::leave(&context, &args)?,
        Command::Cluster(command) => members::cluster(&context, command)?,
        Command::Node(command) => members::node(&context, command)?,
        Command::Ha(command) => ha::run(&context, &command)?,
        Command::Manager(command) => managers::run(&context, command)?,
        Command::Service(command) => service::run(&context, command)?,
        Command::Scale(args) => service::scale(&context, &args)?,
        Command::Autoscale(command) => autoscale::run(&context, command)?,
        Command::Restart(args) => service::restart(&context, &args)?,
        Command::Stop(args) => switch::stop(&context, &args)?,
        Command::Start(args) => switch::start(&context, &args)?,
        Command::Rollback(args) => update::rollback(&context, &args)?,
        Command::Update(command) => update::update(&context, &command)?,
        Command::Reconfigure(args) => reconfigure::run(&context, &args)?,
        Command::UpdateHamode(args) => update_hamode::run(&context, &args)?,
        Command::Explain { service } => placement::explain(&context, &service)?,
        Command::Whatif(command) => placement::whatif(&context, &command)?,
        Command::Rebalance(args) => placement::rebalance(&context, &args)?,
        Command::Drill(args) => return drill::run(&context, &args),
        Command::Logs(args) => logs::run(&context, &args)?,
        Command::Events(args) => events::run(&context, &args)?,
        Command::Db(command) => db::run(&context, command)?,
        Command::User(command) => users::user(&context, command)?,
        Command::Role(command) => users::role(&context, command)?,
        Command::Session(command) => tokens::session(&context, command)?,
        Command::Token(command) => tokens::token(&context, command)?,
        Command::Secret(command) => secret::run(&context, command)?,
        Command::External(command) => external::run(&context, *command)?,
        Command::Artifact(command) => artifact::run(&context, command)?,
        Command::Vip(command) => vip::run(&context, command)?,
        Command::Cert(command) => cert::run(&context, command)?,
        Command::Audit(command) => audit::run(&context, command)?,
        Command::Login(args) => tokens::log_in(&context, &args)?,
        Command::Logout => tokens::log_out(&context)?,
        Command::Raft(RaftCommand::Transfer { node }) => status::transfer(&context, &node)?,
        Command::Recover(args) => recover::run(&context, &args)?,
        Command::Doctor(args) => return doctor::run(&context, &args),
        Command::Config(command) => return config::run(&context, &command),
        Command::Api(args) => api::run(&context, &args)?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut script);
            screen.raw(&script);
        }
        Command::Version if screen.is_json() => {
            screen.json(&serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }));
        }
        Command::Version => screen.data(concat!("quorate ", env!("CARGO_PKG_VERSION"))),
        Command::Serve { data_dir, file, end_with_pid, without_local_health } => {
            // Before there is another thread.
            quorate_vfs::use_utc();
            hold(end_with_pid)?;
            let source = file.source();
            let loaded = source.load()?;
            daemon::serve(data_dir.as_deref(), source, loaded, !without_local_health)?;
        }
        Command::Gateway(args) => {
            hold(args.end_with_pid)?;
            daemon::gateway(&args, context.choice.trust.as_ref(), token_file)?;
        }
        Command::Shim(args) => return Ok(daemon::shim(&args)),
        Command::Demo(args) => demo::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Ties this process to another one, if asked to.
fn hold(pid: Option<u32>) -> Result<(), Failure> {
    let Some(pid) = pid else { return Ok(()) };
    crate::lifeline::end_with(pid).map_err(|error| {
        Failure::new(Exit::Failed, "no-lifeline", format!("process {pid} cannot be watched")).why(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn leaves(command: &clap::Command, path: &str, visit: &mut impl FnMut(&str, &clap::Command)) {
        for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
            let path = format!("{path} {}", child.get_name());
            // `dev` does something by itself and has commands below.
            if !child.has_subcommands() || !child.is_subcommand_required_set() {
                visit(&path, child);
            }
            leaves(child, &path, visit);
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        leaves(&Cli::command(), "quorate", &mut |path, command| {
            assert!(command.get_about().is_some(), "{path} says nothing about itself");
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.starts_with("Examples:\n  "), "{path} has no example");
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let says = arg.get_help().is_some() || arg.get_id() == "shell";
                assert!(says, "{path}: {} has no help", arg.get_id());
            }
        });
    }

    #[test]
    fn no_short_flag_means_two_things() {
        let mut root = Cli::command();
        root.build();
        let mut meanings: BTreeMap<char, (String, String)> = BTreeMap::new();
        leaves(&root, "quorate", &mut |path, command| {
            for arg in command.get_arguments() {
                let (Some(short), Some(long)) = (arg.get_short(), arg.get_long()) else { continue };
                // The two that every operator's fingers know: `apply -f FILE` and `logs -f`. The one
                // takes a value and the other does not, so a mistake is an error and nothing worse.
                if short == 'f' && matches!(long, "file" | "follow") {
                    continue;
                }
                let (first, owner) =
                    meanings.entry(short).or_insert_with(|| (long.to_owned(), path.to_owned())).clone();
                assert_eq!(first, long, "-{short} in {path} and in {owner}");
            }
        });
        assert!(meanings.contains_key(&'o'));
    }
}
