//! SIGHUP: the settings are read again, and those that are live are in force at once.
//!
//! A file with a mistake changes nothing; the log says what is wrong with it.

use crate::daemon::LogControl;
use crate::settings::mistake::Mistakes;
use crate::settings::reload::{Change, changes, in_force};
use crate::settings::{Settings, Source};
use std::sync::Arc;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tracing::{error, info, warn};

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
