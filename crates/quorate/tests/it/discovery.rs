//! Services are found by name, with Debian's `dig`; and what a copy may do with its own token.

use crate::cluster::{PATIENCE, TestCluster, TestNode, wait_for};
use crate::show::{is_whole, replicas};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
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

/// Writes who it is with its own token, and nothing else of the command line is told.
fn writer() -> String {
    format!(
        r#"[[service]]
name = "writer"
command = ["/bin/sh", "-c", "\"$0\" db exec \"INSERT INTO notes VALUES ('$QUORATE_REPLICA')\" && exec sleep 1000", "{}"]
grants = [{{ database = "main", right = "write" }}]
stop = {{ grace = "1s" }}
update = {{ verify_for = "0s", healthy_for = "0s" }}
"#,
        env!("CARGO_BIN_EXE_quorate")
    )
}

/// The token file of the one copy.
fn token_file(view: &Value) -> PathBuf {
    let log = PathBuf::from(replicas(view)[0]["log_dir"].as_str().unwrap());
    log.parent().unwrap().join("work/.quorate-token")
}

/// What each node says to whoever shows this token.
fn told(cluster: &TestCluster, token: &str, path: &str, body: &Value) -> Vec<(u16, Value)> {
    let ask = |node: &TestNode| {
        let headers = [("Authorization", format!("Bearer {token}"))];
        cluster.http.post_with(&format!("{}{path}", node.api), headers, body).unwrap()
    };
    cluster.nodes.iter().map(ask).collect()
}

#[test]
fn a_copy_does_with_its_token_what_its_spec_grants_and_nothing_once_it_has_ended() {
    let cluster = TestCluster::start();
    cluster.exec(&cluster.leader(), "CREATE TABLE notes (who TEXT)");
    cluster.apply(&writer());
    let view = cluster.wait_service("writer", "it runs", is_whole);
    let replica = replicas(&view)[0]["id"].as_str().unwrap().to_owned();
    let written = || cluster.rows(&cluster.leader(), "SELECT DISTINCT who FROM notes");
    wait_for("it wrote with its token", PATIENCE, || (written() == json!([[replica]])).then_some(()));

    let file = token_file(&view);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = std::fs::read_to_string(&file).unwrap();
    let insert = json!({ "sql": "INSERT INTO notes VALUES ('by hand')" });
    let read = json!({ "sql": "SELECT count(*) FROM notes" });
    let system = json!({ "sql": "SELECT name FROM services", "database": "system" });
    for (status, answer) in
        [told(&cluster, &token, "/v1/db/exec", &insert), told(&cluster, &token, "/v1/db/query", &read)].concat()
    {
        assert_eq!(status, 200, "{answer}");
    }
    let scale = json!({ "replicas": 3 });
    for (path, body) in [("/v1/db/query", &system), ("/v1/services/writer/scale", &scale)] {
        for (status, answer) in told(&cluster, &token, path, body) {
            assert_eq!((status, &answer["code"]), (403, &json!("not-allowed")), "{path}: {answer}");
            assert!(answer["message"].as_str().unwrap().contains("does not grant"), "{answer}");
        }
    }
    let who = format!("writer/{replica}");
    wait_for("the audit has who was turned away", PATIENCE, || {
        cluster.ok(&["audit", "list", "-o", "json"]).contains(&who).then_some(())
    });
    // Nobody reads it out of what is replicated.
    let secret = token.rsplit('_').next().unwrap();
    for node in cluster.names() {
        for dir in ["log", "db"] {
            for entry in std::fs::read_dir(cluster.node_dir(&node).join(dir)).unwrap().flatten() {
                let bytes = std::fs::read(entry.path()).unwrap_or_default();
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "{} holds it", entry.path().display());
            }
        }
    }

    let refused = |token: &str| {
        let answers = told(&cluster, token, "/v1/db/exec", &insert);
        answers.iter().all(|(status, answer)| (*status, &answer["code"]) == (401, &json!("wrong-token"))).then_some(())
    };
    cluster.ok(&["restart", "writer"]);
    let view = cluster.wait_service("writer", "another copy runs", |view| {
        is_whole(view) && replicas(view)[0]["id"].as_str() != Some(&*replica)
    });
    wait_for("the old token is refused everywhere", PATIENCE, || refused(&token));
    wait_for("the file went with its copy", PATIENCE, || (!file.exists()).then_some(()));
    let another = wait_for("the other copy has its own", PATIENCE, || std::fs::read_to_string(token_file(&view)).ok());
    assert!(told(&cluster, &another, "/v1/db/exec", &insert).iter().all(|(status, _)| *status == 200));
    cluster.ok(&["service", "remove", "writer", "--yes"]);
    wait_for("so is that of a removed service", PATIENCE, || refused(&another));
}

/// One that keeps what its file said first, and what it said when it was told of a change.
fn client(dir: &std::path::Path) -> String {
    format!(
        r#"[[service]]
name = "client"
command = ["/bin/sh", "-c", "trap 'cat peers > {0}/told' HUP; env > {0}/env; cat peers > {0}/first; while :; do sleep 1 & wait $!; done"]
uses = ["db", "nobody"]
reload = "HUP"
stop = {{ grace = "1s" }}

[[service.template]]
to = "peers"
text = """
{{% for it in endpoints.db %}}{{{{ it.address }}}}:{{{{ it.port }}}} {{{{ it.node }}}} {{{{ it.ordinal }}}}
{{% endfor %}}{{{{ endpoints.nobody | length }}}} others
"""
"#,
        dir.display()
    )
}

fn db(replicas: u32) -> String {
    format!(
        r#"[[service]]
name = "db"
replicas = {replicas}
command = ["/usr/bin/env", "python3", "-m", "http.server", "--bind", "127.0.0.1", "{{port}}"]
ports = {{ http = "auto" }}
health = {{ http = "/" }}
"#
    )
}

/// The lines that the file of a client has while the copies of `db` are these.
fn peers(view: &Value) -> String {
    let mut copies: Vec<&Value> = replicas(view).iter().collect();
    copies.sort_by_key(|copy| copy["ordinal"].as_u64());
    let line = |copy: &&Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        format!("{} {} {}\n", text(&copy["addresses"]["http"]), text(&copy["node"]), copy["ordinal"])
    };
    format!("{}0 others\n", copies.iter().map(line).collect::<String>())
}

#[test]
fn files_follow_the_services_that_they_name_and_the_program_is_told() {
    let cluster = TestCluster::start();
    let dir = cluster.dir.join("seen");
    std::fs::create_dir(&dir).unwrap();
    let said = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    cluster.apply(&db(2));
    let before = cluster.wait_service("db", "it is whole", is_whole);
    // Every node has to have heard of both: which one the client runs on is not known.
    for node in cluster.names() {
        wait_for("every node sees both", PATIENCE, || {
            let status = cluster.status(&node)?;
            let db = status["services"].as_array()?.iter().find(|service| service["name"] == "db")?.clone();
            (db["healthy"] == 2).then_some(())
        });
    }
    // By SQL: what was decided.
    let sql = "SELECT group_concat(n.name || '.' || r.ordinal, ' ') FROM replicas r JOIN nodes n ON n.id = r.node \
               WHERE r.service = 'db' AND r.phase = 'run'";
    let decided = cluster.json(&["db", "query", "--database", "system", sql]).to_string();
    for copy in replicas(&before) {
        let placed = format!("{}.{}", copy["node"].as_str().unwrap(), copy["ordinal"]);
        assert!(decided.contains(&placed), "{placed}: {decided}");
    }
    cluster.apply(&client(&dir));
    let started = cluster.wait_service("client", "it runs", is_whole);
    wait_for("its file names both", PATIENCE, || (said("first") == peers(&before)).then_some(()));
    assert!(said("env").lines().any(|line| line == "QUORATE_SERVICE_DB_HOST=db.quorate"), "{}", said("env"));
    assert!(!said("env").contains("QUORATE_SERVICE_DB_PORT"), "its port is another on each node");

    cluster.ok(&["scale", "db", "3"]);
    let after = cluster.wait_service("db", "there are three", |view| is_whole(view) && view["want"] == 3);
    wait_for("it was told of the third", PATIENCE, || (said("told") == peers(&after)).then_some(()));
    cluster.ok(&["scale", "db", "2"]);
    let fewer = cluster.wait_service("db", "there are two", |view| is_whole(view) && view["want"] == 2);
    wait_for("it was told that one is gone", PATIENCE, || (said("told") == peers(&fewer)).then_some(()));
    let same = cluster.service("client");
    assert_eq!(replicas(&same)[0]["pid"], replicas(&started)[0]["pid"], "it is the same process");
}
