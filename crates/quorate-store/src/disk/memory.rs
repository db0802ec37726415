//! A disk in memory that forgets, tears, fails and rots on demand.
//!
//! Each file has two contents: what a process sees, and what the device holds. A write changes the
//! first and marks its 512-byte sectors; a sync copies the marked sectors to the second. A
//! [`crash`](MemoryDisk::crash) keeps a random subset of the marked sectors and a random prefix of
//! the name changes since the last directory sync. Handles from before a crash answer with errors:
//! the process that held them is dead.
//!
//! # Invariants
//! - A seed decides everything; the same calls with the same seeds give the same contents.
//! - A sector is written or not: sectors do not tear inside. (Real ones do so rarely, and then
//!   answer reads with an error or fail the record's checksum like any other damage.)

use super::{Disk, DiskFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;

/// A directory in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    /// Name → position in `files`: as processes see it, and as the device holds it.
    names: BTreeMap<String, usize>,
    names_synced: BTreeMap<String, usize>,
    /// Changes that lead from `names_synced` to `names`.
    unsynced: Vec<NameChange>,
    crashes: u64,
    syncs: u64,
    syncs_until_failure: Option<u64>,
    capacity: Option<u64>,
}

#[derive(Debug, Default)]
struct Contents {
    seen: Vec<u8>,
    held: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, usize),
    Rename(String, String),
    Remove(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Set(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl State {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        self.names.values().map(|&file| self.files[file].seen.len() as u64).sum()
    }

    /// Counts a sync; an error when it is the one that was chosen to fail.
    fn count_sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        match &mut self.syncs_until_failure {
            Some(0) => Err(io::Error::other("the simulated device failed to sync")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl MemoryDisk {
    #[must_use]
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no method panics while it holds the lock")
    }

    /// The power goes. Of what was not synced, `seed` decides what survives.
    pub fn crash(&self, seed: u64) {
        let mut random = SplitMix(seed);
        let mut state = self.lock();
        let state = &mut *state;
        let kept = random.below(state.unsynced.len() as u64 + 1);
        for (change, _) in state.unsynced.iter().zip(0..kept) {
            change.apply(&mut state.names_synced);
        }
        state.unsynced.clear();
        state.names = state.names_synced.clone();
        // All or nothing happens too, and more often than coins would have it.
        let mood = random.below(4);
        for contents in &mut state.files {
            for sector in std::mem::take(&mut contents.dirty) {
                if mood == 0 || (mood > 1 && random.below(2) == 0) {
                    contents.sync_sector(sector);
                }
            }
            contents.seen.clone_from(&contents.held);
        }
        state.syncs_until_failure = None;
        state.crashes += 1;
    }

    /// Lets `after` more syncs of files or of the directory succeed and all later ones fail, until
    /// a crash. As with a real kernel, what a failed sync should have written counts as clean from
    /// then on: it is seen until the crash and never reaches the device.
    pub fn fail_syncs(&self, after: u64) {
        self.lock().syncs_until_failure = Some(after);
    }

    /// Bounds what all files together may take. Files that are there stay.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = Some(bytes);
    }

    /// How many syncs of files or of the directory were asked for.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The bytes of a file as a process sees them.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn contents(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.lock();
        Ok(state.files[state.find(name)?].seen.clone())
    }

    /// Years pass: the bits of `mask` flip in one byte of a file, on the device too.
    ///
    /// # Errors
    /// `NotFound` when there is no such file, `UnexpectedEof` when it ends before.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.find(name)?;
        let contents = &mut state.files[file];
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        *contents.seen.get_mut(offset).ok_or(io::ErrorKind::UnexpectedEof)? ^= mask;
        if let Some(byte) = contents.held.get_mut(offset) {
            *byte ^= mask;
        }
        Ok(())
    }

    /// A disk of its own with the same names and contents, all of it synced.
    #[must_use]
    pub fn copy(&self) -> MemoryDisk {
        let state = self.lock();
        let mut files = Vec::new();
        let mut names = BTreeMap::new();
        for (name, &file) in &state.names {
            names.insert(name.clone(), files.len());
            let seen = state.files[file].seen.clone();
            files.push(Contents { held: seen.clone(), seen, dirty: BTreeSet::new() });
        }
        let copy = State { files, names_synced: names.clone(), names, ..State::default() };
        MemoryDisk { state: Arc::new(Mutex::new(copy)) }
    }

    fn handle(&self, file: usize, crashes: u64) -> MemoryFile {
        MemoryFile { disk: self.clone(), file, crashes }
    }
}

impl Contents {
    fn sync_sector(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.seen.len());
        if self.held.len() < end {
            self.held.resize(end, 0);
        }
        self.held[start..end].copy_from_slice(&self.seen[start..end]);
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn directory(&self) -> &Path {
        Path::new("memory")
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        let mut state = self.lock();
        let file = state.files.len();
        state.files.push(Contents::default());
        state.change(NameChange::Set(name.to_owned(), file));
        Ok(self.handle(file, state.crashes))
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let state = self.lock();
        Ok(self.handle(state.find(name)?, state.crashes))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.lock().names.contains_key(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.find(from)?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.find(name)?;
        state.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.lock();
        let outcome = state.count_sync();
        if outcome.is_ok() {
            state.names_synced = state.names.clone();
            state.unsynced.clear();
        }
        outcome
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used())))
    }
}

/// An open file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile {
    disk: MemoryDisk,
    file: usize,
    crashes: u64,
}

impl MemoryFile {
    fn with<T>(&self, work: impl FnOnce(&mut State, usize) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.lock();
        if state.crashes != self.crashes {
            return Err(io::Error::other("this handle died in a crash"));
        }
        work(&mut state, self.file)
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = position(offset)?;
        self.with(|state, file| {
            let seen = &state.files[file].seen;
            let bytes = seen.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_at(&self, parts: &mut [io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut start = position(offset)?;
        self.with(|state, file| {
            for part in parts {
                let end = start + part.len();
                let used = state.used();
                let contents = &mut state.files[file];
                let grows = end.saturating_sub(contents.seen.len());
                if state.capacity.is_some_and(|capacity| used + grows as u64 > capacity) {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                if grows > 0 {
                    contents.seen.resize(end, 0);
                }
                contents.seen[start..end].copy_from_slice(part);
                if end > start {
                    contents.dirty.extend(start / SECTOR..=(end - 1) / SECTOR);
                }
                start = end;
            }
            Ok(())
        })
    }

    fn allocate_zeroed(&self, bytes: u64) -> io::Result<()> {
        let length = position(bytes)?;
        self.with(|state, file| {
            let others = state.used().saturating_sub(state.files[file].seen.len() as u64);
            if state.capacity.is_some_and(|capacity| others + bytes > capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.count_sync()?;
            state.files[file] = Contents { seen: vec![0; length], held: vec![0; length], dirty: BTreeSet::new() };
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, file| {
            let outcome = state.count_sync();
            let contents = &mut state.files[file];
            for sector in std::mem::take(&mut contents.dirty) {
                if outcome.is_ok() {
                    contents.sync_sector(sector);
                }
            }
            outcome
        })
    }

    fn bytes(&self) -> io::Result<u64> {
        self.with(|state, file| Ok(state.files[file].seen.len() as u64))
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014. Crashes need
/// coins, not cryptography.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`, which is not 0. The bias of the remainder does not matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
