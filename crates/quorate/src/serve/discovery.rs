//! Where services are reached, as this node sees it: what DNS and templates answer from, made by the core's thread with each
//! change as the gateways' table is.

use super::view;
use quorate_model::discovery::{Directory, Instance, Listed};
use quorate_model::routing::EndpointState;
use quorate_model::spec::{Mode, Port, ServiceSpec};
use quorate_model::state::{ClusterState, ReplicaRecord};
use quorate_node::Node;
use std::cmp::Reverse;

/// Everything that accepts connections, by service.
pub(super) fn directory(node: &Node) -> Directory {
    let state = node.state();
    let listed = |spec: &ServiceSpec| {
        let mine = state.replicas.values().filter(|replica| replica.service == spec.name);
        let counts = mine.filter(|replica| spec.mode != Mode::Singleton || is_newest(state, replica));
        let mut found: Vec<(&ReplicaRecord, Instance)> =
            counts.filter_map(|replica| Some((replica, instance(node, replica)?))).collect();
        found.sort_by_key(|(replica, _)| (replica.ordinal, Reverse((replica.version, replica.revision)), replica.id));
        Listed {
            main_port: spec.main_port().map(str::to_owned),
            fixed_port: spec.main_port().and_then(|name| match spec.ports.get(name)? {
                Port::Fixed(number) => Some(*number),
                Port::Auto => None,
            }),
            ports: spec.ports.keys().cloned().collect(),
            instances: found.into_iter().map(|(_, instance)| instance).collect(),
        }
    };
    let services = state.services.iter().map(|(name, service)| (name.clone(), listed(&service.spec)));
    Directory { revision: state.planned_on.0, services: services.collect() }
}

/// Whether it holds the newest epoch that was given to anybody.
fn is_newest(state: &ClusterState, replica: &ReplicaRecord) -> bool {
    let holder = state.leases.get(&replica.service).and_then(|lease| lease.holder);
    holder.is_some_and(|holder| holder.replica == replica.id)
}

fn instance(node: &Node, replica: &ReplicaRecord) -> Option<Instance> {
    let reached = view::reached(node, replica)?;
    // What is being retired gets nothing new, from gateways and from clients alike.
    let wanted = reached.state != EndpointState::Draining;
    wanted.then(|| Instance {
        replica: replica.id,
        ordinal: replica.ordinal,
        node: replica.node,
        node_name: node.state().nodes.get(&replica.node).map(|record| record.identity.name.clone()).unwrap_or_default(),
        address: reached.host,
        ports: reached.status.ports.clone(),
        state: reached.state,
    })
}
