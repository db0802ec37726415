//! What a node keeps, as one: the log above, the databases below, and the rules between them.
//!
//! The log may forget what the databases hold durably; a database from a leader is put in force
//! before the log begins anew after it; what a crash leaves between two such steps is sorted out by
//! [`open`]. Whoever drives this (the server's threads, the simulator's loop) decides when, never in
//! which order.
//!
//! # Invariants
//! - Entries up to the databases' position, and no others, may be missing from the log.
//! - Nothing is said to be durable before the sync that makes it so has returned.
//! - After any error the process stops: what is on the disk is found out by the next start.

use crate::databases::{
    self, AppliedEntry, ApplyError, Checkpointer, Databases, DurableError, InstallError, Manifest, OpenDatabasesError,
    Place, Readers, ToApply,
};
use crate::disk::Disk;
use crate::log::{
    Append, HardState, Log, LogEntry, LogIdentity, LogOptions, OpenLogError, ReadLogError, Recovered, WriteLogError,
};
use bytes::Bytes;
use quorate_model::id::{LogIndex, Term};
use quorate_model::planted::{Bug, planted};
use quorate_model::state::ClusterState;
use std::path::Path;
use std::time::Duration;

/// How much of the log is read at once when a node starts.
const REPLAY_BYTES: usize = 16 << 20;
/// How often the databases are made durable so that the log may be shortened: after this time, or
/// after so many bytes of entries, or half of what the log shall keep if that is less.
pub const DURABLE_EVERY: Duration = Duration::from_secs(30);
const DURABLE_BYTES: u64 = 256 << 20;
/// Write-ahead log of SQLite that asks for a checkpoint.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// Where a node keeps what, and whose it is.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    pub identity: LogIdentity,
    pub log: LogOptions,
    /// Bytes of log that are kept for peers that were away, even when the databases need none.
    pub retain: u64,
    pub place: Place,
    /// The voters of a cluster that begins, opaque.
    pub voters: Vec<u8>,
}

/// What was found on disk.
#[derive(Debug)]
pub struct Stored<D: Disk> {
    pub log: LogStorage<D>,
    pub databases: DatabaseStorage,
    pub hard_state: HardState,
    /// Position just before the first retained entry.
    pub before: (LogIndex, Term),
    /// First index of each run of equal terms among the retained entries.
    pub terms: Vec<(LogIndex, Term)>,
    /// The databases hold everything up to here.
    pub applied: LogIndex,
    /// The entries above.
    pub unapplied: Vec<LogEntry>,
}

/// Why a node cannot start on what its disk holds. Nothing durable was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStorageError {
    #[error("opening the log")]
    Log(#[from] OpenLogError),
    #[error("opening the databases")]
    Databases(#[from] OpenDatabasesError),
    /// The databases know other voters than this node's configuration.
    #[error("the databases belong to another cluster than {}, whose voters they do not know", .identity.cluster)]
    OtherCluster { identity: LogIdentity },
    #[error(
        "the log is empty although the database has applied {applied} entries: the log is lost, and with it the votes \
         that this node gave. Restore the directory, or remove the whole data directory and let the node join anew"
    )]
    LogLost { applied: LogIndex },
    #[error("the log begins after {before} and the database ends at {applied}: entries between them are lost")]
    Gap { before: LogIndex, applied: LogIndex },
    #[error("beginning the log anew after a snapshot")]
    Reset(#[source] WriteLogError),
    #[error("reading the log")]
    Read(#[from] ReadLogError),
}

/// Opens everything. `belongs` says whether the voters in the databases are of this node's cluster.
///
/// # Errors
/// [`OpenStorageError`].
pub fn open<D: Disk>(
    disk: D,
    options: &StorageOptions,
    belongs: impl FnOnce(&[u8]) -> bool,
) -> Result<Stored<D>, OpenStorageError> {
    let source = |source| OpenLogError::Io { doing: "list", file: disk.directory().display().to_string(), source };
    let first_start = disk.list().map_err(source)?.is_empty();
    let (mut log, found) = Log::open(disk, options.identity, options.log)?;
    if let Err(error) = options.place.remove_transfers() {
        tracing::warn!(%error, "cannot remove what an earlier process left in {}", options.place.root().display());
    }
    let opened = Databases::open(&options.place, &options.voters)?;
    if !belongs(&opened.voters) {
        return Err(OpenStorageError::OtherCluster { identity: options.identity });
    }
    let applied = opened.applied;
    if first_start && applied > LogIndex(0) {
        return Err(OpenStorageError::LogLost { applied });
    }
    let found = if continues(&found, applied, opened.term) {
        found
    } else {
        // A snapshot was installed and the node ended before the log began anew after it.
        log.reset(applied, opened.term).and_then(|()| log.sync()).map_err(OpenStorageError::Reset)?;
        Recovered { before: (applied, opened.term), last: applied, terms: Vec::new(), ..found }
    };
    if found.before.0 > applied {
        return Err(OpenStorageError::Gap { before: found.before.0, applied });
    }
    let mut unapplied = Vec::new();
    let mut next = applied.next();
    let last = if planted(Bug::CutToCommit) { LogIndex(found.hard_state.commit) } else { found.last };
    while next <= last {
        let entries = log.read(next, last.next(), REPLAY_BYTES)?;
        next = entries.last().map_or(last.next(), |entry| entry.index.next());
        unapplied.extend(entries);
    }
    Ok(Stored {
        log: LogStorage { log, retain: options.retain },
        databases: DatabaseStorage {
            databases: opened.databases,
            place: options.place.clone(),
            voters: options.voters.clone(),
            durable_bytes: DURABLE_BYTES.min(options.retain / 2),
            undurable_bytes: 0,
        },
        hard_state: found.hard_state,
        before: found.before,
        terms: found.terms,
        applied,
        unapplied,
    })
}

/// Whether the log leads from the databases' position on. It does not when it ends before, or when
/// it holds another leader's entry there, which only a snapshot can have overruled.
fn continues(found: &Recovered, applied: LogIndex, term: Term) -> bool {
    let (before, before_term) = found.before;
    let runs = [(before, before_term)].into_iter().chain(found.terms.iter().copied());
    let known = runs.take_while(|(first, _)| *first <= applied).last();
    // Of what was purged nothing is known, and it was committed.
    found.last >= applied && (applied < before || known.is_none_or(|(_, known)| known == term))
}

/// The log's side. Its errors end the process.
#[derive(Debug)]
pub struct LogStorage<D: Disk> {
    log: Log<D>,
    retain: u64,
}

impl<D: Disk> LogStorage<D> {
    /// Writes; durable after the next [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`WriteLogError`].
    pub fn write(&mut self, append: &Append) -> Result<(), WriteLogError> {
        self.log.write(append)
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// [`WriteLogError`].
    pub fn sync(&mut self) -> Result<(), WriteLogError> {
        self.log.sync()
    }

    /// Entries for a peer that is behind; none when they are gone meanwhile. The core has been told
    /// of that, and sends a snapshot when it finds nothing here.
    ///
    /// # Errors
    /// [`ReadLogError`], but for purged entries.
    pub fn read(
        &mut self,
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadLogError> {
        match self.log.read(from, to_exclusive, bytes_max) {
            Err(ReadLogError::Purged { .. }) => Ok(Vec::new()),
            read => read,
        }
    }

    /// Forgets what neither the databases, durable up to `durable`, nor peers need. Returns the
    /// first entry that is still there, if any were forgotten.
    ///
    /// # Errors
    /// [`WriteLogError`].
    pub fn shorten(&mut self, durable: LogIndex) -> Result<Option<LogIndex>, WriteLogError> {
        let before = self.log.first();
        let needed = if planted(Bug::ShortenedTooFar) { self.log.last() } else { durable.next() };
        self.log.purge(needed.min(self.log.newest(self.retain)))?;
        Ok(Some(self.log.first()).filter(|first| *first > before))
    }

    /// Begins anew after a snapshot that is in force, durably.
    ///
    /// # Errors
    /// [`WriteLogError`].
    pub fn begin_after(&mut self, index: LogIndex, term: Term, hard_state: HardState) -> Result<(), WriteLogError> {
        self.log.reset(index, term)?;
        let hard_state = match planted(Bug::VoteLostAtSnapshot) {
            true => HardState { commit: index.0, ..HardState::default() },
            false => hard_state,
        };
        self.log.write(&Append { hard_state: Some(hard_state), entries: Vec::new() })?;
        self.log.sync()
    }

    /// Whether a spare segment should be made ready by [`prepare_spare`](crate::log::prepare_spare).
    #[must_use]
    pub fn wants_spare(&self) -> bool {
        self.log.wants_spare()
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.log.bytes()
    }
}

/// The databases' side. Its errors end the process.
#[derive(Debug)]
pub struct DatabaseStorage {
    databases: Databases,
    place: Place,
    voters: Vec<u8>,
    durable_bytes: u64,
    /// Bytes of entries applied since the databases were last made durable.
    undurable_bytes: u64,
}

impl DatabaseStorage {
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        self.databases.state()
    }

    /// The voters as of the last entry in `system`, opaque.
    #[must_use]
    pub fn voters(&self) -> Bytes {
        self.databases.voters()
    }

    /// The last entry in `system`, which may be ahead of `main`.
    #[must_use]
    pub fn voters_as_of(&self) -> LogIndex {
        self.databases.voters_as_of()
    }

    #[must_use]
    pub fn readers(&self) -> Readers {
        self.databases.readers()
    }

    #[must_use]
    pub fn checkpointer(&self) -> Checkpointer {
        self.databases.checkpointer()
    }

    /// Applies entries in one transaction a file.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub fn apply(&mut self, batch: &[ToApply]) -> Result<Vec<AppliedEntry>, ApplyError> {
        let bytes: usize = batch.iter().map(|entry| entry.item.bytes()).sum();
        self.undurable_bytes += bytes as u64;
        self.databases.apply(batch)
    }

    /// Whether the databases should be made durable now, `since` the last time.
    #[must_use]
    pub fn durable_due(&self, since: Duration) -> bool {
        since >= DURABLE_EVERY || self.undurable_bytes >= self.durable_bytes
    }

    /// Makes everything applied durable and returns up to where; then the log may be
    /// [`shorten`](LogStorage::shorten)ed.
    ///
    /// # Errors
    /// [`DurableError`].
    pub fn make_durable(&mut self) -> Result<LogIndex, DurableError> {
        self.undurable_bytes = 0;
        self.databases.make_durable()
    }

    /// Whether a checkpoint is worth its while.
    #[must_use]
    pub fn checkpoint_due(&self) -> bool {
        self.databases.wal_bytes() > CHECKPOINT_BYTES
    }

    /// Puts received files in force. Then the log must [begin anew](LogStorage::begin_after) after
    /// them, and readers and checkpointers are to be made again.
    ///
    /// # Errors
    /// [`InstallStorageError`].
    pub fn install(&mut self, incoming: &Path, manifest: &Manifest) -> Result<(), InstallStorageError> {
        databases::install(&self.place, incoming, manifest)?;
        self.databases = Databases::open(&self.place, &self.voters)?.databases;
        self.undurable_bytes = 0;
        Ok(())
    }
}

/// Why a received database is not in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallStorageError {
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("opening the installed databases")]
    Open(#[from] OpenDatabasesError),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_first_start_may_lose_power_at_any_moment() {
        use crate::databases::Item;
        use crate::disk::memory::MemoryDisk;
        use crate::log::EntryKind;
        use crate::volume::MemoryVolume;
        use quorate_model::id::{ClusterId, NodeId};
        use quorate_vfs::memory::MemoryFs;

        let entry = |number: u64| LogEntry {
            index: LogIndex(number),
            term: Term(1),
            kind: EntryKind::Normal,
            data: Bytes::new(),
        };
        let start = |fs: &MemoryFs| -> Result<Stored<MemoryDisk>, OpenStorageError> {
            let options = StorageOptions {
                identity: LogIdentity { cluster: ClusterId::from_u128(1), node: NodeId::from_u128(1) },
                log: LogOptions { segment_bytes: 8_192, ..LogOptions::new(1) },
                retain: 8_192,
                place: Place::on(std::sync::Arc::new(MemoryVolume::new(fs)), Path::new("/db")),
                voters: b"me".to_vec(),
            };
            let disk = MemoryDisk::at(fs, Path::new("/log")).map_err(|source| {
                OpenStorageError::Log(OpenLogError::Io { doing: "use", file: "/log".into(), source })
            })?;
            open(disk, &options, |_| true)
        };
        // Some entries, made durable so that the log forgets most of them; or as far as power lasts.
        let work = |stored: &mut Stored<MemoryDisk>| -> Result<(), String> {
            let (from, to) = (stored.applied.0 + 1, stored.applied.0 + 400);
            for number in from..=to {
                let entries = if number > stored.unapplied.last().map_or(stored.applied.0, |last| last.index.0) {
                    vec![entry(number)]
                } else {
                    Vec::new()
                };
                let hard_state = Some(HardState { term: 1, vote: 1, commit: number });
                stored.log.write(&Append { hard_state, entries }).map_err(|error| error.to_string())?;
            }
            stored.log.sync().map_err(|error| error.to_string())?;
            let batch: Vec<ToApply> = (from..=to)
                .map(|index| ToApply { index: LogIndex(index), term: Term(1), item: Item::Data(Bytes::new()) })
                .collect();
            stored.databases.apply(&batch).map_err(|error| error.to_string())?;
            let durable = stored.databases.make_durable().map_err(|error| error.to_string())?;
            stored.log.shorten(durable).map_err(|error| error.to_string())?;
            Ok(())
        };
        let mut ended_early = 0;
        for moment in 0..120 {
            let fs = MemoryFs::new();
            fs.crash_after(moment * 6, moment);
            let done = start(&fs).map_err(|error| error.to_string()).and_then(|mut stored| work(&mut stored));
            ended_early += u64::from(done.is_err());
            if fs.is_off() {
                fs.start();
            } else {
                fs.crash(moment);
            }
            let again = start(&fs);
            assert!(again.is_ok(), "after a power cut at change {}: {:?}", moment * 6, again.err());
        }
        assert!(ended_early > 20, "{ended_early} power cuts came before the end");
    }

    #[test]
    fn a_log_that_a_snapshot_overruled_does_not_continue_the_databases() {
        let at = |index, term| (LogIndex(index), Term(term));
        let found = Recovered {
            hard_state: HardState::default(),
            before: at(4, 1),
            last: LogIndex(9),
            terms: vec![at(5, 1), at(8, 2)],
        };
        let continues = |index, term| continues(&found, LogIndex(index), Term(term));
        assert!(continues(4, 1) && continues(7, 1) && continues(9, 2));
        assert!(continues(3, 1), "what is missing between them is found later");
        assert!(!continues(10, 2), "the log ends before");
        assert!(!continues(9, 3) && !continues(7, 2) && !continues(4, 3), "another leader's entries");
    }
}
