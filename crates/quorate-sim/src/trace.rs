//! What happened, as one number and, when asked for, as text.
//!
//! Equal seeds must give equal traces, byte by byte: that is what "deterministic" means here, and a
//! test holds it. Every event goes in; the text is only kept when somebody wants to read it.

use quorate_model::time::Timestamp;
use std::fmt;
use std::fmt::Write as _;

/// The trace of a run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    /// Lines, if they are wanted.
    text: Option<String>,
}

impl Trace {
    #[must_use]
    pub(crate) fn new(keep_text: bool) -> Trace {
        Trace { text: keep_text.then(String::new), ..Trace::default() }
    }

    /// Notes an event: what it is, on which machine, with two numbers that tell it from others.
    pub(crate) fn note(&mut self, at: Timestamp, what: &'static str, machine: usize, a: u64, b: u64) {
        self.events += 1;
        let micros = u64::try_from(at.0.as_nanos()).expect("simulated time is short");
        // The address of `what` would differ between builds, its first bytes do not.
        let tag = what.bytes().take(8).fold(0u64, |tag, byte| tag << 8 | u64::from(byte));
        for number in [micros, tag, machine as u64, a, b] {
            self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        if let Some(text) = &mut self.text {
            let _ = writeln!(text, "{:>14.6} n{} {what} {a} {b}", at.0.as_secs_f64(), machine + 1);
        }
    }

    /// Adds a line for people; it does not count as an event.
    pub(crate) fn say(&mut self, at: Timestamp, line: fmt::Arguments<'_>) {
        if let Some(text) = &mut self.text {
            let _ = writeln!(text, "{:>14.6} ── {line}", at.0.as_secs_f64());
        }
    }

    /// Stands for the whole trace.
    #[must_use]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    #[must_use]
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    #[must_use]
    pub(crate) fn into_text(self) -> String {
        self.text.unwrap_or_default()
    }
}
