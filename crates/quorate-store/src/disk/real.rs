//! A directory of this machine.

use super::{Disk, DiskFile};
use rustix::fs::{Advice, FallocateFlags};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Zeros are written in pieces of this size: large enough that the calls cost nothing, small
/// enough to keep on the heap while a spare is made.
const ZEROS: usize = 1 << 20;

/// The kernel takes at most this many parts in one call (IOV_MAX).
const PARTS_MAX: usize = 1024;

/// A directory. One process at a time may use it; whoever composes the process sees to that.
#[derive(Debug, Clone)]
pub struct RealDisk {
    directory: PathBuf,
}

impl RealDisk {
    /// Uses `directory`, which is made (durably, with its missing parents) if it is not there.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn at(directory: &Path) -> io::Result<RealDisk> {
        if !directory.is_dir() {
            fs::create_dir_all(directory)?;
            // A new directory is durable when the one above it is synced, and so on upwards.
            for parent in directory.ancestors().skip(1) {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                // Directories above ours may be closed to us; they were there before.
                match File::open(parent) {
                    Ok(parent) => parent.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(RealDisk { directory: directory.to_owned() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self.path(name))?;
        Ok(RealFile(file))
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(name))?;
        // After a failed sync the kernel keeps the pages, marked clean, though the device never
        // got them. Write what is really dirty, then drop the clean pages: what is read from now
        // on comes from the device. (Advice: file systems without it read their cache.)
        file.sync_data()?;
        match rustix::fs::fadvise(&file, 0, None, Advice::DontNeed) {
            Ok(()) | Err(rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => Ok(RealFile(file)),
            Err(error) => Err(error.into()),
        }
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path(name).try_exists()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.directory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// An open file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, mut parts: &mut [io::IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        io::IoSlice::advance_slices(&mut parts, 0); // drops empty parts at the front
        while !parts.is_empty() {
            let now = &parts[..parts.len().min(PARTS_MAX)];
            match rustix::io::pwritev(&self.0, now, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    io::IoSlice::advance_slices(&mut parts, written);
                    offset += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn allocate_zeroed(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(0)?;
        if bytes > 0 {
            match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
                // Without fallocate the zeros below allocate.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // fallocate alone leaves extents marked unwritten; the first write into each would change
        // metadata, and every fdatasync would commit the file system's journal.
        let zeros = vec![0; ZEROS.min(usize::try_from(bytes).unwrap_or(ZEROS))];
        let mut offset = 0;
        while offset < bytes {
            let piece = usize::try_from(bytes - offset).unwrap_or(ZEROS).min(ZEROS);
            self.0.write_all_at(&zeros[..piece], offset)?;
            offset += piece as u64;
        }
        self.0.sync_all()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
