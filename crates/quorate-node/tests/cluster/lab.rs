//! The laboratory: nodes, a network, disks and a clock, all simulated, all decided by a seed.

use crate::programs::Program;
use prost::Message as _;
use quorate_model::assignment::Assignment;
use quorate_model::entry::{Envelope, Outcome, Payload, Proposal};
use quorate_model::id::{LogIndex, NodeId, ReplicaId, RequestId, ServiceName, Term};
use quorate_model::observed::{ReplicaState, ReplicaStatus};
use quorate_model::sql::SqlOutcome;
use quorate_model::state::{ClusterState, NodeIdentity, ReplicaRecord, Role};
use quorate_model::time::{Timestamp, WallTime};
use quorate_node::configuration::Configuration;
use quorate_node::consensus::{Append, CommittedEntry, Content, LogEntry, RecoveredLog};
use quorate_node::recovery::{self, CannotRecover, Circumstances, Recovery};
use quorate_node::wire::{Body, FRAME_MAX};
use quorate_node::{AppliedEntry, Effect, Event, Held, Node, NodeOptions, Now, Refused, Ticket, TransferFailed, Unfit};
use raft::eraftpb::MessageType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn contains(data: &[u8], bytes: &[u8]) -> bool {
    data.windows(bytes.len()).any(|at| at == bytes)
}

/// What one node has on its disk: it survives the node.
#[derive(Default, Clone)]
pub(crate) struct Disk {
    hard_state: (u64, u64, u64),
    before: (LogIndex, Term),
    entries: Vec<LogEntry>,
    applied: LogIndex,
    applied_term: Term,
    state: ClusterState,
    configuration: Configuration,
    outcomes: BTreeMap<RequestId, (LogIndex, Outcome)>,
    runs: Vec<RequestId>,
    times: Vec<WallTime>,
    digest: u64,
}

/// The log as a node that starts finds it.
fn recovered(disk: &Disk) -> RecoveredLog {
    let mut terms: Vec<(LogIndex, Term)> = Vec::new();
    for entry in &disk.entries {
        if terms.last().is_none_or(|(_, term)| *term != entry.term) {
            terms.push((entry.index, entry.term));
        }
    }
    RecoveredLog {
        configuration: disk.configuration.clone(),
        configured: disk.applied,
        term: disk.hard_state.0,
        vote: disk.hard_state.1,
        commit: disk.hard_state.2,
        before: disk.before,
        terms,
        unapplied: disk.entries.iter().filter(|entry| entry.index > disk.applied).cloned().collect(),
    }
}

impl Disk {
    fn take(&mut self, append: Append) {
        if let Some(state) = append.hard_state {
            self.hard_state = state;
        }
        if let Some(first) = append.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
        }
        self.entries.extend(append.entries);
    }

    fn last(&self) -> u64 {
        self.entries.last().map_or(self.before.0.0, |entry| entry.index.0)
    }
}

struct Member {
    id: NodeId,
    node: Option<Node>,
    disk: Disk,
    /// Handed to the disk and not on it yet: lost when the node dies.
    unsynced: Vec<Append>,
    /// Grows at each restart; what was meant for an earlier life is lost.
    life: u64,
    corrupt: bool,
    /// Whom it calls.
    calls: BTreeSet<NodeId>,
    /// Microseconds by which its wall clock is ahead.
    skew: i64,
    /// Which version of the program it is, as the others hear it.
    program: Program,
    /// Its process is stopped until then.
    stalled_until: Timestamp,
    /// What its replicas hold, with the service's name; the agent's knowledge, which outlives the node's process.
    holds: BTreeMap<ReplicaId, (ServiceName, Held)>,
}

struct Due {
    to: usize,
    life: u64,
    event: Event,
}

pub(crate) struct Lab {
    now: Timestamp,
    members: Vec<Member>,
    /// By time and order of sending, so that equal times keep their order.
    queue: BTreeMap<(Timestamp, u64), Due>,
    sent: u64,
    /// Messages of one pair stay in order, as on a connection.
    last_arrival: BTreeMap<(usize, usize), Timestamp>,
    cut: BTreeSet<(usize, usize)>,
    rng: ChaCha8Rng,
    ready: BTreeMap<Ticket, LogIndex>,
    failed: BTreeSet<Ticket>,
    transfers: BTreeMap<Ticket, Result<(), TransferFailed>>,
    overloaded: usize,
    snapshots: usize,
    reads: usize,
    incoming: BTreeMap<usize, Disk>,
    /// Of nodes that start from now on.
    pub(crate) replace_after: Duration,
    pub(crate) replace_voter_after: Duration,
    /// Nodes that said that nothing is left to wait for at their end.
    left: BTreeSet<usize>,
    /// Nodes that said that what ran once there is elsewhere, or cannot be.
    handed_over: BTreeSet<usize>,
    /// Nodes that a drill wants to be cut off; a test does that.
    sent_away: BTreeSet<usize>,
    /// Nodes that ended because they must not go on.
    unfit: BTreeMap<usize, Unfit>,
    /// What each node was told last to run, in its present life.
    assigned: BTreeMap<usize, Assignment>,
    /// Every message takes so much longer.
    pub(crate) latency: Duration,
    /// Entries with these bytes reach nobody but their leader.
    pub(crate) withheld: Option<&'static [u8]>,
    /// Messages about leases that were sent, by what they are.
    said: BTreeMap<&'static str, usize>,
    trace: String,
}

impl Lab {
    pub(crate) fn start(nodes: usize, seed: u64) -> Lab {
        Lab::with_spares(nodes, 0, seed)
    }

    /// A cluster of `nodes`, and servers that are not of it yet.
    pub(crate) fn with_spares(nodes: usize, spares: usize, seed: u64) -> Lab {
        let id = |n: usize| NodeId::from_u128(((n as u128 + 1) << 64) | 0xabc);
        let genesis = Configuration::of((0..nodes).map(id).collect());
        let members = (0..nodes + spares)
            .map(|n| Member {
                id: id(n),
                node: None,
                disk: Disk {
                    configuration: if n < nodes { genesis.clone() } else { Configuration::default() },
                    ..Disk::default()
                },
                unsynced: Vec::new(),
                life: 0,
                corrupt: false,
                calls: BTreeSet::new(),
                skew: 0,
                program: Program::This,
                stalled_until: Timestamp::default(),
                holds: BTreeMap::new(),
            })
            .collect();
        let mut lab = Lab {
            now: Timestamp(Duration::from_secs(1)),
            members,
            queue: BTreeMap::new(),
            sent: 0,
            last_arrival: BTreeMap::new(),
            cut: BTreeSet::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            ready: BTreeMap::new(),
            failed: BTreeSet::new(),
            transfers: BTreeMap::new(),
            overloaded: 0,
            snapshots: 0,
            reads: 0,
            incoming: BTreeMap::new(),
            replace_after: Duration::ZERO,
            replace_voter_after: Duration::from_secs(30),
            left: BTreeSet::new(),
            handed_over: BTreeSet::new(),
            sent_away: BTreeSet::new(),
            unfit: BTreeMap::new(),
            assigned: BTreeMap::new(),
            latency: Duration::ZERO,
            withheld: None,
            said: BTreeMap::new(),
            trace: String::new(),
        };
        (0..nodes).for_each(|n| lab.restart(n));
        lab
    }

    /// A cluster that has a leader and knows its nodes.
    pub(crate) fn running(nodes: usize, seed: u64) -> Lab {
        let mut lab = Lab::start(nodes, seed);
        lab.until("a running cluster", ms(3_000), |lab| {
            lab.leader().is_some() && (0..nodes).all(|n| lab.node(n).state().nodes.len() == nodes)
        });
        lab.run_for(ms(200));
        lab
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn in_time(&self, span: Duration) -> Timestamp {
        self.now.plus(span)
    }

    pub(crate) fn id(&self, n: usize) -> NodeId {
        self.members[n].id
    }

    pub(crate) fn node(&self, n: usize) -> &Node {
        self.members[n].node.as_ref().expect("the node is alive")
    }

    pub(crate) fn identity(&self, n: usize) -> NodeIdentity {
        NodeIdentity {
            id: self.id(n),
            name: format!("n{}", n + 1),
            roles: BTreeSet::from([Role::Manager, Role::Worker]),
            api: String::new(),
            link: format!("n{}:7001", n + 1),
            host: "127.0.0.1".into(),
        }
    }

    /// The numbers of these nodes, from 0.
    pub(crate) fn numbers(&self, nodes: &BTreeSet<NodeId>) -> Vec<usize> {
        (0..self.members.len()).filter(|n| nodes.contains(&self.id(*n))).collect()
    }

    /// Who votes, as the leader knows it; nobody while the voters change or nobody leads.
    pub(crate) fn voters(&self) -> Vec<usize> {
        let Some(leader) = self.leader() else { return Vec::new() };
        let configuration = self.node(leader).configuration();
        if configuration.is_joint() { Vec::new() } else { self.numbers(&configuration.voters) }
    }

    pub(crate) fn has_left(&self, n: usize) -> bool {
        self.left.contains(&n)
    }

    pub(crate) fn has_handed_over(&self, n: usize) -> bool {
        self.handed_over.contains(&n)
    }

    pub(crate) fn is_sent_away(&self, n: usize) -> bool {
        self.sent_away.contains(&n)
    }

    pub(crate) fn unfit(&self, n: usize) -> Option<Unfit> {
        self.unfit.get(&n).copied()
    }

    /// How many replicas a node was told to run since it started; `None`: it was told nothing yet.
    pub(crate) fn assigned(&self, n: usize) -> Option<usize> {
        self.assigned.get(&n).map(|assignment| assignment.replicas.len())
    }

    /// From now on this node speaks as another version of the program does.
    pub(crate) fn install(&mut self, n: usize, program: Program) {
        self.members[n].program = program;
    }

    /// A backup of what a node has on its disk now.
    pub(crate) fn copy(&self, n: usize) -> Disk {
        self.members[n].disk.clone()
    }

    /// Puts a backup in the place of what a node that does not run has.
    pub(crate) fn put_back(&mut self, n: usize, copy: Disk) {
        self.members[n].disk = copy;
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        self.leader_but(usize::MAX)
    }

    /// The leader of the highest term, this one aside.
    pub(crate) fn leader_but(&self, aside: usize) -> Option<usize> {
        let leads = |n: &usize| *n != aside && self.members[*n].node.as_ref().is_some_and(Node::leads);
        (0..self.members.len()).filter(leads).max_by_key(|n| self.node(*n).term())
    }

    pub(crate) fn has_applied(&self, n: usize, request: u128) -> bool {
        self.outcome(n, request).is_some()
    }

    pub(crate) fn outcome(&self, n: usize, request: u128) -> Option<Outcome> {
        self.members[n].disk.outcomes.get(&RequestId::from_u128(request)).map(|(_, outcome)| outcome.clone())
    }

    pub(crate) fn index_of(&self, n: usize, request: u128) -> Option<LogIndex> {
        self.members[n].disk.outcomes.get(&RequestId::from_u128(request)).map(|(index, _)| *index)
    }

    /// Requests that ran more than once on some node.
    pub(crate) fn applied_twice(&self) -> Vec<RequestId> {
        let mut twice = Vec::new();
        for member in &self.members {
            let mut seen = BTreeSet::new();
            twice.extend(member.disk.runs.iter().filter(|id| !seen.insert(**id)).copied());
        }
        twice
    }

    pub(crate) fn read_ready(&self, ticket: Ticket) -> Option<LogIndex> {
        self.ready.get(&ticket).copied()
    }

    pub(crate) fn read_failed(&self, ticket: Ticket) -> bool {
        self.failed.contains(&ticket)
    }

    pub(crate) fn transferred(&self, ticket: Ticket) -> Option<Result<(), TransferFailed>> {
        self.transfers.get(&ticket).copied()
    }

    pub(crate) fn refused_as_overloaded(&self) -> usize {
        self.overloaded
    }

    pub(crate) fn snapshots_installed(&self) -> usize {
        self.snapshots
    }

    pub(crate) fn disk_reads(&self) -> usize {
        self.reads
    }

    /// How many messages of this kind were sent about leases.
    pub(crate) fn said_of_leases(&self, kind: &str) -> usize {
        self.said.get(kind).copied().unwrap_or(0)
    }

    /// Who holds the lease of a service now, and in which epoch.
    pub(crate) fn holder(&self, service: &str) -> Option<(usize, u64)> {
        let valid = |n: usize| {
            let holds = self.members[n].holds.values();
            let mine = holds.filter(|(name, held)| name.as_str() == service && held.until > self.now);
            mine.map(|(_, held)| held.epoch).max().map(|epoch| (n, epoch))
        };
        (0..self.members.len()).find_map(valid)
    }

    /// Whether an entry with these bytes is in a node's log, durable or not.
    pub(crate) fn has_entry(&self, n: usize, bytes: &[u8]) -> bool {
        let member = &self.members[n];
        let unsynced = member.unsynced.iter().flat_map(|append| &append.entries);
        member.disk.entries.iter().chain(unsynced).any(|entry| contains(&entry.data, bytes))
    }

    /// The node's process is stopped and goes on after this long, with all that came in meanwhile.
    pub(crate) fn stall(&mut self, n: usize, span: Duration) {
        self.members[n].stalled_until = self.in_time(span);
    }

    pub(crate) fn trace(&self) -> String {
        self.trace.clone()
    }

    pub(crate) fn event(&mut self, n: usize, event: Event) {
        self.later(Duration::ZERO, n, event);
    }

    /// The node's agent says what it was assigned: each replica is in this state. What has ended holds nothing.
    pub(crate) fn report(&mut self, n: usize, state: ReplicaState) {
        let id = self.id(n);
        let mine = self.node(n).state().replicas.values().filter(|replica| replica.node == id);
        let status = |replica: &ReplicaRecord| {
            let pid = (state != ReplicaState::Stopped).then_some(1);
            let (replica, service) = (replica.id, replica.service.clone());
            let status = serde_json::json!({ "replica": replica, "service": service, "state": state, "pid": pid });
            serde_json::from_value(status).expect("a status")
        };
        let statuses: Vec<ReplicaStatus> = mine.map(status).collect();
        if state == ReplicaState::Stopped {
            self.members[n].holds.clear();
        }
        self.event(n, Event::Replicas(statuses));
    }

    pub(crate) fn propose(&mut self, n: usize, proposal: Proposal) {
        let deadline = self.in_time(ms(20_000));
        self.event(n, Event::Propose { proposal, deadline });
    }

    pub(crate) fn read(&mut self, n: usize, ticket: Ticket) {
        let deadline = self.in_time(ms(2_000));
        self.event(n, Event::Read { ticket, deadline });
    }

    /// The node's wall clock is this many seconds ahead from now on.
    pub(crate) fn skew(&mut self, n: usize, seconds: i64) {
        self.members[n].skew = seconds * 1_000_000;
    }

    /// How far the newest entry's time is ahead of the right time.
    pub(crate) fn stamped_ahead(&self, n: usize) -> i64 {
        let right = 1_700_000_000_000_000 + self.now.0.as_micros() as i64;
        self.members[n].disk.times.last().map_or(0, |time| time.0 as i64 - right)
    }

    /// The node's next entries leave other contents behind.
    pub(crate) fn corrupt(&mut self, n: usize) {
        self.members[n].corrupt = true;
    }

    /// `kill -9`: its connections close at once and new ones are refused.
    pub(crate) fn kill(&mut self, n: usize) {
        self.members[n].node = None;
        self.members[n].unsynced.clear();
        self.members[n].life += 1;
        let peer = self.id(n);
        for other in self.alive() {
            self.later(ms(1), other, Event::LinkDown { peer, refused: true });
        }
    }

    /// The process is stopped: its connections stay open and it says nothing any more.
    pub(crate) fn hang(&mut self, n: usize) {
        self.members[n].node = None;
        self.members[n].unsynced.clear();
        self.members[n].life += 1;
    }

    /// `quorate recover` on the disk of a node that does not run.
    pub(crate) fn recover(&mut self, n: usize, incarnation: u64) -> Result<Recovery, CannotRecover> {
        assert!(self.members[n].node.is_none(), "it does not run");
        let given = Circumstances {
            survivor: self.id(n),
            incarnation,
            now: WallTime(7),
            applied: self.members[n].disk.applied,
            last_made: None,
            seed: 1,
            request: RequestId::from_u128(1 << 100 | u128::from(incarnation)),
        };
        let disk = &mut self.members[n].disk;
        let recovery = recovery::plan(&recovered(disk), &disk.state, given)?;
        let (hard_state, entries) = (Some(recovery.hard_state), recovery.entries.clone());
        disk.take(Append { number: 0, hard_state, entries });
        Ok(recovery)
    }

    /// Starts the node on what its disk holds.
    pub(crate) fn restart(&mut self, n: usize) {
        let id = self.id(n);
        let disk = &self.members[n].disk;
        let log = recovered(disk);
        let options = NodeOptions {
            identity: self.identity(n),
            boot: self.members[n].life,
            contacts: BTreeMap::new(),
            replace_after: self.replace_after,
            replace_voter_after: self.replace_voter_after,
            seed: self.rng.next_u64(),
        };
        let node = Node::new(options, log, disk.state.clone(), disk.applied, self.clocks(n)).unwrap();
        self.members[n].node = Some(node);
        self.assigned.remove(&n);
        // Whom it calls it says itself.
        self.members[n].calls.clear();
        for other in self.alive() {
            if other != n && self.members[other].calls.contains(&id) {
                self.call(other, n);
            }
        }
    }

    /// One opens its link to another, if it can.
    fn call(&mut self, from: usize, to: usize) {
        if self.members[to].node.is_none() || self.cut.contains(&(from, to)) {
            return;
        }
        let (caller, peer, link) = (self.id(from), self.id(to), self.identity(from).link);
        self.later(ms(1), to, Event::Called { peer: caller, link });
        self.later(ms(1), from, Event::LinkUp { peer });
    }

    fn calls(&mut self, n: usize, peers: &BTreeMap<NodeId, Vec<String>>) {
        let before = std::mem::replace(&mut self.members[n].calls, peers.keys().copied().collect());
        for to in 0..self.members.len() {
            if peers.contains_key(&self.id(to)) && !before.contains(&self.id(to)) {
                self.call(n, to);
            }
        }
    }

    /// Cuts a node off from all others, silently.
    pub(crate) fn cut(&mut self, n: usize) {
        for other in 0..self.members.len() {
            if other != n {
                self.cut_pair(n, other);
            }
        }
    }

    pub(crate) fn cut_pair(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
        let (id_a, id_b) = (self.id(a), self.id(b));
        // The link notices after its time-out.
        self.later(ms(3_000), a, Event::LinkDown { peer: id_b, refused: false });
        self.later(ms(3_000), b, Event::LinkDown { peer: id_a, refused: false });
    }

    pub(crate) fn heal(&mut self, n: usize) {
        self.cut.retain(|(a, b)| *a != n && *b != n);
        for other in self.alive() {
            for (from, to) in [(n, other), (other, n)] {
                if other != n && self.members[from].calls.contains(&self.id(to)) {
                    self.call(from, to);
                }
            }
        }
    }

    /// Every living node forgets all of its log that it has applied.
    pub(crate) fn purge_all(&mut self) {
        for n in self.alive() {
            let disk = &mut self.members[n].disk;
            let first = disk.applied.next();
            if let Some(last) = disk.entries.iter().rfind(|entry| entry.index < first) {
                disk.before = (last.index, last.term);
            }
            disk.entries.retain(|entry| entry.index >= first);
            self.event(n, Event::LogPurged { first });
        }
        self.run_for(ms(5));
    }

    /// Lets time pass until `done`.
    pub(crate) fn until(&mut self, what: &str, patience: Duration, done: impl Fn(&Lab) -> bool) {
        let deadline = self.in_time(patience);
        while !done(self) {
            assert!(self.now < deadline, "waited {patience:?} for {what}");
            self.turn(deadline);
        }
    }

    pub(crate) fn run_for(&mut self, span: Duration) {
        let end = self.in_time(span);
        while self.now < end {
            self.turn(end);
        }
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|n| self.members[*n].node.is_some()).collect()
    }

    fn clocks(&self, n: usize) -> Now {
        let wall = 1_700_000_000_000_000 + self.now.0.as_micros() as u64;
        Now::of(self.now, WallTime(wall.saturating_add_signed(self.members[n].skew)))
    }

    fn later(&mut self, delay: Duration, to: usize, event: Event) {
        self.sent += 1;
        let life = self.members[to].life;
        self.queue.insert((self.now.plus(delay), self.sent), Due { to, life, event });
    }

    /// Goes on to the next moment at which something happens, but not beyond `limit`.
    fn turn(&mut self, limit: Timestamp) {
        let goes_on = |n: usize| self.members[n].stalled_until;
        let wake = self.alive().into_iter().map(|n| self.node(n).next_wake().max(goes_on(n))).min();
        let event = self.queue.keys().next().map(|(at, _)| *at);
        let next = [wake, event].into_iter().flatten().min().unwrap_or(limit).min(limit);
        self.now = self.now.max(next);
        let mut touched = BTreeMap::<usize, Vec<Effect>>::new();
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (_, order) = *entry.key();
            let due = entry.remove();
            let goes_on = self.members[due.to].stalled_until;
            if goes_on > self.now {
                self.queue.insert((goes_on, order), due);
                continue;
            }
            let clocks = self.clocks(due.to);
            let member = &mut self.members[due.to];
            if member.life == due.life
                && let Some(node) = &mut member.node
            {
                if let Event::Persisted { number } = due.event {
                    let synced = member.unsynced.partition_point(|append| append.number <= number);
                    member.unsynced.drain(..synced).for_each(|append| member.disk.take(append));
                }
                node.step(clocks, due.event, touched.entry(due.to).or_default());
            }
        }
        for n in self.alive() {
            let clocks = self.clocks(n);
            if self.members[n].stalled_until > self.now {
                continue;
            }
            let due = self.node(n).next_wake() <= self.now;
            if due || touched.contains_key(&n) {
                let node = self.members[n].node.as_mut().expect("alive");
                node.flush(clocks, touched.entry(n).or_default());
            }
        }
        for (n, effects) in touched {
            for effect in effects {
                self.perform(n, effect);
            }
        }
        // A wake-up that leads to nothing must not stop time.
        if wake.is_some_and(|wake| wake <= self.now) && event.is_none_or(|at| at > self.now) {
            self.now = self.now.plus(Duration::from_micros(10));
        }
    }

    fn perform(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.deliver(n, to, message),
            Effect::Append(append) => {
                let took = Duration::from_micros(u64::from(80 + self.rng.next_u32() % 80));
                self.later(took, n, Event::Persisted { number: append.number });
                self.members[n].unsynced.push(append);
            }
            Effect::ReadLog { from, to_exclusive, bytes_max } => {
                self.reads += 1;
                let mut bytes = 0;
                let entries = self.members[n].disk.entries.iter();
                let entries = entries
                    .filter(|entry| entry.index >= from && entry.index < to_exclusive)
                    .take_while(|entry| {
                        bytes += entry.data.len();
                        bytes == entry.data.len() || bytes <= bytes_max
                    })
                    .cloned()
                    .collect();
                self.later(ms(1), n, Event::LogRead { entries });
            }
            Effect::Apply(entries) => {
                let entries: Vec<AppliedEntry> = entries.into_iter().filter_map(|entry| self.apply(n, entry)).collect();
                self.later(Duration::from_micros(50), n, Event::Applied { entries });
            }
            Effect::Refuse { why, .. } => {
                if why == Refused::Overloaded {
                    self.overloaded += 1;
                }
            }
            Effect::ReadReady { tickets, applied } => {
                self.ready.extend(tickets.into_iter().map(|ticket| (ticket, applied)));
            }
            Effect::ReadFailed { tickets } => self.failed.extend(tickets),
            // People ask for it, and there are none.
            Effect::Surveyed { .. } => {}
            Effect::Transferred { ticket, result } => {
                self.transfers.insert(ticket, result);
            }
            Effect::SendSnapshot { to, term } => {
                let target = self.members.iter().position(|member| member.id == to).unwrap();
                let disk = self.members[n].disk.clone();
                let (index, index_term) = (disk.applied, disk.applied_term);
                let configuration = disk.configuration.clone();
                self.incoming.insert(target, disk);
                let from = self.id(n);
                let configured = index;
                let received = Event::SnapshotReceived { from, term, index, index_term, configuration, configured };
                self.later(ms(5), target, received);
                self.later(ms(6), n, Event::SnapshotSent { to, ok: true });
            }
            Effect::InstallSnapshot { index, hard_state, .. } => {
                self.snapshots += 1;
                let received = self.incoming.remove(&n).unwrap();
                assert_eq!(received.applied, index);
                let state = Box::new(received.state.clone());
                let before = (received.applied, received.applied_term);
                self.members[n].disk = Disk { hard_state, before, entries: Vec::new(), ..received };
                self.later(ms(5), n, Event::SnapshotInstalled { index, state });
            }
            Effect::DiscardSnapshot { .. } => {
                self.incoming.remove(&n);
            }
            Effect::Peers(peers) => self.calls(n, &peers),
            Effect::HandedOver => {
                self.handed_over.insert(n);
            }
            Effect::Left => {
                self.left.insert(n);
            }
            Effect::MustEnd(why) => {
                self.unfit.insert(n, why);
                self.kill(n);
            }
            Effect::Assign(assignment) => {
                self.assigned.insert(n, assignment);
            }
            Effect::Hold(held) => held.into_iter().for_each(|held| self.hold(n, held)),
            Effect::GoAway { .. } => {
                self.sent_away.insert(n);
            }
            Effect::Changed => {}
        }
    }

    /// What all of this is for: nobody else may hold it, on the one clock that this laboratory has.
    fn hold(&mut self, n: usize, held: Held) {
        let record = &self.node(n).state().replicas[&held.replica];
        let service = record.service.clone();
        assert_eq!(record.lease.map(|lease| lease.epoch), Some(held.epoch));
        if held.until > self.now {
            for (other, member) in self.members.iter().enumerate() {
                for (name, known) in member.holds.values().filter(|(name, _)| *name == service) {
                    let same = (other, known.replica, known.epoch) == (n, held.replica, held.epoch);
                    assert!(same || known.until <= self.now, "{name}: n{n} {held:?}, and n{other} {known:?}");
                }
            }
        }
        self.members[n].holds.insert(held.replica, (service, held));
    }

    fn deliver(&mut self, from: usize, to: NodeId, message: Body) {
        let Some(target) = self.members.iter().position(|member| member.id == to) else { return };
        if self.cut.contains(&(from, target)) || !self.members[from].calls.contains(&to) {
            return;
        }
        let took = Duration::from_micros(u64::from(50 + self.rng.next_u32() % 200)) + self.latency;
        let at = self.now.plus(took);
        let last = self.last_arrival.entry((from, target)).or_default();
        *last = (*last).max(at);
        let delay = last.since(self.now);
        let kind = match &message {
            Body::Renew(_) => "renew",
            Body::Renewed(_) => "renewed",
            Body::AskAges(_) => "ask",
            Body::Ages(_) => "ages",
            _ => "other",
        };
        *self.said.entry(kind).or_default() += 1;
        if let Body::Raft(raft) = &message {
            assert!(raft.encoded_len() < FRAME_MAX, "no peer accepts a frame of {} bytes", raft.encoded_len());
            let withheld = |bytes| raft.entries.iter().any(|entry| contains(&entry.data, bytes));
            if self.withheld.is_some_and(withheld) {
                return;
            }
            // What a follower promises is on its disk: it may lose power right now.
            let disk = &self.members[from].disk;
            if raft.kind == MessageType::MsgAppendResponse as i32 && !raft.reject {
                assert!(raft.index <= disk.last(), "acknowledged {} with {} on disk", raft.index, disk.last());
            }
            if raft.kind == MessageType::MsgRequestVoteResponse as i32 && !raft.reject {
                assert!(raft.term <= disk.hard_state.0, "a vote of term {} that is not on disk", raft.term);
            }
            self.trace.push_str(&format!(
                "{} {from}>{target} k{} t{} i{}\n",
                self.now.0.as_micros(),
                raft.kind,
                raft.term,
                raft.index
            ));
        }
        let message = self.members[from].program.says(message);
        let from = self.id(from);
        self.later(delay, target, Event::Received { from, message });
    }

    /// What the store does, without SQL.
    fn apply(&mut self, n: usize, entry: CommittedEntry) -> Option<AppliedEntry> {
        let corrupt = u64::from(self.members[n].corrupt);
        let disk = &mut self.members[n].disk;
        if entry.index <= disk.applied {
            return None;
        }
        disk.applied = entry.index;
        disk.applied_term = entry.term;
        let data = match entry.content {
            Content::Data(data) => data,
            Content::Configuration(configuration) => {
                disk.configuration = configuration;
                let digests = Some([disk.digest, 0]);
                let (request_id, outcome, changes) = (None, Outcome::Noop, Vec::new());
                return Some(AppliedEntry { index: entry.index, request_id, outcome, changes, digests });
            }
        };
        disk.digest = disk.digest.wrapping_mul(31).wrapping_add(data.len() as u64 + corrupt);
        let envelope = Envelope::read(data).unwrap();
        if envelope.request_id().is_some() {
            disk.times.push(envelope.time());
        }
        let request_id = envelope.request_id();
        let known = request_id.and_then(|id| disk.outcomes.get(&id)).map(|(_, outcome)| outcome.clone());
        let (outcome, changes) = match (known, envelope.payload().unwrap()) {
            (Some(outcome), _) => (outcome, Vec::new()),
            (None, Payload::Noop) => (Outcome::Noop, Vec::new()),
            (None, Payload::Sql(_)) => {
                disk.runs.extend(request_id);
                (Outcome::Sql(SqlOutcome::default()), Vec::new())
            }
            (None, Payload::Command(command)) => match disk.state.decide(entry.index, envelope.time(), &command) {
                Ok(changes) => {
                    disk.state.absorb(entry.index, &changes);
                    (Outcome::Command(Ok(())), changes)
                }
                Err(refusal) => (Outcome::Command(Err(refusal)), Vec::new()),
            },
        };
        if let Some(id) = request_id {
            disk.outcomes.entry(id).or_insert((entry.index, outcome.clone()));
        }
        let digests = Some([disk.digest, 0]);
        Some(AppliedEntry { index: entry.index, request_id, outcome, changes, digests })
    }
}
