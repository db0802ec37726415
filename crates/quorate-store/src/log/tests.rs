#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::disk::memory::MemoryDisk;
use crate::disk::real::RealDisk;

mod model;

const SMALL: u64 = 8 * 1024;

fn identity() -> LogIdentity {
    LogIdentity { cluster: ClusterId::from_u128(0xc1), node: NodeId::from_u128(0xd1) }
}

fn options() -> LogOptions {
    LogOptions { segment_bytes: SMALL, seed: 7 }
}

fn open<D: Disk>(disk: D) -> Result<(Log<D>, Recovered), OpenLogError> {
    Log::open(disk, identity(), options())
}

fn entry(index: u64, term: u64, data: impl AsRef<[u8]>) -> LogEntry {
    let data = Bytes::copy_from_slice(data.as_ref());
    LogEntry { index: LogIndex(index), term: Term(term), kind: EntryKind::Normal, data }
}

fn entries(entries: impl IntoIterator<Item = LogEntry>) -> Append {
    Append { hard_state: None, entries: entries.into_iter().collect() }
}

fn state(term: u64, vote: u64, commit: u64) -> Append {
    Append { hard_state: Some(HardState { term, vote, commit }), entries: Vec::new() }
}

fn put<D: Disk>(log: &mut Log<D>, append: &Append) {
    log.write(append).unwrap();
    log.sync().unwrap();
}

fn all<D: Disk>(log: &mut Log<D>) -> Vec<LogEntry> {
    log.read(log.first(), log.last().next(), usize::MAX).unwrap()
}

/// Writes and syncs entries of 1000 bytes up to `last`, one a batch.
fn fill<D: Disk>(log: &mut Log<D>, last: u64, fill: u8) {
    for index in log.last().0 + 1..=last {
        put(log, &entries([entry(index, 1, [fill; 1000])]));
    }
}

fn segments(disk: &impl Disk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| is_segment(name)).collect()
}

#[test]
fn a_new_log_is_empty_and_reopens_as_such() {
    let disk = MemoryDisk::new();
    for seed in 0..3 {
        let (log, recovered) = open(disk.clone()).unwrap();
        assert_eq!(recovered.hard_state, HardState::default());
        assert_eq!((recovered.before, recovered.last), ((LogIndex(0), Term(0)), LogIndex(0)));
        assert_eq!((log.first(), log.last()), (LogIndex(1), LogIndex(0)));
        assert!(recovered.terms.is_empty());
        disk.crash(seed);
    }
}

#[test]
fn what_was_synced_survives_and_the_terms_are_told() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    let mut membership = entry(3, 4, "c");
    membership.kind = EntryKind::Membership;
    let written = [entry(1, 2, "a"), entry(2, 2, ""), membership];
    put(&mut log, &Append { hard_state: Some(HardState { term: 4, vote: 9, commit: 2 }), entries: written.to_vec() });
    disk.crash(1);
    let (mut log, recovered) = open(disk).unwrap();
    assert_eq!(recovered.hard_state, HardState { term: 4, vote: 9, commit: 2 });
    assert_eq!(recovered.terms, [(LogIndex(1), Term(2)), (LogIndex(3), Term(4))]);
    assert_eq!(all(&mut log), written);
}

#[test]
fn all_writes_since_the_last_sync_share_one_sync() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    let before = disk.syncs();
    for index in 1..=5 {
        log.write(&entries([entry(index, 1, "x")])).unwrap();
    }
    log.sync().unwrap();
    log.sync().unwrap();
    assert_eq!(disk.syncs() - before, 1);
}

#[test]
fn a_read_gives_at_least_one_entry_and_stops_at_its_limit() {
    let (mut log, _) = open(MemoryDisk::new()).unwrap();
    fill(&mut log, 30, 1);
    let read = |log: &mut Log<_>, from, to, bytes| {
        let read = log.read(LogIndex(from), LogIndex(to), bytes).unwrap();
        read.iter().map(|entry| entry.index.0).collect::<Vec<_>>()
    };
    assert_eq!(read(&mut log, 5, 31, 0), [5]);
    assert_eq!(read(&mut log, 5, 31, 2999), [5, 6]);
    assert_eq!(read(&mut log, 5, 31, 3000), [5, 6, 7]);
    assert_eq!(read(&mut log, 29, 31, usize::MAX), [29, 30]);
    assert!(read(&mut log, 5, 5, 1).is_empty());
    let beyond = log.read(LogIndex(30), LogIndex(32), 1).unwrap_err();
    assert!(matches!(beyond, ReadLogError::NotThere { wanted: LogIndex(31), last: LogIndex(30) }), "{beyond}");
}

#[test]
fn a_later_write_of_an_index_supersedes_all_behind_it_in_any_segment() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 20, 1);
    assert!(segments(&disk).len() > 5);
    // Into the current segment, an older one, exactly to the beginning of one, and to the very first.
    let boundary = log.segments[1].first.0;
    for (term, at) in [(2, 20), (3, 12), (4, boundary), (5, 1)] {
        put(&mut log, &entries([entry(at, term, "new"), entry(at + 1, term, "newer")]));
        disk.crash(term);
        let recovered;
        (log, recovered) = open(disk.clone()).unwrap();
        assert_eq!((recovered.last.0, recovered.terms.last()), (at + 1, Some(&(LogIndex(at), Term(term)))));
        let read = all(&mut log);
        assert_eq!(read.len() as u64, at + 1);
        assert_eq!(read[at as usize - 1..], [entry(at, term, "new"), entry(at + 1, term, "newer")]);
    }
}

#[test]
fn entries_that_do_not_fit_the_log_are_refused_and_change_nothing() {
    let (mut log, _) = open(MemoryDisk::new()).unwrap();
    fill(&mut log, 3, 1);
    put(&mut log, &state(1, 1, 2));
    let refused = log.write(&entries([entry(5, 1, "gap")])).unwrap_err();
    assert!(matches!(refused, WriteLogError::OutOfOrder { index: LogIndex(5), .. }), "{refused}");
    let refused = log.write(&entries([entry(4, 1, "a"), entry(6, 1, "gap")])).unwrap_err();
    assert!(matches!(refused, WriteLogError::OutOfOrder { index: LogIndex(6), .. }), "{refused}");
    let refused = log.write(&entries([entry(2, 2, "committed")])).unwrap_err();
    assert!(matches!(refused, WriteLogError::Committed { index: LogIndex(2), commit: LogIndex(2) }), "{refused}");
    let refused = log.write(&state(1, 1, 4)).unwrap_err();
    assert!(matches!(refused, WriteLogError::CommitBeyondLast { commit: LogIndex(4), .. }), "{refused}");
    let refused = log.reset(LogIndex(1), Term(1)).unwrap_err();
    assert!(matches!(refused, WriteLogError::Committed { .. }), "{refused}");
    assert_eq!(all(&mut log).len(), 3);
    put(&mut log, &entries([entry(4, 1, "fits")]));
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_larger_one() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    let large = entry(1, 1, vec![9; 5 * SMALL as usize]);
    put(&mut log, &entries([large.clone()]));
    put(&mut log, &entries([entry(2, 1, "small")]));
    disk.crash(0);
    let (mut log, _) = open(disk).unwrap();
    assert_eq!(all(&mut log), [large, entry(2, 1, "small")]);
}

#[test]
fn a_failed_sync_stops_the_log_for_good() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 2, 1);
    log.write(&entries([entry(3, 1, "lost")])).unwrap();
    disk.fail_syncs(0);
    assert!(matches!(log.sync(), Err(WriteLogError::Io { .. })));
    assert!(matches!(log.sync(), Err(WriteLogError::Stopped)));
    assert!(matches!(log.write(&entries([entry(4, 1, "")])), Err(WriteLogError::Stopped)));
    assert!(matches!(log.purge(LogIndex(1)), Err(WriteLogError::Stopped)));
    assert!(matches!(log.reset(LogIndex(9), Term(9)), Err(WriteLogError::Stopped)));
    assert!(matches!(log.read(LogIndex(1), LogIndex(2), 1), Err(ReadLogError::Stopped)));
    disk.crash(0);
    assert_eq!(open(disk).unwrap().1.last, LogIndex(2));
}

#[test]
fn a_full_disk_is_named_with_the_bytes_needed_and_can_be_relieved() {
    let disk = MemoryDisk::new();
    disk.set_capacity(SMALL - 1);
    let Err(OpenLogError::Prepare(full)) = open(disk.clone()) else { panic!("there is no room") };
    assert_eq!(full.to_string(), "no room in memory for a log segment of 8192 bytes (8191 are free)");

    disk.set_capacity(SMALL);
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 3, 1);
    let more = entries([entry(4, 1, [1; 1000])]);
    let full = log.write(&more).unwrap_err();
    assert!(matches!(full, WriteLogError::DiskFull { needed: SMALL, .. }), "{full}");
    assert_eq!(log.last(), LogIndex(3));
    assert!(matches!(log.reset(LogIndex(9), Term(9)), Err(WriteLogError::DiskFull { .. })));
    disk.set_capacity(3 * SMALL);
    put(&mut log, &more);
    assert_eq!(all(&mut log).len(), 4);
}

#[test]
fn files_of_another_cluster_or_node_are_refused() {
    let disk = MemoryDisk::new();
    open(disk.clone()).unwrap();
    for (cluster, node) in [(0xc2, 0xd1), (0xc1, 0xd2)] {
        let other = LogIdentity { cluster: ClusterId::from_u128(cluster), node: NodeId::from_u128(node) };
        let refused = Log::open(disk.clone(), other, options()).unwrap_err();
        assert!(matches!(refused, OpenLogError::Foreign { .. }), "{refused}");
    }
    open(disk).unwrap();
}

#[test]
fn purged_segments_become_spares_and_their_old_content_never_comes_back() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 20, 0xaa);
    put(&mut log, &state(1, 5, 20));
    log.purge(LogIndex(16)).unwrap();
    assert!(log.first() <= LogIndex(16) && log.first() > LogIndex(12));
    assert_eq!(disk.list().unwrap().iter().filter(|name| is_spare(name)).count(), SPARES_MAX);
    let purged = log.read(LogIndex(1), LogIndex(2), 1).unwrap_err();
    assert!(matches!(purged, ReadLogError::Purged { from: LogIndex(1), .. }), "{purged}");

    // The same sizes again: each new record ends where an old one began, the worst case.
    for last in 21..=26 {
        fill(&mut log, last, 0xbb);
        let (_, recovered) = open(disk.copy()).unwrap();
        assert_eq!((recovered.last.0, recovered.hard_state), (last, HardState { term: 1, vote: 5, commit: 20 }));
    }
    let current = log.current();
    let behind = &disk.contents(&current.name).unwrap()[usize::try_from(current.end).unwrap()..];
    assert!(behind.contains(&0xaa), "the file was not a recycled one, so nothing was tested");
    let files = segments(&disk).len() + disk.list().unwrap().iter().filter(|name| is_spare(name)).count();
    assert_eq!(disk.list().unwrap().len(), files, "nothing else is left behind");
}

#[test]
fn a_prepared_spare_is_asked_for_once_and_taken() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    assert!(!log.wants_spare());
    fill(&mut log, 2, 1);
    assert!(log.wants_spare());
    prepare_spare(&disk, &options()).unwrap();
    assert!(!log.wants_spare());
    let before = disk.syncs();
    fill(&mut log, 4, 1);
    assert!(!disk.exists(NEW_SPARE).unwrap());
    // Two batches, the new segment's beginning and the directory; nothing was allocated.
    assert_eq!(disk.syncs() - before, 4);
}

#[test]
fn a_reset_log_goes_on_after_the_snapshot_and_keeps_the_vote() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 20, 1);
    put(&mut log, &state(3, 8, 7));
    // Behind the end; and before the end, over a tail that another leader never committed.
    for (index, term) in [(500, 3), (502, 4)] {
        log.reset(LogIndex(index), Term(term)).unwrap();
        disk.crash(index);
        let recovered;
        (log, recovered) = open(disk.clone()).unwrap();
        assert_eq!(recovered.before, (LogIndex(index), Term(term)));
        assert_eq!(recovered.hard_state, HardState { term: 3, vote: 8, commit: index });
        assert_eq!((recovered.last, segments(&disk).len()), (LogIndex(index), 1));
        fill(&mut log, index + 8, 2);
    }
}

#[test]
fn a_reset_that_died_before_it_removed_the_old_segments_still_holds() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 20, 1);
    // Allocation, the new segment's beginning, its name; the first removal's sync fails.
    disk.fail_syncs(3);
    assert!(log.reset(LogIndex(10), Term(1)).is_err());
    disk.crash(0);
    assert!(segments(&disk).len() > 3);
    let (log, recovered) = open(disk.clone()).unwrap();
    assert_eq!((recovered.before, log.last()), ((LogIndex(10), Term(1)), LogIndex(10)));
    assert_eq!(segments(&disk).len(), 1);
}

#[test]
fn a_lost_segment_is_corruption() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 20, 1);
    let names = segments(&disk);
    disk.remove(&names[2]).unwrap();
    let lost = open(disk).unwrap_err();
    assert!(matches!(&lost, OpenLogError::Corrupt { file, .. } if *file == names[3]), "{lost}");
}

#[test]
fn no_flipped_byte_is_believed_or_silently_dropped() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    for index in 1..=12 {
        put(&mut log, &entries([entry(index, 1, format!("entry {index}")), entry(index + 1, 1, [7; 400])]));
        put(&mut log, &state(1, 3, index));
    }
    let batch = log.current().end;
    put(
        &mut log,
        &Append { hard_state: Some(HardState { term: 2, vote: 4, commit: 12 }), ..entries([entry(14, 2, "z")]) },
    );
    let last = log.current().name.clone();
    assert!(log.current().first < LogIndex(13), "the last batch began a segment; change the sizes");
    let live: BTreeMap<_, _> = log.segments.iter().map(|segment| (segment.name.clone(), segment.end)).collect();
    assert!(live.len() > 1);
    let whole = open(disk.copy()).unwrap().1;

    let (mut reported, mut cut) = (0, 0);
    for (name, &end) in &live {
        for offset in 0..disk.contents(name).unwrap().len() as u64 {
            let rotten = disk.copy();
            rotten.flip(name, offset, 1 << (offset % 8)).unwrap();
            let outcome = open(rotten);
            let in_last_batch = *name == last && (batch..end).contains(&offset);
            match outcome {
                Ok((_, recovered)) if offset >= end => assert_eq!(recovered, whole, "{name} {offset}"),
                Ok((_, recovered)) => {
                    assert!(in_last_batch, "the flip at {offset} of {name} was not noticed");
                    assert_eq!(recovered.hard_state, HardState { term: 1, vote: 3, commit: 12 });
                    assert!(recovered.last >= LogIndex(13));
                    cut += 1;
                }
                Err(OpenLogError::Corrupt { file, .. }) => {
                    assert!(offset < end && !in_last_batch, "{name} {offset}");
                    assert!(file == *name || live.contains_key(&file));
                    reported += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert_eq!(cut, live[&last] - batch);
    assert_eq!(reported + cut, live.values().sum::<u64>());
}

#[test]
fn corruption_is_told_with_file_offset_index_and_consequence() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    for index in 1..=3 {
        put(&mut log, &entries([entry(index, 1, "data")]));
    }
    disk.flip(&segments(&disk)[0], 4152 + 56 + 50, 1).unwrap();
    assert_eq!(
        open(disk).unwrap_err().to_string(),
        "log-0000000000000001.seg is damaged at offset 4208, about entry 2: a record of the later batch 4 follows; \
         this node must not vote until its log has been repaired from the others"
    );
}

/// A segment with these records (kind, index), whose checksums are right whatever it says.
fn made_up(header: Header, records: &[(u8, u64)], change: impl Fn(&mut RecordHead)) -> MemoryDisk {
    let mut bytes = Vec::new();
    let mut crc = header.encode(&mut bytes);
    for &(kind, index) in records {
        let (tag, batch_start) = (header.tag(), 4096);
        let mut head = RecordHead { previous_crc: crc, tag, batch: 1, batch_start, kind, index, term: 0 };
        change(&mut head);
        crc = head.encode(&[0; 8], &mut bytes);
    }
    let disk = MemoryDisk::new();
    let file = disk.create(&segment_name(header.first)).unwrap();
    file.write_at(&mut [io::IoSlice::new(&bytes)], 0).unwrap();
    disk
}

#[test]
fn numbers_that_no_log_gets_to_are_damage() {
    let LogIdentity { cluster, node } = identity();
    let (first, before) = (LogIndex(1), Term(0));
    let good = Header { cluster, node, segment: 7, sequence: 1, first, before, batch: 1, previous: None };
    let records = [(KIND_HARD_STATE, 0), (KIND_NORMAL, 1)];
    assert!(open(made_up(good, &records, |_| ())).is_ok());
    let last = u64::MAX;
    for header in [
        Header { sequence: 0, ..good },
        Header { sequence: last, ..good },
        Header { first: LogIndex(0), ..good },
        Header { first: LogIndex(last), ..good },
        Header { batch: last, ..good },
        Header { previous: Some(Sealed { sequence: 1, end: 4095, crc: 0 }), sequence: 2, ..good },
    ] {
        assert!(matches!(open(made_up(header, &records, |_| ())), Err(OpenLogError::Corrupt { .. })), "{header:?}");
    }
    let changes: [fn(&mut RecordHead); 3] =
        [|head| head.batch = u64::MAX, |head| head.index = u64::MAX, |head| head.term = u64::MAX];
    for change in changes {
        assert!(matches!(open(made_up(good, &records, change)), Err(OpenLogError::Corrupt { .. })));
    }
}

#[test]
fn a_log_that_takes_back_what_is_committed_is_damaged() {
    let LogIdentity { cluster, node } = identity();
    let (first, before) = (LogIndex(1), Term(0));
    let header = Header { cluster, node, segment: 7, sequence: 1, first, before, batch: 1, previous: None };
    let mut records = vec![(KIND_HARD_STATE, 0), (KIND_NORMAL, 1), (KIND_NORMAL, 2), (KIND_HARD_STATE, 1)];
    records.push((KIND_NORMAL, 2));
    assert!(open(made_up(header, &records, |_| ())).is_ok());
    records.push((KIND_NORMAL, 1));
    let refused = open(made_up(header, &records, |_| ())).unwrap_err();
    assert!(refused.to_string().contains("replaces one that is committed"), "{refused}");

    // By the header of the next segment.
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    put(&mut log, &entries([entry(1, 1, "a"), entry(2, 1, "b")]));
    put(&mut log, &state(1, 0, 2));
    let previous = Some(log.current().sealed());
    let next = Header { sequence: 2, first: LogIndex(2), before: Term(1), batch: 9, previous, ..header };
    let (name, second) = (segment_name(next.first), made_up(next, &[(KIND_HARD_STATE, 1)], |head| head.batch = 9));
    let file = disk.create(&name).unwrap();
    file.write_at(&mut [io::IoSlice::new(&second.contents(&name).unwrap())], 0).unwrap();
    let refused = open(disk).unwrap_err();
    assert!(refused.to_string().contains("superseded by this segment"), "{refused}");
}

#[test]
fn a_read_of_a_rotten_entry_fails() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    put(&mut log, &entries([entry(1, 1, "data"), entry(2, 1, "data")]));
    disk.flip(&segments(&disk)[0], 4152 + 56 + 50, 1).unwrap();
    assert_eq!(log.read(LogIndex(1), LogIndex(2), 0).unwrap().len(), 1);
    let rotten = log.read(LogIndex(2), LogIndex(3), 0).unwrap_err();
    assert!(matches!(rotten, ReadLogError::Damaged { offset: 4208, index: LogIndex(2), .. }), "{rotten}");
}

#[test]
fn a_cut_tail_does_not_come_back_when_the_same_is_written_again() {
    // Two records are written, the first is torn. The same first record is written again; the
    // second one, still whole in the file behind it, must stay cut.
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    let first = entries([entry(1, 1, [1; 1000])]);
    log.write(&first).unwrap();
    log.write(&entries([entry(2, 1, "ghost")])).unwrap();
    log.sync().unwrap();
    disk.flip(&segments(&disk)[0], 4300, 1).unwrap();
    let (mut log, recovered) = open(disk.clone()).unwrap();
    assert_eq!(recovered.last, LogIndex(0));
    put(&mut log, &first);
    assert_eq!(open(disk).unwrap().1.last, LogIndex(1));
}

#[test]
fn a_real_directory_keeps_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::at(&directory.path().join("deep/log")).unwrap();
    let (mut log, _) = open(disk.clone()).unwrap();
    fill(&mut log, 10, 1);
    put(&mut log, &state(1, 2, 10));
    prepare_spare(&disk, &options()).unwrap();
    log.purge(LogIndex(8)).unwrap();
    fill(&mut log, 25, 2);
    let (first, written) = (log.first(), all(&mut log));
    drop(log);
    let (mut log, recovered) = open(disk.clone()).unwrap();
    assert_eq!(recovered.hard_state, HardState { term: 1, vote: 2, commit: 10 });
    assert_eq!((log.first(), all(&mut log)), (first, written));
    log.reset(LogIndex(100), Term(3)).unwrap();
    drop(log);
    assert_eq!(open(disk.clone()).unwrap().1.before, (LogIndex(100), Term(3)));
    assert!(disk.free_bytes().unwrap() > 0);
}

/// The format, which `docs/formats/log.md` explains; the bytes were computed by a program that
/// shares no code with this one. A change here needs a new format version.
#[test]
fn the_bytes_on_disk_are_these() {
    let disk = MemoryDisk::new();
    let (mut log, _) = open(disk.clone()).unwrap();
    put(&mut log, &entries([entry(1, 5, "abc")]));
    let bytes = disk.contents("log-0000000000000001.seg").unwrap();
    let hex = |range: std::ops::Range<usize>| {
        let chunks = bytes[range].chunks(8).map(|chunk| chunk.iter().map(|b| format!("{b:02x}")).collect::<String>());
        chunks.collect::<Vec<_>>().join(" ")
    };
    // Magic, version, previous crc; cluster; node; segment UUID; sequence, first index, term before,
    // batch; previous sequence and end.
    assert_eq!(
        hex(0..112),
        "51554f524c4f470a 0100000000000000 0000000000000000 00000000000000c1 \
         0000000000000000 00000000000000d1 9e3779b97f4a7c15 f39cc0605cedc83c \
         0100000000000000 0100000000000000 0000000000000000 0100000000000000 \
         0000000000000000 0000000000000000"
    );
    assert!(bytes[112..4092].iter().all(|&byte| byte == 0));
    assert_eq!(hex(4092..4096), "0b6c109e");
    // crc, length; previous crc, tag; batch; batch start, kind; index; term; payload.
    assert_eq!(
        hex(4096..4152),
        "95fa363d08000000 0b6c109eb5d8774d 0100000000000000 0010000003000000 \
         0000000000000000 0000000000000000 0000000000000000"
    );
    assert_eq!(
        hex(4152..4208),
        "b26d3dc103000000 95fa363db5d8774d 0200000000000000 3810000001000000 \
         0100000000000000 0500000000000000 6162630000000000"
    );
    assert!(bytes[4208..].iter().all(|&byte| byte == 0));
}
