//! `quorate drill`: a node is really taken away for a while, and each service's recovery is measured.
//!
//! The command asks whichever node answers, so it goes on when the one that it asked first is the one that is
//! taken away. What it shows is read from the cluster's records: a command that is stopped has missed nothing.

use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::members::in_path;
use crate::cli::placement::forecast_text;
use crate::cli::target::Target;
use crate::cli::{Context, screen};
use clap::{Args, Subcommand};
use quorate_api::drills::{DrillForecast, DrillView, NewDrill, ServiceDrillView};
use quorate_api::placement::ForecastView;
use quorate_api::view::Overview;
use quorate_model::drill::{BACK_WITHIN, Verdict};
use quorate_model::spec::Mode;
use quorate_model::time::Span;
use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use ureq::http::Method;

/// How often a waiting command looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct DrillArgs {
    /// The node to take away: name, id, or how the id begins
    #[arg(required = true)]
    node: Option<String>,
    /// For how long, 5s to 10m; default: 10 s longer than the slowest of its services may take
    #[arg(long = "for", value_name = "SPAN")]
    away: Option<Span>,
    /// Only say what would be taken away, and what would move where
    #[arg(long)]
    plan: bool,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
    /// Do not wait until it is over
    #[arg(long)]
    no_wait: bool,
    #[command(subcommand)]
    command: Option<DrillCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DrillCommand {
    /// The last drills
    #[command(after_help = "Examples:\n  quorate drill list\n  quorate drill list -o json")]
    List,
    /// What was measured in a drill
    #[command(
        after_help = "Examples:\n  quorate drill show\n  quorate drill show 3 -o json\n  quorate drill show 3 --markdown > drill-3.md"
    )]
    Show {
        /// Its number; default: the last one
        id: Option<u64>,
        /// As a page for your own documents
        #[arg(long)]
        markdown: bool,
    },
}

pub(crate) fn run(context: &Context, args: &DrillArgs) -> Result<ExitCode, Failure> {
    match (&args.command, &args.node) {
        (Some(DrillCommand::List), _) => list(context)?,
        (Some(DrillCommand::Show { id, markdown }), _) => show(context, *id, *markdown)?,
        (None, Some(node)) => return begin(context, args, node),
        // The command line asks for one of them.
        (None, None) => {
            return Err(Failure::new(Exit::Usage, "which-node", "no node is named").fix("quorate drill NODE"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(context: &Context) -> Result<(), Failure> {
    let drills: Vec<DrillView> = context.client()?.get("/v1/drills")?;
    context.show(&drills, |drills| {
        let headings = ["DRILL", "BEGAN", "NODE", "AWAY", "BY", "IN TIME", "LATE", "NOT RECOVERED", "STATE"];
        screen::table(&headings, &[0, 5, 6, 7], drills.iter().map(row))
    })
}

fn row(drill: &DrillView) -> Vec<String> {
    let count = |verdict| drill.services.iter().filter(|one| one.verdict == verdict).count().to_string();
    vec![
        drill.id.to_string(),
        screen::moment(drill.began, true),
        drill.node.clone(),
        drill.away.to_string(),
        drill.by.clone().unwrap_or_else(|| "-".into()),
        count(Verdict::Ok),
        count(Verdict::Late),
        count(Verdict::NotRecovered),
        if drill.over { "over" } else { "running" }.into(),
    ]
}

fn show(context: &Context, id: Option<u64>, markdown: bool) -> Result<(), Failure> {
    let id = id.map_or_else(|| "last".to_owned(), |id| id.to_string());
    let drill: DrillView = context.client()?.get(&format!("/v1/drills/{id}"))?;
    context.show(&drill, if markdown { page } else { report })
}

fn begin(context: &Context, args: &DrillArgs, node: &str) -> Result<ExitCode, Failure> {
    let target = context.choice.find()?;
    let client = context.client_for(&target);
    let away = args.away.map_or_else(String::new, |away| format!("?away={away}"));
    let forecast: DrillForecast = client.get(&format!("/v1/drills/forecast/{}{away}", in_path(node)))?;
    if args.plan {
        context.show(&forecast, plan_text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !context.screen.is_json() {
        context.screen.say(&plan_text(&forecast));
    }
    if !args.yes && forecast.refused.is_none() {
        confirm(context, &forecast.node)?;
    }
    let wish = NewDrill { node: node.to_owned(), away: args.away };
    let drill: DrillView = client.change(Method::POST, "/v1/drills", Some(&wish))?.json()?;
    if args.no_wait {
        context.done(&drill, &format!("✔ drill {} takes {} away for {}", drill.id, drill.node, drill.away))?;
        return Ok(ExitCode::SUCCESS);
    }
    let drill = follow(context, &everybody(&client, target), drill)?;
    let all_well = drill.services.iter().all(|one| matches!(one.verdict, Verdict::Ok | Verdict::Stays | Verdict::Gone));
    context.show(&drill, report)?;
    let well = all_well && drill.returned.is_some();
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(Exit::Unhealthy as u8) })
}

/// The node's name is typed: a `y` is typed too easily.
fn confirm(context: &Context, node: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(
            Failure::new(Exit::Usage, "needs-yes", "this needs a yes, and nobody is there to ask").fix("add --yes")
        );
    }
    let mut err = anstream::stderr();
    let asked = write!(err, "What runs on {node} fails for a while. To take it away, type its name: ");
    let mut line = String::new();
    let read = asked.and_then(|()| err.flush()).and_then(|()| std::io::stdin().lock().read_line(&mut line));
    read.map_err(|error| Failure::new(Exit::Failed, "io", "the answer could not be read").why(error))?;
    if line.trim() == node {
        return Ok(());
    }
    context.screen.say("nothing was changed");
    Err(Failure::new(Exit::Failed, "declined", "this is not the node's name").fix(format!("type {node}")))
}

/// The same cluster by all of its nodes: the one that was named may be the one that goes.
fn everybody(client: &Client, target: Target) -> Target {
    if target.dev.is_some() {
        return target;
    }
    let Ok(overview) = client.get::<Overview>("/v1/status") else { return target };
    let mut servers = target.servers.clone();
    // What proves a server by its socket proves no other one.
    if target.tls.is_some() || servers.iter().any(|server| server.starts_with("http://")) {
        servers.extend(overview.nodes.iter().map(|node| node.api.clone()));
        servers.dedup();
    }
    Target { servers, ..target }
}

/// Waits until the drill is over.
fn follow(context: &Context, target: &Target, mut drill: DrillView) -> Result<DrillView, Failure> {
    let began = Instant::now();
    let longest = drill.away.0 + BACK_WITHIN.0 + context.timeout;
    let mut told = None;
    while !drill.over {
        if began.elapsed() > longest {
            return Err(Failure::new(Exit::TimedOut, "not-over", format!("drill {} is not over", drill.id))
                .fix(format!("it goes on by itself: quorate drill show {}", drill.id)));
        }
        let line = progress(&drill);
        if told.as_ref() != Some(&line) {
            context.screen.tell(&line);
            told = Some(line.clone());
        }
        context.screen.progress(&format!("{line}   {} s", began.elapsed().as_secs()));
        std::thread::sleep(LOOK_EVERY);
        // Whoever answers may be behind, and in the first seconds nobody may lead.
        if let Ok(seen) = context.client_for(target).get::<DrillView>(&format!("/v1/drills/{}", drill.id)) {
            drill = seen;
        }
    }
    context.screen.progress_over();
    Ok(drill)
}

fn progress(drill: &DrillView) -> String {
    let open: Vec<&str> =
        drill.services.iter().filter(|one| one.verdict == Verdict::Open).map(|one| one.service.as_str()).collect();
    match (drill.noticed, open.as_slice()) {
        (None, _) => format!("drill {}: {} falls silent", drill.id, drill.node),
        (Some(_), []) => format!("drill {}: every service is settled, {} comes back", drill.id, drill.node),
        (Some(_), open) => format!("drill {}: {} is missed, not whole: {}", drill.id, drill.node, open.join(", ")),
    }
}

fn plan_text(forecast: &DrillForecast) -> String {
    let DrillForecast { node, leads, away, services, moves, roles, held, refused } = forecast;
    let mut text = format!("{node} would be silent to all other nodes for {away}");
    if *leads {
        text.push_str(", and another node would lead");
    }
    text.push('\n');
    if services.is_empty() {
        text.push_str("nothing runs there\n");
    } else {
        let rows = services.iter().map(|one| {
            let limit = if one.verdict == Verdict::Stays { "-".into() } else { one.limit.to_string() };
            vec![
                one.service.to_string(),
                mode(one.mode).into(),
                one.copies.len().to_string(),
                one.setting.to_string(),
                limit,
            ]
        });
        let headings = ["SERVICE", "MODE", "COPIES THERE", "SETTING", "WHOLE WITHIN"];
        text.push_str(&screen::table(&headings, &[2, 3, 4], rows));
        text.push('\n');
    }
    let (node, moves, roles, held) = (node.clone(), moves.clone(), roles.clone(), held.clone());
    let forecast = ForecastView { node, moves, roles, held };
    text.push_str(&forecast_text(&forecast));
    if let Some(refused) = refused {
        // A String takes all that is written into it.
        let _ = write!(text, "\n! {refused}");
    }
    text
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Replicated => "replicated",
        Mode::Singleton => "singleton",
        Mode::EveryNode => "every-node",
        Mode::ActivePassive => "active-passive",
    }
}

/// A measured span: seconds, to the tenth.
fn seconds(span: Option<Span>) -> String {
    span.map_or_else(|| "-".into(), |span| format!("{:.1} s", span.0.as_secs_f64()))
}

fn verdict(one: &ServiceDrillView) -> &'static str {
    match one.verdict {
        Verdict::Open => "not yet",
        Verdict::Ok => "✔ in time",
        Verdict::Late => "! late",
        Verdict::NotRecovered => "✘ not before the node was back",
        Verdict::Stays => "- not meant to move",
        Verdict::Gone => "- removed meanwhile",
    }
}

/// What happened to the node, a line for each thing.
fn told(drill: &DrillView) -> Vec<String> {
    let node = &drill.node;
    let mut told = vec![match drill.noticed {
        Some(_) => format!("{node} was missed after {}", seconds(drill.noticed)),
        None if drill.over => format!("{node} was never missed"),
        None => format!("{node} is not missed yet"),
    }];
    if let Some(successor) = &drill.successor {
        told.push(format!("{node} led; {} led after {}", successor.node, seconds(Some(successor.after))));
    }
    told.push(match (drill.returned, drill.over) {
        (Some(_), _) => format!("{node} was back after {}", seconds(drill.returned)),
        (None, true) => format!("{node} has not come back"),
        (None, false) => format!("{node} is away"),
    });
    told
}

fn services(drill: &DrillView) -> Vec<Vec<String>> {
    drill
        .services
        .iter()
        .map(|one| {
            let limit = if one.verdict == Verdict::Stays { "-".into() } else { one.limit.to_string() };
            vec![one.service.to_string(), one.setting.to_string(), limit, seconds(one.took), verdict(one).into()]
        })
        .collect()
}

fn copies(drill: &DrillView) -> Vec<Vec<String>> {
    let copies = drill.services.iter().filter(|one| one.verdict != Verdict::Stays).flat_map(|one| &one.copies);
    copies
        .map(|copy| {
            let to = copy.to.clone().unwrap_or_else(|| "-".into());
            vec![copy.name.clone(), to, seconds(copy.placed), seconds(copy.serving)]
        })
        .collect()
}

const SERVICES: [&str; 5] = ["SERVICE", "SETTING", "LIMIT", "WHOLE AFTER", "VERDICT"];
const COPIES: [&str; 4] = ["COPY", "TO", "PLACED AFTER", "SERVING AFTER"];

fn report(drill: &DrillView) -> String {
    let by = drill.by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
    let began = screen::moment(drill.began, true);
    let mut text = format!("drill {} took {} away for {}, at {began}{by}\n", drill.id, drill.node, drill.away);
    for line in told(drill) {
        // A String takes all that is written into it.
        let _ = writeln!(text, "  {line}");
    }
    if drill.services.is_empty() {
        text.push_str("nothing ran there");
        return text;
    }
    text.push_str(&screen::table(&SERVICES, &[1, 2, 3], services(drill)));
    let copies = copies(drill);
    if !copies.is_empty() {
        text.push('\n');
        text.push_str(&screen::table(&COPIES, &[2, 3], copies));
    }
    text
}

/// The report as Markdown.
fn page(drill: &DrillView) -> String {
    let mut text = format!("# Drill {}: {} away for {}\n\n", drill.id, drill.node, drill.away);
    let by = drill.by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
    let lines = [format!("begun at {}{by}", screen::moment(drill.began, true))];
    for line in lines.into_iter().chain(told(drill)) {
        // A String takes all that is written into it.
        let _ = writeln!(text, "- {line}");
    }
    text.push_str("\nSpans count from when the node fell silent, like one that lost its network.\n");
    for (headings, rows) in [(&SERVICES[..], services(drill)), (&COPIES[..], copies(drill))] {
        if !rows.is_empty() {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            text.push('\n');
            text.push_str(&line(&headings.iter().map(|heading| heading.to_lowercase()).collect::<Vec<_>>()));
            text.push_str(&line(&vec!["---".to_owned(); headings.len()]));
            rows.iter().for_each(|row| text.push_str(&line(row)));
        }
    }
    text
}

#[cfg(test)]
mod tests;
