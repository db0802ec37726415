//! A check that is a program: it says by its exit status whether the replica is well.
//!
//! It runs beside the replica, with its environment and in its directory, in a process group of its own. Whatever
//! is left of that group when the program has ended, or is late, or nobody asks any more, is killed.

use quorate_model::secret::Secret;
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Of what it writes to its standard error, so much is looked at: the last line is its reason.
const WORDS_BYTES_MAX: usize = 4096;
/// The longest reason that is shown.
const REASON_CHARS_MAX: usize = 200;
/// How long the last words may take once its group has been killed: they are in the pipe already.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exec {
    /// Program and arguments, placeholders filled.
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// The rest of the environment.
    pub(crate) secret_env: Secret<BTreeMap<String, String>>,
    pub(crate) dir: PathBuf,
}

/// Kills what is left of a process group when it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody left: fine.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs it once. Dropped before it is over, nothing of it runs on.
pub(super) async fn run(exec: &Exec) -> Result<(), String> {
    let [program, arguments @ ..] = exec.command.as_slice() else { return Err("exec names no program".into()) };
    let name = Path::new(program).file_name().map_or_else(|| program.clone(), |name| name.to_string_lossy().into());
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&exec.env).envs(exec.secret_env.expose()).current_dir(&exec.dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{name} cannot be started: {}", super::short(&error)))?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let group = Group(id.and_then(Pid::from_raw));
    let mut pipe = child.stderr.take();
    let mut words = Vec::new();
    let status = loop {
        let mut part = [0; 512];
        tokio::select! {
            status = child.wait() => break status,
            read = next(&mut pipe, &mut part) => keep(&mut words, &part[..read]),
        }
    };
    drop(group);
    let rest = async {
        let mut part = [0; 512];
        while pipe.is_some() {
            let read = next(&mut pipe, &mut part).await;
            keep(&mut words, &part[..read]);
        }
    };
    // Only one that left its group still holds the pipe.
    let _ = timeout(LAST_WORDS, rest).await;
    let status = status.map_err(|error| format!("{name}: {}", super::short(&error)))?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    let reason = words.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    Err(if reason.is_empty() { format!("{name}: {status}") } else { format!("{name}: {status}: {reason}") })
}

/// The next words. At their end the pipe is gone, and nothing comes any more.
async fn next(pipe: &mut Option<tokio::process::ChildStderr>, part: &mut [u8]) -> usize {
    let Some(open) = pipe else { return std::future::pending().await };
    let read = open.read(part).await.unwrap_or(0);
    if read == 0 {
        *pipe = None;
    }
    read
}

/// Keeps the newest.
fn keep(words: &mut Vec<u8>, part: &[u8]) {
    words.extend_from_slice(part);
    let surplus = words.len().saturating_sub(WORDS_BYTES_MAX);
    words.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Exec {
        let env =
            BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("WHO".to_owned(), "me".to_owned())]);
        let secret_env = Secret::new(BTreeMap::from([("PASSWORD".to_owned(), "p".to_owned())]));
        Exec { command: vec!["/bin/sh".into(), "-c".into(), script.into()], env, secret_env, dir: "/tmp".into() }
    }

    #[tokio::test]
    async fn the_exit_status_decides_and_the_last_line_is_the_reason() {
        assert_eq!(run(&shell("test \"$WHO$PASSWORD\" = mep")).await, Ok(()));
        assert_eq!(run(&shell("exit 3")).await, Err("sh: exit status: 3".into()));
        let said = run(&shell("echo one >&2; echo 'no peer' >&2; exit 1")).await;
        assert_eq!(said, Err("sh: exit status: 1: no peer".into()));
        let loud = run(&shell("i=0; while [ $i -lt 20000 ]; do echo 0123456789 >&2; i=$((i+1)); done; exit 0")).await;
        assert_eq!(loud, Ok(()), "a full pipe keeps nobody");
        let missing = Exec { command: vec!["/no/such/check".into()], ..shell("") };
        assert_eq!(run(&missing).await, Err("check cannot be started: entity not found".into()));
    }

    #[tokio::test]
    async fn one_that_is_late_is_killed_with_whatever_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let mut exec = shell("sleep 300 & echo $! > pid; sleep 300");
        exec.dir = dir.path().to_owned();
        let mut late = Box::pin(run(&exec));
        let pid = dir.path().join("pid");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let started = loop {
            assert!(timeout(Duration::from_millis(20), &mut late).await.is_err(), "it sleeps");
            let text = std::fs::read_to_string(&pid).unwrap_or_default();
            if let Ok(number) = text.trim().parse::<i32>() {
                break number;
            }
            assert!(std::time::Instant::now() < deadline);
        };
        drop(late);
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{started}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
        };
        while runs() {
            assert!(std::time::Instant::now() < deadline, "it runs on");
            tokio::task::yield_now().await;
        }
    }
}
