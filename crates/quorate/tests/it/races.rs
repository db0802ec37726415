//! Joins that are not meant to be: at the same moment, again, by another version, past a closed port.

use crate::cluster::{PATIENCE, Ran, free_addresses, wait_for};
use crate::founded::{Founded, code};
use base64::Engine as _;
use quorate_api::join::JOIN_VERSION;
use quorate_node::wire;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a server says that wants to join; its ports are closed.
fn request(token: &str, name: &str) -> Value {
    let key = quorate_trust::key::NodeKey::generate().unwrap().request().unwrap();
    let addresses = free_addresses(2);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    json!({
        "secret": token.split('/').nth(1).unwrap(), "name": name, "roles": [],
        "api": addresses[0], "link": addresses[1], "version": "9.9.9", "join_version": JOIN_VERSION,
        "link_version": wire::VERSION, "now": now, "hail": "0123456789abcdef",
        "certificate_request": base64::engine::general_purpose::STANDARD.encode(key.as_der()),
    })
}

/// One connection to a node's local socket, for many requests.
struct Local(BufReader<UnixStream>);

impl Local {
    fn to(founded: &Founded, node: &str) -> Local {
        Local(BufReader::new(UnixStream::connect(founded.home(node).join("api.sock")).unwrap()))
    }

    /// Status, and the code of what went wrong.
    fn join(&mut self, request: &Value) -> (u16, String, String) {
        let body = request.to_string();
        let head = "POST /v1/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        write!(self.0.get_mut(), "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        while line.trim() != "" {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        (status, text("code"), text("message"))
    }
}

/// E1, with real servers; in large numbers it is in `quorate-node`.
#[test]
fn d3_two_servers_race_at_two_nodes_for_one_seat_and_for_one_token() {
    let founded = Founded::grown(3);
    founded.ask(&["cluster", "quota", "4"]);
    for round in 0..6 {
        // Two tokens and one seat, then one token and two seats.
        let one_token = round % 2 == 1;
        founded.ask(&["cluster", "quota", if one_token { "5" } else { "4" }]);
        let first = founded.token(&["--role", "worker"]);
        let second = if one_token { first.clone() } else { founded.token(&["--role", "worker"]) };
        let at_n2 = founded.status("n2").unwrap()["nodes"][1]["api"].as_str().unwrap().replace("https://", "");
        let second = second.replacen(&founded.api, &at_n2, 1);
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let (ran_a, ran_b) = std::thread::scope(|scope| {
            let ran_a = scope.spawn(|| founded.join(&first, &a, &[]));
            let ran_b = founded.join(&second, &b, &[]);
            (ran_a.join().unwrap(), ran_b)
        });
        let refused: Vec<&Ran> = [&ran_a, &ran_b].into_iter().filter(|ran| ran.code != 0).collect();
        assert_eq!(refused.len(), 1, "round {round}: {ran_a:?} {ran_b:?}");
        assert_eq!(code(refused[0]), if one_token { "token-used" } else { "quota-reached" });
        let winner = if ran_a.code == 0 { &a } else { &b };
        founded.ask(&["node", "remove", winner, "--yes"]);
    }
}

#[test]
fn a_used_token_is_refused_a_thousand_times_and_nothing_changes() {
    let founded = Founded::new();
    let token = founded.token(&["--role", "worker"]);
    assert_eq!(founded.join(&token, "n2", &[]).code, 0);
    let nodes = founded.nodes();
    let (mut local, request) = (Local::to(&founded, "n1"), request(&token, "n3"));
    for replay in 0..1_000 {
        let (status, code, _) = local.join(&request);
        assert_eq!((status, &*code), (409, "token-used"), "replay {replay}");
    }
    assert_eq!(founded.nodes(), nodes);
    // From another server too.
    let again = founded.join(&token, "n3", &[]);
    assert_eq!(code(&again), "token-used");
}

#[test]
fn e1_what_does_not_fit_is_refused_in_words_and_leaves_the_token_good() {
    let founded = Founded::new();
    let token = founded.token(&[]);
    let mut local = Local::to(&founded, "n1");
    let good = request(&token, "n2");
    let mut refused = |field: &str, value: Value| {
        let mut request = good.clone();
        request[field] = value;
        local.join(&request)
    };
    let (status, code_, message) = refused("link_version", json!(99));
    assert_eq!((status, &*code_), (409, "version-mismatch"));
    assert!(message.contains("quorate 9.9.9") && message.contains(env!("CARGO_PKG_VERSION")), "{message}");
    assert!(message.contains("link version 99"), "{message}");
    let day = good["now"].as_u64().unwrap() + 86_430_000_000;
    let (_, code_, message) = refused("now", json!(day));
    assert_eq!(code_, "clock-off");
    assert!(message.contains("1d") && message.contains("ahead"), "{message}");
    let (_, code_, message) = refused("name", json!("n1"));
    assert_eq!(code_, "name-taken", "{message}");
    let (_, code_, message) = refused("api", json!(founded.api));
    assert_eq!(code_, "address-taken", "{message}");
    // The manager cannot reach the server: nothing listens there.
    let (_, code_, message) = refused("vote", json!("auto"));
    assert_eq!(code_, "port-unreachable");
    assert!(message.contains("n1 cannot reach") && message.contains("API"), "{message}");
    assert_eq!(founded.nodes(), ["n1"]);
    let joined = founded.join(&token, "n2", &[]);
    assert_eq!(joined.code, 0, "{joined:?}");
}

/// E1: every port is tried with every manager in both directions; the other one is in the test above.
#[test]
fn e1_a_server_that_cannot_reach_a_managers_link_is_not_let_in_and_is_told_which() {
    let mut founded = Founded::new();
    let token = founded.token(&[]);
    assert_eq!(founded.join(&token, "n2", &[]).code, 0);
    // The second manager is found where nothing listens; what it says itself still arrives.
    let file = founded.home("n2").join("node.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let api = config.lines().find_map(|line| line.strip_prefix("api = ")).unwrap().to_owned();
    let announced = format!("\n[node.announced]\napi = {api}\nlink = \"127.0.0.1:1\"\nbecause = \"a test\"\n");
    std::fs::write(&file, config + &announced).unwrap();
    founded.start("n2");
    wait_for("n2 is heard", PATIENCE, || {
        let node = founded.ask(&["node", "show", "n2"]);
        (node["state"] == "joined" && node["link"] == "127.0.0.1:1").then_some(())
    });
    let token = founded.token(&[]);
    let refused = founded.join(&token, "n3", &[]);
    assert_eq!(code(&refused), "port-unreachable");
    assert!(refused.stderr.contains("the node link of n2 at 127.0.0.1:1"), "{refused:?}");
    assert!(refused.stderr.contains("firewalls"), "{refused:?}");
    assert_eq!(founded.nodes(), ["n1", "n2"]);
}
