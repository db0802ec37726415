//! The voter's side: it acknowledges renewals, and says how long ago it did.
//!
//! A voter is bound by what is in its log, not only by what is applied, so it looks through every entry that is
//! handed to the disk, for fences and for configurations. What it says waits until those are durable.
//!
//! # Invariants
//! - `later` holds the configurations of entries above `as_of`, and they are in the log.
//! - A node that does not vote, as of its log, acknowledges nothing and answers nothing.
//! - At most [`QUESTIONS_MAX`] questions and as many answers wait. Who gets none asks again.

use super::{LEASES_PER_FRAME, Lease, in_force};
use crate::configuration::Configuration;
use crate::consensus::reconfigure::after;
use crate::consensus::{EntryKind, LogEntry, RecoveredLog};
use crate::wire::{Ages, AskAges, Body, LeaseAge, Renew, Renewal, Renewed, Voters};
use quorate_lease::{Age, Electorate, Voter};
use quorate_model::command::Command;
use quorate_model::entry::{Envelope, Kind, Payload};
use quorate_model::id::{LogIndex, NodeId};
use quorate_model::lease::{LeaseCommand, LeaseRecord};
use quorate_model::state::ClusterState;
use quorate_model::time::Timestamp;
use std::collections::{BTreeMap, VecDeque};

/// Many rounds of a large cluster. A disk that hangs for longer makes a voter useless anyway.
const QUESTIONS_MAX: usize = 4_096;

/// What a voter is asked.
#[derive(Debug)]
pub(crate) enum Question {
    Renew(Renew),
    Ages(AskAges),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Voting {
    me: NodeId,
    voter: Voter,
    /// Of a committed entry, no later than `as_of`.
    configuration: Configuration,
    as_of: LogIndex,
    later: BTreeMap<LogIndex, Configuration>,
    questions: VecDeque<(NodeId, Question)>,
    /// Answers, with the number of the append that must be durable first.
    unsaid: VecDeque<(Option<u64>, NodeId, Body)>,
}

impl Voting {
    /// A node that starts on this log and this database.
    pub(crate) fn starts(me: NodeId, now: Timestamp, log: &RecoveredLog, state: &ClusterState) -> Voting {
        let mut voting = Voting {
            me,
            voter: Voter::starts(now, electorate(&log.configuration)),
            configuration: log.configuration.clone(),
            as_of: log.configured,
            later: BTreeMap::new(),
            questions: VecDeque::new(),
            unsaid: VecDeque::new(),
        };
        state.leases.values().for_each(|record| voting.decided(record));
        log.unapplied.iter().for_each(|entry| voting.take(now, entry));
        voting
    }

    /// These entries are handed to the disk, in place of whatever the log had from the first of them on.
    pub(crate) fn written(&mut self, now: Timestamp, entries: &[LogEntry]) {
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        self.voter.cut(first);
        if !self.later.split_off(&first).is_empty() {
            let newest = electorate(self.newest());
            self.voter.configured(now, &newest);
        }
        for entry in entries {
            self.take(now, entry);
        }
    }

    fn take(&mut self, now: Timestamp, entry: &LogEntry) {
        match entry.kind {
            EntryKind::Normal => {
                if let Some(lease) = fenced_by(entry) {
                    self.voter.fenced(entry.index, lease);
                }
            }
            EntryKind::Membership if entry.index > self.as_of => {
                let to = after(self.newest(), &entry.data);
                self.voter.configured(now, &electorate(&to));
                self.later.insert(entry.index, to);
            }
            // In the database already, or known from a snapshot.
            EntryKind::Membership => {}
        }
    }

    fn newest(&self) -> &Configuration {
        self.later.last_key_value().map_or(&self.configuration, |(_, configuration)| configuration)
    }

    /// Everything up to `index` is committed.
    pub(crate) fn committed(&mut self, index: LogIndex) {
        self.voter.committed(index);
        while let Some(first) = self.later.first_entry().filter(|first| *first.key() <= index) {
            (self.as_of, self.configuration) = first.remove_entry();
        }
    }

    /// A database came in the place of the log, with the configuration of the entry `as_of`.
    pub(crate) fn replaced(
        &mut self,
        now: Timestamp,
        (configuration, as_of): (&Configuration, LogIndex),
        state: &ClusterState,
    ) {
        self.later.clear();
        (self.configuration, self.as_of) = (configuration.clone(), as_of);
        self.voter.replaced(now, electorate(configuration));
        state.leases.values().for_each(|record| self.decided(record));
    }

    /// What is in the database of a lease.
    pub(crate) fn decided(&mut self, record: &LeaseRecord) {
        let lease = in_force(record);
        self.voter.raised(&lease);
        if record.fenced {
            self.voter.settled(lease);
        }
    }

    /// A question came in; it is answered with [`answer`](Self::answer).
    pub(crate) fn ask(&mut self, from: NodeId, question: Question) {
        if self.questions.len() < QUESTIONS_MAX {
            self.questions.push_back((from, question));
        }
    }

    /// Answers what was asked. `writes` is the last append that is not durable yet: nothing is said before it is.
    pub(crate) fn answer(&mut self, now: Timestamp, writes: Option<u64>) {
        let votes = self.votes();
        for (from, question) in std::mem::take(&mut self.questions) {
            let answer = match question {
                _ if !votes => None,
                Question::Renew(message) => self.renew(now, message),
                Question::Ages(message) => Some(self.ages(now, message)),
            };
            if let Some(answer) = answer.filter(|_| self.unsaid.len() < QUESTIONS_MAX) {
                self.unsaid.push_back((writes, from, answer));
            }
        }
    }

    /// Answers that may be given now, with those to whom.
    pub(crate) fn say(&mut self, is_durable: impl Fn(u64) -> bool) -> Vec<(NodeId, Body)> {
        let mut said = Vec::new();
        let may_go = |(write, _, _): &mut (Option<u64>, NodeId, Body)| write.is_none_or(&is_durable);
        while let Some((_, to, answer)) = self.unsaid.pop_front_if(may_go) {
            said.push((to, answer));
        }
        said
    }

    fn renew(&mut self, now: Timestamp, message: Renew) -> Option<Body> {
        let acknowledges = |renewal: &Renewal| renewal.lease().is_ok_and(|lease| self.voter.renew(now, &lease));
        let leases: Vec<Renewal> = message.leases.into_iter().take(LEASES_PER_FRAME).filter(acknowledges).collect();
        let voters = Some(Voters::new(self.voter.voters()));
        (!leases.is_empty()).then_some(Body::Renewed(Renewed { run: message.run, leases, voters }))
    }

    fn ages(&self, now: Timestamp, message: AskAges) -> Body {
        let age = |asked: Renewal| {
            let lease = asked.lease().ok()?;
            Some(LeaseAge::new(asked, &self.voter.age(now, &lease)))
        };
        let ages = message.leases.into_iter().take(LEASES_PER_FRAME).filter_map(age).collect();
        Body::Ages(Ages { term: message.term, ages, voters: Some(Voters::new(self.voter.voters())) })
    }

    /// Who votes as of the newest configuration in the log.
    pub(crate) fn voters(&self) -> &Electorate {
        self.voter.voters()
    }

    /// Whether this node votes, as of its log.
    pub(crate) fn votes(&self) -> bool {
        self.voter.voters().contains(self.me)
    }

    /// When this node acknowledged a lease last.
    pub(crate) fn age(&self, now: Timestamp, lease: &Lease) -> Age {
        self.voter.age(now, lease)
    }
}

fn electorate(configuration: &Configuration) -> Electorate {
    Electorate { voters: configuration.voters.clone(), outgoing: configuration.outgoing.clone() }
}

/// The lease that an entry fences. Commands are rare, and those with this word in them are nearly all fences,
/// so other entries cost no more than a look at their envelope.
fn fenced_by(entry: &LogEntry) -> Option<Lease> {
    const WORD: &[u8] = b"\"fence\"";
    if entry.data.is_empty() {
        return None;
    }
    let envelope = Envelope::read(entry.data.clone()).ok()?;
    let may_be = envelope.kind == Kind::Command as i32 && envelope.payload.windows(WORD.len()).any(|at| at == WORD);
    match may_be.then(|| envelope.payload().ok()).flatten()? {
        Payload::Command(Command::Lease(LeaseCommand::Fence { name, epoch })) => Some(Lease { name, epoch }),
        Payload::Noop | Payload::Sql(_) | Payload::Command(_) => None,
    }
}
