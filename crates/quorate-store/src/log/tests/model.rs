//! The log against a model that is a list: random work, crashes and failing syncs.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    /// Replaces up to `back` uncommitted entries, adds `count` of `bytes` each; raises the term
    /// first if told so; with a hard state or not.
    Write {
        back: u64,
        count: u64,
        bytes: usize,
        new_term: bool,
        state: bool,
    },
    Sync,
    Purge {
        from_end: u64,
    },
    Reset {
        ahead: u64,
    },
    Crash {
        seed: u64,
    },
    /// Killed, not powered off: what was written stays.
    Kill,
    /// Lets the syncs fail after some; the log stops, then the power goes.
    FailSyncs {
        after: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = prop_oneof![4 => 0..200_usize, 2 => 200..1500_usize, 1 => 9000..20_000_usize];
    prop_oneof![
        12 => (prop_oneof![3 => Just(0), 1 => 0..12_u64], 0..6_u64, bytes, prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(back, count, bytes, new_term, state)| Op::Write { back, count, bytes, new_term, state }),
        6 => Just(Op::Sync),
        1 => (0..20_u64).prop_map(|from_end| Op::Purge { from_end }),
        1 => (0..10_u64).prop_map(|ahead| Op::Reset { ahead }),
        2 => any::<u64>().prop_map(|seed| Op::Crash { seed }),
        1 => Just(Op::Kill),
        1 => (0..6_u64).prop_map(|after| Op::FailSyncs { after }),
    ]
}

/// What the log should hold. Purged entries stay here, the log may keep them.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    hard_state: HardState,
    before: (LogIndex, Term),
    entries: Vec<LogEntry>,
}

impl Model {
    fn last(&self) -> u64 {
        self.before.0.0 + self.entries.len() as u64
    }

    fn term(&self, index: LogIndex) -> Term {
        match (index.0).checked_sub(self.before.0.0 + 1) {
            Some(position) => self.entries[usize::try_from(position).unwrap()].term,
            None => self.before.1,
        }
    }

    fn truncate(&mut self, from: LogIndex) {
        self.entries.retain(|entry| entry.index < from);
    }

    /// Whether a log that was asked to keep `keep_from` and later may hold this.
    fn matches(&self, recovered: &Recovered, found: &[LogEntry], keep_from: LogIndex) -> bool {
        let first = recovered.before.0.next();
        let skip = (first.0 - 1).checked_sub(self.before.0.0).and_then(|skip| usize::try_from(skip).ok());
        recovered.hard_state == self.hard_state
            && recovered.last.0 == self.last()
            && (first <= keep_from || first == self.before.0.next())
            && skip.and_then(|skip| self.entries.get(skip..)) == Some(found)
            && self.term(recovered.before.0) == recovered.before.1
    }
}

struct Run {
    disk: MemoryDisk,
    log: Log<MemoryDisk>,
    /// What a crash may leave: the state of the last sync, then that after each record since.
    possible: Vec<Model>,
    keep_from: LogIndex,
    term: u64,
    written: u64,
    seed: u128,
    crashes: u64,
}

impl Run {
    fn now(&self) -> Model {
        self.possible.last().unwrap().clone()
    }

    fn crash(&mut self, seed: u64) {
        self.crashes += 1;
        self.disk.crash(seed);
    }

    fn reopen(&mut self) {
        // The same seed each second time: UUIDs may repeat, the log must not depend on luck.
        self.seed += 1;
        let options = LogOptions { segment_bytes: SMALL, seed: self.seed / 2 };
        let (mut log, recovered) = match Log::open(self.disk.clone(), identity(), options) {
            Ok(opened) => opened,
            Err(OpenLogError::Io { .. } | OpenLogError::Prepare(WriteLogError::Io { .. })) => {
                self.crash(self.written);
                return self.reopen();
            }
            Err(error) => panic!("{error}"),
        };
        let found = all(&mut log);
        let runs: Vec<_> = found
            .iter()
            .enumerate()
            .filter(|&(at, entry)| at == 0 || found[at - 1].term != entry.term)
            .map(|(_, entry)| (entry.index, entry.term))
            .collect();
        assert_eq!(recovered.terms, runs);
        let state = self.possible.iter().rfind(|state| state.matches(&recovered, &found, self.keep_from));
        let state = state.unwrap_or_else(|| panic!("recovered {recovered:?}\npossible {:?}", self.possible)).clone();
        self.possible = vec![state];
        self.log = log;
    }

    /// After an operation: a stopped log loses power and is opened again.
    fn settle(&mut self, outcome: Result<(), WriteLogError>) {
        match outcome {
            Ok(()) => {}
            Err(WriteLogError::Io { .. }) => {
                assert!(matches!(self.log.sync(), Err(WriteLogError::Stopped)));
                self.crash(self.written);
                self.reopen();
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn write(&mut self, back: u64, count: u64, bytes: usize, new_term: bool, with_state: bool) {
        self.term += u64::from(new_term);
        let mut state = self.now();
        let first = (state.last() + 1).saturating_sub(back).max(state.hard_state.commit + 1);
        let first = if count == 0 { state.last() + 1 } else { first.max(self.log.first().0) };
        let mut append = Append::default();
        if first <= state.last() {
            state.truncate(LogIndex(first));
            self.possible.push(state.clone());
        }
        for index in first..first + count {
            self.written += 1;
            let mut data = self.written.to_le_bytes().to_vec();
            data.resize(bytes.max(8), (self.written % 251) as u8);
            let mut entry = entry(index, self.term, data);
            if self.written.is_multiple_of(7) {
                entry.kind = EntryKind::Membership;
            }
            append.entries.push(entry.clone());
            state.entries.push(entry);
            self.possible.push(state.clone());
        }
        if with_state {
            let commit = state.hard_state.commit.max(state.last().saturating_sub(4));
            state.hard_state = HardState { term: self.term, vote: self.written, commit };
            append.hard_state = Some(state.hard_state);
            self.possible.push(state);
        }
        let outcome = self.log.write(&append);
        self.settle(outcome);
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { back, count, bytes, new_term, state } => self.write(back, count, bytes, new_term, state),
            Op::Sync => {
                let outcome = self.log.sync();
                if outcome.is_ok() {
                    self.possible = vec![self.now()];
                }
                self.settle(outcome);
            }
            Op::Purge { from_end } => {
                let commit = self.now().hard_state.commit;
                self.keep_from = self.keep_from.max(LogIndex(commit.saturating_sub(from_end)));
                let outcome = self.log.purge(self.keep_from);
                self.settle(outcome);
            }
            Op::Reset { ahead } => {
                let mut state = self.now();
                let index = LogIndex(state.hard_state.commit + ahead);
                state.before = (index, Term(self.term));
                state.entries.clear();
                state.hard_state.commit = index.0;
                self.possible.push(state);
                let outcome = self.log.reset(index, Term(self.term));
                if outcome.is_ok() {
                    self.possible = vec![self.now()];
                }
                self.settle(outcome);
            }
            Op::Crash { seed } => {
                self.crash(seed);
                self.reopen();
            }
            Op::Kill => {
                let (now, crashes) = (self.now(), self.crashes);
                self.reopen();
                assert!(self.crashes > crashes || self.now() == now);
            }
            Op::FailSyncs { after } => self.disk.fail_syncs(after),
        }
    }

    fn check(&mut self) {
        let state = self.now();
        assert_eq!(self.log.last().0, state.last());
        let found = all(&mut self.log);
        let skip = self.log.first().0 - 1 - state.before.0.0;
        assert_eq!(found, state.entries[usize::try_from(skip).unwrap()..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_a_list_that_survives(ops in prop::collection::vec(op(), 1..60)) {
        let disk = MemoryDisk::new();
        let (log, _) = Log::open(disk.clone(), identity(), LogOptions { segment_bytes: SMALL, seed: 0 }).unwrap();
        let empty = Model {
            hard_state: HardState::default(),
            before: (LogIndex(0), Term(0)),
            entries: Vec::new(),
        };
        let mut run =
            Run { disk, log, possible: vec![empty], keep_from: LogIndex(1), term: 1, written: 0, seed: 0, crashes: 0 };
        for op in &ops {
            run.step(op);
            run.check();
        }
        // A healthy disk, and one more power cut: whatever happened, the log opens and goes on.
        run.crash(1);
        run.reopen();
        run.write(0, 3, 100, true, true);
        run.step(&Op::Sync);
        run.crash(2);
        run.reopen();
        run.check();
    }
}
