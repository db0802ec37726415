//! What `/proc` says about processes, for finding and ending all that belongs to a replica.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// A process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: u32,
    pub parent: u32,
    pub session: u32,
    /// In clock ticks since boot. With the pid it names a process for ever.
    pub started: u64,
    /// It has ended and only waits to be reaped.
    pub zombie: bool,
}

/// The process with this id, if there is one that has not ended.
pub(crate) fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat).filter(|process| !process.zombie)
}

/// All processes that this user may see and that have not ended.
pub(crate) fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, process(pid)?)))
        .collect()
}

/// Everything that lives because of a replica of the node in `dir`: shims, their children, and
/// whatever these started.
///
/// Three nets, because each has holes of its own: the pids that shims wrote down (`state.json`),
/// if the process that has the pid now is older than the file; processes whose command line,
/// environment or working directory lies below `dir`'s services; and everything below those, by
/// parent or by session. `except` is the server itself, whose other children are not replicas.
pub(crate) fn replica_processes(dir: &Path, except: Option<u32>) -> BTreeSet<u32> {
    let all = processes();
    let services = dir.join("services");
    let mut found = written_pids(&services, &all);
    found.extend(all.keys().copied().filter(|pid| names(*pid, &services)));
    let me = std::process::id();
    found.retain(|pid| *pid != me && Some(*pid) != except);
    loop {
        let before = found.len();
        for process in all.values() {
            let leads_a_session = found.contains(&process.session) && process.session != 0;
            if found.contains(&process.parent) || leads_a_session {
                found.insert(process.pid);
            }
        }
        found.remove(&me);
        if let Some(server) = except {
            found.remove(&server);
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Whether the process's command line, environment or working directory lies below `dir`.
fn names(pid: u32, dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let mut prefix = dir.as_os_str().as_bytes().to_vec();
    prefix.push(b'/');
    let holds = |file: &str| {
        std::fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|bytes| bytes.windows(prefix.len()).any(|window| window == prefix))
    };
    holds("cmdline")
        || holds("environ")
        || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
}

/// The processes that `<services>/*/*/state.json` name in fields called `pid`, `child_pid` or `shim_pid`.
///
/// A process that started after the file was written last got the number later, and is none of ours.
fn written_pids(services: &Path, all: &BTreeMap<u32, Process>) -> BTreeSet<u32> {
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let boot = boot_time();
    let mut pids = BTreeSet::new();
    for replica in below(services).flat_map(|service| below(&service).collect::<Vec<_>>()) {
        let file = replica.join("state.json");
        let written = std::fs::metadata(&file).and_then(|at| at.modified()).ok();
        let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let (Some(boot), Some(written), Ok(text)) = (boot, written, std::fs::read(&file)) else { continue };
        let mut named = BTreeSet::new();
        if let Ok(value) = serde_json::from_slice(&text) {
            collect_pids(&value, &mut named);
        }
        let is_older = |pid: &u32| {
            all.get(pid).is_some_and(|process| boot + process.started / TICKS_PER_SECOND <= written.as_secs() + 1)
        };
        pids.extend(named.into_iter().filter(is_older));
    }
    pids
}

fn collect_pids(value: &serde_json::Value, pids: &mut BTreeSet<u32>) {
    let Some(object) = value.as_object() else { return };
    for (name, value) in object {
        if matches!(name.as_str(), "pid" | "child_pid" | "shim_pid") {
            // Nobody writes 1 down, and nobody wants to find out what ending it does.
            pids.extend(value.as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 1));
        }
        collect_pids(value, pids);
    }
}

/// The unit of times in `/proc`; the kernel has promised it to programs for ever.
const TICKS_PER_SECOND: u64 = 100;

/// When this machine started, in seconds since 1970.
fn boot_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Reads a line of `/proc/PID/stat`. The name in it may hold spaces and parentheses of its own.
fn parse_stat(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let fields: Vec<&str> = rest.get(rest.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    Some(Process {
        pid: pid.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_strange_process_name_does_not_confuse_the_reader() {
        let stat = "42 (a) b (c) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 1";
        assert_eq!(parse_stat(stat), Some(Process { pid: 42, parent: 7, session: 41, started: 98_765, zombie: false }));
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn this_process_is_there_and_an_ended_one_is_not() {
        let me = process(std::process::id()).unwrap();
        assert!(me.started > 0);
        let mut child = Command::new("true").spawn().unwrap();
        let handle = crate::lifeline::open(child.id()).unwrap();
        crate::lifeline::wait(&handle);
        assert_eq!(process(child.id()), None, "ended, though nobody has reaped it");
        child.wait().unwrap();
    }

    #[test]
    fn a_replica_is_found_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let replica = dir.path().join("n1/services/web/0001");
        std::fs::create_dir_all(&replica).unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", "cat & echo started; wait"])
            .env("QUORATE_TEST_DIR", replica.join("log"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.as_mut().unwrap()), &mut line).unwrap();

        let found = replica_processes(&dir.path().join("n1"), None);
        assert!(found.contains(&shell.id()));
        assert_eq!(found.len(), 2, "the shell and its child: {found:?}");
        assert!(replica_processes(&dir.path().join("n2"), None).is_empty());

        for pid in found {
            crate::dev::signal(pid, rustix::process::Signal::KILL);
        }
        shell.wait().unwrap();
    }

    #[test]
    fn an_old_pid_in_a_file_condemns_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let replica = dir.path().join("services/web/0001");
        std::fs::create_dir_all(&replica).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let file = std::fs::File::create(replica.join("state.json")).unwrap();
        serde_json::to_writer(&file, &serde_json::json!({ "run": { "pid": child.id() }, "end_with_pid": 2 })).unwrap();
        assert_eq!(replica_processes(dir.path(), None), BTreeSet::from([child.id()]));

        let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400);
        file.set_modified(yesterday).unwrap();
        assert!(replica_processes(dir.path(), None).is_empty(), "the process is younger than the note");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
