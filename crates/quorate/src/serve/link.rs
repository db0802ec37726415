//! The node link: one TCP connection to each peer for what this node says, one from each for what
//! it hears.
//!
//! The core thread writes to sockets itself: a message goes out with one system call and without
//! waking anybody. What the socket does not take at once waits in the [`Outbox`], and a task of
//! its own goes on when the socket is ready again.
//!
//! A connection that ends is dialled again at once. When that is refused, nobody listens any more:
//! the peer's process is gone, and consensus is told so (it need not wait for silence).
//!
//! # Invariants
//! - The first frame of each side is a hello; one that does not fit ends the connection.
//! - An outbox holds at most [`OUTBOX_MAX`] bytes; a peer that is further behind is disconnected.
//!   Consensus sends again whatever got lost.

use super::inbox::Inbox;
use bytes::{Bytes, BytesMut};
use quorate_model::id::{ClusterId, NodeId};
use quorate_node::Event;
use quorate_node::wire::{self, Body, Hello};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// Bytes that may wait for one peer: a few appends of the largest size and a burst of requests.
const OUTBOX_MAX: usize = 64 << 20;
/// Unacknowledged data, or a hello that does not come, ends a connection after this. The status
/// that every node sends each second keeps data in flight, so a silent peer is noticed.
const SILENCE: Duration = Duration::from_secs(3);
/// The first attempt after a connection ended is only to learn whether the peer still lives.
const PROBE: Duration = Duration::from_millis(300);
/// Pauses between attempts to reach a peer that does not answer. The first is short: a process that
/// is just ending may still accept, and says only at the next attempt that it is gone.
const REDIAL: [Duration; 5] = [
    Duration::from_millis(2),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

/// Who this node is on the link.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkIdentity {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    /// Where this node's own link is found.
    pub(super) link: SocketAddr,
}

impl LinkIdentity {
    fn hello(self, bulk: bool) -> Body {
        Body::Hello(Hello {
            version: wire::VERSION,
            cluster: Bytes::copy_from_slice(self.cluster.0.as_bytes()),
            node: Bytes::copy_from_slice(self.node.0.as_bytes()),
            bulk,
            link: self.link.to_string(),
        })
    }

    fn check(self, hello: &Hello) -> io::Result<NodeId> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if hello.cluster != self.cluster.0.as_bytes().as_slice() {
            return refuse("the other side belongs to another cluster".into());
        }
        if hello.version != wire::VERSION {
            return refuse(format!(
                "the other side speaks link version {}, this node {}",
                hello.version,
                wire::VERSION
            ));
        }
        hello.node_id().map_err(io::Error::other)
    }
}

/// What waits to be written to one peer.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    inner: Mutex<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    stream: Option<Arc<TcpStream>>,
    buffer: BytesMut,
    /// The task has taken over, because the socket was full.
    stuck: bool,
}

impl Outbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // A panic while holding the lock leaves a buffer that may end in half a frame; the
        // process is about to stop then, so nothing is lost by going on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self, stream: Option<Arc<TcpStream>>) {
        let mut waiting = self.lock();
        waiting.stream = stream;
        waiting.buffer.clear();
        waiting.stuck = false;
    }

    /// Writes frames now if the socket takes them. Without a connection they are dropped, as the
    /// network may do with any message.
    pub(super) fn send(&self, messages: impl Iterator<Item = Body>) {
        let mut waiting = self.lock();
        let Some(stream) = waiting.stream.clone() else { return };
        for message in messages {
            message.encode_into(&mut waiting.buffer);
        }
        if waiting.buffer.len() > OUTBOX_MAX {
            warn!(bytes = waiting.buffer.len(), "a peer takes nothing any more: disconnecting");
            waiting.stream = None;
            waiting.buffer = BytesMut::new();
            self.more.notify_one();
            return;
        }
        if waiting.stuck {
            return;
        }
        while !waiting.buffer.is_empty() {
            match stream.try_write(&waiting.buffer) {
                Ok(written) => {
                    let _ = waiting.buffer.split_to(written);
                }
                Err(_) => {
                    // Full or broken: the task finds out which.
                    waiting.stuck = true;
                    self.more.notify_one();
                    return;
                }
            }
        }
    }

    /// Writes what [`send`](Self::send) could not. Ends when the connection does.
    async fn pump(&self, stream: &Arc<TcpStream>) -> io::Result<()> {
        loop {
            self.more.notified().await;
            loop {
                stream.writable().await?;
                let mut waiting = self.lock();
                if waiting.stream.is_none() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                match stream.try_write(&waiting.buffer) {
                    Ok(written) => {
                        let _ = waiting.buffer.split_to(written);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                if waiting.buffer.is_empty() {
                    waiting.stuck = false;
                    break;
                }
            }
        }
    }
}

/// The links to all other nodes of the cluster.
#[derive(Debug)]
pub(super) struct Calls {
    me: LinkIdentity,
    runtime: tokio::runtime::Handle,
    inbox: Inbox,
    calls: BTreeMap<NodeId, Call>,
    /// The nodes in it, for those who listen.
    peers: watch::Sender<BTreeSet<NodeId>>,
}

#[derive(Debug)]
struct Call {
    outbox: Arc<Outbox>,
    links: watch::Sender<Vec<String>>,
    task: JoinHandle<()>,
}

impl Calls {
    pub(super) fn new(me: LinkIdentity, runtime: tokio::runtime::Handle, inbox: Inbox) -> Calls {
        Calls { me, runtime, inbox, calls: BTreeMap::new(), peers: watch::Sender::new(BTreeSet::new()) }
    }

    /// The nodes that are of the cluster. What comes from one that no longer is has no reader any more.
    pub(super) fn peers(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.peers.subscribe()
    }

    /// Opens links to new nodes, and ends those to nodes that are not of the cluster any more.
    pub(super) fn set(&mut self, peers: BTreeMap<NodeId, Vec<String>>) {
        for (peer, call) in self.calls.extract_if(.., |peer, _| !peers.contains_key(peer)) {
            info!(%peer, "not of the cluster any more: its link is ended");
            call.task.abort();
            call.outbox.connect(None);
        }
        self.peers.send_replace(peers.keys().copied().collect());
        for (peer, links) in peers {
            if let Some(call) = self.calls.get(&peer) {
                call.links.send_replace(links);
                continue;
            }
            let (outbox, links) = (Arc::new(Outbox::default()), watch::Sender::new(links));
            let dial = dial(self.me, peer, links.subscribe(), outbox.clone(), self.inbox.clone());
            let task = self.runtime.spawn(dial);
            self.calls.insert(peer, Call { outbox, links, task });
        }
    }

    /// See [`Outbox::send`]. To a node that is not of the cluster nothing is sent.
    pub(super) fn send(&self, to: NodeId, messages: impl Iterator<Item = Body>) {
        if let Some(call) = self.calls.get(&to) {
            call.outbox.send(messages);
        }
    }
}

/// Keeps a connection to `peer`, at any of its addresses, until the task is ended.
async fn dial(
    me: LinkIdentity,
    peer: NodeId,
    mut links: watch::Receiver<Vec<String>>,
    outbox: Arc<Outbox>,
    inbox: Inbox,
) {
    let mut failures = 0;
    // Which of the addresses to try. The one that worked last is tried first.
    let mut choice = 0;
    let mut worked = String::new();
    let mut up = false;
    // Known to have ended. One that was never there has not.
    let mut gone = true;
    loop {
        let known = links.borrow_and_update().clone();
        let Some(address) = known.get(choice % known.len().max(1)) else {
            // Nobody knows where it is.
            if links.changed().await.is_err() {
                return;
            }
            continue;
        };
        let patience = if up { PROBE } else { SILENCE };
        match tokio::time::timeout(patience, handshake(me, peer, address)).await.unwrap_or_else(|late| Err(late.into()))
        {
            Ok(stream) => {
                failures = 0;
                worked.clone_from(address);
                (up, gone) = (true, false);
                let stream = Arc::new(stream);
                outbox.connect(Some(stream.clone()));
                debug!(%peer, %address, "link up");
                inbox.send(Event::LinkUp { peer }).await;
                let ended = tokio::select! {
                    ended = closed(&stream) => ended,
                    ended = outbox.pump(&stream) => ended,
                };
                outbox.connect(None);
                debug!(%peer, reason = ?ended, "link ended");
                // Dial again before anybody is told: the answer says whether the peer lives.
            }
            Err(error) => {
                // Refused where it never was says nothing about it.
                let refused = error.kind() == io::ErrorKind::ConnectionRefused && *address == worked;
                if up || (refused && !gone) {
                    (up, gone) = (false, refused);
                    info!(%peer, refused, %error, "link down");
                    inbox.send(Event::LinkDown { peer, refused }).await;
                } else if failures == REDIAL.len() {
                    info!(%peer, %error, "still cannot reach the peer");
                }
                tokio::time::sleep(REDIAL[failures.min(REDIAL.len() - 1)]).await;
                failures += 1;
                if !up {
                    choice = (choice + 1) % known.len();
                }
            }
        }
    }
}

/// Returns when the other side closes: it sends nothing on this connection after its hello.
async fn closed(stream: &TcpStream) -> io::Result<()> {
    let mut byte = [0u8; 1];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected data")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn handshake(me: LinkIdentity, peer: NodeId, address: &str) -> io::Result<TcpStream> {
    handshake_for(me, peer, address, false).await
}

async fn handshake_for(me: LinkIdentity, peer: NodeId, address: &str, bulk: bool) -> io::Result<TcpStream> {
    let mut stream = connect(address).await?;
    let answer = greet(&mut stream, me, bulk).await?;
    if answer != peer {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{address} is node {answer}, not {peer}")));
    }
    Ok(stream)
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(SILENCE, TcpStream::connect(address)).await??;
    tune(&stream)?;
    Ok(stream)
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(SILENCE))
}

/// Says hello and hears the other side's.
async fn greet(stream: &mut TcpStream, me: LinkIdentity, bulk: bool) -> io::Result<NodeId> {
    let mut out = BytesMut::new();
    me.hello(bulk).encode_into(&mut out);
    stream.write_all(&out).await?;
    let body = tokio::time::timeout(SILENCE, read_frame(stream)).await??;
    match body {
        Body::Hello(hello) => me.check(&hello),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the other side does not say hello")),
    }
}

/// A connection for bulk data to `peer`, at the first of its addresses where it answers.
pub(super) async fn connect_bulk(me: LinkIdentity, peer: NodeId, links: &[String]) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "nobody knows where it is");
    for address in links {
        match handshake_for(me, peer, address, true).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Reads one frame, and not a byte more.
pub(super) async fn read_frame(stream: &mut TcpStream) -> io::Result<Body> {
    let length = stream.read_u32_le().await? as usize;
    if length > wire::FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Body::decode(frame.into()).map_err(io::Error::other)
}

/// What to do with a connection for bulk data.
pub(super) trait BulkReceiver: Clone + Send + Sync + 'static {
    fn receive(&self, from: NodeId, stream: TcpStream) -> impl Future<Output = ()> + Send;
}

/// Accepts peers for as long as the node runs.
pub(super) async fn accept<B: BulkReceiver>(
    listener: TcpListener,
    me: LinkIdentity,
    peers: watch::Receiver<BTreeSet<NodeId>>,
    inbox: Inbox,
    bulk: B,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others may be closed meanwhile.
                warn!(%error, "cannot accept a peer");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (peers, inbox, bulk) = (peers.clone(), inbox.clone(), bulk.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_peer(stream, me, peers, inbox, bulk).await {
                debug!(%error, "a peer's connection ended");
            }
        });
    }
}

async fn serve_peer<B: BulkReceiver>(
    mut stream: TcpStream,
    me: LinkIdentity,
    mut peers: watch::Receiver<BTreeSet<NodeId>>,
    inbox: Inbox,
    bulk: B,
) -> io::Result<()> {
    tune(&stream)?;
    let hello = match tokio::time::timeout(SILENCE, read_frame(&mut stream)).await?? {
        Body::Hello(hello) => hello,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the first frame is no hello")),
    };
    let from = me.check(&hello)?;
    let mut out = BytesMut::new();
    me.hello(hello.bulk).encode_into(&mut out);
    stream.write_all(&out).await?;
    if hello.bulk {
        bulk.receive(from, stream).await;
        return Ok(());
    }
    if !hello.link.is_empty() {
        inbox.send(Event::Called { peer: from, link: hello.link }).await;
    }
    let mut buffer = BytesMut::with_capacity(64 << 10);
    let mut was_peer = false;
    loop {
        while let Some(message) = Body::take(&mut buffer).map_err(io::Error::other)? {
            inbox.send(Event::Received { from, message }).await;
        }
        let is_peer = peers.borrow_and_update().contains(&from);
        if was_peer && !is_peer {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not of the cluster any more"));
        }
        was_peer = is_peer;
        tokio::select! {
            read = stream.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            Ok(()) = peers.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::id::NodeId;

    #[tokio::test]
    async fn a_peer_that_still_accepts_while_it_ends_is_soon_known_to_be_gone() {
        let cluster = ClusterId::from_u128(1);
        let (me, peer) = (NodeId::from_u128(2), NodeId::from_u128(3));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (inbox, events) = super::super::inbox::inbox();
        let address = listener.local_addr().unwrap();
        let link = address;
        let links = watch::Sender::new(vec![address.to_string()]);
        let me = LinkIdentity { cluster, node: me, link };
        tokio::spawn(dial(me, peer, links.subscribe(), Arc::default(), inbox));

        let (mut first, _) = listener.accept().await.unwrap();
        read_frame(&mut first).await.unwrap();
        let mut hello = BytesMut::new();
        LinkIdentity { cluster, node: peer, link }.hello(false).encode_into(&mut hello);
        first.write_all(&hello).await.unwrap();
        drop(first);
        // The kernel goes on accepting for a process that is ending, until it closes the listener.
        drop(listener.accept().await.unwrap());
        drop(listener);

        let told = tokio::task::spawn_blocking(move || {
            let next = || events.recv_timeout(Duration::from_secs(10)).unwrap();
            [next(), next(), next()].map(|event| match event {
                Event::LinkUp { .. } => "up",
                Event::LinkDown { refused: false, .. } => "down",
                Event::LinkDown { refused: true, .. } => "gone",
                _ => "something else",
            })
        });
        assert_eq!(told.await.unwrap(), ["up", "down", "gone"]);
    }
}
