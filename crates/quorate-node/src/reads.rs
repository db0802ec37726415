//! Linearizable reads: one confirmed index for all who wait.
//!
//! A read may be answered from this node's own database once that holds everything the leader had
//! committed after the read was asked for. One round with the leader confirms an index for all
//! reads that were waiting when it began; those that come later join the next round.
//!
//! The consensus library drops a question silently while there is no leader, or before the leader
//! has committed something in its term. So a round that is not answered is asked again, less and less
//! often. The answer to an earlier round still counts for every read that was in it: where a round
//! takes longer than the pause before the next question, nothing else would ever be answered.
//!
//! # Invariants
//! - A read is answered by a round that began after it was asked, never by an earlier one.

use crate::event::Ticket;
use quorate_model::id::LogIndex;
use quorate_model::planted::{Bug, planted};
use quorate_model::time::Timestamp;
use std::time::Duration;

/// A round trip with a majority takes a millisecond; after this the question may be lost. Doubles
/// with each repetition.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Read {
    ticket: Ticket,
    deadline: Timestamp,
}

#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: Vec<Read>,
    asked: Option<Asked>,
    /// Confirmed, and waiting for this node to apply up to the index.
    confirmed: Vec<(LogIndex, Vec<Read>)>,
    round: u64,
}

/// The round that is under way.
#[derive(Debug)]
struct Asked {
    /// When it is asked again, and how long after the time before that is.
    again_at: Timestamp,
    again_after: Duration,
    /// Its reads with the first round that each was in.
    reads: Vec<(u64, Read)>,
}

impl Reads {
    /// Rounds are numbered from `first` on: an answer that was meant for this node before it
    /// restarted must not fit a round of now.
    pub(crate) fn numbered_from(first: u64) -> Reads {
        Reads { round: first, ..Reads::default() }
    }

    pub(crate) fn ask(&mut self, ticket: Ticket, deadline: Timestamp) {
        self.waiting.push(Read { ticket, deadline });
    }

    /// The round to ask the leader for now, if any.
    pub(crate) fn next_round(&mut self, now: Timestamp) -> Option<u64> {
        let repeat = match &self.asked {
            Some(asked) if asked.reads.is_empty() => false,
            Some(asked) if now < asked.again_at => return None,
            Some(_) => true,
            None => false,
        };
        if !repeat && self.waiting.is_empty() {
            self.asked = None;
            return None;
        }
        self.round += 1;
        let before = self.asked.take().filter(|_| repeat);
        let again_after = before.as_ref().map_or(AGAIN_AFTER, |asked| (asked.again_after * 2).min(AGAIN_AFTER_MAX));
        let mut reads = before.map_or_else(Vec::new, |asked| asked.reads);
        reads.extend(self.waiting.drain(..).map(|read| (self.round, read)));
        self.asked = Some(Asked { again_at: now.plus(again_after), again_after, reads });
        Some(self.round)
    }

    /// Another leader: the question went to the wrong one.
    pub(crate) fn leader_changed(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.waiting.splice(0..0, asked.reads.into_iter().map(|(_, read)| read));
        }
    }

    /// The leader confirmed a round, this one or an earlier one.
    pub(crate) fn confirmed(&mut self, round: u64, index: LogIndex) {
        let Some(asked) = &mut self.asked else { return };
        let answers = |first: u64| first <= round || planted(Bug::ReadByEarlierRound);
        let (answered, rest): (Vec<_>, Vec<_>) = asked.reads.drain(..).partition(|(first, _)| answers(*first));
        if rest.is_empty() {
            self.asked = None;
        } else {
            asked.reads = rest;
        }
        self.confirmed.push((index, answered.into_iter().map(|(_, read)| read).collect()));
    }

    /// Reads that the database can answer now.
    pub(crate) fn ready(&mut self, applied: LogIndex) -> Vec<Ticket> {
        let mut ready = Vec::new();
        self.confirmed.retain(|(index, reads)| {
            let there = *index <= applied || planted(Bug::ReadBeforeApplied);
            if there {
                ready.extend(reads.iter().map(|read| read.ticket));
            }
            !there
        });
        ready
    }

    /// Reads that waited too long.
    pub(crate) fn late(&mut self, now: Timestamp) -> Vec<Ticket> {
        let mut late = Vec::new();
        let mut keep = |read: &Read| {
            let over = read.deadline <= now;
            if over {
                late.push(read.ticket);
            }
            !over
        };
        self.confirmed.iter_mut().for_each(|(_, reads)| reads.retain(&mut keep));
        self.asked.iter_mut().for_each(|asked| asked.reads.retain(|(_, read)| keep(read)));
        self.waiting.retain(keep);
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp(Duration::from_millis(ms))
    }

    #[test]
    fn a_read_that_comes_during_a_round_waits_for_the_next_one() {
        let mut reads = Reads::default();
        reads.ask(Ticket(1), at(1000));
        assert_eq!(reads.next_round(at(0)), Some(1));
        reads.ask(Ticket(2), at(1000));
        assert_eq!(reads.next_round(at(1)), None);
        reads.confirmed(1, LogIndex(7));
        assert_eq!(reads.ready(LogIndex(6)), []);
        assert_eq!(reads.ready(LogIndex(7)), [Ticket(1)]);
        assert_eq!(reads.next_round(at(2)), Some(2));
    }

    #[test]
    fn a_question_without_an_answer_is_asked_again_less_and_less_often() {
        let mut reads = Reads::default();
        reads.ask(Ticket(1), at(100_000));
        let asked: Vec<u64> = (0..5_000).filter(|ms| reads.next_round(at(*ms)).is_some()).collect();
        assert_eq!(asked, [0, 50, 150, 350, 750, 1550, 2550, 3550, 4550]);
    }

    #[test]
    fn an_answer_that_took_longer_than_the_pause_still_counts_for_who_was_in_its_round() {
        let mut reads = Reads::default();
        reads.ask(Ticket(1), at(1000));
        assert_eq!(reads.next_round(at(0)), Some(1));
        reads.ask(Ticket(2), at(1000));
        assert_eq!(reads.next_round(at(60)), Some(2));
        reads.confirmed(1, LogIndex(3));
        assert_eq!(reads.ready(LogIndex(9)), [Ticket(1)]);
        reads.confirmed(2, LogIndex(5));
        assert_eq!(reads.ready(LogIndex(9)), [Ticket(2)]);
    }

    #[test]
    fn an_answer_of_before_a_change_of_leader_is_not_taken_for_a_later_round() {
        let mut reads = Reads::default();
        reads.ask(Ticket(1), at(1000));
        assert_eq!(reads.next_round(at(0)), Some(1));
        reads.leader_changed();
        assert_eq!(reads.next_round(at(1)), Some(2));
        reads.confirmed(1, LogIndex(3));
        assert_eq!(reads.ready(LogIndex(9)), []);
    }

    #[test]
    fn a_read_fails_at_its_deadline_wherever_it_waits() {
        let mut reads = Reads::default();
        reads.ask(Ticket(1), at(10));
        reads.next_round(at(0));
        reads.confirmed(1, LogIndex(5));
        reads.ask(Ticket(2), at(10));
        reads.next_round(at(0));
        reads.ask(Ticket(3), at(10));
        let mut late = reads.late(at(10));
        late.sort_unstable();
        assert_eq!(late, [Ticket(1), Ticket(2), Ticket(3)]);
    }
}
