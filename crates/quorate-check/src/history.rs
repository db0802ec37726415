//! What clients saw: the input of every checker.

/// Nanoseconds since a run began, on one clock that all its clients share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

/// One client. It asks one thing at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client(pub u32);

/// One question and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<C, A> {
    pub client: Client,
    pub asked: Moment,
    pub call: C,
    pub end: End<A>,
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
    /// The checker gave up, which proves nothing and fails a run.
    Unknown { why: String },
}

/// A broken promise, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// One sentence.
    pub what: String,
    /// Positions in the history of the operations that show it.
    pub operations: Vec<usize>,
}
