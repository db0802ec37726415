//! Secrets: sealed before they are proposed, opened by managers alone, and nowhere in clear.

use crate::cluster::{PATIENCE, wait_for};
use crate::trusting::{Plan, Trusting, now};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_trust::sealing::{ClusterKey, KeyRing, KeyVersion, Place};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use uuid::Uuid;

const ALL: &[&str] = &["n1", "n2", "n3"];
/// See [`forms`].
const FORMS: usize = 5;

/// All files below, with their bytes.
fn files(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            found.push((path.clone(), std::fs::read(&path).unwrap_or_default()));
        }
    }
}

/// What a node's keys and files make of a secret: every value of it that can be opened there.
fn opened(cluster: &Trusting, node: &str, secret: &str) -> BTreeSet<String> {
    let dir = &cluster.server(node).dir;
    let keys: Value = serde_json::from_slice(&std::fs::read(dir.join("tls/cluster.key")).unwrap()).unwrap();
    let rings: Vec<KeyRing> = keys
        .as_array()
        .unwrap()
        .iter()
        .map(|key| {
            let hex = key["key"].as_str().unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
            let version = KeyVersion(u32::try_from(key["version"].as_u64().unwrap()).unwrap());
            KeyRing::new(ClusterKey::from_bytes(version, std::array::from_fn(byte)))
        })
        .collect();
    let mut all = Vec::new();
    files(&dir.join("db"), &mut all);
    let mut values = BTreeSet::new();
    for (_, bytes) in &all {
        let text = String::from_utf8_lossy(bytes);
        for candidate in text.split("\"sealed\":\"").skip(1).filter_map(|rest| rest.split_once('"')) {
            let Ok(sealed) = STANDARD.decode(candidate.0) else { continue };
            let place = Place { table: "secrets", row: secret };
            let value = rings.iter().find_map(|ring| ring.open(place, &sealed).ok());
            values.extend(value.map(|value| String::from_utf8(value.to_vec()).unwrap()));
        }
    }
    values
}

fn set(cluster: &Trusting, node: &str, name: &str, value: &str) -> Value {
    let mut command = cluster.command(node, &["secret", "set", name, "--file", "-", "-o", "json"]);
    let mut process = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains(value), "no answer holds it");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_secret_is_opened_after_restarts_another_leader_a_rotation_of_the_ca_and_a_removal() {
    let mut cluster = Trusting::start(&Plan { nodes: 3, keepers: ALL, made: now(), found_at: None });
    let opens = |cluster: &Trusting, node: &str, value: &str| {
        wait_for("the secret is opened", PATIENCE, || opened(cluster, node, "pg").contains(value).then_some(()));
    };
    assert_eq!(set(&cluster, "n1", "pg", "first")["version"], 1);
    assert_eq!(set(&cluster, "n2", "PG", "second value")["version"], 2, "a name is written in one way");
    ALL.iter().for_each(|name| opens(&cluster, name, "second value"));
    let listed = cluster.ask("n3", &["secret", "list"]);
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"]), (1, &Value::from("pg")));

    let leader = cluster.leader();
    cluster.kill(&leader);
    let other = ALL.iter().copied().find(|name| *name != leader).unwrap();
    wait_for("another leader", PATIENCE, || (cluster.leader() != leader).then_some(()));
    opens(&cluster, other, "second value");
    assert_eq!(set(&cluster, other, "pg", "third value")["version"], 3);
    cluster.run(&leader);
    cluster.whole();
    opens(&cluster, &leader, "third value");

    assert_eq!(cluster.ran("n1", &["cert", "rotate", "--yes"]).code, 0);
    let key = |cluster: &Trusting, node: &str, kind: &str| -> Option<(u64, String)> {
        let shown = cluster.try_ask(node, &["cert", "show"])?;
        let key = shown["keys"].as_array()?.iter().find(|key| key["key"] == kind)?.clone();
        Some((key["number"].as_u64()?, key["stage"].as_str()?.to_owned()))
    };
    wait_for("the rotation", PATIENCE, || (key(&cluster, "n1", "authority")? == (2, "done".into())).then_some(()));
    ALL.iter().for_each(|name| opens(&cluster, name, "third value"));

    let leader = cluster.leader();
    let out = ALL.iter().copied().find(|name| *name != leader).unwrap();
    let stay: Vec<&str> = ALL.iter().copied().filter(|name| *name != out).collect();
    cluster.kill(out);
    cluster.ask(&leader, &["node", "remove", out, "--yes"]);
    wait_for("a new key", PATIENCE, || (key(&cluster, &leader, "secrets")? == (2, "done".into())).then_some(()));
    assert_eq!(set(&cluster, &leader, "other", "under the new key")["key"], 2);
    for name in &stay {
        let keys = std::fs::read_to_string(cluster.server(name).dir.join("tls/cluster.key")).unwrap();
        assert!(keys.contains("\"version\":2") && !keys.contains("\"version\":1"), "one key, the second");
        opens(&cluster, name, "third value");
    }
    for name in &stay {
        cluster.kill(name);
    }
    for name in &stay {
        cluster.run(name);
    }
    wait_for("the rest serves again", PATIENCE, || {
        cluster.try_ask(stay[0], &["secret", "show", "pg"]).filter(|shown| shown["key"] == 2)
    });
    opens(&cluster, stay[0], "third value");
    assert_eq!(cluster.ran(stay[0], &["secret", "remove", "pg", "--yes"]).code, 0);
    assert_eq!(cluster.ran(stay[0], &["-o", "json", "secret", "show", "pg"]).code, 6);
}

/// Stands between the nodes and keeps every byte.
struct Recorder {
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// Whoever connects to `at` is connected to `to`.
    fn between(&self, at: &str, to: &str) {
        let listener = TcpListener::bind(at).unwrap();
        let (to, heard) = (to.to_owned(), self.heard.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(onward) = TcpStream::connect(&to) else { continue };
                for (from, into) in [(&stream, &onward), (&onward, &stream)] {
                    let (mut from, mut into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let heard = heard.clone();
                    std::thread::spawn(move || {
                        let mut chunk = vec![0; 64 << 10];
                        while let Ok(got @ 1..) = from.read(&mut chunk) {
                            heard.lock().unwrap().extend_from_slice(&chunk[..got]);
                            if into.write_all(&chunk[..got]).is_err() {
                                break;
                            }
                        }
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
            }
        });
    }
}

/// The needles that are somewhere in these bytes. One pass for all of them: there is a lot to look at.
fn found<'a>(haystack: &[u8], needles: &'a [Vec<u8>]) -> Vec<&'a [u8]> {
    let mut begins = vec![false; 1 << 16];
    for needle in needles {
        begins[usize::from(needle[0]) << 8 | usize::from(needle[1])] = true;
    }
    let mut found = Vec::new();
    let mut before = 0;
    for (at, byte) in haystack.iter().enumerate() {
        let pair = before << 8 & 0xffff | usize::from(*byte);
        before = pair;
        if begins[pair] && at > 0 {
            let rest = &haystack[at - 1..];
            found.extend(needles.iter().filter(|needle| rest.starts_with(needle)).map(Vec::as_slice));
        }
    }
    found
}

/// How somebody could find it: as it is, and in the ways in which bytes are written as text.
fn forms(canary: &str) -> [Vec<u8>; FORMS] {
    let hex: String = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
    // Base64 depends on where it begins; the middle of each of the three ways is the same everywhere.
    let base64 = |skip: usize| {
        let text = STANDARD.encode(&canary.as_bytes()[skip..]);
        text.as_bytes()[..text.len() / 4 * 4 - 8].to_vec()
    };
    [canary.into(), hex.into_bytes(), base64(0), base64(1), base64(2)]
}

/// Threat lines *secrets in logs, backups* and *sniffing between nodes*.
#[test]
fn canaries_are_found_in_no_file_no_log_and_not_between_nodes() {
    // Other nodes and clients find everybody at 127.0.0.2, where the recorder is.
    let found_at = |link: &str| link.replace("127.0.0.1", "127.0.0.2");
    let plan = Plan { nodes: 3, keepers: ALL, made: now(), found_at: Some(&found_at) };
    let mut cluster = Trusting::prepare(&plan);
    let recorder = Recorder { heard: Arc::default() };
    for server in &cluster.servers {
        let config = server.dir.join("node.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let (api, link) = (found_at(&server.api), found_at(&server.link));
        let announced = format!("[node]\nannounced = {{ api = '{api}', link = '{link}', because = 'a test' }}\n");
        std::fs::write(&config, text.replacen("[node]\n", &announced, 1)).unwrap();
        for address in [&server.api, &server.link] {
            recorder.between(&found_at(address), address);
        }
    }
    ALL.iter().for_each(|name| cluster.run(name));
    cluster.whole();

    // What people type stays outside of the cluster's directory.
    let people = tempfile::tempdir().unwrap();
    let canary = |what: &str| format!("canary-{what}-{}", Uuid::new_v4().simple());
    let (value, password) = (canary("secret"), canary("password"));
    let write = |name: &str, text: &str| {
        let path = people.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (value_file, password_file) = (write("value", &value), write("password", &password));
    let leader = cluster.leader();
    let follower = ALL.iter().copied().find(|name| *name != leader).unwrap();
    let pin = cluster.ca.certificate().fingerprint().to_string();
    let url = format!("https://{}", found_at(&cluster.server(follower).api));
    let remote = |args: &[&str], token: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.env("HOME", people.path()).env_remove("XDG_STATE_HOME").env_remove("QUORATE_TOKEN_FILE");
        command.args(["--server", &url, "--ca-pin", &pin, "-o", "json"]);
        if let Some(token) = token {
            command.args(["--token-file", token]);
        }
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or(Value::Null)
    };
    cluster.ask(follower, &["user", "create", "anna", "--role", "admin", "--password-file", &password_file]);
    remote(&["login", "anna", "--password-file", &password_file], None);
    let scopes = ["--scope", "secret-write", "--scope", "secret-read", "--scope", "member-write", "--dangerous"];
    let made = cluster.ask(follower, &[&["token", "create", "ci", "--user", "anna"][..], &scopes[..]].concat());
    let token = made["token"].as_str().unwrap().to_owned();
    let token_file = write("token", &token);
    remote(&["secret", "set", "pg", "--file", &value_file], Some(&token_file));
    let invited = remote(&["add-node"], Some(&token_file));
    let invited = invited["commands"][0].as_str().unwrap();
    let join_secret = invited.split('/').nth(1).unwrap().to_owned();
    // A wrong use of each, of which somebody might write too much.
    let wrong = cluster.ran(follower, &["api", "PUT", "/v1/secrets/No%20name", "--data", &value]);
    assert!(wrong.code != 0 && !wrong.stderr.contains(&value), "{wrong:?}");
    // A whole database goes to a node that was away, and everything is read from the disks once more.
    for name in ALL {
        cluster.kill(name);
        cluster.run(name);
        cluster.whole();
    }
    assert_eq!(remote(&["secret", "show", "pg"], Some(&token_file))["name"], "pg");
    ALL.iter().for_each(|name| cluster.kill(name));

    let mut everything = Vec::new();
    files(cluster.dir.path(), &mut everything);
    let names: Vec<String> = everything.iter().map(|(path, _)| path.display().to_string()).collect();
    for part in ["/log/", "/db/", "server.log", "/managers/", "cluster.key"] {
        assert!(names.iter().any(|name| name.contains(part)), "{part} was looked at");
    }
    everything.push(("the wire".into(), std::mem::take(&mut *recorder.heard.lock().unwrap())));
    let wire = &everything.last().unwrap().1;
    assert!(wire.len() > 100_000, "the recorder heard {} bytes", wire.len());
    let token_secret = token.rsplit('_').next().unwrap().to_owned();
    let canaries = [("secret", value), ("password", password), ("token", token_secret), ("join secret", join_secret)];
    let needles: Vec<Vec<u8>> = canaries.iter().flat_map(|(_, canary)| forms(canary)).collect();
    for (path, bytes) in &everything {
        let names = found(bytes, &needles).into_iter().map(|needle| {
            let number = needles.iter().position(|other| other == needle).unwrap();
            canaries[number / FORMS].0
        });
        let names: Vec<&str> = names.collect();
        assert!(names.is_empty(), "{names:?} in {}", path.display());
    }
    // The search would have found them: the names, which are no secrets, are there.
    for public in ["anna", "\"name\":\"pg\""] {
        let needle = [public.as_bytes().to_vec()];
        assert!(everything.iter().any(|(_, bytes)| !found(bytes, &needle).is_empty()), "{public}");
    }
}
