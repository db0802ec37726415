//! Which of several gateways holds a VIP.
//!
//! Every gateway that may hold one says so to the others each [`ADVERT_EVERY`]: whether it holds it, would, or
//! could not. Who hears of no holder takes it, the first choice first. No lease and no majority: gateways that
//! hear each other settle on one, those that do not each have one of their own, and the network believes
//! whoever announced itself last.
//!
//! ```text
//!             nobody holds it, it is my turn
//! Standby ─────────────────────────────────────▶ Holding(epoch)
//!    ▲  ▲            a newer claim is heard           │    │
//!    │  └─────────────────────────────────────────────┘    │
//!    └── fit again ── Unfit ◀── it cannot serve any more ──┘
//! ```
//! A *claim* is an epoch, one more than any that was heard of, and how many others were heard when it was made.
//! The newest claim wins and the other one gives up at once. When two that did not hear each other meet again,
//! both have raised their epoch, the one because it took the address and the other because it lost a
//! neighbour and kept it; then the one that had company wins, so that a gateway whose cable was pulled takes
//! nothing away when it comes back.
//!
//! # Invariants
//! - A holder stays one until it is unfit, ends, or hears a newer claim. One that comes back takes nothing.
//! - The time in which this process stood still does not count: nobody is called silent who had no chance to
//!   be heard. Whoever feeds this reads what has come in before it lets time pass.
//! - Of two that hear each other at most one holds an address for longer than a message takes.
//! - An address that nobody is known to have had is asked for on the network first.
//!
//! # Sources
//! RFC 5798 (VRRP) and keepalived, from which this differs: all gateways speak, so that a successor is known
//! before it is needed and nobody waits out of mere politeness; priorities decide who is next and never take
//! an address from who has it; and datagrams are sealed.

use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// Between two adverts of a gateway.
pub const ADVERT_EVERY: Duration = Duration::from_millis(100);
/// Who was not heard for this long is silent: three adverts, so that one or two may get lost.
pub const SILENT_AFTER: Duration = Duration::from_millis(300);
/// How long a gateway that has just begun listens before it takes an address that nobody seems to hold.
pub const LISTEN: Duration = Duration::from_millis(400);
/// How long one waits for each that comes before it and could take the address.
const TURN: Duration = Duration::from_millis(150);
/// Waiting for more than these helps nobody.
const TURNS_MAX: usize = 3;
/// Between the questions whether a stranger has the address.
const ASK_EVERY: Duration = Duration::from_millis(150);
/// How long a stranger is believed.
const STRANGER_FOR: Duration = Duration::from_secs(5);
/// Steps come at least each [`ADVERT_EVERY`]. If one comes this late, this process stood still.
const STOOD_STILL: Duration = Duration::from_millis(200);

/// Why one of two holders wins: the larger claim does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// At least 1.
    pub epoch: u64,
    /// Others that were heard when the claim was made.
    pub witnesses: u32,
}

/// What a gateway has to do with a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    Holding(Claim),
    /// It would take it.
    Standby,
    /// It could not serve there, or is ending.
    Unfit,
}

/// A VIP and what the sender has to do with it.
pub type Word = (IpAddr, Stance);

/// What a gateway says of every VIP that it may hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Advert {
    /// Of the sender's process: another one counts anew.
    pub run: u64,
    /// Grows with each advert of that process. What is overtaken by a later one says nothing.
    pub sequence: u64,
    pub words: Vec<Word>,
}

/// A VIP that this gateway may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    pub ip: IpAddr,
    /// Everybody who may, this gateway too, the first choice first.
    pub order: Vec<NodeId>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// All VIPs that this gateway may hold, from now on.
    Seats(Vec<Seat>),
    /// Whether this gateway could serve at that address. Until it is told, it could not.
    Fit { ip: IpAddr, fit: bool },
    /// Somebody says on the network that it has an address.
    Stranger { ip: IpAddr },
    /// Of another gateway.
    Heard { from: NodeId, advert: Advert },
    /// This gateway ends.
    Leave,
    /// Nothing but that time has passed.
    Wake,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// To be sealed for `to` and sent.
    Send { to: NodeId, advert: Advert },
    /// Ask the network who has the address.
    Ask { ip: IpAddr },
    /// Put the address on, and announce it from now on.
    Take { ip: IpAddr, epoch: u64 },
    /// Take the address off, at once.
    GiveUp { ip: IpAddr, why: Why },
    /// Announce it anew: somebody else did meanwhile.
    Announce { ip: IpAddr },
}

/// Why an address is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// That gateway has a newer claim.
    Newer { holder: NodeId, epoch: u64 },
    /// This gateway could not serve there, or ends.
    Unfit,
    /// This gateway may not hold it any more, or the VIP was removed.
    NotMine,
}

/// One gateway's view of who holds what.
#[derive(Debug)]
pub struct Election {
    me: NodeId,
    seats: BTreeMap<IpAddr, State>,
    run: u64,
    sequence: u64,
    /// When each of the others was last heard.
    heard: BTreeMap<NodeId, Timestamp>,
    /// The last advert of each, by its run and sequence.
    last: BTreeMap<NodeId, (u64, u64)>,
    left: bool,
    /// Something has changed that the others should know at once.
    speak: bool,
    advert_at: Timestamp,
    last_step: Timestamp,
}

#[derive(Debug)]
struct State {
    order: Vec<NodeId>,
    fit: bool,
    stance: Stance,
    /// What the others said last.
    said: BTreeMap<NodeId, Stance>,
    /// The newest epoch that was heard of, or used.
    newest: u64,
    listening_since: Timestamp,
    asked_at: Option<Timestamp>,
    stranger_until: Option<Timestamp>,
    /// Since when nobody holds it.
    vacant_since: Option<Timestamp>,
    /// While it is held here: who was heard, of those that may hold it.
    company: BTreeSet<NodeId>,
    /// While it is held here: when the claim was made.
    claimed_at: Timestamp,
    /// While it is held here: somebody else claims it.
    contested: bool,
    /// When there is something to do, if nothing happens.
    wake: Option<Timestamp>,
}

impl Election {
    /// `run` differs from process to process of this node.
    #[must_use]
    pub fn new(me: NodeId, run: u64, now: Timestamp) -> Election {
        Election {
            me,
            run,
            sequence: 0,
            seats: BTreeMap::new(),
            heard: BTreeMap::new(),
            last: BTreeMap::new(),
            left: false,
            speak: false,
            advert_at: now,
            last_step: now,
        }
    }

    /// Feeds one input. Effects are appended to `out` in the order in which they must be performed.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Effect>) {
        self.leave_out_standstill(now);
        match input {
            Input::Seats(seats) => self.seats(now, seats, out),
            Input::Fit { ip, fit } => {
                if let Some(state) = self.seats.get_mut(&ip) {
                    state.fit = fit;
                }
            }
            Input::Stranger { ip } => {
                // Of an address that a gateway had or has, its kernel may well be who says so.
                let concerns = |state: &&mut State| state.newest == 0 || matches!(state.stance, Stance::Holding(_));
                if let Some(state) = self.seats.get_mut(&ip).filter(concerns) {
                    state.stranger_until = Some(now.plus(STRANGER_FOR));
                }
            }
            Input::Heard { from, advert } => self.heard(now, from, &advert),
            Input::Leave => self.left = true,
            Input::Wake => {}
        }
        for (ip, state) in &mut self.seats {
            let room = Room { me: self.me, heard: &self.heard, now, left: self.left };
            self.speak |= state.look(*ip, &room, out);
        }
        self.advertise(now, out);
    }

    /// When [`Input::Wake`] is due.
    #[must_use]
    pub fn next_wake(&self) -> Timestamp {
        self.seats.values().filter_map(|state| state.wake).fold(self.advert_at, Timestamp::min)
    }

    /// What this gateway has to do with a VIP; `None` if it may not hold it.
    #[must_use]
    pub fn stance(&self, ip: IpAddr) -> Option<Stance> {
        self.seats.get(&ip).map(|state| state.stance)
    }

    /// Which other gateway is heard to hold it.
    #[must_use]
    pub fn holder(&self, ip: IpAddr) -> Option<NodeId> {
        let room = Room { me: self.me, heard: &self.heard, now: self.last_step, left: self.left };
        self.seats.get(&ip)?.holder(&room).map(|(node, _)| node)
    }

    /// Whether somebody else says that it has an address that is held here.
    #[must_use]
    pub fn is_contested(&self, ip: IpAddr) -> bool {
        self.seats.get(&ip).is_some_and(|state| state.contested)
    }

    fn leave_out_standstill(&mut self, now: Timestamp) {
        let gap = now.since(self.last_step);
        if gap >= STOOD_STILL {
            for heard in self.heard.values_mut().filter(|heard| self.last_step.since(**heard) < SILENT_AFTER) {
                *heard = heard.plus(gap);
            }
            for state in self.seats.values_mut() {
                state.listening_since = state.listening_since.plus(gap);
                state.vacant_since = state.vacant_since.map(|since| since.plus(gap));
            }
        }
        self.last_step = now;
    }

    fn seats(&mut self, now: Timestamp, seats: Vec<Seat>, out: &mut Vec<Effect>) {
        let mut before = std::mem::take(&mut self.seats);
        for Seat { ip, order } in seats.into_iter().filter(|seat| seat.order.contains(&self.me)) {
            let state = before.remove(&ip).unwrap_or_else(|| State::new(now));
            self.seats.insert(ip, State { order, ..state });
        }
        for (ip, state) in before {
            if matches!(state.stance, Stance::Holding(_)) {
                out.push(Effect::GiveUp { ip, why: Why::NotMine });
            }
        }
        self.speak = true;
        let known: BTreeSet<NodeId> = self.others().collect();
        self.heard.retain(|node, _| known.contains(node));
        self.last.retain(|node, _| known.contains(node));
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        let all: BTreeSet<NodeId> = self.seats.values().flat_map(|state| state.order.iter().copied()).collect();
        all.into_iter().filter(|node| *node != self.me)
    }

    fn heard(&mut self, now: Timestamp, from: NodeId, advert: &Advert) {
        let overtaken = |last: &(u64, u64)| last.0 == advert.run && last.1 >= advert.sequence;
        if from == self.me || self.last.get(&from).is_some_and(overtaken) {
            return;
        }
        self.last.insert(from, (advert.run, advert.sequence));
        self.heard.insert(from, now);
        let words: BTreeMap<IpAddr, Stance> = advert.words.iter().copied().collect();
        for (ip, state) in &mut self.seats {
            match words.get(ip) {
                Some(stance) => {
                    state.said.insert(from, *stance);
                    // Whoever holds it wrongly hears of it at once, not at the next round.
                    self.speak |= matches!(stance, Stance::Holding(_)) && matches!(state.stance, Stance::Holding(_));
                }
                None => {
                    state.said.remove(&from);
                }
            }
        }
    }

    fn advertise(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if !self.speak && now < self.advert_at {
            return;
        }
        self.speak = false;
        self.advert_at = now.plus(ADVERT_EVERY);
        self.sequence += 1;
        let (run, sequence) = (self.run, self.sequence);
        let advert =
            Advert { run, sequence, words: self.seats.iter().map(|(ip, state)| (*ip, state.stance)).collect() };
        out.extend(self.others().map(|to| Effect::Send { to, advert: advert.clone() }));
    }
}

/// What a seat has to know of the rest.
struct Room<'a> {
    me: NodeId,
    heard: &'a BTreeMap<NodeId, Timestamp>,
    now: Timestamp,
    left: bool,
}

impl Room<'_> {
    /// Until when a node that is heard counts as heard.
    fn heard_until(&self, node: NodeId) -> Option<Timestamp> {
        self.heard.get(&node).map(|heard| heard.plus(SILENT_AFTER)).filter(|until| *until > self.now)
    }
}

impl State {
    fn new(now: Timestamp) -> State {
        State {
            order: Vec::new(),
            fit: false,
            stance: Stance::Unfit,
            said: BTreeMap::new(),
            newest: 0,
            listening_since: now,
            asked_at: None,
            stranger_until: None,
            vacant_since: None,
            company: BTreeSet::new(),
            claimed_at: now,
            contested: false,
            wake: None,
        }
    }

    /// Whoever else is heard to hold it, with the newest claim.
    fn holder(&self, room: &Room<'_>) -> Option<(NodeId, Claim)> {
        let claims = self.said.iter().filter_map(|(node, stance)| match stance {
            Stance::Holding(claim) if room.heard_until(*node).is_some() => Some((*node, *claim)),
            Stance::Holding(_) | Stance::Standby | Stance::Unfit => None,
        });
        claims.max_by_key(|(node, claim)| (*claim, *node))
    }

    /// Draws the conclusions. Whether the others should hear of it at once.
    fn look(&mut self, ip: IpAddr, room: &Room<'_>, out: &mut Vec<Effect>) -> bool {
        self.wake = None;
        self.stranger_until = self.stranger_until.filter(|until| *until > room.now);
        let holder = self.holder(room);
        if let Some((_, claim)) = holder {
            self.newest = self.newest.max(claim.epoch);
        }
        let before = self.stance;
        match before {
            Stance::Holding(mine) => self.hold(ip, mine, holder, room, out),
            Stance::Standby | Stance::Unfit => self.stand_by(ip, holder, room, out),
        }
        self.stance != before
    }

    fn hold(
        &mut self,
        ip: IpAddr,
        mine: Claim,
        holder: Option<(NodeId, Claim)>,
        room: &Room<'_>,
        out: &mut Vec<Effect>,
    ) {
        let newer = holder.filter(|(node, claim)| (*claim, *node) > (mine, room.me));
        let unfit = !self.fit || room.left;
        if unfit || newer.is_some() {
            let why = newer.map_or(Why::Unfit, |(holder, claim)| Why::Newer { holder, epoch: claim.epoch });
            out.push(Effect::GiveUp { ip, why });
            self.stance = if unfit { Stance::Unfit } else { Stance::Standby };
            (self.contested, self.vacant_since) = (false, None);
            self.company.clear();
            return;
        }
        let company = self.company(room);
        if !self.company.is_subset(&company) {
            // Whoever was lost may have taken the address, if it lives: this claim is as new as that one. Those
            // who are lost together are not noticed together, and count as one.
            if room.now.since(self.claimed_at) >= SILENT_AFTER {
                self.newest += 1;
                self.claimed_at = room.now;
            }
            self.stance = Stance::Holding(Claim { epoch: self.newest, witnesses: count(&company) });
        }
        self.company = company;
        match (holder.is_some() || self.stranger_until.is_some(), self.contested) {
            (true, _) => self.contested = true,
            (false, true) => {
                self.contested = false;
                out.push(Effect::Announce { ip });
            }
            (false, false) => {}
        }
        // When somebody falls silent, and when a stranger is not believed any more.
        let silent = self.company.iter().filter_map(|node| room.heard_until(*node));
        self.wake = silent.chain(self.stranger_until).min();
    }

    fn stand_by(&mut self, ip: IpAddr, holder: Option<(NodeId, Claim)>, room: &Room<'_>, out: &mut Vec<Effect>) {
        let now = room.now;
        let fit = self.fit && !room.left && self.stranger_until.is_none();
        if self.stance == Stance::Unfit && fit && self.newest == 0 {
            // What was heard while it did not matter is no reason to take anything.
            (self.listening_since, self.asked_at) = (now, None);
        }
        self.stance = if fit { Stance::Standby } else { Stance::Unfit };
        if let Some((node, _)) = holder {
            self.vacant_since = None;
            self.wake = room.heard_until(node);
            return;
        }
        let vacant_since = *self.vacant_since.get_or_insert(now);
        if !fit {
            self.wake = self.stranger_until;
            return;
        }
        let first = self.order.iter().take_while(|node| **node != room.me);
        let would =
            |node: &&NodeId| room.heard_until(**node).is_some() && self.said.get(*node) == Some(&Stance::Standby);
        let turns = first.filter(would).count().min(TURNS_MAX);
        let mut from = vacant_since;
        let mut ask_at = None;
        if self.newest == 0 {
            from = from.max(self.listening_since.plus(LISTEN));
            // Not at once: a holder that is heard by then need not be asked.
            let mut next = self.asked_at.unwrap_or(self.listening_since).plus(ASK_EVERY);
            if next <= now {
                self.asked_at = Some(now);
                out.push(Effect::Ask { ip });
                next = now.plus(ASK_EVERY);
            }
            ask_at = Some(next);
        }
        let due = from.plus(TURN * u32::try_from(turns).unwrap_or(u32::MAX));
        if now < due {
            self.wake = ask_at.into_iter().chain([due]).min();
            return;
        }
        self.newest += 1;
        self.claimed_at = now;
        self.company = self.company(room);
        self.stance = Stance::Holding(Claim { epoch: self.newest, witnesses: count(&self.company) });
        self.vacant_since = None;
        out.push(Effect::Take { ip, epoch: self.newest });
    }

    fn company(&self, room: &Room<'_>) -> BTreeSet<NodeId> {
        let others = self.order.iter().filter(|node| **node != room.me);
        others.copied().filter(|node| room.heard_until(*node).is_some()).collect()
    }
}

fn count(nodes: &BTreeSet<NodeId>) -> u32 {
    u32::try_from(nodes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
