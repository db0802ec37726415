//! One replica: a task that brings it to what is wanted and says how it is.
//!
//! The task holds nothing that is not on disk as well, so it may be dropped at any moment; the next
//! one attaches to the running copy and goes on.

use crate::driver::{Driver, Instance};
use crate::endpoints::{self, Endpoints};
use crate::files::{self, Durability};
use crate::keeper::pacemaker;
use crate::launch::{self, Given, Launch};
use crate::lease::{Holds, boot_time};
use crate::needs;
use crate::ports::{PortError, Reservations, is_free};
use crate::protocol::{ProcessState, STREAK_ENDS_AFTER, ShimState, UNDYING, pause};
use crate::secrets::{SecretError, Secrets};
use crate::service_token::{self, Api, ServiceTokens};
use crate::templates::{self, Beyond, RenderError};
use quorate_agent_core::desired::Wanted;
use quorate_agent_core::lease::{BootTime, Deadlines, is_far_enough};
use quorate_model::assignment::{AssignedLease, AssignedReplica, Phase};
use quorate_model::discovery::Directory;
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::need::Artifact;
use quorate_model::observed::{Part, ReplicaState, ReplicaStatus};
use quorate_model::secret::Secret;
use quorate_model::spec::{self, Port, ServiceSpec, Stop, TemplateError};
use quorate_model::time::Span;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

mod checks;
mod telling;

use checks::RunHealth;

/// How much longer than its grace a stop may take before the shim itself is killed. The shim kills
/// its group when the grace is over, so this is reached only by one that does not run at all.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// How long after an exit its ports are looked at: by then those of its killed group are closed.
const PORTS_SETTLE: Duration = Duration::from_millis(50);

/// Between two times that files are made anew: a node that is lost changes many things, one after the other.
const RELOADS_PAUSE: Duration = Duration::from_millis(500);

/// When the files of a replica that was taken over are looked at first: a server that has just started hears
/// of other nodes little by little.
const RELOAD_AFTER: Duration = Duration::from_secs(5);

/// What all replicas of an agent have in common.
#[derive(Debug)]
pub(crate) struct Shared<D> {
    pub(crate) node: NodeId,
    pub(crate) node_name: String,
    pub(crate) host: String,
    pub(crate) artifacts: PathBuf,
    pub(crate) secrets: watch::Receiver<Arc<Secrets>>,
    pub(crate) tokens: watch::Receiver<Arc<ServiceTokens>>,
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    pub(crate) api: Api,
    pub(crate) driver: D,
    pub(crate) ports: Reservations,
    pub(crate) board: Board,
    pub(crate) holds: Arc<Holds>,
}

/// The newest status of each replica, sorted by replica.
#[derive(Debug)]
pub(crate) struct Board(watch::Sender<Arc<Vec<ReplicaStatus>>>);

impl Board {
    pub(crate) fn new() -> Board {
        Board(watch::Sender::new(Arc::default()))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Vec<ReplicaStatus>>> {
        self.0.subscribe()
    }

    fn set(&self, status: ReplicaStatus) {
        self.0.send_if_modified(|all| match all.binary_search_by_key(&status.replica, |known| known.replica) {
            Ok(at) if all[at] == status => false,
            Ok(at) => {
                Arc::make_mut(all)[at] = status;
                true
            }
            Err(at) => {
                Arc::make_mut(all).insert(at, status);
                true
            }
        });
    }

    pub(crate) fn remove(&self, replica: ReplicaId) {
        self.0.send_if_modified(|all| {
            let found = all.binary_search_by_key(&replica, |known| known.replica);
            found.map(|at| Arc::make_mut(all).remove(at)).is_ok()
        });
    }
}

pub(crate) struct Runner<D: Driver> {
    shared: Arc<Shared<D>>,
    replica: ReplicaId,
    dir: PathBuf,
    wanted: watch::Receiver<Wanted>,
    /// Until when its leases are held.
    held: watch::Receiver<Deadlines>,
    tokens: watch::Receiver<Arc<ServiceTokens>>,
    /// What its files say of other services; `None` before this agent has made them.
    endpoints: Option<Endpoints>,
    /// Told once, when the first status is on the board.
    settled: Option<oneshot::Sender<()>>,
    /// As of the last shim, for the next.
    ports: BTreeMap<String, u16>,
    restarts: u32,
    detail: String,
    /// A process ran under an earlier shim, so the next launch is a restart.
    ran_before: bool,
    /// Launches in a row that failed or ended without being asked to.
    streak: u32,
    not_before: Instant,
    /// How the pause until `not_before` is called.
    waiting_as: ReplicaState,
    /// It is not to be started again.
    gave_up: bool,
    /// Nothing of it runs, for certain.
    is_gone: bool,
}

impl<D: Driver> Runner<D> {
    pub(crate) fn new(
        shared: Arc<Shared<D>>,
        dir: PathBuf,
        wanted: watch::Receiver<Wanted>,
        settled: oneshot::Sender<()>,
    ) -> Runner<D> {
        let replica = wanted.borrow().assigned.replica;
        let held = shared.holds.follow(replica);
        let tokens = shared.tokens.clone();
        Runner {
            shared,
            replica,
            dir,
            wanted,
            held,
            tokens,
            endpoints: None,
            settled: Some(settled),
            ports: BTreeMap::new(),
            restarts: 0,
            detail: String::new(),
            ran_before: false,
            streak: 0,
            not_before: Instant::now(),
            waiting_as: ReplicaState::BackingOff,
            gave_up: false,
            is_gone: false,
        }
    }

    /// Returns when the replica is not in the assignment and nothing of it runs.
    pub(crate) async fn run(mut self) {
        let mut instance = self.take_over().await;
        loop {
            let (phase, listed) = {
                let wanted = self.wanted.borrow_and_update();
                (wanted.phase(), wanted.listed)
            };
            instance = match (instance, phase) {
                (Some(running), _) => {
                    self.supervise(running).await;
                    None
                }
                (None, Phase::Run) if !self.gave_up => self.launch().await,
                (None, Phase::Run) => {
                    self.publish(ReplicaState::Failed, None);
                    changes(&mut self.wanted).await;
                    None
                }
                // One that ended while draining has nothing to come back for.
                (None, Phase::Drain | Phase::Stop) => {
                    self.shared.ports.release(self.replica);
                    self.publish(ReplicaState::Stopped, None);
                    if !listed {
                        return;
                    }
                    changes(&mut self.wanted).await;
                    None
                }
            };
        }
    }

    /// Ends what a copy left. Under a lease it returns only when nothing is left: who hears that the replica is
    /// over gives the lease to another.
    async fn clean_up(&mut self) {
        while self.shared.driver.clean_up(self.replica, &self.dir).await > 0
            && self.wanted.borrow().assigned.lease.is_some()
        {
            UNDYING.clone_into(&mut self.detail);
            self.publish(ReplicaState::Stopping, None);
        }
        self.is_gone = true;
    }

    /// Finds out what an earlier agent left, and ends what cannot be taken over.
    async fn take_over(&mut self) -> Option<D::Instance> {
        match self.shared.driver.attach(self.replica, &self.dir).await {
            Ok(Some(instance)) => {
                self.shared.ports.keep(self.replica, &instance.state().ports);
                tracing::info!(replica = %self.replica, pid = instance.state().pid, "took over a running replica");
                return Some(instance);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(replica = %self.replica, %error, "cannot reach the replica's shim"),
        }
        self.clean_up().await;
        if let Ok(Some(launch)) = files::read_json::<Launch>(&self.dir.join(launch::FILE)) {
            self.ports = launch.ports;
        }
        if self.read_last_words() {
            return None;
        }
        if let Ok(Some(last)) = files::read_json::<ShimState>(&self.dir.join("state.json")) {
            self.remember(last);
            "it did not outlive its node's restart".clone_into(&mut self.detail);
        }
        None
    }

    /// Learns from `exit.json` how an unseen end came about; `false` if there is none.
    fn read_last_words(&mut self) -> bool {
        let Ok(Some(last)) = files::read_json::<ShimState>(&self.dir.join("exit.json")) else { return false };
        self.gave_up = last.state == ProcessState::GaveUp;
        self.remember(last);
        true
    }

    /// Keeps what the next shim is to know of the last one.
    fn remember(&mut self, last: ShimState) {
        self.ran_before = last.started_at.is_some();
        (self.ports, self.restarts, self.detail) = (last.ports, last.restarts, last.detail);
    }

    /// Follows a running copy until it is over.
    async fn supervise(&mut self, mut instance: D::Instance) {
        let begun = Instant::now();
        self.is_gone = false;
        let mut health: Option<RunHealth> = None;
        let mut look_at_ports: Option<Instant> = None;
        let mut kill_at: Option<Instant> = None;
        let (mut asked_to_stop, mut was_well) = (false, false);
        let mut moving = false;
        let mut told: Option<(u64, BootTime)> = None;
        let mut asked_part = AskedPart::default();
        let mut ports_note = String::new();
        let mut secrets = self.shared.secrets.clone();
        let mut directory = self.shared.directory.clone();
        let uses = !self.wanted.borrow().assigned.spec.uses.is_empty();
        // What has changed since it was launched counts as well.
        let settle = if self.endpoints.is_some() { RELOADS_PAUSE } else { RELOAD_AFTER };
        let mut reload_at = uses.then(|| begun + settle);
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let epoch = instance.state().lease.as_ref().map(|lease| lease.epoch);
            let is_cast = instance.state().casting.is_some();
            // Others cannot change their epoch while they run: that is in their environment.
            let same_epoch = epoch == wanted.assigned.lease.map(|lease| lease.epoch);
            let of_this_lease = same_epoch || is_cast;
            let deadline = epoch.and_then(|epoch| self.held.borrow_and_update().of(epoch));
            let keeps = wanted.assigned.lease.is_some_and(|lease| lease.keeps);
            if same_epoch
                && !keeps
                && let (Some(epoch), Some(deadline)) = (epoch, deadline)
                && told.is_none_or(|(other, told)| other != epoch || deadline > told)
            {
                instance.hold(epoch, deadline).await;
                told = Some((epoch, deadline));
            }
            // A copy that stands by cold ends when it is not to be the active one any more.
            let gives_back = !is_cast && wanted.assigned.lease.is_some_and(|lease| lease.yields);
            if !asked_to_stop && (moving || gives_back || !of_this_lease || wanted.phase() == Phase::Stop) {
                asked_to_stop = true;
                was_well = health.as_ref().is_some_and(RunHealth::is_healthy);
                let mut stop = wanted.assigned.spec.stop.clone();
                if moving {
                    stop = Stop { grace: Span::default(), ..stop };
                }
                instance.stop(&stop).await;
                kill_at = Instant::now().checked_add(stop.grace.0 + STOP_MARGIN);
            }

            let state = instance.state();
            if state.state == ProcessState::Running {
                let target = self.target(&wanted.assigned, state, health.as_ref());
                health = Some(RunHealth::follow(health.take(), state, target));
                (look_at_ports, ports_note) = (None, String::new());
            } else {
                health = None;
            }
            self.report(&wanted, state, health.as_ref(), asked_to_stop, &ports_note);
            if is_cast && !asked_to_stop {
                let healthy = health.as_ref().is_some_and(RunHealth::is_healthy);
                self.cast(&mut instance, &wanted, healthy, &mut asked_part).await;
            }

            tokio::select! {
                // News first: whoever looks at ports must know whether the process is back.
                biased;
                more = instance.changed() => {
                    if !more {
                        break;
                    }
                    let waits = instance.state().state == ProcessState::BackingOff;
                    look_at_ports = waits.then(|| Instant::now() + PORTS_SETTLE);
                }
                () = RunHealth::changes(&mut health) => {}
                () = changes(&mut self.wanted) => {}
                () = changes(&mut self.held) => {}
                () = changes(&mut secrets), if health.as_ref().is_some_and(RunHealth::waits) => {}
                () = changes(&mut directory), if uses && reload_at.is_none() => {
                    reload_at = Some(Instant::now() + RELOADS_PAUSE);
                }
                () = at(reload_at) => {
                    reload_at = None;
                    let now = directory.borrow_and_update().clone();
                    self.make_anew(&wanted.assigned, &now, &mut instance).await;
                }
                () = at(look_at_ports) => {
                    look_at_ports = None;
                    // The process is not running, so its ports should be free.
                    let taken = instance.state().ports.iter().find(|(_, port)| !is_free(&self.shared.host, **port));
                    if let Some((name, port)) = taken {
                        ports_note = PortError::InUse(*port).to_string();
                        moving = wanted.assigned.spec.ports.get(name) == Some(&Port::Auto);
                    }
                }
                () = at(kill_at) => {
                    tracing::error!(replica = %self.replica, "its shim did not end in time and is killed");
                    kill_at = None;
                    instance.kill();
                }
            }
        }

        let last = instance.state().clone();
        let state = last.state;
        let keeps = self.wanted.borrow().assigned.lease.is_some_and(|lease| lease.keeps);
        let is_cold = self.wanted.borrow().assigned.spec.stands_by_cold();
        let lease_ended = last
            .lease
            .as_ref()
            .filter(|_| !keeps)
            .is_some_and(|lease| lease.let_go || told.is_none_or(|(_, deadline)| deadline <= boot_time()));
        drop(instance);
        if !self.wanted.borrow().assigned.spec.driver.is_process() {
            // Cleaning up may take as long as an agent's stop, and meanwhile nothing of it works.
            let waits = if asked_to_stop { ReplicaState::Stopping } else { ReplicaState::BackingOff };
            self.publish(waits, None);
        }
        // Also after an orderly end: a workload may have left the group that its shim killed.
        self.clean_up().await;
        self.remember(last);
        match state {
            ProcessState::GaveUp => self.gave_up = true,
            // Whoever was not well is no good heir for a while.
            _ if asked_to_stop && !moving && !was_well && is_cold => self.put_off(ReplicaState::BackingOff, 2),
            _ if asked_to_stop && !moving => {}
            // No fault of its own: it starts again as soon as its lease is held.
            ProcessState::Stopped if lease_ended => {}
            _ if lease_ended => {
                "its lease was not held longer; it was killed".clone_into(&mut self.detail);
                tracing::warn!(replica = %self.replica, "the replica did not end before its lease and was killed");
            }
            _ => {
                if moving {
                    self.detail = ports_note;
                } else if state != ProcessState::Stopped {
                    "its shim was killed".clone_into(&mut self.detail);
                    tracing::warn!(replica = %self.replica, "the replica's shim was killed; starting another");
                }
                if begun.elapsed() >= STREAK_ENDS_AFTER {
                    self.streak = 0;
                }
                self.put_off(ReplicaState::BackingOff, 1);
            }
        }
    }

    /// Has a copy of an active-passive service take up the role that it is given, or give it back.
    async fn cast(&mut self, instance: &mut D::Instance, wanted: &Wanted, healthy: bool, asked: &mut AskedPart) {
        let Some(casting) = instance.state().casting else { return };
        let restarts = instance.state().restarts;
        let lease = wanted.assigned.lease;
        // What it is to give back, and what it holds without being given it.
        let over = match lease {
            Some(lease) if lease.yields => Some(lease.epoch),
            Some(lease) if casting.epoch == lease.epoch => None,
            _ => Some(casting.epoch).filter(|epoch| *epoch > 0),
        };
        if let Some(epoch) = over {
            if casting.yielded < epoch && asked.resigned < epoch {
                asked.resigned = epoch;
                instance.resign(epoch).await;
            }
            return;
        }
        let Some(lease) = lease.filter(|_| healthy && casting.part == Part::Standby && wanted.phase() == Phase::Run)
        else {
            return;
        };
        let deadline = self.held.borrow().of(lease.epoch);
        let deadline = deadline.filter(|deadline| is_far_enough(boot_time(), *deadline, lease.ttl.0));
        // It says nothing of an order that it does not follow, so the next renewal brings another.
        if let Some(deadline) = deadline.filter(|deadline| asked.activated != Some((lease.epoch, restarts, *deadline)))
        {
            asked.activated = Some((lease.epoch, restarts, deadline));
            instance.activate(lease, deadline).await;
        }
    }

    /// Starts a copy, or waits until it is time to. `None`: look again at what is wanted.
    async fn launch(&mut self) -> Option<D::Instance> {
        if Instant::now() < self.not_before {
            self.publish(self.waiting_as, None);
            tokio::select! {
                () = sleep_until(self.not_before) => {}
                () = changes(&mut self.wanted) => return None,
            }
        }
        let assigned = self.wanted.borrow().assigned.clone();
        if !self.may_start(&assigned) {
            self.publish_with("it waits for its lease", ReplicaState::Starting);
            tokio::select! {
                () = changes(&mut self.held) => {}
                () = changes(&mut self.wanted) => {}
            }
            return None;
        }
        let token = self.tokens.borrow_and_update().0.get(&self.replica).cloned();
        if !assigned.spec.grants.is_empty() && token.is_none() {
            self.publish_with("it waits for its token, which every node is to know first", ReplicaState::Starting);
            tokio::select! {
                () = changes(&mut self.tokens) => {}
                () = changes(&mut self.wanted) => {}
            }
            return None;
        }
        if assigned.stands_by_cold() {
            self.stand_by(&assigned, token).await;
            return None;
        }
        // It starts as the active copy, so nothing is promised from here on. One that runs is a standby at first.
        self.is_gone &= !assigned.spec.stands_by_cold();
        let launched = self.try_launch(&assigned, token).await;
        if launched.is_err() && assigned.spec.stands_by_cold() {
            self.clean_up().await;
        }
        match launched {
            Ok(Some(instance)) => Some(instance),
            Ok(None) => {
                // A program that ends at once and is not to be restarted is done before we look.
                self.clean_up().await;
                if !self.read_last_words() {
                    "its shim was killed".clone_into(&mut self.detail);
                }
                self.put_off(ReplicaState::BackingOff, 2);
                None
            }
            // Starting took so long that it was not worth while any more.
            Err(_) if !self.may_start(&assigned) => None,
            Err(error) => {
                self.explain(error);
                None
            }
        }
    }

    /// Makes all ready that a copy needs to start, and waits until it is to be the active one.
    async fn stand_by(&mut self, assigned: &AssignedReplica, token: Option<Secret<String>>) {
        match self.make_ready(assigned, token).await {
            Ok(_) => {
                // To be promoted is no restart.
                self.ran_before = false;
                self.detail.clear();
                self.publish(ReplicaState::Healthy, None);
                changes(&mut self.wanted).await;
            }
            Err(error) => self.explain(error),
        }
    }

    /// Says why a copy cannot be started, and when that is tried again.
    fn explain(&mut self, error: LaunchError) {
        self.detail = match &error {
            LaunchError::Io(cause) | LaunchError::Render(RenderError::Io { source: cause, .. }) => {
                format!("{error}: {cause}")
            }
            LaunchError::Ports(_)
            | LaunchError::Artifact(_)
            | LaunchError::Secret(_)
            | LaunchError::Render(_)
            | LaunchError::Template(_) => error.to_string(),
        };
        tracing::warn!(replica = %self.replica, detail = self.detail, "the replica cannot be started");
        match error {
            LaunchError::Ports(_) | LaunchError::Artifact(_) => self.put_off(ReplicaState::BackingOff, 2),
            LaunchError::Io(_) | LaunchError::Render(RenderError::Io { .. }) => self.put_off(ReplicaState::Failed, 2),
            LaunchError::Secret(SecretError::Absent(_)) => self.put_off(ReplicaState::BackingOff, 2),
            // Another value comes with another replica.
            LaunchError::Secret(SecretError::NoText(_)) => self.gave_up = true,
            // The spec does not change during a replica's life.
            LaunchError::Template(_) | LaunchError::Render(_) => self.gave_up = true,
        }
    }

    async fn try_launch(
        &mut self,
        assigned: &AssignedReplica,
        token: Option<Secret<String>>,
    ) -> Result<Option<D::Instance>, LaunchError> {
        // A copy of several that run starts as a standby, whatever it is to be.
        let lease = assigned.lease.filter(|_| !assigned.spec.changes_parts());
        let mut launch = self.make_ready(&AssignedReplica { lease, ..assigned.clone() }, token).await?;
        self.publish(ReplicaState::Starting, None);
        let (shared, dir) = (Arc::clone(&self.shared), self.dir.clone());
        let write = move || {
            shared.driver.prepare(&mut launch)?;
            files::remove_file(&dir.join("exit.json"))?;
            files::write_json(&dir.join(launch::FILE), &launch, Durability::Durable)?;
            Ok::<_, LaunchError>(launch)
        };
        let launch = spawn_blocking(write).await.map_err(io::Error::other)??;
        Ok(self.shared.driver.launch(&launch, &self.dir).await?)
    }

    /// Chooses its ports, fills its spec and makes its directory and files: all that can be done before it starts.
    async fn make_ready(
        &mut self,
        assigned: &AssignedReplica,
        token: Option<Secret<String>>,
    ) -> Result<Launch, LaunchError> {
        let (shared, wanted) = (Arc::clone(&self.shared), assigned.spec.ports.clone());
        let (replica, before) = (self.replica, self.ports.clone());
        let choose = move || shared.ports.choose(replica, &wanted, &before, &shared.host);
        self.ports = spawn_blocking(choose).await.map_err(io::Error::other)??;
        let Shared { node_name, artifacts, .. } = &*self.shared;
        let artifacts = located(artifacts, &assigned.spec)?;
        let secrets = Secret::new(self.shared.secrets.borrow().of(assigned)?);
        let given = Given { artifacts: &artifacts, secrets: &secrets };
        let launch = Launch {
            restarts: self.restarts + u32::from(self.ran_before),
            detail: self.detail.clone(),
            deadline: assigned.lease.filter(|lease| !lease.keeps).and_then(|lease| self.held.borrow().of(lease.epoch)),
            ..self.filled(assigned, self.ports.clone(), given)?
        };
        let (dir, assigned, node, ports) = (self.dir.clone(), assigned.clone(), node_name.clone(), self.ports.clone());
        let endpoints = self.endpoints_of(&assigned.spec, &self.shared.directory.borrow());
        self.endpoints = Some(endpoints.clone());
        let write = move || {
            files::make_private_dir(&dir)?;
            let (work, given) = (dir.join("work"), Given { artifacts: &artifacts, secrets: &secrets });
            let path = work.to_string_lossy();
            files::make_private_dir(&work)?;
            if let Some(token) = &token {
                service_token::write(token, &work)?;
            }
            let externals = launch::injected(&assigned, given);
            let values = launch::values(&assigned, &node, &path, &ports, given, &externals);
            templates::render(
                &assigned.spec,
                &values,
                &Beyond { endpoints: &endpoints, externals: &externals },
                &work,
            )?;
            Ok::<_, LaunchError>(launch)
        };
        spawn_blocking(write).await.map_err(io::Error::other)?
    }

    /// What its shim is to run, and what that is told of the cluster.
    fn filled(
        &self,
        assigned: &AssignedReplica,
        ports: BTreeMap<String, u16>,
        given: Given<'_>,
    ) -> Result<Launch, TemplateError> {
        let Shared { node, node_name, api, .. } = &*self.shared;
        let mut launch = Launch::new(assigned, *node, node_name, &self.dir, ports, given)?;
        launch.env.extend(endpoints::variables(&assigned.spec, &self.shared.directory.borrow()));
        if assigned.spec.driver == spec::Driver::Ocf && !api.socket.as_os_str().is_empty() {
            launch.env.insert(pacemaker::SOCKET.to_owned(), api.socket.to_string_lossy().into_owned());
        }
        if !assigned.spec.grants.is_empty() {
            launch.env.extend(service_token::variables(api, &self.dir.join("work")));
        }
        Ok(launch)
    }

    fn endpoints_of(&self, spec: &ServiceSpec, directory: &Directory) -> Endpoints {
        endpoints::of(spec, directory, self.endpoints.as_ref().unwrap_or(&Endpoints::new()))
    }

    /// Makes its files anew if what it uses is elsewhere, and tells it.
    async fn make_anew(&mut self, assigned: &AssignedReplica, directory: &Directory, instance: &mut D::Instance) {
        let endpoints = self.endpoints_of(&assigned.spec, directory);
        // Of one that was taken over nobody knows what its files said before.
        let unknown = self.endpoints.is_none() && endpoints.values().any(Vec::is_empty);
        if unknown || self.endpoints.as_ref() == Some(&endpoints) {
            return;
        }
        match self.render_again(assigned, instance.state(), &endpoints).await {
            Ok(changed) => {
                self.endpoints = Some(endpoints);
                tracing::debug!(replica = %self.replica, changed, "what it uses is elsewhere");
                if let (true, Some(signal)) = (changed, assigned.spec.reload) {
                    instance.signal(signal).await;
                }
            }
            // It goes on with the files that it has, until something changes again.
            Err(error) => tracing::warn!(replica = %self.replica, %error, "its files are not made anew"),
        }
    }

    async fn render_again(
        &self,
        assigned: &AssignedReplica,
        state: &ShimState,
        endpoints: &Endpoints,
    ) -> Result<bool, LaunchError> {
        let artifacts = located(&self.shared.artifacts, &assigned.spec)?;
        let secrets = Secret::new(self.shared.secrets.borrow().of(assigned)?);
        let (assigned, node, endpoints) = (assigned.clone(), self.shared.node_name.clone(), endpoints.clone());
        let (work, ports) = (self.dir.join("work"), state.ports.clone());
        let render = move || {
            let path = work.to_string_lossy();
            let given = Given { artifacts: &artifacts, secrets: &secrets };
            let externals = launch::injected(&assigned, given);
            let values = launch::values(&assigned, &node, &path, &ports, given, &externals);
            templates::render(&assigned.spec, &values, &Beyond { endpoints: &endpoints, externals: &externals }, &work)
        };
        Ok(spawn_blocking(render).await.map_err(io::Error::other)??)
    }

    /// Whether it needs no lease, or has one that lasts long enough. So has what goes on without renewals later: a
    /// node that has been away may have lost it.
    fn may_start(&mut self, assigned: &AssignedReplica) -> bool {
        let is_needed = |lease: &AssignedLease| !assigned.spec.changes_parts() && !lease.yields;
        let Some(lease) = assigned.lease.filter(is_needed) else { return true };
        let deadline = self.held.borrow_and_update().of(lease.epoch);
        deadline.is_some_and(|deadline| is_far_enough(boot_time(), deadline, lease.ttl.0))
    }

    /// Counts a failure and sets the time of the next launch. `streak_min` 2 excludes "at once".
    fn put_off(&mut self, waiting_as: ReplicaState, streak_min: u32) {
        self.streak = self.streak.saturating_add(1).max(streak_min);
        let backoff = self.wanted.borrow().assigned.spec.restart.backoff;
        self.not_before = Instant::now() + pause(backoff, self.streak);
        self.waiting_as = waiting_as;
    }
}

/// What a copy was asked about its part, so that it is asked once.
#[derive(Debug, Default)]
struct AskedPart {
    activated: Option<(u64, u32, BootTime)>,
    resigned: u64,
}

/// Where the artifacts of a service lie, by name.
fn located(root: &Path, spec: &ServiceSpec) -> Result<Vec<(String, String)>, LaunchError> {
    let one = |artifact: &Artifact| {
        let path = needs::locate(root, artifact).ok_or_else(|| LaunchError::Artifact(artifact.name.clone()))?;
        Ok((artifact.name.clone(), path.to_string_lossy().into_owned()))
    };
    spec.artifacts.iter().map(one).collect()
}

/// Why a copy was not started. Nothing runs.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(transparent)]
    Ports(#[from] PortError),
    /// It was there when the replica was placed.
    #[error("its artifact {0} is not on this node; it is fetched again")]
    Artifact(String),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error("the spec {0}")]
    Template(#[from] TemplateError),
    #[error("cannot start it")]
    Io(#[from] io::Error),
}

async fn changes<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        // The agent is ending and drops this task.
        pending().await
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
