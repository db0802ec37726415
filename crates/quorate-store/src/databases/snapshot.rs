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
    /// The voters, opaque.
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

/// Copies both files into `into`, each from one moment, while writers go on.
///
/// # Errors
/// [`SnapshotError`].
pub fn snapshot(root: &Path, into: &Path) -> Result<Manifest, SnapshotError> {
    std::fs::create_dir_all(into)?;
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
    metas.sort_by_key(|meta| meta.applied.index);
    let (behind, ahead) = (&metas[0], &metas[metas.len() - 1]);
    Ok(Manifest { index: behind.applied.index, term: behind.applied.term, voters: ahead.voters.clone(), files })
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
    for (name, _) in &manifest.files {
        std::fs::File::open(incoming.join(name))?.sync_all()?;
    }
    place::sync_directory(incoming)?;
    let name = format!("{}-{}", manifest.index, manifest.term);
    let target = root.join(&name);
    if target.exists() {
        // Left over from an installation that did not get as far as the link.
        std::fs::remove_dir_all(&target)?;
    }
    std::fs::rename(incoming, &target)?;
    place::point_to(root, &name)?;
    Ok(())
}
