//! Bugs that the test harness plants into shipping code, to prove that it would find them.
//!
//! A place in the code asks `planted(Bug::…)` and then does the wrong thing. Without the feature
//! `planted-bugs`, which no shipped binary has, the answer is a constant `false` and the wrong thing
//! is not compiled in. What each bug is and which invariant must catch it is listed in the simulator.

/// A known way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Bug {
    /// The log says that a batch is durable without having synced it.
    AckBeforeSync = 1,
    /// A vote leaves before it is on disk.
    VoteBeforeSync,
    /// A leader answers linearizable reads without asking a majority whether it still leads.
    DeposedLeaderRead,
    /// Entries at or below a database's applied index are applied again.
    AppliedTwice,
    /// A snapshot forgets who votes.
    SnapshotWithoutVoters,
    /// A leader commits entries of earlier terms by counting copies (Raft §5.4.2).
    CommitOldTermByCount,
    /// The applied index is written in a transaction of its own, after the entries'.
    AppliedIndexApart,
    /// The leader counts its own copy of an entry before its disk has it.
    LeaderCountsUnsynced,
    /// The log is shortened up to what the databases hold, durable or not.
    ShortenedTooFar,
    /// The log is shortened by the databases' position although their files were not synced.
    ShortenedBeforeSync,
    /// Checksums of log records are not looked at.
    ChecksumIgnored,
    /// At a start the log is cut to what is known to be committed.
    CutToCommit,
    /// SQL sees the node's own clock.
    LocalTime,
    /// A request that is sent again is done again.
    RetryAppliedTwice,
    /// Remembered request ids are not loaded at a start.
    RequestIdsForgotten,
    /// An entry whose SQL ends the transaction takes its neighbours in the batch with it.
    BatchNeighbourLost,
    /// The hint that the leader died also forgets whom this node voted for.
    HintForgetsVote,
    /// A read is answered as soon as its index is confirmed, whether or not the database is there.
    ReadBeforeApplied,
    /// A new segment of the log does not begin with the vote.
    VoteNotInSegment,
    /// After a snapshot the log begins anew without term and vote.
    VoteLostAtSnapshot,
    /// A plan is carried out although the cluster has moved on: two replicas for one ordinal.
    StalePlanCarriedOut,
    /// An agent obeys an assignment older than the one that it obeyed before.
    OlderAssignmentObeyed,
    /// `random()` draws from the node's own generator.
    LocalRandomness,
}

/// Plants one bug, in place of the one before, or none. For a process that runs one cluster at a time.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "planted-bugs")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Whether this bug is planted.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Whether this bug is planted: never, in a binary that is shipped.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}
