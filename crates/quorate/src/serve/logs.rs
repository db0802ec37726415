//! Logs of replicas and of servers, on whichever node they are.
//!
//! Who asks this node's API for a log that another node has gets it all the same: this node asks that one on a
//! connection of its own, of the link's kind for bulk data, piece by piece. So it takes one way between nodes, the
//! one that proves both sides, and a client that reaches one node reaches every log. Whether the client may read it
//! was decided by the API that it asked; nodes of the cluster believe each other in that.
//!
//! Each piece is a question and an answer. Nothing is sent that was not asked for, so a client that takes its time
//! is waited for where it is, and a dead node is noticed by the answer that does not come.
//!
//! Where a replica is, the cluster's records say while it is wanted. Of one that has ended nobody keeps a record:
//! then every node that answers is asked, several at a time. Why no index of ended replicas in what nodes report
//! each second: it would cost all the time what is asked for once in a while.
//!
//! # Invariants
//! - One piece at most waits for a client, and one more is on its way.
//! - A client that goes takes its connection to the other node along.
//! - At most [`READERS_MAX`] logs of a node are read by others at a time; more are told so.

use super::link::{self, Accepted, Dialled, LinkIdentity};
use bytes::{Bytes, BytesMut};
use quorate_agent::log::{self, ReadLogError};
use quorate_api::backend::{LogChunk, LogError, LogFrom, LogOf, OpenLog};
use quorate_api::view::{NodeState, NodeView, Overview};
use quorate_model::id::{NodeId, ReplicaId};
use quorate_node::wire::{Body, LogAnswer, LogQuestion, LogTrouble};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::debug;

/// Logs of this node that others read at a time. Each holds a connection and sometimes a piece.
const READERS_MAX: usize = 64;
/// The largest piece that another node is given: the largest that the API asks for.
const BYTES_MAX: usize = 1 << 20;
/// How long another node may take to connect, or to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the other side may ask for nothing more. Longer than the API waits for a client that takes nothing, so
/// that it is the API that ends it.
const IDLE: Duration = Duration::from_secs(90);
/// Nodes that are asked at once for a replica that nobody knows.
const ASKED_AT_ONCE: usize = 16;
/// How long all of them together may take.
const SEARCH: Duration = Duration::from_secs(8);

/// Where a server keeps its own log, below its data directory.
pub(crate) fn own_dir(data_dir: &Path, node: NodeId) -> PathBuf {
    let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    data_dir.join("managers").join(node.to_string()).join("log")
}

/// The logs that this node has. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    /// Where replicas are.
    services: PathBuf,
    /// The server's own.
    own: PathBuf,
    readers: Arc<Semaphore>,
}

impl Shelf {
    pub(super) fn new(data_dir: &Path, node: NodeId) -> Shelf {
        let own = own_dir(data_dir, node);
        Shelf { services: data_dir.join("services"), own, readers: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    /// `None`: the server's own.
    async fn read(&self, of: Option<ReplicaId>, from: LogFrom, bytes_max: usize) -> Result<LogChunk, Trouble> {
        let from = match from {
            LogFrom::Offset(offset) => log::LogFrom::Offset(offset),
            LogFrom::LastLines(lines) => log::LogFrom::LastLines(lines),
        };
        let shelf = self.clone();
        let read = move || match of {
            Some(replica) => {
                log::read_replica(&shelf.services, replica, from, bytes_max).map_err(|error| match error {
                    ReadLogError::Unknown(_) => Trouble::Unknown,
                    error => Trouble::Unreadable(super::disk::chain(&error)),
                })
            }
            None => log::read(&shelf.own, from, bytes_max).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Trouble::Unknown,
                _ => Trouble::Unreadable(format!("{}: {error}", shelf.own.display())),
            }),
        };
        let chunk = spawn_blocking(read).await.unwrap_or_else(|error| Err(Trouble::Unreadable(error.to_string())))?;
        Ok(LogChunk { data: chunk.data.into(), next: chunk.next })
    }

    async fn answer(&self, question: &LogQuestion) -> LogAnswer {
        let Ok(of) = question.replica() else { return Trouble::Unknown.into() };
        let from = question.last_lines.map_or(LogFrom::Offset(question.offset), LogFrom::LastLines);
        let bytes_max = usize::try_from(question.bytes_max).unwrap_or(BYTES_MAX).min(BYTES_MAX);
        match self.read(of, from, bytes_max).await {
            Ok(chunk) => LogAnswer { data: chunk.data, next: chunk.next, ..LogAnswer::default() },
            Err(trouble) => trouble.into(),
        }
    }

    /// Answers another node's questions until it has no more of them.
    pub(super) async fn serve(&self, from: NodeId, first: LogQuestion, mut stream: Accepted) {
        let place = self.readers.try_acquire();
        let mut question = first;
        loop {
            let answer = if place.is_ok() { self.answer(&question).await } else { Trouble::Busy.into() };
            let sent = tokio::time::timeout(IDLE, send(&mut stream, Body::LogAnswer(answer))).await;
            if place.is_err() || !matches!(sent, Ok(Ok(()))) {
                return;
            }
            question = match tokio::time::timeout(IDLE, link::read_frame(&mut stream)).await {
                Ok(Ok(Body::LogQuestion(next))) => next,
                ended => {
                    debug!(%from, ?ended, "a log is read no further");
                    return;
                }
            };
        }
    }
}

async fn send(stream: &mut impl link::Stream, body: Body) -> io::Result<()> {
    let mut out = BytesMut::new();
    body.encode_into(&mut out);
    link::say(stream, &out).await
}

/// Why a node does not give a piece.
#[derive(Debug, Clone, PartialEq)]
enum Trouble {
    Unknown,
    Unreadable(String),
    Busy,
}

impl Trouble {
    fn of(self, of: LogOf, node: &str) -> LogError {
        match self {
            Trouble::Unknown => LogError::Unknown(of),
            Trouble::Unreadable(why) => LogError::Io { node: node.to_owned(), why },
            Trouble::Busy => LogError::Busy(node.to_owned()),
        }
    }
}

impl From<Trouble> for LogAnswer {
    fn from(trouble: Trouble) -> LogAnswer {
        let (trouble, why) = match trouble {
            Trouble::Unknown => (LogTrouble::Unknown, String::new()),
            Trouble::Unreadable(why) => (LogTrouble::Unreadable, why),
            Trouble::Busy => (LogTrouble::Busy, String::new()),
        };
        LogAnswer { trouble: trouble as i32, why, ..LogAnswer::default() }
    }
}

/// What came of a question to another node.
#[derive(Debug)]
enum Failed {
    There(Trouble),
    /// It does not answer.
    Io(io::Error),
}

/// A connection to another node on which its logs are read.
pub(super) struct Remote {
    stream: Dialled,
    /// Completes when nothing may be said to that node any more; then the connection is not used again.
    over: Pin<Box<dyn Future<Output = io::Error> + Send>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remote")
    }
}

impl Remote {
    async fn open(me: &LinkIdentity, node: NodeId, link: &str) -> io::Result<Remote> {
        let validity = me.tls.validity();
        let stream = link::connect_bulk(me, node, &link::addresses(&[link.to_owned()])).await?;
        Ok(Remote { stream, over: Box::pin(me.clone().bulk_over(validity, node)) })
    }

    async fn ask(&mut self, question: LogQuestion) -> Result<LogChunk, Failed> {
        let exchange = async {
            send(&mut self.stream, Body::LogQuestion(question)).await?;
            link::read_frame(&mut self.stream).await
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout(PATIENCE, exchange) => answer.unwrap_or_else(|late| Err(late.into())),
            over = &mut self.over => Err(over),
        };
        let Body::LogAnswer(answer) = answer.map_err(Failed::Io)? else {
            return Err(Failed::Io(io::Error::new(io::ErrorKind::InvalidData, "it answers something else")));
        };
        match answer.trouble() {
            LogTrouble::None => Ok(LogChunk { data: answer.data, next: answer.next }),
            LogTrouble::Unknown => Err(Failed::There(Trouble::Unknown)),
            LogTrouble::Unreadable => Err(Failed::There(Trouble::Unreadable(answer.why))),
            LogTrouble::Busy => Err(Failed::There(Trouble::Busy)),
        }
    }
}

fn question(of: LogOf, from: LogFrom, bytes_max: usize) -> LogQuestion {
    let replica = match of {
        LogOf::Replica(replica) => Bytes::copy_from_slice(replica.0.as_bytes()),
        LogOf::Node(_) => Bytes::new(),
    };
    let (offset, last_lines) = match from {
        LogFrom::Offset(offset) => (offset, None),
        LogFrom::LastLines(lines) => (0, Some(lines)),
    };
    LogQuestion { replica, offset, last_lines, bytes_max: u32::try_from(bytes_max).unwrap_or(u32::MAX) }
}

/// Opens a connection to a node and asks it for a first piece.
async fn first(me: &LinkIdentity, node: &NodeView, question: LogQuestion) -> Result<(LogChunk, Remote), Failed> {
    let open = tokio::time::timeout(PATIENCE, Remote::open(me, node.id, &node.link)).await;
    let mut remote = open.unwrap_or_else(|late| Err(late.into())).map_err(Failed::Io)?;
    Ok((remote.ask(question).await?, remote))
}

/// Why a node did not answer, for people.
fn explain(error: &io::Error) -> String {
    match error.kind() {
        // A node of an earlier version closes the connection at the first frame that it does not know.
        io::ErrorKind::UnexpectedEof => {
            "it closed the connection (a server of an earlier version does so: install the same quorate there)".into()
        }
        io::ErrorKind::TimedOut => "it does not answer".into(),
        _ => error.to_string(),
    }
}

/// A log that was found.
#[derive(Debug)]
pub(super) enum Found {
    Here { shelf: Shelf, of: LogOf, name: String },
    There { remote: Box<Remote>, of: LogOf, name: String },
}

impl OpenLog for Found {
    async fn read(&mut self, from: LogFrom, bytes_max: usize) -> Result<LogChunk, LogError> {
        match self {
            Found::Here { shelf, of, name } => {
                let read = shelf.read(replica_of(*of), from, bytes_max).await;
                read.map_err(|trouble| trouble.of(*of, name))
            }
            Found::There { remote, of, name } => {
                let read = remote.ask(question(*of, from, bytes_max)).await;
                read.map_err(|failed| failed.of(*of, name))
            }
        }
    }
}

impl Failed {
    fn of(self, of: LogOf, node: &str) -> LogError {
        match self {
            Failed::There(trouble) => trouble.of(of, node),
            Failed::Io(error) => LogError::Unreachable { nodes: vec![node.to_owned()], why: explain(&error) },
        }
    }
}

fn replica_of(of: LogOf) -> Option<ReplicaId> {
    match of {
        LogOf::Replica(replica) => Some(replica),
        LogOf::Node(_) => None,
    }
}

/// Finds logs, here and elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Logs {
    pub(super) shelf: Shelf,
    pub(super) me: LinkIdentity,
    pub(super) overview: watch::Receiver<Arc<Overview>>,
}

impl Logs {
    /// See [`quorate_api::backend::Backend::open_log`].
    pub(super) async fn open(&self, of: LogOf, from: LogFrom, bytes_max: usize) -> Result<(LogChunk, Found), LogError> {
        let overview = self.overview.borrow().clone();
        let here = overview.answered_by.clone();
        let is_here = match of {
            LogOf::Replica(_) => true,
            LogOf::Node(node) => node == self.me.node,
        };
        if is_here {
            match self.shelf.read(replica_of(of), from, bytes_max).await {
                Ok(chunk) => return Ok((chunk, Found::Here { shelf: self.shelf.clone(), of, name: here })),
                Err(Trouble::Unknown) if matches!(of, LogOf::Replica(_)) => {}
                Err(trouble) => return Err(trouble.of(of, &here)),
            }
        }
        let question = question(of, from, bytes_max);
        let home = match of {
            LogOf::Node(node) => Some(node),
            LogOf::Replica(replica) => {
                let replicas = overview.services.iter().flat_map(|service| &service.replicas);
                replicas.into_iter().find(|known| known.id == replica).map(|known| known.node_id)
            }
        };
        let Some(home) = home else { return self.search(of, &overview, &question).await };
        let node = overview.nodes.iter().find(|node| node.id == home).filter(|node| node.id != self.me.node);
        let node = node.ok_or(LogError::Unknown(of))?;
        match first(&self.me, node, question).await {
            Ok((chunk, remote)) => Ok((chunk, Found::There { remote: Box::new(remote), of, name: node.name.clone() })),
            Err(failed) => Err(failed.of(of, &node.name)),
        }
    }

    /// Asks every node that may answer. That a node has no such log counts only when all others have been asked.
    async fn search(
        &self,
        of: LogOf,
        overview: &Overview,
        question: &LogQuestion,
    ) -> Result<(LogChunk, Found), LogError> {
        let others = overview.nodes.iter().filter(|node| node.id != self.me.node);
        let (asked, away): (Vec<&NodeView>, Vec<&NodeView>) =
            others.partition(|node| matches!(node.state, NodeState::Joined | NodeState::Unreachable));
        let mut silent: Vec<String> = away.iter().map(|node| node.name.clone()).collect();
        let mut why = "they are down or have left".to_owned();
        let mut waiting: Vec<String> = asked.iter().map(|node| node.name.clone()).collect();
        let turns = Arc::new(Semaphore::new(ASKED_AT_ONCE));
        let mut asking = JoinSet::new();
        for node in asked {
            let (me, node, question, turns) = (self.me.clone(), node.clone(), question.clone(), turns.clone());
            asking.spawn(async move {
                let _turn = turns.acquire().await;
                (first(&me, &node, question).await, node.name)
            });
        }
        let over = tokio::time::sleep(SEARCH);
        tokio::pin!(over);
        loop {
            let answered = tokio::select! {
                answered = asking.join_next() => answered,
                () = &mut over => None,
            };
            let Some(Ok((answer, name))) = answered else { break };
            waiting.retain(|waits| *waits != name);
            match answer {
                Ok((chunk, remote)) => return Ok((chunk, Found::There { remote: Box::new(remote), of, name })),
                Err(Failed::There(Trouble::Unknown)) => {}
                // It has it.
                Err(Failed::There(trouble @ Trouble::Unreadable(_))) => return Err(trouble.of(of, &name)),
                Err(Failed::There(Trouble::Busy)) => {
                    silent.push(name);
                    why = "it is asked for too many logs at a time".into();
                }
                Err(Failed::Io(error)) => {
                    silent.push(name);
                    why = explain(&error);
                }
            }
        }
        if !waiting.is_empty() {
            silent.append(&mut waiting);
            why = "it does not answer".into();
        }
        if silent.is_empty() {
            return Err(LogError::Unknown(of));
        }
        silent.sort();
        Err(LogError::Unreachable { nodes: silent, why: format!("{why}; no other node has the log of {of}") })
    }
}

#[cfg(test)]
mod tests;
