//! Joining by itself: what `quorate serve` does on a server that is no node yet and whose settings name
//! seeds. The seeds and the token in its file are then all that the server needs.
//!
//! Every seed is asked, in the order of the settings, as often and with such pauses as
//! `cluster.timers` say ([`quorate_membership::JoinSchedule`]). A refusal that only a person can do
//! something about ends it at once; so do no more attempts. The token's file is removed with the join:
//! the token is used.
//!
//! # Sources
//! KrakenD's `seed`; Kuzzle's `retryJoin`, `discoverTimeout`, `joinAttemptInterval`.

use super::attempt::{Applicant, Joined, Wish};
use super::{read_token, wished_roles};
use crate::cli::failure::{Exit, Failure};
use crate::cli::place::Place;
use crate::config;
use crate::serve::admission::assigned;
use crate::settings::{Loaded, Settings};
use quorate_model::member::Vote;
use quorate_trust::token::JoinToken;
use std::path::Path;
use std::time::Duration;
use tracing::{info, warn};

/// Refusals that the next attempt would meet again.
const FINAL: [&str; 11] = [
    "bad-join",
    "bad-name",
    "token-unknown",
    "token-used",
    "token-expired",
    "wrong-role",
    "wrong-name",
    "name-taken",
    "address-taken",
    "node-expelled",
    "version-mismatch",
];

/// Whether this server is to join before it can serve.
pub(crate) fn is_due(data_dir: &Path, settings: &Settings) -> bool {
    !settings.cluster.seed.is_empty() && !data_dir.join(config::FILE).exists()
}

/// Joins the cluster of the seeds; afterwards the server is a node and can serve.
///
/// # Errors
/// Why it is not let in.
pub(crate) fn join(loaded: &Loaded, pause: impl Fn(Duration)) -> Result<(), Failure> {
    let Settings { node, cluster, .. } = &loaded.settings;
    let token = token(&cluster.token_file)?;
    let wish =
        Wish { name: node.name_or_host(), alias: node.alias.clone(), roles: wished_roles(loaded), vote: Vote::Auto };
    let mut applicant = Applicant::new(&token, wish, Place::take(node)?, cluster.timers.discover)?;
    let seeds: Vec<String> = cluster.seed.iter().map(ToString::to_string).collect();
    let mut last = None;
    for attempt in cluster.timers.join_schedule() {
        pause(attempt.after);
        let mut is_final = None;
        for seed in &seeds {
            match applicant.join(seed) {
                Ok(joined) => {
                    applicant.end();
                    return done(seed, &joined, &cluster.token_file);
                }
                Err(failure) => {
                    let (number, of) = (attempt.number, cluster.timers.retry_join);
                    warn!(%seed, "attempt {number} of {of} to join: {}", one_line(&failure));
                    if FINAL.contains(&&*failure.code) {
                        is_final = Some(failure);
                    } else {
                        last = Some(failure);
                    }
                }
            }
        }
        if let Some(failure) = is_final {
            return Err(failure);
        }
    }
    let attempts = cluster.timers.retry_join;
    let failure =
        Failure::new(Exit::TimedOut, "not-joined", format!("{attempts} attempts to join, and none let this server in"))
            .fix(format!("see whether `quorate serve` runs at {}, then start this server again", seeds.join(", ")));
    Err(match last {
        Some(last) => failure.why(one_line(&last)),
        None => failure,
    })
}

fn one_line(failure: &Failure) -> String {
    let why = if failure.why.is_empty() { String::new() } else { format!(": {}", failure.why) };
    format!("{}{why}", failure.error).replace('\n', " ")
}

/// The token in its file: as `add-node` printed it, alone or with the command around it.
fn token(file: &Path) -> Result<JoinToken, Failure> {
    let fix = format!("put what `quorate add-node` printed into {}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(Exit::Usage, "no-token", "a server with a seed needs a token to join")
            .why(format!("{}: {error}", file.display()))
            .fix(fix.clone())
    })?;
    let text = zeroize::Zeroizing::new(text);
    let word = text.split_whitespace().last().unwrap_or_default();
    read_token(word).map_err(|failure| failure.fix(fix))
}

fn done(seed: &str, joined: &Joined, token_file: &Path) -> Result<(), Failure> {
    let Joined { answer, config, .. } = joined;
    info!("joined cluster {} through {seed}, as {}", answer.cluster_name, assigned(&config.node.roles, answer.node));
    if let Err(error) = std::fs::remove_file(token_file) {
        // It is of no use to anybody any more.
        warn!(file = %token_file.display(), %error, "the used token stays in its file");
    }
    Ok(())
}
