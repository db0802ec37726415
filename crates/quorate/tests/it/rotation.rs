//! A new authority for a cluster that was made by `init` and `join`.

use crate::cluster::{PATIENCE, wait_for};
use crate::founded::{Founded, code, run};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn authority(founded: &Founded, node: &str) -> Option<Value> {
    let ran = founded.command_at(node, &["cert", "show", "-o", "json"]);
    let shown: Value = serde_json::from_str(&ran.stdout).ok()?;
    let keys = shown["keys"].as_array()?.iter().find(|key| key["key"] == "authority").cloned();
    keys.map(|key| serde_json::json!({ "number": key["number"], "stage": key["stage"], "all": shown["authorities"] }))
}

fn wait_stage(founded: &Founded, node: &str, stage: &str) -> Value {
    wait_for(&format!("{stage} at {node}"), PATIENCE, || {
        authority(founded, node).filter(|key| key["number"] == 2 && key["stage"] == stage)
    })
}

#[test]
fn a_cluster_that_was_joined_changes_its_ca_while_somebody_writes_and_one_server_is_off() {
    let mut founded = Founded::grown(3);
    founded.add("n4", &["--role", "worker"]);
    founded.wait_state(&["n1", "n4"], "n4", "joined");
    founded.write("n1", "CREATE TABLE t (n INTEGER)");
    let old = authority(&founded, "n1").unwrap()["all"][0]["fingerprint"].as_str().unwrap().to_owned();
    let waiting = founded.token(&[]);
    founded.kill("n3");

    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let home = founded.home("n2").join("api.sock").display().to_string();
            let exec = ["--server", &format!("unix:{home}"), "db", "exec", "INSERT INTO t VALUES (1)"];
            let mut failed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let ran = run(&exec);
                match ran.code {
                    0 => drop(written.fetch_add(1, Ordering::Relaxed)),
                    _ => failed.push(ran),
                }
            }
            failed
        });
        assert_eq!(founded.command(&["cert", "rotate", "--yes"]).code, 0);
        // It waits for the one that is off, and everybody else has the new one already.
        wait_stage(&founded, "n1", "spread");
        let before = written.load(Ordering::Relaxed);
        wait_for("writes go on", PATIENCE, || (written.load(Ordering::Relaxed) > before).then_some(()));
        over.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap().is_empty(), "no write failed");
    });
    founded.start("n3");
    let new = ["n1", "n2", "n3", "n4"].map(|node| wait_stage(&founded, node, "done")["all"].clone());
    assert!(new.iter().all(|it| it.as_array().unwrap().len() == 1 && *it == new[0]), "{new:?}");
    let new = new[0][0]["fingerprint"].as_str().unwrap();
    assert_ne!(new, old);
    founded.wait_voters("n3", 3);
    founded.wait_state(&["n1", "n2", "n3"], "n4", "joined");

    // The old one is believed by nobody, and no server has it any more.
    for node in ["n1", "n2", "n3", "n4"] {
        let tls = founded.home(node).join("tls");
        let believed = std::fs::read_to_string(tls.join("ca.crt")).unwrap();
        assert_eq!(believed.matches("BEGIN CERTIFICATE").count(), 1, "{node}");
    }
    let url = format!("https://{}", founded.api);
    assert_eq!(run(&["--server", &url, "--ca-pin", &old, "api", "GET", "/v1/health"]).code, 3);
    assert_eq!(run(&["--server", &url, "--ca-pin", new, "api", "GET", "/v1/health"]).code, 0);
    assert_eq!(code(&founded.join(&waiting, "n5", &[])), "other-cluster");
    founded.add("n5", &["--role", "worker"]);
    founded.wait_state(&["n1", "n5"], "n5", "joined");

    // What is on the disks is enough to start with, and nothing that was written is gone.
    ["n1", "n2", "n3"].iter().for_each(|node| founded.kill(node));
    ["n3", "n2", "n1"].iter().for_each(|node| founded.start(node));
    ["n1", "n2", "n3"].iter().for_each(|node| founded.wait_voters(node, 3));
    let rows = founded.number("n2", "SELECT count(*) FROM t").unwrap();
    assert_eq!(rows as u64, written.into_inner());
}
