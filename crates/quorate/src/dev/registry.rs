//! Which `quorate dev` runs on this machine, so that every other command finds it by itself.
//!
//! Each writes one small file in a directory that only its user can enter, and the same file into
//! its own directory for `--keep`. A record whose process has ended is taken away by whoever sees
//! it, together with the temporary directory that a killed `dev` could not remove.

use crate::dev::procfs;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Name of the record in the directory of the cluster.
pub(crate) const FILE: &str = "dev.json";
/// Beginning of the name of each temporary directory; nothing else is ever removed.
pub(crate) const TEMPORARY: &str = "quorate-dev-";

/// A running `quorate dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub dir: PathBuf,
    /// The directory goes with the cluster.
    pub temporary: bool,
    pub pid: u32,
    /// When the process started, in ticks since boot: its id may be used again, this not.
    pub started: u64,
    /// Where it takes orders.
    pub socket: PathBuf,
    pub nodes: Vec<NodeAddress>,
    /// URLs.
    pub gateway: String,
    pub console: String,
    /// URL of the service that was started with the cluster, if it has a route.
    pub app: Option<String>,
    pub token: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeAddress {
    pub name: String,
    /// URL of its API.
    pub api: String,
}

impl Record {
    pub(crate) fn is_alive(&self) -> bool {
        procfs::process(self.pid).is_some_and(|process| process.started == self.started)
    }

    /// Writes the record into the registry and into the cluster's directory.
    pub(crate) fn publish(&self, registry: &Path) -> io::Result<()> {
        make(registry)?;
        let text = serde_json::to_vec(self)?;
        write_private(&self.dir.join(FILE), &text)?;
        write_private(&self.file_in(registry), &text)
    }

    /// Takes the record away again.
    pub(crate) fn withdraw(&self, registry: &Path) {
        for file in [self.file_in(registry), self.dir.join(FILE)] {
            // Whoever reads a record that stayed sees that its process has ended.
            let _ = std::fs::remove_file(file);
        }
    }

    fn file_in(&self, registry: &Path) -> PathBuf {
        registry.join(format!("{}.json", self.pid))
    }
}

/// The token in it opens the console: only its user may read it. Readers see all of it or nothing.
fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    io::Write::write_all(&mut file, text)?;
    std::fs::rename(&new, path)
}

/// Makes the registry, for this user alone.
pub(crate) fn make(registry: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(registry)?;
    if std::fs::metadata(registry)?.uid() == rustix::process::getuid().as_raw() {
        return Ok(());
    }
    // Somebody else could tell our commands which cluster to talk to.
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} belongs to another user", registry.display())))
}

/// Where records are kept.
pub(crate) fn dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        Some(runtime) => Path::new(&runtime).join("quorate/dev"),
        None => std::env::temp_dir().join(format!("quorate-{}", rustix::process::getuid().as_raw())).join("dev"),
    }
}

/// The record in `file`; `None` if there is no file.
pub(crate) fn read(file: &Path) -> io::Result<Option<Record>> {
    match std::fs::read(file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every cluster that runs, by directory; cleans up after those that do not.
pub(crate) fn running(registry: &Path) -> Vec<Record> {
    let owned = std::fs::metadata(registry).is_ok_and(|at| at.uid() == rustix::process::getuid().as_raw());
    let entries = std::fs::read_dir(registry).into_iter().flatten().flatten().filter(|_| owned);
    let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "json"));
    let mut running = Vec::new();
    for file in files {
        let Ok(Some(record)) = read(&file) else { continue };
        if record.is_alive() {
            running.push(record);
        } else {
            clean_up(&record);
            let _ = std::fs::remove_file(&file);
        }
    }
    running.sort_by(|one, other| one.dir.cmp(&other.dir));
    running
}

fn clean_up(record: &Record) {
    let ours = record.dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(TEMPORARY));
    if record.temporary && ours {
        let _ = std::fs::remove_dir_all(&record.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(dir: &Path, pid: u32, started: u64) -> Record {
        Record {
            dir: dir.to_owned(),
            temporary: true,
            pid,
            started,
            socket: dir.join("dev.sock"),
            nodes: vec![NodeAddress { name: "n1".into(), api: "http://127.0.0.1:1".into() }],
            gateway: "http://127.0.0.1:2".into(),
            console: "http://127.0.0.1:1/ui/".into(),
            app: None,
            token: "secret".into(),
        }
    }

    #[test]
    fn a_running_cluster_is_listed_until_it_withdraws() {
        let (registry, cluster) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let me = procfs::process(std::process::id()).unwrap();
        let record = record(cluster.path(), me.pid, me.started);
        record.publish(registry.path()).unwrap();
        assert_eq!(running(registry.path()), std::slice::from_ref(&record));
        assert_eq!(read(&cluster.path().join(FILE)).unwrap(), Some(record.clone()));
        record.withdraw(registry.path());
        assert!(running(registry.path()).is_empty());
    }

    #[test]
    fn a_killed_cluster_is_forgotten_with_its_temporary_directory() {
        let registry = tempfile::tempdir().unwrap();
        let ours = tempfile::Builder::new().prefix(TEMPORARY).tempdir().unwrap();
        let foreign = tempfile::tempdir().unwrap();
        let me = procfs::process(std::process::id()).unwrap();
        // The same pid, used again by a process that started later.
        for dir in [ours.path(), foreign.path()] {
            record(dir, me.pid, me.started - 1).publish(registry.path()).unwrap();
            assert!(running(registry.path()).is_empty());
        }
        assert!(!ours.path().exists());
        assert!(foreign.path().exists(), "only directories that `dev` made are removed");
        assert_eq!(std::fs::read_dir(registry.path()).unwrap().count(), 0);
    }

    #[test]
    fn nobody_else_can_read_the_token() {
        let (registry, cluster) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        record(cluster.path(), 1, 1).publish(registry.path()).unwrap();
        for file in [cluster.path().join(FILE), registry.path().join("1.json")] {
            assert_eq!(std::fs::metadata(file).unwrap().mode() & 0o777, 0o600);
        }
    }
}
