//! Checks of this machine: what the system gives, how fast and how full its disk is.

use super::Finding;
use crate::dev::procfs;
use crate::settings::{DEFAULT_FILE, Source};
use rustix::fs::{StatVfs, fdatasync, statfs, statvfs};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Below this a node soon cannot write: the log is preallocated in segments of 16 MiB, and the
/// databases and the logs of services grow.
const FREE_LEAST: u64 = 512 << 20;
/// What one node may need by itself: 1 GiB of log that is kept, and the databases.
const FREE_GOOD: u64 = 2 << 30;
/// Connections of clients and of gateways each need a descriptor.
const FILES_LEAST: u64 = 1_024;
const FILES_GOOD: u64 = 16_384;
/// What Kuzzle's documentation asks for, and what a watched source tree soon needs.
const WATCHES_GOOD: u64 = 524_288;
/// Every acknowledged write waits for a sync on a majority of managers.
const SYNC_GOOD: Duration = Duration::from_millis(10);
const SYNC_WORST: Duration = Duration::from_millis(50);
/// How long the disk is measured, and with how many syncs at most.
const MEASURE: Duration = Duration::from_secs(1);
const SYNCS_MAX: usize = 1_000;
/// A batch of small log entries.
const BLOCK: usize = 4_096;
/// `f_type` of a file system in memory (statfs(2)).
const TMPFS: u64 = 0x0102_1994;

/// The files that the servers here read; each is read once more.
pub(super) fn configuration(sources: &[Source]) -> Finding {
    let (mut files, mut mistakes) = (Vec::new(), Vec::new());
    for source in sources {
        match source.load() {
            Ok(_) if source.file.is_none() && !source.path().exists() => {}
            Ok(_) => files.push(source.path().display().to_string()),
            Err(found) => mistakes.extend(found.0),
        }
    }
    let fix = || {
        format!(
            "quorate config validate {}",
            sources.first().map_or(DEFAULT_FILE.into(), |it| it.path().display().to_string())
        )
    };
    match (files.len(), mistakes.is_empty()) {
        (_, false) => {
            let all: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            Finding::bad("configuration", all.join("; "), "a server that is started with it ends at once", fix())
        }
        (0, true) => Finding::well("configuration", format!("all defaults, there is no {DEFAULT_FILE}")),
        (1, true) => Finding::well("configuration", format!("{} is valid", files[0])),
        (count, true) => Finding::well("configuration", format!("{count} files are valid")),
    }
}

/// Everything about this machine; `data_dirs` are those of its nodes.
pub(super) fn examine(data_dirs: &[PathBuf]) -> Vec<Finding> {
    let mut findings = vec![open_files(&limits(data_dirs))];
    findings.extend(watches());
    // Nodes of one `dev` cluster share a disk.
    if let Some(dir) = data_dirs.first() {
        findings.extend(match statvfs(dir) {
            Ok(space) => vec![disk_space(dir, free(&space)), sync_latency(dir, measure_sync(dir))],
            Err(error) => vec![Finding::bad(
                "data directory",
                format!("{} cannot be looked at: {error}", dir.display()),
                "the node keeps everything in it",
                "name the right one with --data-dir, or run it as the user that the server runs as",
            )],
        });
    }
    findings
}

fn free(space: &StatVfs) -> u64 {
    space.f_bavail.saturating_mul(space.f_frsize)
}

/// The limit of open files of each server that runs here; of this process when none does.
fn limits(data_dirs: &[PathBuf]) -> Vec<(String, u64)> {
    let serves = |pid: u32, dir: &Path| {
        let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let argv: Vec<&[u8]> = argv.split(|byte| *byte == 0).collect();
        argv.contains(&b"serve".as_slice()) && argv.contains(&dir.as_os_str().as_encoded_bytes())
    };
    let processes = procfs::processes();
    let servers = data_dirs.iter().filter_map(|dir| {
        let pid = processes.keys().copied().find(|pid| serves(*pid, dir))?;
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
        Some((format!("the server in {name}"), soft_limit(&limits)?))
    });
    let servers: Vec<_> = servers.collect();
    if !servers.is_empty() {
        return servers;
    }
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    vec![("a server started from here".to_owned(), own.unwrap_or(u64::MAX))]
}

/// From `/proc/PID/limits`.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn open_files(limits: &[(String, u64)]) -> Finding {
    const CHECK: &str = "open files";
    let Some((whose, least)) = limits.iter().min_by_key(|(_, limit)| limit) else {
        return Finding::well(CHECK, "no limit");
    };
    let what = format!("{least} at most for {whose}");
    let why = "every connection of a client, a gateway or another node needs one";
    let fix = "LimitNOFILE=1048576 in quorate.service, or ulimit -n 65536 before `quorate dev`";
    match *least {
        least if least < FILES_LEAST => Finding::bad(CHECK, what, why, fix),
        least if least < FILES_GOOD => Finding::doubtful(CHECK, what, why, fix),
        _ => Finding::well(CHECK, what),
    }
}

fn watches() -> Option<Finding> {
    let text = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok()?;
    Some(watched_files(text.trim().parse().ok()?))
}

fn watched_files(limit: u64) -> Finding {
    let what = format!("{limit} at most");
    if limit >= WATCHES_GOOD {
        return Finding::well("watched files", what);
    }
    Finding::doubtful(
        "watched files",
        what,
        "services that watch their files (inotify) share this limit with everything else of their user, and fail with ENOSPC beyond it",
        format!("sysctl -w fs.inotify.max_user_watches={WATCHES_GOOD}"),
    )
}

fn disk_space(dir: &Path, free: u64) -> Finding {
    let what = format!("{} free in {}", mebibytes(free), dir.display());
    let why = "a node that cannot write its log stops";
    let fix = "make room on that disk, or move the data directory to a larger one";
    match free {
        free if free < FREE_LEAST => Finding::bad("disk space", what, why, fix),
        free if free < FREE_GOOD => Finding::doubtful("disk space", what, why, fix),
        _ => Finding::well("disk space", what),
    }
}

fn mebibytes(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// What writing and syncing costs.
#[derive(Debug, Clone, Copy)]
struct SyncCost {
    median: Duration,
    p99: Duration,
    syncs: usize,
    /// The directory is in memory: nothing is ever synced.
    in_memory: bool,
}

/// Writes as the log does: one block after the other into a file that has its size already, each
/// with an fdatasync. The file has no name and is gone with this process.
fn measure_sync(dir: &Path) -> io::Result<SyncCost> {
    let file = tempfile::tempfile_in(dir)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, (BLOCK * SYNCS_MAX) as u64)?;
    file.sync_all()?;
    let block = [0x51; BLOCK];
    let started = Instant::now();
    let mut costs = Vec::new();
    while costs.len() < SYNCS_MAX && started.elapsed() < MEASURE {
        let before = Instant::now();
        file.write_all_at(&block, (costs.len() * BLOCK) as u64)?;
        fdatasync(&file)?;
        costs.push(before.elapsed());
    }
    costs.sort_unstable();
    let in_memory = statfs(dir).is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|kind| kind == TMPFS));
    Ok(SyncCost { median: quantile(&costs, 50), p99: quantile(&costs, 99), syncs: costs.len(), in_memory })
}

/// The value that so many percent do not exceed; `sorted` has at least one.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let position = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(position).copied().unwrap_or_default()
}

fn sync_latency(dir: &Path, measured: io::Result<SyncCost>) -> Finding {
    const CHECK: &str = "disk sync";
    let cost = match measured {
        Ok(cost) => cost,
        Err(error) => {
            return Finding::bad(
                CHECK,
                format!("{} cannot be written to: {error}", dir.display()),
                "the node keeps everything in it",
                "look at the disk, and run this as the user that the server runs as",
            );
        }
    };
    let what = format!("p99 {}, median {}, of {} writes", millis(cost.p99), millis(cost.median), cost.syncs);
    let why = "a write is acknowledged when a majority of the managers has synced it";
    let fix = "put the data directory on a disk of its own, an SSD or one with a battery-backed cache";
    match cost {
        SyncCost { in_memory: true, .. } => Finding::doubtful(
            CHECK,
            format!("{} is in memory, nothing in it is ever synced", dir.display()),
            "a power cut takes everything",
            "put the data directory on a disk, unless this is a test",
        ),
        SyncCost { p99, .. } if p99 > SYNC_WORST => Finding::bad(CHECK, what, why, fix),
        SyncCost { p99, .. } if p99 > SYNC_GOOD => Finding::doubtful(CHECK, what, why, fix),
        _ => Finding::well(CHECK, what),
    }
}

fn millis(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Bad, Doubtful, Well};
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_mistake_in_any_of_the_files_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        let source = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            Source { file: Some(file), environment: Default::default() }
        };
        let good = [source("a", ""), source("b", "[log]\nlevel = \"debug\"\n")];
        assert_eq!(configuration(&good).what, "2 files are valid");
        let finding = configuration(&[good[0].clone(), source("c", "[logs]\n")]);
        assert_eq!(finding.verdict, Bad);
        assert!(finding.what.contains("did you mean `log`?"), "{}", finding.what);
    }

    #[test]
    fn exhausted_watches_get_the_command_that_kuzzle_users_know() {
        let finding = watched_files(8_192);
        assert_eq!(
            finding.line(false),
            "! watched files 8192 at most   fix: sysctl -w fs.inotify.max_user_watches=524288"
        );
        assert_eq!(watched_files(524_288).verdict, Well);
    }

    #[test]
    fn the_smallest_limit_of_open_files_counts() {
        let limits = |all: &[u64]| all.iter().map(|limit| ("n".to_owned(), *limit)).collect::<Vec<_>>();
        assert_eq!(open_files(&limits(&[1_048_576, 256])).verdict, Bad);
        assert_eq!(open_files(&limits(&[1_048_576, 1_024])).verdict, Doubtful);
        assert_eq!(open_files(&limits(&[u64::MAX])).verdict, Well);
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(text), Some(1_024));
        assert_eq!(soft_limit(&text.replace("1024 ", "unlimited ")), Some(u64::MAX));
        assert!(limits_of_this_process() > 0);
    }

    fn limits_of_this_process() -> u64 {
        super::limits(&[])[0].1
    }

    #[test]
    fn a_full_disk_is_bad_before_it_is_full() {
        let verdict = |free| disk_space(Path::new("/data"), free).verdict;
        assert_eq!((verdict(100 << 20), verdict(1 << 30), verdict(20 << 30)), (Bad, Doubtful, Well));
        assert_eq!(disk_space(Path::new("/data"), 100 << 20).what, "100 MiB free in /data");
        assert_eq!(disk_space(Path::new("/data"), 20 << 30).what, "20 GiB free in /data");
    }

    #[test]
    fn the_slowest_syncs_decide_and_not_the_median() {
        let cost = |p99| SyncCost { median: ms(1), p99, syncs: 200, in_memory: false };
        let finding = |p99| sync_latency(Path::new("/data"), Ok(cost(ms(p99))));
        assert_eq!((finding(9).verdict, finding(30).verdict, finding(80).verdict), (Well, Doubtful, Bad));
        assert_eq!(finding(80).what, "p99 80.0 ms, median 1.0 ms, of 200 writes");
        let memory = SyncCost { in_memory: true, ..cost(ms(0)) };
        assert_eq!(sync_latency(Path::new("/data"), Ok(memory)).verdict, Doubtful);
        let failed = sync_latency(Path::new("/data"), Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(failed.verdict, Bad);
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let hundred: Vec<Duration> = (1..=100).map(ms).collect();
        assert_eq!((quantile(&hundred, 50), quantile(&hundred, 99)), (ms(50), ms(99)));
        assert_eq!(quantile(&[ms(7)], 99), ms(7));
        assert_eq!(quantile(&hundred[..2], 99), ms(2));
    }

    #[test]
    fn a_real_directory_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let cost = measure_sync(dir.path()).unwrap();
        assert!(cost.syncs > 0 && cost.median <= cost.p99, "{cost:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(measure_sync(&dir.path().join("none")).is_err());
    }
}
