//! Who is active among the copies of an active-passive service, why, and who would be next: in words for the
//! operator.
//!
//! Made by the planner's own order of heirs, so whoever is called next here is promoted next.

use crate::held::Slot;
use quorate_model::observed::ReplicaState;
use quorate_model::time::WallTime;
use std::fmt;

/// The parts of the copies of a service. Nodes are given by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// The copy that has the lease. `None`: nobody has it.
    pub active: Option<ActiveCopy>,
    /// Nothing runs of those that stand by.
    pub cold: bool,
    /// The others that are to run: who would be promoted next comes first, who cannot be comes last.
    pub standbys: Vec<Standby>,
}

/// The active copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveCopy {
    pub slot: Slot,
    pub node: String,
    pub epoch: u64,
    /// Since when it has been that.
    pub since: WallTime,
    pub why: WhyActive,
}

/// Why it is this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyActive {
    /// It gives its role back, to the first standby.
    Yields,
    /// Nobody hears from its node, so nobody takes over before its lease is over.
    Silent,
    /// It is not well, and neither is any other.
    NobodyBetter,
    /// No other copy could be promoted.
    Alone,
    /// The condition that its node meets, and that counts more than what the others meet.
    Preferred { wish: String },
    /// The first standby would be chosen now; what is well keeps its role.
    Stays,
    /// Nothing tells it from the others but that it has been there for longest.
    Oldest,
}

/// A copy that is not the active one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    pub slot: Slot,
    pub node: String,
    /// Why it cannot be promoted. `None`: it can.
    pub unfit: Option<Unready>,
}

/// Why a copy cannot be promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// Its node is down or was not heard.
    Unheard,
    /// As its node last said. `None`: it has not said anything.
    State(Option<ReplicaState>),
    /// Its resource agent says that it is not to be promoted, or has not said that it may be. `None`: nothing.
    Score(Option<i64>),
}

impl fmt::Display for WhyActive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyActive::Yields => f.write_str("it is giving the role back"),
            WhyActive::Silent => f.write_str("its node is out of reach; nobody is promoted before its lease is over"),
            WhyActive::NobodyBetter => f.write_str("it is not well, and no other copy is either"),
            WhyActive::Alone => f.write_str("no other copy could be promoted"),
            WhyActive::Preferred { wish } => write!(f, "its node is preferred: {wish}"),
            WhyActive::Stays => f.write_str("it is well, and what is well keeps the role"),
            WhyActive::Oldest => f.write_str("of the copies that fit as well it was placed first"),
        }
    }
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unready::Unheard => f.write_str("its node is out of reach"),
            Unready::State(None) => f.write_str("its node has not said how it is"),
            Unready::Score(Some(_)) => f.write_str("its agent says that it is not to be promoted"),
            Unready::Score(None) => f.write_str("its agent has not said that it may be promoted"),
            Unready::State(Some(state)) => f.write_str(match state {
                ReplicaState::Starting => "it is starting",
                ReplicaState::Healthy => "it is healthy",
                ReplicaState::Unhealthy => "it is unhealthy",
                ReplicaState::BackingOff => "it ended and is started again",
                ReplicaState::Draining | ReplicaState::Stopping => "it is ending",
                ReplicaState::Stopped => "it has ended",
                ReplicaState::Failed => "it has failed",
            }),
        }
    }
}
