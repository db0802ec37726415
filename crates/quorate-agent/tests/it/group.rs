//! cgroups: all of a replica is known by its group, and so are its limits and what it uses.
//!
//! Where no group can be made, each test asks instead that the replica's status says so; that the agent gets along
//! without is what the other tests are for.

use super::*;

/// The cgroups of a process that are of a replica.
fn groups_of(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().filter(|line| line.contains("/quorate/")).map(str::to_owned).collect()
}

/// Whether the replica that this process is of has a group. If it has none, its status must say so: nobody is to
/// believe that a limit holds, or that nothing is left behind, where that is not so.
async fn is_in_a_group(agent: &Agent, id: ReplicaId, pid: u32) -> bool {
    let is_in_one = !groups_of(pid).is_empty();
    if !is_in_one {
        status(agent, id, |now| now.detail.contains("no cgroup can be made here")).await;
    }
    is_in_one
}

/// Waits until a workload has written a number into a file.
async fn written(path: &Path) -> u32 {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Some(line) = text.strip_suffix('\n') {
            return line.parse().unwrap();
        }
        assert!(begun.elapsed() < DEADLINE, "nothing was written to {}", path.display());
        tokio::task::yield_now().await;
    }
}

/// A program that keeps none of what it could be known by, beside a main process.
fn stray(file: &Path) -> ServiceSpec {
    let script = format!(
        "setsid env -i /bin/sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' & echo up; wait",
        file.display()
    );
    shell(&script, json!({}))
}

/// An init system ends what is in the group of the unit that it stops.
#[tokio::test]
async fn neither_shim_nor_workload_is_in_the_group_of_whoever_started_the_agent() {
    let node = Node::new();
    let (agent, id) = (node.agent().await, replica(1));
    run_one(&agent, 1, id, &patient());
    let running = healthy(&agent, id).await.pid.unwrap();
    if !is_in_a_group(&agent, id, running).await {
        return;
    }
    for pid in [running, node.shim_pid(id)] {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let of_units = text.lines().filter(|line| line.starts_with("0::") || line.contains(":name=systemd:"));
        // A hierarchy that is not mounted cannot be moved in, and nobody looks there.
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_mounted =
            |line: &&str| mounted.contains(if line.starts_with("0::") { " - cgroup2 " } else { "name=systemd" });
        for line in of_units.filter(is_mounted) {
            assert!(line.contains("/quorate/"), "{line}");
        }
    }
}

#[tokio::test]
async fn what_leaves_its_session_and_its_environment_ends_with_its_replica() {
    let node = Node::new();
    let (agent, id, file) = (node.agent().await, replica(1), node.dir.path().join("stray"));
    run_one(&agent, 1, id, &stray(&file));
    let stray = written(&file).await;
    if !is_in_a_group(&agent, id, stray).await {
        return;
    }
    agent.assign(assignment(2, vec![]));
    gone(stray).await;
    forgotten(&agent).await;
    assert!(groups_of(node.lifeline.id()).is_empty());
}

#[tokio::test]
async fn what_a_process_leaves_behind_is_gone_before_it_is_started_again() {
    let node = Node::new();
    let (agent, id, file) = (node.agent().await, replica(1), node.dir.path().join("stray"));
    run_one(&agent, 1, id, &stray(&file));
    let stray = written(&file).await;
    if !is_in_a_group(&agent, id, stray).await {
        return;
    }
    fs::remove_file(&file).unwrap();
    let first = healthy(&agent, id).await;
    kill_process(pid(first.pid.unwrap()), Signal::KILL).unwrap();
    status(&agent, id, |now| now.restarts == 1 && now.state == ReplicaState::Healthy).await;
    gone(stray).await;
    assert_ne!(written(&file).await, stray, "the next one has its own");
}

#[tokio::test]
async fn a_replica_that_its_agents_directory_knows_nothing_of_is_ended_by_the_next_agent() {
    let node = Node::new();
    let (agent, id) = (node.agent().await, replica(1));
    run_one(&agent, 1, id, &patient());
    let running = healthy(&agent, id).await.pid.unwrap();
    if !is_in_a_group(&agent, id, running).await {
        return;
    }
    agent.stop().await;
    fs::remove_dir_all(node.dir.path().join("web")).unwrap();
    fs::remove_file(node.dir.path().join("assignment.json")).unwrap();
    let _agent = node.agent().await;
    gone(running).await;
}

#[tokio::test]
async fn a_replica_that_needs_more_memory_than_it_has_is_started_again_and_that_is_said() {
    let node = Node::new();
    let (agent, id) = (node.agent().await, replica(1));
    let hungry = "echo up; exec awk 'BEGIN {{ s = \"x\"; while (1) s = s s }}'";
    let limits = json!({"resources": {"cpu": "1", "memory": "16MiB"}, "restart": {"backoff": "1s..1s"}});
    run_one(&agent, 1, id, &shell(hungry, limits));
    let said = status(&agent, id, |now| now.restarts >= 1 || now.detail.contains("not limited")).await;
    assert!(
        said.detail.contains("more than its 16MiB") || said.detail.contains("memory is not limited"),
        "{:?}",
        said.detail
    );
}

#[tokio::test]
async fn what_a_replica_uses_is_measured_and_of_one_that_is_gone_nothing_is_said() {
    let node = Node::new();
    let (agent, id) = (node.agent().await, replica(1));
    run_one(&agent, 1, id, &shell("echo up; while :; do :; done", json!({"resources": {"cpu": "100m"}})));
    let running = healthy(&agent, id).await.pid.unwrap();
    if !is_in_a_group(&agent, id, running).await {
        return;
    }
    let mut usage = agent.usage();
    let busy = |all: &std::collections::BTreeMap<ReplicaId, _>| all.contains_key(&id);
    timeout(DEADLINE, usage.wait_for(|all| busy(all) && all[&id].cpu_millis > 0)).await.unwrap().unwrap();
    agent.assign(assignment(2, vec![]));
    forgotten(&agent).await;
    timeout(DEADLINE, usage.wait_for(|all| !busy(all))).await.unwrap().unwrap();
}

/// A hundred, as on a busy server: what an agent's restart costs is shown by `--nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_replicas_are_taken_over_as_they_are() {
    let node = Node::new();
    let agent = node.agent().await;
    let ids: Vec<ReplicaId> = (0..100).map(replica).collect();
    agent.assign(assignment(1, ids.iter().map(|id| assigned(*id, &patient(), Phase::Run)).collect()));
    let all_run = |all: &[ReplicaStatus]| all.iter().filter(|one| one.state == ReplicaState::Healthy).count() == 100;
    timeout(4 * DEADLINE, agent.statuses().wait_for(|all| all_run(all))).await.unwrap().unwrap();
    let life = |agent: &Agent| -> Vec<_> {
        agent.statuses().borrow().iter().map(|one| (one.replica, one.pid, one.started_at, one.restarts)).collect()
    };
    let before = life(&agent);
    agent.stop().await;

    let begun = Instant::now();
    let agent = node.agent().await;
    let took = begun.elapsed();
    assert_eq!(life(&agent), before, "same processes, started at the same time");
    assert!(all_run(&agent.statuses().borrow()), "all are known as soon as the agent is there");
    writeln!(std::io::stderr(), "100 replicas taken over in {took:?}").unwrap();
    // Far from what it takes; that every replica is waited for one after the other would show.
    assert!(took < Duration::from_secs(10), "{took:?}");
}
