//! Everything behind a [`MemoryFs`](super::MemoryFs)'s lock: the tree, what was injected, counters.

use super::contents::{Contents, Mood, SECTOR};
use super::random::SplitMix;
use super::tree::{File, Node, NodeId, Tree};
use std::io;
use std::path::Path;
use std::sync::Weak;

#[derive(Debug)]
pub(super) struct State {
    pub(super) tree: Tree,
    /// Rises with every crash and kill. Handles of a lower one are dead.
    pub(super) generation: u64,
    /// Whether the power is gone and nothing runs.
    pub(super) off: bool,
    pub(super) faults: Faults,
    pub(super) device: Device,
    pub(super) counters: Counters,
}

/// Injected failures, which end with the process that sees them.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) fail_syncs_after: Option<u64>,
    pub(super) fail_writes_after: Option<u64>,
    pub(super) crash_after: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct Device {
    pub(super) capacity: Option<u64>,
    pub(super) ignores_syncs: bool,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) syncs: u64,
    pub(super) written_bytes: u64,
    pub(super) synced_bytes: u64,
    pub(super) lost_sectors: u64,
    pub(super) torn_writes: u64,
}

impl Default for State {
    fn default() -> State {
        State {
            tree: Tree::new(),
            generation: 0,
            off: false,
            faults: Faults::default(),
            device: Device::default(),
            counters: Counters::default(),
        }
    }
}

pub(super) fn dead() -> io::Error {
    io::Error::other("the simulated process that asks is dead")
}

/// Whether something that was to fail after so many times fails now.
fn fails(after: &mut Option<u64>) -> bool {
    match after {
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl State {
    /// Before each change: the moment at which the power may go.
    fn before_change(&mut self) -> io::Result<()> {
        self.is_on()?;
        match &mut self.faults.crash_after {
            Some((0, seed)) => {
                let seed = *seed;
                self.crash(seed);
                self.off = true;
                Err(dead())
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn is_on(&self) -> io::Result<()> {
        if self.off { Err(dead()) } else { Ok(()) }
    }

    pub(super) fn crash(&mut self, seed: u64) {
        let mut random = SplitMix(seed);
        self.tree.crash(&mut random);
        let mood = Mood::draw(&mut random);
        for file in self.tree.files_mut() {
            let loss = file.contents.crash(mood, &mut random);
            self.counters.lost_sectors += loss.sectors;
            self.counters.torn_writes += loss.torn;
        }
        self.kill();
    }

    pub(super) fn kill(&mut self) {
        self.generation += 1;
        self.off = false;
        self.faults = Faults::default();
        for file in self.tree.files_mut() {
            file.open = 0;
            file.unreadable = false;
            file.sharing = Weak::new();
        }
        self.tree.sweep();
    }

    pub(super) fn opened(&mut self, file: NodeId) {
        if let Ok(file) = self.tree.file_mut(file) {
            file.open += 1;
        }
    }

    pub(super) fn closed(&mut self, file: NodeId) {
        let Ok(file) = self.tree.file_mut(file) else { return };
        file.open -= 1;
        if !file.counts() {
            self.tree.sweep();
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.tree.files().filter(|file| file.counts()).map(|file| file.contents.len() as u64).sum()
    }

    fn make_room(&self, grows: usize) -> io::Result<()> {
        match self.device.capacity {
            Some(capacity) if grows > 0 && self.used() + grows as u64 > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn write<'a>(
        &mut self,
        file: NodeId,
        parts: impl Iterator<Item = &'a [u8]>,
        mut start: usize,
    ) -> io::Result<()> {
        self.before_change()?;
        if fails(&mut self.faults.fail_writes_after) {
            return Err(io::Error::other("the simulated device failed to write"));
        }
        self.tree.file_mut(file)?.contents.begin_write();
        for part in parts.filter(|part| !part.is_empty()) {
            let end = start.checked_add(part.len()).ok_or(io::ErrorKind::FileTooLarge)?;
            let length = self.tree.file(file)?.contents.len();
            self.make_room(end.saturating_sub(length))?;
            self.tree.file_mut(file)?.contents.write(part, start);
            self.counters.written_bytes += part.len() as u64;
            start = end;
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, file: NodeId, length: usize) -> io::Result<()> {
        self.before_change()?;
        let now = self.tree.file(file)?.contents.len();
        self.make_room(length.saturating_sub(now))?;
        self.tree.file_mut(file)?.contents.truncate(length);
        Ok(())
    }

    /// Gives a file other contents, durably.
    pub(super) fn replace(&mut self, file: NodeId, contents: Contents) -> io::Result<()> {
        self.before_change()?;
        let now = self.tree.file(file)?.contents.len();
        self.make_room(contents.len().saturating_sub(now))?;
        self.count_sync()?;
        self.counters.written_bytes += contents.len() as u64;
        self.counters.synced_bytes += contents.len() as u64;
        self.tree.file_mut(file)?.contents = contents;
        Ok(())
    }

    fn count_sync(&mut self) -> io::Result<()> {
        self.counters.syncs += 1;
        if fails(&mut self.faults.fail_syncs_after) {
            return Err(io::Error::other("the simulated device failed to sync"));
        }
        Ok(())
    }

    pub(super) fn sync_file(&mut self, file: NodeId) -> io::Result<()> {
        self.before_change()?;
        let outcome = self.count_sync();
        if outcome.is_ok() && self.device.ignores_syncs {
            return Ok(());
        }
        let contents = &mut self.tree.file_mut(file)?.contents;
        match outcome {
            Ok(()) => self.counters.synced_bytes += contents.sync() * SECTOR as u64,
            Err(_) => contents.sync_in_vain(),
        }
        outcome
    }

    pub(super) fn sync_directory(&mut self, directory: NodeId) -> io::Result<()> {
        self.before_change()?;
        self.count_sync()?;
        if !self.device.ignores_syncs {
            self.tree.sync(directory)?;
        }
        Ok(())
    }

    /// The file of that name, made if there is none.
    pub(super) fn create(&mut self, path: &Path) -> io::Result<NodeId> {
        self.is_on()?;
        let place = self.tree.place(path, true)?;
        if let Some(id) = place.node {
            return self.tree.file(id).map(|_| id);
        }
        self.before_change()?;
        let id = self.tree.add(Node::File(File::default()));
        self.tree.set(place.directory, place.name, Some(id));
        Ok(id)
    }

    pub(super) fn create_dir_all(&mut self, directory: &Path) -> io::Result<()> {
        let place = match self.tree.place(directory, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_dir_all(directory.parent().ok_or(error)?)?;
                self.tree.place(directory, false)?
            }
            place => place?,
        };
        if place.node.is_some() {
            let leads_to = self.tree.find(directory).map(|id| self.tree.node(id));
            let is_directory = matches!(leads_to, Ok(Node::Directory(_)));
            return if is_directory { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) };
        }
        self.before_change()?;
        let id = self.tree.add_directory();
        self.tree.set(place.directory, place.name, Some(id));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.tree.place(from, false)?, self.tree.place(to, false)?);
        self.before_change()?;
        self.tree.rename(from, to)
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let place = self.tree.place(path, false)?;
        let id = place.node.ok_or(io::ErrorKind::NotFound)?;
        if matches!(self.tree.node(id), Node::Directory(_)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.before_change()?;
        self.tree.set(place.directory, place.name, None);
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, directory: &Path) -> io::Result<()> {
        let place = self.tree.place(directory, false)?;
        let id = place.node.ok_or(io::ErrorKind::NotFound)?;
        match self.tree.node(id) {
            Node::Directory(_) => self.empty(id)?,
            Node::Link(_) => {}
            _ => return Err(io::ErrorKind::NotADirectory.into()),
        }
        if place.name.is_empty() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.before_change()?;
        self.tree.set(place.directory, place.name, None);
        Ok(())
    }

    fn empty(&mut self, directory: NodeId) -> io::Result<()> {
        for (name, id) in self.tree.names(directory)?.clone() {
            if matches!(self.tree.node(id), Node::Directory(_)) {
                self.empty(id)?;
            }
            self.before_change()?;
            self.tree.set(directory, name, None);
        }
        Ok(())
    }

    pub(super) fn symlink(&mut self, target: &Path, link: &Path) -> io::Result<()> {
        let place = self.tree.place(link, false)?;
        if place.node.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.before_change()?;
        let id = self.tree.add(Node::Link(target.to_owned()));
        self.tree.set(place.directory, place.name, Some(id));
        Ok(())
    }
}
