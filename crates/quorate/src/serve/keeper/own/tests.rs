//! A node's part in changes of keys, on its disk, and what it does when its database is behind that.

use super::super::super::link::LinkTls;
use super::super::super::tls::Acceptor;
use super::super::super::view::Proofs;
use super::super::seal_for;
use super::*;
use crate::cli::screen::wall_now;
use crate::trust::{Founder, NodeFiles, lay_out, serial};
use quorate_model::access::AccessState;
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::state::{ClusterState, Health, NodeIdentity, NodeRecord};
use quorate_model::time::WallTime;
use quorate_trust::key::NodeKey;
use std::collections::BTreeSet;

const STAGES: [Stage; 4] = [Stage::Spread, Stage::Use, Stage::Drop, Stage::Done];

/// One manager, with its files in a directory.
struct Manager {
    dir: tempfile::TempDir,
    config: NodeConfig,
    keychain: Keychain,
    signed_by: watch::Sender<Option<Fingerprint>>,
}

impl Manager {
    fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("n1");
        let (cluster, node) = (ClusterId::from_u128(1), NodeId::from_u128(2));
        lay_out(dir.path(), cluster, &[Founder { node, data_dir: &home, host: [127, 0, 0, 1].into() }]).unwrap();
        let text = format!(
            "[cluster]\nid = '{cluster}'\nname = 'c'\n[node]\nid = '{node}'\nname = 'n1'\nroles = ['manager']\n\
             plain_http = true\napi = '127.0.0.1:1'\nlink = '127.0.0.1:2'\n"
        );
        let config: NodeConfig = toml::from_str(&text).unwrap();
        let files = NodeFiles::read(&home).unwrap();
        let manager = ManagerKeys::read(&home, &files.authorities).unwrap();
        let link = LinkTls::new(&files, &config, watch::channel(BTreeSet::new()).1).unwrap();
        let api = Acceptor::new(&config, &files).unwrap();
        let keychain = Keychain::new(&home, &config, Held { files, manager }, Arc::new(link), api);
        Manager { dir, config, keychain, signed_by: watch::Sender::new(None) }
    }

    fn authority(&self) -> Arc<Ca> {
        self.keychain.held().manager.as_ref().unwrap().authority.clone()
    }

    /// A key for this node.
    fn envelopes(
        &self,
        kind: KeyKind,
        number: u32,
        secret: &[u8],
    ) -> BTreeMap<NodeId, quorate_model::trust::SealedKey> {
        let (me, public) = (self.config.node.id, self.keychain.held().files.key.public());
        [(me, seal_for(self.config.cluster.id, kind, number, me, &public, secret).unwrap())].into()
    }

    /// What is decided when authority `next` takes over as number `number`.
    fn change_of_authority(&self, number: u32, next: &Ca) -> KeyRecord {
        KeyRecord {
            certificate: next.certificate().to_pem(),
            former: self.authority().certificate().to_pem(),
            sealed: self.envelopes(KeyKind::Authority, number, next.key_pem().as_bytes()),
            ..record(KeyKind::Authority, number)
        }
    }

    fn change_of_secrets(&self, number: u32) -> KeyRecord {
        let key = [u8::try_from(number).unwrap(); 32];
        KeyRecord { sealed: self.envelopes(KeyKind::Secrets, number, &key), ..record(KeyKind::Secrets, number) }
    }

    /// What the node does when its database says this.
    fn reads(&self, record: &KeyRecord, stage: Stage) {
        let me = self.config.node.id;
        let identity = NodeIdentity {
            id: me,
            name: "n1".into(),
            roles: self.config.node.roles.clone(),
            api: "127.0.0.1:1".into(),
            link: "127.0.0.1:2".into(),
            host: "127.0.0.1".into(),
        };
        let manager = NodeRecord::started(identity, Health::Joined, WallTime(1));
        let mut known = ClusterState::default();
        known.nodes.insert(me, manager);
        known.trust.keys.insert(record.kind, KeyRecord { stage, ..record.clone() });
        let sight = Sight {
            known: Arc::new(known),
            access: Arc::new(AccessState::default()),
            proofs: Arc::new(Proofs::default()),
            held: self.keychain.held(),
        };
        let own = Own { config: &self.config, keychain: &self.keychain, signed_by: &self.signed_by };
        own.carry_out(&sight).unwrap();
    }

    /// Gets a certificate of the authority that signs now, for a new key.
    fn renew(&self) {
        let key = NodeKey::generate().unwrap();
        let request = key.request().unwrap();
        let certificate =
            self.authority().issue(&request, self.config.node.id, &[], wall_now(), serial().unwrap()).unwrap();
        self.keychain.exchange(certificate, key).unwrap();
    }

    /// A whole change, step by step.
    fn changes_authority(&self, number: u32, next: &Ca) -> KeyRecord {
        let record = self.change_of_authority(number, next);
        for stage in STAGES {
            self.reads(&record, stage);
            if stage == Stage::Use {
                self.renew();
            }
        }
        record
    }

    /// Everything that the node holds, on its disk and in memory, in words.
    fn holds(&self) -> String {
        let words = |files: &NodeFiles, manager: &ManagerKeys| {
            let believed: Vec<String> = files.authorities.iter().map(|ca| ca.fingerprint().to_string()).collect();
            let next = manager.next.as_ref().map(|ca| ca.certificate().fingerprint().to_string());
            let (ring, shown) = (&manager.ring, files.certificate.authority());
            format!(
                "believes {believed:?}, shows one of {shown:?}, signs by {}, next {next:?}, seals by {:?}, opens by {:?}",
                manager.authority.certificate().fingerprint(),
                ring.current().version(),
                ring.previous().map(quorate_trust::sealing::ClusterKey::version),
            )
        };
        let home = self.dir.path().join("n1");
        let files = NodeFiles::read(&home).unwrap();
        let on_disk = words(&files, &ManagerKeys::read(&home, &files.authorities).unwrap().unwrap());
        let held = self.keychain.held();
        assert_eq!(words(&held.files, held.manager.as_ref().unwrap()), on_disk);
        on_disk
    }
}

fn record(kind: KeyKind, number: u32) -> KeyRecord {
    KeyRecord {
        kind,
        number,
        stage: Stage::Spread,
        begun: WallTime(1),
        since: WallTime(1),
        certificate: String::new(),
        former: String::new(),
        sealed: BTreeMap::new(),
        behind: BTreeSet::new(),
        exposed: None,
    }
}

fn new_authority() -> Ca {
    Ca::create(ClusterId::from_u128(1), wall_now(), serial().unwrap()).unwrap()
}

fn prints(all: &[CaCertificate]) -> BTreeSet<Fingerprint> {
    all.iter().map(CaCertificate::fingerprint).collect()
}

#[test]
fn an_authority_takes_over_in_steps_and_the_old_one_goes_with_its_last_certificate() {
    let node = Manager::new();
    let (old, next) = (node.authority().certificate().fingerprint(), new_authority());
    let new = next.certificate().fingerprint();
    let record = node.change_of_authority(2, &next);
    let believes = || prints(&node.keychain.held().files.authorities);
    let signs = || node.authority().certificate().fingerprint();
    node.reads(&record, Stage::Spread);
    assert_eq!((believes(), signs(), *node.signed_by.borrow()), ([old, new].into(), old, Some(old)));
    node.reads(&record, Stage::Use);
    assert_eq!((believes(), signs(), *node.signed_by.borrow()), ([old, new].into(), new, Some(new)));
    // Whoever is late believes both until it has its new certificate: it would not believe itself.
    node.reads(&record, Stage::Done);
    assert_eq!(believes(), [old, new].into());
    node.renew();
    node.reads(&record, Stage::Done);
    assert_eq!((believes(), signs()), ([new].into(), new));
}

/// Found by the simulator, seed 126.
#[test]
fn a_database_that_is_behind_after_a_power_cut_does_not_undo_a_change_of_the_authority() {
    let node = Manager::new();
    let second = node.changes_authority(2, &new_authority());
    node.changes_authority(3, &new_authority());
    let (before, signed_by) = (node.holds(), *node.signed_by.borrow());
    for stage in STAGES {
        node.reads(&second, stage);
        assert_eq!(node.holds(), before, "its database tells of the change before, at {stage:?}");
        assert_eq!(*node.signed_by.borrow(), signed_by, "it asks for no certificate of an old one");
    }
}

/// Found by the simulator, seeds 85 and 377: what a node said it believes others may show already.
#[test]
fn a_database_that_is_behind_after_a_power_cut_does_not_take_back_a_change_that_had_only_begun() {
    let node = Manager::new();
    let second = node.changes_authority(2, &new_authority());
    let third = node.change_of_authority(3, &new_authority());
    node.reads(&third, Stage::Spread);
    assert_eq!(node.keychain.held().files.authorities.len(), 2, "the second and the third");
    let before = node.holds();
    for stage in STAGES {
        node.reads(&second, stage);
        assert_eq!(node.holds(), before, "its database tells of the change before, at {stage:?}");
    }
    // And it goes on from there.
    node.reads(&third, Stage::Use);
    assert_eq!(node.authority().certificate().to_pem(), third.certificate);
}

#[test]
fn a_database_that_is_behind_after_a_power_cut_does_not_bring_back_an_old_key_of_secrets() {
    let node = Manager::new();
    let changes: Vec<KeyRecord> = (2..=3).map(|number| node.change_of_secrets(number)).collect();
    let mut seen = Vec::new();
    for change in &changes {
        for stage in STAGES {
            node.reads(change, stage);
            let ring = node.keychain.held().manager.as_ref().unwrap().ring.clone();
            seen.push((ring.current().version().0, ring.previous().map(|key| key.version().0)));
        }
    }
    let steps = |from: u32| [(from, Some(from + 1)), (from + 1, Some(from)), (from + 1, None), (from + 1, None)];
    assert_eq!(seen, [steps(1), steps(2)].concat());
    let before = node.holds();
    for stage in STAGES {
        node.reads(&changes[0], stage);
        assert_eq!(node.holds(), before, "its database tells of key 2, at {stage:?}");
        node.reads(&record(KeyKind::Secrets, 1), stage);
        assert_eq!(node.holds(), before, "its database tells of key 1, at {stage:?}");
    }
}
