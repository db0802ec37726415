//! Disks that are too small and nodes that were away for too long.

use crate::cluster::{PATIENCE, TestCluster, lives, wait_for};
use crate::durability::{Workload, nothing_is_lost};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of log that are kept in these tests.
const RETAIN: &str = "1048576";

/// Index of the first entry that a node's log still has.
fn first_in_log(cluster: &TestCluster, node: &str) -> u64 {
    let files = std::fs::read_dir(cluster.node_dir(node).join("log")).unwrap().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let first = |name: String| u64::from_str_radix(name.strip_prefix("log-")?.strip_suffix(".seg")?, 16).ok();
    names.filter_map(first).min().unwrap()
}

fn applied(cluster: &TestCluster, node: &str) -> Option<u64> {
    cluster.status(node)?["cluster"]["applied"].as_u64()
}

/// Writes until every node of `nodes` has dropped all that a node needs next that died just now.
fn purge_beyond(cluster: &TestCluster, workload: &Workload, nodes: &[String]) {
    let missed = nodes.iter().filter_map(|node| applied(cluster, node)).max().unwrap();
    wait_for("the others' logs begin after what the node has", PATIENCE * 2, || {
        workload.more(10);
        nodes.iter().all(|node| first_in_log(cluster, node) > missed + 1).then_some(())
    });
}

/// The databases of a node: `current`, what it points to, and nothing that was left behind.
fn no_leftovers(cluster: &TestCluster, node: &str) {
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(cluster.node_dir(node).join("db")).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    wait_for(&format!("{node} has one database, not {:?}", names()), PATIENCE, || (names().len() == 2).then_some(()));
}

#[test]
fn a_node_that_was_away_too_long_gets_a_snapshot_and_goes_on() {
    let cluster = TestCluster::start_with(&["--log-retain", RETAIN]);
    let workload = Workload::start(&cluster, 4, 8_192);
    workload.more(20);
    let victim = cluster.followers()[0].clone();
    cluster.kill_servers(std::slice::from_ref(&victim));
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != victim).collect();
    purge_beyond(&cluster, &workload, &others);
    cluster.start_node(&victim);
    wait_for("the snapshot is in force", PATIENCE, || {
        cluster.server_log(&victim).contains("installed a snapshot").then_some(())
    });
    cluster.wait_whole();
    workload.more(50);

    // What came by snapshot is as good as what came by the log: it survives, and can lead.
    cluster.kill_servers(std::slice::from_ref(&victim));
    cluster.start_node(&victim);
    cluster.wait_whole();
    cluster.ok(&["raft", "transfer", &victim]);
    workload.more(50);
    nothing_is_lost(&cluster, &workload.finish());
    no_leftovers(&cluster, &victim);
}

#[test]
fn a_node_that_dies_while_it_gets_a_snapshot_recovers() {
    let cluster = TestCluster::start_with(&["--log-retain", RETAIN]);
    let workload = Workload::start(&cluster, 4, 65_536);
    workload.more(10);
    let victim = cluster.followers()[0].clone();
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != victim).collect();
    let db = cluster.node_dir(&victim).join("db");
    let some = |prefix: &'static str| {
        let db = db.clone();
        move || {
            let mut entries = std::fs::read_dir(&db).unwrap().flatten();
            entries.any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        }
    };
    let link = || std::fs::read_link(db.join("current")).ok();
    let before = link();
    let installed = || cluster.server_log(&victim).contains("installed a snapshot");
    let received = || cluster.server_log(&victim).contains("received a snapshot");
    let moments: [(&str, &dyn Fn() -> bool); 4] = [
        ("it receives", &some("incoming-")),
        ("it has received", &received),
        ("the link is swapped", &|| link() != before),
        ("it has installed", &installed),
    ];
    for (what, moment) in moments {
        cluster.kill_servers(std::slice::from_ref(&victim));
        purge_beyond(&cluster, &workload, &others);
        cluster.start_node(&victim);
        let pid = wait_for("the server runs", PATIENCE, || cluster.pid(&victim));
        // Without a pause, to meet the moment as closely as can be.
        let deadline = std::time::Instant::now() + PATIENCE;
        while !moment() {
            assert!(std::time::Instant::now() < deadline && lives(pid), "not seen: {what}");
        }
        cluster.kill_servers(std::slice::from_ref(&victim));
        cluster.start_node(&victim);
        cluster.wait_whole();
        workload.more(10);
        let goal = applied(&cluster, &cluster.leader()).unwrap();
        wait_for("it has caught up", PATIENCE, || (applied(&cluster, &victim)? >= goal).then_some(()));
    }
    nothing_is_lost(&cluster, &workload.finish());
    no_leftovers(&cluster, &victim);
}

/// A small disk of its own; taken away when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: &Path, mebibytes: u32) -> SmallDisk {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output().unwrap();
        assert!(mounted.status.success(), "mount needs root: {}", String::from_utf8_lossy(&mounted.stderr));
        SmallDisk(path.canonicalize().unwrap())
    }

    /// Takes all of the room that is left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        let chunk = vec![0; 4096];
        while file.write_all(&chunk).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have a process there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[test]
fn a_disk_without_room_for_a_cluster_is_named_and_nothing_is_started() {
    let temporary = tempfile::tempdir().unwrap();
    let disk = SmallDisk::at(&temporary.path().join("small"), 64);
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(["dev", "--port-base", "0", "--keep"]).arg(&disk.0).env("XDG_RUNTIME_DIR", temporary.path());
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let wanted = format!("{} has 63 MiB of free disk space and a cluster needs 512", disk.0.display());
    assert!(stderr.contains(&wanted) || stderr.contains(&wanted.replace("63", "64")), "{stderr}");
    assert!(!disk.0.join("n1").exists());
}

/// The disk of the log, or that of the databases, becomes full while the cluster runs.
fn a_full_disk_stops_one_node_alone(part: &str, mebibytes: u32, says: &[&str]) {
    // Dropped in the other order: the cluster, the mount, the directory around both.
    let around = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
    let dir = around.path().canonicalize().unwrap();
    let disk = SmallDisk::at(&dir.join("n3").join(part), mebibytes);
    let cluster = TestCluster::start_in(tempfile::tempdir().unwrap(), dir, &["--log-retain", "8388608"]);
    let workload = Workload::start(&cluster, 4, 16_384);
    workload.more(10);
    let pid = cluster.pid("n3").unwrap();
    disk.fill();
    wait_for("the node stops", PATIENCE, || (!lives(pid)).then_some(()));
    let log = cluster.server_log("n3");
    for word in says {
        assert!(log.contains(word), "no `{word}` in\n{log}");
    }
    workload.more(50);
    // Without room it does not come back, and says why again.
    disk.free();
    cluster.start_node("n3");
    cluster.wait_whole();
    workload.more(10);
    nothing_is_lost(&cluster, &workload.finish());
}

#[test]
fn a_full_disk_of_the_log_stops_one_node_until_there_is_room() {
    a_full_disk_stops_one_node_alone("log", 24, &["n3/log", "no room", "bytes", "This node stops"]);
}

#[test]
fn a_full_disk_of_the_databases_stops_one_node_until_there_is_room() {
    a_full_disk_stops_one_node_alone("db", 64, &["disk is full", "This node stops"]);
}
