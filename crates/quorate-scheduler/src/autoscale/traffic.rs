//! How much there is to do for a service, as its gateways tell it.
//!
//! Requests belong to the service and not to a copy: what all gateways had since the last look is added up, by
//! each one's own clock.
//!
//! # Invariants
//! - A gateway that is silent takes nothing of what the others told away.
//! - One that begins anew is not taken for one that had nothing to do.

use quorate_model::id::ServiceName;
use quorate_model::time::Timestamp;
use quorate_model::traffic::{Latencies, ServiceTraffic, Traffic};
use std::collections::BTreeMap;
use std::time::Duration;

/// Gateways tell each second, through a manager that tells each second; two of each may be lost.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// One that is silent is missed for this long at least: a gateway takes a few seconds to find another manager.
const MISSED_FOR: Duration = Duration::from_secs(15);

/// What gateways told of one service since the last look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Gateways {
    heard: BTreeMap<String, Heard>,
}

/// The counters of one gateway at the last look, and now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    before: Counters,
    now: Counters,
    /// When they moved last.
    at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Counters {
    uptime_ms: u64,
    of: ServiceTraffic,
}

/// What all of them told together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flow {
    /// Gateways that have told of it lately.
    pub gateways: u32,
    /// Those of them that are silent now, or were heard only once.
    pub silent: u32,
    /// In thousandths of a request a second.
    pub millirequests: u64,
    /// Requests that wait for their response.
    pub waiting: u64,
    pub latencies: Latencies,
}

impl Flow {
    /// `false`: there is nobody to go by.
    pub(crate) fn is_told(&self) -> bool {
        self.silent < self.gateways
    }

    /// As many copies as gateways that are silent would keep busy, if each had as much to do as the others.
    pub(crate) fn missing(&self, wanted: u32) -> u64 {
        let all = u64::from(wanted) * u64::from(self.silent);
        all.div_ceil(u64::from(self.gateways.max(1)))
    }
}

impl Gateways {
    pub(crate) fn hear(&mut self, now: Timestamp, service: &ServiceName, traffic: &BTreeMap<String, Traffic>) {
        for (gateway, told) in traffic {
            let Some(of) = told.services.iter().find(|of| of.service == *service) else { continue };
            let counters = Counters { uptime_ms: told.uptime_ms, of: of.clone() };
            match self.heard.get_mut(gateway) {
                Some(heard) if heard.now.uptime_ms == counters.uptime_ms => {}
                Some(heard) if heard.now.uptime_ms < counters.uptime_ms && heard.now.of.requests <= of.requests => {
                    (heard.now, heard.at) = (counters, now);
                }
                Some(_) | None => {
                    let heard = Heard { before: counters.clone(), now: counters, at: now };
                    self.heard.insert(gateway.clone(), heard);
                }
            }
        }
    }

    /// What was told since the last look. One that has been silent for `missed_for` is forgotten.
    pub(crate) fn flow(&mut self, now: Timestamp, missed_for: Duration) -> Flow {
        let missed_for = missed_for.max(MISSED_FOR);
        self.heard.retain(|_, heard| now.since(heard.at) < missed_for);
        let mut flow = Flow::default();
        for Heard { before, now: last, at } in self.heard.values() {
            flow.gateways += 1;
            let span_ms = last.uptime_ms.saturating_sub(before.uptime_ms);
            if span_ms == 0 || now.since(*at) >= SILENT_AFTER {
                flow.silent += 1;
            }
            if span_ms > 0 {
                let requests = last.of.requests.saturating_sub(before.of.requests);
                let rate = u128::from(requests) * 1_000_000 / u128::from(span_ms);
                flow.millirequests = flow.millirequests.saturating_add(u64::try_from(rate).unwrap_or(u64::MAX));
                flow.waiting = flow.waiting.saturating_add(last.of.waiting);
                flow.latencies = flow.latencies.plus(&last.of.latencies.since(&before.of.latencies));
            }
        }
        flow
    }

    /// What is told from now on counts.
    pub(crate) fn begin_anew(&mut self) {
        for heard in self.heard.values_mut() {
            heard.before = heard.now.clone();
        }
    }
}
