//! The door between the databases and their directories.
//!
//! SQLite reaches its files through a VFS; around them the databases need a few directories, a
//! symlink and renames. Both belong to one [`Volume`], so that a simulator can stand behind all of
//! it: [`Machine`] is the machine that this process runs on, [`MemoryVolume`] one that loses power on
//! demand.
//!
//! # Contract
//! As for [`disk`](crate::disk): names survive a power cut only after their directory was synced,
//! contents only after their file was.

use quorate_vfs::memory::{MemoryFs, MemoryVfs};
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

/// A file system with SQLite's name for it. Paths are absolute.
pub trait Volume: Debug + Send + Sync {
    /// The VFS that opens files here; `None` for SQLite's default.
    fn vfs(&self) -> Option<&str>;

    /// Makes a directory and those above it; one that is there already is fine.
    ///
    /// # Errors
    /// What the file system answers, here and below.
    fn create_dir_all(&self, directory: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. Those that are not UTF-8 are not ours and left out.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// What a symlink says.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn read_link(&self, link: &Path) -> io::Result<PathBuf>;

    /// # Errors
    /// `AlreadyExists` when the name is taken.
    fn symlink(&self, says: &Path, link: &Path) -> io::Result<()>;

    /// Renames a file, a symlink or a directory. A file or symlink of the new name is replaced.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// # Errors
    /// `NotFound` when there is none.
    fn remove_file(&self, file: &Path) -> io::Result<()>;

    /// Removes a directory with everything in it.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn remove_dir_all(&self, directory: &Path) -> io::Result<()>;

    /// Makes a file's contents, or a directory's names, durable.
    ///
    /// # Errors
    /// What the file system answers; a failed sync is never repeated.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// The length of a file.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn bytes(&self, file: &Path) -> io::Result<u64>;
}

/// The machine that this process runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Volume for Machine {
    fn vfs(&self) -> Option<&str> {
        None
    }

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        std::fs::create_dir_all(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn read_link(&self, link: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(link)
    }

    fn symlink(&self, says: &Path, link: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(says, link)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        std::fs::remove_file(file)
    }

    fn remove_dir_all(&self, directory: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(directory)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        std::fs::File::open(path)?.sync_all()
    }

    fn bytes(&self, file: &Path) -> io::Result<u64> {
        std::fs::metadata(file).map(|metadata| metadata.len())
    }
}

/// A simulated machine.
#[derive(Debug)]
pub struct MemoryVolume {
    fs: MemoryFs,
    vfs: MemoryVfs,
}

impl MemoryVolume {
    /// The whole of a machine's file system.
    #[must_use]
    pub fn new(fs: &MemoryFs) -> MemoryVolume {
        MemoryVolume { fs: fs.clone(), vfs: MemoryVfs::register(fs.clone()) }
    }

    /// Sets the machine's own clock, in microseconds since 1970. No outcome may depend on it.
    pub fn set_now(&self, now_us: u64) {
        self.vfs.set_now(now_us);
    }
}

impl Volume for MemoryVolume {
    fn vfs(&self) -> Option<&str> {
        Some(self.vfs.name())
    }

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        self.fs.create_dir_all(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.fs.list(directory)
    }

    fn read_link(&self, link: &Path) -> io::Result<PathBuf> {
        self.fs.read_link(link)
    }

    fn symlink(&self, says: &Path, link: &Path) -> io::Result<()> {
        self.fs.symlink(says, link)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fs.rename(from, to)
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        self.fs.remove_file(file)
    }

    fn remove_dir_all(&self, directory: &Path) -> io::Result<()> {
        self.fs.remove_dir_all(directory)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.fs.sync(path)
    }

    fn bytes(&self, file: &Path) -> io::Result<u64> {
        self.fs.open(file)?.bytes()
    }
}
