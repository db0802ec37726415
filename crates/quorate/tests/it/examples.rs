//! The examples, with programs that nobody here wrote: nginx and Python's web server.

use crate::cluster::TestCluster;
use crate::load::{Load, ask};
use crate::show::{is_whole, nodes};
use std::collections::BTreeSet;

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Kills a node that runs the service, under a light load that must not notice.
fn survives_a_node(cluster: &TestCluster, service: &str) {
    let victim = nodes(&cluster.service(service)).pop_first().unwrap();
    let load = Load::start(cluster.gateway_address(), "/", 4, 100);
    cluster.ok(&["dev", "kill", &victim]);
    cluster.wait_service(service, "whole elsewhere", |view| is_whole(view) && !nodes(view).contains(&victim));
    cluster.ok(&["dev", "start", &victim]);
    let tally = load.stop();
    assert_eq!(tally.failed, 0, "{:#?}", tally.failures);
    assert!(tally.answered > 0);
}

#[test]
fn nginx_runs_in_three_replicas_behind_the_gateway_and_survives_a_node() {
    let cluster = TestCluster::start_with(&["--service", &example("nginx.toml")]);
    let view = cluster.service("nginx");
    assert!(is_whole(&view), "{view}");
    assert_eq!(nodes(&view).len(), 3);
    let mut said = BTreeSet::new();
    for _ in 0..30 {
        let answer = ask(cluster.gateway_address(), "/").unwrap();
        assert_eq!(answer.status, 200);
        said.insert(String::from_utf8(answer.body).unwrap());
    }
    assert_eq!(said.len(), 3, "all three take part: {said:?}");
    assert!(said.iter().all(|words| words.starts_with("hello from ")), "{said:?}");
    survives_a_node(&cluster, "nginx");
}

#[test]
fn pythons_web_server_runs_in_two_replicas_behind_the_gateway_and_survives_a_node() {
    let cluster = TestCluster::start_with(&["--service", &example("http-server.toml")]);
    let view = cluster.service("files");
    assert!(is_whole(&view), "{view}");
    assert_eq!(nodes(&view).len(), 2);
    let answer = ask(cluster.gateway_address(), "/").unwrap();
    assert_eq!(answer.status, 200);
    assert!(String::from_utf8_lossy(&answer.body).contains("Directory listing"));
    survives_a_node(&cluster, "files");
}
