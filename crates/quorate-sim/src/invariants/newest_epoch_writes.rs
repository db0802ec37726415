//! What is written under an epoch of a lease is done exactly while that epoch is the newest that was given.
//!
//! ADR 16. The leases are in one file and the fences in another, and power cuts take from each what they like: what
//! the entries gave is compared with what the writes got.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::command::{Command, Step};
use quorate_model::entry::{Envelope, Outcome, Payload};
use quorate_model::fence::Fence;
use quorate_model::id::{LogIndex, ServiceName};
use quorate_model::state::Change;
use quorate_node::consensus::{CommittedEntry, Content};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct NewestEpochWrites {
    /// Up to here the committed entries were looked through.
    upto: LogIndex,
    /// What committed entries are written under.
    fences: BTreeMap<LogIndex, Fence>,
    /// The epochs that plans give, carried out or not: nobody had an older one any more when they were made.
    given: BTreeMap<ServiceName, BTreeMap<LogIndex, u64>>,
    refused: u64,
}

impl NewestEpochWrites {
    fn look_at(&mut self, entry: &CommittedEntry) -> Option<()> {
        let Content::Data(data) = &entry.content else { return None };
        let envelope = Envelope::read(data.clone()).ok()?;
        match envelope.payload().ok()? {
            Payload::Sql(_) => self.fences.extend(envelope.fence().ok()?.map(|fence| (entry.index, fence))),
            Payload::Command(Command::CarryOut { steps, .. }) => {
                for step in steps {
                    if let Step::Place { service, epoch: Some(epoch), .. } | Step::Promote { service, epoch, .. } = step
                    {
                        self.given.entry(service).or_default().insert(entry.index, epoch);
                    }
                }
            }
            Payload::Noop | Payload::Command(_) => {}
        }
        Some(())
    }

    /// The newest epoch that was given up to here.
    fn newest(&self, service: &ServiceName, upto: LogIndex) -> Option<u64> {
        self.given.get(service)?.range(..=upto).map(|(_, epoch)| *epoch).max()
    }
}

impl Invariant for NewestEpochWrites {
    fn name(&self) -> &'static str {
        "newest_epoch_writes"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Committed { entries, .. } => {
                let upto = self.upto;
                for entry in entries.iter().filter(|entry| entry.index > upto) {
                    self.look_at(entry);
                    self.upto = entry.index;
                }
            }
            Seen::Applied { machine, entry } if !entry.repeated => {
                for change in &entry.changes {
                    if let Change::Lease(lease) = change
                        && self.newest(&lease.name, entry.index).is_none_or(|newest| newest < lease.epoch)
                    {
                        let (name, epoch, index) = (&lease.name, lease.epoch, entry.index);
                        return Err(format!("{name} got epoch {epoch} at {index}, and no plan said so"));
                    }
                }
                let (Some(fence), Outcome::Sql(outcome)) = (self.fences.get(&entry.index), &entry.outcome) else {
                    return Ok(());
                };
                let Some(newest) = self.newest(&fence.service, entry.index) else { return Ok(()) };
                let refused = outcome.refused.is_some();
                if refused == (fence.epoch == newest) {
                    let done = if refused { "is refused" } else { "is done" };
                    return Err(format!(
                        "what is written under {fence} at {} {done} on n{}, and the newest epoch is {newest}",
                        entry.index,
                        machine + 1
                    ));
                }
                self.refused += u64::from(refused);
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.refused
    }
}
