//! The token of a replica whose service is granted something of the cluster: a file that its node makes before
//! the replica starts, and removes with it.

use crate::files;
use quorate_model::id::ReplicaId;
use quorate_model::secret::Secret;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// In the working directory. Hidden, so that a program that serves its directory is less likely to show it.
const FILE: &str = ".quorate-token";

/// Those that every node knows of by now, by replica. Shows replicas alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceTokens(pub BTreeMap<ReplicaId, Secret<String>>);

/// How a replica reaches the API of its node.
#[derive(Debug, Clone, Default)]
pub struct Api {
    pub url: String,
    /// The certificates that a client believes in; none without TLS.
    pub authorities: Option<PathBuf>,
    /// The socket at which the node's owner needs no login: what resource agents tell Pacemaker goes there.
    /// Empty: nowhere.
    pub socket: PathBuf,
}

/// What tells a replica about its token and where it is taken.
pub(crate) fn variables(api: &Api, work: &Path) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut all = BTreeMap::from([
        ("QUORATE_API".to_owned(), api.url.clone()),
        // For the command line.
        ("QUORATE_SERVER".to_owned(), api.url.clone()),
        ("QUORATE_TOKEN_FILE".to_owned(), text(&work.join(FILE))),
    ]);
    all.extend(api.authorities.as_ref().map(|path| ("QUORATE_CA_FILE".to_owned(), text(path))));
    all
}

/// For its owner alone, from its first moment on.
pub(crate) fn write(token: &Secret<String>, work: &Path) -> io::Result<()> {
    remove(work)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(work.join(FILE))?;
    file.write_all(token.expose().as_bytes())
}

pub(crate) fn remove(work: &Path) -> io::Result<()> {
    files::remove_file(&work.join(FILE))
}
