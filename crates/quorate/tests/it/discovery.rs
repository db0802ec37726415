//! Services are found by name, with Debian's `dig`.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use crate::show::{is_whole, replicas};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

/// Three nodes that answer DNS, and where each does, in their order.
fn cluster() -> (TestCluster, Vec<u16>) {
    let temporary = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
    let dir = temporary.path().canonicalize().unwrap();
    let ports = free_ports(3);
    for (at, port) in ports.iter().enumerate() {
        let node = dir.join(format!("n{}", at + 1));
        std::fs::create_dir(&node).unwrap();
        std::fs::write(node.join("quorate.toml"), format!("[dns]\nlisten = \"127.0.0.1:{port}\"\n")).unwrap();
    }
    (TestCluster::start_in(temporary, dir, &[]), ports)
}

/// Free for datagrams and connections, and below what anybody else chooses from.
fn free_ports(count: usize) -> Vec<u16> {
    let somewhere = usize::from(uuid::Uuid::new_v4().as_fields().1);
    let free = |port: &u16| {
        let at = (Ipv4Addr::LOCALHOST, *port);
        Some((TcpListener::bind(at).ok()?, UdpSocket::bind(at).ok()?))
    };
    (6_000u16..10_000).cycle().skip(somewhere % 4_000).filter(|port| free(port).is_some()).take(count).collect()
}

fn dig(port: u16, args: &[&str]) -> String {
    let mut command = Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port.to_string(), "+tries=1", "+time=5"]).args(args);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// What a question is answered with, sorted.
fn found(port: u16, name: &str, kind: &str) -> Vec<String> {
    let mut lines: Vec<String> = dig(port, &["+short", name, kind]).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Ports of the healthy copies, as the cluster shows them.
fn shown(view: &Value) -> BTreeSet<String> {
    let healthy = replicas(view).iter().filter(|replica| replica["state"] == "healthy");
    let port = |replica: &Value| replica["addresses"]["http"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    healthy.map(port).collect()
}

/// Ports of the copies, as names tell them.
fn named(port: u16, service: &str) -> BTreeSet<String> {
    let answers = found(port, &format!("_http._tcp.{service}.quorate"), "SRV");
    answers.iter().map(|answer| answer.split(' ').nth(2).unwrap().to_owned()).collect()
}

#[test]
fn a_service_is_found_by_its_name_on_every_node_and_a_lost_copy_is_not() {
    let (cluster, ports) = cluster();
    let whole = cluster.wait_service("demo", "it is whole", is_whole);
    for port in &ports {
        wait_for("every node knows all copies", PATIENCE, || (named(*port, "demo") == shown(&whole)).then_some(()));
        assert_eq!(found(*port, "0.demo.quorate", "A"), ["127.0.0.1"]);
        assert_eq!(found(*port, "demo.quorate", "AAAA"), [""; 0]);
    }
    let tcp = dig(ports[0], &["+tcp", "demo.quorate", "A"]);
    assert!(tcp.contains("status: NOERROR") && tcp.contains("ANSWER: 3") && tcp.contains(" aa "), "{tcp}");
    assert!(tcp.contains("demo.quorate.\t\t1\tIN\tA\t127.0.0.1"), "{tcp}");
    let nobody = dig(ports[0], &["nobody.quorate", "A"]);
    assert!(nobody.contains("status: NXDOMAIN") && nobody.contains("SOA\tns.quorate. hostmaster.quorate."), "{nobody}");
    let elsewhere = dig(ports[0], &["example.com", "A"]);
    assert!(elsewhere.contains("status: REFUSED"), "{elsewhere}");

    // The one node whose copies nobody replaces any more stops being named, on the others at once.
    let victim = cluster.followers().remove(0);
    let lost: BTreeSet<String> = replicas(&whole)
        .iter()
        .filter(|replica| replica["node"] == *victim)
        .map(|replica| replica["addresses"]["http"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned())
        .collect();
    assert!(!lost.is_empty());
    let asked: Vec<u16> =
        cluster.names().iter().zip(&ports).filter(|(name, _)| **name != victim).map(|it| *it.1).collect();
    cluster.kill(&victim);
    let began = Instant::now();
    for port in &asked {
        wait_for("the lost copy has no name", PATIENCE, || named(*port, "demo").is_disjoint(&lost).then_some(()));
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    // Whoever is alone goes on with what it knows.
    let last = cluster.names().into_iter().zip(&ports).find(|(name, _)| *name != victim).unwrap();
    cluster.names().iter().filter(|name| **name != last.0 && **name != victim).for_each(|name| cluster.kill(name));
    wait_for("there is no leader", PATIENCE, || {
        cluster.status(&last.0).filter(|status| status["cluster"]["health"] == "no-quorum")
    });
    let alone = dig(*last.1, &["demo.quorate", "A"]);
    assert!(alone.contains("status: NOERROR") && !alone.contains("ANSWER: 0"), "{alone}");
}

const ONCE: &str = r#"[[service]]
name = "once"
mode = "singleton"
failover = "10s"
command = ["/usr/bin/env", "python3", "-m", "http.server", "--bind", "127.0.0.1", "{port}"]
ports = { http = "auto" }
health = { http = "/" }
"#;

#[test]
fn the_name_of_what_runs_once_follows_it() {
    let (cluster, ports) = cluster();
    cluster.apply(ONCE);
    let before = cluster.wait_service("once", "it runs", is_whole);
    let node = replicas(&before)[0]["node"].as_str().unwrap().to_owned();
    for port in &ports {
        wait_for("every node knows it", PATIENCE, || (named(*port, "once") == shown(&before)).then_some(()));
    }
    cluster.kill(&node);
    let after = cluster.wait_service("once", "it runs elsewhere", |view| {
        is_whole(view) && replicas(view)[0]["node"].as_str() != Some(&*node)
    });
    assert_ne!(shown(&after), shown(&before));
    for (_, port) in cluster.names().iter().zip(&ports).filter(|(name, _)| **name != node) {
        wait_for("its name leads to the new one", PATIENCE, || (named(*port, "once") == shown(&after)).then_some(()));
    }
}
