//! How well this node itself is doing, as far as it can tell.
//!
//! A node that is slow, because its CPU is busy or its machine was paused, gets answers late and calls
//! others silent that are not. So it looks at itself first: timers that come late and probes during
//! which it heard *nothing from anybody* speak against itself, and each makes it ask more slowly and
//! wait longer, up to [`FACTOR_MAX`] times. Each answer in time makes it quicker again.
//!
//! A probe that is not answered while others are heard speaks against the other node. Lifeguard learns
//! that from an extra message (a *nack* of those who were asked to help); that others are heard says
//! the same without one.
//!
//! # Sources
//! Dadgar, Phillips, Currey: Lifeguard, SWIM-ing with situational awareness, DSN-W 2018 (Local Health
//! Multiplier; its other part, the buddy system, is in [`crate::swim`]).

/// How many times slower a node becomes at most.
pub const FACTOR_MAX: u32 = 8;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalHealth {
    on: bool,
    /// 0 is well; at most [`FACTOR_MAX`] - 1.
    score: u32,
}

/// Something that tells how this node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// A probe was answered in time.
    Answered,
    /// A probe was not answered, and nothing else was heard meanwhile.
    HeardNothing,
    /// A timer came late.
    Late,
    /// A datagram could not even be given to the network.
    Unsent,
}

impl LocalHealth {
    /// `on: false` believes in itself whatever happens: to see what this is good for.
    pub(crate) fn new(on: bool) -> LocalHealth {
        LocalHealth { on, score: 0 }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    pub(crate) fn note(&mut self, sign: Sign) {
        self.score = match sign {
            Sign::Answered => self.score.saturating_sub(1),
            Sign::HeardNothing | Sign::Late | Sign::Unsent => (self.score + 1).min(FACTOR_MAX - 1),
        };
    }

    /// By how much probes are slower than they could be: 1 to [`FACTOR_MAX`].
    pub(crate) fn factor(&self) -> u32 {
        if self.on { self.score + 1 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_slows_down_while_it_is_unwell_and_recovers_with_each_answer() {
        let mut health = LocalHealth::new(true);
        assert_eq!(health.factor(), 1);
        for sign in [Sign::Late, Sign::HeardNothing, Sign::Unsent] {
            health.note(sign);
        }
        assert_eq!(health.factor(), 4);
        for _ in 0..20 {
            health.note(Sign::Late);
        }
        assert_eq!(health.factor(), FACTOR_MAX);
        for expected in (1..FACTOR_MAX).rev() {
            health.note(Sign::Answered);
            assert_eq!(health.factor(), expected);
        }
        health.note(Sign::Answered);
        assert_eq!(health.factor(), 1);
    }

    #[test]
    fn switched_off_it_changes_nothing() {
        let mut health = LocalHealth::new(false);
        health.note(Sign::Late);
        assert_eq!(health.factor(), 1);
    }
}
