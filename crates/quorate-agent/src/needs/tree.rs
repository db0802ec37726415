//! The hash of a file, and of a directory with all that is below it.
//!
//! A file's is the SHA-256 of its bytes. A directory's is that of a list of what is below it, a line each, in the
//! order of the paths' bytes: a letter (`d` directory, `f` file, `x` file that may be executed, `l` link), a
//! blank, the path from the directory, a NUL, the SHA-256 of the file or of the link's target in hexadecimal
//! digits (nothing for a directory), a line feed. Before them stands `quorate tree 1` and a line feed. Owners,
//! times and other permissions do not count.

use aws_lc_rs::digest::{Context, SHA256};
use quorate_model::access::name::Digest;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Most entries of a directory with all that is below it.
const ENTRIES_MAX: usize = 100_000;

/// Why something has no hash.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is neither a file, a directory nor a link", path.display())]
    Odd { path: PathBuf },
    #[error("there are more than {ENTRIES_MAX} files below {}", path.display())]
    TooMany { path: PathBuf },
}

/// The hash of a file or a directory, as a spec's `sha256` names it.
///
/// # Errors
/// [`HashError`]
pub fn hash(path: &Path) -> Result<Digest, HashError> {
    let meta = fs::metadata(path).map_err(unreadable(path))?;
    if meta.is_dir() { of_tree(path) } else { of_file(path) }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> HashError {
    let path = path.to_owned();
    move |source| HashError::Unreadable { path, source }
}

pub(super) fn of_file(path: &Path) -> Result<Digest, HashError> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    let (mut context, mut chunk) = (Context::new(&SHA256), vec![0; 256 << 10]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(finished(context)),
            Ok(read) => context.update(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(path)(error)),
        }
    }
}

fn finished(context: Context) -> Digest {
    Digest(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

pub(super) fn of_tree(root: &Path) -> Result<Digest, HashError> {
    let mut context = Context::new(&SHA256);
    context.update(b"quorate tree 1\n");
    for entry in entries(root)? {
        let path = root.join(&entry.path);
        let (letter, hash) = match entry.kind {
            EntryKind::Directory => ('d', String::new()),
            EntryKind::File { executable: false } => ('f', of_file(&path)?.to_string()),
            EntryKind::File { executable: true } => ('x', of_file(&path)?.to_string()),
            EntryKind::Link { target } => ('l', Digest::of(target.as_os_str().as_bytes()).to_string()),
        };
        context.update(&[letter as u8, b' ']);
        context.update(entry.path.as_os_str().as_bytes());
        context.update(format!("\0{hash}\n").as_bytes());
    }
    Ok(finished(context))
}

pub(super) struct Entry {
    /// From the root.
    pub(super) path: PathBuf,
    pub(super) kind: EntryKind,
}

pub(super) enum EntryKind {
    Directory,
    File { executable: bool },
    Link { target: PathBuf },
}

/// All that is below a directory, in the order of the paths' bytes; a directory comes before what is in it.
pub(super) fn entries(root: &Path) -> Result<Vec<Entry>, HashError> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(dir) = open.pop() {
        let full = root.join(&dir);
        for entry in fs::read_dir(&full).map_err(unreadable(&full))? {
            let entry = entry.map_err(unreadable(&full))?;
            let (path, full) = (dir.join(entry.file_name()), entry.path());
            let meta = fs::symlink_metadata(&full).map_err(unreadable(&full))?;
            let kind = if meta.is_dir() {
                open.push(path.clone());
                EntryKind::Directory
            } else if meta.is_file() {
                EntryKind::File { executable: meta.permissions().mode() & 0o111 != 0 }
            } else if meta.is_symlink() {
                EntryKind::Link { target: fs::read_link(&full).map_err(unreadable(&full))? }
            } else {
                return Err(HashError::Odd { path: full });
            };
            found.push(Entry { path, kind });
            if found.len() > ENTRIES_MAX {
                return Err(HashError::TooMany { path: root.to_owned() });
            }
        }
    }
    found.sort_by(|one, other| one.path.as_os_str().as_bytes().cmp(other.path.as_os_str().as_bytes()));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directorys_hash_is_of_names_contents_links_and_what_may_be_executed() {
        let make = |change: fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            fs::write(dir.path().join("sub/a"), "one").unwrap();
            std::os::unix::fs::symlink("sub/a", dir.path().join("link")).unwrap();
            change(dir.path());
            hash(dir.path()).unwrap()
        };
        let plain = make(|_| {});
        assert_eq!(plain, make(|_| {}));
        assert_ne!(plain, make(|dir| fs::write(dir.join("sub/a"), "two").unwrap()));
        assert_ne!(plain, make(|dir| fs::rename(dir.join("sub/a"), dir.join("sub/b")).unwrap()));
        assert_ne!(
            plain,
            make(|dir| fs::set_permissions(dir.join("sub/a"), fs::Permissions::from_mode(0o755)).unwrap())
        );
        assert_ne!(plain, make(|dir| fs::create_dir(dir.join("empty")).unwrap()));
        assert_ne!(
            plain,
            make(|dir| {
                fs::remove_file(dir.join("link")).unwrap();
                std::os::unix::fs::symlink("sub/b", dir.join("link")).unwrap();
            })
        );
    }

    #[test]
    fn a_files_hash_is_that_of_every_other_tool() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "test").unwrap();
        let known = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(hash(&dir.path().join("a")).unwrap().to_string(), known);
    }
}
