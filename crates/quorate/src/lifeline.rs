//! Ends this process when another one ends, however that one ended.
//!
//! `quorate dev` gives its own pid to everything that it starts, so even `kill -9` of it leaves
//! nothing behind. Why not `PR_SET_PDEATHSIG`: it must be set in the child before `exec`, which
//! needs unsafe code, it covers direct children only, and it fires when the parent *thread* ends.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;

/// Exit status of a process that ended because its lifeline did: as if by SIGTERM.
const EXIT_STATUS: i32 = 128 + 15;

/// From now on this process ends when process `pid` does; at once if that is gone already.
///
/// One thread sleeps in the kernel until then; it costs nothing.
///
/// # Errors
/// When the kernel gives no handle for `pid` for another reason than that it has ended.
pub(crate) fn end_with(pid: u32) -> io::Result<()> {
    match open(pid) {
        Ok(handle) => {
            std::thread::Builder::new().name("lifeline".into()).spawn(move || {
                wait(&handle);
                std::process::exit(EXIT_STATUS);
            })?;
            Ok(())
        }
        Err(Errno::SRCH) => std::process::exit(EXIT_STATUS),
        Err(errno) => Err(errno.into()),
    }
}

/// A handle for a process that a later process with the same id cannot be mistaken for.
pub(crate) fn open(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty())
}

/// Sleeps until the process has ended (it may still be waiting to be reaped).
pub(crate) fn wait(handle: &OwnedFd) {
    loop {
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            // A poll that fails for ever would leave an orphan: better to end too early.
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_process_does() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let handle = open(child.id()).unwrap();
        let waiter = std::thread::spawn(move || wait(&handle));
        assert!(!waiter.is_finished());
        drop(child.stdin.take());
        waiter.join().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_never_was_has_no_handle() {
        assert!(matches!(open(0), Err(Errno::SRCH)));
        assert!(matches!(open(u32::MAX), Err(Errno::SRCH)));
    }
}
