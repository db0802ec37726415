//! Keepers from the shim's side: how one is called, and how one is had clean up where no shim is left.

use super::ShimArgs;
use super::workload::Workload;
use crate::files;
use crate::launch::{self, Launch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// How long ending what a replica left may take in all. Longer than nearly every agent's advice for a stop.
const CLEAN_UP_SECONDS_MAX: i64 = 120;

/// Has a keeper end what is left of a replica. Says on stdout why that is not done.
pub(super) fn clean_up(args: &ShimArgs) -> ExitCode {
    let cleaned = || -> io::Result<bool> {
        std::env::set_current_dir(&args.dir)?;
        let _lock = lock()?;
        let launch: Launch = files::read_json(Path::new(launch::FILE))?
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "there is no spec.json"))?;
        let mut command = keeper_command(true);
        command.env_clear().envs(&launch.env).process_group(0);
        let workload = Workload::start_fenced(&mut command, None, None)?;
        let patience = Timespec { tv_sec: CLEAN_UP_SECONDS_MAX, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&workload.ended(), PollFlags::IN)], Some(&patience))?;
        let (status, _) = workload.end()?;
        if ended == 0 {
            let _ = writeln!(io::stdout(), "it was not done within {CLEAN_UP_SECONDS_MAX} s");
        }
        Ok(status.success())
    };
    match cleaned() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Of the replica's directory, which is the working directory.
pub(super) fn lock() -> io::Result<File> {
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open("lock")?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other("another shim runs this replica"))?;
    Ok(lock)
}

/// This program again, as a keeper of the replica in the working directory.
pub(super) fn keeper_command(clean_up: bool) -> Command {
    // The file that this process runs, also when another version took its place; and the words before `--dir`
    // that make it a shim.
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1).take_while(|word| word != "--dir"));
    command.args(ShimArgs { dir: ".".into(), end_with_pid: None, keep: true, clean_up }.to_args());
    command
}
