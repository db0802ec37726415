//! Request ids that were seen, with their outcomes: a mutation that is sent again is done once.
//!
//! Kept in the file that the entry writes, in the same transaction, and as an index in memory.
//! When an id is forgotten is decided by entries alone, so every node forgets it at the same one.

use quorate_model::entry::{EntryError, Kind, Outcome};
use quorate_model::id::{LogIndex, RequestId};
use quorate_model::planted::{Bug, planted};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::collections::{HashMap, VecDeque};

/// An id is remembered for this long, in the log's time as [`Remembered::age_us`] counts it. A client
/// that retries gives up sooner.
const KEPT_US: u64 = 120_000_000;
/// The log's time may leap by hours when a leader with another clock takes over. Between two requests
/// no more than this counts, or a retry of seconds ago would be done again after such a leap. (Found
/// by the simulator.)
const LEAP_US: u64 = 1_000_000;
/// And at most this many, which bounds memory (20 MiB) at any rate of writes.
const KEPT_MAX: usize = 262_144;
/// Entries between two rounds of forgetting.
const TRIM_EVERY: u64 = 256;

#[derive(Debug, Default)]
pub(super) struct Requests {
    by_id: HashMap<RequestId, LogIndex>,
    /// In the order of the log.
    order: VecDeque<Remembered>,
    /// The newest index that is not of the transaction that is open.
    committed: LogIndex,
    /// Forgotten by the transaction that is open.
    forgotten: Vec<Remembered>,
}

/// One id.
#[derive(Debug, Clone, Copy)]
struct Remembered {
    index: LogIndex,
    id: RequestId,
    /// The time of its entry.
    time_us: u64,
    /// The time that passed since the first of all that are remembered, without leaps. Only
    /// differences mean something, and they are the same on every node: each depends on nothing but
    /// the rows between.
    age_us: u64,
}

impl Requests {
    pub(super) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS _quorate_requests (
        idx INTEGER PRIMARY KEY, time_us INTEGER NOT NULL, id BLOB NOT NULL, kind INTEGER NOT NULL, outcome BLOB NOT NULL)";

    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Requests> {
        let mut requests = Requests::default();
        if planted(Bug::RequestIdsForgotten) {
            return Ok(requests);
        }
        let mut select = connection.prepare("SELECT idx, time_us, id FROM _quorate_requests ORDER BY idx")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let id: [u8; 16] = row.get(2)?;
            let (index, time_us): (i64, i64) = (row.get(0)?, row.get(1)?);
            let id = RequestId(uuid::Uuid::from_bytes(id));
            requests.remember(LogIndex(index.cast_unsigned()), time_us.cast_unsigned(), id);
        }
        requests.committed();
        Ok(requests)
    }

    /// The earlier entry with this id, and its outcome.
    pub(super) fn known(
        &self,
        connection: &Connection,
        id: RequestId,
    ) -> rusqlite::Result<Option<(LogIndex, Outcome)>> {
        let Some(index) = self.by_id.get(&id) else { return Ok(None) };
        let found: Option<(i32, Vec<u8>)> = connection
            .prepare_cached("/*quorate*/ SELECT kind, outcome FROM _quorate_requests WHERE idx = ?1")?
            .query_row([index.0.cast_signed()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((kind, bytes)) = found else { return Ok(None) };
        let unreadable = |error: EntryError| {
            rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Blob, Box::new(error))
        };
        let kind = Kind::try_from(kind).map_err(|_| unreadable(EntryError::UnknownKind(kind)))?;
        Outcome::from_bytes(kind, &bytes).map(|outcome| Some((*index, outcome))).map_err(unreadable)
    }

    pub(super) fn record(
        &mut self,
        connection: &Connection,
        index: LogIndex,
        time_us: u64,
        id: RequestId,
        kind: Kind,
        outcome: &[u8],
    ) -> rusqlite::Result<()> {
        connection
            .prepare_cached("/*quorate*/ INSERT INTO _quorate_requests VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![index.0.cast_signed(), time_us.cast_signed(), id.0.as_bytes(), kind as i32, outcome])?;
        // Told by what is remembered, so that a node that was restarted forgets at the same entries.
        let last = self.newest();
        self.remember(index, time_us, id);
        if index.0 / TRIM_EVERY == last.0 / TRIM_EVERY {
            return Ok(());
        }
        self.trim(connection)
    }

    fn remember(&mut self, index: LogIndex, time_us: u64, id: RequestId) {
        let leap_max = if planted(Bug::LeapForgetsRequests) { u64::MAX } else { LEAP_US };
        let age_us =
            self.order.back().map_or(0, |last| last.age_us + time_us.saturating_sub(last.time_us).min(leap_max));
        self.by_id.insert(id, index);
        self.order.push_back(Remembered { index, id, time_us, age_us });
    }

    fn newest(&self) -> LogIndex {
        self.order.back().map_or(LogIndex(0), |last| last.index)
    }

    fn trim(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let now = self.order.back().map_or(0, |last| last.age_us);
        let mut upto = None;
        while self.order.front().is_some_and(|first| self.order.len() > KEPT_MAX || first.age_us + KEPT_US < now) {
            let gone = self.order.pop_front().expect("just looked");
            self.by_id.remove(&gone.id);
            upto = Some(gone.index);
            self.forgotten.push(gone);
        }
        if let Some(upto) = upto {
            connection
                .prepare_cached("/*quorate*/ DELETE FROM _quorate_requests WHERE idx <= ?1")?
                .execute([upto.0.cast_signed()])?;
        }
        Ok(())
    }

    pub(super) fn committed(&mut self) {
        self.committed = self.newest();
        self.forgotten.clear();
    }

    /// The open transaction is rolled back.
    pub(super) fn rolled_back(&mut self) {
        while self.newest() > self.committed {
            let gone = self.order.pop_back().expect("it has a newest one");
            self.by_id.remove(&gone.id);
        }
        for gone in self.forgotten.drain(..).rev().filter(|gone| gone.index <= self.committed) {
            self.by_id.insert(gone.id, gone.index);
            self.order.push_front(gone);
        }
    }
}
