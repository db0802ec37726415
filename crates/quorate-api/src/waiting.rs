//! Clients that keep the server waiting: how long each may, and how many may at a time.
//!
//! A connection waits for its client while a handshake, a request's head or its body has not come
//! whole, and while an answer is not taken. All other time is the server's own: a request that is
//! worked on, a stream that has nothing to say.
//!
//! Every wait ends. Time counts from its beginning, so whoever drips bytes has no more of it than
//! whoever is silent; only an answer, which may be a stream without end, counts from the last byte
//! that was taken.
//!
//! When more than [`Limits::waiting`] wait, the connection that has waited longest is cut off. Why
//! not the newcomer: a client that means it has said what it wants within milliseconds, so a flood
//! of silent ones pushes itself out and nobody else.
//!
//! # Invariants
//! - At most [`Limits::waiting`] connections wait, beside those that are being cut off.
//! - A connection that waits for nothing of its client is never cut off here.

use axum::body::Body as AnswerBody;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

/// How long a client may keep the server waiting, and how many may.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest wait for the handshake of a connection.
    pub handshake: Duration,
    /// Longest wait for the head of a request, also on a connection that is kept open.
    pub head: Duration,
    /// Longest wait for the body of a request.
    pub body: Duration,
    /// Longest time in which a client takes nothing of an answer.
    pub answer: Duration,
    /// Most connections that wait for their clients at a time; 1 at least.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake: Duration::from_secs(10),
            head: Duration::from_mins(1),
            body: Duration::from_mins(1),
            answer: Duration::from_mins(1),
            waiting: 2_048,
        }
    }
}

/// The body of a request did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the body took longer than {} s", .0.as_secs_f64())]
pub(crate) struct BodyTooSlow(Duration);

/// Who waits, longest first.
#[derive(Debug)]
pub(crate) struct Waiting {
    most: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

impl Waiting {
    pub(crate) fn new(limits: Limits) -> Arc<Waiting> {
        Arc::new(Waiting { most: limits.waiting.max(1), queue: Mutex::default() })
    }

    /// A new connection, which waits.
    pub(crate) fn connected(self: &Arc<Waiting>) -> Arc<Client> {
        let cut = Arc::default();
        let place = Place { serves: false, stalls: false, ticket: Some(self.enter(&cut)) };
        Arc::new(Client { waiting: self.clone(), cut, place: Mutex::new(place) })
    }

    fn enter(&self, cut: &Arc<Notify>) -> u64 {
        let mut queue = lock(&self.queue);
        if queue.waiting.len() >= self.most
            && let Some((_, longest)) = queue.waiting.pop_first()
        {
            longest.notify_one();
        }
        let ticket = queue.next;
        queue.next += 1;
        queue.waiting.insert(ticket, cut.clone());
        ticket
    }

    fn leave(&self, ticket: u64) {
        lock(&self.queue).waiting.remove(&ticket);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's client.
#[derive(Debug)]
pub(crate) struct Client {
    waiting: Arc<Waiting>,
    cut: Arc<Notify>,
    place: Mutex<Place>,
}

#[derive(Debug)]
struct Place {
    /// A whole request is here, and its answer is not yet handed over.
    serves: bool,
    /// The client takes nothing of what is written.
    stalls: bool,
    /// While it waits. [`Waiting`] does not know it any more if it is being cut off.
    ticket: Option<u64>,
}

impl Client {
    fn change(&self, change: impl FnOnce(&mut Place)) {
        let mut place = lock(&self.place);
        change(&mut place);
        let waits = !place.serves || place.stalls;
        match place.ticket {
            None if waits => place.ticket = Some(self.waiting.enter(&self.cut)),
            Some(ticket) if !waits => {
                self.waiting.leave(ticket);
                place.ticket = None;
            }
            None | Some(_) => {}
        }
    }

    /// Done when this connection must make room.
    pub(crate) async fn cut_off(&self) {
        loop {
            self.cut.notified().await;
            // Its request may have come in the meantime.
            if lock(&self.place).ticket.is_some() {
                return;
            }
        }
    }

    /// A request whose head has come, on its way to a handler.
    pub(crate) fn arriving(self: &Arc<Client>, body: Incoming, limits: Limits) -> Arriving {
        if body.is_end_stream() {
            self.change(|place| place.serves = true);
        }
        Arriving { body, client: self.clone(), patience: limits.body, late: None }
    }

    /// An answer on its way to the client.
    pub(crate) fn leaving(self: &Arc<Client>, answer: Response) -> http::Response<Leaving> {
        answer.map(|body| Leaving { body, client: self.clone() })
    }

    /// The connection's stream, as it is written to.
    pub(crate) fn taking<S>(self: &Arc<Client>, stream: S, limits: Limits) -> Taking<S> {
        Taking { stream, client: self.clone(), patience: limits.answer, late: None }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(ticket) = lock(&self.place).ticket.take() {
            self.waiting.leave(ticket);
        }
    }
}

/// The body of a request as it comes. Its connection waits until it is read to its end, or given up.
pub(crate) struct Arriving {
    body: Incoming,
    client: Arc<Client>,
    patience: Duration,
    /// From the first time that something was missing.
    late: Option<Pin<Box<Sleep>>>,
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            if frame.is_none() || this.body.is_end_stream() {
                this.client.change(|place| place.serves = true);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let patience = this.patience;
        ready!(this.late.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyTooSlow(patience).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.client.change(|place| place.serves = true);
    }
}

/// The body of an answer. When it is handed over, the connection waits for the next request.
pub(crate) struct Leaving {
    body: AnswerBody,
    client: Arc<Client>,
}

impl Body for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.client.change(|place| place.serves = false);
    }
}

/// A stream whose writes fail when the other side takes nothing for too long.
pub(crate) struct Taking<S> {
    stream: S,
    client: Arc<Client>,
    patience: Duration,
    /// While nothing is taken.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Taking<S> {
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(written) = write(Pin::new(&mut self.stream), cx) {
            if self.late.take().is_some() {
                self.client.change(|place| place.stalls = false);
            }
            return Poll::Ready(written);
        }
        let late = match &mut self.late {
            Some(late) => late,
            None => {
                self.client.change(|place| place.stalls = true);
                self.late.insert(Box::pin(sleep(self.patience)))
            }
        };
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of the answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taking<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taking<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::Instant;

    fn is_cut(client: &Client) -> bool {
        let cut = std::pin::pin!(client.cut_off());
        cut.poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    fn most(waiting: usize) -> Arc<Waiting> {
        Waiting::new(Limits { waiting, ..Limits::default() })
    }

    #[test]
    fn the_longest_waiting_makes_room_and_nobody_who_is_served() {
        let waiting = most(2);
        let [served, first, second] = [(); 3].map(|()| {
            let client = waiting.connected();
            client.change(|place| place.serves = true);
            client
        });
        first.change(|place| place.serves = false);
        second.change(|place| place.serves = false);
        let third = waiting.connected();
        assert!(is_cut(&first) && !is_cut(&second) && !is_cut(&third));
        second.change(|place| place.serves = true);
        let _fourth = waiting.connected();
        assert!(!is_cut(&third), "the second made room by saying what it wants");
        drop(waiting.connected());
        assert!(is_cut(&third) && !is_cut(&second) && !is_cut(&served));
    }

    #[test]
    fn a_request_that_comes_just_in_time_is_served() {
        let waiting = most(1);
        let client = waiting.connected();
        let _other = waiting.connected();
        client.change(|place| place.serves = true);
        assert!(!is_cut(&client));
        client.change(|place| place.serves = false);
        let _another = waiting.connected();
        assert!(is_cut(&client), "it is counted again");
    }

    #[test]
    fn who_is_gone_does_not_wait_any_more() {
        let waiting = most(2);
        let first = waiting.connected();
        for _ in 0..10 {
            drop(waiting.connected());
        }
        assert!(!is_cut(&first));
        drop(first);
        assert!(lock(&waiting.queue).waiting.is_empty());
    }

    fn taking(waiting: &Arc<Waiting>) -> (Arc<Client>, Taking<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(16);
        let client = waiting.connected();
        client.change(|place| place.serves = true);
        (client.clone(), client.taking(ours, Limits::default()), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_given_up_after_its_time() {
        let (_, mut ours, _theirs) = taking(&most(2));
        let began = Instant::now();
        let error = ours.write_all(&[0; 17]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, Duration::from_mins(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_taken_slowly_arrives_whole() {
        let (_, mut ours, mut theirs) = taking(&most(2));
        let slowly = async {
            let mut taken = vec![0; 160];
            for piece in taken.chunks_mut(16) {
                sleep(Duration::from_secs(50)).await;
                theirs.read_exact(piece).await.unwrap();
            }
            taken
        };
        let (written, taken) = tokio::join!(ours.write_all(&[7; 160]), slowly);
        written.unwrap();
        assert_eq!(taken, [7; 160]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_waits_and_who_takes_again_does_not() {
        let waiting = most(1);
        let (client, mut ours, mut theirs) = taking(&waiting);
        let stalled = async {
            ours.write_all(&[0; 32]).await.unwrap();
            ours
        };
        let looking = async {
            tokio::task::yield_now().await;
            assert!(lock(&client.place).ticket.is_some());
            theirs.read_exact(&mut [0; 32]).await.unwrap();
        };
        tokio::join!(stalled, looking);
        assert!(lock(&client.place).ticket.is_none());
        let _other = waiting.connected();
        assert!(!is_cut(&client));
    }
}
