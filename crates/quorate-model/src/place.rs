//! Where replicas may run: labels of nodes, what a node takes, and what a service asks of nodes.
//!
//! A service's table `place` has one kind of condition, `require`, which is never broken, and wishes
//! (`spread`, `prefer`, `near`, `apart`), which order the nodes that are left. What they come to on a
//! given day is the scheduler's; here is what they mean for one node.
//!
//! # Invariants
//! - Labels are what an operator says of a node, never what a node says of itself.
//! - A node that takes nothing new keeps what it has, unless it is drained.
//!
//! # Sources
//! Words of the field: constraints and the three availabilities of Docker Swarm, `cordon` and `drain`
//! of Kubernetes, drain deadlines of Nomad.

use crate::assignment::Phase;
use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use crate::spec::{Mode, ServiceSpec};
use crate::state::{Change, Changes, ClusterState, Health, NodeRecord, ReplicaRecord, Role, ServiceRecord};
use crate::time::Span;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Most labels of one node.
pub const LABELS_MAX: usize = 64;
/// Longest key and longest value of a label, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;
/// Most entries of each list in a service's `place`.
pub const LIST_MAX: usize = 16;
/// In a constraint, this key stands for the node's own name.
pub const NODE: &str = "node";

/// What a node takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Availability {
    /// Any replica that fits.
    #[default]
    Open,
    /// Nothing new. What runs there stays.
    Cordoned,
    /// Nothing new, and what runs there is brought elsewhere.
    Draining(Drain),
}

/// How a node is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drain {
    /// After this, replicas that found no other place are ended without one. `None`: they stay until
    /// there is one. Measured by the leader, from when it learnt of the drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// The log entry that asked for it; in a command it means nothing.
    #[serde(default)]
    pub asked: LogIndex,
}

impl Availability {
    #[must_use]
    pub fn drain(&self) -> Option<&Drain> {
        match self {
            Availability::Draining(drain) => Some(drain),
            Availability::Open | Availability::Cordoned => None,
        }
    }

    /// The same wish, whenever it was asked.
    fn asks_the_same(&self, other: &Availability) -> bool {
        match (self, other) {
            (Availability::Draining(one), Availability::Draining(other)) => one.deadline == other.deadline,
            (one, other) => one == other,
        }
    }
}

/// A condition on a node, written `zone = a`, `disk != hdd`, `node = n1|n2`.
///
/// `=` asks for one of the values, `!=` for none of them; a node without the label has none of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Constraint {
    key: String,
    is: bool,
    values: BTreeSet<String>,
}

/// The text is not a condition on a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {problem}")]
pub struct BadConstraint {
    text: String,
    problem: String,
}

impl Constraint {
    #[must_use]
    pub fn holds(&self, node: &NodeRecord) -> bool {
        let value = match self.key.as_str() {
            NODE => Some(&node.identity.name),
            key => node.labels.get(key),
        };
        value.is_some_and(|value| self.values.contains(value)) == self.is
    }

    /// The label that it looks at, or [`NODE`].
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.key, if self.is { "=" } else { "!=" })?;
        for (at, value) in self.values.iter().enumerate() {
            write!(f, "{}{value}", if at == 0 { "" } else { "|" })?;
        }
        Ok(())
    }
}

impl FromStr for Constraint {
    type Err = BadConstraint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |problem: String| BadConstraint { text: text.to_owned(), problem };
        let (key, is, values) = match (text.split_once("!="), text.split_once('=')) {
            (Some((key, values)), _) => (key, false, values),
            // What many are used to write means the same.
            (None, Some((key, values))) => (key, true, values.strip_prefix('=').unwrap_or(values)),
            (None, None) => {
                return Err(bad("is no condition on a node: write `zone = a`, `disk != hdd` or `node = n1|n2`".into()));
            }
        };
        let key = key.trim();
        label_key(key).map_err(bad)?;
        let values: BTreeSet<String> = values.split('|').map(|value| value.trim().to_owned()).collect();
        values.iter().try_for_each(|value| label_value(value)).map_err(bad)?;
        Ok(Constraint { key: key.to_owned(), is, values })
    }
}

impl Serialize for Constraint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Constraint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where replicas of a service run: the table `place` of its spec. Default: anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// All of these hold on each node that runs a replica. A replica whose node does not meet them any
    /// more is brought elsewhere. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<Constraint>,
    /// A label, like `zone`: its values get equally many replicas as far as that is possible. Nodes
    /// without the label count as one more value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<String>,
    /// Nodes that are better than others, the most important condition first. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<Constraint>,
    /// Services next to which replicas would best run. At most 16.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub near: BTreeSet<ServiceName>,
    /// Services that are best kept on other nodes. At most 16.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub apart: BTreeSet<ServiceName>,
}

impl Place {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_anywhere(&self) -> bool {
        *self == Place::default()
    }

    /// What the node does not meet.
    #[must_use]
    pub fn unmet(&self, node: &NodeRecord) -> Option<&Constraint> {
        self.require.iter().find(|constraint| !constraint.holds(node))
    }

    /// Where below `place`, and what is wrong.
    pub(crate) fn validate(&self, spec: &ServiceSpec) -> Result<(), (&'static str, String)> {
        let Place { require, spread, prefer, near, apart } = self;
        let sizes =
            [(".require", require.len()), (".prefer", prefer.len()), (".near", near.len()), (".apart", apart.len())];
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| *size > LIST_MAX) {
            return Err((field, format!("has {size} entries; at most {LIST_MAX} are allowed")));
        }
        if let Some(key) = spread {
            label_key(key).map_err(|problem| (".spread", problem))?;
            if key == NODE {
                return Err((".spread", "is \"node\", and replicas are spread over nodes anyway: leave it out".into()));
            }
        }
        for (field, services) in [(".near", near), (".apart", apart)] {
            if services.contains(&spec.name) {
                return Err((field, format!("names {} itself", spec.name)));
            }
        }
        if let Some(both) = near.intersection(apart).next() {
            return Err((".apart", format!("names {both}, and so does `near`")));
        }
        let wishes = [
            (".spread", spread.is_some()),
            (".prefer", !prefer.is_empty()),
            (".near", !near.is_empty()),
            (".apart", !apart.is_empty()),
        ];
        match wishes.into_iter().find(|(_, given)| *given) {
            Some((field, _)) if spec.mode == Mode::EveryNode => {
                Err((field, "chooses among nodes, and mode \"every-node\" takes each that meets `require`".into()))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What is wrong with the key of a label.
pub(crate) fn label_key(key: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b'/');
    let begins = key.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if key.len() <= LABEL_BYTES_MAX && begins && key.bytes().all(plain) {
        return Ok(());
    }
    Err(format!(
        "has the key {key:?}: use 1 to {LABEL_BYTES_MAX} of a-z, 0-9, - _ . /, beginning with a letter or digit"
    ))
}

/// Whether a node may have this label.
pub(crate) fn is_label(key: &str, value: &str) -> bool {
    label_key(key).is_ok() && label_value(value).is_ok()
}

fn label_value(value: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=LABEL_BYTES_MAX).contains(&value.len()) && value.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("has the value {value:?}: use 1 to {LABEL_BYTES_MAX} of A-Z, a-z, 0-9, - _ ."))
}

impl NodeRecord {
    /// Whether a service that runs on every node is to run on this one, as far as people decide that.
    #[must_use]
    pub fn is_one_of_every(&self, spec: &ServiceSpec) -> bool {
        self.identity.roles.contains(&Role::Worker)
            && !self.expelling
            && self.availability.drain().is_none()
            && spec.place.unmet(self).is_none()
    }
}

impl ClusterState {
    /// How many replicas of a service are to run now. With the mode every-node these are the nodes that are
    /// joined and that it is to run on; one that takes nothing new counts if it has a replica.
    #[must_use]
    pub fn wanted(&self, service: &ServiceRecord) -> u32 {
        let spec = &service.spec;
        match spec.mode {
            _ if service.stopped.is_some() => 0,
            Mode::Replicated | Mode::Singleton | Mode::ActivePassive => spec.replicas,
            Mode::EveryNode => {
                let here = |node: &NodeRecord| {
                    let mut mine = self.replicas.values().filter(|replica| replica.node == node.identity.id);
                    mine.any(|replica| replica.service == spec.name && replica.phase == Phase::Run)
                };
                let wants = |node: &&NodeRecord| {
                    node.health == Health::Joined
                        && node.is_one_of_every(spec)
                        && (node.availability == Availability::Open || here(node))
                };
                u32::try_from(self.nodes.values().filter(wants).count()).unwrap_or(u32::MAX)
            }
        }
    }

    /// `None` takes a label away; taking away one that is not there changes nothing.
    pub(crate) fn set_labels(
        &self,
        changes: &mut Changes,
        node: NodeId,
        labels: &BTreeMap<String, Option<String>>,
    ) -> Result<(), Refusal> {
        let invalid = |problem| Refusal::Invalid { field: "labels".into(), problem };
        for (key, value) in labels {
            label_key(key).map_err(invalid)?;
            value.iter().try_for_each(|value| label_value(value)).map_err(invalid)?;
            if key == NODE {
                return Err(invalid("has the key \"node\", which stands for the node's name".into()));
            }
        }
        let known = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        let mut all = known.labels.clone();
        for (key, value) in labels {
            match value {
                Some(value) => all.insert(key.clone(), value.clone()),
                None => all.remove(key),
            };
        }
        if all.len() > LABELS_MAX {
            return Err(invalid(format!("would be {} of one node; at most {LABELS_MAX} are allowed", all.len())));
        }
        self.edit(changes, node, |record| record.labels.clone_from(&all))
    }

    /// Whatever cannot be moved is left out: a copy that has ended meanwhile, or runs once, or everywhere.
    pub(crate) fn rebalance(&self, changes: &mut Changes, replicas: &BTreeSet<ReplicaId>) {
        let (mut begun, mut stopped) = (0, 0);
        for record in self.replicas.values() {
            let may_move = record.phase == Phase::Run && record.spec.mode == Mode::Replicated;
            let moving = may_move && replicas.contains(&record.id);
            if record.moving == moving {
                continue;
            }
            *(if moving { &mut begun } else { &mut stopped }) += 1;
            changes.list.push(Change::Replica(ReplicaRecord { moving, ..record.clone() }));
        }
        if begun + stopped > 0 {
            changes.event(Happening::Rebalancing { replicas: begun });
        }
    }

    pub(crate) fn set_availability(
        &self,
        changes: &mut Changes,
        node: NodeId,
        wanted: &Availability,
    ) -> Result<(), Refusal> {
        let known = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if known.availability.asks_the_same(wanted) {
            return Ok(());
        }
        let availability = match wanted {
            Availability::Draining(drain) => Availability::Draining(Drain { asked: changes.index, ..*drain }),
            Availability::Open | Availability::Cordoned => *wanted,
        };
        self.edit(changes, node, |record| record.availability = availability)?;
        changes.event(match availability {
            Availability::Open => Happening::NodeOpened { node },
            Availability::Cordoned => Happening::NodeCordoned { node },
            Availability::Draining(_) => Happening::NodeDraining { node },
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
