//! What the API needs from the node behind it.

use crate::autoscale::AutoscaleView;
use crate::certificates::{CertificatesView, RenewAnswer, RenewRefused, RenewRequest, RotateError};
use crate::drills::{DrillForecast, DrillsView};
use crate::join::{JoinAnswer, JoinCheck, JoinRequest};
use crate::placement::{ExplanationView, ForecastView, RebalanceView};
use crate::updates::HistoryView;
use crate::view::{MembersView, Overview};
use quorate_model::access::audit::AuditPage;
use quorate_model::access::name::SecretName;
use quorate_model::access::{AccessState, Actor};
use quorate_model::command::Refusal;
use quorate_model::entry::{Database, Outcome, Proposal};
use quorate_model::external::{External, ExternalRecord, NodeLogin};
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::member::SecretHash;
use quorate_model::observed::GatewayReport;
use quorate_model::routing::RoutingTable;
use quorate_model::secret::Secret;
use quorate_model::sql::{Consistency, Rows, SqlBatch, SqlError};
use quorate_model::time::Span;
use quorate_model::trust::TrustCommand;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The node as the API sees it. Cheap to clone; every clone is the same node.
pub trait Backend: Clone + Send + Sync + 'static {
    /// A log that was found.
    type Log: OpenLog;

    /// Puts a mutation into the log, on whichever node leads, and waits until this node has
    /// applied it. Sending one request id twice does it once and answers twice.
    fn propose(
        &self,
        proposal: Proposal,
        patience: Duration,
    ) -> impl Future<Output = Result<Committed, WriteError>> + Send;

    /// Runs queries on this node's own files.
    fn query(&self, query: Query) -> impl Future<Output = Result<Answer, ReadError>> + Send;

    /// The cluster for people, always current; a new value whenever something changed.
    fn overview(&self) -> watch::Receiver<Arc<Overview>>;

    /// What gateways need, always current.
    fn routing(&self) -> watch::Receiver<Arc<RoutingTable>>;

    /// What the operator asks for now; it may change at any time.
    fn policy(&self) -> Policy;

    /// Users, roles, sessions: always current. Published before this node answers a linearizable
    /// read whose index covers the change.
    fn access(&self) -> watch::Receiver<AccessView>;

    /// At most `limit` audit entries after number `after`, from this node's own file.
    fn audit(
        &self,
        after: u64,
        limit: u32,
        patience: Duration,
    ) -> impl Future<Output = Result<AuditPage, ReadError>> + Send;

    /// Whether this node listens for others now.
    fn link(&self) -> watch::Receiver<bool>;

    /// Whether this node, which does not listen for others, could.
    ///
    /// # Errors
    /// Why not, for people.
    fn try_link(&self) -> Result<(), String>;

    /// A gateway that this node feeds says how far it is. It counts as gone after 3 s of silence.
    fn gateway_report(&self, report: GatewayReport);

    /// Finds a log, on whichever node it is. Gives its first piece, and what gives the next ones.
    fn open_log(
        &self,
        of: LogOf,
        from: LogFrom,
        bytes_max: usize,
    ) -> impl Future<Output = Result<(LogChunk, Self::Log), LogError>> + Send;

    /// Why the replicas of a service are where they are, as this node sees it now. `None`: there is no such
    /// service.
    fn explain(
        &self,
        service: ServiceName,
        patience: Duration,
    ) -> impl Future<Output = Result<Option<ExplanationView>, ReadError>> + Send;

    /// Why an autoscaled service has as many copies as it has, as this node sees it now. `None`: there is no such
    /// service.
    fn autoscale(
        &self,
        service: ServiceName,
        patience: Duration,
    ) -> impl Future<Output = Result<Option<AutoscaleView>, ReadError>> + Send;

    /// The versions of a service that are remembered. `None`: there is no such service.
    fn history(
        &self,
        service: ServiceName,
        patience: Duration,
    ) -> impl Future<Output = Result<Option<HistoryView>, ReadError>> + Send;

    /// What would move where if the node lost its power and did not come back.
    fn what_if_kill(
        &self,
        node: NodeId,
        patience: Duration,
    ) -> impl Future<Output = Result<ForecastView, ReadError>> + Send;

    /// What would run better elsewhere, at most so many.
    fn to_rebalance(
        &self,
        moves_max: usize,
        patience: Duration,
    ) -> impl Future<Output = Result<RebalanceView, ReadError>> + Send;

    /// Drills, always current.
    fn drills(&self) -> watch::Receiver<Arc<DrillsView>> {
        watch::channel(Arc::default()).1
    }

    /// What a drill of the node would do. Who leads is not looked at.
    fn drill_forecast(
        &self,
        node: NodeId,
        away: Option<Span>,
        patience: Duration,
    ) -> impl Future<Output = Result<DrillForecast, ReadError>> + Send;

    /// For how long still this node is away for a drill: nobody but this machine is answered meanwhile.
    fn away(&self) -> Option<Duration> {
        None
    }

    /// Returns once this node is away.
    fn goes_away(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// How long a lost node is waited for before its replicas are replaced, if the cluster has not decided that.
    fn replace_after(&self) -> Span {
        Span::from_secs(30)
    }

    /// Hands leadership over. Returns when the new leader is known.
    fn transfer_leadership(
        &self,
        to: NodeId,
        patience: Duration,
    ) -> impl Future<Output = Result<(), TransferError>> + Send;

    /// Join tokens and the quota, always current.
    fn members(&self) -> watch::Receiver<Arc<MembersView>>;

    /// A fresh secret for a join token, with the commands that carry it.
    fn invite(&self) -> Result<Invitation, InviteError>;

    /// Whether a server may join, without changing anything. `from`: where it asks from.
    fn check_join(
        &self,
        request: JoinRequest,
        from: Option<IpAddr>,
    ) -> impl Future<Output = Result<JoinCheck, JoinError>> + Send;

    /// Makes a server a node, and signs its certificate. Asking again with the same key and the same
    /// secret changes nothing and is answered again. `actor` is for the audit.
    fn join(
        &self,
        request: JoinRequest,
        from: Option<IpAddr>,
        actor: Actor,
        patience: Duration,
    ) -> impl Future<Output = Result<JoinAnswer, JoinError>> + Send;

    /// Seals a secret with the cluster's key. Two calls give different bytes.
    fn seal(&self, _: &SecretName, _: &[u8]) -> Result<Sealed, SealRefused> {
        Err(SealRefused::NoKey)
    }

    /// Externals, by name.
    fn externals(&self) -> Vec<ExternalRecord> {
        Vec::new()
    }

    /// Has every node that runs services log in to an external. `password`: instead of the secret that it names.
    fn log_in(
        &self,
        _: External,
        _: Option<Secret<Vec<u8>>>,
    ) -> impl Future<Output = Result<Vec<NodeLogin>, SealRefused>> + Send {
        std::future::ready(Err(SealRefused::NoKey))
    }

    /// What nodes prove themselves with, as far as this one knows.
    fn certificates(&self) -> CertificatesView {
        CertificatesView::default()
    }

    /// A new authority, ready to take over.
    fn new_authority(&self) -> Result<TrustCommand, RotateError> {
        Err(RotateError::NoAuthority)
    }

    /// A new certificate for a node that shows its old one.
    fn renew(&self, _: RenewRequest) -> Result<RenewAnswer, RenewRefused> {
        Err(RenewRefused::NoAuthority)
    }

    /// This node leaves the cluster and ends; it may come back. Returns when it has begun.
    fn leave(&self);
}

/// A sealed secret, to be proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Ciphertext, base64.
    pub sealed: String,
    /// Number of the key that sealed it.
    pub key: u32,
}

/// Why nothing was sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealRefused {
    /// Of a worker, or a cluster that was laid out before there were secrets.
    #[error("this node does not have the key that seals secrets")]
    NoKey,
    #[error("the secret could not be sealed: {0}")]
    NotSealed(String),
}

/// A secret for a join token. Nobody can see it again: the cluster keeps its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    pub secret: SecretHash,
    /// Command lines for the server that is to join: one for each address of this node.
    pub commands: Vec<String>,
}

/// Why this node cannot invite anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InviteError {
    /// A cluster of `quorate dev`, or a node that is no manager.
    #[error("this node has no certificate authority, so it cannot let others in")]
    NoAuthority,
    #[error("the system gives no random numbers: {0}")]
    NoRandomness(String),
}

/// Why a server did not become a node. Unless it says otherwise, nothing was changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    #[error("{0}")]
    Refused(Refusal),
    /// See [`WriteError`]; after `Unknown`, asking again with the same key finds out.
    #[error("{0}")]
    Write(WriteError),
    #[error("{0}")]
    Invite(InviteError),
    #[error("`{field}` {problem}")]
    Malformed { field: &'static str, problem: String },
    #[error(
        "this server runs quorate {theirs} (join version {their_join}, link version {their_link}) and the cluster \
         quorate {ours} (join version {our_join}, link version {our_link})"
    )]
    Version { theirs: String, their_join: u32, their_link: u32, ours: String, our_join: u32, our_link: u32 },
    #[error("the clock of this server is {off} {} that of the cluster; {limit} is allowed", if *.ahead { "ahead of" } else { "behind" })]
    Clock { off: Span, ahead: bool, limit: Span },
    /// A manager could not open a connection to the server that wants to join.
    #[error("{by} cannot reach this server's {what} at {address}: {why}")]
    Unreachable { by: String, what: &'static str, address: String, why: String },
    /// Managers that answer, and whose ports the server has not tried.
    #[error("the ports of {} were not tried", .managers.join(", "))]
    Untested { managers: Vec<String> },
    #[error("too many failed attempts to join from {from}")]
    Throttled { from: IpAddr, wait: Duration },
    /// The server is a node now and has no certificate: asking again gives it one.
    #[error("the certificate could not be made: {0}")]
    NotSigned(String),
}

/// What is decided about access, as this node has it.
#[derive(Debug, Clone, Default)]
pub struct AccessView {
    /// Up to this index, or further without anything about access.
    pub applied: LogIndex,
    pub access: Arc<AccessState>,
}

/// What an operator may change while the node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How many nodes have to be joined, this one included, before this node counts as ready.
    pub minimum_nodes: u32,
    /// Where a passive manager sends who asks it for a page of the console.
    pub pages: Pages,
}

/// See [`Policy::pages`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pages {
    /// Nowhere: it shows its own.
    Own,
    /// To the Active node.
    Active,
    /// To this URL.
    Balancer(String),
}

/// A mutation that is in the log of a majority and applied here.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// The entry that did it; for a request that was sent again, its first entry.
    pub index: LogIndex,
    pub outcome: Outcome,
}

/// Why a mutation was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Nothing was written: too much is waiting already. Retry after a pause.
    #[error("this node has too many writes in flight")]
    Overloaded,
    /// Unknown outcome: it may still be done. Retry only with the same request id.
    #[error("no majority confirmed the write within {waited:?}; it may still happen")]
    Unknown { waited: Duration },
    /// Nothing was written: the mutation is larger than an entry may be.
    #[error("the write is {bytes} bytes long and the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// Nothing was written: this node is about to end.
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// A read.
#[derive(Debug, Clone)]
pub struct Query {
    pub database: Database,
    pub batch: SqlBatch,
    pub consistency: Consistency,
    pub patience: Duration,
}

/// What a read found: one result per statement, from one moment of this node's state.
#[derive(Debug, Clone)]
pub struct Answer {
    pub results: Vec<Result<Rows, SqlError>>,
    /// The log index up to which the state was applied.
    pub applied: LogIndex,
    /// How long ago this node last heard from a leader (`None`: never); 0 on the leader itself.
    pub age: Option<Duration>,
}

/// Why a read was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    #[error("no leader confirmed the read within {waited:?}")]
    NoLeader { waited: Duration },
    #[error("the query ran longer than {limit:?}")]
    TooSlow { limit: Duration },
    #[error("this node has too many reads waiting")]
    Overloaded,
    #[error("this node is shutting down")]
    ShuttingDown,
}

/// Whose log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogOf {
    /// What a replica writes to its standard output and standard error.
    Replica(ReplicaId),
    /// What a node's server says about itself.
    Node(NodeId),
}

impl std::fmt::Display for LogOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LogOf::Replica(replica) => write!(f, "replica {replica}"),
            LogOf::Node(node) => write!(f, "the server of node {node}"),
        }
    }
}

/// A log that was found. Whatever it keeps open for that, to another node too, ends when it is dropped.
pub trait OpenLog: Send + 'static {
    /// A piece of at most `bytes_max` bytes; empty when nothing is new.
    fn read(&mut self, from: LogFrom, bytes_max: usize) -> impl Future<Output = Result<LogChunk, LogError>> + Send;
}

/// Where to begin: at an offset that an earlier chunk named, or with the last so many lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFrom {
    Offset(u64),
    LastLines(u32),
}

/// Part of a log. `next` is the offset to go on from; equal to where it began when nothing is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    pub data: bytes::Bytes,
    pub next: u64,
}

/// Why no piece of a log can be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    #[error("no node has a log of {0}")]
    Unknown(LogOf),
    #[error("the log cannot be read on {node}: {why}")]
    Io { node: String, why: String },
    /// The log is, or may be, on one of these nodes.
    #[error("{} cannot be reached: {why}", nodes.join(", "))]
    Unreachable { nodes: Vec<String>, why: String },
    /// Logs of that node are read by too many others.
    #[error("{0} is asked for too many logs at a time")]
    Busy(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    #[error("there is no voting node {0}")]
    UnknownNode(NodeId),
    #[error("there is no leader to hand over")]
    NoLeader,
    #[error("{0} has not taken over within {1:?}; the old leader goes on")]
    NotTaken(NodeId, Duration),
}
