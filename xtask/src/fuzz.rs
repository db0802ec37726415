//! Runs the fuzzers: `fuzz/`, whose targets are the functions of `quorate-fuzz`.
//!
//! What a run finds on its way stays in `target/fuzz/corpus`; only `--keep` takes some of it
//! into `fuzz/corpus`, which every checkout has.

use crate::{must, needs, root};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What one target's corpus in git may take: eleven of them stay well below 200 KiB.
const CORPUS_BYTES_MAX: u64 = 16 << 10;
/// Inputs kept for a target besides its seeds.
const INPUTS_MAX: usize = 32;
/// Inputs are short: everything that is decoded here is small, and short ones are tried faster.
const INPUT_BYTES_MAX: u32 = 16 << 10;

#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// One target; all of them, one after the other, without it.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only writes the seeds, made by the real encoders, into fuzz/corpus.
    #[arg(long)]
    seed_corpus: bool,
    /// Afterwards takes a few small inputs that reach what was reached into fuzz/corpus.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Fuzz) -> Result<()> {
    if options.seed_corpus {
        return must("cargo", &["run", "--quiet", "--package", "quorate-fuzz", "--", "fuzz/corpus"]);
    }
    let all = targets()?;
    let chosen = match &options.target {
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no target {target}; there are {}", all.join(", ")),
        None => all,
    };
    let cargo_fuzz = needs::cargo_fuzz()?;
    // The fuzzers have a workspace of their own, and test the versions that are shipped.
    fs::copy(root().join("Cargo.lock"), root().join("fuzz/Cargo.lock")).context("copying Cargo.lock")?;
    let mut broken = Vec::new();
    for target in &chosen {
        println!("── {target}");
        if !fuzz(&cargo_fuzz, target, options)? {
            broken.push(target.as_str());
        }
    }
    if !broken.is_empty() {
        bail!(
            "{} broke: see fuzz/artifacts; what is fixed goes into fuzz/regressions/TARGET/, named after what was wrong",
            broken.join(", ")
        );
    }
    Ok(())
}

/// Every target, for so many seconds each.
pub(crate) fn all(seconds: u32) -> Result<()> {
    run(&Fuzz { target: None, seconds, seed_corpus: false, keep: false })
}

fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether the target held.
fn fuzz(cargo_fuzz: &Path, target: &str, options: &Fuzz) -> Result<bool> {
    let kept = root().join("fuzz/corpus").join(target);
    let regressions = root().join("fuzz/regressions").join(target);
    let working = root().join("target/fuzz/corpus").join(target);
    for directory in [&working, &kept] {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let mut command = cargo_fuzz_command(cargo_fuzz);
    // The first directory takes what is new; the others are only read.
    command.arg("run").args(["--target-dir", "target/fuzz", target]).args([&working, &kept]);
    if regressions.is_dir() {
        command.arg(&regressions);
    }
    command.args([
        "--".to_owned(),
        format!("-max_total_time={}", options.seconds),
        format!("-max_len={INPUT_BYTES_MAX}"),
    ]);
    command.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    let held = command.status().context("starting cargo-fuzz")?.success();
    if held && options.keep {
        keep(cargo_fuzz, target, &working, &kept)?;
    }
    Ok(held)
}

/// Leaves in `kept` the seeds and, as far as there is room, some of the inputs that together reach
/// every edge that was reached: spread over all sizes, since short ones are refused early and long ones
/// get far.
fn keep(cargo_fuzz: &Path, target: &str, working: &Path, kept: &Path) -> Result<()> {
    let cover = root().join("target/fuzz/cover").join(target);
    if cover.exists() {
        fs::remove_dir_all(&cover)?;
    }
    fs::create_dir_all(&cover)?;
    let mut command = cargo_fuzz_command(cargo_fuzz);
    command.arg("run").args(["--target-dir", "target/fuzz", target]).args([&cover, kept, working]);
    // cmin would keep an input for each number of times that an edge is passed: thousands.
    command.args(["--", "-set_cover_merge=1", "-use_counters=0"]).stderr(Stdio::null());
    if !command.status().context("starting cargo-fuzz")?.success() {
        bail!("the corpus of {target} cannot be minimised");
    }
    for (_, path) in sized(kept)?.into_iter().filter(|(_, path)| !is_seed(path)) {
        fs::remove_file(path)?;
    }
    let seeds: u64 = sized(kept)?.iter().map(|(bytes, _)| bytes).sum();
    let mut room = CORPUS_BYTES_MAX.saturating_sub(seeds);
    let inputs = sized(&cover)?;
    let every = inputs.len().div_ceil(INPUTS_MAX).max(1);
    for (bytes, path) in inputs.into_iter().step_by(every) {
        let (Some(left), Some(name)) = (room.checked_sub(bytes), path.file_name()) else { break };
        room = left;
        fs::copy(&path, kept.join(name))?;
    }
    Ok(())
}

fn is_seed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-"))
}

/// The files of a directory with their sizes, the smallest first.
fn sized(directory: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    Ok(files)
}

fn cargo_fuzz_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    // The sanitizers are only in nightly compilers. The variables of `cargo xtask` itself would ask for
    // the stable one again.
    command.arg("fuzz").current_dir(root()).env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO").env_remove("RUSTC");
    command
}
