//! One simulated machine's file system, which forgets, tears, fails and rots on demand, and
//! SQLite's door to it.
//!
//! A [`MemoryFs`] is a tree of directories, files and symlinks. What processes see and what the
//! device holds are two things: a write changes the first, a sync brings the second up to it, and a
//! [`crash`](MemoryFs::crash) is what happens to the difference when the power goes. Log files are
//! used through [`MemoryFile`], SQLite's through a [`MemoryVfs`]; a crash treats them alike.
//!
//! Why not files of a real system: a simulator runs machines for simulated days, repeats a run bit
//! by bit from its seed, and cuts the power in the middle of a call.
//!
//! # Contract
//! - Written bytes survive a crash once their file is synced; until then any subset of their
//!   512-byte sectors may. A sector is written or not: sectors do not tear inside. (Real ones do so
//!   rarely, and then answer reads with an error or fail the record's checksum like other damage.)
//! - Creations, renames and removals survive once their directory is synced; until then any prefix
//!   of a directory's changes may. A rename between two directories happens in both or in neither.
//! - What a failed sync should have written is seen until a crash and is never written, unless it
//!   is written again: that is what a kernel does.
//! - A process that dies takes its handles, locks and shared memory along. Every call on a handle
//!   of before fails from then on and changes nothing.
//!
//! # Invariants
//! - Seeds decide everything; the same calls with the same seeds give the same contents.
//! - Every call happens whole before or after every other one, crashes included.
//!
//! # Sources
//! Pillai et al.: All File Systems Are Not Created Equal, OSDI 2014 (what a crash may leave).
//! Rebello et al.: Can Applications Recover from fsync Failures?, USENIX ATC 2020.

mod contents;
mod random;
mod randomness;
mod sharing;
mod sqlite;
mod state;
#[cfg(test)]
mod tests;
mod tree;

pub use randomness::reset_randomness;
pub use sqlite::MemoryVfs;

use contents::Contents;
use random::SplitMix;
use sharing::Sharing;
use state::State;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tree::{File, Node, NodeId};

/// A machine's file system. Clones are the same one.
///
/// Paths are absolute; one that is not starts at the root too. Names are UTF-8. Errors are those
/// that Linux gives, as far as [`io::ErrorKind`] tells them apart.
#[derive(Debug, Clone, Default)]
pub struct MemoryFs {
    state: Arc<Mutex<State>>,
}

impl MemoryFs {
    /// An empty root directory on a device without bounds.
    #[must_use]
    pub fn new() -> MemoryFs {
        MemoryFs::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an empty file, or empties the one that is there.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory, `IsADirectory`, or an injected one.
    pub fn create(&self, path: &Path) -> io::Result<MemoryFile> {
        let mut state = self.lock();
        let file = state.create(path)?;
        if state.tree.file(file)?.contents.len() > 0 {
            state.truncate(file, 0)?;
        }
        Ok(self.handle(&mut state, file))
    }

    fn open_or_create(&self, path: &Path) -> io::Result<MemoryFile> {
        let mut state = self.lock();
        let file = state.create(path)?;
        Ok(self.handle(&mut state, file))
    }

    /// A file that is gone when its handle is.
    fn create_unnamed(&self) -> MemoryFile {
        let mut state = self.lock();
        let file = state.tree.add(Node::File(File::default()));
        self.handle(&mut state, file)
    }

    /// The path with its symlinks followed; as it is where nothing is there.
    fn without_links(&self, path: &Path) -> PathBuf {
        self.lock().tree.place(path, true).map_or_else(|_| Path::new("/").join(path), |place| place.path)
    }

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when there is none, `IsADirectory`.
    pub fn open(&self, path: &Path) -> io::Result<MemoryFile> {
        let mut state = self.lock();
        state.is_on()?;
        let file = state.tree.find(path)?;
        state.tree.file(file)?;
        Ok(self.handle(&mut state, file))
    }

    fn handle(&self, state: &mut State, file: NodeId) -> MemoryFile {
        state.opened(file);
        MemoryFile { fs: self.clone(), file, generation: state.generation }
    }

    /// Whether the path, with its symlinks followed, leads to anything.
    #[must_use]
    pub fn exists(&self, path: &Path) -> bool {
        self.lock().tree.find(path).is_ok()
    }

    /// Whether the path leads to a directory.
    #[must_use]
    pub fn is_dir(&self, path: &Path) -> bool {
        let state = self.lock();
        state.tree.find(path).is_ok_and(|id| matches!(state.tree.node(id), Node::Directory(_)))
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`.
    pub fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        Ok(state.tree.names(state.tree.find(directory)?)?.keys().cloned().collect())
    }

    /// Makes a directory and those above it, unless they are there.
    ///
    /// # Errors
    /// `NotADirectory` or `AlreadyExists` when something else is in the way, or an injected one.
    pub fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        self.lock().create_dir_all(directory)
    }

    /// Renames a file, a symlink or a directory, in place of what has the new name: a file, or an
    /// empty directory if it is one itself.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, `NotADirectory`, `DirectoryNotEmpty`, `InvalidInput` for a
    /// directory that would be moved into itself, or an injected one.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.lock().rename(from, to)
    }

    /// Removes a file's or a symlink's name. Who has the file open goes on using it.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, or an injected one.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.lock().remove_file(path)
    }

    /// Removes a directory with everything below; a symlink alone.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, or an injected one, with a part of it removed.
    pub fn remove_dir_all(&self, directory: &Path) -> io::Result<()> {
        self.lock().remove_dir_all(directory)
    }

    /// Makes `link` a symlink to `target`, which is relative to the link's directory or absolute
    /// and need not be there.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` when there is no such directory, or an injected one.
    pub fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        self.lock().symlink(target, link)
    }

    /// What a symlink says.
    ///
    /// # Errors
    /// `NotFound`, `InvalidInput` when it is none.
    pub fn read_link(&self, link: &Path) -> io::Result<PathBuf> {
        let state = self.lock();
        let id = state.tree.place(link, false)?.node.ok_or(io::ErrorKind::NotFound)?;
        match state.tree.node(id) {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Makes a file's bytes durable, or the names in a directory.
    ///
    /// # Errors
    /// `NotFound`, or an injected one.
    pub fn sync(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let id = state.tree.find(path)?;
        if matches!(state.tree.node(id), Node::Directory(_)) { state.sync_directory(id) } else { state.sync_file(id) }
    }

    /// A file's bytes as processes see them, whatever is injected.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    pub fn bytes(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.lock();
        Ok(state.tree.file(state.tree.find(path)?)?.contents.seen().to_vec())
    }

    /// How many sectors of a file a crash could take now: written and not synced, or lost by a failed
    /// sync.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    pub fn unsynced_sectors(&self, path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.tree.file(state.tree.find(path)?)?.contents.unsynced())
    }

    /// Bytes of all files that have a name or are open.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Bytes that may still be allocated; `u64::MAX` without a capacity.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let state = self.lock();
        state.device.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()))
    }

    /// A machine of its own with the same names and contents, all of it synced, without faults.
    #[must_use]
    pub fn copy(&self) -> MemoryFs {
        let state = State { tree: self.lock().tree.copy(), ..State::default() };
        MemoryFs { state: Arc::new(Mutex::new(state)) }
    }

    /// The power goes, and is back at once. Of what was not synced, `seed` decides what survives:
    /// nothing, everything, any subset of the sectors, or those of the first writes with the last
    /// one torn; and a prefix of each directory's name changes. All handles die, injected failures
    /// end.
    pub fn crash(&self, seed: u64) {
        self.lock().crash(seed);
    }

    /// The process dies and the machine goes on: all handles die, injected failures end, and
    /// nothing that was written is lost, though it is no more durable than before.
    pub fn kill(&self) {
        self.lock().kill();
    }

    /// Lets `after` more changes happen (writes, truncations, syncs, name changes) and has the
    /// power go instead of the next one, in the middle of whatever asks for it. The machine then
    /// stays off until [`start`](Self::start): a process that has not yet noticed that it is dead
    /// can neither change nor open anything.
    pub fn crash_after(&self, after: u64, seed: u64) {
        self.lock().faults.crash_after = Some((after, seed));
    }

    /// Whether the power is gone since [`crash_after`](Self::crash_after).
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    /// The power is back. A machine that is on goes on.
    pub fn start(&self) {
        self.lock().off = false;
    }

    /// The kernel writes a random part of what is not synced back on its own, as it may at any
    /// time: a later crash can no longer take that.
    pub fn write_back(&self, seed: u64) {
        let mut random = SplitMix(seed);
        self.lock().tree.files_mut().for_each(|file| file.contents.write_back(&mut random));
    }

    /// Lets `after` more syncs of files or directories succeed and all later ones fail, until a
    /// crash or a kill. What a failed sync of a file should have written is never written.
    pub fn fail_syncs(&self, after: u64) {
        self.lock().faults.fail_syncs_after = Some(after);
    }

    /// Lets `after` more writes succeed and all later ones fail, with nothing written, until a
    /// crash or a kill.
    pub fn fail_writes(&self, after: u64) {
        self.lock().faults.fail_writes_after = Some(after);
    }

    /// Lets all reads of a file fail, until a crash or a kill.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    pub fn fail_reads(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.tree.find(path)?;
        state.tree.file_mut(file)?.unreadable = true;
        Ok(())
    }

    /// Bounds what all files together may take; `None`, as at first, for no bound. Files that are
    /// there stay. Crashes do not change it.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().device.capacity = bytes;
    }

    /// A device that lies: its syncs succeed and do nothing, until it is told otherwise. Tests use
    /// it to see that they would notice.
    pub fn ignore_syncs(&self, ignore: bool) {
        self.lock().device.ignores_syncs = ignore;
    }

    /// Years pass: the bits of `mask` flip in one byte of a file, on the device too.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, `UnexpectedEof` when the file ends before.
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.tree.find(path)?;
        let flipped = state.tree.file_mut(file)?.contents.flip(position(offset)?, mask);
        if flipped { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// How many syncs of files and directories were asked for since the beginning.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().counters.syncs
    }

    /// Bytes that were written since the beginning. With [`syncs`](Self::syncs) it tells whoever
    /// models a slow disk how long a call would have taken.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.lock().counters.written_bytes
    }

    /// Bytes, in whole sectors, that syncs brought to the device since the beginning.
    #[must_use]
    pub fn synced_bytes(&self) -> u64 {
        self.lock().counters.synced_bytes
    }

    /// How many unsynced sectors crashes have taken since the beginning. A test that wants to have
    /// tested crashes asserts that it is not 0.
    #[must_use]
    pub fn lost_sectors(&self) -> u64 {
        self.lock().counters.lost_sectors
    }

    /// How many writes crashes have torn since the beginning: a part survived.
    #[must_use]
    pub fn torn_writes(&self) -> u64 {
        self.lock().counters.torn_writes
    }
}

/// An open file of a [`MemoryFs`]. Offsets and lengths are bytes.
///
/// Every call fails after a [`crash`](MemoryFs::crash) or a [`kill`](MemoryFs::kill): the process
/// that held the handle is dead.
#[derive(Debug)]
pub struct MemoryFile {
    fs: MemoryFs,
    file: NodeId,
    generation: u64,
}

impl MemoryFile {
    fn with<T>(&self, work: impl FnOnce(&mut State, NodeId) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.fs.lock();
        if state.generation != self.generation {
            return Err(state::dead());
        }
        work(&mut state, self.file)
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, or an injected one.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read_some_at(buffer, offset)?;
        if read < buffer.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Fills the front of `buffer` with what there is from `offset`, and says how much that was.
    fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = position(offset)?;
        self.with(|state, file| {
            let file = state.tree.file(file)?;
            if file.unreadable {
                return Err(io::Error::other("the simulated device failed to read"));
            }
            let bytes = file.contents.seen().get(start..).unwrap_or(&[]);
            let length = bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&bytes[..length]);
            Ok(length)
        })
    }

    /// Writes all parts, one after the other, at `offset`.
    ///
    /// # Errors
    /// `StorageFull`, with the parts before the one that had no room written, or an injected one.
    pub fn write_at(&self, parts: &mut [io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let start = position(offset)?;
        self.with(|state, file| state.write(file, parts.iter().map(|part| &part[..]), start))
    }

    /// Makes the file `bytes` long with zeros everywhere, durably.
    ///
    /// # Errors
    /// `StorageFull`, or an injected one; nothing is changed then.
    pub fn allocate_zeroed(&self, bytes: u64) -> io::Result<()> {
        let length = position(bytes)?;
        self.with(|state, file| state.replace(file, Contents::zeroed(length)))
    }

    /// Shortens the file, or lengthens it with zeros.
    ///
    /// # Errors
    /// `StorageFull`, or an injected one.
    pub fn truncate(&self, bytes: u64) -> io::Result<()> {
        let length = position(bytes)?;
        self.with(|state, file| state.truncate(file, length))
    }

    /// Makes everything written until now durable.
    ///
    /// # Errors
    /// An injected one; what was written since the last sync is then seen but never durable.
    pub fn sync_data(&self) -> io::Result<()> {
        self.with(State::sync_file)
    }

    fn alive(&self) -> bool {
        self.with(|_, _| Ok(())).is_ok()
    }

    /// What the connections of SQLite to this file share.
    fn sharing(&self) -> io::Result<Arc<Sharing>> {
        self.with(|state, file| {
            let file = state.tree.file_mut(file)?;
            Ok(file.sharing.upgrade().unwrap_or_else(|| {
                let sharing = Arc::default();
                file.sharing = Arc::downgrade(&sharing);
                sharing
            }))
        })
    }

    /// Syncs the names in a directory, as the process that has this file open.
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.with(|state, _| state.sync_directory(state.tree.find(directory)?))
    }

    /// Whether the path leads to this file.
    fn is_at(&self, path: &Path) -> bool {
        self.with(|state, file| Ok(state.tree.find(path)? == file)).unwrap_or(false)
    }

    /// The file's length.
    ///
    /// # Errors
    /// Only that of a dead handle.
    pub fn bytes(&self) -> io::Result<u64> {
        self.with(|state, file| Ok(state.tree.file(file)?.contents.len() as u64))
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let mut state = self.fs.lock();
        if state.generation == self.generation {
            state.closed(self.file);
        }
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}
