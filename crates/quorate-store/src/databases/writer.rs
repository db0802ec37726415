//! One file's writer: its connection, its transaction, how far it is.

use super::digest::Recorder;
use super::execute::{self, Stop};
use super::fences;
use super::place::Place;
use super::requests::Requests;
use super::rules::Surroundings;
use super::{Applied, ApplyError, Decoded, OpenDatabasesError, Outcomes, ToApply};
use bytes::Bytes;
use quorate_model::entry::Database;
use quorate_model::id::{LogIndex, Term};
use quorate_model::planted::{Bug, planted};
use quorate_model::sql::SqlOutcome;
use quorate_model::state::ClusterState;
use quorate_vfs::{ClockVfs, RowHook};
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, Error, OpenFlags, params};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// The format of our tables. A file with a higher one is of a newer Quorate.
pub(super) const FORMAT: i64 = 1;

/// A checkpoint on another connection may hold the file for a moment.
const BUSY: Duration = Duration::from_secs(10);

/// Prepared statements that are kept.
const STATEMENTS: usize = 512;

/// The bytes of a page; SQLite's default, set explicitly because digests of files depend on it.
const PAGE: i64 = 4_096;

/// The writer of one file. Fields are dropped in this order: the hook before its connection, the
/// connection before its VFS.
#[derive(Debug)]
pub(super) struct Writer {
    _hook: RowHook,
    pub(super) connection: Connection,
    clock: ClockVfs,
    pub(super) surroundings: Surroundings,
    pub(super) recorder: Recorder,
    pub(super) requests: Requests,
    database: Database,
    applied: Applied,
    digest_before: u64,
    /// After the last entry of the transaction that is open.
    progress: Progress,
    /// As of the last commit: what a rollback returns to.
    committed: Progress,
    open: bool,
    /// Pages in the write-ahead log after the last commit, told by SQLite.
    wal_pages: Arc<AtomicI32>,
}

/// What entries leave behind besides rows.
#[derive(Debug, Clone)]
struct Progress {
    digest: u64,
    /// The time of the file's newest entry. Time never runs backwards within a file.
    time_us: u64,
    planned_on: LogIndex,
    voters: Bytes,
}

impl Writer {
    pub(super) fn open(
        place: &Place,
        directory: &Path,
        database: Database,
        voters: &[u8],
    ) -> Result<Writer, OpenDatabasesError> {
        let path = file(directory, database);
        let wrong = |source| OpenDatabasesError::Sqlite { database: database.name(), path: path.clone(), source };
        let clock = ClockVfs::over(place.volume().vfs());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = match planted(Bug::LocalTime) {
            true => place.connect(&path, flags),
            false => Connection::open_with_flags_and_vfs(&path, flags, clock.name()),
        }
        .map_err(wrong)?;
        configure(&connection).map_err(wrong)?;
        schema(&connection, database, voters).map_err(wrong)?;
        let meta = Meta::load(&connection).map_err(wrong)?;
        if meta.format > FORMAT {
            return Err(OpenDatabasesError::TooNew { path, found: meta.format, known: FORMAT });
        }
        let requests = Requests::load(&connection).map_err(wrong)?;
        let surroundings = Surroundings::install(&mut connection).map_err(wrong)?;
        let recorder = Recorder::default();
        recorder.read_schema(&connection).map_err(wrong)?;
        let rows = recorder.clone();
        // SAFETY: fields are dropped in their order, so the hook goes before the connection.
        #[allow(unsafe_code, reason = "the order of dropping is this struct's invariant")]
        let hook = unsafe { RowHook::install(&connection, move |change| rows.row(change)) };
        let wal_pages = Arc::new(AtomicI32::new(0));
        let pages_now = wal_pages.clone();
        connection
            .wal_hook(Some(move |_: &mut Wal, pages| {
                pages_now.store(pages, Ordering::Relaxed);
                Ok(())
            }))
            .map_err(wrong)?;
        let progress = Progress {
            digest: meta.applied.digest,
            time_us: meta.time_us,
            planned_on: meta.planned_on,
            voters: meta.voters,
        };
        Ok(Writer {
            _hook: hook,
            connection,
            clock,
            surroundings,
            recorder,
            requests,
            database,
            applied: meta.applied,
            digest_before: meta.applied.digest,
            committed: progress.clone(),
            progress,
            open: false,
            wal_pages,
        })
    }

    pub(super) fn database(&self) -> Database {
        self.database
    }

    pub(super) fn applied(&self) -> Applied {
        self.applied
    }

    pub(super) fn voters(&self) -> Bytes {
        self.progress.voters.clone()
    }

    pub(super) fn planned_on(&self) -> LogIndex {
        self.progress.planned_on
    }

    /// The digest before the batch that was run last.
    pub(super) fn digest_before(&self) -> u64 {
        self.digest_before
    }

    pub(super) fn wal_bytes(&self) -> u64 {
        u64::try_from(i64::from(self.wal_pages.load(Ordering::Relaxed)) * PAGE).unwrap_or(0)
    }

    /// Runs this file's entries of the batch in a transaction that stays open.
    pub(super) fn run(
        &mut self,
        batch: &[Decoded],
        last: &ToApply,
        lag_max: u64,
        mut state: Option<&mut ClusterState>,
    ) -> Result<Outcomes, ApplyError> {
        self.digest_before = self.applied.digest;
        let from = if planted(Bug::AppliedTwice) { LogIndex(0) } else { self.applied.index };
        let todo = || batch.iter().filter(|entry| entry.concerns(self.database) && entry.index > from);
        if todo().next().is_none() {
            if last.index.0.saturating_sub(from.0) >= lag_max {
                self.begin(last.index)?;
            }
            return Ok(Outcomes::new());
        }
        let todo: Vec<&Decoded> = todo().collect();
        // Entries whose SQL ended the whole transaction, with what they are answered. The others
        // are run again without them, so that it is as if they had been alone.
        let mut refused: BTreeMap<LogIndex, SqlOutcome> = BTreeMap::new();
        loop {
            self.begin(todo[0].index)?;
            match self.attempt(&todo, &refused, state.as_deref_mut())? {
                Attempt::Done(outcomes) => return Ok(outcomes),
                Attempt::Gone(index, outcome) => {
                    if planted(Bug::BatchNeighbourLost) {
                        let before = todo.iter().take_while(|entry| entry.index < index);
                        refused.extend(before.map(|entry| (entry.index, outcome.clone())));
                    }
                    refused.insert(index, outcome);
                    self.open = false;
                    self.rolled_back();
                    let database = self.database.name();
                    self.recorder.read_schema(&self.connection).map_err(|source| ApplyError::Sqlite {
                        index,
                        database,
                        source,
                    })?;
                }
            }
        }
    }

    fn attempt(
        &mut self,
        todo: &[&Decoded],
        refused: &BTreeMap<LogIndex, SqlOutcome>,
        mut state: Option<&mut ClusterState>,
    ) -> Result<Attempt, ApplyError> {
        let mut outcomes = Outcomes::new();
        for entry in todo {
            let index = entry.index;
            let state = state.as_deref_mut();
            let ran = catch_unwind(AssertUnwindSafe(|| execute::entry(self, entry, refused.get(&index), state)));
            match ran {
                Ok(Ok(ran)) => {
                    self.progress.digest = ran.digest;
                    outcomes.insert(index, ran);
                }
                Ok(Err(Stop::Gone(outcome))) => return Ok(Attempt::Gone(index, outcome)),
                Ok(Err(Stop::Sqlite(source))) => {
                    return Err(ApplyError::Sqlite { index, database: self.database.name(), source });
                }
                Ok(Err(Stop::Record(source))) => return Err(ApplyError::Record { index, source }),
                Err(_) => return Err(ApplyError::Panicked { index }),
            }
        }
        Ok(Attempt::Done(outcomes))
    }

    fn begin(&mut self, index: LogIndex) -> Result<(), ApplyError> {
        self.own("/*quorate*/ BEGIN IMMEDIATE", index)?;
        self.open = true;
        Ok(())
    }

    /// Commits what [`run`](Self::run) left open: the file is now at `last`.
    pub(super) fn commit(&mut self, last: &ToApply) -> Result<(), ApplyError> {
        if !self.open {
            return Ok(());
        }
        let applied = Applied { index: last.index, term: last.term, digest: self.progress.digest };
        let wrong = |database: Database| {
            move |source| ApplyError::Sqlite { index: last.index, database: database.name(), source }
        };
        if planted(Bug::AppliedIndexApart) {
            self.own("/*quorate*/ COMMIT", last.index)?;
            self.own("/*quorate*/ BEGIN IMMEDIATE", last.index)?;
        }
        self.connection
            .prepare_cached(
                "/*quorate*/ UPDATE _quorate_meta SET applied = ?1, term = ?2, digest = ?3, time_us = ?4, planned_on = ?5, voters = ?6",
            )
            .and_then(|mut update| {
                update.execute(params![
                    applied.index.0.cast_signed(),
                    applied.term.0.cast_signed(),
                    applied.digest.cast_signed(),
                    self.progress.time_us.cast_signed(),
                    self.progress.planned_on.0.cast_signed(),
                    self.progress.voters.as_ref(),
                ])
            })
            .map_err(wrong(self.database))?;
        self.own("/*quorate*/ COMMIT", last.index)?;
        self.open = false;
        self.applied = applied;
        self.committed = self.progress.clone();
        self.requests.committed();
        Ok(())
    }

    /// Forgets what was run since the last commit.
    pub(super) fn abandon(&mut self) {
        if std::mem::take(&mut self.open) && !self.connection.is_autocommit() {
            // When even this fails the connection is of no use, and the node is stopping anyway.
            let _ = self.connection.execute_batch("/*quorate*/ ROLLBACK");
        }
        self.rolled_back();
    }

    fn rolled_back(&mut self) {
        self.requests.rolled_back();
        self.progress = self.committed.clone();
        // What was prepared meanwhile may know a schema that never came to be.
        self.connection.flush_prepared_statement_cache();
    }

    fn own(&self, sql: &'static str, index: LogIndex) -> Result<(), ApplyError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.raw_execute())
            .map(|_| ())
            .map_err(|source| ApplyError::Sqlite { index, database: self.database.name(), source })
    }

    /// A commit that syncs the write-ahead log, everything before it included. It must change a
    /// value: SQLite writes no page whose bytes stay, and syncs nothing then.
    pub(super) fn make_durable(&mut self, last: Option<(LogIndex, Term)>) -> Result<(), Error> {
        let passed = last.filter(|(index, _)| *index > self.applied.index);
        let (index, term) = passed.unwrap_or((self.applied.index, self.applied.term));
        if !planted(Bug::ShortenedBeforeSync) {
            self.connection.execute_batch("/*quorate*/ PRAGMA synchronous = FULL")?;
        }
        self.connection
            .prepare_cached("/*quorate*/ UPDATE _quorate_meta SET synced = synced + 1, applied = ?1, term = ?2")?
            .execute(params![index.0.cast_signed(), term.0.cast_signed()])?;
        self.connection.execute_batch("/*quorate*/ PRAGMA synchronous = NORMAL")?;
        self.applied = Applied { index, term, digest: self.applied.digest };
        Ok(())
    }

    /// Sets the file's clock for an entry, and returns the time that the entry sees.
    pub(super) fn set_time(&mut self, time_us: u64) -> u64 {
        self.progress.time_us = self.progress.time_us.max(time_us);
        self.clock.set(self.progress.time_us);
        self.progress.time_us
    }

    pub(super) fn current_digest(&self) -> u64 {
        self.progress.digest
    }

    pub(super) fn set_voters(&mut self, voters: Bytes) {
        self.progress.voters = voters;
    }

    pub(super) fn set_planned_on(&mut self, index: LogIndex) {
        self.progress.planned_on = index;
    }
}

enum Attempt {
    Done(Outcomes),
    /// This entry's SQL ended the transaction; it is answered so.
    Gone(LogIndex, SqlOutcome),
}

pub(super) fn file(directory: &Path, database: Database) -> PathBuf {
    directory.join(file_name(database))
}

pub(super) fn file_name(database: Database) -> String {
    format!("{}.db", database.name())
}

/// Settings of every connection that may write the file.
pub(super) fn configure(connection: &Connection) -> Result<(), Error> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "page_size", PAGE)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // The log is synced; a power cut takes commits from here and they are replayed. NORMAL still
    // syncs around checkpoints, so the file is always a prefix.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -8_192)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

fn schema(connection: &Connection, database: Database, voters: &[u8]) -> Result<(), Error> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS _quorate_meta (
            one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER NOT NULL, applied INTEGER NOT NULL,
            term INTEGER NOT NULL, digest INTEGER NOT NULL, time_us INTEGER NOT NULL,
            planned_on INTEGER NOT NULL, voters BLOB NOT NULL, synced INTEGER NOT NULL)",
    )?;
    connection.execute_batch(Requests::SCHEMA)?;
    match database {
        Database::System => {
            connection.execute_batch(super::rows::SCHEMA)?;
            connection.execute_batch(super::rows::access::SCHEMA)?;
        }
        Database::Main => connection.execute_batch(fences::SCHEMA)?,
    }
    connection
        .execute("INSERT OR IGNORE INTO _quorate_meta VALUES (1, ?1, 0, 0, 0, 0, 0, ?2, 0)", params![FORMAT, voters])?;
    connection.execute_batch("COMMIT")
}

/// What a file says of itself.
#[derive(Debug)]
pub(super) struct Meta {
    pub(super) format: i64,
    pub(super) applied: Applied,
    pub(super) time_us: u64,
    pub(super) planned_on: LogIndex,
    pub(super) voters: Bytes,
}

impl Meta {
    pub(super) fn load(connection: &Connection) -> Result<Meta, Error> {
        let sql = "SELECT format, applied, term, digest, time_us, planned_on, voters FROM _quorate_meta";
        connection.query_row(sql, [], |row| {
            let number = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
            Ok(Meta {
                format: row.get(0)?,
                applied: Applied { index: LogIndex(number(1)?), term: Term(number(2)?), digest: number(3)? },
                time_us: number(4)?,
                planned_on: LogIndex(number(5)?),
                voters: row.get::<_, Vec<u8>>(6)?.into(),
            })
        })
    }

    /// Only how far the file is; for readers, at each query.
    pub(super) fn load_applied(connection: &Connection) -> Result<LogIndex, Error> {
        connection
            .prepare_cached("/*quorate*/ SELECT applied FROM _quorate_meta")?
            .query_row([], |row| row.get::<_, i64>(0))
            .map(|applied| LogIndex(applied.cast_unsigned()))
    }
}
