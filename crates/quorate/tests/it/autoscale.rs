//! E3, K15: copies that follow what they have to do, on real nodes: processes that burn time, requests of clients
//! that a gateway counts, rows of a table, and numbers that copies tell.

use crate::cluster::{TestCluster, wait_for};
use crate::load::{Load, ask};
use crate::show::{demo, is_whole, pids, replicas};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Agents measure every 5 s, and it is looked as often here; nodes of a busy machine take their time.
const PATIENCE: Duration = Duration::from_secs(180);

/// A program that burns all that it gets while there is a file, 100m for each copy.
fn burner(file: &Path, more: &str) -> String {
    format!(
        r#"[[service]]
name = "burner"
replicas = 2
command = ["/bin/sh", "-c", "while :; do [ -e {} ] || sleep 1; done"]
resources = {{ cpu = "100m" }}
update = {{ verify_for = "0s", healthy_for = "0s" }}
stop = {{ grace = "1s" }}
{more}
"#,
        file.display()
    )
}

const TABLE: &str = r#"autoscale = { min = 2, max = 4, cpu = "50%", every = "5s", warmup = "0s", down_after = "10s" }"#;

/// Whether what copies use is measured here: they are in cgroups.
fn is_measured(view: &Value) -> bool {
    let first = *pids(view).first().unwrap();
    std::fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap_or_default().contains("/quorate/")
}

fn wait(cluster: &TestCluster, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    shown(cluster, &["service", "show", "burner"], what, wanted)
}

fn explained(cluster: &TestCluster, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    shown(cluster, &["autoscale", "explain", "burner"], what, wanted)
}

fn shown(cluster: &TestCluster, command: &[&str], what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, PATIENCE, || {
        let ran = cluster.run(&[command, &["-o", "json"]].concat());
        serde_json::from_str(&ran.stdout).ok().filter(|view| wanted(view))
    })
}

#[test]
fn e3_copies_that_burn_become_four_and_two_again_and_the_leader_dies_half_way() {
    let cluster = TestCluster::start();
    let file = cluster.dir.join("burn");
    cluster.apply(&burner(&file, TABLE));
    let view = wait(&cluster, "two copies run", is_whole);
    assert_eq!(view["want"], 2);
    if !is_measured(&view) {
        // It says so, and leaves the number alone.
        let says = |view: &Value| view["found"]["why"].to_string().contains("cpu is not measured of any copy");
        explained(&cluster, "it is said that nothing is measured", says);
        std::fs::write(&file, "").unwrap();
        assert_eq!(cluster.service("burner")["want"], 2);
        return;
    }
    explained(&cluster, "it is calm", |view| view["found"]["load"] == "low");

    std::fs::write(&file, "").unwrap();
    wait(&cluster, "four copies run", |view| is_whole(view) && view["want"] == 4);
    // What was measured when there were fewer is looked at once more before.
    let busy =
        explained(&cluster, "four are right", |view| view["found"]["load"] == "high" && view["found"]["to"] == 4);
    let found = &busy["found"];
    assert!(found["readings"][0]["percent"].as_u64().unwrap() > 110, "{busy}");
    assert_eq!(found["changes"][0]["to"], json!(4), "{busy}");

    cluster.ok(&["dev", "kill", &cluster.leader()]);
    wait(&cluster, "the others run all four", |view| is_whole(view) && view["want"] == 4);
    std::fs::remove_file(&file).unwrap();
    wait(&cluster, "two copies are left", |view| is_whole(view) && view["want"] == 2);
    let events = cluster.ok(&["events"]);
    // Up in one step or in two, as the first sample came before the fire or after it; down in steps of one.
    let up = events.contains("from 2 to 4: cpu is at")
        || (events.contains("from 2 to 3: cpu is at") && events.contains("from 3 to 4: cpu is at"));
    assert!(up, "{events}");
    for change in ["from 4 to 3: cpu is at", "from 3 to 2: cpu is at"] {
        assert!(events.contains(change), "{change}: {events}");
    }
}

#[test]
fn e3_scaling_by_hand_is_refused_while_it_is_on_and_everything_else_goes_on() {
    let cluster = TestCluster::start();
    let file = cluster.dir.join("burn");
    cluster.apply(&burner(&file, ""));
    let off = cluster.json(&["autoscale", "explain", "burner"]);
    assert_eq!((&off["on"], &off["want"]), (&json!(false), &json!(2)));
    let refused = cluster.run(&["autoscale", "on", "burner"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("begins with `min` and `max`"), "{}", refused.stderr);
    let on = cluster.json(&["autoscale", "on", "burner", "--min", "3", "--max", "5", "--cpu", "50%"]);
    assert_eq!((&on["on"], &on["want"], &on["table"]["max"]), (&json!(true), &json!(3), &json!(5)));

    let refused = cluster.run(&["scale", "burner", "4"]);
    assert_eq!(refused.code, 7, "{}", refused.stderr);
    assert!(refused.stderr.contains("it is autoscaled, from 3 to 5 copies"), "{}", refused.stderr);
    assert!(refused.stderr.contains("quorate autoscale off burner"), "{}", refused.stderr);
    let all = cluster.run(&["scale", "all", "2"]);
    assert_eq!(all.code, 0, "{}", all.stderr);
    assert!(all.stderr.contains("! burner cannot be scaled by hand: it is autoscaled"), "{}", all.stderr);
    assert_eq!((&cluster.service("demo")["want"], &cluster.service("burner")["want"]), (&json!(2), &json!(3)));
    let listed = cluster.ok(&["service", "list"]);
    assert!(listed.contains("3 (3-5)"), "{listed}");

    // A file without the table takes it away; one with it leaves the number alone.
    cluster.apply(&burner(&file, TABLE));
    let view = cluster.service("burner");
    assert_eq!((&view["want"], &view["version"]), (&json!(3), &json!(1)), "{view}");
    let plan = cluster.spec_file("plan.toml", &burner(&file, TABLE));
    let plan = cluster.json(&["service", "apply", "-f", &plan, "--plan"]);
    assert_eq!(plan["services"][0]["action"], "unchanged", "{plan}");
    let off = cluster.ok(&["autoscale", "off", "burner"]);
    assert!(off.contains("is not autoscaled; it has 3 copies"), "{off}");
    cluster.ok(&["scale", "burner", "2"]);
    assert!(!cluster.ok(&["service", "list"]).contains("(2-4)"));
}

/// Ten requests a second for each copy.
const REQUESTS: &str = r#"autoscale = { min = 2, max = 4, rps = 10, every = "5s", warmup = "0s", down_after = "10s" }"#;

#[test]
fn k15_requests_at_the_gateway_go_from_low_to_high_and_back_and_the_leader_dies_half_way() {
    let cluster = TestCluster::start();
    cluster.apply(&(demo("demo", 2, REQUESTS) + "[[route]]\nservice = 'demo'\n"));
    let copies = |what: &str, count: u64| {
        shown(&cluster, &["service", "show", "demo"], what, |view| is_whole(view) && view["want"] == count)
    };
    let load_is = |what: &str, load: &str| {
        shown(&cluster, &["autoscale", "explain", "demo"], what, |view| view["found"]["load"] == load)
    };
    let begin = |a_second: u32| Load::start(cluster.gateway_address(), "/whoami", 4, a_second);
    let mut tallies = Vec::new();

    copies("two copies run", 2);
    let calm = load_is("nobody asks", "low");
    assert_eq!(calm["found"]["traffic"]["gateways"], json!(1), "{calm}");
    let moderate = begin(15);
    load_is("a load for two", "moderate");
    assert_eq!(cluster.service("demo")["want"], json!(2));
    tallies.push(moderate.stop());

    let high = begin(60);
    copies("four copies run", 4);
    let busy = load_is("more than four can do", "high");
    assert_eq!(busy["found"]["to"], json!(4), "{busy}");
    assert_eq!(busy["found"]["readings"][0]["metric"], json!("rps"), "{busy}");
    let text = cluster.ok(&["autoscale", "explain", "demo"]);
    assert!(text.contains("1 gateway had ") && text.contains("no more than 4, the maximum"), "{text}");

    cluster.ok(&["dev", "kill", &cluster.leader()]);
    copies("the others run all four", 4);
    tallies.push(high.stop());
    let low = begin(4);
    copies("two copies are left", 2);
    load_is("little to do", "low");
    tallies.push(low.stop());
    for tally in tallies {
        assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    }
    let events = cluster.ok(&["events"]);
    for change in ["demo autoscaled from 4 to 3: rps is at", "demo autoscaled from 3 to 2: rps is at"] {
        assert!(events.contains(change), "{change}: {events}");
    }
}

/// Copies that follow a number which somebody tells.
fn following(told: &str) -> String {
    let table = format!("autoscale = {{ min = 2, max = 4, {told}, every = '5s', warmup = '0s', down_after = '5s' }}\n");
    demo("web", 2, &(table + "update = { verify_for = '0s', healthy_for = '0s' }"))
}

fn copies(cluster: &TestCluster, what: &str, count: u64) -> Value {
    shown(cluster, &["service", "show", "web"], what, |view| is_whole(view) && view["want"] == count)
}

/// Waits until every node, asked for itself, says the same of what was found, whichever leads.
fn each_node_finds(cluster: &TestCluster, what: &str, wanted: impl Fn(&Value) -> bool) {
    for node in &cluster.nodes {
        wait_for(&format!("{what}, on {}", node.name), PATIENCE, || {
            let (_, view) = cluster.http.get(&format!("{}/v1/services/web/autoscale", node.api)).ok()?;
            wanted(&view["found"]).then_some(())
        });
    }
}

fn says(found: &Value, why: &str) -> bool {
    found["why"].as_array().is_some_and(|lines| lines.iter().any(|line| line.as_str().unwrap().contains(why)))
}

#[test]
fn k15_copies_follow_what_a_query_finds_and_a_wrong_query_is_explained_by_every_node() {
    let cluster = TestCluster::start();
    let by = |query: &str| following(&format!("sql = {{ query = \"{query}\", target = 2 }}"));
    cluster.apply(&by("SELECT count(*) FROM jobs"));
    let no_table = "the query of sql gives no number: no such table: jobs";
    each_node_finds(&cluster, "there is no table", |found| says(found, no_table));
    copies(&cluster, "two copies are left alone", 2);

    cluster.ok(&["db", "exec", "CREATE TABLE jobs (id INTEGER PRIMARY KEY)"]);
    cluster.ok(&["db", "exec", "INSERT INTO jobs VALUES (1), (2), (3), (4), (5), (6), (7)"]);
    copies(&cluster, "four copies for seven jobs", 4);
    each_node_finds(&cluster, "seven jobs are found", |found| {
        let reading = &found["readings"][0];
        reading["metric"] == "sql" && reading["mean"] == 1750 && reading["right"] == 4
    });

    cluster.apply(&by("SELECT 'many'"));
    let text = "the query of sql gives no number: it gave text, and a number is needed";
    each_node_finds(&cluster, "a word is no number", |found| says(found, text));
    copies(&cluster, "four copies are left alone", 4);

    cluster.apply(&by("SELECT count(*) FROM jobs"));
    cluster.ok(&["db", "exec", "DELETE FROM jobs WHERE id > 3"]);
    copies(&cluster, "two copies are left", 2);
    let events = cluster.ok(&["events"]);
    for change in ["web autoscaled from 2 to 4: sql is at 175% of its target", "web autoscaled from 3 to 2: sql is at"]
    {
        assert!(events.contains(change), "{change}: {events}");
    }
}

#[test]
fn k15_copies_follow_what_their_pages_tell_and_a_wrong_page_is_explained_by_every_node() {
    let cluster = TestCluster::start();
    let by = |name: &str, target: u32| {
        following(&format!("scrape = {{ name = '{name}', labels = {{ path = '/' }}, target = {target} }}"))
    };
    cluster.apply(&by("demo_pages_served", 10));
    each_node_finds(&cluster, "two copies have served nothing", |found| {
        let reading = &found["readings"][0];
        reading["metric"] == "scrape" && reading["mean"] == 0 && reading["copies"] == 2
    });

    let two = copies(&cluster, "two copies run", 2);
    for copy in replicas(&two) {
        let address = copy["addresses"]["http"].as_str().unwrap();
        for _ in 0..25 {
            assert_eq!(ask(address, "/").unwrap().status, 200);
        }
    }
    copies(&cluster, "four copies for fifty pages", 4);

    cluster.apply(&by("demo_pages_lost", 10));
    each_node_finds(&cluster, "there is no such metric", |found| {
        says(found, "scrape is not told by any copy that is ready")
            && says(found, "/metrics: there is no demo_pages_lost{path=\"/\"}")
    });
    copies(&cluster, "four copies are left alone", 4);

    cluster.apply(&by("demo_pages_served", 1000));
    copies(&cluster, "two copies are left", 2);
    let events = cluster.ok(&["events"]);
    for change in ["web autoscaled from 2 to 4: scrape is at", "web autoscaled from 3 to 2: scrape is at"] {
        assert!(events.contains(change), "{change}: {events}");
    }
}
