//! Servers with a host name, an address and a disk of their own, on one network: namespaces of this
//! machine. On them commands are typed as on real servers, at the usual places and ports.
//!
//! What systemd does of what `init` and `join` ask for, a script does. Everything ends with the
//! processes that hold the namespaces: nothing of it is seen outside, and nothing is left.

use crate::cluster::{PATIENCE, Place, Ran, signal, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Starts what the unit says, when it is told to.
const SYSTEMCTL: &str = r#"#!/bin/sh -e
[ "$1" = enable ] || exit 0
start=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$3")
setsid $start < /dev/null > /dev/null 2>> "$HOME/server.log" &
echo $! > "$HOME/server.pid"
"#;

/// A server of its own: `$1` is its name, `$2` its directory. Ends when nobody writes to it any more, so
/// also when the test is killed.
const BOOT: &str = r#"
hostname "$1"
ip link set lo up
cp -a /etc "$2/etc"
rm -rf "$2/etc/quorate"
mkdir -p "$2/etc/systemd/system" "$2/lib" "$2/bin"
mount --bind "$2/etc" /etc
mount --bind "$2/lib" /var/lib
mount -t tmpfs none /run
mkdir -p /run/systemd/system
echo up
exec cat
"#;

/// The namespaces of one server.
struct Server {
    holder: Child,
    /// Of the first process in there, as this machine numbers it.
    init: u32,
    home: PathBuf,
    pub(crate) address: String,
}

pub(crate) struct Lan {
    servers: BTreeMap<String, Server>,
    /// What the cables lead to.
    switch: Server,
    _dir: tempfile::TempDir,
    _place: Place,
}

impl Server {
    fn boot(name: &str, home: PathBuf, address: String) -> Server {
        std::fs::create_dir(&home).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--uts", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        command.args(["sh", "-ec", BOOT, "sh", name]).arg(&home);
        // It warns of a signal mask of the thread that it was started from.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "up\n", "{name} did not boot; namespaces need root");
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let init = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        let bin = home.join("bin");
        std::fs::write(bin.join("systemctl"), SYSTEMCTL).unwrap();
        std::fs::set_permissions(bin.join("systemctl"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_quorate"), bin.join("quorate")).unwrap();
        Server { holder, init, home, address }
    }

    /// A line that is typed on this server.
    fn line(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--uts", "--pid"]);
        command.args(["sh", "-c", &format!("cd \"$HOME\" || exit; {line}")]).stdin(Stdio::null());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", self.home.join("bin").display()));
        command.env("HOME", &self.home).env("TMPDIR", &self.home);
        for variable in ["QUORATE_SERVER", "QUORATE_TOKEN_FILE", "QUORATE_CA_PIN", "XDG_RUNTIME_DIR"] {
            command.env_remove(variable);
        }
        command
    }

    fn run(&self, line: &str) -> Ran {
        let output = self.line(line).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }
}

impl Lan {
    /// Servers of these names at 192.168.1.51 and the addresses after it.
    pub(crate) fn new(names: &[&str]) -> Lan {
        let place = Place::shared();
        let dir = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        let switch = Server::boot("switch", dir.path().join("switch"), String::new());
        switch.ok("ip link add lan type bridge && ip link set lan up");
        let mut servers = BTreeMap::new();
        for (number, name) in names.iter().enumerate() {
            let address = format!("192.168.1.{}", 51 + number);
            let server = Server::boot(name, dir.path().join(name), address);
            // Both ends are in namespaces; the number of the other one counts outside of them.
            let mut plug = Command::new("nsenter");
            plug.args(["--target", &switch.init.to_string(), "--net", "ip", "link", "add", &format!("port{number}")]);
            plug.args(["type", "veth", "peer", "name", "eth0", "netns", &server.init.to_string()]);
            assert!(plug.status().unwrap().success());
            switch.ok(&format!("ip link set port{number} master lan up"));
            server.ok(&format!("ip address add {}/24 dev eth0 && ip link set eth0 up", server.address));
            servers.insert((*name).to_owned(), server);
        }
        Lan { servers, switch, _dir: dir, _place: place }
    }

    fn server(&self, name: &str) -> &Server {
        &self.servers[name]
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.server(name).address
    }

    /// Where a command that is typed on this server begins.
    pub(crate) fn home(&self, name: &str) -> &Path {
        &self.server(name).home
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.home(name).join("server.log")).unwrap_or_default()
    }

    /// What becomes of a line that is typed on this server.
    pub(crate) fn types(&self, server: &str, line: &str) -> Ran {
        self.server(server).run(line)
    }

    /// The output of a line that must succeed.
    pub(crate) fn ok(&self, server: &str, line: &str) -> String {
        self.server(server).ok(line)
    }

    /// A command that goes on running; its process is in `command.pid`.
    pub(crate) fn begin(&self, server: &str, command: &str) -> Child {
        let line = format!("echo $$ > command.pid && exec {command}");
        self.server(server).line(&line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// A cluster of managers, all of them voters, as it is made with `init`, `add-node` and `join`.
    pub(crate) fn make_cluster(&self, servers: &[&str]) {
        self.ok(servers[0], &format!("quorate init --name prod --advertise {}", self.address(servers[0])));
        for server in &servers[1..] {
            let printed = self.ok(servers[0], "quorate add-node");
            let join = printed.lines().nth(1).unwrap().trim().strip_prefix("sudo ").unwrap();
            self.ok(server, join);
        }
        for server in servers {
            self.wait_status(server, "all vote and are heard", |status| {
                let joined = status["nodes"].as_array()?.iter().filter(|node| node["state"] == "joined").count();
                let cluster = &status["cluster"];
                (joined == servers.len() && cluster["voters_joined"] == servers.len()).then_some(())
            });
        }
    }

    /// Starts the node in the usual place, as systemd would.
    pub(crate) fn start(&self, server: &str) {
        let serve = "setsid quorate serve --data-dir /var/lib/quorate < /dev/null > /dev/null 2>> server.log &";
        self.ok(server, &format!("{serve} echo $! > server.pid"));
    }

    /// Whether the node that was started last has not ended, with all its threads: the last of them closes its files.
    pub(crate) fn runs(&self, server: &str) -> bool {
        // Nobody asks for the status of what ended: it stays a zombie.
        let state = self.types(server, "cd /proc/$(cat server.pid) && cut -d ' ' -f 3 stat && ls task | wc -l").stdout;
        !["", "Z 1"].contains(&state.split_whitespace().collect::<Vec<_>>().join(" ").as_str())
    }

    /// Ends the node at once.
    pub(crate) fn kill(&self, server: &str) {
        self.signal(server, "KILL");
        wait_for("the node is gone", PATIENCE, || (!self.runs(server)).then_some(()));
    }

    /// How a server sees another one.
    pub(crate) fn state(&self, server: &str, of: &str) -> Option<String> {
        let status = self.ask(server, "status")?;
        let found = status["nodes"].as_array()?.iter().find(|node| node["name"] == of)?.clone();
        found["state"].as_str().map(str::to_owned)
    }

    /// Writes at a server, as soon as there is a leader.
    pub(crate) fn write(&self, server: &str, sql: &str) {
        wait_for(sql, PATIENCE, || (self.types(server, &format!("quorate db exec '{sql}'")).code == 0).then_some(()));
    }

    /// `quorate … -o json` on this server, if it succeeds.
    pub(crate) fn ask(&self, server: &str, line: &str) -> Option<Value> {
        let ran = self.types(server, &format!("quorate {line} -o json"));
        if ran.code == 0 { serde_json::from_str(&ran.stdout).ok() } else { None }
    }

    /// Waits for something that `status` of this server says.
    pub(crate) fn wait_status<T>(&self, server: &str, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        wait_for(&format!("{server}: {what}"), PATIENCE, || look(&self.ask(server, "status")?))
    }

    /// Sends a signal to the `quorate serve` of this server.
    pub(crate) fn signal(&self, server: &str, signal: &str) {
        self.ok(server, &format!("kill -{signal} $(cat server.pid)"));
    }

    /// What Ctrl-C does to the command that goes on running.
    pub(crate) fn interrupt(&self, server: &str) {
        self.ok(server, "kill -INT $(cat command.pid)");
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for server in self.servers.values_mut().chain([&mut self.switch]) {
            // The namespaces end with their first process, and everything in them.
            signal(server.init, Signal::KILL);
            let _ = server.holder.wait();
        }
        if std::thread::panicking() {
            for name in self.servers.keys() {
                #[allow(clippy::print_stderr, reason = "it explains a failed test")]
                {
                    eprintln!("── server.log of {name}\n{}", self.log(name));
                }
            }
        }
    }
}
