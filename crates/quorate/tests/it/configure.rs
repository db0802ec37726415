//! E5: settings of the cluster and of its servers that change while everything runs.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use crate::show::pids;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn e5_settings_change_together_or_not_at_all() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let value = |key: &str| {
        let all = cluster.json(&["reconfigure", "--list"]);
        let found = all.as_array().unwrap().iter().find(|setting| setting["key"] == key).cloned();
        found.unwrap()["value"].as_str().unwrap().to_owned()
    };
    let replicas = value("replicas.demo");
    let wanted = ["reconfigure", "--set", "failover=20s", "--set", "replicas.demo=4"];
    let planned = cluster.ok(&[&wanted[..], &["--plan"]].concat());
    assert!(planned.starts_with("~ failover default → 20s"), "{planned}");
    assert_eq!((value("failover"), value("replicas.demo")), ("default".into(), replicas.clone()), "only planned");

    // The leader finds the mistake in the second; the first is not done either.
    let refused = cluster.run(&["-o", "json", "reconfigure", "--set", "failover=20s", "--set", "ha=off"]);
    assert_eq!(refused.code, 7, "{refused:?}");
    assert!(refused.stderr.contains("ha-in-use") || refused.stdout.contains("ha-in-use"), "{refused:?}");
    assert_eq!(value("failover"), "default");
    let refused = cluster.run(&["reconfigure", "--set", "failovr=20s"]);
    assert!(refused.stderr.contains("did you mean `failover`?"), "{refused:?}");

    let done = cluster.ok(&wanted);
    assert_eq!(done.lines().count(), 2, "{done}");
    assert_eq!((value("failover"), value("replicas.demo")), ("20s".into(), "4".into()));
    assert_eq!(cluster.ok(&wanted), "every setting has that value already\n");
    let asked = cluster.run(&["reconfigure"]);
    assert!(asked.stderr.contains("nobody is there to answer"), "{asked:?}");
}

/// The settings file of a node, as the process was told.
fn file_of(cluster: &TestCluster, node: &str) -> std::path::PathBuf {
    let pid = cluster.pid(node).unwrap();
    let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let argv: Vec<String> =
        argv.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    let at = argv.iter().position(|arg| arg == "--config").unwrap();
    argv[at + 1].clone().into()
}

#[test]
fn e5_update_hamode_brings_files_into_force_node_by_node_while_writes_go_on() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let demo = || cluster.json(&["service", "show", "demo"]);
    wait_for("the service to be whole", PATIENCE, || (demo()["healthy"] == demo()["want"]).then_some(()));
    let servers = || cluster.names().iter().map(|node| cluster.pid(node)).collect::<Vec<_>>();
    let (before, same) = (pids(&demo()), servers());
    let leader = cluster.leader();
    assert_eq!(
        cluster.ok(&["update-hamode", "--plan"]),
        "nothing waits: every server that is heard runs with the settings of its file\n"
    );
    for node in cluster.names() {
        let file = file_of(&cluster, &node).display().to_string();
        cluster.ok(&["config", "set", "log.keep_mib=7", "--config", &file]);
    }
    let plan = wait_for("all to say what waits", PATIENCE, || {
        let plan = cluster.json(&["update-hamode", "--plan"]);
        (plan["nodes"].as_array()?.len() == 3).then_some(plan)
    });
    assert_eq!(plan["nodes"][2]["node"], leader.as_str(), "the Active one is the last: {plan}");
    let changes = plan["nodes"][0]["changes"].as_array().unwrap();
    assert!(changes.len() == 1 && changes[0].as_str().unwrap().ends_with("→ 7"), "{plan}");

    cluster.exec(&leader, "CREATE TABLE t (a INTEGER)");
    let over = AtomicBool::new(false);
    let (acknowledged, said) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for number in 0_u64.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let node = &cluster.names()[usize::try_from(number % 3).unwrap()];
                let body = json!({ "sql": format!("INSERT INTO t VALUES ({number})") });
                if let Ok((200, _)) = cluster.try_exec(node, uuid::Uuid::new_v4(), &body) {
                    acknowledged.push(number);
                }
            }
            acknowledged
        });
        let said = cluster.run(&["--timeout", "60s", "update-hamode"]);
        over.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), said)
    });
    assert_eq!((said.code, said.stdout.lines().count()), (0, 3), "{said:?}");
    assert_ne!(cluster.leader(), leader, "it handed over");
    assert!(acknowledged.len() > 10, "writes went on: {}", acknowledged.len());
    let rows = cluster.rows(&cluster.leader(), "SELECT a FROM t");
    let kept: Vec<u64> = rows.as_array().unwrap().iter().map(|row| row[0].as_u64().unwrap()).collect();
    assert!(acknowledged.iter().all(|number| kept.contains(number)), "an acknowledged write is lost");
    assert_eq!((pids(&demo()), servers()), (before, same), "no process was replaced");
    let waits = cluster.json(&["update-hamode", "--plan"]);
    assert_eq!(waits["nodes"], json!([]));

    // One after another: who left was back before the next one left.
    let events = cluster.status(&cluster.leader()).unwrap()["events"].clone();
    let mut away = 0;
    for event in events.as_array().unwrap().iter().rev() {
        match event["kind"].as_str().unwrap() {
            "node-left" | "node-down" => away += 1,
            "node-returned" => away -= 1,
            _ => {}
        }
        assert!(away <= 1, "{events}");
    }

    // A file that no server could begin with is found before one tries.
    let node = cluster.names().remove(0);
    std::fs::write(file_of(&cluster, &node), "[log]\nkeep = 4\n").unwrap();
    let refused = wait_for("the mistake to be known", PATIENCE, || {
        let ran = cluster.run(&["update-hamode"]);
        (ran.code != 0).then_some(ran)
    });
    assert!(refused.stderr.contains("unknown key `keep`"), "{refused:?}");
}
