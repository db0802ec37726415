//! What a node promises to others is on its disk before it says so, and still there when it starts
//! again, whatever happened in between.
//!
//! Ongaro: Consensus: Bridging Theory and Practice, 2014, §3.8: term, vote and log must survive a
//! restart. That a disk's word is true is looked up on the simulated device.

use super::Invariant;
use crate::seen::{Durably, Seen};

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
            Seen::Voted { machine, term, candidate, durable } => {
                self.promises += 1;
                if (durable.term, durable.vote) != (*term, *candidate) && *term >= durable.term {
                    return Err(format!(
                        "n{} votes for {candidate} in term {term} with {durable:?} on its disk",
                        machine + 1
                    ));
                }
            }
            Seen::CalledDurable { machine, what, unsynced } if *unsynced > 0 => {
                let what = match what {
                    Durably::Log => "log",
                    Durably::Databases => "databases",
                };
                return Err(format!("n{}'s {what}: {unsynced} sectors are not on the device", machine + 1));
            }
            Seen::Started { machine, promised, found, .. } => {
                self.promises += 1;
                let vote_kept = found.term > promised.term
                    || found.term == promised.term && [0, found.vote].contains(&promised.vote);
                if !vote_kept || found.last < promised.last {
                    return Err(format!("n{} had promised {promised:?} and starts with {found:?}", machine + 1));
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
