//! Failure detection and dissemination: SWIM.
//!
//! Once per period this node asks one peer, in random order, for an answer. A peer that stays silent is
//! asked again through three others, then over its stream, and only then suspected. The suspicion
//! travels on the messages that are sent anyway; the suspect hears of it, says that it lives, and that
//! travels in the same way. So the cost per node is the same in a cluster of any size, and a lossy or
//! cut way between two nodes takes no third one down.
//!
//! ```text
//!              ┌──────────── "I live", at a higher incarnation ───────────┐
//!              ▼                                                          │
//!  Alive ── probe failed ──▶ suspect ── SHOWN_AFTER ──▶ Unreachable ── DEAD_AFTER ──▶ Dead
//!    ▲                                                                                  │
//!    └───────────────── a new identity: another generation, or a renewal ───────────────┘
//!  any ── Left(generation) ──▶ Left ── a higher generation ──▶ Alive
//! ```
//!
//! What this adds to the library, foca:
//! - **The suspect is told first** (Lifeguard's buddy system). Whoever raises a suspicion, or talks to
//!   a suspect, tells it, and gets its "I live" back at once. foca alone would wait until the rumor
//!   comes by chance.
//! - **Probes are repeated** while nobody answers, and suspects are asked again and again: where one
//!   datagram in four is lost, plain SWIM would suspect at every seventh probe.
//! - **Local health** ([`crate::lifeguard`]): foca refuses to change its periods while it runs, so its
//!   timers are stretched here, on their way out. What judges others is put off when it fires late, so
//!   that answers that wait in the socket are read before.
//! - **Leaving is said, not noticed**: `Left` goes straight to [`LEFT_TO`] nodes, each of which passes
//!   it on at once, and it needs no leader.
//! - **A second way**: [`Effect::ProbeOverStream`] asks whether the peer speaks on its stream, so that
//!   a firewall that swallows UDP makes nobody unreachable.
//!
//! These are rumors. They place nothing, remove nobody and never make a node `down`: that takes the word
//! of a majority over their own links ([`crate::Membership::unheard_by_majority`]). So a suspect has
//! long to answer ([`DEAD_AFTER`]); being shown as unreachable costs it only what gateways send it.
//!
//! # Invariants
//! - No clock, no I/O, no randomness of its own: equal inputs at equal times with an equal seed give
//!   equal effects.
//! - At most one probe is in flight.
//! - Only a node itself raises its incarnation and renews its identity; its generation comes from the
//!   caller alone ([`Input::Generation`]) and is never made up here.
//! - After [`Input::Leave`] nothing is said but that this node has left.
//! - An older generation changes nothing about a newer one.
//!
//! # Sources
//! Das, Gupta, Motivala: SWIM, DSN 2002. Dadgar, Phillips, Currey: Lifeguard, DSN-W 2018. The issues of
//! foca: short identities, a generation that only grows, leaving cleanly (19, 25, 32).

mod protocol;

use crate::lifeguard::{LocalHealth, Sign};
use foca::{Config, Foca, Header, Incarnation, Message, Notification, PeriodicParams, State, Timer};
use protocol::{Broadcasts, Codec, Identity, Notice, SharedNotes};
use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// Between two probes in a cluster of up to 100 nodes. With 500 ms the first suspicion alone takes
/// 2.3 s at the 99th percentile, with 250 ms 1.1 s.
pub const PROBE_PERIOD: Duration = Duration::from_millis(250);
/// A direct answer takes less than this; then others are asked. They need twice the time.
const PROBE_RTT: Duration = Duration::from_millis(80);
/// A probe that nobody has answered is sent again this often until it is over. One datagram in four
/// may be lost then, and still only one probe in some hundreds is.
const REPEAT_EVERY: Duration = Duration::from_millis(40);
/// Up to this many nodes the period is [`PROBE_PERIOD`]; each doubling beyond adds as much, up to four.
const SMALL: usize = 100;
/// A suspicion that the suspect denies within this time is not shown to anybody: the least that makes
/// sense, and the default.
pub const SHOWN_AFTER: Duration = Duration::from_millis(300);
/// A suspect that does not answer for this long is dead, and has to come back with a new identity.
/// Longer than partitions usually last, because coming back takes longer than denying.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);
/// How often a few suspects are asked whether they live. All nodes do that, so that each of many
/// suspects is asked soon after a partition has healed.
const ASK_EVERY: Duration = Duration::from_millis(500);
const ASK_SUSPECTS: usize = 2;
/// While more rumors wait than fit into one message, gossip is hurried, by at most [`HURRY_MAX`]
/// rounds each [`ASK_EVERY`]: 50 KiB a second.
const MEMBERS_A_MESSAGE: usize = 35;
const HURRY_MAX: usize = 8;
/// Before a suspect is called dead it is asked this often, one after another [`LAST_ASK_EVERY`].
const LAST_ASKS: u8 = 10;
const LAST_ASK_EVERY: Duration = Duration::from_millis(300);
/// A timer that fires this much late was not waited for: this node, or its machine, stood still.
const LATE: Duration = Duration::from_millis(50);
/// How often nodes whose address is known and that were never heard are spoken to.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
const ANNOUNCE_TO: usize = 3;
/// Who leaves tells this many nodes itself, [`LEFT_TIMES`] times.
pub const LEFT_TO: usize = 32;
const LEFT_TIMES: u8 = 3;
const LEFT_EVERY: Duration = Duration::from_millis(30);
/// With sealing and the headers of UDP and IPv6, 1,280 bytes: what every network carries in one piece.
const MESSAGE_MAX: usize = 1_280 - 48 - crate::seal::OVERHEAD - protocol::FRAME_MAX;

/// What gossip says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rumor {
    Alive,
    /// Nobody who was asked could reach it, and it has not denied that.
    Unreachable,
    /// Unreachable for [`DEAD_AFTER`]. It may come back at any time.
    Dead,
    /// It said that it leaves.
    Left,
}

/// What a node is told when it starts to gossip.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub me: NodeId,
    /// As far as known: consensus counts this node's starts, and may tell of the newest one later.
    pub generation: u64,
    /// Seeds everything random.
    pub seed: u64,
    /// On, unless to see what happens without: see [`crate::lifeguard`].
    pub local_health: bool,
    /// How long a suspicion that is not denied is kept back; [`SHOWN_AFTER`] or longer.
    pub shown_after: Duration,
}

/// A node that the cluster knows, and where its datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    /// An address of a higher generation counts; 0 for one that is only configured.
    pub generation: u64,
    pub address: SocketAddr,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A datagram was opened: `from` has said `payload`, and it came from `address`.
    Received { from: NodeId, address: SocketAddr, payload: Vec<u8> },
    /// Time passed; at the latest at [`Gossip::next_wake`]. That it comes late is noticed.
    Wake,
    /// Who is known, and where: those to begin with, and whenever that changes.
    Peers(Vec<Peer>),
    /// Consensus has counted this node's newest start.
    Generation(u64),
    /// The node is of the cluster no more: nothing is heard from it, nothing told of it.
    Expelled(NodeId),
    /// The peer that [`Effect::ProbeOverStream`] named has spoken on its stream since then, or just
    /// before.
    AnsweredOverStream(NodeId),
    /// A datagram was not sent, because the socket's queue is full or the network is down.
    Unsent,
    /// This node ends in an orderly way.
    Leave,
}

/// Something must be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Seal it and send it.
    Send { to: NodeId, address: SocketAddr, payload: Vec<u8> },
    /// Find out whether the node speaks on its stream, and if so say [`Input::AnsweredOverStream`].
    /// A shell without streams does nothing.
    ProbeOverStream { node: NodeId },
    /// There is another rumor about a node.
    Changed { node: NodeId, generation: u64, rumor: Rumor },
}

/// One node's part in it.
pub struct Gossip {
    me: NodeId,
    foca: Foca<Identity, Codec, ChaCha8Rng, Broadcasts>,
    notes: SharedNotes,
    health: LocalHealth,
    shown_after: Duration,
    alarms: BTreeMap<(Timestamp, u64), Alarm>,
    alarms_set: u64,
    members: BTreeMap<NodeId, Member>,
    /// The newest generation in which each node left.
    left: BTreeMap<NodeId, u64>,
    addresses: BTreeMap<NodeId, Address>,
    expelled: BTreeSet<NodeId>,
    probe: Option<Probe>,
    config: Config,
    leaving: Option<Leaving>,
    rng: ChaCha8Rng,
    refused: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Alarm {
    Foca {
        timer: Timer<Identity>,
        /// How often it fired already without having its way.
        put_off: u8,
    },
    /// A suspicion may be old enough to be shown.
    Show(NodeId),
    /// The probe in flight may have lost its datagrams.
    Repeat {
        probe: u8,
    },
    /// Suspects are asked again.
    Ask,
    Announce,
    Leave,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    identity: Identity,
    incarnation: Incarnation,
    state: State,
    /// Since when it has this state in this incarnation.
    since: Timestamp,
    /// What was told of it last, and in which generation.
    told: Option<(u64, Rumor)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Address {
    /// Decided or configured, with its generation.
    known: Option<(u64, SocketAddr)>,
    /// Where its newest datagram came from: for nodes that are not known yet.
    seen: Option<SocketAddr>,
}

impl Address {
    fn best(self) -> Option<SocketAddr> {
        self.known.map(|(_, address)| address).or(self.seen)
    }
}

#[derive(Debug)]
struct Probe {
    target: Identity,
    heard_anybody: bool,
    /// What was sent for it, to be sent again until somebody answers.
    asked: Vec<(Identity, Vec<u8>)>,
}

#[derive(Debug)]
struct Leaving {
    to: Vec<Identity>,
    times_left: u8,
}

/// What foca wants done, collected.
#[derive(Debug, Default)]
struct Wishes {
    messages: Vec<(Identity, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Identity>)>,
}

impl foca::Runtime<Identity> for Wishes {
    /// The codec's notes tell more.
    fn notify(&mut self, _: Notification<'_, Identity>) {}

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.messages.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        self.timers.push((after, timer));
    }
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip")
            .field("me", self.foca.identity())
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl Gossip {
    /// A node that knows nobody yet: [`Input::Peers`] begins.
    #[must_use]
    pub fn new(options: Options, now: Timestamp) -> Gossip {
        let notes = SharedNotes::default();
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let identity = Identity { node: options.me, generation: options.generation, renewal: 0 };
        let broadcasts = Broadcasts { me: options.me, notes: notes.clone(), left: BTreeMap::new() };
        let config = config();
        let foca = Foca::with_custom_broadcast(
            identity,
            config.clone(),
            ChaCha8Rng::seed_from_u64(rng.next_u64()),
            Codec(notes.clone()),
            broadcasts,
        );
        let mut gossip = Gossip {
            me: options.me,
            foca,
            notes,
            health: LocalHealth::new(options.local_health),
            shown_after: options.shown_after.max(SHOWN_AFTER),
            alarms: BTreeMap::new(),
            alarms_set: 0,
            members: BTreeMap::new(),
            left: BTreeMap::new(),
            addresses: BTreeMap::new(),
            expelled: BTreeSet::new(),
            probe: None,
            config,
            leaving: None,
            rng,
            refused: 0,
        };
        gossip.set_alarm(now.plus(ANNOUNCE_EVERY), Alarm::Announce);
        gossip.set_alarm(now.plus(ASK_EVERY), Alarm::Ask);
        gossip
    }

    /// Feeds one input. Effects are appended to `out`. `now` never runs backwards.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Effect>) {
        if self.leaving.is_some() && input != Input::Wake {
            // Whatever others think of this node now, it shall not come back to contradict them.
            return;
        }
        match input {
            Input::Received { from, address, payload } => self.receive(now, from, address, &payload, out),
            Input::Wake => self.wake(now, out),
            Input::Peers(peers) => self.learn_peers(now, &peers, out),
            Input::Generation(generation) => {
                let identity = *self.foca.identity();
                if generation > identity.generation {
                    let next = Identity { generation, renewal: 0, ..identity };
                    self.drive(now, out, |foca, wishes| foca.change_identity(next, wishes));
                }
            }
            Input::Expelled(node) => {
                self.expelled.insert(node);
                self.addresses.remove(&node);
                self.members.remove(&node);
                self.left.remove(&node);
            }
            Input::AnsweredOverStream(node) => self.answered_over_stream(now, node, out),
            Input::Unsent => self.health.note(Sign::Unsent),
            Input::Leave => self.leave(now, out),
        }
    }

    /// When [`Input::Wake`] is due. `None`: this node has left and nothing is left to say.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.alarms.first_key_value().map(|((at, _), _)| *at)
    }

    /// What was told of every other node last, with its generation.
    pub fn rumors(&self) -> impl Iterator<Item = (NodeId, u64, Rumor)> {
        self.members
            .iter()
            .filter_map(|(node, member)| member.told.map(|(generation, rumor)| (*node, generation, rumor)))
    }

    /// This node's own generation, as it tells others.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.foca.identity().generation
    }

    /// By how much this node probes more slowly than it could, for its own health: 1 to
    /// [`crate::lifeguard::FACTOR_MAX`].
    #[must_use]
    pub fn slowdown(&self) -> u32 {
        self.health.factor()
    }

    /// Messages that were opened and made no sense.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What must hold after each step.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self) {
        for theirs in self.foca.iter_membership_state() {
            let node = theirs.id().node;
            if self.expelled.contains(&node) {
                continue;
            }
            let mine = self.members.get(&node).expect("foca knows nobody whom this does not know");
            assert_eq!(
                (mine.identity, mine.incarnation, mine.state),
                (*theirs.id(), theirs.incarnation(), theirs.state())
            );
        }
        assert!(!self.members.contains_key(&self.me), "there is a rumor about this node itself");
        let probes = self
            .alarms
            .values()
            .filter(|alarm| matches!(alarm, Alarm::Foca { timer: Timer::ProbeRandomMember(_), .. }));
        // One that foca no longer heeds may be left over.
        assert!(probes.count() <= 2, "more than one probe is in flight");
    }

    fn receive(&mut self, now: Timestamp, from: NodeId, address: SocketAddr, payload: &[u8], out: &mut Vec<Effect>) {
        if from == self.me || self.expelled.contains(&from) {
            return;
        }
        let Ok((notice, message)) = protocol::read_frame(payload) else {
            self.refused += 1;
            return;
        };
        // A member speaks for itself only.
        if protocol::source(message).map(|source| source.node) != Ok(from) {
            self.refused += 1;
            return;
        }
        self.addresses.entry(from).or_default().seen = Some(address);
        if let Some(probe) = &mut self.probe {
            probe.heard_anybody = true;
        }
        // First the notice: the answer to the message then denies the suspicion already.
        if let Some(notice) = notice.filter(|notice| notice.suspect == *self.foca.identity()) {
            let suspicion = foca::Member::new(notice.suspect, notice.incarnation, State::Suspect);
            self.drive(now, out, |foca, wishes| foca.apply_many([suspicion].into_iter(), true, wishes));
        }
        self.drive(now, out, |foca, wishes| foca.handle_data(message, wishes));
        // Also when an earlier identity is suspected: from the answer the other learns of this one.
        if notice.is_some_and(|notice| notice.suspect.node == self.me)
            && let Some(member) = self.members.get(&from)
        {
            let to = member.identity;
            let denial = self.message(to, Message::Gossip, None);
            self.send(to, &denial, out);
        }
    }

    fn wake(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let mut late = false;
        while let Some(entry) = self.alarms.first_entry() {
            let (due, _) = *entry.key();
            if due > now {
                break;
            }
            match entry.remove() {
                Alarm::Foca { timer, put_off: 0 } if self.health.is_on() && now.since(due) > LATE && judges(&timer) => {
                    late = true;
                    // The next probe after all else, so that this one is not cut short.
                    let grace = if matches!(timer, Timer::ProbeRandomMember(_)) { PROBE_PERIOD } else { PROBE_RTT };
                    self.set_alarm(now.plus(grace), Alarm::Foca { timer, put_off: 1 });
                }
                Alarm::Foca { timer: Timer::ChangeSuspectToDown { member_id, incarnation, token }, put_off }
                    if put_off < LAST_ASKS && self.suspects(member_id, incarnation) =>
                {
                    // That it lives may have been lost on its way here, of all nodes.
                    self.ask(member_id, out);
                    let timer = Timer::ChangeSuspectToDown { member_id, incarnation, token };
                    self.set_alarm(now.plus(LAST_ASK_EVERY), Alarm::Foca { timer, put_off: put_off + 1 });
                }
                Alarm::Foca { timer, .. } => self.timer(now, timer, out),
                Alarm::Show(node) => self.tell(now, node, out),
                Alarm::Repeat { probe } => self.repeat_probe(now, probe, out),
                Alarm::Ask => {
                    let suspects = self.members.values().filter(|member| member.state == State::Suspect);
                    let suspects: Vec<Identity> = suspects.map(|member| member.identity).collect();
                    for suspect in self.choose(suspects, ASK_SUSPECTS) {
                        self.ask(suspect, out);
                    }
                    // After a partition there is more to tell than fits into a few messages.
                    for _ in 0..(self.foca.updates_backlog() / MEMBERS_A_MESSAGE).min(HURRY_MAX) {
                        self.drive(now, out, |foca, wishes| foca.gossip(wishes));
                    }
                    self.set_alarm(now.plus(ASK_EVERY), Alarm::Ask);
                }
                Alarm::Announce => {
                    self.announce(now, out);
                    self.set_alarm(now.plus(ANNOUNCE_EVERY), Alarm::Announce);
                }
                Alarm::Leave => self.say_left(now, out),
            }
        }
        if late {
            // One stall is one sign, however many timers it held up.
            self.health.note(Sign::Late);
        }
    }

    fn timer(&mut self, now: Timestamp, timer: Timer<Identity>, out: &mut Vec<Effect>) {
        match &timer {
            Timer::ProbeRandomMember(_) => self.end_probe(),
            Timer::SendIndirectProbe { probed_id, .. } => {
                let waits = self.probe.as_ref().is_some_and(|probe| probe.target == *probed_id);
                if waits && !self.notes.lock().answered {
                    out.push(Effect::ProbeOverStream { node: probed_id.node });
                }
            }
            _ => {}
        }
        let begins = matches!(timer, Timer::ProbeRandomMember(_));
        let suspects = self.drive(now, out, |foca, wishes| foca.handle_timer(timer, wishes));
        if begins && !suspects.is_empty() && self.health.is_on() {
            // This node raised them: it tells them before it tells others.
            for suspect in suspects {
                self.ask(suspect, out);
            }
            self.drive(now, out, |foca, wishes| foca.gossip(wishes));
        }
    }

    fn repeat_probe(&mut self, now: Timestamp, number: u8, out: &mut Vec<Effect>) {
        let Some(probe) = &self.probe else { return };
        let over = {
            let notes = self.notes.lock();
            notes.answered || notes.probe != number
        };
        if over {
            return;
        }
        for (to, message) in &probe.asked {
            self.send(*to, message, out);
        }
        self.set_alarm(now.plus(REPEAT_EVERY * self.scale()), Alarm::Repeat { probe: number });
    }

    fn suspects(&self, identity: Identity, incarnation: Incarnation) -> bool {
        self.members.get(&identity.node).is_some_and(|member| {
            (member.identity, member.incarnation, member.state) == (identity, incarnation, State::Suspect)
        })
    }

    /// Says to a suspect that it is one. If it lives, it says so at once.
    fn ask(&self, suspect: Identity, out: &mut Vec<Effect>) {
        let message = self.message(suspect, Message::Gossip, None);
        self.send(suspect, &message, out);
    }

    /// What the probe that is over says about this node's own health.
    fn end_probe(&mut self) {
        let Some(probe) = self.probe.take() else { return };
        if self.notes.lock().answered {
            self.health.note(Sign::Answered);
        } else if !probe.heard_anybody {
            self.health.note(Sign::HeardNothing);
        }
    }

    fn learn_peers(&mut self, now: Timestamp, peers: &[Peer], out: &mut Vec<Effect>) {
        for peer in peers.iter().filter(|peer| peer.node != self.me && !self.expelled.contains(&peer.node)) {
            let address = self.addresses.entry(peer.node).or_default();
            if address.known.is_none_or(|(generation, _)| peer.generation >= generation) {
                address.known = Some((peer.generation, peer.address));
            }
        }
        self.announce(now, out);
    }

    /// Speaks to nodes that can be spoken to and were never heard.
    fn announce(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let strangers = self.addresses.keys().filter(|node| !self.members.contains_key(node));
        let strangers: Vec<NodeId> = strangers.copied().collect();
        for node in self.choose(strangers, ANNOUNCE_TO) {
            // Any identity of that node will do.
            let to = Identity { node, generation: 0, renewal: 0 };
            self.drive(now, out, |foca, wishes| foca.announce(to, wishes));
        }
    }

    fn choose<T>(&mut self, mut among: Vec<T>, count: usize) -> Vec<T> {
        for at in 0..count.min(among.len()) {
            let rest = (among.len() - at) as u64;
            // The bias is less than one in 2^53.
            let other = at + (self.rng.next_u64() % rest) as usize;
            among.swap(at, other);
        }
        among.truncate(count);
        among
    }

    fn answered_over_stream(&mut self, now: Timestamp, node: NodeId, out: &mut Vec<Effect>) {
        let Some(probe) = self.probe.as_ref().filter(|probe| probe.target.node == node) else { return };
        let Some(member) = self.members.get(&node) else { return };
        let (number, incarnation) = (self.notes.lock().probe, member.incarnation);
        // The answer that the node would have given.
        let header = Header {
            src: probe.target,
            src_incarnation: incarnation,
            dst: *self.foca.identity(),
            message: Message::Ack(number),
        };
        let ack = protocol::write_message(&header, None);
        self.drive(now, out, |foca, wishes| foca.handle_data(&ack, wishes));
    }

    fn leave(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let alive = self.members.values().filter(|member| member.state != State::Down).map(|member| member.identity);
        let alive: Vec<Identity> = alive.collect();
        let to = self.choose(alive, LEFT_TO);
        // On foca's own last messages too.
        let bytes = protocol::write_left(self.me, self.generation());
        self.drive(now, out, |foca, _| foca.add_broadcast(&bytes).map(drop));
        self.leaving = Some(Leaving { to, times_left: LEFT_TIMES });
        self.alarms.clear();
        self.say_left(now, out);
        self.drive(now, out, |foca, wishes| foca.leave_cluster(wishes));
        self.alarms.retain(|_, alarm| *alarm == Alarm::Leave);
    }

    fn say_left(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let Some(leaving) = &mut self.leaving else { return };
        leaving.times_left -= 1;
        let (to, again) = (leaving.to.clone(), leaving.times_left > 0);
        let bytes = protocol::write_left(self.me, self.generation());
        for to in to {
            let message = self.message(to, Message::Broadcast, Some(&bytes));
            self.send(to, &message, out);
        }
        if again {
            self.set_alarm(now.plus(LEFT_EVERY), Alarm::Leave);
        }
    }

    /// A message of this node's own making, as foca would write it.
    fn message(&self, to: Identity, message: Message<Identity>, broadcast: Option<&[u8]>) -> Vec<u8> {
        let src_incarnation = self.notes.lock().incarnation;
        let header = Header { src: *self.foca.identity(), src_incarnation, dst: to, message };
        protocol::write_message(&header, broadcast)
    }

    fn send(&self, to: Identity, message: &[u8], out: &mut Vec<Effect>) {
        // Who has no address is reached through those who have it: their probes stand for ours.
        let Some(address) = self.addresses.get(&to.node).and_then(|address| address.best()) else { return };
        let suspect = self.members.get(&to.node).filter(|member| self.health.is_on() && member.state == State::Suspect);
        let notice = suspect.map(|member| Notice { suspect: member.identity, incarnation: member.incarnation });
        out.push(Effect::Send { to: to.node, address, payload: protocol::write_frame(notice, message) });
    }

    /// Lets foca work and takes over what it did. Returns whom it has just begun to suspect.
    fn drive(
        &mut self,
        now: Timestamp,
        out: &mut Vec<Effect>,
        work: impl FnOnce(&mut Foca<Identity, Codec, ChaCha8Rng, Broadcasts>, &mut Wishes) -> Result<(), foca::Error>,
    ) -> Vec<Identity> {
        let mut wishes = Wishes::default();
        let mut result = work(&mut self.foca, &mut wishes);
        if self.leaving.is_none() && !self.notes.lock().left.is_empty() {
            // Passed on at once: the one who said it cannot say it again.
            result = result.and(self.foca.broadcast(&mut wishes));
        }
        match result {
            // After a stall its timers may come in another order than it set them; it begins anew.
            Ok(()) | Err(foca::Error::IncompleteProbeCycle) => {}
            Err(_) => self.refused += 1,
        }
        self.take_over(now, wishes, out)
    }

    fn take_over(&mut self, now: Timestamp, wishes: Wishes, out: &mut Vec<Effect>) -> Vec<Identity> {
        let (members, left) = {
            let mut notes = self.notes.lock();
            (std::mem::take(&mut notes.members), std::mem::take(&mut notes.left))
        };
        let count = self.members.len();
        let mut suspects = Vec::new();
        for member in members {
            if self.learn(now, &member, out) {
                suspects.push(*member.id());
            }
        }
        for (node, generation) in left {
            self.learn_left(now, node, generation, out);
        }
        for (after, timer) in wishes.timers {
            let scale = match &timer {
                Timer::SendIndirectProbe { probed_id, .. } => {
                    self.probe = Some(Probe { target: *probed_id, heard_anybody: false, asked: Vec::new() });
                    let probe = {
                        let mut notes = self.notes.lock();
                        notes.answered = false;
                        notes.probe
                    };
                    self.set_alarm(now.plus(REPEAT_EVERY * self.scale()), Alarm::Repeat { probe });
                    self.scale()
                }
                Timer::ProbeRandomMember(_) => self.scale(),
                _ => 1,
            };
            self.set_alarm(now.plus(after * scale), Alarm::Foca { timer, put_off: 0 });
        }
        for (to, message) in wishes.messages {
            self.send(to, &message, out);
            let asks = self.notes.lock().probe;
            if let Some(probe) = &mut self.probe
                && protocol::is_probe(&message, probe.target, asks)
            {
                probe.asked.push((to, message));
            }
        }
        if self.members.len() != count {
            self.resize();
        }
        suspects
    }

    /// Takes over what foca thinks of a member. Returns whether it has just become a suspect.
    fn learn(&mut self, now: Timestamp, news: &foca::Member<Identity>, out: &mut Vec<Effect>) -> bool {
        let (identity, incarnation, state) = (*news.id(), news.incarnation(), news.state());
        if identity.node == self.me || self.expelled.contains(&identity.node) {
            return false;
        }
        let known = self.members.get(&identity.node).copied();
        if known
            .is_some_and(|known| known.identity == identity && known.incarnation == incarnation && known.state == state)
        {
            return false;
        }
        let told = known.and_then(|known| known.told);
        self.members.insert(identity.node, Member { identity, incarnation, state, since: now, told });
        self.tell(now, identity.node, out);
        if state == State::Suspect {
            self.set_alarm(now.plus(self.shown_after), Alarm::Show(identity.node));
        }
        state == State::Suspect
    }

    fn learn_left(&mut self, now: Timestamp, node: NodeId, generation: u64, out: &mut Vec<Effect>) {
        if node == self.me || self.expelled.contains(&node) {
            return;
        }
        self.left.insert(node, generation);
        if self.members.contains_key(&node) {
            self.tell(now, node, out);
        } else {
            out.push(Effect::Changed { node, generation, rumor: Rumor::Left });
        }
    }

    /// Tells what is now to be thought of a member, if it is something else than before.
    fn tell(&mut self, now: Timestamp, node: NodeId, out: &mut Vec<Effect>) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let generation = member.identity.generation;
        let has_left = self.left.get(&node).is_some_and(|left| *left >= generation);
        let rumor = match member.state {
            _ if has_left => Rumor::Left,
            State::Alive => Rumor::Alive,
            State::Suspect if now.since(member.since) >= self.shown_after => Rumor::Unreachable,
            // What was thought before holds until it had the time to deny.
            State::Suspect => return,
            State::Down => Rumor::Dead,
        };
        let told = (generation.max(self.left.get(&node).copied().filter(|_| has_left).unwrap_or(0)), rumor);
        if member.told != Some(told) {
            member.told = Some(told);
            out.push(Effect::Changed { node, generation: told.0, rumor });
        }
    }

    fn set_alarm(&mut self, at: Timestamp, alarm: Alarm) {
        self.alarms_set += 1;
        self.alarms.insert((at, self.alarms_set), alarm);
    }

    /// By how much probing is slower than [`PROBE_PERIOD`]: for the cluster's size and for this node's
    /// own health.
    fn scale(&self) -> u32 {
        let hundreds = self.members.len().div_ceil(SMALL).max(1);
        let size = 1 + hundreds.next_power_of_two().ilog2();
        size.min(4) * self.health.factor()
    }

    /// A rumor travels as often as the cluster's size needs.
    fn resize(&mut self) {
        let digits = u8::try_from((self.members.len() + 1).ilog10()).expect("a cluster has fewer than 10^255 nodes");
        // SWIM's λ·log n with λ = 4, and one round more for datagrams that are lost.
        let times = NonZeroU8::new(4 * (digits + 1)).expect("at least 4");
        if self.config.max_transmissions != times {
            self.config.max_transmissions = times;
            self.foca.set_config(self.config.clone()).expect("only how often a rumor travels has changed");
        }
    }
}

/// Whether a timer may lead to a verdict about another node.
fn judges(timer: &Timer<Identity>) -> bool {
    match timer {
        Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } | Timer::ChangeSuspectToDown { .. } => true,
        Timer::PeriodicAnnounce(_)
        | Timer::PeriodicAnnounceDown(_)
        | Timer::PeriodicGossip(_)
        | Timer::RemoveDown(_) => false,
    }
}

fn config() -> Config {
    let count = |n| NonZeroUsize::new(n).expect("more than none");
    let every = |seconds, n| Some(PeriodicParams { frequency: Duration::from_secs(seconds), num_members: count(n) });
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new(4).expect("more than none"),
        suspect_to_down_after: DEAD_AFTER,
        // Nodes are few, and come back with a new identity.
        remove_down_after: None,
        max_packet_size: count(MESSAGE_MAX),
        notify_down_members: true,
        periodic_announce: every(30, 1),
        // So that two sides that have given each other up find back together soon.
        periodic_announce_to_down_members: every(2, 2),
        // Only while there is news.
        periodic_gossip: Some(PeriodicParams { frequency: Duration::from_millis(200), num_members: count(3) }),
    }
}

#[cfg(test)]
mod tests;
