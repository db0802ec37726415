//! What must be so of members, over a whole run and at its end.

use super::{MEMBERS_WITHIN_MS, PromiseRow, Sorted, inserts, some_texts};
use crate::torture::record::{Census, Member, Members, Removed};
use quorate_model::id::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Rows about members; none if nothing of them is in the record.
pub(super) fn rows(sorted: &Sorted) -> Vec<PromiseRow> {
    let mut rows = Vec::new();
    let mut promise = |promise: &str, measured: String, holds: bool| {
        rows.push(PromiseRow { promise: promise.into(), measured, holds });
    };
    let nothing = |what: &[String]| (some_texts(what), what.is_empty());
    let mut zero = |what: &str, found: &[String]| {
        let (measured, holds) = nothing(found);
        promise(what, measured, holds);
    };
    zero("two members of one id or name", &doubles(sorted));
    zero("removed members seen again", &seen_again(sorted));
    let Some(members) = &sorted.members else { return rows };
    zero("removed servers that know a leader", &outcasts(members));
    zero("members that differ about members", &others_than_expected(members));
    zero("members that hold other keys", &other_keys(members));
    zero("members without all inserts that joined late", &late_without(sorted));
    let (votes, managers) = (votes(members), members.expected.values().filter(|manager| **manager).count());
    // One more than an odd number of managers tolerates no more losses than that.
    let wanted = managers - usize::from(managers.is_multiple_of(2));
    promise("voters at the end", format!("{votes} of {managers} managers"), votes == wanted);
    let made = sorted.changes.iter().filter(|change| change.kind == "rotate-ca" && change.failed.is_none()).count();
    let authority = members.seen.first().map_or(0, |seen| seen.authority);
    let rotated = usize::try_from(authority).is_ok_and(|number| number == made + 1);
    promise("the authority at the end", format!("number {authority} after {made} rotations"), rotated);
    let measured = match members.agreed_ms {
        Some(ms) => format!("{:.1} s", ms as f64 / 1_000.0),
        None => format!("not in time: {}", members.wrong),
    };
    let in_time = members.agreed_ms.is_some_and(|ms| ms <= MEMBERS_WITHIN_MS);
    promise(&format!("all members agree within {} s", MEMBERS_WITHIN_MS / 1_000), measured, in_time);
    rows
}

/// Every list of members with who says it: during the run, and at its end.
fn lists(sorted: &Sorted) -> impl Iterator<Item = (&str, &[Member])> {
    let during = sorted.censuses.iter().map(|census| (&*census.node, &*census.members));
    let last = sorted.members.iter().flat_map(|members| &members.seen);
    during.chain(last.map(|seen| (&*seen.node, &*seen.members)))
}

fn doubles(sorted: &Sorted) -> Vec<String> {
    let mut found = BTreeSet::new();
    // An id belongs to one server for ever.
    let mut named: BTreeMap<NodeId, &str> = BTreeMap::new();
    for (node, members) in lists(sorted) {
        let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
        for member in members {
            let name = &member.name;
            if !ids.insert(member.id) {
                found.insert(format!("{} is twice in the list of {node}", member.id));
            }
            if !names.insert(name) {
                found.insert(format!("{name} is twice in the list of {node}"));
            }
            let first = *named.entry(member.id).or_insert(name);
            if first != name {
                found.insert(format!("{} is {first} and {name}", member.id));
            }
        }
    }
    found.into_iter().collect()
}

fn removed(sorted: &Sorted) -> impl Iterator<Item = &Removed> {
    sorted.changes.iter().filter_map(|change| change.removed.as_ref())
}

fn seen_again(sorted: &Sorted) -> Vec<String> {
    let mut found = BTreeSet::new();
    for gone in removed(sorted) {
        let has = |members: &[Member]| members.iter().any(|member| member.id == gone.id);
        let knows = |census: &&Census| census.applied >= gone.gone_at && has(&census.members);
        for census in sorted.censuses.iter().filter(knows) {
            let at = census.applied;
            found.insert(format!(
                "{} in the list of {} at index {at}, gone at {}",
                gone.name, census.node, gone.gone_at
            ));
        }
        for seen in sorted.members.iter().flat_map(|members| &members.seen).filter(|seen| has(&seen.members)) {
            found.insert(format!("{} in the list of {} at the end", gone.name, seen.node));
        }
    }
    found.into_iter().collect()
}

fn outcasts(members: &Members) -> Vec<String> {
    members.outcasts.iter().filter(|(_, knows)| **knows).map(|(name, _)| name.clone()).collect()
}

/// Also who did not answer.
fn others_than_expected(members: &Members) -> Vec<String> {
    let expected: Vec<(&str, bool)> = members.expected.iter().map(|(name, manager)| (&**name, *manager)).collect();
    let mut found = Vec::new();
    for (name, _) in &expected {
        let Some(seen) = members.seen.iter().find(|seen| seen.node == *name) else {
            found.push(format!("{name} says nothing"));
            continue;
        };
        let mut says: Vec<(&str, bool)> = seen.members.iter().map(|it| (&*it.name, it.manager)).collect();
        says.sort_unstable();
        let whom = |names: &[String]| names.join(", ");
        if says != expected {
            found.push(format!("{name} counts {}", says.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")));
        } else if !seen.not_joined.is_empty() {
            found.push(format!("{name} misses {}", whom(&seen.not_joined)));
        } else if !seen.not_alive.is_empty() {
            found.push(format!("{name} does not hear {} gossip", whom(&seen.not_alive)));
        }
    }
    found
}

fn other_keys(members: &Members) -> Vec<String> {
    let Some(first) = members.seen.first() else { return vec!["nobody's were read".into()] };
    let mut found = Vec::new();
    for seen in &members.seen {
        let node = &seen.node;
        if !seen.only_authority {
            found.push(format!("{node} believes more than CA {}", seen.authority));
        }
        if (seen.authority, &seen.authorities) != (first.authority, &first.authorities) {
            found.push(format!("{node} has another authority than {}", first.node));
        }
        if seen.gossip_keys != first.gossip_keys {
            found.push(format!("{node} has other keys of gossip than {}", first.node));
        }
    }
    found
}

fn votes(members: &Members) -> usize {
    let list = members.seen.first().map(|seen| &*seen.members).unwrap_or_default();
    list.iter().filter(|member| member.votes).count()
}

/// Nodes that came while the run went on, and lack what was acknowledged before and others have.
fn late_without(sorted: &Sorted) -> Vec<String> {
    let gone: BTreeSet<NodeId> = removed(sorted).map(|removed| removed.id).collect();
    let joined = sorted.changes.iter().filter_map(|change| change.joined.as_ref());
    let stayed = joined.filter(|joined| !gone.contains(&joined.id));
    let lost = |contents| inserts(&sorted.operations, contents).lost;
    let nobody_has: BTreeSet<u64> = match sorted.contents.split_first() {
        Some((first, others)) => {
            others.iter().map(lost).fold(lost(first).into_iter().collect(), |all: BTreeSet<u64>, one| {
                all.into_iter().filter(|row| one.contains(row)).collect()
            })
        }
        None => BTreeSet::new(),
    };
    let lacks = |name: &str| match sorted.contents.iter().find(|contents| contents.node == name) {
        None => Some(format!("{name} was not read")),
        Some(contents) => {
            let lost: Vec<u64> = lost(contents).into_iter().filter(|row| !nobody_has.contains(row)).collect();
            lost.first().map(|first| format!("{name} lacks {}, first {first}", lost.len()))
        }
    };
    stayed.filter_map(|joined| lacks(&joined.name)).collect()
}
