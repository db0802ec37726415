//! The newest epoch of each service that writes under one, and what that makes of a write.
//!
//! Kept in the file that is written, and judged in the transaction of the write: an outcome depends on the entry
//! and on its file alone, so it is the same on every node, after every replay, and in every snapshot. The leases are
//! in the other file, which may be ahead or behind; so the entry that gives a lease to a copy says its epoch, and
//! this file notes it at the same place of the log. From there on nobody of before writes, whether or not the new
//! copy has written, or has even started.
//!
//! # Invariants
//! - What is done under a fence has the newest epoch of its service.
//! - Once the cluster gave an epoch, epochs are the cluster's: a write raises none, so that a mistyped one shuts
//!   nobody out. Of a name that the cluster gave none, each write with a higher one raises it.
//! - A write that is refused leaves nothing behind but its outcome.
//! - A request that is sent again is answered before its fence is looked at.
//!
//! Source: docs/adr/0016-fenced-writes.md.

use quorate_model::command::{Command, Step};
use quorate_model::fence::{Fence, FenceRefused};
use quorate_model::id::LogIndex;
use quorate_model::planted::{Bug, planted};
use rusqlite::{Connection, OptionalExtension as _, params};

/// `idx`: the entry that made the epoch the newest. `granted`: the cluster gave it to a copy.
pub(super) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS _quorate_fences (
    service TEXT PRIMARY KEY, epoch INTEGER NOT NULL, granted INTEGER NOT NULL, idx INTEGER NOT NULL) WITHOUT ROWID";

/// The epochs that a command gives to copies. Also of a plan that is refused because the cluster has moved on: it
/// was made when nobody had the lease any more, so whoever had an older epoch has lost it for good.
pub(super) fn granted(command: &Command) -> Vec<Fence> {
    let Command::CarryOut { steps, .. } = command else { return Vec::new() };
    let given = steps.iter().filter_map(|step| match step {
        Step::Place { service, epoch: Some(epoch), .. } | Step::Promote { service, epoch, .. } => {
            Some(Fence { service: service.clone(), epoch: *epoch })
        }
        _ => None,
    });
    if planted(Bug::GrantNotFenced) { Vec::new() } else { given.collect() }
}

/// The entry at `index` gives this epoch to a copy.
pub(super) fn grant(connection: &Connection, index: LogIndex, fence: &Fence) -> rusqlite::Result<()> {
    match newest(connection, fence)? {
        Some(known) if known.granted && fence.epoch <= known.epoch => Ok(()),
        Some(_) | None => raise(connection, index, fence, true),
    }
}

/// Whether a write of the entry at `index` may be done under this fence.
pub(super) fn judge(
    connection: &Connection,
    index: LogIndex,
    fence: &Fence,
) -> rusqlite::Result<Result<(), FenceRefused>> {
    let Some(known) = newest(connection, fence)? else {
        return raise(connection, index, fence, false).map(Ok);
    };
    if fence.epoch == known.epoch || planted(Bug::FenceIgnored) {
        return Ok(Ok(()));
    }
    if fence.epoch > known.epoch && !known.granted {
        return raise(connection, index, fence, false).map(Ok);
    }
    let (service, epoch, newest) = (fence.service.to_string(), fence.epoch, known.epoch);
    Ok(Err(FenceRefused { service, epoch, newest }))
}

/// What is known of a service.
#[derive(Debug, Clone, Copy)]
struct Known {
    epoch: u64,
    granted: bool,
}

fn newest(connection: &Connection, fence: &Fence) -> rusqlite::Result<Option<Known>> {
    connection
        .prepare_cached("/*quorate*/ SELECT epoch, granted FROM _quorate_fences WHERE service = ?1")?
        .query_row([fence.service.as_str()], |row| {
            Ok(Known { epoch: row.get::<_, i64>(0)?.cast_unsigned(), granted: row.get(1)? })
        })
        .optional()
}

fn raise(connection: &Connection, index: LogIndex, fence: &Fence, granted: bool) -> rusqlite::Result<()> {
    connection
        .prepare_cached("/*quorate*/ INSERT OR REPLACE INTO _quorate_fences VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![fence.service.as_str(), fence.epoch.cast_signed(), granted, index.0.cast_signed()])
        .map(|_| ())
}
