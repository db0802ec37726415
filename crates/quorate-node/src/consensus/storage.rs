//! What the consensus library may read of the log, from memory and without waiting.
//!
//! The library asks synchronously or dies (traps A2 d). So everything above the applied index is
//! kept here, together with a window of recent entries for followers that are a little behind and
//! the term of every retained index (as runs). Older entries are fetched by the shell; the library
//! offers this only for sending, and only there an older entry is ever asked for.
//!
//! # Invariants
//! - `window` holds consecutive indexes and ends at the log's last one.
//! - Every entry above `applied` is in `window`.
//! - `terms` covers `before.0 ..= last`.

use super::{EntryKind, LogEntry};
use quorate_model::id::{LogIndex, Term};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::VecDeque;

/// Applied entries are dropped from memory beyond this many bytes. A follower that missed more
/// than this is served from the disk.
const WINDOW_BYTES: usize = 8 << 20;

/// What an entry costs in memory besides its data.
const ENTRY_OVERHEAD: usize = 96;

/// The log as the library sees it.
#[derive(Debug)]
pub(super) struct Window {
    hard_state: HardState,
    conf_state: ConfState,
    /// The entry that brought it. Until that is applied, the database knows only the one before.
    configured_at: u64,
    /// Index and term just before the first retained entry.
    before: (u64, u64),
    /// First index of each run of equal terms, from `before` on.
    terms: Vec<(u64, u64)>,
    window: VecDeque<Entry>,
    window_bytes: usize,
    /// Bytes of entries that are not applied yet.
    applied: u64,
    /// Entries that the shell fetched, for exactly one retry of the call that missed them.
    fetched: Vec<Entry>,
    wanted: RefCell<Vec<Wanted>>,
}

/// Entries that the library wants and memory does not hold.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) from: u64,
    pub(super) to_exclusive: u64,
    pub(super) context: GetEntriesContext,
}

impl Window {
    /// The log as it was recovered: `recent` are its entries above `applied`.
    pub(super) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        before: (LogIndex, Term),
        runs: &[(LogIndex, Term)],
        recent: Vec<Entry>,
        applied: LogIndex,
    ) -> Window {
        let mut terms = vec![(before.0.0, before.1.0)];
        terms.extend(runs.iter().map(|(index, term)| (index.0, term.0)));
        let window_bytes = recent.iter().map(cost).sum();
        Window {
            hard_state,
            conf_state,
            configured_at: 0,
            before: (before.0.0, before.1.0),
            terms,
            window: recent.into(),
            window_bytes,
            applied: applied.0,
            fetched: Vec::new(),
            wanted: RefCell::new(Vec::new()),
        }
    }

    /// Takes over entries that are on their way to the disk. They supersede what stood at their
    /// indexes before.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.applied, "an applied entry is never replaced");
        while self.window.back().is_some_and(|last| last.index >= first.index) {
            let gone = self.window.pop_back().expect("just looked");
            self.window_bytes -= cost(&gone);
        }
        while self.terms.len() > 1 && self.terms.last().is_some_and(|(index, _)| *index >= first.index) {
            self.terms.pop();
        }
        if let Some(last) = self.window.back() {
            assert_eq!(last.index + 1, first.index, "entries follow each other");
        }
        for entry in entries {
            if self.terms.last().is_none_or(|(_, term)| *term != entry.term) {
                self.terms.push((entry.index, entry.term));
            }
            self.window_bytes += cost(entry);
            self.window.push_back(entry.clone());
        }
    }

    /// Entries up to `index` are applied and may leave memory.
    pub(super) fn applied_to(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        while self.window_bytes > WINDOW_BYTES
            && self.window.len() > 1
            && self.window.front().is_some_and(|entry| entry.index <= self.applied)
        {
            let gone = self.window.pop_front().expect("just looked");
            self.window_bytes -= cost(&gone);
        }
    }

    /// Bytes of the entries that are still to be applied.
    pub(super) fn unapplied_bytes(&self) -> usize {
        let Some(first) = self.window.front() else { return 0 };
        let skip = usize::try_from((self.applied + 1).saturating_sub(first.index)).unwrap_or(usize::MAX);
        if self.window_bytes <= WINDOW_BYTES {
            // Cannot be over any limit that is asked about; saves the walk.
            return 0;
        }
        self.window.iter().skip(skip).map(cost).sum()
    }

    /// The disk no longer holds entries before `first`.
    pub(super) fn purged(&mut self, first: u64) {
        if first <= self.before.0 + 1 {
            return;
        }
        let before = first - 1;
        let term = self.term_at(before).expect("only retained entries are purged");
        self.before = (before, term);
        self.terms.retain(|(index, _)| *index > before);
        self.terms.insert(0, self.before);
        // What memory still holds stays readable: the window may begin before the disk does.
    }

    /// The configuration from the entry `index` on, which is handed out for applying.
    pub(super) fn configured(&mut self, index: u64, conf_state: ConfState) {
        self.conf_state = conf_state;
        self.configured_at = index;
    }

    /// A snapshot replaced everything.
    pub(super) fn reset(&mut self, index: u64, term: u64, conf_state: ConfState) {
        self.before = (index, term);
        self.terms = vec![self.before];
        self.window.clear();
        self.window_bytes = 0;
        self.applied = index;
        self.configured(index, conf_state);
    }

    pub(super) fn last(&self) -> u64 {
        self.window.back().map_or(self.last_run_end(), |entry| entry.index)
    }

    fn last_run_end(&self) -> u64 {
        // Without entries in memory the log ends where it was applied to: everything above is kept.
        self.applied.max(self.before.0)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index < self.before.0 || index > self.last() {
            return None;
        }
        let run = self.terms.partition_point(|(first, _)| *first <= index);
        self.terms.get(run.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// What the library missed since the last call.
    pub(super) fn take_wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(self.wanted.get_mut())
    }

    pub(super) fn set_fetched(&mut self, entries: Vec<Entry>) {
        self.fetched = entries;
    }

    fn slice(entries: impl Iterator<Item = Entry>, count: u64, bytes_max: Option<u64>) -> Vec<Entry> {
        let mut out = Vec::new();
        let mut bytes = 0u64;
        for entry in entries.take(usize::try_from(count).unwrap_or(usize::MAX)) {
            bytes += entry.data.len() as u64 + 16;
            if !out.is_empty() && bytes_max.is_some_and(|max| bytes > max) {
                break;
            }
            out.push(entry);
        }
        out
    }
}

fn cost(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_OVERHEAD
}

impl Storage for Window {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state: self.conf_state.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let max_size = max_size.into();
        let in_memory = self.window.front().map_or(u64::MAX, |entry| entry.index);
        if low >= in_memory {
            let skip = usize::try_from(low - in_memory).expect("the window is in memory");
            return Ok(Self::slice(self.window.iter().skip(skip).cloned(), high - low, max_size));
        }
        if low <= self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if let Some(skip) = self.fetched.iter().position(|entry| entry.index == low) {
            return Ok(Self::slice(self.fetched.iter().skip(skip).cloned(), high - low, max_size));
        }
        assert!(context.can_async(), "entries above the applied index are always in memory");
        self.wanted.borrow_mut().push(Wanted { from: low, to_exclusive: high.min(in_memory), context });
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index).ok_or(Error::Store(if index < self.before.0 {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only the position: the shell takes the files when it sends them, and they may be newer.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let term = self.term_at(self.applied);
        // A node that is new in the configuration is not in the one that the database still has.
        let least = request_index.max(self.configured_at).max(1);
        let Some(term) = term.filter(|_| self.applied >= least) else {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied;
        metadata.term = term;
        metadata.set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}

/// An entry of the library from one of the log.
pub(super) fn entry(entry: LogEntry) -> Entry {
    let mut out = Entry { index: entry.index.0, term: entry.term.0, data: entry.data, ..Entry::default() };
    out.set_entry_type(match entry.kind {
        EntryKind::Normal => EntryType::EntryNormal,
        EntryKind::Membership => EntryType::EntryConfChangeV2,
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(range: std::ops::RangeInclusive<u64>, term: u64, bytes: usize) -> Vec<Entry> {
        range.map(|index| Entry { index, term, data: vec![0; bytes].into(), ..Entry::default() }).collect()
    }

    fn window() -> Window {
        Window::new(HardState::default(), ConfState::default(), (LogIndex(0), Term(0)), &[], vec![], LogIndex(0))
    }

    #[test]
    fn a_new_leaders_entries_replace_the_tail_and_its_terms() {
        let mut window = window();
        window.append(&log(1..=3, 1, 8));
        window.append(&log(4..=6, 2, 8));
        window.append(&log(3..=4, 3, 8));
        assert_eq!(window.last_index().unwrap(), 4);
        let terms: Vec<u64> = (0..=4).map(|index| window.term(index).unwrap()).collect();
        assert_eq!(terms, [0, 1, 1, 3, 3]);
        assert!(window.term(5).is_err());
    }

    #[test]
    fn what_is_not_applied_never_leaves_memory() {
        let mut window = window();
        window.append(&log(1..=40, 1, 1 << 20));
        window.applied_to(10);
        let unapplied = window.entries(11, 41, None, GetEntriesContext::empty(false)).unwrap();
        assert_eq!(unapplied.len(), 30);
        assert!(window.unapplied_bytes() >= 30 << 20);
        window.applied_to(40);
        assert_eq!(window.unapplied_bytes(), 0);
        assert!(matches!(
            window.entries(1, 2, None, GetEntriesContext::empty(true)),
            Err(Error::Store(StorageError::LogTemporarilyUnavailable))
        ));
        let wanted = window.take_wanted();
        assert_eq!((wanted[0].from, wanted[0].to_exclusive), (1, 2));
        window.set_fetched(log(1..=2, 1, 8));
        assert_eq!(window.entries(1, 3, None, GetEntriesContext::empty(true)).unwrap().len(), 2);
    }

    #[test]
    fn purged_entries_are_compacted_and_keep_the_term_before_them() {
        let mut window = window();
        window.append(&log(1..=20, 1, 1 << 20));
        window.append(&log(21..=22, 2, 8));
        window.applied_to(22);
        window.purged(15);
        assert_eq!(window.first_index().unwrap(), 15);
        assert_eq!(window.term(14).unwrap(), 1);
        assert_eq!(window.term(22).unwrap(), 2);
        assert!(window.term(13).is_err());
        let answer = window.entries(5, 6, None, GetEntriesContext::empty(true));
        assert!(matches!(answer, Err(Error::Store(StorageError::Compacted))));
    }

    #[test]
    fn a_snapshot_is_the_applied_position() {
        let mut window = window();
        window.append(&log(1..=4, 7, 8));
        assert!(window.snapshot(0, 2).is_err());
        window.applied_to(3);
        let snapshot = window.snapshot(0, 2).unwrap();
        assert_eq!((snapshot.get_metadata().index, snapshot.get_metadata().term), (3, 7));
    }
}
