//! The apply thread: the one writer of the databases.
//!
//! It takes all entries that wait, runs them in one transaction a file, answers whoever waits for
//! their request ids, and tells the core. Answers leave from here, after the commit: whoever reads
//! on this node after an answer sees what it answered.

use super::disk::{DiskJob, check};
use super::inbox::Inbox;
use quorate_api::backend::Committed;
use quorate_model::id::{LogIndex, RequestId, Term};
use quorate_node::consensus::{CommittedEntry, Content};
use quorate_node::{AppliedEntry, Event};
use quorate_store::databases::{self, Item, Manifest, ToApply};
use quorate_store::storage::{DURABLE_EVERY, DatabaseStorage};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;
use tracing::info;

/// Entries in one transaction. More would make answers wait for their neighbours' work.
const BATCH_ENTRIES: usize = 512;

/// Work for the apply thread; consensus bounds how much of it waits.
#[derive(Debug)]
pub(super) enum ApplyJob {
    Apply(Vec<CommittedEntry>),
    /// Put the database in this directory in force.
    Install {
        incoming: PathBuf,
        manifest: Manifest,
        hard_state: (u64, u64, u64),
    },
}

/// Who waits for which request.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<HashMap<RequestId, Vec<oneshot::Sender<Committed>>>>);

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, Vec<oneshot::Sender<Committed>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait(&self, id: RequestId) -> oneshot::Receiver<Committed> {
        let (sender, receiver) = oneshot::channel();
        self.lock().entry(id).or_default().push(sender);
        receiver
    }

    /// Nobody waits any more; their channels close.
    pub(super) fn give_up(&self, id: RequestId) {
        self.lock().remove(&id);
    }

    fn answer(&self, entries: &[databases::AppliedEntry]) {
        let mut waiting = self.lock();
        if waiting.is_empty() {
            return;
        }
        for entry in entries {
            let Some(id) = entry.request_id else { continue };
            for sender in waiting.remove(&id).into_iter().flatten() {
                let _ = sender.send(Committed { index: entry.done_at, outcome: entry.outcome.clone() });
            }
        }
    }
}

fn item(content: &Content) -> Item {
    match content {
        Content::Data(data) => Item::Data(data.clone()),
        Content::Configuration(configuration) => Item::Membership { voters: configuration.to_bytes().into() },
    }
}

/// What the apply thread works with.
pub(super) struct Applier {
    pub(super) databases: DatabaseStorage,
    pub(super) jobs: Receiver<ApplyJob>,
    pub(super) disk: Sender<DiskJob>,
    pub(super) inbox: Inbox,
    pub(super) waiters: Arc<Waiters>,
    pub(super) readers: super::reads::ReaderPool,
    pub(super) checkpoints: super::checkpoint::Checkpoints,
}

impl Applier {
    /// Runs until the core is gone.
    pub(super) fn run(mut self) {
        let mut durable_at = Instant::now();
        loop {
            match self.jobs.recv_timeout(DURABLE_EVERY) {
                Ok(ApplyJob::Apply(entries)) => {
                    let after = self.apply(entries);
                    if self.databases.checkpoint_due() {
                        self.checkpoints.wake();
                    }
                    if let Some(job) = after {
                        self.install(job);
                    }
                }
                Ok(job @ ApplyJob::Install { .. }) => self.install(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.databases.durable_due(durable_at.elapsed()) {
                let durable = check("make the database durable", self.databases.make_durable());
                let _ = self.disk.send(DiskJob::Shorten { durable });
                self.checkpoints.wake();
                durable_at = Instant::now();
            }
        }
    }

    /// Applies these entries and whatever else waits. Returns a job of another kind that it met.
    fn apply(&mut self, entries: Vec<CommittedEntry>) -> Option<ApplyJob> {
        let mut waiting = entries;
        let mut other = None;
        while waiting.len() < BATCH_ENTRIES {
            match self.jobs.try_recv() {
                Ok(ApplyJob::Apply(more)) => waiting.extend(more),
                Ok(job) => {
                    other = Some(job);
                    break;
                }
                Err(_) => break,
            }
        }
        for batch in waiting.chunks(BATCH_ENTRIES) {
            let batch: Vec<ToApply> = batch
                .iter()
                .map(|entry| ToApply { index: entry.index, term: entry.term, item: item(&entry.content) })
                .collect();
            let applied = check("apply the log", self.databases.apply(&batch));
            self.waiters.answer(&applied);
            let entries: Vec<AppliedEntry> = applied
                .into_iter()
                .map(|entry| AppliedEntry {
                    index: entry.index,
                    request_id: entry.request_id,
                    outcome: entry.outcome,
                    changes: entry.changes,
                    digests: entry.digests,
                })
                .collect();
            self.inbox.send_blocking(Event::Applied { entries });
        }
        other
    }

    fn install(&mut self, job: ApplyJob) {
        let ApplyJob::Install { incoming, manifest, hard_state } = job else { return };
        let (index, term): (LogIndex, Term) = (manifest.index, manifest.term);
        check("install the snapshot", self.databases.install(&incoming, &manifest));
        self.readers.reopen(self.databases.readers());
        self.checkpoints.reopen(self.databases.checkpointer());
        info!(%index, "installed a snapshot");
        let state = Box::new(self.databases.state().clone());
        let _ = self.disk.send(DiskJob::Reset { index, term, hard_state, state });
    }
}
