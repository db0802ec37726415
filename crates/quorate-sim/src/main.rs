//! `quorate-sim`: runs seeds and says what came of each, a line of JSON a seed. For people there is
//! `cargo xtask sim`, which runs several of these at once.
#![allow(clippy::print_stdout, reason = "this is a command; its lines are read by xtask")]

use clap::Parser;
use quorate_sim::{Report, Scenario, run};
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Simulates whole clusters, one after the other.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed
    first: u64,
    /// The seed after the last one
    end: u64,
    /// Seeds from one to the next
    #[arg(long, default_value_t = 1)]
    step: u64,
    /// Simulated minutes with faults
    #[arg(long, default_value_t = 9)]
    minutes: u64,
    /// Begin no seed after this many real seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Print everything that happens
    #[arg(long)]
    trace: bool,
    /// Five nodes that nobody uses and nothing happens to
    #[arg(long)]
    idle: bool,
    /// Plant this bug
    #[cfg(feature = "planted-bugs")]
    #[arg(long)]
    bug: Option<String>,
    /// Say which bugs can be planted and what must catch them, and run nothing
    #[cfg(feature = "planted-bugs")]
    #[arg(long)]
    list_bugs: bool,
    /// End after the first violation
    #[arg(long)]
    until_violation: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    #[cfg(feature = "planted-bugs")]
    if let Some(code) = plant(&args) {
        return code;
    }
    let safety = Duration::from_secs(60 * args.minutes);
    let began = Instant::now();
    let mut seed = args.first;
    while seed < args.end && args.seconds.is_none_or(|seconds| began.elapsed().as_secs() < seconds) {
        let scenario = if args.idle { Scenario::idle(seed, safety) } else { Scenario::of(seed, safety) };
        let started = Instant::now();
        let mut report = run(scenario, args.trace);
        let took = started.elapsed();
        if args.trace {
            println!("{}", std::mem::take(&mut report.text));
        }
        println!("{}", line(&report, took));
        if args.until_violation && report.violation.is_some() {
            break;
        }
        seed += args.step;
    }
    ExitCode::SUCCESS
}

/// Plants what is wanted. `Some`: that was all.
#[cfg(feature = "planted-bugs")]
fn plant(args: &Args) -> Option<ExitCode> {
    use quorate_sim::planted::{ALL, PENDING, named};
    if args.list_bugs {
        for planted in ALL {
            let (name, what, caught_by) = (planted.name, planted.what, planted.caught_by);
            let first = planted.first();
            println!("{}", json!({"name": name, "what": what, "caught_by": caught_by, "first": first}));
        }
        for (name, why) in PENDING {
            println!("{}", json!({"name": name, "pending": why}));
        }
        return Some(ExitCode::SUCCESS);
    }
    let name = args.bug.as_ref()?;
    let Some(planted) = named(name) else {
        println!("{}", json!({"error": format!("there is no bug `{name}`")}));
        return Some(ExitCode::from(2));
    };
    quorate_model::planted::plant(Some(planted.bug));
    None
}

fn line(report: &Report, took: Duration) -> serde_json::Value {
    let violation = report.violation.as_ref().map(|violation| {
        json!({"invariant": violation.invariant, "what": violation.what, "at_s": violation.at.0.as_secs_f64()})
    });
    json!({
        "seed": report.seed,
        "nodes": report.nodes,
        "simulated_s": report.simulated.as_secs_f64(),
        "real_s": took.as_secs_f64(),
        "events": report.events,
        "acknowledged": report.acknowledged,
        "faults": report.faults,
        "premises": report.premises,
        "sectors_lost": report.sectors_lost,
        "trace": format!("{:016x}", report.trace),
        "violation": violation,
    })
}
