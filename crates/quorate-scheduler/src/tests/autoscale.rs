//! How many copies are right: tables of single judgements, what holds for all of them, and whole courses of
//! load as managers see them (E3).

use super::text::{NOW, node};
use super::world::World;
use crate::autoscale::{Flow, Measured, Question, Report, Step as LoadStep, Verdict, judge};
use crate::{Autoscaling, Policy, Sight};
use expect_test::{Expect, expect};
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_model::autoscale::AutoscaleCommand;
use quorate_model::command::Command;
use quorate_model::id::ServiceName;
use quorate_model::observed::ReplicaState;
use quorate_model::resource::{Amount, Resources, Usage};
use quorate_model::spec::{Autoscale, Bounds, Format, ServiceSpec, parse};
use quorate_model::time::{Timestamp, WallTime};
use std::time::Duration;

/// With 500m and 100MiB as what each copy is to use.
fn service(table: &str) -> ServiceSpec {
    let text = format!(
        "[[service]]\nname = 'web'\ncommand = ['web']\nports = {{ http = 'auto' }}\nresources = {{ cpu = 1, memory = '200MiB' }}\n\
         update = {{ healthy_for = '0s', verify_for = '0s' }}\nautoscale = {{ {table} }}"
    );
    let document = parse(&text, Format::Toml).unwrap_or_else(|error| panic!("{error}"));
    document.validate().unwrap_or_else(|error| panic!("{error}"));
    document.services[0].clone()
}

pub(super) fn table(table: &str) -> Autoscale {
    service(table).autoscale.unwrap()
}

/// Copies with such loads, in percent of their targets.
fn loads(cpu: &[u32], memory: Option<u64>) -> Vec<Measured> {
    let usage = |percent: &u32| Usage {
        cpu_millis: percent * 5,
        memory_bytes: memory.map(|percent| percent * (100 << 20) / 100),
        pressure: None,
    };
    let measured = |percent: &u32| {
        let mut measured = Measured::default();
        measured.add(&usage(percent));
        measured
    };
    cpu.iter().map(measured).collect()
}

fn verdict(autoscale: &Autoscale, wanted: u32, measured: &[Measured], highest: u32) -> Verdict {
    verdict_by(autoscale, wanted, measured, &Flow::default(), highest)
}

pub(super) fn verdict_by(
    autoscale: &Autoscale,
    wanted: u32,
    measured: &[Measured],
    flow: &Flow,
    highest: u32,
) -> Verdict {
    let resources = service("min = 1, max = 2, cpu = '50%'").resources;
    let bounds = Bounds { min: autoscale.min, max: autoscale.max };
    judge(&Question { autoscale, bounds, resources, wanted, measured, flow, counted: None, untold: None, highest })
}

pub(super) fn verdict_told(
    autoscale: &Autoscale,
    wanted: u32,
    measured: &[Measured],
    counted: Option<&Result<u64, String>>,
) -> Verdict {
    let bounds = Bounds { min: autoscale.min, max: autoscale.max };
    let (resources, flow) = (Resources::default(), &Flow::default());
    judge(&Question { autoscale, bounds, resources, wanted, measured, flow, counted, untold: None, highest: 0 })
}

/// Judges so many copies with such loads, after so many were right a while ago.
fn check(wanted: u32, cpu: &[u32], highest: u32, expected: Expect) {
    let said = verdict(&table("min = 2, max = 12, cpu = '50%'"), wanted, &loads(cpu, None), highest);
    let lines: Vec<String> = said.limits.iter().map(ToString::to_string).collect();
    expected.assert_eq(&format!("{wanted} → {}: {}", said.to, lines.join("; ")));
}

#[test]
fn more_are_wanted_at_once_and_as_many_as_have_just_enough_to_do() {
    check(2, &[200, 200], 0, expect!["2 → 4: "]);
    check(2, &[200, 110], 0, expect!["2 → 4: "]);
    check(2, &[150, 150], 0, expect!["2 → 3: "]);
    check(4, &[300, 300, 300, 300], 0, expect!["4 → 8: in steps: 8 first"]);
    check(2, &[300, 300], 0, expect!["2 → 6: "]);
    check(2, &[500, 500], 0, expect!["2 → 6: in steps: 6 first"]);
}

#[test]
fn what_is_near_enough_changes_nothing() {
    check(2, &[110, 110], 0, expect!["2 → 2: there are that many already; the number stays"]);
    check(4, &[90, 90, 90, 90], 0, expect!["4 → 4: there are that many already; the number stays"]);
    check(4, &[111, 111, 111, 111], 0, expect!["4 → 5: "]);
    check(4, &[76, 76, 76, 76], 0, expect!["4 → 4: there are that many already; the number stays"]);
}

#[test]
fn fewer_are_wanted_step_by_step_and_when_no_more_were_right_for_a_while() {
    check(
        4,
        &[10, 10, 10, 10],
        4,
        expect!["4 → 4: no fewer than 2, the minimum; 4 were right within the last 3m; fewer only after that"],
    );
    check(4, &[10, 10, 10, 10], 2, expect!["4 → 3: no fewer than 2, the minimum; in steps: 3 first"]);
    check(12, &[25; 12], 3, expect!["12 → 9: in steps: 9 first"]);
    check(12, &[75; 12], 11, expect!["12 → 11: 11 were right within the last 3m; fewer only after that"]);
    check(3, &[0, 0, 0], 2, expect!["3 → 2: no fewer than 2, the minimum"]);
    check(2, &[0, 0], 2, expect!["2 → 2: no fewer than 2, the minimum"]);
}

#[test]
fn what_is_not_measured_counts_against_a_change() {
    check(
        2,
        &[],
        2,
        expect!["2 → 2: cpu is not measured of any copy that is ready; that is no reason for another number"],
    );
    // One of four is idle or not ready: three busy ones are no reason for more than four.
    check(
        4,
        &[130, 130, 130],
        4,
        expect![
            "4 → 4: 3 of 4 copies are ready and measured; the others count against a change; there are that many already; the number stays"
        ],
    );
    check(
        4,
        &[200, 200, 200],
        4,
        expect!["4 → 6: 3 of 4 copies are ready and measured; the others count against a change"],
    );
    check(
        4,
        &[10],
        0,
        expect![
            "4 → 4: 1 of 4 copies are ready and measured; the others count against a change; there are that many already; the number stays"
        ],
    );
    check(4, &[10, 10], 0, expect!["4 → 3: 2 of 4 copies are ready and measured; the others count against a change"]);
}

#[test]
fn what_is_outside_the_limits_comes_back_at_once() {
    check(20, &[100; 20], 20, expect!["20 → 12: no more than 12, the maximum"]);
    check(1, &[100], 1, expect!["1 → 2: no fewer than 2, the minimum"]);
    check(
        20,
        &[],
        20,
        expect![
            "20 → 12: cpu is not measured of any copy that is ready; that is no reason for another number; no more than 12, the maximum"
        ],
    );
}

#[test]
fn the_busiest_metric_decides() {
    let both = table("min = 1, max = 12, cpu = '50%', memory = '50%'");
    let said = verdict(&both, 2, &loads(&[10, 10], Some(150)), 2);
    assert_eq!((said.to, said.readings.len()), (3, 2));
    assert_eq!(said.readings.iter().map(|reading| reading.load()).collect::<Vec<_>>(), [100, 1500]);
    // Memory that nobody measures is no reason for fewer copies.
    let said = verdict(&both, 2, &loads(&[10, 10], None), 1);
    assert_eq!(said.to, 2, "{said:?}");
}

proptest! {
    #[test]
    fn e3_a_number_is_within_its_limits_or_nearer_to_them(
        min in 1..20u32, more in 0..20u32, wanted in 1..40u32, highest in 0..40u32, cpu in vec(0..400u32, 0..40),
    ) {
        let limits = Autoscale { min, max: min + more, ..table("min = 1, max = 2, cpu = '50%'") };
        let said = verdict(&limits, wanted, &loads(&cpu, None), highest);
        prop_assert!((min..=min + more).contains(&said.to), "{said:?}");
        prop_assert!((min..=min + more).contains(&said.right));
    }

    #[test]
    fn e3_more_load_never_wants_fewer_copies(
        wanted in 1..40u32, highest in 0..40u32, cpu in vec(0..400u32, 1..40), at in any::<prop::sample::Index>(), more in 0..200u32,
    ) {
        let limits = table("min = 1, max = 40, cpu = '50%'");
        let less = verdict(&limits, wanted, &loads(&cpu, None), highest);
        let mut busier = cpu.clone();
        busier[at.index(cpu.len())] += more;
        let greater = verdict(&limits, wanted, &loads(&busier, None), highest);
        prop_assert!(greater.to >= less.to && greater.right >= less.right, "{less:?} {greater:?}");
    }

    /// Copies share the load, each looks at what it has, and the number goes where it belongs and stays there.
    #[test]
    fn e3_at_a_constant_load_the_number_settles_and_stays(start in 1..40u32, load in 0..8_000u32) {
        let limits = table("min = 1, max = 40, cpu = '50%'");
        let mut wanted = start;
        let mut course = vec![wanted];
        for _ in 0..60 {
            let each = loads(&vec![load / wanted; wanted as usize], None);
            let right = verdict(&limits, wanted, &each, 0).right;
            wanted = verdict(&limits, wanted, &each, right).to;
            course.push(wanted);
        }
        prop_assert!(course[40..].iter().all(|wanted| *wanted == course[60]), "{course:?}");
        // It comes from one side and does not swing.
        let ups = course.windows(2).any(|pair| pair[1] > pair[0]);
        let downs = course.windows(2).any(|pair| pair[1] < pair[0]);
        prop_assert!(!(ups && downs), "{course:?}");
        let (enough, all) = (u64::from(wanted) * 111, u64::from(load));
        prop_assert!(all <= enough || wanted == 40, "{load} on {wanted}");
    }
}

/// A cluster whose copies share a load, watched by a manager.
pub(super) struct Course {
    pub(super) world: World,
    autoscaling: Autoscaling,
    pub(super) seconds: u64,
    /// Of all copies together, in percent of the target of one.
    load: u32,
    pub(super) log: Vec<String>,
}

pub(super) fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

impl Course {
    pub(super) fn new(lines: &str, nodes: u128) -> Course {
        let mut world = World::new(nodes, Policy::default());
        for number in 1..=nodes {
            let has = Amount { cpu_millis: 4000, memory_bytes: 8 << 30 };
            world.observed.capacity.insert(node(number, &[]).id, has);
        }
        world.apply(service(lines));
        world.settle(|_| ());
        Course { world, autoscaling: Autoscaling::default(), seconds: 0, load: 0, log: Vec::new() }
    }

    pub(super) fn report(&self) -> Report {
        let now = Timestamp(Duration::from_secs(self.seconds));
        self.autoscaling.report(&self.world.state, &web(), now, NOW).unwrap()
    }

    pub(super) fn wanted(&self) -> u32 {
        self.world.state.services[&web()].spec.replicas
    }

    fn watch(&mut self) -> Vec<crate::Adjustment> {
        let now = Timestamp(Duration::from_secs(self.seconds));
        let World { state, observed, policy, .. } = &self.world;
        let wall = WallTime(NOW.0 + self.seconds * 1_000_000);
        self.autoscaling.watch(&Sight { now, wall, state, observed, policy });
        self.autoscaling.due()
    }

    /// A second passes.
    pub(super) fn second(&mut self) {
        self.seconds += 1;
        let running: Vec<_> = self.world.state.replicas.values().map(|replica| replica.id).collect();
        let each = self.load / u32::try_from(running.len()).unwrap().max(1);
        let usage = Usage { cpu_millis: each * 5, memory_bytes: None, pressure: None };
        self.world.observed.usage = running.into_iter().map(|id| (id, usage)).collect();
        for found in self.watch() {
            self.log.push(format!("{}s {} → {}: {}", self.seconds, found.from, found.to, found.why));
            let crate::Adjustment { service, version, from, to, why } = found;
            self.world.command(&Command::Autoscale(AutoscaleCommand::Adjust { service, version, from, to, why }));
        }
        let plan = self.world.plan();
        self.world.carry_out(&plan);
        self.world.obey();
    }

    fn run(&mut self, seconds: u64, load: u32) {
        self.load = load;
        (0..seconds).for_each(|_| self.second());
    }

    pub(super) fn check(&mut self, expected: Expect) {
        expected.assert_eq(&std::mem::take(&mut self.log).join("\n"));
    }
}

const SHORT: &str = "min = 2, max = 6, cpu = '50%', every = '5s', warmup = '2s', down_after = '20s'";

#[test]
fn e3_copies_follow_a_load_that_comes_and_goes() {
    let mut course = Course::new(SHORT, 3);
    course.run(60, 100);
    course.check(expect![[""]]);
    course.run(60, 400);
    course.check(expect!["66s 2 → 4: cpu is at 200% of its target, 4 would do"]);
    assert_eq!(course.wanted(), 4);
    course.run(15, 100);
    course.check(expect![[""]]);
    course.run(60, 100);
    course.check(expect![[r#"
        137s 4 → 3: cpu is at 25% of its target, 1 would do; no fewer than 2, the minimum
        143s 3 → 2: cpu is at 30% of its target, 1 would do; no fewer than 2, the minimum"#]]);
    assert_eq!(course.wanted(), 2);
}

#[test]
fn e3_a_manager_that_has_just_begun_to_watch_asks_for_no_fewer_before_its_time() {
    let mut course = Course::new(SHORT, 3);
    course.run(60, 400);
    assert_eq!(course.wanted(), 4);
    course.run(12, 100);
    assert_eq!(course.wanted(), 4);
    let began = course.seconds;
    // As if another were elected that had been started a moment ago.
    course.autoscaling = Autoscaling::default();
    course.log.clear();
    course.run(60, 100);
    assert_eq!(course.wanted(), 2);
    let first: u64 = course.log[0].split('s').next().unwrap().parse().unwrap();
    assert!(first >= began + 20, "{:?}", course.log);
}

#[test]
fn e3_while_it_is_updated_the_number_stays() {
    let mut course = Course::new(SHORT, 3);
    let mut other = course.world.state.services[&web()].spec.clone();
    other.env.insert("A".into(), "2".into());
    course.world.broken = Some(2);
    other.update.rollback = false;
    course.world.apply(other);
    course.run(60, 900);
    assert_eq!(course.wanted(), 2, "{:?}", course.log);
    let report = course.autoscaling.report(&course.world.state, &web(), Timestamp(Duration::from_secs(60)), NOW);
    let limits = report.unwrap().verdict.unwrap().limits;
    assert_eq!(limits[0].to_string(), "version 2 is being brought out; the number stays until that is over");
    course.world.broken = None;
    course.world.all_well();
    course.run(60, 900);
    assert_eq!(course.wanted(), 6, "{:?}", course.log);
}

#[test]
fn e3_no_more_copies_are_asked_for_than_find_room() {
    let mut course = Course::new(SHORT, 1);
    course.world.observed.capacity.insert(node(1, &[]).id, Amount { cpu_millis: 3000, memory_bytes: 8 << 30 });
    course.run(30, 600);
    course.check(expect![
        "6s 2 → 3: cpu is at 300% of its target, 6 would do; 3 copies more would find no node with room"
    ]);
    assert_eq!(course.wanted(), 3);
    let report =
        course.autoscaling.report(&course.world.state, &web(), Timestamp(Duration::from_secs(60)), NOW).unwrap();
    assert_eq!(report.step, Some(LoadStep::High));
    let limits = report.verdict.unwrap().limits;
    assert!(limits.iter().any(|limit| limit.to_string().contains("would find no node with room")), "{limits:?}");
}

#[test]
fn copies_that_only_begin_do_not_count() {
    let mut course = Course::new("min = 1, max = 6, cpu = '50%', every = '5s', warmup = '1m', down_after = '20s'", 3);
    course.run(59, 900);
    course.check(expect![[""]]);
    assert_eq!(course.wanted(), 1);
    course.run(10, 900);
    assert_eq!(course.wanted(), 5);
}

#[test]
fn copies_that_are_not_ready_do_not_count() {
    let mut course = Course::new(SHORT, 3);
    course.run(10, 100);
    for id in course.world.state.replicas.keys().copied().collect::<Vec<_>>() {
        course.world.observed.replicas.insert(id, ReplicaState::Unhealthy);
    }
    course.run(30, 900);
    course.check(expect![[""]]);
}

/// `NOW` says which day and hour that is; the schedule is for all day.
#[test]
fn e3_hours_change_the_limits() {
    let mut course = Course::new(
        "min = 1, max = 6, every = '5s', down_after = '20s', schedule = [{ from = '00:00', to = '24:00', min = 3 }]",
        3,
    );
    course.run(60, 0);
    course.check(expect!["6s 1 → 3: its limits"]);
    assert_eq!(course.wanted(), 3);
}

#[test]
fn what_was_found_is_asked_for_once_until_the_next_look() {
    let mut course = Course::new(SHORT, 3);
    course.run(4, 800);
    // The leader's command is lost.
    let mut found = Vec::new();
    for _ in 0..12 {
        course.seconds += 1;
        found.extend(course.watch().into_iter().map(|_| course.seconds));
    }
    assert_eq!(found, [6, 11, 16]);
}
