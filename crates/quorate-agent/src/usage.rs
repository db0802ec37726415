//! What replicas use, measured every few seconds by the counters of their cgroups.
//!
//! Numbers are rounded, so that of a replica that does nothing the same is said each time: what does not
//! change is told to nobody.

use crate::cgroup::{Groups, Reading};
use quorate_model::id::ReplicaId;
use quorate_model::resource::{Pressure, Usage};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Often enough for who decides every 15 s how many replicas there are; 100 replicas take a few milliseconds.
pub(crate) const MEASURED_EVERY: Duration = Duration::from_secs(5);

const CPU_STEP_MILLIS: u64 = 10;
const MEMORY_STEP_BYTES: u64 = 64 << 10;
const PRESSURE_STEP_PERMILLE: u16 = 10;

/// The replicas of an agent and what was read of each last.
#[derive(Debug)]
pub(crate) struct Meter {
    groups: Groups,
    last: BTreeMap<ReplicaId, (Instant, Reading)>,
}

impl Meter {
    pub(crate) fn new(groups: Groups) -> Meter {
        Meter { groups, last: BTreeMap::new() }
    }

    /// What each used since the last time; nothing of one that was not there then. Blocks.
    pub(crate) fn measure(&mut self) -> BTreeMap<ReplicaId, Usage> {
        let readings = self.groups.replicas().into_iter().filter_map(|(replica, group)| {
            let reading = group.usage()?;
            Some((replica, (Instant::now(), reading)))
        });
        let before = std::mem::replace(&mut self.last, readings.collect());
        let usage = |replica, now: &(Instant, Reading)| usage(before.get(replica)?, now);
        self.last.iter().filter_map(|(replica, now)| Some((*replica, usage(replica, now)?))).collect()
    }
}

fn usage(before: &(Instant, Reading), now: &(Instant, Reading)) -> Option<Usage> {
    let span = u64::try_from(now.0.duration_since(before.0).as_micros()).ok().filter(|us| *us > 0)?;
    // Less than before: another group of the same name, from whose beginning it counts.
    let spent = now.1.cpu_us.checked_sub(before.1.cpu_us).unwrap_or(now.1.cpu_us);
    let millis = rounded(spent.saturating_mul(1000) / span, CPU_STEP_MILLIS);
    let calm = |permille: u16| permille / PRESSURE_STEP_PERMILLE * PRESSURE_STEP_PERMILLE;
    Some(Usage {
        cpu_millis: u32::try_from(millis).unwrap_or(u32::MAX),
        memory_bytes: now.1.memory_bytes.map(|bytes| rounded(bytes, MEMORY_STEP_BYTES)),
        pressure: now.1.pressure.map(|pressure| Pressure {
            cpu_permille: calm(pressure.cpu_permille),
            memory_permille: calm(pressure.memory_permille),
            io_permille: calm(pressure.io_permille),
        }),
    })
}

/// To the nearest multiple.
fn rounded(value: u64, step: u64) -> u64 {
    value.saturating_add(step / 2) / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_what_was_spent_in_the_time_since_and_is_rounded() {
        let start = Instant::now();
        let reading = |cpu_us, memory_bytes| Reading { cpu_us, memory_bytes, pressure: None };
        let later = start + Duration::from_secs(2);
        let half = usage(&(start, reading(500, None)), &(later, reading(1_008_500, Some(1_000_000)))).unwrap();
        assert_eq!((half.cpu_millis, half.memory_bytes), (500, Some(983_040)));
        let anew = usage(&(start, reading(9_000_000, None)), &(later, reading(40_000, None))).unwrap();
        assert_eq!((anew.cpu_millis, anew.memory_bytes), (20, None));
        assert_eq!(usage(&(start, reading(1, None)), &(start, reading(2, None))), None, "no time has passed");
    }

    #[test]
    fn pressure_is_rounded_down_so_that_none_stays_none() {
        let start = Instant::now();
        let pressure = Some(Pressure { cpu_permille: 664, memory_permille: 9, io_permille: 10 });
        let reading = Reading { cpu_us: 0, memory_bytes: None, pressure };
        let shown = usage(&(start, reading), &(start + Duration::from_secs(1), reading)).unwrap().pressure.unwrap();
        assert_eq!(shown, Pressure { cpu_permille: 660, memory_permille: 0, io_permille: 10 });
    }
}
