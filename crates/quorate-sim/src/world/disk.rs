//! What stands for the server's log thread, apply thread and checkpoint thread: when their work is
//! done. The work itself is the shipped code's.

use super::{What, World, chain};
use crate::machine::{ApplyJob, Durable, LogJob, LogWork, Machine, entry_of_consensus, entry_of_log};
use crate::seen::{Durably, Seen};
use quorate_model::id::LogIndex;
use quorate_node::Event;
use quorate_node::consensus::{CommittedEntry, Content};
use quorate_store::databases::{Item, ToApply};
use quorate_store::log::{self, HardState};
use quorate_store::storage::DURABLE_EVERY;
use std::time::Duration;

impl World {
    pub(super) fn drive_log(&mut self, n: usize) {
        let (life, slowness) = (self.machines[n].life, self.machines[n].slowness);
        let Machine { process: Some(process), promised, .. } = &mut self.machines[n] else { return };
        if process.log_work.is_some() {
            return;
        }
        let mut written = Vec::new();
        let mut work = None;
        let mut failed = None;
        while let Some(job) = process.log_jobs.pop_front() {
            match job {
                LogJob::Append(append) => {
                    let number = append.number;
                    let vote = append.hard_state.map(|(term, vote, _)| (term, vote));
                    let entries: Vec<log::LogEntry> = append.entries.into_iter().map(entry_of_log).collect();
                    let last = entries.last().map(|entry| entry.index);
                    let hard_state = append.hard_state.map(|(term, vote, commit)| HardState { term, vote, commit });
                    let append = log::Append { hard_state, entries };
                    if let Some(first) = append.entries.first() {
                        promised.last = promised.last.min(first.index.0 - 1);
                    }
                    if let Err(error) = process.log.write(&append) {
                        failed = Some(chain(&error));
                        break;
                    }
                    written.extend(append.entries);
                    work = Some(match work {
                        Some(LogWork::Sync { last: before, vote: known, .. }) => {
                            LogWork::Sync { number, last: last.or(before), vote: vote.or(known) }
                        }
                        _ => LogWork::Sync { number, last, vote },
                    });
                }
                // Reads and resets must see what came before them, durably.
                other if work.is_none() => {
                    work = Some(LogWork::Other(other));
                    break;
                }
                other => {
                    process.log_jobs.push_front(other);
                    break;
                }
            }
        }
        if let Some(why) = failed {
            self.gives_up(n, &format!("cannot write the log: {why}"));
            return;
        }
        if work.is_some() {
            process.log_work = work;
            if !written.is_empty() {
                self.show(&Seen::Written { machine: n, entries: &written });
            }
            let took = self.dice.span(self.scenario.storage.sync) * slowness;
            self.later(took, What::LogDone { machine: n, life });
        }
    }

    pub(super) fn log_done(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        if let Some(again) = self.machines[n].paused(self.now) {
            self.at(again, What::LogDone { machine: n, life });
            return;
        }
        let Machine { process: Some(process), promised, .. } = &mut self.machines[n] else { return };
        let Some(work) = process.log_work.take() else { return };
        let durable = if let LogWork::Other(LogJob::Shorten { durable }) = work { durable } else { LogIndex(0) };
        let done = match work {
            LogWork::Sync { number, last, vote } => process.log.sync().map_err(|error| chain(&error)).map(|()| {
                let Durable { term, vote: voted, last: before } = process.durable;
                let (term, vote) = vote.unwrap_or((term, voted));
                process.durable = Durable { term, vote, last: last.map_or(before, |last| last.0) };
                *promised = process.durable;
                self.trace.say(self.now, format_args!("n{} has synced {number}", n + 1));
                Some(Event::Persisted { number })
            }),
            LogWork::Other(LogJob::Read { from, to_exclusive, bytes_max }) => {
                process.log.read(from, to_exclusive, bytes_max).map_err(|error| chain(&error)).map(|entries| {
                    let entries = entries.into_iter().map(entry_of_consensus).collect::<Vec<_>>();
                    self.trace.say(self.now, format_args!("n{} read {:?}", n + 1, entries));
                    Some(Event::LogRead { entries })
                })
            }
            LogWork::Other(LogJob::Shorten { durable }) => process
                .log
                .shorten(durable)
                .map_err(|error| chain(&error))
                .map(|first| first.map(|first| Event::LogPurged { first })),
            LogWork::Other(LogJob::Reset { index, term, hard_state: (hard_term, vote, commit) }) => {
                let hard_state = HardState { term: hard_term, vote, commit };
                process.log.begin_after(index, term, hard_state).map_err(|error| chain(&error)).map(|()| {
                    process.durable = Durable { term: hard_term, vote, last: index.0 };
                    *promised = process.durable;
                    let state = Box::new(process.databases.state().clone());
                    Some(Event::SnapshotInstalled { index, state })
                })
            }
            LogWork::Other(LogJob::Append(_)) => unreachable!("appends are synced together"),
        };
        match done {
            Ok(event) => {
                let unsynced = self.machines[n].unsynced_log();
                self.show(&Seen::CalledDurable { machine: n, what: Durably::Log, unsynced });
                match event {
                    Some(Event::LogPurged { first }) => {
                        self.show(&Seen::Shortened { machine: n, first, durable });
                        self.ambush(n, 20);
                    }
                    Some(Event::SnapshotInstalled { .. }) => self.ambush(n, 250),
                    _ => {}
                }
                if let Some(event) = event {
                    self.tell(n, event);
                }
                self.drive_log(n);
            }
            Err(why) => self.gives_up(n, &format!("the log failed: {why}")),
        }
    }

    pub(super) fn drive_apply(&mut self, n: usize) {
        let (life, slowness) = (self.machines[n].life, self.machines[n].slowness);
        let most = self.dice.between(1, self.scenario.storage.batch_max as u64);
        let most = usize::try_from(most).expect("small");
        let Some(process) = &mut self.machines[n].process else { return };
        if process.apply_work.is_some() {
            return;
        }
        let Some(first) = process.apply_jobs.pop_front() else { return };
        let work = match first {
            ApplyJob::Apply(mut entries) => {
                while entries.len() < most
                    && let Some(ApplyJob::Apply(_)) = process.apply_jobs.front()
                    && let Some(ApplyJob::Apply(more)) = process.apply_jobs.pop_front()
                {
                    entries.extend(more);
                }
                if entries.len() > most {
                    let rest = entries.split_off(most);
                    process.apply_jobs.push_front(ApplyJob::Apply(rest));
                }
                ApplyJob::Apply(entries)
            }
            install => install,
        };
        process.apply_work = Some(work);
        let took = self.dice.span(self.scenario.storage.apply) * slowness + self.machines[n].apply_longer;
        self.later(took, What::ApplyDone { machine: n, life });
    }

    pub(super) fn apply_done(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        if let Some(again) = self.machines[n].paused(self.now) {
            self.at(again, What::ApplyDone { machine: n, life });
            return;
        }
        let wall = self.machines[n].clock.wall(self.now);
        self.machines[n].volume.set_now(wall.as_micros());
        let process = self.machines[n].process.as_mut().expect("alive");
        match process.apply_work.take() {
            Some(ApplyJob::Apply(entries)) => self.apply(n, entries),
            Some(ApplyJob::Install { incoming, manifest, hard_state }) => {
                self.install(n, &incoming, &manifest, hard_state);
            }
            None => {}
        }
        if self.alive(n, life) {
            self.drive_apply(n);
        }
    }

    pub(super) fn apply(&mut self, n: usize, entries: Vec<CommittedEntry>) {
        let process = self.machines[n].process.as_mut().expect("alive");
        let batch: Vec<ToApply> = entries
            .into_iter()
            .map(|entry| ToApply {
                index: entry.index,
                term: entry.term,
                item: match entry.content {
                    Content::Data(data) => Item::Data(data),
                    Content::Configuration(configuration) => {
                        Item::Membership { voters: configuration.to_bytes().into() }
                    }
                },
            })
            .collect();
        let applied = match process.databases.apply(&batch) {
            Ok(applied) => applied,
            Err(error) => {
                let why = chain(&error);
                self.gives_up(n, &format!("cannot apply the log: {why}"));
                return;
            }
        };
        process.applied = batch.last().map_or(process.applied, |entry| entry.index);
        for entry in &applied {
            let digest = entry.digests.map_or(0, |[system, main]| system ^ main.rotate_left(1));
            self.trace.note(self.now, "applied", n, entry.index.0, digest);
            if self.violation.is_none() {
                self.violation = self.invariants.see(self.now, &Seen::Applied { machine: n, entry }).err();
            }
        }
        let process = self.machines[n].process.as_mut().expect("alive");
        let seen = Seen::BatchApplied { machine: n, state: process.databases.state() };
        if self.violation.is_none() {
            self.violation = self.invariants.see(self.now, &seen).err();
        }
        let mut answered = Vec::new();
        let mut entries = Vec::with_capacity(applied.len());
        for entry in applied {
            if let Some(id) = entry.request_id
                && let Some(client) = process.waiters.remove(&id)
            {
                answered.push((client, id, entry.done_at, entry.outcome.clone()));
            }
            entries.push(quorate_node::AppliedEntry {
                index: entry.index,
                request_id: entry.request_id,
                outcome: entry.outcome,
                changes: entry.changes,
                digests: entry.digests,
            });
        }
        let due = process.databases.durable_due(self.now.since(process.durable_at));
        self.tell(n, Event::Applied { entries });
        for (client, request, index, outcome) in answered {
            self.answered(n, client, request, index, &outcome);
        }
        if due {
            self.make_durable(n);
        }
    }

    pub(super) fn make_durable(&mut self, n: usize) {
        let Some(process) = &mut self.machines[n].process else { return };
        process.durable_at = self.now;
        match process.databases.make_durable() {
            Ok(durable) => {
                process.log_jobs.push_back(LogJob::Shorten { durable });
                let unsynced = self.machines[n].unsynced_databases();
                self.show(&Seen::CalledDurable { machine: n, what: Durably::Databases, unsynced });
                self.drive_log(n);
            }
            Err(error) => {
                let why = chain(&error);
                self.gives_up(n, &format!("cannot make the databases durable: {why}"));
            }
        }
    }

    pub(super) fn housekeeping(&mut self, n: usize, life: u64) {
        if !self.alive(n, life) {
            return;
        }
        let next = self.dice.between(3_000, 40_000);
        self.later(Duration::from_millis(next), What::Housekeeping { machine: n, life });
        if self.machines[n].paused_until > self.now {
            return;
        }
        let process = self.machines[n].process.as_mut().expect("alive");
        if let Err(error) = process.checkpointer.checkpoint()
            && error.is_of_the_disk()
        {
            let why = chain(&error);
            self.gives_up(n, &format!("a checkpoint failed: {why}"));
            return;
        }
        if self.now.since(process.durable_at) >= DURABLE_EVERY {
            self.make_durable(n);
        }
    }
}
