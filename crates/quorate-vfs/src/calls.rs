//! Single calls that the binding does not offer.

use rusqlite::{Connection, ffi};

/// Makes `last_insert_rowid()` of the connection 0, as on a new one.
pub fn reset_last_insert_rowid(connection: &Connection) {
    // SAFETY: the handle is valid while the connection lives.
    unsafe { ffi::sqlite3_set_last_insert_rowid(connection.handle(), 0) }
}

/// Whether deferred foreign key constraints are violated at the moment: a commit would fail.
#[must_use]
pub fn deferred_foreign_keys(connection: &Connection) -> bool {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: the handle is valid and both variables are ours.
    let asked = unsafe {
        ffi::sqlite3_db_status(
            connection.handle(),
            ffi::SQLITE_DBSTATUS_DEFERRED_FKS,
            &raw mut current,
            &raw mut highest,
            0,
        )
    };
    asked == ffi::SQLITE_OK && current != 0
}

/// Makes local time of this process UTC: SQLite's `localtime` modifier asks the C library, whose
/// answer would differ from server to server.
///
/// To be called first in `main`, before there is another thread.
pub fn use_utc() {
    // SAFETY: the caller is the only thread (see above), so nobody reads the environment meanwhile.
    unsafe { std::env::set_var("TZ", "UTC") }
}
