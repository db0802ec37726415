//! Drills: a node is taken away on purpose, for a while, and what becomes of its services is measured.
//!
//! A drill is a record of the cluster ([`DrillRecord`]), begun by an operator's command. The node that it names
//! reads it like everybody else and is silent to the others for the time that the record says, by its own
//! clock. Whoever leads looks at what it sees ([`look`]) and writes down each thing that has happened once
//! ([`Fact`]), so that another leader goes on where the last one was cut off; the node that is taken away may be
//! the leader itself.
//!
//! # Invariants
//! - At most one drill runs, and none begins while a node is away or on its way out: two losses at once are no
//!   drill.
//! - A drill names the run of the server that it takes away: one that was started since is not taken away.
//! - A fact is written down once; what is said again, or of a drill that is over, changes nothing.
//! - Spans count from when the node falls silent, on the clock of the node that says them.

use crate::assignment::Phase;
use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use crate::place::Availability;
use crate::spec::{Mode, ServiceSpec, WithoutQuorum};
use crate::state::{Change, Changes, ClusterState, Health, ReplicaRecord};
use crate::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Drills that are remembered.
pub const DRILLS_KEPT: usize = 50;
/// Shortest time for which a node is taken away: less is not noticed for certain.
pub const AWAY_MIN: Span = Span::from_secs(5);
/// Longest time for which a node is taken away. The longest failover time is 300 s.
pub const AWAY_MAX: Span = Span::from_secs(600);
/// So long after the entry that begins it was applied the node falls silent: everybody knows of the drill then,
/// and whoever asked for it by way of this node has its answer.
pub const SILENT_AFTER: Span = Span::from_millis(250);
/// A copy that is replaced, rather than restarted under a lease, serves within `replace_after` and this: silence is
/// noticed after 3 s and a node called down up to 2 s later; the rest is for the program to start.
pub const REPLACED_WITHIN: Span = Span::from_secs(10);
/// How much longer than the slowest service may take a node is away if nobody says for how long.
const AWAY_MORE: Span = Span::from_secs(10);
/// A node that has not come back so long after its time is not waited for any more.
pub const BACK_WITHIN: Span = Span::from_secs(60);

/// A drill and what was measured in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// 1, 2, 3 …
    pub id: u64,
    pub node: NodeId,
    /// The node's name, which is kept when the node is gone.
    pub name: String,
    /// The run of the node's server that is taken away.
    pub boot: u64,
    /// For how long.
    pub away: Span,
    /// Who wanted it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The entry that began it, and its time.
    pub index: LogIndex,
    pub began: WallTime,
    /// Whether the node led then, as far as whoever asked knew.
    #[serde(default)]
    pub led: bool,
    /// Who led next, and from when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<(NodeId, Span)>,
    /// When a majority was known not to hear the node any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noticed: Option<Span>,
    /// When the node was joined and heard again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<Span>,
    /// When nothing was left to be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Span>,
    /// What ran on the node.
    pub services: BTreeMap<ServiceName, ServiceDrill>,
}

/// What became of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDrill {
    pub mode: Mode,
    /// What is promised: the failover time of what runs once, `replace_after` of the rest.
    pub setting: Span,
    /// Until when it has to be whole again.
    pub limit: Span,
    /// Its copies on the node, by ordinal.
    pub lost: BTreeMap<u32, LostCopy>,
    /// From when as many copies as are wanted were healthy, without those on the node; of what runs once, from
    /// when it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<Span>,
    pub verdict: Verdict,
}

/// A copy that ran on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LostCopy {
    /// Where another took its place, and when that was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed: Option<(NodeId, Span)>,
    /// When that one was healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Span>,
}

/// Whether a service came back as promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The drill runs.
    Open,
    /// Within its limit.
    Ok,
    /// Later than its limit.
    Late,
    /// Not before the node was back.
    NotRecovered,
    /// It is not meant to go elsewhere: it runs once on every node, or goes on without a quorum.
    Stays,
    /// The service was removed meanwhile.
    Gone,
}

/// Something that happened in a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "kebab-case")]
pub enum Fact {
    /// This node leads after the one that is away.
    Succeeded { node: NodeId },
    /// A majority does not hear the node.
    Noticed,
    /// A copy was placed elsewhere.
    Placed { service: ServiceName, ordinal: u32, node: NodeId },
    /// It is healthy.
    Serving { service: ServiceName, ordinal: u32 },
    /// As many copies as are wanted are healthy.
    Whole { service: ServiceName },
    /// The node is joined and heard again.
    Returned,
    /// Nothing is left to be measured.
    Over,
}

/// What is to be done about drills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "kebab-case")]
pub enum DrillCommand {
    /// Takes a node away.
    Begin {
        node: NodeId,
        /// For how long; `None`: as long as the slowest of its services may take, and 10 s.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        away: Option<Span>,
        /// How long replicas of a lost node are waited for here, unless the cluster has decided that.
        replace_after: Span,
        /// Whether the node leads, as far as whoever asks knows.
        #[serde(default)]
        led: bool,
    },
    /// What the leader saw, so long after the node fell silent.
    Note { id: u64, after: Span, facts: Vec<Fact> },
}

/// Why no drill begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "because", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoDrill {
    #[error("the cluster has no other node that could take over")]
    Alone,
    #[error("drill {id} of {node} is not over")]
    Runs { id: u64, node: String },
    #[error("{node} is not joined")]
    NotJoined { node: String },
    #[error("{node} is not heard")]
    NotHeard { node: String },
    #[error("{node} is being emptied or about to end")]
    Leaving { node: String },
    #[error("without {node}, {left} of {voters} voting managers would be left, and {needed} are needed to decide")]
    LosesQuorum { node: String, left: usize, voters: usize, needed: usize },
}

/// What whoever leads sees of a drill.
#[derive(Debug)]
pub struct Sight<'a> {
    pub state: &'a ClusterState,
    pub leader: NodeId,
    /// How long ago the node fell silent.
    pub after: Span,
    /// Whether a majority of those who decide does not hear the node.
    pub unheard: bool,
    /// Whether the leader hears it.
    pub heard: bool,
    /// Replicas that are healthy by the word of nodes that are heard.
    pub healthy: &'a BTreeSet<ReplicaId>,
    /// The same, whose process is there.
    pub running: &'a BTreeSet<ReplicaId>,
}

impl DrillRecord {
    /// Until when the node is away, by the clock of whoever stamped the beginning.
    #[must_use]
    pub fn until(&self) -> WallTime {
        let span = self.away.0 + SILENT_AFTER.0;
        WallTime(self.began.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    /// How many services have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> u32 {
        let count = self.services.values().filter(|service| service.verdict == verdict).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Whether anything was new.
    fn learn(&mut self, after: Span, fact: &Fact, exists: impl Fn(&ServiceName) -> bool) -> bool {
        fn first<T>(place: &mut Option<T>, value: T) -> bool {
            let new = place.is_none();
            if new {
                *place = Some(value);
            }
            new
        }
        match fact {
            Fact::Succeeded { node } => first(&mut self.successor, (*node, after)),
            Fact::Noticed => first(&mut self.noticed, after),
            Fact::Placed { service, ordinal, node } => {
                let lost = self.services.get_mut(service).and_then(|service| service.lost.get_mut(ordinal));
                lost.is_some_and(|lost| first(&mut lost.placed, (*node, after)))
            }
            Fact::Serving { service, ordinal } => {
                let lost = self.services.get_mut(service).and_then(|service| service.lost.get_mut(ordinal));
                lost.is_some_and(|lost| first(&mut lost.serving, after))
            }
            Fact::Whole { service } => {
                let service = self.services.get_mut(service).filter(|service| service.verdict == Verdict::Open);
                service.is_some_and(|service| {
                    service.verdict = if after <= service.limit { Verdict::Ok } else { Verdict::Late };
                    first(&mut service.whole, after)
                })
            }
            Fact::Returned => {
                self.judge(&exists);
                first(&mut self.returned, after)
            }
            Fact::Over => {
                self.judge(&exists);
                first(&mut self.ended, after)
            }
        }
    }

    /// What is not whole by now is so because the node is back, or not at all.
    fn judge(&mut self, exists: &impl Fn(&ServiceName) -> bool) {
        for (name, service) in self.services.iter_mut().filter(|(_, service)| service.verdict == Verdict::Open) {
            service.verdict = if exists(name) { Verdict::NotRecovered } else { Verdict::Gone };
        }
    }
}

/// What is to be written down now, in its order. Pure: equal arguments give equal facts.
#[must_use]
pub fn look(drill: &DrillRecord, seen: &Sight<'_>) -> Vec<Fact> {
    let mut facts = Vec::new();
    if drill.is_over() {
        return facts;
    }
    if drill.led && drill.successor.is_none() && seen.leader != drill.node {
        facts.push(Fact::Succeeded { node: seen.leader });
    }
    if drill.noticed.is_none() && seen.unheard {
        facts.push(Fact::Noticed);
    }
    let noticed = drill.noticed.is_some() || seen.unheard;
    let overdue = seen.after.0 >= drill.away.0 + BACK_WITHIN.0;
    if noticed {
        let moves = |verdict| !matches!(verdict, Verdict::Stays | Verdict::Gone);
        for (name, service) in drill.services.iter().filter(|(_, service)| moves(service.verdict)) {
            facts_of(name, service, drill, seen, &mut facts);
        }
    }
    let joined = seen.state.nodes.get(&drill.node).is_some_and(|node| node.health == Health::Joined);
    // It was away, or its time is over and nobody noticed.
    let was_away = drill.noticed.is_some() || seen.after.0 >= drill.away.0 + REPLACED_WITHIN.0;
    let is_back = seen.after >= AWAY_MIN && was_away && joined && seen.heard && !seen.unheard;
    if is_back {
        facts.extend([Fact::Returned, Fact::Over]);
    } else if overdue {
        facts.push(Fact::Over);
    }
    facts
}

fn facts_of(name: &ServiceName, service: &ServiceDrill, drill: &DrillRecord, seen: &Sight<'_>, facts: &mut Vec<Fact>) {
    let Some(record) = seen.state.services.get(name) else { return };
    let elsewhere = || {
        let runs = |replica: &&ReplicaRecord| replica.service == *name && replica.phase == Phase::Run;
        seen.state.replicas.values().filter(runs).filter(|replica| replica.node != drill.node)
    };
    for (ordinal, lost) in &service.lost {
        // One of an earlier entry runs beside it, as in the middle of an update, and takes nobody's place.
        let mut heirs = elsewhere().filter(|replica| replica.ordinal == *ordinal && replica.revision > drill.index);
        let Some(heir) = heirs.next() else { continue };
        if lost.placed.is_none() {
            facts.push(Fact::Placed { service: name.clone(), ordinal: *ordinal, node: heir.node });
        }
        if lost.serving.is_none() && seen.healthy.contains(&heir.id) {
            facts.push(Fact::Serving { service: name.clone(), ordinal: *ordinal });
        }
    }
    // What is promised for a service that runs once ends when its program is started.
    let counts = if service.mode == Mode::Singleton { seen.running } else { seen.healthy };
    let there = elsewhere().filter(|replica| counts.contains(&replica.id)).count();
    if service.verdict == Verdict::Open && there >= seen.state.wanted(record) as usize {
        facts.push(Fact::Whole { service: name.clone() });
    }
}

impl ClusterState {
    /// The drill that is not over.
    #[must_use]
    pub fn drill(&self) -> Option<&DrillRecord> {
        self.drills.values().next_back().filter(|drill| !drill.is_over())
    }

    pub(crate) fn decide_drill(&self, changes: &mut Changes, command: &DrillCommand) -> Result<(), Refusal> {
        match command {
            DrillCommand::Begin { node, away, replace_after, led } => {
                self.begin_drill(changes, *node, *away, *replace_after, *led)
            }
            DrillCommand::Note { id, after, facts } => {
                self.note_drill(changes, *id, *after, facts);
                Ok(())
            }
        }
    }

    /// Whether a node may be taken away, as far as is decided; who is heard is the leader's to know.
    ///
    /// # Errors
    /// Why not.
    pub fn may_drill(&self, node: NodeId) -> Result<(), Refusal> {
        let no = |why| Err(Refusal::NoDrill { why });
        let target = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if let Some(drill) = self.drill() {
            return no(NoDrill::Runs { id: drill.id, node: drill.name.clone() });
        }
        if target.health != Health::Joined {
            return no(NoDrill::NotJoined { node: target.identity.name.clone() });
        }
        for other in self.nodes.values().filter(|other| other.health != Health::Left) {
            let name = || other.identity.name.clone();
            if other.health == Health::Down {
                return no(NoDrill::NotJoined { node: name() });
            }
            let drains = matches!(other.availability, Availability::Draining(_));
            if drains || other.handing_over || other.expelling || other.restart == Some(other.boot) {
                return no(NoDrill::Leaving { node: name() });
            }
        }
        let others = self.nodes.values().filter(|other| other.health == Health::Joined);
        if others.count() < 2 {
            return no(NoDrill::Alone);
        }
        Ok(())
    }

    /// What is promised for a service, and until when it has to be whole again when a node is lost.
    #[must_use]
    pub fn promised(&self, spec: &ServiceSpec, replace_after: Span) -> (Span, Span) {
        match spec.mode {
            Mode::Singleton => (self.failover(spec), self.failover(spec)),
            // Another one is active by then, and another standby in its place a moment later.
            Mode::ActivePassive => {
                let setting = self.members.failover.unwrap_or(replace_after).max(self.failover(spec));
                (self.failover(spec), Span(setting.0 + REPLACED_WITHIN.0))
            }
            Mode::Replicated | Mode::EveryNode => {
                let setting = self.members.failover.unwrap_or(replace_after);
                (setting, Span(setting.0 + REPLACED_WITHIN.0))
            }
        }
    }

    /// What a drill of the node would look at, and for how long the node would be away.
    #[must_use]
    pub fn would_drill(&self, node: NodeId, replace_after: Span) -> (BTreeMap<ServiceName, ServiceDrill>, Span) {
        let mut services: BTreeMap<ServiceName, ServiceDrill> = BTreeMap::new();
        let here = |replica: &&ReplicaRecord| replica.node == node && replica.phase == Phase::Run;
        for replica in self.replicas.values().filter(here) {
            let Some(service) = self.services.get(&replica.service) else { continue };
            let (setting, limit) = self.promised(&service.spec, replace_after);
            let stays = service.spec.mode == Mode::EveryNode || service.spec.without_quorum == WithoutQuorum::Keep;
            let verdict = if stays { Verdict::Stays } else { Verdict::Open };
            let mode = service.spec.mode;
            let new = || ServiceDrill { mode, setting, limit, lost: BTreeMap::new(), whole: None, verdict };
            services
                .entry(replica.service.clone())
                .or_insert_with(new)
                .lost
                .insert(replica.ordinal, LostCopy::default());
        }
        let open = services.values().filter(|service| service.verdict == Verdict::Open);
        let slowest = open.map(|service| service.limit).max().unwrap_or(REPLACED_WITHIN);
        (services, Span(slowest.0 + AWAY_MORE.0).clamp(AWAY_MIN, AWAY_MAX))
    }

    fn begin_drill(
        &self,
        changes: &mut Changes,
        node: NodeId,
        away: Option<Span>,
        replace_after: Span,
        led: bool,
    ) -> Result<(), Refusal> {
        self.may_drill(node)?;
        if let Some(away) = away.filter(|away| !(AWAY_MIN..=AWAY_MAX).contains(away)) {
            let problem = format!("is {away}; it must be {AWAY_MIN} to {AWAY_MAX}");
            return Err(Refusal::Invalid { field: "away".into(), problem });
        }
        let target = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        let (services, default) = self.would_drill(node, replace_after);
        let id = self.drills.keys().next_back().map_or(1, |last| last + 1);
        let drill = DrillRecord {
            id,
            node,
            name: target.identity.name.clone(),
            boot: target.boot,
            away: away.unwrap_or(default),
            by: None,
            index: changes.index,
            began: changes.now,
            led,
            successor: None,
            noticed: None,
            returned: None,
            ended: None,
            services,
        };
        changes.event(Happening::DrillBegan { drill: id, node, away: drill.away });
        changes.list.push(Change::Drill(Box::new(drill)));
        let too_many = (self.drills.len() + 1).saturating_sub(DRILLS_KEPT);
        changes.list.extend(self.drills.keys().take(too_many).map(|drill| Change::DrillGone { drill: *drill }));
        Ok(())
    }

    fn note_drill(&self, changes: &mut Changes, id: u64, after: Span, facts: &[Fact]) {
        let Some(known) = self.drills.get(&id).filter(|drill| !drill.is_over()) else { return };
        let mut drill = known.clone();
        let exists = |service: &ServiceName| self.services.contains_key(service);
        let mut new = false;
        for fact in facts {
            new |= drill.learn(after, fact, exists);
        }
        if !new {
            return;
        }
        let node = drill.node;
        for (name, service) in &drill.services {
            let before = known.services.get(name).map(|service| service.verdict);
            if before == Some(Verdict::Open) && service.verdict != Verdict::Open {
                changes.event(Happening::DrillMeasured {
                    drill: id,
                    service: name.clone(),
                    took: service.whole,
                    limit: service.limit,
                    verdict: service.verdict,
                });
            }
        }
        if drill.is_over() {
            changes.event(Happening::DrillEnded {
                drill: id,
                node,
                ok: drill.count(Verdict::Ok),
                late: drill.count(Verdict::Late),
                not_recovered: drill.count(Verdict::NotRecovered),
                returned: drill.returned,
            });
        }
        changes.list.push(Change::Drill(Box::new(drill)));
    }
}

#[cfg(test)]
mod tests;
