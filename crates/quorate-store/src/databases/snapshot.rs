//! The whole of both files, for a node whose log begins too late.

use super::place::Place;
use super::writer::{FORMAT, Meta, file, file_name};
use bytes::Bytes;
use quorate_model::entry::Database;
use quorate_model::id::{LogIndex, Term};
use quorate_model::planted::{Bug, planted};
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
    /// That entry, at `index` or after it.
    pub voters_as_of: LogIndex,
    /// Name and length of each file.
    pub files: Vec<(String, u64)>,
}

/// Why a text is not a manifest that this version can use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    #[error("the manifest is not JSON of this version")]
    Json(#[from] serde_json::Error),
    #[error("the manifest lists {0:?}; each database must be there once, and nothing else")]
    Files(Vec<String>),
}

impl Manifest {
    /// Reads what a sender says about its snapshot. Its names are those of the databases, so they can
    /// be used as names of files.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(json: &[u8]) -> Result<Manifest, ManifestError> {
        let manifest: Manifest = serde_json::from_slice(json)?;
        let mut names: Vec<String> = manifest.files.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        let mut known = Database::ALL.map(file_name);
        known.sort();
        if names == known { Ok(manifest) } else { Err(ManifestError::Files(names)) }
    }
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
#[non_exhaustive]
pub enum InstallError {
    #[error("the received database cannot be put in force")]
    Io(#[from] io::Error),
    #[error("the received `{database}` is no database of ours")]
    Sqlite { database: &'static str, source: Error },
    #[error("the received `{database}` has format {found}, this binary knows {FORMAT}")]
    TooNew { database: &'static str, found: i64 },
    #[error("the received `{database}` ends at {found}, its manifest says {index}")]
    Behind { database: &'static str, found: LogIndex, index: LogIndex },
}

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
        files.push((file_name(database), place.volume().bytes(&copy)?));
    }
    let system = &metas[Database::System as usize];
    let (voters, voters_as_of) = (system.voters.clone(), system.applied.index);
    metas.sort_by_key(|meta| meta.applied.index);
    let position = if planted(Bug::SnapshotOfNewerFile) { metas[1].applied } else { metas[0].applied };
    Ok(Manifest { index: position.index, term: position.term, voters, voters_as_of, files })
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

/// Whether received files are what their manifest says: complete, and databases that this binary can
/// open and that hold everything up to its index. Removes whatever else is in `incoming`.
///
/// # Errors
/// [`InstallError`]: they must not be put in force.
pub fn check(place: impl Into<Place>, incoming: &Path, manifest: &Manifest) -> Result<(), InstallError> {
    let place = place.into();
    for (name, bytes) in &manifest.files {
        if place.volume().bytes(&incoming.join(name))? != *bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not complete")).into());
        }
    }
    // A write-ahead log that is none of ours would be taken for the received file's.
    remove_others(&place, incoming, manifest)?;
    for database in Database::ALL {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let meta = place.connect(&file(incoming, database), flags).and_then(|file| Meta::load(&file));
        let (meta, database) = (meta, database.name());
        let meta = meta.map_err(|source| InstallError::Sqlite { database, source })?;
        if meta.format > FORMAT {
            return Err(InstallError::TooNew { database, found: meta.format });
        }
        let (found, index) = (meta.applied.index, manifest.index);
        if found < index {
            return Err(InstallError::Behind { database, found, index });
        }
    }
    // What SQLite made beside the files to read them.
    remove_others(&place, incoming, manifest)?;
    Ok(())
}

fn remove_others(place: &Place, incoming: &Path, manifest: &Manifest) -> io::Result<()> {
    for found in place.volume().list(incoming)? {
        if !manifest.files.iter().any(|(name, _)| found == *name) {
            place.volume().remove_file(&incoming.join(found))?;
        }
    }
    Ok(())
}

/// Puts received files in force: whoever opens the databases next gets these, and the files before
/// them are removed.
///
/// # Errors
/// [`InstallError`].
pub fn install(place: impl Into<Place>, incoming: &Path, manifest: &Manifest) -> Result<(), InstallError> {
    let place = place.into();
    check(&place, incoming, manifest)?;
    for (name, _) in &manifest.files {
        place.volume().sync(&incoming.join(name))?;
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
