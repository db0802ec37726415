//! What is followed: the overview, the table of routes, logs.

use super::*;

/// The next piece of a stream.
async fn piece(body: &mut Body) -> String {
    let frame = tokio::time::timeout(SOON, body.frame()).await.unwrap().unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_console_sees_the_newest_overview_at_once_and_at_each_change() {
    let fake = Fake::new();
    let response = send(&fake, Request::get("/v1/stream").body(Body::empty()).unwrap()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut body, start) = (response.into_body(), tokio::time::Instant::now());
    assert!(piece(&mut body).await.starts_with("event: overview\nid: 1\ndata: {"));
    for _ in 0..5 {
        fake.change(|overview| overview.cluster.term += 1);
    }
    let event = piece(&mut body).await;
    assert!(event.starts_with("event: overview\nid: 6\n") && event.ends_with("}\n\n"), "{event}");
    assert_eq!(event.lines().count(), 4, "one line of data: {event}");
    assert!(start.elapsed() >= Duration::from_millis(50), "events keep their distance");
    let quiet = tokio::time::Instant::now();
    assert_eq!(piece(&mut body).await, ":\n\n");
    assert_eq!(quiet.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_gets_whole_tables_and_an_empty_line_every_second() {
    let fake = Fake::new();
    assert_eq!(code(&get(&fake, "/v1/gateway/stream").await), "400 bad-query");
    let response = send(&fake, Request::get("/v1/gateway/stream?name=g1").body(Body::empty()).unwrap()).await;
    let mut body = response.into_body();
    let table = |line: String| serde_json::from_str::<RoutingTable>(line.strip_suffix('\n').unwrap()).unwrap();
    assert_eq!(table(piece(&mut body).await).revision, 0);
    fake.0.routing.send_modify(|routing| Arc::make_mut(routing).revision = 4);
    assert_eq!(table(piece(&mut body).await).revision, 4);
    let quiet = tokio::time::Instant::now();
    assert_eq!(piece(&mut body).await, "\n");
    assert_eq!(quiet.elapsed().as_secs(), 1);

    let report = r#"{"gateway":"g1","url":"http://127.0.0.1:8000","revision":4}"#;
    assert_eq!(post(&fake, "/v1/gateway/report", report).await, (204, String::new()));
    assert_eq!(fake.set(|state| state.reports[0].revision), 4);
    assert_eq!(code(&post(&fake, "/v1/gateway/report", "{}").await), "400 bad-json");
}

#[tokio::test(start_paused = true)]
async fn a_log_is_read_in_pieces_and_followed() {
    let fake = Fake::new();
    let path = format!("/v1/replicas/{}/log", ReplicaId::from_u128(9));
    let read = |query: &str| Request::get(format!("{path}{query}")).body(Body::empty()).unwrap();
    let last = send(&fake, read("?lines=1")).await;
    assert_eq!(last.headers()["quorate-log-next"], "8");
    assert_eq!(text(last).await, "two\n");
    let part = send(&fake, read("?offset=1&bytes=2")).await;
    assert_eq!(part.headers()["quorate-log-next"], "3");
    assert_eq!(text(part).await, "ne");
    for bad in ["?lines=0", "?lines=1&offset=1", "?bytes=0", "?bytes=2000000", "?tail=1"] {
        assert_eq!(send(&fake, read(bad)).await.status(), 400, "{bad}");
    }
    assert_eq!(code(&get(&fake, "/v1/replicas/9/log").await), "400 bad-replica-id");
    let unknown = format!("/v1/replicas/{}/log", ReplicaId::from_u128(8));
    assert_eq!(code(&get(&fake, &unknown).await), "404 unknown-log");

    let mut body = send(&fake, read("?lines=1&follow=true")).await.into_body();
    assert_eq!(piece(&mut body).await, "two\n");
    fake.set(|state| state.log.extend_from_slice(b"three\n"));
    assert_eq!(piece(&mut body).await, "three\n");

    assert_eq!(fake.set(|state| state.logs_open), 1, "the one that is followed");
    drop(body);
    assert_eq!(fake.set(|state| state.logs_open), 0, "nobody reads it any more");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_followed_is_cut_off_when_its_node_goes_and_ends_when_it_is_gone_for_good() {
    let fake = Fake::new();
    let path = format!("/v1/replicas/{}/log?follow=true", ReplicaId::from_u128(9));
    let follow = || Request::get(&path).body(Body::empty()).unwrap();
    let of = LogOf::Replica(ReplicaId::from_u128(9));
    for (error, whole) in [
        (LogError::Unreachable { nodes: vec!["n2".into()], why: "reset".into() }, false),
        (LogError::Unknown(of), true),
    ] {
        fake.set(|state| state.log_error = None);
        let mut body = send(&fake, follow()).await.into_body();
        assert_eq!(piece(&mut body).await, "one\ntwo\n");
        fake.set(|state| state.log_error = Some(error));
        assert_eq!(body.collect().await.is_ok(), whole);
        assert_eq!(fake.set(|state| state.logs_open), 0);
    }
}

#[tokio::test]
async fn u9_the_log_of_any_nodes_server_is_read_by_name_or_id() {
    let fake = Fake::new();
    let id = NodeId::from_u128(2).to_string();
    for node in ["n2", &id] {
        assert_eq!(get(&fake, &format!("/v1/nodes/{node}/log?lines=1")).await, (200, "two\n".into()));
    }
    assert_eq!(code(&get(&fake, "/v1/nodes/n4/log").await), "404 unknown-node");
    assert_eq!(code(&get(&fake, "/v1/nodes/n1/log").await), "404 unknown-log");
    let away = get(&fake, "/v1/nodes/n3/log").await;
    assert_eq!(code(&away), "503 node-unreachable");
    assert!(away.1.contains("bring the server of n3"), "{}", away.1);
}
