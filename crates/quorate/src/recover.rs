//! Going on with one survivor, on the survivor's disk while its server does not run.
//!
//! What is to be written is decided by [`quorate_node::recovery`]; here it is found out what is on the disk,
//! whether the others are really gone, and the result is written durably. First the new incarnation into
//! `node.toml`, then the entries into the log, in one append: between the two the node only refuses to speak
//! to the others, and the same command can be given once more.

use crate::config::{self, NodeConfig};
use crate::serve;
use crate::trust;
use anyhow::{Context as _, bail};
use quorate_model::entry::Envelope;
use quorate_model::id::{LogIndex, NodeId, RequestId};
use quorate_model::state::ClusterState;
use quorate_model::time::WallTime;
use quorate_node::consensus;
use quorate_node::recovery::{self, CannotRecover, Circumstances, Recovery};
use quorate_store::disk::real::RealDisk;
use quorate_store::log::{Append, EntryKind, HardState, LogEntry};
use quorate_store::storage::{LogStorage, Stored};
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Longest wait for a manager that should be gone. One that is there answers in milliseconds.
const KNOCK: Duration = Duration::from_millis(700);
/// How far back the time of the last entry is looked for: steps of a configuration have none.
const LOOK_BACK: u64 = 64;

/// A survivor whose server does not run, and what a recovery would make of it.
pub(crate) struct Survivor {
    data_dir: PathBuf,
    pub(crate) config: NodeConfig,
    stored: Stored<RealDisk>,
    pub(crate) recovery: Recovery,
    /// Nobody starts the server meanwhile.
    _lock: File,
}

/// Why there is no survivor to be had. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSurvivor {
    #[error("the server of {} runs", .dir.display())]
    Serves { dir: PathBuf },
    #[error(transparent)]
    Cannot(#[from] CannotRecover),
    /// The directory, the configuration or the disk.
    #[error("{0:#}")]
    Unusable(anyhow::Error),
}

impl Survivor {
    /// Looks at the data directory of a node that does not run.
    ///
    /// # Errors
    /// [`NoSurvivor`].
    pub(crate) fn find(data_dir: &Path) -> Result<Survivor, NoSurvivor> {
        let config = serve::read_config(data_dir).map_err(NoSurvivor::Unusable)?;
        let held = |_| NoSurvivor::Serves { dir: data_dir.to_owned() };
        let lock = serve::lock(data_dir).map_err(held)?;
        let (stored, _) = serve::open(data_dir, &config).map_err(NoSurvivor::Unusable)?;
        let survivor = || -> anyhow::Result<_> {
            let mut stored = stored;
            let log = serve::recovered_log(&stored)?;
            let state = stored.databases.state().clone();
            let last = stored.unapplied.last().map_or(stored.applied, |entry| entry.index);
            let random = serve::random_u128()?;
            let given = Circumstances {
                survivor: config.node.id,
                incarnation: config.cluster.incarnation.max(state.incarnation()) + 1,
                now: wall_now(),
                applied: stored.applied,
                last_made: last_made(&mut stored.log, stored.before.0, last)?,
                seed: random as u64,
                request: RequestId::from_u128(random),
            };
            let planned = recovery::plan(&log, &state, given);
            Ok((stored, planned))
        };
        let (stored, planned) = survivor().map_err(NoSurvivor::Unusable)?;
        Ok(Survivor { data_dir: data_dir.to_owned(), config, stored, recovery: planned?, _lock: lock })
    }

    /// The cluster as the survivor's databases have it.
    pub(crate) fn state(&self) -> &ClusterState {
        self.stored.databases.state()
    }

    pub(crate) fn name(&self, node: NodeId) -> String {
        let known = self.state().nodes.get(&node).map(|record| record.identity.name.clone());
        let told = || {
            let mut told = self.config.voters.iter().chain(&self.config.peers);
            told.find(|voter| voter.id == node).map(|voter| voter.name.clone())
        };
        known.or_else(told).unwrap_or_else(|| node.to_string())
    }

    /// Managers that answer at their node link, although they are to be given up.
    pub(crate) fn still_there(&self) -> Vec<(String, SocketAddr)> {
        let told = self.config.voters.iter().chain(&self.config.peers);
        let told = told.filter(|voter| self.recovery.lost.contains(&voter.id)).map(|voter| (voter.id, voter.link));
        let recorded = self.state().nodes.values().filter(|record| self.recovery.lost.contains(&record.identity.id));
        let recorded = recorded.filter_map(|record| Some((record.identity.id, record.identity.link.parse().ok()?)));
        let mut places: Vec<(NodeId, SocketAddr)> = told.chain(recorded).collect();
        places.sort_unstable();
        places.dedup();
        // All at once: a server without power does not even refuse.
        thread::scope(|scope| {
            let knocks: Vec<_> = places
                .iter()
                .map(|(node, link)| {
                    scope.spawn(|| TcpStream::connect_timeout(link, KNOCK).is_ok().then_some((*node, *link)))
                })
                .collect();
            let answers = knocks.into_iter().filter_map(|knock| knock.join().ok().flatten());
            answers.map(|(node, link)| (self.name(node), link)).collect()
        })
    }

    /// Makes it the only manager. When this returns it is durable, and the server may be started.
    ///
    /// # Errors
    /// The disk. The same may be tried again.
    pub(crate) fn go_on(mut self) -> anyhow::Result<Recovery> {
        self.config.cluster.incarnation = self.recovery.incarnation;
        let text = toml::to_string(&self.config).context("writing down the configuration")?;
        trust::replace(&self.data_dir, config::FILE, 0o640, &text)
            .and_then(|()| File::open(&self.data_dir)?.sync_all())
            .with_context(|| format!("writing {}", self.data_dir.join(config::FILE).display()))?;
        let (term, vote, commit) = self.recovery.hard_state;
        let entries = self.recovery.entries.iter().cloned().map(entry_of_log).collect();
        let append = Append { hard_state: Some(HardState { term, vote, commit }), entries };
        let log = &mut self.stored.log;
        log.write(&append).and_then(|()| log.sync()).context("appending to the log")?;
        Ok(self.recovery)
    }
}

fn entry_of_log(entry: consensus::LogEntry) -> LogEntry {
    let kind = match entry.kind {
        consensus::EntryKind::Normal => EntryKind::Normal,
        consensus::EntryKind::Membership => EntryKind::Membership,
    };
    LogEntry { index: entry.index, term: entry.term, kind, data: entry.data }
}

/// When the newest entry that tells it was made.
fn last_made(log: &mut LogStorage<RealDisk>, before: LogIndex, last: LogIndex) -> anyhow::Result<Option<WallTime>> {
    for number in (before.0 + 1..=last.0).rev().take(usize::try_from(LOOK_BACK).unwrap_or(usize::MAX)) {
        let entries = log.read(LogIndex(number), LogIndex(number + 1), 1).context("reading the log")?;
        let Some(entry) = entries.into_iter().next() else { bail!("entry {number} is not in the log") };
        let told = entry.kind == EntryKind::Normal && !entry.data.is_empty();
        if told && let Ok(envelope) = Envelope::read(entry.data) {
            return Ok(Some(envelope.time()));
        }
    }
    Ok(None)
}

fn wall_now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
