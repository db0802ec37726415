//! The servers' processes and what they say.

use super::arena;
use super::seat::Seat;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Lines of a log that tell what went wrong.
const TAIL_LINES: usize = 15;

/// How a server is started.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub executable: &'a Path,
    pub data_dir: &'a Path,
    pub log: &'a Path,
    pub seat: &'a Seat,
}

impl Start<'_> {
    /// Starts the server, tied to this process.
    pub(super) fn spawn(&self) -> io::Result<Child> {
        let out = File::options().create(true).append(true).open(self.log)?;
        let mut command = Command::new(self.executable);
        command
            .args(["serve", "--end-with-pid", &std::process::id().to_string()])
            // What is set for this machine's own server is not for these; an empty file is valid.
            .args(["--config", "/dev/null", "--data-dir"])
            .arg(self.data_dir)
            .env_remove("QUORATE_SERVER")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            // Ctrl-C is for the run, which ends its servers in order.
            .process_group(0);
        arena::not_inside(&mut command);
        if let Some(clock) = &self.seat.clock {
            clock.rule(&mut command);
        }
        self.seat.inside(|| command.spawn())
    }
}

/// Waits until a child has ended; `None` if it has not in time.
pub(super) fn ended_within(child: &mut Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + time;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if Instant::now() >= deadline => return Ok(None),
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// For people.
pub(super) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".into(),
    }
}

/// Whether all threads of a process are stopped by a signal.
pub(super) fn is_stopped(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    // The state comes after the name, which may hold anything.
    states.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

/// A server's log, read to some point.
#[derive(Debug)]
pub(super) struct LogFile {
    pub path: PathBuf,
    read: u64,
}

impl LogFile {
    pub(super) fn new(path: PathBuf) -> LogFile {
        LogFile { path, read: 0 }
    }

    pub(super) fn length(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// What was written after the first `from` bytes.
    pub(super) fn after(&self, from: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// Complaints that are new since the last call.
    pub(super) fn complaints(&mut self) -> Vec<Complaint> {
        let text = self.after(self.read);
        // A line that is being written is read the next time.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        self.read += whole.len() as u64;
        complaints(whole)
    }

    /// The last lines, for a report.
    pub(super) fn tail(&self) -> String {
        let text = self.after(self.length().saturating_sub(16 * 1024));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// A line in which a server says that something is wrong with itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Complaint {
    /// Nothing explains a panic.
    Panic(String),
    /// It stops; a fault of its disk explains that.
    Stops(String),
}

fn complaints(text: &str) -> Vec<Complaint> {
    text.lines()
        .filter_map(|line| match line {
            line if line.contains("panicked at") || line.contains("a thread of this node failed") => {
                Some(Complaint::Panic(line.to_owned()))
            }
            line if line.contains("This node stops") => Some(Complaint::Stops(line.to_owned())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_and_an_orderly_end_of_the_world_are_told_apart() {
        let text = "\
2026-11-21T10:00:00Z  INFO serving
thread 'apply' panicked at crates/quorate-store/src/x.rs:1:1:
2026-11-21T10:00:01Z ERROR cannot sync the log: Input/output error. This node stops, because going on could lose data.
";
        let found = complaints(text);
        assert!(
            matches!(&found[..], [Complaint::Panic(one), Complaint::Stops(two)]
            if one.contains("x.rs") && two.contains("sync")),
            "{found:?}"
        );
    }

    #[test]
    fn each_complaint_is_reported_once_and_only_when_its_line_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(dir.path().join("log"));
        assert!(log.complaints().is_empty(), "there is no file yet");
        std::fs::write(&log.path, "ERROR cannot write. This node stops").unwrap();
        assert!(log.complaints().is_empty());
        std::fs::write(&log.path, "ERROR cannot write. This node stops, because\n").unwrap();
        assert_eq!(log.complaints().len(), 1);
        assert!(log.complaints().is_empty());
    }

    #[test]
    fn a_stopped_process_is_seen_as_stopped() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(!is_stopped(child.id()));
        crate::dev::signal(child.id(), rustix::process::Signal::STOP);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_stopped(child.id()) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.kill().unwrap();
        assert_eq!(ended_within(&mut child, Duration::from_secs(10)).unwrap().map(ending), Some("signal 9".into()));
    }
}
