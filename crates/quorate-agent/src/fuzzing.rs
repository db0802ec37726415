//! What decodes bytes of others here, for those who try to break it. Not an interface.

use crate::externals;
use crate::keeper;
use crate::launch::{Given, Launch};
use crate::protocol::{Ask, Report, Request, ShimState, pause};
use crate::scrape;
use quorate_agent_core::desired::Desired;
use quorate_model::assignment::Assignment;
use quorate_model::external::{ExternalKind, Why};
use quorate_model::id::NodeId;
use quorate_model::secret::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

/// Whether a line to a shim is a request. One that is reads the same after it was written again.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn request(line: &[u8]) -> bool {
    same_again::<Request>(line).is_some_and(|request| {
        matches!(
            request.what,
            Ask::Status
                | Ask::Watch
                | Ask::Stop { .. }
                | Ask::Hold { .. }
                | Ask::Signal { .. }
                | Ask::Activate { .. }
                | Ask::Resign { .. }
                | Ask::Promote
                | Ask::Demote
        )
    })
}

/// Whether a line of a keeper is a report. See [`request`].
///
/// # Panics
/// When it reads differently after it was written again.
#[must_use]
pub fn report(line: &[u8]) -> bool {
    same_again::<Report>(line).is_some()
}

/// Whether a text is the meta-data of an OCF agent, which anybody may have written.
#[must_use]
pub fn meta_data(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(keeper::is_meta_data)
}

/// Whether a page of a copy has the number that is looked for: the samples of `m{l="v"}`.
///
/// # Panics
/// When it is no amount.
#[must_use]
pub fn page(text: &[u8]) -> bool {
    scrape::fuzz(&String::from_utf8_lossy(text))
}

/// Whether a line of a shim, or its last words, are a state. See [`request`].
///
/// # Panics
/// When it reads differently after it was written again.
#[must_use]
pub fn state(text: &[u8]) -> bool {
    same_again::<ShimState>(text).is_some()
}

/// Whether a file says how to launch a replica; then everything is derived that a launch needs.
///
/// # Panics
/// When it reads differently after it was written again.
#[must_use]
pub fn launch(text: &[u8]) -> bool {
    let Some(launch) = same_again::<Launch>(text) else { return false };
    let backoff = launch.assigned.spec.restart.backoff;
    for streak in [0, 1, 2, 3, u32::MAX] {
        assert!(pause(backoff, streak) <= backoff.longest.0, "a pause is longer than the longest");
    }
    // A spec that was never checked may have a template that cannot be filled: an error, no panic.
    let node = NodeId::from_u128(1);
    let secrets = Secret::new(BTreeMap::new());
    let given = Given { artifacts: &[], secrets: &secrets };
    let _ = Launch::new(&launch.assigned, node, "n1", Path::new("/replica"), launch.ports, given);
    true
}

/// Whether a file is a cached assignment; then an agent of its node begins with it.
///
/// # Panics
/// When it reads differently after it was written again, or is not obeyed.
#[must_use]
pub fn cache(text: &[u8]) -> bool {
    let Some(assignment) = same_again::<Assignment>(text) else { return false };
    let desired = Desired::at_start(assignment.node, Some(assignment.clone())).expect("it is for this node");
    assert_eq!(desired.revision(), Some(assignment.revision));
    for wanted in desired.wanted_of_all(assignment.replicas.clone()) {
        assert!(wanted.listed && assignment.replicas.contains(&wanted.assigned));
    }
    true
}

/// Whether these bytes are what such a server answers to a login, be it that it lets nobody in.
///
/// # Panics
/// When a refusal shows the password.
#[must_use]
pub fn login(kind: ExternalKind, answer: &[u8]) -> bool {
    let password = "the-password-of-fuzzing";
    let answered = externals::answered(kind, answer, password);
    // A server that says it itself may be one that was told it.
    let told = answer.windows(password.len()).any(|part| part == password.as_bytes());
    assert!(told || answered.as_ref().err().is_none_or(|problem| !problem.text.contains(password)));
    answered.err().is_none_or(|problem| problem.why != Why::Protocol)
}

fn same_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(text).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    assert_eq!(read, serde_json::from_slice(&written).expect("what was written can be read"));
    Some(read)
}
