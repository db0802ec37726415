//! How often somebody may try a password.
//!
//! A try is counted *before* the password is looked at, by an entry in the log. So it makes no
//! difference which node is asked, how many are asked at once, or which node leads: all nodes
//! together evaluate one sequence of tries. Whoever has the right password gives its own try back.
//!
//! Counted for the account, known or not, and for the source. Neither is ever locked for good.
//!
//! Why through the log and not in the leader's memory: a new leader would begin with clean hands,
//! and anybody who can make the leader change could guess on. The price is an entry a try, and the
//! delays themselves bound how many there are.

use super::name::UserName;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Tries before the first delay.
pub const FREE: u32 = 5;
/// The longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(15 * 60);
/// Somebody who was quiet for this long begins anew.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Accounts and sources that are remembered. The one with the fewest tries makes room.
pub const REMEMBERED_MAX: usize = 10_000;

/// Whose tries are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guesser {
    /// `None`: all names that no account can have.
    Account(Option<UserName>),
    /// An address, for IPv6 its network of 64 bits.
    Source(String),
}

impl fmt::Display for Guesser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Guesser::Account(Some(user)) => write!(f, "account:{user}"),
            Guesser::Account(None) => f.write_str("account:"),
            Guesser::Source(source) => write!(f, "source:{source}"),
        }
    }
}

impl FromStr for Guesser {
    type Err = super::name::BadName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("account", "")) => Ok(Guesser::Account(None)),
            Some(("account", user)) => UserName::new(user).map(|user| Guesser::Account(Some(user))),
            Some(("source", source)) => Ok(Guesser::Source(source.to_owned())),
            _ => Err(super::name::BadName { text: text.to_owned(), what: "an account or a source" }),
        }
    }
}

impl Serialize for Guesser {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Guesser {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Tries of one account or source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tries {
    /// Those that were not given back.
    pub count: u32,
    pub last: WallTime,
}

impl Tries {
    /// How long to wait before the next try; zero: it may be made now.
    #[must_use]
    pub fn wait(&self, now: WallTime) -> Duration {
        let delay = match self.count.checked_sub(FREE) {
            None => Duration::ZERO,
            // 2^10 s is more than the longest delay.
            Some(over) => Duration::from_secs(1 << over.min(10)).min(DELAY_MAX),
        };
        delay.saturating_sub(now.since(self.last))
    }

    /// One try more.
    #[must_use]
    pub fn counted(self, now: WallTime) -> Tries {
        let count = if self.forgotten(now) { 0 } else { self.count };
        Tries { count: count.saturating_add(1), last: now }
    }

    /// Its own try given back, after the right password.
    #[must_use]
    pub fn given_back(self) -> Tries {
        Tries { count: self.count.saturating_sub(1), ..self }
    }

    #[must_use]
    pub fn forgotten(&self, now: WallTime) -> bool {
        self.count == 0 || now.since(self.last) >= FORGOTTEN_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(secs: u64) -> WallTime {
        WallTime(1_000_000_000_000_000 + secs * 1_000_000)
    }

    #[test]
    fn five_tries_are_free_and_then_each_waits_twice_as_long() {
        let mut tries = Tries::default();
        let mut waits = Vec::new();
        for _ in 0..18 {
            waits.push(tries.wait(at(0)).as_secs());
            tries = tries.counted(at(0));
        }
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
    }

    #[test]
    fn nobody_is_locked_for_good() {
        let tries = Tries { count: u32::MAX, last: at(0) };
        assert_eq!(tries.wait(at(0)), DELAY_MAX);
        assert_eq!(tries.wait(at(900)), Duration::ZERO);
        assert_eq!(tries.counted(at(24 * 3600)), Tries { count: 1, last: at(24 * 3600) });
    }

    proptest! {
        /// Whatever the moments at which somebody asks, in ten minutes few tries are evaluated.
        #[test]
        fn ten_minutes_of_guessing_are_few_tries(mut moments in proptest::collection::vec(0u64..600_000, 1..2_000)) {
            moments.sort_unstable();
            let mut tries = Tries::default();
            let mut evaluated = 0;
            for ms in moments {
                let now = WallTime(1_000_000_000_000_000 + ms * 1_000);
                if tries.wait(now).is_zero() {
                    tries = tries.counted(now);
                    evaluated += 1;
                }
            }
            // 5 free ones, and then 1 + 2 + 4 + … seconds: the tenth delay would end after 1,023 s.
            prop_assert!(evaluated <= 5 + 10, "{evaluated}");
        }

        #[test]
        fn a_name_reads_what_it_prints(user in "[a-z][a-z0-9@._-]{0,20}", source in "[0-9a-f.:]{1,20}") {
            for guesser in [
                Guesser::Account(Some(UserName::new(&user).unwrap())),
                Guesser::Account(None),
                Guesser::Source(source.clone()),
            ] {
                prop_assert_eq!(guesser.to_string().parse::<Guesser>().unwrap(), guesser);
            }
        }
    }
}
