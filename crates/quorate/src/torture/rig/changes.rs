//! How each change is made and what shows that it came about.
//!
//! What the cluster is asked for is asked by a thread of its own ([`tasks`]), through whatever faults are
//! in force meanwhile. What that means for the rig (a server that is no node any more, one more that is)
//! is put down here, when the change is at its end and nothing is broken.

mod tasks;

use super::dice::Dice;
use super::found::NotMade;
use super::node::{Belongs, Node};
use super::operator::{AFTERWARDS, Operator, Patience};
use super::process::{LogFile, ended_within, ending};
use super::seat::Seat;
use super::{BACK, LOOK_EVERY, Rig};
use crate::cli::screen::wall_now;
use crate::keys::ManagerKeys;
use crate::serve::admission::certificate_names;
use crate::torture::change::ChangeKind;
use crate::torture::record::{Joined, Removed};
use crate::torture::schedule::changes::{MANAGERS_MIN, PlannedChange};
use crate::trust::{self, NodeFiles};
use quorate_model::id::NodeId;
use quorate_model::state::Role;
use quorate_model::time::WallTime;
use quorate_trust::key::NodeKey;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tasks::Done;

/// A removed node that reaches its former cluster is told so within a second.
const TOLD: Duration = Duration::from_secs(30);
/// How long it is waited for three voters before one of them is lost for ever.
const VOTERS_WITHIN: Duration = Duration::from_secs(15);
/// What a removed node says of itself. After the authority was exchanged it hears that instead.
const OUT: [&str; 2] = ["this node was expelled", "CA of this cluster"];
/// Ages of certificates in days: of 30, both are to be renewed, and the second has ended.
const OLD: [u64; 2] = [25, 40];
const DAY_US: u64 = 86_400_000_000;

/// Ends one change.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Change(u64);

/// A change that came about.
#[derive(Debug)]
pub(crate) struct Changed {
    /// What was done, to whom.
    pub what: String,
    /// What shows it.
    pub evidence: String,
    /// How often the cluster was asked.
    pub asked: u32,
    pub removed: Option<Removed>,
    pub joined: Option<Joined>,
    /// Names of nodes whose own state may have gone back.
    pub restarted: Vec<String>,
}

/// Why a change did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// Nothing was asked for.
    #[error("{0}")]
    NoTarget(String),
    /// The cluster did not do what it should: a finding.
    #[error("{kind}: {what}: {why}")]
    Broken { kind: ChangeKind, what: String, why: String, log: String },
}

/// A change that is under way.
#[derive(Debug)]
pub(super) struct Changing {
    kind: ChangeKind,
    what: String,
    /// Whom it concerns: an index, if that is a node already.
    node: Option<usize>,
    /// The public key of the certificate that is to be renewed.
    old: Vec<u8>,
    patience: Patience,
    task: Option<JoinHandle<Result<Done, NotMade>>>,
}

impl Drop for Changing {
    fn drop(&mut self) {
        // The run was stopped: nobody waits for the cluster any more, nor for this.
        self.patience.ends_in(Duration::ZERO);
    }
}

impl Rig {
    /// Begins a change; the cluster carries it out while faults begin and end.
    ///
    /// # Errors
    /// [`ChangeError::NoTarget`].
    pub(crate) fn begin_change(&mut self, planned: &PlannedChange) -> Result<Change, ChangeError> {
        let mut dice = Dice::new(planned.choice);
        let changing = self.make(planned, &mut dice)?;
        let id = self.next;
        self.next += 1;
        self.changing.insert(id, changing);
        Ok(Change(id))
    }

    /// Waits until the cluster has carried it out. No fault is in force.
    ///
    /// # Errors
    /// [`ChangeError::Broken`].
    pub(crate) fn end_change(&mut self, change: &Change) -> Result<Changed, ChangeError> {
        let Some(mut changing) = self.changing.remove(&change.0) else {
            unreachable!("a handle is given once and taken once")
        };
        changing.patience.ends_in(AFTERWARDS);
        let task = changing.task.take().map(|task| task.join().expect("a change is no reason to panic"));
        let ended = match task {
            Some(Ok(done)) => self.put_down(&changing, done),
            Some(Err(why)) => Err((why.to_string(), self.tails(&changing))),
            None => self.renewed(&changing),
        };
        if let Some(node) = changing.node {
            self.nodes[node].busy = false;
            if changing.kind == ChangeKind::Remove || changing.kind == ChangeKind::Replace {
                self.nodes[node].belongs = Belongs::No;
            }
        }
        self.tell_clients();
        let what = changing.what.clone();
        ended.map_err(|(why, log)| ChangeError::Broken { kind: changing.kind, what, why, log })
    }

    /// The last lines of those who may know more.
    fn tails(&self, changing: &Changing) -> String {
        let all = self.present().chain(changing.node).map(|node| &self.nodes[node]);
        all.map(|node| format!("{}:\n{}", node.name, node.log.tail())).collect::<Vec<_>>().join("\n")
    }

    fn make(&mut self, planned: &PlannedChange, dice: &mut Dice) -> Result<Changing, ChangeError> {
        let kind = planned.kind;
        let operator = Operator::new(&self.reach);
        let patience = operator.patience().clone();
        let (node, what, task) = match kind {
            ChangeKind::JoinManager | ChangeKind::JoinWorker => {
                let role = if kind == ChangeKind::JoinManager { Role::Manager } else { Role::Worker };
                let seat = self.free_seat()?;
                let name = self.next_name();
                let what = format!("{name} joins as a {}", role_name(role));
                (None, what, self.joining(operator, seat, name, role, None))
            }
            ChangeKind::Remove => {
                self.can_spare(!planned.worker)?;
                let node = self.concerned(dice, !planned.worker)?;
                let (id, name) = self.who(node);
                self.nodes[node].belongs = Belongs::Leaves;
                (Some(node), format!("{name} is removed"), spawn(move || tasks::remove(&operator, id)))
            }
            ChangeKind::Replace => {
                self.can_lose_one()?;
                let node = self.concerned(dice, true)?;
                let (id, name) = self.who(node);
                self.nodes[node].belongs = Belongs::Leaves;
                self.take_down(node);
                self.tell_clients();
                let what = format!("{name} is lost with its disk, and another server takes its name and place");
                let seat = self.nodes[node].seat.clone();
                (Some(node), what, self.joining(operator, seat, name, Role::Manager, Some(id)))
            }
            ChangeKind::Roles => {
                self.can_spare(!planned.worker)?;
                let node = self.concerned(dice, !planned.worker)?;
                let (id, name) = self.who(node);
                let manager = planned.worker;
                let what =
                    format!("{name} becomes a {}", role_name(if manager { Role::Manager } else { Role::Worker }));
                (Some(node), what, spawn(move || tasks::roles(&operator, id, manager)))
            }
            ChangeKind::Vote => {
                let node = self.concerned(dice, true)?;
                let (id, name) = self.who(node);
                (Some(node), format!("{name} may not vote for a while"), spawn(move || tasks::vote(&operator, id)))
            }
            ChangeKind::Promote => {
                let choice = usize::try_from(dice.next() >> 1).unwrap_or(0);
                let what = "another manager becomes the Active one".to_owned();
                (None, what, spawn(move || tasks::promote(&operator, choice)))
            }
            ChangeKind::StopManager => {
                let leader = self.leader();
                let passive = |node: &usize| Some(&self.nodes[*node].name) != leader.as_ref();
                let node = self.managers(true).into_iter().filter(passive).collect::<Vec<_>>();
                let node = dice.pick(&node).ok_or_else(|| ChangeError::NoTarget("no manager is passive".into()))?;
                let (id, name) = self.who(node);
                self.nodes[node].busy = true;
                let url = self.nodes[node].reached().url;
                let what = format!("the manager of {name} stops for a while");
                (Some(node), what, spawn(move || tasks::stop_manager(&operator, id, &url)))
            }
            ChangeKind::RotateCa => {
                let what = "a new authority takes over".to_owned();
                let number = self.authorities + 1;
                self.authorities = number;
                (None, what, spawn(move || tasks::rotate(&operator, number)))
            }
            ChangeKind::Renew => {
                let free: Vec<usize> = self.managers(true);
                let node = dice.pick(&free).ok_or_else(|| ChangeError::NoTarget("every manager has a fault".into()))?;
                let days = dice.pick(&OLD).unwrap_or(OLD[0]);
                let name = self.nodes[node].name.clone();
                let what = format!("{name} starts with a certificate of {days} days ago");
                let old = self.age_certificate(node, days).map_err(|why| {
                    // It runs again, with what it had.
                    self.nodes[node].busy = false;
                    ChangeError::NoTarget(format!("{why:#}"))
                })?;
                let (node, task) = (Some(node), None);
                return Ok(Changing { kind, what, node, old, patience, task });
            }
        };
        let task = task.map_err(|error| ChangeError::NoTarget(format!("no thread for it: {error}")))?;
        Ok(Changing { kind, what, node, old: Vec::new(), patience, task: Some(task) })
    }

    fn who(&self, node: usize) -> (NodeId, String) {
        (self.nodes[node].id, self.nodes[node].name.clone())
    }

    /// The plan counts on changes that came about. After one that did not, there may be too few managers.
    fn can_spare(&self, manager: bool) -> Result<(), ChangeError> {
        let managers = self.present().filter(|node| self.nodes[*node].manager).count();
        match manager && managers <= MANAGERS_MIN {
            true => Err(ChangeError::NoTarget(format!("there are {managers} managers only"))),
            false => Ok(()),
        }
    }

    /// Who is lost for ever must not be the only one that votes: no cluster survives that by itself.
    fn can_lose_one(&self) -> Result<(), ChangeError> {
        let deadline = Instant::now() + VOTERS_WITHIN;
        loop {
            let asked = self.present().filter_map(|node| self.ask.status(self.nodes[node].seat.api));
            let newest = asked.max_by_key(|overview| overview.cluster.applied);
            let electors = newest.and_then(|overview| overview.cluster.electors);
            match electors {
                Some(electors) if electors.voters >= 3 && electors.voters_change.is_none() => return Ok(()),
                _ if Instant::now() >= deadline => {
                    return Err(ChangeError::NoTarget(format!("fewer than three voted for {VOTERS_WITHIN:?}")));
                }
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Those without a fault of their own.
    fn managers(&self, manager: bool) -> Vec<usize> {
        self.present().filter(|node| self.is_free(*node) && self.nodes[*node].manager == manager).collect()
    }

    /// A manager or a worker; every second time the leader, if that is one.
    fn concerned(&self, dice: &mut Dice, manager: bool) -> Result<usize, ChangeError> {
        let free = self.managers(manager);
        let other = dice.pick(&free);
        let leader = match dice.happens(500) {
            true => self.leader().and_then(|name| free.iter().copied().find(|node| self.nodes[*node].name == name)),
            false => None,
        };
        let none = || ChangeError::NoTarget("whom it could concern has a fault".into());
        leader.or(other).ok_or_else(none)
    }

    /// Names are used again only where a server is replaced.
    fn next_name(&self) -> String {
        let taken = |name: &String| self.nodes.iter().any(|node| node.name == *name);
        (1..).map(|number| format!("n{number}")).find(|name| !taken(name)).expect("there is always a next number")
    }

    /// A server that is no node: one that never was, else the one that was removed first.
    fn free_seat(&mut self) -> Result<Arc<Seat>, ChangeError> {
        let is_on = |seat: &Arc<Seat>, node: &Node| Arc::ptr_eq(&node.seat, seat);
        let used = |seat: &Arc<Seat>| self.nodes.iter().any(|node| is_on(seat, node));
        if let Some(seat) = self.seats.iter().find(|seat| !used(seat)) {
            return Ok(seat.clone());
        }
        let belongs = |seat: &Arc<Seat>| self.nodes.iter().any(|it| is_on(seat, it) && it.belongs != Belongs::No);
        let mut removed = self.nodes.iter().filter(|node| node.belongs == Belongs::No).map(|node| &node.seat);
        let free = removed.find(|seat| !belongs(seat)).cloned();
        let seat = free.ok_or_else(|| ChangeError::NoTarget("no server is free".into()))?;
        // It may have been several nodes, one after the other; the last one knocks until now.
        self.nodes.iter_mut().filter(|node| is_on(&seat, node)).for_each(|node| drop(node.kill()));
        Ok(seat)
    }

    /// Lets a server join, once whoever had its name is removed.
    fn joining(
        &self,
        operator: Operator,
        seat: Arc<Seat>,
        name: String,
        role: Role,
        instead: Option<NodeId>,
    ) -> std::io::Result<JoinHandle<Result<Done, NotMade>>> {
        let ground = self.ground.clone();
        spawn(move || {
            let removed = instead.map(|id| tasks::remove(&operator, id)).transpose()?;
            let joined = tasks::join(&operator, &ground, &seat, &name, role)?;
            Ok(match removed {
                Some(removed) => Done {
                    evidence: format!("{}; then {}", removed.evidence, joined.evidence),
                    asked: removed.asked + joined.asked,
                    gone_at: removed.gone_at,
                    ..joined
                },
                None => joined,
            })
        })
    }

    /// What the cluster did is what the rig goes by from now on.
    fn put_down(&mut self, changing: &Changing, done: Done) -> Result<Changed, (String, String)> {
        let mut evidence = done.evidence;
        let mut changed = Changed {
            what: changing.what.clone(),
            evidence: String::new(),
            asked: done.asked,
            removed: None,
            joined: None,
            restarted: Vec::new(),
        };
        if let Some(node) = changing.node {
            let (id, name) = self.who(node);
            match changing.kind {
                ChangeKind::Roles => self.nodes[node].manager = !self.nodes[node].manager,
                ChangeKind::Remove => {
                    self.nodes[node].belongs = Belongs::No;
                    let told = self.stays_out(node);
                    evidence = format!("{evidence}; {}", told.map_err(|why| (why, self.nodes[node].log.tail()))?);
                }
                _ => {}
            }
            if let Some(gone_at) = done.gone_at {
                changed.restarted.push(name.clone());
                changed.removed = Some(Removed { id, name, gone_at });
            }
        }
        if let Some(newcomer) = done.newcomer {
            changed.joined = Some(Joined { id: newcomer.id, name: newcomer.name.clone() });
            changed.restarted.push(newcomer.name.clone());
            self.nodes.push(newcomer);
        }
        Ok(Changed { evidence, ..changed })
    }

    /// Whether a removed node is told so, and once more after it was started again.
    fn stays_out(&mut self, node: usize) -> Result<String, String> {
        let mut times = Vec::new();
        for again in [false, true] {
            let from = if again { self.nodes[node].log.length() } else { 0 };
            if again {
                self.nodes[node].kill();
                self.spawn(node).map_err(|error| format!("it cannot be started again: {error}"))?;
            }
            let began = Instant::now();
            let told = |log: &LogFile| OUT.iter().any(|text| log.after(from).contains(text));
            while !told(&self.nodes[node].log) {
                if began.elapsed() >= TOLD {
                    let when = if again { "started again" } else { "removed" };
                    return Err(format!("{when}, it was not told for {TOLD:?} that it is out"));
                }
                std::thread::sleep(LOOK_EVERY);
            }
            times.push(began.elapsed().as_millis().to_string());
        }
        Ok(format!("told that it is out, and {} ms after it was started again once more", times[1]))
    }

    /// Ends a manager's server, gives it a certificate that was made days ago by the authority that it
    /// holds, and starts it. Returns the public key of that.
    fn age_certificate(&mut self, node: usize, days: u64) -> anyhow::Result<Vec<u8>> {
        self.take_down(node);
        let this = &self.nodes[node];
        let aged = || -> anyhow::Result<Vec<u8>> {
            let files = NodeFiles::read(&this.data_dir)?;
            let keys = ManagerKeys::read(&this.data_dir, &files.authorities)?;
            let keys = keys.ok_or_else(|| anyhow::anyhow!("{} has no authority's key", this.name))?;
            let (key, names) = (NodeKey::generate()?, certificate_names(this.seat.api.ip(), &this.name));
            let made = WallTime(wall_now().0 - days * DAY_US);
            let certificate = keys.authority.issue(&key.request()?, this.id, &names, made, trust::serial()?)?;
            let public = certificate.public()?;
            NodeFiles { certificate, key: Arc::new(key), ..files }.write(&this.data_dir)?;
            Ok(public)
        };
        let aged = aged();
        self.spawn(node)?;
        aged
    }

    /// Waits until a server answers, with a certificate that it has got meanwhile.
    fn renewed(&mut self, changing: &Changing) -> Result<Changed, (String, String)> {
        let Some(node) = changing.node else { return Err(("it concerns nobody".into(), String::new())) };
        let began = Instant::now();
        loop {
            let why = match self.has_new_certificate(node, &changing.old) {
                Ok(()) => break,
                Err(why) => why,
            };
            let ended = self.nodes[node].child.as_mut().and_then(|child| ended_within(child, Duration::ZERO).ok()?);
            let why = match ended {
                Some(status) => format!("it ended with {}", ending(status)),
                None if began.elapsed() >= BACK => format!("{why} after {BACK:?}"),
                None => {
                    std::thread::sleep(LOOK_EVERY);
                    continue;
                }
            };
            return Err((why, self.nodes[node].log.tail()));
        }
        Ok(Changed {
            what: changing.what.clone(),
            evidence: "it has another certificate for another key, and answers".into(),
            asked: 0,
            removed: None,
            joined: None,
            restarted: vec![self.nodes[node].name.clone()],
        })
    }

    fn has_new_certificate(&self, node: usize, old: &[u8]) -> Result<(), &'static str> {
        let this = &self.nodes[node];
        let files = NodeFiles::read(&this.data_dir).map_err(|_| "its certificate cannot be read")?;
        match files.certificate.public() {
            Ok(public) if public != old => {}
            _ => return Err("it still has the old certificate"),
        }
        if self.answers(this) { Ok(()) } else { Err("it does not answer") }
    }
}

fn role_name(role: Role) -> &'static str {
    if role == Role::Manager { "manager" } else { "worker" }
}

type Task = JoinHandle<Result<Done, NotMade>>;

fn spawn(task: impl FnOnce() -> Result<Done, NotMade> + Send + 'static) -> std::io::Result<Task> {
    std::thread::Builder::new().name("change".into()).spawn(task)
}
