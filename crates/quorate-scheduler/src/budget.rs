//! Whether there is room for all replicas of a service, also when one node is lost.
//!
//! Counted by nodes and not by the sum of what is free: two halves of a replica on two nodes are none. What
//! other services had on the lost node looks for room as well, and is left out of account.

use crate::room::Room;
use quorate_model::resource::Amount;
use quorate_model::state::ServiceRecord;

/// What a service asks for and what there is. Nodes are given by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// For one replica.
    pub each: Amount,
    pub replicas: u32,
    /// On the nodes that could run it now. What its own replicas have is part of it.
    pub free: Amount,
    /// How many replicas fit in there.
    pub fit: u32,
    /// The node whose loss takes the most; `None`: there is none that could run it.
    pub lost: Option<String>,
    /// As `free` and `fit`, without that node.
    pub free_then: Amount,
    pub fit_then: u32,
}

/// `None`: the service asks for nothing.
pub(crate) fn budget(room: &Room<'_>, service: &ServiceRecord, replicas: u32) -> Option<Budget> {
    let each = Some(service.spec.resources.amount()).filter(|each| *each != Amount::default())?;
    let own = |at| room.of(&service.spec.name).filter(move |(_, seat)| seat.at == Some(at));
    let taken = |at| own(at).fold(Amount::default(), |sum, (_, seat)| sum + seat.spec.resources.amount());
    let could = room
        .spots()
        .iter()
        .enumerate()
        .filter(|(_, spot)| spot.closed.is_none() && service.spec.place.unmet(spot.record).is_none());
    let nodes: Vec<(&str, Amount, u32)> = could
        .filter_map(|(at, spot)| {
            let free = spot.capacity?.without(spot.reserved.without(taken(at)));
            Some((spot.record.identity.name.as_str(), free, count(each, free)))
        })
        .collect();
    let sum = |but: Option<&str>| {
        let others = nodes.iter().filter(|(name, _, _)| Some(*name) != but);
        others.fold((Amount::default(), 0u32), |(free, fit), one| (free + one.1, fit.saturating_add(one.2)))
    };
    let lost = nodes.iter().max_by_key(|(name, _, fit)| (*fit, std::cmp::Reverse(*name))).map(|(name, _, _)| *name);
    let ((free, fit), (free_then, fit_then)) = (sum(None), sum(lost));
    Some(Budget { each, replicas, free, fit, lost: lost.map(str::to_owned), free_then, fit_then })
}

/// How often one fits in the other.
fn count(each: Amount, free: Amount) -> u32 {
    let times = |each: u64, free: u64| free.checked_div(each).unwrap_or(u64::MAX);
    let count = times(each.cpu_millis, free.cpu_millis).min(times(each.memory_bytes, free.memory_bytes));
    u32::try_from(count).unwrap_or(u32::MAX)
}
