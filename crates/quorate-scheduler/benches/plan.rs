//! How long a plan takes: 1,000 services of 3 replicas on 50 nodes. `cargo xtask bench plan`.
//!
//! The leader makes a plan at every change and once per second, on the thread that also writes; 20 ms are what
//! nobody notices.

#![allow(clippy::unwrap_used, reason = "a bench may panic")]
#![allow(clippy::print_stdout, reason = "it prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::member::MemberCommand;
use quorate_model::observed::ReplicaState;
use quorate_model::place::{Availability, Drain};
use quorate_model::spec::{Format, parse};
use quorate_model::state::{ClusterState, Health, NodeIdentity, Role};
use quorate_model::time::WallTime;
use quorate_scheduler::{Fault, Observed, Plan, Policy, Survey, plan};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

const NODES: u128 = 50;
const SERVICES: u32 = 1_000;
const REPLICAS: u32 = 3;
const RUNS: usize = 51;
/// What the leader allows itself, and everything at once.
const LIMITS: [u32; 2] = [200, u32::MAX];

#[derive(Clone)]
struct World {
    state: ClusterState,
    observed: Observed,
}

impl World {
    /// Nodes in three zones, and services that spread over them, prefer disks and avoid each other.
    fn new() -> World {
        let mut world = World { state: ClusterState::default(), observed: Observed::default() };
        for number in 1..=NODES {
            let id = NodeId::from_u128(number << 64);
            let name = format!("n{number}");
            let node = NodeIdentity {
                id,
                name: name.clone(),
                roles: [Role::Worker].into(),
                api: format!("{name}:1"),
                link: format!("{name}:2"),
                host: "127.0.0.1".into(),
            };
            world.run(&Command::RegisterNode { node, boot: 1 });
            let disk = if number % 2 == 0 { "ssd" } else { "hdd" };
            let labels = [("zone", ["a", "b", "c"][number as usize % 3]), ("disk", disk)];
            let labels: BTreeMap<String, Option<String>> =
                labels.into_iter().map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).collect();
            world.run(&Command::Member(MemberCommand::SetLabels { node: id, labels }));
            world.observed.reported.insert(id);
        }
        for number in 0..SERVICES {
            world.apply(number, 1);
        }
        world
    }

    fn apply(&mut self, number: u32, version: u32) {
        let place = match number % 4 {
            0 => "",
            1 => "place = { spread = 'zone' }",
            2 => "place = { require = ['disk = ssd'], spread = 'zone' }",
            _ => "place = { prefer = ['disk = ssd', 'zone != c'], apart = ['s0'] }",
        };
        let text = format!(
            "[[service]]\nname = 's{number}'\ncommand = ['/opt/s{number}', '--port', '{{port}}', 'v{version}']\n\
             replicas = {REPLICAS}\nports = {{ http = 'auto' }}\nenv = {{ A = '1', B = '2' }}\n{place}"
        );
        self.run(&Command::ApplySpec { document: parse(&text, Format::Toml).unwrap() });
    }

    fn run(&mut self, command: &Command) {
        let index = LogIndex(self.state.planned_on.0 + 1);
        let changes = self.state.decide(index, WallTime(index.0), command).unwrap();
        self.state.absorb(index, &changes);
    }

    fn plan(&self, moves_max: u32) -> Plan {
        plan(&self.state, &self.observed, &Policy { moves_max, ..Policy::default() })
    }

    fn carry_out(&mut self, plan: Plan) {
        self.run(&Command::CarryOut { expected: self.state.planned_on, steps: plan.steps });
        let healthy = |id: &ReplicaId| (*id, ReplicaState::Healthy);
        self.observed.replicas = self.state.replicas.keys().map(healthy).collect();
    }
}

fn measure(what: &str, mut run: impl FnMut() -> usize) {
    let (mut spans, mut busy): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
    let mut count = 0;
    for _ in 0..RUNS {
        let (began, before) = (Instant::now(), on_cpu());
        count = black_box(run());
        spans.push(began.elapsed());
        busy.push(on_cpu() - before);
    }
    spans.sort();
    busy.sort();
    let ms = |span: Duration| span.as_secs_f64() * 1e3;
    let (median, cpu) = (ms(spans[RUNS / 2]), ms(busy[RUNS / 2]));
    println!("| {what} | {count} | {cpu:.2} | {median:.2} | {:.2}–{:.2} |", ms(spans[0]), ms(spans[RUNS - 1]));
}

/// For how long this thread has had a processor: what others do on the machine does not count.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn main() {
    // `cargo test --benches` only asks whether it runs at all.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    println!("{SERVICES} services × {REPLICAS} replicas on {NODES} nodes; medians of {RUNS} runs\n");
    println!("| plan | steps | CPU ms | ms | range |\n|---|---|---|---|---|");
    let empty = World::new();
    for limit in LIMITS {
        let all = if limit == u32::MAX { "all at once".to_owned() } else { format!("{limit} of them") };
        measure(&format!("everything is to be placed, {all}"), || empty.plan(limit).steps.len());
    }
    let mut full = empty;
    full.carry_out(full.plan(u32::MAX));
    assert_eq!(full.state.replicas.len(), (SERVICES * REPLICAS) as usize);
    measure("nothing is to be done", || full.plan(LIMITS[0]).steps.len());

    let node = NodeId::from_u128(7 << 64);
    let mut lost = full.clone();
    lost.run(&Command::ChangeHealth { node, generation: 1, health: Health::Down, at: WallTime(0) });
    measure("a node is lost", || lost.plan(LIMITS[0]).steps.len());

    let mut drained = full.clone();
    let availability = Availability::Draining(Drain::default());
    drained.run(&Command::Member(MemberCommand::SetAvailability { node, availability }));
    measure("a node is drained", || drained.plan(LIMITS[0]).steps.len());

    let mut updated = full.clone();
    (0..SERVICES).for_each(|number| updated.apply(number, 2));
    measure("every service is updated", || updated.plan(u32::MAX).steps.len());

    let survey = Survey { state: full.state, observed: full.observed, policy: Policy::default() };
    measure("what if a node were killed", || survey.what_if(Fault::Kill(node)).moves.len());
    let service = ServiceName::new("s1").unwrap();
    measure("explain a service", || survey.explain(&service).unwrap().running.len());
}
