//! The keys that seal gossip, on a node's disk: `tls/gossip.key`, readable by its owner alone.
//!
//! `init` makes the first one and a server gets those of the manager that lets it in. How others take
//! their place while the cluster runs is in [`crate::serve`], `gossip/keys.rs`.

use crate::trust;
use anyhow::{Context as _, bail};
use quorate_membership::seal::{Key, KeyId, KeyRing};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

pub(crate) const FILE: &str = "gossip.key";

/// A key of random bits.
///
/// # Errors
/// No randomness.
pub(crate) fn generate(id: KeyId) -> anyhow::Result<Key> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("the system gives no randomness: {error}"))?;
    Ok(Key { id, secret })
}

/// The keys of a new cluster.
///
/// # Errors
/// No randomness.
pub(crate) fn first() -> anyhow::Result<KeyRing> {
    Ok(KeyRing::new(generate(KeyId(1))?))
}

/// The keys of the node in `data_dir`, if it has any.
///
/// # Errors
/// The file is no ring of keys, or others may read it.
pub(crate) fn read(data_dir: &Path) -> anyhow::Result<Option<KeyRing>> {
    let path = path(data_dir);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    let mode = std::fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!("others may read {} (mode {:o}): chmod 600 {0}", path.display(), mode & 0o777);
    }
    Ok(Some(KeyRing::from_text(&text).with_context(|| format!("in {}", path.display()))?))
}

/// Puts them there, durably.
///
/// # Errors
/// The disk.
pub(crate) fn write(data_dir: &Path, ring: &KeyRing) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let dir = trust::made(data_dir)?;
        trust::replace(&dir, FILE, 0o600, &ring.to_text())?;
        trust::synced(&dir, data_dir)
    };
    write().with_context(|| format!("writing {}", path(data_dir).display()))
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(trust::DIR).join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_others_may_read_or_that_make_no_sense_stop_the_start() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let ring = first().unwrap();
        write(dir.path(), &ring).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(ring));
        let path = path(dir.path());
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        let refused = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(refused.contains("chmod 600") && refused.contains("gossip.key"), "{refused}");
        mode(0o600);
        std::fs::write(&path, "1 abc").unwrap();
        let refused = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(refused.contains("line 1") && !refused.contains("abc"), "{refused}");
    }
}
