//! Updates as decided: the versions of a service, and the way from one to the next.
//!
//! A spec that changes what a service runs makes a version, and a deployment brings it out. What is in the log
//! is the stage of the deployment; which copies have been replaced is said by the replicas' own records. So a
//! leader that comes new goes on with the same copies. When a stage is over, or has failed, is the scheduler's
//! business.
//!
//! ```text
//! Canary ──▶ AwaitPromotion ──▶ Rolling ──▶ Verifying ──▶ Done
//!    └──────────────────────────▲
//! any of these ──it failed, or somebody said so──▶ RollingBack ──▶ RolledBack
//! any but the last two may be held, where there is nothing to go back to or nobody wants to
//! ```
//!
//! # Invariants
//! - A number means one program for as long as the service exists, and the next number was never used.
//! - A service is at the version of its deployment, or at `from` once that is given up.
//! - The version that a deployment would go back to is kept, whatever else is forgotten.
//! - Going back changes what runs, and not how many run, where, or which requests they get.

use crate::command::Refusal;
use crate::event::Happening;
use crate::id::{LogIndex, ServiceName};
use crate::spec::{Promote, ServiceSpec, SpecDocument};
use crate::state::{Change, Changes, ClusterState, ServiceRecord};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};

/// Versions of a service that are remembered.
pub const VERSIONS_KEPT: usize = 10;

/// What a service was, or is, by a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    pub service: ServiceName,
    pub version: u64,
    pub spec: ServiceSpec,
    /// Who applied it, where somebody is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub at: WallTime,
    /// The log entry that made it.
    pub made: LogIndex,
    #[serde(flatten)]
    pub trial: Trial,
}

/// What is known of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "trial", rename_all = "kebab-case")]
pub enum Trial {
    /// It is being brought out.
    Running,
    /// It ran everywhere, and well. The newest proof counts.
    Stable {
        proven: LogIndex,
    },
    Failed {
        why: String,
    },
    /// Another followed before it was proven.
    Superseded,
}

/// The newest update of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub service: ServiceName,
    /// What is brought out, or was.
    pub version: u64,
    /// The last stable version; `None`: there was none.
    pub from: Option<u64>,
    /// It ran well before: copies count as soon as they are healthy.
    pub proven: bool,
    pub stage: Stage,
    /// The log entry that began the stage.
    pub entered: LogIndex,
    pub since: WallTime,
    /// Why it was given up.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// It goes no further by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Halt>,
}

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A few copies run the version, and are looked at.
    Canary,
    /// They are well, and somebody has to say that the others may follow.
    AwaitPromotion,
    /// Batch by batch, all copies get it.
    Rolling,
    /// All have it, and it is not yet called stable.
    Verifying,
    Done,
    /// Copies go back to the last stable version.
    RollingBack,
    RolledBack,
}

/// Why an update goes no further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    pub why: String,
    /// Copies that were well: one more, and it goes on.
    pub ready: u32,
}

/// What the leader decides about a deployment. Nothing happens if it has moved on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "advance", rename_all = "kebab-case")]
pub enum Advance {
    To { stage: Stage },
    Hold { why: String, ready: u32 },
    Resume,
    RollBack { why: String },
}

/// What makes a deployment begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Another program.
    Applied,
    /// The same program once more.
    Restarted,
    /// A version that was there before.
    Returned,
}

impl Stage {
    /// Whether nothing more happens.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Stage::Done | Stage::RolledBack)
    }

    /// Whether copies go back to what ran before.
    #[must_use]
    pub fn goes_back(self) -> bool {
        matches!(self, Stage::RollingBack | Stage::RolledBack)
    }

    /// Whether this may follow by itself.
    fn may_become(self, next: Stage) -> bool {
        use Stage::{AwaitPromotion, Canary, Done, RolledBack, Rolling, RollingBack, Verifying};
        match self {
            Canary => matches!(next, AwaitPromotion | Rolling),
            AwaitPromotion | Done | RolledBack => false,
            Rolling => next == Verifying,
            Verifying => next == Done,
            RollingBack => next == RolledBack,
        }
    }
}

impl Deployment {
    fn to(&self, stage: Stage, changes: &Changes) -> Deployment {
        Deployment { stage, entered: changes.index, since: changes.now, held: None, ..self.clone() }
    }
}

impl ClusterState {
    /// What a version of a service would be now: its program, with the number of copies, the places, what is
    /// required of them, the schedule, and the ways of updating and scaling that the service has by now. `None`: nobody remembers it.
    #[must_use]
    pub fn former(&self, service: &ServiceName, version: u64) -> Option<ServiceRecord> {
        let known = self.services.get(service)?;
        let kept = self.versions.get(service)?.get(&version)?;
        let (replicas, place, update) = (known.spec.replicas, known.spec.place.clone(), known.spec.update.clone());
        let (requires, schedule) = (known.spec.requires.clone(), known.spec.schedule.clone());
        let spec = ServiceSpec { replicas, place, requires, update, schedule, ..kept.spec.clone() };
        // What fits one mode need not fit another. Autoscaling may go by resources that the version had not.
        let present = ServiceSpec { autoscale: known.spec.autoscale.clone(), ..spec.clone() };
        let fits =
            |spec: &ServiceSpec| SpecDocument { services: vec![spec.clone()], routes: Vec::new() }.validate().is_ok();
        let spec = [present, spec.settled(Some(replicas))].into_iter().find(fits).unwrap_or_else(|| kept.spec.clone());
        Some(ServiceRecord { spec, version, ..known.clone() })
    }

    /// The deployment of a service that is not over.
    #[must_use]
    pub fn deploying(&self, service: &ServiceName) -> Option<&Deployment> {
        self.deployments.get(service).filter(|deployment| !deployment.stage.is_over())
    }

    /// What a service becomes again if its update fails. `None`: there is no update, or it goes back already.
    #[must_use]
    pub fn fallback(&self, service: &ServiceName) -> Option<ServiceRecord> {
        let open = self.deploying(service).filter(|open| !open.stage.goes_back())?;
        self.former(service, open.from?)
    }

    /// A number that no version of the service had.
    pub(crate) fn next_version(&self, service: &ServiceName) -> u64 {
        let kept = self.versions.get(service).and_then(|versions| versions.keys().last()).copied();
        let known = self.services.get(service).map(|known| known.version);
        kept.max(known).unwrap_or(0) + 1
    }

    /// Brings out what runs already, in new processes.
    pub(crate) fn restart(&self, changes: &mut Changes, service: &ServiceRecord) {
        let name = service.spec.name.clone();
        let again = ServiceRecord { version: self.next_version(&name), ..service.clone() };
        changes.event(Happening::ServiceRestarted { service: name });
        self.deploy(changes, again, Cause::Restarted);
    }

    /// Begins to bring out what `record` is.
    pub(crate) fn deploy(&self, changes: &mut Changes, record: ServiceRecord, cause: Cause) {
        let (name, version) = (record.spec.name.clone(), record.version);
        let known = self.services.get(&name);
        let before = self.deployments.get(&name);
        let open = before.filter(|before| !before.stage.is_over());
        let from = match open {
            // What ran everywhere is better than nothing, though it had little time to prove itself.
            Some(open) if open.stage == Stage::Verifying => open.from.or(Some(open.version)),
            Some(open) => open.from,
            None => known.map(|known| known.version),
        };
        let kept = self.versions.get(&name);
        let has = |version: &u64| kept.is_some_and(|kept| kept.contains_key(version));
        // The cluster's data may be older than deployments.
        if let Some(known) = known.filter(|known| !has(&known.version)) {
            changes.version(known, Trial::Stable { proven: changes.index });
        }
        let overtaken = open.and_then(|open| kept?.get(&open.version)).filter(|kept| kept.trial == Trial::Running);
        if let Some(overtaken) = overtaken {
            changes.list.push(Change::Version(VersionRecord { trial: Trial::Superseded, ..overtaken.clone() }));
        }
        if !has(&version) {
            changes.version(&record, Trial::Running);
        }
        let needed = [Some(version), from, known.map(|known| known.version)];
        let all = kept.into_iter().flat_map(|kept| kept.keys()).copied();
        let surplus = (kept.map_or(0, |kept| kept.len()) + usize::from(!has(&version))).saturating_sub(VERSIONS_KEPT);
        for version in all.filter(|version| !needed.contains(&Some(*version))).take(surplus) {
            changes.list.push(Change::VersionGone { service: name.clone(), version });
        }
        let was_stable = kept.and_then(|kept| kept.get(&version)).map(|kept| &kept.trial);
        let proven = match cause {
            Cause::Applied => false,
            Cause::Restarted => open.is_none_or(|open| open.stage == Stage::Verifying),
            Cause::Returned => matches!(was_stable, Some(Trial::Stable { .. })),
        };
        let has_canaries = record.spec.update.canary > 0 && cause == Cause::Applied && from.is_some();
        let stage = if has_canaries { Stage::Canary } else { Stage::Rolling };
        let (entered, since) = (changes.index, changes.now);
        let deployment =
            Deployment { service: name, version, from, proven, stage, entered, since, why: String::new(), held: None };
        changes.list.push(Change::Service(record));
        changes.deployment(deployment);
    }

    /// Puts a service back to the version before its deployment. `false`: there is none.
    fn back_out(&self, changes: &mut Changes, deployment: &Deployment, why: &str) -> bool {
        let name = &deployment.service;
        let Some(former) = deployment.from.and_then(|from| self.former(name, from)) else { return false };
        if let Some(kept) = self.versions.get(name).and_then(|kept| kept.get(&deployment.version)) {
            let trial = match &kept.trial {
                // It was well once, and may be again.
                Trial::Stable { proven } => Trial::Stable { proven: *proven },
                Trial::Running | Trial::Superseded | Trial::Failed { .. } => Trial::Failed { why: why.to_owned() },
            };
            changes.list.push(Change::Version(VersionRecord { trial, ..kept.clone() }));
        }
        changes.list.push(Change::Service(former));
        let back = deployment.to(Stage::RollingBack, changes);
        changes.deployment(Deployment { why: why.to_owned(), ..back });
        true
    }

    pub(crate) fn advance(&self, changes: &mut Changes, service: &ServiceName, advance: &Advance) {
        let Some(deployment) = self.deploying(service) else { return };
        match advance {
            Advance::To { stage } if deployment.stage.may_become(*stage) => {
                let next = deployment.to(*stage, changes);
                let kept = self.versions.get(service).and_then(|kept| kept.get(&deployment.version));
                if let Some(kept) = kept.filter(|_| *stage == Stage::Done) {
                    let trial = Trial::Stable { proven: changes.index };
                    changes.list.push(Change::Version(VersionRecord { trial, ..kept.clone() }));
                }
                changes.deployment(next);
            }
            Advance::Hold { why, ready } if deployment.held.is_none() => self.halt(changes, deployment, why, *ready),
            Advance::Resume if deployment.held.is_some() => {
                let resumed = deployment.to(deployment.stage, changes);
                let (service, version) = (service.clone(), deployment.version);
                changes.event(Happening::UpdateResumed { service, version });
                changes.list.push(Change::Deployment(resumed));
            }
            Advance::RollBack { why } if !deployment.stage.goes_back() => {
                if !self.back_out(changes, deployment, why) && deployment.held.is_none() {
                    self.halt(changes, deployment, why, 0);
                }
            }
            Advance::To { .. } | Advance::Hold { .. } | Advance::Resume | Advance::RollBack { .. } => {}
        }
    }

    fn halt(&self, changes: &mut Changes, deployment: &Deployment, why: &str, ready: u32) {
        let held = Some(Halt { why: why.to_owned(), ready });
        changes.list.push(Change::Deployment(Deployment { held, ..deployment.clone() }));
        let (service, version, why) = (deployment.service.clone(), deployment.version, why.to_owned());
        changes.event(Happening::UpdateHeld { service, version, why });
    }

    /// An operator wants an earlier version. `None`: the last stable one that is not the present one.
    pub(crate) fn roll_back(
        &self,
        changes: &mut Changes,
        service: &ServiceName,
        to: Option<u64>,
    ) -> Result<(), Refusal> {
        let known = self.service(service)?;
        let kept = self.versions.get(service);
        let none = || Refusal::NoVersion {
            service: service.clone(),
            version: to,
            known: kept.into_iter().flat_map(|kept| kept.keys()).copied().collect(),
        };
        let open = self.deploying(service).filter(|open| !open.stage.goes_back());
        if let Some(open) = open.filter(|open| open.from.is_some() && (to.is_none() || to == open.from)) {
            return if self.back_out(changes, open, ROLLED_BACK_BY_HAND) { Ok(()) } else { Err(none()) };
        }
        let proven = |kept: &&VersionRecord| match kept.trial {
            Trial::Stable { proven } if kept.version != known.version => Some(proven),
            Trial::Stable { .. } | Trial::Running | Trial::Failed { .. } | Trial::Superseded => None,
        };
        let last = || kept?.values().filter(|kept| proven(kept).is_some()).max_by_key(proven).map(|kept| kept.version);
        let version = to.or_else(last).ok_or_else(none)?;
        if version == known.version {
            return Ok(());
        }
        let former = self.former(service, version).ok_or_else(none)?;
        if let Some(vip) = &former.spec.vip {
            // Another may have got it since. While an update may go back by itself, nobody gets it.
            self.is_free(vip.address.ip(), |name| name == service)?;
        }
        self.deploy(changes, former, Cause::Returned);
        Ok(())
    }

    /// An operator wants a deployment to go on: canaries are good enough, or what held it is over.
    pub(crate) fn continue_update(&self, changes: &mut Changes, service: &ServiceName) -> Result<(), Refusal> {
        self.service(service)?;
        let open = self.deploying(service).ok_or_else(|| Refusal::NoUpdate { service: service.clone() })?;
        match open.stage {
            Stage::Canary | Stage::AwaitPromotion => changes.deployment(open.to(Stage::Rolling, changes)),
            _ if open.held.is_some() => self.advance(changes, service, &Advance::Resume),
            // It goes on anyway.
            Stage::Rolling | Stage::Verifying | Stage::RollingBack | Stage::Done | Stage::RolledBack => {}
        }
        Ok(())
    }

    /// An operator wants no more of a deployment.
    pub(crate) fn abort_update(&self, changes: &mut Changes, service: &ServiceName) -> Result<(), Refusal> {
        self.service(service)?;
        let open = self.deploying(service).ok_or_else(|| Refusal::NoUpdate { service: service.clone() })?;
        if open.stage.goes_back() || self.back_out(changes, open, ABORTED_BY_HAND) {
            return Ok(());
        }
        Err(Refusal::NoVersion { service: service.clone(), version: None, known: Vec::new() })
    }

    /// What is to follow once canaries are well.
    #[must_use]
    pub fn after_canaries(spec: &ServiceSpec) -> Stage {
        match spec.update.promote {
            Promote::Auto => Stage::Rolling,
            Promote::Manual => Stage::AwaitPromotion,
        }
    }
}

const ROLLED_BACK_BY_HAND: &str = "somebody asked for the version before";
const ABORTED_BY_HAND: &str = "somebody aborted it";

impl Changes {
    fn version(&mut self, record: &ServiceRecord, trial: Trial) {
        self.list.push(Change::Version(VersionRecord {
            service: record.spec.name.clone(),
            version: record.version,
            spec: record.spec.clone(),
            by: None,
            at: self.now,
            made: self.index,
            trial,
        }));
    }

    /// A deployment in a new stage. That a service is made is told elsewhere.
    fn deployment(&mut self, deployment: Deployment) {
        if deployment.from.is_some() {
            let Deployment { service, version, stage, why, from, .. } = deployment.clone();
            self.event(Happening::UpdateStage { service, version, from, stage, why });
        }
        self.list.push(Change::Deployment(deployment));
    }
}

#[cfg(test)]
mod tests;
