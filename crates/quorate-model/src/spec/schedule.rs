//! The list `schedule` of a service: when it is started, and when it is stopped.
//!
//! It is made of moments and not of hours: at each the service is started or stopped, and whatever somebody does by
//! hand holds until the next one. None of it is part of a version: whoever changes it replaces no copy.
//!
//! # Invariants
//! - At one moment a service is started or stopped, never both.
//! - What stops the hours of one entry while those of another go on is no moment.

use super::ServiceSpec;
use super::autoscale::{Clock, DAY_MINUTES, Days, during};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;

/// Most entries of a schedule.
const ENTRIES_MAX: usize = 16;
/// Days within which every moment of a week comes again, also one on the day after that of its entry.
const DAYS_LOOKED: u64 = 9;
const MINUTE_MICROS: u64 = 60_000_000;

/// When a service is started, stopped, or both; all in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartStop {
    /// Days on which it is started; without `start`, on which it is stopped: `"mon-fri"`, `"sat,sun"`. Default
    /// `"mon-sun"`.
    #[serde(default)]
    pub days: Days,
    /// `HH:MM`, in UTC. Default: this entry starts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Clock>,
    /// `HH:MM`, in UTC; not later than `start`: on the next day. Default: this entry stops nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Clock>,
}

/// A moment of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub at: WallTime,
    /// False: the service is stopped.
    pub starts: bool,
}

impl StartStop {
    /// How many minutes after the beginning of each of its days it does something, and whether it starts.
    fn edges(&self) -> impl Iterator<Item = (u64, bool)> {
        let next_day = self.start.zip(self.stop).is_some_and(|(start, stop)| stop <= start);
        let stop = self.stop.map(|stop| stop.minutes() + if next_day { DAY_MINUTES } else { 0 });
        let start = self.start.map(|start| (start.minutes(), true));
        start.into_iter().chain(stop.map(|stop| (stop, false)))
    }

    /// What it does on these days, in minutes from 1970 on.
    fn on(&self, days: RangeInclusive<u64>) -> impl Iterator<Item = (u64, bool)> {
        let edges = move |day| self.edges().map(move |(offset, starts)| (day * DAY_MINUTES + offset, starts));
        days.filter(|day| self.days.has(*day)).flat_map(edges)
    }

    fn starts_at(&self, minute: u64) -> bool {
        let day = minute / DAY_MINUTES;
        // 24:00 is of the day before.
        self.on(day.saturating_sub(1)..=day).any(|edge| edge == (minute, true))
    }

    /// Whether it is between its start and its stop.
    fn holds(&self, minute: u64) -> bool {
        self.start.zip(self.stop).is_some_and(|(start, stop)| during(self.days, start, stop, minute))
    }
}

impl fmt::Display for StartStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.days)?;
        if let Some(start) = self.start {
            write!(f, " start {start}")?;
        }
        if let Some(stop) = self.stop {
            write!(f, " stop {stop}")?;
        }
        f.write_str(" UTC")
    }
}

impl ServiceSpec {
    /// The newest moment of the schedule that is not later than `at`. `None`: there is none.
    #[must_use]
    pub fn moment_until(&self, at: WallTime) -> Option<Moment> {
        let now = at.as_micros() / MINUTE_MICROS;
        let today = now / DAY_MINUTES;
        let moments = self.moments(today.saturating_sub(DAYS_LOOKED)..=today);
        moments.filter(|(minute, _)| *minute <= now).max().map(moment)
    }

    /// The first moment of the schedule after `at` that starts the service, or that stops it. `None`: there is none.
    #[must_use]
    pub fn moment_after(&self, at: WallTime, starts: bool) -> Option<Moment> {
        let now = at.as_micros() / MINUTE_MICROS;
        let today = now / DAY_MINUTES;
        let moments = self.moments(today.saturating_sub(2)..=today + DAYS_LOOKED);
        moments.filter(|(minute, does)| *minute > now && *does == starts).min().map(moment)
    }

    /// Whether it is ever started by its schedule.
    #[must_use]
    pub fn starts_by_schedule(&self) -> bool {
        self.schedule.iter().any(|entry| entry.start.is_some())
    }

    fn moments(&self, days: RangeInclusive<u64>) -> impl Iterator<Item = (u64, bool)> {
        let all = self.schedule.iter().flat_map(move |entry| entry.on(days.clone()));
        all.filter(|(minute, starts)| *starts || self.may_stop(*minute))
    }

    /// Whether nothing starts it at this minute, or has it run beyond.
    fn may_stop(&self, minute: u64) -> bool {
        !self.schedule.iter().any(|entry| entry.starts_at(minute) || entry.holds(minute))
    }
}

fn moment((minute, starts): (u64, bool)) -> Moment {
    Moment { at: WallTime(minute * MINUTE_MICROS), starts }
}

pub(super) fn validate(spec: &ServiceSpec) -> Result<(), String> {
    if spec.schedule.len() > ENTRIES_MAX {
        return Err(format!("has {} entries; at most {ENTRIES_MAX} are allowed", spec.schedule.len()));
    }
    for entry in &spec.schedule {
        match (entry.start, entry.stop) {
            (None, None) => return Err(format!("does nothing on {}: give `start`, `stop` or both", entry.days)),
            (Some(start), Some(stop)) if start == stop || (start.minutes() == DAY_MINUTES && stop.minutes() == 0) => {
                return Err(format!("starts and stops at {start}: give two times of day"));
            }
            (Some(_) | None, _) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
