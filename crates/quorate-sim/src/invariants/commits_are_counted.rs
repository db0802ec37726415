//! What anybody calls committed is durable on a majority of the voters, and a leader calls nothing committed but up
//! to an entry of its own term.
//!
//! Ongaro, Ousterhout, 2014, §5.3 and §5.4.2 (figure 8 shows what happens otherwise). Violations would
//! show in the end as committed entries that change; here they show at once.

use super::Invariant;
use super::voters_of_the_log::History;
use crate::machine::Identity;
use crate::seen::{Durably, Seen};
use quorate_model::id::{LogIndex, NodeId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of one machine's log.
#[derive(Debug, Default)]
struct Known {
    /// Terms as consensus wants them written; the first is of index 1.
    wanted: Terms,
    written: Terms,
    synced: Terms,
    /// The first index at which what is written and what is synced may differ.
    differs: Option<LogIndex>,
    /// A snapshot stands for everything up to here.
    snapshot: LogIndex,
    /// The term in which it leads, and up to where that leader had committed when it was last seen.
    leads: Option<(Term, LogIndex)>,
}

#[derive(Debug, Default, Clone)]
struct Terms(Vec<Term>);

impl Terms {
    /// An entry supersedes all behind it.
    fn set(&mut self, index: LogIndex, term: Term) {
        self.0.resize(position(index), Term(0));
        self.0.push(term);
    }

    fn get(&self, index: LogIndex) -> Option<Term> {
        self.0.get(position(index)).copied()
    }
}

fn position(index: LogIndex) -> usize {
    usize::try_from(index.0 - 1).expect("it is in memory")
}

#[derive(Debug)]
pub(super) struct CommitsAreCounted {
    machines: BTreeMap<usize, Known>,
    ids: Vec<NodeId>,
    history: History,
    /// Everything up to here was looked at.
    last: LogIndex,
}

impl CommitsAreCounted {
    pub(super) fn new(identity: &Identity) -> CommitsAreCounted {
        let (ids, history) = (identity.machines.clone(), History::new(identity));
        CommitsAreCounted { machines: BTreeMap::new(), ids, history, last: LogIndex(0) }
    }

    fn known(&mut self, machine: usize) -> &mut Known {
        self.machines.entry(machine).or_default()
    }

    fn holders(&self, index: LogIndex, term: Term) -> BTreeSet<NodeId> {
        let holds = |known: &Known| index <= known.snapshot || known.synced.get(index) == Some(term);
        self.machines.iter().filter(|(_, known)| holds(known)).map(|(n, _)| self.ids[*n]).collect()
    }
}

impl Invariant for CommitsAreCounted {
    fn name(&self) -> &'static str {
        "commits_are_counted"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Started { machine, found, runs, before, .. } => {
                let known = self.known(*machine);
                known.leads = None;
                known.differs = None;
                known.synced.0.truncate(position(before.next()));
                for (position, (first, term)) in runs.iter().enumerate() {
                    let end = runs.get(position + 1).map_or(found.last + 1, |(next, _)| next.0);
                    (first.0..end).for_each(|index| known.synced.set(LogIndex(index), *term));
                }
                known.written = known.synced.clone();
                known.wanted = known.synced.clone();
            }
            Seen::Appends { machine, append } => {
                let known = self.known(*machine);
                append.entries.iter().for_each(|entry| known.wanted.set(entry.index, entry.term));
            }
            Seen::Written { machine, entries } => {
                let known = self.known(*machine);
                for entry in *entries {
                    known.written.set(entry.index, entry.term);
                    known.differs = Some(known.differs.map_or(entry.index, |index| index.min(entry.index)));
                }
            }
            Seen::CalledDurable { machine, what: Durably::Log, .. } => {
                let known = self.known(*machine);
                if let Some(from) = known.differs.take() {
                    known.synced.0.truncate(position(from));
                    let same = known.synced.0.len();
                    known.synced.0.extend_from_slice(&known.written.0[same..]);
                }
            }
            Seen::Installed { machine, index } => {
                let known = self.known(*machine);
                known.snapshot = known.snapshot.max(*index);
            }
            Seen::Committed { machine, entries } => {
                for entry in entries.iter().filter(|entry| entry.index > self.last) {
                    let holders = self.holders(entry.index, entry.term);
                    let mut counted = self.history.in_force_at(entry.index);
                    if !counted.any(|configuration| configuration.is_majority(&holders)) {
                        let (n, index, voters) = (machine + 1, entry.index, self.history.at(entry.index));
                        return Err(format!("n{n} calls {index} committed; {holders:?} hold it of {voters:?}"));
                    }
                }
                self.history.note(seen);
                self.last = entries.last().map_or(self.last, |entry| self.last.max(entry.index));
            }
            Seen::Turned { machine, node } => {
                let known = self.known(*machine);
                let now = (node.term(), node.committed());
                let before = std::mem::replace(&mut known.leads, node.leads().then_some(now));
                if let Some((term, committed)) = before.filter(|(term, committed)| *term == now.0 && *committed < now.1)
                    && node.leads()
                    && let Some(of) = known.wanted.get(now.1)
                    && of != term
                {
                    let (n, index) = (machine + 1, now.1);
                    return Err(format!("n{n} leads term {term} and commits {index} of term {of} (from {committed})"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.last.0
    }
}
