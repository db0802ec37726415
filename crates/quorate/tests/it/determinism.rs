//! Three servers whose clocks differ by a day write the same tables.

use crate::cluster::{PATIENCE, TestCluster, TestNode, free_addresses, wait_for};
use crate::durability::{nodes_agree, same_everywhere};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use quorate_trust::ca::Ca;
use quorate_trust::key::NodeKey;
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// What each node's clock is off by.
const CLOCKS: [(&str, &str); 3] = [("n1", "+1d"), ("n2", "-3h"), ("n3", "+0")];

fn start() -> TestCluster {
    let private = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
    let dir = private.path().canonicalize().unwrap();
    let addresses = free_addresses(6);
    let (apis, links) = addresses.split_at(3);
    let ids: Vec<Uuid> = (0..3).map(|_| Uuid::new_v4()).collect();
    let voters = (0..3).map(|i| format!("[[voter]]\nid = '{}'\nname = 'n{}'\nlink = '{}'\n", ids[i], i + 1, links[i]));
    let cluster = Uuid::new_v4();
    let common = format!("[cluster]\nid = '{cluster}'\nname = 'clocks'\n{}", voters.collect::<String>());
    // Made by a clock that is right. One of the three is behind by more than certificates are backdated.
    let made = WallTime(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap());
    let ca = Ca::create(ClusterId(cluster), made, 1).unwrap();
    for (i, (name, _)) in CLOCKS.into_iter().enumerate() {
        let node = dir.join(name);
        std::fs::create_dir(&node).unwrap();
        let this = format!("[node]\nid = '{}'\nname = '{name}'\nroles = ['manager']\nauth = 'open'\n", ids[i]);
        let text = format!("{common}{this}api = '{}'\nlink = '{}'\n", apis[i], links[i]);
        std::fs::write(node.join("node.toml"), text).unwrap();
        let key = NodeKey::generate().unwrap();
        let certificate = ca.issue(&key.request().unwrap(), NodeId(ids[i]), &[], made, 2 + i as u128).unwrap();
        let files = [
            ("ca.crt", ca.certificate().to_pem()),
            ("node.crt", certificate.to_pem()),
            ("node.key", key.to_pem().to_string()),
        ];
        std::fs::create_dir(node.join("tls")).unwrap();
        for (name, text) in files {
            std::fs::write(node.join("tls").join(name), text).unwrap();
        }
    }
    let nodes = CLOCKS.iter().zip(apis);
    let nodes = nodes.map(|((name, _), api)| TestNode { name: (*name).to_owned(), api: format!("http://{api}") });
    let serve = |(name, clock): (&str, &str)| {
        let node = dir.join(name);
        let log = std::fs::File::create(node.join("server.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["serve", "--data-dir"]).arg(&node).stdin(Stdio::null()).stderr(log);
        // Where Debian's package libfaketime has it on every architecture.
        command.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1");
        command.env("FAKETIME", clock).env("DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
        command.spawn().unwrap()
    };
    // The one that is ahead comes last: were it the first leader, before it has heard both others,
    // its clock would count.
    let processes = vec![serve(CLOCKS[2]), serve(CLOCKS[1])];
    let mut cluster = TestCluster::of(nodes.collect(), processes, private);
    cluster.leader();
    cluster.processes.push(serve(CLOCKS[0]));
    cluster.wait_whole();
    cluster
}

fn lead(cluster: &TestCluster, node: &str) {
    wait_for(&format!("{node} leads"), PATIENCE, || {
        let leader = cluster.leader();
        if leader != node {
            let url = format!("{}/v1/raft/transfer", cluster.node(&leader).api);
            // What came of it shows in who leads.
            let _ = cluster.http.post(&url, None, &json!({ "node": node }));
        }
        (leader == node).then_some(())
    });
}

const SCHEMA: [&str; 4] = [
    "CREATE TABLE t(n INTEGER PRIMARY KEY, leader TEXT, at TEXT DEFAULT CURRENT_TIMESTAMP,
        precise TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')), r INTEGER DEFAULT (random()),
        b BLOB DEFAULT (randomblob(8)))",
    "CREATE TABLE history(n INTEGER, at TEXT, r INTEGER)",
    "CREATE TRIGGER note AFTER INSERT ON t BEGIN
        INSERT INTO history VALUES (new.n, datetime('now'), random()); END",
    "CREATE TABLE mixed(position INTEGER PRIMARY KEY, n INTEGER)",
];

#[test]
fn time_and_randomness_are_the_same_on_nodes_with_different_clocks() {
    let cluster = start();
    for sql in SCHEMA {
        cluster.exec("n1", sql);
    }
    for leader in ["n3", "n1", "n2", "n3"] {
        lead(&cluster, leader);
        for node in cluster.names() {
            for _ in 0..5 {
                cluster.exec(&node, &format!("INSERT INTO t(leader) VALUES ('{leader}')"));
            }
            cluster.exec(&node, "INSERT INTO mixed(n) SELECT n FROM t ORDER BY random()");
        }
    }
    let rows = same_everywhere(&cluster, "SELECT n, leader, at, precise, r, hex(b) FROM t ORDER BY n");
    assert_eq!(rows.len(), 60);
    assert_eq!(same_everywhere(&cluster, "SELECT * FROM history ORDER BY rowid").len(), 60);
    let mixed = same_everywhere(&cluster, "SELECT * FROM mixed ORDER BY position");
    assert!(mixed.windows(2).any(|pair| pair[0][1].as_i64() > pair[1][1].as_i64()), "the order is random");

    let column = |i: usize| rows.iter().map(move |row| row[i].to_string());
    assert!(column(2).is_sorted() && column(3).is_sorted(), "time never runs backwards: {rows:?}");
    let distinct: std::collections::BTreeSet<String> = column(4).chain(column(5)).collect();
    assert_eq!(distinct.len(), 120, "randomness differs from entry to entry");

    // The clocks do differ, and the cluster's time is that of the most.
    let day = |node: &str| cluster.server_log(node)[..10].to_owned();
    assert_ne!(day("n1"), day("n3"), "libfaketime is in force");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let latest = cluster.local("n2", "SELECT unixepoch(max(at)) FROM t")["results"][0]["rows"][0][0].as_u64().unwrap();
    assert!(latest.abs_diff(now) < 60, "the cluster says {latest} and it is {now}");
    nodes_agree(&cluster);
}
