//! A network of gossiping nodes in one thread: simulated time, loss, partitions, cuts in one
//! direction, CPUs that stall. A seed decides everything.
//!
//! Datagrams are not sealed here, which gossip does not see; their size counts as if they were.

use quorate_membership::seal;
use quorate_membership::swim::{self, Effect, Gossip, Input, Options, Peer, Rumor};
use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// What the network and the machines do to the nodes.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    /// Datagrams that are lost, of a thousand.
    pub(crate) loss: u64,
    /// One way, evenly spread.
    pub(crate) latency: (Duration, Duration),
    /// The first so many of a thousand nodes have slow CPUs.
    pub(crate) slow: u64,
    pub(crate) local_health: bool,
    /// Whether peers can be asked over their streams.
    pub(crate) streams: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions {
            loss: 0,
            latency: (Duration::from_micros(100), Duration::from_micros(1_000)),
            slow: 0,
            local_health: true,
            streams: false,
        }
    }
}

/// Rumors of living nodes that both could and would have answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FalseAlarms {
    /// Unreachable, of a node whose CPU is well.
    pub(crate) of_healthy: u64,
    /// Unreachable, of one that stalls.
    pub(crate) of_slow: u64,
    pub(crate) dead: u64,
}

enum Event {
    Deliver { from: usize, to: usize, payload: Vec<u8> },
    Wake(usize),
    StreamAnswer { asker: usize, node: usize },
}

struct Seat {
    gossip: Gossip,
    up: bool,
    left: bool,
    starts: u64,
    wake: Option<Timestamp>,
    paused_until: Timestamp,
    /// What it shows of each node, and since when.
    view: Vec<Option<(Timestamp, Rumor)>>,
}

impl Seat {
    fn new(gossip: Gossip, starts: u64, nodes: usize) -> Seat {
        let paused_until = Timestamp::default();
        Seat { gossip, up: true, left: false, starts, wake: None, paused_until, view: vec![None; nodes] }
    }
}

pub(crate) struct Bed {
    pub(crate) now: Timestamp,
    pub(crate) conditions: Conditions,
    /// Nodes of different sides do not reach each other.
    pub(crate) sides: Vec<u8>,
    /// No datagram gets from the first to the second.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    pub(crate) false_alarms: FalseAlarms,
    /// False alarms are not counted before: those who were told of each other across a cut need time.
    pub(crate) settled_from: Timestamp,
    /// Bytes of sealed datagrams since [`Bed::reset_traffic`].
    pub(crate) bytes: Vec<u64>,
    pub(crate) datagrams: u64,
    seed: u64,
    seats: Vec<Seat>,
    queue: BTreeMap<(Timestamp, u64), Event>,
    events: u64,
    rng: ChaCha8Rng,
    /// Of everything that was delivered and told, in order.
    pub(crate) trace: u64,
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(node: usize) -> NodeId {
    NodeId::from_u128(node as u128 + 1)
}

fn index(node: NodeId) -> usize {
    usize::try_from(node.0.as_u128() - 1).unwrap()
}

fn address(node: usize) -> SocketAddr {
    let node = u32::try_from(node).unwrap();
    SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + node), 7001))
}

impl Bed {
    pub(crate) fn new(nodes: usize, seed: u64, conditions: Conditions) -> Bed {
        let mut bed = Bed {
            now: Timestamp(Duration::from_secs(1)),
            conditions,
            sides: vec![0; nodes],
            cuts: BTreeSet::new(),
            false_alarms: FalseAlarms::default(),
            settled_from: Timestamp::default(),
            bytes: vec![0; nodes],
            datagrams: 0,
            seed,
            seats: Vec::new(),
            queue: BTreeMap::new(),
            events: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            trace: 0,
        };
        for node in 0..nodes {
            let gossip = bed.gossip(node, 1);
            bed.seats.push(Seat::new(gossip, 1, nodes));
        }
        for node in 0..nodes {
            bed.begin(node);
        }
        bed
    }

    /// A cluster in which everybody knows everybody.
    pub(crate) fn converged(nodes: usize, seed: u64, conditions: Conditions) -> Bed {
        let quiet = Conditions { local_health: conditions.local_health, ..Conditions::default() };
        let mut bed = Bed::new(nodes, seed, quiet);
        bed.converge(Duration::from_secs(120)).expect("nodes that reach each other find each other");
        // Until there is nothing to tell any more.
        bed.run(Duration::from_secs(5));
        bed.conditions = conditions;
        bed.settled_from = bed.now;
        bed
    }

    fn gossip(&mut self, node: usize, start: u64) -> Gossip {
        let options = Options {
            me: id(node),
            generation: start,
            seed: self.seed ^ (node as u64) << 20 ^ start << 50,
            local_health: self.conditions.local_health,
            shown_after: swim::SHOWN_AFTER,
        };
        Gossip::new(options, self.now)
    }

    fn begin(&mut self, node: usize) {
        let peers = (0..self.sides.len()).map(|peer| Peer { node: id(peer), generation: 1, address: address(peer) });
        self.feed(node, Input::Peers(peers.collect()));
    }

    pub(crate) fn nodes(&self) -> usize {
        self.seats.len()
    }

    /// Power off: it says nothing, and comes back with [`Bed::start`] alone.
    pub(crate) fn crash(&mut self, node: usize) {
        self.seats[node].up = false;
    }

    pub(crate) fn leave(&mut self, node: usize) {
        self.seats[node].left = true;
        self.feed(node, Input::Leave);
    }

    /// Starts a node that crashed or left, in its next generation.
    pub(crate) fn start(&mut self, node: usize) {
        self.seats[node].starts += 1;
        let gossip = self.gossip(node, self.seats[node].starts);
        let nodes = self.nodes();
        let seat = &mut self.seats[node];
        *seat = Seat::new(gossip, seat.starts, nodes);
        self.begin(node);
    }

    /// Stands still, as a machine that is paused does, and then goes on.
    pub(crate) fn pause(&mut self, node: usize, span: Duration) {
        self.seats[node].paused_until = self.now.plus(span);
    }

    pub(crate) fn gossip_of(&self, node: usize) -> &Gossip {
        &self.seats[node].gossip
    }

    pub(crate) fn expel(&mut self, node: usize) {
        for other in (0..self.nodes()).filter(|other| *other != node) {
            self.feed(other, Input::Expelled(id(node)));
            self.seats[other].view[node] = None;
        }
    }

    /// What `observer` shows of `subject`.
    pub(crate) fn shown(&self, observer: usize, subject: usize) -> Option<Rumor> {
        self.seats[observer].view[subject].map(|(_, rumor)| rumor)
    }

    /// When the last of all others began to show `rumor` of `subject`; `None` if one does not.
    pub(crate) fn shown_everywhere(&self, subject: usize, rumor: Rumor) -> Option<Timestamp> {
        let others = self.seats.iter().enumerate().filter(|(other, seat)| *other != subject && seat.up && !seat.left);
        let mut last = Timestamp::default();
        for (_, seat) in others {
            match seat.view[subject] {
                Some((since, known)) if known == rumor => last = last.max(since),
                _ => return None,
            }
        }
        Some(last)
    }

    pub(crate) fn all_alive(&self) -> bool {
        let present = |seat: &&Seat| seat.up && !seat.left;
        (0..self.nodes())
            .filter(|node| present(&&self.seats[*node]))
            .all(|node| self.shown_everywhere(node, Rumor::Alive).is_some())
    }

    /// Runs until everybody shows everybody as alive; how long that took.
    pub(crate) fn converge(&mut self, at_most: Duration) -> Option<Duration> {
        let begin = self.now;
        while self.now.since(begin) < at_most {
            self.run(ms(100));
            if self.all_alive() {
                return Some(self.now.since(begin));
            }
        }
        None
    }

    /// Runs until all nodes whose CPU is well show each other as alive; how long that took.
    pub(crate) fn settle(&mut self, at_most: Duration) -> Option<Duration> {
        let begin = self.now;
        let well: Vec<usize> = (0..self.nodes()).filter(|node| !self.is_slow(*node)).collect();
        while self.now.since(begin) < at_most {
            self.run(ms(100));
            let alive = |one: usize, other: usize| one == other || self.shown(one, other) == Some(Rumor::Alive);
            if well.iter().all(|one| well.iter().all(|other| alive(*one, *other))) {
                return Some(self.now.since(begin));
            }
        }
        None
    }

    pub(crate) fn reset_traffic(&mut self) {
        self.bytes.fill(0);
        self.datagrams = 0;
    }

    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now.plus(span);
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(node) => {
                if self.seats[node].wake != Some(self.now) {
                    return;
                }
                self.seats[node].wake = None;
                match self.stalled_until(node) {
                    // Timers first, as if the socket were looked at last.
                    Some(end) => self.wake_at(node, end),
                    None => self.feed(node, Input::Wake),
                }
            }
            Event::Deliver { from, to, payload } => match self.stalled_until(to) {
                Some(end) => self.push(end.plus(ms(1)), Event::Deliver { from, to, payload }),
                None => self.feed(to, Input::Received { from: id(from), address: address(from), payload }),
            },
            Event::StreamAnswer { asker, node } => self.feed(asker, Input::AnsweredOverStream(id(node))),
        }
    }

    fn is_slow(&self, node: usize) -> bool {
        (node as u64 + 1) * 1_000 <= self.conditions.slow * self.nodes() as u64
    }

    /// A slow CPU stands still for 300 to 800 ms of every 2 to 3 s.
    fn stalled_until(&self, node: usize) -> Option<Timestamp> {
        let paused_until = self.seats[node].paused_until;
        if paused_until > self.now {
            return Some(paused_until);
        }
        if !self.is_slow(node) {
            return None;
        }
        let (cycle, stall) = (2_000 + node as u64 * 37 % 1_000, 300 + node as u64 * 53 % 500);
        let at = u64::try_from(self.now.0.as_millis()).unwrap() + node as u64 * 711;
        let into = at % cycle;
        (into < stall).then(|| self.now.plus(ms(stall - into)))
    }

    fn wake_at(&mut self, node: usize, at: Timestamp) {
        self.seats[node].wake = Some(at);
        self.push(at, Event::Wake(node));
    }

    fn push(&mut self, at: Timestamp, event: Event) {
        self.events += 1;
        self.queue.insert((at, self.events), event);
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.sides[from] == self.sides[to] && !self.cuts.contains(&(from, to))
    }

    fn note(&mut self, word: u64) {
        self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
    }

    fn feed(&mut self, node: usize, input: Input) {
        if !self.seats[node].up {
            return;
        }
        let mut effects = Vec::new();
        self.seats[node].gossip.step(self.now, input, &mut effects);
        if cfg!(debug_assertions) {
            self.seats[node].gossip.check();
        }
        for effect in effects {
            match effect {
                Effect::Send { to, payload, .. } => self.send(node, index(to), payload),
                Effect::ProbeOverStream { node: peer } => {
                    let peer = index(peer);
                    let speaks = self.seats[peer].up && self.sides[node] == self.sides[peer];
                    if self.conditions.streams && speaks {
                        self.push(self.now.plus(ms(1)), Event::StreamAnswer { asker: node, node: peer });
                    }
                }
                Effect::Changed { node: subject, rumor, .. } => self.show(node, index(subject), rumor),
            }
        }
        match (self.seats[node].gossip.next_wake(), self.seats[node].wake) {
            (Some(at), None) => self.wake_at(node, at.max(self.now)),
            (Some(at), Some(set)) if at < set => self.wake_at(node, at.max(self.now)),
            _ => {}
        }
    }

    fn send(&mut self, from: usize, to: usize, payload: Vec<u8>) {
        self.bytes[from] += (payload.len() + seal::OVERHEAD) as u64;
        self.datagrams += 1;
        let lost = self.rng.next_u64() % 1_000 < self.conditions.loss;
        let (least, most) = self.conditions.latency;
        let spread = u64::try_from((most - least).as_micros()).unwrap() + 1;
        let latency = least + Duration::from_micros(self.rng.next_u64() % spread);
        if !lost && self.reaches(from, to) {
            self.note((from as u64) << 40 | (to as u64) << 20 | payload.len() as u64);
            self.push(self.now.plus(latency), Event::Deliver { from, to, payload });
        }
    }

    fn show(&mut self, observer: usize, subject: usize, rumor: Rumor) {
        self.note((observer as u64) << 40 | (subject as u64) << 20 | rumor as u64);
        self.seats[observer].view[subject] = Some((self.now, rumor));
        let (seat, other) = (&self.seats[subject], &self.seats[observer]);
        let lives = seat.up && !seat.left && other.up && self.sides[observer] == self.sides[subject];
        if !lives || self.now < self.settled_from {
            return;
        }
        match rumor {
            Rumor::Unreachable if self.is_slow(subject) => self.false_alarms.of_slow += 1,
            Rumor::Unreachable => self.false_alarms.of_healthy += 1,
            Rumor::Dead => self.false_alarms.dead += 1,
            Rumor::Alive | Rumor::Left => {}
        }
    }
}
