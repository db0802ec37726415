//! Readers: whole batches, from one moment, and nothing but reading.

use super::execute::{answer, bind, collect, prepare};
use super::place::Place;
use super::rows::access;
use super::rules::{is_data_version, may_query, verdict};
use super::writer::{Meta, file};
use quorate_model::access::audit::AuditPage;
use quorate_model::entry::Database;
use quorate_model::id::LogIndex;
use quorate_model::sql::{Rows, SqlBatch, SqlError, Statement};
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext};
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, ffi};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// VM instructions between two looks at the clock: some 100 µs.
const LOOK_EVERY: i32 = 10_000;
/// Prepared statements that are kept.
const STATEMENTS: usize = 128;

/// Where to read. Cheap to clone; each reading thread makes a [`Reader`] of its own.
#[derive(Debug, Clone)]
pub struct Readers {
    place: Place,
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
    /// What is prepared now is ours, and not users'.
    own: Arc<AtomicBool>,
    /// A statement of users' wanted a table of [`access::TABLES`].
    asked_access: Arc<AtomicBool>,
    deadline: Arc<Mutex<Option<Instant>>>,
}

/// Whether it looks into a table of users, sessions, tokens, roles, secrets or the audit.
fn is_about_access(action: &AuthAction<'_>) -> bool {
    matches!(action, AuthAction::Read { table_name, .. }
        if access::TABLES.iter().any(|table| table.eq_ignore_ascii_case(table_name)))
}

/// Why a query of these tables is refused, for people.
const ACCESS_TABLES: &str = "users, sessions, tokens, roles, secrets, keys and the audit are not read by SQL, because roles decide who may see them: use `quorate user|session|token|role|audit list`";

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
    pub(super) fn new(place: Place, directory: PathBuf) -> Readers {
        Readers { place, directory }
    }

    /// Opens connections for one thread.
    ///
    /// # Errors
    /// [`OpenReaderError`].
    pub fn reader(&self) -> Result<Reader, OpenReaderError> {
        let open = |database: Database| {
            OpenFile::open(&self.place, &file(&self.directory, database), database)
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

impl Reader {
    /// At most `limit` entries of the audit after number `after`, and where the audit ends.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn audit(&mut self, after: u64, limit: u32) -> Result<AuditPage, QueryError> {
        let connection = &self.system.connection;
        // The entries and the end are of one moment.
        connection.execute_batch("/*quorate*/ BEGIN").map_err(QueryError::Sqlite)?;
        let page = access::page(connection, after, limit);
        connection.execute_batch("/*quorate*/ COMMIT").map_err(QueryError::Sqlite)?;
        page.map_err(QueryError::Sqlite)
    }
}

impl OpenFile {
    fn open(place: &Place, path: &Path, database: Database) -> Result<OpenFile, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = place.connect(path, flags)?;
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
        let own = Arc::new(AtomicBool::new(true));
        let flag = own.clone();
        let asked_access: Arc<AtomicBool> = Arc::default();
        let asked = asked_access.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            let action = &context.action;
            if !flag.load(Ordering::Relaxed) && database == Database::System && is_about_access(action) {
                asked.store(true, Ordering::Relaxed);
                return verdict(false);
            }
            verdict(flag.load(Ordering::Relaxed) || may_query(action) || is_data_version(action))
        }))?;
        Ok(OpenFile { connection, own, asked_access, deadline })
    }

    fn query(&self, batch: &SqlBatch) -> Result<QueryAnswer, Error> {
        self.connection.prepare_cached("/*quorate*/ BEGIN")?.raw_execute()?;
        let applied = Meta::load_applied(&self.connection)?;
        let mut results = Vec::with_capacity(batch.statements.len());
        for statement in &batch.statements {
            self.own.store(false, Ordering::Relaxed);
            let result = self.one(statement);
            self.own.store(true, Ordering::Relaxed);
            results.push(result?);
        }
        self.connection.prepare_cached("/*quorate*/ COMMIT")?.raw_execute()?;
        Ok(QueryAnswer { results, applied })
    }

    fn one(&self, statement: &Statement) -> Result<Result<Rows, SqlError>, Error> {
        match self.run(statement) {
            Ok(rows) => Ok(Ok(rows)),
            Err(Refused::Write) => Ok(Err(SqlError {
                code: ffi::SQLITE_READONLY,
                message: "this statement writes: send it to db exec, which puts it into the log".into(),
            })),
            Err(Refused::Sqlite(error))
                if error.sqlite_error_code() == Some(ErrorCode::AuthorizationForStatementDenied) =>
            {
                if self.asked_access.swap(false, Ordering::Relaxed) {
                    return Ok(Err(SqlError { code: ffi::SQLITE_AUTH, message: ACCESS_TABLES.into() }));
                }
                Ok(Err(SqlError {
                    code: ffi::SQLITE_AUTH,
                    message: "not allowed in a query: transactions, ATTACH, TEMP objects and most PRAGMAs".into(),
                }))
            }
            Err(Refused::Sqlite(error)) => answer(error, false).map(Err),
        }
    }

    fn run(&self, statement: &Statement) -> Result<Rows, Refused> {
        let mut prepared = prepare(&self.connection, &statement.sql)?;
        if !prepared.readonly() {
            return Err(Refused::Write);
        }
        bind(&mut prepared, statement)?;
        Ok(collect(&mut prepared, &mut usize::MAX.clone())?)
    }
}

enum Refused {
    Write,
    Sqlite(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Sqlite(error)
    }
}
