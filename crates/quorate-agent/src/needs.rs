//! What services need of this node, looked after before they are to run here: artifacts are placed,
//! requirements are checked again and again, externals are logged in to, secrets are waited for, and what was found
//! is told.
//!
//! ```text
//! wanted ──▶ Keeper ─┬─ check (a task a requirement, every 10 s; every 3 s while it fails)
//!   told ◀──────────┴─ place (a thread an artifact, two at a time; again after a pause)
//! ```
//!
//! One requirement of many services is checked once, and one artifact is fetched once.
//!
//! # Invariants
//! - A service is told as prepared only for exactly the needs that were looked at.
//! - Nothing waits for the slowest: each result is told when it is there.
//! - What a replica of this node was started from is never removed.

mod check;
mod depot;
mod fetch;
mod logins;
pub(crate) mod s3;
mod tree;

pub use depot::PlaceError;
pub use fetch::FetchError;
pub use tree::{HashError, hash};

pub(crate) use depot::locate;
pub(crate) use fetch::authorities;

use crate::secrets::Secrets;
use depot::Depot;
use logins::Logins;
use quorate_model::need::{Artifact, Needs, NodeNeeds, Prepared, Requirement};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};

/// How often a requirement is checked that holds. What it costs is a look at the disk or one connection.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// How often one is checked that does not: somebody may be mending it.
const CHECK_FAILED_EVERY: Duration = Duration::from_secs(3);
/// The pause before an artifact is fetched again; it doubles up to the longest.
const FETCH_AGAIN_FIRST: Duration = Duration::from_secs(2);
const FETCH_AGAIN_LONGEST: Duration = Duration::from_secs(60);
/// How often it is looked whether what was placed is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Artifacts that are fetched at a time: services that run already need the network as well.
const FETCHES_MAX: usize = 2;

/// Looks after what is wanted, below the directory `root`, until `wanted` or `told` is closed.
pub async fn prepare(
    root: PathBuf,
    mut wanted: watch::Receiver<Arc<NodeNeeds>>,
    mut secrets: watch::Receiver<Arc<Secrets>>,
    told: watch::Sender<Arc<Vec<Prepared>>>,
) {
    let mut keeper = Keeper {
        depot: Depot::new(root),
        wanted: Arc::default(),
        checks: BTreeMap::new(),
        logins: Logins::default(),
        places: BTreeMap::new(),
        tasks: JoinSet::new(),
        fetching: Arc::new(Semaphore::new(FETCHES_MAX)),
        secrets: secrets.clone(),
    };
    wanted.mark_changed();
    loop {
        let due = keeper.next_due();
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    break;
                }
                let newest = wanted.borrow_and_update().clone();
                keeper.want(newest).await;
            }
            Some(done) = keeper.tasks.join_next() => match done {
                Ok(done) => keeper.done(done),
                Err(error) => tracing::error!(%error, "a check of what services need failed"),
            },
            changed = secrets.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            () = sleep_until(due) => {}
            () = told.closed() => break,
        }
        keeper.begin_what_is_due();
        let now = Arc::new(keeper.prepared(&secrets.borrow_and_update()));
        told.send_if_modified(|last| {
            let differs = *last != now;
            *last = now;
            differs
        });
    }
}

struct Keeper {
    depot: Depot,
    wanted: Arc<NodeNeeds>,
    checks: BTreeMap<Requirement, Look>,
    logins: Logins,
    places: BTreeMap<Artifact, Look>,
    tasks: JoinSet<Done>,
    fetching: Arc<Semaphore>,
    secrets: watch::Receiver<Arc<Secrets>>,
}

/// The state of one thing that is looked after.
struct Look {
    busy: bool,
    /// When it is looked at next.
    due: Instant,
    /// `None`: not yet. Then what is wrong, if anything.
    found: Option<Option<String>>,
    /// Failures in a row.
    failed: u32,
}

impl Look {
    fn new() -> Look {
        Look { busy: false, due: Instant::now(), found: None, failed: 0 }
    }

    fn done(&mut self, problem: Option<String>, well: Duration, unwell: impl Fn(u32) -> Duration) {
        self.failed = if problem.is_some() { self.failed.saturating_add(1) } else { 0 };
        let pause = if problem.is_some() { unwell(self.failed) } else { well };
        (self.busy, self.due, self.found) = (false, Instant::now() + pause, Some(problem));
    }
}

enum Done {
    Checked(Requirement, Option<String>),
    Placed(Artifact, Option<String>),
    LoggedIn(Box<logins::Login>, Option<String>),
}

impl Keeper {
    async fn want(&mut self, wanted: Arc<NodeNeeds>) {
        let all = || wanted.services.values().flatten();
        let requires: BTreeSet<&Requirement> = all().flat_map(|needs| &needs.requires).collect();
        let artifacts: BTreeSet<&Artifact> = all().flat_map(|needs| &needs.artifacts).collect();
        // What is being done goes on: its result finds nobody who waits for it.
        self.checks.retain(|requirement, _| requires.contains(requirement));
        self.places.retain(|artifact, _| artifacts.contains(artifact));
        self.logins.want(all().flat_map(|needs| needs.externals.values().flatten()));
        for requirement in requires.into_iter().filter(|it| !matches!(it, Requirement::External(_))) {
            self.checks.entry(requirement.clone()).or_insert_with(Look::new);
        }
        for artifact in artifacts {
            self.places.entry(artifact.clone()).or_insert_with(Look::new);
        }
        self.wanted = wanted.clone();
        let depot = self.depot.clone();
        let tidied = spawn_blocking(move || depot.tidy(&wanted)).await.map_err(std::io::Error::other);
        if let Err(error) = tidied.and_then(|tidied| tidied) {
            tracing::warn!(%error, "cannot tidy up among the artifacts");
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Checked(requirement, problem) => {
                if let Some(look) = self.checks.get_mut(&requirement) {
                    look.done(problem, CHECK_EVERY, |_| CHECK_FAILED_EVERY);
                }
            }
            Done::LoggedIn(login, problem) => self.logins.done(&login, problem),
            Done::Placed(artifact, problem) => {
                if let Some(look) = self.places.get_mut(&artifact) {
                    look.done(problem, LOOK_AGAIN, |failed| {
                        FETCH_AGAIN_FIRST.saturating_mul(1 << (failed - 1).min(10)).min(FETCH_AGAIN_LONGEST)
                    });
                }
            }
        }
    }

    fn begin_what_is_due(&mut self) {
        let now = Instant::now();
        self.logins.begin_what_is_due(now, &self.secrets.borrow(), &mut self.tasks);
        for (requirement, look) in self.checks.iter_mut().filter(|(_, look)| !look.busy && look.due <= now) {
            look.busy = true;
            let requirement = requirement.clone();
            self.tasks.spawn(async move {
                let problem = check::check(&requirement).await;
                Done::Checked(requirement, problem)
            });
        }
        // Two of one content would write the same file.
        let mut busy: BTreeSet<_> =
            self.places.iter().filter(|(_, look)| look.busy).map(|(artifact, _)| artifact.sha256).collect();
        for (artifact, look) in self.places.iter_mut().filter(|(_, look)| !look.busy && look.due <= now) {
            if !busy.insert(artifact.sha256) {
                continue;
            }
            look.busy = true;
            let (artifact, depot, fetching) = (artifact.clone(), self.depot.clone(), self.fetching.clone());
            let secrets = self.secrets.clone();
            self.tasks.spawn(async move {
                let _turn = fetching.acquire_owned().await;
                let problem = place(depot, artifact.clone(), &secrets).await.err();
                if let Some(problem) = &problem {
                    tracing::warn!(
                        artifact = artifact.name,
                        source = artifact.source,
                        problem,
                        "an artifact is not placed"
                    );
                }
                Done::Placed(artifact, problem)
            });
        }
    }

    fn next_due(&self) -> Instant {
        let looks = self.checks.values().chain(self.places.values()).chain(self.logins.looks());
        let due = looks.filter(|look| !look.busy).map(|look| look.due).min();
        // One that waits for another of the same content is due already; that one's end wakes us.
        let soon = Instant::now() + Duration::from_millis(50);
        due.map_or_else(|| Instant::now() + LOOK_AGAIN, |due| due.max(soon))
    }

    fn prepared(&self, secrets: &Secrets) -> Vec<Prepared> {
        let all = self.wanted.services.iter().flat_map(|(service, all)| all.iter().map(move |needs| (service, needs)));
        let one = |(service, needs): (&_, &Needs)| {
            let lacks = self.lacks(needs, secrets)?;
            Some(Prepared { service: Clone::clone(service), needs: needs.key(), lacks })
        };
        all.filter_map(one).collect()
    }

    /// `None` while something was not looked at even once.
    fn lacks(&self, needs: &Needs, secrets: &Secrets) -> Option<Vec<String>> {
        let mut lacks = Vec::new();
        for artifact in &needs.artifacts {
            match &self.places.get(artifact)?.found {
                None => lacks.push(format!("artifact {}, which is being fetched", artifact.name)),
                Some(Some(problem)) => lacks.push(format!("artifact {} ({problem})", artifact.name)),
                Some(None) => {}
            }
        }
        for (name, external) in &needs.externals {
            match external {
                None => lacks.push(format!("external {name} (there is none: `quorate external add {name}`)")),
                // Its secret, which is not here yet, is told below.
                Some(external) => match self.logins.found(external, secrets) {
                    None => {}
                    Some(found) => {
                        lacks.extend(found?.iter().map(|problem| format!("external {name} ({problem})")));
                    }
                },
            }
        }
        for requirement in needs.requires.iter().filter(|it| !matches!(it, Requirement::External(_))) {
            if let Some(problem) = self.checks.get(requirement)?.found.as_ref()? {
                lacks.push(format!("{requirement} ({problem})"));
            }
        }
        for (name, stamp) in &needs.secrets {
            match stamp {
                None => lacks.push(format!("secret {name} (there is none: `quorate secret set {name}`)")),
                Some(stamp) if secrets.0.get(name).is_none_or(|held| held.stamp != *stamp) => {
                    lacks.push(format!("secret {name}, which no manager has given it yet"));
                }
                Some(_) => {}
            }
        }
        Some(lacks)
    }
}

/// Brings an artifact to its place, or says in words why not.
async fn place(depot: Depot, artifact: Artifact, secrets: &watch::Receiver<Arc<Secrets>>) -> Result<(), String> {
    let name = artifact.s3.as_ref().and_then(|s3| s3.secret_key.as_ref());
    let key = name.map(|name| {
        let held = secrets.borrow().0.get(name).map(|held| held.value.clone());
        held.ok_or_else(|| format!("it waits for the secret {name}"))
    });
    let key = key.transpose()?;
    match spawn_blocking(move || depot.place(&artifact, key.as_ref())).await {
        Ok(placed) => placed.map_err(|error| in_full(&error)),
        Err(error) => Err(error.to_string()),
    }
}

/// A message with its causes.
fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
