//! Readers: whole batches, from one moment, and nothing but reading.

use super::execute::{answer, bind, collect};
use super::rules::PRAGMAS;
use super::writer::{Meta, file};
use quorate_model::entry::Database;
use quorate_model::id::LogIndex;
use quorate_model::sql::{Rows, SqlBatch, SqlError, Statement};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, OpenFlags, ffi};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// VM instructions between two looks at the clock: some 100 µs.
const LOOK_EVERY: i32 = 10_000;
/// Prepared statements that are kept.
const STATEMENTS: usize = 128;

/// Where to read. Cheap to clone; each reading thread makes a [`Reader`] of its own.
#[derive(Debug, Clone)]
pub struct Readers {
    directory: PathBuf,
}

/// A thread's own connections.
#[derive(Debug)]
pub struct Reader {
    system: OpenFile,
    main: OpenFile,
}

#[derive(Debug)]
struct OpenFile {
    connection: Connection,
    deadline: Arc<Mutex<Option<Instant>>>,
}

/// What a query found.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryAnswer {
    /// One result per statement.
    pub results: Vec<Result<Rows, SqlError>>,
    /// The file was applied up to here, or further without entries for it.
    pub applied: LogIndex,
}

/// Why there is no reader.
#[derive(Debug, thiserror::Error)]
#[error("{database} cannot be opened for reading")]
pub struct OpenReaderError {
    database: &'static str,
    source: Error,
}

/// Why a query has no answer at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    #[error("the query ran past its deadline")]
    TooSlow,
    #[error("SQLite failed while reading")]
    Sqlite(#[source] Error),
}

impl Readers {
    pub(super) fn new(directory: PathBuf) -> Readers {
        Readers { directory }
    }

    /// Opens connections for one thread.
    ///
    /// # Errors
    /// [`OpenReaderError`].
    pub fn reader(&self) -> Result<Reader, OpenReaderError> {
        let open = |database: Database| {
            OpenFile::open(&file(&self.directory, database))
                .map_err(|source| OpenReaderError { database: database.name(), source })
        };
        Ok(Reader { system: open(Database::System)?, main: open(Database::Main)? })
    }
}

impl Reader {
    /// Answers all statements of the batch from one moment of the file.
    ///
    /// # Errors
    /// [`QueryError`]; what SQLite refuses is in the answer.
    pub fn query(
        &mut self,
        database: Database,
        batch: &SqlBatch,
        deadline: Instant,
    ) -> Result<QueryAnswer, QueryError> {
        let file = match database {
            Database::System => &self.system,
            Database::Main => &self.main,
        };
        *file.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
        let answer = file.query(batch);
        *file.deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if !file.connection.is_autocommit() {
            // Also after an error: the next query must see its own moment.
            file.connection.execute_batch("COMMIT").map_err(QueryError::Sqlite)?;
        }
        answer.map_err(|error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OperationInterrupted) => QueryError::TooSlow,
            _ => QueryError::Sqlite(error),
        })
    }
}

impl OpenFile {
    fn open(path: &Path) -> Result<OpenFile, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "query_only", true)?;
        connection.pragma_update(None, "cache_size", -2_048)?;
        connection.pragma_update(None, "mmap_size", 268_435_456i64)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let deadline: Arc<Mutex<Option<Instant>>> = Arc::default();
        let limit = deadline.clone();
        connection.progress_handler(
            LOOK_EVERY,
            Some(move || {
                let limit = *limit.lock().unwrap_or_else(PoisonError::into_inner);
                limit.is_some_and(|limit| Instant::now() >= limit)
            }),
        )?;
        Ok(OpenFile { connection, deadline })
    }

    fn query(&self, batch: &SqlBatch) -> Result<QueryAnswer, Error> {
        self.connection.prepare_cached("BEGIN")?.raw_execute()?;
        let applied = Meta::load_applied(&self.connection)?;
        let mut results = Vec::with_capacity(batch.statements.len());
        for statement in &batch.statements {
            results.push(self.one(statement)?);
        }
        self.connection.prepare_cached("COMMIT")?.raw_execute()?;
        Ok(QueryAnswer { results, applied })
    }

    fn one(&self, statement: &Statement) -> Result<Result<Rows, SqlError>, Error> {
        match self.run(statement) {
            Ok(rows) => Ok(Ok(rows)),
            Err(Refused::Write) => Ok(Err(SqlError {
                code: ffi::SQLITE_READONLY,
                message: "this statement writes: send it to db exec, which puts it into the log".into(),
            })),
            Err(Refused::Forbidden) => Ok(Err(SqlError {
                code: ffi::SQLITE_AUTH,
                message: "not allowed in a query: transactions, ATTACH, TEMP objects and most PRAGMAs".into(),
            })),
            Err(Refused::Sqlite(error)) => answer(error, false).map(Err),
        }
    }

    fn run(&self, statement: &Statement) -> Result<Rows, Refused> {
        // The rules are looked at here and not by an authorizer: it would be asked about our own
        // BEGIN and COMMIT as well, and reading can do no harm that this does not see.
        let mut prepared = self.connection.prepare_cached(&statement.sql)?;
        if !prepared.readonly() {
            return Err(Refused::Write);
        }
        if forbidden(&statement.sql) {
            return Err(Refused::Forbidden);
        }
        bind(&mut prepared, statement)?;
        Ok(collect(&mut prepared)?)
    }
}

enum Refused {
    Write,
    Forbidden,
    Sqlite(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Sqlite(error)
    }
}

/// Read-only for SQLite, and yet not a query: what changes the connection itself.
fn forbidden(sql: &str) -> bool {
    let word = first_word(sql).to_ascii_uppercase();
    let names = ["BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "DETACH"];
    names.contains(&word.as_str()) || word == "PRAGMA" && !harmless_pragma(sql)
}

fn harmless_pragma(sql: &str) -> bool {
    let rest = &sql[sql.to_ascii_uppercase().find("PRAGMA").map_or(0, |at| at + 6)..];
    let name: String = rest.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    PRAGMAS.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

/// The first word after blanks and comments.
fn first_word(sql: &str) -> &str {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, rest)| rest);
        } else {
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            return &rest[..end];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_connection_is_no_query() {
        for sql in
            ["BEGIN", "  -- c\n commit", "/* a */ATTACH 'x' AS y", "PRAGMA query_only = 0", "pragma journal_mode"]
        {
            assert!(forbidden(sql), "{sql}");
        }
        for sql in ["SELECT 1", "WITH a AS (SELECT 1) SELECT * FROM a", "PRAGMA table_info(t)", "EXPLAIN SELECT 1"] {
            assert!(!forbidden(sql), "{sql}");
        }
    }
}
