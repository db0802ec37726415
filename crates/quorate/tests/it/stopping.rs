//! K12: services stopped and started by hand and by their schedules, with real processes, and who leads meanwhile.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use crate::show::{demo, is_whole, lives, pids, replicas};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A schedule goes by the minute.
const A_MINUTE: Duration = Duration::from_secs(60);
/// So long before its moment a schedule has been applied, on a busy machine too.
const AHEAD: Duration = Duration::from_secs(20);

/// A time of day in UTC.
fn clock(since_1970: Duration) -> String {
    let minutes = since_1970.as_secs() / 60 % (24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

fn web(copies: u32, more: &str) -> String {
    demo("web", copies, &format!("update = {{ verify_for = '0s', healthy_for = '0s' }}\n{more}"))
}

/// Nothing of it is left.
fn is_gone(view: &Value) -> bool {
    view["stopped"].is_object() && replicas(view).is_empty()
}

#[test]
fn k12_a_service_that_is_stopped_by_hand_stays_so_whatever_is_changed_and_starts_as_it_was() {
    let cluster = TestCluster::start();
    cluster.apply(&web(2, ""));
    let before = pids(&cluster.service("web"));
    let said = cluster.ok(&["stop", "web"]);
    assert!(said.contains("✔ web was stopped by") && said.contains("quorate start web"), "{said}");
    let view = cluster.service("web");
    assert!(is_gone(&view) && view["want"] == 0 && view["spec"]["replicas"] == 2, "{view}");
    before.iter().for_each(|pid| assert!(!lives(*pid), "{pid}"));
    assert_eq!(cluster.ok(&["stop", "web", "-o", "json"]).matches("\"name\":\"web\"").count(), 1, "again is as once");

    // Whatever is changed meanwhile is said to wait.
    let scaled = cluster.ok(&["scale", "web", "3"]);
    assert!(scaled.contains("web 2 → 3") && scaled.contains("it was stopped by"), "{scaled}");
    let file = cluster.spec_file("other.toml", &web(3, "env = { OTHER = '1' }"));
    let applied = cluster.ok(&["service", "apply", "-f", &file, "--yes"]);
    assert!(applied.contains("it was stopped by"), "{applied}");
    cluster.ok(&["dev", "kill", &cluster.leader()]);
    let leader = cluster.leader();
    let status = cluster.ok(&["status"]);
    assert!(status.contains("○ web was stopped by"), "{status}");
    let explained = cluster.ok(&["explain", "web"]);
    assert!(explained.contains("web wants 0\nit was stopped by"), "{explained}");
    assert!(is_gone(&cluster.service("web")), "{leader} starts nothing");
    assert!(cluster.ok(&["service", "list"]).contains("stopped"));

    let started = cluster.ok(&["start", "web", "--timeout", "2m"]);
    assert!(started.contains("web starts   ✔ 3/3 healthy"), "{started}");
    let view = cluster.wait_service("web", "it is as it was wanted", is_whole);
    assert_eq!((&view["want"], &view["version"], &view["stopped"]), (&json!(3), &json!(2), &Value::Null));
    let events = cluster.ok(&["events"]);
    for happened in ["web was stopped", "web was started", "web 3/3 healthy"] {
        assert!(events.contains(happened), "{happened}: {events}");
    }
    let unknown = cluster.run(&["stop", "wbe"]);
    assert!(unknown.code == 3 || unknown.stderr.contains("web"), "{}", unknown.stderr);
}

#[test]
fn k12_a_schedule_stops_a_service_at_its_minute_under_the_next_leader_and_a_start_by_hand_holds() {
    let cluster = TestCluster::start();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let ago = |span: Duration| clock(now.checked_sub(span).unwrap());

    // It is applied outside its hours.
    let over = format!("schedule = [{{ start = '{}', stop = '{}' }}]", ago(A_MINUTE * 180), ago(A_MINUTE * 120));
    let file = cluster.spec_file("over.toml", &web(2, &over));
    let applied = cluster.ok(&["service", "apply", "-f", &file, "--yes"]);
    assert!(applied.contains("it was stopped by its schedule"), "{applied}");
    let view = cluster.service("web");
    assert!(is_gone(&view) && view["stopped"]["by_schedule"] == true && view["next"]["starts"] == true, "{view}");

    // Other hours are in force at once, and over at the next minute but one.
    let stop = now + A_MINUTE + AHEAD;
    let soon = format!("schedule = [{{ start = '{}', stop = '{}' }}]", ago(A_MINUTE * 120), clock(stop));
    cluster.apply(&web(2, &soon));
    let view = cluster.wait_service("web", "it runs at its hours", is_whole);
    let at = stop.as_secs() / 60 * 60_000_000;
    assert_eq!(view["next"], json!({ "at": at, "starts": false }), "{view}");
    let status = cluster.ok(&["status"]);
    assert!(status.contains("~ web runs until its schedule stops it at"), "{status}");
    let before = pids(&view);
    cluster.ok(&["dev", "kill", &cluster.leader()]);
    let view = wait_for("its schedule stops it", PATIENCE + 2 * A_MINUTE, || {
        let ran = cluster.run(&["service", "show", "web", "-o", "json"]);
        serde_json::from_str(&ran.stdout).ok().filter(|view: &Value| is_gone(view) && view["next"]["starts"] == true)
    });
    assert_eq!(view["stopped"]["by_schedule"], true, "{view}");
    assert!(view["stopped"]["since"].as_u64().unwrap() >= at, "{view}");
    before.iter().for_each(|pid| assert!(!lives(*pid), "{pid}"));
    let events = cluster.ok(&["events"]);
    assert!(events.contains("web was stopped by its schedule"), "{events}");

    cluster.ok(&["start", "web", "--timeout", "2m"]);
    let view = cluster.wait_service("web", "it runs after its hours", is_whole);
    assert_eq!((&view["want"], &view["next"]["starts"]), (&json!(2), &json!(false)));
    // Without the schedule nothing ends it any more.
    cluster.apply(&web(2, ""));
    assert_eq!(cluster.service("web")["next"], Value::Null);
}
