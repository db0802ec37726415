//! Before this node ends for longer than a restart takes: what runs once here is started elsewhere first.
//!
//! The cluster is told ([`MemberCommand::HandOver`]), its scheduler ends each such replica and places it on another
//! node as soon as this one says that it has ended. So nobody waits for the end of a lease, and there is nothing
//! here that could let two run: this node only waits.
//!
//! # Invariants
//! - The waiting ends: without another place soon, otherwise when the programs have had their time to end in.
//! - Nothing waits where nothing is held, or where nobody else is.

use super::Node;
use crate::event::{Effect, Now};
use crate::leading::Chore;
use quorate_model::assignment::Phase;
use quorate_model::command::Command;
use quorate_model::member::MemberCommand;
use quorate_model::place::Availability;
use quorate_model::spec::ServiceSpec;
use quorate_model::state::{Health, NodeRecord, ReplicaRecord, Role};
use quorate_model::time::Timestamp;
use std::time::Duration;

/// If the cluster has not begun to take anything away by then, it has no leader or no place for it.
const BEGINS_WITHIN: Duration = Duration::from_secs(2);
/// On top of twice the longest grace, once for gateways and once for the program: a few entries of the log.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
/// systemd kills what takes 90 s to end, and a host that shuts down waits for no more than that.
const LONGEST: Duration = Duration::from_secs(75);

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandingOver {
    No,
    Asked {
        since: Timestamp,
    },
    /// The shell was told that nothing is left to wait for.
    Done,
}

impl Node {
    /// This node is about to end, and not to come back at once.
    pub(super) fn begin_to_hand_over(&mut self, now: Now) {
        if self.handing_over != HandingOver::No {
            return;
        }
        self.handing_over = HandingOver::Asked { since: now.mono };
        let generation = self.state.nodes.get(&self.me.id).map(|me| me.generation);
        if let Some(generation) = generation.filter(|_| self.has_heirs()) {
            let command = MemberCommand::HandOver { node: self.me.id, generation };
            self.ask(now, Command::Member(command), Chore::HandOver);
        }
    }

    /// Says when nothing is left to wait for.
    pub(super) fn look_at_handover(&mut self, now: Now, out: &mut Vec<Effect>) {
        let HandingOver::Asked { since } = self.handing_over else { return };
        let waited = now.mono.since(since);
        let yields = |replica: &ReplicaRecord| replica.lease.is_some_and(|lease| lease.yields);
        let begun = self.singles_here().any(|replica| replica.phase != Phase::Run || yields(replica));
        let patience = |spec: &ServiceSpec| {
            // Whoever is active gives that back by a hook, or ends.
            let hook = spec.active.as_ref().map_or(Duration::ZERO, |active| active.timeout.0);
            spec.stop.grace.0.max(hook)
        };
        let grace = self.singles_here().map(|replica| patience(&replica.spec)).max();
        let is_over = match grace {
            None => true,
            Some(_) if !self.has_heirs() => true,
            Some(_) if !begun => waited >= BEGINS_WITHIN,
            Some(grace) => waited >= grace.saturating_mul(2).saturating_add(SETTLES_WITHIN).min(LONGEST),
        };
        if is_over {
            self.handing_over = HandingOver::Done;
            out.push(Effect::HandedOver);
        }
    }

    /// Replicas of this node that nobody else may run while they do.
    fn singles_here(&self) -> impl Iterator<Item = &ReplicaRecord> {
        self.state.replicas.values().filter(|replica| replica.node == self.me.id && replica.lease.is_some())
    }

    /// Whether there are such replicas, and another node that takes some.
    fn has_heirs(&self) -> bool {
        let takes = |node: &NodeRecord| {
            node.identity.id != self.me.id
                && node.health == Health::Joined
                && node.identity.roles.contains(&Role::Worker)
                && node.availability == Availability::Open
        };
        self.singles_here().next().is_some() && self.state.nodes.values().any(takes)
    }
}
