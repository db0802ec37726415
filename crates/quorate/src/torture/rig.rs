//! The rig of `quorate torture`: a real cluster of this very program, and everything that can go
//! wrong around it.
//!
//! As root each node has a network namespace and a disk of its own ([`arena`], [`network`], [`disk`]);
//! otherwise the cluster is on loopback and only processes, syncs and clocks can fail. What is left
//! out is said, with the reason ([`Rig::missing`]).
//!
//! # Invariants
//! - An injection is proven or it is an error: a power cut has lost an unsynced canary, a partition a
//!   probe that came through before and comes through afterwards, a full disk has refused a write.
//! - A node has at most one fault of its own at a time, and the cluster at most one of the network.
//! - Whatever ends without an order, and whatever complains without a cause, is a finding
//!   ([`Rig::unexpected_deaths`]); the rig never starts such a server again to make it look well.
//! - Processes are ended by their own handles; nothing is ever found by name.

pub(crate) mod arena;
mod ask;
mod changes;
mod clock;
mod dice;
mod disk;
mod faults;
mod found;
mod kernel;
mod network;
mod node;
mod operator;
mod process;
mod roll;
mod seat;
mod tools;
mod trace;

pub(crate) use arena::{Arena, EnterOptions, Entered, Stop, enter, missing};
pub(crate) use changes::{Change, ChangeError};
pub(crate) use tools::Missing;

use crate::cli::failure::{Exit, Failure};
use crate::torture::fault::{FaultKind, Need};
use crate::torture::reach::Reach;
use ask::Ask;
use changes::Changing;
use faults::Active;
use found::Ground;
use network::Network;
use node::{Belongs, Node};
use operator::Operator;
use process::Complaint;
use quorate_model::state::Role;
use seat::Seat;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tools::{Lack, Lacks};

/// A server that was started answers in well under a second; a loaded machine may take longer.
const BACK: Duration = Duration::from_secs(30);
/// A server that is asked to end hands over first, and then has no reason to stay.
const LEAVE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Below this a run would soon end in a full disk that nobody ordered.
const FREE_MIN: u64 = 512 << 20;

/// Servers beyond the first nodes: one that joins, and one that was removed and knocks in vain.
const SPARE: u8 = 2;

/// What a rig is to be like.
#[derive(Debug, Clone)]
pub(crate) struct RigOptions {
    /// With which the cluster begins: 3 to 5.
    pub nodes: u8,
    /// Decides which packets are lost, repeated and held.
    pub seed: u64,
    /// Bytes of log that each node keeps for others; little, so that snapshots are common.
    pub log_retain: u64,
    /// Size of each node's disk; of the machine's own it takes what is written to it.
    pub disk_bytes: u64,
}

impl RigOptions {
    /// How many servers there are, those that join later too.
    fn seats(&self) -> u8 {
        self.nodes + SPARE
    }
}

impl Default for RigOptions {
    fn default() -> Self {
        RigOptions { nodes: 3, seed: 0, log_retain: 2 << 20, disk_bytes: 512 << 20 }
    }
}

/// Ends one fault.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Handle(u64);

/// A fault that is in force, or a moment that is over.
#[derive(Debug)]
pub(crate) struct Injected {
    pub kind: FaultKind,
    /// Names of those that it was done to.
    pub nodes: Vec<String>,
    /// What was done, for the record.
    pub what: String,
    /// What shows that it happened.
    pub evidence: String,
    /// To be given to [`Rig::end`].
    pub handle: Handle,
}

/// A fault that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What shows that it did happen all the time, and is over.
    pub evidence: String,
}

/// Why a fault did not begin or end as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RigError {
    /// Nothing was done. Another moment, or another kind, may do.
    #[error("{kind}: {why}")]
    NoTarget { kind: FaultKind, why: String },
    /// It was tried and did not happen, so it proves nothing. Nothing of it is in force.
    #[error("{kind} was not brought about: {why}")]
    NotInjected { kind: FaultKind, why: String },
    /// The cluster did not keep a promise: a finding.
    #[error("{kind} on {node}: {what}")]
    Broken {
        kind: FaultKind,
        node: String,
        what: String,
        /// Last lines of the server.
        log: String,
    },
}

/// A server that ended, or complained, without a fault that explains it: a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    pub node: String,
    pub what: String,
    /// Last lines of the server.
    pub log: String,
}

/// A running cluster under the hands of its tormentor.
#[derive(Debug)]
pub(crate) struct Rig {
    // The order is that of dropping: tracers, processes and disks, the network.
    active: BTreeMap<u64, (FaultKind, Active)>,
    changing: BTreeMap<u64, Changing>,
    /// How many authorities the cluster was asked to have, one after the other.
    authorities: u32,
    /// All that ever were, in the order in which they came.
    nodes: Vec<Node>,
    seats: Vec<Arc<Seat>>,
    network: Option<Network>,
    lacks: Lacks,
    deaths: Vec<Death>,
    ask: Ask,
    reach: Arc<Reach>,
    ground: Ground,
    next: u64,
}

impl Rig {
    /// Makes a cluster as users do, and waits until every node answers and votes.
    ///
    /// # Errors
    /// When there is too little disk, or the cluster does not come up; nothing is left of it then.
    pub(crate) fn start(arena: &Arena, options: &RigOptions) -> Result<Rig, Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Failure::new(Exit::Failed, "rig", what).why(error);
        let executable =
            std::env::current_exe().map_err(|error| failed("this program does not know its own file", &error))?;
        let mut lacks = arena.lacks.clone();
        let free = rustix::fs::statvfs(&arena.dir)
            .map(|space| space.f_bavail.saturating_mul(space.f_frsize))
            .map_err(|error| failed("the disk's room cannot be seen", &error))?;
        if free < FREE_MIN {
            let what = format!(
                "{} has {} MiB of free disk space and a run needs {}",
                arena.dir.display(),
                free >> 20,
                FREE_MIN >> 20
            );
            return Err(Failure::new(Exit::Failed, "disk-full", what).fix("choose a directory on another disk"));
        }
        let wanted = u64::from(options.seats()) * options.disk_bytes;
        if free < wanted {
            let why = format!(
                "{} has {} MiB of free disk space and the nodes' disks need {}",
                arena.dir.display(),
                free >> 20,
                wanted >> 20
            );
            lacks.entry(Need::Disks).or_insert_with(|| Lack::new(why, "choose a directory on a larger disk"));
        }
        let network = match lacks.contains_key(&Need::Network) {
            true => None,
            false => Some(
                Network::new(options.seats(), options.seed)
                    .map_err(|error| failed("the network of the run cannot be made", &error))?,
            ),
        };
        let seats = seat::make(&arena.dir, options, network.as_ref(), &mut lacks)
            .map_err(|error| failed("the servers cannot be made", &error))?;
        let ground = Ground { executable, dir: arena.dir.clone(), log_retain: options.log_retain };
        let (nodes, reach) = (Vec::new(), Reach::new());
        let (active, changing, authorities) = (BTreeMap::new(), BTreeMap::new(), 1);
        let (deaths, ask, next) = (Vec::new(), Ask::new(&reach), 0);
        let mut rig =
            Rig { active, changing, authorities, nodes, seats, network, lacks, deaths, ask, reach, ground, next };
        rig.found(usize::from(options.nodes), &arena.stop)?;
        Ok(rig)
    }

    /// `init`, and `join` for each of the others.
    fn found(&mut self, nodes: usize, stop: &Stop) -> Result<(), Failure> {
        let failed = |what: &str, why: &dyn std::fmt::Display| Failure::new(Exit::Failed, "rig", what).why(why);
        let first = self.ground.init(&self.seats[0], "n1").map_err(|why| failed("no cluster can be made", &why))?;
        self.nodes.push(first);
        self.start_first(0, stop)?;
        let token = found::admins_token(&self.nodes[0]).map_err(|why| failed("no user can be made", &why))?;
        self.reach.set_token(token);
        self.tell_clients();
        self.come_up(stop, 1)?;
        let operator = Operator::new(&self.reach);
        operator.patience().ends_in(BACK);
        for number in 1..nodes {
            let seat = self.seats[number].clone();
            let name = format!("n{}", number + 1);
            let joined = seat.emptied().map_err(found::NotMade::from).and_then(|data_dir| {
                let token = operator.invite(Role::Manager, &name)?;
                self.ground.join(&seat, &name, &token, &data_dir, Role::Manager)
            });
            self.nodes.push(joined.map_err(|why| failed("a server cannot join", &why))?);
            self.spawn(number).map_err(|error| failed("a server cannot be started", &error))?;
        }
        self.tell_clients();
        self.come_up(stop, nodes - usize::from(nodes.is_multiple_of(2)))
    }

    /// Starts it, and waits until its own socket is there: nobody can log in before.
    fn start_first(&mut self, node: usize, stop: &Stop) -> Result<(), Failure> {
        let failed = |error| Failure::new(Exit::Failed, "rig", "a server cannot be started").why(error);
        self.spawn(node).map_err(failed)?;
        let socket = self.nodes[node].data_dir.join(crate::config::API_SOCKET);
        self.wait_for(stop, |_| socket.exists())
    }

    /// Waits until all answer, and so many vote.
    fn come_up(&mut self, stop: &Stop, voters: usize) -> Result<(), Failure> {
        let voters = u32::try_from(voters).unwrap_or(u32::MAX);
        self.wait_for(stop, |rig| {
            let answers = |node: &Node| {
                let overview = rig.ask.status(node.seat.api)?;
                // One node that is alone has none.
                let votes = overview.cluster.electors.map_or(1, |electors| electors.voters_joined);
                (overview.answered_by == node.name && votes == voters).then_some(())
            };
            rig.leader().is_some() && rig.nodes.iter().all(|node| answers(node).is_some())
        })
    }

    fn wait_for(&mut self, stop: &Stop, is_so: impl Fn(&Rig) -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + BACK;
        while !is_so(self) {
            if stop.is_raised() {
                return Err(Failure::new(Exit::Interrupted, "interrupted", "the start was interrupted"));
            }
            if let Some(death) = self.unexpected_deaths().first() {
                let what = format!("{} {} while it started", death.node, death.what);
                return Err(Failure::new(Exit::Failed, "start-failed", what).why(&death.log));
            }
            if Instant::now() >= deadline {
                let logs: Vec<String> =
                    self.nodes.iter().map(|node| format!("{}:\n{}", node.name, node.log.tail())).collect();
                let what = format!("the nodes have not found each other in {BACK:?}");
                return Err(Failure::new(Exit::TimedOut, "not-ready", what).why(logs.join("\n")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// How clients find the cluster.
    pub(crate) fn reach(&self) -> Arc<Reach> {
        self.reach.clone()
    }

    /// Clients ask those that belong to the cluster, and those that are being removed while they run.
    fn tell_clients(&self) {
        let asked = self.nodes.iter().filter(|node| match node.belongs {
            Belongs::Yes => true,
            Belongs::Leaves => node.child.is_some(),
            Belongs::No => false,
        });
        self.reach.set_nodes(asked.map(Node::reached).collect());
    }

    /// Those that faults may hit.
    fn present(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].belongs == Belongs::Yes)
    }

    /// Kinds that this machine cannot do, in the order of [`FaultKind::ALL`].
    pub(crate) fn missing(&self) -> Vec<Missing> {
        tools::missing(&self.lacks)
    }

    /// Kinds that it can.
    pub(crate) fn possible(&self) -> Vec<FaultKind> {
        let missing = self.missing();
        FaultKind::ALL.into_iter().filter(|kind| missing.iter().all(|missing| missing.kind != *kind)).collect()
    }

    /// The leader, by the word of the node that knows the newest term.
    pub(crate) fn leader(&self) -> Option<String> {
        let stands_still = |node: usize| {
            let mut active = self.active.values().map(|(_, active)| active);
            active.any(|active| match active {
                Active::Paused { node: still } | Active::Frozen { node: still, .. } => *still == node,
                _ => false,
            })
        };
        let asked = self.present().filter(|node| self.nodes[*node].child.is_some() && !stands_still(*node));
        let answers = asked.filter_map(|node| self.ask.status(self.nodes[node].seat.api));
        let newest =
            answers.filter(|overview| overview.cluster.leader.is_some()).max_by_key(|overview| overview.cluster.term);
        newest.and_then(|overview| overview.cluster.leader)
    }

    /// Begins a fault. `choice` decides, with what is free at the moment, whom it hits and how hard;
    /// half of the faults of one node hit the leader.
    ///
    /// It returns when the fault is proven, which for some takes seconds of writes by somebody else
    /// (`SyncError`, `SlowDisk`).
    ///
    /// # Errors
    /// See [`RigError`]. After an error nothing of the fault is in force.
    pub(crate) fn inject(&mut self, kind: FaultKind, choice: u64) -> Result<Injected, RigError> {
        if let Some(missing) = self.missing().into_iter().find(|missing| missing.kind == kind) {
            return Err(RigError::NoTarget { kind, why: missing.why });
        }
        let (active, nodes, what, evidence) = self.begin(kind, choice)?;
        let id = self.next;
        self.next += 1;
        self.active.insert(id, (kind, active));
        Ok(Injected { kind, nodes, what, evidence, handle: Handle(id) })
    }

    /// Ends a fault: starts what it ended and waits until that answers.
    ///
    /// # Errors
    /// `Broken` when a node does not come back, `NotInjected` when it shows only now that the fault
    /// was none.
    pub(crate) fn end(&mut self, handle: Handle) -> Result<Ended, RigError> {
        match self.active.remove(&handle.0) {
            Some((kind, active)) => self.finish(kind, active).map(|evidence| Ended { evidence }),
            None => unreachable!("a handle is given once and taken once"),
        }
    }

    /// Ends all faults, those of the network first.
    pub(crate) fn end_all(&mut self) -> Vec<Result<Ended, RigError>> {
        let active = std::mem::take(&mut self.active).into_values();
        let (network, others): (Vec<_>, Vec<_>) = active.partition(|(_, active)| matches!(active, Active::Rule { .. }));
        let end = |(kind, active)| self.finish(kind, active).map(|evidence| Ended { evidence });
        network.into_iter().chain(others).map(end).collect()
    }

    /// Servers that ended, and complaints in logs, that no fault explains; each once.
    pub(crate) fn unexpected_deaths(&mut self) -> Vec<Death> {
        for node in &mut self.nodes {
            self.deaths.extend(node.look());
        }
        std::mem::take(&mut self.deaths)
    }

    /// Ends all faults and all servers in an orderly way, and says what did not.
    pub(crate) fn stop(mut self) -> Vec<RigError> {
        let mut problems: Vec<RigError> = self.end_all().into_iter().filter_map(Result::err).collect();
        for node in &self.nodes {
            if let Some(pid) = node.pid() {
                crate::dev::signal(pid, rustix::process::Signal::TERM);
            }
        }
        for node in &mut self.nodes {
            problems.extend(node.ended_orderly(FaultKind::Restart).err());
            node.end_replicas();
        }
        problems
    }

    fn spawn(&mut self, node: usize) -> std::io::Result<()> {
        self.nodes[node].spawn(&self.ground.executable)
    }

    fn answers(&self, node: &Node) -> bool {
        self.ask.status(node.seat.api).is_some_and(|overview| overview.answered_by == node.name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Tracers first: a server that they hold would not die.
        self.active.clear();
        self.changing.clear();
        for node in &mut self.nodes {
            node.kill();
        }
    }
}

/// For a complaint, what it means for a node whose disk is under a fault or not.
fn is_finding(complaint: &Complaint, excused: bool) -> bool {
    match complaint {
        Complaint::Panic(_) => true,
        Complaint::Stops(_) => !excused,
    }
}
