//! The whole of both files, for a node whose log begins too late.

use super::place::Place;
use super::writer::{Meta, file};
use bytes::Bytes;
use quorate_model::entry::Database;
use quorate_model::id::{LogIndex, Term};
use rusqlite::backup::Backup;
use rusqlite::{Error, OpenFlags};
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
pub fn snapshot(place: impl Into<Place>, into: &Path) -> Result<Manifest, SnapshotError> {
    let place = place.into();
    place.volume().create_dir_all(into)?;
    for leftover in place.volume().list(into)? {
        place.volume().remove_file(&into.join(leftover))?;
    }
    let directory = place.current()?;
    let mut files = Vec::new();
    let mut metas = Vec::new();
    for database in Database::ALL {
        let copy = file(into, database);
        let meta = copy_file(&place, &file(&directory, database), &copy)
            .map_err(|source| SnapshotError::Sqlite { database: database.name(), source })?;
        metas.push(meta);
        files.push((format!("{}.db", database.name()), place.volume().bytes(&copy)?));
    }
    let voters = metas[Database::System as usize].voters.clone();
    metas.sort_by_key(|meta| meta.applied.index);
    Ok(Manifest { index: metas[0].applied.index, term: metas[0].applied.term, voters, files })
}

fn copy_file(place: &Place, from: &Path, to: &Path) -> Result<Meta, Error> {
    let source = place.connect(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    source.busy_timeout(Duration::from_secs(5))?;
    let mut target = place.connect(to, OpenFlags::default())?;
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
pub fn install(place: impl Into<Place>, incoming: &Path, manifest: &Manifest) -> Result<(), InstallError> {
    let place = place.into();
    for (name, bytes) in &manifest.files {
        let file = incoming.join(name);
        if place.volume().bytes(&file)? != *bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not complete")).into());
        }
        place.volume().sync(&file)?;
    }
    for found in place.volume().list(incoming)? {
        // A write-ahead log that is none of ours would be taken for the received file's.
        if !manifest.files.iter().any(|(name, _)| found == *name) {
            place.volume().remove_file(&incoming.join(found))?;
        }
    }
    place.volume().sync(incoming)?;
    let name = format!("{}-{}", manifest.index, manifest.term);
    let target = place.root().join(&name);
    if place.current()? == target {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} is in force")).into());
    }
    // It may be left over from an installation that did not get as far as the link.
    place.remove(&target)?;
    place.volume().rename(incoming, &target)?;
    place.point_to(&name)?;
    Ok(())
}
