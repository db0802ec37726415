//! Containers of Debian's Podman (packages `podman` and `runc`, which CI installs), without any image: their file
//! system is this machine's, read only.

use super::lease::{Holding, leased};
use super::*;
use quorate_agent::boot_time;
use quorate_model::observed::Fencing;

/// An engine needs seconds for what a shell needs milliseconds for, and many of them on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A container of this machine's programs, in the node's directory.
fn container(node: &Node, script: &str, more: Value) -> ServiceSpec {
    let root = node.dir.path().join("rootfs");
    for dir in ["usr", "proc", "sys", "dev", "tmp", "etc", "run", "shared"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        // There is one already if the test runs another container.
        let _ = std::os::unix::fs::symlink(format!("usr/{dir}"), root.join(dir));
    }
    let mut fields = json!({
        "name": "web",
        "driver": "container",
        "command": ["/bin/sh", "-c", script],
        "container": {
            "rootfs": root,
            "volumes": ["/usr:/usr:ro", format!("{}:/shared", node.dir.path().display())],
            // Podman's own limits are more than a machine without all rights can give.
            "args": ["--ulimit=host"],
        },
    });
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(fields).unwrap()
}

/// As [`status`], with more patience.
async fn later(agent: &Agent, replica: ReplicaId, fits: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
    let mut statuses = agent.statuses();
    let find = |all: &[ReplicaStatus]| all.iter().find(|one| one.replica == replica && fits(one)).cloned();
    match timeout(PATIENCE, statuses.wait_for(|all| find(all).is_some())).await {
        Ok(all) => find(&all.unwrap()).unwrap(),
        Err(_) => panic!("the status did not come; last seen: {:?}", agent.statuses().borrow()),
    }
}

async fn runs(agent: &Agent, replica: ReplicaId, restarts: u32) -> ReplicaStatus {
    later(agent, replica, |status| status.state == ReplicaState::Healthy && status.restarts == restarts).await
}

/// The container's main process, by a word on its command line. `/proc` here is the machine's.
fn process_with(word: &str) -> Option<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids = pids.filter(|pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').collect::<Vec<_>>().starts_with(&["sleep", word])
    });
    pids.next()
}

/// Containers of a replica that the engine knows.
fn known(replica: ReplicaId) -> usize {
    let filter = format!("label=quorate.replica={replica}");
    let output = Command::new("podman").args(["ps", "--all", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().count()
}

#[tokio::test]
async fn a_container_has_its_environment_and_its_log_and_is_asked_to_stop() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    give_secret(&node, "pg", "canary-58c1");
    let script = "trap 'echo bye; exit 0' TERM; echo up $QUORATE_ORDINAL $A ${{#PASSWORD}}; sleep 1000 & wait";
    let env = json!({"A": "{node}", "PASSWORD": "{secret.pg}"});
    let spec = container(&node, script, json!({"env": env, "secrets": ["pg"], "stop": {"grace": "1m"}}));
    run_one(&agent, 1, id, &spec);
    runs(&agent, id, 0).await;
    logged(&agent, id, "up 3 n1 11").await;
    is_on_no_command_line("canary-58c1");
    is_in_no_file(&node.replica_dir(id), "canary-58c1");
    agent.assign(assignment(2, vec![assigned(id, &spec, Phase::Stop)]));
    let stopped = later(&agent, id, |status| status.state == ReplicaState::Stopped).await;
    assert_eq!(stopped.detail, "exited with status 0");
    logged(&agent, id, "bye").await;
    assert_eq!(known(id), 0);
}

#[tokio::test]
async fn a_container_ends_with_its_shim_and_with_its_lease_and_leaves_nothing() {
    let (node, id) = (Node::new(), replica(0));
    let first = node.agent().await;
    let word = format!("{}", 1_000_000 + std::process::id());
    let spec = container(&node, &format!("exec sleep {word}"), json!({"mode": "singleton"}));
    // Long, so that a busy machine does not end it before the test does.
    let ttl = Duration::from_secs(60);
    let holding = Holding::begin(&first, id, 7, ttl);
    first.assign(assignment(1, vec![leased(id, &spec, 7, ttl)]));
    let before = runs(&first, id, 0).await;
    assert_eq!((before.fencing, before.detail.as_str()), (Some(Fencing::PidNamespace), ""));
    let process = process_with(&word).unwrap();

    // The next agent takes it over as it is.
    holding.end().await;
    first.stop().await;
    let agent = node.agent().await;
    let holding = Holding::begin(&agent, id, 7, ttl);
    let after = runs(&agent, id, 0).await;
    assert_eq!((after.pid, after.started_at), (before.pid, before.started_at));
    assert_eq!(process_with(&word), Some(process));

    // Everything below a killed shim ends with it, whatever the engine still believes.
    kill_process(pid(node.shim_pid(id)), Signal::KILL).unwrap();
    gone(process).await;
    runs(&agent, id, 1).await;
    assert_eq!(known(id), 1);

    // Nobody is left who could ask.
    let process = process_with(&word).unwrap();
    kill_process(pid(node.shim_pid(id)), Signal::STOP).unwrap();
    let end = holding.end().await;
    agent.stop().await;
    let (begun, mut often) = (Instant::now(), tokio::time::interval(Duration::from_millis(20)));
    while is_alive(process) {
        assert!(begun.elapsed() < PATIENCE, "the container's process does not end");
        often.tick().await;
    }
    let late = boot_time().since(end);
    assert!(late < Duration::from_millis(500), "it ended {late:?} after its lease");

    let agent = node.agent().await;
    agent.assign(assignment(2, vec![]));
    timeout(PATIENCE, agent.statuses().wait_for(|all| all.is_empty())).await.unwrap().unwrap();
    assert_eq!(known(id), 0);
}

/// Whether it is there and no zombie.
fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn an_image_that_is_not_there_is_named() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let fields = json!({"name": "web", "driver": "container", "container": {"image": "localhost/quorate-none:1"}});
    let spec: ServiceSpec = serde_json::from_value(fields).unwrap();
    run_one(&agent, 1, id, &spec);
    let says = |status: &ReplicaStatus| status.detail.contains("podman: ") && status.detail.contains("quorate-none:1");
    later(&agent, id, |status| says(status) && status.state == ReplicaState::BackingOff).await;
}
