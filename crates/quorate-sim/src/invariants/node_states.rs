//! A node's record only moves as declared: its generation never falls, a new boot raises it by one,
//! its health changes only within one generation or with a new one, and what is to be expelled stays so.
//!
//! `quorate_model::state`: the invariants of the module.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::id::{LogIndex, NodeId};
use quorate_model::state::{Change, Health, NodeRecord};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct NodeStates {
    /// By machine: what its database says of each node.
    known: BTreeMap<(usize, NodeId), NodeRecord>,
    changes: u64,
}

impl NodeStates {
    fn moves(&mut self, machine: usize, index: LogIndex, new: &NodeRecord) -> Result<(), String> {
        self.changes += 1;
        let Some(old) = self.known.insert((machine, new.identity.id), new.clone()) else { return Ok(()) };
        let name = &new.identity.name;
        let restarted = new.boot != old.boot || new.identity != old.identity;
        let allowed = match (new.generation.checked_sub(old.generation), restarted) {
            // A verdict, or what somebody wishes for it: one of them changes and nothing else does.
            (Some(0), false) => {
                let ends = new.expelling && !old.expelling;
                let hands_over = new.handing_over && !old.handing_over;
                let takes = new.availability != old.availability;
                let changes = [new.health != old.health, new.vote != old.vote, ends, hands_over, takes];
                changes.into_iter().filter(|changed| *changed).count() == 1
                    && (ends || new.expelling == old.expelling)
                    && (hands_over || new.handing_over == old.handing_over)
            }
            // A start, or the return of a node that was taken for dead: it is joined.
            (Some(1), true) => new.health == Health::Joined,
            (Some(1), false) => old.health != Health::Joined && new.health == Health::Joined,
            _ => false,
        };
        if allowed {
            return Ok(());
        }
        Err(format!(
            "at {index} {name} goes from generation {} {:?} (boot {:x}) to generation {} {:?} (boot {:x})",
            old.generation, old.health, old.boot, new.generation, new.health, new.boot
        ))
    }
}

impl Invariant for NodeStates {
    fn name(&self) -> &'static str {
        "node_states_move_as_declared"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            // What a database holds after a power cut or a snapshot may be of another moment.
            Seen::Started { machine, state, .. } => {
                self.known.retain(|(of, _), _| of != machine);
                self.known.extend(state.nodes.iter().map(|(id, record)| ((*machine, *id), record.clone())));
            }
            Seen::Installed { machine, .. } => self.known.retain(|(of, _), _| of != machine),
            Seen::Applied { machine, entry } if !entry.repeated => {
                for change in &entry.changes {
                    if let Change::Node(record) = change {
                        self.moves(*machine, entry.index, record)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.changes
    }
}
