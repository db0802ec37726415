//! The shim: one small process per replica that owns the workload.
//!
//! It starts the workload, writes its output to the log, restarts it as the spec says and ends it
//! when asked. It needs no agent for any of that, so replicas are restarted while the agent is
//! being upgraded or is dead.
//!
//! Single-threaded on purpose: PDEATHSIG fires when the *thread* that created the workload ends,
//! and one thread with one poll loop keeps the process at a few MiB.
//!
//! ```text
//! Running ──exit──▶ Waiting ──pause over──▶ Running
//!    │ stop            │ stop                  (a policy may say: exit ▶ Over)
//!    ▼                 ▼
//! Stopping ──exit──▶ Over
//!    └─ grace over: SIGKILL to all of it, then exit comes
//! ```
//! In a PID namespace `exit` is when all of it has gone: `Emptying` is between the main process's and that.
//!
//! Under a lease ([`crate::lease`]) it stops as if asked when the lease is not held longer, and the kernel
//! kills it at the deadline, with all that the workload has started: also when it does not run itself.
//!
//! Where the driver is not `process`, the workload is a keeper ([`crate::keeper`]): a program of ours that starts,
//! watches and stops what the driver is for, and says on its stdin how that is. To the shim it is a workload like
//! any other, so the log, restarts, stops and the lease are here and nowhere else, whatever the driver.
//!
//! A copy of an active-passive service runs without a lease, and has one while it is active ([`role`]).
//!
//! # Invariants
//! - Under a lease a timer of the kernel is armed before the workload is started, or promoted, and taken back only
//!   when that was demoted with success, or nothing of it is left.
//! - What was asked to stop is not revived, should the lease be held longer a moment later.
//! - `lock` in the replica's directory is held for life: a second shim for the replica gives up.
//! - Stopping always ends: after the grace the group is killed, and SIGKILL cannot be refused.
//! - When the workload's process ended, the rest of its group is killed before anything else
//!   happens, while its zombie still reserves the group's number.
//! - No client can make it wait: sockets never block, and who does not read is dropped.
//!
//! # Sources
//! prctl(2) PR_SET_PDEATHSIG, pidfd_open(2), credentials(7) on sessions and groups.

use crate::cgroup::Group;
use crate::files::{self, Durability};
use crate::keeper;
use crate::kernel::{EMPTIED_WITHIN, PidSpace};
use crate::launch::{self, Launch};
use crate::log::{self, LogWriter};
use crate::protocol::{
    Order, ProcessState, Report, STREAK_ENDS_AFTER, Seen, ShimLease, ShimState, UNDYING, VERSION, pause, wall_now,
};
use crate::sweep::{PATIENCE, open_process, sweep};
use address::Address;
use cleaning::{clean_up, keeper_command, lock};
use deadline::{Deadline, NEVER};
use quorate_agent_core::lease::BootTime;
use quorate_model::observed::Fencing;
use quorate_model::spec::{RestartPolicy, StopSignal};
use role::Role;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, setsid};
use serving::Connection;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use workload::Workload;

pub(crate) mod address;
mod casting;
mod cleaning;
mod deadline;
pub(crate) mod role;
mod serving;
mod workload;

#[doc(hidden)]
pub use deadline::Flaw;

/// What the shim writes to its stdout once it listens. Anything else is the reason why it does not.
pub(crate) const READY: &str = "ready";

/// How much of the workload's output is copied before other events get their turn.
const COPY_BYTES: usize = 64 * 1024;

/// How often it is said that output is lost.
const LOST_SAID_EVERY: Duration = Duration::from_mins(1);

/// The largest pipe that an unprivileged process can make (/proc/sys/fs/pipe-max-size).
const LAST_COPY_BYTES: usize = 1024 * 1024;

/// Arguments of the hidden command `quorate shim --dir DIR [--end-with-pid PID] [--as-keeper] [--clean-up]`.
#[derive(Debug, Clone)]
pub struct ShimArgs {
    /// The replica's directory, with a `spec.json`.
    pub dir: PathBuf,
    /// Ends with the workload, without grace, as soon as this process is gone.
    pub end_with_pid: Option<u32>,
    /// Is the keeper of a shim that is there already.
    pub keep: bool,
    /// Ends what is left of the replica, which has no shim any more, and starts nothing.
    pub clean_up: bool,
}

impl ShimArgs {
    /// What follows the shim's command on its command line; the counterpart of its parser.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--dir".into(), self.dir.clone().into()];
        if let Some(pid) = self.end_with_pid {
            args.extend(["--end-with-pid".into(), pid.to_string().into()]);
        }
        args.extend(self.keep.then(|| "--as-keeper".into()));
        args.extend(self.clean_up.then(|| "--clean-up".into()));
        args
    }
}

/// Runs one replica until it is stopped, ends for good, or the process it is tied to ends.
///
/// Must be called on the main thread of a process of its own that has no other threads. It says
/// on stdout whether it could start and later trouble on stderr.
#[must_use]
pub fn shim(args: &ShimArgs) -> ExitCode {
    run(args, None)
}

/// A [`shim`] that something is wrong with, for tests.
#[doc(hidden)]
#[must_use]
pub fn flawed_shim(args: &ShimArgs, flaw: Flaw) -> ExitCode {
    run(args, Some(flaw))
}

fn run(args: &ShimArgs, flaw: Option<Flaw>) -> ExitCode {
    if args.keep {
        return keeper::keeper(args);
    }
    if args.clean_up {
        return clean_up(args);
    }
    match Shim::new(args, flaw) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(mut shim)) => match shim.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain("the shim cannot go on", &error);
                shim.kill_all();
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn complain(what: &str, error: &io::Error) {
    // Into the replica's shim.log. There is nobody to tell when that fails too.
    let _ = writeln!(io::stderr(), "{what}: {error}");
}

/// What the shim does with the workload right now.
enum Work {
    Running {
        workload: Workload,
        since: Instant,
    },
    Waiting {
        until: Instant,
    },
    Stopping {
        workload: Workload,
        kill_at: Option<Instant>,
    },
    /// Its main process has ended, and what is left in its namespace is killed.
    Emptying {
        space: PidSpace,
        end: End,
        say_at: Option<Instant>,
    },
    Over,
}

/// How the main process of the workload ended.
struct End {
    status: ExitStatus,
    ran: Duration,
    was_asked: bool,
}

struct Shim {
    launch: Launch,
    state: ShimState,
    work: Work,
    deadline: Option<Deadline>,
    /// Of a copy of an active-passive service. Its deadline comes and goes.
    role: Option<Role>,
    flaw: Option<Flaw>,
    /// Where the service is reached, wherever it runs.
    address: Option<Address>,
    /// Ends in a row.
    streak: u32,
    /// Processes of it that were killed for want of memory, up to now.
    starved: u64,
    /// What it is tied to has ended, and nobody will look after what it leaves.
    is_last: bool,
    log: LogWriter,
    /// Bytes of output that the disk did not take, and when that was said last.
    lost: u64,
    lost_said: Option<Instant>,
    output: File,
    /// Kept so that `output` never reports an end; each process gets a copy as stdout and stderr.
    output_end: OwnedFd,
    listener: UnixListener,
    connections: Vec<Connection>,
    /// To the keeper, where there is one.
    keeper: Option<keeper::Line<Report>>,
    signals: UnixStream,
    lifeline: Option<OwnedFd>,
    _lock: File,
}

/// Who woke the shim up.
#[derive(Clone, Copy)]
enum Source {
    Output,
    Signal,
    Lifeline,
    Exit,
    Hook,
    Keeper,
    Listener,
    Connection(usize),
}

impl Shim {
    /// `None`: the process that it is tied to has already ended.
    fn new(args: &ShimArgs, flaw: Option<Flaw>) -> io::Result<Option<Shim>> {
        // Fails only for a leader of a process group, which then has no terminal of ours to lose.
        let _ = setsid();
        let lifeline = match args.end_with_pid {
            None => None,
            Some(pid) => match open_process(pid) {
                None => return Ok(None),
                lifeline => lifeline,
            },
        };
        // Every path from here on is relative: a socket's path may not exceed 107 bytes.
        std::env::set_current_dir(&args.dir)?;
        let lock = lock()?;
        let mut launch: Launch = files::read_json(Path::new(launch::FILE))?
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "there is no spec.json"))?;
        if launch.has_secret_env {
            launch.secret_env = serde_json::from_reader(io::stdin().lock())?;
        }
        let deadline = Deadline::arm(&launch, flaw)?;
        if let Some(group) = &launch.group {
            group.enter().map_err(|error| io::Error::other(format!("its cgroup cannot be entered: {error}")))?;
        }
        files::make_private_dir(Path::new("work"))?;
        let log = LogWriter::open(Path::new("log"), log::FILE_BYTES_MAX)?;

        let (output, output_end) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only this end: the workload's writes shall block when we are slow, not fail.
        fcntl_setfl(&output, fcntl_getfl(&output)? | OFlags::NONBLOCK)?;

        let (signals, sender) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }

        files::remove_file(Path::new("sock"))?;
        let listener = UnixListener::bind("sock")?;
        listener.set_nonblocking(true)?;

        let role = if launch.assigned.spec.changes_parts() { Some(Role::standby()?) } else { None };
        let state = ShimState {
            v: VERSION,
            replica: launch.assigned.replica,
            shim_pid: std::process::id(),
            state: ProcessState::BackingOff,
            pid: None,
            started_at: None,
            restarts: launch.restarts,
            detail: launch.detail.clone(),
            ports: launch.ports.clone(),
            lease: deadline.as_ref().map(|deadline| ShimLease {
                epoch: deadline.epoch(),
                fencing: None,
                init: None,
                let_go: false,
            }),
            casting: role.as_ref().map(Role::casting),
            note: launch.note.clone(),
            kept: None,
        };
        let address = Address::of(&launch);
        let mut shim = Shim {
            launch,
            state,
            work: Work::Waiting { until: Instant::now() },
            deadline,
            role,
            flaw,
            address,
            streak: 0,
            starved: 0,
            is_last: false,
            log,
            lost: 0,
            lost_said: None,
            output: output.into(),
            output_end,
            listener,
            connections: Vec::new(),
            keeper: None,
            signals,
            lifeline,
            _lock: lock,
        };
        shim.start();
        // The agent waits for this line and the end of the stream.
        writeln!(io::stdout(), "{READY}")?;
        rustix::stdio::dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?)?;
        Ok(Some(shim))
    }

    /// The loop that everything happens in: wait, handle who woke us, act on deadlines.
    fn run(&mut self) -> io::Result<()> {
        while !matches!(self.work, Work::Over) {
            for source in self.wait()? {
                match source {
                    Source::Output => self.copy_output(COPY_BYTES),
                    Source::Signal => {
                        let mut seen = [0; 16];
                        while self.signals.read(&mut seen).is_ok_and(|count| count > 0) {}
                        let stop = self.launch.assigned.spec.stop.clone();
                        self.stop(stop.signal, stop.grace.0);
                    }
                    Source::Lifeline => {
                        self.is_last = true;
                        self.kill_all();
                    }
                    Source::Keeper => self.hear_keeper(),
                    // `on_exit` ignores one that the lifeline has dealt with in this round.
                    Source::Exit => self.on_exit()?,
                    Source::Hook => self.on_hook_end(),
                    Source::Listener => self.accept(),
                    Source::Connection(index) => self.serve(index),
                }
            }
            self.connections.retain(|connection| !connection.closed);
            self.on_deadline();
        }
        // A workload may have left the process group that was killed, and no agent may be there to look.
        match &self.launch.group {
            Some(group) => drop(group.end_work(PATIENCE)),
            None => drop(sweep(self.state.replica)),
        }
        // All that a pipe can hold, but not more: something that escaped may still be writing.
        self.copy_output(LAST_COPY_BYTES);
        if self.is_last
            && let Some(group) = &self.launch.group
        {
            group.leave();
        }
        files::remove_file(Path::new("sock"))
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Output, Source::Signal, Source::Listener];
        let mut polled = vec![
            PollFd::new(&self.output, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        if let Some(lifeline) = &self.lifeline {
            sources.push(Source::Lifeline);
            polled.push(PollFd::new(lifeline, PollFlags::IN));
        }
        if let Some(keeper) = &self.keeper {
            sources.push(Source::Keeper);
            polled.push(PollFd::new(keeper.stream(), PollFlags::IN));
        }
        // Connections before the exit: its news must not go to one that is found closed a moment later.
        for (index, connection) in self.connections.iter().enumerate() {
            sources.push(Source::Connection(index));
            polled.push(PollFd::new(&connection.stream, PollFlags::IN));
        }
        let ended = match &self.work {
            Work::Running { workload, .. } | Work::Stopping { workload, .. } => Some(workload.ended()),
            Work::Emptying { space, .. } => Some(space.ended()),
            Work::Waiting { .. } | Work::Over => None,
        };
        if let Some(ended) = &ended {
            sources.push(Source::Exit);
            polled.push(PollFd::new(ended, PollFlags::IN));
        }
        if let Some(ended) = self.role.as_ref().and_then(Role::ended) {
            sources.push(Source::Hook);
            polled.push(PollFd::from_borrowed_fd(ended, PollFlags::IN));
        }
        let timeout = self.next_deadline().map(|left| {
            // A time that no number holds is for ever; the loop looks again before.
            let tv_sec = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            result => result?,
        };
        let woken = sources.into_iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
        Ok(woken.map(|(source, _)| source).collect())
    }

    /// How long until [`on_deadline`](Shim::on_deadline) has something to do.
    fn next_deadline(&self) -> Option<Duration> {
        let at = match &self.work {
            Work::Waiting { until } => Some(*until),
            Work::Stopping { kill_at, .. } => *kill_at,
            Work::Emptying { say_at, .. } => *say_at,
            Work::Running { .. } | Work::Over => None,
        };
        let work = at.map(|at| at.saturating_duration_since(Instant::now()));
        let lease = match &self.work {
            Work::Waiting { .. } | Work::Running { .. } if self.looks_at_lease() => {
                self.deadline.as_ref().map(Deadline::left)
            }
            Work::Waiting { .. } | Work::Running { .. } => None,
            Work::Stopping { .. } | Work::Emptying { .. } | Work::Over => None,
        };
        let address = self.address.as_ref().and_then(Address::left);
        let hook = self.role.as_ref().and_then(Role::late_at);
        let hook = hook.map(|at| at.saturating_duration_since(Instant::now()));
        work.into_iter().chain(lease).chain(address).chain(hook).min()
    }

    fn on_deadline(&mut self) {
        if let Some(address) = &mut self.address {
            address.on_time();
        }
        let may_run = matches!(self.work, Work::Waiting { .. } | Work::Running { .. });
        let is_over = self.deadline.as_ref().is_some_and(|deadline| deadline.left().is_zero());
        if may_run && self.looks_at_lease() && is_over {
            self.let_go();
        }
        let now = Instant::now();
        if self.role.as_ref().and_then(Role::late_at).is_some_and(|at| at <= now) {
            let limit = self.launch.assigned.spec.activity().timeout;
            self.fail_change(&format!("took longer than {limit}"));
        }
        match &mut self.work {
            Work::Waiting { until } if *until <= now => {
                if self.state.state != ProcessState::CannotStart {
                    self.state.restarts += 1;
                }
                self.start();
            }
            Work::Stopping { workload, kill_at } if kill_at.is_some_and(|at| at <= now) => {
                *kill_at = None;
                workload.kill();
            }
            Work::Emptying { say_at, .. } if say_at.is_some_and(|at| at <= now) => {
                *say_at = None;
                self.state.pid = None;
                UNDYING.clone_into(&mut self.state.detail);
                self.publish(ProcessState::Stopping);
            }
            Work::Waiting { .. }
            | Work::Stopping { .. }
            | Work::Emptying { .. }
            | Work::Running { .. }
            | Work::Over => {}
        }
    }

    fn start(&mut self) {
        if let (Some(address), Some(deadline)) = (&mut self.address, &self.deadline)
            && let Err(error) = address.take(deadline.at())
        {
            self.state.detail = error.to_string();
            return self.cannot_start();
        }
        match self.spawn() {
            Ok(workload) => {
                self.state.started_at = Some(wall_now());
                self.state.pid = Some(workload.pid());
                if let Some(lease) = &mut self.state.lease {
                    // Of what a keeper keeps, nothing is claimed before it has said what may be; and what nothing ends
                    // by time is never said to be fenced.
                    let fencing = if self.keeper.is_some() { Fencing::Asked } else { workload.fencing() };
                    let ends = self.deadline.as_ref().is_some_and(Deadline::ends);
                    (lease.fencing, lease.init) = (ends.then_some(fencing), workload.init());
                }
                self.work = Work::Running { workload, since: Instant::now() };
                self.publish(ProcessState::Running);
            }
            Err(error) => {
                let reason = match error.kind() {
                    ErrorKind::NotFound => "no such file or directory".to_owned(),
                    ErrorKind::PermissionDenied => "permission denied".to_owned(),
                    _ => error.to_string(),
                };
                let program = self.launch.command.first().map_or("its keeper", String::as_str);
                self.state.detail = format!("{program}: {reason}");
                self.state.pid = None;
                self.cannot_start();
            }
        }
    }

    /// Nothing ran, and the detail says why.
    fn cannot_start(&mut self) {
        // Never at once: nothing ran, so nothing can have changed.
        self.streak = self.streak.max(1).saturating_add(1);
        self.work = Work::Waiting { until: self.next_start() };
        self.publish(ProcessState::CannotStart);
    }

    fn spawn(&mut self) -> io::Result<Workload> {
        if !self.launch.assigned.spec.driver.is_process() {
            return self.spawn_keeper();
        }
        let (program, args) =
            self.launch.command.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs(&self.launch.env)
            .envs(self.launch.secret_env.expose())
            .current_dir("work")
            .stdin(Stdio::null())
            .stdout(self.output_end.try_clone()?)
            .stderr(self.output_end.try_clone()?)
            .process_group(0);
        let group = self.launch.group.as_ref();
        match &self.deadline {
            Some(deadline) => Workload::start_fenced(&mut command, group, deadline.of_init()),
            // It needs a namespace when it becomes active, and cannot get one then.
            None if self.role.is_some() => Workload::start_fenced(&mut command, group, Some(NEVER)),
            None => Workload::start(&mut command, group),
        }
    }

    /// Also without a lease in a PID namespace: what agents and engines start is then found and ended as a whole.
    fn spawn_keeper(&mut self) -> io::Result<Workload> {
        let (line, its_end) = UnixStream::pair()?;
        let mut command = keeper_command(false);
        command
            .env_clear()
            .envs(&self.launch.env)
            // What it starts has the environment from it; the file that it reads the rest from has no secrets.
            .envs(self.launch.secret_env.expose())
            .stdin(OwnedFd::from(its_end))
            .stdout(self.output_end.try_clone()?)
            .stderr(self.output_end.try_clone()?)
            .process_group(0);
        self.state.kept = None;
        self.keeper = Some(keeper::Line::new(line)?);
        let later = self.role.as_ref().map(|_| NEVER);
        let deadline = self.deadline.as_ref().map_or(later, Deadline::of_init);
        Workload::start_fenced(&mut command, self.launch.group.as_ref(), deadline)
    }

    fn order(&mut self, order: Order) {
        if let Some(keeper) = &mut self.keeper {
            keeper.send(&order);
        }
    }

    fn hear_keeper(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let heard = keeper.read();
        if keeper.is_closed() {
            // Its end is news of its own.
            self.keeper = None;
        }
        for report in heard {
            if let (Some(lease), Work::Running { workload, .. }) = (&mut self.state.lease, &self.work) {
                let of_processes = workload.fencing();
                lease.fencing = Some(if of_processes.is_claimed() { report.fencing } else { of_processes });
            }
            self.state.kept = Some(report);
            self.publish(self.state.state);
            self.hear_of_change();
        }
    }

    /// What is waited for has ended: the main process, or after it the rest of its namespace.
    fn on_exit(&mut self) -> io::Result<()> {
        let (workload, ran, was_asked) = match std::mem::replace(&mut self.work, Work::Over) {
            Work::Running { workload, since } => (workload, since.elapsed(), false),
            Work::Stopping { workload, .. } => (workload, Duration::ZERO, true),
            Work::Emptying { space, end, .. } => {
                drop(space);
                self.on_end(&end);
                return Ok(());
            }
            other @ (Work::Waiting { .. } | Work::Over) => {
                self.work = other;
                return Ok(());
            }
        };
        if let Some(role) = &mut self.role {
            role.drop_hook();
        }
        // Its workers must not outlive it: they may hold its port.
        let (status, space) = workload.end()?;
        let end = End { status, ran, was_asked };
        match space {
            None => self.on_end(&end),
            Some(space) => {
                self.work = Work::Emptying { space, end, say_at: Some(Instant::now() + EMPTIED_WITHIN) };
            }
        }
        Ok(())
    }

    /// Nothing of the workload is left.
    fn on_end(&mut self, end: &End) {
        self.copy_output(COPY_BYTES);
        self.hear_keeper();
        self.state.pid = None;
        if let Some(lease) = &mut self.state.lease {
            lease.init = None;
        }
        let said = self.state.kept.as_ref().filter(|kept| !kept.detail.is_empty());
        self.state.detail = said.map_or_else(|| describe(end.status), |kept| kept.detail.clone());
        let starved = self.launch.group.as_ref().map_or(0, Group::out_of_memory);
        if starved > self.starved
            && let Some(memory) = self.launch.assigned.spec.resources.memory
        {
            self.state.detail += &format!(": it needed more than its {memory} of memory");
        }
        self.starved = starved;
        let again = match self.launch.assigned.spec.restart.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !end.status.success(),
            RestartPolicy::Never => false,
        };
        // One that was killed for its part did not end by itself.
        let of_role = self.role.as_mut().and_then(Role::gone);
        let again = again || of_role.is_some();
        if let Some(why) = of_role {
            self.state.detail = why;
        }
        if end.was_asked || !again {
            self.end(if end.was_asked { ProcessState::Stopped } else { ProcessState::GaveUp });
            return;
        }
        if self.role.is_some() {
            // Nothing of it is left that a lease would have to end.
            (self.deadline, self.state.lease) = (None, None);
        }
        if self.state.kept.as_ref().is_some_and(|kept| kept.seen == Seen::Cannot) {
            return self.cannot_start();
        }
        self.streak = if end.ran >= STREAK_ENDS_AFTER { 1 } else { self.streak.saturating_add(1) };
        let until = self.next_start();
        self.work = Work::Waiting { until };
        if until > Instant::now() {
            self.publish(ProcessState::BackingOff);
        } else {
            self.state.state = ProcessState::BackingOff;
        }
    }

    fn next_start(&self) -> Instant {
        Instant::now() + pause(self.launch.assigned.spec.restart.backoff, self.streak)
    }

    fn stop(&mut self, signal: StopSignal, grace: Duration) {
        // A grace of centuries is no deadline.
        let kill_at = Instant::now().checked_add(grace);
        match std::mem::replace(&mut self.work, Work::Over) {
            Work::Running { workload, .. } => {
                // A keeper knows one signal; what it keeps is asked in its own way.
                let of_keeper = !self.launch.assigned.spec.driver.is_process();
                workload.signal(if of_keeper { Signal::TERM } else { unix_signal(signal) });
                self.work = Work::Stopping { workload, kill_at };
                self.publish(ProcessState::Stopping);
            }
            Work::Stopping { workload, kill_at: before } => {
                // `None` before means that it is killed already and only its exit is awaited.
                let kill_at = before.map(|before| kill_at.map_or(before, |at| at.min(before)));
                self.work = Work::Stopping { workload, kill_at };
            }
            Work::Emptying { space, end, say_at } => {
                self.work = Work::Emptying { space, end: End { was_asked: true, ..end }, say_at };
            }
            Work::Waiting { .. } => self.end(ProcessState::Stopped),
            Work::Over => {}
        }
    }

    fn signal(&self, signal: StopSignal) {
        if let Work::Running { workload, .. } = &self.work
            && self.launch.assigned.spec.driver.is_process()
        {
            workload.signal(unix_signal(signal));
        }
    }

    /// The lease is held longer.
    fn hold(&mut self, epoch: u64, at: BootTime) {
        let Some(deadline) = &mut self.deadline else { return };
        let at = match deadline.extend(epoch, at) {
            Ok(Some(at)) => at,
            Ok(None) => return,
            Err(error) => return complain("the end of the lease cannot be put off", &error),
        };
        if let Work::Running { workload, .. } | Work::Stopping { workload, .. } = &self.work {
            workload.hold(at);
        }
        match self.address.as_mut().map(|address| address.hold(at)) {
            Some(Ok(Some(news))) => complain("the address is contested", &io::Error::other(news)),
            Some(Err(error)) => complain("the address cannot be held longer", &error),
            Some(Ok(None)) | None => {}
        }
    }

    /// The lease is not held longer: ends the workload, as far as it does so in time, or its part.
    fn let_go(&mut self) {
        if self.role.is_some() && self.launch.assigned.spec.demotes() {
            return self.demote();
        }
        if let Some(lease) = &mut self.state.lease {
            lease.let_go = true;
        }
        let stop = self.launch.assigned.spec.stop.clone();
        self.stop(stop.signal, stop.grace.0);
    }

    /// No process is left and none will be started.
    fn end(&mut self, state: ProcessState) {
        self.work = Work::Over;
        self.drop_address();
        self.state.state = state;
        if self.state.lease.as_ref().is_some_and(|lease| lease.let_go) {
            self.state.detail = format!("its lease was not held longer; {}", self.state.detail);
        }
        // Before the news goes out: who hears it may read the file.
        if let Err(error) = files::write_json(Path::new("exit.json"), &self.state, Durability::Durable) {
            complain("cannot write exit.json", &error);
        }
        self.publish(state);
    }

    fn kill_all(&mut self) {
        if let Some(role) = &mut self.role {
            role.drop_hook();
        }
        let work = std::mem::replace(&mut self.work, Work::Over);
        if let Work::Running { workload, .. } | Work::Stopping { workload, .. } = work {
            let _ = workload.end();
        }
        self.drop_address();
    }

    fn drop_address(&mut self) {
        if let Some(Err(error)) = self.address.as_mut().map(Address::let_go) {
            complain("the address is not taken off; it ends by itself", &error);
        }
    }

    fn publish(&mut self, state: ProcessState) {
        self.state.state = state;
        self.state.casting = self.role.as_ref().map(Role::casting);
        if let Err(error) = files::write_json(Path::new("state.json"), &self.state, Durability::Atomic) {
            complain("cannot write state.json", &error);
        }
        self.tell_watchers();
    }

    fn copy_output(&mut self, bytes_max: usize) {
        let mut buffer = [0; 16 * 1024];
        let mut copied = 0;
        while copied < bytes_max {
            // Nothing there for now (WouldBlock), or never again: both mean done.
            let Ok(count @ 1..) = self.output.read(&mut buffer) else { return };
            copied += count;
            if let Err(error) = self.log.append(&buffer[..count]) {
                self.lose(count as u64, &error);
            }
        }
    }

    /// Says so, but seldom: a talkative workload before a full disk must not fill another one with this.
    fn lose(&mut self, bytes: u64, why: &io::Error) {
        self.lost += bytes;
        if self.lost_said.is_none_or(|said| said.elapsed() >= LOST_SAID_EVERY) {
            self.lost_said = Some(Instant::now());
            complain(&format!("output of the replica is lost, {} bytes up to now", self.lost), why);
        }
    }
}

fn describe(status: ExitStatus) -> String {
    if let Some(code) = status.code() {
        return format!("exited with status {code}");
    }
    let number = status.signal().unwrap_or(0);
    match signal_hook::low_level::signal_name(number) {
        Some(name) => format!("killed by {name}"),
        None => format!("killed by signal {number}"),
    }
}

fn unix_signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
    }
}
