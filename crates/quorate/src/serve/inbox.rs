//! The way into the core: one bounded queue for everything that happens.

use quorate_node::Event;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Events that may wait for the core. It takes them all at each turn, so this many pile up only
/// while it is stuck; then clients are told that the node is overloaded and peers are read no further.
const CAPACITY: usize = 32_768;

/// A sender of events. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Inbox(SyncSender<Event>);

/// The core takes no more events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    Full,
    Gone,
}

pub(super) fn inbox() -> (Inbox, Receiver<Event>) {
    let (sender, receiver) = sync_channel(CAPACITY);
    (Inbox(sender), receiver)
}

impl Inbox {
    /// For work that can be refused.
    pub(super) fn try_send(&self, event: Event) -> Result<(), Closed> {
        self.0.try_send(event).map_err(|error| match error {
            TrySendError::Full(_) => Closed::Full,
            TrySendError::Disconnected(_) => Closed::Gone,
        })
    }

    /// For peers and the node's own threads: waits until there is room. An event for a core that
    /// is gone is dropped: the process is ending.
    pub(super) async fn send(&self, mut event: Event) {
        loop {
            match self.0.try_send(event) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => {
                    event = back;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// The same, for threads.
    pub(super) fn send_blocking(&self, event: Event) {
        let _ = self.0.send(event);
    }
}
