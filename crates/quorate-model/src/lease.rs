//! Leases as decided: who may run what must never run twice.
//!
//! How a lease is kept and how it ends is the business of the crate `quorate-lease`; here is what of it
//! is in the log. A lease is held by one replica from when it is placed until it is known to have ended, or
//! until its time of life is over on the clocks of a majority and the leader raises it. One that goes on without
//! a quorum ([`WithoutQuorum::Keep`]) has no time of life once it runs: its end is the word of its node, or that
//! of an operator about the node.
//!
//! # Invariants
//! - An epoch belongs to one replica, and epochs of one name only grow, also when the service was removed
//!   and made anew: whoever refuses an older epoch refuses whoever had it.
//! - Nobody gets a lease that somebody holds.
//!
//! Source: docs/adr/0011-leases.md.

use crate::assignment::{AssignedLease, Phase};
use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{NodeId, ReplicaId, ServiceName};
use crate::member::MemberChange;
use crate::planted::{Bug, planted};
use crate::spec::{Mode, ServiceSpec, WithoutQuorum};
use crate::state::{Change, Changes, ClusterState, Health, ReplicaRecord};
use crate::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The failover time of a service that names none.
pub const FAILOVER_DEFAULT: Span = Span::from_secs(30);
/// The shortest failover time.
pub const FAILOVER_MIN: Span = Span::from_secs(10);
/// The shortest one of a service that asks for `unsafe_fast`.
pub const FAILOVER_MIN_UNSAFE: Span = Span::from_secs(1);
/// The longest failover time.
pub const FAILOVER_MAX: Span = Span::from_secs(300);

/// What of a failover time a lease lives: 0.6 of it. The rest is for finding a leader, raising the epoch and
/// starting elsewhere.
#[must_use]
pub fn time_to_live(failover: Span) -> Span {
    Span(Duration::from_millis(u64::try_from(failover.0.as_millis() * 6 / 10).unwrap_or(u64::MAX)))
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The service that it is for.
    pub name: ServiceName,
    /// Of the holder; if there is none, of the last one.
    pub epoch: u64,
    pub holder: Option<Holder>,
    /// How long it lives after a renewal, for this holder.
    pub ttl: Span,
    /// The voters acknowledge this holder no more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
    /// Its holder goes on without renewals, so it is never taken away by time: only the holder's node gives it
    /// back, or an operator who says that the node is dead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps: bool,
    /// Since when it is as it is.
    pub since: WallTime,
    /// Which copy of an active-passive service somebody wants to have it next, if that is well then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<ReplicaId>,
    /// The last time that it was lost by silence and held elsewhere, as far as that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failover: Option<Failover>,
}

/// A failover, as the leader measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// Of the new holder.
    pub epoch: u64,
    pub from: NodeId,
    pub to: NodeId,
    /// From when the old holder's node was last heard until the new copy was seen running, on the leader's
    /// monotonic clock. A leader that started meanwhile has not heard the one and measures nothing.
    pub took: Span,
    pub at: WallTime,
}

/// Who holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub replica: ReplicaId,
    pub node: NodeId,
}

impl LeaseRecord {
    /// The epoch whose renewals count: that of the holder, or that of whoever comes next.
    #[must_use]
    pub fn epoch_in_force(&self) -> u64 {
        self.epoch + u64::from(self.holder.is_none())
    }
}

/// What the leader decides about a lease. Neither does anything if the lease has moved on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lease", rename_all = "kebab-case")]
pub enum LeaseCommand {
    /// From when this is in a voter's log, that voter acknowledges the epoch no more.
    Fence { name: ServiceName, epoch: u64 },
    /// Nobody holds this epoch any more, by the clocks of a majority. Its replica is given up.
    Raise { name: ServiceName, epoch: u64 },
    /// The holder of this epoch runs, after the lease was lost by silence; see [`Failover`].
    Measured { name: ServiceName, epoch: u64, from: NodeId, to: NodeId, took: Span },
}

impl LeaseCommand {
    /// The lease that it is about.
    #[must_use]
    pub fn name(&self) -> &ServiceName {
        match self {
            LeaseCommand::Fence { name, .. }
            | LeaseCommand::Raise { name, .. }
            | LeaseCommand::Measured { name, .. } => name,
        }
    }

    fn epoch(&self) -> u64 {
        match self {
            LeaseCommand::Fence { epoch, .. }
            | LeaseCommand::Raise { epoch, .. }
            | LeaseCommand::Measured { epoch, .. } => *epoch,
        }
    }
}

impl ClusterState {
    /// The failover time of a service that runs once: its own, or that of the cluster.
    #[must_use]
    pub fn failover(&self, spec: &ServiceSpec) -> Span {
        spec.failover.unwrap_or(self.members.failover.unwrap_or(FAILOVER_DEFAULT))
    }

    /// The failover time of the cluster. What is held keeps the time of life that it was given.
    pub(crate) fn set_failover(&self, changes: &mut Changes, failover: Option<Span>) -> Result<(), Refusal> {
        if failover.is_some_and(|span| !(FAILOVER_MIN..=FAILOVER_MAX).contains(&span)) {
            let problem = format!(
                "is {}; it must be {FAILOVER_MIN} to {}s",
                failover.unwrap_or_default(),
                FAILOVER_MAX.0.as_secs()
            );
            return Err(Refusal::Invalid { field: "failover".into(), problem });
        }
        if self.members.failover != failover {
            changes.member(MemberChange::Failover { failover });
            changes.event(Happening::FailoverSet { failover });
        }
        Ok(())
    }

    pub(crate) fn decide_lease(&self, changes: &mut Changes, command: &LeaseCommand) {
        let (name, epoch) = (command.name(), command.epoch());
        let held = self.leases.get(name).filter(|lease| lease.epoch == epoch);
        let Some((lease, holder)) = held.and_then(|lease| Some((lease, lease.holder?))) else { return };
        match command {
            LeaseCommand::Fence { .. } if !lease.fenced && (!lease.keeps || planted(Bug::KeptFenced)) => {
                changes.lease(LeaseRecord { fenced: true, since: changes.now, ..lease.clone() });
            }
            LeaseCommand::Raise { .. } if lease.fenced || planted(Bug::RaisedWithoutFence) => {
                changes.lease(LeaseRecord { holder: None, fenced: false, since: changes.now, ..lease.clone() });
                self.lose(changes, holder.replica);
                let (service, node) = (name.clone(), holder.node);
                changes.event(Happening::LeaseRaised { service, node, epoch });
            }
            LeaseCommand::Measured { from, to, took, .. }
                if holder.node == *to && lease.last_failover.is_none_or(|last| last.epoch < epoch) =>
            {
                let (from, to, took, at) = (*from, *to, *took, changes.now);
                let last_failover = Some(Failover { epoch, from, to, took, at });
                changes.lease(LeaseRecord { last_failover, ..lease.clone() });
                changes.event(Happening::FailedOver { service: name.clone(), from, to, took });
            }
            LeaseCommand::Fence { .. } | LeaseCommand::Raise { .. } | LeaseCommand::Measured { .. } => {}
        }
    }

    /// An operator says that a node is dead: what it held without end is nobody's any more. What ends by itself is
    /// left to that.
    ///
    /// # Errors
    /// [`Refusal::NodeLives`] while the cluster has it as joined, or if it was in the meantime.
    pub(crate) fn confirm_dead(&self, changes: &mut Changes, node: NodeId, generation: u64) -> Result<(), Refusal> {
        let known = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if known.health == Health::Joined || known.generation != generation {
            return Err(Refusal::NodeLives { node: known.identity.name.clone() });
        }
        changes.event(Happening::DeathConfirmed { node });
        self.release_kept(changes, node);
        Ok(())
    }

    /// Leases that this node holds until it gives them back.
    pub fn kept_by(&self, node: NodeId) -> impl Iterator<Item = &LeaseRecord> {
        let holds = move |lease: &&LeaseRecord| lease.holder.is_some_and(|holder| holder.node == node);
        self.leases.values().filter(|lease| lease.keeps).filter(holds)
    }

    /// Nothing of this node runs any more, for certain.
    pub(crate) fn release_kept(&self, changes: &mut Changes, node: NodeId) {
        for lease in self.kept_by(node) {
            let (service, epoch, since) = (lease.name.clone(), lease.epoch, changes.now);
            changes.lease(LeaseRecord { holder: None, fenced: false, since, ..lease.clone() });
            let replica = lease.holder.map(|holder| holder.replica);
            if let Some(replica) = replica.filter(|replica| self.replicas.contains_key(replica)) {
                changes.list.push(Change::ReplicaGone { replica });
            }
            changes.event(Happening::LeaseRaised { service, node, epoch });
        }
    }

    /// A replica has lost what it held by silence. A copy that was the active one may live on as a standby: where it
    /// runs, it is demoted or killed by its own timer before.
    fn lose(&self, changes: &mut Changes, replica: ReplicaId) {
        match self.replicas.get(&replica) {
            Some(record) if record.spec.mode == Mode::ActivePassive && record.phase == Phase::Run => {
                changes.list.push(Change::Replica(ReplicaRecord { lease: None, ..record.clone() }));
            }
            Some(_) => changes.list.push(Change::ReplicaGone { replica }),
            None => {}
        }
    }

    /// The epoch of whoever gets the lease next.
    #[must_use]
    pub fn next_epoch(&self, name: &ServiceName) -> u64 {
        let after = |lease: &LeaseRecord| lease.epoch + u64::from(!planted(Bug::EpochReused));
        self.leases.get(name).map_or(1, after)
    }

    /// Gives the lease of a service to a replica that is being placed, under the epoch that the plan says.
    pub(crate) fn grant(
        &self,
        changes: &mut Changes,
        spec: &ServiceSpec,
        holder: Holder,
        said: Option<u64>,
    ) -> Result<AssignedLease, Refusal> {
        let name = &spec.name;
        let known = changes.leased(name).or_else(|| self.leases.get(name));
        if let Some(holder) = known.and_then(|lease| lease.holder) {
            return Err(Refusal::LeaseHeld { service: name.clone(), node: holder.node });
        }
        let epoch = self.next_epoch(name);
        // The database has taken the plan at its word: an epoch that it does not know could not write.
        if let Some(said) = said.filter(|said| *said != epoch) {
            let problem = format!("is {said}; the next one of `{name}` is {epoch}");
            return Err(Refusal::Invalid { field: "epoch".into(), problem });
        }
        let last_failover = known.and_then(|lease| lease.last_failover);
        let (name, since, holder) = (name.clone(), changes.now, Some(holder));
        let (ttl, keeps) = (time_to_live(self.failover(spec)), spec.without_quorum == WithoutQuorum::Keep);
        changes.lease(LeaseRecord { name, epoch, holder, ttl, fenced: false, keeps, since, next: None, last_failover });
        Ok(AssignedLease { epoch, ttl, keeps, yields: false })
    }

    /// A replica has ended: what it held is free.
    pub(crate) fn give_back(&self, changes: &mut Changes, replica: ReplicaId) {
        let holds = |lease: &&LeaseRecord| lease.holder.is_some_and(|holder| holder.replica == replica);
        let free =
            |lease: &LeaseRecord| LeaseRecord { holder: None, fenced: false, since: changes.now, ..lease.clone() };
        if let Some(free) = self.leases.values().find(holds).map(free) {
            changes.lease(free);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignment::AssignedLease;
    use crate::command::{Command, Step};
    use crate::id::LogIndex;
    use crate::member::MemberCommand;
    use crate::spec::{Format, Mode, parse};
    use crate::state::{Health, NodeIdentity, NodeRecord, Role};
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

    /// Two workers and a service that must run once.
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
        let mut document = parse("[[service]]\nname = 'db'\ncommand = ['/bin/db']\n", Format::Toml).unwrap();
        document.services[0].mode = Mode::Singleton;
        document.services[0].failover = Some(Span::from_secs(10));
        run(&mut state, &Command::ApplySpec { document }).unwrap();
        state
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

    fn place(number: u128, on: u128) -> Step {
        Step::Place {
            replica: replica(number),
            service: name(),
            ordinal: 0,
            node: node(on),
            version: None,
            epoch: None,
        }
    }

    fn fence(epoch: u64) -> Command {
        Command::Lease(LeaseCommand::Fence { name: name(), epoch })
    }

    fn raise(epoch: u64) -> Command {
        Command::Lease(LeaseCommand::Raise { name: name(), epoch })
    }

    #[test]
    fn whoever_is_placed_gets_the_next_epoch_and_nobody_while_it_is_held() {
        let mut state = cluster();
        steps(&mut state, vec![place(1, 1)]).unwrap();
        let lease = Some(AssignedLease { epoch: 1, ttl: Span::from_secs(6), keeps: false, yields: false });
        assert_eq!(state.assignment(node(1)).replicas[0].lease, lease);
        let held = Refusal::LeaseHeld { service: name(), node: node(1) };
        assert_eq!(steps(&mut state, vec![place(2, 2)]).unwrap_err(), held);
        steps(&mut state, vec![Step::Forget { replica: replica(1) }]).unwrap();
        assert!(steps(&mut state, vec![place(2, 2), place(3, 1)]).is_err(), "two in one plan");
        steps(&mut state, vec![place(2, 2)]).unwrap();
        assert_eq!(state.assignment(node(2)).replicas[0].lease.map(|lease| lease.epoch), Some(2));
    }

    #[test]
    fn a_plan_says_the_epoch_that_is_given() {
        let mut state = cluster();
        let place = |number, said| {
            let (replica, service, node, epoch) = (replica(number), name(), node(1), Some(said));
            Step::Place { replica, service, ordinal: 0, node, version: None, epoch }
        };
        for said in 1..4 {
            assert_eq!(state.next_epoch(&name()), said);
            for other in [said - 1, said + 1] {
                let refused = steps(&mut state, vec![place(said.into(), other)]).unwrap_err();
                assert!(matches!(refused, Refusal::Invalid { .. }), "{refused}");
            }
            steps(&mut state, vec![place(said.into(), said)]).unwrap();
            assert_eq!(state.leases[&name()].epoch, said);
            assert_eq!(state.next_epoch(&name()), said + 1, "also while it is held");
            steps(&mut state, vec![Step::Forget { replica: replica(said.into()) }]).unwrap();
        }
    }

    #[test]
    fn a_raise_needs_the_fence_and_takes_the_replica_with_it() {
        let mut state = cluster();
        steps(&mut state, vec![place(1, 1)]).unwrap();
        run(&mut state, &raise(1)).unwrap();
        assert!(state.leases[&name()].holder.is_some(), "nothing was fenced");
        run(&mut state, &fence(1)).unwrap();
        assert!(state.leases[&name()].fenced);
        run(&mut state, &raise(1)).unwrap();
        assert_eq!(state.leases[&name()].holder, None);
        assert!(state.replicas.is_empty() && state.assignment(node(1)).replicas.is_empty());
        assert_eq!(state.leases[&name()].epoch_in_force(), 2);
        steps(&mut state, vec![place(2, 2)]).unwrap();
        for late in [fence(1), raise(1)] {
            let before = state.clone();
            run(&mut state, &late).unwrap();
            assert_eq!(state, before, "of an epoch that is over");
        }
    }

    #[test]
    fn e8_the_failover_time_of_the_cluster_counts_where_a_service_names_none() {
        let mut state = cluster();
        let set = |failover| Command::Member(MemberCommand::SetFailover { failover });
        for refused in [Span::from_secs(9), Span::from_secs(301)] {
            assert!(matches!(run(&mut state, &set(Some(refused))), Err(Refusal::Invalid { .. })), "{refused}");
        }
        let named = state.services[&name()].spec.clone();
        let unnamed = ServiceSpec { failover: None, ..named.clone() };
        assert_eq!(state.failover(&unnamed), FAILOVER_DEFAULT);
        run(&mut state, &set(Some(Span::from_secs(100)))).unwrap();
        assert_eq!((state.failover(&unnamed), state.failover(&named)), (Span::from_secs(100), Span::from_secs(10)));
        run(&mut state, &set(None)).unwrap();
        assert_eq!(state.failover(&unnamed), FAILOVER_DEFAULT);
    }

    #[test]
    fn a_measured_failover_is_kept_with_the_lease_and_written_down_once() {
        let mut state = cluster();
        steps(&mut state, vec![place(1, 1)]).unwrap();
        run(&mut state, &fence(1)).unwrap();
        run(&mut state, &raise(1)).unwrap();
        steps(&mut state, vec![place(2, 2)]).unwrap();
        let measured = |epoch, to, took| {
            let (from, took) = (node(1), Span::from_millis(took));
            Command::Lease(LeaseCommand::Measured { name: name(), epoch, from, to: node(to), took })
        };
        let last = |state: &ClusterState| state.leases[&name()].last_failover.map(|last| last.took);
        for other in [measured(1, 2, 1), measured(2, 1, 1)] {
            run(&mut state, &other).unwrap();
            assert_eq!(last(&state), None, "of another epoch, or of a node that does not hold it");
        }
        run(&mut state, &measured(2, 2, 6_500)).unwrap();
        run(&mut state, &measured(2, 2, 9_000)).unwrap();
        assert_eq!(last(&state), Some(Span::from_millis(6_500)));
        let told = |event: &&crate::event::Event| matches!(event.what, Happening::FailedOver { .. });
        assert_eq!(state.events.iter().filter(told).count(), 1);
        steps(&mut state, vec![Step::Forget { replica: replica(2) }]).unwrap();
        steps(&mut state, vec![place(3, 1)]).unwrap();
        assert_eq!(last(&state), Some(Span::from_millis(6_500)), "a hand-over does not take it away");
    }

    /// `db` goes on without a quorum and is held by node 1, which is away.
    fn kept() -> ClusterState {
        let mut state = cluster();
        let mut service = state.services[&name()].clone();
        (service.spec.without_quorum, service.spec.failover) = (WithoutQuorum::Keep, None);
        state.absorb(LogIndex(50), &[Change::Service(service)]);
        steps(&mut state, vec![place(1, 1)]).unwrap();
        assert!(state.leases[&name()].keeps && state.assignment(node(1)).replicas[0].lease.unwrap().keeps);
        let generation = state.nodes[&node(1)].generation;
        let down = Command::ChangeHealth { node: node(1), generation, health: Health::Down, at: WallTime(0) };
        run(&mut state, &down).unwrap();
        state
    }

    fn member(command: MemberCommand) -> Command {
        Command::Member(command)
    }

    #[test]
    fn what_goes_on_without_a_quorum_is_taken_by_no_leader_and_given_by_an_operators_word_alone() {
        let mut state = kept();
        for command in [fence(1), raise(1)] {
            let before = state.clone();
            run(&mut state, &command).unwrap();
            assert_eq!(state, before, "time says nothing about it");
        }
        assert!(matches!(steps(&mut state, vec![place(2, 2)]), Err(Refusal::LeaseHeld { .. })));
        let expel = member(MemberCommand::Expel { node: node(1) });
        assert!(matches!(run(&mut state, &expel), Err(Refusal::KeepsService { .. })));
        let dead = |generation| member(MemberCommand::ConfirmDead { node: node(1), generation });
        let lives = Refusal::NodeLives { node: "n1".into() };
        assert_eq!(run(&mut state, &dead(7)), Err(lives), "it was there after somebody looked");
        run(&mut state, &dead(1)).unwrap();
        assert!(state.replicas.is_empty());
        steps(&mut state, vec![place(2, 2)]).unwrap();
        assert_eq!(state.leases[&name()].epoch, 2);
    }

    #[test]
    fn nobody_is_dead_who_is_joined_and_what_ends_by_itself_is_left_to_that() {
        let mut state = kept();
        let identity = state.nodes[&node(1)].identity.clone();
        run(&mut state, &Command::RegisterNode { node: identity, boot: 2 }).unwrap();
        let dead = |node, generation| member(MemberCommand::ConfirmDead { node, generation });
        for generation in [1, 2] {
            assert_eq!(run(&mut state, &dead(node(1), generation)), Err(Refusal::NodeLives { node: "n1".into() }));
        }
        let mut state = cluster();
        steps(&mut state, vec![place(1, 1)]).unwrap();
        let down = Command::ChangeHealth { node: node(1), generation: 1, health: Health::Down, at: WallTime(0) };
        run(&mut state, &down).unwrap();
        run(&mut state, &dead(node(1), 1)).unwrap();
        assert!(state.leases[&name()].holder.is_some(), "its lease runs out");
    }

    #[test]
    fn whoever_recovers_says_that_the_lost_are_destroyed() {
        let mut state = kept();
        let recover = MemberCommand::Recover { survivor: node(2), incarnation: 2, lost: BTreeSet::from([node(1)]) };
        run(&mut state, &member(recover)).unwrap();
        assert_eq!(state.leases[&name()].holder, None);
        steps(&mut state, vec![place(2, 2)]).unwrap();
    }

    #[test]
    fn epochs_go_on_when_a_service_is_made_anew() {
        let mut state = cluster();
        steps(&mut state, vec![place(1, 1)]).unwrap();
        let service = state.services[&name()].clone();
        run(&mut state, &Command::RemoveService { service: name() }).unwrap();
        steps(&mut state, vec![Step::Forget { replica: replica(1) }]).unwrap();
        state.absorb(LogIndex(90), &[Change::Service(service)]);
        steps(&mut state, vec![place(2, 1)]).unwrap();
        assert_eq!(state.leases[&name()].epoch, 2);
    }
}
