//! What clients saw: the input of every checker, and the verdict that it gives.

use std::fmt;

/// Nanoseconds since a run began, on one clock that all its clients share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

/// One client. It asks one thing at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client(pub u32);

/// One question and what became of it.
///
/// One operation precedes another if it was answered strictly before the other was asked. Equal
/// moments mean "at the same time": a clock too coarse makes a checker milder, never wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<C, A> {
    pub client: Client,
    pub asked: Moment,
    pub call: C,
    pub end: End<A>,
}

impl<C, A> Operation<C, A> {
    /// When the client heard of its operation; `None` if it never did.
    #[must_use]
    pub fn ended(&self) -> Option<Moment> {
        match self.end {
            End::Answered { at, .. } | End::Refused { at } => Some(at),
            End::Unknown => None,
        }
    }
}

/// How an operation ended, as its client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End<A> {
    /// It took effect between `asked` and `at`, and this was the answer.
    Answered { at: Moment, answer: A },
    /// It had no effect and will have none.
    Refused { at: Moment },
    /// Nobody knows: it may take effect at any time after `asked`, after the history's end too, or never.
    Unknown,
}

/// What a checker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing contradicts the promise. `premises`: how often there was something to contradict it;
    /// 0 means that nothing was checked.
    Holds { premises: u64 },
    /// The promise was broken.
    Violated(Violation),
    /// The checker gave up, or the history cannot have been recorded. Proves nothing and fails a run.
    Unknown { why: String },
}

/// A broken promise, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// One sentence. It begins with the name of what was broken, as the checker's module lists them.
    pub what: String,
    /// Positions in the history of the operations that show it.
    pub operations: Vec<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (operations {:?})", self.what, self.operations)
    }
}

/// Why a check ended before its end.
#[derive(Debug)]
pub(crate) enum Stop {
    Violated(Violation),
    Unknown(String),
}

impl Stop {
    pub(crate) fn violated(what: String, operations: impl Into<Vec<usize>>) -> Self {
        Stop::Violated(Violation { what, operations: operations.into() })
    }
}

/// The verdict on a check that counted its premises, or was stopped.
pub(crate) fn verdict(checked: Result<u64, Stop>) -> Verdict {
    match checked {
        Ok(premises) => Verdict::Holds { premises },
        Err(Stop::Violated(violation)) => Verdict::Violated(violation),
        Err(Stop::Unknown(why)) => Verdict::Unknown { why },
    }
}

/// Every operation ends after it was asked.
pub(crate) fn check_times<C, A>(history: &[Operation<C, A>]) -> Result<(), Stop> {
    for (position, operation) in history.iter().enumerate() {
        if operation.ended().is_some_and(|ended| ended < operation.asked) {
            return Err(Stop::Unknown(format!("operation {position} ended before it was asked")));
        }
    }
    Ok(())
}
