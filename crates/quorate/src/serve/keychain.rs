//! What this node proves itself with while it runs: on its disk, in memory and in force.
//!
//! Certificates, authorities and keys change without a restart. Whoever changes one of them does it
//! here, in one order: durable first, then in force for new connections, then seen by those who watch.
//!
//! # Invariants
//! - What is in force is on the disk.
//! - One change at a time.

use super::link::LinkTls;
use super::tls::Acceptor;
use crate::config::NodeConfig;
use crate::keys::ManagerKeys;
use crate::trust::NodeFiles;
use anyhow::Context as _;
use quorate_trust::ca::{CaCertificate, NodeCertificate};
use quorate_trust::key::NodeKey;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// What is held at one moment.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) files: NodeFiles,
    /// Of a manager.
    pub(super) manager: Option<ManagerKeys>,
}

/// The one place where it changes.
pub(super) struct Keychain {
    data_dir: PathBuf,
    config: NodeConfig,
    link: Arc<LinkTls>,
    api: Acceptor,
    held: watch::Sender<Arc<Held>>,
    turn: Mutex<()>,
}

impl std::fmt::Debug for Keychain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keychain(…)")
    }
}

impl Keychain {
    pub(super) fn new(data_dir: &Path, config: &NodeConfig, held: Held, link: Arc<LinkTls>, api: Acceptor) -> Keychain {
        let held = watch::Sender::new(Arc::new(held));
        Keychain { data_dir: data_dir.to_owned(), config: config.clone(), link, api, held, turn: Mutex::default() }
    }

    pub(super) fn held(&self) -> Arc<Held> {
        self.held.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Held>> {
        self.held.subscribe()
    }

    /// Shows another certificate from now on.
    ///
    /// # Errors
    /// It is not this node's, or the disk. The one before is in force then.
    pub(super) fn exchange(&self, certificate: NodeCertificate, key: NodeKey) -> anyhow::Result<()> {
        self.change(|held, dir| {
            // Looked at before it replaces one that is good.
            let wanted = NodeFiles { certificate, key: Arc::new(key), ..held.files.clone() };
            wanted.credentials(self.config.cluster.id, self.config.node.id)?;
            let key = NodeKey::from_pem(&wanted.key.to_pem())?;
            let files = held.files.exchange(dir, wanted.certificate, key).context("writing the new certificate")?;
            Ok(Held { files, ..held.clone() })
        })
    }

    /// Believes these authorities from now on, and no others.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn believe(&self, authorities: Vec<CaCertificate>) -> anyhow::Result<()> {
        self.change(|held, dir| {
            let files = held.files.believing(dir, authorities).context("writing the authorities")?;
            Ok(Held { files, ..held.clone() })
        })
    }

    /// Holds these keys of a manager from now on.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn hold(&self, manager: ManagerKeys) -> anyhow::Result<()> {
        self.change(|held, dir| {
            manager.write(dir)?;
            Ok(Held { manager: Some(manager), ..held.clone() })
        })
    }

    /// Holds no keys of a manager from now on; they are gone from the disk.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn give_up(&self) -> anyhow::Result<()> {
        if self.held().manager.is_none() {
            return Ok(());
        }
        tracing::info!("this node is no manager any more: it gives up the keys of one");
        self.change(|held, dir| {
            ManagerKeys::remove(dir)?;
            Ok(Held { manager: None, ..held.clone() })
        })
    }

    fn change(&self, make: impl FnOnce(&Held, &Path) -> anyhow::Result<Held>) -> anyhow::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.held();
        // A few files and their syncs: the thread's other work goes elsewhere meanwhile.
        let next = tokio::task::block_in_place(|| make(&held, &self.data_dir))?;
        self.link.put_in_force(&next.files)?;
        self.api.put_in_force(&self.config, &next.files)?;
        self.held.send_replace(Arc::new(next));
        Ok(())
    }
}
