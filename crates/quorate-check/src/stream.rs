//! Streams of events: in order, without gap, duplicate or invention.
//!
//! A topic gives each event a position that rises. A subscriber begins after a position that it
//! names, or from now on, and gets everything that follows, once, in order; over broken connections
//! too, since it names the last position that it has. If what it asks for was compacted away, it is
//! told so and knows what it lacks.
//!
//! # Names of what is found
//! | name | meaning |
//! |---|---|
//! | `never published` | an event that nobody published |
//! | `wrong position` | an event at another position than its own, or two at one |
//! | `duplicate` | an event that this subscriber was given before, after which it did not ask anew |
//! | `reordered` | an event that comes after a later one and was not given before |
//! | `before the start` | an event at or before the position after which it asked to begin |
//! | `gap` | an event was passed over, or had not come when it must have |
//! | `false compaction` | it was told of a gap where nothing had been compacted |
//!
//! # What it loses
//! An event whose publisher was never answered has no position until a subscriber gets it; from then
//! on every subscriber must. A subscriber that begins "from now on" may begin anywhere: what it
//! should have got before its first event is not known. What a subscriber had still to get when its
//! record ends counts as missing only if it says [`Received::CaughtUp`].
//!
//! # Sources
//! The guarantees of etcd's watch (ordered, unique, reliable, atomic, resumable, bookmarkable), whose
//! violations were found by users first.

use crate::history::{Stop, Verdict, verdict};
use quorate_model::id::LogIndex;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Bound;

/// What went into a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic<E> {
    /// Every event that is known to have been published, with its position. In any order; a position
    /// has one event (several things published in one log entry are one event here).
    pub published: Vec<(LogIndex, E)>,
    /// Events whose publisher was never answered: each may have been published once, at a position
    /// that nobody knows.
    pub perhaps: Vec<E>,
    /// The highest position that was ever compacted away; 0 if nothing was. A subscriber may be told
    /// of a gap up to here.
    pub compacted: LogIndex,
}

/// What happened to one subscriber, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received<E> {
    /// It subscribed (again) and asked for everything after this position. `None`: for what is
    /// published from now on.
    Subscribed { after: Option<LogIndex> },
    /// It was given an event.
    Event { index: LogIndex, event: E },
    /// It was told that the events up to and including this position are gone.
    Compacted { up_to: LogIndex },
    /// It was told, or may expect because it waited long enough, that nothing up to and including
    /// this position is still to come.
    CaughtUp { up_to: LogIndex },
}

/// Did every subscriber get every event once and in order?
///
/// A violation's operations are positions in the `received` of the subscriber that it names.
/// Premises are the events that were received, and those that had to be there at a `CaughtUp`.
#[must_use]
pub fn check<E: Clone + Ord + Debug>(topic: &Topic<E>, received: &[Vec<Received<E>>]) -> Verdict {
    verdict(run(topic, received))
}

type Positions<E> = BTreeMap<LogIndex, E>;

fn run<E: Clone + Ord + Debug>(topic: &Topic<E>, received: &[Vec<Received<E>>]) -> Result<u64, Stop> {
    let positions = positions(topic, received)?;
    let mut premises = 0;
    for (number, record) in received.iter().enumerate() {
        let mut subscriber = Subscriber {
            number,
            positions: &positions,
            compacted: topic.compacted,
            cursor: Cursor::None,
            given: BTreeSet::new(),
        };
        for (at, what) in record.iter().enumerate() {
            premises += subscriber.receive(at, what)?;
        }
    }
    Ok(premises)
}

/// All events with their positions: the known ones, and the uncertain ones that somebody was given.
fn positions<E: Clone + Ord + Debug>(topic: &Topic<E>, received: &[Vec<Received<E>>]) -> Result<Positions<E>, Stop> {
    let mut positions = Positions::new();
    let mut events = BTreeSet::new();
    for (index, event) in &topic.published {
        events.insert(event);
        if let Some(other) = positions.insert(*index, event.clone()) {
            return Err(Stop::Unknown(format!("{other:?} and {event:?} were both published at {index:?}")));
        }
    }
    let mut perhaps: BTreeMap<&E, usize> = BTreeMap::new();
    for event in &topic.perhaps {
        *perhaps.entry(event).or_default() += 1;
    }
    for (number, record) in received.iter().enumerate() {
        for (at, what) in record.iter().enumerate() {
            let Received::Event { index, event } = what else { continue };
            match positions.entry(*index) {
                Entry::Occupied(known) if known.get() == event => {}
                Entry::Occupied(known) => {
                    let what = format!(
                        "wrong position: subscriber {number} was given {event:?} at {index:?}, where {:?} is",
                        known.get()
                    );
                    return Err(Stop::violated(what, [at]));
                }
                Entry::Vacant(free) => match perhaps.get_mut(event) {
                    Some(left) if *left > 0 => {
                        *left -= 1;
                        free.insert(event.clone());
                    }
                    used => {
                        let name =
                            if used.is_some() || events.contains(event) { "wrong position" } else { "never published" };
                        let what = format!("{name}: subscriber {number} was given {event:?} at {index:?}");
                        return Err(Stop::violated(what, [at]));
                    }
                },
            }
        }
    }
    Ok(positions)
}

/// How far a subscriber is.
#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// It has not subscribed yet.
    None,
    /// It subscribed from now on, and nothing came yet.
    Now,
    /// It has everything from where it began up to here.
    At(LogIndex),
}

struct Subscriber<'a, E> {
    number: usize,
    positions: &'a Positions<E>,
    compacted: LogIndex,
    cursor: Cursor,
    /// Since it subscribed last.
    given: BTreeSet<LogIndex>,
}

impl<E: Debug> Subscriber<'_, E> {
    /// Gives the number of premises.
    fn receive(&mut self, at: usize, what: &Received<E>) -> Result<u64, Stop> {
        if let Received::Subscribed { after } = what {
            self.cursor = after.map_or(Cursor::Now, Cursor::At);
            self.given.clear();
            return Ok(0);
        }
        if matches!(self.cursor, Cursor::None) {
            return Err(Stop::Unknown(format!("subscriber {} was given something before it subscribed", self.number)));
        }
        match *what {
            Received::Subscribed { .. } => Ok(0),
            Received::Event { index, .. } => {
                self.event(at, index)?;
                self.cursor = Cursor::At(index);
                self.given.insert(index);
                Ok(1)
            }
            Received::Compacted { up_to } => {
                if up_to > self.compacted {
                    let what = format!(
                        "was told of a compaction up to {up_to:?}, and only {:?} was compacted",
                        self.compacted
                    );
                    return Err(self.violated("false compaction", &what, at));
                }
                if let Cursor::At(cursor) = self.cursor {
                    self.cursor = Cursor::At(cursor.max(up_to));
                }
                Ok(0)
            }
            Received::CaughtUp { up_to } => {
                let Cursor::At(cursor) = self.cursor else {
                    // From now on everything after this must come.
                    self.cursor = Cursor::At(up_to);
                    return Ok(0);
                };
                self.no_gap(at, cursor, Bound::Included(up_to))?;
                self.cursor = Cursor::At(cursor.max(up_to));
                Ok(1)
            }
        }
    }

    fn event(&self, at: usize, index: LogIndex) -> Result<(), Stop> {
        let Cursor::At(cursor) = self.cursor else { return Ok(()) };
        if index > cursor {
            return self.no_gap(at, cursor, Bound::Excluded(index));
        }
        let (name, what) = if self.given.contains(&index) {
            ("duplicate", format!("was given {index:?} again"))
        } else if self.given.is_empty() {
            ("before the start", format!("asked for what follows {cursor:?} and was given {index:?}"))
        } else {
            ("reordered", format!("was given {index:?} after {cursor:?}"))
        };
        Err(self.violated(name, &what, at))
    }

    /// Nothing was published after `cursor` and before `end`.
    fn no_gap(&self, at: usize, cursor: LogIndex, end: Bound<LogIndex>) -> Result<(), Stop> {
        let empty = matches!(end, Bound::Included(end) if end <= cursor);
        if empty {
            return Ok(());
        }
        match self.positions.range((Bound::Excluded(cursor), end)).next() {
            None => Ok(()),
            Some((index, event)) => {
                let what = format!("was at {cursor:?} and was never given {event:?} at {index:?}");
                Err(self.violated("gap", &what, at))
            }
        }
    }

    fn violated(&self, name: &str, what: &str, at: usize) -> Stop {
        Stop::violated(format!("{name}: subscriber {} {what}", self.number), [at])
    }
}
