//! The part that a copy of an active-passive service has: standby, active, and the ways between them.
//!
//! The workload runs all along; what changes is whether a lease stands behind it. Each way is a hook: a program
//! beside the workload, in its namespace and group, or an order to the keeper. From when a copy is to be active until
//! it said that it is not any more, the kernel's timers are armed as those of a service that runs once.
//!
//! # Invariants
//! - A timer is armed before the hook that promotes is started, and disarmed only by a hook that demoted with
//!   success, or when nothing of the workload is left.
//! - An epoch that was given back is never taken up again by this shim.
//! - A hook ends with its workload, and before its time is over.

use super::workload::Workload;
use crate::files;
use quorate_model::observed::{Casting, Part};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

/// What the file in the replica's directory is called that says which part it has.
pub(crate) const FILE: &str = "role";

/// A program that changes the part, while it runs.
pub(super) struct Hook {
    child: Child,
    ended: OwnedFd,
}

impl Hook {
    pub(super) fn start(command: &mut Command, beside: &Workload) -> io::Result<Hook> {
        let mut child = beside.start_beside(command)?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(ended) => Ok(Hook { child, ended }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Its end; to be asked for when it has ended.
    fn status(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Hook {
    /// Leaves nothing of it, and no zombie, for which the init of its namespace would wait.
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A way from one part to another that is not over.
struct Change {
    late_at: Option<Instant>,
    /// `None`: the keeper was told.
    hook: Option<Hook>,
}

/// See the module.
pub(super) struct Role {
    now: Casting,
    change: Option<Change>,
    /// It is to be a standby again as soon as it is active.
    resigns: bool,
    /// Why the workload was killed: its part could not be changed.
    pub(super) failed: Option<String>,
}

impl Role {
    /// Of a workload that is about to start.
    pub(super) fn standby() -> io::Result<Role> {
        say("standby\n")?;
        let now = Casting { part: Part::Standby, epoch: 0, yielded: 0 };
        Ok(Role { now, change: None, resigns: false, failed: None })
    }

    pub(super) fn casting(&self) -> Casting {
        self.now
    }

    pub(super) fn part(&self) -> Part {
        self.now.part
    }

    /// Whether it may be the active one under this epoch.
    pub(super) fn may_take(&self, epoch: u64) -> bool {
        self.now.part == Part::Standby && epoch > self.now.yielded && self.failed.is_none()
    }

    /// Whether a lease stands behind it, and it has not begun to give that back.
    pub(super) fn needs_lease(&self) -> bool {
        matches!(self.now.part, Part::Promoting | Part::Active) && self.failed.is_none()
    }

    /// It is on its way to be the active one, or away from that.
    pub(super) fn enter(&mut self, part: Part, epoch: u64) -> io::Result<()> {
        (self.now.part, self.now.epoch) = (part, epoch);
        say(&if part == Part::Demoting { "standby\n".to_owned() } else { format!("active {epoch}\n") })
    }

    pub(super) fn await_hook(&mut self, hook: Option<Hook>, late_at: Option<Instant>) {
        self.change = Some(Change { late_at, hook });
    }

    /// An epoch is to be given back. Whether that is to be begun now.
    pub(super) fn resign(&mut self, epoch: u64) -> bool {
        if epoch < self.now.epoch {
            return false;
        }
        self.now.yielded = self.now.yielded.max(epoch);
        self.resigns = self.now.part == Part::Promoting;
        self.now.part == Part::Active
    }

    /// Readable when the hook has ended.
    pub(super) fn ended(&self) -> Option<BorrowedFd<'_>> {
        self.change.as_ref()?.hook.as_ref().map(|hook| hook.ended.as_fd())
    }

    pub(super) fn late_at(&self) -> Option<Instant> {
        self.change.as_ref()?.late_at
    }

    /// The hook has ended: how. `None`: there is none.
    pub(super) fn hook_status(&mut self) -> Option<io::Result<ExitStatus>> {
        self.change.as_mut()?.hook.as_mut().map(Hook::status)
    }

    /// The change is over, well: what it has become. Whether it is to be a standby at once.
    pub(super) fn arrive(&mut self) -> bool {
        self.change = None;
        if self.now.part == Part::Promoting {
            self.now.part = Part::Active;
            return std::mem::take(&mut self.resigns);
        }
        (self.now.part, self.now.epoch) = (Part::Standby, 0);
        false
    }

    /// The change is over, badly.
    pub(super) fn fail(&mut self, why: String) {
        self.change = None;
        self.failed = Some(why);
    }

    /// Nothing of the workload is left. Why it was killed, if its part was the reason.
    pub(super) fn gone(&mut self) -> Option<String> {
        (self.change, self.resigns) = (None, false);
        (self.now.part, self.now.epoch) = (Part::Standby, 0);
        // Whoever starts there finds what it is; a disk that takes no file says that elsewhere.
        let _ = say("standby\n");
        self.failed.take()
    }

    /// Ends the hook before the workload is waited for.
    pub(super) fn drop_hook(&mut self) {
        self.change = None;
    }
}

fn say(text: &str) -> io::Result<()> {
    files::write_text(Path::new(FILE), text)
}
