//! SQLite on a simulated machine.

use super::super::random::SplitMix;
use super::super::{MemoryFs, MemoryVfs};
use crate::ClockVfs;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const FILE: &str = "/db/main.db";

fn machine() -> (MemoryFs, MemoryVfs) {
    let fs = MemoryFs::new();
    fs.create_dir_all(Path::new("/db")).unwrap();
    fs.sync(Path::new("/")).unwrap();
    (fs.clone(), MemoryVfs::register(fs))
}

fn open(vfs: &str, path: &str) -> Connection {
    try_open(vfs, path).unwrap()
}

fn try_open(vfs: &str, path: &str) -> Result<Connection, Error> {
    Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs)
}

fn mode(connection: &Connection, mode: &str) -> Result<(), Error> {
    connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| {
        assert_eq!(row.get::<_, String>(0)?.to_uppercase(), mode);
        Ok(())
    })
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn is_intact(connection: &Connection) -> bool {
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).is_ok_and(|answer: String| answer == "ok")
}

fn code(error: &Error) -> ErrorCode {
    error.sqlite_error_code().unwrap()
}

/// Names and contents of the database's directory, and what was ever written and synced.
fn fingerprint(fs: &MemoryFs) -> (BTreeMap<String, Vec<u8>>, u64, u64) {
    let names = fs.list(Path::new("/db")).unwrap();
    let bytes = |name: String| (name.clone(), fs.bytes(&Path::new("/db").join(name)).unwrap());
    (names.into_iter().map(bytes).collect(), fs.written_bytes(), fs.syncs())
}

/// Key → the transaction that wrote it last, and how long its value is.
type Rows = BTreeMap<i64, (i64, i64)>;

fn rows(connection: &Connection) -> Result<Rows, Error> {
    let mut select = connection.prepare("SELECT k, n, length(v) FROM t")?;
    select.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?.collect()
}

/// A database under random transactions on a machine that loses its power.
struct Run {
    fs: MemoryFs,
    vfs: MemoryVfs,
    journal: &'static str,
    synchronous: &'static str,
    random: SplitMix,
    /// The rows after each transaction that was committed, or perhaps so.
    history: Vec<Rows>,
}

/// What a crash left of the transactions.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// Those up to this many before the last commit that was reported, or one more than that.
    Behind(usize),
    /// No prefix of them, or no database at all.
    Broken,
}

impl Run {
    fn new(journal: &'static str, synchronous: &'static str, seed: u64) -> Run {
        let (fs, vfs) = machine();
        let random = SplitMix(seed);
        let run = Run { fs, vfs, journal, synchronous, random, history: vec![Rows::new()] };
        let connection = run.connect().unwrap();
        connection.execute_batch("CREATE TABLE t (k INTEGER PRIMARY KEY, n, v); CREATE INDEX i ON t (n)").unwrap();
        let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        drop(connection);
        for name in run.fs.list(Path::new("/db")).unwrap() {
            run.fs.sync(&Path::new("/db").join(name)).unwrap();
        }
        run.fs.sync(Path::new("/db")).unwrap();
        run
    }

    fn connect(&self) -> Result<Connection, Error> {
        let connection = try_open(self.vfs.name(), FILE)?;
        mode(&connection, self.journal)?;
        // So few pages that a transaction writes some before it commits.
        connection.execute_batch(&format!("PRAGMA synchronous = {}; PRAGMA cache_size = 4", self.synchronous))?;
        connection.query_row("PRAGMA wal_autocheckpoint = 20", [], |_| Ok(()))?;
        Ok(connection)
    }

    /// One random transaction; the rows that it leads to.
    fn transaction(&mut self, connection: &Connection) -> (Rows, Result<(), Error>) {
        let mut rows = self.history.last().unwrap().clone();
        let number = self.history.len() as i64;
        let random = &mut self.random;
        let mut outcome = connection.execute_batch("BEGIN IMMEDIATE");
        for _ in 0..=random.below(12) {
            let (key, length) = (random.below(60) as i64, random.below(2_500) as i64);
            let ran = if random.below(4) == 0 {
                rows.remove(&key);
                connection.execute("DELETE FROM t WHERE k = ?1", [key])
            } else {
                rows.insert(key, (number, length));
                connection.execute("REPLACE INTO t VALUES (?1, ?2, zeroblob(?3))", [key, number, length])
            };
            outcome = outcome.and(ran.map(|_| ()));
        }
        (rows, outcome.and_then(|()| connection.execute_batch("COMMIT")))
    }

    /// Transactions until the power goes at a random moment, and what is left then.
    fn crash(&mut self) -> Left {
        let (after, seed) = (self.random.below(250), self.random.next());
        let connection = self.connect().unwrap();
        let mut reader = self.connect().ok();
        self.fs.crash_after(after, seed);
        let mut reported = self.history.len() - 1;
        for _ in 0..15 {
            let (rows, outcome) = self.transaction(&connection);
            self.history.push(rows);
            if outcome.is_err() {
                break;
            }
            reported += 1;
            if self.random.below(4) == 0 {
                let _ = connection.query_row("PRAGMA wal_checkpoint", [], |_| Ok(()));
            }
            if self.random.below(4) == 0 {
                reader = self.connect().ok();
            }
        }
        if reported == self.history.len() - 1 {
            self.fs.crash(seed);
        }
        let before = fingerprint(&self.fs);
        assert!(connection.execute_batch("PRAGMA user_version = 7").is_err(), "its process is dead");
        drop(reader);
        drop(connection);
        assert_eq!(fingerprint(&self.fs), before, "closing dead connections changes nothing");
        self.fs.start();
        let Ok(connection) = self.connect() else { return Left::Broken };
        if !is_intact(&connection) {
            return Left::Broken;
        }
        let Ok(left) = rows(&connection) else { return Left::Broken };
        let Some(found) = self.history.iter().rposition(|rows| *rows == left) else { return Left::Broken };
        self.history.truncate(found + 1);
        Left::Behind(reported.saturating_sub(found))
    }
}

/// Crash points of that many seeds, ten per machine; how many of them ended in what.
fn crashes(journal: &'static str, synchronous: &'static str, seeds: u64, ignore_syncs: bool) -> (u64, u64, u64) {
    let (mut whole, mut behind, mut broken) = (0, 0, 0);
    let (mut lost, mut torn) = (0, 0);
    for seed in 0..seeds / 10 {
        let mut run = Run::new(journal, synchronous, seed);
        run.fs.ignore_syncs(ignore_syncs);
        for _ in 0..10 {
            match run.crash() {
                Left::Behind(0) => whole += 1,
                Left::Behind(_) => behind += 1,
                Left::Broken => {
                    broken += 1;
                    break;
                }
            }
        }
        lost += run.fs.lost_sectors();
        torn += run.fs.torn_writes();
    }
    assert!(lost > 100 && torn > 10, "crashes took {lost} sectors and tore {torn} writes");
    (whole, behind, broken)
}

#[test]
fn a_write_ahead_log_with_full_syncs_keeps_every_commit() {
    assert_eq!(crashes("WAL", "FULL", 200, false), (200, 0, 0));
}

#[test]
fn a_truncated_journal_keeps_every_commit() {
    assert_eq!(crashes("TRUNCATE", "FULL", 100, false), (100, 0, 0));
}

#[test]
fn a_persistent_journal_keeps_every_commit() {
    assert_eq!(crashes("PERSIST", "FULL", 100, false), (100, 0, 0));
}

/// EXTRA, not FULL: only it syncs the directory after the journal's name is removed.
#[test]
fn a_deleted_journal_keeps_every_commit() {
    assert_eq!(crashes("DELETE", "EXTRA", 100, false), (100, 0, 0));
}

#[test]
fn a_write_ahead_log_with_normal_syncs_keeps_a_prefix_of_the_commits() {
    let (whole, behind, broken) = crashes("WAL", "NORMAL", 200, false);
    assert!(whole > 0 && behind > 10 && broken == 0, "{whole} whole, {behind} behind, {broken} broken");
}

#[test]
fn without_syncs_crashes_take_commits_and_break_databases() {
    for (journal, synchronous, ignored) in [("WAL", "OFF", false), ("DELETE", "OFF", false), ("WAL", "FULL", true)] {
        let (_, behind, broken) = crashes(journal, synchronous, 200, ignored);
        assert!(behind > 3 && broken > 3, "{journal} {synchronous}: {behind} behind, {broken} broken");
    }
}

#[test]
fn a_killed_process_loses_its_open_transaction_alone() {
    for journal in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let mut run = Run::new(journal, "OFF", 1);
        for _ in 0..20 {
            let connection = run.connect().unwrap();
            let (rows_after, outcome) = run.transaction(&connection);
            outcome.unwrap();
            run.history.push(rows_after);
            connection.execute_batch("BEGIN; DELETE FROM t; REPLACE INTO t VALUES (1, 1, zeroblob(90000))").unwrap();
            run.fs.kill();
            let before = fingerprint(&run.fs);
            drop(connection);
            assert_eq!(fingerprint(&run.fs), before);
            let connection = run.connect().unwrap();
            assert!(is_intact(&connection));
            assert_eq!(&rows(&connection).unwrap(), run.history.last().unwrap(), "{journal}");
        }
        assert_eq!(run.fs.lost_sectors(), 0);
    }
}

#[test]
fn file_locks_keep_connections_apart() {
    let (_fs, vfs) = machine();
    let (a, b) = (open(vfs.name(), FILE), open(vfs.name(), FILE));
    a.execute_batch("CREATE TABLE t (k); INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(number(&b, "SELECT count(*) FROM t"), 1);
    a.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (2)").unwrap();
    assert_eq!(number(&b, "SELECT count(*) FROM t"), 1, "a reader goes on beside RESERVED");
    assert_eq!(code(&b.execute_batch("BEGIN IMMEDIATE").unwrap_err()), ErrorCode::DatabaseBusy);
    b.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    assert_eq!(code(&a.execute_batch("COMMIT").unwrap_err()), ErrorCode::DatabaseBusy, "a reader is in the way");
    let c = open(vfs.name(), FILE);
    c.busy_timeout(std::time::Duration::ZERO).unwrap();
    let refused = c.query_row("SELECT * FROM t", [], |_| Ok(())).unwrap_err();
    assert_eq!(code(&refused), ErrorCode::DatabaseBusy, "PENDING keeps new readers out");
    b.execute_batch("COMMIT").unwrap();
    a.execute_batch("COMMIT").unwrap();
    assert_eq!(number(&c, "SELECT count(*) FROM t"), 2);
    b.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert!(a.query_row("SELECT * FROM t", [], |_| Ok(())).is_err());
    drop(b);
    assert_eq!(number(&a, "SELECT count(*) FROM t"), 2, "a closed connection holds nothing");
}

/// As quorate-store does: a writer behind its own clock, readers, a checkpointer, copies.
#[test]
fn writer_readers_checkpointer_and_copies_work_side_by_side() {
    let (fs, memory) = machine();
    let clock = ClockVfs::over(Some(memory.name()));
    let writer = open(clock.name(), FILE);
    mode(&writer, "WAL").unwrap();
    writer.execute_batch("PRAGMA synchronous = NORMAL; CREATE TABLE t (k INTEGER PRIMARY KEY, at, v)").unwrap();
    writer.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(())).unwrap();
    let checkpointer = open(memory.name(), FILE);
    checkpointer.busy_timeout(std::time::Duration::from_millis(50)).unwrap();
    let reader = |number: u32| {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags_and_vfs(FILE, flags, memory.name()).unwrap();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        // Readers are to read the file again, and not what they remember.
        connection.pragma_update(None, "cache_size", 1).unwrap();
        (connection, i64::from(number))
    };
    let mut readers: Vec<(Connection, i64)> = Vec::new();
    let mut random = SplitMix(9);
    let (mut committed, mut restarts) = (0_i64, 0);
    for step in 0..1_500 {
        match random.below(8) {
            0 if readers.len() < 5 => {
                let (connection, _) = reader(step);
                connection.execute_batch("BEGIN").unwrap();
                assert_eq!(number(&connection, "SELECT count(*) FROM t"), committed);
                readers.push((connection, committed));
            }
            1 if !readers.is_empty() => drop(readers.remove(random.below(readers.len() as u64) as usize)),
            2 => {
                let ask = |mode: &str| {
                    let sql = format!("PRAGMA wal_checkpoint({mode})");
                    checkpointer.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
                };
                ask("PASSIVE");
                restarts += i32::from(ask("RESTART") == 0);
            }
            3 => {
                let mut copy = open(memory.name(), &format!("/db/copy-{step}.db"));
                let backup = Backup::new(&checkpointer, &mut copy).unwrap();
                while backup.step(-1).unwrap() != StepResult::Done {}
                drop(backup);
                assert_eq!(number(&copy, "SELECT count(*) FROM t"), committed);
                assert!(is_intact(&copy));
                drop(copy);
                fs.remove_file(Path::new(&format!("/db/copy-{step}.db"))).unwrap();
            }
            _ => {
                clock.set(u64::from(step) * 1_000_000);
                writer
                    .execute_batch("BEGIN IMMEDIATE; INSERT INTO t (at, v) VALUES (unixepoch(), zeroblob(900))")
                    .unwrap();
                assert_eq!(number(&checkpointer, "SELECT count(*) FROM t"), committed, "not before the commit");
                writer.execute_batch("COMMIT").unwrap();
                committed += 1;
                assert_eq!(number(&writer, "SELECT max(at) FROM t"), i64::from(step));
            }
        }
        for (connection, seen) in &readers {
            assert_eq!(number(connection, "SELECT count(*) FROM t"), *seen, "from one moment");
        }
    }
    assert!(committed > 500 && restarts > 10);
    assert_eq!(fs.list(Path::new("/db")).unwrap(), ["main.db", "main.db-wal"], "no shared memory in a file");
    drop((readers, checkpointer));
    drop(writer);
    assert_eq!(fs.list(Path::new("/db")).unwrap(), ["main.db"], "the last one to close tidies up");
}

#[test]
fn threads_may_share_a_database() {
    let (_fs, vfs) = machine();
    let setup = open(vfs.name(), FILE);
    mode(&setup, "WAL").unwrap();
    setup.execute_batch("CREATE TABLE t (k INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 500), (2, 500)").unwrap();
    let done = AtomicBool::new(false);
    // A lock that another thread holds is asked for again: xSleep does not wait.
    let patiently = |work: &dyn Fn() -> Result<(), Error>| {
        while let Err(error) = work() {
            assert_eq!(code(&error), ErrorCode::DatabaseBusy);
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let connection = open(vfs.name(), FILE);
                while !done.load(Ordering::Relaxed) {
                    patiently(&|| {
                        let sum: i64 = connection.query_row("SELECT sum(v) FROM t", [], |row| row.get(0))?;
                        assert_eq!(sum, 1_000);
                        Ok(())
                    });
                }
            });
        }
        scope.spawn(|| {
            let connection = open(vfs.name(), FILE);
            while !done.load(Ordering::Relaxed) {
                patiently(&|| connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())));
            }
        });
        let writers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let connection = open(vfs.name(), FILE);
                    for _ in 0..300 {
                        patiently(&|| connection.execute_batch("BEGIN IMMEDIATE"));
                        connection.execute_batch("UPDATE t SET v = v - 1 WHERE k = 1").unwrap();
                        connection.execute_batch("UPDATE t SET v = v + 1 WHERE k = 2; COMMIT").unwrap();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(number(&setup, "SELECT v FROM t WHERE k = 2"), 1_100);
    assert!(is_intact(&setup));
}

#[test]
fn a_full_device_refuses_and_takes_again_when_there_is_room() {
    for journal in ["WAL", "DELETE"] {
        let mut run = Run::new(journal, "FULL", 3);
        let connection = run.connect().unwrap();
        let commit = |run: &mut Run| {
            let (after, outcome) = run.transaction(&connection);
            match outcome {
                Ok(()) => run.history.push(after),
                Err(_) if connection.is_autocommit() => {}
                Err(_) => connection.execute_batch("ROLLBACK").unwrap(),
            }
            outcome
        };
        commit(&mut run).unwrap();
        run.fs.set_capacity(Some(run.fs.used() + 30_000));
        let refused = (0..200).find_map(|_| commit(&mut run).err()).unwrap();
        assert_eq!(code(&refused), ErrorCode::DiskFull, "{journal}");
        run.fs.set_capacity(None);
        for _ in 0..5 {
            commit(&mut run).unwrap();
        }
        assert!(is_intact(&connection));
        run.fs.crash(4);
        let connection = run.connect().unwrap();
        assert!(is_intact(&connection));
        // With FULL the last removal of a journal may be undone, and its transaction with it.
        let left = rows(&connection).unwrap();
        let last = run.history.len() - 1;
        assert!(left == run.history[last] || journal == "DELETE" && left == run.history[last - 1]);
    }
}

#[test]
fn failures_of_the_device_are_told() {
    for journal in ["WAL", "TRUNCATE"] {
        let mut run = Run::new(journal, "FULL", 5);
        let fs = run.fs.clone();
        let inject: [&dyn Fn(); 3] =
            [&|| fs.fail_syncs(0), &|| fs.fail_writes(1), &|| fs.fail_reads(Path::new(FILE)).unwrap()];
        for fail in inject {
            let connection = run.connect().unwrap();
            fail();
            let (after, outcome) = run.transaction(&connection);
            assert!(outcome.is_err_and(|error| code(&error) == ErrorCode::SystemIoFailure), "{journal}");
            run.history.push(after);
            fs.kill();
            drop(connection);
            let connection = run.connect().unwrap();
            let left = rows(&connection).unwrap();
            // A commit whose sync failed may be there or not, and is whole.
            let found = run.history.iter().rposition(|rows| *rows == left).unwrap();
            assert!(found + 2 >= run.history.len());
            run.history.truncate(found + 1);
        }
    }
}

#[test]
fn dead_connections_make_no_files() {
    let (fs, vfs) = machine();
    let connection = open(vfs.name(), FILE);
    connection.execute_batch("CREATE TABLE t (k); INSERT INTO t VALUES (1)").unwrap();
    // It has all pages that it needs, so the next thing is to make a journal.
    connection.execute_batch("BEGIN IMMEDIATE; SELECT * FROM t").unwrap();
    fs.kill();
    let before = fingerprint(&fs);
    assert!(connection.execute_batch("INSERT INTO t VALUES (2)").is_err());
    assert_eq!(fingerprint(&fs), before);
}

#[test]
fn names_of_one_file_are_one_database() {
    let (fs, vfs) = machine();
    fs.create_dir_all(Path::new("/db/0-0")).unwrap();
    fs.symlink(Path::new("0-0"), Path::new("/db/current")).unwrap();
    let (a, b) = (open(vfs.name(), "/db/current/main.db"), open(vfs.name(), "/db/0-0/main.db"));
    mode(&a, "WAL").unwrap();
    a.execute_batch("CREATE TABLE t (k); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(code(&b.execute_batch("BEGIN IMMEDIATE").unwrap_err()), ErrorCode::DatabaseBusy);
    a.execute_batch("COMMIT").unwrap();
    assert_eq!(number(&b, "SELECT count(*) FROM t"), 1);
    assert_eq!(fs.list(Path::new("/db/0-0")).unwrap(), ["main.db", "main.db-wal"]);
}

#[test]
fn temporary_files_vanish() {
    let (fs, vfs) = machine();
    let connection = open(vfs.name(), FILE);
    connection.execute_batch("PRAGMA temp_store = FILE; PRAGMA temp.cache_size = 5; CREATE TEMP TABLE t (v)").unwrap();
    connection
        .execute_batch(
            "WITH n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             INSERT INTO t SELECT randomblob(500) FROM n",
        )
        .unwrap();
    assert_eq!(number(&connection, "SELECT count(*) FROM (SELECT v FROM t ORDER BY v)"), 2_000);
    assert!(fs.used() > 500_000, "they take room");
    assert!(fs.list(Path::new("/db")).unwrap().len() <= 1 && fs.list(Path::new("/")).unwrap() == ["db"]);
    drop(connection);
    assert_eq!(fs.used(), 0);
}

#[test]
fn a_machine_has_its_own_clock() {
    let (_fs, vfs) = machine();
    let connection = open(vfs.name(), FILE);
    vfs.set_now(1_700_000_000_250_000);
    assert_eq!(number(&connection, "SELECT unixepoch()"), 1_700_000_000);
    let clock = ClockVfs::over(Some(vfs.name()));
    let replica = open(clock.name(), FILE);
    clock.set(5_000_000);
    assert_eq!(number(&replica, "SELECT unixepoch()"), 5);
}
