//! The last thing that happens in a run: a server of a cluster that is well again loses its power for good. What must
//! run once runs elsewhere in time, and in the end everything is where the leader's forecast (`whatif kill`) had it.

use crate::agent::Single;
use crate::run::RECOVERS;
use crate::world::World;
use quorate_model::assignment::Phase;
use quorate_model::id::{NodeId, ServiceName};
use quorate_model::lease::FAILOVER_DEFAULT;
use quorate_model::spec::{Mode, WithoutQuorum};
use quorate_model::state::{ClusterState, ReplicaRecord, ServiceRecord};
use quorate_model::time::Timestamp;
use quorate_node::{Event, Ticket};
use quorate_scheduler::Fault::Kill;
use quorate_scheduler::Survey;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A loss is seen by then, and a successor of the leader elected.
const SEEN_WITHIN: Duration = Duration::from_secs(4);

/// Beyond a failover time, for the slowest disks and networks of all scenarios: a shipped cluster has to keep
/// within it.
const STARTS: Duration = Duration::from_secs(2);

/// The last thing that happens: a server of a healthy cluster loses its power for good, the leader's if it runs
/// what must run once. That runs elsewhere within its failover time, and in the end everything is where the leader
/// said before that it would be. Returns how many services had to move in time, and how many moves were forecast.
pub(crate) fn lose_one(world: &mut World) -> (u64, u64) {
    let leader = world.leader();
    let mut candidates: Vec<usize> = world.living();
    candidates.retain(|n| can_be_spared(world, *n));
    let holds = |n: &usize| !world.machines[*n].agent.singles().is_empty();
    let runs = |n: &usize| !world.machines[*n].agent.running().is_empty();
    let holders: Vec<usize> = candidates.iter().copied().filter(holds).collect();
    let chosen = holders.iter().copied().find(|n| Some(*n) == leader).or_else(|| holders.first().copied());
    let Some(n) = chosen.or_else(|| candidates.into_iter().find(runs)) else { return (0, 0) };
    let Some(before) = survey(world) else { return (0, 0) };
    let lost = world.machines[n].id;
    let forecast = before.what_if(Kill(lost));
    let began = world.now;
    let moved = fail_over(world, n);
    if world.violation.is_some() || !order_is_sure(&before, lost) {
        return (moved, 0);
    }
    // Whatever is waited for is over then: leases, also of voters that have just changed, the patience with a node
    // that is down, and the grace of what was told to end.
    let grace = before.state.replicas.values().map(|replica| replica.spec.stop.grace.0).max().unwrap_or_default();
    let leases = before.state.leases.values().map(|lease| lease.ttl.0).max().unwrap_or_default();
    let end = began.plus(leases * 2 + before.policy.replace_after + grace + RECOVERS);
    let seen = history(world, began, end, layout(&before.state));
    let expected = forecast.moves.iter().fold(layout(&before.state), |mut layout, one| {
        let there = layout.entry((one.slot.service.clone(), one.slot.ordinal)).or_default();
        one.from.inspect(|from| _ = there.remove(from));
        there.extend(one.to);
        layout
    });
    let is = seen.last().map_or_else(|| layout(&before.state), |(_, layout)| layout.clone());
    if world.violation.is_none() && known(&is) != known(&expected) {
        let tell = |layout: &Layout| shown(&before.state, layout);
        let seen: Vec<String> =
            seen.iter().map(|(after, layout)| format!("after {after:?} {}", tell(layout))).collect();
        let what = format!(
            "n{} lost its power, replace_after {:?}; before: {}; forecast: {}; what happened: {}",
            n + 1,
            before.policy.replace_after,
            tell(&layout(&before.state)),
            tell(&expected),
            seen.join("; ")
        );
        world.broken("does_what_was_forecast", what);
    }
    let mut expected = active(&before.state);
    for role in &forecast.roles {
        expected.remove(&role.service);
        expected.extend(role.to.as_ref().map(|(_, node)| (role.service.clone(), *node)));
    }
    let state = world.leader().map(|leader| world.machines[leader].process.as_ref().expect("it leads").node.state());
    let mut is = state.map(active).unwrap_or_default();
    // An update takes roles from copies too, and its next step is due when a new copy has been well for long enough.
    let updated =
        |service: &ServiceName| before.state.services.get(service).is_some_and(|it| is_updated(&before.state, it));
    expected.retain(|service, _| updated(service));
    is.retain(|service, _| updated(service));
    if world.violation.is_none() && is != expected {
        let tell = |active: &BTreeMap<ServiceName, NodeId>| {
            let places: Vec<String> =
                active.iter().map(|(service, node)| format!("{service} on {}", named(&before.state, node))).collect();
            places.join(", ")
        };
        let what = format!("n{} lost its power; forecast as active: {}; active: {}", n + 1, tell(&expected), tell(&is));
        world.broken("does_what_was_forecast", what);
    }
    (moved, forecast.moves.len() as u64)
}

/// Whether what is waited for after the loss of a node ends in the order of the times that are set: the first to look
/// for a place has the choice, and how soon the loss is seen is nobody's setting. The copy that was the active one of
/// several is replaced when both its lease and the patience with its node are over.
fn order_is_sure(before: &Survey, lost: NodeId) -> bool {
    let state = &before.state;
    let patience = before.policy.replace_after;
    let ttl = |replica: &ReplicaRecord| {
        let lease = state.leases.get(&replica.service)?;
        lease.holder.is_some_and(|holder| holder.replica == replica.id).then_some(lease.ttl.0)
    };
    let lost = || state.replicas.values().filter(move |it| it.node == lost);
    let cast = |replica: &&ReplicaRecord| replica.spec.mode == Mode::ActivePassive;
    if lost().filter(cast).filter_map(ttl).any(|ttl| ttl.abs_diff(patience) < SEEN_WITHIN) {
        return false;
    }
    let waits = |replica: &ReplicaRecord| match ttl(replica) {
        Some(ttl) if cast(&replica) => ttl.max(patience),
        Some(ttl) => ttl,
        None => patience,
    };
    let times: BTreeSet<Duration> = lost().map(waits).collect();
    times.iter().zip(times.iter().skip(1)).all(|(one, next)| *next - *one >= SEEN_WITHIN)
}

/// Each layout that the leader decided on until a moment, but the first, and how long after the loss.
fn history(world: &mut World, began: Timestamp, end: Timestamp, first: Layout) -> Vec<(Duration, Layout)> {
    let mut seen = vec![(Duration::ZERO, first)];
    while world.now < end && world.violation.is_none() {
        let next = world.now.plus(Duration::from_millis(50));
        world.run_until(next);
        let Some(leader) = world.leader() else { continue };
        let now = layout(world.machines[leader].process.as_ref().expect("it leads").node.state());
        if seen.last().is_some_and(|(_, last)| *last != now) {
            seen.push((world.now.since(began), now));
        }
    }
    seen.split_off(1)
}

/// Where each ordinal is to run.
type Layout = BTreeMap<(ServiceName, u32), BTreeSet<NodeId>>;

fn layout(state: &ClusterState) -> Layout {
    let mut layout = Layout::new();
    for replica in state.replicas.values().filter(|replica| replica.phase == Phase::Run) {
        layout.entry((replica.service.clone(), replica.ordinal)).or_default().insert(replica.node);
    }
    layout
}

/// Without the ordinals that run nowhere.
fn known(layout: &Layout) -> Layout {
    layout.iter().filter(|(_, nodes)| !nodes.is_empty()).map(|(slot, nodes)| (slot.clone(), nodes.clone())).collect()
}

/// The node of the active copy of each active-passive service.
fn active(state: &ClusterState) -> BTreeMap<ServiceName, NodeId> {
    let cast = state.services.values().filter(|service| service.spec.mode == Mode::ActivePassive);
    let holder = |name: &ServiceName| state.leases.get(name)?.holder;
    cast.filter_map(|service| Some((service.spec.name.clone(), holder(&service.spec.name)?.node))).collect()
}

/// Whether all copies of a service are of its newest version.
fn is_updated(state: &ClusterState, service: &ServiceRecord) -> bool {
    let mut copies = state.replicas.values().filter(|replica| replica.service == service.spec.name);
    copies.all(|replica| replica.version == service.version)
}

fn named(state: &ClusterState, node: &NodeId) -> String {
    state.nodes.get(node).map_or("?", |node| &node.identity.name).to_owned()
}

fn shown(state: &ClusterState, layout: &Layout) -> String {
    let name = |node: &NodeId| named(state, node);
    let placed = layout.iter().filter(|(_, nodes)| !nodes.is_empty());
    let slots = placed.map(|((service, ordinal), nodes)| {
        format!("{service}.{ordinal} on {}", nodes.iter().map(name).collect::<Vec<_>>().join(" and "))
    });
    slots.collect::<Vec<_>>().join(", ")
}

/// What the leader would make a plan of. `None`: nobody leads.
fn survey(world: &mut World) -> Option<Survey> {
    let leader = world.leader()?;
    world.tell(leader, Event::Survey { ticket: Ticket(u64::MAX) });
    // Not a moment more than it takes: what changes meanwhile is not in the forecast.
    let end = world.now.plus(Duration::from_millis(500));
    while world.surveyed.is_none() && world.now < end {
        let next = world.now.plus(Duration::from_millis(1));
        world.run_until(next);
    }
    world.surveyed.take().map(|survey| *survey)
}

/// A server loses its power. Returns how many services had to run elsewhere in time.
fn fail_over(world: &mut World, n: usize) -> u64 {
    let state = world.machines[n].process.as_ref().expect("it lives").node.state();
    let spans = |single: &Single| {
        let spec = &state.services.get(&single.service)?.spec;
        // Who asks for less than that has a network and disks that these scenarios need not have.
        let failover = spec.failover.unwrap_or(FAILOVER_DEFAULT).0;
        let moves = !spec.unsafe_fast && spec.without_quorum != WithoutQuorum::Keep;
        moves.then(|| (single.service.clone(), single.epoch, failover))
    };
    let moving: Vec<(ServiceName, u64, Duration)> =
        world.machines[n].agent.singles().iter().filter_map(spans).collect();
    let (began, replaced_after) = (world.now, world.scenario.replace_voter_after);
    world.unattended = true;
    world.lose(n);
    for (service, epoch, failover) in &moving {
        // Voters that change before count from then on: whoever replaces them that early waits once more.
        let limit = if replaced_after < *failover { *failover * 2 } else { *failover } + STARTS;
        let runs = |world: &World| {
            let singles = world.machines.iter().flat_map(|machine| machine.agent.singles());
            singles.into_iter().any(|single| single.service == *service && single.epoch > *epoch)
        };
        while world.violation.is_none() && !runs(world) {
            if world.now.since(began) > limit {
                let leader = world.leader().map(|n| n + 1);
                let what = format!(
                    "n{} lost its power, and {service} does not run {limit:?} later (leader: {leader:?})",
                    n + 1
                );
                world.broken("fails_over", what);
                break;
            }
            let next = world.now.plus(Duration::from_millis(50));
            world.run_until(next);
        }
    }
    moving.len() as u64
}

/// Whether the others decide without this machine, and one of them could run what it runs.
fn can_be_spared(world: &World, n: usize) -> bool {
    let process = world.machines[n].process.as_ref().expect("it lives");
    let others: BTreeSet<NodeId> =
        world.living().into_iter().filter(|other| *other != n).map(|other| world.machines[other].id).collect();
    process.node.configuration().is_majority(&others)
}
