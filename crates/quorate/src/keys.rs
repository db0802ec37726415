//! What managers alone keep, beside what every node has in `tls/` ([`crate::trust`]).
//!
//! | file | what |
//! |---|---|
//! | `ca.key` | the authority's private key: who has it can make any node; while a new authority takes over, that one's behind it; mode 0600 |
//! | `cluster.key` | the keys that open the cluster's secrets; the first one seals; mode 0600 |
//!
//! A new manager gets both in the answer to its join: inside of a TLS connection that is pinned to the
//! authority, after it was admitted.

use crate::trust::{self, AUTHORITY_KEY, DIR, KEY};
use anyhow::{Context as _, bail};
use quorate_model::id::ClusterId;
use quorate_model::time::WallTime;
use quorate_trust::ca::{Ca, CaCertificate};
use quorate_trust::key::NodeKey;
use quorate_trust::sealing::{ClusterKey, KeyRing, KeyVersion};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

pub(crate) const CLUSTER_KEY: &str = "cluster.key";
/// The last line of a private key in PEM.
const KEY_ENDS: &str = "-----END PRIVATE KEY-----\n";

/// The cluster's authority, and what seals its secrets.
#[derive(Debug, Clone)]
pub(crate) struct ManagerKeys {
    /// The one that signs.
    pub(crate) authority: Arc<Ca>,
    /// The one that will.
    pub(crate) next: Option<Arc<Ca>>,
    pub(crate) ring: KeyRing,
}

/// The same on its way to a new manager.
#[derive(Serialize, Deserialize)]
struct Handed {
    /// One key in PEM, or two: the one that signs first.
    authority_key: String,
    /// The one that seals first.
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
        let authority = Ca::create(cluster, now, trust::serial()?).context("making the cluster's authority")?;
        ManagerKeys::of_authority(authority)
    }

    /// The keys of a cluster that has an authority and nothing else.
    ///
    /// # Errors
    /// No randomness.
    pub(crate) fn of_authority(authority: Ca) -> anyhow::Result<ManagerKeys> {
        let first = ClusterKey::generate(KeyVersion(1)).context("making the key that seals secrets")?;
        Ok(ManagerKeys { authority: Arc::new(authority), next: None, ring: KeyRing::new(first) })
    }

    /// What lies in `data_dir`; `None` for a node that is no manager, or of `quorate dev`.
    ///
    /// # Errors
    /// A file cannot be read, or belongs to another authority.
    pub(crate) fn read(data_dir: &Path, authorities: &[CaCertificate]) -> anyhow::Result<Option<ManagerKeys>> {
        let dir = data_dir.join(DIR);
        if !dir.join(AUTHORITY_KEY).exists() {
            return Ok(None);
        }
        let (authority_key, path) = trust::read(&dir, AUTHORITY_KEY)?;
        let (keys, keys_path) = trust::read(&dir, CLUSTER_KEY)?;
        let cluster_keys = serde_json::from_str(&Zeroizing::new(keys));
        let cluster_keys = cluster_keys.with_context(|| format!("in {}", keys_path.display()))?;
        let keys = ManagerKeys::of(&Handed { authority_key, cluster_keys }, authorities);
        keys.map(Some).with_context(|| format!("in {} and {}", path.display(), keys_path.display()))
    }

    /// Puts them into `data_dir`, durably.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let handed = self.handed();
        let keys = Zeroizing::new(serde_json::to_string(&handed.cluster_keys).expect("keys are strings"));
        let write = || -> std::io::Result<()> {
            let dir = trust::made(data_dir)?;
            trust::replace(&dir, CLUSTER_KEY, 0o600, &keys)?;
            // Last: it is what says that the rest is there.
            trust::replace(&dir, AUTHORITY_KEY, 0o600, &handed.authority_key)?;
            trust::synced(&dir, data_dir)
        };
        write().with_context(|| format!("writing into {}", data_dir.join(DIR).display()))
    }

    /// Takes them out of `data_dir`, durably; also what an interrupted removal left.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn remove(data_dir: &Path) -> anyhow::Result<()> {
        let dir = data_dir.join(DIR);
        // First what says that the rest is there.
        for name in [AUTHORITY_KEY, CLUSTER_KEY] {
            let gone = match std::fs::remove_file(dir.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => trust::synced(&dir, data_dir),
            };
            gone.with_context(|| format!("removing {}", dir.join(name).display()))?;
        }
        Ok(())
    }

    /// For a new manager.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string(&self.handed()).expect("keys are strings"))
    }

    /// What [`to_text`](Self::to_text) wrote, for the authority with one of these certificates.
    ///
    /// # Errors
    /// The text is none, or belongs to another authority.
    pub(crate) fn from_text(text: &str, authorities: &[CaCertificate]) -> anyhow::Result<ManagerKeys> {
        ManagerKeys::of(&serde_json::from_str(text).context("reading the keys of a manager")?, authorities)
    }

    fn of(handed: &Handed, authorities: &[CaCertificate]) -> anyhow::Result<ManagerKeys> {
        let find = |key: &str| {
            let fits = |certificate: &CaCertificate| Ca::from_pem(&certificate.to_pem(), key).ok();
            authorities.iter().find_map(fits).map(Arc::new)
        };
        // Of a key whose authority is not believed, or not yet, nothing can be made.
        let mut found = handed.authority_key.split_inclusive(KEY_ENDS).filter_map(find);
        let authority = found.next().context("the authority's key fits none of its certificates")?;
        Ok(ManagerKeys { authority, next: found.next(), ring: ring(&handed.cluster_keys)? })
    }

    fn handed(&self) -> Handed {
        let keys = [Some(self.ring.current()), self.ring.previous()].into_iter().flatten();
        let authorities = [Some(&self.authority), self.next.as_ref()].into_iter().flatten();
        Handed {
            authority_key: authorities.map(|authority| authority.key_pem().to_string()).collect(),
            cluster_keys: keys.map(|key| HandedKey { version: key.version().0, key: hex(key.as_bytes()) }).collect(),
        }
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.authority_key);
    }
}

impl Drop for HandedKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
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

/// The key of a server that is about to join: made at the first attempt and used again by the next,
/// because the cluster knows by it that it is the same server.
///
/// # Errors
/// The disk, or no randomness.
pub(crate) fn joining_key(data_dir: &Path) -> anyhow::Result<NodeKey> {
    let path = data_dir.join(DIR).join(KEY);
    match std::fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(text) => NodeKey::from_pem(&text).with_context(|| format!("in {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = NodeKey::generate().context("making this node's key")?;
            let write = || -> std::io::Result<()> {
                let dir = trust::made(data_dir)?;
                trust::replace(&dir, KEY, 0o600, &key.to_pem())?;
                trust::synced(&dir, data_dir)
            };
            write().with_context(|| format!("writing {}", path.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
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

    fn made() -> ManagerKeys {
        ManagerKeys::create(ClusterId::from_u128(1), NOW).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again_and_is_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keys = made();
        let authorities = [keys.authority.certificate().clone()];
        assert!(ManagerKeys::read(dir.path(), &authorities).unwrap().is_none());
        keys.write(dir.path()).unwrap();
        let read = ManagerKeys::read(dir.path(), &authorities).unwrap().unwrap();
        assert_eq!(*keys.to_text(), *read.to_text());
        for name in [AUTHORITY_KEY, CLUSTER_KEY] {
            let mode = std::fs::metadata(dir.path().join(DIR).join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let other = [made().authority.certificate().clone()];
        ManagerKeys::read(dir.path(), &other).unwrap_err();
        ManagerKeys::remove(dir.path()).unwrap();
        assert!(ManagerKeys::read(dir.path(), &authorities).unwrap().is_none());
        assert!(!dir.path().join(DIR).join(CLUSTER_KEY).exists());
        ManagerKeys::remove(dir.path()).unwrap();
    }

    #[test]
    fn two_authorities_are_kept_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (made(), made());
        let keys = ManagerKeys { next: Some(new.authority.clone()), ..old.clone() };
        let certificates = [&new, &old].map(|keys| keys.authority.certificate().clone());
        keys.write(dir.path()).unwrap();
        let read = ManagerKeys::read(dir.path(), &certificates).unwrap().unwrap();
        assert_eq!(read.authority.certificate().fingerprint(), old.authority.certificate().fingerprint());
        assert_eq!(read.next.unwrap().certificate().fingerprint(), new.authority.certificate().fingerprint());
        // With the old one not believed any more, the new one signs.
        let read = ManagerKeys::read(dir.path(), &certificates[..1]).unwrap().unwrap();
        assert_eq!(read.authority.certificate().fingerprint(), new.authority.certificate().fingerprint());
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
        let keys = ManagerKeys { ring: KeyRing::new(old).rotated(new), ..made() };
        let authorities = [keys.authority.certificate().clone()];
        let read = ManagerKeys::from_text(&keys.to_text(), &authorities).unwrap();
        assert_eq!(read.ring.current().version(), KeyVersion(2));
        assert_eq!(read.ring.previous().unwrap().as_bytes(), keys.ring.previous().unwrap().as_bytes());
        ManagerKeys::from_text(&made().to_text(), &authorities).unwrap_err();
    }
}
