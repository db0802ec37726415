//! What happens to one request and its response.

use super::rig::{DEADLINE, Gateway, Manager, Replica, config, reaches, route, table, within};
use crate::Limits;
use bytes::Bytes;
use http::Request;
use quorate_model::routing::EndpointState::{Doubtful, Healthy};
use quorate_model::routing::{RoutingTable, Upstream};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn one_replica() -> (Replica, Manager, Gateway) {
    let replica = Replica::start(1).await;
    let manager = Manager::start(table(1, vec![replica.endpoint(Healthy)])).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    (replica, manager, gateway)
}

#[tokio::test]
async fn one_connection_to_the_replica_serves_many_requests_of_many_clients() {
    let (replica, _manager, gateway) = one_replica().await;
    for _ in 0..3 {
        let mut client = gateway.client().await;
        for _ in 0..10 {
            assert_eq!(client.get("/").await.text(), "r1");
        }
        assert_eq!(client.post("/echo", "hello").await.text(), "hello");
        let head = client.send(Request::head("/"), "").await;
        assert_eq!((head.status, &head.headers["content-length"]), (200, &"2".parse().unwrap()));
    }
    assert_eq!(replica.requests(), 36);
    assert_eq!(replica.connections(), 1);
}

#[tokio::test]
async fn a_new_request_goes_to_the_replica_with_fewer_in_flight() {
    let (busy, idle) = (Replica::start(1).await, Replica::start(2).await);
    let mut manager = Manager::start(table(1, vec![busy.endpoint(Healthy)])).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let mut waiting = gateway.client().await;
    let held = tokio::spawn(async move { waiting.get("/hold").await });
    reaches("the held request", &busy.seen.requests, 1).await;
    manager.publish(table(2, vec![busy.endpoint(Healthy), idle.endpoint(Healthy)])).await;
    for _ in 0..10 {
        assert_eq!(gateway.get("/").await.text(), "r2");
    }
    busy.seen.released.send_replace(true);
    assert_eq!(held.await.unwrap().text(), "r1");
}

#[tokio::test]
async fn a_doubtful_replica_is_asked_only_when_nothing_healthy_is_left() {
    let (healthy, doubtful) = (Replica::start(1).await, Replica::start(2).await);
    let mut manager = Manager::start(table(1, vec![doubtful.endpoint(Doubtful), healthy.endpoint(Healthy)])).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    for _ in 0..5 {
        assert_eq!(gateway.get("/").await.text(), "r1");
    }
    manager.publish(table(2, vec![doubtful.endpoint(Doubtful)])).await;
    assert_eq!(gateway.get("/").await.text(), "r2");
}

#[tokio::test]
async fn headers_of_one_connection_stay_on_it_and_the_client_is_named() {
    let (_replica, _manager, gateway) = one_replica().await;
    let got = gateway
        .client()
        .await
        .send(
            Request::get("/headers")
                .header("host", "shop.example")
                .header("connection", "keep-alive, x-mine")
                .header("x-mine", "1")
                .header("x-quorate-node", "fake")
                .header("x-forwarded-for", "192.0.2.7")
                .header("x-forwarded-host", "fake"),
            "",
        )
        .await;
    assert_eq!(
        got.text(),
        "host: shop.example\nx-forwarded-for: 192.0.2.7, 127.0.0.1\nx-forwarded-host: shop.example\n\
         x-forwarded-proto: http"
    );
    for name in ["connection", "x-private", "keep-alive", "x-quorate-error"] {
        assert!(!got.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn what_two_parsers_could_read_in_two_ways_is_refused_and_no_replica_sees_it() {
    let (replica, _manager, gateway) = one_replica().await;
    assert_eq!(gateway.get("/").await.status, 200);
    for (case, request) in [
        (
            "both lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "both lengths, the other order",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        ),
        ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("a length with a sign", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nab"),
        ("an unknown encoding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("chunked in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("a folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"),
        ("a NUL", "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
        ("a bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
        (
            "a length that is dropped",
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\na",
        ),
    ] {
        let response = gateway.raw(request.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 400 ") || response.starts_with("HTTP/1.0 400 "), "{case}: {response}");
        assert_eq!(response.matches("\ndate: ").count(), 1, "{case}: {response}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(33 * 1024));
    assert!(gateway.raw(long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(101));
    assert!(gateway.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(replica.requests(), 1);
}

#[tokio::test]
async fn an_old_client_without_host_is_served() {
    let (_replica, _manager, gateway) = one_replica().await;
    let response = gateway.raw(b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.0 200 ") && response.ends_with("\r\n\r\nr1"), "{response}");
}

#[tokio::test]
async fn what_the_gateway_does_not_do_it_says() {
    let (replica, _manager, gateway) = one_replica().await;
    let response = gateway.raw(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 501 "), "{response}");
    let response = gateway.raw(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nConnection: close\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 417 "), "{response}");
    assert_eq!(replica.requests(), 0);
}

#[tokio::test]
async fn large_bodies_stream_in_both_directions() {
    const SIZE: usize = 10 << 20;
    let (replica, _manager, gateway) = one_replica().await;
    let body: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    let body = Bytes::from(body);
    let mut client = gateway.client().await;
    assert_eq!(client.post("/count", body.clone()).await.text(), SIZE.to_string());
    assert!(client.post("/echo", body.clone()).await.body == body);
    assert_eq!(client.get("/").await.text(), "r1");
    assert_eq!(replica.connections(), 1);
}

#[tokio::test]
async fn a_chunked_upload_reaches_the_replica_whole() {
    let (_replica, _manager, gateway) = one_replica().await;
    let response = gateway
        .raw(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
              5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        )
        .await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(response.contains("hello") && response.contains('!'), "{response}");
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it() {
    let (_replica, _manager, gateway) = one_replica().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream
        .write_all(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    let mut first = [0; 25];
    within("100 Continue", stream.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").await.unwrap();
    let mut rest = String::new();
    within("the response", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 ") && rest.ends_with("hi"), "{rest}");
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel() {
    let (_replica, _manager, gateway) = one_replica().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream
        .write_all(b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("the head", stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: echo"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    within("the echo", stream.read_exact(&mut pong)).await.unwrap();
    assert_eq!(&pong, b"ping");
}

#[tokio::test]
async fn a_head_that_never_ends_and_an_idle_connection_are_closed() {
    let replica = Replica::start(1).await;
    let manager = Manager::start(table(1, vec![replica.endpoint(Healthy)])).await;
    let short = Duration::from_millis(200);
    let limits =
        Limits { tick: Duration::from_millis(20), request_head: short, client_idle: short, ..Limits::default() };
    let gateway = Gateway::start_with(config(&[&manager]), limits).await;
    for begun in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\nX: "] {
        let before = Instant::now();
        assert_eq!(gateway.raw(begun.as_bytes()).await, "", "{begun}");
        assert!(before.elapsed() >= short && before.elapsed() < DEADLINE, "{begun}: {:?}", before.elapsed());
    }
    assert_eq!(gateway.get("/").await.status, 200);
}

#[tokio::test]
async fn a_replica_that_does_not_answer_in_time_is_504() {
    let replica = Replica::start(1).await;
    let mut manager = Manager::start(table(1, vec![replica.endpoint(Healthy)])).await;
    let limits = Limits { tick: Duration::from_millis(20), response: Duration::from_millis(100), ..Limits::default() };
    let gateway = Gateway::start_with(config(&[&manager]), limits).await;
    let got = gateway.get("/hold").await;
    assert_eq!((got.status, got.error()), (504, Some("timeout")));
    manager.reported(|report| report.failed == 1 && report.requests == 1).await;
}

#[tokio::test]
async fn paths_lead_to_their_services_and_an_unknown_one_says_so() {
    let (web, api) = (Replica::start(1).await, Replica::start(2).await);
    let services = [("web", &web), ("api", &api)]
        .map(|(name, replica)| Upstream {
            service: name.parse().unwrap(),
            balance: Default::default(),
            check_path: None,
            counted: false,
            endpoints: vec![replica.endpoint(Healthy)],
        })
        .to_vec();
    let routes = vec![route("default", "/web", "web"), route("default", "/web/api", "api")];
    let manager = Manager::start(RoutingTable { revision: 1, routes, services, vips: Vec::new() }).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    for (path, name) in [("/web", "r1"), ("/web/apis", "r1"), ("/web/api", "r2"), ("/web/api/x?y", "r2")] {
        assert_eq!(gateway.get(path).await.text(), name, "{path}");
    }
    let got = gateway.get("/other").await;
    assert_eq!((got.status, got.error()), (503, Some("no-route")));
}

#[tokio::test]
async fn a_listener_opens_and_closes_with_its_route() {
    let (replica, mut manager, gateway) = one_replica().await;
    // A port that is free now; the test fails honestly if another process takes it meanwhile.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut with = table(2, vec![replica.endpoint(Healthy)]);
    with.routes.push(route(&format!(":{port}"), "/", "web"));
    manager.publish(with).await;
    let connect = async || loop {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let mut stream = within("the listener", connect()).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = String::new();
    within("the response", stream.read_to_string(&mut response)).await.unwrap();
    assert!(response.ends_with("r1"), "{response}");
    manager.publish(table(3, vec![replica.endpoint(Healthy)])).await;
    let closed = async || while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {};
    within("the listener closing", closed()).await;
    assert_eq!(gateway.get("/").await.status, 200);
}
