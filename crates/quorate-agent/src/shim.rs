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
//!    └─ grace over: SIGKILL to the group, then exit comes
//! ```
//!
//! # Invariants
//! - `lock` in the replica's directory is held for life: a second shim for the replica gives up.
//! - Stopping always ends: after the grace the group is killed, and SIGKILL cannot be refused.
//! - When the workload's process ended, the rest of its group is killed before anything else
//!   happens, while its zombie still reserves the group's number.
//! - No client can make it wait: sockets never block, and who does not read is dropped.
//!
//! # Sources
//! prctl(2) PR_SET_PDEATHSIG, pidfd_open(2), credentials(7) on sessions and groups.

use crate::files::{self, Durability};
use crate::launch::{self, Launch};
use crate::log::{self, LogWriter};
use crate::protocol::{
    Ask, LINE_BYTES_MAX, ProcessState, Request, STREAK_ENDS_AFTER, ShimState, VERSION, pause, wall_now,
};
use crate::sweep::{open_process, sweep};
use quorate_model::spec::{RestartPolicy, StopSignal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, kill_process_group, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, setsid,
};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What the shim writes to its stdout once it listens. Anything else is the reason why it does not.
pub(crate) const READY: &str = "ready";

/// Agents that talk to one shim at once: the present one, and some that are coming or going.
const CONNECTIONS_MAX: usize = 16;

/// How much of the workload's output is copied before other events get their turn.
const COPY_BYTES: usize = 64 * 1024;

/// The largest pipe that an unprivileged process can make (/proc/sys/fs/pipe-max-size).
const LAST_COPY_BYTES: usize = 1024 * 1024;

/// Arguments of the hidden command `quorate shim --dir DIR [--end-with-pid PID]`.
#[derive(Debug, Clone)]
pub struct ShimArgs {
    /// The replica's directory, with a `spec.json`.
    pub dir: PathBuf,
    /// Ends with the workload, without grace, as soon as this process is gone.
    pub end_with_pid: Option<u32>,
}

impl ShimArgs {
    /// What follows the shim's command on its command line; the counterpart of its parser.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--dir".into(), self.dir.clone().into()];
        if let Some(pid) = self.end_with_pid {
            args.extend(["--end-with-pid".into(), pid.to_string().into()]);
        }
        args
    }
}

/// Runs one replica until it is stopped, ends for good, or the process it is tied to ends.
///
/// Must be called on the main thread of a process of its own that has no other threads. It says
/// on stdout whether it could start and later trouble on stderr.
#[must_use]
pub fn shim(args: &ShimArgs) -> ExitCode {
    match Shim::new(args) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(mut shim)) => match shim.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain("the shim cannot go on", &error);
                shim.kill_group();
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
    Running { process: Process, since: Instant },
    Waiting { until: Instant },
    Stopping { process: Process, kill_at: Option<Instant> },
    Over,
}

/// The workload's process. `child` is reaped only by [`Shim::on_exit`].
struct Process {
    child: Child,
    pidfd: OwnedFd,
}

impl Process {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

struct Connection {
    stream: UnixStream,
    line: Vec<u8>,
    watches: bool,
    /// Dropped at the end of the round, so that indexes stay valid within it.
    closed: bool,
}

struct Shim {
    launch: Launch,
    state: ShimState,
    work: Work,
    /// Ends in a row.
    streak: u32,
    log: LogWriter,
    output: File,
    /// Kept so that `output` never reports an end; each process gets a copy as stdout and stderr.
    output_end: OwnedFd,
    listener: UnixListener,
    connections: Vec<Connection>,
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
    Listener,
    Connection(usize),
}

impl Shim {
    /// `None`: the process that it is tied to has already ended.
    fn new(args: &ShimArgs) -> io::Result<Option<Shim>> {
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
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open("lock")?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another shim runs this replica"))?;
        let launch: Launch = files::read_json(Path::new(launch::FILE))?
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "there is no spec.json"))?;
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
        };
        let mut shim = Shim {
            launch,
            state,
            work: Work::Waiting { until: Instant::now() },
            streak: 0,
            log,
            output: output.into(),
            output_end,
            listener,
            connections: Vec::new(),
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
                        self.kill_group();
                        self.work = Work::Over;
                    }
                    // `on_exit` ignores one that the lifeline has dealt with in this round.
                    Source::Exit => self.on_exit()?,
                    Source::Listener => self.accept(),
                    Source::Connection(index) => self.serve(index),
                }
            }
            self.connections.retain(|connection| !connection.closed);
            self.on_deadline();
        }
        // A workload may have left the group that was killed, and no agent may be there to look.
        sweep(self.state.replica);
        // All that a pipe can hold, but not more: something that escaped may still be writing.
        self.copy_output(LAST_COPY_BYTES);
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
        // Connections before the exit: its news must not go to one that is found closed a moment later.
        for (index, connection) in self.connections.iter().enumerate() {
            sources.push(Source::Connection(index));
            polled.push(PollFd::new(&connection.stream, PollFlags::IN));
        }
        if let Work::Running { process, .. } | Work::Stopping { process, .. } = &self.work {
            sources.push(Source::Exit);
            polled.push(PollFd::new(&process.pidfd, PollFlags::IN));
        }
        let deadline = match &self.work {
            Work::Waiting { until } => Some(*until),
            Work::Stopping { kill_at, .. } => *kill_at,
            Work::Running { .. } | Work::Over => None,
        };
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            result => result?,
        };
        let woken = sources.into_iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
        Ok(woken.map(|(source, _)| source).collect())
    }

    fn on_deadline(&mut self) {
        let now = Instant::now();
        match &mut self.work {
            Work::Waiting { until } if *until <= now => {
                if self.state.state != ProcessState::CannotStart {
                    self.state.restarts += 1;
                }
                self.start();
            }
            Work::Stopping { process, kill_at } if kill_at.is_some_and(|at| at <= now) => {
                *kill_at = None;
                let _ = kill_process_group(process.pid(), Signal::KILL);
            }
            Work::Waiting { .. } | Work::Stopping { .. } | Work::Running { .. } | Work::Over => {}
        }
    }

    fn start(&mut self) {
        match self.spawn() {
            Ok(process) => {
                self.state.started_at = Some(wall_now());
                self.state.pid = Some(process.child.id());
                self.work = Work::Running { process, since: Instant::now() };
                self.publish(ProcessState::Running);
            }
            Err(error) => {
                let reason = match error.kind() {
                    ErrorKind::NotFound => "no such file or directory".to_owned(),
                    ErrorKind::PermissionDenied => "permission denied".to_owned(),
                    _ => error.to_string(),
                };
                let program = self.launch.command.first().map_or("", String::as_str);
                self.state.detail = format!("{program}: {reason}");
                self.state.pid = None;
                // Never at once: nothing ran, so nothing can have changed.
                self.streak = self.streak.max(1) + 1;
                self.work = Work::Waiting { until: self.next_start() };
                self.publish(ProcessState::CannotStart);
            }
        }
    }

    fn spawn(&self) -> io::Result<Process> {
        let (program, args) =
            self.launch.command.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs(&self.launch.env)
            .current_dir("work")
            .stdin(Stdio::null())
            .stdout(self.output_end.try_clone()?)
            .stderr(self.output_end.try_clone()?)
            .process_group(0);
        let shim = Pid::from_raw(self.state.shim_pid.cast_signed());
        let die_with_shim = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Had the shim died before the line above, no signal would ever come.
            if getppid() == shim { Ok(()) } else { Err(io::Error::other("the shim is gone")) }
        };
        // SAFETY: the closure runs between fork and exec. It makes two system calls through rustix,
        // which uses no libc state and takes no lock, and allocates only when it fails, in a process
        // that was forked from a single thread and so holds no lock of the allocator.
        #[allow(unsafe_code, reason = "std has no safe way to set PR_SET_PDEATHSIG in the child")]
        unsafe {
            command.pre_exec(die_with_shim);
        }
        let mut child = command.spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Process { child, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    fn on_exit(&mut self) -> io::Result<()> {
        let (mut process, ran, was_asked) = match std::mem::replace(&mut self.work, Work::Over) {
            Work::Running { process, since } => (process, since.elapsed(), false),
            Work::Stopping { process, .. } => (process, Duration::ZERO, true),
            other @ (Work::Waiting { .. } | Work::Over) => {
                self.work = other;
                return Ok(());
            }
        };
        // Its workers must not outlive it: they may hold its port. No such group is fine.
        let _ = kill_process_group(process.pid(), Signal::KILL);
        let status = process.child.wait()?;
        self.copy_output(COPY_BYTES);
        self.state.pid = None;
        self.state.detail = describe(status);
        let again = match self.launch.assigned.spec.restart.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !status.success(),
            RestartPolicy::Never => false,
        };
        if was_asked || !again {
            self.end(if was_asked { ProcessState::Stopped } else { ProcessState::GaveUp });
            return Ok(());
        }
        self.streak = if ran >= STREAK_ENDS_AFTER { 1 } else { self.streak.saturating_add(1) };
        let until = self.next_start();
        self.work = Work::Waiting { until };
        if until > Instant::now() {
            self.publish(ProcessState::BackingOff);
        } else {
            self.state.state = ProcessState::BackingOff;
        }
        Ok(())
    }

    fn next_start(&self) -> Instant {
        Instant::now() + pause(self.launch.assigned.spec.restart.backoff, self.streak)
    }

    fn stop(&mut self, signal: StopSignal, grace: Duration) {
        // A grace of centuries is no deadline.
        let kill_at = Instant::now().checked_add(grace);
        match std::mem::replace(&mut self.work, Work::Over) {
            Work::Running { process, .. } => {
                // Only the main process gets it: it knows how to end its workers.
                let _ = pidfd_send_signal(&process.pidfd, unix_signal(signal));
                self.work = Work::Stopping { process, kill_at };
                self.publish(ProcessState::Stopping);
            }
            Work::Stopping { process, kill_at: before } => {
                // `None` before means that it is killed already and only its exit is awaited.
                let kill_at = before.map(|before| kill_at.map_or(before, |at| at.min(before)));
                self.work = Work::Stopping { process, kill_at };
            }
            Work::Waiting { .. } => self.end(ProcessState::Stopped),
            Work::Over => {}
        }
    }

    /// No process is left and none will be started.
    fn end(&mut self, state: ProcessState) {
        self.work = Work::Over;
        self.state.state = state;
        // Before the news goes out: who hears it may read the file.
        if let Err(error) = files::write_json(Path::new("exit.json"), &self.state, Durability::Durable) {
            complain("cannot write exit.json", &error);
        }
        self.publish(state);
    }

    fn kill_group(&mut self) {
        if let Work::Running { process, .. } | Work::Stopping { process, .. } = &mut self.work {
            let _ = kill_process_group(process.pid(), Signal::KILL);
            let _ = process.child.wait();
        }
    }

    fn publish(&mut self, state: ProcessState) {
        self.state.state = state;
        if let Err(error) = files::write_json(Path::new("state.json"), &self.state, Durability::Atomic) {
            complain("cannot write state.json", &error);
        }
        let line = line_of(&self.state);
        for connection in self.connections.iter_mut().filter(|connection| connection.watches) {
            send(connection, &line);
        }
    }

    fn copy_output(&mut self, bytes_max: usize) {
        let mut buffer = [0; 16 * 1024];
        let mut copied = 0;
        while copied < bytes_max {
            // Nothing there for now (WouldBlock), or never again: both mean done.
            let Ok(count @ 1..) = self.output.read(&mut buffer) else { return };
            copied += count;
            if let Err(error) = self.log.append(&buffer[..count]) {
                complain("output of the replica is lost", &error);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < CONNECTIONS_MAX && stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection { stream, line: Vec::new(), watches: false, closed: false });
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let mut buffer = [0; 1024];
        match connection.stream.read(&mut buffer) {
            Ok(count @ 1..) => connection.line.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Ok(_) | Err(_) => connection.closed = true,
        }
        while let Some(end) = self.connections[index].line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.connections[index].line.drain(..=end).collect();
            self.answer(index, &line);
        }
        let connection = &mut self.connections[index];
        connection.closed |= connection.line.len() > LINE_BYTES_MAX;
    }

    fn answer(&mut self, index: usize, line: &[u8]) {
        let request = serde_json::from_slice::<Request>(line);
        if let Ok(Request { what: Ask::Stop { signal, grace_ms }, .. }) = &request {
            self.stop(*signal, Duration::from_millis(*grace_ms));
        }
        let connection = &mut self.connections[index];
        let reply = match request {
            // A watcher has heard the outcome already.
            Ok(Request { what: Ask::Stop { .. }, .. }) if connection.watches => return,
            Ok(Request { what, .. }) => {
                connection.watches |= what == Ask::Watch;
                line_of(&self.state)
            }
            Err(error) => line_of(&serde_json::json!({ "v": VERSION, "error": error.to_string() })),
        };
        send(connection, &reply);
    }
}

/// Sends a whole line, or gives the connection up.
fn send(connection: &mut Connection, line: &[u8]) {
    // A socket buffer takes hundreds of lines: one that is full belongs to a reader who is stuck.
    // It connects again and then gets the newest state.
    connection.closed |= !connection.stream.write(line).is_ok_and(|sent| sent == line.len());
}

fn line_of(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain structs with string keys always serialise");
    line.push(b'\n');
    line
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
