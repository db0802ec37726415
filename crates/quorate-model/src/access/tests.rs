//! What access promises, command by command.

use super::audit::{AuditLink, verify};
use super::name::{ApiTokenId, Digest, RoleName, UserName};
use super::policy::{Operation, Permission, Principal, Verdict, allow};
use super::{AccessChange, AccessCommand as A, AccessRefusal, Actor};
use crate::command::{Command, Refusal};
use crate::entry::{Envelope, Payload, Proposal};
use crate::id::{LogIndex, RequestId};
use crate::state::{Change, ClusterState};
use crate::time::WallTime;
use std::collections::BTreeSet;

const MINUTE: u64 = 60 * 1_000_000;

/// A cluster that is told commands, with a clock that a test sets.
#[derive(Default)]
struct Cluster {
    state: ClusterState,
    index: u64,
    now: u64,
    links: Vec<AuditLink>,
}

impl Cluster {
    fn with_admin() -> Cluster {
        let mut cluster = Cluster { now: 1_000_000 * MINUTE, ..Cluster::default() };
        cluster.run(A::EnsureAdmin { user: user("admin"), password: "phc-admin".into() }).unwrap();
        cluster
    }

    fn run(&mut self, command: A) -> Result<(), AccessRefusal> {
        self.run_by(&Command::Access(command), None).map_err(|refusal| match refusal {
            Refusal::Access(refusal) => refusal,
            other => panic!("{other}"),
        })
    }

    /// Through the bytes of the log.
    fn run_by(&mut self, command: &Command, actor: Option<&Actor>) -> Result<(), Refusal> {
        self.index += 1;
        let id = RequestId::from_u128(u128::from(self.index));
        let proposal = match actor {
            Some(actor) => Proposal::command_by(id, command, actor),
            None => Proposal::command(id, command),
        };
        let envelope = Envelope::stamp(proposal, WallTime(self.now), 1);
        assert_eq!(envelope.payload().unwrap(), Payload::Command(command.clone()));
        let read = envelope.actor().unwrap();
        assert_eq!(read.as_ref(), actor);
        let decided = self.state.decide_for(LogIndex(self.index), WallTime(self.now), command, read.as_ref());
        for change in &decided.changes {
            assert!(!change.moves_plans());
            if let Change::Access(AccessChange::Audit(link)) = change {
                self.links.push(link.clone());
            }
        }
        self.state.absorb(LogIndex(self.index), &decided.changes);
        decided.outcome
    }

    fn create(&mut self, name: &str, roles: &[&str]) {
        let password = format!("phc-{name}");
        let roles = roles.iter().map(|name| role(name)).collect();
        self.run(A::CreateUser { user: user(name), password, roles }).unwrap();
    }

    fn log_in(&mut self, name: &str, secret: &str) -> Result<(), AccessRefusal> {
        let verified = Digest::of(format!("phc-{name}").as_bytes());
        let session = Digest::of(secret.as_bytes());
        self.run(A::OpenSession { session, user: user(name), verified, source: "192.0.2.1".into() })
    }

    fn has_session(&self, secret: &str) -> bool {
        self.state.access.session(Digest::of(secret.as_bytes()), WallTime(self.now)).is_some()
    }

    fn try_password(&mut self, account: &str, source: &str) -> Result<(), AccessRefusal> {
        self.run(A::Try { account: UserName::new(account).ok(), source: source.into() })
    }

    fn confirm(&mut self, name: &str, secret: &str, what: &str, target: &str) {
        let verified = Digest::of(format!("phc-{name}").as_bytes());
        self.run(A::Confirm {
            confirmation: Digest::of(secret.as_bytes()),
            user: user(name),
            verified,
            source: "192.0.2.1".into(),
            what: what.into(),
            target: target.into(),
        })
        .unwrap();
    }
}

fn user(name: &str) -> UserName {
    UserName::new(name).unwrap()
}

fn role(name: &str) -> RoleName {
    RoleName::new(name).unwrap()
}

fn actor(who: &str, what: &str, target: &str, confirmation: Option<&str>) -> Actor {
    Actor {
        who: who.into(),
        from: "192.0.2.1".into(),
        what: what.into(),
        target: target.into(),
        confirmation: confirmation.map(|secret| Digest::of(secret.as_bytes())),
    }
}

#[test]
fn the_first_admin_is_made_once() {
    let mut cluster = Cluster::with_admin();
    cluster.run(A::EnsureAdmin { user: user("other"), password: "phc".into() }).unwrap();
    assert_eq!(cluster.state.access.users.keys().map(UserName::as_str).collect::<Vec<_>>(), ["admin"]);
}

#[test]
fn an_entry_of_a_node_that_knows_no_actors_is_understood() {
    let payload = br#"{"do":"remove-service","service":"web"}"#.to_vec();
    let (request_id, kind) = (RequestId::from_u128(1), crate::entry::Kind::Command);
    let proposal = Proposal { request_id, kind, fence: None, payload: payload.into() };
    let envelope = Envelope::stamp(proposal, WallTime(1), 1);
    assert_eq!(envelope.actor().unwrap(), None);
}

#[test]
fn the_last_admin_stays() {
    let mut cluster = Cluster::with_admin();
    let last = Err(AccessRefusal::LastAdmin { user: user("admin") });
    assert_eq!(cluster.run(A::RemoveUser { user: user("admin") }), last);
    assert_eq!(cluster.run(A::DisableUser { user: user("admin") }), last);
    assert_eq!(cluster.run(A::RevokeRole { user: user("admin"), role: role("admin") }), last);
    cluster.create("second", &["admin"]);
    cluster.run(A::DisableUser { user: user("second") }).unwrap();
    assert_eq!(cluster.run(A::RemoveUser { user: user("admin") }), last, "a disabled admin is none");
    cluster.run(A::EnableUser { user: user("second") }).unwrap();
    cluster.run(A::RemoveUser { user: user("admin") }).unwrap();
}

#[test]
fn a_session_ends_when_it_is_idle_and_at_the_latest_after_twelve_hours() {
    let mut cluster = Cluster::with_admin();
    cluster.log_in("admin", "s").unwrap();
    cluster.now += 29 * MINUTE;
    assert!(cluster.has_session("s"));
    cluster.now += MINUTE;
    assert!(!cluster.has_session("s"));

    cluster.log_in("admin", "t").unwrap();
    let mut minutes = 0;
    while cluster.has_session("t") {
        cluster.now += 10 * MINUTE;
        minutes += 10;
        cluster.run(A::TouchSession { session: Digest::of(b"t") }).unwrap();
    }
    assert_eq!(minutes, 12 * 60);
}

#[test]
fn the_use_of_a_session_is_written_down_at_most_every_five_minutes() {
    let mut cluster = Cluster::with_admin();
    cluster.log_in("admin", "s").unwrap();
    let mut written = 0;
    for _ in 0..60 {
        cluster.now += MINUTE / 2;
        let before = cluster.state.access.clone();
        cluster.run(A::TouchSession { session: Digest::of(b"s") }).unwrap();
        written += usize::from(cluster.state.access != before);
    }
    assert_eq!(written, 6);
}

#[test]
fn whoever_loses_the_password_loses_the_sessions() {
    for end in [
        A::SetPassword { user: user("bob"), password: "new".into(), keep: None },
        A::DisableUser { user: user("bob") },
        A::RemoveUser { user: user("bob") },
    ] {
        let mut cluster = Cluster::with_admin();
        cluster.create("bob", &["viewer"]);
        cluster.log_in("bob", "s").unwrap();
        cluster.log_in("admin", "t").unwrap();
        cluster.run(end.clone()).unwrap();
        assert!(!cluster.has_session("s"), "{end:?}");
        assert!(cluster.has_session("t"), "{end:?}");
        assert_eq!(cluster.log_in("bob", "u"), Err(AccessRefusal::PasswordChanged), "{end:?}");
    }
}

#[test]
fn guessing_waits_whatever_the_account_and_the_right_password_washes_only_its_own_try_away() {
    let mut cluster = Cluster::with_admin();
    // Another account each time, known or not: the source is counted.
    for account in ["admin", "root", "nobody", "not a name", "guest"] {
        cluster.try_password(account, "198.51.100.9").unwrap();
    }
    assert_eq!(cluster.try_password("x", "198.51.100.9"), Err(AccessRefusal::TooSoon { wait_ms: 1_000 }));
    // Another source each time: the account is counted.
    for source in 1..=4 {
        cluster.try_password("admin", &format!("192.0.2.{source}")).unwrap();
    }
    assert_eq!(cluster.try_password("admin", "192.0.2.99"), Err(AccessRefusal::TooSoon { wait_ms: 1_000 }));
    cluster.now += 2_000_000;
    cluster.try_password("admin", "192.0.2.1").unwrap();
    cluster.log_in("admin", "s").unwrap();
    cluster.try_password("admin", "192.0.2.99").unwrap();
    assert_eq!(
        cluster.try_password("x", "198.51.100.9").map(|()| cluster.try_password("x", "198.51.100.9").unwrap_err()),
        Ok(AccessRefusal::TooSoon { wait_ms: 2_000 })
    );
}

#[test]
fn a_flood_of_names_does_not_push_out_the_one_that_is_guessed_at() {
    let mut cluster = Cluster::with_admin();
    for source in 0..5 {
        cluster.try_password("admin", &format!("s{source}")).unwrap();
    }
    for number in 0..super::tries::REMEMBERED_MAX * 6 / 10 {
        cluster.try_password(&format!("name{number}"), &format!("flood{number}")).unwrap();
    }
    assert!(cluster.state.access.tries.len() <= super::tries::REMEMBERED_MAX);
    assert!(matches!(cluster.try_password("admin", "t"), Err(AccessRefusal::TooSoon { .. })));
}

#[test]
fn a_confirmation_is_for_one_act_once_and_for_five_minutes() {
    let mut cluster = Cluster::with_admin();
    cluster.create("bob", &["viewer"]);
    let disable = Command::Access(A::DisableUser { user: user("bob") });
    let not_confirmed = |refused: Result<(), Refusal>| {
        assert!(matches!(refused, Err(Refusal::Access(AccessRefusal::NotConfirmed { .. }))), "{refused:?}");
    };
    cluster.confirm("admin", "c", "user-disable", "bob");
    for other in [
        actor("admin", "user-disable", "eve", Some("c")),
        actor("admin", "user-remove", "bob", Some("c")),
        actor("bob", "user-disable", "bob", Some("c")),
        actor("admin", "user-disable", "bob", Some("unknown")),
    ] {
        not_confirmed(cluster.run_by(&disable, Some(&other)));
    }
    let right = actor("admin", "user-disable", "bob", Some("c"));
    cluster.run_by(&disable, Some(&right)).unwrap();
    not_confirmed(cluster.run_by(&disable, Some(&right)));

    cluster.confirm("admin", "d", "user-disable", "bob");
    cluster.now += 5 * MINUTE;
    not_confirmed(cluster.run_by(&disable, Some(&actor("admin", "user-disable", "bob", Some("d")))));

    // It is used up by an act that is refused for another reason, too.
    cluster.confirm("admin", "e", "user-disable", "nobody");
    let unknown = Command::Access(A::DisableUser { user: user("nobody") });
    let act = actor("admin", "user-disable", "nobody", Some("e"));
    let refused = cluster.run_by(&unknown, Some(&act));
    assert_eq!(refused, Err(Refusal::Access(AccessRefusal::UnknownUser { user: user("nobody") })));
    not_confirmed(cluster.run_by(&unknown, Some(&act)));
}

#[test]
fn every_act_of_somebody_is_in_the_audit_also_a_refused_one() {
    let mut cluster = Cluster::with_admin();
    let enable = |name: &str| Command::Access(A::EnableUser { user: user(name) });
    cluster.run_by(&enable("admin"), Some(&actor("root", "user-enable", "admin", None))).unwrap();
    cluster.run_by(&enable("eve"), Some(&actor("root", "user-enable", "eve", None))).unwrap_err();
    let denied = Command::Access(A::Denied { why: "lacks user-write".into(), unwritten: 3 });
    cluster.run_by(&denied, Some(&actor("bob", "user-enable", "eve", None))).unwrap();
    let shown: Vec<String> = cluster
        .links
        .iter()
        .map(|link| {
            format!(
                "{} {} {} {}: {}",
                link.entry.seq, link.entry.who, link.entry.what, link.entry.target, link.entry.outcome
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "1 root user-enable admin: done",
            "2 root user-enable eve: refused: there is no user `eve`",
            "3 bob user-enable eve: denied: lacks user-write; 3 more were not written down",
        ]
    );
    assert_eq!(verify(&cluster.links, cluster.state.access.audit), Ok(()));
}

#[test]
fn a_token_can_do_what_its_user_and_its_scopes_both_allow() {
    let mut cluster = Cluster::with_admin();
    cluster.create("bob", &["operator"]);
    let token = |id: &str, scopes: &[Permission], dangerous| A::CreateToken {
        token: ApiTokenId::new(id).unwrap(),
        hash: Digest::of(b"secret"),
        user: user("bob"),
        label: String::new(),
        scopes: scopes.iter().copied().collect::<BTreeSet<_>>(),
        dangerous,
        lasts_us: MINUTE,
    };
    cluster
        .run(token("tame", &[Permission::ServiceScale, Permission::ManagerControl, Permission::UserRead], false))
        .unwrap();
    cluster.run(token("wild", &[Permission::ManagerControl], true)).unwrap();
    let ask = |cluster: &Cluster, id: &str, operation| {
        allow(&cluster.state.access, &Principal::Token { token: ApiTokenId::new(id).unwrap() }, operation)
    };
    assert_eq!(ask(&cluster, "tame", Operation::ServiceScale), Verdict::Allow);
    assert_eq!(ask(&cluster, "tame", Operation::ClusterRead), Verdict::Lacks(Permission::ClusterRead));
    assert_eq!(ask(&cluster, "tame", Operation::UserRead), Verdict::Lacks(Permission::UserRead));
    assert_eq!(ask(&cluster, "tame", Operation::LeaderTransfer), Verdict::NotDangerous);
    assert_eq!(ask(&cluster, "tame", Operation::OwnTokenCreate), Verdict::NotForTokens);
    assert_eq!(ask(&cluster, "wild", Operation::LeaderTransfer), Verdict::Allow);
    assert_eq!(ask(&cluster, "gone", Operation::ClusterRead), Verdict::LogIn);

    let held = |cluster: &Cluster| {
        let id = ApiTokenId::new("tame").unwrap();
        cluster.state.access.token(&id, Digest::of(b"secret"), WallTime(cluster.now)).is_some()
    };
    assert!(held(&cluster));
    cluster.run(A::DisableUser { user: user("bob") }).unwrap();
    assert!(!held(&cluster));
    assert_eq!(ask(&cluster, "wild", Operation::LeaderTransfer), Verdict::LogIn);
    cluster.run(A::EnableUser { user: user("bob") }).unwrap();
    cluster.now += MINUTE;
    assert!(!held(&cluster));
}

#[test]
fn fixed_roles_are_cloned_and_clones_are_changed() {
    let mut cluster = Cluster::with_admin();
    let set =
        |role_name: &str, granted| A::SetPermission { role: role(role_name), permission: Permission::LogRead, granted };
    assert_eq!(cluster.run(set("auditor", true)), Err(AccessRefusal::FixedRole { role: role("auditor") }));
    cluster.run(A::CloneRole { role: role("inspector"), from: role("auditor") }).unwrap();
    cluster.run(set("inspector", true)).unwrap();
    cluster.create("bob", &["inspector"]);
    let bob = Principal::User { user: user("bob"), session: Digest::default() };
    assert_eq!(allow(&cluster.state.access, &bob, Operation::LogRead), Verdict::Allow);
    assert_eq!(allow(&cluster.state.access, &bob, Operation::AuditRead), Verdict::Allow);
    assert_eq!(allow(&cluster.state.access, &bob, Operation::SqlWrite), Verdict::Lacks(Permission::SqlWrite));
    let remove = A::RemoveRole { role: role("inspector") };
    assert_eq!(
        cluster.run(remove.clone()),
        Err(AccessRefusal::RoleInUse { role: role("inspector"), user: user("bob") })
    );
    cluster.run(A::RevokeRole { user: user("bob"), role: role("inspector") }).unwrap();
    cluster.run(remove).unwrap();
    assert_eq!(
        cluster.run(A::RemoveRole { role: role("viewer") }),
        Err(AccessRefusal::FixedRole { role: role("viewer") })
    );
}

#[test]
fn a_user_has_a_bounded_number_of_sessions() {
    let mut cluster = Cluster::with_admin();
    for number in 0..40 {
        cluster.now += 1;
        cluster.log_in("admin", &format!("s{number}")).unwrap();
    }
    assert_eq!(cluster.state.access.sessions.len(), 32);
    assert!(!cluster.has_session("s7") && cluster.has_session("s8") && cluster.has_session("s39"));
}
