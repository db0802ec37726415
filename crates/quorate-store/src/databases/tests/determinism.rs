//! One log, one outcome: whatever the batches, restarts and crashes.

use super::*;

/// A log with everything that could make nodes differ.
fn varied() -> Log {
    let mut log = Log::new();
    log.item(Item::Data(Bytes::new()));
    log.command(&register(1 << 64, 1)).command(&apply_spec(WEB));
    log.sql(&[
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE, c DEFAULT CURRENT_TIMESTAMP, d DEFAULT (random()), e CHECK (e > 0))",
        "CREATE TABLE log (at, what)",
        "CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT, x)",
        "CREATE TABLE pairs (k TEXT, v TEXT, PRIMARY KEY (k, v)) WITHOUT ROWID",
        "CREATE TABLE plain (x)",
    ]);
    log.sql(&["CREATE TRIGGER tell AFTER INSERT ON t BEGIN
        INSERT INTO log VALUES (datetime('now'), hex(randomblob(8)) || NEW.a || ' ' || random()); END"]);
    log.sql(&["CREATE TRIGGER no13 BEFORE INSERT ON t WHEN NEW.a = 13 BEGIN SELECT RAISE(ABORT, 'thirteen'); END"]);
    log.sql(&["CREATE TRIGGER no14 BEFORE INSERT ON t WHEN NEW.a = 14 BEGIN SELECT RAISE(ROLLBACK, 'fourteen'); END"]);
    log.sql(&["CREATE TRIGGER no15 BEFORE INSERT ON t WHEN NEW.a = 15 BEGIN SELECT RAISE(FAIL, 'fifteen'); END"]);
    log.sql(&["CREATE VIEW v AS SELECT a, b FROM t ORDER BY d"]);
    for round in 0..6 {
        let base = round * 100;
        let row = |offset: u32| format!("INSERT INTO t (a, b) VALUES ({0}, 'b{0}')", base + offset);
        log.sql(&[&row(1)]);
        log.sql(&[&row(2), &row(1), &row(3), "INSERT INTO t (b, e) VALUES ('bad', -1)", &row(4)]);
        log.transaction(&[&row(5), &row(6)]);
        log.transaction(&[&row(7), &row(6), &row(8)]);
        log.sql(&[&format!(
            "INSERT OR FAIL INTO t (a, b) VALUES ({}, 'x{base}'), ({}, 'y{base}')",
            base + 9,
            base + 1
        )]);
        log.sql(&[&format!("INSERT OR ROLLBACK INTO t (a, b) VALUES ({}, 'z')", base + 1)]);
        log.sql(&[&row(10), &format!("INSERT OR ROLLBACK INTO t (a, b) VALUES ({}, 'z')", base + 1), &row(11)]);
        log.sql(&[
            "INSERT INTO plain VALUES (1), (2)",
            "INSERT INTO t (a) VALUES (13)",
            "INSERT INTO t (a) VALUES (14)",
        ]);
        log.sql(&["INSERT INTO plain VALUES (3)", "INSERT INTO t (a) VALUES (13)", "INSERT INTO t (a) VALUES (15)"]);
        log.sql(&[
            "INSERT INTO t (b) SELECT 'r' || random() FROM plain ORDER BY random() LIMIT 3 RETURNING a, b, c, d",
        ]);
        log.sql(&["INSERT INTO auto (x) SELECT d FROM t ORDER BY random()", "DELETE FROM auto WHERE id % 2"]);
        log.sql(&[
            "INSERT INTO plain VALUES (1), (2), (3)",
            "INSERT INTO plain SELECT changes() || ' ' || total_changes() || ' ' || last_insert_rowid()",
            "UPDATE plain SET x = x || changes() WHERE x LIKE '3 %'",
            "SELECT changes(), total_changes(), last_insert_rowid(), random(), unixepoch('now', 'subsec')",
        ]);
        log.sql(&["SELECT changes(), total_changes(), last_insert_rowid(), (SELECT count(*) FROM v)"]);
        log.sql(&[
            "INSERT OR REPLACE INTO pairs SELECT x % 3, hex(randomblob(2)) FROM auto",
            "DELETE FROM pairs WHERE v < '3'",
        ]);
        log.sql(&[
            "INSERT INTO missing VALUES (1)",
            "SELEC 1",
            "SELECT * FROM v WHERE nope",
            "INSERT INTO plain VALUES (?1)",
        ]);
        log.sql(&["SELECT * FROM plain ORDER BY random() LIMIT 2"]);
        log.sql(&[&format!("ALTER TABLE plain ADD COLUMN c{round} DEFAULT {round}"), "SELECT * FROM plain LIMIT 1"]);
        log.transaction(&[
            "ALTER TABLE plain ADD COLUMN gone",
            "SELECT * FROM plain LIMIT 1",
            "INSERT INTO missing VALUES (1)",
        ]);
        log.sql(&["SELECT * FROM plain LIMIT 1", "SELECT * FROM plain WHERE gone"]);
        log.sql(&["CREATE TABLE IF NOT EXISTS fleeting (a)"]).sql(&["INSERT INTO fleeting VALUES (random())"]);
        log.sql(&["DROP TABLE fleeting"]).sql(&["INSERT INTO fleeting VALUES (random())"]);
        log.sql_as(7, &[&row(20)], false).sql_as(7, &[&row(21)], false);
        log.sql(&["UPDATE t SET d = random(), b = b || '.' WHERE a % 3 = 0", "DELETE FROM t WHERE a % 7 = 0"]);
        log.command(&scale("web", round + 2)).command(&scale("wbe", 3)).command(&scale("web", 0));
        let (replica, node) = (ReplicaId::from_u128(u128::from(round) + 1), NodeId::from_u128(1 << 64));
        let service = ServiceName::new("web").unwrap();
        let expected = LogIndex(log.next() - 3);
        log.command(&Command::CarryOut {
            expected,
            steps: vec![Step::Place { replica, service, ordinal: round, node, version: None, epoch: None }],
        });
        log.command(&Command::CarryOut { expected: LogIndex(1), steps: vec![Step::Retire { replica }] });
        log.command(&Command::Record { at: WallTime(3), what: Happening::LeaderElected { node, term: Term(2) } });
        log.item(Item::Membership { voters: Bytes::from(format!("voters {round}")) });
        log.later(25);
    }
    log
}

struct End {
    applied: Vec<AppliedEntry>,
    contents: String,
    state: ClusterState,
    voters: Bytes,
}

/// Applies a log in batches; with `reopen`, drops and reopens after every so many of them.
fn run(log: &Log, batch: usize, reopen: Option<usize>) -> End {
    let root = tempfile::tempdir().unwrap();
    let mut databases = open(root.path());
    let mut applied = Vec::new();
    for (number, entries) in log.entries.chunks(batch).enumerate() {
        applied.extend(databases.apply(entries).unwrap());
        if reopen.is_some_and(|every| number % every == every - 1) {
            drop(databases);
            databases = open(root.path());
        }
    }
    let state = databases.state().clone();
    drop(databases);
    let voters = Databases::open(root.path(), b"").unwrap().voters;
    End { applied, contents: contents(root.path()), state, voters }
}

fn assert_same(one: &End, other: &End) {
    for (one, other) in one.applied.iter().zip(&other.applied) {
        assert_eq!(one, other);
    }
    assert_eq!(one.applied.len(), other.applied.len());
    assert!(one.contents == other.contents, "{}\n\n{}", one.contents, other.contents);
    assert_eq!(one.state, other.state);
    assert_eq!(one.voters, other.voters);
}

#[test]
fn batches_and_restarts_change_nothing() {
    let log = varied();
    let plain = run(&log, 1, None);
    assert_eq!(plain.voters, "voters 5");
    for (batch, reopen) in [(7, None), (512, None), (1, Some(1)), (1, Some(10)), (7, Some(1)), (7, Some(3))] {
        assert_same(&plain, &run(&log, batch, reopen));
    }
}

#[test]
fn entries_that_end_the_transaction_leave_the_others_their_own_time() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a PRIMARY KEY, at DEFAULT CURRENT_TIMESTAMP)"]);
    log.later(10).sql(&["INSERT INTO t (a) VALUES (1)"]);
    log.later(10).sql(&["INSERT OR ROLLBACK INTO t (a) VALUES (1)"]);
    log.later(10).sql(&["INSERT INTO t (a) VALUES (2)"]);
    assert_same(&run(&log, 1, None), &run(&log, 512, None));
}

#[test]
fn a_full_text_index_is_the_same_everywhere() {
    let mut log = Log::new();
    log.sql(&["CREATE VIRTUAL TABLE ft USING fts5(a, b)", "CREATE TABLE out (x)"]);
    for n in 0..40 {
        log.sql(&[&format!("INSERT INTO ft VALUES ('word{n} common', 'w{}')", n % 5)]);
        log.sql(&[
            &format!("INSERT INTO ft VALUES ('a{n} common', 'b')"),
            "INSERT INTO missing VALUES (1)",
            &format!("DELETE FROM ft WHERE ft MATCH 'word{}'", n / 2),
        ]);
        log.transaction(&["UPDATE ft SET b = b || ' more' WHERE rowid % 5 = 1", "INSERT INTO missing VALUES (1)"]);
        log.sql(&["INSERT INTO out SELECT count(*) FROM ft WHERE ft MATCH 'common'"]);
    }
    let plain = run(&log, 1, None);
    for result in plain.applied.iter().flat_map(|entry| &outcome(entry).results) {
        assert!(["", "no such table: missing"].contains(&error(result)), "{result:?}");
    }
    for (batch, reopen) in [(1, Some(1)), (7, None), (512, None), (7, Some(3))] {
        assert_same(&plain, &run(&log, batch, reopen));
    }
}

#[test]
fn entries_that_a_file_already_has_change_nothing() {
    let log = varied();
    let (root, mut databases) = with(&log);
    let before = contents(root.path());
    for again in databases.apply(&log.entries).unwrap() {
        assert!(again.repeated && again.digests.is_none(), "{again:?}");
    }
    assert_eq!(before, contents(root.path()));
}

/// A crash between the two commits of a batch leaves `main` ahead, which is made here by giving
/// one database the whole log and another only a part, and then combining their files.
#[test]
fn a_crash_between_the_commits_of_the_two_files_is_made_up_for() {
    let log = varied();
    let plain = run(&log, 1, None);
    for (system_has, main_has) in [(40, 47), (41, 100), (0, 60), (100, 95)] {
        let (behind, ahead) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop((apply_first(behind.path(), &log, system_has), apply_first(ahead.path(), &log, main_has)));
        let name = |root: &TempDir, end: &str| root.path().join("0-0").join(format!("main.db{end}"));
        for end in ["", "-wal"] {
            std::fs::copy(name(&ahead, end), name(&behind, end)).unwrap();
        }
        std::fs::remove_file(name(&behind, "-shm")).unwrap();
        let opened = Databases::open(behind.path(), b"").unwrap();
        let mut databases = opened.databases;
        let from = usize::try_from(opened.applied.0).unwrap();
        assert!(from <= system_has.min(main_has));
        for batch in log.entries[from..].chunks(7) {
            for (entry, plain) in databases
                .apply(batch)
                .unwrap()
                .iter()
                .zip(&plain.applied[usize::try_from(batch[0].index.0).unwrap() - 1..])
            {
                if entry.digests.is_some() {
                    assert_eq!(entry, plain);
                }
            }
        }
        assert_eq!(*databases.state(), plain.state);
        assert!(contents(behind.path()) == plain.contents);
    }
}

fn apply_first(root: &Path, log: &Log, count: usize) -> Databases {
    let mut databases = open(root);
    for batch in log.entries[..count].chunks(5) {
        databases.apply(batch).unwrap();
    }
    databases
}

#[test]
fn one_other_value_gives_another_digest_from_then_on() {
    let log = |value: &str| {
        let mut log = Log::new();
        log.sql(&["CREATE TABLE t (a)"]).sql(&[&format!("INSERT INTO t VALUES ({value})")]);
        log.sql(&["INSERT INTO t VALUES (2)"]).command(&register(1, 1));
        run(&log, 1, None).applied
    };
    let (one, other) = (log("1"), log("'1'"));
    assert_eq!(one[0].digests, other[0].digests);
    for position in 1..4 {
        assert_ne!(one[position].digests.unwrap()[1], other[position].digests.unwrap()[1]);
        assert_eq!(one[position].outcome, other[position].outcome);
    }
}

#[test]
fn a_request_that_is_sent_again_gets_its_first_outcome() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]).sql_as(7, &["INSERT INTO t VALUES (random()) RETURNING a"], false);
    let (root, mut databases) = with(&log);
    let first = databases.apply(&[]).unwrap();
    assert!(first.is_empty());
    let before = ask(root.path(), "SELECT group_concat(a) FROM t");
    let mut firsts = None;
    for _ in 0..2 {
        log.later(100);
        log.time_us = START;
        log.sql_as(7, &["INSERT INTO t VALUES ('something else')"], false);
        let applied = apply(&mut databases, &log);
        let again = applied.last().unwrap();
        assert!(again.repeated && again.changes.is_empty());
        assert!(again.done_at < again.index, "the index of an answer is that of the entry that did it");
        assert_eq!(*firsts.get_or_insert(again.done_at), again.done_at);
        let rows = outcome(again).results[0].rows.clone().unwrap();
        let Some(Scalar::Integer(number)) = rows.rows[0].values[0].scalar else { panic!("{rows:?}") };
        assert_eq!(format!("Text({:?})", number.to_string().as_bytes()), before);
        drop(databases);
        databases = open(root.path());
    }
    assert_eq!(ask(root.path(), "SELECT group_concat(a) FROM t"), before);
}

#[test]
fn a_refused_command_that_is_sent_again_is_refused_again() {
    let mut log = Log::new();
    let proposal = Proposal::command(RequestId::from_u128(7), &scale("web", 2));
    log.push(proposal.clone());
    log.command(&apply_spec(WEB));
    log.push(proposal);
    let end = run(&log, 2, Some(1));
    assert!(matches!(end.applied[0].outcome, Outcome::Command(Err(_))));
    assert_eq!(end.applied[0].outcome, end.applied[2].outcome);
    assert!(end.applied[2].repeated);
}

#[test]
fn request_ids_are_forgotten_at_the_same_entry_everywhere() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]);
    for _ in 0..298 {
        log.sql(&["INSERT INTO t VALUES (1)"]);
    }
    log.sql_as(7, &["INSERT INTO t VALUES (0)"], false);
    // The id comes again and again while more than two minutes pass.
    for n in 0..600 {
        log.later(1);
        if n % 10 == 0 {
            log.sql_as(7, &["INSERT INTO t VALUES ('again')"], false);
        } else {
            log.sql(&["INSERT INTO t VALUES (1)"]);
        }
    }
    let plain = run(&log, 1, None);
    let again: Vec<u64> = plain.applied.iter().filter(|entry| entry.repeated).map(|entry| entry.index.0).collect();
    assert_eq!(again[..2], [301, 311], "remembered at first");
    assert!(again.len() < 60, "forgotten once");
    for (batch, reopen) in [(7, None), (512, None), (1, Some(7)), (7, Some(1)), (50, Some(1))] {
        assert_same(&plain, &run(&log, batch, reopen));
    }
}

#[test]
fn a_leap_of_the_logs_time_makes_nobody_forget_what_was_just_done() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]);
    for _ in 0..220 {
        log.sql(&["INSERT INTO t VALUES (1)"]);
    }
    log.sql_as(7, &["INSERT INTO t VALUES (0)"], false);
    // A leader whose clock is two hours ahead takes over, and then (at 256) ids are looked through.
    log.later(7_200);
    for _ in 0..40 {
        log.sql(&["INSERT INTO t VALUES (1)"]);
    }
    log.sql_as(7, &["INSERT INTO t VALUES (0)"], false);
    assert!(run(&log, 7, None).applied.last().unwrap().repeated);
}

#[test]
fn a_rolled_back_batch_is_not_remembered() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]);
    for n in 0..250 {
        log.sql(&[&format!("INSERT INTO t VALUES ({n})")]);
    }
    let (root, mut databases) = with(&log);
    let known = log.entries.len();
    // This batch forgets old ids, also some of its own, and fails at its end.
    let mut bad = log.clone();
    for _ in 0..20 {
        bad.later(60).sql(&["INSERT INTO t VALUES (1)"]);
    }
    bad.item(Item::Data(too_new()));
    databases.main.run(&decode(&bad.entries[known..known + 20]), &bad.entries[known], LAG_MAX, None).unwrap();
    databases.main.abandon();
    for position in [1, 100, 249] {
        log.sql_as(u128::from(log.entries[position].index.0) << 64, &["INSERT INTO t VALUES (9)"], false);
        assert!(apply(&mut databases, &log)[0].repeated);
    }
    log.sql_as(u128::from(bad.entries[known + 1].index.0) << 64, &["INSERT INTO t VALUES (9)"], false);
    assert!(!apply(&mut databases, &log)[0].repeated);
    drop(databases);
    let reopened = open(root.path());
    assert_eq!(reopened.main.applied().digest, run(&log, 1, None).applied.last().unwrap().digests.unwrap()[1]);
}

fn decode(entries: &[ToApply]) -> Vec<Decoded> {
    entries.iter().map(|entry| Decoded::read(entry).unwrap()).collect()
}

pub(super) fn too_new() -> Bytes {
    prost_bytes(&Envelope { version: 99, ..Envelope::default() })
}
