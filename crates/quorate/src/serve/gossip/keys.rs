//! The keys that seal gossip, while the cluster runs: whoever was expelled shall know none of them.
//!
//! A key's number is one more than the nodes that were expelled so far. So nothing has to be remembered:
//! a leader that sees a smaller number makes the next key, also when the one before it could not.
//!
//! ```text
//! leader: a new key ──▶ installed, and said on every link ──▶ used after USE_AFTER ──▶ the old one goes
//! others: heard of on a link ──▶ the same                        (3 s)                 after GONE_AFTER (6 s)
//! ```
//! Rings are said when a link opens and when they change, so a node that was away has the newest as soon
//! as it hears somebody. What it said before that, nobody could open: it is seen by its link meanwhile.
//!
//! # Invariants
//! - A key is passed on by nodes alone that know of every expulsion before it. One that was away might
//!   otherwise hand it to the very node that shall not know it.
//! - Keys are taken from managers alone; they have the authority's key, so they could make any node.
//! - Whatever is in use is on the disk.

use crate::gossip_keys;
use crate::serve::link::{Beside, KeyNews};
use quorate_api::view::Overview;
use quorate_membership::seal::{KeyId, KeyRing};
use quorate_model::id::NodeId;
use quorate_model::state::{ClusterState, Role};
use quorate_node::wire::{Body, GossipKeys};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info};

/// A new key seals after this: everybody whose link is open has it then.
const USE_AFTER: Duration = Duration::from_secs(3);
/// The old key opens nothing any more after this.
const GONE_AFTER: Duration = Duration::from_secs(6);

/// Keeps the keys of one node.
pub(in crate::serve) struct Keeper {
    pub(in crate::serve) data_dir: PathBuf,
    pub(in crate::serve) ring: watch::Sender<KeyRing>,
    pub(in crate::serve) beside: Beside,
    pub(in crate::serve) known: watch::Receiver<Arc<ClusterState>>,
    pub(in crate::serve) overview: watch::Receiver<Arc<Overview>>,
}

impl Keeper {
    /// Runs as long as the server does.
    pub(in crate::serve) async fn run(mut self, mut news: mpsc::Receiver<KeyNews>) {
        let mut changed = Instant::now();
        // The newest key waits for what this node does not know yet.
        let mut untold = self.message().is_none();
        loop {
            let due = next_step(&self.ring.borrow()).map(|after| changed + after);
            let stepped = tokio::select! {
                heard = news.recv() => match heard {
                    None => return,
                    Some(KeyNews::LinkUp(peer)) => {
                        if let Some(message) = self.message() {
                            self.beside.say(peer, message);
                        }
                        continue;
                    }
                    Some(KeyNews::Ring { from, text }) => self.heard(from, &text),
                },
                seen = self.overview.changed() => {
                    if seen.is_err() {
                        return;
                    }
                    if std::mem::replace(&mut untold, self.message().is_none()) && !untold {
                        self.tell();
                    }
                    self.lead()
                }
                () = wait_until(due) => step(&self.ring.borrow()),
            };
            if let Some(ring) = stepped {
                changed = Instant::now();
                self.put(ring).await;
                untold = self.message().is_none();
            }
        }
    }

    /// What becomes of the ring when a peer says what it has.
    fn heard(&self, from: NodeId, text: &str) -> Option<KeyRing> {
        let is_manager = |state: &ClusterState| {
            state.nodes.get(&from).is_some_and(|node| node.identity.roles.contains(&Role::Manager))
        };
        if !is_manager(&self.known.borrow()) {
            return None;
        }
        let theirs = KeyRing::from_text(text).inspect_err(|why| debug!(%from, %why, "no keys of gossip")).ok()?;
        let mut ring = self.ring.borrow().clone();
        ring.learn(&theirs).then_some(ring)
    }

    /// Makes the next key, if this node leads and it is time for one.
    fn lead(&mut self) -> Option<KeyRing> {
        let leads = {
            let seen = self.overview.borrow_and_update();
            seen.cluster.leader.as_ref() == Some(&seen.answered_by)
        };
        let wanted = wanted(&self.known.borrow());
        if !leads || self.ring.borrow().newest() >= wanted {
            return None;
        }
        let key = gossip_keys::generate(wanted).inspect_err(|why| error!("no new key for gossip: {why:#}")).ok()?;
        info!(key = wanted.0, "a node was expelled: gossip gets another key");
        let mut ring = self.ring.borrow().clone();
        ring.learn(&KeyRing::new(key)).then(|| unused(ring))
    }

    /// Keeps it, and tells everybody.
    async fn put(&self, ring: KeyRing) {
        let (dir, text) = (self.data_dir.clone(), ring.clone());
        let written = tokio::task::spawn_blocking(move || gossip_keys::write(&dir, &text)).await;
        if let Ok(Err(why)) = written {
            // It is used all the same: the others will, and tell this node again after its next start.
            error!("keys of gossip are not kept: {why:#}");
        }
        self.ring.send_replace(ring);
        self.tell();
    }

    fn tell(&self) {
        if let Some(message) = self.message() {
            self.beside.say_to_all(&message);
        }
    }

    /// What this node may say of its keys.
    fn message(&self) -> Option<Body> {
        let ring = self.ring.borrow();
        let may = ring.newest() <= wanted(&self.known.borrow());
        may.then(|| Body::GossipKeys(GossipKeys { ring: ring.to_text() }))
    }
}

/// The number of the key that a cluster in this state has.
fn wanted(state: &ClusterState) -> KeyId {
    KeyId(u32::try_from(state.members.expelled.len()).unwrap_or(u32::MAX - 1) + 1)
}

/// A new key opens at first, and does not seal.
fn unused(mut ring: KeyRing) -> KeyRing {
    let newest = ring.newest();
    let old = ring.ids().find(|id| *id != newest);
    if let Some(old) = old {
        ring.make_use_of(old).expect("it is in the ring");
    }
    ring
}

/// When the ring takes its next step by itself, after it changed last.
fn next_step(ring: &KeyRing) -> Option<Duration> {
    match ring.ids().count() {
        1 => None,
        _ if ring.in_use() == ring.newest() => Some(GONE_AFTER - USE_AFTER),
        _ => Some(USE_AFTER),
    }
}

/// The newest key is used, or the one before it goes.
fn step(ring: &KeyRing) -> Option<KeyRing> {
    let mut next = ring.clone();
    let newest = ring.newest();
    if ring.in_use() == newest {
        let old = ring.ids().find(|id| *id != newest)?;
        next.remove(old).expect("it is not the one in use");
    } else {
        next.make_use_of(newest).expect("it is in the ring");
    }
    Some(next)
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_membership::seal::Key;

    fn ids(ring: &KeyRing) -> Vec<u32> {
        ring.ids().map(|id| id.0).collect()
    }

    #[test]
    fn a_new_key_opens_then_seals_and_then_the_old_one_is_gone() {
        let key = |id| Key { id: KeyId(id), secret: [7; 32] };
        let mut ring = KeyRing::new(key(1));
        assert!(ring.learn(&KeyRing::new(key(2))));
        let installed = unused(ring);
        assert_eq!((ids(&installed), next_step(&installed)), (vec![1, 2], Some(USE_AFTER)));
        let used = step(&installed).unwrap();
        assert_eq!((ids(&used), next_step(&used)), (vec![2, 1], Some(GONE_AFTER - USE_AFTER)));
        let over = step(&used).unwrap();
        assert_eq!((ids(&over), next_step(&over)), (vec![2], None));
        assert_eq!(unused(over.clone()), over);
    }

    #[test]
    fn each_expulsion_wants_another_key() {
        let mut state = ClusterState::default();
        assert_eq!(wanted(&state), KeyId(1));
        state.members.expelled.insert(NodeId::from_u128(9));
        assert_eq!(wanted(&state), KeyId(2));
    }
}
