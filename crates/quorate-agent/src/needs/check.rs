//! Whether a requirement holds on this node now.

use crate::launch::SEARCH_PATH;
use quorate_model::need::Requirement;
use rustix::fs::{Access, access};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long a connection may take to be accepted.
const REACH_WITHIN: Duration = Duration::from_secs(3);
/// A look at a disk takes longer only where a network file system hangs.
const LOOK_WITHIN: Duration = Duration::from_secs(10);

/// What is wrong; `None`: it holds.
pub(super) async fn check(requirement: &Requirement) -> Option<String> {
    let problem = match requirement {
        Requirement::Reach(address) => reach(address).await,
        other => {
            let other = other.clone();
            match timeout(LOOK_WITHIN, spawn_blocking(move || look(&other))).await {
                Ok(Ok(looked)) => looked,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("the disk did not answer within {} s", LOOK_WITHIN.as_secs())),
            }
        }
    };
    problem.err()
}

async fn reach(address: &str) -> Result<(), String> {
    match timeout(REACH_WITHIN, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", REACH_WITHIN.as_secs())),
    }
}

fn look(requirement: &Requirement) -> Result<(), String> {
    match requirement {
        Requirement::Command(name) => match find(name) {
            true => Ok(()),
            false if name.contains('/') => Err("is no program here".into()),
            false => Err(format!("is not in {SEARCH_PATH}")),
        },
        Requirement::File(path) => std::fs::metadata(path).map(drop).map_err(|error| error.to_string()),
        Requirement::Mount(path) => match is_mounted(Path::new(path)) {
            Ok(true) => Ok(()),
            Ok(false) => Err("nothing is mounted there".into()),
            Err(error) => Err(error.to_string()),
        },
        // Looked after by others.
        Requirement::Reach(_) | Requirement::External(_) => Ok(()),
    }
}

fn find(name: &str) -> bool {
    let is_program = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    match name.contains('/') {
        true => is_program(Path::new(name)),
        false => SEARCH_PATH.split(':').any(|dir| is_program(&Path::new(dir).join(name))),
    }
}

fn is_mounted(path: &Path) -> io::Result<bool> {
    let wanted: PathBuf = path.components().collect();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    // The fifth field of a line; proc(5). Blanks in it are written in octal.
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.any(|point| Path::new(&unescaped(point)) == wanted))
}

fn unescaped(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn problem(requirement: Requirement) -> Option<String> {
        check(&requirement).await
    }

    #[tokio::test]
    async fn k13_each_requirement_holds_only_where_it_does() {
        assert_eq!(problem(Requirement::Command("sh".into())).await, None);
        assert_eq!(problem(Requirement::Command("/bin/sh".into())).await, None);
        assert!(problem(Requirement::Command("no-such-program".into())).await.unwrap().contains("is not in /usr"));
        assert_eq!(problem(Requirement::Command("/etc/passwd".into())).await.unwrap(), "is no program here");
        assert_eq!(problem(Requirement::File("/etc/passwd".into())).await, None);
        assert!(problem(Requirement::File("/no/such".into())).await.unwrap().contains("No such file"));
        assert_eq!(problem(Requirement::Mount("/proc/".into())).await, None);
        assert_eq!(problem(Requirement::Mount("/proc/self".into())).await.unwrap(), "nothing is mounted there");
    }

    #[tokio::test]
    async fn k13_an_address_is_reached_while_somebody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Requirement::Reach(listener.local_addr().unwrap().to_string());
        assert_eq!(problem(address.clone()).await, None);
        drop(listener);
        assert!(problem(address).await.unwrap().contains("refused"));
    }
}
