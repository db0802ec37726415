//! What a machine's agent runs: the agent's own rules with processes that are made up.
//!
//! The rules (which assignment counts, what it means for a replica) are the shipped ones; what the
//! agent writes down is written to the simulated disk's idea of a file, and survives as such files
//! do. Processes survive their server, not their machine.

use crate::dice::Dice;
use quorate_agent::desired::{Desired, Offer};
use quorate_model::assignment::{AssignedReplica, Assignment, Phase};
use quorate_model::id::{LogIndex, NodeId, ReplicaId};
use quorate_model::observed::{ReplicaState, ReplicaStatus};
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// One machine's agent.
#[derive(Debug)]
pub(crate) struct Agent {
    node: NodeId,
    /// The assignment that was written down last.
    cached: Option<Assignment>,
    desired: Option<Desired>,
    replicas: BTreeMap<ReplicaId, Running>,
}

/// One made-up process, or what is left of it.
#[derive(Debug, Clone)]
struct Running {
    known: AssignedReplica,
    state: ReplicaState,
    /// When it comes to the next state by itself.
    due: Option<Timestamp>,
    alive: bool,
}

/// An assignment came in force.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Obeyed {
    pub revision: LogIndex,
    pub before: Option<LogIndex>,
}

impl Agent {
    pub(crate) fn new(node: NodeId) -> Agent {
        Agent { node, cached: None, desired: None, replicas: BTreeMap::new() }
    }

    /// A server starts and takes over what runs.
    pub(crate) fn start(&mut self, now: Timestamp, dice: &mut Dice) {
        let desired = Desired::at_start(self.node, self.cached.clone()).expect("its own assignment");
        self.desired = Some(desired);
        self.reconcile(now, dice);
    }

    /// The server ended; what runs goes on.
    pub(crate) fn stop(&mut self) {
        self.desired = None;
    }

    /// The machine lost power: nothing runs any more, and all of it is to be started again.
    pub(crate) fn lose_power(&mut self) {
        self.desired = None;
        for replica in self.replicas.values_mut() {
            replica.alive = false;
            replica.due = None;
            if !replica.state.is_over() {
                replica.state = ReplicaState::BackingOff;
            }
        }
    }

    /// Whether the assignment in force wants the same of the node.
    pub(crate) fn follows(&self, assignment: &Assignment) -> bool {
        let newest = self.desired.as_ref().and_then(|desired| desired.newest());
        newest.is_some_and(|newest| newest.replicas == assignment.replicas)
    }

    /// An assignment arrives. `None`: it changes nothing.
    pub(crate) fn offer(&mut self, now: Timestamp, assignment: Assignment, dice: &mut Dice) -> Option<Obeyed> {
        let before = self.cached.as_ref().map(|cached| cached.revision);
        let desired = self.desired.as_mut()?;
        let revision = assignment.revision;
        if desired.offer(assignment) != Offer::Obey {
            return None;
        }
        self.cached = desired.newest().map(|newest| (**newest).clone());
        self.reconcile(now, dice);
        Some(Obeyed { revision, before })
    }

    fn reconcile(&mut self, now: Timestamp, dice: &mut Dice) {
        let Some(desired) = &self.desired else { return };
        if desired.newest().is_none() {
            return;
        }
        let known: Vec<AssignedReplica> = self.replicas.values().map(|replica| replica.known.clone()).collect();
        let ms = Duration::from_millis;
        for wanted in desired.wanted_of_all(known) {
            let phase = wanted.phase();
            let replica = wanted.assigned.replica;
            if phase == Phase::Stop && !self.replicas.contains_key(&replica) {
                continue;
            }
            let running = self.replicas.entry(replica).or_insert(Running {
                known: wanted.assigned.clone(),
                state: ReplicaState::BackingOff,
                due: None,
                alive: false,
            });
            running.known = wanted.assigned;
            match phase {
                Phase::Run if !running.alive && !running.state.is_over() => {
                    running.state = ReplicaState::Starting;
                    running.alive = true;
                    running.due = Some(now.plus(dice.span((ms(5), ms(800)))));
                }
                Phase::Run => {}
                Phase::Drain if running.alive => running.state = ReplicaState::Draining,
                Phase::Drain => running.state = ReplicaState::Stopped,
                Phase::Stop if running.alive && running.state != ReplicaState::Stopping => {
                    running.state = ReplicaState::Stopping;
                    running.due = Some(now.plus(dice.span((ms(1), ms(500)))));
                }
                Phase::Stop if running.alive => {}
                Phase::Stop => running.state = ReplicaState::Stopped,
            }
        }
        // What has ended and is not listed any more is forgotten, as its directory is.
        let listed = desired.newest().map(|newest| newest.replicas.clone()).unwrap_or_default();
        self.replicas.retain(|id, running| running.alive || listed.iter().any(|listed| listed.replica == *id));
    }

    /// When something comes to its next state by itself.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.replicas.values().filter_map(|replica| replica.due).min()
    }

    /// Lets time pass. Returns whether anything changed.
    pub(crate) fn advance(&mut self, now: Timestamp) -> bool {
        let mut changed = false;
        for replica in self.replicas.values_mut() {
            if replica.due.is_some_and(|due| due <= now) {
                replica.due = None;
                changed = true;
                match replica.state {
                    ReplicaState::Starting => replica.state = ReplicaState::Healthy,
                    _ => {
                        replica.state = ReplicaState::Stopped;
                        replica.alive = false;
                    }
                }
            }
        }
        changed
    }

    /// A process ends by itself and is started again.
    pub(crate) fn crash_one(&mut self, now: Timestamp, dice: &mut Dice) -> bool {
        let alive: Vec<ReplicaId> =
            self.replicas.iter().filter(|(_, it)| it.state == ReplicaState::Healthy).map(|(id, _)| *id).collect();
        if alive.is_empty() {
            return false;
        }
        let chosen = *dice.pick(&alive);
        if let Some(replica) = self.replicas.get_mut(&chosen) {
            replica.state = ReplicaState::Starting;
            replica.due = Some(now.plus(Duration::from_millis(dice.between(100, 3_000))));
        }
        true
    }

    pub(crate) fn statuses(&self) -> Vec<ReplicaStatus> {
        self.replicas
            .iter()
            .map(|(id, running)| ReplicaStatus {
                replica: *id,
                service: running.known.spec.name.clone(),
                state: running.state,
                pid: running.alive.then_some(1),
                ports: BTreeMap::new(),
                started_at: None,
                restarts: 0,
                detail: String::new(),
                log_dir: String::new(),
            })
            .collect()
    }

    /// The replicas whose processes run, whatever their state.
    pub(crate) fn running(&self) -> Vec<ReplicaId> {
        self.replicas.iter().filter(|(_, running)| running.alive).map(|(id, _)| *id).collect()
    }
}
