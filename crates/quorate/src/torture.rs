//! `quorate torture`: a real cluster, everything that goes wrong on servers, and a verdict.
//!
//! A run: start a cluster ([`rig`]), let clients work on it ([`workload`]), break things as the seed
//! says ([`schedule`]), stop breaking and see it heal ([`healing`]), judge what was written down
//! ([`record`], [`verdict`]). Users run it on their own servers, so it says what it could not try,
//! and never calls that a success.
//!
//! # Invariants
//! - The verdict rests on the record alone; `--check` judges one again.
//! - Whatever a run starts ends with it, however it ends ([`rig::arena`]).
//! - Nothing is tried that was not announced, and what was announced and did not happen fails the run.

mod census;
pub(crate) mod change;
mod dice;
pub(crate) mod fault;
mod healing;
mod reach;
mod record;
pub(crate) mod rig;
mod schedule;
mod tormentor;
mod verdict;
mod workload;

use crate::cli::Context;
use crate::cli::failure::{self, Exit, Failure};
use crate::cli::screen::{Screen, age, table};
use crate::demo::ran;
use change::ChangeKind;
use clap::{Args, ValueEnum};
use fault::FaultKind;
use record::{Line, Recorder};
use rig::{Arena, EnterOptions, Entered, Rig, RigOptions};
use schedule::Slot;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tormentor::{Findings, Tormentor};
use verdict::{Outcome, Report};
use workload::client::{Client, Reply};
use workload::services::{Copies, RAN};
use workload::{COPIES, Shared, Workload, sql};

/// Name of the record in the directory of a run.
const RECORD: &str = "record.jsonl";
/// Longest wait for the tables and the service of a cluster that is well.
const SET_UP: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate torture --profile quick --seed 1\n  quorate torture --profile full --nodes 5 --dir /var/tmp\n  quorate torture --faults kill,pause --minutes 1\n  quorate torture --list\n  quorate torture --check record.jsonl"
)]
pub(crate) struct TortureArgs {
    /// How much: quick (4 minutes of faults) or full (45)
    #[arg(long, value_enum, default_value_t = Profile::Quick, hide_possible_values = true)]
    profile: Profile,
    /// Decides which faults happen when, and what clients do [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Minutes of faults, instead of the profile's
    #[arg(long, value_name = "M", value_parser = minutes)]
    minutes: Option<f64>,
    /// How many nodes, 3 to 5 [default: 3, or 5 in the full profile]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(3..=5))]
    nodes: Option<u8>,
    /// Only these kinds of faults and changes, separated by commas; see --list
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_parser = kind)]
    faults: Vec<Kind>,
    /// Where the run's files are made, and kept if it fails [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the record and the logs even if all is proven
    #[arg(long)]
    keep_files: bool,
    /// Stay on the loopback interface, as without root: no faults of the network and of disks
    #[arg(long)]
    loopback: bool,
    /// Say each fault with its evidence as it happens
    #[arg(short, long)]
    verbose: bool,
    /// List the kinds of faults and changes, what each needs, and which can be had here
    #[arg(long, conflicts_with = "check")]
    list: bool,
    /// Judge the record of an earlier run again
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// 4 minutes, about 60 faults
    Quick,
    /// 45 minutes, about 670 faults
    Full,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if (0.1..=10_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("give a number from 0.1 to 10000".into()),
    }
}

/// What may be chosen for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fault(FaultKind),
    Change(ChangeKind),
}

impl Kind {
    fn all() -> impl Iterator<Item = Kind> {
        FaultKind::ALL.into_iter().map(Kind::Fault).chain(ChangeKind::ALL.into_iter().map(Kind::Change))
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Fault(kind) => kind.name(),
            Kind::Change(kind) => kind.name(),
        }
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let names = || Kind::all().map(Kind::name);
    Kind::all().find(|kind| kind.name() == text).ok_or_else(|| match failure::nearest(text, names()) {
        Some(similar) => format!("there is no such fault; did you mean `{similar}`?"),
        None => format!("there is no such fault; choose among {}", names().collect::<Vec<_>>().join(", ")),
    })
}

/// What a run is to be, with everything decided.
struct Settings {
    seed: u64,
    nodes: u8,
    length: Duration,
    /// Empty: all that can be had.
    kinds: Vec<Kind>,
    repeat: String,
}

impl TortureArgs {
    fn settings(&self) -> Settings {
        let full = self.profile == Profile::Full;
        let seed = self.seed.unwrap_or_else(|| u64::from(crate::cli::screen::wall_now().as_micros() as u32));
        let length = match self.minutes {
            Some(minutes) => Duration::from_secs_f64(minutes * 60.0),
            None => Duration::from_secs(60 * if full { 45 } else { 4 }),
        };
        let nodes = self.nodes.unwrap_or(if full { 5 } else { 3 });
        let mut repeat =
            format!("quorate torture --profile {} --seed {seed} --nodes {nodes}", if full { "full" } else { "quick" });
        if let Some(minutes) = self.minutes {
            repeat.push_str(&format!(" --minutes {minutes}"));
        }
        if !self.faults.is_empty() {
            let names: Vec<&str> = self.faults.iter().map(|kind| kind.name()).collect();
            repeat.push_str(&format!(" --faults {}", names.join(",")));
        }
        if self.loopback {
            repeat.push_str(" --loopback");
        }
        Settings { seed, nodes, length, kinds: self.faults.clone(), repeat }
    }
}

/// Runs until the verdict.
pub(crate) fn run(context: &Context, args: &TortureArgs) -> Result<ExitCode, Failure> {
    let screen = context.screen;
    if let Some(file) = &args.check {
        return check(screen, file);
    }
    if args.list {
        list(screen, args.loopback);
        return Ok(ExitCode::SUCCESS);
    }
    let options = EnterOptions { parent: args.dir.clone(), loopback: args.loopback, ..EnterOptions::default() };
    let arena = match rig::enter(&options)? {
        Entered::Here(arena) => arena,
        Entered::Over(code) => return Ok(code),
    };
    let settings = args.settings();
    let judged = torture(screen, args.verbose, &arena, &settings);
    screen.progress_over();
    let proven = judged.as_ref().is_ok_and(|report| report.outcome == Outcome::Proven);
    if !proven || args.keep_files {
        keep(screen, args, &arena, settings.seed);
    }
    Ok(tell(screen, &judged?))
}

/// The run itself.
fn torture(screen: Screen, verbose: bool, arena: &Arena, settings: &Settings) -> Result<Report, Failure> {
    screen.say(&format!(
        "Torture of {} nodes, seed {}, {} of faults",
        settings.nodes,
        settings.seed,
        age(settings.length)
    ));
    let record = Recorder::create(&arena.dir.join(RECORD))
        .map_err(|error| Failure::new(Exit::Failed, "io", "the record cannot be written").why(error))?;
    let options = RigOptions { nodes: settings.nodes, seed: settings.seed, ..RigOptions::default() };
    let mut rig = Rig::start(arena, &options)?;
    let slots = announce(&record, &rig, settings);
    // Two runs of one seed on one machine are still two runs.
    let run_id = crate::cli::screen::wall_now().as_micros() ^ settings.seed.rotate_left(32);
    let shared = Shared::new(settings.seed, run_id, rig.reach(), record);
    set_up(&shared, &arena.dir)?;
    let started = |error| Failure::new(Exit::Failed, "io", "a client cannot be started").why(error);
    let workload = Workload::start(&shared).map_err(started)?;
    let mut tormentor = Tormentor {
        screen,
        verbose,
        arena,
        shared: &shared,
        rig: &mut rig,
        findings: Findings::default(),
        under_way: Vec::new(),
    };
    tormentor.run(&slots);
    // After an interruption it looks no further: what was seen so far is reported.
    healing::heal(&shared, workload, &arena.stop, &|what| screen.progress(&format!("healing: {what}")));
    let Findings { mut deaths, mut broken } = tormentor.findings;
    if !arena.stop.is_raised() {
        screen.progress("healing: calling the roll");
        shared.record.write(Line::Members(rig.call_the_roll(&arena.stop)));
    }
    deaths.extend(rig.unexpected_deaths().into_iter().map(|death| format!("{} {}", death.node, death.what)));
    broken.extend(rig.stop().into_iter().map(|error| error.to_string()));
    match ran::read(&arena.dir.join(RAN)) {
        Ok(all) => shared.record.write(Line::Once { ran: all.into_iter().map(|ran| shared.record.ran(ran)).collect() }),
        Err(error) => broken.push(format!("what ran once was not written down: {error}")),
    }
    shared.record.write(Line::Over(record::Over {
        at: shared.record.now(),
        interrupted: arena.stop.is_raised(),
        unexpected_deaths: deaths,
        errors: shared.errors(),
        broken,
    }));
    let (lines, written) = shared.record.finish();
    written.map_err(|error| Failure::new(Exit::Failed, "io", "the record could not be written").why(error))?;
    screen.progress("judging");
    Ok(verdict::judge(lines).expect("the first line of a record is what was asked for"))
}

/// Decides what happens, and writes it into the record before it does.
fn announce(record: &Recorder, rig: &Rig, settings: &Settings) -> Vec<Slot> {
    let is_wanted = |kind: Kind| settings.kinds.is_empty() || settings.kinds.contains(&kind);
    let possible: Vec<FaultKind> = rig.possible().into_iter().filter(|kind| is_wanted(Kind::Fault(*kind))).collect();
    let wanted: Vec<ChangeKind> = ChangeKind::ALL.into_iter().filter(|kind| is_wanted(Kind::Change(*kind))).collect();
    let mut slots = match possible.is_empty() {
        true => schedule::without_faults(settings.length),
        false => schedule::plan(settings.seed, &possible, settings.length),
    };
    schedule::changes::plan(settings.seed, &wanted, usize::from(settings.nodes), &mut slots);
    let (counts, changes) = (schedule::count(&slots), schedule::changes::count(&slots));
    let missing = rig.missing().into_iter().filter(|missing| is_wanted(Kind::Fault(missing.kind)));
    let mut left_out: Vec<record::LeftOut> = missing
        .map(|missing| record::LeftOut { kind: missing.kind.name().into(), why: missing.why, fix: missing.fix })
        .collect();
    left_out.extend(possible.iter().filter(|kind| !counts.contains_key(kind)).map(|kind| record::LeftOut {
        kind: kind.name().into(),
        why: "the run is too short for all kinds".into(),
        fix: "more --minutes, or fewer --faults".into(),
    }));
    left_out.extend(wanted.iter().filter(|kind| !changes.contains_key(kind)).map(|kind| record::LeftOut {
        kind: kind.name().into(),
        why: "the run is too short for all kinds, or without the joins that it needs".into(),
        fix: "more --minutes, or other --faults".into(),
    }));
    record.write(Line::Run(record::Run {
        format: record::FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        seed: settings.seed,
        nodes: usize::from(settings.nodes),
        repeat: settings.repeat.clone(),
        planned: counts.into_iter().map(|(kind, times)| (kind.name().to_owned(), times)).collect(),
        planned_changes: changes.into_iter().map(|(kind, times)| (kind.name().to_owned(), times)).collect(),
        left_out,
    }));
    slots
}

/// Makes the tables and the services.
fn set_up(shared: &Arc<Shared>, dir: &Path) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Failed, "io", "this program does not know its own file").why(error))?;
    std::fs::create_dir(dir.join(RAN))
        .map_err(|error| Failure::new(Exit::Failed, "io", "a directory of the run cannot be made").why(error))?;
    let services = Copies::of_run(shared.run_id).specs(&program, COPIES[0], dir);
    let requests = [
        workload::client::Request::post("/v1/db/exec", &sql::tables()),
        workload::client::Request::post("/v1/specs", &services),
    ];
    let client = Client::new(0, shared.clone());
    let deadline = Instant::now() + SET_UP;
    for request in requests {
        let id = uuid::Uuid::new_v4();
        let mut turn = 0;
        loop {
            let nodes = shared.nodes();
            let why = match client.attempt(&nodes[turn % nodes.len()], &request, Some(id), Duration::from_secs(10)) {
                Reply::Answered(_) => break,
                Reply::NotDone(code) | Reply::Lost(code) => code,
            };
            if Instant::now() >= deadline {
                let what = "the cluster took neither tables nor services before the first fault";
                return Err(Failure::new(Exit::Failed, "not-ready", what).why(why));
            }
            turn += 1;
        }
    }
    Ok(())
}

/// `--check`: judges a record again.
fn check(screen: Screen, file: &Path) -> Result<ExitCode, Failure> {
    let lines = record::read(file).map_err(|error| {
        Failure::new(Exit::Usage, "bad-record", format!("{} is no record of a run", file.display()))
            .why(error)
            .fix("quorate torture --keep-files, or the directory that a failed run names")
    })?;
    let report = verdict::judge(lines).expect("a record that was read begins with what was asked for");
    Ok(tell(screen, &report))
}

/// `--list`: the kinds of faults and whether they can be had here.
fn list(screen: Screen, loopback: bool) {
    let missing: BTreeMap<FaultKind, rig::Missing> =
        rig::missing(loopback).into_iter().map(|missing| (missing.kind, missing)).collect();
    if screen.is_json() {
        let kinds: Vec<serde_json::Value> =
            FaultKind::ALL
                .iter()
                .map(|kind| {
                    let missing = missing.get(kind);
                    serde_json::json!({
                        "kind": kind.name(),
                        "is": "fault",
                        "needs": kind.needs().iter().map(|need| need.name()).collect::<Vec<_>>(),
                        "possible": missing.is_none(),
                        "why": missing.map(|missing| &missing.why),
                        "fix": missing.map(|missing| &missing.fix),
                    })
                })
                .chain(ChangeKind::ALL.iter().map(
                    |kind| serde_json::json!({ "kind": kind.name(), "is": "change", "needs": [], "possible": true }),
                ))
                .collect();
        return screen.json(&kinds);
    }
    let rows = FaultKind::ALL.iter().map(|kind| {
        let needs: Vec<&str> = kind.needs().iter().map(|need| need.name()).collect();
        let (symbol, why, fix) = match missing.get(kind) {
            None => ("✔", "", ""),
            Some(missing) => ("✕", missing.why.as_str(), missing.fix.as_str()),
        };
        let needs = if needs.is_empty() { "-".into() } else { needs.join(" and ") };
        vec![format!("{symbol} {}", kind.name()), needs, why.into(), fix.into()]
    });
    let changes =
        ChangeKind::ALL.iter().map(|kind| vec![format!("✔ {kind}"), "-".into(), String::new(), String::new()]);
    screen.data(&table(&["FAULT OR CHANGE", "NEEDS", "WHY NOT HERE", "FIX"], &[], rows.chain(changes)));
}

/// Copies the record and the logs to where they stay.
fn keep(screen: Screen, args: &TortureArgs, arena: &Arena, seed: u64) {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let place = tempfile::Builder::new().prefix(&format!("quorate-tortured-{seed}-")).tempdir_in(parent);
    let copied = place.and_then(|place| {
        let place = place.keep();
        for entry in std::fs::read_dir(&arena.dir)? {
            let file = entry?.path();
            let name = file.file_name().unwrap_or_default();
            if name == RECORD || file.extension().is_some_and(|extension| extension == "log") {
                std::fs::copy(&file, place.join(name))?;
            }
        }
        Ok(place)
    });
    match copied {
        Ok(dir) => screen.say(&format!("The record and the logs are in {}", dir.display())),
        Err(error) => screen.say(&format!("! the record and the logs could not be kept: {error}")),
    }
}

/// Prints the verdict; its exit status.
fn tell(screen: Screen, report: &Report) -> ExitCode {
    if screen.is_json() {
        screen.json(report);
    } else {
        screen.data(&report.render());
    }
    match report.outcome {
        Outcome::Proven => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::from(Exit::Failed as u8),
        Outcome::Incomplete => ExitCode::from(Exit::Incomplete as u8),
    }
}
