//! The roll at the end: who says what of whom, and what lies on whose disk.

use super::node::{Belongs, Node};
use super::{LOOK_EVERY, Rig, Stop};
use crate::config;
use crate::torture::census;
use crate::torture::record::{Members, Seen};
use crate::torture::verdict::MEMBERS_WITHIN_MS;
use crate::trust;
use quorate_api::view::NodeState;
use quorate_model::access::name::Digest;
use quorate_model::id::NodeId;
use quorate_model::trust::{KeyKind, Stage};
use std::path::Path;
use std::time::{Duration, Instant};

/// Over the allowed time it is waited for this much longer, to say how late it was.
const LATE: u64 = 2;

impl Rig {
    /// Waits until all members say the same, and writes down what they say.
    pub(crate) fn call_the_roll(&self, stop: &Stop) -> Members {
        let began = Instant::now();
        let expected = self.present().map(|node| (self.nodes[node].name.clone(), self.nodes[node].manager)).collect();
        let mut roll =
            Members { agreed_ms: None, wrong: String::new(), expected, seen: Vec::new(), outcasts: Default::default() };
        loop {
            match self.see_all(&mut roll) {
                Ok(()) => {
                    roll.agreed_ms = u64::try_from(began.elapsed().as_millis()).ok();
                    break;
                }
                Err(why) => roll.wrong = why,
            }
            if began.elapsed() >= Duration::from_millis(MEMBERS_WITHIN_MS * LATE) || stop.wait(LOOK_EVERY) {
                break;
            }
        }
        let outcasts = self.nodes.iter().filter(|node| node.belongs == Belongs::No && node.child.is_some());
        roll.outcasts = outcasts.map(|node| (node.name.clone(), self.knows_a_leader(node))).collect();
        roll
    }

    /// # Errors
    /// What one of them says instead.
    fn see_all(&self, roll: &mut Members) -> Result<(), String> {
        let all: Vec<&Node> = self.present().map(|node| &self.nodes[node]).collect();
        let ids: Vec<NodeId> = all.iter().map(|node| node.id).collect();
        let seen: Option<Vec<Seen>> = all.iter().map(|node| self.see(node, &ids)).collect();
        let Some(seen) = seen else { return Err("a member does not answer".into()) };
        roll.seen = seen;
        let first = &roll.seen[0];
        let same = |one: &Seen| {
            (&one.members, one.authority, &one.authorities, &one.gossip_keys)
                == (&first.members, first.authority, &first.authorities, &first.gossip_keys)
        };
        for one in &roll.seen {
            let node = &one.node;
            if !one.not_joined.is_empty() {
                return Err(format!("{node} does not see {} as joined", one.not_joined.join(", ")));
            }
            if !one.not_alive.is_empty() {
                return Err(format!("{node} does not hear {} gossip", one.not_alive.join(", ")));
            }
            if !one.only_authority {
                return Err(format!("CA {} is not the only one at {node}", one.authority));
            }
            if !same(one) {
                return Err(format!("{node} and {} differ about members or keys", first.node));
            }
            let members: Vec<NodeId> = one.members.iter().map(|member| member.id).collect();
            if members.len() != ids.len() || !ids.iter().all(|id| members.contains(id)) {
                return Err(format!("{node} counts {} members, and there are {}", members.len(), ids.len()));
            }
            if one.members.iter().filter(|member| member.votes).count() % 2 == 0 {
                return Err(format!("{node} counts an even number of voters"));
            }
        }
        Ok(())
    }

    fn see(&self, node: &Node, ids: &[NodeId]) -> Option<Seen> {
        let overview = self.ask.status(node.seat.api).filter(|overview| overview.answered_by == node.name)?;
        let certificates = self.ask.certificates(node.seat.api)?;
        let authority = certificates.keys.iter().find(|key| key.key == KeyKind::Authority)?;
        let away = overview.nodes.iter().filter(|it| it.state != NodeState::Joined).map(|it| it.name.clone());
        let log = node.log.after(0);
        let silent = ids.iter().filter(|id| **id != node.id && !is_alive(&log, **id));
        let named = |id: &NodeId| self.nodes.iter().find(|node| node.id == *id).map(|node| node.name.clone());
        let tls = node.data_dir.join(trust::DIR);
        Some(Seen {
            node: node.name.clone(),
            members: census::members(&overview),
            not_joined: away.collect(),
            not_alive: silent.filter_map(named).collect(),
            authority: authority.number,
            only_authority: authority.stage == Stage::Done && certificates.authorities.len() == 1,
            authorities: digest(&tls.join(trust::AUTHORITIES))?,
            gossip_keys: digest(&tls.join(crate::gossip_keys::FILE))?,
        })
    }

    /// By its own socket: it may know no user any more.
    fn knows_a_leader(&self, node: &Node) -> bool {
        let overview = self.ask.by_socket(&node.data_dir.join(config::API_SOCKET));
        overview.is_some_and(|overview| overview.cluster.leader.is_some())
    }
}

/// Whether the last that a server's log tells of a node's gossip is that it is alive.
fn is_alive(log: &str, node: NodeId) -> bool {
    let of_it = format!("gossip node={node} ");
    log.lines().rfind(|line| line.contains(&of_it)).is_some_and(|line| line.contains("rumor=Alive"))
}

fn digest(file: &Path) -> Option<String> {
    Some(Digest::of(&std::fs::read(file).ok()?).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rumor_of_a_node_counts() {
        let (one, other) = (NodeId::from_u128(1), NodeId::from_u128(2));
        let say = |node: NodeId, rumor: &str| format!("INFO gossip node={node} generation=1 rumor={rumor}\n");
        let log = say(one, "Alive") + &say(other, "Alive") + &say(one, "Unreachable");
        assert!(!is_alive(&log, one) && is_alive(&log, other));
        assert!(is_alive(&(log + &say(one, "Alive")), one));
        assert!(!is_alive("", one), "nobody who was never heard is alive");
    }
}
