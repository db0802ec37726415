//! What keeps a shim to its lease: the kernel's timer, and the moment before it.

use crate::kernel::KillTimer;
use crate::launch::Launch;
use crate::lease::boot_time;
use quorate_agent_core::lease::{BootTime, soft_stop};
use quorate_model::assignment::AssignedLease;
use quorate_model::planted::{Bug, planted};
use std::io;
use std::time::Duration;

/// What is wrong with a shim that the tests of fencing must find, or must get along with.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The kernel has no timer.
    NoTimer,
    /// The kernel does not kill the shim, as when a disk holds it.
    Undying,
}

/// The end of time.
pub(super) const NEVER: BootTime = BootTime::from_nanos(u64::MAX);

/// The lease that this shim may run its workload under.
pub(super) struct Deadline {
    lease: AssignedLease,
    grace: Duration,
    at: BootTime,
    /// Armed for `at`; none where nothing ends the workload by time.
    timer: Option<KillTimer>,
    flaw: Option<Flaw>,
}

impl Deadline {
    /// From here on the kernel kills this process when its time is over. `None`: it needs no lease.
    ///
    /// # Errors
    /// When there is no time in which to run anything, or no timer.
    pub(super) fn arm(launch: &Launch, flaw: Option<Flaw>) -> io::Result<Option<Deadline>> {
        let Some(mut lease) = launch.assigned.lease else { return Ok(None) };
        lease.keeps |= planted(Bug::KillTimerOff);
        let grace = launch.assigned.spec.stop.grace.0;
        if lease.keeps {
            return Ok(Some(Deadline { lease, grace, at: NEVER, timer: None, flaw }));
        }
        let first = launch.deadline.ok_or_else(|| io::Error::other("there is no lease yet"))?;
        Deadline::arm_for(lease, grace, first, flaw).map(Some)
    }

    /// The same for a workload that runs already and is to be the active one of several. `grace`: what it has to end
    /// in, or to become a standby in.
    ///
    /// # Errors
    /// As for [`arm`](Deadline::arm).
    pub(super) fn arm_for(
        lease: AssignedLease,
        grace: Duration,
        first: BootTime,
        flaw: Option<Flaw>,
    ) -> io::Result<Deadline> {
        let timer = match flaw {
            None => Some(KillTimer::new()?),
            Some(_) => None,
        };
        let mut deadline = Deadline { lease, grace, at: BootTime::from_nanos(0), timer, flaw };
        if soft_stop(first, grace, lease.ttl.0) <= boot_time() {
            return Err(io::Error::other("its lease ends too soon"));
        }
        deadline.extend(lease.epoch, first)?;
        Ok(deadline)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lease.epoch
    }

    /// When the kernel kills this process.
    pub(super) fn at(&self) -> BootTime {
        self.at
    }

    /// What the init of the workload's namespace is told.
    pub(super) fn of_init(&self) -> Option<BootTime> {
        (self.flaw != Some(Flaw::NoTimer) && self.ends()).then_some(self.at)
    }

    /// Whether the kernel ends the workload by time. `false`: it goes on without renewals.
    pub(super) fn ends(&self) -> bool {
        !self.lease.keeps
    }

    /// Puts the end off, and says until when. What is of another epoch or not later changes nothing.
    ///
    /// # Errors
    /// When the timer cannot be put off; the end stays where it was then.
    pub(super) fn extend(&mut self, epoch: u64, at: BootTime) -> io::Result<Option<BootTime>> {
        // No lease is longer than its ttl, whatever the agent says.
        let at = at.min(boot_time().plus(self.lease.ttl.0));
        if epoch != self.lease.epoch || at <= self.at {
            return Ok(None);
        }
        if let Some(timer) = &mut self.timer {
            timer.arm(at)?;
        }
        self.at = at;
        Ok(Some(at))
    }

    /// How long until the workload must be asked to end.
    pub(super) fn left(&self) -> Duration {
        soft_stop(self.at, self.grace, self.lease.ttl.0).since(boot_time())
    }
}
