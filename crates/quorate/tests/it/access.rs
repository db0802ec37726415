//! Users, sessions, roles and the audit in clusters of real processes that ask who is there.

use crate::cluster::{PATIENCE, Ran, TestCluster, TestNode, free_addresses, wait_for};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use quorate_trust::ca::Ca;
use quorate_trust::key::NodeKey;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

const PASSWORD: &str = "correct horse battery";

pub(crate) struct Guarded {
    pub(crate) cluster: TestCluster,
}

/// One answer: status, JSON (or null), how long it took.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// Seconds, if it says so.
    retry_after: Option<u64>,
    took: Duration,
}

impl Answer {
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Guarded {
    pub(crate) fn start(count: usize) -> Guarded {
        let private = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        let dir = private.path().canonicalize().unwrap();
        let addresses = free_addresses(2 * count);
        let (apis, links) = addresses.split_at(count);
        let ids: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
        let voter = |i: usize| format!("[[voter]]\nid = '{}'\nname = 'n{}'\nlink = '{}'\n", ids[i], i + 1, links[i]);
        let voters: String = (0..count).map(voter).collect();
        let id = Uuid::new_v4();
        let cluster = format!("[cluster]\nid = '{id}'\nname = 'guarded'\n{voters}");
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let made = WallTime(u64::try_from(since_1970.as_micros()).unwrap());
        let ca = Ca::create(ClusterId(id), made, 1).unwrap();
        let mut nodes = Vec::new();
        let mut processes = Vec::new();
        for i in 0..count {
            let name = format!("n{}", i + 1);
            let node = dir.join(&name);
            std::fs::create_dir(&node).unwrap();
            // Nothing is said about logins: they are asked for unless somebody says otherwise.
            let this = format!("[node]\nid = '{}'\nname = '{name}'\nroles = ['manager']\nplain_http = true\n", ids[i]);
            let text = format!("{cluster}{this}api = '{}'\nlink = '{}'\n", apis[i], links[i]);
            std::fs::write(node.join("node.toml"), text).unwrap();
            let key = NodeKey::generate().unwrap();
            let certificate = ca.issue(&key.request().unwrap(), NodeId(ids[i]), &[], made, 2 + i as u128).unwrap();
            let (ca, certificate, key) = (ca.certificate().to_pem(), certificate.to_pem(), key.to_pem().to_string());
            std::fs::create_dir(node.join("tls")).unwrap();
            for (file, text) in [("ca.crt", ca), ("node.crt", certificate), ("node.key", key)] {
                std::fs::write(node.join("tls").join(file), text).unwrap();
            }
            let log = std::fs::File::create(node.join("server.log")).unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
            command.args(["serve", "--data-dir"]).arg(&node).stdin(Stdio::null()).stderr(log);
            processes.push(command.spawn().unwrap());
            nodes.push(TestNode { name, api: format!("http://{}", apis[i]) });
        }
        let guarded = Guarded { cluster: TestCluster::of(nodes, processes, private) };
        guarded.leader();
        guarded
    }

    /// The node that leads: `/v1/active` needs no login.
    pub(crate) fn leader(&self) -> String {
        let active = |node: &&TestNode| {
            self.ask(&node.name, "GET", "/v1/active", &[], &Value::Null).is_some_and(|it| it.status == 200)
        };
        wait_for("a leader", PATIENCE, || self.cluster.nodes.iter().find(active).map(|node| node.name.clone()))
    }

    pub(crate) fn followers(&self) -> Vec<String> {
        let leader = self.leader();
        self.cluster.names().into_iter().filter(|name| *name != leader).collect()
    }

    fn socket(&self, node: &str) -> String {
        format!("unix:{}", self.cluster.node_dir(node).join("api.sock").display())
    }

    /// A command line that talks to `server`, with sessions of its own.
    pub(crate) fn command(&self, server: &str, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.env_remove("QUORATE_SERVER").env_remove("QUORATE_TOKEN_FILE").stdin(Stdio::null());
        command.env("XDG_STATE_HOME", self.cluster.dir.join("state")).env("XDG_RUNTIME_DIR", &self.cluster.dir);
        let output = command.args(["--server", server]).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// A command on a node's own socket, which needs no login.
    pub(crate) fn as_root(&self, node: &str, args: &[&str]) -> String {
        let ran = self.command(&self.socket(node), args);
        assert_eq!(ran.code, 0, "quorate {}: {}{}", args.join(" "), ran.stdout, ran.stderr);
        ran.stdout
    }

    fn password_file(&self) -> PathBuf {
        let file = self.cluster.dir.join("password");
        std::fs::write(&file, PASSWORD).unwrap();
        file
    }

    pub(crate) fn create(&self, user: &str, role: &str) {
        let file = self.password_file();
        let args = ["user", "create", user, "--role", role, "--password-file", file.to_str().unwrap()];
        self.as_root(&self.leader(), &args);
    }

    /// One request as curl would send it; `None` when nobody answers.
    pub(crate) fn ask(
        &self,
        node: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Option<Answer> {
        self.ask_from("127.0.0.1".parse().unwrap(), node, method, path, headers, body)
    }

    /// The same from another address of this machine.
    pub(crate) fn ask_from(
        &self,
        from: IpAddr,
        node: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Option<Answer> {
        let began = Instant::now();
        let address = self.cluster.node(node).api.strip_prefix("http://").unwrap().to_owned();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        let to: SocketAddr = address.parse().unwrap();
        socket.connect(&to.into()).ok()?;
        let mut stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).ok()?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        // A stream never ends: its head is enough.
        let head_end = |answer: &[u8]| answer.windows(4).position(|it| it == b"\r\n\r\n");
        loop {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => answer.extend_from_slice(&piece[..read]),
                Err(_) => return None,
            }
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            if head_end(&answer).is_some() && text.contains("transfer-encoding: chunked") {
                break;
            }
        }
        let end = head_end(&answer)?;
        let status = std::str::from_utf8(&answer[9..12]).ok()?.parse().ok()?;
        let body = serde_json::from_slice(&answer[end + 4..]).unwrap_or(Value::Null);
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        let retry_after = head.lines().find_map(|line| line.strip_prefix("retry-after: ")?.parse().ok());
        Some(Answer { status, body, retry_after, took: began.elapsed() })
    }

    pub(crate) fn log_in(&self, node: &str, user: &str) -> String {
        let body = json!({ "user": user, "password": PASSWORD, "token": true });
        let answer = self.ask(node, "POST", "/v1/login", &[], &body).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        format!("Bearer {}", answer.body["token"].as_str().unwrap())
    }

    pub(crate) fn confirm(&self, node: &str, bearer: &str, operation: &str, target: &str) -> String {
        let body = json!({ "password": PASSWORD, "operation": operation, "target": target });
        let answer = self.ask(node, "POST", "/v1/confirm", &[("Authorization", bearer)], &body).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["confirmation"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_session_survives_the_death_of_the_node_that_opened_it() {
    let guarded = Guarded::start(3);
    guarded.create("admin", "admin");
    let first = guarded.leader();
    let bearer = guarded.log_in(&first, "admin");
    guarded.cluster.kill_servers(std::slice::from_ref(&first));
    let others: Vec<String> = guarded.cluster.names().into_iter().filter(|name| *name != first).collect();
    for node in &others {
        let me = wait_for("the session works elsewhere", PATIENCE, || {
            guarded
                .ask(node, "GET", "/v1/me", &[("Authorization", &bearer)], &Value::Null)
                .filter(|it| it.status == 200)
        });
        assert_eq!(me.body["who"], "admin", "{me:?}");
    }
    // Also one that was opened a moment ago on another node is known at once.
    wait_for("a leader among the others", PATIENCE, || {
        let look = |node: &String| {
            guarded.ask(node, "GET", "/v1/active", &[], &Value::Null).is_some_and(|it| it.status == 200)
        };
        others.iter().any(look).then_some(())
    });
    let fresh = guarded.log_in(&others[0], "admin");
    let me = guarded.ask(&others[1], "GET", "/v1/me", &[("Authorization", &fresh)], &Value::Null).unwrap();
    assert_eq!(me.status, 200, "{me:?}");
    // And its end counts everywhere.
    assert_eq!(
        guarded.ask(&others[1], "POST", "/v1/logout", &[("Authorization", &fresh)], &Value::Null).unwrap().status,
        204
    );
    wait_for("the end is known", PATIENCE, || {
        let me = guarded.ask(&others[0], "GET", "/v1/me", &[("Authorization", &fresh)], &Value::Null)?;
        (me.code() == "session-over").then_some(())
    });
}

#[test]
fn guessing_over_five_nodes_is_evaluated_as_seldom_as_on_one() {
    const TRIES: usize = 2_000;
    let guarded = Guarded::start(5);
    guarded.create("admin", "admin");
    guarded.create("honest", "viewer");
    let began = Instant::now();
    let (evaluated, refused, right) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut honest = Vec::new();
    std::thread::scope(|scope| {
        for (number, node) in guarded.cluster.names().into_iter().enumerate() {
            let (guarded, evaluated, refused, right) = (&guarded, &evaluated, &refused, &right);
            scope.spawn(move || {
                for guess in 0..TRIES {
                    // Each node is asked from addresses of its own: the account alone is counted.
                    let from = IpAddr::from([127, 1, number as u8, (guess % 250) as u8 + 1]);
                    // Every guesser tries the right password, too: it must not be looked at either.
                    let password = if guess % 10 == 9 { PASSWORD } else { "wrong password" };
                    let body = json!({ "user": "admin", "password": password, "token": true });
                    let answer = guarded.ask_from(from, &node, "POST", "/v1/login", &[], &body).unwrap();
                    match (answer.status, answer.code()) {
                        (401, "wrong-credentials") => evaluated.fetch_add(1, Ordering::Relaxed),
                        (429, "too-many-tries") => {
                            assert!(answer.retry_after >= Some(1), "{answer:?}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                        (200, _) => right.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other:?}: {answer:?}"),
                    };
                }
            });
        }
        let body = json!({ "user": "honest", "password": PASSWORD, "token": true });
        for number in 0..20u8 {
            let from = IpAddr::from([127, 2, 0, number + 1]);
            let answer = guarded.ask_from(from, "n2", "POST", "/v1/login", &[], &body).unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            honest.push(answer.took);
        }
    });
    // 5 free tries, then after 1, 3, 7, 15, … seconds.
    let seconds = began.elapsed().as_secs();
    let allowed = 5 + (seconds + 1).ilog2() as usize + 1;
    let (evaluated, refused, right) = (evaluated.into_inner(), refused.into_inner(), right.into_inner());
    // A right guess begins anew; with one in ten right, each of them may be followed by five more.
    assert!(evaluated <= allowed * (right + 1), "{evaluated} of {} in {seconds} s, {right} right", 5 * TRIES);
    assert!(evaluated >= 5 && evaluated + refused + right == 5 * TRIES, "{evaluated} {refused} {right}");
    // Nobody is locked out for good: root not at all, and who knows the password after the wait.
    assert!(guarded.as_root("n3", &["user", "list"]).contains("admin"));
    let body = json!({ "user": "admin", "password": PASSWORD, "token": true });
    let from = IpAddr::from([127, 3, 0, 1]);
    wait_for("the right password is right again", 4 * PATIENCE, || {
        let answer = guarded.ask_from(from, "n4", "POST", "/v1/login", &[], &body)?;
        assert!(answer.status == 200 || answer.retry_after <= Some(seconds + 60), "{answer:?}");
        (answer.status == 200).then_some(())
    });
    honest.sort();
    assert!(honest[18] < Duration::from_secs(5), "honest logins meanwhile: {honest:?}");
}

/// Largest memory of a process so far, in KiB.
pub(crate) fn memory_at_most(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// reliability.md §5.5, "login floods memory": a hash takes 19 MiB, and few are made at a time.
#[test]
fn a_thousand_logins_at_once_are_refused_rather_than_given_memory() {
    let guarded = Guarded::start(1);
    guarded.create("admin", "admin");
    guarded.log_in("n1", "admin");
    let pid = guarded.cluster.pid("n1").unwrap();
    let before = memory_at_most(pid);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let one = |number: u32| {
            let guarded = &guarded;
            // Another account each time, and another source: neither has to wait.
            let from = IpAddr::from(std::net::Ipv4Addr::from(0x7f04_0000 + number * 3));
            let body = json!({ "user": format!("user{number}"), "password": "wrong password", "token": true });
            scope.spawn(move || guarded.ask_from(from, "n1", "POST", "/v1/login", &[], &body).unwrap())
        };
        let all: Vec<_> = (0..1_000).map(one).collect();
        all.into_iter().map(|login| login.join().unwrap()).collect()
    });
    let grew = memory_at_most(pid).saturating_sub(before);
    let looked_at = answers.iter().filter(|answer| answer.code() == "wrong-credentials").count();
    let refused = answers.iter().filter(|it| it.code() == "overloaded" && it.retry_after == Some(1)).count();
    assert_eq!(looked_at + refused, 1_000, "{:?}", answers.iter().find(|it| it.code() != "overloaded"));
    assert!(looked_at > 0 && refused > 0, "{looked_at} looked at, {refused} refused");
    // Two hashes, and a thousand connections.
    assert!(grew <= 64 << 10, "{grew} KiB more");
    guarded.log_in("n1", "admin");
}

/// The matrix that the API's own test declares, from another node than the leader, with real sessions.
#[test]
fn k12_every_role_may_do_what_the_matrix_says_on_a_follower() {
    let guarded = Guarded::start(3);
    let matrix = include_str!("../../../../docs/reference/access-matrix.txt");
    let mut lines = matrix.lines();
    let columns: Vec<(usize, &str)> = {
        let header = lines.next().unwrap();
        let names: Vec<&str> = header.split_whitespace().collect();
        names[1..].iter().map(|name| (header.find(&format!(" {name}")).unwrap() + 1, *name)).collect()
    };
    let node = guarded.followers().remove(0);
    let roles = ["nobody", "viewer", "operator", "deployer", "integration", "maintainer", "auditor", "admin"];
    let mut bearers: BTreeMap<&str, String> = BTreeMap::new();
    for role in &roles[1..] {
        guarded.create(role, role);
        bearers.insert(role, guarded.log_in(&node, role));
    }
    let mut looked = 0;
    for line in lines {
        let mut words = line.split_whitespace();
        let (method, path, operation) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        // They would end the session, or count as a try.
        if ["log-out", "log-in", "confirm", "own-password"].contains(&operation) {
            continue;
        }
        let body = match (method, path) {
            ("POST", "/v1/raft/transfer") => json!({ "node": "n2" }),
            ("POST", "/v1/managers/stop" | "/v1/managers/start") => json!({ "nodes": [node] }),
            ("POST", "/v1/managers/restart" | "/v1/drills") => json!({ "node": node }),
            ("POST", "/v1/settings") => json!({ "set": { "failover": "31s" } }),
            ("PUT", "/v1/managers/rule") => json!({ "requires": null }),
            ("PUT", "/v1/ha") => json!({ "enabled": true }),
            ("PUT", "/v1/nodes/{node}/roles") => json!({ "roles": ["worker"] }),
            ("PUT", "/v1/nodes/{node}/vote") => json!({ "vote": "never" }),
            ("POST", "/v1/users" | "/v1/first-admin") => json!({ "name": "new" }),
            ("PUT", "/v1/users/{name}/password") => json!({}),
            ("POST", "/v1/roles") => json!({ "name": "new", "from": "viewer" }),
            ("POST", "/v1/me/tokens" | "/v1/users/{name}/tokens") => json!({ "scopes": [] }),
            _ => Value::Null,
        };
        // Names that nobody has, unless nothing can happen for want of a confirmation.
        let named = if line.contains("confirm") { node.as_str() } else { "node" };
        let uri = path.replace("{permission}", "log-read").replace("{node}", named).replace(['{', '}'], "");
        for role in roles {
            let (at, _) = columns.iter().find(|(_, name)| *name == role).unwrap();
            let cell = line.get(*at..).unwrap_or_default();
            let declared = cell[..cell.len().min(11)].trim();
            let header = bearers.get(role).map(|bearer| ("Authorization", bearer.as_str()));
            let answer = guarded.ask(&node, method, &uri, header.as_slice(), &body).unwrap();
            let found = match (answer.status, answer.code()) {
                (401, "login-needed") => "log in",
                (403, "not-allowed") => "-",
                (403, "confirmation-needed") => "confirm",
                (401 | 403, other) => other,
                _ => "yes",
            };
            assert_eq!(found, declared, "{role}: {method} {path}: {answer:?}");
            looked += 1;
        }
    }
    assert!(looked > 300, "{looked}");
}

#[test]
fn k5_a_confirmation_is_used_once_even_by_two_racers_on_two_nodes() {
    let guarded = Guarded::start(3);
    guarded.create("admin", "admin");
    guarded.create("bob", "viewer");
    let nodes = guarded.followers();
    let bearer = guarded.log_in(&nodes[0], "admin");
    let act = |node: &str, what: &str, confirmation: Option<&str>| {
        let mut headers = vec![("Authorization", bearer.as_str())];
        headers.extend(confirmation.map(|it| ("Quorate-Confirmation", it)));
        guarded.ask(node, "POST", &format!("/v1/users/bob/{what}"), &headers, &Value::Null).unwrap()
    };
    assert_eq!(act(&nodes[0], "disable", None).code(), "confirmation-needed");
    let other = guarded.confirm(&nodes[0], &bearer, "user-enable", "bob");
    assert_eq!(act(&nodes[1], "disable", Some(&other)).code(), "not-confirmed");
    for round in 0..10 {
        let (what, operation) = if round % 2 == 0 { ("disable", "user-disable") } else { ("enable", "user-enable") };
        let confirmation = guarded.confirm(&nodes[0], &bearer, operation, "bob");
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let racers = nodes.iter().map(|node| scope.spawn(|| act(node, what, Some(&confirmation))));
            let racers: Vec<_> = racers.collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let done = answers.iter().filter(|answer| answer.status == 200).count();
        let refused = answers.iter().filter(|answer| answer.code() == "not-confirmed").count();
        assert_eq!((done, refused), (1, 1), "{answers:?}");
    }
}

#[test]
fn the_audit_of_a_run_holds_on_every_node_and_an_edited_export_does_not() {
    let guarded = Guarded::start(3);
    guarded.create("admin", "admin");
    guarded.create("vera", "viewer");
    let node = guarded.followers().remove(0);
    let (admin, vera) = (guarded.log_in(&node, "admin"), guarded.log_in(&node, "vera"));
    let spec = json!({ "service": [{ "name": "web", "replicas": 2, "command": ["./serve"] }] });
    let apply = |bearer: &str| guarded.ask(&node, "POST", "/v1/specs", &[("Authorization", bearer)], &spec).unwrap();
    assert_eq!(apply(&vera).code(), "not-allowed");
    assert_eq!(apply(&admin).status, 200);
    let wrong = json!({ "user": "admin", "password": "wrong password" });
    assert_eq!(guarded.ask(&node, "POST", "/v1/login", &[], &wrong).unwrap().code(), "wrong-credentials");
    let list = || guarded.as_root(&node, &["audit", "list", "-o", "json"]);
    let entries: Vec<Value> = wait_for("all traces are there", PATIENCE, || {
        let entries: Vec<Value> = serde_json::from_str(&list()).unwrap();
        (entries.len() >= 7).then_some(entries)
    });
    let told = |who: &str, what: &str, outcome: &str| {
        let fits = |entry: &&Value| {
            entry["who"] == who && entry["what"] == what && entry["outcome"].as_str().unwrap().starts_with(outcome)
        };
        assert!(entries.iter().find(fits).is_some(), "{who} {what} {outcome}: {entries:#?}");
    };
    told("root", "user-create", "done");
    told("admin", "log-in", "done");
    told("vera", "service-apply", "denied: ");
    told("admin", "service-apply", "done");
    told("admin", "log-in", "denied: wrong user or password");
    for name in guarded.cluster.names() {
        let said = guarded.as_root(&name, &["audit", "verify"]);
        assert!(said.contains(&format!("✔ {} entries on {name} hold", entries.len())), "{said}");
    }
    let file = guarded.cluster.dir.join("audit.ndjson");
    let export = guarded.as_root(&node, &["audit", "export"]);
    std::fs::write(&file, &export).unwrap();
    let verify = || guarded.command(&guarded.socket(&node), &["audit", "verify", "--file", file.to_str().unwrap()]);
    assert_eq!(verify().code, 0);
    std::fs::write(&file, export.replacen("\"who\":\"vera\"", "\"who\":\"eve\"", 1)).unwrap();
    let ran = verify();
    assert!(ran.code == 1 && ran.stderr.contains("it is not what was written"), "{ran:?}");
    // The files of this run hold nothing that would open a door.
    let secrets = [PASSWORD, admin.strip_prefix("Bearer ").unwrap(), vera.strip_prefix("Bearer ").unwrap()];
    for name in guarded.cluster.names() {
        let mut pending = vec![guarded.cluster.node_dir(&name)];
        while let Some(path) = pending.pop() {
            for entry in std::fs::read_dir(&path).unwrap().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if kind.is_file() {
                    let bytes = std::fs::read(entry.path()).unwrap();
                    for secret in secrets {
                        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                        assert!(!found, "{} holds a secret", entry.path().display());
                    }
                }
            }
        }
    }
}

#[test]
fn people_log_in_programs_have_tokens_and_root_needs_neither() {
    let guarded = Guarded::start(1);
    // Without it there is no leadership to hand over.
    guarded.as_root("n1", &["ha", "enable"]);
    let api = guarded.cluster.node("n1").api.clone();
    let on_api = |args: &[&str]| guarded.command(&api, args);
    let refused = on_api(&["status"]);
    assert!(refused.code == 4 && refused.stderr.contains("quorate login"), "{refused:?}");
    assert_eq!(on_api(&["api", "GET", "/v1/health"]).code, 0);
    let said = guarded.as_root("n1", &["user", "create", "anna", "--role", "operator"]);
    let chosen = said.split("password: ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let file = guarded.cluster.dir.join("anna");
    std::fs::write(&file, &chosen).unwrap();
    let login = on_api(&["login", "anna", "--password-file", file.to_str().unwrap()]);
    assert_eq!(
        (login.code, login.stdout.as_str()),
        (0, "✔ logged in as anna; over after 30 min without a command\n"),
        "{login:?}"
    );
    assert_eq!(on_api(&["status"]).code, 0);
    let denied = on_api(&["user", "list"]);
    assert!(denied.code == 4 && denied.stderr.contains("this needs the permission user-read"), "{denied:?}");
    // Nobody is there to type a password.
    let dangerous = on_api(&["raft", "transfer", "n1"]);
    assert!(dangerous.code == 2 && dangerous.stderr.contains("--dangerous"), "{dangerous:?}");
    let sessions: Vec<Value> =
        serde_json::from_str(&guarded.as_root("n1", &["session", "list", "-o", "json"])).unwrap();
    assert_eq!((sessions.len(), &sessions[0]["user"]), (1, &json!("anna")));
    guarded.as_root("n1", &["session", "revoke", sessions[0]["id"].as_str().unwrap()]);
    let over = on_api(&["status"]);
    assert!(over.code == 4 && over.stderr.contains("log in again"), "{over:?}");
    assert_eq!(on_api(&["logout"]).code, 0);

    let made = guarded.as_root(
        "n1",
        &[
            "token",
            "create",
            "drill",
            "--user",
            "anna",
            "--scope",
            "cluster-read",
            "--scope",
            "manager-control",
            "--dangerous",
        ],
    );
    let token = guarded.cluster.dir.join("token");
    std::fs::write(&token, &made).unwrap();
    let with_token = |args: &[&str]| on_api(&[&["--token-file", token.to_str().unwrap()], args].concat());
    assert_eq!(with_token(&["status"]).code, 0);
    assert_eq!(with_token(&["raft", "transfer", "n1"]).code, 0);
    assert_eq!(with_token(&["db", "query", "SELECT 1"]).code, 4);
    let id = made.trim().split('_').nth(1).unwrap();
    guarded.as_root("n1", &["token", "revoke", id]);
    assert_eq!(with_token(&["status"]).code, 4);

    guarded.as_root("n1", &["role", "clone", "inspector", "auditor"]);
    guarded.as_root("n1", &["role", "grant", "inspector", "--permission", "log-read"]);
    guarded.as_root("n1", &["role", "grant", "inspector", "--user", "anna"]);
    let shown = guarded.as_root("n1", &["user", "show", "anna"]);
    assert!(shown.contains("inspector,operator"), "{shown}");
    let unknown = guarded.command(&guarded.socket("n1"), &["user", "show", "ana"]);
    assert!(unknown.code == 6 && unknown.stderr.contains("did you mean `anna`?"), "{unknown:?}");
    let system =
        guarded.command(&guarded.socket("n1"), &["db", "query", "--database", "system", "SELECT * FROM users"]);
    assert!(system.code == 1 && system.stderr.contains("are not read by SQL"), "{system:?}");
    guarded.as_root("n1", &["user", "remove", "anna", "--yes"]);
    assert_eq!(guarded.as_root("n1", &["user", "list", "-o", "json"]), "[]\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(guarded.cluster.node_dir("n1").join("api.sock")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}
