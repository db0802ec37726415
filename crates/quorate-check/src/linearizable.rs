//! Linearizability by search, for histories without indexes.
//!
//! Registers are independent, so each key is searched alone. A configuration is the set of
//! operations that have their place in the order already, and the register's content after them.
//! From it an operation may come next if it was asked before the first answer among those that have
//! no place yet. A configuration that was seen before is not entered again, which is what makes the
//! search fast (Lowe). Three more facts keep it small, and none of them loses an order:
//!
//! - A read that saw the content, and a compare-and-set that rightly found something else, can always
//!   come at once: whatever order there is, moving it to the front of the rest leaves an order. (A
//!   write of what is there already cannot: it may be needed after another.)
//! - A write with an unknown end may come at any time from its question on, or never. It is only
//!   worth its place right before something that needs it: a read or a compare-and-set of what it
//!   leaves, or a compare-and-set that was told "mismatch" and would match. Else it might as well
//!   have come never, or later.
//! - Of two unknown writes that do the same, the one asked first comes first.
//!
//! A configuration is stored as the number of operations up to the first without a place, the few
//! later ones that have one, and the unknown ones used. So a moment at which nothing was under way
//! cuts a history by itself, and a long history costs no more memory per configuration than a short one.
//!
//! # What it loses
//! Nothing, within its budget. Unknown reads and refused operations say nothing and are left out.
//!
//! # Sources
//! Wing, Gong: Testing and Verifying Concurrent Objects, 1993. Lowe: Testing for Linearizability,
//! 2017. Horn, Kroening: Faster Linearizability Checking via P-compositionality, 2015. The treatment
//! of unknown writes is ours.

use crate::history::{End, Moment, Operation, Stop, Verdict, check_times, verdict};
use crate::register::{Answer, Call, Content, Key};
use std::collections::{BTreeMap, HashSet};

/// How long the search may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Configurations to enter, for each key. Default 1,000,000; a history that holds needs about one
    /// per write.
    pub steps_per_key: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { steps_per_key: 1_000_000 }
    }
}

/// Is there an order of the operations, each between its question and its answer, that explains
/// every answer?
///
/// A violation (`not linearizable`) names the operation at whose answer the shortest prefix of the
/// key's history ends that has no order, and before it those that were under way at the same time or
/// had ended last. Premises are the answers of reads and compare-and-sets of keys that somebody writes.
#[must_use]
pub fn check(history: &[Operation<Call, Answer>], budget: Budget) -> Verdict {
    verdict(run(history, budget))
}

fn run(history: &[Operation<Call, Answer>], budget: Budget) -> Result<u64, Stop> {
    check_times(history)?;
    let mut keys: BTreeMap<Key, Search> = BTreeMap::new();
    for (position, operation) in history.iter().enumerate() {
        let call = operation.call;
        match operation.end {
            End::Answered { answer, .. } if !call.can_answer(answer) => {
                return Err(Stop::Unknown(format!("operation {position}: {call:?} is never answered {answer:?}")));
            }
            End::Answered { at, answer } => keys.entry(call.key()).or_default().ended.push(Ended {
                position,
                asked: operation.asked,
                at,
                call,
                answer,
            }),
            End::Unknown if !call.is_read() => {
                let unknown = Unknown { asked: operation.asked, position, call, twin: None };
                keys.entry(call.key()).or_default().unknown.push(unknown);
            }
            End::Unknown | End::Refused { .. } => {}
        }
    }
    let mut premises = 0;
    let mut gave_up = None;
    for (key, mut search) in keys {
        search.prepare();
        match search.run(budget.steps_per_key) {
            Found::Order => premises += search.premises(),
            Found::NoOrder { at } => return Err(search.violation(key, at)),
            // Another key may still show a violation, which says more.
            Found::BudgetExceeded => gave_up = gave_up.or(Some(key)),
        }
    }
    match gave_up {
        None => Ok(premises),
        Some(key) => Err(Stop::Unknown(format!(
            "no verdict on register {} within {} configurations",
            key.0, budget.steps_per_key
        ))),
    }
}

/// An operation that must have a place.
#[derive(Debug, Clone, Copy)]
struct Ended {
    position: usize,
    asked: Moment,
    at: Moment,
    call: Call,
    answer: Answer,
}

/// A write that may have one.
#[derive(Debug)]
struct Unknown {
    asked: Moment,
    position: usize,
    call: Call,
    /// The last one before it that does the same.
    twin: Option<usize>,
}

enum Found {
    Order,
    /// `at`: the operation (in `ended`) at whose answer the prefix ends.
    NoOrder {
        at: usize,
    },
    BudgetExceeded,
}

/// The history of one key.
#[derive(Debug, Default)]
struct Search {
    /// By the moment of their questions.
    ended: Vec<Ended>,
    /// Likewise.
    unknown: Vec<Unknown>,
}

/// Which operations have a place, and what the register holds after them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Configuration {
    /// All of `ended` before this one have a place, this one has none.
    first: usize,
    /// Those after `first` that have one: bit `i % 64` of word `i / 64` is for `first + 1 + i`. The
    /// last word is never 0, so equal sets are equal here.
    later: Vec<u64>,
    /// Those of `unknown` that have one, in rising order.
    used: Vec<u32>,
    content: Content,
}

impl Configuration {
    fn has(&self, operation: usize) -> bool {
        operation < self.first
            || operation > self.first && {
                let bit = operation - self.first - 1;
                self.later.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
            }
    }

    fn place(&mut self, operation: usize) {
        if operation > self.first {
            let bit = operation - self.first - 1;
            if self.later.len() <= bit / 64 {
                self.later.resize(bit / 64 + 1, 0);
            }
            self.later[bit / 64] |= 1 << (bit % 64);
            return;
        }
        // The first without a place moves past all that follow it without a hole.
        let run: usize = {
            let whole = self.later.iter().take_while(|word| **word == u64::MAX).count();
            whole * 64 + self.later.get(whole).map_or(0, |word| word.trailing_ones() as usize)
        };
        self.first += 1 + run;
        self.shift(run + 1);
    }

    fn shift(&mut self, bits: usize) {
        let (words, bits) = (bits / 64, bits % 64);
        self.later.drain(..words.min(self.later.len()));
        if bits > 0 {
            for word in 0..self.later.len() {
                let next = self.later.get(word + 1).copied().unwrap_or(0);
                self.later[word] = self.later[word] >> bits | next << (64 - bits);
            }
        }
        while self.later.last() == Some(&0) {
            self.later.pop();
        }
    }

    fn use_unknown(&mut self, unknown: usize) {
        let unknown = u32::try_from(unknown).expect("a history of one key has fewer than 2^32 operations");
        let at = self.used.partition_point(|used| *used < unknown);
        self.used.insert(at, unknown);
    }

    fn has_used(&self, unknown: usize) -> bool {
        self.used.binary_search_by(|used| (*used as usize).cmp(&unknown)).is_ok()
    }
}

/// What may come next in a configuration.
struct Next {
    /// Operations of `ended` without a place, each asked before the first answer among them.
    open: Vec<usize>,
    /// The one with that answer; `None` if all have a place.
    blocking: Option<usize>,
}

impl Search {
    fn prepare(&mut self) {
        self.ended.sort_by_key(|operation| (operation.asked, operation.at, operation.position));
        self.unknown.sort_by_key(|operation| (operation.asked, operation.position));
        let mut latest = BTreeMap::new();
        for (number, unknown) in self.unknown.iter_mut().enumerate() {
            unknown.twin = latest.insert(unknown.call, number);
        }
    }

    fn premises(&self) -> u64 {
        let writes = !self.unknown.is_empty() || self.ended.iter().any(|operation| !operation.call.is_read());
        let tells = |operation: &&Ended| matches!(operation.call, Call::Read { .. } | Call::Cas { .. });
        if writes { self.ended.iter().filter(tells).count() as u64 } else { 0 }
    }

    fn run(&self, steps: u64) -> Found {
        let mut seen: HashSet<Configuration> = HashSet::new();
        let mut stack = vec![Configuration::default()];
        let mut furthest: Option<usize> = None;
        let mut taken = 0;
        while let Some(mut configuration) = stack.pop() {
            let next = self.settle(&mut configuration);
            let Some(blocking) = next.blocking else { return Found::Order };
            if furthest.is_none_or(|known| self.answered(known) < self.answered(blocking)) {
                furthest = Some(blocking);
            }
            if seen.contains(&configuration) {
                continue;
            }
            if taken == steps {
                return Found::BudgetExceeded;
            }
            taken += 1;
            // The last one pushed is tried first: an ended one before an unknown one, and of those
            // the one that was asked first, which is most often right.
            self.push_unknown(&configuration, &next, &mut stack);
            for &operation in next.open.iter().rev() {
                let (content, answer) = self.ended[operation].call.run(configuration.content);
                if answer == self.ended[operation].answer {
                    let mut after = configuration.clone();
                    after.place(operation);
                    after.content = content;
                    stack.push(after);
                }
            }
            seen.insert(configuration);
        }
        match furthest {
            Some(at) => Found::NoOrder { at },
            None => Found::Order,
        }
    }

    /// The order of answers; equal moments by position.
    fn answered(&self, operation: usize) -> (Moment, usize) {
        (self.ended[operation].at, self.ended[operation].position)
    }

    /// Gives a place to all that changes nothing and is explained; then says what may come next.
    fn settle(&self, configuration: &mut Configuration) -> Next {
        loop {
            let mut next = self.next(configuration);
            let before = next.open.len();
            next.open.retain(|&operation| {
                let Ended { call, answer, .. } = self.ended[operation];
                let changes_nothing = call.is_read() || answer == Answer::Mismatch;
                let explained = changes_nothing && call.run(configuration.content).1 == answer;
                if explained {
                    configuration.place(operation);
                }
                !explained
            });
            if next.open.len() == before {
                return next;
            }
        }
    }

    fn next(&self, configuration: &Configuration) -> Next {
        // In the order of questions, so an answer found later is never before a question found earlier.
        let mut next = Next { open: Vec::new(), blocking: None };
        for operation in configuration.first..self.ended.len() {
            if configuration.has(operation) {
                continue;
            }
            if next.blocking.is_some_and(|blocking| self.ended[blocking].at < self.ended[operation].asked) {
                break;
            }
            next.open.push(operation);
            if next.blocking.is_none_or(|blocking| self.answered(operation) < self.answered(blocking)) {
                next.blocking = Some(operation);
            }
        }
        next
    }

    /// Unknown writes that something open needs.
    fn push_unknown(&self, configuration: &Configuration, next: &Next, stack: &mut Vec<Configuration>) {
        let Some(blocking) = next.blocking else { return };
        let until = self.ended[blocking].at;
        let available: Vec<usize> = self
            .unknown
            .iter()
            .enumerate()
            .take_while(|(_, unknown)| unknown.asked <= until)
            .filter(|(position, unknown)| {
                !configuration.has_used(*position) && unknown.twin.is_none_or(|twin| configuration.has_used(twin))
            })
            .map(|(position, _)| position)
            .collect();
        if available.is_empty() {
            return;
        }
        let mut wanted: Vec<Content> = Vec::new();
        let mut other_wanted = false;
        for &operation in &next.open {
            match (self.ended[operation].call, self.ended[operation].answer) {
                (Call::Read { .. }, Answer::Read(content)) => wanted.push(content),
                (Call::Cas { from, .. }, Answer::Done) => wanted.push(from),
                (Call::Cas { from, .. }, Answer::Mismatch) => other_wanted |= from == configuration.content,
                _ => {}
            }
        }
        wanted.extend(available.iter().filter_map(|&unknown| match self.unknown[unknown].call {
            Call::Cas { from, .. } => Some(from),
            Call::Read { .. } | Call::Write { .. } | Call::Delete { .. } => None,
        }));
        for &unknown in available.iter().rev() {
            let (content, _) = self.unknown[unknown].call.run(configuration.content);
            if content != configuration.content && (other_wanted || wanted.contains(&content)) {
                let mut after = configuration.clone();
                after.use_unknown(unknown);
                after.content = content;
                stack.push(after);
            }
        }
    }

    fn violation(&self, key: Key, at: usize) -> Stop {
        let last = &self.ended[at];
        let mut before: Vec<&Ended> = self.ended.iter().filter(|other| other.asked <= last.at).collect();
        before.retain(|other| other.position != last.position);
        before.sort_by_key(|other| other.at);
        // Those that overlap it, and enough of those before it to see what the register should hold.
        let overlapping = before.partition_point(|other| other.at < last.asked);
        const SHOWN_BEFORE: usize = 4;
        let mut operations: Vec<usize> =
            before[overlapping.saturating_sub(SHOWN_BEFORE)..].iter().map(|other| other.position).collect();
        operations.push(last.position);
        let what = format!(
            "not linearizable: register {} has no order of its operations up to {} ns, when operation {} ({:?}) was answered {:?}",
            key.0, last.at.0, last.position, last.call, last.answer
        );
        Stop::violated(what, operations)
    }
}
