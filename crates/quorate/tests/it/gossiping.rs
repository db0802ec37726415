//! Gossip of real servers: whom it hears of while they run, and how soon.

use crate::cluster::{PATIENCE, signal, wait_for};
use crate::founded::Founded;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The line that a server logs of a rumor.
fn rumor(founded: &Founded, at: &str, of: &str, rumor: &str) -> usize {
    let id = founded.ask(&["node", "show", of])["id"].as_str().unwrap().to_owned();
    let log = founded.log(at);
    let said = |line: &&str| line.contains(&format!("gossip node={id}")) && line.contains(&format!("rumor={rumor}"));
    log.lines().filter(said).count()
}

/// D5: what a node says of another is learnt while they run, of one that joined a moment ago too.
#[test]
fn d5_nodes_that_joined_are_heard_of_by_gossip_when_they_fall_silent_return_and_leave() {
    let mut founded = Founded::new();
    assert!(!founded.log("n1").contains("gossiping"), "a single node gossips with nobody");
    founded.add("n2", &[]);
    founded.add("n3", &[]);
    founded.wait_voters("n1", 3);
    assert!(founded.log("n1").contains("gossiping"));
    for joined in ["n3", "n4"] {
        if joined == "n4" {
            founded.add("n4", &[]);
        }
        let others = ["n1", "n2"];
        for at in others {
            wait_for(&format!("{at} hears of {joined}"), PATIENCE, || {
                (rumor(&founded, at, joined, "Alive") > 0).then_some(())
            });
        }
        signal(founded.pid(joined), Signal::STOP);
        for at in others {
            wait_for(&format!("{at} hears that {joined} is silent"), PATIENCE, || {
                (rumor(&founded, at, joined, "Unreachable") > 0).then_some(())
            });
        }
        signal(founded.pid(joined), Signal::CONT);
        founded.wait_state(&others, joined, "joined");
    }
    assert_eq!(founded.command_at("n4", &["leave", "--yes"]).code, 0);
    assert!(founded.wait_end("n4"));
    founded.wait_state(&["n1", "n2", "n3"], "n4", "removed");
    for at in ["n1", "n2", "n3"] {
        assert!(rumor(&founded, at, "n4", "Left") > 0, "at {at}");
    }
}

/// D4: who stops cleanly says so itself. Two of three managers are dead, so nobody could decide it.
#[test]
fn d4_a_clean_stop_is_known_without_a_leader_and_a_silent_node_soon() {
    let mut founded = Founded::grown(3);
    founded.add("n4", &["--role", "worker"]);
    founded.add("n5", &["--role", "worker"]);
    for of in ["n4", "n5"] {
        founded.wait_state(&["n3", "n4", "n5"], of, "joined");
        wait_for("n3 hears it gossip", PATIENCE, || (rumor(&founded, "n3", of, "Alive") > 0).then_some(()));
    }
    founded.kill("n1");
    founded.kill("n2");
    wait_for("nobody leads", PATIENCE, || founded.status("n3")?["cluster"]["leader"].is_null().then_some(()));
    let stopped = Instant::now();
    signal(founded.pid("n4"), Signal::TERM);
    founded.wait_state(&["n3", "n5"], "n4", "removed");
    // Milliseconds, on a machine without other work.
    assert!(stopped.elapsed() < Duration::from_secs(8), "after {:?}", stopped.elapsed());
    assert!(founded.wait_end("n4"));
    let stopped = Instant::now();
    signal(founded.pid("n5"), Signal::STOP);
    founded.wait_state(&["n3"], "n5", "unreachable");
    // A second.
    assert!(stopped.elapsed() < Duration::from_secs(10), "after {:?}", stopped.elapsed());
}

/// The key is the newest in use, and no other opens anything.
fn has_key(founded: &Founded, node: &str, key: u32) -> bool {
    let file = std::fs::read_to_string(founded.home(node).join("tls/gossip.key")).unwrap();
    file.lines().count() == 1 && file.starts_with(&format!("{key} "))
}

#[test]
fn whoever_was_expelled_knows_no_key_of_gossip_and_whoever_was_away_gets_the_new_one() {
    let mut founded = Founded::grown(3);
    founded.add("n4", &["--role", "worker"]);
    founded.wait_state(&["n1", "n4"], "n4", "joined");
    founded.kill("n3");
    assert_eq!(founded.command(&["node", "remove", "n4", "--yes"]).code, 0);
    for node in ["n1", "n2"] {
        wait_for(&format!("{node} has the second key alone"), PATIENCE, || has_key(&founded, node, 2).then_some(()));
    }
    founded.start("n3");
    wait_for("who was away has it", PATIENCE, || has_key(&founded, "n3", 2).then_some(()));
    assert!(has_key(&founded, "n4", 1), "the expelled one has what it had");
    founded.add("n5", &["--role", "worker"]);
    assert!(has_key(&founded, "n5", 2), "who joins later gets the newest");
    wait_for("n1 hears n5 gossip", PATIENCE, || (rumor(&founded, "n1", "n5", "Alive") > 0).then_some(()));
}

/// How long it takes until a stopped node is shown as unreachable.
fn silence_until_shown(heartbeat: &str) -> Duration {
    let mut founded = Founded::with_settings(&format!("[cluster.timers]\nheartbeat = \"{heartbeat}\"\n"));
    founded.add("n2", &["--role", "worker"]);
    founded.wait_state(&["n1", "n2"], "n2", "joined");
    wait_for("n1 hears n2 gossip", PATIENCE, || (rumor(&founded, "n1", "n2", "Alive") > 0).then_some(()));
    let stopped = Instant::now();
    signal(founded.pid("n2"), Signal::STOP);
    wait_for("n2 is not shown as joined", PATIENCE, || (founded.state("n1", "n2")? != "joined").then_some(()));
    stopped.elapsed()
}

#[test]
fn z5_a_longer_heartbeat_shows_a_silent_node_later() {
    let (usual, patient) = (silence_until_shown("1s"), silence_until_shown("4s"));
    // 2 s and 8 s; a machine with other work is late, and never early by more than gossip may guess.
    assert!(patient > Duration::from_secs(6), "after {patient:?}, and with 1 s after {usual:?}");
    assert!(patient > usual, "after {patient:?}, and with 1 s after {usual:?}");
}
