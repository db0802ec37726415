//! What is left of a run of `quorate torture` that was killed: nothing that lives, and one directory
//! that the next run removes.

use crate::cli::{finished, quorate};
use crate::cluster::{lives, wait_for};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn torture(parent: &Path) -> Child {
    let args = ["torture", "--seed", "2", "--faults", "kill", "--dir", parent.to_str().unwrap()];
    quorate(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A run whose cluster is up, with the directory of its files.
fn start(parent: &Path) -> (Child, PathBuf) {
    let child = torture(parent);
    let dir = wait_for("a node of the run has applied something", PATIENCE, || {
        let run = std::fs::read_dir(parent).unwrap().flatten().map(|entry| entry.path()).next()?;
        // The log, which lies beside the node's own disk.
        std::fs::read_to_string(run.join("n1.log")).ok().filter(|log| log.contains("serving")).map(|_| run)
    });
    (child, dir)
}

/// Processes, mounts and loop devices that name `dir`.
fn living(dir: &Path) -> Vec<String> {
    let text = dir.to_str().unwrap();
    let mut living = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(text) {
            living.push(command);
        }
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    living.extend(mounts.lines().filter(|line| line.contains(text)).map(ToOwned::to_owned));
    for device in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        living.extend(file.contains(text).then_some(file));
    }
    living
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:\t"))?.parse().ok()
}

fn children(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|child| parent_of(*child) == Some(pid)).collect()
}

#[test]
fn nothing_lives_of_a_run_that_was_killed_and_the_next_removes_its_files() {
    let parent = tempfile::tempdir().unwrap();
    let (mut outer, dir) = start(parent.path());
    assert!(!living(&dir).is_empty());
    outer.kill().unwrap();
    outer.wait().unwrap();
    wait_for("all of the run has ended", PATIENCE, || living(&dir).is_empty().then_some(()));
    assert!(dir.exists(), "nobody was left to remove it");
    let mut next = torture(parent.path());
    wait_for("the next run has removed it", PATIENCE, || (!dir.exists()).then_some(()));
    crate::cluster::signal(next.id(), Signal::TERM);
    next.wait().unwrap();
    wait_for("all has ended", PATIENCE, || living(parent.path()).is_empty().then_some(()));
}

/// Without root there is one process, and the test above is all.
#[test]
fn a_run_whose_inner_process_is_killed_fails_and_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let (outer, dir) = start(parent.path());
    if !rustix::process::geteuid().is_root() {
        crate::cluster::signal(outer.id(), Signal::TERM);
        finished(outer.wait_with_output().unwrap());
        assert_eq!(living(parent.path()), Vec::<String>::new());
        return;
    }
    let inner = children(outer.id()).into_iter().flat_map(children).next().unwrap();
    assert!(lives(inner));
    crate::cluster::signal(inner, Signal::KILL);
    let (code, _, _) = finished(outer.wait_with_output().unwrap());
    assert_ne!(code, 0);
    assert_eq!(living(&dir), Vec::<String>::new());
    assert!(!dir.exists());
}
