//! A VFS that is another one (SQLite's default, or one of its own name) with another clock.
//!
//! SQLite takes every "now" (`datetime('now')`, `CURRENT_TIMESTAMP`, defaults and triggers too)
//! from the VFS of its connection. Everything else is passed on to the base, with *its* pointer:
//! the Unix VFS finds its own methods through `pAppData`, where ours keeps the clock.

use rusqlite::ffi;
use std::ffi::{CString, c_char, c_int};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Milliseconds from noon of 24 November 4714 BC, where SQLite's time begins, to 1970.
pub(crate) const JULIAN_UNIX_EPOCH_MS: i64 = 210_866_760_000_000;

/// Makes names unique within the process, which is where VFS names live.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A registered VFS whose clock shows what it was set to.
#[derive(Debug)]
pub struct ClockVfs {
    shared: *mut Shared,
    name: String,
}

// SAFETY: the shared part is only read after registration, but for the clock, which is atomic.
unsafe impl Send for ClockVfs {}
// SAFETY: see above.
unsafe impl Sync for ClockVfs {}

struct Shared {
    vfs: ffi::sqlite3_vfs,
    base: *mut ffi::sqlite3_vfs,
    /// Microseconds since 1970.
    now_us: AtomicI64,
    _name: CString,
}

impl ClockVfs {
    /// Registers a VFS over SQLite's default one. Its clock shows 1970 until it is set.
    ///
    /// # Panics
    /// When SQLite has no default VFS or refuses another one, which it does only without memory.
    #[must_use]
    pub fn register() -> ClockVfs {
        ClockVfs::over(None)
    }

    /// As [`register`](Self::register), over the VFS of that name, which must stay registered
    /// longer than this one; `None` for the default.
    ///
    /// # Panics
    /// When there is no VFS of that name, and as `register`.
    #[must_use]
    pub fn over(base: Option<&str>) -> ClockVfs {
        let wanted = base.unwrap_or("by default");
        let base_name = base.map(|name| CString::new(name).expect("a VFS's name has no NUL"));
        let name = format!("quorate-clock-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let c_name = CString::new(name.clone()).expect("the name has no NUL");
        // SAFETY: SQLite initialises itself here; the default VFS lives as long as the process, any
        // other one longer than this, says its owner.
        let base = unsafe {
            assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK, "SQLite cannot be initialised");
            ffi::sqlite3_vfs_find(base_name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr()))
        };
        assert!(!base.is_null(), "SQLite has no VFS {}", wanted);
        // SAFETY: `base` is a valid VFS; the struct is plain data and copied whole.
        let mut vfs = unsafe { std::ptr::read(base) };
        vfs.zName = c_name.as_ptr();
        vfs.pNext = std::ptr::null_mut();
        // Ours tells the time in milliseconds, which is what version 2 brought.
        vfs.iVersion = 2;
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        vfs.xAccess = Some(access);
        vfs.xFullPathname = Some(full_pathname);
        vfs.xDlOpen = None;
        vfs.xDlError = None;
        vfs.xDlSym = None;
        vfs.xDlClose = None;
        vfs.xRandomness = Some(randomness);
        vfs.xSleep = Some(sleep);
        vfs.xCurrentTime = Some(current_time);
        vfs.xCurrentTimeInt64 = Some(current_time_int64);
        vfs.xGetLastError = Some(last_error);
        vfs.xSetSystemCall = None;
        vfs.xGetSystemCall = None;
        vfs.xNextSystemCall = None;
        let shared = Box::into_raw(Box::new(Shared { vfs, base, now_us: AtomicI64::new(0), _name: c_name }));
        // SAFETY: `shared` was just made and is freed only after it was unregistered.
        let registered = unsafe {
            (*shared).vfs.pAppData = shared.cast();
            ffi::sqlite3_vfs_register(&raw mut (*shared).vfs, 0)
        };
        assert_eq!(registered, ffi::SQLITE_OK, "SQLite refuses another VFS");
        ClockVfs { shared, name }
    }

    /// The name to open connections with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the clock, in microseconds since 1970.
    pub fn set(&self, now_us: u64) {
        // SAFETY: `shared` lives as long as `self`.
        let clock = unsafe { &(*self.shared).now_us };
        clock.store(i64::try_from(now_us).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

impl Drop for ClockVfs {
    fn drop(&mut self) {
        // SAFETY: the owner has closed its connections before (see the crate's invariants), so
        // nobody holds a pointer to the VFS any more.
        unsafe {
            ffi::sqlite3_vfs_unregister(&raw mut (*self.shared).vfs);
            drop(Box::from_raw(self.shared));
        }
    }
}

/// Our part of a VFS that SQLite hands to one of the functions below.
///
/// # Safety
/// `vfs` must be one that [`ClockVfs::over`] made and that is still registered.
unsafe fn shared<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a Shared {
    // SAFETY: `pAppData` was set at registration and never changes.
    unsafe { &*(*vfs).pAppData.cast::<Shared>() }
}

/// Calls the base's function of the same name, or answers that there is none.
macro_rules! pass_on {
    ($vfs:expr, $function:ident, $missing:expr $(, $argument:expr)*) => {{
        // SAFETY: SQLite calls this with the VFS that we registered; arguments are passed unchanged.
        unsafe {
            let base = shared($vfs).base;
            match (*base).$function {
                Some(function) => function(base $(, $argument)*),
                None => $missing,
            }
        }
    }};
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    pass_on!(vfs, xOpen, ffi::SQLITE_ERROR, name, file, flags, out_flags)
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    pass_on!(vfs, xDelete, ffi::SQLITE_ERROR, name, sync_dir)
}

unsafe extern "C" fn access(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    pass_on!(vfs, xAccess, ffi::SQLITE_ERROR, name, flags, out)
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    pass_on!(vfs, xFullPathname, ffi::SQLITE_ERROR, name, length, out)
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, length: c_int, out: *mut c_char) -> c_int {
    pass_on!(vfs, xRandomness, 0, length, out)
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, micros: c_int) -> c_int {
    pass_on!(vfs, xSleep, 0, micros)
}

unsafe extern "C" fn last_error(vfs: *mut ffi::sqlite3_vfs, length: c_int, out: *mut c_char) -> c_int {
    pass_on!(vfs, xGetLastError, 0, length, out)
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: the VFS is ours and `out` is SQLite's own variable.
    unsafe {
        #[allow(clippy::cast_precision_loss, reason = "SQLite's own representation of time")]
        let days = julian_ms(vfs) as f64 / 86_400_000.0;
        *out = days;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(vfs: *mut ffi::sqlite3_vfs, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: the VFS is ours and `out` is SQLite's own variable.
    unsafe { *out = julian_ms(vfs) };
    ffi::SQLITE_OK
}

/// # Safety
/// As for [`shared`].
unsafe fn julian_ms(vfs: *mut ffi::sqlite3_vfs) -> i64 {
    // SAFETY: passed on to the caller.
    let now_us = unsafe { shared(vfs) }.now_us.load(Ordering::Relaxed);
    now_us / 1_000 + JULIAN_UNIX_EPOCH_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::{Connection, OpenFlags};

    fn connection(vfs: &ClockVfs) -> Connection {
        let file = tempfile::Builder::new().tempdir().expect("a directory").keep().join("a.db");
        Connection::open_with_flags_and_vfs(file, OpenFlags::default(), vfs.name()).expect("a connection")
    }

    #[test]
    fn every_now_of_a_connection_is_what_its_clock_was_set_to() {
        let (a, b) = (ClockVfs::register(), ClockVfs::register());
        let (on_a, on_b) = (connection(&a), connection(&b));
        a.set(1_700_000_000_250_000);
        b.set(1_000_000_000_000_000);
        let ask = |on: &Connection| -> (String, String, i64) {
            on.query_row("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now'), CURRENT_TIMESTAMP, unixepoch()", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .expect("an answer")
        };
        assert_eq!(ask(&on_a), ("2023-11-14 22:13:20.250".into(), "2023-11-14 22:13:20".into(), 1_700_000_000));
        assert_eq!(ask(&on_b), ("2001-09-09 01:46:40.000".into(), "2001-09-09 01:46:40".into(), 1_000_000_000));
    }

    #[test]
    fn defaults_and_triggers_see_the_same_clock() {
        let vfs = ClockVfs::register();
        let on = connection(&vfs);
        vfs.set(86_400_000_000);
        on.execute_batch(
            "CREATE TABLE t (a, b DEFAULT CURRENT_TIMESTAMP, c);
             CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET c = datetime('now') WHERE a = NEW.a; END;
             INSERT INTO t (a) VALUES (1);",
        )
        .expect("statements");
        let row: (String, String) =
            on.query_row("SELECT b, c FROM t", [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a row");
        assert_eq!(row, ("1970-01-02 00:00:00".into(), "1970-01-02 00:00:00".into()));
    }

    #[test]
    fn a_database_in_wal_mode_works_through_it() {
        let vfs = ClockVfs::register();
        let on = connection(&vfs);
        let mode: String = on.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).expect("a mode");
        assert_eq!(mode, "wal");
        on.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").expect("statements");
        assert_eq!(on.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0)).expect("a row"), 1);
    }
}
