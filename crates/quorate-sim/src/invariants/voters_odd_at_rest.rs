//! When the cluster is at rest, its voters are odd in number, in one set, and every node of the cluster
//! gets the log.
//!
//! Acceptance U4, U8.

use super::Invariant;
use crate::seen::Seen;

#[derive(Debug, Default)]
pub(super) struct VotersOddAtRest {
    rests: u64,
}

impl Invariant for VotersOddAtRest {
    fn name(&self) -> &'static str {
        "voters_odd_at_rest"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Healed { machines } = seen else { return Ok(()) };
        self.rests += 1;
        for held in *machines {
            let (n, configuration) = (held.machine + 1, &held.configuration);
            if configuration.is_joint() || configuration.voters.len().is_multiple_of(2) {
                return Err(format!("n{n} rests with {configuration:?}"));
            }
            if let Some(node) = held.state.nodes.keys().find(|node| !configuration.contains(**node)) {
                return Err(format!("n{n} knows node {node}, which does not get the log"));
            }
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.rests
    }
}
