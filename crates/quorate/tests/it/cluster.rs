//! A real cluster for a test: `quorate dev` in a directory of its own, with everything that a test
//! does to it. Dropping it stops it and makes sure that no process is left.
#![allow(dead_code, reason = "each test takes what it needs")]

use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Longest wait for something that a healthy cluster does in well under a second: machines of CI
/// are slow at times, and a test that waits for a value loses nothing by patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until there is a value.
///
/// # Panics
/// When there is none in time; `what` says what was waited for.
pub(crate) fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "after {patience:?} still not: {what}");
        // The poll interval.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug, Clone)]
pub(crate) struct TestNode {
    pub name: String,
    /// URL of its API; the same after a restart.
    pub api: String,
}

/// An HTTP client that never follows, never retries and takes every status as an answer.
#[derive(Debug, Clone)]
pub(crate) struct Http(ureq::Agent);

impl Http {
    pub(crate) fn new(timeout: Duration) -> Http {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(timeout))
            .build();
        Http(config.into())
    }

    pub(crate) fn get(&self, url: &str) -> Result<(u16, Value), ureq::Error> {
        let mut response = self.0.get(url).call()?;
        Ok((response.status().as_u16(), response.body_mut().read_json()?))
    }

    pub(crate) fn post(&self, url: &str, id: Option<uuid::Uuid>, body: &Value) -> Result<(u16, Value), ureq::Error> {
        self.post_with(url, id.map(|id| ("Quorate-Request-Id", id.to_string())), body)
    }

    pub(crate) fn post_with<'a>(
        &self,
        url: &str,
        headers: impl IntoIterator<Item = (&'a str, String)>,
        body: &Value,
    ) -> Result<(u16, Value), ureq::Error> {
        let mut request = self.0.post(url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut response = request.send_json(body)?;
        Ok((response.status().as_u16(), response.body_mut().read_json()?))
    }
}

/// A place on this machine. Tests with clusters share it, two or more at a time; one that measures
/// has it to itself.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Option<Held>);

#[derive(Debug)]
enum Held {
    Shared(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'static, ()>),
}

static MACHINE: RwLock<()> = RwLock::new(());
thread_local! {
    /// Places that this test has. Only the first of them waits for others.
    static PLACES: Cell<u32> = const { Cell::new(0) };
}

impl Place {
    pub(crate) fn shared() -> Place {
        let first = PLACES.replace(PLACES.get() + 1) == 0;
        Place(first.then(|| Held::Shared(MACHINE.read().unwrap_or_else(PoisonError::into_inner))))
    }

    /// To be taken before the first cluster of a test.
    pub(crate) fn alone() -> Place {
        assert_eq!(PLACES.replace(1), 0);
        Place(Some(Held::Alone(MACHINE.write().unwrap_or_else(PoisonError::into_inner))))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        PLACES.set(PLACES.get() - 1);
    }
}

/// A running cluster.
#[derive(Debug)]
pub(crate) struct TestCluster {
    pub nodes: Vec<TestNode>,
    /// URL.
    pub gateway: String,
    /// What `dev --json` said.
    pub said: Value,
    /// With n1, n2, … and gw1 in it.
    pub dir: PathBuf,
    pub http: Http,
    /// `dev` alone, or the servers of a cluster without it.
    pub processes: Vec<Child>,
    /// The registry and what `dev` says; usually the data too.
    private: tempfile::TempDir,
    place: Place,
}

impl TestCluster {
    /// Three nodes and the demo service.
    pub(crate) fn start() -> TestCluster {
        TestCluster::start_with(&[])
    }

    /// The same with more arguments for `quorate dev`.
    pub(crate) fn start_with(args: &[&str]) -> TestCluster {
        let temporary = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap();
        TestCluster::start_in(temporary, dir, args)
    }

    /// The same in a directory that somebody chose; `temporary` holds what else the cluster needs.
    pub(crate) fn start_in(temporary: tempfile::TempDir, dir: PathBuf, args: &[&str]) -> TestCluster {
        let place = Place::shared();
        let errors = std::fs::File::create(temporary.path().join("dev.err")).unwrap();
        let mut command = quorate(temporary.path(), &dir);
        command.args(["dev", "--json", "--port-base", "0"]).args(args).stdout(Stdio::piped()).stderr(errors);
        let mut dev = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(dev.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Ok(said) = serde_json::from_str::<Value>(&line) else {
            let status = dev.wait().unwrap();
            let why = std::fs::read_to_string(temporary.path().join("dev.err")).unwrap();
            panic!("`quorate dev` ended with {status} and said {line:?}\n{why}");
        };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let nodes = said["nodes"].as_array().unwrap();
        let nodes = nodes.iter().map(|node| TestNode { name: text(&node["name"]), api: text(&node["api"]) }).collect();
        let gateway = text(&said["gateway"]);
        let http = Http::new(Duration::from_secs(20));
        TestCluster { nodes, gateway, said, dir, http, processes: vec![dev], private: temporary, place }
    }

    /// A cluster of servers that a test started itself, without `dev`, in `private`.
    pub(crate) fn of(nodes: Vec<TestNode>, processes: Vec<Child>, private: tempfile::TempDir) -> TestCluster {
        let place = Place::shared();
        let dir = private.path().canonicalize().unwrap();
        let http = Http::new(Duration::from_secs(20));
        TestCluster { nodes, gateway: String::new(), said: Value::Null, dir, http, processes, private, place }
    }

    /// A command line for this cluster, like `["service", "show", "web", "-o", "json"]`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = quorate(self.private.path(), &self.dir);
        command.args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The output of a command that must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "quorate {}: {}{}", args.join(" "), ran.stdout, ran.stderr);
        ran.stdout
    }

    /// Kills a node as a power cut does, its server and its replicas, and waits for nothing.
    pub(crate) fn kill(&self, node: &str) {
        self.order(&json!({ "do": "kill", "node": node, "server_only": false }));
    }

    /// Starts a node and waits for nothing.
    pub(crate) fn start_node(&self, node: &str) {
        self.order(&json!({ "do": "start", "node": node }));
    }

    /// What `quorate dev kill|start` sends, without waiting for what then happens in the cluster.
    fn order(&self, order: &Value) {
        let record: Value = serde_json::from_slice(&std::fs::read(self.dir.join("dev.json")).unwrap()).unwrap();
        let stream = std::os::unix::net::UnixStream::connect(record["socket"].as_str().unwrap()).unwrap();
        std::io::Write::write_all(&mut &stream, format!("{order}\n").as_bytes()).unwrap();
        let mut reply = String::new();
        BufReader::new(&stream).read_line(&mut reply).unwrap();
        assert!(reply.contains("done"), "{order}: {reply}");
    }

    /// `kill -9` of some servers alone, all at once; `dev` does not know of it before. They are
    /// dead when this returns.
    pub(crate) fn kill_servers(&self, nodes: &[String]) {
        let pids: Vec<u32> = nodes.iter().filter_map(|node| self.pid(node)).collect();
        assert_eq!(pids.len(), nodes.len(), "{nodes:?} run");
        pids.iter().for_each(|pid| signal(*pid, rustix::process::Signal::KILL));
        for pid in pids {
            wait_for("the server is dead", PATIENCE, || (!lives(pid)).then_some(()));
        }
    }

    /// The server process of a node, if it runs now.
    pub(crate) fn pid(&self, node: &str) -> Option<u32> {
        let dir = self.node_dir(node).display().to_string();
        processes_of(&dir).into_iter().find(|(_, argv)| argv.iter().any(|arg| arg == "serve")).map(|(pid, _)| pid)
    }

    pub(crate) fn node_dir(&self, node: &str) -> PathBuf {
        self.dir.join(node)
    }

    pub(crate) fn server_log(&self, node: &str) -> String {
        std::fs::read_to_string(self.node_dir(node).join("server.log")).unwrap_or_default()
    }

    pub(crate) fn node(&self, name: &str) -> &TestNode {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// The answer of `GET /v1/status` of one node; `None` while it does not answer.
    pub(crate) fn status(&self, node: &str) -> Option<Value> {
        let answer = self.http.get(&format!("{}/v1/status", self.node(node).api)).ok()?;
        (answer.0 == 200).then_some(answer.1)
    }

    /// Name of the leader: the one of the highest term that knows itself to lead.
    pub(crate) fn leader(&self) -> String {
        wait_for("a leader", PATIENCE, || {
            let seen = self.nodes.iter().filter_map(|node| self.status(&node.name));
            let leading = seen.filter(|status| status["cluster"]["leader"] == status["answered_by"]);
            let newest = leading.max_by_key(|status| status["cluster"]["term"].as_u64())?;
            newest["answered_by"].as_str().map(str::to_owned)
        })
    }

    pub(crate) fn followers(&self) -> Vec<String> {
        let leader = self.leader();
        self.names().into_iter().filter(|name| *name != leader).collect()
    }

    /// Waits until every node hears all others and there is a leader.
    pub(crate) fn wait_whole(&self) {
        wait_for("all nodes hear each other", PATIENCE, || {
            self.nodes
                .iter()
                .all(|node| {
                    self.status(&node.name).is_some_and(|status| {
                        let joined = |node: &Value| node["state"] == "joined";
                        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
                        status["cluster"]["leader"].is_string()
                            && nodes.len() == self.nodes.len()
                            && nodes.iter().all(joined)
                    })
                })
                .then_some(())
        });
    }

    /// Sends statements that write to one node, once.
    pub(crate) fn try_exec(&self, node: &str, id: uuid::Uuid, body: &Value) -> Result<(u16, Value), ureq::Error> {
        self.http.post(&format!("{}/v1/db/exec", self.node(node).api), Some(id), body)
    }

    /// Runs one statement that writes; it must succeed.
    pub(crate) fn exec(&self, node: &str, sql: &str) -> Value {
        let (status, answer) = self.try_exec(node, uuid::Uuid::new_v4(), &json!({ "sql": sql })).unwrap();
        assert!(status == 200 && answer["results"][0].get("error").is_none(), "{sql} on {node}: {status} {answer}");
        answer
    }

    /// Sends a statement that reads to one node; `consistency` is `local` or `linearizable`.
    pub(crate) fn try_query(&self, node: &str, sql: &str, consistency: &str) -> Result<(u16, Value), ureq::Error> {
        let body = json!({ "sql": sql, "consistency": consistency });
        self.http.post(&format!("{}/v1/db/query", self.node(node).api), None, &body)
    }

    /// The whole answer of one statement that reads this node's own files; it must succeed.
    pub(crate) fn local(&self, node: &str, sql: &str) -> Value {
        let (status, answer) = self.try_query(node, sql, "local").unwrap();
        assert!(status == 200 && answer["results"][0].get("error").is_none(), "{sql} on {node}: {status} {answer}");
        answer
    }

    /// The rows of one statement, read by way of the leader.
    pub(crate) fn rows(&self, node: &str, sql: &str) -> Value {
        let (status, mut answer) = self.try_query(node, sql, "linearizable").unwrap();
        assert!(status == 200 && answer["results"][0].get("error").is_none(), "{sql} on {node}: {status} {answer}");
        answer["results"][0]["rows"].take()
    }
}

impl Drop for TestCluster {
    #[allow(clippy::print_stderr, reason = "it explains a failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
            eprintln!("── dev\n{}", tail(&read(&self.private.path().join("dev.err"))));
            for name in self.names().iter().map(String::as_str).chain(["gw1"]) {
                eprintln!("── server.log of {name}\n{}", tail(&self.server_log(name)));
            }
        }
        self.processes.iter().for_each(|process| signal(process.id(), rustix::process::Signal::TERM));
        let ended = ends_within(Duration::from_secs(20), || {
            self.processes.iter_mut().all(|process| matches!(process.try_wait(), Ok(Some(_))))
        });
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        let dir = self.dir.display().to_string();
        let all_gone = ends_within(Duration::from_secs(5), || processes_of(&dir).is_empty());
        let left = processes_of(&dir);
        for pid in left.keys() {
            signal(*pid, rustix::process::Signal::KILL);
        }
        if !std::thread::panicking() {
            assert!(ended, "it did not end after SIGTERM");
            assert!(all_gone, "left behind: {left:?}");
        }
    }
}

fn ends_within(patience: Duration, mut ended: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if ended() {
            return true;
        }
        // The poll interval.
        std::thread::sleep(Duration::from_millis(10));
    }
    ended()
}

/// The program, with a registry of running clusters that no other test sees.
pub(crate) fn quorate(private: &Path, dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command
        .env_remove("QUORATE_SERVER")
        .env_remove("QUORATE_CA_PIN")
        .env_remove("QUORATE_CA_FILE")
        .env("XDG_RUNTIME_DIR", private)
        .stdin(Stdio::null());
    command.arg("--keep").arg(dir);
    command
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    // It may have ended a moment ago.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether there is such a process that has not ended with all its threads.
pub(crate) fn lives(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let zombie = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !zombie || threads > 1
}

/// Processes with `dir`, or something in it, among their arguments, as their working directory or
/// in their environment.
pub(crate) fn processes_of(dir: &str) -> std::collections::BTreeMap<u32, Vec<String>> {
    let mut found = std::collections::BTreeMap::new();
    let below = format!("{dir}/");
    let pids: BTreeSet<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    for pid in pids {
        let Ok(bytes) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let argv: Vec<String> = bytes.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let at = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let named = argv.iter().any(|arg| arg == dir || arg.starts_with(&below));
        if named || at.starts_with(dir) || String::from_utf8_lossy(&environment).contains(&below) {
            found.insert(pid, argv);
        }
    }
    found
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Addresses that nothing listens on, below the ports that Linux gives to outgoing connections: one
/// of those could take the number before its owner listens. Below those that `dev` and agents choose from,
/// too, which run at the same time.
pub(crate) fn free_addresses(count: usize) -> Vec<String> {
    let somewhere = usize::from(uuid::Uuid::new_v4().as_fields().1);
    let candidates = (6_000u16..10_000).cycle().skip(somewhere % 4_000).take(4_000);
    // Held until all are chosen, so that they differ.
    let held: Vec<TcpListener> =
        candidates.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).take(count).collect();
    assert_eq!(held.len(), count, "there are free ports");
    held.iter().map(|it| it.local_addr().unwrap().to_string()).collect()
}
