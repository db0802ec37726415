//! Servers that die, stand still, or are asked to end.

use super::{Active, Begun, millis, within};
use crate::dev::{procfs, signal};
use crate::torture::fault::FaultKind;
use crate::torture::rig::dice::Dice;
use crate::torture::rig::process::{ending, is_stopped};
use crate::torture::rig::{BACK, LOOK_EVERY, Rig, RigError};
use crate::torture::workload::services::is_copy;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The kernel stops and continues threads at once, or after what they are just doing.
const STOPPED: Duration = Duration::from_secs(2);

impl Rig {
    pub(super) fn kill_one(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let how = self.take_down(node);
        let what = format!("killed {}", self.nodes[node].name);
        Ok((Active::Down { nodes: vec![node], dark: false }, self.names(&[node]), what, format!("ended with {how}")))
    }

    pub(super) fn kill_all(&mut self, kind: FaultKind) -> Result<Begun, RigError> {
        let all = self.everybody(kind)?;
        // All are dead before the first is waited for.
        all.iter().filter_map(|node| self.nodes[*node].pid()).for_each(|pid| signal(pid, Signal::KILL));
        let how: Vec<String> = all.iter().map(|node| self.take_down(*node)).collect();
        let names = self.names(&all);
        let evidence = format!("ended with {}", how.join(", "));
        Ok((Active::Down { nodes: all, dark: false }, names, "killed all servers at once".into(), evidence))
    }

    pub(in crate::torture::rig) fn take_down(&mut self, node: usize) -> String {
        self.nodes[node].busy = true;
        self.nodes[node].kill().unwrap_or_else(|| "nothing: it did not run".into())
    }

    pub(super) fn restart(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
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
    pub(super) fn start_again(&mut self, kind: FaultKind, nodes: &[usize], dark: bool) -> Result<String, RigError> {
        let began = Instant::now();
        for node in nodes {
            if let (true, Some(network)) = (dark, &self.network) {
                network.plug(self.nodes[*node].seat.port);
            }
            if let Err(error) = self.spawn(*node) {
                let why = format!("a server cannot be started again: {error}");
                return Err(RigError::NotInjected { kind, why });
            }
        }
        // Each is waited for, also when one has not come back: the others are of use to what follows.
        let back: Vec<Result<(), RigError>> = nodes.iter().map(|node| self.wait_back(kind, *node)).collect();
        back.into_iter().collect::<Result<(), RigError>>()?;
        Ok(format!("answers {} after the start", millis(began.elapsed())))
    }

    /// Waits until a node answers; it has no fault of its own from then on.
    pub(super) fn wait_back(&mut self, kind: FaultKind, node: usize) -> Result<(), RigError> {
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

    pub(super) fn pause(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
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

    pub(super) fn go_on(&mut self, kind: FaultKind, node: usize) -> Result<String, RigError> {
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

    /// Nobody is left then who could end a replica but the kernel.
    pub(super) fn freeze(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        let node = self.victim(kind, dice)?;
        let server = self.pid(kind, node)?;
        let this = &self.nodes[node];
        let guards = procfs::replica_processes(&this.data_dir, Some(server)).into_iter();
        let guards = guards.filter(|pid| !is_copy(*pid));
        let still: Vec<procfs::Process> = guards.chain([server]).filter_map(procfs::process).collect();
        still.iter().for_each(|process| signal(process.pid, Signal::STOP));
        // One that has ended meanwhile does nothing either.
        let stands = |process: &procfs::Process| !is_the_one(process) || is_stopped(process.pid);
        if !within(STOPPED, || still.iter().all(stands)) {
            still.iter().filter(|process| is_the_one(process)).for_each(|process| signal(process.pid, Signal::CONT));
            return Err(RigError::NotInjected { kind, why: "not all processes did stop".into() });
        }
        let (name, guards) = (this.name.clone(), still.len() - 1);
        self.nodes[node].busy = true;
        let what = format!("stopped {name} and the {guards} processes that watch over its replicas");
        Ok((Active::Frozen { node, still }, self.names(&[node]), what, "all their threads are in state T".into()))
    }

    /// Whoever is left goes on: those that held a lease have been ended by the kernel.
    pub(super) fn thaw(&mut self, kind: FaultKind, node: usize, still: &[procfs::Process]) -> Result<String, RigError> {
        let left: Vec<u32> = still.iter().filter(|process| is_the_one(process)).map(|process| process.pid).collect();
        let stayed = self.nodes[node].pid().is_some_and(is_stopped) && left.iter().all(|pid| is_stopped(*pid));
        left.iter().for_each(|pid| signal(*pid, Signal::CONT));
        self.wait_back(kind, node)?;
        match stayed {
            true => Ok(format!("{} of {} were left and stood still until now", left.len(), still.len())),
            false => Err(RigError::NotInjected { kind, why: "a process went on by itself".into() }),
        }
    }

    pub(super) fn pid(&self, kind: FaultKind, node: usize) -> Result<u32, RigError> {
        let none = || RigError::NoTarget { kind, why: format!("{} does not run", self.nodes[node].name) };
        self.nodes[node].pid().ok_or_else(none)
    }
}

/// Whether this process still is there, and no other under its number.
pub(super) fn is_the_one(process: &procfs::Process) -> bool {
    procfs::process(process.pid).is_some_and(|now| now.started == process.started)
}
