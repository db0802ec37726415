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
//! - Of two unknown writes that do the same, the one asked first comes first. All that leave what
//!   nobody ever compares with anything do the same. A configuration that used more of them than an
//!   equal one leads nowhere that the other does not.
//! - A value that one write alone leaves is never back once it is gone, so it stays until all who saw
//!   it have their place.
//!
//! A configuration is stored as the number of operations up to the first without a place, the few
//! later ones that have one, and the unknown ones used. So a moment at which nothing was under way
//! cuts a history by itself, and a long history costs no more memory per configuration than a short one.
//!
//! # What it loses
//! Nothing, within its budget. Unknown reads and refused operations say nothing and are left out.
//! What exceeds the budget is a violation among hundreds of unknown writes of one key with many
//! compare-and-sets that found something else: a workload spreads its writes over keys.
//!
//! # Sources
//! Wing, Gong: Testing and Verifying Concurrent Objects, 1993. Lowe: Testing for Linearizability,
//! 2017. Horn, Kroening: Faster Linearizability Checking via P-compositionality, 2015. The treatment
//! of unknown writes is ours.

use crate::history::{End, Moment, Operation, Stop, Verdict, check_times, verdict};
use crate::register::{Answer, Call, Content, Key};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How long the search may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Configurations to enter, for each key. Default 300,000; a history that holds needs about one
    /// per write.
    pub steps_per_key: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { steps_per_key: 300_000 }
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
            Found::NoOrder => return Err(search.violation(key, budget.steps_per_key)),
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
#[derive(Debug, Clone, Copy)]
struct Unknown {
    asked: Moment,
    position: usize,
    call: Call,
    /// The last one before it that does the same.
    twin: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Order,
    NoOrder,
    BudgetExceeded,
}

/// The history of one key.
#[derive(Debug, Default)]
struct Search {
    /// By the moment of their questions.
    ended: Vec<Ended>,
    /// Likewise.
    unknown: Vec<Unknown>,
    /// For each value that one write alone leaves: those of `ended` that found it.
    seen_once: BTreeMap<Content, Vec<usize>>,
}

/// Which operations have a place, and what the register holds after them.
#[derive(Debug, Clone, Default)]
struct Configuration {
    place: Place,
    /// Those of `unknown` that have one, in rising order.
    used: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Place {
    /// All of `ended` before this one have a place, this one has none.
    first: usize,
    /// Those after `first` that have one: bit `i % 64` of word `i / 64` is for `first + 1 + i`. The
    /// last word is never 0, so equal sets are equal here.
    later: Vec<u64>,
    content: Content,
}

impl Place {
    fn has(&self, operation: usize) -> bool {
        operation < self.first
            || operation > self.first && {
                let bit = operation - self.first - 1;
                self.later.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
            }
    }

    fn add(&mut self, operation: usize) {
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
}

impl Configuration {
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
        self.unify_unseen();
        let mut latest = BTreeMap::new();
        for (number, unknown) in self.unknown.iter_mut().enumerate() {
            unknown.twin = latest.insert(unknown.call, number);
        }
        let mut writers: BTreeMap<Content, u64> = BTreeMap::from([(None, 1)]);
        let done =
            self.ended.iter().filter(|operation| operation.answer == Answer::Done).map(|operation| operation.call);
        for content in done.chain(self.unknown.iter().map(|unknown| unknown.call)).filter_map(Call::leaves) {
            *writers.entry(content).or_default() += 1;
        }
        for (number, operation) in self.ended.iter().enumerate() {
            let found = match (operation.call, operation.answer) {
                (Call::Read { .. }, Answer::Read(content)) => content,
                (Call::Cas { from, .. }, Answer::Done) => from,
                _ => continue,
            };
            if writers.get(&found) == Some(&1) {
                self.seen_once.entry(found).or_default().push(number);
            }
        }
    }

    /// Lets all unknown writes do the same that leave what nobody compares with anything.
    fn unify_unseen(&mut self) {
        let compared = |call: Call, answer: Option<Answer>| match (call, answer) {
            (Call::Cas { from, .. }, _) => Some(from),
            (Call::Read { .. }, Some(Answer::Read(content))) => Some(content),
            _ => None,
        };
        let mut all: BTreeSet<Content> =
            self.ended.iter().filter_map(|operation| compared(operation.call, Some(operation.answer))).collect();
        all.extend(self.unknown.iter().filter_map(|unknown| compared(unknown.call, None)));
        let mut common = None;
        for unknown in &mut self.unknown {
            if let Call::Write { value, .. } = unknown.call
                && !all.contains(&Some(value))
            {
                unknown.call = *common.get_or_insert(unknown.call);
            }
        }
    }

    fn premises(&self) -> u64 {
        let writes = !self.unknown.is_empty() || self.ended.iter().any(|operation| !operation.call.is_read());
        let tells = |operation: &&Ended| matches!(operation.call, Call::Read { .. } | Call::Cas { .. });
        if writes { self.ended.iter().filter(tells).count() as u64 } else { 0 }
    }

    fn run(&self, steps: u64) -> Found {
        // For each place the smallest sets of unknown writes with which it was reached.
        let mut seen: HashMap<Place, Vec<Vec<u32>>> = HashMap::new();
        let mut stack = vec![Configuration::default()];
        let mut taken = 0;
        while let Some(mut configuration) = stack.pop() {
            let next = self.settle(&mut configuration.place);
            if next.blocking.is_none() {
                return Found::Order;
            }
            let reached_with = seen.entry(configuration.place.clone()).or_default();
            if reached_with.iter().any(|used| is_subset(used, &configuration.used)) {
                continue;
            }
            reached_with.retain(|used| !is_subset(&configuration.used, used));
            reached_with.push(configuration.used.clone());
            if taken == steps {
                return Found::BudgetExceeded;
            }
            taken += 1;
            // The last one pushed is tried first: an ended one before an unknown one, and of those
            // the one that was asked first, which is most often right.
            self.push_unknown(&configuration, &next, &mut stack);
            for &operation in next.open.iter().rev() {
                let (content, answer) = self.ended[operation].call.run(configuration.place.content);
                if answer == self.ended[operation].answer && self.may_leave(&configuration.place, Some(operation)) {
                    let mut after = configuration.clone();
                    after.place.add(operation);
                    after.place.content = content;
                    stack.push(after);
                }
            }
        }
        Found::NoOrder
    }

    /// Whether the content may go, by this operation or an unknown one.
    fn may_leave(&self, place: &Place, by: Option<usize>) -> bool {
        let found = self.seen_once.get(&place.content);
        found.is_none_or(|found| found.iter().all(|operation| Some(*operation) == by || place.has(*operation)))
    }

    /// Gives a place to all that changes nothing and is explained; then says what may come next.
    fn settle(&self, place: &mut Place) -> Next {
        loop {
            let mut next = self.next(place);
            let before = next.open.len();
            next.open.retain(|&operation| {
                let Ended { call, answer, .. } = self.ended[operation];
                let changes_nothing = call.is_read() || answer == Answer::Mismatch;
                let explained = changes_nothing && call.run(place.content).1 == answer;
                if explained {
                    place.add(operation);
                }
                !explained
            });
            if next.open.len() == before {
                return next;
            }
        }
    }

    fn next(&self, place: &Place) -> Next {
        // In the order of questions, so an answer found later is never before a question found earlier.
        let mut next = Next { open: Vec::new(), blocking: None };
        for operation in place.first..self.ended.len() {
            if place.has(operation) {
                continue;
            }
            if next.blocking.is_some_and(|blocking| self.ended[blocking].at < self.ended[operation].asked) {
                break;
            }
            next.open.push(operation);
            if next.blocking.is_none_or(|blocking| self.ended[operation].at < self.ended[blocking].at) {
                next.blocking = Some(operation);
            }
        }
        next
    }

    /// Unknown writes that something open needs.
    fn push_unknown(&self, configuration: &Configuration, next: &Next, stack: &mut Vec<Configuration>) {
        let Some(blocking) = next.blocking else { return };
        if !self.may_leave(&configuration.place, None) {
            return;
        }
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
                (Call::Cas { from, .. }, Answer::Mismatch) => other_wanted |= from == configuration.place.content,
                _ => {}
            }
        }
        wanted.extend(available.iter().filter_map(|&unknown| match self.unknown[unknown].call {
            Call::Cas { from, .. } => Some(from),
            Call::Read { .. } | Call::Write { .. } | Call::Delete { .. } => None,
        }));
        for &unknown in available.iter().rev() {
            let (content, _) = self.unknown[unknown].call.run(configuration.place.content);
            if content != configuration.place.content && (other_wanted || wanted.contains(&content)) {
                let mut after = configuration.clone();
                after.use_unknown(unknown);
                after.place.content = content;
                stack.push(after);
            }
        }
    }

    /// What clients of this key knew at a moment: later answers have not come, later questions are not asked.
    fn prefix(&self, until: (Moment, usize)) -> Search {
        let mut prefix = Search::default();
        for operation in self.ended.iter().filter(|operation| operation.asked <= until.0) {
            let Ended { asked, position, call, .. } = *operation;
            if (operation.at, position) <= until {
                prefix.ended.push(*operation);
            } else if !call.is_read() && operation.answer == Answer::Done {
                prefix.unknown.push(Unknown { asked, position, call, twin: None });
            }
        }
        prefix.unknown.extend(self.unknown.iter().filter(|unknown| unknown.asked <= until.0));
        prefix.prepare();
        prefix
    }

    fn violation(mut self, key: Key, steps: u64) -> Stop {
        // What has no order has none when more is added to it, so the shortest such prefix is found
        // by halving. Within the budget: else the prefix named is a longer one.
        self.ended.sort_by_key(|operation| (operation.at, operation.position));
        let ends = |operation: &Ended| (operation.at, operation.position);
        let shortest =
            self.ended.partition_point(|operation| self.prefix(ends(operation)).run(steps) != Found::NoOrder);
        let (before, last) = match self.ended.get(shortest) {
            Some(last) => (&self.ended[..shortest], last),
            None => return Stop::violated(format!("not linearizable: register {}", key.0), []),
        };
        // Those that overlap it, and enough of those before it to see what the register should hold.
        const SHOWN_BEFORE: usize = 4;
        let overlapping = before.partition_point(|other| other.at < last.asked);
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

/// Both in rising order.
fn is_subset(part: &[u32], whole: &[u32]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|one| whole.any(|other| other == one))
}
