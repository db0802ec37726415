//! The node link: one TLS connection to each peer for what this node says, one from each for what
//! it hears.
//!
//! The core thread writes to sockets itself: a message is encrypted and goes out with one system
//! call and without waking anybody. What the socket does not take at once waits in the [`Outbox`],
//! and a task of its own goes on when the socket is ready again.
//!
//! A connection that ends is dialled again at once. When that is refused, nobody listens any more:
//! the peer's process is gone, and consensus is told so (it need not wait for silence).
//!
//! # Invariants
//! - Nothing is said before both sides have shown a certificate of this cluster's authority, and
//!   neither is expelled ([`tls`]). Connections with a node that is expelled later end at once.
//! - Each node is heard on one connection at a time: a copy of it that runs elsewhere is not listened to
//!   ([`voices`]).
//! - The first frame of each side is a hello; one that does not fit, or that names another node than
//!   the certificate does, ends the connection.
//! - An outbox holds at most [`OUTBOX_MAX`] bytes; a peer that is further behind is disconnected.
//!   Consensus sends again whatever got lost.

mod beside;
mod outbox;
mod tls;
mod voices;

use super::away::{self, Away};
use super::inbox::Inbox;
use super::turned_away::TurnedAway;
use bytes::{Bytes, BytesMut};
use quorate_model::id::{ClusterId, NodeId};
use quorate_node::Event;
use quorate_node::wire::{self, Body, Hello};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

pub(super) use beside::{Beside, KeyNews};
use outbox::Connection;
pub(super) use outbox::Outbox;
pub(super) use tls::{Accepted, Dialled, LinkTls, Stream, Validity};
use voices::{Voice, Voices};

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

/// A peer that is not believed, or does not believe this node, is dialled again after this: it
/// takes a person, or the admission of a node, to change that.
const REFUSED: Duration = Duration::from_secs(1);
/// Who is refused is said this often at most; anybody can knock.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// What the operator of an expelled node may do.
pub(crate) const BRING_BACK: &str = "Empty the data directory and join with a new token to bring the server back.";

/// What happened to a node that takes so many of the others for strangers that it hears no leader.
pub(crate) const MISSED_ROTATION: &str = "was away while the CA was rotated";

/// What its operator may do.
pub(crate) fn join_anew(node: &str) -> String {
    format!(
        "`quorate node remove {node}` on another node if it is still listed there. Then empty the data directory here \
         and join with a new token."
    )
}

/// Who this node is on the link.
#[derive(Debug, Clone)]
pub(super) struct LinkIdentity {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    /// Where this node's own link is found.
    pub(super) link: SocketAddr,
    /// Of the link's protocol.
    pub(super) version: u32,
    /// Of the cluster, as this node knows it.
    pub(super) incarnation: u64,
    /// The newest incarnation that anybody spoke of.
    pub(super) newer: watch::Sender<u64>,
    /// Members that were given up when the cluster was recovered.
    pub(super) lost: watch::Receiver<BTreeSet<NodeId>>,
    pub(super) tls: Arc<LinkTls>,
    pub(super) beside: Beside,
    /// Whether this node is silent to all others.
    pub(super) away: Away,
}

impl LinkIdentity {
    fn hello(&self, bulk: bool) -> Hello {
        Hello {
            version: self.version,
            cluster: Bytes::copy_from_slice(self.cluster.0.as_bytes()),
            node: Bytes::copy_from_slice(self.node.0.as_bytes()),
            bulk,
            link: self.link.to_string(),
            incarnation: self.incarnation,
            refused: String::new(),
        }
    }

    /// Returns when a connection for bulk data with `peer` has to end.
    pub(super) async fn bulk_over(self, validity: Validity, peer: NodeId) -> io::Error {
        tokio::select! {
            over = validity.over(peer) => over,
            () = self.away.begins() => away::away(),
        }
    }

    /// The hello of a node whose certificate is that of `shown`.
    fn check(&self, hello: &Hello, shown: NodeId) -> io::Result<()> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if hello.cluster != self.cluster.0.as_bytes().as_slice() {
            return refuse("the other side belongs to another cluster".into());
        }
        let said = hello.node_id().map_err(io::Error::other)?;
        if said != shown {
            return refuse(format!("the other side says that it is node {said} and shows the certificate of {shown}"));
        }
        Ok(())
    }

    /// Both sides see both numbers here too.
    fn check_version(&self, hello: &Hello, peer: NodeId) -> io::Result<()> {
        let (ours, theirs) = (self.version, hello.version);
        if ours == theirs {
            return Ok(());
        }
        Err(tls::refused(format!(
            "incompatible version: this node speaks version {ours} of the link and node {peer} version {theirs}: \
             install the same quorate on both"
        )))
    }

    /// Members of different incarnations do not speak to each other: what they hold may contradict. Both sides
    /// see both numbers, so both can say it.
    fn check_incarnation(&self, hello: &Hello, peer: NodeId) -> io::Result<()> {
        let (ours, theirs) = (self.incarnation, hello.incarnation.max(1));
        if theirs > ours {
            self.newer.send_if_modified(|known| {
                let newer = theirs.max(*known);
                std::mem::replace(known, newer) != newer
            });
            return Err(tls::refused(format!(
                "incompatible incarnation: this node is of {ours} and node {peer} of {theirs}: the cluster was \
                 recovered without this one. If it is a manager, what it holds is not used any more: stop it, keep a \
                 copy of its data directory if something may be missed, empty it, and join with a new token of \
                 `quorate add-node`. Any other node follows by itself"
            )));
        }
        if theirs < ours || self.lost.borrow().contains(&peer) {
            return Err(tls::refused(format!(
                "incompatible incarnation: node {peer} is of {theirs} and this one of {ours}, since the cluster was \
                 recovered. A manager that was given up may join with an empty data directory and a new token; any \
                 other node follows by itself"
            )));
        }
        Ok(())
    }
}

/// The links to all other nodes of the cluster.
#[derive(Debug)]
pub(super) struct Calls {
    me: LinkIdentity,
    runtime: tokio::runtime::Handle,
    inbox: Inbox,
    calls: BTreeMap<NodeId, Call>,
}

#[derive(Debug)]
struct Call {
    outbox: Arc<Outbox>,
    links: watch::Sender<Vec<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Calls {
    /// None at first; the node says whom it knows.
    pub(super) fn new(me: LinkIdentity, runtime: tokio::runtime::Handle, inbox: Inbox) -> Calls {
        Calls { me, runtime, inbox, calls: BTreeMap::new() }
    }

    /// Opens links to new nodes, and ends those to nodes that are not of the cluster any more.
    pub(super) fn set(&mut self, peers: &BTreeMap<NodeId, Vec<String>>) {
        for (peer, call) in self.calls.extract_if(.., |peer, _| !peers.contains_key(peer)) {
            info!(%peer, "not of the cluster any more: its link is ended");
            call.task.abort();
            self.me.beside.remove(peer);
            call.outbox.disconnect();
        }
        for (peer, links) in peers {
            let links = addresses(links);
            if let Some(call) = self.calls.get(peer) {
                call.links.send_replace(links);
                continue;
            }
            let (outbox, links) = (Arc::new(Outbox::new(self.me.away.clone())), watch::Sender::new(links));
            let dial = dial(self.me.clone(), *peer, links.subscribe(), outbox.clone(), self.inbox.clone());
            self.me.beside.add(*peer, outbox.clone());
            let task = self.runtime.spawn(dial);
            self.calls.insert(*peer, Call { outbox, links, task });
        }
    }

    /// See [`Outbox::send`]. To a node that is not of the cluster nothing is sent.
    pub(super) fn send(&self, to: NodeId, messages: impl Iterator<Item = Body>) {
        if let Some(call) = self.calls.get(&to) {
            call.outbox.send(messages);
        }
    }
}

/// Nodes say where they are found by numbers; whatever else they say leads nowhere.
pub(super) fn addresses(links: &[String]) -> Vec<SocketAddr> {
    links.iter().filter_map(|link| link.parse().ok()).collect()
}

/// Keeps a connection to `peer`, at any of its addresses, until the task is ended.
async fn dial(
    me: LinkIdentity,
    peer: NodeId,
    mut links: watch::Receiver<Vec<SocketAddr>>,
    outbox: Arc<Outbox>,
    inbox: Inbox,
) {
    let mut failures = 0;
    // Which of the addresses to try, and the one that worked last: it is tried first.
    let mut choice = 0;
    let mut worked = None;
    let mut up = false;
    // Known to have ended. One that was never there has not.
    let mut gone = true;
    let said = Mutex::new(None);
    let mut told_expelled = false;
    loop {
        let known = links.borrow_and_update().clone();
        let Some(address) = known.get(choice % known.len().max(1)).copied() else {
            // Nobody knows where it is.
            if links.changed().await.is_err() {
                return;
            }
            continue;
        };
        let patience = if up { PROBE } else { SILENCE };
        let validity = me.tls.validity();
        match tokio::time::timeout(patience, handshake(&me, peer, address))
            .await
            .unwrap_or_else(|late| Err(late.into()))
        {
            Ok(connection) => {
                failures = 0;
                told_expelled = false;
                worked = Some(address);
                (up, gone) = (true, false);
                let stream = connection.stream.clone();
                outbox.connect(connection);
                debug!(%peer, %address, "link up");
                inbox.send(Event::LinkUp { peer }).await;
                me.beside.link_up(peer);
                let ended = tokio::select! {
                    ended = outbox.closed(&stream) => ended,
                    ended = outbox.pump(&stream) => ended,
                    over = validity.over(peer) => Err(over),
                    // What was said meanwhile is lost, and both sides have to know that.
                    () = me.away.comes_back() => Err(away::away()),
                };
                outbox.disconnect();
                debug!(%peer, reason = ?ended, "link ended");
                // Dial again before anybody is told: the answer says whether the peer lives.
            }
            Err(error) => {
                // Refused where it never was says nothing about it.
                let refused = error.kind() == io::ErrorKind::ConnectionRefused && worked == Some(address);
                if up || (refused && !gone) {
                    (up, gone) = (false, refused);
                    info!(%peer, refused, %error, "link down");
                    inbox.send(Event::LinkDown { peer, refused }).await;
                } else if tls::is_refusal(&error) {
                    if is_time(&said) {
                        warn!(%peer, %address, %error, "no link");
                    }
                } else if failures == REDIAL.len() {
                    info!(%peer, %error, "still cannot reach the peer");
                }
                // The entry that expelled this node may never reach it: this is how its operator hears of it.
                if tls::says_expelled(&error) {
                    if !std::mem::replace(&mut told_expelled, true) {
                        error!(%peer, "this node was expelled, says a node of its cluster. {BRING_BACK}");
                    }
                    inbox.send(Event::Expelled { by: peer }).await;
                }
                if tls::is_of_another_authority(&error) {
                    inbox.send(Event::Stranger { peer }).await;
                }
                let pause = if tls::is_refusal(&error) { REFUSED } else { REDIAL[failures.min(REDIAL.len() - 1)] };
                tokio::time::sleep(pause).await;
                failures += 1;
                if !up {
                    choice = (choice + 1) % known.len();
                }
            }
        }
    }
}

async fn handshake(me: &LinkIdentity, peer: NodeId, address: SocketAddr) -> io::Result<Connection> {
    let (stream, tls) = greeted(me, peer, address, false).await?.into_inner();
    Ok(Connection { stream: Arc::new(stream), tls })
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(SILENCE, TcpStream::connect(address)).await??;
    tune(&stream)?;
    Ok(stream)
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(SILENCE))
}

/// A connection on which both sides have said hello.
async fn greeted(me: &LinkIdentity, peer: NodeId, address: SocketAddr, bulk: bool) -> io::Result<Dialled> {
    me.away.check()?;
    tokio::select! {
        greeted = greet(me, peer, address, bulk) => greeted,
        () = me.away.begins() => Err(away::away()),
    }
}

async fn greet(me: &LinkIdentity, peer: NodeId, address: SocketAddr, bulk: bool) -> io::Result<Dialled> {
    let stream = connect(address).await?;
    let mut stream = tokio::time::timeout(SILENCE, me.tls.dial(stream, peer, address)).await??;
    let mut out = BytesMut::new();
    Body::Hello(me.hello(bulk)).encode_into(&mut out);
    // The other side may have refused this node's certificate meanwhile. Then this fails because the
    // connection is closed, and what is read says why.
    let said = say(&mut stream, &out).await;
    let body = tokio::time::timeout(SILENCE, read_frame(&mut stream)).await?.map_err(tls::explain)?;
    said?;
    match body {
        Body::Hello(hello) => {
            me.check(&hello, peer)?;
            if !hello.refused.is_empty() {
                return Err(tls::refused(hello.refused));
            }
            me.check_version(&hello, peer).and_then(|()| me.check_incarnation(&hello, peer))?;
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the other side does not say hello")),
    }
    Ok(stream)
}

pub(super) async fn say(stream: &mut impl Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// A connection for bulk data to `peer`, at the first of its addresses where it answers.
pub(super) async fn connect_bulk(me: &LinkIdentity, peer: NodeId, links: &[SocketAddr]) -> io::Result<Dialled> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "nobody knows where it is");
    for address in links {
        match greeted(me, peer, *address, true).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Reads one frame, and not a byte more.
pub(super) async fn read_frame(stream: &mut impl Stream) -> io::Result<Body> {
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
    fn receive(&self, from: NodeId, stream: Accepted) -> impl Future<Output = ()> + Send;
}

/// Accepts peers for as long as the node runs. Those who are not believed are told to `refused`.
pub(super) async fn accept<B: BulkReceiver>(
    listener: TcpListener,
    me: LinkIdentity,
    inbox: Inbox,
    bulk: B,
    refused: mpsc::Sender<TurnedAway>,
) {
    let said = Arc::new(Mutex::new(None));
    let voices = Voices::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others may be closed meanwhile.
                warn!(%error, "cannot accept a peer");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (me, inbox, bulk, said) = (me.clone(), inbox.clone(), bulk.clone(), said.clone());
        let (refused, voices) = (refused.clone(), voices.clone());
        tokio::spawn(async move {
            match serve_peer((stream, from), me, inbox, bulk, voices).await {
                Err(error) if tls::is_refusal(&error) => {
                    if is_time(&said) {
                        warn!(%from, %error, "not let in");
                    }
                    // What does not fit was one of very many.
                    let _ = refused.try_send((from, error.to_string()));
                }
                Err(error) => debug!(%from, %error, "a peer's connection ended"),
                Ok(()) => {}
            }
        });
    }
}

/// Whether [`SAID_EVERY`] is over, and then it begins again.
fn is_time(said: &Mutex<Option<Instant>>) -> bool {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let over = said.is_none_or(|said| said.elapsed() >= SAID_EVERY);
    if over {
        *said = Some(Instant::now());
    }
    over
}

async fn serve_peer<B: BulkReceiver>(
    (stream, address): (TcpStream, SocketAddr),
    me: LinkIdentity,
    inbox: Inbox,
    bulk: B,
    voices: Voices,
) -> io::Result<()> {
    tune(&stream)?;
    if me.away.is_now() {
        // The kernel has answered for this node; it says nothing itself.
        tokio::time::sleep(SILENCE).await;
        return Err(away::away());
    }
    let validity = me.tls.validity();
    let (stream, from, hello, voice) = tokio::select! {
        greeted = welcome(stream, address, &me, &voices) => greeted?,
        () = me.away.begins() => return Err(away::away()),
    };
    let Some(voice) = voice else {
        tokio::select! {
            () = bulk.receive(from, stream) => return Ok(()),
            over = me.clone().bulk_over(validity, from) => return Err(over),
        }
    };
    let serve = async {
        if !hello.link.is_empty() {
            inbox.send(Event::Called { peer: from, link: hello.link }).await;
        }
        hear(from, stream, inbox, &me, &voice).await
    };
    tokio::select! {
        ended = serve => ended,
        over = validity.over(from) => Err(over),
        () = me.away.comes_back() => Err(away::away()),
    }
}

/// A connection whose two sides have said hello; without a voice it is for bulk data.
async fn welcome(
    stream: TcpStream,
    address: SocketAddr,
    me: &LinkIdentity,
    voices: &Voices,
) -> io::Result<(Accepted, NodeId, Hello, Option<Voice>)> {
    let (mut stream, from) = tokio::time::timeout(SILENCE, me.tls.accept(stream)).await??;
    let hello = match tokio::time::timeout(SILENCE, read_frame(&mut stream)).await?? {
        Body::Hello(hello) => hello,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the first frame is no hello")),
    };
    me.check(&hello, from)?;
    let voice = if hello.bulk { Ok(None) } else { voices.begin(from, address).map(Some) };
    let refused = voice.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let mut out = BytesMut::new();
    Body::Hello(Hello { refused, ..me.hello(hello.bulk) }).encode_into(&mut out);
    say(&mut stream, &out).await?;
    let voice = voice.map_err(|twice| tls::refused(twice.to_string()))?;
    // Looked at after the answer, so that the other side knows as well what does not fit.
    me.check_version(&hello, from).and_then(|()| me.check_incarnation(&hello, from))?;
    Ok((stream, from, hello, voice))
}

async fn hear(from: NodeId, mut stream: Accepted, inbox: Inbox, me: &LinkIdentity, voice: &Voice) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    loop {
        while let Some(message) = Body::take(&mut buffer).map_err(io::Error::other)? {
            if me.away.is_now() {
                continue;
            }
            if let Some(message) = me.beside.take(from, message) {
                inbox.send(Event::Received { from, message }).await;
            }
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        voice.speaks();
    }
}

#[cfg(test)]
pub(super) mod tests;
