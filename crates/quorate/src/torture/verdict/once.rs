//! What must be so of services that run once.

use super::{PromiseRow, Sorted, some_texts};
use crate::torture::record::Ran;
use crate::torture::workload::services::ONCE;
use std::collections::BTreeSet;

/// None if nothing of them is in the record.
pub(super) fn rows(sorted: &Sorted) -> Vec<PromiseRow> {
    let Some(ran) = &sorted.ran else { return Vec::new() };
    let row = |promise: &str, measured: String, holds: bool| PromiseRow { promise: promise.into(), measured, holds };
    let (overlaps, backwards) = (each_pair(ran, overlap), each_pair(ran, backward));
    let seen = ONCE.iter().filter(|(name, _)| ran.iter().any(|ran| ran.service == *name)).count();
    vec![
        row("services that run once and did", lives(ran), seen == ONCE.len()),
        row("two copies at once of what runs once", some_texts(&overlaps), overlaps.is_empty()),
        row("epochs that went back", some_texts(&backwards), backwards.is_empty()),
    ]
}

/// What is wrong with any two of one service, the earlier one first.
fn each_pair(ran: &[Ran], wrong: fn(&Ran, &Ran) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (at, one) in ran.iter().enumerate() {
        let others = ran[at + 1..].iter().filter(|other| other.service == one.service);
        found.extend(others.filter_map(|other| wrong(one, other)));
    }
    found
}

fn overlap(one: &Ran, other: &Ran) -> Option<String> {
    let both = one.last.min(other.last).checked_sub(other.first)?;
    Some(format!("{} of epochs {} and {} for {} ms", one.service, one.epoch, other.epoch, both.div_ceil(1_000_000)))
}

fn backward(one: &Ran, other: &Ran) -> Option<String> {
    (other.epoch < one.epoch).then(|| format!("{} from {} to {}", one.service, one.epoch, other.epoch))
}

/// For people: how often each moved, and for how long it stood still at most.
fn lives(ran: &[Ran]) -> String {
    let one = |service: &str| {
        let mine: Vec<&Ran> = ran.iter().filter(|ran| ran.service == service).collect();
        let epochs: BTreeSet<u64> = mine.iter().map(|ran| ran.epoch).collect();
        let still = mine.windows(2).map(|pair| pair[1].first.saturating_sub(pair[0].last)).max().unwrap_or(0);
        format!("{service} moved {}×, {:.1} s without it at most", epochs.len().saturating_sub(1), still as f64 / 1e9)
    };
    let services: BTreeSet<&str> = ran.iter().map(|ran| &*ran.service).collect();
    services.into_iter().map(one).collect::<Vec<_>>().join("; ")
}
