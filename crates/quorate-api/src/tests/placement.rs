//! Labels, drains, explanations and forecasts, as clients see them.

use super::*;

async fn set(fake: &Fake, body: Json) -> (u16, String) {
    let request = Request::put("/v1/nodes/n2/availability").body(body.to_string().into()).unwrap();
    let response = send(fake, request).await;
    (response.status().as_u16(), text(response).await)
}

#[tokio::test]
async fn labels_are_set_and_taken_away_and_the_others_stay() {
    let fake = Fake::new();
    let changed = parsed(post(&fake, "/v1/nodes/n2/labels", r#"{"labels":{"disk":"ssd"}}"#).await);
    assert_eq!(changed["labels"], json!({ "disk": "ssd", "zone": "z2" }));
    let changed = parsed(post(&fake, "/v1/nodes/n2/labels", r#"{"labels":{"zone":null}}"#).await);
    assert_eq!(changed["labels"], json!({ "disk": "ssd" }));
    assert_eq!(code(&post(&fake, "/v1/nodes/n9/labels", r#"{"labels":{}}"#).await), "404 unknown-node");
    assert_eq!(code(&post(&fake, "/v1/nodes/n2/labels", r#"{"label":{}}"#).await), "400 bad-json");
}

#[tokio::test]
async fn agents_say_something_of_their_node_and_take_it_back() {
    let (fake, path) = (Fake::new(), "/v1/nodes/n2/attributes");
    let said = parsed(post(&fake, path, r#"{"name":"db-status","value":"HS:sync"}"#).await);
    assert_eq!(said["attributes"], json!({ "db-status": "HS:sync" }));
    let said = parsed(post(&fake, path, r#"{"name":"db-status","value":null}"#).await);
    assert_eq!(said["attributes"], json!(null));
    assert_eq!(code(&post(&fake, path, r#"{"value":"x"}"#).await), "400 bad-json");
    assert_eq!(code(&post(&fake, "/v1/nodes/n9/attributes", r#"{"name":"a"}"#).await), "404 unknown-node");
}

#[tokio::test]
async fn a_node_is_cordoned_drained_and_opened_again() {
    let fake = Fake::new();
    assert_eq!(parsed(set(&fake, json!({ "availability": "cordoned" })).await)["availability"], "cordoned");
    let drained = parsed(set(&fake, json!({ "availability": "draining", "deadline": "10m" })).await);
    assert_eq!((&drained["availability"], &drained["drain_deadline"]), (&json!("draining"), &json!("10m")));
    let opened = parsed(set(&fake, json!({ "availability": "open" })).await);
    assert_eq!((&opened["availability"], opened.get("drain_deadline")), (&json!("open"), None));
}

#[tokio::test]
async fn a_deadline_is_for_a_drain_and_lasts_a_sane_time() {
    let fake = Fake::new();
    for (body, expected) in [
        (json!({ "availability": "open", "deadline": "10m" }), "422 invalid"),
        (json!({ "availability": "draining", "deadline": "0s" }), "422 invalid"),
        (json!({ "availability": "draining", "deadline": "8d" }), "422 invalid"),
        (json!({ "availability": "closed" }), "400 bad-json"),
        (json!({}), "400 bad-json"),
    ] {
        assert_eq!(code(&set(&fake, body.clone()).await), expected, "{body}");
    }
}

#[tokio::test]
async fn a_service_is_explained_and_one_that_is_not_there_is_not() {
    let fake = Fake::new();
    let explained = parsed(get(&fake, "/v1/services/web/explain").await);
    assert_eq!((&explained["want"], &explained["held"][0]), (&json!(2), &json!("no node can take it")));
    let missing = get(&fake, "/v1/services/wbe/explain").await;
    assert_eq!(code(&missing), "404 unknown-service");
    assert!(missing.1.contains("did you mean `web`?"), "{}", missing.1);
}

#[tokio::test]
async fn n5_a_kill_is_forecast_for_a_node_by_its_name() {
    let fake = Fake::new();
    let forecast = parsed(get(&fake, "/v1/whatif/kill/n2").await);
    assert_eq!(forecast["node"], NodeId::from_u128(2).to_string());
    assert_eq!(forecast["moves"], json!([{ "name": "web.0", "from": "n2", "to": null }]));
    assert_eq!(code(&get(&fake, "/v1/whatif/kill/m2").await), "404 unknown-node");
}

#[tokio::test]
async fn moves_for_balance_are_proposed_within_a_budget_and_asked_for_by_their_ids() {
    let fake = Fake::new();
    let proposed = parsed(get(&fake, "/v1/rebalance").await);
    assert_eq!((&proposed["moves"][0]["name"], &proposed["moves"][0]["to"]), (&json!("web.0"), &json!("n1")));
    for wrong in ["0", "101"] {
        assert_eq!(code(&get(&fake, &format!("/v1/rebalance?moves={wrong}")).await), "422 invalid");
    }
    let asked =
        parsed(post(&fake, "/v1/rebalance", json!({ "replicas": [proposed["moves"][0]["id"]] }).to_string()).await);
    assert_eq!(asked["moves"], 1);
    assert_eq!(parsed(post(&fake, "/v1/rebalance", r#"{"replicas":[]}"#).await)["moves"], 0);
    assert_eq!(code(&post(&fake, "/v1/rebalance", r#"{"replica":[]}"#).await), "400 bad-json");
    let many: Vec<ReplicaId> = (0..101).map(ReplicaId::from_u128).collect();
    assert_eq!(code(&post(&fake, "/v1/rebalance", json!({ "replicas": many }).to_string()).await), "422 invalid");
}
