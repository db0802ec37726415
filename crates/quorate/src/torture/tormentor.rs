//! Carries a schedule out: breaks what it says, does what operators do, and writes down what became of it.

use crate::cli::screen::{Screen, age};
use crate::torture::change::ChangeKind;
use crate::torture::record::{self, Line};
use crate::torture::rig::{self, Arena, ChangeError, Rig, RigError};
use crate::torture::schedule::changes::PlannedChange;
use crate::torture::schedule::{self, Planned, Slot};
use crate::torture::workload::Shared;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Clients work this long before the first fault, so that each has something to lose.
const WARM_UP: Duration = Duration::from_secs(3);
/// How often a line tells people how far it is, where no live line can.
const TELL_EVERY: Duration = Duration::from_secs(15);

/// What the rig found by itself.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) deaths: Vec<String>,
    pub(crate) broken: Vec<String>,
}

/// Makes the faults of a schedule, one slot after the other.
pub(crate) struct Tormentor<'a> {
    pub(crate) screen: Screen,
    pub(crate) verbose: bool,
    pub(crate) arena: &'a Arena,
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) rig: &'a mut Rig,
    pub(crate) findings: Findings,
    /// Changes that the cluster carries out.
    pub(crate) under_way: Vec<UnderWay>,
}

/// A change that is under way.
pub(crate) struct UnderWay {
    change: rig::Change,
    kind: ChangeKind,
    began: u64,
    /// Its end is waited for after this many slots more.
    slots: usize,
    during: BTreeSet<&'static str>,
}

/// A fault that is in force.
struct InForce {
    injected: rig::Injected,
    began: u64,
    leader: bool,
}

impl Tormentor<'_> {
    pub(crate) fn run(&mut self, slots: &[Slot]) {
        if self.arena.stop.wait(WARM_UP) {
            return;
        }
        let began = Instant::now();
        let mut told = began;
        let mut made = 0;
        let planned: usize = slots.iter().map(|slot| slot.faults.len() + slot.changes.len()).sum();
        for slot in slots {
            let early = slot.not_before.saturating_sub(began.elapsed());
            if self.arena.stop.wait(early.max(slot.quiet)) {
                return;
            }
            let begin = |tormentor: &mut Self, during| {
                slot.changes.iter().filter(|change| change.during == during).for_each(|it| tormentor.begin_change(it));
            };
            begin(self, false);
            let in_force: Vec<InForce> = slot.faults.iter().filter_map(|fault| self.begin(fault)).collect();
            begin(self, true);
            let broken: BTreeSet<&str> = in_force.iter().map(|fault| fault.injected.kind.name()).collect();
            self.under_way.iter_mut().for_each(|change| change.during.extend(&broken));
            made += slot.faults.len() + slot.changes.len();
            let faults = slot.faults.iter().map(|fault| fault.kind.name());
            let names: Vec<&str> = faults.chain(slot.changes.iter().map(|change| change.kind.name())).collect();
            let line = format!(
                "{made} of {planned} faults and changes, {} operations, {} since the start   {}",
                self.shared.answered(),
                age(began.elapsed()),
                names.join(" and ")
            );
            self.screen.progress(&line);
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.screen.tell(&line);
            }
            self.arena.stop.wait(slot.hold);
            in_force.into_iter().for_each(|fault| self.end(fault));
            self.end_changes();
            let deaths = self.rig.unexpected_deaths();
            self.findings.deaths.extend(deaths.into_iter().map(|death| format!("{} {}", death.node, death.what)));
            if self.arena.stop.is_raised() {
                return;
            }
        }
    }

    fn begin(&mut self, planned: &Planned) -> Option<InForce> {
        let leader = self.rig.leader();
        let began = self.shared.record.now();
        match self.rig.inject(planned.kind, planned.choice) {
            Ok(injected) => {
                let leader = leader.is_some_and(|leader| injected.nodes.contains(&leader));
                Some(InForce { injected, began, leader })
            }
            Err(error) => {
                self.note_broken(&error);
                self.note(record::Fault {
                    kind: planned.kind.name().into(),
                    began,
                    ended: self.shared.record.now(),
                    what: String::new(),
                    evidence: None,
                    failed: Some(error.to_string()),
                    leader: false,
                    // Whom it was to hit is not known; a server may have ended before it failed.
                    restarted: self.shared.nodes().iter().map(|node| node.name.clone()).collect(),
                });
                None
            }
        }
    }

    fn end(&mut self, fault: InForce) {
        let InForce { injected, began, leader } = fault;
        let rig::Injected { kind, nodes, what, evidence, handle } = injected;
        let (evidence, failed) = match self.rig.end(handle) {
            Ok(ended) => (format!("{evidence}; {}", ended.evidence), None),
            Err(error) => {
                self.note_broken(&error);
                (evidence, matches!(error, RigError::NotInjected { .. }).then(|| error.to_string()))
            }
        };
        let restarted = if schedule::leaves_processes_alone(kind) { Vec::new() } else { nodes };
        self.note(record::Fault {
            kind: kind.name().into(),
            began,
            ended: self.shared.record.now(),
            what,
            evidence: Some(evidence),
            failed,
            leader,
            restarted,
        });
    }

    fn begin_change(&mut self, planned: &PlannedChange) {
        let began = self.shared.record.now();
        match self.rig.begin_change(planned) {
            Ok(change) => {
                let (kind, slots, during) = (planned.kind, planned.slots, BTreeSet::new());
                self.under_way.push(UnderWay { change, kind, began, slots, during });
            }
            Err(error) => {
                self.note_change(record::Change { failed: Some(error.to_string()), ..unmade(planned.kind, began) })
            }
        }
    }

    /// Waits for the changes that are due. No fault is in force meanwhile.
    fn end_changes(&mut self) {
        self.under_way.iter_mut().for_each(|change| change.slots -= 1);
        let (due, later) = std::mem::take(&mut self.under_way).into_iter().partition(|change| change.slots == 0);
        self.under_way = later;
        for UnderWay { change, kind, began, during, .. } in due {
            let ended = self.rig.end_change(&change);
            let during = during.into_iter().map(str::to_owned).collect();
            let unmade = record::Change { ended: self.shared.record.now(), during, ..unmade(kind, began) };
            let change = match ended {
                Ok(changed) => record::Change {
                    what: changed.what,
                    evidence: Some(changed.evidence),
                    asked: changed.asked,
                    removed: changed.removed,
                    joined: changed.joined,
                    restarted: changed.restarted,
                    ..unmade
                },
                Err(error) => {
                    if let ChangeError::Broken { log, .. } = &error {
                        self.screen.say(&format!("✕ {error}\n{log}"));
                        self.findings.broken.push(error.to_string());
                    }
                    record::Change { failed: Some(error.to_string()), ..unmade }
                }
            };
            self.note_change(change);
        }
    }

    fn note_change(&self, change: record::Change) {
        let during =
            if change.during.is_empty() { String::new() } else { format!(" during {}", change.during.join(", ")) };
        let what = format!("{}{during}", change.what);
        self.tell(&change.kind, change.began..change.ended, &what, change.failed.as_ref(), change.evidence.as_ref());
        self.shared.record.write(Line::Change(change));
    }

    /// A promise that the cluster did not keep, as opposed to a fault that could not be made.
    fn note_broken(&mut self, error: &RigError) {
        if let RigError::Broken { log, .. } = error {
            self.screen.say(&format!("✕ {error}\n{log}"));
            self.findings.broken.push(error.to_string());
        }
    }

    /// Writes into the record, and for whoever watches, what became of a fault.
    fn note(&self, fault: record::Fault) {
        self.tell(&fault.kind, fault.began..fault.ended, &fault.what, fault.failed.as_ref(), fault.evidence.as_ref());
        self.shared.record.write(Line::Fault(fault));
    }

    fn tell(&self, kind: &str, when: Range<u64>, what: &str, failed: Option<&String>, evidence: Option<&String>) {
        if !self.verbose {
            return;
        }
        let (began, seconds) = (when.start as f64 / 1e9, (when.end - when.start) as f64 / 1e9);
        let (symbol, text) = match failed {
            Some(why) => ('✕', why.clone()),
            None => ('✔', format!("{what}: {}", evidence.map_or("not seen", String::as_str))),
        };
        self.screen.progress_over();
        self.screen.say(&format!("{symbol} {began:6.1} s  {kind} ({seconds:.1} s)  {text}"));
    }
}

fn unmade(kind: ChangeKind, began: u64) -> record::Change {
    record::Change {
        kind: kind.name().into(),
        began,
        ended: began,
        what: String::new(),
        evidence: None,
        failed: None,
        asked: 0,
        during: Vec::new(),
        removed: None,
        joined: None,
        restarted: Vec::new(),
    }
}
