//! What a keeper works with: its line to the shim, the wish that it stops, and operations with a limit.

use super::line::Line;
use crate::kernel::spawn_bound;
use crate::protocol::{Order, Report};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Agents say in their own words why an operation failed on a line that begins like this.
const REASON: &[u8] = b"ocf-exit-reason:";

/// More of a line is not kept for a detail; all of it goes to the log.
const LINE_KEPT_MAX: usize = 512;

/// More output of an operation is not read. Meta-data has some tens of KiB.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// Whether an operation goes on when a stop is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    UntilStop,
    ToTheEnd,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    With(ExitStatus),
    /// It was killed, with its process group.
    TimedOut,
    /// As above, because a stop was asked for.
    AskedToStop,
}

/// Why a keeper goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    Stop,
    Order(Order),
    News,
    Time,
}

/// A program that was started. Dropping it does not end it.
#[derive(Debug)]
pub(crate) struct Operation {
    child: Child,
    pidfd: OwnedFd,
}

impl Operation {
    /// Readable as soon as it has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its status, if it has ended.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn kill(mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Desk {
    line: Option<Line<Order>>,
    orders: Vec<Order>,
    stop: UnixStream,
    stop_asked: bool,
    /// What operations, and what they leave running, write to stderr. One for the keeper's life: a daemon that
    /// was given the end of one that is gone would die of it.
    errors: File,
    errors_end: OwnedFd,
    said: Said,
    last_report: Option<Report>,
}

/// The words of an operation that are fit for a detail.
#[derive(Debug, Default)]
struct Said {
    line: Vec<u8>,
    last: String,
    reason: Option<String>,
}

impl Desk {
    /// With the line on stdin and SIGTERM as the wish to stop.
    pub(crate) fn new() -> io::Result<Desk> {
        let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        Desk::with(Some(line), Desk::stop_by_signal()?)
    }

    /// Of a keeper that only cleans up.
    pub(crate) fn without_line() -> io::Result<Desk> {
        Desk::with(None, Desk::stop_by_signal()?)
    }

    fn stop_by_signal() -> io::Result<UnixStream> {
        let (stop, sender) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, sender)?;
        Ok(stop)
    }

    /// A stop is asked for by writing to the other end of `stop`.
    pub(crate) fn with(line: Option<UnixStream>, stop: UnixStream) -> io::Result<Desk> {
        let (errors, errors_end) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&errors, fcntl_getfl(&errors)? | OFlags::NONBLOCK)?;
        Ok(Desk {
            line: line.map(Line::new).transpose()?,
            orders: Vec::new(),
            stop,
            stop_asked: false,
            errors: errors.into(),
            errors_end,
            said: Said::default(),
            last_report: None,
        })
    }

    /// Says how things are, if that is news.
    pub(crate) fn report(&mut self, report: &Report) {
        if self.last_report.as_ref() == Some(report) {
            return;
        }
        self.last_report = Some(report.clone());
        if let Some(line) = &mut self.line {
            line.send(report);
        }
    }

    /// Starts a program, whose output goes to the log. Its group is its own.
    pub(crate) fn spawn(&mut self, command: &mut Command) -> io::Result<Operation> {
        self.said = Said::default();
        command.stdin(Stdio::null()).stderr(self.errors_end.try_clone()?).process_group(0);
        let mut child = spawn_bound(command)?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Operation { child, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Runs a program to its end. What it leaves running is not touched unless it is killed.
    pub(crate) fn run(&mut self, command: &mut Command, limit: Duration, patience: Patience) -> io::Result<Ended> {
        let operation = self.spawn(command)?;
        self.finish(operation, limit, patience)
    }

    /// As [`run`](Desk::run), with what it wrote to stdout, as far as that is text.
    pub(crate) fn ask(
        &mut self,
        command: &mut Command,
        limit: Duration,
        patience: Patience,
    ) -> io::Result<(Ended, String)> {
        // No pipe: nobody would read it while it is waited for.
        let mut output = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
        command.stdout(output.try_clone()?);
        let ended = self.run(command, limit, patience)?;
        output.rewind()?;
        let mut bytes = Vec::new();
        output.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok((ended, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Waits for an operation.
    pub(crate) fn finish(
        &mut self,
        mut operation: Operation,
        limit: Duration,
        patience: Patience,
    ) -> io::Result<Ended> {
        let until = Instant::now() + limit;
        loop {
            let woken = self.poll(Some(operation.ended()), Some(until), patience);
            // Its end counts before the wish that it ends.
            if let Some(status) = operation.status() {
                self.copy_errors();
                return Ok(Ended::With(status));
            }
            match woken {
                Woken::Stop => {
                    operation.kill();
                    return Ok(Ended::AskedToStop);
                }
                Woken::Time => {
                    operation.kill();
                    self.copy_errors();
                    return Ok(Ended::TimedOut);
                }
                Woken::Order(order) => self.orders.push(order),
                Woken::News => {}
            }
        }
    }

    /// Waits for an order, for `news` to be readable, or for a moment.
    pub(crate) fn wait(&mut self, news: Option<BorrowedFd<'_>>, until: Option<Instant>) -> Woken {
        if self.is_asked_to_stop() {
            return Woken::Stop;
        }
        if !self.orders.is_empty() {
            return Woken::Order(self.orders.remove(0));
        }
        self.poll(news, until, Patience::UntilStop)
    }

    /// Waits a little; whether a stop was asked for meanwhile.
    pub(crate) fn pause(&mut self, span: Duration) -> bool {
        let until = Instant::now() + span;
        loop {
            match self.poll(None, Some(until), Patience::UntilStop) {
                Woken::Stop => return true,
                Woken::Time => return false,
                Woken::Order(order) => self.orders.push(order),
                Woken::News => {}
            }
        }
    }

    /// Waits for `news` to be readable or for a moment. Orders are for later.
    pub(crate) fn wait_on(&mut self, news: BorrowedFd<'_>, until: Instant, patience: Patience) -> Woken {
        if patience == Patience::UntilStop && self.is_asked_to_stop() {
            return Woken::Stop;
        }
        let woken = self.poll(Some(news), Some(until), patience);
        if let Woken::Order(order) = woken {
            self.orders.push(order);
        }
        woken
    }

    /// Takes in what was written to stderr since the last wait.
    pub(crate) fn hear(&mut self) {
        self.copy_errors();
    }

    /// The last operation's own reason, or its last line on stderr. Empty: it said nothing.
    pub(crate) fn said(&self) -> &str {
        self.said.reason.as_deref().unwrap_or(&self.said.last)
    }

    fn is_asked_to_stop(&mut self) -> bool {
        if !self.stop_asked {
            let mut ready = [PollFd::new(&self.stop, PollFlags::IN)];
            self.stop_asked = poll(&mut ready, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        }
        self.stop_asked
    }

    fn poll(&mut self, news: Option<BorrowedFd<'_>>, until: Option<Instant>, patience: Patience) -> Woken {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let open_line = self.line.as_ref().filter(|line| !line.is_closed());
            let minds_stop = patience == Patience::UntilStop;
            let mut polled = vec![PollFd::new(&self.errors, PollFlags::IN)];
            polled.extend(minds_stop.then(|| PollFd::new(&self.stop, PollFlags::IN)));
            polled.extend(news.as_ref().map(|news| PollFd::new(news, PollFlags::IN)));
            let line_at = polled.len();
            polled.extend(open_line.map(|line| PollFd::new(line.stream(), PollFlags::IN)));
            if poll(&mut polled, timeout.as_ref()).is_err() {
                // Only a signal, whose reader is among those polled.
                continue;
            }
            let woken: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
            if woken[0] {
                self.copy_errors();
            }
            if minds_stop && woken[1] {
                self.stop_asked = true;
                return Woken::Stop;
            }
            if news.is_some() && woken[usize::from(minds_stop) + 1] {
                return Woken::News;
            }
            if woken.get(line_at).is_some_and(|woken| *woken)
                && let Some(line) = &mut self.line
            {
                self.orders.extend(line.read());
                // A shim that is gone cannot say when to stop.
                self.stop_asked |= line.is_closed();
                if self.stop_asked && minds_stop {
                    return Woken::Stop;
                }
                if !self.orders.is_empty() {
                    return Woken::Order(self.orders.remove(0));
                }
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Woken::Time;
            }
        }
    }

    /// To this process's own stderr, which is the log.
    fn copy_errors(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.errors.read(&mut buffer) {
            let _ = io::stderr().write_all(&buffer[..count]);
            self.said.hear(&buffer[..count]);
        }
    }
}

impl Said {
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.line.len() < LINE_KEPT_MAX => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let text = |line: &[u8]| String::from_utf8_lossy(line).trim().to_owned();
        if let Some(reason) = line.strip_prefix(REASON) {
            self.reason = Some(text(reason));
        } else if !line.trim_ascii().is_empty() {
            self.last = text(&line);
        }
    }
}
