//! An entry has one outcome, however it was batched and whichever node ran it.
//!
//! research: SQLite's deferred constraints and RAISE(ROLLBACK) reach beyond their statement.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::entry::Outcome;
use quorate_model::id::LogIndex;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct BatchesDoNotMatter {
    outcomes: BTreeMap<LogIndex, (usize, Outcome)>,
    compared: u64,
}

impl Invariant for BatchesDoNotMatter {
    fn name(&self) -> &'static str {
        "batches_do_not_matter"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Applied { machine, entry } = seen else { return Ok(()) };
        if entry.repeated {
            return Ok(());
        }
        let (first, known) = self.outcomes.entry(entry.index).or_insert_with(|| (*machine, entry.outcome.clone()));
        if *known != entry.outcome {
            return Err(format!(
                "entry {} ended as {:?} on n{} and as {:?} on n{}",
                entry.index,
                known,
                *first + 1,
                entry.outcome,
                machine + 1
            ));
        }
        self.compared += u64::from(*first != *machine);
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.compared
    }
}
