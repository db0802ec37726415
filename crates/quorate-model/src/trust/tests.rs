use super::*;
use crate::command::Command;
use crate::id::{LogIndex, TokenId};
use crate::member::{JoinToken, MemberCommand, SecretHash};
use crate::state::NodeIdentity;

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

fn run(state: &mut ClusterState, at: u64, command: &Command) -> Result<usize, Refusal> {
    let changes = state.decide(LogIndex(at), WallTime(at), command)?;
    state.absorb(LogIndex(at), &changes);
    Ok(changes.len())
}

/// Three nodes: two managers and a worker.
fn cluster() -> ClusterState {
    let mut state = ClusterState::default();
    for (number, role) in [(1, Role::Manager), (2, Role::Manager), (3, Role::Worker)] {
        let identity = NodeIdentity {
            id: node(number),
            name: format!("n{number}"),
            roles: BTreeSet::from([role]),
            api: format!("192.0.2.{number}:7000"),
            link: format!("192.0.2.{number}:7001"),
            host: String::new(),
        };
        run(&mut state, 1, &Command::RegisterNode { node: identity, boot: 1 }).unwrap();
    }
    state
}

fn envelope() -> SealedKey {
    SealedKey { holder: Digest::of(b"key"), sealed: "AA==".into() }
}

fn begin(key: KeyKind, number: u32, nodes: &[u128]) -> Command {
    let sealed = nodes.iter().map(|number| (node(*number), envelope())).collect();
    let (certificate, former) = (String::new(), String::new());
    Command::Trust(TrustCommand::Begin { key, number, certificate, former, sealed })
}

fn advance(key: KeyKind, number: u32, from: Stage) -> Command {
    Command::Trust(TrustCommand::Advance { key, number, from, behind: BTreeSet::new() })
}

#[test]
fn a_key_passes_its_stages_in_order_and_each_once() {
    let mut state = cluster();
    let kind = KeyKind::Authority;
    assert_eq!((state.trust.key(kind).number, state.trust.key(kind).stage), (1, Stage::Done));
    run(&mut state, 2, &begin(kind, 2, &[1, 2])).unwrap();
    for from in [Stage::Spread, Stage::Use, Stage::Drop] {
        assert_eq!(state.trust.key(kind).stage, from);
        assert!(!state.trust.key(kind).sealed.is_empty());
        // Of another stage or another number: late, and ignored.
        for late in [advance(kind, 2, from.next()), advance(kind, 1, from)] {
            assert_eq!(run(&mut state, 3, &late), Ok(0));
        }
        run(&mut state, 4, &advance(kind, 2, from)).unwrap();
    }
    assert_eq!(run(&mut state, 5, &advance(kind, 2, Stage::Done)), Ok(0));
    assert!(state.trust.key(kind).sealed.is_empty(), "envelopes are not kept for longer than they are needed");
    assert_eq!(state.trust.key(KeyKind::Secrets).number, 1);
    let stages: Vec<Stage> = state
        .events
        .iter()
        .filter_map(|event| match event.what {
            Happening::KeyStage { stage, .. } => Some(stage),
            _ => None,
        })
        .collect();
    assert_eq!(stages, [Stage::Spread, Stage::Use, Stage::Drop, Stage::Done]);
}

#[test]
fn one_change_of_a_key_at_a_time_and_for_members_only() {
    let mut state = cluster();
    for wrong in [begin(KeyKind::Secrets, 1, &[]), begin(KeyKind::Secrets, 3, &[]), begin(KeyKind::Secrets, 2, &[9])] {
        let refused = run(&mut state, 2, &wrong).unwrap_err();
        assert_eq!(refused, Refusal::KeyChanging { key: KeyKind::Secrets, number: 1, stage: Stage::Done });
    }
    run(&mut state, 2, &begin(KeyKind::Secrets, 2, &[1])).unwrap();
    assert!(run(&mut state, 3, &begin(KeyKind::Secrets, 3, &[1])).is_err());
    // Another kind does not wait for it.
    run(&mut state, 3, &begin(KeyKind::Authority, 2, &[1])).unwrap();
}

#[test]
fn who_lacks_the_newest_key_is_handed_it() {
    let mut state = cluster();
    run(&mut state, 2, &begin(KeyKind::Secrets, 2, &[1])).unwrap();
    let hand = |number, to: u128| {
        Command::Trust(TrustCommand::Hand { key: KeyKind::Secrets, number, node: node(to), envelope: envelope() })
    };
    assert_eq!(run(&mut state, 3, &hand(1, 2)), Ok(0));
    assert_eq!(run(&mut state, 3, &hand(2, 9)), Ok(0));
    run(&mut state, 3, &hand(2, 3)).unwrap();
    assert_eq!(state.trust.key(KeyKind::Secrets).sealed.into_keys().collect::<Vec<_>>(), [node(1), node(3)]);
}

fn remove(state: &mut ClusterState, at: u64, number: u128) {
    run(state, at, &Command::Member(MemberCommand::Expel { node: node(number) })).unwrap();
    assert!(run(state, at, &begin(KeyKind::Authority, 2, &[number])).is_err(), "it gets no key any more");
    run(state, at, &Command::Member(MemberCommand::CutOff { node: node(number) })).unwrap();
}

#[test]
fn what_an_expelled_node_knew_is_exposed_until_the_next_key_begins() {
    let mut state = cluster();
    run(&mut state, 2, &begin(KeyKind::Secrets, 2, &[1, 2, 3])).unwrap();
    remove(&mut state, 3, 2);
    let secrets = state.trust.key(KeyKind::Secrets);
    assert_eq!(secrets.exposed.as_ref().unwrap().by, "n2");
    assert!(!secrets.sealed.contains_key(&node(2)) && !secrets.is_due(), "the change that runs ends first");
    assert!(state.trust.key(KeyKind::Authority).is_due(), "a manager holds that one too");
    for from in [Stage::Spread, Stage::Use, Stage::Drop] {
        run(&mut state, 4, &advance(KeyKind::Secrets, 2, from)).unwrap();
    }
    assert!(state.trust.key(KeyKind::Secrets).is_due());
    // The key that follows must not be sealed for it.
    assert!(run(&mut state, 5, &begin(KeyKind::Secrets, 3, &[1, 2])).is_err());
    run(&mut state, 5, &begin(KeyKind::Secrets, 3, &[1])).unwrap();
    assert_eq!(state.trust.key(KeyKind::Secrets).exposed, None);
}

#[test]
fn a_worker_that_is_removed_knew_nothing_that_must_change() {
    let mut state = cluster();
    remove(&mut state, 2, 3);
    assert_eq!(state.trust, TrustState::default());
}

#[test]
fn join_tokens_end_when_no_node_shows_the_authority_that_they_name() {
    let mut state = cluster();
    let token = |id| JoinToken {
        id: TokenId::from_u128(id),
        secret: SecretHash([7; 32]),
        role: Role::Manager,
        name: None,
        created: WallTime(1),
        expires: WallTime(1_000),
        used: None,
    };
    run(&mut state, 2, &Command::Member(MemberCommand::CreateToken { token: token(1), turn_on_ha: false })).unwrap();
    run(&mut state, 2, &begin(KeyKind::Authority, 2, &[1])).unwrap();
    assert_eq!(state.members.tokens.len(), 1, "the old one is still shown");
    run(&mut state, 3, &advance(KeyKind::Authority, 2, Stage::Spread)).unwrap();
    assert!(state.members.tokens.is_empty());
    run(&mut state, 4, &Command::Member(MemberCommand::CreateToken { token: token(2), turn_on_ha: false })).unwrap();
    run(&mut state, 5, &advance(KeyKind::Authority, 2, Stage::Use)).unwrap();
    assert_eq!(state.members.tokens.len(), 1, "one that was made since names the new one");
}
