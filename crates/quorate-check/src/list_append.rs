//! Strict serializability of transactions that append to lists and read them.
//!
//! A list that is only appended to, each element once, tells its own history: the longest list that
//! anybody read is the order of the appends, and every other read must be a beginning of it. So it
//! is known which transaction saw which, and who came before whom. If these dependencies together
//! with real time form a circle, no order of the transactions explains what they saw.
//!
//! # Names of what is found
//! | name | meaning |
//! |---|---|
//! | `duplicate` | an element is twice in a list |
//! | `phantom` | a list has an element that nobody appended |
//! | `G1a` (aborted read) | it has an element of a transaction that was refused |
//! | `internal` | a transaction does not see its own appends, or two of its reads disagree |
//! | `incompatible order` | two reads of a list, of which none is a beginning of the other |
//! | `G1b` (intermediate read) | a list ends with an element after which its transaction appended more |
//! | `lost append` | an append was acknowledged before a transaction was asked that does not see it |
//! | `G0` (write cycle) | a circle of appends |
//! | `G1c` (circular information flow) | a circle of appends and reads of them |
//! | `G-single` (read skew) | a circle with one read that missed an append |
//! | `G2` (anti-dependency cycle) | a circle with several |
//!
//! The circles have the suffix `-realtime` if they need that one transaction was answered before
//! another was asked. A violation shows a shortest circle among those looked at (`graph`).
//!
//! # What it loses
//! A transaction with an unknown end happened if anybody saw one of its elements; then all its
//! appends count. Otherwise it is left out. Elements that no read saw have no order among themselves:
//! a workload ends by reading every list.
//!
//! # Sources
//! Adya, Liskov, O'Neil: Generalized Isolation Level Definitions, 2000. Kingsbury, Alvaro: Elle, 2020.

mod graph;

use crate::history::{End, Moment, Operation, Stop, Verdict, check_times, verdict};
use graph::{Graph, Kind};
use std::collections::{BTreeMap, BTreeSet};

/// Names one list. Every list is empty when a history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct List(pub u64);

/// What is appended. Appended to a list once in a whole history, whatever becomes of the transaction.
pub type Element = u64;

/// One step of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Append { list: List, element: Element },
    Read { list: List },
}

/// All steps of one transaction, which take effect together or not at all.
pub type Transaction = Vec<Step>;

/// What the reads of a transaction saw, in the order of its [`Step::Read`]s.
pub type Reads = Vec<Vec<Element>>;

/// Is there an order of the transactions, each between its question and its answer, that explains
/// every read?
///
/// Premises are the dependencies between transactions, and the reads of lists to which something was
/// appended and acknowledged before.
#[must_use]
pub fn check(history: &[Operation<Transaction, Reads>]) -> Verdict {
    verdict(run(history))
}

type History = [Operation<Transaction, Reads>];

fn run(history: &History) -> Result<u64, Stop> {
    check_times(history)?;
    let appends = appends(history)?;
    let reads = reads(history)?;
    let versions = versions(history, &appends, &reads)?;
    let mut premises = 0;
    for read in &reads {
        premises += check_read(history, &appends, &versions, read)?;
    }
    let graph = dependencies(history, &versions, &reads);
    match graph.cycle() {
        None => Ok(premises + graph.dependencies()),
        Some(cycle) => Err(Stop::violated(cycle.to_string(), cycle.transactions())),
    }
}

/// Who appended an element.
#[derive(Debug, Clone, Copy)]
struct Append {
    by: usize,
    /// Nothing else was appended to this list by this transaction afterwards.
    last: bool,
}

type Appends = BTreeMap<(List, Element), Append>;

fn appends(history: &History) -> Result<Appends, Stop> {
    let mut appends: Appends = BTreeMap::new();
    for (by, transaction) in history.iter().enumerate() {
        let mut last: BTreeMap<List, Element> = BTreeMap::new();
        for step in &transaction.call {
            let Step::Append { list, element } = *step else { continue };
            if let Some(before) = last.insert(list, element).and_then(|element| appends.get_mut(&(list, element))) {
                before.last = false;
            }
            if let Some(other) = appends.insert((list, element), Append { by, last: true }) {
                let why = format!("operations {} and {by} both append {element} to list {}", other.by, list.0);
                return Err(Stop::Unknown(why));
            }
        }
    }
    Ok(appends)
}

/// One read of one list by an answered transaction.
#[derive(Debug)]
struct Read<'a> {
    by: usize,
    list: List,
    seen: &'a [Element],
    /// What the transaction itself appended to the list before this read, and after it.
    own_before: Vec<Element>,
    own_after: Vec<Element>,
    /// Its read of the list before this one, and how much of `own_before` came before that.
    earlier: Option<(&'a [Element], usize)>,
}

impl Read<'_> {
    /// How many elements of others it saw, if it saw its own at the end.
    fn of_others(&self) -> usize {
        self.seen.len().saturating_sub(self.own_before.len())
    }
}

fn reads(history: &History) -> Result<Vec<Read<'_>>, Stop> {
    let mut reads = Vec::new();
    for (by, transaction) in history.iter().enumerate() {
        let End::Answered { answer, .. } = &transaction.end else { continue };
        let asked: Vec<(usize, List)> = transaction
            .call
            .iter()
            .enumerate()
            .filter_map(|(at, step)| if let Step::Read { list } = *step { Some((at, list)) } else { None })
            .collect();
        if asked.len() != answer.len() {
            let why = format!("operation {by} has {} reads and was answered {} lists", asked.len(), answer.len());
            return Err(Stop::Unknown(why));
        }
        let own = |steps: &[Step], of: List| -> Vec<Element> {
            let element = |step: &Step| match *step {
                Step::Append { list, element } if list == of => Some(element),
                Step::Append { .. } | Step::Read { .. } => None,
            };
            steps.iter().filter_map(element).collect()
        };
        let mut earlier: BTreeMap<List, (&[Element], usize)> = BTreeMap::new();
        for ((at, list), seen) in asked.into_iter().zip(answer) {
            let (before, after) = transaction.call.split_at(at);
            let own_before = own(before, list);
            let earlier = earlier.insert(list, (seen, own_before.len()));
            reads.push(Read { by, list, seen, own_after: own(after, list), own_before, earlier });
        }
    }
    Ok(reads)
}

/// The order of a list's elements.
#[derive(Debug, Default)]
struct Version<'a> {
    /// The longest list that was read, and by whom.
    longest: &'a [Element],
    reader: usize,
    /// Who appended each of them.
    writers: Vec<usize>,
    places: BTreeMap<Element, usize>,
    /// Transactions that happened and whose appends nobody saw: they come after all others.
    unseen: BTreeSet<usize>,
    /// For each length: the first acknowledgement among the appends that a read of this length does
    /// not see, and whose it was.
    acknowledged: Vec<Option<(Moment, usize)>>,
}

fn versions<'a>(history: &History, appends: &Appends, reads: &[Read<'a>]) -> Result<BTreeMap<List, Version<'a>>, Stop> {
    let mut versions: BTreeMap<List, Version<'a>> = BTreeMap::new();
    for read in reads {
        let version = versions.entry(read.list).or_default();
        if read.seen.len() > version.longest.len() {
            (version.longest, version.reader) = (read.seen, read.by);
        }
    }
    // A transaction with an unknown end happened if one of its elements was seen.
    let mut happened: BTreeSet<usize> = BTreeSet::new();
    for (list, version) in &mut versions {
        check_elements(history, appends, *list, version.longest, version.reader)?;
        for (place, element) in version.longest.iter().enumerate() {
            let by = appends[&(*list, *element)].by;
            version.writers.push(by);
            version.places.insert(*element, place);
            happened.insert(by);
        }
    }
    let answered = history.iter().enumerate().filter(|(_, other)| matches!(other.end, End::Answered { .. }));
    happened.extend(answered.map(|(position, _)| position));
    for ((list, element), append) in appends {
        if let Some(version) = versions.get_mut(list).filter(|version| !version.places.contains_key(element)) {
            version.unseen.extend(happened.get(&append.by));
        }
    }
    for version in versions.values_mut() {
        let acknowledged = |by: usize| history[by].ended().map(|at| (at, by));
        let mut first = version.unseen.iter().filter_map(|by| acknowledged(*by)).min();
        version.acknowledged = vec![first];
        for by in version.writers.iter().rev() {
            first = first.into_iter().chain(acknowledged(*by)).min();
            version.acknowledged.push(first);
        }
        version.acknowledged.reverse();
    }
    Ok(versions)
}

/// Each element is there once, and somebody appended it who was not refused.
fn check_elements(
    history: &History,
    appends: &Appends,
    list: List,
    seen: &[Element],
    reader: usize,
) -> Result<(), Stop> {
    let mut once = BTreeSet::new();
    for element in seen {
        let Some(append) = appends.get(&(list, *element)) else {
            let what = format!("phantom: operation {reader} saw {element} in list {}, which nobody appended", list.0);
            return Err(Stop::violated(what, [reader]));
        };
        if matches!(history[append.by].end, End::Refused { .. }) {
            let what = format!(
                "G1a (aborted read): operation {reader} saw {element} in list {}, of operation {}, which was refused",
                list.0, append.by
            );
            return Err(Stop::violated(what, [append.by, reader]));
        }
        if !once.insert(element) {
            let what = format!("duplicate: operation {reader} saw {element} twice in list {}", list.0);
            return Err(Stop::violated(what, [append.by, reader]));
        }
    }
    Ok(())
}

/// Compares one read with the order of its list; gives the number of premises.
fn check_read(
    history: &History,
    appends: &Appends,
    versions: &BTreeMap<List, Version<'_>>,
    read: &Read<'_>,
) -> Result<u64, Stop> {
    let version = &versions[&read.list];
    let list = read.list.0;
    if !version.longest.starts_with(read.seen) {
        check_elements(history, appends, read.list, read.seen, read.by)?;
        let what = format!(
            "incompatible order: operations {} and {} saw lists {list} of which none is a beginning of the other",
            version.reader, read.by
        );
        return Err(Stop::violated(what, [version.reader, read.by]));
    }
    let repeats = read.earlier.is_none_or(|(earlier, own)| {
        read.seen.len() == earlier.len() + read.own_before.len() - own && read.seen.starts_with(earlier)
    });
    let foresees =
        read.own_after.iter().any(|element| version.places.get(element).is_some_and(|place| *place < read.seen.len()));
    if !read.seen.ends_with(&read.own_before) || !repeats || foresees {
        let what = format!("internal: operation {} read list {list} not as its own steps before it left it", read.by);
        return Err(Stop::violated(what, [read.by]));
    }
    if let Some(element) = read.seen[..read.of_others()].last() {
        let append = appends[&(read.list, *element)];
        if !append.last && append.by != read.by {
            let what = format!(
                "G1b (intermediate read): operation {} saw list {list} end with {element}, after which operation {} appended more",
                read.by, append.by
            );
            return Err(Stop::violated(what, [append.by, read.by]));
        }
    }
    if let Some((at, by)) = version.acknowledged[read.seen.len()].filter(|(at, _)| *at < history[read.by].asked) {
        let what = format!(
            "lost append: operation {} does not see in list {list} what operation {by} appended, acknowledged at {} ns, before it was asked",
            read.by, at.0
        );
        return Err(Stop::violated(what, [by, read.by]));
    }
    Ok(u64::from(version.acknowledged[0].is_some_and(|(at, _)| at < history[read.by].asked)))
}

/// Who came before whom.
fn dependencies(history: &History, versions: &BTreeMap<List, Version<'_>>, reads: &[Read<'_>]) -> Graph {
    let mut graph = Graph::new(history.len());
    for version in versions.values() {
        for pair in version.writers.windows(2) {
            graph.add(pair[0], Kind::Ww, pair[1]);
        }
        if let Some(last) = version.writers.last() {
            for unseen in &version.unseen {
                graph.add(*last, Kind::Ww, *unseen);
            }
        }
    }
    for read in reads {
        let version = &versions[&read.list];
        if let Some(last) = read.of_others().checked_sub(1) {
            graph.add(version.writers[last], Kind::Wr, read.by);
        }
        match version.writers.get(read.seen.len()) {
            Some(next) => graph.add(read.by, Kind::Rw, *next),
            None => {
                for unseen in &version.unseen {
                    graph.add(read.by, Kind::Rw, *unseen);
                }
            }
        }
    }
    graph.add_real_time(history.iter().map(|transaction| {
        let ended = if matches!(transaction.end, End::Answered { .. }) { transaction.ended() } else { None };
        (transaction.asked, ended)
    }));
    graph
}
