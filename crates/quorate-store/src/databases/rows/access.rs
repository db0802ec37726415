//! Users, sessions, tokens, roles, secrets and the audit as rows of `system`.
//!
//! None of these tables is read by users' SQL ([`TABLES`], see `reader`): who may see which of
//! them is decided by roles, and they hold hashes that nobody needs to see.

use super::{body, run};
use crate::databases::OpenDatabasesError;
use crate::databases::execute::Stop;
use quorate_model::access::audit::{AuditEntry, AuditHead, AuditLink, AuditPage, KEPT};
use quorate_model::access::name::Digest;
use quorate_model::access::tries::{Guesser, Tries};
use quorate_model::access::{AccessChange, AccessState};
use quorate_model::id::LogIndex;
use quorate_model::time::WallTime;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, OptionalExtension as _, Row, params};
use std::path::Path;

pub(in crate::databases) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, disabled INTEGER NOT NULL, created_us INTEGER NOT NULL,
        body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS roles (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS sessions (hash TEXT PRIMARY KEY, user TEXT NOT NULL, seen_us INTEGER NOT NULL,
        body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS api_tokens (id TEXT PRIMARY KEY, user TEXT NOT NULL, expires_us INTEGER NOT NULL,
        body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS service_tokens (replica TEXT PRIMARY KEY, service TEXT NOT NULL,
        body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS confirmations (hash TEXT PRIMARY KEY, user TEXT NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS login_tries (guesser TEXT PRIMARY KEY, count INTEGER NOT NULL,
        last_us INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS audit (seq INTEGER PRIMARY KEY, idx INTEGER NOT NULL, at_us INTEGER NOT NULL,
        who TEXT NOT NULL, source TEXT NOT NULL, what TEXT NOT NULL, target TEXT NOT NULL, outcome TEXT NOT NULL,
        prev TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS audit_head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL,
        hash TEXT NOT NULL);";

/// The tables above, and that of sealed keys.
pub(in crate::databases) const TABLES: &[&str] = &[
    "users",
    "roles",
    "sessions",
    "api_tokens",
    "service_tokens",
    "confirmations",
    "login_tries",
    "secrets",
    "audit",
    "audit_head",
    "cluster_keys",
];

pub(super) fn write(connection: &Connection, change: &AccessChange) -> Result<(), Stop> {
    use AccessChange as C;
    match change {
        C::User(user) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO users VALUES (?1, ?2, ?3, ?4)",
            params![user.name.as_str(), user.disabled, user.created.0.cast_signed(), body(user)?],
        ),
        C::UserGone { user } => run(connection, "/*quorate*/ DELETE FROM users WHERE name = ?1", [user.as_str()]),
        C::Role(role) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO roles VALUES (?1, ?2)",
            params![role.name.as_str(), body(role)?],
        ),
        C::RoleGone { role } => run(connection, "/*quorate*/ DELETE FROM roles WHERE name = ?1", [role.as_str()]),
        C::Session(session) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO sessions VALUES (?1, ?2, ?3, ?4)",
            params![session.hash.to_string(), session.user.as_str(), session.seen.0.cast_signed(), body(session)?],
        ),
        C::SessionGone { hash } => {
            run(connection, "/*quorate*/ DELETE FROM sessions WHERE hash = ?1", [hash.to_string()])
        }
        C::Token(token) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO api_tokens VALUES (?1, ?2, ?3, ?4)",
            params![token.id.as_str(), token.user.as_str(), token.expires.0.cast_signed(), body(token)?],
        ),
        C::TokenGone { token } => run(connection, "/*quorate*/ DELETE FROM api_tokens WHERE id = ?1", [token.as_str()]),
        C::ServiceToken(token) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO service_tokens VALUES (?1, ?2, ?3)",
            params![token.replica.to_string(), token.service.as_str(), body(token)?],
        ),
        C::ServiceTokenGone { replica } => {
            run(connection, "/*quorate*/ DELETE FROM service_tokens WHERE replica = ?1", [replica.to_string()])
        }
        C::Confirmation(confirmation) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO confirmations VALUES (?1, ?2, ?3)",
            params![confirmation.hash.to_string(), confirmation.user.as_str(), body(confirmation)?],
        ),
        C::ConfirmationGone { hash } => {
            run(connection, "/*quorate*/ DELETE FROM confirmations WHERE hash = ?1", [hash.to_string()])
        }
        C::Tries { guesser, tries } => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO login_tries VALUES (?1, ?2, ?3)",
            params![guesser.to_string(), tries.count, tries.last.0.cast_signed()],
        ),
        C::TriesGone { guesser } => {
            run(connection, "/*quorate*/ DELETE FROM login_tries WHERE guesser = ?1", [guesser.to_string()])
        }
        C::Secret(secret) => run(
            connection,
            "/*quorate*/ INSERT OR REPLACE INTO secrets VALUES (?1, ?2, ?3)",
            params![secret.name.as_str(), secret.version.cast_signed(), body(secret)?],
        ),
        C::SecretGone { name } => run(connection, "/*quorate*/ DELETE FROM secrets WHERE name = ?1", [name.as_str()]),
        C::Audit(link) => write_audit(connection, link),
    }
}

fn write_audit(connection: &Connection, link: &AuditLink) -> Result<(), Stop> {
    let entry = &link.entry;
    run(
        connection,
        "/*quorate*/ INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            entry.seq.cast_signed(),
            entry.index.0.cast_signed(),
            entry.at.0.cast_signed(),
            entry.who,
            entry.from,
            entry.what,
            entry.target,
            entry.outcome,
            link.prev.to_string(),
            link.hash.to_string()
        ],
    )?;
    run(
        connection,
        "/*quorate*/ INSERT OR REPLACE INTO audit_head VALUES (1, ?1, ?2)",
        params![entry.seq.cast_signed(), link.hash.to_string()],
    )?;
    let Some(gone) = entry.seq.checked_sub(KEPT).filter(|gone| *gone > 0) else { return Ok(()) };
    run(connection, "/*quorate*/ DELETE FROM audit WHERE seq <= ?1", [gone.cast_signed()])
}

/// Reads the state back, but for the audit's entries.
pub(super) fn load(connection: &Connection, directory: &Path) -> Result<AccessState, OpenDatabasesError> {
    use super::records;
    let mut state = AccessState::default();
    let wrong = |source| OpenDatabasesError::Sqlite { database: "system", path: directory.to_owned(), source };
    let mut changes: Vec<AccessChange> = Vec::new();
    changes.extend(records(connection, directory, "users", "name")?.into_iter().map(AccessChange::User));
    changes.extend(records(connection, directory, "roles", "name")?.into_iter().map(AccessChange::Role));
    changes.extend(records(connection, directory, "sessions", "hash")?.into_iter().map(AccessChange::Session));
    changes.extend(records(connection, directory, "api_tokens", "id")?.into_iter().map(AccessChange::Token));
    changes.extend(
        records(connection, directory, "service_tokens", "replica")?.into_iter().map(AccessChange::ServiceToken),
    );
    changes
        .extend(records(connection, directory, "confirmations", "hash")?.into_iter().map(AccessChange::Confirmation));
    changes.extend(records(connection, directory, "secrets", "name")?.into_iter().map(AccessChange::Secret));
    let mut select =
        connection.prepare("/*quorate*/ SELECT guesser, count, last_us FROM login_tries").map_err(wrong)?;
    let mut rows = select.query([]).map_err(wrong)?;
    while let Some(row) = rows.next().map_err(wrong)? {
        let guesser: Guesser = parsed(row, 0).map_err(wrong)?;
        let tries = Tries { count: row.get(1).map_err(wrong)?, last: WallTime(number(row, 2)) };
        changes.push(AccessChange::Tries { guesser, tries });
    }
    changes.into_iter().for_each(|change| state.absorb(change));
    state.audit = head(connection).map_err(wrong)?;
    Ok(state)
}

fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> Result<T, Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|error: T::Err| Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error)))
}

/// The end of the audit as the file says it, beside the entries.
fn head(connection: &Connection) -> Result<AuditHead, Error> {
    let found = connection
        .prepare_cached("/*quorate*/ SELECT seq, hash FROM audit_head")?
        .query_row([], |row| Ok(AuditHead { seq: number(row, 0), hash: digest(row, 1) }))
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// At most `limit` entries after number `after`.
pub(in crate::databases) fn page(connection: &Connection, after: u64, limit: u32) -> Result<AuditPage, Error> {
    let head = head(connection)?;
    let sql = "/*quorate*/ SELECT seq, idx, at_us, who, source, what, target, outcome, prev, hash FROM audit
        WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    let mut select = connection.prepare_cached(sql)?;
    let mut rows = select.query(params![after.cast_signed(), limit])?;
    let mut links = Vec::new();
    while let Some(row) = rows.next()? {
        links.push(AuditLink {
            entry: AuditEntry {
                seq: number(row, 0),
                index: LogIndex(number(row, 1)),
                at: WallTime(number(row, 2)),
                who: text(row, 3),
                from: text(row, 4),
                what: text(row, 5),
                target: text(row, 6),
                outcome: text(row, 7),
            },
            prev: digest(row, 8),
            hash: digest(row, 9),
        });
    }
    Ok(AuditPage { links, head })
}

// Somebody may have written anything into the file: what is no value of its column is read as a
// value that no chain holds with.

fn number(row: &Row<'_>, column: usize) -> u64 {
    row.get::<_, i64>(column).map_or(u64::MAX, i64::cast_unsigned)
}

fn text(row: &Row<'_>, column: usize) -> String {
    match row.get_ref(column) {
        Ok(ValueRef::Text(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}

fn digest(row: &Row<'_>, column: usize) -> Digest {
    row.get::<_, String>(column).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}
