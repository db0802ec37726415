//! Snapshots, installations, checkpoints: the files themselves.

use super::*;

/// A log that goes on: `count` inserts of a kilobyte, with a command in between.
fn growing(count: u64) -> Log {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a INTEGER PRIMARY KEY, b)"]).command(&apply_spec(WEB));
    for n in 0..count {
        log.sql(&["INSERT INTO t (b) VALUES (randomblob(1000))"]);
        if n % 50 == 0 {
            log.command(&scale("web", 2 + u32::try_from(n % 7).unwrap()));
            log.item(Item::Membership { voters: Bytes::from(format!("voters {n}")) });
        }
    }
    log
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_taken_while_writes_go_on_leads_to_the_same_end() {
    let log = growing(1_000);
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The receiver has a database of its own.
    drop(open(other.path()));
    let mut databases = open(root.path());
    databases.apply(&log.entries[..200]).unwrap();
    let into = other.path().join("incoming-1");
    let manifest = std::thread::scope(|scope| {
        let copying = scope.spawn(|| snapshot(root.path(), &into).unwrap());
        for batch in log.entries[200..].chunks(10) {
            databases.apply(batch).unwrap();
        }
        copying.join().unwrap()
    });
    assert!(manifest.index >= LogIndex(150));
    // The receiver has leftovers.
    std::fs::write(into.join("main.db-wal"), [7; 5_000]).unwrap();
    let target = other.path().join(format!("{}-{}", manifest.index, manifest.term));
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("main.db"), "half").unwrap();
    install(other.path(), &into, &manifest).unwrap();
    let opened = Databases::open(other.path(), b"").unwrap();
    assert_eq!((opened.applied, opened.term, opened.voters), (manifest.index, manifest.term, manifest.voters));
    assert_eq!(names(other.path()), [target.file_name().unwrap().to_str().unwrap(), "current"]);
    let mut installed = opened.databases;
    let from = usize::try_from(manifest.index.0).unwrap();
    for batch in log.entries[from..].chunks(64) {
        installed.apply(batch).unwrap();
    }
    assert_eq!(installed.state(), databases.state());
    assert_eq!(installed.main.applied().digest, databases.main.applied().digest);
    assert_eq!(installed.system.applied().digest, databases.system.applied().digest);
    assert!(contents(root.path()) == contents(other.path()));
}

#[test]
fn an_incomplete_snapshot_and_the_one_in_force_are_not_installed() {
    let (root, databases) = with(&growing(10));
    drop(databases);
    let before = contents(root.path());
    let into = root.path().join("incoming-1");
    std::fs::create_dir(&into).unwrap();
    std::fs::write(into.join("main.db"), "of an attempt before").unwrap();
    std::fs::write(into.join("main.db-wal"), "of an attempt before").unwrap();
    let manifest = snapshot(root.path(), &into).unwrap();
    let mut short = manifest.clone();
    short.files[1].1 += 1;
    assert!(install(root.path(), &into, &short).is_err());
    install(root.path(), &into, &manifest).unwrap();
    let again = root.path().join("incoming-2");
    assert_eq!(snapshot(root.path(), &again).unwrap(), manifest);
    assert!(install(root.path(), &again, &manifest).is_err());
    drop(open(root.path()));
    assert!(contents(root.path()) == before);
}

#[test]
fn what_is_no_database_of_ours_takes_the_place_of_none() {
    let (root, databases) = with(&growing(10));
    drop(databases);
    let before = contents(root.path());
    let into = root.path().join("incoming-1");
    let manifest = snapshot(root.path(), &into).unwrap();
    let ahead = Manifest { index: manifest.index.next(), ..manifest.clone() };
    let refused = install(root.path(), &into, &ahead).unwrap_err();
    assert!(matches!(refused, InstallError::Behind { .. }), "{refused}");
    let damaged = into.join("main.db");
    let bytes = vec![7; std::fs::read(&damaged).unwrap().len()];
    std::fs::write(&damaged, bytes).unwrap();
    let refused = install(root.path(), &into, &manifest).unwrap_err();
    assert!(matches!(refused, InstallError::Sqlite { database: "main", .. }), "{refused}");
    drop(open(root.path()));
    assert!(contents(root.path()) == before);
}

#[test]
fn a_manifest_names_each_database_once_and_nothing_else() {
    let read = |files: &str| {
        Manifest::read(format!(r#"{{"index":1,"term":1,"voters":[],"voters_as_of":1,"files":{files}}}"#).as_bytes())
    };
    assert!(read(r#"[["main.db",1],["system.db",2]]"#).is_ok());
    for files in [
        "[]",
        r#"[["main.db",1]]"#,
        r#"[["main.db",1],["main.db",1]]"#,
        r#"[["main.db",1],["system.db",2],["../main.db",1]]"#,
        r#"[["main.db",1],["/etc/passwd",2]]"#,
    ] {
        assert!(matches!(read(files), Err(ManifestError::Files(_))), "{files}");
    }
}

#[test]
fn what_is_left_over_is_removed_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()));
    for name in ["5-1", "12-3", "incoming-x", "outgoing-abc", "5-", "a-b", "notes", "5-1-2"] {
        std::fs::create_dir(root.path().join(name)).unwrap();
        std::fs::write(root.path().join(name).join("file"), "").unwrap();
    }
    drop(open(root.path()));
    assert_eq!(
        names(root.path()),
        ["0-0", "5-", "5-1-2", "a-b", "current", "incoming-x", "notes", "outgoing-abc"],
        "a snapshot may be on its way while another is put in force"
    );
    Place::from(root.path()).remove_transfers().unwrap();
    assert_eq!(names(root.path()), ["0-0", "5-", "5-1-2", "a-b", "current", "notes"]);
}

#[test]
fn what_is_durable_was_written_to_the_write_ahead_log() {
    let mut log = growing(20);
    let (root, mut databases) = with(&log);
    log.sql(&["INSERT INTO t (b) VALUES (1)"]).sql(&["INSERT INTO t (b) VALUES (1)"]);
    apply(&mut databases, &log);
    let size = |database| {
        std::fs::metadata(writer::file(databases_directory(root.path()).as_path(), database).with_extension("db-wal"))
            .unwrap()
            .len()
    };
    let before = Database::ALL.map(size);
    assert!(databases.system.applied().index < databases.main.applied().index);
    let last = LogIndex(log.next() - 1);
    assert_eq!(databases.make_durable().unwrap(), last, "the file that had nothing to do notes it too");
    for (before, after) in before.into_iter().zip(Database::ALL.map(size)) {
        assert!(after > before, "a commit without a page syncs nothing");
    }
    log.command(&scale("web", 9));
    apply(&mut databases, &log);
    let digests = [databases.system.applied().digest, databases.main.applied().digest];
    let last = LogIndex(log.next() - 1);
    assert_eq!(databases.make_durable().unwrap(), last);
    drop(databases);
    let databases = open(root.path());
    for (writer, digest) in [&databases.system, &databases.main].into_iter().zip(digests) {
        assert_eq!((writer.applied().index, writer.applied().digest), (last, digest));
    }
}

fn databases_directory(root: &Path) -> PathBuf {
    Place::from(root).current().unwrap()
}

#[test]
fn a_file_without_entries_notes_the_index_now_and_then() {
    let mut log = Log::new();
    log.sql(&["CREATE TABLE t (a)"]);
    for _ in 0..2 * LAG_MAX {
        log.command(&Command::Record { at: WallTime(1), what: Happening::NodeJoined { node: NodeId::from_u128(1) } });
    }
    let root = tempfile::tempdir().unwrap();
    let mut databases = open(root.path());
    for batch in log.entries.chunks(512) {
        databases.apply(batch).unwrap();
    }
    let durable = databases.make_durable().unwrap();
    assert!(durable >= LogIndex(LAG_MAX), "{durable}");
    assert_eq!(databases.state().events.len(), quorate_model::state::EVENTS_KEPT);
    let state = databases.state().clone();
    drop(databases);
    assert_eq!(*open(root.path()).state(), state);
}

#[test]
fn after_a_checkpoint_the_write_ahead_log_begins_anew() {
    let log = growing(2_000);
    let (_root, mut databases) = with(&growing(0));
    let mut checkpointer = databases.checkpointer();
    let mut highest = 0;
    for (number, batch) in log.entries[2..].chunks(4).enumerate() {
        databases.apply(batch).unwrap();
        highest = highest.max(databases.wal_bytes());
        if number % 20 == 0 {
            checkpointer.checkpoint().unwrap();
        }
    }
    assert!(highest < 1_500_000, "{highest}");
}

#[test]
fn checkpoints_beside_a_busy_writer_harm_nobody() {
    let log = growing(2_000);
    let root = tempfile::tempdir().unwrap();
    let mut databases = open(root.path());
    let mut checkpointer = databases.checkpointer();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut begun_anew = false;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                checkpointer.checkpoint().unwrap();
            }
        });
        for batch in log.entries.chunks(4) {
            let before = databases.wal_bytes();
            databases.apply(batch).unwrap();
            begun_anew |= databases.wal_bytes() < before;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(begun_anew);
    let applied = databases.main.applied();
    drop((databases, checkpointer));
    assert_eq!(open(root.path()).main.applied(), applied);
}

#[test]
fn a_file_of_a_newer_format_is_refused() {
    let (root, databases) = with(&growing(1));
    drop(databases);
    let path = writer::file(&Place::from(root.path()).current().unwrap(), Database::Main);
    Connection::open(path).unwrap().execute("UPDATE _quorate_meta SET format = 99", []).unwrap();
    let refused = Databases::open(root.path(), b"").unwrap_err();
    assert!(matches!(refused, OpenDatabasesError::TooNew { found: 99, known: 1, .. }));
}
