//! The log thread: makes appends durable, many with one sync.
//!
//! While one fdatasync runs, the next appends collect in the queue; they all share the next one.
//! There is no timer: a lone write waits for nobody.
//!
//! An error of the disk ends the process: after a failed fsync nobody knows what is on it.

use super::inbox::Inbox;
use quorate_model::id::{LogIndex, Term};
use quorate_model::state::ClusterState;
use quorate_node::Event;
use quorate_node::consensus::{Append, EntryKind, LogEntry};
use quorate_store::disk::real::RealDisk;
use quorate_store::log::{self, HardState};
use quorate_store::storage::LogStorage;
use std::sync::mpsc::Receiver;
use tracing::{error, info};

/// Work for the log thread. What may wait here is bounded by consensus: it stops taking proposals
/// when too much is on its way.
#[derive(Debug)]
pub(super) enum DiskJob {
    Append(Append),
    Read {
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_max: usize,
    },
    /// The database holds everything up to this entry durably.
    Shorten {
        durable: LogIndex,
    },
    /// A snapshot was installed: go on after it.
    Reset {
        index: LogIndex,
        term: Term,
        hard_state: (u64, u64, u64),
        state: Box<ClusterState>,
    },
}

/// Runs until the core is gone.
pub(super) fn run(
    mut log: LogStorage<RealDisk>,
    jobs: &Receiver<DiskJob>,
    inbox: &Inbox,
    spare: &super::spare::SpareMaker,
) {
    while let Ok(first) = jobs.recv() {
        let mut persisted = None;
        let mut others = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                DiskJob::Append(append) => {
                    persisted = Some(append.number);
                    write(&mut log, append);
                }
                other => {
                    others.push(other);
                    // Reads and resets must see what came before them, durably.
                    break;
                }
            }
            next = jobs.try_recv().ok();
        }
        if let Some(number) = persisted {
            check("sync the log", log.sync());
            inbox.send_blocking(Event::Persisted { number });
        }
        for job in others {
            side_job(&mut log, job, inbox);
        }
        if log.wants_spare() {
            spare.wake();
        }
    }
}

fn write(log: &mut LogStorage<RealDisk>, append: Append) {
    let append = log::Append {
        hard_state: append.hard_state.map(|(term, vote, commit)| HardState { term, vote, commit }),
        entries: append.entries.into_iter().map(entry).collect(),
    };
    check("write the log", log.write(&append));
}

fn entry(entry: LogEntry) -> log::LogEntry {
    let kind = match entry.kind {
        EntryKind::Normal => log::EntryKind::Normal,
        EntryKind::Membership => log::EntryKind::Membership,
    };
    log::LogEntry { index: entry.index, term: entry.term, kind, data: entry.data }
}

/// An entry of the log as consensus knows it.
pub(super) fn entry_of_consensus(entry: log::LogEntry) -> LogEntry {
    let kind = match entry.kind {
        log::EntryKind::Normal => EntryKind::Normal,
        log::EntryKind::Membership => EntryKind::Membership,
    };
    LogEntry { index: entry.index, term: entry.term, kind, data: entry.data }
}

fn side_job(log: &mut LogStorage<RealDisk>, job: DiskJob, inbox: &Inbox) {
    match job {
        DiskJob::Append(_) => unreachable!("appends are taken before"),
        DiskJob::Read { from, to_exclusive, bytes_max } => {
            let entries = check("read the log", log.read(from, to_exclusive, bytes_max));
            inbox.send_blocking(Event::LogRead { entries: entries.into_iter().map(entry_of_consensus).collect() });
        }
        DiskJob::Shorten { durable } => {
            if let Some(first) = check("shorten the log", log.shorten(durable)) {
                info!(%first, bytes = log.bytes(), "shortened the log");
                inbox.send_blocking(Event::LogPurged { first });
            }
        }
        DiskJob::Reset { index, term, hard_state: (hard_term, vote, commit), state } => {
            let hard_state = HardState { term: hard_term, vote, commit };
            check("begin the log anew", log.begin_after(index, term, hard_state));
            inbox.send_blocking(Event::SnapshotInstalled { index, state });
        }
    }
}

/// The value, or the end of the process.
pub(super) fn check<T, E: std::error::Error>(what: &str, result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            error!("cannot {what}: {}. This node stops, because going on could lose data.", chain(&error));
            std::process::exit(1);
        }
    }
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
