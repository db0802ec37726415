//! One node of the rig: its files, its server, and what is known of both.

use super::clock;
use super::process::{Complaint, LogFile, Start, ended_within, ending};
use super::seat::Seat;
use super::{Death, LEAVE, LOOK_EVERY, RigError, is_finding};
use crate::dev::{procfs, signal};
use crate::torture::fault::FaultKind;
use crate::torture::reach;
use quorate_model::id::NodeId;
use rustix::process::Signal;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A process that was killed is gone in milliseconds, unless it waits for a disk.
const GONE: Duration = Duration::from_secs(2);

/// Whether a node belongs to the cluster, as far as the rig knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Belongs {
    /// Faults may hit it.
    Yes,
    /// It is being removed; only its removal touches it.
    Leaves,
    /// It was removed for ever. Its server may run, and is let in by nobody.
    No,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    pub id: NodeId,
    /// As it was decided last.
    pub manager: bool,
    pub belongs: Belongs,
    pub seat: Arc<Seat>,
    pub data_dir: PathBuf,
    /// Not on the node's own disk: it tells of the disk's end.
    pub log: LogFile,
    /// The server, while it runs and is not known to have ended.
    pub child: Option<Child>,
    /// A fault of its own is in force.
    pub busy: bool,
    /// That fault is one of its disk: it may stop, and say so.
    pub excused: bool,
    /// It ended by itself while it was excused: how.
    pub stopped: Option<String>,
}

impl Node {
    /// One that has its directory and does not run. Its log is in `logs`.
    pub(super) fn new(seat: Arc<Seat>, name: &str, id: NodeId, manager: bool, data_dir: PathBuf, logs: &Path) -> Node {
        Node {
            name: name.to_owned(),
            id,
            manager,
            belongs: Belongs::Yes,
            seat,
            data_dir,
            log: LogFile::new(free_log(logs, name)),
            child: None,
            busy: false,
            excused: false,
            stopped: None,
        }
    }

    /// How clients reach it.
    pub(super) fn reached(&self) -> reach::Node {
        let url = format!("https://{}", self.seat.api);
        reach::Node { name: self.name.clone(), url, data_dir: self.data_dir.clone() }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(super) fn spawn(&mut self, executable: &Path) -> io::Result<()> {
        let start = Start { executable, data_dir: &self.data_dir, log: &self.log.path, seat: &self.seat };
        self.child = Some(start.spawn()?);
        self.stopped = None;
        Ok(())
    }

    /// Kills the server and the copies of services that run because of it. Returns how the server
    /// ended, if it ran.
    pub(super) fn kill(&mut self) -> Option<String> {
        let mut child = self.child.take()?;
        let replicas = procfs::replica_processes(&self.data_dir, Some(child.id()));
        signal(child.id(), Signal::KILL);
        replicas.iter().for_each(|pid| signal(*pid, Signal::KILL));
        // It cannot fail for a child that nobody else waits for.
        let status = child.wait().ok()?;
        clock::forget(child.id());
        // What was born while we looked would keep the disk mounted.
        self.end_replicas();
        Some(ending(status))
    }

    /// Kills what a server leaves behind that ends in an orderly way: copies of services live on.
    pub(super) fn end_replicas(&self) {
        let deadline = Instant::now() + GONE;
        loop {
            let left = procfs::replica_processes(&self.data_dir, None);
            if left.is_empty() || Instant::now() >= deadline {
                return;
            }
            left.iter().for_each(|pid| signal(*pid, Signal::KILL));
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for the end of a server that was asked to end.
    pub(super) fn ended_orderly(&mut self, kind: FaultKind) -> Result<(), RigError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let what = match ended_within(&mut child, LEAVE) {
            Ok(Some(status)) if status.success() => {
                clock::forget(child.id());
                return Ok(());
            }
            Ok(Some(status)) => format!("asked to end, it ended with {}", ending(status)),
            Ok(None) => format!("asked to end, it did not in {LEAVE:?}"),
            Err(error) => format!("nobody knows how it ended: {error}"),
        };
        self.child = Some(child);
        self.kill();
        Err(self.broken(kind, what))
    }

    /// What is new about the server: its end, or a complaint, that nothing explains.
    pub(super) fn look(&mut self) -> Vec<Death> {
        let mut found = Vec::new();
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            clock::forget(child.id());
            self.child = None;
            let how = ending(status);
            // A node that stops because of its disk says so with this status, and any other is none of that.
            if self.excused && status.code() == Some(1) {
                self.stopped = Some(how);
            } else {
                found.push(self.death(format!("ended without an order, with {how}")));
            }
        }
        for complaint in self.log.complaints() {
            if is_finding(&complaint, self.excused) {
                let (Complaint::Panic(line) | Complaint::Stops(line)) = complaint;
                found.push(self.death(format!("said: {line}")));
            }
        }
        found
    }

    fn death(&self, what: String) -> Death {
        Death { node: self.name.clone(), what, log: self.log.tail() }
    }

    pub(super) fn broken(&self, kind: FaultKind, what: impl Into<String>) -> RigError {
        RigError::Broken { kind, node: self.name.clone(), what: what.into(), log: self.log.tail() }
    }
}

/// A replaced server had the same name, and its log is kept.
fn free_log(logs: &Path, name: &str) -> PathBuf {
    let mut named = std::iter::once(format!("{name}.log")).chain((2..).map(|life| format!("{name}-{life}.log")));
    let free = named.find_map(|name| Some(logs.join(name)).filter(|path| !path.exists()));
    free.expect("there is always a next number")
}
