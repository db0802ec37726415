//! `strace` on a server: makes its syncs fail, or take long.

use super::process::ended_within;
use crate::dev::signal;
use rustix::process::Signal;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long `strace` may take to have all threads, or to let them go.
const ATTACH: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What happens to a server's syncs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sync {
    /// One fails: on each thread the one with this number, and no other. A program that tries again
    /// would be told that all is well.
    FailsOnce { number: u32 },
    /// Each takes so much longer.
    Takes(Duration),
}

impl Sync {
    /// For `strace -e`.
    fn expression(self) -> String {
        match self {
            Sync::FailsOnce { number } => format!("inject=fdatasync,fsync:error=EIO:when={number}"),
            Sync::Takes(delay) => format!("inject=fdatasync,fsync:delay_enter={}", delay.as_micros()),
        }
    }
}

/// A running `strace`. Dropping it lets the server go.
#[derive(Debug)]
pub(super) struct Trace {
    child: Child,
    whom: Whom,
    output: PathBuf,
}

/// What is traced of a server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whom {
    /// All threads of the process.
    Process(u32),
    /// This thread alone.
    Thread { pid: u32, tid: u32 },
}

/// The thread of a process that has this name.
pub(super) fn thread_named(pid: u32, name: &str) -> Option<u32> {
    let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let task =
        tasks.find(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name))?;
    task.file_name().to_str()?.parse().ok()
}

impl Trace {
    /// Attaches.
    pub(super) fn attach(whom: Whom, sync: Sync, output: &Path) -> io::Result<Trace> {
        let mut command = Command::new("strace");
        let id = match whom {
            Whom::Process(pid) => {
                command.arg("-f");
                pid
            }
            Whom::Thread { tid, .. } => tid,
        };
        command
            .args(["-qq", "-T", "-e", "signal=none", "-e", "trace=fdatasync,fsync", "-e"])
            .arg(sync.expression())
            .arg("-o")
            .arg(output)
            .arg("-p")
            .arg(id.to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut trace = Trace { child, whom, output: output.to_owned() };
        let deadline = Instant::now() + ATTACH;
        let tracer = format!("TracerPid:\t{}", trace.child.id());
        while !traced(whom, &tracer).is_some_and(|all| all) {
            if Instant::now() >= deadline || trace.child.try_wait()?.is_some() {
                let _ = trace.child.kill();
                let mut why = String::new();
                if let Some(mut stderr) = trace.child.stderr.take() {
                    io::Read::read_to_string(&mut stderr, &mut why)?;
                }
                return Err(io::Error::other(format!("strace has not got the server: {}", why.trim())));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(trace)
    }

    /// What `strace` has seen of its own doing, newest last.
    pub(super) fn injected(&self) -> Vec<String> {
        injections(&std::fs::read_to_string(&self.output).unwrap_or_default())
    }

    /// Lets the server go. Its syncs are the kernel's own again when this returns.
    pub(super) fn detach(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        signal(self.child.id(), Signal::INT);
        if ended_within(&mut self.child, ATTACH)?.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        let deadline = Instant::now() + ATTACH;
        while traced(self.whom, "TracerPid:\t0") == Some(false) {
            if Instant::now() >= deadline {
                return Err(io::Error::other("strace has ended and the server is still traced"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // There is nobody to tell; the kernel detaches a dead tracer's processes.
            let _ = self.end();
        }
    }
}

/// Whether all traced threads say `tracer` of themselves; `None` if the process has ended.
fn traced(whom: Whom, tracer: &str) -> Option<bool> {
    let (pid, only) = match whom {
        Whom::Process(pid) => (pid, None),
        Whom::Thread { pid, tid } => (pid, Some(tid.to_string())),
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let tasks = tasks.filter(|task| only.as_ref().is_none_or(|only| task.file_name().to_str() == Some(only)));
    let mut statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    Some(statuses.all(|status| status.lines().any(|line| line == tracer)))
}

/// The lines of calls that `strace` has failed or delayed.
fn injections(output: &str) -> Vec<String> {
    let ours = |line: &&str| line.contains("(INJECTED)") || line.contains("(DELAYED)");
    // With more than one thread its id comes first.
    let call = |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
    let words = |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ");
    output.lines().filter(ours).map(|line| words(call(line))).collect()
}

/// How long the call of such a line took.
pub(super) fn took(line: &str) -> Option<Duration> {
    let seconds: f64 = line.rsplit_once('<')?.1.strip_suffix('>')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_injected_counts() {
        let output = "\
17 fdatasync(9)                      = 0 <0.001201>
17 fdatasync(9)                      = -1 EIO (Input/output error) (INJECTED) <0.000051>
18 fdatasync(12 <unfinished ...>
18 <... fdatasync resumed>)          = 0 (DELAYED) <0.050997>
18 +++ exited with 1 +++
";
        let injected = injections(output);
        assert_eq!(
            injected,
            [
                "fdatasync(9) = -1 EIO (Input/output error) (INJECTED) <0.000051>",
                "<... fdatasync resumed>) = 0 (DELAYED) <0.050997>"
            ]
        );
        assert_eq!(took(&injected[1]), Some(Duration::from_micros(50_997)));
        assert_eq!(took("fdatasync(9"), None);
    }

    #[test]
    fn the_chosen_sync_of_a_running_process_fails_and_the_next_works_again() {
        let dir = tempfile::tempdir().unwrap();
        let sync = "dd if=/dev/zero of=file bs=1 count=1 conv=fdatasync 2> /dev/null; echo $?; read line";
        let mut shell = Command::new("sh")
            .args(["-c", &format!("read line; {sync}; {sync}")])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let trace = Trace::attach(Whom::Process(shell.id()), Sync::FailsOnce { number: 1 }, &dir.path().join("strace"))
            .unwrap();
        let (mut input, output) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let mut lines = io::BufRead::lines(io::BufReader::new(output));
        let mut next = || {
            io::Write::write_all(&mut input, b"\n").unwrap();
            lines.next().unwrap().unwrap()
        };
        assert_eq!(next(), "1", "dd was told of an error");
        assert!(trace.injected()[0].contains("EIO"), "{:?}", trace.injected());
        trace.detach().unwrap();
        assert_eq!(next(), "0");
        drop(input);
        shell.wait().unwrap();
    }

    #[test]
    fn a_sync_fails_once_and_not_for_ever() {
        assert_eq!(Sync::FailsOnce { number: 3 }.expression(), "inject=fdatasync,fsync:error=EIO:when=3");
        assert_eq!(Sync::Takes(Duration::from_millis(50)).expression(), "inject=fdatasync,fsync:delay_enter=50000");
    }
}
