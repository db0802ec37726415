//! Every cause of work and every consequence.

use crate::configuration::Configuration;
use crate::consensus::{Append, CommittedEntry, LogEntry};
use crate::wire::Body;
use quorate_membership::swim::Rumor;
use quorate_model::assignment::Assignment;
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::{LogIndex, NodeId, ReplicaId, RequestId, ServiceName, Term};
use quorate_model::need::Prepared;
use quorate_model::observed::{GatewayReport, Pending, ReplicaStatus, Told, TrustReport};
use quorate_model::resource::Usage;
use quorate_model::state::{Change, ClusterState};
use quorate_model::time::{Timestamp, WallTime};
use quorate_scheduler::Survey;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The moment of an event, on all clocks. The shell reads them once for all that it found waiting, and reads
/// them after it found them: a renewal that came in after the reading would be acknowledged as of a moment
/// before it was sent, and a process that was stopped just there would be wrong by as long as that took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub mono: Timestamp,
    pub wall: WallTime,
    /// What a holder of leases goes by: of all that has passed since the node started, at least this much.
    pub held: Timestamp,
    /// What a voter goes by: at most this much has passed.
    pub waited: Timestamp,
}

impl Now {
    /// On a machine whose clocks agree on how fast time passes.
    #[must_use]
    pub fn of(mono: Timestamp, wall: WallTime) -> Now {
        Now { mono, wall, held: mono, waited: mono }
    }
}

/// Until when a replica of this node holds the lease without which it must not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub replica: ReplicaId,
    pub epoch: u64,
    /// On the clock of [`Now::held`].
    pub until: Timestamp,
}

/// Names a question of the shell in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// Time passed; at the latest at [`crate::Node::next_wake`].
    Tick,
    /// A peer said something on its link.
    Received { from: NodeId, message: Body },
    /// A node opened a connection to this one, and said where its own link is found.
    Called { peer: NodeId, link: String },
    /// A link works in both directions.
    LinkUp { peer: NodeId },
    /// A link ended. `refused`: a new connection was refused at once, so the process is gone.
    LinkDown { peer: NodeId, refused: bool },
    /// A client wants a mutation. It is answered by whoever sees its id applied, or by
    /// [`Effect::Refuse`].
    Propose { proposal: Proposal, deadline: Timestamp },
    /// A client wants a linearizable read.
    Read { ticket: Ticket, deadline: Timestamp },
    /// An operator wants another leader.
    Transfer { ticket: Ticket, to: NodeId, deadline: Timestamp },
    /// Somebody wants to know what plans are made of; see [`Effect::Surveyed`].
    Survey { ticket: Ticket },
    /// This node is about to end, and not to come back at once: what runs once here is started elsewhere
    /// first, as far as that can be. [`Effect::HandedOver`] says when nothing is left to wait for; then comes
    /// [`Event::Leave`].
    HandOver,
    /// This node is about to end: the cluster is told that it left, and another one leads.
    /// [`Effect::Left`] says when that is done.
    Leave,
    /// The log is durable up to this [`Append`].
    Persisted { number: u64 },
    /// Entries are in the database, in order.
    Applied { entries: Vec<AppliedEntry> },
    /// The answer to [`Effect::ReadLog`], in the order of the questions.
    LogRead { entries: Vec<LogEntry> },
    /// The log no longer holds entries before `first`.
    LogPurged { first: LogIndex },
    /// What this node proves itself with now, and how far it is with the cluster's keys.
    Trust(TrustReport),
    /// What this node's replicas do now.
    Replicas(Vec<ReplicaStatus>),
    /// What this node's replicas use. The others are told with the next report.
    Usage(BTreeMap<ReplicaId, Usage>),
    /// What this node's replicas tell of themselves. The others are told with the next report.
    Scraped(Told),
    /// What the queries found that services go by, in this node's own database.
    Counted(Counts),
    /// What this node has for running services. The others are told with the next report.
    Drivers(BTreeSet<String>),
    /// What this node's file of settings says and is not in force.
    Pending(Pending),
    /// What this node found out about the services that it may run and that need something.
    Prepared(Vec<Prepared>),
    /// Gossip says something else of a node than before; see [`crate::Sight`]. It decides nothing.
    Gossip { node: NodeId, generation: u64, rumor: Rumor },
    /// Node `by`, which showed the cluster's certificate, will not speak with this node: it was expelled.
    Expelled { by: NodeId },
    /// Node `peer` and this one do not believe each other: their certificates are of different authorities.
    Stranger { peer: NodeId },
    /// A gateway that takes its routes from this node.
    Gateway(GatewayReport),
    /// A database from a leader lies ready to be installed. One of its files may be ahead of `index`, and
    /// with it the configuration, which is that of the entry `configured`.
    SnapshotReceived {
        from: NodeId,
        term: Term,
        index: LogIndex,
        index_term: Term,
        configuration: Configuration,
        configured: LogIndex,
    },
    /// [`Effect::SendSnapshot`] ended.
    SnapshotSent { to: NodeId, ok: bool },
    /// [`Effect::InstallSnapshot`] is done; this is what the database now holds.
    SnapshotInstalled { index: LogIndex, state: Box<ClusterState> },
}

/// What queries found, in thousandths, or why nothing.
pub type Counts = BTreeMap<ServiceName, Result<u64, String>>;

/// An entry that is in the database.
#[derive(Debug, Clone, PartialEq)]
pub struct AppliedEntry {
    pub index: LogIndex,
    pub request_id: Option<RequestId>,
    pub outcome: Outcome,
    pub changes: Vec<Change>,
    /// Of `system` and `main` after this entry; `None` while a restart makes one of them unknown.
    pub digests: Option<[u64; 2]>,
}

/// Something must be done, in the order of the list.
#[derive(Debug)]
pub enum Effect {
    Send {
        to: NodeId,
        message: Body,
    },
    /// Make it durable, then say [`Event::Persisted`]. Later ones may join the same sync.
    Append(Append),
    /// Read entries from the log for a follower that is behind.
    ReadLog {
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_max: usize,
    },
    /// Run these entries, answer whoever waits for their request ids, then say [`Event::Applied`].
    Apply(Vec<CommittedEntry>),
    /// The mutation will not be answered by its applying.
    Refuse {
        request_id: RequestId,
        why: Refused,
    },
    /// The database of this node now holds everything that the read must see.
    ReadReady {
        tickets: Vec<Ticket>,
        /// Up to where that is.
        applied: LogIndex,
    },
    ReadFailed {
        tickets: Vec<Ticket>,
    },
    Transferred {
        ticket: Ticket,
        result: Result<(), TransferFailed>,
    },
    /// All that this node's plan is made of, at this moment.
    Surveyed {
        ticket: Ticket,
        survey: Box<Survey>,
    },
    /// What this node is to run. Said first when this node has caught up with the cluster.
    Assign(Assignment),
    /// Leases of this node's replicas are held for longer than what was said before. A replica that has one
    /// ends by itself when nothing more is said, whatever becomes of this process.
    Hold(Vec<Held>),
    /// A drill takes this node away: from so long after now, and for so long, it says nothing to the others and
    /// hears nothing of them. The shell ends that by its own clock, whatever is said meanwhile.
    GoAway {
        after: Duration,
        away: Duration,
    },
    /// Send the whole database on a bulk connection, then say [`Event::SnapshotSent`].
    SendSnapshot {
        to: NodeId,
        term: Term,
    },
    /// Put the received database in force and begin the log after it, with this hard state (term,
    /// vote, commit), then say [`Event::SnapshotInstalled`].
    InstallSnapshot {
        index: LogIndex,
        term: Term,
        hard_state: (u64, u64, u64),
    },
    /// The database that was received up to here is not needed.
    DiscardSnapshot {
        index: LogIndex,
    },
    /// The other nodes from now on, and where their links may be found (HOST:PORT, the likeliest first).
    /// Links to new ones are to be opened, those to others ended. Said first when the node starts.
    Peers(BTreeMap<NodeId, Vec<String>>),
    /// After [`Event::HandOver`]: what ran once here runs elsewhere, or cannot in time.
    HandedOver,
    /// After [`Event::Leave`]: the cluster knows, and this node leads no longer.
    Left,
    /// Something that people look at has changed.
    Changed,
    /// This node must not say another word; it is silent from here on. The shell ends it.
    MustEnd(Unfit),
}

/// Why a node must not go on: what it would say could contradict what it has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// An old copy was put in the place of its data, or the disk lost what it had confirmed.
    #[error(
        "this node had entry {had} of the log, and what is on its disk ends with {has}: it is older than what \
             this node has said and promised"
    )]
    Forgot { had: LogIndex, has: LogIndex },
    /// Another process registers under this node's id whenever this one does.
    #[error("this node runs twice: a copy of its data directory has taken its place")]
    Superseded,
}

/// Why a mutation will not be answered by its applying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Nothing was written.
    Overloaded,
    /// Unknown outcome: the deadline came first.
    Unknown { waited: Duration },
}

/// Why another leader was not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferFailed {
    UnknownNode,
    NoLeader,
    NotTaken { waited: Duration },
}
