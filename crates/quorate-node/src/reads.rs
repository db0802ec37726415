//! Linearizable reads: one confirmed index for all who wait.
//!
//! A read may be answered from this node's own database once that holds everything the leader had
//! committed after the read was asked for. One round with the leader confirms an index for all
//! reads that were waiting when it began; those that come later join the next round.
//!
//! The consensus library drops a question silently while there is no leader, or before the leader
//! has committed something in its term. So a round that is not answered is asked again.

use crate::event::Ticket;
use quorate_model::id::LogIndex;
use quorate_model::time::Timestamp;
use std::time::Duration;

/// A round trip with a majority takes a millisecond; after this the question was lost.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

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

#[derive(Debug)]
struct Asked {
    round: u64,
    at: Timestamp,
    reads: Vec<Read>,
}

impl Reads {
    pub(crate) fn ask(&mut self, ticket: Ticket, deadline: Timestamp) {
        self.waiting.push(Read { ticket, deadline });
    }

    /// The round to ask the leader for now, if any.
    pub(crate) fn next_round(&mut self, now: Timestamp) -> Option<u64> {
        let lost = self.asked.as_ref().is_some_and(|asked| now.since(asked.at) >= AGAIN_AFTER);
        if lost {
            let asked = self.asked.take().expect("just looked");
            self.waiting.splice(0..0, asked.reads);
        }
        if self.asked.is_some() || self.waiting.is_empty() {
            return None;
        }
        self.round += 1;
        self.asked = Some(Asked { round: self.round, at: now, reads: std::mem::take(&mut self.waiting) });
        Some(self.round)
    }

    /// Another leader: the question went to the wrong one.
    pub(crate) fn leader_changed(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.waiting.splice(0..0, asked.reads);
        }
    }

    /// The leader confirmed a round. An answer to a round that was given up is ignored.
    pub(crate) fn confirmed(&mut self, round: u64, index: LogIndex) {
        if self.asked.as_ref().is_some_and(|asked| asked.round == round) {
            let asked = self.asked.take().expect("just looked");
            self.confirmed.push((index, asked.reads));
        }
    }

    /// Reads that the database can answer now.
    pub(crate) fn ready(&mut self, applied: LogIndex) -> Vec<Ticket> {
        let mut ready = Vec::new();
        self.confirmed.retain(|(index, reads)| {
            if *index <= applied {
                ready.extend(reads.iter().map(|read| read.ticket));
            }
            *index > applied
        });
        ready
    }

    /// Reads that waited too long.
    pub(crate) fn late(&mut self, now: Timestamp) -> Vec<Ticket> {
        let mut late = Vec::new();
        let lists = self
            .confirmed
            .iter_mut()
            .map(|(_, reads)| reads)
            .chain(self.asked.iter_mut().map(|asked| &mut asked.reads))
            .chain([&mut self.waiting]);
        for reads in lists {
            reads.retain(|read| {
                let over = read.deadline <= now;
                if over {
                    late.push(read.ticket);
                }
                !over
            });
        }
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
    fn a_lost_question_is_asked_again_and_its_old_answer_ignored() {
        let mut reads = Reads::default();
        reads.ask(Ticket(1), at(1000));
        assert_eq!(reads.next_round(at(0)), Some(1));
        assert_eq!(reads.next_round(at(60)), Some(2));
        reads.confirmed(1, LogIndex(3));
        assert_eq!(reads.ready(LogIndex(9)), []);
        reads.confirmed(2, LogIndex(9));
        assert_eq!(reads.ready(LogIndex(9)), [Ticket(1)]);
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
