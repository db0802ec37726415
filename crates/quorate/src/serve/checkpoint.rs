//! The checkpoint thread: moves pages from SQLite's write-ahead log into the database, so that the
//! writer never has to.

use quorate_store::databases::Checkpointer;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::warn;

/// Wakes the checkpoint thread.
#[derive(Debug)]
pub(super) struct Checkpoints {
    wake: SyncSender<()>,
    current: Arc<Mutex<Checkpointer>>,
}

impl Checkpoints {
    pub(super) fn start(checkpointer: Checkpointer) -> std::io::Result<Checkpoints> {
        let current = Arc::new(Mutex::new(checkpointer));
        let (wake, woken) = sync_channel::<()>(1);
        let shared = current.clone();
        std::thread::Builder::new().name("checkpoint".into()).spawn(move || {
            while woken.recv().is_ok() {
                let mut checkpointer = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match checkpointer.checkpoint() {
                    Ok(()) => {}
                    Err(error) if error.is_of_the_disk() => super::disk::check("make a checkpoint", Err(error)),
                    // The log still holds everything; the next round tries again.
                    Err(error) => warn!(error = %super::disk::chain(&error), "a checkpoint failed"),
                }
            }
        })?;
        Ok(Checkpoints { wake, current })
    }

    pub(super) fn wake(&self) {
        let _ = self.wake.try_send(());
    }

    /// Another database is in force.
    pub(super) fn reopen(&self, checkpointer: Checkpointer) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = checkpointer;
    }
}
