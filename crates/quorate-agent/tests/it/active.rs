//! Copies of active-passive services: those that stand by cold run nothing, and are ready.

use super::lease::{Holding, leased};
use super::*;
use quorate_model::assignment::AssignedLease;
use quorate_model::observed::{Casting, Part};
use quorate_model::time::Span;

/// So that a busy machine ends nothing.
const LONG: Duration = Duration::from_secs(20);

fn cold(script: &str) -> ServiceSpec {
    let active = json!({"standby": "cold"});
    shell(script, json!({"mode": "active-passive", "replicas": 2, "stop": {"grace": "1s"}, "active": active}))
}

/// Its role under this epoch is to be given back.
pub(super) fn yielding(id: ReplicaId, spec: &ServiceSpec, epoch: u64) -> AssignedReplica {
    let lease = AssignedLease { epoch, ttl: Span(LONG), keeps: false, yields: true };
    AssignedReplica { lease: Some(lease), ..assigned(id, spec, Phase::Run) }
}

fn standby(yielded: u64) -> Option<Casting> {
    Some(Casting { part: Part::Standby, epoch: 0, yielded })
}

fn active(epoch: u64) -> Option<Casting> {
    Some(Casting { part: Part::Active, epoch, yielded: 0 })
}

#[tokio::test]
async fn a_cold_standby_is_ready_and_runs_only_under_its_lease() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = cold("echo up $QUORATE_EPOCH; exec sleep 1000");
    run_one(&agent, 1, id, &spec);
    let ready = healthy(&agent, id).await;
    assert_eq!((ready.pid, ready.casting), (None, standby(0)));
    assert!(node.replica_dir(id).join("work").is_dir(), "what can be done before is done");
    assert!(!node.replica_dir(id).join("state.json").exists(), "no shim has begun");

    // The lease is its, and nobody has acknowledged it yet.
    agent.assign(assignment(2, vec![leased(id, &spec, 7, LONG)]));
    let waits = |status: &ReplicaStatus| status.detail.contains("it waits for its lease");
    assert_eq!(status(&agent, id, waits).await.pid, None);
    let holding = Holding::begin(&agent, id, 7, LONG);
    let running = status(&agent, id, |one| one.state == ReplicaState::Healthy && one.pid.is_some()).await;
    assert_eq!((running.casting, running.restarts), (active(7), 0));
    logged(&agent, id, "up 7").await;

    agent.assign(assignment(3, vec![yielding(id, &spec, 7)]));
    let over = status(&agent, id, |one| one.casting == standby(7)).await;
    assert_eq!(over.pid, None, "it says that only when nothing is left");
    gone(running.pid.unwrap()).await;
    assert_eq!(
        status(&agent, id, |one| one.state == ReplicaState::Healthy).await.pid,
        None,
        "though its lease is held"
    );
    holding.end().await;

    run_one(&agent, 4, id, &spec);
    status(&agent, id, |one| one.casting == standby(0) && one.state == ReplicaState::Healthy).await;
    let holding = Holding::begin(&agent, id, 9, LONG);
    agent.assign(assignment(5, vec![leased(id, &spec, 9, LONG)]));
    let again = status(&agent, id, |one| one.casting == active(9)).await;
    assert_eq!(again.restarts, 0, "a promotion is no restart");
    logged(&agent, id, "up 9").await;
    holding.end().await;
}

#[tokio::test]
async fn a_cold_standby_that_lacks_something_says_so_before_it_is_needed() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let mut spec = cold("exec sleep 1000");
    spec.env.insert("PASSWORD".into(), "{secret.pg}".into());
    spec.secrets.insert("pg".parse().unwrap());
    run_one(&agent, 1, id, &spec);
    let lacks = status(&agent, id, |one| one.state == ReplicaState::BackingOff && one.detail.contains("pg")).await;
    assert_eq!(lacks.casting, standby(0));
    give_secret(&node, "pg", "canary-5d21");
    let ready = healthy(&agent, id).await;
    assert_eq!((ready.pid, ready.detail.as_str()), (None, ""));
}

#[tokio::test]
async fn a_cold_copy_that_ended_again_and_again_is_no_heir_for_a_while() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = cold("exit 3");
    let holding = Holding::begin(&agent, id, 7, LONG);
    agent.assign(assignment(1, vec![leased(id, &spec, 7, LONG)]));
    status(&agent, id, |one| one.state == ReplicaState::BackingOff && one.restarts > 0).await;
    agent.assign(assignment(2, vec![yielding(id, &spec, 7)]));
    let over = status(&agent, id, |one| one.casting == standby(7)).await;
    assert_ne!(over.state, ReplicaState::Healthy);
    let later = healthy(&agent, id).await;
    assert_eq!((later.pid, later.casting), (None, standby(7)));
    holding.end().await;
}

#[tokio::test]
async fn a_next_agent_goes_on_with_the_active_copy_of_those_that_stand_by_cold() {
    let (node, id) = (Node::new(), replica(0));
    let first = node.agent().await;
    let spec = cold("exec sleep 1000");
    let holding = Holding::begin(&first, id, 7, LONG);
    first.assign(assignment(1, vec![leased(id, &spec, 7, LONG)]));
    let before = status(&first, id, |one| one.casting == active(7)).await;
    holding.end().await;
    first.stop().await;
    let second = node.agent().await;
    let after = status(&second, id, |one| one.casting == active(7)).await;
    assert_eq!(before.pid, after.pid);
    // Its lease was raised meanwhile: it is a standby like any.
    run_one(&second, 2, id, &spec);
    status(&second, id, |one| one.casting == standby(0) && one.pid.is_none() && one.state == ReplicaState::Healthy)
        .await;
    gone(before.pid.unwrap()).await;
}
