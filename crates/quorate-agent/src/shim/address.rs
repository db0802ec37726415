//! The address of a service, while its replica holds its lease.
//!
//! The kernel answers for it until shortly before the shim's own deadline, and for no longer than it was last told:
//! an address that is put on lives for whole seconds and is renewed with the lease. So it is gone when the lease
//! may be another's, whatever has become of server and shim; that is the same timer that kills the shim, in another
//! part of the kernel, which counts less exactly ([`quorate_vip::kernel`]).
//!
//! ```text
//!  now                         gone at the latest  deadline
//!   ├── life, in whole seconds ──┼─── LATENESS ────┤
//! ```
//! # Invariants
//! - What is told to the kernel ends, by [`LATENESS`], before the deadline of this shim.
//! - It is up before the workload is started, and stays while that is started again.
//! - It is taken off before this shim says that the replica is over.

use crate::launch::Launch;
use crate::lease::boot_time;
use quorate_agent_core::lease::BootTime;
use quorate_model::vip::ServiceVip;
use quorate_vip::kernel::{Kernel, LATENESS, Mark, Place};
use quorate_vip::neighbours::{ANNOUNCED_AFTER, Hardware, Neighbours};
use std::io;
use std::time::{Duration, Instant};

/// How often the network is asked whether somebody has it, before it is put on, and how long that may answer.
const ASKED: u32 = 3;
const ANSWERED_WITHIN: Duration = Duration::from_millis(100);

/// The address that this shim is to hold.
pub(super) struct Address {
    vip: ServiceVip,
    mark: Mark,
    up: Option<Up>,
}

struct Up {
    kernel: Kernel,
    place: Place,
    neighbours: Option<Neighbours>,
    /// Until when the kernel answers for sure.
    until: BootTime,
    /// Since when it is announced, and how often it was.
    since: Instant,
    announced: usize,
    stranger: Option<Hardware>,
}

impl Address {
    /// `None`: the service has none.
    pub(super) fn of(launch: &Launch) -> Option<Address> {
        let (vip, lease) = launch.assigned.spec.vip.clone().zip(launch.assigned.lease)?;
        Some(Address { vip, mark: Mark::Service { epoch: lease.epoch }, up: None })
    }

    /// Puts it on, if it is not; after asking the network, which takes 0.3 s.
    ///
    /// # Errors
    /// Somebody else has it, or the kernel refuses it. A sentence for people.
    pub(super) fn take(&mut self, deadline: BootTime) -> io::Result<()> {
        if self.up.is_some() {
            return Ok(());
        }
        let trouble = |error: &dyn std::error::Error| {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            io::Error::other(format!("its address {} cannot be taken: {error}{cause}", self.vip))
        };
        let mut kernel = Kernel::open().map_err(|error| trouble(&error))?;
        let place = kernel.place(self.vip.address, self.vip.interface.as_ref()).map_err(|error| trouble(&error))?;
        let neighbours = Neighbours::listen(self.vip.address, &place).map_err(|error| trouble(&error))?;
        if let Some(hardware) = neighbours.as_ref().map_or(Ok(None), ask).map_err(|error| trouble(&error))? {
            return Err(io::Error::other(format!("its address {} is in use: {} has it", self.vip, shown(hardware))));
        }
        let life = life(deadline).ok_or_else(|| io::Error::other("its lease ends too soon for its address"))?;
        kernel.put(self.vip.address, &place, self.mark, life).map_err(|error| trouble(&error))?;
        let until = boot_time().plus(life);
        let (since, announced, stranger) = (Instant::now(), 0, None);
        let mut up = Up { kernel, place, neighbours, until, since, announced, stranger };
        up.on_time();
        self.up = Some(up);
        Ok(())
    }

    /// The lease is held until a later deadline. Says what is wrong, if something is.
    ///
    /// # Errors
    /// The kernel's; the address ends when it would have ended.
    pub(super) fn hold(&mut self, deadline: BootTime) -> io::Result<Option<String>> {
        let (Some(up), Some(life)) = (&mut self.up, life(deadline)) else { return Ok(None) };
        let now = boot_time();
        up.kernel.renew(self.vip.address, &up.place, self.mark, life).map_err(io::Error::other)?;
        // It was gone for a moment, and others may have looked for it meanwhile.
        if up.until < now {
            (up.since, up.announced) = (Instant::now(), 0);
        }
        up.until = now.plus(life);
        up.on_time();
        let other = up.neighbours.as_ref().map_or(Ok(None), Neighbours::other)?;
        let Some(hardware) = other else { return Ok(None) };
        // Whoever that is has just misled the neighbours.
        (up.since, up.announced) = (Instant::now(), 0);
        up.on_time();
        let news = up.stranger.replace(hardware) != Some(hardware);
        Ok(news.then(|| format!("{} says that it has the address {}", shown(hardware), self.vip)))
    }

    /// How long until [`on_time`](Address::on_time) has something to do.
    pub(super) fn left(&self) -> Option<Duration> {
        let up = self.up.as_ref()?;
        let at = up.since + *ANNOUNCED_AFTER.get(up.announced)?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Announces it again, if it is time to.
    pub(super) fn on_time(&mut self) {
        if let Some(up) = &mut self.up {
            up.on_time();
        }
    }

    /// Takes it off. Where that fails it ends by itself.
    pub(super) fn let_go(&mut self) -> io::Result<()> {
        match self.up.take() {
            None => Ok(()),
            Some(mut up) => up.kernel.remove(self.vip.address.ip(), self.mark).map_err(io::Error::other),
        }
    }
}

impl Up {
    fn on_time(&mut self) {
        let due = |after: &Duration| self.since.elapsed() >= *after;
        if ANNOUNCED_AFTER.get(self.announced).is_some_and(due) {
            self.announced += 1;
            // One that is lost is followed by others.
            let _ = self.neighbours.as_ref().map_or(Ok(()), Neighbours::announce);
        }
    }
}

/// Takes off what a shim that was killed has left of a replica's address.
///
/// # Errors
/// The kernel's: it may still answer there.
pub(crate) fn clean_up(launch: &Launch) -> io::Result<()> {
    let Some(Address { vip, mark, .. }) = Address::of(launch) else { return Ok(()) };
    let remove = || Kernel::open()?.remove(vip.address.ip(), mark);
    remove().map_err(|error| io::Error::other(format!("its address {vip} is not taken off: {error}")))
}

/// For how long the kernel may be told to answer. `None`: not even for a second.
fn life(deadline: BootTime) -> Option<Duration> {
    let left = deadline.since(boot_time()).checked_sub(LATENESS)?;
    (left.as_secs() > 0).then(|| Duration::from_secs(left.as_secs()))
}

/// Who has the address.
fn ask(neighbours: &Neighbours) -> io::Result<Option<Hardware>> {
    for _ in 0..ASKED {
        neighbours.ask()?;
        std::thread::park_timeout(ANSWERED_WITHIN);
        if let Some(hardware) = neighbours.other()? {
            return Ok(Some(hardware));
        }
    }
    Ok(None)
}

fn shown(hardware: Hardware) -> String {
    hardware.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_lives_for_whole_seconds_and_ends_before_the_shim_does() {
        let at = |ms| boot_time().plus(Duration::from_millis(ms));
        assert_eq!(life(at(1_400)), None);
        assert_eq!(life(at(2_400)), None, "less than a second is left of it");
        assert_eq!(life(at(2_900)), Some(Duration::from_secs(1)));
        // The shortest lease of a service with an address, after a renewal: 11/12 of 6 s.
        assert_eq!(life(at(5_400)), Some(Duration::from_secs(3)));
        assert_eq!(life(BootTime::from_nanos(0)), None);
    }
}
