//! A cluster that grows from one server, loses some and gets them back, with real processes.

use crate::cluster::{PATIENCE, wait_for};
use crate::founded::{Founded, code, run};
use serde_json::Value;
use std::time::{Duration, Instant};

/// U8, E1: after `join` nothing is left to do. One node becomes a cluster and keeps its data; the first
/// node, which leads, dies, and the others go on.
#[test]
fn u8_e1_servers_that_joined_vote_and_survive_the_first_one() {
    let mut founded = Founded::new();
    founded.write("n1", "CREATE TABLE t (n INTEGER)");
    founded.write("n1", "INSERT INTO t VALUES (1)");
    let count = |founded: &Founded, node: &str| founded.number(node, "SELECT count(*) FROM t");

    founded.add("n2", &[]);
    founded.wait_state(&["n1", "n2"], "n2", "joined");
    founded.wait_voters("n2", 1);
    assert_eq!(count(&founded, "n2"), Some(1), "what the single node had is there");
    let standing = |node| founded.ask(&["node", "show", node])["standing"].clone();
    assert_eq!((standing("n1"), standing("n2")), ("voter".into(), "standby".into()), "two voters tolerate no loss");

    founded.add("n3", &[]);
    for node in ["n1", "n2", "n3"] {
        founded.wait_voters(node, 3);
        founded.write(node, "INSERT INTO t VALUES (2)");
    }
    for node in ["n1", "n2", "n3"] {
        assert_eq!(count(&founded, node), Some(4), "at {node}");
    }

    founded.kill("n1");
    founded.write("n2", "INSERT INTO t VALUES (3)");
    founded.write("n3", "INSERT INTO t VALUES (4)");
    founded.wait_state(&["n2", "n3"], "n1", "down");
    founded.start("n1");
    founded.wait_state(&["n1", "n2", "n3"], "n1", "joined");
    founded.wait_voters("n1", 3);
    assert_eq!(count(&founded, "n1"), Some(6));
}

/// D4.
#[test]
fn d4_a_joined_node_that_leaves_is_removed_everywhere_and_comes_back_under_its_id() {
    let mut founded = Founded::grown(3);
    let before = founded.ask(&["node", "show", "n2"]);
    let left = founded.command_at("n2", &["leave", "--yes"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(founded.wait_end("n2"), "so that nobody starts it again");
    founded.wait_state(&["n1", "n3"], "n2", "removed");
    founded.write("n3", "CREATE TABLE t (n INTEGER)");
    founded.start("n2");
    founded.wait_state(&["n1", "n2", "n3"], "n2", "joined");
    let after = founded.ask(&["node", "show", "n2"]);
    assert_eq!(after["id"], before["id"]);
    assert_eq!(after["generation"].as_u64(), before["generation"].as_u64().map(|it| it + 1));
    assert_eq!(founded.number("n2", "SELECT count(*) FROM t"), Some(0));
}

#[test]
fn a_node_that_was_away_for_long_comes_back_with_its_old_data_and_finds_the_others() {
    let mut founded = Founded::grown(3);
    founded.write("n1", "CREATE TABLE t (n INTEGER)");
    founded.kill("n3");
    founded.write("n1", "INSERT INTO t VALUES (1)");
    // Whom it does not know lead it back: the fourth joined while it was away.
    founded.add("n4", &[]);
    founded.wait_state(&["n1", "n2", "n4"], "n4", "joined");
    founded.kill("n1");
    founded.start("n3");
    founded.wait_state(&["n2", "n3", "n4"], "n3", "joined");
    founded.wait_state(&["n3"], "n4", "joined");
    founded.write("n3", "INSERT INTO t VALUES (2)");
    assert_eq!(founded.number("n3", "SELECT count(*) FROM t"), Some(2));
}

/// An expelled node is cut off at once, its operator reads why, and its id never comes back.
#[test]
fn an_expelled_node_is_cut_off_told_why_and_never_comes_back() {
    let mut founded = Founded::grown(3);
    let id = founded.ask(&["node", "show", "n3"])["id"].as_str().unwrap().to_owned();
    let asked = Instant::now();
    let removed = founded.command_at("n2", &["node", "remove", "n3", "--yes"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    wait_for("n3 hears nobody any more", PATIENCE, || {
        let status = founded.status("n3")?;
        status["cluster"]["leader"].is_null().then_some(())
    });
    // One second is promised; the rest is for machines with other work.
    assert!(asked.elapsed() < Duration::from_secs(10), "after {:?}", asked.elapsed());
    let told = "was expelled";
    wait_for("n3 says why", PATIENCE, || founded.log("n3").contains(told).then_some(()));
    assert!(founded.log("n3").contains("join with a new token"));
    assert_eq!(founded.nodes(), ["n1", "n2"]);

    // Started again, it is still out, and says so.
    let said = founded.log("n3").matches(told).count();
    founded.kill("n3");
    founded.start("n3");
    wait_for("n3 says it again", PATIENCE, || (founded.log("n3").matches(told).count() > said).then_some(()));
    assert_eq!(founded.nodes(), ["n1", "n2"]);
    founded.kill("n3");
    // Its directory is not for another node, and another node gets another id.
    let token = founded.token(&[]);
    assert_eq!(code(&founded.join(&token, "n3", &[])), "old-data");
    std::fs::rename(founded.home("n3"), founded.home("n3-old")).unwrap();
    let joined = founded.join(&token, "n3", &[]);
    assert_eq!(joined.code, 0, "{joined:?}");
    founded.start("n3");
    founded.wait_voters("n3", 3);
    assert_ne!(founded.ask(&["node", "show", "n3"])["id"], Value::from(id));
}

/// It keeps running, hears nobody any more, and what it ran runs elsewhere.
#[test]
fn an_expelled_node_stops_its_services_and_says_why() {
    let mut founded = Founded::grown(3);
    ["n1", "n2", "n3"].into_iter().for_each(|name| founded.tie(name));
    founded.wait_voters("n1", 3);
    let spec = founded.home("demo.toml");
    std::fs::write(&spec, crate::show::demo("demo", 3, "")).unwrap();
    let spec = spec.display().to_string();
    let applied = || (founded.command(&["service", "apply", "-f", &spec, "--yes"]).code == 0).then_some(());
    wait_for("the spec is taken", PATIENCE, applied);
    let pid = wait_for("a copy runs on n3", PATIENCE, || {
        let demo = founded.try_ask(&["service", "show", "demo", "-o", "json"])?;
        let here = demo["replicas"].as_array()?.iter().find(|replica| replica["node"] == "n3")?.clone();
        (here["state"] == "healthy").then(|| here["pid"].as_u64())?
    });
    assert_eq!(founded.command_at("n2", &["node", "remove", "n3", "--yes"]).code, 0);
    let gone = || (!crate::show::lives(u32::try_from(pid).unwrap())).then_some(());
    wait_for("the copy on n3 ends", PATIENCE, gone);
    let status = founded.command_at("n3", &["status"]);
    assert!(status.stdout.contains("n3 was removed from the cluster, says n"), "{}", status.stdout);
    assert!(status.stdout.contains("Next: Empty the data directory and join with a new token"), "{}", status.stdout);
    assert_eq!(founded.command(&["service", "remove", "demo", "--yes"]).code, 0);
}

#[test]
fn who_joins_without_a_start_is_told_how_to_start() {
    let founded = Founded::new();
    let token = founded.token(&[]);
    let addresses = crate::cluster::free_addresses(2);
    let home = founded.home("n2").display().to_string();
    let args = ["join", &token, "--name", "n2", "--data-dir", &home, "--no-start"];
    let ran = run(&[&args[..], &["--listen", &addresses[0], "--link", &addresses[1]]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains(&format!("start it: quorate serve --data-dir {home}")), "{}", ran.stdout);
    assert!(ran.stdout.contains("1 voting manager cannot be lost"), "{}", ran.stdout);
}

/// Z4: an address may be written as an interface; which one it is, and why, is in `status`.
#[test]
fn z4_status_says_which_address_was_chosen() {
    let mut founded = Founded::new();
    let token = founded.token(&[]);
    let ports: Vec<String> = crate::cluster::free_addresses(2)
        .iter()
        .map(|address| address.rsplit_once(':').unwrap().1.to_owned())
        .collect();
    let (listen, link) = (format!("lo:{}", ports[0]), format!("tcp://[lo:ipv4]:{}", ports[1]));
    let home = founded.home("n2").display().to_string();
    let args = ["-o", "json", "join", &token, "--name", "n2", "--data-dir", &home, "--no-start"];
    let ran = run(&[&args[..], &["--listen", &listen, "--link", &link]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    founded.start("n2");
    founded.wait_state(&["n1", "n2"], "n2", "joined");
    let announced = &founded.status("n2").unwrap()["announced"];
    assert_eq!(announced["api"], format!("127.0.0.1:{}", ports[0]));
    assert_eq!(announced["link"], format!("127.0.0.1:{}", ports[1]));
    let said = founded.command_at("n2", &["status"]).stdout;
    let line = format!("n2 is reached at 127.0.0.1:{}: 127.0.0.1 is the first IPv4 address of interface lo", ports[0]);
    assert!(said.contains(&line), "{said}");
    assert!(!founded.command(&["status"]).stdout.contains("is reached at"), "n1's was written as it is");
}
