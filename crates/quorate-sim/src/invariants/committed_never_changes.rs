//! What is committed never changes: every node gives out the same entry at an index, for ever.
//!
//! Ongaro, Ousterhout, 2014, figure 3: State Machine Safety.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::entry::{Envelope, Outcome};
use quorate_model::id::{LogIndex, RequestId, Term};
use quorate_node::consensus::Content;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// The one log that all nodes must agree on, as far as any of them has called it committed.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    entries: Vec<(Term, u64)>,
    /// The first entry of each request id, by what the entries say.
    pub requests: BTreeMap<RequestId, LogIndex>,
    /// What came of an entry that was done.
    pub outcomes: BTreeMap<LogIndex, Outcome>,
    compared: u64,
}

impl Committed {
    /// The highest index that anybody has called committed.
    pub(crate) fn last(&self) -> LogIndex {
        LogIndex(self.entries.len() as u64)
    }
}

impl Invariant for Committed {
    fn name(&self) -> &'static str {
        "committed_never_changes"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        if let Seen::Applied { entry, .. } = seen
            && !entry.repeated
        {
            self.outcomes.entry(entry.index).or_insert_with(|| entry.outcome.clone());
        }
        let Seen::Committed { machine, entries } = seen else { return Ok(()) };
        for entry in *entries {
            let digest = match &entry.content {
                Content::Data(data) => xxh3_64(data),
                Content::Configuration(configuration) => !xxh3_64(&configuration.to_bytes()),
            };
            let here = (entry.term, digest);
            let position = usize::try_from(entry.index.0 - 1).expect("it is in memory");
            match self.entries.get(position) {
                Some(known) if *known == here => self.compared += 1,
                Some((term, _)) => {
                    return Err(format!(
                        "n{} has another entry at {} (of term {}) than was committed there (of term {term})",
                        machine + 1,
                        entry.index,
                        entry.term
                    ));
                }
                None if position == self.entries.len() => {
                    self.entries.push(here);
                    let envelope = match &entry.content {
                        Content::Data(data) => Envelope::read(data.clone()).ok(),
                        Content::Configuration(_) => None,
                    };
                    if let Some(id) = envelope.and_then(|envelope| envelope.request_id()) {
                        self.requests.entry(id).or_insert(entry.index);
                    }
                }
                None => {
                    return Err(format!(
                        "n{} gives out {} before anybody {}",
                        machine + 1,
                        entry.index,
                        self.last().next()
                    ));
                }
            }
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.compared
    }
}
