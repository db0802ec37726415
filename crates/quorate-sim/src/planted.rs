//! The bugs that can be planted into shipping code, and what must catch them.
//!
//! Each is in the code that ships, behind [`quorate_model::planted::planted`]; the simulator must
//! find it within [`SEEDS`] seeds, by an invariant that is named here. A bug whose feature does not
//! exist yet is listed in [`PENDING`] and never counted.

use quorate_model::planted::Bug;

/// A planted bug must be found within so many seeds.
pub const SEEDS: u64 = 700;

/// Bugs of features that do not exist yet, with the issue that brings them.
pub const PENDING: &[(&str, &str)] = &[("learner-counted", "Members: there are no learners yet")];

/// Names and the invariants of which one must object.
pub const ALL: &[(Bug, &str, &[&str])] =
    &[(Bug::AckBeforeSync, "ack-before-sync", &["committed_never_changes", "acknowledged_writes_survive"])];

/// The bug of this name.
#[must_use]
pub fn named(name: &str) -> Option<Bug> {
    ALL.iter().find(|(_, known, _)| *known == name).map(|(bug, _, _)| *bug)
}
