//! Who speaks: each node on one connection.
//!
//! A process has one connection to a peer for what it says. Two that both speak are two processes with one
//! node's certificate: its data directory was copied, and the copy runs as well. The second is not listened
//! to, and told so. Which of the two is the right one nobody here can know; the first has the cluster's ear.
//!
//! # Invariants
//! - A connection on which nothing was said for [`SPEAKS_WITHIN`] keeps nobody out: its node may have lost
//!   its power and be back.

use quorate_model::id::NodeId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Every node sends a status each second. A little more than that, so that one that comes back after its
/// connection was lost waits for no more than its next attempt.
const SPEAKS_WITHIN: Duration = Duration::from_millis(1_500);

/// Of one listener. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Voices {
    began: Instant,
    speaking: Arc<Mutex<BTreeMap<NodeId, Speaking>>>,
}

#[derive(Debug)]
struct Speaking {
    from: SocketAddr,
    /// Milliseconds since `began`.
    last: Arc<AtomicU64>,
}

/// A connection on which a node is heard; it ends with this.
#[derive(Debug)]
pub(super) struct Voice {
    node: NodeId,
    last: Arc<AtomicU64>,
    voices: Voices,
}

/// Another connection of the node speaks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node} is heard from {from} already: does it run twice, with a copy of its data directory? Stop one of the \
     two; a copy is no second node, which would join with a new token"
)]
pub(super) struct Twice {
    node: NodeId,
    from: SocketAddr,
}

impl Default for Voices {
    fn default() -> Voices {
        Voices { began: Instant::now(), speaking: Arc::default() }
    }
}

impl Voices {
    /// # Errors
    /// [`Twice`]
    pub(super) fn begin(&self, node: NodeId, from: SocketAddr) -> Result<Voice, Twice> {
        let now = self.now();
        let mut speaking = self.speaking();
        if let Some(other) = speaking.get(&node)
            && now.saturating_sub(other.last.load(Ordering::Relaxed)) < SPEAKS_WITHIN.as_millis() as u64
        {
            return Err(Twice { node, from: other.from });
        }
        let last = Arc::new(AtomicU64::new(now));
        speaking.insert(node, Speaking { from, last: last.clone() });
        Ok(Voice { node, last, voices: self.clone() })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn speaking(&self) -> MutexGuard<'_, BTreeMap<NodeId, Speaking>> {
        // A map is whole after each call that changes it.
        self.speaking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Voice {
    pub(super) fn speaks(&self) {
        self.last.store(self.voices.now(), Ordering::Relaxed);
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        let mut speaking = self.voices.speaking();
        if speaking.get(&self.node).is_some_and(|it| Arc::ptr_eq(&it.last, &self.last)) {
            speaking.remove(&self.node);
        }
    }
}
