//! The driver `process`: a shim per replica.
//!
//! The agent knows a shim only by its socket. Whoever listens there is the shim (the kernel says
//! its pid), so a recycled pid can never be taken for one.

use crate::cgroup::Groups;
use crate::driver::{Driver, Instance};
use crate::files;
use crate::launch::{self, Launch};
use crate::protocol::{Ask, ProcessState, Request, ShimState, VERSION};
use crate::shim::{READY, ShimArgs, address};
use crate::sweep::{PATIENCE, ends_within, kill, left_in_namespace, open_process, sweep};
use quorate_agent_core::lease::BootTime;
use quorate_model::assignment::{AssignedLease, AssignedReplica};
use quorate_model::id::ReplicaId;
use quorate_model::secret::Secret;
use quorate_model::spec::{Stop, StopSignal};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// A shim answers within microseconds. One that takes this long is stopped or broken.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Before what a replica left is cleaned up again.
const CLEAN_UP_PAUSE: Duration = Duration::from_secs(1);

/// Runs each replica under a shim.
#[derive(Debug, Clone)]
pub(crate) struct Shims {
    /// Program and first arguments that make a shim.
    pub(crate) command: Vec<OsString>,
    pub(crate) end_with_pid: Option<u32>,
    pub(crate) groups: Groups,
}

impl Driver for Shims {
    type Instance = ShimLink;

    async fn attach(&self, replica: ReplicaId, dir: &Path) -> io::Result<Option<ShimLink>> {
        let (stream, process) = match connect(dir).await {
            Ok(connected) => connected,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match timeout(ANSWER_PATIENCE, ShimLink::open(stream, process.try_clone()?, dir)).await {
            Ok(Ok(link)) if link.state.replica == replica => Ok(Some(link)),
            // It ended while we knocked.
            Ok(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            answer => {
                tracing::warn!(%replica, ?answer, "a shim gives no usable answer and is killed");
                kill(&process);
                let _ = spawn_blocking(move || ends_within(&process, ANSWER_PATIENCE)).await;
                Ok(None)
            }
        }
    }

    fn prepare(&self, launch: &mut Launch) -> io::Result<()> {
        let AssignedReplica { replica, spec, .. } = &launch.assigned;
        (launch.group, launch.note) = self.groups.make(*replica, &spec.resources)?;
        Ok(())
    }

    async fn launch(&self, launch: &Launch, dir: &Path) -> io::Result<Option<ShimLink>> {
        let args = ShimArgs { dir: dir.to_owned(), end_with_pid: self.end_with_pid, keep: false, clean_up: false };
        let command = self.command.clone();
        let secrets = launch.has_secret_env.then(|| launch.secret_env.clone());
        spawn_blocking(move || spawn(&command, &args, secrets)).await.map_err(io::Error::other)??;
        self.attach(launch.assigned.replica, dir).await
    }

    async fn clean_up(&self, replica: ReplicaId, dir: &Path) -> usize {
        let (dir, command) = (dir.to_owned(), self.command.clone());
        let work = move || {
            // The group that it was launched in, wherever one would be made today.
            let launch = files::read_json::<Launch>(&dir.join(launch::FILE)).unwrap_or_default();
            let (killed, alive) = match launch.and_then(|launch| launch.group) {
                Some(group) => group.end(PATIENCE),
                None => sweep(replica),
            };
            let last = files::read_json::<ShimState>(&dir.join("state.json")).unwrap_or_default();
            let init = last.as_ref().and_then(|last| Some((last.lease.as_ref()?.init?, last.shim_pid)));
            let alive = alive + init.map_or(0, |(init, shim)| left_in_namespace(init, shim));
            if alive > 0 {
                return (killed, alive, None);
            }
            let left = clean_up_address(&dir).and_then(|()| clean_up_kept(&command, &dir, last.as_ref())).err();
            (killed, usize::from(left.is_some()), left)
        };
        let (killed, alive, left) = spawn_blocking(work).await.unwrap_or_default();
        if let Some(error) = left {
            tracing::error!(%replica, %error, "what an ended replica left is not cleaned up");
        } else if alive > 0 {
            tracing::error!(%replica, alive, "processes of an ended replica do not die; they may be held by the kernel");
        } else if killed > 0 {
            tracing::warn!(%replica, killed, "killed processes that a replica had left behind");
        }
        alive
    }
}

/// Takes off the address that a shim may have left which was killed.
fn clean_up_address(dir: &Path) -> io::Result<()> {
    match files::read_json::<Launch>(&dir.join(launch::FILE)) {
        Ok(Some(launch)) => address::clean_up(&launch),
        // It never ran.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Has what a keeper may have left ended, of a replica that has no processes any more. Blocks.
fn clean_up_kept(command: &[OsString], dir: &Path, last: Option<&ShimState>) -> io::Result<()> {
    let Ok(Some(launch)) = files::read_json::<Launch>(&dir.join(launch::FILE)) else { return Ok(()) };
    let may_be_left = last.is_some_and(|last| last.kept.as_ref().is_none_or(|kept| kept.may_be_left));
    if launch.assigned.spec.driver.is_process() || !may_be_left {
        return Ok(());
    }
    let args = ShimArgs { dir: dir.to_owned(), end_with_pid: None, keep: false, clean_up: true };
    let (mut child, said) = run_shim(command, &args, None)?;
    if child.wait()?.success() {
        // Known from here on, for whoever asks again.
        if let Some(mut last) = last.cloned() {
            if let Some(kept) = &mut last.kept {
                kept.may_be_left = false;
            }
            files::write_json(&dir.join("state.json"), &last, files::Durability::Atomic)?;
        }
        return Ok(());
    }
    // Whoever asks again does so at once.
    std::thread::park_timeout(CLEAN_UP_PAUSE);
    Err(io::Error::other(said.trim().to_owned()))
}

/// Variables that a shim is told and that are in no file.
type SecretEnv = Secret<BTreeMap<String, String>>;

/// Runs a shim until it closes its stdout, and tells what it said there.
fn run_shim(command: &[OsString], args: &ShimArgs, secrets: Option<SecretEnv>) -> io::Result<(Child, String)> {
    let (program, first) = command.split_first().ok_or_else(|| io::Error::other("there is no shim command"))?;
    let trouble = OpenOptions::new().append(true).create(true).mode(0o600).open(args.dir.join("shim.log"))?;
    let mut child = Command::new(program)
        .args(first)
        .args(args.to_args())
        // Above all no mark of another replica, in case this agent itself runs in one.
        .env_clear()
        .current_dir("/")
        .stdin(if secrets.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(trouble)
        .spawn()?;
    if let Some((mut stdin, secrets)) = child.stdin.take().zip(secrets) {
        // One that does not read to the end says below why.
        let _ = stdin.write_all(&serde_json::to_vec(secrets.expose())?);
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(4096).read_to_string(&mut said)?;
    }
    Ok((child, said))
}

/// Starts a shim and waits until it listens.
fn spawn(command: &[OsString], args: &ShimArgs, secrets: Option<SecretEnv>) -> io::Result<()> {
    // It closes its stdout when it is ready or dead.
    let (mut child, said) = run_shim(command, args, secrets)?;
    match said.trim() {
        // It is reaped through its descriptor when it ends, by whichever agent then holds it.
        READY => Ok(()),
        reason => {
            let status = child.wait()?;
            let reason = if reason.is_empty() { "see shim.log" } else { reason };
            Err(io::Error::other(format!("the shim did not start ({status}): {reason}")))
        }
    }
}

async fn connect(dir: &Path) -> io::Result<(UnixStream, OwnedFd)> {
    // A socket's path may not exceed 107 bytes; through the descriptor of its directory it is short.
    let handle = File::open(dir)?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/sock", handle.as_raw_fd())).await?;
    let pid = stream.peer_cred()?.pid().ok_or_else(|| io::Error::other("the kernel does not say who listens"))?;
    let process = open_process(pid.cast_unsigned()).ok_or(ErrorKind::ConnectionRefused)?;
    Ok((stream, process))
}

/// An agent's hold on one shim.
#[derive(Debug)]
pub(crate) struct ShimLink {
    lines: Lines<BufReader<OwnedReadHalf>>,
    requests: OwnedWriteHalf,
    state: ShimState,
    process: Arc<OwnedFd>,
    dir: PathBuf,
}

impl ShimLink {
    async fn open(stream: UnixStream, process: OwnedFd, dir: &Path) -> io::Result<ShimLink> {
        let (replies, mut requests) = stream.into_split();
        let mut lines = BufReader::new(replies).lines();
        send(&mut requests, Ask::Watch).await?;
        let line = lines.next_line().await?.ok_or(ErrorKind::UnexpectedEof)?;
        // The answer came after the descriptor was opened, so the descriptor is the shim's.
        let state: ShimState = serde_json::from_str(&line)?;
        Ok(ShimLink { lines, requests, state, process: Arc::new(process), dir: dir.to_owned() })
    }
}

impl ShimLink {
    /// Waits for the process itself; `false` if it takes too long.
    async fn ends(&self) -> bool {
        let process = Arc::clone(&self.process);
        spawn_blocking(move || ends_within(&process, ANSWER_PATIENCE)).await.unwrap_or(false)
    }
}

impl Instance for ShimLink {
    fn state(&self) -> &ShimState {
        &self.state
    }

    async fn changed(&mut self) -> bool {
        match self.lines.next_line().await {
            Ok(Some(line)) => match serde_json::from_str(&line) {
                Ok(state) => {
                    self.state = state;
                    return true;
                }
                Err(error) => {
                    // Without its news the shim is of no use; the next one will speak our language.
                    tracing::error!(replica = %self.state.replica, %error, "a shim says what is not understood; it is killed");
                    self.kill();
                }
            },
            Ok(None) => {}
            Err(error) => tracing::debug!(replica = %self.state.replica, %error, "the connection to a shim broke"),
        }
        // The socket closes a moment before the process is gone, and only then is its child killed.
        if !self.ends().await {
            tracing::error!(replica = %self.state.replica, "a shim closed its socket and does not end; it is killed");
            self.kill();
            self.ends().await;
        }
        // Fails when another agent started it; then init reaps it.
        let _ = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        if !matches!(self.state.state, ProcessState::Stopped | ProcessState::GaveUp)
            && let Ok(Some(last)) = files::read_json::<ShimState>(&self.dir.join("exit.json"))
            && last.shim_pid == self.state.shim_pid
        {
            self.state = last;
        }
        false
    }

    async fn stop(&mut self, stop: &Stop) {
        let grace_ms = u64::try_from(stop.grace.0.as_millis()).unwrap_or(u64::MAX);
        // An error means that it has ended, which `changed` reports.
        let _ = send(&mut self.requests, Ask::Stop { signal: stop.signal, grace_ms }).await;
    }

    async fn hold(&mut self, epoch: u64, deadline: BootTime) {
        if self.state.lease.is_some() {
            // As above. One that is stopped takes thousands of these before it is full, and is dead by then.
            let _ = send(&mut self.requests, Ask::Hold { epoch, deadline }).await;
        }
    }

    async fn signal(&mut self, signal: StopSignal) {
        // As above.
        let _ = send(&mut self.requests, Ask::Signal { signal }).await;
    }

    async fn activate(&mut self, lease: AssignedLease, deadline: BootTime) {
        if self.state.casting.is_some() {
            let _ = send(&mut self.requests, Ask::Activate { lease, deadline }).await;
        }
    }

    async fn resign(&mut self, epoch: u64) {
        if self.state.casting.is_some() {
            let _ = send(&mut self.requests, Ask::Resign { epoch }).await;
        }
    }

    fn kill(&mut self) {
        kill(&self.process);
    }
}

async fn send(requests: &mut OwnedWriteHalf, what: Ask) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Request { v: VERSION, what })?;
    line.push(b'\n');
    requests.write_all(&line).await
}
