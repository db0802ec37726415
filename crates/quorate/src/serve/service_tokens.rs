//! Tokens of the replicas on this node.
//!
//! ```text
//! assigned here, granted something ─▶ 256 random bits ─▶ kept in tls/ ─▶ their hash into the log
//!                                           agent, once this node has applied it ◀─┘
//! ```
//! A token is made once in a replica's life, and kept first: a server that starts anew takes the replica over, and
//! the token with it. Without a quorum no new one is noted, so what has none yet does not start; nothing new is
//! placed then either.
//!
//! # Invariants
//! - The token itself is in `tls/`, in the replica's directory and in memory, and never in an entry or a log.
//! - The agent is given no token that this node would not let in itself.

use super::backend::NodeBackend;
use super::random_u128;
use crate::trust;
use anyhow::Context as _;
use quorate_agent::ServiceTokens;
use quorate_api::backend::{AccessView, Backend as _};
use quorate_model::access::name::Digest;
use quorate_model::assignment::{Assignment, Phase};
use quorate_model::command::Command;
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::{ReplicaId, RequestId};
use quorate_model::secret::Secret;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, warn};

const FILE: &str = "service-tokens.json";
/// An entry that is not in the log after this is proposed again.
const PATIENCE: Duration = Duration::from_secs(5);
/// After what went wrong.
const AGAIN: Duration = Duration::from_secs(1);

/// The secret part of each token, by replica.
type Held = BTreeMap<ReplicaId, String>;

pub(super) struct Minter {
    pub(super) data_dir: PathBuf,
    pub(super) assignments: watch::Receiver<Option<Assignment>>,
    pub(super) access: watch::Receiver<AccessView>,
    pub(super) backend: NodeBackend,
    pub(super) tokens: watch::Sender<Arc<ServiceTokens>>,
}

impl Minter {
    /// Runs as long as the server does.
    pub(super) async fn run(mut self) {
        let mut held = read(&self.data_dir);
        loop {
            let wanted = self.wanted();
            if let Some(wanted) = &wanted
                && let Err(error) = self.keep(&mut held, wanted).await
            {
                warn!("tokens of replicas are not made: {error:#}");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let unknown = self.tell(&held);
            for (replica, hash) in &unknown {
                self.propose(*replica, *hash).await;
            }
            tokio::select! {
                changed = self.assignments.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = self.access.changed(), if !held.is_empty() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(AGAIN), if !unknown.is_empty() => {}
            }
        }
    }

    /// The replicas that are to have one; `None` while nothing is known.
    fn wanted(&mut self) -> Option<Vec<ReplicaId>> {
        let assignment = self.assignments.borrow_and_update();
        let granted = assignment.as_ref()?.replicas.iter().filter(|it| !it.spec.grants.is_empty());
        Some(granted.filter(|it| it.phase != Phase::Stop).map(|it| it.replica).collect())
    }

    /// Makes those that are missing and forgets the others, on the disk first.
    async fn keep(&self, held: &mut Held, wanted: &[ReplicaId]) -> anyhow::Result<()> {
        let mut now: Held = BTreeMap::new();
        for replica in wanted {
            let secret = match held.get(replica) {
                Some(secret) => secret.clone(),
                None => format!("{:032x}{:032x}", random_u128()?, random_u128()?),
            };
            now.insert(*replica, secret);
        }
        if now != *held {
            let (dir, kept) = (self.data_dir.clone(), now.clone());
            tokio::task::spawn_blocking(move || write(&dir, &kept)).await.context("writing them")??;
            *held = now;
        }
        Ok(())
    }

    /// Gives the agent what is known to the cluster; the hashes of the others.
    fn tell(&mut self, held: &Held) -> Vec<(ReplicaId, Digest)> {
        let access = self.access.borrow_and_update().access.clone();
        let mut unknown = Vec::new();
        let mut known = BTreeMap::new();
        for (replica, secret) in held {
            let hash = Digest::of(secret.as_bytes());
            match access.service_token(*replica, hash) {
                Some(_) => drop(known.insert(*replica, Secret::new(format!("qr_{replica}_{secret}")))),
                None => unknown.push((*replica, hash)),
            }
        }
        let known = Arc::new(ServiceTokens(known));
        self.tokens.send_if_modified(|told| {
            let differs = *told != known;
            *told = known;
            differs
        });
        unknown
    }

    async fn propose(&self, replica: ReplicaId, hash: Digest) {
        let Ok(id) = random_u128() else { return };
        let proposal = Proposal::command(RequestId::from_u128(id), &Command::ServiceToken { replica, hash });
        match self.backend.propose(proposal, PATIENCE).await.map(|committed| committed.outcome) {
            // It has ended meanwhile.
            Ok(Outcome::Command(Err(refusal))) => debug!(%replica, "no token is noted: {refusal}"),
            Ok(_) => {}
            Err(error) => debug!(%replica, "its token is not noted yet: {error}"),
        }
    }
}

/// What this node made before. Where that cannot be read the replicas' tokens are of no use any more, and they get
/// others when they start again.
fn read(data_dir: &Path) -> Held {
    let path = data_dir.join(trust::DIR).join(FILE);
    let read = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Held::new(),
        Err(error) => Err(anyhow::Error::new(error)),
        Ok(text) => serde_json::from_slice(&text).map_err(Into::into),
    };
    read.unwrap_or_else(|error| {
        warn!("{} is of no use: {error:#}", path.display());
        Held::new()
    })
}

fn write(data_dir: &Path, held: &Held) -> anyhow::Result<()> {
    let text = serde_json::to_string(held)?;
    let write = || -> std::io::Result<()> {
        let dir = trust::made(data_dir)?;
        trust::replace(&dir, FILE, 0o600, &text)?;
        trust::synced(&dir, data_dir)
    };
    write().with_context(|| format!("writing {}/{FILE}", trust::DIR))
}
