//! A directory of a simulated machine, which forgets, tears, fails and rots on demand.
//!
//! All of that is [`MemoryFs`]; this is its place in the log's door, and the faults by the names of
//! files.

use super::{Disk, DiskFile};
use quorate_vfs::memory::{MemoryFile, MemoryFs};
use std::io;
use std::path::{Path, PathBuf};

/// A directory in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryDisk {
    fs: MemoryFs,
    directory: PathBuf,
}

impl Default for MemoryDisk {
    fn default() -> MemoryDisk {
        MemoryDisk::new()
    }
}

impl MemoryDisk {
    /// The directory `memory` of a machine of its own.
    #[must_use]
    pub fn new() -> MemoryDisk {
        MemoryDisk::at(&MemoryFs::new(), Path::new("memory")).expect("a new machine refuses nothing")
    }

    /// Uses `directory`, which is made (durably, with its missing parents) if it is not there.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn at(fs: &MemoryFs, directory: &Path) -> io::Result<MemoryDisk> {
        if !fs.is_dir(directory) {
            fs.create_dir_all(directory)?;
            for parent in directory.ancestors().skip(1) {
                fs.sync(parent)?;
            }
        }
        Ok(MemoryDisk { fs: fs.clone(), directory: directory.to_owned() })
    }

    /// The machine.
    #[must_use]
    pub fn fs(&self) -> &MemoryFs {
        &self.fs
    }

    /// The power goes; see [`MemoryFs::crash`].
    pub fn crash(&self, seed: u64) {
        self.fs.crash(seed);
    }

    /// Lets later syncs fail; see [`MemoryFs::fail_syncs`].
    pub fn fail_syncs(&self, after: u64) {
        self.fs.fail_syncs(after);
    }

    /// Bounds what all files of the machine together may take. Files that are there stay.
    pub fn set_capacity(&self, bytes: u64) {
        self.fs.set_capacity(Some(bytes));
    }

    /// How many syncs of files or directories were asked of the machine.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.fs.syncs()
    }

    /// The bytes of a file as a process sees them.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn contents(&self, name: &str) -> io::Result<Vec<u8>> {
        self.fs.bytes(&self.path(name))
    }

    /// Years pass: the bits of `mask` flip in one byte of a file, on the device too.
    ///
    /// # Errors
    /// `NotFound` when there is no such file, `UnexpectedEof` when it ends before.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) -> io::Result<()> {
        self.fs.flip(&self.path(name), offset, mask)
    }

    /// The same directory of a machine of its own, all of it synced.
    #[must_use]
    pub fn copy(&self) -> MemoryDisk {
        MemoryDisk { fs: self.fs.copy(), directory: self.directory.clone() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        self.fs.create(&self.path(name))
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        self.fs.open(&self.path(name))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.fs.exists(&self.path(name)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.fs.list(&self.directory)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.fs.rename(&self.path(from), &self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.fs.remove_file(&self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.fs.sync(&self.directory)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.fs.free_bytes())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        MemoryFile::read_at(self, buffer, offset)
    }

    fn write_at(&self, parts: &mut [io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        MemoryFile::write_at(self, parts, offset)
    }

    fn allocate_zeroed(&self, bytes: u64) -> io::Result<()> {
        MemoryFile::allocate_zeroed(self, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        MemoryFile::sync_data(self)
    }

    fn bytes(&self) -> io::Result<u64> {
        MemoryFile::bytes(self)
    }
}
