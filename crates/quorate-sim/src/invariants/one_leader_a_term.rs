//! At most one leader a term.
//!
//! Ongaro, Ousterhout: In Search of an Understandable Consensus Algorithm, USENIX ATC 2014, figure 3:
//! Election Safety.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::id::Term;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct OneLeaderATerm {
    /// Machine by the term that it led.
    leaders: BTreeMap<Term, usize>,
}

impl Invariant for OneLeaderATerm {
    fn name(&self) -> &'static str {
        "one_leader_a_term"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Turned { machine, node } = seen else { return Ok(()) };
        if !node.leads() {
            return Ok(());
        }
        let known = *self.leaders.entry(node.term()).or_insert(*machine);
        if known == *machine {
            return Ok(());
        }
        Err(format!("n{} and n{} both led term {}", known + 1, machine + 1, node.term()))
    }

    fn premises(&self) -> u64 {
        self.leaders.len() as u64
    }
}
