//! What a segment's bytes mean: the scan at start, and the verdict on damage.
//!
//! A sync makes everything durable that was written since the sync before; those records are one
//! batch and carry where it began. So a record proves that everything before its batch's beginning
//! was synced once. Damage before that point is corruption: something durable is gone, perhaps a
//! vote. Damage that no record proves so lies in the batch that was being written at the end; it
//! was never acknowledged and is cut.
//!
//! A tail that was cut stays in the file until it is overwritten. It cannot come back: later
//! records have higher batch numbers, so no record of the old tail continues their chain of
//! checksums; and it proves nothing false: its batch began at or before the cut.

use super::HardState;
use super::extent::Extent;
use super::format::{
    HEADER_BYTES, Header, KIND_HARD_STATE, KIND_MEMBERSHIP, KIND_NORMAL, RECORD_HEAD_BYTES, Record, Sealed, peek_tag,
};
use super::segment::Marks;
use quorate_model::id::{LogIndex, Term};

/// The state of the log, as of the records scanned so far.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) hard_state: HardState,
    pub(super) extent: Extent,
    /// The highest batch number of any record seen, cut ones included.
    pub(super) batch: u64,
}

/// What a scan learned of one segment.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) end: u64,
    pub(super) crc: u32,
    pub(super) marks: Marks,
}

/// Something durable is gone.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) offset: u64,
    pub(super) what: String,
}

/// Reads the segment in `bytes` (all of it, or up to where it was sealed) into `progress`.
/// `sealed` is what the next segment says of this one; without it, this is the last.
pub(super) fn scan(
    bytes: &[u8],
    header: &Header,
    header_crc: u32,
    sealed: Option<Sealed>,
    progress: &mut Progress,
) -> Result<Scanned, Damage> {
    let tag = header.tag();
    let mut scanned = Scanned { end: HEADER_BYTES as u64, crc: header_crc, marks: Marks::default() };
    let mut batch = header.batch;
    let mut at = HEADER_BYTES;
    while let Some(record) = Record::parse(&bytes[at..]) {
        let head = record.head;
        if head.tag != tag || head.previous_crc != scanned.crc || head.batch < batch || head.batch_start as usize > at {
            break;
        }
        accept(&record, at, &mut scanned.marks, progress)?;
        batch = head.batch;
        at += record.bytes;
        scanned.crc = record.crc;
    }
    scanned.end = at as u64;
    progress.batch = progress.batch.max(batch);
    let damage = |what: String| Err(Damage { offset: at as u64, what });
    if at == HEADER_BYTES {
        return damage("the hard state that begins the segment is damaged".to_owned());
    }
    match sealed {
        Some(sealed) if sealed.end == scanned.end && sealed.crc == scanned.crc => {}
        Some(sealed) => return damage(format!("the segment was complete up to offset {} once", sealed.end)),
        None => {
            if let Some(later) = find_proof(&bytes[at..], at, tag, header.batch, &mut progress.batch) {
                return damage(format!("a record of the later batch {later} follows"));
            }
        }
    }
    Ok(scanned)
}

fn accept(record: &Record<'_>, at: usize, marks: &mut Marks, progress: &mut Progress) -> Result<(), Damage> {
    let damage = |what: &str| Err(Damage { offset: at as u64, what: what.to_owned() });
    let head = record.head;
    let index = LogIndex(head.index);
    if !head.is_possible() {
        return damage("a record has a number that no log gets to");
    }
    if at == HEADER_BYTES && head.kind != KIND_HARD_STATE {
        return damage("the segment does not begin with a hard state");
    }
    match head.kind {
        KIND_HARD_STATE => {
            let Ok(vote) = record.payload.try_into() else {
                return damage("a hard state has the wrong length");
            };
            if index > progress.extent.last {
                return damage("a hard state commits entries that are not there");
            }
            progress.hard_state = HardState { term: head.term, vote: u64::from_le_bytes(vote), commit: head.index };
        }
        KIND_NORMAL | KIND_MEMBERSHIP => {
            let extent = &mut progress.extent;
            if index < extent.first() || index > extent.last.next() {
                return damage("an entry does not continue the log");
            }
            if head.index <= progress.hard_state.commit {
                return damage("an entry replaces one that is committed");
            }
            marks.note(index, at as u64, index <= extent.last);
            extent.append(index, Term(head.term));
        }
        _ => return damage("a record is of a kind that this version does not know"),
    }
    Ok(())
}

/// Looks behind the first unreadable place (`tail` begins there, at `offset` of the file) for a
/// record of this segment that proves that the place was synced; gives its batch. Raises `newest`
/// to the highest batch number seen.
fn find_proof(tail: &[u8], offset: usize, tag: u32, batch_min: u64, newest: &mut u64) -> Option<u64> {
    let starts = (0..tail.len().saturating_sub(RECORD_HEAD_BYTES - 1)).step_by(8);
    let ours = starts.filter(|&at| peek_tag(&tail[at..]) == Some(tag));
    let records = ours.filter_map(|at| Record::parse(&tail[at..]).map(|record| (at, record.head)));
    let mut proof = None;
    for (at, head) in records.filter(|(_, head)| head.batch >= batch_min && head.is_possible()) {
        *newest = head.batch.max(*newest);
        let began = head.batch_start as usize;
        // At the place itself stands a whole record that does not continue the chain: if its batch
        // began there, the record before it is not the one that was synced.
        if began > offset || (at == 0 && began == offset) {
            proof = Some(head.batch);
        }
    }
    proof
}
