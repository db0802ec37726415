//! `quorate service …` and `quorate scale`: what shall run, and waiting until it does.
//!
//! A change is over for people when it works, so `apply` and `scale` watch the service until all its
//! wanted copies are healthy, and say how long that took by this process's own clock.

use crate::cli::client::{Answer, Call, Client};
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::placement;
use crate::cli::screen::{self, Screen, took};
use crate::cli::update;
use crate::cli::{Context, activation, switch};
use clap::{Args, Subcommand};
use quorate_api::Changed;
use quorate_api::view::{LeaseView, ReplicaView, ServiceView};
use quorate_model::deployment::Stage;
use quorate_model::id::ReplicaId;
use quorate_model::resource::{CpuMillis, MemoryBytes, Resources};
use quorate_model::spec::{self, Format, Mode, SpecDocument, SpecError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ureq::http::Method;

/// How often a waiting command looks. It bounds the error of a printed time.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Restarts after which a copy that is not healthy will not become so by waiting.
const HOPELESS_RESTARTS: u32 = 5;
/// A program that nobody checks counts as started when it has run for this long: one that ends at once was
/// running too, for a moment.
const UNCHECKED_RUNS: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Make the cluster run what a file says
    #[command(
        after_help = "Examples:\n  quorate service apply -f web.toml\n  quorate service apply -f web.toml --plan\n  generate | quorate service apply -f - --yes"
    )]
    Apply(ApplyArgs),
    /// All services
    #[command(after_help = "Examples:\n  quorate service list\n  quorate service list -o json")]
    List,
    /// One service with its copies
    #[command(after_help = "Examples:\n  quorate service show web\n  quorate service show web -o json")]
    Show {
        /// Name of the service
        name: String,
    },
    /// The versions that a service had, and what became of them
    #[command(after_help = "Examples:\n  quorate service history web\n  quorate service history web -o json")]
    History {
        /// Name of the service
        name: String,
    },
    /// Have another copy of an active-passive service take over
    ///
    /// The present active copy is demoted and gives its lease back, then the other one is promoted.
    #[command(after_help = "Examples:\n  quorate service activate db\n  quorate service activate db --to n2")]
    Activate(activation::ActivateArgs),
    /// Stop a service and forget it
    #[command(after_help = "Examples:\n  quorate service remove web --yes")]
    Remove {
        /// Name of the service
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Spec file in TOML, or in JSON if its name ends so; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only show what would change
    #[arg(long, conflicts_with = "yes")]
    plan: bool,
    /// Do not wait until the copies are healthy
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// Name of the service, or `all`
    name: String,
    /// Do not wait until all copies are new and healthy
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Name of the service, or `all`
    name: String,
    /// How many copies shall run
    #[arg(value_name = "N")]
    replicas: u32,
    /// Do not wait until the copies are healthy
    #[arg(long)]
    no_wait: bool,
}

/// What `POST /v1/specs?plan=true` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Plan {
    services: Vec<PlannedService>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PlannedService {
    service: String,
    /// `create`, `update` or `unchanged`.
    action: String,
    /// Afterwards.
    #[serde(default)]
    version: u64,
    #[serde(default)]
    differences: Vec<Difference>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What a command waits for besides healthy copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    Nothing,
    /// That this version is brought out.
    Version(u64),
    /// That what is asked for is brought out, once it is accepted: a version that may have been there before.
    Again,
    /// That an update is undone.
    Back,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Difference {
    field: String,
    #[serde(default)]
    from: serde_json::Value,
    #[serde(default)]
    to: serde_json::Value,
}

/// What became of one service, for `-o json`.
#[derive(Debug, Serialize)]
struct Settled {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u32>,
    want: u32,
    healthy: u32,
    nodes: Vec<String>,
    took_ms: u64,
    /// The canaries are well, and somebody has to say that the others may follow.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    waits: bool,
    /// Why nothing of it runs, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<String>,
}

pub(crate) fn run(context: &Context, command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Apply(args) => apply(context, &args),
        ServiceCommand::List => {
            let services: Vec<ServiceView> = context.client()?.get("/v1/services")?;
            if context.screen.is_json() {
                context.screen.json(&services);
            } else if services.is_empty() {
                context.screen.say("no services yet; begin with: quorate service apply -f FILE");
            } else {
                context.screen.data(&list_table(&services));
            }
            Ok(())
        }
        ServiceCommand::Show { name } => {
            let service = show(&context.client()?, &name)?;
            if context.screen.is_json() {
                context.screen.json(&service);
            } else {
                context.screen.data(&show_text(&service, context.screen.is_wide()));
            }
            Ok(())
        }
        ServiceCommand::Activate(args) => activation::activate(context, &args),
        ServiceCommand::History { name } => update::history(context, &name),
        ServiceCommand::Remove { name, yes } => remove(context, &name, yes),
    }
}

fn list(client: &Client) -> Result<Vec<ServiceView>, Failure> {
    client.get("/v1/services")
}

/// The service called `name`; a suggestion if there is none.
pub(crate) fn show(client: &Client, name: &str) -> Result<ServiceView, Failure> {
    // What cannot be a name is not put into a path.
    if quorate_model::id::ServiceName::new(name).is_ok() {
        match client.get(&format!("/v1/services/{name}")) {
            Err(failure) if failure.exit == Exit::NotFound => {}
            answer => return answer,
        }
    }
    let services = list(client)?;
    Err(failure::unknown("service", name, services.iter().map(|service| service.name.as_str()), "quorate service list"))
}

fn remove(context: &Context, name: &str, yes: bool) -> Result<(), Failure> {
    let client = context.client()?;
    let service = show(&client, name)?;
    if !yes {
        let copies = service.replicas.len();
        confirm(context.screen, &format!("Stop {copies} copies of {name} and forget the service? [y/N] "), false)?;
    }
    client.change(Method::DELETE, &format!("/v1/services/{name}"), None::<&()>)?;
    if context.screen.is_json() {
        context.screen.json(&serde_json::json!({ "name": name, "removed": true }));
    } else {
        context.screen.data(&format!("✔ {name} removed"));
    }
    Ok(())
}

/// Asks on the terminal. Without one, says which flag answers.
pub(crate) fn confirm(screen: Screen, question: &str, default: bool) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(
            Failure::new(Exit::Usage, "needs-yes", "this needs a yes, and nobody is there to ask").fix("add --yes")
        );
    }
    let mut err = anstream::stderr();
    let mut answer = String::new();
    let read = write!(err, "{}", screen::paint(question))
        .and_then(|()| err.flush())
        .and_then(|()| std::io::stdin().read_line(&mut answer));
    let agreed = match (read, answer.trim().to_ascii_lowercase().as_str()) {
        (Ok(1..), "") => default,
        (Ok(1..), "y" | "yes") => true,
        _ => false,
    };
    if agreed {
        return Ok(());
    }
    screen.say("nothing was changed");
    Err(Failure::new(Exit::Failed, "declined", "you said no"))
}

/// A spec file that was read and understood.
struct SpecFile {
    content: Vec<u8>,
    content_type: &'static str,
    document: SpecDocument,
}

/// # Errors
/// Exit 2 for a file that is not there or not a spec; the place in the file is shown.
fn read_spec(file: &Path) -> Result<SpecFile, Failure> {
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let content =
        if file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let content = content.map_err(|error| {
        Failure::new(Exit::Usage, "no-spec", format!("cannot read {name}")).why(error).fix("-f FILE names a spec file")
    })?;
    let is_json = file.extension().is_some_and(|extension| extension == "json");
    let format = if is_json { Format::Json } else { Format::Toml };
    let document = spec::parse(&content, format).map_err(|error| bad_spec(&name, &error))?;
    if document.services.is_empty() {
        return Err(Failure::new(Exit::Usage, "bad-spec", format!("{name} has no service in it"))
            .fix("begin it with [[service]], a name and a command"));
    }
    document.validate().map_err(|refusal| {
        Failure::new(Exit::Usage, "invalid", format!("{name}: {refusal}")).fix("correct that field")
    })?;
    let content_type = if is_json { "application/json" } else { "application/toml" };
    Ok(SpecFile { content: content.into_bytes(), content_type, document })
}

/// The text of a spec file in TOML, once it has been understood.
///
/// # Errors
/// As [`read_spec`].
pub(crate) fn read_spec_text(file: &Path) -> Result<String, Failure> {
    let spec = read_spec(file)?;
    Ok(spec::render(&spec.document, Format::Toml))
}

/// The parser says what is wrong and where, and after a semicolon what was meant.
fn bad_spec(file: &str, error: &SpecError) -> Failure {
    let failure = Failure::new(Exit::Usage, "bad-spec", format!("{file} is not a spec"));
    let text = error.to_string();
    match text.split_once("; ") {
        Some((why, fix)) => failure.why(why).fix(fix),
        None => failure.why(text),
    }
}

fn apply(context: &Context, args: &ApplyArgs) -> Result<(), Failure> {
    let spec = read_spec(&args.file)?;
    let client = context.client()?;
    let post = |path: &str, mutation: bool| -> Result<Answer, Failure> {
        let body = Some((spec.content_type, spec.content.clone()));
        client.send(&Call { method: Method::POST, path, body, header: None, mutation, patient: true })
    };
    let plan: Plan = post("/v1/specs?plan=true", false)?.json()?;
    let screen = context.screen;
    if args.plan {
        if screen.is_json() {
            screen.json(&plan);
        } else {
            screen.data(&plan_text(&plan));
        }
        return Ok(());
    }
    if plan.services.iter().any(|service| service.action != "unchanged") {
        screen.say(&plan_text(&plan));
        if !args.yes {
            confirm(screen, "Apply? [Y/n] ", true)?;
        }
    }
    let started = Instant::now();
    let applied: Plan = post("/v1/specs", true)?.json()?;
    let mut settled = Vec::new();
    for planned in &plan.services {
        let Some(wanted) = spec.document.services.iter().find(|spec| spec.name.as_str() == planned.service) else {
            continue;
        };
        if args.no_wait {
            screen.say(&format!("{} {}", planned.service, planned.action));
            continue;
        }
        let title = format!("{} {}", planned.service, planned.action);
        let version = applied.services.iter().find(|applied| applied.service == planned.service);
        let changed = version.filter(|_| planned.action != "unchanged");
        let follow = changed.map_or(Follow::Nothing, |applied| Follow::Version(applied.version));
        // How many copies an autoscaled service has is not the file's business.
        let accepted = |view: &ServiceView| view.spec == wanted.settled(Some(view.spec.replicas));
        let view = wait_until_healthy(context, &client, &planned.service, &title, follow, accepted)?;
        let outcome = Settled::new(&view, None, started.elapsed());
        if !screen.is_json() {
            screen.data(&outcome.line(&title));
        }
        settled.push(outcome);
    }
    if screen.is_json() {
        screen.json(&serde_json::json!({ "plan": plan, "services": settled }));
    }
    Ok(())
}

pub(crate) fn scale(context: &Context, args: &ScaleArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let started = Instant::now();
    let mut services = Vec::new();
    for service in named(&client, &args.name)? {
        let path = format!("/v1/services/{}/scale", service.name);
        match client.change(Method::POST, &path, Some(&serde_json::json!({ "replicas": args.replicas }))) {
            Ok(answer) => {
                // One that says nothing of room is older than this.
                if let Some(room) = answer.json::<Changed>().ok().and_then(|changed| changed.room) {
                    context.screen.say(&format!("{}: {}", service.name, placement::room_text(&room)));
                }
                services.push(service);
            }
            // Of all, those are meant that can be scaled.
            Err(failure) if args.name == "all" && matches!(&*failure.code, "not-scalable" | "autoscaled") => {
                context.screen.say(&format!("! {}", failure.error));
            }
            Err(failure) => return Err(failure),
        }
    }
    let title = |service: &ServiceView| {
        (format!("{} {} → {}", service.name, service.spec.replicas, args.replicas), Follow::Nothing)
    };
    let accepted = |_: &ServiceView, view: &ServiceView| view.spec.replicas == args.replicas;
    follow(context, &client, &services, started, args.no_wait, title, accepted)
}

pub(crate) fn restart(context: &Context, args: &RestartArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let services = named(&client, &args.name)?;
    let started = Instant::now();
    for service in &services {
        if let Some(why) = service.spec.stops_first().filter(|_| service.spec.update_interrupts(service.want)) {
            context.screen.say(&format!("! {} is away for a moment: it {why}", service.name));
        }
        client.change(Method::POST, &format!("/v1/services/{}/restart", service.name), None::<&()>)?;
    }
    let versions: BTreeMap<String, u64> =
        list(&client)?.into_iter().map(|service| (service.name.to_string(), service.version)).collect();
    let title = |service: &ServiceView| {
        let follow = versions.get(service.name.as_str()).map_or(Follow::Nothing, |version| Follow::Version(*version));
        (format!("{} restarts", service.name), follow)
    };
    let accepted = |before: &ServiceView, view: &ServiceView| view.version > before.version;
    follow(context, &client, &services, started, args.no_wait, title, accepted)
}

/// The service of this name, or all of them.
pub(crate) fn named(client: &Client, name: &str) -> Result<Vec<ServiceView>, Failure> {
    if name == "all" { list(client) } else { Ok(vec![show(client, name)?]) }
}

/// Waits for what was asked of several services, and says of each what became of it.
pub(crate) fn follow(
    context: &Context,
    client: &Client,
    services: &[ServiceView],
    started: Instant,
    no_wait: bool,
    title: impl Fn(&ServiceView) -> (String, Follow),
    accepted: impl Fn(&ServiceView, &ServiceView) -> bool,
) -> Result<(), Failure> {
    let mut settled = Vec::new();
    for service in services {
        let (title, follow) = title(service);
        if no_wait {
            context.screen.say(&title);
            continue;
        }
        let name = service.name.as_str();
        let view = wait_until_healthy(context, client, name, &title, follow, |view| accepted(service, view))?;
        let outcome = Settled::new(&view, Some(service.want), started.elapsed());
        if !context.screen.is_json() {
            context.screen.data(&outcome.line(&title));
        }
        settled.push(outcome);
    }
    if context.screen.is_json() {
        context.screen.json(&settled);
    }
    Ok(())
}

impl Settled {
    fn new(view: &ServiceView, from: Option<u32>, took: Duration) -> Settled {
        Settled {
            name: view.name.to_string(),
            from,
            want: view.want,
            healthy: view.healthy,
            nodes: nodes_of(view),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            waits: view.deployment.as_ref().is_some_and(|it| it.stage == Stage::AwaitPromotion),
            stopped: view.stopped.as_ref().and_then(|_| switched(view)),
        }
    }

    fn line(&self, title: &str) -> String {
        let took = took(Duration::from_millis(self.took_ms));
        if let Some(stopped) = &self.stopped {
            return format!("{title}   ○ it {stopped}   {took}");
        }
        if self.waits {
            return format!("{title}   ▲ waits for its promotion: quorate update continue {}   {took}", self.name);
        }
        format!("{title}   ✔ {}/{} healthy on {}   {took}", self.healthy, self.want, self.nodes.join(" "))
    }
}

/// Copies that are wanted: those on their way out do not count.
///
/// Of a service that runs on every node, the copy of a node that is away is not wanted anywhere else.
pub(crate) fn live(view: &ServiceView) -> impl Iterator<Item = &ReplicaView> {
    let leaves = |state: &str| matches!(state, "draining" | "stopping" | "stopped");
    let away = |state: &str| view.mode == Mode::EveryNode && state == "unknown";
    view.replicas.iter().filter(move |replica| !leaves(&replica.state) && !away(&replica.state))
}

fn nodes_of(view: &ServiceView) -> Vec<String> {
    let mut nodes: Vec<String> = live(view).map(|replica| replica.node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

/// Whether exactly the wanted copies of the present version live, and all are healthy.
pub(crate) fn is_settled(view: &ServiceView) -> bool {
    let count = live(view).count();
    u32::try_from(count) == Ok(view.want)
        && live(view).all(|replica| replica.state == "healthy" && replica.version == view.version)
}

/// What will not get better by waiting.
pub(crate) fn not_started(view: &ServiceView) -> Option<Failure> {
    let hopeless = |replica: &&ReplicaView| {
        let keeps_ending = replica.state == "backing-off" && replica.restarts >= HOPELESS_RESTARTS;
        replica.version == view.version && (replica.state == "failed" || keeps_ending)
    };
    let replica = live(view).find(hopeless)?;
    let why = if replica.detail.is_empty() { "it gives no reason" } else { &replica.detail };
    let (name, number) = (&view.name, replica.ordinal);
    let error = format!("{name}.{number} on {} cannot be started", replica.node);
    let failure = Failure::new(Exit::NotPlaced, "not-started", error).why(why);
    Some(failure.fix(format!("quorate logs {name} --replica {number}")))
}

/// Waits until the service is as `accepted` says and all its copies are healthy.
fn wait_until_healthy(
    context: &Context,
    client: &Client,
    name: &str,
    title: &str,
    follow: Follow,
    accepted: impl Fn(&ServiceView) -> bool,
) -> Result<ServiceView, Failure> {
    let mut last = None;
    // What ran without a check, and since when.
    let mut unchecked: Option<(Vec<(ReplicaId, u32)>, Instant)> = None;
    loop {
        let view = match (show(client, name), last) {
            (Ok(view), _) => view,
            // The time was over during the last look: what is missing says more than that.
            (Err(failure), Some(seen)) if failure.exit == Exit::TimedOut => {
                return Err(not_in_time(&seen, context.timeout));
            }
            (Err(failure), _) => return Err(failure),
        };
        let is_accepted = accepted(&view);
        // Nothing of it runs before somebody starts it, and that it is stopped is said.
        if is_accepted && view.stopped.is_some() {
            context.screen.progress_over();
            return Ok(view);
        }
        // The end of an earlier update of the same version says nothing.
        let outcome = if is_accepted || follow != Follow::Again { update::outcome(&view, follow) } else { None };
        match outcome {
            Some(Ok(())) => {
                context.screen.progress_over();
                return Ok(view);
            }
            Some(Err(failure)) => return Err(failure),
            None => {}
        }
        if is_accepted && !update::is_under_way(&view, follow) {
            let settled =
                is_settled(&view).then(|| live(&view).map(|replica| (replica.id, replica.restarts)).collect());
            unchecked = settled.map(|now: Vec<_>| match unchecked.take() {
                Some((before, since)) if before == now => (before, since),
                _ => (now, Instant::now()),
            });
            let ran = unchecked.as_ref().map(|(_, since)| since.elapsed());
            if ran.is_some_and(|ran| view.spec.health.is_some() || ran >= UNCHECKED_RUNS) {
                context.screen.progress_over();
                return Ok(view);
            }
            // An update that cannot start is undone, and that is waited for.
            let is_update = view.deployment.as_ref().is_some_and(|deployment| deployment.from.is_some());
            if let Some(failure) = not_started(&view).filter(|_| !is_update || follow == Follow::Nothing) {
                return Err(failure);
            }
        }
        if client.remaining() <= LOOK_EVERY {
            return Err(not_in_time(&view, context.timeout));
        }
        context.screen.progress(&format!("{title}   {}", progress(&view)));
        last = Some(view);
        std::thread::sleep(LOOK_EVERY);
    }
}

fn progress(view: &ServiceView) -> String {
    let mut text = format!("{}/{} healthy", view.healthy, view.want);
    if let Some(line) = update::line(view).filter(|_| view.deployment.as_ref().is_some_and(|it| it.from.is_some())) {
        let _ = write!(text, "   {line}");
    }
    for replica in live(view).filter(|replica| replica.state != "healthy").take(3) {
        // A String takes all that is written into it.
        let _ = write!(text, "   {}.{} on {} {}", view.name, replica.ordinal, replica.node, replica.state);
    }
    text
}

fn not_in_time(view: &ServiceView, waited: Duration) -> Failure {
    let name = &view.name;
    let error = format!("{name} has {} of {} copies healthy after {}", view.healthy, view.want, took(waited));
    if u32::try_from(live(view).count()).is_ok_and(|count| count < view.want) && !view.held.is_empty() {
        return Failure::new(Exit::NotPlaced, "not-placed", error)
            .why(view.held.join("\n"))
            .fix(format!("quorate scale {name} {}\nor add a node", view.healthy.max(1)));
    }
    let why: Vec<String> = live(view)
        .filter(|replica| replica.state != "healthy")
        .map(|replica| {
            let detail = if replica.detail.is_empty() { String::new() } else { format!(": {}", replica.detail) };
            format!("{name}.{} on {} is {}{detail}", replica.ordinal, replica.node, replica.state)
        })
        .collect();
    Failure::new(Exit::TimedOut, "timed-out", error)
        .why(why.join("\n"))
        .fix(format!("quorate logs {name}\nor wait longer: --timeout 2m"))
}

/// One line for each service of `status` and `service list`.
pub(crate) fn list_table(services: &[ServiceView]) -> String {
    screen::table(
        &["SERVICE", "WANT", "HEALTHY", "NODES", "VERSION", "ROUTES"],
        &[1, 2, 4],
        services.iter().map(|service| {
            vec![
                service.name.to_string(),
                want(service),
                service.healthy.to_string(),
                // A node with a copy that is not healthy is marked.
                nodes_of(service)
                    .iter()
                    .map(|node| {
                        let well = live(service).filter(|it| it.node == *node).all(|it| it.state == "healthy");
                        if well { node.clone() } else { format!("!{node}") }
                    })
                    .collect::<Vec<_>>()
                    .join(" "),
                service.version.to_string(),
                service
                    .routes
                    .iter()
                    .map(|route| {
                        let listen = if route.listen == "default" { "" } else { route.listen.as_str() };
                        format!("{}{listen}{}", route.host, route.path)
                    })
                    .collect::<Vec<_>>()
                    .join(" "),
            ]
        }),
    )
}

/// Why it does not run, and when its schedule changes that.
pub(crate) fn switched(service: &ServiceView) -> Option<String> {
    switch::line(service.name.as_str(), service.stopped.as_ref(), service.next.as_ref())
}

/// How many copies are wanted, and between which numbers that may change by itself.
fn want(service: &ServiceView) -> String {
    match service.spec.autoscaled() {
        _ if service.stopped.is_some() => "stopped".to_owned(),
        Some(autoscale) => format!("{} ({}-{})", service.want, autoscale.widest().min, autoscale.widest().max),
        None => service.want.to_string(),
    }
}

fn show_text(service: &ServiceView, wide: bool) -> String {
    let symbol = match is_settled(service) {
        true if service.stopped.is_some() => "○",
        true => "✔",
        false => "!",
    };
    let mut text = format!(
        "{} {symbol} {}/{} healthy, version {}\ncommand  {}\n",
        service.name,
        service.healthy,
        service.want,
        service.version,
        service.spec.command.join(" ")
    );
    if let Some(line) = switched(service) {
        let _ = writeln!(text, "it {line}");
    }
    if let Some(line) = update::line(service) {
        let _ = writeln!(text, "update   {line}");
    }
    if !service.spec.resources.is_none() {
        // A String takes all that is written into it.
        let _ = writeln!(text, "each     {}", limits(&service.spec.resources));
    }
    if let Some(autoscale) = service.spec.autoscaled() {
        let _ = writeln!(
            text,
            "scales   by itself, {} copies; why: quorate autoscale explain {}",
            autoscale.widest(),
            service.name
        );
    }
    let measured = service.replicas.iter().any(|replica| replica.usage.is_some());
    let mut header = vec!["REPLICA", "NODE", "STATE", "ADDRESS", "PID"];
    if measured {
        header.extend(["CPU", "MEMORY"]);
    }
    let numbers: Vec<usize> = (4..=header.len()).collect();
    header.extend(["RESTARTS", "DETAIL"]);
    if wide {
        header.extend(["ID", "VERSION", "LOGS"]);
    }
    let rows = service.replicas.iter().map(|replica| {
        let (usage, memory) = (replica.usage, replica.usage.and_then(|usage| usage.memory_bytes));
        let mut row = vec![
            format!("{}.{}", service.name, replica.ordinal),
            replica.node.clone(),
            state_text(replica, service.spec.stands_by_cold()),
            replica.addresses.values().cloned().collect::<Vec<_>>().join(" "),
            replica.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
        ];
        if measured {
            row.extend([
                usage.map_or_else(|| "-".into(), |usage| CpuMillis(usage.cpu_millis.into()).to_string()),
                memory.map_or_else(|| "-".into(), |bytes| MemoryBytes(bytes).to_string()),
            ]);
        }
        row.extend([replica.restarts.to_string(), replica.detail.clone()]);
        if wide {
            row.extend([replica.id.to_string(), replica.version.to_string(), replica.log_dir.clone()]);
        }
        row
    });
    text.push_str(&screen::table(&header, &numbers, rows));
    if let Some(lease) = &service.lease {
        let _ = write!(text, "\n{}", lease_text(lease));
    }
    for held in &service.held {
        // A String takes all that is written into it.
        let _ = write!(text, "\n! {held}");
    }
    text
}

/// How it is, and which part it has.
fn state_text(replica: &ReplicaView, cold: bool) -> String {
    let symbol = replica_symbol(&replica.state);
    match replica.role.as_deref() {
        Some("standby") if cold => format!("{symbol} {}, standby (cold)", replica.state),
        Some(role) => format!("{symbol} {}, {role}", replica.state),
        None => format!("{symbol} {}", replica.state),
    }
}

/// What each copy has at the most.
fn limits(resources: &Resources) -> String {
    let cpu = resources.cpu.map(|cpu| format!("{cpu} CPU"));
    let memory = resources.memory.map(|memory| format!("{memory} of memory"));
    cpu.into_iter().chain(memory).collect::<Vec<_>>().join(", ")
}

/// Who holds what runs once, how long moving it may take, and how long it took.
fn lease_text(lease: &LeaseView) -> String {
    let holder = match &lease.holder {
        Some(holder) if lease.fenced => format!("being taken from {holder} (epoch {})", lease.epoch),
        Some(holder) => format!("held by {holder} (epoch {})", lease.epoch),
        None => "held by nobody".to_owned(),
    };
    format!("lease    {holder} · failover {} · last failover {}", failover(lease), last_failover(lease))
}

/// What moves it when its node is lost.
fn failover(lease: &LeaseView) -> String {
    if lease.keeps { "by hand".to_owned() } else { lease.failover.to_string() }
}

/// As the leader measured it.
fn last_failover(lease: &LeaseView) -> String {
    lease.last_failover.as_ref().map_or_else(
        || "never measured".to_owned(),
        |last| format!("{} from {} to {} on {}", took(last.took.0), last.from, last.to, screen::moment(last.at, true)),
    )
}

/// One line for each service that runs once, for `status`; nothing if there is none.
pub(crate) fn leases_table(services: &[ServiceView]) -> Option<String> {
    let once: Vec<(&ServiceView, &LeaseView)> =
        services.iter().filter_map(|service| Some((service, service.lease.as_ref()?))).collect();
    let rows = once.iter().map(|(service, lease)| {
        vec![
            service.name.to_string(),
            lease.holder.clone().unwrap_or_else(|| "-".into()),
            lease.epoch.to_string(),
            failover(lease),
            last_failover(lease),
        ]
    });
    let header = ["RUNS ONCE", "HOLDER", "EPOCH", "FAILOVER", "LAST FAILOVER"];
    (!once.is_empty()).then(|| screen::table(&header, &[2], rows))
}

fn replica_symbol(state: &str) -> char {
    match state {
        "healthy" => '●',
        "failed" | "unhealthy" => '✕',
        "draining" | "stopping" | "stopped" => '○',
        _ => '▲',
    }
}

/// A value of a spec as people write it: a command as it is typed.
fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(words) if words.iter().all(serde_json::Value::is_string) => {
            words.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(" ")
        }
        serde_json::Value::Array(several) => several.iter().map(shown).collect::<Vec<_>>().join("; "),
        value if value.get("service").is_some() => {
            let part = |key: &str| value[key].as_str().unwrap_or_default();
            let listen = if part("listen") == "default" { "" } else { part("listen") };
            let (host, path, service, balance) = (part("host"), part("path"), part("service"), part("balance"));
            format!("{host}{listen}{path} → {service}, balance {balance}")
        }
        value => value.to_string(),
    }
}

fn plan_text(plan: &Plan) -> String {
    let mut text = String::new();
    for service in &plan.services {
        text.push_str(&format!("{}  {}\n", service.service, service.action));
        for warning in &service.warnings {
            text.push_str(&format!("  ! {warning}\n"));
        }
        for difference in &service.differences {
            let Difference { field, from, to } = difference;
            text.push_str(&match (from.is_null(), to.is_null()) {
                // What is empty anyway needs no line.
                (true, _) if to.as_array().is_some_and(Vec::is_empty) => String::new(),
                (true, _) => format!("  + {field} {}\n", shown(to)),
                (false, true) => format!("  - {field} {}\n", shown(from)),
                (false, false) => format!("  ~ {field} {} → {}\n", shown(from), shown(to)),
            });
        }
    }
    text
}
