//! What a file holds, in 64 bits: a chain over every row change.
//!
//! The digest after an entry covers the digest before it, the entry's index, every row change in
//! its order, and the outcome. Equal logs give equal digests whatever the batches; a single wrong
//! value gives another one from then on.
//!
//! Left out are the index pages of full-text tables (their shadow tables but for the content):
//! when these are written, and how often, depends on the transaction.

use quorate_model::id::LogIndex;
use quorate_vfs::RowChange;
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// The row id after which SQLite draws random ones: replicas would differ.
const LAST_ROWID: i64 = i64::MAX;

/// Collects the row changes of the entry that is being applied. Shared with the connection's hook.
#[derive(Debug, Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Recording>>);

#[derive(Debug, Clone, Default)]
pub(super) struct Recording {
    hash: Xxh3Box,
    /// A row got the last possible id.
    last_rowid: bool,
    /// Names of tables whose changes do not count.
    left_out: Arc<BTreeSet<Vec<u8>>>,
}

#[derive(Clone)]
struct Xxh3Box(Xxh3);

impl Default for Xxh3Box {
    fn default() -> Self {
        Xxh3Box(Xxh3::new())
    }
}

impl std::fmt::Debug for Xxh3Box {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Xxh3")
    }
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry begins.
    pub(super) fn begin(&self, before: u64, index: LogIndex) {
        let mut recording = self.lock();
        recording.hash.0.reset();
        recording.hash.0.update(&before.to_le_bytes());
        recording.hash.0.update(&index.0.to_le_bytes());
        recording.last_rowid = false;
    }

    /// The schema is another one.
    pub(super) fn read_schema(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql =
            "SELECT name FROM pragma_table_list WHERE type = 'shadow' AND name NOT LIKE '%\\_content' ESCAPE '\\'";
        let names = connection
            .prepare(sql)?
            .query_map([], |row| row.get(0).map(String::into_bytes))?
            .collect::<Result<_, _>>()?;
        self.lock().left_out = Arc::new(names);
        Ok(())
    }

    /// Where to return to when what follows is rolled back.
    pub(super) fn mark(&self) -> Recording {
        self.lock().clone()
    }

    pub(super) fn return_to(&self, mark: Recording) {
        *self.lock() = mark;
    }

    /// Whether a row got the last possible id since the entry began.
    pub(super) fn used_last_rowid(&self) -> bool {
        self.lock().last_rowid
    }

    /// The entry ends with this outcome.
    pub(super) fn finish(&self, outcome: &[u8]) -> u64 {
        let mut recording = self.lock();
        recording.hash.0.update(outcome);
        recording.hash.0.digest()
    }

    pub(super) fn row(&self, change: &RowChange<'_>) {
        // Our own tables say the same as the log; what they hold is covered by the outcome.
        if change.table.starts_with(b"_quorate_") {
            return;
        }
        let mut recording = self.lock();
        if !recording.left_out.is_empty() && recording.left_out.contains(change.table) {
            return;
        }
        let hash = &mut recording.hash.0;
        hash.update(&[change.operation as u8]);
        hash.update(change.table);
        hash.update(&[0]);
        hash.update(&change.old_rowid.to_le_bytes());
        hash.update(&change.new_rowid.to_le_bytes());
        for column in 0..change.columns() {
            value(hash, change.before(column));
            value(hash, change.after(column));
        }
        if change.new_rowid == LAST_ROWID && change.after(0).is_some() {
            recording.last_rowid = true;
        }
    }
}

fn value(hash: &mut Xxh3, value: Option<ValueRef<'_>>) {
    match value {
        None => hash.update(&[0]),
        Some(ValueRef::Null) => hash.update(&[1]),
        Some(ValueRef::Integer(number)) => {
            hash.update(&[2]);
            hash.update(&number.to_le_bytes());
        }
        Some(ValueRef::Real(number)) => {
            hash.update(&[3]);
            hash.update(&number.to_bits().to_le_bytes());
        }
        Some(ValueRef::Text(bytes)) => sized(hash, 4, bytes),
        Some(ValueRef::Blob(bytes)) => sized(hash, 5, bytes),
    }
}

fn sized(hash: &mut Xxh3, kind: u8, bytes: &[u8]) {
    hash.update(&[kind]);
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
