//! What a machine's agent runs: the agent's own rules with processes that are made up.
//!
//! The rules (which assignment counts, what it means for a replica) are the shipped ones; what the
//! agent writes down is written to the simulated disk's idea of a file, and survives as such files
//! do. Processes survive their server, not their machine.
//!
//! What runs once starts only while its lease is held, and ends when that is over, by a timer of its own: the
//! timer goes on when the server is stopped or gone, like the one of a shim. What goes on without a quorum has no
//! timer: it ends with its machine, or when it is told to.

use crate::dice::Dice;
use quorate_agent_core::desired::{Desired, Offer};
use quorate_model::assignment::{AssignedReplica, Assignment, Phase};
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::observed::{Casting, Part, ReplicaState, ReplicaStatus};
use quorate_model::planted::{Bug, planted};
use quorate_model::spec::Mode;
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// A program with this in its environment ends again and again.
pub(crate) const NEVER_WELL: &str = "NEVER_WELL";
/// How long it runs, and how long it is waited for.
const CRASHES_EVERY: Duration = Duration::from_millis(300);

/// One machine's agent.
#[derive(Debug)]
pub(crate) struct Agent {
    node: NodeId,
    /// The assignment that was written down last.
    cached: Option<Assignment>,
    desired: Option<Desired>,
    replicas: BTreeMap<ReplicaId, Running>,
    /// Which leases are held and until when, as the server said, on the machine's boot clock. Gone with the server.
    holds: BTreeMap<ReplicaId, (u64, Duration)>,
}

/// One made-up process, or what is left of it.
#[derive(Debug, Clone)]
struct Running {
    known: AssignedReplica,
    state: ReplicaState,
    /// When it comes to the next state by itself.
    due: Option<Timestamp>,
    alive: bool,
    /// How often it ended and was started again.
    restarts: u32,
    /// Its timer: what it holds is over then, on the machine's boot clock.
    until: Option<Duration>,
    /// Of an active-passive service: the epoch under which it is active.
    active: Option<u64>,
    /// When its hook has made it a standby again.
    demoted_at: Option<Timestamp>,
    /// The newest epoch that it gave back.
    yielded: u64,
}

impl Running {
    /// Whether it ends when its lease does.
    fn ends(&self) -> bool {
        self.known.lease.is_none_or(|lease| !lease.keeps)
    }

    /// Whether it runs without a lease, and has one while it is active.
    fn is_cast(&self) -> bool {
        self.known.spec.mode == Mode::ActivePassive
    }

    /// Whether nothing of it runs unless it is the active one.
    fn is_cold(&self) -> bool {
        self.known.spec.stands_by_cold()
    }

    /// Of a copy that stands by cold: the epoch under which it is to run.
    fn called(&self) -> Option<u64> {
        self.known.lease.filter(|lease| !lease.yields).map(|lease| lease.epoch).filter(|epoch| *epoch > self.yielded)
    }

    /// Starts a copy that stands by cold when its lease is held, and ends it when it is not to be active any more.
    fn follow_lease(&mut self, held: Option<Duration>, now: Timestamp, dice: &mut Dice) {
        let ms = Duration::from_millis;
        match (self.alive, self.called()) {
            (true, epoch) if self.active != epoch && self.state != ReplicaState::Stopping => {
                self.state = ReplicaState::Stopping;
                self.due = Some(now.plus(dice.span((ms(1), ms(500)))));
            }
            (false, Some(epoch)) if held.is_some() => {
                (self.alive, self.state) = (true, ReplicaState::Starting);
                (self.active, self.until) = (Some(epoch), held);
                self.due = Some(now.plus(dice.span((ms(5), ms(800)))));
            }
            (false, None) => self.state = ReplicaState::Healthy,
            (true, _) | (false, Some(_)) => {}
        }
        if let Some(lease) = self.known.lease.filter(|lease| lease.yields && !self.alive) {
            self.yielded = self.yielded.max(lease.epoch);
        }
    }

    /// What stands behind it is gone, as are its hooks.
    fn stand_by(&mut self) {
        (self.active, self.demoted_at, self.until) = (None, None, None);
    }

    /// Takes up the role that it was given and has the lease for, or begins to give it back.
    fn follow_role(&mut self, held: Option<Duration>, now: Timestamp, dice: &mut Dice) {
        let lease = self.known.lease;
        let keeps = lease.filter(|lease| !lease.yields).map(|lease| lease.epoch);
        match self.active {
            Some(epoch) if keeps != Some(epoch) && self.demoted_at.is_none() => {
                self.demoted_at = Some(now.plus(dice.span((Duration::from_millis(1), Duration::from_millis(500)))));
            }
            None if self.state == ReplicaState::Healthy && held.is_some() && keeps > Some(self.yielded) => {
                (self.active, self.until) = (keeps, held);
            }
            Some(_) | None => {}
        }
        if let Some(lease) = lease.filter(|lease| lease.yields && self.active.is_none()) {
            self.yielded = self.yielded.max(lease.epoch);
        }
    }
}

/// The moment, and what the machine's boot clock shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub now: Timestamp,
    pub boot: Duration,
}

/// What runs of a service that runs once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Single {
    pub service: ServiceName,
    pub replica: ReplicaId,
    pub epoch: u64,
}

/// An assignment came in force.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Obeyed {
    pub revision: LogIndex,
    pub before: Option<LogIndex>,
}

impl Agent {
    pub(crate) fn new(node: NodeId) -> Agent {
        Agent { node, cached: None, desired: None, replicas: BTreeMap::new(), holds: BTreeMap::new() }
    }

    /// A server starts and takes over what runs.
    pub(crate) fn start(&mut self, now: Moment, dice: &mut Dice) {
        let desired = Desired::at_start(self.node, self.cached.clone()).expect("its own assignment");
        self.desired = Some(desired);
        self.reconcile(now, dice);
    }

    /// The server ended; what runs goes on.
    pub(crate) fn stop(&mut self) {
        self.desired = None;
        self.holds.clear();
    }

    /// The machine lost power: nothing runs any more, and all of it is to be started again.
    pub(crate) fn lose_power(&mut self) {
        self.stop();
        for replica in self.replicas.values_mut() {
            replica.alive = false;
            replica.due = None;
            replica.stand_by();
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
    pub(crate) fn offer(&mut self, now: Moment, assignment: Assignment, dice: &mut Dice) -> Option<Obeyed> {
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

    /// Leases are held for longer.
    pub(crate) fn hold(&mut self, now: Moment, held: &[(ReplicaId, u64, Duration)], dice: &mut Dice) {
        self.holds.retain(|_, (_, until)| *until > now.boot);
        for (replica, epoch, until) in held {
            let known = self.holds.entry(*replica).or_default();
            *known = (*known).max((*epoch, *until));
            let holds = |running: &&mut Running| {
                running.alive && running.ends() && (!running.is_cast() || running.active == Some(*epoch))
            };
            if let Some(running) = self.replicas.get_mut(replica).filter(holds) {
                running.until = running.until.max(Some(*until));
            }
        }
        self.reconcile(now, dice);
    }

    /// When the next timer of a replica that holds a lease fires, on the machine's boot clock.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.replicas.values().filter(|running| running.alive).filter_map(|running| running.until).min()
    }

    /// Timers fire. Returns whether anything ended.
    pub(crate) fn expire(&mut self, boot: Duration) -> bool {
        let mut ended = false;
        for running in self.replicas.values_mut() {
            let over = running.until.is_some_and(|until| until <= boot);
            if running.alive && over && !planted(Bug::KillTimerOff) {
                ended = true;
                let lives_on = running.known.spec.demotes();
                running.stand_by();
                if lives_on {
                    continue;
                }
                (running.alive, running.due) = (false, None);
                running.state = match running.known.phase {
                    Phase::Run => ReplicaState::BackingOff,
                    Phase::Drain | Phase::Stop => ReplicaState::Stopped,
                };
            }
        }
        ended
    }

    /// What runs here of services that run once.
    pub(crate) fn singles(&self) -> Vec<Single> {
        let alive = self.replicas.iter().filter(|(_, running)| running.alive);
        let single = |(id, running): (&ReplicaId, &Running)| {
            let epoch = if running.is_cast() { running.active? } else { running.known.lease?.epoch };
            let service = running.known.spec.name.clone();
            Some(Single { service, replica: *id, epoch })
        };
        alive.filter_map(single).collect()
    }

    fn reconcile(&mut self, Moment { now, boot }: Moment, dice: &mut Dice) {
        let Some(desired) = &self.desired else { return };
        if desired.newest().is_none() {
            return;
        }
        let known: Vec<AssignedReplica> = self.replicas.values().map(|replica| replica.known.clone()).collect();
        let ms = Duration::from_millis;
        for wanted in desired.wanted_of_all(known) {
            let phase = wanted.phase();
            let replica = wanted.assigned.replica;
            let running = self.replicas.entry(replica).or_insert(Running {
                known: wanted.assigned.clone(),
                state: ReplicaState::BackingOff,
                due: None,
                alive: false,
                restarts: 0,
                until: None,
                active: None,
                demoted_at: None,
                yielded: 0,
            });
            running.known = wanted.assigned;
            let held = self.holds.get(&replica).map(|(_, until)| *until).filter(|until| *until > boot);
            let held_as_given = self
                .holds
                .get(&replica)
                .filter(|(epoch, until)| Some(*epoch) == running.known.lease.map(|it| it.epoch) && *until > boot)
                .map(|(_, until)| *until);
            match phase {
                Phase::Run if running.is_cold() => {
                    running.follow_lease(held_as_given, now, dice);
                    continue;
                }
                Phase::Run
                    if !running.alive && running.known.lease.is_some() && held.is_none() && !running.is_cast() => {}
                Phase::Run if !running.alive && !running.state.is_over() => {
                    running.until = held.filter(|_| running.ends() && !running.is_cast());
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
            if running.is_cast() && !running.is_cold() {
                running.follow_role(held_as_given, now, dice);
            }
        }
        // What has ended and is not listed any more is forgotten, as its directory is.
        let listed = desired.newest().map(|newest| newest.replicas.clone()).unwrap_or_default();
        self.replicas.retain(|id, running| running.alive || listed.iter().any(|listed| listed.replica == *id));
    }

    /// When something comes to its next state by itself.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.replicas.values().flat_map(|replica| [replica.due, replica.demoted_at]).flatten().min()
    }

    /// Lets time pass. Returns whether anything changed.
    pub(crate) fn advance(&mut self, now: Timestamp) -> bool {
        let mut changed = false;
        for replica in self.replicas.values_mut() {
            if replica.demoted_at.is_some_and(|at| at <= now) {
                changed = true;
                replica.yielded = replica.yielded.max(replica.active.unwrap_or_default());
                replica.stand_by();
            }
            if replica.due.is_some_and(|due| due <= now) {
                replica.due = None;
                changed = true;
                match replica.state {
                    ReplicaState::Starting if replica.known.spec.env.contains_key(NEVER_WELL) => {
                        replica.state = ReplicaState::BackingOff;
                        replica.due = Some(now.plus(CRASHES_EVERY));
                    }
                    ReplicaState::BackingOff => {
                        replica.state = ReplicaState::Starting;
                        replica.restarts += 1;
                        replica.due = Some(now.plus(CRASHES_EVERY));
                    }
                    ReplicaState::Starting => replica.state = ReplicaState::Healthy,
                    _ => {
                        let stands_by = replica.is_cold() && replica.known.phase == Phase::Run;
                        let ended = if stands_by { ReplicaState::Healthy } else { ReplicaState::Stopped };
                        if let Some(lease) = replica.known.lease.filter(|lease| stands_by && lease.yields) {
                            replica.yielded = replica.yielded.max(lease.epoch);
                        }
                        replica.state = ended;
                        replica.alive = false;
                        replica.stand_by();
                    }
                }
            }
        }
        changed
    }

    /// A process ends by itself and is started again.
    pub(crate) fn crash_one(&mut self, now: Timestamp, dice: &mut Dice) -> bool {
        let alive: Vec<ReplicaId> = self
            .replicas
            .iter()
            .filter(|(_, it)| it.state == ReplicaState::Healthy && it.alive)
            .map(|(id, _)| *id)
            .collect();
        if alive.is_empty() {
            return false;
        }
        let chosen = *dice.pick(&alive);
        if let Some(replica) = self.replicas.get_mut(&chosen) {
            replica.state = ReplicaState::Starting;
            if replica.is_cast() && !replica.is_cold() {
                replica.stand_by();
            }
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
                restarts: running.restarts,
                detail: String::new(),
                log_dir: String::new(),
                fencing: None,
                casting: running.is_cast().then(|| Casting {
                    part: if running.active.is_some() { Part::Active } else { Part::Standby },
                    epoch: running.active.unwrap_or_default(),
                    yielded: if running.active.is_none() { running.yielded } else { 0 },
                }),
            })
            .collect()
    }

    /// The replicas whose processes run, whatever their state.
    pub(crate) fn running(&self) -> Vec<ReplicaId> {
        self.replicas.iter().filter(|(_, running)| running.alive).map(|(id, _)| *id).collect()
    }
}
