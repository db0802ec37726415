//! A node that was expelled and lives on.
//!
//! The entry that expels it may never reach it: everybody ends the connections with it. Who refuses it
//! says why, under a certificate of the cluster's authority, and that is all that it hears. Its replicas
//! run elsewhere by then, so what it runs itself would run twice; it stops them.
//!
//! # Invariants
//! - Nothing stops while this node hears a leader: a recovery may have been a mistake, and whoever it gave
//!   up may still be the majority.
//! - A leader that is heard ends it: then what the leader assigns counts again.

use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use std::time::Duration;

/// No leader for this long, and none will come. Elections take a second or two.
const WITHOUT_LEADER: Duration = Duration::from_secs(10);

/// What a node knows of its being expelled.
#[derive(Debug, Default)]
pub(crate) struct Outcast {
    /// By whom it was told last, and since when it is told so without hearing a leader.
    told: Option<(NodeId, Timestamp)>,
}

impl Outcast {
    /// A node of the cluster says that this one was expelled. Returns whether that is news.
    pub(crate) fn told(&mut self, now: Timestamp, by: NodeId) -> bool {
        let news = self.told.is_none();
        let since = self.told.map_or(now, |(_, since)| since);
        self.told = Some((by, since));
        news
    }

    /// Who says so, as long as no leader is heard.
    pub(crate) fn by(&self) -> Option<NodeId> {
        self.told.map(|(by, _)| by)
    }

    /// Whether what runs here must end. `leader` is when this node heard from one last.
    pub(crate) fn is_out(&mut self, now: Timestamp, leader: Option<Timestamp>) -> bool {
        let Some((_, since)) = self.told else { return false };
        if leader.is_some_and(|heard| heard > since) {
            self.told = None;
            return false;
        }
        now.since(since) >= WITHOUT_LEADER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(Duration::from_secs(seconds))
    }

    #[test]
    fn one_that_is_told_so_and_hears_no_leader_is_out_after_a_while() {
        let mut outcast = Outcast::default();
        assert!(!outcast.is_out(at(100), None));
        assert!(outcast.told(at(100), NodeId::from_u128(1)));
        assert!(!outcast.told(at(105), NodeId::from_u128(2)), "it is told again and again");
        assert!(!outcast.is_out(at(109), Some(at(99))));
        assert!(outcast.is_out(at(110), Some(at(99))));
        assert_eq!(outcast.by(), Some(NodeId::from_u128(2)));
    }

    #[test]
    fn one_that_hears_a_leader_goes_on_whatever_others_say() {
        let mut outcast = Outcast::default();
        outcast.told(at(100), NodeId::from_u128(1));
        assert!(!outcast.is_out(at(200), Some(at(150))));
        assert_eq!(outcast.by(), None);
        outcast.told(at(200), NodeId::from_u128(1));
        assert!(!outcast.is_out(at(205), Some(at(150))));
    }
}
