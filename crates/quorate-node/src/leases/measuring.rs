//! How long a failover took, as the leader measures it.
//!
//! From when the old holder's node was last heard until the new copy is seen running. Every node takes note of what
//! was lost and of what it heard, so that whoever leads by then can say it; a node that started meanwhile cannot.
//!
//! # Invariants
//! - What is measured is one service's outage: a second loss before it runs again does not begin it anew.
//! - Only spans of one node's monotonic clock are said.

use quorate_model::id::{NodeId, ServiceName};
use quorate_model::lease::LeaseCommand;
use quorate_model::state::{ClusterState, ReplicaRecord};
use quorate_model::time::{Span, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// A lease that was lost by silence.
#[derive(Debug)]
struct Lost {
    epoch: u64,
    from: NodeId,
    heard: Timestamp,
    /// Who runs it since when, as far as it was seen.
    ran: Option<(u64, NodeId, Timestamp)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Measuring {
    lost: BTreeMap<ServiceName, Lost>,
}

impl Measuring {
    /// The lease of a node that was last heard at this moment was raised.
    pub(crate) fn lost(&mut self, service: &ServiceName, epoch: u64, from: NodeId, heard: Timestamp) {
        self.lost.entry(service.clone()).or_insert(Lost { epoch, from, heard, ran: None });
    }

    /// What the leader has to say. `runs`: whether a replica's process is seen running.
    pub(crate) fn look(
        &mut self,
        now: Timestamp,
        state: &ClusterState,
        runs: impl Fn(&ReplicaRecord) -> bool,
    ) -> Vec<LeaseCommand> {
        self.lost.retain(|service, lost| {
            let lease = state.leases.get(service).filter(|_| state.services.contains_key(service));
            lease.is_some_and(|lease| lease.last_failover.is_none_or(|last| last.epoch <= lost.epoch))
        });
        let mut measured = Vec::new();
        for (service, lost) in &mut self.lost {
            let Some(lease) = state.leases.get(service).filter(|lease| lease.epoch > lost.epoch) else { continue };
            let Some(holder) = lease.holder else { continue };
            if lost.ran.is_none_or(|(epoch, _, _)| epoch != lease.epoch) {
                let replica = state.replicas.get(&holder.replica);
                lost.ran = replica.filter(|replica| runs(replica)).map(|_| (lease.epoch, holder.node, now));
            }
            if let Some((epoch, to, at)) = lost.ran {
                let took = u64::try_from(at.since(lost.heard).as_millis()).unwrap_or(u64::MAX);
                let (name, from, took) = (service.clone(), lost.from, Span(Duration::from_millis(took)));
                measured.push(LeaseCommand::Measured { name, epoch, from, to, took });
            }
        }
        measured
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::id::{LogIndex, ReplicaId};
    use quorate_model::lease::{Failover, Holder, LeaseRecord};
    use quorate_model::spec::{Format, parse};
    use quorate_model::state::{Change, ServiceRecord};
    use quorate_model::time::WallTime;

    fn node(number: u128) -> NodeId {
        NodeId::from_u128(number)
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp(Duration::from_millis(ms))
    }

    /// `db` is held in this epoch, by this node.
    fn held(epoch: u64, by: Option<u128>, last_failover: Option<Failover>) -> ClusterState {
        let document = parse("[[service]]\nname = 'db'\ncommand = ['/x']\nmode = 'singleton'", Format::Toml).unwrap();
        let spec = document.services.into_iter().next().unwrap();
        let (name, replica) = (spec.name.clone(), ReplicaId::from_u128(epoch.into()));
        let mut state = ClusterState::default();
        let service = ServiceRecord { spec: spec.clone(), routes: Vec::new(), version: 1, stopped: None, moment: None };
        let lease = LeaseRecord {
            name: name.clone(),
            epoch,
            holder: by.map(|by| Holder { replica, node: node(by) }),
            ttl: Span::from_secs(6),
            fenced: false,
            keeps: false,
            next: None,
            since: WallTime(0),
            last_failover,
        };
        state.absorb(LogIndex(1), &[Change::Service(service), Change::Lease(lease)]);
        if let Some(by) = by {
            let record = serde_json::json!({
                "id": replica, "service": name, "ordinal": 0, "node": node(by), "phase": "run",
                "version": 1, "spec": spec, "since": 0, "revision": 1
            });
            state.replicas.insert(replica, serde_json::from_value(record).unwrap());
        }
        state
    }

    #[test]
    fn a_failover_is_measured_from_the_last_word_to_the_first_sight_of_the_new_copy() {
        let mut measuring = Measuring::default();
        let service = "db".parse().unwrap();
        measuring.lost(&service, 1, node(1), at(1_000));
        assert_eq!(measuring.look(at(7_000), &held(1, None, None), |_| true), []);
        assert_eq!(measuring.look(at(7_100), &held(2, Some(2), None), |_| false), [], "it does not run yet");
        let measured =
            |measuring: &mut Measuring, now, state: &ClusterState| match &*measuring.look(now, state, |_| true) {
                [LeaseCommand::Measured { epoch, from, to, took, .. }] => Some((*epoch, *from, *to, *took)),
                [] => None,
                other => panic!("{other:?}"),
            };
        let said = Some((2, node(1), node(2), Span::from_millis(6_200)));
        assert_eq!(measured(&mut measuring, at(7_200), &held(2, Some(2), None)), said);
        assert_eq!(measured(&mut measuring, at(9_000), &held(2, Some(2), None)), said, "said again, it is the same");
        let last = Failover { epoch: 2, from: node(1), to: node(2), took: Span::from_millis(6_200), at: WallTime(0) };
        assert_eq!(measured(&mut measuring, at(9_100), &held(2, Some(2), Some(last))), None, "it is written down");
    }

    #[test]
    fn a_second_loss_before_it_runs_again_is_the_same_outage() {
        let mut measuring = Measuring::default();
        let service = "db".parse().unwrap();
        measuring.lost(&service, 1, node(1), at(1_000));
        measuring.lost(&service, 2, node(2), at(5_000));
        let measured = measuring.look(at(20_000), &held(3, Some(3), None), |_| true);
        let took = Span::from_millis(19_000);
        assert_eq!(measured, [LeaseCommand::Measured { name: service, epoch: 3, from: node(1), to: node(3), took }]);
        assert_eq!(measuring.look(at(20_000), &ClusterState::default(), |_| true), [], "the service is gone");
    }
}
