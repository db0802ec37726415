//! The table `autoscale` of a service: how many copies run follows what they have to do.
//!
//! None of it is part of a version: whoever changes it replaces no copy. While it is on, `replicas` is only
//! where a new service starts; after that the number belongs to the leader, and a spec that is applied again
//! leaves it alone.

mod told;

pub use told::{Counted, Scrape};

use super::{Driver, Mode, ServiceSpec};
use crate::resource::Resources;
use crate::time::{Span, WallTime};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How many copies run follows what they have to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoscale {
    /// Default true; false: `replicas` counts, and the table is kept for later.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub enabled: bool,
    /// Never fewer copies. From 1 on.
    pub min: u32,
    /// Never more copies. At most 1000.
    pub max: u32,
    /// How much of `resources.cpu` copies are to use, like `"70%"`. 1% to 90%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Share>,
    /// How much of `resources.memory` copies are to use. 1% to 90%. For programs that give memory back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Share>,
    /// How many requests a second a copy is to have, as gateways count them. 1 to 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rps: Option<u32>,
    /// How long 95 of 100 requests may take at most, from their head to the response's, as gateways measure it.
    /// 1ms to 10s. Best beside another target: it tells sooner that copies are too few than that they are too many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<Span>,
    /// A number that each copy tells of itself, in Prometheus' text format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrape: Option<Scrape>,
    /// A number that a query finds in the cluster's database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<Counted>,
    /// How often it is looked whether the number is right; it changes at most so often. 5s to 10m; default 15s.
    #[serde(default = "every")]
    pub every: Span,
    /// For how long after it became healthy a copy does not count: many need more while they start than later.
    /// 0s to 10m; default 30s.
    #[serde(default = "warmup")]
    pub warmup: Span,
    /// No fewer copies than were needed at any moment of this span. 0s to 1h; default 3m.
    #[serde(default = "down_after")]
    pub down_after: Span,
    /// Other limits at certain hours. At most 16; the first one that holds counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedule: Vec<Hours>,
}

fn yes() -> bool {
    true
}
fn is_yes(flag: &bool) -> bool {
    *flag
}
fn every() -> Span {
    Span::from_secs(15)
}
fn warmup() -> Span {
    Span::from_secs(30)
}
fn down_after() -> Span {
    Span::from_secs(180)
}

/// No gateway sends a copy more requests a second.
const RPS_MAX: u32 = 1_000_000;

/// Most entries of a schedule.
const SCHEDULE_MAX: usize = 16;

/// Limits that hold at certain hours of certain days, all in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// Days on which the hours begin: `"mon-fri"`, `"sat,sun"`. Default `"mon-sun"`.
    #[serde(default)]
    pub days: Days,
    /// `HH:MM`, in UTC.
    pub from: Clock,
    /// `HH:MM`, in UTC; up to `24:00`. Not later than `from`: on the next day.
    pub to: Clock,
    /// Default: that of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Default: that of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// Between which numbers of copies the leader chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub min: u32,
    pub max: u32,
}

impl Bounds {
    #[must_use]
    pub fn clamp(self, count: u32) -> u32 {
        count.clamp(self.min, self.max.max(self.min))
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

impl Autoscale {
    /// On, between these limits, and going by nothing yet.
    pub(crate) fn new(min: u32, max: u32) -> Autoscale {
        Autoscale {
            enabled: true,
            min,
            max,
            cpu: None,
            memory: None,
            rps: None,
            p95: None,
            scrape: None,
            sql: None,
            every: every(),
            warmup: warmup(),
            down_after: down_after(),
            schedule: Vec::new(),
        }
    }

    fn plain(&self) -> Bounds {
        Bounds { min: self.min, max: self.max }
    }

    fn within(&self, hours: &Hours) -> Bounds {
        Bounds { min: hours.min.unwrap_or(self.min), max: hours.max.unwrap_or(self.max) }
    }

    /// The limits at this moment, and the hours that they come from.
    #[must_use]
    pub fn bounds(&self, at: WallTime) -> (Bounds, Option<&Hours>) {
        match self.schedule.iter().find(|hours| hours.hold(at)) {
            Some(hours) => (self.within(hours), Some(hours)),
            None => (self.plain(), None),
        }
    }

    /// Whether gateways are to tell how much there is to do.
    #[must_use]
    pub fn goes_by_traffic(&self) -> bool {
        self.rps.is_some() || self.p95.is_some()
    }

    /// Whether it goes by anything but hours.
    fn goes_by_load(&self) -> bool {
        self.cpu.is_some()
            || self.memory.is_some()
            || self.goes_by_traffic()
            || self.scrape.is_some()
            || self.sql.is_some()
    }

    /// The limits that hold at some moment or other.
    #[must_use]
    pub fn widest(&self) -> Bounds {
        self.schedule.iter().map(|hours| self.within(hours)).fold(self.plain(), |widest, other| Bounds {
            min: widest.min.min(other.min),
            max: widest.max.max(other.max),
        })
    }
}

impl ServiceSpec {
    /// The table, if it counts.
    #[must_use]
    pub fn autoscaled(&self) -> Option<&Autoscale> {
        self.autoscale.as_ref().filter(|autoscale| autoscale.enabled)
    }

    /// What becomes of this spec when it is applied to a service that has `present` copies; `None`: there is no
    /// such service yet.
    #[must_use]
    pub fn settled(&self, present: Option<u32>) -> ServiceSpec {
        let mut spec = self.clone();
        if let Some(autoscale) = self.autoscaled() {
            spec.replicas = autoscale.widest().clamp(present.unwrap_or(self.replicas));
        }
        spec
    }
}

/// A part of what is set aside for a copy. 1% to 90%.
///
/// What has reached its limit uses 100%, however much more it would need; so a higher target could not be
/// exceeded by as much as the number of copies tolerates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u8);

impl Share {
    const MAX: u8 = 90;

    #[must_use]
    pub fn percent(self) -> u8 {
        self.0
    }

    /// This part of an amount, and never nothing.
    #[must_use]
    pub fn of(self, amount: u64) -> u64 {
        (amount.saturating_mul(self.0.into()) / 100).max(1)
    }
}

/// The text is no share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no share: write one like \"70%\", 1% to 90%")]
pub struct BadShare(String);

impl FromStr for Share {
    type Err = BadShare;

    fn from_str(text: &str) -> Result<Share, BadShare> {
        let percent = text.strip_suffix('%').filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        let percent = percent.and_then(|number| number.parse().ok()).filter(|it| (1..=Share::MAX).contains(it));
        percent.map(Share).ok_or_else(|| BadShare(text.to_owned()))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A time of day in UTC, by the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clock(u16);

/// The text is no time of day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time of day: write HH:MM in UTC, 00:00 to 24:00")]
pub struct BadClock(String);

impl FromStr for Clock {
    type Err = BadClock;

    fn from_str(text: &str) -> Result<Clock, BadClock> {
        let two = |part: &str| {
            let is_plain = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            is_plain.then(|| part.parse::<u16>().ok())?
        };
        let minutes = text.split_once(':').and_then(|(hours, minutes)| {
            let (hours, minutes) = (two(hours)?, two(minutes)?);
            let total = hours * 60 + minutes;
            (minutes < 60 && total <= 24 * 60).then_some(total)
        });
        minutes.map(Clock).ok_or_else(|| BadClock(text.to_owned()))
    }
}

impl Clock {
    /// Since midnight; 24:00 is a day.
    pub(super) fn minutes(self) -> u64 {
        self.0.into()
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// Days of the week, Monday first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days([bool; 7]);

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Default for Days {
    fn default() -> Self {
        Days([true; 7])
    }
}

/// The text names no days.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no days: write some of mon, tue, wed, thu, fri, sat, sun, like \"mon-fri\" or \"sat,sun\"")]
pub struct BadDays(String);

impl FromStr for Days {
    type Err = BadDays;

    fn from_str(text: &str) -> Result<Days, BadDays> {
        let bad = || BadDays(text.to_owned());
        let day = |word: &str| DAYS.iter().position(|day| *day == word.trim()).ok_or_else(bad);
        let mut days = [false; 7];
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            // Over the end of the week as well: `sat-mon`.
            let span = (last + 7 - first) % 7;
            (0..=span).for_each(|step| days[(first + step) % 7] = true);
        }
        Ok(Days(days))
    }
}

impl Days {
    /// Whether a day, counted from 1970 on, is one of them.
    pub(super) fn has(self, day: u64) -> bool {
        // 1970 began on a Thursday.
        self.0[usize::try_from((day + 3) % 7).unwrap_or_default()]
    }
}

impl fmt::Display for Days {
    /// Runs of days as ranges, in the order of the week.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = 0;
        let mut first = true;
        while at < 7 {
            if !self.0[at] {
                at += 1;
                continue;
            }
            let end = (at..7).take_while(|day| self.0[*day]).last().unwrap_or(at);
            f.write_str(if first { "" } else { "," })?;
            match end - at {
                0 => f.write_str(DAYS[at])?,
                _ => write!(f, "{}-{}", DAYS[at], DAYS[end])?,
            }
            (first, at) = (false, end + 1);
        }
        Ok(())
    }
}

pub(super) const DAY_MINUTES: u64 = 24 * 60;

/// Whether a minute, counted from 1970 on, is between two times of day that begin on these days. Not later than
/// `from`, `to` is on the next day.
pub(super) fn during(days: Days, from: Clock, to: Clock, minute: u64) -> bool {
    let (day, minute) = (minute / DAY_MINUTES, minute % DAY_MINUTES);
    let (from, to) = (from.minutes(), to.minutes());
    if from < to {
        return days.has(day) && (from..to).contains(&minute);
    }
    (days.has(day) && minute >= from) || (days.has(day + 6) && minute < to)
}

impl Hours {
    /// Whether they hold at this moment.
    #[must_use]
    pub fn hold(&self, at: WallTime) -> bool {
        during(self.days, self.from, self.to, at.as_micros() / 60_000_000)
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}-{} UTC", self.days, self.from, self.to)
    }
}

/// Written and read as text.
macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
as_text!(Share, Clock, Days);

pub(super) fn validate(spec: &ServiceSpec) -> Result<(), (String, String)> {
    let Some(autoscale) = &spec.autoscale else { return Ok(()) };
    let refused = |name: &str, problem: String| Err((format!("autoscale{name}"), problem));
    match spec.mode {
        Mode::Replicated => {}
        Mode::Singleton => return refused("", "is for several copies, and a singleton has one: leave it out".into()),
        Mode::ActivePassive => {
            return refused(
                "",
                "is for copies that share the work, and one of an active-passive service does all of it: \
                                leave it out"
                    .into(),
            );
        }
        Mode::EveryNode => {
            return refused("", "is for services that can be scaled, and \"every-node\" runs one on each node".into());
        }
    }
    let most = ServiceSpec::MAX_REPLICAS;
    let limits = |name: &str, Bounds { min, max }: Bounds| {
        if !(1..=most).contains(&min) {
            return refused(&format!("{name}.min"), format!("is {min}; it must be 1 to {most}"));
        }
        if !(1..=most).contains(&max) {
            return refused(&format!("{name}.max"), format!("is {max}; it must be 1 to {most}"));
        }
        if max < min {
            return refused(&format!("{name}.max"), format!("is {max}, and the minimum is {min}"));
        }
        Ok(())
    };
    limits("", autoscale.plain())?;
    if autoscale.schedule.len() > SCHEDULE_MAX {
        let problem = format!("has {} entries; at most {SCHEDULE_MAX} are allowed", autoscale.schedule.len());
        return refused(".schedule", problem);
    }
    for hours in &autoscale.schedule {
        if hours.min.is_none() && hours.max.is_none() {
            return refused(".schedule", format!("says nothing for {hours}: give `min` or `max`"));
        }
        limits(".schedule", autoscale.within(hours))?;
    }
    if !autoscale.goes_by_load() && autoscale.schedule.is_empty() {
        return refused("", "goes by nothing: write cpu = \"70%\", rps = 100, another target or a schedule".into());
    }
    traffic(spec, autoscale)?;
    told::validate(spec, autoscale)?;
    let measured = matches!(spec.driver, Driver::Process | Driver::Ocf);
    if let Some(name) =
        [autoscale.cpu.map(|_| ".cpu"), autoscale.memory.map(|_| ".memory")].into_iter().flatten().next()
        && !measured
    {
        let problem = "cannot be gone by: what runs under another supervisor is not measured; leave it out";
        return refused(name, problem.into());
    }
    let Resources { cpu, memory } = spec.resources;
    if autoscale.cpu.is_some() && cpu.is_none() {
        return refused(".cpu", "is a share of `resources.cpu`, which is not there: add it, like \"500m\"".into());
    }
    if autoscale.memory.is_some() && memory.is_none() {
        let problem = "is a share of `resources.memory`, which is not there: add it, like \"256MiB\"";
        return refused(".memory", problem.into());
    }
    if autoscale.enabled && spec.replicas > autoscale.widest().max {
        let problem = format!("is {}, and `autoscale.max` is {}", spec.replicas, autoscale.widest().max);
        return Err(("replicas".into(), problem));
    }
    let spans = [
        ("every", autoscale.every, Span::from_secs(5), Span::from_secs(600)),
        ("warmup", autoscale.warmup, Span::default(), Span::from_secs(600)),
        ("down_after", autoscale.down_after, Span::default(), Span::from_secs(3600)),
    ];
    for (name, span, least, longest) in spans {
        super::validate::within(span, least, longest).map_err(|problem| (format!("autoscale.{name}"), problem))?;
    }
    Ok(())
}

/// What gateways count.
fn traffic(spec: &ServiceSpec, autoscale: &Autoscale) -> Result<(), (String, String)> {
    let refused = |name: &str, problem: String| Err((format!("autoscale.{name}"), problem));
    if let Some(rps) = autoscale.rps.filter(|rps| !(1..=RPS_MAX).contains(rps)) {
        return refused("rps", format!("is {rps}; it must be 1 to {RPS_MAX}"));
    }
    if let Some(p95) = autoscale.p95 {
        super::validate::within(p95, Span::from_millis(1), Span::from_secs(10))
            .map_err(|problem| ("autoscale.p95".to_owned(), problem))?;
    }
    if autoscale.goes_by_traffic() && spec.main_port().is_none() {
        let name = if autoscale.rps.is_some() { "rps" } else { "p95" };
        return refused(name, "is what gateways count, and the service has no port that they could send to".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
