//! The table `update` of a service: how another version takes the place of the one that runs.
//!
//! None of it is part of a version: whoever changes it replaces no replica.

use super::{Mode, Port, ServiceSpec};
use crate::time::Span;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How another version takes the place of the one that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Whether a new copy starts before the old one ends. Default: it does, unless the service has a fixed port
    /// or runs once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// How many copies are replaced at a time: a number from 1 on, or a share of all like `"25%"`, rounded down
    /// and at least 1. Default 1.
    #[serde(default)]
    pub batch: Batch,
    /// How many copies get a new version first, before any other does. Default 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub canary: u32,
    /// Whether the others follow by themselves once the canaries are well. Default `auto`.
    #[serde(default)]
    pub promote: Promote,
    /// How long a new copy must be healthy before its place counts as taken. 0s to 10m; default 5s: what starts
    /// badly mostly ends within seconds, and longer would make updates slow for those that start well.
    #[serde(default = "healthy_for")]
    pub healthy_for: Span,
    /// A copy of a new version that is not healthy for this long fails the update. 1s to 1h; default 5m.
    #[serde(default = "healthy_within")]
    pub healthy_within: Span,
    /// So does an update in which no further copy gets well for this long. 1s to 2h; default 10m.
    #[serde(default = "progress_within")]
    pub progress_within: Span,
    /// How long all copies of a new version must run until it counts as stable, which later ones go back to.
    /// Nothing waits for it. 0s to 1h; default 30s.
    #[serde(default = "verify_for")]
    pub verify_for: Span,
    /// Whether an update that fails goes back to the last stable version. Default true; false: it stays as far as
    /// it came.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub rollback: bool,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
fn healthy_for() -> Span {
    Span::from_secs(5)
}
fn healthy_within() -> Span {
    Span::from_secs(300)
}
fn progress_within() -> Span {
    Span::from_secs(600)
}
fn verify_for() -> Span {
    Span::from_secs(30)
}
fn yes() -> bool {
    true
}
fn is_yes(flag: &bool) -> bool {
    *flag
}

impl Default for Update {
    fn default() -> Self {
        Update {
            order: None,
            batch: Batch::default(),
            canary: 0,
            promote: Promote::Auto,
            healthy_for: healthy_for(),
            healthy_within: healthy_within(),
            progress_within: progress_within(),
            verify_for: verify_for(),
            rollback: true,
        }
    }
}

impl Update {
    pub(super) fn is_default(&self) -> bool {
        *self == Update::default()
    }
}

/// Which copy of the two comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    StartFirst,
    StopFirst,
}

/// What canaries wait for once they are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promote {
    /// Nothing.
    #[default]
    Auto,
    /// `quorate update continue NAME`.
    Manual,
}

/// How many copies are replaced at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// From 1 on.
    Count(u32),
    /// 1 to 100.
    Percent(u8),
}

impl Default for Batch {
    fn default() -> Self {
        Batch::Count(1)
    }
}

impl Batch {
    /// Of so many copies; at least 1.
    #[must_use]
    pub fn of(self, copies: usize) -> usize {
        let count = match self {
            Batch::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Batch::Percent(percent) => copies * usize::from(percent) / 100,
        };
        count.max(1)
    }
}

/// The text or number is no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no batch: write a number from 1 to 1000, or a share like \"25%\"")]
pub struct BadBatch(String);

impl FromStr for Batch {
    type Err = BadBatch;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percent: Option<u8> = text.strip_suffix('%').and_then(|number| number.parse().ok());
        percent.filter(|percent| (1..=100).contains(percent)).map(Batch::Percent).ok_or_else(|| BadBatch(text.into()))
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Batch::Count(count) => write!(f, "{count}"),
            Batch::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for Batch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Batch::Count(count) => serializer.serialize_u32(*count),
            Batch::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        let refused = |text: String| serde::de::Error::custom(BadBatch(text));
        match Raw::deserialize(deserializer).map_err(|_| refused("that".into()))? {
            Raw::Number(number) => match u32::try_from(number) {
                Ok(count) if (1..=ServiceSpec::MAX_REPLICAS).contains(&count) => Ok(Batch::Count(count)),
                _ => Err(refused(number.to_string())),
            },
            Raw::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl ServiceSpec {
    /// Why an old copy of this service ends before its successor starts; `None`: it does not have to.
    #[must_use]
    pub fn stops_first(&self) -> Option<&'static str> {
        let fixed = self.ports.values().any(|port| matches!(port, Port::Fixed(_)));
        match (self.mode, self.update.order) {
            (Mode::Singleton, _) => Some("runs once"),
            (Mode::ActivePassive, _) => Some("has one copy on a node"),
            _ if fixed => Some("has a fixed port"),
            _ if self.is_alone_on_its_node() => Some("is one thing by one name on its node"),
            (_, Some(Order::StopFirst)) => Some("has update.order = \"stop-first\""),
            (_, None | Some(Order::StartFirst)) => None,
        }
    }

    /// Whether replacing its copies leaves it without one for a while.
    #[must_use]
    pub fn update_interrupts(&self, copies: u32) -> bool {
        self.stops_first().is_some() && self.update.batch.of(copies as usize) >= copies as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_a_number_or_a_share_and_never_none() {
        let read = |text: &str| serde_json::from_str::<Batch>(text);
        assert_eq!(read("3").unwrap().of(10), 3);
        assert_eq!(read("\"25%\"").unwrap().of(10), 2);
        assert_eq!(read("\"25%\"").unwrap().of(3), 1);
        for text in ["0", "1001", "\"0%\"", "\"101%\"", "\"3\"", "\"%\"", "-1", "1.5", "true"] {
            assert!(read(text).is_err(), "{text}");
        }
        for batch in [Batch::Count(7), Batch::Percent(50)] {
            assert_eq!(read(&serde_json::to_string(&batch).unwrap()).unwrap(), batch);
        }
    }
}
