//! Orders to a running `quorate dev`, over a Unix socket: one line of JSON each way.

use crate::cli::failure::{Exit, Failure};
use crate::dev::registry::Record;
use quorate_model::time::WallTime;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// What fits into a socket address, with its terminating zero.
const PATH_MAX: usize = 108;
/// Longest order. A node's name is all that varies.
const LINE_MAX: u64 = 4096;
/// Longest wait for an answer; an orderly stop of a node takes the longest.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Order {
    /// SIGKILL to the server and, unless `server_only`, to all that its replicas are.
    Kill {
        node: String,
        server_only: bool,
    },
    /// SIGTERM to the server, then to its replicas.
    Stop {
        node: String,
    },
    Start {
        node: String,
    },
}

impl Order {
    pub(crate) fn node(&self) -> &str {
        match self {
            Order::Kill { node, .. } | Order::Stop { node } | Order::Start { node } => node,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// It was done; `at` is the moment just before the first signal, or the start.
    Done { at: WallTime },
    /// The node is in a state in which this makes no sense.
    Refused { error: String, fix: String },
    /// It was tried.
    Failed { error: String },
}

/// An order that waits for its reply.
#[derive(Debug)]
pub(crate) struct Request {
    pub order: Order,
    pub reply: mpsc::Sender<Reply>,
}

/// Where the socket of the cluster in `dir` is: there, or in `fallback` if that path is too long.
pub(crate) fn socket_path(dir: &Path, fallback: &Path) -> PathBuf {
    let path = dir.join("dev.sock");
    if path.as_os_str().as_bytes().len() < PATH_MAX {
        path
    } else {
        fallback.join(format!("{}.sock", std::process::id()))
    }
}

/// Takes orders at `path` from now on and hands each to `handle`.
pub(crate) fn listen(path: &Path, handle: impl Fn(Request) + Send + Clone + 'static) -> io::Result<()> {
    // The lock on the directory says that nobody listens there any more.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    std::thread::Builder::new().name("orders".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            // One that never sends its line must not hold up the next.
            let spawned = std::thread::Builder::new().spawn(move || {
                // Who went away does not need the reply.
                let _ = answer(stream, &handle);
            });
            drop(spawned);
        }
    })?;
    Ok(())
}

fn answer(stream: UnixStream, handle: &impl Fn(Request)) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_MAX)).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(order) => {
            let (reply, answered) = mpsc::channel();
            handle(Request { order, reply });
            answered.recv().unwrap_or_else(|_| Reply::Failed { error: "the cluster is being stopped".into() })
        }
        Err(error) => Reply::Failed { error: format!("not an order: {error}") },
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    (&stream).write_all(&text)
}

/// Gives an order to the running cluster; the moment at which it was carried out.
pub(crate) fn give(record: &Record, order: &Order) -> Result<WallTime, Failure> {
    let ask = || -> io::Result<Reply> {
        let mut stream = UnixStream::connect(&record.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        Ok(serde_json::from_str(&reply)?)
    };
    let reply = ask().map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            "unreachable",
            format!("`quorate dev` (process {}) does not answer", record.pid),
        )
        .why(error)
    })?;
    match reply {
        Reply::Done { at } => Ok(at),
        Reply::Refused { error, fix } => Err(Failure::new(Exit::Conflict, "wrong-state", error).fix(fix)),
        Reply::Failed { error } => Err(Failure::new(Exit::Failed, "failed", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reaches_the_cluster_and_its_reply_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket_path(dir.path(), dir.path());
        listen(&path, |request: Request| {
            let reply = match request.order.node() {
                "n1" => Reply::Done { at: WallTime(42) },
                _ => Reply::Refused { error: "n2 does not run".into(), fix: "quorate dev start n2".into() },
            };
            request.reply.send(reply).unwrap();
        })
        .unwrap();
        let record = Record {
            dir: dir.path().into(),
            temporary: true,
            pid: 1,
            started: 1,
            socket: path.clone(),
            nodes: Vec::new(),
            gateway: String::new(),
            console: String::new(),
            app: None,
            token: String::new(),
        };
        assert_eq!(give(&record, &Order::Start { node: "n1".into() }), Ok(WallTime(42)));
        let refused = give(&record, &Order::Stop { node: "n2".into() }).unwrap_err();
        assert_eq!((refused.exit, refused.fix.as_str()), (Exit::Conflict, "quorate dev start n2"));

        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"{\"do\":\"dance\"}\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("not an order"), "{reply}");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_replaced_by_a_short_one() {
        let long = PathBuf::from(format!("/{}", "d".repeat(120)));
        assert!(socket_path(&long, Path::new("/run")).starts_with("/run"));
        assert_eq!(socket_path(Path::new("/short"), Path::new("/run")), Path::new("/short/dev.sock"));
    }
}
