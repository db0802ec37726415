//! Why a service's replicas are where they are, and why others are nowhere.
//!
//! Made by the planner itself: the searches are those of the plan that would be made now, and a running
//! replica is asked the same question as a new one. What runs is never moved for balance, so a replica may
//! well stand on a node that is not the first any more.

use crate::budget::{Budget, budget};
use crate::held::{HeldReason, Slot, Unfit};
use crate::planner::{self, Planner};
use crate::ranking::{Ranking, Search};
use crate::roles::Roles;
use crate::{Observed, Policy};
use quorate_model::command::Step;
use quorate_model::id::{ReplicaId, ServiceName};
use quorate_model::spec::Mode;
use quorate_model::state::ClusterState;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Where the replicas of a service are and why. Nodes are given by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub service: ServiceName,
    pub mode: Mode,
    /// How many are to run.
    pub wanted: u32,
    /// Of an active-passive service: which copy is active, and who would be next.
    pub roles: Option<Roles>,
    /// Those that run and go on running, by ordinal.
    pub running: Vec<Running>,
    /// Those for which a node is looked for now.
    pub searches: Vec<Searched>,
    /// Of a service that runs on every node: those that run none, and why.
    pub without: Vec<(String, Unfit)>,
    /// Of a service that asks for resources: whether there is room for all, and for all with one node lost.
    pub budget: Option<Budget>,
    /// What is not done, and why.
    pub held: Vec<HeldReason>,
}

/// A replica that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub slot: Slot,
    pub replica: ReplicaId,
    pub node: String,
    /// As if it were placed now: itself left out of account.
    pub candidates: Candidates,
}

/// The nodes of the cluster as they are for one replica.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// Those that can run it, the best first.
    pub fit: Vec<(String, Score)>,
    /// The others, by name.
    pub unfit: Vec<(String, Unfit)>,
}

impl Running {
    /// Which place its node has among those that could run it, from 1. `None`: it could not start there now.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        self.candidates.fit.iter().position(|(node, _)| *node == self.node).map(|at| at + 1)
    }
}

impl Candidates {
    /// With the mode every-node there is one node for each replica.
    pub(crate) fn of_mode(mut self, mode: Mode, own: &str) -> Candidates {
        if mode == Mode::EveryNode {
            self.fit.retain(|(node, _)| node == own);
            self.unfit.retain(|(node, _)| node == own);
        }
        self
    }
}

/// A search for a node that a plan makes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Searched {
    pub slot: Slot,
    /// Where the replica is whose place it takes.
    pub from: Option<String>,
    /// The first one that fits is chosen.
    pub candidates: Candidates,
}

/// What orders a node among others; the first difference decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// Key of the label that replicas are spread over, the node's value, and how many are there.
    pub spread: Option<(String, Option<String>, u32)>,
    /// Replicas of the service on the node.
    pub same: u32,
    /// Each wish, and whether the node meets it.
    pub prefers: Vec<(String, bool)>,
    /// Services that it is to be near, and whether one of them is here.
    pub near: Vec<(ServiceName, bool)>,
    /// Services that it is to be apart from, and whether one of them is here.
    pub apart: Vec<(ServiceName, bool)>,
    /// Whether the ordinal was here before.
    pub was_here: bool,
    /// Replicas on the node.
    pub load: u32,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spread {
            Some((key, Some(value), count)) => write!(f, "{} in {key} {value}, ", Others(*count))?,
            Some((key, None, count)) => write!(f, "{} without {key}, ", Others(*count))?,
            None => {}
        }
        write!(f, "{} here", Others(self.same))?;
        for (wish, met) in &self.prefers {
            write!(f, ", {}{wish}", if *met { "" } else { "not " })?;
        }
        for (service, here) in &self.near {
            write!(f, ", {} {service}", if *here { "near" } else { "not near" })?;
        }
        for (service, _) in self.apart.iter().filter(|(_, here)| *here) {
            write!(f, ", not apart from {service}")?;
        }
        if self.was_here {
            f.write_str(", was here")?;
        }
        write!(f, ", runs {}", self.load)
    }
}

/// Other replicas of the service.
struct Others(u32);

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("no other"),
            1 => f.write_str("1 other"),
            count => write!(f, "{count} others"),
        }
    }
}

/// Explains one service. `None`: there is no such service.
pub(crate) fn explain(
    state: &ClusterState,
    observed: &Observed,
    policy: &Policy,
    service: &ServiceName,
) -> Option<Explanation> {
    let record = state.services.get(service)?;
    let former = planner::former(state);
    let mut planner = Planner::new(state, observed, &former, *policy);
    planner.watch(service);
    let (plan, searches) = planner.run();
    let gone: BTreeSet<ReplicaId> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Retire { replica } | Step::Forget { replica } => Some(*replica),
            Step::Place { .. }
            | Step::Release { .. }
            | Step::Promote { .. }
            | Step::Yield { .. }
            | Step::Demoted { .. }
            | Step::Advance { .. } => None,
        })
        .collect();
    // What runs is asked on the state as it is, without what the plan would add.
    let planner = Planner::new(state, observed, &former, *policy);
    let room = planner.room();
    let ordinals: BTreeMap<u32, Vec<ReplicaId>> = room.ordinals(service);
    let running = ordinals.into_iter().flat_map(|(ordinal, ids)| ids.into_iter().map(move |id| (ordinal, id)));
    let running = running
        .filter(|(_, id)| !gone.contains(id))
        .map(|(ordinal, id)| {
            let search =
                Search { replaces: Some(id), ends_first: true, returns: false, ..Search::new(record, ordinal) };
            let seat = room.seat(id);
            let node = room.node_name(seat.node);
            let candidates = Ranking::new(room, search).in_words().of_mode(record.spec.mode, &node);
            Running { slot: seat.slot(), replica: id, node, candidates }
        })
        .collect();
    let without = match record.spec.mode {
        Mode::Replicated | Mode::Singleton | Mode::ActivePassive => Vec::new(),
        Mode::EveryNode => {
            let served: BTreeSet<_> = room.running(service).map(|(_, at)| at).collect();
            let ranking = Ranking::new(room, Search::new(record, 0));
            let others = room.spots().iter().enumerate().filter(|(at, _)| !served.contains(at));
            others.filter_map(|(at, spot)| Some((spot.record.identity.name.clone(), ranking.unfit(at)?))).collect()
        }
    };
    Some(Explanation {
        service: service.clone(),
        mode: record.spec.mode,
        wanted: state.wanted(record),
        roles: planner.roles(record),
        running,
        searches,
        without,
        budget: budget(room, record, state.wanted(record)),
        held: plan.held.into_iter().filter(|held| held.service == *service).map(|held| held.reason).collect(),
    })
}
