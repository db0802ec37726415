//! Ends what a replica left behind.
//!
//! PDEATHSIG reaches only the process that a shim started itself, and a killed shim cannot clean up
//! its process group. So before a replica is started again, and after it was stopped, every process
//! that inherited its mark (`QUORATE_REPLICA=<id>` in the environment) is killed. A pid from a file
//! is never trusted: pids are used again, replica ids are not.

use crate::launch::REPLICA_VARIABLE;
use quorate_model::id::ReplicaId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// A killed process is gone within milliseconds unless the kernel holds it (a dead NFS mount, say);
/// then waiting longer does not help.
const PATIENCE: Duration = Duration::from_secs(5);

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

fn marked(mark: &str) -> Vec<OwnedFd> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| has_mark(*pid, mark))
        .filter_map(|pid| {
            let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            // The descriptor may already mean a successor with the same pid; look through it again.
            (has_mark(pid, mark) && !ends_within(&process, Duration::ZERO)).then_some(process)
        })
        .collect()
}

fn has_mark(pid: i32, mark: &str) -> bool {
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
