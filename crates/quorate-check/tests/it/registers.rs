//! A simulated store of registers that keeps its promise, and what its clients record.

use crate::dice::Dice;
use quorate_check::history::{Client, End, Moment, Operation};
use quorate_check::register::{Answer, Call, Content, Key, Value};
use quorate_check::witness::{Asked, Evidence, FinalState, Learnt, Life, Seen};
use quorate_model::id::LogIndex;
use std::collections::BTreeMap;

/// What a run is like.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) clients: u32,
    /// Of each client.
    pub(crate) operations: u64,
    pub(crate) keys: u64,
    /// Values are drawn from so many; 0: each is written once.
    pub(crate) values: u64,
    pub(crate) unknown_percent: u64,
    pub(crate) refused_percent: u64,
    pub(crate) local_percent: u64,
    /// Of the writes.
    pub(crate) cas_percent: u64,
    /// The end of every unknown write is learnt.
    pub(crate) learns: bool,
}

impl Load {
    pub(crate) const SMALL: Load = Load {
        clients: 4,
        operations: 15,
        keys: 3,
        values: 0,
        unknown_percent: 10,
        refused_percent: 5,
        local_percent: 20,
        cas_percent: 30,
        learns: true,
    };
}

/// A run, and what really happened in it.
pub(crate) struct Run {
    pub(crate) evidence: Evidence,
    /// What each register holds from an index on.
    contents: BTreeMap<Key, BTreeMap<LogIndex, Content>>,
}

impl Run {
    pub(crate) fn content(&self, key: Key, at: LogIndex) -> Content {
        let versions = self.contents.get(&key)?;
        versions.range(..=at).next_back().and_then(|(_, content)| *content)
    }

    /// Every content that the register ever had.
    pub(crate) fn contents(&self, key: Key) -> Vec<Content> {
        self.contents.get(&key).into_iter().flatten().map(|(_, content)| *content).collect()
    }
}

struct Planned {
    client: u32,
    asked: u64,
    asks: Asked,
    /// `None`: it never takes effect.
    effect: Option<u64>,
    /// `None`: unknown.
    answered: Option<u64>,
}

fn plan(load: Load, dice: &mut Dice) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mut fresh = 0;
    for client in 0..load.clients {
        let mut now = dice.below(30);
        for _ in 0..load.operations {
            let key = Key(dice.below(load.keys));
            let mut value = || {
                fresh += 1;
                Value(if load.values == 0 { fresh } else { dice.below(load.values) })
            };
            let (to, from) = (value(), value());
            let asks = if dice.percent(load.local_percent) {
                let life = if dice.percent(80) {
                    Some(Life { node: u32::try_from(dice.below(3)).unwrap(), start: 0 })
                } else {
                    None
                };
                Asked::Local { key, life }
            } else {
                Asked::Linearizable(match dice.below(10) {
                    0..5 => Call::Read { key },
                    _ if dice.percent(load.cas_percent) => {
                        // With fresh values a guess would never be right: `run` puts in what is there.
                        Call::Cas { key, from: if dice.percent(20) { None } else { Some(from) }, to }
                    }
                    5 if dice.percent(50) => Call::Delete { key },
                    _ => Call::Write { key, value: to },
                })
            };
            let asked = now;
            let effect = asked + dice.below(20);
            let answered = effect + dice.below(20);
            now = answered + 1 + dice.below(10);
            let refused = dice.percent(load.refused_percent);
            let unknown = !refused && dice.percent(load.unknown_percent);
            // What is unknown may also happen long after its client went on.
            let late = if unknown && dice.percent(50) { dice.below(300) } else { 0 };
            let never = unknown && dice.percent(40);
            planned.push(Planned {
                client,
                asked,
                asks,
                effect: (!refused && !never).then_some(effect + late),
                answered: (!unknown).then_some(answered),
            });
        }
    }
    planned.sort_by_key(|operation| operation.asked);
    planned
}

/// Everything takes effect at one moment between question and answer, on one copy.
pub(crate) fn run(load: Load, seed: u64) -> Run {
    let mut dice = Dice::new(seed);
    let mut planned = plan(load, &mut dice);
    let over = planned.iter().filter_map(|operation| operation.answered).max().unwrap_or(0);
    let mut effects: Vec<(u64, usize)> = planned
        .iter()
        .enumerate()
        .filter_map(|(position, operation)| Some((operation.effect?, position)))
        .filter(|(effect, _)| *effect <= over)
        .collect();
    effects.sort_unstable();
    let mut contents: BTreeMap<Key, BTreeMap<LogIndex, Content>> = BTreeMap::new();
    let mut seen: BTreeMap<usize, Seen> = BTreeMap::new();
    let mut last = LogIndex(0);
    let mut nodes: BTreeMap<u32, (u32, LogIndex)> = BTreeMap::new();
    for (_, position) in effects {
        let operation = &mut planned[position];
        let content = |contents: &BTreeMap<Key, BTreeMap<LogIndex, Content>>, key: Key, at: LogIndex| {
            contents.get(&key).and_then(|versions| versions.range(..=at).next_back()).and_then(|(_, content)| *content)
        };
        match &mut operation.asks {
            Asked::Local { key, life } => {
                let mut behind = dice.below(last.0 + 1);
                if let Some(life) = life {
                    let (start, applied) = nodes.entry(life.node).or_insert((0, LogIndex(0)));
                    if dice.percent(5) {
                        (*start, *applied) = (*start + 1, LogIndex(0));
                    }
                    behind = applied.0.max(behind);
                    (life.start, *applied) = (*start, LogIndex(behind));
                }
                let index = LogIndex(behind);
                seen.insert(position, Seen { answer: Answer::Read(content(&contents, *key, index)), index });
            }
            Asked::Linearizable(call) => {
                let before = content(&contents, call.key(), last);
                if let Call::Cas { from, .. } = call
                    && load.values == 0
                    && dice.percent(50)
                {
                    *from = before;
                }
                let (after, answer) = call.run(before);
                if !call.is_read() {
                    // Entries of others are between those of the registers.
                    last = LogIndex(last.0 + 1 + dice.below(2));
                    contents.entry(call.key()).or_default().insert(last, after);
                }
                seen.insert(position, Seen { answer, index: last });
            }
        }
    }
    let mut evidence = Evidence::default();
    for (position, operation) in planned.into_iter().enumerate() {
        let seen = seen.get(&position).copied();
        let end = match (operation.answered, seen) {
            (Some(at), Some(answer)) => End::Answered { at: Moment(at), answer },
            (Some(at), None) => End::Refused { at: Moment(at) },
            (None, _) => End::Unknown,
        };
        let writes = matches!(operation.asks, Asked::Linearizable(call) if !call.is_read());
        if load.learns && writes && end == End::Unknown {
            let learnt = seen.map_or(Learnt::NoEffect, |seen| Learnt::Committed {
                index: seen.index,
                answer: dice.percent(50).then_some(seen.answer),
            });
            evidence.learnt.insert(position, learnt);
        }
        let (client, asked) = (Client(operation.client), Moment(operation.asked));
        evidence.history.push(Operation { client, asked, call: operation.asks, end });
    }
    let last_contents = contents.iter().filter_map(|(key, versions)| {
        let (_, content) = versions.last_key_value()?;
        Some((*key, (*content)?))
    });
    evidence.final_state = Some(FinalState { index: last, contents: last_contents.collect() });
    Run { evidence, contents }
}
