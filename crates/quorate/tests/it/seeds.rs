//! Servers that join by themselves: a seed and a token in a file are all that they are told.

use crate::cluster::{PATIENCE, Ran, free_addresses, wait_for};
use crate::founded::{Founded, quorate};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// A server's settings: seeds, its token's file, and addresses that other tests do not use.
fn prepare(home: &Path, seeds: &[&str], token: &str, more: &str) {
    std::fs::create_dir_all(home).unwrap();
    std::fs::write(home.join("token"), token).unwrap();
    let (addresses, token_file) = (free_addresses(2), home.join("token").display().to_string());
    let settings = format!(
        "[node]\nlisten = {:?}\nlink = {:?}\n[cluster]\nseed = {seeds:?}\ntoken_file = {token_file:?}\n{more}",
        addresses[0], addresses[1]
    );
    std::fs::write(home.join("quorate.toml"), settings).unwrap();
}

/// `serve` that ends by itself.
fn serve_until_it_ends(home: &Path) -> (Ran, Duration) {
    let started = Instant::now();
    let mut command = quorate(&["serve", "--data-dir"]);
    let output = command.arg(home.join("data")).arg("--config").arg(home.join("quorate.toml")).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) };
    (ran, started.elapsed())
}

/// An address that nobody listens on for the time of the test: held, and never accepted at.
fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[test]
fn d2_a_seed_and_a_token_are_all_that_a_gateway_needs() {
    let mut founded = Founded::new();
    let token = founded.token(&["--role", "gateway"]);
    let home = founded.home("gw");
    // One seed is away; the other is given by its name. The file holds the line as it was printed.
    let by_name = founded.api.replace("127.0.0.1", "localhost");
    let line = format!("sudo quorate join {token}\n");
    prepare(&home, &["127.0.0.1:1", &by_name], &line, "[cluster.timers]\nheartbeat = \"1s\"\n");
    founded.start("gw");
    let node = wait_for("the gateway joins", PATIENCE, || {
        let nodes = founded.ask(&["node", "list"]);
        nodes.as_array()?.iter().find(|node| node["roles"] == serde_json::json!(["gateway"])).cloned()
    });
    let name = node["name"].as_str().unwrap();
    founded.wait_state(&["n1", "gw"], name, "joined");
    let id = format!("gateway_{}", node["id"].as_str().unwrap());
    assert!(founded.log("gw").contains(&format!("joined cluster prod through {by_name}, as {id}")));
    assert!(founded.log("n1").contains(&id), "the manager's log has it too");
    assert!(!home.join("token").exists(), "the token is used");

    // Started again it is a node, and needs no token.
    founded.kill("gw");
    founded.start("gw");
    founded.wait_state(&["gw"], name, "joined");
    assert_eq!(founded.nodes().len(), 2);
}

#[test]
fn a_refusal_that_only_a_person_can_change_ends_the_attempts_at_once() {
    let founded = Founded::new();
    let token = founded.token(&["--role", "worker"]);
    assert_eq!(founded.join(&token, "n2", &[]).code, 0);
    let home = founded.home("late");
    prepare(&home, &[&founded.api], &token, "");
    let (ran, _) = serve_until_it_ends(&home);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("attempt 1 of 30") && !ran.stderr.contains("attempt 2"), "{}", ran.stderr);
    assert!(ran.stderr.contains("was already used by n2") && ran.stderr.contains("fix:"), "{}", ran.stderr);
    assert!(home.join("token").exists(), "it is not this server's to remove");
    std::fs::remove_file(home.join("token")).unwrap();
    let (ran, _) = serve_until_it_ends(&home);
    assert!(ran.stderr.contains("needs a token") && ran.stderr.contains("quorate add-node"), "{}", ran.stderr);
    assert_eq!(founded.nodes(), ["n1", "n2"]);
}

/// Z5: each of the three changes a time that was measured.
#[test]
fn z5_a_server_joins_as_often_as_patiently_and_with_such_pauses_as_its_timers_say() {
    let dir = tempfile::tempdir().unwrap();
    // Any token will do: nobody ever sees it.
    let token = format!("127.0.0.1:1/{}/{}", "a".repeat(32), "0".repeat(64));
    let (_held, mute) = mute();
    let time = |name: &str, retry_join: u32, join_attempt: &str, discover: &str| {
        let timers = format!(
            "[cluster.timers]\nretry_join = {retry_join}\njoin_attempt = {join_attempt:?}\ndiscover = {discover:?}\n"
        );
        let home = dir.path().join(name);
        prepare(&home, &[&mute], &token, &timers);
        let (ran, took) = serve_until_it_ends(&home);
        assert_eq!(ran.code, 10, "{ran:?}");
        let last = format!("attempt {retry_join} of {retry_join}");
        assert!(ran.stderr.contains(&last), "{}", ran.stderr);
        assert!(ran.stderr.contains("start this server again"), "{}", ran.stderr);
        took
    };
    let (once, often) = (time("once", 1, "100ms", "200ms"), time("often", 8, "100ms", "200ms"));
    // 1 × 200 ms, and 8 × 200 ms with 7 pauses of 100 ms.
    assert!(once >= Duration::from_millis(200) && often >= Duration::from_millis(2_300), "{once:?} {often:?}");
    let far_apart = time("far-apart", 2, "1500ms", "200ms");
    assert!(far_apart >= Duration::from_millis(1_900) && far_apart > once, "{once:?} {far_apart:?}");
    let patient = time("patient", 1, "100ms", "2s");
    assert!(patient >= Duration::from_secs(2) && patient > once, "{once:?} {patient:?}");
}
