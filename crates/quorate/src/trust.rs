//! What a node proves itself with, on its disk: `tls/` in its data directory.
//!
//! | file | what |
//! |---|---|
//! | `ca.crt` | the authorities that are believed, in PEM: one, or two while a new one takes over |
//! | `node.crt` | this node's certificate, and behind it that of the authority that made it |
//! | `node.key` | this node's private key; mode 0600 |
//! | `node.key.next` | the key of the certificate that is just being exchanged; mode 0600 |
//!
//! A certificate and its key are two files and change together: the new key is put beside the old one,
//! then the certificate is exchanged, then the key. Whoever reads them after a power cut in between
//! finds by the certificate which of the keys is its own.
//!
//! For a cluster that begins on one machine (`quorate dev`, the torture rig), [`lay_out`] makes the
//! authority and all of this; what managers hold ([`crate::keys`]) is also kept beside the nodes'
//! directories.

use crate::cli::screen::wall_now;
use crate::keys::ManagerKeys;
use anyhow::{Context as _, bail};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use quorate_trust::ca::{Ca, CaCertificate, NodeCertificate};
use quorate_trust::identity::PeerIdentity;
use quorate_trust::key::NodeKey;
use quorate_trust::peer::Credentials;
use quorate_trust::renewal::{renew_at, seed_of};
use rustls::pki_types::ServerName;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const DIR: &str = "tls";
pub(crate) const AUTHORITIES: &str = "ca.crt";
pub(crate) const AUTHORITY_KEY: &str = "ca.key";
const CERTIFICATE: &str = "node.crt";
pub(crate) const KEY: &str = "node.key";
const NEXT_KEY: &str = "node.key.next";

/// What is in a node's `tls/`.
#[derive(Debug, Clone)]
pub(crate) struct NodeFiles {
    pub authorities: Vec<CaCertificate>,
    pub certificate: NodeCertificate,
    pub key: Arc<NodeKey>,
}

impl NodeFiles {
    /// # Errors
    /// Names the file that is missing or unusable.
    pub(crate) fn read(data_dir: &Path) -> anyhow::Result<NodeFiles> {
        let dir = data_dir.join(DIR);
        let (text, path) = read(&dir, AUTHORITIES)?;
        let authorities = CaCertificate::all_from_pem(&text).with_context(|| format!("in {}", path.display()))?;
        let (text, path) = read(&dir, CERTIFICATE)?;
        let certificate = NodeCertificate::from_pem(&text).with_context(|| format!("in {}", path.display()))?;
        let key = Arc::new(read_key(&dir, &certificate)?);
        Ok(NodeFiles { authorities, certificate, key })
    }

    /// The same with another certificate and its key, which are on the disk when this returns.
    ///
    /// # Errors
    /// The disk. What was there before is still there, or the new one is; never half of each.
    pub(crate) fn exchange(
        &self,
        data_dir: &Path,
        certificate: NodeCertificate,
        key: NodeKey,
    ) -> io::Result<NodeFiles> {
        let dir = made(data_dir)?;
        replace(&dir, NEXT_KEY, 0o600, &key.to_pem())?;
        synced(&dir, data_dir)?;
        replace(&dir, CERTIFICATE, 0o644, &certificate.to_pem())?;
        synced(&dir, data_dir)?;
        std::fs::rename(dir.join(NEXT_KEY), dir.join(KEY))?;
        synced(&dir, data_dir)?;
        Ok(NodeFiles { authorities: self.authorities.clone(), certificate, key: Arc::new(key) })
    }

    /// The same with other authorities to believe, which are on the disk when this returns.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn believing(&self, data_dir: &Path, authorities: Vec<CaCertificate>) -> io::Result<NodeFiles> {
        let dir = made(data_dir)?;
        let text: String = authorities.iter().map(CaCertificate::to_pem).collect();
        replace(&dir, AUTHORITIES, 0o644, &text)?;
        synced(&dir, data_dir)?;
        Ok(NodeFiles { authorities, ..self.clone() })
    }

    /// When the certificate should be exchanged for a new one.
    pub(crate) fn renew_at(&self) -> WallTime {
        // One that cannot be read is due.
        let (from, until) = self.certificate.lasts().unwrap_or_default();
        renew_at(from, until, seed_of(&self.certificate))
    }

    /// # Errors
    /// The certificate is not that of this node, or not for this key.
    pub(crate) fn credentials(&self, cluster: ClusterId, node: NodeId) -> anyhow::Result<Credentials> {
        let (found, expected) = (self.certificate.identity()?, PeerIdentity { cluster, node });
        if found != expected {
            bail!("{DIR}/{CERTIFICATE} is the certificate of {found}, and this is {expected}");
        }
        Credentials::new(&self.certificate, &self.key).with_context(|| format!("in {DIR}/{CERTIFICATE} and {KEY}"))
    }

    /// # Errors
    /// The disk.
    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let dir = made(data_dir)?;
        let authorities: String = self.authorities.iter().map(CaCertificate::to_pem).collect();
        replace(&dir, AUTHORITIES, 0o644, &authorities)?;
        replace(&dir, KEY, 0o600, &self.key.to_pem())?;
        replace(&dir, CERTIFICATE, 0o644, &self.certificate.to_pem())?;
        synced(&dir, data_dir)
    }

    /// Whether a node may go on with them: they are its own, of an authority that it believes, and
    /// there is time left.
    fn serve_for(&self, cluster: ClusterId, node: NodeId) -> bool {
        let made_by = |at: &CaCertificate| self.certificate.chain().get(1) == Some(at.as_der());
        let fresh = |(from, until)| wall_now() < renew_at(from, until, 0);
        self.credentials(cluster, node).is_ok()
            && self.authorities.iter().any(|at| at.cluster() == cluster && made_by(at))
            && self.certificate.lasts().is_ok_and(fresh)
    }
}

/// A node of a cluster that begins on this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Founder<'a> {
    pub node: NodeId,
    pub data_dir: &'a Path,
    /// Where its API is reached.
    pub host: IpAddr,
}

/// Gives each node what it needs to prove itself to the others, from an authority that is kept in
/// `dir`. What is there already and still good stays as it is.
///
/// # Errors
/// Names what cannot be written, or an authority that is not this cluster's.
pub(crate) fn lay_out(dir: &Path, cluster: ClusterId, founders: &[Founder<'_>]) -> anyhow::Result<()> {
    let kept = kept(dir, cluster)?;
    // Once the authority was rotated, the nodes know better.
    let theirs = founders.iter().find_map(|founder| {
        let files = NodeFiles::read(founder.data_dir).ok()?;
        ManagerKeys::read(founder.data_dir, &files.authorities).ok()?.map(|keys| (keys, files.authorities))
    });
    let theirs = theirs.filter(|(keys, _)| keys.authority.certificate().cluster() == cluster);
    let (manager, authorities) = theirs.unwrap_or_else(|| {
        let authorities = vec![kept.authority.certificate().clone()];
        (kept, authorities)
    });
    for founder in founders {
        let good = NodeFiles::read(founder.data_dir).ok().filter(|files| files.serve_for(cluster, founder.node));
        if let Some(files) = good {
            if !ManagerKeys::read(founder.data_dir, &files.authorities).is_ok_and(|keys| keys.is_some()) {
                manager.write(founder.data_dir)?;
            }
            continue;
        }
        let key = NodeKey::generate()?;
        let local = ServerName::try_from("localhost").expect("it is a name");
        let names = [local, ServerName::from(founder.host)];
        let certificate = manager.authority.issue(&key.request()?, founder.node, &names, wall_now(), serial()?)?;
        let files = NodeFiles { authorities: authorities.clone(), certificate, key: Arc::new(key) };
        files.write(founder.data_dir).with_context(|| format!("writing into {}", founder.data_dir.display()))?;
        manager.write(founder.data_dir)?;
    }
    Ok(())
}

/// What is kept in `dir`, made if there is nothing.
fn kept(dir: &Path, cluster: ClusterId) -> anyhow::Result<ManagerKeys> {
    let tls = dir.join(DIR);
    if tls.join(AUTHORITY_KEY).exists() {
        let (certificate, path) = read(&tls, AUTHORITIES)?;
        let (key, _) = read(&tls, AUTHORITY_KEY)?;
        let ca = Ca::from_pem(&certificate, &key).with_context(|| format!("in {}", tls.display()))?;
        if ca.certificate().cluster() != cluster {
            bail!("{} is the CA of cluster {}, not of {cluster}", path.display(), ca.certificate().cluster());
        }
        let authorities = [ca.certificate().clone()];
        if let Ok(Some(manager)) = ManagerKeys::read(dir, &authorities) {
            return Ok(manager);
        }
        // Laid out when there was nothing to seal yet.
        let manager = ManagerKeys::of_authority(ca)?;
        manager.write(dir)?;
        return Ok(manager);
    }
    let manager = ManagerKeys::create(cluster, wall_now())?;
    let write = || -> io::Result<()> {
        let tls = made(dir)?;
        replace(&tls, AUTHORITIES, 0o644, &manager.authority.certificate().to_pem())
    };
    write().with_context(|| format!("writing into {}", tls.display()))?;
    // Last: who finds the key finds everything.
    manager.write(dir)?;
    Ok(manager)
}

/// The key that fits the certificate: the next one, if a power cut came before it got its name.
fn read_key(dir: &Path, certificate: &NodeCertificate) -> anyhow::Result<NodeKey> {
    let fits = |key: &NodeKey| certificate.public().is_ok_and(|public| public == key.public());
    if dir.join(NEXT_KEY).exists() {
        let (text, _) = read(dir, NEXT_KEY)?;
        // One that was not written to its end, or that has no certificate yet, is of no use.
        if let Some(key) = NodeKey::from_pem(&text).ok().filter(fits) {
            return Ok(key);
        }
    }
    let (text, path) = read(dir, KEY)?;
    NodeKey::from_pem(&text).with_context(|| format!("in {}", path.display()))
}

pub(crate) fn read(dir: &Path, name: &str) -> anyhow::Result<(String, PathBuf)> {
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("reading {} (a node cannot serve without its certificate)", path.display()))?;
    Ok((text, path))
}

pub(crate) fn made(parent: &Path) -> io::Result<PathBuf> {
    let dir = parent.join(DIR);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Whoever reads it sees all of the old text or all of the new one, also after a power cut.
pub(crate) fn replace(dir: &Path, name: &str, mode: u32, text: &str) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    // One that was left behind may have another mode.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(name))
}

pub(crate) fn synced(dir: &Path, parent: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    File::open(parent)?.sync_all()
}

pub(crate) fn serial() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system gives no randomness: {error}"))?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const CLUSTER: ClusterId = ClusterId(uuid::Uuid::from_u128(1));
    const NODE: NodeId = NodeId(uuid::Uuid::from_u128(2));

    fn founder(data_dir: &Path) -> Founder<'_> {
        Founder { node: NODE, data_dir, host: "127.0.0.1".parse().unwrap() }
    }

    fn shown(dir: &Path) -> NodeCertificate {
        NodeFiles::read(dir).unwrap().certificate
    }

    #[test]
    fn a_node_keeps_its_certificate_for_as_long_as_it_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("n1");
        lay_out(dir.path(), CLUSTER, &[founder(&home)]).unwrap();
        let first = shown(&home);
        lay_out(dir.path(), CLUSTER, &[founder(&home)]).unwrap();
        assert_eq!(shown(&home), first);
        // One that ends soon, or that is another node's, or that was never there.
        let (ca, key) = (kept(dir.path(), CLUSTER).unwrap().authority, NodeKey::generate().unwrap());
        let days = |days: u64| WallTime(wall_now().0 - days * 24 * 3_600_000_000);
        for (node, made) in [(NODE, days(20)), (NodeId::from_u128(3), days(0))] {
            let certificate = ca.issue(&key.request().unwrap(), node, &[], made, 1).unwrap();
            let files = NodeFiles { authorities: vec![ca.certificate().clone()], certificate, ..read_files(&home) };
            NodeFiles { key: Arc::new(NodeKey::from_pem(&key.to_pem()).unwrap()), ..files }.write(&home).unwrap();
            let bad = shown(&home);
            lay_out(dir.path(), CLUSTER, &[founder(&home)]).unwrap();
            assert_ne!(shown(&home), bad);
            assert_eq!(shown(&home).identity().unwrap().node, NODE);
        }
        std::fs::remove_dir_all(home.join(DIR)).unwrap();
        lay_out(dir.path(), CLUSTER, &[founder(&home)]).unwrap();
        read_files(&home).credentials(CLUSTER, NODE).unwrap();
    }

    fn read_files(dir: &Path) -> NodeFiles {
        NodeFiles::read(dir).unwrap()
    }

    #[test]
    fn a_power_cut_while_a_certificate_is_exchanged_leaves_the_old_one_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("n1");
        lay_out(dir.path(), CLUSTER, &[founder(&home)]).unwrap();
        let old = read_files(&home);
        let (key, manager) = (NodeKey::generate().unwrap(), kept(dir.path(), CLUSTER).unwrap());
        let new = manager.authority.issue(&key.request().unwrap(), NODE, &[], wall_now(), 7).unwrap();
        let tls = home.join(DIR);
        let shows = |expected: &NodeCertificate| {
            let files = read_files(&home);
            files.credentials(CLUSTER, NODE).unwrap();
            assert_eq!(files.certificate, *expected);
        };
        // After each step of `exchange`, as a power cut would leave it.
        std::fs::write(tls.join(NEXT_KEY), "-----BEGIN PRI").unwrap();
        shows(&old.certificate);
        std::fs::write(tls.join(NEXT_KEY), key.to_pem().as_str()).unwrap();
        shows(&old.certificate);
        std::fs::write(tls.join(CERTIFICATE), new.to_pem()).unwrap();
        shows(&new);
        // And once more from there.
        let next = NodeKey::generate().unwrap();
        let newer = manager.authority.issue(&next.request().unwrap(), NODE, &[], wall_now(), 8).unwrap();
        read_files(&home).exchange(&home, newer.clone(), next).unwrap();
        shows(&newer);
        assert!(!tls.join(NEXT_KEY).exists());
    }

    #[test]
    fn keys_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        lay_out(dir.path(), CLUSTER, &[founder(&dir.path().join("n1"))]).unwrap();
        for key in ["tls/ca.key", "tls/cluster.key", "n1/tls/node.key", "n1/tls/ca.key", "n1/tls/cluster.key"] {
            let mode = std::fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn certificates_of_another_node_or_cluster_are_refused_before_anything_runs() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("n1");
        lay_out(dir.path(), CLUSTER, &[founder(&home)]).unwrap();
        let files = read_files(&home);
        assert!(files.credentials(CLUSTER, NodeId::from_u128(9)).is_err());
        assert!(files.credentials(ClusterId::from_u128(9), NODE).is_err());
        let error = lay_out(dir.path(), ClusterId::from_u128(9), &[]).unwrap_err();
        assert!(error.to_string().contains("is the CA of cluster"), "{error}");
        let missing = NodeFiles::read(dir.path()).unwrap_err();
        assert!(format!("{missing:#}").contains("tls/node.crt"), "{missing:#}");
    }
}
