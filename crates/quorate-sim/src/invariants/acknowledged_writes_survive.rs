//! What a client was told is done is in the log for ever, at that index, and in every database in the
//! end.
//!
//! The promise on the first page. Jepsen's "set" workload looks for the same from outside.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::entry::Kind;
use quorate_model::id::{LogIndex, RequestId};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct AcknowledgedWritesSurvive {
    /// Acknowledged at.
    acknowledged: BTreeMap<RequestId, LogIndex>,
    /// Those of them that leave a row in `log` behind.
    rows: Vec<RequestId>,
    /// The index at which each request was applied first.
    applied: BTreeMap<RequestId, LogIndex>,
}

impl Invariant for AcknowledgedWritesSurvive {
    fn name(&self) -> &'static str {
        "acknowledged_writes_survive"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Applied { entry, machine } => {
                let Some(id) = entry.request_id.filter(|_| !entry.repeated) else { return Ok(()) };
                let first = *self.applied.entry(id).or_insert(entry.index);
                let told = self.acknowledged.get(&id).copied().unwrap_or(first);
                if told != entry.index {
                    let n = machine + 1;
                    return Err(format!("request {id} was acknowledged at {told} and n{n} does it at {}", entry.index));
                }
            }
            Seen::Answered { request, index, proposal } => {
                let told = *self.acknowledged.entry(*request).or_insert(*index);
                let done = self.applied.get(request).copied().unwrap_or(told);
                if done != *index {
                    return Err(format!("request {request} was done at {done} and is acknowledged at {index}"));
                }
                let inserts = b"INSERT INTO log".as_slice();
                if proposal.kind == Kind::Sql && proposal.payload.windows(inserts.len()).any(|part| part == inserts) {
                    self.rows.push(*request);
                }
            }
            Seen::Healed { machines } => {
                for held in *machines {
                    for request in &self.rows {
                        let row = request.0.simple().to_string().to_uppercase();
                        if !held.tables.contains(&row) {
                            return Err(format!(
                                "the row of acknowledged request {request} is not on n{}",
                                held.machine + 1
                            ));
                        }
                    }
                    if let Some((request, index)) = self.acknowledged.iter().find(|(_, index)| **index > held.applied) {
                        return Err(format!(
                            "request {request} was acknowledged at {index} and n{} ends at {}",
                            held.machine + 1,
                            held.applied
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.acknowledged.len() as u64
    }
}
