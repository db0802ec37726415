//! Every order of events in small clusters: no two ever hold a lease, and each rule is needed.
//!
//! The cores are the real ones; the log around them is Raft reduced to what matters here: terms, logs that
//! may hold what is never committed, elections by up-to-date logs, majorities. Time runs in whole seconds
//! and alike for all, the guard is zero, and renewals arrive late, never, or in any order. Acknowledgements
//! arrive at once: when they do changes nothing about until when the lease is valid, only since when. Each [`Flaw`]
//! takes one rule away, and the checker must find how two come to hold the lease then.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use quorate_lease::{Age, Electorate, Holder, Lease, Life, Renewal, Verdict, Voter, verdict};
use quorate_model::id::{LogIndex, NodeId};
use quorate_model::time::Timestamp;
use stateright::{Checker, Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const LIFE: Life = Life { ttl: Duration::from_secs(2), guard: Duration::ZERO };

fn lease() -> Lease {
    Lease { name: "s".parse().unwrap(), epoch: 1 }
}

fn node(n: usize) -> NodeId {
    NodeId::from_u128(n as u128)
}

fn at(second: u8) -> Timestamp {
    Timestamp(Duration::from_secs(second.into()))
}

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// The epoch is raised when a majority is silent, without a fence.
    NoFence,
    /// Answers count whether the voter has the fence in its log or not.
    AnswersWithoutFence,
    /// A voter that starts claims that it never acknowledged anything.
    StartForgets,
    /// The holder goes by the voters with whom the cluster began, whatever an acknowledgement names.
    FormerVotersCount,
    /// New voters claim that they never acknowledged anything.
    VotersComeInnocent,
    /// The lease is counted from when the majority has answered.
    CountedFromAnswer,
    /// A fence that is in the voter's log counts as an answer although it may still be overwritten.
    AnswersWithAnyFence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    /// A new leader's first.
    Noop,
    Fence,
    Raise,
    /// The configuration with this number.
    Configure(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Member {
    voter: Voter,
    /// With the term of each entry.
    log: Vec<(u8, Entry)>,
    /// So many of them are committed, as far as it was told.
    told: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: u8,
    members: Vec<Member>,
    holder: Holder,
    renewals: u8,
    /// On their way to a member.
    asked: BTreeSet<(usize, Renewal)>,
    leader: usize,
    term: u8,
    answers: BTreeMap<usize, Age>,
    committed: usize,
    starts: u8,
    /// Who acknowledged; only of use to [`Flaw::CountedFromAnswer`].
    heard: BTreeSet<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Act {
    Second,
    Renew,
    Renewal(usize, Renewal),
    Start(usize),
    Elect(usize),
    Replicate(usize),
    Ask(usize),
    Judge,
    Reconfigure,
}

/// What is explored.
#[derive(Clone)]
struct Scenario {
    members: usize,
    /// Of which the first is in force at the beginning; each leads to the next.
    configurations: Vec<Electorate>,
    seconds: u8,
    renewals: u8,
    starts: u8,
    elections: u8,
    /// A new leader begins with an entry of its own, and entries reach the others one by one.
    piecemeal: bool,
    flaw: Option<Flaw>,
}

impl Scenario {
    /// Three voters, one of which may start again.
    fn three() -> Scenario {
        Scenario {
            members: 3,
            configurations: vec![electorate(&[0, 1, 2], &[])],
            seconds: 3,
            renewals: 1,
            starts: 1,
            elections: 0,
            piecemeal: false,
            flaw: None,
        }
    }

    /// Three voters, a leader that is deposed, and a log of which every piece arrives by itself.
    fn deposed() -> Scenario {
        Scenario { starts: 0, elections: 1, piecemeal: true, ..Scenario::three() }
    }

    /// One voter gives way to another: by joint consensus, as everywhere.
    fn moving() -> Scenario {
        Scenario {
            members: 2,
            configurations: vec![electorate(&[0], &[]), electorate(&[1], &[0]), electorate(&[1], &[])],
            starts: 0,
            elections: 1,
            ..Scenario::three()
        }
    }

    /// The same, and back: the last voters are those with whom it began.
    fn there_and_back() -> Scenario {
        let mut scenario = Scenario::moving();
        scenario.configurations.extend([electorate(&[0], &[1]), electorate(&[0], &[])]);
        Scenario { elections: 0, ..scenario }
    }

    fn with(self, flaw: Flaw) -> Scenario {
        Scenario { flaw: Some(flaw), ..self }
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The number of the newest configuration among these entries.
    fn configured(log: &[(u8, Entry)]) -> usize {
        let number = log.iter().rev().find_map(|(_, entry)| match entry {
            Entry::Configure(number) => Some(*number),
            _ => None,
        });
        number.unwrap_or(0)
    }

    /// Who votes as of these entries.
    fn newest(&self, log: &[(u8, Entry)]) -> &Electorate {
        &self.configurations[Scenario::configured(log)]
    }

    /// The member's log is this from now on, of which so many entries are committed as far as it is told.
    fn write(&self, world: &mut World, member: usize, log: Vec<(u8, Entry)>, committed: usize) {
        let now = world.now;
        let member = &mut world.members[member];
        let same = member.log.iter().zip(&log).take_while(|(one, other)| one == other).count();
        // Each configuration in turn, as the log has them.
        let to = |member: &mut Member, log: &[(u8, Entry)]| {
            let now = if self.is(Flaw::VotersComeInnocent) { at(0) } else { at(now) };
            member.voter.configured(now, self.newest(log));
        };
        to(member, &log[..same]);
        (same..log.len()).for_each(|end| to(member, &log[..=end]));
        member.log = log;
        member.told = committed.min(member.log.len()).max(member.told);
        self.tell(member);
    }

    fn tell(&self, member: &mut Member) {
        member.voter.cut(LogIndex(0));
        for (position, (_, entry)) in member.log.iter().enumerate() {
            if *entry == Entry::Fence {
                member.voter.fenced(LogIndex(position as u64), lease());
            }
        }
        if member.told > 0 {
            member.voter.committed(LogIndex(member.told as u64 - 1));
        }
    }

    /// What the leader can count is committed.
    fn commit(&self, world: &mut World) {
        let log = world.members[world.leader].log.clone();
        // An entry of an earlier term goes with a later one.
        while let Some(end) = (world.committed..log.len()).find(|end| log[*end].0 == world.term) {
            let has = |member: &&Member| member.log.get(..=end) == Some(&log[..=end]);
            let holders = members(world.members.iter().enumerate().filter(|(_, m)| has(m)).map(|(n, _)| n));
            // Consensus counts by what is committed before.
            if !self.newest(&log[..world.committed]).is_majority(&holders) {
                return;
            }
            world.committed = end + 1;
        }
    }

    /// The leader knows what it counted.
    fn told(&self, world: &mut World) {
        let (leader, committed) = (world.leader, world.committed);
        let member = &mut world.members[leader];
        member.told = committed.max(member.told);
        self.tell(member);
    }

    /// What a member would have of the log next.
    fn piece(&self, world: &World, member: usize) -> Vec<(u8, Entry)> {
        let (log, has) = (&world.members[world.leader].log, &world.members[member].log);
        let same = log.iter().zip(has).take_while(|(one, other)| one == other).count();
        let end = if self.piecemeal { (same + 1).min(log.len()) } else { log.len() };
        log[..end].to_vec()
    }

    fn committed<'a>(&self, world: &'a World) -> &'a [(u8, Entry)] {
        &world.members[world.leader].log[..world.committed]
    }

    fn verdict(&self, world: &World) -> Verdict {
        let log = &world.members[world.leader].log;
        let fenced = self.committed(world).iter().any(|(_, entry)| *entry == Entry::Fence);
        let answers = world.answers.iter().map(|(n, age)| {
            let fenced = age.fenced || self.is(Flaw::AnswersWithoutFence);
            (node(*n), Age { fenced, ..age.clone() })
        });
        match verdict(LIFE, self.newest(log), fenced, &answers.collect()) {
            Verdict::Fence if self.is(Flaw::NoFence) => Verdict::Raise,
            verdict => verdict,
        }
    }

    fn acknowledge(&self, world: &mut World, n: usize, number: u64) {
        let named = world.members[n].voter.voters().clone();
        let voters = if self.is(Flaw::FormerVotersCount) { self.configurations[0].clone() } else { named };
        if self.is(Flaw::CountedFromAnswer) {
            // As if what all of them acknowledged had been sent now.
            world.heard.insert(n);
            let number = world.holder.renew(at(world.now)).number;
            for n in &world.heard {
                world.holder.acknowledged(node(*n), number, &voters);
            }
            return;
        }
        world.holder.acknowledged(node(n), number, &voters);
    }

    /// What a member answers now.
    fn age(&self, world: &World, n: usize) -> Age {
        let age = world.members[n].voter.age(at(world.now), &lease());
        let any = self.is(Flaw::AnswersWithAnyFence) && world.members[n].log.iter().any(|(_, e)| *e == Entry::Fence);
        Age { fenced: age.fenced || any, ..age }
    }

    fn may_elect(&self, world: &World, candidate: usize) -> bool {
        let rank = |member: &Member| (member.log.last().map_or(0, |(term, _)| *term), member.log.len());
        let own = rank(&world.members[candidate]);
        let votes = world.members.iter().enumerate().filter(|(_, member)| rank(member) <= own).map(|(n, _)| n);
        let configuration = self.newest(self.committed(world));
        let known =
            configuration.voters.contains(&node(candidate)) || configuration.outgoing.contains(&node(candidate));
        known && configuration.is_majority(&members(votes))
    }
}

fn members(numbers: impl Iterator<Item = usize>) -> BTreeSet<NodeId> {
    numbers.map(node).collect()
}

fn electorate(voters: &[usize], outgoing: &[usize]) -> Electorate {
    let nodes = |numbers: &[usize]| members(numbers.iter().copied());
    Electorate { voters: nodes(voters), outgoing: nodes(outgoing) }
}

impl Model for Scenario {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let mut voter = Voter::starts(at(0), self.configurations[0].clone());
        voter.raised(&lease());
        let member = Member { voter, log: Vec::new(), told: 0 };
        vec![World {
            now: 0,
            members: vec![member; self.members],
            holder: Holder::of(lease(), LIFE),
            renewals: 0,
            asked: BTreeSet::new(),
            leader: 0,
            term: 1,
            answers: BTreeMap::new(),
            committed: 0,
            starts: 0,
            heard: BTreeSet::new(),
        }]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if self.committed(world).iter().any(|(_, entry)| *entry == Entry::Raise) {
            // No voter of a majority acknowledges any more: what holds now is what was to be shown.
            return;
        }
        if world.now < self.seconds {
            acts.push(Act::Second);
        }
        if world.renewals < self.renewals {
            acts.push(Act::Renew);
        }
        acts.extend(world.asked.iter().map(|(n, renewal)| Act::Renewal(*n, renewal.clone())));
        let log = &world.members[world.leader].log;
        for n in 0..self.members {
            if world.starts < self.starts {
                acts.push(Act::Start(n));
            }
            let behind = world.members[n].log != *log || world.members[n].told < world.committed;
            if n != world.leader && behind {
                acts.push(Act::Replicate(n));
            }
            if n != world.leader && world.term <= self.elections && self.may_elect(world, n) {
                acts.push(Act::Elect(n));
            }
            // Others change nothing but how long it is waited.
            let age = self.age(world, n);
            let news =
                world.answers.get(&n).is_none_or(|known| (known.fenced, &known.voters) != (age.fenced, &age.voters));
            if age.since >= LIFE.outlived() && news {
                acts.push(Act::Ask(n));
            }
        }
        let proposed = |entry: Entry| log.iter().any(|(_, known)| *known == entry);
        let judged = match self.verdict(world) {
            Verdict::Fence => !proposed(Entry::Fence),
            Verdict::Raise => !proposed(Entry::Raise),
            Verdict::Wait(_) => false,
        };
        if judged {
            acts.push(Act::Judge);
        }
        let next = Scenario::configured(log) + 1;
        let settled = world.committed == log.len();
        if settled && next < self.configurations.len() {
            acts.push(Act::Reconfigure);
        }
    }

    fn next_state(&self, last: &World, act: Act) -> Option<World> {
        let mut world = last.clone();
        let now = at(world.now);
        let propose = |world: &mut World, entry: Entry| {
            let mut log = world.members[world.leader].log.clone();
            log.push((world.term, entry));
            self.write(world, world.leader, log, 0);
        };
        match act {
            Act::Second => world.now += 1,
            Act::Renew => {
                let renewal = world.holder.renew(now);
                world.renewals += 1;
                world.asked.extend((0..self.members).map(|n| (n, renewal.clone())));
            }
            Act::Renewal(n, renewal) => {
                world.asked.remove(&(n, renewal.clone()));
                if !world.members[n].voter.renew(now, &renewal.lease) {
                    return None;
                }
                self.acknowledge(&mut world, n, renewal.number);
            }
            Act::Start(n) => {
                world.starts += 1;
                let voters = self.newest(&world.members[n].log).clone();
                let since = if self.is(Flaw::StartForgets) { at(0) } else { now };
                let mut voter = Voter::starts(since, voters);
                voter.raised(&lease());
                world.members[n].voter = voter;
                world.members[n].told = 0;
                self.tell(&mut world.members[n]);
            }
            Act::Elect(n) => {
                world.leader = n;
                world.term += 1;
                world.answers.clear();
                if self.piecemeal {
                    propose(&mut world, Entry::Noop);
                }
            }
            Act::Replicate(n) => {
                let (log, committed) = (self.piece(&world, n), world.committed);
                self.write(&mut world, n, log, committed);
            }
            Act::Ask(n) => {
                let age = self.age(&world, n);
                world.answers.insert(n, Age { since: LIFE.outlived(), ..age });
            }
            Act::Judge => match self.verdict(&world) {
                Verdict::Fence => propose(&mut world, Entry::Fence),
                Verdict::Raise => propose(&mut world, Entry::Raise),
                Verdict::Wait(_) => return None,
            },
            Act::Reconfigure => {
                let next = Scenario::configured(&world.members[world.leader].log) + 1;
                propose(&mut world, Entry::Configure(next));
            }
        }
        self.commit(&mut world);
        self.told(&mut world);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nobody holds a lease whose epoch was raised", |model: &Scenario, world: &World| {
                let raised = model.committed(world).iter().any(|(_, entry)| *entry == Entry::Raise);
                !(raised && world.holder.is_valid(at(world.now)))
            }),
            Property::sometimes("an epoch is raised", |model: &Scenario, world: &World| {
                model.committed(world).iter().any(|(_, entry)| *entry == Entry::Raise)
            }),
            Property::sometimes("an epoch is raised after the lease was held", |model: &Scenario, world: &World| {
                let raised = model.committed(world).iter().any(|(_, entry)| *entry == Entry::Raise);
                raised && world.holder.valid_until().is_some()
            }),
            Property::sometimes("the lease is held", |_: &Scenario, world: &World| {
                world.holder.is_valid(at(world.now))
            }),
        ]
    }
}

const HOLDS: &str = "nobody holds a lease whose epoch was raised";

fn is_safe(scenario: Scenario) {
    let checker = scenario.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
}

fn is_found(scenario: Scenario) {
    let flaw = scenario.flaw;
    let checker =
        scenario.checker().threads(2).finish_when(stateright::HasDiscoveries::AnyOf([HOLDS].into())).spawn_bfs().join();
    assert!(checker.discovery(HOLDS).is_some(), "{flaw:?} is not found");
}

#[test]
fn n1_three_voters_one_of_which_starts_again() {
    is_safe(Scenario::three());
}

#[test]
fn n1_voters_that_change_and_a_new_leader() {
    is_safe(Scenario::moving());
}

#[test]
fn n1_a_leader_that_is_deposed_and_entries_that_arrive_one_by_one() {
    is_safe(Scenario::deposed());
}

#[test]
fn n1_voters_that_go_and_come_back() {
    is_safe(Scenario::there_and_back());
}

#[test]
fn each_rule_is_needed() {
    is_found(Scenario::three().with(Flaw::NoFence));
    is_found(Scenario::three().with(Flaw::AnswersWithoutFence));
    is_found(Scenario::three().with(Flaw::StartForgets));
    is_found(Scenario::three().with(Flaw::CountedFromAnswer));
    is_found(Scenario::deposed().with(Flaw::AnswersWithAnyFence));
    is_found(Scenario::moving().with(Flaw::VotersComeInnocent));
    is_found(Scenario::moving().with(Flaw::FormerVotersCount));
}
