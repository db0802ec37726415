//! A node's wall clock, which can jump while the server runs.
//!
//! libfaketime is loaded into the server before anything else and adds what a file says to every
//! reading of the wall clock. Monotonic time is left alone: no real clock of that kind ever jumps.

use super::tools::FAKETIME;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// How long the library goes by what it has read, in seconds, of which it counts two more. Reading
/// the file for each call would cost more than the calls.
const CACHE: u64 = 1;
/// A clock and the file that shifts it.
#[derive(Debug)]
pub(super) struct Clock(PathBuf);

impl Clock {
    /// One that is right.
    pub(super) fn new(file: PathBuf) -> io::Result<Clock> {
        let clock = Clock(file);
        clock.shift(0)?;
        Ok(clock)
    }

    /// Puts a process that is not yet started under this clock.
    pub(super) fn rule<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("LD_PRELOAD", FAKETIME)
            .env("FAKETIME_TIMESTAMP_FILE", &self.0)
            .env("FAKETIME_CACHE_DURATION", CACHE.to_string())
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }

    /// From now on, or a moment later, the clock is so many seconds ahead, or behind.
    pub(super) fn shift(&self, seconds: i64) -> io::Result<()> {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        // Whoever reads it sees all of it.
        std::fs::rename(new, &self.0)
    }
}

/// Seconds since 1970, by the clock of this process.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whether the library is in force in a process: the loader only warns of one that it cannot load.
pub(super) fn is_ruled(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("libfaketime"))
}

/// Removes what the library keeps in memory for a process that was killed.
pub(super) fn forget(pid: u32) {
    for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
        // Most of the time it is not there.
        let _ = std::fs::remove_file(Path::new("/dev/shm").join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_jumps_to_and_fro() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(dir.path().join("n1.clock")).unwrap();
        for wanted in [0, 3_600, -3_600, 0] {
            clock.shift(wanted).unwrap();
            let output = clock.rule(Command::new("date").arg("+%s")).output().unwrap();
            let shown: i64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
            let seen = shown - now();
            assert!(seen.abs_diff(wanted) <= 2, "{seen} instead of {wanted}: is libfaketime installed?");
        }
    }
}
