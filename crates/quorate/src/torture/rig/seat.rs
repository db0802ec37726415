//! A server of the rig as hardware: its place in the network, its disk, its clock. Nodes come to it
//! and go; a server that was removed may be emptied and join anew.

use super::RigOptions;
use super::clock::Clock;
use super::disk::Disk;
use super::network::{self, Namespace, Network, Port};
use super::tools::{Lack, Lacks};
use crate::dev::layout;
use crate::torture::fault::Need;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// In its own namespace nobody else can have a node's ports.
const API_PORT: u16 = 7_000;
const LINK_PORT: u16 = 7_001;

#[derive(Debug)]
pub(super) struct Seat {
    pub port: Port,
    pub api: SocketAddr,
    pub link: SocketAddr,
    pub disk: Option<Disk>,
    pub clock: Option<Clock>,
    pub namespace: Option<Arc<Namespace>>,
    /// What is on its disk.
    home: PathBuf,
    /// How many nodes it has been.
    lives: AtomicU32,
}

/// Makes all servers, with room for some that join later. Disks that cannot be made are left out and
/// become a lack.
pub(super) fn make(
    dir: &Path,
    options: &RigOptions,
    network: Option<&Network>,
    lacks: &mut Lacks,
) -> io::Result<Vec<Arc<Seat>>> {
    let addresses = match network {
        Some(_) => (1..=options.seats()).map(inside_addresses).collect(),
        None => layout::free_addresses(usize::from(options.seats()))?,
    };
    let mut seats = Vec::new();
    for (port, (api, link)) in (1..=options.seats()).zip(addresses) {
        let home = dir.join(format!("server-{port}"));
        std::fs::create_dir_all(&home)?;
        let disk = match lacks.contains_key(&Need::Disks) {
            true => None,
            false => match Disk::make(home.with_extension("img"), home.clone(), options.disk_bytes) {
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
            false => Some(Clock::new(home.with_extension("clock"))?),
        };
        let namespace = network.map(|network| network.namespace(port));
        seats.push(Arc::new(Seat { port, api, link, disk, clock, namespace, home, lives: AtomicU32::new(0) }));
    }
    Ok(seats)
}

fn inside_addresses(port: Port) -> (SocketAddr, SocketAddr) {
    let ip = IpAddr::V4(network::address(port));
    (SocketAddr::new(ip, API_PORT), SocketAddr::new(ip, LINK_PORT))
}

impl Seat {
    /// An empty directory for the next node; that of the last one is gone.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn emptied(&self) -> io::Result<PathBuf> {
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        if let Some(last) = life.checked_sub(1).map(|last| self.data_dir(last)).filter(|last| last.exists()) {
            std::fs::remove_dir_all(last)?;
        }
        let data_dir = self.data_dir(life);
        std::fs::create_dir_all(&data_dir)?;
        // As after an installation: what is written once is on the disk before the first power cut.
        std::fs::File::open(&self.home)?.sync_all()?;
        Ok(data_dir)
    }

    /// Of each life another one: no process of an earlier one is taken for one of this.
    fn data_dir(&self, life: u32) -> PathBuf {
        self.home.join(format!("node-{life}"))
    }

    /// Runs `work` where the server is in the network.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.namespace {
            Some(namespace) => namespace.run(work),
            None => work(),
        }
    }
}
