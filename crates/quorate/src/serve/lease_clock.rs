//! Reads the clocks by which leases are kept; why there are two, and what becomes of them, is said in
//! [`quorate_lease::Clocks`].

use super::core::Clock;
use quorate_agent::BootTime;
use quorate_lease::Clocks;
use quorate_model::time::Timestamp;
use quorate_node::Now;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The core's only source of [`Now`].
#[derive(Debug)]
pub(super) struct LeaseClock(Clocks);

/// Since whenever the clock began, which no clock that is asked here is ever before.
fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl LeaseClock {
    /// Counts from now.
    pub(super) fn start() -> LeaseClock {
        LeaseClock(Clocks::starting(read(ClockId::Boottime), read(ClockId::MonotonicRaw)))
    }

    /// What all clocks show.
    pub(super) fn now(&mut self, clock: Clock) -> Now {
        self.0.read(read(ClockId::Boottime), read(ClockId::MonotonicRaw));
        Now { held: self.0.held(), waited: self.0.waited(), ..clock.now() }
    }

    /// When what is held until then is over.
    pub(super) fn boot_time(&self, until: Timestamp) -> BootTime {
        BootTime::from_nanos(u64::try_from(self.0.boot_time(until).as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use std::time::Instant;

    #[test]
    fn it_reads_the_machines_clocks() {
        let (began, clock) = (Instant::now(), Clock { started: Instant::now() });
        let mut leases = LeaseClock::start();
        let first = leases.now(clock);
        while began.elapsed() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let second = leases.now(clock);
        let (held, waited) = (second.held.since(first.held), second.waited.since(first.waited));
        assert!(held >= waited && waited >= Duration::from_millis(10), "{held:?} {waited:?}");
    }
}
