//! The artifacts of a node: a directory in which each lies under the hash of its content.
//!
//! | path | what |
//! |---|---|
//! | `HASH/NAME` | a file, once for each name that a source gave it (links of one file) |
//! | `HASH.tree/` | what an archive held |
//! | `HASH.dir/` | a copy of a directory |
//! | `partial/` | what is being fetched; nobody looks there |
//! | `history.json` | which artifacts each service had, so that it can go back to them |
//!
//! # Invariants
//! - What is under a hash has that hash, is whole and durable: it is made elsewhere, verified, brought to the
//!   disk and then renamed. So it is there or not there, after a power failure too.
//! - It is never changed, only removed: when no replica here uses it, no service wants it, and none of the
//!   last [`VERSIONS_KEPT`] versions of a service's artifacts has it.

use super::fetch::{self, FetchError};
use super::s3;
use super::tree::{self, EntryKind, HashError};
use crate::files::{self, Durability};
use quorate_model::access::name::Digest;
use quorate_model::id::ServiceName;
use quorate_model::need::{Artifact, NodeNeeds};
use quorate_model::secret::Secret;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// How many different sets of artifacts of one service are kept, the present one among them.
const VERSIONS_KEPT: usize = 6;

const HISTORY: &str = "history.json";
const PARTIAL: &str = "partial";

/// Why an artifact is not on this node. Nothing of it is visible then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The source holds something else than the spec says. It is never run.
    #[error("its SHA-256 is {found}, and the spec says {wanted}")]
    WrongHash { wanted: Digest, found: Digest },
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("it is a directory, which cannot be unpacked: leave out `unpack`")]
    NoArchive,
    #[error("cannot unpack it: {0}")]
    Unpack(String),
    #[error("the disk is full")]
    DiskFull,
    #[error("cannot put it in its place")]
    Io(#[source] io::Error),
}

impl From<io::Error> for PlaceError {
    fn from(error: io::Error) -> PlaceError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PlaceError::DiskFull,
            _ => PlaceError::Io(error),
        }
    }
}

/// Where an artifact lies below the directory of all of them; `None`: it does not.
pub(crate) fn locate(root: &Path, artifact: &Artifact) -> Option<PathBuf> {
    let hash = artifact.sha256;
    if artifact.unpack {
        return Some(root.join(format!("{hash}.tree"))).filter(|path| path.is_dir());
    }
    // The hash of a directory is never that of a file, so at most one of the two is there.
    let copy = root.join(format!("{hash}.dir"));
    if copy.is_dir() {
        return Some(copy);
    }
    Some(root.join(hash.to_string()).join(artifact.file_name())).filter(|path| path.is_file())
}

#[derive(Debug, Clone)]
pub(super) struct Depot {
    root: PathBuf,
}

impl Depot {
    pub(super) fn new(root: PathBuf) -> Depot {
        Depot { root }
    }

    /// Brings an artifact here unless it is. At most one of a content at a time. `key`: that of its S3 service.
    pub(super) fn place(&self, artifact: &Artifact, key: Option<&Secret<Vec<u8>>>) -> Result<(), PlaceError> {
        if locate(&self.root, artifact).is_some() || self.place_under_another_name(artifact)? {
            return Ok(());
        }
        let partial = self.root.join(PARTIAL);
        files::make_private_dir(&partial)?;
        let fetched = partial.join(artifact.sha256.to_string());
        let made = partial.join(format!("{}.new", artifact.sha256));
        remove_tree(&made)?;
        let placed = self.make(artifact, key, &fetched, &made);
        if placed.is_err() {
            // The beginning of a download stays, to be gone on with, unless others need its room.
            remove_tree(&made)?;
            if matches!(placed, Err(PlaceError::DiskFull)) {
                remove_tree(&fetched)?;
            }
        }
        placed
    }

    fn make(
        &self,
        artifact: &Artifact,
        key: Option<&Secret<Vec<u8>>>,
        fetched: &Path,
        made: &Path,
    ) -> Result<(), PlaceError> {
        let source = Path::new(&artifact.source);
        if source.is_absolute() && source.is_dir() {
            if artifact.unpack {
                return Err(PlaceError::NoArchive);
            }
            copy_tree(source, made)?;
            agree(artifact.sha256, tree::of_tree(made)?)?;
            return self.publish(made, &format!("{}.dir", artifact.sha256));
        }
        fetch(artifact, key, fetched)?;
        if artifact.unpack {
            unpack(fetched, made)?;
            fs::remove_file(fetched)?;
            return self.publish(made, &format!("{}.tree", artifact.sha256));
        }
        files::make_private_dir(made)?;
        // A program that was fetched is there to be run.
        fs::set_permissions(fetched, Permissions::from_mode(0o555))?;
        fs::rename(fetched, made.join(artifact.file_name()))?;
        self.publish(made, &artifact.sha256.to_string())
    }

    /// The last step: from now on it is there.
    fn publish(&self, made: &Path, name: &str) -> Result<(), PlaceError> {
        // All that was written below it, whoever wrote it.
        rustix::fs::syncfs(File::open(made)?).map_err(io::Error::from)?;
        fs::rename(made, self.root.join(name))?;
        Ok(File::open(&self.root)?.sync_all()?)
    }

    /// The same bytes under the name that another source gives them.
    fn place_under_another_name(&self, artifact: &Artifact) -> io::Result<bool> {
        let dir = self.root.join(artifact.sha256.to_string());
        if artifact.unpack || !dir.is_dir() {
            return Ok(false);
        }
        let Some(other) = fs::read_dir(&dir)?.next().transpose()? else { return Ok(false) };
        fs::hard_link(other.path(), dir.join(artifact.file_name()))?;
        File::open(&dir)?.sync_all()?;
        Ok(true)
    }

    /// Notes what services have now and removes what nobody needs any more.
    pub(super) fn tidy(&self, wanted: &NodeNeeds) -> io::Result<()> {
        let known = match files::read_json(&self.root.join(HISTORY)) {
            Ok(known) => known.unwrap_or_default(),
            // Kept is then what is used now; the rest would be fetched again.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => History::default(),
            Err(error) => return Err(error),
        };
        let history = known.clone().with(wanted);
        if history != known {
            files::make_private_dir(&self.root)?;
            files::write_json(&self.root.join(HISTORY), &history, Durability::Durable)?;
        }
        let kept: BTreeSet<Digest> = history.0.values().flatten().flatten().chain(&wanted.in_use).copied().collect();
        for dir in [self.root.clone(), self.root.join(PARTIAL)] {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let hash = name.split('.').next().and_then(|hash| hash.parse::<Digest>().ok());
                if hash.is_some_and(|hash| !kept.contains(&hash)) {
                    tracing::info!(artifact = name, "no service needs this artifact any more");
                    remove_tree(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// Which artifacts each service had, the newest last. One that is removed is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
struct History(BTreeMap<ServiceName, Vec<BTreeSet<Digest>>>);

impl History {
    fn with(mut self, wanted: &NodeNeeds) -> History {
        self.0.retain(|service, _| wanted.services.contains_key(service));
        for (service, needs) in
            wanted.services.iter().flat_map(|(service, all)| all.iter().map(move |it| (service, it)))
        {
            let now: BTreeSet<Digest> = needs.artifacts.iter().map(|artifact| artifact.sha256).collect();
            let versions = self.0.entry(service.clone()).or_default();
            versions.retain(|version| *version != now);
            versions.push(now);
            versions.drain(..versions.len().saturating_sub(VERSIONS_KEPT));
        }
        self
    }
}

fn agree(wanted: Digest, found: Digest) -> Result<(), PlaceError> {
    if wanted == found { Ok(()) } else { Err(PlaceError::WrongHash { wanted, found }) }
}

/// The bytes of a file or a URL, verified.
fn fetch(artifact: &Artifact, key: Option<&Secret<Vec<u8>>>, into: &Path) -> Result<(), PlaceError> {
    let source = Path::new(&artifact.source);
    if source.is_absolute() {
        fetch::copy(source, into)?;
    } else {
        let resumed = into.exists();
        download(artifact, key, into)?;
        if resumed && tree::of_file(into)? != artifact.sha256 {
            // Perhaps of another file than its end.
            fs::remove_file(into)?;
            download(artifact, key, into)?;
        }
    }
    let agreed = agree(artifact.sha256, tree::of_file(into)?);
    if agreed.is_err() {
        fs::remove_file(into)?;
    }
    agreed
}

fn download(artifact: &Artifact, key: Option<&Secret<Vec<u8>>>, into: &Path) -> Result<(), FetchError> {
    if !artifact.source.starts_with("s3://") {
        return fetch::download(&artifact.source, &[], into);
    }
    let s3 = artifact.s3.clone().unwrap_or_default();
    let (url, headers) = s3::request(&artifact.source, &s3, key, SystemTime::now());
    fetch::download(&url, &headers, into)
}

/// By the system's tar, which knows the compressions that are installed, and keeps names inside of `into`.
fn unpack(archive: &Path, into: &Path) -> Result<(), PlaceError> {
    files::make_private_dir(into)?;
    let output = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(into)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| PlaceError::Unpack(format!("tar cannot be started: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No space left on device") {
        return Err(PlaceError::DiskFull);
    }
    let said: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(PlaceError::Unpack(said.first().map_or_else(|| output.status.to_string(), |line| (*line).to_owned())))
}

fn copy_tree(source: &Path, into: &Path) -> Result<(), PlaceError> {
    files::make_private_dir(into)?;
    for entry in tree::entries(source)? {
        let (from, to) = (source.join(&entry.path), into.join(&entry.path));
        match entry.kind {
            EntryKind::Directory => fs::create_dir(&to)?,
            EntryKind::Link { target } => std::os::unix::fs::symlink(target, &to)?,
            EntryKind::File { executable } => {
                fetch::copy(&from, &to)?;
                fs::set_permissions(&to, Permissions::from_mode(if executable { 0o555 } else { 0o444 }))?;
            }
        }
    }
    Ok(())
}

/// Removes a file or directory that may be missing.
fn remove_tree(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.is_dir() {
        return fs::remove_file(path);
    }
    // An archive may have brought directories that cannot be written to, and not everybody is root.
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        remove_tree(&entry?.path())?;
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests;
