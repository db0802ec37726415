//! What gateways have had to do for services, as counters that only grow.
//!
//! A report may be lost, come late, or be seen by one manager and not by another: of two of them, however far
//! apart, follows what was between. The time between them is the gateway's own, so nothing of it is blurred by
//! what the network does to reports.
//!
//! # Invariants
//! - Counters of one run of a gateway never shrink; its uptime tells runs apart.

use crate::id::ServiceName;
use serde::{Deserialize, Serialize};

/// Upper ends of the buckets of latencies, in microseconds; a last bucket is for what took longer.
///
/// Each is at most twice the one before: what is read out of a bucket is off by less than its width, and mostly
/// by far less, because within a bucket latencies are taken as spread evenly.
pub const LATENCY_US: [u64; 23] = [
    250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 50_000, 75_000, 100_000, 150_000,
    200_000, 300_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000,
];

/// With that of what took longer.
pub const LATENCY_BUCKETS: usize = LATENCY_US.len() + 1;

/// The bucket of a latency.
#[must_use]
pub fn bucket(latency_us: u64) -> usize {
    LATENCY_US.partition_point(|end| *end < latency_us)
}

/// How often a latency fell into each bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Latencies(
    /// Without the zeros at its end.
    Vec<u64>,
);

impl From<Vec<u64>> for Latencies {
    fn from(counts: Vec<u64>) -> Latencies {
        Latencies::new(counts)
    }
}

impl From<Latencies> for Vec<u64> {
    fn from(latencies: Latencies) -> Vec<u64> {
        latencies.0
    }
}

impl Latencies {
    #[must_use]
    pub fn new(mut counts: Vec<u64>) -> Latencies {
        counts.truncate(LATENCY_BUCKETS);
        let used = counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        counts.truncate(used);
        Latencies(counts)
    }

    fn count(&self, bucket: usize) -> u64 {
        self.0.get(bucket).copied().unwrap_or_default()
    }

    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |total, count| total.saturating_add(*count))
    }

    /// What was added since.
    #[must_use]
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        Latencies::new((0..LATENCY_BUCKETS).map(|at| self.count(at).saturating_sub(earlier.count(at))).collect())
    }

    #[must_use]
    pub fn plus(&self, other: &Latencies) -> Latencies {
        Latencies::new((0..LATENCY_BUCKETS).map(|at| self.count(at).saturating_add(other.count(at))).collect())
    }

    /// The latency that 95 of 100 did not exceed, in microseconds; 0 if there was none.
    ///
    /// Fewer than [`Latencies::ENOUGH`] are filled up with ones that took no time: a slow one among three says
    /// nothing about a twentieth of them.
    #[must_use]
    pub fn p95_us(&self) -> u64 {
        let total = self.total();
        let padding = Self::ENOUGH.saturating_sub(total);
        let all = total.saturating_add(padding);
        // How many are to be at or below it.
        let rank = all - all / 20;
        let Some(mut left) = rank.checked_sub(padding).filter(|left| *left > 0) else { return 0 };
        for at in 0..LATENCY_BUCKETS {
            let count = self.count(at);
            if left > count {
                left -= count;
                continue;
            }
            let from = at.checked_sub(1).map_or(0, |before| LATENCY_US[before]);
            // What took longer than the last end took that long at least.
            let to = LATENCY_US.get(at).copied().unwrap_or(from);
            return from + u64::try_from(u128::from(to - from) * u128::from(left) / u128::from(count)).unwrap_or(to);
        }
        0
    }

    /// So many are needed before a twentieth of them is one.
    pub const ENOUGH: u64 = 20;
}

/// What a gateway has had to do since it began.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// By its own monotonic clock.
    pub uptime_ms: u64,
    /// Those that managers asked to be told of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceTraffic>,
}

impl Traffic {
    /// From a gateway that was not asked to tell anything, or does not know of this yet.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.services.is_empty()
    }
}

/// What a gateway has had to do for one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    pub service: ServiceName,
    /// Requests that came in for it.
    #[serde(default)]
    pub requests: u64,
    /// Of those, the ones that wait for the head of their response now.
    #[serde(default)]
    pub waiting: u64,
    /// From the request's head to the response's, of all that were answered by a copy or by the gateway in its
    /// stead.
    #[serde(default)]
    pub latencies: Latencies,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn latencies(of: &[u64]) -> Latencies {
        let mut counts = vec![0; LATENCY_BUCKETS];
        of.iter().for_each(|us| counts[bucket(*us)] += 1);
        Latencies::new(counts)
    }

    #[test]
    fn a_few_slow_ones_are_not_a_twentieth() {
        assert_eq!(latencies(&[]).p95_us(), 0);
        assert_eq!(latencies(&[900_000]).p95_us(), 0);
        assert!(latencies(&[900_000, 900_000]).p95_us() > 500_000);
        assert!(latencies(&[1_000; 19]).p95_us() <= 1_000);
        let long = latencies(&[60_000_000; 20]);
        assert_eq!(long.p95_us(), 16_000_000);
    }

    #[test]
    fn zeros_at_the_end_are_not_told() {
        let text = serde_json::to_string(&latencies(&[100, 100, 400])).unwrap();
        assert_eq!(text, "[2,1]");
        let more = Latencies::new(vec![1; LATENCY_BUCKETS + 5]);
        assert_eq!(more.total(), LATENCY_BUCKETS as u64);
    }

    proptest! {
        #[test]
        fn a_percentile_is_in_the_bucket_of_the_one_it_stands_for(mut all in vec(0..20_000_000u64, 20..300)) {
            let p95 = latencies(&all).p95_us();
            all.sort_unstable();
            let exact = all[all.len() - all.len() / 20 - 1];
            let at = bucket(exact);
            let from = at.checked_sub(1).map_or(0, |before| LATENCY_US[before]);
            prop_assert!(p95 >= from && LATENCY_US.get(at).is_none_or(|end| p95 <= *end), "{p95} for {exact}");
        }

        #[test]
        fn what_is_between_two_reports_is_what_was_added(before in vec(0..20_000_000u64, 0..50), more in vec(0..20_000_000u64, 0..50)) {
            let (first, added) = (latencies(&before), latencies(&more));
            prop_assert_eq!(first.plus(&added).since(&first), added);
        }

        #[test]
        fn slower_ones_never_lower_it(all in vec(0..20_000_000u64, 1..100), at in any::<prop::sample::Index>(), more in 0..20_000_000u64) {
            let mut slower = all.clone();
            slower[at.index(all.len())] += more;
            prop_assert!(latencies(&slower).p95_us() >= latencies(&all).p95_us());
        }
    }
}
