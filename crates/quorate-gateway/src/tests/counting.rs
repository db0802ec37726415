//! What a gateway tells of how much there is to do.

use super::rig::{Gateway, Manager, Replica, config, reaches, table};
use http::Request;
use quorate_model::observed::GatewayReport;
use quorate_model::routing::EndpointState::Healthy;
use quorate_model::traffic::ServiceTraffic;

fn web(report: &GatewayReport) -> Option<&ServiceTraffic> {
    report.traffic.services.iter().find(|of| of.service.as_str() == "web")
}

#[tokio::test]
async fn k15_requests_count_once_and_go_on_counting_when_the_table_changes() {
    let mut first = Replica::start(1).await;
    let second = Replica::start(2).await;
    let mut manager = Manager::start(table(1, vec![first.endpoint(Healthy)])).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    for _ in 0..3 {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    let told = manager.reported(|report| web(report).is_some_and(|of| of.latencies.total() == 3)).await;
    let before = web(&told).unwrap();
    assert_eq!((before.requests, before.waiting), (3, 0));

    let mut waiting = gateway.client().await;
    let held = tokio::spawn(async move { waiting.get("/hold").await });
    reaches("the held request", &first.seen.requests, 4).await;
    manager.reported(|report| web(report).is_some_and(|of| (of.requests, of.waiting) == (4, 1))).await;
    first.seen.released.send_replace(true);
    assert_eq!(held.await.unwrap().status, 200);

    // Sent twice, because the one that it was sent to first is gone: it is one request.
    first.kill().await;
    manager.publish(table(2, vec![first.endpoint(Healthy), second.endpoint(Healthy)])).await;
    for _ in 0..2 {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    let told = manager.reported(|report| web(report).is_some_and(|of| of.latencies.total() == 6)).await;
    let after = web(&told).unwrap();
    assert_eq!((after.requests, after.waiting), (6, 0));
    assert_eq!(after.latencies.since(&before.latencies).total(), 3);
}

#[tokio::test]
async fn k15_what_nobody_answers_counts_too_and_what_nobody_asked_about_is_not_told() {
    let mut manager = Manager::start(table(1, Vec::new())).await;
    let gateway = Gateway::start(config(&[&manager])).await;
    let mut client = gateway.client().await;
    assert_eq!(client.send(Request::post("/"), "").await.status, 503);
    let told = manager.reported(|report| web(report).is_some_and(|of| of.latencies.total() == 1)).await;
    let of = web(&told).unwrap();
    assert_eq!((of.requests, of.waiting), (1, 0));

    let mut quiet = table(2, Vec::new());
    quiet.services[0].counted = false;
    manager.publish(quiet).await;
    manager.reported(|report| report.revision == 2 && report.traffic.is_nothing()).await;
}
