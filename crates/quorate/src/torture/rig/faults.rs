//! How each fault begins and ends, and what proves it.

use super::clock;
use super::dice::Dice;
use super::network::{Effect, Link, Network, Port, RuleId, between};
use super::process::{ended_within, ending, is_stopped};
use super::trace::{self, Sync, Trace, Whom};
use super::{BACK, LOOK_EVERY, Rig, RigError};
use crate::dev::signal;
use crate::torture::fault::FaultKind;
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long a fault that needs writes by somebody else waits for them.
const WRITES: Duration = Duration::from_secs(20);
/// A server whose sync failed must be gone after this.
const STOPS: Duration = Duration::from_secs(10);
/// From an error of the disk to the end of the server it is a few lines of code.
const ABOUT_TO_STOP: Duration = Duration::from_millis(500);
/// The kernel stops and continues threads at once, or after what they are just doing.
const STOPPED: Duration = Duration::from_secs(2);
/// How long the others may take to forget what a node that was away needs, and that node to get it all.
const FORGET: Duration = Duration::from_secs(30);
const INSTALL: Duration = Duration::from_secs(60);
/// What the rig writes to make the others forget faster than the workload alone would.
const PADDING: usize = 64 << 10;
const OWN_TABLE: &str = "CREATE TABLE IF NOT EXISTS torture_rig(n INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT";
const PADDING_ROW: &str = "INSERT OR REPLACE INTO torture_rig VALUES (1, ?)";
const TIME_ROW: &str = "INSERT OR REPLACE INTO torture_rig VALUES (2, unixepoch('now')) RETURNING text";
/// How far a clock jumps, in seconds.
const JUMP: i64 = 3_600;
/// The log's time may be off the true one by this, in seconds: far less than a jump.
const SAME_TIME: i64 = 300;
/// Two looks at clocks that agree, in seconds.
const SAME_SECOND: i64 = 2;
/// How soon a server sees that its clock has jumped: libfaketime looks into its file now and then.
const FOLLOWS: Duration = Duration::from_secs(8);
/// Packets that show what a lossy, slow or repeating link does.
const SAMPLE: u32 = 100;
const SAMPLE_WAIT: Duration = Duration::from_millis(600);

/// A fault in force, and what is needed to end it.
#[derive(Debug)]
pub(super) enum Active {
    /// These do not run; those whose cable is out of the wall get it back.
    Down {
        nodes: Vec<usize>,
        dark: bool,
    },
    Paused {
        node: usize,
    },
    /// A rule of the switch, and a link that it is about.
    Rule {
        rule: RuleId,
        probe: Link,
    },
    Full {
        node: usize,
    },
    Slow {
        node: usize,
        trace: Trace,
    },
    Clock {
        node: usize,
    },
    /// Killed, after it had applied so much.
    Away {
        node: usize,
        applied: u64,
    },
}

/// What a fault is when it has begun: itself, the nodes it hits, what it is, what proves it.
type Begun = (Active, Vec<String>, String, String);

impl Rig {
    pub(super) fn begin(&mut self, kind: FaultKind, choice: u64) -> Result<Begun, RigError> {
        // A node that is away for a snapshot needs others that go on without it.
        let alone = |kind: FaultKind| kind == FaultKind::Snapshot;
        let mut others = self.active.values().map(|(other, _)| *other);
        if others.any(|other| (alone(kind) && !is_gentle(other)) || (alone(other) && !is_gentle(kind))) {
            return Err(RigError::NoTarget { kind, why: "there is a fault that does not go with it".into() });
        }
        let mut dice = Dice::new(choice);
        match kind {
            FaultKind::Kill => self.kill_one(kind, &mut dice),
            FaultKind::KillAll => self.kill_all(kind),
            FaultKind::PowerLoss => {
                let node = self.victim(kind, &mut dice)?;
                self.lose_power(kind, vec![node])
            }
            FaultKind::PowerLossAll => {
                let all = self.everybody(kind)?;
                self.lose_power(kind, all)
            }
            FaultKind::Pause => self.pause(kind, &mut dice),
            FaultKind::Restart => self.restart(kind, &mut dice),
            FaultKind::PartitionNode
            | FaultKind::PartitionHalves
            | FaultKind::PartitionOneWay
            | FaultKind::PartitionBridge
            | FaultKind::Loss
            | FaultKind::Delay
            | FaultKind::Duplicate => self.disturb(kind, &mut dice),
            FaultKind::DiskFull => self.fill_disk(kind, &mut dice),
            FaultKind::SyncError => self.fail_sync(kind, &mut dice),
            FaultKind::SlowDisk => self.slow_disk(kind, &mut dice),
            FaultKind::ClockJump => self.jump_clock(kind, &mut dice),
            FaultKind::Snapshot => self.send_away(kind, &mut dice),
        }
    }

    /// Ends a fault; what shows that it was one and is over.
    pub(super) fn finish(&mut self, kind: FaultKind, active: Active) -> Result<String, RigError> {
        match active {
            Active::Down { nodes, dark } => self.start_again(kind, &nodes, dark),
            Active::Paused { node } => self.go_on(kind, node),
            Active::Rule { rule, probe } => self.calm(kind, rule, probe),
            Active::Full { node } => self.empty_disk(kind, node),
            Active::Slow { node, trace } => self.normal_disk(kind, node, trace),
            Active::Clock { node } => self.right_clock(kind, node),
            Active::Away { node, applied } => self.return_by_snapshot(kind, node, applied),
        }
    }

    // Whom it hits.

    fn is_free(&self, node: usize) -> bool {
        self.nodes[node].child.is_some() && !self.nodes[node].busy
    }

    /// A node without a fault of its own: every second time the leader, if that is one.
    fn victim(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<usize, RigError> {
        let free: Vec<usize> = (0..self.nodes.len()).filter(|node| self.is_free(*node)).collect();
        let other = dice.pick(&free);
        let leader = match dice.happens(500) {
            true => self.leader().and_then(|name| free.iter().copied().find(|node| self.nodes[*node].name == name)),
            false => None,
        };
        leader.or(other).ok_or(RigError::NoTarget { kind, why: "every node has a fault already".into() })
    }

    fn everybody(&self, kind: FaultKind) -> Result<Vec<usize>, RigError> {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        match all.iter().all(|node| self.is_free(*node)) {
            true => Ok(all),
            false => Err(RigError::NoTarget { kind, why: "a node has a fault already".into() }),
        }
    }

    fn names(&self, nodes: &[usize]) -> Vec<String> {
        nodes.iter().map(|node| self.nodes[*node].name.clone()).collect()
    }

    // Processes.

    fn kill_one(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let how = self.take_down(node);
        let what = format!("killed {}", self.nodes[node].name);
        Ok((Active::Down { nodes: vec![node], dark: false }, self.names(&[node]), what, format!("ended with {how}")))
    }

    fn kill_all(&mut self, kind: FaultKind) -> Result<Begun, RigError> {
        let all = self.everybody(kind)?;
        // All are dead before the first is waited for.
        all.iter().filter_map(|node| self.nodes[*node].pid()).for_each(|pid| signal(pid, Signal::KILL));
        let how: Vec<String> = all.iter().map(|node| self.take_down(*node)).collect();
        let names = self.names(&all);
        let evidence = format!("ended with {}", how.join(", "));
        Ok((Active::Down { nodes: all, dark: false }, names, "killed all servers at once".into(), evidence))
    }

    fn take_down(&mut self, node: usize) -> String {
        self.nodes[node].busy = true;
        self.nodes[node].kill().unwrap_or_else(|| "nothing: it did not run".into())
    }

    fn restart(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let began = Instant::now();
        if let Some(pid) = self.nodes[node].pid() {
            signal(pid, Signal::TERM);
        }
        self.nodes[node].busy = true;
        if let Err(error) = self.nodes[node].ended_orderly(kind) {
            // The finding stands; the node is of use to what follows.
            let _ = self.start_again(kind, &[node], false);
            return Err(error);
        }
        let what = format!("asked {} to end", self.nodes[node].name);
        let evidence = format!("ended with exit status 0 after {}", millis(began.elapsed()));
        Ok((Active::Down { nodes: vec![node], dark: false }, self.names(&[node]), what, evidence))
    }

    /// Starts nodes and waits until each answers.
    fn start_again(&mut self, kind: FaultKind, nodes: &[usize], dark: bool) -> Result<String, RigError> {
        let began = Instant::now();
        for node in nodes {
            if let (true, Some(network)) = (dark, &self.network) {
                network.plug(self.nodes[*node].port);
            }
            if let Err(error) = self.spawn(*node) {
                let why = format!("a server cannot be started again: {error}");
                return Err(RigError::NotInjected { kind, why });
            }
        }
        for node in nodes {
            self.wait_back(kind, *node)?;
        }
        Ok(format!("answers {} after the start", millis(began.elapsed())))
    }

    /// Waits until a node answers; it has no fault of its own from then on.
    fn wait_back(&mut self, kind: FaultKind, node: usize) -> Result<(), RigError> {
        let deadline = Instant::now() + BACK;
        loop {
            if self.answers(&self.nodes[node]) {
                self.nodes[node].busy = false;
                return Ok(());
            }
            let running = self.nodes[node].child.is_some();
            let status = self.nodes[node].child.as_mut().and_then(|child| child.try_wait().ok()?);
            let what = match status {
                Some(status) => format!("after the fault it ended with {}", ending(status)),
                None if !running => "it ended during the fault".into(),
                None if Instant::now() >= deadline => format!("after the fault it does not answer for {BACK:?}"),
                None => {
                    std::thread::sleep(LOOK_EVERY);
                    continue;
                }
            };
            let this = &mut self.nodes[node];
            if status.is_some() {
                // Reported here, and so not once more as an unexpected death.
                this.child = None;
                this.log.complaints();
            }
            this.busy = false;
            return Err(this.broken(kind, what));
        }
    }

    fn pause(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let pid = self.pid(kind, node)?;
        signal(pid, Signal::STOP);
        if !within(STOPPED, || is_stopped(pid)) {
            signal(pid, Signal::CONT);
            return Err(RigError::NotInjected { kind, why: "the process did not stop".into() });
        }
        self.nodes[node].busy = true;
        let what = format!("stopped {} in the middle of things", self.nodes[node].name);
        Ok((Active::Paused { node }, self.names(&[node]), what, "all its threads are in state T".into()))
    }

    fn go_on(&mut self, kind: FaultKind, node: usize) -> Result<String, RigError> {
        let stayed = self.nodes[node].pid().is_some_and(|pid| {
            let stayed = is_stopped(pid);
            signal(pid, Signal::CONT);
            stayed
        });
        self.wait_back(kind, node)?;
        match stayed {
            true => Ok("it stood still until now, and answers again".into()),
            false => Err(RigError::NotInjected { kind, why: "the process went on by itself".into() }),
        }
    }

    fn pid(&self, kind: FaultKind, node: usize) -> Result<u32, RigError> {
        let none = || RigError::NoTarget { kind, why: format!("{} does not run", self.nodes[node].name) };
        self.nodes[node].pid().ok_or_else(none)
    }

    // Power and disks.

    /// In the order of a real power cut: the cable is silent, the disk forgets, the processes are gone.
    fn lose_power(&mut self, kind: FaultKind, nodes: Vec<usize>) -> Result<Begun, RigError> {
        let not = |why: String| RigError::NotInjected { kind, why };
        for node in &nodes {
            let disk = self.nodes[*node].disk.as_ref().ok_or_else(|| not("the node has no disk of its own".into()))?;
            disk.plant().map_err(|error| not(format!("no canary can be written: {error}")))?;
        }
        for node in &nodes {
            let this = &mut self.nodes[*node];
            (this.busy, this.excused) = (true, true);
            if let Some(network) = &self.network {
                network.unplug(this.port);
            }
        }
        let mut problem = None;
        for node in &nodes {
            let this = &mut self.nodes[*node];
            if let Some(Err(error)) = this.disk.as_ref().map(|disk| disk.cut_power()) {
                problem = Some(format!("the disk of {} did not go off: {error}", this.name));
            }
            if let Some(pid) = this.pid() {
                signal(pid, Signal::KILL);
            }
        }
        let mut seen = String::new();
        for node in &nodes {
            self.take_down(*node);
            let this = &mut self.nodes[*node];
            // What it said after its disk was gone.
            self.deaths.extend(this.look());
            this.excused = false;
            let Some(disk) = &this.disk else { continue };
            match disk.remount().map_err(|error| error.to_string()).and_then(|()| disk.check_canaries()) {
                Ok(canaries) => seen = canaries,
                Err(why) => problem = Some(format!("{}: {why}", this.name)),
            }
        }
        if let Some(why) = problem {
            self.start_again(kind, &nodes, true)?;
            return Err(not(why));
        }
        let names = self.names(&nodes);
        let what = format!("cut the power of {}", names.join(", "));
        Ok((Active::Down { nodes, dark: true }, names, what, format!("after the remount {seen}")))
    }

    fn fill_disk(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let this = &mut self.nodes[node];
        let disk =
            this.disk.as_ref().ok_or(RigError::NoTarget { kind, why: "the node has no disk of its own".into() })?;
        this.excused = true;
        let taken = disk.fill().map_err(|error| {
            // Nobody has less room than before.
            let _ = disk.empty();
            RigError::NotInjected { kind, why: error.to_string() }
        });
        let taken = taken.inspect_err(|_| this.excused = false)?;
        this.busy = true;
        let what = format!("filled the disk of {}", this.name);
        let evidence = format!("after {} MiB a write was refused: no space left", taken >> 20);
        Ok((Active::Full { node }, self.names(&[node]), what, evidence))
    }

    fn empty_disk(&mut self, kind: FaultKind, node: usize) -> Result<String, RigError> {
        let this = &mut self.nodes[node];
        let emptied = this.disk.as_ref().map_or(Ok(()), |disk| disk.empty());
        let stopped = self.after_the_disk(kind, node)?;
        emptied.map_err(|error| RigError::NotInjected { kind, why: format!("the filler was not there: {error}") })?;
        Ok(match stopped {
            Some(how) => format!("it had stopped with {how} and answers again"),
            None => "it went on, and answers".into(),
        })
    }

    /// The disk works again: starts the server if it has stopped, which it may.
    fn after_the_disk(&mut self, kind: FaultKind, node: usize) -> Result<Option<String>, RigError> {
        // One that has just been refused a write is about to stop.
        within(ABOUT_TO_STOP, || {
            self.nodes[node].child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
        });
        let this = &mut self.nodes[node];
        self.deaths.extend(this.look());
        this.excused = false;
        let stopped = this.stopped.take();
        match self.nodes[node].child.is_some() {
            true => self.wait_back(kind, node)?,
            false if stopped.is_some() => {
                self.start_again(kind, &[node], false)?;
            }
            // It died of something else, which is reported as that.
            false => self.nodes[node].busy = false,
        }
        Ok(stopped)
    }

    fn fail_sync(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let pid = self.pid(kind, node)?;
        // Most syncs are the log's. Those of SQLite's checkpoints are rare, and a failure of one must
        // not go unnoticed either.
        let checkpoint = trace::thread_named(pid, "checkpoint").filter(|_| dice.happens(250));
        let (whom, whose, number) = match checkpoint {
            Some(tid) => (Whom::Thread { pid, tid }, "a checkpoint's sync", 1),
            None => (Whom::Process(pid), "a sync", 1 + u32::try_from(dice.below(20)).unwrap_or(0)),
        };
        (self.nodes[node].busy, self.nodes[node].excused) = (true, true);
        let trace = match self.trace(kind, node, whom, Sync::FailsOnce { number }) {
            Ok(trace) => trace,
            Err(error) => {
                // It may have had some of the threads by then, and one of their syncs.
                self.after_the_disk(kind, node)?;
                return Err(error);
            }
        };
        let this = &mut self.nodes[node];
        let padding = json!(["x".repeat(PADDING)]);
        let failed = within(WRITES, || {
            if checkpoint.is_some() {
                // There is a checkpoint after so many bytes. Whether it was taken in shows in the trace.
                let _ = self
                    .ask
                    .exec_value(this.api, PADDING_ROW, &padding)
                    .or_else(|| self.ask.exec_value(this.api, OWN_TABLE, &json!([])));
            }
            !trace.injected().is_empty()
        });
        let Some(line) = trace.injected().into_iter().next().filter(|_| failed) else {
            let detached = trace.detach();
            self.after_the_disk(kind, node)?;
            let why = detached.map_or_else(|error| error.to_string(), |()| format!("no sync in {WRITES:?}"));
            return Err(RigError::NotInjected { kind, why });
        };
        let ended = this.child.as_mut().map(|child| ended_within(child, STOPS));
        drop(trace);
        if !matches!(ended, Some(Ok(Some(_)))) {
            let error = this.broken(kind, format!("{whose} failed ({line}) and it went on for {STOPS:?}"));
            (this.busy, this.excused) = (false, false);
            return Err(error);
        }
        self.deaths.extend(this.look());
        this.excused = false;
        let Some(how) = this.stopped.take() else {
            let error = this.broken(kind, format!("{whose} failed ({line}) and it did not stop in an orderly way"));
            this.busy = false;
            return Err(error);
        };
        let what = format!("let {whose} of {} fail once", this.name);
        let evidence = format!("{line}; it stopped with {how}");
        Ok((Active::Down { nodes: vec![node], dark: false }, self.names(&[node]), what, evidence))
    }

    fn slow_disk(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let delay = Duration::from_millis(20 + dice.below(180));
        let whom = Whom::Process(self.pid(kind, node)?);
        let trace = self.trace(kind, node, whom, Sync::Takes(delay))?;
        if !within(WRITES, || !trace.injected().is_empty()) {
            trace.detach().map_err(|error| RigError::NotInjected { kind, why: error.to_string() })?;
            return Err(RigError::NotInjected { kind, why: format!("no sync in {WRITES:?}") });
        }
        self.nodes[node].busy = true;
        let what = format!("each sync of {} takes {} longer", self.nodes[node].name, millis(delay));
        let evidence = slowest(&trace.injected());
        Ok((Active::Slow { node, trace }, self.names(&[node]), what, evidence))
    }

    fn normal_disk(&mut self, kind: FaultKind, node: usize, trace: Trace) -> Result<String, RigError> {
        let evidence = slowest(&trace.injected());
        let detached = trace.detach();
        self.wait_back(kind, node)?;
        detached.map_err(|error| RigError::NotInjected { kind, why: error.to_string() })?;
        Ok(evidence)
    }

    fn trace(&mut self, kind: FaultKind, node: usize, whom: Whom, sync: Sync) -> Result<Trace, RigError> {
        let output = self.dir.join(format!("strace-{}-{}", self.nodes[node].name, self.next));
        Trace::attach(whom, sync, &output).map_err(|error| RigError::NotInjected { kind, why: error.to_string() })
    }

    // The network.

    fn disturb(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        if self.active.values().any(|(_, active)| matches!(active, Active::Rule { .. })) {
            return Err(RigError::NoTarget { kind, why: "the network has a fault already".into() });
        }
        // A node that is down cannot be cut off, and one that stands still would prove nothing.
        let node = self.victim(kind, dice)?;
        let one = self.nodes[node].port;
        let others: Vec<Port> = self.nodes.iter().map(|node| node.port).filter(|port| *port != one).collect();
        let Some(network) = &self.network else {
            return Err(RigError::NoTarget { kind, why: "there is no network of our own".into() });
        };
        let lit: Vec<Port> = others.iter().copied().filter(|port| !network.is_unplugged(*port)).collect();
        let Some(other) = dice.pick(&lit) else {
            return Err(RigError::NoTarget { kind, why: "no other node has power".into() });
        };
        let named = |port: &Port| self.nodes[usize::from(*port) - 1].name.clone();
        let (name, other_name) = (named(&one), named(&other));
        let both = between(&[one], &others);
        let (links, effect, what) = match kind {
            FaultKind::PartitionHalves => {
                // Of five nodes two are alone together, and could agree on something that no majority knows.
                let friend = others.iter().copied().find(|port| *port != other).filter(|_| self.nodes.len() > 4);
                let minority: Vec<Port> = std::iter::once(one).chain(friend).collect();
                let majority: Vec<Port> = others.iter().copied().filter(|port| !minority.contains(port)).collect();
                let names = |ports: &[Port]| ports.iter().map(named).collect::<Vec<_>>().join("+");
                let what = format!("{} and {} do not hear each other", names(&minority), names(&majority));
                (between(&minority, &majority), Effect::Cut, what)
            }
            FaultKind::PartitionOneWay if dice.happens(500) => {
                let links = both.into_iter().filter(|(from, _)| *from == one).collect();
                (links, Effect::Cut, format!("nobody hears {name}, which hears all"))
            }
            FaultKind::PartitionOneWay => {
                let links = both.into_iter().filter(|(_, to)| *to == one).collect();
                (links, Effect::Cut, format!("{name} hears nobody, and all hear it"))
            }
            FaultKind::PartitionBridge => {
                let links = between(&[one], &[other]);
                (links, Effect::Cut, format!("{name} and {other_name} do not hear each other, others hear both"))
            }
            FaultKind::Loss => {
                let per_mille = 100 + u16::try_from(dice.below(300)).unwrap_or(0);
                (both, Effect::Lose(per_mille), format!("{} % of the packets of {name} are lost", per_mille / 10))
            }
            FaultKind::Duplicate => {
                let per_mille = 200 + u16::try_from(dice.below(600)).unwrap_or(0);
                (both, Effect::Repeat(per_mille), format!("{} % of the packets of {name} arrive twice", per_mille / 10))
            }
            FaultKind::Delay => {
                let least = Duration::from_millis(1 + dice.below(20));
                let most = least + Duration::from_millis(20 + dice.below(80));
                let what = format!("packets of {name} take {} to {}", millis(least), millis(most));
                (both, Effect::Hold(least, most), what)
            }
            _ => (both, Effect::Cut, format!("{name} and the others do not hear each other")),
        };
        let link = if links.contains(&(one, other)) { (one, other) } else { (other, one) };
        let (rule, evidence) =
            prove(network, links, effect, link).map_err(|why| RigError::NotInjected { kind, why })?;
        Ok((Active::Rule { rule, probe: link }, vec![name], what, evidence))
    }

    /// Ends a fault of the network: the same packets pass again.
    fn calm(&mut self, kind: FaultKind, rule: RuleId, probe: Link) -> Result<String, RigError> {
        let Some(network) = &self.network else { return Ok(String::new()) };
        let count = network.remove(rule);
        if network.is_unplugged(probe.0) || network.is_unplugged(probe.1) {
            return Ok(format!("{count} frames were met by it; a node without power cannot be probed"));
        }
        match network.passes(probe) {
            Ok(true) => Ok(format!("{count} frames were met by it; a probe passes again")),
            Ok(false) => Err(RigError::NotInjected { kind, why: "a probe does not pass after the fault".into() }),
            Err(error) => Err(RigError::NotInjected { kind, why: error.to_string() }),
        }
    }

    // Time.

    fn jump_clock(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let pid = self.pid(kind, node)?;
        let seconds = if dice.happens(500) { JUMP } else { -JUMP };
        let not = |why: String| RigError::NotInjected { kind, why };
        let this = &self.nodes[node];
        let Some(clock) = &this.clock else { return Err(not("the node has no clock of its own".into())) };
        if !clock::is_ruled(pid) {
            return Err(not("libfaketime is not in force in the server".into()));
        }
        let before = self.log_time(node);
        clock.shift(seconds).map_err(|error| not(error.to_string()))?;
        if !self.clock_is_off(node, seconds) {
            // It was right before.
            let _ = clock.shift(0);
            return Err(not(format!("the server's clock did not follow in {FOLLOWS:?}")));
        }
        let after = self.log_time(node);
        let alone = self.nodes.iter().all(|node| node.child.is_some() && !node.busy) && self.active.is_empty();
        let wrong = |off: Option<i64>| off.is_some_and(|off| off.abs() > SAME_TIME);
        // While nodes are away, two clocks that differ cannot outvote each other.
        if alone && !wrong(before) && wrong(after) {
            let _ = clock.shift(0);
            let off = after.unwrap_or_default();
            return Err(this.broken(kind, format!("its clock jumped by {seconds:+} s and the log's by {off:+} s")));
        }
        let log = after.map_or("no write was answered".into(), |off| format!("the log's time is off by {off} s"));
        let what = format!("the clock of {} jumped by {seconds:+} s", this.name);
        let evidence = format!("the node's own clock shows it; {log}");
        self.nodes[node].busy = true;
        Ok((Active::Clock { node }, self.names(&[node]), what, evidence))
    }

    fn right_clock(&mut self, kind: FaultKind, node: usize) -> Result<String, RigError> {
        let shifted = self.nodes[node].clock.as_ref().map_or(Ok(()), |clock| clock.shift(0));
        shifted.map_err(|error| RigError::NotInjected { kind, why: error.to_string() })?;
        self.wait_back(kind, node)?;
        match self.clock_is_off(node, 0) {
            true => Ok("the clock is right again, and the node answers".into()),
            false => Err(RigError::NotInjected { kind, why: "the server's clock did not jump back".into() }),
        }
    }

    /// Waits until a node's own clock, which a local read shows, is off by so much.
    fn clock_is_off(&self, node: usize, seconds: i64) -> bool {
        within(FOLLOWS, || {
            let now = self.ask.local(self.nodes[node].api, "SELECT unixepoch('now')").and_then(|now| now.as_i64());
            now.is_some_and(|now| (now - clock::now() - seconds).abs() <= SAME_SECOND)
        })
    }

    /// By how many seconds the time that is written is off: that of the log, which the most agree on.
    fn log_time(&self, node: usize) -> Option<i64> {
        let api = self.nodes[node].api;
        let ask = || self.ask.exec_value(api, TIME_ROW, &json!([]))?.as_str()?.parse::<i64>().ok();
        let told = ask().or_else(|| {
            self.ask.exec_value(api, OWN_TABLE, &json!([]));
            ask()
        })?;
        Some(told - clock::now())
    }

    // Snapshots.

    fn send_away(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let Some(overview) = self.ask.status(self.nodes[node].api) else {
            return Err(RigError::NoTarget { kind, why: format!("{} does not answer", self.nodes[node].name) });
        };
        // It may apply more before it dies, and the others keep what comes after this for a while.
        let how = self.take_down(node);
        let applied = (0..self.nodes.len()).filter(|other| *other != node).filter_map(|other| self.applied(other));
        let applied = applied.max().unwrap_or(0).max(overview.cluster.applied.0);
        let what = format!("{} is away until the others have forgotten what it needs", self.nodes[node].name);
        let evidence = format!("ended with {how} at index {applied} or before");
        Ok((Active::Away { node, applied }, self.names(&[node]), what, evidence))
    }

    fn return_by_snapshot(&mut self, kind: FaultKind, node: usize, applied: u64) -> Result<String, RigError> {
        let forgotten = self.make_forget(node, applied);
        let from = self.nodes[node].log.length();
        self.start_again(kind, &[node], false)?;
        if !forgotten {
            let why = format!("the leader still had all that {} needs after {FORGET:?}", self.nodes[node].name);
            return Err(RigError::NotInjected { kind, why });
        }
        let began = Instant::now();
        let installed = |rig: &Rig| rig.nodes[node].log.after(from).contains("installed a snapshot");
        let caught_up = |rig: &Rig| rig.applied(node).is_some_and(|now| now > applied);
        within(INSTALL, || installed(self) || caught_up(self));
        match (installed(self), caught_up(self)) {
            (true, _) => Ok(format!("installed a snapshot {} after it was back", millis(began.elapsed()))),
            (false, true) => {
                let why = "another node led, which still had all that it needs".into();
                Err(RigError::NotInjected { kind, why })
            }
            (false, false) => {
                let what = format!("it needs a snapshot and has none after {INSTALL:?}");
                Err(self.nodes[node].broken(kind, what))
            }
        }
    }

    fn applied(&self, node: usize) -> Option<u64> {
        self.ask.status(self.nodes[node].api).map(|overview| overview.cluster.applied.0)
    }

    /// Writes until the leader's log begins after what `node` needs next.
    fn make_forget(&self, node: usize, applied: u64) -> bool {
        let text = "x".repeat(PADDING);
        let deadline = Instant::now() + FORGET;
        let mut leader = None;
        while Instant::now() < deadline {
            let Some(at) = leader.or_else(|| self.leading(node)) else {
                std::thread::sleep(LOOK_EVERY);
                continue;
            };
            if first_in_log(&self.nodes[at].data_dir).is_some_and(|first| first > applied + 1) {
                return true;
            }
            let api = self.nodes[at].api;
            let written = self.ask.exec_value(api, PADDING_ROW, &json!([text])).is_some()
                || self.ask.exec_value(api, OWN_TABLE, &json!([])).is_some();
            leader = Some(at).filter(|_| written);
        }
        false
    }

    fn leading(&self, but: usize) -> Option<usize> {
        let name = self.leader()?;
        self.nodes.iter().position(|node| node.name == name).filter(|leader| *leader != but)
    }
}

/// Faults with which all nodes go on, if more slowly.
fn is_gentle(kind: FaultKind) -> bool {
    use FaultKind::{ClockJump, Delay, Duplicate, Loss, SlowDisk};
    matches!(kind, ClockJump | Delay | Duplicate | Loss | SlowDisk)
}

/// Index of the first entry that a node's log still has.
fn first_in_log(data_dir: &std::path::Path) -> Option<u64> {
    let files = std::fs::read_dir(data_dir.join("log")).ok()?.flatten();
    let first = |name: &str| u64::from_str_radix(name.strip_prefix("log-")?.strip_suffix(".seg")?, 16).ok();
    files.filter_map(|file| first(file.file_name().to_str()?)).min()
}

/// Puts a rule in force, and sees it at work on a packet that passed before.
fn prove(network: &Network, links: BTreeSet<Link>, effect: Effect, link: Link) -> Result<(RuleId, String), String> {
    let io = |error: std::io::Error| error.to_string();
    if !network.passes(link).map_err(io)? {
        return Err("a probe does not pass even before the fault".into());
    }
    let rule = network.add(links, effect);
    let seen = || -> Result<String, String> {
        if effect == Effect::Cut {
            return match network.is_cut(link).map_err(io)? {
                true => Ok("a probe passed before and is dropped now".into()),
                false => Err("a probe passes although the link is cut".into()),
            };
        }
        let arrived = network.probe(link, SAMPLE, SAMPLE_WAIT).map_err(io)?;
        let numbers: BTreeSet<u32> = arrived.iter().map(|(number, _)| *number).collect();
        let (lost, twice) = (SAMPLE as usize - numbers.len(), arrived.len() - numbers.len());
        let late = arrived.windows(2).filter(|pair| pair[1].0 < pair[0].0).count();
        let slowest = arrived.iter().map(|(_, took)| *took).max().unwrap_or_default();
        match effect {
            Effect::Lose(_) if lost > 0 => Ok(format!("{lost} of {SAMPLE} probes were lost")),
            Effect::Repeat(_) if twice > 0 => Ok(format!("{twice} of {SAMPLE} probes arrived twice")),
            Effect::Hold(least, _) if late > 0 && slowest > least => {
                Ok(format!("{late} of {SAMPLE} probes were overtaken, the slowest took {}", millis(slowest)))
            }
            _ => Err(format!("{SAMPLE} probes show nothing: {lost} lost, {twice} twice, {late} overtaken")),
        }
    };
    match seen() {
        Ok(seen) => Ok((rule, seen)),
        Err(why) => {
            network.remove(rule);
            Err(why)
        }
    }
}

/// For the record: how many syncs were slow, and how slow.
fn slowest(injected: &[String]) -> String {
    let most = injected.iter().filter_map(|line| trace::took(line)).max().unwrap_or_default();
    format!("{} syncs were delayed, the slowest took {}", injected.len(), millis(most))
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// Whether something becomes true in time.
fn within(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
