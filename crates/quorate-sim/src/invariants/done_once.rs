//! A request is done once, however often it is sent, and an entry is done once by each node's
//! database, however often it starts.
//!
//! The second half of the promise: "exactly once".

use super::Invariant;
use crate::seen::Seen;
use quorate_model::id::{LogIndex, RequestId};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct DoneOnce {
    done: BTreeMap<RequestId, LogIndex>,
    /// Entries that were answered from memory instead of being done.
    repeated: u64,
}

impl Invariant for DoneOnce {
    fn name(&self) -> &'static str {
        "done_once"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Applied { machine, entry } = seen else { return Ok(()) };
        let Some(id) = entry.request_id else { return Ok(()) };
        if entry.repeated {
            self.repeated += 1;
            return Ok(());
        }
        let first = *self.done.entry(id).or_insert(entry.index);
        if first == entry.index {
            return Ok(());
        }
        Err(format!("request {id} was done at {first} and again at {} (on n{})", entry.index, machine + 1))
    }

    fn premises(&self) -> u64 {
        self.repeated
    }
}
