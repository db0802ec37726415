//! The bytes of a segment: `docs/formats/log.md` in code.
//!
//! Pure functions from values to bytes and back; what a sequence of records means is decided in
//! [`super::recovery`]. All numbers are little-endian, all records begin at multiples of 8.

use quorate_model::id::{ClusterId, LogIndex, NodeId, Term};
use quorate_model::planted::{Bug, planted};

pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 4096;
pub(super) const RECORD_HEAD_BYTES: usize = 48;

const MAGIC: [u8; 8] = *b"QUORLOG\n";
/// The place of the header's checksum. It and the magic stay where they are in every version.
const HEADER_CRC: usize = HEADER_BYTES - 4;

/// No index, term, sequence or batch number gets beyond this (a million a second take 290,000 years), so
/// that there is always a next one.
pub(super) const NUMBER_MAX: u64 = u64::MAX >> 1;

/// What a record is. 0 is never used, so zeros are never a record.
pub(super) const KIND_NORMAL: u8 = 1;
pub(super) const KIND_MEMBERSHIP: u8 = 2;
pub(super) const KIND_HARD_STATE: u8 = 3;

/// Where a segment ended when the next one was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    /// The segment's sequence number; from 1.
    pub(super) sequence: u64,
    /// The offset behind its last record.
    pub(super) end: u64,
    /// Its last record's checksum.
    pub(super) crc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    /// Names this use of the file. Records of an earlier use carry another tag.
    pub(super) segment: u128,
    /// Grows from segment to segment.
    pub(super) sequence: u64,
    pub(super) first: LogIndex,
    /// Term of the entry before `first`.
    pub(super) before: Term,
    /// No record of this segment has a lower batch number.
    pub(super) batch: u64,
    /// `None`: the log begins here, all other segments with lower sequence numbers are void.
    pub(super) previous: Option<Sealed>,
}

/// Why bytes are not the header of a segment that we can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    Damaged,
    TooNew(u32),
}

impl Header {
    /// The 32 bits of the segment's UUID that each record carries.
    pub(super) fn tag(&self) -> u32 {
        crc32c::crc32c(&self.segment.to_be_bytes())
    }

    /// Appends the header to an empty buffer and returns its checksum, from which the records'
    /// chain begins.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) -> u32 {
        let previous = self.previous.unwrap_or(Sealed { sequence: 0, end: 0, crc: 0 });
        buffer.clear();
        buffer.extend_from_slice(&MAGIC);
        buffer.extend_from_slice(&VERSION.to_le_bytes());
        buffer.extend_from_slice(&previous.crc.to_le_bytes());
        buffer.extend_from_slice(self.cluster.0.as_bytes());
        buffer.extend_from_slice(self.node.0.as_bytes());
        buffer.extend_from_slice(&self.segment.to_be_bytes());
        for number in [self.sequence, self.first.0, self.before.0, self.batch, previous.sequence, previous.end] {
            buffer.extend_from_slice(&number.to_le_bytes());
        }
        buffer.resize(HEADER_CRC, 0);
        let crc = crc32c::crc32c(buffer);
        buffer.extend_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads a header and its checksum.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<(Header, u32), BadHeader> {
        let crc = u32_at(bytes, HEADER_CRC);
        if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..HEADER_CRC]) != crc {
            return Err(BadHeader::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(BadHeader::TooNew(version));
        }
        let uuid = |at: usize| u128::from_be_bytes(bytes[at..at + 16].try_into().expect("16 bytes"));
        // Sequence, first index, term before, batch, previous sequence; the first two are from 1.
        let numbers = [64, 72, 80, 88, 96].map(|at| u64_at(bytes, at));
        if numbers.iter().any(|number| *number > NUMBER_MAX) || numbers[0] == 0 || numbers[1] == 0 {
            return Err(BadHeader::Damaged);
        }
        let sequence = u64_at(bytes, 96);
        let previous = Sealed { sequence, end: u64_at(bytes, 104), crc: u32_at(bytes, 12) };
        if sequence != 0 && previous.end < HEADER_BYTES as u64 {
            return Err(BadHeader::Damaged);
        }
        let header = Header {
            cluster: ClusterId::from_u128(uuid(16)),
            node: NodeId::from_u128(uuid(32)),
            segment: uuid(48),
            sequence: u64_at(bytes, 64),
            first: LogIndex(u64_at(bytes, 72)),
            before: Term(u64_at(bytes, 80)),
            batch: u64_at(bytes, 88),
            previous: (sequence != 0).then_some(previous),
        };
        Ok((header, crc))
    }
}

/// Everything of a record but its payload. For a hard state `index` is the commit index and the
/// payload is the vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHead {
    /// Checksum of the record before, or of the header.
    pub(super) previous_crc: u32,
    pub(super) tag: u32,
    /// Grows with each sync of the log.
    pub(super) batch: u64,
    /// Offset at which this batch began in this segment: everything before was synced when this
    /// record was written.
    pub(super) batch_start: u32,
    pub(super) kind: u8,
    pub(super) index: u64,
    pub(super) term: u64,
}

/// A record whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) crc: u32,
    pub(super) head: RecordHead,
    pub(super) payload: &'a [u8],
    /// What it occupies, padding included.
    pub(super) bytes: usize,
}

/// What a record with this payload occupies.
pub(super) const fn record_bytes(payload: usize) -> usize {
    (RECORD_HEAD_BYTES + payload).next_multiple_of(8)
}

impl RecordHead {
    /// Appends the record to `buffer` and returns its checksum. The payload is below 4 GiB.
    pub(super) fn encode(&self, payload: &[u8], buffer: &mut Vec<u8>) -> u32 {
        let start = buffer.len();
        let length = u32::try_from(payload.len()).expect("the log refuses larger payloads");
        let mut head = [0; RECORD_HEAD_BYTES];
        head[4..8].copy_from_slice(&length.to_le_bytes());
        head[8..12].copy_from_slice(&self.previous_crc.to_le_bytes());
        head[12..16].copy_from_slice(&self.tag.to_le_bytes());
        head[16..24].copy_from_slice(&self.batch.to_le_bytes());
        head[24..28].copy_from_slice(&self.batch_start.to_le_bytes());
        head[28] = self.kind;
        head[32..40].copy_from_slice(&self.index.to_le_bytes());
        head[40..48].copy_from_slice(&self.term.to_le_bytes());
        buffer.extend_from_slice(&head);
        buffer.extend_from_slice(payload);
        buffer.resize(start + record_bytes(payload.len()), 0);
        let crc = crc32c::crc32c(&buffer[start + 4..]);
        buffer[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        crc
    }
}

/// The tag of what may be a record at the beginning of `bytes`, for a quick look.
pub(super) fn peek_tag(bytes: &[u8]) -> Option<u32> {
    (bytes.len() >= RECORD_HEAD_BYTES).then(|| u32_at(bytes, 12))
}

/// What the record at the beginning of `bytes` says that it occupies; not checked in any way.
pub(super) fn peek_bytes(bytes: &[u8; RECORD_HEAD_BYTES]) -> usize {
    record_bytes(u32_at(bytes, 4) as usize)
}

impl RecordHead {
    /// Whether its numbers can be: see [`NUMBER_MAX`].
    pub(super) fn is_possible(&self) -> bool {
        [self.batch, self.index, self.term].into_iter().all(|number| number <= NUMBER_MAX)
    }
}

impl<'a> Record<'a> {
    /// The record at the beginning of `bytes`, when it is whole and its checksum is right.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        if bytes.len() < RECORD_HEAD_BYTES {
            return None;
        }
        let length = u32_at(bytes, 4) as usize;
        let whole = record_bytes(length);
        let crc = u32_at(bytes, 0);
        if whole > bytes.len() || crc32c::crc32c(&bytes[4..whole]) != crc && !planted(Bug::ChecksumIgnored) {
            return None;
        }
        let head = RecordHead {
            previous_crc: u32_at(bytes, 8),
            tag: u32_at(bytes, 12),
            batch: u64_at(bytes, 16),
            batch_start: u32_at(bytes, 24),
            kind: bytes[28],
            index: u64_at(bytes, 32),
            term: u64_at(bytes, 40),
        };
        let payload = &bytes[RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + length];
        Some(Record { crc, head, payload, bytes: whole })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
