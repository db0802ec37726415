//! What a machine proves itself with while the cluster's CA is exchanged.
//!
//! The stages and who begins them are the shipped code (`quorate_model::trust`,
//! `quorate_node::succession`). What a node does in a stage is made up here after what `quorate serve`
//! does: it believes the new authority, takes its key, shows a certificate of it, and at last forgets the
//! old one. Each of these is on its disk before it says so, and survives whatever happens to the machine.
//!
//! Authorities are numbers here: what matters is who believes whom.

use quorate_model::access::name::Digest;
use quorate_model::id::NodeId;
use quorate_model::observed::{KeyStep, TrustReport};
use quorate_model::time::WallTime;
use quorate_model::trust::{KeyKind, KeyRecord, Stage};
use std::collections::{BTreeMap, BTreeSet};

/// One machine's part. All of them are managers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Authorities whose certificates it believes.
    pub believes: BTreeSet<u32>,
    /// The authority that made its certificate.
    pub shows: u32,
    /// Authorities whose keys it has.
    pub holds: BTreeSet<u32>,
    /// The one with which it makes certificates.
    pub signs: u32,
}

impl Default for Keys {
    fn default() -> Keys {
        Keys { believes: [1].into(), shows: 1, holds: [1].into(), signs: 1 }
    }
}

impl Keys {
    /// What a server is given by the manager that lets it in.
    pub(crate) fn given_by(manager: &Keys) -> Keys {
        Keys { shows: manager.signs, ..manager.clone() }
    }

    /// Whether two that meet let each other in.
    pub(crate) fn meets(&self, other: &Keys) -> bool {
        self.believes.contains(&other.shows) && other.believes.contains(&self.shows)
    }

    /// Does what is decided, as far as that is possible now. `signed`: somebody who can be asked makes
    /// certificates of the new authority.
    pub(crate) fn carry_out(&mut self, record: &KeyRecord, me: NodeId, signed: bool) {
        let new = record.number;
        // Its database may be of an earlier moment than its keys, after a power cut.
        if new == 1 || new < self.shows || self.believes.last() > Some(&new) {
            return;
        }
        if record.sealed.contains_key(&me) {
            self.holds.insert(new);
        }
        if record.stage >= Stage::Use && self.holds.contains(&new) {
            self.signs = new;
            self.holds = [new].into();
        }
        if record.stage >= Stage::Use && (signed || self.signs == new) {
            self.shows = new;
        }
        let forgets = record.stage >= Stage::Drop && self.shows == new;
        self.believes = if forgets { [new].into() } else { [new - 1, new].into() };
    }

    /// How far this machine is, as it says itself.
    pub(crate) fn report(&self, record: &KeyRecord) -> TrustReport {
        TrustReport {
            public: String::new(),
            certificate: Digest::default(),
            authority: Digest::default(),
            from: WallTime(0),
            until: WallTime(u64::MAX),
            keys: BTreeMap::from([(KeyKind::Authority, self.step(record))]),
        }
    }

    fn step(&self, record: &KeyRecord) -> KeyStep {
        let (new, at) = (record.number, |stage| KeyStep { number: record.number, stage });
        if new == 1 {
            at(Stage::Done)
        } else if !self.believes.contains(&new) || !self.holds.contains(&new) {
            KeyStep { number: new - 1, stage: Stage::Done }
        } else if self.shows != new || self.signs != new {
            at(Stage::Spread)
        } else if self.believes.contains(&(new - 1)) {
            at(Stage::Use)
        } else {
            at(Stage::Done)
        }
    }
}
