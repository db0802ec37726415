//! What tasks of the shell say to those of other nodes, on the links that consensus has anyway: gossip
//! asks whether a peer that its datagrams do not reach still answers.
//!
//! # Invariants
//! - Nothing waits: what a queue has no room for is dropped. Gossip asks again.

use super::Outbox;
use quorate_model::id::NodeId;
use quorate_node::wire::{Body, Ping};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Said and not yet taken: more than a node has peers, each of which says little.
const WAITING_MAX: usize = 1_024;

/// The sending side, and where what was heard goes. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::serve) struct Beside {
    outboxes: Arc<Mutex<BTreeMap<NodeId, Arc<Outbox>>>>,
    answered: mpsc::Sender<NodeId>,
}

impl Beside {
    /// And where nodes are heard of that answered a [`Ping`].
    pub(in crate::serve) fn new() -> (Beside, mpsc::Receiver<NodeId>) {
        let (answered, heard) = mpsc::channel(WAITING_MAX);
        (Beside { outboxes: Arc::default(), answered }, heard)
    }

    /// Without a link to that node it is dropped.
    pub(in crate::serve) fn say(&self, to: NodeId, message: Body) {
        let outbox = self.outboxes().get(&to).cloned();
        if let Some(outbox) = outbox {
            outbox.send(std::iter::once(message));
        }
    }

    pub(super) fn add(&self, node: NodeId, outbox: Arc<Outbox>) {
        self.outboxes().insert(node, outbox);
    }

    pub(super) fn remove(&self, node: NodeId) {
        self.outboxes().remove(&node);
    }

    /// Takes what is for the shell. What is not is given back.
    pub(super) fn take(&self, from: NodeId, message: Body) -> Option<Body> {
        match message {
            Body::Ping(Ping { is_answer: false }) => self.say(from, Body::Ping(Ping { is_answer: true })),
            Body::Ping(Ping { is_answer: true }) => drop(self.answered.try_send(from)),
            for_the_core => return Some(for_the_core),
        }
        None
    }

    fn outboxes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Outbox>>> {
        // A map is whole after each call that changes it.
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
