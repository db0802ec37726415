//! What a client gets: a replica's response as it streams in, or a short text of the gateway's own.

use crate::downstream::{Client, Phase};
use crate::endpoint::InFlight;
use crate::upstream::Link;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Says which failure of the gateway a response stands for. Removed from what replicas answer.
pub(crate) const ERROR_HEADER: HeaderName = HeaderName::from_static("x-quorate-error");

/// Why the gateway answers by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request is malformed or ambiguous; forwarding it could mean two things.
    Malformed(&'static str),
    Expectation,
    /// CONNECT and the like.
    NotImplemented,
    NoRoute,
    NoTable,
    NoReplica,
    Connect,
    Reset,
    Garbled,
    Timeout,
}

impl Refusal {
    /// Status, word for `X-Quorate-Error`, and what to do about it.
    fn parts(self) -> (StatusCode, Option<&'static str>, &'static str) {
        match self {
            Refusal::Malformed(what) => (StatusCode::BAD_REQUEST, None, what),
            Refusal::Expectation => {
                (StatusCode::EXPECTATION_FAILED, None, "only `Expect: 100-continue` is understood\n")
            }
            Refusal::NotImplemented => (StatusCode::NOT_IMPLEMENTED, None, "this gateway is not a forward proxy\n"),
            Refusal::NoRoute => (
                StatusCode::SERVICE_UNAVAILABLE,
                Some("no-route"),
                "No route leads from this host and path to a service. `quorate service list` shows the routes.\n",
            ),
            Refusal::NoTable => (
                StatusCode::SERVICE_UNAVAILABLE,
                Some("no-route"),
                "This gateway has not heard from a manager yet. Try again; `quorate status` shows the managers.\n",
            ),
            Refusal::NoReplica => (
                StatusCode::SERVICE_UNAVAILABLE,
                Some("no-replica"),
                "The service has no replica that takes requests. Try again; `quorate service show` tells why.\n",
            ),
            Refusal::Connect => (
                StatusCode::BAD_GATEWAY,
                Some("connect"),
                "No replica of the service accepts connections. Nothing was sent, so trying again is safe.\n",
            ),
            Refusal::Reset => (
                StatusCode::BAD_GATEWAY,
                Some("reset"),
                "The replica went away before it answered. It may have acted: check before you try again.\n",
            ),
            Refusal::Garbled => (
                StatusCode::BAD_GATEWAY,
                Some("reset"),
                "The replica's answer is not HTTP/1.1. `quorate logs` of the service may tell why.\n",
            ),
            Refusal::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                Some("timeout"),
                "The replica did not answer in time. It may still act: check before you try again.\n",
            ),
        }
    }

    /// Whether it counts as a request that the gateway could not get answered.
    pub(crate) fn is_failure(self) -> bool {
        self.parts().1.is_some()
    }

    pub(crate) fn response(self) -> Response<Reply> {
        let (status, word, text) = self.parts();
        let mut response = Response::new(Reply::Text(Some(Bytes::from_static(text.as_bytes()))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some(word) = word {
            headers.insert(ERROR_HEADER, HeaderValue::from_static(word));
        }
        if status == StatusCode::BAD_REQUEST {
            // What follows on this connection may be the rest of an attack.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[derive(Debug)]
pub(crate) enum Reply {
    Text(Option<Bytes>),
    Relay(Relay),
}

/// A response on its way from a replica. The request is in flight until this is at its end.
#[derive(Debug)]
pub(crate) struct Relay {
    /// The beginning of the body, if it is not on its way any more.
    early: Bytes,
    incoming: Incoming,
    client: Arc<Client>,
    /// Gone once the response is complete and the connection back in its pool.
    upstream: Option<(Link, InFlight)>,
}

impl Relay {
    pub(crate) fn new(early: Bytes, incoming: Incoming, client: Arc<Client>, link: Link, in_flight: InFlight) -> Self {
        let mut relay = Relay { early, incoming, client, upstream: Some((link, in_flight)) };
        relay.settle();
        relay
    }

    /// Ends the exchange if the response is complete.
    fn settle(&mut self) {
        if self.early.is_empty() && self.incoming.is_end_stream() {
            self.complete();
        }
    }

    fn complete(&mut self) {
        if let Some((mut link, in_flight)) = self.upstream.take() {
            // Not alive: the replica closes it, or still waits for a request body that it answered
            // too early; such a connection is never used again.
            if link.is_alive() {
                in_flight.endpoint().put_idle(link);
            }
            self.client.enter(Phase::Idle);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.settle();
        if self.upstream.is_some() {
            // Cut short; hyper closes the client's connection.
            self.client.enter(Phase::Idle);
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let relay = match self.get_mut() {
            Reply::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Reply::Relay(relay) => relay,
        };
        if !relay.early.is_empty() {
            let early = std::mem::take(&mut relay.early);
            relay.settle();
            return Poll::Ready(Some(Ok(Frame::data(early))));
        }
        let mut frame = Pin::new(&mut relay.incoming).poll_frame(cx);
        // Asking first tells the connection that there is room; then it may bring something.
        if frame.is_pending()
            && let Some((link, _)) = &mut relay.upstream
        {
            link.drive(cx);
            frame = Pin::new(&mut relay.incoming).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(None) => relay.complete(),
            Poll::Ready(Some(Ok(_))) => relay.settle(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Text(text) => text.is_none(),
            Reply::Relay(relay) => relay.early.is_empty() && relay.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Reply::Relay(relay) => match relay.incoming.size_hint().exact() {
                Some(left) => SizeHint::with_exact(relay.early.len() as u64 + left),
                None => SizeHint::new(),
            },
        }
    }
}
