//! Fences: under which epoch of its lease a service writes.
//!
//! A lease ends on its holder's clock, and a machine that was paused as a whole does not notice that time
//! passed. What it sent, or sends when it goes on, may arrive when another copy has long taken over. So a write
//! may say under which epoch it is made, and the database refuses one whose epoch is over, in the transaction
//! in which it would be done: whatever was slow on the way, nobody's clock is asked.
//!
//! The text form is `SERVICE@EPOCH`, the same in the log, in the API and on the command line.
//!
//! Source: docs/adr/0016-fenced-writes.md.

use crate::id::{BadServiceName, ServiceName};
use std::fmt;
use std::str::FromStr;

/// The epoch of a service under which a write is made: `QUORATE_SERVICE` and `QUORATE_EPOCH` of the copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    pub service: ServiceName,
    /// From 1.
    pub epoch: u64,
}

/// The text is not a fence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadFence {
    #[error("`{0}` has no epoch: a fence is SERVICE@EPOCH, like db@4")]
    NoEpoch(String),
    #[error(transparent)]
    Service(#[from] BadServiceName),
    #[error("`{0}` is not an epoch: use a whole number from 1 on, without zeros before it")]
    Epoch(String),
}

impl FromStr for Fence {
    type Err = BadFence;

    fn from_str(text: &str) -> Result<Fence, BadFence> {
        let (service, epoch) = text.split_once('@').ok_or_else(|| BadFence::NoEpoch(text.to_owned()))?;
        let service = ServiceName::new(service)?;
        let number = epoch.parse::<u64>().ok().filter(|number| *number > 0 && number.to_string() == epoch);
        let number = number.ok_or_else(|| BadFence::Epoch(epoch.to_owned()))?;
        Ok(Fence { service, epoch: number })
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.service, self.epoch)
    }
}

/// Why a fenced write was not done, the same on every node. A part of the outcome that is kept: fields are only
/// ever added.
#[derive(Clone, PartialEq, Eq, prost::Message, thiserror::Error)]
#[error("{}", why(self))]
pub struct FenceRefused {
    #[prost(string, tag = "1")]
    pub service: String,
    /// Of the write.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The newest one that the database knows.
    #[prost(uint64, tag = "3")]
    pub newest: u64,
}

impl FenceRefused {
    /// The epoch is over: another copy has taken over. Otherwise nobody was ever given it.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.epoch < self.newest
    }
}

fn why(refused: &FenceRefused) -> String {
    let FenceRefused { service, epoch, newest } = refused;
    if refused.is_stale() {
        format!("epoch {epoch} of `{service}` is over: the newest is {newest}")
    } else {
        format!("no copy of `{service}` was given epoch {epoch}: the newest is {newest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn read(text: &str) -> Result<Fence, BadFence> {
        text.parse()
    }

    #[test]
    fn a_fence_has_one_text_form() {
        for good in ["db@1", "a-b-3@42", "db@18446744073709551615"] {
            assert_eq!(read(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "db",
            "@",
            "db@",
            "@1",
            "db@0",
            "db@-1",
            "db@+1",
            "db@01",
            "db@1.0",
            "db@1 ",
            " db@1",
            "db@1@2",
            "DB@1",
            "db:1",
            "db@18446744073709551616",
            "db@١",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_fence_is_told_what_one_is() {
        let told = |text| read(text).unwrap_err().to_string();
        expect!["`db` has no epoch: a fence is SERVICE@EPOCH, like db@4"].assert_eq(&told("db"));
        expect!["`x` is not an epoch: use a whole number from 1 on, without zeros before it"].assert_eq(&told("db@x"));
        expect![
            "`D B` is not a service name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
        ]
        .assert_eq(&told("D B@1"));
    }
}
