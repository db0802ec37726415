//! Randomness that begins anew. SQLite has one generator per process, so this test has a process
//! of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use quorate_vfs::memory::{MemoryFs, MemoryVfs, reset_randomness};
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// What a database and its write-ahead log hold after some work, with random values and salts.
fn run(seed: u64) -> Vec<Vec<u8>> {
    reset_randomness(seed);
    let fs = MemoryFs::new();
    let vfs = MemoryVfs::register(fs.clone());
    let connection = Connection::open_with_flags_and_vfs("/a.db", OpenFlags::default(), vfs.name()).unwrap();
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    connection.execute_batch("CREATE TABLE t (v); INSERT INTO t VALUES (randomblob(100)), (random())").unwrap();
    ["/a.db", "/a.db-wal"].map(|name| fs.bytes(Path::new(name)).unwrap()).into()
}

#[test]
fn a_seed_decides_all_of_sqlites_randomness() {
    let first = run(1);
    // Between them somebody uses a real file, whose VFS looks for a new process.
    let directory = tempfile::tempdir().unwrap();
    let real = Connection::open(directory.path().join("real.db")).unwrap();
    real.execute_batch("CREATE TABLE t (v); INSERT INTO t VALUES (random())").unwrap();
    assert_eq!(run(1), first);
    assert_ne!(run(2), first);
    assert_eq!(run(1), first);
}
