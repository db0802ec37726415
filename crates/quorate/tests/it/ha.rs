//! K6: high availability off, switched on and off again, with real processes and their own sockets.

use crate::cluster::{PATIENCE, Ran, signal, wait_for};
use crate::founded::{Founded, code};
use crate::show::{lives, pids};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};

/// What a process has open, from what the kernel says of its descriptors.
#[derive(Debug, Default, PartialEq)]
struct Sockets {
    /// Ports where it takes TCP connections.
    listens: BTreeSet<u16>,
    /// TCP connections that it has.
    connections: usize,
    /// Ports of its UDP sockets.
    udp: BTreeSet<u16>,
}

fn sockets(pid: u32) -> Sockets {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    let inode = |target: &str| Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    let ours: BTreeSet<String> = targets.filter_map(|target| inode(target.to_str()?)).collect();
    let mut found = Sockets::default();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields[1], fields[3], fields[9]);
            if !ours.contains(inode) {
                continue;
            }
            let port = u16::from_str_radix(local.rsplit(':').next().unwrap(), 16).unwrap();
            match (table.starts_with("tcp"), state) {
                (true, "0A") => drop(found.listens.insert(port)),
                (true, _) => found.connections += 1,
                (false, _) => drop(found.udp.insert(port)),
            }
        }
    }
    found
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// The port of a node's link, as its configuration has it.
fn link_port(founded: &Founded, node: &str) -> u16 {
    let text = std::fs::read_to_string(founded.home(node).join("node.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    port(config["node"]["link"].as_str().unwrap())
}

/// A node that is alone: its API, and nothing for other nodes.
fn is_alone(founded: &Founded) {
    let alone = Sockets { listens: [port(&founded.api)].into(), ..Sockets::default() };
    assert_eq!(sockets(founded.pid("n1")), alone);
}

fn succeeds(founded: &Founded, args: &[&str]) -> String {
    let ran = founded.command(args);
    assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
    ran.stdout
}

fn refused(founded: &Founded, args: &[&str]) -> Ran {
    let ran = founded.command(&[args, &["-o", "json"]].concat());
    assert_ne!(ran.code, 0, "{args:?}: {ran:?}");
    ran
}

/// Nobody who looks at the cluster sees anything about managers.
fn shows_nothing_of_managers(founded: &Founded) {
    let words = ["manager", "leader", "active", "passive", "quorum", "voter", "lose", "mode", "lag"];
    for args in [&["status"][..], &["node", "list"], &["node", "show", "n1"], &["events"]] {
        let said = succeeds(founded, args).to_lowercase();
        // What the node is for is no row about who decides.
        let said = said.replace("manager,worker", "").replace("manager, worker", "");
        // Nor is the place of its log.
        let said = said.replace("/managers/", "");
        for word in words {
            assert!(!said.contains(word), "`{word}` in {args:?}: {said}");
        }
    }
    let doctor = founded.command(&["doctor"]).stdout.to_lowercase();
    for word in ["quorum", "voter", "node link", "leader"] {
        assert!(!doctor.contains(word), "`{word}` in {doctor}");
    }
    let status = founded.status("n1").unwrap();
    assert_eq!(status["cluster"]["ha"], false);
    for key in ["voters", "voters_joined", "can_lose", "can_lose_when_up", "voters_next"] {
        assert!(status["cluster"][key].is_null(), "{key} in {status}");
    }
    let node = &status["nodes"][0];
    assert!(node["mode"].is_null() && node["standing"].is_null() && node["lag"].is_null(), "{node}");
}

#[test]
fn k6_off_there_is_no_port_no_traffic_and_nothing_about_managers_and_it_is_switched_while_serving() {
    let mut founded = Founded::new();
    let (pid, link) = (founded.pid("n1"), link_port(&founded, "n1"));
    is_alone(&founded);
    shows_nothing_of_managers(&founded);
    assert!(succeeds(&founded, &["manager", "list"]).contains("high availability is off"));
    for args in [&["manager", "stop", "n1"][..], &["manager", "promote", "n1"], &["node", "roles", "n1", "worker"]] {
        assert_eq!(code(&refused(&founded, args)), "ha-off", "{args:?}");
    }
    founded.write("n1", "CREATE TABLE t (n INTEGER)");

    // On with one manager: it is shown as the Active one, and others could come.
    assert!(succeeds(&founded, &["ha", "enable"]).contains("n1 is Active"));
    assert_eq!(sockets(pid).listens, [port(&founded.api), link].into(), "when it is answered, it is open");
    let node = founded.ask(&["node", "show", "n1"]);
    assert_eq!((&node["mode"], &node["standing"]), (&json!("active"), &json!("voter")));
    assert!(succeeds(&founded, &["status"]).contains("1/1 managers, cannot lose any · leader n1"));
    assert!(succeeds(&founded, &["manager", "list"]).contains("Active"));
    succeeds(&founded, &["ha", "enable"]);

    assert!(succeeds(&founded, &["ha", "disable"]).contains("high availability is off"));
    is_alone(&founded);
    shows_nothing_of_managers(&founded);
    assert_eq!(founded.pid("n1"), pid);
    assert!(lives(pid), "nothing was restarted");
    founded.write("n1", "INSERT INTO t VALUES (1)");

    // The plain restart, the plain stop and start.
    let starts = |founded: &Founded| founded.ask(&["node", "show", "n1"])["generation"].as_u64().unwrap();
    let before = starts(&founded);
    succeeds(&founded, &["manager", "restart", "n1"]);
    assert_eq!(starts(&founded), before + 1);
    signal(pid, Signal::TERM);
    assert!(founded.wait_end("n1"));
    founded.start("n1");
    wait_for("it serves again", PATIENCE, || founded.status("n1")?["cluster"]["leader"].as_str().map(drop));
    is_alone(&founded);
    assert_eq!(founded.number("n1", "SELECT count(*) FROM t"), Some(1));

    let audit = founded.ask(&["audit", "list"]).to_string();
    assert_eq!(audit.matches("ha-set").count(), 3, "who switched it, and to what: {audit}");
}

#[test]
fn k6_add_node_switches_it_on_and_the_first_server_and_its_services_notice_nothing() {
    let (mut founded, running) = Founded::with_a_service();
    let (pid, link) = (founded.pid("n1"), link_port(&founded, "n1"));
    let untouched = |founded: &Founded| {
        assert!(lives(pid), "the server runs on");
        assert_eq!(founded.ask(&["node", "show", "n1"])["generation"], 2, "in the run that it was in");
        let demo = founded.ask(&["service", "show", "demo"]);
        assert_eq!(pids(&demo), running, "{demo}");
    };
    is_alone(&founded);
    let token = founded.token(&["--role", "worker"]);
    assert_eq!(sockets(pid).listens, [port(&founded.api), link].into(), "open before anybody can use the token");

    // Off again, the token is good for nothing.
    succeeds(&founded, &["ha", "disable"]);
    is_alone(&founded);
    assert_eq!(code(&founded.join(&token, "n2", &[])), "token-unknown");

    founded.add("n2", &[]);
    founded.wait_state(&["n1", "n2"], "n2", "joined");
    wait_for("gossip is heard", PATIENCE, || sockets(pid).udp.contains(&link).then_some(()));
    untouched(&founded);

    // Two nodes: not to be switched off, and not highly available.
    let stays = refused(&founded, &["ha", "disable"]);
    assert_eq!(code(&stays), "ha-in-use");
    assert!(stays.stderr.contains("n1, n2") && stays.stderr.contains("quorate node remove"), "{stays:?}");
    let two = refused(&founded, &["ha", "enable"]);
    assert_eq!(code(&two), "ha-needs-three");
    for said in [two.stderr, succeeds(&founded, &["status"]), succeeds(&founded, &["ha", "show"])] {
        assert!(said.contains("a majority of two would be both of them"), "{said}");
    }

    founded.add("n3", &["--role", "manager"]);
    founded.wait_voters("n1", 3);
    assert!(succeeds(&founded, &["ha", "enable"]).contains("one manager may be lost"));
    untouched(&founded);

    // Back to one: it stays on until somebody switches it off.
    for node in ["n3", "n2"] {
        wait_for("it is removed", PATIENCE, || {
            (founded.command(&["node", "remove", node, "--yes"]).code == 0).then_some(())
        });
    }
    assert_eq!(founded.ask(&["ha", "show"])["enabled"], true);
    // The servers of those that were removed still call, to be told why they are not let in.
    founded.kill("n2");
    founded.kill("n3");
    succeeds(&founded, &["ha", "disable"]);
    wait_for("it is alone again", PATIENCE, || {
        let now = sockets(pid);
        (now.listens == [port(&founded.api)].into() && now.udp.is_empty() && now.connections == 0).then_some(())
    });
    untouched(&founded);
    succeeds(&founded, &["service", "remove", "demo", "--yes"]);
    wait_for("its copies end", PATIENCE, || running.iter().all(|pid| !lives(*pid)).then_some(()));
}

#[test]
fn k6_enable_ha_switches_it_on_at_init_and_later_and_a_command_goes_before_it() {
    let is_on = |founded: &Founded| founded.try_ask(&["ha", "show", "-o", "json"])?["enabled"].as_bool();
    let begun = Founded::found("", &[("ENABLE_HA", "1")]);
    wait_for("it begins with it on", PATIENCE, || is_on(&begun)?.then_some(()));
    assert!(sockets(begun.pid("n1")).listens.contains(&link_port(&begun, "n1")));
    drop(begun);

    let mut later = Founded::new();
    assert_eq!(is_on(&later), Some(false));
    let settings = later.home("n1").join("quorate.toml");
    std::fs::write(settings, "[ha]\nenabled = true\n").unwrap();
    later.kill("n1");
    later.start("n1");
    wait_for("it is on after a restart", PATIENCE, || is_on(&later)?.then_some(()));
    succeeds(&later, &["ha", "disable"]);
    later.kill("n1");
    later.start("n1");
    wait_for("it serves", PATIENCE, || later.status("n1")?["cluster"]["leader"].as_str().map(drop));
    assert_eq!(is_on(&later), Some(false), "who said so last");
    is_alone(&later);
}

#[test]
fn k6_a_port_that_another_program_took_meanwhile_is_named_before_anything_changes() {
    let founded = Founded::new();
    let link = format!("127.0.0.1:{}", link_port(&founded, "n1"));
    let tcp = TcpListener::bind(&link).unwrap();
    for args in [&["ha", "enable"][..], &["add-node"]] {
        let ran = refused(&founded, args);
        assert_eq!(code(&ran), "link-port-taken", "{args:?}");
        assert!(ran.stderr.contains(&format!("TCP {link}")), "{ran:?}");
    }
    drop(tcp);
    let udp = UdpSocket::bind(&link).unwrap();
    assert!(refused(&founded, &["ha", "enable"]).stderr.contains(&format!("UDP {link}")));
    drop(udp);
    let state: Value = founded.ask(&["ha", "show"]);
    assert_eq!(state["enabled"], false);
    succeeds(&founded, &["add-node"]);
    assert_eq!(founded.ask(&["ha", "show"])["enabled"], true);
}
