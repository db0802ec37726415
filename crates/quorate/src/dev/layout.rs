//! Where a `dev` cluster lives: its directory, its ports, the configuration of each node; and
//! everything that can be wrong with them, found before anything is started.

use crate::cli::failure::{Exit, Failure};
use crate::config::{self, ClusterConfig, LogConfig, NodeConfig, ThisNode, Timers, Voter};
use crate::dev::{io_failure, registry};
use crate::gossip_keys;
use crate::trust::{self, Founder};
use quorate_api::AuthMode;
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::state::Role;
use quorate_model::time::Span;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Held by the `quorate dev` that runs in a directory; names its process.
const LOCK: &str = "dev.lock";
/// A node's settings at first.
const SETTINGS: &str = "\
# Settings of this node. `quorate config show --config FILE` lists what can be set.
[console]
# The link that `quorate dev` prints opens the page of one node, so it must not lead to another one.
redirect = \"off\"
";
const RUNS_ALREADY: &str = "already-running";
/// Below this a start would soon end in a full disk: three logs with a preallocated segment each,
/// three databases, and the logs of replicas.
const FREE_MIN: u64 = 512 * 1024 * 1024;
const DEFAULT_NODES: u8 = 3;
/// Where `--port-base 0` looks. Below the numbers that Linux gives to outgoing connections (from
/// 32768), which would take a node's port between the choice and its start, or while it is down;
/// and below those of replicas.
const FREE: Range<u16> = 10_000..20_000;
/// Between the port of the gateway and that of a node's link; the API is directly after the gateway.
const LINK_OFFSET: u16 = 100;

/// What the user chose.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub nodes: Option<u8>,
    pub keep: Option<PathBuf>,
    /// 0: free ports.
    pub port_base: u16,
    /// More arguments for the gateway.
    pub gateway_args: Vec<String>,
    /// Bytes; see [`LogConfig::retain`].
    pub log_retain: Option<u64>,
}

/// A cluster that may be started. Holds the directory's lock; dropping it removes a temporary one.
#[derive(Debug)]
pub(crate) struct Layout {
    pub dir: PathBuf,
    pub temporary: Option<tempfile::TempDir>,
    pub gateway: SocketAddr,
    pub nodes: Vec<NodePlan>,
    pub token: String,
    _lock: File,
}

#[derive(Debug, Clone)]
pub(crate) struct NodePlan {
    pub name: String,
    pub dir: PathBuf,
    pub api: SocketAddr,
}

impl NodePlan {
    pub(crate) fn api_url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// The operator's settings of this node. Those of the machine itself are not for a `dev` cluster.
    pub(crate) fn settings(&self) -> PathBuf {
        self.dir.join("quorate.toml")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }
}

/// Checks everything and writes each node's configuration.
///
/// # Errors
/// Says what is in the way and what to do. Nothing was started; a directory that it made is gone again.
pub(crate) fn prepare(options: &Options) -> Result<Layout, Failure> {
    let made = options.keep.as_ref().filter(|dir| !dir.exists());
    make(options).inspect_err(|failure| {
        // Another one may have been faster, and then the directory is its own.
        if let Some(dir) = made.filter(|_| failure.code != RUNS_ALREADY) {
            let _ = std::fs::remove_file(dir.join(LOCK));
            // Fails if there is anything else in it.
            let _ = std::fs::remove_dir(dir);
        }
    })
}

fn make(options: &Options) -> Result<Layout, Failure> {
    let temporary =
        match options.keep {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix(registry::TEMPORARY).tempdir().map_err(|error| {
                io_failure("no temporary directory can be made", error).fix("quorate dev --keep DIR")
            })?),
        };
    let wanted = match (&options.keep, &temporary) {
        (Some(dir), _) => dir.as_path(),
        (None, Some(dir)) => dir.path(),
        (None, None) => unreachable!("one of both is there"),
    };
    let dir = open_dir(wanted)?;
    let lock = lock(&dir)?;
    check_space(&dir, free_space(&dir)?)?;
    let known = known_nodes(&dir)?;
    let count = match (known.len(), options.nodes) {
        (0, wanted) => usize::from(wanted.unwrap_or(DEFAULT_NODES)),
        (known, Some(wanted)) if known != usize::from(wanted) => {
            return Err(Failure::new(
                Exit::Conflict,
                "other-size",
                format!("{} holds a cluster of {known} nodes, not of {wanted}", dir.display()),
            )
            .fix(format!("quorate dev --keep {} --nodes {known}\nor choose another directory", dir.display())));
        }
        (known, _) => known,
    };
    let ports = Ports::choose(options.port_base, count)?;
    let layout = Layout {
        gateway: ports.gateway,
        nodes: (0..count)
            .map(|i| NodePlan {
                name: format!("n{}", i + 1),
                dir: dir.join(format!("n{}", i + 1)),
                api: ports.nodes[i].0,
            })
            .collect(),
        token: random_token()?,
        temporary,
        dir,
        _lock: lock,
    };
    let log = options.log_retain.map_or_else(LogConfig::default, |retain| LogConfig { retain });
    layout.write(&known, &ports, &log)?;
    Ok(layout)
}

impl Layout {
    fn write(&self, known: &[NodeConfig], ports: &Ports, log: &LogConfig) -> Result<(), Failure> {
        let new_id = || uuid::Uuid::new_v4();
        let cluster = known.first().map_or_else(
            || ClusterConfig { id: ClusterId(new_id()), name: "dev".into(), incarnation: config::first(), ha: false },
            |config| config.cluster.clone(),
        );
        let ids: Vec<NodeId> = (0..self.nodes.len())
            .map(|i| known.get(i).map_or_else(|| NodeId(new_id()), |config| config.node.id))
            .collect();
        let voters: Vec<Voter> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(i, plan)| Voter { id: ids[i], name: plan.name.clone(), link: ports.nodes[i].1 })
            .collect();
        // New at each start of `dev`: all nodes start with it.
        let ring = gossip_keys::first().map_err(Failure::from)?;
        for (i, plan) in self.nodes.iter().enumerate() {
            let config = NodeConfig {
                cluster: cluster.clone(),
                node: ThisNode {
                    id: ids[i],
                    name: plan.name.clone(),
                    roles: BTreeSet::from([Role::Manager, Role::Worker]),
                    api: plan.api,
                    link: ports.nodes[i].1,
                    announced: None,
                    plain_http: true,
                    console_token: Some(self.token.clone()),
                    auth: AuthMode::Open,
                    end_with_pid: Some(std::process::id()),
                    api_certificate: None,
                },
                timers: Timers { replace_after: Some(Span::from_secs(0)), ..Timers::default() },
                log: log.clone(),
                voters: voters.clone(),
                peers: Vec::new(),
            };
            let file = plan.dir.join(config::FILE);
            let write = || -> io::Result<()> {
                std::fs::create_dir_all(&plan.dir)?;
                let text = toml::to_string(&config).map_err(io::Error::other)?;
                std::fs::write(&file, text)?;
                match File::create_new(plan.settings()) {
                    Ok(mut settings) => settings.write_all(SETTINGS.as_bytes())?,
                    // Somebody has set something there.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
                gossip_keys::write(&plan.dir, &ring).map_err(io::Error::other)
            };
            write().map_err(|error| io_failure(format!("cannot write {}", file.display()), error))?;
        }
        let founders: Vec<Founder<'_>> = self
            .nodes
            .iter()
            .zip(&ids)
            .map(|(plan, id)| Founder { node: *id, data_dir: &plan.dir, host: plan.api.ip() })
            .collect();
        trust::lay_out(&self.dir, cluster.id, &founders).map_err(|error| {
            Failure::new(Exit::Failed, "certificates", "the nodes' certificates cannot be made")
                .why(format!("{error:#}"))
        })
    }
}

/// Makes the directory and sees whether it can be written to.
fn open_dir(dir: &Path) -> Result<PathBuf, Failure> {
    let open = || -> io::Result<PathBuf> {
        std::fs::create_dir_all(dir)?;
        tempfile::Builder::new().prefix(".quorate-write-test").tempfile_in(dir)?.write_all(b"ok")?;
        dir.canonicalize()
    };
    open().map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => disk_full(dir, 0),
        _ => Failure::new(Exit::Failed, "directory", format!("{} cannot be written to", dir.display()))
            .why(error)
            .fix("quorate dev --keep DIR   with a directory of yours"),
    })
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join(LOCK);
    let mut file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| io_failure(format!("cannot open {}", path.display()), error))?;
    if let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(io_failure(format!("cannot lock {}", path.display()), errno));
        }
        let mut owner = String::new();
        // Only for the message.
        let _ = file.read_to_string(&mut owner);
        let owner = if owner.trim().is_empty() { String::new() } else { format!(" (process {})", owner.trim()) };
        return Err(Failure::new(
            Exit::Conflict,
            RUNS_ALREADY,
            format!("another `quorate dev`{owner} runs in {}", dir.display()),
        )
        .fix(format!("use it: quorate status --keep {}\nor choose another directory", dir.display())));
    }
    // For that same message; the lock itself does not depend on it.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

fn free_space(dir: &Path) -> Result<u64, Failure> {
    let space = rustix::fs::statvfs(dir)
        .map_err(|errno| io_failure(format!("cannot see how much space {} has", dir.display()), errno))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

fn check_space(dir: &Path, free: u64) -> Result<(), Failure> {
    if free >= FREE_MIN { Ok(()) } else { Err(disk_full(dir, free)) }
}

fn disk_full(dir: &Path, free: u64) -> Failure {
    Failure::new(
        Exit::Failed,
        "disk-full",
        format!(
            "{} has {} MiB of free disk space and a cluster needs {}",
            dir.display(),
            free / 1024 / 1024,
            FREE_MIN / 1024 / 1024
        ),
    )
    .fix("make room there\nor quorate dev --keep DIR   with a directory on another disk")
}

/// Configurations of n1, n2, … as an earlier run left them.
fn known_nodes(dir: &Path) -> Result<Vec<NodeConfig>, Failure> {
    let foreign = |error: String| {
        Failure::new(Exit::Conflict, "other-cluster", error)
            .fix(format!("choose another directory than {}\nor remove what is in it", dir.display()))
    };
    if dir.join(config::FILE).exists() {
        return Err(foreign(format!("{} is the data directory of a single node", dir.display())));
    }
    let mut known: Vec<NodeConfig> = Vec::new();
    for number in 1..=9 {
        let file = dir.join(format!("n{number}")).join(config::FILE);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(io_failure(format!("cannot read {}", file.display()), error)),
        };
        let config: NodeConfig = toml::from_str(&text).map_err(|error| {
            foreign(format!("{} is not a configuration of this version", file.display())).why(error)
        })?;
        if let Some(first) = known.first().filter(|first| first.cluster.id != config.cluster.id) {
            return Err(foreign(format!(
                "n1 belongs to cluster {} and n{number} to cluster {}",
                first.cluster.id, config.cluster.id
            )));
        }
        known.push(config);
    }
    if let Some(expected) = known.first().map(|config| config.voters.len()).filter(|count| *count != known.len()) {
        return Err(foreign(format!(
            "{} has the data of {} nodes and its cluster has {expected}",
            dir.display(),
            known.len()
        )));
    }
    Ok(known)
}

/// The addresses of a cluster, each free a moment ago.
#[derive(Debug)]
struct Ports {
    gateway: SocketAddr,
    /// API and link of each node.
    nodes: Vec<(SocketAddr, SocketAddr)>,
}

impl Ports {
    fn choose(base: u16, count: usize) -> Result<Ports, Failure> {
        if base == 0 {
            return Ports::free(count).map_err(|error| io_failure("no free ports", error));
        }
        let wanted = numbers(base, count).ok_or_else(|| {
            Failure::new(Exit::Usage, "port-base", format!("port {base} is too high to have all ports after it"))
                .fix("quorate dev --port-base 8000")
        })?;
        for (port, purpose) in &wanted {
            if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)) {
                let fix =
                    match (1..100).filter_map(|step| base.checked_add(step * 200)).find(|base| is_free(*base, count)) {
                        Some(base) => format!("quorate dev --port-base {base}\nor stop what listens there"),
                        None => "quorate dev --port-base 0".into(),
                    };
                let failure = match error.kind() {
                    io::ErrorKind::AddrInUse => {
                        Failure::new(Exit::Conflict, "port-in-use", format!("port {port} ({purpose}) is in use"))
                    }
                    _ => {
                        Failure::new(Exit::Failed, "port", format!("port {port} ({purpose}) cannot be used")).why(error)
                    }
                };
                return Err(failure.fix(fix));
            }
        }
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Ports {
            gateway: at(wanted[0].0),
            nodes: wanted[1..].chunks(2).map(|pair| (at(pair[0].0), at(pair[1].0))).collect(),
        })
    }

    fn free(count: usize) -> io::Result<Ports> {
        let somewhere =
            usize::try_from(getrandom::u32().map_err(|error| io::Error::other(error.to_string()))?).unwrap_or(0);
        // All are held until all are known, so that no number comes twice.
        let held: Vec<TcpListener> = FREE
            .cycle()
            .skip(somewhere % FREE.len())
            .take(FREE.len())
            .filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .take(1 + 2 * count)
            .collect();
        if held.len() < 1 + 2 * count {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let addresses: Vec<SocketAddr> = held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        Ok(Ports { gateway: addresses[0], nodes: addresses[1..].chunks(2).map(|pair| (pair[0], pair[1])).collect() })
    }
}

/// Addresses on loopback for the API and the link of so many nodes, each free a moment ago.
pub(crate) fn free_addresses(count: usize) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    Ports::free(count).map(|ports| ports.nodes)
}

/// All ports of a cluster with what they are for: the gateway, then API and link of each node.
fn numbers(base: u16, count: usize) -> Option<Vec<(u16, String)>> {
    let mut ports = vec![(base, "gateway".to_owned())];
    for i in 1..=u16::try_from(count).ok()? {
        ports.push((base.checked_add(i)?, format!("API of n{i}")));
        ports.push((base.checked_add(LINK_OFFSET)?.checked_add(i)?, format!("link of n{i}")));
    }
    Some(ports)
}

fn is_free(base: u16, count: usize) -> bool {
    numbers(base, count)
        .is_some_and(|ports| ports.iter().all(|(port, _)| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()))
}

/// 128 random bits in hex.
fn random_token() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| io_failure("this machine gives no random numbers", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, nodes: Option<u8>) -> Options {
        Options { nodes, keep: Some(dir.to_owned()), port_base: 0, gateway_args: Vec::new(), log_retain: None }
    }

    fn config(layout: &Layout, node: usize) -> NodeConfig {
        toml::from_str(&std::fs::read_to_string(layout.nodes[node].dir.join(config::FILE)).unwrap()).unwrap()
    }

    #[test]
    fn a_second_run_in_the_same_directory_is_the_same_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let first = prepare(&options(dir.path(), Some(2))).unwrap();
        let before = config(&first, 1);
        drop(first);
        let second = prepare(&options(dir.path(), None)).unwrap();
        let after = config(&second, 1);
        assert_eq!(second.nodes.len(), 2);
        assert_eq!((before.cluster.id, before.node.id), (after.cluster.id, after.node.id));
        assert_eq!(after.node.end_with_pid, Some(std::process::id()));
        assert_eq!(after.timers.replace_after, Some(Span::from_secs(0)));
        assert_ne!(before.node.console_token, after.node.console_token);
        let links: BTreeSet<SocketAddr> = after.voters.iter().map(|voter| voter.link).collect();
        assert_eq!(links.len(), 2);
        assert!(links.contains(&after.node.link));
    }

    #[test]
    fn a_directory_from_before_certificates_gets_them_and_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let certificate = || std::fs::read(dir.path().join("n2/tls/node.crt"));
        drop(prepare(&options(dir.path(), Some(2))).unwrap());
        for tls in ["tls", "n1/tls", "n2/tls"] {
            std::fs::remove_dir_all(dir.path().join(tls)).unwrap();
        }
        drop(prepare(&options(dir.path(), None)).unwrap());
        let made = certificate().unwrap();
        drop(prepare(&options(dir.path(), None)).unwrap());
        assert_eq!(certificate().unwrap(), made);
    }

    #[test]
    fn a_directory_keeps_its_number_of_nodes() {
        let dir = tempfile::tempdir().unwrap();
        drop(prepare(&options(dir.path(), Some(3))).unwrap());
        let failure = prepare(&options(dir.path(), Some(5))).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert!(failure.fix.contains("--nodes 3"), "{failure}");
    }

    #[test]
    fn two_cannot_run_in_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let running = prepare(&options(dir.path(), Some(1))).unwrap();
        let failure = prepare(&options(dir.path(), Some(1))).unwrap_err();
        assert_eq!(failure.code, "already-running");
        assert!(failure.error.contains(&format!("process {}", std::process::id())), "{failure}");
        drop(running);
        prepare(&options(dir.path(), Some(1))).unwrap();
    }

    #[test]
    fn data_of_another_cluster_is_never_mixed_in() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop(prepare(&options(dir.path(), Some(2))).unwrap());
        drop(prepare(&options(other.path(), Some(2))).unwrap());
        std::fs::copy(other.path().join("n2/node.toml"), dir.path().join("n2/node.toml")).unwrap();
        assert_eq!(prepare(&options(dir.path(), None)).unwrap_err().code, "other-cluster");
        // A lost node is not replaced by an empty one either: it would vote without its memory.
        std::fs::remove_dir_all(other.path().join("n2")).unwrap();
        assert_eq!(prepare(&options(other.path(), None)).unwrap_err().code, "other-cluster");
        assert_eq!(prepare(&options(&dir.path().join("n1"), None)).unwrap_err().code, "other-cluster");
    }

    #[test]
    fn a_taken_port_is_named_with_a_base_that_works() {
        let (taken, base) = loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            // The API of n2, with everything before it free and room for a proposal after it.
            if (3_000..60_000).contains(&port)
                && TcpListener::bind((Ipv4Addr::LOCALHOST, port - 2)).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, port - 1)).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 99)).is_ok()
            {
                break (listener, port - 2);
            }
        };
        let failure = Ports::choose(base, 3).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert_eq!(failure.error, format!("port {} (API of n2) is in use", taken.local_addr().unwrap().port()));
        assert!(failure.fix.starts_with("quorate dev --port-base "), "{failure}");
        assert_eq!(Ports::choose(65_500, 3).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn free_ports_are_all_different() {
        let ports = Ports::choose(0, 9).unwrap();
        let all: BTreeSet<SocketAddr> =
            ports.nodes.iter().flat_map(|(api, link)| [*api, *link]).chain([ports.gateway]).collect();
        assert_eq!(all.len(), 19);
        assert!(all.iter().all(|address| FREE.contains(&address.port())));
    }

    #[test]
    fn a_nearly_full_disk_is_refused_before_anything_starts() {
        let failure = check_space(Path::new("/data"), 100 << 20).unwrap_err();
        assert_eq!(failure.code, "disk-full");
        assert_eq!(failure.error, "/data has 100 MiB of free disk space and a cluster needs 512");
        check_space(Path::new("/data"), FREE_MIN).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = prepare(&options(&file.path().join("below"), None)).unwrap_err();
        assert!(failure.error.contains("below") && !failure.why.is_empty(), "{failure}");
    }
}
