//! Gossip's socket: UDP on the node link's port.
//!
//! One task owns the socket, the state machine ([`Gossip`]) and the seals. It feeds datagrams and the
//! passing of time in, sends what comes out, and tells the core what is rumoured. Who the others are, and
//! who was expelled, it reads from the cluster's records as they change; until there are any, from what
//! the node was told when it joined.
//!
//! Gossip runs where `tls/gossip.key` is. A node that knows nobody has no socket; it is bound with the
//! first peer and closed with the last, so that a single node sends and hears nothing.
//!
//! Where datagrams do not arrive, the node link is asked ([`Beside`]): a firewall that swallows UDP makes
//! nobody unreachable.
//!
//! # Invariants
//! - Whatever does not open is dropped without an answer.
//! - Datagrams that wait are read before timers fire, at most [`READ_FIRST`] of them: after a stall the
//!   answers of others are in the socket.
//! - The key file is readable by its owner alone, or the node does not start.

pub(super) mod keys;

use super::away::Away;
use super::core::Clock;
use super::inbox::Inbox;
use super::link::Beside;
use crate::config::NodeConfig;
use anyhow::Context as _;
use quorate_membership::Timers;
use quorate_membership::seal::{KeyRing, Seal};
use quorate_membership::swim::{self, Effect, Gossip, Input, Options, Peer, Rumor};
use quorate_model::id::NodeId;
use quorate_model::state::ClusterState;
use quorate_node::Event;
use quorate_node::wire::{Body, Ping};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info};

/// Gossip's datagrams fit into 1,280 bytes; a longer one is cut, and does not open.
const DATAGRAM_MAX: usize = 2_048;
/// Measured: 1.43 s with ten nodes (docs/benchmarks.md, without what is kept back); the rest is for
/// machines with other work.
const SUSPECTED_WITHIN: Duration = Duration::from_millis(1_700);
/// Datagrams that are read while a timer is due: more than a node gets in a second of standing still,
/// and few enough that a flood does not keep it from its own work.
const READ_FIRST: u32 = 256;
/// A port that is taken when the first peer appears is tried again after this.
const BIND_AGAIN: Duration = Duration::from_secs(1);

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
#[derive(Debug)]
pub(super) struct Start {
    /// As the log counted it last.
    pub(super) generation: u64,
    pub(super) timers: Timers,
    /// Off only to see what happens without (`docs/benchmarks.md`).
    pub(super) local_health: bool,
    pub(super) clock: Clock,
    pub(super) ring: watch::Receiver<KeyRing>,
    /// Nodes and what is decided about members.
    pub(super) known: watch::Receiver<Arc<ClusterState>>,
    pub(super) beside: Beside,
    pub(super) away: Away,
    /// Nodes that answered on the link.
    pub(super) answered: mpsc::Receiver<NodeId>,
    pub(super) inbox: Inbox,
}

/// How long a suspicion is kept back, so that a node is shown as unreachable when the operator wants it:
/// 99 of 100 nodes that fall silent are suspected by everybody within [`SUSPECTED_WITHIN`].
fn kept_back(timers: &Timers) -> Duration {
    timers.unreachable_after().saturating_sub(SUSPECTED_WITHIN).max(swim::SHOWN_AFTER)
}

/// Starts to gossip; with the first peer, if there is none yet.
///
/// # Errors
/// The port is taken, or the system gives no randomness.
pub(super) async fn start(config: &NodeConfig, start: Start) -> anyhow::Result<Farewell> {
    let Start { generation, timers, local_health, clock, ring, known, beside, away, answered, inbox } = start;
    let random = super::random_u128()?;
    let options =
        Options { me: config.node.id, generation, seed: random as u64, local_health, shown_after: kept_back(&timers) };
    let told = config.voters.iter().chain(&config.peers);
    let told = told.map(|node| Peer { node: node.id, generation: 0, address: node.link }).collect();
    let task = Task {
        me: config.node.id,
        address: config.node.link,
        gossip: Gossip::new(options, clock.now().mono),
        seal: Seal::new(config.node.id, (random >> 64) as u64, ring.borrow().clone()),
        clock,
        inbox,
        beside,
        away,
        told,
        peers: Vec::new(),
        expelled: BTreeSet::new(),
    };
    let company = !task.others(&known.borrow()).is_empty();
    let socket = if company { Some(bind(task.address).await?) } else { None };
    let (leave, leaves) = oneshot::channel();
    tokio::spawn(task.run(socket, Ears { ring, known, answered, leaves }));
    Ok(Farewell(leave))
}

async fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).await;
    let socket =
        socket.with_context(|| format!("binding UDP {address} for gossip (is another process using the port?)"))?;
    info!(%address, "gossiping");
    Ok(socket)
}

/// Where a task hears of changes, beside its socket.
struct Ears {
    ring: watch::Receiver<KeyRing>,
    known: watch::Receiver<Arc<ClusterState>>,
    answered: mpsc::Receiver<NodeId>,
    leaves: oneshot::Receiver<oneshot::Sender<()>>,
}

/// Why there is no more gossip.
enum Ended {
    /// This node ends, and the others know.
    Left,
    /// There are no others.
    Alone,
}

struct Task {
    me: NodeId,
    address: SocketAddr,
    gossip: Gossip,
    seal: Seal,
    clock: Clock,
    inbox: Inbox,
    beside: Beside,
    /// While this node is away no datagram goes out, and none that came in is read.
    away: Away,
    /// Of whom this node was told before it had the cluster's records.
    told: Vec<Peer>,
    /// As last told to gossip.
    peers: Vec<Peer>,
    expelled: BTreeSet<NodeId>,
}

impl Task {
    async fn run(mut self, mut socket: Option<UdpSocket>, mut ears: Ears) {
        loop {
            let open = match socket.take() {
                Some(open) => open,
                None => match self.company(&mut ears).await {
                    Some(open) => open,
                    None => return,
                },
            };
            match self.gossip(open, &mut ears).await {
                Ended::Left => return,
                Ended::Alone => info!("nobody is left to gossip with"),
            }
        }
    }

    async fn gossip(&mut self, socket: UdpSocket, ears: &mut Ears) -> Ended {
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut read = 0;
        let mut leaving = None;
        let seen = ears.known.borrow_and_update().clone();
        self.look_around(&socket, &seen).await;
        while let Some(wake) = self.gossip.next_wake() {
            let wait = wake.since(self.clock.now().mono);
            if wait.is_zero() && read >= READ_FIRST {
                read = 0;
                self.step(&socket, Input::Wake).await;
            }
            tokio::select! {
                biased;
                leave = &mut ears.leaves, if leaving.is_none() => {
                    // The sender is gone only when the process ends in another way.
                    let Ok(done) = leave else { return Ended::Left };
                    leaving = Some(done);
                    self.step(&socket, Input::Leave).await;
                }
                received = socket.recv_from(&mut buffer) => {
                    read += 1;
                    match received {
                        Ok(_) if self.away.is_now() => {}
                        Ok((length, address)) => match self.seal.open(&buffer[..length]) {
                            Ok(opened) => {
                                let (from, payload) = (opened.from, opened.payload);
                                self.step(&socket, Input::Received { from, address, payload }).await;
                            }
                            Err(why) => debug!(%address, %why, "a datagram says nothing"),
                        },
                        Err(error) => debug!(%error, "the gossip socket"),
                    }
                }
                Some(node) = ears.answered.recv() => self.step(&socket, Input::AnsweredOverStream(node)).await,
                Ok(()) = ears.ring.changed() => {
                    let ring = ears.ring.borrow_and_update().clone();
                    info!(key = ring.in_use().0, keys = ring.ids().count(), "gossip is sealed");
                    self.seal.set_ring(ring);
                }
                Ok(()) = ears.known.changed() => {
                    let seen = ears.known.borrow_and_update().clone();
                    self.look_around(&socket, &seen).await;
                    if self.peers.is_empty() && leaving.is_none() {
                        return Ended::Alone;
                    }
                }
                () = tokio::time::sleep(wait) => {
                    read = 0;
                    self.step(&socket, Input::Wake).await;
                }
            }
        }
        if let Some(done) = leaving {
            let _ = done.send(());
        }
        Ended::Left
    }

    /// Waits until there is somebody to gossip with. `None`: there will be nobody, the process ends.
    async fn company(&mut self, ears: &mut Ears) -> Option<UdpSocket> {
        loop {
            let alone = {
                let seen = ears.known.borrow_and_update();
                self.others(&seen).is_empty()
            };
            if !alone {
                match bind(self.address).await {
                    Ok(socket) => {
                        self.seal.set_ring(ears.ring.borrow_and_update().clone());
                        return Some(socket);
                    }
                    Err(why) => error!("{why:#}"),
                }
            }
            tokio::select! {
                leave = &mut ears.leaves => {
                    // Nobody is there to be told.
                    let _ = leave.map(|done| done.send(()));
                    return None;
                }
                changed = ears.known.changed(), if alone => changed.ok()?,
                () = tokio::time::sleep(BIND_AGAIN), if !alone => {}
            }
        }
    }

    /// Everybody but this node, and where.
    fn others(&self, seen: &ClusterState) -> Vec<Peer> {
        let decided = seen.nodes.values().filter_map(|node| {
            let address = node.identity.link.parse().ok()?;
            Some(Peer { node: node.identity.id, generation: node.generation, address })
        });
        let all = self.told.iter().copied().chain(decided);
        all.filter(|peer| peer.node != self.me && !seen.members.expelled.contains(&peer.node)).collect()
    }

    /// Who there is, where, and in which generation; and who is not any more.
    async fn look_around(&mut self, socket: &UdpSocket, seen: &ClusterState) {
        for node in seen.members.expelled.difference(&self.expelled.clone()) {
            self.seal.forget(*node);
            self.step(socket, Input::Expelled(*node)).await;
        }
        self.expelled.clone_from(&seen.members.expelled);
        if let Some(me) = seen.nodes.get(&self.me) {
            self.step(socket, Input::Generation(me.generation)).await;
        }
        let peers = self.others(seen);
        if peers != self.peers {
            self.peers.clone_from(&peers);
            self.step(socket, Input::Peers(peers)).await;
        }
    }

    async fn step(&mut self, socket: &UdpSocket, input: Input) {
        let now = self.clock.now().mono;
        let mut effects = Vec::new();
        self.gossip.step(now, input, &mut effects);
        for effect in effects {
            match effect {
                Effect::Send { .. } if self.away.is_now() => {}
                Effect::Send { to, address, payload } => {
                    let datagram = self.seal.seal(to, &payload);
                    if let Err(error) = socket.try_send_to(&datagram, address) {
                        debug!(%address, %error, "a datagram was not sent");
                        // Says nothing itself, so there is no effect to be carried out.
                        self.gossip.step(now, Input::Unsent, &mut Vec::new());
                    }
                }
                Effect::ProbeOverStream { node } => self.beside.say(node, Body::Ping(Ping { is_answer: false })),
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
    use quorate_model::state::{Health, NodeIdentity, NodeRecord, Role};
    use quorate_model::time::WallTime;
    use std::sync::mpsc::Receiver;

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

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A node that gossips with others of the same records.
    struct Gossiping {
        events: Receiver<Event>,
        answers: mpsc::Sender<NodeId>,
        task: tokio::task::JoinHandle<()>,
        /// Held, so that the task goes on.
        _farewell: Farewell,
    }

    fn begin(id: NodeId, socket: UdpSocket, ring: &KeyRing, known: &watch::Receiver<Arc<ClusterState>>) -> Gossiping {
        let clock = Clock { started: std::time::Instant::now() };
        let (inbox, events) = crate::serve::inbox::inbox();
        let (answers, answered) = mpsc::channel(8);
        let shown_after = swim::SHOWN_AFTER;
        let seed = id.0.as_u128() as u64;
        let options = Options { me: id, generation: 1, seed, local_health: true, shown_after };
        let task = Task {
            me: id,
            address: socket.local_addr().unwrap(),
            gossip: Gossip::new(options, clock.now().mono),
            seal: Seal::new(id, 1, ring.clone()),
            clock,
            inbox,
            beside: Beside::new().0,
            away: Away::default(),
            told: Vec::new(),
            peers: Vec::new(),
            expelled: BTreeSet::new(),
        };
        let (leave, leaves) = oneshot::channel();
        let ears = Ears { ring: watch::Sender::new(ring.clone()).subscribe(), known: known.clone(), answered, leaves };
        Gossiping { events, answers, task: tokio::spawn(task.run(Some(socket), ears)), _farewell: Farewell(leave) }
    }

    /// Whether there is such a rumor within this time.
    fn is_rumoured(events: &Receiver<Event>, wanted: Rumor, within: Duration) -> bool {
        let until = std::time::Instant::now() + within;
        while let Ok(event) = events.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
            if matches!(event, Event::Gossip { rumor, .. } if rumor == wanted) {
                return true;
            }
        }
        false
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_whose_datagrams_are_lost_is_not_unreachable_as_long_as_it_answers_on_its_link() {
        let (one, two) = (NodeId::from_u128(1), NodeId::from_u128(2));
        let mut state = ClusterState::default();
        let mut sockets = Vec::new();
        for node in [one, two] {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let identity = NodeIdentity {
                id: node,
                name: node.to_string(),
                roles: BTreeSet::from([Role::Manager]),
                api: String::new(),
                link: socket.local_addr().unwrap().to_string(),
                host: String::new(),
            };
            let record = NodeRecord::started(identity, Health::Joined, WallTime(0));
            state.nodes.insert(node, record);
            sockets.push(socket);
        }
        let known = watch::Sender::new(Arc::new(state));
        let ring = crate::gossip_keys::first().unwrap();
        let second = begin(two, sockets.pop().unwrap(), &ring, &known.subscribe());
        let first = begin(one, sockets.pop().unwrap(), &ring, &known.subscribe());
        let events = tokio::task::spawn_blocking(move || {
            assert!(is_rumoured(&first.events, Rumor::Alive, DEADLINE), "they find each other");
            first.events
        });
        let events = events.await.unwrap();

        second.task.abort();
        let answers = first.answers.clone();
        let speaks = tokio::spawn(async move {
            let mut often = tokio::time::interval(Duration::from_millis(20));
            loop {
                often.tick().await;
                let _ = answers.send(two).await;
            }
        });
        // Much longer than it takes to find a silent node.
        let quiet = tokio::task::spawn_blocking(move || {
            assert!(!is_rumoured(&events, Rumor::Unreachable, Duration::from_secs(4)), "it answers on its link");
            events
        });
        let events = quiet.await.unwrap();
        speaks.abort();
        tokio::task::spawn_blocking(move || {
            assert!(is_rumoured(&events, Rumor::Unreachable, DEADLINE), "now it is silent everywhere");
        })
        .await
        .unwrap();
        first.task.abort();
    }
}
