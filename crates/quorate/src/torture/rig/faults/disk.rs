//! Power that fails, and disks that are full, slow, or refuse to sync.

use super::process::is_the_one;
use super::{Active, Begun, OWN_TABLE, PADDING, PADDING_ROW, millis, within};
use crate::dev::{procfs, signal};
use crate::torture::fault::FaultKind;
use crate::torture::rig::dice::Dice;
use crate::torture::rig::process::ended_within;
use crate::torture::rig::trace::{self, Sync, Trace, Whom};
use crate::torture::rig::{Rig, RigError};
use rustix::process::Signal;
use serde_json::json;
use std::time::Duration;

/// How long a fault that needs writes by somebody else waits for them.
const WRITES: Duration = Duration::from_secs(20);
/// A server whose sync failed must be gone after this.
const STOPS: Duration = Duration::from_secs(10);
/// What is killed is gone at once, or after what the kernel is just doing for it.
const GONE: Duration = Duration::from_secs(10);
/// From an error of the disk to the end of the server it is a few lines of code.
const ABOUT_TO_STOP: Duration = Duration::from_millis(500);

impl Rig {
    /// In the order of a real power cut: the cable is silent, the disk forgets, the processes are gone.
    pub(super) fn lose_power(&mut self, kind: FaultKind, nodes: Vec<usize>) -> Result<Begun, RigError> {
        let not = |why: String| RigError::NotInjected { kind, why };
        for node in &nodes {
            let disk =
                self.nodes[*node].seat.disk.as_ref().ok_or_else(|| not("the node has no disk of its own".into()))?;
            disk.plant().map_err(|error| not(format!("no canary can be written: {error}")))?;
        }
        for node in &nodes {
            let this = &mut self.nodes[*node];
            (this.busy, this.excused) = (true, true);
            if let Some(network) = &self.network {
                network.unplug(this.seat.port);
            }
        }
        // While the disks can still say which they are.
        let replicas: Vec<procfs::Process> = nodes
            .iter()
            .flat_map(|node| procfs::replica_processes(&self.nodes[*node].data_dir, self.nodes[*node].pid()))
            .filter_map(procfs::process)
            .collect();
        let mut problem = None;
        for node in &nodes {
            let this = &mut self.nodes[*node];
            if let Some(Err(error)) = this.seat.disk.as_ref().map(|disk| disk.cut_power()) {
                problem = Some(format!("the disk of {} did not go off: {error}", this.name));
            }
            if let Some(pid) = this.pid() {
                signal(pid, Signal::KILL);
            }
        }
        replicas.iter().filter(|process| is_the_one(process)).for_each(|process| signal(process.pid, Signal::KILL));
        if !within(GONE, || !replicas.iter().any(is_the_one)) {
            problem = Some("a replica did not die with its machine".into());
        }
        let mut seen = String::new();
        for node in &nodes {
            self.take_down(*node);
            let this = &mut self.nodes[*node];
            // What it said after its disk was gone.
            self.deaths.extend(this.look());
            this.excused = false;
            let Some(disk) = &this.seat.disk else { continue };
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

    pub(super) fn fill_disk(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let this = &mut self.nodes[node];
        let disk = this
            .seat
            .disk
            .as_ref()
            .ok_or(RigError::NoTarget { kind, why: "the node has no disk of its own".into() })?;
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

    pub(super) fn empty_disk(&mut self, kind: FaultKind, node: usize) -> Result<String, RigError> {
        let this = &mut self.nodes[node];
        let emptied = this.seat.disk.as_ref().map_or(Ok(()), |disk| disk.empty());
        let stopped = self.after_the_disk(kind, node)?;
        emptied.map_err(|error| RigError::NotInjected { kind, why: format!("the filler was not there: {error}") })?;
        Ok(match stopped {
            Some(how) => format!("it had stopped with {how} and answers again"),
            None => "it went on, and answers".into(),
        })
    }

    /// The disk works again: starts the server if it has stopped, which it may.
    pub(super) fn after_the_disk(&mut self, kind: FaultKind, node: usize) -> Result<Option<String>, RigError> {
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

    pub(super) fn fail_sync(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
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
                    .exec_value(this.seat.api, PADDING_ROW, &padding)
                    .or_else(|| self.ask.exec_value(this.seat.api, OWN_TABLE, &json!([])));
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

    pub(super) fn slow_disk(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
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

    pub(super) fn normal_disk(&mut self, kind: FaultKind, node: usize, trace: Trace) -> Result<String, RigError> {
        let evidence = slowest(&trace.injected());
        let detached = trace.detach();
        self.wait_back(kind, node)?;
        detached.map_err(|error| RigError::NotInjected { kind, why: error.to_string() })?;
        Ok(evidence)
    }

    pub(super) fn trace(&mut self, kind: FaultKind, node: usize, whom: Whom, sync: Sync) -> Result<Trace, RigError> {
        let output = self.ground.dir.join(format!("strace-{}-{}", self.nodes[node].name, self.next));
        Trace::attach(whom, sync, &output).map_err(|error| RigError::NotInjected { kind, why: error.to_string() })
    }
}

/// For the record: how many syncs were slow, and how slow.
fn slowest(injected: &[String]) -> String {
    let most = injected.iter().filter_map(|line| trace::took(line)).max().unwrap_or_default();
    format!("{} syncs were delayed, the slowest took {}", injected.len(), millis(most))
}
