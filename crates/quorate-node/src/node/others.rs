//! What this node hears of the others, and what it tells them of itself.
//!
//! # Invariants
//! - A peer speaks for itself only.
//! - Whoever is not heard is told to nobody as heard: reports name links that carried a word lately.

use super::{Node, PEER_SILENCE, PeerView, STATUS_EVERY};
use crate::digests::Difference;
use crate::event::{Effect, Now};
use crate::leading::Chore;
use crate::leases::Question;
use crate::wire::{Body, Status};
use quorate_membership::{Input, Membership as _};
use quorate_model::command::Command;
use quorate_model::event::Happening;
use quorate_model::id::{LogIndex, NodeId};
use quorate_model::observed::{GatewayReport, NodeReport};
use quorate_model::resource::Amount;
use quorate_model::time::Timestamp;
use quorate_model::traffic::Traffic;
use raft::eraftpb;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

impl Node {
    /// How long a node may be silent before it is shown as unreachable, as far as its link says so;
    /// [`PEER_SILENCE`] unless set, and never shorter. It is called down no sooner than shown, unless
    /// its replicas have to be replaced by then.
    pub fn show_unreachable_after(&mut self, silence: Duration) {
        self.lost_link_kept_back = silence.saturating_sub(PEER_SILENCE);
        self.leading.patient(self.lost_link_kept_back);
    }

    /// The directory with the log of this node's server, which the others are told of. Empty: it has none.
    pub fn keeps_its_log_in(&mut self, dir: String) {
        self.log_dir = dir;
    }

    /// What replicas may have of this node together, which the others are told of.
    pub fn offers(&mut self, capacity: Amount) {
        self.capacity = Some(capacity);
    }

    pub(super) fn receive(&mut self, now: Now, from: NodeId, message: Body) {
        // One that this node has not heard of may lead a cluster that has moved on; it speaks for itself.
        if self.state.members.expelled.contains(&from) {
            return;
        }
        self.changed |= self.sights.spoke(from);
        let known = self.book.is_peer(from);
        if known && self.last_word.insert(from, now.mono).is_none() {
            // It was silent and speaks again, or spoke before its link was up.
            self.membership.step(now.mono, Input::LinkUp(from));
            self.own_status_changed(now);
        }
        match message {
            Body::Raft(message) => {
                // A peer speaks for itself only.
                if message.from == from.raft_id()
                    && let Ok(message) = eraftpb::Message::try_from(message)
                {
                    self.consensus.receive(message);
                    if self.consensus.leader() == Some(from.raft_id()) {
                        self.leader_heard = Some(now.mono);
                    }
                }
            }
            Body::Forward(_)
            | Body::Status(_)
            | Body::Transfer(_)
            | Body::Renew(_)
            | Body::Renewed(_)
            | Body::AskAges(_)
            | Body::Ages(_)
                if !known => {}
            Body::Forward(forward) => {
                for proposal in forward.proposals {
                    if let Ok(proposal) = proposal.proposal() {
                        // Not taken: its sender sends it again, to whoever leads then.
                        let _ = self.propose_as_leader(now, proposal);
                    }
                }
            }
            Body::Status(status) => self.heard_status(now, from, &status),
            // By one who decides as well: nobody else can make this node end.
            Body::Remembered(remembered) if self.configuration().halves().any(|half| half.contains(&from)) => {
                self.consensus.reminded(LogIndex(remembered.applied));
            }
            Body::Remembered(_) => {}
            Body::Transfer(transfer) => {
                if let Ok(to) = transfer.node() {
                    self.consensus.transfer(to.raft_id());
                }
            }
            Body::Renew(message) => self.leases.voting.ask(from, Question::Renew(message)),
            Body::AskAges(message) => self.leases.voting.ask(from, Question::Ages(message)),
            Body::Renewed(_) | Body::Ages(_) => self.hear_of_leases(now, from, &message),
            // The shell's own: a connection's first frame, what a bulk connection carries, gossip's.
            Body::Hello(_) | Body::Snapshot(_) | Body::Ping(_) | Body::GossipKeys(_) => {}
            // Between the shells as well: pieces of logs, and values of secrets, which have no business in a core.
            Body::LogQuestion(_) | Body::LogAnswer(_) | Body::AskSecrets(_) | Body::GiveSecrets(_) => {}
            // And whether a node can log in somewhere.
            Body::TryExternal(_) | Body::TriedExternal(_) => {}
        }
    }

    pub(super) fn heard_status(&mut self, now: Now, from: NodeId, status: &Status) {
        let Ok(report) = status.report() else { return };
        if report.node != from {
            return;
        }
        self.membership.step(now.mono, Input::Report { from, reachable: report.reachable.clone() });
        self.changed |= self.clocks.heard(from, status.wall_us, now);
        let applied = LogIndex(status.applied);
        if let [system, main] = status.digests[..] {
            let differences = self.digests.heard(from, applied, [system, main]);
            self.note_differences(now, differences);
        }
        let most = self.remembered.entry(from).or_default();
        *most = applied.max(*most);
        let seen = PeerView { report, applied, fresh: true, at: now.mono };
        let known = self.peers.insert(from, seen);
        let known = known.as_ref().map(|known| &known.report);
        let news = &self.peers[&from].report;
        self.changed |= known.is_none_or(|known| NodeReport { sequence: news.sequence, ..known.clone() } != *news);
        self.plan_due |= known.is_none_or(|known| to_plan_by(known) != to_plan_by(news));
    }

    pub(super) fn link_up(&mut self, now: Now, peer: NodeId) {
        self.sights.linked(peer);
        self.outcast.meets(peer);
        self.membership.step(now.mono, Input::LinkUp(peer));
        self.last_word.insert(peer, now.mono);
        self.leases.holding.hurry(now);
        self.consensus.may_elect(now.mono, &self.alive());
        if self.leader() == Some(peer) {
            // What went to it on the connection before may be lost.
            self.requests.leader_changed();
            self.reads.leader_changed();
        }
        self.own_status_changed(now);
    }

    pub(super) fn link_down(&mut self, now: Now, peer: NodeId, refused: bool) {
        self.membership.step(now.mono, Input::LinkDown(peer));
        self.fell_silent.extend(self.last_word.remove_entry(&peer));
        self.clocks.forget(peer);
        if let Some(known) = self.peers.get_mut(&peer) {
            known.fresh = false;
        }
        self.consensus.unreachable(peer.raft_id());
        if refused {
            let mut alive = self.alive();
            alive.remove(&peer.raft_id());
            self.consensus.leader_died(now.mono, peer.raft_id(), &alive);
        }
        self.own_status_changed(now);
    }

    /// Consensus numbers of the voters that this node hears, its own too.
    pub(super) fn alive(&self) -> BTreeSet<u64> {
        let configuration = self.configuration();
        let voters = configuration.voters.union(&configuration.outgoing);
        voters.filter(|node| self.hears(**node)).map(|node| node.raft_id()).collect()
    }

    pub(super) fn gateway(&mut self, now: Now, report: GatewayReport) {
        let known = self.gateways.insert(report.gateway.clone(), (now.mono, report.clone()));
        let known = known.map(|(_, known)| known);
        let urgent = known.is_none_or(|known| known.revision != report.revision || known.busy != report.busy);
        if urgent {
            self.own_status_changed(now);
        }
    }

    pub(super) fn own_status_changed(&mut self, now: Now) {
        // What this node plans next must see it; the others are told at the end of the turn.
        self.see_myself(now);
        self.status_due = now.mono;
        self.plan_due = true;
        self.changed = true;
    }

    /// Takes note of who belongs to the cluster now.
    pub(super) fn meet(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.members_due) {
            return;
        }
        self.plan_due = true;
        self.changed = true;
        let before = self.book.peers().clone();
        let first = !self.book.announced();
        self.book.refresh(self.consensus.configuration(), &self.state);
        if *self.book.peers() == before && !first {
            return;
        }
        for gone in before.keys().filter(|peer| !self.book.is_peer(**peer)) {
            self.membership.step(now.mono, Input::Removed(*gone));
            self.peers.remove(gone);
            self.remembered.remove(gone);
            self.last_word.remove(gone);
            self.fell_silent.remove(gone);
            self.clocks.forget(*gone);
        }
        for peer in self.book.peers().keys().filter(|peer| !before.contains_key(peer)) {
            self.membership.step(now.mono, Input::Known(*peer));
        }
        out.push(Effect::Peers(self.book.announce()));
    }

    pub(super) fn note_differences(&mut self, now: Now, differences: Vec<Difference>) {
        for difference in differences {
            let key = (difference.node, difference.database as i32);
            if self.leads() && self.reported_differences.insert(key) {
                let what = Happening::Diverged {
                    node: difference.node,
                    database: difference.database.name().to_owned(),
                    at_index: difference.index,
                };
                self.ask(now, Command::Record { at: now.wall, what }, Chore::Note);
            }
        }
    }

    pub(super) fn notice_silence(&mut self, now: Now) {
        let silent = |at: &Timestamp| now.mono.since(*at) >= PEER_SILENCE;
        let gone: Vec<NodeId> = self.last_word.iter().filter(|(_, at)| silent(at)).map(|(node, _)| *node).collect();
        for peer in gone {
            self.fell_silent.extend(self.last_word.remove_entry(&peer));
            self.membership.step(now.mono, Input::LinkDown(peer));
            if let Some(known) = self.peers.get_mut(&peer) {
                known.fresh = false;
            }
            self.own_status_changed(now);
        }
    }

    pub(super) fn say_status(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.status_due > now.mono {
            return;
        }
        self.status_due = now.mono.plus(STATUS_EVERY);
        self.sequence += 1;
        let report = self.own_report();
        let status = Status::new(&report, self.applied, self.digests.last(), now.wall);
        for peer in self.book.peers().keys().filter(|node| self.hears(**node)) {
            out.push(Effect::Send { to: *peer, message: Body::Status(status.clone()) });
        }
        self.see_myself(now);
        self.changed = true;
    }

    pub(super) fn own_report(&self) -> NodeReport {
        NodeReport {
            node: self.me.id,
            sequence: self.sequence,
            replicas: self.replicas.clone(),
            reachable: self.book.peers().keys().copied().filter(|node| self.hears(*node)).collect(),
            gateways: self.gateways.values().map(|(_, report)| report.clone()).collect(),
            trust: self.trust.clone(),
            prepared: self.prepared.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log_dir: self.log_dir.clone(),
            pending: self.pending.clone(),
            capacity: self.capacity,
            usage: self.usage.clone(),
            scraped: self.told.numbers.clone(),
            untold: self.told.untold.clone(),
            drivers: self.drivers.clone(),
        }
    }

    pub(super) fn see_myself(&mut self, now: Now) {
        let report = self.own_report();
        self.peers.insert(self.me.id, PeerView { report, applied: self.applied, fresh: true, at: now.mono });
    }
}

/// A report without what is measured anew all the time: that is shown and watched, and nothing is planned by it.
fn to_plan_by(report: &NodeReport) -> NodeReport {
    let (usage, scraped, untold) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut report = NodeReport { sequence: 0, usage, scraped, untold, ..report.clone() };
    for gateway in &mut report.gateways {
        (gateway.requests, gateway.failed, gateway.traffic) = (0, 0, Traffic::default());
    }
    report
}
