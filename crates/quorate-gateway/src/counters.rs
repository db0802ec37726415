//! What a gateway has had to do for each service.
//!
//! Whoever serves requests adds to counters of the service, without a lock and without memory of its own; the task
//! that reports reads them. One thread serves all requests of a gateway, so no other core's cache holds them.
//!
//! # Invariants
//! - Counters of a service go on when the table changes, and end with the service.
//! - A request counts once, however often it is sent.

use quorate_model::id::ServiceName;
use quorate_model::traffic::{LATENCY_BUCKETS, Latencies, ServiceTraffic, bucket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Of one service.
#[derive(Debug)]
pub(crate) struct Counters {
    requests: AtomicU64,
    waiting: AtomicU64,
    latencies: [AtomicU64; LATENCY_BUCKETS],
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            requests: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            latencies: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counters {
    pub(crate) fn tell(&self, service: ServiceName) -> ServiceTraffic {
        let latencies = self.latencies.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        ServiceTraffic {
            service,
            requests: self.requests.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            latencies: Latencies::new(latencies),
        }
    }
}

/// A request that waits for its response. Dropped: its client did not wait.
#[derive(Debug)]
pub(crate) struct Counted {
    counters: Arc<Counters>,
    began: Instant,
}

impl Counted {
    pub(crate) fn begin(counters: &Arc<Counters>) -> Counted {
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.waiting.fetch_add(1, Ordering::Relaxed);
        Counted { counters: counters.clone(), began: Instant::now() }
    }

    /// The head of a response is here, or there will be none.
    pub(crate) fn answered(self) {
        let us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.latencies[bucket(us)].fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
