//! Plans as text.
//!
//! A case is a list of parts between `|`:
//! - `n1 joined`, `n1 down 29s`, `n1 unreachable 2s`, `n1 gateway` (joined, and no worker),
//!   `n1 unreported` (joined, and has not reported to this leader yet), `n1 cordoned`,
//!   `n1 stopping` (about to end for long), `n1 draining 5s` and `n1 draining 5s deadline 10s`; labels follow, like `n1 joined zone=a`. A label `has` is
//!   none: `has=2000m,4GiB` is what the node has for replicas;
//! - `web x2 v3 port=8080 on n1 n2`: a service, its version (default v1) and healthy replicas of it; also
//!   `web every` (on every node), `needs:500m,1GiB`, `require:zone=a`, `spread:zone`, `prefer:disk=ssd`, `near:db`, `apart:db`;
//! - `web x2 stopped on n1`: a service that is stopped;
//! - `web x2 v2 rolling from:1 batch:2 canary:1 stop-first no-rollback stage-for:3s stalled-for:3s`: an update in
//!   its stage (`canary`, `await`, `rolling`, `verifying`, `back`), and `held`;
//! - `web x1 needs` needs something of a node; `n1 has web` says that the node has it, `n1 lacks web (file /x)` that
//!   it has not;
//! - `web x1 driver:systemd` needs a driver; `n1 drives (process systemd)` says what the node has for that;
//! - `db once on n1`: a service that runs once; its replica, on whichever node, holds the lease;
//! - `db x2 pair on n1 n2`: an active-passive service of which no copy is active yet;
//! - `db kept on n1`: the same, and it goes on without a quorum;
//! - `web.1 on n2 v2 port=8080 starting for 3s restarts 4 drain 5s drained (detail)`: one more replica;
//! - `replace_after=30s`, `moves_max=1`.

use crate::{Observed, Plan, Policy, plan};
use expect_test::Expect;
use quorate_model::assignment::{AssignedLease, Phase};
use quorate_model::command::Step;
use quorate_model::deployment::{Advance, Deployment, Halt, Stage, Trial, VersionRecord};
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::lease::{Holder, LeaseRecord};
use quorate_model::need::Requirement;
use quorate_model::observed::ReplicaState;
use quorate_model::place::{Availability, Drain, Place};
use quorate_model::resource::Resources;
use quorate_model::spec::{Batch, Driver, Format, Mode, Order, Port, Promote, ServiceSpec, WithoutQuorum, parse};
use quorate_model::state::{ClusterState, Health, NodeIdentity, NodeRecord, ReplicaRecord, Role, ServiceRecord};
use quorate_model::stopped::Stopped;
use quorate_model::time::{Span, WallTime};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// Some day in 2026; cases count back from it.
pub(super) const NOW: WallTime = WallTime(1_790_000_000_000_000);

pub(super) struct Case {
    pub(super) state: ClusterState,
    pub(super) observed: Observed,
    pub(super) policy: Policy,
}

pub(super) fn check_plan(case: &str, expected: Expect) {
    let case = Case::read(case);
    let observed = timed(case.observed.clone(), &case.state, NOW);
    let plan = plan(&case.state, &observed, &case.policy);
    expected.assert_eq(&show(&case.state, &plan));
}

/// With the spans that have passed since what the records say.
pub(super) fn timed(observed: Observed, state: &ClusterState, now: WallTime) -> Observed {
    let down = state.nodes.iter().filter(|(_, record)| record.health == Health::Down);
    Observed {
        down_for: down.map(|(id, record)| (*id, now.since(record.since))).collect(),
        retired_for: state.replicas.values().map(|replica| (replica.id, now.since(replica.since))).collect(),
        ..observed
    }
}

pub(super) fn show(state: &ClusterState, plan: &Plan) -> String {
    let node = |id: &NodeId| state.nodes.get(id).map_or_else(|| id.to_string(), |node| node.identity.name.clone());
    let replica = |id: &ReplicaId| {
        let replica = &state.replicas[id];
        format!("{}.{} v{} on {}", replica.service, replica.ordinal, replica.version, node(&replica.node))
    };
    let mut text = String::new();
    for step in &plan.steps {
        let line = match step {
            Step::Place { service, ordinal, node: place, version, .. } => {
                let version = version.map_or(String::new(), |version| format!(" v{version}"));
                format!("place {service}.{ordinal}{version} on {}", node(place))
            }
            Step::Retire { replica: id } => format!("retire {}", replica(id)),
            Step::Promote { replica: id, epoch, .. } => format!("promote {} to epoch {epoch}", replica(id)),
            Step::Yield { replica: id } => format!("yield {}", replica(id)),
            Step::Demoted { replica: id } => format!("demoted {}", replica(id)),
            Step::Release { replica: id } => format!("release {}", replica(id)),
            Step::Forget { replica: id } => format!("forget {}", replica(id)),
            Step::Advance { service, to: Advance::To { stage } } => format!("advance {service} to {stage:?}"),
            Step::Advance { service, to: Advance::Hold { why, .. } } => format!("halt {service}: {why}"),
            Step::Advance { service, to: Advance::Resume } => format!("resume {service}"),
            Step::Advance { service, to: Advance::RollBack { why } } => format!("roll {service} back: {why}"),
        };
        writeln!(text, "{line}").unwrap();
    }
    for held in &plan.held {
        writeln!(text, "hold {held}").unwrap();
    }
    if text.is_empty() { "nothing to do\n".into() } else { text }
}

pub(super) fn node_id(number: u128) -> NodeId {
    NodeId::from_u128(number << 64)
}

pub(super) fn node(number: u128, roles: &[Role]) -> NodeIdentity {
    NodeIdentity {
        id: node_id(number),
        name: format!("n{number}"),
        roles: roles.iter().copied().collect(),
        api: String::new(),
        link: String::new(),
        host: "127.0.0.1".into(),
    }
}

/// A service whose program tells its version.
pub(super) fn spec(name: &str, replicas: u32, version: u64, port: Option<u16>) -> ServiceSpec {
    let text = format!("[[service]]\nname = '{name}'\ncommand = ['/bin/web', 'v{version}']\nreplicas = {replicas}");
    let mut spec = parse(&text, Format::Toml).unwrap().services.remove(0);
    spec.ports.insert("http".into(), port.map_or(Port::Auto, Port::Fixed));
    // Cases do not wait unless that is what they are about.
    spec.update.healthy_for = Span::default();
    spec.update.verify_for = Span::default();
    spec
}

fn span(text: &str) -> Duration {
    text.parse::<Span>().unwrap().0
}

fn ago(text: &str) -> WallTime {
    WallTime(NOW.0 - u64::try_from(span(text).as_micros()).unwrap())
}

/// `CPU,MEMORY`
fn resources(text: &str) -> Resources {
    let (cpu, memory) = text.split_once(',').unwrap();
    Resources { cpu: Some(cpu.parse().unwrap()), memory: Some(memory.parse().unwrap()) }
}

impl Case {
    pub(super) fn read(text: &str) -> Case {
        let state = ClusterState { planned_on: LogIndex(7), ..ClusterState::default() };
        let mut case = Case { state, observed: Observed::default(), policy: Policy::default() };
        // Services first: a replica takes what it does not say from its service.
        let (replicas, others): (Vec<&str>, Vec<&str>) =
            text.split('|').map(str::trim).partition(|part| part.split_whitespace().next().unwrap().contains('.'));
        for part in others.into_iter().chain(replicas) {
            case.part(part);
        }
        case
    }

    fn part(&mut self, part: &str) {
        let (part, detail) =
            part.split_once('(').map_or((part, ""), |(part, detail)| (part, detail.trim_end_matches(')')));
        let words: Vec<&str> = part.split_whitespace().collect();
        // Labels come last, and only on nodes.
        let is_node = words.first().is_some_and(|word| Self::is_node(word));
        let labels = words.iter().filter(|word| is_node && word.contains('='));
        let labels: Vec<(&str, &str)> = labels.map(|word| word.split_once('=').unwrap()).collect();
        let words = &words[..words.len() - labels.len()];
        match words {
            [word] if word.starts_with("replace_after=") => self.policy.replace_after = span(&word[14..]),
            [word] if word.starts_with("moves_max=") => self.policy.moves_max = word[10..].parse().unwrap(),
            [name, "joined"] => self.node(name, Health::Joined, "0s", true),
            [name, "cordoned"] => {
                self.node(name, Health::Joined, "0s", true);
                self.record(name).availability = Availability::Cordoned;
            }
            [name, "stopping"] => {
                self.node(name, Health::Joined, "0s", true);
                self.record(name).handing_over = true;
            }
            [name, "draining", since, rest @ ..] => {
                self.node(name, Health::Joined, "0s", true);
                let deadline = match rest {
                    ["deadline", deadline] => Some(deadline.parse().unwrap()),
                    rest => {
                        assert!(rest.is_empty(), "what is {rest:?}?");
                        None
                    }
                };
                self.record(name).availability = Availability::Draining(Drain { deadline, asked: LogIndex(1) });
                self.observed.draining_for.insert(Self::named(name), span(since));
            }
            [name, "unreported"] => {
                self.node(name, Health::Joined, "0s", true);
                self.observed.reported.remove(&Self::named(name));
            }
            [name, "gateway"] => self.node(name, Health::Joined, "0s", false),
            [name, "down", since] => self.node(name, Health::Down, since, true),
            [name, "down", since, "returns", within] => {
                self.node(name, Health::Down, since, true);
                self.observed.returns_within.insert(Self::named(name), span(within));
            }
            [name, "unreachable", since] => {
                self.node(name, Health::Joined, "0s", true);
                self.observed.unreachable_for.insert(Self::named(name), span(since));
            }
            [name, "has", service] => self.prepared(name, service, Vec::new()),
            [name, "drives"] => {
                let words = detail.split(' ').map(str::to_owned).collect();
                self.observed.drivers.insert(Self::named(name), words);
            }
            [name, "lacks", service] => self.prepared(name, service, vec![detail.to_owned()]),
            [name, rest @ ..] if name.contains('.') => self.replica(name, rest, detail),
            [name, rest @ ..] => self.service(name, rest),
            [] => panic!("an empty part"),
        }
        for (key, value) in labels {
            if key == "has" {
                self.observed.capacity.insert(Self::named(words[0]), resources(value).amount());
            } else {
                self.record(words[0]).labels.insert(key.into(), value.into());
            }
        }
    }

    fn prepared(&mut self, node: &str, service: &str, lacks: Vec<String>) {
        let of_service = self.observed.lacks.entry(ServiceName::new(service).unwrap()).or_default();
        of_service.insert(Self::named(node), lacks);
    }

    fn is_node(word: &str) -> bool {
        word.strip_prefix('n').is_some_and(|number| number.parse::<u32>().is_ok())
    }

    fn record(&mut self, name: &str) -> &mut NodeRecord {
        self.state.nodes.get_mut(&Self::named(name)).unwrap()
    }

    fn named(name: &str) -> NodeId {
        node_id(name.strip_prefix('n').unwrap().parse().unwrap())
    }

    fn node(&mut self, name: &str, health: Health, since: &str, worker: bool) {
        let role = if worker { Role::Worker } else { Role::Gateway };
        let identity = node(name[1..].parse().unwrap(), &[role]);
        if health == Health::Joined {
            self.observed.reported.insert(identity.id);
        }
        self.state.nodes.insert(identity.id, NodeRecord::started(identity, health, ago(since)));
    }

    fn service(&mut self, name: &str, words: &[&str]) {
        let (mut replicas, mut version, mut port) = (1, 1, None);
        let mut needs = Resources::default();
        let mut driver = Driver::Process;
        let (mut mode, mut place, mut requires) = (Mode::Replicated, Place::default(), Vec::new());
        let mut without_quorum = WithoutQuorum::Stop;
        let (mut update, mut stage, mut from, mut held) = (spec(name, 1, 1, None).update, None, None, None);
        let itself = ServiceName::new(name).unwrap();
        let mut stopped = None;
        let mut words = words.iter();
        for word in words.by_ref().take_while(|word| **word != "on") {
            if *word == "every" {
                mode = Mode::EveryNode;
            } else if *word == "needs" {
                requires.push(Requirement::File("/x".into()));
            } else if *word == "pair" {
                mode = Mode::ActivePassive;
            } else if *word == "once" || *word == "kept" {
                mode = Mode::Singleton;
                without_quorum = if *word == "kept" { WithoutQuorum::Keep } else { WithoutQuorum::Stop };
            } else if let Some(known) = Self::stage(word) {
                stage = Some(known);
            } else if *word == "stopped" {
                stopped = Some(Stopped { at: NOW, index: LogIndex(6), by_schedule: false, by: None });
            } else if *word == "held" {
                held = Some(Halt { why: "it broke".into(), ready: 0 });
            } else if *word == "stop-first" {
                update.order = Some(Order::StopFirst);
            } else if *word == "no-rollback" {
                update.rollback = false;
            } else if *word == "manual" {
                update.promote = Promote::Manual;
            } else if let Some((key, value)) = word.split_once(':') {
                let other = || ServiceName::new(value).unwrap();
                match key {
                    "require" => place.require.push(value.parse().unwrap()),
                    "prefer" => place.prefer.push(value.parse().unwrap()),
                    "spread" => place.spread = Some(value.into()),
                    "near" => drop(place.near.insert(other())),
                    "apart" => drop(place.apart.insert(other())),
                    "needs" => needs = resources(value),
                    "driver" => driver = Self::driver(value),
                    "from" => from = Some(value.parse().unwrap()),
                    "batch" => update.batch = Batch::Count(value.parse().unwrap()),
                    "canary" => update.canary = value.parse().unwrap(),
                    "healthy-for" => update.healthy_for = value.parse().unwrap(),
                    "verify-for" => update.verify_for = value.parse().unwrap(),
                    "stage-for" => drop(self.observed.stage_for.insert(itself.clone(), span(value))),
                    "stalled-for" => drop(self.observed.stalled_for.insert(itself.clone(), span(value))),
                    _ => panic!("what is {word}?"),
                }
            } else if let Some(number) = word.strip_prefix('x') {
                replicas = number.parse().unwrap();
            } else if let Some(number) = word.strip_prefix('v') {
                version = number.parse().unwrap();
            } else if let Some(number) = word.strip_prefix("port=") {
                port = Some(number.parse().unwrap());
            } else {
                panic!("what is {word}?");
            }
        }
        if let Some(stage) = stage {
            let (entered, since, why, proven) = (LogIndex(7), NOW, String::new(), false);
            let (service, version) = (itself.clone(), if stage.goes_back() { version + 1 } else { version });
            let deployment = Deployment { service, version, from, proven, stage, entered, since, why, held };
            self.state.deployments.insert(itself.clone(), deployment);
        }
        if let Some(version) = from {
            let (service, at, made) = (itself, NOW, LogIndex(7));
            let (spec, trial) = (spec(name, 1, version, port), Trial::Stable { proven: made });
            let spec = ServiceSpec { mode, ..spec };
            let kept = VersionRecord { service: service.clone(), version, spec, by: None, at, made, trial };
            self.state.versions.entry(service).or_default().insert(version, kept);
        }
        let (resources, spec) = (needs, spec(name, replicas, version, port));
        let spec = ServiceSpec { mode, driver, without_quorum, place, requires, resources, update, ..spec };
        let record = ServiceRecord { spec, routes: Vec::new(), version, stopped, moment: None };
        self.state.services.insert(record.spec.name.clone(), record);
        for (ordinal, node) in words.enumerate() {
            self.replica(&format!("{name}.{ordinal}"), &["on", node], "");
        }
    }

    fn driver(word: &str) -> Driver {
        let all = [Driver::Process, Driver::Ocf, Driver::Container, Driver::Systemd, Driver::Vip];
        all.into_iter().find(|driver| driver.name() == word).unwrap()
    }

    fn stage(word: &str) -> Option<Stage> {
        Some(match word {
            "canary" => Stage::Canary,
            "await" => Stage::AwaitPromotion,
            "rolling" => Stage::Rolling,
            "verifying" => Stage::Verifying,
            "back" => Stage::RollingBack,
            _ => return None,
        })
    }

    fn replica(&mut self, slot: &str, words: &[&str], detail: &str) {
        let (name, ordinal) = slot.split_once('.').unwrap();
        let service = ServiceName::new(name).unwrap();
        let id = ReplicaId::from_u128(self.state.replicas.len() as u128 + 1);
        let known = self.state.services.get(&service).cloned();
        let mut version = known.as_ref().map_or(1, |known| known.version);
        let (mut port, mut moving) = (None, false);
        let (mut node, mut phase, mut since) = (None, Phase::Run, NOW);
        let mut state = Some(ReplicaState::Healthy);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "on" => node = Some(Self::named(words.next().unwrap())),
                "drain" => (phase, since) = (Phase::Drain, ago(words.next().unwrap())),
                "stop" => (phase, since) = (Phase::Stop, ago(words.next().unwrap())),
                "moving" => moving = true,
                "drained" => drop(self.observed.drained.insert(id)),
                "for" => {
                    let span = span(words.next().unwrap());
                    self.observed.healthy_for.insert(id, span);
                    self.observed.unhealthy_for.insert(id, span);
                }
                "restarts" => drop(self.observed.restarts.insert(id, words.next().unwrap().parse().unwrap())),
                "unseen" => state = None,
                "starting" => state = Some(ReplicaState::Starting),
                "unhealthy" => state = Some(ReplicaState::Unhealthy),
                "backing-off" => state = Some(ReplicaState::BackingOff),
                "stopped" => state = Some(ReplicaState::Stopped),
                "failed" => state = Some(ReplicaState::Failed),
                word if word.starts_with("port=") => port = Some(word[5..].parse().unwrap()),
                word => version = word.strip_prefix('v').unwrap().parse().unwrap(),
            }
        }
        let spec = match known {
            Some(known) if known.version == version && port.is_none() => known.spec,
            known => {
                let known = known.map(|known| (known.spec.mode, known.spec.resources));
                let (mode, resources) = known.unwrap_or_default();
                ServiceSpec { mode, resources, ..spec(name, 1, version, port) }
            }
        };
        self.observed.replicas.extend(state.map(|state| (id, state)));
        if !detail.is_empty() {
            self.observed.details.insert(id, detail.into());
        }
        let (node, ordinal, revision) = (node.unwrap(), ordinal.parse().unwrap(), LogIndex(7));
        let keeps = spec.without_quorum == WithoutQuorum::Keep;
        let held = AssignedLease { epoch: 1, ttl: Span::from_secs(18), keeps, yields: false };
        let lease = (spec.mode == Mode::Singleton).then_some(held);
        if let Some(AssignedLease { epoch, ttl, keeps, .. }) = lease {
            let (name, holder) = (service.clone(), Some(Holder { replica: id, node }));
            let record =
                LeaseRecord { name, epoch, holder, ttl, fenced: false, keeps, since, next: None, last_failover: None };
            self.state.leases.insert(service.clone(), record);
        }
        let record = ReplicaRecord { id, service, ordinal, node, phase, version, spec, since, revision, lease, moving };
        self.state.replicas.insert(id, record);
    }
}

#[test]
fn a_case_reads_as_it_is_written() {
    let case = Case::read("n1 joined | n2 down 29s | web x2 v3 on n1 n2 | web.5 on n1 v2 failed drain 5s (exit 1)");
    assert_eq!(case.state.nodes[&node_id(2)].since, ago("29s"));
    assert_eq!(case.observed.reported, BTreeSet::from([node_id(1)]));
    let replica = &case.state.replicas[&ReplicaId::from_u128(3)];
    assert_eq!((replica.ordinal, replica.version, replica.phase), (5, 2, Phase::Drain));
    assert_eq!(case.observed.replicas[&replica.id], ReplicaState::Failed);
    assert_eq!(case.observed.details[&replica.id], "exit 1");
}
