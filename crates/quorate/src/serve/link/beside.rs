//! What tasks of the shell say to those of other nodes, on the links that consensus has anyway: gossip
//! asks whether a peer that its datagrams do not reach still answers, keys of gossip are passed on, nodes get the
//! secrets that their services name, and try externals.
//!
//! # Invariants
//! - Nothing waits: what a queue has no room for is dropped. Gossip asks again, and keys are said again
//!   whenever a link opens.

use super::Outbox;
use quorate_model::id::NodeId;
use quorate_node::wire::{AskSecrets, Body, GiveSecrets, Ping, TriedExternal, TryExternal};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Said and not yet taken: more than a node has peers, each of which says little.
const WAITING_MAX: usize = 1_024;
/// The same for secrets, of which one answer may have megabytes. Who was not heard asks again.
const SECRETS_WAITING_MAX: usize = 64;
/// The same for externals that are to be tried. Who is not answered is told that the node was silent.
const TRIES_WAITING_MAX: usize = 16;

/// The sending side, and where what was heard goes. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::serve) struct Beside {
    outboxes: Arc<Mutex<BTreeMap<NodeId, Arc<Outbox>>>>,
    answered: mpsc::Sender<NodeId>,
    keys: mpsc::Sender<KeyNews>,
    asked: mpsc::Sender<(NodeId, AskSecrets)>,
    given: mpsc::Sender<(NodeId, GiveSecrets)>,
    tries: mpsc::Sender<(NodeId, TryExternal)>,
    tried: mpsc::Sender<(NodeId, TriedExternal)>,
}

/// Where it is taken from.
#[derive(Debug)]
pub(in crate::serve) struct Heard {
    /// Nodes that answered a [`Ping`].
    pub(in crate::serve) answered: mpsc::Receiver<NodeId>,
    pub(in crate::serve) keys: mpsc::Receiver<KeyNews>,
    /// Nodes that want secrets, and which.
    pub(in crate::serve) asked: mpsc::Receiver<(NodeId, AskSecrets)>,
    /// Secrets, and who sent them.
    pub(in crate::serve) given: mpsc::Receiver<(NodeId, GiveSecrets)>,
    /// Externals that this node is to log in to, and who asks.
    pub(in crate::serve) tries: mpsc::Receiver<(NodeId, TryExternal)>,
    /// What came of it elsewhere.
    pub(in crate::serve) tried: mpsc::Receiver<(NodeId, TriedExternal)>,
}

/// Something for the task that keeps the keys of gossip.
#[derive(Debug)]
pub(in crate::serve) enum KeyNews {
    /// A link to the peer has opened: it may not know the newest keys.
    LinkUp(NodeId),
    /// What a peer has.
    Ring { from: NodeId, text: String },
}

impl Beside {
    pub(in crate::serve) fn new() -> (Beside, Heard) {
        let (answers, answered) = mpsc::channel(WAITING_MAX);
        let (news, keys) = mpsc::channel(WAITING_MAX);
        let ((asks, asked), (gifts, given)) = (mpsc::channel(SECRETS_WAITING_MAX), mpsc::channel(SECRETS_WAITING_MAX));
        let ((to_try, tries), (results, tried)) = (mpsc::channel(TRIES_WAITING_MAX), mpsc::channel(WAITING_MAX));
        let outboxes = Arc::default();
        let beside = Beside {
            outboxes,
            answered: answers,
            keys: news,
            asked: asks,
            given: gifts,
            tries: to_try,
            tried: results,
        };
        (beside, Heard { answered, keys, asked, given, tries, tried })
    }

    /// Without a link to that node it is dropped.
    pub(in crate::serve) fn say(&self, to: NodeId, message: Body) {
        let outbox = self.outboxes().get(&to).cloned();
        if let Some(outbox) = outbox {
            outbox.send(std::iter::once(message));
        }
    }

    /// The same to everybody to whom there is a link.
    pub(in crate::serve) fn say_to_all(&self, message: &Body) {
        let outboxes: Vec<Arc<Outbox>> = self.outboxes().values().cloned().collect();
        for outbox in outboxes {
            outbox.send(std::iter::once(message.clone()));
        }
    }

    pub(super) fn add(&self, node: NodeId, outbox: Arc<Outbox>) {
        self.outboxes().insert(node, outbox);
    }

    pub(super) fn remove(&self, node: NodeId) {
        self.outboxes().remove(&node);
    }

    pub(super) fn link_up(&self, peer: NodeId) {
        let _ = self.keys.try_send(KeyNews::LinkUp(peer));
    }

    /// Takes what is for the shell. What is not is given back.
    pub(super) fn take(&self, from: NodeId, message: Body) -> Option<Body> {
        match message {
            Body::Ping(Ping { is_answer: false }) => self.say(from, Body::Ping(Ping { is_answer: true })),
            Body::Ping(Ping { is_answer: true }) => drop(self.answered.try_send(from)),
            Body::GossipKeys(keys) => drop(self.keys.try_send(KeyNews::Ring { from, text: keys.ring })),
            Body::AskSecrets(asked) => drop(self.asked.try_send((from, asked))),
            Body::GiveSecrets(given) => drop(self.given.try_send((from, given))),
            Body::TryExternal(to_try) => drop(self.tries.try_send((from, to_try))),
            Body::TriedExternal(tried) => drop(self.tried.try_send((from, tried))),
            for_the_core => return Some(for_the_core),
        }
        None
    }

    fn outboxes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Outbox>>> {
        // A map is whole after each call that changes it.
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
