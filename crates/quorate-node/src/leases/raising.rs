//! The leader's side: what a silent holder held is fenced and raised.
//!
//! All of it can be done anew by any leader at any time: what counts is in the log and with the voters. Nothing is
//! kept from one term to the next, or from one set of voters to the next.
//!
//! # Invariants
//! - Answers count in the term and for the question that they were asked for. The same question is asked again of
//!   those who have not answered, however long an answer takes; another one follows when the wait is over that
//!   the answers spoke of, or when the lease is fenced.
//! - A lease is left alone until it could have ended since this node knows of it: whoever was just given it has not
//!   renewed it yet.

use super::{Lease, Voting};
use crate::wire::{Ages, Renewal};
use quorate_lease::{Age, Electorate, Life, Verdict, verdict};
use quorate_model::id::{NodeId, ServiceName, Term};
use quorate_model::lease::{Holder, LeaseCommand, LeaseRecord};
use quorate_model::planted::{Bug, planted};
use quorate_model::state::ClusterState;
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often the leader looks whether there is reason to ask, and the pause before it asks again those who
/// have not answered, or not as it takes.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Less is not worth another question.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Raising {
    /// Who holds which epoch of each lease, and since when this node knows it.
    known: BTreeMap<ServiceName, (u64, Holder, Timestamp)>,
    /// Nodes that lost a lease by silence, and when.
    given_up: BTreeMap<NodeId, Timestamp>,
    office: Office,
}

/// What is known in one term, of one set of voters.
#[derive(Debug, Default)]
struct Office {
    term: Term,
    voters: Electorate,
    /// The number of the last question.
    questions: u64,
    watched: BTreeMap<Lease, Watched>,
    /// The next look is due then.
    due: Timestamp,
}

/// A lease about which there is reason to ask.
#[derive(Debug)]
struct Watched {
    life: Life,
    fenced: bool,
    /// The number of the present question; 0 before the first.
    question: u64,
    answers: BTreeMap<NodeId, Age>,
    ask_at: Timestamp,
}

impl Watched {
    /// Answers that were given are of no use any more.
    fn forget(&mut self, now: Timestamp) {
        self.question = 0;
        self.answers.clear();
        self.ask_at = now.plus(LOOK_EVERY);
    }
}

/// All that the leader looks at.
pub(crate) struct Seen<'a, H, W> {
    pub(crate) now: Timestamp,
    /// On the clock by which this node votes.
    pub(crate) waited: Timestamp,
    pub(crate) term: Term,
    pub(crate) state: &'a ClusterState,
    pub(crate) voting: &'a Voting,
    /// Whether this node hears another one.
    pub(crate) hears: H,
    /// Whether something that was asked of the cluster about a lease is on its way.
    pub(crate) on_its_way: W,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Todo {
    /// To be asked of every voter.
    pub(crate) ask: Vec<Renewal>,
    pub(crate) propose: Vec<LeaseCommand>,
}

impl Raising {
    /// What is in the database of a lease.
    pub(crate) fn decided(&mut self, now: Timestamp, record: &LeaseRecord) {
        let before = self.known.get(&record.name);
        match record.holder {
            Some(holder) => {
                if before.is_none_or(|(epoch, _, _)| *epoch != record.epoch) {
                    self.known.insert(record.name.clone(), (record.epoch, holder, now));
                }
            }
            None => drop(self.known.remove(&record.name)),
        }
    }

    /// The lease of this node's replica was raised: it was silent for longer than it takes to hear of it.
    pub(crate) fn raised_from(&mut self, now: Timestamp, node: NodeId) {
        self.given_up.insert(node, now);
    }

    /// Nodes that have said nothing since they lost a lease by silence, and when that was.
    pub(crate) fn given_up(&mut self, heard: impl Fn(NodeId) -> Option<Timestamp>) -> &BTreeMap<NodeId, Timestamp> {
        self.given_up.retain(|node, at| heard(*node).is_none_or(|heard| heard <= *at));
        &self.given_up
    }

    /// As of the last plan.
    pub(crate) fn given_up_last(&self) -> &BTreeMap<NodeId, Timestamp> {
        &self.given_up
    }

    /// What follows, if it is time to look.
    pub(crate) fn look(&mut self, seen: &Seen<'_, impl Fn(NodeId) -> bool, impl Fn(&ServiceName) -> bool>) -> Todo {
        let (now, office) = (seen.now, &mut self.office);
        if office.term != seen.term || office.voters != *seen.voting.voters() {
            let (term, voters) = (seen.term, seen.voting.voters().clone());
            *office = Office { term, voters, questions: office.questions, ..Office::default() };
        }
        let mut todo = Todo::default();
        if now < office.due {
            return todo;
        }
        office.due = now.plus(LOOK_EVERY);
        let mut watched = std::mem::take(&mut office.watched);
        for (name, (epoch, holder, since)) in &self.known {
            let Some(record) = seen.state.leases.get(name).filter(|record| record.epoch == *epoch) else { continue };
            // Its holder goes on without renewals: silence says nothing about it.
            if record.keeps && !planted(Bug::KeptFenced) {
                continue;
            }
            let (lease, life) = (Lease { name: name.clone(), epoch: *epoch }, Life::new(record.ttl.0));
            let known = watched.remove(&lease);
            if !record.fenced && !has_reason(seen, &lease, life, *holder, *since) {
                continue;
            }
            // What was said before the fence does not say that it is in somebody's log.
            let known = known.filter(|known| known.fenced == record.fenced);
            let fenced = record.fenced;
            let mut known =
                known.unwrap_or(Watched { life, fenced, question: 0, answers: BTreeMap::new(), ask_at: now });
            if !(seen.on_its_way)(name) {
                let (name, epoch) = (name.clone(), *epoch);
                match verdict(life, &office.voters, fenced, &known.answers) {
                    // What is asked if nothing becomes of that is another question.
                    Verdict::Fence => {
                        todo.propose.push(LeaseCommand::Fence { name, epoch });
                        known.forget(now);
                    }
                    Verdict::Raise => {
                        todo.propose.push(LeaseCommand::Raise { name, epoch });
                        known.forget(now);
                    }
                    Verdict::Wait(span) if now >= known.ask_at => {
                        if !span.is_zero() {
                            known.forget(now);
                        }
                        if known.question == 0 {
                            office.questions += 1;
                            known.question = office.questions;
                        }
                        known.ask_at = now.plus(LOOK_EVERY);
                        todo.ask.push(Renewal::new(&lease, known.question));
                    }
                    Verdict::Wait(_) => {}
                }
                office.due = office.due.min(known.ask_at);
            }
            office.watched.insert(lease, known);
        }
        todo
    }

    /// A voter answered.
    pub(crate) fn answered(&mut self, now: Timestamp, voter: NodeId, message: &Ages) {
        let Some(Ok(voters)) = message.voters.as_ref().map(crate::wire::Voters::electorate) else { return };
        let office = &mut self.office;
        if message.term != office.term.0 {
            return;
        }
        for said in &message.ages {
            let Ok(lease) = said.lease() else { continue };
            let Some(known) =
                office.watched.get_mut(&lease).filter(|known| known.question == said.number && said.number > 0)
            else {
                continue;
            };
            known.answers.insert(voter, said.age(voters.clone()));
            match verdict(known.life, &office.voters, known.fenced, &known.answers) {
                Verdict::Wait(Duration::ZERO) => {}
                Verdict::Wait(span) => {
                    known.ask_at = now.plus(span.max(WAIT_MIN));
                    office.due = office.due.min(known.ask_at);
                }
                Verdict::Fence | Verdict::Raise => office.due = now,
            }
        }
    }

    /// A lease was fenced: it is looked at once.
    pub(crate) fn hurry(&mut self) {
        self.office.due = Timestamp::default();
    }

    /// When a leader has to look.
    pub(crate) fn next_wake(&self) -> Option<Timestamp> {
        (!self.known.is_empty()).then_some(self.office.due)
    }
}

/// Whether the leader has reason to doubt that the holder renews.
fn has_reason<H: Fn(NodeId) -> bool, W>(
    seen: &Seen<'_, H, W>,
    lease: &Lease,
    life: Life,
    holder: Holder,
    since: Timestamp,
) -> bool {
    let new = seen.now.since(since) < life.outlived();
    let missed = || seen.voting.votes() && seen.voting.age(seen.waited, lease).since >= life.renew_every() * 2;
    !new && (!(seen.hears)(holder.node) || missed())
}
