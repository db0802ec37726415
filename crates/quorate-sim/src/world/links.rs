//! What stands for the server's links: messages, connections, and what cuts do to them.

use super::{What, World};
use crate::machine::Machine;
use crate::network::SILENCE;
use crate::seen::Seen;
use quorate_model::id::NodeId;
use quorate_node::Event;
use quorate_node::wire::Body;
use raft_kinds::{APPEND, APPEND_RESPONSE, HEARTBEAT, VOTE, VOTE_RESPONSE};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The message kinds of Raft that promise something, by their numbers on the wire.
mod raft_kinds {
    pub(super) const APPEND: i32 = 3;
    pub(super) const APPEND_RESPONSE: i32 = 4;
    pub(super) const VOTE: i32 = 5;
    pub(super) const VOTE_RESPONSE: i32 = 6;
    pub(super) const HEARTBEAT: i32 = 8;
}

impl World {
    pub(super) fn number_of(&self, id: NodeId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.id == id)
    }

    pub(super) fn send(&mut self, from: usize, to: NodeId, message: Body) {
        let Some(to) = self.number_of(to) else { return };
        self.promise(from, &message);
        let link = self.network.link(from, to);
        if !link.up {
            return;
        }
        let connection = link.connection;
        let life = self.machines[to].life;
        let [first, second] = self.network.arrivals(self.now, from, to);
        if let Some(at) = second {
            let body = Box::new(message.clone());
            self.at(at, What::Arrive { from, to, life, connection, body });
        }
        if let Some(at) = first {
            self.at(at, What::Arrive { from, to, life, connection, body: Box::new(message) });
        }
    }

    /// What a node says about its log and its vote must be on its disk.
    pub(super) fn promise(&mut self, n: usize, message: &Body) {
        let Body::Raft(raft) = message else { return };
        let Some(process) = &self.machines[n].process else { return };
        let durable = process.durable;
        if raft.reject {
            return;
        }
        if raft.kind == APPEND
            && let Some(first) = raft.entries.first()
            && first.index != raft.index + 1
        {
            let last = raft.entries.last().map(|entry| entry.index);
            let what = format!("n{} sends entries {} to {last:?} after {}", n + 1, first.index, raft.index);
            self.broken("entries_follow_each_other", what);
        }
        if raft.kind == APPEND_RESPONSE {
            self.trace.say(self.now, format_args!("n{} acknowledges {:?}", n + 1, raft));
            // A word in an older term than the one on disk promises nothing any more: a node that was
            // stopped takes an append, and the next leader's that replaces it, in one turn, and says
            // both once the end of it is on disk. No majority can count it: who led the later term was
            // elected by one without that entry.
            if raft.term >= durable.term {
                self.show(&Seen::Acknowledged { machine: n, index: raft.index, durable: durable.last });
            }
        } else if [VOTE_RESPONSE, VOTE, APPEND, HEARTBEAT].contains(&raft.kind) {
            // Who stands, or leads, has voted for itself.
            let candidate = if raft.kind == VOTE_RESPONSE { raft.to } else { raft.from };
            self.show(&Seen::Voted { machine: n, term: raft.term, candidate, durable });
        }
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, life: u64, connection: u64, body: Body) {
        let link = self.network.link(from, to);
        if !link.up || link.connection != connection || !self.alive(to, life) {
            return;
        }
        if let Body::Raft(raft) = &body {
            self.trace.note(self.now, "raft", to, raft.kind.unsigned_abs().into(), raft.index);
        }
        let from = self.machines[from].id;
        self.tell(to, Event::Received { from, message: body });
    }

    pub(super) fn dial(&mut self, from: usize, to: usize, life: u64) {
        let called = |machine: &Machine| machine.process.as_ref().is_some_and(|process| process.calls.contains(&to));
        if !self.alive(from, life) || self.network.link(from, to).up || !called(&self.machines[from]) {
            return;
        }
        let answers = self.machines[to].process.is_some() && self.network.connects(from, to);
        if !answers {
            let pause = self.dice.between(20_000, 250_000);
            self.later(Duration::from_micros(pause), What::Dial { from, to, life });
            return;
        }
        let link = self.network.link(from, to);
        link.up = true;
        link.connection += 1;
        let peer = self.machines[to].id;
        self.trace.note(self.now, "link up", from, to as u64, 0);
        self.tell(from, Event::LinkUp { peer });
        let caller = self.machines[from].identity();
        self.tell(to, Event::Called { peer: caller.id, link: caller.link });
    }

    /// A node keeps links to these and to no others.
    pub(super) fn call(&mut self, from: usize, peers: &BTreeMap<NodeId, Vec<String>>) {
        // Where nobody knows the address, nobody can be called.
        let known = peers.iter().filter(|(_, links)| !links.is_empty());
        let wanted: BTreeSet<usize> = known.filter_map(|(peer, _)| self.number_of(*peer)).collect();
        let life = self.machines[from].life;
        let process = self.machines[from].process.as_mut().expect("alive");
        let before = std::mem::replace(&mut process.calls, wanted.clone());
        for gone in before.difference(&wanted) {
            self.network.link(from, *gone).up = false;
        }
        for to in wanted.difference(&before) {
            let dial = self.dice.between(100, 3_000);
            self.later(Duration::from_micros(dial), What::Dial { from, to: *to, life });
        }
    }

    pub(super) fn ended(&mut self, from: usize, to: usize, life: u64, connection: u64, refused: bool) {
        if !self.alive(from, life) || self.network.link(from, to).connection != connection {
            return;
        }
        if !std::mem::replace(&mut self.network.link(from, to).up, false) {
            return;
        }
        let peer = self.machines[to].id;
        // Whoever is back already does not refuse.
        let refused = refused && self.machines[to].process.is_none();
        self.trace.note(self.now, "link down", from, to as u64, refused.into());
        self.tell(from, Event::LinkDown { peer, refused });
        let pause = self.dice.between(2_000, 100_000);
        self.later(Duration::from_micros(pause), What::Dial { from, to, life });
    }

    /// A direction is cut: the connections that need it end when they have been silent for too long.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.network.link(from, to).cuts += 1;
        for (a, b) in [(from, to), (to, from)] {
            let link = self.network.link(a, b);
            if link.up {
                let connection = link.connection;
                let life = self.machines[a].life;
                self.later(SILENCE, What::Ended { from: a, to: b, life, connection, refused: false });
            }
        }
    }

    /// A cut is over. A connection that has not ended by now ends all the same, when its silence would
    /// have been too long: on TCP that depends on when it sends again.
    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        let link = self.network.link(from, to);
        link.cuts = link.cuts.saturating_sub(1);
    }
}
