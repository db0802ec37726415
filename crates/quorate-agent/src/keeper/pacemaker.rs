//! Commands of Pacemaker, as resource agents call them, that are ours.
//!
//! Agents of databases ask Pacemaker where the active copy is, write down how far their own data goes, and say how
//! well their copy would do as the active one: with `crm_attribute`, `crm_mon` and a few more. They find commands of
//! these names in a directory that comes first in their search path, each a link to this program, which does as it
//! is called (`quorate`, `pacemaker.rs`) and asks the API of the node. Pacemaker itself, where a node has it, is not
//! asked: it knows nothing of our copies.

use crate::launch::SEARCH_PATH;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The variable that names the socket of the node's API.
pub(crate) const SOCKET: &str = "QUORATE_SOCKET";

/// Below the directory of a replica.
const DIR: &str = "pacemaker";

const COMMANDS: [&str; 7] =
    ["attrd_updater", "crm_attribute", "crm_master", "crm_mon", "crm_node", "crm_resource", "pacemakerd"];

/// Makes them in the directory of a replica, where a keeper is, and says where that is.
pub(crate) fn stand_ins() -> io::Result<PathBuf> {
    let (dir, program) = (std::env::current_dir()?.join(DIR), std::env::current_exe()?);
    fs::create_dir_all(&dir)?;
    for name in COMMANDS {
        let link = dir.join(name);
        if fs::read_link(&link).is_ok_and(|to| to == program) {
            continue;
        }
        // Those of an earlier keeper may lead to a program that is not there any more.
        crate::files::remove_file(&link)?;
        symlink(&program, &link)?;
    }
    Ok(dir)
}

/// What makes agents find them: the library of ClusterLabs' agents calls some by their whole path.
pub(crate) fn variables(dir: &Path, path: Option<&str>) -> [(String, String); 2] {
    let dir = dir.to_string_lossy();
    [
        ("PATH".to_owned(), format!("{dir}:{}", path.unwrap_or(SEARCH_PATH))),
        ("HA_SBIN_DIR".to_owned(), dir.into_owned()),
    ]
}
