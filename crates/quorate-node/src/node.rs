//! The node: where every event is taken apart.

mod drilled;
mod handover;
mod leased;
mod office;
mod others;
mod shown;

use crate::address_book::AddressBook;
use crate::clocks::Clocks;
use crate::consensus::{Consensus, Content, Output, RecoveredLog};
use crate::digests::Digests;
use crate::electorate;
use crate::event::{AppliedEntry, Effect, Event, Now, Refused, Ticket, TransferFailed, Unfit};
use crate::leading::{Chore, Leading};
use crate::leases::{Holding, Leases, Measuring, Raising, Voting};
use crate::outcast::Outcast;
use crate::reads::Reads;
use crate::requests::Requests;
use crate::sight::Sights;
use crate::wire::{Body, Forward, ForwardedProposal, RaftMessage, Remembered};
use drilled::Drilled;
use handover::HandingOver;
use quorate_membership::{Input, LinkState, Membership};
use quorate_model::assignment::Assignment;
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::Outcome;
use quorate_model::event::Happening;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, RequestId, Term};
use quorate_model::member::NotAdmitted;
use quorate_model::need::Prepared;
use quorate_model::observed::{GatewayReport, NodeReport, Pending, ReplicaStatus, Told, TrustReport};
use quorate_model::resource::{Amount, Usage};
use quorate_model::state::{Change, ClusterState, NodeIdentity};
use quorate_model::time::{Timestamp, WallTime};
use quorate_scheduler::Plan;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often a node repeats what it says about itself when nothing changes.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A peer whose link is open but that has said nothing for this long is not heard: it is stopped,
/// or the network swallows what it says. Three statuses were missed then.
const PEER_SILENCE: Duration = Duration::from_secs(3);
/// How often deadlines are looked at. A request may be answered this much late.
const DEADLINES_EVERY: Duration = Duration::from_millis(20);
/// A gateway that has not reported for this long is gone.
const GATEWAY_SILENCE: Duration = Duration::from_secs(3);
/// How long the node's own commands may take before it thinks again.
const OWN_PATIENCE: Duration = Duration::from_secs(5);
/// A node that the cluster refused asks again after this: a place may be free then.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Forwarded requests travel in messages of at most about this size.
const FORWARD_BYTES: usize = 1 << 20;
/// So often another process may register in this one's place before that is no late word of an earlier
/// run any more, but a second one that does the same.
const REPLACED_MAX: u32 = 3;
/// The node's own read, by which it learns that it has caught up.
const CATCH_UP: Ticket = Ticket(u64::MAX);

/// What a node is told when it starts.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub identity: NodeIdentity,
    /// Differs from start to start of this node.
    pub boot: u64,
    /// Where nodes may be found, HOST:PORT of their link, before the cluster's own records are here:
    /// those with whom it began, or whom a joining node was told of. May be empty: who knows this node
    /// calls it, and says where it is found itself.
    pub contacts: BTreeMap<NodeId, String>,
    /// How long a node may be away before its replicas are replaced.
    pub replace_after: Duration,
    /// How long a voter may be away before a standby votes in its place; see [`REPLACE_VOTER_AFTER`].
    pub replace_voter_after: Duration,
    /// Seeds everything random; from the system's randomness in production.
    pub seed: u64,
}

/// The default of [`NodeOptions::replace_voter_after`]. A node that only starts anew or is upgraded is
/// back before, so that voters do not wander with every restart; and the next loss, which the cluster
/// may not survive while this one is not replaced, seldom follows within half a minute.
pub const REPLACE_VOTER_AFTER: Duration = Duration::from_secs(30);

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("the recovered log does not fit: {0}")]
    Log(String),
}

/// What this node knows about a peer, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    pub report: NodeReport,
    pub applied: LogIndex,
    /// Heard since the link is open: not the word of an earlier life of the node.
    pub fresh: bool,
    /// When it said this.
    pub at: Timestamp,
}

/// One member of the cluster.
#[derive(Debug)]
pub struct Node {
    me: NodeIdentity,
    boot: u64,
    book: AddressBook,
    replace_voter_after: Duration,
    consensus: Consensus,
    /// What is to be done about the voters, as of the last look; the leader's alone.
    electorate: Option<electorate::Step>,
    /// Voters, nodes or addresses changed since the last look.
    members_due: bool,
    /// This node is about to end.
    leaving: Leaving,
    /// What runs once here is to run elsewhere before that.
    handing_over: HandingOver,
    membership: LinkState,
    /// The mirror of what is in `system` as of `applied`.
    state: ClusterState,
    applied: LogIndex,
    requests: Requests,
    reads: Reads,
    digests: Digests,
    leading: Leading,
    leases: Leases,
    drilled: Drilled,
    transfers: Vec<Handover>,
    /// The most that each peer said to have applied, in all its lives that this node has seen.
    remembered: BTreeMap<NodeId, LogIndex>,
    /// Whether the cluster's records name this run of the node, and how often they ceased to.
    registered: bool,
    replaced: u32,
    /// From here on this node is silent.
    unfit: Option<Unfit>,
    /// The newest word of each node about itself, this one's too.
    peers: BTreeMap<NodeId, PeerView>,
    replicas: Vec<ReplicaStatus>,
    /// Where the server keeps its own log.
    log_dir: String,
    pending: Pending,
    capacity: Option<Amount>,
    usage: BTreeMap<ReplicaId, Usage>,
    told: Told,
    drivers: Option<BTreeSet<String>>,
    prepared: Vec<Prepared>,
    trust: Option<TrustReport>,
    gateways: BTreeMap<String, (Timestamp, GatewayReport)>,
    sights: Sights,
    /// How long a lost link is not shown: what is left of the operator's patience with silence.
    lost_link_kept_back: Duration,
    /// The newest moment that this node was told.
    last_flush: Timestamp,
    status_due: Timestamp,
    sequence: u64,
    /// What this node asked of the cluster itself, by request.
    chores: BTreeMap<RequestId, Chore>,
    /// The plan as of the last look; everybody makes it, the leader carries it out.
    plan: Plan,
    last_planned: Timestamp,
    plan_due: bool,
    caught_up: bool,
    assigned: Option<Assignment>,
    reported_differences: BTreeSet<(NodeId, i32)>,
    leader_heard: Option<Timestamp>,
    /// When each linked peer said something last. One that fell silent is taken out.
    last_word: BTreeMap<NodeId, Timestamp>,
    /// The same of peers that fell silent.
    fell_silent: BTreeMap<NodeId, Timestamp>,
    deadlines_seen: Timestamp,
    clocks: Clocks,
    rng: ChaCha8Rng,
    stamped: WallTime,
    /// When the cluster last refused to have this node, and why.
    refused: Option<(Timestamp, Refusal)>,
    outcast: Outcast,
    changed: bool,
}

/// How far a node's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    Asked,
    /// The shell was told that nothing is left to wait for.
    Done,
}

/// Leadership being handed over for an operator.
#[derive(Debug)]
struct Handover {
    ticket: Ticket,
    to: NodeId,
    began: Timestamp,
    deadline: Timestamp,
}

impl Node {
    /// A node on what its disk holds: `log` above, `state` at `applied`.
    ///
    /// # Errors
    /// [`StartError`]; nothing has happened then.
    pub fn new(
        options: NodeOptions,
        log: RecoveredLog,
        state: ClusterState,
        applied: LogIndex,
        now: Now,
    ) -> Result<Node, StartError> {
        let id = options.identity.id;
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let leases = Leases {
            holding: Holding::new(options.boot),
            voting: Voting::starts(id, now.waited, &log, &state),
            raising: Raising::default(),
            measuring: Measuring::default(),
        };
        let consensus = Consensus::new(id.raft_id(), log, applied, rng.next_u64())
            .map_err(|error| StartError::Log(error.to_string()))?;
        let mut node = Node {
            boot: options.boot,
            book: AddressBook::new(id, options.contacts),
            replace_voter_after: options.replace_voter_after,
            consensus,
            electorate: None,
            members_due: true,
            leaving: Leaving::No,
            handing_over: HandingOver::No,
            membership: LinkState::new(id),
            state,
            applied,
            requests: Requests::new(),
            // Far from where another start may have been, and from the end.
            reads: Reads::numbered_from(rng.next_u64() >> 1),
            digests: Digests::default(),
            leading: Leading::new(options.replace_after),
            leases,
            drilled: Drilled::default(),
            transfers: Vec::new(),
            remembered: BTreeMap::new(),
            registered: false,
            replaced: 0,
            unfit: None,
            peers: BTreeMap::new(),
            replicas: Vec::new(),
            log_dir: String::new(),
            pending: Pending::default(),
            capacity: None,
            usage: BTreeMap::new(),
            told: Told::default(),
            drivers: None,
            prepared: Vec::new(),
            trust: None,
            gateways: BTreeMap::new(),
            sights: Sights::default(),
            lost_link_kept_back: Duration::ZERO,
            last_flush: now.mono,
            status_due: now.mono,
            sequence: 0,
            chores: BTreeMap::new(),
            plan: Plan::default(),
            last_planned: now.mono,
            plan_due: true,
            caught_up: false,
            assigned: None,
            reported_differences: BTreeSet::new(),
            leader_heard: None,
            last_word: BTreeMap::new(),
            fell_silent: BTreeMap::new(),
            deadlines_seen: now.mono,
            clocks: Clocks::default(),
            rng,
            stamped: WallTime::default(),
            refused: None,
            outcast: Outcast::default(),
            changed: true,
            me: options.identity,
        };
        node.leases.replaced(now, id, &node.state);
        node.book.refresh(node.consensus.configuration(), &node.state);
        for peer in node.book.peers().keys() {
            node.membership.step(now.mono, Input::Known(*peer));
        }
        node.reads.ask(CATCH_UP, Timestamp(Duration::MAX));
        node.consensus.may_elect(now.mono, &node.alive());
        Ok(node)
    }

    /// Feeds one event. Effects are appended to `out` in the order the shell must perform them;
    /// what several events lead to together comes with [`flush`](Self::flush).
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        if self.unfit.is_some() {
            return;
        }
        match event {
            Event::Tick => {}
            Event::Received { from, message } => self.receive(now, from, message),
            Event::Called { peer, link } => self.members_due |= self.book.met(peer, link),
            // A link that was meant to be ended may still report.
            Event::LinkUp { peer } | Event::LinkDown { peer, .. } if !self.book.is_peer(peer) => {}
            Event::LinkUp { peer } => {
                // Before anything else is said: it may be an old copy, which must not vote.
                if let Some(LogIndex(applied)) = self.remembered.get(&peer).copied() {
                    out.push(Effect::Send { to: peer, message: Body::Remembered(Remembered { applied }) });
                }
                self.link_up(now, peer);
            }
            Event::LinkDown { peer, refused } => self.link_down(now, peer, refused),
            Event::Propose { proposal, deadline } => {
                let request_id = proposal.request_id;
                if !self.requests.accept(now.mono, proposal, deadline) {
                    out.push(Effect::Refuse { request_id, why: Refused::Overloaded });
                }
            }
            Event::Read { ticket, deadline } => self.reads.ask(ticket, deadline),
            Event::Transfer { ticket, to, deadline } => self.transfer(now, ticket, to, deadline, out),
            Event::Survey { ticket } => out.push(Effect::Surveyed { ticket, survey: Box::new(self.survey(now)) }),
            Event::HandOver => self.begin_to_hand_over(now),
            Event::Leave => self.leave(now),
            Event::Persisted { number } => {
                let mut outputs = Vec::new();
                self.consensus.persisted(number, &mut outputs);
                self.carry_out(now, outputs, out);
            }
            Event::Applied { entries } => self.absorb(now, entries),
            Event::LogRead { entries } => self.consensus.fetched(entries),
            Event::LogPurged { first } => self.consensus.purged(first),
            Event::Replicas(replicas) => {
                self.replicas = replicas;
                self.own_status_changed(now);
            }
            Event::Usage(usage) => self.usage = usage,
            Event::Scraped(told) => self.told = told,
            Event::Drivers(drivers) => {
                self.drivers = Some(drivers);
                self.own_status_changed(now);
            }
            Event::Counted(counted) => self.leading.counted(now.mono, counted),
            Event::Pending(pending) => {
                self.pending = pending;
                self.own_status_changed(now);
            }
            Event::Prepared(prepared) => {
                self.prepared = prepared;
                self.own_status_changed(now);
            }
            Event::Trust(trust) => {
                self.trust = Some(trust);
                self.own_status_changed(now);
            }
            Event::Gossip { node, generation, rumor } => {
                self.sights.gossip(node, generation, rumor);
                self.changed = true;
            }
            Event::Expelled { by } => self.changed |= self.outcast.told(now.mono, by),
            Event::Stranger { peer } => self.changed |= self.outcast.is_stranger(now.mono, peer),
            Event::Gateway(report) => self.gateway(now, report),
            Event::SnapshotReceived { from, term, index, index_term, configuration, configured } => {
                let expelled = self.state.members.expelled.contains(&from);
                let configuration = (configuration, configured);
                if expelled
                    || !self.consensus.receive_snapshot(from.raft_id(), term, (index, index_term), configuration)
                {
                    out.push(Effect::DiscardSnapshot { index });
                }
                self.members_due = true;
            }
            Event::SnapshotSent { to, ok } => self.consensus.snapshot_sent(to.raft_id(), ok),
            Event::SnapshotInstalled { index, state } => {
                self.state = *state;
                self.applied = index;
                self.digests.reset();
                let mut outputs = Vec::new();
                self.consensus.snapshot_installed(index, &mut outputs);
                self.carry_out(now, outputs, out);
                let configured = (self.consensus.configuration(), self.consensus.configured());
                self.leases.voting.replaced(now.waited, configured, &self.state);
                self.leases.replaced(now, self.me.id, &self.state);
                self.plan_due = true;
                self.members_due = true;
                self.changed = true;
            }
        }
    }

    /// Lets time pass and collects what the events since the last call lead to. To be called
    /// after every run of [`step`](Self::step)s, and at [`next_wake`](Self::next_wake).
    pub fn flush(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.last_flush = now.mono;
        if self.is_unfit(out) {
            return;
        }
        self.consensus.advance_time(now.mono);
        self.meet(now, out);
        self.keep_leases(now, out);
        self.hand_over_requests(now, out);
        self.lead(now, out);
        if self.leader().is_some()
            && let Some(round) = self.reads.next_round(now.mono)
        {
            self.consensus.read_index(round);
        }
        self.give_up(now, out);
        self.look_at_handover(now, out);
        self.end(out);
        self.drain_consensus(now, out);
        self.meet(now, out);
        self.answer_reads(out);
        self.answer_about_leases(now, out);
        if self.outcast.is_out(now.mono, self.leader_heard(now.mono), self.consensus.configuration()) {
            self.stop_replicas(out);
        } else {
            self.assign(out);
        }
        self.say_status(now, out);
        self.obey_drill(now, out);
        if std::mem::take(&mut self.changed) {
            out.push(Effect::Changed);
        }
    }

    /// Whether this node must not go on; the shell is told once. What it was about to say is not said.
    fn is_unfit(&mut self, out: &mut Vec<Effect>) -> bool {
        let has = self.consensus.last();
        let forgot = self.consensus.forgotten().map(|had| Unfit::Forgot { had, has });
        let superseded = (self.replaced >= REPLACED_MAX).then_some(Unfit::Superseded);
        if self.unfit.is_none()
            && let Some(why) = forgot.or(superseded)
        {
            self.unfit = Some(why);
            out.retain(|effect| !matches!(effect, Effect::Send { .. }));
            out.push(Effect::MustEnd(why));
        }
        self.unfit.is_some()
    }

    /// When [`flush`](Self::flush) wants to be called at the latest.
    #[must_use]
    pub fn next_wake(&self) -> Timestamp {
        let leases = self.leases.next_wake(self.leads());
        leases.map_or(self.consensus.next_wake(), |at| at.min(self.consensus.next_wake()))
    }

    fn absorb(&mut self, now: Now, entries: Vec<AppliedEntry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        for entry in entries {
            if let Some(id) = entry.request_id {
                self.requests.done(id);
                if let Some(chore) = self.chores.remove(&id) {
                    self.leading.done(&chore);
                    self.plan_due = true;
                    if chore == Chore::Register {
                        self.refused = match entry.outcome {
                            Outcome::Command(Err(why)) => Some((now.mono, why)),
                            Outcome::Command(Ok(())) | Outcome::Sql(_) | Outcome::Noop => None,
                        };
                        self.changed = true;
                    }
                }
            }
            if !entry.changes.is_empty() {
                let of_members = |change: &Change| matches!(change, Change::Node(_) | Change::Member(_));
                self.members_due |= entry.changes.iter().any(of_members);
                self.state.absorb(entry.index, &entry.changes);
                self.leases.applied(now, self.me.id, &self.state, &entry.changes);
                self.note_losses(&entry.changes);
                self.note_drill(now, &entry.changes);
                let registered = self.state.nodes.get(&self.me.id).is_some_and(|me| me.boot == self.boot);
                self.replaced += u32::from(self.registered && !registered);
                self.registered = registered;
                if self.state.members.expelled.contains(&self.me.id) {
                    let why = NotAdmitted::Expelled { node: self.me.id };
                    self.refused = Some((now.mono, Refusal::NotAdmitted { why }));
                }
                self.plan_due = true;
                self.changed = true;
            }
            if let Some(digests) = entry.digests {
                let differences = self.digests.applied(entry.index, digests);
                self.note_differences(now, differences);
            }
        }
        let reconfigured = self.consensus.reconfigures();
        self.applied = last;
        self.consensus.applied(last);
        // The next step of a change waits for this one to be applied.
        self.plan_due |= reconfigured && !self.consensus.reconfigures();
    }

    fn hand_over_requests(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.requests.has_fresh() {
            return;
        }
        let mut requests = std::mem::replace(&mut self.requests, Requests::new());
        match self.leader() {
            None => {}
            Some(leader) if leader == self.me.id => {
                requests.hand_over(now.mono, |proposal| self.propose_as_leader(now, proposal.clone()).is_ok());
            }
            Some(leader) => {
                let mut batch = Forward::default();
                let mut bytes = 0;
                requests.hand_over(now.mono, |proposal| {
                    bytes += proposal.payload.len() + 32;
                    batch.proposals.push(ForwardedProposal::new(proposal));
                    if bytes >= FORWARD_BYTES {
                        bytes = 0;
                        out.push(Effect::Send { to: leader, message: Body::Forward(std::mem::take(&mut batch)) });
                    }
                    true
                });
                if !batch.proposals.is_empty() {
                    out.push(Effect::Send { to: leader, message: Body::Forward(batch) });
                }
            }
        }
        self.requests = requests;
    }

    fn give_up(&mut self, now: Now, out: &mut Vec<Effect>) {
        if now.mono.since(self.deadlines_seen) < DEADLINES_EVERY {
            return;
        }
        self.deadlines_seen = now.mono;
        self.notice_silence(now);
        for (request_id, waited) in self.requests.tick(now.mono) {
            if let Some(chore) = self.chores.remove(&request_id) {
                self.leading.done(&chore);
                self.plan_due = true;
            } else {
                out.push(Effect::Refuse { request_id, why: Refused::Unknown { waited } });
            }
        }
        let tickets = self.reads.late(now.mono);
        if !tickets.is_empty() {
            out.push(Effect::ReadFailed { tickets });
        }
        let leader = self.leader();
        self.transfers.retain(|handover| {
            let result = if leader == Some(handover.to) {
                Ok(())
            } else if handover.deadline <= now.mono {
                Err(TransferFailed::NotTaken { waited: now.mono.since(handover.began) })
            } else {
                return true;
            };
            out.push(Effect::Transferred { ticket: handover.ticket, result });
            false
        });
        let gone = |(at, _): &(Timestamp, GatewayReport)| now.mono.since(*at) >= GATEWAY_SILENCE;
        if self.gateways.values().any(gone) {
            self.gateways.retain(|_, seen| !gone(seen));
            self.own_status_changed(now);
        }
    }

    /// Consensus may have more to say after the node reacted to a change of leader.
    fn drain_consensus(&mut self, now: Now, out: &mut Vec<Effect>) {
        loop {
            let mut outputs = Vec::new();
            self.consensus.flush(&mut outputs);
            if outputs.is_empty() {
                return;
            }
            let role_changed = outputs.iter().any(|output| matches!(output, Output::RoleChanged));
            self.carry_out(now, outputs, out);
            if role_changed {
                self.role_changed(now, out);
            }
        }
    }

    fn role_changed(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.changed = true;
        self.plan_due = true;
        let leads = self.consensus.leads();
        if !leads {
            self.drop_lease_chores();
        }
        self.requests.leader_changed();
        self.reads.leader_changed();
        if self.leading.take_office(leads, &self.state) {
            let what = Happening::LeaderElected { node: self.me.id, term: self.consensus.term() };
            self.ask(now, Command::Record { at: now.wall, what }, Chore::Note);
        }
        self.hand_over_requests(now, out);
        if self.leader().is_some()
            && let Some(round) = self.reads.next_round(now.mono)
        {
            self.consensus.read_index(round);
        }
        self.lead(now, out);
    }

    fn carry_out(&mut self, now: Now, outputs: Vec<Output>, out: &mut Vec<Effect>) {
        for output in outputs {
            match output {
                Output::Send(message) => {
                    if let Some(to) = self.book.by_raft_id(message.to) {
                        out.push(Effect::Send { to, message: Body::Raft(RaftMessage::from(message)) });
                    }
                }
                Output::SendSnapshot(message) => {
                    if let Some(to) = self.book.by_raft_id(message.to) {
                        out.push(Effect::SendSnapshot { to, term: Term(message.term) });
                    }
                }
                Output::Append(append) => {
                    self.leases.voting.written(now.waited, &append.entries);
                    out.push(Effect::Append(append));
                }
                Output::Apply(entries) => {
                    let configures = |content: &Content| matches!(content, Content::Configuration(_));
                    self.members_due |= entries.iter().any(|entry| configures(&entry.content));
                    out.push(Effect::Apply(entries));
                }
                Output::Fetch { from, to_exclusive, bytes_max } => {
                    out.push(Effect::ReadLog { from, to_exclusive, bytes_max });
                }
                Output::Install { index, term, hard_state } => {
                    out.push(Effect::InstallSnapshot { index, term, hard_state });
                }
                Output::ReadConfirmed { round, index } => self.reads.confirmed(round, index),
                Output::RoleChanged => {}
            }
        }
    }

    fn answer_reads(&mut self, out: &mut Vec<Effect>) {
        let mut tickets = self.reads.ready(self.applied);
        if let Some(position) = tickets.iter().position(|ticket| *ticket == CATCH_UP) {
            tickets.remove(position);
            self.caught_up = true;
        }
        if !tickets.is_empty() {
            out.push(Effect::ReadReady { tickets, applied: self.applied });
        }
    }
}
