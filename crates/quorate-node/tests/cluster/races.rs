//! Servers that want to join at the same moment, at different nodes.

use crate::lab::{Lab, ms};
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::{NodeId, RequestId, TokenId};
use quorate_model::member::{JoinToken, MemberCommand, NotAdmitted, Quota, SecretHash, Vote};
use quorate_model::state::{NodeIdentity, Role};
use quorate_model::time::WallTime;

/// Numbers of requests, and of what they make.
struct Numbers(u128);

impl Numbers {
    fn next(&mut self) -> u128 {
        self.0 += 1;
        self.0
    }
}

fn secret(number: u128) -> SecretHash {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&number.to_be_bytes());
    SecretHash(bytes)
}

fn token(number: u128) -> MemberCommand {
    let token = JoinToken {
        id: TokenId::from_u128(number),
        secret: secret(number),
        role: Role::Worker,
        name: None,
        created: WallTime(0),
        expires: WallTime(u64::MAX),
        used: None,
    };
    MemberCommand::CreateToken { token, turn_on_ha: true }
}

/// The server with this number asks with the token of that one.
fn admit(number: u128, token: u128) -> MemberCommand {
    let node = NodeIdentity {
        id: NodeId::from_u128(number << 64 | 0xdef),
        name: format!("s{number}"),
        roles: [Role::Worker].into(),
        api: format!("s{number}:7000"),
        link: format!("s{number}:7001"),
        host: format!("s{number}"),
    };
    MemberCommand::Admit { secret: secret(token), node, vote: Vote::Auto }
}

fn propose(lab: &mut Lab, at: usize, request: u128, command: MemberCommand) {
    lab.propose(at, Proposal::command(RequestId::from_u128(request), &Command::Member(command)));
}

fn outcome(lab: &mut Lab, at: usize, request: u128) -> Result<(), Refusal> {
    lab.until("an answer", ms(5_000), |lab| lab.has_applied(at, request));
    match lab.outcome(at, request).unwrap() {
        Outcome::Command(result) => result,
        other => panic!("{other:?}"),
    }
}

fn done(lab: &mut Lab, at: usize, numbers: &mut Numbers, command: MemberCommand) {
    let request = numbers.next();
    propose(lab, at, request, command);
    outcome(lab, at, request).unwrap();
}

#[test]
fn d3_of_two_joins_on_two_nodes_for_one_free_seat_exactly_one_is_let_in_200_times() {
    let mut lab = Lab::running(3, 17);
    let mut numbers = Numbers(1_000);
    let quota = Quota { nodes: 4, expires: None };
    done(&mut lab, 0, &mut numbers, MemberCommand::SetQuota { quota: Some(quota) });
    for round in 0..200 {
        let (at, servers) = ([round % 3, (round + 1) % 3], [numbers.next(), numbers.next()]);
        for server in servers {
            done(&mut lab, at[0], &mut numbers, token(server));
        }
        let requests = [numbers.next(), numbers.next()];
        for side in 0..2 {
            propose(&mut lab, at[side], requests[side], admit(servers[side], servers[side]));
        }
        let answers = [0, 1].map(|side| outcome(&mut lab, at[side], requests[side]));
        let let_in: Vec<usize> = (0..2).filter(|side| answers[*side].is_ok()).collect();
        assert_eq!(let_in.len(), 1, "round {round}: {answers:?}");
        let refused = &answers[1 - let_in[0]];
        let full = NotAdmitted::QuotaReached { nodes: 4 };
        assert_eq!(*refused, Err(Refusal::NotAdmitted { why: full }), "round {round}");
        let node = NodeId::from_u128(servers[let_in[0]] << 64 | 0xdef);
        done(&mut lab, at[1], &mut numbers, MemberCommand::Expel { node });
        lab.until("its seat to be free", ms(5_000), |lab| (0..3).all(|n| lab.node(n).state().nodes.len() == 3));
    }
}

#[test]
fn e1_of_two_servers_with_one_token_exactly_one_is_let_in_and_a_thousand_replays_change_nothing() {
    let mut lab = Lab::running(3, 18);
    let mut numbers = Numbers(1_000);
    let servers = [numbers.next(), numbers.next()];
    let shared = numbers.next();
    done(&mut lab, 0, &mut numbers, token(shared));
    let requests = [numbers.next(), numbers.next()];
    for side in 0..2 {
        propose(&mut lab, side, requests[side], admit(servers[side], shared));
    }
    let answers = [0, 1].map(|side| outcome(&mut lab, side, requests[side]));
    let loser = (0..2).find(|side| answers[*side].is_err()).expect("one is refused");
    answers[1 - loser].clone().unwrap();
    let used = |answer: &Result<(), Refusal>| {
        matches!(answer, Err(Refusal::NotAdmitted { why: NotAdmitted::UsedToken { .. } }))
    };
    assert!(used(&answers[loser]), "{answers:?}");
    lab.until("everybody to know it", ms(2_000), |lab| (0..3).all(|n| lab.node(n).state().nodes.len() == 4));
    for replay in 0..1_000_u128 {
        let request = 100_000 + replay;
        propose(&mut lab, replay as usize % 3, request, admit(200_000 + replay, shared));
    }
    for replay in 0..1_000_u128 {
        let answer = outcome(&mut lab, replay as usize % 3, 100_000 + replay);
        assert!(used(&answer), "replay {replay}: {answer:?}");
    }
    assert!((0..3).all(|n| lab.node(n).state().nodes.len() == 4));
}
