//! The whole of both files, for a node whose log begins too late.

use super::place;
use super::writer::{Meta, file};
use bytes::Bytes;
use quorate_model::entry::Database;
use quorate_model::id::{LogIndex, Term};
use rusqlite::backup::Backup;
use rusqlite::{Connection, Error, OpenFlags};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::Duration;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Both files hold at least everything up to here; one may hold more.
    pub index: LogIndex,
    pub term: Term,
    /// The voters, opaque, as of the last entry in `system`, which alone knows them.
    pub voters: Bytes,
    /// Name and length of each file.
    pub files: Vec<(String, u64)>,
}

/// Why there is no snapshot. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    #[error("{database} cannot be copied")]
    Sqlite { database: &'static str, source: Error },
    #[error("the snapshot's directory cannot be used")]
    Io(#[from] io::Error),
}

/// Why a snapshot is not in force. The files before it still are.
#[derive(Debug, thiserror::Error)]
#[error("the received database cannot be put in force")]
pub struct InstallError(#[from] io::Error);

/// Copies both files into the directory `into`, which holds nothing else then, each from one moment, while writers go on.
///
/// # Errors
/// [`SnapshotError`].
pub fn snapshot(root: &Path, into: &Path) -> Result<Manifest, SnapshotError> {
    std::fs::create_dir_all(into)?;
    for leftover in std::fs::read_dir(into)? {
        std::fs::remove_file(leftover?.path())?;
    }
    let directory = place::current(root)?;
    let mut files = Vec::new();
    let mut metas = Vec::new();
    for database in Database::ALL {
        let copy = file(into, database);
        let meta = copy_file(&file(&directory, database), &copy)
            .map_err(|source| SnapshotError::Sqlite { database: database.name(), source })?;
        metas.push(meta);
        files.push((format!("{}.db", database.name()), std::fs::metadata(&copy)?.len()));
    }
    let voters = metas[Database::System as usize].voters.clone();
    metas.sort_by_key(|meta| meta.applied.index);
    Ok(Manifest { index: metas[0].applied.index, term: metas[0].applied.term, voters, files })
}

fn copy_file(from: &Path, to: &Path) -> Result<Meta, Error> {
    let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    source.busy_timeout(Duration::from_secs(5))?;
    let mut target = Connection::open(to)?;
    {
        let backup = Backup::new(&source, &mut target)?;
        // All pages in one step: one read transaction, so one moment.
        while backup.step(-1)? != rusqlite::backup::StepResult::Done {}
    }
    Meta::load(&target)
}

/// Puts received files in force: whoever opens the databases next gets these.
///
/// # Errors
/// [`InstallError`].
pub fn install(root: &Path, incoming: &Path, manifest: &Manifest) -> Result<(), InstallError> {
    for (name, bytes) in &manifest.files {
        let file = std::fs::File::open(incoming.join(name))?;
        if file.metadata()?.len() != *bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not complete")).into());
        }
        file.sync_all()?;
    }
    for entry in std::fs::read_dir(incoming)? {
        // A write-ahead log that is none of ours would be taken for the received file's.
        let entry = entry?;
        if !manifest.files.iter().any(|(name, _)| entry.file_name() == name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    place::sync_directory(incoming)?;
    let name = format!("{}-{}", manifest.index, manifest.term);
    let target = root.join(&name);
    if place::current(root)? == target {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} is in force")).into());
    }
    // It may be left over from an installation that did not get as far as the link.
    place::remove(&target)?;
    std::fs::rename(incoming, &target)?;
    place::point_to(root, &name)?;
    Ok(())
}
