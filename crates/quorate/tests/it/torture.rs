//! `quorate torture` as its users run it: short runs, their verdicts, and what is left of them.

use crate::cli::{finished, quorate, run};
use crate::cluster::{Place, wait_for};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PROVEN: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const INCOMPLETE: i32 = 11;
/// A record that proves everything; the verdict's own tests change every line of it.
const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/torture/testdata/small.jsonl");

/// Runs with `--dir` and `-o json`: the exit status and the verdict.
fn torture(dir: &Path, args: &[&str]) -> (i32, Value) {
    let dir = dir.to_str().unwrap();
    let (code, out, err) = run(&[&["torture", "-o", "json", "--dir", dir], args].concat());
    let verdict = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out:?}\n{err}"));
    (code, verdict)
}

fn fault<'a>(verdict: &'a Value, kind: &str) -> &'a Value {
    let faults = verdict["faults"].as_array().unwrap();
    faults.iter().find(|row| row["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {verdict:#}"))
}

fn names(values: &Value, field: &str) -> Vec<String> {
    values.as_array().unwrap().iter().map(|value| value[field].as_str().unwrap().to_owned()).collect()
}

/// Processes of this machine whose command or directory lies below `dir`.
fn processes_in(dir: &Path) -> Vec<String> {
    let of = |pid: &str| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        (command.contains(dir.to_str().unwrap()) || cwd.starts_with(dir)).then_some(command)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| of(entry.file_name().to_str()?)).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_short_run_breaks_what_it_says_proves_what_it_promises_and_leaves_nothing() {
    // It promises times: healing takes longer beside other tests.
    let _machine = Place::alone();
    let dir = tempfile::tempdir().unwrap();
    let kinds = ["kill", "partition-node", "pause", "loss"];
    let (code, verdict) = torture(dir.path(), &["--minutes", "0.3", "--seed", "3", "--faults", &kinds.join(",")]);
    let left_out = names(&verdict["left_out"], "kind");
    for kind in kinds.iter().filter(|kind| !left_out.iter().any(|left| left == *kind)) {
        let row = fault(&verdict, kind);
        assert!(row["happened"].as_u64() >= Some(1), "{row}");
        assert_eq!(row["happened"], row["seen"], "{row}");
    }
    // Without root the faults of the network are left out, and that is no proof.
    let expected = if left_out.is_empty() { (PROVEN, "proven") } else { (INCOMPLETE, "incomplete") };
    let outcome = (code, verdict["outcome"].as_str().unwrap());
    assert_eq!(outcome, expected, "{:#}\n{verdict:#}", verdict["failures"]);
    for checker in verdict["checkers"].as_array().unwrap() {
        assert!(checker["holds"] == true && checker["premises"].as_u64() > Some(0), "{checker}");
    }
    assert!(verdict["operations"].as_u64() > Some(500), "{}", verdict["operations"]);
    assert_eq!(processes_in(dir.path()), [""; 0]);
    let kept = entries(dir.path()).into_iter().filter(|name| !name.starts_with("quorate-tortured-3-"));
    assert_eq!(kept.collect::<Vec<_>>(), [""; 0]);
}

fn change<'a>(verdict: &'a Value, kind: &str) -> &'a Value {
    let changes = verdict["changes"].as_array().unwrap();
    changes.iter().find(|row| row["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {verdict:#}"))
}

/// K4, E1: what operators do while servers are killed and stand still.
#[test]
fn k4_servers_join_and_are_removed_and_the_ca_is_exchanged_while_others_are_killed() {
    let _machine = Place::alone();
    let dir = tempfile::tempdir().unwrap();
    let changes = ["join-manager", "remove", "rotate-ca"];
    let kinds = ["kill", "pause"].iter().chain(&changes).copied().collect::<Vec<_>>().join(",");
    let args = ["--loopback", "--minutes", "0.35", "--seed", "4", "--faults", &kinds];
    let (code, verdict) = torture(dir.path(), &args);
    assert_eq!((code, verdict["outcome"].as_str().unwrap()), (PROVEN, "proven"), "{verdict:#}");
    for kind in changes {
        let row = change(&verdict, kind);
        assert!(row["happened"].as_u64() >= Some(1) && row["happened"] == row["planned"], "{row}");
    }
    let promises = verdict["promises"].as_array().unwrap();
    let measured = |promise: &str| promises.iter().find(|row| row["promise"] == promise).map(|row| &row["measured"]);
    assert_eq!(measured("removed members seen again").unwrap(), "0", "{verdict:#}");
    assert_eq!(processes_in(dir.path()), [""; 0]);
}

#[test]
fn on_loopback_the_faults_of_network_and_disks_are_left_out_with_the_reason() {
    let _machine = Place::alone();
    let dir = tempfile::tempdir().unwrap();
    let args = ["--loopback", "--minutes", "0.1", "--seed", "1", "--faults", "kill,power-loss"];
    let (code, verdict) = torture(dir.path(), &args);
    assert_eq!((code, verdict["outcome"].as_str().unwrap()), (INCOMPLETE, "incomplete"), "{verdict:#}");
    assert_eq!(names(&verdict["left_out"], "kind"), ["power-loss"]);
    assert_ne!(verdict["left_out"][0]["fix"], "");
    assert!(fault(&verdict, "kill")["happened"].as_u64() >= Some(1));
    // What is kept can be judged again, with the same result.
    let kept = entries(dir.path());
    let record = dir.path().join(kept.iter().find(|name| name.starts_with("quorate-tortured-1-")).unwrap());
    let again = torture(dir.path(), &["--check", record.join("record.jsonl").to_str().unwrap()]);
    assert_eq!(again, (code, verdict));
    assert!(entries(&record).contains(&"n1.log".to_owned()), "{:?}", entries(&record));
}

#[test]
fn a_run_that_is_stopped_cleans_up_and_is_incomplete() {
    let _machine = Place::alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let mut command = quorate(&["torture", "-o", "json", "--seed", "2", "--faults", "kill", "--dir", path]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("a fault is in the record", Duration::from_secs(60), || {
        let record = entries(dir.path()).into_iter().map(|run| dir.path().join(run).join("record.jsonl")).next()?;
        // The record is written in blocks: this much comes from clients that work.
        std::fs::metadata(record).ok().filter(|file| file.len() > 200_000)
    });
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let (code, out, err) = finished(child.wait_with_output().unwrap());
    let verdict: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out:?}\n{err}"));
    assert_eq!(code, INCOMPLETE, "{verdict:#}");
    assert_eq!(verdict["missing"][0], "the run was stopped");
    assert_eq!(processes_in(dir.path()), [""; 0]);
    assert!(entries(dir.path()).iter().all(|name| name.starts_with("quorate-tortured-2-")));
}

#[test]
fn a_record_is_judged_again_and_one_changed_line_changes_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(torture(dir.path(), &["--check", SMALL]).0, PROVEN);
    let record = std::fs::read_to_string(SMALL).unwrap();
    let changed = dir.path().join("changed.jsonl");
    std::fs::write(&changed, record.replace(r#""rows":[3,7,8,10]"#, r#""rows":[3,7,8]"#)).unwrap();
    let (code, verdict) = torture(dir.path(), &["--check", changed.to_str().unwrap()]);
    assert_eq!(code, FAILED);
    assert_eq!(verdict["failures"][0], "acknowledged inserts lost: 1, first 10");
    std::fs::write(&changed, "no record").unwrap();
    let (code, _, err) = run(&["torture", "--check", changed.to_str().unwrap()]);
    assert_eq!(code, USAGE);
    assert!(err.contains("is no record of a run") && err.contains("line 1"), "{err}");
}

#[test]
fn the_kinds_are_listed_and_a_misspelt_one_is_refused_with_the_right_one() {
    let (code, out, _) = run(&["torture", "--list", "--loopback", "-o", "json"]);
    assert_eq!(code, 0);
    let kinds: Value = serde_json::from_str(&out).unwrap();
    let loss = kinds.as_array().unwrap().iter().find(|kind| kind["kind"] == "loss").unwrap();
    assert_eq!((&loss["possible"], &loss["needs"][0]), (&Value::Bool(false), &Value::from("network")));
    let rotate = kinds.as_array().unwrap().iter().find(|kind| kind["kind"] == "rotate-ca").unwrap();
    assert_eq!((&rotate["is"], &rotate["possible"]), (&Value::from("change"), &Value::Bool(true)));
    let (code, _, err) = run(&["torture", "--faults", "kil"]);
    assert_eq!(code, USAGE);
    assert!(err.contains("did you mean `kill`?"), "{err}");
}
