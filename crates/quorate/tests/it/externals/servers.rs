//! Debian's servers, each in a directory and on ports of its own, ended with the test.

use crate::cluster::{PATIENCE, free_addresses, signal, wait_for};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// RabbitMQ takes 5 s on a machine that does nothing else, and a minute on one whose processors others use.
const START: Duration = Duration::from_secs(180);

pub(super) fn free_address() -> String {
    free_addresses(1).remove(0)
}

fn port(address: &str) -> &str {
    address.rsplit_once(':').unwrap().1
}

/// A server's process, and its directory.
struct Running {
    process: Child,
    /// Whether what it started is ended with it.
    whole_group: bool,
    dir: tempfile::TempDir,
}

impl Running {
    fn start(dir: tempfile::TempDir, command: &mut Command) -> Running {
        let log = std::fs::File::create(dir.path().join("said")).unwrap();
        let process = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let process = process.unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask ci` installs it"));
        Running { process, whole_group: false, dir }
    }

    /// Waits for an answer; panics with what the server said if it ends before.
    fn wait(&mut self, ask: impl Fn() -> Option<()>) {
        wait_for("the server answers", START, || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("it ended with {status}: {}", std::fs::read_to_string(self.dir.path().join("said")).unwrap());
            }
            ask()
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match Pid::from_raw(self.process.id().cast_signed()) {
            Some(group) if self.whole_group => drop(kill_process_group(group, Signal::KILL)),
            _ => signal(self.process.id(), Signal::KILL),
        }
        let _ = self.process.wait();
    }
}

/// Databases that no server serves yet. PostgreSQL refuses to run as root: then it runs as Debian's `postgres`.
pub(super) struct Databases {
    dir: tempfile::TempDir,
    owner: Option<(u32, u32)>,
}

impl Databases {
    pub(super) fn new() -> Databases {
        let dir = tempfile::Builder::new().prefix("quorate-it-pg-").tempdir().unwrap();
        let password = dir.path().join("password");
        std::fs::write(&password, ADMIN).unwrap();
        let owner = rustix::process::getuid().is_root().then(|| ids("postgres"));
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(dir.path(), Some(user), Some(group)).unwrap();
            std::os::unix::fs::chown(&password, Some(user), Some(group)).unwrap();
        }
        let made = Databases { dir, owner };
        let mut initdb = made.program("initdb");
        let file = format!("--pwfile={}", password.display());
        initdb.args(["-D", &made.data(), "-U", "admin", "--auth=scram-sha-256", "--no-sync", &file]);
        succeeded(initdb.output().unwrap());
        made
    }

    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    fn binary(name: &str) -> PathBuf {
        newest(Path::new("/usr/lib/postgresql")).join("bin").join(name)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(Databases::binary(name));
        command.current_dir(self.dir.path());
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }

    fn arguments(&self, port: &str) -> Vec<String> {
        ["-D", &self.data(), "-h", "127.0.0.1", "-p", port, "-k", "", "-F"].map(str::to_owned).into()
    }

    /// What a service runs to serve them.
    pub(super) fn command(&self, port: &str) -> Vec<String> {
        let as_owner = self.owner.map(|(user, group)| {
            ["setpriv".to_owned(), format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]
        });
        let server = Databases::binary("postgres").display().to_string();
        as_owner.into_iter().flatten().chain([server]).chain(self.arguments(port)).collect()
    }
}

/// A server of its own databases.
pub(super) struct Postgres {
    pub(super) address: String,
    _running: Running,
}

/// The administrator's password.
pub(super) const ADMIN: &str = "of-the-admin-alone";

impl Postgres {
    pub(super) fn start() -> Postgres {
        Postgres::start_at(&free_address())
    }

    pub(super) fn start_at(address: &str) -> Postgres {
        let databases = Databases::new();
        let mut server = databases.program("postgres");
        server.args(databases.arguments(port(address)));
        let mut postgres =
            Postgres { address: address.to_owned(), _running: Running::start(databases.dir, &mut server) };
        let ask = psql(address, "SELECT 1");
        postgres._running.wait(move || run(ask.0.as_path(), &ask.1).status.success().then_some(()));
        postgres
    }

    /// As the administrator.
    pub(super) fn sql(&self, sql: &str) {
        as_admin(&self.address, sql);
    }
}

/// Asks the server there as its administrator.
pub(super) fn as_admin(address: &str, sql: &str) {
    let (program, args) = psql(address, sql);
    succeeded(run(&program, &args));
}

fn psql(address: &str, sql: &str) -> (PathBuf, Vec<String>) {
    let url = format!("postgres://admin:{ADMIN}@{address}/postgres");
    ("psql".into(), vec![url, "-v".into(), "ON_ERROR_STOP=1".into(), "-qc".into(), sql.to_owned()])
}

fn run(program: &Path, args: &[String]) -> Output {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn succeeded(output: Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

/// The directory of the newest version.
pub(crate) fn newest(dir: &Path) -> PathBuf {
    let versions = std::fs::read_dir(dir).expect("postgresql is installed: `cargo xtask ci` does it");
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    versions.flatten().map(|entry| entry.path()).max_by_key(number).expect("a version of it")
}

pub(crate) fn ids(user: &str) -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with(&format!("{user}:"))).expect("the user of the package");
    let fields: Vec<&str> = line.split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

pub(super) struct Redis {
    pub(super) address: String,
    bus: String,
    _running: Running,
}

impl Redis {
    /// `node`: it is to be part of a cluster.
    pub(super) fn start(password: &str, node: bool) -> Redis {
        let dir = tempfile::Builder::new().prefix("quorate-it-redis-").tempdir().unwrap();
        let [address, bus] = <[String; 2]>::try_from(free_addresses(2)).unwrap();
        let mut text = format!(
            "bind 127.0.0.1\nport {}\ndir {}\nsave ''\nrequirepass {password}\nmasterauth {password}\n",
            port(&address),
            dir.path().display()
        );
        if node {
            text += &format!("cluster-enabled yes\ncluster-port {}\n", port(&bus));
        }
        let config = dir.path().join("redis.conf");
        std::fs::write(&config, text).unwrap();
        let mut running = Running::start(dir, Command::new("redis-server").arg(&config));
        running.wait(|| std::net::TcpStream::connect(&address).ok().map(drop));
        Redis { bus, address, _running: running }
    }

    /// Makes one cluster of these nodes.
    pub(super) fn join(password: &str, nodes: &[Redis]) {
        let mut cli = Command::new("redis-cli");
        cli.env("REDISCLI_AUTH", password).args(["--cluster-yes", "--cluster", "create"]);
        cli.args(nodes.iter().map(|node| format!("{}@{}", node.address, port(&node.bus))));
        succeeded(cli.stdin(Stdio::null()).output().unwrap());
        for node in nodes {
            let (host, port) = node.address.rsplit_once(':').unwrap();
            wait_for("the cluster is whole", PATIENCE, || {
                let mut info = Command::new("redis-cli");
                info.env("REDISCLI_AUTH", password).args(["-h", host, "-p", port, "cluster", "info"]);
                String::from_utf8_lossy(&info.output().unwrap().stdout).contains("cluster_state:ok").then_some(())
            });
        }
    }
}

/// An S3 service that believes signed requests alone, with the bucket `apps`.
pub(super) struct S3 {
    pub(super) address: String,
    pub(super) id: String,
    pub(super) key: String,
    process: Child,
}

impl S3 {
    pub(super) fn start() -> S3 {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut process = Command::new("python3")
            .arg(here.join("../quorate-agent/tests/it/s3_server.py"))
            // Where `cargo xtask ci` puts it, if the system has none.
            .env("PYTHONPATH", here.join("../../target/tools/moto"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.as_mut().unwrap().write_all(b"object\n").unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line)
            .expect("moto serves S3: `cargo xtask ci` installs it, as does `pip install 'moto[s3,server]'`");
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        let address = text("endpoint").trim_start_matches("http://").to_owned();
        S3 { address, id: text("id"), key: text("key"), process }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// RabbitMQ with the user `app`, and a port mapper of its own.
pub(super) struct RabbitMq {
    pub(super) address: String,
    // In this order: the mapper is the last to end.
    _running: Running,
    _mapper: Running,
}

impl RabbitMq {
    pub(super) fn start(password: &str) -> RabbitMq {
        let prefix = || tempfile::Builder::new().prefix("quorate-it-mq-").tempdir().unwrap();
        let dir = prefix();
        let [address, mapper, between] = <[String; 3]>::try_from(free_addresses(3)).unwrap();
        let mut epmd = Command::new("epmd");
        let mut mapping = Running::start(prefix(), epmd.args(["-address", "127.0.0.1", "-port", port(&mapper)]));
        mapping.wait(|| std::net::TcpStream::connect(&mapper).ok().map(drop));
        let at = |name: &str| dir.path().join(name);
        let text = format!("default_user = app\ndefault_pass = {password}\nlisteners.tcp.1 = {address}\n");
        std::fs::write(at("rabbitmq.conf"), text).unwrap();
        std::fs::write(at("plugins"), "[].").unwrap();
        // The one that Debian puts on the path changes its user and forgets all this.
        let mut server = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
        server
            .env("HOME", dir.path())
            .env("RABBITMQ_NODENAME", format!("q{}@localhost", port(&address)))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_PID_FILE", at("pid"))
            .env("RABBITMQ_DIST_PORT", port(&between))
            .env("ERL_EPMD_PORT", port(&mapper))
            .process_group(0);
        let mut running = Running::start(dir, &mut server);
        running.whole_group = true;
        running.wait(|| std::net::TcpStream::connect(&address).ok().map(drop));
        RabbitMq { address, _running: running, _mapper: mapping }
    }
}
