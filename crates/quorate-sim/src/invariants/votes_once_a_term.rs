//! A node votes once in a term, and never takes a vote back.
//!
//! Ongaro, Ousterhout, 2014, figure 2: RequestVote RPC, and `votedFor` among the persistent state.

use super::Invariant;
use crate::seen::Seen;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct VotesOnceATerm {
    /// By machine and term: whom it voted for, be it in a message or on its disk.
    votes: BTreeMap<(usize, u64), u64>,
    seen: u64,
}

impl VotesOnceATerm {
    fn votes(&mut self, machine: usize, term: u64, candidate: u64) -> Result<(), String> {
        self.seen += 1;
        let first = *self.votes.entry((machine, term)).or_insert(candidate);
        if first == candidate {
            return Ok(());
        }
        Err(format!("n{} voted for {first} in term {term}, and then for {candidate}", machine + 1))
    }
}

impl Invariant for VotesOnceATerm {
    fn name(&self) -> &'static str {
        "votes_once_a_term"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Voted { machine, term, candidate, .. } => self.votes(*machine, *term, *candidate),
            Seen::Appends { machine, append } => match append.hard_state {
                // What was written down may be lost with a power cut, as long as nobody was told. But
                // nobody writes down less than before.
                Some((term, 0, _)) if self.votes.contains_key(&(*machine, term)) => {
                    Err(format!("n{} takes back its vote of term {term}", machine + 1))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn premises(&self) -> u64 {
        self.seen
    }
}
