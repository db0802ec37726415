//! What people get wrong, and what they are told: the row "Bad input" of the first issue. Each is
//! refused with its exit status, with what, why and what to do, and leaves nothing behind.

use crate::cluster::{PATIENCE, Ran, TestCluster, processes_of, quorate, wait_for};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory in which no cluster was started yet.
struct Place {
    temporary: tempfile::TempDir,
    dir: PathBuf,
}

impl Place {
    fn new() -> Place {
        let temporary = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap().join("cluster");
        Place { temporary, dir }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.temporary.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(quorate(self.temporary.path(), &self.dir).args(args))
    }

    /// Starts a cluster on free ports; it is expected not to come up.
    fn dev(&self, args: &[&str]) -> Ran {
        self.run(&[&["dev", "--port-base", "0"], args].concat())
    }

    fn cluster(&self, args: &[&str]) -> TestCluster {
        let private = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        TestCluster::start_in(private, self.dir.clone(), args)
    }

    /// Nothing was made and nothing runs.
    fn assert_untouched(&self) {
        assert!(!self.dir.exists(), "{} was made", self.dir.display());
        self.assert_nothing_runs();
    }

    fn assert_nothing_runs(&self) {
        let left = processes_of(&self.dir.display().to_string());
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The exit status, and the words that must be in the lines `error:`, `why:` and `fix:`.
#[track_caller]
fn assert_refused(ran: &Ran, code: i32, error: &str, why: &str, fix: &str) {
    let said = &ran.stderr;
    let part = |from: &str, to: &str| {
        let rest = said.split_once(from).map_or("", |(_, rest)| rest);
        rest.split(to).next().unwrap_or_default().to_owned()
    };
    assert_eq!(ran.code, code, "{said}");
    assert!(part("error: ", "\nwhy:").contains(error), "no `{error}` in the error of\n{said}");
    assert!(part("\nwhy: ", "\nfix:").contains(why), "no `{why}` in the reason of\n{said}");
    assert!(part("\nfix: ", "\u{0}").contains(fix), "no `{fix}` in the advice of\n{said}");
}

fn spec(name: &str, command: &str, more: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\ncommand = {command}\n{more}\n")
}

#[test]
fn a_spec_that_is_none_is_refused_with_its_place_and_a_suggestion_before_anything_starts() {
    let place = Place::new();
    let misspelt = place.file("misspelt.toml", spec("web", "['/bin/true']", "replicsa = 2"));
    let ran = place.dev(&["--service", &misspelt]);
    assert_refused(&ran, 2, "misspelt.toml is not a spec", "line 4, column 1", "did you mean `replicas`?");

    let nested = place.file("nested.toml", spec("web", "['/bin/true']", "health = { htpp = '/' }"));
    assert_refused(&place.dev(&["--service", &nested]), 2, "not a spec", "unknown key `htpp` in health", "`http`?");

    let json = place.file("web.json", r#"{"service": [{"name": "web", "command": ["/bin/true"], "port": {}}]}"#);
    assert_refused(&place.dev(&["--service", &json]), 2, "web.json is not a spec", "unknown key `port`", "`ports`?");

    let empty = place.file("empty.toml", "");
    assert_refused(&place.dev(&["--service", &empty]), 2, "has no service", "", "[[service]]");

    let binary = place.file("binary.toml", [0xff, 0xfe, 0x00]);
    assert_refused(&place.dev(&["--service", &binary]), 2, "cannot read", "UTF-8", "spec file");

    let missing = place.temporary.path().join("none.toml").display().to_string();
    assert_refused(&place.dev(&["--service", &missing]), 2, "cannot read", "No such file", "spec file");

    let placeholder =
        place.file("placeholder.toml", spec("web", "['/bin/echo', '{prot}']", "ports = { http = 'auto' }"));
    assert_refused(&place.dev(&["--service", &placeholder]), 2, "{prot}", "", "");
    place.assert_untouched();
}

#[test]
fn a_number_of_replicas_that_no_cluster_has_is_refused_everywhere() {
    let place = Place::new();
    let cluster = place.cluster(&["--nodes", "1"]);
    for count in ["0", "1000000"] {
        let file = place.file("web.toml", spec("web", "['/bin/true']", &format!("replicas = {count}")));
        let error = format!("is {count}; it must be 1 to 1000");
        assert_refused(&cluster.run(&["service", "apply", "-f", &file, "--yes"]), 2, &error, "", "correct");
        assert_refused(&cluster.run(&["scale", "demo", count]), 2, &error, "", "nothing was changed");
        let elsewhere = Place::new();
        assert_refused(&elsewhere.dev(&["--service", &file]), 2, &error, "", "correct");
        elsewhere.assert_untouched();
    }
    assert_refused(&cluster.run(&["scale", "demo", "4294967296"]), 2, "4294967296", "", "");
    assert_refused(&cluster.run(&["scale", "demmo", "2"]), 6, "no service `demmo`", "", "did you mean `demo`?");
    let services: Value = serde_json::from_str(&cluster.ok(&["service", "list", "-o", "json"])).unwrap();
    assert_eq!(services.as_array().unwrap().len(), 1);
    assert_eq!(services[0]["want"], 3, "nothing was changed");
}

#[test]
fn a_missing_program_is_named_and_a_corrected_spec_heals_the_service() {
    let place = Place::new();
    let cluster = place.cluster(&["--nodes", "1"]);
    let file = place.file("web.toml", spec("web", "['/no/such/program']", "replicas = 2"));
    let ran = cluster.run(&["service", "apply", "-f", &file, "--yes"]);
    assert_refused(&ran, 9, "cannot be started", "/no/such/program: no such file", "quorate logs web");

    let view = wait_for("both have failed", PATIENCE, || {
        let view: Value = serde_json::from_str(&cluster.ok(&["service", "show", "web", "-o", "json"])).unwrap();
        let held = view["held"].to_string();
        (held.contains("web.0 failed on n1") && held.contains("web.1 failed on n1")).then_some(view)
    });
    for replica in view["replicas"].as_array().unwrap() {
        assert_eq!(replica["state"], "failed", "{replica}");
        assert_eq!(replica["pid"], Value::Null);
        assert_eq!(replica["detail"], "/no/such/program: no such file or directory");
    }
    assert!(view["held"].to_string().contains("the update to version 1 is held"), "{view}");
    assert!(cluster.ok(&["service", "show", "web"]).contains("no such file or directory"));

    let not_executable = place.file("program", "#!/bin/sh\n");
    let file = place.file("web.toml", spec("web", &format!("['{not_executable}']"), "replicas = 2"));
    let ran = cluster.run(&["service", "apply", "-f", &file, "--yes"]);
    assert_refused(&ran, 9, "cannot be started", "permission denied", "quorate logs web");

    let file = place.file("web.toml", spec("web", "['/bin/sh', '-c', 'sleep 1000']", "replicas = 2"));
    cluster.ok(&["service", "apply", "-f", &file, "--yes"]);
}

#[test]
fn a_cluster_whose_first_service_cannot_start_is_not_started() {
    let place = Place::new();
    let file = place.file("web.toml", spec("web", "['/no/such/program']", ""));
    let ran = place.dev(&["--service", &file, "--nodes", "1"]);
    assert_refused(&ran, 9, "web.0 on n1 cannot be started", "/no/such/program: no such file", "correct its command");
    place.assert_nothing_runs();
}

#[test]
fn a_port_in_use_is_named_with_a_base_that_works() {
    let place = Place::new();
    let (_taken, base) = port_after_a_free_one();
    let ran = place.run(&["dev", "--port-base", &base.to_string()]);
    let error = format!("port {} (API of n1) is in use", base + 1);
    assert_refused(&ran, 7, &error, "", "quorate dev --port-base ");
    place.assert_untouched();
    assert_refused(&place.run(&["dev", "--port-base", "65500"]), 2, "port 65500 is too high", "", "--port-base 8000");
    place.assert_untouched();
}

/// A port that is taken, and the number before it, which is free.
fn port_after_a_free_one() -> (TcpListener, u16) {
    loop {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        if (2_000..60_000).contains(&port) && TcpListener::bind(("127.0.0.1", port - 1)).is_ok() {
            return (taken, port - 1);
        }
    }
}

#[test]
fn a_fixed_port_that_somebody_else_has_is_waited_for_and_the_reason_is_shown() {
    let place = Place::new();
    let cluster = place.cluster(&["--nodes", "1"]);
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let program = env!("CARGO_BIN_EXE_quorate");
    let command = format!("['{program}', 'demo', '--port', '{{port}}']");
    let more = format!("ports = {{ http = {port} }}\nrestart = {{ backoff = '100ms..200ms' }}");
    let file = place.file("web.toml", spec("web", &command, &more));
    let ran = cluster.run(&["service", "apply", "-f", &file, "--yes", "--timeout", "2s"]);
    assert_refused(&ran, 10, "0 of 1 copies healthy", &format!("port {port} is in use"), "quorate logs web");
    drop(taken);
    // It is there as soon as the port is.
    cluster.ok(&["service", "apply", "-f", &file, "--yes"]);
}

#[test]
fn data_of_another_cluster_is_refused_whichever_part_of_it_was_mixed_in() {
    let (ours, theirs) = (Place::new(), Place::new());
    drop(theirs.cluster(&["--nodes", "2"]));
    drop(ours.cluster(&["--nodes", "2"]));
    let kept = Place::new();
    copy(&ours.dir, &kept.dir);
    for (part, says) in [("log", "belongs to node"), ("db", "another cluster"), ("services", "belongs to node")] {
        swap_in(&theirs.dir, &ours.dir, Path::new("n1").join(part));
        let ran = ours.dev(&[]);
        assert_refused(&ran, 1, "n1 ended while it started", says, "nothing was left running");
        ours.assert_nothing_runs();
        swap_in(&kept.dir, &ours.dir, Path::new("n1").join(part));
    }
    swap_in(&theirs.dir, &ours.dir, "n1".into());
    assert_refused(&ours.dev(&[]), 7, "n1 belongs to cluster ", "", "choose another directory");
    swap_in(&kept.dir, &ours.dir, "n1".into());
    // With its own data it is as before: nothing was changed by the attempts.
    let cluster = ours.cluster(&[]);
    assert_eq!(cluster.nodes.len(), 2);
    cluster.wait_whole();
}

fn swap_in(from: &Path, to: &Path, part: PathBuf) {
    std::fs::remove_dir_all(to.join(&part)).unwrap();
    copy(&from.join(&part), &to.join(&part));
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--archive").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_full_disk_is_seen_before_anything_is_started() {
    for filled in ["", "head --bytes=200M /dev/zero > \"$0/filler\" 2> /dev/null;"] {
        let place = Place::new();
        // A file system of its own that nobody else sees and that goes with the command.
        let script = format!(
            "mount -t tmpfs -o size=100m none \"$0\" && {{ {filled} \"$@\"; code=$?; ls -A \"$0\"; exit $code; }}"
        );
        let dir = place.temporary.path().join("small");
        std::fs::create_dir(&dir).unwrap();
        let program = quorate(place.temporary.path(), &dir.join("cluster"));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", &script]).arg(&dir);
        command.arg(program.get_program()).args(program.get_args()).args(["dev", "--port-base", "0"]);
        let ran = ran(command.env("XDG_RUNTIME_DIR", place.temporary.path()));
        assert_refused(&ran, 1, "MiB of free disk space and a cluster needs 512", "", "make room there");
        assert!(!ran.stdout.contains("cluster"), "something was made: {}", ran.stdout);
    }
}

#[test]
fn a_server_that_finds_its_disk_full_says_so_and_ends() {
    let place = Place::new();
    drop(place.cluster(&["--nodes", "1"]));
    let small = place.temporary.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let script =
        "mount -t tmpfs -o size=1m none \"$0\" && cp -r \"$1\" \"$2\" \"$0\" && exec \"$3\" serve --data-dir \"$0\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", script]).arg(&small);
    command.arg(place.dir.join("n1/node.toml")).arg(place.dir.join("n1/tls")).arg(env!("CARGO_BIN_EXE_quorate"));
    // The file of the node ties it to a `dev` that has ended; that is for its replicas alone.
    let ran = ran(&mut command);
    assert_refused(&ran, 1, "opening the log in", "No space left on device", "");
}

#[test]
fn a_second_dev_in_the_same_place_is_refused_and_the_first_does_not_notice() {
    let place = Place::new();
    let cluster = place.cluster(&["--nodes", "1"]);
    let before = cluster.pid("n1");
    let ran = place.dev(&[]);
    let record: Value = serde_json::from_slice(&std::fs::read(place.dir.join("dev.json")).unwrap()).unwrap();
    let error = format!("another `quorate dev` (process {}) runs in {}", record["pid"], place.dir.display());
    assert_refused(&ran, 7, &error, "", "quorate status --keep");
    assert_eq!(cluster.pid("n1"), before);
    cluster.ok(&["status", "--check"]);
    // The record is still the first one's.
    assert_eq!(cluster.status("n1").unwrap()["services"][0]["healthy"], 3);
}

#[test]
fn an_order_that_makes_no_sense_is_refused_with_what_would() {
    let place = Place::new();
    assert_refused(&place.run(&["dev", "kill", "n1"]), 3, "no cluster runs in", "", "quorate dev --keep");
    assert_refused(&place.run(&["dev", "--nodes", "0"]), 2, "0", "", "");
    assert_refused(&place.run(&["dev", "--nodes", "10"]), 2, "10", "", "");
    place.assert_untouched();
    let cluster = place.cluster(&["--nodes", "1"]);
    assert_refused(&cluster.run(&["dev", "kill", "n7"]), 6, "there is no node `n7`", "", "did you mean `n1`?");
    assert_refused(&cluster.run(&["dev", "start", "n1"]), 7, "n1 runs already", "", "quorate dev kill n1");
    cluster.ok(&["dev", "stop", "n1"]);
    assert_refused(&cluster.run(&["dev", "stop", "n1"]), 7, "n1 does not run", "", "quorate dev start n1");
    assert_refused(&cluster.run(&["dev", "kill", "n1"]), 7, "n1 does not run", "", "quorate dev start n1");
}
