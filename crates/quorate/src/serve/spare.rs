//! Makes the log's next segment ready before it is needed: zero-filling 16 MiB takes longer than a
//! write may wait.

use quorate_store::disk::real::RealDisk;
use quorate_store::log::{self, LogOptions};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use tracing::warn;

/// Wakes the thread that makes spares.
#[derive(Debug)]
pub(super) struct SpareMaker(SyncSender<()>);

impl SpareMaker {
    pub(super) fn start(dir: PathBuf, options: LogOptions) -> std::io::Result<SpareMaker> {
        // One wake-up may wait; more would say the same.
        let (sender, receiver) = sync_channel::<()>(1);
        std::thread::Builder::new().name("log-spare".into()).spawn(move || {
            while receiver.recv().is_ok() {
                let made = RealDisk::at(&dir)
                    .map_err(|error| error.to_string())
                    .and_then(|disk| log::prepare_spare(&disk, &options).map_err(|error| super::disk::chain(&error)));
                if let Err(error) = made {
                    // Not fatal: the log makes the segment itself, and says so if it cannot.
                    warn!(%error, "cannot prepare the next log segment");
                }
            }
        })?;
        Ok(SpareMaker(sender))
    }

    pub(super) fn wake(&self) {
        let _ = self.0.try_send(());
    }
}
