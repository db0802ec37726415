//! What a node proves itself with, on its disk: `tls/` in its data directory.
//!
//! | file | what |
//! |---|---|
//! | `ca.crt` | the authorities that are believed, in PEM: one, or two while a new one takes over |
//! | `node.crt` | this node's certificate, and behind it that of the authority that made it |
//! | `node.key` | this node's private key; mode 0600 |
//!
//! For a cluster that begins on one machine (`quorate dev`, the torture rig), [`lay_out`] makes the
//! authority and all of this; its key stays beside the nodes' directories, in `tls/ca.key`.

use crate::cli::screen::wall_now;
use anyhow::{Context as _, bail};
use quorate_model::id::{ClusterId, NodeId};
use quorate_trust::ca::{Ca, CaCertificate, NodeCertificate};
use quorate_trust::identity::PeerIdentity;
use quorate_trust::key::NodeKey;
use quorate_trust::peer::Credentials;
use quorate_trust::renewal::renew_at;
use rustls::pki_types::ServerName;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const DIR: &str = "tls";
const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";

/// What is in a node's `tls/`.
#[derive(Debug)]
pub(crate) struct NodeFiles {
    pub authorities: Vec<CaCertificate>,
    pub certificate: NodeCertificate,
    pub key: NodeKey,
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
        let (text, path) = read(&dir, KEY)?;
        let key = NodeKey::from_pem(&text).with_context(|| format!("in {}", path.display()))?;
        Ok(NodeFiles { authorities, certificate, key })
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

    fn write(&self, data_dir: &Path) -> io::Result<()> {
        let dir = made(data_dir)?;
        let authorities: String = self.authorities.iter().map(CaCertificate::to_pem).collect();
        replace(&dir, AUTHORITIES, 0o644, &authorities)?;
        replace(&dir, KEY, 0o600, &self.key.to_pem())?;
        replace(&dir, CERTIFICATE, 0o644, &self.certificate.to_pem())?;
        synced(&dir, data_dir)
    }

    /// Whether a node may go on with them: they are its own, `ca` made them, and there is time left.
    fn serve_for(&self, ca: &Ca, node: NodeId) -> bool {
        let made_by = |at: &CaCertificate| at.fingerprint() == ca.certificate().fingerprint();
        let fresh = |(from, until)| wall_now() < renew_at(from, until, 0);
        self.credentials(ca.certificate().cluster(), node).is_ok()
            && self.authorities.iter().any(made_by)
            && self.certificate.chain().get(1) == Some(ca.certificate().as_der())
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
    let ca = authority(dir, cluster)?;
    for founder in founders {
        if NodeFiles::read(founder.data_dir).is_ok_and(|files| files.serve_for(&ca, founder.node)) {
            continue;
        }
        let key = NodeKey::generate()?;
        let local = ServerName::try_from("localhost").expect("it is a name");
        let names = [local, ServerName::from(founder.host)];
        let certificate = ca.issue(&key.request()?, founder.node, &names, wall_now(), serial()?)?;
        let files = NodeFiles { authorities: vec![ca.certificate().clone()], certificate, key };
        files.write(founder.data_dir).with_context(|| format!("writing into {}", founder.data_dir.display()))?;
    }
    Ok(())
}

/// The authority in `dir`, made if there is none.
fn authority(dir: &Path, cluster: ClusterId) -> anyhow::Result<Ca> {
    let tls = dir.join(DIR);
    if tls.join(AUTHORITY_KEY).exists() {
        let (certificate, path) = read(&tls, AUTHORITIES)?;
        let (key, _) = read(&tls, AUTHORITY_KEY)?;
        let ca = Ca::from_pem(&certificate, &key).with_context(|| format!("in {}", tls.display()))?;
        if ca.certificate().cluster() != cluster {
            bail!("{} is the CA of cluster {}, not of {cluster}", path.display(), ca.certificate().cluster());
        }
        return Ok(ca);
    }
    let ca = Ca::create(cluster, wall_now(), serial()?)?;
    let write = || -> io::Result<()> {
        let tls = made(dir)?;
        replace(&tls, AUTHORITIES, 0o644, &ca.certificate().to_pem())?;
        // Last: who finds the key finds everything.
        replace(&tls, AUTHORITY_KEY, 0o600, &ca.key_pem())?;
        synced(&tls, dir)
    };
    write().with_context(|| format!("writing into {}", tls.display()))?;
    Ok(ca)
}

fn read(dir: &Path, name: &str) -> anyhow::Result<(String, PathBuf)> {
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("reading {} (a node cannot serve without its certificate)", path.display()))?;
    Ok((text, path))
}

fn made(parent: &Path) -> io::Result<PathBuf> {
    let dir = parent.join(DIR);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Whoever reads it sees all of the old text or all of the new one, also after a power cut.
fn replace(dir: &Path, name: &str, mode: u32, text: &str) -> io::Result<()> {
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

fn synced(dir: &Path, parent: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    File::open(parent)?.sync_all()
}

fn serial() -> anyhow::Result<u128> {
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
        let (ca, key) = (authority(dir.path(), CLUSTER).unwrap(), NodeKey::generate().unwrap());
        let days = |days: u64| quorate_model::time::WallTime(wall_now().0 - days * 24 * 3_600_000_000);
        for (node, made) in [(NODE, days(20)), (NodeId::from_u128(3), days(0))] {
            let certificate = ca.issue(&key.request().unwrap(), node, &[], made, 1).unwrap();
            let files = NodeFiles { authorities: vec![ca.certificate().clone()], certificate, ..read_files(&home) };
            NodeFiles { key: NodeKey::from_pem(&key.to_pem()).unwrap(), ..files }.write(&home).unwrap();
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
    fn keys_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        lay_out(dir.path(), CLUSTER, &[founder(&dir.path().join("n1"))]).unwrap();
        for key in ["tls/ca.key", "n1/tls/node.key"] {
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
