//! The workload's process, and everything that it has started.
//!
//! It is in a cgroup of its own, by which all of it is known ([`crate::cgroup`]). Under a lease it also runs in
//! a PID namespace of its own, so that whatever ends the shim ends all of it. And it leads a process group; where
//! nothing else is to be had, what leaves that is found by its mark alone ([`crate::sweep`]).

use crate::cgroup::Group;
use crate::kernel::{EMPTIED_WITHIN, PidSpace, enter_before_exec, refuses_namespaces, spawn_bound};
use quorate_agent_core::lease::BootTime;
use quorate_model::observed::Fencing;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};

/// One run of the workload. It is reaped only by [`Workload::end`].
pub(super) struct Workload {
    child: Child,
    pidfd: OwnedFd,
    space: Option<PidSpace>,
    group: Option<Group>,
}

impl Workload {
    /// Starts it without a lease, in this group.
    pub(super) fn start(command: &mut Command, group: Option<&Group>) -> io::Result<Workload> {
        enter(command, group)?;
        Workload::of(spawn_bound(command)?, None, group)
    }

    /// Starts it so that nothing of it outlives this process, if the machine allows it.
    pub(super) fn start_fenced(
        command: &mut Command,
        group: Option<&Group>,
        deadline: Option<BootTime>,
    ) -> io::Result<Workload> {
        match PidSpace::new(deadline) {
            Ok(space) => {
                enter(command, group)?;
                Workload::of(space.spawn(command)?, Some(space), group)
            }
            Err(error) if refuses_namespaces(&error) => Workload::start(command, group),
            Err(error) => Err(error),
        }
    }

    /// Starts another program where it runs, to end with it.
    pub(super) fn start_beside(&self, command: &mut Command) -> io::Result<Child> {
        enter(command, self.group.as_ref())?;
        match &self.space {
            Some(space) => space.spawn(command),
            None => spawn_bound(command),
        }
    }

    fn of(mut child: Child, space: Option<PidSpace>, group: Option<&Group>) -> io::Result<Workload> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Workload { child, pidfd, space, group: group.cloned() }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable as soon as its main process has ended.
    pub(super) fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(super) fn fencing(&self) -> Fencing {
        if self.space.is_some() { Fencing::PidNamespace } else { Fencing::ProcessGroup }
    }

    /// Lets it live until a later deadline.
    pub(super) fn hold(&self, deadline: BootTime) {
        if let Some(space) = &self.space {
            space.hold(deadline);
        }
    }

    /// To the main process alone: it knows how to end its workers.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Of the namespace's init, if it is in one.
    pub(super) fn init(&self) -> Option<u32> {
        self.space.as_ref().map(PidSpace::pid)
    }

    /// Kills all of it that can be reached.
    pub(super) fn kill(&self) {
        // No such group is fine.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        if let Some(group) = &self.group {
            group.kill_work();
        }
        if let Some(space) = &self.space {
            space.kill();
        }
    }

    /// Kills what its main process left, and reaps that. Blocks until it has ended.
    ///
    /// It is over when nothing is left in the namespace, if there is one.
    pub(super) fn end(mut self) -> io::Result<(ExitStatus, Option<PidSpace>)> {
        // While its zombie still reserves the group's number.
        self.kill();
        let status = self.child.wait()?;
        if let (Some(group), None) = (&self.group, &self.space) {
            // What its main process left is dying. One that the kernel holds is not waited for any longer.
            group.end_work(EMPTIED_WITHIN);
        }
        Ok((status, self.space))
    }
}

fn enter(command: &mut Command, group: Option<&Group>) -> io::Result<()> {
    if let Some(group) = group {
        let gone = |error| io::Error::other(format!("its cgroup cannot be entered: {error}"));
        enter_before_exec(command, group.doors().map_err(gone)?);
    }
    Ok(())
}
