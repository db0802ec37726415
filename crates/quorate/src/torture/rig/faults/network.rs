//! Packets that are lost, late, repeated, or do not come at all.

use super::{Active, Begun, millis};
use crate::torture::fault::FaultKind;
use crate::torture::rig::dice::Dice;
use crate::torture::rig::network::{Effect, Link, Network, Port, RuleId, between};
use crate::torture::rig::{Rig, RigError};
use std::collections::BTreeSet;
use std::time::Duration;

/// Packets that show what a lossy, slow or repeating link does.
const SAMPLE: u32 = 100;
const SAMPLE_WAIT: Duration = Duration::from_millis(600);

impl Rig {
    pub(super) fn disturb(&mut self, kind: FaultKind, dice: &mut Dice) -> Result<Begun, RigError> {
        if self.active.values().any(|(_, active)| matches!(active, Active::Rule { .. })) {
            return Err(RigError::NoTarget { kind, why: "the network has a fault already".into() });
        }
        // A node that is down cannot be cut off, and one that stands still would prove nothing.
        let node = self.victim(kind, dice)?;
        let one = self.nodes[node].seat.port;
        let others: Vec<Port> =
            self.present().map(|node| self.nodes[node].seat.port).filter(|port| *port != one).collect();
        let Some(network) = &self.network else {
            return Err(RigError::NoTarget { kind, why: "there is no network of our own".into() });
        };
        let lit: Vec<Port> = others.iter().copied().filter(|port| !network.is_unplugged(*port)).collect();
        let Some(other) = dice.pick(&lit) else {
            return Err(RigError::NoTarget { kind, why: "no other node has power".into() });
        };
        let on = |port: Port| self.present().find(|node| self.nodes[*node].seat.port == port);
        let named = |port: &Port| on(*port).map_or_else(String::new, |node| self.nodes[node].name.clone());
        let (name, other_name) = (named(&one), named(&other));
        let both = between(&[one], &others);
        let (links, effect, what) = match kind {
            FaultKind::PartitionHalves => {
                // Of five nodes two are alone together, and could agree on something that no majority knows.
                let friend = others.iter().copied().find(|port| *port != other).filter(|_| others.len() > 3);
                let minority: Vec<Port> = std::iter::once(one).chain(friend).collect();
                let majority: Vec<Port> = others.iter().copied().filter(|port| !minority.contains(port)).collect();
                let names = |ports: &[Port]| ports.iter().map(named).collect::<Vec<_>>().join("+");
                let what = format!("{} and {} do not hear each other", names(&minority), names(&majority));
                (between(&minority, &majority), Effect::Cut, what)
            }
            FaultKind::PartitionOneWay if dice.happens(500) => {
                let links = both.into_iter().filter(|(from, _)| *from == one).collect();
                (links, Effect::Cut, format!("nobody hears {name}, which hears all"))
            }
            FaultKind::PartitionOneWay => {
                let links = both.into_iter().filter(|(_, to)| *to == one).collect();
                (links, Effect::Cut, format!("{name} hears nobody, and all hear it"))
            }
            FaultKind::PartitionBridge => {
                let links = between(&[one], &[other]);
                (links, Effect::Cut, format!("{name} and {other_name} do not hear each other, others hear both"))
            }
            FaultKind::Loss => {
                let per_mille = 100 + u16::try_from(dice.below(300)).unwrap_or(0);
                (both, Effect::Lose(per_mille), format!("{} % of the packets of {name} are lost", per_mille / 10))
            }
            FaultKind::Duplicate => {
                let per_mille = 200 + u16::try_from(dice.below(600)).unwrap_or(0);
                (both, Effect::Repeat(per_mille), format!("{} % of the packets of {name} arrive twice", per_mille / 10))
            }
            FaultKind::Delay => {
                let least = Duration::from_millis(1 + dice.below(20));
                let most = least + Duration::from_millis(20 + dice.below(80));
                let what = format!("packets of {name} take {} to {}", millis(least), millis(most));
                (both, Effect::Hold(least, most), what)
            }
            _ => (both, Effect::Cut, format!("{name} and the others do not hear each other")),
        };
        let link = if links.contains(&(one, other)) { (one, other) } else { (other, one) };
        let (rule, evidence) =
            prove(network, links, effect, link).map_err(|why| RigError::NotInjected { kind, why })?;
        Ok((Active::Rule { rule, probe: link }, vec![name], what, evidence))
    }

    /// Ends a fault of the network: the same packets pass again.
    pub(super) fn calm(&mut self, kind: FaultKind, rule: RuleId, probe: Link) -> Result<String, RigError> {
        let Some(network) = &self.network else { return Ok(String::new()) };
        let count = network.remove(rule);
        if network.is_unplugged(probe.0) || network.is_unplugged(probe.1) {
            return Ok(format!("{count} frames were met by it; a node without power cannot be probed"));
        }
        match network.passes(probe) {
            Ok(true) => Ok(format!("{count} frames were met by it; a probe passes again")),
            Ok(false) => Err(RigError::NotInjected { kind, why: "a probe does not pass after the fault".into() }),
            Err(error) => Err(RigError::NotInjected { kind, why: error.to_string() }),
        }
    }
}

/// Puts a rule in force, and sees it at work on a packet that passed before.
fn prove(network: &Network, links: BTreeSet<Link>, effect: Effect, link: Link) -> Result<(RuleId, String), String> {
    let io = |error: std::io::Error| error.to_string();
    if !network.passes(link).map_err(io)? {
        return Err("a probe does not pass even before the fault".into());
    }
    let rule = network.add(links, effect);
    let seen = || -> Result<String, String> {
        if effect == Effect::Cut {
            return match network.is_cut(link).map_err(io)? {
                true => Ok("a probe passed before and is dropped now".into()),
                false => Err("a probe passes although the link is cut".into()),
            };
        }
        let arrived = network.probe(link, SAMPLE, SAMPLE_WAIT).map_err(io)?;
        let numbers: BTreeSet<u32> = arrived.iter().map(|(number, _)| *number).collect();
        let (lost, twice) = (SAMPLE as usize - numbers.len(), arrived.len() - numbers.len());
        let late = arrived.windows(2).filter(|pair| pair[1].0 < pair[0].0).count();
        let slowest = arrived.iter().map(|(_, took)| *took).max().unwrap_or_default();
        match effect {
            Effect::Lose(_) if lost > 0 => Ok(format!("{lost} of {SAMPLE} probes were lost")),
            Effect::Repeat(_) if twice > 0 => Ok(format!("{twice} of {SAMPLE} probes arrived twice")),
            Effect::Hold(least, _) if late > 0 && slowest > least => {
                Ok(format!("{late} of {SAMPLE} probes were overtaken, the slowest took {}", millis(slowest)))
            }
            _ => Err(format!("{SAMPLE} probes show nothing: {lost} lost, {twice} twice, {late} overtaken")),
        }
    };
    match seen() {
        Ok(seen) => Ok((rule, seen)),
        Err(why) => {
            network.remove(rule);
            Err(why)
        }
    }
}
