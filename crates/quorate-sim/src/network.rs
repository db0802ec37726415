//! Connections between machines, as `quorate serve` has them: one from each node to each other one
//! for what it says.
//!
//! A direction that is cut swallows everything silently; the connection ends when it has been silent
//! for too long, and is dialled again and again. A process that dies closes its connections at once,
//! a machine that loses power does not.

use crate::dice::Dice;
use crate::scenario::NetworkConditions;
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Unacknowledged data ends a connection after this, as in the server's link.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);

/// What one machine says to another travels here.
#[derive(Debug, Default, Clone)]
pub(crate) struct Link {
    pub up: bool,
    /// Grows with each connection: what was on its way on an earlier one is lost.
    pub connection: u64,
    /// How many faults cut this direction just now.
    pub cuts: u32,
    /// On a connection nothing overtakes.
    last_arrival: Timestamp,
}

/// All links, and what the weather does to them.
#[derive(Debug)]
pub(crate) struct Network {
    links: BTreeMap<(usize, usize), Link>,
    conditions: NetworkConditions,
    /// Added by faults: messages lost and doubled of a thousand, and delay.
    pub extra_loss: u64,
    pub extra_duplicates: u64,
    pub extra_latency: Duration,
    pub dice: Dice,
}

/// When a message arrives; twice if it was doubled, never if it was lost.
pub(crate) type Arrivals = [Option<Timestamp>; 2];

impl Network {
    pub(crate) fn new(nodes: usize, conditions: NetworkConditions, dice: Dice) -> Network {
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))).filter(|(from, to)| from != to);
        let links = pairs.map(|pair| (pair, Link::default())).collect();
        Network { links, conditions, extra_loss: 0, extra_duplicates: 0, extra_latency: Duration::ZERO, dice }
    }

    pub(crate) fn link(&mut self, from: usize, to: usize) -> &mut Link {
        self.links.get_mut(&(from, to)).expect("two different machines")
    }

    /// Whether anything passes in this direction.
    pub(crate) fn passes(&self, from: usize, to: usize) -> bool {
        self.links[&(from, to)].cuts == 0
    }

    /// Whether connections can be made: TCP needs both directions.
    pub(crate) fn connects(&self, a: usize, b: usize) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }

    /// The bad weather is over.
    pub(crate) fn calm(&mut self) {
        self.extra_loss = 0;
        self.extra_duplicates = 0;
        self.extra_latency = Duration::ZERO;
        self.conditions.loss = 0;
        self.conditions.duplicates = 0;
    }

    pub(crate) fn delay(&mut self) -> Duration {
        self.dice.span(self.conditions.latency) + self.extra_latency.mul_f64(self.dice.below(1_000) as f64 / 1_000.0)
    }

    /// Sends something on a link that is up.
    pub(crate) fn arrivals(&mut self, now: Timestamp, from: usize, to: usize) -> Arrivals {
        if !self.passes(from, to) {
            return [None, None];
        }
        let lost = self.dice.chance(self.conditions.loss + self.extra_loss);
        let mut at = now.plus(self.delay());
        if self.conditions.datagrams {
            let doubled = self.dice.chance(self.conditions.duplicates + self.extra_duplicates);
            let again = doubled.then(|| at.plus(self.delay()));
            return [(!lost).then_some(at), again];
        }
        if lost {
            // TCP sends it again; everything behind it waits.
            at = at.plus(Duration::from_millis(200));
        }
        let link = self.link(from, to);
        link.last_arrival = link.last_arrival.max(at);
        [Some(link.last_arrival), None]
    }
}
