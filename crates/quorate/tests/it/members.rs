//! Clusters made with `init` and `join`: tokens, refusals, quota, leaving, removal, with real processes.

use crate::cluster::{PATIENCE, Ran, free_addresses, wait_for};
use crate::founded::{Founded, code, run};
use serde_json::Value;

#[test]
fn e1_a_server_joins_with_the_printed_command_once() {
    let founded = Founded::new();
    let printed = founded.command(&["add-node"]).stdout;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "From the node you wish to join to this cluster, run the following:");
    let token = lines[1].trim().strip_prefix("sudo quorate join ").unwrap();
    assert!(token.starts_with(&format!("{}/", founded.api)), "{token}");
    assert_eq!(
        lines[2],
        "The token works once and expires in 1 h (role manager; --role worker|gateway for others). Join servers one at a time."
    );
    let joined = founded.join(token, "n2", &[]);
    assert_eq!(joined.code, 0, "{joined:?}");
    let joined: Value = serde_json::from_str(&joined.stdout).unwrap();
    assert_eq!((&joined["cluster_name"], &joined["name"]), (&Value::from("prod"), &Value::from("n2")));
    let node = founded.ask(&["node", "show", "n2"]);
    assert_eq!(node["id"], joined["node"]);
    assert!(founded.home("n2").join("tls/ca.key").exists(), "a manager gets the authority's key");

    let again = founded.join(token, "n3", &[]);
    assert_eq!((again.code, &*code(&again)), (7, "token-used"));
    assert!(!founded.home("n3").join("node.toml").exists());
    assert_eq!(founded.nodes(), ["n1", "n2"]);
    let tokens = founded.ask(&["node", "tokens"]);
    assert_eq!(tokens[0]["used_by"], "n2");
    let secret = token.split('/').nth(1).unwrap();
    for node in ["n1", "n2"] {
        for place in ["log", "db", "server.log"] {
            assert!(
                !contains(&founded.home(node).join(place), secret.as_bytes()),
                "the secret is in {place} of {node}"
            );
        }
    }
}

/// Whether the bytes are in a file, or in one below.
fn contains(path: &std::path::Path, bytes: &[u8]) -> bool {
    if path.is_dir() {
        return std::fs::read_dir(path).unwrap().any(|entry| contains(&entry.unwrap().path(), bytes));
    }
    std::fs::read(path).is_ok_and(|content| content.windows(bytes.len()).any(|window| window == bytes))
}

#[test]
fn two_racers_with_one_token_are_one_node() {
    let founded = Founded::new();
    let token = founded.token(&[]);
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| founded.join(&token, "n2", &[]));
        let second = founded.join(&token, "n3", &[]);
        (first.join().unwrap(), second)
    });
    let refused: Vec<&Ran> = [&first, &second].into_iter().filter(|ran| ran.code != 0).collect();
    assert_eq!(refused.len(), 1, "{first:?} {second:?}");
    assert_eq!(code(refused[0]), "token-used");
    assert_eq!(founded.nodes().len(), 2);
}

#[test]
fn u4_a_second_manager_that_asks_for_a_vote_is_refused_with_the_reason_and_its_token_is_not_used_up() {
    let founded = Founded::new();
    let token = founded.token(&[]);
    let refused = founded.join(&token, "n2", &["--voter"]);
    assert_eq!((refused.code, &*code(&refused)), (7, "even-voters"), "{refused:?}");
    assert!(refused.stderr.contains("with n2 there would be 2 voters"), "{}", refused.stderr);
    assert_eq!(founded.nodes(), ["n1"]);
    assert_eq!(founded.ask(&["node", "tokens"])[0]["used_by"], Value::Null);
}

#[test]
fn wrong_tokens_are_refused_and_change_nothing() {
    let (founded, other) = (Founded::new(), Founded::new());
    let token = founded.token(&[]);
    for damaged in [&token[..token.len() - 1], &token[..token.find('/').unwrap()], &token.replacen('/', "/a", 1)] {
        assert_eq!(code(&founded.join(damaged, "n2", &[])), "bad-token", "{damaged}");
    }
    // The right secret and authority, led to another cluster: it gets to know nothing.
    let led_astray = token.replacen(&founded.api, &other.api, 1);
    assert_eq!(code(&founded.join(&led_astray, "n2", &[])), "other-cluster");
    let log = std::fs::read_to_string(other.home("n1").join("server.log")).unwrap();
    assert!(!log.contains("may not join"), "the other cluster was asked: {log}");
    // A secret that this cluster does not know.
    let foreign = other.token(&[]);
    let parts: Vec<&str> = token.split('/').collect();
    let mixed = format!("{}/{}/{}", parts[0], foreign.split('/').nth(1).unwrap(), parts[2]);
    assert_eq!(code(&founded.join(&mixed, "n2", &[])), "token-unknown");

    let worker = founded.token(&["--role", "worker"]);
    assert_eq!(code(&founded.join(&worker, "n2", &["--role", "manager"])), "wrong-role");
    let named = founded.token(&["--name", "n7"]);
    assert_eq!(code(&founded.join(&named, "n2", &[])), "wrong-name");
    let short = founded.ask(&["add-node", "--ttl", "1s"]);
    let expires = short["token"]["expires"].as_u64().unwrap();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    wait_for("the token to expire", PATIENCE, || (now() > expires).then_some(()));
    let short = short["commands"][0].as_str().unwrap().strip_prefix("quorate join ").unwrap();
    assert_eq!(code(&founded.join(short, "n2", &[])), "token-expired");
    let revoked = founded.ask(&["node", "tokens"])[0]["id"].as_str().unwrap().to_owned();
    founded.ask(&["node", "revoke", &revoked]);
    assert_eq!(code(&founded.join(&token, "n2", &[])), "token-unknown");
    assert_eq!(founded.nodes(), ["n1"]);
    // Whoever was turned away is written down, with why and from where; whoever asked nobody is not.
    let refused = wait_for("the audit has all of them", PATIENCE, || {
        let audit = founded.ask(&["audit", "list"]);
        let joins = audit.as_array()?.iter().filter(|entry| entry["what"] == "join");
        let joins: Vec<String> = joins.map(|entry| entry.to_string()).collect();
        let codes = ["token-unknown", "wrong-role", "wrong-name", "token-expired"];
        codes.iter().all(|code| joins.iter().any(|entry| entry.contains(code))).then_some(joins)
    });
    assert!(refused.iter().all(|entry| entry.contains("127.0.0.1") && !entry.contains("bad-token")), "{refused:?}");
}

#[test]
fn names_and_old_data_are_not_taken_over() {
    let founded = Founded::new();
    let token = founded.token(&[]);
    let taken = founded.join(&token, "n1", &[]);
    assert_eq!(code(&taken), "old-data", "its directory is that of the first node");
    let elsewhere = founded.home("elsewhere").display().to_string();
    let addresses = free_addresses(2);
    let args = ["-o", "json", "join", &token, "--name", "n1", "--data-dir", &elsewhere, "--no-start"];
    let args = [&args[..], &["--listen", &addresses[0], "--link", &addresses[1]]].concat();
    assert_eq!(code(&run(&args)), "name-taken");
    // Nothing was used up, and the same directory may be used with another name.
    let args: Vec<&str> = args.iter().map(|arg| if *arg == "n1" { "n2" } else { arg }).collect();
    assert_eq!(run(&args).code, 0);
    assert_eq!(code(&run(&args)), "old-data");
    let home = founded.home("n1").display().to_string();
    assert_eq!(code(&run(&["-o", "json", "init", "--data-dir", &home, "--no-start"])), "old-data");
}

#[test]
fn d3_beyond_the_quota_nobody_joins_and_a_raise_needs_no_restart() {
    let founded = Founded::new();
    assert_eq!(founded.ask(&["cluster", "quota", "1"])["used"], 1);
    let token = founded.token(&[]);
    let refused = founded.join(&token, "n2", &[]);
    assert_eq!(code(&refused), "quota-reached");
    let text = "Your current subscription does not allow more nodes running. Please upgrade to add more nodes.";
    assert!(refused.stderr.contains(text), "at the refused node: {}", refused.stderr);
    let log = std::fs::read_to_string(founded.home("n1").join("server.log")).unwrap();
    assert!(log.contains(text), "in the manager's log: {log}");
    founded.ask(&["cluster", "quota", "2"]);
    let joined = founded.join(&token, "n2", &[]);
    assert_eq!(joined.code, 0, "{joined:?}");
    assert_eq!(founded.ask(&["cluster", "quota", "none"])["nodes"], Value::Null);
}

#[test]
fn d4_a_node_that_leaves_ends_and_comes_back_when_it_is_started() {
    let mut founded = Founded::new();
    let before = founded.ask(&["node", "show", "n1"])["generation"].as_u64().unwrap();
    let left = founded.command(&["leave", "--yes"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(founded.wait_end("n1"), "so that nobody starts it again");
    founded.start("n1");
    wait_for("it is back", PATIENCE, || {
        let node = founded.try_ask(&["node", "show", "n1", "-o", "json"])?;
        (node["state"] == "joined" && node["generation"].as_u64() == Some(before + 1)).then_some(())
    });
    let events = founded.ask(&["events"]);
    let kinds: Vec<&str> = events.as_array().unwrap().iter().filter_map(|event| event["kind"].as_str()).collect();
    assert!(kinds.contains(&"node-left"), "{kinds:?}");
}

#[test]
fn k2_a_node_has_an_alias_and_one_that_is_removed_is_gone_for_ever() {
    let founded = Founded::new();
    let token = founded.token(&[]);
    assert_eq!(founded.join(&token, "n2", &[]).code, 0);
    assert_eq!(founded.ask(&["node", "alias", "n2", "msk-2"])["alias"], "msk-2");
    let id = founded.ask(&["node", "show", "n2"])["id"].as_str().unwrap().to_owned();
    assert_eq!(founded.ask(&["node", "show", &id[..8]])["alias"], "msk-2");
    assert_eq!(code(&founded.command(&["-o", "json", "node", "remove", "n2"])), "needs-yes");
    founded.ask(&["node", "remove", "n2", "--yes"]);
    assert_eq!(founded.nodes(), ["n1"]);
    assert_eq!(code(&founded.command(&["-o", "json", "node", "show", "n2"])), "unknown-node");
}
