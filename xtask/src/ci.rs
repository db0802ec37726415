//! All of CI, in the order in which a mistake shows soonest.
//!
//! Tests and torture wait more than they compute, and simulations only compute. So simulations run aside
//! from when everything is built, with what the others leave of the processors: they are scheduled only
//! when nothing else wants to run.
//!
//! Every step counts as one check, every test as itself. The last line is plain: `N passed, M failed`.

use crate::{fuzz, must, needs, root, sim, tidy};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Instant;

/// What the tests and checks need besides Rust: a package and a program in it.
const PACKAGES: &[(&str, &str)] = &[
    ("build-essential", "cc"),
    ("git", "git"),
    ("python3", "python3"),
    ("nginx-light", "nginx"),
    ("strace", "strace"),
    ("util-linux", "unshare"),
    ("mount", "losetup"),
    ("iproute2", "ip"),
    ("e2fsprogs", "mkfs.ext4"),
    ("chromium", "chromium"),
    ("faketime", "faketime"),
    ("sqlite3", "sqlite3"),
    ("postgresql", "psql"),
    ("redis-server", "redis-server"),
    ("rabbitmq-server", "rabbitmq-server"),
    ("resource-agents", "ocf-tester"),
    // Before podman, which takes another runtime where there is none.
    ("runc", "runc"),
    ("podman", "podman"),
    ("systemd-container", "systemd-nspawn"),
    ("dbus", "dbus-daemon"),
    ("bind9-dnsutils", "dig"),
];

/// The cases that properties are tried with here, the same in each run, as those of the simulator are: a commit that
/// passed passes again, and what fails is what the commit changed. [`soak`] tries others.
const PROPERTY_SEED: u64 = 1;
const PROPERTY_SEEDS_OF_SOAK: std::ops::Range<u64> = 2..42;

/// The release binary may be this large: whoever adds to it sees what it costs.
const BINARY_BYTES_MAX: u64 = 47 << 20;

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    passed: u64,
    failed: u64,
}

pub(crate) fn run() -> Result<()> {
    let began = Instant::now();
    let mut total = Count::default();
    let mut step = |name: &str, work: &mut dyn FnMut() -> Result<Count>| {
        let began = Instant::now();
        println!("── {name}");
        let count = work().unwrap_or_else(|error| {
            println!("   {error:#}");
            Count { passed: 0, failed: 1 }
        });
        let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
        println!(
            "   {verdict}: {} passed, {} failed, {:.0} s",
            count.passed,
            count.failed,
            began.elapsed().as_secs_f64()
        );
        total.passed += count.passed;
        total.failed += count.failed;
    };
    step("packages", &mut || one(needs::debian(PACKAGES).and_then(|()| needs::moto())));
    step("format", &mut || one(must("cargo", &["fmt", "--all", "--check"])));
    step("tidy", &mut || one(tidy::run()));
    step("clippy", &mut || {
        one(must("cargo", &["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    });
    step("tests compile", &mut || one(must("cargo", &["test", "--workspace", "--locked", "--quiet", "--no-run"])));
    step("release binary", &mut || one(release_binary()));
    step("simulator", &mut || one(sim::build()));
    let mut simulations = Aside::begin();
    step("tests", &mut tests);
    step("console", &mut || one(console()));
    step("console in a browser", &mut || one(browser()));
    step("dependencies", &mut || one(dependencies()));
    step("torture", &mut || one(torture("quick", "1")));
    step("a hundred simulated hours", &mut || simulations.next());
    step("planted bugs", &mut || simulations.next());
    println!("── done in {:.0} s", began.elapsed().as_secs_f64());
    // Nothing may follow this line: it is what CI reads.
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn one(done: Result<()>) -> Result<Count> {
    done.map(|()| Count { passed: 1, failed: 0 })
}

/// The simulations, one after the other, behind the back of everything else.
struct Aside {
    done: mpsc::Receiver<Result<Output>>,
}

impl Aside {
    const WHAT: [&'static [&'static str]; 2] = [&["sim"], &["sim", "--planted"]];

    fn begin() -> Aside {
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            for args in Self::WHAT {
                let run = || -> Result<Output> {
                    let output = Command::new("chrt")
                        .args(["--idle", "0"])
                        .arg(std::env::current_exe()?)
                        .args(args)
                        .current_dir(root())
                        .output();
                    output.context("starting the simulations")
                };
                if sender.send(run()).is_err() {
                    return;
                }
            }
        });
        Aside { done }
    }

    /// Waits for the next one, shows what it said, and counts: each planted bug as itself.
    fn next(&mut self) -> Result<Count> {
        let output = self.done.recv().context("the simulations ended early")??;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().chain(String::from_utf8_lossy(&output.stderr).lines()).for_each(|line| println!("   {line}"));
        let mut count = text.lines().rev().find_map(caught_line).unwrap_or(Count {
            passed: u64::from(output.status.success()),
            failed: u64::from(!output.status.success()),
        });
        if !output.status.success() {
            count.failed = count.failed.max(1);
        }
        Ok(count)
    }
}

/// `caught 36 of 37 in 55 s`
fn caught_line(line: &str) -> Option<Count> {
    let mut words = line.strip_prefix("caught ")?.split(' ');
    let passed = words.next()?.parse().ok()?;
    let all: u64 = words.nth(1)?.parse().ok()?;
    Some(Count { passed, failed: all.saturating_sub(passed) })
}

/// All tests, counted one by one. An ignored test counts as failed: it shows nothing.
fn tests() -> Result<Count> {
    let mut child = Command::new("cargo")
        .args(["test", "--workspace", "--locked", "--no-fail-fast", "--quiet", "--", "--format", "pretty"])
        .env("PROPTEST_RNG_SEED", PROPERTY_SEED.to_string())
        .current_dir(root())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    let mut count = Count::default();
    let output = child.stdout.take().context("the output of cargo test")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        match result_line(&line) {
            Some(more) => {
                count.passed += more.passed;
                count.failed += more.failed;
            }
            // Only what failed is of interest; a thousand lines of success hide it.
            None if line.ends_with("... ok") || line.is_empty() || line.starts_with("running ") => {}
            None => println!("   {line}"),
        }
    }
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        count.failed = 1;
    }
    if count.passed == 0 {
        bail!("no test ran");
    }
    Ok(count)
}

/// `test result: ok. 12 passed; 0 failed; 1 ignored; …`
fn result_line(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| -> u64 {
        let mut words = rest.split([' ', ';']).filter(|part| !part.is_empty()).collect::<Vec<_>>().into_iter().rev();
        words.by_ref().find(|part| *part == word);
        words.next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Some(Count { passed: number("passed"), failed: number("failed") + number("ignored") })
}

fn release_binary() -> Result<()> {
    must("cargo", &["build", "--release", "--quiet", "--locked", "--package", "quorate"])?;
    let bytes = std::fs::metadata(root().join("target/release/quorate"))?.len();
    println!("   {:.1} MiB", bytes as f64 / f64::from(1 << 20));
    if bytes > BINARY_BYTES_MAX {
        bail!("the release binary has {bytes} bytes; the limit is {BINARY_BYTES_MAX}");
    }
    Ok(())
}

/// The committed console is what its sources build, and its unit tests pass.
fn console() -> Result<()> {
    needs::node()?;
    must("npm", &["--prefix", "console", "ci", "--no-audit", "--no-fund", "--silent"])?;
    must("npm", &["--prefix", "console", "run", "--silent", "check"])?;
    must("npm", &["--prefix", "console", "test", "--silent"])?;
    must("npm", &["--prefix", "console", "run", "--silent", "build"])?;
    must("git", &["diff", "--exit-code", "--stat", "--", "crates/quorate-api/console"])
        .context("the committed console is not what its sources build: run `cargo xtask console` and commit")
}

/// A real cluster of the release binary in namespaces of its own, and everything that can be done to it.
fn torture(profile: &str, seed: &str) -> Result<()> {
    must("target/release/quorate", &["torture", "--profile", profile, "--seed", seed])
}

/// The properties of the cores, with cases that CI has not. What fails is named with its seed.
fn properties() -> Result<()> {
    for seed in PROPERTY_SEEDS_OF_SOAK {
        let cores = ["quorate-model", "quorate-scheduler", "quorate-membership", "quorate-lease", "quorate-store"];
        let packages = cores.iter().flat_map(|core| ["--package", core]);
        let status = Command::new("cargo")
            .args(["test", "--locked", "--quiet", "--lib"])
            .args(packages)
            .env("PROPTEST_RNG_SEED", seed.to_string())
            .current_dir(root())
            .stdout(Stdio::null())
            .status()
            .context("starting cargo test")?;
        if !status.success() {
            bail!("a property fails with PROPTEST_RNG_SEED={seed}");
        }
    }
    Ok(())
}

/// What CI does shortly, at length: a thousand simulated hours with seeds that CI has not, every
/// planted bug, the properties of the cores with other cases, each decoder fuzzed, and the full torture. Three hours on two cores.
pub(crate) fn soak() -> Result<()> {
    needs::debian(PACKAGES)?;
    release_binary()?;
    let mut failed = Vec::new();
    for (name, done) in [
        ("simulation", sim::soak()),
        ("planted bugs", sim::all_planted()),
        ("properties", properties()),
        ("fuzzing", fuzz::all(30)),
        ("torture", torture("full", "1")),
    ] {
        match done {
            Ok(()) => println!("ok: {name}"),
            Err(error) => {
                println!("FAILED: {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// The console of real clusters in Chromium: one of `dev`, and one that asks who is there, over TLS.
fn browser() -> Result<()> {
    must("node", &["console/tests/real.mjs", "target/release/quorate"])?;
    must("node", &["console/tests/members.mjs", "target/release/quorate"])?;
    must("node", &["console/tests/alone.mjs", "target/release/quorate"])
}

/// Licences, sources and banned crates; works without a network.
fn dependencies() -> Result<()> {
    let deny = needs::cargo_deny()?;
    let deny = deny.display().to_string();
    // It looks at what every platform would link, also at crates that a build here never downloads.
    must("cargo", &["fetch", "--quiet", "--locked"])?;
    must(&deny, &["--offline", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_bug_that_nothing_caught_counts_as_failed() {
        let count = caught_line("caught 36 of 37 in 55 s").unwrap();
        assert_eq!((count.passed, count.failed), (36, 1));
        assert!(caught_line("caught   leap-forgets-requests by done_once (seed 15, after 14 seeds)").is_none());
    }

    #[test]
    fn an_ignored_test_counts_as_failed() {
        let count = result_line(
            "test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        );
        let count = count.expect("it is a result");
        assert_eq!((count.passed, count.failed), (12, 2));
        assert!(result_line("test a ... ok").is_none());
    }
}
