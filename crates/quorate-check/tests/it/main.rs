//! The checkers against histories of which it is known otherwise whether they hold: small ones
//! written by hand, runs of simulated stores that keep their promise, the same runs with one event
//! changed, and another implementation of the same search.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod dice;
mod linearizable;
mod list_append;
mod registers;
mod stream;
mod witness;

use quorate_check::history::Verdict;

/// The name of what was found.
#[track_caller]
fn violation(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Violated(violation) => violation.what.split(':').next().unwrap().to_owned(),
        other => panic!("not rejected: {other:?}"),
    }
}

/// How much there was to contradict.
#[track_caller]
fn premises(verdict: &Verdict) -> u64 {
    match verdict {
        Verdict::Holds { premises } => *premises,
        other => panic!("rejected: {other:?}"),
    }
}

#[track_caller]
fn assert_malformed(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
}
