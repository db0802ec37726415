//! The processes of a `dev` cluster: started together, watched, ended together.
//!
//! One thread owns everything and receives what happens as messages: a process ended, a signal
//! came, an order came. Nothing else changes anything.

use crate::cli::Context;
use crate::cli::client::{Call, Client};
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::{Screen, took, wall_now};
use crate::cli::service::{is_settled, not_started};
use crate::cli::status::mode;
use crate::cli::target::Target;
use crate::dev::control::{self, Order, Reply, Request};
use crate::dev::layout::{self, Layout, NodePlan, Options};
use crate::dev::registry::{self, NodeAddress, Record};
use crate::dev::{io_failure, procfs, signal};
use crate::settings::keys::KEYS;
use quorate_api::view::{NodeState, Overview, ServiceView};
use quorate_model::spec::{RouteSpec, SpecDocument};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use ureq::http::Method;

/// How often a start looks whether it has come further. It bounds the error of "Ready in".
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest start. Ten times what a loaded machine needs.
const START: Duration = Duration::from_secs(60);
/// How long services of an earlier run may take to be healthy before the start goes on without them.
const KEPT_SERVICES: Duration = Duration::from_secs(10);
/// How long a server or gateway may take to end in an orderly way.
const SERVER_GRACE: Duration = Duration::from_secs(5);
/// How long the copies of services may take, in a cluster that is thrown away.
const REPLICA_GRACE: Duration = Duration::from_secs(3);
/// A gateway that ends by itself sooner than this after its start is not started again.
const GATEWAY_STABLE: Duration = Duration::from_secs(2);
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 16 * 1024;

/// What happens to a running cluster.
enum Event {
    Ended { who: Who, pid: u32 },
    Signal,
    Order(Request),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Node(usize),
    Gateway,
}

struct Cluster {
    screen: Screen,
    layout: Layout,
    executable: PathBuf,
    servers: Vec<Option<Child>>,
    gateway: Option<Child>,
    gateway_args: Vec<String>,
    gateway_started: Instant,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

/// `quorate dev`: runs until a signal comes.
pub(crate) fn run(
    context: &Context,
    options: &Options,
    service: Option<&Path>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let screen = context.screen;
    let document = service.map(crate::cli::service::read_spec_text).transpose()?;
    // Takes away what killed ones have left behind.
    let registry = registry::dir();
    registry::running(&registry);
    let layout = layout::prepare(options)?;
    let executable =
        std::env::current_exe().map_err(|error| io_failure("this program does not know its own file", error))?;
    let (sender, events) = mpsc::channel();
    watch_signals(sender.clone())?;
    let mut cluster = Cluster {
        screen,
        servers: layout.nodes.iter().map(|_| None).collect(),
        layout,
        executable,
        gateway: None,
        gateway_args: options.gateway_args.clone(),
        gateway_started: started,
        sender,
        events,
    };
    let outcome = cluster.start_and_serve(&registry, document, started, json);
    if outcome.is_ok() {
        screen.say("\nStopping …");
    }
    cluster.stop_everything();
    let temporary = cluster.layout.temporary.take();
    let kept = cluster.layout.dir.clone();
    let removed = temporary.map(tempfile::TempDir::close);
    outcome?;
    match removed {
        None => screen.say(&format!("✔ everything is stopped; the data stays in {}", kept.display())),
        Some(Ok(())) => screen.say("✔ everything is stopped and the temporary directory is gone"),
        Some(Err(error)) => {
            return Err(io_failure(format!("everything is stopped; {} cannot be removed", kept.display()), error));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Turns the first and each later signal into an event.
fn watch_signals(sender: Sender<Event>) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: io::Error| io_failure("signals cannot be received", error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // Registered before this returns, so that no signal ends us with processes left behind.
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    drop(guard);
    let watch = async move {
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
            if sender.send(Event::Signal).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(watch)).map_err(failed)?;
    Ok(())
}

impl Cluster {
    fn start_and_serve(
        &mut self,
        registry: &Path,
        document: Option<String>,
        started: Instant,
        json: bool,
    ) -> Result<(), Failure> {
        let say = |cluster: &Cluster, line: &str| {
            if !json {
                cluster.screen.data(line)
            }
        };
        let count = self.layout.nodes.len();
        let place = match &self.layout.temporary {
            Some(_) => "in a temporary directory (--keep DIR to keep it)".to_owned(),
            None => format!("in {}", self.layout.dir.display()),
        };
        let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
        say(self, &format!("Quorate {} · local cluster, {nodes}, data {place}", env!("CARGO_PKG_VERSION")));
        for node in 0..count {
            self.spawn_node(node)?;
        }
        self.spawn_gateway()?;

        let deadline = started + START;
        let overview = self.until(deadline, "the nodes have not found each other", |cluster| {
            let overview: Overview = cluster.client().get("/v1/status").ok()?;
            let joined = overview.nodes.iter().filter(|node| node.state == NodeState::Joined).count();
            (overview.cluster.leader.is_some() && joined == count).then_some(overview)
        })?;
        for plan in &self.layout.nodes {
            let view = overview.nodes.iter().find(|node| node.name == plan.name);
            let leads = overview.cluster.leader.as_ref() == Some(&plan.name);
            let leader = if leads { format!("   leader, term {}", overview.cluster.term) } else { String::new() };
            let mode = mode(view.and_then(|view| view.mode));
            say(self, format!("  ✔ {}  {}  {mode:7}{leader}", plan.name, plan.api).trim_end());
        }

        let document = self.apply(&overview, document)?;
        let applied = |view: &ServiceView| document.services.iter().any(|spec| spec.name == view.name);
        let give_up = Instant::now() + KEPT_SERVICES;
        let services = self.until(deadline, "the service is not healthy", |cluster| {
            let services: Vec<ServiceView> = cluster.client().get("/v1/services").ok()?;
            if let Some(failure) = services.iter().filter(|view| applied(view)).find_map(not_started) {
                return Some(Err(failure));
            }
            // A service of an earlier run that has trouble must not keep anybody from repairing it.
            let ready = |view: &ServiceView| is_settled(view) || (!applied(view) && Instant::now() >= give_up);
            let complete = document.services.iter().all(|spec| services.iter().any(|view| view.name == spec.name));
            (complete && services.iter().all(ready)).then_some(Ok(services))
        })?;
        // Its logs go with everything else, unless they are kept.
        let services = services.map_err(|failure| failure.fix("correct its command; to read its logs: --keep DIR"))?;
        for service in &services {
            let nodes: BTreeSet<&str> = service.replicas.iter().map(|replica| replica.node.as_str()).collect();
            let nodes: Vec<&str> = nodes.into_iter().collect();
            say(
                self,
                &format!(
                    "  {} {}  {}/{} healthy on {}",
                    if is_settled(service) { "✔" } else { "!" },
                    service.name,
                    service.healthy,
                    service.want,
                    nodes.join(" ")
                ),
            );
        }

        let whole = services.iter().all(is_settled);
        let probe = document.routes.first().filter(|_| whole).map(|route| Probe::of(route, self.layout.gateway.port()));
        self.until(deadline, "the gateway does not answer for the service", |cluster| match &probe {
            Some(probe) => probe.answers().then_some(()),
            None => std::net::TcpStream::connect(cluster.layout.gateway).ok().map(drop),
        })?;
        say(self, &format!("  ✔ gateway {}", self.layout.gateway));

        let record = self.record(registry, probe.map(|probe| probe.url));
        registry::make(registry).map_err(|error| io_failure("the registry of running clusters is of no use", error))?;
        let sender = self.sender.clone();
        control::listen(&record.socket, move |request| {
            // After the end of the main thread there is nobody to answer, and the reply says so.
            let _ = sender.send(Event::Order(request));
        })
        .map_err(|error| io_failure(format!("cannot take orders at {}", record.socket.display()), error))?;
        record
            .publish(registry)
            .map_err(|error| io_failure(format!("cannot write into {}", registry.display()), error))?;
        if json {
            self.print_json(&record, &overview);
        } else {
            self.screen.data(&format!("Ready in {}\n{}", took(started.elapsed()), url_tree(&record)));
            let scale =
                services.first().map(|service| format!(" · quorate scale {} 5", service.name)).unwrap_or_default();
            self.screen
                .data(&format!("Try it: quorate status{scale} · quorate dev kill n1      Ctrl-C stops everything"));
        }
        self.serve();
        record.withdraw(registry);
        // A socket that stayed would only be refused.
        let _ = std::fs::remove_file(&record.socket);
        Ok(())
    }

    fn print_json(&self, record: &Record, overview: &Overview) {
        let nodes: Vec<serde_json::Value> = self
            .layout
            .nodes
            .iter()
            .zip(&self.servers)
            .map(|(plan, server)| {
                let view = overview.nodes.iter().find(|node| node.name == plan.name);
                serde_json::json!({
                    "name": plan.name,
                    "pid": server.as_ref().map(Child::id),
                    "api": plan.api_url(),
                    "mode": view.and_then(|view| view.mode),
                })
            })
            .collect();
        let line = serde_json::json!({
            "nodes": nodes,
            "gateway": record.gateway,
            "console": record.console,
            "token": record.token,
            "dir": record.dir,
        });
        self.screen.raw(format!("{line}\n").as_bytes());
    }

    fn record(&self, registry: &Path, app: Option<String>) -> Record {
        let layout = &self.layout;
        let pid = std::process::id();
        Record {
            dir: layout.dir.clone(),
            temporary: layout.temporary.is_some(),
            pid,
            started: procfs::process(pid).map_or(0, |me| me.started),
            socket: control::socket_path(&layout.dir, registry),
            nodes: layout
                .nodes
                .iter()
                .map(|plan| NodeAddress { name: plan.name.clone(), api: plan.api_url() })
                .collect(),
            gateway: format!("http://{}", layout.gateway),
            console: format!("{}/ui/?t={}", layout.nodes[0].api_url(), layout.token),
            app,
            token: layout.token.clone(),
        }
    }

    fn target(&self) -> Target {
        Target { servers: self.layout.nodes.iter().map(NodePlan::api_url).collect(), dev: None, tls: None }
    }

    fn client(&self) -> Client {
        Client::new(&self.target(), Duration::from_secs(10))
    }

    /// Gives the cluster its first service. What was applied, or only the routes of an earlier run.
    fn apply(&mut self, overview: &Overview, document: Option<String>) -> Result<SpecDocument, Failure> {
        let text = match document {
            Some(text) => text,
            None => match demo_spec(&self.executable, &overview.services) {
                Some(text) => text,
                // The directory has services of an earlier run; they are what the user wants.
                None => {
                    let routes = overview.services.iter().flat_map(|service| service.routes.clone()).collect();
                    return Ok(SpecDocument { services: Vec::new(), routes });
                }
            },
        };
        let document: SpecDocument =
            toml::from_str(&text).map_err(|error| io_failure("the spec is not valid", error))?;
        let body = Some(("application/toml", text.into_bytes()));
        let call = Call { method: Method::POST, path: "/v1/specs", body, header: None, mutation: true, patient: true };
        Client::new(&self.target(), START).send(&call)?;
        Ok(document)
    }

    fn spawn_node(&mut self, node: usize) -> Result<(), Failure> {
        let plan = &self.layout.nodes[node];
        let mut command = self.command("serve", &plan.log())?;
        command.arg("--data-dir").arg(&plan.dir).arg("--config").arg(plan.settings());
        let child = self.spawn(command, Who::Node(node))?;
        self.servers[node] = Some(child);
        Ok(())
    }

    fn spawn_gateway(&mut self) -> Result<(), Failure> {
        let dir = self.layout.dir.join("gw1");
        std::fs::create_dir_all(&dir).map_err(|error| io_failure(format!("cannot make {}", dir.display()), error))?;
        let mut command = self.command("gateway", &dir.join("server.log"))?;
        let address = self.layout.gateway;
        command.args(["--name", "gw1", "--listen", &address.to_string(), "--url", &format!("http://{address}")]);
        for plan in &self.layout.nodes {
            command.arg("--manager").arg(plan.api_url());
        }
        command.arg("--data-dir").arg(&dir).args(&self.gateway_args);
        self.gateway_started = Instant::now();
        self.gateway = Some(self.spawn(command, Who::Gateway)?);
        Ok(())
    }

    /// This program in another role, tied to this process, with its output in `log`.
    fn command(&self, role: &str, log: &Path) -> Result<Command, Failure> {
        let open = || -> io::Result<(File, File)> {
            let file = File::options().create(true).append(true).open(log)?;
            Ok((file.try_clone()?, file))
        };
        let (out, err) = open().map_err(|error| io_failure(format!("cannot open {}", log.display()), error))?;
        let mut command = Command::new(&self.executable);
        // What is set for this machine's own server is not meant for these; the level of the log is.
        for key in KEYS.iter().filter(|key| key.path != "log.level") {
            command.env_remove(key.variable());
            if let Some(variable) = key.short_variable() {
                command.env_remove(variable);
            }
        }
        command
            .arg(role)
            .args(["--end-with-pid", &std::process::id().to_string()])
            .env_remove("QUORATE_SERVER")
            .env_remove("QUORATE_TOKEN_FILE")
            .env_remove("QUORATE_CA_PIN")
            .env_remove("QUORATE_CA_FILE")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // Ctrl-C is for us: we stop the others in order.
            .process_group(0);
        Ok(command)
    }

    fn spawn(&self, mut command: Command, who: Who) -> Result<Child, Failure> {
        let child = command
            .spawn()
            .map_err(|error| io_failure(format!("cannot start {}", self.executable.display()), error))?;
        let pid = child.id();
        let handle = crate::lifeline::open(pid).map_err(|errno| io_failure("cannot watch a process", errno))?;
        let sender = self.sender.clone();
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || {
                crate::lifeline::wait(&handle);
                // Nobody listens once everything is being stopped.
                let _ = sender.send(Event::Ended { who, pid });
            })
            .map_err(|error| io_failure("cannot watch a process", error))?;
        Ok(child)
    }

    /// Waits during the start, when the end of any process is the end of the start.
    fn until<T>(
        &mut self,
        deadline: Instant,
        missing: &str,
        ready: impl Fn(&Cluster) -> Option<T>,
    ) -> Result<T, Failure> {
        loop {
            if let Some(value) = ready(self) {
                return Ok(value);
            }
            match self.events.recv_timeout(LOOK_EVERY) {
                Ok(Event::Signal) => {
                    return Err(Failure::new(Exit::Interrupted, "interrupted", "the start was interrupted"));
                }
                Ok(Event::Ended { who, pid }) => {
                    if let Some(status) = self.reap(who, pid) {
                        return Err(self.died_at_start(who, status));
                    }
                }
                Ok(Event::Order(request)) => {
                    refuse(&request, "the cluster is not ready yet", "wait until `quorate dev` says Ready");
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if Instant::now() >= deadline {
                let logs: Vec<String> =
                    self.layout.nodes.iter().map(|plan| format!("{}:\n{}", plan.name, tail(&plan.log()))).collect();
                return Err(Failure::new(Exit::TimedOut, "not-ready", format!("{missing} after {}", took(START)))
                    .why(logs.join("\n")));
            }
        }
    }

    fn died_at_start(&self, who: Who, status: ExitStatus) -> Failure {
        let (name, log) = match who {
            Who::Node(node) => (self.layout.nodes[node].name.clone(), self.layout.nodes[node].log()),
            Who::Gateway => ("the gateway".into(), self.layout.dir.join("gw1/server.log")),
        };
        let failure =
            Failure::new(Exit::Failed, "start-failed", format!("{name} ended while it started ({})", ending(status)))
                .why(format!("its last lines are\n{}", tail(&log)));
        match &self.layout.temporary {
            Some(_) => failure.fix("nothing was left running; keep the files for a look: quorate dev --keep DIR"),
            None => failure.fix(format!("nothing was left running; all of it is in {}", log.display())),
        }
    }

    /// Takes note that a process has ended; `None` if that was known.
    fn reap(&mut self, who: Who, pid: u32) -> Option<ExitStatus> {
        let slot = match who {
            Who::Node(node) => &mut self.servers[node],
            Who::Gateway => &mut self.gateway,
        };
        let mut child = slot.take_if(|child| child.id() == pid)?;
        child.wait().ok()
    }

    /// Carries out orders until a signal comes.
    fn serve(&mut self) {
        loop {
            match self.events.recv() {
                // The sender is ours, so the channel stays open.
                Ok(Event::Signal) | Err(_) => return,
                Ok(Event::Order(Request { order, reply })) => {
                    let answer = self.carry_out(&order);
                    // Who gave the order may have gone; it is done all the same.
                    let _ = reply.send(answer);
                }
                Ok(Event::Ended { who, pid }) => {
                    if let Some(status) = self.reap(who, pid) {
                        self.ended_by_itself(who, status);
                    }
                }
            }
        }
    }

    fn ended_by_itself(&mut self, who: Who, status: ExitStatus) {
        let ending = ending(status);
        match who {
            Who::Node(node) => {
                let plan = &self.layout.nodes[node];
                self.screen.say(&format!("✕ {} ended ({ending}).  Again: quorate dev start {}", plan.name, plan.name));
            }
            Who::Gateway if self.gateway_started.elapsed() < GATEWAY_STABLE => {
                let log = tail(&self.layout.dir.join("gw1/server.log"));
                self.screen.say(&format!("✕ the gateway ended again ({ending}) and stays away:\n{log}"));
            }
            Who::Gateway => match self.spawn_gateway() {
                Ok(()) => self.screen.say(&format!("! the gateway ended ({ending}) and was started again")),
                Err(failure) => self.screen.say(&failure.to_string()),
            },
        }
    }

    fn carry_out(&mut self, order: &Order) -> Reply {
        let name = order.node();
        let Some(node) = self.layout.nodes.iter().position(|plan| plan.name == name) else {
            return Reply::Failed { error: format!("there is no node `{name}`") };
        };
        // It may have ended a moment ago.
        if let Some(child) = &mut self.servers[node]
            && matches!(child.try_wait(), Ok(Some(_)))
        {
            self.servers[node] = None;
        }
        match (order, self.servers[node].take()) {
            (Order::Start { .. }, None) => {
                let at = wall_now();
                match self.spawn_node(node) {
                    Ok(()) => Reply::Done { at },
                    Err(failure) => Reply::Failed { error: failure.to_string() },
                }
            }
            (Order::Start { .. }, Some(child)) => {
                self.servers[node] = Some(child);
                Reply::Refused { error: format!("{name} runs already"), fix: format!("quorate dev kill {name}") }
            }
            (Order::Kill { .. } | Order::Stop { .. }, None) => {
                Reply::Refused { error: format!("{name} does not run"), fix: format!("quorate dev start {name}") }
            }
            (Order::Kill { server_only, .. }, Some(child)) => Reply::Done { at: self.kill(node, child, *server_only) },
            (Order::Stop { .. }, Some(child)) => Reply::Done { at: self.stop(node, child) },
        }
    }

    /// All at once, like a power cut; the moment before the first signal.
    fn kill(&self, node: usize, mut child: Child, server_only: bool) -> quorate_model::time::WallTime {
        let dir = &self.layout.nodes[node].dir;
        let replicas = if server_only { BTreeSet::new() } else { procfs::replica_processes(dir, Some(child.id())) };
        let at = wall_now();
        signal(child.id(), Signal::KILL);
        replicas.iter().for_each(|pid| signal(*pid, Signal::KILL));
        // It cannot fail for a child that nobody else waits for.
        let _ = child.wait();
        if !server_only {
            // What was born while we looked.
            kill_until_none(dir);
        }
        at
    }

    fn stop(&self, node: usize, mut child: Child) -> quorate_model::time::WallTime {
        let at = wall_now();
        signal(child.id(), Signal::TERM);
        wait_for(&mut [&mut child], SERVER_GRACE, || false);
        let dir = &self.layout.nodes[node].dir;
        end_replicas(std::slice::from_ref(dir), || false);
        at
    }

    /// Ends everything, in order: clients first, then who would restart, then the copies. Another
    /// signal makes it faster.
    fn stop_everything(&mut self) {
        let hurry = || self.events.try_iter().any(|event| matches!(event, Event::Signal));
        let hurried = std::cell::Cell::new(false);
        let hurry = || {
            hurried.set(hurried.get() || hurry());
            hurried.get()
        };
        let mut gateway = self.gateway.take();
        let mut servers: Vec<Child> = self.servers.iter_mut().filter_map(Option::take).collect();
        if let Some(gateway) = &mut gateway {
            signal(gateway.id(), Signal::TERM);
            wait_for(&mut [gateway], SERVER_GRACE, hurry);
        }
        servers.iter().for_each(|server| signal(server.id(), Signal::TERM));
        wait_for(&mut servers.iter_mut().collect::<Vec<_>>(), SERVER_GRACE, hurry);
        let dirs: Vec<PathBuf> = self.layout.nodes.iter().map(|plan| plan.dir.clone()).collect();
        end_replicas(&dirs, hurry);
    }
}

fn refuse(request: &Request, error: &str, fix: &str) {
    // Who gave the order may have gone.
    let _ = request.reply.send(Reply::Refused { error: error.into(), fix: fix.into() });
}

/// Waits until all have ended; kills those that have not after `grace` or when there is a hurry.
fn wait_for(children: &mut [&mut Child], grace: Duration, hurry: impl Fn() -> bool) {
    let deadline = Instant::now() + grace;
    loop {
        let running = children.iter_mut().filter_map(|child| matches!(child.try_wait(), Ok(None)).then(|| child.id()));
        let running: Vec<u32> = running.collect();
        if running.is_empty() {
            return;
        }
        if Instant::now() >= deadline || hurry() {
            running.iter().for_each(|pid| signal(*pid, Signal::KILL));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends all copies of services below `dirs`: SIGTERM, and SIGKILL for those that take too long.
fn end_replicas(dirs: &[PathBuf], hurry: impl Fn() -> bool) {
    let all = || -> BTreeSet<u32> { dirs.iter().flat_map(|dir| procfs::replica_processes(dir, None)).collect() };
    let deadline = Instant::now() + REPLICA_GRACE;
    let mut running = all();
    running.iter().for_each(|pid| signal(*pid, Signal::TERM));
    while !running.is_empty() && Instant::now() < deadline && !hurry() {
        std::thread::sleep(Duration::from_millis(10));
        running.retain(|pid| procfs::process(*pid).is_some());
    }
    dirs.iter().for_each(|dir| kill_until_none(dir));
}

/// Kills until a look finds nothing. A process that not even SIGKILL ends (it waits for a disk)
/// does not keep us here for ever.
fn kill_until_none(dir: &Path) {
    for _ in 0..100 {
        let left = procfs::replica_processes(dir, None);
        if left.is_empty() {
            return;
        }
        left.iter().for_each(|pid| signal(*pid, Signal::KILL));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for an unknown reason".into(),
    }
}

/// The last lines of a log, indented.
fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() { "  (it said nothing)".into() } else { format!("  {}", last.join("\n  ")) }
}

/// The demo, unless the cluster has services already and its demo, if any, is this program's.
fn demo_spec(executable: &Path, services: &[ServiceView]) -> Option<String> {
    let program = executable.to_string_lossy();
    let known = services.iter().find(|service| service.name.as_str() == "demo");
    let replicas = match known {
        None if services.is_empty() => 3,
        None => return None,
        Some(demo) => {
            let command = &demo.spec.command;
            let ours = command.get(1).is_some_and(|word| word == "demo");
            if !ours || command[0] == program {
                return None;
            }
            // Built again in another place since.
            demo.want
        }
    };
    let program = toml::Value::String(program.into_owned());
    Some(format!(
        r#"[[service]]
name = "demo"
replicas = {replicas}
command = [{program}, "demo", "--port", "{{port}}", "--replica", "{{replica}}", "--node", "{{node}}", "--ordinal", "{{ordinal}}"]
ports = {{ http = "auto" }}
health = {{ http = "/healthz", every = "1s" }}

[[route]]
service = "demo"
"#
    ))
}

/// A request through the gateway to a service.
struct Probe {
    url: String,
    host: Option<String>,
}

impl Probe {
    fn of(route: &RouteSpec, gateway_port: u16) -> Probe {
        let port = route.listen.strip_prefix(':').and_then(|port| port.parse().ok()).unwrap_or(gateway_port);
        Probe {
            url: format!("http://127.0.0.1:{port}{}", route.path),
            host: (route.host != "*").then(|| route.host.clone()),
        }
    }

    /// Whether something other than the gateway itself answered.
    fn answers(&self) -> bool {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(2)))
            .build();
        let agent: ureq::Agent = config.into();
        let request = agent.get(&self.url);
        let request = match &self.host {
            Some(host) => request.header("Host", host),
            None => request,
        };
        request.call().is_ok_and(|response| !matches!(response.status().as_u16(), 502..=504))
    }
}

/// Where a running cluster can be reached, for people.
pub(crate) fn url_tree(record: &Record) -> String {
    let api = record.nodes.first().map_or("", |node| node.api.as_str());
    let app = match &record.app {
        Some(app) => format!("├─ Service  {app}"),
        None => format!("├─ Gateway  {}", record.gateway),
    };
    format!("├─ Console  {}   (signs you in)\n{app}\n└─ API      {api}/v1/status", record.console)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_a_valid_spec_whatever_the_path_of_the_program() {
        let path = Path::new("/opt/my \"new\" dir/quorate");
        let document: SpecDocument = toml::from_str(&demo_spec(path, &[]).unwrap()).unwrap();
        document.validate().unwrap();
        assert_eq!(document.services[0].command[0], path.to_str().unwrap());
        assert_eq!(document.services[0].command[3], "{port}");
        assert_eq!(document.routes[0].service, document.services[0].name);
    }

    #[test]
    fn a_route_is_probed_where_it_listens() {
        let route = |listen: &str, host: &str| -> RouteSpec {
            toml::from_str(&format!("service = 'web'\nlisten = '{listen}'\nhost = '{host}'\npath = '/a'")).unwrap()
        };
        let probe = Probe::of(&route("default", "*"), 8000);
        assert_eq!((probe.url.as_str(), probe.host), ("http://127.0.0.1:8000/a", None));
        let probe = Probe::of(&route(":8080", "shop.test"), 8000);
        assert_eq!((probe.url.as_str(), probe.host.as_deref()), ("http://127.0.0.1:8080/a", Some("shop.test")));
    }

    #[test]
    fn the_end_of_a_log_is_shown_and_not_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("server.log");
        assert_eq!(tail(&log), "  (it said nothing)");
        let lines: Vec<String> = (0..5_000).map(|line| format!("line {line}")).collect();
        std::fs::write(&log, lines.join("\n")).unwrap();
        let shown = tail(&log);
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("line 4999"), "{shown}");
    }
}
