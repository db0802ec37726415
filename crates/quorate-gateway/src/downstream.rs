//! Connections of clients: their deadlines, and the bytes of a request's head before hyper sees them.
//!
//! Deadlines are kept by a coarse clock that one task advances each second, rather than by a timer
//! per connection and request: a deadline then costs two stores, and is late by at most one tick.
//!
//! # Invariants
//! - Only a connection that waits (for a request, for the rest of a head) is closed by its deadline;
//!   a request that waits for its response is answered, and a body or tunnel has no deadline.

use crate::plane::Plane;
use crate::proxy;
use crate::table::Listen;
use futures_util::task::AtomicWaker;
use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Longest head of a request; hyper answers 431 to a longer one. It refuses more than 100 headers too.
const HEAD_MAX: usize = 32 * 1024;

/// What a client's connection is doing.
///
/// ```text
/// Idle ──first byte──▶ Head ──head complete──▶ Waiting ──response begins──▶ Relaying
///  ▲                                             │ own answer                 │ complete
///  └─────────────────────────────────────────────┴────────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Idle,
    Head,
    Waiting,
    Relaying,
}

impl Phase {
    fn from_bits(bits: u8) -> Phase {
        match bits {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Waiting,
            _ => Phase::Relaying,
        }
    }
}

/// One connection of a client, as far as others need to see it.
#[derive(Debug)]
pub(crate) struct Client {
    phase: AtomicU8,
    /// Tick of the last progress in this phase.
    since: AtomicU32,
    expired: AtomicBool,
    waker: AtomicWaker,
    clock: Arc<Clock>,
    pub listen: Listen,
    /// The client's address, ready to be put into a header.
    pub forwarded_for: HeaderValue,
    /// The head in progress has a Content-Length line. hyper drops it beside Transfer-Encoding.
    saw_length: AtomicBool,
}

/// Ticks since the gateway began.
#[derive(Debug, Default)]
struct Clock(AtomicU32);

impl Client {
    fn new(peer: IpAddr, listen: Listen, clock: Arc<Clock>) -> Self {
        let address = peer.to_canonical().to_string();
        Client {
            phase: AtomicU8::new(Phase::Idle as u8),
            since: AtomicU32::new(clock.0.load(Ordering::Relaxed)),
            expired: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            clock,
            listen,
            forwarded_for: HeaderValue::from_str(&address).expect("an IP address is a header value"),
            saw_length: AtomicBool::new(false),
        }
    }

    fn phase(&self) -> Phase {
        Phase::from_bits(self.phase.load(Ordering::Relaxed))
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.expired.store(false, Ordering::Relaxed);
        self.touch();
    }

    /// Something moved: the deadline of the phase begins anew.
    pub(crate) fn touch(&self) {
        self.since.store(self.clock.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Whether the head that was just read had a Content-Length line; asked once per request.
    pub(crate) fn take_saw_length(&self) -> bool {
        self.saw_length.swap(false, Ordering::Relaxed)
    }

    fn check(&self, now: u32, deadlines: &Deadlines) {
        let limit = match self.phase() {
            Phase::Idle => deadlines.idle,
            Phase::Head => deadlines.head,
            Phase::Waiting => deadlines.response,
            Phase::Relaying => return,
        };
        if now.wrapping_sub(self.since.load(Ordering::Relaxed)) > limit {
            self.expired.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Client> {
        Arc::new(Client::new(IpAddr::from([127, 0, 0, 1]), 0, Arc::default()))
    }
}

/// In ticks.
struct Deadlines {
    idle: u32,
    head: u32,
    response: u32,
}

/// Every connection of a client, so that deadlines and the end of the gateway reach them.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    open: Mutex<Open>,
    closing: AtomicBool,
    clock: Arc<Clock>,
    none_left: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    clients: BTreeMap<u64, Arc<Client>>,
}

impl Clients {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, client: Arc<Client>) -> u64 {
        let mut open = self.open();
        open.next += 1;
        let key = open.next;
        open.clients.insert(key, client);
        key
    }

    fn remove(&self, key: u64) {
        let mut open = self.open();
        open.clients.remove(&key);
        if open.clients.is_empty() {
            self.none_left.notify_waiters();
        }
    }

    /// From now on a connection ends with the request that is on it.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        for client in self.open().clients.values() {
            client.waker.wake();
        }
    }

    /// Requests that wait for a response look whether that still makes sense.
    pub(crate) fn wake_waiting(&self) {
        for client in self.open().clients.values() {
            if client.phase() == Phase::Waiting {
                client.waker.wake();
            }
        }
    }

    /// Waits until no client is connected.
    pub(crate) async fn empty(&self) {
        loop {
            let mut left = pin!(self.none_left.notified());
            left.as_mut().enable();
            if self.open().clients.is_empty() {
                return;
            }
            left.await;
        }
    }
}

/// Advances the coarse clock; ends what is past its deadline; tidies the pools of endpoints.
pub(crate) async fn sweep(plane: Arc<Plane>) {
    let limits = &plane.limits;
    let ticks = |time: Duration| u32::try_from(time.as_millis() / limits.tick.as_millis().max(1)).unwrap_or(u32::MAX);
    let deadlines = Deadlines {
        idle: ticks(limits.client_idle),
        head: ticks(limits.request_head),
        response: ticks(limits.response),
    };
    let mut interval = tokio::time::interval(limits.tick);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = plane.clients.clock.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for client in plane.clients.open().clients.values() {
            client.check(now, &deadlines);
        }
        plane.tidy(ticks(limits.upstream_idle));
    }
}

/// Takes a client's connection out of the registry however its task ends.
struct Registered {
    plane: Arc<Plane>,
    key: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.plane.clients.remove(self.key);
    }
}

/// Serves one connection of a client until it ends.
pub(crate) async fn serve(plane: Arc<Plane>, stream: TcpStream, peer: IpAddr, listen: Listen) {
    if stream.set_nodelay(true).is_err() {
        // It is closed already.
        return;
    }
    let client = Arc::new(Client::new(peer, listen, plane.clients.clock.clone()));
    let _registered = Registered { key: plane.clients.add(client.clone()), plane: plane.clone() };
    let io = TokioIo::new(ClientIo { stream, client: client.clone(), scan: HeadScan::default() });
    let service = {
        let (plane, client) = (plane.clone(), client.clone());
        service_fn(move |request| proxy::serve(plane.clone(), client.clone(), request))
    };
    let connection = http1::Builder::new()
        .max_header_size(HEAD_MAX)
        .max_buf_size(crate::upstream::BUFFER_MAX)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut told_to_close = false;
    std::future::poll_fn(|cx| {
        client.waker.register(cx.waker());
        if !told_to_close && plane.clients.closing.load(Ordering::Relaxed) {
            told_to_close = true;
            connection.as_mut().graceful_shutdown();
        }
        if client.is_expired() && matches!(client.phase(), Phase::Idle | Phase::Head) {
            return Poll::Ready(());
        }
        // Its errors are the client's: it went away, or sent what hyper has answered with 400.
        connection.as_mut().poll(cx).map(|_| ())
    })
    .await;
}

/// A client's socket that notices when a request begins and what its head says about lengths.
struct ClientIo {
    stream: TcpStream,
    client: Arc<Client>,
    scan: HeadScan,
}

impl ClientIo {
    fn received(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.client.phase() {
            Phase::Idle => {
                self.client.enter(Phase::Head);
                self.client.saw_length.store(false, Ordering::Relaxed);
                self.scan = HeadScan::default();
            }
            Phase::Head => {}
            // A body, or a head that a client sent ahead. For the latter hyper's own rule holds: of
            // both lengths chunked counts, the other is not forwarded, and the connection ends.
            Phase::Waiting | Phase::Relaying => return,
        }
        if self.scan.feed(bytes) {
            self.client.saw_length.store(true, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.received(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        // A slow reader of the end of a response is not idle.
        this.client.touch();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.client.touch();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Looks for a Content-Length line in a head, however its bytes are split.
///
/// hyper follows RFC 9112 6.3 and silently drops Content-Length beside Transfer-Encoding, so the
/// service never sees that both were there; this is the only place that can.
#[derive(Debug, Default)]
pub(crate) struct HeadScan {
    line: Line,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Line {
    /// So many bytes of the line are those of `content-length:`. 0: the line begins.
    Matching(usize),
    /// The request line, or a line of another header.
    #[default]
    Other,
    /// The empty line was there; what follows is no head.
    HeadOver,
}

impl HeadScan {
    const NAME: &[u8] = b"content-length:";

    /// Returns whether a Content-Length line was completed (its name and colon) in these bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> bool {
        let mut found = false;
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.line {
                Line::HeadOver => return found,
                Line::Other => {
                    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return found };
                    self.line = Line::Matching(0);
                    bytes = &bytes[end + 1..];
                }
                Line::Matching(0) if byte == b'\n' => self.line = Line::HeadOver,
                Line::Matching(0) if byte == b'\r' => bytes = rest,
                Line::Matching(matched) if Self::NAME[matched].eq_ignore_ascii_case(&byte) => {
                    bytes = rest;
                    if matched + 1 == Self::NAME.len() {
                        found = true;
                        self.line = Line::Other;
                    } else {
                        self.line = Line::Matching(matched + 1);
                    }
                }
                // The byte is looked at again: it may be the end of the line.
                Line::Matching(_) => self.line = Line::Other,
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_line_is_found_however_the_head_is_split_and_only_in_the_head() {
        let both = b"POST /content-length: HTTP/1.1\r\nHost: a\r\ncOntent-Length: 3\r\n\r\nabc";
        for split in 0..=both.len() {
            let mut scan = HeadScan::default();
            let found = [scan.feed(&both[..split]), scan.feed(&both[split..])];
            assert_eq!(found.iter().filter(|&&found| found).count(), 1, "split at {split}");
        }
        for head in [
            "GET /content-length: HTTP/1.1\r\nHost: a\r\n\r\ncontent-length: 3\r\n",
            "GET / HTTP/1.1\r\nX-Content-Length: 3\r\nContent-Lengths: 3\r\n\r\n",
            "GET / HTTP/1.1\nContent-Lengt\n\ncontent-length: 3\n",
        ] {
            assert!(!HeadScan::default().feed(head.as_bytes()), "{head}");
        }
    }

    #[test]
    fn a_deadline_counts_from_the_last_progress() {
        let client = Client::for_tests();
        let deadlines = Deadlines { idle: 3, head: 1, response: 5 };
        client.check(3, &deadlines);
        assert!(!client.is_expired());
        client.check(4, &deadlines);
        assert!(client.is_expired());
        client.enter(Phase::Relaying);
        client.check(1000, &deadlines);
        assert!(!client.is_expired());
    }
}
