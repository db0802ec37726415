//! Which copy of an active-passive service is the active one, as decided.
//!
//! The active copy has the lease of the service, and gives it back in an orderly way before another gets it; or its
//! lease is raised as that of whatever runs once. So there are never two, by the rules of [`crate::lease`] alone.
//!
//! ```text
//! standby ──Promote: the next epoch──▶ active ──Yield──▶ yields ──Demoted: its node says so──▶ standby
//!                                        └────────── raised: its node was silent for too long ──────▲
//! ```
//!
//! # Invariants
//! - An epoch that is to be given back is never kept after all: whoever has seen that never takes the role up again
//!   under it.
//! - Nobody is promoted while somebody holds the lease.
//!
//! Source: docs/adr/0018-active-passive.md.

use crate::assignment::{AssignedLease, Phase};
use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::lease::{Holder, LeaseRecord};
use crate::spec::Mode;
use crate::state::{Change, Changes, ClusterState, ReplicaRecord, ServiceRecord};

impl ClusterState {
    /// The active copy of a service, unless it is giving its role back.
    #[must_use]
    pub fn active(&self, service: &ServiceName) -> Option<&ReplicaRecord> {
        let holder = self.leases.get(service)?.holder?;
        let record = self.replicas.get(&holder.replica)?;
        record.lease.filter(|lease| !lease.yields).map(|_| record)
    }

    /// Somebody wants the copy on this node to be the active one, or any other than the present one.
    pub(crate) fn activate(
        &self,
        changes: &mut Changes,
        name: &ServiceName,
        node: Option<NodeId>,
    ) -> Result<(), Refusal> {
        let service = self.service(name)?;
        let refused = |why: String| Refusal::NotActivated { service: name.clone(), why };
        if service.spec.mode != Mode::ActivePassive {
            return Err(refused("its mode is not \"active-passive\"".into()));
        }
        let holder = self.leases.get(name).and_then(|lease| lease.holder);
        let heir = self.standby_on(service, node).map_err(refused)?;
        let Some(lease) = self.leases.get(name) else { return Ok(()) };
        if let Some(node) = node
            && holder.is_some_and(|holder| holder.node == node)
            && self.active(name).is_some()
        {
            return Ok(());
        }
        changes.lease(LeaseRecord { next: heir, ..lease.clone() });
        if let Some(active) = self.active(name) {
            self.yield_lease(changes, active.id);
        }
        changes.event(Happening::ActivationAsked { service: name.clone(), node });
        Ok(())
    }

    /// The copy that is to be the next active one; `None`: whichever is best.
    fn standby_on(&self, service: &ServiceRecord, node: Option<NodeId>) -> Result<Option<ReplicaId>, String> {
        let name = &service.spec.name;
        let active = self.active(name).map(|active| active.id);
        let mine = || self.replicas.values().filter(|replica| replica.service == *name && replica.phase == Phase::Run);
        let Some(node) = node else {
            let others = mine().filter(|replica| Some(replica.id) != active).count();
            return if others == 0 { Err("it has no other copy".into()) } else { Ok(None) };
        };
        let known = self.nodes.get(&node).map_or_else(|| node.to_string(), |record| record.identity.name.clone());
        let there = mine().find(|replica| replica.node == node);
        there.map(|replica| Some(replica.id)).ok_or_else(|| format!("it has no copy on {known}"))
    }

    pub(crate) fn promote(
        &self,
        changes: &mut Changes,
        replica: ReplicaId,
        service: &ServiceName,
        epoch: u64,
    ) -> Result<(), Refusal> {
        let record = changes.replica(replica).or_else(|| self.replicas.get(&replica)).cloned();
        let fits = |record: &ReplicaRecord| {
            let is_standby = record.phase == Phase::Run && record.lease.is_none();
            record.service == *service && record.spec.mode == Mode::ActivePassive && is_standby
        };
        let Some(record) = record.filter(fits) else {
            let why = format!("replica {replica} is no standby of it");
            return Err(Refusal::NotActivated { service: service.clone(), why });
        };
        let holder = Holder { replica, node: record.node };
        let lease = Some(self.grant(changes, &record.spec, holder, Some(epoch))?);
        let node = record.node;
        changes.list.push(Change::Replica(ReplicaRecord { lease, ..record }));
        changes.event(Happening::Promoted { service: service.clone(), node, epoch });
        Ok(())
    }

    /// From here on its node ends its role. That is a matter of its hook, so nothing is said of when.
    pub(crate) fn yield_lease(&self, changes: &mut Changes, replica: ReplicaId) {
        let Some(record) = self.replicas.get(&replica) else { return };
        let Some(lease) = record.lease.filter(|lease| !lease.yields && record.spec.mode == Mode::ActivePassive) else {
            return;
        };
        let lease = Some(AssignedLease { yields: true, ..lease });
        changes.list.push(Change::Replica(ReplicaRecord { lease, ..record.clone() }));
    }

    pub(crate) fn demoted(&self, changes: &mut Changes, replica: ReplicaId) {
        let Some(record) = self.replicas.get(&replica) else { return };
        let Some(lease) = record.lease.filter(|lease| lease.yields) else { return };
        changes.list.push(Change::Replica(ReplicaRecord { lease: None, ..record.clone() }));
        self.give_back(changes, replica);
        let (service, node, epoch) = (record.service.clone(), record.node, lease.epoch);
        changes.event(Happening::Demoted { service, node, epoch });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignment::Phase;
    use crate::command::{Command, Step};
    use crate::id::LogIndex;
    use crate::lease::LeaseCommand;
    use crate::spec::{Format, parse};
    use crate::state::{Health, NodeIdentity, NodeRecord, Role};
    use crate::time::WallTime;
    use std::collections::BTreeSet;

    fn node(number: u128) -> NodeId {
        NodeId::from_u128(number << 64)
    }

    fn replica(number: u128) -> ReplicaId {
        ReplicaId::from_u128(number)
    }

    fn name() -> ServiceName {
        ServiceName::new("db").unwrap()
    }

    fn run(state: &mut ClusterState, command: &Command) -> Result<(), Refusal> {
        let index = LogIndex(state.planned_on.0 + 1);
        let changes = state.decide(index, WallTime(index.0), command)?;
        state.absorb(index, &changes);
        Ok(())
    }

    fn steps(state: &mut ClusterState, steps: Vec<Step>) -> Result<(), Refusal> {
        let expected = state.planned_on;
        run(state, &Command::CarryOut { expected, steps })
    }

    fn promote(number: u128, epoch: u64) -> Step {
        Step::Promote { replica: replica(number), service: name(), epoch }
    }

    /// Two nodes with a copy each.
    fn cluster() -> ClusterState {
        let mut state = ClusterState::default();
        let worker = |number| NodeIdentity {
            id: node(number),
            name: format!("n{number}"),
            roles: BTreeSet::from([Role::Worker]),
            api: String::new(),
            link: String::new(),
            host: "127.0.0.1".into(),
        };
        let joined = |number| Change::Node(NodeRecord::started(worker(number), Health::Joined, WallTime(0)));
        state.absorb(LogIndex(1), &[joined(1), joined(2)]);
        let text = "[[service]]\nname = 'db'\ncommand = ['/bin/db']\nmode = 'active-passive'\nreplicas = 2\n";
        run(&mut state, &Command::ApplySpec { document: parse(text, Format::Toml).unwrap() }).unwrap();
        let place = |number| Step::Place {
            replica: replica(number),
            service: name(),
            ordinal: u32::try_from(number).unwrap() - 1,
            node: node(number),
            version: None,
            epoch: None,
        };
        steps(&mut state, vec![place(1), place(2)]).unwrap();
        state
    }

    #[test]
    fn a_copy_is_promoted_only_when_nobody_holds_the_lease() {
        let mut state = cluster();
        assert_eq!(state.active(&name()), None, "whoever is placed stands by");
        steps(&mut state, vec![promote(1, 1)]).unwrap();
        assert_eq!(state.active(&name()).map(|active| active.node), Some(node(1)));
        let held = Refusal::LeaseHeld { service: name(), node: node(1) };
        assert_eq!(steps(&mut state, vec![promote(2, 2)]), Err(held.clone()));
        steps(&mut state, vec![Step::Yield { replica: replica(1) }]).unwrap();
        assert_eq!(steps(&mut state, vec![promote(2, 2)]), Err(held), "it has not said that it is over");
        assert!(state.assignment(node(1)).replicas[0].lease.unwrap().yields);
        steps(&mut state, vec![Step::Demoted { replica: replica(1) }, promote(2, 2)]).unwrap();
        let lease = |number| state.assignment(node(number)).replicas[0].lease.map(|lease| (lease.epoch, lease.yields));
        assert_eq!((lease(1), lease(2)), (None, Some((2, false))));
    }

    #[test]
    fn nobody_is_demoted_who_was_not_asked() {
        let mut state = cluster();
        steps(&mut state, vec![promote(1, 1)]).unwrap();
        let before = state.clone();
        steps(&mut state, vec![Step::Demoted { replica: replica(1) }]).unwrap();
        assert_eq!(state, before);
    }

    #[test]
    fn a_lease_that_was_lost_leaves_the_copy_and_takes_its_role() {
        let mut state = cluster();
        steps(&mut state, vec![promote(1, 1)]).unwrap();
        for command in [LeaseCommand::Fence { name: name(), epoch: 1 }, LeaseCommand::Raise { name: name(), epoch: 1 }]
        {
            run(&mut state, &Command::Lease(command)).unwrap();
        }
        assert_eq!((state.replicas[&replica(1)].lease, state.replicas[&replica(1)].phase), (None, Phase::Run));
        steps(&mut state, vec![promote(2, 2)]).unwrap();
    }

    #[test]
    fn somebody_wants_another_copy_and_is_told_where_there_is_none() {
        let mut state = cluster();
        let activate = |to: Option<u128>| Command::Activate { service: name(), node: to.map(node) };
        steps(&mut state, vec![promote(1, 1)]).unwrap();
        let before = state.clone();
        run(&mut state, &activate(Some(1))).unwrap();
        assert_eq!(state, before, "it is active already");
        let refused = run(&mut state, &activate(Some(3))).unwrap_err().to_string();
        assert!(refused.contains("it has no copy on"), "{refused}");
        run(&mut state, &activate(Some(2))).unwrap();
        assert_eq!((state.active(&name()), state.leases[&name()].next), (None, Some(replica(2))));
        steps(&mut state, vec![Step::Demoted { replica: replica(1) }, promote(2, 2)]).unwrap();
        assert_eq!(state.leases[&name()].next, None, "it is done");
        let singleton = "[[service]]\nname = 'one'\ncommand = ['/bin/one']\nmode = 'singleton'\n";
        run(&mut state, &Command::ApplySpec { document: parse(singleton, Format::Toml).unwrap() }).unwrap();
        let other = Command::Activate { service: ServiceName::new("one").unwrap(), node: None };
        assert!(matches!(run(&mut state, &other), Err(Refusal::NotActivated { .. })));
    }
}
