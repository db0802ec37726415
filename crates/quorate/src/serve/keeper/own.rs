//! A node's own part in a change of keys, and its report of how far it is.

use super::{Sight, cluster_key, purpose};
use crate::config::NodeConfig;
use crate::keys::ManagerKeys;
use crate::serve::keychain::{Held, Keychain};
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_model::access::name::Digest;
use quorate_model::observed::{KeyStep, TrustReport};
use quorate_model::state::Role;
use quorate_model::trust::{KeyKind, KeyRecord, Stage};
use quorate_trust::ca::{Ca, CaCertificate};
use quorate_trust::envelope::disclose;
use quorate_trust::fingerprint::Fingerprint;
use quorate_trust::sealing::{self, KeyVersion};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::info;
use zeroize::Zeroizing;

/// What a node carries out its own part with.
pub(super) struct Own<'a> {
    pub(super) config: &'a NodeConfig,
    pub(super) keychain: &'a Keychain,
    pub(super) signed_by: &'a watch::Sender<Option<Fingerprint>>,
}

impl Own<'_> {
    /// Does what is decided, as far as this node can now. What it cannot yet (no envelope is here, or
    /// its new certificate) is done at a later look.
    pub(super) fn carry_out(&self, sight: &Sight) -> anyhow::Result<()> {
        let trust = &sight.known.trust;
        let mine = sight.known.nodes.get(&self.config.node.id);
        let is_manager = mine.is_some_and(|record| record.identity.roles.contains(&Role::Manager));
        if mine.is_some() && !is_manager {
            // First: what it keeps of an authority that others give up later fits nothing that it believes
            // then, and a server does not start on keys that fit nothing.
            self.keychain.give_up()?;
        }
        self.authority(&trust.key(KeyKind::Authority), is_manager)?;
        if is_manager {
            self.become_a_manager(sight)?;
            self.secrets(&trust.key(KeyKind::Secrets), sight)?;
        }
        Ok(())
    }

    fn authority(&self, record: &KeyRecord, is_manager: bool) -> anyhow::Result<()> {
        let Some(change) = Authorities::of(record)? else { return Ok(()) };
        let new = change.new.fingerprint();
        // After a power cut the database may be of an earlier moment than the files, and tell of a change
        // that is long over. Whoever went back to it would be a stranger to the others, and would not
        // hear from them that it is (found by the simulator, seed 126).
        let shown = self.keychain.held().files.certificate.authority();
        if shown.is_some_and(|shown| shown != new && shown != change.former.fingerprint()) {
            return Ok(());
        }
        // The same, but the later change had only begun: what this node believes of it is what it told the others,
        // and they may show it by now (found by the simulator, seeds 85 and 377). The newest is the last.
        let believed = &self.keychain.held().files.authorities;
        let position = believed.iter().position(|authority| authority.fingerprint() == new);
        if position.is_some_and(|position| position + 1 < believed.len()) {
            return Ok(());
        }
        let mut wanted = change.wanted(record.stage);
        // Whoever was late has a certificate of the old one for a moment longer.
        if wanted.len() == 1 && self.keychain.held().files.certificate.authority() != Some(new) {
            wanted = change.wanted(Stage::Use);
        }
        let held = self.keychain.held();
        if !same(&held.files.authorities, &wanted) {
            info!(authorities = wanted.len(), "the authorities that this node believes change");
            self.keychain.believe(wanted)?;
        }
        if let Some(manager) = held.manager.clone().filter(|_| is_manager) {
            let signs = manager.authority.certificate().fingerprint() == new;
            let has_it = manager.next.as_ref().is_some_and(|next| next.certificate().fingerprint() == new);
            if !signs && !has_it {
                let Some(key) = self.envelope(record) else { return Ok(()) };
                let key = std::str::from_utf8(&key).context("the CA's key is not PEM")?;
                let next = Some(Arc::new(Ca::from_pem(&record.certificate, key)?));
                self.keychain.hold(ManagerKeys { next, ..manager })?;
            } else if !signs && record.stage >= Stage::Use {
                let authority = manager.next.clone().context("the new CA's key")?;
                self.keychain.hold(ManagerKeys { authority, next: None, ..manager })?;
            }
        }
        let signed_by = if record.stage == Stage::Spread { change.former.fingerprint() } else { new };
        self.signed_by.send_if_modified(|known| known.replace(signed_by) != Some(signed_by));
        Ok(())
    }

    /// A node that became a manager later is handed what managers hold.
    fn become_a_manager(&self, sight: &Sight) -> anyhow::Result<()> {
        let held = self.keychain.held();
        if held.manager.is_some() {
            return Ok(());
        }
        let trust = &sight.known.trust;
        let (authority, secrets) = (trust.key(KeyKind::Authority), trust.key(KeyKind::Secrets));
        let (Some(authority_key), Some(secret)) = (self.envelope(&authority), self.envelope(&secrets)) else {
            return Ok(());
        };
        let key = std::str::from_utf8(&authority_key).context("the CA's key is not PEM")?;
        let fits = |certificate: &CaCertificate| Ca::from_pem(&certificate.to_pem(), key).ok();
        let Some(authority) = held.files.authorities.iter().find_map(fits) else { return Ok(()) };
        let ring = sealing::KeyRing::new(cluster_key(secrets.number, &secret)?);
        info!("this node is a manager now, and holds the keys of one");
        self.keychain.hold(ManagerKeys { authority: Arc::new(authority), next: None, ring })
    }

    fn secrets(&self, record: &KeyRecord, sight: &Sight) -> anyhow::Result<()> {
        let Some(manager) = self.keychain.held().manager.clone() else { return Ok(()) };
        let (number, ring) = (KeyVersion(record.number), &manager.ring);
        if ring.current().version() > number {
            return Ok(());
        }
        let has = ring.current().version() == number || ring.previous().is_some_and(|key| key.version() == number);
        if !has {
            let Some(secret) = self.envelope(record) else { return Ok(()) };
            let next = ring.clone().with(cluster_key(record.number, &secret)?);
            return self.keychain.hold(ManagerKeys { ring: next, ..manager });
        }
        let current = ring.current().version() == number;
        if !current && record.stage >= Stage::Use {
            let ring = ring.clone().using(number);
            return self.keychain.hold(ManagerKeys { ring, ..manager });
        }
        let all_new = sight.access.secrets.values().all(|secret| secret.key >= record.number);
        if current && record.stage >= Stage::Drop && ring.previous().is_some() && all_new {
            let ring = ring.clone().without_previous();
            return self.keychain.hold(ManagerKeys { ring, ..manager });
        }
        Ok(())
    }

    /// This node's key in its envelope, if there is one that it can open.
    fn envelope(&self, record: &KeyRecord) -> Option<Zeroizing<Vec<u8>>> {
        let me = self.config.node.id;
        let sealed = STANDARD.decode(&record.sealed.get(&me)?.sealed).ok()?;
        let purpose = purpose(self.config.cluster.id, record.kind, record.number, me);
        disclose(&self.keychain.held().files.key, &purpose, &sealed).ok()
    }
}

/// The two authorities of a change; `None` where there was none yet.
struct Authorities {
    former: CaCertificate,
    new: CaCertificate,
}

impl Authorities {
    fn of(record: &KeyRecord) -> anyhow::Result<Option<Authorities>> {
        if record.certificate.is_empty() {
            return Ok(None);
        }
        let read = |text: &str| {
            let all = CaCertificate::all_from_pem(text).context("a CA's certificate in the cluster's state")?;
            all.into_iter().next().context("a CA's certificate in the cluster's state")
        };
        Ok(Some(Authorities { former: read(&record.former)?, new: read(&record.certificate)? }))
    }

    fn wanted(&self, stage: Stage) -> Vec<CaCertificate> {
        match stage {
            Stage::Spread | Stage::Use => vec![self.former.clone(), self.new.clone()],
            Stage::Drop | Stage::Done => vec![self.new.clone()],
        }
    }
}

fn same(some: &[CaCertificate], others: &[CaCertificate]) -> bool {
    let prints = |all: &[CaCertificate]| -> Vec<Fingerprint> {
        let mut prints: Vec<Fingerprint> = all.iter().map(CaCertificate::fingerprint).collect();
        prints.sort_unstable();
        prints
    };
    prints(some) == prints(others)
}

/// The newest key itself, if this node holds it.
pub(super) fn secret_of(held: &Held, kind: KeyKind, record: &KeyRecord) -> Option<Zeroizing<Vec<u8>>> {
    match kind {
        KeyKind::Authority => {
            let manager = held.manager.as_ref()?;
            // Nobody decided about the first one, so it is that which signs.
            let newest = CaCertificate::all_from_pem(&record.certificate).ok().map(|all| all[0].fingerprint());
            let mut keys = [Some(&manager.authority), manager.next.as_ref()].into_iter().flatten();
            let key = keys.find(|ca| newest.is_none_or(|newest| ca.certificate().fingerprint() == newest))?;
            Some(Zeroizing::new(key.key_pem().as_bytes().to_vec()))
        }
        KeyKind::Secrets => {
            let ring = &held.manager.as_ref()?.ring;
            let mut keys = [Some(ring.current()), ring.previous()].into_iter().flatten();
            let key = keys.find(|key| key.version() == KeyVersion(record.number))?;
            Some(Zeroizing::new(key.as_bytes().to_vec()))
        }
    }
}

/// How far this node is, from what is on its disk.
pub(super) fn report(config: &NodeConfig, sight: &Sight, held: &Held) -> anyhow::Result<TrustReport> {
    let trust = &sight.known.trust;
    let roles = sight.known.nodes.get(&config.node.id).map_or(&config.node.roles, |record| &record.identity.roles);
    let mut keys = BTreeMap::new();
    keys.insert(
        KeyKind::Authority,
        authority_step(&trust.key(KeyKind::Authority), held, roles.contains(&Role::Manager))?,
    );
    keys.insert(KeyKind::Secrets, secrets_step(&trust.key(KeyKind::Secrets), sight, held));
    let certificate = &held.files.certificate;
    let (from, until) = certificate.lasts()?;
    Ok(TrustReport {
        public: STANDARD.encode(certificate.public()?),
        certificate: Digest(*certificate.fingerprint().as_bytes()),
        authority: certificate.authority().map(|authority| Digest(*authority.as_bytes())).unwrap_or_default(),
        from,
        until,
        keys,
    })
}

const NONE: KeyStep = KeyStep { number: 0, stage: Stage::Spread };

/// The key before this one, and all that is to be done with that.
fn before(record: &KeyRecord) -> KeyStep {
    KeyStep { number: record.number - 1, stage: Stage::Done }
}

fn at(record: &KeyRecord, stage: Stage) -> KeyStep {
    KeyStep { number: record.number, stage }
}

fn authority_step(record: &KeyRecord, held: &Held, is_manager: bool) -> anyhow::Result<KeyStep> {
    let lacks = is_manager && held.manager.is_none();
    let Some(change) = Authorities::of(record)? else {
        return Ok(if lacks { NONE } else { at(record, Stage::Done) });
    };
    let new = change.new.fingerprint();
    let believes = |wanted: Fingerprint| held.files.authorities.iter().any(|ca| ca.fingerprint() == wanted);
    let keys = held.manager.as_ref().map(|manager| {
        let next = manager.next.as_ref().map(|ca| ca.certificate().fingerprint());
        (manager.authority.certificate().fingerprint(), next)
    });
    let holds = keys.is_some_and(|(signs, next)| signs == new || next == Some(new));
    let signs = keys.is_none_or(|(signs, _)| signs == new);
    Ok(if lacks {
        NONE
    } else if !believes(new) || (is_manager && !holds) {
        before(record)
    } else if held.files.certificate.authority() != Some(new) || (is_manager && !signs) {
        at(record, Stage::Spread)
    } else if believes(change.former.fingerprint()) {
        at(record, Stage::Use)
    } else {
        at(record, Stage::Done)
    })
}

fn secrets_step(record: &KeyRecord, sight: &Sight, held: &Held) -> KeyStep {
    let Some(ring) = held.manager.as_ref().map(|manager| &manager.ring) else { return NONE };
    let number = KeyVersion(record.number);
    let all_new = sight.access.secrets.values().all(|secret| secret.key.max(1) >= record.number);
    match (ring.current().version() == number, ring.previous()) {
        (true, None) => at(record, Stage::Done),
        (true, Some(_)) if all_new => at(record, Stage::Use),
        (true, Some(_)) => at(record, Stage::Spread),
        (false, Some(other)) if other.version() == number => at(record, Stage::Spread),
        (false, _) => before(record),
    }
}

#[cfg(test)]
mod tests;
