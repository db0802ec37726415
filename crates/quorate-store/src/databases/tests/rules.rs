//! What replicated SQL may not do, and that asking for it harms nobody.

use super::*;

/// Tries one statement in an entry of its own between two good ones, and returns its error.
fn refused(sql: &str) -> String {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a INTEGER PRIMARY KEY, b)", "CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT)"]);
    log.sql(&["INSERT INTO t (b) VALUES (1)", "INSERT INTO auto VALUES (NULL)"]);
    let (root, mut databases) = with(&log);
    let before = ask(root.path(), "SELECT group_concat(name || rootpage || sql) FROM sqlite_schema");
    log.sql(&[sql]);
    let message = error(&last(&apply(&mut databases, &log))[0]).to_owned();
    log.sql(&["INSERT INTO t (b) VALUES (2)", sql, "INSERT INTO t (b) VALUES (3)"]);
    let applied = apply(&mut databases, &log);
    let errors: Vec<bool> = last(&applied).iter().map(|result| result.error.is_some()).collect();
    assert_eq!(errors, [false, true, false], "{sql}");
    log.transaction(&["INSERT INTO t (b) VALUES (4)", sql]);
    assert_eq!(last(&apply(&mut databases, &log)).len(), 2);
    assert_eq!(ask(root.path(), "SELECT group_concat(b) FROM t"), format!("Text({:?})", b"1,2,3"));
    assert_eq!(before, ask(root.path(), "SELECT group_concat(name || rootpage || sql) FROM sqlite_schema"));
    message
}

#[test]
fn what_is_not_allowed_is_refused_and_harms_nobody() {
    for sql in [
        "BEGIN",
        "COMMIT",
        "END",
        "ROLLBACK",
        "SAVEPOINT e",
        "RELEASE e",
        "ROLLBACK TO e",
        "ATTACH ':memory:' AS x",
        "DETACH main",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA user_version = 3",
        "PRAGMA writable_schema = 1",
        "PRAGMA data_version",
        "SELECT * FROM pragma_data_version",
        "CREATE TEMP TABLE x (a)",
        "CREATE TEMP VIEW x AS SELECT 1",
        "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END",
        "UPDATE _quorate_meta SET applied = 0",
        "DELETE FROM _QUORATE_requests",
        "SELECT applied FROM _quorate_meta",
        "SELECT count(*) FROM _quorate_meta",
        "INSERT INTO t SELECT NULL, sum(payload) FROM dbstat",
        "DROP TABLE _quorate_requests",
        "ALTER TABLE _quorate_meta RENAME TO x",
        "ALTER TABLE t RENAME TO _quorate_t",
        "CREATE TABLE _quorate_x (a)",
        "CREATE VIEW _quorate_v AS SELECT 1",
        "CREATE INDEX _quorate_i ON t (b)",
        "CREATE TRIGGER x AFTER INSERT ON _quorate_requests BEGIN SELECT 1; END",
        "ANALYZE",
        "UPDATE sqlite_sequence SET seq = 9223372036854775807",
        "INSERT INTO sqlite_sequence VALUES ('auto', 9223372036854775807)",
        "/*quorate*/ ROLLBACK TO e",
        "/*quorate*/ BEGIN IMMEDIATE",
        "/*quorate*/ UPDATE _quorate_meta SET synced = synced + 1",
    ] {
        let message = refused(sql);
        assert!(message.starts_with("not allowed in replicated SQL: "), "{sql}: {message}");
    }
}

#[test]
fn mistakes_are_told_with_their_place_or_remedy() {
    for (sql, message) in [
        ("SELECT load_extension('x')", "not authorized to use function: load_extension (at byte 7)"),
        ("SELEC 1", "near \"SELEC\": syntax error"),
        ("SELECT * FROM nope", "no such table: nope"),
        ("SELECT 1; SELECT 2", "several statements in one: send them as a list, one each"),
        ("SELECT nope FROM t", "no such column: nope (at byte 7)"),
        ("SELECT ?1, ?2", "0 parameters given, 2 wanted"),
        ("SELECT 1\0", "the statement contains a NUL byte"),
        ("", "the statement is empty"),
        (" -- nothing\n ;", "the statement is empty"),
        ("VACUUM", "cannot VACUUM from within a transaction"),
        (
            "INSERT INTO t VALUES (9223372036854775807, 1)",
            "a row id of 9223372036854775807 is not allowed: SQLite would choose later ids at random",
        ),
        (
            "UPDATE t SET a = 9223372036854775807",
            "a row id of 9223372036854775807 is not allowed: SQLite would choose later ids at random",
        ),
        ("DELETE FROM sqlite_master", "table sqlite_master may not be modified"),
        ("SELECT randomblob(1000000000)", "randomblob() of more than 128 MiB"),
        ("SELECT zeroblob(1000000000)", "string or blob too big"),
        ("SELECT zeroblob(9000000)", "the statements return more than 8 MiB: read in a query instead"),
    ] {
        assert_eq!(refused(sql), message, "{sql}");
    }
}

#[test]
fn parameters_are_bound_by_position_and_by_name() {
    let mut log = Log::new();
    let value = |number| Value::from(Scalar::Integer(number));
    let named = |name: &str, number| quorate_model::sql::NamedValue { name: name.into(), value: value(number) };
    let statement = |sql: &str, positional: &[i64], names: &[(&str, i64)]| Statement {
        sql: sql.into(),
        positional: positional.iter().map(|number| value(*number)).collect(),
        named: names.iter().map(|(name, number)| named(name, *number)).collect(),
    };
    let statements = vec![
        statement("SELECT ?1 + ?2", &[1, 2], &[]),
        statement("SELECT :a + @b + $c", &[], &[("a", 1), ("b", 2), ("c", 4)]),
        statement("SELECT ?1", &[1, 2], &[]),
        statement("SELECT :a", &[], &[("b", 1)]),
        statement("SELECT ?1 + ?2", &[8, 1], &[]),
    ];
    log.batch(7, &SqlBatch { statements, transaction: false });
    let (_root, applied) = fresh(&log);
    let got: Vec<String> = last(&applied)
        .iter()
        .map(|result| match &result.rows {
            Some(rows) => format!("{:?}", rows.rows[0].values[0].scalar.clone().unwrap()),
            None => error(result).to_owned(),
        })
        .collect();
    assert_eq!(
        got,
        ["Integer(3)", "Integer(7)", "2 parameters given, 1 wanted", "no parameter is named `b`", "Integer(9)"]
    );
}

fn fresh(log: &Log) -> (TempDir, Vec<AppliedEntry>) {
    let root = tempfile::tempdir().unwrap();
    let applied = apply(&mut open(root.path()), log);
    (root, applied)
}

#[test]
fn a_statement_that_does_too_much_ends_at_the_same_place_and_keeps_what_was_before() {
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"]);
    log.sql(&[endless]);
    log.sql(&["INSERT INTO t VALUES (2)", &format!("INSERT INTO t {endless}")]);
    log.sql(&["INSERT INTO t VALUES (3)"]);
    let (root, one) = fresh(&log);
    let other = tempfile::tempdir().unwrap();
    let mut databases = open(other.path());
    assert_eq!(one, databases.apply(&log.entries).unwrap());
    for position in [1, 2] {
        let message = error(&outcome(&one[position]).results[0]);
        assert_eq!(message, "the statement does too much: more than 50 million steps; do it in parts");
    }
    assert_eq!(ask(root.path(), "SELECT group_concat(a) FROM t"), format!("Text({:?})", b"1,3"));
    assert!(contents(root.path()) == contents(other.path()));
}

#[test]
fn a_virtual_table_that_contradicts_itself_is_an_answer() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)", "CREATE VIRTUAL TABLE ft USING fts5(a, content = 't')"]);
    log.sql(&["INSERT INTO ft (rowid, a) VALUES (5, 'x')", "INSERT INTO ft (ft, rank) VALUES ('integrity-check', 1)"]);
    log.sql(&["SELECT a FROM ft WHERE ft MATCH 'x'"]);
    let (_root, applied) = fresh(&log);
    assert_eq!(outcome(&applied[1]).results[1].error.as_ref().unwrap().code, rusqlite::ffi::SQLITE_CORRUPT_VTAB);
    assert_eq!(outcome(&applied[2]).results[0].error.as_ref().unwrap().code, rusqlite::ffi::SQLITE_CORRUPT_VTAB);
}

#[test]
fn an_entry_that_cannot_be_understood_stops_and_leaves_nothing() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]).command(&register(1, 1));
    let (root, mut databases) = with(&log);
    let before = contents(root.path());
    let state = databases.state().clone();
    let mut more = log.clone();
    more.sql(&["INSERT INTO t VALUES (1)"]).command(&register(2, 1));
    let good = more.clone();
    more.item(Item::Data(determinism::too_new()));
    let failed = databases.apply(&more.entries[2..]).unwrap_err();
    assert!(matches!(failed, ApplyError::Entry { index: LogIndex(5), source: EntryError::TooNew { found: 99 } }));
    assert_eq!(before, contents(root.path()));
    // A command for the wrong file panics half-way.
    let Item::Data(data) = &good.entries[3].item else { panic!("it is data") };
    let mut envelope = Envelope::read(data.clone()).unwrap();
    envelope.database = Database::Main as i32;
    let wrong = ToApply { item: Item::Data(prost_bytes(&envelope)), ..more.entries[4].clone() };
    let batch = [good.entries[2].clone(), good.entries[3].clone(), wrong];
    assert!(matches!(databases.apply(&batch).unwrap_err(), ApplyError::Panicked { index: LogIndex(5) }));
    assert_eq!(before, contents(root.path()));
    assert_eq!(*databases.state(), state);
    drop(databases);
    let mut databases = open(root.path());
    databases.apply(&good.entries[2..]).unwrap();
    assert_eq!(databases.state().nodes.len(), 2);
    assert_eq!(ask(root.path(), "SELECT count(*) FROM t"), "Integer(1)");
}

#[test]
fn a_full_disk_is_no_answer() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]);
    let (root, mut databases) = with(&log);
    databases.main.connection.pragma_update(None, "max_page_count", 20).unwrap();
    let before = contents(root.path());
    log.sql(&["INSERT INTO t VALUES (1)"]).sql(&["INSERT INTO t VALUES (zeroblob(1000000))"]).command(&register(1, 1));
    let failed = databases.apply(&log.entries[1..]).unwrap_err();
    assert!(matches!(failed, ApplyError::Sqlite { index: LogIndex(3), database: "main", .. }), "{failed:?}");
    assert_eq!(before, contents(root.path()));
    assert!(databases.state().nodes.is_empty());
    drop(databases);
    let mut databases = open(root.path());
    assert_eq!(apply(&mut databases, &log).len(), 3);
    assert_eq!(ask(root.path(), "SELECT sum(length(a)) FROM t"), "Integer(1000001)");
}
