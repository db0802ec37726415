//! What to change next so that the services run as wanted.
//!
//! [`plan`] compares the decided state with what is observed and lists steps, for one command
//! ([`CarryOut`](quorate_model::command::Command::CarryOut)), and what it does *not* do and why, for
//! the operator. The leader calls it on every change and once per second.
//!
//! # Invariants
//! - Pure: equal arguments give an equal plan. A plan is complete; who carries it out chooses nothing.
//! - A step names a replica at most once per plan.
//! - Nothing is placed on a node that is down, unreachable, no worker, cordoned or draining, or that does
//!   not meet what the service requires, or has not said that it has what the service needs.
//! - What replicas on a node have set aside, in whatever phase, is never more than the node has.
//! - Two replicas with the same fixed port are never on one node, in whatever phase.
//! - An update works on one batch of a service's ordinals at a time, the emptying of nodes on one ordinal.
//! - A plan that was carried out is followed, as long as nothing else is observed, by one that
//!   neither places nor retires (unless `moves_max` cut the first short, or it changed what an update may do).
//!
//! # Sources
//! Spread with rendezvous hashing as the tie-break: Thaler, Ravishankar: A Name-Based Mapping
//! Scheme for Rendezvous, 1996.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod autoscale;
mod budget;
mod explain;
mod held;
mod planner;
mod ranking;
mod rebalance;
mod roles;
mod room;
#[cfg(test)]
mod tests;
mod whatif;

pub use autoscale::{Adjustment, Autoscaling, Sight};
pub use budget::Budget;
pub use explain::{Candidates, Explanation, Running, Score, Searched};
pub use held::{Held, HeldReason, Slot, Unfit};
pub use ranking::Better;
pub use rebalance::{Balance, Shift};
pub use roles::{ActiveCopy, Roles, Standby, Unready, WhyActive};
pub use whatif::{Fault, Forecast, Move, RoleMove};

use quorate_model::command::Step;
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::observed::{Casting, ReplicaState};
use quorate_model::resource::{Amount, Usage};
use quorate_model::state::ClusterState;
use quorate_model::traffic::Traffic;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the leader sees. It lives in memory; a new leader begins with an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// As last reported by the nodes.
    pub replicas: BTreeMap<ReplicaId, ReplicaState>,
    /// What nodes say about replicas that are not well: the last exit, the reason of a failure.
    pub details: BTreeMap<ReplicaId, String>,
    /// Nodes whose last report is in `replicas`: a released replica that is not there has ended.
    /// The report must be of the node's present boot, or be removed from here at its registration.
    pub reported: BTreeSet<NodeId>,
    /// What nodes have for replicas, as they last said. Where it is not known, nothing that asks for an amount of
    /// anything is placed.
    pub capacity: BTreeMap<NodeId, Amount>,
    /// What nodes have for running services, as they last said. One that is not there did not say it, and is taken
    /// to have everything.
    pub drivers: BTreeMap<NodeId, BTreeSet<String>>,
    /// For how long a majority has not heard from a node. Absent: it is heard.
    pub unreachable_for: BTreeMap<NodeId, Duration>,
    /// For how long a node has been known to be down. Measured by whoever plans, on its monotonic
    /// clock: times in the records are of another node's clock, which may be hours off.
    pub down_for: BTreeMap<NodeId, Duration>,
    /// Nodes whose server somebody restarts, and for how much longer they are waited for, also where
    /// others would be replaced sooner.
    pub returns_within: BTreeMap<NodeId, Duration>,
    /// The same as `down_for`, for how long a node has been draining.
    pub draining_for: BTreeMap<NodeId, Duration>,
    /// The same as `down_for`, for retired replicas.
    pub retired_for: BTreeMap<ReplicaId, Duration>,
    /// Retired replicas that gateways have finished with: every live gateway uses a table that
    /// knows of the retirement and has nothing in flight for the replica.
    pub drained: BTreeSet<ReplicaId>,
    /// Of services that need something of a node: what each node that has looked lacks. A node that is not
    /// there has not looked yet.
    pub lacks: BTreeMap<ServiceName, BTreeMap<NodeId, Vec<String>>>,
    /// The same, of what services become again if their updates fail.
    pub fallback_lacks: BTreeMap<ServiceName, BTreeMap<NodeId, Vec<String>>>,
    /// What replicas of autoscaled services use, as last reported. Absent: not measured.
    pub usage: BTreeMap<ReplicaId, Usage>,
    /// What replicas tell of themselves, in thousandths, where their number goes by that. Absent: not told.
    pub scraped: BTreeMap<ReplicaId, u64>,
    /// Of services with a replica that tells nothing, why. For people.
    pub untold: BTreeMap<ServiceName, String>,
    /// What a query found, in thousandths, or why it found nothing. Absent: nobody ran it lately.
    pub counted: BTreeMap<ServiceName, Result<u64, String>>,
    /// What each gateway has had to do for services that go by it, as last told.
    pub traffic: BTreeMap<String, Traffic>,
    /// In a survey: what was found for autoscaled services. No plan looks at it.
    pub autoscaled: BTreeMap<ServiceName, autoscale::Report>,
    /// The parts of copies of active-passive services, and what their nodes promise about them.
    pub castings: BTreeMap<ReplicaId, Casting>,
    /// How often processes were started again after they had ended. Absent: never.
    pub restarts: BTreeMap<ReplicaId, u32>,
    /// The same as `down_for`: for how long a replica of a service that is being updated has been healthy
    /// without a restart.
    pub healthy_for: BTreeMap<ReplicaId, Duration>,
    /// The same, for how long it has not been healthy.
    pub unhealthy_for: BTreeMap<ReplicaId, Duration>,
    /// The same, for how long an update has been in its stage.
    pub stage_for: BTreeMap<ServiceName, Duration>,
    /// The same, for how long no further replica has become healthy in an update's stage.
    pub stalled_for: BTreeMap<ServiceName, Duration>,
}

/// What the operator may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long a node may be down before its replicas are replaced. Default 0: at once, because
    /// replicas of replicated services may run twice for a while.
    pub replace_after: Duration,
    /// Most [`Step::Place`] in one plan. Default 64: a plan is one log entry of a few kilobytes,
    /// and nodes that start hundreds of processes at once pass no health check in time. The rest
    /// comes with the next plan.
    pub moves_max: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { replace_after: Duration::ZERO, moves_max: 64 }
    }
}

/// What to do, and what is not done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// In the order of the services' names.
    pub held: Vec<Held>,
}

/// Computes the next steps towards what is wanted.
///
/// Ordinals `0..replicas` of each service are filled on the workers that suit it best; replicas beyond
/// them are retired; replicas of nodes that are gone are replaced; replicas of older versions, and those
/// that are to be elsewhere, get successors one after another. The steps are valid while `state.planned_on` stays the same.
#[must_use]
pub fn plan(state: &ClusterState, observed: &Observed, policy: &Policy) -> Plan {
    let former = planner::former(state);
    let (plan, _) = planner::Planner::new(state, observed, &former, *policy).run();
    plan
}

/// All that a plan is made of, at one moment: to be asked without keeping the leader from its work.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    pub state: ClusterState,
    pub observed: Observed,
    pub policy: Policy,
}

impl Survey {
    /// Why a service has as many copies as it has. `None`: it is not autoscaled, or there is none.
    #[must_use]
    pub fn autoscale(&self, service: &ServiceName) -> Option<autoscale::Report> {
        self.observed.autoscaled.get(service).cloned()
    }

    /// Why the replicas of a service are where they are. `None`: there is no such service.
    #[must_use]
    pub fn explain(&self, service: &ServiceName) -> Option<Explanation> {
        explain::explain(&self.state, &self.observed, &self.policy, service)
    }

    /// What would run better elsewhere.
    #[must_use]
    pub fn rebalance(&self, moves_max: usize) -> Balance {
        rebalance::rebalance(&self.state, &self.observed, moves_max)
    }

    /// What would be done if this happened.
    #[must_use]
    pub fn what_if(&self, fault: Fault) -> Forecast {
        whatif::what_if(&self.state, &self.observed, &self.policy, fault)
    }
}
