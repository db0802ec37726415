//! `quorate dev` as people and scripts use it: sizes, orders, ends, and the first page of a cluster.

use crate::cluster::{PATIENCE, Place, TestCluster, processes_of, signal, wait_for};
use crate::load::ask;
use crate::show::{demo, is_whole, nodes, pids};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far the times that `dev kill` prints may be from what somebody outside sees.
const AGREE: Duration = Duration::from_millis(50);

fn wall_us() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

#[test]
fn one_node_is_a_whole_cluster() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let status = cluster.json(&["status"]);
    assert_eq!((&status["cluster"]["ha"], &status["cluster"]["voters"]), (&json!(false), &Value::Null));
    assert_eq!(cluster.said["nodes"][0]["mode"], Value::Null, "nobody could be Active in its place");
    assert_eq!(ask(cluster.gateway_address(), "/").unwrap().status, 200);
    // There is nobody who could notice; the order itself is reported.
    cluster.ok(&["dev", "kill", "n1"]);
    cluster.ok(&["dev", "start", "n1"]);
    cluster.wait_service("demo", "the demo is back", is_whole);
}

#[test]
fn u1_five_nodes_go_on_without_two() {
    let cluster = TestCluster::start_with(&["--nodes", "5"]);
    assert_eq!(cluster.json(&["status"])["cluster"]["can_lose"], 2);
    cluster.exec("n2", "CREATE TABLE t (x)");
    for _ in 0..2 {
        let leader = cluster.leader();
        cluster.ok(&["dev", "kill", &leader]);
        let other = cluster.leader();
        cluster.exec(&other, "INSERT INTO t VALUES (1)");
    }
    let status = cluster.json(&["status"]);
    assert_eq!((&status["cluster"]["voters_joined"], &status["cluster"]["can_lose"]), (&json!(3), &json!(0)));
    assert_eq!(cluster.rows(&cluster.leader(), "SELECT count(*) FROM t"), json!([[2]]));
    cluster.wait_service("demo", "three copies on what is left", is_whole);
}

#[test]
fn a_cluster_starts_with_the_service_of_a_file_in_toml_or_json() {
    let place = tempfile::tempdir().unwrap();
    let text = demo("web", 2, "") + "[[route]]\nservice = 'web'\n";
    let document: toml::Value = toml::from_str(&text).unwrap();
    for (name, content) in [("web.toml", text), ("web.json", serde_json::to_string(&document).unwrap())] {
        let file = place.path().join(name);
        std::fs::write(&file, content).unwrap();
        let cluster = TestCluster::start_with(&["--nodes", "1", "--service", file.to_str().unwrap()]);
        let services = cluster.json(&["service", "list"]);
        assert_eq!(services.as_array().unwrap().len(), 1, "instead of the demo");
        assert!(is_whole(&services[0]) && services[0]["name"] == "web", "{name}: {services}");
        assert_eq!(ask(cluster.gateway_address(), "/whoami").unwrap().status, 200);
    }
}

/// What somebody sees who looks at a surviving node again and again, with a clock of their own.
struct Observer {
    stop: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Seen>,
}

/// Microseconds of the wall clock.
#[derive(Debug, Default)]
struct Seen {
    unreachable: Option<u64>,
    leader: Option<u64>,
    degraded: Option<u64>,
    healthy: Option<u64>,
}

impl Observer {
    fn start(cluster: &TestCluster, victim: &str, through: &str) -> Observer {
        let (stop, stopped) = mpsc::channel::<()>();
        let url = format!("{}/v1/status", cluster.node(through).api);
        let address = cluster.node(victim).api.strip_prefix("http://").unwrap().to_owned();
        let (http, victim) = (cluster.http.clone(), victim.to_owned());
        let look = move || {
            let mut seen = Seen::default();
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_millis(1)) {
                if seen.unreachable.is_none() && std::net::TcpStream::connect(&address).is_err() {
                    seen.unreachable = Some(wall_us());
                }
                let Ok((200, status)) = http.get(&url) else { continue };
                let now = wall_us();
                if status["cluster"]["leader"].as_str().is_some_and(|leader| leader != victim) {
                    seen.leader = seen.leader.or(Some(now));
                }
                let demo = &status["services"][0];
                if demo["healthy"] != demo["want"] {
                    (seen.degraded, seen.healthy) = (seen.degraded.or(Some(now)), None);
                } else if seen.degraded.is_some() {
                    seen.healthy = seen.healthy.or(Some(now));
                }
            }
            seen
        };
        Observer { stop, thread: std::thread::spawn(look) }
    }

    fn end(self) -> Seen {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

#[test]
fn the_times_after_a_kill_are_those_that_an_outside_observer_measures() {
    let _alone = Place::alone();
    let cluster = TestCluster::start();
    for round in 0..3 {
        let leader = cluster.leader();
        // A copy on the leader's node, so that the service is in trouble.
        cluster.ok(&["scale", "demo", &(5 + round).to_string()]);
        assert!(nodes(&cluster.service("demo")).contains(&leader));
        let through = cluster.followers().remove(0);
        let observer = Observer::start(&cluster, &leader, &through);
        let told = cluster.json(&["dev", "kill", &leader]);
        let seen = observer.end();
        println!("told {told}\nseen {seen:?}\n{}", cluster.ok(&["events"]));
        let killed = told["killed_at_us"].as_u64().unwrap();
        let at = |after: &Value| killed + (after["after_ms"].as_f64().unwrap() * 1_000.0) as u64;
        assert_eq!(told["was_leader"], true);
        for (what, told, seen) in [
            ("the kill", killed, seen.unreachable),
            ("the new leader", at(&told["leader"]), seen.leader),
            ("the service", at(&told["services"][0]), seen.healthy),
        ] {
            let apart = Duration::from_micros(told.abs_diff(seen.unwrap()));
            assert!(apart <= AGREE, "{what}: {apart:?} between what is told and what is seen");
        }
        let before = wall_us();
        let told = cluster.json(&["dev", "start", &leader]);
        let back =
            told["started_at_us"].as_u64().unwrap() + (told["returned"]["after_ms"].as_f64().unwrap() * 1_000.0) as u64;
        assert!((before..wall_us()).contains(&back), "{told}");
        cluster.wait_whole();
    }
}

#[test]
fn a_stopped_node_hands_over_and_its_replicas_end_in_an_orderly_way() {
    let cluster = TestCluster::start();
    let leader = cluster.leader();
    let told = cluster.json(&["dev", "stop", &leader]);
    assert!(told["leader"]["after_ms"].as_f64().is_some(), "{told}");
    assert!(told["left"]["after_ms"].as_f64().is_some() && told["down"].is_null(), "{told}");
    assert_eq!(processes_of(&cluster.node_dir(&leader).display().to_string()).len(), 0, "nothing of it is left");
    // It said so itself (D4): whoever answers shows it as removed, not as lost.
    let state =
        |nodes: Value| nodes.as_array().unwrap().iter().find(|node| node["name"] == *leader).unwrap()["state"].clone();
    assert_eq!(state(cluster.json(&["node", "list"])), "removed");
    cluster.wait_service("demo", "whole without it", |view| is_whole(view) && !nodes(view).contains(&leader));
    let told = cluster.json(&["dev", "start", &leader]);
    assert!(told["returned"]["after_ms"].as_f64().is_some(), "{told}");
    let states = cluster.json(&["node", "list"]);
    assert!(states.as_array().unwrap().iter().all(|node| node["state"] == "joined"), "{states}");
}

#[test]
fn however_dev_ends_nothing_of_it_is_left() {
    for end in [Signal::INT, Signal::TERM, Signal::KILL] {
        let cluster = TestCluster::start();
        let dir = cluster.dir.display().to_string();
        assert!(processes_of(&dir).len() >= 1 + 3 + 1 + 2 * 3, "dev, servers, gateway, shims and copies");
        let record: Value = serde_json::from_slice(&std::fs::read(cluster.dir.join("dev.json")).unwrap()).unwrap();
        // A node that was killed before is no exception.
        cluster.ok(&["dev", "kill", "n2", "--server-only"]);
        signal(u32::try_from(record["pid"].as_u64().unwrap()).unwrap(), end);
        wait_for(&format!("no process is left after {end:?}"), PATIENCE, || {
            processes_of(&dir).is_empty().then_some(())
        });
        assert_eq!(cluster.run(&["status"]).code, 3);
    }
}

#[test]
fn a_kept_directory_starts_again_with_its_data_and_services_and_only_with_its_size() {
    let kept = tempfile::tempdir().unwrap();
    let dir = kept.path().canonicalize().unwrap();
    let start = |args: &[&str]| TestCluster::start_in(tempfile::tempdir().unwrap(), dir.clone(), args);
    let first = start(&[]);
    first.exec("n1", "CREATE TABLE t (x)");
    first.exec("n2", "INSERT INTO t VALUES ('kept')");
    first.apply(&demo("web", 2, ""));
    first.ok(&["scale", "demo", "1"]);
    let ids = |cluster: &TestCluster| -> Vec<Value> {
        cluster.json(&["node", "list"]).as_array().unwrap().iter().map(|node| node["id"].clone()).collect()
    };
    let (ids_before, pids_before) = (ids(&first), pids(&first.service("web")));
    drop(first);

    let refused = crate::cluster::quorate(kept.path(), &dir).args(["dev", "--nodes", "5"]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(7), "{said}");
    assert!(said.contains("holds a cluster of 3 nodes, not of 5") && said.contains("--nodes 3"), "{said}");

    let second = start(&[]);
    assert_eq!(ids(&second), ids_before);
    for node in second.names() {
        assert_eq!(second.rows(&node, "SELECT x FROM t"), json!([["kept"]]));
    }
    let web = second.wait_service("web", "web is whole", is_whole);
    assert!(pids(&web).is_disjoint(&pids_before));
    let demo = second.wait_service("demo", "demo is whole", is_whole);
    assert_eq!(demo["want"], 1, "what was scaled stays scaled");
}

/// Names of the nodes that a node calls Active.
fn active_seen_by(cluster: &TestCluster, node: &str) -> Option<Vec<String>> {
    let (_, nodes) = cluster.http.get(&format!("{}/v1/nodes", cluster.node(node).api)).ok()?;
    let active = nodes.as_array()?.iter().filter(|node| node["mode"] == "active");
    active.map(|node| node["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn k1_exactly_one_node_is_active_in_everybodys_view_and_another_takes_over_by_itself() {
    let cluster = TestCluster::start();
    let mut alive = cluster.names();
    for round in 0..2 {
        let active = wait_for("all see the same one Active", PATIENCE, || {
            let views: Option<Vec<Vec<String>>> = alive.iter().map(|node| active_seen_by(&cluster, node)).collect();
            let views = views?;
            let one = views.first()?.first()?.clone();
            views.iter().all(|view| *view == [one.clone()]).then_some(one)
        });
        // For load balancers: 200 on that one alone.
        for node in &alive {
            let (status, _) = cluster.http.get(&format!("{}/v1/active", cluster.node(node).api)).unwrap();
            assert_eq!(status, if *node == active { 200 } else { 503 }, "{node}, {active} is Active");
        }
        if round == 0 {
            cluster.ok(&["dev", "kill", &active]);
            alive.retain(|node| *node != active);
        }
    }
    assert_eq!(alive.len(), 2);
}

#[test]
fn the_stream_of_one_node_shows_within_half_a_second_what_was_changed_through_another() {
    let _alone = Place::alone();
    let cluster = TestCluster::start();
    let followers = cluster.followers();
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
    let stream = agent.get(format!("{}/v1/stream", cluster.node(&followers[0]).api)).call().unwrap();
    let (wants, seen) = mpsc::channel::<(Instant, u64)>();
    std::thread::spawn(move || {
        for line in BufReader::new(stream.into_body().into_reader()).lines() {
            let Ok(line) = line else { return };
            let Some(data) = line.strip_prefix("data:") else { continue };
            let Ok(overview) = serde_json::from_str::<Value>(data) else { continue };
            let want = overview["services"][0]["want"].as_u64().unwrap_or_default();
            if wants.send((Instant::now(), want)).is_err() {
                return;
            }
        }
    });
    let shown = |wanted: u64| loop {
        let (at, want) = seen.recv_timeout(PATIENCE).unwrap();
        if want == wanted {
            return at;
        }
    };
    shown(3);
    for wanted in [4, 2, 3] {
        let before = Instant::now();
        let url = format!("{}/v1/services/demo/scale", cluster.node(&followers[1]).api);
        let answer = cluster.http.post(&url, Some(uuid::Uuid::new_v4()), &json!({ "replicas": wanted })).unwrap();
        assert_eq!(answer.0, 200, "{}", answer.1);
        let took = shown(wanted).saturating_duration_since(before);
        println!("shown after {took:?}");
        assert!(took < Duration::from_millis(500), "shown after {took:?}");
    }
}
