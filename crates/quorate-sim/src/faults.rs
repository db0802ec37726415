//! What goes wrong: which fault, where, when, for how long. The seed decides.

use crate::dice::Dice;
use crate::scenario::Scenario;
use crate::world::{What, World};
use quorate_model::time::Timestamp;
use quorate_node::{Event, Ticket};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A way for things to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// `kill -9` of one server.
    Kill,
    /// One machine loses power: unsynced writes are gone, its connections end silently.
    PowerLoss,
    KillAll,
    PowerLossAll,
    /// One machine is off for so long that the others forget what it lacks.
    LongAbsence,
    /// A process is stopped and goes on later, believing that no time has passed.
    Pause,
    /// The same for longer than request ids are remembered.
    Standstill,
    /// The leader is stopped and cut off, and goes on before it hears of its successor: a virtual machine
    /// that moves, and whose network follows later.
    Moved,
    /// One machine is cut off from all others.
    CutOne,
    /// Two groups that do not hear each other.
    CutHalves,
    /// One direction between two machines.
    CutOneWay,
    /// Two machines do not hear each other; all others hear both.
    CutBridge,
    Loss,
    Duplicates,
    /// Long and uneven delays: messages overtake each other.
    Delay,
    SlowDisk,
    /// Applying takes long while the log goes on: a statement that does much, a reader in the way.
    SlowApply,
    SyncError,
    WriteError,
    DiskFull,
    /// A byte of an old log segment changes while its machine is off.
    BitRot,
    /// A wall clock jumps.
    ClockStep,
    /// The clocks of one machine are slewed: only the raw one keeps its pace.
    ClockSlew,
    /// All wall clocks leap ahead together, and around that most answers to clients are lost.
    HostsStumble,
    /// An operator moves leadership.
    Transfer,
    /// A server joins.
    Join,
    /// A node is expelled, and does not believe it.
    Expel,
    /// A manager is not to vote, or may vote again.
    ChangeVote,
    /// The cluster's CA is exchanged.
    RotateKeys,
    /// A server is told to end, tells the cluster that it leaves, and comes back.
    CleanStop,
    /// A service's process ends by itself.
    ReplicaCrash,
    /// A server ends just after something rare happened to it. Comes by itself, not by choice.
    Ambush,
}

impl FaultKind {
    /// Those that are chosen.
    pub const ALL: [FaultKind; 31] = [
        FaultKind::Kill,
        FaultKind::PowerLoss,
        FaultKind::KillAll,
        FaultKind::PowerLossAll,
        FaultKind::LongAbsence,
        FaultKind::Pause,
        FaultKind::Standstill,
        FaultKind::Moved,
        FaultKind::CutOne,
        FaultKind::CutHalves,
        FaultKind::CutOneWay,
        FaultKind::CutBridge,
        FaultKind::Loss,
        FaultKind::Duplicates,
        FaultKind::Delay,
        FaultKind::SlowDisk,
        FaultKind::SlowApply,
        FaultKind::SyncError,
        FaultKind::WriteError,
        FaultKind::DiskFull,
        FaultKind::BitRot,
        FaultKind::ClockStep,
        FaultKind::ClockSlew,
        FaultKind::HostsStumble,
        FaultKind::Transfer,
        FaultKind::Join,
        FaultKind::Expel,
        FaultKind::ChangeVote,
        FaultKind::RotateKeys,
        FaultKind::CleanStop,
        FaultKind::ReplicaCrash,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::PowerLoss => "power-loss",
            FaultKind::KillAll => "kill-all",
            FaultKind::PowerLossAll => "power-loss-all",
            FaultKind::LongAbsence => "long-absence",
            FaultKind::Pause => "pause",
            FaultKind::Standstill => "standstill",
            FaultKind::Moved => "moved",
            FaultKind::CutOne => "cut-one",
            FaultKind::CutHalves => "cut-halves",
            FaultKind::CutOneWay => "cut-one-way",
            FaultKind::CutBridge => "cut-bridge",
            FaultKind::Loss => "loss",
            FaultKind::Duplicates => "duplicates",
            FaultKind::Delay => "delay",
            FaultKind::SlowDisk => "slow-disk",
            FaultKind::SlowApply => "slow-apply",
            FaultKind::SyncError => "sync-error",
            FaultKind::WriteError => "write-error",
            FaultKind::DiskFull => "disk-full",
            FaultKind::BitRot => "bit-rot",
            FaultKind::ClockStep => "clock-step",
            FaultKind::ClockSlew => "clock-slew",
            FaultKind::HostsStumble => "hosts-stumble",
            FaultKind::Transfer => "transfer",
            FaultKind::Join => "join",
            FaultKind::Expel => "expel",
            FaultKind::ChangeVote => "change-vote",
            FaultKind::RotateKeys => "rotate-keys",
            FaultKind::CleanStop => "clean-stop",
            FaultKind::ReplicaCrash => "replica-crash",
            FaultKind::Ambush => "ambush",
        }
    }
}

/// What must be undone when a fault is over.
#[derive(Debug)]
enum Undo {
    SwitchOn(usize),
    Mend(Vec<(usize, usize)>),
    Calm,
    Speed(usize),
    SpeedOfApply(usize),
    Room(usize),
    /// Of a machine's clocks.
    Pace(usize),
}

/// The faults of a run.
#[derive(Debug)]
pub(crate) struct Faults {
    dice: Dice,
    active: BTreeMap<u64, Undo>,
    number: u64,
    /// How often each happened.
    pub happened: BTreeMap<FaultKind, u64>,
    over: bool,
    /// Only some kinds come often in one run, so that runs differ in character.
    favourites: Vec<FaultKind>,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Faults {
        let mut dice = Dice::new(seed, "faults");
        let favourites = (0..dice.between(2, 6)).map(|_| *dice.pick(&FaultKind::ALL)).collect();
        Faults { dice, active: BTreeMap::new(), number: 0, happened: BTreeMap::new(), over: false, favourites }
    }

    /// How often each kind happened; 0 too, or nobody would miss one that never does.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let all = FaultKind::ALL.into_iter().chain([FaultKind::Ambush]);
        all.map(|kind| (kind.name(), self.happened.get(&kind).copied().unwrap_or(0))).collect()
    }

    /// Until the next fault.
    pub(crate) fn pause(&mut self, scenario: &Scenario) -> Duration {
        self.dice.span(scenario.fault_every)
    }

    pub(crate) fn are_over(&self) -> bool {
        self.over
    }

    fn choose(&mut self) -> FaultKind {
        if self.dice.chance(600) { *self.dice.pick(&self.favourites) } else { *self.dice.pick(&FaultKind::ALL) }
    }
}

/// A clock is slewed by so many millionths at most: chrony's default limit.
const SLEW_MAX_PPM: u64 = 83_333;

/// All directions between a machine and the others.
fn cuts_around(n: usize, nodes: usize) -> Vec<(usize, usize)> {
    (0..nodes).filter(|other| *other != n).flat_map(|other| [(n, other), (other, n)]).collect()
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl World {
    /// The next fault begins.
    pub(crate) fn next_fault(&mut self) {
        if self.faults.over {
            return;
        }
        let kind = self.faults.choose();
        if self.begin_fault(kind) {
            *self.faults.happened.entry(kind).or_default() += 1;
            self.trace.say(self.now, format_args!("{}", kind.name()));
        }
        let pause = self.faults.pause(&self.scenario);
        self.later(pause, What::Fault);
    }

    /// Whether a process is stopped for long. It is left alone, or it would hardly ever go on.
    fn stands_still(&self, n: usize) -> bool {
        self.machines[n].paused_until > self.now.plus(Duration::from_secs(60))
    }

    /// Some machine whose server runs; the leader in every second case.
    fn victim(&mut self) -> Option<usize> {
        let living: Vec<usize> = self.living().into_iter().filter(|n| !self.stands_still(*n)).collect();
        if living.is_empty() {
            return None;
        }
        if self.faults.dice.chance(500)
            && let Some(leader) = self.leader().filter(|leader| living.contains(leader))
        {
            return Some(leader);
        }
        Some(*self.faults.dice.pick(&living))
    }

    /// Returns whether it could happen.
    fn begin_fault(&mut self, kind: FaultKind) -> bool {
        let nodes = self.machines.len();
        let dice = &mut self.faults.dice;
        let short = dice.span((ms(50), ms(6_000)));
        let long = dice.span((ms(2_000), ms(40_000)));
        let span = if dice.chance(700) { short } else { long };
        match kind {
            FaultKind::Kill | FaultKind::PowerLoss | FaultKind::LongAbsence => {
                let Some(n) = self.victim() else { return false };
                let span = if kind == FaultKind::LongAbsence { long * 3 } else { span };
                self.switch_off(n, kind != FaultKind::Kill, span);
            }
            FaultKind::KillAll | FaultKind::PowerLossAll => {
                let all: Vec<usize> = self.living().into_iter().filter(|n| !self.stands_still(*n)).collect();
                for n in all {
                    let span = self.faults.dice.span((ms(10), ms(4_000)));
                    self.switch_off(n, kind == FaultKind::PowerLossAll, span);
                }
            }
            FaultKind::Pause => {
                let Some(n) = self.victim() else { return false };
                self.machines[n].paused_until = self.now.plus(span);
            }
            FaultKind::Standstill => {
                let n = self.faults.dice.index(nodes);
                let still = (0..nodes).any(|n| self.stands_still(n));
                if still || nodes == 1 || self.machines[n].process.is_none() {
                    return false;
                }
                let span = self.faults.dice.span((ms(180_000), ms(300_000)));
                self.machines[n].paused_until = self.now.plus(span);
            }
            FaultKind::Moved => {
                let Some(n) = self.leader().filter(|n| !self.stands_still(*n)) else { return false };
                let stopped = self.faults.dice.span((ms(1_000), ms(4_000)));
                let cut = stopped + self.faults.dice.span((ms(0), ms(2_000)));
                self.machines[n].paused_until = self.now.plus(stopped);
                let cuts = cuts_around(n, nodes);
                for (from, to) in &cuts {
                    self.cut(*from, *to);
                }
                self.until(cut, Undo::Mend(cuts));
            }
            FaultKind::CutOne | FaultKind::CutHalves | FaultKind::CutOneWay | FaultKind::CutBridge => {
                let Some(cuts) = self.cuts(kind) else { return false };
                for (from, to) in &cuts {
                    self.cut(*from, *to);
                }
                self.until(span, Undo::Mend(cuts));
            }
            FaultKind::Loss | FaultKind::Duplicates | FaultKind::Delay => {
                if nodes == 1 {
                    return false;
                }
                let strength = self.faults.dice.between(20, 300);
                match kind {
                    FaultKind::Loss => self.network.extra_loss = strength,
                    FaultKind::Duplicates => self.network.extra_duplicates = strength,
                    _ => self.network.extra_latency = ms(strength * 4),
                }
                self.until(span, Undo::Calm);
            }
            FaultKind::SlowDisk => {
                let Some(n) = self.victim() else { return false };
                self.machines[n].slowness = u32::try_from(self.faults.dice.between(10, 400)).expect("small");
                self.until(span, Undo::Speed(n));
            }
            FaultKind::SlowApply => {
                let Some(n) = self.victim() else { return false };
                self.machines[n].apply_longer = self.faults.dice.span((ms(50), ms(3_000)));
                self.until(span, Undo::SpeedOfApply(n));
            }
            FaultKind::Ambush => return false,
            FaultKind::SyncError | FaultKind::WriteError => {
                let Some(n) = self.victim() else { return false };
                let after = self.faults.dice.below(6);
                self.machines[n].disk_fails = true;
                if kind == FaultKind::SyncError {
                    self.machines[n].fs.fail_syncs(after);
                } else {
                    self.machines[n].fs.fail_writes(after);
                }
            }
            FaultKind::DiskFull => {
                let Some(n) = self.victim() else { return false };
                let room = self.faults.dice.below(64 << 10);
                let used = self.machines[n].fs.used();
                self.machines[n].disk_full = true;
                self.machines[n].fs.set_capacity(Some(used + room));
                self.until(span, Undo::Room(n));
            }
            FaultKind::BitRot => return self.rot(),
            FaultKind::ClockStep => {
                let n = self.faults.dice.index(nodes);
                let largest = *self.faults.dice.pick(&[100_000, 5_000_000, 3_600_000_000]);
                let step = self.faults.dice.below(2 * largest + 1).cast_signed() - largest.cast_signed();
                self.machines[n].clock.skew_us += step;
            }
            FaultKind::ClockSlew => {
                let n = self.faults.dice.index(nodes);
                let ppm = self.faults.dice.below(2 * SLEW_MAX_PPM + 1).cast_signed() - SLEW_MAX_PPM.cast_signed();
                self.slew(n, ppm);
                self.until(long, Undo::Pace(n));
            }
            FaultKind::HostsStumble => {
                self.clients.lose_answers_until(self.now.plus(Duration::from_secs(10)));
                let leap_us = self.faults.dice.between(1_000_000, 3_600_000_000).cast_signed();
                let soon = self.faults.dice.span((ms(0), ms(8_000)));
                self.later(soon, What::ClocksLeap { leap_us });
            }
            FaultKind::Transfer => {
                let Some(n) = self.victim() else { return false };
                let to = self.machines[self.faults.dice.index(nodes)].id;
                let deadline = self.machines[n].clocks(self.now).mono.plus(Duration::from_secs(5));
                self.tell(n, Event::Transfer { ticket: Ticket(u64::MAX - 1), to, deadline });
            }
            FaultKind::Join => return self.begin_join(),
            // Together with bit rot, which nothing repairs yet, too few could remain.
            FaultKind::Expel | FaultKind::ChangeVote if self.scenario.spares == 0 => return false,
            FaultKind::Expel => {
                let Some(n) = self.victim() else { return false };
                return self.begin_expulsion(n);
            }
            FaultKind::ChangeVote => {
                let n = self.faults.dice.index(nodes);
                return self.change_vote(n);
            }
            FaultKind::RotateKeys => {
                let Some(n) = self.victim() else { return false };
                return self.begin_rotation(n);
            }
            FaultKind::CleanStop => {
                let Some(n) = self.victim() else { return false };
                self.machines[n].off = true;
                self.stop_cleanly(n);
                self.until(ms(1_000) + span, Undo::SwitchOn(n));
            }
            FaultKind::ReplicaCrash => {
                let n = self.faults.dice.index(nodes);
                let now = self.now;
                if !self.machines[n].agent.crash_one(now, &mut self.faults.dice) {
                    return false;
                }
                self.agent_changed(n);
            }
        }
        true
    }

    /// A machine loses its power for good.
    pub(crate) fn lose(&mut self, n: usize) {
        let seed = self.faults.dice.next();
        self.machines[n].off = true;
        self.end(n, Some(seed));
    }

    /// Ends a server, with its machine's power or alone, for some time.
    fn switch_off(&mut self, n: usize, power: bool, span: Duration) {
        let seed = power.then(|| self.faults.dice.next());
        self.machines[n].off = true;
        self.end(n, seed);
        self.until(span, Undo::SwitchOn(n));
    }

    /// Something rare happened to a machine. In so many of a thousand cases its server ends while that
    /// is fresh: faults at any time at all would hardly ever come just then.
    pub(crate) fn ambush(&mut self, n: usize, permille: u64) {
        if !self.faults.over && self.faults.dice.chance(permille) {
            let life = self.machines[n].life;
            let delay = self.faults.dice.span((ms(0), ms(60)));
            self.later(delay, What::Ambush { machine: n, life });
        }
    }

    pub(crate) fn ambushed(&mut self, n: usize, life: u64) {
        if self.faults.over || self.machines[n].life != life || self.machines[n].process.is_none() {
            return;
        }
        *self.faults.happened.entry(FaultKind::Ambush).or_default() += 1;
        self.trace.say(self.now, format_args!("ambush"));
        let power = self.faults.dice.chance(500);
        let span = self.faults.dice.span((ms(10), ms(3_000)));
        self.switch_off(n, power, span);
    }

    fn slew(&mut self, n: usize, ppm: i64) {
        let now = self.now;
        self.machines[n].clock.slew(now, ppm);
        self.arm(n);
    }

    fn until(&mut self, span: Duration, undo: Undo) {
        self.faults.number += 1;
        let fault = self.faults.number;
        self.faults.active.insert(fault, undo);
        self.later(span, What::FaultOver { fault });
    }

    fn cuts(&mut self, kind: FaultKind) -> Option<Vec<(usize, usize)>> {
        let nodes = self.machines.len();
        if nodes < 2 {
            return None;
        }
        let one = self.victim().unwrap_or(0);
        let dice = &mut self.faults.dice;
        let other = (one + 1 + dice.index(nodes - 1)) % nodes;
        let both = |a: usize, b: usize| [(a, b), (b, a)];
        Some(match kind {
            FaultKind::CutOne => cuts_around(one, nodes),
            FaultKind::CutOneWay => vec![if dice.chance(500) { (one, other) } else { (other, one) }],
            FaultKind::CutBridge => both(one, other).to_vec(),
            _ => {
                let side: Vec<bool> = (0..nodes).map(|_| dice.chance(500)).collect();
                let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
                pairs.filter(|(a, b)| side[*a] != side[*b]).collect()
            }
        })
    }

    /// Damages the log of a machine that is off. A minority at most: nothing brings such a node back
    /// yet. Never the last segment: damage in its last batch cannot be told from a torn write.
    fn rot(&mut self) -> bool {
        let rotten = self.machines.iter().filter(|machine| machine.rotten).count();
        // Where voters change, they may become so few that the last one would be lost.
        if rotten >= (self.machines.len() - 1) / 2 || self.scenario.spares > 0 || self.machines.len() < 3 {
            return false;
        }
        let off: Vec<usize> = (0..self.machines.len())
            .filter(|n| self.machines[*n].process.is_none() && !self.machines[*n].rotten)
            .collect();
        if off.is_empty() {
            return false;
        }
        let n = *self.faults.dice.pick(&off);
        let fs = self.machines[n].fs.clone();
        let names = fs.list(Path::new("/log")).unwrap_or_default();
        let segments: Vec<&String> = names.iter().filter(|name| name.starts_with("log-")).collect();
        let Some((_, old)) = segments.split_last().filter(|(_, old)| !old.is_empty()) else { return false };
        let path = Path::new("/log").join(*self.faults.dice.pick(old));
        let length = fs.bytes(&path).map_or(0, |bytes| bytes.len());
        let offset = self.faults.dice.below(length as u64);
        let mask = 1 << self.faults.dice.below(8);
        self.machines[n].rotten = true;
        fs.flip(&path, offset, mask).is_ok()
    }

    pub(crate) fn fault_over(&mut self, fault: u64) {
        if let Some(undo) = self.faults.active.remove(&fault) {
            self.undo(undo);
        }
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::SwitchOn(n) => {
                self.machines[n].off = false;
                self.start(n);
            }
            Undo::Mend(cuts) => {
                for (from, to) in cuts {
                    self.mend(from, to);
                }
            }
            Undo::Calm => {
                self.network.extra_loss = 0;
                self.network.extra_duplicates = 0;
                self.network.extra_latency = Duration::ZERO;
            }
            Undo::Speed(n) => self.machines[n].slowness = 1,
            Undo::SpeedOfApply(n) => self.machines[n].apply_longer = Duration::ZERO,
            Undo::Pace(n) => self.slew(n, 0),
            Undo::Room(n) => {
                self.machines[n].fs.set_capacity(None);
                self.machines[n].disk_full = false;
            }
        }
    }

    /// All faults end, and nobody helps the cluster beyond that.
    pub(crate) fn end_faults(&mut self) {
        self.faults.over = true;
        while let Some((_, undo)) = self.faults.active.pop_first() {
            self.undo(undo);
        }
        self.network.calm();
        for n in 0..self.machines.len() {
            self.machines[n].paused_until = Timestamp::default();
            if self.is_expelled(n) {
                self.scrap(n);
                continue;
            }
            if self.machines[n].disk_fails {
                // Whatever was to fail and has not yet is forgotten with the process.
                self.end(n, None);
            }
            if self.machines[n].process.is_none() {
                self.start(n);
            }
            self.resume(n);
        }
    }

    /// For good: whoever looks after it knows that it was expelled.
    pub(crate) fn scrap(&mut self, n: usize) {
        let power = self.faults.dice.next();
        self.end(n, Some(power));
    }
}
