//! The node as the API sees it.

use super::admission::Admission;
use super::apply::Waiters;
use super::away::Away;
use super::externals::Asker;
use super::inbox::{Closed, Inbox};
use super::keychain::Keychain;
use super::logs::{Found, Logs};
use super::reads::ReaderPool;
use super::view::Proofs;
use crate::config::NodeConfig;
use crate::settings::{Redirect, Settings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_api::autoscale::AutoscaleView;
use quorate_api::backend::{
    AccessView, Answer, Backend, Committed, Invitation, InviteError, JoinError, LogChunk, LogError, LogFrom, LogOf,
    Pages, Policy, Query, ReadError, SealRefused, Sealed, TransferError, WriteError,
};
use quorate_api::certificates::{CertificatesView, RenewAnswer, RenewRefused, RenewRequest, RotateError};
use quorate_api::drills::{DrillForecast, DrillsView};
use quorate_api::join::{JoinAnswer, JoinCheck, JoinRequest};
use quorate_api::placement::{ExplanationView, ForecastView, RebalanceView};
use quorate_api::updates::HistoryView;
use quorate_api::view::{MembersView, Overview};
use quorate_model::access::Actor;
use quorate_model::access::audit::AuditPage;
use quorate_model::access::name::SecretName;
use quorate_model::entry::Proposal;
use quorate_model::external::{External, ExternalRecord, NodeLogin};
use quorate_model::id::{LogIndex, NodeId, RequestId, ServiceName};
use quorate_model::observed::GatewayReport;
use quorate_model::routing::RoutingTable;
use quorate_model::secret::Secret;
use quorate_model::sql::Consistency;
use quorate_model::state::ClusterState;
use quorate_model::time::{Span, Timestamp};
use quorate_model::trust::TrustCommand;
use quorate_node::{Event, Refused, Ticket, TransferFailed};
use quorate_scheduler::Survey;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

/// The largest payload of one log entry: the API's body limit.
const PAYLOAD_MAX: usize = 8 << 20;
/// The core keeps deadlines at each of its ticks; this much later the API stops waiting for it.
const SLACK: Duration = Duration::from_millis(500);

/// Questions to the core that are not mutations, by ticket.
#[derive(Debug, Default)]
pub(super) struct Questions {
    next: AtomicU64,
    reads: Mutex<BTreeMap<Ticket, oneshot::Sender<Option<LogIndex>>>>,
    transfers: Mutex<BTreeMap<Ticket, oneshot::Sender<Result<(), TransferFailed>>>>,
    surveys: Mutex<BTreeMap<Ticket, oneshot::Sender<Box<Survey>>>>,
    refused: Mutex<HashMap<RequestId, Refused>>,
}

impl Questions {
    fn ticket(&self) -> Ticket {
        Ticket(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// `applied`: up to where the database is; `None`: nobody knows whether that is far enough.
    pub(super) fn answer_reads(&self, tickets: &[Ticket], applied: Option<LogIndex>) {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        for ticket in tickets {
            if let Some(sender) = reads.remove(ticket) {
                let _ = sender.send(applied);
            }
        }
    }

    pub(super) fn answer_transfer(&self, ticket: Ticket, result: Result<(), TransferFailed>) {
        let sender = self.transfers.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket);
        if let Some(sender) = sender {
            let _ = sender.send(result);
        }
    }

    pub(super) fn ask_survey(&self) -> (Ticket, oneshot::Receiver<Box<Survey>>) {
        let (ticket, (sender, answer)) = (self.ticket(), oneshot::channel());
        self.surveys.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, sender);
        (ticket, answer)
    }

    pub(super) fn forget_survey(&self, ticket: Ticket) {
        self.surveys.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket);
    }

    pub(super) fn answer_survey(&self, ticket: Ticket, survey: Box<Survey>) {
        let sender = self.surveys.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket);
        if let Some(sender) = sender {
            let _ = sender.send(survey);
        }
    }

    /// The core gave up on a mutation. Who waits for it finds the reason when its channel closes.
    pub(super) fn refuse(&self, waiters: &Waiters, id: RequestId, why: Refused) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(id, why);
        waiters.give_up(id);
        // Normally the waiter takes it out; one that went away before must not leave it here.
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() > 65_536 {
            refused.clear();
        }
    }

    fn why(&self, id: RequestId) -> Option<Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }
}

/// How long ago a leader was heard, written by the core thread.
#[derive(Debug, Default)]
pub(super) struct LeaderContact(AtomicU64);

impl LeaderContact {
    /// `None`: never.
    pub(super) fn set(&self, at: Option<Timestamp>) {
        let micros = at.map_or(0, |at| u64::try_from(at.0.as_micros()).unwrap_or(u64::MAX).max(1));
        self.0.store(micros, Ordering::Relaxed);
    }

    /// How long ago that was.
    pub(super) fn age(&self, now: Timestamp) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(now.since(Timestamp(Duration::from_micros(micros)))),
        }
    }
}

/// The node behind the API.
#[derive(Debug, Clone)]
pub(super) struct NodeBackend(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) inbox: Inbox,
    pub(super) waiters: Arc<Waiters>,
    pub(super) questions: Arc<Questions>,
    pub(super) readers: ReaderPool,
    pub(super) overview: watch::Receiver<Arc<Overview>>,
    pub(super) members: watch::Receiver<Arc<MembersView>>,
    pub(super) drills: watch::Receiver<Arc<DrillsView>>,
    /// Whether this node is away for a drill.
    pub(super) away: Away,
    pub(super) externals: Asker,
    pub(super) known: watch::Receiver<Arc<ClusterState>>,
    pub(super) routing: watch::Receiver<Arc<RoutingTable>>,
    pub(super) config: NodeConfig,
    pub(super) keychain: Arc<Keychain>,
    /// Whether this node listens for others.
    pub(super) link: watch::Receiver<bool>,
    pub(super) proofs: watch::Receiver<Arc<Proofs>>,
    /// Of a node that can let others in.
    pub(super) admission: Option<Admission>,
    /// Told once, when this node is to leave.
    pub(super) leave: Arc<Notify>,
    pub(super) access: watch::Receiver<AccessView>,
    pub(super) logs: Logs,
    pub(super) contact: Arc<LeaderContact>,
    /// What is in force now.
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    /// How long this node, leading, waits for a lost one unless the cluster has decided that.
    pub(super) replace_after: Duration,
    /// The zero of [`Timestamp`].
    pub(super) started: Instant,
}

impl Inner {
    fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }
}

impl Backend for NodeBackend {
    type Log = Found;

    async fn propose(&self, proposal: Proposal, patience: Duration) -> Result<Committed, WriteError> {
        let inner = &self.0;
        let bytes = proposal.payload.len();
        if bytes > PAYLOAD_MAX {
            return Err(WriteError::TooLarge { bytes, limit: PAYLOAD_MAX });
        }
        let id = proposal.request_id;
        let answer = inner.waiters.wait(id);
        let deadline = inner.now().plus(patience);
        if let Err(closed) = inner.inbox.try_send(Event::Propose { proposal, deadline }) {
            inner.waiters.give_up(id);
            return Err(match closed {
                Closed::Full => WriteError::Overloaded,
                Closed::Gone => WriteError::ShuttingDown,
            });
        }
        match tokio::time::timeout(patience + SLACK, answer).await {
            Ok(Ok(committed)) => Ok(committed),
            Ok(Err(_)) => Err(match inner.questions.why(id) {
                Some(Refused::Overloaded) => WriteError::Overloaded,
                Some(Refused::Unknown { waited }) => WriteError::Unknown { waited },
                None => WriteError::Unknown { waited: patience },
            }),
            Err(_) => {
                inner.waiters.give_up(id);
                Err(WriteError::Unknown { waited: patience })
            }
        }
    }

    async fn query(&self, query: Query) -> Result<Answer, ReadError> {
        let inner = &self.0;
        let patience = query.patience;
        let linearizable = query.consistency == Consistency::Linearizable;
        // A file says only up to where it was written itself; after it came entries of the other one.
        let mut at_least = LogIndex(0);
        if linearizable {
            let ticket = inner.questions.ticket();
            let (sender, ready) = oneshot::channel();
            inner.questions.reads.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, sender);
            let forget = || {
                inner.questions.reads.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket);
            };
            let deadline = inner.now().plus(patience);
            if let Err(closed) = inner.inbox.try_send(Event::Read { ticket, deadline }) {
                forget();
                return Err(match closed {
                    Closed::Full => ReadError::Overloaded,
                    Closed::Gone => ReadError::ShuttingDown,
                });
            }
            match tokio::time::timeout(patience + SLACK, ready).await {
                Ok(Ok(Some(applied))) => at_least = applied,
                Ok(Ok(None) | Err(_)) => return Err(ReadError::NoLeader { waited: patience }),
                Err(_) => {
                    forget();
                    return Err(ReadError::NoLeader { waited: patience });
                }
            }
        }
        let mut answer = inner.readers.query(query).await?;
        answer.applied = answer.applied.max(at_least);
        answer.age = if linearizable { Some(Duration::ZERO) } else { inner.contact.age(inner.now()) };
        Ok(answer)
    }

    fn overview(&self) -> watch::Receiver<Arc<Overview>> {
        self.0.overview.clone()
    }

    fn routing(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.0.routing.clone()
    }

    fn policy(&self) -> Policy {
        let settings = self.0.settings.borrow();
        let console = &settings.console;
        let pages = match (console.redirect, &console.balancer_url) {
            (Redirect::Active, _) => Pages::Active,
            (Redirect::Balancer, Some(url)) => Pages::Balancer(url.clone()),
            // Reading the settings refuses the second of these.
            (Redirect::Off, _) | (Redirect::Balancer, None) => Pages::Own,
        };
        Policy { minimum_nodes: settings.cluster.minimum_nodes, pages }
    }

    fn access(&self) -> watch::Receiver<AccessView> {
        self.0.access.clone()
    }

    async fn audit(&self, after: u64, limit: u32, patience: Duration) -> Result<AuditPage, ReadError> {
        let page = tokio::time::timeout(patience, self.0.readers.audit(after, limit)).await;
        page.unwrap_or(Err(ReadError::TooSlow { limit: patience }))
    }

    fn link(&self) -> watch::Receiver<bool> {
        self.0.link.clone()
    }

    fn try_link(&self) -> Result<(), String> {
        super::ha::try_bind(self.0.config.node.link)
    }

    fn gateway_report(&self, report: GatewayReport) {
        // A report that does not fit is made up for by the next one.
        let _ = self.0.inbox.try_send(Event::Gateway(report));
    }

    async fn open_log(&self, of: LogOf, from: LogFrom, bytes_max: usize) -> Result<(LogChunk, Found), LogError> {
        self.0.logs.open(of, from, bytes_max).await
    }

    async fn explain(&self, service: ServiceName, patience: Duration) -> Result<Option<ExplanationView>, ReadError> {
        self.0.explain(service, patience).await
    }

    async fn autoscale(&self, service: ServiceName, patience: Duration) -> Result<Option<AutoscaleView>, ReadError> {
        self.0.autoscale(service, patience).await
    }

    async fn history(&self, service: ServiceName, patience: Duration) -> Result<Option<HistoryView>, ReadError> {
        self.0.history(service, patience).await
    }

    async fn to_rebalance(&self, moves_max: usize, patience: Duration) -> Result<RebalanceView, ReadError> {
        self.0.to_rebalance(moves_max, patience).await
    }

    async fn what_if_kill(&self, node: NodeId, patience: Duration) -> Result<ForecastView, ReadError> {
        self.0.what_if_kill(node, patience).await
    }

    fn drills(&self) -> watch::Receiver<Arc<DrillsView>> {
        self.0.drills.clone()
    }

    async fn drill_forecast(
        &self,
        node: NodeId,
        away: Option<Span>,
        patience: Duration,
    ) -> Result<DrillForecast, ReadError> {
        self.0.drill_forecast(node, away, patience).await
    }

    fn away(&self) -> Option<Duration> {
        self.0.away.left()
    }

    async fn goes_away(&self) {
        self.0.away.begins().await;
    }

    fn replace_after(&self) -> Span {
        Span(self.0.replace_after)
    }

    async fn transfer_leadership(&self, to: NodeId, patience: Duration) -> Result<(), TransferError> {
        let inner = &self.0;
        let ticket = inner.questions.ticket();
        let (sender, done) = oneshot::channel();
        inner.questions.transfers.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, sender);
        let deadline = inner.now().plus(patience);
        inner.inbox.send(Event::Transfer { ticket, to, deadline }).await;
        match tokio::time::timeout(patience + SLACK, done).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(TransferFailed::UnknownNode))) => Err(TransferError::UnknownNode(to)),
            Ok(Ok(Err(TransferFailed::NoLeader))) => Err(TransferError::NoLeader),
            Ok(Ok(Err(TransferFailed::NotTaken { waited }))) => Err(TransferError::NotTaken(to, waited)),
            Ok(Err(_)) | Err(_) => Err(TransferError::NotTaken(to, patience)),
        }
    }

    fn members(&self) -> watch::Receiver<Arc<MembersView>> {
        self.0.members.clone()
    }

    fn invite(&self) -> Result<Invitation, InviteError> {
        self.0.admission.as_ref().ok_or(InviteError::NoAuthority)?.invite()
    }

    async fn check_join(&self, request: JoinRequest, from: Option<IpAddr>) -> Result<JoinCheck, JoinError> {
        let admission = self.0.admission.as_ref().ok_or(JoinError::Invite(InviteError::NoAuthority))?;
        admission.check(self, &request, from).await
    }

    async fn join(
        &self,
        request: JoinRequest,
        from: Option<IpAddr>,
        actor: Actor,
        patience: Duration,
    ) -> Result<JoinAnswer, JoinError> {
        let admission = self.0.admission.as_ref().ok_or(JoinError::Invite(InviteError::NoAuthority))?;
        admission.join(self, &request, from, &actor, patience).await
    }

    fn certificates(&self) -> CertificatesView {
        let (known, proofs) = (self.0.known.borrow().clone(), self.0.proofs.borrow().clone());
        super::certificates::view(&known, &proofs, &self.0.keychain.held())
    }

    fn new_authority(&self) -> Result<TrustCommand, RotateError> {
        let held = self.0.keychain.held();
        if held.manager.is_none() {
            return Err(RotateError::NoAuthority);
        }
        let (known, proofs) = (self.0.known.borrow().clone(), self.0.proofs.borrow().clone());
        let made = super::keeper::new_authority(&self.0.config, &held, &known, &proofs);
        made.map_err(|error| RotateError::NotMade(format!("{error:#}")))
    }

    fn seal(&self, name: &SecretName, value: &[u8]) -> Result<Sealed, SealRefused> {
        let held = self.0.keychain.held();
        let ring = &held.manager.as_ref().ok_or(SealRefused::NoKey)?.ring;
        let sealed = ring.seal(super::keeper::place(name.as_str()), value);
        let sealed = sealed.map_err(|error| SealRefused::NotSealed(error.to_string()))?;
        Ok(Sealed { sealed: STANDARD.encode(sealed), key: ring.current().version().0 })
    }

    fn externals(&self) -> Vec<ExternalRecord> {
        self.0.known.borrow().externals.values().cloned().collect()
    }

    async fn log_in(
        &self,
        external: External,
        password: Option<Secret<Vec<u8>>>,
    ) -> Result<Vec<NodeLogin>, SealRefused> {
        let access = self.0.access.borrow().access.clone();
        self.0.externals.ask(external, password, &access).await
    }

    fn renew(&self, request: RenewRequest) -> Result<RenewAnswer, RenewRefused> {
        let known = self.0.known.borrow().clone();
        let (node, answer) = super::renewal::issue(&self.0.config, &self.0.keychain, &known, &request)?;
        tracing::info!(%node, "gave a node a new certificate");
        Ok(answer)
    }

    fn leave(&self) {
        self.0.leave.notify_one();
    }
}
