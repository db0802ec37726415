//! Everything that a developer or CI runs: `cargo xtask --help`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a command for a terminal")]

mod bench;
mod ci;
mod fuzz;
mod needs;
mod sim;
mod tidy;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Quorate's own commands for those who work on it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// All of CI; installs what it needs (as root, on Debian 12).
    Ci,
    /// Checks the rules that a compiler does not know. Part of `ci`.
    Tidy,
    /// Builds the console into crates/quorate-api/console (needs Node).
    Console,
    /// Simulates clusters under faults, seed by seed.
    Sim(sim::Sim),
    /// The long form of what `ci` proves: simulation, planted bugs, fuzzing, the full torture.
    Soak,
    /// Feeds every decoder with what might break it (needs a nightly compiler).
    Fuzz(fuzz::Fuzz),
    /// Measures, against peers in the same run.
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Ci => ci::run(),
        Task::Tidy => tidy::run(),
        Task::Console => console(),
        Task::Sim(options) => sim::run(&options),
        Task::Soak => ci::soak(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench { what } => bench::run(&what),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the checkout.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// Runs a command in the checkout and fails when it does.
fn must(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(args)
        .current_dir(root())
        .status()
        .with_context(|| format!("starting {program} (is it installed?)"))?;
    if !status.success() {
        bail!("`{program} {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

fn console() -> Result<()> {
    needs::node()?;
    must("npm", &["--prefix", "console", "ci", "--no-audit", "--no-fund"])?;
    must("npm", &["--prefix", "console", "run", "build"])
}
