//! Leases: what runs under one has ended when it does, whatever has become of agent and shim (N3).
//!
//! A test of an end lets a lease of 3 s go and looks at the beats that the workload wrote: a kill that is late
//! for any reason shows. What must go on has a lease of 10 s, so that a busy machine does not end it.

use super::*;
use quorate_agent::{BootTime, Hold, boot_time};
use quorate_model::assignment::AssignedLease;
use quorate_model::observed::Fencing;
use quorate_model::time::Span;
use rustix::fs::{FlockOperation, flock};
use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::JoinHandle;
use tokio::time::interval;

const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(10);
/// Of which a quarter is for a shell to act in that has hardly any of the processor.
const VERY_LONG: Duration = Duration::from_secs(40);

/// The epoch that tests begin with.
const EPOCH: u64 = 7;

pub(super) fn leased(id: ReplicaId, spec: &ServiceSpec, epoch: u64, ttl: Duration) -> AssignedReplica {
    AssignedReplica {
        lease: Some(AssignedLease { epoch, ttl: Span(ttl), keeps: false, yields: false }),
        ..assigned(id, spec, Phase::Run)
    }
}

fn run_leased(agent: &Agent, revision: u64, replica: AssignedReplica) {
    agent.assign(assignment(revision, vec![replica]));
}

/// Holds a lease like a node whose renewals are acknowledged.
pub(super) struct Holding {
    until: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Holding {
    pub(super) fn begin(agent: &Agent, replica: ReplicaId, epoch: u64, ttl: Duration) -> Holding {
        let (agent, until) = (agent.clone(), Arc::new(AtomicU64::new(0)));
        let told = Arc::clone(&until);
        let task = tokio::spawn(async move {
            let mut often = interval(ttl.min(SHORT) / 12);
            loop {
                often.tick().await;
                let until = boot_time().plus(ttl);
                agent.hold([Hold { replica, epoch, until }]);
                told.store(until.as_nanos(), Ordering::Relaxed);
            }
        });
        Holding { until, task }
    }

    /// Until when it is held if it is never held again.
    pub(super) async fn end(self) -> BootTime {
        self.task.abort();
        let _ = self.task.await;
        BootTime::from_nanos(self.until.load(Ordering::Relaxed))
    }
}

/// What the workload `beat` writes.
struct Beats(PathBuf);

impl Beats {
    fn of(node: &Node) -> Beats {
        Beats(node.dir.path().join("beats"))
    }

    /// Beats as the main process, under the lease's epoch.
    fn spec(&self, more: Value) -> ServiceSpec {
        shell(&format!("exec '{HELPER}' beat '{}' $QUORATE_EPOCH", self.0.display()), more)
    }

    fn all(&self) -> Vec<(u64, BootTime)> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        // The last line may not be complete yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let beat = |line: &str| {
            let (epoch, at) = line.split_once(' ').unwrap();
            (epoch.parse().unwrap(), BootTime::from_nanos(at.parse().unwrap()))
        };
        whole.lines().map(beat).collect()
    }

    /// Waits for a beat after a moment.
    async fn after(&self, moment: BootTime) -> (u64, BootTime) {
        let (begun, mut often) = (Instant::now(), interval(Duration::from_millis(20)));
        loop {
            often.tick().await;
            if let Some(beat) = self.all().last().filter(|(_, at)| *at > moment) {
                return *beat;
            }
            assert!(begun.elapsed() < DEADLINE, "no beat after {moment:?}");
        }
    }

    /// Waits for the end of whoever beats, and returns the last beat.
    async fn end(&self) -> BootTime {
        let file = fs::File::open(&self.0).unwrap();
        let (begun, mut often) = (Instant::now(), interval(Duration::from_millis(20)));
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            assert!(begun.elapsed() < DEADLINE, "it does not end");
            often.tick().await;
        }
        self.all().last().unwrap().1
    }
}

/// Ends the agent while its replicas go on.
async fn leave(agent: Agent, holding: Holding) -> BootTime {
    let until = holding.end().await;
    agent.stop().await;
    until
}

#[tokio::test]
async fn a_lease_that_is_not_held_longer_ends_its_workload_though_shim_and_agent_stand_still() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    run_leased(&agent, 1, leased(id, &beats.spec(json!({})), EPOCH, SHORT));
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    let running = status(&agent, id, |status| status.pid.is_some()).await;
    assert_eq!(running.fencing, Some(Fencing::PidNamespace));
    beats.after(BootTime::from_nanos(0)).await;
    kill_process(pid(node.shim_pid(id)), Signal::STOP).unwrap();
    let until = leave(agent, holding).await;
    let last = beats.end().await;
    assert!(last < until, "{last:?} is not before {until:?}");
    gone(running.pid.unwrap()).await;
}

#[tokio::test]
async fn without_the_kernels_timer_a_workload_outlives_its_lease() {
    let (node, id) = (Node::new(), replica(0));
    let agent = Agent::start(node.config_with("shim-without-timer")).await.unwrap();
    let beats = Beats::of(&node);
    run_leased(&agent, 1, leased(id, &beats.spec(json!({})), EPOCH, SHORT));
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    beats.after(BootTime::from_nanos(0)).await;
    let shim = pid(node.shim_pid(id));
    kill_process(shim, Signal::STOP).unwrap();
    let until = leave(agent, holding).await;
    beats.after(until).await;
    kill_process(shim, Signal::KILL).unwrap();
    beats.end().await;
}

/// A shim that hangs in a write to its log's disk outlives every signal for as long.
#[tokio::test]
async fn a_shim_that_does_not_die_does_not_keep_its_workload_alive() {
    let (node, id) = (Node::new(), replica(0));
    let agent = Agent::start(node.config_with("undying-shim")).await.unwrap();
    let beats = Beats::of(&node);
    run_leased(&agent, 1, leased(id, &beats.spec(json!({})), EPOCH, SHORT));
    let until = boot_time().plus(SHORT);
    agent.hold([Hold { replica: id, epoch: EPOCH, until }]);
    beats.after(BootTime::from_nanos(0)).await;
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    beats.after(until).await;
    let shim = pid(node.shim_pid(id));
    kill_process(shim, Signal::STOP).unwrap();
    let until = leave(agent, holding).await;
    let last = beats.end().await;
    assert!(last < until, "{last:?} is not before {until:?}");
    assert!(shim_answers(&node.replica_dir(id)), "it is the init's timer that is looked at here");
    kill_process(shim, Signal::KILL).unwrap();
}

#[tokio::test]
async fn what_left_its_session_and_its_environment_ends_with_the_lease_too() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    let path = beats.0.display();
    let script = format!("(env -i setsid '{HELPER}' beat '{path}' $QUORATE_EPOCH &); exec sleep 1000");
    run_leased(&agent, 1, leased(id, &shell(&script, json!({})), EPOCH, SHORT));
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    beats.after(BootTime::from_nanos(0)).await;
    kill_process(pid(node.shim_pid(id)), Signal::STOP).unwrap();
    let until = leave(agent, holding).await;
    let last = beats.end().await;
    assert!(last < until, "{last:?} is not before {until:?}");
}

#[tokio::test]
async fn a_workload_that_ignores_its_stop_signal_ends_before_its_lease() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    let script = format!("trap '' TERM; exec '{HELPER}' beat '{}' $QUORATE_EPOCH", beats.0.display());
    run_leased(&agent, 1, leased(id, &shell(&script, json!({})), EPOCH, SHORT));
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    beats.after(BootTime::from_nanos(0)).await;
    let until = holding.end().await;
    let last = beats.end().await;
    assert!(last < until, "{last:?} is not before {until:?}");
    let waiting = status(&agent, id, |status| status.detail.starts_with("it waits for its lease")).await;
    assert_eq!(waiting.detail, "it waits for its lease; its lease was not held longer; it was killed");
    assert_eq!(waiting.state, ReplicaState::Starting);
}

#[tokio::test]
async fn a_killed_shim_takes_along_what_left_its_session_and_its_environment() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    let path = beats.0.display();
    let script = format!("(env -i setsid '{HELPER}' beat '{path}' $QUORATE_EPOCH &); exec sleep 1000");
    run_leased(&agent, 1, leased(id, &shell(&script, json!({})), EPOCH, LONG));
    let holding = Holding::begin(&agent, id, EPOCH, LONG);
    beats.after(BootTime::from_nanos(0)).await;
    let shim = node.shim_pid(id);
    leave(agent, holding).await;
    kill_process(pid(shim), Signal::KILL).unwrap();
    beats.end().await;
}

#[tokio::test]
async fn a_lease_that_is_held_longer_goes_on_over_its_first_end_and_over_an_agents_restart() {
    let (node, id) = (Node::new(), replica(0));
    let (first, beats) = (node.agent().await, Beats::of(&node));
    run_leased(&first, 1, leased(id, &beats.spec(json!({})), EPOCH, LONG));
    let until = boot_time().plus(LONG * 2 / 3);
    first.hold([Hold { replica: id, epoch: EPOCH, until }]);
    let before = healthy(&first, id).await;
    let holding = Holding::begin(&first, id, EPOCH, LONG);
    beats.after(until).await;
    let until = leave(first, holding).await;

    let second = node.agent().await;
    assert_eq!(second.statuses().borrow().as_slice(), std::slice::from_ref(&before));
    let holding = Holding::begin(&second, id, EPOCH, LONG);
    beats.after(until).await;
    assert_eq!(healthy(&second, id).await, before, "the same process, with the same start");
    holding.end().await;
}

#[tokio::test]
async fn holding_another_epoch_changes_nothing() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    run_leased(&agent, 1, leased(id, &beats.spec(json!({})), EPOCH, SHORT));
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    beats.after(BootTime::from_nanos(0)).await;
    let others = [EPOCH - 1, EPOCH + 1].map(|epoch| Holding::begin(&agent, id, epoch, SHORT));
    let until = holding.end().await;
    let last = beats.end().await;
    assert!(last < until, "{last:?} is not before {until:?}");
    // Nor is it started again.
    let waiting = status(&agent, id, |status| status.detail.starts_with("it waits for its lease")).await;
    assert_eq!((waiting.state, waiting.restarts), (ReplicaState::Starting, 0));
    for other in others {
        other.end().await;
    }
}

#[tokio::test]
async fn nothing_is_started_before_its_own_lease_is_held_for_long_enough() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    run_leased(&agent, 1, leased(id, &beats.spec(json!({})), EPOCH, LONG));
    let waiting = status(&agent, id, |status| status.state == ReplicaState::Starting).await;
    assert_eq!(waiting.detail, "it waits for its lease");
    let other = Holding::begin(&agent, id, EPOCH - 1, LONG);
    let until = boot_time().plus(LONG / 4);
    agent.hold([Hold { replica: id, epoch: EPOCH, until }]);
    // A second replica that is started meanwhile shows that there was time enough to start the first.
    let second = replica(1);
    let both = vec![leased(id, &beats.spec(json!({})), EPOCH, LONG), assigned(second, &patient(), Phase::Run)];
    agent.assign(assignment(2, both));
    healthy(&agent, second).await;
    assert_eq!(status(&agent, id, |_| true).await, waiting);
    assert!(!node.replica_dir(id).join("spec.json").exists());
    other.end().await;

    let holding = Holding::begin(&agent, id, EPOCH, LONG);
    let (epoch, _) = beats.after(BootTime::from_nanos(0)).await;
    assert_eq!(epoch, EPOCH, "in its environment");
    holding.end().await;
}

#[tokio::test]
async fn what_ended_with_its_lease_in_an_orderly_way_is_started_again_when_it_is_held_again() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let spec = shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done", json!({}));
    run_leased(&agent, 1, leased(id, &spec, EPOCH, VERY_LONG));
    let holding = Holding::begin(&agent, id, EPOCH, VERY_LONG);
    logged(&agent, id, "up").await;
    holding.end().await;
    logged(&agent, id, "bye").await;
    let waiting = status(&agent, id, |status| status.detail.starts_with("it waits for its lease")).await;
    assert_eq!(waiting.detail, "it waits for its lease; its lease was not held longer; exited with status 0");
    let holding = Holding::begin(&agent, id, EPOCH, VERY_LONG);
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    holding.end().await;
}

#[tokio::test]
async fn what_was_asked_to_end_is_not_revived_by_a_lease_that_is_held_again() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let pipe = node.dir.path().join("go");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut go = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    // Asked to end, it does so only when it is let.
    let script = format!(
        "trap 'echo asked; read -r word <\"{}\"; echo $word; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        pipe.display()
    );
    run_leased(&agent, 1, leased(id, &shell(&script, json!({"stop": {"grace": "1m"}})), EPOCH, VERY_LONG));
    let until = boot_time().plus(VERY_LONG * 2 / 3);
    agent.hold([Hold { replica: id, epoch: EPOCH, until }]);
    logged(&agent, id, "asked").await;
    let holding = Holding::begin(&agent, id, EPOCH, VERY_LONG);
    // It has its grace, as the lease is held again.
    let mut often = interval(Duration::from_millis(20));
    while boot_time() <= until {
        often.tick().await;
    }
    let stopping = status(&agent, id, |_| true).await;
    assert_eq!(stopping.state, ReplicaState::Stopping);
    writeln!(go, "later").unwrap();
    logged(&agent, id, "later").await;
    let again = status(&agent, id, |status| status.state == ReplicaState::Healthy).await;
    assert_eq!(again.restarts, 1);
    assert_ne!(again.pid, stopping.pid);
    holding.end().await;
}

#[tokio::test]
async fn a_new_epoch_is_a_new_process() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    run_leased(&agent, 1, leased(id, &beats.spec(json!({})), EPOCH, LONG));
    let first = Holding::begin(&agent, id, EPOCH, LONG);
    beats.after(BootTime::from_nanos(0)).await;
    let second = Holding::begin(&agent, id, EPOCH + 1, LONG);
    run_leased(&agent, 2, leased(id, &beats.spec(json!({})), EPOCH + 1, LONG));
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    let (epoch, _) = beats.after(boot_time()).await;
    assert_eq!(epoch, EPOCH + 1);
    first.end().await;
    second.end().await;
}

#[tokio::test]
async fn under_a_lease_a_workload_is_alone_with_an_init_that_buries_the_dead() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    // Ends only if the orphan is reaped. No command in the loop: it would be seen in the loop.
    let script = "(sleep 0.05 &); while :; do set -- /proc/[0-9]*; [ $# -gt 2 ] || break; done; \
                  echo $* $$ end; exec sleep 1000";
    run_leased(&agent, 1, leased(id, &shell(script, json!({})), EPOCH, LONG));
    let holding = Holding::begin(&agent, id, EPOCH, LONG);
    assert_eq!(logged(&agent, id, "end\n").await, "/proc/1 /proc/2 2 end\n");
    // Its pid outside is the status's.
    let running = healthy(&agent, id).await;
    kill_process(pid(running.pid.unwrap()), Signal::KILL).unwrap();
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    holding.end().await;
}

#[tokio::test]
async fn under_a_lease_ends_and_stops_are_reported_as_without() {
    let (node, ids) = (Node::new(), [0, 1, 2].map(replica));
    let agent = node.agent().await;
    let exits = shell("echo out; echo err >&2; exit 3", json!({"restart": {"policy": "never"}}));
    let dies = shell("kill -USR1 $$", json!({"restart": {"policy": "never"}}));
    // A shell that does `sleep 1000 & wait` does not see a signal that comes right before it begins to wait.
    let stops = "trap 'echo bye; exit 4' HUP; echo up; while :; do sleep 0.05; done";
    let stops = shell(stops, json!({"stop": {"signal": "HUP"}}));
    let holdings = ids.map(|id| Holding::begin(&agent, id, EPOCH, LONG));
    let all = [(ids[0], &exits), (ids[1], &dies), (ids[2], &stops)].map(|(id, spec)| leased(id, spec, EPOCH, LONG));
    agent.assign(assignment(1, all.to_vec()));
    let failed = |status: &ReplicaStatus| status.state == ReplicaState::Failed;
    assert_eq!(status(&agent, ids[0], failed).await.detail, "exited with status 3");
    assert_eq!(logged(&agent, ids[0], "err\n").await, "out\nerr\n");
    assert_eq!(status(&agent, ids[1], failed).await.detail, "killed by SIGUSR1");
    logged(&agent, ids[2], "up").await;
    let mut all = all.to_vec();
    all[2].phase = Phase::Stop;
    agent.assign(assignment(2, all));
    let stopped = status(&agent, ids[2], |status| status.state == ReplicaState::Stopped).await;
    assert_eq!(stopped.detail, "exited with status 4");
    logged(&agent, ids[2], "bye").await;
    for holding in holdings {
        holding.end().await;
    }
}

#[tokio::test]
async fn what_a_server_was_started_to_ignore_its_workloads_do_not() {
    let (node, ids) = (Node::new(), [0, 1].map(replica));
    let mut config = node.config();
    // As `nohup` starts one, and a shell in the background.
    config.shim_command.splice(0..0, ["sh", "-c", "trap '' HUP INT QUIT USR1; exec \"$@\"", "sh"].map(Into::into));
    let agent = Agent::start(config).await.unwrap();
    let spec = shell("grep SigIgn: /proc/self/status", json!({"restart": {"policy": "never"}}));
    let holding = Holding::begin(&agent, ids[0], EPOCH, LONG);
    agent.assign(assignment(1, vec![leased(ids[0], &spec, EPOCH, LONG), assigned(ids[1], &spec, Phase::Run)]));
    for id in ids {
        let line = logged(&agent, id, "\n").await;
        let ignored = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        // Below 32, those that are not the C library's own.
        assert_eq!(ignored & 0x7fff_ffff, 0, "{line}");
    }
    holding.end().await;
}

#[tokio::test]
async fn without_namespaces_the_main_process_ends_with_the_lease_and_no_fencing_is_claimed() {
    let (node, id) = (Node::new(), replica(0));
    let agent = Agent::start(node.config_with("shim-without-namespaces")).await.unwrap();
    let beats = Beats::of(&node);
    run_leased(&agent, 1, leased(id, &beats.spec(json!({})), EPOCH, SHORT));
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    let running = healthy(&agent, id).await;
    assert_eq!(running.fencing, Some(Fencing::ProcessGroup));
    assert_eq!(running.detail, "not fenced: only its process group ends with its lease");
    beats.after(BootTime::from_nanos(0)).await;
    kill_process(pid(node.shim_pid(id)), Signal::STOP).unwrap();
    let until = leave(agent, holding).await;
    let last = beats.end().await;
    assert!(last < until, "{last:?} is not before {until:?}");
}

/// A process in the replica's namespace whose parent is outside, and does not bury it while it is stopped. The
/// kernel takes the namespace for one that is not empty, as it does when it holds one of its processes.
struct Outsider(Child);

impl Outsider {
    fn enter(running: &ReplicaStatus) -> Outsider {
        let target = running.pid.unwrap().to_string();
        let mut nsenter = Command::new("nsenter")
            .args(["--pid", "--target", &target, "--", "sh", "-c", "echo in; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 3];
        nsenter.stdout.take().unwrap().read_exact(&mut said).unwrap();
        kill_process(Pid::from_child(&nsenter), Signal::STOP).unwrap();
        Outsider(nsenter)
    }

    fn bury(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::CONT).unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_replica_of_which_something_is_left_has_not_stopped_and_says_so() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let mut assigned = leased(id, &patient(), EPOCH, LONG);
    run_leased(&agent, 1, assigned.clone());
    let holding = Holding::begin(&agent, id, EPOCH, LONG);
    let outsider = Outsider::enter(&healthy(&agent, id).await);
    assigned.phase = Phase::Stop;
    run_leased(&agent, 2, assigned);
    let stopping = status(&agent, id, |status| status.detail.starts_with("its processes do not die")).await;
    assert_eq!(stopping.state, ReplicaState::Stopping);
    outsider.bury();
    let stopped = status(&agent, id, |status| status.state == ReplicaState::Stopped).await;
    assert_eq!(stopped.detail, "killed by SIGTERM");
    holding.end().await;
}

/// As where PID 1 of a container is no init: what a killed shim leaves is never buried there.
#[tokio::test]
async fn the_dead_that_nobody_buries_do_not_hold_up_the_next_run() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    run_leased(&agent, 1, leased(id, &patient(), EPOCH, LONG));
    let holding = Holding::begin(&agent, id, EPOCH, LONG);
    let outsider = Outsider::enter(&healthy(&agent, id).await);
    kill_process(pid(node.shim_pid(id)), Signal::KILL).unwrap();
    status(&agent, id, |status| status.state == ReplicaState::Healthy && status.restarts == 1).await;
    outsider.bury();
    holding.end().await;
}

#[tokio::test]
async fn a_missing_program_that_is_tried_again_leaves_no_dead_behind() {
    let (node, id) = (Node::new(), replica(0));
    let agent = node.agent().await;
    let program = node.dir.path().join("later").to_string_lossy().into_owned();
    let spec = spec(&[&program, "1000"], json!({"restart": {"backoff": "50ms..50ms"}}));
    run_leased(&agent, 1, leased(id, &spec, EPOCH, LONG));
    let holding = Holding::begin(&agent, id, EPOCH, LONG);
    let failed = status(&agent, id, |status| status.state == ReplicaState::Failed).await;
    assert_eq!(failed.detail, format!("{program}: no such file or directory"));
    std::os::unix::fs::symlink("/usr/bin/sleep", &program).unwrap();
    healthy(&agent, id).await;
    let shim = node.shim_pid(id);
    let is_child = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name, which may have anything in it: the state, the parent.
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        parent.is_some_and(|parent| parent == shim.to_string())
    };
    let children = fs::read_dir("/proc").unwrap().flatten().filter(is_child).count();
    assert_eq!(children, 2, "the init and the program");
    holding.end().await;
}

#[tokio::test]
async fn k10_what_goes_on_without_a_quorum_needs_its_lease_to_start_and_not_to_run() {
    let (node, id) = (Node::new(), replica(0));
    let (agent, beats) = (node.agent().await, Beats::of(&node));
    let mut kept = leased(id, &beats.spec(json!({})), EPOCH, SHORT);
    kept.lease = kept.lease.map(|lease| AssignedLease { keeps: true, ..lease });
    run_leased(&agent, 1, kept);
    status(&agent, id, |status| status.detail.starts_with("it waits for its lease")).await;
    assert_eq!(beats.all(), [], "who has been away may have lost it");
    let holding = Holding::begin(&agent, id, EPOCH, SHORT);
    let running = status(&agent, id, |status| status.pid.is_some()).await;
    assert_eq!(running.fencing, None, "nothing ends it by time, and nobody says so");
    let until = holding.end().await;
    let (epoch, _) = beats.after(until.plus(SHORT)).await;
    assert_eq!(epoch, EPOCH, "nobody renews it, and it goes on");
    // Its node's word ends it all the same.
    agent.assign(assignment(2, vec![]));
    beats.end().await;
}
