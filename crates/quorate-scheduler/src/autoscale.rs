//! How many copies of a service are right for what they have to do.
//!
//! [`Autoscaling`] watches: every manager feeds it with what it sees once a second or so, and the leader asks
//! for what it finds. [`judge`] decides, and is a function of its arguments alone.
//!
//! The load of a copy is what it uses, divided by what it is to use. The sum over all copies is how many would
//! have just enough to do, and that many are wanted. What cannot be measured is counted against a change:
//! as a copy without work where more would be wanted, as a busy one where fewer would.
//!
//! Why a sum of loads and not a controller with gains: it has nothing to tune, and one step reaches the right
//! number whatever the load does, as long as copies share it. Where they do not, it goes on step by step.
//! Latency is no load: it says that copies are too few, and hardly ever how many too many. So a latency below its
//! target keeps the number, and only one below half of it is a reason for fewer.
//!
//! # Invariants
//! - What is found is within the limits, or nearer to them than before.
//! - At a load that stays the same a number that was found is kept.
//! - With more load never fewer copies are wanted.
//! - Fewer copies are asked for only if no moment of `down_after` wanted more, as far as this manager has
//!   watched; one that has watched for a shorter time asks for no fewer.
//! - More copies than there is room for are not asked for.
//!
//! # Sources
//! The rules for what is missing, the tolerance, and the highest recommendation of a while are those of
//! Kubernetes' horizontal pod autoscaler.

use crate::held::HeldReason;
use crate::{Observed, Policy, plan};
use quorate_model::assignment::Phase;
use quorate_model::deployment::Stage;
use quorate_model::event::Happening;
use quorate_model::id::{ReplicaId, ServiceName};
use quorate_model::observed::ReplicaState;
use quorate_model::resource::{Resources, Usage};
use quorate_model::spec::{Autoscale, Bounds, ServiceSpec};
use quorate_model::state::{ClusterState, ReplicaRecord, ServiceRecord};
use quorate_model::time::{Span, Timestamp, WallTime};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

mod traffic;

pub use self::traffic::Flow;

use self::traffic::Gateways;
/// Loads are counted in thousandths: a copy at its target has this much.
pub(crate) const WHOLE: u64 = 1000;
/// A sum of loads that is nearer than this to the number of copies changes nothing: measuring is no more exact.
const TOLERANCE: u64 = 100;
/// Samples of a copy are taken no more often; agents measure every five seconds.
const SAMPLED_EVERY: Duration = Duration::from_secs(1);
/// Copies that may be added at once, where doubling adds fewer.
const STEP_UP: u32 = 4;

/// What the number of copies goes by.
///
/// Whatever measures something else about a service becomes another variant, with its target in
/// [`Autoscale`] and its load in [`Metric::load`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    Cpu,
    Memory,
    /// Requests a second, by gateways.
    Rps,
    /// What 95 of 100 requests take at most, by gateways.
    P95,
    /// What copies tell of themselves.
    Scrape,
    /// What a query finds in the cluster's database.
    Sql,
}

impl Metric {
    /// Its key in a spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Metric::Cpu => "cpu",
            Metric::Memory => "memory",
            Metric::Rps => "rps",
            Metric::P95 => "p95",
            Metric::Scrape => "scrape",
            Metric::Sql => "sql",
        }
    }

    /// Those that a service goes by, with the amount that each copy is to have.
    fn targets(autoscale: &Autoscale, resources: &Resources) -> impl Iterator<Item = (Metric, u64)> {
        let cpu = autoscale.cpu.zip(resources.cpu).map(|(share, cpu)| (Metric::Cpu, share.of(cpu.millis().into())));
        let memory = autoscale.memory.zip(resources.memory);
        let memory = memory.map(|(share, memory)| (Metric::Memory, share.of(memory.bytes())));
        let rps = autoscale.rps.map(|rps| (Metric::Rps, u64::from(rps) * WHOLE));
        let micros = |span: Span| u64::try_from(span.0.as_micros()).unwrap_or(u64::MAX);
        let p95 = autoscale.p95.map(|p95| (Metric::P95, micros(p95)));
        let scrape = autoscale.scrape.as_ref().map(|it| (Metric::Scrape, u64::from(it.target) * WHOLE));
        let sql = autoscale.sql.as_ref().map(|it| (Metric::Sql, u64::from(it.target) * WHOLE));
        cpu.into_iter().chain(memory).chain(rps).chain(p95).chain(scrape).chain(sql)
    }

    /// Where what is to be counted comes from, if it does not come.
    fn unmeasured(self) -> &'static str {
        match self {
            Metric::Cpu | Metric::Memory => "not measured of any copy that is ready",
            Metric::Rps | Metric::P95 => "not told by any gateway with a route to it",
            Metric::Scrape => "not told by any copy that is ready",
            Metric::Sql => "not known yet",
        }
    }
}

/// How much a copy has to do, against what it is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Low,
    Moderate,
    High,
}

impl Step {
    fn of(load: u64) -> Step {
        match load {
            load if load > WHOLE + TOLERANCE => Step::High,
            load if load >= WHOLE / 2 => Step::Moderate,
            _ => Step::Low,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Step::Low => "low",
            Step::Moderate => "moderate",
            Step::High => "high",
        }
    }
}

/// A mean of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Mean {
    sum: u64,
    samples: u64,
}

impl Mean {
    fn add(&mut self, value: u64) {
        self.sum = self.sum.saturating_add(value);
        self.samples += 1;
    }

    fn mean(self) -> Option<u64> {
        self.sum.checked_div(self.samples)
    }
}

/// What was measured of a copy since the number was looked at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Measured {
    cpu_millis: Mean,
    memory_bytes: Mean,
    /// In thousandths.
    scraped: Mean,
}

impl Measured {
    pub(crate) fn tell(&mut self, scraped: u64) {
        self.scraped.add(scraped);
    }

    pub(crate) fn add(&mut self, usage: &Usage) {
        self.cpu_millis.add(usage.cpu_millis.into());
        if let Some(bytes) = usage.memory_bytes {
            self.memory_bytes.add(bytes);
        }
    }
}

/// All that a decision looks at.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    pub(crate) autoscale: &'a Autoscale,
    /// Those in force now.
    pub(crate) bounds: Bounds,
    pub(crate) resources: Resources,
    /// How many copies are wanted now.
    pub(crate) wanted: u32,
    /// Of those that are ready and have been for the time of warming up.
    pub(crate) measured: &'a [Measured],
    /// What gateways told.
    pub(crate) flow: &'a Flow,
    /// What the query found, in thousandths, or why nothing.
    pub(crate) counted: Option<&'a Result<u64, String>>,
    /// Why a copy tells nothing of itself, if one does not.
    pub(crate) untold: Option<&'a str>,
    /// The most that was right at any moment of `down_after`, as far as is known.
    pub(crate) highest: u32,
}

/// What one metric says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub metric: Metric,
    /// What a copy has, on average of those that were measured: thousandths of a CPU, bytes, thousandths of a
    /// request a second or of a number that is told; microseconds that 95 of 100 requests took at most.
    pub mean: u64,
    /// What it is to use.
    pub target: u64,
    /// How many copies it was measured of.
    pub copies: u32,
    /// How many copies would have just enough to do; the present number where that is near enough.
    pub right: u32,
}

impl Reading {
    /// What a copy has to do, in thousandths of what it is to have.
    #[must_use]
    pub fn load(&self) -> u64 {
        self.mean.saturating_mul(WHOLE) / self.target.max(1)
    }

    /// The same in percent.
    #[must_use]
    pub fn percent(&self) -> u64 {
        self.load() * 100 / WHOLE
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub readings: Vec<Reading>,
    /// How many copies are right, between the limits; nothing else taken into account.
    pub right: u32,
    /// How many are to be wanted from now on.
    pub to: u32,
    /// What kept `to` from being what the readings say.
    pub limits: Vec<Limit>,
}

/// Why a number of copies is not what was measured to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limit {
    /// An update is under way: what copies use then says little.
    Updating {
        version: u64,
        stage: Stage,
        verify_for: Span,
    },
    /// The service is stopped.
    Stopped,
    /// It was measured of no copy that counts.
    Unmeasured {
        metric: Metric,
    },
    /// Of some copies nothing was measured that counts.
    Partly {
        measured: u32,
        wanted: u32,
    },
    /// A copy tells nothing of itself.
    Untold {
        why: String,
    },
    /// The query gives no number.
    NoNumber {
        why: String,
    },
    /// Of the gateways that have told of requests, some are silent.
    Silent {
        silent: u32,
        gateways: u32,
    },
    /// The present number is right, or near enough.
    Right,
    Min {
        min: u32,
    },
    Max {
        max: u32,
    },
    /// So many were right at a moment of the span.
    Settling {
        highest: u32,
        span: Span,
    },
    /// No more at once.
    Stepwise {
        to: u32,
    },
    /// So many find no node.
    NoRoom {
        missing: u32,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Stopped => f.write_str("the service is stopped; the number stays until it runs again"),
            Limit::Updating { version, stage: Stage::Verifying, verify_for } => {
                write!(f, "version {version} has to run for {verify_for} (`verify_for`); the number stays until then")
            }
            Limit::Updating { version, stage: Stage::RollingBack, .. } => {
                write!(f, "it goes back from version {version}; the number stays until that is over")
            }
            Limit::Updating { version, .. } => {
                write!(f, "version {version} is being brought out; the number stays until that is over")
            }
            Limit::Unmeasured { metric } => {
                let (name, why) = (metric.name(), metric.unmeasured());
                write!(f, "{name} is {why}; that is no reason for another number")
            }
            Limit::Partly { measured, wanted } => {
                write!(f, "{measured} of {wanted} copies are ready and measured; the others count against a change")
            }
            Limit::Untold { why } => write!(f, "a copy tells nothing of itself: {why}"),
            Limit::NoNumber { why } => write!(f, "the query of sql gives no number: {why}"),
            Limit::Silent { silent, gateways } => {
                write!(f, "{silent} of {gateways} gateways say nothing now; they count against a change")
            }
            Limit::Right => f.write_str("there are that many already; the number stays"),
            Limit::Min { min } => write!(f, "no fewer than {min}, the minimum"),
            Limit::Max { max } => write!(f, "no more than {max}, the maximum"),
            Limit::Settling { highest, span } => {
                write!(f, "{highest} were right within the last {span}; fewer only after that")
            }
            Limit::Stepwise { to } => write!(f, "in steps: {to} first"),
            Limit::NoRoom { missing: 1 } => f.write_str("1 copy more would find no node with room"),
            Limit::NoRoom { missing } => write!(f, "{missing} copies more would find no node with room"),
        }
    }
}

/// How many copies are right, and how many of that is done now. What there is room for is not looked at.
#[must_use]
pub(crate) fn judge(question: &Question<'_>) -> Verdict {
    let Question { autoscale, bounds, resources, wanted, measured, flow, counted, untold, highest } = question;
    let (wanted, mut limits) = (*wanted, Vec::new());
    let mut readings = Vec::new();
    // What goes by hours alone has as few copies as these allow.
    let mut asked = None;
    for (metric, target) in Metric::targets(autoscale, resources) {
        // The busiest metric decides. One that nobody can tell is no reason for fewer copies.
        let reading = match metric {
            Metric::Cpu => of_copies(metric, target, measured.iter().map(|copy| copy.cpu_millis), wanted),
            Metric::Memory => of_copies(metric, target, measured.iter().map(|copy| copy.memory_bytes), wanted),
            Metric::Rps => requests(target, flow, wanted),
            Metric::P95 => latency(target, flow, wanted),
            Metric::Scrape => of_copies(metric, target, measured.iter().map(|copy| copy.scraped), wanted),
            Metric::Sql => of_all(metric, target, counted.and_then(|found| found.as_ref().ok().copied()), wanted),
        };
        match reading {
            Some(reading) => {
                asked = asked.max(Some(reading.right));
                readings.push(reading);
            }
            None => {
                asked = asked.max(Some(wanted));
                let why = counted.and_then(|found| found.as_ref().err()).filter(|_| metric == Metric::Sql);
                limits.push(match why {
                    Some(why) => Limit::NoNumber { why: why.clone() },
                    None => Limit::Unmeasured { metric },
                });
            }
        }
    }
    if let Some(counted) = readings.iter().map(|reading| reading.copies).min().filter(|counted| *counted < wanted) {
        limits.push(Limit::Partly { measured: counted, wanted });
    }
    if let Some(why) = untold {
        limits.push(Limit::Untold { why: (*why).to_owned() });
    }
    let Flow { gateways, silent, .. } = **flow;
    if autoscale.goes_by_traffic() && (1..gateways).contains(&silent) {
        limits.push(Limit::Silent { silent, gateways });
    }
    let asked = asked.unwrap_or(bounds.min);
    let right = bounds.clamp(asked);
    if asked > right {
        limits.push(Limit::Max { max: bounds.max });
    } else if asked < right {
        limits.push(Limit::Min { min: bounds.min });
    } else if asked == wanted && !readings.is_empty() {
        limits.push(Limit::Right);
    }
    let mut to = right;
    if right < wanted {
        to = bounds.clamp((*highest).clamp(right, wanted));
        if to > right {
            limits.push(Limit::Settling { highest: to, span: autoscale.down_after });
        }
    }
    let stepped = to.clamp(wanted - (wanted / 4).max(1).min(wanted), wanted.saturating_add(wanted.max(STEP_UP)));
    // Whatever the step: what is outside the limits comes back at once.
    let stepped = bounds.clamp(stepped);
    if stepped != to {
        limits.push(Limit::Stepwise { to: stepped });
    }
    Verdict { readings, right, to: stepped, limits }
}

/// What copies use, each for itself.
fn of_copies(metric: Metric, target: u64, means: impl Iterator<Item = Mean>, wanted: u32) -> Option<Reading> {
    let used: Vec<u64> = means.filter_map(Mean::mean).collect();
    let count = u64::try_from(used.len()).ok().filter(|count| *count > 0)?;
    let sum: u64 = used.iter().fold(0, |sum: u64, used| sum.saturating_add(*used));
    let load = used.iter().fold(0u64, |load, used| load.saturating_add(used.saturating_mul(WHOLE) / target.max(1)));
    let missing = u64::from(wanted).saturating_sub(count);
    let right = right((load, load.saturating_add(missing * WHOLE)), wanted, WHOLE - TOLERANCE);
    let copies = u32::try_from(count).unwrap_or(u32::MAX);
    Some(Reading { metric, mean: sum / count, target, copies, right })
}

/// What gateways send to all copies together.
fn requests(target: u64, flow: &Flow, wanted: u32) -> Option<Reading> {
    let all = flow.is_told().then_some(flow.millirequests)?;
    let load = all.saturating_mul(WHOLE) / target.max(1);
    let right = right((load, load.saturating_add(flow.missing(wanted) * WHOLE)), wanted, WHOLE - TOLERANCE);
    Some(Reading { metric: Metric::Rps, mean: all / u64::from(wanted.max(1)), target, copies: wanted, right })
}

/// A number for all copies together.
fn of_all(metric: Metric, target: u64, all: Option<u64>, wanted: u32) -> Option<Reading> {
    let all = all?;
    let load = all.saturating_mul(WHOLE) / target.max(1);
    let right = right((load, load), wanted, WHOLE - TOLERANCE);
    Some(Reading { metric, mean: all / u64::from(wanted.max(1)), target, copies: wanted, right })
}

/// How long it takes, whoever answers.
fn latency(target: u64, flow: &Flow, wanted: u32) -> Option<Reading> {
    let mean = flow.is_told().then(|| flow.latencies.p95_us())?;
    let load = u64::from(wanted).saturating_mul(mean.saturating_mul(WHOLE) / target.max(1));
    let right = right((load, load.saturating_add(flow.missing(wanted) * WHOLE)), wanted, WHOLE / 2);
    Some(Reading { metric: Metric::P95, mean, target, copies: wanted, right })
}

/// How many copies would have just enough to do: with a load of at least and at most so much altogether, and no
/// fewer than there are while each has `calm` or more.
fn right((low, high): (u64, u64), wanted: u32, calm: u64) -> u32 {
    let copies = |load: u64| u32::try_from(load.div_ceil(WHOLE)).unwrap_or(u32::MAX);
    let all = u64::from(wanted);
    if low > all * (WHOLE + TOLERANCE) {
        copies(low)
    } else if high < all * calm {
        copies(high).max(1)
    } else {
        wanted
    }
}

/// What all autoscaled services have been seen to do, by one manager.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Autoscaling {
    watched: BTreeMap<ServiceName, Watch>,
}

/// What one service has been seen to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watch {
    /// What it was when it was seen last; another number or version begins a new look.
    version: u64,
    wanted: u32,
    /// Since when its copies have been healthy without a break.
    healthy_since: BTreeMap<ReplicaId, Timestamp>,
    /// Since the last look.
    measured: BTreeMap<ReplicaId, Measured>,
    sampled: Option<Timestamp>,
    gateways: Gateways,
    looked: Timestamp,
    /// What was right when, newest last. One that a later one exceeds is of no use and left out, so the first
    /// is the highest.
    highest: VecDeque<(Timestamp, u32)>,
    /// What was found at the last look, and when that was.
    verdict: Option<(Timestamp, Verdict)>,
    /// What gateways had told by then.
    flow: Flow,
    /// It is to be asked for.
    is_due: bool,
}

impl Watch {
    fn new(service: &ServiceRecord, now: Timestamp) -> Watch {
        let (version, wanted) = (service.version, service.spec.replicas);
        Watch {
            version,
            wanted,
            healthy_since: BTreeMap::new(),
            measured: BTreeMap::new(),
            sampled: None,
            gateways: Gateways::default(),
            looked: now,
            // What was before is not known: until `down_after` is over it may have been needed.
            highest: VecDeque::from([(now, wanted)]),
            verdict: None,
            flow: Flow::default(),
            is_due: false,
        }
    }

    /// Notes what is right now, and says what was the most within the span.
    fn note(&mut self, now: Timestamp, right: u32, span: Span) -> u32 {
        while self.highest.back().is_some_and(|(_, other)| *other <= right) {
            self.highest.pop_back();
        }
        self.highest.push_back((now, right));
        while self.highest.len() > 1 && self.highest.front().is_some_and(|(at, _)| now.since(*at) >= span.0) {
            self.highest.pop_front();
        }
        self.highest.front().map_or(right, |(_, highest)| *highest)
    }

    fn begin_anew(&mut self, now: Timestamp) {
        self.measured.clear();
        self.gateways.begin_anew();
        (self.looked, self.is_due) = (now, false);
    }
}

/// A change that the leader is to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjustment {
    pub service: ServiceName,
    pub version: u64,
    pub from: u32,
    pub to: u32,
    /// For people.
    pub why: String,
}

/// What is known of one autoscaled service, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub bounds: Bounds,
    /// The hours that the limits come from.
    pub hours: Option<String>,
    pub wanted: u32,
    /// `None`: nobody has looked yet.
    pub verdict: Option<Verdict>,
    /// How long ago that was.
    pub looked: Option<Duration>,
    /// What gateways had told by then, if it goes by that.
    pub flow: Option<Flow>,
    /// How much a copy has to do, by the busiest metric.
    pub step: Option<Step>,
    /// What became of its number, newest first.
    pub changes: Vec<Change>,
}

/// A number of copies that was changed, as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub at: WallTime,
    pub from: u32,
    pub to: u32,
    pub why: String,
}

/// Changes that are told of a service.
const CHANGES_TOLD: usize = 5;

fn changes(state: &ClusterState, name: &ServiceName) -> Vec<Change> {
    let mine = state.events.iter().rev().filter_map(|event| match &event.what {
        Happening::ServiceAutoscaled { service, from, to, why } if service == name => {
            Some(Change { at: event.at, from: *from, to: *to, why: why.clone() })
        }
        _ => None,
    });
    mine.take(CHANGES_TOLD).collect()
}

/// What a manager sees at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// By its own monotonic clock.
    pub now: Timestamp,
    /// For schedules.
    pub wall: WallTime,
    pub state: &'a ClusterState,
    pub observed: &'a Observed,
    pub policy: &'a Policy,
}

impl Autoscaling {
    /// Takes in what is seen now. To be called often; it looks at each service when that is due.
    pub fn watch(&mut self, sight: &Sight<'_>) {
        let Sight { now, state, .. } = *sight;
        let mut copies: Option<BTreeMap<&ServiceName, Vec<&ReplicaRecord>>> = None;
        let autoscaled = |name: &ServiceName| state.services.get(name).and_then(|it| it.spec.autoscaled()).is_some();
        self.watched.retain(|name, _| autoscaled(name));
        for (name, service) in &state.services {
            let Some(autoscale) = service.spec.autoscaled() else { continue };
            let watch = self.watched.entry(name.clone()).or_insert_with(|| Watch::new(service, now));
            if (watch.version, watch.wanted) != (service.version, service.spec.replicas) {
                (watch.version, watch.wanted) = (service.version, service.spec.replicas);
                watch.begin_anew(now);
            }
            if watch.sampled.is_none_or(|sampled| now.since(sampled) >= SAMPLED_EVERY) {
                watch.sampled = Some(now);
                let copies = copies.get_or_insert_with(|| by_service(state));
                if autoscale.goes_by_traffic() {
                    watch.gateways.hear(now, name, &sight.observed.traffic);
                }
                sample(watch, copies.get(name).map(Vec::as_slice).unwrap_or_default(), autoscale, sight);
            }
            let rests = if service.stopped.is_some() {
                Some(Limit::Stopped)
            } else {
                let (version, verify_for) = (service.version, service.spec.update.verify_for);
                state.deploying(name).map(|open| Limit::Updating { version, stage: open.stage, verify_for })
            };
            if let Some(limit) = rests {
                watch.begin_anew(now);
                watch.note(now, watch.wanted, autoscale.down_after);
                let (right, to, limits) = (watch.wanted, watch.wanted, vec![limit]);
                watch.verdict = Some((now, Verdict { readings: Vec::new(), right, to, limits }));
            } else if now.since(watch.looked) >= autoscale.every.0 {
                look(watch, service, autoscale, sight);
            }
        }
        self.find_room(sight);
    }

    /// Leaves out what would find no room. The planner itself is asked, about all that are to grow together.
    fn find_room(&mut self, sight: &Sight<'_>) {
        let asks = |watch: &&mut Watch| watch.is_due && watch.looked == sight.now;
        let grows = |watch: &Watch| watch.verdict.as_ref().is_some_and(|(_, verdict)| verdict.to > watch.wanted);
        if !self.watched.values_mut().any(|watch| asks(&watch) && grows(watch)) {
            return;
        }
        let mut state = sight.state.clone();
        for (name, watch) in self.watched.iter_mut().filter(|(_, watch)| watch.is_due && grows(watch)) {
            let Some((_, verdict)) = &mut watch.verdict else { continue };
            let Some(service) = state.services.get_mut(name) else { continue };
            service.spec.replicas = verdict.to;
            if watch.looked != sight.now {
                continue;
            }
            let planned = plan(&state, sight.observed, sight.policy);
            let missing = planned.held.iter().filter(|held| held.service == *name).filter_map(|held| {
                if let HeldReason::NoNode { more, .. } = held.reason { Some(more.saturating_add(1)) } else { None }
            });
            let missing = missing.max().unwrap_or(0);
            if missing > 0 {
                verdict.to = verdict.to.saturating_sub(missing).max(watch.wanted);
                verdict.limits.push(Limit::NoRoom { missing });
                watch.is_due = verdict.to != watch.wanted;
                if let Some(service) = state.services.get_mut(name) {
                    service.spec.replicas = verdict.to;
                }
            }
        }
    }

    /// What is to be asked for now, each once: what is lost on its way is found again by the next look.
    pub fn due(&mut self) -> Vec<Adjustment> {
        let due = self.watched.iter_mut().filter(|(_, watch)| watch.is_due);
        due.filter_map(|(name, watch)| {
            watch.is_due = false;
            let (_, verdict) = watch.verdict.as_ref()?;
            let (version, from, to) = (watch.version, watch.wanted, verdict.to);
            Some(Adjustment { service: name.clone(), version, from, to, why: reason(verdict, from) })
        })
        .collect()
    }

    /// What is known of each autoscaled service.
    #[must_use]
    pub fn reports(&self, state: &ClusterState, now: Timestamp, wall: WallTime) -> BTreeMap<ServiceName, Report> {
        let one = |name: &ServiceName| Some((name.clone(), self.report(state, name, now, wall)?));
        state.services.keys().filter_map(one).collect()
    }

    /// `None`: the service is not autoscaled.
    #[must_use]
    pub fn report(&self, state: &ClusterState, name: &ServiceName, now: Timestamp, wall: WallTime) -> Option<Report> {
        let service = state.services.get(name)?;
        let autoscale = service.spec.autoscaled()?;
        let (bounds, hours) = autoscale.bounds(wall);
        let watch = self.watched.get(name);
        let (looked, verdict) = watch.and_then(|watch| watch.verdict.clone()).unzip();
        let load = verdict.iter().flat_map(|verdict| &verdict.readings).map(Reading::load).max();
        Some(Report {
            bounds,
            hours: hours.map(ToString::to_string),
            wanted: service.spec.replicas,
            looked: looked.map(|looked| now.since(looked)),
            flow: watch.filter(|_| autoscale.goes_by_traffic()).map(|watch| watch.flow.clone()),
            verdict,
            step: load.map(Step::of),
            changes: changes(state, name),
        })
    }
}

/// Copies that run, sorted once for all services.
fn by_service(state: &ClusterState) -> BTreeMap<&ServiceName, Vec<&ReplicaRecord>> {
    let mut copies: BTreeMap<&ServiceName, Vec<&ReplicaRecord>> = BTreeMap::new();
    for replica in state.replicas.values().filter(|replica| replica.phase == Phase::Run) {
        copies.entry(&replica.service).or_default().push(replica);
    }
    copies
}

/// Takes a sample of each copy that counts.
fn sample(watch: &mut Watch, copies: &[&ReplicaRecord], autoscale: &Autoscale, sight: &Sight<'_>) {
    let Sight { now, observed, .. } = *sight;
    let healthy: Vec<ReplicaId> = copies
        .iter()
        .filter(|replica| !observed.unreachable_for.contains_key(&replica.node))
        .filter(|replica| observed.replicas.get(&replica.id) == Some(&ReplicaState::Healthy))
        .map(|replica| replica.id)
        .collect();
    watch.healthy_since.retain(|id, _| healthy.contains(id));
    watch.measured.retain(|id, _| healthy.contains(id));
    for id in healthy {
        let since = *watch.healthy_since.entry(id).or_insert(now);
        if now.since(since) < autoscale.warmup.0 {
            continue;
        }
        if let Some(usage) = observed.usage.get(&id) {
            watch.measured.entry(id).or_default().add(usage);
        }
        if let Some(scraped) = observed.scraped.get(&id) {
            watch.measured.entry(id).or_default().tell(*scraped);
        }
    }
}

fn look(watch: &mut Watch, service: &ServiceRecord, autoscale: &Autoscale, sight: &Sight<'_>) {
    let ServiceSpec { resources, replicas, .. } = service.spec;
    let (bounds, _) = autoscale.bounds(sight.wall);
    let measured: Vec<Measured> = std::mem::take(&mut watch.measured).into_values().collect();
    let flow = watch.gateways.flow(sight.now, autoscale.down_after.0);
    watch.gateways.begin_anew();
    let (wanted, measured) = (replicas, &measured);
    let counted = sight.observed.counted.get(&service.spec.name);
    let untold = sight.observed.untold.get(&service.spec.name).map(String::as_str);
    let question =
        Question { autoscale, bounds, resources, wanted, measured, flow: &flow, counted, untold, highest: 0 };
    let right = judge(&question).right;
    let highest = watch.note(sight.now, right, autoscale.down_after);
    let verdict = judge(&Question { highest, ..question });
    watch.looked = sight.now;
    watch.is_due = verdict.to != replicas;
    watch.verdict = Some((sight.now, verdict));
    watch.flow = flow;
}

/// Why the number changes, in one line.
fn reason(verdict: &Verdict, from: u32) -> String {
    let busiest = verdict.readings.iter().max_by_key(|reading| reading.right);
    let mut why = match busiest {
        Some(reading) if reading.right != from => {
            let load = reading.percent();
            format!("{} is at {load}% of its target, {} would do", reading.metric.name(), reading.right)
        }
        Some(_) | None => "its limits".to_owned(),
    };
    for limit in &verdict.limits {
        match limit {
            Limit::Min { .. } | Limit::Max { .. } | Limit::Stepwise { .. } | Limit::NoRoom { .. } => {
                why = format!("{why}; {limit}");
            }
            Limit::Stopped
            | Limit::Updating { .. }
            | Limit::Untold { .. }
            | Limit::Unmeasured { .. }
            | Limit::Partly { .. }
            | Limit::NoNumber { .. }
            | Limit::Silent { .. }
            | Limit::Right
            | Limit::Settling { .. } => {}
        }
    }
    why
}
