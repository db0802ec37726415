//! Secrets on their way to the nodes whose services name them.
//!
//! ```text
//! node: a service that it may run names one ──AskSecrets──▶ manager: may it? ── opens it
//!       held, and kept in tls/secrets.json  ◀──GiveSecrets──        (over the node link's TLS)
//! ```
//! A manager opens what it needs for itself. A node has its secrets before a service may start there, so
//! neither a failover nor a restart of the node waits for a manager.
//!
//! # Invariants
//! - A node is given what services that it may run, or replicas that it has, name; nothing else.
//! - A node believes managers alone, and only exactly the values that the log speaks of: one of before, or
//!   one that was not asked for, is thrown away.
//! - What is not needed any more goes, from memory and from the disk.
//! - Values are in `tls/` alone, beside the node's own key; a copy of the rest of the directory has none.

use super::keeper::place;
use super::keychain::Keychain;
use super::link::Beside;
use crate::keys::ManagerKeys;
use crate::trust;
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use quorate_agent::{HeldSecret, Secrets};
use quorate_api::backend::AccessView;
use quorate_model::access::AccessState;
use quorate_model::access::name::SecretName;
use quorate_model::id::NodeId;
use quorate_model::need::{NodeNeeds, SecretStamp, WantedSecrets};
use quorate_model::secret::Secret;
use quorate_model::state::{ClusterState, Health, Role};
use quorate_model::time::WallTime;
use quorate_node::wire::{AskSecrets, Body, GiveSecrets, GivenSecret};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

const FILE: &str = "secrets.json";

/// After this another manager is asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Which secrets each node may have.
pub(super) type Readers = BTreeMap<NodeId, BTreeSet<SecretName>>;

pub(super) fn open(keys: &ManagerKeys, access: &AccessState, name: &SecretName) -> anyhow::Result<Option<HeldSecret>> {
    let Some(record) = access.secrets.get(name) else { return Ok(None) };
    let sealed = STANDARD.decode(&record.sealed).context("its ciphertext is no base64")?;
    let value = keys.ring.open(place(name.as_str()), &sealed)?;
    let stamp = SecretStamp { version: record.version, changed: record.changed };
    Ok(Some(HeldSecret { stamp, value: Secret::new(value.to_vec()) }))
}

/// The manager's side.
pub(super) struct Giver {
    pub(super) keychain: Arc<Keychain>,
    pub(super) access: watch::Receiver<AccessView>,
    pub(super) readers: watch::Receiver<Arc<Readers>>,
    pub(super) beside: Beside,
}

impl Giver {
    /// Runs as long as the server does.
    pub(super) async fn run(self, mut asked: mpsc::Receiver<(NodeId, AskSecrets)>) {
        while let Some((from, AskSecrets { names })) = asked.recv().await {
            let may = self.readers.borrow().get(&from).cloned().unwrap_or_default();
            let names = names.iter().filter_map(|name| SecretName::new(name).ok()).filter(|name| may.contains(name));
            let secrets: Vec<GivenSecret> = names.filter_map(|name| self.give(&name)).collect();
            if !secrets.is_empty() {
                let names: Vec<&str> = secrets.iter().map(|secret| secret.name.as_str()).collect();
                info!(node = %from, secrets = names.join(" "), "gave a node secrets that its services name");
                self.beside.say(from, Body::GiveSecrets(GiveSecrets { secrets }));
            }
        }
    }

    fn give(&self, name: &SecretName) -> Option<GivenSecret> {
        let held = self.keychain.held();
        let access = self.access.borrow().access.clone();
        let opened = open(held.manager.as_ref()?, &access, name);
        let opened = opened.inspect_err(|error| warn!(secret = %name, "cannot be opened: {error:#}")).ok()??;
        Some(GivenSecret {
            name: name.to_string(),
            version: opened.stamp.version,
            changed_us: opened.stamp.changed.as_micros(),
            value: Bytes::copy_from_slice(opened.value.expose()),
        })
    }
}

/// The side of a node that runs services.
pub(super) struct Taker {
    pub(super) me: NodeId,
    pub(super) data_dir: PathBuf,
    pub(super) keychain: Arc<Keychain>,
    pub(super) access: watch::Receiver<AccessView>,
    pub(super) known: watch::Receiver<Arc<ClusterState>>,
    pub(super) needs: watch::Receiver<Arc<NodeNeeds>>,
    pub(super) beside: Beside,
    pub(super) held: watch::Sender<Arc<Secrets>>,
}

impl Taker {
    /// Runs as long as the server does.
    pub(super) async fn run(mut self, mut given: mpsc::Receiver<(NodeId, GiveSecrets)>) {
        let mut asked = 0;
        loop {
            let wanted = self.needs.borrow_and_update().secrets.clone();
            self.access.borrow_and_update();
            let mut now = Secrets::clone(&self.held.borrow());
            now.0.retain(|name, _| wanted.contains_key(name));
            self.open_own(&wanted, &mut now);
            let missing = missing(&wanted, &now);
            self.hold(now).await;
            if !missing.is_empty() {
                self.ask(missing.clone(), asked);
                asked += 1;
            }
            tokio::select! {
                changed = self.needs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                // A manager may have the value before it has the key, and the other way round.
                changed = self.access.changed(), if !missing.is_empty() => {
                    if changed.is_err() {
                        return;
                    }
                }
                heard = given.recv() => match heard {
                    None => return,
                    Some((from, secrets)) => self.take(from, secrets).await,
                },
                () = tokio::time::sleep(ASK_AGAIN), if !missing.is_empty() => {}
            }
        }
    }

    /// What this node can open itself, if it is a manager.
    fn open_own(&self, wanted: &WantedSecrets, now: &mut Secrets) {
        let held = self.keychain.held();
        let Some(keys) = &held.manager else { return };
        let access = self.access.borrow().access.clone();
        for name in missing(wanted, now) {
            match open(keys, &access, &name) {
                Ok(Some(secret)) if wanted[&name] == Some(secret.stamp) => drop(now.0.insert(name, secret)),
                Ok(_) => {}
                Err(error) => warn!(secret = %name, "cannot be opened: {error:#}"),
            }
        }
    }

    fn ask(&self, missing: BTreeSet<SecretName>, turn: usize) {
        let known = self.known.borrow();
        let managers: Vec<NodeId> = known
            .nodes
            .values()
            .filter(|node| self.is_manager(node.identity.id, &known))
            .map(|node| node.identity.id)
            .collect();
        if let Some(manager) = managers.get(turn % managers.len().max(1)) {
            let names = missing.iter().map(ToString::to_string).collect();
            self.beside.say(*manager, Body::AskSecrets(AskSecrets { names }));
        }
    }

    fn is_manager(&self, node: NodeId, known: &ClusterState) -> bool {
        let record = known.nodes.get(&node).filter(|_| node != self.me);
        record.is_some_and(|it| it.identity.roles.contains(&Role::Manager) && it.health == Health::Joined)
    }

    async fn take(&self, from: NodeId, GiveSecrets { secrets }: GiveSecrets) {
        if !self.is_manager(from, &self.known.borrow().clone()) {
            return;
        }
        let wanted = self.needs.borrow().secrets.clone();
        let mut now = Secrets::clone(&self.held.borrow());
        for GivenSecret { name, version, changed_us, value } in secrets {
            let stamp = SecretStamp { version, changed: WallTime(changed_us) };
            if let Ok(name) = SecretName::new(&name)
                && wanted.get(&name) == Some(&Some(stamp))
            {
                now.0.insert(name, HeldSecret { stamp, value: Secret::new(value.to_vec()) });
            }
        }
        self.hold(now).await;
    }

    /// First on the disk, so that a restart needs no manager.
    async fn hold(&self, now: Secrets) {
        if **self.held.borrow() == now {
            return;
        }
        let (dir, text) = (self.data_dir.clone(), now.clone());
        let written = tokio::task::spawn_blocking(move || write(&dir, &text)).await;
        if let Ok(Err(error)) = written {
            // They are used all the same, and asked for again after the next start.
            warn!("secrets are not kept: {error:#}");
        }
        self.held.send_replace(Arc::new(now));
    }
}

/// Those that there are and that are not held as they are now.
fn missing(wanted: &WantedSecrets, held: &Secrets) -> BTreeSet<SecretName> {
    let lacks = |(name, stamp): &(&SecretName, &Option<SecretStamp>)| {
        stamp.is_some() && held.0.get(*name).map(|held| held.stamp) != **stamp
    };
    wanted.iter().filter(lacks).map(|(name, _)| name.clone()).collect()
}

#[derive(Serialize, Deserialize)]
struct Kept {
    name: SecretName,
    #[serde(flatten)]
    stamp: SecretStamp,
    /// Base64.
    value: String,
}

/// What the node held when it ran last. What cannot be read is asked for again.
pub(super) fn read(data_dir: &Path) -> Secrets {
    let path = data_dir.join(trust::DIR).join(FILE);
    let kept = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Secrets::default(),
        Err(error) => Err(anyhow::Error::new(error)),
        Ok(text) => serde_json::from_slice::<Vec<Kept>>(&text).map_err(Into::into),
    };
    let held = kept.and_then(|kept| {
        let one =
            |Kept { name, stamp, value }| Ok((name, HeldSecret { stamp, value: Secret::new(STANDARD.decode(value)?) }));
        kept.into_iter().map(one).collect::<anyhow::Result<_>>()
    });
    match held {
        Ok(held) => Secrets(held),
        Err(error) => {
            warn!("{} is of no use: {error:#}", path.display());
            Secrets::default()
        }
    }
}

fn write(data_dir: &Path, secrets: &Secrets) -> anyhow::Result<()> {
    let one = |(name, held): (&SecretName, &HeldSecret)| Kept {
        name: name.clone(),
        stamp: held.stamp,
        value: STANDARD.encode(held.value.expose()),
    };
    let kept: Vec<Kept> = secrets.0.iter().map(one).collect();
    let text = serde_json::to_string(&kept)?;
    let write = || -> std::io::Result<()> {
        let dir = trust::made(data_dir)?;
        trust::replace(&dir, FILE, 0o600, &text)?;
        trust::synced(&dir, data_dir)
    };
    write().with_context(|| format!("writing {}/{FILE}", trust::DIR))
}
