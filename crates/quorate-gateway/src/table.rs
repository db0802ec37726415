//! A routing table in the form in which requests ask it.
//!
//! Built once per change, never changed afterwards; a request takes the one in force with a single
//! atomic load. What changes from request to request lives in the [`Endpoint`]s it points to.
//!
//! # Invariants
//! - The more exact host wins over `*`, then the longer path over the shorter one.
//! - A path prefix matches whole segments: `/api` takes `/api` and `/api/x`, never `/apix`.

use crate::counters::Counters;
use crate::endpoint::{Endpoint, InFlight};
use quorate_model::id::{ReplicaId, ServiceName};
use quorate_model::routing::EndpointState;
use quorate_model::spec::RouteSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A listener: 0 is `default`, any other number a port.
pub(crate) type Listen = u16;

/// The listener named `default`.
pub(crate) const DEFAULT: Listen = 0;

#[derive(Debug, Default)]
pub(crate) struct Table {
    listeners: BTreeMap<Listen, Hosts>,
}

#[derive(Debug, Default)]
struct Hosts {
    exact: BTreeMap<String, Vec<Rule>>,
    any: Vec<Rule>,
}

/// Rules of one host are ordered by falling length of their path.
#[derive(Debug)]
struct Rule {
    /// Without a slash at its end, so `/` is the empty text.
    path: String,
    service: Arc<Service>,
}

/// A service with the endpoints that may be chosen.
#[derive(Debug)]
pub(crate) struct Service {
    pub name: ServiceName,
    pub choices: Vec<Choice>,
    pub counters: Arc<Counters>,
    /// Where the next search begins, so that equals take turns.
    next: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Choice {
    pub endpoint: Arc<Endpoint>,
    pub state: EndpointState,
}

/// What a request has learned about endpoints on its way. Empty, and then without memory of its
/// own, unless something failed.
#[derive(Debug, Default)]
pub(crate) struct Avoid {
    /// Not to be tried again until a pause is over.
    pub refused: Vec<ReplicaId>,
    /// Tried again only if there is nothing else.
    pub lost: Vec<ReplicaId>,
}

/// An endpoint was found.
#[derive(Debug)]
pub(crate) struct Pick {
    pub endpoint: InFlight,
    /// Whether another one could be chosen if this one fails.
    pub alternative: bool,
}

impl Service {
    pub(crate) fn new(name: ServiceName, choices: Vec<Choice>, counters: Arc<Counters>) -> Self {
        Service { name, choices, counters, next: AtomicUsize::new(0) }
    }

    /// The endpoint with the fewest requests in flight in the best class that has any: healthy,
    /// doubtful, then those that are ejected, because an ejection must not leave nothing.
    pub(crate) fn pick(&self, avoid: &Avoid, drains: bool) -> Option<Pick> {
        let count = self.choices.len();
        if count == 0 {
            return None;
        }
        let start = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let mut best: Option<(u8, usize, &Arc<Endpoint>)> = None;
        let mut candidates = 0_usize;
        for offset in 0..count {
            let choice = &self.choices[(start + offset) % count];
            let endpoint = &choice.endpoint;
            if avoid.refused.contains(&endpoint.replica) {
                continue;
            }
            let state = match choice.state {
                EndpointState::Healthy => 0,
                EndpointState::Doubtful => 1,
                EndpointState::Draining if drains => continue,
                EndpointState::Draining => 0,
            };
            candidates += 1;
            let class =
                state + 2 * u8::from(endpoint.is_ejected()) + 4 * u8::from(avoid.lost.contains(&endpoint.replica));
            let load = endpoint.in_flight();
            if best.is_none_or(|(best_class, best_load, _)| (class, load) < (best_class, best_load)) {
                best = Some((class, load, endpoint));
            }
        }
        let (_, _, endpoint) = best?;
        let begun = InFlight::begin(endpoint);
        // Counted first and asked afterwards: whoever reports "not busy" after it has taken the offer
        // back cannot miss this request, on whichever thread it runs.
        (!drains || endpoint.is_offered()).then_some(Pick { endpoint: begun, alternative: candidates > 1 })
    }
}

impl Table {
    /// Routes of services that the table does not know are kept: they have nothing to choose yet.
    pub(crate) fn new(routes: &[RouteSpec], services: Vec<Service>, default_port: u16) -> Self {
        let mut services: BTreeMap<ServiceName, Arc<Service>> =
            services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
        let mut table = Table::default();
        for route in routes {
            let Some(listen) = parse_listen(&route.listen, default_port) else {
                tracing::warn!(listen = %route.listen, service = %route.service,
                    "a route is left out: its listener is neither `default` nor `:PORT`");
                continue;
            };
            let service = services
                .entry(route.service.clone())
                .or_insert_with(|| Arc::new(Service::new(route.service.clone(), Vec::new(), Arc::default())))
                .clone();
            let hosts = table.listeners.entry(listen).or_default();
            let rules = if route.host == "*" {
                &mut hosts.any
            } else {
                hosts.exact.entry(route.host.to_ascii_lowercase()).or_default()
            };
            rules.push(Rule { path: route.path.trim_end_matches('/').to_owned(), service });
            // Stable: of two equal routes the one that was written first wins.
            rules.sort_by_key(|rule| std::cmp::Reverse(rule.path.len()));
        }
        table
    }

    /// The ports that routes ask for besides the default listener.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.listeners.keys().copied().filter(|&listen| listen != DEFAULT).collect()
    }

    /// `host` is the value of the Host header, with its port if it has one.
    pub(crate) fn route(&self, listen: Listen, host: &str, path: &str) -> Option<&Arc<Service>> {
        let hosts = self.listeners.get(&listen)?;
        let exact = if hosts.exact.is_empty() { None } else { find_host(&hosts.exact, without_port(host)) };
        exact.and_then(|rules| find_path(rules, path)).or_else(|| find_path(&hosts.any, path))
    }
}

fn parse_listen(text: &str, default_port: u16) -> Option<Listen> {
    if text == "default" {
        return Some(DEFAULT);
    }
    let port: u16 = text.strip_prefix(':')?.parse().ok()?;
    match port {
        0 => None,
        port if port == default_port => Some(DEFAULT),
        port => Some(port),
    }
}

fn find_host<'a>(hosts: &'a BTreeMap<String, Vec<Rule>>, host: &str) -> Option<&'a Vec<Rule>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        hosts.get(&host.to_ascii_lowercase())
    } else {
        hosts.get(host)
    }
}

fn find_path<'a>(rules: &'a [Rule], path: &str) -> Option<&'a Arc<Service>> {
    rules.iter().find(|rule| matches_segments(&rule.path, path)).map(|rule| &rule.service)
}

fn matches_segments(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

fn without_port(host: &str) -> &str {
    // The colons of an IPv6 address are inside brackets.
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, &str, &str, &str)]) -> Table {
        let routes: Vec<RouteSpec> = routes
            .iter()
            .map(|(listen, host, path, service)| RouteSpec {
                listen: (*listen).into(),
                host: (*host).into(),
                path: (*path).into(),
                service: service.parse().unwrap(),
                balance: quorate_model::spec::Balance::Leastconn,
            })
            .collect();
        Table::new(&routes, Vec::new(), 8000)
    }

    fn found<'a>(table: &'a Table, listen: Listen, host: &str, path: &str) -> Option<&'a str> {
        table.route(listen, host, path).map(|service| service.name.as_str())
    }

    #[test]
    fn the_exact_host_wins_then_the_longer_path() {
        let table = table(&[
            ("default", "*", "/", "any"),
            ("default", "*", "/api/v2", "any-v2"),
            ("default", "*", "/api", "any-api"),
            ("default", "Shop.example", "/", "shop"),
            ("default", "shop.example", "/api/", "shop-api"),
        ]);
        for (host, path, service) in [
            ("other.example", "/", "any"),
            ("other.example", "/api", "any-api"),
            ("other.example", "/api/v2/x", "any-v2"),
            ("other.example", "/api/v22", "any-api"),
            ("other.example", "/apix", "any"),
            ("shop.example", "/", "shop"),
            ("SHOP.example:8000", "/api", "shop-api"),
            ("shop.example.", "/api/v2", "shop-api"),
            ("[::1]:8000", "/", "any"),
            ("", "/", "any"),
        ] {
            assert_eq!(found(&table, DEFAULT, host, path), Some(service), "{host}{path}");
        }
    }

    #[test]
    fn an_exact_host_without_a_fitting_path_falls_back_to_any_host() {
        let table = table(&[("default", "a.example", "/app", "app"), ("default", "*", "/", "any")]);
        assert_eq!(found(&table, DEFAULT, "a.example", "/"), Some("any"));
        let narrow = self::table(&[("default", "a.example", "/app", "app")]);
        assert_eq!(found(&narrow, DEFAULT, "a.example", "/"), None);
    }

    #[test]
    fn listeners_are_apart_and_the_default_port_is_the_default_listener() {
        let table = table(&[(":9000", "*", "/", "nine"), (":8000", "*", "/", "eight"), ("web", "*", "/x", "bad")]);
        assert_eq!(found(&table, 9000, "", "/"), Some("nine"));
        assert_eq!(found(&table, DEFAULT, "", "/x"), Some("eight"));
        assert_eq!(table.ports(), BTreeSet::from([9000]));
    }
}
