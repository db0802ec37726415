//! A whole cluster in one thread: a queue of what is due, and the loop that lets it happen.
//!
//! Everything that takes time is an entry of one queue; the order of equal times is the order of
//! their coming. So a seed decides everything, and nothing waits for anything real.
//!
//! # Invariants
//! - Simulated time never runs backwards, and nothing happens outside the queue.
//! - What was meant for a process that has ended since reaches nobody.

mod disk;
mod keeper;
mod links;
mod operator;
mod server;
mod snapshots;

use crate::clients::Clients;
use crate::dice::Dice;
use crate::faults::Faults;
use crate::invariants::Invariants;
use crate::machine::{Clock, Identity, Machine, Standing};
use crate::network::Network;
use crate::scenario::Scenario;
use crate::seen::{Seen, Violation};
use crate::trace::Trace;
use quorate_model::assignment::Assignment;
use quorate_model::id::{ClusterId, LogIndex, NodeId, ReplicaId};
use quorate_model::time::Timestamp;
use quorate_node::Effect;
use quorate_node::wire::Body;
use quorate_scheduler::Survey;
use quorate_store::databases::Manifest;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Something due.
#[derive(Debug)]
struct Due {
    at: Timestamp,
    order: u64,
    what: What,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The earliest is the greatest: the heap gives out its greatest first.
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// What can be due.
#[derive(Debug)]
pub(crate) enum What {
    /// The node thinks.
    Turn {
        machine: usize,
        life: u64,
    },
    Arrive {
        from: usize,
        to: usize,
        life: u64,
        connection: u64,
        body: Box<Body>,
    },
    /// A machine tries to reach another one.
    Dial {
        from: usize,
        to: usize,
        life: u64,
    },
    /// A machine notices that its connection to another one has ended.
    Ended {
        from: usize,
        to: usize,
        life: u64,
        connection: u64,
        refused: bool,
    },
    LogDone {
        machine: usize,
        life: u64,
    },
    ApplyDone {
        machine: usize,
        life: u64,
    },
    /// A database on its way between two machines has arrived.
    Snapshot {
        from: usize,
        from_life: u64,
        to: usize,
        to_life: u64,
        term: u64,
        files: Vec<(String, Vec<u8>)>,
        manifest: Box<Manifest>,
    },
    /// The checkpoint thread does a round, and the databases are made durable if it is time.
    Housekeeping {
        machine: usize,
        life: u64,
    },
    /// An assignment reaches the agent.
    Assigned {
        machine: usize,
        life: u64,
        assignment: Box<Assignment>,
    },
    /// Leases that a node holds for longer reach its agent, in the terms of the machine's boot clock.
    Held {
        machine: usize,
        life: u64,
        held: Vec<(ReplicaId, u64, Duration)>,
    },
    /// A replica's timer may fire.
    Timer {
        machine: usize,
    },
    /// A replica's process comes to its next state.
    Agent {
        machine: usize,
    },
    /// A node's keeper of keys looks at what changed.
    Keeper {
        machine: usize,
        life: u64,
    },
    /// An operator asks again for what is not done yet about this machine.
    Order {
        machine: usize,
    },
    /// A server that was told to end does.
    Ends {
        machine: usize,
        life: u64,
    },
    /// A machine that is off is switched on.
    Start {
        machine: usize,
        life: u64,
    },
    /// The operator looks after what only a person can decide.
    Patrol,
    Client {
        client: u32,
        step: u64,
    },
    Fault,
    /// All wall clocks do.
    ClocksLeap {
        leap_us: i64,
    },
    /// A machine to which something rare happened is caught by a fault.
    Ambush {
        machine: usize,
        life: u64,
    },
    FaultOver {
        fault: u64,
    },
    /// The end of the phase.
    Over,
}

/// A run in progress.
#[derive(Debug)]
pub(crate) struct World {
    pub now: Timestamp,
    queue: BinaryHeap<Due>,
    order: u64,
    pub scenario: Scenario,
    pub identity: Identity,
    pub machines: Vec<Machine>,
    pub network: Network,
    pub clients: Clients,
    pub faults: Faults,
    pub invariants: Invariants,
    pub trace: Trace,
    pub violation: Option<Violation>,
    pub dice: Dice,
    /// No person looks after it any more.
    pub unattended: bool,
    /// What a plan would be made of, for whoever asked last.
    pub surveyed: Option<Box<Survey>>,
    effects: Vec<Effect>,
}

impl World {
    pub(crate) fn new(scenario: Scenario, keep_text: bool) -> World {
        let seed = scenario.seed;
        let id = |n: usize| NodeId::from_u128(((n as u128 + 1) << 64) | 0xabc);
        let mut machines: Vec<Machine> = (0..scenario.machines())
            .map(|n| {
                let clock = Clock::new(scenario.drift_ppm[n], scenario.skew_us[n]);
                Machine::new(n, id(n), clock)
            })
            .collect();
        let known: Vec<_> = machines[..scenario.nodes].iter().map(Machine::identity).collect();
        for machine in &mut machines {
            if machine.number < scenario.nodes {
                machine.contacts = known.iter().map(|node| (node.id, node.link.clone())).collect();
            } else {
                machine.standing = Standing::Spare;
            }
        }
        let identity = Identity {
            cluster: ClusterId::from_u128(0xc1),
            voters: machines[..scenario.nodes].iter().map(|machine| machine.id).collect(),
            machines: machines.iter().map(|machine| machine.id).collect(),
            replace_voter_after: scenario.replace_voter_after,
            segment_bytes: scenario.storage.segment_bytes,
            retain: scenario.storage.retain,
            replace_after: scenario.replace_after,
        };
        machines.iter().for_each(|machine| machine.fs.ignore_syncs(scenario.lying_disks));
        let network = Network::new(scenario.machines(), scenario.network.clone(), Dice::new(seed, "network"));
        let mut world = World {
            now: Timestamp::default(),
            queue: BinaryHeap::new(),
            order: 0,
            clients: Clients::new(&scenario),
            faults: Faults::new(seed),
            invariants: Invariants::new(&identity),
            trace: Trace::new(keep_text),
            violation: None,
            dice: Dice::new(seed, "world"),
            unattended: false,
            surveyed: None,
            effects: Vec::new(),
            network,
            identity,
            machines,
            scenario,
        };
        quorate_vfs::memory::reset_randomness(seed);
        for machine in 0..world.machines.len() {
            world.start(machine);
        }
        world.begin_clients();
        let first = world.faults.pause(&world.scenario);
        world.later(first, What::Fault);
        world.later(operator::PATROLS, What::Patrol);
        world
    }

    pub(crate) fn later(&mut self, delay: Duration, what: What) {
        self.at(self.now.plus(delay), what);
    }

    pub(crate) fn at(&mut self, at: Timestamp, what: What) {
        self.order += 1;
        self.queue.push(Due { at: at.max(self.now), order: self.order, what });
    }

    /// Lets everything happen that is due until `end`, or until a promise is broken.
    pub(crate) fn run_until(&mut self, end: Timestamp) {
        self.at(end, What::Over);
        while let Some(due) = self.queue.pop() {
            self.now = due.at;
            if matches!(due.what, What::Over) && due.at >= end {
                return;
            }
            self.happen(due.what);
            if self.violation.is_some() {
                return;
            }
        }
    }

    pub(crate) fn show(&mut self, seen: &Seen<'_>) {
        if self.violation.is_none() {
            self.violation = self.invariants.see(self.now, seen).err();
        }
    }

    pub(crate) fn broken(&mut self, invariant: &'static str, what: String) {
        let at = self.now;
        self.violation.get_or_insert(Violation { invariant, what, at });
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Turn { machine, life } => self.turn(machine, life),
            What::Arrive { from, to, life, connection, body } => self.arrive(from, to, life, connection, *body),
            What::Dial { from, to, life } => self.dial(from, to, life),
            What::Ended { from, to, life, connection, refused } => self.ended(from, to, life, connection, refused),
            What::LogDone { machine, life } => self.log_done(machine, life),
            What::ApplyDone { machine, life } => self.apply_done(machine, life),
            What::Snapshot { from, from_life, to, to_life, term, files, manifest } => {
                self.snapshot_arrives((from, from_life), (to, to_life), term, files, *manifest);
            }
            What::Housekeeping { machine, life } => self.housekeeping(machine, life),
            What::Assigned { machine, life, assignment } => self.assigned(machine, life, *assignment),
            What::Held { machine, life, held } => self.held(machine, life, held),
            What::Timer { machine } => self.timer_fires(machine),
            What::Agent { machine } => self.agent_moves(machine),
            What::Start { machine, life } => {
                if self.machines[machine].life == life && self.machines[machine].process.is_none() {
                    self.start(machine);
                }
            }
            What::Keeper { machine, life } => self.keeper_looks(machine, life),
            What::Order { machine } => self.ask_again(machine),
            What::Ends { machine, life } => self.ends(machine, life),
            What::Patrol => self.patrol(),
            What::Client { client, step } => self.client_moves(client, step),
            What::Fault => self.next_fault(),
            What::ClocksLeap { leap_us } => {
                self.machines.iter_mut().for_each(|machine| machine.clock.skew_us += leap_us);
            }
            What::Ambush { machine, life } => self.ambushed(machine, life),
            What::FaultOver { fault } => self.fault_over(fault),
            What::Over => {}
        }
    }

    /// The machines whose servers run.
    pub(crate) fn living(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|n| self.machines[*n].process.is_some()).collect()
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |n: &usize| self.machines[*n].process.as_ref().is_some_and(|process| process.node.leads());
        self.living()
            .into_iter()
            .filter(leads)
            .max_by_key(|n| self.machines[*n].process.as_ref().map(|process| process.node.term()))
    }

    /// The highest index that a living machine has applied.
    pub(crate) fn newest_applied(&self) -> LogIndex {
        let applied = |machine: &Machine| machine.process.as_ref().map(|process| process.applied);
        self.machines.iter().filter_map(applied).max().unwrap_or_default()
    }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
