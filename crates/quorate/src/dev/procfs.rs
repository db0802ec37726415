//! What `/proc` says about processes, for finding and ending all that belongs to a replica.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
/// Three nets, because each has holes of its own: processes that inherited the mark of a replica
/// that has a directory there (`QUORATE_REPLICA=<id>` in the environment); those whose command
/// line, environment or working directory lies below `dir`'s services; and everything below these,
/// by parent or by session. A pid from a file is never trusted: pids are used again, ids are not.
/// `except` is the server itself, whose other children are not replicas.
pub(crate) fn replica_processes(dir: &Path, except: Option<u32>) -> BTreeSet<u32> {
    let all = processes();
    let services = dir.join("services");
    let marks = marks(&services);
    let mut found: BTreeSet<u32> =
        all.keys().copied().filter(|pid| has_mark(*pid, &marks) || names(*pid, &services)).collect();
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
pub(crate) fn names(pid: u32, dir: &Path) -> bool {
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

/// The variable that every replica's processes inherit, as it is in their environment.
fn marks(services: &Path) -> BTreeSet<Vec<u8>> {
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    below(services)
        .flat_map(|service| below(&service).collect::<Vec<_>>())
        .filter_map(|replica| Some(replica.file_name()?.as_bytes().to_vec()))
        .map(|id| [b"QUORATE_REPLICA=".as_slice(), &id].concat())
        .collect()
}

fn has_mark(pid: u32, marks: &BTreeSet<Vec<u8>>) -> bool {
    !marks.is_empty()
        && std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| marks.contains(variable)))
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

    /// A shell with a child, both waiting for the end of their input.
    fn shell(variable: &str, value: impl AsRef<std::ffi::OsStr>) -> std::process::Child {
        let mut shell = Command::new("sh")
            .args(["-c", "exec 3<&0; cat <&3 & echo started; wait"])
            .env(variable, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.as_mut().unwrap()), &mut line).unwrap();
        shell
    }

    #[test]
    fn a_replica_is_found_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let replica = dir.path().join("n1/services/web/0001-of-this-test");
        std::fs::create_dir_all(&replica).unwrap();
        // One carries the replica's mark, the other names its directory.
        let mut shells = [shell("QUORATE_REPLICA", "0001-of-this-test"), shell("LOG", replica.join("log"))];

        let found = replica_processes(&dir.path().join("n1"), None);
        assert!(shells.iter().all(|shell| found.contains(&shell.id())));
        assert_eq!(found.len(), 4, "two shells, each with its child: {found:?}");
        assert!(replica_processes(&dir.path().join("n2"), None).is_empty());
        let first = shells[0].id();
        assert!(!replica_processes(&dir.path().join("n1"), Some(first)).contains(&first));

        for pid in found {
            crate::dev::signal(pid, rustix::process::Signal::KILL);
        }
        for shell in &mut shells {
            shell.wait().unwrap();
        }
        // The grandchildren are reaped by somebody else, a moment later.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !replica_processes(&dir.path().join("n1"), None).is_empty() {
            assert!(std::time::Instant::now() < deadline, "a killed process is still there");
            std::thread::yield_now();
        }
    }
}
