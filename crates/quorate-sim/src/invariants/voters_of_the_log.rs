//! What is in force on a node is the configuration of the log at the entry up to which it gave out
//! committed entries, its databases keep the same at a start, and consensus counts nobody else.
//!
//! `quorate_node::configuration`: the module's promise. A snapshot brings the configuration of exactly
//! the entry that it names.

use super::Invariant;
use crate::machine::Identity;
use crate::seen::Seen;
use quorate_model::id::LogIndex;
use quorate_node::Configuration;
use quorate_node::consensus::Content;
use std::collections::BTreeMap;

/// The configurations that the log went through, by the entry that brought each.
#[derive(Debug)]
pub(super) struct History(BTreeMap<LogIndex, Configuration>);

impl History {
    pub(super) fn new(identity: &Identity) -> History {
        History([(LogIndex(0), Configuration::of(identity.voters.clone()))].into())
    }

    /// Takes note of committed entries. Returns those that are new.
    pub(super) fn note(&mut self, seen: &Seen<'_>) -> Vec<LogIndex> {
        let Seen::Committed { entries, .. } = seen else { return Vec::new() };
        let mut new = Vec::new();
        for entry in *entries {
            if let Content::Configuration(configuration) = &entry.content
                && self.0.last_key_value().is_none_or(|(last, _)| *last < entry.index)
            {
                self.0.insert(entry.index, configuration.clone());
                new.push(entry.index);
            }
        }
        new
    }

    /// As of this entry.
    pub(super) fn at(&self, index: LogIndex) -> &Configuration {
        self.0.range(..=index).next_back().map(|(_, configuration)| configuration).expect("there is one at 0")
    }

    /// The one before that of this entry.
    pub(super) fn before(&self, index: LogIndex) -> &Configuration {
        self.0.range(..index).next_back().map_or(&self.0[&LogIndex(0)], |(_, configuration)| configuration)
    }

    /// With which an entry here may have been counted: one change at most is on its way at a time, so
    /// the last but one is the oldest that a leader can still have had.
    pub(super) fn in_force_at(&self, index: LogIndex) -> impl Iterator<Item = &Configuration> {
        let oldest = self.0.range(..index).rev().nth(1).map_or(LogIndex(0), |(at, _)| *at);
        self.0.range(oldest..).map(|(_, configuration)| configuration)
    }

    fn begins_unknown(&self, index: LogIndex) -> bool {
        self.0.range(..=index).nth(1).is_none()
    }
}

#[derive(Debug)]
pub(super) struct VotersOfTheLog {
    history: History,
    genesis: Vec<bool>,
    /// Up to where each machine has given out entries, put a snapshot in force, or had a configuration
    /// in its database when it started.
    given_out: BTreeMap<usize, LogIndex>,
    /// What each machine had in force when it was last looked at.
    configured: BTreeMap<usize, Configuration>,
    changes_seen: u64,
}

impl VotersOfTheLog {
    pub(super) fn new(identity: &Identity) -> VotersOfTheLog {
        let genesis = identity.machines.iter().map(|machine| identity.voters.contains(machine)).collect();
        let history = History::new(identity);
        VotersOfTheLog { history, genesis, given_out: BTreeMap::new(), configured: BTreeMap::new(), changes_seen: 0 }
    }
}

impl Invariant for VotersOfTheLog {
    fn name(&self) -> &'static str {
        "voters_are_of_the_log"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.history.note(seen);
        match seen {
            Seen::Started { machine, configured, .. } => {
                self.given_out.insert(*machine, *configured);
                self.configured.remove(machine);
            }
            Seen::Installs { machine, configured } => {
                self.given_out.insert(*machine, *configured);
            }
            Seen::Committed { machine, entries } => {
                if let Some(last) = entries.last() {
                    let here = self.given_out.entry(*machine).or_default();
                    *here = last.index.max(*here);
                }
            }
            Seen::Configured { machine, node } => {
                let (n, configuration) = (machine + 1, node.configuration());
                let known = self.configured.entry(*machine).or_default();
                if known != configuration {
                    known.clone_from(configuration);
                    if !node.counts_as_configured() {
                        return Err(format!("n{n} has {configuration:?} in force and counts others"));
                    }
                }
                let at = self.given_out.get(machine).copied().unwrap_or_default();
                let right = self.history.at(at);
                let told = self.genesis[*machine] || !self.history.begins_unknown(at) || configuration.is_known();
                self.changes_seen += u64::from(right.is_joint());
                if told && configuration != right {
                    return Err(format!("n{n} has {configuration:?} in force at {at}, where the log has {right:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.changes_seen
    }
}
