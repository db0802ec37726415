//! Bugs that the test harness plants into shipping code, to prove that it would find them.
//!
//! A place in the code asks `planted(Bug::…)` and then does the wrong thing. Without the feature
//! `planted-bugs`, which no shipped binary has, the answer is a constant `false` and the wrong thing
//! is not compiled in. What each bug is and which invariant must catch it is listed in the simulator.

/// A known way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Bug {
    // ── Consensus ──
    /// A vote leaves before it is on disk.
    VoteBeforeSync = 1,
    /// A voter that is alone leads, and is heard, before its vote is on disk.
    LeadsBeforeVote,
    /// The leader counts its own copy of an entry before its disk has it.
    LeaderCountsUnsynced,
    /// A leader commits entries of earlier terms by counting copies (Raft §5.4.2).
    CommitOldTermByCount,
    /// The hint that the leader died also forgets whom this node voted for.
    HintForgetsVote,
    /// Entries that the library joined to the wrong message are sent as they are.
    AppendsMisplaced,
    /// What is known of a snapshot that arrived lacks the voters.
    SnapshotWithoutVoters,
    // ── Voters that change ──
    /// Learners are counted like voters.
    LearnerCounted,
    /// The old set of voters is left at once, not when both know of the change.
    JointSkipped,
    /// A configuration is in force as soon as its entry is in the log, committed or not.
    ConfiguredAtAppend,
    /// A snapshot that was received goes with the configuration that this node knew before.
    SnapshotOfOwnVoters,
    /// A standby votes before it has caught up.
    PromotedBehind,
    // ── Keys that change ──
    /// A stage of a change of keys goes on when somebody has carried it out, not everybody.
    StageBeforeAll,
    // ── Reads ──
    /// A leader answers linearizable reads without asking a majority whether it still leads.
    DeposedLeaderRead,
    /// A read is answered as soon as its index is confirmed, whether or not the database is there.
    ReadBeforeApplied,
    /// A read is answered by a round that began before it was asked.
    ReadByEarlierRound,
    // ── The log ──
    /// The log says that a batch is durable without having synced it.
    AckBeforeSync,
    /// A new segment's name is not synced.
    SegmentNameUnsynced,
    /// A new segment of the log does not begin with the vote.
    VoteNotInSegment,
    /// After a snapshot the log begins anew without term and vote.
    VoteLostAtSnapshot,
    /// Checksums of log records are not looked at.
    ChecksumIgnored,
    /// At a start the log is cut to what is known to be committed.
    CutToCommit,
    /// The log is shortened without regard to what the databases hold.
    ShortenedTooFar,
    /// The log is shortened by the databases' position although their files were not synced.
    ShortenedBeforeSync,
    // ── The databases ──
    /// Entries at or below a database's applied index are applied again.
    AppliedTwice,
    /// The applied index is written in a transaction of its own, after the entries'.
    AppliedIndexApart,
    /// A snapshot goes by the position of the newer of the two files.
    SnapshotOfNewerFile,
    /// The directory of a new database is not synced into the one above it.
    DirectoryUnsynced,
    /// An entry whose SQL ends the transaction takes its neighbours in the batch with it.
    BatchNeighbourLost,
    /// SQL sees the node's own clock.
    LocalTime,
    /// `random()` goes on where the node's own generator was.
    LocalRandomness,
    // ── Active and passive copies ──
    /// The next copy is promoted as soon as the active one was asked to give its role back.
    YieldTakenAsDone,
    // ── Requests ──
    /// A request that is sent again is done again.
    RetryAppliedTwice,
    /// Remembered request ids are not loaded at a start.
    RequestIdsForgotten,
    /// A leap of the log's time makes nodes forget request ids.
    LeapForgetsRequests,
    /// A request that nobody waits for any more is handed to the leader all the same.
    RetryAfterDeadline,
    // ── Fences ──
    /// What is written under an older epoch is done like any other write.
    FenceIgnored,
    /// An epoch that is given to a copy is not noted where writes are judged.
    GrantNotFenced,
    // ── Services ──
    /// A plan is carried out although the cluster has moved on: two replicas for one ordinal.
    StalePlanCarriedOut,
    /// An agent obeys an assignment older than the one that it obeyed before.
    OlderAssignmentObeyed,
    /// An old replica ends as soon as its successor is placed, healthy or not.
    UpdateWithoutHealth,
    /// Nothing that befalls a new version ends its update.
    UpdateNeverFails,
    // ── Leases ──
    /// A voter acknowledges a lease although its fence is in the log.
    AcknowledgedAfterFence,
    /// A voter that starts says that it never acknowledged anything.
    AgeIgnoresStart,
    /// An epoch is raised as soon as a majority was silent for long enough, without a fence.
    RaisedWithoutFence,
    /// A holder counts from when it was acknowledged, not from when it asked.
    HeldFromAcknowledgement,
    /// Whoever gets a lease after another gets the same epoch.
    EpochReused,
    /// A replica that holds a lease is forgotten as soon as its node is lost.
    LeasedForgotten,
    /// A lease is given back as soon as its holder was told to end, not when that has ended.
    GivenBackEarly,
    /// A lease whose holder goes on without renewals is fenced and raised like any other.
    KeptFenced,
    /// Nothing ends a replica when its lease is over.
    KillTimerOff,
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
