//! The keeper: what a shim runs in the place of a program, where the driver is another than `process`.
//!
//! A keeper starts what it keeps, looks at it, and lives as long as that does. To its shim it is a workload like
//! any other: its end is the end of what it keeps, SIGTERM asks it to stop, its stdout and stderr are the log.
//! Over its stdin it says how things are ([`Report`]) and hears orders ([`Order`]). How a thing is started, looked
//! at, stopped, promoted and cleaned up is a [`Backend`]; everything else is the same for all of them and here.
//!
//! ```text
//! Starting ──up──▶ Up ◀──looks──▶ Failing ──fail_after in a row──┐
//!    │ no             │ it ended                                 ▼
//!    └────────────────┴───────────────────────────▶ stop, then the keeper ends and its shim
//!                                                   starts another after a pause
//! any ──SIGTERM──▶ Stopping ──▶ Ended
//! ```
//!
//! Why a process of its own, and not a part of the shim: the shim keeps to a lease, so nothing in it may wait, and
//! what talks to agents, engines and buses waits a lot. And because everything that a keeper starts is below it, the
//! PID namespace that fences a program fences the daemons of an agent and the processes of a container as well.
//!
//! # Invariants
//! - No operation lasts longer than its limit: then its process group is killed. A stop that is asked for ends any
//!   operation but a stop.
//! - Only what says that it has ended, or fails several times in a row, is started again. Not knowing
//!   ([`Look::Unknown`]) ends nothing.
//! - What is made outside of the namespace is named in [`Report::may_be_left`] until it is known to be gone; after a
//!   keeper that was killed, another one cleans up ([`Backend::clean_up`]).
//! - Numbers of processes in files of agents are of the keeper's namespace. So an agent is never called outside of
//!   one where its replica ran in one: it would kill strangers.

use crate::files;
use crate::launch::{self, Launch};
use crate::protocol::{Order, Report, Seen};
use crate::shim::ShimArgs;
use desk::{Desk, Woken};
use quorate_model::observed::Fencing;
use quorate_model::spec::Driver;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

mod container;
pub(crate) mod desk;
mod line;
mod ocf;
pub(crate) mod pacemaker;
mod systemd;
mod vip;

pub(crate) use line::Line;
pub(crate) use ocf::is_meta_data;

/// In a new namespace numbers begin at 1, and those in a file that an earlier namespace left would soon mean
/// somebody. So a keeper begins to count somewhere in a range as large as this.
const PIDS_SPREAD: u32 = 30_000;

/// One kind of thing that is kept.
pub(crate) trait Backend {
    /// What may be claimed of it where the keeper is in a PID namespace.
    fn fencing(&self) -> Fencing;

    /// Starts it, or finds it started, and returns when it is up.
    fn start(&mut self, desk: &mut Desk) -> Result<(), Trouble>;

    /// How it is now.
    fn look(&mut self, desk: &mut Desk) -> Look;

    /// Ends it. Nothing of it is left after a success.
    fn stop(&mut self, desk: &mut Desk) -> Result<(), Trouble>;

    /// Makes it the active one of several.
    fn promote(&mut self, desk: &mut Desk) -> Result<(), Trouble>;

    /// Makes it one of several that are not active.
    fn demote(&mut self, desk: &mut Desk) -> Result<(), Trouble>;

    /// Ends what a keeper may have left that was killed. Nothing of it is left after a success.
    fn clean_up(&mut self, desk: &mut Desk) -> Result<(), Trouble>;

    /// Readable when it is worth while to look.
    fn news(&self) -> Option<BorrowedFd<'_>>;

    /// How long until the next look without news. `None`: there will be news.
    fn every(&self) -> Option<Duration>;

    /// Looks that fail in a row until it is stopped and started again.
    fn fail_after(&self) -> u32;
}

/// How something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    Up,
    Promoted,
    /// It has ended by itself.
    Ended {
        detail: String,
        as_it_should: bool,
    },
    Failing(String),
    /// Whoever could tell does not answer.
    Unknown(String),
    /// A stop was asked for meanwhile.
    AskedToStop,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// It can never be done like this, and nothing was started.
    #[error("{0}")]
    Cannot(String),
    #[error("{0}")]
    Failed(String),
    #[error("a stop was asked for")]
    AskedToStop,
}

/// Runs a keeper, in a replica's directory, until what it keeps is over; or cleans up.
pub(crate) fn keeper(args: &ShimArgs) -> ExitCode {
    spread_pids();
    let kept = || -> io::Result<bool> {
        let launch: Launch = files::read_json(Path::new(launch::FILE))?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no spec.json"))?;
        if args.clean_up {
            let mut desk = Desk::without_line()?;
            let done = backend(&launch).and_then(|mut backend| backend.clean_up(&mut desk));
            return match done {
                // What can never be started has left nothing.
                Ok(()) | Err(Trouble::Cannot(_)) => Ok(true),
                Err(trouble) => Err(io::Error::other(trouble.to_string())),
            };
        }
        let mut desk = Desk::new()?;
        Ok(match backend(&launch) {
            Ok(mut backend) => Keeper { backend: &mut *backend, desk: &mut desk, promoted: false }.keep(),
            Err(trouble) => {
                let detail = trouble.to_string();
                desk.report(&Report { seen: Seen::Cannot, detail, fencing: Fencing::Asked, may_be_left: false });
                false
            }
        })
    };
    match kept() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Into the replica's log, or to whoever asked for the cleaning.
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn backend(launch: &Launch) -> Result<Box<dyn Backend>, Trouble> {
    match launch.assigned.spec.driver {
        Driver::Process => Err(Trouble::Cannot("a program needs no keeper".to_owned())),
        Driver::Ocf => Ok(Box::new(ocf::Ocf::new(launch)?)),
        Driver::Systemd => Ok(Box::new(systemd::Systemd::new(launch)?)),
        Driver::Container => Ok(Box::new(container::Container::new(launch)?)),
        Driver::Vip => Ok(Box::new(vip::Vip)),
    }
}

fn spread_pids() {
    if std::process::id() < PIDS_SPREAD / 100 {
        let begin = uuid::Uuid::new_v4().as_u64_pair().0 % u64::from(PIDS_SPREAD);
        // The file is of the namespace of who writes. Where that is not allowed, numbers are as they are.
        let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", begin.to_string());
    }
}

/// The course of a keeper's life, whatever it keeps.
struct Keeper<'a> {
    backend: &'a mut dyn Backend,
    desk: &'a mut Desk,
    promoted: bool,
}

impl Keeper<'_> {
    /// Whether it ended as it should.
    fn keep(&mut self) -> bool {
        self.report(Seen::Starting, "", true);
        match self.start() {
            Ok(()) => {}
            Err(Trouble::Cannot(detail)) => {
                self.report(Seen::Cannot, &detail, false);
                return false;
            }
            Err(Trouble::Failed(detail)) => {
                // Something of it may have begun.
                let stopped = self.backend.stop(self.desk);
                self.report(Seen::Ended, &detail, stopped.is_err());
                return false;
            }
            Err(Trouble::AskedToStop) => return self.stop(),
        }
        let mut failures = 0;
        let mut next = self.next_look();
        loop {
            match self.desk.wait(self.backend.news(), next) {
                Woken::Stop => return self.stop(),
                Woken::Order(order) => {
                    self.obey(order);
                    next = self.next_look();
                    continue;
                }
                Woken::News | Woken::Time => {}
            }
            match self.backend.look(self.desk) {
                Look::AskedToStop => return self.stop(),
                Look::Up => (failures, self.promoted) = (0, false),
                Look::Promoted => (failures, self.promoted) = (0, true),
                Look::Unknown(detail) => {
                    self.report(Seen::Unknown, &detail, true);
                    next = self.next_look();
                    continue;
                }
                Look::Ended { detail, as_it_should } => {
                    let stopped = self.backend.stop(self.desk);
                    self.report(Seen::Ended, &detail, stopped.is_err());
                    return as_it_should;
                }
                Look::Failing(detail) => {
                    failures += 1;
                    self.report(Seen::Failing, &detail, true);
                    if failures >= self.backend.fail_after() {
                        let stopped = self.backend.stop(self.desk);
                        let detail = format!("{detail} ({failures} times in a row); it was stopped");
                        self.report(Seen::Ended, &detail, stopped.is_err());
                        return false;
                    }
                }
            }
            if failures == 0 {
                self.report_up();
            }
            next = self.next_look();
        }
    }

    /// Starts it, and does not believe that before it was looked at.
    fn start(&mut self) -> Result<(), Trouble> {
        self.backend.start(self.desk)?;
        let seen = self.backend.look(self.desk);
        self.promoted = seen == Look::Promoted;
        match seen {
            Look::Up | Look::Promoted => self.report_up(),
            Look::Unknown(detail) => self.report(Seen::Unknown, &detail, true),
            // It did what it was for already, which the next look sees again.
            Look::Ended { as_it_should: true, .. } => {}
            Look::Ended { detail, .. } => {
                return Err(Trouble::Failed(format!("it was started, and does not run: {detail}")));
            }
            Look::Failing(detail) => return Err(Trouble::Failed(format!("it was started, and fails: {detail}"))),
            Look::AskedToStop => return Err(Trouble::AskedToStop),
        }
        Ok(())
    }

    fn stop(&mut self) -> bool {
        self.report(Seen::Stopping, "", true);
        match self.backend.stop(self.desk) {
            Ok(()) => {
                self.report(Seen::Ended, "", false);
                true
            }
            Err(trouble) => {
                self.report(Seen::Ended, &format!("it was not stopped: {trouble}"), true);
                false
            }
        }
    }

    /// An order that fails is told; what follows from that is decided elsewhere.
    fn obey(&mut self, order: Order) {
        let done = match order {
            Order::Promote => self.backend.promote(self.desk),
            Order::Demote => self.backend.demote(self.desk),
        };
        match done {
            Ok(()) => {
                self.promoted = order == Order::Promote;
                self.report_up();
            }
            // The next wait says so again.
            Err(Trouble::AskedToStop) => {}
            Err(trouble) => self.report(Seen::Failing, &trouble.to_string(), true),
        }
    }

    fn next_look(&self) -> Option<Instant> {
        self.backend.every().map(|every| Instant::now() + every)
    }

    fn report_up(&mut self) {
        self.report(if self.promoted { Seen::Promoted } else { Seen::Up }, "", true);
    }

    fn report(&mut self, seen: Seen, detail: &str, may_be_left: bool) {
        let fencing = self.backend.fencing();
        self.desk.report(&Report { seen, detail: detail.to_owned(), fencing, may_be_left });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Given;
    use quorate_model::assignment::AssignedReplica;
    use quorate_model::id::NodeId;
    use quorate_model::secret::Secret;

    /// What a keeper finds of a replica on node `n1`, where these secrets are.
    pub(super) fn launch_of(assigned: &AssignedReplica, dir: &Path, secrets: &[(&str, &str)]) -> Launch {
        let named = |(name, value): &(&str, &str)| (name.parse().unwrap(), (*value).to_owned());
        let secrets = Secret::new(secrets.iter().map(named).collect());
        let given = Given { artifacts: &[], secrets: &secrets };
        let launch = Launch::new(assigned, NodeId::from_u128(1), "n1", dir, [].into(), given).unwrap();
        serde_json::from_slice(&serde_json::to_vec(&launch).unwrap()).unwrap()
    }
}
