//! A node's own disk: an ext4 file system in a file, whose power can fail.
//!
//! The kernel's way to stop an ext4 at once (`EXT4_IOC_SHUTDOWN` without a last flush of the journal)
//! forgets all that was not synced, exactly as a power cut does; mounting it again is the reboot.
//! Whether it really forgot is not believed but seen: canaries that were synced must be there
//! afterwards, and bytes that were not must be gone.
//!
//! # Sources
//! `fs/ext4/ioctl.c` of Linux; xfstests' `src/godown.c` uses the same call in the same way.

use super::kernel;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Takes back all room, so it is also the name of what is removed.
const FILLER: &str = "filler";
/// Written and synced: there after every power cut.
const KEPT: &str = "canary-kept";
/// Written and synced, then written over without a sync: the first content must be back.
const OVERWRITTEN: &str = "canary-overwritten";
/// Never synced: its bytes must be gone.
const NEW: &str = "canary-new";
const BEFORE: &[u8] = b"synced before the power cut";
const AFTER: &[u8] = b"never synced after that one";
/// A process that was killed may hold files for a moment longer.
const UNMOUNT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A disk in the file `image`, mounted at `mount`.
#[derive(Debug)]
pub(super) struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes the file system and mounts it. The file is sparse: it takes what is written to it.
    pub(super) fn make(image: PathBuf, mount: PathBuf, bytes: u64) -> io::Result<Disk> {
        File::create_new(&image)?.set_len(bytes)?;
        std::fs::create_dir_all(&mount)?;
        // No room is reserved for root, or a full disk would not be full to us.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let disk = Disk { image, mount };
        disk.mount()?;
        Ok(disk)
    }

    /// The loop device goes by itself with the mount.
    fn mount(&self) -> io::Result<()> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.mount))
    }

    pub(super) fn unmount(&self) -> io::Result<()> {
        let deadline = Instant::now() + UNMOUNT;
        loop {
            match run(Command::new("umount").arg(&self.mount)) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                result => return result,
            }
        }
    }

    /// The reboot: what was synced is read again, from the journal where necessary.
    pub(super) fn remount(&self) -> io::Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Writes what must survive the next power cut.
    pub(super) fn plant(&self) -> io::Result<()> {
        for (name, content) in [(KEPT, AFTER), (OVERWRITTEN, BEFORE)] {
            let mut file = File::create(self.mount.join(name))?;
            file.write_all(content)?;
            file.sync_all()?;
        }
        let _ = std::fs::remove_file(self.mount.join(NEW));
        File::open(&self.mount)?.sync_all()
    }

    /// Cuts the power, with bytes in flight that nobody has synced. Every later write fails.
    pub(super) fn cut_power(&self) -> io::Result<()> {
        let root = File::open(&self.mount)?;
        let mut over = File::options().write(true).open(self.mount.join(OVERWRITTEN))?;
        over.write_all(AFTER)?;
        File::create(self.mount.join(NEW))?.write_all(AFTER)?;
        kernel::cut_power(&root)
    }

    /// After the reboot: what the canaries say.
    ///
    /// # Errors
    /// The power cut was none.
    pub(super) fn check_canaries(&self) -> Result<String, String> {
        let read = |name: &str| std::fs::read(self.mount.join(name));
        match read(KEPT) {
            Ok(content) if content == AFTER => {}
            other => return Err(format!("a canary that was synced did not survive: {other:?}")),
        }
        match read(OVERWRITTEN) {
            Ok(content) if content == BEFORE => {}
            Ok(content) if content == AFTER => return Err("a write that was not synced survived".into()),
            other => return Err(format!("a canary that was synced did not survive: {other:?}")),
        }
        // A sync of the server may have made its name durable; its bytes have nobody who synced them.
        match read(NEW) {
            Ok(content) if content.is_empty() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return Err(format!("a file that was never synced survived: {other:?}")),
        }
        Ok("the synced canary is there, the unsynced one is gone".into())
    }

    /// Takes all room that is left. Returns how much that was, in bytes.
    ///
    /// # Errors
    /// When the disk did not say that it is full.
    pub(super) fn fill(&self) -> io::Result<u64> {
        let mut file = File::create(self.mount.join(FILLER))?;
        let (mut length, mut step) = (0, 64 << 20);
        while step >= 4_096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, step) {
                Ok(()) => length += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(errno) => return Err(errno.into()),
            }
        }
        // The last word has a write.
        io::Seek::seek(&mut file, io::SeekFrom::Start(length))?;
        for _ in 0..1_024 {
            match file.write_all(&[0; 4_096]) {
                Ok(()) => length += 4_096,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(length),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("the disk takes more although it was full"))
    }

    /// Gives the room back.
    pub(super) fn empty(&self) -> io::Result<()> {
        std::fs::remove_file(self.mount.join(FILLER))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What cannot be unmounted goes with the namespace.
        let _ = self.unmount();
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{}: {}",
            command.get_program().display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torture::rig::arena::left_of;

    /// Runs `test` with a disk. Without root, makes sure that this machine would be said to have none.
    fn with_disk(test: impl FnOnce(&Disk)) {
        let is_root = rustix::process::geteuid().is_root();
        let lacks = crate::torture::rig::tools::look(is_root);
        assert_eq!(is_root, !lacks.contains_key(&crate::torture::fault::Need::Disks), "{lacks:?}");
        if !is_root {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::make(dir.path().join("n1.img"), dir.path().join("n1"), 32 << 20).unwrap();
        assert_eq!(left_of(dir.path()).len(), 2, "a mount and a loop device");
        test(&disk);
        drop(disk);
        // The kernel lets the device go a moment after the mount.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !left_of(dir.path()).is_empty() {
            assert!(Instant::now() < deadline, "{:?}", left_of(dir.path()));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
        with_disk(|disk| {
            disk.plant().unwrap();
            std::fs::write(disk.mount.join("unsynced"), "bytes").unwrap();
            disk.cut_power().unwrap();
            let write = std::fs::write(disk.mount.join("later"), "bytes");
            assert!(write.is_err(), "a disk without power takes nothing");
            disk.remount().unwrap();
            disk.check_canaries().unwrap();
            assert!(!std::fs::exists(disk.mount.join("unsynced")).unwrap());
        });
    }

    #[test]
    fn a_reboot_without_a_power_cut_is_seen_as_none() {
        with_disk(|disk| {
            disk.plant().unwrap();
            std::fs::write(disk.mount.join(OVERWRITTEN), AFTER).unwrap();
            disk.remount().unwrap();
            assert_eq!(disk.check_canaries(), Err("a write that was not synced survived".into()));
        });
    }

    #[test]
    fn a_full_disk_refuses_a_write_until_it_is_emptied() {
        with_disk(|disk| {
            assert!(disk.fill().unwrap() > 8 << 20);
            let write = || std::fs::write(disk.mount.join("more"), [0; 65_536]);
            assert_eq!(write().unwrap_err().kind(), io::ErrorKind::StorageFull);
            disk.empty().unwrap();
            write().unwrap();
        });
    }
}
