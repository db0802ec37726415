//! Gossip's socket: UDP on the node link's port.
//!
//! One task owns the socket, the state machine ([`Gossip`]) and the seals. It feeds datagrams and the
//! passing of time in, sends what comes out, and tells the core what is rumoured. Who the others are it
//! reads from what the node publishes anyway.
//!
//! Gossip runs where `tls/gossip.key` is, and where there is more than one node to speak to.
//!
//! # Invariants
//! - Whatever does not open is dropped without an answer.
//! - Datagrams that wait are read before timers fire, at most [`READ_FIRST`] of them: after a stall the
//!   answers of others are in the socket.
//! - The key file is readable by its owner alone, or the node does not start.

use super::core::Clock;
use super::inbox::Inbox;
use super::keychain::Held;
use crate::config::NodeConfig;
use anyhow::{Context as _, bail};
use quorate_api::view::Overview;
use quorate_membership::Timers;
use quorate_membership::seal::{KeyRing, Seal};
use quorate_membership::swim::{self, Effect, Gossip, Input, Options, Peer, Rumor};
use quorate_node::Event;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tracing::{debug, info};

/// Name of the file with the keys, in the data directory.
pub(crate) const KEY_FILE: &str = "tls/gossip.key";
/// Gossip's datagrams fit into 1,280 bytes; a longer one is cut, and does not open.
const DATAGRAM_MAX: usize = 2_048;
/// Measured: 1.43 s with ten nodes (docs/benchmarks.md, without what is kept back); the rest is for
/// machines with other work.
const SUSPECTED_WITHIN: Duration = Duration::from_millis(1_700);
/// Datagrams that are read while a timer is due: more than a node gets in a second of standing still,
/// and few enough that a flood does not keep it from its own work.
const READ_FIRST: u32 = 256;

/// The keys of gossip, if this node has any.
///
/// # Errors
/// The file is no ring of keys, or others may read it.
pub(super) fn keys(data_dir: &Path) -> anyhow::Result<Option<KeyRing>> {
    let path = data_dir.join(KEY_FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    let mode = std::fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!("others may read {} (mode {:o}): chmod 600 {0}", path.display(), mode & 0o777);
    }
    Ok(Some(KeyRing::from_text(&text).with_context(|| format!("in {}", path.display()))?))
}

/// Says to the others that this node leaves.
#[derive(Debug)]
pub(super) struct Farewell(oneshot::Sender<oneshot::Sender<()>>);

impl Farewell {
    /// Returns when it has been said, or after `patience`.
    pub(super) async fn say(self, patience: Duration) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(done).is_ok() {
            let _ = tokio::time::timeout(patience, is_done).await;
        }
    }
}

/// What a node knows of itself when it starts to gossip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// As the log counted it last.
    pub(super) generation: u64,
    pub(super) timers: Timers,
    pub(super) clock: Clock,
}

/// The keys as they are now, whenever they change.
pub(super) type Keys = watch::Receiver<Arc<Held>>;

/// How long a suspicion is kept back, so that a node is shown as unreachable when the operator wants it:
/// 99 of 100 nodes that fall silent are suspected by everybody within [`SUSPECTED_WITHIN`].
fn kept_back(timers: &Timers) -> Duration {
    timers.unreachable_after().saturating_sub(SUSPECTED_WITHIN).max(swim::SHOWN_AFTER)
}

/// Binds the socket and starts to gossip. `None` where there is no key, or nobody else.
///
/// # Errors
/// The port is taken, or the system gives no randomness.
pub(super) async fn start(
    config: &NodeConfig,
    start: Start,
    keys: Keys,
    overview: watch::Receiver<Arc<Overview>>,
    inbox: Inbox,
) -> anyhow::Result<Option<Farewell>> {
    if config.voters.len() < 2 {
        return Ok(None);
    }
    let Some(ring) = keys.borrow().gossip.clone() else { return Ok(None) };
    let address = config.node.link;
    let socket = UdpSocket::bind(address)
        .await
        .with_context(|| format!("binding UDP {address} for gossip (is another process using the port?)"))?;
    let random = super::random_u128()?;
    let Start { generation, timers, clock } = start;
    let options = Options {
        me: config.node.id,
        generation,
        seed: random as u64,
        local_health: true,
        shown_after: kept_back(&timers),
    };
    let gossip = Gossip::new(options, clock.now().mono);
    let seal = Seal::new(config.node.id, (random >> 64) as u64, ring);
    let (leave, leaves) = oneshot::channel();
    let task = Task { socket, gossip, seal, clock, inbox, config: config.clone(), peers: Vec::new() };
    tokio::spawn(task.run(overview, leaves, keys));
    info!(%address, "gossiping");
    Ok(Some(Farewell(leave)))
}

struct Task {
    socket: UdpSocket,
    gossip: Gossip,
    seal: Seal,
    clock: Clock,
    inbox: Inbox,
    config: NodeConfig,
    /// As last told to gossip.
    peers: Vec<Peer>,
}

impl Task {
    async fn run(
        mut self,
        mut overview: watch::Receiver<Arc<Overview>>,
        mut leaves: oneshot::Receiver<oneshot::Sender<()>>,
        mut keys: Keys,
    ) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut read = 0;
        let mut leaving = None;
        let seen = overview.borrow_and_update().clone();
        self.look_around(&seen).await;
        while let Some(wake) = self.gossip.next_wake() {
            let wait = wake.since(self.clock.now().mono);
            if wait.is_zero() && read >= READ_FIRST {
                read = 0;
                self.step(Input::Wake).await;
            }
            tokio::select! {
                biased;
                leave = &mut leaves, if leaving.is_none() => {
                    // The sender is gone only when the process ends in another way.
                    let Ok(done) = leave else { return };
                    leaving = Some(done);
                    self.step(Input::Leave).await;
                }
                received = self.socket.recv_from(&mut buffer) => {
                    read += 1;
                    match received {
                        Ok((length, address)) => match self.seal.open(&buffer[..length]) {
                            Ok(opened) => {
                                let (from, payload) = (opened.from, opened.payload);
                                self.step(Input::Received { from, address, payload }).await;
                            }
                            Err(why) => debug!(%address, %why, "a datagram says nothing"),
                        },
                        Err(error) => debug!(%error, "the gossip socket"),
                    }
                }
                changed = overview.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let seen = overview.borrow_and_update().clone();
                    self.look_around(&seen).await;
                }
                Ok(()) = keys.changed() => {
                    let ring = keys.borrow_and_update().gossip.clone();
                    if let Some(ring) = ring.filter(|ring| ring != self.seal.ring()) {
                        self.seal.set_ring(ring);
                    }
                }
                () = tokio::time::sleep(wait) => {
                    read = 0;
                    self.step(Input::Wake).await;
                }
            }
        }
        if let Some(done) = leaving {
            let _ = done.send(());
        }
    }

    /// Who there is, where, and in which generation.
    async fn look_around(&mut self, seen: &Overview) {
        let configured =
            self.config.voters.iter().map(|voter| Peer { node: voter.id, generation: 0, address: voter.link });
        let decided = seen.nodes.iter().filter_map(|node| {
            Some(Peer { node: node.id, generation: node.generation, address: node.link.parse().ok()? })
        });
        let peers: Vec<Peer> = configured.chain(decided).collect();
        if peers != self.peers {
            self.peers = peers.clone();
            let mine = peers.iter().filter(|peer| peer.node == self.config.node.id).map(|peer| peer.generation).max();
            self.step(Input::Generation(mine.unwrap_or(0))).await;
            self.step(Input::Peers(peers)).await;
        }
    }

    async fn step(&mut self, input: Input) {
        let now = self.clock.now().mono;
        let mut effects = Vec::new();
        self.gossip.step(now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { to, address, payload } => {
                    let datagram = self.seal.seal(to, &payload);
                    if let Err(error) = self.socket.try_send_to(&datagram, address) {
                        debug!(%address, %error, "a datagram was not sent");
                        // Says nothing itself, so there is no effect to be carried out.
                        self.gossip.step(now, Input::Unsent, &mut Vec::new());
                    }
                }
                // What a peer says on its link ends a rumor in the core already; its link is not asked.
                Effect::ProbeOverStream { .. } => {}
                Effect::Changed { node, generation, rumor } => {
                    match rumor {
                        Rumor::Alive | Rumor::Left => info!(%node, generation, ?rumor, "gossip"),
                        Rumor::Unreachable | Rumor::Dead => {
                            info!(%node, generation, ?rumor, slowdown = self.gossip.slowdown(), "gossip");
                        }
                    }
                    self.inbox.send(Event::Gossip { node, generation, rumor }).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use quorate_membership::seal::{Key, KeyId};

    /// Z5.
    #[test]
    fn a_node_is_shown_as_unreachable_after_two_heartbeats_and_not_sooner_than_is_sound() {
        let kept_back =
            |heartbeat| kept_back(&Timers { heartbeat: Duration::from_millis(heartbeat), ..Timers::default() });
        assert_eq!(kept_back(5_000), Duration::from_millis(10_000) - SUSPECTED_WITHIN);
        assert_eq!(kept_back(100), swim::SHOWN_AFTER);
        // The default: less than two seconds for 99 of 100.
        assert!(kept_back(1_000) + SUSPECTED_WITHIN <= Duration::from_secs(2));
    }

    #[test]
    fn keys_that_others_may_read_or_that_make_no_sense_stop_the_start() {
        let dir = tempfile::tempdir().unwrap();
        assert!(keys(dir.path()).unwrap().is_none());
        let path = dir.path().join(KEY_FILE);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let ring = KeyRing::new(Key { id: KeyId(1), secret: [7; 32] });
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write(&ring.to_text(), 0o600);
        assert_eq!(keys(dir.path()).unwrap(), Some(ring.clone()));
        write(&ring.to_text(), 0o640);
        let refused = format!("{:#}", keys(dir.path()).unwrap_err());
        assert!(refused.contains("chmod 600") && refused.contains("gossip.key"), "{refused}");
        write("1 abc", 0o600);
        let refused = format!("{:#}", keys(dir.path()).unwrap_err());
        assert!(refused.contains("line 1") && !refused.contains("abc"), "{refused}");
    }
}
