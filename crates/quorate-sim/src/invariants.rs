//! What must always hold, one file each.
//!
//! Every invariant is shown everything that happens and objects at once. Each counts how often its
//! premise held: one that never had anything to object to has proved nothing, and a run of many seeds
//! in which that happens fails.

mod acknowledged_writes_survive;
mod batches_do_not_matter;
mod commits_are_counted;
mod committed_never_changes;
mod done_once;
mod equal_state;
mod expelled_stay_out;
mod healing;
mod leaders_are_elected;
mod log_reaches_databases;
mod majorities_meet;
mod members_let_each_other_in;
mod newest_assignment;
mod newest_epoch_writes;
mod node_states;
mod one_holder;
mod one_leader_a_term;
mod one_replica_an_ordinal;
mod promises_are_durable;
mod promoted_when_caught_up;
mod updates_keep_enough;
mod voters_odd_at_rest;
mod voters_of_the_log;
mod votes_once_a_term;

use crate::machine::Identity;
use crate::seen::{Seen, Violation};
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;

/// Something that must always hold.
pub(crate) trait Invariant: std::fmt::Debug {
    /// The name by which a violation is known.
    fn name(&self) -> &'static str;

    /// Looks at what just happened.
    ///
    /// # Errors
    /// What is wrong, for people.
    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String>;

    /// How often it could have been violated.
    fn premises(&self) -> u64;
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Invariants {
    all: Vec<Box<dyn Invariant>>,
    pub committed: committed_never_changes::Committed,
}

impl Invariants {
    pub(crate) fn new(identity: &Identity) -> Invariants {
        Invariants {
            // Several may object to one event: the first is the one that says most about the cause.
            all: vec![
                Box::<one_leader_a_term::OneLeaderATerm>::default(),
                Box::<promises_are_durable::PromisesAreDurable>::default(),
                Box::<votes_once_a_term::VotesOnceATerm>::default(),
                Box::new(leaders_are_elected::LeadersAreElected::new(identity)),
                Box::new(commits_are_counted::CommitsAreCounted::new(identity)),
                Box::new(majorities_meet::MajoritiesMeet::new(identity)),
                Box::new(voters_of_the_log::VotersOfTheLog::new(identity)),
                Box::new(promoted_when_caught_up::PromotedWhenCaughtUp::new(identity)),
                Box::new(expelled_stay_out::ExpelledStayOut::new(identity)),
                Box::<members_let_each_other_in::MembersLetEachOtherIn>::default(),
                Box::<log_reaches_databases::LogReachesDatabases>::default(),
                Box::<done_once::DoneOnce>::default(),
                Box::<batches_do_not_matter::BatchesDoNotMatter>::default(),
                Box::<acknowledged_writes_survive::AcknowledgedWritesSurvive>::default(),
                Box::<equal_state::EqualState>::default(),
                Box::<node_states::NodeStates>::default(),
                Box::<newest_assignment::NewestAssignment>::default(),
                Box::<one_holder::OneHolder>::default(),
                Box::<one_replica_an_ordinal::OneReplicaAnOrdinal>::default(),
                Box::<updates_keep_enough::UpdatesKeepEnough>::default(),
                Box::<newest_epoch_writes::NewestEpochWrites>::default(),
                Box::<healing::Healing>::default(),
                Box::<voters_odd_at_rest::VotersOddAtRest>::default(),
            ],
            committed: committed_never_changes::Committed::default(),
        }
    }

    pub(crate) fn see(&mut self, at: Timestamp, seen: &Seen<'_>) -> Result<(), Violation> {
        let wrong = |invariant, what| Violation { invariant, what, at };
        self.committed.see(seen).map_err(|what| wrong(self.committed.name(), what))?;
        for invariant in &mut self.all {
            invariant.see(seen).map_err(|what| wrong(invariant.name(), what))?;
        }
        Ok(())
    }

    pub(crate) fn premises(&self) -> BTreeMap<&'static str, u64> {
        let all = self.all.iter().map(|invariant| (invariant.name(), invariant.premises()));
        all.chain([(self.committed.name(), self.committed.premises())]).collect()
    }
}
