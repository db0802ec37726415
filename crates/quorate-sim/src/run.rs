//! One run: faults, then healing, then judgement.

use crate::clients::{answer, elements, micros, query, read_of_all_lists};
use crate::loss;
use crate::machine::{Machine, Standing};
use crate::scenario::Scenario;
use crate::seen::{Held, Seen, Violation};
use crate::world::World;
use quorate_check::history::{Client, End, Operation, Verdict};
use quorate_check::linearizable::{self, Budget};
use quorate_check::list_append;
use quorate_check::register::{Key, Value};
use quorate_check::witness::{self, Asked, Evidence, FinalState, Learnt};
use quorate_model::assignment::Phase;
use quorate_model::id::{NodeId, ServiceName};
use quorate_model::spec::Mode;
use quorate_model::sql::{Rows, Scalar, Statement};
use quorate_model::state::{Health, ServiceRecord};
use quorate_model::time::Timestamp;
use quorate_model::trust::Stage;
use quorate_node::Configuration;
use quorate_node::electorate::Action;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long a healthy cluster may take until it has a leader and does work again.
pub(crate) const RECOVERS: Duration = Duration::from_secs(30);
/// And until everything is still: no request under way, all databases at one index.
const SETTLES: Duration = Duration::from_secs(90);

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub nodes: usize,
    /// Simulated time.
    pub simulated: Duration,
    pub events: u64,
    /// Mutations and reads that were answered to clients.
    pub acknowledged: u64,
    pub faults: BTreeMap<&'static str, u64>,
    /// How often each invariant's premise held.
    pub premises: BTreeMap<&'static str, u64>,
    /// Sectors of unsynced data that power cuts took.
    pub sectors_lost: u64,
    pub violation: Option<Violation>,
    /// Stands for everything that happened.
    pub trace: u64,
    /// The trace as text, if it was wanted.
    pub text: String,
}

/// Runs one scenario from its beginning to its end.
#[must_use]
pub fn run(scenario: Scenario, keep_text: bool) -> Report {
    let safety = scenario.safety;
    let mut world = World::new(scenario, keep_text);
    let mut premises = BTreeMap::new();
    // A panic ends a real server, and the next one with it if it comes from what the disk holds.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        world.run_until(Timestamp(safety));
        if world.violation.is_none() {
            heal(&mut world);
        }
        premises = world.invariants.premises();
        if world.violation.is_none() {
            let (moved, foreseen) = loss::lose_one(&mut world);
            premises.extend([("fails_over", moved), ("does_what_was_forecast", foreseen)]);
        }
        if world.violation.is_none() {
            judge(&mut world, &mut premises);
        }
    }));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        world.broken("nothing_panics", text.unwrap_or("without a word").to_owned());
    }
    Report {
        seed: world.scenario.seed,
        nodes: world.machines.len(),
        simulated: world.now.0,
        events: world.trace.events(),
        acknowledged: world.clients.acknowledged,
        faults: world.faults.counts(),
        premises,
        sectors_lost: world.machines.iter().map(|machine| machine.fs.lost_sectors()).sum(),
        violation: world.violation.take(),
        trace: world.trace.hash(),
        text: std::mem::take(&mut world.trace).into_text(),
    }
}

/// The faults end; the cluster must get well without help.
fn heal(world: &mut World) {
    world.end_faults();
    let began = world.now;
    let passed = |world: &World| world.now.since(began);
    let catches_up = catches_up(world);
    world.clients.roam();
    while world.violation.is_none() && !works(world) {
        if passed(world) > RECOVERS + catches_up {
            let leader = world.leader().map(|n| n + 1);
            let what =
                format!("{:?} after the last fault not every node answers (leader: {leader:?})", RECOVERS + catches_up);
            world.broken("heals", what);
            return;
        }
        let next = world.now.plus(Duration::from_millis(500));
        world.run_until(next);
    }
    world.clients.stop();
    while world.violation.is_none() && !still(world) {
        if passed(world) > RECOVERS + SETTLES + catches_up {
            world.broken(
                "heals",
                format!("{SETTLES:?} after the last request the cluster is not still: {}", unrest(world)),
            );
            return;
        }
        let next = world.now.plus(Duration::from_millis(500));
        world.run_until(next);
    }
    if world.violation.is_none() {
        let held: Vec<Held> = world.living().into_iter().map(|n| held(world, n)).collect();
        world.show(&Seen::Healed { machines: &held });
    }
}

/// What slow databases need for all that the last of them lacks, a server that joins just now too. It
/// answers nobody before that. (Seed 401: three thousand entries, one by one, at up to 60 ms each.)
fn catches_up(world: &World) -> Duration {
    let joins = world.machines.iter().any(|machine| machine.standing == Standing::Joining);
    let applied = world.living().into_iter().filter_map(|n| Some(world.machines[n].process.as_ref()?.applied.0));
    let lowest = if joins { 0 } else { applied.min().unwrap_or(0) };
    let batches = (world.newest_applied().0 - lowest).div_ceil(world.scenario.storage.batch_max as u64);
    world.scenario.storage.apply.1 * u32::try_from(batches).unwrap_or(u32::MAX)
}

/// Every node that may run answers clients.
fn works(world: &World) -> bool {
    let served = world.living().into_iter().all(|n| world.clients.answered_by[n] > 0);
    world.leader().is_some() && (served || world.scenario.clients == 0)
}

/// Nothing is under way: all databases are at one index and agents have done what they were told.
fn still(world: &World) -> bool {
    let newest = world.newest_applied();
    let settled = world.living().into_iter().all(|n| {
        let machine = &world.machines[n];
        let process = machine.process.as_ref().expect("it lives");
        process.applied == newest
            && process.node.applied() == newest
            && process.node.held().iter().all(|held| lacks_a_node(world, n, &held.service, &held.reason.to_string()))
            && process.node.digests_compared() + u64::from(world.living().len() == 1) > 0
            && machine.agent.next().is_none()
            && machine.agent.follows(&process.node.state().assignment(machine.id))
            && runs_what_it_shall(machine)
            && process.node.state().replicas.values().all(|it| it.phase == Phase::Run)
    });
    let wanted = world.leader().is_some_and(|n| {
        let state = world.machines[n].process.as_ref().expect("it leads").node.state();
        state.services.values().all(|service| {
            let copies = state.replicas.values().filter(|replica| replica.service == service.spec.name).count();
            let nodes = world.living().len();
            let replicas = service.spec.replicas as usize;
            copies == if service.spec.mode == Mode::ActivePassive { replicas.min(nodes) } else { replicas }
        })
    });
    let agreed = world.leader().is_some_and(|leader| {
        let node = &world.machines[leader].process.as_ref().expect("it leads").node;
        let rests = node.electorate().is_none_or(|step| step.action == Action::Wait);
        let same = |n: usize| {
            world.machines[n].process.as_ref().expect("it lives").node.configuration() == node.configuration()
        };
        rests && world.living().into_iter().all(same)
    });
    settled
        && wanted
        && agreed
        && all_are_back(world)
        && world.is_served()
        && keys_rest(world)
        && world.clients.all_done()
        && newest >= world.invariants.committed.last()
}

/// Whether something is held for want of a node that has no copy yet, where one node has one copy at the most.
fn lacks_a_node(world: &World, n: usize, service: &ServiceName, reason: &str) -> bool {
    let state = world.machines[n].process.as_ref().expect("it lives").node.state();
    let is_cast = |service: &ServiceRecord| service.spec.mode == Mode::ActivePassive;
    state.services.get(service).is_some_and(is_cast) && reason.contains("no node")
}

/// Whether everything that is to run on a machine does: what runs once waits for its lease, and of what stands by cold
/// nothing runs.
fn runs_what_it_shall(machine: &Machine) -> bool {
    let running = machine.agent.running();
    let state = machine.process.as_ref().map(|process| process.node.state());
    let assigned = state.into_iter().flat_map(|state| state.assignment(machine.id).replicas);
    let shall = assigned.filter(|replica| replica.phase == Phase::Run && !replica.stands_by_cold());
    let shall = shall.map(|replica| replica.replica);
    shall.into_iter().all(|replica| running.contains(&replica))
}

/// Whether nobody who runs is still taken for dead. A node's word that it is back may have been lost
/// with the last fault, and is said again after seconds.
fn all_are_back(world: &World) -> bool {
    let living: BTreeSet<NodeId> = world.living().into_iter().map(|n| world.machines[n].id).collect();
    world.leader().is_some_and(|n| {
        let state = world.machines[n].process.as_ref().expect("it leads").node.state();
        !state.nodes.values().any(|node| node.health == Health::Down && living.contains(&node.identity.id))
    })
}

/// Whether the exchange of the CA has ended. One that is away is waited for, for longer than a run.
fn keys_rest(world: &World) -> bool {
    world.leader().is_some_and(|n| {
        let state = world.machines[n].process.as_ref().expect("it leads").node.state();
        let away = state.nodes.values().any(|node| node.health != Health::Joined);
        away || state.trust.keys.values().all(|record| record.stage == Stage::Done)
    })
}

fn unrest(world: &World) -> String {
    let mut text =
        format!("committed {}, clients done: {}", world.invariants.committed.last(), world.clients.all_done());
    for n in world.living() {
        let process = world.machines[n].process.as_ref().expect("it lives");
        let _ = write!(
            text,
            "; n{} applied {} knows {} leads {} voters {:?} {:?} held {:?} next {:?}",
            n + 1,
            process.applied,
            process.node.applied(),
            process.node.leads(),
            process.node.configuration(),
            process.node.electorate(),
            process.node.held(),
            world.machines[n].agent.next()
        );
        for status in world.machines[n].agent.statuses() {
            let _ = write!(text, "; {} {} {:?}", status.service, status.replica, status.state);
        }
    }
    if let Some(n) = world.leader() {
        let state = world.machines[n].process.as_ref().expect("it leads").node.state();
        for replica in state.replicas.values() {
            let (name, version) = (&replica.service, replica.version);
            let node = state.nodes.get(&replica.node).map_or("?", |node| &node.identity.name);
            let _ =
                write!(text, "; {name}.{} v{version} {:?} on {node} is {}", replica.ordinal, replica.phase, replica.id);
        }
    }
    text
}

fn held(world: &mut World, n: usize) -> Held {
    let tables = ["reg", "log", "lists", "guarded", "parent", "child"].map(|table| dump(world, n, table)).concat();
    let machine = &world.machines[n];
    let process = machine.process.as_ref().expect("it lives");
    Held {
        machine: n,
        node: machine.id,
        applied: process.applied,
        state: process.databases.state().clone(),
        tables,
        configuration: Configuration::read(&process.databases.voters()).expect("this version wrote it"),
        running: machine.agent.running(),
        digests_compared: process.node.digests_compared(),
    }
}

fn select(world: &mut World, n: usize, sql: &str) -> Rows {
    let found = query(&mut world.machines[n], vec![Statement::new(sql)]);
    found.and_then(|(rows, _)| rows.into_iter().next()).unwrap_or_default()
}

/// All rows of a table, a line each.
fn dump(world: &mut World, n: usize, table: &str) -> String {
    let rows = select(world, n, &format!("SELECT * FROM {table} ORDER BY 1, 2"));
    rows.rows.iter().fold(String::new(), |mut text, row| {
        let _ = write!(text, "{table}");
        for value in &row.values {
            let _ = match &value.scalar {
                None => write!(text, "|"),
                Some(Scalar::Integer(number)) => write!(text, "|{number}"),
                Some(Scalar::Real(number)) => write!(text, "|{number}"),
                Some(Scalar::Text(words)) => write!(text, "|{words}"),
                Some(Scalar::Blob(bytes)) => {
                    let hex = bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
                    write!(text, "|{hex}")
                }
            };
        }
        text.push('\n');
        text
    })
}

/// Looks at what clients saw, twice: with the log as a witness, and without it.
fn judge(world: &mut World, premises: &mut BTreeMap<&'static str, u64>) {
    let mut evidence = Evidence { history: std::mem::take(&mut world.clients.history), ..Evidence::default() };
    let committed = &world.invariants.committed;
    for (request, position) in &world.clients.requests {
        let operation = &evidence.history[*position];
        if !matches!(operation.end, End::Unknown) {
            continue;
        }
        let Asked::Linearizable(call) = operation.call else { continue };
        let learnt = match committed.requests.get(request) {
            Some(index) => Learnt::Committed {
                index: *index,
                answer: committed.outcomes.get(index).and_then(|outcome| answer(call, outcome)),
            },
            None => Learnt::NoEffect,
        };
        evidence.learnt.insert(*position, learnt);
    }
    let living = world.living();
    if let Some(n) = living.first() {
        let rows = select(world, *n, "SELECT k, v FROM reg");
        let number = |value: &quorate_model::sql::Value| match value.scalar {
            Some(Scalar::Integer(number)) => number.cast_unsigned(),
            _ => u64::MAX,
        };
        let contents = rows.rows.iter().map(|row| (Key(number(&row.values[0])), Value(number(&row.values[1]))));
        let index = world.newest_applied();
        evidence.final_state = Some(FinalState { index, contents: contents.collect() });
    }
    let verdict = witness::check(&evidence);
    conclude(world, premises, "linearizable_by_witness", verdict);
    let (history, _) = witness::without_witness(&evidence.history);
    let verdict = linearizable::check(&history, Budget::default());
    conclude(world, premises, "linearizable", verdict);
    let mut transactions = std::mem::take(&mut world.clients.transactions);
    let (steps, statements) = read_of_all_lists();
    if let Some(n) = living.first()
        && let Some((rows, _)) = query(&mut world.machines[*n], statements)
    {
        let (asked, answer) = (micros(world.now), rows.iter().map(elements).collect());
        let end = End::Answered { at: asked, answer };
        transactions.push(Operation { client: Client(u32::MAX), asked, call: steps, end });
    }
    let verdict = list_append::check(&transactions);
    conclude(world, premises, "strictly_serializable", verdict);
}

fn conclude(world: &mut World, premises: &mut BTreeMap<&'static str, u64>, name: &'static str, verdict: Verdict) {
    match verdict {
        Verdict::Holds { premises: held } => {
            premises.insert(name, held);
        }
        Verdict::Violated(violation) => world.broken(name, violation.to_string()),
        Verdict::Unknown { why } => world.broken(name, format!("nobody knows: {why}")),
    }
}
