//! Managers stopped, started, restarted and promoted, with real processes.

use crate::access::Guarded;
use crate::cluster::{PATIENCE, Ran, TestCluster, wait_for};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn failure(ran: &Ran) -> Value {
    let failure: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|_| panic!("{ran:?}"));
    assert!(!failure["error"]["fix"].as_str().unwrap().is_empty(), "{failure}");
    failure["error"].clone()
}

fn replicas_of(cluster: &TestCluster) -> Vec<(String, u64)> {
    let service: Value = serde_json::from_str(&cluster.ok(&["service", "show", "demo", "-o", "json"])).unwrap();
    let replicas = service["replicas"].as_array().unwrap().iter();
    let mut pids: Vec<(String, u64)> = replicas
        .map(|replica| (replica["id"].as_str().unwrap().to_owned(), replica["pid"].as_u64().unwrap_or(0)))
        .collect();
    pids.sort();
    pids
}

fn standing(cluster: &TestCluster, ask: &str, node: &str) -> Value {
    let status = cluster.status(ask).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|known| known["name"] == node).unwrap()["standing"].clone()
}

#[test]
fn k4_passive_managers_stop_and_start_and_their_services_go_on() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let active = cluster.leader();
    let passive = cluster.followers();
    let before = replicas_of(&cluster);
    cluster.exec(&active, "CREATE TABLE t (a INTEGER)");

    let refused = cluster.run(&["-o", "json", "manager", "stop", &active]);
    assert_eq!((refused.code, &failure(&refused)["code"]), (7, &json!("is-active")), "{refused:?}");

    let said = cluster.ok(&["manager", "stop", "--all-passive"]);
    assert_eq!(said, format!("✔ {}, {} stopped · 1 manager votes, cannot lose any\n", passive[0], passive[1]));
    let url = |node: &str, path: &str| format!("{}{path}", cluster.node(node).api);
    for node in &passive {
        let (status, problem) = cluster.http.get(&url(node, "/v1/status")).unwrap();
        assert_eq!((status, &problem["code"]), (503, &json!("manager-stopped")), "{problem}");
        let (status, problem) = cluster.try_exec(node, uuid::Uuid::new_v4(), &json!({ "sql": "SELECT 1" })).unwrap();
        assert_eq!((status, &problem["code"]), (503, &json!("manager-stopped")), "{problem}");
        assert_eq!(cluster.http.get(&url(node, "/v1/health")).unwrap().0, 200);
    }
    // The last one decides alone, and the command line finds it.
    cluster.exec(&active, "INSERT INTO t VALUES (1)");
    assert!(cluster.ok(&["status"]).contains("1/1 managers, cannot lose any"));
    let listed = cluster.ok(&["manager", "list"]);
    assert_eq!(listed.matches("stopped").count(), 2, "{listed}");
    assert_eq!(replicas_of(&cluster), before, "no service was touched");

    // It outlives a reboot of the server.
    cluster.kill_servers(&passive[..1]);
    cluster.start_node(&passive[0]);
    wait_for("the server answers again", PATIENCE, || cluster.http.get(&url(&passive[0], "/v1/health")).ok());
    wait_for("it is back", PATIENCE, || {
        let status = cluster.status(&active)?;
        let node = status["nodes"].as_array()?.iter().find(|node| node["name"] == passive[0].as_str())?;
        (node["generation"] == 2 && node["state"] == "joined").then_some(())
    });
    assert_eq!(standing(&cluster, &active, &passive[0]), "stopped");
    assert_eq!(cluster.http.get(&url(&passive[0], "/v1/status")).unwrap().0, 503);

    // From another node than the stopped one.
    let said = cluster.ok(&["--server", &cluster.node(&active).api, "manager", "start", "--all-passive"]);
    assert!(said.ends_with("started · 3 managers vote, can lose 1\n"), "{said}");
    for node in &passive {
        // It may hear a moment after the one that was asked that it is started.
        let rows = wait_for("it serves again", PATIENCE, || {
            let (status, mut answer) = cluster.try_query(node, "SELECT a FROM t", "linearizable").ok()?;
            (status == 200).then(|| answer["results"][0]["rows"].take())
        });
        assert_eq!(rows, json!([[1]]), "it held all the time");
        assert_eq!(standing(&cluster, &active, node), "voter");
    }
}

#[test]
fn k5_managers_are_restarted_and_the_active_one_hands_over_first() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let before = replicas_of(&cluster);
    let active = cluster.leader();
    let term = || cluster.status(&cluster.leader()).unwrap()["cluster"]["term"].as_u64().unwrap();
    let began = term();
    let refused = cluster.run(&["-o", "json", "manager", "restart", &active]);
    assert_eq!((refused.code, &failure(&refused)["code"]), (7, &json!("is-active")));
    let pids: Vec<Option<u32>> = cluster.names().iter().map(|node| cluster.pid(node)).collect();

    let said = cluster.ok(&["manager", "restart", "--all-passive"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!((cluster.leader(), term()), (active.clone(), began), "nobody had to be elected");

    let said = cluster.ok(&["manager", "restart", "--active"]);
    assert!(said.starts_with(&format!("✔ {active} restarted")), "{said}");
    assert_ne!(cluster.leader(), active);
    let log = cluster.server_log(&active);
    assert!(log.contains("the cluster is told and led by another"), "{log}");
    let same: Vec<Option<u32>> = cluster.names().iter().map(|node| cluster.pid(node)).collect();
    assert_eq!(pids, same, "whoever watches over the processes notices nothing");
    assert_eq!(replicas_of(&cluster), before, "no service was touched");
}

#[test]
fn k11_a_passive_manager_is_promoted_and_a_stopped_one_is_not() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let next = cluster.followers().remove(0);
    assert!(cluster.ok(&["manager", "promote", &next]).starts_with(&format!("✔ {next} is Active")));
    assert_eq!(cluster.leader(), next);
    let other = cluster.followers().remove(0);
    cluster.ok(&["manager", "stop", &other]);
    let refused = cluster.run(&["-o", "json", "manager", "promote", &other]);
    assert_eq!(failure(&refused)["code"], "cannot-lead");
}

#[test]
fn k8_the_role_comes_and_goes_while_the_cluster_serves_and_keeps_to_its_rule() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let moved = cluster.followers().remove(0);
    let votes = |count: u64| {
        wait_for("the voters", PATIENCE, || {
            let status = cluster.status(&cluster.leader())?;
            (status["cluster"]["voters"] == count && status["cluster"]["voters_change"].is_null()).then_some(())
        });
    };
    cluster.ok(&["node", "roles", &moved, "worker"]);
    // Two managers are left, of which one stands by.
    votes(1);
    assert_eq!(standing(&cluster, &cluster.leader(), &moved), Value::Null);
    cluster.ok(&["manager", "rule", "worker"]);
    let refused = cluster.run(&["-o", "json", "node", "roles", &moved, "manager"]);
    assert_eq!(failure(&refused)["code"], "manager-needs-role");
    cluster.ok(&["node", "roles", &moved, "manager", "worker"]);
    votes(3);
    assert_eq!(cluster.ok(&["manager", "rule"]), "managers are only on nodes with the role worker\n");
}

#[test]
fn k4_a_stop_asks_for_the_password_on_a_node_that_does_not_lead() {
    let guarded = Guarded::start(3);
    guarded.create("olga", "operator");
    guarded.create("vera", "viewer");
    let followers = guarded.followers();
    let (asked, other) = (&followers[0], &followers[1]);
    let bearer = guarded.log_in(asked, "olga");
    let stop = |bearer: &str, confirmation: Option<&str>, node: &str| {
        let mut headers = vec![("Authorization", bearer)];
        headers.extend(confirmation.map(|it| ("Quorate-Confirmation", it)));
        guarded.ask(asked, "POST", "/v1/managers/stop", &headers, &json!({ "nodes": [node] })).unwrap()
    };
    let viewer = guarded.log_in(asked, "vera");
    assert_eq!(stop(&viewer, None, other).code(), "not-allowed");
    assert_eq!(stop(&bearer, None, other).code(), "confirmation-needed");
    let confirmation = guarded.confirm(asked, &bearer, "manager-stop", asked);
    assert_eq!(stop(&bearer, Some(&confirmation), other).code(), "not-confirmed", "it was for another manager");
    let confirmation = guarded.confirm(asked, &bearer, "manager-stop", other);
    let done = stop(&bearer, Some(&confirmation), other);
    assert_eq!((done.status, &done.body["nodes"][0]["standing"]), (200, &json!("stopped")), "{done:?}");
    // The leader is asked by way of a follower, and refuses.
    let leader = guarded.leader();
    let confirmation = guarded.confirm(asked, &bearer, "manager-stop", &leader);
    assert_eq!(stop(&bearer, Some(&confirmation), &leader).code(), "is-active");
    let audit = guarded.as_root(&leader, &["audit", "list"]);
    assert!(audit.contains("refused") && audit.contains("only passive ones are stopped"), "{audit}");
    // On its own socket root still reaches a manager that is stopped, and starts it.
    guarded.as_root(other, &["manager", "start", other]);
}

/// Kills the other two, as a fire in their machine room does; the third loses its data too.
fn disaster(cluster: &TestCluster) {
    ["n2", "n3"].iter().for_each(|node| cluster.kill(node));
    for what in ["log", "db"] {
        std::fs::remove_dir_all(cluster.node_dir("n3").join(what)).unwrap();
    }
}

fn recover(cluster: &TestCluster, node: &str, args: &[&str]) -> Ran {
    let dir = cluster.node_dir(node).display().to_string();
    cluster.run(&[&["-o", "json", "recover", "--data-dir", &dir], args].concat())
}

#[test]
fn one_survivor_goes_on_with_all_data_and_the_others_are_refused_when_they_come_back() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    cluster.exec(&cluster.leader(), "CREATE TABLE t (a INTEGER)");
    for number in 0..50 {
        cluster.exec(&cluster.leader(), &format!("INSERT INTO t VALUES ({number})"));
    }
    let id = cluster.status("n1").unwrap()["cluster"]["id"].clone();
    wait_for("the survivor to have all", PATIENCE, || {
        (cluster.local("n1", "SELECT count(*) FROM t")["results"][0]["rows"] == json!([[50]])).then_some(())
    });
    assert_eq!(failure(&recover(&cluster, "n1", &["--others-are-destroyed"]))["code"], "serving");
    cluster.kill("n1");
    let present = recover(&cluster, "n1", &["--others-are-destroyed"]);
    assert_eq!((present.code, &failure(&present)["code"]), (7, &json!("still-there")), "the others live");
    disaster(&cluster);

    let plan: Value = serde_json::from_str(&recover(&cluster, "n1", &["--plan"]).stdout).unwrap();
    assert_eq!((&plan["expelled"], &plan["incarnation"]), (&json!(["n2", "n3"]), &json!(2)));
    assert_eq!(failure(&recover(&cluster, "n1", &[]))["code"], "needs-yes", "nobody is there to be asked");
    let again: Value = serde_json::from_str(&recover(&cluster, "n1", &["--plan"]).stdout).unwrap();
    assert_eq!(plan, again, "nothing was changed by looking");
    assert_eq!(failure(&recover(&cluster, "n3", &["--others-are-destroyed"]))["code"], "knows-nothing");
    let began = Instant::now();
    let done = recover(&cluster, "n1", &["--others-are-destroyed"]);
    assert_eq!(done.code, 0, "{done:?}");
    cluster.start_node("n1");
    wait_for("a write", PATIENCE, || {
        let body = json!({ "sql": "INSERT INTO t VALUES (100)" });
        cluster.try_exec("n1", uuid::Uuid::from_u128(1), &body).ok().filter(|(status, _)| *status == 200)
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(cluster.rows("n1", "SELECT count(*) FROM t"), json!([[51]]));
    let status = cluster.status("n1").unwrap();
    let facts = &status["cluster"];
    assert_eq!((&facts["id"], &facts["incarnation"], &facts["voters"]), (&id, &json!(2), &json!(1)));
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "{}", status["nodes"]);
    assert!(cluster.ok(&["--server", &cluster.node("n1").api, "status"]).contains("incarnation 2"));

    // Nobody destroyed this one after all.
    cluster.start_node("n2");
    wait_for("it to be told what to do", PATIENCE, || {
        let log = cluster.server_log("n2");
        let told = ["incompatible incarnation", "recovered without this one", "empty it, and join with a new token"];
        told.iter().all(|words| log.contains(words)).then_some(())
    });
    wait_for("the survivor to say it too", PATIENCE, || {
        let log = cluster.server_log("n1");
        log.contains("is of 1 and this one of 2, since the cluster was recovered").then_some(())
    });
    let status = cluster.status("n1").unwrap();
    assert_eq!((&status["cluster"]["leader"], status["nodes"].as_array().unwrap().len()), (&json!("n1"), 1));
    assert_eq!(cluster.status("n2").unwrap()["cluster"]["leader"], Value::Null);
    cluster.exec("n1", "INSERT INTO t VALUES (101)");
    // It is one of two thousand starts like any other.
    cluster.kill("n1");
    cluster.start_node("n1");
    wait_for("all of it after another start", PATIENCE, || {
        let (status, mut answer) = cluster.try_query("n1", "SELECT count(*) FROM t", "linearizable").ok()?;
        (status == 200 && answer["results"][0]["rows"].take() == json!([[52]])).then_some(())
    });
}

#[test]
fn a_worker_follows_the_recovered_cluster_with_a_new_copy_of_its_data() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let (lost, others) = (cluster.leader(), cluster.followers());
    let (survivor, worker) = (&others[0], &others[1]);
    cluster.exec(&lost, "CREATE TABLE t (a INTEGER)");
    cluster.ok(&["node", "roles", worker, "worker"]);
    wait_for("one voter and a standby", PATIENCE, || {
        let status = cluster.status(survivor)?;
        let settled = status["cluster"]["voters"] == 1 && status["cluster"]["voters_change"].is_null();
        (settled && standing(&cluster, survivor, survivor) == "standby").then_some(())
    });
    cluster.kill(survivor);
    cluster.kill(&lost);
    let done = recover(&cluster, survivor, &["--others-are-destroyed"]);
    assert_eq!(done.code, 0, "a standby has everything too: {done:?}");
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&done["expelled"], &done["kept"]), (&json!([lost]), &json!([worker])));
    cluster.start_node(survivor);
    wait_for("the worker to be of the new incarnation", 2 * PATIENCE, || {
        let status = cluster.status(worker)?;
        let followed = status["cluster"]["incarnation"] == 2 && status["cluster"]["leader"] == survivor.as_str();
        let nodes = cluster.status(survivor)?["nodes"].clone();
        let joined = nodes.as_array()?.iter().all(|node| node["state"] == "joined");
        (followed && joined && nodes.as_array()?.len() == 2).then_some(())
    });
    cluster.exec(worker, "INSERT INTO t VALUES (7)");
    assert_eq!(cluster.rows(worker, "SELECT a FROM t"), json!([[7]]));
    let healthy = || serde_json::from_str::<Value>(&cluster.ok(&["service", "show", "demo", "-o", "json"])).ok();
    wait_for("the service to be whole", PATIENCE, || {
        let service = healthy()?;
        (service["healthy"] == service["want"]).then_some(())
    });
    let aside = cluster.node_dir(worker).join("earlier-incarnation");
    assert!(aside.join("db").exists() && aside.join("log").exists(), "nothing is thrown away");
}
