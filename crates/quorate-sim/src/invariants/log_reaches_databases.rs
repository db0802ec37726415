//! What is missing from the log is durable in the databases.
//!
//! `quorate_store::storage`: the invariants of the module. Violations would show at a start after a power
//! cut, as a gap between the two; here they show at once.

use super::Invariant;
use crate::seen::Seen;

#[derive(Debug, Default)]
pub(super) struct LogReachesDatabases {
    shortened: u64,
}

impl Invariant for LogReachesDatabases {
    fn name(&self) -> &'static str {
        "log_reaches_databases"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Shortened { machine, first, durable } = seen else { return Ok(()) };
        self.shortened += 1;
        if *first <= durable.next() {
            return Ok(());
        }
        Err(format!("n{}'s log begins at {first} and its databases are durable up to {durable}", machine + 1))
    }

    fn premises(&self) -> u64 {
        self.shortened
    }
}
