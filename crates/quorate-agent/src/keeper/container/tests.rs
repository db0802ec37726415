//! An engine that is a script. The real one is in `tests/it/container.rs`.

use super::*;
use crate::keeper::tests::launch_of;
use crate::keeper::{Keeper, Line};
use crate::protocol::{Report, Seen};
use quorate_model::assignment::{AssignedReplica, Phase};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread;

const DEADLINE: Duration = Duration::from_secs(30);

/// Docker as far as it is used: one container, whose process is asked by `kill` and ended by `rm`.
const DOCKER: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 1
echo "$*" >>asked
[ -e "refuse-$1" ] && cat "refuse-$1" >&2 && exit 125
case $1 in
run)
    while [ $# -gt 0 ]; do [ "$1" = --cidfile ] && echo c1 >"$2"; shift; done
    touch made
    trap 'kill $!; rm -f made; exit 0' TERM
    echo $$ >pid; mv pid running; sleep 1000 & wait ;;
ps) [ -e made ] && echo c1 ;;
inspect) if [ -e running ]; then echo true; else echo false; fi ;;
kill) kill "$(cat running)" ;;
rm) rm -f made ;;
esac
exit 0
"#;

struct Bench {
    dir: tempfile::TempDir,
    desk: Desk,
    stop: UnixStream,
    line: Line<Report>,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker");
        fs::write(&program, DOCKER).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (line, its_end) = UnixStream::pair().unwrap();
        let (stop, its_stop) = UnixStream::pair().unwrap();
        Bench { desk: Desk::with(Some(its_end), its_stop).unwrap(), dir, stop, line: Line::new(line).unwrap() }
    }

    fn try_backend(&self, table: Value, more: Value) -> Result<Container, Trouble> {
        let mut spec = json!({
            "name": "web", "driver": "container", "container": table, "command": ["serve", "{ordinal}"],
            "env": {"PATH": format!("{}:/usr/bin:/bin", self.dir.path().display()), "SECRET": "{secret.pg}"},
            "secrets": ["pg"],
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = serde_json::from_value(spec).unwrap();
        let replica = ReplicaId::from_u128(7);
        let assigned =
            AssignedReplica { replica, ordinal: 3, spec, phase: Phase::Run, lease: None, externals: Vec::new() };
        let launch = launch_of(&assigned, self.dir.path(), &[("pg", "s3cret")]);
        let mut container = Container::new(&launch)?;
        container.id_file = self.dir.path().join("id");
        Ok(container)
    }

    fn backend(&self) -> Container {
        let table =
            json!({"image": "web:1", "engine": "docker", "volumes": ["/srv/{node}:/data"], "args": ["--memory=1g"]});
        self.try_backend(table, json!({})).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn an_engine_is_told_everything_but_secrets_on_its_command_line() {
    let mut bench = Bench::new();
    let mut container = bench.backend();
    container.start(&mut bench.desk).unwrap();
    assert_eq!((container.look(&mut bench.desk), container.fencing()), (Look::Up, Fencing::Asked));
    container.stop(&mut bench.desk).unwrap();
    let asked = bench.asked();
    let run = asked.iter().find(|line| line.starts_with("run ")).unwrap();
    let id = ReplicaId::from_u128(7);
    for part in [
        "--volume=/srv/n1:/data --memory=1g --network=host".to_owned(),
        format!("--name=quorate-web-{id} --label=quorate.replica={id} --label=quorate.service=web"),
        "--env=QUORATE_REPLICA".to_owned(),
        "--env=SECRET".to_owned(),
        " web:1 serve 3".to_owned(),
    ] {
        assert!(run.contains(&part), "{part} is not in: {run}");
    }
    assert!(!run.contains("s3cret") && !run.contains("--env=HOME"), "{run}");
    assert!(asked.contains(&"kill --signal=TERM c1".to_owned()), "{asked:?}");
}

#[test]
fn what_the_engine_refuses_is_told_in_its_own_words() {
    let mut bench = Bench::new();
    fs::write(bench.dir.path().join("refuse-run"), "Unable to find image 'web:1'\n").unwrap();
    let mut container = bench.backend();
    let mut keeper = Keeper { backend: &mut container, desk: &mut bench.desk, promoted: false };
    assert!(!keeper.keep());
    let last = bench.line.read().pop().unwrap();
    assert_eq!((last.seen, last.detail.as_str()), (Seen::Ended, "docker: Unable to find image 'web:1'"));

    fs::write(bench.dir.path().join("refuse-ps"), "Cannot connect to the daemon\n").unwrap();
    let trouble = bench.backend().clean_up(&mut bench.desk).unwrap_err();
    assert_eq!(trouble, Trouble::Failed("docker ps: Cannot connect to the daemon".to_owned()));
}

#[test]
fn what_has_the_replicas_label_is_removed_before_a_start_and_when_cleaning_up() {
    let mut bench = Bench::new();
    fs::write(bench.dir.path().join("made"), "").unwrap();
    bench.backend().clean_up(&mut bench.desk).unwrap();
    let filter = format!("ps --all --quiet --no-trunc --filter label=quorate.replica={}", ReplicaId::from_u128(7));
    assert_eq!(bench.asked(), [filter.as_str(), "rm --force c1"]);
    fs::write(bench.dir.path().join("made"), "").unwrap();
    let mut container = bench.backend();
    container.start(&mut bench.desk).unwrap();
    assert_eq!(bench.asked()[2..4], [filter.as_str(), "rm --force c1"]);
    container.stop(&mut bench.desk).unwrap();
}

#[test]
fn a_stop_is_heard_while_the_engine_still_starts() {
    let mut bench = Bench::new();
    let mut container = bench.backend();
    // It fetches an image for ever.
    let docker = bench.dir.path().join("docker");
    let slow = fs::read_to_string(&docker).unwrap().replace("run)", "run) touch fetching; sleep 1000;;\nrun-never)");
    fs::write(&docker, slow).unwrap();
    let fetching = bench.dir.path().join("fetching");
    let mut stop = bench.stop.try_clone().unwrap();
    let asker = thread::spawn(move || {
        let since = Instant::now();
        while !fetching.exists() {
            assert!(since.elapsed() < DEADLINE, "it was not started");
            thread::yield_now();
        }
        stop.write_all(b"x").unwrap();
    });
    container.grace = Duration::from_secs(1);
    assert!(Keeper { backend: &mut container, desk: &mut bench.desk, promoted: false }.keep());
    asker.join().unwrap();
    assert_eq!(bench.line.read().pop().unwrap().seen, Seen::Ended);
}

#[test]
fn a_node_without_an_engine_says_which() {
    let bench = Bench::new();
    let env = json!({"env": {"PATH": bench.dir.path().join("nothing")}});
    let none = |table| bench.try_backend(table, env.clone()).err().unwrap().to_string();
    assert_eq!(none(json!({"image": "a"})), "this node has no podman and no docker");
    assert_eq!(none(json!({"rootfs": "/a"})), "this node has no podman");
    assert_eq!(none(json!({"image": "a", "engine": "docker"})), "this node has no docker");
}
