//! Clusters of servers with certificates that a test made: each can be stopped, changed on its disk
//! and started again, and everything between them is encrypted.
#![allow(dead_code, reason = "each test takes what it needs")]

use crate::cluster::{PATIENCE, Ran, free_addresses, signal, wait_for};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::time::WallTime;
use quorate_trust::ca::{Ca, NodeCertificate};
use quorate_trust::key::NodeKey;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

pub(crate) const DAY: u64 = 86_400_000_000;

pub(crate) fn now() -> WallTime {
    WallTime(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap())
}

pub(crate) fn days_ago(days: u64) -> WallTime {
    WallTime(now().0 - days * DAY)
}

pub(crate) struct Server {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    /// HOST:PORT.
    pub(crate) api: String,
    pub(crate) link: String,
    process: Option<Child>,
}

pub(crate) struct Trusting {
    pub(crate) ca: Ca,
    pub(crate) servers: Vec<Server>,
    pub(crate) dir: tempfile::TempDir,
}

/// A certificate for a node of this authority, made at `made`.
pub(crate) fn issue(ca: &Ca, node: Uuid, made: WallTime) -> (NodeCertificate, NodeKey) {
    let key = NodeKey::generate().unwrap();
    let names = [ServerName::try_from("localhost").unwrap()];
    let serial = Uuid::new_v4().as_u128();
    (ca.issue(&key.request().unwrap(), NodeId(node), &names, made, serial).unwrap(), key)
}

/// Where a node dials another one: through `via`, if the test stands between them.
pub(crate) struct Plan<'a> {
    pub(crate) nodes: usize,
    /// Names of the managers. The cluster begins with all nodes as voters.
    pub(crate) keepers: &'a [&'a str],
    /// When their certificates were made.
    pub(crate) made: WallTime,
    /// Where others find a node's link, if not where it listens.
    pub(crate) found_at: Option<&'a dyn Fn(&str) -> String>,
}

impl Trusting {
    /// All of them are ready to be started.
    pub(crate) fn prepare(plan: &Plan<'_>) -> Trusting {
        let dir = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        let cluster = Uuid::new_v4();
        let ca = Ca::create(ClusterId(cluster), days_ago(100), Uuid::new_v4().as_u128()).unwrap();
        let addresses = free_addresses(2 * plan.nodes);
        let server = |number: usize| Server {
            id: Uuid::new_v4(),
            name: format!("n{}", number + 1),
            dir: dir.path().join(format!("n{}", number + 1)),
            api: addresses[2 * number].clone(),
            link: addresses[2 * number + 1].clone(),
            process: None,
        };
        let servers: Vec<Server> = (0..plan.nodes).map(server).collect();
        let trusting = Trusting { ca, servers, dir };
        let voters: String = trusting
            .servers
            .iter()
            .map(|server| {
                let link = plan.found_at.map_or(server.link.clone(), |found_at| found_at(&server.link));
                format!("[[voter]]\nid = '{}'\nname = '{}'\nlink = '{link}'\n", server.id, server.name)
            })
            .collect();
        let cluster_key = format!("[{{\"version\":1,\"key\":\"{}\"}}]", "5a".repeat(32));
        for server in &trusting.servers {
            let tls = server.dir.join("tls");
            std::fs::create_dir_all(&tls).unwrap();
            trusting.certify(&server.name, plan.made);
            std::fs::write(tls.join("ca.crt"), trusting.ca.certificate().to_pem()).unwrap();
            if plan.keepers.contains(&server.name.as_str()) {
                std::fs::write(tls.join("ca.key"), trusting.ca.key_pem().as_str()).unwrap();
                std::fs::write(tls.join("cluster.key"), &cluster_key).unwrap();
            }
            // Who does not keep the keys is no manager.
            let keeps = plan.keepers.contains(&server.name.as_str());
            let roles = if keeps { "['manager', 'worker']" } else { "['worker']" };
            let text = format!(
                "[cluster]\nid = '{cluster}'\nname = 'tls'\n[node]\nid = '{}'\nname = '{}'\n\
                 roles = {roles}\nauth = 'required'\napi = '{}'\nlink = '{}'\n{voters}",
                server.id, server.name, server.api, server.link,
            );
            std::fs::write(server.dir.join("node.toml"), text).unwrap();
        }
        trusting
    }

    pub(crate) fn start(plan: &Plan<'_>) -> Trusting {
        let mut trusting = Trusting::prepare(plan);
        let names: Vec<String> = trusting.servers.iter().map(|server| server.name.clone()).collect();
        names.iter().for_each(|name| trusting.run(name));
        trusting.whole();
        trusting
    }

    pub(crate) fn server(&self, name: &str) -> &Server {
        self.servers.iter().find(|server| server.name == name).unwrap()
    }

    /// Gives a server that does not run a certificate that was made at `made`.
    pub(crate) fn certify(&self, name: &str, made: WallTime) {
        let server = self.server(name);
        let (certificate, key) = issue(&self.ca, server.id, made);
        std::fs::write(server.dir.join("tls/node.crt"), certificate.to_pem()).unwrap();
        std::fs::write(server.dir.join("tls/node.key"), key.to_pem().as_str()).unwrap();
    }

    pub(crate) fn certificate(&self, name: &str) -> NodeCertificate {
        let text = std::fs::read_to_string(self.server(name).dir.join("tls/node.crt")).unwrap();
        NodeCertificate::from_pem(&text).unwrap()
    }

    pub(crate) fn run(&mut self, name: &str) {
        let server = self.servers.iter_mut().find(|server| server.name == name).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(server.dir.join("server.log")).unwrap();
        let output = log.try_clone().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["serve", "--data-dir"]).arg(&server.dir).stdin(Stdio::null()).stdout(output).stderr(log);
        server.process = Some(command.spawn().unwrap());
    }

    /// A power cut.
    pub(crate) fn kill(&mut self, name: &str) {
        let server = self.servers.iter_mut().find(|server| server.name == name).unwrap();
        let mut process = server.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// A command that talks to a node as root does.
    pub(crate) fn command(&self, node: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.env_remove("QUORATE_SERVER").env_remove("QUORATE_TOKEN_FILE").env("HOME", self.dir.path());
        let socket = self.server(node).dir.join("api.sock");
        command.arg("--server").arg(format!("unix:{}", socket.display())).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn ran(&self, node: &str, args: &[&str]) -> Ran {
        let output = self.command(node, args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    pub(crate) fn ask(&self, node: &str, args: &[&str]) -> Value {
        let ran = self.ran(node, &[args, &["-o", "json"]].concat());
        assert_eq!(ran.code, 0, "{args:?} on {node}: {ran:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    }

    pub(crate) fn try_ask(&self, node: &str, args: &[&str]) -> Option<Value> {
        let ran = self.ran(node, &[args, &["-o", "json"]].concat());
        (ran.code == 0).then(|| serde_json::from_str(&ran.stdout).unwrap())
    }

    /// Waits until every server that runs sees all others that run.
    pub(crate) fn whole(&self) {
        let running = || self.servers.iter().filter(|server| server.process.is_some());
        wait_for("all nodes hear each other", PATIENCE, || {
            running()
                .all(|server| {
                    self.try_ask(&server.name, &["status"]).is_some_and(|status| {
                        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
                        let joined = nodes.iter().filter(|node| node["state"] == "joined").count();
                        status["cluster"]["leader"].is_string() && joined >= running().count()
                    })
                })
                .then_some(())
        });
    }

    pub(crate) fn leader(&self) -> String {
        wait_for("a leader", PATIENCE, || {
            let running = self.servers.iter().filter(|server| server.process.is_some());
            running.filter_map(|server| self.try_ask(&server.name, &["status"])).find_map(|status| {
                let leads = status["cluster"]["leader"] == status["answered_by"];
                leads.then(|| status["answered_by"].as_str().unwrap().to_owned())
            })
        })
    }

    pub(crate) fn log(&self, name: &str) -> String {
        read(&self.server(name).dir.join("server.log"))
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

impl Drop for Trusting {
    #[allow(clippy::print_stderr, reason = "it explains a failed test")]
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(mut process) = server.process.take() {
                signal(process.id(), rustix::process::Signal::KILL);
                let _ = process.wait();
            }
            if std::thread::panicking() {
                let log = read(&server.dir.join("server.log"));
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                eprintln!("── server.log of {}\n{tail}", server.name);
            }
        }
    }
}
