//! What this node has been told of leases, and the clock that they end by.
//!
//! Rules and sums are those of [`quorate_agent_core::lease`].
//!
//! Source: clock_gettime(2).

use quorate_agent_core::lease::{BootTime, Deadlines, Hold, deadline};
use quorate_model::id::ReplicaId;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// CLOCK_BOOTTIME, as it is.
#[must_use]
pub fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    BootTime::from_nanos(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default())
}

/// What has been told of all replicas, whether or not they are assigned yet.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<BTreeMap<ReplicaId, watch::Sender<Deadlines>>>);

impl Holds {
    pub(crate) fn tell(&self, now: BootTime, hold: Hold) {
        let mut holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !holds.contains_key(&hold.replica) {
            // Whom nobody follows any more is forgotten as soon as that says nothing any more.
            holds.retain(|_, one| one.receiver_count() > 0 || !one.borrow().are_over(now));
        }
        let one = holds.entry(hold.replica).or_default();
        one.send_if_modified(|deadlines| deadlines.tell(now, hold.epoch, deadline(now, hold.until)));
    }

    pub(crate) fn follow(&self, replica: ReplicaId) -> watch::Receiver<Deadlines> {
        let mut holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holds.entry(replica).or_default().subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(second: u64) -> BootTime {
        BootTime::from_nanos(second * SECOND)
    }

    #[test]
    fn of_one_epoch_the_latest_counts_and_another_epoch_says_nothing_about_it() {
        let holds = Holds::default();
        let replica = ReplicaId::from_u128(1);
        let mut told = holds.follow(replica);
        let tell = |now, epoch, until| holds.tell(at(now), Hold { replica, epoch, until: at(until) });
        tell(0, 4, 12);
        assert_eq!(told.borrow_and_update().of(4), Some(at(11)));
        tell(0, 4, 11);
        assert!(!told.has_changed().unwrap(), "it does not go back");
        tell(0, 3, 24);
        tell(0, 5, 36);
        let known = told.borrow_and_update().clone();
        assert_eq!((known.of(3), known.of(4), known.of(5)), (Some(at(22)), Some(at(11)), Some(at(33))));
        tell(23, 5, 47);
        let known = told.borrow_and_update().clone();
        assert_eq!((known.of(3), known.of(4), known.of(5)), (None, None, Some(at(45))), "what is over is forgotten");
    }

    #[test]
    fn who_is_not_known_here_is_remembered_until_that_is_over() {
        let holds = Holds::default();
        let hold = |number, until| Hold { replica: ReplicaId::from_u128(number), epoch: 1, until: at(until) };
        holds.tell(at(0), hold(1, 12));
        assert_eq!(holds.follow(ReplicaId::from_u128(1)).borrow().of(1), Some(at(11)));
        holds.tell(at(30), hold(2, 42));
        assert_eq!(holds.0.lock().unwrap().len(), 1);
    }
}
