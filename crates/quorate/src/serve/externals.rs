//! Externals are tried before they are taken: a manager asks every node that runs services to log in.
//!
//! ```text
//! API ──ask──▶ Asker ── TryExternal ──▶ Trier of each worker ── logs in
//!       ◀─────────────── TriedExternal ──┘          (over the node link's TLS)
//! ```
//! The external may be nobody's yet, so its password goes with the question, as secrets go to nodes; nothing of it
//! is kept. Once services use it, nodes look after it by themselves (`quorate_agent::needs`).
//!
//! # Invariants
//! - A node tries for managers alone, and a few at a time.
//! - Who does not answer in time is told of as silent; nobody is waited for longer.

use super::keychain::Keychain;
use super::link::Beside;
use super::secrets;
use quorate_agent::externals;
use quorate_api::backend::SealRefused;
use quorate_model::access::AccessState;
use quorate_model::external::{External, NodeLogin};
use quorate_model::id::NodeId;
use quorate_model::secret::Secret;
use quorate_model::state::{ClusterState, Health, Role};
use quorate_node::wire::{Body, TriedExternal, TryExternal};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};

/// Externals that a node tries at a time: each may have tens of hosts, with a thread each.
const TRIES_MAX: usize = 2;
/// How long a node is waited for: its own tries end before, and the API's patience after.
const WAIT: Duration = Duration::from_secs(8);

type Waiting = BTreeMap<u64, mpsc::Sender<(NodeId, NodeLogin)>>;

/// The manager's side. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    me: NodeId,
    keychain: Arc<Keychain>,
    known: watch::Receiver<Arc<ClusterState>>,
    beside: Beside,
    next: Arc<AtomicU64>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Asker {
    pub(super) fn new(
        me: NodeId,
        keychain: Arc<Keychain>,
        known: watch::Receiver<Arc<ClusterState>>,
        beside: Beside,
    ) -> anyhow::Result<Asker> {
        // So that an answer to the run before this one is nobody's.
        let first = getrandom::u64().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
        Ok(Asker { me, keychain, known, beside, next: Arc::new(AtomicU64::new(first)), waiting: Arc::default() })
    }

    /// Takes what nodes found. Runs as long as the server does.
    pub(super) async fn hear(self, mut tried: mpsc::Receiver<(NodeId, TriedExternal)>) {
        while let Some((from, TriedExternal { ticket, login })) = tried.recv().await {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&ticket).cloned();
            if let (Some(waiting), Ok(login)) = (waiting, serde_json::from_slice(&login)) {
                let _ = waiting.try_send((from, login));
            }
        }
    }

    /// What each joined worker finds, by name.
    pub(super) async fn ask(
        &self,
        external: External,
        password: Option<Secret<Vec<u8>>>,
        access: &AccessState,
    ) -> Result<Vec<NodeLogin>, SealRefused> {
        let password = match (password, &external.password) {
            (None, Some(secret)) => {
                let held = self.keychain.held();
                let keys = held.manager.as_ref().ok_or(SealRefused::NoKey)?;
                let opened = secrets::open(keys, access, secret);
                opened.map_err(|error| SealRefused::NotSealed(format!("{error:#}")))?.map(|held| held.value)
            }
            (given, _) => given,
        };
        let known = self.known.borrow().clone();
        let workers = || {
            let joined = known.nodes.values().filter(|node| node.health == Health::Joined);
            joined.filter(|node| node.identity.roles.contains(&Role::Worker)).map(|node| &node.identity)
        };
        let (told, mut found) = mpsc::channel(workers().count().max(1));
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waits { asker: self, ticket };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, told.clone());
        let question = TryExternal {
            ticket,
            external: serde_json::to_vec(&external).expect("an external has string keys and writes to memory").into(),
            password: password.as_ref().map(|password| password.expose().clone().into()),
        };
        for worker in workers() {
            if worker.id == self.me {
                let (told, external, password, me) = (told.clone(), external.clone(), password.clone(), self.me);
                tokio::spawn(async move {
                    let login = try_it(&external, password.as_ref()).await;
                    let _ = told.try_send((me, login));
                });
            } else {
                self.beside.say(worker.id, Body::TryExternal(question.clone()));
            }
        }
        let mut logins: BTreeMap<NodeId, NodeLogin> = workers()
            .map(|worker| {
                let silent = Some(format!("it did not answer within {} s", WAIT.as_secs()));
                (worker.id, NodeLogin { node: worker.name.clone(), silent, hosts: Vec::new() })
            })
            .collect();
        let mut left: Vec<NodeId> = logins.keys().copied().collect();
        let deadline = tokio::time::Instant::now() + WAIT;
        while !left.is_empty() {
            let Ok(Some((from, login))) = tokio::time::timeout_at(deadline, found.recv()).await else { break };
            left.retain(|waited| *waited != from);
            // A node speaks for itself alone, and its name is what the cluster calls it.
            if let Some(known) = logins.get_mut(&from) {
                *known = NodeLogin { node: known.node.clone(), ..login };
            }
        }
        let mut logins: Vec<NodeLogin> = logins.into_values().collect();
        logins.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(logins)
    }
}

/// A question, until it is answered or given up.
struct Waits<'a> {
    asker: &'a Asker,
    ticket: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.asker.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ticket);
    }
}

/// The side of a node that runs services.
pub(super) struct Trier {
    pub(super) known: watch::Receiver<Arc<ClusterState>>,
    pub(super) beside: Beside,
}

impl Trier {
    /// Runs as long as the server does.
    pub(super) async fn run(self, mut tries: mpsc::Receiver<(NodeId, TryExternal)>) {
        let turns = Arc::new(Semaphore::new(TRIES_MAX));
        while let Some((from, TryExternal { ticket, external, password })) = tries.recv().await {
            let known = self.known.borrow().clone();
            let asks = known.nodes.get(&from).filter(|node| node.identity.roles.contains(&Role::Manager));
            let Ok(external) = serde_json::from_slice::<External>(&external) else { continue };
            if asks.is_none() || external.validate().is_err() {
                continue;
            }
            let Ok(turn) = turns.clone().acquire_owned().await else { return };
            let beside = self.beside.clone();
            tokio::spawn(async move {
                let password = password.map(|password| Secret::new(password.to_vec()));
                let login = try_it(&external, password.as_ref()).await;
                let login = serde_json::to_vec(&login).expect("a login writes to memory").into();
                beside.say(from, Body::TriedExternal(TriedExternal { ticket, login }));
                drop(turn);
            });
        }
    }
}

async fn try_it(external: &External, password: Option<&Secret<Vec<u8>>>) -> NodeLogin {
    NodeLogin { node: String::new(), silent: None, hosts: externals::login(external, password).await }
}
