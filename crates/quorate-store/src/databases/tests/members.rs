//! Tokens, expelled ids and the quota in the files.

use super::*;
use quorate_model::command::Refusal;
use quorate_model::id::TokenId;
use quorate_model::member::{JoinToken, MemberCommand, NotAdmitted, Quota, SecretHash, Vote};

fn token(number: u8) -> MemberCommand {
    MemberCommand::CreateToken {
        token: JoinToken {
            id: TokenId::from_u128(number.into()),
            secret: SecretHash([number; 32]),
            role: Role::Manager,
            name: None,
            created: WallTime(START),
            expires: WallTime(START + 3_600 * SECOND),
            used: None,
        },
        turn_on_ha: true,
    }
}

fn admit(number: u8, node: u128) -> MemberCommand {
    let Command::RegisterNode { mut node, .. } = register(node, 0) else { unreachable!() };
    node.api = format!("192.0.2.{number}:7000");
    node.link = format!("192.0.2.{number}:7001");
    MemberCommand::Admit { secret: SecretHash([number; 32]), node, vote: Vote::Auto }
}

/// A token that waits, one that was used, one that was revoked; a node that was expelled; a quota.
fn log() -> Log {
    let mut log = Log::new();
    for command in [
        token(1),
        token(2),
        token(3),
        admit(1, 10),
        MemberCommand::RevokeToken { token: TokenId::from_u128(3) },
        MemberCommand::SetAlias { node: NodeId::from_u128(10), alias: Some("msk-1".into()) },
        MemberCommand::SetQuota { quota: Some(Quota { nodes: 2, expires: Some(WallTime(START + 3_600 * SECOND)) }) },
    ] {
        log.command(&Command::Member(command));
    }
    log.command(&register(11, 1));
    log.command(&Command::Member(MemberCommand::Expel { node: NodeId::from_u128(11) }));
    log.command(&Command::Member(MemberCommand::CutOff { node: NodeId::from_u128(11) }));
    log
}

#[test]
fn what_is_decided_about_members_survives_a_restart() {
    let (root, databases) = with(&log());
    let before = databases.state().clone();
    assert_eq!(before.members.tokens.len(), 2);
    let used = before.members.tokens[&TokenId::from_u128(1)].used.as_ref().unwrap();
    assert_eq!(used.by, NodeId::from_u128(10));
    assert_eq!(before.members.expelled, BTreeSet::from([NodeId::from_u128(11)]));
    assert_eq!(before.nodes.len(), 1);
    assert_eq!(before.members.ha, Some(true));
    drop(databases);
    let after = open(root.path());
    assert_eq!(after.state().members, before.members);
    assert_eq!(after.state().nodes, before.nodes);
}

#[test]
fn after_a_restart_a_used_token_is_used_and_an_expelled_node_stays_out() {
    let mut log = log();
    let (root, databases) = with(&log);
    drop(databases);
    let mut databases = open(root.path());
    log.command(&Command::Member(admit(1, 12)));
    log.command(&register(11, 2));
    let refusals: Vec<Outcome> = apply(&mut databases, &log).into_iter().map(|entry| entry.outcome).collect();
    let refused = |why| Outcome::Command(Err(Refusal::NotAdmitted { why }));
    let used = NotAdmitted::UsedToken { by: "n10".into() };
    assert_eq!(refusals, [refused(used), refused(NotAdmitted::Expelled { node: NodeId::from_u128(11) })]);
}
