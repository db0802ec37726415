//! Where replicas go on real nodes: drains, labels, services on every node, forecasts that come true.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use crate::load::Load;
use crate::show::{demo, is_whole, nodes, pids, replicas};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Where each ordinal runs.
fn layout(view: &Value) -> BTreeMap<String, String> {
    let name = view["name"].as_str().unwrap();
    let one =
        |replica: &Value| (format!("{name}.{}", replica["ordinal"]), replica["node"].as_str().unwrap().to_owned());
    replicas(view).iter().map(one).collect()
}

#[test]
fn a_node_is_drained_under_load_without_a_failed_request_and_gets_nothing_back() {
    let cluster = TestCluster::start();
    let load = Load::start(cluster.gateway_address(), "/", 4, 40);
    cluster.ok(&["node", "drain", "n2", "--timeout", "2m"]);
    let view = cluster.service("demo");
    assert!(is_whole(&view) && !nodes(&view).contains("n2"), "{view}");
    let explained = cluster.json(&["explain", "demo"]);
    for running in explained["running"].as_array().unwrap() {
        let unfit: Vec<&Value> = running["unfit"].as_array().unwrap().iter().collect();
        assert_eq!(unfit, [&json!({ "node": "n2", "why": "is draining" })]);
    }
    let opened = cluster.json(&["node", "undrain", "n2"]);
    assert_eq!((&opened["availability"], &opened["replicas"]), (&json!("open"), &json!(0)));
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);
    assert!(tally.answered > 0);
    assert_eq!(pids(&cluster.service("demo")), pids(&view), "what runs is left alone");
}

/// N5, with a real server that is really killed.
#[test]
fn n5_a_killed_node_is_taken_over_as_was_foretold() {
    let cluster = TestCluster::start();
    cluster.ok(&["node", "label", "n1", "zone=a"]);
    cluster.apply(&demo("web", 4, "place = { spread = 'zone' }"));
    let victim = cluster.followers().remove(0);
    let mut expected = layout(&cluster.service("demo"));
    expected.extend(layout(&cluster.service("web")));
    let forecast = cluster.json(&["whatif", "kill", &victim]);
    let moves = forecast["moves"].as_array().unwrap();
    assert!(!moves.is_empty(), "{forecast}");
    for one in moves {
        assert_eq!(one["from"], victim);
        expected.insert(one["name"].as_str().unwrap().to_owned(), one["to"].as_str().unwrap().to_owned());
    }
    cluster.kill(&victim);
    let mut found = BTreeMap::new();
    for service in ["demo", "web"] {
        let taken_over = |view: &Value| is_whole(view) && !nodes(view).contains(&victim);
        found.extend(layout(&cluster.wait_service(service, "the others took over", taken_over)));
    }
    assert_eq!(found, expected);
}

/// E4: a node that was away gets something to do again when somebody asks, and under load no request fails.
#[test]
fn copies_move_to_a_returned_node_when_that_is_asked_for() {
    let cluster = TestCluster::start();
    cluster.ok(&["node", "drain", "n2", "--timeout", "2m"]);
    cluster.ok(&["node", "undrain", "n2"]);
    let before = cluster.service("demo");
    assert!(!nodes(&before).contains("n2"));
    // The copies that are there since the drain have to be healthy for a while first.
    let proposed = wait_for("it may be moved", PATIENCE, || {
        let proposed = cluster.json(&["rebalance", "--plan"]);
        (proposed["left_out"] == json!([])).then_some(proposed)
    });
    let moves = proposed["moves"].as_array().unwrap();
    assert_eq!(moves.iter().map(|one| one["to"].as_str().unwrap()).collect::<Vec<_>>(), ["n2"], "{proposed}");
    assert_eq!(pids(&cluster.service("demo")), pids(&before), "a plan moves nothing");

    let load = Load::start(cluster.gateway_address(), "/", 4, 40);
    cluster.ok(&["rebalance", "--yes", "--timeout", "2m"]);
    let after =
        cluster.wait_service("demo", "it is whole on three nodes", |view| is_whole(view) && nodes(view).len() == 3);
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:?}", tally.failures);
    assert_eq!(pids(&after).intersection(&pids(&before)).count(), 2, "the others are left alone");
    assert_eq!(cluster.json(&["rebalance", "--plan"]), json!({ "moves": [], "under_way": [], "left_out": [] }));
    let refused = cluster.run(&["rebalance", "--moves", "0"]);
    assert!(refused.code != 0 && refused.stderr.contains("it must be 1 to 100"), "{}", refused.stderr);
}

#[test]
fn a_service_on_every_node_follows_the_labels_and_is_not_scaled() {
    let cluster = TestCluster::start();
    for node in ["n1", "n3"] {
        cluster.ok(&["node", "label", node, "disk=ssd"]);
    }
    cluster.apply(&demo("agent", 1, "mode = 'every-node'\nplace = { require = ['disk = ssd'] }"));
    let on = |wanted: &'static [&'static str]| {
        move |view: &Value| {
            is_whole(view) && nodes(view) == wanted.iter().map(|node| (*node).to_owned()).collect::<BTreeSet<_>>()
        }
    };
    cluster.wait_service("agent", "it runs where a disk is", on(&["n1", "n3"]));
    cluster.ok(&["node", "label", "n2", "disk=ssd"]);
    cluster.ok(&["node", "label", "n3", "disk-"]);
    cluster.wait_service("agent", "it follows the labels", on(&["n1", "n2"]));

    let refused = cluster.run(&["scale", "agent", "3"]);
    assert_eq!(refused.code, 7, "{}", refused.stderr);
    assert!(refused.stderr.contains("it runs once on each node that meets `place.require`"), "{}", refused.stderr);
    let all = cluster.run(&["scale", "all", "2"]);
    assert_eq!(all.code, 0, "{}", all.stderr);
    assert!(all.stderr.contains("! agent cannot be scaled"), "{}", all.stderr);
    assert_eq!((&cluster.service("demo")["want"], &cluster.service("agent")["want"]), (&json!(2), &json!(2)));
}

/// E2, with what the nodes really have: each says how many CPUs, and a copy takes all of one.
#[test]
fn e2_scaling_shows_what_is_needed_and_what_is_free_and_more_than_fits_waits_with_the_reason() {
    let cluster = TestCluster::start();
    let listed = cluster.json(&["node", "list"]);
    let capacity = listed[0]["capacity"].clone();
    let cpus = capacity["cpu_millis"].as_u64().unwrap();
    assert!(cpus >= 1000 && capacity["memory_bytes"].as_u64().unwrap() > 1 << 28, "{capacity}");
    cluster.apply(&demo("big", 1, &format!("resources = {{ cpu = '{cpus}m', memory = '128MiB' }}")));

    let scaled = cluster.run(&["scale", "big", "3"]);
    assert_eq!(scaled.code, 0, "{}", scaled.stderr);
    assert!(scaled.stderr.contains("3 × ("), "{}", scaled.stderr);
    assert!(scaled.stderr.contains("lost, 1 copy would find no room"), "{}", scaled.stderr);
    let view = cluster.service("big");
    assert_eq!(nodes(&view).len(), 3, "one on each, though nothing asks for that: {view}");

    let more = cluster.run(&["scale", "big", "4", "--no-wait"]);
    assert!(more.stderr.contains("! 1 copy will wait for room"), "{}", more.stderr);
    let held = |view: &Value| view["held"].to_string().contains("no node can take big.3: n1 has 0m CPU free and");
    let view = cluster.wait_service("big", "the reason is shown", held);
    assert_eq!(replicas(&view).len(), 3);
    let explained = cluster.json(&["explain", "big"]);
    let room = &explained["room"];
    assert_eq!((&room["replicas"], &room["fit"], &room["fit_then"]), (&json!(4), &json!(3), &json!(2)));
    let node = cluster.json(&["node", "list"]);
    assert_eq!(node[0]["reserved"], json!({ "cpu_millis": cpus, "memory_bytes": 128 << 20 }));

    // What is measured comes by itself, and is shown.
    let measured = |view: &Value| replicas(view).iter().all(|replica| replica["usage"]["cpu_millis"].is_u64());
    let in_groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pids(&view).first().unwrap()));
    if in_groups.unwrap_or_default().contains("/quorate/") {
        cluster.wait_service("big", "its use is measured", measured);
        let shown = cluster.ok(&["service", "show", "big"]);
        assert!(shown.contains(" CPU, 128MiB of memory") && shown.contains("MEMORY"), "{shown}");
    }
    // As soon as a place is free the rest finds it.
    cluster.ok(&["scale", "big", "3"]);
    cluster.wait_service("big", "all have a place", is_whole);
}
