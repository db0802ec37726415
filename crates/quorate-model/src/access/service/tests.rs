//! Tokens of replicas as the log sees them.

use super::*;
use crate::access::policy::{Operation, Principal, Verdict, allow, allow_database};
use crate::command::{Command, Step};
use crate::id::{LogIndex, NodeId};
use crate::spec::{Format, parse};
use crate::state::{NodeIdentity, Role};
use crate::time::WallTime;

const REPLICA: ReplicaId = ReplicaId(uuid::Uuid::from_u128(7));

fn run(state: &mut ClusterState, command: &Command) -> Result<usize, Refusal> {
    let index = LogIndex(state.planned_on.0 + 1);
    let changes = state.decide(index, WallTime(index.0), command)?;
    state.absorb(index, &changes);
    Ok(changes.len())
}

/// One replica of a service with these lines.
fn placed(lines: &str) -> ClusterState {
    let mut state = ClusterState::default();
    let node = NodeIdentity {
        id: NodeId::from_u128(1),
        name: "n1".into(),
        roles: BTreeSet::from([Role::Manager, Role::Worker]),
        api: "10.0.0.1:7000".into(),
        link: "10.0.0.1:7001".into(),
        host: "10.0.0.1".into(),
    };
    run(&mut state, &Command::RegisterNode { node, boot: 1 }).unwrap();
    let text = format!("[[service]]\nname = 'web'\ncommand = ['/bin/web']\n{lines}");
    run(&mut state, &Command::ApplySpec { document: parse(&text, Format::Toml).unwrap() }).unwrap();
    let service = ServiceName::new("web").unwrap();
    let place =
        Step::Place { replica: REPLICA, service, ordinal: 0, node: NodeId::from_u128(1), version: None, epoch: None };
    let expected = state.planned_on;
    run(&mut state, &Command::CarryOut { expected, steps: vec![place] }).unwrap();
    state
}

fn hand_out(state: &mut ClusterState) -> Result<usize, Refusal> {
    run(state, &Command::ServiceToken { replica: REPLICA, hash: Digest::of(b"secret") })
}

#[test]
fn a_token_does_what_is_granted_and_ends_in_the_entry_that_ends_its_replica() {
    let mut state = placed("grants = [{ database = 'main', right = 'write' }]");
    assert_eq!(hand_out(&mut state), Ok(1));
    assert_eq!(hand_out(&mut state), Ok(0), "it is noted already");
    assert!(state.access.service_token(REPLICA, Digest::of(b"secret")).is_some());
    assert!(state.access.service_token(REPLICA, Digest::of(b"another")).is_none());
    let me = Principal::Service { replica: REPLICA };
    assert_eq!(me.describe(&state.access), format!("web/{REPLICA}"));
    let may = |operation| allow(&state.access, &me, operation);
    let all: Vec<&str> =
        Operation::ALL.iter().filter(|operation| may(**operation) == Verdict::Allow).map(|it| it.word()).collect();
    let everybody = ["health-read", "log-in", "who-am-i", "join", "certificate-renew"];
    assert_eq!(all, [&everybody[..], &["sql-read", "sql-write"]].concat());
    assert_eq!(allow_database(&state.access, &me, Database::Main), Verdict::Allow);
    assert_eq!(allow_database(&state.access, &me, Database::System), Verdict::NotGranted);

    let forget = Command::CarryOut { expected: state.planned_on, steps: vec![Step::Forget { replica: REPLICA }] };
    run(&mut state, &forget).unwrap();
    assert!(state.access.services.is_empty());
    assert_eq!(allow(&state.access, &me, Operation::SqlRead), Verdict::LogIn);
    assert_eq!(hand_out(&mut state), Err(Refusal::NothingGranted { replica: REPLICA }), "it cannot come back");
}

#[test]
fn who_may_read_may_not_write_and_who_is_granted_nothing_gets_no_token() {
    let mut state = placed("grants = [{ database = 'system' }]");
    hand_out(&mut state).unwrap();
    let me = Principal::Service { replica: REPLICA };
    assert_eq!(allow(&state.access, &me, Operation::SqlWrite), Verdict::NotGranted);
    assert_eq!(allow_database(&state.access, &me, Database::System), Verdict::Allow);
    assert_eq!(allow_database(&state.access, &me, Database::Main), Verdict::NotGranted);
    assert_eq!(hand_out(&mut placed("")), Err(Refusal::NothingGranted { replica: REPLICA }));
}
