//! The replicated log's place on this node's disk.
//!
//! Entries and the hard state (term, vote, commit) are appended to segment files of a fixed size.
//! One [`write`](Log::write) is one system call, one [`sync`](Log::sync) is one `fdatasync` for all
//! writes since the one before. Full segments are followed by new ones; segments that a snapshot
//! made needless become spares and are written again. Format: `docs/formats/log.md`.
//!
//! Why not a key-value store: Raft appends, truncates at the end and drops at the beginning. Files
//! written front to back into blocks that are allocated and zeroed already do that with one sync
//! and without moving a byte twice; a tree or an LSM does more of both.
//!
//! # Invariants
//! - What was synced is there after a crash, or [`open`](Log::open) fails and says what is gone.
//!   What was not synced is there in part from its beginning, or not at all.
//! - Segments other than the last were synced completely before the last one was begun.
//! - Each segment begins with the hard state, synced before the file gets its name; so the vote
//!   does not vanish with an older segment.
//! - `hard_state.commit <= last`, on disk after each record too: a batch's hard state follows its
//!   entries, or a tail torn between them could mark superseded entries as committed.
//! - Committed entries are never truncated.
//! - After an I/O error nothing works any more: the process must stop and open the log again. A
//!   failed sync is never repeated (Rebello et al.: Can applications recover from fsync failures?
//!   USENIX ATC 2020).
//!
//! # Sources
//! Alagappan et al.: Protocol-aware recovery for consensus-based storage, FAST 2018 (crash and
//! corruption must be told apart). The chain of checksums alone cannot do that; see
//! `recovery.rs` for the batch numbers that can.

mod extent;
mod format;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;

use crate::disk::{Disk, DiskFile, is_full};
use bytes::Bytes;
use extent::Extent;
use format::{
    BadHeader, HEADER_BYTES, Header, KIND_HARD_STATE, KIND_MEMBERSHIP, KIND_NORMAL, RECORD_HEAD_BYTES, Record,
    RecordHead, Sealed, record_bytes,
};
use quorate_model::id::{ClusterId, LogIndex, NodeId, Term};
use quorate_model::planted::{Bug, planted};
use recovery::Progress;
use segment::{Marks, Segment};
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;

/// Emptied segments are kept for the next ones up to this number: one to go on with at once, one
/// for the burst while the next snapshot is made. More would only take room.
const SPARES_MAX: usize = 2;
/// The spare that [`prepare_spare`] makes.
const NEW_SPARE: &str = "spare-new.seg";
/// What a read asks of the file at least: a few entries beyond the wanted one cost nothing.
const READ_BYTES: usize = 64 * 1024;
/// Buffers that one large batch made larger than this give the memory back.
const BUFFER_KEPT: usize = 4 << 20;
/// Segments are whole pages.
const PAGE: u64 = 4096;
/// A batch's beginning is kept in 32 bits.
const SEGMENT_MAX: u64 = u32::MAX as u64;

/// Whose log it is. Written into each segment, so that files of two clusters or nodes never mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// Size of a segment in bytes, rounded up to whole pages; from 8 KiB to 4 GiB, default 16 MiB.
    /// A batch that does not fit gets a larger one.
    pub segment_bytes: u64,
    /// Makes the segments' UUIDs; random and new at each start of the process. (The log has no
    /// randomness of its own.)
    pub seed: u128,
}

impl LogOptions {
    /// The default sizes.
    #[must_use]
    pub fn new(seed: u128) -> LogOptions {
        LogOptions { segment_bytes: 16 << 20, seed }
    }

    fn segment_bytes(&self) -> u64 {
        self.segment_bytes.clamp(2 * PAGE, SEGMENT_MAX - PAGE).next_multiple_of(PAGE)
    }
}

/// What Raft must not forget besides the entries. `vote` is the voted node's consensus number, 0
/// for none; `commit` is a log index.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// What an entry is to consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    Normal,
    /// Changes who votes.
    Membership,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    pub index: LogIndex,
    pub term: Term,
    pub kind: EntryKind,
    pub data: Bytes,
}

/// What is written together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Append {
    /// As of after the entries.
    pub hard_state: Option<HardState>,
    /// With consecutive indexes. If the first is not behind the last of the log, it and all behind
    /// it are superseded.
    pub entries: Vec<LogEntry>,
}

/// What the log held when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub hard_state: HardState,
    /// Position just before the first retained entry.
    pub before: (LogIndex, Term),
    /// The last entry, or `before` when there are none.
    pub last: LogIndex,
    /// First index of each run of equal terms among the retained entries.
    pub terms: Vec<(LogIndex, Term)>,
}

/// Why the log cannot be opened. Nothing durable was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenLogError {
    #[error("{file} belongs to node {found_node} of cluster {found_cluster}, this is node {node} of cluster {cluster}")]
    Foreign { file: String, cluster: ClusterId, node: NodeId, found_cluster: ClusterId, found_node: NodeId },
    #[error("{file} has log format {found}, this binary knows {}", format::VERSION)]
    TooNew { file: String, found: u32 },
    /// Something that this node had made durable is gone; it may be a vote or an acknowledged
    /// entry. To vote nevertheless could elect a leader without committed entries.
    #[error(
        "{file} is damaged at offset {offset}, about entry {index}: {what}; \
         this node must not vote until its log has been repaired from the others"
    )]
    Corrupt { file: String, offset: u64, index: LogIndex, what: String },
    #[error("cannot {doing} {file}")]
    Io {
        doing: &'static str,
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare the log")]
    Prepare(#[source] WriteLogError),
}

/// Why the log was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteLogError {
    /// Nothing was written. It may be tried again when there is room.
    #[error("no room in {} for a log segment of {needed} bytes ({free} are free)", directory.display())]
    DiskFull {
        directory: PathBuf,
        needed: u64,
        free: u64,
        #[source]
        source: io::Error,
    },
    /// Nothing was written.
    #[error("entry {index} does not continue the log, which holds {first} to {last}")]
    OutOfOrder { index: LogIndex, first: LogIndex, last: LogIndex },
    /// Nothing was written. Going on would unsay what the cluster has acknowledged.
    #[error("entry {index} would replace one that is committed (up to {commit})")]
    Committed { index: LogIndex, commit: LogIndex },
    /// Nothing was written.
    #[error("commit index {commit} is beyond the last entry {last}")]
    CommitBeyondLast { commit: LogIndex, last: LogIndex },
    /// Nothing was written.
    #[error("a batch of {bytes} bytes does not fit into any segment")]
    TooLarge { bytes: u64 },
    /// Unknown outcome. The process must stop; the log answers nothing but `Stopped` from now on.
    #[error("cannot {doing} in {}", directory.display())]
    Io {
        doing: &'static str,
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nothing was written, because of an earlier I/O error.
    #[error("the log has stopped after an earlier error")]
    Stopped,
}

/// Why entries cannot be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadLogError {
    /// A snapshot has them.
    #[error("entry {from} is no longer in the log, which begins at {first}")]
    Purged { from: LogIndex, first: LogIndex },
    #[error("entry {wanted} is not in the log, which ends at {last}")]
    NotThere { wanted: LogIndex, last: LogIndex },
    /// The node must not use or send the entry; another one has it.
    #[error("{file} is damaged at offset {offset}, at entry {index}")]
    Damaged { file: String, offset: u64, index: LogIndex },
    #[error("cannot read {file}")]
    Io {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("the log has stopped after an earlier error")]
    Stopped,
}

/// Why there is no spare. The log goes on and makes its segments itself.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a spare log segment of {bytes} bytes in {}", directory.display())]
pub struct SpareError {
    directory: PathBuf,
    bytes: u64,
    #[source]
    source: io::Error,
}

/// The log. See the module.
pub struct Log<D: Disk> {
    disk: D,
    identity: LogIdentity,
    options: LogOptions,
    /// In order of index; the last is written. Never empty once opened.
    segments: VecDeque<Segment<D::File>>,
    extent: Extent,
    hard_state: HardState,
    sequence: u64,
    batch: u64,
    batch_start: u64,
    unsynced: bool,
    stopped: bool,
    spares: usize,
    /// Encodes batches; kept for its memory.
    buffer: Vec<u8>,
    window: Window,
}

impl<D: Disk> std::fmt::Debug for Log<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("directory", &self.disk.directory())
            .field("extent", &self.extent)
            .field("hard_state", &self.hard_state)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

fn segment_name(first: LogIndex) -> String {
    format!("log-{:016x}.seg", first.0)
}

fn is_segment(name: &str) -> bool {
    name.starts_with("log-") && name.ends_with(".seg")
}

fn is_spare(name: &str) -> bool {
    name.starts_with("spare-") && name.ends_with(".seg")
}

/// Makes a zero-filled spare segment unless there is one, for the log's next segment. Takes as long
/// as writing [`LogOptions::segment_bytes`] does, so call it on a thread that may wait, and on one
/// at a time.
///
/// # Errors
/// [`SpareError`] when there is no room or the disk fails.
pub fn prepare_spare<D: Disk>(disk: &D, options: &LogOptions) -> Result<(), SpareError> {
    const UNFINISHED: &str = "spare-new.tmp";
    let bytes = options.segment_bytes();
    let make = || {
        if disk.exists(NEW_SPARE)? {
            return Ok(());
        }
        disk.create(UNFINISHED)?.allocate_zeroed(bytes)?;
        disk.rename(UNFINISHED, NEW_SPARE)?;
        disk.sync_dir()
    };
    make().map_err(|source| {
        // A half-made file would keep the room that is short; if it stays, the next start removes it.
        disk.remove(UNFINISHED).ok();
        SpareError { directory: disk.directory().to_owned(), bytes, source }
    })
}

/// A segment file and its header, before its records are read.
struct Found<F> {
    name: String,
    file: F,
    header: Header,
    crc: u32,
}

impl<D: Disk> Log<D> {
    /// Opens the log on `disk`, or makes an empty one if there is none. What is recovered is
    /// durable when this returns.
    ///
    /// # Errors
    /// [`OpenLogError`]; on [`Corrupt`](OpenLogError::Corrupt) the node must not vote.
    pub fn open(disk: D, identity: LogIdentity, options: LogOptions) -> Result<(Log<D>, Recovered), OpenLogError> {
        let at = disk.directory().display().to_string();
        let names = disk.list().map_err(|source| OpenLogError::Io { doing: "list", file: at, source })?;
        let mut found = BTreeMap::new();
        for name in names.iter().filter(|name| is_segment(name)) {
            let segment = read_header(&disk, &identity, name)?;
            found.insert(segment.header.sequence, segment);
        }
        let (chain, void) = link(found)?;
        let mut log = Log {
            disk,
            identity,
            options,
            segments: VecDeque::new(),
            extent: Extent::empty_after(LogIndex(0), Term(0)),
            hard_state: HardState::default(),
            sequence: 0,
            batch: 0,
            batch_start: 0,
            unsynced: false,
            stopped: false,
            spares: 0,
            buffer: Vec::new(),
            window: Window::default(),
        };
        log.scan_all(chain)?;
        log.clean(&names, void).map_err(OpenLogError::Prepare)?;
        if log.segments.is_empty() {
            log.begin_segment(log.extent.first(), 0, None).map_err(OpenLogError::Prepare)?;
        }
        let recovered = Recovered {
            hard_state: log.hard_state,
            before: log.extent.before,
            last: log.extent.last,
            terms: log.extent.runs.clone(),
        };
        Ok((log, recovered))
    }

    fn scan_all(&mut self, chain: Vec<Found<D::File>>) -> Result<(), OpenLogError> {
        let mut progress = Progress { hard_state: self.hard_state, extent: self.extent.clone(), batch: 0 };
        let sealed: Vec<_> = chain.iter().skip(1).map(|next| next.header.previous).chain([None]).collect();
        let mut bytes = Vec::new();
        for (position, (Found { name, file, header, crc }, sealed)) in chain.into_iter().zip(sealed).enumerate() {
            let io = |doing| {
                let file = name.clone();
                move |source| OpenLogError::Io { doing, file, source }
            };
            let corrupt = |offset, index, what: &str| OpenLogError::Corrupt {
                file: name.clone(),
                offset,
                index,
                what: what.to_owned(),
            };
            if sealed.is_none() {
                // What the scan finds may only be in the cache of a killed process's writes; it is
                // about to be believed, so it has to last.
                file.sync_data().map_err(io("sync"))?;
            }
            let capacity = file.bytes().map_err(io("measure"))?;
            let wanted = sealed.map_or(capacity, |sealed| sealed.end);
            if wanted > capacity || wanted > SEGMENT_MAX {
                return Err(corrupt(capacity, header.first, "the file is too short"));
            }
            bytes.resize(usize::try_from(wanted).expect("checked above, and memory is 64-bit"), 0);
            file.read_at(&mut bytes, 0).map_err(io("read"))?;

            let before = LogIndex(header.first.0 - 1);
            if position == 0 {
                progress.extent = Extent::empty_after(before, header.before);
            } else if before > progress.extent.last || before < progress.extent.before.0 {
                return Err(corrupt(0, header.first, "entries before this segment are missing"));
            } else if progress.extent.term(before) != header.before {
                return Err(corrupt(0, header.first, "the entry before this segment has another term"));
            } else if header.first.0 <= progress.hard_state.commit {
                return Err(corrupt(0, header.first, "committed entries are superseded by this segment"));
            } else {
                progress.extent.truncate(header.first);
            }
            let scanned = recovery::scan(&bytes, &header, crc, sealed, &mut progress)
                .map_err(|damage| corrupt(damage.offset, progress.extent.last.next(), &damage.what))?;
            self.sequence = header.sequence;
            self.segments.push_back(Segment {
                tag: header.tag(),
                sequence: header.sequence,
                first: header.first,
                capacity,
                end: scanned.end,
                crc: scanned.crc,
                marks: scanned.marks,
                name,
                file,
            });
        }
        self.hard_state = progress.hard_state;
        self.extent = progress.extent;
        self.batch = progress.batch + 1;
        self.batch_start = self.segments.back().map_or(0, |segment| segment.end);
        Ok(())
    }

    /// Removes what earlier processes left behind: unfinished files, segments that a later one made
    /// void, spares of another size.
    fn clean(&mut self, names: &[String], void: Vec<Found<D::File>>) -> Result<(), WriteLogError> {
        let bytes = self.options.segment_bytes();
        for name in names {
            let useless = if is_spare(name) {
                let length = self.disk.open(name).and_then(|file| file.bytes());
                self.check(length, "look at a spare")? != bytes
            } else {
                name.ends_with(".tmp")
            };
            if useless {
                let removed = self.disk.remove(name);
                self.check(removed, "remove an unfinished file")?;
            } else if is_spare(name) {
                self.spares += 1;
            }
        }
        for Found { name, file, header, .. } in void {
            let length = file.bytes();
            let capacity = self.check(length, "look at a void segment")?;
            self.retire(&name, header.sequence, capacity)?;
        }
        Ok(())
    }

    /// Writes a batch behind what is there. Not durable before the next [`sync`](Self::sync), but
    /// readable at once.
    ///
    /// # Errors
    /// [`WriteLogError`]; each variant says whether anything was written.
    pub fn write(&mut self, append: &Append) -> Result<(), WriteLogError> {
        self.check_running()?;
        self.check_append(append)?;
        let entries = &append.entries;
        let bytes = entries.iter().map(|entry| record_bytes(entry.data.len()) as u64).sum::<u64>()
            + append.hard_state.map_or(0, |_| record_bytes(8) as u64);
        if bytes == 0 {
            return Ok(());
        }
        let first = entries.first().map_or(self.extent.last.next(), |entry| entry.index);
        let segment = self.current();
        if first < segment.first || segment.end + bytes > segment.capacity {
            self.roll(first, bytes)?;
        }

        let segment = self.segments.back_mut().expect("an open log has a segment");
        let start = segment.end;
        let mut head = RecordHead {
            previous_crc: segment.crc,
            tag: segment.tag,
            batch: self.batch,
            batch_start: u32::try_from(self.batch_start).expect("segments are below 4 GiB"),
            kind: KIND_HARD_STATE,
            index: 0,
            term: 0,
        };
        self.buffer.clear();
        for entry in entries {
            let offset = start + self.buffer.len() as u64;
            head.kind = match entry.kind {
                EntryKind::Normal => KIND_NORMAL,
                EntryKind::Membership => KIND_MEMBERSHIP,
            };
            (head.index, head.term) = (entry.index.0, entry.term.0);
            head.previous_crc = head.encode(&entry.data, &mut self.buffer);
            segment.marks.note(entry.index, offset, entry.index <= self.extent.last);
            self.extent.append(entry.index, entry.term);
        }
        if let Some(state) = append.hard_state {
            head.kind = KIND_HARD_STATE;
            (head.index, head.term) = (state.commit, state.term);
            head.previous_crc = head.encode(&state.vote.to_le_bytes(), &mut self.buffer);
            self.hard_state = state;
        }
        let written = segment.file.write_at(&mut [io::IoSlice::new(&self.buffer)], start);
        segment.end += self.buffer.len() as u64;
        segment.crc = head.previous_crc;
        self.unsynced = true;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT);
        self.check(written, "write a batch")
    }

    fn check_append(&self, append: &Append) -> Result<(), WriteLogError> {
        let (first, mut last) = (self.extent.first(), self.extent.last);
        if let Some(entry) = append.entries.first() {
            if entry.index <= LogIndex(self.hard_state.commit) {
                let commit = LogIndex(self.hard_state.commit);
                return Err(WriteLogError::Committed { index: entry.index, commit });
            }
            if entry.index < first || entry.index > last.next() {
                return Err(WriteLogError::OutOfOrder { index: entry.index, first, last });
            }
            last = LogIndex(entry.index.0 - 1);
        }
        for entry in &append.entries {
            if entry.index != last.next() {
                return Err(WriteLogError::OutOfOrder { index: entry.index, first, last });
            }
            last = entry.index;
        }
        match append.hard_state {
            Some(state) if state.commit > last.0 => {
                Err(WriteLogError::CommitBeyondLast { commit: LogIndex(state.commit), last })
            }
            _ => Ok(()),
        }
    }

    /// Makes everything written until now durable, with one `fdatasync` (none if nothing was
    /// written since the last).
    ///
    /// # Errors
    /// [`WriteLogError::Io`]: the process must stop. Asking again gives
    /// [`Stopped`](WriteLogError::Stopped), never a success.
    pub fn sync(&mut self) -> Result<(), WriteLogError> {
        self.check_running()?;
        if self.unsynced {
            let synced = if planted(Bug::AckBeforeSync) { Ok(()) } else { self.current().file.sync_data() };
            self.check(synced, "sync the log")?;
            self.unsynced = false;
            self.batch += 1;
            self.batch_start = self.current().end;
        }
        Ok(())
    }

    /// Reads entries from `from` to before `to_exclusive`, at least one, then until their data
    /// exceeds `bytes_max`. Checksums are checked again. An empty range gives nothing.
    ///
    /// # Errors
    /// [`ReadLogError`].
    pub fn read(
        &mut self,
        from: LogIndex,
        to_exclusive: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadLogError> {
        if self.stopped {
            return Err(ReadLogError::Stopped);
        }
        let mut entries = Vec::new();
        if from >= to_exclusive {
            return Ok(entries);
        }
        if from < self.first() {
            return Err(ReadLogError::Purged { from, first: self.first() });
        }
        if to_exclusive > self.last().next() {
            return Err(ReadLogError::NotThere { wanted: LogIndex(to_exclusive.0 - 1), last: self.last() });
        }
        let mut bytes = 0;
        let mut index = from;
        while index < to_exclusive {
            let position = self.segments.partition_point(|segment| segment.first <= index) - 1;
            let until = self.segments.get(position + 1).map_or(to_exclusive, |next| next.first.min(to_exclusive));
            let segment = &self.segments[position];
            // From a mark on, entries lie behind each other up to the next mark's index.
            let (mut offset, jump) = segment.marks.find(index).expect("the log's entries have marks before them");
            let until = until.min(jump);
            while index < until {
                let record = self.window.record(segment, offset, index)?;
                offset += record.bytes as u64;
                let kind = match record.head.kind {
                    KIND_NORMAL => EntryKind::Normal,
                    KIND_MEMBERSHIP => EntryKind::Membership,
                    _ => continue,
                };
                match record.head.index.cmp(&index.0) {
                    Ordering::Less => continue,
                    Ordering::Equal => {}
                    Ordering::Greater => {
                        let offset = offset - record.bytes as u64;
                        return Err(ReadLogError::Damaged { file: segment.name.clone(), offset, index });
                    }
                }
                if !entries.is_empty() && bytes + record.payload.len() > bytes_max {
                    return Ok(entries);
                }
                bytes += record.payload.len();
                let data = Bytes::copy_from_slice(record.payload);
                entries.push(LogEntry { index, term: Term(record.head.term), kind, data });
                index = index.next();
            }
        }
        Ok(entries)
    }

    /// Drops whole segments whose entries are all below `keep_from`; up to two of them are kept as
    /// spares. The last segment always stays, so [`first`](Self::first) may be less than asked.
    ///
    /// # Errors
    /// [`WriteLogError::Io`] or [`Stopped`](WriteLogError::Stopped).
    pub fn purge(&mut self, keep_from: LogIndex) -> Result<(), WriteLogError> {
        self.check_running()?;
        while self.segments.get(1).is_some_and(|second| second.first <= keep_from) {
            let oldest = self.segments.pop_front().expect("there are two");
            self.extent.purge(self.segments[0].first);
            // One by one and oldest first: after a crash a missing segment means that all before
            // it are needless too.
            self.retire(&oldest.name, oldest.sequence, oldest.capacity)?;
        }
        Ok(())
    }

    /// Empties the log, which then goes on after `(index, term)`: a snapshot up to there has been
    /// installed, durably. The hard state stays, its commit index raised to `index`. Durable when
    /// this returns.
    ///
    /// # Errors
    /// [`WriteLogError`]; on [`DiskFull`](WriteLogError::DiskFull), and on
    /// [`Committed`](WriteLogError::Committed) (the snapshot is older than the commit index),
    /// nothing was changed.
    pub fn reset(&mut self, index: LogIndex, term: Term) -> Result<(), WriteLogError> {
        self.check_running()?;
        let commit = LogIndex(self.hard_state.commit);
        if index < commit {
            return Err(WriteLogError::Committed { index: index.next(), commit });
        }
        let (extent, state) = (self.extent.clone(), self.hard_state);
        self.extent = Extent::empty_after(index, term);
        self.hard_state.commit = index.0;
        let begun = self.begin_segment(index.next(), 0, None);
        if begun.is_err() {
            (self.extent, self.hard_state) = (extent, state);
        }
        begun
    }

    /// The first retained entry, or the one to be written next if there is none.
    #[must_use]
    pub fn first(&self) -> LogIndex {
        self.extent.first()
    }

    /// The last entry, or the position before [`first`](Self::first) if there is none.
    #[must_use]
    pub fn last(&self) -> LogIndex {
        self.extent.last
    }

    /// What the retained records occupy, headers included and spares not.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// The first entry of the oldest segment that has to stay for the log to keep its newest
    /// `bytes`.
    #[must_use]
    pub fn newest(&self, bytes: u64) -> LogIndex {
        let mut kept = 0;
        let mut newest_first = self.segments.iter().rev();
        let oldest = newest_first.find(|segment| {
            kept += segment.end;
            kept >= bytes
        });
        oldest.map_or(self.first(), |segment| segment.first)
    }

    /// Whether it is time to call [`prepare_spare`] on another thread: the current segment is more
    /// than half full and nothing waits to follow it.
    #[must_use]
    pub fn wants_spare(&self) -> bool {
        let segment = self.current();
        let header = HEADER_BYTES as u64;
        let half_full = segment.end - header > (segment.capacity - header) / 2;
        self.spares == 0 && half_full && !matches!(self.disk.exists(NEW_SPARE), Ok(true))
    }

    fn current(&self) -> &Segment<D::File> {
        self.segments.back().expect("an open log has a segment")
    }

    fn check_running(&self) -> Result<(), WriteLogError> {
        if self.stopped { Err(WriteLogError::Stopped) } else { Ok(()) }
    }

    /// Stops the log for good at an error.
    fn check<T>(&mut self, outcome: io::Result<T>, doing: &'static str) -> Result<T, WriteLogError> {
        outcome.map_err(|source| {
            self.stopped = true;
            WriteLogError::Io { doing, directory: self.disk.directory().to_owned(), source }
        })
    }

    /// Goes on in a new segment with entry `first`; those from there on are superseded.
    fn roll(&mut self, first: LogIndex, bytes: u64) -> Result<(), WriteLogError> {
        self.sync()?;
        let previous = self.segments.iter().rev().find(|segment| segment.first < first).map(Segment::sealed);
        self.begin_segment(first, bytes, previous)
    }

    /// Makes and names a segment that begins at `first` with the hard state and has room for
    /// `bytes` more, and drops those that it supersedes.
    ///
    /// Nothing is changed when there is no room. Before the name is durable, a crash gives the log
    /// as it was; after it, the new segment decides what of the older ones counts.
    fn begin_segment(&mut self, first: LogIndex, bytes: u64, previous: Option<Sealed>) -> Result<(), WriteLogError> {
        let before = LogIndex(first.0 - 1);
        let start = HEADER_BYTES + record_bytes(8);
        let needed = (start as u64 + bytes).next_multiple_of(PAGE);
        if needed > SEGMENT_MAX {
            return Err(WriteLogError::TooLarge { bytes });
        }
        let (draft, file, capacity) = self.take_file(needed.max(self.options.segment_bytes()))?;

        let sequence = self.sequence + 1;
        let header = Header {
            cluster: self.identity.cluster,
            node: self.identity.node,
            segment: segment_uuid(self.options.seed, sequence),
            sequence,
            first,
            before: self.extent.term(before),
            batch: self.batch,
            previous,
        };
        let state = RecordHead {
            previous_crc: header.encode(&mut self.buffer),
            tag: header.tag(),
            batch: self.batch,
            batch_start: HEADER_BYTES as u32,
            kind: KIND_HARD_STATE,
            index: self.hard_state.commit,
            term: self.hard_state.term,
        };
        let vote = if planted(Bug::VoteNotInSegment) { 0 } else { self.hard_state.vote };
        let crc = state.encode(&vote.to_le_bytes(), &mut self.buffer);
        let name = segment_name(first);
        let begun = file
            .write_at(&mut [io::IoSlice::new(&self.buffer)], 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| self.disk.rename(&draft, &name))
            .and_then(|()| if planted(Bug::SegmentNameUnsynced) { Ok(()) } else { self.disk.sync_dir() });
        self.check(begun, "begin a log segment")?;

        self.sequence = sequence;
        self.batch += 1;
        self.batch_start = start as u64;
        self.unsynced = false;
        self.extent.truncate(first);
        let kept = previous.map_or(0, |previous| {
            self.segments.iter().take_while(|segment| segment.sequence <= previous.sequence).count()
        });
        let superseded = self.segments.split_off(kept);
        self.segments.push_back(Segment {
            name: name.clone(),
            file,
            tag: header.tag(),
            sequence,
            first,
            capacity,
            end: start as u64,
            crc,
            marks: Marks::default(),
        });
        for segment in superseded.iter().filter(|segment| segment.name != name) {
            self.retire(&segment.name, segment.sequence, segment.capacity)?;
        }
        Ok(())
    }

    /// A zeroed or spent file of at least this size, under a name that says so, and its size.
    fn take_file(&mut self, needed: u64) -> Result<(String, D::File, u64), WriteLogError> {
        const DRAFT: &str = "log-next.tmp";
        let names = self.disk.list();
        let mut spares = self.check(names, "list the log's files")?;
        spares.retain(|name| is_spare(name));
        self.spares = spares.len();
        for name in spares {
            let opened = self.disk.open(&name).and_then(|file| file.bytes().map(|bytes| (file, bytes)));
            let (file, bytes) = self.check(opened, "open a spare")?;
            if bytes >= needed {
                self.spares -= 1;
                return Ok((name, file, bytes));
            }
        }
        let made = self.disk.create(DRAFT).and_then(|file| file.allocate_zeroed(needed).map(|()| file));
        match made {
            Err(source) if is_full(&source) => {
                // What was allocated of it is room that others miss; if it stays, the next start
                // or the next attempt removes it.
                self.disk.remove(DRAFT).ok();
                let free = self.disk.free_bytes().unwrap_or(0);
                Err(WriteLogError::DiskFull { directory: self.disk.directory().to_owned(), needed, free, source })
            }
            made => Ok((DRAFT.to_owned(), self.check(made, "make a log segment")?, needed)),
        }
    }

    /// Keeps a segment's file as a spare, or removes it; durably.
    fn retire(&mut self, name: &str, sequence: u64, capacity: u64) -> Result<(), WriteLogError> {
        let keep = self.spares < SPARES_MAX && capacity == self.options.segment_bytes();
        let retired = if keep {
            self.spares += 1;
            self.disk.rename(name, &format!("spare-{sequence:016x}.seg"))
        } else {
            self.disk.remove(name)
        };
        self.check(retired.and_then(|()| self.disk.sync_dir()), "retire a log segment")
    }
}

/// Different for each segment of a process, and from those of other processes as their seeds are.
fn segment_uuid(seed: u128, sequence: u64) -> u128 {
    // An odd factor maps different numbers to different products.
    seed.wrapping_add(u128::from(sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn read_header<D: Disk>(disk: &D, identity: &LogIdentity, name: &str) -> Result<Found<D::File>, OpenLogError> {
    let corrupt = |what: &str| {
        let index = u64::from_str_radix(name.trim_start_matches("log-").trim_end_matches(".seg"), 16).unwrap_or(0);
        OpenLogError::Corrupt { file: name.to_owned(), offset: 0, index: LogIndex(index), what: what.to_owned() }
    };
    let io = |doing| move |source| OpenLogError::Io { doing, file: name.to_owned(), source };
    let file = disk.open(name).map_err(io("open"))?;
    let mut bytes = [0; HEADER_BYTES];
    match file.read_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(corrupt("the file is too short")),
        read => read.map_err(io("read"))?,
    }
    let (header, crc) = Header::decode(&bytes).map_err(|bad| match bad {
        BadHeader::Damaged => corrupt("the header is damaged"),
        BadHeader::TooNew(found) => OpenLogError::TooNew { file: name.to_owned(), found },
    })?;
    if (header.cluster, header.node) != (identity.cluster, identity.node) {
        return Err(OpenLogError::Foreign {
            file: name.to_owned(),
            cluster: identity.cluster,
            node: identity.node,
            found_cluster: header.cluster,
            found_node: header.node,
        });
    }
    if name != segment_name(header.first) {
        return Err(corrupt("the header is that of another file"));
    }
    Ok(Found { name: name.to_owned(), file, header, crc })
}

/// Tells the segments that make up the log, in order, from those that are void: superseded by a
/// truncation or a reset, whose process died before it could remove them.
#[expect(clippy::type_complexity, reason = "two lists of the same thing, named in the sentence above")]
fn link<F>(mut found: BTreeMap<u64, Found<F>>) -> Result<(Vec<Found<F>>, Vec<Found<F>>), OpenLogError> {
    let mut chain = Vec::new();
    let mut next = found.pop_last().map(|(_, newest)| newest);
    let mut missing = None;
    while let Some(segment) = next {
        let previous = segment.header.previous.map(|previous| previous.sequence);
        next = previous.and_then(|sequence| found.remove(&sequence));
        missing = if next.is_none() { previous } else { None };
        chain.push(segment);
    }
    chain.reverse();
    // Segments are purged oldest first. One that is missing while an older one is there was not
    // purged: it is lost.
    if let (Some(missing), Some((_, oldest))) = (missing, found.first_key_value())
        && oldest.header.sequence < missing
    {
        return Err(OpenLogError::Corrupt {
            file: chain[0].name.clone(),
            offset: 0,
            index: LogIndex(chain[0].header.first.0 - 1),
            what: format!("the segment before this one is missing, {} is older", oldest.name),
        });
    }
    Ok((chain, found.into_values().collect()))
}

/// The part of a segment that was read last. It never gets stale: what lies before a segment's end
/// is not written again under the same sequence number.
#[derive(Debug, Default)]
struct Window {
    /// The segment's.
    sequence: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The record at `offset`, which should hold or precede entry `index`.
    fn record<F: DiskFile>(
        &mut self,
        segment: &Segment<F>,
        offset: u64,
        index: LogIndex,
    ) -> Result<Record<'_>, ReadLogError> {
        let damaged = || ReadLogError::Damaged { file: segment.name.clone(), offset, index };
        let head = self.cover(segment, offset, RECORD_HEAD_BYTES)?.ok_or_else(damaged)?;
        let whole = format::peek_bytes(head.first_chunk().ok_or_else(damaged)?);
        let bytes = self.cover(segment, offset, whole)?.ok_or_else(damaged)?;
        Record::parse(bytes).filter(|record| record.head.tag == segment.tag).ok_or_else(damaged)
    }

    /// At least `length` bytes from `offset`, if the segment has them.
    fn cover<F: DiskFile>(
        &mut self,
        segment: &Segment<F>,
        offset: u64,
        length: usize,
    ) -> Result<Option<&[u8]>, ReadLogError> {
        let left = segment.end.saturating_sub(offset);
        if left < length as u64 {
            return Ok(None);
        }
        let held = segment.sequence == self.sequence
            && offset >= self.start
            && offset + length as u64 <= self.start + self.bytes.len() as u64;
        if !held {
            let wanted = length.max(READ_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.bytes.resize(wanted, 0);
            self.bytes.shrink_to(BUFFER_KEPT);
            (self.sequence, self.start) = (segment.sequence, offset);
            if let Err(source) = segment.file.read_at(&mut self.bytes, offset) {
                self.bytes.clear();
                return Err(ReadLogError::Io { file: segment.name.clone(), source });
            }
        }
        let from = usize::try_from(offset - self.start).expect("within the window");
        Ok(Some(&self.bytes[from..]))
    }
}
