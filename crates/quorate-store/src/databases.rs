//! The replicated databases: what the log's entries lead to.
//!
//! Two SQLite files. `system` holds the cluster (nodes, services, replicas, events), changed only
//! by commands; `main` holds the users' tables, changed by their SQL. The log is the truth: each
//! file records, in the transaction that applies a batch, up to where it has applied, and whatever
//! a power cut took is replayed.
//!
//! # Invariants
//! - An outcome depends on the entry and on the file that it writes, and on nothing else: not on
//!   the batch, the clock, the machine, or the other file.
//! - An entry is applied to a file once: at or below the file's applied index it is skipped.
//! - Readers see whole batches.
//! - Nothing but SQLite opens a database file that is in use (a second opener would drop SQLite's
//!   locks when it closes).
//!
//! Layout: `current` → `<index>-<term>/{system.db, main.db}`; see docs/formats/databases.md.

mod checkpoint;
mod digest;
mod execute;
mod fences;
mod place;
mod reader;
mod requests;
mod rows;
mod rules;
mod snapshot;
mod writer;

#[cfg(test)]
mod tests;

pub use checkpoint::{CheckpointError, Checkpointer};
pub use place::Place;
pub use reader::{OpenReaderError, QueryAnswer, QueryError, Reader, Readers};
pub use snapshot::{InstallError, Manifest, ManifestError, SnapshotError, check, install, snapshot};

use bytes::Bytes;
use checkpoint::Gate;
use execute::Work;
use quorate_model::entry::{Database, EntryError, Envelope, Outcome, Payload};
use quorate_model::fence::Fence;
use quorate_model::id::{LogIndex, RequestId, Term};
use quorate_model::state::{Change, ClusterState};
use rusqlite::Error as SqliteError;
use std::collections::BTreeMap;
use std::path::PathBuf;
use writer::Writer;

/// A file that got no entries for this many indexes notes the index all the same, so that little
/// is replayed after a crash.
const LAG_MAX: u64 = 4_096;

/// The single writer of both databases. Lives on the apply thread.
#[derive(Debug)]
pub struct Databases {
    place: Place,
    directory: PathBuf,
    system: Writer,
    main: Writer,
    state: ClusterState,
    /// The last entry that was given to [`apply`](Databases::apply): both files are past it, also
    /// the one that it did not concern.
    last: Option<(LogIndex, Term)>,
    gate: Gate,
}

/// What was found on disk.
#[derive(Debug)]
pub struct Opened {
    pub databases: Databases,
    /// Both files hold at least everything up to here: replay the log from the next index.
    pub applied: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The voters, opaque, as of the last entry in `system`, which alone knows them.
    pub voters: Bytes,
}

/// What an entry asks for.
#[derive(Debug, Clone)]
pub enum Item {
    /// An [`Envelope`]; empty data is a no-op.
    Data(Bytes),
    /// The voters after this entry, opaque.
    Membership { voters: Bytes },
}

impl Item {
    /// Bytes that it took in the log.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Item::Data(data) => data.len(),
            Item::Membership { voters } => voters.len(),
        }
    }
}

/// A committed entry.
#[derive(Debug, Clone)]
pub struct ToApply {
    pub index: LogIndex,
    pub term: Term,
    pub item: Item,
}

/// What came of an entry.
#[derive(Debug, Clone, PartialEq)]
pub struct AppliedEntry {
    pub index: LogIndex,
    pub term: Term,
    /// Absent too when the entry was applied so long ago that its outcome is forgotten.
    pub request_id: Option<RequestId>,
    pub outcome: Outcome,
    pub changes: Vec<Change>,
    /// Digests of `system` and `main` after this entry. Unknown while a file that had already
    /// applied the entry before a restart waits for the other.
    pub digests: Option<[u64; 2]>,
    /// The request id was known: this is the outcome of its first entry, and nothing changed.
    pub repeated: bool,
    /// The entry whose effect the outcome tells of: `index`, or for a known request id its first
    /// entry. Whoever orders acknowledged writes by index must order them by this one.
    pub done_at: LogIndex,
}

/// Why the databases cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenDatabasesError {
    #[error("`{path}` cannot be used")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("{database} in `{path}` cannot be opened")]
    Sqlite { database: &'static str, path: PathBuf, source: SqliteError },
    #[error("`{path}` has format {found}, this binary knows {known}")]
    TooNew { path: PathBuf, found: i64, known: i64 },
    #[error("a record of {table} in `system` cannot be read")]
    Record { table: &'static str, source: serde_json::Error },
}

/// Why a batch could not be applied. Nothing of it is visible, and the node must stop: others may
/// have applied it, so going on would make this one differ.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    #[error("SQLite failed at index {index} in {database}")]
    Sqlite { index: LogIndex, database: &'static str, source: SqliteError },
    #[error("entry {index} cannot be understood")]
    Entry { index: LogIndex, source: EntryError },
    #[error("entry {index} cannot be written as a record")]
    Record { index: LogIndex, source: serde_json::Error },
    #[error("applying entry {index} panicked")]
    Panicked { index: LogIndex },
}

/// Why nothing could be made durable. What is applied stays applied.
#[derive(Debug, thiserror::Error)]
#[error("{database} could not be synced")]
pub struct DurableError {
    database: &'static str,
    source: SqliteError,
}

impl Databases {
    /// Opens the databases in `place`, or makes empty ones for a cluster of `genesis_voters`.
    /// Removes what earlier incarnations and unfinished transfers left there.
    ///
    /// # Errors
    /// [`OpenDatabasesError`].
    pub fn open(place: impl Into<Place>, genesis_voters: &[u8]) -> Result<Opened, OpenDatabasesError> {
        let place = place.into();
        let wrong = |source| OpenDatabasesError::Directory { path: place.root().to_owned(), source };
        let directory = place.current().map_err(wrong)?;
        place.remove_superseded(&directory).map_err(wrong)?;
        let system = Writer::open(&place, &directory, Database::System, genesis_voters)?;
        let main = Writer::open(&place, &directory, Database::Main, genesis_voters)?;
        let state = rows::load(&system, &directory)?;
        let behind = if system.applied().index <= main.applied().index { &system } else { &main };
        let (applied, term, voters) = (behind.applied().index, behind.applied().term, system.voters());
        let databases = Databases { place, directory, system, main, state, last: None, gate: Gate::default() };
        Ok(Opened { databases, applied, term, voters })
    }

    /// The cluster as of the last applied entry.
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// The voters as of the last entry in `system`, opaque.
    #[must_use]
    pub fn voters(&self) -> Bytes {
        self.system.voters()
    }

    /// The last entry in `system`, which may be ahead of `main`.
    #[must_use]
    pub fn voters_as_of(&self) -> LogIndex {
        self.system.applied().index
    }

    /// Applies entries in one transaction a file.
    ///
    /// # Errors
    /// [`ApplyError`]: the node must stop.
    pub fn apply(&mut self, batch: &[ToApply]) -> Result<Vec<AppliedEntry>, ApplyError> {
        let Some(last) = batch.last() else { return Ok(Vec::new()) };
        let gate = self.gate.clone();
        let _pass = gate.pass();
        let mut decoded = Vec::with_capacity(batch.len());
        for entry in batch {
            decoded.push(Decoded::read(entry)?);
        }
        let settled = self.system.applied().index.max(self.main.applied().index);
        let result = self.run(&decoded, last);
        if result.is_err() {
            self.system.abandon();
            self.main.abandon();
            // What is committed counts again. A copy made before each batch would cost as much as the state.
            // When even reading fails the node has nothing to go on with, and it is stopping.
            if let Ok(state) = rows::load(&self.system, &self.directory) {
                self.state = state;
            }
        }
        let (mut system, mut main) = result?;
        self.last = Some((last.index, last.term));
        let mut digests = [self.system.digest_before(), self.main.digest_before()];
        let mut applied = Vec::with_capacity(batch.len());
        for entry in &decoded {
            let outcomes = if entry.database == Database::System { &mut system } else { &mut main };
            let ran = outcomes.remove(&entry.index);
            if let Some(ran) = &ran {
                digests[entry.database as usize] = ran.digest;
            }
            let mut request_id = entry.envelope.as_ref().and_then(Envelope::request_id);
            let (outcome, changes, repeated, done_at) = match ran {
                Some(ran) => (ran.outcome, ran.changes, ran.first.is_some(), ran.first.unwrap_or(entry.index)),
                // This file had it already, from before a restart or from a snapshot. Somebody may
                // wait for it all the same: for an answer that never left, or on another node.
                None => {
                    let kept = self.outcome_kept(entry, request_id)?;
                    request_id = request_id.filter(|_| kept.is_some());
                    let (done_at, outcome) = kept.unwrap_or((entry.index, Outcome::Noop));
                    (outcome, Vec::new(), true, done_at)
                }
            };
            applied.push(AppliedEntry {
                index: entry.index,
                term: entry.term,
                request_id,
                outcome,
                changes,
                digests: (entry.index > settled).then_some(digests),
                repeated,
                done_at,
            });
        }
        Ok(applied)
    }

    /// What is kept of a request that the entry's file applied earlier.
    fn outcome_kept(&self, entry: &Decoded, id: Option<RequestId>) -> Result<Option<(LogIndex, Outcome)>, ApplyError> {
        let Some(id) = id else { return Ok(None) };
        let writer = if entry.database == Database::System { &self.system } else { &self.main };
        let kept = writer.requests.known(&writer.connection, id);
        kept.map_err(|source| ApplyError::Sqlite { index: entry.index, database: entry.database.name(), source })
    }

    fn run(&mut self, batch: &[Decoded], last: &ToApply) -> Result<(Outcomes, Outcomes), ApplyError> {
        let main = self.main.run(batch, last, LAG_MAX, None)?;
        let system = self.system.run(batch, last, LAG_MAX, Some(&mut self.state))?;
        // `main` first: whatever `system` says of an index, `main` has got there too.
        self.main.commit(last)?;
        self.system.commit(last)?;
        Ok((system, main))
    }

    /// Readers of the present files.
    #[must_use]
    pub fn readers(&self) -> Readers {
        Readers::new(self.place.clone(), self.directory.clone())
    }

    /// Moves pages from the write-ahead logs into the files, on another thread.
    #[must_use]
    pub fn checkpointer(&self) -> Checkpointer {
        Checkpointer::new(self.place.clone(), self.directory.clone(), self.gate.clone())
    }

    /// Makes everything applied so far durable, with one sync a file, and returns the index up to
    /// which the log is no longer needed.
    ///
    /// # Errors
    /// [`DurableError`]: the node must stop, as after any failed sync.
    pub fn make_durable(&mut self) -> Result<LogIndex, DurableError> {
        let gate = self.gate.clone();
        let _pass = gate.pass();
        for writer in [&mut self.main, &mut self.system] {
            let database = writer.database().name();
            writer.make_durable(self.last).map_err(|source| DurableError { database, source })?;
        }
        Ok(self.system.applied().index.min(self.main.applied().index))
    }

    /// Bytes in the write-ahead logs.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.system.wal_bytes() + self.main.wal_bytes()
    }
}

/// Outcomes of one file's entries by index.
type Outcomes = BTreeMap<LogIndex, execute::Ran>;

/// An entry, taken apart once.
#[derive(Debug)]
struct Decoded {
    index: LogIndex,
    term: Term,
    database: Database,
    envelope: Option<Envelope>,
    /// Of SQL.
    fence: Option<Fence>,
    /// Epochs that the entry gives to copies of services: `system` has them as leases, `main` as fences.
    grants: Vec<Fence>,
    work: Work,
}

impl Decoded {
    fn read(entry: &ToApply) -> Result<Decoded, ApplyError> {
        let index = entry.index;
        let wrong = |source| ApplyError::Entry { index, source };
        let (mut fence, mut grants) = (None, Vec::new());
        let (database, envelope, work) = match &entry.item {
            Item::Membership { voters } => (Database::System, None, Work::Membership(voters.clone())),
            Item::Data(data) if data.is_empty() => (Database::System, None, Work::Nothing),
            Item::Data(data) => {
                let envelope = Envelope::read(data.clone()).map_err(wrong)?;
                let work = match envelope.payload().map_err(wrong)? {
                    Payload::Noop => Work::Nothing,
                    Payload::Sql(batch) => {
                        fence = envelope.fence().map_err(wrong)?;
                        Work::Sql(batch)
                    }
                    Payload::Command(command) => {
                        grants = fences::granted(&command);
                        Work::Command(Box::new((command, envelope.actor().map_err(wrong)?)))
                    }
                };
                (envelope.file(), Some(envelope), work)
            }
        };
        Ok(Decoded { index, term: entry.term, database, envelope, fence, grants, work })
    }

    /// Whether the entry does something to this file.
    fn concerns(&self, database: Database) -> bool {
        self.database == database || database == Database::Main && !self.grants.is_empty()
    }
}

/// How far a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    pub index: LogIndex,
    pub term: Term,
    pub digest: u64,
}
