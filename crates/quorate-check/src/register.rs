//! Registers: the calls and answers that [`crate::witness`] and [`crate::linearizable`] know.
//!
//! A register holds one value or none. Every register is absent when a history begins: a run uses a
//! new cluster, or keys of its own.

use std::fmt;

/// Names one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// What a register holds. A workload that writes each value of a key once makes checks sharper and
/// the search of [`crate::linearizable`] short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u64);

/// A register's content; `None` is "absent".
pub type Content = Option<Value>;

/// What a client asks of one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Read {
        key: Key,
    },
    Write {
        key: Key,
        value: Value,
    },
    Delete {
        key: Key,
    },
    /// Writes `to` if the register holds `from`, which may be "absent".
    Cas {
        key: Key,
        from: Content,
        to: Value,
    },
}

/// What a client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A read's.
    Read(Content),
    /// A write, a delete or a compare-and-set took effect.
    Done,
    /// The compare-and-set found something else than `from`. It had its place in the order and changed nothing.
    Mismatch,
}

impl Call {
    #[must_use]
    pub fn key(self) -> Key {
        match self {
            Call::Read { key } | Call::Write { key, .. } | Call::Delete { key } | Call::Cas { key, .. } => key,
        }
    }

    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(self, Call::Read { .. })
    }

    /// The one definition of what a register does: its next content and the answer.
    #[must_use]
    pub fn run(self, content: Content) -> (Content, Answer) {
        match self {
            Call::Read { .. } => (content, Answer::Read(content)),
            Call::Write { value, .. } => (Some(value), Answer::Done),
            Call::Delete { .. } => (None, Answer::Done),
            Call::Cas { from, to, .. } if from == content => (Some(to), Answer::Done),
            Call::Cas { .. } => (content, Answer::Mismatch),
        }
    }

    /// What the register may hold because of this call; `None` if it changes nothing.
    pub(crate) fn leaves(self) -> Option<Content> {
        match self {
            Call::Read { .. } => None,
            Call::Write { value, .. } | Call::Cas { to: value, .. } => Some(Some(value)),
            Call::Delete { .. } => Some(None),
        }
    }

    /// Whether a call of this kind can be answered so at all.
    pub(crate) fn can_answer(self, answer: Answer) -> bool {
        match (self, answer) {
            (Call::Read { .. }, Answer::Read(_))
            | (Call::Write { .. } | Call::Delete { .. } | Call::Cas { .. }, Answer::Done)
            | (Call::Cas { .. }, Answer::Mismatch) => true,
            (Call::Read { .. }, Answer::Done | Answer::Mismatch)
            | (Call::Write { .. } | Call::Delete { .. }, Answer::Read(_) | Answer::Mismatch)
            | (Call::Cas { .. }, Answer::Read(_)) => false,
        }
    }
}

/// A content, for people.
pub(crate) struct Shown(pub(crate) Content);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Value(value)) => write!(f, "{value}"),
            None => f.write_str("nothing"),
        }
    }
}
