//! `quorate join`: this server becomes a node.
//!
//! [`attempt`] is the asking itself, [`seed`] what `quorate serve` does where the settings name seeds.

mod attempt;
pub(crate) mod seed;

use crate::cli::failure::{Exit, Failure};
use crate::cli::place::{self, Place, PlaceArgs};
use crate::cli::screen::took;
use crate::cli::{Context, waiting};
use crate::serve::admission::roles_of;
use crate::settings::Loaded;
use attempt::{Applicant, Joined, PORT_WITHIN, Wish};
use clap::{Args, ValueEnum};
use quorate_api::view::Standing;
use quorate_model::member::Vote;
use quorate_model::state::Role;
use quorate_trust::token::{JoinToken, ParseTokenError};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What `quorate add-node` printed: HOST:PORT/SECRET/FINGERPRINT
    token: String,
    /// Name of the node; without it, that of the server
    #[arg(long)]
    name: Option<String>,
    /// What the node is to do; without it, what the token is for
    #[arg(long, value_enum)]
    role: Option<RoleArg>,
    /// Ask for a vote, also where the cluster would let the node stand by
    #[arg(long)]
    voter: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// A role as people type it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    /// Takes part in decisions, and runs services as well
    Manager,
    /// Runs services
    Worker,
    /// Lets clients in
    Gateway,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Role {
        match role {
            RoleArg::Manager => Role::Manager,
            RoleArg::Worker => Role::Worker,
            RoleArg::Gateway => Role::Gateway,
        }
    }
}

pub(crate) fn run(context: &Context, args: &JoinArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let token = read_token(&args.token)?;
    let loaded = args.place.settings()?;
    let wish = Wish {
        name: args.name.clone().unwrap_or_else(|| loaded.settings.node.name_or_host()),
        alias: loaded.settings.node.alias.clone(),
        roles: args.role.map_or_else(|| wished_roles(&loaded), |role| roles_of(role.into())),
        vote: if args.voter { Vote::Asked } else { Vote::Auto },
    };
    let name = wish.name.clone();
    let place = Place::take(&loaded.settings.node)?;
    let mut applicant = Applicant::new(&token, wish, place, PORT_WITHIN)?;
    let address = token.address.to_string();
    let Joined { answer, config, tried } = applicant.join(&address)?;
    let data_dir = &loaded.settings.node.data_dir;
    applicant.end();

    let fingerprint = token.authority.to_string();
    let mut lines = vec![format!("✔ reached {address}, certificate {} matches", &fingerprint[..12])];
    if tried > 1 {
        lines.push(format!("✔ ports of {tried} managers open in both directions"));
    }
    lines.push(format!("✔ assigned ID {}, name {name}", answer.node));
    let is_manager = config.node.roles.contains(&Role::Manager);
    let start = !args.place.no_start && place::has_systemd();
    let mut standing = None;
    if start {
        place::start_unit(data_dir)?;
        standing = waiting::until_joined(context, data_dir, answer.node)?;
        let copied = megabytes(bytes_below(&data_dir.join("db")));
        let position = position(is_manager, standing);
        lines.push(format!("✔ database copied ({copied}), {position}   {}", took(started.elapsed())));
    } else {
        lines.push(format!("  start it: quorate serve --data-dir {}", data_dir.display()));
    }
    if is_manager {
        lines.extend(advice(answer.admitted_managers, standing));
    }
    if context.screen.is_json() {
        context.screen.json(&json!({
            "cluster": answer.cluster, "cluster_name": answer.cluster_name, "node": answer.node, "name": name,
            "started": start, "api": config.node.api_address(), "link": config.node.link_address(),
        }));
    } else {
        context.screen.data(&lines.join("\n"));
    }
    Ok(())
}

fn read_token(text: &str) -> Result<JoinToken, Failure> {
    text.parse().map_err(|error: ParseTokenError| {
        Failure::new(Exit::Usage, "bad-token", "this is not a join token")
            .why(error)
            .fix("copy the whole line that `quorate add-node` printed")
    })
}

/// What the settings say that this server is for; nothing, if they do not say it: the token decides then.
fn wished_roles(loaded: &Loaded) -> BTreeSet<Role> {
    if loaded.origins.contains_key("node.roles") { loaded.settings.node.roles.clone() } else { BTreeSet::new() }
}

/// What the files below a directory hold; those that go while this looks do not count.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .map(|(found, path)| if found.is_dir() { bytes_below(&path) } else { found.len() })
        .sum()
}

fn megabytes(bytes: u64) -> String {
    // Exact for any disk.
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn position(is_manager: bool, standing: Option<Standing>) -> &'static str {
    match standing {
        _ if !is_manager => "it runs what the managers assign to it",
        Some(Standing::Voter) => "voting manager",
        Some(Standing::Stopped) => "stopped manager",
        Some(Standing::Standby) | None => "standby manager",
    }
}

/// What this number of managers means (U4); `managers` were let in, this one too.
fn advice(managers: u32, standing: Option<Standing>) -> Option<String> {
    let voters = managers.saturating_sub(1) | 1;
    match standing {
        Some(Standing::Voter) => None,
        _ if managers % 2 == 1 => {
            Some(format!("! when all {managers} managers run, all of them vote, and {} may be lost", managers / 2))
        }
        _ if voters == 1 => Some(
            "! 1 voting manager cannot be lost. The next manager makes three voters: sudo quorate add-node".to_owned(),
        ),
        _ => Some(format!(
            "! {voters} managers vote, {} may be lost. The next manager makes {} voters: sudo quorate add-node",
            voters / 2,
            voters + 2
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u4_the_second_and_the_fourth_manager_are_told_that_they_stand_by() {
        let standby = Some(Standing::Standby);
        assert_eq!(
            advice(2, standby).unwrap(),
            "! 1 voting manager cannot be lost. The next manager makes three voters: sudo quorate add-node"
        );
        assert_eq!(
            advice(4, standby).unwrap(),
            "! 3 managers vote, 1 may be lost. The next manager makes 5 voters: sudo quorate add-node"
        );
        assert_eq!(advice(3, None).unwrap(), "! when all 3 managers run, all of them vote, and 1 may be lost");
        assert_eq!(advice(3, Some(Standing::Voter)), None);
        assert_eq!(position(true, standby), "standby manager");
        assert_eq!(position(false, None), "it runs what the managers assign to it");
    }
}
