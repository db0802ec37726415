//! `quorate audit`: who did what, and whether that list is as it was written.

use crate::cli::Context;
use crate::cli::client::Call;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::{self, moment};
use clap::Subcommand;
use quorate_api::AuditVerdict;
use quorate_model::access::audit::{AuditLink, Broken, Chain};
use serde_json::json;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use ureq::http::Method;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// The newest entries
    #[command(after_help = "Examples:\n  quorate audit list\n  quorate audit list --limit 500 -o json")]
    List {
        /// How many, 1 to 1000
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Check that no entry was changed, cut or moved
    #[command(after_help = "Examples:\n  quorate audit verify\n  quorate audit verify --file ./audit.ndjson")]
    Verify {
        /// Check what `audit export` wrote, without a cluster
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print all entries, one JSON object a line
    #[command(after_help = "Examples:\n  quorate audit export > audit.ndjson")]
    Export,
}

pub(crate) fn run(context: &Context, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::List { limit } => {
            let links: Vec<AuditLink> = context.client()?.get(&format!("/v1/audit?limit={limit}"))?;
            context.show(&links, |links| table(links))
        }
        AuditCommand::Verify { file: None } => {
            let verdict: AuditVerdict = context.client()?.get("/v1/audit/verify")?;
            let text = format!(
                "✔ {} entries on {} hold; the last is {} with hash {}",
                verdict.entries, verdict.node, verdict.head.seq, verdict.head.hash
            );
            match &verdict.broken {
                None => context.done(&verdict, &text),
                Some(broken) => Err(not_held(&verdict.node, broken)),
            }
        }
        AuditCommand::Verify { file: Some(file) } => {
            let chain = check(&file)?;
            let head = chain.last();
            let text = format!(
                "✔ {} entries in {} hold; the last is {} with hash {}",
                chain.checked(),
                file.display(),
                head.seq,
                head.hash
            );
            context.done(&json!({ "entries": chain.checked(), "head": head }), &text)
        }
        AuditCommand::Export => {
            let call = Call {
                method: Method::GET,
                path: "/v1/audit/export",
                body: None,
                header: None,
                mutation: false,
                patient: true,
            };
            let answer = context.client()?.send(&call)?;
            context.screen.raw(&answer.body);
            Ok(())
        }
    }
}

fn not_held(place: &str, broken: &Broken) -> Failure {
    Failure::new(Exit::Failed, "audit-broken", format!("the audit on {place} is not as it was written"))
        .why(broken)
        .fix("compare with another node: quorate --server URL audit verify")
}

fn check(file: &Path) -> Result<Chain, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Usage, "unreadable", format!("{} cannot be read", file.display())).why(error)
    };
    let opened = std::fs::File::open(file).map_err(|error| unreadable(&error))?;
    let mut chain = Chain::default();
    for line in std::io::BufReader::new(opened).lines() {
        let line = line.map_err(|error| unreadable(&error))?;
        let link: AuditLink = serde_json::from_str(&line).map_err(|error| {
            let why = format!("line {} is no entry: {error}", chain.checked() + 1);
            unreadable(&why)
        })?;
        chain.check(&link).map_err(|broken| not_held(&file.display().to_string(), &broken))?;
    }
    Ok(chain)
}

fn table(links: &[AuditLink]) -> String {
    let rows = links.iter().map(|link| {
        let entry = &link.entry;
        vec![
            entry.seq.to_string(),
            moment(entry.at, false),
            entry.who.clone(),
            entry.from.clone(),
            format!("{} {}", entry.what, entry.target).trim_end().to_owned(),
            entry.outcome.clone(),
        ]
    });
    screen::table(&["SEQ", "AT", "WHO", "FROM", "WHAT", "OUTCOME"], &[0], rows)
}
