//! What a node keeps to prove who it is and to know the others: `tls/` in its data directory.
//!
//! | file | what | who |
//! |---|---|---|
//! | `node.key` | the node's private key; it is made here and never leaves | every node |
//! | `node.crt` | its certificate, and that of the authority that made it | every node |
//! | `ca.crt` | the authorities that it believes | every node |
//! | `ca.key` | the authority's private key: who has it can make any node | managers |
//! | `cluster.key` | the keys that seal the cluster's secrets, newest first | managers |
//!
//! # Invariants
//! - The directory is for its owner alone (0700), and so is each file (0600).
//! - A file is there whole or not at all, also after a power cut.

use anyhow::{Context as _, bail};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use quorate_trust::ca::{Ca, CaCertificate, NodeCertificate};
use quorate_trust::identity::PeerIdentity;
use quorate_trust::key::NodeKey;
use quorate_trust::peer::Credentials;
use quorate_trust::sealing::{ClusterKey, KeyRing, KeyVersion};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The directory in the data directory.
const DIR: &str = "tls";
const NODE_KEY: &str = "node.key";
const NODE_CERTIFICATE: &str = "node.crt";
const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CLUSTER_KEY: &str = "cluster.key";

/// What one node keeps.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) key: NodeKey,
    pub(crate) certificate: NodeCertificate,
    /// Those that are believed: one, or two while a new one takes over.
    pub(crate) authorities: Vec<CaCertificate>,
    pub(crate) manager: Option<ManagerKeys>,
}

/// What only managers keep.
#[derive(Debug)]
pub(crate) struct ManagerKeys {
    pub(crate) authority: Ca,
    pub(crate) ring: KeyRing,
}

/// The same on its way to a new manager, inside of a TLS connection that is pinned to the authority.
#[derive(Serialize, Deserialize)]
struct Handed {
    authority_key: String,
    /// Newest first.
    cluster_keys: Vec<HandedKey>,
}

#[derive(Serialize, Deserialize)]
struct HandedKey {
    version: u32,
    /// 64 hex digits.
    key: String,
}

impl ManagerKeys {
    /// The keys of a new cluster.
    ///
    /// # Errors
    /// No randomness, or a clock that is centuries off.
    pub(crate) fn create(cluster: ClusterId, now: WallTime) -> anyhow::Result<ManagerKeys> {
        let authority = Ca::create(cluster, now, random_u128()?).context("making the cluster's authority")?;
        let first = ClusterKey::generate(KeyVersion(1)).context("making the key that seals secrets")?;
        Ok(ManagerKeys { authority, ring: KeyRing::new(first) })
    }

    fn handed(&self) -> Handed {
        let keys = [Some(self.ring.current()), self.ring.previous()].into_iter().flatten();
        Handed {
            authority_key: self.authority.key_pem().to_string(),
            cluster_keys: keys.map(|key| HandedKey { version: key.version().0, key: hex(key.as_bytes()) }).collect(),
        }
    }

    /// For a new manager.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string(&self.handed()).expect("keys are strings"))
    }

    /// What [`to_text`](Self::to_text) wrote, for the authority with this certificate.
    ///
    /// # Errors
    /// The text is none, or belongs to another authority.
    pub(crate) fn from_text(text: &str, authorities: &[CaCertificate]) -> anyhow::Result<ManagerKeys> {
        let handed: Handed = serde_json::from_str(text).context("reading the keys of a manager")?;
        let fits = |certificate: &CaCertificate| Ca::from_pem(&certificate.to_pem(), &handed.authority_key).ok();
        let authority =
            authorities.iter().find_map(fits).context("the authority's key fits none of its certificates")?;
        Ok(ManagerKeys { authority, ring: ring(&handed.cluster_keys)? })
    }
}

fn ring(keys: &[HandedKey]) -> anyhow::Result<KeyRing> {
    let read = |key: &HandedKey| {
        let bytes = unhex(&key.key).context("a key that seals secrets has 64 hex digits")?;
        anyhow::Ok(ClusterKey::from_bytes(KeyVersion(key.version), bytes))
    };
    match keys {
        [current] => Ok(KeyRing::new(read(current)?)),
        [current, previous] => Ok(KeyRing::new(read(previous)?).rotated(read(current)?)),
        _ => bail!("there are {} keys that seal secrets, and there should be one or two", keys.len()),
    }
}

impl Keys {
    /// Who the certificate says that this node is.
    ///
    /// # Errors
    /// None for a certificate that was read by [`Keys::read`].
    pub(crate) fn identity(&self) -> anyhow::Result<PeerIdentity> {
        self.certificate.identity().context("reading this node's own certificate")
    }

    /// What this node shows at handshakes.
    ///
    /// # Errors
    /// Key and certificate do not belong together.
    pub(crate) fn credentials(&self) -> anyhow::Result<Credentials> {
        Credentials::new(&self.certificate, &self.key).context("this node's key and certificate")
    }

    /// What lies in `data_dir`; `None` for a node that has nothing, as those of `quorate dev`.
    ///
    /// # Errors
    /// Something is missing or cannot be read, or it belongs to another node than this.
    pub(crate) fn read(data_dir: &Path, cluster: ClusterId, node: NodeId) -> anyhow::Result<Option<Keys>> {
        let dir = data_dir.join(DIR);
        if !dir.exists() {
            return Ok(None);
        }
        let text = |name: &str| {
            let path = dir.join(name);
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            anyhow::Ok(Zeroizing::new(text))
        };
        let within = |name: &str| format!("in {}", dir.join(name).display());
        let keys = Keys {
            key: NodeKey::from_pem(&text(NODE_KEY)?).with_context(|| within(NODE_KEY))?,
            certificate: NodeCertificate::from_pem(&text(NODE_CERTIFICATE)?)
                .with_context(|| within(NODE_CERTIFICATE))?,
            authorities: CaCertificate::all_from_pem(&text(AUTHORITIES)?).with_context(|| within(AUTHORITIES))?,
            manager: None,
        };
        let manager = match dir.join(AUTHORITY_KEY).exists() {
            false => None,
            true => {
                let cluster_keys: Vec<HandedKey> =
                    serde_json::from_str(&text(CLUSTER_KEY)?).with_context(|| within(CLUSTER_KEY))?;
                let handed = Handed { authority_key: text(AUTHORITY_KEY)?.to_string(), cluster_keys };
                let handed = Zeroizing::new(serde_json::to_string(&handed).expect("keys are strings"));
                Some(ManagerKeys::from_text(&handed, &keys.authorities).with_context(|| within(AUTHORITY_KEY))?)
            }
        };
        let named = keys.identity()?;
        if named != (PeerIdentity { cluster, node }) {
            bail!(
                "{} is for {named}, and this is node {node} of cluster {cluster}",
                dir.join(NODE_CERTIFICATE).display()
            );
        }
        Ok(Some(Keys { manager, ..keys }))
    }

    /// Puts everything into `data_dir`, durably.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let dir = directory(data_dir)?;
        write_private(&dir.join(NODE_KEY), &self.key.to_pem())?;
        write_private(&dir.join(NODE_CERTIFICATE), &self.certificate.to_pem())?;
        let authorities: String = self.authorities.iter().map(CaCertificate::to_pem).collect();
        write_private(&dir.join(AUTHORITIES), &authorities)?;
        if let Some(manager) = &self.manager {
            let handed = manager.handed();
            let keys = Zeroizing::new(serde_json::to_string(&handed.cluster_keys).expect("keys are strings"));
            write_private(&dir.join(CLUSTER_KEY), &keys)?;
            // Last: it is what says that the rest is there.
            write_private(&dir.join(AUTHORITY_KEY), &handed.authority_key)?;
        }
        sync(&dir)
    }
}

/// The key of a server that is about to join: made at the first attempt and used again by the next,
/// because the cluster knows by it that it is the same server.
///
/// # Errors
/// The disk, or no randomness.
pub(crate) fn joining_key(data_dir: &Path) -> anyhow::Result<NodeKey> {
    let dir = directory(data_dir)?;
    let path = dir.join(NODE_KEY);
    match std::fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(text) => NodeKey::from_pem(&text).with_context(|| format!("in {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = NodeKey::generate().context("making this node's key")?;
            write_private(&path, &key.to_pem())?;
            sync(&dir)?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn directory(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let dir = data_dir.join(DIR);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// A file that only its owner may read: whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// What was created or renamed in `dir` survives a power cut.
pub(crate) fn sync(dir: &Path) -> anyhow::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", dir.display()))
}

/// The clock by which certificates begin and end.
pub(crate) fn tls_clock() -> Arc<dyn rustls::time_provider::TimeProvider> {
    Arc::new(rustls::time_provider::DefaultTimeProvider)
}

/// For serial numbers and the like.
pub(crate) fn random_u128() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system gives no randomness: {error}"))?;
    Ok(u128::from_le_bytes(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: WallTime = WallTime(1_800_000_000_000_000);

    fn made(cluster: ClusterId, node: NodeId) -> Keys {
        let manager = ManagerKeys::create(cluster, NOW).unwrap();
        let key = NodeKey::generate().unwrap();
        let certificate = manager.authority.issue(&key.request().unwrap(), node, &[], NOW, 1).unwrap();
        Keys { key, certificate, authorities: vec![manager.authority.certificate().clone()], manager: Some(manager) }
    }

    #[test]
    fn what_is_written_is_read_again_and_is_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, node) = (ClusterId::from_u128(1), NodeId::from_u128(2));
        assert!(Keys::read(dir.path(), cluster, node).unwrap().is_none());
        let keys = made(cluster, node);
        keys.write(dir.path()).unwrap();
        let read = Keys::read(dir.path(), cluster, node).unwrap().unwrap();
        assert_eq!(read.certificate, keys.certificate);
        read.credentials().unwrap();
        let (ours, theirs) = (keys.manager.unwrap(), read.manager.unwrap());
        assert_eq!(*ours.to_text(), *theirs.to_text());
        for file in std::fs::read_dir(dir.path().join(DIR)).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", file.path().display());
        }
        assert_eq!(std::fs::metadata(dir.path().join(DIR)).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_keys_of_another_node_are_not_taken_for_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterId::from_u128(1);
        made(cluster, NodeId::from_u128(2)).write(dir.path()).unwrap();
        let error = Keys::read(dir.path(), cluster, NodeId::from_u128(3)).unwrap_err();
        assert!(error.to_string().contains("is for quorate://"), "{error}");
    }

    #[test]
    fn a_server_that_tries_again_to_join_is_the_same_server() {
        let dir = tempfile::tempdir().unwrap();
        let first = joining_key(dir.path()).unwrap();
        assert_eq!(joining_key(dir.path()).unwrap().public(), first.public());
    }

    #[test]
    fn a_ring_keeps_its_older_key() {
        let old = ClusterKey::generate(KeyVersion(1)).unwrap();
        let new = ClusterKey::generate(KeyVersion(2)).unwrap();
        let keys = ManagerKeys {
            ring: KeyRing::new(old).rotated(new),
            ..ManagerKeys::create(ClusterId::from_u128(1), NOW).unwrap()
        };
        let authorities = [keys.authority.certificate().clone()];
        let read = ManagerKeys::from_text(&keys.to_text(), &authorities).unwrap();
        assert_eq!(read.ring.current().version(), KeyVersion(2));
        assert_eq!(read.ring.previous().unwrap().as_bytes(), keys.ring.previous().unwrap().as_bytes());
        let other = ManagerKeys::create(ClusterId::from_u128(1), NOW).unwrap();
        ManagerKeys::from_text(&other.to_text(), &authorities).unwrap_err();
    }
}
