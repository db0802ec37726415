//! Servers that come back after the CA was rotated without them. Nobody believes them and they believe
//! nobody, so they cannot be told anything: they have to see by themselves what happened.

use crate::cluster::{PATIENCE, wait_for};
use crate::founded::{Founded, code};
use crate::show::lives;
use crate::trusting::{Plan, Trusting, days_ago, now};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Rotates the CA and waits until it is over at these nodes.
fn rotate(founded: &Founded, nodes: &[&str]) {
    assert_eq!(founded.command(&["cert", "rotate", "--yes"]).code, 0);
    for node in nodes {
        wait_for(&format!("the new CA is the only one at {node}"), PATIENCE, || {
            let ran = founded.command_at(node, &["cert", "show", "-o", "json"]);
            let shown: Value = serde_json::from_str(&ran.stdout).ok()?;
            let key = shown["keys"].as_array()?.iter().find(|key| key["key"] == "authority")?.clone();
            (key["number"] == 2 && key["stage"] == "done").then_some(())
        });
    }
}

/// Waits until a node says of itself that it missed the rotation, wherever somebody may look.
fn says_so(founded: &Founded, node: &str, strangers: &[&str]) {
    let status = wait_for("it sees that all are strangers", PATIENCE, || {
        let status = founded.status(node)?;
        status["strangers"].is_array().then_some(status)
    });
    assert_eq!(status["strangers"], serde_json::json!(strangers));
    let advice = format!("`quorate node remove {node}` on another node");
    let missed = format!("{node} was away while the CA was rotated");
    let status = founded.command_at(node, &["status"]).stdout;
    assert!(status.contains("✕ not believed") && status.contains(&missed) && status.contains(&advice), "{status}");
    let doctor = founded.command_at(node, &["doctor"]);
    assert!(doctor.code != 0 && doctor.stdout.contains(&missed) && doctor.stdout.contains(&advice), "{doctor:?}");
    let health = founded.command_at(node, &["-o", "json", "api", "GET", "/v1/health"]);
    assert_eq!(code(&health), "missed-rotation");
    assert!(founded.log(node).contains("if the CA was rotated while one of them was away"));
}

/// The way back that it is told.
fn join_anew(founded: &mut Founded, node: &str) {
    founded.kill(node);
    std::fs::remove_dir_all(founded.home(node)).unwrap();
    founded.add(node, &[]);
    founded.wait_voters("n1", 3);
    founded.wait_state(&["n1", "n2"], node, "joined");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).output().unwrap();
    assert!(copied.status.success(), "{copied:?}");
}

/// Its disk is put back to what it was before the rotation, which is what it has after ten minutes' absence.
/// (That nobody waits longer than that is tested where ten minutes cost nothing, in `quorate-node`.)
#[test]
fn a_server_that_missed_a_whole_rotation_says_so_and_what_brings_it_back() {
    let mut founded = Founded::grown(3);
    founded.write("n1", "CREATE TABLE t (n INTEGER)");
    founded.kill("n3");
    let before = founded.home("n3-before");
    copy(&founded.home("n3"), &before);
    founded.start("n3");
    founded.wait_voters("n1", 3);
    rotate(&founded, &["n1", "n2", "n3"]);
    founded.kill("n3");
    std::fs::remove_dir_all(founded.home("n3")).unwrap();
    std::fs::rename(&before, founded.home("n3")).unwrap();

    founded.start("n3");
    says_so(&founded, "n3", &["n1", "n2"]);
    founded.wait_state(&["n1", "n2"], "n3", "down");
    founded.write("n2", "INSERT INTO t VALUES (1)");
    assert_eq!(founded.command(&["node", "remove", "n3", "--yes"]).code, 0);
    join_anew(&mut founded, "n3");
    assert_eq!(founded.number("n3", "SELECT count(*) FROM t"), Some(1));
}

/// reliability.md §5.5, "removed node returns": the CA is rotated after a removal, as `cert show` advises. Whoever
/// was off then is never told that it was expelled, and must not run for ever what runs elsewhere.
#[test]
fn an_expelled_server_that_comes_back_after_the_rotation_ends_what_it_ran() {
    let mut founded = Founded::grown(3);
    ["n1", "n2", "n3"].into_iter().for_each(|name| founded.tie(name));
    founded.wait_voters("n1", 3);
    let spec = founded.home("demo.toml");
    std::fs::write(&spec, crate::show::demo("demo", 3, "")).unwrap();
    let spec = spec.display().to_string();
    wait_for("the spec is taken", PATIENCE, || {
        (founded.command(&["service", "apply", "-f", &spec, "--yes"]).code == 0).then_some(())
    });
    let pid = wait_for("a copy runs on n3", PATIENCE, || {
        let demo = founded.try_ask(&["service", "show", "demo", "-o", "json"])?;
        let here = demo["replicas"].as_array()?.iter().find(|replica| replica["node"] == "n3")?.clone();
        (here["state"] == "healthy").then(|| here["pid"].as_u64())?
    });
    let pid = u32::try_from(pid).unwrap();
    founded.kill("n3");
    assert!(lives(pid), "what it ran survives it");
    assert_eq!(founded.command(&["node", "remove", "n3", "--yes"]).code, 0);
    rotate(&founded, &["n1", "n2"]);

    founded.start("n3");
    says_so(&founded, "n3", &["n1", "n2"]);
    wait_for("the copy on n3 ends", PATIENCE, || (!lives(pid)).then_some(()));
    // Nor does it begin again with what it remembers.
    founded.kill("n3");
    founded.start("n3");
    says_so(&founded, "n3", &["n1", "n2"]);
    let demo = founded.command_at("n3", &["service", "show", "demo", "-o", "json"]).stdout;
    assert!(!processes_on(&founded, "n3"), "{demo}");
    assert_eq!(founded.nodes(), ["n1", "n2"]);
    join_anew(&mut founded, "n3");
    assert_eq!(founded.command(&["service", "remove", "demo", "--yes"]).code, 0);
}

/// Whether a replica runs out of this node's directory.
fn processes_on(founded: &Founded, node: &str) -> bool {
    let home = founded.home(node).display().to_string();
    let server = founded.pid(node);
    crate::cluster::processes_of(&home).keys().any(|pid| *pid != server)
}

/// Its certificate ended meanwhile, so nobody looks far enough to see that it was expelled; whom it asks for a
/// new one says so.
#[test]
fn a_worker_that_was_expelled_and_off_until_its_certificate_ended_is_told_by_whom_it_asks_for_another() {
    let all = &["n1", "n2", "n3"];
    let mut cluster = Trusting::start(&Plan { nodes: 4, keepers: all, made: now(), found_at: None });
    cluster.kill("n4");
    assert_eq!(cluster.ran("n1", &["node", "remove", "n4", "--yes"]).code, 0);
    cluster.certify("n4", days_ago(40));
    cluster.run("n4");
    let by = wait_for("it is told", PATIENCE, || {
        cluster.try_ask("n4", &["status"])?["expelled_by"].as_str().map(str::to_owned)
    });
    assert!(all.contains(&&*by), "{by}");
    let status = cluster.ran("n4", &["status"]).stdout;
    assert!(status.contains("Next: Empty the data directory and join with a new token"), "{status}");
}
