//! What strangers send to open ports, and servers whose clock is wrong.

use crate::cluster::{PATIENCE, TestCluster, wait_for};
use crate::founded::{Founded, code, quorate};
use serde_json::Value;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};

/// Connections that say next to nothing, at each port.
const SLOW: usize = 100;

/// What no protocol begins with, and beginnings of some that are not spoken here.
fn garbage() -> Vec<Vec<u8>> {
    let noise: Vec<u8> = (0..4_096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // A TLS record that promises more than there may be; a frame of 4 GiB; HTTP/2; a request that never was one.
    let texts: [&[u8]; 6] = [
        b"\x16\x03\x01\xff\xff\x01",
        b"\xff\xff\xff\xff",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\0/\r\n\r\n",
        b"POST /v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"\r\n\r\n\r\n",
    ];
    texts.into_iter().map(<[u8]>::to_vec).chain([noise]).collect()
}

/// A node's addresses, as its configuration has them.
fn link_of(cluster: &TestCluster, node: &str) -> String {
    let text = std::fs::read_to_string(cluster.node_dir(node).join("node.toml")).unwrap();
    let config: Value = toml::from_str(&text).unwrap();
    config["node"]["link"].as_str().unwrap().to_owned()
}

/// Whether the other side has ended this connection.
fn is_ended(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut piece = [0; 4_096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// reliability.md §5.5, "malformed or slow input".
#[test]
fn garbage_and_slow_clients_at_every_port_change_nothing_and_are_sent_away() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    cluster.exec("n1", "CREATE TABLE t (n INTEGER)");
    let before = cluster.status("n1").unwrap();
    let api = cluster.node("n1").api.strip_prefix("http://").unwrap().to_owned();
    let link = link_of(&cluster, "n1");
    let ports = [("API", &*api), ("node link", &*link), ("gateway", cluster.gateway_address())];
    let mut held: Vec<(&str, TcpStream)> = Vec::new();
    for (port, address) in ports {
        for (number, bytes) in garbage().into_iter().enumerate() {
            let mut stream = TcpStream::connect(address).unwrap();
            // It may be refused after the first bytes.
            let _ = stream.write_all(&bytes);
            held.push((port, stream));
            assert!(cluster.http.get(&format!("http://{api}/v1/health")).is_ok(), "{port} after {number}");
        }
        for number in 0..SLOW {
            let mut stream = TcpStream::connect(address).unwrap();
            // Half of them say one byte of something that could be right.
            if number % 2 == 0 {
                stream.write_all(if port == "node link" { b"\x16" } else { b"G" }).unwrap();
            }
            held.push((port, stream));
        }
    }
    let gossip = UdpSocket::bind("127.0.0.1:0").unwrap();
    for bytes in garbage() {
        gossip.send_to(&bytes[..bytes.len().min(1_400)], &link).unwrap();
    }

    // Meanwhile everybody is served.
    for number in 0..50 {
        cluster.exec("n1", &format!("INSERT INTO t VALUES ({number})"));
        assert_eq!(crate::load::ask(cluster.gateway_address(), "/whoami").unwrap().status, 200);
    }
    // On the link nobody may be slow. What the API gives its clients is tested in `slow.rs`; the gateway's patience
    // beside it. Whoever still hangs there has harmed nobody.
    wait_for("the node link sends them away", PATIENCE, || {
        held.retain_mut(|(_, stream)| !is_ended(stream));
        (!held.iter().any(|(port, _)| *port == "node link")).then_some(())
    });
    let after = cluster.status("n1").unwrap();
    let facts = |status: &Value| {
        let nodes = status["nodes"].as_array().unwrap();
        let nodes: Vec<Value> = nodes.iter().map(|node| node["generation"].clone()).collect();
        (nodes, status["cluster"]["term"].clone(), status["cluster"]["leader"].clone())
    };
    assert_eq!(facts(&after), facts(&before), "nobody began anew, nobody was elected");
    assert_eq!(cluster.rows("n1", "SELECT count(*) FROM t"), serde_json::json!([[50]]));
}

/// The clock of the server that joins is off: it says so before it says anything else, and the cluster writes down
/// who was turned away.
#[test]
fn a_server_whose_clock_is_a_day_off_is_not_let_in_and_is_told_by_how_much() {
    let founded = Founded::new();
    let token = founded.token(&[]);
    for (off, words) in [("-1d", "is the clock right?"), ("+1d", "ahead")] {
        let addresses = crate::cluster::free_addresses(2);
        let home = founded.home("n2").display().to_string();
        let args = ["-o", "json", "join", &token, "--name", "n2", "--data-dir", &home, "--no-start"];
        let mut command = quorate(&[&args[..], &["--listen", &addresses[0], "--link", &addresses[1]]].concat());
        command.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1").env("FAKETIME", off);
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran = crate::cluster::Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert_eq!(code(&ran), "clock-off", "{off}: {ran:?}");
        assert!(ran.stderr.contains(words) && ran.stderr.contains("clock"), "{off}: {}", ran.stderr);
    }
    assert_eq!(founded.nodes(), ["n1"]);
    let audit = wait_for("the audit has it", PATIENCE, || {
        let audit = founded.ask(&["audit", "list"]).to_string();
        audit.contains("clock-off").then_some(audit)
    });
    assert!(audit.contains("join"), "{audit}");
    let joined = founded.join(&token, "n2", &[]);
    assert_eq!(joined.code, 0, "the token is still good: {joined:?}");
}
