//! Tokens, nodes, the quota and joining, as clients see them.

use super::*;
use quorate_model::member::NotAdmitted;

async fn put(fake: &Fake, path: &str, body: Json) -> (u16, String) {
    let response = send(fake, Request::put(path).body(body.to_string().into()).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

async fn delete(fake: &Fake, path: &str) -> (u16, String) {
    let response = send(fake, Request::delete(path).body(Body::empty()).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

#[tokio::test]
async fn a_join_token_shows_its_secret_once_and_is_listed_without_it() {
    let fake = Fake::new();
    let made = parsed(post(&fake, "/v1/join-tokens", "").await);
    assert_eq!(made["commands"][0], "quorate join 192.0.2.7:7000/secret1/fingerprint");
    assert_eq!(made["token"]["role"], "manager");
    let lasts = made["token"]["expires"].as_u64().unwrap() - made["token"]["created"].as_u64().unwrap();
    assert_eq!(lasts, 3_600_000_000);
    let listed = get(&fake, "/v1/join-tokens").await;
    assert!(!listed.1.contains("secret") && !listed.1.contains(&"01".repeat(32)), "{}", listed.1);
    let listed = parsed(listed);
    assert_eq!(listed[0], made["token"]);
    let id = listed[0]["id"].as_str().unwrap();
    parsed(delete(&fake, &format!("/v1/join-tokens/{}", &id[..8])).await);
    assert_eq!(parsed(get(&fake, "/v1/join-tokens").await), json!([]));
    assert_eq!(code(&delete(&fake, "/v1/join-tokens/abcd").await), "404 token-unknown");
}

#[tokio::test]
async fn a_token_is_for_a_role_a_name_and_a_time_that_make_sense() {
    let fake = Fake::new();
    let made = parsed(post(&fake, "/v1/join-tokens", r#"{"role":"gateway","ttl":"24h","name":"gw1"}"#).await);
    assert_eq!((&made["token"]["role"], &made["token"]["name"]), (&json!("gateway"), &json!("gw1")));
    for (body, expected) in [
        (r#"{"ttl":"25h"}"#, "422 invalid"),
        (r#"{"ttl":"0s"}"#, "422 invalid"),
        (r#"{"ttl":"1"}"#, "400 bad-json"),
        (r#"{"role":"king"}"#, "400 bad-json"),
        (r#"{"rule":"manager"}"#, "400 bad-json"),
    ] {
        assert_eq!(code(&post(&fake, "/v1/join-tokens", body).await), expected, "{body}");
    }
}

#[tokio::test]
async fn a_repeated_request_does_not_hand_out_a_secret_that_opens_nothing() {
    let fake = Fake::new();
    let request = || {
        let request = Request::post("/v1/join-tokens").header("idempotency-key", "one");
        send(&fake, request.body(Body::empty()).unwrap())
    };
    assert_eq!(request().await.status(), StatusCode::OK);
    let again = request().await;
    let again = (again.status().as_u16(), text(again).await);
    assert_eq!(code(&again), "409 token-made-before");
}

#[tokio::test]
async fn a_node_is_named_by_its_name_its_id_or_how_the_id_begins() {
    let fake = Fake::new();
    fake.change(|overview| overview.nodes[1].id = "3f20a44d-3d93-4bc9-829b-b76b22055142".parse().unwrap());
    for name in ["n2", "3f20a44d-3d93-4bc9-829b-b76b22055142", "3f20", "3F20A44D"] {
        assert_eq!(parsed(get(&fake, &format!("/v1/nodes/{name}")).await)["name"], "n2", "{name}");
    }
    assert_eq!(code(&get(&fake, "/v1/nodes/3f2").await), "404 unknown-node");
    assert_eq!(code(&get(&fake, "/v1/nodes/0000").await), "409 ambiguous");
    let missing = get(&fake, "/v1/nodes/m2").await;
    assert!(missing.1.contains("did you mean `n2`?"), "{}", missing.1);
}

#[tokio::test]
async fn k2_a_node_gets_an_alias_roles_and_a_vote_and_is_removed() {
    let fake = Fake::new();
    assert_eq!(parsed(put(&fake, "/v1/nodes/n2/alias", json!({ "alias": "msk-2" })).await)["alias"], "msk-2");
    assert_eq!(parsed(put(&fake, "/v1/nodes/n2/alias", json!({ "alias": null })).await)["alias"], Json::Null);
    let roles = json!({ "roles": ["worker", "gateway"] });
    assert_eq!(parsed(put(&fake, "/v1/nodes/n2/roles", roles.clone()).await)["roles"], roles["roles"]);
    parsed(put(&fake, "/v1/nodes/n1/vote", json!({ "vote": "asked" })).await);
    parsed(delete(&fake, "/v1/nodes/n2").await);
    assert_eq!(code(&get(&fake, "/v1/nodes/n2").await), "404 unknown-node");
    assert_eq!(code(&put(&fake, "/v1/nodes/n2/alias", json!({ "alias": "x" })).await), "404 unknown-node");
    assert_eq!(code(&put(&fake, "/v1/nodes/n1/roles", json!({ "roles": ["cook"] })).await), "400 bad-json");
}

#[tokio::test]
async fn d3_the_quota_is_set_and_lifted() {
    let fake = Fake::new();
    assert_eq!(parsed(get(&fake, "/v1/quota").await), json!({ "nodes": null, "expires": null, "used": 0 }));
    parsed(put(&fake, "/v1/quota", json!({ "nodes": 5, "expires": 7 })).await);
    assert_eq!(parsed(get(&fake, "/v1/quota").await), json!({ "nodes": 5, "expires": 7, "used": 3 }));
    parsed(put(&fake, "/v1/quota", json!({ "nodes": null })).await);
    assert_eq!(parsed(get(&fake, "/v1/quota").await)["nodes"], Json::Null);
    assert_eq!(code(&put(&fake, "/v1/quota", json!({ "nodes": null, "expires": 7 })).await), "422 invalid");
    assert_eq!(code(&put(&fake, "/v1/quota", json!({ "nodes": -1 })).await), "400 bad-json");
}

fn asking() -> Json {
    json!({
        "secret": "canary", "name": "n4", "roles": ["manager"], "api": "192.0.2.4:7000", "link": "192.0.2.4:7001",
        "version": "0.0.0", "join_version": 1, "link_version": 1, "now": 1, "certificate_request": "AA==",
        "hail": "0123456789abcdef",
    })
}

#[tokio::test]
async fn a_server_asks_whether_it_may_join_and_joins() {
    let fake = Fake::new();
    assert_eq!(parsed(post(&fake, "/v1/join/check", asking().to_string()).await)["cluster_name"], "test");
    assert_eq!(parsed(post(&fake, "/v1/join", asking().to_string()).await)["voters"], 3);
    let asked = fake.set(|state| std::mem::take(&mut state.asked_to_join));
    assert_eq!(asked.len(), 2);
    assert!(!format!("{asked:?}").contains("canary"), "a secret is never written down");
    let why = NotAdmitted::QuotaReached { nodes: 3 };
    fake.set(|state| state.join_error = Some(JoinError::Refused(Refusal::NotAdmitted { why })));
    let refused = post(&fake, "/v1/join", asking().to_string()).await;
    assert_eq!(code(&refused), "409 quota-reached");
    let text = "Your current subscription does not allow more nodes running. Please upgrade to add more nodes.";
    assert!(refused.1.contains(text), "D3: {}", refused.1);
    assert_eq!(code(&post(&fake, "/v1/join", "{}").await), "400 bad-json");
}

#[tokio::test]
async fn a_handler_knows_where_a_request_comes_from() {
    let fake = Fake::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(
        listener,
        Plain,
        fake.clone(),
        ApiOptions { auth: AuthMode::Open, ..ApiOptions::default() },
        async {
            let _ = stopped.await;
        },
    ));
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = asking().to_string();
    let head = format!("POST /v1/join/check HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    read_until(&mut socket, &mut Vec::new(), "cluster_name", 1).await;
    let asked = fake.set(|state| std::mem::take(&mut state.asked_to_join));
    assert_eq!(asked[0].1, Some(address.ip()));
    drop(stop);
    tokio::time::timeout(SOON, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn d4_a_node_that_is_asked_to_leave_does() {
    let fake = Fake::new();
    assert_eq!(parsed(post(&fake, "/v1/leave", "").await)["node"], "n1");
    assert!(fake.set(|state| state.left));
}
