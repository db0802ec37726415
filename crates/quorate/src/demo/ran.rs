//! When a copy ran, written down by itself: what shows whether a service that runs once ever ran twice.
//!
//! Each process has a file of its own, so nothing is shared and nothing grows: its name says of which
//! service and which epoch, its contents are two moments of CLOCK_BOOTTIME, which all processes of a machine
//! share and which goes on while it sleeps. The second is written anew each millisecond.

use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(1);

/// The span in which one process ran, at least.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ran {
    pub(crate) service: String,
    pub(crate) epoch: u64,
    /// On CLOCK_BOOTTIME.
    pub(crate) first: Duration,
    pub(crate) last: Duration,
}

/// Now, on CLOCK_BOOTTIME.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Writes for as long as the process lives; a copy that cannot prove itself any more must not run.
///
/// # Errors
/// When its file cannot be made, or it is no replica of a service.
pub(crate) fn write(dir: &Path) -> io::Result<()> {
    let of = |name: &str| std::env::var(name).map_err(|_| io::Error::other(format!("{name} is not set")));
    let (service, replica) = (of("QUORATE_SERVICE")?, of("QUORATE_REPLICA")?);
    let epoch = of("QUORATE_EPOCH")?;
    let first = now();
    let file = File::create_new(dir.join(format!("{service}.{epoch}.{replica}.{}", first.as_nanos())))?;
    file.write_all_at(&[bytes(first), bytes(first)].concat(), 0)?;
    std::thread::Builder::new().name("ran".into()).spawn(move || {
        while file.write_all_at(&bytes(now()), 8).is_ok() {
            std::thread::sleep(EVERY);
        }
        std::process::exit(1)
    })?;
    Ok(())
}

/// Who has run so far, in the order of their beginnings.
///
/// # Errors
/// When the directory cannot be read. A process that died before its first line has not run.
pub(crate) fn read(dir: &Path) -> io::Result<Vec<Ran>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut words = name.split('.');
        let (Some(service), Some(Ok(epoch))) = (words.next(), words.next().map(str::parse)) else { continue };
        let contents = std::fs::read(&path)?;
        let moment = |from: usize| {
            let bytes = contents.get(from..from + 8)?.try_into().ok()?;
            Some(Duration::from_nanos(u64::from_le_bytes(bytes)))
        };
        let (Some(first), Some(last)) = (moment(0), moment(8)) else { continue };
        all.push(Ran { service: service.to_owned(), epoch, first, last });
    }
    all.sort_by(|one, other| (one.first, one).cmp(&(other.first, other)));
    Ok(all)
}

fn bytes(moment: Duration) -> [u8; 8] {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_in_the_order_of_their_beginnings_and_others_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let span = |name: &str, first: u64, last: u64| {
            let contents = [bytes(Duration::from_nanos(first)), bytes(Duration::from_nanos(last))].concat();
            std::fs::write(dir.path().join(name), contents).unwrap();
        };
        span("db.2.b.50", 50, 70);
        span("db.1.a.10", 10, 40);
        std::fs::write(dir.path().join("db.3.c.80"), [0; 3]).unwrap();
        std::fs::write(dir.path().join("notes"), "x").unwrap();
        let nanos = Duration::from_nanos;
        let ran = |epoch, first, last| Ran { service: "db".into(), epoch, first: nanos(first), last: nanos(last) };
        assert_eq!(read(dir.path()).unwrap(), [ran(1, 10, 40), ran(2, 50, 70)]);
    }
}
