//! Of a service that runs once never two copies run, at any moment of the one true time.
//!
//! `quorate-lease`: why no two hold a lease. Here are the machines' own clocks, and processes that outlive their
//! server.

use super::Invariant;
use crate::agent::Single;
use crate::seen::Seen;
use quorate_model::id::ServiceName;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct OneHolder {
    running: BTreeMap<usize, Vec<Single>>,
    /// The highest epoch that ran, and where.
    last: BTreeMap<ServiceName, (u64, usize)>,
    /// How often something ran on another machine than before.
    moved: u64,
}

impl OneHolder {
    fn other<'a>(&'a self, machine: usize, single: &'a Single) -> Option<(usize, &'a Single)> {
        let all = self.running.iter().flat_map(|(at, running)| running.iter().map(move |other| (*at, other)));
        all.filter(|(_, other)| other.service == single.service)
            .find(|(at, other)| *at != machine || other.replica != single.replica)
    }
}

impl Invariant for OneHolder {
    fn name(&self) -> &'static str {
        "one_holder"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Singles { machine, running } = seen else { return Ok(()) };
        self.running.insert(*machine, running.to_vec());
        for single in *running {
            if let Some((at, other)) = self.other(*machine, single) {
                return Err(format!(
                    "{} runs twice: epoch {} on n{} and epoch {} on n{}",
                    single.service,
                    single.epoch,
                    machine + 1,
                    other.epoch,
                    at + 1
                ));
            }
            let last = self.last.entry(single.service.clone()).or_insert((single.epoch, *machine));
            if single.epoch > last.0 {
                self.moved += u64::from(last.1 != *machine);
                *last = (single.epoch, *machine);
            }
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.moved
    }
}
