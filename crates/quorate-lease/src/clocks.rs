//! The clocks by which leases are kept.
//!
//! No clock of a machine is right about how fast time passes. `CLOCK_MONOTONIC` stands still while the machine
//! sleeps; `CLOCK_BOOTTIME` does not, and is slewed like it when somebody corrects the time, by up to a twelfth
//! (chrony's default limit); `CLOCK_MONOTONIC_RAW` is never slewed and stands still in sleep. Who holds a lease
//! must not believe that less has passed than has, and who waits for its end must not believe that more has. So at
//! each reading a holder adds the larger of what the last two say has passed since the reading before, and a
//! voter adds the smaller.
//!
//! # Invariants
//! - Neither goes back.
//! - A pause of a whole virtual machine is seen by none of them: against that there are epochs, and no clock.
//!
//! Source: docs/adr/0011-leases.md.

use quorate_model::time::Timestamp;
use std::time::Duration;

/// See the module.
#[derive(Debug, Clone)]
pub struct Clocks {
    /// What both clocks showed last, of whatever beginning.
    boot: Duration,
    raw: Duration,
    held: Duration,
    waited: Duration,
}

impl Clocks {
    /// Counts from now, when `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC_RAW` show this.
    #[must_use]
    pub fn starting(boot: Duration, raw: Duration) -> Clocks {
        Clocks { boot, raw, held: Duration::ZERO, waited: Duration::ZERO }
    }

    /// What they show now.
    pub fn read(&mut self, boot: Duration, raw: Duration) {
        let (boot_passed, raw_passed) = (boot.saturating_sub(self.boot), raw.saturating_sub(self.raw));
        self.held += boot_passed.max(raw_passed);
        self.waited += boot_passed.min(raw_passed);
        (self.boot, self.raw) = (boot.max(self.boot), raw.max(self.raw));
    }

    /// A holder's time as of the last reading: since the start, at least so much has passed.
    #[must_use]
    pub fn held(&self) -> Timestamp {
        Timestamp(self.held)
    }

    /// A voter's time as of the last reading: since the start, at most so much has passed.
    #[must_use]
    pub fn waited(&self) -> Timestamp {
        Timestamp(self.waited)
    }

    /// What `CLOCK_BOOTTIME` shows when what is held until then is over, if nobody slews it meanwhile: whoever sets a
    /// timer for it takes off what it may be slewed by. What is past is now.
    #[must_use]
    pub fn boot_time(&self, until: Timestamp) -> Duration {
        self.boot + until.since(self.held())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn times(clocks: &Clocks) -> (Duration, Duration) {
        (clocks.held().0, clocks.waited().0)
    }

    #[test]
    fn n1_a_holder_takes_the_larger_and_a_voter_the_smaller_of_what_passed_at_each_reading() {
        let mut clocks = Clocks::starting(ms(9_000), ms(2_000));
        // Slewed the fast way, then the slow way: as a sum both clocks agree, and that must not count.
        clocks.read(ms(9_110), ms(2_100));
        clocks.read(ms(9_200), ms(2_200));
        assert_eq!(times(&clocks), (ms(210), ms(190)));
        // The machine slept for a minute.
        clocks.read(ms(69_200), ms(2_200));
        assert_eq!(times(&clocks), (ms(60_210), ms(190)));
        // Nothing passes twice, whatever is read.
        clocks.read(ms(69_100), ms(2_100));
        clocks.read(ms(69_200), ms(2_200));
        assert_eq!(times(&clocks), (ms(60_210), ms(190)));
    }

    #[test]
    fn what_a_clock_shows_then_counts_from_the_last_reading() {
        let mut clocks = Clocks::starting(ms(9_000), ms(2_000));
        assert_eq!(clocks.boot_time(Timestamp(ms(6_000))), ms(15_000));
        clocks.read(ms(9_900), ms(3_000));
        assert_eq!(clocks.boot_time(Timestamp(ms(6_000))), ms(14_900), "a second has passed, by the stricter clock");
        assert_eq!(clocks.boot_time(Timestamp::default()), ms(9_900));
    }
}
