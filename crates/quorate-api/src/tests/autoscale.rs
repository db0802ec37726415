//! Autoscaling, as clients see it.

use super::*;

async fn set(fake: &Fake, service: &str, body: Json) -> (u16, String) {
    let request = Request::put(format!("/v1/services/{service}/autoscale")).body(body.to_string().into()).unwrap();
    let response = send(fake, request).await;
    (response.status().as_u16(), text(response).await)
}

#[tokio::test]
async fn e3_autoscaling_is_switched_and_changed_by_name() {
    let fake = Fake::new();
    let changed = parsed(set(&fake, "web", json!({ "enabled": true, "min": 3, "max": 8, "cpu": "70%" })).await);
    assert_eq!(changed, json!({ "service": "web", "index": 1, "replicas": 3 }));
    let wish = fake.set(|state| carried::payload(&state.proposals[0].0));
    let Payload::Command(Command::Autoscale(AutoscaleCommand::Set { wish, .. })) = wish else { panic!("{wish:?}") };
    assert_eq!((wish.enabled, wish.max, wish.cpu.map(|share| share.percent())), (Some(true), Some(8), Some(70)));
    assert_eq!(code(&set(&fake, "web", json!({ "enabled": true })).await), "422 invalid");
    // A query is a right to read, and belongs to the spec.
    for bad in [json!({ "rps": -1 }), json!({ "p95": 250 }), json!({ "sql": { "query": "SELECT 1", "target": 1 } })] {
        assert_eq!(code(&set(&fake, "web", bad.clone()).await), "400 bad-json", "{bad}");
    }
    for bad in [json!({ "cpu": "95%" }), json!({ "on": true }), json!({ "every": "fast" }), json!({ "min": -1 })] {
        assert_eq!(code(&set(&fake, "web", bad.clone()).await), "400 bad-json", "{bad}");
    }
    assert_eq!(code(&set(&fake, "wbe", json!({ "min": 1 })).await), "404 unknown-service");
}

#[tokio::test]
async fn e3_why_a_service_has_as_many_copies_is_told_for_one_that_is_there() {
    let fake = Fake::new();
    let told = parsed(get(&fake, "/v1/services/web/autoscale").await);
    assert_eq!((&told["service"], &told["on"]), (&json!("web"), &json!(false)));
    let missing = get(&fake, "/v1/services/wbe/autoscale").await;
    assert_eq!(code(&missing), "404 unknown-service");
}

#[tokio::test]
async fn e3_a_refused_scale_says_how_it_is_switched_off() {
    let fake = Fake::new();
    let web = ServiceName::new("web").unwrap();
    fake.set(|state| state.withheld = Some(Refusal::Autoscaled { service: web, min: 2, max: 8 }));
    let refused = post(&fake, "/v1/services/web/scale", r#"{"replicas": 5}"#).await;
    assert_eq!(code(&refused), "409 autoscaled");
    assert!(refused.1.contains("it is autoscaled, from 2 to 8 copies"), "{}", refused.1);
    assert!(refused.1.contains("quorate autoscale off web"), "{}", refused.1);
}
