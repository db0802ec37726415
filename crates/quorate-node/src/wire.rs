//! What nodes say to each other: the messages of the node link, as bytes.
//!
//! prost, so that nodes of neighbouring versions understand each other: fields are only ever
//! added, unknown ones are skipped. The consensus library never decodes bytes from the network:
//! its messages are rebuilt here from our own types, field by field.
//!
//! A frame on a connection is a length (u32, little endian) and one [`Frame`]. The shell reads and
//! writes the stream; how frames are cut out of it and what is in them is decided here, so that the
//! simulator and the fuzzers run the same code.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use quorate_lease::{Age, Electorate, Lease};
use quorate_model::entry::{Kind, Proposal};
use quorate_model::fence::BadFence;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, RequestId};
use quorate_model::observed::NodeReport;
use quorate_model::time::WallTime;
use raft::eraftpb;
use std::collections::BTreeSet;
use std::time::Duration;

/// The longest frame that is accepted. An append carries at most 256 KiB of entries or one entry,
/// and an entry is bounded by the API's body limit (8 MiB).
pub const FRAME_MAX: usize = 16 << 20;

/// The link protocol's version, said in [`Hello`].
pub const VERSION: u32 = 1;

/// One message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Frame {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 26, 27, 34, 35")]
    pub body: Option<Body>,
}

/// What a frame holds.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// The first frame of a connection, from each side.
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Raft(RaftMessage),
    #[prost(message, tag = "3")]
    Forward(Forward),
    #[prost(message, tag = "4")]
    Status(Status),
    #[prost(message, tag = "5")]
    Transfer(Transfer),
    #[prost(message, tag = "6")]
    Snapshot(SnapshotHead),
    #[prost(message, tag = "7")]
    Ping(Ping),
    #[prost(message, tag = "8")]
    GossipKeys(GossipKeys),
    #[prost(message, tag = "9")]
    Remembered(Remembered),
    #[prost(message, tag = "10")]
    Renew(Renew),
    #[prost(message, tag = "11")]
    Renewed(Renewed),
    #[prost(message, tag = "12")]
    AskAges(AskAges),
    #[prost(message, tag = "13")]
    Ages(Ages),
    #[prost(message, tag = "16")]
    LogQuestion(LogQuestion),
    #[prost(message, tag = "17")]
    LogAnswer(LogAnswer),
    #[prost(message, tag = "26")]
    AskSecrets(AskSecrets),
    #[prost(message, tag = "27")]
    GiveSecrets(GiveSecrets),
    #[prost(message, tag = "34")]
    TryExternal(TryExternal),
    #[prost(message, tag = "35")]
    TriedExternal(TriedExternal),
}

/// Gossip's second way: asks whether the other side's process still answers, where its datagrams do
/// not arrive. Answered by the shell of the node, with the same frame.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Ping {
    #[prost(bool, tag = "1")]
    pub is_answer: bool,
}

/// The keys that seal gossip, as the speaker has them. Said when a link opens and when they change.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct GossipKeys {
    /// As `tls/gossip.key` has them.
    #[prost(string, tag = "1")]
    pub ring: String,
}

impl std::fmt::Debug for GossipKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GossipKeys")
    }
}

/// A node asks a manager for the values of secrets that services name which it may run.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AskSecrets {
    #[prost(string, repeated, tag = "1")]
    pub names: Vec<String>,
}

/// A manager's answer to [`AskSecrets`]: those that the node may have and that the manager can open.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GiveSecrets {
    #[prost(message, repeated, tag = "1")]
    pub secrets: Vec<GivenSecret>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct GivenSecret {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Microseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub changed_us: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub value: Bytes,
}

impl std::fmt::Debug for GivenSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GivenSecret({}, version {})", self.name, self.version)
    }
}

/// A manager asks a node to log in to an external, before the cluster takes it.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct TryExternal {
    /// The manager's own number for the question.
    #[prost(fixed64, tag = "1")]
    pub ticket: u64,
    /// JSON of `quorate_model::external::External`.
    #[prost(bytes = "bytes", tag = "2")]
    pub external: Bytes,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub password: Option<Bytes>,
}

impl std::fmt::Debug for TryExternal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TryExternal({})", self.ticket)
    }
}

/// A node's answer to [`TryExternal`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct TriedExternal {
    #[prost(fixed64, tag = "1")]
    pub ticket: u64,
    /// JSON of `quorate_model::external::NodeLogin`.
    #[prost(bytes = "bytes", tag = "2")]
    pub login: Bytes,
}

/// What the listener told the speaker about itself before, said when a link opens: so a node whose data were
/// put back to an earlier state gets to know it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Remembered {
    /// The largest index that the listener said to have applied.
    #[prost(uint64, tag = "1")]
    pub applied: u64,
}

/// A holder asks a voter to renew its leases.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Renew {
    /// Of the holder's process. Numbers of another run mean nothing.
    #[prost(fixed64, tag = "1")]
    pub run: u64,
    #[prost(message, repeated, tag = "2")]
    pub leases: Vec<Renewal>,
}

/// One lease's renewal, or a question about it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Renewal {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Which renewal of this lease in this run, or which question in this term.
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

/// A voter acknowledges renewals: those that are listed, which may be fewer than were asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Renewed {
    /// As it was asked.
    #[prost(fixed64, tag = "1")]
    pub run: u64,
    #[prost(message, repeated, tag = "2")]
    pub leases: Vec<Renewal>,
    /// As of the newest configuration in the voter's log.
    #[prost(message, optional, tag = "3")]
    pub voters: Option<Voters>,
}

/// Who votes as of a voter's log: 16 bytes a node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Voters {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub voters: Vec<Bytes>,
    /// While voters change, those of before.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub outgoing: Vec<Bytes>,
}

/// The leader asks a voter when it acknowledged these leases last.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AskAges {
    /// The leader's.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(message, repeated, tag = "2")]
    pub leases: Vec<Renewal>,
}

/// A voter's answer to [`AskAges`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ages {
    /// As it was asked.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(message, repeated, tag = "2")]
    pub ages: Vec<LeaseAge>,
    /// As of the newest configuration in the voter's log.
    #[prost(message, optional, tag = "3")]
    pub voters: Option<Voters>,
}

/// When a voter acknowledged a lease last.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseAge {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Of the question.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// At least so many microseconds ago.
    #[prost(uint64, tag = "4")]
    pub since_us: u64,
    /// Its end is in the voter's log for good: it will not be acknowledged again.
    #[prost(bool, tag = "5")]
    pub fenced: bool,
}

/// Who is speaking. A connection whose hello does not fit is closed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// 16 bytes each.
    #[prost(bytes = "bytes", tag = "2")]
    pub cluster: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub node: Bytes,
    /// `true` on a connection for bulk data.
    #[prost(bool, tag = "4")]
    pub bulk: bool,
    /// HOST:PORT of the speaker's own link, so that one who has not heard of it yet can answer.
    #[prost(string, tag = "5")]
    pub link: String,
    /// Which incarnation of the cluster the speaker belongs to; 0 is the first, as 1 is.
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
    /// Why the speaker does not listen on this connection; empty if it does.
    #[prost(string, tag = "7")]
    pub refused: String,
}

/// A consensus message; the fields of Raft's own.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftMessage {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(fixed64, tag = "2")]
    pub to: u64,
    #[prost(fixed64, tag = "3")]
    pub from: u64,
    #[prost(uint64, tag = "4")]
    pub term: u64,
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    #[prost(uint64, tag = "6")]
    pub index: u64,
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<RaftEntry>,
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    #[prost(uint64, tag = "9")]
    pub commit_term: u64,
    #[prost(uint64, tag = "10")]
    pub request_snapshot: u64,
    #[prost(bool, tag = "11")]
    pub reject: bool,
    #[prost(uint64, tag = "12")]
    pub reject_hint: u64,
    #[prost(bytes = "bytes", tag = "13")]
    pub context: Bytes,
    #[prost(sint64, tag = "14")]
    pub priority: i64,
}

/// A log entry on its way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftEntry {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// Mutations for the leader to propose. Nothing is answered: the sender sees its requests when it
/// applies them, and sends them again when it does not.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Forward {
    #[prost(message, repeated, tag = "1")]
    pub proposals: Vec<ForwardedProposal>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ForwardedProposal {
    #[prost(bytes = "bytes", tag = "1")]
    pub request_id: Bytes,
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub payload: Bytes,
    /// `SERVICE@EPOCH`; empty: none.
    #[prost(string, tag = "4")]
    pub fence: String,
}

/// What a node says about itself to every manager: when it changes, and each second.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// A [`NodeReport`], JSON.
    #[prost(bytes = "bytes", tag = "1")]
    pub report: Bytes,
    /// The last applied index, and the digests of `system` and `main` after it.
    #[prost(uint64, tag = "2")]
    pub applied: u64,
    #[prost(fixed64, repeated, tag = "3")]
    pub digests: Vec<u64>,
    /// The sender's wall clock, microseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub wall_us: u64,
}

/// Please hand leadership to this node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Transfer {
    #[prost(bytes = "bytes", tag = "1")]
    pub to: Bytes,
}

/// Precedes the files of a snapshot on a bulk connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotHead {
    /// The sender's term.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// The store's manifest, JSON.
    #[prost(bytes = "bytes", tag = "2")]
    pub manifest: Bytes,
}

/// Asks the other node for a piece of a log that it has, on a bulk connection. Answered by a [`LogAnswer`]; then
/// the next one may be asked.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogQuestion {
    /// 16 bytes: the log of this replica. Empty: what the other node's server says about itself.
    #[prost(bytes = "bytes", tag = "1")]
    pub replica: Bytes,
    /// From this byte on, unless `last_lines` is there.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(uint32, optional, tag = "3")]
    pub last_lines: Option<u32>,
    /// At most so many bytes; the other side may give fewer.
    #[prost(uint32, tag = "4")]
    pub bytes_max: u32,
}

/// A piece of a log, or why there is none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogAnswer {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// The offset to go on from.
    #[prost(uint64, tag = "2")]
    pub next: u64,
    #[prost(enumeration = "LogTrouble", tag = "3")]
    pub trouble: i32,
    /// More about the trouble, for people.
    #[prost(string, tag = "4")]
    pub why: String,
}

/// Why a node gives no piece of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum LogTrouble {
    /// It does.
    None = 0,
    /// It has no such log.
    Unknown = 1,
    /// Its disk does not give it.
    Unreadable = 2,
    /// Too many ask at a time.
    Busy = 3,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    #[error("a frame of {0} bytes; {FRAME_MAX} is the limit")]
    TooLong(usize),
    #[error("the frame is damaged")]
    Damaged(#[source] prost::DecodeError),
    /// From a newer version, or empty.
    #[error("the frame has no content that this version knows")]
    Empty,
    #[error("`{0}` is not as long as it must be")]
    Length(&'static str),
    #[error("the report is not JSON of this version")]
    Report(#[source] serde_json::Error),
    #[error("a lease has a name that no service can have")]
    Lease,
    #[error("consensus message kind {0} is unknown")]
    RaftKind(i32),
    #[error("a mutation's fence is none")]
    Fence(#[source] BadFence),
}

impl Body {
    /// Appends the length and the frame.
    pub fn encode_into(self, out: &mut BytesMut) {
        let frame = Frame { body: Some(self) };
        let length = frame.encoded_len();
        out.reserve(4 + length);
        out.extend_from_slice(&u32::try_from(length).expect("a frame is far below 4 GiB").to_le_bytes());
        frame.encode(out).expect("BytesMut grows");
    }

    /// Reads a frame (without its length).
    ///
    /// # Errors
    /// [`DecodeError`] when it is damaged or holds nothing that this version knows.
    pub fn decode(bytes: Bytes) -> Result<Body, DecodeError> {
        Frame::decode(bytes).map_err(DecodeError::Damaged)?.body.ok_or(DecodeError::Empty)
    }

    /// Cuts one frame off the front of what was received; `None` until one is complete. A frame whose
    /// content this version does not know is skipped.
    ///
    /// # Errors
    /// [`DecodeError`]: what follows cannot be understood either, so the connection is to be closed.
    pub fn take(received: &mut BytesMut) -> Result<Option<Body>, DecodeError> {
        loop {
            let Some(length) = received.first_chunk() else { return Ok(None) };
            let length = u32::from_le_bytes(*length) as usize;
            if length > FRAME_MAX {
                return Err(DecodeError::TooLong(length));
            }
            if received.len() < 4 + length {
                received.reserve(4 + length - received.len());
                return Ok(None);
            }
            let frame = received.split_to(4 + length).freeze().slice(4..);
            match Body::decode(frame) {
                Err(DecodeError::Empty) => {}
                decoded => return decoded.map(Some),
            }
        }
    }
}

fn uuid(bytes: &Bytes, what: &'static str) -> Result<uuid::Uuid, DecodeError> {
    uuid::Uuid::from_slice(bytes).map_err(|_| DecodeError::Length(what))
}

impl Hello {
    /// # Errors
    /// [`DecodeError::Length`] unless the id has 16 bytes.
    pub fn node_id(&self) -> Result<NodeId, DecodeError> {
        uuid(&self.node, "hello.node").map(NodeId)
    }
}

impl Renewal {
    #[must_use]
    pub fn new(lease: &Lease, number: u64) -> Renewal {
        Renewal { name: lease.name.as_str().to_owned(), epoch: lease.epoch, number }
    }

    /// The lease that is meant.
    ///
    /// # Errors
    /// [`DecodeError::Lease`] when the name is none.
    pub fn lease(&self) -> Result<Lease, DecodeError> {
        lease(&self.name, self.epoch)
    }
}

impl LeaseAge {
    #[must_use]
    pub fn new(asked: Renewal, age: &Age) -> LeaseAge {
        LeaseAge {
            name: asked.name,
            epoch: asked.epoch,
            number: asked.number,
            // Less is never more than it was.
            since_us: u64::try_from(age.since.as_micros()).unwrap_or(u64::MAX),
            fenced: age.fenced,
        }
    }

    /// The lease that is meant.
    ///
    /// # Errors
    /// [`DecodeError::Lease`] when the name is none.
    pub fn lease(&self) -> Result<Lease, DecodeError> {
        lease(&self.name, self.epoch)
    }

    /// What is said of it by a node that has these voters in its log.
    #[must_use]
    pub fn age(&self, voters: Electorate) -> Age {
        Age { since: Duration::from_micros(self.since_us), fenced: self.fenced, voters }
    }
}

fn lease(name: &str, epoch: u64) -> Result<Lease, DecodeError> {
    let name = name.parse().map_err(|_| DecodeError::Lease)?;
    Ok(Lease { name, epoch })
}

impl Voters {
    #[must_use]
    pub fn new(electorate: &Electorate) -> Voters {
        let ids = |nodes: &BTreeSet<NodeId>| -> Vec<Bytes> {
            nodes.iter().map(|node| Bytes::copy_from_slice(node.0.as_bytes())).collect()
        };
        Voters { voters: ids(&electorate.voters), outgoing: ids(&electorate.outgoing) }
    }

    /// # Errors
    /// [`DecodeError::Length`] unless each id has 16 bytes.
    pub fn electorate(&self) -> Result<Electorate, DecodeError> {
        let nodes = |ids: &[Bytes]| ids.iter().map(|id| uuid(id, "voters").map(NodeId)).collect::<Result<_, _>>();
        Ok(Electorate { voters: nodes(&self.voters)?, outgoing: nodes(&self.outgoing)? })
    }
}

impl Transfer {
    #[must_use]
    pub fn new(to: NodeId) -> Transfer {
        Transfer { to: Bytes::copy_from_slice(to.0.as_bytes()) }
    }

    /// # Errors
    /// [`DecodeError::Length`] unless the id has 16 bytes.
    pub fn node(&self) -> Result<NodeId, DecodeError> {
        uuid(&self.to, "transfer.to").map(NodeId)
    }
}

impl LogQuestion {
    /// Whose log it is; `None`: the server's own.
    ///
    /// # Errors
    /// [`DecodeError::Length`] unless the id has 16 bytes.
    pub fn replica(&self) -> Result<Option<ReplicaId>, DecodeError> {
        if self.replica.is_empty() {
            return Ok(None);
        }
        uuid(&self.replica, "log_question.replica").map(|id| Some(ReplicaId(id)))
    }
}

impl ForwardedProposal {
    #[must_use]
    pub fn new(proposal: &Proposal) -> ForwardedProposal {
        ForwardedProposal {
            request_id: Bytes::copy_from_slice(proposal.request_id.0.as_bytes()),
            kind: proposal.kind as i32,
            payload: proposal.payload.clone(),
            fence: proposal.fence.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// # Errors
    /// [`DecodeError`] when the id, the kind or the fence is none.
    pub fn proposal(self) -> Result<Proposal, DecodeError> {
        let fence = match self.fence.as_str() {
            "" => None,
            text => Some(text.parse().map_err(DecodeError::Fence)?),
        };
        Ok(Proposal {
            request_id: RequestId(uuid(&self.request_id, "forward.request_id")?),
            kind: Kind::try_from(self.kind).map_err(|_| DecodeError::RaftKind(self.kind))?,
            fence,
            payload: self.payload,
        })
    }
}

impl Status {
    #[must_use]
    pub fn new(report: &NodeReport, applied: LogIndex, digests: Option<[u64; 2]>, wall: WallTime) -> Status {
        let report = serde_json::to_vec(report).expect("a report has string keys and no failing Serialize");
        let digests = digests.map(|digests| digests.to_vec()).unwrap_or_default();
        Status { report: report.into(), applied: applied.0, digests, wall_us: wall.as_micros() }
    }

    /// # Errors
    /// [`DecodeError::Report`] when the JSON is not a report.
    pub fn report(&self) -> Result<NodeReport, DecodeError> {
        serde_json::from_slice(&self.report).map_err(DecodeError::Report)
    }
}

impl From<eraftpb::Message> for RaftMessage {
    fn from(message: eraftpb::Message) -> RaftMessage {
        RaftMessage {
            kind: message.msg_type as i32,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.entries.into_iter().map(RaftEntry::from).collect(),
            commit: message.commit,
            commit_term: message.commit_term,
            request_snapshot: message.request_snapshot,
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context,
            priority: message.priority,
        }
    }
}

impl TryFrom<RaftMessage> for eraftpb::Message {
    type Error = DecodeError;

    fn try_from(message: RaftMessage) -> Result<Self, Self::Error> {
        use eraftpb::MessageType as M;
        // Every kind that may come from another node, by number; the rest are local to a node.
        let known = [
            M::MsgAppend,
            M::MsgAppendResponse,
            M::MsgRequestVote,
            M::MsgRequestVoteResponse,
            M::MsgHeartbeat,
            M::MsgHeartbeatResponse,
            M::MsgTransferLeader,
            M::MsgTimeoutNow,
            M::MsgReadIndex,
            M::MsgReadIndexResp,
            M::MsgRequestPreVote,
            M::MsgRequestPreVoteResponse,
        ];
        let kind = known.into_iter().find(|kind| *kind as i32 == message.kind);
        let mut out = eraftpb::Message::default();
        out.set_msg_type(kind.ok_or(DecodeError::RaftKind(message.kind))?);
        out.to = message.to;
        out.from = message.from;
        out.term = message.term;
        out.log_term = message.log_term;
        out.index = message.index;
        out.entries = message.entries.into_iter().map(eraftpb::Entry::try_from).collect::<Result<Vec<_>, _>>()?.into();
        out.commit = message.commit;
        out.commit_term = message.commit_term;
        out.request_snapshot = message.request_snapshot;
        out.reject = message.reject;
        out.reject_hint = message.reject_hint;
        out.context = message.context;
        out.priority = message.priority;
        Ok(out)
    }
}

impl From<eraftpb::Entry> for RaftEntry {
    fn from(entry: eraftpb::Entry) -> RaftEntry {
        RaftEntry { kind: entry.entry_type as i32, term: entry.term, index: entry.index, data: entry.data }
    }
}

impl TryFrom<RaftEntry> for eraftpb::Entry {
    type Error = DecodeError;

    fn try_from(entry: RaftEntry) -> Result<Self, Self::Error> {
        use eraftpb::EntryType as E;
        // `EntryConfChange` is the library's older form, which nobody here ever proposed.
        let known = [E::EntryNormal, E::EntryConfChangeV2];
        let kind = known.into_iter().find(|kind| *kind as i32 == entry.kind);
        let mut out = eraftpb::Entry::default();
        out.set_entry_type(kind.ok_or(DecodeError::RaftKind(entry.kind))?);
        out.term = entry.term;
        out.index = entry.index;
        out.data = entry.data;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(index: u64) -> eraftpb::Entry {
        let mut entry = eraftpb::Entry::default();
        entry.set_entry_type(eraftpb::EntryType::EntryNormal);
        entry.term = 3;
        entry.index = index;
        entry.data = Bytes::from_static(b"data");
        entry
    }

    #[test]
    fn a_consensus_message_survives_the_wire() {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgAppend);
        message.to = 1;
        message.from = u64::MAX;
        message.term = 3;
        message.log_term = 2;
        message.index = 9;
        message.entries = vec![entry(10), entry(11)].into();
        message.commit = 8;
        message.reject = true;
        message.reject_hint = 4;
        message.context = Bytes::from_static(b"ctx");
        let mut buffer = BytesMut::new();
        Body::Raft(message.clone().into()).encode_into(&mut buffer);
        let length = u32::from_le_bytes(buffer[..4].try_into().unwrap()) as usize;
        assert_eq!(length, buffer.len() - 4);
        let Body::Raft(read) = Body::decode(buffer.freeze().slice(4..)).unwrap() else { panic!("another body") };
        assert_eq!(eraftpb::Message::try_from(read).unwrap(), message);
    }

    #[test]
    fn n2_a_mutation_keeps_its_fence_on_its_way_to_the_leader() {
        let batch = quorate_model::sql::SqlBatch::default();
        let plain = Proposal::sql(RequestId::from_u128(1), &batch);
        let fenced = plain.clone().under(Some("db@4".parse().unwrap()));
        for proposal in [plain, fenced.clone()] {
            assert_eq!(ForwardedProposal::new(&proposal).proposal().unwrap(), proposal);
        }
        let bad = ForwardedProposal { fence: "db".into(), ..ForwardedProposal::new(&fenced) };
        assert!(matches!(bad.proposal(), Err(DecodeError::Fence(_))));
    }

    #[test]
    fn a_stream_is_cut_into_its_frames_wherever_it_is_torn() {
        let bodies = [Body::Transfer(Transfer::new(NodeId::from_u128(1))), Body::Hello(Hello::default())];
        let mut stream = BytesMut::new();
        let [first, second] = bodies.clone();
        first.encode_into(&mut stream);
        // From a newer version: nothing that this one knows.
        stream.extend_from_slice(&[3, 0, 0, 0, 0xfa, 0x01, 0]);
        second.encode_into(&mut stream);
        for torn in 0..stream.len() {
            let mut received = BytesMut::from(&stream[..torn]);
            let mut taken = Vec::new();
            while let Some(body) = Body::take(&mut received).unwrap() {
                taken.push(body);
            }
            received.extend_from_slice(&stream[torn..]);
            while let Some(body) = Body::take(&mut received).unwrap() {
                taken.push(body);
            }
            assert_eq!(taken, bodies, "torn at {torn}");
        }
        let too_long = Body::take(&mut BytesMut::from(&u32::MAX.to_le_bytes()[..]));
        assert!(matches!(too_long, Err(DecodeError::TooLong(_))));
    }

    #[test]
    fn a_message_that_only_a_node_may_send_itself_is_refused_from_the_wire() {
        for kind in [eraftpb::MessageType::MsgHup, eraftpb::MessageType::MsgPropose, eraftpb::MessageType::MsgSnapshot]
        {
            let message = RaftMessage { kind: kind as i32, ..RaftMessage::default() };
            assert!(eraftpb::Message::try_from(message).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn a_question_for_a_log_names_a_replica_or_the_server_itself() {
        let of = |replica: &'static [u8]| LogQuestion { replica: replica.into(), ..LogQuestion::default() }.replica();
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]).unwrap(), Some(ReplicaId::from_u128(9)));
        assert!(of(&[9]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Body::Raft(message)) = Body::decode(bytes.into()) {
                let _ = eraftpb::Message::try_from(message);
            }
        }
    }
}
