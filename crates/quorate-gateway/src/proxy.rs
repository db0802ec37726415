//! One request: admitted, routed, sent to a replica, and sent again elsewhere when that is safe.
//!
//! # Invariants
//! - A request that may have reached a replica is sent again only if its method is idempotent and it
//!   has no body; one that reached none is sent again whatever it is, body and all.
//! - The same replica is tried twice only when there is no other.
//! - A client sees nothing of a short response to such a request before all of it is here, so that a
//!   replica that dies between head and body is not noticed.

use crate::counters::Counted;
use crate::downstream::{Client, Phase};
use crate::endpoint::{Endpoint, InFlight};
use crate::headers;
use crate::plane::Plane;
use crate::reply::{Refusal, Relay, Reply};
use crate::table::{Avoid, Pick};
use crate::upstream::{Link, Lost, RequestBody};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a request may be sent to a replica, the first time included.
const SENDS_MAX: u32 = 3;
/// A response of at most so many bytes, which says so, is waited for as a whole.
const SHORT: u64 = 8 << 10;
/// What it may take from the head to the end of a short response before it is passed on as it comes.
const SHORTLY: Duration = Duration::from_millis(100);

/// Answers one request of a client.
pub(crate) async fn serve(
    plane: Arc<Plane>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    plane.count_request();
    client.enter(Phase::Waiting);
    Ok(match forward(&plane, &client, request).await {
        Ok(response) => response,
        Err(refusal) => {
            if refusal.is_failure() {
                plane.count_failed();
            }
            client.enter(Phase::Idle);
            refusal.response()
        }
    })
}

async fn forward(
    plane: &Arc<Plane>,
    client: &Arc<Client>,
    mut request: Request<Incoming>,
) -> Result<Response<Reply>, Refusal> {
    let saw_length = client.take_saw_length();
    if saw_length && request.headers().contains_key(http::header::TRANSFER_ENCODING) {
        return Err(Refusal::Malformed(headers::BOTH_LENGTHS));
    }
    headers::admit(&mut request)?;
    let upgrade = headers::wanted_upgrade(request.headers());
    let tunnel = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    headers::prepare_request(request.headers_mut(), &client.forwarded_for, upgrade);
    *request.version_mut() = Version::HTTP_11;
    let request = request.map(|incoming| {
        if incoming.is_end_stream() {
            RequestBody::Empty
        } else {
            RequestBody::Stream { incoming, client: client.clone() }
        }
    });

    let mut counted = None;
    let answer = send(plane, client, request, &mut counted).await;
    if let Some(counted) = counted {
        counted.answered();
    }
    let Answer { response, early, link, in_flight } = answer?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let tunnel = tunnel.ok_or(Refusal::Garbled)?;
        client.enter(Phase::Relaying);
        return Ok(switch(response, tunnel, link, in_flight));
    }
    client.enter(Phase::Relaying);
    let (mut head, incoming) = response.into_parts();
    headers::prepare_response(&mut head.headers);
    Ok(Response::from_parts(head, Reply::Relay(Relay::new(early, incoming, client.clone(), link, in_flight))))
}

/// What a replica answered.
struct Answer {
    response: Response<Incoming>,
    /// What is here of the body already.
    early: Bytes,
    link: Link,
    in_flight: InFlight,
}

/// Finds a replica that answers.
async fn send(
    plane: &Plane,
    client: &Client,
    mut request: Request<RequestBody>,
    counted: &mut Option<Counted>,
) -> Result<Answer, Refusal> {
    let repeatable = plane.config.retries && is_idempotent(request.method()) && request.body().is_empty();
    let mut avoid = Avoid::default();
    let mut sends = 0;
    // What to say if nothing better happens until the request has waited long enough.
    let mut refusal = None;
    let mut hold_until = None;
    loop {
        let pick = match pick(plane, client, &request, &avoid, counted) {
            Ok(pick) => pick,
            Err(Refusal::NoRoute) => return Err(Refusal::NoRoute),
            Err(nothing) => {
                let until = *hold_until.get_or_insert_with(|| Instant::now() + plane.limits.hold);
                if !plane.config.retries || Instant::now() >= until {
                    return Err(refusal.unwrap_or(nothing));
                }
                wait(plane, until).await;
                avoid = Avoid::default();
                continue;
            }
        };
        let endpoint = pick.endpoint.endpoint();
        let (mut link, reused) = match reuse(endpoint) {
            Some(link) => (link, true),
            None => {
                let limits = &plane.limits;
                let patience = if pick.alternative { limits.connect_with_alternative } else { limits.connect };
                match Link::connect(endpoint.address, patience).await {
                    Ok(link) => (link, false),
                    Err(error) => {
                        if is_of_the_replica(error.kind()) {
                            endpoint.eject();
                        }
                        if !plane.config.retries {
                            return Err(Refusal::Connect);
                        }
                        refusal = Some(Refusal::Connect);
                        avoid.refused.push(endpoint.replica);
                        continue;
                    }
                }
            }
        };
        if !request.headers().contains_key(HOST) {
            // An HTTP/1.0 client need not send one, an HTTP/1.1 replica needs one.
            if let Ok(host) = HeaderValue::from_str(&endpoint.address.to_string()) {
                request.headers_mut().insert(HOST, host);
            }
        }
        sends += 1;
        let again = (repeatable && sends < SENDS_MAX).then(|| copy_head(&request));
        let mut answer = link.exchange(request, client, endpoint).await;
        let mut early = Ok(Bytes::new());
        if let (Ok(response), Some(_)) = (&mut answer, &again)
            && response.body().size_hint().exact().is_some_and(|length| (1..=SHORT).contains(&length))
        {
            early = link.gather(response.body_mut(), SHORTLY).await;
        }
        match early.and_then(|early| answer.map(|response| (response, early))) {
            Ok((response, early)) => {
                endpoint.answered();
                return Ok(Answer { response, early, link, in_flight: pick.endpoint });
            }
            Err(Lost::Timeout) => return Err(Refusal::Timeout),
            Err(Lost::Garbled) => return Err(Refusal::Garbled),
            Err(Lost::Unsent(unsent)) if plane.config.retries && sends < SENDS_MAX => request = *unsent,
            Err(Lost::Unsent(_)) => return Err(Refusal::Connect),
            Err(Lost::Reset) => match again {
                Some(copy) => request = copy,
                None => {
                    note_loss(endpoint, reused);
                    return Err(Refusal::Reset);
                }
            },
        }
        note_loss(endpoint, reused);
        refusal = Some(Refusal::Reset);
        avoid.lost.push(endpoint.replica);
    }
}

/// A replica may close a connection that waited; one that breaks a fresh connection is in trouble.
fn note_loss(endpoint: &Endpoint, reused: bool) {
    if reused {
        // The others have waited at least as long, and whoever is next should not meet the same.
        endpoint.close_idle();
    } else {
        endpoint.eject();
    }
}

/// The request counts for its service from the first time on, whether there is a replica or not.
fn pick(
    plane: &Plane,
    client: &Client,
    request: &Request<RequestBody>,
    avoid: &Avoid,
    counted: &mut Option<Counted>,
) -> Result<Pick, Refusal> {
    let table = plane.table.load();
    let table = table.as_ref().ok_or(Refusal::NoTable)?;
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let service = table.route(client.listen, host, request.uri().path()).ok_or(Refusal::NoRoute)?;
    counted.get_or_insert_with(|| Counted::begin(&service.counters));
    service.pick(avoid, plane.config.draining).ok_or(Refusal::NoReplica)
}

/// Waits for a change of what may be chosen, a short pause at most.
async fn wait(plane: &Plane, until: Instant) {
    let mut changed = plane.changed.subscribe();
    let pause = until.min(Instant::now() + plane.limits.hold_step);
    let _ = tokio::time::timeout_at(pause, changed.changed()).await;
}

fn reuse(endpoint: &Endpoint) -> Option<Link> {
    loop {
        let mut link = endpoint.take_idle()?;
        if link.is_alive() {
            return Some(link);
        }
    }
}

/// Whether a failed connect says something about the replica, rather than about this process, which
/// may be out of file descriptors or ports.
fn is_of_the_replica(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
    )
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// A request without a body once more. Values are shared, not copied.
fn copy_head(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Joins client and replica until both have closed. The request is in flight as long.
fn switch(
    mut response: Response<Incoming>,
    client_side: OnUpgrade,
    link: Link,
    in_flight: InFlight,
) -> Response<Reply> {
    let replica_side = hyper::upgrade::on(&mut response);
    let protocol = response.headers().get(UPGRADE).cloned();
    let (mut head, _nothing) = response.into_parts();
    headers::prepare_response(&mut head.headers);
    head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
    }
    tokio::spawn(async move {
        let _in_flight = in_flight;
        link.finish().await;
        if let (Ok(client), Ok(replica)) = (client_side.await, replica_side.await) {
            // An error is a side that went away; the other one is closed with it.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(replica)).await;
        }
    });
    Response::from_parts(head, Reply::Text(None))
}
