//! The operator's settings, the health that depends on them, and `doctor`, with real processes.

use crate::cli::{finished, quorate};
use crate::cluster::{PATIENCE, TestCluster, signal, wait_for};
use expect_test::expect;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;

/// A command on a file of its own, with nothing of this machine's settings.
fn config(file: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = quorate(&["config"]);
    command.args(args).arg("--config").arg(file.file_name().unwrap()).current_dir(file.parent().unwrap());
    finished(command.env_remove("QUORATE_SEED").env_remove("QUORATE_LOG").output().unwrap())
}

fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("quorate.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn settings_are_shown_with_where_they_come_from() {
    let (_directory, path) = file("[cluster]\nminimum_nodes = 2\nseed = \"192.168.1.100:7000\"\n");
    let (code, out, err) = config(&path, &["show", "cluster", "--origin"]);
    expect![[r#"
        KEY                          VALUE                   ORIGIN          APPLIES
        cluster.seed                 ["192.168.1.100:7000"]  quorate.toml:3  restart
        cluster.token_file           "/etc/quorate/token"    default         restart
        cluster.minimum_nodes        2                       quorate.toml:2  live
        cluster.timers.heartbeat     "1s"                    default         restart
        cluster.timers.discover      "3s"                    default         restart
        cluster.timers.join_attempt  "2s"                    default         restart
        cluster.timers.retry_join    30                      default         restart
    "#]]
    .assert_eq(&out);
    assert_eq!((code, err.as_str()), (0, ""));
    let (_, out, _) = config(&path, &["show", "cluster.minimum_nodes", "-o", "json"]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["settings"][0]["value"], 2);
    assert_eq!(shown["settings"][0]["default"], 1);
    let (code, _, err) = config(&path, &["show", "cluster.minimum_node"]);
    assert_eq!(code, 6);
    expect![[r#"
        error: unknown key `minimum_node` in [cluster] (command line)
        fix:   did you mean `minimum_nodes`?
    "#]]
    .assert_eq(&err);
}

#[test]
fn a_mistake_is_explained_and_nothing_is_written() {
    let (_directory, path) = file("[cluster]\nminimum_node = 2\n");
    let (code, out, err) = config(&path, &["validate"]);
    assert_eq!((code, out.as_str()), (2, ""));
    expect![[r#"
        error: unknown key `minimum_node` in [cluster] (quorate.toml, line 2, column 1)
        fix:   did you mean `minimum_nodes`?
    "#]]
    .assert_eq(&err);
    let (code, out, _) = config(&path, &["validate", "-o", "json"]);
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &answer["valid"]), (2, &json!(false)));
    assert_eq!(answer["mistakes"][0]["code"], "config-unknown-key");
    assert_eq!(answer["mistakes"][0]["place"]["line"], 2);
    let (code, _, err) = config(&path, &["set", "ha.failover_time=5s"]);
    assert_eq!(code, 2);
    expect![[r#"
        error: `ha.failover_time` cannot have the value `5s` (command line)
        why:   5s is out of range
        fix:   it takes: time span, `10s` to `5m`
    "#]]
    .assert_eq(&err);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "[cluster]\nminimum_node = 2\n");
    let (code, _, err) = config(&path.with_file_name("none.toml"), &["validate"]);
    assert_eq!(code, 1);
    expect![[r#"
        error: the configuration cannot be read (none.toml)
        why:   No such file or directory (os error 2)
        fix:   name a file that exists; an empty one is valid
    "#]]
    .assert_eq(&err);
}

#[test]
fn set_shows_what_changes_and_when_it_is_in_force() {
    let (_directory, path) = file("# ours\n[log]\nlevel = \"info\" # enough\n");
    let args = ["set", "log.level=debug", "ha.failover_time=20s", "node.alias=Moscow 1", "--plan"];
    let (code, planned, err) = config(&path, &args);
    expect![[r#"
        ~ node.alias not set → "Moscow 1"   (when a node is created or joins; a member changes it with the cluster's commands)
        ~ ha.failover_time "30s" → "20s"   (after systemctl restart quorate)
        ~ log.level "info" → "debug"   (live: systemctl reload quorate)
    "#]].assert_eq(&planned);
    expect![[r#"
        nothing was written; without --plan it goes to quorate.toml
    "#]]
    .assert_eq(&err);
    assert_eq!(code, 0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "# ours\n[log]\nlevel = \"info\" # enough\n");
    let (code, done, err) = config(&path, &args[..4]);
    assert_eq!((code, done, err.as_str()), (0, planned, "✔ written to quorate.toml\n"));
    expect![[r##"
        # ours
        [log]
        level = "debug" # enough

        [ha]
        failover_time = "20s"

        [node]
        alias = "Moscow 1"
    "##]]
    .assert_eq(&std::fs::read_to_string(&path).unwrap());
    let (_, out, _) = config(&path, &["diff"]);
    expect![[r#"
        ~ node.alias not set → "Moscow 1"   (when a node is created or joins; a member changes it with the cluster's commands)
        ~ ha.failover_time "30s" → "20s"   (after systemctl restart quorate)
        ~ log.level "info" → "debug"   (live: systemctl reload quorate)
    "#]].assert_eq(&out);
    assert_eq!(config(&path, &["set", "log.level=debug"]).2, "quorate.toml says that already\n");
    let (code, out, _) = config(&path, &["unset", "log.level", "node.alias"]);
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
    let new = path.with_file_name("new.toml");
    assert_eq!(config(&new, &["set", "cluster.minimum_nodes=2"]).0, 0, "a file that is not there is made");
    assert_eq!(std::fs::read_to_string(&new).unwrap(), "[cluster]\nminimum_nodes = 2\n");
}

#[test]
fn z5_a_kuzzle_configuration_becomes_ours() {
    let (_directory, path) = file("# ours\n");
    let sample = path.with_file_name("kuzzlerc");
    let text = r#"{ "plugins": { "cluster": { "minimumNodes": 2, "timers": { "joinAttemptIntervall": 2000 } } } }"#;
    std::fs::write(&sample, text).unwrap();
    let sample = "kuzzlerc";
    let (code, out, err) = config(&path, &["import", "kuzzle", sample]);
    assert_eq!(code, 0);
    expect![[r##"
        # Taken over from kuzzlerc by `quorate config import kuzzle`.
        [cluster]
        minimum_nodes = 2
        timers = { join_attempt = "2s" }
    "##]]
    .assert_eq(&out);
    expect![[r#"
        ! plugins.cluster.timers.joinAttemptIntervall: misspelt, so Kuzzle never read it; taken for `joinAttemptInterval`, which it was meant to be
    "#]].assert_eq(&err);
    assert_eq!(config(&path, &["import", "kuzzle", sample, "--write"]).0, 0);
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written.contains("# ours") && written.contains("minimum_nodes = 2"), "{written}");
    assert_eq!(config(&path, &["validate"]).0, 0);
}

fn health(cluster: &TestCluster, node: &str, path: &str) -> (u16, Value) {
    cluster.http.get(&format!("{}{path}", cluster.node(node).api)).unwrap()
}

/// Lines of a node's log since it began, with this in them.
fn said(cluster: &TestCluster, node: &str, what: &str) -> Option<String> {
    cluster.server_log(node).lines().find(|line| line.contains(what)).map(str::to_owned)
}

#[test]
fn z3_health_follows_the_nodes_and_a_reload_follows_the_file() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    assert_eq!(health(&cluster, "n1", "/v1/health").0, 200);
    let settings = cluster.node_dir("n1").join("quorate.toml");
    let set = |text: &str| std::fs::write(&settings, text).unwrap();
    let hangup = || signal(cluster.pid("n1").unwrap(), Signal::HUP);

    // More than there are.
    set("[cluster]\nminimum_nodes = 4\ntimers = { heartbeat = \"2s\" }\n");
    hangup();
    let (_, problem) = wait_for("n1 wants four nodes", PATIENCE, || {
        Some(health(&cluster, "n1", "/v1/health")).filter(|(status, _)| *status == 503)
    });
    assert_eq!(problem["code"], "too-few-nodes");
    assert_eq!(problem["message"], "3 of 4 nodes are joined, as n1 sees it");
    let (status, ko) = health(&cluster, "n1", "/_plugin/cluster/health");
    assert_eq!((status, &ko["error"]["message"]), (404, &json!("ko")));
    assert_eq!(health(&cluster, "n2", "/v1/health").0, 200, "each node has its own settings");
    let needs_restart = "not in force before a restart: cluster.timers.heartbeat \"1s\" → \"2s\"";
    assert!(said(&cluster, "n1", needs_restart).is_some(), "{}", cluster.server_log("n1"));

    // A broken file changes nothing.
    set("[cluster]\nminimum_node = 1\n");
    hangup();
    let complaint = wait_for("n1 complains", PATIENCE, || said(&cluster, "n1", "the settings stay as they are"));
    assert!(complaint.contains("did you mean `minimum_nodes`?"), "{complaint}");
    assert_eq!(health(&cluster, "n1", "/v1/health").0, 503);

    // Exactly as many as there are; and less of the log.
    set("[cluster]\nminimum_nodes = 3\n[log]\nlevel = \"error\"\n");
    hangup();
    let (_, ready) = wait_for("n1 wants three nodes", PATIENCE, || {
        Some(health(&cluster, "n1", "/v1/health")).filter(|(status, _)| *status == 200)
    });
    assert_eq!((&ready["joined"], &ready["minimum_nodes"]), (&json!(3), &json!(3)));
    set("[cluster]\nminimum_nodes = 3\n");
    hangup();
    let level = "in force: log.level \"error\" → \"info\"";
    wait_for("n1 logs at level info again", PATIENCE, || said(&cluster, "n1", level));
    let silenced = "in force: cluster.minimum_nodes 4 → 3";
    assert_eq!(said(&cluster, "n1", silenced), None, "it was done while only errors were logged");
    let (status, all) = health(&cluster, "n1", "/_plugin/cluster/status");
    assert_eq!((status, &all["result"]["count"]), (200, &json!(3)));
    assert_eq!(all["result"]["pool"].as_array().unwrap().len(), 2);

    // One is lost.
    cluster.kill("n3");
    wait_for("n1 is not ready without n3", PATIENCE, || {
        Some(health(&cluster, "n1", "/v1/health")).filter(|(status, _)| *status == 503)
    });
    assert_eq!(health(&cluster, "n1", "/_plugin/cluster/status").0, 404);
    // Who leads may just have been lost.
    wait_for("n2 wants one node, and there is a quorum", PATIENCE, || {
        Some(health(&cluster, "n2", "/v1/health?quorum=1")).filter(|(status, _)| *status == 200)
    });
}

#[test]
fn doctor_finds_a_node_that_is_lost_and_says_what_to_do() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let doctor = || {
        let ran = cluster.run(&["doctor", "-o", "json"]);
        let answer: Value = serde_json::from_str(&ran.stdout).unwrap();
        (ran.code, answer)
    };
    let checks = |answer: &Value, check: &str| -> Vec<Value> {
        let all = answer["checks"].as_array().unwrap();
        all.iter().filter(|finding| finding["check"] == check).cloned().collect()
    };
    // Skews are known once every node has said its time.
    let (code, well) = wait_for("all is well", PATIENCE, || {
        Some(doctor()).filter(|(_, answer)| !checks(answer, "clock skew").is_empty())
    });
    for check in [
        "configuration",
        "open files",
        "disk space",
        "disk sync",
        "quorum",
        "nodes",
        "ports",
        "clock skew",
        "identities",
    ] {
        assert_eq!(checks(&well, check).len(), 1, "{check}: {well}");
    }
    // The disk and the limits are this machine's; the cluster is ours.
    for check in ["quorum", "nodes", "ports", "clock skew", "identities", "versions"] {
        assert_eq!(checks(&well, check)[0]["verdict"], "well", "{well}");
    }
    assert_eq!(code, if well["well"] == true { 0 } else { 5 });

    cluster.kill("n3");
    let (code, ill) = wait_for("n3 is missed", PATIENCE, || {
        Some(doctor()).filter(|(_, answer)| checks(answer, "nodes")[0]["verdict"] == "bad")
    });
    assert_eq!((code, &ill["well"]), (5, &json!(false)));
    assert_eq!(checks(&ill, "nodes")[0]["fix"], "quorate dev start n3");
    let closed = checks(&ill, "ports");
    assert_eq!(closed.len(), 2, "its API and its link: {ill}");
    assert!(closed.iter().all(|finding| finding["what"].as_str().unwrap().ends_with("nothing listens")), "{ill}");
    assert_eq!(checks(&ill, "quorum")[0]["verdict"], "doubtful");
    let text = cluster.run(&["doctor"]);
    assert_eq!(text.code, 5);
    assert!(text.stdout.contains("   fix: quorate dev start n3"), "{}", text.stdout);
}
