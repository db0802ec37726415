//! One entry, run on its file.

use super::rules::{NOT_ALLOWED, OWN_MARK, Surroundings};
use super::writer::Writer;
use super::{Decoded, fences, rows};
use bytes::Bytes;
use quorate_model::access::Actor;
use quorate_model::command::Command;
use quorate_model::entry::{Envelope, Kind, Outcome};
use quorate_model::id::LogIndex;
use quorate_model::planted::{Bug, planted};
use quorate_model::sql::{Row, Rows, Scalar, SqlBatch, SqlError, SqlOutcome, Statement, StatementResult, Value};
use quorate_model::state::{Change, ClusterState};
use quorate_model::time::WallTime;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, Error, StatementStatus, ffi};

/// What an entry asks of its file.
#[derive(Debug)]
pub(super) enum Work {
    Nothing,
    Membership(Bytes),
    Sql(SqlBatch),
    /// With who wants it, if it is not the cluster itself.
    Command(Box<(Command, Option<Actor>)>),
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outcome: Outcome,
    pub(super) changes: Vec<Change>,
    pub(super) digest: u64,
    /// The earlier entry that did it, when the request id was known.
    pub(super) first: Option<LogIndex>,
}

/// Why an entry could not be run to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Its SQL ended the whole transaction. It is to be refused like this, and the others run again.
    Gone(SqlOutcome),
    /// Not an answer: the node must stop.
    Sqlite(Error),
    Record(serde_json::Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Sqlite(error)
    }
}

/// Bytes of rows that an entry's statements may return together: its outcome is kept for a while.
const RETURNED_MAX: usize = 8 << 20;

const SAVEPOINT: &str = "/*quorate*/ SAVEPOINT e";
const RELEASE: &str = "/*quorate*/ RELEASE e";
const UNDO: &str = "/*quorate*/ ROLLBACK TO e";
const STATEMENT_SAVEPOINT: &str = "/*quorate*/ SAVEPOINT s";
const STATEMENT_RELEASE: &str = "/*quorate*/ RELEASE s";
const STATEMENT_UNDO: &str = "/*quorate*/ ROLLBACK TO s";

/// Runs one entry, or what it does to a file that it does not write. `refused`: it is known to end the transaction and gets this answer instead.
pub(super) fn entry(
    writer: &mut Writer,
    entry: &Decoded,
    refused: Option<&SqlOutcome>,
    state: Option<&mut ClusterState>,
) -> Result<Ran, Stop> {
    if entry.database != writer.database() {
        for fence in &entry.grants {
            fences::grant(&writer.connection, entry.index, fence)?;
        }
        let digest = writer.current_digest();
        return Ok(Ran { outcome: Outcome::Noop, changes: Vec::new(), digest, first: None });
    }
    let envelope = entry.envelope.as_ref();
    let request = envelope.and_then(Envelope::request_id);
    writer.recorder.begin(writer.current_digest(), entry.index);
    if let Some(id) = request
        && !planted(Bug::RetryAppliedTwice)
        && let Some((first, outcome)) = writer.requests.known(&writer.connection, id)?
    {
        let digest = writer.recorder.finish(&outcome.to_bytes());
        return Ok(Ran { outcome, changes: Vec::new(), digest, first: Some(first) });
    }
    let time_us = writer.set_time(envelope.map_or(0, |envelope| envelope.time_us));
    let mut changes = Vec::new();
    let outcome = match &entry.work {
        Work::Nothing => Outcome::Noop,
        Work::Membership(voters) => {
            writer.set_voters(voters.clone());
            Outcome::Noop
        }
        Work::Sql(batch) => Outcome::Sql(match (fenced_off(writer, entry)?, refused) {
            (Some(outcome), _) => outcome,
            (None, Some(outcome)) => outcome.clone(),
            (None, None) => {
                writer.surroundings.begin_entry(entry.index, envelope.map_or(0, |envelope| envelope.seed));
                quorate_vfs::reset_last_insert_rowid(&writer.connection);
                sql(writer, batch)?
            }
        }),
        Work::Command(command) => {
            let (command, actor) = command.as_ref();
            let state = state.expect("commands go to `system`, whose writer has the state");
            let decided = state.decide_for(entry.index, WallTime(time_us), command, actor.as_ref());
            rows::write(&writer.connection, &decided.changes)?;
            state.absorb(entry.index, &decided.changes);
            writer.set_planned_on(state.planned_on);
            changes = decided.changes;
            Outcome::Command(decided.outcome)
        }
    };
    let bytes = outcome.to_bytes();
    if let (Some(id), Some(kind)) = (request, kind(&entry.work)) {
        writer.requests.record(&writer.connection, entry.index, time_us, id, kind, &bytes)?;
    }
    let digest = writer.recorder.finish(&bytes);
    Ok(Ran { outcome, changes, digest, first: None })
}

/// What a write gets whose epoch is not the newest.
fn fenced_off(writer: &Writer, entry: &Decoded) -> Result<Option<SqlOutcome>, Stop> {
    let Some(fence) = &entry.fence else { return Ok(None) };
    let verdict = fences::judge(&writer.connection, entry.index, fence)?;
    Ok(verdict.err().map(|refused| SqlOutcome { results: Vec::new(), refused: Some(refused) }))
}

fn kind(work: &Work) -> Option<Kind> {
    match work {
        Work::Sql(_) => Some(Kind::Sql),
        Work::Command(..) => Some(Kind::Command),
        Work::Nothing | Work::Membership(_) => None,
    }
}

/// Runs a batch of statements so that nothing of a failed one remains.
fn sql(writer: &mut Writer, batch: &SqlBatch) -> Result<SqlOutcome, Stop> {
    let before = writer.recorder.mark();
    own(&writer.connection, SAVEPOINT)?;
    // A lone statement needs no savepoint inside the entry's own.
    let alone = batch.statements.len() == 1 || batch.transaction;
    let mut outcome = SqlOutcome::default();
    let mut undone = false;
    let mut room = RETURNED_MAX;
    for statement in &batch.statements {
        let mark = (!alone).then(|| writer.recorder.mark());
        if mark.is_some() {
            own(&writer.connection, STATEMENT_SAVEPOINT)?;
        }
        let result = run(writer, statement, &mut room)?;
        if writer.connection.is_autocommit() {
            // ON CONFLICT ROLLBACK or RAISE(ROLLBACK): the entries before this one are gone too.
            let error = result
                .error
                .unwrap_or_else(|| refusal(ffi::SQLITE_CONSTRAINT, "the statement rolled back the transaction"));
            outcome.results = batch.statements.iter().map(|_| failed(error.clone())).collect();
            return Err(Stop::Gone(outcome));
        }
        let ok = result.error.is_none();
        outcome.results.push(result);
        if let Some(mark) = mark {
            if !ok {
                own(&writer.connection, STATEMENT_UNDO)?;
                writer.recorder.return_to(mark);
            }
            own(&writer.connection, STATEMENT_RELEASE)?;
        } else if !ok {
            undone = true;
            break;
        }
    }
    if !undone && quorate_vfs::deferred_foreign_keys(&writer.connection) {
        // The entry alone would fail at its commit; inside a batch it must fail as well.
        let error = refusal(ffi::SQLITE_CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed");
        outcome.results = outcome.results.iter().map(|_| failed(error.clone())).collect();
        undone = true;
    }
    if undone {
        own(&writer.connection, UNDO)?;
        writer.recorder.return_to(before);
    }
    own(&writer.connection, RELEASE)?;
    Ok(outcome)
}

fn own(connection: &Connection, sql: &'static str) -> Result<(), Error> {
    connection.prepare_cached(sql)?.raw_execute().map(|_| ())
}

/// Runs one statement. An error that is an answer is in the result; others stop the node.
fn run(writer: &mut Writer, statement: &Statement, room: &mut usize) -> Result<StatementResult, Stop> {
    let (connection, surroundings) = (&writer.connection, &writer.surroundings);
    let total_before = connection.total_changes();
    let ran = surroundings.under_rules(|| step(connection, surroundings, statement, room));
    if surroundings.schema_changed() {
        // A statement that was prepared for another schema fails with other words than a new one,
        // and which ones are cached differs from node to node.
        connection.flush_prepared_statement_cache();
        writer.recorder.read_schema(connection)?;
        if ran.is_ok() && own_names_taken(connection)? {
            return Ok(failed(refusal(ffi::SQLITE_AUTH, NOT_ALLOWED)));
        }
    }
    match ran {
        Ok((rows, readonly)) => {
            if writer.recorder.used_last_rowid() {
                let why = "a row id of 9223372036854775807 is not allowed: SQLite would choose later ids at random";
                return Ok(failed(refusal(ffi::SQLITE_FULL, why)));
            }
            let mut result = StatementResult { rows, ..StatementResult::default() };
            if !readonly {
                // DDL leaves SQLite's count as it was: it must not tell of an earlier statement.
                let changed = connection.total_changes() != total_before;
                result.rows_affected = if changed { connection.changes() } else { 0 };
                result.last_insert_id = connection.last_insert_rowid();
                surroundings.statement_changed(result.rows_affected);
            }
            Ok(result)
        }
        Err(error) => answer(error, surroundings.over_budget()).map(failed).map_err(Stop::Sqlite),
    }
}

/// How many names `main` has that begin like those of our tables.
const OWN_NAMES: i64 = 3;

/// Whether there are names like our tables' besides them: a renamed table never asks for its new name.
fn own_names_taken(connection: &Connection) -> Result<bool, Error> {
    let sql = "/*quorate*/ SELECT count(*) FROM sqlite_schema WHERE name LIKE '\\_quorate\\_%' ESCAPE '\\'";
    let names: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(names != OWN_NAMES)
}

fn step(
    connection: &Connection,
    surroundings: &Surroundings,
    statement: &Statement,
    room: &mut usize,
) -> Result<(Option<Rows>, bool), Error> {
    let mut prepared = prepare(connection, &statement.sql)?;
    bind(&mut prepared, statement)?;
    // A cached statement remembers its steps, which would shift its budget.
    prepared.reset_status(StatementStatus::VmStep);
    surroundings.begin_statement();
    let readonly = prepared.readonly();
    if prepared.column_count() == 0 {
        prepared.raw_execute()?;
        return Ok((None, readonly));
    }
    Ok((Some(collect(&mut prepared, room)?), readonly))
}

/// Prepares users' SQL, and never gives them a cached statement of ours.
pub(super) fn prepare<'c>(connection: &'c Connection, sql: &str) -> Result<CachedStatement<'c>, Error> {
    if sql.contains(OWN_MARK) {
        return Err(Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_AUTH), None));
    }
    let wrong = |message: &str| Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_ERROR), Some(message.to_owned()));
    if sql.contains('\0') {
        // SQLite would not look at what is behind it.
        return Err(wrong("the statement contains a NUL byte"));
    }
    let prepared = connection.prepare_cached(sql)?;
    if prepared.column_count() == 0 && prepared.readonly() && prepared.expanded_sql().is_none() {
        return Err(wrong("the statement is empty"));
    }
    Ok(prepared)
}

pub(super) fn bind(prepared: &mut rusqlite::Statement<'_>, statement: &Statement) -> Result<(), Error> {
    let wanted = prepared.parameter_count();
    let given = statement.positional.len();
    if statement.named.is_empty() && given != wanted || given > wanted {
        return Err(Error::InvalidParameterCount(given, wanted));
    }
    for (position, value) in statement.positional.iter().enumerate() {
        prepared.raw_bind_parameter(position + 1, Parameter(value))?;
    }
    for named in &statement.named {
        let mut found = None;
        for sign in [':', '@', '$'] {
            if let Some(position) = prepared.parameter_index(&format!("{sign}{}", named.name))? {
                found = Some(position);
                break;
            }
        }
        let position = found.ok_or_else(|| Error::InvalidParameterName(named.name.clone()))?;
        prepared.raw_bind_parameter(position, Parameter(&named.value))?;
    }
    Ok(())
}

struct Parameter<'a>(&'a Value);

impl rusqlite::ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match &self.0.scalar {
            None => ValueRef::Null,
            Some(Scalar::Integer(number)) => ValueRef::Integer(*number),
            Some(Scalar::Real(number)) => ValueRef::Real(*number),
            Some(Scalar::Text(text)) => ValueRef::Text(text.as_bytes()),
            Some(Scalar::Blob(bytes)) => ValueRef::Blob(bytes),
        }))
    }
}

/// All rows of a bound statement, unless they need more than `room`, which shrinks.
pub(super) fn collect(prepared: &mut rusqlite::Statement<'_>, room: &mut usize) -> Result<Rows, Error> {
    let mut found = Rows::default();
    let mut rows = prepared.raw_query();
    while let Some(row) = rows.next()? {
        if found.rows.is_empty() {
            // Only now: the first step prepares it again if the schema has changed.
            describe(row.as_ref(), &mut found);
        }
        let mut values = Vec::with_capacity(found.columns.len());
        for column in 0..found.columns.len() {
            let value = row.get_ref(column)?;
            *room = room.checked_sub(16 + bytes(value)).ok_or_else(returns_too_much)?;
            values.push(owned(value));
        }
        found.rows.push(Row { values });
    }
    drop(rows);
    if found.rows.is_empty() {
        describe(prepared, &mut found);
    }
    Ok(found)
}

fn describe(statement: &rusqlite::Statement<'_>, found: &mut Rows) {
    found.columns = statement.column_names().map(str::to_owned).collect();
    found.types =
        statement.columns().map(|column| column.decl_type().unwrap_or_default().to_ascii_lowercase()).collect();
}

fn returns_too_much() -> Error {
    let message = "the statements return more than 8 MiB: read in a query instead";
    Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_TOOBIG), Some(message.into()))
}

fn bytes(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => 0,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
    }
}

fn owned(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::NULL,
        ValueRef::Integer(number) => Scalar::Integer(number).into(),
        ValueRef::Real(number) => Scalar::Real(number).into(),
        ValueRef::Text(bytes) => Scalar::Text(String::from_utf8_lossy(bytes).into_owned()).into(),
        ValueRef::Blob(bytes) => Scalar::Blob(Bytes::copy_from_slice(bytes)).into(),
    }
}

/// The error as an answer, if it is one that every node gives alike; else the error itself.
pub(super) fn answer(error: Error, over_budget: bool) -> Result<SqlError, Error> {
    match &error {
        Error::SqliteFailure(code, message) => {
            let text = message.clone().unwrap_or_else(|| code.to_string());
            classify(code.extended_code, text, over_budget).ok_or(error)
        }
        Error::SqlInputError { error: code, msg, offset, .. } => {
            let place = if *offset > 0 { format!(" (at byte {offset})") } else { String::new() };
            classify(code.extended_code, format!("{msg}{place}"), over_budget).ok_or(error)
        }
        Error::MultipleStatement => {
            Ok(refusal(ffi::SQLITE_ERROR, "several statements in one: send them as a list, one each"))
        }
        Error::InvalidParameterCount(given, wanted) => {
            Ok(refusal(ffi::SQLITE_RANGE, &format!("{given} parameters given, {wanted} wanted")))
        }
        Error::InvalidParameterName(name) => Ok(refusal(ffi::SQLITE_RANGE, &format!("no parameter is named `{name}`"))),
        _ => Err(error),
    }
}

fn classify(extended: i32, message: String, over_budget: bool) -> Option<SqlError> {
    match extended & 0xff {
        // Not a damaged file: what a virtual table was told contradicts itself, on every node alike.
        _ if extended == ffi::SQLITE_CORRUPT_VTAB => Some(SqlError { code: extended, message }),
        ffi::SQLITE_CONSTRAINT | ffi::SQLITE_ERROR | ffi::SQLITE_TOOBIG | ffi::SQLITE_MISMATCH | ffi::SQLITE_RANGE => {
            Some(SqlError { code: extended, message })
        }
        ffi::SQLITE_AUTH => Some(refusal(extended, NOT_ALLOWED)),
        ffi::SQLITE_INTERRUPT if over_budget => {
            Some(refusal(extended, "the statement does too much: more than 50 million steps; do it in parts"))
        }
        _ => None,
    }
}

fn refusal(code: i32, message: &str) -> SqlError {
    SqlError { code, message: message.to_owned() }
}

fn failed(error: SqlError) -> StatementResult {
    StatementResult { error: Some(error), ..StatementResult::default() }
}
