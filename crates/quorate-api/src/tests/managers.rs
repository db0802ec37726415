//! Managers stopped, started, restarted, and one that is stopped.

use super::*;
use quorate_model::member::managers::Harm;

async fn put(fake: &Fake, path: &str, body: Json) -> (u16, String) {
    let response = send(fake, Request::put(path).body(body.to_string().into()).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

fn names(answer: &Json) -> Vec<&str> {
    answer["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect()
}

/// What the log was asked for last.
fn asked(fake: &Fake) -> MemberCommand {
    let (proposal, _) = fake.set(|state| state.proposals.last().cloned()).unwrap();
    match carried::payload(&proposal) {
        Payload::Command(Command::Member(command)) => command,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn k4_managers_are_stopped_and_started_by_name_or_all_passive_at_once() {
    let fake = Fake::new();
    let stopped = parsed(post(&fake, "/v1/managers/stop", r#"{"nodes":["n2"]}"#).await);
    assert_eq!((names(&stopped), &stopped["nodes"][0]["standing"]), (vec!["n2"], &json!("stopped")));
    let stopped = parsed(post(&fake, "/v1/managers/stop", r#"{"all_passive":true}"#).await);
    assert_eq!(names(&stopped), ["n2", "n3"]);
    let both = [NodeId::from_u128(2), NodeId::from_u128(3)].into();
    assert_eq!(
        asked(&fake),
        MemberCommand::StopManagers { nodes: both },
        "in one entry: one by one could lose the majority"
    );
    let started = parsed(post(&fake, "/v1/managers/start", r#"{"all_passive":true}"#).await);
    assert_eq!(started["nodes"][1]["standing"], "voter");
    for body in ["{}", r#"{"nodes":["n2"],"all_passive":true}"#] {
        assert_eq!(code(&post(&fake, "/v1/managers/stop", body).await), "422 invalid", "{body}");
    }
    assert_eq!(code(&post(&fake, "/v1/managers/stop", r#"{"nodes":["n9"]}"#).await), "404 unknown-node");
    fake.change(|overview| overview.cluster.leader = None);
    assert_eq!(code(&post(&fake, "/v1/managers/stop", r#"{"all_passive":true}"#).await), "503 no-leader");
}

#[tokio::test]
async fn k4_what_the_leader_does_not_grant_is_answered_with_its_reason() {
    let fake = Fake::new();
    for (harm, expected) in [
        (Harm::Active { node: "n1".into() }, "409 is-active"),
        (Harm::LosesMajority { node: "n2".into(), why: "n3 is away".into() }, "409 loses-majority"),
        (Harm::LastVoter { node: "n1".into() }, "409 last-voter"),
        (Harm::EvenVoters { node: "n2".into(), voters: 2 }, "409 even-voters"),
    ] {
        let words = harm.to_string();
        fake.set(|state| state.withheld = Some(Refusal::Harm { harm }));
        let refused = post(&fake, "/v1/managers/stop", r#"{"nodes":["n1"]}"#).await;
        assert_eq!(code(&refused), expected);
        let problem: Json = serde_json::from_str(&refused.1).unwrap();
        assert_eq!(problem["message"], words);
        assert!(problem["details"]["node"].is_string(), "{problem}");
    }
}

#[tokio::test]
async fn k5_the_active_manager_is_restarted_by_its_own_action_only() {
    let fake = Fake::new();
    assert_eq!(code(&post(&fake, "/v1/managers/restart", r#"{"node":"n1"}"#).await), "409 is-active");
    assert_eq!(names(&parsed(post(&fake, "/v1/managers/restart", r#"{"node":"n2"}"#).await)), ["n2"]);
    assert_eq!(names(&parsed(post(&fake, "/v1/managers/restart-active", "").await)), ["n1"]);
    assert!(matches!(asked(&fake), MemberCommand::RestartServer { node, .. } if node == NodeId::from_u128(1)));
    fake.change(|overview| overview.nodes[2].mode = None);
    assert_eq!(code(&post(&fake, "/v1/managers/restart", r#"{"node":"n3"}"#).await), "409 not-manager");
}

#[tokio::test]
async fn k8_managers_may_be_bound_to_another_role() {
    let fake = Fake::new();
    assert_eq!(parsed(put(&fake, "/v1/managers/rule", json!({ "requires": "worker" })).await)["requires"], "worker");
    assert_eq!(parsed(get(&fake, "/v1/status").await)["cluster"]["manager_requires"], "worker");
    let refusal = Refusal::ManagerNeeds { node: "n2".into(), requires: Role::Worker };
    fake.set(|state| state.withheld = Some(refusal));
    let refused = put(&fake, "/v1/nodes/n2/roles", json!({ "roles": ["manager"] })).await;
    assert_eq!(code(&refused), "409 manager-needs-role");
    assert_eq!(code(&put(&fake, "/v1/managers/rule", json!({ "requires": "cook" })).await), "400 bad-json");
}

#[tokio::test]
async fn k11_only_a_manager_that_votes_and_answers_is_promoted() {
    let fake = Fake::new();
    assert_eq!(parsed(post(&fake, "/v1/raft/transfer", r#"{"node":"n2"}"#).await)["leader"], "n2");
    for (standing, state) in [
        (None, NodeState::Joined),
        (Some(Standing::Standby), NodeState::Joined),
        (Some(Standing::Stopped), NodeState::Joined),
        (Some(Standing::Voter), NodeState::Down),
    ] {
        fake.change(|overview| (overview.nodes[1].standing, overview.nodes[1].state) = (standing, state));
        let refused = post(&fake, "/v1/raft/transfer", r#"{"node":"n2"}"#).await;
        assert_eq!(code(&refused), "409 cannot-lead", "{standing:?} {state:?}");
    }
}

#[tokio::test]
async fn k4_a_stopped_manager_answers_for_its_health_its_gateways_and_its_replicas_and_nothing_else() {
    let fake = Fake::new();
    fake.change(|overview| {
        overview.answered_by = "n2".into();
        overview.nodes[1].standing = Some(Standing::Stopped);
    });
    for path in ["/v1/status", "/v1/nodes", "/v1/users", "/_plugin/cluster/status"] {
        let refused = get(&fake, path).await;
        assert_eq!(code(&refused), "503 manager-stopped", "{path}");
        assert!(refused.1.contains("ask n1 at "), "{}", refused.1);
    }
    for (path, body) in [("/v1/db/exec", r#"{"sql":"x"}"#), ("/v1/managers/start", r#"{"nodes":["n2"]}"#)] {
        assert_eq!(code(&post(&fake, path, body).await), "503 manager-stopped", "{path}");
    }
    assert_eq!(get(&fake, "/v1/health").await.0, 200);
    let log = format!("/v1/replicas/{}/log", ReplicaId::from_u128(9));
    assert_eq!(get(&fake, &log).await.0, 200);
    let report = json!({ "gateway": "gw", "url": "http://gw", "revision": 1, "busy": [], "requests": 0, "failed": 0 });
    let reported = post(&fake, "/v1/gateway/report", report.to_string()).await;
    assert!(!reported.1.contains("manager-stopped"), "{reported:?}");
}
