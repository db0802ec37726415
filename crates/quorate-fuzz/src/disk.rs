//! What lies on a disk, or came from another node's: segments of the log, snapshots.

use bytes::Bytes;
use quorate_model::entry::{Database, Envelope, Proposal};
use quorate_model::id::{ClusterId, LogIndex, NodeId, RequestId, Term};
use quorate_model::sql::{SqlBatch, Statement};
use quorate_model::time::WallTime;
use quorate_store::databases::{self, Databases, Item, Manifest, ToApply};
use quorate_store::disk::Disk as _;
use quorate_store::disk::memory::MemoryDisk;
use quorate_store::log::{Append, EntryKind, HardState, Log, LogEntry, LogIdentity, LogOptions, Recovered};
use std::fs;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Of a segment's header, 3,980 bytes are zeros: an input leaves them out.
const HEADER_USED: usize = 112;
const HEADER_BYTES: usize = 4096;
const RECORD_HEAD_BYTES: usize = 48;

/// The first byte says whether checksums are put right (1) or left as they are, so that both the
/// checksums and what is behind them are tried. Then up to four segments, each: length (u16, little
/// endian) of what follows, the header's first 112 bytes, the header's checksum, records.
///
/// # Panics
/// When the log gives out an entry or a hard state that no record with a right checksum holds, when
/// what it recovered is not durable, or when a log that opens cannot be read and written.
pub fn log(data: &[u8]) -> bool {
    let Some((&repaired, rest)) = data.split_first() else { return false };
    let mut files = segments(rest);
    if repaired == 1 {
        repair(&mut files);
    }
    let disk = MemoryDisk::new();
    for file in &files {
        let name = format!("log-{:016x}.seg", u64_at(file, 72));
        let made = disk.create(&name).expect("a disk in memory has room");
        made.write_at(&mut [IoSlice::new(file)], 0).expect("it takes writes");
        made.sync_data().expect("it syncs");
    }
    disk.sync_dir().expect("it syncs");
    let Ok((mut log, recovered)) = open(&disk) else { return false };
    check_recovered(&recovered, &files);
    // One entry at a time, and all together: two ways through the positions that the log keeps.
    let entries = read_all(&mut log, usize::MAX);
    assert_eq!(entries, read_all(&mut log, 0), "an entry depends on how much is read with it");
    for entry in &entries {
        assert!(holds(&files, entry), "no record with a right checksum holds {entry:?}");
    }
    drop(log);

    disk.crash(7);
    let (mut log, again) = open(&disk).expect("a log that was opened opens again");
    assert_eq!(again, recovered, "what was recovered was not durable");
    assert_eq!(entries, read_all(&mut log, usize::MAX));
    let term = recovered.terms.last().map_or(recovered.before.1, |(_, term)| *term);
    let next =
        LogEntry { index: recovered.last.next(), term, kind: EntryKind::Normal, data: Bytes::from_static(b"goes on") };
    let written = Append { hard_state: None, entries: vec![next.clone()] };
    log.write(&written).expect("a log that opened can be written");
    log.sync().expect("and synced");
    drop(log);
    disk.crash(8);
    let (mut log, _) = open(&disk).expect("a log that was written opens again");
    assert_eq!(read_all(&mut log, usize::MAX).last(), Some(&next));
    !files.is_empty()
}

fn identity() -> LogIdentity {
    LogIdentity { cluster: ClusterId::from_u128(0xc1), node: NodeId::from_u128(0xd1) }
}

fn open(disk: &MemoryDisk) -> Result<(Log<MemoryDisk>, Recovered), quorate_store::log::OpenLogError> {
    Log::open(disk.clone(), identity(), LogOptions { segment_bytes: 8 << 10, seed: 7 })
}

fn segments(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut files: Vec<Vec<u8>> = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk()
        && files.len() < 4
    {
        let length = usize::from(u16::from_le_bytes(*length)).min(behind.len());
        let (piece, behind) = behind.split_at(length);
        rest = behind;
        let Some((header, piece)) = piece.split_at_checked(HEADER_USED) else { break };
        let (crc, records) = piece.split_at(piece.len().min(4));
        let mut file = header.to_vec();
        file.resize(HEADER_BYTES - 4, 0);
        file.extend_from_slice(crc);
        file.resize(HEADER_BYTES, 0);
        file.extend_from_slice(records);
        // Room behind the last record, as in a real segment.
        file.resize(file.len().next_multiple_of(8) + 64, 0);
        files.push(file);
    }
    files
}

/// Makes identities, checksums and chains fit together, as `docs/formats/log.md` says.
fn repair(files: &mut [Vec<u8>]) {
    let LogIdentity { cluster, node } = identity();
    let mut previous: Option<(u64, u64, u32)> = None;
    for file in files {
        file[..12].copy_from_slice(b"QUORLOG\n\x01\0\0\0");
        file[16..32].copy_from_slice(cluster.0.as_bytes());
        file[32..48].copy_from_slice(node.0.as_bytes());
        if let Some((sequence, end, crc)) = previous
            && u64_at(file, 96) != 0
        {
            file[12..16].copy_from_slice(&crc.to_le_bytes());
            file[96..104].copy_from_slice(&sequence.to_le_bytes());
            file[104..112].copy_from_slice(&end.to_le_bytes());
        }
        let mut crc = crc32c::crc32c(&file[..HEADER_BYTES - 4]);
        file[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        let tag = crc32c::crc32c(&file[48..64]);
        let mut at = HEADER_BYTES;
        while let Some(whole) = whole(&file[at..]) {
            let record = &mut file[at..at + whole];
            // Zeros are the end, as the room behind the records is.
            if record[4..].iter().all(|byte| *byte == 0) {
                break;
            }
            record[8..12].copy_from_slice(&crc.to_le_bytes());
            record[12..16].copy_from_slice(&tag.to_le_bytes());
            crc = crc32c::crc32c(&record[4..]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            at += whole;
        }
        previous = Some((u64_at(file, 64), at as u64, crc));
    }
}

/// What the record at the beginning of `bytes` occupies, if that is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    let whole = (RECORD_HEAD_BYTES + length).next_multiple_of(8);
    (whole <= bytes.len()).then_some(whole)
}

/// Every record of the files whose checksum is right, wherever it lies.
fn records(files: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
    files.iter().flat_map(|file| {
        (HEADER_BYTES..file.len()).step_by(8).filter_map(|at| {
            let record = &file[at..at + whole(&file[at..])?];
            (crc32c::crc32c(&record[4..]).to_le_bytes() == record[..4]).then_some(record)
        })
    })
}

fn payload(record: &[u8]) -> &[u8] {
    let length = u32::from_le_bytes(record[4..8].try_into().expect("four bytes")) as usize;
    &record[RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + length]
}

fn holds(files: &[Vec<u8>], entry: &LogEntry) -> bool {
    let kind = match entry.kind {
        EntryKind::Normal => 1,
        EntryKind::Membership => 2,
    };
    records(files).any(|record| {
        (record[28], u64_at(record, 32), u64_at(record, 40)) == (kind, entry.index.0, entry.term.0)
            && payload(record) == entry.data
    })
}

fn check_recovered(recovered: &Recovered, files: &[Vec<u8>]) {
    let HardState { term, vote, commit } = recovered.hard_state;
    assert!(commit <= recovered.last.0, "what is committed is not there");
    assert!(recovered.before.0 <= recovered.last);
    let said = records(files).any(|record| {
        (record[28], u64_at(record, 32), u64_at(record, 40)) == (3, commit, term)
            && payload(record) == vote.to_le_bytes()
    });
    assert!(said || recovered.hard_state == HardState::default(), "nobody wrote {:?}", recovered.hard_state);
}

fn read_all(log: &mut Log<MemoryDisk>, bytes_max: usize) -> Vec<LogEntry> {
    let mut entries: Vec<LogEntry> = Vec::new();
    let end = log.last().next();
    let mut from = log.first();
    while from < end {
        let read = log.read(from, end, bytes_max).expect("a log that opened can be read");
        for entry in read {
            assert_eq!(entry.index, from, "entries follow each other");
            from = from.next();
            entries.push(entry);
        }
    }
    entries
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A snapshot as it is sent: what its manifest says, and its files.
#[derive(Debug)]
struct Sent {
    manifest: Vec<u8>,
    files: [Vec<u8>; 2],
}

/// The first byte says where the files come from: 0, both follow as they are; 1, they are those of
/// a real snapshot, with bytes changed. Then length (u16, little endian) and text of the manifest;
/// without one it is the real snapshot's.
///
/// Then for 0: length of `system` (u16), its bytes, the rest is `main`. For 1, changes: which file and
/// where (u24, the lowest bit being the file), how many bytes (u8), these.
///
/// # Panics
/// When a snapshot is put in force that is less than its manifest says, or one that was refused is;
/// and when databases that were received, whatever they hold, make opening, reading or writing panic.
pub fn snapshot(data: &[u8]) -> bool {
    let Some((&source, rest)) = data.split_first() else { return false };
    let Some((length, rest)) = rest.split_first_chunk() else { return false };
    let (text, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let real = real();
    let files = if source == 0 { given(rest) } else { changed(&real.files, rest) };
    let text = if text.is_empty() { &real.manifest } else { text };
    let Ok(manifest) = Manifest::read(text) else { return false };

    let root = directory();
    let incoming = root.path().join("incoming-1");
    fs::create_dir_all(&incoming).expect("a temporary directory can be used");
    for (name, bytes) in [("system.db", &files[0]), ("main.db", &files[1])] {
        fs::write(incoming.join(name), bytes).expect("a temporary file can be written");
    }
    let current = || fs::read_link(root.path().join("current")).ok().filter(|name| *name != Path::new("0-0"));
    if databases::install(root.path(), &incoming, &manifest).is_err() {
        assert_eq!(current(), None, "a snapshot that was refused is in force");
        return false;
    }
    assert_eq!(current(), Some(PathBuf::from(format!("{}-{}", manifest.index, manifest.term))));
    // A damaged file may be refused here, or anywhere behind.
    let Ok(opened) = Databases::open(root.path(), b"voters") else { return false };
    assert!(opened.applied >= manifest.index, "it holds less than its manifest says");
    use_it(opened.databases, opened.applied)
}

fn given(rest: &[u8]) -> [Vec<u8>; 2] {
    let Some((length, rest)) = rest.split_first_chunk() else { return [Vec::new(), Vec::new()] };
    let (system, main) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    [system.to_vec(), main.to_vec()]
}

fn changed(real: &[Vec<u8>; 2], mut changes: &[u8]) -> [Vec<u8>; 2] {
    let mut files = real.clone();
    while let Some(([a, b, c, count], rest)) = changes.split_first_chunk() {
        let place = u32::from_le_bytes([*a, *b, *c, 0]);
        let file = &mut files[(place & 1) as usize];
        let at = (place >> 1) as usize % file.len();
        let count = usize::from(*count).min(rest.len()).min(file.len() - at);
        file[at..at + count].copy_from_slice(&rest[..count]);
        changes = &rest[count..];
    }
    files
}

fn use_it(mut databases: Databases, applied: LogIndex) -> bool {
    let Ok(mut reader) = databases.readers().reader() else { return false };
    let ask = |sql: &str| SqlBatch { statements: vec![Statement::new(sql)], transaction: false };
    let mut read = true;
    for (database, sql) in [
        (Database::System, "SELECT * FROM nodes"),
        (Database::System, "SELECT * FROM events ORDER BY position DESC"),
        (Database::Main, "SELECT * FROM t ORDER BY a"),
    ] {
        let answer = reader.query(database, &ask(sql), Instant::now() + Duration::from_millis(200));
        read &= answer.is_ok_and(|answer| answer.results.iter().all(Result::is_ok));
    }
    let proposal = Proposal::sql(RequestId::from_u128(77), &ask("INSERT INTO t (b) VALUES ('after')"));
    let batch = [ToApply { index: applied.next(), term: Term(9), item: item(proposal, 9) }];
    let wrote = databases.apply(&batch).is_ok() && databases.make_durable().is_ok();
    read && wrote
}

fn item(proposal: Proposal, seconds: u64) -> Item {
    use prost::Message as _;
    let envelope = Envelope::stamp(proposal, WallTime(1_700_000_000_000_000 + seconds * 1_000_000), seconds);
    Item::Data(envelope.encode_to_vec().into())
}

/// In memory where the system has such a place: an input makes some twenty files.
fn directory() -> TempDir {
    let shared = Path::new("/dev/shm");
    let made = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    made.expect("a temporary directory can be made")
}

/// A snapshot of a small cluster's databases, made once.
fn real() -> &'static Sent {
    static REAL: OnceLock<Sent> = OnceLock::new();
    REAL.get_or_init(|| {
        let root = directory();
        let mut databases = Databases::open(root.path(), b"voters").expect("new databases can be made").databases;
        let sql = |number: u64, sql: &str| {
            let batch = SqlBatch { statements: vec![Statement::new(sql)], transaction: false };
            Proposal::sql(RequestId::from_u128(number.into()), &batch)
        };
        let proposals = crate::seeds::commands().into_iter().chain([
            sql(90, "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE)"),
            sql(91, "INSERT INTO t (b) VALUES ('x'), ('y'), (x'00ff')"),
        ]);
        let entries: Vec<ToApply> = (1..)
            .zip(proposals)
            .map(|(index, proposal)| ToApply { index: LogIndex(index), term: Term(2), item: item(proposal, index) })
            .collect();
        databases.apply(&entries).expect("entries that were just made can be applied");
        let into = root.path().join("outgoing-1");
        let manifest = databases::snapshot(root.path(), &into).expect("a database in use can be copied");
        let file = |name: &str| fs::read(into.join(name)).expect("the snapshot made it");
        let manifest = serde_json::to_vec(&manifest).expect("a manifest has string keys and no failing Serialize");
        Sent { manifest, files: [file("system.db"), file("main.db")] }
    })
}

/// The manifest of the real snapshot.
pub(crate) fn real_manifest() -> Vec<u8> {
    real().manifest.clone()
}

/// A log that was written: its segments as an input of [`log`] has them.
pub(crate) fn written_log(large: bool) -> Vec<u8> {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(&disk).expect("an empty disk is an empty log");
    let entry = |index, term, kind, data: &[u8]| LogEntry {
        index: LogIndex(index),
        term: Term(term),
        kind,
        data: Bytes::copy_from_slice(data),
    };
    let mut put = |hard_state, entries| {
        log.write(&Append { hard_state, entries }).expect("a disk in memory takes it");
        log.sync().expect("and syncs it");
    };
    let state = |term, vote, commit| Some(HardState { term, vote, commit });
    put(state(2, 1, 0), vec![entry(1, 2, EntryKind::Normal, b""), entry(2, 2, EntryKind::Normal, b"two")]);
    put(state(2, 1, 2), vec![entry(3, 2, EntryKind::Membership, b"voters"), entry(4, 2, EntryKind::Normal, b"four")]);
    put(state(3, 2, 3), vec![entry(4, 3, EntryKind::Normal, b"another four")]);
    if large {
        // Into a second and a third segment, and back into the second.
        put(None, vec![entry(5, 3, EntryKind::Normal, &[5; 3000])]);
        put(None, vec![entry(6, 3, EntryKind::Normal, &[6; 3000])]);
        put(state(4, 3, 4), vec![entry(5, 4, EntryKind::Normal, b"five")]);
    }
    drop(log);
    let mut input = vec![0];
    for name in disk.list().expect("it lists").into_iter().filter(|name| name.starts_with("log-")) {
        let bytes = disk.contents(&name).expect("it was listed");
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let mut piece = bytes[..HEADER_USED].to_vec();
        piece.extend_from_slice(&bytes[HEADER_BYTES - 4..used.max(HEADER_BYTES).next_multiple_of(8)]);
        input.extend_from_slice(&u16::try_from(piece.len()).expect("a segment of 8 KiB").to_le_bytes());
        input.extend_from_slice(&piece);
    }
    input
}
