//! The timers that an operator sets, and what they mean.
//!
//! They are those of Kuzzle's cluster plugin, whose users bring their configurations along: the
//! meanings are its own, the words are the ones of `quorate.toml`.
//!
//! # Sources
//! kuzzle-plugin-cluster 3 and 4 (`discoverTimeout`, `joinAttemptInterval`, `retryJoin`, `heartbeat`).

use std::time::Duration;

/// How patient a node is with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// How often a node gives a sign of life. 100 ms to 60 s; default 1 s.
    pub heartbeat: Duration,
    /// How long another node may take to answer a handshake. 100 ms to 60 s; default 3 s.
    pub discover: Duration,
    /// The pause between an attempt to join that failed and the next one. 100 ms to 5 min; default 2 s.
    pub join_attempt: Duration,
    /// How many attempts to join are made before the node gives up and stays not ready. 1 to 10,000;
    /// default 30.
    pub retry_join: u32,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            heartbeat: Duration::from_secs(1),
            discover: Duration::from_secs(3),
            join_attempt: Duration::from_secs(2),
            retry_join: 30,
        }
    }
}

impl Timers {
    /// How long a node may be silent before it is shown as unreachable: two heartbeats, so that one
    /// that was lost is no alarm.
    #[must_use]
    pub fn unreachable_after(&self) -> Duration {
        self.heartbeat * 2
    }

    /// The attempts to join, from the first.
    #[must_use]
    pub fn join_schedule(&self) -> JoinSchedule {
        JoinSchedule { timers: *self, made: 0 }
    }

    /// The longest that a node tries to join: every attempt runs into the handshake's limit.
    #[must_use]
    pub fn join_patience(&self) -> Duration {
        self.join_schedule().map(|attempt| attempt.after + attempt.answer_within).sum()
    }
}

/// One attempt to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// How long to wait first, since the attempt before it failed; nothing before the first one.
    pub after: Duration,
    /// How long each node that is asked may take to answer.
    pub answer_within: Duration,
}

/// When to try to join, and when to stop trying.
///
/// It has no clock: whoever joins waits [`Attempt::after`], asks every seed for at most
/// [`Attempt::answer_within`], and takes the next attempt if none let it in. Once the schedule has
/// ended the node stays not ready until an operator starts it again.
///
/// The pause begins when an attempt has failed, not when it began: a seed that answers slowly is not
/// asked twice at the same time.
#[derive(Debug, Clone)]
pub struct JoinSchedule {
    timers: Timers,
    made: u32,
}

impl JoinSchedule {
    /// Attempts that are still to come.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.timers.retry_join.saturating_sub(self.made)
    }
}

impl Iterator for JoinSchedule {
    type Item = Attempt;

    fn next(&mut self) -> Option<Attempt> {
        if self.left() == 0 {
            return None;
        }
        let after = if self.made == 0 { Duration::ZERO } else { self.timers.join_attempt };
        self.made += 1;
        Some(Attempt { number: self.made, after, answer_within: self.timers.discover })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The sample configuration of the plugin's own documentation.
    fn sample() -> Timers {
        Timers { heartbeat: ms(5_000), discover: ms(3_000), join_attempt: ms(2_000), retry_join: 30 }
    }

    #[test]
    fn z5_a_node_is_unreachable_after_two_heartbeats() {
        assert_eq!(sample().unreachable_after(), ms(10_000));
        assert_eq!(Timers { heartbeat: ms(100), ..sample() }.unreachable_after(), ms(200));
    }

    #[test]
    fn z5_as_many_attempts_are_made_as_retry_join_says_and_then_no_more() {
        for retry_join in [1, 2, 30] {
            let mut schedule = Timers { retry_join, ..sample() }.join_schedule();
            let numbers: Vec<u32> = schedule.by_ref().map(|attempt| attempt.number).collect();
            assert_eq!(numbers, (1..=retry_join).collect::<Vec<_>>());
            assert_eq!((schedule.next(), schedule.left()), (None, 0));
        }
    }

    #[test]
    fn z5_the_first_attempt_is_made_at_once_and_each_later_one_after_the_interval() {
        let pauses: Vec<Duration> = Timers { retry_join: 3, ..sample() }.join_schedule().map(|it| it.after).collect();
        assert_eq!(pauses, [ms(0), ms(2_000), ms(2_000)]);
        let other = Timers { retry_join: 2, join_attempt: ms(500), ..sample() };
        assert_eq!(other.join_schedule().last().unwrap().after, ms(500));
    }

    #[test]
    fn z5_every_attempt_waits_for_a_handshake_as_long_as_discover_says() {
        let slow = Timers { discover: ms(7_000), ..sample() };
        assert!(slow.join_schedule().all(|attempt| attempt.answer_within == ms(7_000)));
    }

    #[test]
    fn changing_any_of_the_join_timers_changes_how_long_joining_may_take() {
        // 30 × 3 s of waiting and 29 pauses of 2 s.
        assert_eq!(sample().join_patience(), ms(90_000 + 58_000));
        assert_eq!(Timers { discover: ms(1_000), ..sample() }.join_patience(), ms(30_000 + 58_000));
        assert_eq!(Timers { join_attempt: ms(1_000), ..sample() }.join_patience(), ms(90_000 + 29_000));
        assert_eq!(Timers { retry_join: 1, ..sample() }.join_patience(), ms(3_000));
    }
}
