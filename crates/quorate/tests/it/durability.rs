//! What was acknowledged is there, once and on every node, whatever fails (user stories U1, U2, U3
//! and experience E9).

use crate::cluster::{Http, PATIENCE, TestCluster, lives, signal, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Clients that write one row after the other into `w`, each row with an id of its own and each
/// request to the next node. When an answer does not say that it is done, they send the same
/// request id to the next node, until one says so.
pub(crate) struct Workload {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<Uuid>>>,
    clients: Vec<JoinHandle<()>>,
}

/// A write that takes longer than this in all is not available any more.
const GIVE_UP: Duration = Duration::from_secs(40);

impl Workload {
    pub(crate) const TABLE: &str =
        "CREATE TABLE w(n INTEGER PRIMARY KEY, id TEXT NOT NULL, client INTEGER NOT NULL, text TEXT NOT NULL) STRICT";

    /// `bytes` is the size of each row.
    pub(crate) fn start(cluster: &TestCluster, clients: usize, bytes: usize) -> Workload {
        cluster.exec("n1", Workload::TABLE);
        Workload::go_on(cluster, clients, bytes)
    }

    pub(crate) fn go_on(cluster: &TestCluster, clients: usize, bytes: usize) -> Workload {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let urls: Vec<String> = cluster.nodes.iter().map(|node| format!("{}/v1/db/exec", node.api)).collect();
        let turn = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients).map(|client| {
            let (stop, acknowledged, urls, turn) = (stop.clone(), acknowledged.clone(), urls.clone(), turn.clone());
            std::thread::spawn(move || {
                let http = Http::new(Duration::from_secs(3));
                let text = "x".repeat(bytes);
                while !stop.load(Ordering::Relaxed) {
                    let id = Uuid::new_v4();
                    let body = json!({ "sql": "INSERT INTO w(id, client, text) VALUES (?, ?, ?)",
                        "params": [id.to_string(), client, text], "timeout_ms": 1_000 });
                    let deadline = Instant::now() + GIVE_UP;
                    loop {
                        let url = &urls[turn.fetch_add(1, Ordering::Relaxed) % urls.len()];
                        match http.post(url, Some(id), &body) {
                            Ok((200, answer)) => {
                                assert_eq!(answer["results"][0]["rows_affected"], 1, "{answer}");
                                break;
                            }
                            Ok((503 | 504, _)) | Err(_) => {}
                            Ok((status, answer)) => panic!("a write was answered with {status} {answer}"),
                        }
                        assert!(Instant::now() < deadline, "no node took a write for {GIVE_UP:?}");
                    }
                    acknowledged.lock().unwrap().insert(id);
                }
            })
        });
        let clients = clients.collect();
        Workload { stop, acknowledged, clients }
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) fn more(&self, writes: usize) {
        let wanted = self.acknowledged() + writes;
        wait_for("more acknowledged writes", GIVE_UP, || (self.acknowledged() >= wanted).then_some(()));
    }

    /// Stops the clients when all that they have begun is acknowledged.
    pub(crate) fn finish(self) -> BTreeSet<Uuid> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("every write was acknowledged in the end");
        }
        std::mem::take(&mut self.acknowledged.lock().unwrap())
    }
}

/// Waits until all nodes have applied the same index, and returns what the statement then reads on
/// each, which must be the same rows.
pub(crate) fn same_everywhere(cluster: &TestCluster, sql: &str) -> Vec<Value> {
    let answers = wait_for("the same applied index on all nodes", PATIENCE, || {
        let answers = cluster.nodes.iter().map(|node| cluster.try_query(&node.name, sql, "local"));
        let answers: Vec<Value> = answers.map(|answer| answer.ok().map(|(_, body)| body)).collect::<Option<_>>()?;
        let applied = answers[0]["applied"].as_u64()?;
        answers.iter().all(|answer| answer["applied"] == applied).then_some(answers)
    });
    for (node, answer) in cluster.nodes.iter().zip(&answers).skip(1) {
        let same = answer["results"] == answers[0]["results"];
        assert!(same, "{} differs from {} at index {}", node.name, cluster.nodes[0].name, answer["applied"]);
    }
    answers[0]["results"][0]["rows"].as_array().unwrap().clone()
}

/// Every acknowledged write is there exactly once and nothing else is, the same on all nodes; and
/// the nodes themselves have compared their digests and found no difference.
pub(crate) fn nothing_is_lost(cluster: &TestCluster, acknowledged: &BTreeSet<Uuid>) {
    let rows = same_everywhere(cluster, "SELECT n, id, client, length(text), substr(text, 1, 64) FROM w ORDER BY n");
    let mut found: BTreeMap<Uuid, usize> = BTreeMap::new();
    for row in &rows {
        *found.entry(row[1].as_str().unwrap().parse().unwrap()).or_default() += 1;
    }
    let lost: Vec<&Uuid> = acknowledged.iter().filter(|id| !found.contains_key(id)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes are lost: {lost:?}", lost.len(), acknowledged.len());
    let repeated: Vec<_> = found.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "done more than once: {repeated:?}");
    assert_eq!(found.len(), acknowledged.len(), "every client waited for its last write");
    nodes_agree(cluster);
}

/// Each node has compared digests with another since its last start, and none has seen a difference.
pub(crate) fn nodes_agree(cluster: &TestCluster) {
    for node in &cluster.nodes {
        wait_for("a comparison of digests", PATIENCE, || {
            (cluster.status(&node.name)?["cluster"]["digests_compared"].as_u64()? > 0).then_some(())
        });
        let body = json!({ "sql": "SELECT body FROM events WHERE kind = 'diverged'", "database": "system" });
        let (_, answer) = cluster.http.post(&format!("{}/v1/db/query", node.api), None, &body).unwrap();
        assert_eq!(answer["results"][0]["rows"], json!([]), "{}: {answer}", node.name);
    }
}

/// U1, E9.
#[test]
fn no_acknowledged_write_is_lost_while_nodes_die_and_return_twenty_times() {
    let cluster = TestCluster::start();
    let workload = Workload::start(&cluster, 4, 64);
    workload.more(50);
    for round in 0..20 {
        let victim = match round % 2 {
            0 => cluster.leader(),
            _ => cluster.followers()[round / 2 % 2].clone(),
        };
        cluster.ok(&["dev", "kill", &victim]);
        workload.more(30);
        cluster.ok(&["dev", "start", &victim]);
        cluster.wait_whole();
        workload.more(30);
    }
    nothing_is_lost(&cluster, &workload.finish());
}

/// U1, E9: all of the cluster's power fails.
#[test]
fn no_acknowledged_write_is_lost_when_all_servers_die_at_once() {
    let cluster = TestCluster::start();
    let workload = Workload::start(&cluster, 4, 64);
    for _ in 0..5 {
        workload.more(100);
        cluster.kill_servers(&cluster.names());
        for node in cluster.names() {
            cluster.start_node(&node);
        }
        cluster.wait_whole();
    }
    workload.more(50);
    nothing_is_lost(&cluster, &workload.finish());
}

/// U3: local reads need nobody, and say how old they are; everything else fails in time.
#[test]
fn a_node_without_a_majority_reads_locally_and_keeps_its_word_later() {
    let cluster = TestCluster::start();
    cluster.exec("n1", "CREATE TABLE t(text TEXT NOT NULL) STRICT");
    cluster.exec("n1", "INSERT INTO t VALUES ('before')");
    let (alone, other, leader) = {
        let followers = cluster.followers();
        (followers[0].clone(), followers[1].clone(), cluster.leader())
    };
    same_everywhere(&cluster, "SELECT text FROM t");
    cluster.kill_servers(&[other.clone(), leader.clone()]);

    let age = || cluster.local(&alone, "SELECT text FROM t")["age_ms"].as_u64().unwrap();
    let first = age();
    wait_for("the age grows", PATIENCE, || (age() >= first + 1_000).then_some(()));
    assert_eq!(cluster.local(&alone, "SELECT text FROM t")["results"][0]["rows"], json!([["before"]]));

    let api = &cluster.node(&alone).api;
    let began = Instant::now();
    let body = json!({ "sql": "SELECT 1", "timeout_ms": 500 });
    let (status, problem) = cluster.http.post(&format!("{api}/v1/db/query"), None, &body).unwrap();
    assert_eq!((status, &problem["code"]), (503, &json!("no-leader")), "{problem}");
    assert!(problem["fix"].as_str().unwrap().contains("local"), "{problem}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());

    let id = Uuid::new_v4();
    let began = Instant::now();
    let write = json!({ "sql": "INSERT INTO t VALUES ('meanwhile')", "timeout_ms": 500 });
    let (status, problem) = cluster.try_exec(&alone, id, &write).unwrap();
    assert_eq!((status, &problem["code"]), (504, &json!("outcome-unknown")), "{problem}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());

    let file = cluster.node_dir(&alone).join("db/current/main.db");
    let shell = Command::new("sqlite3").args(["-readonly", "-batch"]).arg(&file).arg("SELECT text FROM t").output();
    let shell = shell.expect("the Debian package sqlite3");
    assert_eq!(String::from_utf8_lossy(&shell.stdout), "before\n", "{}", String::from_utf8_lossy(&shell.stderr));

    for node in [&other, &leader] {
        cluster.start_node(node);
    }
    cluster.wait_whole();
    for node in cluster.names() {
        let (status, answer) = cluster.try_exec(&node, id, &write).unwrap();
        assert_eq!((status, &answer["results"][0]["rows_affected"]), (200, &json!(1)), "{answer}");
    }
    let rows = same_everywhere(&cluster, "SELECT text FROM t ORDER BY rowid");
    assert_eq!(rows, [json!(["before"]), json!(["meanwhile"])]);
}

/// U2: a node that does not lead passes a write on.
#[test]
fn a_write_sent_to_any_node_is_done_and_seen_there() {
    let cluster = TestCluster::start();
    cluster.exec("n1", "CREATE TABLE t(id INTEGER PRIMARY KEY, by TEXT) STRICT");
    for node in cluster.names() {
        cluster.exec(&node, &format!("INSERT INTO t(by) VALUES ('{node}')"));
        let rows = cluster.local(&node, &format!("SELECT count(*) FROM t WHERE by = '{node}'"));
        assert_eq!(rows["results"][0]["rows"], json!([[1]]), "a client reads its own write on {node}");
    }
}

/// U2.
#[test]
fn a_request_id_sent_to_all_nodes_is_done_once_and_answered_alike() {
    let cluster = TestCluster::start();
    cluster.exec("n1", "CREATE TABLE t(id INTEGER PRIMARY KEY, r INTEGER) STRICT");
    let write = json!({ "sql": "INSERT INTO t(r) VALUES (random()) RETURNING id, r" });
    for round in 1..=20 {
        let id = Uuid::new_v4();
        let answers: Vec<Value> = std::thread::scope(|scope| {
            let cluster = &cluster;
            let write = &write;
            let ask = |node: String| scope.spawn(move || cluster.try_exec(&node, id, write).unwrap());
            let asked: Vec<_> = cluster.names().into_iter().map(ask).collect();
            let answers = asked.into_iter().map(|asked| asked.join().unwrap());
            answers.map(|(status, answer)| if status == 200 { answer } else { panic!("{status} {answer}") }).collect()
        });
        assert_eq!(answers[0]["results"][0]["rows"][0][0], round, "{answers:?}");
        assert!(answers.iter().all(|answer| answer["results"] == answers[0]["results"]), "{answers:?}");
        let (_, later) = cluster.try_exec("n2", id, &write).unwrap();
        assert_eq!(later["results"], answers[0]["results"]);
    }
    assert_eq!(same_everywhere(&cluster, "SELECT * FROM t ORDER BY id").len(), 20);
}

/// `strace` on all threads of a process; without it there is no test.
fn strace(pid: u32, args: &[&str], output: &std::path::Path) -> Child {
    let mut command = Command::new("strace");
    command.args(["-f", "-q"]).args(args).arg("-o").arg(output).arg("-p").arg(pid.to_string());
    let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the Debian package strace");
    wait_for("strace has all threads", PATIENCE, || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let traced = |status: String| status.lines().any(|line| line == format!("TracerPid:\t{}", child.id()));
        let mut statuses = tasks.map(|task| std::fs::read_to_string(task.path().join("status")).unwrap_or_default());
        statuses.all(traced).then_some(())
    });
    child
}

/// Writes under load are synced on more than one disk.
#[test]
fn a_leader_and_a_follower_both_sync_what_they_acknowledge() {
    let cluster = TestCluster::start();
    let workload = Workload::start(&cluster, 4, 64);
    let (leader, follower) = (cluster.leader(), cluster.followers()[0].clone());
    let traces = [&leader, &follower].map(|node| {
        let output = cluster.dir.join(format!("strace-{node}"));
        (node, strace(cluster.pid(node).unwrap(), &["-c", "-e", "trace=fdatasync,fsync"], &output), output)
    });
    workload.more(300);
    for (node, mut child, output) in traces {
        signal(child.id(), Signal::INT);
        child.wait().unwrap();
        let summary = std::fs::read_to_string(&output).unwrap();
        let line = summary.lines().find(|line| line.ends_with(" fdatasync"));
        let calls = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok()).unwrap_or(0);
        // Four clients wait for each other's syncs at most, so 300 writes need 75.
        assert!(calls >= 75, "{calls} calls of fdatasync on {node}:\n{summary}");
    }
    nothing_is_lost(&cluster, &workload.finish());
}

/// After a failed sync nobody knows what is on the disk.
#[test]
fn a_node_whose_disk_fails_stops_and_loses_nothing() {
    let cluster = TestCluster::start();
    let workload = Workload::start(&cluster, 4, 64);
    for victim in [cluster.leader(), cluster.followers()[0].clone()] {
        let pid = cluster.pid(&victim).unwrap();
        let output = cluster.dir.join(format!("strace-{victim}"));
        let inject = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=50+"];
        let mut child = strace(pid, &inject, &output);
        wait_for("the server ends", PATIENCE, || (!lives(pid)).then_some(()));
        child.wait().unwrap();
        let log = cluster.server_log(&victim);
        assert!(log.contains("cannot sync the log") && log.contains("This node stops"), "{log}");
        workload.more(100);
        cluster.start_node(&victim);
        cluster.wait_whole();
    }
    nothing_is_lost(&cluster, &workload.finish());
}

/// The same for a sync of SQLite's: it is in a thread of its own, and it fails once.
#[test]
fn a_node_whose_checkpoint_cannot_be_synced_stops_and_loses_nothing() {
    let cluster = TestCluster::start_with(&["--log-retain", "1048576"]);
    let workload = Workload::start(&cluster, 4, 8_192);
    let victim = cluster.followers()[0].clone();
    let pid = cluster.pid(&victim).unwrap();
    let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let thread = tasks.find(|task| name(task).trim() == "checkpoint").unwrap().file_name();
    let mut strace = Command::new("strace");
    strace.args(["-q", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=1", "-p"]);
    let mut strace = strace.arg(thread).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the server ends", PATIENCE, || (!lives(pid)).then_some(()));
    strace.wait().unwrap();
    let log = cluster.server_log(&victim);
    assert!(log.contains("cannot make a checkpoint") && log.contains("This node stops"), "{log}");
    cluster.start_node(&victim);
    cluster.wait_whole();
    workload.more(50);
    nothing_is_lost(&cluster, &workload.finish());
}
