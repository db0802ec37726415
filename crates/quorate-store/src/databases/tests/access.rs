//! Users and their secrets in the files.

use super::*;
use quorate_model::access::audit::verify;
use quorate_model::access::name::{Digest, UserName};
use quorate_model::access::{AccessCommand, Actor};
use quorate_model::command::Refusal;
use quorate_model::trust::{KeyKind, TrustCommand};
use quorate_model::vip::VipCommand;
use std::collections::BTreeMap;

fn user(name: &str) -> UserName {
    UserName::new(name).unwrap()
}

fn actor(what: &str, target: &str) -> Actor {
    Actor { who: "root".into(), from: "local".into(), what: what.into(), target: target.into(), confirmation: None }
}

fn by(log: &mut Log, command: AccessCommand, actor: &Actor) {
    let id = RequestId::from_u128(u128::from(log.next()) << 64);
    log.push(Proposal::command_by(id, &Command::Access(command), actor));
}

/// A log with some of everything.
fn log() -> Log {
    let mut log = Log::new();
    let phc = "$argon2id$canary";
    by(
        &mut log,
        AccessCommand::EnsureAdmin { user: user("admin"), password: phc.into() },
        &actor("user-create", "admin"),
    );
    log.command(&Command::Access(AccessCommand::Try { account: Some(user("admin")), source: "192.0.2.1".into() }));
    log.command(&Command::Access(AccessCommand::Try { account: None, source: "192.0.2.2".into() }));
    let open = AccessCommand::OpenSession {
        session: Digest::of(b"secret"),
        user: user("admin"),
        verified: Digest::of(phc.as_bytes()),
        source: "192.0.2.1".into(),
    };
    by(&mut log, open, &actor("log-in", "admin"));
    by(&mut log, AccessCommand::EnableUser { user: user("nobody") }, &actor("user-enable", "nobody"));
    let clone = AccessCommand::CloneRole { role: "inspector".parse().unwrap(), from: "auditor".parse().unwrap() };
    by(&mut log, clone, &actor("role-clone", "inspector"));
    let secret = AccessCommand::SetSecret { name: "pg".parse().unwrap(), sealed: "c2VhbGVk".into(), key: 1 };
    log.command(&Command::Access(secret));
    for address in ["10.0.0.8/24", "10.0.0.9/24"] {
        let (address, interface) = (address.parse().unwrap(), Some("eth0".parse().unwrap()));
        log.command(&Command::Vip(VipCommand::Add { address, interface, gateways: BTreeMap::new() }));
    }
    log.command(&Command::Vip(VipCommand::Remove { address: [10, 0, 0, 8].into() }));
    let (certificate, former, sealed) = ("new".into(), "old".into(), BTreeMap::new());
    log.command(&Command::Trust(TrustCommand::Begin {
        key: KeyKind::Authority,
        number: 2,
        certificate,
        former,
        sealed,
    }));
    log
}

#[test]
fn what_is_decided_about_access_survives_a_restart() {
    let (root, databases) = with(&log());
    let before = databases.state().access.clone();
    assert_eq!((before.users.len(), before.sessions.len(), before.secrets.len()), (1, 1, 1));
    assert_eq!((before.roles.len(), before.tries.len(), before.audit.seq), (1, 2, 4));
    let (keys, vips) = (databases.state().trust.clone(), databases.state().vips.clone());
    assert_eq!(vips.len(), 1);
    assert_eq!(keys.key(KeyKind::Authority).number, 2);
    drop(databases);
    let again = open(root.path());
    assert_eq!(again.state().access, before);
    assert_eq!(again.state().trust, keys);
    assert_eq!(again.state().vips, vips);
}

#[test]
fn a_refused_act_is_in_the_audit_and_its_outcome_is_the_refusal() {
    let root = tempfile::tempdir().unwrap();
    let mut databases = open(root.path());
    let applied = apply(&mut databases, &log());
    assert!(matches!(applied[4].outcome, Outcome::Command(Err(Refusal::Access(_)))), "{:?}", applied[4].outcome);
    assert_eq!(applied[4].changes.len(), 1);
    let page = databases.readers().reader().unwrap().audit(0, 100).unwrap();
    assert_eq!(page.links[2].entry.outcome, "refused: there is no user `nobody`");
    assert_eq!(verify(&page.links, page.head), Ok(()));
    let page = databases.readers().reader().unwrap().audit(1, 2).unwrap();
    assert_eq!(page.links.iter().map(|link| link.entry.seq).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn the_batches_make_no_difference_to_access_either() {
    let log = log();
    let (one, _databases) = with(&log);
    let root = tempfile::tempdir().unwrap();
    open(root.path()).apply(&log.entries).unwrap();
    assert_eq!(contents(one.path()), contents(root.path()));
}

#[test]
fn users_sql_sees_nothing_of_it() {
    let (_root, databases) = with(&log());
    let mut reader = databases.readers().reader().unwrap();
    let mut ask = |database: Database, sql: &str| {
        let batch = SqlBatch { statements: vec![Statement::new(sql)], transaction: false };
        let deadline = Instant::now() + Duration::from_secs(10);
        reader.query(database, &batch, deadline).unwrap().results.remove(0).map_err(|error| error.message)
    };
    for sql in [
        "SELECT body FROM users",
        "SELECT hash FROM sessions",
        "SELECT count(*) FROM secrets",
        "SELECT * FROM api_tokens",
        "SELECT * FROM AUDIT",
        "SELECT * FROM audit_head",
        "SELECT name FROM nodes UNION SELECT who FROM audit",
        "WITH x AS (SELECT * FROM main.confirmations) SELECT 1 FROM x",
        "SELECT (SELECT group_concat(guesser) FROM login_tries)",
        "SELECT name FROM roles",
        "SELECT body FROM cluster_keys",
    ] {
        let message = ask(Database::System, sql).unwrap_err();
        assert!(
            message.starts_with("users, sessions, tokens, roles, secrets, keys and the audit are not read"),
            "{sql}: {message}"
        );
    }
    ask(Database::System, "SELECT name FROM nodes").unwrap();
    let other = ask(Database::System, "ATTACH 'x' AS y").unwrap_err();
    assert!(other.starts_with("not allowed in a query"), "{other}");
    // The words are free in the users' own database.
    assert_eq!(ask(Database::Main, "SELECT * FROM users"), Err("no such table: users".into()));
}

#[test]
fn whoever_changes_the_file_is_found() {
    for (sql, broken) in [
        ("UPDATE audit SET who = 'eve' WHERE seq = 2", 2),
        ("UPDATE audit SET at_us = at_us + 1 WHERE seq = 4", 4),
        ("UPDATE audit SET idx = 'x' WHERE seq = 3", 3),
        ("UPDATE audit SET hash = x'00' WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 4", 4),
        ("DELETE FROM audit", 1),
        (
            "UPDATE audit SET seq = CASE seq WHEN 2 THEN -3 WHEN 3 THEN -2 ELSE seq END; UPDATE audit SET seq = abs(seq)",
            2,
        ),
        ("DELETE FROM audit WHERE seq = 4; UPDATE audit_head SET seq = 3", 4),
    ] {
        let (root, databases) = with(&log());
        drop(databases);
        let path = writer::file(&Place::from(root.path()).current().unwrap(), Database::System);
        Connection::open(path).unwrap().execute_batch(sql).unwrap();
        let databases = open(root.path());
        let page = databases.readers().reader().unwrap().audit(0, 100).unwrap();
        assert_eq!(verify(&page.links, page.head).unwrap_err().seq, broken, "{sql}");
    }
}
