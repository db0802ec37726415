//! How fast: every period and every count of gossip, each with its reason.

use super::protocol::{FRAME_MAX, Identity};
use foca::{Config, PeriodicParams, Timer};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// Between two probes in a cluster of up to 100 nodes. With 500 ms the first suspicion alone takes
/// 2.3 s at the 99th percentile, with 250 ms 1.1 s.
pub const PROBE_PERIOD: Duration = Duration::from_millis(250);
/// A direct answer takes less than this; then others are asked. They need twice the time.
pub(super) const PROBE_RTT: Duration = Duration::from_millis(80);
/// A probe that nobody has answered is sent again this often until it is over. One datagram in four
/// may be lost then, and still only one probe in some hundreds is.
pub(super) const REPEAT_EVERY: Duration = Duration::from_millis(40);
/// Up to this many nodes the period is [`PROBE_PERIOD`]; each doubling beyond adds as much, up to four.
const SMALL: usize = 100;
/// A suspicion that the suspect denies within this time is not shown to anybody: the least that makes
/// sense, and the default.
pub const SHOWN_AFTER: Duration = Duration::from_millis(300);
/// A suspect that does not answer for this long is dead, and has to come back with a new identity.
/// Longer than partitions usually last, because coming back takes longer than denying.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);
/// How often a few suspects are asked whether they live. All nodes do that, so that each of many
/// suspects is asked soon after a partition has healed.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(500);
pub(super) const ASK_SUSPECTS: usize = 2;
/// While more rumors wait than fit into one message, gossip is hurried, by at most [`HURRY_MAX`]
/// rounds each [`ASK_EVERY`]: 50 KiB a second.
pub(super) const MEMBERS_A_MESSAGE: usize = 35;
pub(super) const HURRY_MAX: usize = 8;
/// Before a suspect is called dead it is asked this often, one after another [`LAST_ASK_EVERY`].
pub(super) const LAST_ASKS: u8 = 10;
pub(super) const LAST_ASK_EVERY: Duration = Duration::from_millis(300);
/// A timer that fires this much late was not waited for: this node, or its machine, stood still.
pub(super) const LATE: Duration = Duration::from_millis(50);
/// How often nodes whose address is known and that were never heard are spoken to.
pub(super) const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
pub(super) const ANNOUNCE_TO: usize = 3;
/// Who leaves tells this many nodes itself, [`LEFT_TIMES`] times.
pub const LEFT_TO: usize = 32;
pub(super) const LEFT_TIMES: u8 = 3;
pub(super) const LEFT_EVERY: Duration = Duration::from_millis(30);
/// With sealing and the headers of UDP and IPv6, 1,280 bytes: what every network carries in one piece.
const MESSAGE_MAX: usize = 1_280 - 48 - crate::seal::OVERHEAD - FRAME_MAX;

/// By how much probing is slower than [`PROBE_PERIOD`] among `members` others.
pub(super) fn for_size(members: usize) -> u32 {
    let hundreds = members.div_ceil(SMALL).max(1);
    (1 + hundreds.next_power_of_two().ilog2()).min(4)
}

/// How often each node passes a rumor on.
pub(super) fn transmissions(members: usize) -> NonZeroU8 {
    let digits = u8::try_from((members + 1).ilog10()).expect("a cluster has fewer than 10^255 nodes");
    // SWIM's λ·log n with λ = 4, and one round more for datagrams that are lost.
    NonZeroU8::new(4 * (digits + 1)).expect("at least 4")
}

/// Whether a timer may lead to a verdict about another node.
pub(super) fn judges(timer: &Timer<Identity>) -> bool {
    match timer {
        Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } | Timer::ChangeSuspectToDown { .. } => true,
        Timer::PeriodicAnnounce(_)
        | Timer::PeriodicAnnounceDown(_)
        | Timer::PeriodicGossip(_)
        | Timer::RemoveDown(_) => false,
    }
}

pub(super) fn config() -> Config {
    let count = |n| NonZeroUsize::new(n).expect("more than none");
    let every = |seconds, n| Some(PeriodicParams { frequency: Duration::from_secs(seconds), num_members: count(n) });
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new(4).expect("more than none"),
        suspect_to_down_after: DEAD_AFTER,
        // Nodes are few, and come back with a new identity.
        remove_down_after: None,
        max_packet_size: count(MESSAGE_MAX),
        notify_down_members: true,
        periodic_announce: every(30, 1),
        // So that two sides that have given each other up find back together soon.
        periodic_announce_to_down_members: every(2, 2),
        // Only while there is news.
        periodic_gossip: Some(PeriodicParams { frequency: Duration::from_millis(200), num_members: count(3) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_clusters_probe_more_slowly() {
        let period = |nodes: usize| PROBE_PERIOD * for_size(nodes - 1);
        assert_eq!([2, 10, 101].map(period), [Duration::from_millis(250); 3]);
        assert_eq!([200, 300, 1_000, 100_000].map(period), [500, 750, 1_000, 1_000].map(Duration::from_millis));
    }
}
