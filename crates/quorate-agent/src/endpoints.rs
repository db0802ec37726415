//! Where the services are that a replica uses: for its environment, and for its files, which are made anew when
//! that changes.
//!
//! # Invariants
//! - What is in the environment does not go stale: names, and numbers that the other service's spec fixes.
//! - A list that was not empty does not become empty: where nothing is to be reached, the last that was known is as
//!   good as any, and a server that has just started has not heard of anything yet.

use minijinja::Value;
use quorate_model::discovery::{Directory, Instance, ZONE};
use quorate_model::id::ServiceName;
use quorate_model::spec::ServiceSpec;
use std::collections::BTreeMap;

/// Of each service that is used, where it is reached, by ordinal.
pub(crate) type Endpoints = BTreeMap<ServiceName, Vec<Endpoint>>;

/// One replica of a service that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    instance: Instance,
    /// The number of its main port, if it has ports.
    port: Option<u16>,
}

/// Where everything is by now that `spec` uses, as far as it was not known `before`.
pub(crate) fn of(spec: &ServiceSpec, directory: &Directory, before: &Endpoints) -> Endpoints {
    let of = |service: &ServiceName| {
        let listed = directory.services.get(service);
        let found: Vec<Endpoint> = listed
            .into_iter()
            .flat_map(|listed| {
                listed.reachable().map(|instance| Endpoint {
                    instance: instance.clone(),
                    port: listed.main_port.as_ref().and_then(|name| instance.ports.get(name)).copied(),
                })
            })
            .collect();
        if found.is_empty() { before.get(service).cloned().unwrap_or_default() } else { found }
    };
    spec.uses.iter().map(|service| (service.clone(), of(service))).collect()
}

/// As a template sees them.
pub(crate) fn value(endpoints: &Endpoints) -> Value {
    let one = |Endpoint { instance, port }: &Endpoint| {
        let ports = instance.ports.iter().map(|(name, port)| (name.as_str(), *port));
        Value::from_pairs([
            ("node", Value::from(instance.node_name.as_str())),
            ("address", Value::from(instance.address.to_string())),
            ("port", port.map_or(Value::UNDEFINED, Value::from)),
            ("ports", Value::from_pairs(ports)),
            ("ordinal", Value::from(instance.ordinal)),
        ])
    };
    let all =
        endpoints.iter().map(|(name, list)| (name.as_str(), Value::from(list.iter().map(one).collect::<Vec<_>>())));
    Value::from_pairs(all)
}

/// `QUORATE_SERVICE_NAME_HOST`, and `_PORT` where it is the same wherever a replica runs.
pub(crate) fn variables(spec: &ServiceSpec, directory: &Directory) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for service in &spec.uses {
        let name = service.as_str().to_uppercase().replace('-', "_");
        all.insert(format!("QUORATE_SERVICE_{name}_HOST"), format!("{service}.{ZONE}"));
        if let Some(port) = directory.services.get(service).and_then(|listed| listed.fixed_port) {
            all.insert(format!("QUORATE_SERVICE_{name}_PORT"), port.to_string());
        }
    }
    all
}
