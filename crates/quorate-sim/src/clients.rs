//! Who uses the cluster: clients that ask one thing at a time, of any node, and try elsewhere under
//! the same request id when they hear nothing.
//!
//! Registers (written, compared and set, deleted, read both ways) make the history that is checked
//! for linearizability; transactions that append to several lists and read them make the one that is
//! checked for strict serializability. Besides them, clients send what is there to make trouble: batches that fail
//! in the middle, statements that end their transaction, tables with defaults that depend on time and
//! chance, and changes to services.

use crate::agent::NEVER_WELL;
use crate::dice::Dice;
use crate::machine::Machine;
use crate::scenario::Scenario;
use crate::seen::Seen;
use crate::world::{What, World};
use quorate_check::history::{Client, End, Moment, Operation};
use quorate_check::list_append::{List, Reads, Step, Transaction};
use quorate_check::register::{Answer, Call, Key, Value};
use quorate_check::witness::{self, Asked, Life};
use quorate_model::command::Command;
use quorate_model::entry::{Database, Outcome, Proposal};
use quorate_model::fence::Fence;
use quorate_model::id::{LogIndex, RequestId, ServiceName};
use quorate_model::spec::{self, Format};
use quorate_model::sql::{Rows, Scalar, SqlBatch, Statement};
use quorate_model::time::Timestamp;
use quorate_node::{Event, Refused, Ticket};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What users' tables look like.
const SCHEMA: &str = "
    CREATE TABLE reg (k INTEGER PRIMARY KEY, v INTEGER NOT NULL, t TEXT DEFAULT CURRENT_TIMESTAMP, r INTEGER);
    CREATE TABLE log (id INTEGER PRIMARY KEY, request BLOB UNIQUE, t TEXT DEFAULT (datetime('now')), r INTEGER DEFAULT (random()));
    CREATE TABLE lists (id INTEGER PRIMARY KEY, list INTEGER NOT NULL, element INTEGER NOT NULL);
    CREATE TABLE guarded (v INTEGER);
    CREATE TRIGGER guard AFTER INSERT ON guarded WHEN NEW.v % 3 = 0 BEGIN SELECT RAISE(ROLLBACK, 'no threes'); END;
    CREATE TRIGGER fail AFTER INSERT ON guarded WHEN NEW.v % 5 = 1 BEGIN SELECT RAISE(FAIL, 'no ones'); END;
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED)";

/// How long a client goes on asking.
const PATIENCE: Duration = Duration::from_secs(15);
/// Lists that transactions append to.
const LISTS: u64 = 8;
/// Questions that a client asks in a row, on average.
const BURST: u64 = 5;
/// So many of a thousand answers to mutations are lost on their way, with the client's connection. It
/// asks again some time later, under the same request id.
const ANSWERS_LOST: u64 = 25;
/// And in times of trouble.
const ANSWERS_LOST_IN_TROUBLE: u64 = 600;
/// How long it waits for one node.
const NODE_PATIENCE: Duration = Duration::from_secs(4);

/// All clients and what they saw.
#[derive(Debug)]
pub(crate) struct Clients {
    callers: Vec<Caller>,
    pub history: Vec<Operation<Asked, witness::Seen>>,
    pub transactions: Vec<Operation<Transaction, Reads>>,
    /// Positions in the history of mutations.
    pub requests: BTreeMap<RequestId, usize>,
    /// Mutations that were acknowledged and reads that were answered.
    pub acknowledged: u64,
    /// By the machine that answered, since the cluster began to heal.
    pub answered_by: Vec<u64>,
    registers: u64,
    next_value: u64,
    /// Under which epochs is written.
    fences: Dice,
    /// Between two bursts of a client.
    pause: (Duration, Duration),
    ready: bool,
    /// Everybody asks another node each time.
    roaming: bool,
    stopping: bool,
    trouble_until: Timestamp,
}

/// One client.
#[derive(Debug)]
struct Caller {
    dice: Dice,
    machine: usize,
    /// Grows with whatever the client does, so that an alarm of before is ignored.
    step: u64,
    /// Questions so far: an answer to an earlier one is no answer to this one.
    questions: u64,
    doing: Option<Doing>,
}

/// What a client waits for.
#[derive(Debug)]
struct Doing {
    record: Option<Record>,
    what: Wish,
    deadline: Timestamp,
}

/// Where a question stands in what is judged later.
#[derive(Debug, Clone, Copy)]
enum Record {
    Register(usize),
    Transaction(usize),
}

#[derive(Debug, Clone)]
enum Wish {
    Mutate(Proposal, Option<Call>),
    Transact(Proposal, Transaction),
    Read(Key),
    LocalRead(Key),
    ReadLists(Transaction),
}

impl Wish {
    fn proposal(&self) -> Option<&Proposal> {
        match self {
            Wish::Mutate(proposal, _) | Wish::Transact(proposal, _) => Some(proposal),
            Wish::Read(_) | Wish::LocalRead(_) | Wish::ReadLists(_) => None,
        }
    }

    fn waits_for_index(&self) -> bool {
        matches!(self, Wish::Read(_) | Wish::ReadLists(_))
    }
}

/// The pauses that make all clients together ask as often as the scenario says.
fn pause(scenario: &Scenario) -> (Duration, Duration) {
    let average_ms = u64::from(scenario.clients) * BURST * 1_000 / scenario.questions_per_s;
    (Duration::from_millis(average_ms / 10), Duration::from_millis(average_ms * 19 / 10))
}

/// How a question ended.
#[derive(Debug)]
enum Ended {
    Register(witness::Seen),
    Lists(Reads),
    /// It has no effect.
    Refused,
    Unknown,
}

pub(crate) fn micros(at: Timestamp) -> Moment {
    Moment(u64::try_from(at.0.as_nanos()).expect("simulated time is short"))
}

impl Clients {
    pub(crate) fn new(scenario: &Scenario) -> Clients {
        let callers = (0..scenario.clients)
            .map(|number| Caller {
                dice: Dice::new(scenario.seed, &format!("client {number}")),
                machine: number as usize % scenario.nodes,
                step: 0,
                questions: 0,
                doing: None,
            })
            .collect();
        Clients {
            callers,
            history: Vec::new(),
            transactions: Vec::new(),
            requests: BTreeMap::new(),
            acknowledged: 0,
            answered_by: vec![0; scenario.machines()],
            registers: Dice::new(scenario.seed, "registers").between(2, 12),
            next_value: 0,
            fences: Dice::new(scenario.seed, "fences"),
            pause: pause(scenario),
            ready: false,
            roaming: false,
            stopping: false,
            trouble_until: Timestamp::default(),
        }
    }

    /// From now on every node is asked, and counted anew.
    pub(crate) fn roam(&mut self) {
        self.roaming = true;
        self.answered_by.fill(0);
    }

    pub(crate) fn lose_answers_until(&mut self, end: Timestamp) {
        self.trouble_until = end;
    }

    /// Nobody asks anything new from now on.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    pub(crate) fn all_done(&self) -> bool {
        self.callers.iter().all(|caller| caller.doing.is_none())
    }
}

fn sql(request: RequestId, statements: Vec<Statement>, transaction: bool) -> Proposal {
    Proposal::sql(request, &SqlBatch { statements, transaction })
}

fn statement(text: &str, values: &[u64]) -> Statement {
    let positional = values.iter().map(|value| Scalar::Integer(value.cast_signed()).into()).collect();
    Statement { positional, ..Statement::new(text) }
}

impl World {
    pub(crate) fn begin_clients(&mut self) {
        for client in 0..self.clients.callers.len() {
            let client = u32::try_from(client).expect("few");
            // The first one makes the tables; the others wait for it.
            self.later(Duration::from_millis(300), What::Client { client, step: 0 });
        }
    }

    pub(crate) fn client_moves(&mut self, client: u32, step: u64) {
        let caller = &mut self.clients.callers[client as usize];
        if caller.step != step {
            return;
        }
        if caller.doing.is_some() {
            self.elsewhere(client);
            return;
        }
        if self.clients.stopping {
            return;
        }
        if !self.clients.ready && client != 0 {
            self.alarm(client, Duration::from_millis(200));
            return;
        }
        let members = self.members();
        let caller = &mut self.clients.callers[client as usize];
        if self.clients.roaming || caller.dice.chance(200) {
            caller.machine = *caller.dice.pick(&members);
        }
        let what = self.wish(client);
        let (asked, deadline) = (micros(self.now), self.now.plus(PATIENCE));
        let caller = &self.clients.callers[client as usize];
        let process = self.machines[caller.machine].process.as_ref();
        let life = self.machines[caller.machine].life;
        let call = match &what {
            Wish::Mutate(_, call) => call.map(Asked::Linearizable),
            Wish::Read(key) => Some(Asked::Linearizable(Call::Read { key: *key })),
            Wish::LocalRead(key) => process.map(|_| Asked::Local {
                key: *key,
                life: Some(Life { node: caller.machine as u32, start: u32::try_from(life).expect("few") }),
            }),
            Wish::Transact(..) | Wish::ReadLists(_) => None,
        };
        let clients = &mut self.clients;
        let record = match (&what, call) {
            (Wish::Transact(_, steps) | Wish::ReadLists(steps), _) => {
                let (client, call) = (Client(client), steps.clone());
                clients.transactions.push(Operation { client, asked, call, end: End::Unknown });
                Some(Record::Transaction(clients.transactions.len() - 1))
            }
            (_, Some(call)) => {
                clients.history.push(Operation { client: Client(client), asked, call, end: End::Unknown });
                Some(Record::Register(clients.history.len() - 1))
            }
            (_, None) => None,
        };
        if let (Some(proposal), Some(Record::Register(position))) = (what.proposal(), record) {
            clients.requests.insert(proposal.request_id, position);
        }
        let caller = &mut self.clients.callers[client as usize];
        caller.questions += 1;
        caller.doing = Some(Doing { record, what, deadline });
        self.ask(client);
    }

    /// What a client does next.
    fn wish(&mut self, client: u32) -> Wish {
        let may_fail = self.has_proven(FLAKY);
        let fence = self.some_fence(client);
        let clients = &mut self.clients;
        let dice = &mut clients.callers[client as usize].dice;
        let request = RequestId::from_u128(dice.wide());
        if !clients.ready {
            let statements = SCHEMA.split(";\n").map(Statement::new).collect();
            return Wish::Mutate(sql(request, statements, true), None);
        }
        let key = Key(dice.below(clients.registers));
        clients.next_value += 1;
        let value = Value(clients.next_value);
        match dice.below(100) {
            0..25 => {
                let text = "INSERT INTO reg (k, v, r) VALUES (?1, ?2, random()) ON CONFLICT (k) DO UPDATE SET v = excluded.v, t = datetime('now'), r = random()";
                let write = statement(text, &[key.0, value.0]);
                Wish::Mutate(sql(request, vec![write], false), Some(Call::Write { key, value }))
            }
            25..35 => {
                // Some recent value: now and then the right one.
                let from = Value(clients.next_value.saturating_sub(dice.between(1, 6)));
                let text = "UPDATE reg SET v = ?2, t = datetime('now') WHERE k = ?1 AND v = ?3";
                let cas = statement(text, &[key.0, value.0, from.0]);
                Wish::Mutate(sql(request, vec![cas], false), Some(Call::Cas { key, from: Some(from), to: value }))
            }
            35..38 => {
                let delete = statement("DELETE FROM reg WHERE k = ?1", &[key.0]);
                Wish::Mutate(sql(request, vec![delete], false), Some(Call::Delete { key }))
            }
            38..58 => Wish::Read(key),
            58..66 => Wish::LocalRead(key),
            66..72 => {
                let steps: Transaction = (0..dice.between(1, 4)).map(|_| step(dice, clients.next_value)).collect();
                // One transaction appends an element to a list once.
                let mut seen = std::collections::BTreeSet::new();
                let steps: Transaction = steps
                    .into_iter()
                    .filter(|step| !matches!(step, Step::Append { list, element } if !seen.insert((*list, *element))))
                    .collect();
                let statements = steps.iter().map(|step| list_statement(*step)).collect();
                Wish::Transact(sql(request, statements, true), steps)
            }
            72..76 => {
                let first = dice.below(LISTS);
                let lists = first..=dice.between(first, LISTS - 1);
                Wish::ReadLists(lists.map(|list| Step::Read { list: List(list) }).collect())
            }
            76..82 => {
                let mut insert = Statement::new("INSERT INTO log (request) VALUES (?1)");
                insert.positional = vec![Scalar::Blob(request.0.as_bytes().to_vec().into()).into()];
                Wish::Mutate(sql(request, vec![insert], false), None)
            }
            82..96 => {
                let some = |dice: &mut Dice| match dice.below(6) {
                    0..3 => statement("INSERT INTO guarded VALUES (?1)", &[dice.below(30)]),
                    3 => statement("INSERT OR ROLLBACK INTO parent VALUES (?1)", &[dice.below(12)]),
                    4 => statement("INSERT INTO child (parent) VALUES (?1)", &[dice.below(12)]),
                    _ => statement("DELETE FROM parent WHERE id = ?1", &[dice.below(12)]),
                };
                let statements = (0..dice.between(1, 4)).map(|_| some(dice)).collect();
                let transaction = dice.chance(500);
                Wish::Mutate(sql(request, statements, transaction).under(fence), None)
            }
            _ => Wish::Mutate(Proposal::command(request, &service_command(dice, may_fail)), None),
        }
    }

    /// The epoch of a copy as the client's node knows it, which may be behind; now and then the one before it, or
    /// one that nobody has. `None`: it writes without.
    fn some_fence(&mut self, client: u32) -> Option<Fence> {
        let clients = &mut self.clients;
        let dice = &mut clients.fences;
        let (fenced, which, off) = (dice.chance(500), dice.next(), dice.below(10));
        let process = self.machines[clients.callers[client as usize].machine].process.as_ref()?;
        let leases = &process.node.state().leases;
        let which = usize::try_from(which % leases.len().max(1) as u64).expect("few");
        let lease = leases.values().nth(which).filter(|_| fenced)?;
        let epoch = match off {
            0 | 1 => lease.epoch.max(2) - 1,
            2 => lease.epoch + 1,
            _ => lease.epoch,
        };
        Some(Fence { service: lease.name.clone(), epoch })
    }

    /// Whether there is a version of the service that it can go back to. Once there is, there always is.
    fn has_proven(&self, service: &str) -> bool {
        let states = self.machines.iter().filter_map(|machine| Some(machine.process.as_ref()?.node.state()));
        let mut found = states.filter_map(|state| {
            state.deployments.iter().find(|(name, _)| name.as_str() == service).map(|(_, deployment)| deployment)
        });
        found.any(|deployment| deployment.from.is_some() || deployment.stage.is_over())
    }

    /// Sends what a client wishes to the node that it uses now.
    fn ask(&mut self, client: u32) {
        let caller = &mut self.clients.callers[client as usize];
        let n = caller.machine;
        let Some(doing) = &caller.doing else { return };
        let what = doing.what.clone();
        let clocks = self.machines[n].clocks(self.now);
        let Some(process) = &mut self.machines[n].process else {
            let pause = caller.dice.between(5, 200);
            self.alarm(client, Duration::from_millis(pause));
            return;
        };
        let deadline = clocks.mono.plus(NODE_PATIENCE);
        match what {
            Wish::Mutate(proposal, _) | Wish::Transact(proposal, _) => {
                process.waiters.insert(proposal.request_id, client);
                self.tell(n, Event::Propose { proposal, deadline });
            }
            Wish::Read(_) | Wish::ReadLists(_) => {
                process.tickets += 1;
                let ticket = Ticket(process.tickets);
                process.readers.insert(ticket, (client, caller.questions));
                self.tell(n, Event::Read { ticket, deadline });
            }
            Wish::LocalRead(key) => {
                if self.machines[n].paused_until <= self.now {
                    self.read_now(n, client, key);
                    return;
                }
            }
        }
        self.alarm(client, NODE_PATIENCE + Duration::from_millis(500));
    }

    fn alarm(&mut self, client: u32, delay: Duration) {
        let caller = &mut self.clients.callers[client as usize];
        caller.step += 1;
        let step = caller.step;
        self.later(delay, What::Client { client, step });
    }

    /// No answer: the same request goes to another node, or the client gives up.
    fn elsewhere(&mut self, client: u32) {
        let members = self.members();
        let now = self.now;
        let caller = &mut self.clients.callers[client as usize];
        caller.machine = *caller.dice.pick(&members);
        let Some(doing) = &caller.doing else { return };
        // A local read is about one node; elsewhere it would be another question.
        let over = doing.deadline <= now || matches!(doing.what, Wish::LocalRead(_));
        // Without its tables nobody can do anything.
        if over && self.clients.ready {
            if doing.what.proposal().is_none() {
                let end = Ended::Refused;
                self.finish(client, end);
            } else {
                self.finish(client, Ended::Unknown);
            }
        } else {
            self.ask(client);
        }
    }

    fn finish(&mut self, client: u32, end: Ended) {
        let at = micros(self.now);
        let caller = &mut self.clients.callers[client as usize];
        let Some(doing) = caller.doing.take() else { return };
        let burst = caller.dice.below(BURST) > 0;
        let pause = if burst { (Duration::from_millis(1), Duration::from_millis(30)) } else { self.clients.pause };
        let pause = caller.dice.span(pause);
        match doing.record {
            Some(Record::Register(position)) => {
                self.clients.history[position].end = match end {
                    Ended::Register(answer) => End::Answered { at, answer },
                    Ended::Refused => End::Refused { at },
                    Ended::Lists(_) | Ended::Unknown => End::Unknown,
                };
            }
            Some(Record::Transaction(position)) => {
                self.clients.transactions[position].end = match end {
                    Ended::Lists(answer) => End::Answered { at, answer },
                    Ended::Refused => End::Refused { at },
                    Ended::Register(_) | Ended::Unknown => End::Unknown,
                };
            }
            None => {}
        }
        self.alarm(client, pause);
    }

    /// A node applied the request of a client that waits there.
    pub(crate) fn answered(&mut self, n: usize, client: u32, request: RequestId, index: LogIndex, outcome: &Outcome) {
        if self.answer_lost(client, request) {
            return;
        }
        let Some(doing) = &self.clients.callers[client as usize].doing else { return };
        let Some(proposal) = doing.what.proposal().filter(|proposal| proposal.request_id == request).cloned() else {
            return;
        };
        // What became of it may be forgotten; that it was done is known.
        let end = match &doing.what {
            Wish::Mutate(_, Some(call)) => {
                answer(*call, outcome).map(|answer| Ended::Register(witness::Seen { answer, index }))
            }
            Wish::Transact(_, steps) => lists_read(steps, outcome).map(Ended::Lists),
            _ => None,
        };
        self.clients.ready = true;
        self.clients.acknowledged += 1;
        self.clients.answered_by[n] += 1;
        self.trace.note(self.now, "answered", n, client.into(), index.0);
        self.show(&Seen::Answered { request, index, proposal: &proposal });
        self.finish(client, end.unwrap_or(Ended::Unknown));
    }

    /// Whether the answer does not reach the client, which asks again then.
    fn answer_lost(&mut self, client: u32, request: RequestId) -> bool {
        let caller = &mut self.clients.callers[client as usize];
        let asked = caller.doing.as_ref().and_then(|doing| doing.what.proposal());
        let waits = asked.is_some_and(|proposal| proposal.request_id == request);
        let often = if self.now < self.clients.trouble_until { ANSWERS_LOST_IN_TROUBLE } else { ANSWERS_LOST };
        let lost = waits && self.clients.ready && caller.dice.chance(often);
        if lost {
            let later = caller.dice.between(1, 6_000);
            self.alarm(client, Duration::from_millis(later));
        }
        lost
    }

    /// A node will not answer.
    pub(crate) fn refused(&mut self, client: u32, request: RequestId, why: Refused) {
        let caller = &mut self.clients.callers[client as usize];
        let waits = caller
            .doing
            .as_ref()
            .and_then(|doing| doing.what.proposal())
            .is_some_and(|proposal| proposal.request_id == request);
        if waits {
            let pause = if why == Refused::Overloaded { 200 } else { 1 };
            self.alarm(client, Duration::from_millis(pause));
        }
    }

    /// A linearizable read may be answered by this machine's database now.
    pub(crate) fn read_ready(&mut self, n: usize, client: u32, question: u64) {
        let caller = &self.clients.callers[client as usize];
        match &caller.doing {
            Some(Doing { what: Wish::Read(key), .. }) if caller.questions == question => {
                let key = *key;
                self.read_now(n, client, key);
            }
            Some(Doing { what: Wish::ReadLists(steps), .. }) if caller.questions == question => {
                let steps = steps.clone();
                self.read_lists_now(n, client, &steps);
            }
            _ => {}
        }
    }

    pub(crate) fn read_failed(&mut self, client: u32, question: u64) {
        let caller = &self.clients.callers[client as usize];
        let waits = caller.doing.as_ref().is_some_and(|doing| doing.what.waits_for_index());
        if waits && caller.questions == question {
            self.alarm(client, Duration::from_millis(1));
        }
    }

    fn read_now(&mut self, n: usize, client: u32, key: Key) {
        match read_register(&mut self.machines[n], key) {
            Some((content, index)) => {
                self.trace.note(self.now, "read", n, key.0, content.map_or(0, |value| value.0));
                let seen = witness::Seen { answer: Answer::Read(content), index };
                self.read_done(n, client, Ended::Register(seen));
            }
            None => self.alarm(client, Duration::from_millis(50)),
        }
    }

    fn read_lists_now(&mut self, n: usize, client: u32, steps: &[Step]) {
        let statements = steps.iter().map(|step| list_statement(*step)).collect();
        match query(&mut self.machines[n], statements) {
            Some((found, index)) => {
                self.trace.note(self.now, "lists", n, steps.len() as u64, index.0);
                self.read_done(n, client, Ended::Lists(found.iter().map(elements).collect()));
            }
            None => self.alarm(client, Duration::from_millis(50)),
        }
    }

    fn read_done(&mut self, n: usize, client: u32, end: Ended) {
        self.clients.acknowledged += 1;
        self.clients.answered_by[n] += 1;
        self.finish(client, end);
    }

    /// A server is gone, and with it what these clients waited for.
    pub(crate) fn server_gone(&mut self, waiting: &[u32], noticed: bool) {
        for client in waiting {
            if noticed && self.clients.callers[*client as usize].doing.is_some() {
                self.alarm(*client, Duration::from_millis(2));
            }
        }
    }
}

/// What a machine's database answers, and the index up to which it has applied.
pub(crate) fn query(machine: &mut Machine, statements: Vec<Statement>) -> Option<(Vec<Rows>, LogIndex)> {
    let process = machine.process.as_mut()?;
    let reader = process.reader.as_mut()?;
    let batch = SqlBatch { statements, transaction: false };
    // Simulated queries take no time; the limit is there for real ones.
    let found = reader.query(Database::Main, &batch, Instant::now() + Duration::from_secs(3_600)).ok()?;
    let rows = found.results.into_iter().collect::<Result<Vec<Rows>, _>>().ok()?;
    // The file says only up to where it was written; the process knows that nothing was missing.
    Some((rows, process.applied.max(found.applied)))
}

fn read_register(machine: &mut Machine, key: Key) -> Option<(Option<Value>, LogIndex)> {
    let (rows, index) = query(machine, vec![statement("SELECT v FROM reg WHERE k = ?1", &[key.0])])?;
    Some((elements(rows.first()?).first().map(|value| Value(*value)), index))
}

/// The numbers in the first column.
pub(crate) fn elements(rows: &Rows) -> Vec<u64> {
    let number = |value: &quorate_model::sql::Value| match value.scalar {
        Some(Scalar::Integer(number)) => number.cast_unsigned(),
        _ => u64::MAX,
    };
    rows.rows.iter().filter_map(|row| row.values.first().map(number)).collect()
}

/// A step of a transaction: mostly appends, each of an element that no other transaction has.
fn step(dice: &mut Dice, element: u64) -> Step {
    let list = List(dice.below(LISTS));
    if dice.chance(700) { Step::Append { list, element } } else { Step::Read { list } }
}

fn list_statement(step: Step) -> Statement {
    match step {
        Step::Append { list, element } => {
            statement("INSERT INTO lists (list, element) VALUES (?1, ?2)", &[list.0, element])
        }
        Step::Read { list } => statement("SELECT element FROM lists WHERE list = ?1 ORDER BY id", &[list.0]),
    }
}

/// One read of every list, for the end of a history.
pub(crate) fn read_of_all_lists() -> (Transaction, Vec<Statement>) {
    let steps: Transaction = (0..LISTS).map(|list| Step::Read { list: List(list) }).collect();
    let statements = steps.iter().map(|step| list_statement(*step)).collect();
    (steps, statements)
}

/// What a transaction's reads saw.
fn lists_read(steps: &[Step], outcome: &Outcome) -> Option<Reads> {
    let Outcome::Sql(outcome) = outcome else { return None };
    if outcome.results.len() != steps.len() || outcome.results.iter().any(|result| result.error.is_some()) {
        return None;
    }
    let reads = steps.iter().zip(&outcome.results).filter(|(step, _)| matches!(step, Step::Read { .. }));
    Some(reads.map(|(_, result)| result.rows.as_ref().map(elements).unwrap_or_default()).collect())
}

/// What the outcome of a register's statement means.
pub(crate) fn answer(call: Call, outcome: &Outcome) -> Option<Answer> {
    let Outcome::Sql(outcome) = outcome else { return None };
    let result = outcome.results.first().filter(|result| result.error.is_none())?;
    let missed = matches!(call, Call::Cas { .. }) && result.rows_affected == 0;
    Some(if missed { Answer::Mismatch } else { Answer::Done })
}

/// A service of which some versions never get well.
const FLAKY: &str = "flaky";

fn service_command(dice: &mut Dice, may_fail: bool) -> Command {
    let update = format!(
        "update = {{ healthy_for = '1s', verify_for = '2s', healthy_within = '20s', progress_within = '60s', batch = {}, canary = {} }}",
        dice.between(1, 2),
        dice.below(2)
    );
    if dice.chance(150) {
        let (version, fails) = (dice.below(2), may_fail && dice.chance(500));
        let env = if fails { format!("{NEVER_WELL} = '1'") } else { format!("V = '{version}'") };
        let text = format!(
            "[[service]]\nname = '{FLAKY}'\ncommand = ['/bin/flaky']\nreplicas = 2\nenv = {{ {env} }}\n{update}"
        );
        return Command::ApplySpec { document: spec::parse(&text, Format::Toml).expect("a good spec") };
    }
    // What runs once is changed rarely: it has to run for long.
    if dice.chance(150) {
        let (name, more) = *dice.pick(&[
            ("once", "failover = '10s'"),
            ("once", "failover = '10s'"),
            ("fast", "failover = '2s'\nunsafe_fast = true"),
            ("kept", "without_quorum = 'keep'"),
        ]);
        if dice.chance(50) {
            return Command::RemoveService { service: ServiceName::new(name).expect("a good name") };
        }
        let version = dice.below(2);
        let text = format!(
            "[[service]]\nname = '{name}'\nmode = 'singleton'\ncommand = ['/bin/{name}']\n{more}\nenv = {{ V = '{version}' }}"
        );
        return Command::ApplySpec { document: spec::parse(&text, Format::Toml).expect("a good spec") };
    }
    if dice.chance(150) {
        let hook = "demote = ['/bin/demote']";
        let (more, active) = *dice.pick(&[("", hook), ("without_quorum = 'demote'", hook), ("", "standby = 'cold'")]);
        let (replicas, version) = (dice.between(2, 3), dice.below(2));
        let service = ServiceName::new("pair").expect("a good name");
        if dice.chance(300) {
            return Command::Activate { service, node: None };
        }
        let text = format!(
            "[[service]]\nname = 'pair'\nmode = 'active-passive'\nreplicas = {replicas}\nfailover = '10s'\n{more}\n\
             command = ['/bin/pair']\nenv = {{ V = '{version}' }}\n[service.active]\n{active}"
        );
        return Command::ApplySpec { document: spec::parse(&text, Format::Toml).expect("a good spec") };
    }
    let name = *dice.pick(&["web", "api", "jobs"]);
    let service = ServiceName::new(name).expect("a good name");
    let replicas = u32::try_from(dice.between(1, 4)).expect("small");
    match dice.below(10) {
        0..5 => Command::ScaleService { service, replicas },
        5..9 => {
            let version = dice.below(3);
            let text = format!(
                "[[service]]\nname = '{name}'\ncommand = ['/bin/{name}']\nreplicas = {replicas}\nenv = {{ V = '{version}' }}\n{update}"
            );
            Command::ApplySpec { document: spec::parse(&text, Format::Toml).expect("a good spec") }
        }
        _ => Command::RemoveService { service },
    }
}
