//! Updates of services by way of the command line, with real processes: batches, canaries, what fails and what is
//! undone, and who leads meanwhile.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use crate::show::{demo, is_whole, lives, pids, replicas};
use serde_json::{Value, json};

/// A program that runs, and counts as stable as soon as it does.
fn web(copies: u32, program: &str, update: &str) -> String {
    let more = format!("env = {{ PROGRAM = '{program}' }}\nupdate = {{ verify_for = '0s'{update} }}");
    demo("web", copies, &more)
}

/// With patience: several copies one after another take their time on a busy machine.
fn apply(cluster: &TestCluster, text: &str) -> Value {
    let file = cluster.spec_file("web.toml", text);
    cluster.json(&["service", "apply", "-f", &file, "--yes", "--timeout", "2m"])
}

fn versions(view: &Value) -> Vec<u64> {
    let mut versions: Vec<u64> = replicas(view).iter().map(|it| it["version"].as_u64().unwrap()).collect();
    versions.sort_unstable();
    versions
}

fn is_done(view: &Value) -> bool {
    is_whole(view) && view["deployment"]["stage"] == "done"
}

#[test]
fn a_program_that_never_becomes_healthy_is_rolled_back_with_its_reason_and_nothing_else_is_disturbed() {
    let cluster = TestCluster::start();
    apply(&cluster, &web(3, "one", ""));
    let before = cluster.wait_service("web", "version 1 is stable", is_done);
    let others = pids(&cluster.service("demo"));
    let broken = "[[service]]\nname = 'web'\nreplicas = 3\ncommand = ['/bin/sh', '-c', 'echo no; exit 3']\n\
        restart = { backoff = '50ms..100ms' }\nupdate = { verify_for = '0s' }\n";
    let file = cluster.spec_file("broken.toml", broken);
    let ran = cluster.run(&["service", "apply", "-f", &file, "--yes", "--timeout", "2m"]);
    assert_eq!(ran.code, 9, "{}", ran.stderr);
    assert!(ran.stderr.contains("web was rolled back to version 1: version 2 failed"), "{}", ran.stderr);
    assert!(ran.stderr.contains("was started again"), "{}", ran.stderr);
    let after = cluster.service("web");
    assert_eq!(pids(&after), pids(&before), "the copies of version 1 were never touched");
    assert_eq!((&after["version"], &after["spec"]), (&json!(1), &before["spec"]));
    assert_eq!(pids(&cluster.service("demo")), others);
    let history = cluster.json(&["service", "history", "web"]);
    let states: Vec<&Value> = history["versions"].as_array().unwrap().iter().map(|it| &it["state"]).collect();
    assert_eq!(states, ["failed", "stable"]);
    assert!(history["versions"][0]["why"].as_str().unwrap().contains("exit"), "{history}");
    let said = cluster.ok(&["events"]);
    assert!(said.contains("web goes back to version 1") && said.contains("web is back at version 1"), "{said}");
    // The next one has a number of its own.
    apply(&cluster, &web(3, "three", ", healthy_for = '0s'"));
    assert_eq!(cluster.service("web")["version"], 3);
}

#[test]
fn an_update_goes_on_under_the_next_leader_when_the_one_that_began_it_dies_half_way() {
    let cluster = TestCluster::start();
    apply(&cluster, &web(4, "one", ""));
    cluster.wait_service("web", "version 1 is stable", is_done);
    let file = cluster.spec_file("two.toml", &web(4, "two", ", healthy_for = '1s'"));
    cluster.ok(&["service", "apply", "-f", &file, "--yes", "--no-wait"]);
    let half = |view: &Value| versions(view).iter().filter(|version| **version == 2).count() >= 2;
    let half_way = cluster.wait_service("web", "two copies are new", half);
    assert!(versions(&half_way).contains(&1), "it is not over: {half_way}");
    cluster.ok(&["dev", "kill", &cluster.leader()]);
    let after = cluster.wait_service("web", "the update is over", is_done);
    assert_eq!(versions(&after), [2, 2, 2, 2]);
    assert_eq!(after["deployment"]["version"], 2, "nobody gave it up: {after}");
}

#[test]
fn canaries_wait_for_their_promotion_and_an_update_that_is_aborted_leaves_no_trace() {
    let cluster = TestCluster::start();
    let update = ", healthy_for = '0s', canary = 1, promote = 'manual'";
    apply(&cluster, &web(3, "one", update));
    let before = cluster.wait_service("web", "version 1 is stable", is_done);
    let applied = apply(&cluster, &web(3, "two", update));
    assert_eq!(applied["services"][0]["waits"], true);
    let waiting = cluster.wait_service("web", "one canary", is_whole);
    assert_eq!(versions(&waiting), [1, 1, 2]);
    // The node that is asked may be a moment behind.
    wait_for("status says how it goes on", PATIENCE, || {
        cluster.ok(&["status"]).contains("waits for its promotion: quorate update continue web").then_some(())
    });
    cluster.ok(&["update", "continue", "web", "--timeout", "2m"]);
    let second = cluster.wait_service("web", "version 2 is stable", is_done);
    assert_eq!(versions(&second), [2, 2, 2]);
    apply(&cluster, &web(3, "three", update));
    cluster.ok(&["update", "abort", "web", "--timeout", "2m"]);
    let after = cluster
        .wait_service("web", "it is as before", |view| is_whole(view) && view["deployment"]["stage"] == "rolled-back");
    assert_eq!(versions(&after), [2, 2, 2]);
    assert!(pids(&after).intersection(&pids(&second)).count() >= 2, "only the canary was replaced");
    let refused = cluster.run(&["update", "continue", "web"]);
    assert!(refused.code != 0 && refused.stderr.contains("web is not being updated"), "{}", refused.stderr);
    // And back to what ran first, by hand.
    cluster.ok(&["rollback", "web", "--to", "1", "--timeout", "2m"]);
    let first = cluster.wait_service("web", "version 1 again", is_done);
    assert_eq!((versions(&first), &first["spec"]), (vec![1, 1, 1], &before["spec"]));
    cluster.ok(&["rollback", "web", "--timeout", "2m"]);
    assert_eq!(cluster.service("web")["version"], 2, "what was stable last");
    let unknown = cluster.run(&["rollback", "web", "--to", "9"]);
    assert!(unknown.stderr.contains("web has no version 9; known: 1, 2, 3"), "{}", unknown.stderr);
}

#[test]
fn replacing_the_only_copy_at_a_fixed_port_says_before_that_it_will_be_away() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let spec = |program: &str| {
        format!(
            "[[service]]\nname = 'one'\ncommand = ['/bin/sleep', '{program}']\nupdate = {{ order = 'stop-first', verify_for = '0s', healthy_for = '0s' }}\n"
        )
    };
    let applied = apply(&cluster, &spec("1001"));
    assert_eq!(applied["plan"]["services"][0].get("warnings"), None, "nothing is replaced");
    let applied = apply(&cluster, &spec("1002"));
    let warning = applied["plan"]["services"][0]["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("one is away for a moment: it has update.order"), "{warning}");
    let view = cluster.wait_service("one", "version 2 is stable", is_done);
    let pid = *pids(&view).first().unwrap();
    wait_for("it runs", PATIENCE, || lives(pid).then_some(()));
}

#[test]
fn a_copy_is_as_well_as_a_program_of_its_own_says_that_it_is() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let spec = "[[service]]\nname = 'asked'\ncommand = ['/bin/sh', '-c', 'touch well; exec sleep 1000']\n\
        health = { exec = ['/bin/sh', '-c', 'if ! test -f well; then echo it is not well >&2; exit 7; fi'], every = '100ms', \
        timeout = '10s', fail_after = 1 }\n";
    apply(&cluster, spec);
    let view = cluster.service("asked");
    let log_dir = std::path::PathBuf::from(replicas(&view)[0]["log_dir"].as_str().unwrap());
    std::fs::remove_file(log_dir.with_file_name("work").join("well")).unwrap();
    let unwell = cluster.wait_service("asked", "its check fails", |view| replicas(view)[0]["state"] == "unhealthy");
    let detail = replicas(&unwell)[0]["detail"].as_str().unwrap();
    assert_eq!(detail, "sh: exit status: 7: it is not well");
    assert_eq!(replicas(&unwell)[0]["pid"], replicas(&view)[0]["pid"], "it is not restarted for that");
}
