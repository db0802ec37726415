//! One replica: a task that brings it to what is wanted and says how it is.
//!
//! The task holds nothing that is not on disk as well, so it may be dropped at any moment; the next
//! one attaches to the running copy and goes on.

use crate::desired::Wanted;
use crate::driver::{Driver, Instance};
use crate::files::{self, Durability};
use crate::health::{Health, HealthWatch, Target, Verdict};
use crate::launch::{self, Launch};
use crate::ports::{PortError, Reservations, is_free};
use crate::protocol::{ProcessState, STREAK_ENDS_AFTER, ShimState, pause, wall_now};
use quorate_model::assignment::{AssignedReplica, Phase};
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::observed::{ReplicaState, ReplicaStatus};
use quorate_model::spec::{Port, Stop};
use quorate_model::time::Span;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

/// How much longer than its grace a stop may take before the shim itself is killed. The shim kills
/// its group when the grace is over, so this is reached only by one that does not run at all.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// How long after an exit its ports are looked at: by then those of its killed group are closed.
const PORTS_SETTLE: Duration = Duration::from_millis(50);

/// What all replicas of an agent have in common.
#[derive(Debug)]
pub(crate) struct Shared<D> {
    pub(crate) node: NodeId,
    pub(crate) node_name: String,
    pub(crate) host: String,
    pub(crate) driver: D,
    pub(crate) ports: Reservations,
    pub(crate) board: Board,
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
}

impl<D: Driver> Runner<D> {
    pub(crate) fn new(
        shared: Arc<Shared<D>>,
        dir: PathBuf,
        wanted: watch::Receiver<Wanted>,
        settled: oneshot::Sender<()>,
    ) -> Runner<D> {
        let replica = wanted.borrow().assigned.replica;
        Runner {
            shared,
            replica,
            dir,
            wanted,
            settled: Some(settled),
            ports: BTreeMap::new(),
            restarts: 0,
            detail: String::new(),
            ran_before: false,
            streak: 0,
            not_before: Instant::now(),
            waiting_as: ReplicaState::BackingOff,
            gave_up: false,
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
                    self.wanted_changes().await;
                    None
                }
                // One that ended while draining has nothing to come back for.
                (None, Phase::Drain | Phase::Stop) => {
                    self.shared.ports.release(self.replica);
                    self.publish(ReplicaState::Stopped, None);
                    if !listed {
                        return;
                    }
                    self.wanted_changes().await;
                    None
                }
            };
        }
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
        self.shared.driver.clean_up(self.replica).await;
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
        let mut health: Option<RunHealth> = None;
        let mut look_at_ports: Option<Instant> = None;
        let mut kill_at: Option<Instant> = None;
        let mut asked_to_stop = false;
        let mut moving = false;
        let mut ports_note = String::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if !asked_to_stop && (moving || wanted.phase() == Phase::Stop) {
                asked_to_stop = true;
                let mut stop = wanted.assigned.spec.stop.clone();
                if moving {
                    stop = Stop { grace: Span::default(), ..stop };
                }
                instance.stop(&stop).await;
                kill_at = Instant::now().checked_add(stop.grace.0 + STOP_MARGIN);
            }

            let state = instance.state();
            if state.state == ProcessState::Running {
                health = Some(RunHealth::follow(health.take(), state, &wanted.assigned, &self.shared.host));
                (look_at_ports, ports_note) = (None, String::new());
            } else {
                health = None;
            }
            self.report(&wanted, state, health.as_ref(), asked_to_stop, &ports_note);

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
                result = self.wanted.changed() => {
                    if result.is_err() {
                        // The agent is ending and drops this task.
                        pending::<()>().await;
                    }
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
        drop(instance);
        // Also after an orderly end: a workload may have left the group that its shim killed.
        self.shared.driver.clean_up(self.replica).await;
        self.remember(last);
        match state {
            ProcessState::GaveUp => self.gave_up = true,
            _ if asked_to_stop && !moving => {}
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

    /// Starts a copy, or waits until it is time to. `None`: look again at what is wanted.
    async fn launch(&mut self) -> Option<D::Instance> {
        if Instant::now() < self.not_before {
            self.publish(self.waiting_as, None);
            tokio::select! {
                () = sleep_until(self.not_before) => {}
                () = self.wanted_changes() => return None,
            }
        }
        let assigned = self.wanted.borrow().assigned.clone();
        match self.try_launch(&assigned).await {
            Ok(Some(instance)) => Some(instance),
            Ok(None) => {
                // A program that ends at once and is not to be restarted is done before we look.
                self.shared.driver.clean_up(self.replica).await;
                if !self.read_last_words() {
                    "its shim was killed".clone_into(&mut self.detail);
                }
                self.put_off(ReplicaState::BackingOff, 2);
                None
            }
            Err(error) => {
                self.detail = match &error {
                    LaunchError::Io(cause) => format!("{error}: {cause}"),
                    LaunchError::Ports(_) | LaunchError::Template(_) => error.to_string(),
                };
                tracing::warn!(replica = %self.replica, detail = self.detail, "the replica cannot be started");
                match error {
                    LaunchError::Ports(_) => self.put_off(ReplicaState::BackingOff, 2),
                    LaunchError::Io(_) => self.put_off(ReplicaState::Failed, 2),
                    // The spec does not change during a replica's life.
                    LaunchError::Template(_) => self.gave_up = true,
                }
                None
            }
        }
    }

    async fn try_launch(&mut self, assigned: &AssignedReplica) -> Result<Option<D::Instance>, LaunchError> {
        let (shared, wanted) = (Arc::clone(&self.shared), assigned.spec.ports.clone());
        let (replica, before) = (self.replica, self.ports.clone());
        let choose = move || shared.ports.choose(replica, &wanted, &before, &shared.host);
        self.ports = spawn_blocking(choose).await.map_err(io::Error::other)??;
        self.publish(ReplicaState::Starting, None);
        let Shared { node, node_name, .. } = &*self.shared;
        let launch = Launch {
            restarts: self.restarts + u32::from(self.ran_before),
            detail: self.detail.clone(),
            ..Launch::new(assigned, *node, node_name, &self.dir, self.ports.clone())?
        };
        let dir = self.dir.clone();
        let write = move || {
            files::make_private_dir(&dir)?;
            files::remove_file(&dir.join("exit.json"))?;
            files::write_json(&dir.join(launch::FILE), &launch, Durability::Durable)?;
            io::Result::Ok(launch)
        };
        let launch = spawn_blocking(write).await.map_err(io::Error::other)??;
        Ok(self.shared.driver.launch(&launch, &self.dir).await?)
    }

    /// Counts a failure and sets the time of the next launch. `streak_min` 2 excludes "at once".
    fn put_off(&mut self, waiting_as: ReplicaState, streak_min: u32) {
        self.streak = self.streak.saturating_add(1).max(streak_min);
        let backoff = self.wanted.borrow().assigned.spec.restart.backoff;
        self.not_before = Instant::now() + pause(backoff, self.streak);
        self.waiting_as = waiting_as;
    }

    async fn wanted_changes(&mut self) {
        if self.wanted.changed().await.is_err() {
            // The agent is ending and drops this task.
            pending::<()>().await;
        }
    }

    /// Puts what a running copy says, and what is wanted of it, into one status.
    fn report(
        &mut self,
        wanted: &Wanted,
        state: &ShimState,
        health: Option<&RunHealth>,
        asked_to_stop: bool,
        ports_note: &str,
    ) {
        let health = health.map(|run| run.watch.health.borrow().clone());
        let verdict = health.as_ref().map_or(Verdict::NotYet, |health| health.verdict);
        if self.settled.is_some() && verdict == Verdict::Unasked && !asked_to_stop {
            // Just taken over and perhaps healthy all along: the first check decides, within its timeout.
            return;
        }
        let process = match state.state {
            ProcessState::Running => match verdict {
                Verdict::Unasked | Verdict::NotYet => ReplicaState::Starting,
                Verdict::Healthy => ReplicaState::Healthy,
                Verdict::Unhealthy => ReplicaState::Unhealthy,
            },
            ProcessState::BackingOff => ReplicaState::BackingOff,
            ProcessState::CannotStart | ProcessState::GaveUp => ReplicaState::Failed,
            ProcessState::Stopping | ProcessState::Stopped => ReplicaState::Stopping,
        };
        let shown = match wanted.phase() {
            Phase::Stop => ReplicaState::Stopping,
            Phase::Drain => ReplicaState::Draining,
            Phase::Run => process,
        };
        self.detail = match (process, health) {
            (ReplicaState::Healthy, _) => String::new(),
            (_, Some(Health { detail, .. })) if !detail.is_empty() => detail,
            _ if ports_note.is_empty() => state.detail.clone(),
            _ => format!("{ports_note}; {}", state.detail),
        };
        (self.restarts, self.ports) = (state.restarts, state.ports.clone());
        self.publish(shown, Some(state));
    }

    fn publish(&mut self, state: ReplicaState, process: Option<&ShimState>) {
        self.shared.board.set(ReplicaStatus {
            replica: self.replica,
            service: self.wanted.borrow().assigned.spec.name.clone(),
            state,
            pid: process.and_then(|process| process.pid),
            ports: self.ports.clone(),
            started_at: process.and_then(|process| process.started_at),
            restarts: self.restarts,
            detail: self.detail.clone(),
            log_dir: self.dir.join("log").to_string_lossy().into_owned(),
        });
        if let Some(settled) = self.settled.take() {
            // Nobody waits any more: fine.
            let _ = settled.send(());
        }
    }
}

/// Why a copy was not started. Nothing runs.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error(transparent)]
    Ports(#[from] PortError),
    #[error("the spec {0}")]
    Template(#[from] quorate_model::spec::TemplateError),
    #[error("cannot start it")]
    Io(#[from] io::Error),
}

/// The health of one run of a process.
struct RunHealth {
    pid: Option<u32>,
    target: Option<Target>,
    watch: HealthWatch,
}

impl RunHealth {
    /// Goes on watching, or begins anew if it is another process or another check.
    fn follow(before: Option<RunHealth>, state: &ShimState, assigned: &AssignedReplica, host: &str) -> RunHealth {
        let target = assigned.spec.health.as_ref().and_then(|check| {
            let port = state.ports.get(check.port.as_deref().or(assigned.spec.main_port())?)?;
            Some(Target { check: check.clone(), host: host.to_owned(), port: *port })
        });
        match before {
            Some(run) if run.pid == state.pid && run.target == target => run,
            _ => {
                let ran = state.started_at.map_or(Duration::ZERO, |at| wall_now().since(at));
                RunHealth { pid: state.pid, watch: HealthWatch::start(target.clone(), ran), target }
            }
        }
    }

    async fn changes(run: &mut Option<RunHealth>) {
        let Some(run) = run else { return pending().await };
        if run.watch.health.changed().await.is_err() {
            pending().await
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
