//! What users say that services are: a whole spec, or only how many copies.

use super::{Change, Changes, ClusterState, ServiceRecord};
use crate::command::Refusal;
use crate::deployment::Cause;
use crate::event::Happening;
use crate::id::ServiceName;
use crate::spec::{Mode, RouteSpec, ServiceSpec, SpecDocument};
use std::collections::BTreeSet;

impl ClusterState {
    pub(super) fn apply_spec(&self, changes: &mut Changes, document: &SpecDocument) -> Result<(), Refusal> {
        document.validate()?;
        let ours: BTreeSet<&ServiceName> = document.services.iter().map(|spec| &spec.name).collect();
        for route in &document.routes {
            if !ours.contains(&route.service) {
                return Err(Refusal::RouteWithoutService { service: route.service.clone() });
            }
            let same = |other: &RouteSpec| {
                (&other.listen, &other.host, &other.path) == (&route.listen, &route.host, &route.path)
            };
            let owner = self
                .services
                .values()
                .filter(|service| !ours.contains(&service.spec.name))
                .find(|service| service.routes.iter().any(same));
            if let Some(owner) = owner {
                return Err(Refusal::RouteTaken {
                    listen: route.listen.clone(),
                    host: route.host.clone(),
                    path: route.path.clone(),
                    owner: owner.spec.name.clone(),
                });
            }
        }
        for spec in &document.services {
            if let Some(vip) = &spec.vip {
                self.is_free(vip.address.ip(), |name| ours.contains(name))?;
            }
        }
        for spec in &document.services {
            let routes: Vec<RouteSpec> =
                document.routes.iter().filter(|route| route.service == spec.name).cloned().collect();
            let known = self.services.get(&spec.name);
            // How many copies an autoscaled service has is not the file's business.
            let spec = &spec.settled(known.map(|known| known.spec.replicas));
            let same_program = known.is_some_and(|known| known.spec.runs_the_same(spec));
            if same_program && known.is_some_and(|known| known.spec == *spec && known.routes == routes) {
                continue;
            }
            changes.event(Happening::ServiceApplied { service: spec.name.clone(), replicas: spec.replicas });
            let (stopped, moment) = changes.switched(known, spec);
            let record = |version| ServiceRecord { spec: spec.clone(), routes, version, stopped, moment };
            match known.filter(|_| same_program) {
                Some(known) => changes.list.push(Change::Service(record(known.version))),
                None => self.deploy(changes, record(self.next_version(&spec.name)), Cause::Applied),
            }
        }
        Ok(())
    }

    pub(super) fn scale(&self, changes: &mut Changes, name: &ServiceName, replicas: u32) -> Result<(), Refusal> {
        let known = self.service(name)?;
        let fixed = match known.spec.mode {
            Mode::EveryNode => Some("runs once on each node that meets `place.require`"),
            Mode::Singleton if replicas != 1 => Some("is a singleton and runs once"),
            Mode::Singleton | Mode::Replicated | Mode::ActivePassive => None,
        };
        if let Some(why) = fixed {
            return Err(Refusal::NotScalable { service: name.clone(), why: why.to_owned() });
        }
        self.may_be_scaled(name)?;
        if !(1..=ServiceSpec::MAX_REPLICAS).contains(&replicas) {
            return Err(Refusal::Invalid {
                field: "replicas".into(),
                problem: format!("is {replicas}; it must be 1 to {}", ServiceSpec::MAX_REPLICAS),
            });
        }
        if known.spec.replicas == replicas {
            return Ok(());
        }
        let mut service = known.clone();
        service.spec.replicas = replicas;
        changes.list.push(Change::Service(service));
        changes.event(Happening::ServiceScaled { service: name.clone(), from: known.spec.replicas, to: replicas });
        Ok(())
    }
}
