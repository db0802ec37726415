//! The agent's handle, and the task that gives every replica its runner.

use crate::cgroup::Groups;
use crate::driver::Driver;
use crate::files::{self, Durability};
use crate::launch::{self, Launch};
use crate::lease::{Holds, boot_time};
use crate::log::{self, LogChunk, LogFrom, ReadLogError};
use crate::ports::Reservations;
use crate::process::Shims;
use crate::runner::{Board, Runner, Shared};
use crate::scrape::{Page, scrape};
use crate::secrets::Secrets;
use crate::service_token::{self, Api, ServiceTokens};
use crate::sweep::PATIENCE;
use crate::templates;
use crate::usage::{MEASURED_EVERY, Meter};
use quorate_agent_core::desired::{Desired, Offer, OtherNode, Wanted};
use quorate_agent_core::lease::Hold;
use quorate_model::assignment::{AssignedReplica, Assignment};
use quorate_model::discovery::Directory;
use quorate_model::id::{LogIndex, NodeId, ReplicaId};
use quorate_model::observed::{ReplicaState, ReplicaStatus, Told};
use quorate_model::resource::Usage;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// The last assignment that was obeyed.
const CACHE: &str = "assignment.json";

/// Ended replicas per service whose logs are kept.
const ENDED_KEPT: usize = 5;

/// How long [`Agent::start`] waits for the first checks of replicas that it took over. Longer than
/// the default timeout of a check, so that a healthy replica is never reported otherwise in between.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);

/// What an agent needs to know.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub node: NodeId,
    /// For `{node}` and `QUORATE_NODE`.
    pub node_name: String,
    /// IP address under which replicas are reached: ports are probed and health is checked there.
    pub host: String,
    /// Where replicas live. Created if missing; one agent at a time.
    pub dir: PathBuf,
    /// Where [`needs::prepare`](crate::needs::prepare) places artifacts.
    pub artifacts: PathBuf,
    /// What the node was given, for replicas that name it.
    pub secrets: watch::Receiver<Arc<Secrets>>,
    /// Tokens of replicas whose services are granted something.
    pub tokens: watch::Receiver<Arc<ServiceTokens>>,
    /// Where services are, for replicas that use them.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// How replicas reach the API of their node.
    pub api: Api,
    /// Program and first arguments that run [`shim`](crate::shim::shim), like `/usr/bin/quorate shim`.
    /// `--dir DIR` and perhaps `--end-with-pid PID` are added.
    pub shim_command: Vec<OsString>,
    /// Replicas end, without grace, as soon as this process does. Default: never.
    pub end_with_pid: Option<u32>,
}

/// Why an agent did not start. No replica was touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartAgentError {
    #[error("cannot use {} for replicas", dir.display())]
    Dir {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Obeying would stop that node's replicas.
    #[error("{} belongs to node {owner}", dir.display())]
    OtherNode { dir: PathBuf, owner: NodeId },
}

/// Handle of a running agent. Clones are the same agent; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Agent {
    dir: PathBuf,
    desired: watch::Sender<Desired>,
    statuses: watch::Receiver<Arc<Vec<ReplicaStatus>>>,
    usage: watch::Receiver<Arc<BTreeMap<ReplicaId, Usage>>>,
    scraped: watch::Receiver<Arc<Told>>,
    holds: Arc<Holds>,
    stop: watch::Sender<bool>,
    /// Closed when the agent's task is over.
    running: watch::Receiver<()>,
}

impl Agent {
    /// Takes over the replicas that run, and makes the node match the last assignment that it knew.
    ///
    /// Without one, whatever runs goes on until the first [`assign`](Agent::assign). When this returns,
    /// [`statuses`](Agent::statuses) has every replica, with its health if that was known within 2 s.
    ///
    /// # Errors
    /// [`StartAgentError`]; nothing was changed then.
    pub async fn start(config: AgentConfig) -> Result<Agent, StartAgentError> {
        let (node, dir) = (config.node, config.dir.clone());
        let look = move || {
            let found = Found::look(&dir)?;
            Ok((found, Groups::find(node, &dir)))
        };
        let looked = spawn_blocking(look).await.map_err(io::Error::other).and_then(|looked| looked);
        let (found, groups) = looked.map_err(|source| StartAgentError::Dir { dir: config.dir.clone(), source })?;
        let command = config.shim_command.clone();
        let driver = Shims { command, end_with_pid: config.end_with_pid, groups: groups.clone() };
        Agent::start_with(config, driver, found, groups).await
    }

    async fn start_with<D: Driver>(
        config: AgentConfig,
        driver: D,
        found: Found,
        groups: Groups,
    ) -> Result<Agent, StartAgentError> {
        let AgentConfig { node, node_name, host, dir, artifacts, secrets, tokens, directory, api, .. } = config;
        let desired = match Desired::at_start(node, found.assignment) {
            Ok(desired) => desired,
            Err(OtherNode { owner }) => return Err(StartAgentError::OtherNode { dir, owner }),
        };
        let known: BTreeSet<ReplicaId> = found.launches.iter().map(|(_, launch)| launch.assigned.replica).collect();
        let strangers = groups.clone();
        // An error means that nothing was ended, and the next start looks again.
        let _ = spawn_blocking(move || end_strangers(&strangers, &known)).await;
        let holds = Arc::new(Holds::default());
        let config_host = host.clone();
        let shared = Shared {
            node,
            node_name,
            host,
            artifacts,
            secrets,
            tokens,
            directory,
            api,
            driver,
            ports: Reservations::default(),
            board: Board::new(),
            holds: Arc::clone(&holds),
        };
        let statuses = shared.board.subscribe();
        let mut keeper = Keeper {
            dir: dir.clone(),
            shared: Arc::new(shared),
            desired: desired.clone(),
            runners: BTreeMap::new(),
            tasks: JoinSet::new(),
        };

        let mut settling = Vec::new();
        for (dir, launch) in found.launches {
            let wanted = keeper.desired.wanted(launch.assigned);
            settling.push(keeper.add(dir, wanted));
        }
        settling.extend(keeper.reconcile());
        let all_settled = async {
            for settled in settling {
                // An error means that its runner is already done.
                let _ = settled.await;
            }
        };
        let _ = timeout(SETTLE_PATIENCE, all_settled).await;

        let desired = watch::Sender::new(desired);
        let (stop, stopped) = watch::channel(false);
        let (still_running, running) = watch::channel(());
        let incoming = desired.subscribe();
        let (usage, usage_seen) = watch::channel(Arc::default());
        tokio::spawn(measure(Meter::new(groups.clone()), usage, stopped.clone()));
        let (scraped, scraped_seen) = watch::channel(Arc::default());
        let asking = Asking { host: config_host, desired: desired.subscribe(), statuses: statuses.clone() };
        tokio::spawn(ask(asking, scraped, stopped.clone()));
        let tidy = Tidy(groups);
        tokio::spawn(async move {
            keeper.run(incoming, stopped).await;
            drop(tidy);
            drop(still_running);
        });
        Ok(Agent { dir, desired, statuses, usage: usage_seen, scraped: scraped_seen, holds, stop, running })
    }

    /// Makes the node match this assignment, unless one with a higher revision is known. Returns at once.
    ///
    /// One for another node is ignored.
    pub fn assign(&self, assignment: Assignment) {
        let node = assignment.node;
        let mut offer = Offer::Same;
        self.desired.send_if_modified(|desired| {
            offer = desired.offer(assignment);
            offer == Offer::Obey
        });
        if offer == Offer::OtherNode {
            tracing::error!(%node, "an assignment for another node is ignored");
        }
    }

    /// Says until when this node holds leases, to be told again with every renewal. Returns at once.
    ///
    /// A replica with a lease is started only after that, and ends before `until` unless a later one is told in
    /// time. Of one epoch the latest counts; what is of another epoch than the assignment's changes nothing.
    pub fn hold(&self, holds: impl IntoIterator<Item = Hold>) {
        let now = boot_time();
        for hold in holds {
            self.holds.tell(now, hold);
        }
    }

    /// The revision that is being obeyed; `None` before the first assignment.
    #[must_use]
    pub fn revision(&self) -> Option<LogIndex> {
        self.desired.borrow().revision()
    }

    /// All replicas of this node, sorted by id; a new value as soon as one changes.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<Arc<Vec<ReplicaStatus>>> {
        self.statuses.clone()
    }

    /// What each replica uses, as far as that can be measured here: every 5 s, and a new value only when a number
    /// differs. Of a replica that was just started nothing is said yet.
    #[must_use]
    pub fn usage(&self) -> watch::Receiver<Arc<BTreeMap<ReplicaId, Usage>>> {
        self.usage.clone()
    }

    /// What each healthy replica tells of itself, in thousandths, where the assignment says what to ask for: every
    /// 5 s, and a new value only when a number differs. Of one that tells nothing there is nothing.
    #[must_use]
    pub fn scraped(&self) -> watch::Receiver<Arc<Told>> {
        self.scraped.clone()
    }

    /// See [`log::read_replica`].
    ///
    /// # Errors
    /// As there.
    pub async fn log(&self, replica: ReplicaId, from: LogFrom, bytes_max: usize) -> Result<LogChunk, ReadLogError> {
        let services = self.dir.clone();
        match spawn_blocking(move || log::read_replica(&services, replica, from, bytes_max)).await {
            Ok(result) => result,
            Err(error) => Err(ReadLogError::Io { dir: self.dir.clone(), source: io::Error::other(error) }),
        }
    }

    /// Ends the agent; replicas live on. Returns when nothing of it runs any more.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.running.changed().await.is_ok() {}
    }
}

/// Whether an agent of `node` may use `dir`, for a server that wants to know before it starts.
///
/// # Errors
/// As [`Agent::start`]. What cannot be read belongs to nobody: the agent replaces it.
pub fn check_owner(dir: &Path, node: NodeId) -> Result<(), StartAgentError> {
    let cached = files::read_json(&dir.join(CACHE)).unwrap_or(None);
    match Desired::at_start(node, cached) {
        Ok(_) => Ok(()),
        Err(OtherNode { owner }) => Err(StartAgentError::OtherNode { dir: dir.to_owned(), owner }),
    }
}

/// Leaves nothing of an agent without replicas, however its task ends.
struct Tidy(Groups);

impl Drop for Tidy {
    fn drop(&mut self) {
        self.0.tidy();
    }
}

/// Ends what is in groups of replicas that this directory knows nothing of: nobody could take it over.
fn end_strangers(groups: &Groups, known: &BTreeSet<ReplicaId>) {
    for (replica, group) in groups.replicas().into_iter().filter(|(replica, _)| !known.contains(replica)) {
        let (killed, alive) = group.end(PATIENCE);
        if killed > 0 {
            tracing::warn!(%replica, killed, alive, "ended processes of a replica that is not known here");
        }
    }
}

/// Measures what replicas use, for as long as somebody may ask.
async fn measure(
    mut meter: Meter,
    usage: watch::Sender<Arc<BTreeMap<ReplicaId, Usage>>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut often = interval(MEASURED_EVERY);
    // After a pause of the machine one look tells as much as many.
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = often.tick() => {}
            _ = stopped.changed() => return,
        }
        let look = move || {
            let now = meter.measure();
            (meter, now)
        };
        let Ok((same, now)) = spawn_blocking(look).await else { return };
        meter = same;
        usage.send_if_modified(|last| {
            let differs = **last != now;
            if differs {
                *last = Arc::new(now);
            }
            differs
        });
    }
}

/// What it takes to know whom to ask for numbers.
struct Asking {
    host: String,
    desired: watch::Receiver<Desired>,
    statuses: watch::Receiver<Arc<Vec<ReplicaStatus>>>,
}

impl Asking {
    fn pages(&self) -> BTreeMap<ReplicaId, Page> {
        let assignment = self.desired.borrow().newest().cloned();
        let statuses = self.statuses.borrow().clone();
        let healthy = statuses.iter().filter(|status| status.state == ReplicaState::Healthy);
        let page = |status: &ReplicaStatus| {
            let assignment = assignment.as_deref()?;
            let scrape = assignment.scrapes.get(&status.service)?;
            let assigned = assignment.replicas.iter().find(|assigned| assigned.replica == status.replica)?;
            let name = scrape.port.as_deref().or_else(|| assigned.spec.main_port())?;
            let (service, host, port) = (status.service.clone(), self.host.clone(), *status.ports.get(name)?);
            Some((status.replica, Page { service, host, port, scrape: scrape.clone() }))
        };
        healthy.filter_map(page).collect()
    }
}

/// Asks replicas for the number that their service goes by, for as long as somebody may want to know.
async fn ask(asking: Asking, scraped: watch::Sender<Arc<Told>>, mut stopped: watch::Receiver<bool>) {
    let mut often = interval(MEASURED_EVERY);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = often.tick() => {}
            _ = stopped.changed() => return,
        }
        let now = scrape(asking.pages()).await;
        scraped.send_if_modified(|last| {
            let differs = **last != now;
            if differs {
                *last = Arc::new(now);
            }
            differs
        });
    }
}

/// What is on disk when the agent starts.
struct Found {
    assignment: Option<Assignment>,
    /// Replicas that may run, with their directories.
    launches: Vec<(PathBuf, Launch)>,
}

impl Found {
    fn look(dir: &Path) -> io::Result<Found> {
        files::make_private_dir(dir)?;
        let assignment = match files::read_json(&dir.join(CACHE)) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // Replaced by the next assignment; until then everything goes on as it is.
                tracing::error!(%error, "the cached assignment cannot be read and is ignored");
                None
            }
            result => result?,
        };
        let mut launches = Vec::new();
        for service in fs::read_dir(dir)? {
            let service = service?;
            if !service.file_type()?.is_dir() {
                continue;
            }
            for replica in fs::read_dir(service.path())? {
                let path = replica?.path();
                match files::read_json(&path.join(launch::FILE)) {
                    Ok(Some(launch)) => launches.push((path, launch)),
                    Ok(None) => {}
                    Err(error) => tracing::error!(path = %path.display(), %error, "not a replica's directory"),
                }
            }
        }
        Ok(Found { assignment, launches })
    }
}

/// Gives every replica a runner and tells it what is wanted.
struct Keeper<D: Driver> {
    dir: PathBuf,
    shared: Arc<Shared<D>>,
    desired: Desired,
    runners: BTreeMap<ReplicaId, Entry>,
    tasks: JoinSet<()>,
}

struct Entry {
    wanted: watch::Sender<Wanted>,
    task: tokio::task::Id,
    dir: PathBuf,
}

impl<D: Driver> Keeper<D> {
    async fn run(mut self, mut incoming: watch::Receiver<Desired>, mut stopped: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                changed = incoming.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let newest = incoming.borrow_and_update().clone();
                    self.obey(newest).await;
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    let task = match ended {
                        Ok((task, ())) => task,
                        Err(error) => {
                            tracing::error!(%error, "a replica's runner failed; another takes over");
                            error.id()
                        }
                    };
                    self.on_end(task).await;
                }
                // Set to true, or the last handle is gone.
                _ = stopped.changed() => break,
            }
        }
        self.tasks.shutdown().await;
    }

    async fn obey(&mut self, desired: Desired) {
        let (path, newest) = (self.dir.join(CACHE), desired.newest().cloned());
        // First on disk, then done: an agent that restarts must not fall back behind what it did.
        let write = move || newest.map_or(Ok(()), |newest| files::write_json(&path, &*newest, Durability::Durable));
        let written = spawn_blocking(write).await;
        if let Err(error) = written.map_err(io::Error::other).and_then(|written| written) {
            // Better to run what the cluster wants now than to stand still because of a full disk.
            tracing::error!(%error, "cannot write the assignment to disk; obeying it nevertheless");
        }
        self.desired = desired;
        self.reconcile();
    }

    /// Tells every runner what is wanted and starts those that are missing. Returns what tells when
    /// the new ones have a status.
    fn reconcile(&mut self) -> Vec<oneshot::Receiver<()>> {
        let mut new = Vec::new();
        let known = self.runners.values().map(|entry| entry.wanted.borrow().assigned.clone());
        for wanted in self.desired.wanted_of_all(known) {
            let AssignedReplica { replica, spec, .. } = &wanted.assigned;
            match self.runners.get(replica) {
                Some(entry) => tell(entry, wanted),
                None => {
                    let dir = self.dir.join(spec.name.as_str()).join(replica.to_string());
                    new.push(self.add(dir, wanted));
                }
            }
        }
        new
    }

    fn add(&mut self, dir: PathBuf, wanted: Wanted) -> oneshot::Receiver<()> {
        let (settled, when_settled) = oneshot::channel();
        let replica = wanted.assigned.replica;
        let (wanted, receiver) = watch::channel(wanted);
        let runner = Runner::new(Arc::clone(&self.shared), dir.clone(), receiver, settled);
        let task = self.tasks.spawn(runner.run()).id();
        self.runners.insert(replica, Entry { wanted, task, dir });
        when_settled
    }

    /// A runner is done: its replica is not wanted and nothing of it runs. (Or the runner failed,
    /// or the replica was wanted again in the last moment: then it gets a new one.)
    async fn on_end(&mut self, task: tokio::task::Id) {
        let ended = self.runners.iter().find(|(_, entry)| entry.task == task).map(|(replica, _)| *replica);
        let Some((replica, entry)) = ended.and_then(|replica| self.runners.remove_entry(&replica)) else { return };
        let listed = entry.wanted.borrow().listed;
        if !listed {
            self.shared.board.remove(replica);
            let in_use: BTreeSet<PathBuf> = self.runners.values().map(|entry| entry.dir.clone()).collect();
            let retired = spawn_blocking(move || retire(&entry.dir, &in_use)).await;
            if let Err(error) = retired.map_err(io::Error::other).and_then(|retired| retired) {
                tracing::warn!(%replica, %error, "cannot tidy up after a replica");
            }
        }
        self.reconcile();
    }
}

fn tell(entry: &Entry, wanted: Wanted) {
    entry.wanted.send_if_modified(|last| {
        let differs = *last != wanted;
        *last = wanted;
        differs
    });
}

/// Marks a replica's directory as one that never runs again, and removes all but the newest of those.
fn retire(dir: &Path, in_use: &BTreeSet<PathBuf>) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    // Its logs stay for a while; what was made with secrets does not.
    if let Ok(Some(launch)) = files::read_json::<Launch>(&dir.join(launch::FILE)) {
        templates::remove(&launch.assigned.spec, &dir.join("work"))?;
        service_token::remove(&dir.join("work"))?;
    }
    files::remove_file(&dir.join(launch::FILE))?;
    let Some(service) = dir.parent() else { return Ok(()) };
    let mut ended = Vec::new();
    for entry in fs::read_dir(service)? {
        let entry = entry?;
        let path = entry.path();
        if !in_use.contains(&path) && !path.join(launch::FILE).exists() {
            ended.push((entry.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH), path));
        }
    }
    ended.sort();
    let surplus = ended.len().saturating_sub(ENDED_KEPT);
    for (_, path) in ended.drain(..surplus) {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}
