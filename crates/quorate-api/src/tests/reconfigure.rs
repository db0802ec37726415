//! Settings by name, as clients see them.

use super::*;
use quorate_model::reconfigure::Setting;

async fn set(fake: &Fake, set: Json, plan: bool) -> (u16, String) {
    let body = json!({ "set": set, "plan": plan }).to_string();
    post(fake, "/v1/settings", body).await
}

fn keys(answer: &Json) -> Vec<&str> {
    answer.as_array().unwrap().iter().map(|setting| setting["key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn e5_settings_are_listed_with_what_they_take() {
    let fake = Fake::new();
    let listed = parsed(get(&fake, "/v1/settings").await);
    assert_eq!(keys(&listed), ["failover", "ha", "replicas.web", "autoscale.web"]);
    assert_eq!(listed[0]["value"], "default");
    assert_eq!(listed[0]["takes"], "10s to 300s, or `default`");
}

#[tokio::test]
async fn e5_several_settings_are_one_command_and_a_plan_is_none() {
    let fake = Fake::new();
    let wanted = json!({ "failover": "20s", "replicas.web": "7" });
    let planned = parsed(set(&fake, wanted.clone(), true).await);
    assert_eq!(planned["changes"][1]["key"], "replicas.web");
    assert_eq!((&planned["changes"][0]["from"], &planned["changes"][0]["to"]), (&json!("default"), &json!("20s")));
    assert_eq!(fake.set(|state| state.proposals.len()), 0);
    let done = parsed(set(&fake, wanted, false).await);
    assert_eq!((&done["changes"], &done["index"]), (&planned["changes"], &json!(1)));
    let sent = fake.set(|state| carried::payload(&state.proposals[0].0));
    let Payload::Command(Command::Reconfigure { settings }) = sent else { panic!("{sent:?}") };
    assert_eq!(settings[0], Setting::Failover { failover: Some(Span::from_secs(20)) });
    assert!(matches!(settings[1], Setting::Replicas { replicas: 7, .. }) && settings.len() == 2, "{settings:?}");
    let same = parsed(set(&fake, json!({ "failover": "default" }), false).await);
    assert_eq!(same, json!({ "changes": [] }), "it has that value already");
}

#[tokio::test]
async fn e5_a_bad_key_or_value_is_explained() {
    let fake = Fake::new();
    for (key, value, wanted, words) in [
        ("failovr", "20s", "422 unknown-setting", "did you mean `failover`?"),
        ("replica.web", "2", "422 unknown-setting", "did you mean `replicas.web`?"),
        ("log.level", "debug", "422 unknown-setting", "quorate config show"),
        ("replicas.wbe", "2", "404 unknown-service", "did you mean `web`?"),
        ("failover", "5s", "422 invalid", "10s to 300s"),
        ("failover", "soon", "422 invalid", "10s to 300s"),
        ("ha", "yes", "422 invalid", "`on` or `off`"),
        ("replicas.web", "0", "422 invalid", "1 to 1000"),
        ("autoscale.web", "2-6", "422 invalid", "MIN..MAX"),
        ("autoscale.web", "6..2 cpu=70%", "422 invalid", "max"),
        ("failover.web", "20s", "422 invalid", "singleton"),
    ] {
        let refused = set(&fake, json!({ "ha": "on", key: value }), false).await;
        assert_eq!(code(&refused), wanted, "{key}={value}: {refused:?}");
        assert!(refused.1.contains(words), "{key}={value}: {refused:?}");
    }
    assert_eq!(fake.set(|state| state.proposals.len()), 0, "nothing was asked for");
}
