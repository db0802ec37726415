//! What every part of a gateway shares: the table in force, the endpoints, the counters.

use crate::counters::Counters;
use crate::downstream::Clients;
use crate::endpoint::Endpoint;
use crate::table::{Choice, Service, Table};
use crate::{GatewayConfig, Limits, check};
use arc_swap::ArcSwapOption;
use quorate_model::id::{ReplicaId, ServiceName};
use quorate_model::observed::GatewayReport;
use quorate_model::routing::{EndpointState, RoutingTable};
use quorate_model::traffic::Traffic;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Most services that a report tells of: it goes to every manager each second, with some 200 bytes for each.
const TOLD_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Plane {
    pub config: GatewayConfig,
    pub limits: Limits,
    /// Where the default listener listens.
    pub address: SocketAddr,
    /// None until the first table.
    pub table: ArcSwapOption<Table>,
    pub clients: Clients,
    /// Counts changes of what may be chosen: tables and passed checks. Requests that wait watch it.
    pub changed: watch::Sender<u64>,
    /// The table in force as it came, for those who keep or report it.
    pub received: watch::Sender<Option<Arc<RoutingTable>>>,
    /// The last request of an endpoint that is no longer offered has ended.
    pub drained: Arc<Notify>,
    requests: AtomicU64,
    failed: AtomicU64,
    began: Instant,
    installed: Mutex<Installed>,
}

/// Changed by [`Plane::install`] only.
#[derive(Debug, Default)]
struct Installed {
    /// The table in force is the one of an earlier run: any manager's replaces it.
    provisional: bool,
    endpoints: BTreeMap<(ReplicaId, SocketAddr), Known>,
    /// Of each service in force.
    counters: BTreeMap<ServiceName, Arc<Counters>>,
}

#[derive(Debug)]
struct Known {
    endpoint: Arc<Endpoint>,
    check: Option<Check>,
}

#[derive(Debug)]
struct Check {
    path: Option<String>,
    task: AbortHandle,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a table comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Manager,
    Snapshot,
}

impl Plane {
    pub(crate) fn new(config: GatewayConfig, limits: Limits, address: SocketAddr) -> Self {
        let received = config.beside.as_ref().map_or_else(|| watch::Sender::new(None), |beside| beside.tables.clone());
        Plane {
            config,
            limits,
            address,
            table: ArcSwapOption::empty(),
            clients: Clients::default(),
            changed: watch::Sender::new(0),
            received,
            drained: Arc::new(Notify::new()),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            began: Instant::now(),
            installed: Mutex::default(),
        }
    }

    /// Puts a table in force, unless it is older than the one that is. Returns whether it did.
    ///
    /// A table of the same revision is taken: it may differ in what was observed.
    pub(crate) fn install(self: &Arc<Self>, new: RoutingTable, origin: Origin) -> bool {
        let mut installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &*self.received.borrow()
            && !installed.provisional
            && (new.revision < current.revision || new == **current)
        {
            return false;
        }
        installed.provisional = origin == Origin::Snapshot;
        let mut before = std::mem::take(&mut installed.endpoints);
        let mut counters = std::mem::take(&mut installed.counters);
        let mut services = Vec::with_capacity(new.services.len());
        for upstream in &new.services {
            let mut choices = Vec::with_capacity(upstream.endpoints.len());
            for offered in &upstream.endpoints {
                let key = (offered.replica, offered.address);
                let mut known = before.remove(&key).unwrap_or_else(|| Known {
                    endpoint: Arc::new(Endpoint::new(
                        offered.replica,
                        offered.address,
                        &self.limits,
                        self.drained.clone(),
                    )),
                    check: None,
                });
                let open = offered.state != EndpointState::Draining || !self.config.draining;
                if open {
                    known.endpoint.set_offered(true);
                }
                if !open || !self.config.active_checks {
                    known.check = None;
                } else if known.check.as_ref().is_none_or(|check| check.path != upstream.check_path) {
                    let task = check::start(self.clone(), known.endpoint.clone(), upstream.check_path.clone());
                    known.check = Some(Check { path: upstream.check_path.clone(), task });
                }
                choices.push(Choice { endpoint: known.endpoint.clone(), state: offered.state });
                installed.endpoints.insert(key, known);
            }
            let name = &upstream.service;
            let counters = counters.remove(name).unwrap_or_default();
            installed.counters.insert(name.clone(), counters.clone());
            services.push(Service::new(name.clone(), choices, counters));
        }
        self.table.store(Some(Arc::new(Table::new(&new.routes, services, self.address.port()))));
        // From here on no request finds them in the table; only then their offer is taken back.
        if self.config.draining {
            for offered in new.services.iter().flat_map(|upstream| &upstream.endpoints) {
                if offered.state == EndpointState::Draining
                    && let Some(known) = installed.endpoints.get(&(offered.replica, offered.address))
                {
                    known.endpoint.set_offered(false);
                }
            }
        }
        for (key, mut known) in before {
            known.endpoint.set_offered(false);
            known.check = None;
            if known.endpoint.in_flight() > 0 {
                installed.endpoints.insert(key, known);
            }
        }
        drop(installed);
        self.received.send_replace(Some(Arc::new(new)));
        self.tell_changed();
        true
    }

    /// Looks at each endpoint whether requests wait there in vain.
    pub(crate) fn look(&self) {
        let installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        installed.endpoints.values().for_each(|known| known.endpoint.look());
    }

    /// Requests that wait for an endpoint look again.
    pub(crate) fn tell_changed(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Closes connections to endpoints that wait too long, and forgets endpoints that have drained.
    pub(crate) fn tidy(&self, rounds: u32) {
        let mut installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.received.borrow().clone();
        installed.endpoints.retain(|key, known| {
            known.endpoint.tidy(rounds);
            known.endpoint.is_offered()
                || known.endpoint.in_flight() > 0
                || table.as_ref().is_some_and(|table| {
                    table
                        .services
                        .iter()
                        .flat_map(|upstream| &upstream.endpoints)
                        .any(|offered| (offered.replica, offered.address) == *key)
                })
        });
    }

    pub(crate) fn stop_checks(&self) {
        self.installed.lock().unwrap_or_else(PoisonError::into_inner).endpoints.clear();
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// What there has been to do for those services of which managers asked.
    fn traffic(&self, table: &RoutingTable) -> Traffic {
        let installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = table.services.iter().filter(|upstream| upstream.counted).map(|upstream| &upstream.service);
        let told = asked.filter_map(|name| Some(installed.counters.get(name)?.tell(name.clone())));
        Traffic {
            uptime_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            services: told.take(TOLD_MAX).collect(),
        }
    }

    /// None until a table is in force.
    pub(crate) fn report(&self) -> Option<GatewayReport> {
        // The revision is read before what is busy: a request that an older table let through is
        // then either still counted or over.
        let table = self.received.borrow().clone()?;
        let revision = table.revision;
        let busy = {
            let installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
            let mut busy: Vec<ReplicaId> = installed
                .endpoints
                .values()
                .filter(|known| self.config.draining && !known.endpoint.is_offered() && known.endpoint.in_flight() > 0)
                .map(|known| known.endpoint.replica)
                .collect();
            busy.dedup();
            busy
        };
        Some(GatewayReport {
            gateway: self.config.name.clone(),
            url: self.config.url.clone(),
            revision,
            busy,
            requests: self.requests.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            vips: self.config.beside.as_ref().map(|beside| beside.vips.borrow().clone()).unwrap_or_default(),
            traffic: self.traffic(&table),
        })
    }
}
