//! Where the files are: `current` is a symlink to the directory of the database in force.

use std::io;
use std::path::{Path, PathBuf};

pub(super) const CURRENT: &str = "current";

/// The directory in force; made empty when there is none yet.
pub(super) fn current(root: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(root)?;
    let link = root.join(CURRENT);
    match std::fs::read_link(&link) {
        Ok(target) => Ok(root.join(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = "0-0";
            std::fs::create_dir_all(root.join(name))?;
            point_to(root, name)?;
            Ok(root.join(name))
        }
        Err(error) => Err(error),
    }
}

/// Swaps `current` to another directory, durably.
pub(super) fn point_to(root: &Path, name: &str) -> io::Result<()> {
    let next = root.join("current.next");
    let _ = std::fs::remove_file(&next);
    std::os::unix::fs::symlink(name, &next)?;
    std::fs::rename(&next, root.join(CURRENT))?;
    sync_directory(root)
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}
