//! A cluster that is made as operators make one, with `init`, `add-node` and `join`: real processes,
//! TLS on all ports, addresses of loopback.

use crate::cluster::{PATIENCE, Place, Ran, free_addresses, lives, signal, wait_for};
use crate::show::{demo, is_whole, pids};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The first node, and those that were let in and started.
pub(crate) struct Founded {
    pub(crate) dir: tempfile::TempDir,
    /// Of the first node.
    pub(crate) api: String,
    servers: BTreeMap<String, Child>,
    /// `node = …`, `cluster = …` of every server's settings.
    settings: String,
    _place: Place,
}

pub(crate) fn run(args: &[&str]) -> Ran {
    let output = quorate(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub(crate) fn quorate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.env_remove("QUORATE_SERVER").env_remove("QUORATE_TOKEN_FILE").stdin(Stdio::null()).args(args);
    command
}

/// The code of a failure; it must say what to do.
pub(crate) fn code(ran: &Ran) -> String {
    let failure: Value = serde_json::from_str(&ran.stderr).unwrap_or_else(|_| panic!("{ran:?}"));
    assert!(!failure["error"]["fix"].as_str().unwrap().is_empty(), "{failure}");
    failure["error"]["code"].as_str().unwrap().to_owned()
}

/// `quorate serve`; its settings are `quorate.toml` in the directory if that is there, else the defaults.
pub(crate) fn serve(data_dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(data_dir.join("server.log")).unwrap();
    let settings = data_dir.join("quorate.toml");
    if !settings.exists() {
        std::fs::write(&settings, "").unwrap();
    }
    let mut command = quorate(&["serve", "--data-dir"]);
    command.arg(data_dir).arg("--config").arg(settings).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

impl Founded {
    pub(crate) fn new() -> Founded {
        Founded::with_settings("")
    }

    /// Every server that is started gets these lines in its `quorate.toml`.
    pub(crate) fn with_settings(settings: &str) -> Founded {
        Founded::found(settings, &[])
    }

    /// `init` runs with these variables in its environment.
    pub(crate) fn found(settings: &str, environment: &[(&str, &str)]) -> Founded {
        let place = Place::shared();
        let dir = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        let addresses = free_addresses(2);
        let home = dir.path().join("n1").display().to_string();
        let [api, link] = [&*addresses[0], &*addresses[1]];
        let args = ["init", "--name", "prod", "--node-name", "n1", "--data-dir", &home, "--no-start"];
        let mut init = quorate(&[&args[..], &["--listen", api, "--link", link]].concat());
        let made = init.envs(environment.iter().copied()).output().unwrap();
        let said = String::from_utf8(made.stdout).unwrap();
        assert!(said.contains("Cluster prod is prepared with 1 manager"), "{said}{:?}", made.stderr);
        let (servers, settings) = (BTreeMap::new(), settings.to_owned());
        let mut founded = Founded { dir, api: api.to_owned(), servers, settings, _place: place };
        founded.start("n1");
        wait_for("the first node to lead", PATIENCE, || {
            let status = founded.status("n1")?;
            status["cluster"]["leader"].is_string().then_some(())
        });
        founded
    }

    /// One node that runs one copy of `demo`, with a route to it; its processes end with the test whatever
    /// happens.
    pub(crate) fn with_a_service() -> (Founded, BTreeSet<u32>) {
        let mut founded = Founded::new();
        founded.tie("n1");
        let spec = founded.home("demo.toml");
        std::fs::write(&spec, demo("demo", 1, "") + "[[route]]\nservice = 'demo'\n").unwrap();
        let spec = spec.display().to_string();
        wait_for("the spec is taken", PATIENCE, || {
            (founded.command(&["service", "apply", "-f", &spec, "--yes"]).code == 0).then_some(())
        });
        let service = wait_for("demo runs", PATIENCE, || {
            let service = founded.try_ask(&["service", "show", "demo", "-o", "json"])?;
            is_whole(&service).then_some(service)
        });
        (founded, pids(&service))
    }

    /// A cluster of this many managers, all of them voters.
    pub(crate) fn grown(nodes: usize) -> Founded {
        let mut founded = Founded::new();
        for number in 2..=nodes {
            founded.add(&format!("n{number}"), &[]);
        }
        founded.wait_voters("n1", nodes);
        founded
    }

    /// Lets a server in and starts it; `more` are arguments of `add-node`.
    pub(crate) fn add(&mut self, name: &str, more: &[&str]) {
        let token = self.token(more);
        let joined = self.join(&token, name, &[]);
        assert_eq!(joined.code, 0, "{joined:?}");
        self.start(name);
    }

    pub(crate) fn start(&mut self, name: &str) {
        let home = self.home(name);
        if !self.settings.is_empty() {
            std::fs::write(home.join("quorate.toml"), &self.settings).unwrap();
        }
        let server = serve(&home);
        assert!(self.servers.insert(name.to_owned(), server).is_none(), "{name} runs already");
    }

    /// Starts a node again so that its replicas end with the test, whatever happens.
    pub(crate) fn tie(&mut self, name: &str) {
        self.kill(name);
        let file = self.home(name).join("node.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let tied = format!("[node]\nend_with_pid = {}\n", std::process::id());
        std::fs::write(&file, text.replacen("[node]\n", &tied, 1)).unwrap();
        self.start(name);
    }

    pub(crate) fn pid(&self, name: &str) -> u32 {
        self.servers[name].id()
    }

    /// Ends a server at once, and waits until it is gone.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut server = self.servers.remove(name).unwrap();
        signal(server.id(), Signal::KILL);
        server.wait().unwrap();
    }

    /// Waits until a server has ended by itself; returns whether it calls that a success.
    pub(crate) fn wait_end(&mut self, name: &str) -> bool {
        let pid = self.pid(name);
        wait_for("the server ends", PATIENCE, || (!lives(pid)).then_some(()));
        self.servers.remove(name).unwrap().wait().unwrap().success()
    }

    pub(crate) fn home(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    pub(crate) fn log(&self, node: &str) -> String {
        std::fs::read_to_string(self.home(node).join("server.log")).unwrap_or_default()
    }

    /// A command that talks to a node as root does.
    pub(crate) fn command_at(&self, node: &str, args: &[&str]) -> Ran {
        let socket = format!("unix:{}", self.home(node).join("api.sock").display());
        run(&[&["--server", &socket], args].concat())
    }

    /// The same to the first node.
    pub(crate) fn command(&self, args: &[&str]) -> Ran {
        self.command_at("n1", args)
    }

    pub(crate) fn try_ask(&self, args: &[&str]) -> Option<Value> {
        let ran = self.command(args);
        (ran.code == 0).then(|| serde_json::from_str(&ran.stdout).unwrap())
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Value {
        self.ask_at("n1", args)
    }

    pub(crate) fn ask_at(&self, node: &str, args: &[&str]) -> Value {
        let ran = self.command_at(node, &[args, &["-o", "json"]].concat());
        assert_eq!(ran.code, 0, "{args:?} at {node}: {ran:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// `status` as a node sees it, if it answers.
    pub(crate) fn status(&self, node: &str) -> Option<Value> {
        let ran = self.command_at(node, &["status", "-o", "json"]);
        if ran.code == 0 { serde_json::from_str(&ran.stdout).ok() } else { None }
    }

    /// The word for the state of `of`, as `node` sees it.
    pub(crate) fn state(&self, node: &str, of: &str) -> Option<String> {
        let status = self.status(node)?;
        let nodes = status["nodes"].as_array()?;
        let found = nodes.iter().find(|found| found["name"] == of)?;
        found["state"].as_str().map(str::to_owned)
    }

    /// Waits until all of `nodes` say that `of` is in this state.
    pub(crate) fn wait_state(&self, nodes: &[&str], of: &str, state: &str) {
        for node in nodes {
            wait_for(&format!("{node} sees {of} {state}"), PATIENCE, || (self.state(node, of)? == state).then_some(()));
        }
    }

    /// Waits until `node` sees this many voters, all of them heard.
    pub(crate) fn wait_voters(&self, node: &str, voters: usize) {
        wait_for(&format!("{voters} voters at {node}"), PATIENCE, || {
            let cluster = &self.status(node)?["cluster"];
            let all = cluster["voters"] == voters && cluster["voters_joined"] == voters;
            (all && cluster["leader"].is_string()).then_some(())
        });
    }

    /// Runs a statement at a node until it is done: the cluster may be electing.
    pub(crate) fn write(&self, node: &str, sql: &str) {
        wait_for(&format!("{node} writes `{sql}`"), PATIENCE, || {
            (self.command_at(node, &["db", "exec", sql]).code == 0).then_some(())
        });
    }

    /// The one number that a statement reads.
    pub(crate) fn number(&self, node: &str, sql: &str) -> Option<i64> {
        let ran = self.command_at(node, &["db", "query", sql, "-o", "json"]);
        let answer: Value = serde_json::from_str(&ran.stdout).ok()?;
        answer["rows"][0][0].as_i64()
    }

    /// The token of a new join command.
    pub(crate) fn token(&self, args: &[&str]) -> String {
        let made = self.ask(&[&["add-node"], args].concat());
        let command = made["commands"][0].as_str().unwrap();
        command.strip_prefix("quorate join ").unwrap().to_owned()
    }

    /// `quorate join` at addresses of its own. Nothing is started.
    pub(crate) fn join(&self, token: &str, name: &str, more: &[&str]) -> Ran {
        let addresses = free_addresses(2);
        let home = self.home(name).display().to_string();
        let args = ["-o", "json", "join", token, "--name", name, "--data-dir", &home, "--no-start"];
        let places = ["--listen", &addresses[0], "--link", &addresses[1]];
        run(&[&args[..], &places, more].concat())
    }

    pub(crate) fn nodes(&self) -> Vec<String> {
        let nodes = self.ask(&["node", "list"]);
        nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Founded {
    fn drop(&mut self) {
        for server in self.servers.values() {
            signal(server.id(), Signal::KILL);
        }
        for server in self.servers.values_mut() {
            let _ = server.wait();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                #[allow(clippy::print_stderr, reason = "it explains a failed test")]
                {
                    eprintln!("{name}:\n{}", self.log(&name));
                }
            }
        }
    }
}
