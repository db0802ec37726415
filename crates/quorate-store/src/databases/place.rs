//! Where the files are: `current` is a symlink to the directory of the database in force.

use crate::volume::{Machine, Volume};
use quorate_model::planted::{Bug, planted};
use rusqlite::{Connection, OpenFlags};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CURRENT: &str = "current";

/// The directory that holds the databases, received ones and the link to those in force. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct Place {
    volume: Arc<dyn Volume>,
    root: PathBuf,
}

/// A directory of this machine.
impl From<&Path> for Place {
    fn from(root: &Path) -> Place {
        Place::on(Arc::new(Machine), root)
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Place {
        place.clone()
    }
}

impl Place {
    /// The directory `root` of a volume; absolute there.
    #[must_use]
    pub fn on(volume: Arc<dyn Volume>, root: &Path) -> Place {
        Place { volume, root: root.to_owned() }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    /// Opens a database file with the volume's VFS.
    pub(super) fn connect(&self, file: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
        match self.volume.vfs() {
            Some(vfs) => Connection::open_with_flags_and_vfs(file, flags, vfs),
            None => Connection::open_with_flags(file, flags),
        }
    }

    /// The directory in force; made empty when there is none yet.
    pub(super) fn current(&self) -> io::Result<PathBuf> {
        match self.volume.read_link(&self.root.join(CURRENT)) {
            Ok(target) => Ok(self.root.join(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = "0-0";
                self.volume.create_dir_all(&self.root.join(name))?;
                self.point_to(name)?;
                // Found by the simulator: a power cut took the whole directory, and the log did not
                // begin at the beginning any more.
                if let Some(parent) = self.root.parent().filter(|_| !planted(Bug::DirectoryUnsynced)) {
                    self.volume.sync(parent)?;
                }
                Ok(self.root.join(name))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a directory that may not be there.
    pub(super) fn remove(&self, directory: &Path) -> io::Result<()> {
        match self.volume.remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Swaps `current` to another directory, durably.
    pub(super) fn point_to(&self, name: &str) -> io::Result<()> {
        let next = self.root.join("current.next");
        let _ = self.volume.remove_file(&next);
        self.volume.symlink(Path::new(name), &next)?;
        self.volume.rename(&next, &self.root.join(CURRENT))?;
        self.volume.sync(&self.root)
    }

    /// Removes databases that are not in force any more. Who still reads one goes on reading.
    pub(super) fn remove_superseded(&self, in_force: &Path) -> io::Result<()> {
        self.remove_all(|name| is_database(name) && self.root.join(name) != in_force)
    }

    /// Removes what was on its way in or out when an earlier process ended. Only while nobody else
    /// works here.
    ///
    /// # Errors
    /// What could not be removed is still there and does no harm but for its room.
    pub fn remove_transfers(&self) -> io::Result<()> {
        self.remove_all(|name| name.starts_with("incoming-") || name.starts_with("outgoing-"))
    }

    fn remove_all(&self, unwanted: impl Fn(&str) -> bool) -> io::Result<()> {
        for name in self.volume.list(&self.root)?.iter().filter(|name| unwanted(name)) {
            self.remove(&self.root.join(name))?;
        }
        Ok(())
    }
}

/// `<index>-<term>`
fn is_database(name: &str) -> bool {
    let number = |part: &str| part.parse::<u64>().is_ok();
    name.split_once('-').is_some_and(|(index, term)| number(index) && number(term))
}
