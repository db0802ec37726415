//! SIGHUP: the settings are read again, and those that are live are in force at once.
//!
//! A file with a mistake changes nothing; the log says what is wrong with it.
//!
//! What the file says and is not in force is looked at every few seconds and told the others, so that
//! `quorate update-hamode` knows on any node which servers have to begin anew.

use super::inbox::Inbox;
use crate::daemon::LogControl;
use crate::settings::keys::Applies;
use crate::settings::mistake::Mistakes;
use crate::settings::reload::{Change, changes, in_force};
use crate::settings::{Settings, Source};
use quorate_model::observed::Pending;
use quorate_node::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// How often the file is looked at: a file is read in less than a millisecond, and nobody waits for it for long.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Tells the node, and through it the others, what waits in the file for the server to begin anew.
pub(super) async fn watch(source: Source, settings: watch::Receiver<Arc<Settings>>, inbox: Inbox) {
    let mut told = Pending::default();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let pending = pending(&source, &settings.borrow().clone());
        if pending != told {
            inbox.send(Event::Pending(pending.clone())).await;
            told = pending;
        }
    }
}

/// Settings of the file that a server that runs with `current` would get by beginning anew, or what keeps it from
/// doing that. What only counts when a node is made or joins is not among them, and neither is where its data is:
/// that does not move by beginning anew, and is mostly said on the command line.
fn pending(source: &Source, current: &Settings) -> Pending {
    match source.load() {
        Err(mistakes) => Pending { changes: Vec::new(), mistake: mistakes.to_string() },
        Ok(wanted) => {
            let waiting = changes(current, &wanted.settings).into_iter();
            let counts = |change: &Change| change.applies == Applies::Restart && change.path != "node.data_dir";
            let waiting = waiting.filter(counts).map(|change| change.to_string());
            Pending { changes: waiting.collect(), mistake: String::new() }
        }
    }
}

/// Runs as long as the server does.
pub(super) async fn run(mut hangup: Signal, source: Source, settings: watch::Sender<Arc<Settings>>, log: LogControl) {
    while hangup.recv().await.is_some() {
        let before = settings.borrow().clone();
        let reloaded = match Reloaded::of(&source, &before) {
            Ok(reloaded) => reloaded,
            Err(mistakes) => {
                error!(file = %source.path().display(), "the settings stay as they are: {mistakes}");
                continue;
            }
        };
        let level = &reloaded.settings.log.level;
        if *level != before.log.level
            && let Err(problem) = log.set_level(level)
        {
            error!(%problem, "the level of the log stays as it is");
        }
        for change in &reloaded.live {
            info!("in force: {change}");
        }
        for change in &reloaded.waiting {
            warn!("not in force before a restart: {change}");
        }
        if reloaded.live.is_empty() && reloaded.waiting.is_empty() {
            info!(file = %source.path().display(), "the settings were read again and are the same");
        }
        settings.send_replace(Arc::new(reloaded.settings));
    }
}

/// What reading the settings again leads to.
struct Reloaded {
    settings: Settings,
    live: Vec<Change>,
    /// What the file says and is not in force.
    waiting: Vec<Change>,
}

impl Reloaded {
    fn of(source: &Source, before: &Settings) -> Result<Reloaded, Mistakes> {
        let wanted = source.load()?.settings;
        let settings = in_force(before, &wanted);
        Ok(Reloaded { live: changes(before, &settings), waiting: changes(&settings, &wanted), settings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn e5_what_waits_for_a_restart_is_told_and_a_file_with_a_mistake_is_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("quorate.toml");
        let source = Source { file: Some(path.clone()), environment: BTreeMap::new() };
        let found = |text: &str| {
            std::fs::write(&path, text).unwrap();
            pending(&source, &Settings::default())
        };
        assert!(found("").is_empty());
        let waiting = found("[log]\nkeep_mib = 4\nlevel = 'debug'\n[node]\nalias = 'one'\ndata_dir = '/data'\n");
        assert_eq!(waiting.changes.len(), 1, "one is live, one counts when a node joins: {waiting:?}");
        assert!(waiting.changes[0].starts_with("log.keep_mib ") && waiting.mistake.is_empty(), "{waiting:?}");
        let wrong = found("[log]\nkeep = 4\n");
        assert!(wrong.changes.is_empty() && wrong.mistake.contains("unknown key `keep`"), "{wrong:?}");
    }
}
