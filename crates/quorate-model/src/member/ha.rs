//! Whether the nodes coordinate: high availability, on or off (K6).
//!
//! A single node needs nobody. While high availability is off, nothing of it is there: the node listens
//! for no other, sends nothing, and no manager is shown, because there is nothing that one could be
//! chosen from. Switching changes this record and nothing else: no data moves and no service restarts.
//!
//! It is on by itself as soon as there is more than one node, so a log that was written before somebody
//! could switch it means what it meant then. A join token switches it on, because the server that uses it
//! has to reach this one.
//!
//! # Invariants
//! - With several nodes it is on, whatever was decided before.
//! - While it is off, no join token waits.

use super::managers::Harm;
use super::{JoinToken, MemberChange};
use crate::command::Refusal;
use crate::event::Happening;
use crate::state::{Changes, ClusterState, Health};

/// Why two nodes are no more available than one, whatever their roles; `status` and refusals say it alike.
pub const TWO_NODES: &str = "two nodes are not highly available: a majority of two would be both of them, so one \
                             decides alone, and its loss stops every change";

impl ClusterState {
    /// Whether high availability is on.
    #[must_use]
    pub fn ha(&self) -> bool {
        let several = self.nodes.len() > 1;
        match self.members.ha {
            Some(on) => on || several,
            // Who was expelled is told so when it calls, until somebody decides that nobody calls any more.
            None => several || !self.members.expelled.is_empty(),
        }
    }

    /// How many nodes have not left.
    fn present(&self) -> usize {
        self.nodes.values().filter(|node| node.health != Health::Left && !node.expelling).count()
    }

    pub(super) fn set_ha(&self, changes: &mut Changes, on: bool) -> Result<(), Refusal> {
        if on && self.present() == 2 {
            return Err(Refusal::Harm { harm: Harm::TwoNodes });
        }
        if !on && self.nodes.len() > 1 {
            let mut names: Vec<&str> = self.nodes.values().map(|node| node.identity.name.as_str()).collect();
            names.sort_unstable();
            return Err(Refusal::Harm { harm: Harm::HaInUse { nodes: names.join(", ") } });
        }
        if !on {
            let waits = |token: &&JoinToken| token.used.is_none();
            for token in self.members.tokens.values().filter(waits) {
                changes.member(MemberChange::TokenGone { token: token.id });
            }
        }
        let switched = self.ha() != on;
        if self.members.ha != Some(on) {
            changes.member(MemberChange::Ha { on });
        }
        if switched {
            changes.event(Happening::HaSet { on });
        }
        Ok(())
    }

    /// Turns it on for a server that is about to join.
    pub(super) fn turn_on_ha(&self, changes: &mut Changes) {
        if !self.ha() {
            changes.member(MemberChange::Ha { on: true });
            changes.event(Happening::HaSet { on: true });
        }
    }
}
