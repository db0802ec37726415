//! One segment as the running log knows it: where its records end and where entries lie.
//!
//! Positions are kept for one entry in about [`MARK_BYTES`] of records and looked up by walking
//! from the mark before. That is 16 bytes of memory for 8 KiB of file (2 MiB for 1 GiB of log,
//! whatever the entries' sizes), and a lookup reads what the page cache reads ahead anyway. All
//! positions would be 27 MiB for the same log of 300-byte entries.

use super::format::Sealed;
use quorate_model::id::LogIndex;

const MARK_BYTES: u64 = 8 * 1024;

#[derive(Debug)]
pub(super) struct Segment<F> {
    pub(super) name: String,
    pub(super) file: F,
    pub(super) tag: u32,
    pub(super) sequence: u64,
    pub(super) first: LogIndex,
    /// Bytes of the file.
    pub(super) capacity: u64,
    /// The offset behind the last record.
    pub(super) end: u64,
    /// The last record's checksum.
    pub(super) crc: u32,
    pub(super) marks: Marks,
}

impl<F> Segment<F> {
    pub(super) fn sealed(&self) -> Sealed {
        Sealed { sequence: self.sequence, end: self.end, crc: self.crc }
    }
}

/// Positions of some entries of a segment, ordered by index and by offset.
///
/// # Invariants
/// - From each mark on, the entries up to the next mark's index lie behind each other, with
///   nothing but hard states between them.
/// - Marks at or behind the next segment's first index are superseded and never looked up.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<(LogIndex, u64)>);

impl Marks {
    /// Notes an entry. `replaces` says that the log held one of this index (so that it and all
    /// behind it are superseded).
    pub(super) fn note(&mut self, index: LogIndex, offset: u64, replaces: bool) {
        if replaces {
            self.0.truncate(self.0.partition_point(|&(mark, _)| mark < index));
        }
        if replaces || self.0.last().is_none_or(|&(_, mark)| offset - mark >= MARK_BYTES) {
            self.0.push((index, offset));
        }
    }

    /// Where to begin to look for an entry, and the index from which another mark holds.
    pub(super) fn find(&self, index: LogIndex) -> Option<(u64, LogIndex)> {
        let next = self.0.partition_point(|&(mark, _)| mark <= index);
        let until = self.0.get(next).map_or(LogIndex(u64::MAX), |&(mark, _)| mark);
        next.checked_sub(1).map(|mark| (self.0[mark].1, until))
    }
}
