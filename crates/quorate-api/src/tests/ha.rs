//! High availability switched on and off.

use super::*;
use quorate_model::member::managers::Harm;

async fn switch(fake: &Fake, enabled: bool) -> (u16, String) {
    let body = json!({ "enabled": enabled }).to_string();
    let response = send(fake, Request::put("/v1/ha").body(body.into()).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

/// One node, as a node shows it while high availability is off.
fn alone() -> Fake {
    let fake = Fake::new();
    fake.0.link.send_replace(false);
    fake.change(|overview| {
        overview.nodes.truncate(1);
        (overview.nodes[0].mode, overview.nodes[0].standing, overview.nodes[0].lag) = (None, None, None);
        (overview.cluster.ha, overview.cluster.electors) = (false, None);
    });
    fake
}

#[tokio::test]
async fn k6_off_nothing_about_managers_is_in_the_status() {
    let fake = alone();
    let status = parsed(get(&fake, "/v1/status").await);
    assert_eq!(status["cluster"]["ha"], false);
    for key in
        ["voters", "voters_joined", "can_lose", "can_lose_when_up", "voters_change", "voters_next", "manager_requires"]
    {
        assert!(!status["cluster"].as_object().unwrap().contains_key(key), "{key}");
    }
    assert!(status["nodes"][0]["mode"].is_null() && status["nodes"][0]["standing"].is_null());
    let shown = parsed(get(&fake, "/v1/ha").await);
    assert_eq!(shown.as_object().unwrap().keys().collect::<Vec<_>>(), ["enabled", "summary"], "{shown}");
    // What an older node says, which has no switch.
    let mut old = parsed(get(&Fake::new(), "/v1/status").await);
    old["cluster"].as_object_mut().unwrap().remove("ha");
    let old: Overview = serde_json::from_value(old).unwrap();
    assert!(old.cluster.ha && old.cluster.electors.is_some());
}

#[tokio::test]
async fn k6_it_is_switched_and_answered_when_the_node_listens_for_others() {
    let fake = alone();
    let on = parsed(switch(&fake, true).await);
    assert_eq!(on["enabled"], false, "the fake shows no electors, but it was asked to");
    assert!(*fake.0.link.borrow());
    let off = parsed(switch(&fake, false).await);
    assert_eq!(off["enabled"], false);
    assert_eq!(fake.set(|state| state.proposals.len()), 2);
    let three = parsed(get(&Fake::new(), "/v1/ha").await);
    assert_eq!(
        three,
        json!({ "enabled": true, "summary": "high availability is on: one manager may be lost", "active": "n1",
            "voters": 3, "can_lose": 1 })
    );
}

#[tokio::test]
async fn k6_a_port_that_is_taken_is_found_before_anything_is_decided() {
    let fake = alone();
    fake.set(|state| state.no_link = Some("127.0.0.1:7001 is taken".into()));
    for refused in [switch(&fake, true).await, post(&fake, "/v1/join-tokens", "").await] {
        assert_eq!(code(&refused), "409 link-port-taken");
        assert!(refused.1.contains("127.0.0.1:7001 is taken"), "{}", refused.1);
    }
    assert_eq!(fake.set(|state| state.proposals.len()), 0);
    fake.set(|state| state.no_link = None);
    let token = parsed(post(&fake, "/v1/join-tokens", "").await);
    assert!(token["commands"].is_array());
    let proposal = fake.set(|state| state.proposals.last().cloned()).unwrap().0;
    let payload = carried::payload(&proposal);
    assert!(
        matches!(payload, Payload::Command(Command::Member(MemberCommand::CreateToken { turn_on_ha: true, .. }))),
        "in the same entry: {payload:?}"
    );
}

#[tokio::test]
async fn k6_what_the_cluster_does_not_grant_is_answered_with_its_reason_and_what_to_do() {
    let fake = Fake::new();
    for (on, harm, expected) in [
        (true, Harm::TwoNodes, "409 ha-needs-three"),
        (false, Harm::HaInUse { nodes: "n1, n2, n3".into() }, "409 ha-in-use"),
    ] {
        let words = harm.to_string();
        fake.set(|state| state.withheld = Some(Refusal::Harm { harm }));
        let refused = switch(&fake, on).await;
        assert_eq!(code(&refused), expected);
        let problem: Json = serde_json::from_str(&refused.1).unwrap();
        assert_eq!(problem["message"], words);
        assert!(!problem["fix"].as_str().unwrap().is_empty());
    }
    fake.change(|overview| overview.nodes.truncate(2));
    let two = parsed(get(&fake, "/v1/ha").await);
    assert!(two["summary"].as_str().unwrap().contains("a majority of two would be both of them"), "{two}");
}

#[tokio::test]
async fn k6_off_the_one_node_is_restarted_and_nothing_else_is_done_to_managers() {
    let fake = alone();
    let put = async |path: &str, body: Json| {
        let response = send(&fake, Request::put(path).body(body.to_string().into()).unwrap()).await;
        (response.status().as_u16(), text(response).await)
    };
    for refused in [
        post(&fake, "/v1/managers/stop", r#"{"nodes":["n1"]}"#).await,
        post(&fake, "/v1/managers/start", r#"{"all_passive":true}"#).await,
        post(&fake, "/v1/raft/transfer", r#"{"node":"n1"}"#).await,
        put("/v1/managers/rule", json!({ "requires": "worker" })).await,
        put("/v1/nodes/n1/vote", json!({ "vote": "asked" })).await,
        put("/v1/nodes/n1/roles", json!({ "roles": ["worker"] })).await,
    ] {
        assert_eq!(code(&refused), "409 ha-off");
    }
    assert_eq!(fake.set(|state| state.proposals.len()), 0);
    for (path, body) in [("/v1/managers/restart", r#"{"node":"n1"}"#), ("/v1/managers/restart-active", "")] {
        assert_eq!(parsed(post(&fake, path, body).await)["nodes"][0]["name"], "n1", "{path}");
    }
    assert_eq!(put("/v1/nodes/n1/roles", json!({ "roles": ["manager", "gateway"] })).await.0, 200);
    assert_eq!(get(&fake, "/v1/active").await.0, 200, "balancers go on");
}

#[tokio::test]
async fn k6_asked_again_under_the_same_id_it_is_switched_once() {
    let fake = alone();
    for _ in 0..2 {
        let request = Request::put("/v1/ha").header("quorate-request-id", "7f1de2d3-3d93-4bc9-829b-b76b22055142");
        let response = send(&fake, request.body(r#"{"enabled":true}"#.into()).unwrap()).await;
        assert_eq!(response.status(), 200);
    }
    assert_eq!(fake.set(|state| state.proposals.len()), 1);
    let unknown = Request::put("/v1/ha").body(r#"{"enabled":true,"force":true}"#.into()).unwrap();
    assert_eq!(send(&fake, unknown).await.status(), 400);
}
