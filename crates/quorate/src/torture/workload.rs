//! The clients of a run: what they do all the time while everything around them breaks.
//!
//! Four kinds at once, because each can see what the others cannot: single registers (is every
//! read the newest?), transactions over lists (are several keys one moment?), inserts (is anything
//! lost, or there twice?), followers of the events (in order, no gap?). One more changes how many
//! copies of a service run, which also makes events.
//!
//! # Invariants
//! - Every write is unique: its value is written by no other.
//! - Keys retire: a register or list is used for a bounded number of operations, so that checking
//!   its history stays feasible however long the run is.
//! - Clients have a pace. Without one, the machine would be the bottleneck and every fault a hiccup.

pub(crate) mod client;
pub(crate) mod services;
pub(crate) mod sql;
mod watch;

use crate::torture::census;
use crate::torture::reach::{Node, Reach};
use crate::torture::record::{Answer, Call, End, Line, Operation, Recorder, Step};
use client::Client;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

const REGISTER_CLIENTS: u32 = 6;
const LIST_CLIENTS: u32 = 4;
const INSERT_CLIENTS: u32 = 4;
const WATCHERS: u32 = 3;

/// Between two operations of one client. 14 clients ask 400 to 600 times a second, which is
/// enough to have something in flight at any moment of any fault.
const PACE: Duration = Duration::from_millis(20);
/// Between two changes of the service.
const SCALE_EVERY: Duration = Duration::from_secs(5);
/// Registers and lists that are in use at one time, and operations until the next set is.
const REGISTERS: u64 = 8;
const REGISTER_OPERATIONS: u64 = 1_600;
const LISTS: u64 = 6;
const LIST_OPERATIONS: u64 = 300;
/// A write is sent again under its id for this long. The cluster remembers ids for 120 s.
const RESEND_FOR: Duration = Duration::from_secs(60);
const RESEND_PATIENCE: Duration = Duration::from_secs(3);
const RESEND_PAUSE: Duration = Duration::from_millis(500);
/// Fewest and most copies of the service that are asked for while faults happen.
pub(crate) const COPIES: [u32; 2] = [2, 3];

/// What all clients share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) seed: u64,
    /// Part of every request id.
    pub(crate) run_id: u64,
    pub(crate) reach: Arc<Reach>,
    pub(crate) record: Recorder,
    /// Writers end.
    stop: AtomicBool,
    /// Followers end when they have seen the event with this index; [`u64::MAX`]: not yet.
    last_event: AtomicU64,
    /// All events that will ever be compared are in the table.
    table_complete: AtomicBool,
    values: AtomicU64,
    register_operations: AtomicU64,
    list_operations: AtomicU64,
    answered: AtomicU64,
    unknown: Mutex<VecDeque<Pending>>,
    errors: Mutex<BTreeMap<String, u64>>,
}

/// A write of which nothing is known.
#[derive(Debug)]
struct Pending {
    number: u64,
    call: Call,
    id: Uuid,
    since: Instant,
}

impl Shared {
    pub(crate) fn new(seed: u64, run_id: u64, reach: Arc<Reach>, record: Recorder) -> Arc<Shared> {
        Arc::new(Shared {
            seed,
            run_id,
            reach,
            record,
            stop: AtomicBool::new(false),
            last_event: AtomicU64::new(u64::MAX),
            table_complete: AtomicBool::new(false),
            values: AtomicU64::new(1),
            register_operations: AtomicU64::new(0),
            list_operations: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            unknown: Mutex::default(),
            errors: Mutex::default(),
        })
    }

    /// Those that serve clients now.
    pub(crate) fn nodes(&self) -> Arc<[Node]> {
        self.reach.nodes()
    }

    /// Operations that were answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// How often each attempt failed so far, by code.
    pub(crate) fn errors(&self) -> BTreeMap<String, u64> {
        lock(&self.errors).clone()
    }

    fn count(&self, code: &str) {
        *lock(&self.errors).entry(code.to_owned()).or_default() += 1;
    }

    fn remember_unknown(&self, operation: &Operation) {
        let Some(id) = operation.id else { return };
        let call = operation.call.clone();
        lock(&self.unknown).push_back(Pending { number: operation.number, call, id, since: Instant::now() });
    }

    fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn table_complete(&self) -> bool {
        self.table_complete.load(Ordering::Relaxed)
    }

    /// The event that followers end with, once it is known.
    fn last_event(&self) -> Option<u64> {
        Some(self.last_event.load(Ordering::Relaxed)).filter(|index| *index != u64::MAX)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All clients while they work.
#[derive(Debug)]
pub(crate) struct Workload {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
    followers: Vec<JoinHandle<()>>,
    historian: Option<JoinHandle<()>>,
    resender: Option<JoinHandle<()>>,
    resend: Arc<AtomicBool>,
}

impl Workload {
    /// # Errors
    /// When a thread cannot be had.
    pub(crate) fn start(shared: &Arc<Shared>) -> std::io::Result<Workload> {
        let mut numbers = 0..;
        let mut start = |name: &str, part: Box<dyn FnOnce(Client) + Send>| {
            let client = Client::new(numbers.next().unwrap_or(u32::MAX), shared.clone());
            std::thread::Builder::new().name(name.into()).spawn(move || part(client))
        };
        let mut writers = Vec::new();
        for _ in 0..REGISTER_CLIENTS {
            writers.push(start("registers", Box::new(registers))?);
        }
        for _ in 0..LIST_CLIENTS {
            writers.push(start("lists", Box::new(lists))?);
        }
        for _ in 0..INSERT_CLIENTS {
            writers.push(start("inserts", Box::new(inserts))?);
        }
        writers.push(start("scaling", Box::new(scaling))?);
        writers.push(start("census", Box::new(census::take))?);
        let followers = (0..WATCHERS).map(|_| start("follower", Box::new(watch::follow))).collect::<Result<_, _>>()?;
        let historian = start("history", Box::new(watch::keep_history))?;
        let resend = Arc::new(AtomicBool::new(true));
        let on = resend.clone();
        let resender = start("resend", Box::new(move |client| resender(client, &on)))?;
        let (historian, resender) = (Some(historian), Some(resender));
        Ok(Workload { shared: shared.clone(), writers, followers, historian, resender, resend })
    }

    /// Ends the writers; then every write of which nothing is known has a last chance to be known.
    pub(crate) fn stop_writers(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        join(self.writers.drain(..));
        self.resend.store(false, Ordering::Relaxed);
        join(self.resender.take());
    }

    /// Waits until the followers have seen the event with this index, or had time enough for it.
    pub(crate) fn stop_followers(&mut self, last_event: u64) {
        self.shared.last_event.store(last_event, Ordering::Relaxed);
        join(self.followers.drain(..));
        self.shared.table_complete.store(true, Ordering::Relaxed);
        join(self.historian.take());
    }
}

/// A run that fails in its middle leaves no clients behind.
impl Drop for Workload {
    fn drop(&mut self) {
        self.stop_writers();
        self.stop_followers(0);
    }
}

/// A client that panicked has said so on standard error; what it knew is in the record.
fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        let _ = thread.join();
    }
}

/// Writes, swaps and reads registers; some reads are of one node's own files.
fn registers(mut client: Client) {
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    while !client.shared.stopped() {
        let set = client.shared.register_operations.fetch_add(1, Ordering::Relaxed) / REGISTER_OPERATIONS;
        let key = set * REGISTERS + client.dice.below(REGISTERS as usize) as u64;
        let value = client.shared.value();
        let call = match (client.dice.below(100), seen.get(&key).copied()) {
            (0..35, _) => Call::Get { key },
            (35..50, _) => {
                let nodes = client.shared.nodes();
                Call::GetLocal { key, node: nodes[client.dice.below(nodes.len())].name.clone() }
            }
            (50..75, Some(from)) => Call::Cas { key, from, value },
            _ => Call::Put { key, value },
        };
        let end = client.perform(call.clone());
        match (&call, &end) {
            (Call::Get { .. }, End::Answered { answer: Answer::Value(value), .. }) if *value != 0 => {
                seen.insert(key, *value);
            }
            (Call::Put { .. }, End::Answered { .. })
            | (Call::Cas { .. }, End::Answered { answer: Answer::Swapped(true), .. }) => {
                seen.insert(key, value);
            }
            (Call::Cas { .. }, _) => {
                seen.remove(&key);
            }
            _ => {}
        }
        // Keys of earlier sets are never asked for again.
        seen.retain(|key, _| *key >= set * REGISTERS);
        client.rest(&end);
    }
}

/// Transactions that append to and read from up to three lists.
fn lists(mut client: Client) {
    while !client.shared.stopped() {
        let set = client.shared.list_operations.fetch_add(1, Ordering::Relaxed) / LIST_OPERATIONS;
        let mut chosen: Vec<u64> = (set * LISTS..(set + 1) * LISTS).collect();
        client.dice.shuffle(&mut chosen);
        chosen.truncate(1 + client.dice.below(3));
        let only_reads = client.dice.chance(35);
        let mut steps = Vec::new();
        for list in chosen {
            if only_reads || client.dice.chance(40) {
                steps.push(Step::Read { list });
            } else {
                steps.push(Step::Append { list, value: client.shared.value() });
            }
        }
        let end = client.perform(Call::Transaction { steps });
        client.rest(&end);
    }
}

fn inserts(mut client: Client) {
    while !client.shared.stopped() {
        let row = client.shared.value();
        let end = client.perform(Call::Insert { row });
        client.rest(&end);
    }
}

/// Changes how many copies of the service run, to and fro.
fn scaling(mut client: Client) {
    let mut turn = 0;
    while !client.shared.stopped() {
        let end = client.perform(Call::Scale { replicas: COPIES[turn % COPIES.len()] });
        turn += 1;
        client.rest(&end);
        client.sleep(SCALE_EVERY, Shared::stopped);
    }
}

/// Sends what is unknown again, while its id is remembered.
fn resender(mut client: Client, on: &AtomicBool) {
    let shared = client.shared.clone();
    loop {
        let Some(pending) = lock(&shared.unknown).pop_front() else {
            if !on.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(RESEND_PAUSE);
            continue;
        };
        let left = RESEND_FOR.saturating_sub(pending.since.elapsed());
        if left.is_zero() {
            continue;
        }
        let deadline = Instant::now() + left.min(RESEND_PATIENCE);
        match client.try_until(&pending.call, Some(pending.id), deadline) {
            end @ End::Answered { .. } => shared.record.write(Line::Resolved { operation: pending.number, end }),
            // Not done *this* time says nothing of the first time.
            End::Refused { .. } | End::Unknown { .. } => lock(&shared.unknown).push_back(pending),
        }
    }
}

impl Client {
    /// Counts the operation and pauses before the next one.
    fn rest(&mut self, end: &End) {
        if matches!(end, End::Answered { .. }) {
            self.shared.answered.fetch_add(1, Ordering::Relaxed);
        }
        let pause = self.dice.between(PACE / 2, PACE * 3 / 2);
        std::thread::sleep(pause);
    }

    /// Pauses until `over`, at most for `span`.
    pub(crate) fn sleep(&self, span: Duration, over: impl Fn(&Shared) -> bool) {
        let until = Instant::now() + span;
        while !over(&self.shared) && Instant::now() < until {
            std::thread::sleep(PACE.min(until.saturating_duration_since(Instant::now())));
        }
    }
}
