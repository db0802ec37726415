//! What is decided about managers: stopped and started, where the role may be, and how a cluster goes
//! on after most of them were lost for ever.
//!
//! A *stopped* manager is one whose vote is [`Vote::Never`]: it keeps the log and its databases, so that
//! it is of use at once when it is started again, and serves nobody as a manager. It is in the state and
//! not in a file of that node, so it survives a reboot and any other node can end it.
//!
//! Whether a wish would harm the cluster ([`Harm`]) depends on who is heard, which no state machine knows.
//! The leader looks at it when it proposes the entry (`quorate_node::electorate`), and proposes the
//! refusal instead ([`Command::Withheld`](crate::command::Command::Withheld)).

use super::{MemberChange, Vote};
use crate::command::Refusal;
use crate::event::Happening;
use crate::id::NodeId;
use crate::state::{Change, Changes, ClusterState, Health, NodeRecord, Role};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Why a wish would harm those who decide. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "harm", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Harm {
    #[error("without {node} the managers that answer would be no majority: {why}")]
    LosesMajority { node: String, why: String },
    #[error("{node} is the last manager that may vote")]
    LastVoter { node: String },
    #[error(
        "with {node} there would be {voters} voters, which tolerate no more losses than {}; it stands by until \
         another manager joins",
        voters - 1
    )]
    EvenVoters { node: String, voters: usize },
    #[error("{node} is the Active manager, and only passive ones are stopped")]
    Active { node: String },
    #[error("{}", super::ha::TWO_NODES)]
    TwoNodes,
    #[error("high availability stays on while there are several nodes: {nodes}")]
    HaInUse { nodes: String },
}

/// That a cluster went on with one survivor after its majority was lost for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// 2 after the first. Members of an earlier one are let in nowhere.
    pub incarnation: u64,
    pub survivor: NodeId,
    pub at: WallTime,
    /// Who was given up, this time and before. They are expelled too; unlike others who are, they are told
    /// why, because they may not know yet that the cluster goes on without them.
    pub lost: BTreeSet<NodeId>,
}

impl ClusterState {
    /// How often the cluster began anew: 1 until it is recovered.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.members.recovery.as_ref().map_or(1, |recovery| recovery.incarnation)
    }

    /// Whose certificates are refused: everybody who was expelled, but for those who have to be told that they
    /// were given up.
    #[must_use]
    pub fn cut_off(&self) -> BTreeSet<NodeId> {
        let expelled = &self.members.expelled;
        self.members.recovery.as_ref().map_or_else(|| expelled.clone(), |recovery| expelled - &recovery.lost)
    }

    fn manager(&self, node: NodeId) -> Result<&NodeRecord, Refusal> {
        let record = self.node(node)?;
        if record.identity.roles.contains(&Role::Manager) {
            return Ok(record);
        }
        Err(Refusal::NotManager { node: record.identity.name.clone() })
    }

    pub(super) fn stop_managers(&self, changes: &mut Changes, nodes: &BTreeSet<NodeId>) -> Result<(), Refusal> {
        self.others_may_vote(nodes)?;
        self.turn(changes, nodes, Vote::Never, |node| Happening::ManagerStopped { node })
    }

    pub(super) fn start_managers(&self, changes: &mut Changes, nodes: &BTreeSet<NodeId>) -> Result<(), Refusal> {
        self.turn(changes, nodes, Vote::Auto, |node| Happening::ManagerStarted { node })
    }

    /// All of them, or none if one is no manager.
    fn turn(
        &self,
        changes: &mut Changes,
        nodes: &BTreeSet<NodeId>,
        vote: Vote,
        what: impl Fn(NodeId) -> Happening,
    ) -> Result<(), Refusal> {
        for node in nodes {
            let record = self.manager(*node)?;
            if (record.vote == Vote::Never) != (vote == Vote::Never) {
                changes.list.push(Change::Node(NodeRecord { vote, ..record.clone() }));
                changes.event(what(*node));
            }
        }
        Ok(())
    }

    /// Refuses while another node is lost, has been asked to begin anew and has not yet, or is a manager that
    /// was ended: it counts among those that decide, and is not there.
    pub(super) fn others_are_there(&self, node: NodeId) -> Result<(), Refusal> {
        let away = |other: &&NodeRecord| match other.health {
            Health::Joined => other.restart == Some(other.boot),
            Health::Down => true,
            Health::Left => other.restart == Some(other.boot) || other.may_vote(),
        };
        let others = self.nodes.values().filter(|other| other.identity.id != node);
        match others.filter(|other| !other.expelling).find(away) {
            Some(other) => Err(Refusal::OtherAway { node: other.identity.name.clone() }),
            None => Ok(()),
        }
    }

    /// Names the run of the server that is to end: a run that has ended already is not meant.
    pub(super) fn restart_server(&self, changes: &mut Changes, node: NodeId, generation: u64) -> Result<(), Refusal> {
        let record = self.node(node)?;
        if record.generation == generation && record.restart != Some(record.boot) {
            changes.list.push(Change::Node(NodeRecord { restart: Some(record.boot), ..record.clone() }));
            changes.event(Happening::RestartAsked { node });
        }
        Ok(())
    }

    /// Where managers may be: only on nodes that have this role as well.
    pub(super) fn set_manager_rule(&self, changes: &mut Changes, requires: Option<Role>) -> Result<(), Refusal> {
        let invalid = |problem: String| Refusal::Invalid { field: "requires".into(), problem };
        if requires == Some(Role::Manager) {
            return Err(invalid("is the role itself; give worker, gateway, or none".into()));
        }
        let managers = self.nodes.values().filter(|record| record.identity.roles.contains(&Role::Manager));
        let misplaced = |record: &&NodeRecord| requires.is_some_and(|role| !record.identity.roles.contains(&role));
        if let Some(record) = managers.clone().find(misplaced) {
            let name = &record.identity.name;
            return Err(invalid(format!(
                "would leave the manager on {name} where it may not be; change its roles first"
            )));
        }
        if requires != self.members.manager_requires {
            changes.member(MemberChange::ManagerRule { requires });
        }
        Ok(())
    }

    /// Whether a node with these roles may be a manager, if it is to be one.
    pub(super) fn may_manage(&self, name: &str, roles: &BTreeSet<Role>) -> Result<(), Refusal> {
        match self.members.manager_requires {
            Some(requires) if roles.contains(&Role::Manager) && !roles.contains(&requires) => {
                Err(Refusal::ManagerNeeds { node: name.to_owned(), requires })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Everybody in `lost` is expelled, and what was decided of them is forgotten.
    pub(super) fn recover(
        &self,
        changes: &mut Changes,
        survivor: NodeId,
        incarnation: u64,
        lost: &BTreeSet<NodeId>,
    ) -> Result<(), Refusal> {
        if incarnation <= self.incarnation() {
            return Ok(());
        }
        let lost: BTreeSet<NodeId> = lost.iter().copied().filter(|node| *node != survivor).collect();
        let before = self.members.recovery.iter().flat_map(|recovery| &recovery.lost);
        let recovery =
            Recovery { incarnation, survivor, at: changes.now, lost: before.chain(&lost).copied().collect() };
        changes.member(MemberChange::Recovered(recovery));
        // Whoever has their disks has the keys.
        self.expose(changes, &lost.iter().filter_map(|node| self.nodes.get(node)).collect::<Vec<_>>());
        for node in &lost {
            // Whoever recovers says that they are destroyed.
            self.release_kept(changes, *node);
            changes.member(MemberChange::Expelled { node: *node });
            if self.nodes.contains_key(node) {
                changes.member(MemberChange::NodeGone { node: *node });
            }
        }
        if let Some(record) = self.nodes.get(&survivor) {
            changes.list.push(Change::Node(NodeRecord { vote: Vote::Auto, expelling: false, ..record.clone() }));
        }
        changes.event(Happening::Recovered { node: survivor, incarnation });
        Ok(())
    }
}
