//! A node without a vote follows a cluster that was recovered.
//!
//! What a worker holds is a copy, and the managers that it was copied from may have been given up: it may have
//! entries that the recovered cluster never heard of. So it sets its copy aside and takes a new one, and its
//! services go on meanwhile. A manager never does this: whoever recovered the cluster said that it is destroyed.
//!
//! Who says that there is a newer incarnation has shown a certificate of the cluster's authority. Still a
//! recovery may have been a mistake, with the majority alive: so nobody follows who hears a leader.
//!
//! # Invariants
//! - What is to be done is written down before the process ends, and carried out by the next start before
//!   anything is opened; each step may be done twice.
//! - Nothing is deleted but what an earlier following had set aside.

use super::backend::LeaderContact;
use crate::config::{self, NodeConfig};
use crate::trust;
use anyhow::Context as _;
use quorate_model::id::NodeId;
use quorate_model::state::{ClusterState, Role};
use quorate_model::time::Timestamp;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// The file that says which incarnation is to be followed.
const ORDER: &str = "follow-incarnation";
/// Where the copy of the earlier incarnation is kept.
const ASIDE: &str = "earlier-incarnation";
/// No leader for this long, and its cluster may well be gone. Elections take a second or two.
const WITHOUT_LEADER: Duration = Duration::from_secs(10);
/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// What is known of this node and its cluster.
pub(super) struct Follower {
    pub(super) config: NodeConfig,
    pub(super) incarnation: u64,
    /// The newest incarnation that a member spoke of.
    pub(super) newer: watch::Receiver<u64>,
    pub(super) known: watch::Receiver<Arc<ClusterState>>,
    pub(super) contact: Arc<LeaderContact>,
    pub(super) started: Instant,
}

impl Follower {
    /// Returns when this node is to end and begin anew in another incarnation. The order for it is written.
    pub(super) async fn wait(mut self, data_dir: &Path) {
        loop {
            let newer = match self.newer.wait_for(|newer| *newer > self.incarnation).await {
                Ok(newer) => *newer,
                // Without links nobody says anything.
                Err(_) => std::future::pending().await,
            };
            if !self.is_manager(self.config.node.id) && self.is_alone() {
                match trust::replace(data_dir, ORDER, 0o640, &newer.to_string()).and_then(|()| sync(data_dir)) {
                    Ok(()) => {
                        info!(incarnation = newer, "the cluster was recovered: this node takes a new copy of its data");
                        return;
                    }
                    Err(error) => warn!(%error, "cannot follow the recovered cluster"),
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn is_manager(&self, node: NodeId) -> bool {
        let known = self.known.borrow();
        let roles = known.nodes.get(&node).map_or(&self.config.node.roles, |record| &record.identity.roles);
        roles.contains(&Role::Manager)
    }

    fn is_alone(&self) -> bool {
        let now = Timestamp(self.started.elapsed());
        self.contact.age(now).unwrap_or(now.0) >= WITHOUT_LEADER
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Carries out what was written down before the last end, if anything was. Returns what the node is then.
///
/// # Errors
/// The disk. The next start tries it again.
pub(super) fn carry_out(data_dir: &Path, config: NodeConfig) -> anyhow::Result<NodeConfig> {
    let order = data_dir.join(ORDER);
    let text = match std::fs::read_to_string(&order) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(config),
        text => text.with_context(|| format!("reading {}", order.display()))?,
    };
    let incarnation: u64 = text.trim().parse().with_context(|| format!("in {}", order.display()))?;
    let followed = follow(data_dir, config, incarnation);
    followed.with_context(|| format!("setting aside what {} holds of an earlier incarnation", data_dir.display()))
}

fn follow(data_dir: &Path, mut config: NodeConfig, incarnation: u64) -> anyhow::Result<NodeConfig> {
    let aside = data_dir.join(ASIDE);
    // Of this following, if its start ended in the midst of it: then one of the two is still in its place.
    let fresh = !aside.join("of").exists()
        || std::fs::read_to_string(aside.join("of"))?.trim() != config.cluster.incarnation.to_string();
    if fresh && config.cluster.incarnation < incarnation {
        match std::fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        std::fs::create_dir(&aside)?;
        trust::replace(&aside, "of", 0o640, &config.cluster.incarnation.to_string())?;
        sync(&aside)?;
    }
    for what in ["db", "log"] {
        match std::fs::rename(data_dir.join(what), aside.join(what)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    sync(data_dir)?;
    config.cluster.incarnation = incarnation.max(config.cluster.incarnation);
    // With whom the cluster began does not count any more; somebody of them may still know the way.
    let founders = std::mem::take(&mut config.voters);
    config.peers.extend(founders.into_iter().filter(|voter| voter.id != config.node.id));
    config.peers.sort_by_key(|peer| peer.id);
    config.peers.dedup_by_key(|peer| peer.id);
    let text = toml::to_string(&config)?;
    trust::replace(data_dir, config::FILE, 0o640, &text)?;
    std::fs::remove_file(data_dir.join(ORDER))?;
    sync(data_dir)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(incarnation: u64) -> NodeConfig {
        let text = format!(
            "[cluster]\nid = '00000000-0000-0000-0000-000000000001'\nname = 'c'\nincarnation = {incarnation}\n[node]\n\
             id = '00000000-0000-0000-0000-000000000002'\nname = 'n2'\nroles = ['worker']\napi = '127.0.0.1:1'\n\
             link = '127.0.0.1:2'\n[[voter]]\nid = '00000000-0000-0000-0000-000000000003'\nname = 'n3'\n\
             link = '127.0.0.1:3'\n"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn a_copy_is_set_aside_once_whenever_the_start_before_ended() {
        let written = |dir: &Path| -> NodeConfig {
            toml::from_str(&std::fs::read_to_string(dir.join(config::FILE)).unwrap()).unwrap()
        };
        // The start before got so far: nothing, the databases aside, both aside, all but the order.
        for ended in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            for what in ["db", "log"] {
                std::fs::create_dir(at(what)).unwrap();
                std::fs::write(at(what).join("data"), what).unwrap();
            }
            let mut found = config(1);
            if ended > 0 {
                std::fs::create_dir(at(ASIDE)).unwrap();
                std::fs::write(at(ASIDE).join("of"), "1").unwrap();
                std::fs::rename(at("db"), at(ASIDE).join("db")).unwrap();
            }
            if ended > 1 {
                std::fs::rename(at("log"), at(ASIDE).join("log")).unwrap();
            }
            if ended > 2 {
                found = config(2);
            }
            std::fs::write(at(ORDER), "2").unwrap();
            let now = carry_out(dir.path(), found).unwrap();
            assert_eq!((now.cluster.incarnation, now.voters.len(), now.peers.len()), (2, 0, 1), "{ended}");
            assert_eq!(written(dir.path()), now);
            assert!(!at("db").exists() && !at("log").exists() && !at(ORDER).exists());
            for what in ["db", "log"] {
                assert_eq!(std::fs::read_to_string(at(ASIDE).join(what).join("data")).unwrap(), what, "{ended}");
            }
            // Without an order nothing happens.
            std::fs::create_dir(at("db")).unwrap();
            assert_eq!(carry_out(dir.path(), now.clone()).unwrap(), now);
            assert!(at("db").exists());
        }
    }

    #[test]
    fn a_second_recovery_replaces_what_the_first_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let mut now = config(1);
        for incarnation in 2..4_u64 {
            std::fs::create_dir(dir.path().join("db")).unwrap();
            std::fs::write(dir.path().join("db/data"), incarnation.to_string()).unwrap();
            std::fs::write(dir.path().join(ORDER), incarnation.to_string()).unwrap();
            now = carry_out(dir.path(), now).unwrap();
        }
        assert_eq!(now.cluster.incarnation, 3);
        assert_eq!(std::fs::read_to_string(dir.path().join(ASIDE).join("db/data")).unwrap(), "3");
    }
}
