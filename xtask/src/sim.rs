//! `cargo xtask sim`: many seeds at once, what came of them, and the ledger.
//!
//! One process simulates one cluster at a time (SQLite has generators that belong to the process), so
//! there are as many processes as cores, each with its share of the seeds.

use crate::{must, root};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A planted bug must be found within so many seeds.
const PLANTED_SEEDS: u64 = 700;
/// Simulated minutes with faults in a seed.
const LENGTH: u64 = 9;
const LEDGER: &str = "target/sim/ledger.jsonl";
/// From this many seeds on every invariant must have had something to object to, and every fault must
/// have happened.
const COVERS: u64 = 100;
/// A simulated hour counts only with so much work and so many faults in it.
const ACKNOWLEDGED_AN_HOUR: f64 = 10_000.0;
const FAULTS_AN_HOUR: f64 = 20.0;

/// Simulates clusters under faults, seed by seed.
#[derive(Debug, Args)]
pub(crate) struct Sim {
    /// Run one seed and print everything that happens to it
    #[arg(long, conflicts_with_all = ["seeds", "planted"])]
    seed: Option<u64>,
    /// Seeds to run: the first, and the one after the last. Nine minutes with faults in each of the
    /// default's make a hundred hours that count
    #[arg(long, value_name = "A..B", value_parser = range, default_value = "0..720")]
    seeds: Range<u64>,
    /// Begin no seed after so many real minutes
    #[arg(long, value_name = "M")]
    minutes: Option<u64>,
    /// Simulated minutes with faults in each seed
    #[arg(long, value_name = "M", default_value_t = LENGTH)]
    length: u64,
    /// Plant each known bug into the product and see it caught
    #[arg(long)]
    planted: bool,
    /// Only this planted bug
    #[arg(long, requires = "planted")]
    bug: Option<String>,
    /// How fast five nodes are simulated that nobody uses
    #[arg(long)]
    idle: bool,
    /// Where a line is added for each run
    #[arg(long, value_name = "FILE", default_value = LEDGER)]
    ledger: PathBuf,
    /// Processes at once; by default one for each core
    #[arg(long)]
    jobs: Option<usize>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is not A..B with A below B, like 0..670");
    let (first, end) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
    let range = number(first)?..number(end)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

pub(crate) fn run(options: &Sim) -> Result<()> {
    build()?;
    if let Some(seed) = options.seed {
        return one(seed, options.length);
    }
    if options.idle {
        return idle();
    }
    if options.planted {
        return planted(options);
    }
    many(options).map(|_| ())
}

impl Sim {
    /// As if nothing had been said on the command line.
    fn of(seeds: Range<u64>) -> Sim {
        Sim {
            seed: None,
            seeds,
            minutes: None,
            length: LENGTH,
            planted: false,
            bug: None,
            idle: false,
            ledger: LEDGER.into(),
            jobs: None,
        }
    }
}

/// A thousand hours that nobody has seen before.
pub(crate) fn soak() -> Result<()> {
    build()?;
    let today = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400;
    let first = today * 10_000;
    many(&Sim::of(first..first + 6_700))
}

pub(crate) fn all_planted() -> Result<()> {
    build()?;
    planted(&Sim::of(0..PLANTED_SEEDS))
}

pub(crate) fn build() -> Result<()> {
    // One build for everything: without a bug planted the feature only asks and hears no.
    must(
        "cargo",
        &["build", "--release", "--quiet", "--locked", "--package", "quorate-sim", "--features", "planted-bugs"],
    )
}

fn program() -> PathBuf {
    root().join("target/release/quorate-sim")
}

/// A seed with everything that happened in it.
fn one(seed: u64, length: u64) -> Result<()> {
    let status = Command::new(program())
        .args([seed.to_string(), (seed + 1).to_string(), "--trace".into(), "--minutes".into(), length.to_string()])
        .status()
        .context("starting the simulator")?;
    if !status.success() {
        bail!("the simulator ended with {status}");
    }
    Ok(())
}

/// Simulated seconds a second of CPU, for five idle nodes.
fn idle() -> Result<()> {
    let output = Command::new(program()).args(["0", "3", "--idle", "--minutes", "60"]).output()?;
    let mut speeds: Vec<f64> = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|line| line["simulated_s"].as_f64().unwrap_or(0.0) / line["real_s"].as_f64().unwrap_or(f64::MAX))
        .collect();
    speeds.sort_by(f64::total_cmp);
    let median = speeds.get(speeds.len() / 2).context("the simulator said nothing")?;
    println!("five idle nodes: {median:.0} simulated seconds a second of one core (median of {})", speeds.len());
    Ok(())
}

/// What many seeds came to.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    hours: f64,
    counted: f64,
    events: u64,
    acknowledged: u64,
    sectors_lost: u64,
    real_s: f64,
    faults: BTreeMap<String, u64>,
    premises: BTreeMap<String, u64>,
    violations: Vec<Value>,
}

impl Sum {
    fn add(&mut self, line: &Value) {
        let number = |name: &str| line[name].as_u64().unwrap_or(0);
        let hours = line["simulated_s"].as_f64().unwrap_or(0.0) / 3_600.0;
        let faults: u64 =
            line["faults"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
        self.seeds += 1;
        self.hours += hours;
        let dense = number("acknowledged") as f64 >= hours * ACKNOWLEDGED_AN_HOUR;
        if dense && faults as f64 >= hours * FAULTS_AN_HOUR && line["violation"].is_null() {
            self.counted += hours;
        }
        self.events += number("events");
        self.acknowledged += number("acknowledged");
        self.sectors_lost += number("sectors_lost");
        self.real_s += line["real_s"].as_f64().unwrap_or(0.0);
        for (field, into) in [("faults", &mut self.faults), ("premises", &mut self.premises)] {
            for (name, count) in line[field].as_object().into_iter().flatten() {
                *into.entry(name.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
        if !line["violation"].is_null() {
            self.violations.push(json!({"seed": line["seed"], "violation": line["violation"]}));
        }
    }

    /// What is wrong with the run besides violations.
    fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if self.seeds < COVERS {
            return gaps;
        }
        gaps.extend(
            self.premises
                .iter()
                .filter(|(_, held)| **held == 0)
                .map(|(name, _)| format!("{name} never had anything to object to")),
        );
        gaps.extend(
            self.faults.iter().filter(|(_, count)| **count == 0).map(|(name, _)| format!("{name} never happened")),
        );
        if self.sectors_lost == 0 {
            gaps.push("no power cut lost anything that was not synced".into());
        }
        gaps
    }
}

/// Runs seeds in several processes and hands out each line as it comes. Ends all when `enough`.
fn simulate(seeds: Range<u64>, jobs: usize, args: &[String], mut each: impl FnMut(&Value) -> bool) -> Result<()> {
    let (sender, lines) = mpsc::channel();
    let mut children = Vec::new();
    for job in 0..jobs as u64 {
        if seeds.start + job >= seeds.end {
            break;
        }
        let mut child = Command::new(program())
            .args([(seeds.start + job).to_string(), seeds.end.to_string(), "--step".into(), jobs.to_string()])
            .args(args)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .context("starting the simulator")?;
        let output = child.stdout.take().context("its output")?;
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        children.push(child);
    }
    drop(sender);
    let mut enough = false;
    let mut wrong = None;
    for line in lines {
        match serde_json::from_str::<Value>(&line) {
            Ok(line) if line.get("error").is_some() => wrong = Some(line["error"].to_string()),
            Ok(line) => enough |= each(&line),
            Err(_) => wrong = Some(line),
        }
        if enough || wrong.is_some() {
            break;
        }
    }
    for mut child in children {
        if enough || wrong.is_some() {
            let _ = child.kill();
        }
        let status = child.wait()?;
        if !enough && wrong.is_none() && !status.success() {
            wrong = Some(format!("a simulator ended with {status}"));
        }
    }
    match wrong {
        Some(what) => bail!("the simulator failed: {what}"),
        None => Ok(()),
    }
}

fn jobs(options: &Sim) -> usize {
    options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn many(options: &Sim) -> Result<()> {
    let began = Instant::now();
    let mut sum = Sum::default();
    let mut args = vec!["--minutes".to_owned(), options.length.to_string()];
    if let Some(minutes) = options.minutes {
        args.extend(["--seconds".to_owned(), (minutes * 60).to_string()]);
    }
    let live = std::io::stdout().is_terminal();
    let mut said = Instant::now();
    let wanted = options.seeds.end - options.seeds.start;
    simulate(options.seeds.clone(), jobs(options), &args, |line| {
        sum.add(line);
        if !line["violation"].is_null() {
            println!("seed {}: {}: {}", line["seed"], line["violation"]["invariant"], line["violation"]["what"]);
        }
        if said.elapsed() > Duration::from_secs(if live { 1 } else { 60 }) {
            said = Instant::now();
            let text = format!("{} of {wanted} seeds, {:.0} simulated hours", sum.seeds, sum.hours);
            if live {
                print!("\r{text} ");
                let _ = std::io::stdout().flush();
            } else {
                println!("   {text}");
            }
        }
        false
    })?;
    if live {
        print!("\r");
    }
    let real = began.elapsed().as_secs_f64();
    let faults: u64 = sum.faults.values().sum();
    println!(
        "{} seeds: {:.1} simulated cluster-hours ({:.1} count), {} events, {} operations acknowledged, {faults} faults of {} kinds, {} violations",
        sum.seeds,
        sum.hours,
        sum.counted,
        sum.events,
        sum.acknowledged,
        sum.faults.values().filter(|count| **count > 0).count(),
        sum.violations.len()
    );
    println!("{real:.0} s, {:.0} simulated seconds a second of one core", sum.hours * 3_600.0 / sum.real_s.max(0.001));
    let gaps = sum.gaps();
    note(&options.ledger, options, &sum, real)?;
    for gap in &gaps {
        println!("not covered: {gap}");
    }
    if let Some(first) = sum.violations.first() {
        println!("look at the first one:\n  cargo xtask sim --seed {}", first["seed"]);
    }
    if sum.violations.is_empty() && gaps.is_empty() {
        return Ok(());
    }
    bail!("{} seeds broke a promise, {} things were not covered", sum.violations.len(), gaps.len())
}

/// Adds the run's line to the ledger.
fn note(ledger: &Path, options: &Sim, sum: &Sum, real: f64) -> Result<()> {
    let git = |args: &[&str]| -> String {
        let output = Command::new("git").args(args).current_dir(root()).output();
        output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let changed = !git(&["status", "--porcelain", "--", "crates"]).is_empty();
    let line = json!({
        "at_unix_s": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        "commit": git(&["rev-parse", "--short=12", "HEAD"]) + if changed { " and changes" } else { "" },
        "seeds": format!("{}..{}", options.seeds.start, options.seeds.end),
        "seeds_run": sum.seeds,
        "hours": (sum.hours * 100.0).round() / 100.0,
        "hours_counted": (sum.counted * 100.0).round() / 100.0,
        "events": sum.events,
        "acknowledged": sum.acknowledged,
        "faults": sum.faults,
        "premises": sum.premises,
        "sectors_lost": sum.sectors_lost,
        "violations": sum.violations,
        "real_s": real.round(),
    });
    let path = root().join(ledger);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
    writeln!(file, "{line}").with_context(|| format!("writing {}", path.display()))?;
    println!("noted in {}", ledger.display());
    Ok(())
}

/// Plants each bug and looks for it.
fn planted(options: &Sim) -> Result<()> {
    let output = Command::new(program()).args(["0", "0", "--list-bugs"]).output().context("starting the simulator")?;
    let bugs: Vec<Value> =
        String::from_utf8(output.stdout)?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (mut caught, mut missed) = (0, 0);
    let began = Instant::now();
    for bug in &bugs {
        let name = bug["name"].as_str().context("a bug without a name")?;
        if let Some(issue) = bug["pending"].as_str() {
            println!("pending  {name}: {issue}");
            continue;
        }
        if options.bug.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let expected: Vec<&str> = bug["caught_by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let args = ["--bug", name, "--until-violation", "--minutes", &options.length.to_string()].map(str::to_owned);
        let (mut seeds, mut found) = (0u64, None);
        let first = bug["first"].as_u64().unwrap_or(0);
        for range in [first..PLANTED_SEEDS, 0..first] {
            if found.is_some() || range.is_empty() {
                continue;
            }
            simulate(range, jobs(options), &args, |line| {
                seeds += 1;
                if line["violation"].is_null() {
                    return false;
                }
                let invariant = line["violation"]["invariant"].as_str().unwrap_or("").to_owned();
                found = Some((line["seed"].as_u64().unwrap_or(0), invariant));
                true
            })?;
        }
        match found {
            Some((seed, invariant)) if expected.contains(&invariant.as_str()) => {
                caught += 1;
                println!("caught   {name} by {invariant} (seed {seed}, after {seeds} seeds)");
            }
            Some((seed, invariant)) => {
                missed += 1;
                println!(
                    "MISSED   {name}: seed {seed} ended with {invariant}, and {} were to object",
                    expected.join(" or ")
                );
            }
            None => {
                missed += 1;
                println!("MISSED   {name}: nothing objected in {seeds} seeds");
            }
        }
    }
    println!("caught {caught} of {} in {:.0} s", caught + missed, began.elapsed().as_secs_f64());
    if missed > 0 || (options.bug.is_none() && caught < 16) {
        bail!("{missed} planted bugs were not caught as they must be");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_and_what_never_had_anything_to_object_to_is_a_gap() {
        let line = |kills: u64, looked: u64| {
            json!({
                "simulated_s": 540, "real_s": 1, "events": 1, "acknowledged": 2_000, "sectors_lost": 1,
                "faults": {"kill": kills, "pause": 40}, "premises": {"heals": looked}, "violation": null
            })
        };
        let gaps = |lines: &[Value]| {
            let mut sum = Sum::default();
            (0..COVERS).for_each(|_| lines.iter().for_each(|line| sum.add(line)));
            sum.gaps()
        };
        assert_eq!(gaps(&[line(1, 1)]), [""; 0]);
        assert_eq!(gaps(&[line(0, 1)]), ["kill never happened"]);
        assert_eq!(gaps(&[line(1, 0)]), ["heals never had anything to object to"]);
    }
}
