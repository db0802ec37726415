//! Who failed to join too often lately.

use super::{FAILURES_MAX, FAILURES_WITHIN};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses that are remembered. With more than this at once, the ones that failed longest ago are
/// forgotten: nobody guesses 160 bits, and memory must not grow with an attacker's addresses.
const SOURCES_MAX: usize = 1_000;

/// Failed attempts by address, oldest first.
#[derive(Debug, Default)]
pub(super) struct Throttle(BTreeMap<IpAddr, VecDeque<Instant>>);

impl Throttle {
    /// How long this address is not listened to; `None` if it is.
    pub(super) fn wait(&mut self, from: IpAddr, now: Instant) -> Option<Duration> {
        let failures = self.0.get_mut(&from)?;
        failures.retain(|at| now.duration_since(*at) < FAILURES_WITHIN);
        if failures.is_empty() {
            self.0.remove(&from);
            return None;
        }
        if failures.len() < FAILURES_MAX {
            return None;
        }
        failures.front().map(|first| FAILURES_WITHIN - now.duration_since(*first))
    }

    pub(super) fn failed(&mut self, from: IpAddr, now: Instant) {
        let failures = self.0.entry(from).or_default();
        failures.push_back(now);
        if failures.len() > FAILURES_MAX {
            failures.pop_front();
        }
        if self.0.len() > SOURCES_MAX {
            let oldest = self.0.iter().min_by_key(|(_, failures)| failures.back().copied()).map(|(from, _)| *from);
            oldest.map(|from| self.0.remove(&from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn who_fails_too_often_is_not_listened_to_for_a_while_and_others_are() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        for second in 0..FAILURES_MAX as u64 {
            let now = start + Duration::from_secs(second);
            assert_eq!(throttle.wait(address(1), now), None);
            throttle.failed(address(1), now);
        }
        let now = start + Duration::from_secs(30);
        assert_eq!(throttle.wait(address(1), now), Some(Duration::from_secs(30)));
        assert_eq!(throttle.wait(address(2), now), None);
        assert_eq!(throttle.wait(address(1), start + FAILURES_WITHIN), None);
    }

    #[test]
    fn memory_does_not_grow_with_the_number_of_addresses() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        for number in 0..2 * SOURCES_MAX as u32 {
            throttle.failed(address(number), start + Duration::from_millis(number.into()));
        }
        assert_eq!(throttle.0.len(), SOURCES_MAX);
        assert!(!throttle.0.contains_key(&address(0)));
    }
}
