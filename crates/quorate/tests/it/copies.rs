//! Copies of a node's data directory: restored, run twice, brought back after the node was removed.

use crate::cluster::{PATIENCE, wait_for};
use crate::lan::Lan;

/// Puts a copy of the node's data in the place of what is there.
fn restore(lan: &Lan, server: &str, copy: &str) {
    lan.ok(server, &format!("rm -rf /var/lib/quorate && cp -a {copy} /var/lib/quorate"));
}

/// Waits until a node has ended, with these words in its log.
fn ends(lan: &Lan, server: &str, words: &str) {
    wait_for(&format!("{server} ends with `{words}`"), PATIENCE, || {
        (!lan.runs(server) && lan.log(server).contains(words)).then_some(())
    });
}

/// reliability.md §5.5, "removed node returns": with its old disk, and restored from an old backup. And what is as
/// bad: a voter that is put back to what it was before it voted, and one that votes in two places.
#[test]
fn old_copies_of_a_voter_and_of_a_removed_node_take_no_part() {
    let lan = Lan::new(&["n1", "n2", "n3", "clone"]);
    lan.make_cluster(&["n1", "n2", "n3"]);
    let back = |server: &str| {
        for other in ["n1", "n2"] {
            lan.wait_status(other, "n3 is back", |status| {
                let node = &status["nodes"][2];
                (node["state"] == "joined" && node["lag"].as_u64() <= Some(1)).then_some(())
            });
        }
        assert!(lan.runs(server));
    };
    lan.kill("n3");
    lan.ok("n3", "cp -a /var/lib/quorate backup");
    lan.start("n3");
    lan.write("n1", "CREATE TABLE t (n INTEGER)");
    lan.write("n2", "INSERT INTO t VALUES (1)");
    back("n3");

    // An old copy in the place of the newer one, with the leader that it promised something to, and without.
    let words = "it is older than what this node has said and promised";
    for leader_goes in [false, true] {
        let leader = lan.wait_status("n1", "a leader", |it| it["cluster"]["leader"].as_str().map(str::to_owned));
        lan.kill("n3");
        lan.ok("n3", "rm -rf newest && mv /var/lib/quorate newest && > server.log");
        if leader_goes && leader != "n3" {
            lan.kill(&leader);
        }
        restore(&lan, "n3", "backup");
        lan.start("n3");
        ends(&lan, "n3", words);
        assert!(lan.log("n3").contains("`quorate node remove n3` on another one"), "{}", lan.log("n3"));
        if leader_goes && leader != "n3" {
            lan.start(&leader);
        }
        restore(&lan, "n3", "newest");
        lan.start("n3");
        lan.write("n1", "INSERT INTO t VALUES (2)");
        back("n3");
    }

    // The same node on another server, as when a machine is cloned.
    lan.kill("n3");
    lan.ok("clone", &format!("cp -a {}/lib/quorate /var/lib/quorate", lan.home("n3").display()));
    lan.start("n3");
    back("n3");
    lan.start("clone");
    let words = "is heard from 192.168.1.53:";
    wait_for("the clone is told where the other is", PATIENCE, || lan.log("clone").contains(words).then_some(()));
    wait_for("so is the cluster", PATIENCE, || lan.log("n1").contains("does it run twice").then_some(()));
    assert!(lan.ask("n1", "events").unwrap().to_string().contains("does it run twice"), "and who looks at events");
    back("n3");
    lan.write("n2", "INSERT INTO t VALUES (3)");
    lan.kill("clone");
    lan.kill("n3");

    lan.ok("n2", "quorate node remove n3 --yes");
    for copy in ["newest", "backup"] {
        lan.ok("n3", "> server.log");
        restore(&lan, "n3", copy);
        lan.start("n3");
        wait_for("n3 is told why", PATIENCE, || lan.log("n3").contains("was expelled").then_some(()));
        lan.write("n1", "INSERT INTO t VALUES (4)");
        let nodes = lan.ask("n1", "node list").unwrap();
        assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
        lan.kill("n3");
    }
}
