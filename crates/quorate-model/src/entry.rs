//! The envelope of every log entry.
//!
//! It carries all that the state machine may know besides its own rows: the time, the seed, the
//! request's id. Nothing else may influence an outcome, or replicas would differ.
//!
//! Format: prost; fields are only ever added. An entry with a higher version than [`VERSION`] stops the
//! node: it cannot know what the others do with it. So an entry has the lowest version that says all that it
//! says: 1, or 2 with a fence, which a node that knows no fences would do unjudged.

use crate::access::Actor;
use crate::command::{Command, Refusal};
use crate::fence::{BadFence, Fence};
use crate::id::RequestId;
use crate::sql::{SqlBatch, SqlOutcome};
use crate::time::WallTime;
use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

/// The newest envelope that this binary understands.
pub const VERSION: u32 = 2;

/// The version of an entry without a fence.
const UNFENCED: u32 = 1;

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Nothing. A new leader commits one to learn what is committed.
    Noop = 0,
    /// A [`SqlBatch`], prost. Goes to `main`.
    Sql = 1,
    /// A [`Command`], JSON. Goes to `system`.
    Command = 2,
}

/// The files of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Database {
    /// The cluster: nodes, services, replicas, events. Users read it, only commands write it.
    System = 0,
    /// The users' tables.
    Main = 1,
}

impl Database {
    pub const ALL: [Database; 2] = [Database::System, Database::Main];

    /// The name in API, CLI and file system.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Database::System => "system",
            Database::Main => "main",
        }
    }
}

/// A log entry's data.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    #[prost(enumeration = "Database", tag = "3")]
    pub database: i32,
    /// The leader's clock, microseconds since 1970, never less than the entry's before.
    #[prost(uint64, tag = "4")]
    pub time_us: u64,
    /// Seeds `random()` and everything else that must differ from entry to entry.
    #[prost(fixed64, tag = "5")]
    pub seed: u64,
    /// 16 bytes; empty when nobody will ever repeat the entry.
    #[prost(bytes = "bytes", tag = "6")]
    pub request_id: Bytes,
    /// A [`Fence`] as text, of SQL; empty: none.
    #[prost(string, tag = "7")]
    pub fence: String,
    #[prost(bytes = "bytes", tag = "8")]
    pub payload: Bytes,
}

/// A decoded payload.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    Noop,
    Sql(SqlBatch),
    Command(Command),
}

/// What a client asks to be put into the log: everything but what the leader adds.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub request_id: RequestId,
    pub kind: Kind,
    /// Under which epoch SQL is written; `None`: whatever the epochs are.
    pub fence: Option<Fence>,
    pub payload: Bytes,
}

impl Proposal {
    #[must_use]
    pub fn sql(request_id: RequestId, batch: &SqlBatch) -> Proposal {
        Proposal { request_id, kind: Kind::Sql, fence: None, payload: batch.encode_to_vec().into() }
    }

    /// The same request, done only while its epoch is the newest.
    #[must_use]
    pub fn under(self, fence: Option<Fence>) -> Proposal {
        Proposal { fence, ..self }
    }

    #[must_use]
    pub fn command(request_id: RequestId, command: &Command) -> Proposal {
        let payload = serde_json::to_vec(command).expect("commands have string keys and no failing Serialize");
        Proposal { request_id, kind: Kind::Command, fence: None, payload: payload.into() }
    }

    /// A command that somebody wants: its entry leaves a trace in the audit.
    #[must_use]
    pub fn command_by(request_id: RequestId, command: &Command, actor: &Actor) -> Proposal {
        #[derive(Serialize)]
        struct Signed<'a> {
            #[serde(flatten)]
            command: &'a Command,
            actor: &'a Actor,
        }
        let signed = Signed { command, actor };
        let payload = serde_json::to_vec(&signed).expect("commands have string keys and no failing Serialize");
        Proposal { request_id, kind: Kind::Command, fence: None, payload: payload.into() }
    }

    /// The same request, by the same person, to be refused for this reason.
    #[must_use]
    pub fn withheld(&self, why: Refusal) -> Proposal {
        let command = Command::Withheld { why };
        let envelope = Envelope::stamp(self.clone(), WallTime::default(), 0);
        match envelope.actor() {
            Ok(Some(actor)) => Proposal::command_by(self.request_id, &command, &actor),
            Ok(None) | Err(_) => Proposal::command(self.request_id, &command),
        }
    }
}

/// Why an entry cannot be understood. The node must stop: going on would make it differ.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    #[error("the entry has format version {found}, this binary knows up to {VERSION}")]
    TooNew { found: u32 },
    #[error("the entry's kind {0} is unknown to this binary")]
    UnknownKind(i32),
    #[error("the entry's envelope is damaged")]
    Envelope(#[source] prost::DecodeError),
    #[error("the entry's SQL payload is damaged")]
    Sql(#[source] prost::DecodeError),
    #[error("the entry's command cannot be read")]
    Command(#[source] serde_json::Error),
    #[error("the entry's fence cannot be read")]
    Fence(#[source] BadFence),
}

impl Envelope {
    /// What the leader appends for a proposal.
    #[must_use]
    pub fn stamp(proposal: Proposal, time: WallTime, seed: u64) -> Envelope {
        let database = match proposal.kind {
            Kind::Sql => Database::Main,
            Kind::Command | Kind::Noop => Database::System,
        };
        Envelope {
            version: if proposal.fence.is_some() { VERSION } else { UNFENCED },
            kind: proposal.kind as i32,
            database: database as i32,
            time_us: time.as_micros(),
            seed,
            request_id: Bytes::copy_from_slice(proposal.request_id.0.as_bytes()),
            fence: proposal.fence.map(|fence| fence.to_string()).unwrap_or_default(),
            payload: proposal.payload,
        }
    }

    /// Reads an entry's data. Empty data (a new leader's entry) is a no-op.
    ///
    /// # Errors
    /// [`EntryError`] when this binary cannot understand the envelope.
    pub fn read(data: Bytes) -> Result<Envelope, EntryError> {
        let envelope = Envelope::decode(data).map_err(EntryError::Envelope)?;
        if envelope.version > VERSION {
            return Err(EntryError::TooNew { found: envelope.version });
        }
        Ok(envelope)
    }

    /// # Errors
    /// [`EntryError`] when this binary cannot understand the payload.
    pub fn payload(&self) -> Result<Payload, EntryError> {
        match Kind::try_from(self.kind) {
            Ok(Kind::Noop) => Ok(Payload::Noop),
            Ok(Kind::Sql) => SqlBatch::decode(self.payload.clone()).map(Payload::Sql).map_err(EntryError::Sql),
            Ok(Kind::Command) => {
                serde_json::from_slice(&self.payload).map(Payload::Command).map_err(EntryError::Command)
            }
            Err(_) => Err(EntryError::UnknownKind(self.kind)),
        }
    }

    /// Who wants the command: the field `actor` beside the command's own. A node that does not know
    /// the field would ignore it.
    ///
    /// # Errors
    /// [`EntryError`] when this binary cannot understand it.
    pub fn actor(&self) -> Result<Option<Actor>, EntryError> {
        #[derive(Deserialize)]
        struct Beside {
            actor: Option<Actor>,
        }
        if Kind::try_from(self.kind) != Ok(Kind::Command) {
            return Ok(None);
        }
        serde_json::from_slice(&self.payload).map(|beside: Beside| beside.actor).map_err(EntryError::Command)
    }

    /// Under which epoch it was written.
    ///
    /// # Errors
    /// [`EntryError::Fence`] when the text is not a fence.
    pub fn fence(&self) -> Result<Option<Fence>, EntryError> {
        if self.fence.is_empty() {
            return Ok(None);
        }
        self.fence.parse().map(Some).map_err(EntryError::Fence)
    }

    #[must_use]
    pub fn time(&self) -> WallTime {
        WallTime(self.time_us)
    }

    #[must_use]
    pub fn request_id(&self) -> Option<RequestId> {
        uuid::Uuid::from_slice(&self.request_id).ok().map(RequestId)
    }

    /// The file that this entry writes. Unknown values count as `system`, whose entries never fail quietly.
    #[must_use]
    pub fn file(&self) -> Database {
        Database::try_from(self.database).unwrap_or(Database::System)
    }
}

/// What came of an entry: the same on every node, kept for as long as its request id is.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Noop,
    Sql(SqlOutcome),
    Command(Result<(), Refusal>),
}

impl Outcome {
    /// The bytes kept beside the request id.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Outcome::Noop => Vec::new(),
            Outcome::Sql(outcome) => outcome.encode_to_vec(),
            Outcome::Command(result) => {
                serde_json::to_vec(&result.as_ref().err()).expect("refusals have string keys and no failing Serialize")
            }
        }
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote for an entry of this kind.
    ///
    /// # Errors
    /// [`EntryError`] when the bytes are not such an outcome.
    pub fn from_bytes(kind: Kind, bytes: &[u8]) -> Result<Outcome, EntryError> {
        match kind {
            Kind::Noop => Ok(Outcome::Noop),
            Kind::Sql => SqlOutcome::decode(bytes).map(Outcome::Sql).map_err(EntryError::Sql),
            Kind::Command => {
                let refusal: Option<Refusal> = serde_json::from_slice(bytes).map_err(EntryError::Command)?;
                Ok(Outcome::Command(refusal.map_or(Ok(()), Err)))
            }
        }
    }
}
