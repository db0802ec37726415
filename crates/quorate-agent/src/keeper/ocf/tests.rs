//! Agents that are scripts: one that behaves, and some that do not.

use super::*;
use crate::keeper::tests::launch_of;
use crate::keeper::{Keeper, Line};
use crate::protocol::{Order, Report, Seen};
use quorate_model::assignment::{AssignedReplica, Phase};
use quorate_model::id::ReplicaId;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

const DEADLINE: Duration = Duration::from_secs(30);

/// A well behaved promotable agent whose state is a file. The words of `$DIR/STATUS-<operation>`, if there is one,
/// are run before an operation: that is how it misbehaves. It writes down what it was asked.
const AGENT: &str = r#"#!/bin/sh
DIR=${OCF_RESKEY_dir}
[ -n "$DIR" ] && echo "$1 $OCF_RESKEY_CRM_meta_notify_type$OCF_RESKEY_CRM_meta_notify_operation" >>"$DIR/asked"
[ -n "$DIR" ] && [ -e "$DIR/before-$1" ] && . "$DIR/before-$1"
case $1 in
meta-data) cat <<X
<?xml version="1.0"?>
<resource-agent name="fake">
<parameters><parameter name="dir" required="1"/><parameter name="ip"/></parameters>
<actions><action name="start" timeout="20s"/><action name="stop" timeout="20s"/>
<action name="monitor" timeout="20s" interval="10s"/><action name="promote" timeout="5s"/>
<action name="demote" timeout="5s"/><action name="notify" timeout="5s"/><action name="validate-all"/></actions>
</resource-agent>
X
;;
validate-all) exit 0 ;;
start) echo unpromoted >"$DIR/state" ;;
stop) rm -f "$DIR/state" ;;
monitor) case $(cat "$DIR/state" 2>/dev/null) in unpromoted) exit 0 ;; promoted) exit 8 ;; *) exit 7 ;; esac ;;
promote) echo promoted >"$DIR/state" ;;
demote) echo unpromoted >"$DIR/state" ;;
notify) exit 0 ;;
*) exit 3 ;;
esac
"#;

/// A directory with an agent, and a desk.
struct Bench {
    dir: tempfile::TempDir,
    desk: Desk,
    /// Writing to it asks for a stop.
    stop: UnixStream,
    line: Line<Report>,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let agents = dir.path().join("resource.d/test");
        fs::create_dir_all(&agents).unwrap();
        let program = agents.join("fake");
        fs::write(&program, AGENT).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (line, its_end) = UnixStream::pair().unwrap();
        let (stop, its_stop) = UnixStream::pair().unwrap();
        let desk = Desk::with(Some(its_end), its_stop).unwrap();
        Bench { dir, desk, stop, line: Line::new(line).unwrap() }
    }

    fn try_backend(&self, table: Value) -> Result<Ocf, Trouble> {
        let mut ocf = json!({"agent": "test:fake", "params": {"dir": self.dir.path()}});
        ocf.as_object_mut().unwrap().extend(table.as_object().unwrap().clone());
        let spec = json!({
            "name": "db", "mode": "singleton", "driver": "ocf", "ocf": ocf,
            "env": {"OCF_ROOT": self.dir.path()},
        });
        let spec = serde_json::from_value(spec).unwrap();
        let replica = ReplicaId::from_u128(7);
        let assigned =
            AssignedReplica { replica, ordinal: 0, spec, phase: Phase::Run, lease: None, externals: Vec::new() };
        let launch = launch_of(&assigned, self.dir.path(), &[]);
        Ocf::new(&launch)
    }

    fn backend(&self) -> Ocf {
        self.try_backend(json!({})).unwrap()
    }

    /// What is run before an operation.
    fn before(&self, operation: &str, script: &str) {
        fs::write(self.dir.path().join(format!("before-{operation}")), script).unwrap();
    }

    fn behave(&self, operation: &str) {
        fs::remove_file(self.dir.path().join(format!("before-{operation}"))).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("asked")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The next report that fits.
    fn report(&mut self, fits: impl Fn(&Report) -> bool) -> Report {
        let begun = Instant::now();
        loop {
            if let Some(found) = self.line.read().into_iter().find(&fits) {
                return found;
            }
            assert!(begun.elapsed() < DEADLINE, "the report did not come");
            thread::yield_now();
        }
    }
}

fn failed(trouble: Result<(), Trouble>) -> String {
    match trouble {
        Err(Trouble::Failed(detail)) => detail,
        other => panic!("it did not fail: {other:?}"),
    }
}

fn cannot(trouble: Result<(), Trouble>) -> String {
    match trouble {
        Err(Trouble::Cannot(detail)) => detail,
        other => panic!("it is not refused: {other:?}"),
    }
}

#[test]
fn an_agent_is_asked_in_the_order_of_the_standard() {
    let mut bench = Bench::new();
    let mut ocf = bench.backend();
    ocf.start(&mut bench.desk).unwrap();
    assert_eq!(ocf.look(&mut bench.desk), Look::Up);
    ocf.promote(&mut bench.desk).unwrap();
    assert_eq!(ocf.look(&mut bench.desk), Look::Promoted);
    ocf.demote(&mut bench.desk).unwrap();
    ocf.stop(&mut bench.desk).unwrap();
    // The first two are before it knows who asks where.
    let expected = [
        "meta-data",
        "validate-all",
        "monitor",
        "start",
        "monitor",
        "notify prepromote",
        "promote",
        "monitor",
        "notify postpromote",
        "monitor",
        "notify predemote",
        "demote",
        "monitor",
        "notify postdemote",
        "stop",
        "monitor",
    ];
    assert_eq!(bench.asked(), expected);
}

#[test]
fn every_code_of_a_monitor_has_its_meaning() {
    let mut bench = Bench::new();
    let mut ocf = bench.backend();
    let mut look = |script: &str| {
        bench.before("monitor", script);
        ocf.look(&mut bench.desk)
    };
    assert_eq!(look("exit 0"), Look::Up);
    assert_eq!(look("exit 190"), Look::Up);
    assert_eq!(look("exit 8"), Look::Promoted);
    assert_eq!(look("exit 191"), Look::Promoted);
    let detail = "monitor of test:fake said not running (7)".to_owned();
    assert_eq!(look("exit 7"), Look::Ended { detail, as_it_should: false });
    for (code, words) in [
        (1, "error"),
        (2, "wrong arguments"),
        (3, "not implemented"),
        (4, "not allowed"),
        (5, "what it needs is not installed"),
        (6, "wrong parameters"),
        (9, "failed promoted"),
        (77, "unknown to OCF"),
    ] {
        let detail = format!("monitor of test:fake said {words} ({code})");
        assert_eq!(look(&format!("exit {code}")), Look::Failing(detail));
    }
    assert_eq!(look("kill -9 $$"), Look::Failing("monitor of test:fake was killed by signal 9".to_owned()));
}

#[test]
fn a_start_that_can_never_work_is_told_apart_from_one_that_failed() {
    let mut bench = Bench::new();
    let mut ocf = bench.backend();
    for code in 2..=6 {
        bench.before("start", &format!("exit {code}"));
        cannot(ocf.start(&mut bench.desk));
    }
    bench.before("start", "echo 'ocf-exit-reason:the disk is full' >&2; echo trailing >&2; exit 1");
    assert_eq!(failed(ocf.start(&mut bench.desk)), "start of test:fake said error (1): the disk is full");
    bench.before("start", "echo some trouble >&2; exit 1");
    assert_eq!(failed(ocf.start(&mut bench.desk)), "start of test:fake said error (1): some trouble");
}

#[test]
fn parameters_are_held_against_the_meta_data_before_anything_is_started() {
    let mut bench = Bench::new();
    let params = json!({"params": {"dir": bench.dir.path(), "ipp": "10.0.0.1"}});
    let mut ocf = bench.try_backend(params).unwrap();
    assert_eq!(cannot(ocf.start(&mut bench.desk)), "`ipp` is unknown; did you mean `ip`? (parameters of test:fake)");
    let mut ocf = bench.try_backend(json!({"params": {}})).unwrap();
    assert_eq!(cannot(ocf.start(&mut bench.desk)), "`dir` is required (parameters of test:fake)");
    assert_eq!(bench.asked(), ["meta-data"]);
    bench.before("validate-all", "exit 1");
    let mut ocf = bench.backend();
    assert_eq!(cannot(ocf.start(&mut bench.desk)), "validate-all of test:fake said error (1)");
}

#[test]
fn an_agent_that_is_not_there_is_named_with_its_path() {
    let bench = Bench::new();
    let trouble = bench.try_backend(json!({"agent": "test:other"})).err().unwrap().to_string();
    let path = bench.dir.path().join("resource.d/test/other");
    assert_eq!(trouble, format!("this node has no agent test:other: there is no {}", path.display()));
}

#[test]
fn an_operation_that_hangs_is_killed_with_its_group_and_nothing_else_is() {
    let mut bench = Bench::new();
    let mut ocf = bench.try_backend(json!({"timeouts": {"monitor": "1s"}})).unwrap();
    let pids = bench.dir.path().join("pids");
    // One in its group, and one daemon in a session of its own.
    let script = format!(
        "setsid sleep 1000 & echo $! >'{0}.new'; sleep 1000 & echo $! >>'{0}.new'; mv '{0}.new' '{0}'; wait",
        pids.display()
    );
    bench.before("monitor", &script);
    let detail = "monitor of test:fake did not end within 1s and was killed".to_owned();
    assert_eq!(ocf.look(&mut bench.desk), Look::Failing(detail));
    let text = fs::read_to_string(&pids).unwrap();
    let pids: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    let state = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
    };
    let begun = Instant::now();
    while !matches!(state(pids[1]), None | Some('Z')) {
        assert!(begun.elapsed() < DEADLINE, "a process of the group lives on");
        thread::yield_now();
    }
    assert_eq!(state(pids[0]), Some('S'), "the daemon was killed too");
    let daemon = crate::sweep::open_process(pids[0]).unwrap();
    crate::sweep::kill(&daemon);
}

#[test]
fn a_lie_is_found_out() {
    let mut bench = Bench::new();
    let mut ocf = bench.backend();
    bench.before("start", "exit 0");
    let mut keeper = Keeper { backend: &mut ocf, desk: &mut bench.desk, promoted: false };
    assert!(!keeper.keep());
    let report = bench.report(|report| report.seen == Seen::Ended);
    assert_eq!(
        (report.detail.as_str(), report.may_be_left),
        ("it was started, and does not run: monitor of test:fake said not running (7)", false)
    );

    bench.behave("start");
    ocf.start(&mut bench.desk).unwrap();
    bench.before("stop", "exit 0");
    assert_eq!(failed(ocf.stop(&mut bench.desk)), "stop of test:fake said success, and its monitor that it runs");
    bench.before("promote", "exit 0");
    assert_eq!(
        failed(ocf.promote(&mut bench.desk)),
        "promote of test:fake said success, and its monitor that it is not promoted"
    );
}

#[test]
fn a_keeper_ends_when_what_it_keeps_fails_too_often_and_stops_it_first() {
    let mut bench = Bench::new();
    let mut ocf = bench.try_backend(json!({"every": "1s", "fail_after": 2})).unwrap();
    // It breaks once it is up.
    bench.before("monitor", "grep -q start \"$DIR/asked\" && [ $(grep -c monitor \"$DIR/asked\") -gt 2 ] && [ -e \"$DIR/state\" ] && exit 1");
    let mut keeper = Keeper { backend: &mut ocf, desk: &mut bench.desk, promoted: false };
    assert!(!keeper.keep());
    let reports = bench.line.read();
    let seen: Vec<Seen> = reports.iter().map(|report| report.seen).collect();
    assert_eq!(seen, [Seen::Starting, Seen::Up, Seen::Failing, Seen::Ended]);
    assert_eq!(
        reports.last().unwrap().detail,
        "monitor of test:fake said error (1) (2 times in a row); it was stopped"
    );
    assert!(!bench.dir.path().join("state").exists() && !reports.last().unwrap().may_be_left);
}

#[test]
fn a_stop_ends_a_start_that_hangs_and_then_stops() {
    let mut bench = Bench::new();
    let mut ocf = bench.backend();
    bench.before("start", "echo up >\"$DIR/begun\"; sleep 1000");
    let begun = bench.dir.path().join("begun");
    let mut stop = bench.stop.try_clone().unwrap();
    let asker = thread::spawn(move || {
        let since = Instant::now();
        while !begun.exists() {
            assert!(since.elapsed() < DEADLINE, "it was not started");
            thread::yield_now();
        }
        stop.write_all(b"x").unwrap();
    });
    let mut keeper = Keeper { backend: &mut ocf, desk: &mut bench.desk, promoted: false };
    assert!(keeper.keep());
    asker.join().unwrap();
    assert_eq!(bench.asked().iter().filter(|asked| *asked == "stop").count(), 1);
    let last = bench.line.read().pop().unwrap();
    assert_eq!((last.seen, last.may_be_left), (Seen::Ended, false));
}

#[test]
fn orders_are_obeyed_between_looks_and_told() {
    let mut bench = Bench::new();
    let mut ocf = bench.backend();
    bench.line.send(&Order::Promote);
    let mut desk = std::mem::replace(&mut bench.desk, Desk::with(None, UnixStream::pair().unwrap().0).unwrap());
    let kept = thread::spawn(move || {
        let ended = Keeper { backend: &mut ocf, desk: &mut desk, promoted: false }.keep();
        (ended, ocf.look(&mut Desk::with(None, UnixStream::pair().unwrap().0).unwrap()))
    });
    bench.report(|report| report.seen == Seen::Promoted);
    bench.before("demote", "exit 1");
    bench.line.send(&Order::Demote);
    let report = bench.report(|report| report.seen == Seen::Failing);
    assert_eq!(report.detail, "demote of test:fake said error (1)");
    bench.behave("demote");
    bench.line.send(&Order::Demote);
    bench.report(|report| report.seen == Seen::Up);
    bench.stop.write_all(b"x").unwrap();
    let (ended, _) = kept.join().unwrap();
    assert!(ended);
}

#[test]
fn what_a_killed_keeper_left_is_stopped_and_what_is_not_there_is_left_alone() {
    let mut bench = Bench::new();
    bench.backend().start(&mut bench.desk).unwrap();
    bench.backend().clean_up(&mut bench.desk).unwrap();
    assert!(!bench.dir.path().join("state").exists());
    let stops = || bench.asked().iter().filter(|asked| *asked == "stop").count();
    assert_eq!(stops(), 1);
    bench.backend().clean_up(&mut bench.desk).unwrap();
    assert_eq!(bench.asked().iter().filter(|asked| *asked == "stop").count(), 1);
}

/// Debian's own promotable agent (package `resource-agents`). Its score goes nowhere without Pacemaker, which it
/// does not mind.
#[test]
fn debians_stateful_is_promoted_and_demoted() {
    let mut bench = Bench::new();
    let state = bench.dir.path().join("state");
    let table = json!({"agent": "heartbeat:Stateful", "params": {"state": state}});
    let spec = json!({"name": "db", "mode": "singleton", "driver": "ocf", "ocf": table});
    let spec = serde_json::from_value(spec).unwrap();
    let replica = ReplicaId::from_u128(7);
    let assigned = AssignedReplica { replica, ordinal: 0, spec, phase: Phase::Run, lease: None, externals: Vec::new() };
    let launch = launch_of(&assigned, bench.dir.path(), &[]);
    let mut ocf = Ocf::new(&launch).unwrap();
    let desk = &mut bench.desk;
    ocf.start(desk).unwrap();
    assert_eq!(ocf.look(desk), Look::Up);
    ocf.promote(desk).unwrap();
    assert_eq!(ocf.look(desk), Look::Promoted);
    ocf.demote(desk).unwrap();
    assert_eq!(ocf.look(desk), Look::Up);
    ocf.stop(desk).unwrap();
    assert!(matches!(ocf.look(desk), Look::Ended { .. }));
}
