//! What a gateway knows about one replica besides the table: requests in flight, ejection, and the
//! connections that wait for the next request.
//!
//! It survives table changes, keyed by replica and address. All of it is atomic or behind a lock
//! that is held for a few instructions, so that several threads may share it.

use crate::Limits;
use crate::upstream::Link;
use quorate_model::id::ReplicaId;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Most connections that wait in one pool; more would only hold memory on both sides.
const IDLE_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub replica: ReplicaId,
    pub address: SocketAddr,
    in_flight: AtomicUsize,
    /// Whether the table in force lets new requests go here.
    offered: AtomicBool,
    /// Milliseconds after `epoch`; 0: not ejected.
    ejected_until: AtomicU64,
    /// Ejections in a row without a success between them.
    ejections: AtomicU32,
    /// Active checks that failed in a row.
    failed_checks: AtomicU32,
    /// Requests that were answered, how many at the last look, and the looks since then with requests waiting.
    answers: AtomicU32,
    answers_seen: AtomicU32,
    looks: AtomicU32,
    /// Told when requests wait and none is answered: the next check need not wait for its turn.
    doubted: Notify,
    /// Its server does not even answer a connect: nothing that was sent there will be answered.
    silent: AtomicBool,
    epoch: Instant,
    eject_first: Duration,
    eject_longest: Duration,
    idle: Mutex<Vec<Link>>,
    /// Told when the last request of an endpoint that is no longer offered has ended.
    drained: Arc<Notify>,
}

/// What an active check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckResult {
    Passed,
    /// Refused, reset, or an answer that is no success.
    Failed,
    /// Not even the system of its server answered.
    Silent,
}

/// Looks in a row, with requests waiting and none answered, until an endpoint is doubted.
const LOOKS_TO_DOUBT: u32 = 2;

/// Failed active checks in a row that eject.
const CHECKS_TO_EJECT: u32 = 2;

impl Endpoint {
    pub(crate) fn new(replica: ReplicaId, address: SocketAddr, limits: &Limits, drained: Arc<Notify>) -> Self {
        Endpoint {
            replica,
            address,
            in_flight: AtomicUsize::new(0),
            offered: AtomicBool::new(true),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            failed_checks: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            answers_seen: AtomicU32::new(0),
            looks: AtomicU32::new(0),
            doubted: Notify::new(),
            silent: AtomicBool::new(false),
            epoch: Instant::now(),
            eject_first: limits.eject_first,
            eject_longest: limits.eject_longest,
            idle: Mutex::new(Vec::new()),
            drained,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn is_offered(&self) -> bool {
        self.offered.load(Ordering::SeqCst)
    }

    /// Connections to an endpoint that is not offered are of no use to anyone.
    pub(crate) fn set_offered(&self, offered: bool) {
        self.offered.store(offered, Ordering::SeqCst);
        if !offered {
            self.close_idle();
        }
    }

    /// The clock is read only while an ejection is on record.
    pub(crate) fn is_ejected(&self) -> bool {
        if self.failed_checks.load(Ordering::Relaxed) >= CHECKS_TO_EJECT {
            return true;
        }
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && self.now() < until
    }

    /// A connection was refused or broken: leave it alone for a while. The many requests that one
    /// death breaks count as one.
    pub(crate) fn eject(&self) {
        let now = self.now();
        if now < self.ejected_until.load(Ordering::Relaxed) {
            return;
        }
        let earlier = self.ejections.fetch_add(1, Ordering::Relaxed);
        let pause = self.eject_first.saturating_mul(1 << earlier.min(16)).min(self.eject_longest);
        self.ejected_until.store(now + millis(pause).max(1), Ordering::Relaxed);
        self.close_idle();
    }

    /// It answered: an earlier ejection is forgotten.
    pub(crate) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.forgive();
    }

    fn forgive(&self) {
        if self.ejections.load(Ordering::Relaxed) != 0 {
            self.ejections.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// Takes the result of an active check. Returns whether requests should look again.
    pub(crate) fn checked(&self, result: CheckResult) -> bool {
        let before = (self.is_ejected(), self.is_silent());
        if result == CheckResult::Passed {
            self.failed_checks.store(0, Ordering::Relaxed);
            self.silent.store(false, Ordering::Relaxed);
            self.forgive();
        } else {
            let failed = self.failed_checks.fetch_add(1, Ordering::Relaxed) + 1;
            let silent = result == CheckResult::Silent && failed >= CHECKS_TO_EJECT;
            self.silent.store(silent, Ordering::Relaxed);
            if failed >= CHECKS_TO_EJECT {
                self.close_idle();
            }
        }
        before != (self.is_ejected(), self.is_silent())
    }

    /// Looks whether requests wait here that nothing answers. It is doubted once until an answer comes: one that is
    /// only slow, or serves a tunnel, is asked once more than otherwise.
    pub(crate) fn look(&self) {
        let answers = self.answers.load(Ordering::Relaxed);
        if self.answers_seen.swap(answers, Ordering::Relaxed) != answers || self.in_flight() == 0 {
            self.looks.store(0, Ordering::Relaxed);
        } else if self.looks.fetch_add(1, Ordering::Relaxed) + 1 == LOOKS_TO_DOUBT {
            self.doubted.notify_one();
        }
    }

    /// Waits until it is doubted.
    pub(crate) async fn doubt(&self) {
        self.doubted.notified().await;
    }

    /// Whether waiting for a response from here is pointless.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// The connection that was used last: its buffers are warm and the others may grow old.
    pub(crate) fn take_idle(&self) -> Option<Link> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(crate) fn put_idle(&self, link: Link) {
        // Dropped after the lock: closing a socket is a system call.
        let _surplus = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_offered() && idle.len() < IDLE_MAX {
                idle.push(link);
                None
            } else {
                Some(link)
            }
        };
    }

    pub(crate) fn close_idle(&self) {
        let _closed = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Closes waiting connections that the replica has closed or that nobody has used since
    /// `rounds` calls of this.
    pub(crate) fn tidy(&self, rounds: u32) {
        let links = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        if links.is_empty() {
            return;
        }
        let mut kept: Vec<Link> = links
            .into_iter()
            .filter_map(|mut link| (link.rest() < rounds && link.is_alive()).then_some(link))
            .collect();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // What came back meanwhile was used later and belongs on top.
        kept.append(&mut idle);
        *idle = kept;
    }

    fn now(&self) -> u64 {
        millis(self.epoch.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A request that is on its way to an endpoint, until its response is relayed completely.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Endpoint>);

impl InFlight {
    pub(crate) fn begin(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(endpoint.clone())
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && !self.0.is_offered() {
            self.0.drained.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(limits: &Limits) -> Endpoint {
        let address = "127.0.0.1:1".parse().unwrap();
        Endpoint::new(ReplicaId::from_u128(1), address, limits, Arc::new(Notify::new()))
    }

    #[test]
    fn many_failures_at_once_count_as_one_ejection_and_an_answer_ends_it() {
        let endpoint = endpoint(&Limits::default());
        for _ in 0..64 {
            endpoint.eject();
        }
        assert!(endpoint.is_ejected());
        assert_eq!(endpoint.ejections.load(Ordering::Relaxed), 1);
        endpoint.answered();
        assert!(!endpoint.is_ejected());
    }

    #[tokio::test]
    async fn requests_that_nothing_answers_raise_a_doubt_once_until_an_answer_comes() {
        let endpoint = Arc::new(endpoint(&Limits::default()));
        let is_doubted = async || tokio::time::timeout(Duration::ZERO, endpoint.doubt()).await.is_ok();
        (0..5).for_each(|_| endpoint.look());
        assert!(!is_doubted().await, "nobody waits");
        let _waiting = InFlight::begin(&endpoint);
        endpoint.look();
        assert!(!is_doubted().await, "it may have begun just now");
        endpoint.look();
        assert!(is_doubted().await);
        (0..5).for_each(|_| endpoint.look());
        assert!(!is_doubted().await, "once");
        endpoint.answered();
        (0..3).for_each(|_| endpoint.look());
        assert!(is_doubted().await, "another one waits");
    }

    #[test]
    fn two_failed_checks_eject_and_one_passed_check_restores() {
        let endpoint = endpoint(&Limits::default());
        assert!(!endpoint.checked(CheckResult::Failed));
        assert!(!endpoint.is_ejected());
        assert!(endpoint.checked(CheckResult::Failed));
        assert!(endpoint.is_ejected() && !endpoint.is_silent());
        assert!(endpoint.checked(CheckResult::Silent));
        assert!(endpoint.is_silent());
        assert!(endpoint.checked(CheckResult::Passed));
        assert!(!endpoint.is_ejected() && !endpoint.is_silent());
    }
}
