//! The holder's side: what this node's replicas hold is renewed.
//!
//! All leases of a node are renewed in one rhythm, that of the shortest, and in common messages. As long as one
//! of them is not valid, rounds follow each other faster: somebody waits for it.
//!
//! # Invariants
//! - A lease is renewed from when its replica is assigned, whatever becomes of it, until it is forgotten.
//! - A renewal counts from the reading of the clock with which its turn began, so from before it is sent.

use super::{LEASES_PER_FRAME, Lease};
use crate::event::{Held, Now};
use crate::wire::{Renew, Renewal, Renewed};
use quorate_lease::{Holder, Life};
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::planted::{Bug, planted};
use quorate_model::state::ClusterState;
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between the first two rounds for a lease that is not valid; each next pause is twice as long.
const HASTE: Duration = Duration::from_millis(50);
/// So often it doubles: to 0.8 s, or to the usual pause if that is shorter.
const DOUBLINGS: u32 = 4;

/// One replica's lease.
#[derive(Debug)]
struct Own {
    replica: ReplicaId,
    life: Life,
    holder: Holder,
    /// It goes on without renewals once it runs.
    keeps: bool,
    /// What the shell was told last.
    told: Option<Timestamp>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Holding {
    run: u64,
    own: BTreeMap<Lease, Own>,
    /// The next round is due then.
    due: Timestamp,
    /// Rounds since all were valid, or since something happened that may help.
    tries: u32,
}

impl Holding {
    /// `run` differs from start to start of this node.
    pub(crate) fn new(run: u64) -> Holding {
        Holding { run, own: BTreeMap::new(), due: Timestamp::default(), tries: 0 }
    }

    /// Takes note of what this node's replicas hold now.
    pub(crate) fn assigned(&mut self, now: Timestamp, me: NodeId, state: &ClusterState) {
        let mut own = std::mem::take(&mut self.own);
        for replica in state.replicas.values().filter(|replica| replica.node == me) {
            let Some(assigned) = replica.lease else { continue };
            let lease = Lease { name: replica.service.clone(), epoch: assigned.epoch };
            let known = own.remove(&lease).unwrap_or_else(|| {
                (self.due, self.tries) = (now, 0);
                let (life, keeps) = (Life::new(assigned.ttl.0), assigned.keeps);
                Own { replica: replica.id, life, holder: Holder::of(lease.clone(), life), keeps, told: None }
            });
            self.own.insert(lease, known);
        }
    }

    /// Somebody may answer who did not before: what is not valid is asked for at once.
    pub(crate) fn hurry(&mut self, now: Now) {
        if !self.own.is_empty() && !self.all_valid(now) {
            (self.due, self.tries) = (now.mono, 0);
        }
    }

    /// What every voter is to be sent now, if a round is due.
    pub(crate) fn round(&mut self, now: Now) -> Vec<Renew> {
        if self.own.is_empty() || now.mono < self.due {
            return Vec::new();
        }
        let all_valid = self.all_valid(now);
        let pause = self.own.values().map(|own| own.life.renew_every()).min().unwrap_or_default();
        if all_valid {
            self.tries = 0;
            self.due = now.mono.plus(pause);
        } else {
            self.due = now.mono.plus(pause.min(HASTE * (1 << self.tries)));
            self.tries = (self.tries + 1).min(DOUBLINGS);
        }
        let renewals: Vec<Renewal> = self
            .own
            .values_mut()
            .map(|own| {
                let renewal = own.holder.renew(now.held);
                Renewal::new(&renewal.lease, renewal.number)
            })
            .collect();
        let run = self.run;
        renewals.chunks(LEASES_PER_FRAME).map(|leases| Renew { run, leases: leases.to_vec() }).collect()
    }

    /// A voter acknowledged.
    pub(crate) fn acknowledged(&mut self, now: Now, voter: NodeId, message: &Renewed) {
        let Some(Ok(voters)) = message.voters.as_ref().map(crate::wire::Voters::electorate) else { return };
        // Of another run of this node: what has this number now was sent later.
        if message.run != self.run {
            return;
        }
        for renewal in &message.leases {
            let Ok(lease) = renewal.lease() else { continue };
            if let Some(own) = self.own.get_mut(&lease) {
                if planted(Bug::HeldFromAcknowledgement) {
                    own.holder.renew(now.held);
                    own.holder.acknowledged(voter, u64::MAX, &voters);
                    continue;
                }
                own.holder.acknowledged(voter, renewal.number, &voters);
            }
        }
    }

    /// What is held for longer than was said before. `joined`: the cluster has this node, in this run of it, as
    /// joined.
    ///
    /// Whoever goes on without renewals starts only then: from that entry of the log on nobody can have said
    /// that this node is dead without its being down once more. Before it, somebody may have, and this node would
    /// start what runs elsewhere already, and nothing would end it.
    pub(crate) fn grown(&mut self, joined: bool) -> Vec<Held> {
        let mut grown = Vec::new();
        for (lease, own) in self.own.iter_mut().filter(|(_, own)| joined || !own.keeps) {
            let until = own.holder.valid_until();
            if let Some(until) = until.filter(|_| until > own.told) {
                own.told = Some(until);
                grown.push(Held { replica: own.replica, epoch: lease.epoch, until });
            }
        }
        grown
    }

    pub(crate) fn next_wake(&self) -> Option<Timestamp> {
        (!self.own.is_empty()).then_some(self.due)
    }

    fn all_valid(&self, now: Now) -> bool {
        self.own.values().all(|own| own.holder.is_valid(now.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Voters;
    use quorate_lease::Electorate;
    use quorate_model::assignment::{AssignedLease, Phase};
    use quorate_model::id::LogIndex;
    use quorate_model::spec::{Format, parse};
    use quorate_model::state::ReplicaRecord;
    use quorate_model::time::{Span, WallTime};

    fn me() -> NodeId {
        NodeId::from_u128(1)
    }

    fn at(ms: u64) -> Now {
        Now::of(Timestamp(Duration::from_millis(ms)), WallTime(0))
    }

    /// This node runs services that live so long, in milliseconds.
    fn state(ttls: &[u64]) -> ClusterState {
        let mut state = ClusterState::default();
        for (n, ttl) in ttls.iter().enumerate() {
            let document = parse(&format!("[[service]]\nname = 's{n}'\ncommand = ['/x']\n"), Format::Toml).unwrap();
            let spec = document.services.into_iter().next().unwrap();
            let record = ReplicaRecord {
                id: ReplicaId::from_u128(n as u128),
                service: spec.name.clone(),
                ordinal: 0,
                node: me(),
                phase: Phase::Run,
                version: 1,
                spec,
                since: WallTime(0),
                revision: LogIndex(1),
                lease: Some(AssignedLease { epoch: 7, ttl: Span::from_millis(*ttl), keeps: false, yields: false }),
                moving: false,
            };
            state.replicas.insert(record.id, record);
        }
        state
    }

    fn voters() -> Electorate {
        Electorate { voters: (1..=3).map(NodeId::from_u128).collect(), ..Electorate::default() }
    }

    /// Two of three voters acknowledge.
    fn acknowledge(holding: &mut Holding, now: Now, asked: &[Renew]) {
        for message in asked {
            let voters = Some(Voters::new(&voters()));
            let answer = Renewed { run: message.run, leases: message.leases.clone(), voters };
            holding.acknowledged(now, NodeId::from_u128(1), &answer);
            holding.acknowledged(now, NodeId::from_u128(2), &answer);
        }
    }

    #[test]
    fn all_leases_go_in_the_rhythm_of_the_shortest_and_faster_until_they_are_valid() {
        let mut holding = Holding::new(9);
        assert_eq!(holding.next_wake(), None, "nothing is held");
        holding.assigned(at(1_000).mono, me(), &state(&[6_000, 60_000]));
        let rounds: Vec<u64> =
            (1_000..3_000).filter(|ms| holding.round(at(*ms)).iter().any(|renew| renew.leases.len() == 2)).collect();
        assert_eq!(rounds, [1_000, 1_050, 1_150, 1_350, 1_750, 2_550]);
        holding.hurry(at(3_000));
        let asked = holding.round(at(3_000));
        acknowledge(&mut holding, at(3_010), &asked);
        assert_eq!(holding.next_wake(), Some(at(3_050).mono));
        assert_eq!(holding.round(at(3_050)).len(), 1);
        assert_eq!(holding.next_wake(), Some(at(4_050).mono), "a sixth of the shorter one");
    }

    #[test]
    fn what_is_held_is_said_once_and_counted_from_the_sending() {
        let mut holding = Holding::new(9);
        holding.assigned(at(1_000).mono, me(), &state(&[6_000]));
        let asked = holding.round(at(1_000));
        acknowledge(&mut holding, at(1_500), &asked);
        let held = Held { replica: ReplicaId::from_u128(0), epoch: 7, until: at(7_000).held };
        assert_eq!(holding.grown(true), [held]);
        acknowledge(&mut holding, at(1_600), &asked);
        assert_eq!(holding.grown(true), []);
        holding.assigned(at(1_700).mono, me(), &state(&[]));
        assert_eq!(holding.next_wake(), None);
    }

    #[test]
    fn what_goes_on_without_renewals_starts_only_where_the_node_is_joined() {
        let mut holding = Holding::new(9);
        let mut state = state(&[6_000]);
        for replica in state.replicas.values_mut() {
            replica.lease.as_mut().unwrap().keeps = true;
        }
        holding.assigned(at(1_000).mono, me(), &state);
        let asked = holding.round(at(1_000));
        acknowledge(&mut holding, at(1_010), &asked);
        assert_eq!(holding.grown(false), []);
        assert_eq!(holding.grown(true).len(), 1, "it is not forgotten");
    }

    #[test]
    fn an_acknowledgement_of_another_run_is_not_taken() {
        let mut holding = Holding::new(9);
        holding.assigned(at(1_000).mono, me(), &state(&[6_000]));
        let mut asked = holding.round(at(1_000));
        asked[0].run = 8;
        acknowledge(&mut holding, at(1_010), &asked);
        assert_eq!(holding.grown(true), []);
    }
}
