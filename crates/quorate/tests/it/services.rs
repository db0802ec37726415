//! Services by way of the command line: what scripts do to them and what they read.

use crate::cluster::{PATIENCE, TestCluster, free_addresses, processes_of, wait_for};
use crate::load::ask;
use crate::show::{demo, healthy, is_whole, lives, nodes, pids, replicas};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

#[test]
fn a_service_is_applied_shown_scaled_and_removed_in_shapes_that_scripts_can_rely_on() {
    let cluster = TestCluster::start();
    let spec = demo("web", 3, "") + "[[route]]\nservice = 'web'\nhost = 'web.test'\n";
    let applied = cluster.apply(&spec);
    assert_eq!(applied["plan"]["services"][0]["action"], "create");
    assert_eq!((&applied["services"][0]["want"], &applied["services"][0]["healthy"]), (&json!(3), &json!(3)));

    let view = cluster.service("web");
    assert_eq!((&view["name"], &view["mode"], &view["version"]), (&json!("web"), &json!("replicated"), &json!(1)));
    assert_eq!(nodes(&view), BTreeSet::from(["n1".into(), "n2".into(), "n3".into()]), "one on each node");
    for replica in replicas(&view) {
        let id: uuid::Uuid = replica["id"].as_str().unwrap().parse().unwrap();
        assert_eq!((&replica["state"], &replica["restarts"]), (&json!("healthy"), &json!(0)));
        // U9: its logs are in a directory named by its id, and the path is shown.
        let node = cluster.node_dir(replica["node"].as_str().unwrap());
        let log_dir = node.join("services/web").join(id.to_string()).join("log");
        assert_eq!(replica["log_dir"], log_dir.display().to_string());
        assert!(log_dir.is_dir());
        let answer = ask(replica["addresses"]["http"].as_str().unwrap(), "/whoami").unwrap();
        let who: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&who["replica"], &who["node"], &who["pid"]), (&replica["id"], &replica["node"], &replica["pid"]));
    }

    let again = cluster.apply(&spec);
    assert_eq!(again["plan"]["services"][0]["action"], "unchanged");
    assert_eq!(pids(&cluster.service("web")), pids(&view), "an unchanged spec touches nothing");

    let scaled = cluster.json(&["scale", "web", "5"]);
    assert_eq!((&scaled[0]["from"], &scaled[0]["want"], &scaled[0]["healthy"]), (&json!(3), &json!(5), &json!(5)));
    assert!(pids(&cluster.service("web")).is_superset(&pids(&view)), "what ran goes on");
    cluster.ok(&["scale", "web", "1"]);
    let view = cluster.wait_service("web", "one copy is left", |view| is_whole(view) && view["want"] == 1);

    let listed = cluster.json(&["service", "list"]);
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["demo", "web"]);

    assert_eq!(cluster.json(&["service", "remove", "web", "--yes"]), json!({ "name": "web", "removed": true }));
    assert_eq!(cluster.run(&["service", "show", "web"]).code, 6);
    wait_for("nothing of web runs", PATIENCE, || (!pids(&view).into_iter().any(lives)).then_some(()));
    wait_for("no shim of web runs", PATIENCE, || {
        let of_web = |argv: &Vec<String>| argv.iter().any(|arg| arg.contains("/services/web/"));
        (!processes_of(&cluster.dir.display().to_string()).values().any(of_web)).then_some(())
    });
    assert_eq!(cluster.service("demo")["healthy"], 3, "others are not touched");
}

#[test]
fn e5_a_restart_replaces_every_copy_one_after_another_and_says_of_an_unknown_one_which_was_meant() {
    let cluster = TestCluster::start();
    cluster.apply(&demo("web", 3, ""));
    let before = cluster.service("web");
    let restarted = cluster.json(&["restart", "web"]);
    assert_eq!((&restarted[0]["want"], &restarted[0]["healthy"]), (&json!(3), &json!(3)));
    // What is replaced may still be ending.
    let after = cluster.wait_service("web", "nothing of it is left", is_whole);
    assert!(pids(&after).is_disjoint(&pids(&before)), "all are others");
    assert_eq!((after["version"].as_u64(), &after["spec"]), (Some(2), &before["spec"]));
    let said = cluster.ok(&["events"]);
    assert!(said.contains("web restarts, one replica after another"), "{said}");
    // E10: of all services, from any node.
    let others = cluster.service("demo");
    let all = cluster.json(&["restart", "all"]);
    assert_eq!(all.as_array().unwrap().len(), 2);
    let after = cluster.wait_service("demo", "nothing of it is left", is_whole);
    assert!(pids(&after).is_disjoint(&pids(&others)));
    let unknown = cluster.run(&["restart", "wbe"]);
    assert!(unknown.code == 6 && unknown.stderr.contains("did you mean `web`?"), "{}", unknown.stderr);
}

#[test]
fn a_replica_outlives_its_server_and_goes_on_under_the_next() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let before = cluster.service("demo");
    cluster.ok(&["dev", "kill", "n1", "--server-only"]);
    assert!(cluster.pid("n1").is_none());
    assert!(pids(&before).into_iter().all(lives));
    cluster.ok(&["dev", "start", "n1"]);
    let after = cluster.wait_service("demo", "demo is whole", is_whole);
    assert_eq!(pids(&after), pids(&before));
    assert!(replicas(&after).iter().all(|replica| replica["restarts"] == 0), "{after}");
}

#[test]
fn a_replica_that_was_replaced_while_its_server_was_away_ends_when_it_returns() {
    let cluster = TestCluster::start();
    let node = cluster.followers().remove(0);
    let before = cluster.service("demo");
    let old = replicas(&before).iter().find(|replica| replica["node"] == node).unwrap();
    let old_pid = u32::try_from(old["pid"].as_u64().unwrap()).unwrap();
    cluster.ok(&["dev", "kill", &node, "--server-only"]);
    let replaced =
        cluster.wait_service("demo", "three copies elsewhere", |view| is_whole(view) && !nodes(view).contains(&node));
    assert!(lives(old_pid), "nobody has told it to end");
    assert!(!pids(&replaced).contains(&old_pid));
    cluster.ok(&["dev", "start", &node]);
    wait_for("the surplus copy ends", PATIENCE, || (!lives(old_pid)).then_some(()));
    let after = cluster.service("demo");
    assert_eq!(pids(&after), pids(&replaced), "it is the returning one that goes");
}

#[test]
fn a_crashing_program_is_started_again_with_pauses_and_everybody_can_see_it() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let spec = "[[service]]\nname = 'crash'\ncommand = ['/bin/sh', '-c', 'echo run; exit 3']\n\
        restart = { backoff = '100ms..400ms' }\n";
    let file = cluster.spec_file("crash.toml", spec);
    let ran = cluster.run(&["service", "apply", "-f", &file, "--yes"]);
    assert_eq!(ran.code, 9, "{}", ran.stderr);
    assert!(ran.stderr.contains("crash.0 on n1 cannot be started"), "{}", ran.stderr);
    let view = cluster.wait_service("crash", "it backs off", |view| {
        let replica = &replicas(view)[0];
        replica["restarts"].as_u64() >= Some(5) && replica["state"] == "backing-off"
    });
    assert!(replicas(&view)[0]["detail"].as_str().unwrap().contains("status 3"), "{view}");
    assert!(cluster.ok(&["service", "show", "crash"]).contains("status 3"));
    // Pauses of 100, 200, 400, 400 … ms and no hot loop: what it printed tells how often it ran.
    let printed = cluster.ok(&["logs", "crash", "-n", "1000"]).matches("run").count() as u64;
    let restarts = replicas(&cluster.service("crash"))[0]["restarts"].as_u64().unwrap();
    assert!(printed <= restarts + 1, "{printed} runs and {restarts} restarts");
    assert_eq!(cluster.service("demo")["healthy"], 3);
}

#[test]
fn what_is_observed_is_never_written_to_the_log() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    // Healthy for a second, unhealthy for a second.
    let program = "import http.server, sys, time\n\
        class H(http.server.BaseHTTPRequestHandler):\n\
        \x20def do_GET(self):\n\
        \x20 self.send_response(200 if int(time.time()) % 2 else 500)\n\
        \x20 self.send_header('Content-Length', '0')\n\
        \x20 self.end_headers()\n\
        \x20def log_message(self, *a): pass\n\
        http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n";
    let spec = format!(
        "[[service]]\nname = 'flap'\ncommand = ['/usr/bin/env', 'python3', '-c', '''{program}''', '{{port}}']\n\
         ports = {{ http = 'auto' }}\nhealth = {{ http = '/', every = '100ms', fail_after = 1 }}\n"
    );
    let file = cluster.spec_file("flap.toml", &spec);
    cluster.ok(&["service", "apply", "-f", &file, "--yes", "--no-wait"]);
    let is = |state: &'static str| {
        cluster.wait_service("flap", state, |view| replicas(view).first().is_some_and(|it| it["state"] == state));
    };
    let applied = || cluster.status("n1").unwrap()["cluster"]["applied"].as_u64().unwrap();
    is("healthy");
    let before = applied();
    for _ in 0..2 {
        is("unhealthy");
        is("healthy");
    }
    let entries = applied() - before;
    // Four changes, each seen by some ten checks and told in as many reports.
    assert!(entries <= 4 + 2, "{entries} entries for 4 transitions");
}

#[test]
fn a_changed_spec_rolls_without_ever_having_fewer_healthy_copies() {
    let cluster = TestCluster::start();
    let spec = |release: u32| demo("web", 3, &format!("env = {{ RELEASE = '{release}' }}"));
    cluster.apply(&spec(1));
    let before = cluster.service("web");
    let file = cluster.spec_file("web.toml", &spec(2));
    cluster.ok(&["service", "apply", "-f", &file, "--yes", "--no-wait"]);
    let mut least = u64::MAX;
    let after = wait_for("all are of the new version", PATIENCE, || {
        let view = cluster.status("n1")?["services"].as_array()?.iter().find(|it| it["name"] == "web")?.clone();
        least = least.min(healthy(&view));
        (is_whole(&view) && replicas(&view).iter().all(|replica| replica["version"] == 2)).then_some(view)
    });
    assert!(least >= 3, "only {least} were healthy in between");
    assert!(pids(&after).is_disjoint(&pids(&before)));
    assert_eq!(nodes(&after).len(), 3, "still one on each node");
    for pid in pids(&after) {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(String::from_utf8_lossy(&environment).contains("RELEASE=2"));
    }
    wait_for("the old ones end", PATIENCE, || (!pids(&before).into_iter().any(lives)).then_some(()));
}

#[test]
fn logs_of_all_replicas_come_from_their_nodes_and_go_on() {
    let cluster = TestCluster::start();
    cluster.apply(
        "[[service]]\nname = 'talk'\nreplicas = 3\n\
         command = ['/bin/sh', '-c', 'i=0; while :; do i=$((i+1)); echo line $i of {ordinal}; sleep 0.1; done']\n",
    );
    let view = cluster.service("talk");
    wait_for("all have said three lines", PATIENCE, || {
        let said = cluster.ok(&["logs", "talk", "-n", "100"]);
        (0..3).all(|ordinal| said.contains(&format!("line 3 of {ordinal}"))).then_some(())
    });
    let said = cluster.ok(&["logs", "talk", "-n", "2"]);
    assert_eq!(said.lines().count(), 6, "two lines of each copy:\n{said}");
    for replica in replicas(&view) {
        let (ordinal, node) = (&replica["ordinal"], replica["node"].as_str().unwrap());
        let of_it = said.lines().filter(|line| line.starts_with(&format!("talk.{ordinal} {node}")));
        assert_eq!(of_it.filter(|line| line.ends_with(&format!("of {ordinal}"))).count(), 2, "{said}");
    }
    let one = cluster.ok(&["logs", "talk", "--replica", "1", "-n", "1"]);
    assert!(one.starts_with("line ") && one.ends_with(" of 1\n"), "{one}");

    let mut follow = cluster.command(&["logs", "talk", "-f", "-n", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut counts = [0; 3];
    for line in BufReader::new(follow.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let ordinal: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
        counts[ordinal] += 1;
        if counts.iter().all(|count| *count >= 5) {
            break;
        }
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
    let unknown = cluster.run(&["logs", "talk", "--replica", "7"]);
    assert_eq!(unknown.code, 6, "{}", unknown.stderr);
}

#[test]
fn a_service_without_a_route_runs_and_is_not_reachable_through_the_gateway() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("plain.toml");
    std::fs::write(&file, demo("plain", 2, "")).unwrap();
    let cluster = TestCluster::start_with(&["--nodes", "1", "--service", file.to_str().unwrap()]);
    let view = cluster.service("plain");
    assert!(is_whole(&view), "{view}");
    assert_eq!(view["routes"], json!([]));
    let answer = ask(cluster.gateway_address(), "/whoami").unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.body.starts_with(b"No route leads from this host and path"), "{answer:?}");
    cluster.apply(&(demo("plain", 2, "") + "[[route]]\nservice = 'plain'\npath = '/who'\n"));
    wait_for("the route", PATIENCE, || {
        // The demo knows no such path; that it is asked is the point.
        let answer = ask(cluster.gateway_address(), "/whoami").unwrap();
        let below = ask(cluster.gateway_address(), "/who").unwrap();
        (answer.status == 503 && below.body.starts_with(b"There are /")).then_some(())
    });
}

#[test]
fn what_no_node_can_take_is_held_with_the_reason() {
    let cluster = TestCluster::start();
    let port = free_addresses(1)[0].rsplit(':').next().unwrap().to_owned();
    let fixed =
        |name: &str, replicas: u32| demo(name, replicas, "").replace("http = \"auto\"", &format!("http = {port}"));
    // All nodes of this cluster share one address, so only one copy can listen; the others wait.
    let file = cluster.spec_file("fixed.toml", &fixed("fixed", 4));
    let ran = cluster.run(&["service", "apply", "-f", &file, "--yes", "--timeout", "3s"]);
    assert_eq!(ran.code, 9, "{}", ran.stderr);
    let reason = format!("no node can take fixed.3: fixed port {port} is taken on every node");
    assert!(ran.stderr.contains(&reason), "{}", ran.stderr);
    let view = cluster.service("fixed");
    assert_eq!(replicas(&view).len(), 3);
    assert!(view["held"].to_string().contains(&reason), "{view}");
    assert!(cluster.ok(&["service", "show", "fixed"]).contains(&reason));

    let file = cluster.spec_file("other.toml", &fixed("other", 1));
    let ran = cluster.run(&["service", "apply", "-f", &file, "--yes", "--timeout", "1s"]);
    assert_eq!(ran.code, 9, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("fixed port {port} is taken on every node")), "{}", ran.stderr);
    // As soon as the port is free on a node, what was held is placed.
    cluster.ok(&["service", "remove", "fixed", "--yes"]);
    cluster.wait_service("other", "it gets the port", is_whole);
}
