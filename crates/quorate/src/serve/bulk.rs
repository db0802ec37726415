//! What is too large for the link, on connections of their own: whole databases, and logs ([`super::logs`]). The
//! first frame says which.
//!
//! A database. Simple on purpose: the sender takes a snapshot when it is asked for one and streams its files;
//! the receiver writes them beside its own database and says when they are complete. Resuming and
//! a limited rate come with a later version.
//!
//! # Format
//! Of a database: hello of both sides, then a [`SnapshotHead`] frame with the manifest, then the files' bytes in
//! the manifest's order, then one byte 1 from the receiver when everything is there.

use super::core::SnapshotOrder;
use super::inbox::Inbox;
use super::link::{self, Accepted, BulkReceiver, LinkIdentity};
use super::logs::Shelf;
use bytes::BytesMut;
use quorate_model::id::{LogIndex, NodeId, Term};
use quorate_node::wire::{Body, SnapshotHead};
use quorate_node::{Configuration, Event};
use quorate_store::databases::{self, Manifest};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::{info, warn};

/// A receiver that takes nothing for this long is given up.
const STALL: Duration = Duration::from_secs(10);
const CHUNK: usize = 256 << 10;

/// A database that was received in full and waits to be installed.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) directory: PathBuf,
    pub(super) manifest: Manifest,
}

/// Where received databases wait.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    root: PathBuf,
    inbox: Inbox,
    /// By the index up to which each goes: before the core has looked at one, another leader may have
    /// sent its own.
    waiting: Arc<Mutex<BTreeMap<LogIndex, Received>>>,
    /// One at a time: a second leader's snapshot supersedes the first only when that is over.
    busy: Arc<tokio::sync::Mutex<u64>>,
}

impl Incoming {
    pub(super) fn new(root: PathBuf, inbox: Inbox) -> Incoming {
        Incoming { root, inbox, waiting: Arc::default(), busy: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LogIndex, Received>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that goes up to here, to be installed. Older ones are of no use after it.
    pub(super) fn take(&self, index: LogIndex) -> Option<Received> {
        let mut waiting = self.lock();
        let taken = waiting.remove(&index);
        let newer = waiting.split_off(&index);
        std::mem::replace(&mut *waiting, newer).into_values().for_each(remove);
        taken
    }

    pub(super) fn discard(&self, index: LogIndex) {
        self.lock().remove(&index).into_iter().for_each(remove);
    }

    async fn receive_into(
        &self,
        directory: &Path,
        head: SnapshotHead,
        stream: &mut Accepted,
    ) -> io::Result<(Manifest, Term, Configuration)> {
        let manifest = Manifest::read(&head.manifest).map_err(io::Error::other)?;
        let configuration = Configuration::read(&manifest.voters).map_err(io::Error::other)?;
        std::fs::create_dir_all(directory)?;
        for (name, bytes) in &manifest.files {
            let mut file = std::fs::File::create(directory.join(name))?;
            let mut rest = *bytes;
            let mut chunk = vec![0; CHUNK];
            while rest > 0 {
                let want = usize::try_from(rest.min(CHUNK as u64)).expect("a chunk");
                let got = tokio::time::timeout(STALL, stream.read(&mut chunk[..want])).await??;
                if got == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                io::Write::write_all(&mut file, &chunk[..got])?;
                rest -= got as u64;
            }
            file.sync_all()?;
        }
        // Here it costs a transfer; on the apply thread it would end the node.
        databases::check(self.root.as_path(), directory, &manifest).map_err(io::Error::other)?;
        Ok((manifest, Term(head.term), configuration))
    }
}

fn remove(received: Received) {
    let _ = std::fs::remove_dir_all(received.directory);
}

/// A directory that is removed unless everything arrived, also when the connection is cut from here.
struct Partial {
    directory: PathBuf,
    complete: bool,
}

impl Partial {
    fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.complete {
            self.remove();
        }
    }
}

/// Whatever other nodes want on connections for bulk data.
#[derive(Debug, Clone)]
pub(super) struct Bulk {
    pub(super) incoming: Incoming,
    pub(super) shelf: Shelf,
}

impl BulkReceiver for Bulk {
    async fn receive(&self, from: NodeId, mut stream: Accepted) {
        // Nobody's turn waits for it.
        let first = tokio::time::timeout(STALL, link::read_frame(&mut stream)).await;
        match first.unwrap_or_else(|late| Err(late.into())) {
            Ok(Body::Snapshot(head)) => self.incoming.receive(from, head, stream).await,
            Ok(Body::LogQuestion(question)) => self.shelf.serve(from, question, stream).await,
            Ok(_) => warn!(%from, "a connection for bulk data that carries neither a snapshot nor a log"),
            Err(error) => warn!(%from, %error, "a connection for bulk data says nothing of use"),
        }
    }
}

impl Incoming {
    async fn receive(&self, from: NodeId, head: SnapshotHead, mut stream: Accepted) {
        let mut number = self.busy.lock().await;
        *number += 1;
        let directory = self.root.join(format!("incoming-{number}"));
        let mut partial = Partial { directory: directory.clone(), complete: false };
        partial.remove();
        match self.receive_into(&directory, head, &mut stream).await {
            Ok((manifest, term, configuration)) => {
                partial.complete = true;
                let (index, index_term, configured) = (manifest.index, manifest.term, manifest.voters_as_of);
                info!(%from, %index, "received a snapshot");
                self.lock().insert(index, Received { directory, manifest }).into_iter().for_each(remove);
                let received = Event::SnapshotReceived { from, term, index, index_term, configuration, configured };
                self.inbox.send(received).await;
                if stream.write_all(&[1]).await.is_ok() {
                    let _ = stream.flush().await;
                }
            }
            Err(error) => warn!(%from, %error, "a snapshot did not arrive"),
        }
    }
}

/// Sends this node's database to `to`, and says how it went.
pub(super) async fn send(me: &LinkIdentity, root: PathBuf, order: SnapshotOrder, inbox: Inbox) {
    let to = order.to;
    let validity = me.tls.validity();
    let sent = tokio::select! {
        sent = send_files(me, root, order) => sent,
        over = me.clone().bulk_over(validity, to) => Err(over),
    };
    let ok = match sent {
        Ok(bytes) => {
            info!(%to, bytes, "sent a snapshot");
            true
        }
        Err(error) => {
            warn!(%to, %error, "cannot send a snapshot");
            false
        }
    };
    inbox.send(Event::SnapshotSent { to, ok }).await;
}

async fn send_files(me: &LinkIdentity, root: PathBuf, order: SnapshotOrder) -> io::Result<u64> {
    let SnapshotOrder { to, links, term } = order;
    let directory = tempfile::Builder::new().prefix("outgoing-").tempdir_in(&root)?;
    let into = directory.path().to_owned();
    let manifest = tokio::task::spawn_blocking(move || databases::snapshot(&*root, &into))
        .await
        .map_err(io::Error::other)?
        .map_err(|error| io::Error::other(super::disk::chain(&error)))?;
    let mut stream = link::connect_bulk(me, to, &links).await?;
    let mut head = BytesMut::new();
    let json = serde_json::to_vec(&manifest).map_err(io::Error::other)?;
    Body::Snapshot(SnapshotHead { term: term.0, manifest: json.into() }).encode_into(&mut head);
    stream.write_all(&head).await?;
    let mut sent = 0;
    let mut chunk = vec![0; CHUNK];
    for (name, _) in &manifest.files {
        let mut file = std::fs::File::open(directory.path().join(name))?;
        loop {
            let got = io::Read::read(&mut file, &mut chunk)?;
            if got == 0 {
                break;
            }
            tokio::time::timeout(STALL, stream.write_all(&chunk[..got])).await??;
            sent += got as u64;
        }
    }
    tokio::time::timeout(STALL, stream.flush()).await??;
    let complete = tokio::time::timeout(STALL, stream.read_u8()).await??;
    if complete == 1 { Ok(sent) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "not acknowledged")) }
}
