//! What a node promises to others is on its disk before it says so.
//!
//! Ongaro: Consensus: Bridging Theory and Practice, 2014, §3.8: term, vote and log must survive a
//! restart.

use super::Invariant;
use crate::seen::Seen;

#[derive(Debug, Default)]
pub(super) struct PromisesAreDurable {
    promises: u64,
}

impl Invariant for PromisesAreDurable {
    fn name(&self) -> &'static str {
        "promises_are_durable"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Acknowledged { machine, index, durable } => {
                self.promises += 1;
                if index > durable {
                    return Err(format!("n{} acknowledges {index} with {durable} on its disk", machine + 1));
                }
            }
            Seen::Voted { machine, term, durable } => {
                self.promises += 1;
                if term > durable {
                    return Err(format!("n{} votes in term {term} with term {durable} on its disk", machine + 1));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.promises
    }
}
