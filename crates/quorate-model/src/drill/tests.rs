//! Drills as records: when one may begin, and what is made of what the leader sees.

use super::*;
use crate::command::{Command, Step};
use crate::place::Drain;
use crate::spec::{Format, parse};
use crate::state::{NodeIdentity, NodeRecord, Role};

const SPECS: &str = "\
    [[service]]\nname = 'web'\ncommand = ['/web']\nreplicas = 2\n\
    [[service]]\nname = 'once'\ncommand = ['/once']\nmode = 'singleton'\nfailover = '20s'\n\
    [[service]]\nname = 'kept'\ncommand = ['/kept']\nmode = 'singleton'\nwithout_quorum = 'keep'\n\
    [[service]]\nname = 'agent'\ncommand = ['/agent']\nmode = 'every-node'\n";

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number << 64)
}

fn replica(number: u128) -> ReplicaId {
    ReplicaId::from_u128(number)
}

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

fn secs(secs: u64) -> Span {
    Span::from_secs(secs)
}

/// A cluster as the log makes it.
struct Cluster {
    state: ClusterState,
    index: u64,
}

impl Cluster {
    /// `n1`, `n2` and `n3`, with everything on `n1` but the second copy of `web`, which is on `n2`.
    fn new() -> Cluster {
        let mut cluster = Cluster { state: ClusterState::default(), index: 0 };
        for number in 1..=3 {
            let identity = NodeIdentity {
                id: node(number),
                name: format!("n{number}"),
                roles: BTreeSet::from([Role::Manager, Role::Worker]),
                api: format!("127.0.0.{number}:7000"),
                link: format!("127.0.0.{number}:7001"),
                host: format!("127.0.0.{number}"),
            };
            let record = NodeRecord::started(identity, Health::Joined, WallTime(0));
            cluster.state.absorb(LogIndex(1), &[Change::Node(record)]);
        }
        cluster.run(&Command::ApplySpec { document: parse(SPECS, Format::Toml).unwrap() }).unwrap();
        cluster.place(1, "web", 0, 1);
        cluster.place(2, "web", 1, 2);
        cluster.place(3, "once", 0, 1);
        cluster.place(4, "kept", 0, 1);
        cluster.place(5, "agent", 0, 1);
        cluster
    }

    fn run(&mut self, command: &Command) -> Result<Vec<Change>, Refusal> {
        self.index += 1;
        let changes = self.state.decide(LogIndex(self.index), WallTime(self.index * 1_000), command)?;
        self.state.absorb(LogIndex(self.index), &changes);
        Ok(changes)
    }

    fn steps(&mut self, steps: Vec<Step>) {
        let expected = self.state.planned_on;
        self.run(&Command::CarryOut { expected, steps }).unwrap();
    }

    fn place(&mut self, number: u128, service: &str, ordinal: u32, on: u128) {
        let step = Step::Place {
            replica: replica(number),
            service: name(service),
            ordinal,
            node: node(on),
            version: None,
            epoch: None,
        };
        self.steps(vec![step]);
    }

    fn begin(&mut self, number: u128, away: Option<Span>) -> Result<Vec<Change>, Refusal> {
        let command = DrillCommand::Begin { node: node(number), away, replace_after: secs(30), led: number == 1 };
        self.run(&Command::Drill(command))
    }

    fn drill(&self) -> &DrillRecord {
        self.state.drills.values().next_back().unwrap()
    }

    /// What the leader, `n2`, writes down when it sees these replicas healthy so many seconds after the cut.
    fn look(&mut self, after: u64, unheard: bool, healthy: &[u128]) -> Vec<Fact> {
        self.look_at(after, unheard, healthy, healthy)
    }

    /// The same; the process of all healthy ones is there, and of others.
    fn look_at(&mut self, after: u64, unheard: bool, healthy: &[u128], running: &[u128]) -> Vec<Fact> {
        let [healthy, running]: [BTreeSet<ReplicaId>; 2] =
            [healthy, running].map(|all| all.iter().map(|number| replica(*number)).collect());
        let (after, leader) = (secs(after), node(2));
        let (healthy, running) = (&healthy, &running);
        let seen = Sight { state: &self.state, leader, after, unheard, heard: !unheard, healthy, running };
        let facts = look(self.drill(), &seen);
        let id = self.drill().id;
        if !facts.is_empty() {
            self.run(&Command::Drill(DrillCommand::Note { id, after, facts: facts.clone() })).unwrap();
        }
        facts
    }

    fn verdicts(&self) -> Vec<(&str, Verdict, Option<Span>)> {
        let services = &self.drill().services;
        services.iter().map(|(name, service)| (name.as_str(), service.verdict, service.whole)).collect()
    }
}

fn why(refused: Result<Vec<Change>, Refusal>) -> String {
    refused.unwrap_err().to_string()
}

#[test]
fn n4_each_service_is_measured_until_it_is_whole_and_judged_by_what_was_promised() {
    let mut cluster = Cluster::new();
    cluster.begin(1, None).unwrap();
    // Longer than the slowest may take: replicated ones 30 s and 10 s.
    assert_eq!(cluster.drill().away, secs(50));
    let open = [("agent", Verdict::Stays), ("kept", Verdict::Stays), ("once", Verdict::Open), ("web", Verdict::Open)];
    let verdicts: Vec<_> = cluster.verdicts().into_iter().map(|(name, verdict, _)| (name, verdict)).collect();
    assert_eq!(verdicts, open);

    assert_eq!(cluster.look(1, false, &[1, 2, 3]), [Fact::Succeeded { node: node(2) }]);
    assert_eq!(cluster.look(2, false, &[1, 2, 3]), [], "what runs on the node is no recovery, heard or not");
    assert_eq!(cluster.look(4, true, &[2]), [Fact::Noticed]);
    assert_eq!(cluster.drill().noticed, Some(secs(4)));

    cluster.steps(vec![Step::Forget { replica: replica(3) }]);
    cluster.place(13, "once", 0, 3);
    let placed = Fact::Placed { service: name("once"), ordinal: 0, node: node(3) };
    assert_eq!(cluster.look(13, true, &[2]), [placed]);
    let serving = |service: &str| Fact::Serving { service: name(service), ordinal: 0 };
    let whole = |service: &str| Fact::Whole { service: name(service) };
    assert_eq!(cluster.look_at(14, true, &[2], &[2, 13]), [whole("once")], "its program is started");
    assert_eq!(cluster.look(25, true, &[2, 13]), [serving("once")], "later than promised, and that is its own");
    assert_eq!(cluster.look(26, true, &[2, 13]), [], "it is written down once");

    cluster.place(11, "web", 0, 3);
    let placed = Fact::Placed { service: name("web"), ordinal: 0, node: node(3) };
    assert_eq!(cluster.look(41, true, &[2, 11, 13]), [placed, serving("web"), whole("web")]);
    let late = [
        ("agent", Verdict::Stays, None),
        ("kept", Verdict::Stays, None),
        ("once", Verdict::Ok, Some(secs(14))),
        ("web", Verdict::Late, Some(secs(41))),
    ];
    assert_eq!(cluster.verdicts(), late);
    assert_eq!(cluster.look(51, true, &[2, 11, 13]), []);
    assert_eq!(cluster.look(52, false, &[2, 11, 13]), [Fact::Returned, Fact::Over]);
    let drill = cluster.drill();
    assert_eq!((drill.returned, drill.ended, cluster.state.drill()), (Some(secs(52)), Some(secs(52)), None));
    let happenings = cluster.state.events.iter().map(|event| &event.what);
    let told = happenings.filter(|what| {
        matches!(what, Happening::DrillBegan { .. } | Happening::DrillMeasured { .. } | Happening::DrillEnded { .. })
    });
    assert_eq!(told.count(), 4);
    assert_eq!(cluster.look(60, false, &[]), [], "it is over");
}

#[test]
fn n4_what_is_whole_only_because_the_node_is_back_has_not_recovered() {
    let mut cluster = Cluster::new();
    cluster.begin(1, Some(secs(5))).unwrap();
    cluster.look(4, true, &[2]);
    let facts = cluster.look(6, false, &[1, 2, 3]);
    assert_eq!(facts, [Fact::Returned, Fact::Over]);
    let verdicts: Vec<Verdict> = cluster.drill().services.values().map(|service| service.verdict).collect();
    assert_eq!(verdicts, [Verdict::Stays, Verdict::Stays, Verdict::NotRecovered, Verdict::NotRecovered]);
}

#[test]
fn n4_a_node_that_never_comes_back_is_not_waited_for_without_end() {
    let mut cluster = Cluster::new();
    cluster.begin(1, Some(secs(10))).unwrap();
    cluster.look(4, true, &[2]);
    cluster.run(&Command::RemoveService { service: name("web") }).unwrap();
    assert_eq!(cluster.look(69, true, &[]), []);
    assert_eq!(cluster.look(70, true, &[]), [Fact::Over]);
    assert_eq!((cluster.drill().returned, cluster.drill().is_over()), (None, true));
    assert_eq!(cluster.drill().services[&name("web")].verdict, Verdict::Gone);
}

#[test]
fn n4_a_node_that_nobody_missed_is_back_when_its_time_is_over() {
    let mut cluster = Cluster::new();
    cluster.begin(3, Some(secs(5))).unwrap();
    assert_eq!(cluster.look(14, false, &[]), []);
    assert_eq!(cluster.look(15, false, &[]), [Fact::Returned, Fact::Over]);
    assert_eq!(cluster.drill().noticed, None);
}

#[test]
fn n4_no_drill_begins_while_anything_is_away_or_going() {
    let mut cluster = Cluster::new();
    assert!(why(cluster.begin(9, None)).contains("there is no node"));
    assert_eq!(why(cluster.begin(1, Some(secs(4)))), "`away` is 4s; it must be 5s to 10m");
    assert_eq!(why(cluster.begin(1, Some(secs(601)))), "`away` is 10m1s; it must be 5s to 10m");

    let set =
        |availability| Command::Member(crate::member::MemberCommand::SetAvailability { node: node(2), availability });
    cluster.run(&set(Availability::Draining(Drain::default()))).unwrap();
    assert_eq!(why(cluster.begin(1, None)), "no drill begins: n2 is being emptied or about to end");
    cluster.run(&set(Availability::Cordoned)).unwrap();

    let health = |number, health| Command::ChangeHealth { node: node(number), generation: 1, health, at: WallTime(0) };
    cluster.run(&health(3, Health::Down)).unwrap();
    assert_eq!(why(cluster.begin(1, None)), "no drill begins: n3 is not joined");
    assert_eq!(why(cluster.begin(3, None)), "no drill begins: n3 is not joined");
    cluster.run(&health(3, Health::Joined)).unwrap();

    cluster.begin(1, None).unwrap();
    assert_eq!(why(cluster.begin(2, None)), "no drill begins: drill 1 of n1 is not over");
    assert_eq!(cluster.state.drills.len(), 1);

    let mut alone = Cluster::new();
    for number in [2, 3] {
        alone.run(&health(number, Health::Left)).unwrap();
    }
    assert_eq!(why(alone.begin(1, None)), "no drill begins: the cluster has no other node that could take over");
}

#[test]
fn n4_the_oldest_drills_are_forgotten() {
    let mut cluster = Cluster::new();
    for id in 1..=DRILLS_KEPT as u64 + 2 {
        cluster.begin(3, None).unwrap();
        cluster.run(&Command::Drill(DrillCommand::Note { id, after: secs(9), facts: vec![Fact::Over] })).unwrap();
    }
    let kept: Vec<u64> = cluster.state.drills.keys().copied().collect();
    assert_eq!((kept.len(), kept[0]), (DRILLS_KEPT, 3));
}

#[test]
fn a_drill_moves_no_plan() {
    let mut cluster = Cluster::new();
    let before = cluster.state.planned_on;
    cluster.begin(1, None).unwrap();
    assert_eq!(cluster.state.planned_on, before);
}
