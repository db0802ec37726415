//! Appends in messages that fit into frames.
//!
//! The library (0.7.0, `batch_append`) joins what waits for a peer whatever its size: sixteen entries of 1 MiB,
//! asked for at once, made a frame that no peer accepts. So an append is cut before it leaves.
//!
//! # Invariants
//! - Every part follows the last entry of the one before it, so a part is an append like any other.

use raft::eraftpb::{self, MessageType};

/// Bytes of entries in one message, unless it is a single entry: far below what a frame may have.
const APPEND_BYTES: usize = 4 << 20;

/// The message itself, or an append in its parts, in order.
pub(super) fn parts(mut message: eraftpb::Message) -> Vec<eraftpb::Message> {
    let size = |entry: &eraftpb::Entry| entry.data.len();
    if message.get_msg_type() != MessageType::MsgAppend
        || message.entries.iter().map(size).sum::<usize>() <= APPEND_BYTES
    {
        return vec![message];
    }
    let mut entries = message.take_entries().into_iter().peekable();
    let mut parts = Vec::new();
    while let Some(entry) = entries.next() {
        let mut bytes = size(&entry);
        let mut part = vec![entry];
        while let Some(next) = entries.next_if(|next| bytes + size(next) <= APPEND_BYTES) {
            bytes += size(&next);
            part.push(next);
        }
        let last = part.last().map(|entry| (entry.index, entry.term));
        let mut cut = message.clone();
        cut.set_entries(part.into());
        parts.push(cut);
        // The next part follows the last entry of this one.
        (message.index, message.log_term) = last.expect("a part has an entry");
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_of_any_size_leaves_in_parts_that_follow_each_other_and_fit_into_frames() {
        let sized = |megabytes: &[usize]| {
            let entry = |(index, size): (u64, &usize)| eraftpb::Entry {
                index,
                term: index,
                data: vec![0; size << 20].into(),
                ..eraftpb::Entry::default()
            };
            let mut message = eraftpb::Message { index: 4, log_term: 1, ..eraftpb::Message::default() };
            message.set_msg_type(MessageType::MsgAppend);
            message.set_entries((5..).zip(megabytes).map(entry).collect::<Vec<_>>().into());
            message
        };
        let whole = sized(&[1, 1, 1, 1]);
        assert_eq!(parts(whole.clone()), [whole]);
        let cut = parts(sized(&[3, 2, 2, 8, 1, 1]));
        let seen: Vec<(u64, u64, Vec<u64>)> = cut
            .iter()
            .map(|part| (part.index, part.log_term, part.entries.iter().map(|entry| entry.index).collect()))
            .collect();
        assert_eq!(seen, [(4, 1, vec![5]), (5, 5, vec![6, 7]), (7, 7, vec![8]), (8, 8, vec![9, 10])]);
    }
}
