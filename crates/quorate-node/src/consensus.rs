//! Raft without I/O: the one place that touches the consensus library.
//!
//! [`Consensus`] wraps `raft` 0.7.0 the way that was found to be safe (traps A): the leader sends
//! before its own disk has written; what a follower may say only once it is durable is kept back
//! until [`Consensus::persisted`]; every election timeout comes from our own seed; a dead leader's
//! closed connection is a hint to elect at once, staggered by rank.
//!
//! # Invariants
//! - A message that speaks of entries or votes leaves only after they are durable here, unless
//!   this node leads (Raft thesis 10.2.1; commit still counts only durable copies).
//! - Whoever leads says nothing before its vote for itself is durable. With others who vote it is: they
//!   were asked after that. A voter that is alone leads at once, and could lead the same term twice.
//! - Entries are handed out for applying in order, once, and only committed ones.
//! - A configuration is in force from the moment at which its entry is handed out for applying.
//! - `commit` is written to disk only together with something else: it can be learnt again.
//!
//! # Sources
//! Ongaro: Consensus: Bridging Theory and Practice, 2014. tikv/raft-rs 0.7.0.

mod parts;
pub(crate) mod reconfigure;
mod storage;

use crate::configuration::Configuration;
use bytes::Bytes;
use parts::parts;
use quorate_model::id::{LogIndex, Term};
use quorate_model::planted::{Bug, planted};
use quorate_model::time::Timestamp;
use raft::eraftpb::{self, EntryType, HardState, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use storage::{Wanted, Window};

/// One beat of the library's clock.
pub const TICK: Duration = Duration::from_millis(50);
/// A leader says that it lives every 100 ms.
const HEARTBEAT_TICKS: usize = 2;
/// Silence of 0.5 s to 1 s makes a follower ask for votes.
const ELECTION_TICKS: usize = 10;
/// After a hint that the leader died, candidates go one after another: the first has won or lost
/// by then on a local network, and split votes stay rare (measured: 31 % without the stagger).
const RANK_DELAY: Duration = Duration::from_millis(15);
/// At a start nobody knows whether a leader exists; longer than its pause between two heartbeats.
const START_DELAY: Duration = Duration::from_millis(150);
/// Entries that wait to be applied, in bytes, before this node stops taking more (traps A2 d).
const APPLY_LAG_BYTES_MAX: usize = 32 << 20;
/// Bytes of entries fetched from disk for a follower that is behind, at once.
const FETCH_BYTES: usize = 256 << 10;

/// A learner that lacks no more entries than this has caught up: at the highest rate that was measured
/// it is a tenth of a second behind then.
pub(crate) const CAUGHT_UP_ENTRIES: u64 = 1_024;

/// The log as it was found at the start.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecoveredLog {
    /// The configuration as of the entry `configured`. Not known on a node that is new and waits to be told.
    pub configuration: Configuration,
    /// May be above the applied index: the file that knows the configuration can be ahead of the other.
    pub configured: LogIndex,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    /// Just before the first retained entry.
    pub before: (LogIndex, Term),
    /// First index of each run of equal terms.
    pub terms: Vec<(LogIndex, Term)>,
    /// The entries above the applied index.
    pub unapplied: Vec<LogEntry>,
}

/// What a log entry's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryKind {
    /// An [`Envelope`](quorate_model::entry::Envelope), or nothing.
    #[default]
    Normal,
    /// A step to another [`Configuration`], in the consensus library's form.
    Membership,
}

/// A log entry.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    pub index: LogIndex,
    pub term: Term,
    pub kind: EntryKind,
    pub data: Bytes,
}

/// An entry to be applied.
#[derive(Debug, Clone, PartialEq)]
pub struct CommittedEntry {
    pub index: LogIndex,
    pub term: Term,
    pub content: Content,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// An [`Envelope`](quorate_model::entry::Envelope), or nothing.
    Data(Bytes),
    /// To be kept beside the applied index: the configuration from here on.
    Configuration(Configuration),
}

/// Something to be made durable, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    /// Say it back in [`Consensus::persisted`].
    pub number: u64,
    /// Term, vote, commit; `None` when unchanged.
    pub hard_state: Option<(u64, u64, u64)>,
    pub entries: Vec<LogEntry>,
}

/// What consensus wants done.
#[derive(Debug)]
pub(crate) enum Output {
    Send(eraftpb::Message),
    /// A follower lacks entries that are gone: send it the database. The message names the least
    /// position it needs.
    SendSnapshot(eraftpb::Message),
    Append(Append),
    Apply(Vec<CommittedEntry>),
    Fetch {
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_max: usize,
    },
    /// A leader's snapshot was accepted: install it, begin the log anew after it with this hard
    /// state (term, vote, commit), then call [`Consensus::snapshot_installed`].
    Install {
        index: LogIndex,
        term: Term,
        hard_state: (u64, u64, u64),
    },
    /// The rounds up to this one are confirmed at this index.
    ReadConfirmed {
        round: u64,
        index: LogIndex,
    },
    /// Leader, term or role changed.
    RoleChanged,
}

/// Why a proposal was not taken. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotProposed {
    NotLeader,
    /// Too much is on its way already, or leadership is being handed over.
    Busy,
}

/// Messages that wait for the disk.
#[derive(Debug)]
struct Parked {
    number: u64,
    messages: Vec<eraftpb::Message>,
    /// It brings another term or vote.
    votes: bool,
    /// Nothing of this one has to be written; it only may not overtake those before it.
    free: bool,
}

/// One member of the Raft group.
pub(crate) struct Consensus {
    raw: RawNode<Window>,
    /// The library knows the same, by numbers.
    configuration: Configuration,
    /// What entries up to here say of it was in force before this start, or came with a snapshot.
    configured: LogIndex,
    rng: ChaCha8Rng,
    parked: VecDeque<Parked>,
    fetching: VecDeque<Wanted>,
    /// The number of the ready that carries the snapshot being installed.
    installing: Option<u64>,
    /// Term, role and leader as last announced.
    announced: (u64, StateRole, u64),
    timeout_ticks: usize,
    last_tick: Timestamp,
    /// When to stand for election without waiting for silence.
    campaign_at: Option<Timestamp>,
    /// Term, vote and commit as last handed out for writing.
    saved_hard_state: (u64, u64, u64),
    /// What a leader knows this node to have had, which its log has not.
    forgotten: Option<LogIndex>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("term", &self.term()).field("leader", &self.leader()).finish_non_exhaustive()
    }
}

impl Consensus {
    /// `id` is this node's consensus number ([`quorate_model::id::NodeId::raft_id`]).
    ///
    /// # Errors
    /// The library's own refusal of a log that cannot be: a message for people.
    pub(crate) fn new(id: u64, log: RecoveredLog, applied: LogIndex, seed: u64) -> Result<Consensus, raft::Error> {
        let config = Config {
            id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: applied.0,
            // 256 in flight of 1 MiB queued 192 MiB in one step (traps A2 h).
            max_size_per_msg: 256 << 10,
            max_inflight_msgs: 16,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 4 << 20,
            read_only_option: match planted(Bug::DeposedLeaderRead) {
                true => ReadOnlyOption::LeaseBased,
                false => ReadOnlyOption::Safe,
            },
            ..Config::default()
        };
        // The library panics when it is told of more applied than committed entries; the commit
        // index is not synced on its own, so the database may well know better (traps A2 b).
        let commit = log.commit.max(applied.0);
        let hard_state = HardState { term: log.term, vote: log.vote, commit, ..HardState::default() };
        let conf_state = reconfigure::conf_state(&log.configuration);
        let recent = log.unapplied.into_iter().map(storage::entry).collect();
        let saved_hard_state = (log.term, log.vote, log.commit);
        let window = Window::new(hard_state, conf_state, log.before, &log.terms, recent, applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, window, &logger)?;
        let announced = (raw.raft.term, raw.raft.state, raw.raft.leader_id);
        let mut consensus = Consensus {
            raw,
            configuration: log.configuration,
            configured: log.configured,
            rng: ChaCha8Rng::seed_from_u64(seed),
            parked: VecDeque::new(),
            fetching: VecDeque::new(),
            installing: None,
            announced,
            timeout_ticks: 0,
            last_tick: Timestamp::default(),
            campaign_at: None,
            saved_hard_state,
            forgotten: None,
        };
        consensus.draw_timeout();
        Ok(consensus)
    }

    pub(crate) fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// The leader's consensus number.
    pub(crate) fn leader(&self) -> Option<u64> {
        (self.raw.raft.leader_id != raft::INVALID_ID).then_some(self.raw.raft.leader_id)
    }

    pub(crate) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(crate) fn committed(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.committed)
    }

    /// The end of this node's log.
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.last_index())
    }

    /// What this node acknowledged to a leader and has not any more.
    pub(crate) fn forgotten(&self) -> Option<LogIndex> {
        self.forgotten
    }

    /// A peer heard this node say that it had applied so much, which is durable when it is said.
    pub(crate) fn reminded(&mut self, applied: LogIndex) {
        if applied > self.last() {
            self.forgotten = Some(applied);
        }
    }

    /// When [`advance_time`](Self::advance_time) should be called at the latest.
    pub(crate) fn next_wake(&self) -> Timestamp {
        let tick = self.last_tick.plus(TICK);
        self.campaign_at.map_or(tick, |at| at.min(tick))
    }

    /// Lets time pass. Late beats are made up by at most one (traps A2 j): a stalled node must not
    /// believe that its peers were silent while it did not listen.
    pub(crate) fn advance_time(&mut self, now: Timestamp) {
        if now.since(self.last_tick) >= TICK {
            self.last_tick = now;
            // While a snapshot is put in force this node cannot stand: the library would look for entries
            // between what is applied and the snapshot, which are gone, and panic.
            if self.installing.is_none() {
                self.raw.raft.set_randomized_election_timeout(self.timeout_ticks);
                self.raw.tick();
            }
        }
        if self.campaign_at.is_some_and(|at| at <= now) {
            self.campaign_at = None;
            let raft = &self.raw.raft;
            if raft.leader_id == raft::INVALID_ID && raft.promotable() && self.installing.is_none() {
                let _ = self.raw.campaign();
            }
        }
    }

    /// The leader's process is gone: its connection closed and a new one was refused.
    ///
    /// Safe for Raft, which allows anybody to stand at any time. Unsafe for reads by lease, since
    /// this node forgets a leader that may still trust its lease: there are none (read index only).
    pub(crate) fn leader_died(&mut self, now: Timestamp, leader: u64, alive: &BTreeSet<u64>) {
        if self.raw.raft.leader_id != leader || self.leads() {
            return;
        }
        let term = self.raw.raft.term;
        // Keeps the vote of this term and ends the lease that would make us refuse other candidates.
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        if planted(Bug::HintForgetsVote) {
            self.raw.raft.vote = raft::INVALID_ID;
        }
        self.stand(now, alive, Duration::ZERO);
    }

    /// Peers are connected and nobody leads: no reason to wait for a full timeout of silence.
    pub(crate) fn may_elect(&mut self, now: Timestamp, alive: &BTreeSet<u64>) {
        let heard = self.configuration.nodes().into_iter().filter(|node| alive.contains(&node.raft_id())).collect();
        let majority = self.configuration.is_majority(&heard);
        if self.raw.raft.leader_id == raft::INVALID_ID
            && self.raw.raft.state == StateRole::Follower
            && self.campaign_at.is_none()
            && majority
        {
            self.stand(now, alive, START_DELAY);
        }
    }

    fn stand(&mut self, now: Timestamp, alive: &BTreeSet<u64>, delay: Duration) {
        let me = self.raw.raft.id;
        let rank = alive.iter().filter(|id| **id < me).count();
        let stagger = RANK_DELAY * u32::try_from(rank).unwrap_or(u32::MAX).min(100);
        self.campaign_at = Some(now.plus(delay + stagger));
    }

    /// A message from a peer. Ones that do not fit (from a node that is no member) are dropped, as
    /// Raft allows for any message.
    pub(crate) fn receive(&mut self, message: eraftpb::Message) {
        if message.get_msg_type() == MessageType::MsgAppend {
            let full = || self.raw.store().unapplied_bytes() > APPLY_LAG_BYTES_MAX;
            if !follows(&message) || full() {
                return;
            }
        }
        // A leader names in a heartbeat nothing that this node has not acknowledged to it in that term. The
        // library would panic.
        let heartbeat = message.get_msg_type() == MessageType::MsgHeartbeat;
        let current = message.term >= self.term().0;
        if heartbeat && message.commit > self.last().0 && (current || message.term == 0) {
            self.forgotten = current.then_some(LogIndex(message.commit)).or(self.forgotten);
            return;
        }
        // An order to stand, late or of a leader that knows no better; see `advance_time`.
        if message.get_msg_type() == MessageType::MsgTimeoutNow && self.installing.is_some() {
            return;
        }
        let _ = self.raw.step(message);
        if planted(Bug::CommitOldTermByCount) && self.leads() {
            let (copied, _) = self.raw.raft.mut_prs().maximal_committed_index();
            self.raw.raft.raft_log.commit_to(copied);
        }
    }

    /// A leader's snapshot lies ready in full. Returns whether Raft wants it; if so, an
    /// [`Output::Install`] follows.
    pub(crate) fn receive_snapshot(
        &mut self,
        from: u64,
        term: Term,
        (index, index_term): (LogIndex, Term),
        (configuration, configured): (Configuration, LogIndex),
    ) -> bool {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.from = from;
        message.to = self.raw.raft.id;
        message.term = term.0;
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = index.0;
        metadata.term = index_term.0;
        let configuration = if planted(Bug::SnapshotOfOwnVoters) && self.configuration.is_known() {
            self.configuration.clone()
        } else {
            configuration
        };
        if !planted(Bug::SnapshotWithoutVoters) {
            metadata.set_conf_state(reconfigure::conf_state(&configuration));
        }
        let _ = self.raw.step(message);
        let wanted = self.raw.snap().map(|snapshot| snapshot.get_metadata().index);
        if wanted == Some(index.0) {
            // The library counts with it from here on.
            self.configuration = configuration;
            self.configured = configured;
        }
        wanted.is_some()
    }

    /// # Errors
    /// [`NotProposed`] when this node cannot take it now.
    pub(crate) fn propose(&mut self, data: Vec<u8>) -> Result<(), NotProposed> {
        if !self.leads() {
            return Err(NotProposed::NotLeader);
        }
        if self.raw.store().unapplied_bytes() > APPLY_LAG_BYTES_MAX {
            return Err(NotProposed::Busy);
        }
        self.raw.propose(Vec::new(), data).map_err(|_| NotProposed::Busy)
    }

    /// Asks for an index that is at least everything acknowledged so far. The library may drop
    /// the question silently: ask again with a higher round.
    pub(crate) fn read_index(&mut self, round: u64) {
        self.raw.read_index(round.to_le_bytes().to_vec());
    }

    /// Hands leadership to a follower, which stands at once when it has caught up.
    pub(crate) fn transfer(&mut self, to: u64) {
        if self.leads() {
            self.raw.transfer_leader(to);
        }
    }

    /// Everything up to and including [`Append`] `number` is durable.
    pub(crate) fn persisted(&mut self, number: u64, out: &mut Vec<Output>) {
        let mut upto = None;
        while self.parked.front().is_some_and(|parked| parked.number <= number || parked.free) {
            let parked = self.parked.pop_front().expect("just looked");
            upto = Some(parked.number);
            out.extend(parked.messages.into_iter().map(sent));
        }
        if let Some(upto) = upto {
            self.raw.on_persist_ready(upto);
        }
    }

    /// The last append that was handed out and is not durable yet; or a snapshot that is being put in force.
    pub(crate) fn last_write(&self) -> Option<u64> {
        self.parked.back().map(|parked| parked.number)
    }

    /// Whether that one, and all before it, is durable.
    pub(crate) fn is_durable(&self, write: u64) -> bool {
        self.parked.front().is_none_or(|parked| parked.number > write)
    }

    /// Up to which entry the configuration was known from elsewhere than the log, when it was taken over.
    pub(crate) fn configured(&self) -> LogIndex {
        self.configured
    }

    /// Everything up to `index` is applied.
    pub(crate) fn applied(&mut self, index: LogIndex) {
        self.raw.mut_store().applied_to(index.0);
        // A snapshot may have overtaken an apply that was still on its way.
        if index.0 > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(index.0);
        }
    }

    /// The disk no longer holds entries before `first`.
    pub(crate) fn purged(&mut self, first: LogIndex) {
        self.raw.mut_store().purged(first.0);
    }

    /// The oldest [`Output::Fetch`] that is not answered yet.
    pub(crate) fn fetched(&mut self, entries: Vec<LogEntry>) {
        let Some(wanted) = self.fetching.pop_front() else { return };
        let entries = entries.into_iter().map(storage::entry).collect();
        self.raw.mut_store().set_fetched(entries);
        self.raw.on_entries_fetched(wanted.context);
        self.raw.mut_store().set_fetched(Vec::new());
    }

    pub(crate) fn unreachable(&mut self, peer: u64) {
        self.raw.report_unreachable(peer);
    }

    pub(crate) fn snapshot_sent(&mut self, to: u64, ok: bool) {
        self.raw.report_snapshot(to, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// The database of [`Output::Install`] is in force and the log begins after it.
    pub(crate) fn snapshot_installed(&mut self, index: LogIndex, out: &mut Vec<Output>) {
        if let Some(number) = self.installing.take() {
            self.persisted(number, out);
            self.applied(index);
        }
    }

    /// Collects what the events since the last call lead to.
    pub(crate) fn flush(&mut self, out: &mut Vec<Output>) {
        while self.installing.is_none() && self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let messages: Vec<_> = ready
                .take_messages()
                .into_iter()
                .filter_map(|message| self.following(message))
                .flat_map(parts)
                .collect();
            for state in ready.take_read_states() {
                if let Ok(round) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) {
                    out.push(Output::ReadConfirmed { round: u64::from_le_bytes(round), index: LogIndex(state.index) });
                }
            }
            let number = ready.number();
            let snapshot = ready.snapshot().get_metadata().clone();
            let installs = snapshot.index > 0;
            if installs {
                let conf_state = snapshot.get_conf_state().clone();
                self.raw.mut_store().reset(snapshot.index, snapshot.term, conf_state);
                self.installing = Some(number);
                self.saved_hard_state = self.hard_state();
                out.push(Output::Install {
                    index: LogIndex(snapshot.index),
                    term: Term(snapshot.term),
                    hard_state: self.saved_hard_state,
                });
            }
            let committed = ready.take_committed_entries();
            let entries = ready.take_entries();
            assert!(!installs || entries.is_empty(), "entries after a snapshot come with a later ready");
            self.raw.mut_store().append(&entries);
            if planted(Bug::ConfiguredAtAppend) {
                for entry in entries.iter().filter(|entry| entry.get_entry_type() != EntryType::EntryNormal) {
                    self.take_configuration(entry.index, &entry.data);
                }
            }
            // A leader that was deposed in this very turn still has appends to send.
            let mut parked_messages: Vec<_> = ready
                .take_persisted_messages()
                .into_iter()
                .filter_map(|message| self.following(message))
                .flat_map(parts)
                .collect();
            if planted(Bug::VoteBeforeSync) {
                let vote =
                    |message: &mut eraftpb::Message| message.get_msg_type() == MessageType::MsgRequestVoteResponse;
                out.extend(parked_messages.extract_if(.., vote).map(Output::Send));
            }
            let writes = ready.must_sync() && !installs;
            let mut votes = false;
            if writes {
                let hard_state = self.hard_state();
                let changed = hard_state != self.saved_hard_state;
                votes = (hard_state.0, hard_state.1) != (self.saved_hard_state.0, self.saved_hard_state.1);
                self.saved_hard_state = hard_state;
                out.push(Output::Append(Append {
                    number,
                    hard_state: changed.then_some(hard_state),
                    entries: entries.into_iter().map(log_entry).collect(),
                }));
            }
            let undurable = votes || self.parked.iter().any(|parked| parked.votes);
            if self.leads() && undurable && !planted(Bug::LeadsBeforeVote) {
                // Said in the order in which it was made.
                parked_messages.splice(..0, messages);
            } else {
                out.extend(messages.into_iter().map(sent));
            }
            self.raw.advance_append_async(ready);
            if planted(Bug::LeaderCountsUnsynced) && self.leads() {
                self.raw.on_persist_ready(number);
            }
            let free = !writes && !installs;
            if free && self.parked.is_empty() {
                out.extend(parked_messages.into_iter().map(Output::Send));
                self.raw.on_persist_ready(number);
            } else {
                self.parked.push_back(Parked { number, messages: parked_messages, votes, free });
            }
            if !committed.is_empty() {
                let committed = committed.into_iter().map(|entry| self.take_committed(entry)).collect();
                out.push(Output::Apply(committed));
            }
        }
        for wanted in self.raw.mut_store().take_wanted() {
            out.push(Output::Fetch {
                from: LogIndex(wanted.from),
                to_exclusive: LogIndex(wanted.to_exclusive),
                bytes_max: FETCH_BYTES,
            });
            self.fetching.push_back(wanted);
        }
        let role = (self.raw.raft.term, self.raw.raft.state, self.raw.raft.leader_id);
        if role != self.announced {
            self.draw_timeout();
            // Somebody leads, or stands in a newer term: let them win before standing as well.
            if role.2 != raft::INVALID_ID || role.0 > self.announced.0 {
                self.campaign_at = None;
            }
            self.announced = role;
            out.push(Output::RoleChanged);
        }
    }

    /// The message with its entries where they belong.
    ///
    /// The library (0.7.0, `batch_append`) joins entries to a message that waits for the same peer,
    /// and looks only at that one's entries: to an empty one, a mere word about the commit index, it
    /// joins anything. After a late rejection that made entries 698 to 711 "follow" 711, and the
    /// follower acknowledged 725, which nobody had. Found by the simulator (seed 6 of its first day).
    fn following(&self, mut message: eraftpb::Message) -> Option<eraftpb::Message> {
        let Some(first) = message.entries.first().map(|entry| entry.index) else { return Some(message) };
        let misplaced = first != message.index + 1 && !planted(Bug::AppendsMisplaced);
        if message.get_msg_type() == MessageType::MsgAppend && misplaced {
            message.index = first - 1;
            // Without its term the message says nothing; it is as good as lost, and sent again.
            message.log_term = self.raw.raft.raft_log.term(first - 1).ok()?;
        }
        Some(message)
    }

    /// The voter that would need the least to take over from this leader. One that will vote no more
    /// comes last.
    pub(crate) fn best_follower(&self, alive: &BTreeSet<u64>) -> Option<u64> {
        let stays = |id: u64| self.configuration.voters.iter().any(|node| node.raft_id() == id);
        alive
            .iter()
            .filter(|id| **id != self.raw.raft.id)
            .filter_map(|id| Some((*id, self.raw.raft.prs().get(*id)?.matched)))
            .max_by_key(|(id, matched)| (stays(*id), *matched, u64::MAX - id))
            .map(|(id, _)| id)
    }

    fn hard_state(&self) -> (u64, u64, u64) {
        let state = self.raw.raft.hard_state();
        (state.term, state.vote, state.commit)
    }

    fn draw_timeout(&mut self) {
        let spread = u32::try_from(ELECTION_TICKS).expect("small");
        self.timeout_ticks = ELECTION_TICKS + usize::try_from(self.rng.next_u32() % spread).expect("small");
    }
}

/// Whether the entries of an append are numbered one after another from its index on. The library
/// believes it unseen, and acknowledges as many as there are.
fn follows(append: &eraftpb::Message) -> bool {
    append.entries.iter().zip(append.index + 1..).all(|(entry, index)| entry.index == index)
}

fn sent(message: eraftpb::Message) -> Output {
    if message.get_msg_type() == MessageType::MsgSnapshot {
        Output::SendSnapshot(message)
    } else {
        Output::Send(message)
    }
}

fn log_entry(entry: eraftpb::Entry) -> LogEntry {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => EntryKind::Normal,
        // The older form is proposed by nobody and refused on the link.
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => EntryKind::Membership,
    };
    LogEntry { index: LogIndex(entry.index), term: Term(entry.term), kind, data: entry.data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::id::NodeId;

    fn entries(range: std::ops::RangeInclusive<u64>) -> Vec<eraftpb::Entry> {
        range.map(|index| eraftpb::Entry { index, term: 1, ..Default::default() }).collect()
    }

    fn append(index: u64, entries: Vec<eraftpb::Entry>) -> eraftpb::Message {
        let mut message = eraftpb::Message { index, log_term: 1, term: 1, from: 2, to: 1, ..Default::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.set_entries(entries.into());
        message
    }

    fn three_voters() -> Configuration {
        Configuration::of((1..=3).map(|number| NodeId::from_u128(number << 64)).collect())
    }

    /// A follower, numbered 1 of 3, whose log has entries 1 to 8 of term 1.
    fn follower() -> Consensus {
        let log = RecoveredLog {
            term: 1,
            terms: vec![(LogIndex(1), Term(1))],
            unapplied: entries(1..=8).into_iter().map(log_entry).collect(),
            configuration: three_voters(),
            ..RecoveredLog::default()
        };
        Consensus::new(1, log, LogIndex(0), 7).unwrap()
    }

    #[test]
    fn entries_that_the_library_joined_to_a_word_about_the_commit_index_are_put_where_they_belong() {
        let message = follower().following(append(8, entries(5..=8))).unwrap();
        assert_eq!((message.index, message.log_term), (4, 1));
        let right = append(4, entries(5..=8));
        assert_eq!(follower().following(right.clone()), Some(right));
        assert_eq!(follower().following(append(3, Vec::new())), Some(append(3, Vec::new())));
    }

    #[test]
    fn a_node_does_not_stand_while_a_snapshot_is_put_in_force() {
        let (mut consensus, mut out) = (follower(), Vec::new());
        assert!(consensus.receive_snapshot(2, Term(1), (LogIndex(100), Term(1)), (three_voters(), LogIndex(100))));
        consensus.flush(&mut out);
        assert!(out.iter().any(|output| matches!(output, Output::Install { .. })));
        let mut order = eraftpb::Message { term: 1, from: 2, to: 1, ..Default::default() };
        order.set_msg_type(MessageType::MsgTimeoutNow);
        consensus.receive(order);
        let second = |second: u64| Timestamp(Duration::from_secs(second));
        (1..60).for_each(|passed| consensus.advance_time(second(passed)));
        assert_eq!(consensus.raw.raft.state, StateRole::Follower);
        consensus.snapshot_installed(LogIndex(100), &mut out);
        (60..90).for_each(|passed| consensus.advance_time(second(passed)));
        assert_eq!(consensus.raw.raft.state, StateRole::PreCandidate);
    }

    #[test]
    fn a_log_that_is_shorter_than_what_a_leader_was_told_is_noticed() {
        let mut consensus = follower();
        let mut heartbeat = eraftpb::Message { term: 1, from: 2, to: 1, commit: 8, ..Default::default() };
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        consensus.receive(heartbeat.clone());
        assert_eq!(consensus.forgotten(), None);
        consensus.receive(eraftpb::Message { commit: 9, term: 0, ..heartbeat.clone() });
        assert_eq!(consensus.forgotten(), None, "of no term at all, which no leader sends");
        consensus.receive(eraftpb::Message { commit: 9, ..heartbeat });
        assert_eq!(consensus.forgotten(), Some(LogIndex(9)));
    }

    #[test]
    fn a_voter_that_is_alone_says_nothing_before_its_vote_is_durable() {
        let (me, learner) = (NodeId::from_u128(1 << 64), NodeId::from_u128(2 << 64));
        let configuration = Configuration { learners: [learner].into(), ..Configuration::of([me].into()) };
        let mut consensus =
            Consensus::new(1, RecoveredLog { configuration, ..RecoveredLog::default() }, LogIndex(0), 7).unwrap();
        let mut out = Vec::new();
        (1..60).for_each(|second| consensus.advance_time(Timestamp(Duration::from_secs(second))));
        assert!(consensus.leads());
        consensus.flush(&mut out);
        consensus.advance_time(Timestamp(Duration::from_secs(61)));
        consensus.flush(&mut out);
        let said = |out: &[Output]| out.iter().filter(|output| matches!(output, Output::Send(_))).count();
        assert_eq!(said(&out), 0, "it could lead this term once more after a power cut: {out:?}");
        consensus.persisted(u64::MAX, &mut out);
        assert!(said(&out) > 0);
    }

    #[test]
    fn an_append_whose_entries_do_not_follow_its_index_is_not_acknowledged() {
        let answers = |message: eraftpb::Message| {
            let mut consensus = follower();
            let mut out = Vec::new();
            consensus.receive(message);
            consensus.flush(&mut out);
            consensus.persisted(u64::MAX, &mut out);
            let index = |output: &Output| match output {
                Output::Send(message) => Some(message.index),
                _ => None,
            };
            out.iter().filter_map(index).collect::<Vec<u64>>()
        };
        assert_eq!(answers(append(4, entries(5..=8))), [8]);
        // It has all of them: the library would count four more than it has.
        assert_eq!(answers(append(8, entries(5..=8))), [0u64; 0]);
    }
}
