//! The node: where every event is taken apart.

use crate::address_book::AddressBook;
use crate::censor;
use crate::clocks::Clocks;
use crate::configuration::Configuration;
use crate::consensus::{CAUGHT_UP_ENTRIES, Consensus, Content, NotProposed, Output, RecoveredLog};
use crate::digests::{Difference, Digests};
use crate::electorate;
use crate::event::{AppliedEntry, Effect, Event, Now, Refused, Ticket, TransferFailed, Unfit};
use crate::leading::{Chore, Leading, Seen, unheard_by_majority};
use crate::outcast::Outcast;
use crate::reads::Reads;
use crate::requests::Requests;
use crate::sight::{Sight, Sights};
use crate::wire::{Body, Forward, ForwardedProposal, RaftMessage, Remembered, Status, Transfer};
use prost::Message as _;
use quorate_membership::{Input, LinkState, Membership, Opinion};
use quorate_model::assignment::Assignment;
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Envelope, Outcome, Proposal};
use quorate_model::event::Happening;
use quorate_model::id::{LogIndex, NodeId, RequestId, Term};
use quorate_model::member::managers::Harm;
use quorate_model::member::{MemberCommand, NotAdmitted};
use quorate_model::observed::{GatewayReport, NodeReport, ReplicaStatus, TrustReport};
use quorate_model::state::{Change, ClusterState, Health, NodeIdentity};
use quorate_model::time::{Timestamp, WallTime};
use quorate_scheduler::{Held, Plan};
use raft::eraftpb;
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
    membership: LinkState,
    /// The mirror of what is in `system` as of `applied`.
    state: ClusterState,
    applied: LogIndex,
    requests: Requests,
    reads: Reads,
    digests: Digests,
    leading: Leading,
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
            membership: LinkState::new(id),
            state,
            applied,
            requests: Requests::new(),
            // Far from where another start may have been, and from the end.
            reads: Reads::numbered_from(rng.next_u64() >> 1),
            digests: Digests::default(),
            leading: Leading::new(options.replace_after),
            transfers: Vec::new(),
            remembered: BTreeMap::new(),
            registered: false,
            replaced: 0,
            unfit: None,
            peers: BTreeMap::new(),
            replicas: Vec::new(),
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
            deadlines_seen: now.mono,
            clocks: Clocks::default(),
            rng,
            stamped: WallTime::default(),
            refused: None,
            outcast: Outcast::default(),
            changed: true,
            me: options.identity,
        };
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
            Event::Leave => self.leave(now),
            Event::Persisted { number } => {
                let mut outputs = Vec::new();
                self.consensus.persisted(number, &mut outputs);
                self.carry_out(outputs, out);
            }
            Event::Applied { entries } => self.absorb(now, entries),
            Event::LogRead { entries } => self.consensus.fetched(entries),
            Event::LogPurged { first } => self.consensus.purged(first),
            Event::Replicas(replicas) => {
                self.replicas = replicas;
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
                self.carry_out(outputs, out);
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
        self.hand_over_requests(now, out);
        self.lead(now, out);
        if self.leader().is_some()
            && let Some(round) = self.reads.next_round(now.mono)
        {
            self.consensus.read_index(round);
        }
        self.give_up(now, out);
        self.end(out);
        self.drain_consensus(now, out);
        self.meet(now, out);
        self.answer_reads(out);
        if self.outcast.is_out(now.mono, self.leader_heard(now.mono)) {
            self.stop_replicas(out);
        } else {
            self.assign(out);
        }
        self.say_status(now, out);
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
        self.consensus.next_wake()
    }

    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    #[must_use]
    pub fn committed(&self) -> LogIndex {
        self.consensus.committed()
    }

    #[must_use]
    pub fn term(&self) -> Term {
        self.consensus.term()
    }

    /// The node that leads, as far as this one knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.consensus.leader().and_then(|id| self.book.by_raft_id(id))
    }

    #[must_use]
    pub fn leads(&self) -> bool {
        self.consensus.leads()
    }

    /// Who votes and who stands by, as far as this node has been told.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        self.consensus.configuration()
    }

    /// Whether consensus counts exactly those whom [`configuration`](Self::configuration) names, or that is
    /// not known yet. Always so: this is for simulations, which do not believe it.
    #[must_use]
    pub fn counts_as_configured(&self) -> bool {
        self.consensus.counts_as_configured()
    }

    /// The nodes that vote; the new ones while voters change.
    #[must_use]
    pub fn voters(&self) -> &BTreeSet<NodeId> {
        &self.configuration().voters
    }

    /// What this node, leading, is about to change about the voters, or why it cannot.
    #[must_use]
    pub fn electorate(&self) -> Option<&electorate::Step> {
        self.electorate.as_ref()
    }

    /// What the leader does about the voters next: if this node leads, its own mind, and otherwise what it
    /// would do in the leader's place.
    #[must_use]
    pub fn voters_next(&self, now: Now) -> Option<electorate::Step> {
        if self.leads() {
            return self.electorate.clone();
        }
        self.leader()?;
        self.with_electorate(now, electorate::next)
    }

    /// Whether somebody wants this run of the node to end and another to begin.
    #[must_use]
    pub fn restart_asked(&self) -> bool {
        self.state.nodes.get(&self.me.id).is_some_and(|me| me.restart == Some(self.boot))
    }

    /// The other nodes of the cluster and where their links may be found.
    #[must_use]
    pub fn peers_to_call(&self) -> &BTreeMap<NodeId, Vec<String>> {
        self.book.peers()
    }

    /// Whether other nodes may be there, so that this one has to be reached by them (K6). Before it has the
    /// cluster's records, it knows them from what it was told.
    #[must_use]
    pub fn coordinates(&self) -> bool {
        self.state.ha() || !self.book.peers().is_empty()
    }

    /// Whether this node hears another one.
    #[must_use]
    pub fn hears(&self, node: NodeId) -> bool {
        node == self.me.id || self.membership.opinion(node) == Opinion::Heard
    }

    /// How long a node may be silent before it is shown as unreachable, as far as its link says so;
    /// [`PEER_SILENCE`] unless set, and never shorter. It is called down no sooner than shown, unless
    /// its replicas have to be replaced by then.
    pub fn show_unreachable_after(&mut self, silence: Duration) {
        self.lost_link_kept_back = silence.saturating_sub(PEER_SILENCE);
        self.leading.patient(self.lost_link_kept_back);
    }

    /// How this node sees another one, for people and gateways.
    #[must_use]
    pub fn sight(&self, node: NodeId) -> Sight {
        let opinion = match self.membership.opinion(node) {
            _ if node == self.me.id => Opinion::Heard,
            Opinion::Unheard { since } if self.last_flush.since(since) < self.lost_link_kept_back => Opinion::Heard,
            opinion => opinion,
        };
        let generation = self.state.nodes.get(&node).map_or(0, |record| record.generation);
        self.sights.of(node, opinion, generation)
    }

    /// What nodes said about themselves last, by node; this one's too.
    #[must_use]
    pub fn peers(&self) -> &BTreeMap<NodeId, PeerView> {
        &self.peers
    }

    /// When this node last heard from a leader; now, if it leads itself.
    #[must_use]
    pub fn leader_heard(&self, now: Timestamp) -> Option<Timestamp> {
        if self.leads() { Some(now) } else { self.leader_heard }
    }

    /// Whether this node was told to end, and nothing is left to wait for.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.leaving == Leaving::Done
    }

    /// Why the cluster does not have this node: there is no place for it, or it was expelled.
    #[must_use]
    pub fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref().map(|(_, why)| why)
    }

    /// The node that says that this one was expelled, as long as no leader is heard.
    #[must_use]
    pub fn expelled_by(&self) -> Option<NodeId> {
        self.outcast.by()
    }

    /// What the scheduler does not do, and why.
    #[must_use]
    pub fn held(&self) -> &[Held] {
        &self.plan.held
    }

    /// Digest comparisons made since the start.
    #[must_use]
    pub fn digests_compared(&self) -> u64 {
        self.digests.compared()
    }

    /// How many microseconds a peer's clock is ahead of this node's, as of what it said last.
    /// `None` when it is not heard, and for this node itself.
    #[must_use]
    pub fn clock_ahead(&self, peer: NodeId, now: Now) -> Option<i64> {
        self.clocks.offset(peer, now)
    }

    fn receive(&mut self, now: Now, from: NodeId, message: Body) {
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
            Body::Forward(_) | Body::Status(_) | Body::Transfer(_) if !known => {}
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
            // The shell's own: a connection's first frame, what a bulk connection carries, gossip's.
            Body::Hello(_) | Body::Snapshot(_) | Body::Ping(_) | Body::GossipKeys(_) => {}
        }
    }

    fn heard_status(&mut self, now: Now, from: NodeId, status: &Status) {
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
        if known.is_none_or(|known| NodeReport { sequence: news.sequence, ..known.clone() } != *news) {
            self.changed = true;
            self.plan_due = true;
        }
    }

    fn link_up(&mut self, now: Now, peer: NodeId) {
        self.sights.linked(peer);
        self.membership.step(now.mono, Input::LinkUp(peer));
        self.last_word.insert(peer, now.mono);
        self.consensus.may_elect(now.mono, &self.alive());
        if self.leader() == Some(peer) {
            // What went to it on the connection before may be lost.
            self.requests.leader_changed();
            self.reads.leader_changed();
        }
        self.own_status_changed(now);
    }

    fn link_down(&mut self, now: Now, peer: NodeId, refused: bool) {
        self.membership.step(now.mono, Input::LinkDown(peer));
        self.last_word.remove(&peer);
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
    fn alive(&self) -> BTreeSet<u64> {
        let configuration = self.configuration();
        let voters = configuration.voters.union(&configuration.outgoing);
        voters.filter(|node| self.hears(**node)).map(|node| node.raft_id()).collect()
    }

    fn transfer(&mut self, now: Now, ticket: Ticket, to: NodeId, deadline: Timestamp, out: &mut Vec<Effect>) {
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
    fn leave(&mut self, now: Now) {
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
    fn end(&mut self, out: &mut Vec<Effect>) {
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

    fn gateway(&mut self, now: Now, report: GatewayReport) {
        let known = self.gateways.insert(report.gateway.clone(), (now.mono, report.clone()));
        let known = known.map(|(_, known)| known);
        let urgent = known.is_none_or(|known| known.revision != report.revision || known.busy != report.busy);
        if urgent {
            self.own_status_changed(now);
        }
    }

    fn own_status_changed(&mut self, now: Now) {
        // What this node plans next must see it; the others are told at the end of the turn.
        self.see_myself(now);
        self.status_due = now.mono;
        self.plan_due = true;
        self.changed = true;
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

    /// Takes note of who belongs to the cluster now.
    fn meet(&mut self, now: Now, out: &mut Vec<Effect>) {
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
            self.clocks.forget(*gone);
        }
        for peer in self.book.peers().keys().filter(|peer| !before.contains_key(peer)) {
            self.membership.step(now.mono, Input::Known(*peer));
        }
        out.push(Effect::Peers(self.book.announce()));
    }

    fn note_differences(&mut self, now: Now, differences: Vec<Difference>) {
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

    /// A mutation of the node's own.
    fn ask(&mut self, now: Now, command: Command, chore: Chore) {
        let id = RequestId::from_u128(u128::from(self.rng.next_u64()) << 64 | u128::from(self.rng.next_u64()));
        let proposal = Proposal::command(id, &command);
        if self.requests.accept(now.mono, proposal, now.mono.plus(OWN_PATIENCE)) {
            self.leading.begun(&chore);
            self.chores.insert(id, chore);
        }
    }

    fn propose_as_leader(&mut self, now: Now, proposal: Proposal) -> Result<(), NotProposed> {
        self.stamped = self.stamped.max(self.clocks.stamp(now));
        let seed = self.rng.next_u64();
        let proposal = match censor::objection(&proposal, self, now) {
            Some(why) => proposal.withheld(why),
            None => proposal,
        };
        self.consensus.propose(Envelope::stamp(proposal, self.stamped, seed).encode_to_vec())
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

    /// What only the leader does: verdicts on nodes, plans, the record of what happened.
    fn lead(&mut self, now: Now, out: &mut Vec<Effect>) {
        if now.mono.since(self.last_planned) >= STATUS_EVERY {
            self.plan_due = true;
        }
        if !std::mem::take(&mut self.plan_due) {
            return;
        }
        self.last_planned = now.mono;
        let seen = Seen {
            me: self.me.id,
            now,
            configuration: self.consensus.configuration(),
            membership: &self.membership,
            peers: &self.peers,
            state: &self.state,
        };
        let plan = self.leading.plan(&seen);
        self.changed |= plan.held != self.plan.held;
        let wishes = if self.consensus.leads() { self.leading.wishes(&seen, &plan) } else { Vec::new() };
        self.plan = plan;
        for (command, chore) in wishes {
            self.ask(now, command, chore);
        }
        self.register(now);
        self.hand_over_requests(now, out);
        self.reconcile_voters(now);
    }

    /// The next step towards the voters that there should be, if this node leads.
    fn reconcile_voters(&mut self, now: Now) {
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
    fn register(&mut self, now: Now) {
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

    fn notice_silence(&mut self, now: Now) {
        let silent = |at: &Timestamp| now.mono.since(*at) >= PEER_SILENCE;
        let gone: Vec<NodeId> = self.last_word.iter().filter(|(_, at)| silent(at)).map(|(node, _)| *node).collect();
        for peer in gone {
            self.last_word.remove(&peer);
            self.membership.step(now.mono, Input::LinkDown(peer));
            if let Some(known) = self.peers.get_mut(&peer) {
                known.fresh = false;
            }
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
            self.carry_out(outputs, out);
            if role_changed {
                self.role_changed(now, out);
            }
        }
    }

    fn role_changed(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.changed = true;
        self.plan_due = true;
        self.requests.leader_changed();
        self.reads.leader_changed();
        let leads = self.consensus.leads();
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

    fn carry_out(&mut self, outputs: Vec<Output>, out: &mut Vec<Effect>) {
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
                Output::Append(append) => out.push(Effect::Append(append)),
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

    fn assign(&mut self, out: &mut Vec<Effect>) {
        // Before it has caught up, this node's database may still want replicas that the others
        // have long replaced.
        if !self.caught_up || self.assigned.as_ref().is_some_and(|known| known.revision == self.state.planned_on) {
            return;
        }
        let assignment = self.state.assignment(self.me.id);
        if self.assigned.as_ref().is_none_or(|known| known.replicas != assignment.replicas) {
            out.push(Effect::Assign(assignment.clone()));
        }
        self.assigned = Some(assignment);
    }

    /// What runs here runs elsewhere, or is not wanted any more.
    fn stop_replicas(&mut self, out: &mut Vec<Effect>) {
        if self.assigned.as_ref().is_some_and(|known| known.replicas.is_empty()) {
            return;
        }
        // No older than anything that this node was ever assigned: each was applied, so it is in the log.
        let nothing = Assignment { node: self.me.id, revision: self.consensus.last(), replicas: Vec::new() };
        out.push(Effect::Assign(nothing.clone()));
        self.assigned = Some(nothing);
    }

    fn say_status(&mut self, now: Now, out: &mut Vec<Effect>) {
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

    fn own_report(&self) -> NodeReport {
        NodeReport {
            node: self.me.id,
            sequence: self.sequence,
            replicas: self.replicas.clone(),
            reachable: self.book.peers().keys().copied().filter(|node| self.hears(*node)).collect(),
            gateways: self.gateways.values().map(|(_, report)| report.clone()).collect(),
            trust: self.trust.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn see_myself(&mut self, now: Now) {
        let report = self.own_report();
        self.peers.insert(self.me.id, PeerView { report, applied: self.applied, fresh: true, at: now.mono });
    }
}
