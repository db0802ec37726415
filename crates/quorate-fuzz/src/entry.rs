//! Log entries: the envelope, its payload, what is kept of its outcome, and what a command does.

use bytes::Bytes;
use prost::Message as _;
use quorate_model::entry::{Envelope, Kind, Outcome, Payload};
use quorate_model::id::LogIndex;
use quorate_model::state::ClusterState;

/// The first byte chooses: 0 to 2 is the kind of an outcome whose bytes follow, any other an entry.
///
/// # Panics
/// When an entry or an outcome that can be read is another after it was written again, when a command
/// makes the state machine panic, or does not do the same twice.
pub fn entry(data: &[u8]) -> bool {
    let Some((&first, rest)) = data.split_first() else { return false };
    match Kind::try_from(i32::from(first)) {
        Ok(kind) => outcome(kind, rest),
        Err(_) => envelope(Bytes::copy_from_slice(rest)),
    }
}

fn outcome(kind: Kind, bytes: &[u8]) -> bool {
    let Ok(outcome) = Outcome::from_bytes(kind, bytes) else { return false };
    let written = outcome.to_bytes();
    let again = Outcome::from_bytes(kind, &written).expect("an outcome that was written can be read");
    // Compared as bytes: an outcome may hold a NaN, which differs from itself.
    assert_eq!(again.to_bytes(), written, "an outcome changed when it was written and read");
    true
}

fn envelope(data: Bytes) -> bool {
    let Ok(envelope) = Envelope::read(data) else { return false };
    let written = envelope.encode_to_vec();
    let again = Envelope::read(written.into()).expect("an envelope that was written can be read");
    assert_eq!(again, envelope, "an envelope changed when it was written and read");
    let _ = (envelope.time(), envelope.request_id(), envelope.file());
    if let Ok(Some(fence)) = envelope.fence() {
        assert_eq!(fence.to_string(), envelope.fence, "a fence has more than one text");
    }
    match envelope.payload() {
        Err(_) => false,
        Ok(Payload::Noop) => true,
        Ok(Payload::Sql(batch)) => {
            let written = batch.encode_to_vec();
            let again =
                quorate_model::sql::SqlBatch::decode(written.as_slice()).expect("a batch that was written can be read");
            assert_eq!(again.encode_to_vec(), written, "a batch changed when it was written and read");
            true
        }
        Ok(Payload::Command(command)) => {
            let mut state = ClusterState::default();
            for index in [LogIndex(1), LogIndex(2)] {
                let (first, second) =
                    (state.decide(index, envelope.time(), &command), state.decide(index, envelope.time(), &command));
                assert_eq!(first, second, "a command is not decided equally");
                if let Ok(changes) = first {
                    state.absorb(index, &changes);
                }
            }
            for node in state.nodes.keys() {
                assert_eq!(state.assignment(*node).node, *node);
            }
            true
        }
    }
}
