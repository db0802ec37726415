//! What a copy is said to be: of what its shim says, what its check says and what is wanted of it, one status.

use super::Runner;
use super::checks::RunHealth;
use crate::driver::Driver;
use crate::health::{Health, Verdict};
use crate::protocol::{ProcessState, Seen, ShimState};
use quorate_agent_core::desired::Wanted;
use quorate_model::assignment::Phase;
use quorate_model::observed::{Casting, Part, ReplicaState, ReplicaStatus};
use quorate_model::spec::Mode;

impl<D: Driver> Runner<D> {
    /// Puts what a running copy says, and what is wanted of it, into one status.
    pub(super) fn report(
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
        let of_check = match verdict {
            Verdict::Unasked | Verdict::NotYet => ReplicaState::Starting,
            Verdict::Healthy => ReplicaState::Healthy,
            Verdict::Unhealthy => ReplicaState::Unhealthy,
        };
        let is_kept = !wanted.assigned.spec.driver.is_process();
        let process = match state.state {
            ProcessState::Running if is_kept => match state.kept.as_ref().map(|kept| kept.seen) {
                None | Some(Seen::Starting) => ReplicaState::Starting,
                // Its check may know more than whoever should.
                Some(Seen::Up | Seen::Promoted | Seen::Unknown) => of_check,
                Some(Seen::Failing | Seen::Stopping | Seen::Ended | Seen::Cannot) => ReplicaState::Unhealthy,
            },
            ProcessState::Running => of_check,
            ProcessState::BackingOff => ReplicaState::BackingOff,
            ProcessState::CannotStart | ProcessState::GaveUp => ReplicaState::Failed,
            ProcessState::Stopping | ProcessState::Stopped => ReplicaState::Stopping,
        };
        let shown = match wanted.phase() {
            Phase::Stop => ReplicaState::Stopping,
            Phase::Drain => ReplicaState::Draining,
            Phase::Run => process,
        };
        let unfenced = state.lease.as_ref().and_then(|lease| lease.fencing).filter(|fencing| !fencing.is_claimed());
        let kept = state.kept.as_ref().filter(|kept| !kept.detail.is_empty());
        self.detail = match (process, health) {
            (_, _) if state.state == ProcessState::Running && kept.is_some() => {
                kept.map(|kept| kept.detail.clone()).unwrap_or_default()
            }
            (ReplicaState::Healthy, _) => {
                let fencing = unfenced.map(|fencing| fencing.to_string());
                let notes = fencing.into_iter().chain(Some(state.note.clone()).filter(|note| !note.is_empty()));
                notes.collect::<Vec<_>>().join("; ")
            }
            (_, Some(Health { detail, .. })) if !detail.is_empty() => detail,
            _ if ports_note.is_empty() => state.detail.clone(),
            _ => format!("{ports_note}; {}", state.detail),
        };
        (self.restarts, self.ports) = (state.restarts, state.ports.clone());
        self.publish(shown, Some(state));
    }

    /// Publishes with a note before the detail, which stays what it is.
    pub(super) fn publish_with(&mut self, note: &str, state: ReplicaState) {
        let detail = self.detail.clone();
        self.detail = if detail.is_empty() { note.to_owned() } else { format!("{note}; {detail}") };
        self.publish(state, None);
        self.detail = detail;
    }

    /// What it is among the copies of an active-passive service. Of one that does not run, its node promises what its
    /// assignment says: that cannot be taken back.
    fn casting(&self, process: Option<&ShimState>) -> Option<Casting> {
        let assigned = &self.wanted.borrow().assigned;
        if assigned.spec.mode != Mode::ActivePassive {
            return None;
        }
        let given_back = assigned.lease.filter(|lease| lease.yields).map(|lease| lease.epoch);
        match process.map(|process| process.casting.or_else(|| cold_casting(process))) {
            Some(Some(casting)) => {
                let is_over = casting.part == Part::Standby && Some(casting.yielded) == given_back;
                Some(Casting { yielded: if is_over { casting.yielded } else { 0 }, ..casting })
            }
            Some(None) | None => {
                let yielded = given_back.filter(|_| self.is_gone).unwrap_or_default();
                Some(Casting { part: Part::Standby, epoch: 0, yielded })
            }
        }
    }

    pub(super) fn publish(&mut self, state: ReplicaState, process: Option<&ShimState>) {
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
            fencing: process.and_then(|process| process.lease.as_ref()).and_then(|lease| lease.fencing),
            casting: self.casting(process),
        });
        if let Some(settled) = self.settled.take() {
            // Nobody waits any more: fine.
            let _ = settled.send(());
        }
    }
}

/// The part of a copy that runs only to be the active one.
fn cold_casting(process: &ShimState) -> Option<Casting> {
    let epoch = process.lease.as_ref()?.epoch;
    let part = match process.state {
        ProcessState::Running => Part::Active,
        ProcessState::Stopping | ProcessState::Stopped => Part::Demoting,
        ProcessState::BackingOff | ProcessState::CannotStart | ProcessState::GaveUp => Part::Promoting,
    };
    Some(Casting { part, epoch, yielded: 0 })
}
