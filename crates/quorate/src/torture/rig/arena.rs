//! Where a run happens: namespaces of its own, so that whatever it makes ends with it.
//!
//! As root, [`enter`] starts this program once more in new namespaces of processes, mounts and
//! network. The kernel itself then cleans up: when the inner process ends, however it ended, every
//! process of the run is killed, its networks and interfaces are gone, its disks are unmounted and
//! their loop devices are free. Nothing has a name outside, so nothing has to be found again by name.
//!
//! The outer process keeps what the kernel does not clean: one directory of files. The only tie
//! between both is a pipe. A byte in it asks the inner process to stop in an orderly way; its end
//! ends it at once, so that an outer process that was killed leaves nothing running either. A
//! directory that it left is removed by the next run, which knows it by its name and by the process
//! that owned it and is dead.
//!
//! Without root, or where the kernel refuses, the run is on loopback in this very process, and says
//! what that leaves out.

use super::tools::{self, Lack, Lacks, Missing};
use crate::cli::failure::{Exit, Failure};
use crate::dev::procfs;
use crate::torture::fault::Need;
use rustix::process::{Pid, getppid};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Says to the inner process that it is one, and which directory is the run's.
const INSIDE: &str = "QUORATE_TORTURE_INSIDE";
/// How the directories of runs begin; nothing else is ever removed.
const PREFIX: &str = "quorate-torture-";
/// In the directory of a run: whose it is.
const OWNER: &str = "owner.json";
/// The end of the run's processes, of which some may be in the middle of a write, takes a moment.
const VANISH: Duration = Duration::from_secs(10);
/// How long the kernel's refusal of a namespace takes at most to show.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a run is to be like.
#[derive(Debug, Clone, Default)]
pub(crate) struct EnterOptions {
    /// Where the directory of the run is made; default: the system's place for temporary files.
    pub parent: Option<PathBuf>,
    /// Leave the directory of the run, with the servers' logs and data, for a look.
    pub keep: bool,
    /// Stay on loopback although namespaces could be had.
    pub loopback: bool,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub(crate) enum Entered {
    /// The one that does the work.
    Here(Arena),
    /// The outer one, and the inner one has ended like this. All is cleaned up.
    Over(ExitCode),
}

/// A place for a rig.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Everything that the run writes is in it.
    pub(crate) dir: PathBuf,
    /// Raised when a user wants the run to end.
    pub(crate) stop: Stop,
    pub(super) lacks: Lacks,
    /// On loopback: removed with the arena.
    _run: Option<RunDir>,
}

/// Somebody wants the run to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    pub(crate) fn raise(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    pub(crate) fn is_raised(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `time`, or less if it is raised. Returns whether it is.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let raised = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *self.0.1.wait_timeout_while(raised, time, |raised| !*raised).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Goes to the place of the run: into namespaces by means of a second process with the same
/// arguments, or nowhere. To be called before anything is printed or started; only one of the two
/// processes gets an [`Arena`].
///
/// # Errors
/// When no directory can be made, or the run has left something that could not be removed.
pub(crate) fn enter(options: &EnterOptions) -> Result<Entered, Failure> {
    let below_init = getppid() == Some(Pid::INIT);
    if let Some(dir) = std::env::var_os(INSIDE).filter(|_| below_init) {
        return inner(PathBuf::from(dir))
            .map(Entered::Here)
            .map_err(|error| failed("the run's place cannot be used", error));
    }
    let run = RunDir::make(options).map_err(|error| {
        failed("no directory for the run can be made", error).fix("choose another one, on a disk with room")
    })?;
    let lacks = look(options.loopback);
    if lacks.contains_key(&Need::Network) {
        let stop = Stop::default();
        let raise = stop.clone();
        on_signals(move || raise.raise()).map_err(|error| failed("signals cannot be received", error))?;
        return Ok(Entered::Here(Arena { dir: run.path.clone(), stop, lacks, _run: Some(run) }));
    }
    outer(run).map(Entered::Over)
}

/// What a run lacks here.
fn look(loopback: bool) -> Lacks {
    let mut lacks = tools::look(rustix::process::geteuid().is_root());
    let refused = if loopback {
        Some(Lack::new("this run stays on loopback", "leave out --loopback"))
    } else if lacks.contains_key(&Need::Network) {
        None
    } else {
        let refused = |why| {
            Lack::new(format!("this kernel gives no namespaces: {why}"), "run it on a server, not in a container")
        };
        namespaces_work().err().map(refused)
    };
    if let Some(lack) = refused {
        lacks.insert(Need::Disks, lack.clone());
        lacks.insert(Need::Network, lack);
    }
    lacks
}

/// The kinds of faults that a run cannot have here, as far as can be said before it.
pub(crate) fn missing(loopback: bool) -> Vec<Missing> {
    tools::missing(&look(loopback))
}

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, "rig", what).why(error)
}

/// `unshare` with the namespaces of a run, and what is to run in them. The first process in there is a shell,
/// which buries the dead that come to it, as every machine's init does: the namespace of a copy is gone only
/// when each of its dead is buried.
fn in_namespaces(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--net", "--"]);
    // Not the shell's last command, in whose place that would run.
    command.args(["sh", "-c", "\"$@\"; exit $?", "sh"]).arg(program);
    command
}

fn namespaces_work() -> Result<(), String> {
    let output = in_namespaces(Path::new("true")).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// The inner process: the first of its namespace of processes ends with it, and all others with that.
fn inner(dir: PathBuf) -> io::Result<Arena> {
    let stop = Stop::default();
    let raise = stop.clone();
    std::thread::Builder::new().name("tie".into()).spawn(move || {
        let mut byte = [0];
        loop {
            match io::stdin().read(&mut byte) {
                Ok(1) => raise.raise(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody is left to tell.
                _ => std::process::exit(Exit::Interrupted as i32),
            }
        }
    })?;
    // libfaketime names its shared memory after process ids, and those are ours alone in here.
    let shm = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev/shm"]).status()?;
    if !shm.success() {
        return Err(io::Error::other("a file system in memory cannot be mounted at /dev/shm"));
    }
    // As on servers: a disk that is unmounted is so for those that run once too, in namespaces of their own.
    let shared = Command::new("mount").args(["--make-rshared", "/"]).status()?;
    if !shared.success() {
        return Err(io::Error::other("the run's mounts cannot be shared with what it starts"));
    }
    Ok(Arena { dir, stop, lacks: tools::look(true), _run: None })
}

enum Event {
    Signal,
    Ended,
}

/// The outer process: waits for the inner one, passes on what a user wants, and cleans up.
fn outer(run: RunDir) -> Result<ExitCode, Failure> {
    let program = std::env::current_exe().map_err(|error| failed("this program does not know its own file", error))?;
    let (sender, events) = channel();
    let signals = sender.clone();
    on_signals(move || {
        // Nobody listens any more once the inner process has ended.
        let _ = signals.send(Event::Signal);
    })
    .map_err(|error| failed("signals cannot be received", error))?;
    let mut command = in_namespaces(&program);
    command.args(std::env::args_os().skip(1)).env(INSIDE, &run.path).stdin(Stdio::piped());
    // Ctrl-C is for us: the pipe tells the inner process.
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| failed("namespaces cannot be made", error))?;
    let mut tie = child.stdin.take();
    let handle = crate::lifeline::open(child.id()).map_err(|error| failed("a process cannot be watched", error))?;
    std::thread::Builder::new()
        .name("watch".into())
        .spawn(move || {
            crate::lifeline::wait(&handle);
            let _ = sender.send(Event::Ended);
        })
        .map_err(|error| failed("a process cannot be watched", error))?;
    let mut asked = false;
    loop {
        match events.recv_timeout(Duration::from_secs(1)) {
            Ok(Event::Signal) if asked => drop(tie.take()),
            Ok(Event::Signal) => {
                asked = true;
                // It may have ended just now, and that is as good.
                let _ = tie.as_mut().map(|tie| tie.write_all(b"s"));
            }
            Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let code = ended(&mut child);
    run.remove_all().map_err(|left| {
        Failure::new(Exit::Failed, "leftovers", "the run has left something behind").why(left.join("\n"))
    })?;
    Ok(code)
}

/// How the inner process ended. `unshare` repeats its exit status, or dies of the same signal.
fn ended(child: &mut Child) -> ExitCode {
    let status = child.wait();
    let code = status.ok().and_then(|status| status.code().or(status.signal().map(|signal| 128 + signal)));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::from(Exit::Failed as u8), ExitCode::from)
}

/// Calls `then` at each SIGINT, SIGTERM and SIGHUP from now on.
fn on_signals(then: impl Fn() + Send + 'static) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Registered before this returns, so that no signal ends us with something left behind.
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    let watch = async move {
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
            then();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(watch))?;
    Ok(())
}

/// Whose directory it is. A process id may be used again; with its time of start it is for ever.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

impl Owner {
    fn me() -> Owner {
        let pid = std::process::id();
        Owner { pid, started: procfs::process(pid).map_or(0, |me| me.started) }
    }

    fn is_alive(&self) -> bool {
        procfs::process(self.pid).is_some_and(|process| process.started == self.started)
    }
}

/// The directory of a run. Dropping it removes it.
#[derive(Debug)]
struct RunDir {
    path: PathBuf,
    keep: bool,
    removed: bool,
}

impl RunDir {
    /// Makes it, after what killed runs have left in the same place was removed.
    fn make(options: &EnterOptions) -> io::Result<RunDir> {
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        std::fs::create_dir_all(&parent)?;
        let parent = parent.canonicalize()?;
        remove_orphans(&parent);
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent)?.keep();
        let run = RunDir { path, keep: options.keep, removed: false };
        std::fs::write(run.path.join(OWNER), serde_json::to_vec(&Owner::me())?)?;
        Ok(run)
    }

    /// Waits until nothing of the run lives, and removes the directory.
    ///
    /// # Errors
    /// What is still there, one line each.
    fn remove_all(mut self) -> Result<(), Vec<String>> {
        let deadline = Instant::now() + VANISH;
        let mut left = left_of(&self.path);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
            left = left_of(&self.path);
        }
        if !left.is_empty() {
            return Err(left);
        }
        self.removed = true;
        if self.keep {
            // Not an orphan to the next run.
            let _ = std::fs::remove_file(self.path.join(OWNER));
            return Ok(());
        }
        std::fs::remove_dir_all(&self.path).map_err(|error| vec![format!("{}: {error}", self.path.display())])
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.keep {
            let _ = std::fs::remove_file(self.path.join(OWNER));
        } else if !self.removed {
            // The next run tries again.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the directories of runs whose owner was killed. Where something of the run still lives
/// (its end takes a moment), the next run looks again.
fn remove_orphans(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let owner = std::fs::read(entry.path().join(OWNER)).ok();
        let owner = owner.and_then(|text| serde_json::from_slice::<Owner>(&text).ok());
        if ours && owner.is_some_and(|owner| !owner.is_alive()) && left_of(&entry.path()).is_empty() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// What lives of a run: processes that name its directory, mounts below it, loop devices of its files.
pub(super) fn left_of(dir: &Path) -> Vec<String> {
    let me = std::process::id();
    let mut left = Vec::new();
    let named = procfs::processes().into_keys().filter(|pid| *pid != me && procfs::names(*pid, dir));
    left.extend(named.map(|pid| format!("process {pid}: {}", command_line(pid))));
    let below = |path: &str| Path::new(path).starts_with(dir);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| below(point));
    left.extend(points.map(|point| format!("mount {point}")));
    for device in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if below(file.trim_end()) {
            left.push(format!("loop device {} of {}", device.file_name().display(), file.trim_end()));
        }
    }
    left
}

fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// A child of a run must not believe that it is the run.
pub(super) fn not_inside(command: &mut Command) -> &mut Command {
    command.env_remove(INSIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(parent: &Path) -> EnterOptions {
        EnterOptions { parent: Some(parent.to_owned()), ..EnterOptions::default() }
    }

    #[test]
    fn a_directory_of_a_killed_run_is_removed_by_the_next_and_nothing_else_is() {
        let parent = tempfile::tempdir().unwrap();
        let mut dead = Command::new("true").spawn().unwrap();
        let pid = dead.id();
        dead.wait().unwrap();
        let make = |name: &str, owner: Option<&Owner>| {
            let dir = parent.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            if let Some(owner) = owner {
                std::fs::write(dir.join(OWNER), serde_json::to_vec(owner).unwrap()).unwrap();
            }
            dir
        };
        let gone = Owner { pid, started: 1 };
        let reused = Owner { started: Owner::me().started - 1, ..Owner::me() };
        let orphans = [make("quorate-torture-1", Some(&gone)), make("quorate-torture-2", Some(&reused))];
        let others = [
            make("quorate-torture-3", Some(&Owner::me())),
            make("quorate-torture-kept", None),
            make("somebody-elses", Some(&gone)),
        ];
        let run = RunDir::make(&options(parent.path())).unwrap();
        assert!(orphans.iter().all(|dir| !dir.exists()));
        assert!(others.iter().all(|dir| dir.exists()));
        let path = run.path.clone();
        assert!(path.exists());
        run.remove_all().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_process_that_is_left_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let run = RunDir::make(&options(parent.path())).unwrap();
        let inside = run.path.join("file");
        std::fs::write(&inside, "").unwrap();
        let mut by_place = Command::new("cat").arg("-").current_dir(&run.path).stdin(Stdio::piped()).spawn().unwrap();
        let mut by_name = Command::new("tail").arg("-f").arg(&inside).stdin(Stdio::piped()).spawn().unwrap();
        // The kernel shows what a process was called with a moment after it was begun.
        let deadline = Instant::now() + Duration::from_secs(60);
        let left = loop {
            let left = left_of(&run.path);
            if left.len() == 2 || Instant::now() > deadline {
                break left;
            }
            std::thread::yield_now();
        };
        for process in [&mut by_place, &mut by_name] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.iter().any(|line| line.contains("cat -")), "{left:?}");
        assert_eq!(left_of(&run.path), Vec::<String>::new());
    }

    #[test]
    fn a_stop_wakes_whoever_waits() {
        let stop = Stop::default();
        assert!(!stop.wait(Duration::ZERO) && !stop.is_raised());
        let raise = stop.clone();
        let waiter = std::thread::spawn(move || stop.wait(Duration::from_secs(60)));
        raise.raise();
        assert!(waiter.join().unwrap());
    }
}
