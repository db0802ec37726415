//! A VFS of SQLite's over a [`MemoryFs`].
//!
//! Locks and the shared memory of write-ahead logs are in [`Sharing`], one per file; everything
//! else is passed on to the file system. It behaves as the Unix VFS does where that matters for
//! what survives a crash: the first sync of a new journal or write-ahead log syncs its directory
//! too, and a device that overwrites a part of a sector leaves the other part as it was.
//!
//! # Invariants
//! - A file handle that SQLite holds is ours from a successful xOpen until xClose.
//! - Handles of before a crash or a kill answer errors, but for giving back what they hold; closing
//!   a connection then changes nothing on the device.

use super::random::SplitMix;
use super::sharing::{Held, Sharing};
use super::{MemoryFile, MemoryFs};
use crate::clock::JULIAN_UNIX_EPOCH_MS;
use rusqlite::ffi;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest path, as on Linux.
const PATH_MAX: usize = 4_096;

/// Makes names unique within the process, which is where VFS names live.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A registered VFS whose files are those of a [`MemoryFs`].
///
/// It outlives crashes of the machine: connections that are opened after one work. Dropped, it is
/// unregistered, so its owner drops connections first, then each [`ClockVfs`](crate::ClockVfs) over
/// it, then this.
///
/// A process that waits for a lock does not wait here: xSleep returns at once, because in a
/// simulator nobody else would run meanwhile.
#[derive(Debug)]
pub struct MemoryVfs {
    shared: *mut Shared,
    name: String,
}

// SAFETY: what is shared is behind locks or atomic.
unsafe impl Send for MemoryVfs {}
// SAFETY: see above.
unsafe impl Sync for MemoryVfs {}

struct Shared {
    /// SQLite links its VFSes through this, at any time, so nobody borrows it.
    vfs: ffi::sqlite3_vfs,
    machine: Machine,
    _name: CString,
}

struct Machine {
    fs: MemoryFs,
    /// Microseconds since 1970.
    now_us: AtomicI64,
    random: Mutex<SplitMix>,
}

/// What SQLite takes for its `sqlite3_file`.
#[repr(C)]
struct Handle {
    base: ffi::sqlite3_file,
    open: *mut Open,
}

/// An open file of SQLite's.
struct Open {
    file: MemoryFile,
    path: Option<PathBuf>,
    /// Only for databases: nothing else is ever locked.
    sharing: Option<Arc<Sharing>>,
    held: Held,
    /// Whether its directory must be synced with it, once.
    new_name: bool,
}

impl MemoryVfs {
    /// Registers a VFS for the machine. Its clock shows 1970 until it is set, its seed is 0.
    ///
    /// # Panics
    /// When SQLite refuses another VFS, which it does only without memory.
    #[must_use]
    pub fn register(fs: MemoryFs) -> MemoryVfs {
        let name = format!("quorate-memory-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let c_name = CString::new(name.clone()).expect("the name has no NUL");
        let vfs = ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<Handle>() as c_int,
            mxPathname: PATH_MAX as c_int,
            pNext: std::ptr::null_mut(),
            zName: c_name.as_ptr(),
            pAppData: std::ptr::null_mut(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: Some(current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        };
        let machine = Machine { fs, now_us: AtomicI64::new(0), random: Mutex::new(SplitMix(0)) };
        let shared = Box::into_raw(Box::new(Shared { vfs, machine, _name: c_name }));
        // SAFETY: `shared` was just made and is freed only after it was unregistered.
        let registered = unsafe {
            assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK, "SQLite cannot be initialised");
            (*shared).vfs.pAppData = shared.cast();
            ffi::sqlite3_vfs_register(&raw mut (*shared).vfs, 0)
        };
        assert_eq!(registered, ffi::SQLITE_OK, "SQLite refuses another VFS");
        MemoryVfs { shared, name }
    }

    /// The name to open connections with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine's file system.
    #[must_use]
    pub fn fs(&self) -> &MemoryFs {
        &self.machine().fs
    }

    /// Sets the machine's clock, in microseconds since 1970.
    pub fn set_now(&self, now_us: u64) {
        self.machine().now_us.store(i64::try_from(now_us).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Makes xRandomness begin anew. SQLite asks only its default VFS for randomness, so this
    /// matters to a [`ClockVfs`](crate::ClockVfs) over this one and to callers of the VFS; see
    /// [`reset_randomness`](super::reset_randomness) for SQLite's own.
    pub fn set_seed(&self, seed: u64) {
        *self.machine().random.lock().unwrap_or_else(PoisonError::into_inner) = SplitMix(seed);
    }

    fn machine(&self) -> &Machine {
        // SAFETY: it lives as long as `self`.
        unsafe { &(*self.shared).machine }
    }
}

impl Drop for MemoryVfs {
    fn drop(&mut self) {
        // SAFETY: the owner has closed its connections before (see the type's documentation), so
        // nobody holds a pointer to the VFS any more.
        unsafe {
            ffi::sqlite3_vfs_unregister(&raw mut (*self.shared).vfs);
            drop(Box::from_raw(self.shared));
        }
    }
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// # Safety
/// `vfs` must be one that [`MemoryVfs::register`] made and that is still registered.
unsafe fn machine<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a Machine {
    // SAFETY: `pAppData` was set at registration and never changes.
    unsafe { &(*(*vfs).pAppData.cast::<Shared>()).machine }
}

/// # Safety
/// `name` must be a string of SQLite's that outlives the result.
unsafe fn path<'a>(name: *const c_char) -> Option<&'a Path> {
    // SAFETY: passed on to the caller.
    unsafe { CStr::from_ptr(name) }.to_str().ok().map(Path::new)
}

/// # Safety
/// `file` must be a handle that [`open`] made and [`close`] has not seen. SQLite uses a handle in
/// one thread at a time.
unsafe fn opened<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Open {
    // SAFETY: passed on to the caller; `open` made the box.
    unsafe { &mut *(*file.cast::<Handle>()).open }
}

fn code(outcome: io::Result<()>, otherwise: c_int) -> c_int {
    match outcome {
        Ok(()) => ffi::SQLITE_OK,
        Err(error) if error.kind() == io::ErrorKind::StorageFull => ffi::SQLITE_FULL,
        Err(_) => otherwise,
    }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls this with our VFS, a name or none, and room for a `Handle`.
    unsafe {
        (*file).pMethods = std::ptr::null();
        let path = if name.is_null() { None } else { path(name) };
        if path.is_none() && !name.is_null() {
            return ffi::SQLITE_CANTOPEN;
        }
        let Ok(open) = open_file(&machine(vfs).fs, path, flags) else { return ffi::SQLITE_CANTOPEN };
        let handle = file.cast::<Handle>();
        (*handle).open = Box::into_raw(Box::new(open));
        (*handle).base.pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

fn open_file(fs: &MemoryFs, path: Option<&Path>, flags: c_int) -> io::Result<Open> {
    let has = |flag| flags & flag != 0;
    let file = match path {
        None => fs.create_unnamed(),
        Some(path) => {
            if has(ffi::SQLITE_OPEN_EXCLUSIVE) && fs.exists(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let file = if has(ffi::SQLITE_OPEN_CREATE) { fs.open_or_create(path)? } else { fs.open(path)? };
            if has(ffi::SQLITE_OPEN_DELETEONCLOSE) {
                fs.remove_file(path)?;
            }
            file
        }
    };
    let sharing = if has(ffi::SQLITE_OPEN_MAIN_DB) { Some(file.sharing()?) } else { None };
    let journal = ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_WAL;
    let new_name = has(ffi::SQLITE_OPEN_CREATE) && has(journal);
    Ok(Open { file, path: path.map(Path::to_owned), sharing, held: Held::default(), new_name })
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite calls this with our VFS and a name.
    let (fs, path) = unsafe { (&machine(vfs).fs, path(name)) };
    let Some(path) = path else { return ffi::SQLITE_IOERR_DELETE };
    match fs.remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return ffi::SQLITE_IOERR_DELETE_NOENT,
        Err(_) => return ffi::SQLITE_IOERR_DELETE,
    }
    match path.parent() {
        Some(directory) if sync_directory != 0 => code(fs.sync(directory), ffi::SQLITE_IOERR_DIR_FSYNC),
        _ => ffi::SQLITE_OK,
    }
}

unsafe extern "C" fn access(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    // SAFETY: SQLite calls this with our VFS, a name and its own variable.
    unsafe {
        let fs = &machine(vfs).fs;
        let found = path(name).is_some_and(|path| match fs.open(path) {
            // An empty journal counts as none, as in the Unix VFS.
            Ok(file) => flags != ffi::SQLITE_ACCESS_EXISTS || file.bytes().is_ok_and(|bytes| bytes > 0),
            Err(_) => fs.exists(path),
        });
        *out = c_int::from(found);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite calls this with our VFS, a name and its own buffer of `room` bytes.
    unsafe {
        let Some(path) = path(name) else { return ffi::SQLITE_CANTOPEN };
        let path = machine(vfs).fs.without_links(path);
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.len() >= usize::try_from(room).unwrap_or(0) {
            return ffi::SQLITE_CANTOPEN;
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len());
        *out.add(bytes.len()) = 0;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, length: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite calls this with our VFS and its own buffer of `length` bytes.
    unsafe {
        let bytes = std::slice::from_raw_parts_mut(out.cast::<u8>(), usize::try_from(length).unwrap_or(0));
        machine(vfs).random.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
    }
    length
}

unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, micros: c_int) -> c_int {
    micros
}

unsafe extern "C" fn last_error(_: *mut ffi::sqlite3_vfs, _: c_int, _: *mut c_char) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite calls this with our VFS and its own variable.
    unsafe {
        #[allow(clippy::cast_precision_loss, reason = "SQLite's own representation of time")]
        let days = julian_ms(vfs) as f64 / 86_400_000.0;
        *out = days;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(vfs: *mut ffi::sqlite3_vfs, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls this with our VFS and its own variable.
    unsafe { *out = julian_ms(vfs) };
    ffi::SQLITE_OK
}

/// # Safety
/// As for [`machine`].
unsafe fn julian_ms(vfs: *mut ffi::sqlite3_vfs) -> i64 {
    // SAFETY: passed on to the caller.
    unsafe { machine(vfs) }.now_us.load(Ordering::Relaxed) / 1_000 + JULIAN_UNIX_EPOCH_MS
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a handle once; the box is the one that `open` made.
    let mut open = unsafe {
        let handle = file.cast::<Handle>();
        (*handle).base.pMethods = std::ptr::null();
        Box::from_raw((*handle).open)
    };
    if let Some(sharing) = &open.sharing {
        sharing.unmap(&mut open.held);
        sharing.lower(&mut open.held, ffi::SQLITE_LOCK_NONE);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls this with our handle and its own buffer of `length` bytes.
    let (open, buffer) = unsafe {
        let length = usize::try_from(length).unwrap_or(0);
        (opened(file), std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length))
    };
    match open.file.read_some_at(buffer, offset.cast_unsigned()) {
        Ok(read) if read == buffer.len() => ffi::SQLITE_OK,
        Ok(read) => {
            buffer[read..].fill(0);
            ffi::SQLITE_IOERR_SHORT_READ
        }
        Err(_) => ffi::SQLITE_IOERR_READ,
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls this with our handle and its own buffer of `length` bytes.
    let (open, bytes) = unsafe {
        let length = usize::try_from(length).unwrap_or(0);
        (opened(file), std::slice::from_raw_parts(buffer.cast::<u8>(), length))
    };
    let outcome = open.file.write_at(&mut [io::IoSlice::new(bytes)], offset.cast_unsigned());
    code(outcome, ffi::SQLITE_IOERR_WRITE)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls this with our handle.
    let open = unsafe { opened(file) };
    code(open.file.truncate(length.cast_unsigned()), ffi::SQLITE_IOERR_TRUNCATE)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: SQLite calls this with our handle.
    let open = unsafe { opened(file) };
    if open.file.sync_data().is_err() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    if std::mem::take(&mut open.new_name)
        && let Some(directory) = open.path.as_deref().and_then(Path::parent)
    {
        // The Unix VFS ignores a failure here too; it is the next sync that tells.
        let _ = open.file.sync_directory(directory);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls this with our handle and its own variable.
    unsafe {
        let Ok(bytes) = opened(file).file.bytes() else { return ffi::SQLITE_IOERR_FSTAT };
        *out = bytes.cast_signed();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls this with our handle.
    let open = unsafe { opened(file) };
    match &open.sharing {
        _ if !open.file.alive() => ffi::SQLITE_IOERR_LOCK,
        Some(sharing) if !sharing.raise(&mut open.held, level) => ffi::SQLITE_BUSY,
        _ => ffi::SQLITE_OK,
    }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls this with our handle.
    let open = unsafe { opened(file) };
    if let Some(sharing) = &open.sharing {
        sharing.lower(&mut open.held, level);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite calls this with our handle and its own variable.
    unsafe {
        let open = opened(file);
        if !open.file.alive() {
            return ffi::SQLITE_IOERR_CHECKRESERVEDLOCK;
        }
        *out = c_int::from(open.sharing.as_ref().is_some_and(|sharing| sharing.reserved()));
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, operation: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: SQLite calls this with our handle, and with an `int` of its own for these operations.
    unsafe {
        let open = opened(file);
        match operation {
            ffi::SQLITE_FCNTL_LOCKSTATE => *argument.cast::<c_int>() = open.held.level,
            // SQLite asks before it makes a journal. A dead connection is told that its file is
            // elsewhere, so it makes none.
            ffi::SQLITE_FCNTL_HAS_MOVED => {
                *argument.cast::<c_int>() =
                    c_int::from(open.path.as_deref().is_some_and(|path| !open.file.is_at(path)));
            }
            _ => return ffi::SQLITE_NOTFOUND,
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    super::contents::SECTOR as c_int
}

unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    // What the Unix VFS says by default, and what holds here: see the contract of `MemoryFs`.
    // Without it SQLite would fill sectors up in its logs, which it does not do in production.
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls this with our handle and its own variable. The region lives while the
    // handle has not unmapped it, for `Sharing` counts those, and moves nowhere.
    unsafe {
        *out = std::ptr::null_mut();
        let open = opened(file);
        let (Some(sharing), true) = (&open.sharing, open.file.alive()) else { return ffi::SQLITE_IOERR_SHMMAP };
        let (region, bytes) = (usize::try_from(region).unwrap_or(0), usize::try_from(bytes).unwrap_or(0));
        if let Some(region) = sharing.map(&mut open.held, region, bytes, extend != 0) {
            *out = region.as_ptr().cast_mut().cast();
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, first: c_int, count: c_int, flags: c_int) -> c_int {
    // SAFETY: SQLite calls this with our handle.
    let open = unsafe { opened(file) };
    let Some(sharing) = &open.sharing else { return ffi::SQLITE_IOERR_SHMLOCK };
    let slots: Range<usize> = usize::try_from(first).unwrap_or(0)..usize::try_from(first + count).unwrap_or(0);
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        sharing.give_back(&mut open.held, slots);
        return ffi::SQLITE_OK;
    }
    if !open.file.alive() {
        return ffi::SQLITE_IOERR_SHMLOCK;
    }
    let taken = sharing.take(&mut open.held, slots, flags & ffi::SQLITE_SHM_EXCLUSIVE != 0);
    if taken { ffi::SQLITE_OK } else { ffi::SQLITE_BUSY }
}

unsafe extern "C" fn shm_barrier(_: *mut ffi::sqlite3_file) {
    fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: SQLite calls this with our handle.
    let open = unsafe { opened(file) };
    if let Some(sharing) = &open.sharing {
        sharing.unmap(&mut open.held);
    }
    ffi::SQLITE_OK
}
