//! Groups with real processes where this machine lets us make some, and of either version; what cannot be had
//! here is tried on plain directories.

use super::*;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// Groups of a test, taken away when it ends.
struct Here(Groups);

impl Drop for Here {
    fn drop(&mut self) {
        for (_, group) in self.0.replicas() {
            group.end(PATIENCE);
        }
        self.0.tidy();
    }
}

/// The kinds that can be had here: as found, and as if there were no version 2.
fn kinds() -> Vec<Here> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let found = mounts::hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    let old: Vec<Hierarchy> = found.iter().filter(|one| !one.unified).cloned().collect();
    let name = || format!("test.{}", ReplicaId::from_u128(uuid::Uuid::new_v4().as_u128()));
    let kinds = [Groups::among(&found, &name()), Groups::among(&old, &name())];
    kinds.into_iter().filter(|groups| groups.tree.is_some()).map(Here).collect()
}

fn replica() -> ReplicaId {
    ReplicaId(uuid::Uuid::new_v4())
}

fn resources(cpu: &str, memory: &str) -> Resources {
    serde_json::from_value(serde_json::json!({"cpu": cpu, "memory": memory})).unwrap()
}

/// Runs a script in the workload's group, in a process group of its own.
fn run(group: &Group, script: &str) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).process_group(0);
    crate::kernel::enter_before_exec(&mut command, group.doors().unwrap());
    command.spawn().unwrap()
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn all_of_a_group_ends_whoever_became_its_parent_and_whatever_it_calls_itself() {
    for here in kinds() {
        let (group, _) = here.0.make(replica(), &Resources::default()).unwrap();
        let group = group.unwrap();
        let other = here.0.make(replica(), &Resources::default()).unwrap().0.unwrap();
        let mut bystander = run(&other, "exec sleep 1000");
        // One that has left its session, its parent and its environment.
        let mut child = run(&group, "setsid env -i sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000 &' & wait");
        wait_until("they run", || members(&group.root).len() >= 4);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_empty(&group.root), "the main process takes nobody along");

        let (killed, alive) = group.end(PATIENCE);
        assert!(killed >= 3, "{killed} were killed");
        assert_eq!((alive, is_empty(&group.root)), (0, true));
        assert!(!group.root.exists() && group.more.iter().all(|dir| !dir.exists()), "nothing is left behind");
        assert!(bystander.try_wait().unwrap().is_none(), "another replica's processes are left alone");
        other.kill_work();
        bystander.wait().unwrap();
    }
}

#[test]
fn a_group_that_multiplies_while_it_is_killed_ends_all_the_same() {
    for here in kinds() {
        let group = here.0.make(replica(), &Resources::default()).unwrap().0.unwrap();
        let mut child = run(&group, "while :; do sleep 1000 & sleep 0.001; done");
        wait_until("it multiplies", || members(&group.root).len() > 5);
        assert_eq!(group.end_work(PATIENCE), 0);
        child.wait().unwrap();
        assert!(members(&group.root).is_empty());
    }
}

#[test]
fn limits_are_set_or_said_to_be_missing() {
    for here in kinds() {
        let (group, missing) = here.0.make(replica(), &resources("500m", "64MiB")).unwrap();
        let group = group.unwrap();
        let quota = group.read("cpu.max").or_else(|| group.read("cpu.cfs_quota_us")).unwrap_or_default();
        let memory = group.read("memory.max").or_else(|| group.read("memory.limit_in_bytes")).unwrap_or_default();
        assert_eq!(quota.starts_with("50000"), !missing.contains("cpu"), "{quota:?}, and it is said: {missing:?}");
        assert_eq!(memory.trim() == "67108864", !missing.contains("memory"), "{memory:?}, and it is said: {missing:?}");
    }
}

#[test]
fn what_a_workload_uses_is_measured() {
    for here in kinds() {
        let group = here.0.make(replica(), &Resources::default()).unwrap().0.unwrap();
        let Some(before) = group.usage() else { continue };
        let mut child = run(&group, "while :; do :; done");
        wait_until("time is counted", || group.usage().unwrap().cpu_us >= before.cpu_us + 20_000);
        group.kill_work();
        child.wait().unwrap();
    }
}

#[test]
fn more_memory_than_the_limit_ends_the_workload_and_is_counted() {
    for here in kinds() {
        let (group, missing) = here.0.make(replica(), &resources("1", "16MiB")).unwrap();
        let group = group.unwrap();
        if missing.contains("memory") {
            continue;
        }
        let mut child = run(&group, "exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'");
        assert!(!child.wait().unwrap().success());
        assert!(
            group.out_of_memory() > 0
                || group.read("memory.oom_control").is_none_or(|text| !text.contains("oom_kill "))
        );
    }
}

#[test]
fn what_nobody_uses_is_taken_away_by_the_next_agent_and_what_somebody_uses_is_not() {
    // Pairs of one kind each.
    for (here, mut other) in kinds().into_iter().zip(kinds()) {
        let used = here.0.make(replica(), &Resources::default()).unwrap().0.unwrap();
        let abandoned = other.0.make(replica(), &Resources::default()).unwrap().0.unwrap();
        here.0.take_away_what_nobody_uses();
        assert!(abandoned.root.exists(), "its agent is there");
        // As when that was killed, while its replica goes on.
        other.0._claim = None;
        let mut child = run(&abandoned, "exec sleep 1000");
        here.0.take_away_what_nobody_uses();
        assert!(abandoned.root.exists(), "somebody is in there");
        child.kill().unwrap();
        child.wait().unwrap();
        // The kernel may still hold a group for a moment after its last process was waited for.
        wait_until("nothing of it is left", || {
            here.0.take_away_what_nobody_uses();
            abandoned.all().all(|dir| !dir.parent().unwrap().exists())
        });
        assert!(used.root.exists());
    }
}

#[test]
fn where_no_group_can_be_made_that_is_said() {
    let (group, said) = Groups::none().make(replica(), &resources("1", "1GiB")).unwrap();
    assert_eq!(group, None);
    assert!(said.contains("mark") && said.contains("cpu is not limited") && said.contains("memory is not"), "{said}");
}

/// A directory that looks like a hierarchy.
fn pretended() -> (TempDir, Hierarchy) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.procs"), "").unwrap();
    let hierarchy =
        Hierarchy { unified: false, controllers: ["freezer".to_owned()].into(), bases: vec![dir.path().to_owned()] };
    (dir, hierarchy)
}

#[test]
fn a_hierarchy_that_gives_no_groups_is_passed_over() {
    let (dir, hierarchy) = pretended();
    // Directories of it have no processes: it is no file system of groups.
    assert!(Groups::among(&[hierarchy], "n1").tree.is_none());
    drop(dir);
}

#[test]
fn v1_processes_are_frozen_killed_and_thawed_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(dir.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
    fs::write(dir.path().join("freezer.state"), "THAWED").unwrap();
    assert_eq!(kill_once(dir.path()), 1);
    assert!(!child.wait().unwrap().success());
    // Written over each other, as the kernel's file is not.
    assert_eq!(fs::read_to_string(dir.path().join("freezer.state")).unwrap(), "THAWED");
}

#[test]
fn numbers_in_the_kernels_files_are_read_and_others_are_not() {
    assert_eq!(field("usage_usec 12\nuser_usec 3\n", "usage_usec"), Some(12));
    assert_eq!(field("oom 1\noom_kill 2\noom_group_kill 3\n", "oom_kill"), Some(2));
    assert_eq!(field("usage_usec\n", "usage_usec"), None);
    assert_eq!(permille("some avg10=66.47 avg60=1.00\nfull avg10=0.00\n"), Some(664));
    assert_eq!(permille("some avg10=100.00 avg60=1.00\n"), Some(1000));
    assert_eq!(permille("full avg10=1.00\n"), None);
}
