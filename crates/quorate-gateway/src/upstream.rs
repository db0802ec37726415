//! Connections to replicas.
//!
//! A connection has no task of its own: whoever uses it drives it, in the task of the client's
//! connection. This saves two hand-overs between tasks per request and the memory of a task per
//! connection. A connection that waits in the pool is driven by nobody; it is asked whether it is
//! still open when it is taken, and once a second.

use crate::downstream::Client;
use crate::endpoint::Endpoint;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;

/// Longest head of a response, and what may wait in a buffer of one connection.
pub(crate) const BUFFER_MAX: usize = 64 * 1024;

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection to a replica with no request on it, or one.
pub(crate) struct Link {
    sender: SendRequest<RequestBody>,
    /// Reads and writes the socket; gone once the connection is over.
    driver: Option<Driver>,
    /// Rounds of tidying since it was used.
    rested: u32,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("open", &self.driver.is_some()).finish_non_exhaustive()
    }
}

/// Why a request that went to a replica has no response.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The replica saw nothing of it; here it is, as it was.
    Unsent(Box<Request<RequestBody>>),
    /// The connection ended, or the replica's server fell silent, before a response came. The replica
    /// may have acted.
    Reset,
    /// What came is not a response, or does not belong to this request.
    Garbled,
    /// Nothing came in time. The replica may still act.
    Timeout,
}

impl Link {
    /// # Errors
    /// The system's; [`io::ErrorKind::TimedOut`] after `patience`.
    pub(crate) async fn connect(address: SocketAddr, patience: Duration) -> io::Result<Link> {
        let stream = tokio::time::timeout(patience, TcpStream::connect(address))
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        Ok(Link { sender, driver: Some(Box::pin(connection.with_upgrades())), rested: 0 })
    }

    /// Moves bytes between the socket and whoever waits for them.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        // An error of the connection reaches the request or the body that waits on it.
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether a request may be sent. Nobody is woken when this changes.
    pub(crate) fn is_alive(&mut self) -> bool {
        // Also leaves no waker of a finished task behind in the socket.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Counts a round in which nobody used it.
    pub(crate) fn rest(&mut self) -> u32 {
        self.rested += 1;
        self.rested
    }

    /// Sends a request and waits for the head of the response.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
        client: &Client,
        endpoint: &Endpoint,
    ) -> Result<Response<Incoming>, Lost> {
        self.rested = 0;
        let mut response = pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        std::future::poll_fn(|cx| {
            if let Some(running) = driver
                && running.as_mut().poll(cx).is_ready()
            {
                *driver = None;
            }
            match response.as_mut().poll(cx) {
                Poll::Ready(Ok(response)) => Poll::Ready(Ok(response)),
                Poll::Ready(Err(mut failed)) => Poll::Ready(Err(match failed.take_message() {
                    Some(request) => Lost::Unsent(Box::new(request)),
                    None if failed.error().is_parse() => Lost::Garbled,
                    None => Lost::Reset,
                })),
                Poll::Pending if client.is_expired() => Poll::Ready(Err(Lost::Timeout)),
                Poll::Pending if endpoint.is_silent() => Poll::Ready(Err(Lost::Reset)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Waits for all of a body, or for what comes of it within `patience`.
    pub(crate) async fn gather(&mut self, body: &mut Incoming, patience: Duration) -> Result<Bytes, Lost> {
        let mut here: Vec<Bytes> = Vec::new();
        let whole = std::future::poll_fn(|cx| {
            loop {
                let mut frame = Pin::new(&mut *body).poll_frame(cx);
                if frame.is_pending() {
                    self.drive(cx);
                    frame = Pin::new(&mut *body).poll_frame(cx);
                }
                match frame {
                    Poll::Ready(Some(Ok(frame))) => here.extend(frame.into_data().ok()),
                    Poll::Ready(Some(Err(error))) if error.is_parse() => return Poll::Ready(Err(Lost::Garbled)),
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Lost::Reset)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
                if body.is_end_stream() {
                    return Poll::Ready(Ok(()));
                }
            }
        });
        // Late is no loss: the rest is passed on as it comes.
        tokio::time::timeout(patience, whole).await.unwrap_or(Ok(()))?;
        Ok(match here.as_slice() {
            [one] => one.clone(),
            _ => here.concat().into(),
        })
    }

    /// Drives what is left of the connection, for instance until it is handed over to a tunnel.
    pub(crate) async fn finish(self) {
        if let Some(driver) = self.driver {
            let _ = driver.await;
        }
    }
}

/// What a client sends after the head of its request.
pub(crate) enum RequestBody {
    Empty,
    Stream { incoming: Incoming, client: Arc<Client> },
}

impl RequestBody {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, RequestBody::Empty)
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Empty" } else { "Stream" })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Stream { incoming, client } => {
                let frame = Pin::new(incoming).poll_frame(cx);
                if frame.is_ready() {
                    // The time for the response begins anew: a long upload is no slow replica.
                    client.touch();
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Stream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Stream { incoming, .. } => incoming.size_hint(),
        }
    }
}
