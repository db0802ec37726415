//! When a change of one of the cluster's keys goes on.
//!
//! The leader looks at what nodes say that they have carried out, and proposes the next stage when
//! everybody has who is waited for. Nothing is remembered between two looks, so any new leader goes on
//! where the last one stopped; and what a node says stays true, because it is on its disk.
//!
//! Whoever is joined is waited for. Who is away is not, because it is handed what it missed when it is
//! back: but a rotation of the authority that went on without it shuts it out. So there whoever went
//! away a short time ago is waited for, because it is most likely only being started anew. A node that
//! is away for longer than [`WAITED`] is not: a server that never comes back must not keep an old
//! authority in force for ever. It is named then, and has to join anew when it missed too much (see the
//! guide on certificates).

use quorate_model::id::NodeId;
use quorate_model::observed::{KeyStep, TrustReport};
use quorate_model::planted::{Bug, planted};
use quorate_model::state::{Health, NodeRecord};
use quorate_model::trust::{KeyKind, KeyRecord, Stage, TrustCommand};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node that is away for less is waited for: longer than a server takes to be started anew, with its
/// file systems checked.
pub const WAITED: Duration = Duration::from_secs(600);

/// Whether a node that was away while this key changed cannot come back with what it has: nobody
/// believes it any more. Other keys it is handed when it is back.
fn misses(kind: KeyKind) -> bool {
    kind == KeyKind::Authority
}

/// Whether a node that says this of itself uses the new key already. It is believed whenever it is back then,
/// and learns by itself what it missed.
#[must_use]
pub fn is_believed(record: &KeyRecord, report: Option<&TrustReport>) -> bool {
    let uses = KeyStep { number: record.number, stage: Stage::Use };
    report.and_then(|trust| trust.keys.get(&record.kind)).is_some_and(|at| *at >= uses)
}

/// Nodes that have not carried out the present stage of a key: those that are waited for, and those
/// that are not.
#[must_use]
pub fn missing<'a>(
    record: &KeyRecord,
    nodes: &BTreeMap<NodeId, NodeRecord>,
    report: impl Fn(NodeId) -> Option<&'a TrustReport>,
    away_for: impl Fn(NodeId, u64) -> Option<Duration>,
) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let goal = KeyStep { number: record.number, stage: record.stage };
    let done =
        |node: &NodeId| report(*node).and_then(|trust| trust.keys.get(&record.kind)).is_some_and(|at| *at >= goal);
    let gone = |node: &NodeRecord| {
        let away = away_for(node.identity.id, node.generation);
        let long = !misses(record.kind) || away.is_some_and(|away| away >= WAITED);
        node.health != Health::Joined && long
    };
    // Who is about to be removed gets no key any more.
    let staying = nodes.values().filter(|node| !node.expelling);
    let concerned = staying.filter(|node| record.kind.concerns(&node.identity.roles));
    let late = concerned.filter(|node| !done(&node.identity.id));
    let (gone, waited): (Vec<&NodeRecord>, Vec<&NodeRecord>) = late.partition(|node| gone(node));
    let ids = |nodes: Vec<&NodeRecord>| nodes.into_iter().map(|node| node.identity.id).collect();
    (ids(waited), ids(gone))
}

/// The next stage, if it is time for it.
#[must_use]
pub fn next<'a>(
    record: &KeyRecord,
    nodes: &BTreeMap<NodeId, NodeRecord>,
    report: impl Fn(NodeId) -> Option<&'a TrustReport>,
    away_for: impl Fn(NodeId, u64) -> Option<Duration>,
) -> Option<TrustCommand> {
    if record.stage == Stage::Done || nodes.is_empty() {
        return None;
    }
    let (waited, behind) = missing(record, nodes, &report, away_for);
    let all_gone = behind.len() == nodes.len();
    let early = planted(Bug::StageBeforeAll) && waited.len() < nodes.len();
    if (!waited.is_empty() && !early) || all_gone {
        return None;
    }
    let behind = match misses(record.kind) {
        true => behind.into_iter().filter(|node| !is_believed(record, report(*node))).collect(),
        false => BTreeSet::new(),
    };
    Some(TrustCommand::Advance { key: record.kind, number: record.number, from: record.stage, behind })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use quorate_model::access::name::Digest;
    use quorate_model::state::{NodeIdentity, Role};
    use quorate_model::time::WallTime;
    use quorate_model::trust::TrustState;

    fn node(number: u128) -> NodeId {
        NodeId::from_u128(number)
    }

    fn record(kind: KeyKind, stage: Stage) -> KeyRecord {
        KeyRecord { number: 2, stage, ..TrustState::default().key(kind) }
    }

    /// Manager 1, manager 2, worker 3.
    fn nodes() -> BTreeMap<NodeId, NodeRecord> {
        let roles = [(1, Role::Manager), (2, Role::Manager), (3, Role::Worker)];
        roles
            .map(|(number, role)| {
                let identity = NodeIdentity {
                    id: node(number),
                    name: String::new(),
                    roles: BTreeSet::from([role]),
                    api: String::new(),
                    link: String::new(),
                    host: String::new(),
                };
                (node(number), NodeRecord::started(identity, Health::Joined, WallTime(0)))
            })
            .into()
    }

    fn says(kind: KeyKind, number: u32, stage: Stage) -> TrustReport {
        TrustReport {
            public: String::new(),
            certificate: Digest::default(),
            authority: Digest::default(),
            from: WallTime(0),
            until: WallTime(0),
            keys: BTreeMap::from([(kind, KeyStep { number, stage })]),
        }
    }

    /// Who is behind when the stage goes on; `None`: it does not.
    fn goes_on(
        record: &KeyRecord,
        nodes: &BTreeMap<NodeId, NodeRecord>,
        said: &[(u128, TrustReport)],
        away: Option<Duration>,
    ) -> Option<BTreeSet<NodeId>> {
        let report = |id: NodeId| said.iter().find(|(number, _)| node(*number) == id).map(|(_, report)| report);
        match next(record, nodes, report, |_, _| away)? {
            TrustCommand::Advance { key, number, from, behind } => {
                assert_eq!((key, number, from), (record.kind, record.number, record.stage));
                Some(behind)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stage_is_over_when_every_joined_node_has_carried_it_out() {
        let kind = KeyKind::Authority;
        let record = record(kind, Stage::Use);
        let done = || says(kind, 2, Stage::Use);
        let all = [(1, done()), (2, says(kind, 2, Stage::Done)), (3, done())];
        assert_eq!(goes_on(&record, &nodes(), &all, None), Some(BTreeSet::new()));
        assert_eq!(goes_on(&record, &nodes(), &all[..2], None), None, "one has said nothing yet");
        let late = [(1, done()), (2, done()), (3, says(kind, 2, Stage::Spread))];
        assert_eq!(goes_on(&record, &nodes(), &late, None), None);
        let older = [(1, done()), (2, done()), (3, says(kind, 1, Stage::Done))];
        assert_eq!(goes_on(&record, &nodes(), &older, None), None);
        assert_eq!(goes_on(&KeyRecord { stage: Stage::Done, ..record }, &nodes(), &all, None), None);
    }

    #[test]
    fn only_managers_are_waited_for_with_the_key_of_secrets() {
        let kind = KeyKind::Secrets;
        let done = || says(kind, 2, Stage::Spread);
        let said = [(1, done()), (2, done())];
        assert_eq!(goes_on(&record(kind, Stage::Spread), &nodes(), &said, None), Some(BTreeSet::new()));
        assert_eq!(goes_on(&record(KeyKind::Authority, Stage::Spread), &nodes(), &said, None), None);
    }

    #[test]
    fn who_is_away_is_waited_for_a_while_and_then_named() {
        let kind = KeyKind::Authority;
        let record = record(kind, Stage::Spread);
        let mut nodes = nodes();
        nodes.get_mut(&node(3)).unwrap().health = Health::Down;
        let done = || says(kind, 2, Stage::Spread);
        let said = [(1, done()), (2, done())];
        assert_eq!(goes_on(&record, &nodes, &said, None), None);
        assert_eq!(goes_on(&record, &nodes, &said, Some(WAITED - Duration::from_secs(1))), None);
        assert_eq!(goes_on(&record, &nodes, &said, Some(WAITED)), Some(BTreeSet::from([node(3)])));
        // It uses the new one already, and believes the old one still: it will be let in.
        let dropping = KeyRecord { stage: Stage::Drop, ..record.clone() };
        let drops = [(1, says(kind, 2, Stage::Done)), (2, says(kind, 2, Stage::Done)), (3, says(kind, 2, Stage::Use))];
        assert_eq!(goes_on(&dropping, &nodes, &drops, None), None);
        assert_eq!(goes_on(&dropping, &nodes, &drops, Some(WAITED)), Some(BTreeSet::new()));
        // It had done it before it went.
        let all = [(1, done()), (2, done()), (3, done())];
        assert_eq!(goes_on(&record, &nodes, &all, Some(WAITED)), Some(BTreeSet::new()));
        // Of another key it misses nothing: it is handed that when it is back.
        let mut others = nodes.clone();
        others.get_mut(&node(2)).unwrap().health = Health::Down;
        let of_secrets = KeyRecord { kind: KeyKind::Secrets, ..record.clone() };
        let one = [(1, says(KeyKind::Secrets, 2, Stage::Spread))];
        assert_eq!(goes_on(&of_secrets, &others, &one, None), Some(BTreeSet::new()));
        // Whoever is joined is waited for, however long it is silent.
        nodes.get_mut(&node(3)).unwrap().health = Health::Joined;
        assert_eq!(goes_on(&record, &nodes, &said, Some(WAITED)), None);
    }
}
