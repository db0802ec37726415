//! The gateway as its clients see it while everything behind it dies, moves and changes.

use crate::cluster::{PATIENCE, Place, TestCluster, signal, wait_for};
use crate::load::{Load, Tally};
use crate::show::{demo, is_whole, lives, nodes, pids, replicas};
use rustix::process::Signal;

const CLIENTS: u32 = 32;
const PER_SECOND: u32 = 2_000;
/// What must be answered in a build without optimisation on a busy machine.
const PER_SECOND_MIN: f64 = 500.0;

/// Asks through the gateway for as long as `happens` lasts.
fn under_load(cluster: &TestCluster, happens: impl FnOnce()) -> Tally {
    let load = Load::start(cluster.gateway_address(), "/whoami", CLIENTS, PER_SECOND);
    happens();
    load.stop()
}

/// Everything that may happen to a service on one day.
fn a_bad_day(cluster: &TestCluster) {
    let demo_is = |what: &str, count: u64| {
        cluster.wait_service("demo", what, |view| is_whole(view) && view["want"] == count);
    };
    // The program of a replica crashes.
    let victim = *pids(&cluster.service("demo")).first().unwrap();
    signal(victim, Signal::KILL);
    cluster.wait_service("demo", "the killed copy runs again", |view| is_whole(view) && !pids(view).contains(&victim));

    // The node of the leader loses power and comes back.
    let leader = cluster.leader();
    cluster.ok(&["dev", "kill", &leader]);
    demo_is("three copies on two nodes", 3);
    cluster.ok(&["dev", "start", &leader]);

    cluster.ok(&["scale", "demo", "5"]);
    cluster.ok(&["scale", "demo", "2"]);
    demo_is("two copies, the others gone", 2);

    let next = cluster.followers().remove(0);
    cluster.ok(&["raft", "transfer", &next]);
    wait_for("the transfer", PATIENCE, || (cluster.leader() == next).then_some(()));

    // A new version rolls out.
    cluster.apply(&(demo("demo", 3, "env = { RELEASE = '2' }") + "[[route]]\nservice = 'demo'\n"));
    cluster.wait_service("demo", "all of the new version", |view| {
        is_whole(view) && replicas(view).iter().all(|replica| replica["version"] == view["version"])
    });
    cluster.ok(&["scale", "demo", "2"]);
    demo_is("two copies of the new version", 2);
}

#[test]
fn e9_no_idempotent_request_fails_while_replicas_and_nodes_die_and_services_change() {
    let _alone = Place::alone();
    let cluster = TestCluster::start();
    let tally = under_load(&cluster, || a_bad_day(&cluster));
    println!("{tally}");
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    assert!(tally.per_second() >= PER_SECOND_MIN, "only {:.0}/s", tally.per_second());
}

#[test]
fn e9_without_retries_and_draining_the_same_day_is_not_survived() {
    let cluster = TestCluster::start_with(&["--gateway-arg=--without-retries", "--gateway-arg=--without-draining"]);
    let tally = under_load(&cluster, || a_bad_day(&cluster));
    println!("{tally}");
    assert!(tally.failed > 0, "a gateway that does nothing for its clients must be seen to fail");
}

#[test]
fn k7_services_and_gateway_go_on_while_all_managers_are_dead() {
    let _alone = Place::alone();
    let cluster = TestCluster::start();
    // Here the first two that are back would replace at once what is on the third.
    cluster.ok(&["cluster", "failover", "60s"]);
    let before = cluster.service("demo");
    let tally = under_load(&cluster, || {
        for node in cluster.names() {
            signal(cluster.pid(&node).unwrap(), Signal::KILL);
        }
        wait_for("all servers are dead", PATIENCE, || {
            cluster.names().iter().all(|node| cluster.pid(node).is_none()).then_some(())
        });
        // Also those who come only now are served.
        for _ in 0..20 {
            assert_eq!(crate::load::ask(cluster.gateway_address(), "/whoami").unwrap().status, 200);
        }
        assert!(pids(&before).into_iter().all(lives), "replicas live without managers");
        assert_eq!(cluster.run(&["status"]).code, 3);
        for node in cluster.names() {
            cluster.start_node(&node);
        }
        cluster.wait_whole();
        let after = cluster.wait_service("demo", "demo is whole", is_whole);
        assert_eq!(pids(&after), pids(&before), "they were taken over, not started again");
        assert_eq!(nodes(&after), nodes(&before));
    });
    println!("{tally}");
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
}
