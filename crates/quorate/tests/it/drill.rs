//! Drills of real clusters: the node that is taken away comes back by itself, whatever ran there is measured, and
//! what would be no drill is refused.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use crate::once::{Probe, overlap};
use crate::show::{demo, is_whole, nodes};
use quorate_model::time::Span;
use serde_json::{Value, json};
use std::time::Duration;

fn span(value: &Value) -> Option<Duration> {
    Some(value.as_str()?.parse::<Span>().unwrap().0)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn service<'a>(drill: &'a Value, name: &str) -> &'a Value {
    let services = drill["services"].as_array().unwrap();
    services.iter().find(|one| one["service"] == name).unwrap_or_else(|| panic!("no {name} in {drill}"))
}

/// A command's answer in JSON, whether or not all went well.
fn answer(cluster: &TestCluster, args: &[&str]) -> (i32, Value) {
    let ran = cluster.run(&[args, &["-o", "json"]].concat());
    let text = if ran.stdout.is_empty() { &ran.stderr } else { &ran.stdout };
    (ran.code, serde_json::from_str(text).unwrap_or_else(|_| panic!("{}{}", ran.stdout, ran.stderr)))
}

#[test]
fn n4_the_leader_is_taken_away_with_a_singleton_and_everything_is_measured() {
    let cluster = TestCluster::start();
    let probe = Probe::start(&cluster, "mode = 'singleton'\nfailover = '10s'");
    let node = probe.node();
    cluster.ok(&["manager", "promote", &node]);
    wait_for("its node leads", PATIENCE, || (cluster.leader() == node).then_some(()));

    let plan = cluster.json(&["drill", &node, "--plan"]);
    assert_eq!((&plan["leads"], &plan["refused"], &plan["away"]), (&json!(true), &Value::Null, &json!("20s")));
    let once = plan["moves"].as_array().unwrap().iter().find(|one| one["name"] == "once.0").unwrap().clone();
    assert!(cluster.json(&["drill", "list"]).as_array().unwrap().is_empty(), "a plan changes nothing");

    let drilling = cluster.command(&["drill", &node, "--for", "15s", "--yes", "-o", "json", "--timeout", "2m"]);
    let drilling = std::thread::scope(|scope| {
        let running = scope.spawn(move || { drilling }.output().unwrap());
        // Whoever asks the node itself is told; everybody else sees it as lost.
        let url = format!("{}/v1/status", cluster.node(&node).api);
        wait_for("the node is away", PATIENCE, || {
            let (status, answer) = cluster.http.get(&url).ok()?;
            (status == 503 && answer["code"] == "away-for-drill").then_some(())
        });
        let other = cluster.names().into_iter().find(|name| *name != node).unwrap();
        wait_for("the others miss it", PATIENCE, || {
            let seen = cluster.status(&other)?;
            let of = |one: &&Value| one["name"] == node.as_str();
            let state = seen["nodes"].as_array()?.iter().find(of)?["state"].clone();
            (state != "joined").then_some(())
        });
        // Beside it, on its own machine, people are still answered.
        let socket = format!("unix:{}", cluster.node_dir(&node).join("api.sock").display());
        let mut beside = std::process::Command::new(env!("CARGO_BIN_EXE_quorate"));
        let beside = beside.args(["--server", &socket, "api", "GET", "/v1/drills/last"]).output().unwrap();
        assert!(beside.status.success(), "{}", String::from_utf8_lossy(&beside.stderr));
        let (code, refused) = answer(&cluster, &["drill", &other, "--yes"]);
        assert_eq!(code, 7, "{refused}");
        let why = refused["error"]["message"].as_str().unwrap();
        assert!(why.contains("is not over") || why.contains("is not heard"), "{why}");
        running.join().unwrap()
    });
    assert!(drilling.status.success(), "{drilling:?}");
    let drill: Value = serde_json::from_slice(&drilling.stdout).unwrap();

    let ran = probe.ran();
    assert_eq!((ran.len(), overlap(&ran)), (2, Duration::ZERO), "{ran:?}");
    let measured = service(&drill, "once");
    assert_eq!(measured["verdict"], "ok", "{drill}");
    let took = span(&measured["took"]).unwrap();
    assert!(took > secs(5) && took < secs(10), "{drill}");
    assert_eq!(measured["copies"][0]["to"], once["to"], "as was foretold: {drill}");
    // Replicated copies follow as soon as the node is called down.
    let demo = service(&drill, "demo");
    assert_eq!((&demo["verdict"], &demo["limit"]), (&json!("ok"), &json!("10s")), "{drill}");
    assert!(span(&demo["copies"][0]["serving"]).is_some(), "{drill}");
    let noticed = span(&drill["noticed"]).unwrap();
    assert!(noticed < secs(6), "{drill}");
    assert_ne!(drill["successor"]["node"], node.as_str(), "{drill}");
    assert!(span(&drill["successor"]["after"]).unwrap() < secs(6), "{drill}");
    let returned = span(&drill["returned"]).unwrap();
    assert!(returned >= secs(14) && returned < secs(30), "{drill}");

    cluster.wait_whole();
    assert_eq!(probe.ran().len(), 2, "whoever returns takes nothing back");
    // All nodes have the same report, the one that was away too.
    for name in cluster.names() {
        wait_for("it has the report", PATIENCE, || {
            let url = format!("{}/v1/drills/1", cluster.node(&name).api);
            let (_, seen) = cluster.http.get(&url).ok()?;
            (seen == drill).then_some(())
        });
    }
    let told = cluster.ok(&["events"]);
    for line in
        [format!("drill 1 takes {node} away for 15s"), "drill 1: once was whole after".into(), "drill 1 is over".into()]
    {
        assert!(told.contains(&line), "{line}: {told}");
    }
    let shown = cluster.ok(&["drill", "show"]);
    assert!(shown.contains("✔ in time") && shown.contains(&format!("{node} was back after")), "{shown}");
    assert!(cluster.ok(&["drill", "show", "1", "--markdown"]).contains("| once | 10s | 10s |"));
    assert!(cluster.ok(&["drill", "list"]).contains(&node));
}

#[test]
fn n4_a_server_that_starts_anew_has_ended_its_drill_and_what_did_not_move_is_said() {
    let cluster = TestCluster::start();
    let _probe = Probe::start(&cluster, "mode = 'singleton'\nfailover = '300s'");
    let node = cluster.service("once")["replicas"][0]["node"].as_str().unwrap().to_owned();
    let began = cluster.json(&["drill", &node, "--for", "5m", "--yes", "--no-wait"]);
    assert_eq!((&began["over"], &began["away"]), (&json!(false), &json!("5m")));
    // Asked by name: the node itself may be the first that is asked.
    let last = || cluster.json(&["drill", "show"]);
    wait_for("it is missed", PATIENCE, || span(&last()["noticed"]));
    cluster.kill_servers(std::slice::from_ref(&node));
    cluster.start_node(&node);
    let drill = wait_for("it is over", PATIENCE, || Some(last()).filter(|drill| drill["over"] == true));
    assert!(span(&drill["returned"]).unwrap() < secs(120), "{drill}");
    assert_eq!(service(&drill, "once")["verdict"], "not-recovered", "{drill}");
    cluster.wait_whole();
    assert_eq!(cluster.service("once")["replicas"][0]["node"], node.as_str(), "it kept its lease and its place");
}

#[test]
fn n4_what_would_be_no_drill_is_refused_with_the_reason() {
    let cluster = TestCluster::start();
    cluster.apply(&demo("web", 3, ""));
    let refused = |args: &[&str], code: i32, why: &str| {
        let ran = cluster.run(&[&["drill"], args].concat());
        assert_eq!(ran.code, code, "{args:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
    };
    refused(&["n2"], 2, "--yes");
    refused(&["n9", "--yes"], 6, "n9");
    refused(&["n2", "--yes", "--for", "4s"], 2, "`away` is 4s; it must be 5s to 10m");
    refused(&["n2", "--yes", "--for", "11m"], 2, "it must be 5s to 10m");
    refused(&["show"], 6, "there was no drill");
    refused(&[], 2, "NODE");

    cluster.ok(&["node", "drain", "n3", "--timeout", "2m"]);
    refused(&["n2", "--yes"], 7, "n3 is being emptied");
    refused(&["n3", "--yes"], 7, "n3 is being emptied");
    let plan = cluster.json(&["drill", "n2", "--plan"]);
    assert!(plan["refused"].as_str().unwrap().contains("n3 is being emptied"), "{plan}");
    cluster.ok(&["node", "undrain", "n3"]);

    cluster.kill("n3");
    wait_for("n3 is called down", PATIENCE, || {
        let nodes = cluster.json(&["node", "list"]);
        nodes.as_array()?.iter().any(|node| node["name"] == "n3" && node["state"] == "down").then_some(())
    });
    refused(&["n2", "--yes"], 7, "n3 is not joined");
    cluster.start_node("n3");
    cluster.wait_whole();

    // One that was stopped cleanly is no loss, but its vote is not there.
    cluster.ok(&["dev", "stop", "n3"]);
    refused(&["n2", "--yes"], 7, "2 are needed to decide");
    cluster.start_node("n3");
    cluster.wait_whole();
    assert!(cluster.json(&["drill", "list"]).as_array().unwrap().is_empty(), "nothing of this was a drill");
    let settled = |view: &Value| is_whole(view) && nodes(view).len() > 1;
    cluster.wait_service("web", "nothing was disturbed", settled);
}

#[test]
fn n4_a_node_that_is_alone_is_not_taken_away() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let ran = cluster.run(&["drill", "n1", "--yes"]);
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert!(ran.stderr.contains("no other node that could take over"), "{}", ran.stderr);
}
