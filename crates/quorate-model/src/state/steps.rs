//! What a plan of the leader changes, step by step. A step that finds its work done changes nothing.

use super::{Change, Changes, ClusterState, ReplicaRecord};
use crate::assignment::Phase;
use crate::command::{Refusal, Step};
use crate::event::Happening;
use crate::id::LogIndex;
use crate::lease::Holder;
use crate::planted::{Bug, planted};
use crate::spec::Mode;

impl ClusterState {
    pub(super) fn carry_out(&self, changes: &mut Changes, expected: LogIndex, steps: &[Step]) -> Result<(), Refusal> {
        if expected != self.planned_on && !planted(Bug::StalePlanCarriedOut) {
            return Err(Refusal::StalePlan { expected, actual: self.planned_on });
        }
        for step in steps {
            match step {
                Step::Place { replica, service, ordinal, node, version, epoch } => {
                    let present = self.service(service)?;
                    let former = match *version {
                        None => None,
                        Some(version) => {
                            let none = || {
                                let (service, version, known) = (service.clone(), Some(version), Vec::new());
                                Refusal::NoVersion { service, version, known }
                            };
                            Some(self.former(service, version).ok_or_else(none)?)
                        }
                    };
                    let record = former.as_ref().unwrap_or(present);
                    if !self.nodes.contains_key(node) {
                        return Err(Refusal::UnknownNode { node: *node });
                    }
                    let lease = match record.spec.mode {
                        // Whoever comes is a standby first.
                        Mode::Replicated | Mode::EveryNode | Mode::ActivePassive => None,
                        Mode::Singleton => {
                            let holder = Holder { replica: *replica, node: *node };
                            Some(self.grant(changes, &record.spec, holder, *epoch)?)
                        }
                    };
                    changes.list.push(Change::Replica(ReplicaRecord {
                        id: *replica,
                        service: service.clone(),
                        ordinal: *ordinal,
                        node: *node,
                        phase: Phase::Run,
                        version: record.version,
                        spec: record.spec.clone(),
                        since: changes.now,
                        revision: changes.index,
                        lease,
                        moving: false,
                    }));
                    changes.event(Happening::ReplicaPlaced {
                        service: service.clone(),
                        replica: *replica,
                        ordinal: *ordinal,
                        node: *node,
                    });
                }
                Step::Retire { replica } => {
                    if let Some(record) = self.replicas.get(replica).filter(|record| record.phase == Phase::Run) {
                        changes.phase(record, Phase::Drain);
                        changes.event(Happening::ReplicaRetired {
                            service: record.service.clone(),
                            replica: *replica,
                            ordinal: record.ordinal,
                            node: record.node,
                        });
                    }
                }
                Step::Release { replica } => {
                    if let Some(record) = self.replicas.get(replica).filter(|record| record.phase == Phase::Drain) {
                        changes.phase(record, Phase::Stop);
                    }
                }
                Step::Forget { replica } => {
                    if self.replicas.contains_key(replica) {
                        changes.list.push(Change::ReplicaGone { replica: *replica });
                        self.give_back(changes, *replica);
                    }
                }
                Step::Promote { replica, service, epoch } => self.promote(changes, *replica, service, *epoch)?,
                Step::Yield { replica } => self.yield_lease(changes, *replica),
                Step::Demoted { replica } => self.demoted(changes, *replica),
                Step::Advance { service, to } => self.advance(changes, service, to),
            }
        }
        Ok(())
    }
}

impl Changes {
    fn phase(&mut self, record: &ReplicaRecord, phase: Phase) {
        self.list.push(Change::Replica(ReplicaRecord {
            phase,
            since: self.now,
            revision: self.index,
            ..record.clone()
        }));
    }
}
