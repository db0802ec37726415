//! Switching autoscaling, and the numbers that the leader asks for, as the log sees them.

use super::*;
use crate::command::Command;
use crate::deployment::{Advance, Stage};
use crate::id::LogIndex;
use crate::spec::{Format, parse};
use crate::time::WallTime;

fn run(state: &mut ClusterState, command: &Command) -> Result<bool, Refusal> {
    let index = LogIndex(state.planned_on.0 + 1);
    let changes = state.decide(index, WallTime(index.0), command)?;
    state.absorb(index, &changes);
    Ok(!changes.is_empty())
}

fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn apply(state: &mut ClusterState, lines: &str) -> Result<bool, Refusal> {
    let text = format!("[[service]]\nname = 'web'\ncommand = ['/bin/web']\nresources = {{ cpu = '500m' }}\n{lines}");
    run(state, &Command::ApplySpec { document: parse(&text, Format::Toml).unwrap() })
}

fn set(state: &mut ClusterState, wish: AutoscaleWish) -> Result<bool, Refusal> {
    run(state, &Command::Autoscale(AutoscaleCommand::Set { service: web(), wish }))
}

fn adjust(state: &mut ClusterState, version: u64, from: u32, to: u32) -> bool {
    let command = AutoscaleCommand::Adjust { service: web(), version, from, to, why: "cpu is busy".into() };
    run(state, &Command::Autoscale(command)).unwrap()
}

fn replicas(state: &ClusterState) -> u32 {
    state.services[&web()].spec.replicas
}

/// Ends the update of `web`, as the scheduler does when all is well.
fn done(state: &mut ClusterState) {
    for stage in [Stage::Verifying, Stage::Done] {
        let steps = vec![crate::command::Step::Advance { service: web(), to: Advance::To { stage } }];
        run(state, &Command::CarryOut { expected: state.planned_on, steps }).unwrap();
    }
}

const ON: &str = "replicas = 2\nautoscale = { min = 2, max = 8, cpu = '70%' }";

fn autoscaled() -> ClusterState {
    let mut state = ClusterState::default();
    apply(&mut state, ON).unwrap();
    done(&mut state);
    state
}

#[test]
fn e3_scaling_by_hand_is_refused_while_it_is_on_with_the_reason() {
    let mut state = autoscaled();
    let scale = Command::ScaleService { service: web(), replicas: 3 };
    let refusal = run(&mut state, &scale).unwrap_err();
    assert_eq!(refusal.to_string(), "web cannot be scaled by hand: it is autoscaled, from 2 to 8 copies");
    assert!(set(&mut state, AutoscaleWish { enabled: Some(false), ..AutoscaleWish::default() }).unwrap());
    assert!(run(&mut state, &scale).unwrap());
    assert_eq!(replicas(&state), 3);
    let back = AutoscaleWish { enabled: Some(true), ..AutoscaleWish::default() };
    assert!(set(&mut state, back.clone()).unwrap());
    assert_eq!(replicas(&state), 3, "what was set by hand is where it goes on from");
    assert!(!set(&mut state, back).unwrap(), "it is on already");
}

#[test]
fn e3_a_spec_that_is_applied_again_leaves_the_number_to_the_leader() {
    let mut state = autoscaled();
    assert!(adjust(&mut state, 1, 2, 4));
    assert!(!apply(&mut state, ON).unwrap(), "nothing is different");
    assert_eq!(replicas(&state), 4);
    apply(&mut state, "autoscale = { min = 1, max = 3, cpu = '70%' }").unwrap();
    assert_eq!(replicas(&state), 3, "other limits count at once");
    apply(&mut state, "replicas = 2").unwrap();
    assert_eq!(replicas(&state), 2, "without a table the number is that of the file");
}

#[test]
fn what_the_leader_found_counts_only_for_the_service_as_it_was() {
    let mut state = autoscaled();
    for (version, from, to) in [(2, 2, 4), (1, 3, 4), (1, 2, 2), (1, 2, 9), (1, 2, 1)] {
        assert!(!adjust(&mut state, version, from, to), "version {version}: {from} to {to}");
    }
    assert!(adjust(&mut state, 1, 2, 8));
    let Happening::ServiceAutoscaled { from, to, why, .. } = &state.events.back().unwrap().what else {
        panic!("{:?}", state.events.back());
    };
    assert_eq!((*from, *to, why.as_str()), (2, 8, "cpu is busy"));
    apply(&mut state, &format!("env = {{ A = '1' }}\n{ON}")).unwrap();
    assert!(!adjust(&mut state, 2, 8, 4), "not while it is updated");
    done(&mut state);
    assert!(adjust(&mut state, 2, 8, 4));
    set(&mut state, AutoscaleWish { enabled: Some(false), ..AutoscaleWish::default() }).unwrap();
    assert!(!adjust(&mut state, 2, 4, 5), "not when it is off");
}

#[test]
fn e3_it_is_switched_on_with_limits_and_something_to_go_by() {
    let mut state = ClusterState::default();
    apply(&mut state, "replicas = 5").unwrap();
    let on = AutoscaleWish { enabled: Some(true), ..AutoscaleWish::default() };
    let refusal = set(&mut state, on.clone()).unwrap_err().to_string();
    assert!(refusal.contains("begins with `min` and `max`"), "{refusal}");
    let refusal = set(&mut state, AutoscaleWish { min: Some(1), max: Some(4), ..on.clone() }).unwrap_err();
    assert!(refusal.to_string().contains("goes by nothing"), "{refusal}");
    let cpu = "70%".parse().ok();
    let whole = AutoscaleWish { min: Some(1), max: Some(4), cpu, ..on };
    assert!(set(&mut state, whole.clone()).unwrap());
    assert_eq!(replicas(&state), 4, "brought between the limits");
    assert!(!set(&mut state, whole).unwrap());
    assert!(set(&mut state, AutoscaleWish { max: Some(6), ..AutoscaleWish::default() }).unwrap());
    let table = state.services[&web()].spec.autoscale.clone().unwrap();
    assert_eq!((table.min, table.max, table.cpu), (1, 6, cpu));
    let refusal = set(&mut state, AutoscaleWish { memory: cpu, ..AutoscaleWish::default() }).unwrap_err();
    assert!(refusal.to_string().contains("`resources.memory`"), "{refusal}");
    let kinds: Vec<&Happening> = state.events.iter().map(|event| &event.what).collect();
    assert!(kinds.iter().any(|what| matches!(what, Happening::AutoscaleSet { on: true, min: 1, max: 6, .. })));
}

#[test]
fn changing_the_table_makes_no_version_and_going_back_keeps_it() {
    let mut state = autoscaled();
    set(&mut state, AutoscaleWish { max: Some(9), ..AutoscaleWish::default() }).unwrap();
    assert_eq!(state.services[&web()].version, 1);
    apply(&mut state, "env = { A = '1' }\nautoscale = { min = 2, max = 9, cpu = '70%' }").unwrap();
    done(&mut state);
    assert!(adjust(&mut state, 2, 2, 5));
    let back = run(&mut state, &Command::RollBackService { service: web(), to: Some(1) });
    back.unwrap();
    let spec = &state.services[&web()].spec;
    assert_eq!((spec.replicas, spec.autoscale.as_ref().map(|table| table.max)), (5, Some(9)));
}

#[test]
fn going_back_to_what_sets_nothing_aside_ends_autoscaling_and_keeps_the_number() {
    let mut state = ClusterState::default();
    let bare = "[[service]]\nname = 'web'\ncommand = ['/bin/web']\nreplicas = 3";
    run(&mut state, &Command::ApplySpec { document: parse(bare, Format::Toml).unwrap() }).unwrap();
    done(&mut state);
    apply(&mut state, ON).unwrap();
    done(&mut state);
    assert!(adjust(&mut state, 2, 3, 6));
    run(&mut state, &Command::RollBackService { service: web(), to: Some(1) }).unwrap();
    let spec = &state.services[&web()].spec;
    assert_eq!((spec.replicas, &spec.autoscale), (6, &None));
}
