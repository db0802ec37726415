//! Carries out what is decided about the cluster's keys (`quorate_model::trust`).
//!
//! One look at a time, whenever something changed: what is decided, what this node holds, what the
//! others say. The node first does its own part ([`own`]) and reports how far it is; then, for all, it
//! does what only somebody with the keys can: begin a change that is due, hand keys to those who lack
//! them, seal secrets anew. Nothing is remembered between two looks, so it goes on after a restart, and
//! after the leader changed.
//!
//! # Invariants
//! - A report says what is on the disk.
//! - A key leaves this node only in an envelope for a node of the cluster whose public key came over
//!   the link from that node itself.

mod own;

use super::backend::NodeBackend;
use super::inbox::Inbox;
use super::keychain::{Held, Keychain};
use super::view::Proofs;
use crate::cli::screen::wall_now;
use crate::config::NodeConfig;
use crate::trust::serial;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_api::backend::{AccessView, Backend as _};
use quorate_model::access::name::Digest;
use quorate_model::access::{AccessCommand, AccessState, SecretRecord};
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::{ClusterId, NodeId, RequestId};
use quorate_model::observed::TrustReport;
use quorate_model::state::{ClusterState, NodeRecord, Role};
use quorate_model::trust::{KeyKind, KeyRecord, SealedKey, Stage, TrustCommand};
use quorate_node::Event;
use quorate_trust::ca::Ca;
use quorate_trust::envelope::enclose;
use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::sealing::{ClusterKey, KeyVersion, Place};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// What could not be done is tried again after this, also when nothing changed.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the cluster may take to decide something of this.
const PATIENCE: Duration = Duration::from_secs(5);

/// All that a look sees.
struct Sight {
    known: Arc<ClusterState>,
    access: Arc<AccessState>,
    proofs: Arc<Proofs>,
    held: Arc<Held>,
}

/// What changes.
pub(super) struct Seen {
    pub(super) known: watch::Receiver<Arc<ClusterState>>,
    pub(super) access: watch::Receiver<AccessView>,
    pub(super) proofs: watch::Receiver<Arc<Proofs>>,
}

pub(super) struct Keeper {
    pub(super) config: NodeConfig,
    pub(super) keychain: Arc<Keychain>,
    pub(super) backend: NodeBackend,
    pub(super) inbox: Inbox,
    /// The authority whose certificate this node is to have.
    pub(super) signed_by: watch::Sender<Option<Fingerprint>>,
}

/// What an envelope is for: it opens for nothing else.
fn purpose(cluster: ClusterId, kind: KeyKind, number: u32, node: NodeId) -> Vec<u8> {
    format!("quorate {cluster} {kind} {number} {node}").into_bytes()
}

/// Where a secret's ciphertext belongs.
pub(super) fn place(name: &str) -> Place<'_> {
    Place { table: "secrets", row: name }
}

impl Keeper {
    /// Runs as long as the server does.
    pub(super) async fn run(self, mut seen: Seen) {
        let mut held = self.keychain.watch();
        let mut told = None;
        loop {
            let sight = Sight {
                known: seen.known.borrow_and_update().clone(),
                access: seen.access.borrow_and_update().access.clone(),
                proofs: seen.proofs.borrow_and_update().clone(),
                held: held.borrow_and_update().clone(),
            };
            if let Err(error) = self.look(&sight, &mut told).await {
                warn!("the cluster's keys: {error:#}");
            }
            let changed = tokio::select! {
                changed = seen.known.changed() => changed,
                changed = seen.access.changed() => changed,
                changed = seen.proofs.changed() => changed,
                changed = held.changed() => changed,
                () = tokio::time::sleep(AGAIN) => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn look(&self, sight: &Sight, told: &mut Option<TrustReport>) -> anyhow::Result<()> {
        let own = own::Own { config: &self.config, keychain: &self.keychain, signed_by: &self.signed_by };
        let carried_out = own.carry_out(sight);
        // Also of what was done before something failed.
        let report = own::report(&self.config, sight, &self.keychain.held())?;
        if told.as_ref() != Some(&report) {
            self.inbox.send(Event::Trust(report.clone())).await;
            *told = Some(report);
        }
        carried_out?;
        for kind in KeyKind::ALL {
            let record = sight.known.trust.key(kind);
            if record.is_due() && kind != KeyKind::Authority && sight.proofs.leads {
                self.renew_key(sight, &record).await?;
            }
            self.hand_out(sight, &record).await?;
        }
        if sight.proofs.leads {
            self.reseal(sight).await?;
        }
        Ok(())
    }

    /// A key that somebody left with is replaced.
    async fn renew_key(&self, sight: &Sight, record: &KeyRecord) -> anyhow::Result<()> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(|error| anyhow::anyhow!("the system gives no randomness: {error}"))?;
        let number = record.number + 1;
        let sealed = self.envelopes(sight, record.kind, number, &*secret)?;
        // Without an envelope for itself, whoever made the key would forget it.
        if !sealed.contains_key(&self.config.node.id) {
            return Ok(());
        }
        info!(key = %record.kind, number, "a new key takes over: a node was removed that held the last one");
        let (certificate, former) = (String::new(), String::new());
        self.decide(&Command::Trust(TrustCommand::Begin { key: record.kind, number, certificate, former, sealed }))
            .await
    }

    fn envelopes(
        &self,
        sight: &Sight,
        kind: KeyKind,
        number: u32,
        secret: &[u8],
    ) -> anyhow::Result<BTreeMap<NodeId, SealedKey>> {
        envelopes(&self.config, &sight.known, &sight.proofs, kind, number, secret)
    }

    /// Gives the newest key to nodes that should have it and do not. One of those who have it does so,
    /// so that it does not come from everybody at once.
    async fn hand_out(&self, sight: &Sight, record: &KeyRecord) -> anyhow::Result<()> {
        let kind = record.kind;
        let has = |report: &TrustReport| report.keys.get(&kind).is_some_and(|step| step.number >= record.number);
        let mut holders = sight
            .proofs
            .of
            .iter()
            .filter(|(node, report)| sight.known.nodes.get(node).is_some_and(may_hold) && has(report));
        if holders.next().is_none_or(|(first, _)| *first != self.config.node.id) {
            return Ok(());
        }
        let Some(secret) = own::secret_of(&sight.held, kind, record) else { return Ok(()) };
        for (node, report) in &sight.proofs.of {
            let Some(known) = sight.known.nodes.get(node) else { continue };
            if !may_hold(known) || has(report) {
                continue;
            }
            let public = STANDARD.decode(&report.public).context("a node's public key is not base64")?;
            if record.sealed.get(node).is_some_and(|envelope| envelope.holder == Digest::of(&public)) {
                continue;
            }
            let envelope = seal_for(self.config.cluster.id, kind, record.number, *node, &public, &secret)?;
            let command = TrustCommand::Hand { key: kind, number: record.number, node: *node, envelope };
            self.decide(&Command::Trust(command)).await?;
        }
        Ok(())
    }

    /// What an older key sealed is sealed with the one in use.
    async fn reseal(&self, sight: &Sight) -> anyhow::Result<()> {
        let record = sight.known.trust.key(KeyKind::Secrets);
        let Some(manager) = sight.held.manager.as_ref().filter(|_| record.stage == Stage::Use) else { return Ok(()) };
        let in_use = manager.ring.current().version();
        let old = |secret: &&SecretRecord| secret.key < record.number;
        for secret in sight.access.secrets.values().filter(old).filter(|_| in_use == KeyVersion(record.number)) {
            let place = place(secret.name.as_str());
            let sealed = STANDARD.decode(&secret.sealed).context("a secret in the state is not base64")?;
            let opened =
                manager.ring.open(place, &sealed).with_context(|| format!("opening secret {}", secret.name))?;
            let sealed = STANDARD.encode(manager.ring.seal(place, &opened)?);
            let (name, version, key) = (secret.name.clone(), secret.version, in_use.0);
            self.decide(&Command::Access(AccessCommand::ResealSecret { name, version, sealed, key })).await?;
        }
        Ok(())
    }

    /// Asks the cluster to decide it. What was overtaken by another decision is not an error.
    async fn decide(&self, command: &Command) -> anyhow::Result<()> {
        let proposal = Proposal::command(RequestId::from_u128(serial()?), command);
        let committed = self.backend.propose(proposal, PATIENCE).await?;
        match committed.outcome {
            Outcome::Command(Err(Refusal::KeyChanging { .. })) | Outcome::Command(Ok(())) => Ok(()),
            Outcome::Command(Err(refusal)) => Err(refusal.into()),
            Outcome::Noop | Outcome::Sql(_) => Ok(()),
        }
    }
}

/// A new authority, ready to take over.
pub(super) fn new_authority(
    config: &NodeConfig,
    held: &Held,
    known: &ClusterState,
    proofs: &Proofs,
) -> anyhow::Result<TrustCommand> {
    let manager = held.manager.as_ref().context("this node does not have the key of the cluster's CA")?;
    let next = Ca::create(config.cluster.id, wall_now(), serial()?)?;
    let number = known.trust.key(KeyKind::Authority).number + 1;
    let key = next.key_pem();
    Ok(TrustCommand::Begin {
        key: KeyKind::Authority,
        number,
        certificate: next.certificate().to_pem(),
        former: manager.authority.certificate().to_pem(),
        sealed: envelopes(config, known, proofs, KeyKind::Authority, number, key.as_bytes())?,
    })
}

/// Managers hold both kinds of keys; not one that is about to be removed.
fn may_hold(record: &NodeRecord) -> bool {
    record.identity.roles.contains(&Role::Manager) && !record.expelling
}

/// A key for each node that holds this kind and says who it is.
fn envelopes(
    config: &NodeConfig,
    known: &ClusterState,
    proofs: &Proofs,
    kind: KeyKind,
    number: u32,
    secret: &[u8],
) -> anyhow::Result<BTreeMap<NodeId, SealedKey>> {
    let holders = proofs.of.iter().filter(|(node, _)| known.nodes.get(node).is_some_and(may_hold));
    holders
        .map(|(node, report)| {
            let public = STANDARD.decode(&report.public).context("a node's public key is not base64")?;
            Ok((*node, seal_for(config.cluster.id, kind, number, *node, &public, secret)?))
        })
        .collect()
}

fn seal_for(
    cluster: ClusterId,
    kind: KeyKind,
    number: u32,
    node: NodeId,
    public: &[u8],
    secret: &[u8],
) -> anyhow::Result<SealedKey> {
    let sealed = enclose(public, &purpose(cluster, kind, number, node), secret)
        .with_context(|| format!("sealing a key for node {node}"))?;
    Ok(SealedKey { holder: Digest::of(public), sealed: STANDARD.encode(sealed) })
}

fn cluster_key(number: u32, secret: &[u8]) -> anyhow::Result<ClusterKey> {
    Ok(ClusterKey::from_bytes(KeyVersion(number), secret.try_into().context("a key has 32 bytes")?))
}
