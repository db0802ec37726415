//! Services stopped and started, as clients see it.

use super::*;

#[tokio::test]
async fn k12_a_service_is_stopped_and_started_by_name() {
    let fake = Fake::new();
    let changed = parsed(post(&fake, "/v1/services/web/stop", "").await);
    assert_eq!(changed, json!({ "service": "web", "index": 1 }));
    let wish = |at: usize| fake.set(|state| carried::payload(&state.proposals[at].0));
    let web = ServiceName::new("web").unwrap();
    assert_eq!(wish(0), Payload::Command(Command::Switch(SwitchCommand::Stop { service: web.clone() })));
    assert_eq!(parsed(get(&fake, "/v1/services/web").await)["want"], 0);
    parsed(post(&fake, "/v1/services/web/start", "").await);
    assert_eq!(wish(1), Payload::Command(Command::Switch(SwitchCommand::Start { service: web })));
    for path in ["/v1/services/wbe/stop", "/v1/services/wbe/start"] {
        assert_eq!(code(&post(&fake, path, "").await), "404 unknown-service");
    }
}
