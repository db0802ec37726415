//! The cluster's CA is exchanged: what each server's keeper of keys does, and who asked for it.

use super::{What, World};
use crate::keys::Keys;
use crate::machine::Standing;
use crate::seen::Seen;
use quorate_model::access::name::Digest;
use quorate_model::command::Command;
use quorate_model::id::NodeId;
use quorate_model::state::ClusterState;
use quorate_model::trust::{KeyKind, SealedKey, Stage, TrustCommand};
use quorate_node::Event;
use std::collections::BTreeMap;
use std::time::Duration;

/// From a change to the look at it.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(1_500));

fn envelope() -> SealedKey {
    SealedKey { holder: Digest::default(), sealed: String::from("sealed") }
}

impl World {
    /// `quorate cert rotate`. Returns whether it could be asked.
    pub(crate) fn begin_rotation(&mut self, at: usize) -> bool {
        let Some(process) = &self.machines[at].process else { return false };
        let state = process.node.state();
        // Servers become members before they vote; the first ones here begin as voters without being known.
        let is_known = |id: &NodeId| state.nodes.contains_key(id) || state.members.expelled.contains(id);
        if !self.machines[..self.scenario.nodes].iter().all(|founder| is_known(&founder.id)) {
            return false;
        }
        let known = state.trust.key(KeyKind::Authority);
        if known.stage != Stage::Done || !self.machines[at].keys.holds.contains(&known.number) {
            return false;
        }
        let number = known.number + 1;
        let sealed = state.nodes.values().filter(|node| !node.expelling).map(|node| (node.identity.id, envelope()));
        let sealed: BTreeMap<NodeId, SealedKey> = sealed.collect();
        let (certificate, former) = (format!("authority {number}"), format!("authority {}", known.number));
        let begin = TrustCommand::Begin { key: KeyKind::Authority, number, certificate, former, sealed };
        self.order(at, &Command::Trust(begin));
        true
    }

    /// Something changed on a node: its keeper will look at it.
    pub(super) fn keeper_due(&mut self, n: usize) {
        if std::mem::replace(&mut self.machines[n].keeper_due, true) {
            return;
        }
        let (life, delay) = (self.machines[n].life, self.dice.span(LOOKS));
        self.later(delay, What::Keeper { machine: n, life });
    }

    pub(super) fn keeper_looks(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        self.machines[n].keeper_due = false;
        let process = self.machines[n].process.as_ref().expect("alive");
        let (state, leads) = (process.node.state(), process.node.leads());
        let record = state.trust.key(KeyKind::Authority);
        // One that holds the new key gives it to those who came meanwhile.
        let lack = |node: &NodeId| !record.sealed.contains_key(node) && !state.nodes[node].expelling;
        let lacking: Vec<NodeId> = match leads && record.stage != Stage::Done {
            true if self.machines[n].keys.holds.contains(&record.number) => {
                state.nodes.keys().copied().filter(lack).collect()
            }
            _ => Vec::new(),
        };
        let signed = (0..self.machines.len()).any(|other| {
            let machine = &self.machines[other];
            other != n
                && machine.process.is_some()
                && machine.keys.signs == record.number
                && self.network.connects(n, other)
                && machine.keys.meets(&self.machines[n].keys)
        });
        let me = self.machines[n].id;
        let before = self.machines[n].keys.clone();
        self.machines[n].keys.carry_out(&record, me, signed);
        if self.machines[n].keys != before {
            self.trace.note(self.now, "keys", n, u64::from(record.number), u64::from(self.machines[n].keys.shows));
            self.show_keys();
        }
        for node in lacking {
            let (key, number, envelope) = (KeyKind::Authority, record.number, envelope());
            self.order(n, &Command::Trust(TrustCommand::Hand { key, number, node, envelope }));
        }
        let report = self.machines[n].keys.report(&record);
        if self.machines[n].told.as_ref() != Some(&report) {
            self.machines[n].told = Some(report.clone());
            self.tell(n, Event::Trust(report));
        }
    }

    /// A server is let in by one whose database knows that it is.
    pub(super) fn given_keys(&mut self, n: usize) {
        let id = self.machines[n].id;
        let knows = |state: &ClusterState| state.nodes.contains_key(&id);
        let manager = self
            .machines
            .iter()
            .find(|machine| machine.process.as_ref().is_some_and(|process| knows(process.databases.state())));
        if let Some(manager) = manager {
            self.machines[n].keys = Keys::given_by(&manager.keys);
            self.show_keys();
        }
    }

    fn show_keys(&mut self) {
        let newest = self.machines.iter().filter_map(|machine| machine.process.as_ref()).max_by_key(|it| it.applied);
        let behind = newest.map(|it| it.databases.state().trust.key(KeyKind::Authority).behind).unwrap_or_default();
        let members = self.machines.iter().filter(|it| it.standing == Standing::Member && !behind.contains(&it.id));
        let keys: Vec<(usize, Keys)> = members.map(|machine| (machine.number, machine.keys.clone())).collect();
        self.show(&Seen::Keys { members: &keys });
    }
}
