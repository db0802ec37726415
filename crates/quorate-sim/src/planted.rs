//! The bugs that can be planted into shipping code, and what must catch them.
//!
//! Each is in the code that ships, behind [`quorate_model::planted::planted`]; the simulator must
//! find it within [`SEEDS`] seeds, by an invariant that is named here. A bug whose feature does not
//! exist yet is listed in [`PENDING`] and never counted.

use quorate_model::planted::Bug;

/// A planted bug must be found within so many seeds.
pub const SEEDS: u64 = 700;

/// Bugs of features that do not exist yet, with the issue that brings them.
pub const PENDING: &[(&str, &str)] = &[];

/// A bug and what is expected of the simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planted {
    pub bug: Bug,
    /// For the command line.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub what: &'static str,
    /// The invariants that it breaks. One of them must object, before any other does.
    pub caught_by: &'static [&'static str],
}

const fn planted(bug: Bug, name: &'static str, caught_by: &'static [&'static str], what: &'static str) -> Planted {
    Planted { bug, name, what, caught_by }
}

/// All of them.
pub const ALL: &[Planted] = &[
    // ── Consensus ──
    planted(Bug::VoteBeforeSync, "vote-before-sync", &["promises_are_durable"], "A vote leaves before it is on disk."),
    planted(
        Bug::LeadsBeforeVote,
        "leads-before-vote",
        &["promises_are_durable"],
        "A voter that is alone leads, and is heard, before its vote is on disk.",
    ),
    planted(
        Bug::LeaderCountsUnsynced,
        "leader-counts-unsynced",
        &["commits_are_counted"],
        "The leader counts its own copy of an entry before its disk has it.",
    ),
    planted(
        Bug::CommitOldTermByCount,
        "commit-old-term-by-count",
        &["commits_are_counted"],
        "A leader commits entries of earlier terms by counting copies.",
    ),
    planted(
        Bug::HintForgetsVote,
        "hint-forgets-vote",
        &["votes_once_a_term"],
        "The hint that the leader died also forgets whom this node voted for.",
    ),
    planted(
        Bug::AppendsMisplaced,
        "appends-misplaced",
        &["entries_follow_each_other"],
        "Entries that the library joined to the wrong message are sent as they are.",
    ),
    // Nothing false is ever said, but the node that needs the snapshot never gets well.
    planted(
        Bug::SnapshotWithoutVoters,
        "snapshot-without-voters",
        &["heals"],
        "What is known of a snapshot that arrived lacks the voters.",
    ),
    // ── Voters that change ──
    planted(Bug::LearnerCounted, "learner-counted", &["voters_are_of_the_log"], "Learners are counted like voters."),
    planted(
        Bug::JointSkipped,
        "joint-skipped",
        &["majorities_meet"],
        "The old set of voters is left at once, not when both know of the change.",
    ),
    planted(
        Bug::ConfiguredAtAppend,
        "configured-at-append",
        &["voters_are_of_the_log"],
        "A configuration is in force as soon as its entry is in the log, committed or not.",
    ),
    planted(
        Bug::SnapshotOfOwnVoters,
        "snapshot-of-own-voters",
        &["voters_are_of_the_log"],
        "A snapshot that was received goes with the configuration that this node knew before.",
    ),
    planted(
        Bug::PromotedBehind,
        "promoted-behind",
        &["promoted_when_caught_up"],
        "A standby votes before it has caught up.",
    ),
    // ── Keys that change ──
    planted(
        Bug::StageBeforeAll,
        "stage-before-all",
        &["members_let_each_other_in"],
        "A stage of a change of keys goes on when somebody has carried it out, not everybody.",
    ),
    // ── Reads ──
    planted(
        Bug::DeposedLeaderRead,
        "deposed-leader-read",
        &["linearizable_by_witness", "linearizable", "strictly_serializable"],
        "A leader answers linearizable reads without asking a majority whether it still leads.",
    ),
    planted(
        Bug::ReadBeforeApplied,
        "read-before-applied",
        &["linearizable_by_witness", "linearizable", "strictly_serializable"],
        "A read is answered as soon as its index is confirmed, whether or not the database is there.",
    ),
    planted(
        Bug::ReadByEarlierRound,
        "read-by-earlier-round",
        &["linearizable_by_witness", "linearizable", "strictly_serializable"],
        "A read is answered by a round that began before it was asked.",
    ),
    // ── The log ──
    planted(
        Bug::AckBeforeSync,
        "ack-before-sync",
        &["promises_are_durable"],
        "The log says that a batch is durable without having synced it.",
    ),
    // Without its last segment a log looks like a shorter one, or like no log beside a database.
    planted(
        Bug::SegmentNameUnsynced,
        "segment-name-unsynced",
        &["promises_are_durable", "starts_again"],
        "A new log segment's name is not synced.",
    ),
    planted(
        Bug::VoteNotInSegment,
        "vote-not-in-segment",
        &["promises_are_durable"],
        "A new segment of the log does not begin with the vote.",
    ),
    planted(
        Bug::VoteLostAtSnapshot,
        "vote-lost-at-snapshot",
        &["promises_are_durable"],
        "After a snapshot the log begins anew without term and vote.",
    ),
    // A torn or rotten record is an entry with other contents or one that cannot be read, a vote for nobody, or a
    // number that makes the rest of the segment look damaged.
    planted(
        Bug::ChecksumIgnored,
        "checksum-ignored",
        &["committed_never_changes", "promises_are_durable", "starts_again", "no_error_without_a_fault"],
        "Checksums of log records are not looked at.",
    ),
    planted(
        Bug::CutToCommit,
        "cut-to-commit",
        &["promises_are_durable"],
        "At a start the log is cut to what is known to be committed.",
    ),
    planted(
        Bug::ShortenedTooFar,
        "shortened-too-far",
        &["log_reaches_databases"],
        "The log is shortened without regard to what the databases hold.",
    ),
    planted(
        Bug::ShortenedBeforeSync,
        "shortened-before-sync",
        &["promises_are_durable"],
        "The log is shortened by the databases' position although their files were not synced.",
    ),
    // ── The databases ──
    // What is done again meets a state that has it already: the digest, or the outcome, is another one.
    planted(
        Bug::AppliedTwice,
        "applied-twice",
        &["equal_state_at_equal_index", "batches_do_not_matter", "done_once"],
        "Entries at or below a database's applied index are applied again.",
    ),
    planted(
        Bug::AppliedIndexApart,
        "applied-index-apart",
        &["equal_state_at_equal_index", "batches_do_not_matter"],
        "The applied index is written in a transaction of its own, after the entries'.",
    ),
    // Who receives it looks into the files and ends itself rather than believe the manifest.
    planted(
        Bug::SnapshotOfNewerFile,
        "snapshot-of-newer-file",
        &["no_error_without_a_fault"],
        "A snapshot goes by the position of the newer of the two files.",
    ),
    planted(
        Bug::DirectoryUnsynced,
        "directory-unsynced",
        &["starts_again"],
        "The directory of a new database is not synced into the one above it.",
    ),
    planted(
        Bug::BatchNeighbourLost,
        "batch-neighbour-lost",
        &["batches_do_not_matter"],
        "An entry whose SQL ends the transaction takes its neighbours in the batch with it.",
    ),
    planted(Bug::LocalTime, "local-time", &["equal_state_at_equal_index"], "SQL sees the node's own clock."),
    planted(
        Bug::LocalRandomness,
        "local-randomness",
        &["equal_state_at_equal_index"],
        "`random()` goes on where the node's own generator was.",
    ),
    // ── Requests ──
    planted(
        Bug::RetryAppliedTwice,
        "retry-applied-twice",
        &["done_once"],
        "A request that is sent again is done again.",
    ),
    planted(
        Bug::RequestIdsForgotten,
        "request-ids-forgotten",
        &["done_once"],
        "Remembered request ids are not loaded at a start.",
    ),
    planted(
        Bug::LeapForgetsRequests,
        "leap-forgets-requests",
        &["done_once"],
        "A leap of the log's time makes nodes forget request ids.",
    ),
    planted(
        Bug::RetryAfterDeadline,
        "retry-after-deadline",
        &["done_once"],
        "A request that nobody waits for any more is handed to the leader all the same.",
    ),
    // ── Fences ──
    planted(
        Bug::FenceIgnored,
        "fence-ignored",
        &["newest_epoch_writes"],
        "What is written under an older epoch is done like any other write.",
    ),
    planted(
        Bug::GrantNotFenced,
        "grant-not-fenced",
        &["newest_epoch_writes"],
        "An epoch that is given to a copy is not noted where writes are judged.",
    ),
    // ── Services ──
    planted(
        Bug::StalePlanCarriedOut,
        "stale-plan-carried-out",
        &["one_replica_an_ordinal"],
        "A plan is carried out although the cluster has moved on: two replicas for one ordinal.",
    ),
    planted(
        Bug::OlderAssignmentObeyed,
        "older-assignment-obeyed",
        &["replicas_follow_the_newest_assignment"],
        "An agent obeys an assignment older than the one that it obeyed before.",
    ),
    planted(
        Bug::UpdateWithoutHealth,
        "update-without-health",
        &["updates_keep_enough"],
        "An old replica ends as soon as its successor is placed, healthy or not.",
    ),
    // A version that never gets well is brought out for ever.
    planted(
        Bug::UpdateNeverFails,
        "update-never-fails",
        &["heals"],
        "Nothing that befalls a new version ends its update.",
    ),
    // ── Leases ──
    planted(
        Bug::AcknowledgedAfterFence,
        "acknowledged-after-fence",
        &["one_holder"],
        "A voter acknowledges a lease although its fence is in the log.",
    ),
    planted(
        Bug::AgeIgnoresStart,
        "age-ignores-start",
        &["one_holder"],
        "A voter that starts says that it never acknowledged anything.",
    ),
    planted(
        Bug::RaisedWithoutFence,
        "raised-without-fence",
        &["one_holder"],
        "An epoch is raised as soon as a majority was silent for long enough, without a fence.",
    ),
    planted(
        Bug::HeldFromAcknowledgement,
        "held-from-acknowledgement",
        &["one_holder"],
        "A holder counts from when it was acknowledged, not from when it asked.",
    ),
    // Or nobody acknowledges it ever again, because that epoch is fenced.
    planted(
        Bug::EpochReused,
        "epoch-reused",
        &["one_holder", "fails_over", "heals"],
        "Whoever gets a lease after another gets the same epoch.",
    ),
    planted(
        Bug::LeasedForgotten,
        "leased-forgotten",
        &["one_holder"],
        "A replica that holds a lease is forgotten as soon as its node is lost.",
    ),
    planted(
        Bug::GivenBackEarly,
        "given-back-early",
        &["one_holder"],
        "A lease is given back as soon as its holder was told to end, not when that has ended.",
    ),
    planted(
        Bug::KeptFenced,
        "kept-fenced",
        &["one_holder", "does_what_was_forecast"],
        "A lease whose holder goes on without renewals is fenced and raised like any other.",
    ),
    planted(
        Bug::YieldTakenAsDone,
        "yield-taken-as-done",
        &["one_holder"],
        "The next copy is promoted as soon as the active one was asked to give its role back.",
    ),
    planted(Bug::KillTimerOff, "kill-timer-off", &["one_holder"], "Nothing ends a replica when its lease is over."),
];

/// The seeds that showed, when this was written, what most seeds do not show. Only where a search begins: a bug
/// counts as missed when no seed at all shows it.
const SHOWN_BY: &[(Bug, u64)] = &[
    (Bug::AgeIgnoresStart, 76),
    (Bug::AcknowledgedAfterFence, 46),
    (Bug::ChecksumIgnored, 25),
    (Bug::AppendsMisplaced, 19),
    (Bug::ReadByEarlierRound, 15),
    (Bug::LeapForgetsRequests, 14),
    (Bug::ShortenedTooFar, 9),
];

impl Planted {
    /// The seed to begin with.
    #[must_use]
    pub fn first(&self) -> u64 {
        SHOWN_BY.iter().find(|(bug, _)| *bug == self.bug).map_or(0, |(_, seed)| *seed)
    }
}

/// The bug of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Planted> {
    ALL.iter().find(|planted| planted.name == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_bug_is_listed_once_under_a_name_of_its_own() {
        let known = include_str!("../../quorate-model/src/planted.rs");
        let (_, variants) = known.split_once("pub enum Bug {").unwrap();
        let (variants, _) = variants.split_once("\n}").unwrap();
        let variants = variants.lines().filter(|line| !line.trim_start().starts_with("//"));
        let variants: BTreeSet<&str> =
            variants.filter_map(|line| line.trim().split([' ', ',']).next()).filter(|name| !name.is_empty()).collect();
        let listed: Vec<String> = ALL.iter().map(|planted| format!("{:?}", planted.bug)).collect();
        assert_eq!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>(), variants);
        assert_eq!(listed.len(), variants.len(), "each once");
        let pending = PENDING.iter().map(|(name, _)| *name);
        let names: BTreeSet<&str> = ALL.iter().map(|planted| planted.name).chain(pending).collect();
        assert_eq!(names.len(), ALL.len() + PENDING.len());
    }

    #[test]
    fn a_name_is_the_bugs_in_kebab_case() {
        for planted in ALL {
            let words = planted.name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]);
            assert_eq!(words.collect::<String>(), format!("{:?}", planted.bug));
        }
    }
}
