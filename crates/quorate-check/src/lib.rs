//! Checkers of histories: did the cluster keep its word to its clients?
//!
//! A history is what clients asked, when, and what they were told. The checkers know nothing of how
//! the answers came about, so the simulator and `quorate torture` use the same ones.
//!
//! | checker | promise | needs | cost |
//! |---|---|---|---|
//! | [`witness`] | linearizable registers, nothing acknowledged is lost | the log index of every answer | n log n |
//! | [`linearizable`] | linearizable registers | answers and times alone | a search, bounded by steps |
//! | [`list_append`] | strictly serializable transactions | answers and times alone | n log n |
//! | [`stream`] | ordered events without gap or duplicate | what was published | n log n |
//!
//! `witness` is the first line because it is exact and cheap; the next two believe no index that the
//! cluster tells and so would see a cluster that lies about them.
//!
//! # Invariants
//! - Pure: no clock, no threads, no randomness; equal histories give equal verdicts.
//! - Never a false alarm: a checker says [`history::Verdict::Violated`] only if no behaviour that
//!   keeps the promise explains the history. What a checker lets pass because of operations with an
//!   unknown end is said in its module.
//! - A history that cannot have been recorded (an answer before its question, a read answered like a
//!   write) is [`history::Verdict::Unknown`]: the recorder is wrong, and that proves nothing.

pub mod history;
pub mod linearizable;
pub mod list_append;
pub mod register;
pub mod stream;
pub mod witness;
