//! Logs, and what they must lead to.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use quorate_model::command::{Command, Step};
use quorate_model::entry::Proposal;
use quorate_model::event::Happening;
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::spec::{Format, parse};
use quorate_model::sql::{Scalar, SqlBatch, SqlOutcome, Statement, StatementResult, Value};
use quorate_model::state::{NodeIdentity, Role};
use quorate_model::time::WallTime;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

mod access;
mod determinism;
mod fences;
mod files;
mod members;
mod property;
mod readers;
mod rules;

const SECOND: u64 = 1_000_000;
const START: u64 = 1_700_000_000 * SECOND;

/// A log that is being written.
#[derive(Debug, Clone)]
struct Log {
    entries: Vec<ToApply>,
    time_us: u64,
}

impl Log {
    fn new() -> Log {
        Log { entries: Vec::new(), time_us: START }
    }

    fn next(&self) -> u64 {
        self.entries.len() as u64 + 1
    }

    fn push(&mut self, proposal: Proposal) {
        self.time_us += 1_234_567;
        let seed = self.next().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let envelope = Envelope::stamp(proposal, WallTime(self.time_us), seed);
        self.item(Item::Data(prost_bytes(&envelope)));
    }

    fn item(&mut self, item: Item) {
        self.entries.push(ToApply { index: LogIndex(self.next()), term: Term(1 + self.next() / 10), item });
    }

    /// Statements that stand alone, under a request id of their own.
    fn sql(&mut self, statements: &[&str]) -> &mut Log {
        self.sql_as(u128::from(self.next()) << 64, statements, false)
    }

    fn transaction(&mut self, statements: &[&str]) -> &mut Log {
        self.sql_as(u128::from(self.next()) << 64, statements, true)
    }

    fn sql_as(&mut self, id: u128, statements: &[&str], transaction: bool) -> &mut Log {
        let statements = statements.iter().map(|sql| Statement::new(*sql)).collect();
        self.batch(id, &SqlBatch { statements, transaction })
    }

    fn batch(&mut self, id: u128, batch: &SqlBatch) -> &mut Log {
        self.push(Proposal::sql(RequestId::from_u128(id), batch));
        self
    }

    fn command(&mut self, command: &Command) -> &mut Log {
        self.push(Proposal::command(RequestId::from_u128(u128::from(self.next()) << 64), command));
        self
    }

    fn later(&mut self, seconds: u64) -> &mut Log {
        self.time_us += seconds * SECOND;
        self
    }
}

fn prost_bytes(envelope: &Envelope) -> Bytes {
    use prost::Message as _;
    envelope.encode_to_vec().into()
}

fn open(root: &Path) -> Databases {
    Databases::open(root, b"genesis").unwrap().databases
}

/// New databases in a directory of their own, with the log applied entry by entry.
fn with(log: &Log) -> (TempDir, Databases) {
    let root = tempfile::tempdir().unwrap();
    let mut databases = open(root.path());
    apply(&mut databases, log);
    (root, databases)
}

/// Applies what of the log is new, one entry a batch, and returns what came of it.
fn apply(databases: &mut Databases, log: &Log) -> Vec<AppliedEntry> {
    let applied = databases.system.applied().index.max(databases.main.applied().index);
    let news = log.entries.iter().filter(|entry| entry.index > applied);
    news.flat_map(|entry| databases.apply(std::slice::from_ref(entry)).unwrap()).collect()
}

fn outcome(applied: &AppliedEntry) -> &SqlOutcome {
    match &applied.outcome {
        Outcome::Sql(outcome) => outcome,
        other => panic!("{other:?} is no SQL outcome"),
    }
}

/// What came of the last entry's statements.
fn last(applied: &[AppliedEntry]) -> &[StatementResult] {
    &outcome(applied.last().unwrap()).results
}

fn error(result: &StatementResult) -> &str {
    result.error.as_ref().map_or("", |error| &error.message)
}

/// An ordinary connection, as any other program would open it.
fn outside(root: &Path, database: Database) -> Connection {
    let path = writer::file(&Place::from(root).current().unwrap(), database);
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// A query's only value, as text.
fn ask(root: &Path, sql: &str) -> String {
    outside(root, Database::Main).query_row(sql, [], |row| row.get_ref(0).map(|value| format!("{value:?}"))).unwrap()
}

/// Everything in both files but how far they are, which the batches decide.
fn contents(root: &Path) -> String {
    let mut text = String::new();
    for database in Database::ALL {
        let connection = outside(root, database);
        let mut schema = connection
            .prepare(
                "SELECT name, rootpage, sql FROM sqlite_schema WHERE rootpage > 0 AND type = 'table' ORDER BY name",
            )
            .unwrap();
        let tables: Vec<(String, i64, Option<String>)> = schema
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        for (table, page, sql) in tables {
            writeln!(text, "== {} {table} {page} {sql:?}", database.name()).unwrap();
            let wanted = match table.as_str() {
                "_quorate_meta" => "format, digest, time_us, planned_on, voters",
                _ => "*",
            };
            let mut select = connection.prepare(&format!("SELECT {wanted} FROM \"{table}\"")).unwrap();
            let width = select.column_count();
            let mut rows = select.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                for column in 0..width {
                    write!(text, "{:?} ", row.get_ref(column).unwrap()).unwrap();
                }
                text.push('\n');
            }
        }
        let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
    text
}

fn register(bits: u128, boot: u64) -> Command {
    let node = NodeIdentity {
        id: NodeId::from_u128(bits),
        name: format!("n{bits}"),
        roles: BTreeSet::from([Role::Worker]),
        api: "127.0.0.1:1".into(),
        link: "127.0.0.1:2".into(),
        host: "127.0.0.1".into(),
    };
    Command::RegisterNode { node, boot }
}

fn apply_spec(text: &str) -> Command {
    Command::ApplySpec { document: parse(text, Format::Toml).unwrap() }
}

const WEB: &str = "[[service]]\nname = 'web'\ncommand = ['/bin/web']\n";

fn scale(service: &str, replicas: u32) -> Command {
    Command::ScaleService { service: ServiceName::new(service).unwrap(), replicas }
}
