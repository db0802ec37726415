//! SQLite's own random numbers: of the salts of a write-ahead log, of names of temporary files.
//!
//! There is one generator per process, and it asks the default VFS for a seed when it is first
//! used, or used after a reset. So a reproducible run needs a default VFS that answers always the
//! same: the one of before with another xRandomness.

use super::random::SplitMix;
use rusqlite::ffi;
use std::ffi::{c_char, c_int};
use std::sync::{Mutex, Once, PoisonError};

static SEED: Mutex<SplitMix> = Mutex::new(SplitMix(0));
static SEEDED: Once = Once::new();

/// Makes SQLite's random numbers begin anew, as `seed` says.
///
/// This is for the whole process and stays: a simulator runs one simulation at a time. The default
/// VFS is replaced, once, by one that is the same but for its randomness.
///
/// # Panics
/// When SQLite has no default VFS or refuses another one, which it does only without memory.
pub fn reset_randomness(seed: u64) {
    SEEDED.call_once(register);
    *SEED.lock().unwrap_or_else(PoisonError::into_inner) = SplitMix(seed);
    // SAFETY: this is how SQLite is told to ask for a seed again.
    unsafe { ffi::sqlite3_randomness(0, std::ptr::null_mut()) }
}

fn register() {
    // SAFETY: SQLite initialises itself here; the default VFS lives as long as the process.
    let base = unsafe {
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK, "SQLite cannot be initialised");
        ffi::sqlite3_vfs_find(std::ptr::null())
    };
    assert!(!base.is_null(), "SQLite has no default VFS");
    // SAFETY: `base` is a valid VFS; the struct is plain data and copied whole. Its functions find
    // what they need through `pAppData`, which is copied too.
    let mut vfs = unsafe { std::ptr::read(base) };
    vfs.zName = c"quorate-seeded".as_ptr();
    vfs.pNext = std::ptr::null_mut();
    vfs.xRandomness = Some(randomness);
    // The process keeps it for ever: any connection may use it.
    let vfs = Box::leak(Box::new(vfs));
    // SAFETY: `vfs` is never freed.
    let registered = unsafe { ffi::sqlite3_vfs_register(vfs, 1) };
    assert_eq!(registered, ffi::SQLITE_OK, "SQLite refuses another VFS");
}

unsafe extern "C" fn randomness(_: *mut ffi::sqlite3_vfs, length: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite says how long its buffer is.
    let bytes = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), usize::try_from(length).unwrap_or(0)) };
    SEED.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
    length
}
