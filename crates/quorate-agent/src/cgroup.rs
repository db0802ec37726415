//! cgroups: what belongs to a replica, what it may use, what it uses.
//!
//! ```text
//! <hierarchy>/quorate/<node>.<directory>/<replica>/shim    the shim, and the init of a PID namespace
//!                                                 /work    the workload: limits are here
//! ```
//! A process belongs to a replica because it is in the replica's group: whatever it starts is in there too,
//! however it calls itself and whoever became its parent. Numbers of processes are used again; a group is not.
//! The tree begins as high as this process may write, and never within its own group: an init system that
//! stops the server's unit kills what is in that unit's group, and replicas shall go on. systemd with version 1
//! knows a unit by a hierarchy of its own, so shims leave the server's group there, too.
//!
//! Version 2 is preferred; it kills a group as a whole. With version 1 a group is frozen, each process in it
//! killed, and thawed, until it is empty. Limits come from whichever version has the controllers.
//!
//! Where no group can be made, replicas are told apart by a mark in their environment ([`crate::sweep`]), and
//! what is not enforced is said.
//!
//! # Invariants
//! - Nothing is killed by a number alone: a process is opened, then looked up in its group again.
//! - A group is called empty only when the kernel says so.
//!
//! # Sources
//! cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ in Linux; systemd's
//! CGROUP_DELEGATION.md: a name without a unit's suffix is nobody's unit.

use crate::sweep::{ends_within, kill, open_process};
use mounts::Hierarchy;
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::resource::{Amount, Pressure, Resources};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod mounts;

/// The directory in each hierarchy that all is below.
const TREE: &str = "quorate";

/// What of version 1 a workload joins for limits and measurements.
const CONTROLLERS: [&str; 3] = ["cpu", "cpuacct", "memory"];

/// What tells processes apart where there is no version 2; the first that can be used.
const IDENTITIES: [&str; 3] = ["freezer", "name=systemd", "pids"];

/// The kernel counts a limit of processor time in pieces of this.
const PERIOD_US: u64 = 100_000;

/// Where an agent makes the groups of its replicas.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    /// In the hierarchy that tells processes apart. `None`: nothing can be made.
    tree: Option<PathBuf>,
    /// In those of version 1 that have limits.
    more: Vec<PathBuf>,
    /// In that of version 1 by which systemd knows what is of a unit.
    units: Option<PathBuf>,
    /// Says to others that somebody uses these, for as long as it is open.
    _claim: Option<Arc<File>>,
}

impl Groups {
    /// Looks for a place on this machine. `dir` is where the agent keeps its replicas: two agents of one
    /// node, as in tests, have groups of their own.
    pub(crate) fn find(node: NodeId, dir: &Path) -> Groups {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let inode = fs::metadata(dir).map_or(0, |dir| dir.ino());
        let name = format!("{node}.{inode:x}");
        Groups::among(&mounts::hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")), &name)
    }

    /// Replicas get no group.
    pub(crate) fn none() -> Groups {
        Groups { tree: None, more: Vec::new(), units: None, _claim: None }
    }

    fn among(hierarchies: &[Hierarchy], name: &str) -> Groups {
        let usable = |hierarchy: &Hierarchy| hierarchy.bases.iter().find_map(|base| usable(base, name));
        let of = |wanted: &'static str| hierarchies.iter().filter(move |one| one.controllers.contains(wanted));
        let unified = hierarchies.iter().filter(|hierarchy| hierarchy.unified).find_map(usable);
        let tree = unified.or_else(|| IDENTITIES.iter().find_map(|identity| of(identity).find_map(usable)));
        let Some(tree) = tree else { return Groups::none() };
        let Some(claim) = claim(&tree) else { return Groups::none() };
        let mut more: Vec<PathBuf> = CONTROLLERS.iter().filter_map(|wanted| of(wanted).find_map(usable)).collect();
        more.dedup();
        more.retain(|other| *other != tree);
        let units = of("name=systemd").find_map(usable).filter(|other| *other != tree);
        let groups = Groups { tree: Some(tree), more, units, _claim: Some(Arc::new(claim)) };
        groups.take_away_what_nobody_uses();
        groups
    }

    /// Makes a replica's group, empty, with these limits. Returns it with what cannot be enforced, in words.
    /// `None` for the group: there are none here.
    ///
    /// # Errors
    /// When the place is there and the group cannot be made.
    pub(crate) fn make(&self, replica: ReplicaId, limits: &Resources) -> io::Result<(Option<Group>, String)> {
        let Some(group) = self.group(replica) else {
            let missing: String = limits.names().map(|name| format!("; its {name} is not limited")).collect();
            return Ok((None, format!("no cgroup can be made here: a mark alone tells its processes{missing}")));
        };
        for dir in group.all() {
            make_below(dir)?;
        }
        make_dir(&group.root.join("shim"))?;
        make_dir(&group.work())?;
        let missing = group.limit(limits);
        Ok((Some(group), missing.join("; ")))
    }

    /// The groups of other agents that were killed together with their replicas: nobody else comes to look.
    fn take_away_what_nobody_uses(&self) {
        let Some((own, others)) = self.tree.as_ref().and_then(|tree| Some((tree, tree.parent()?))) else { return };
        for other in fs::read_dir(others).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if other == *own || !other.is_dir() {
                continue;
            }
            let Ok(claim) = File::open(&other) else { continue };
            if flock(&claim, FlockOperation::NonBlockingLockExclusive).is_ok()
                && is_empty(&other)
                && let Some(name) = other.file_name()
            {
                for tree in self.tree.iter().chain(&self.more).chain(&self.units) {
                    remove(&tree.with_file_name(name));
                }
            }
        }
    }

    /// Takes the agent's directories away, unless a replica is in one.
    pub(crate) fn tidy(&self) {
        for tree in self.tree.iter().chain(&self.more).chain(&self.units) {
            let _ = fs::remove_dir(tree);
        }
    }

    fn group(&self, replica: ReplicaId) -> Option<Group> {
        let name = replica.to_string();
        let more = self.more.iter().map(|tree| tree.join(&name)).collect();
        let units = self.units.as_ref().map(|tree| tree.join(&name));
        Some(Group { root: self.tree.as_ref()?.join(&name), more, units })
    }

    /// The replicas that have a group here.
    pub(crate) fn replicas(&self) -> Vec<(ReplicaId, Group)> {
        let entries = self.tree.iter().filter_map(|tree| fs::read_dir(tree).ok()).flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<ReplicaId>().ok());
        ids.filter_map(|id| Some((id, self.group(id)?))).collect()
    }
}

/// What this machine has for replicas: the CPUs that this process may use, and the machine's memory, or less
/// where the container that it is in has a limit.
#[must_use]
pub fn capacity() -> Amount {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let machine = field(&read(Path::new("/proc/meminfo")).replace(" kB", ""), "MemTotal:").unwrap_or(0) << 10;
    let found = mounts::hierarchies(&read(Path::new("/proc/self/mountinfo")), &read(Path::new("/proc/self/cgroup")));
    let tops = found.iter().filter_map(|hierarchy| hierarchy.bases.first());
    let limits = tops.flat_map(|top| ["memory.max", "memory.limit_in_bytes"].map(|file| top.join(file)));
    let limit = limits.filter_map(|file| read(&file).trim().parse::<u64>().ok()).min();
    Amount {
        cpu_millis: u64::try_from(cpus).unwrap_or(u64::MAX).saturating_mul(1000),
        memory_bytes: limit.map_or(machine, |limit| limit.min(machine)),
    }
}

/// The agent's own directory under a base, if groups can be made there and processes moved to them.
fn usable(base: &Path, name: &str) -> Option<PathBuf> {
    // Who moves a process needs this right in what is above both its places.
    OpenOptions::new().write(true).open(base.join("cgroup.procs")).ok()?;
    let tree = base.join(TREE);
    make_dir(&tree).ok()?;
    let own = tree.join(name);
    make_dir(&own).ok()?;
    // A hierarchy that can be written to has this in every group.
    OpenOptions::new().write(true).open(own.join("cgroup.procs")).ok()?;
    Some(own)
}

/// Makes sure that a directory is there and stays there while the file is open. `None`: it cannot be had.
fn claim(dir: &Path) -> Option<File> {
    // Whoever tidies up is done with one in a moment, and may just have taken this one away.
    (0..100).find_map(|_| {
        make_dir(dir).ok()?;
        let file = File::open(dir).ok()?;
        flock(&file, FlockOperation::LockShared).ok()?;
        let (held, there) = (file.metadata().ok()?.ino(), fs::metadata(dir).ok()?.ino());
        (held == there).then_some(file)
    })
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Makes a group in an agent's directory, which somebody may have tidied away, and lets the group's children
/// have limits, as far as the kernel does.
fn make_below(dir: &Path) -> io::Result<()> {
    let above: Vec<&Path> = dir.ancestors().skip(1).take(3).collect();
    for dir in above.iter().rev().skip(1) {
        make_dir(dir)?;
    }
    make_dir(dir)?;
    for dir in above.iter().rev().copied().chain([dir]) {
        for controller in ["cpu", "memory"] {
            // Version 1 has no such file, and a kernel or a container may not give a controller away:
            // what is missing then shows where its file is.
            let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
    Ok(())
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// The group of one replica. It is written down, so that whoever comes later means the same one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    root: PathBuf,
    /// In hierarchies of version 1, for limits and measurements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<PathBuf>,
    /// Where systemd with version 1 looks for what is of a unit: in here nothing is of the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    units: Option<PathBuf>,
}

impl Group {
    fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.root].into_iter().chain(&self.more).chain(&self.units)
    }

    /// Puts this process into it, and with it what it starts.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let dirs = [self.root.join("shim")].into_iter().chain(self.units.clone());
        dirs.map(|dir| dir.join("cgroup.procs")).try_for_each(|file| write(&file, "0"))
    }

    /// What a workload writes "0" to before it is executed.
    pub(crate) fn doors(&self) -> io::Result<Vec<File>> {
        let dirs = [self.work()].into_iter().chain(self.more.iter().cloned());
        dirs.map(|dir| OpenOptions::new().write(true).open(dir.join("cgroup.procs"))).collect()
    }

    /// A file of the workload's group, in whichever hierarchy has it.
    fn file(&self, name: &str) -> Option<PathBuf> {
        let mut dirs = [self.work()].into_iter().chain(self.more.iter().cloned());
        dirs.find_map(|dir| Some(dir.join(name)).filter(|file| file.exists()))
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.file(name)?).ok()
    }

    /// Sets limits, and says in words which of them nothing enforces.
    fn limit(&self, limits: &Resources) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(cpu) = limits.cpu {
            let quota = u64::from(cpu.millis()) * PERIOD_US / 1000;
            let done = match (self.file("cpu.max"), self.file("cpu.cfs_quota_us")) {
                (Some(file), _) => write(&file, &format!("{quota} {PERIOD_US}")),
                (None, Some(file)) => write(&file.with_file_name("cpu.cfs_period_us"), &PERIOD_US.to_string())
                    .and_then(|()| write(&file, &quota.to_string())),
                (None, None) => Err(no_controller()),
            };
            missing.extend(done.err().map(|error| format!("its cpu is not limited: {error}")));
        }
        if let Some(memory) = limits.memory {
            let file = self.file("memory.max").or_else(|| self.file("memory.limit_in_bytes"));
            let done = file.map_or_else(|| Err(no_controller()), |file| write(&file, &memory.bytes().to_string()));
            missing.extend(done.err().map(|error| format!("its memory is not limited: {error}")));
            if let Some(file) = self.file("memory.oom.group") {
                // What is left of a service after one of its processes was killed is seldom of use.
                let _ = write(&file, "1");
            }
        }
        missing
    }

    /// What its workload has used up to now, and uses.
    pub(crate) fn usage(&self) -> Option<Reading> {
        let cpu_us = match self.read("cpu.stat").and_then(|text| field(&text, "usage_usec")) {
            Some(us) => us,
            None => self.read("cpuacct.usage")?.trim().parse::<u64>().ok()? / 1000,
        };
        let number = |name| self.read(name)?.trim().parse::<u64>().ok();
        let memory = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
        // What was read from files and can be dropped at once is nobody's need.
        let stat = self.read("memory.stat").unwrap_or_default();
        let spare = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file")).unwrap_or_default();
        let pressure = |name| permille(&self.read(name)?);
        Some(Reading {
            cpu_us,
            memory_bytes: memory.map(|bytes| bytes.saturating_sub(spare)),
            pressure: pressure("cpu.pressure").map(|cpu| Pressure {
                cpu_permille: cpu,
                memory_permille: pressure("memory.pressure").unwrap_or_default(),
                io_permille: pressure("io.pressure").unwrap_or_default(),
            }),
        })
    }

    /// How many processes of the workload were killed because its memory was used up.
    pub(crate) fn out_of_memory(&self) -> u64 {
        let text = self.read("memory.events").or_else(|| self.read("memory.oom_control")).unwrap_or_default();
        field(&text, "oom_kill").unwrap_or_default()
    }

    /// Kills the workload's processes, whichever they are, and does not wait.
    pub(crate) fn kill_work(&self) {
        kill_once(&self.work());
    }

    /// Kills the workload's processes and waits until they are gone. Returns how many are left. Blocks.
    pub(crate) fn end_work(&self, patience: Duration) -> usize {
        end(&self.work(), patience).1
    }

    /// Kills all that is in it, and takes it away. Returns how many processes that were, and how many are left.
    /// Blocks.
    pub(crate) fn end(&self, patience: Duration) -> (usize, usize) {
        let (killed, alive) = end(&self.root, patience);
        if alive == 0 {
            self.remove();
        }
        (killed, alive)
    }

    /// What is not empty stays.
    fn remove(&self) {
        self.all().for_each(|dir| remove(dir));
    }

    /// Takes this process out of its own group, for one that nobody comes to look after.
    pub(crate) fn leave(&self) {
        let base = |dir: &PathBuf| Some(dir.ancestors().nth(3)?.join("cgroup.procs"));
        let leave = |dir| base(dir).is_some_and(|file| write(&file, "0").is_ok());
        if [&self.root].into_iter().chain(&self.units).all(leave) {
            self.remove();
            for agent in self.all().filter_map(|dir| dir.parent()) {
                // Not while it has another.
                let _ = fs::remove_dir(agent);
            }
        }
    }
}

fn no_controller() -> io::Error {
    io::Error::other("this machine's cgroups have no controller for it")
}

/// The number after a word at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `some avg10=1.23 …` as 12: of the last ten seconds, in thousandths.
fn permille(text: &str) -> Option<u16> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let share = line.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, rest) = share.split_once('.')?;
    Some(whole.parse::<u16>().ok()?.checked_mul(10)? + rest.get(..1)?.parse::<u16>().ok()?)
}

/// What was read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Processor time since the group was made.
    pub(crate) cpu_us: u64,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) pressure: Option<Pressure>,
}

/// The groups below, and then the group itself.
fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<PathBuf> = children.flat_map(|child| below(&child.path())).collect();
    all.push(dir.to_owned());
    all
}

/// Processes in it and below, by the numbers that this process sees; 0 for those of elsewhere.
fn members(dir: &Path) -> Vec<u32> {
    let texts = below(dir).into_iter().filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok());
    texts.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>()).collect()
}

/// As the kernel says: also of processes that cannot be seen from here, and of those that it holds.
fn is_empty(dir: &Path) -> bool {
    match fs::read_to_string(dir.join("cgroup.events")) {
        Ok(events) => field(&events, "populated") != Some(1),
        // Version 1; or it is not there, and then nothing is in it.
        Err(_) => members(dir).is_empty(),
    }
}

fn end(dir: &Path, patience: Duration) -> (usize, usize) {
    let deadline = Instant::now() + patience;
    let mut killed = 0;
    while !is_empty(dir) {
        killed += kill_once(dir);
        if Instant::now() >= deadline {
            return (killed, members(dir).len().max(usize::from(!is_empty(dir))));
        }
        wait_for_change(dir, deadline);
    }
    (killed, 0)
}

/// Kills all processes there are now. One round is enough, unless version 1 cannot freeze.
fn kill_once(dir: &Path) -> usize {
    let found = members(dir).len();
    if write(&dir.join("cgroup.kill"), "1").is_ok() {
        return found;
    }
    // Frozen, it starts no others meanwhile. Older kernels of version 2 have the one, version 1 the other.
    let freezers = [("cgroup.freeze", "1", "0"), ("freezer.state", "FROZEN", "THAWED")];
    let freezer = freezers.into_iter().find(|(file, on, _)| write(&dir.join(file), on).is_ok());
    for pid in members(dir) {
        if let Some(process) = open_process(pid) {
            // It may already be a successor with the same number; the group tells.
            if members(dir).contains(&pid) && !ends_within(&process, Duration::ZERO) {
                kill(&process);
            }
        }
    }
    if let Some((file, _, off)) = freezer {
        let _ = write(&dir.join(file), off);
    }
    found
}

/// Returns when something in it has ended, or soon.
fn wait_for_change(dir: &Path, deadline: Instant) {
    let processes: Vec<_> = members(dir).into_iter().filter_map(open_process).collect();
    let mut polled: Vec<PollFd<'_>> = processes.iter().map(|process| PollFd::new(process, PollFlags::IN)).collect();
    // Not for long: a process may end between two looks, and what cannot be seen from here tells nothing.
    let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(10));
    let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() }));
}

fn remove(dir: &Path) {
    for dir in below(dir) {
        // Not empty, or gone: neither is for us to change.
        let _ = fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests;
