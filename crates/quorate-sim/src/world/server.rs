//! What stands for `quorate serve`: a process starts, takes turns, has its effects carried out, ends;
//! and the agent beside it.

use super::{What, World, chain};
use crate::machine::{ApplyJob, LogJob, Received, Standing, StartError};
use crate::network::SILENCE;
use crate::seen::Seen;
use quorate_agent_core::BootTime;
use quorate_model::assignment::Assignment;
use quorate_model::id::ReplicaId;
use quorate_model::planted::{Bug, planted};
use quorate_model::time::Timestamp;
use quorate_node::consensus::Content;
use quorate_node::{Effect, Event};
use quorate_store::log;
use quorate_store::storage::OpenStorageError;
use quorate_store::volume::Volume as _;
use std::time::Duration;

/// How long an assignment is on its way from the core to the agent.
const ASSIGNING: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(40));

impl World {
    /// Starts a machine's server, unless it must stay off.
    pub(crate) fn start(&mut self, n: usize) {
        let now = self.now;
        let machine = &mut self.machines[n];
        // An expelled server goes on trying for as long as things go wrong.
        let stays_out = match machine.standing {
            Standing::Spare | Standing::Joining => true,
            Standing::Expelled => self.faults.are_over(),
            Standing::Member => false,
        };
        if machine.process.is_some() || machine.broken || machine.off || stays_out {
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
        machine.agent.start(machine.moment(now), &mut self.dice);
        let statuses = machine.agent.statuses();
        let process = machine.process.as_mut().expect("just started");
        process.inbox.push(Event::Replicas(statuses));
        let applied = process.applied;
        self.trace.note(now, "starts", n, life, applied.0);
        let process = self.machines[n].process.as_ref().expect("just started");
        let (state, found, (runs, before)) =
            (process.databases.state().clone(), process.durable, process.found.clone());
        let configured = process.databases.voters_as_of();
        let promised = std::mem::replace(&mut self.machines[n].promised, found);
        self.show(&Seen::Started { machine: n, state: &state, promised, found, runs: &runs, before, configured });
        for other in (0..self.machines.len()).filter(|other| *other != n) {
            // Whom it calls it says in its first turn.
            self.network.link(n, other).up = false;
        }
        let soon = self.dice.between(2_000, 20_000);
        self.later(Duration::from_millis(soon), What::Housekeeping { machine: n, life });
        self.singles_changed(n);
        self.agent_due(n);
        self.wake(n, now);
    }

    /// A machine's server ends: by itself or by `kill -9`, or with its power.
    pub(crate) fn end(&mut self, n: usize, power: Option<u64>) {
        if self.machines[n].process.is_none() {
            if power.is_some() {
                self.machines[n].end(power);
                self.singles_changed(n);
            }
            return;
        }
        self.trace.note(self.now, if power.is_some() { "power" } else { "killed" }, n, self.machines[n].life, 0);
        let waiting = self.machines[n].process.as_ref().map(|it| {
            it.waiters.values().chain(it.readers.values().map(|(client, _)| client)).copied().collect::<Vec<u32>>()
        });
        self.machines[n].agent.stop();
        self.machines[n].end(power);
        self.singles_changed(n);
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
    pub(super) fn gives_up(&mut self, n: usize, why: &str) {
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

    pub(super) fn alive(&self, n: usize, life: u64) -> bool {
        self.machines[n].life == life && self.machines[n].process.is_some()
    }

    /// Gives a node something to think about.
    pub(crate) fn tell(&mut self, n: usize, event: Event) {
        let Some(process) = &mut self.machines[n].process else { return };
        process.inbox.push(event);
        self.wake(n, self.now);
    }

    pub(super) fn wake(&mut self, n: usize, at: Timestamp) {
        let at = at.max(self.machines[n].paused_until).max(self.now);
        let life = self.machines[n].life;
        let Some(process) = &mut self.machines[n].process else { return };
        if process.next_turn.is_none_or(|next| next > at) {
            process.next_turn = Some(at);
            self.at(at, What::Turn { machine: n, life });
        }
    }

    pub(super) fn turn(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        let (now, paused) = (self.now, self.machines[n].paused_until);
        let process = self.machines[n].process.as_mut().expect("alive");
        if process.next_turn != Some(now) {
            return;
        }
        process.next_turn = None;
        if paused > now {
            self.wake(n, paused);
            return;
        }
        self.machines[n].read_lease_clocks(now);
        let clocks = self.machines[n].clocks(now);
        let process = self.machines[n].process.as_mut().expect("alive");
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
        if let Some(process) = self.machines[n].process.as_ref().filter(|_| self.violation.is_none()) {
            let seen = Seen::Configured { machine: n, node: &process.node };
            self.violation = self.invariants.see(now, &seen).err();
        }
        if self.alive(n, life) {
            // A node that wants to be woken at once must not stop time.
            self.wake(n, wake.max(now.plus(Duration::from_micros(100))));
        }
    }

    pub(super) fn perform(&mut self, n: usize, effect: Effect) {
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
                let joint = entries.iter().any(|entry| match &entry.content {
                    Content::Data(_) => false,
                    Content::Configuration(configuration) => configuration.is_joint(),
                });
                process.apply_jobs.push_back(ApplyJob::Apply(entries));
                self.drive_apply(n);
                if joint {
                    self.ambush(n, 100);
                }
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
            Effect::Transferred { .. } => {}
            // People ask for it, and there are none.
            Effect::Surveyed { survey, .. } => self.surveyed = Some(survey),
            Effect::Changed => self.keeper_due(n),
            // Nobody asks for drills here: cut networks are a fault of the simulator's own.
            Effect::GoAway { .. } => {}
            Effect::Peers(peers) => self.call(n, &peers),
            Effect::HandedOver => self.says_goodbye(n),
            Effect::Left => self.has_left(n),
            // Nobody puts old disks back here, and nobody runs twice.
            Effect::MustEnd(why) => self.broken("nobody_forgets", format!("n{}: {why}", n + 1)),
            Effect::Assign(assignment) => {
                // The agent is somebody else: it hears late of it, and may hear of the next one before.
                let life = self.machines[n].life;
                let delay = self.dice.span(ASSIGNING);
                self.later(delay, What::Assigned { machine: n, life, assignment: Box::new(assignment) });
            }
            Effect::Hold(held) => {
                let clocks = &process.lease_clocks;
                let boot = |time: Duration| BootTime::from_nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                let now = boot(clocks.boot_time(Timestamp::default()));
                let at = |until| quorate_agent_core::lease::deadline(now, boot(clocks.boot_time(until))).since_boot();
                let held = held.iter().map(|held| (held.replica, held.epoch, at(held.until))).collect();
                let life = self.machines[n].life;
                let delay = self.dice.span(ASSIGNING);
                self.later(delay, What::Held { machine: n, life, held });
            }
            Effect::SendSnapshot { to, term } => self.send_snapshot(n, to, term.0),
            Effect::InstallSnapshot { index, hard_state, .. } => {
                let received = process.received.take().filter(|received| received.manifest.index == index);
                if self.violation.is_none() {
                    let configured = received.as_ref().map_or(index, |received| received.manifest.voters_as_of);
                    let installs = Seen::Installs { machine: n, configured };
                    self.violation = self.invariants.see(self.now, &installs).err();
                }
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

    /// A process that was stopped goes on.
    pub(crate) fn resume(&mut self, n: usize) {
        self.wake(n, self.now);
    }

    pub(crate) fn agent_changed(&mut self, n: usize) {
        let statuses = self.machines[n].agent.statuses();
        self.show(&Seen::Reported { statuses: &statuses });
        self.tell(n, Event::Replicas(statuses));
        self.agent_due(n);
    }

    pub(super) fn assigned(&mut self, n: usize, life: u64, assignment: Assignment) {
        if !self.alive(n, life) {
            return;
        }
        let now = self.now;
        if let Some(again) = self.machines[n].paused(now) {
            self.at(again, What::Assigned { machine: n, life, assignment: Box::new(assignment) });
            return;
        }
        self.trace.say(now, format_args!("n{} is assigned revision {}", n + 1, assignment.revision));
        let moment = self.machines[n].moment(now);
        if let Some(obeyed) = self.machines[n].agent.offer(moment, assignment, &mut self.dice) {
            let (revision, before) = (obeyed.revision, obeyed.before);
            self.trace.note(now, "obeys", n, revision.0, before.map_or(0, |before| before.0));
            self.show(&Seen::Assigned { machine: n, revision });
            self.singles_changed(n);
            self.agent_changed(n);
        }
    }

    pub(super) fn held(&mut self, n: usize, life: u64, held: Vec<(ReplicaId, u64, Duration)>) {
        if !self.alive(n, life) {
            return;
        }
        if let Some(again) = self.machines[n].paused(self.now) {
            self.at(again, What::Held { machine: n, life, held });
            return;
        }
        let (moment, before) = (self.machines[n].moment(self.now), self.machines[n].agent.singles());
        self.machines[n].agent.hold(moment, &held, &mut self.dice);
        if self.machines[n].agent.singles() != before {
            self.trace.note(self.now, "holds", n, held.len() as u64, 0);
            self.singles_changed(n);
            self.agent_changed(n);
        }
        self.arm(n);
    }

    /// Plans the next look at a machine's timers. Its clock may go another way until then.
    pub(crate) fn arm(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        let Some(next) = machine.agent.next_timer() else { return };
        let at = machine.clock.when_boot(self.now, next);
        if machine.timer.is_none_or(|planned| planned > at) {
            machine.timer = Some(at);
            self.at(at, What::Timer { machine: n });
        }
    }

    /// Whatever becomes of the server: this is the replica's own.
    pub(super) fn timer_fires(&mut self, n: usize) {
        if self.machines[n].timer != Some(self.now) {
            return;
        }
        self.machines[n].timer = None;
        let boot = self.machines[n].clock.boot(self.now);
        if self.machines[n].agent.expire(boot) {
            self.trace.note(self.now, "over", n, 0, 0);
            self.singles_changed(n);
            self.agent_changed(n);
        }
        if !planted(Bug::KillTimerOff) {
            self.arm(n);
        }
    }

    fn singles_changed(&mut self, n: usize) {
        let running = self.machines[n].agent.singles();
        self.show(&Seen::Singles { machine: n, running: &running });
    }

    pub(super) fn agent_due(&mut self, n: usize) {
        if let Some(next) = self.machines[n].agent.next() {
            self.at(next, What::Agent { machine: n });
        }
    }

    pub(super) fn agent_moves(&mut self, n: usize) {
        if self.machines[n].agent.advance(self.now) {
            self.trace.note(self.now, "replica", n, 0, 0);
            self.singles_changed(n);
            self.agent_changed(n);
        }
    }
}
