//! Leases, between the node's turns and its messages.
//!
//! # Invariants
//! - Renewals and questions go out before the node thinks of anything else; answers go when all that the turn
//!   brought into the log was looked through.

use super::Node;
use crate::event::{Effect, Now};
use crate::leading::Chore;
use crate::leases::{Question, Seen};
use crate::wire::{AskAges, Body};
use quorate_membership::{Membership as _, Opinion};
use quorate_model::command::Command;
use quorate_model::event::{Event, Happening};
use quorate_model::id::{NodeId, ServiceName};
use quorate_model::lease::LeaseCommand;
use quorate_model::observed::{Casting, Part};
use quorate_model::state::{Change, Health, ReplicaRecord};
use std::collections::BTreeSet;

/// As many leases as fit into one question.
const ASKED_AT_ONCE: usize = 1_024;

impl Node {
    /// Renews what is held here, and if this node leads, sees to what others no longer hold.
    pub(super) fn keep_leases(&mut self, now: Now, out: &mut Vec<Effect>) {
        let renewals = self.leases.holding.round(now);
        if !renewals.is_empty() {
            let voters = self.lease_voters();
            for message in renewals {
                self.ask_voters(&voters, || Body::Renew(message.clone()), out);
            }
        }
        if !self.leads() {
            return;
        }
        let (membership, me, leading) = (&self.membership, self.me.id, &self.leading);
        let todo = self.leases.raising.look(&Seen {
            now: now.mono,
            waited: now.waited,
            term: self.consensus.term(),
            state: &self.state,
            voting: &self.leases.voting,
            hears: |node: NodeId| node == me || membership.opinion(node) == Opinion::Heard,
            on_its_way: |name: &ServiceName| leading.is_on_its_way(&Chore::Lease(name.clone())),
        });
        for command in todo.propose {
            let chore = Chore::Lease(command.name().clone());
            self.ask(now, Command::Lease(command), chore);
        }
        if !todo.ask.is_empty() {
            let voters: BTreeSet<NodeId> = self.leases.voting.voters().nodes().collect();
            let term = self.consensus.term().0;
            for leases in todo.ask.chunks(ASKED_AT_ONCE) {
                self.ask_voters(&voters, || Body::AskAges(AskAges { term, leases: leases.to_vec() }), out);
            }
        }
    }

    /// Takes note of whom a lease was taken from, and when that node was last heard.
    pub(super) fn note_losses(&mut self, changes: &[Change]) {
        for change in changes {
            let Change::Event(Event { what: Happening::LeaseRaised { service, node, epoch }, .. }) = change else {
                continue;
            };
            if let Some(heard) = self.last_word.get(node).or_else(|| self.fell_silent.get(node)) {
                self.leases.measuring.lost(service, *epoch, *node, *heard);
            }
        }
    }

    /// What is to be written down of failovers that are over, if this node leads.
    pub(super) fn measure(&mut self, now: Now) -> Vec<(Command, Chore)> {
        let peers = &self.peers;
        let runs = |replica: &ReplicaRecord| {
            let epoch = replica.lease.map(|lease| lease.epoch);
            let report = peers.get(&replica.node).filter(|peer| peer.fresh).map(|peer| &peer.report.replicas);
            let status = report.and_then(|all| all.iter().find(|status| status.replica == replica.id));
            // Of several copies that run, the one that is active counts.
            let is_cast = |casting: Casting| casting.part == Part::Active && Some(casting.epoch) == epoch;
            status.is_some_and(|status| status.pid.is_some() && status.casting.is_none_or(is_cast))
        };
        let measured = self.leases.measuring.look(now.mono, &self.state, runs);
        let wish = |command: LeaseCommand| {
            let chore = Chore::Lease(command.name().clone());
            (Command::Lease(command), chore)
        };
        let leads = self.consensus.leads();
        let wishes = measured.into_iter().filter(|_| leads).map(wish);
        wishes.filter(|(_, chore)| !self.leading.is_on_its_way(chore)).collect()
    }

    /// What this node wanted to end as the leader is the next one's to judge: it may have found the holder well.
    pub(super) fn drop_lease_chores(&mut self) {
        let (requests, leading) = (&mut self.requests, &mut self.leading);
        self.chores.retain(|id, chore| {
            let keep = !matches!(chore, Chore::Lease(_));
            if !keep {
                requests.done(*id);
                leading.done(chore);
            }
            keep
        });
    }

    /// Those of the newest configuration in the log, and of the one in force.
    fn lease_voters(&self) -> BTreeSet<NodeId> {
        let in_force = self.configuration().halves().flatten().copied();
        self.leases.voting.voters().nodes().chain(in_force).collect()
    }

    fn ask_voters(&mut self, voters: &BTreeSet<NodeId>, message: impl Fn() -> Body, out: &mut Vec<Effect>) {
        for to in voters {
            match message() {
                Body::Renew(message) if *to == self.me.id => {
                    self.leases.voting.ask(*to, Question::Renew(message));
                }
                Body::AskAges(message) if *to == self.me.id => {
                    self.leases.voting.ask(*to, Question::Ages(message));
                }
                message => out.push(Effect::Send { to: *to, message }),
            }
        }
    }

    /// Answers what was asked of this node as a voter, as far as what it goes by is durable.
    pub(super) fn answer_about_leases(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.leases.voting.committed(self.consensus.committed());
        self.leases.voting.answer(now.waited, self.consensus.last_write());
        for (to, message) in self.leases.voting.say(|write| self.consensus.is_durable(write)) {
            if to == self.me.id {
                self.hear_of_leases(now, to, &message);
            } else {
                out.push(Effect::Send { to, message });
            }
        }
        let me = self.state.nodes.get(&self.me.id);
        let joined = me.is_some_and(|me| me.boot == self.boot && me.health == Health::Joined);
        let held = self.leases.holding.grown(joined);
        if !held.is_empty() {
            out.push(Effect::Hold(held));
        }
    }

    /// A voter answered.
    pub(super) fn hear_of_leases(&mut self, now: Now, from: NodeId, message: &Body) {
        match message {
            Body::Renewed(message) => self.leases.holding.acknowledged(now, from, message),
            Body::Ages(message) => self.leases.raising.answered(now.mono, from, message),
            _ => {}
        }
    }
}
