//! Ends what a replica left behind, where it has no cgroup ([`crate::cgroup`]).
//!
//! PDEATHSIG reaches only the process that a shim started itself, and a killed shim cannot clean up
//! its process group. So before a replica is started again, and after it was stopped, every process
//! that inherited its mark (`QUORATE_REPLICA=<id>` in the environment) is killed. A pid from a file
//! is never trusted: pids are used again, replica ids are not.

use crate::kernel::INIT_NAME;
use crate::launch::REPLICA_VARIABLE;
use quorate_model::id::ReplicaId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getsid, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// A killed process is gone within milliseconds unless the kernel holds it (a dead NFS mount, say);
/// then waiting longer does not help.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process with the replica's mark and waits until they are gone. Blocks.
///
/// Returns how many it killed and how many of them have not ended within 5 s.
pub(crate) fn sweep(replica: ReplicaId) -> (usize, usize) {
    let mark = format!("{REPLICA_VARIABLE}={replica}");
    let deadline = Instant::now() + PATIENCE;
    let (mut killed, mut alive) = (0, 0);
    loop {
        // A process may fork while it is being killed, so look again until nothing is found.
        let found = marked(&mark);
        if found.is_empty() || Instant::now() >= deadline {
            return (killed, alive);
        }
        alive = 0;
        for process in &found {
            // It may have ended by itself meanwhile.
            let _ = pidfd_send_signal(process, Signal::KILL);
            killed += 1;
        }
        for process in &found {
            let left = deadline.saturating_duration_since(Instant::now());
            alive += usize::from(!ends_within(process, left));
        }
    }
}

/// Waits for a process to end. Blocks.
pub(crate) fn ends_within(pidfd: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Waits until nothing runs in the PID namespace that this init of a shim had, and returns how much does after
/// 5 s. Blocks. The shim has ended; `session` is its pid.
///
/// Both numbers may be from a file and mean other processes by now, so they are only believed of a process that
/// is called like an init and was the shim's, and nothing is killed: the kernel does that.
pub(crate) fn left_in_namespace(init: u32, session: u32) -> usize {
    let is_init = || {
        let name = fs::read(format!("/proc/{init}/comm")).unwrap_or_default();
        let of_session = Pid::from_raw(init.cast_signed()).and_then(|pid| getsid(Some(pid)).ok());
        name.strip_suffix(b"\n") == Some(INIT_NAME.to_bytes()) && of_session == Pid::from_raw(session.cast_signed())
    };
    let Some(process) = open_process(init).filter(|_| is_init()) else { return 0 };
    if ends_within(&process, PATIENCE) {
        return 0;
    }
    // It also waits until somebody has buried the dead, which nobody does where PID 1 is no real init.
    let namespace = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|file| file.ino());
    let Some(own) = namespace(init) else { return 0 };
    let members = pids().filter(|pid| *pid != init && namespace(*pid) == Some(own));
    members.filter_map(open_process).filter(|process| !ends_within(process, Duration::ZERO)).count()
}

fn pids() -> impl Iterator<Item = u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn marked(mark: &str) -> Vec<OwnedFd> {
    pids()
        .filter(|pid| has_mark(*pid, mark))
        .filter_map(|pid| {
            let process = open_process(pid)?;
            // The descriptor may already mean a successor with the same pid; look through it again.
            (has_mark(pid, mark) && !ends_within(&process, Duration::ZERO)).then_some(process)
        })
        .collect()
}

fn has_mark(pid: u32, mark: &str) -> bool {
    // Not readable: another user's, or gone. Neither is ours.
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

/// Opens a descriptor of a process by its pid; `None` if there is no such process.
pub(crate) fn open_process(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Kills the process behind a descriptor; one that is gone already is fine.
pub(crate) fn kill(process: impl AsFd) {
    let _ = pidfd_send_signal(process, Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn whoever_has_the_mark_is_killed_wherever_it_went_and_nobody_else() {
        let (mine, other) = (ReplicaId(uuid::Uuid::new_v4()), ReplicaId(uuid::Uuid::new_v4()));
        let run = |replica: ReplicaId| {
            let mut command = Command::new("setsid");
            command.args(["sleep", "1000"]).env(REPLICA_VARIABLE, replica.to_string()).spawn().unwrap()
        };
        let (mut one, mut another) = (run(mine), run(other));
        let (killed, alive) = sweep(mine);
        assert!(killed >= 1 && alive == 0, "{killed} killed, {alive} alive");
        assert!(!one.wait().unwrap().success());
        assert!(another.try_wait().unwrap().is_none());
        another.kill().unwrap();
        another.wait().unwrap();
    }
}
