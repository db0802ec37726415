//! When the faults are over, every node that can is a full member again: it knows the voters, the
//! leader's term, all services as wanted, and its digests were compared with others'.
//!
//! Deutsch et al.: the liveness phase of TigerBeetle's VOPR; "works at once after healing".

use super::Invariant;
use crate::seen::{Held, Seen};
use quorate_model::event::Happening;
use quorate_model::spec::Mode;
use quorate_model::state::Health;

#[derive(Debug, Default)]
pub(super) struct Healing {
    healed: u64,
}

impl Healing {
    fn check(&self, held: &Held, machines: &[Held]) -> Result<(), String> {
        let (n, living) = (held.machine + 1, machines.len());
        if held.configuration != machines[0].configuration {
            return Err(format!("n{n} knows other voters than n{}", machines[0].machine + 1));
        }
        let lives = |id| machines.iter().any(|machine| machine.node == id);
        for node in held.state.nodes.values() {
            if node.health != Health::Joined && lives(node.identity.id) {
                return Err(format!("{} lives and is {:?}", node.identity.name, node.health));
            }
        }
        for service in held.state.services.values() {
            let copies = held.state.replicas.values().filter(|replica| replica.service == service.spec.name).count();
            let wanted = service.spec.replicas as usize;
            // Of an active-passive service one node has one copy at the most.
            let is_cast = service.spec.mode == Mode::ActivePassive;
            let wanted = if is_cast { wanted.min(living) } else { wanted };
            if copies != wanted {
                return Err(format!("{} has {copies} copies and shall have {wanted}", service.spec.name));
            }
        }
        if let Some(event) = held.state.events.iter().find(|event| matches!(event.what, Happening::Diverged { .. })) {
            return Err(format!("a divergence was reported: {:?}", event.what));
        }
        if held.digests_compared == 0 && living > 1 {
            return Err(format!("n{n} has compared no digest with another node"));
        }
        Ok(())
    }
}

impl Invariant for Healing {
    fn name(&self) -> &'static str {
        "heals"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Healed { machines } = seen else { return Ok(()) };
        self.healed += 1;
        machines.iter().try_for_each(|held| self.check(held, machines))
    }

    fn premises(&self) -> u64 {
        self.healed
    }
}
