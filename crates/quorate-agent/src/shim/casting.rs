//! How a shim changes the part of its copy: the lease, the timers, the hook or the order to the keeper, and what
//! becomes of either. What the part is at the moment, is in [`super::role`].

use super::deadline::{Deadline, NEVER};
use super::role::{Hook, Role};
use super::{Shim, Work, complain, describe};
use crate::protocol::{Order, Seen, ShimLease};
use quorate_agent_core::lease::BootTime;
use quorate_model::assignment::AssignedLease;
use quorate_model::observed::{Fencing, Part};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

impl Shim {
    /// Whether the end of the lease is the shim's business. One that gives it back is killed at the deadline, by the
    /// kernel.
    pub(super) fn looks_at_lease(&self) -> bool {
        self.role.as_ref().is_none_or(Role::needs_lease)
    }

    /// A lease is held: the copy is to be the active one.
    pub(super) fn activate(&mut self, lease: AssignedLease, at: BootTime) {
        let (Some(role), Work::Running { workload, .. }) = (&mut self.role, &self.work) else { return };
        if !role.may_take(lease.epoch) {
            return;
        }
        let spec = &self.launch.assigned.spec;
        let grace = if spec.demotes() { spec.activity().timeout } else { spec.stop.grace };
        let deadline = match Deadline::arm_for(lease, grace.0, at, self.flaw) {
            Ok(deadline) => deadline,
            Err(error) => return complain("it cannot be active", &error),
        };
        workload.hold(deadline.at());
        let fencing = if self.keeper.is_some() { Fencing::Asked } else { workload.fencing() };
        let (epoch, init) = (lease.epoch, workload.init());
        self.state.lease = Some(ShimLease { epoch, fencing: Some(fencing), init, let_go: false });
        self.deadline = Some(deadline);
        self.change_part(Part::Promoting, epoch);
    }

    /// An epoch is to be given back, whether or not it is in use here.
    pub(super) fn resign(&mut self, epoch: u64) {
        let Some(role) = &mut self.role else { return };
        if role.resign(epoch) {
            self.demote();
        } else {
            self.publish(self.state.state);
        }
    }

    /// The active copy is to be a standby. Without a way to that it is killed, and starts as one.
    pub(super) fn demote(&mut self) {
        let Some(role) = self.role.as_ref().filter(|role| role.needs_lease()) else { return };
        let epoch = role.casting().epoch;
        if role.part() == Part::Promoting {
            return self.fail_change("was not done before its lease was over");
        }
        self.change_part(Part::Demoting, epoch);
    }

    /// Begins a change of the part, and its hook.
    fn change_part(&mut self, part: Part, epoch: u64) {
        let Some(role) = &mut self.role else { return };
        if let Err(error) = role.enter(part, epoch) {
            return self.fail_change(&format!("cannot be said in its file: {error}"));
        }
        let late_at = Instant::now().checked_add(self.launch.assigned.spec.activity().timeout.0);
        let (words, order, name) = match part {
            Part::Demoting => (&self.launch.demote, Order::Demote, "standby"),
            Part::Standby | Part::Promoting | Part::Active => (&self.launch.promote, Order::Promote, "active"),
        };
        let started = match (words.split_first(), &self.work) {
            _ if self.keeper.is_some() => Ok(None),
            (Some((program, args)), Work::Running { workload, .. }) => {
                let mut command = Command::new(program);
                command.args(args).env_clear().envs(&self.launch.env).envs(self.launch.secret_env.expose());
                command.env("QUORATE_ROLE", name).env("QUORATE_EPOCH", epoch.to_string());
                command.current_dir("work").stdin(Stdio::null()).process_group(0);
                self.outputs(&mut command).and_then(|()| Hook::start(&mut command, workload)).map(Some)
            }
            // Told by the file alone.
            _ if part == Part::Promoting => return self.arrive(),
            _ => return self.fail_change("has no program: the copy is started anew"),
        };
        match started {
            Ok(hook) => {
                let is_told = hook.is_none();
                if let Some(role) = &mut self.role {
                    role.await_hook(hook, late_at);
                }
                if is_told {
                    self.order(order);
                }
                self.publish(self.state.state);
            }
            Err(error) => self.fail_change(&format!("cannot be started: {error}")),
        }
    }

    fn outputs(&self, command: &mut Command) -> io::Result<()> {
        command.stdout(self.output_end.try_clone()?).stderr(self.output_end.try_clone()?);
        Ok(())
    }

    pub(super) fn on_hook_end(&mut self) {
        match self.role.as_mut().and_then(Role::hook_status) {
            Some(Ok(status)) if status.success() => self.arrive(),
            Some(Ok(status)) => self.fail_change(&describe(status)),
            Some(Err(error)) => self.fail_change(&error.to_string()),
            None => {}
        }
    }

    /// The keeper said how its charge is.
    pub(super) fn hear_of_change(&mut self) {
        let Some(role) = self.role.as_ref().filter(|role| role.late_at().is_some()) else { return };
        match (role.part(), self.state.kept.as_ref().map(|kept| kept.seen)) {
            (Part::Promoting, Some(Seen::Promoted)) | (Part::Demoting, Some(Seen::Up)) => self.arrive(),
            (_, Some(Seen::Failing | Seen::Cannot | Seen::Ended)) => self.fail_change("was not done by its agent"),
            _ => {}
        }
    }

    /// The part has changed.
    fn arrive(&mut self) {
        let Some(role) = &mut self.role else { return };
        let resigns = role.arrive();
        if role.part() == Part::Standby {
            // Its hook says that nothing of it is active any more, and is believed.
            (self.deadline, self.state.lease) = (None, None);
            if let Work::Running { workload, .. } | Work::Stopping { workload, .. } = &self.work {
                workload.hold(NEVER);
            }
        }
        self.publish(self.state.state);
        if resigns {
            self.demote();
        }
    }

    /// Nobody knows what the copy is now: all of it is killed, and it starts anew as a standby.
    pub(super) fn fail_change(&mut self, why: &str) {
        let Some(role) = &mut self.role else { return };
        let what = if role.part() == Part::Demoting { "demote" } else { "promote" };
        role.fail(format!("{what} {why}"));
        if let Work::Running { workload, .. } = &self.work {
            workload.kill();
        }
    }
}
