//! What stands for the cluster's operator: servers are admitted, expelled, stopped cleanly and asked not
//! to vote. An operator asks again until it is done, through whichever node answers.

use super::{What, World};
use crate::machine::Standing;
use quorate_model::command::Command;
use quorate_model::entry::Proposal;
use quorate_model::id::{NodeId, RequestId, TokenId};
use quorate_model::member::{JoinToken, MemberCommand, SecretHash, Vote};
use quorate_model::place::{Availability, Drain};
use quorate_model::state::{ClusterState, Role};
use quorate_model::time::WallTime;
use quorate_node::Event;
use quorate_node::electorate::Wish;
use std::time::Duration;

/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(2);
/// What one attempt may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the operator looks after servers that hold what goes on without a quorum.
pub(super) const PATROLS: Duration = Duration::from_secs(5);
/// A server that is asked to end gets this long to tell the cluster, as in `quorate serve`.
const HANDOVER: Duration = Duration::from_secs(1);

impl World {
    /// Machines that are of the cluster.
    pub(crate) fn members(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|n| self.machines[*n].standing == Standing::Member).collect()
    }

    /// A member that runs, and what it knows.
    fn member(&mut self) -> Option<usize> {
        let members: Vec<usize> = self.members().into_iter().filter(|n| self.machines[*n].process.is_some()).collect();
        if members.is_empty() { None } else { Some(*self.dice.pick(&members)) }
    }

    fn known_by_anyone(&self, what: impl Fn(&ClusterState) -> bool) -> bool {
        let states = self.members().into_iter().filter_map(|n| self.machines[n].process.as_ref());
        states.into_iter().any(|process| what(process.node.state()))
    }

    pub(super) fn order(&mut self, at: usize, command: &Command) {
        let id = RequestId::from_u128(self.dice.wide());
        let proposal = Proposal::command(id, command);
        let deadline = self.machines[at].clocks(self.now).mono.plus(PATIENCE);
        self.tell(at, Event::Propose { proposal, deadline });
    }

    /// A spare is to join. Returns whether there was one.
    pub(crate) fn begin_join(&mut self) -> bool {
        let spares = (0..self.machines.len()).filter(|n| self.machines[*n].standing == Standing::Spare);
        let spares: Vec<usize> = spares.collect();
        if spares.is_empty() {
            return false;
        }
        let n = *self.dice.pick(&spares);
        self.machines[n].standing = Standing::Joining;
        self.ask_again(n);
        true
    }

    /// A member is to be expelled, if the cluster can do without it. Returns whether that is so.
    pub(crate) fn begin_expulsion(&mut self, n: usize) -> bool {
        if self.machines[n].standing != Standing::Member || !self.harmless(Wish::Expel(self.machines[n].id)) {
            return false;
        }
        // An operator waits for one to be gone before the next.
        if (0..self.machines.len()).any(|n| self.machines[n].standing == Standing::Expelled && !self.is_expelled(n)) {
            return false;
        }
        self.machines[n].standing = Standing::Expelled;
        self.ask_again(n);
        true
    }

    /// A member is not to vote, or may vote again. Returns whether that could be asked.
    pub(crate) fn change_vote(&mut self, n: usize) -> bool {
        let id = self.machines[n].id;
        let Some(at) = self.member() else { return false };
        let process = self.machines[at].process.as_ref().expect("it runs");
        let Some(vote) = process.node.state().nodes.get(&id).map(|record| record.vote) else { return false };
        let vote = if vote == Vote::Never { Vote::Auto } else { Vote::Never };
        if vote == Vote::Never && !self.harmless(Wish::StopVoting(id)) {
            return false;
        }
        self.order(at, &Command::Member(MemberCommand::SetVote { node: id, vote }));
        true
    }

    /// `quorate serve` is told to end: for long, so that what runs once goes elsewhere first, or to begin anew.
    pub(crate) fn stop_cleanly(&mut self, n: usize) {
        if self.dice.chance(500) {
            self.trace.note(self.now, "hands over", n, 0, 0);
            self.tell(n, Event::HandOver);
        } else {
            self.says_goodbye(n);
        }
    }

    pub(super) fn says_goodbye(&mut self, n: usize) {
        let life = self.machines[n].life;
        self.machines[n].leaving = true;
        self.tell(n, Event::Leave);
        self.later(HANDOVER, What::Ends { machine: n, life });
    }

    /// Its last word to the cluster was heard.
    pub(super) fn has_left(&mut self, n: usize) {
        self.trace.note(self.now, "left", n, 0, 0);
        let life = self.machines[n].life;
        self.later(Duration::ZERO, What::Ends { machine: n, life });
    }

    pub(super) fn ends(&mut self, n: usize, life: u64) {
        if self.alive(n, life) && std::mem::take(&mut self.machines[n].leaving) {
            self.end(n, None);
            // Handing over may have taken until it was to run again.
            if !self.machines[n].off {
                let life = self.machines[n].life;
                self.later(HANDOVER, What::Start { machine: n, life });
            }
        }
    }

    /// A machine that is down and holds what goes on without a quorum: whoever looks at it and finds nothing running
    /// there may say that it is dead, and sometimes does. That it is switched on a moment later, before that has
    /// come into the log, is no lie.
    pub(super) fn patrol(&mut self) {
        if self.unattended {
            return;
        }
        self.later(PATROLS, What::Patrol);
        for n in 0..self.machines.len() {
            let id = self.machines[n].id;
            let kept = |state: &ClusterState| state.kept_by(id).next().is_some();
            if self.machines[n].process.is_some() || !self.known_by_anyone(kept) {
                continue;
            }
            let stays_off = self.machines[n].broken || self.machines[n].standing == Standing::Expelled;
            if stays_off && !self.machines[n].agent.singles().is_empty() {
                // Nobody will tell it to end: its power is cut.
                let seed = self.dice.next();
                self.end(n, Some(seed));
            }
            let sure = self.machines[n].agent.singles().is_empty();
            if sure && (stays_off || self.dice.chance(300)) {
                self.say_dead(n);
            }
        }
    }

    fn say_dead(&mut self, n: usize) {
        let node = self.machines[n].id;
        let Some(at) = self.member() else { return };
        let process = self.machines[at].process.as_ref().expect("it runs");
        if let Some(generation) = process.node.state().nodes.get(&node).map(|record| record.generation) {
            self.trace.note(self.now, "said dead", n, generation, 0);
            self.order(at, &Command::Member(MemberCommand::ConfirmDead { node, generation }));
        }
    }

    /// Whether all that was asked for is done.
    pub(crate) fn is_served(&self) -> bool {
        (0..self.machines.len()).all(|n| match self.machines[n].standing {
            Standing::Spare | Standing::Member => true,
            Standing::Joining => false,
            Standing::Expelled => self.is_expelled(n),
        })
    }

    /// Nobody switches one off before: until then it may be the only one that decides. (Seed 401.)
    pub(crate) fn is_expelled(&self, n: usize) -> bool {
        let id = self.machines[n].id;
        self.known_by_anyone(|state| state.members.expelled.contains(&id))
    }

    /// What the leader says of a wish.
    fn harmless(&self, wish: Wish<'_>) -> bool {
        let leader = self.leader().and_then(|n| Some((n, self.machines[n].process.as_ref()?)));
        leader.is_some_and(|(n, process)| process.node.judge(self.machines[n].clocks(self.now), wish).is_ok())
    }

    /// Asks (again) for what is not done yet.
    pub(super) fn ask_again(&mut self, n: usize) {
        let (id, standing) = (self.machines[n].id, self.machines[n].standing);
        match standing {
            Standing::Spare | Standing::Member => return,
            Standing::Joining => {
                if self.known_by_anyone(|state| state.nodes.contains_key(&id)) {
                    self.machines[n].standing = Standing::Member;
                    self.given_keys(n);
                    self.trace.note(self.now, "admitted", n, 0, 0);
                    self.start(n);
                    return;
                }
                if let Some(at) = self.member() {
                    self.admit(at, n);
                }
            }
            Standing::Expelled => {
                if self.is_expelled(n) {
                    if self.faults.are_over() {
                        self.scrap(n);
                    }
                    return;
                }
                if let Some(at) = self.member() {
                    // What it keeps is brought elsewhere first; if it is dead, the patrol says so.
                    let availability = Availability::Draining(Drain::default());
                    self.order(at, &Command::Member(MemberCommand::SetAvailability { node: id, availability }));
                    self.order(at, &Command::Member(MemberCommand::Expel { node: id }));
                }
            }
        }
        self.later(AGAIN, What::Order { machine: n });
    }

    fn admit(&mut self, at: usize, n: usize) {
        let number = u8::try_from(n).expect("few machines");
        let secret = SecretHash([number; 32]);
        let token = JoinToken {
            id: TokenId::from_u128(n as u128),
            secret,
            role: Role::Manager,
            name: None,
            created: WallTime(0),
            expires: WallTime(u64::MAX),
            used: None,
        };
        // Told of one other at most: who knows it will call.
        let other: Option<(NodeId, String)> = self.dice.chance(500).then(|| {
            let other = self.machines[at].identity();
            (other.id, other.link)
        });
        self.machines[n].contacts = other.into_iter().collect();
        let node = self.machines[n].identity();
        self.order(at, &Command::Member(MemberCommand::CreateToken { token, turn_on_ha: false }));
        self.order(at, &Command::Member(MemberCommand::Admit { secret, node, vote: Vote::Auto }));
    }
}
