//! One node of the rig: its files, its server, and what is known of both.

use super::clock::{self, Clock};
use super::disk::Disk;
use super::network::{self, Namespace, Port};
use super::process::{Complaint, LogFile, Start, ended_within, ending};
use super::tools::{Lack, Lacks};
use super::{Death, LEAVE, LOOK_EVERY, RigError, RigOptions, is_finding};
use crate::config::{self, ClusterConfig, LogConfig, NodeConfig, ThisNode, Timers, Voter};
use crate::dev::{layout, procfs, signal};
use crate::torture::fault::{FaultKind, Need};
use crate::trust::{self, Founder};
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::state::Role;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// In its own namespace nobody else can have a node's ports.
const API_PORT: u16 = 7_000;
const LINK_PORT: u16 = 7_001;

/// A process that was killed is gone in milliseconds, unless it waits for a disk.
const GONE: Duration = Duration::from_secs(2);

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    pub port: Port,
    pub api: SocketAddr,
    pub data_dir: PathBuf,
    /// Not on the node's own disk: it tells of the disk's end.
    pub log: LogFile,
    pub clock: Option<Clock>,
    /// The server, while it runs and is not known to have ended.
    pub child: Option<Child>,
    pub disk: Option<Disk>,
    /// A fault of its own is in force.
    pub busy: bool,
    /// That fault is one of its disk: it may stop, and say so.
    pub excused: bool,
    /// It ended by itself while it was excused: how.
    pub stopped: Option<String>,
}

/// Makes the files of all nodes. Disks that cannot be made are left out and become a lack.
pub(super) fn make(dir: &Path, options: &RigOptions, inside: bool, lacks: &mut Lacks) -> io::Result<Vec<Node>> {
    let count = usize::from(options.nodes);
    let addresses = match inside {
        true => (1..=options.nodes).map(inside_addresses).collect(),
        false => layout::free_addresses(count)?,
    };
    let ids: Vec<NodeId> = (0..count).map(|_| NodeId(Uuid::new_v4())).collect();
    let name = |i: usize| format!("n{}", i + 1);
    let voters: Vec<Voter> = (0..count).map(|i| Voter { id: ids[i], name: name(i), link: addresses[i].1 }).collect();
    let cluster = ClusterConfig {
        id: ClusterId(Uuid::new_v4()),
        name: "torture".into(),
        incarnation: config::first(),
        ha: false,
    };
    let mut nodes = Vec::new();
    for (i, port) in (1..=options.nodes).enumerate() {
        let name = name(i);
        let home = dir.join(&name);
        std::fs::create_dir_all(&home)?;
        let disk = match lacks.contains_key(&Need::Disks) {
            true => None,
            false => match Disk::make(dir.join(format!("{name}.img")), home.clone(), options.disk_bytes) {
                Ok(disk) => Some(disk),
                Err(error) => {
                    let why = format!("a disk for a node cannot be made: {error}");
                    lacks.insert(Need::Disks, Lack::new(why, "run it where ext4 and loop devices work"));
                    None
                }
            },
        };
        let clock = match lacks.contains_key(&Need::Clock) {
            true => None,
            false => Some(Clock::new(dir.join(format!("{name}.clock")))?),
        };
        let data_dir = home.join("data");
        std::fs::create_dir_all(&data_dir)?;
        let (api, link) = addresses[i];
        let config = NodeConfig {
            cluster: cluster.clone(),
            node: ThisNode {
                id: ids[i],
                name: name.clone(),
                roles: BTreeSet::from([Role::Manager, Role::Worker]),
                api,
                link,
                announced: None,
                plain_http: true,
                console_token: None,
                auth: quorate_api::AuthMode::Open,
                end_with_pid: Some(std::process::id()),
                api_certificate: None,
            },
            timers: Timers::default(),
            log: LogConfig { retain: options.log_retain },
            voters: voters.clone(),
            peers: Vec::new(),
        };
        std::fs::write(data_dir.join(config::FILE), toml::to_string(&config).map_err(io::Error::other)?)?;
        let founder = Founder { node: ids[i], data_dir: &data_dir, host: api.ip() };
        trust::lay_out(dir, cluster.id, &[founder]).map_err(io::Error::other)?;
        // As after an installation: what is written once is on the disk before the first power cut.
        std::fs::File::open(data_dir.join(config::FILE))?.sync_all()?;
        for made in [&data_dir, &home] {
            std::fs::File::open(made)?.sync_all()?;
        }
        let log = LogFile::new(dir.join(format!("{name}.log")));
        nodes.push(Node {
            name,
            port,
            api,
            data_dir,
            log,
            clock,
            child: None,
            disk,
            busy: false,
            excused: false,
            stopped: None,
        });
    }
    Ok(nodes)
}

fn inside_addresses(port: Port) -> (SocketAddr, SocketAddr) {
    let ip = IpAddr::V4(network::address(port));
    (SocketAddr::new(ip, API_PORT), SocketAddr::new(ip, LINK_PORT))
}

impl Node {
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(super) fn spawn(&mut self, executable: &Path, namespace: Option<&Namespace>) -> io::Result<()> {
        let start =
            Start { executable, data_dir: &self.data_dir, log: &self.log.path, clock: self.clock.as_ref(), namespace };
        self.child = Some(start.spawn()?);
        self.stopped = None;
        Ok(())
    }

    /// Kills the server and the copies of services that run because of it. Returns how the server
    /// ended, if it ran.
    pub(super) fn kill(&mut self) -> Option<String> {
        let mut child = self.child.take()?;
        let replicas = procfs::replica_processes(&self.data_dir, Some(child.id()));
        signal(child.id(), Signal::KILL);
        replicas.iter().for_each(|pid| signal(*pid, Signal::KILL));
        // It cannot fail for a child that nobody else waits for.
        let status = child.wait().ok()?;
        clock::forget(child.id());
        // What was born while we looked would keep the disk mounted.
        let deadline = Instant::now() + GONE;
        loop {
            let left = procfs::replica_processes(&self.data_dir, None);
            if left.is_empty() || Instant::now() >= deadline {
                return Some(ending(status));
            }
            left.iter().for_each(|pid| signal(*pid, Signal::KILL));
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for the end of a server that was asked to end.
    pub(super) fn ended_orderly(&mut self, kind: FaultKind) -> Result<(), RigError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let what = match ended_within(&mut child, LEAVE) {
            Ok(Some(status)) if status.success() => {
                clock::forget(child.id());
                return Ok(());
            }
            Ok(Some(status)) => format!("asked to end, it ended with {}", ending(status)),
            Ok(None) => format!("asked to end, it did not in {LEAVE:?}"),
            Err(error) => format!("nobody knows how it ended: {error}"),
        };
        self.child = Some(child);
        self.kill();
        Err(self.broken(kind, what))
    }

    /// What is new about the server: its end, or a complaint, that nothing explains.
    pub(super) fn look(&mut self) -> Vec<Death> {
        let mut found = Vec::new();
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            clock::forget(child.id());
            self.child = None;
            let how = ending(status);
            // A node that stops because of its disk says so with this status, and any other is none of that.
            if self.excused && status.code() == Some(1) {
                self.stopped = Some(how);
            } else {
                found.push(self.death(format!("ended without an order, with {how}")));
            }
        }
        for complaint in self.log.complaints() {
            if is_finding(&complaint, self.excused) {
                let (Complaint::Panic(line) | Complaint::Stops(line)) = complaint;
                found.push(self.death(format!("said: {line}")));
            }
        }
        found
    }

    fn death(&self, what: String) -> Death {
        Death { node: self.name.clone(), what, log: self.log.tail() }
    }

    pub(super) fn broken(&self, kind: FaultKind, what: impl Into<String>) -> RigError {
        RigError::Broken { kind, node: self.name.clone(), what: what.into(), log: self.log.tail() }
    }
}
