//! Which entries the log holds, and their terms.

use quorate_model::id::{LogIndex, Term};

/// The retained entries as runs of equal terms.
///
/// # Invariants
/// - `before.0 <= last`; runs begin within `before.0 + 1 ..= last`, the first at its beginning.
/// - Runs grow in index, neighbours differ in term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) before: (LogIndex, Term),
    pub(super) last: LogIndex,
    pub(super) runs: Vec<(LogIndex, Term)>,
}

impl Extent {
    pub(super) fn empty_after(index: LogIndex, term: Term) -> Extent {
        Extent { before: (index, term), last: index, runs: Vec::new() }
    }

    pub(super) fn first(&self) -> LogIndex {
        self.before.0.next()
    }

    /// Adds an entry behind, or in place of, entries that are here.
    pub(super) fn append(&mut self, index: LogIndex, term: Term) {
        if index <= self.last {
            self.truncate(index);
        }
        if self.runs.last().is_none_or(|&(_, newest)| newest != term) {
            self.runs.push((index, term));
        }
        self.last = index;
    }

    /// Forgets the entries from `from` on.
    pub(super) fn truncate(&mut self, from: LogIndex) {
        while self.runs.pop_if(|&mut (start, _)| start >= from).is_some() {}
        self.last = self.last.min(LogIndex(from.0 - 1));
    }

    /// Forgets the entries before `first`, which is at most one behind the last.
    pub(super) fn purge(&mut self, first: LogIndex) {
        let index = LogIndex(first.0 - 1);
        self.before = (index, self.term(index));
        let ended = self.runs.iter().skip(1).take_while(|&&(start, _)| start <= first).count();
        self.runs.drain(..ended);
        if first > self.last {
            self.runs.clear();
        } else {
            self.runs[0].0 = first;
        }
    }

    /// The term of an entry within `before.0 ..= last`.
    pub(super) fn term(&self, index: LogIndex) -> Term {
        let runs = self.runs.partition_point(|&(start, _)| start <= index);
        runs.checked_sub(1).map_or(self.before.1, |run| self.runs[run].1)
    }
}
