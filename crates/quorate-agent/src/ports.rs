//! Which ports a replica gets.
//!
//! An `auto` port is chosen once and kept for the replica's life. The search begins at a hash of
//! the replica's id, so replicas of different agents on one host (as in `quorate dev`) hardly ever
//! try the same number at the same moment; when they do, one fails to bind and is given another.

use quorate_model::id::ReplicaId;
use quorate_model::spec::Port;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

/// Below the ports that Linux gives to outgoing connections by default (32768 up).
pub(crate) const AUTO: RangeInclusive<u16> = 20_000..=31_999;

/// Why a replica has no ports. Nothing is reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    #[error("port {0} is in use")]
    InUse(u16),
    #[error("all ports from {} to {} are in use", AUTO.start(), AUTO.end())]
    NoneFree,
}

/// The ports that this agent gave away, whether or not anybody listens on them right now.
#[derive(Debug, Default)]
pub(crate) struct Reservations(Mutex<BTreeMap<ReplicaId, BTreeSet<u16>>>);

impl Reservations {
    /// Remembers what a running replica already has.
    pub(crate) fn keep(&self, replica: ReplicaId, ports: &BTreeMap<String, u16>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(replica, ports.values().copied().collect());
    }

    pub(crate) fn release(&self, replica: ReplicaId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&replica);
    }

    /// Chooses ports for a replica that does not run, and reserves them. Those in `before` are
    /// kept while they are free. Blocks for a few system calls.
    pub(crate) fn choose(
        &self,
        replica: ReplicaId,
        wanted: &BTreeMap<String, Port>,
        before: &BTreeMap<String, u16>,
        host: &str,
    ) -> Result<BTreeMap<String, u16>, PortError> {
        let mut reserved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.remove(&replica);
        let mut taken: BTreeSet<u16> = reserved.values().flatten().copied().collect();
        // Fixed ones first, so that an automatic choice never takes one of them.
        taken.extend(wanted.values().filter_map(|port| if let Port::Fixed(n) = port { Some(*n) } else { None }));
        let mut chosen = BTreeMap::new();
        for (name, port) in wanted {
            let number = match port {
                Port::Fixed(number) if is_free(host, *number) => *number,
                Port::Fixed(number) => return Err(PortError::InUse(*number)),
                Port::Auto => {
                    let kept = before.get(name).copied().filter(|number| AUTO.contains(number));
                    kept.into_iter()
                        .chain(candidates(replica))
                        .find(|number| !taken.contains(number) && is_free(host, *number))
                        .ok_or(PortError::NoneFree)?
                }
            };
            taken.insert(number);
            chosen.insert(name.clone(), number);
        }
        reserved.insert(replica, chosen.values().copied().collect());
        Ok(chosen)
    }
}

/// Every automatic port, once, beginning somewhere that depends on the replica.
fn candidates(replica: ReplicaId) -> impl Iterator<Item = u16> {
    let count = u128::from(AUTO.end() - AUTO.start()) + 1;
    // Ids are random already; folding them in keeps both halves in play.
    let bits = replica.0.as_u128();
    let first = u16::try_from((bits ^ (bits >> 64)) % count).unwrap_or(0);
    let (low, high) = (AUTO.start() + first..=*AUTO.end(), *AUTO.start()..AUTO.start() + first);
    low.chain(high)
}

/// Whether nobody listens there now. Other obstacles, like a port that needs privileges, are left
/// to the workload, which says it better.
pub(crate) fn is_free(host: &str, port: u16) -> bool {
    // The listener closes again at once. std sets SO_REUSEADDR, so finished connections do not count.
    !TcpListener::bind((host, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "127.0.0.1";

    fn auto(names: &[&str]) -> BTreeMap<String, Port> {
        names.iter().map(|name| ((*name).to_owned(), Port::Auto)).collect()
    }

    #[test]
    fn every_automatic_port_is_tried_once() {
        let all: Vec<u16> = candidates(ReplicaId::from_u128(u128::MAX / 3)).collect();
        let distinct: BTreeSet<u16> = all.iter().copied().collect();
        assert_eq!((all.len(), distinct.len()), (12_000, 12_000));
        assert!(all.iter().all(|port| AUTO.contains(port)));
    }

    #[test]
    fn two_replicas_never_share_a_port_and_one_keeps_its_own() {
        let ports = Reservations::default();
        // The same starting point: the second must step aside although nobody listens.
        let (a, b) = (ReplicaId::from_u128(4711), ReplicaId::from_u128(4711 << 64));
        let first = ports.choose(a, &auto(&["http", "admin"]), &BTreeMap::new(), HOST).unwrap();
        let second = ports.choose(b, &auto(&["http"]), &BTreeMap::new(), HOST).unwrap();
        assert!(!first.values().any(|port| *port == second["http"]));
        assert_eq!(ports.choose(a, &auto(&["http", "admin"]), &first, HOST).unwrap(), first);
    }

    #[test]
    fn a_port_that_somebody_took_is_replaced_if_automatic_and_named_if_fixed() {
        let ports = Reservations::default();
        let replica = ReplicaId::from_u128(99);
        let before = ports.choose(replica, &auto(&["http"]), &BTreeMap::new(), HOST).unwrap();
        let thief = TcpListener::bind((HOST, before["http"])).unwrap();
        let after = ports.choose(replica, &auto(&["http"]), &before, HOST).unwrap();
        assert_ne!(after, before);
        let number = thief.local_addr().unwrap().port();
        let fixed = BTreeMap::from([("http".to_owned(), Port::Fixed(number))]);
        let refused = ports.choose(replica, &fixed, &BTreeMap::new(), HOST).unwrap_err();
        assert_eq!(refused.to_string(), format!("port {number} is in use"));
    }
}
