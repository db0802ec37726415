//! What the health check of a copy asks, and how long one answer holds: for one run of a process.

use super::{Runner, Shared, located};
use crate::driver::Driver;
use crate::health::exec::Exec;
use crate::health::sql::Sql;
use crate::health::{HealthWatch, Place, Target, Verdict};
use crate::launch::{Given, Launch};
use crate::protocol::{ShimState, wall_now};
use quorate_model::assignment::AssignedReplica;
use quorate_model::secret::Secret;
use quorate_model::spec::HealthCheck;
use std::future::pending;
use std::time::Duration;

impl<D: Driver> Runner<D> {
    /// What its health check asks.
    pub(super) fn target(
        &self,
        assigned: &AssignedReplica,
        state: &ShimState,
        before: Option<&RunHealth>,
    ) -> Option<Target> {
        let check = assigned.spec.health.as_ref()?;
        if check.exec.is_none() && check.sql.is_none() {
            let at = Place::Port { host: self.shared.host.clone(), port: port_of(check, assigned, state)? };
            return Some(Target { check: check.clone(), at });
        }
        // A secret that has changed is for the replica's successor.
        let same = before.filter(|run| run.pid == state.pid).and_then(|run| run.target.clone());
        let same = same.filter(|target| target.check == *check && target.at != Place::Unknown);
        let filled = || self.filled_check(check, assigned, state).unwrap_or(Place::Unknown);
        same.or_else(|| Some(Target { check: check.clone(), at: filled() }))
    }

    /// A check that has placeholders. What was filled when the replica was started can be filled again, unless a secret
    /// is not here yet: artifacts of replicas are kept.
    fn filled_check(&self, check: &HealthCheck, assigned: &AssignedReplica, state: &ShimState) -> Option<Place> {
        let Shared { node_name, artifacts, secrets, host, .. } = &*self.shared;
        let artifacts = located(artifacts, &assigned.spec).ok()?;
        let secrets = Secret::new(secrets.borrow().of(assigned).ok()?);
        let given = Given { artifacts: &artifacts, secrets: &secrets };
        let launch = self.filled(assigned, state.ports.clone(), given).ok()?;
        if let Some(sql) = &check.sql {
            let fill = |password: &String| launch.fill_secret(password, node_name, &self.dir, given).map(Secret::new);
            return Some(Place::Sql(Sql {
                host: host.clone(),
                port: port_of(check, assigned, state)?,
                query: sql.query.clone(),
                user: sql.user.clone(),
                password: sql.password.as_ref().map(fill).transpose().ok()?,
                database: sql.database.clone(),
            }));
        }
        let command = launch.fill(check.exec.as_ref()?, node_name, &self.dir, &artifacts).ok()?;
        let Launch { env, secret_env, .. } = launch;
        Some(Place::Exec(Exec { command, env, secret_env, dir: self.dir.join("work") }))
    }
}

/// The port that a check asks.
fn port_of(check: &HealthCheck, assigned: &AssignedReplica, state: &ShimState) -> Option<u16> {
    state.ports.get(check.port.as_deref().or(assigned.spec.main_port())?).copied()
}

/// The health of one run of a process.
pub(super) struct RunHealth {
    pub(super) pid: Option<u32>,
    target: Option<Target>,
    pub(super) watch: HealthWatch,
}

impl RunHealth {
    /// Goes on watching, or begins anew if it is another process or another check.
    pub(super) fn follow(before: Option<RunHealth>, state: &ShimState, target: Option<Target>) -> RunHealth {
        match before {
            Some(run) if run.pid == state.pid && run.target == target => run,
            _ => {
                let ran = state.started_at.map_or(Duration::ZERO, |at| wall_now().since(at));
                RunHealth { pid: state.pid, watch: HealthWatch::start(target.clone(), ran), target }
            }
        }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.watch.health.borrow().verdict == Verdict::Healthy
    }

    /// Whether its check cannot be made yet.
    pub(super) fn waits(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.at == Place::Unknown)
    }

    pub(super) async fn changes(run: &mut Option<RunHealth>) {
        let Some(run) = run else { return pending().await };
        if run.watch.health.changed().await.is_err() {
            pending().await
        }
    }
}
