//! Updates as the log sees them: which stages follow which, and what is remembered of versions.

use super::*;
use crate::command::{Command, Step};
use crate::spec::{Format, parse};

fn name() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn run(state: &mut ClusterState, command: &Command) -> Result<(), Refusal> {
    let index = LogIndex(state.planned_on.0 + 1);
    let changes = state.decide(index, WallTime(index.0), command)?;
    state.absorb(index, &changes);
    Ok(())
}

fn apply(state: &mut ClusterState, program: u64, more: &str) {
    let text = format!("[[service]]\nname = 'web'\ncommand = ['/bin/web', 'v{program}']\n{more}");
    run(state, &Command::ApplySpec { document: parse(&text, Format::Toml).unwrap() }).unwrap();
}

fn advance(state: &mut ClusterState, to: Advance) {
    let expected = state.planned_on;
    let steps = vec![Step::Advance { service: name(), to }];
    run(state, &Command::CarryOut { expected, steps }).unwrap();
}

fn finish(state: &mut ClusterState) {
    for stage in [Stage::Rolling, Stage::Verifying, Stage::Done] {
        advance(state, Advance::To { stage });
    }
}

fn failed() -> Advance {
    Advance::RollBack { why: "it broke".into() }
}

fn deployment(state: &ClusterState) -> &Deployment {
    &state.deployments[&name()]
}

fn program(state: &ClusterState) -> (u64, String) {
    let service = &state.services[&name()];
    (service.version, service.spec.command[1].clone())
}

#[test]
fn a_version_becomes_stable_by_passing_its_stages_in_order() {
    let mut state = ClusterState::default();
    apply(&mut state, 1, "");
    assert_eq!((deployment(&state).stage, deployment(&state).from), (Stage::Rolling, None));
    advance(&mut state, Advance::To { stage: Stage::Done });
    assert_eq!(deployment(&state).stage, Stage::Rolling, "nothing is left out");
    finish(&mut state);
    assert_eq!(deployment(&state).stage, Stage::Done);
    assert!(matches!(state.versions[&name()][&1].trial, Trial::Stable { .. }));
    apply(&mut state, 2, "update = { canary = 1, promote = 'manual' }");
    assert_eq!((deployment(&state).stage, deployment(&state).from), (Stage::Canary, Some(1)));
    advance(&mut state, Advance::To { stage: Stage::AwaitPromotion });
    finish(&mut state);
    assert_eq!(deployment(&state).stage, Stage::AwaitPromotion, "somebody has to say so");
    run(&mut state, &Command::ContinueUpdate { service: name() }).unwrap();
    finish(&mut state);
    assert_eq!(deployment(&state).stage, Stage::Done);
}

#[test]
fn an_update_that_fails_puts_back_the_program_and_neither_the_number_of_copies_nor_a_number_of_a_version() {
    let mut state = ClusterState::default();
    apply(&mut state, 1, "");
    finish(&mut state);
    apply(&mut state, 2, "replicas = 3");
    advance(&mut state, failed());
    assert_eq!(program(&state), (1, "v1".into()));
    assert_eq!(state.services[&name()].spec.replicas, 3);
    assert_eq!(deployment(&state).stage, Stage::RollingBack);
    assert_eq!(state.versions[&name()][&2].trial, Trial::Failed { why: "it broke".into() });
    advance(&mut state, Advance::To { stage: Stage::RolledBack });
    apply(&mut state, 3, "replicas = 3");
    assert_eq!(program(&state), (3, "v3".into()), "2 meant another program");
    assert_eq!(deployment(&state).from, Some(1));
}

#[test]
fn the_first_version_is_held_when_it_fails_and_an_overtaken_one_is_never_gone_back_to() {
    let mut state = ClusterState::default();
    apply(&mut state, 1, "");
    advance(&mut state, failed());
    assert_eq!(deployment(&state).held.as_ref().unwrap().why, "it broke");
    let refused = run(&mut state, &Command::AbortUpdate { service: name() });
    assert!(matches!(refused, Err(Refusal::NoVersion { .. })), "{refused:?}");
    apply(&mut state, 2, "");
    assert_eq!(deployment(&state).from, None, "it was never well");
    for stage in [Stage::Rolling, Stage::Verifying] {
        advance(&mut state, Advance::To { stage });
    }
    apply(&mut state, 3, "");
    assert_eq!(deployment(&state).from, Some(2), "it ran everywhere, which is better than nothing");
    apply(&mut state, 4, "");
    assert_eq!(state.versions[&name()][&3].trial, Trial::Superseded);
    assert_eq!(deployment(&state).from, Some(2));
    run(&mut state, &Command::AbortUpdate { service: name() }).unwrap();
    assert_eq!(program(&state), (2, "v2".into()));
}

#[test]
fn rolling_back_goes_to_what_was_stable_last_and_there_and_back() {
    let mut state = ClusterState::default();
    for number in 1..=3 {
        apply(&mut state, number, "");
        finish(&mut state);
    }
    let back = |state: &mut ClusterState, to| run(state, &Command::RollBackService { service: name(), to });
    back(&mut state, None).unwrap();
    assert_eq!(program(&state), (2, "v2".into()));
    assert!(deployment(&state).proven && deployment(&state).from == Some(3));
    finish(&mut state);
    back(&mut state, None).unwrap();
    finish(&mut state);
    assert_eq!(program(&state).0, 3);
    back(&mut state, Some(1)).unwrap();
    assert_eq!(program(&state), (1, "v1".into()));
    let refused = back(&mut state, Some(9)).unwrap_err();
    assert_eq!(refused, Refusal::NoVersion { service: name(), version: Some(9), known: vec![1, 2, 3] });
}

#[test]
fn ten_versions_are_remembered_and_the_one_to_go_back_to_among_them() {
    let mut state = ClusterState::default();
    apply(&mut state, 1, "");
    finish(&mut state);
    for number in 2..=30 {
        apply(&mut state, number, "");
    }
    let kept: Vec<u64> = state.versions[&name()].keys().copied().collect();
    assert_eq!(kept.len(), VERSIONS_KEPT);
    assert_eq!((kept[0], kept[9]), (1, 30));
    run(&mut state, &Command::RemoveService { service: name() }).unwrap();
    assert!(state.versions.is_empty() && state.deployments.is_empty());
}

#[test]
fn a_restart_of_what_is_stable_is_proven_and_one_in_the_middle_of_an_update_is_not() {
    let mut state = ClusterState::default();
    apply(&mut state, 1, "update = { canary = 1 }");
    finish(&mut state);
    let restart = Command::RestartService { service: name() };
    run(&mut state, &restart).unwrap();
    assert!(deployment(&state).proven && deployment(&state).stage == Stage::Rolling, "without canaries");
    finish(&mut state);
    apply(&mut state, 2, "");
    run(&mut state, &restart).unwrap();
    assert_eq!((deployment(&state).proven, deployment(&state).from), (false, Some(2)));
}

#[test]
fn a_service_older_than_deployments_can_be_gone_back_to() {
    let mut state = ClusterState::default();
    apply(&mut state, 1, "");
    state.deployments.clear();
    state.versions.clear();
    apply(&mut state, 2, "");
    assert_eq!(deployment(&state).from, Some(1));
    advance(&mut state, failed());
    assert_eq!(program(&state), (1, "v1".into()));
}
