//! Logs of replicas and of servers, asked of nodes that do not have them.

use crate::access::Guarded;
use crate::cluster::{PATIENCE, Ran, TestCluster, lives, signal, wait_for};
use crate::founded::Founded;
use crate::show::{demo, is_whole, pids, replicas};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// One copy that counts, for ever.
const TALK: &str = "[[service]]\nname = 'talk'\n\
    command = ['/bin/sh', '-c', 'i=0; while :; do i=$((i+1)); echo line $i of {ordinal}; sleep 0.1; done']\n";

fn failure(ran: &Ran) -> Value {
    let failure: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|_| panic!("{ran:?}"));
    assert!(!failure["error"]["fix"].as_str().unwrap().is_empty(), "{failure}");
    failure["error"].clone()
}

/// `quorate logs` by way of one node.
fn logs(cluster: &TestCluster, by: &str, args: &[&str]) -> Ran {
    cluster.run(&[&["--server", &cluster.node(by).api, "-o", "json", "logs"], args].concat())
}

/// A command that follows, line by line.
struct Following(Child, std::io::Lines<BufReader<std::process::ChildStdout>>);

impl Following {
    fn start(cluster: &TestCluster, by: &str, args: &[&str]) -> Following {
        let args = [&["--server", &cluster.node(by).api, "-o", "json", "logs", "-f"], args].concat();
        let mut child = cluster.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Following(child, lines)
    }

    /// The next line that has these words.
    fn until(&mut self, words: &str) -> String {
        self.1.by_ref().map(Result::unwrap).find(|line| line.contains(words)).expect("it goes on until then")
    }

    fn end(mut self) -> Ran {
        self.1.by_ref().for_each(drop);
        let output = self.0.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), stdout: String::new(), stderr }
    }
}

fn node_of(view: &Value) -> String {
    replicas(view)[0]["node"].as_str().unwrap().to_owned()
}

fn own_log_dir(cluster: &TestCluster, node: &str) -> PathBuf {
    let shown = cluster.json(&["node", "show", node]);
    let dir = cluster.node_dir(node).join("managers").join(shown["id"].as_str().unwrap()).join("log");
    assert_eq!(shown["log_dir"], dir.display().to_string(), "{shown}");
    dir
}

#[test]
fn k11_a_replicas_log_is_followed_by_way_of_any_node_and_read_after_it_has_ended() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    cluster.apply(TALK);
    let view = cluster.service("talk");
    let (home, id) = (node_of(&view), replicas(&view)[0]["id"].as_str().unwrap().to_owned());
    let others: Vec<String> = cluster.names().into_iter().filter(|name| *name != home).collect();
    let (other, third) = (&others[0], &others[1]);
    let mut following = Following::start(&cluster, other, &["talk", "-n", "1"]);
    let number = |line: String| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    let first = number(following.until("line "));
    let lines: Vec<u64> = (0..5).map(|_| number(following.until("line "))).collect();
    assert_eq!(lines, (first + 1..=first + 5).collect::<Vec<_>>(), "every line once, in order");

    // The cluster forgets the replica; its node keeps the log, and whoever knows the id finds it.
    cluster.ok(&["service", "remove", "talk", "--yes"]);
    wait_for("the replica ends", PATIENCE, || (!pids(&view).into_iter().any(lives)).then_some(()));
    for node in [&home, other] {
        let said = logs(&cluster, node, &["talk", "--replica", &id, "-n", "10000"]);
        assert!(said.code == 0 && said.stdout.starts_with("line 1 of 0\n"), "{said:?}");
    }
    let nobody = uuid::Uuid::new_v4().to_string();
    let unknown = logs(&cluster, other, &["talk", "--replica", &nobody]);
    assert_eq!((unknown.code, &failure(&unknown)["code"]), (6, &json!("unknown-log")));

    // Neither is known to be nowhere while a node is away that may have it.
    cluster.kill(&home);
    for id in [&id, &nobody] {
        let away = logs(&cluster, other, &["talk", "--replica", id]);
        assert_eq!((away.code, &failure(&away)["code"]), (3, &json!("node-unreachable")), "{away:?}");
        assert!(failure(&away)["message"].as_str().unwrap().contains(&home), "{away:?}");
    }
    drop(following.0.kill());
    following.end();
    assert!(cluster.status(third).is_some(), "the others go on");
}

#[test]
fn a_log_that_is_followed_by_way_of_another_node_is_cut_off_when_its_node_dies() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    cluster.apply(TALK);
    let home = node_of(&cluster.service("talk"));
    let other = cluster.names().into_iter().find(|name| *name != home).unwrap();
    let mut following = Following::start(&cluster, &other, &["talk", "-n", "1"]);
    following.until("line ");
    cluster.kill(&home);
    let ended = following.end();
    assert_eq!(
        (ended.code, &json!("log-cut")),
        (3, &serde_json::from_str::<Value>(&ended.stderr).unwrap()["error"]["code"])
    );
    let asked = logs(&cluster, &other, &["--node", &home]);
    assert_eq!((asked.code, &failure(&asked)["code"]), (3, &json!("node-unreachable")), "{asked:?}");
    assert!(failure(&asked)["fix"].as_str().unwrap().contains(&format!("bring the server of {home}")), "{asked:?}");
}

#[test]
fn u9_the_log_of_a_passive_and_of_a_stopped_manager_is_read_on_another_one() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    let active = cluster.leader();
    let passive = cluster.followers().remove(0);
    let dir = own_log_dir(&cluster, &passive);
    assert!(dir.join("current").exists());
    assert!(cluster.ok(&["node", "list", "-o", "wide"]).contains(&dir.display().to_string()));
    assert!(cluster.ok(&["node", "show", &passive]).contains(&format!("Log       {}", dir.display())));
    let whole = logs(&cluster, &active, &["--node", &passive, "-n", "10000"]);
    assert!(whole.code == 0 && whole.stdout.contains(&format!("starting name={passive}")), "{whole:?}");
    // Standard error has the same, as it always had.
    let said = cluster.server_log(&passive);
    let without_time = |line: &str| line.split_once(' ').unwrap().1.to_owned();
    assert!(whole.stdout.lines().map(without_time).all(|line| said.contains(&line)), "{}\n──\n{said}", whole.stdout);

    let mut following = Following::start(&cluster, &active, &["--node", &passive, "-n", "1"]);
    cluster.ok(&["manager", "stop", &passive]);
    signal(cluster.pid(&passive).unwrap(), rustix::process::Signal::HUP);
    // The data directory was given on the command line.
    following.until("not in force before a restart");
    drop(following.0.kill());
    following.end();
    let stopped = logs(&cluster, &active, &["--node", &passive]);
    assert!(stopped.code == 0 && stopped.stdout.contains("not in force before a restart"), "{stopped:?}");
    let unknown = logs(&cluster, &active, &["--node", "n9"]);
    assert_eq!((unknown.code, &failure(&unknown)["code"]), (6, &json!("unknown-node")));
}

#[test]
fn the_log_of_a_server_is_for_those_who_run_the_cluster() {
    let guarded = Guarded::start(3);
    let (asked, of) = (guarded.followers().remove(0), guarded.leader());
    let path = format!("/v1/nodes/{of}/log?lines=1");
    for (user, role, allowed) in [("olga", "operator", true), ("vera", "viewer", false), ("axel", "auditor", false)] {
        guarded.create(user, role);
        let bearer = guarded.log_in(&asked, user);
        let answer = guarded.ask(&asked, "GET", &path, &[("Authorization", &bearer)], &Value::Null).unwrap();
        let expected = if allowed { (200, "") } else { (403, "not-allowed") };
        assert_eq!((answer.status, answer.code()), expected, "{role}");
    }
}

/// All files below, by their names below `dir`.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let (path, kind) = {
                let entry = entry.unwrap();
                (entry.path(), entry.file_type().unwrap())
            };
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() {
                found.push((path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn joined(files: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    files.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
}

#[test]
fn k11_all_that_is_kept_of_every_copy_is_downloaded_by_way_of_one_node() {
    let cluster = TestCluster::start();
    cluster.wait_whole();
    // More than one file holds, less than is kept.
    cluster.apply(
        "[[service]]\nname = 'loud'\nreplicas = 3\n\
         command = ['/bin/sh', '-c', 'yes 0123456789abcde-{ordinal} | head -c 10000000; sleep 1000']\n",
    );
    let view = cluster.service("loud");
    let dir_of = |replica: &Value| PathBuf::from(replica["log_dir"].as_str().unwrap());
    for replica in replicas(&view) {
        wait_for("it has said all", PATIENCE, || (joined(&files(&dir_of(replica))).len() == 10_000_000).then_some(()));
    }
    let into = cluster.dir.join("downloaded");
    let into_text = into.display().to_string();
    let done = logs(&cluster, "n2", &["loud", "--download", &into_text]);
    assert_eq!(done.code, 0, "{done:?}");
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((done.as_array().unwrap().len(), &done[0]["bytes"]), (3, &json!(10_000_000)));
    for replica in replicas(&view) {
        let here = files(&into.join("loud").join(replica["id"].as_str().unwrap()));
        assert_eq!(here[0].0, Path::new("00000000000000000000.log"), "named by where it begins");
        assert!(joined(&here) == joined(&files(&dir_of(replica))), "byte for byte");
        assert!(files(&dir_of(replica)).len() == 2, "a rotated file is among them");
    }
    let again = logs(&cluster, "n2", &["loud", "--download", &into_text]);
    assert_eq!((again.code, &failure(&again)["code"]), (2, &json!("not-empty")));

    let node = own_log_dir(&cluster, "n3");
    let into = cluster.dir.join("of-n3");
    let done = logs(&cluster, "n1", &["--node", "n3", "--download", into.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(joined(&files(&node)).starts_with(&joined(&files(&into))), "it may have said more since");
    assert!(files(&into)[0].0.starts_with("managers"));
}

/// Bad input of Services: a full disk in the log directory.
#[test]
fn full_disks_below_the_logs_stop_neither_the_workload_nor_the_node() {
    let mut founded = Founded::new();
    founded.tie("n1");
    let shown = wait_for("it answers", PATIENCE, || founded.try_ask(&["node", "show", "n1", "-o", "json"]));
    let id = shown["id"].as_str().unwrap().to_owned();
    founded.kill("n1");
    let home = founded.home("n1");
    let (service, own) = (home.join("services/loud"), home.join("managers").join(id).join("log"));
    std::fs::create_dir_all(&service).unwrap();
    // Small disks of their own, in a mount namespace that ends with the server and its replicas.
    let script =
        "mount -t tmpfs -o size=256k tmpfs \"$1\"; mount -t tmpfs -o size=32k tmpfs \"$2\"; shift 2; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]).arg(&service).arg(&own);
    command.args([env!("CARGO_BIN_EXE_quorate"), "serve", "--data-dir"]).arg(&home);
    command.arg("--config").arg(home.join("quorate.toml"));
    let errors = std::fs::File::options().append(true).open(home.join("server.log")).unwrap();
    let mut server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
    let pid = server.id();
    let inside = |line: &str| {
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", "sh", "-c", line, "sh"]).arg(&service).arg(&own);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let free = |which: &str| inside(&format!("df --output=avail {which} | tail -1")).trim() == "0";

    // A megabyte, which nobody takes, and then its work.
    let spec = demo("loud", 1, "").replacen(
        "command = [",
        "command = [\"/bin/sh\", \"-c\", \"yes | head -c 1000000; exec $0 $*\", ",
        1,
    );
    let file = founded.home("loud.toml");
    std::fs::write(&file, spec).unwrap();
    let file = file.display().to_string();
    wait_for("the spec is taken", PATIENCE, || {
        (founded.command(&["service", "apply", "-f", &file, "--yes", "--no-wait"]).code == 0).then_some(())
    });
    let view = wait_for("the workload is well", PATIENCE, || {
        founded.try_ask(&["service", "show", "loud", "-o", "json"]).filter(is_whole)
    });
    assert!(free("\"$1\""), "its log has filled its disk");
    assert_eq!(replicas(&view)[0]["restarts"], 0);
    assert!(inside("cat \"$1\"/*/shim.log").lines().count() < 10, "it is said, but seldom");

    // What is left of a page still takes lines; each signal makes the server say some.
    let says = |what: &str, said: &dyn Fn() -> String| {
        wait_for(what, PATIENCE, || {
            signal(pid, rustix::process::Signal::HUP);
            said().contains(what).then_some(())
        });
    };
    inside("head -c 100000 /dev/zero > \"$2\"/filler");
    assert!(free("\"$2\""), "the disk of the server's log is full");
    says("the server's log is not kept for now", &|| founded.log("n1"));
    founded.write("n1", "CREATE TABLE t (a INTEGER)");
    founded.write("n1", "INSERT INTO t VALUES (1)");
    assert_eq!(founded.number("n1", "SELECT count(*) FROM t"), Some(1));
    let read = founded.command(&["logs", "--node", "n1", "-n", "1"]);
    assert_eq!(read.code, 0, "what fitted can be read: {read:?}");
    let read = founded.command(&["logs", "loud", "-n", "1"]);
    assert_eq!((read.code, read.stdout.as_str()), (0, "y\n"), "{read:?}");

    inside("rm \"$2\"/filler");
    says("lines are missing here", &|| inside("cat \"$2\"/*.log"));

    // Stopping ends, with a disk that does not even take a note of it.
    assert_eq!(founded.command(&["service", "remove", "loud", "--yes"]).code, 0);
    wait_for("the workload ends", PATIENCE, || (!pids(&view).into_iter().any(lives)).then_some(()));
    server.kill().unwrap();
    server.wait().unwrap();
}
