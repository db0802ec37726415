//! Every row change, before it happens: SQLite's preupdate hook.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ffi};
use std::ffi::{CStr, c_char, c_int, c_void};

/// What happens to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOperation {
    Insert,
    Update,
    Delete,
}

/// One row change, while it happens.
#[derive(Debug)]
pub struct RowChange<'a> {
    pub operation: RowOperation,
    /// Name of the table.
    pub table: &'a [u8],
    /// The row's id before; meaningless for a table without rowids.
    pub old_rowid: i64,
    /// The row's id after.
    pub new_rowid: i64,
    connection: *mut ffi::sqlite3,
}

impl RowChange<'_> {
    /// Columns of the row.
    #[must_use]
    pub fn columns(&self) -> usize {
        // SAFETY: a `RowChange` exists only while its hook runs, on the connection's thread.
        let count = unsafe { ffi::sqlite3_preupdate_count(self.connection) };
        usize::try_from(count).unwrap_or(0)
    }

    /// A column's value before; `None` for an insert.
    #[must_use]
    pub fn before(&self, column: usize) -> Option<ValueRef<'_>> {
        let allowed = self.operation != RowOperation::Insert;
        allowed.then(|| self.value(column, ffi::sqlite3_preupdate_old)).flatten()
    }

    /// A column's value after; `None` for a delete.
    #[must_use]
    pub fn after(&self, column: usize) -> Option<ValueRef<'_>> {
        let allowed = self.operation != RowOperation::Delete;
        allowed.then(|| self.value(column, ffi::sqlite3_preupdate_new)).flatten()
    }

    fn value(
        &self,
        column: usize,
        get: unsafe extern "C" fn(*mut ffi::sqlite3, c_int, *mut *mut ffi::sqlite3_value) -> c_int,
    ) -> Option<ValueRef<'_>> {
        let mut value = std::ptr::null_mut();
        let column = c_int::try_from(column).ok()?;
        // SAFETY: as for `columns`; SQLite checks the range of `column`.
        let found = unsafe { get(self.connection, column, &raw mut value) };
        if found != ffi::SQLITE_OK || value.is_null() {
            return None;
        }
        // SAFETY: the value is protected and lives until the hook returns, as `self` does.
        Some(unsafe { value_ref(value) })
    }
}

/// # Safety
/// `value` must be a valid protected value that lives for `'a`.
unsafe fn value_ref<'a>(value: *mut ffi::sqlite3_value) -> ValueRef<'a> {
    // SAFETY: each accessor is the one for the value's type; the bytes belong to the value.
    unsafe {
        match ffi::sqlite3_value_type(value) {
            ffi::SQLITE_INTEGER => ValueRef::Integer(ffi::sqlite3_value_int64(value)),
            ffi::SQLITE_FLOAT => ValueRef::Real(ffi::sqlite3_value_double(value)),
            ffi::SQLITE_TEXT => ValueRef::Text(bytes(ffi::sqlite3_value_text(value), value)),
            ffi::SQLITE_BLOB => ValueRef::Blob(bytes(ffi::sqlite3_value_blob(value).cast(), value)),
            _ => ValueRef::Null,
        }
    }
}

/// # Safety
/// `start` must be what SQLite gave for `value`.
unsafe fn bytes<'a>(start: *const u8, value: *mut ffi::sqlite3_value) -> &'a [u8] {
    // SAFETY: SQLite says how long the value is; an empty blob has no address.
    unsafe {
        let length = usize::try_from(ffi::sqlite3_value_bytes(value)).unwrap_or(0);
        if start.is_null() || length == 0 { &[] } else { std::slice::from_raw_parts(start, length) }
    }
}

/// A hook in force. Dropping it ends it.
pub struct RowHook {
    connection: *mut ffi::sqlite3,
    callback: *mut Callback,
}

type Callback = Box<dyn FnMut(&RowChange<'_>) + Send>;

// SAFETY: the callback is `Send` and runs on whichever thread uses the connection, one at a time.
unsafe impl Send for RowHook {}

impl std::fmt::Debug for RowHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowHook").finish_non_exhaustive()
    }
}

impl RowHook {
    /// Calls `callback` for every row change of `connection`, triggers' and cascades' included.
    ///
    /// # Safety
    /// The hook must be dropped before the connection is closed.
    pub unsafe fn install(connection: &Connection, callback: impl FnMut(&RowChange<'_>) + Send + 'static) -> RowHook {
        let boxed: Callback = Box::new(callback);
        let callback = Box::into_raw(Box::new(boxed));
        // SAFETY: the handle is valid; the callback lives until the hook is dropped.
        let connection = unsafe {
            let handle = connection.handle();
            ffi::sqlite3_preupdate_hook(handle, Some(hook), callback.cast());
            handle
        };
        RowHook { connection, callback }
    }
}

impl Drop for RowHook {
    fn drop(&mut self) {
        // SAFETY: the connection is still open (see `install`); after this nobody calls us.
        unsafe {
            ffi::sqlite3_preupdate_hook(self.connection, None, std::ptr::null_mut());
            drop(Box::from_raw(self.callback));
        }
    }
}

unsafe extern "C" fn hook(
    context: *mut c_void,
    connection: *mut ffi::sqlite3,
    operation: c_int,
    _database: *const c_char,
    table: *const c_char,
    old_rowid: ffi::sqlite3_int64,
    new_rowid: ffi::sqlite3_int64,
) {
    let operation = match operation {
        ffi::SQLITE_INSERT => RowOperation::Insert,
        ffi::SQLITE_DELETE => RowOperation::Delete,
        _ => RowOperation::Update,
    };
    // SAFETY: SQLite passes a valid name, and the context that we registered. A panic in the
    // callback ends the process here, which is what must happen: the digest would be wrong.
    unsafe {
        let table = CStr::from_ptr(table).to_bytes();
        (*context.cast::<Callback>())(&RowChange { operation, table, old_rowid, new_rowid, connection });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn every_row_change_is_seen_with_its_values() {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch("CREATE TABLE t (a, b)").expect("a table");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        // SAFETY: the hook is dropped first, below.
        let hook = unsafe {
            RowHook::install(&connection, move |change| {
                let table = String::from_utf8_lossy(change.table).into_owned();
                let text = |value: Option<ValueRef<'_>>| format!("{value:?}");
                let values: Vec<String> = (0..change.columns())
                    .map(|c| format!("{}>{}", text(change.before(c)), text(change.after(c))))
                    .collect();
                notes.lock().unwrap().push(format!("{:?} {table} {}", change.operation, values.join(" ")));
            })
        };
        connection
            .execute_batch("INSERT INTO t VALUES (1, 'x'); UPDATE t SET b = x'00'; DELETE FROM t;")
            .expect("statements");
        drop(hook);
        connection.execute_batch("INSERT INTO t VALUES (2, 'unseen')").expect("a statement");
        let seen = seen.lock().unwrap();
        assert_eq!(
            *seen,
            [
                "Insert t None>Some(Integer(1)) None>Some(Text([120]))",
                "Update t Some(Integer(1))>Some(Integer(1)) Some(Text([120]))>Some(Blob([0]))",
                "Delete t Some(Integer(1))>None Some(Blob([0]))>None",
            ]
        );
    }

    #[test]
    fn sqlite_is_built_for_replicas() {
        let connection = Connection::open_in_memory().expect("a database");
        let mut options = connection.prepare("PRAGMA compile_options").expect("a pragma");
        let options: Vec<String> =
            options.query_map([], |row| row.get(0)).expect("rows").map(|option| option.expect("text")).collect();
        assert!(options.iter().any(|option| option == "ENABLE_PREUPDATE_HOOK"), "{options:?}");
        assert!(!options.iter().any(|option| option == "ENABLE_STAT4"), "{options:?}");
    }
}
