//! The door between the log and its files.
//!
//! The log asks for files through [`Disk`], so that a test or a simulator can stand behind it and
//! do what real disks do: lose what was not synced, keep some sectors of a write and lose others,
//! refuse to sync, be full, or change a byte over the years. [`real`] is a directory of the
//! machine, [`memory`] is one that misbehaves on demand.
//!
//! # Contract
//! - Written data survives a crash only after [`DiskFile::sync_data`]; until then any subset of
//!   its 512-byte sectors may.
//! - Created, renamed and removed names survive only after [`Disk::sync_dir`]; until then any
//!   prefix of the operations since the last one may.
//! - A sync that failed must never be repeated: the kernel may have dropped the data and would
//!   report success. Whoever sees the failure stops.

use std::io;
use std::path::Path;

pub mod memory;
pub mod real;

/// A flat directory of files. Clones are the same directory.
pub trait Disk: Send {
    type File: DiskFile;

    /// Where it is, for messages to people.
    fn directory(&self) -> &Path;

    /// Makes an empty file, in place of one of that name.
    ///
    /// # Errors
    /// What the file system answers.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file for reading and writing. What is then read is what the device holds (not a
    /// cache that outlived a failed sync), as far as the system lets us ask for that.
    ///
    /// # Errors
    /// `NotFound` when there is none, else what the file system answers.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Whether there is a file of this name.
    ///
    /// # Errors
    /// What the file system answers.
    fn exists(&self, name: &str) -> io::Result<bool>;

    /// All names, sorted. Those that are not UTF-8 are not ours and left out.
    ///
    /// # Errors
    /// What the file system answers.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Renames a file, in place of one that has the new name.
    ///
    /// # Errors
    /// What the file system answers.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name. An open file stays readable.
    ///
    /// # Errors
    /// What the file system answers.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all creations, renames and removals until now durable.
    ///
    /// # Errors
    /// What the file system answers; see the contract above.
    fn sync_dir(&self) -> io::Result<()>;

    /// Bytes that may still be allocated.
    ///
    /// # Errors
    /// What the file system answers.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file. Offsets and lengths are bytes.
pub trait DiskFile: Send {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, else what the file system answers.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all parts, one after the other, at `offset`.
    ///
    /// # Errors
    /// What the file system answers. Some of the bytes may then be written.
    fn write_at(&self, parts: &mut [io::IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Makes the file `bytes` long, with blocks of its own and zeros everywhere, and syncs that.
    /// A later [`sync_data`](Self::sync_data) of overwritten bytes then has no metadata to commit.
    ///
    /// # Errors
    /// `StorageFull` or `QuotaExceeded` when there is no room, else what the file system answers.
    fn allocate_zeroed(&self, bytes: u64) -> io::Result<()>;

    /// Makes everything written until now durable.
    ///
    /// # Errors
    /// What the file system answers; see the contract above.
    fn sync_data(&self) -> io::Result<()>;

    /// # Errors
    /// What the file system answers.
    fn bytes(&self) -> io::Result<u64>;
}

/// Whether an error says that there is no room (or none for this user).
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use memory::MemoryDisk;
    use real::RealDisk;
    use std::io::IoSlice;

    fn write(file: &impl DiskFile, text: &[u8], offset: u64) {
        file.write_at(&mut [IoSlice::new(text)], offset).unwrap();
    }

    fn read(file: &impl DiskFile, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn a_disk_keeps_its_contract(disk: &impl Disk) {
        let file = disk.create("draft").unwrap();
        file.allocate_zeroed(8).unwrap();
        file.write_at(&mut [IoSlice::new(b""), IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cd")], 1)
            .unwrap();
        file.sync_data().unwrap();
        disk.create("final").unwrap();
        disk.rename("draft", "final").unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), ["final"]);
        assert!(disk.exists("final").unwrap() && !disk.exists("draft").unwrap());
        let file = disk.open("final").unwrap();
        assert_eq!((file.bytes().unwrap(), read(&file, 8)), (8, b"\0abcd\0\0\0".to_vec()));
        assert_eq!(file.read_at(&mut [0; 9], 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(disk.open("draft").err().unwrap().kind(), io::ErrorKind::NotFound);
        disk.remove("final").unwrap();
        assert!(disk.list().unwrap().is_empty());
        assert_eq!(read(&file, 3), b"\0ab");
    }

    #[test]
    fn a_directory_and_memory_keep_the_same_contract() {
        let directory = tempfile::tempdir().unwrap();
        a_disk_keeps_its_contract(&RealDisk::at(directory.path()).unwrap());
        a_disk_keeps_its_contract(&MemoryDisk::new());
    }

    #[test]
    fn a_crash_tears_what_was_not_synced_and_keeps_what_was() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let disk = MemoryDisk::new();
            let file = disk.create("file").unwrap();
            file.allocate_zeroed(1024).unwrap();
            write(&file, b"synced", 0);
            file.sync_data().unwrap();
            disk.sync_dir().unwrap();
            write(&file, b"torn", 510);
            disk.rename("file", "renamed").unwrap();
            disk.crash(seed);
            assert!(file.sync_data().is_err(), "a handle of the dead process");
            let name = disk.list().unwrap().remove(0);
            let bytes = read(&disk.open(&name).unwrap(), 514);
            assert_eq!(&bytes[..6], b"synced");
            outcomes.insert((name, bytes[510..].to_vec()));
        }
        // Each half of the write and the rename survive or not, in all combinations.
        assert_eq!(outcomes.len(), 8);
    }

    #[test]
    fn what_a_failed_sync_should_have_written_is_lost() {
        let disk = MemoryDisk::new();
        let file = disk.create("file").unwrap();
        file.allocate_zeroed(512).unwrap();
        disk.sync_dir().unwrap();
        write(&file, b"x", 0);
        disk.fail_syncs(0);
        assert!(file.sync_data().is_err());
        assert_eq!(read(&file, 1), b"x");
        for seed in 0..8 {
            disk.crash(seed);
            assert_eq!(read(&disk.open("file").unwrap(), 1), b"\0");
        }
    }
}
