//! K13: what a service needs is on a node before the service may be; and secrets, which it is given as well.

use crate::cluster::{PATIENCE, TestCluster, lives, processes_of, wait_for};
use crate::fake::refusing;
use crate::founded::Founded;
use crate::show::{is_whole, nodes};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// A server of one file that can be taken away.
struct FileServer {
    url: String,
    answered: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
}

impl FileServer {
    fn start(content: &'static str) -> FileServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/app.sh", listener.local_addr().unwrap());
        let (answered, gone): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let server = FileServer { url, answered: answered.clone(), gone: gone.clone() };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if gone.load(Ordering::SeqCst) {
                    continue;
                }
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len());
                if stream.write_all((head + content).as_bytes()).is_ok() {
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        server
    }
}

/// Why a node may not run the service, or the empty text.
fn unfit(cluster: &TestCluster, service: &str, node: &str) -> String {
    let explained = cluster.json(&["explain", service]);
    let asked = explained["running"].as_array().unwrap().iter().chain(explained["searches"].as_array().unwrap());
    let mut all = asked.flat_map(|one| one["unfit"].as_array().unwrap());
    all.find(|one| one["node"] == node).map(|one| one["why"].as_str().unwrap().to_owned()).unwrap_or_default()
}

const APP: &str = "#!/bin/sh\nexec sleep 100000\n";

#[test]
fn k13_an_artifact_is_on_every_node_before_it_is_needed_and_a_failover_downloads_nothing() {
    let cluster = TestCluster::start();
    let server = FileServer::start(APP);
    let file = cluster.spec_file("app.sh", APP);
    let hash = cluster.ok(&["artifact", "hash", &file]).trim().to_owned();
    // Where a file lies no directory can be made: n3 has no room for artifacts.
    let spoilt = cluster.node_dir("n3").join("artifacts");
    let _ = std::fs::remove_dir_all(&spoilt);
    std::fs::write(&spoilt, "").unwrap();
    let spec = |hash: &str| {
        format!(
            "[[service]]\nname = 'app'\ncommand = ['{{artifact}}']\n\
             artifact = [{{ source = '{}', sha256 = '{hash}' }}]\n",
            server.url
        )
    };

    let wrong = "0".repeat(64);
    let wrong_file = cluster.spec_file("wrong.toml", &spec(&wrong));
    cluster.ok(&["service", "apply", "-f", &wrong_file, "--yes", "--no-wait"]);
    let expected = format!("lacks artifact main (its SHA-256 is {hash}, and the spec says {wrong})");
    wait_for("the wrong hash is said", PATIENCE, || (unfit(&cluster, "app", "n1") == expected).then_some(()));
    assert_eq!(cluster.service("app")["replicas"].as_array().unwrap().len(), 0, "it never ran");

    cluster.apply(&spec(&hash));
    wait_for("the others have it", PATIENCE, || {
        let has = |node: &str| cluster.node_dir(node).join("artifacts").join(&hash).join("app.sh").is_file();
        (has("n1") && has("n2")).then_some(())
    });
    let lacking = wait_for("n3 says what it lacks", PATIENCE, || {
        Some(unfit(&cluster, "app", "n3")).filter(|why| why.starts_with("lacks artifact main (cannot put"))
    });
    assert!(lacking.contains("Not a directory") || lacking.contains("File exists"), "{lacking}");

    server.gone.store(true, Ordering::SeqCst);
    let downloads = server.answered.load(Ordering::SeqCst);
    let victim = nodes(&cluster.service("app")).pop_first().unwrap();
    cluster.kill(&victim);
    let other = if victim == "n1" { "n2" } else { "n1" };
    cluster.wait_service("app", "the other took over", |view: &Value| is_whole(view) && nodes(view).contains(other));
    assert_eq!(server.answered.load(Ordering::SeqCst), downloads);
}

#[test]
fn k13_a_requirement_is_checked_on_the_nodes_again_and_again() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let (_port, address) = refusing();
    let listener = TcpListener::bind(address).unwrap();
    let present = cluster.spec_file("present", "");
    let spec = cluster.spec_file(
        "needy.toml",
        &format!(
            "[[service]]\nname = 'needy'\ncommand = ['sleep', '100000']\n\
             requires = [{{ command = 'sh' }}, {{ file = '{present}' }}, {{ reach = '{address}' }}]\n"
        ),
    );
    std::fs::remove_file(&present).unwrap();
    cluster.ok(&["service", "apply", "-f", &spec, "--yes", "--no-wait"]);
    wait_for("the missing file is said", PATIENCE, || {
        unfit(&cluster, "needy", "n1").starts_with(&format!("lacks file {present} (")).then_some(())
    });
    std::fs::write(&present, "").unwrap();
    cluster.wait_service("needy", "it starts by itself", is_whole);
    drop(listener);
    let why = wait_for("the lost address is said", PATIENCE, || {
        Some(unfit(&cluster, "needy", "n1")).filter(|why| !why.is_empty())
    });
    assert!(why.starts_with(&format!("lacks reach {address} (")), "{why}");
    assert!(is_whole(&cluster.service("needy")), "what runs is left alone");
}

/// What the copies of a service wrote on a node, one line each.
fn written(view: &Value) -> Vec<String> {
    let dirs = view["replicas"].as_array().into_iter().flatten().filter_map(|replica| replica["log_dir"].as_str());
    let files = dirs.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let texts = files.filter_map(|file| std::fs::read(file.path()).ok());
    texts.flat_map(|text| String::from_utf8_lossy(&text).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Threat line *secrets in backups*: a worker is given what its services name, and keeps it in `tls/` alone.
#[test]
fn secrets_reach_the_copies_that_name_them_and_no_other_node() {
    let mut founded = Founded::new();
    founded.add("n2", &["--role", "worker"]);
    founded.add("n3", &["--role", "worker"]);
    for worker in ["n2", "n3"] {
        founded.wait_state(&["n1"], worker, "joined");
        founded.tie(worker);
    }
    let file = |name: &str, text: &str| {
        let path = founded.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (first, second) = (file("first", "canary-one"), file("second", "canary-two"));
    let script = r#"case "$PG" in x=canary-*one) echo is-one;; x=canary-*two) echo is-two;; esac; exec sleep 100000"#;
    let spec = file(
        "spec.toml",
        &format!(
            "[[service]]\nname = 'app'\ncommand = ['/bin/sh', '-c', '''{script}''']\n\
             secrets = ['pg']\nenv = {{ PG = 'x={{secret.pg}}' }}\nplace = {{ require = ['node = n2'] }}\n"
        ),
    );
    wait_for("the spec is taken", PATIENCE, || {
        (founded.command(&["service", "apply", "-f", &spec, "--yes", "--no-wait"]).code == 0).then_some(())
    });
    let held = |what: &str| {
        let shown = founded.try_ask(&["service", "show", "app", "-o", "json"])?;
        shown["held"].to_string().contains(what).then_some(())
    };
    wait_for("it waits for its secret", PATIENCE, || held("lacks secret pg (there is none: `quorate secret set pg`)"));

    founded.ask(&["secret", "set", "pg", "--file", &first]);
    let says = |what: &str| {
        let shown = founded.try_ask(&["service", "show", "app", "-o", "json"])?;
        (is_whole(&shown) && written(&shown).iter().any(|line| line == what)).then_some(shown)
    };
    let before = wait_for("it has the secret", PATIENCE, || says("is-one"));
    founded.ask(&["secret", "set", "pg", "--file", &second]);
    let after = wait_for("it was restarted with the new value", PATIENCE, || says("is-two"));
    assert_ne!(before["replicas"][0]["id"], after["replicas"][0]["id"]);

    // A restart needs no manager.
    let pid = u32::try_from(after["replicas"][0]["pid"].as_u64().unwrap()).unwrap();
    let log = after["replicas"][0]["log_dir"].as_str().unwrap().to_owned();
    founded.kill("n1");
    founded.kill("n2");
    for process in processes_of(&founded.home("n2").display().to_string()).into_keys() {
        // One takes others along.
        let process = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
    wait_for("nothing of it runs", PATIENCE, || (!lives(pid)).then_some(()));
    founded.start("n2");
    let again = serde_json::json!({ "replicas": [{ "log_dir": log }] });
    wait_for("it runs again", PATIENCE, || {
        (written(&again).iter().filter(|line| *line == "is-two").count() == 2).then_some(())
    });

    for (node, may) in [("n1", false), ("n2", true), ("n3", false)] {
        let mut open = vec![founded.home(node)];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(std::fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
                continue;
            }
            let content = std::fs::read(&path).unwrap_or_default();
            for canary in [&b"canary-two"[..], b"Y2FuYXJ5LXR3b"] {
                let found = content.windows(canary.len()).any(|window| window == canary);
                let expected = may && canary[0] == b'Y' && path.ends_with("tls/secrets.json");
                assert_eq!(found, expected, "{}", path.display());
            }
        }
    }
}
