//! A whole cluster in one thread: a queue of what is due, and the loop that lets it happen.
//!
//! Everything that takes time is an entry of one queue; the order of equal times is the order of
//! their coming. So a seed decides everything, and nothing waits for anything real.
//!
//! # Invariants
//! - Simulated time never runs backwards, and nothing happens outside the queue.
//! - What was meant for a process that has ended since reaches nobody.

use crate::clients::Clients;
use crate::dice::Dice;
use crate::faults::Faults;
use crate::invariants::Invariants;
use crate::machine::{ApplyJob, Clock, Durable, Identity, LogJob, LogWork, Machine, Received, StartError};
use crate::network::{Network, SILENCE};
use crate::scenario::Scenario;
use crate::seen::{Durably, Seen, Violation};
use crate::trace::Trace;
use quorate_model::assignment::Assignment;
use quorate_model::id::{ClusterId, LogIndex, NodeId};
use quorate_model::time::Timestamp;
use quorate_node::wire::Body;
use quorate_node::{Effect, Event};
use quorate_store::databases::{self, Item, Manifest, Place, ToApply};
use quorate_store::log::{self, EntryKind, HardState};
use quorate_store::storage::{DURABLE_EVERY, OpenStorageError};
use quorate_store::volume::Volume as _;
use raft_kinds::{APPEND_RESPONSE, VOTE, VOTE_RESPONSE};
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The message kinds of Raft that promise something, by their numbers on the wire.
mod raft_kinds {
    pub(super) const APPEND_RESPONSE: i32 = 4;
    pub(super) const VOTE: i32 = 5;
    pub(super) const VOTE_RESPONSE: i32 = 6;
}

/// How long an assignment is on its way from the core to the agent.
const ASSIGNING: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(40));

/// Something due.
#[derive(Debug)]
struct Due {
    at: Timestamp,
    order: u64,
    what: What,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The earliest is the greatest: the heap gives out its greatest first.
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// What can be due.
#[derive(Debug)]
pub(crate) enum What {
    /// The node thinks.
    Turn {
        machine: usize,
        life: u64,
    },
    Arrive {
        from: usize,
        to: usize,
        life: u64,
        connection: u64,
        body: Box<Body>,
    },
    /// A machine tries to reach another one.
    Dial {
        from: usize,
        to: usize,
        life: u64,
    },
    /// A machine notices that its connection to another one has ended.
    Ended {
        from: usize,
        to: usize,
        life: u64,
        connection: u64,
        refused: bool,
    },
    LogDone {
        machine: usize,
        life: u64,
    },
    ApplyDone {
        machine: usize,
        life: u64,
    },
    /// A database on its way between two machines has arrived.
    Snapshot {
        from: usize,
        from_life: u64,
        to: usize,
        to_life: u64,
        term: u64,
        files: Vec<(String, Vec<u8>)>,
        manifest: Box<Manifest>,
    },
    /// The checkpoint thread does a round, and the databases are made durable if it is time.
    Housekeeping {
        machine: usize,
        life: u64,
    },
    /// An assignment reaches the agent.
    Assigned {
        machine: usize,
        life: u64,
        assignment: Box<Assignment>,
    },
    /// A replica's process comes to its next state.
    Agent {
        machine: usize,
    },
    /// A machine that is off is switched on.
    Start {
        machine: usize,
        life: u64,
    },
    Client {
        client: u32,
        step: u64,
    },
    Fault,
    /// All wall clocks do.
    ClocksLeap {
        leap_us: i64,
    },
    /// A machine to which something rare happened is caught by a fault.
    Ambush {
        machine: usize,
        life: u64,
    },
    FaultOver {
        fault: u64,
    },
    /// The end of the phase.
    Over,
}

/// A run in progress.
#[derive(Debug)]
pub(crate) struct World {
    pub now: Timestamp,
    queue: BinaryHeap<Due>,
    order: u64,
    pub scenario: Scenario,
    pub identity: Identity,
    pub machines: Vec<Machine>,
    pub network: Network,
    pub clients: Clients,
    pub faults: Faults,
    pub invariants: Invariants,
    pub trace: Trace,
    pub violation: Option<Violation>,
    pub dice: Dice,
    effects: Vec<Effect>,
}

impl World {
    pub(crate) fn new(scenario: Scenario, keep_text: bool) -> World {
        let seed = scenario.seed;
        let id = |n: usize| NodeId::from_u128(((n as u128 + 1) << 64) | 0xabc);
        let machines: Vec<Machine> = (0..scenario.nodes)
            .map(|n| {
                let clock = Clock { drift_ppm: scenario.drift_ppm[n], skew_us: scenario.skew_us[n] };
                Machine::new(n, id(n), clock)
            })
            .collect();
        let identity = Identity {
            cluster: ClusterId::from_u128(0xc1),
            voters: machines.iter().map(|machine| machine.id).collect(),
            segment_bytes: scenario.storage.segment_bytes,
            retain: scenario.storage.retain,
            replace_after: scenario.replace_after,
        };
        machines.iter().for_each(|machine| machine.fs.ignore_syncs(scenario.lying_disks));
        let network = Network::new(scenario.nodes, scenario.network.clone(), Dice::new(seed, "network"));
        let mut world = World {
            now: Timestamp::default(),
            queue: BinaryHeap::new(),
            order: 0,
            clients: Clients::new(&scenario),
            faults: Faults::new(seed),
            invariants: Invariants::new(&identity),
            trace: Trace::new(keep_text),
            violation: None,
            dice: Dice::new(seed, "world"),
            effects: Vec::new(),
            network,
            identity,
            machines,
            scenario,
        };
        quorate_vfs::memory::reset_randomness(seed);
        for machine in 0..world.machines.len() {
            world.start(machine);
        }
        world.begin_clients();
        let first = world.faults.pause(&world.scenario);
        world.later(first, What::Fault);
        world
    }

    pub(crate) fn later(&mut self, delay: Duration, what: What) {
        self.at(self.now.plus(delay), what);
    }

    pub(crate) fn at(&mut self, at: Timestamp, what: What) {
        self.order += 1;
        self.queue.push(Due { at: at.max(self.now), order: self.order, what });
    }

    /// Lets everything happen that is due until `end`, or until a promise is broken.
    pub(crate) fn run_until(&mut self, end: Timestamp) {
        self.at(end, What::Over);
        while let Some(due) = self.queue.pop() {
            self.now = due.at;
            if matches!(due.what, What::Over) && due.at >= end {
                return;
            }
            self.happen(due.what);
            if self.violation.is_some() {
                return;
            }
        }
    }

    pub(crate) fn show(&mut self, seen: &Seen<'_>) {
        if self.violation.is_none() {
            self.violation = self.invariants.see(self.now, seen).err();
        }
    }

    pub(crate) fn broken(&mut self, invariant: &'static str, what: String) {
        let at = self.now;
        self.violation.get_or_insert(Violation { invariant, what, at });
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Turn { machine, life } => self.turn(machine, life),
            What::Arrive { from, to, life, connection, body } => self.arrive(from, to, life, connection, *body),
            What::Dial { from, to, life } => self.dial(from, to, life),
            What::Ended { from, to, life, connection, refused } => self.ended(from, to, life, connection, refused),
            What::LogDone { machine, life } => self.log_done(machine, life),
            What::ApplyDone { machine, life } => self.apply_done(machine, life),
            What::Snapshot { from, from_life, to, to_life, term, files, manifest } => {
                self.snapshot_arrives((from, from_life), (to, to_life), term, files, *manifest);
            }
            What::Housekeeping { machine, life } => self.housekeeping(machine, life),
            What::Assigned { machine, life, assignment } => self.assigned(machine, life, *assignment),
            What::Agent { machine } => self.agent_moves(machine),
            What::Start { machine, life } => {
                if self.machines[machine].life == life && self.machines[machine].process.is_none() {
                    self.start(machine);
                }
            }
            What::Client { client, step } => self.client_moves(client, step),
            What::Fault => self.next_fault(),
            What::ClocksLeap { leap_us } => {
                self.machines.iter_mut().for_each(|machine| machine.clock.skew_us += leap_us);
            }
            What::Ambush { machine, life } => self.ambushed(machine, life),
            What::FaultOver { fault } => self.fault_over(fault),
            What::Over => {}
        }
    }

    // ── Processes ───────────────────────────────────────────────────────────────────────────────

    /// Starts a machine's server, unless it must stay off.
    pub(crate) fn start(&mut self, n: usize) {
        let now = self.now;
        let machine = &mut self.machines[n];
        if machine.process.is_some() || machine.broken || machine.off {
            return;
        }
        match machine.start(now, &self.identity, &mut self.dice) {
            Ok(()) => {}
            Err(StartError::Storage(OpenStorageError::Log(log::OpenLogError::Corrupt { .. }))) if machine.rotten => {
                machine.broken = true;
                self.trace.note(now, "refuses", n, 0, 0);
                return;
            }
            Err(error) => {
                if machine.disk_faulty() {
                    // A full or failing disk: the operator's service manager tries again.
                    machine.fs.kill();
                    let life = machine.life;
                    self.later(Duration::from_secs(1), What::Start { machine: n, life });
                } else {
                    self.broken("starts_again", format!("n{} does not start: {}", n + 1, chain(&error)));
                }
                return;
            }
        }
        let life = machine.life;
        machine.agent.start(now, &mut self.dice);
        let statuses = machine.agent.statuses();
        let process = machine.process.as_mut().expect("just started");
        process.inbox.push(Event::Replicas(statuses));
        let applied = process.applied;
        self.trace.note(now, "starts", n, life, applied.0);
        let process = self.machines[n].process.as_ref().expect("just started");
        let (state, found, (runs, before)) =
            (process.databases.state().clone(), process.durable, process.found.clone());
        let promised = std::mem::replace(&mut self.machines[n].promised, found);
        self.show(&Seen::Started { machine: n, state: &state, promised, found, runs: &runs, before });
        for other in (0..self.machines.len()).filter(|other| *other != n) {
            self.network.link(n, other).up = false;
            let dial = self.dice.between(100, 3_000);
            self.later(Duration::from_micros(dial), What::Dial { from: n, to: other, life });
        }
        let soon = self.dice.between(2_000, 20_000);
        self.later(Duration::from_millis(soon), What::Housekeeping { machine: n, life });
        self.agent_due(n);
        self.wake(n, now);
    }

    /// A machine's server ends: by itself or by `kill -9`, or with its power.
    pub(crate) fn end(&mut self, n: usize, power: Option<u64>) {
        if self.machines[n].process.is_none() {
            if power.is_some() {
                self.machines[n].end(power);
            }
            return;
        }
        self.trace.note(self.now, if power.is_some() { "power" } else { "killed" }, n, self.machines[n].life, 0);
        let waiting = self.machines[n].process.as_ref().map(|it| {
            it.waiters.values().chain(it.readers.values().map(|(client, _)| client)).copied().collect::<Vec<u32>>()
        });
        self.machines[n].agent.stop();
        self.machines[n].end(power);
        for other in (0..self.machines.len()).filter(|other| *other != n) {
            self.network.link(n, other).up = false;
            let link = self.network.link(other, n).clone();
            let life = self.machines[other].life;
            if !link.up {
                continue;
            }
            let goodbye = power.is_none() && self.network.connects(n, other);
            let delay = if goodbye { self.network.delay() } else { SILENCE };
            let ended = What::Ended { from: other, to: n, life, connection: link.connection, refused: goodbye };
            self.later(delay, ended);
        }
        self.server_gone(&waiting.unwrap_or_default(), power.is_none());
    }

    /// The server ends itself, as it does after any error of its disk.
    fn gives_up(&mut self, n: usize, why: &str) {
        self.trace.say(self.now, format_args!("n{} ends: {why}", n + 1));
        if !self.machines[n].disk_faulty() && !self.machines[n].rotten {
            self.broken("no_error_without_a_fault", format!("n{} ended itself: {why}", n + 1));
            return;
        }
        // What a failed sync should have written is not on the device, and nobody may read it back
        // from a cache: the machine is restarted with its process.
        let seed = self.dice.next();
        self.end(n, Some(seed));
        let life = self.machines[n].life;
        let pause = self.dice.between(500, 5_000);
        self.later(Duration::from_millis(pause), What::Start { machine: n, life });
    }

    fn alive(&self, n: usize, life: u64) -> bool {
        self.machines[n].life == life && self.machines[n].process.is_some()
    }

    // ── The core ────────────────────────────────────────────────────────────────────────────────

    /// Gives a node something to think about.
    pub(crate) fn tell(&mut self, n: usize, event: Event) {
        let Some(process) = &mut self.machines[n].process else { return };
        process.inbox.push(event);
        self.wake(n, self.now);
    }

    fn wake(&mut self, n: usize, at: Timestamp) {
        let at = at.max(self.machines[n].paused_until).max(self.now);
        let life = self.machines[n].life;
        let Some(process) = &mut self.machines[n].process else { return };
        if process.next_turn.is_none_or(|next| next > at) {
            process.next_turn = Some(at);
            self.at(at, What::Turn { machine: n, life });
        }
    }

    fn turn(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        let (now, paused) = (self.now, self.machines[n].paused_until);
        let clocks = self.machines[n].clocks(now);
        let process = self.machines[n].process.as_mut().expect("alive");
        if process.next_turn != Some(now) {
            return;
        }
        process.next_turn = None;
        if paused > now {
            self.wake(n, paused);
            return;
        }
        let mut effects = std::mem::take(&mut self.effects);
        for event in process.inbox.drain(..) {
            process.node.step(clocks, event, &mut effects);
        }
        process.node.flush(clocks, &mut effects);
        let (leads, term) = (process.node.leads(), process.node.term());
        if leads != process.led || term != process.term_seen {
            (process.led, process.term_seen) = (leads, term);
            self.trace.note(now, if leads { "leads" } else { "follows" }, n, term.0, 0);
            if leads {
                self.ambush(n, 20);
            }
        }
        let process = self.machines[n].process.as_ref().expect("alive");
        if self.violation.is_none() {
            self.violation = self.invariants.see(now, &Seen::Turned { machine: n, node: &process.node }).err();
        }
        let wake = self.machines[n].real(process.node.next_wake());
        for effect in effects.drain(..) {
            if self.alive(n, life) {
                self.perform(n, effect);
            }
        }
        self.effects = effects;
        if self.alive(n, life) {
            // A node that wants to be woken at once must not stop time.
            self.wake(n, wake.max(now.plus(Duration::from_micros(100))));
        }
    }

    fn perform(&mut self, n: usize, effect: Effect) {
        let process = self.machines[n].process.as_mut().expect("alive");
        match effect {
            Effect::Send { to, message } => self.send(n, to, message),
            Effect::Append(append) => {
                self.trace.say(
                    self.now,
                    format_args!(
                        "n{} appends {} {:?} {:?}..{:?}",
                        n + 1,
                        append.number,
                        append.hard_state,
                        append.entries.first().map(|entry| entry.index),
                        append.entries.last().map(|entry| entry.index)
                    ),
                );
                self.show(&Seen::Appends { machine: n, append: &append });
                let process = self.machines[n].process.as_mut().expect("alive");
                process.log_jobs.push_back(LogJob::Append(append));
                self.drive_log(n);
            }
            Effect::ReadLog { from, to_exclusive, bytes_max } => {
                self.trace.say(self.now, format_args!("n{} wants {from:?}..{to_exclusive:?}", n + 1));
                process.log_jobs.push_back(LogJob::Read { from, to_exclusive, bytes_max });
                self.drive_log(n);
            }
            Effect::Apply(entries) => {
                if self.violation.is_none() {
                    let seen = Seen::Committed { machine: n, entries: &entries };
                    self.violation = self.invariants.see(self.now, &seen).err();
                }
                process.apply_jobs.push_back(ApplyJob::Apply(entries));
                self.drive_apply(n);
            }
            Effect::Refuse { request_id, why } => {
                if let Some(client) = process.waiters.remove(&request_id) {
                    self.refused(client, request_id, why);
                }
            }
            Effect::ReadReady { tickets, .. } => {
                for ticket in tickets {
                    if let Some((client, question)) =
                        self.machines[n].process.as_mut().and_then(|process| process.readers.remove(&ticket))
                    {
                        self.read_ready(n, client, question);
                    }
                }
            }
            Effect::ReadFailed { tickets } => {
                for ticket in tickets {
                    if let Some((client, question)) =
                        self.machines[n].process.as_mut().and_then(|process| process.readers.remove(&ticket))
                    {
                        self.read_failed(client, question);
                    }
                }
            }
            // Nobody waits for it: whether it worked is seen by who leads.
            Effect::Transferred { .. } | Effect::Changed => {}
            Effect::Assign(assignment) => {
                // The agent is somebody else: it hears late of it, and may hear of the next one before.
                let life = self.machines[n].life;
                let delay = self.dice.span(ASSIGNING);
                self.later(delay, What::Assigned { machine: n, life, assignment: Box::new(assignment) });
            }
            Effect::SendSnapshot { to, term } => self.send_snapshot(n, to, term.0),
            Effect::InstallSnapshot { index, hard_state, .. } => {
                let received = process.received.take().filter(|received| received.manifest.index == index);
                match received {
                    Some(Received { directory, manifest }) => {
                        process.apply_jobs.push_back(ApplyJob::Install { incoming: directory, manifest, hard_state });
                        self.drive_apply(n);
                    }
                    // The server asserts the same and ends.
                    None => self.broken("installs_what_was_received", format!("n{}: nothing is at {index}", n + 1)),
                }
            }
            Effect::DiscardSnapshot { .. } => {
                if let Some(received) = process.received.take() {
                    let _ = self.machines[n].volume.remove_dir_all(&received.directory);
                }
            }
        }
    }

    // ── The network ─────────────────────────────────────────────────────────────────────────────

    fn number_of(&self, id: NodeId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.id == id)
    }

    fn send(&mut self, from: usize, to: NodeId, message: Body) {
        let Some(to) = self.number_of(to) else { return };
        self.promise(from, &message);
        let link = self.network.link(from, to);
        if !link.up {
            return;
        }
        let connection = link.connection;
        let life = self.machines[to].life;
        let [first, second] = self.network.arrivals(self.now, from, to);
        if let Some(at) = second {
            let body = Box::new(message.clone());
            self.at(at, What::Arrive { from, to, life, connection, body });
        }
        if let Some(at) = first {
            self.at(at, What::Arrive { from, to, life, connection, body: Box::new(message) });
        }
    }

    /// What a node says about its log and its vote must be on its disk.
    fn promise(&mut self, n: usize, message: &Body) {
        let Body::Raft(raft) = message else { return };
        let Some(process) = &self.machines[n].process else { return };
        let durable = process.durable;
        if raft.reject {
            return;
        }
        if raft.kind == 3
            && let Some(first) = raft.entries.first()
            && first.index != raft.index + 1
        {
            let last = raft.entries.last().map(|entry| entry.index);
            let what = format!("n{} sends entries {} to {last:?} after {}", n + 1, first.index, raft.index);
            self.broken("entries_follow_each_other", what);
        }
        if raft.kind == APPEND_RESPONSE {
            self.trace.say(self.now, format_args!("n{} acknowledges {:?}", n + 1, raft));
            self.show(&Seen::Acknowledged { machine: n, index: raft.index, durable: durable.last });
        } else if raft.kind == VOTE_RESPONSE || raft.kind == VOTE {
            // Who stands votes for itself.
            let candidate = if raft.kind == VOTE { raft.from } else { raft.to };
            self.show(&Seen::Voted { machine: n, term: raft.term, candidate, durable });
        }
    }

    fn arrive(&mut self, from: usize, to: usize, life: u64, connection: u64, body: Body) {
        let link = self.network.link(from, to);
        if !link.up || link.connection != connection || !self.alive(to, life) {
            return;
        }
        if let Body::Raft(raft) = &body {
            self.trace.note(self.now, "raft", to, raft.kind.unsigned_abs().into(), raft.index);
        }
        let from = self.machines[from].id;
        self.tell(to, Event::Received { from, message: body });
    }

    fn dial(&mut self, from: usize, to: usize, life: u64) {
        if !self.alive(from, life) || self.network.link(from, to).up {
            return;
        }
        let answers = self.machines[to].process.is_some() && self.network.connects(from, to);
        if !answers {
            let pause = self.dice.between(20_000, 250_000);
            self.later(Duration::from_micros(pause), What::Dial { from, to, life });
            return;
        }
        let link = self.network.link(from, to);
        link.up = true;
        link.connection += 1;
        let peer = self.machines[to].id;
        self.trace.note(self.now, "link up", from, to as u64, 0);
        self.tell(from, Event::LinkUp { peer });
    }

    fn ended(&mut self, from: usize, to: usize, life: u64, connection: u64, refused: bool) {
        if !self.alive(from, life) || self.network.link(from, to).connection != connection {
            return;
        }
        if !std::mem::replace(&mut self.network.link(from, to).up, false) {
            return;
        }
        let peer = self.machines[to].id;
        // Whoever is back already does not refuse.
        let refused = refused && self.machines[to].process.is_none();
        self.trace.note(self.now, "link down", from, to as u64, refused.into());
        self.tell(from, Event::LinkDown { peer, refused });
        let pause = self.dice.between(2_000, 100_000);
        self.later(Duration::from_micros(pause), What::Dial { from, to, life });
    }

    /// A direction is cut: the connections that need it end when they have been silent for too long.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.network.link(from, to).cuts += 1;
        for (a, b) in [(from, to), (to, from)] {
            let link = self.network.link(a, b);
            if link.up {
                let connection = link.connection;
                let life = self.machines[a].life;
                self.later(SILENCE, What::Ended { from: a, to: b, life, connection, refused: false });
            }
        }
    }

    /// A cut is over. A connection that has not ended by now ends all the same, when its silence would
    /// have been too long: on TCP that depends on when it sends again.
    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        let link = self.network.link(from, to);
        link.cuts = link.cuts.saturating_sub(1);
    }

    /// A process that was stopped goes on.
    pub(crate) fn resume(&mut self, n: usize) {
        self.wake(n, self.now);
    }

    // ── The log thread ──────────────────────────────────────────────────────────────────────────

    fn drive_log(&mut self, n: usize) {
        let (life, slowness) = (self.machines[n].life, self.machines[n].slowness);
        let Machine { process: Some(process), promised, .. } = &mut self.machines[n] else { return };
        if process.log_work.is_some() {
            return;
        }
        let mut written = Vec::new();
        let mut work = None;
        let mut failed = None;
        while let Some(job) = process.log_jobs.pop_front() {
            match job {
                LogJob::Append(append) => {
                    let number = append.number;
                    let vote = append.hard_state.map(|(term, vote, _)| (term, vote));
                    let entries: Vec<log::LogEntry> = append
                        .entries
                        .into_iter()
                        .map(|it| log::LogEntry {
                            index: it.index,
                            term: it.term,
                            kind: EntryKind::Normal,
                            data: it.data,
                        })
                        .collect();
                    let last = entries.last().map(|entry| entry.index);
                    let hard_state = append.hard_state.map(|(term, vote, commit)| HardState { term, vote, commit });
                    let append = log::Append { hard_state, entries };
                    if let Some(first) = append.entries.first() {
                        promised.last = promised.last.min(first.index.0 - 1);
                    }
                    if let Err(error) = process.log.write(&append) {
                        failed = Some(chain(&error));
                        break;
                    }
                    written.extend(append.entries);
                    work = Some(match work {
                        Some(LogWork::Sync { last: before, vote: known, .. }) => {
                            LogWork::Sync { number, last: last.or(before), vote: vote.or(known) }
                        }
                        _ => LogWork::Sync { number, last, vote },
                    });
                }
                // Reads and resets must see what came before them, durably.
                other if work.is_none() => {
                    work = Some(LogWork::Other(other));
                    break;
                }
                other => {
                    process.log_jobs.push_front(other);
                    break;
                }
            }
        }
        if let Some(why) = failed {
            self.gives_up(n, &format!("cannot write the log: {why}"));
            return;
        }
        if work.is_some() {
            process.log_work = work;
            if !written.is_empty() {
                self.show(&Seen::Written { machine: n, entries: &written });
            }
            let took = self.dice.span(self.scenario.storage.sync) * slowness;
            self.later(took, What::LogDone { machine: n, life });
        }
    }

    fn log_done(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        if let Some(again) = self.machines[n].paused(self.now) {
            self.at(again, What::LogDone { machine: n, life });
            return;
        }
        let Machine { process: Some(process), promised, .. } = &mut self.machines[n] else { return };
        let Some(work) = process.log_work.take() else { return };
        let durable = if let LogWork::Other(LogJob::Shorten { durable }) = work { durable } else { LogIndex(0) };
        let done = match work {
            LogWork::Sync { number, last, vote } => process.log.sync().map_err(|error| chain(&error)).map(|()| {
                let Durable { term, vote: voted, last: before } = process.durable;
                let (term, vote) = vote.unwrap_or((term, voted));
                process.durable = Durable { term, vote, last: last.map_or(before, |last| last.0) };
                *promised = process.durable;
                self.trace.say(self.now, format_args!("n{} has synced {number}", n + 1));
                Some(Event::Persisted { number })
            }),
            LogWork::Other(LogJob::Read { from, to_exclusive, bytes_max }) => {
                process.log.read(from, to_exclusive, bytes_max).map_err(|error| chain(&error)).map(|entries| {
                    let entries = entries
                        .into_iter()
                        .map(|it| quorate_node::consensus::LogEntry { index: it.index, term: it.term, data: it.data })
                        .collect::<Vec<_>>();
                    self.trace.say(self.now, format_args!("n{} read {:?}", n + 1, entries));
                    Some(Event::LogRead { entries })
                })
            }
            LogWork::Other(LogJob::Shorten { durable }) => process
                .log
                .shorten(durable)
                .map_err(|error| chain(&error))
                .map(|first| first.map(|first| Event::LogPurged { first })),
            LogWork::Other(LogJob::Reset { index, term, hard_state: (hard_term, vote, commit) }) => {
                let hard_state = HardState { term: hard_term, vote, commit };
                process.log.begin_after(index, term, hard_state).map_err(|error| chain(&error)).map(|()| {
                    process.durable = Durable { term: hard_term, vote, last: index.0 };
                    *promised = process.durable;
                    let state = Box::new(process.databases.state().clone());
                    Some(Event::SnapshotInstalled { index, state })
                })
            }
            LogWork::Other(LogJob::Append(_)) => unreachable!("appends are synced together"),
        };
        match done {
            Ok(event) => {
                let unsynced = self.machines[n].unsynced_log();
                self.show(&Seen::CalledDurable { machine: n, what: Durably::Log, unsynced });
                match event {
                    Some(Event::LogPurged { first }) => {
                        self.show(&Seen::Shortened { machine: n, first, durable });
                        self.ambush(n, 20);
                    }
                    Some(Event::SnapshotInstalled { .. }) => self.ambush(n, 250),
                    _ => {}
                }
                if let Some(event) = event {
                    self.tell(n, event);
                }
                self.drive_log(n);
            }
            Err(why) => self.gives_up(n, &format!("the log failed: {why}")),
        }
    }

    // ── The apply thread ────────────────────────────────────────────────────────────────────────

    fn drive_apply(&mut self, n: usize) {
        let (life, slowness) = (self.machines[n].life, self.machines[n].slowness);
        let most = self.dice.between(1, self.scenario.storage.batch_max as u64);
        let most = usize::try_from(most).expect("small");
        let Some(process) = &mut self.machines[n].process else { return };
        if process.apply_work.is_some() {
            return;
        }
        let Some(first) = process.apply_jobs.pop_front() else { return };
        let work = match first {
            ApplyJob::Apply(mut entries) => {
                while entries.len() < most
                    && let Some(ApplyJob::Apply(_)) = process.apply_jobs.front()
                    && let Some(ApplyJob::Apply(more)) = process.apply_jobs.pop_front()
                {
                    entries.extend(more);
                }
                if entries.len() > most {
                    let rest = entries.split_off(most);
                    process.apply_jobs.push_front(ApplyJob::Apply(rest));
                }
                ApplyJob::Apply(entries)
            }
            install => install,
        };
        process.apply_work = Some(work);
        let took = self.dice.span(self.scenario.storage.apply) * slowness + self.machines[n].apply_longer;
        self.later(took, What::ApplyDone { machine: n, life });
    }

    fn apply_done(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        if let Some(again) = self.machines[n].paused(self.now) {
            self.at(again, What::ApplyDone { machine: n, life });
            return;
        }
        let wall = self.machines[n].clock.wall(self.now);
        self.machines[n].volume.set_now(wall.as_micros());
        let process = self.machines[n].process.as_mut().expect("alive");
        match process.apply_work.take() {
            Some(ApplyJob::Apply(entries)) => self.apply(n, entries),
            Some(ApplyJob::Install { incoming, manifest, hard_state }) => {
                self.install(n, &incoming, &manifest, hard_state);
            }
            None => {}
        }
        if self.alive(n, life) {
            self.drive_apply(n);
        }
    }

    fn apply(&mut self, n: usize, entries: Vec<quorate_node::consensus::LogEntry>) {
        let process = self.machines[n].process.as_mut().expect("alive");
        let batch: Vec<ToApply> = entries
            .into_iter()
            .map(|entry| ToApply { index: entry.index, term: entry.term, item: Item::Data(entry.data) })
            .collect();
        let applied = match process.databases.apply(&batch) {
            Ok(applied) => applied,
            Err(error) => {
                let why = chain(&error);
                self.gives_up(n, &format!("cannot apply the log: {why}"));
                return;
            }
        };
        process.applied = batch.last().map_or(process.applied, |entry| entry.index);
        for entry in &applied {
            let digest = entry.digests.map_or(0, |[system, main]| system ^ main.rotate_left(1));
            self.trace.note(self.now, "applied", n, entry.index.0, digest);
            if self.violation.is_none() {
                self.violation = self.invariants.see(self.now, &Seen::Applied { machine: n, entry }).err();
            }
        }
        let process = self.machines[n].process.as_mut().expect("alive");
        let seen = Seen::BatchApplied { machine: n, state: process.databases.state() };
        if self.violation.is_none() {
            self.violation = self.invariants.see(self.now, &seen).err();
        }
        let mut answered = Vec::new();
        let mut entries = Vec::with_capacity(applied.len());
        for entry in applied {
            if let Some(id) = entry.request_id
                && let Some(client) = process.waiters.remove(&id)
            {
                answered.push((client, id, entry.done_at, entry.outcome.clone()));
            }
            entries.push(quorate_node::AppliedEntry {
                index: entry.index,
                request_id: entry.request_id,
                outcome: entry.outcome,
                changes: entry.changes,
                digests: entry.digests,
            });
        }
        let due = process.databases.durable_due(self.now.since(process.durable_at));
        self.tell(n, Event::Applied { entries });
        for (client, request, index, outcome) in answered {
            self.answered(n, client, request, index, &outcome);
        }
        if due {
            self.make_durable(n);
        }
    }

    fn make_durable(&mut self, n: usize) {
        let Some(process) = &mut self.machines[n].process else { return };
        process.durable_at = self.now;
        match process.databases.make_durable() {
            Ok(durable) => {
                process.log_jobs.push_back(LogJob::Shorten { durable });
                let unsynced = self.machines[n].unsynced_databases();
                self.show(&Seen::CalledDurable { machine: n, what: Durably::Databases, unsynced });
                self.drive_log(n);
            }
            Err(error) => {
                let why = chain(&error);
                self.gives_up(n, &format!("cannot make the databases durable: {why}"));
            }
        }
    }

    fn housekeeping(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        let next = self.dice.between(3_000, 40_000);
        self.later(Duration::from_millis(next), What::Housekeeping { machine: n, life });
        if self.machines[n].paused_until > self.now {
            return;
        }
        let process = self.machines[n].process.as_mut().expect("alive");
        if let Err(error) = process.checkpointer.checkpoint()
            && error.is_of_the_disk()
        {
            let why = chain(&error);
            self.gives_up(n, &format!("a checkpoint failed: {why}"));
            return;
        }
        if self.now.since(process.durable_at) >= DURABLE_EVERY {
            self.make_durable(n);
        }
    }

    // ── Whole databases ─────────────────────────────────────────────────────────────────────────

    fn send_snapshot(&mut self, n: usize, to: NodeId, term: u64) {
        let Some(to) = self.number_of(to) else { return };
        let machine = &mut self.machines[n];
        let (from_life, to_life) = (machine.life, self.machines[to].life);
        let machine = &mut self.machines[n];
        let process = machine.process.as_mut().expect("alive");
        process.transfers += 1;
        let into = PathBuf::from(format!("/db/outgoing-{}", process.transfers));
        let place = Place::on(machine.volume.clone(), Path::new("/db"));
        let taken = databases::snapshot(&place, &into);
        let files = taken.as_ref().ok().map(|manifest| {
            let read = |name: &String| machine.fs.bytes(&into.join(name)).expect("it was just written");
            manifest.files.iter().map(|(name, _)| (name.clone(), read(name))).collect()
        });
        let _ = machine.volume.remove_dir_all(&into);
        let delay = self.network.delay() * 4;
        match (taken, files) {
            (Ok(manifest), Some(files)) if self.network.connects(n, to) => {
                self.trace.note(self.now, "snapshot", n, manifest.index.0, to as u64);
                let manifest = Box::new(manifest);
                self.later(delay, What::Snapshot { from: n, from_life, to, to_life, term, files, manifest });
            }
            _ => {
                let to = self.machines[to].id;
                self.tell(n, Event::SnapshotSent { to, ok: false });
            }
        }
    }

    fn snapshot_arrives(
        &mut self,
        (from, from_life): (usize, u64),
        (to, to_life): (usize, u64),
        term: u64,
        files: Vec<(String, Vec<u8>)>,
        manifest: Manifest,
    ) {
        let arrived = self.alive(to, to_life) && self.network.connects(from, to);
        let ok = arrived && self.receive_snapshot(from, to, term, files, manifest);
        if self.alive(from, from_life) {
            let to = self.machines[to].id;
            self.tell(from, Event::SnapshotSent { to, ok });
        }
    }

    fn receive_snapshot(
        &mut self,
        from: usize,
        to: usize,
        term: u64,
        files: Vec<(String, Vec<u8>)>,
        manifest: Manifest,
    ) -> bool {
        let sender = self.machines[from].id;
        let machine = &mut self.machines[to];
        let process = machine.process.as_mut().expect("alive");
        process.transfers += 1;
        let directory = PathBuf::from(format!("/db/incoming-{}", process.transfers));
        let written = machine.volume.create_dir_all(&directory).and_then(|()| {
            files.iter().try_for_each(|(name, bytes)| {
                let file = machine.fs.create(&directory.join(name))?;
                file.write_at(&mut [std::io::IoSlice::new(bytes)], 0)?;
                file.sync_data()
            })
        });
        if written.is_err() {
            let _ = machine.volume.remove_dir_all(&directory);
            return false;
        }
        if let Some(older) = process.received.take() {
            let _ = machine.volume.remove_dir_all(&older.directory);
        }
        let (index, index_term) = (manifest.index, manifest.term);
        process.received = Some(Received { directory, manifest });
        let term = quorate_model::id::Term(term);
        self.tell(to, Event::SnapshotReceived { from: sender, term, index, index_term });
        true
    }

    fn install(&mut self, n: usize, incoming: &Path, manifest: &Manifest, hard_state: (u64, u64, u64)) {
        let process = self.machines[n].process.as_mut().expect("alive");
        process.reader = None;
        if let Err(error) = process.databases.install(incoming, manifest) {
            let why = chain(&error);
            self.gives_up(n, &format!("cannot install a snapshot: {why}"));
            return;
        }
        process.reader = process.databases.readers().reader().ok();
        process.checkpointer = process.databases.checkpointer();
        let (index, term) = (manifest.index, manifest.term);
        process.applied = index;
        process.log_jobs.push_back(LogJob::Reset { index, term, hard_state });
        self.trace.note(self.now, "installed", n, index.0, term.0);
        let promised = &mut self.machines[n].promised;
        promised.last = promised.last.min(index.0);
        self.show(&Seen::Installed { machine: n, index });
        self.drive_log(n);
    }

    // ── The agent ───────────────────────────────────────────────────────────────────────────────

    pub(crate) fn agent_changed(&mut self, n: usize) {
        let statuses = self.machines[n].agent.statuses();
        self.tell(n, Event::Replicas(statuses));
        self.agent_due(n);
    }

    fn assigned(&mut self, n: usize, life: u64, assignment: Assignment) {
        if !self.alive(n, life) {
            return;
        }
        let now = self.now;
        if let Some(again) = self.machines[n].paused(now) {
            self.at(again, What::Assigned { machine: n, life, assignment: Box::new(assignment) });
            return;
        }
        self.trace.say(now, format_args!("n{} is assigned revision {}", n + 1, assignment.revision));
        if let Some(obeyed) = self.machines[n].agent.offer(now, assignment, &mut self.dice) {
            let (revision, before) = (obeyed.revision, obeyed.before);
            self.trace.note(now, "obeys", n, revision.0, before.map_or(0, |before| before.0));
            self.show(&Seen::Assigned { machine: n, revision });
            self.agent_changed(n);
        }
    }

    fn agent_due(&mut self, n: usize) {
        if let Some(next) = self.machines[n].agent.next() {
            self.at(next, What::Agent { machine: n });
        }
    }

    fn agent_moves(&mut self, n: usize) {
        if self.machines[n].agent.advance(self.now) {
            self.trace.note(self.now, "replica", n, 0, 0);
            self.agent_changed(n);
        }
    }

    /// The machines whose servers run.
    pub(crate) fn living(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|n| self.machines[*n].process.is_some()).collect()
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |n: &usize| self.machines[*n].process.as_ref().is_some_and(|process| process.node.leads());
        self.living()
            .into_iter()
            .filter(leads)
            .max_by_key(|n| self.machines[*n].process.as_ref().map(|process| process.node.term()))
    }

    /// The highest index that a living machine has applied.
    pub(crate) fn newest_applied(&self) -> LogIndex {
        let applied = |machine: &Machine| machine.process.as_ref().map(|process| process.applied);
        self.machines.iter().filter_map(applied).max().unwrap_or_default()
    }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
