//! Readers: threads with connections of their own, so that a slow query holds up nobody else.

use quorate_api::backend::{Answer, Query, ReadError};
use quorate_model::access::audit::AuditPage;
use quorate_store::databases::{QueryError, Reader, Readers};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::error;

/// Queries that may wait for a reader. At 20 µs a query this is a tenth of a second.
const QUEUE: usize = 4_096;

/// Runs queries on threads of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReaderPool {
    jobs: SyncSender<Job>,
    source: Arc<Mutex<Source>>,
}

#[derive(Debug)]
struct Source {
    readers: Readers,
    generation: u64,
}

#[derive(Debug)]
enum Job {
    Query { query: Query, asked: Instant, answer: oneshot::Sender<Result<Answer, ReadError>> },
    Audit { after: u64, limit: u32, answer: oneshot::Sender<Result<AuditPage, ReadError>> },
}

impl ReaderPool {
    pub(super) fn start(readers: Readers, threads: usize) -> std::io::Result<ReaderPool> {
        let source = Arc::new(Mutex::new(Source { readers, generation: 0 }));
        let (jobs, queue) = sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let (queue, source) = (queue.clone(), source.clone());
            std::thread::Builder::new().name(format!("reader-{number}")).spawn(move || work(&queue, &source))?;
        }
        Ok(ReaderPool { jobs, source })
    }

    /// Another database is in force: readers open it before their next query.
    pub(super) fn reopen(&self, readers: Readers) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        source.readers = readers;
        source.generation += 1;
    }

    /// # Errors
    /// [`ReadError::Overloaded`] when too many queries wait already; the query's own errors are in
    /// the answer.
    pub(super) async fn query(&self, query: Query) -> Result<Answer, ReadError> {
        let (answer, answered) = oneshot::channel();
        self.send(Job::Query { query, asked: Instant::now(), answer })?;
        answered.await.unwrap_or(Err(ReadError::ShuttingDown))
    }

    /// # Errors
    /// [`ReadError::Overloaded`] when too many queries wait already.
    pub(super) async fn audit(&self, after: u64, limit: u32) -> Result<AuditPage, ReadError> {
        let (answer, answered) = oneshot::channel();
        self.send(Job::Audit { after, limit, answer })?;
        answered.await.unwrap_or(Err(ReadError::ShuttingDown))
    }

    fn send(&self, job: Job) -> Result<(), ReadError> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => ReadError::Overloaded,
            TrySendError::Disconnected(_) => ReadError::ShuttingDown,
        })
    }
}

fn work(queue: &Mutex<Receiver<Job>>, source: &Mutex<Source>) {
    let mut open: Option<(u64, Reader)> = None;
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if let Err(error) = refresh(&mut open, source) {
            error!(%error, "cannot open the database for reading");
            // Whoever waits finds the channel closed.
            drop(job);
            continue;
        }
        let Some((_, reader)) = &mut open else { continue };
        match job {
            Job::Query { query, asked, answer } => drop(answer.send(run(reader, &query, asked))),
            Job::Audit { after, limit, answer } => {
                let page = reader.audit(after, limit).map_err(|error| {
                    error!(error = %super::disk::chain(&error), "the audit cannot be read");
                    ReadError::ShuttingDown
                });
                let _ = answer.send(page);
            }
        }
    }
}

fn refresh(open: &mut Option<(u64, Reader)>, source: &Mutex<Source>) -> Result<(), String> {
    let source = source.lock().unwrap_or_else(PoisonError::into_inner);
    if open.as_ref().is_none_or(|(generation, _)| *generation != source.generation) {
        *open = None;
        let reader = source.readers.reader().map_err(|error| super::disk::chain(&error))?;
        *open = Some((source.generation, reader));
    }
    Ok(())
}

fn run(reader: &mut Reader, query: &Query, asked: Instant) -> Result<Answer, ReadError> {
    let deadline = asked + query.patience.max(Duration::from_millis(1));
    match reader.query(query.database, &query.batch, deadline) {
        Ok(found) => Ok(Answer { results: found.results, applied: found.applied, age: None }),
        Err(QueryError::TooSlow) => Err(ReadError::TooSlow { limit: query.patience }),
        Err(error) => {
            error!(error = %super::disk::chain(&error), "a reader failed");
            Err(ReadError::ShuttingDown)
        }
    }
}
