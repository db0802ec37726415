//! What a record proves.
//!
//! A run proves something only if everything was there to disprove it: each kind of fault happened
//! and was seen to be there, each checker had something to check, and the end was looked at. Less
//! than that is *failed* or *incomplete*, never a quiet success.
//!
//! # Invariants
//! - Computed from the record alone ([`crate::torture::record`]).
//! - A violation outweighs everything; then what should have been there and was not; then parts
//!   that were left out, which only make the proof incomplete.

mod gaps;
mod histories;
mod members;
mod once;
mod render;
#[cfg(test)]
mod tests;

use crate::torture::record::{
    Call, Census, Change, Contents, End, Fault, Healed, LeftOut, Line, Members, Operation, Over, Ran, Run,
};
use quorate_check::history::Verdict;
use quorate_check::{linearizable, list_append, stream, witness};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Longest time without a leader after the last fault.
pub(crate) const LEADER_WITHIN_MS: u64 = 5_000;
/// Longest time until all nodes answer, and until they hold the same.
pub(crate) const EQUAL_WITHIN_MS: u64 = 30_000;
/// Longest time until all members agree who they are, once all else is as it should be.
pub(crate) const MEMBERS_WITHIN_MS: u64 = 30_000;
/// Longest time until the service is as wanted: starting a copy and its first checks of health,
/// behind whatever backing off the faults have caused.
pub(crate) const SERVICE_WITHIN_MS: u64 = 60_000;

/// Failures that clients are told to expect while nodes die. Any other code fails the run.
const DECLARED: [&str; 10] = [
    "manager-stopped",
    "overloaded",
    "shutting-down",
    "outcome-unknown",
    "no-leader",
    "query-too-slow",
    "unreachable",
    "no-answer",
    "connection-lost",
    "too-old",
];

/// How a run came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Proven,
    Failed,
    Incomplete,
}

/// The verdict with everything that it rests on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    pub outcome: Outcome,
    /// Why it failed; first what was violated.
    pub failures: Vec<String>,
    /// Why it is not complete.
    pub missing: Vec<String>,
    pub seed: u64,
    pub nodes: usize,
    pub seconds: u64,
    /// How many operations of clients were answered.
    pub operations: usize,
    pub repeat: String,
    pub faults: Vec<FaultRow>,
    pub changes: Vec<ChangeRow>,
    pub checkers: Vec<CheckerRow>,
    pub promises: Vec<PromiseRow>,
    /// How often each attempt of a client failed with which code.
    pub errors: BTreeMap<String, u64>,
    pub left_out: Vec<LeftOut>,
}

/// One kind of fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct FaultRow {
    pub kind: String,
    pub planned: u32,
    pub happened: u32,
    /// How often the fault was seen to be there.
    pub seen: u32,
    /// How often it hit the leader.
    pub leaders: u32,
    /// Longest time without an acknowledged write in each of them.
    pub gap_median_ms: Option<u64>,
    pub gap_worst_ms: Option<u64>,
    /// What was seen, once.
    pub evidence: String,
}

/// One kind of change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ChangeRow {
    pub kind: String,
    pub planned: u32,
    pub happened: u32,
    /// How often the cluster carried it out while something was broken.
    pub during_faults: u32,
    /// How often the cluster had to be asked, at most.
    pub asked_most: u32,
    /// From the first wish until it was seen to be so.
    pub median_ms: Option<u64>,
    pub worst_ms: Option<u64>,
    /// What was seen, once.
    pub evidence: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct CheckerRow {
    pub checker: &'static str,
    pub operations: u64,
    /// How often there was something to contradict the promise.
    pub premises: u64,
    pub holds: bool,
    pub detail: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PromiseRow {
    pub promise: String,
    pub measured: String,
    pub holds: bool,
}

/// The record, sorted.
struct Sorted {
    run: Run,
    /// With what was found out later.
    operations: Vec<Operation>,
    faults: Vec<Fault>,
    changes: Vec<Change>,
    /// In their order.
    censuses: Vec<Census>,
    members: Option<Members>,
    /// In the order of their beginnings.
    ran: Option<Vec<Ran>>,
    contents: Vec<Contents>,
    /// Lines about events, in their order.
    events: Vec<Line>,
    healed: Option<Healed>,
    over: Option<Over>,
}

/// Judges a record whose first line is a [`Line::Run`]; `None` without one.
pub(crate) fn judge(lines: Vec<Line>) -> Option<Report> {
    let sorted = sort(lines)?;
    let mut report = Report {
        outcome: Outcome::Proven,
        failures: Vec::new(),
        missing: Vec::new(),
        seed: sorted.run.seed,
        nodes: sorted.run.nodes,
        seconds: sorted.over.as_ref().map_or(0, |over| over.at / 1_000_000_000),
        operations: sorted.operations.iter().filter(|one| matches!(one.end, End::Answered { .. })).count(),
        repeat: sorted.run.repeat.clone(),
        faults: fault_rows(&sorted),
        changes: change_rows(&sorted),
        checkers: checker_rows(&sorted),
        promises: promise_rows(&sorted),
        errors: sorted.over.as_ref().map(|over| over.errors.clone()).unwrap_or_default(),
        left_out: sorted.run.left_out.clone(),
    };
    conclude(&sorted, &mut report);
    Some(report)
}

fn sort(lines: Vec<Line>) -> Option<Sorted> {
    let mut lines = lines.into_iter();
    let Some(Line::Run(run)) = lines.next() else { return None };
    let mut sorted = Sorted {
        run,
        operations: Vec::new(),
        faults: Vec::new(),
        changes: Vec::new(),
        censuses: Vec::new(),
        members: None,
        ran: None,
        contents: Vec::new(),
        events: Vec::new(),
        healed: None,
        over: None,
    };
    let mut resolved = BTreeMap::new();
    for line in lines {
        match line {
            Line::Operation(operation) => sorted.operations.push(operation),
            Line::Resolved { operation, end } => {
                resolved.insert(operation, end);
            }
            Line::Fault(fault) => sorted.faults.push(fault),
            Line::Change(change) => sorted.changes.push(change),
            Line::Census(census) => sorted.censuses.push(census),
            Line::Members(members) => sorted.members = Some(members),
            Line::Once { ran } => sorted.ran = Some(ran),
            Line::Contents(contents) => sorted.contents.push(contents),
            Line::Healed(healed) => sorted.healed = Some(healed),
            Line::Over(over) => sorted.over = Some(over),
            Line::Watched(_) | Line::Events { .. } | Line::CaughtUp { .. } => sorted.events.push(line),
            Line::Run(_) => {}
        }
    }
    for operation in &mut sorted.operations {
        if matches!(operation.end, End::Unknown { .. })
            && let Some(end) = resolved.remove(&operation.number)
        {
            operation.end = end;
        }
    }
    sorted.operations.sort_by_key(|operation| operation.number);
    Some(sorted)
}

fn fault_rows(sorted: &Sorted) -> Vec<FaultRow> {
    let acknowledged = gaps::acknowledged(&sorted.operations);
    let kinds: BTreeSet<&str> =
        sorted.run.planned.keys().map(String::as_str).chain(sorted.faults.iter().map(|fault| &*fault.kind)).collect();
    let row = |kind: &str| {
        let happened = || sorted.faults.iter().filter(move |fault| fault.kind == kind && fault.failed.is_none());
        let mut gaps: Vec<u64> =
            happened().filter_map(|fault| gaps::longest(&acknowledged, fault.began, fault.ended)).collect();
        gaps.sort_unstable();
        let count = |wanted: fn(&Fault) -> bool| {
            u32::try_from(happened().filter(|fault| wanted(fault)).count()).unwrap_or(u32::MAX)
        };
        FaultRow {
            kind: kind.to_owned(),
            planned: sorted.run.planned.get(kind).copied().unwrap_or(0),
            happened: count(|_| true),
            seen: count(|fault| fault.evidence.is_some()),
            leaders: count(|fault| fault.leader),
            gap_median_ms: gaps.get(gaps.len() / 2).map(|gap| gap / 1_000_000),
            gap_worst_ms: gaps.last().map(|gap| gap / 1_000_000),
            evidence: happened().find_map(|fault| fault.evidence.clone()).unwrap_or_default(),
        }
    };
    kinds.into_iter().map(row).collect()
}

fn change_rows(sorted: &Sorted) -> Vec<ChangeRow> {
    let made = sorted.changes.iter().map(|change| &*change.kind);
    let kinds: BTreeSet<&str> = sorted.run.planned_changes.keys().map(String::as_str).chain(made).collect();
    let row = |kind: &str| {
        let happened = || sorted.changes.iter().filter(move |change| change.kind == kind && change.failed.is_none());
        let mut times: Vec<u64> = happened().map(|change| (change.ended - change.began) / 1_000_000).collect();
        times.sort_unstable();
        ChangeRow {
            kind: kind.to_owned(),
            planned: sorted.run.planned_changes.get(kind).copied().unwrap_or(0),
            happened: u32::try_from(times.len()).unwrap_or(u32::MAX),
            during_faults: u32::try_from(happened().filter(|it| !it.during.is_empty()).count()).unwrap_or(u32::MAX),
            asked_most: happened().map(|change| change.asked).max().unwrap_or(0),
            median_ms: times.get(times.len() / 2).copied(),
            worst_ms: times.last().copied(),
            evidence: happened().find_map(|change| change.evidence.clone()).unwrap_or_default(),
        }
    };
    kinds.into_iter().map(row).collect()
}

fn checker_rows(sorted: &Sorted) -> Vec<CheckerRow> {
    let row = |checker, operations: usize, verdict: Verdict| {
        let (premises, holds, detail) = match verdict {
            Verdict::Holds { premises } => (premises, premises > 0, String::new()),
            Verdict::Violated(violation) => (0, false, format!("violated: {}", violation.what)),
            Verdict::Unknown { why } => (0, false, format!("unknown: {why}")),
        };
        let detail = if holds || !detail.is_empty() { detail } else { "nothing was there to check".into() };
        CheckerRow { checker, operations: operations as u64, premises, holds, detail }
    };
    let evidence = histories::witness(&sorted.operations, &absences(sorted), sorted.contents.first());
    let registers = histories::registers(&sorted.operations, &sorted.contents);
    let transactions = histories::transactions(&sorted.operations, &sorted.contents);
    let (topic, received) = histories::streams(&sorted.events);
    let got = received.iter().flatten().filter(|it| matches!(it, stream::Received::Event { .. })).count();
    vec![
        row("witness", evidence.history.len(), witness::check(&evidence)),
        row("linearizable", registers.len(), linearizable::check(&registers, linearizable::Budget::default())),
        row("transactions", transactions.len(), list_append::check(&transactions)),
        row("events", got, stream::check(&topic, &received)),
    ]
}

/// When which nodes may have started anew.
fn absences(sorted: &Sorted) -> Vec<histories::Absence<'_>> {
    let faults =
        sorted.faults.iter().map(|it| histories::Absence { began: it.began, ended: it.ended, of: &it.restarted });
    let changes =
        sorted.changes.iter().map(|it| histories::Absence { began: it.began, ended: it.ended, of: &it.restarted });
    faults.chain(changes).collect()
}

/// What became of the inserts: numbers of rows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Inserts {
    acknowledged: u64,
    lost: Vec<u64>,
    twice: Vec<u64>,
    /// Refused, or never asked for, and there all the same.
    invented: Vec<u64>,
    unknown: u64,
}

fn inserts(operations: &[Operation], contents: &Contents) -> Inserts {
    let mut there: BTreeMap<u64, u64> = BTreeMap::new();
    for row in &contents.rows {
        *there.entry(*row).or_default() += 1;
    }
    let mut found = Inserts::default();
    let mut possible = BTreeSet::new();
    for operation in operations {
        let Call::Insert { row } = operation.call else { continue };
        match operation.end {
            End::Answered { .. } => {
                found.acknowledged += 1;
                possible.insert(row);
                if !there.contains_key(&row) {
                    found.lost.push(row);
                }
            }
            End::Unknown { .. } => {
                found.unknown += 1;
                possible.insert(row);
            }
            End::Refused { .. } => {}
        }
    }
    found.twice = there.iter().filter(|(_, times)| **times > 1).map(|(row, _)| *row).collect();
    found.invented = there.keys().filter(|row| !possible.contains(row)).copied().collect();
    found
}

fn promise_rows(sorted: &Sorted) -> Vec<PromiseRow> {
    let mut rows = Vec::new();
    let mut promise = |promise: &str, measured: String, holds: bool| {
        rows.push(PromiseRow { promise: promise.into(), measured, holds });
    };
    let some = |numbers: &[u64]| match numbers {
        [] => "0".to_owned(),
        [first, ..] => format!("{}, first {first}", numbers.len()),
    };
    if let Some(contents) = sorted.contents.first() {
        let inserts = inserts(&sorted.operations, contents);
        promise("inserts acknowledged", inserts.acknowledged.to_string(), inserts.acknowledged > 0);
        promise("acknowledged inserts lost", some(&inserts.lost), inserts.lost.is_empty());
        promise("inserts done twice", some(&inserts.twice), inserts.twice.is_empty());
        promise("refused inserts done", some(&inserts.invented), inserts.invented.is_empty());
        let different = differences(&sorted.contents);
        let measured = if different.is_empty() { "0".into() } else { different.join(", ") };
        promise("nodes whose contents differ", measured, different.is_empty());
        let (compared, all) = (sorted.contents.len(), sorted.members.as_ref().map_or(0, |it| it.expected.len()));
        promise("nodes compared", format!("{compared} of {all}"), compared == all);
    }
    if let Some(healed) = &sorted.healed {
        let mut within = |what: &str, measured: Option<u64>, limit: u64| {
            let text = measured.map_or_else(|| "not in time".into(), |ms| format!("{:.1} s", ms as f64 / 1_000.0));
            promise(
                &format!("{what} within {} s", limit / 1_000),
                text,
                measured.is_some_and(|measured| measured <= limit),
            );
        };
        within("a leader", healed.leader_ms, LEADER_WITHIN_MS);
        within("all nodes answer", healed.answering_ms, EQUAL_WITHIN_MS);
        within("all nodes are equal", healed.equal_ms, EQUAL_WITHIN_MS);
        within("the services are whole", healed.service_ms, SERVICE_WITHIN_MS);
        if healed.service_ms.is_none() {
            promise("the services at the end", healed.service_wrong.clone(), false);
        }
        promise(
            "copies of the service that run",
            format!("{} of {}", healed.copies_running, healed.copies_wanted),
            healed.copies_running == healed.copies_wanted,
        );
        let digests: u64 = healed.digests_compared.values().sum();
        promise("digests compared", digests.to_string(), digests > 0);
        promise("nodes diverged", some_texts(&healed.diverged), healed.diverged.is_empty());
    }
    rows.extend(once::rows(sorted));
    rows.extend(members::rows(sorted));
    let mut promise = |promise: &str, measured: String, holds: bool| {
        rows.push(PromiseRow { promise: promise.into(), measured, holds });
    };
    if let Some(over) = &sorted.over {
        promise("unexpected deaths", some_texts(&over.unexpected_deaths), over.unexpected_deaths.is_empty());
        let strange: Vec<String> =
            over.errors.keys().filter(|code| !DECLARED.contains(&code.as_str())).cloned().collect();
        promise("errors that no client expects", some_texts(&strange), strange.is_empty());
        promise("servers that did not come back or stop", some_texts(&over.broken), over.broken.is_empty());
    }
    rows
}

fn some_texts(texts: &[String]) -> String {
    if texts.is_empty() { "0".into() } else { format!("{}: {}", texts.len(), texts.join("; ")) }
}

/// The nodes that do not hold what the first one holds.
fn differences(contents: &[Contents]) -> Vec<String> {
    let Some((first, others)) = contents.split_first() else { return Vec::new() };
    let differ = |other: &&Contents| {
        (&other.registers, &other.lists, &other.rows) != (&first.registers, &first.lists, &first.rows)
    };
    others.iter().filter(differ).map(|other| other.node.clone()).collect()
}

fn conclude(sorted: &Sorted, report: &mut Report) {
    let stopped = sorted.over.as_ref().is_none_or(|over| over.interrupted);
    let mut absent = Vec::new();
    for row in &report.checkers {
        if row.detail.starts_with("violated") {
            report.failures.push(format!("{} {}", row.checker, row.detail));
        } else if !row.holds {
            absent.push(format!("{}: {}", row.checker, row.detail));
        }
    }
    let broken = report.promises.iter().filter(|row| !row.holds);
    report.failures.extend(broken.map(|row| format!("{}: {}", row.promise, row.measured)));
    for row in &report.faults {
        let kind = &row.kind;
        if row.happened == 0 && row.planned > 0 {
            let why = sorted.faults.iter().filter(|fault| fault.kind == *kind).find_map(|fault| fault.failed.as_ref());
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            absent.push(format!("{kind} was planned and never happened{why}"));
        } else if row.seen < row.happened {
            absent.push(format!("{kind} was not seen to be there {} times", row.happened - row.seen));
        }
    }
    for row in report.changes.iter().filter(|row| row.happened == 0 && row.planned > 0) {
        let kind = &row.kind;
        let why = sorted.changes.iter().filter(|change| change.kind == *kind).find_map(|it| it.failed.as_ref());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        absent.push(format!("{kind} was planned and never happened{why}"));
    }
    if sorted.members.is_none() {
        absent.push("who the members are at the end was not asked".into());
    }
    if sorted.ran.is_none() {
        absent.push("when it ran, what runs once, was not read".into());
    }
    if sorted.contents.is_empty() {
        absent.push("what the nodes hold at the end was not read".into());
    }
    if sorted.healed.is_none() {
        absent.push("how the cluster healed was not measured".into());
    }
    // What is not there because somebody stopped the run is nobody's failure.
    if stopped {
        let how = if sorted.over.is_some() { "the run was stopped" } else { "the record ends before its run did" };
        report.missing.push(how.into());
        report.missing.extend(absent);
    } else {
        report.failures.extend(absent);
    }
    let left_out = sorted.run.left_out.iter().map(|left| format!("{} was left out: {}", left.kind, left.why));
    report.missing.extend(left_out);
    report.outcome = match (report.failures.is_empty(), report.missing.is_empty()) {
        (false, _) => Outcome::Failed,
        (true, false) => Outcome::Incomplete,
        (true, true) => Outcome::Proven,
    };
}
