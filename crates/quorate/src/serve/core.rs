//! The core thread: takes everything that happened, lets the node think, carries out what it wants.
//!
//! One turn: wait for an event, take all that wait, read the clocks, `step` each, `flush` once, perform. What starts
//! other threads' work goes first, sockets after it, so that this node's disk and the network to
//! the others work at the same time.

use super::apply::{ApplyJob, Waiters};
use super::away::Away;
use super::backend::{LeaderContact, Questions};
use super::bulk::Incoming;
use super::counting::{self, Queries};
use super::discovery;
use super::disk::DiskJob;
use super::drills;
use super::lease_clock::LeaseClock;
use super::link::{Calls, addresses};
use super::secrets::Readers;
use super::view::{self, Proofs};
use crate::config::NodeConfig;
use quorate_agent::{Hold, boot_time};
use quorate_api::backend::AccessView;
use quorate_api::drills::DrillsView;
use quorate_api::view::{MembersView, Overview};
use quorate_model::assignment::Assignment;
use quorate_model::command::Refusal;
use quorate_model::discovery::Directory;
use quorate_model::id::{NodeId, ReplicaId, Term};
use quorate_model::need::NodeNeeds;
use quorate_model::routing::RoutingTable;
use quorate_model::state::ClusterState;
use quorate_model::time::{Timestamp, WallTime};
use quorate_node::wire::Body;
use quorate_node::{Effect, Event, Held, Node, Now, Unfit};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, warn};

/// Events taken in one turn, so that a flood does not keep the node from thinking.
const EVENTS_PER_TURN: usize = 4_096;

/// The two clocks of the server; those by which leases are kept are in [`LeaseClock`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) started: Instant,
}

impl Clock {
    pub(super) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = WallTime(u64::try_from(wall.as_micros()).unwrap_or(u64::MAX));
        Now::of(Timestamp(self.started.elapsed()), wall)
    }
}

/// A database to be sent to a peer.
#[derive(Debug)]
pub(super) struct SnapshotOrder {
    pub(super) to: NodeId,
    /// Where it may be found, the likeliest first.
    pub(super) links: Vec<SocketAddr>,
    pub(super) term: Term,
}

/// Everything that the core's effects reach.
pub(super) struct Core {
    pub(super) node: Node,
    pub(super) config: NodeConfig,
    pub(super) clock: Clock,
    pub(super) lease_clock: LeaseClock,
    pub(super) events: Receiver<Event>,
    pub(super) disk: Sender<DiskJob>,
    pub(super) apply: Sender<ApplyJob>,
    pub(super) calls: Calls,
    pub(super) away: Away,
    pub(super) waiters: Arc<Waiters>,
    pub(super) questions: Arc<Questions>,
    pub(super) contact: Arc<LeaderContact>,
    pub(super) incoming: Incoming,
    pub(super) snapshots: mpsc::UnboundedSender<SnapshotOrder>,
    /// The link ends connections with whoever is in it.
    pub(super) expelled: watch::Sender<BTreeSet<NodeId>>,
    /// The link tells these that they were given up.
    pub(super) lost: watch::Sender<BTreeSet<NodeId>>,
    pub(super) assignment: watch::Sender<Option<Assignment>>,
    /// What this node's replicas hold, by replica; what has run out is left out.
    pub(super) holds: watch::Sender<BTreeMap<ReplicaId, Hold>>,
    /// What services need of this node.
    pub(super) needs: watch::Sender<Arc<NodeNeeds>>,
    /// What this node is to ask its database for, so that copies follow it.
    pub(super) queries: watch::Sender<Arc<Queries>>,
    /// Which secrets each node may have.
    pub(super) readers: watch::Sender<Arc<Readers>>,
    pub(super) overview: watch::Sender<Arc<Overview>>,
    pub(super) members: watch::Sender<Arc<MembersView>>,
    /// The newest first.
    pub(super) drills: watch::Sender<Arc<DrillsView>>,
    /// Nodes and what is decided about members, nothing else of the state.
    pub(super) known: watch::Sender<Arc<ClusterState>>,
    /// What nodes that are heard prove themselves with.
    pub(super) proofs: watch::Sender<Arc<Proofs>>,
    pub(super) routing: watch::Sender<Arc<RoutingTable>>,
    /// Where services are reached.
    pub(super) directory: watch::Sender<Arc<Directory>>,
    /// Whether other nodes may be there.
    pub(super) coordinates: watch::Sender<bool>,
    /// Why the cluster does not have this node.
    pub(super) refused: watch::Sender<Option<Refusal>>,
    pub(super) access: watch::Sender<AccessView>,
    /// Whether somebody wants this run of the server to end and another to begin.
    pub(super) restart: watch::Sender<bool>,
    /// Whether what ran once here runs elsewhere, or cannot in time.
    pub(super) handed_over: watch::Sender<bool>,
    /// Whether this node, asked to end, has nothing left to wait for.
    pub(super) left: watch::Sender<bool>,
}

/// What the operator of a node that must not go on may do.
fn advice(why: Unfit, name: &str) -> String {
    match why {
        Unfit::Forgot { .. } => format!(
            "A voter that forgets could decide twice, so this one ends. Put the newer data back, or bring the server \
             back as a new node: `quorate node remove {name}` on another one, then empty the data directory and join \
             with a new token."
        ),
        Unfit::Superseded => "Stop the one that is not wanted, and keep it stopped. A copy is no second node: for \
                              that, join with a new token and an empty data directory."
            .to_owned(),
    }
}

impl Core {
    /// Runs until nobody can send events any more.
    pub(super) fn run(mut self) {
        let (mut effects, mut events) = (Vec::new(), Vec::new());
        let mut sequence = 0;
        loop {
            let wake = self.node.next_wake().since(self.clock.now().mono);
            match self.events.recv_timeout(wake.max(Duration::from_micros(100))) {
                Ok(event) => {
                    events.push(event);
                    events.extend(self.events.try_iter().take(EVENTS_PER_TURN - 1));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Not before all of them came in; see `Now`.
            let now = self.lease_clock.now(self.clock);
            for event in events.drain(..) {
                self.node.step(now, event, &mut effects);
            }
            self.node.flush(now, &mut effects);
            self.contact.set(self.node.leader_heard(now.mono));
            // Before reads are answered: whoever asked for one to know it all finds it here.
            self.publish_access();
            if self.perform(&mut effects) {
                sequence += 1;
                self.publish(sequence);
            }
        }
    }

    /// Returns whether something that people look at has changed.
    fn perform(&mut self, effects: &mut Vec<Effect>) -> bool {
        let mut outgoing: BTreeMap<NodeId, Vec<Body>> = BTreeMap::new();
        let mut changed = false;
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, message } => outgoing.entry(to).or_default().push(message),
                Effect::Append(append) => self.to_disk(DiskJob::Append(append)),
                Effect::ReadLog { from, to_exclusive, bytes_max } => {
                    self.to_disk(DiskJob::Read { from, to_exclusive, bytes_max });
                }
                Effect::Apply(entries) => self.to_apply(ApplyJob::Apply(entries)),
                Effect::Refuse { request_id, why } => self.questions.refuse(&self.waiters, request_id, why),
                Effect::ReadReady { tickets, applied } => self.questions.answer_reads(&tickets, Some(applied)),
                Effect::ReadFailed { tickets } => self.questions.answer_reads(&tickets, None),
                Effect::Transferred { ticket, result } => self.questions.answer_transfer(ticket, result),
                Effect::Surveyed { ticket, survey } => self.questions.answer_survey(ticket, survey),
                Effect::Assign(assignment) => {
                    self.assignment.send_replace(Some(assignment));
                }
                Effect::Hold(held) => self.hold(&held),
                Effect::GoAway { after, away } => {
                    warn!(?away, "a drill takes this node away: it is silent to all others, and then back");
                    self.away.go(after, away);
                }
                Effect::SendSnapshot { to, term } => {
                    let links = self.node.peers_to_call().get(&to).map_or_else(Vec::new, |links| addresses(links));
                    let _ = self.snapshots.send(SnapshotOrder { to, links, term });
                }
                Effect::InstallSnapshot { index, hard_state, .. } => {
                    let received = self.incoming.take(index);
                    let received = received.expect("consensus installs the snapshot that it was just told of");
                    self.to_apply(ApplyJob::Install {
                        incoming: received.directory,
                        manifest: received.manifest,
                        hard_state,
                    });
                }
                Effect::DiscardSnapshot { index } => self.incoming.discard(index),
                Effect::Peers(peers) => self.calls.set(&peers),
                Effect::HandedOver => {
                    self.handed_over.send_replace(true);
                }
                Effect::Left => {
                    self.left.send_replace(true);
                }
                Effect::MustEnd(why) => {
                    error!("{why}. {}", advice(why, &self.config.node.name));
                    std::process::exit(1);
                }
                Effect::Changed => changed = true,
            }
        }
        for (to, messages) in outgoing {
            self.calls.send(to, messages.into_iter());
        }
        changed
    }

    fn hold(&self, held: &[Held]) {
        self.holds.send_modify(|holds| {
            let now = boot_time();
            holds.retain(|_, hold| hold.until > now);
            for held in held {
                let until = self.lease_clock.boot_time(held.until);
                let hold = Hold { replica: held.replica, epoch: held.epoch, until };
                if holds.insert(held.replica, hold).is_none() {
                    debug!(replica = %held.replica, epoch = hold.epoch, "this node holds a lease");
                }
            }
        });
    }

    fn to_disk(&self, job: DiskJob) {
        // The thread ends the process when it fails, so it is there as long as we are.
        let _ = self.disk.send(job);
    }

    fn to_apply(&self, job: ApplyJob) {
        let _ = self.apply.send(job);
    }

    fn publish_access(&self) {
        let access = &self.node.state().access;
        self.access.send_if_modified(|known| {
            let differs = !Arc::ptr_eq(&known.access, access);
            if differs {
                *known = AccessView { applied: self.node.applied(), access: access.clone() };
            }
            differs
        });
    }

    fn publish(&self, sequence: u64) {
        self.expelled.send_if_modified(|known| {
            let now = self.node.state().cut_off();
            let differs = *known != now;
            *known = now;
            differs
        });
        let recovery = self.node.state().members.recovery.as_ref();
        if let Some(now) = recovery.map(|recovery| &recovery.lost).filter(|now| *self.lost.borrow() != **now) {
            self.lost.send_replace(now.clone());
        }
        self.coordinates.send_if_modified(|known| {
            let now = self.node.coordinates();
            std::mem::replace(known, now) != now
        });
        self.restart.send_if_modified(|known| {
            let now = self.node.restart_asked();
            std::mem::replace(known, now) != now
        });
        self.overview.send_replace(Arc::new(view::overview(&self.node, &self.config, self.clock.now(), sequence)));
        let table = view::routing(&self.node);
        self.routing.send_if_modified(|known| {
            let differs = **known != table;
            if differs {
                *known = Arc::new(table);
            }
            differs
        });
        self.directory.send_if_modified(|known| {
            let directory = discovery::directory(&self.node);
            let differs = **known != directory;
            if differs {
                *known = Arc::new(directory);
            }
            differs
        });
        self.members.send_if_modified(|known| {
            let members = view::members(&self.node);
            let differs = **known != members;
            if differs {
                *known = Arc::new(members);
            }
            differs
        });
        self.drills.send_if_modified(|known| {
            // Cheap while there was none.
            let drills = drills::view(&self.node);
            let differs = **known != drills;
            if differs {
                *known = Arc::new(drills);
            }
            differs
        });
        self.proofs.send_if_modified(|known| {
            let proofs = view::proofs(&self.node);
            let differs = **known != proofs;
            if differs {
                *known = Arc::new(proofs);
            }
            differs
        });
        let state = self.node.state();
        self.needs.send_if_modified(|known| {
            let needs = state.needs_on(self.config.node.id);
            let differs = **known != needs;
            if differs {
                *known = Arc::new(needs);
            }
            differs
        });
        self.queries.send_if_modified(|known| {
            let queries = counting::queries(&self.node);
            let differs = **known != queries;
            if differs {
                *known = Arc::new(queries);
            }
            differs
        });
        self.readers.send_if_modified(|known| {
            let readers = state.secrets_by_node();
            let differs = **known != readers;
            if differs {
                *known = Arc::new(readers);
            }
            differs
        });
        self.known.send_if_modified(|known| {
            let differs = known.nodes != state.nodes || known.members != state.members || known.trust != state.trust;
            let differs = differs || known.externals != state.externals;
            if differs {
                *known = Arc::new(view::known(&self.node));
            }
            differs
        });
        self.refused.send_if_modified(|known| {
            let differs = known.as_ref() != self.node.refused();
            if differs {
                *known = self.node.refused().cloned();
            }
            differs
        });
    }
}
