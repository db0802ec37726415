//! `quorate doctor`: looks for what goes wrong on servers, and says what to do about it.
//!
//! Some checks look at this machine ([`machine`]), some at the cluster through its API
//! ([`cluster`]). Each is a function of what was measured, so its verdicts are tested without a
//! machine that is ill. A check with nothing to look at is not listed: what is not said was not
//! looked at.

mod cluster;
mod machine;

use crate::cli::Context;
use crate::cli::config::ConfigFile;
use crate::cli::failure::{Exit, Failure};
use crate::settings::Source;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Data directory of this server; without it, that of the cluster that runs here or of the configuration
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Well,
    /// It works, and could be better or soon be worse.
    Doubtful,
    Bad,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found, for people.
    what: String,
    /// Why it matters; empty when all is well.
    why: String,
    /// What to do about it; empty when all is well.
    fix: String,
}

impl Finding {
    fn well(check: &'static str, what: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Well, what: what.into(), why: String::new(), fix: String::new() }
    }

    fn doubtful(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        Finding { verdict: Verdict::Doubtful, why: why.into(), fix: fix.into(), ..Finding::well(check, what) }
    }

    fn bad(check: &'static str, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Bad, ..Finding::doubtful(check, what, why, fix) }
    }

    fn line(&self, wide: bool) -> String {
        let symbol = match self.verdict {
            Verdict::Well => "✔",
            Verdict::Doubtful => "!",
            Verdict::Bad => "✕",
        };
        let mut line = format!("{symbol} {} {}", self.check, self.what);
        if !self.fix.is_empty() {
            line.push_str(&format!("   fix: {}", self.fix));
        }
        if wide && !self.why.is_empty() {
            line.push_str(&format!("\n    why: {}", self.why));
        }
        line
    }
}

pub(crate) fn run(context: &Context, args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let source = args.file.source();
    // A cluster that does not run is a finding; two that run are a question that a person answers.
    let target = match context.choice.find() {
        Err(failure) if failure.exit == Exit::Unreachable => Err(failure),
        found => Ok(found?),
    };
    let dev = target.as_ref().ok().and_then(|target| target.dev.as_ref());
    let configured = source.load().ok().map(|loaded| loaded.settings.node.data_dir);
    let data_dirs = match (&args.data_dir, dev) {
        (Some(dir), _) => vec![dir.clone()],
        (None, Some(dev)) => dev.nodes.iter().map(|node| dev.dir.join(&node.name)).collect(),
        (None, None) => configured.into_iter().filter(|dir| dir.exists()).collect(),
    };
    // What is configured on this machine is not for the nodes of a `dev` cluster.
    let sources = match dev {
        Some(_) => {
            data_dirs.iter().map(|dir| Source { file: Some(dir.join("quorate.toml")), ..source.clone() }).collect()
        }
        None => vec![source],
    };
    let mut findings = vec![machine::configuration(&sources)];
    findings.extend(machine::examine(&data_dirs));
    match &target {
        Ok(target) => findings.extend(cluster::examine(context, target)),
        Err(failure) => findings.push(cluster::not_found(failure)),
    }
    let well = findings.iter().all(|finding| finding.verdict != Verdict::Bad);
    if context.screen.is_json() {
        context.screen.json(&serde_json::json!({ "well": well, "checks": findings }));
    } else {
        let lines: Vec<String> = findings.iter().map(|finding| finding.line(context.screen.is_wide())).collect();
        context.screen.data(&lines.join("\n"));
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(Exit::Unhealthy as u8) })
}
