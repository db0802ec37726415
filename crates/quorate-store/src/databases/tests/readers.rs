//! Reading while the writer goes on.

use super::*;
use quorate_model::sql::Rows;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn query(reader: &mut Reader, statements: &[&str]) -> Vec<Result<Rows, String>> {
    let statements = statements.iter().map(|sql| Statement::new(*sql)).collect();
    let answer = reader.query(Database::Main, &SqlBatch { statements, transaction: false }, soon()).unwrap();
    answer.results.into_iter().map(|result| result.map_err(|error| error.message)).collect()
}

fn number(result: &Result<Rows, String>) -> i64 {
    match result.as_ref().unwrap().rows[0].values[0].scalar {
        Some(Scalar::Integer(number)) => number,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn many_readers_see_whole_batches_in_their_order() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)", "INSERT INTO t VALUES (0)"]);
    let (root, mut databases) = with(&log);
    for _ in 0..900 {
        log.sql(&["INSERT INTO t VALUES (1)"]);
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    let all_have_read = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut reader = databases.readers().reader().unwrap();
            let (done, all_have_read) = (&done, &all_have_read);
            scope.spawn(move || {
                let mut before = 0;
                loop {
                    let last = done.load(std::sync::atomic::Ordering::Acquire);
                    let found = query(&mut reader, &["SELECT count(*) FROM t", "SELECT sum(a) FROM t"]);
                    let count = number(&found[0]);
                    assert_eq!(count - 1, number(&found[1]), "both from one moment");
                    assert!(count >= before && (count - 1) % 30 == 0, "{count}");
                    if before == 0 {
                        all_have_read.wait();
                    }
                    before = count;
                    if last {
                        break;
                    }
                }
                assert_eq!(before, 901, "what was there when it was told that all is done");
            });
        }
        all_have_read.wait();
        let outsider = outside(root.path(), Database::Main);
        for batch in log.entries[1..].chunks(30) {
            databases.apply(batch).unwrap();
            let sum: i64 = outsider.query_row("SELECT sum(a) FROM t", [], |row| row.get(0)).unwrap();
            assert_eq!(sum, batch[29].index.0.cast_signed() - 1, "an ordinary connection sees the same");
        }
        done.store(true, std::sync::atomic::Ordering::Release);
    });
    assert_eq!(query(&mut databases.readers().reader().unwrap(), &["SELECT count(*) FROM t"]).len(), 1);
}

#[test]
fn an_answer_tells_up_to_where_its_file_was_applied() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]).command(&register(1, 1));
    let (_root, databases) = with(&log);
    let mut reader = databases.readers().reader().unwrap();
    let nothing = SqlBatch::default();
    assert_eq!(reader.query(Database::Main, &nothing, soon()).unwrap().applied, LogIndex(1));
    assert_eq!(reader.query(Database::System, &nothing, soon()).unwrap().applied, LogIndex(2));
}

#[test]
fn what_is_no_query_is_refused_with_the_way_to_do_it() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"]);
    let (root, databases) = with(&log);
    let mut reader = databases.readers().reader().unwrap();
    for sql in [
        "INSERT INTO t VALUES (2)",
        "DELETE FROM t",
        "CREATE TABLE x (a)",
        "INSERT INTO t VALUES (1) RETURNING a",
        "VACUUM",
    ] {
        let message = query(&mut reader, &[sql])[0].clone().unwrap_err();
        assert_eq!(message, "this statement writes: send it to db exec, which puts it into the log", "{sql}");
    }
    let elsewhere = root.path().join("elsewhere.db");
    let attach = format!("ATTACH '{}' AS x", elsewhere.display());
    for sql in [
        "BEGIN",
        "COMMIT",
        "SAVEPOINT x",
        attach.as_str(),
        &format!("\u{feff}{attach}"),
        &format!("-- c\n{attach}"),
        "DETACH main",
        "PRAGMA journal_mode",
        "PRAGMA query_only = 0",
        "/* PRAGMA table_info */ PRAGMA query_only = 0",
        "CREATE TEMP TABLE x (a)",
        "ANALYZE",
        "DROP TABLE _quorate_meta",
    ] {
        let message = query(&mut reader, &[sql])[0].clone().unwrap_err();
        assert!(message.starts_with("not allowed in a query: "), "{sql}: {message}");
        assert_eq!(number(&query(&mut reader, &["SELECT a FROM t"])[0]), 1, "the reader still reads");
    }
    for sql in ["SELECT a FROM nope", "SELEC", "", "SELECT 1; SELECT 2", "SELECT ?1"] {
        assert!(query(&mut reader, &[sql])[0].is_err(), "{sql}");
    }
    for sql in [
        "PRAGMA table_info(t)",
        "EXPLAIN SELECT 1",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "SELECT applied FROM _quorate_meta",
    ] {
        assert!(!query(&mut reader, &[sql])[0].as_ref().unwrap().rows.is_empty(), "{sql}");
    }
}

#[test]
fn a_query_past_its_deadline_is_given_up_and_the_next_one_works() {
    let (_root, databases) = with(&Log::new());
    let mut reader = databases.readers().reader().unwrap();
    let endless = Statement::new("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT count(*) FROM n");
    let batch = SqlBatch { statements: vec![endless], transaction: false };
    let failed = reader.query(Database::Main, &batch, Instant::now() + Duration::from_millis(20)).unwrap_err();
    assert!(matches!(failed, QueryError::TooSlow));
    assert_eq!(number(&query(&mut reader, &["SELECT 7"])[0]), 7);
}

#[test]
fn a_reader_sees_a_changed_schema_and_a_full_text_index() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)", "CREATE VIRTUAL TABLE ft USING fts5(x)"]);
    let (_root, mut databases) = with(&log);
    let mut reader = databases.readers().reader().unwrap();
    let both = ["SELECT * FROM t", "SELECT count(*) FROM ft WHERE ft MATCH 'word'"];
    assert_eq!(query(&mut reader, &both)[0].as_ref().unwrap().columns, ["a"]);
    log.sql(&["ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 2", "INSERT INTO ft VALUES ('a word')"]);
    apply(&mut databases, &log);
    let found = query(&mut reader, &both);
    let rows = found[0].as_ref().unwrap();
    assert_eq!((rows.columns.len(), rows.types[1].as_str(), rows.rows[0].values.len()), (2, "integer", 2));
    assert_eq!(number(&found[1]), 1);
}
