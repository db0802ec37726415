//! Services that are stopped: by hand, or by their schedule.
//!
//! A stopped service keeps its spec, its version and the number of its copies, and none of them runs. Whatever is
//! applied, scaled or rolled back meanwhile changes what will run, and does not start it.
//!
//! The state machine has no clock. The leader says that a moment of a schedule has come, and the entry looks into
//! the schedule once more; so a moment that a new leader finds undone is made up for, and none is carried out twice.
//!
//! # Invariants
//! - What was stopped by hand runs again by hand, or at the next moment at which its schedule starts it.
//! - What was stopped by a schedule does not stay so when that schedule is gone.
//! - A moment counts only against the moment that was carried out before it.

use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{LogIndex, ServiceName};
use crate::spec::{Moment, ServiceSpec};
use crate::state::{Change, Changes, ClusterState, ServiceRecord};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A moment that was carried out is taken for a mistake of a leader's clock if it is further in the future than
/// this. Clocks of one cluster are never so far apart unless one is wrong; where they differ by less, the moment is
/// waited for and not undone.
const CLOCKS_APART: Duration = Duration::from_secs(3600);

/// Since when a service is stopped, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    pub at: WallTime,
    /// The log entry that stopped it.
    pub index: LogIndex,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_schedule: bool,
    /// Who did it by hand, where somebody is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What may be asked of the cluster about a service that runs or does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "switch", rename_all = "kebab-case")]
pub enum SwitchCommand {
    Stop {
        service: ServiceName,
    },
    Start {
        service: ServiceName,
    },
    /// The leader has found that this moment of the schedule has come. Nothing happens if another one was carried
    /// out last, or if the schedule has no such moment any more.
    Moment {
        service: ServiceName,
        at: WallTime,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<WallTime>,
    },
}

impl ServiceRecord {
    /// How many copies are to run where that is a number of the spec: not with the mode every-node.
    #[must_use]
    pub fn copies(&self) -> u32 {
        if self.stopped.is_some() { 0 } else { self.spec.replicas }
    }

    /// When the schedule changes next whether it runs. `None`: it does not.
    #[must_use]
    pub fn next_moment(&self, now: WallTime) -> Option<Moment> {
        self.spec.moment_after(now, self.stopped.is_some())
    }

    /// The moment of the schedule that should have been carried out by now and was not.
    fn moment_due(&self, now: WallTime) -> Option<Moment> {
        let newest = self.spec.moment_until(now)?;
        let is_next = match self.moment {
            None => true,
            Some(done) => done < newest.at || done.since(now) > CLOCKS_APART,
        };
        is_next.then_some(newest)
    }
}

impl ClusterState {
    /// What has come of schedules by this clock, service by service.
    pub fn moments_due(&self, now: WallTime) -> impl Iterator<Item = (ServiceName, SwitchCommand)> {
        let scheduled = self.services.values().filter(|service| !service.spec.schedule.is_empty());
        scheduled.filter_map(move |service| {
            let (name, at) = (service.spec.name.clone(), service.moment_due(now)?.at);
            Some((name.clone(), SwitchCommand::Moment { service: name, at, after: service.moment }))
        })
    }

    pub(crate) fn decide_switch(&self, changes: &mut Changes, command: &SwitchCommand) -> Result<(), Refusal> {
        match command {
            SwitchCommand::Stop { service } => {
                let known = self.service(service)?;
                if known.stopped.as_ref().is_none_or(|stopped| stopped.by_schedule) {
                    let stopped = Some(changes.stopped(false));
                    changes.switch(known, ServiceRecord { stopped, ..known.clone() }, false);
                }
            }
            SwitchCommand::Start { service } => {
                let known = self.service(service)?;
                if known.stopped.is_some() {
                    changes.switch(known, ServiceRecord { stopped: None, ..known.clone() }, false);
                }
            }
            SwitchCommand::Moment { service, at, after } => self.carry_out_moment(changes, service, *at, *after),
        }
        Ok(())
    }

    fn carry_out_moment(&self, changes: &mut Changes, name: &ServiceName, at: WallTime, after: Option<WallTime>) {
        let Some(known) = self.services.get(name) else { return };
        let Some(moment) = known.spec.moment_until(at).filter(|moment| moment.at == at) else { return };
        if known.moment != after || after == Some(at) {
            return;
        }
        let stopped = match &known.stopped {
            _ if moment.starts => None,
            Some(stopped) => Some(stopped.clone()),
            None => Some(changes.stopped(true)),
        };
        changes.switch(known, ServiceRecord { stopped, moment: Some(at), ..known.clone() }, true);
    }
}

impl Changes {
    fn stopped(&self, by_schedule: bool) -> Stopped {
        Stopped { at: self.now, index: self.index, by_schedule, by: None }
    }

    fn switch(&mut self, known: &ServiceRecord, record: ServiceRecord, by_schedule: bool) {
        self.tell(known.stopped.as_ref(), record.stopped.as_ref(), &known.spec.name, by_schedule);
        self.list.push(Change::Service(record));
    }

    fn tell(&mut self, from: Option<&Stopped>, to: Option<&Stopped>, service: &ServiceName, by_schedule: bool) {
        let service = service.clone();
        match (from, to) {
            (None, Some(_)) => self.event(Happening::ServiceStopped { service, by_schedule }),
            (Some(_), None) => self.event(Happening::ServiceStarted { service, by_schedule }),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// Whether a service is stopped once it has this spec, and the moment that counts as carried out. A schedule
    /// that is new, or another than before, is in force at once; what was stopped by hand stays so.
    pub(crate) fn switched(
        &mut self,
        known: Option<&ServiceRecord>,
        spec: &ServiceSpec,
    ) -> (Option<Stopped>, Option<WallTime>) {
        let before = known.and_then(|known| known.stopped.clone());
        if known.is_some_and(|known| known.spec.schedule == spec.schedule) {
            return (before, known.and_then(|known| known.moment));
        }
        let newest = spec.moment_until(self.now);
        let stopped = match (&before, newest) {
            (Some(before), _) if !before.by_schedule => Some(before.clone()),
            // One that never starts it would have it stopped from its beginning on.
            (_, Some(moment)) if !moment.starts && spec.starts_by_schedule() => {
                Some(before.clone().unwrap_or_else(|| self.stopped(true)))
            }
            (Some(_) | None, _) => None,
        };
        self.tell(before.as_ref(), stopped.as_ref(), &spec.name, true);
        (stopped, newest.map(|moment| moment.at))
    }
}

#[cfg(test)]
mod tests;
