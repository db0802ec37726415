//! What this node asks of the cluster, and what it does as the leader.
//!
//! # Invariants
//! - What it asks by itself carries a request id and is asked again until it is answered or given up.
//! - Wishes about members are judged by whoever proposes them, at that moment.

use super::{ASK_AGAIN, Handover, Leaving, Node, OWN_PATIENCE, PeerView, STATUS_EVERY};
use crate::consensus::{CAUGHT_UP_ENTRIES, NotProposed};
use crate::event::{Effect, Now, Ticket, TransferFailed};
use crate::leading::{Chore, Seen, unheard_by_majority};
use crate::wire::{Body, Transfer};
use crate::{censor, electorate};
use prost::Message as _;
use quorate_model::assignment::Assignment;
use quorate_model::command::Command;
use quorate_model::entry::{Envelope, Proposal};
use quorate_model::id::{NodeId, RequestId};
use quorate_model::member::MemberCommand;
use quorate_model::member::managers::Harm;
use quorate_model::state::Health;
use quorate_model::time::Timestamp;
use quorate_scheduler::Survey;
use rand_chacha::rand_core::Rng as _;
use std::collections::BTreeMap;

impl Node {
    pub(super) fn transfer(
        &mut self,
        now: Now,
        ticket: Ticket,
        to: NodeId,
        deadline: Timestamp,
        out: &mut Vec<Effect>,
    ) {
        let answer = |result| Effect::Transferred { ticket, result };
        if !self.voters().contains(&to) {
            out.push(answer(Err(TransferFailed::UnknownNode)));
            return;
        }
        match self.leader() {
            None => out.push(answer(Err(TransferFailed::NoLeader))),
            Some(leader) if leader == to => out.push(answer(Ok(()))),
            Some(leader) => {
                if self.leads() {
                    self.consensus.transfer(to.raft_id());
                } else {
                    out.push(Effect::Send { to: leader, message: Body::Transfer(Transfer::new(to)) });
                }
                self.transfers.push(Handover { ticket, to, began: now.mono, deadline });
            }
        }
    }

    /// This node is about to end. The cluster is told first, and then led by another.
    pub(super) fn leave(&mut self, now: Now) {
        if self.leaving != Leaving::No {
            return;
        }
        self.leaving = Leaving::Asked;
        let me = self.state.nodes.get(&self.me.id).filter(|me| me.boot == self.boot && me.health != Health::Left);
        if let Some(me) = me {
            let command = MemberCommand::Leave { node: self.me.id, generation: me.generation };
            self.ask(now, Command::Member(command), Chore::Leave);
        }
        self.plan_due = true;
    }

    /// Hands leadership over before this node ends, and says when nothing is left to wait for.
    pub(super) fn end(&mut self, out: &mut Vec<Effect>) {
        if self.leaving != Leaving::Asked {
            return;
        }
        let heir = self.consensus.best_follower(&self.alive()).filter(|_| self.leads());
        if let Some(heir) = heir {
            if !self.consensus.hands_over() {
                self.consensus.transfer(heir);
            }
            return;
        }
        let told = self.chores.values().all(|chore| *chore != Chore::Leave);
        if told {
            self.leaving = Leaving::Done;
            out.push(Effect::Left);
        }
    }

    /// A mutation of the node's own.
    pub(super) fn ask(&mut self, now: Now, command: Command, chore: Chore) {
        let id = RequestId::from_u128(u128::from(self.rng.next_u64()) << 64 | u128::from(self.rng.next_u64()));
        let proposal = Proposal::command(id, &command);
        if self.requests.accept(now.mono, proposal, now.mono.plus(OWN_PATIENCE)) {
            self.leading.begun(&chore);
            self.chores.insert(id, chore);
        }
    }

    pub(super) fn propose_as_leader(&mut self, now: Now, proposal: Proposal) -> Result<(), NotProposed> {
        self.stamped = self.stamped.max(self.clocks.stamp(now));
        let seed = self.rng.next_u64();
        let proposal = match censor::objection(&proposal, self, now) {
            Some(why) => proposal.withheld(why),
            None => proposal,
        };
        self.consensus.propose(Envelope::stamp(proposal, self.stamped, seed).encode_to_vec())
    }

    /// What only the leader does: verdicts on nodes, plans, the record of what happened.
    pub(super) fn lead(&mut self, now: Now, out: &mut Vec<Effect>) {
        let long_ago = now.mono.since(self.last_planned) >= STATUS_EVERY;
        if !std::mem::take(&mut self.plan_due) && !long_ago {
            return;
        }
        // Whoever does not lead only shows what is held, and notes since when: now and then is enough.
        if long_ago || self.consensus.leads() {
            self.plan(now);
        }
        self.register(now);
        self.hand_over_requests(now, out);
        self.reconcile_voters(now);
    }

    /// What should run where, and what this node asks for if it leads.
    fn plan(&mut self, now: Now) {
        self.last_planned = now.mono;
        let last_word = &self.last_word;
        let given_up = self.leases.raising.given_up(|node| last_word.get(&node).copied());
        let seen = Seen {
            me: self.me.id,
            now,
            configuration: self.consensus.configuration(),
            membership: &self.membership,
            peers: &self.peers,
            state: &self.state,
            given_up,
        };
        let plan = self.leading.plan(&seen);
        self.changed |= plan.held != self.plan.held;
        let wishes = if self.consensus.leads() { self.leading.wishes(&seen, &plan) } else { Vec::new() };
        self.plan = plan;
        let measured = self.measure(now);
        let drill = self.measure_drill(now);
        for (command, chore) in wishes.into_iter().chain(measured).chain(drill) {
            self.ask(now, command, chore);
        }
    }

    /// What a plan would be made of now.
    pub(super) fn survey(&self, now: Now) -> Survey {
        let seen = Seen {
            me: self.me.id,
            now,
            configuration: self.consensus.configuration(),
            membership: &self.membership,
            peers: &self.peers,
            state: &self.state,
            given_up: self.leases.raising.given_up_last(),
        };
        self.leading.survey(&seen)
    }

    /// The next step towards the voters that there should be, if this node leads.
    pub(super) fn reconcile_voters(&mut self, now: Now) {
        let step = if self.leads() { self.with_electorate(now, electorate::next) } else { None };
        self.changed |= step != self.electorate;
        match step.as_ref().map(|step| &step.action) {
            // Not taken, because another change is on its way: the next look asks again.
            Some(electorate::Action::Change(to)) => {
                let _ = self.consensus.reconfigure(to);
            }
            Some(electorate::Action::HandOver(to)) if !self.consensus.hands_over() => {
                self.consensus.transfer(to.raft_id());
            }
            Some(electorate::Action::HandOver(_) | electorate::Action::Wait) | None => {}
        }
        self.electorate = step;
    }

    /// Whether a wish about a voter would harm the cluster, as this node sees it. The leader sees best, so
    /// it asks this of every command that it proposes, whoever wants it.
    ///
    /// # Errors
    /// [`Harm`], for people.
    pub fn judge(&self, now: Now, wish: electorate::Wish<'_>) -> Result<(), Harm> {
        self.with_electorate(now, |electorate| electorate::judge(electorate, wish))
    }

    pub(crate) fn with_electorate<T>(&self, now: Now, look: impl FnOnce(&electorate::Electorate<'_>) -> T) -> T {
        let configuration = self.configuration();
        let away = |node: &NodeId| Some((*node, unheard_by_majority(&self.membership, *node, configuration, now)?));
        let heard = configuration.nodes().into_iter().filter(|node| self.hears(*node)).collect();
        let unheard_for = configuration.nodes().iter().filter_map(away).collect();
        let caught_up = match self.leads() {
            true => self.consensus.caught_up(),
            // A follower goes by what nodes say of themselves.
            false => {
                let near = |peer: &PeerView| self.applied.0.saturating_sub(peer.applied.0) <= CAUGHT_UP_ENTRIES;
                self.peers.iter().filter(|(_, peer)| near(peer)).map(|(node, _)| *node).collect()
            }
        };
        look(&electorate::Electorate {
            me: self.leader().unwrap_or(self.me.id),
            configuration,
            nodes: &self.state.nodes,
            expelled: &self.state.members.expelled,
            heard: &heard,
            unheard_for: &unheard_for,
            caught_up: &caught_up,
            replace_voter_after: self.replace_voter_after,
        })
    }

    /// Each node says itself who it is, at every start, and when it was taken for dead; and that it
    /// leaves, when it is told to end.
    pub(super) fn register(&mut self, now: Now) {
        // A node that ends would come back with its last breath; one that was expelled never does.
        if self.leaving != Leaving::No || self.state.members.expelled.contains(&self.me.id) {
            return;
        }
        if self.leader().is_none() || self.chores.values().any(|chore| *chore == Chore::Register) {
            return;
        }
        let registered = self.state.nodes.get(&self.me.id).is_some_and(|known| {
            known.boot == self.boot && known.identity == known.registered(&self.me) && known.health == Health::Joined
        });
        let lately = self.refused.as_ref().is_some_and(|(at, _)| now.mono.since(*at) < ASK_AGAIN);
        if !registered && !lately {
            let command = Command::RegisterNode { node: self.me.clone(), boot: self.boot };
            self.ask(now, command, Chore::Register);
        }
    }

    pub(super) fn assign(&mut self, out: &mut Vec<Effect>) {
        // Before it has caught up, this node's database may still want replicas that the others
        // have long replaced.
        if !self.caught_up || self.assigned.as_ref().is_some_and(|known| known.revision == self.state.planned_on) {
            return;
        }
        let assignment = self.state.assignment(self.me.id);
        if self
            .assigned
            .as_ref()
            .is_none_or(|known| (&known.replicas, &known.scrapes) != (&assignment.replicas, &assignment.scrapes))
        {
            out.push(Effect::Assign(assignment.clone()));
        }
        self.assigned = Some(assignment);
    }

    /// What runs here runs elsewhere, or is not wanted any more.
    pub(super) fn stop_replicas(&mut self, out: &mut Vec<Effect>) {
        if self.assigned.as_ref().is_some_and(|known| known.replicas.is_empty()) {
            return;
        }
        // No older than anything that this node was ever assigned: each was applied, so it is in the log.
        let (node, revision) = (self.me.id, self.consensus.last());
        let nothing = Assignment { node, revision, replicas: Vec::new(), scrapes: BTreeMap::new() };
        out.push(Effect::Assign(nothing.clone()));
        self.assigned = Some(nothing);
    }
}
