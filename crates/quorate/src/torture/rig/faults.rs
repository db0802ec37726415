//! How each fault begins and ends, and what proves it. What is common to all is here, each kind in a
//! file by its subject.

mod away;
mod disk;
mod network;
mod process;
mod time;

use super::dice::Dice;
use super::network::{Link, RuleId};
use super::trace::Trace;
use super::{LOOK_EVERY, Rig, RigError};
use crate::dev::procfs::Process;
use crate::torture::fault::FaultKind;
use std::time::{Duration, Instant};

/// What the rig writes to make the others forget faster than the workload alone would.
const PADDING: usize = 64 << 10;
const OWN_TABLE: &str = "CREATE TABLE IF NOT EXISTS torture_rig(n INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT";
const PADDING_ROW: &str = "INSERT OR REPLACE INTO torture_rig VALUES (1, ?)";

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
    /// These processes of a node stand still, its server among them.
    Frozen {
        node: usize,
        still: Vec<Process>,
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
            FaultKind::Freeze => self.freeze(kind, &mut dice),
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
            Active::Frozen { node, still } => self.thaw(kind, node, &still),
            Active::Rule { rule, probe } => self.calm(kind, rule, probe),
            Active::Full { node } => self.empty_disk(kind, node),
            Active::Slow { node, trace } => self.normal_disk(kind, node, trace),
            Active::Clock { node } => self.right_clock(kind, node),
            Active::Away { node, applied } => self.return_by_snapshot(kind, node, applied),
        }
    }

    // Whom it hits.

    pub(super) fn is_free(&self, node: usize) -> bool {
        self.nodes[node].child.is_some() && !self.nodes[node].busy
    }

    /// A node without a fault of its own: every second time the leader, if that is one.
    fn victim(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<usize, RigError> {
        let free: Vec<usize> = self.present().filter(|node| self.is_free(*node)).collect();
        let other = dice.pick(&free);
        let leader = match dice.happens(500) {
            true => self.leader().and_then(|name| free.iter().copied().find(|node| self.nodes[*node].name == name)),
            false => None,
        };
        leader.or(other).ok_or(RigError::NoTarget { kind, why: "every node has a fault already".into() })
    }

    fn everybody(&self, kind: FaultKind) -> Result<Vec<usize>, RigError> {
        let all: Vec<usize> = self.present().collect();
        match all.iter().all(|node| self.is_free(*node)) {
            true => Ok(all),
            false => Err(RigError::NoTarget { kind, why: "a node has a fault already".into() }),
        }
    }

    fn names(&self, nodes: &[usize]) -> Vec<String> {
        nodes.iter().map(|node| self.nodes[*node].name.clone()).collect()
    }
}

/// Faults with which all nodes go on, if more slowly.
fn is_gentle(kind: FaultKind) -> bool {
    use FaultKind::{ClockJump, Delay, Duplicate, Loss, SlowDisk};
    matches!(kind, ClockJump | Delay | Duplicate | Loss | SlowDisk)
}

pub(super) fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// Whether something becomes true in time.
pub(super) fn within(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
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
