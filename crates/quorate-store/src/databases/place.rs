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

/// Removes a directory that may not be there.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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

/// Removes databases that are not in force any more. Who still reads one goes on reading.
pub(super) fn remove_superseded(root: &Path, in_force: &Path) -> io::Result<()> {
    remove_all(root, |name| is_database(name) && root.join(name) != in_force)
}

/// Removes what was on its way in or out when an earlier process ended. Only while nobody else
/// works in `root`.
///
/// # Errors
/// What could not be removed is still there and does no harm but for its room.
pub fn remove_transfers(root: &Path) -> io::Result<()> {
    remove_all(root, |name| name.starts_with("incoming-") || name.starts_with("outgoing-"))
}

/// `<index>-<term>`
fn is_database(name: &str) -> bool {
    let number = |part: &str| part.parse::<u64>().is_ok();
    name.split_once('-').is_some_and(|(index, term)| number(index) && number(term))
}

fn remove_all(root: &Path, unwanted: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(&unwanted) {
            remove(&root.join(&name))?;
        }
    }
    Ok(())
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}
