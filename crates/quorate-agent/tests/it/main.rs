//! Agents, shims and workloads as real processes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use quorate_agent::log::{LogFrom, ReadLogError};
use quorate_agent::{Agent, AgentConfig, Api, HeldSecret, Secrets, ServiceTokens, StartAgentError};
use quorate_model::assignment::{AssignedReplica, Assignment, Phase};
use quorate_model::discovery::Directory;
use quorate_model::id::{LogIndex, NodeId, ReplicaId};
use quorate_model::observed::{ReplicaState, ReplicaStatus};
use quorate_model::spec::ServiceSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

mod active;
mod container;
mod endpoints;
mod group;
mod lease;
mod needs;
mod ocf;
mod systemd;

const HELPER: &str = env!("CARGO_BIN_EXE_quorate-shim-test");
const NODE: NodeId = NodeId(uuid::Uuid::from_u128(1));

/// Far longer than anything takes, even on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(120);

/// One node's directory, and whatever still runs in it when the test ends.
struct Node {
    dir: TempDir,
    /// A process whose end takes all replicas with it, so that a failed test leaves nothing behind.
    lifeline: Child,
    secrets: watch::Sender<Arc<Secrets>>,
    tokens: watch::Sender<Arc<ServiceTokens>>,
    directory: watch::Sender<Arc<Directory>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.lifeline.kill();
        let _ = self.lifeline.wait();
        // Shims leave by themselves; the directory must not vanish under them.
        for dir in replica_dirs(self.dir.path()) {
            let begun = Instant::now();
            while shim_answers(&dir) && begun.elapsed() < DEADLINE {
                std::thread::yield_now();
            }
        }
    }
}

fn replica_dirs(services: &Path) -> Vec<PathBuf> {
    let children = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    children(services).filter(|path| path.is_dir()).flat_map(|path| children(&path).collect::<Vec<_>>()).collect()
}

/// Whether somebody holds the replica's lock.
fn shim_answers(dir: &Path) -> bool {
    let Ok(lock) = fs::File::open(dir.join("lock")) else { return false };
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
}

impl Node {
    fn new() -> Node {
        let lifeline = Command::new("sleep").arg("1000").spawn().unwrap();
        Node {
            dir: tempfile::tempdir().unwrap(),
            lifeline,
            secrets: watch::Sender::default(),
            tokens: watch::Sender::default(),
            directory: watch::Sender::default(),
        }
    }

    fn config(&self) -> AgentConfig {
        self.config_with("shim")
    }

    /// `shim`: which kind, of those that the helper knows.
    fn config_with(&self, shim: &str) -> AgentConfig {
        AgentConfig {
            node: NODE,
            node_name: "n1".into(),
            host: "127.0.0.1".into(),
            dir: self.dir.path().to_owned(),
            artifacts: self.dir.path().join("artifacts"),
            secrets: self.secrets.subscribe(),
            tokens: self.tokens.subscribe(),
            directory: self.directory.subscribe(),
            api: Api { url: "http://127.0.0.1:7000".into(), authorities: None, socket: PathBuf::new() },
            shim_command: vec![HELPER.into(), shim.into()],
            end_with_pid: Some(self.lifeline.id()),
        }
    }

    async fn agent(&self) -> Agent {
        Agent::start(self.config()).await.unwrap()
    }

    fn replica_dir(&self, replica: ReplicaId) -> PathBuf {
        self.dir.path().join("web").join(replica.to_string())
    }

    fn shim_pid(&self, replica: ReplicaId) -> u32 {
        // A workload may be seen to run before its shim has written who they are.
        let begun = Instant::now();
        loop {
            let text = fs::read(self.replica_dir(replica).join("state.json")).unwrap_or_default();
            let state: Value = serde_json::from_slice(&text).unwrap_or_default();
            if let Some(pid) = state["shim_pid"].as_u64() {
                return pid.try_into().unwrap();
            }
            assert!(begun.elapsed() < DEADLINE, "the shim says nothing");
            std::thread::yield_now();
        }
    }
}

fn replica(number: u128) -> ReplicaId {
    // Random halves, as real ids have; the number only tells replicas of one test apart.
    ReplicaId(uuid::Uuid::from_u128(uuid::Uuid::new_v4().as_u128() & !0xff | number))
}

/// A spec with a command, and more fields over it.
fn spec(command: &[&str], more: Value) -> ServiceSpec {
    let mut fields = json!({"name": "web", "command": command});
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(fields).unwrap()
}

fn shell(script: &str, more: Value) -> ServiceSpec {
    spec(&["/bin/sh", "-c", script], more)
}

/// Runs until it is told to end, then ends at once.
fn patient() -> ServiceSpec {
    shell("echo up; exec sleep 1000", json!({}))
}

fn assigned(replica: ReplicaId, spec: &ServiceSpec, phase: Phase) -> AssignedReplica {
    AssignedReplica { replica, ordinal: 3, spec: spec.clone(), phase, lease: None, externals: Vec::new() }
}

fn assignment(revision: u64, replicas: Vec<AssignedReplica>) -> Assignment {
    Assignment { node: NODE, revision: LogIndex(revision), replicas, scrapes: BTreeMap::new() }
}

fn run_one(agent: &Agent, revision: u64, replica: ReplicaId, spec: &ServiceSpec) {
    agent.assign(assignment(revision, vec![assigned(replica, spec, Phase::Run)]));
}

/// Waits for a status of the replica that fits.
async fn status(agent: &Agent, replica: ReplicaId, fits: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
    let mut statuses = agent.statuses();
    let find = |all: &[ReplicaStatus]| all.iter().find(|one| one.replica == replica && fits(one)).cloned();
    let waited = timeout(DEADLINE, statuses.wait_for(|all| find(all).is_some())).await;
    match waited {
        Ok(all) => find(&all.unwrap()).unwrap(),
        Err(_) => panic!("the status did not come; last seen: {:?}", agent.statuses().borrow()),
    }
}

async fn healthy(agent: &Agent, replica: ReplicaId) -> ReplicaStatus {
    status(agent, replica, |status| status.state == ReplicaState::Healthy).await
}

async fn forgotten(agent: &Agent) {
    let mut statuses = agent.statuses();
    timeout(DEADLINE, statuses.wait_for(|all| all.is_empty())).await.unwrap().unwrap();
}

fn pid(raw: u32) -> Pid {
    Pid::from_raw(raw.cast_signed()).unwrap()
}

/// Waits until a process is gone.
async fn gone(raw: u32) {
    let Ok(process) = pidfd_open(pid(raw), PidfdFlags::empty()) else { return };
    let wait = move || {
        let limit = Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).unwrap()
    };
    assert_eq!(tokio::task::spawn_blocking(wait).await.unwrap(), 1, "process {raw} does not end");
}

/// Waits until the log contains a text, following it by offset.
async fn logged(agent: &Agent, replica: ReplicaId, text: &str) -> String {
    let (mut log, mut next) = (String::new(), 0);
    let begun = Instant::now();
    while !log.contains(text) {
        assert!(begun.elapsed() < DEADLINE, "not in the log: {text}; it has: {log}");
        if let Ok(chunk) = agent.log(replica, LogFrom::Offset(next), 4096).await {
            log.push_str(&String::from_utf8(chunk.data).unwrap());
            next = chunk.next;
        }
        tokio::task::yield_now().await;
    }
    log
}

#[tokio::test]
async fn a_replica_outlives_its_agent_and_the_next_one_takes_it_over() {
    let (node, id) = (Node::new(), replica(0));
    let first = node.agent().await;
    run_one(&first, 5, id, &patient());
    let before = healthy(&first, id).await;
    first.stop().await;

    let second = node.agent().await;
    // Not only in the end: no one may ever see it as anything but healthy.
    let after = second.statuses().borrow().to_vec();
    assert_eq!(after, [before]);
    assert_eq!(second.revision(), Some(LogIndex(5)));
}

#[tokio::test]
async fn a_killed_process_is_started_again_at_once_and_then_after_pauses() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell("exec sleep 1000", json!({"restart": {"backoff": "1h..1h"}}));
    run_one(&agent, 1, id, &spec);
    let first = healthy(&agent, id).await;
    kill_process(pid(first.pid.unwrap()), Signal::KILL).unwrap();
    let second = status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    assert_ne!(second.pid, first.pid);
    kill_process(pid(second.pid.unwrap()), Signal::KILL).unwrap();
    let third = status(&agent, id, |status| status.state == ReplicaState::BackingOff).await;
    assert_eq!((third.pid, third.restarts, third.detail.as_str()), (None, 1, "killed by SIGKILL"));
}

#[tokio::test]
async fn a_replica_is_restarted_while_no_agent_runs() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    run_one(&agent, 1, id, &patient());
    let first = healthy(&agent, id).await;
    agent.stop().await;
    kill_process(pid(first.pid.unwrap()), Signal::KILL).unwrap();
    let agent = node.agent().await;
    let second = status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    assert_ne!(second.pid, first.pid);
}

#[tokio::test]
async fn a_killed_shim_takes_its_processes_along_and_is_replaced() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    // The second process is in a session of its own, out of reach of signals to a group.
    let spec = shell("setsid sleep 1000 & echo \"other $!\"; exec sleep 1000", json!({}));
    run_one(&agent, 1, id, &spec);
    let first = healthy(&agent, id).await;
    let log = logged(&agent, id, "other ").await;
    let other: u32 = log.split_whitespace().last().unwrap().parse().unwrap();
    kill_process(pid(node.shim_pid(id)), Signal::KILL).unwrap();
    let second = status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    assert_ne!(second.pid, first.pid);
    gone(first.pid.unwrap()).await;
    gone(other).await;
}

#[tokio::test]
async fn a_stop_is_asked_for_first() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done", json!({}));
    run_one(&agent, 1, id, &spec);
    logged(&agent, id, "up").await;
    agent.assign(assignment(2, vec![assigned(id, &spec, Phase::Stop)]));
    let stopped = status(&agent, id, |status| status.state == ReplicaState::Stopped).await;
    assert_eq!((stopped.pid, stopped.detail.as_str()), (None, "exited with status 0"));
    logged(&agent, id, "bye").await;
    // Reported until the assignment does not list it any more; its log stays.
    agent.assign(assignment(3, vec![]));
    forgotten(&agent).await;
    logged(&agent, id, "bye").await;
}

#[tokio::test]
async fn a_stop_that_is_ignored_ends_with_a_kill() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell("trap '' TERM; echo up; sleep 1000; sleep 1000", json!({"stop": {"grace": "100ms"}}));
    run_one(&agent, 1, id, &spec);
    logged(&agent, id, "up").await;
    agent.assign(assignment(2, vec![assigned(id, &spec, Phase::Stop)]));
    let stopped = status(&agent, id, |status| status.state == ReplicaState::Stopped).await;
    assert_eq!(stopped.detail, "killed by SIGKILL");
}

#[tokio::test]
async fn a_shim_that_does_not_react_cannot_hold_up_a_stop() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell("exec sleep 1000", json!({"stop": {"grace": "0s"}}));
    run_one(&agent, 1, id, &spec);
    let running = healthy(&agent, id).await;
    kill_process(pid(node.shim_pid(id)), Signal::STOP).unwrap();
    agent.assign(assignment(2, vec![]));
    forgotten(&agent).await;
    gone(running.pid.unwrap()).await;
}

#[tokio::test]
async fn a_draining_replica_goes_on_running() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    run_one(&agent, 1, id, &patient());
    let before = healthy(&agent, id).await;
    agent.assign(assignment(2, vec![assigned(id, &patient(), Phase::Drain)]));
    let after = status(&agent, id, |status| status.state == ReplicaState::Draining).await;
    assert_eq!(after.pid, before.pid);
}

#[tokio::test]
async fn an_older_assignment_changes_nothing_even_after_a_restart() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    run_one(&agent, 7, id, &patient());
    healthy(&agent, id).await;
    agent.assign(assignment(6, vec![]));
    assert_eq!(agent.revision(), Some(LogIndex(7)));
    agent.stop().await;
    let agent = node.agent().await;
    agent.assign(assignment(6, vec![]));
    assert_eq!(agent.revision(), Some(LogIndex(7)));
    healthy(&agent, id).await;
}

#[tokio::test]
async fn a_replica_that_is_not_assigned_any_more_is_stopped_when_it_is_found() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    run_one(&agent, 1, id, &patient());
    let running = healthy(&agent, id).await;
    agent.stop().await;
    let empty = serde_json::to_vec(&assignment(2, vec![])).unwrap();
    fs::write(node.dir.path().join("assignment.json"), empty).unwrap();
    let agent = node.agent().await;
    gone(running.pid.unwrap()).await;
    forgotten(&agent).await;
}

#[tokio::test]
async fn without_a_cached_assignment_everything_goes_on_until_the_first_one() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    run_one(&agent, 1, id, &patient());
    let before = healthy(&agent, id).await;
    agent.stop().await;
    fs::write(node.dir.path().join("assignment.json"), "half a fi").unwrap();
    let agent = node.agent().await;
    assert_eq!(agent.statuses().borrow().to_vec(), [before]);
    agent.assign(assignment(1, vec![]));
    forgotten(&agent).await;
}

#[tokio::test]
async fn replicas_of_another_node_are_not_touched() {
    let node = Node::new();
    let other = Assignment { node: NodeId::from_u128(2), ..assignment(1, vec![]) };
    fs::write(node.dir.path().join("assignment.json"), serde_json::to_vec(&other).unwrap()).unwrap();
    let refused = Agent::start(node.config()).await.unwrap_err();
    assert!(matches!(refused, StartAgentError::OtherNode { .. }), "{refused}");
    fs::remove_file(node.dir.path().join("assignment.json")).unwrap();
    let agent = node.agent().await;
    agent.assign(other);
    assert_eq!(agent.revision(), None);
}

#[tokio::test]
async fn a_missing_program_is_named_and_tried_again() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let program = node.dir.path().join("later").to_string_lossy().into_owned();
    run_one(&agent, 1, id, &spec(&[&program], json!({"restart": {"backoff": "50ms..50ms"}})));
    let failed = status(&agent, id, |status| status.state == ReplicaState::Failed).await;
    assert_eq!(failed.detail, format!("{program}: no such file or directory"));
    assert_eq!(failed.restarts, 0);
    std::os::unix::fs::symlink("/usr/bin/yes", &program).unwrap();
    status(&agent, id, |status| status.pid.is_some()).await;
}

#[tokio::test]
async fn a_process_that_is_not_to_be_restarted_stays_ended() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell("exit 3", json!({"restart": {"policy": "never"}}));
    run_one(&agent, 1, id, &spec);
    let failed = status(&agent, id, |status| status.state == ReplicaState::Failed).await;
    assert_eq!((failed.pid, failed.detail.as_str()), (None, "exited with status 3"));
    agent.stop().await;
    let agent = node.agent().await;
    let failed = status(&agent, id, |_| true).await;
    assert_eq!((failed.state, failed.detail.as_str()), (ReplicaState::Failed, "exited with status 3"));
}

#[tokio::test]
async fn placeholders_and_the_environment_arrive_and_nothing_else_does() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let script = "echo {port} {port.admin} {node} {ordinal} {replica} '{{}}'; env | sort; echo end";
    let more = json!({"ports": {"http": "auto", "admin": "auto"}, "env": {"COLOUR": "blue-{ordinal}"}});
    run_one(&agent, 1, id, &shell(&format!("{script}; exec sleep 1000"), more));
    let log = logged(&agent, id, "end\n").await;
    let ports = status(&agent, id, |status| status.pid.is_some()).await.ports;
    let (http, admin) = (ports["http"], ports["admin"]);
    let home = node.replica_dir(id).join("work");
    let home = home.display();
    let expected = format!(
        "{http} {admin} n1 3 {id} {{}}\nCOLOUR=blue-3\nHOME={home}\nLANG=C.UTF-8\n\
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD={home}\n\
         QUORATE_NODE=n1\nQUORATE_NODE_ID={NODE}\nQUORATE_ORDINAL=3\nQUORATE_PORT={http}\n\
         QUORATE_PORT_ADMIN={admin}\nQUORATE_PORT_HTTP={http}\nQUORATE_REPLICA={id}\nQUORATE_SERVICE=web\nTZ=UTC\nend\n"
    );
    assert_eq!(log, expected);
}

#[tokio::test]
async fn health_follows_what_the_service_answers() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let sick = node.dir.path().join("sick");
    fs::write(&sick, "").unwrap();
    let health = json!({"http": "/", "every": "50ms", "timeout": "5s", "fail_after": 2});
    let spec =
        spec(&[HELPER, "web", "{port}", sick.to_str().unwrap()], json!({"ports": {"http": "auto"}, "health": health}));
    run_one(&agent, 1, id, &spec);
    let starting = status(&agent, id, |status| status.detail == "GET /: status 503").await;
    assert_eq!(starting.state, ReplicaState::Starting);
    fs::remove_file(&sick).unwrap();
    assert_eq!(healthy(&agent, id).await.detail, "");
    fs::write(&sick, "").unwrap();
    let unhealthy = status(&agent, id, |status| status.state == ReplicaState::Unhealthy).await;
    assert_eq!(unhealthy.detail, "GET /: status 503");
    fs::remove_file(&sick).unwrap();
    healthy(&agent, id).await;
}

#[tokio::test]
async fn a_fixed_port_that_is_taken_is_named_and_waited_for() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let thief = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = thief.local_addr().unwrap().port();
    let more = json!({"ports": {"http": port}, "health": {"tcp": true}, "restart": {"backoff": "50ms..50ms"}});
    run_one(&agent, 1, id, &spec(&[HELPER, "web", "{port}", "/nowhere"], more));
    let waiting = status(&agent, id, |status| status.state == ReplicaState::BackingOff).await;
    assert_eq!(waiting.detail, format!("port {port} is in use"));
    drop(thief);
    assert_eq!(healthy(&agent, id).await.ports["http"], port);
}

#[tokio::test]
async fn an_automatic_port_is_kept_over_restarts_and_given_up_when_it_was_taken() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let more = json!({"ports": {"http": "auto"}, "health": {"tcp": true}, "restart": {"backoff": "200ms..200ms"}});
    run_one(&agent, 1, id, &spec(&[HELPER, "web", "{port}", "/nowhere"], more));
    let first = healthy(&agent, id).await;
    kill_process(pid(node.shim_pid(id)), Signal::KILL).unwrap();
    let second = status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    assert_eq!(second.ports, first.ports);
    // The shim is held while its process is replaced by a thief of the port.
    let shim = pid(node.shim_pid(id));
    kill_process(shim, Signal::STOP).unwrap();
    kill_process(pid(second.pid.unwrap()), Signal::KILL).unwrap();
    gone(second.pid.unwrap()).await;
    let thief = TcpListener::bind(("127.0.0.1", first.ports["http"])).unwrap();
    kill_process(shim, Signal::CONT).unwrap();
    let third = status(&agent, id, |status| status.state == ReplicaState::Healthy && status.ports != first.ports).await;
    assert!(third.restarts >= 2, "{third:?}");
    drop(thief);
}

#[tokio::test]
async fn a_log_is_followed_over_rotations_and_stays_within_its_cap() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    // 18 MB: the files rotate at 8 MiB, so the first is gone at the end and the reader has read it.
    // Each step waits for a line of the pipe, so that the reader is never outrun.
    const STEPS: u64 = 9;
    const STEP_BYTES: u64 = 2_000_000;
    let pipe = node.dir.path().join("steps");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut steps = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let script = format!(
        "exec 3<'{}'; while read -r step <&3; do yes \"012345678901234567 $step\" | head -c {STEP_BYTES}; done",
        pipe.display()
    );
    run_one(&agent, 1, id, &shell(&script, json!({})));
    let (mut next, mut step) = (0, 0);
    let begun = Instant::now();
    while next < STEPS * STEP_BYTES {
        assert!(begun.elapsed() < DEADLINE, "{next} bytes");
        if next == step * STEP_BYTES {
            step += 1;
            writeln!(steps, "{step:05}").unwrap();
        }
        if let Ok(chunk) = agent.log(id, LogFrom::Offset(next), 1 << 20).await {
            assert_eq!(chunk.next, next + chunk.data.len() as u64, "bytes are missing");
            next = chunk.next;
        }
        tokio::task::yield_now().await;
    }
    let last = agent.log(id, LogFrom::LastLines(1), 1000).await.unwrap();
    assert_eq!((last.data.as_slice(), last.next), (&b"012345678901234567 00009\n"[..], STEPS * STEP_BYTES));
    let on_disk: u64 = fs::read_dir(node.replica_dir(id).join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum();
    assert!(on_disk <= (16 << 20) + 65536, "{on_disk}");
    let unknown = agent.log(replica(9), LogFrom::Offset(0), 1).await.unwrap_err();
    assert!(matches!(unknown, ReadLogError::Unknown(_)));
}

#[tokio::test]
async fn nothing_is_left_when_the_process_that_all_is_tied_to_ends() {
    let mut node = Node::new();
    let id = replica(0);
    let agent = node.agent().await;
    run_one(&agent, 1, id, &shell("trap '' TERM; setsid sleep 1000 & echo \"other $!\"; wait; sleep 1000", json!({})));
    let running = healthy(&agent, id).await;
    let other: u32 = logged(&agent, id, "\n").await.split_whitespace().last().unwrap().parse().unwrap();
    let shim = node.shim_pid(id);
    agent.stop().await;
    node.lifeline.kill().unwrap();
    node.lifeline.wait().unwrap();
    gone(running.pid.unwrap()).await;
    gone(other).await;
    gone(shim).await;
}

#[tokio::test]
async fn a_shim_that_is_asked_by_a_signal_ends_its_workload_in_an_orderly_way() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done", json!({}));
    run_one(&agent, 1, id, &spec);
    logged(&agent, id, "up").await;
    kill_process(pid(node.shim_pid(id)), Signal::TERM).unwrap();
    logged(&agent, id, "bye").await;
    // It is still wanted, so the agent starts it again.
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
}

#[tokio::test]
async fn logs_of_the_last_five_ended_replicas_are_kept() {
    let node = Node::new();
    let agent = node.agent().await;
    let ids: Vec<ReplicaId> = (0..7).map(replica).collect();
    for (revision, id) in (1..).zip(&ids) {
        run_one(&agent, 2 * revision, *id, &patient());
        logged(&agent, *id, "up").await;
        agent.assign(assignment(2 * revision + 1, vec![]));
        forgotten(&agent).await;
    }
    agent.stop().await;
    let kept = |id: &&ReplicaId| node.replica_dir(**id).join("log").exists();
    let kept: Vec<&ReplicaId> = ids.iter().filter(kept).collect();
    assert_eq!(kept.len(), 5);
    assert!(kept.contains(&&ids[6]));
}

/// Gives a node a secret, as a manager does.
fn give_secret(node: &Node, name: &str, value: &str) {
    let stamp = quorate_model::need::SecretStamp { version: 1, changed: quorate_model::time::WallTime(1) };
    let held = HeldSecret { stamp, value: quorate_model::secret::Secret::new(value.into()) };
    node.secrets.send_replace(Arc::new(Secrets(BTreeMap::from([(name.parse().unwrap(), held)]))));
}

/// Fails if a file below a directory holds a secret. Links are not followed.
fn is_in_no_file(dir: &Path, value: &str) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            is_in_no_file(&path, value);
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap_or_default();
            let found = content.windows(value.len()).any(|window| window == value.as_bytes());
            assert!(!found, "{} holds the secret", path.display());
        }
    }
}

/// Fails if a process was started with a secret on its command line and is still there.
fn is_on_no_command_line(value: &str) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!line.windows(value.len()).any(|window| window == value.as_bytes()), "{}", entry.path().display());
    }
}

#[tokio::test]
async fn a_secret_reaches_its_process_and_no_file_also_when_it_is_started_again() {
    let node = Node::new();
    let agent = node.agent().await;
    let id = replica(1);
    let spec = shell(
        "echo \"length ${{#PASSWORD}} of $PLAIN\"; exec sleep 1000",
        json!({"secrets": ["pg"], "env": {"PASSWORD": "{secret.pg}", "PLAIN": "plain"}}),
    );
    run_one(&agent, 1, id, &spec);
    let waiting = status(&agent, id, |status| !status.detail.is_empty()).await;
    assert!(waiting.detail.contains("its secret pg is not on this node yet"), "{}", waiting.detail);

    let value = "canary-7f3a";
    give_secret(&node, "pg", value);
    let running = status(&agent, id, |status| status.state == ReplicaState::Healthy).await;
    let pid = Pid::from_raw(running.pid.unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;

    let begun = Instant::now();
    let mut text = String::new();
    while text.matches("length").count() < 2 && begun.elapsed() < DEADLINE {
        let chunk = agent.log(id, LogFrom::Offset(0), 4096).await.unwrap();
        text = String::from_utf8_lossy(&chunk.data).into_owned();
        tokio::task::yield_now().await;
    }
    assert_eq!(text.matches("length 11 of plain").count(), 2, "{text}");
    is_in_no_file(node.dir.path(), value);
}

#[tokio::test]
async fn a_check_that_is_a_program_has_the_secrets_and_waits_for_them_after_a_restart_of_the_agent() {
    let node = Node::new();
    let (agent, id) = (node.agent().await, replica(1));
    let (asked, sick) = (node.dir.path().join("asked"), node.dir.path().join("sick"));
    let check = format!(
        "touch {}; test \"$PASSWORD\" = canary-7f3a || {{{{ echo no password >&2; exit 1; }}}}; test ! -e {}",
        asked.display(),
        sick.display()
    );
    let spec = shell(
        "exec sleep 1000",
        json!({
            "secrets": ["pg"],
            "env": {"PASSWORD": "{secret.pg}"},
            "health": {"exec": ["/bin/sh", "-c", check], "every": "50ms", "timeout": "10s", "fail_after": 1},
        }),
    );
    give_secret(&node, "pg", "canary-7f3a");
    run_one(&agent, 1, id, &spec);
    let running = healthy(&agent, id).await;
    agent.stop().await;

    // The next one has not heard of the secret yet: it asks nobody, and says nothing worse of the replica.
    node.secrets.send_replace(Arc::default());
    fs::remove_file(&asked).unwrap();
    let agent = node.agent().await;
    assert_eq!(agent.statuses().borrow().to_vec(), []);
    assert!(!asked.exists(), "it was asked without its password");

    give_secret(&node, "pg", "canary-7f3a");
    let found = healthy(&agent, id).await;
    assert_eq!((found.pid, found.started_at), (running.pid, running.started_at));
    fs::write(&sick, "").unwrap();
    let unhealthy = status(&agent, id, |status| status.state == ReplicaState::Unhealthy).await;
    assert!(!unhealthy.detail.contains("no password"), "{}", unhealthy.detail);
    fs::remove_file(&sick).unwrap();
    healthy(&agent, id).await;
}

#[tokio::test]
async fn a_file_of_a_template_is_there_before_the_process_and_gone_after_the_replica() {
    let node = Node::new();
    let agent = node.agent().await;
    let id = replica(1);
    let spec = shell(
        "cat {dir}/conf/app.conf; exec sleep 1000",
        json!({
            "ports": {"http": "auto"},
            "template": [{"text": "{{ service }} listens on {{ ports.http }}\n", "to": "conf/app.conf"}],
        }),
    );
    run_one(&agent, 1, id, &spec);
    let running = status(&agent, id, |status| status.state == ReplicaState::Healthy).await;
    let expected = format!("web listens on {}\n", running.ports["http"]);
    let begun = Instant::now();
    let mut text = String::new();
    while text.is_empty() && begun.elapsed() < DEADLINE {
        text = String::from_utf8(agent.log(id, LogFrom::Offset(0), 4096).await.unwrap().data.to_vec()).unwrap();
        tokio::task::yield_now().await;
    }
    assert!(text.ends_with(&expected), "{text} and not {expected}");
    let made = node.replica_dir(id).join("work/conf/app.conf");
    assert!(made.is_file());
    agent.assign(assignment(2, Vec::new()));
    let mut statuses = agent.statuses();
    let gone = timeout(DEADLINE, statuses.wait_for(|all| all.is_empty())).await;
    drop(gone.expect("the replica goes").unwrap());
    while made.exists() && begun.elapsed() < DEADLINE {
        tokio::task::yield_now().await;
    }
    assert!(!made.exists(), "it may have held a secret");

    let id = replica(2);
    let broken = shell("exec sleep 1000", json!({"template": [{"text": "{{ nothing }}", "to": "a"}]}));
    run_one(&agent, 3, id, &broken);
    let failed = status(&agent, id, |status| status.state == ReplicaState::Failed).await;
    assert_eq!(failed.detail, "the template of a: line 1: undefined value");
}
