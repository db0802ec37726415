//! What runs once: never twice at one moment, whatever is lost, and elsewhere within the failover time.
//!
//! The workload writes a line each millisecond: who it is, under which epoch, and the time by
//! CLOCK_BOOTTIME, which all processes of this machine share. Two copies at once would have written
//! lines of the same time, so the spans of the copies tell.

use crate::cluster::{PATIENCE, TestCluster, lives, processes_of, signal, wait_for};
use crate::show::{is_whole, replicas};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Appends without buffering; ignores SIGTERM, so that nothing but force ends it.
const PROBE: &str = "import os, signal, sys, time\n\
    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)\n\
    me = sys.argv[2] + ' ' + os.environ.get('QUORATE_EPOCH', '0') + ' '\n\
    while True:\n\
    \x20now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)\n\
    \x20os.write(file, (me + str(now) + '\\n').encode())\n\
    \x20time.sleep(0.001)\n";

/// A service that proves where and when it ran.
pub(crate) struct Probe<'a> {
    cluster: &'a TestCluster,
    file: PathBuf,
}

/// When one replica ran.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    epoch: u64,
    first: Duration,
    last: Duration,
}

impl Probe<'_> {
    /// Starts it; `more` are lines of the spec.
    pub(crate) fn start<'a>(cluster: &'a TestCluster, more: &str) -> Probe<'a> {
        let file = cluster.dir.join("ran");
        let spec = format!(
            "[[service]]\nname = 'once'\nstop = {{ grace = '500ms' }}\n{more}\n\
             command = ['/usr/bin/env', 'python3', '-c', '''{PROBE}''', '{}', '{{replica}}']\n",
            file.display()
        );
        cluster.apply(&spec);
        let probe = Probe { cluster, file };
        wait_for("it runs", PATIENCE, || (probe.ran().len() == 1).then_some(()));
        probe
    }

    /// The spans in which each replica ran, in the order of their beginnings.
    pub(crate) fn ran(&self) -> Vec<Ran> {
        let mut ran: BTreeMap<String, Ran> = BTreeMap::new();
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(replica), Some(epoch), Some(at)) = (words.next(), words.next(), words.next()) else { continue };
            // The last line may be half there.
            let (Ok(epoch), Ok(at)) = (epoch.parse(), at.parse().map(Duration::from_nanos)) else { continue };
            let span = ran.entry(replica.to_owned()).or_insert(Ran { epoch, first: at, last: at });
            (span.first, span.last) = (span.first.min(at), span.last.max(at));
        }
        let mut ran: Vec<Ran> = ran.into_values().collect();
        ran.sort_by_key(|ran| ran.first);
        ran
    }

    /// Waits until another replica has begun to run than the first `known`, and for how long none ran then.
    fn wait_for_another(&self, known: usize) -> Vec<Ran> {
        wait_for("it runs elsewhere", PATIENCE * 2, || Some(self.ran()).filter(|ran| ran.len() > known))
    }

    /// Name of the node that runs it.
    pub(crate) fn node(&self) -> String {
        let view = self.cluster.wait_service("once", "it is known where it runs", is_whole);
        replicas(&view)[0]["node"].as_str().unwrap().to_owned()
    }

    /// Everything of this node but the workload itself: its server, the shim and what the shim made.
    fn guards(&self, node: &str) -> Vec<u32> {
        let dir = self.cluster.node_dir(node).display().to_string();
        let is_probe = |argv: &Vec<String>| argv.iter().any(|arg| Path::new(arg) == self.file);
        processes_of(&dir).into_iter().filter(|(_, argv)| !is_probe(argv)).map(|(pid, _)| pid).collect()
    }
}

/// How much of the time two copies ran side by side.
pub(crate) fn overlap(ran: &[Ran]) -> Duration {
    ran.windows(2).map(|pair| pair[0].last.saturating_sub(pair[1].first)).sum()
}

#[test]
fn e4_n1_a_singleton_runs_elsewhere_within_its_failover_time_also_when_its_node_led() {
    let cluster = TestCluster::start();
    let probe = Probe::start(&cluster, "mode = 'singleton'\nfailover = '10s'");
    let node = probe.node();
    // The worst case: the node that dies is the leader.
    cluster.ok(&["manager", "promote", &node]);
    wait_for("its node leads", PATIENCE, || (cluster.leader() == node).then_some(()));
    cluster.kill(&node);
    let ran = probe.wait_for_another(1);
    assert_eq!(overlap(&ran), Duration::ZERO, "{ran:?}");
    assert_eq!((ran[0].epoch, ran[1].epoch), (1, 2));
    let took = ran[1].first - ran[0].last;
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    assert_ne!(probe.node(), node);
    // What the cluster measured is what happened, but for when the node was last heard and who saw it run.
    let lease = |view: &Value| view["lease"].clone();
    let measured = cluster.wait_service("once", "it is measured", |view| lease(view)["last_failover"].is_object());
    let last = &lease(&measured)["last_failover"];
    let said: quorate_model::time::Span = last["took"].as_str().unwrap().parse().unwrap();
    assert!(said.0.abs_diff(took) < Duration::from_secs(2), "{said} and {took:?}");
    assert_eq!((last["from"].as_str(), lease(&measured)["failover"].as_str()), (Some(&*node), Some("10s")));
    assert!(cluster.ok(&["status"]).contains("RUNS ONCE"));
    let events = cluster.ok(&["events"]);
    assert!(events.contains(&format!("once failed over from {node} to ")), "{events}");

    cluster.start_node(&node);
    cluster.wait_whole();
    assert_eq!(probe.ran().len(), 2, "whoever returns takes nothing back");
}

#[test]
fn n3_the_deadline_holds_when_server_and_shim_stand_still() {
    let cluster = TestCluster::start();
    let probe = Probe::start(&cluster, "mode = 'singleton'\nfailover = '3s'\nunsafe_fast = true");
    let node = probe.node();
    let stopped = probe.guards(&node);
    stopped.iter().for_each(|pid| signal(*pid, Signal::STOP));
    let ran = probe.wait_for_another(1);
    assert_eq!(overlap(&ran), Duration::ZERO, "{ran:?}");
    stopped.iter().for_each(|pid| signal(*pid, Signal::CONT));
    cluster.wait_whole();
    let ran = probe.ran();
    assert_eq!((ran.len(), overlap(&ran)), (2, Duration::ZERO), "{ran:?}");
}

/// The other direction of the proof: without a lease the same fault shows two at once.
#[test]
fn n3_without_a_lease_the_same_fault_shows_two_copies() {
    let cluster = TestCluster::start();
    let probe = Probe::start(&cluster, "");
    let node = probe.node();
    let stopped = probe.guards(&node);
    stopped.iter().for_each(|pid| signal(*pid, Signal::STOP));
    wait_for("two run at once", PATIENCE * 2, || (overlap(&probe.ran()) > Duration::ZERO).then_some(()));
    stopped.iter().for_each(|pid| signal(*pid, Signal::CONT));
}

#[test]
fn a_singleton_keeps_its_place_over_a_restart_of_its_server() {
    let cluster = TestCluster::start();
    let probe = Probe::start(&cluster, "mode = 'singleton'\nfailover = '10s'");
    let node = probe.node();
    let before = cluster.service("once");
    cluster.kill_servers(std::slice::from_ref(&node));
    cluster.start_node(&node);
    cluster.wait_whole();
    let after = cluster.wait_service("once", "it runs", is_whole);
    let pid = |view: &Value| replicas(view)[0]["pid"].as_u64();
    assert_eq!((pid(&after), replicas(&after)[0]["restarts"].as_u64()), (pid(&before), Some(0)));
    assert_eq!(probe.ran().len(), 1);
}

/// The figure "graceful stop of a node": less than a second, and the start.
#[test]
fn e4_a_node_that_leaves_hands_its_singleton_over_without_waiting_for_the_lease() {
    let cluster = TestCluster::start();
    // A lease of three minutes: whoever waited for it would not be done in time.
    let probe = Probe::start(&cluster, "mode = 'singleton'\nfailover = '300s'");
    let node = probe.node();
    let url = cluster.node(&node).api.clone();
    let left = cluster.http.post(&format!("{url}/v1/leave"), None, &json!({})).unwrap();
    assert_eq!(left.0, 200, "{}", left.1);
    let ran = probe.wait_for_another(1);
    assert_eq!(overlap(&ran), Duration::ZERO, "{ran:?}");
    assert_eq!((ran[0].epoch, ran[1].epoch), (1, 2));
    assert_ne!(probe.node(), node);
    let told = cluster.ok(&["events"]);
    assert!(told.contains(&format!("{node} is being stopped")), "{told}");
    // It goes when its work has gone.
    wait_for("the server has ended", PATIENCE, || cluster.pid(&node).is_none().then_some(()));
}

#[test]
fn a_singleton_keeps_its_place_when_its_server_is_told_to_end_and_starts_again() {
    let cluster = TestCluster::start();
    let probe = Probe::start(&cluster, "mode = 'singleton'\nfailover = '60s'");
    let node = probe.node();
    let server = cluster.pid(&node).unwrap();
    signal(server, Signal::TERM);
    wait_for("it has ended", PATIENCE, || (!lives(server)).then_some(()));
    cluster.start_node(&node);
    cluster.wait_whole();
    assert_eq!(probe.node(), node);
    assert_eq!(probe.ran().len(), 1, "as a restart by systemd does it");
}

#[test]
fn a_singleton_is_not_scaled_and_says_so() {
    let cluster = TestCluster::start_with(&["--nodes", "1"]);
    let _probe = Probe::start(&cluster, "mode = 'singleton'");
    let refused = cluster.run(&["scale", "once", "2"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("runs once"), "{}", refused.stderr);
    for (spec, said) in [
        ("mode = 'singleton'\nreplicas = 2", "a singleton has one"),
        ("mode = 'singleton'\nfailover = '9s'", "10s"),
        ("mode = 'singleton'\nfailover = '301s'", "5m"),
        ("failover = '10s'", "for services that run once"),
        ("without_quorum = 'keep'", "for services that run once"),
        ("mode = 'singleton'\nwithout_quorum = 'keep'\nfailover = '10s'", "leave it out"),
        ("mode = 'singleton'\nwithout_quorum = 'demote'", "for mode = \"active-passive\""),
        ("mode = 'singelton'", "did you mean \"singleton\"?"),
    ] {
        let file = cluster.spec_file("bad.toml", &format!("[[service]]\nname = 'x'\ncommand = ['true']\n{spec}\n"));
        let refused = cluster.run(&["service", "apply", "-f", &file, "--yes"]);
        assert!(refused.code != 0 && refused.stderr.contains(said), "{spec}: {}", refused.stderr);
    }
}

/// N2: its copies write under their epochs; what an older one sent and what comes late is refused by the database.
#[test]
fn n2_what_a_copy_sent_before_it_was_replaced_is_refused_by_its_epoch_when_it_arrives() {
    let cluster = TestCluster::start();
    cluster.exec("n1", "CREATE TABLE wrote (epoch INTEGER, who TEXT)");
    let program = env!("CARGO_BIN_EXE_quorate");
    let write = format!(
        "until '{program}' --server {} db exec --fence env \"INSERT INTO wrote VALUES ($QUORATE_EPOCH, 'copy')\"; \
         do sleep 0.2; done; exec sleep 100000",
        cluster.node("n1").api
    );
    cluster.apply(&format!(
        "[[service]]\nname = 'once'\nmode = 'singleton'\nstop = {{ grace = '500ms' }}\n\
         command = ['/bin/sh', '-c', '''{write}''']\n"
    ));
    let rows = |who: &str| cluster.rows("n2", &format!("SELECT epoch FROM wrote WHERE who = '{who}' ORDER BY epoch"));
    wait_for("the first copy has written", PATIENCE, || (rows("copy") == json!([[1]])).then_some(()));

    // A primary that is about to be paused: one write is done, others are on their way.
    let send = |node: &str, path: &str, id: uuid::Uuid, fence: &str, who: &str| {
        let sql = format!("INSERT INTO wrote VALUES (1, '{who}')");
        let body = if path == "/db/execute" { json!([sql]) } else { json!({ "sql": sql }) };
        let headers = [("Quorate-Request-Id", id.to_string()), ("Quorate-Fence", fence.to_owned())];
        cluster.http.post_with(&format!("{}{path}", cluster.node(node).api), headers, &body)
    };
    let done = uuid::Uuid::new_v4();
    let answer = send("n1", "/v1/db/exec", done, "once@1", "in time").unwrap();
    assert_eq!(answer.0, 200, "{}", answer.1);

    let node = replicas(&cluster.wait_service("once", "it runs", is_whole))[0]["node"].as_str().unwrap().to_owned();
    cluster.ok(&["node", "drain", &node]);
    cluster.wait_service("once", "another has the lease", |view| view["lease"]["epoch"] == 2);
    for (number, name) in cluster.names().iter().enumerate() {
        let late = send(name, "/v1/db/exec", uuid::Uuid::new_v4(), "once@1", "late").unwrap();
        assert_eq!((late.0, late.1["code"].as_str()), (409, Some("stale-epoch")), "{}", late.1);
        assert_eq!(late.1["details"], json!({ "service": "once", "epoch": 1, "newest": 2 }));
        let again = send(name, "/v1/db/exec", done, "once@1", "in time").unwrap();
        assert_eq!(again, answer, "what was done stays done, asked for the {number}. time");
    }
    // rqlite's clients are answered in text, which is no JSON.
    assert!(send("n1", "/db/execute", uuid::Uuid::new_v4(), "once@1", "late").is_err());
    let insert = "INSERT INTO wrote VALUES (1, 'late')";
    for (fence, code, says) in [
        ("once@1", 7, "epoch 1 of `once` is over: the newest is 2"),
        ("once@3", 7, "no copy of `once` was given epoch 3"),
        ("once", 2, "a fence is SERVICE@EPOCH"),
        ("env", 2, "QUORATE_SERVICE is not set"),
    ] {
        let ran = cluster.run(&["db", "exec", "--fence", fence, insert]);
        assert!(ran.code == code && ran.stderr.contains(says), "{fence}: {} {}", ran.code, ran.stderr);
    }

    wait_for("the next copy has written", PATIENCE, || (rows("copy") == json!([[1], [2]])).then_some(()));
    cluster.ok(&["db", "exec", "--fence", "once@2", "INSERT INTO wrote VALUES (2, 'in time')"]);
    cluster.ok(&["db", "exec", "INSERT INTO wrote VALUES (0, 'without')"]);
    assert_eq!(rows("late"), json!([]));
    assert_eq!((rows("in time"), rows("without")), (json!([[1], [2]]), json!([[0]])));
    let known = cluster.rows("n3", "SELECT service, epoch FROM _quorate_fences");
    assert_eq!(known, json!([["once", 2]]));
}

/// K10: without a majority everything keeps its role, for as long as that takes.
#[test]
fn k10_what_goes_on_without_a_quorum_runs_on_alone_and_elsewhere_only_by_an_operators_word() {
    let cluster = TestCluster::start();
    let probe = Probe::start(&cluster, "mode = 'singleton'\nwithout_quorum = 'keep'");
    let node = probe.node();
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != node).collect();
    let refused = cluster.run(&["node", "confirm-dead", &node, "--yes"]);
    assert!(refused.code != 0 && refused.stderr.contains("it is not dead"), "{}", refused.stderr);

    // No majority is left: the lease of another service would be over after 18 s.
    cluster.kill_servers(&others);
    let until = probe.ran()[0].last + Duration::from_secs(25);
    wait_for("it runs on", PATIENCE * 2, || (probe.ran()[0].last > until).then_some(()));
    others.iter().for_each(|other| cluster.start_node(other));
    cluster.wait_whole();
    assert_eq!(probe.ran().len(), 1);

    cluster.kill(&node);
    let says = |view: &Value| view["held"].to_string().contains("quorate node confirm-dead");
    let view = cluster.wait_service("once", "it is said who can decide", says);
    assert_eq!(view["lease"]["keeps"], true);
    assert_eq!(probe.ran().len(), 1);
    let removed = cluster.run(&["node", "remove", &node, "--yes"]);
    assert!(removed.code != 0 && removed.stderr.contains("confirm-dead"), "{}", removed.stderr);
    cluster.ok(&["node", "confirm-dead", &node, "--yes"]);
    let ran = probe.wait_for_another(1);
    assert_eq!((ran[1].epoch, overlap(&ran)), (2, Duration::ZERO), "{ran:?}");
    cluster.start_node(&node);
    cluster.wait_whole();
    assert_eq!(probe.ran().len(), 2, "whoever returns takes nothing back");
}

#[test]
fn e8_the_failover_time_of_the_cluster_is_one_setting_with_a_range() {
    let cluster = TestCluster::start();
    let _probe = Probe::start(&cluster, "mode = 'singleton'");
    let failover = || cluster.service("once")["lease"]["failover"].clone();
    assert_eq!(failover(), "30s");
    for refused in ["9s", "301s"] {
        let ran = cluster.run(&["cluster", "failover", refused]);
        assert!(ran.code != 0 && ran.stderr.contains("10s to 300s"), "{}", ran.stderr);
    }
    assert!(cluster.ok(&["cluster", "failover", "20s"]).contains("failover time 20s"));
    assert_eq!(failover(), "20s");
    assert!(cluster.ok(&["cluster", "failover"]).contains("20s"));
    cluster.ok(&["cluster", "failover", "default"]);
    assert_eq!(failover(), "30s");
}
