//! What requests have in common: their id, their body, their patience.

use crate::problem::Failure;
use crate::waiting::BodyTooSlow;
use axum::BoxError;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use quorate_model::fence::{BadFence, Fence};
use quorate_model::id::RequestId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::time::Duration;
use uuid::Uuid;

/// The header that names one mutation, however often it is sent. Answers carry it too.
pub(crate) const REQUEST_ID: &str = "quorate-request-id";
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The header that names the epoch under which SQL is written.
pub(crate) const FENCE: &str = "quorate-fence";

/// Longest body that is read.
pub(crate) const BODY_MAX: usize = 8 << 20;
/// Longest body of whoever has not said yet who it is.
pub(crate) const STRANGERS_BODY_MAX: usize = 64 << 10;
/// Most statements in one request.
pub(crate) const STATEMENTS_MAX: usize = 1_000;

const PATIENCE_DEFAULT: Duration = Duration::from_secs(10);
const PATIENCE_MIN_MS: u64 = 10;
const PATIENCE_MAX_MS: u64 = 60_000;

/// The id that the client gave, or a fresh one.
///
/// `Quorate-Request-Id` is a UUID. An `Idempotency-Key` may be any short text: what is not a UUID
/// is hashed to 128 bits, so the same key is always the same id.
pub(crate) fn request_id(headers: &HeaderMap) -> Result<RequestId, Failure> {
    let refused = |name: &str, wants: &str| {
        Failure::bad_request(
            "bad-request-id",
            format!("the header {name} is not {wants}"),
            format!("send {wants}, or leave it out"),
        )
    };
    if let Some(value) = headers.get(REQUEST_ID) {
        let id = value.to_str().ok().and_then(|text| Uuid::try_parse(text).ok());
        return id.map(RequestId).ok_or_else(|| refused("Quorate-Request-Id", "a UUID"));
    }
    if let Some(value) = headers.get(IDEMPOTENCY_KEY) {
        let text = value.to_str().unwrap_or_default().trim().trim_matches('"');
        if text.is_empty() || text.len() > 255 {
            return Err(refused("Idempotency-Key", "a text of 1 to 255 ASCII characters"));
        }
        let id = Uuid::try_parse(text).unwrap_or_else(|_| {
            let hash = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
            uuid::Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid()
        });
        return Ok(RequestId(id));
    }
    Ok(fresh_id())
}

/// Under which epoch of its service the client writes; `None`: it does not say.
pub(crate) fn fence(headers: &HeaderMap) -> Result<Option<Fence>, Failure> {
    let refused = |why: &str| {
        let fix = "send SERVICE@EPOCH with QUORATE_SERVICE and QUORATE_EPOCH of the copy, or leave it out";
        Failure::bad_request("bad-fence", format!("the header Quorate-Fence is not a fence: {why}"), fix)
    };
    let mut values = headers.get_all(FENCE).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(refused("there are several"));
    }
    let text = value.to_str().map_err(|_| refused("it has other characters than ASCII"))?;
    text.parse().map(Some).map_err(|error: BadFence| refused(&error.to_string()))
}

/// A random id. Asks the operating system once for many, because every write needs one.
pub(crate) fn fresh_id() -> RequestId {
    const IDS: usize = 64;
    thread_local! {
        static POOL: RefCell<([u8; IDS * 16], usize)> = const { RefCell::new(([0; IDS * 16], IDS)) };
    }
    POOL.with_borrow_mut(|(bytes, used)| {
        if *used == IDS {
            if getrandom::fill(bytes).is_err() {
                return RequestId(Uuid::new_v4());
            }
            *used = 0;
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[*used * 16..(*used + 1) * 16]);
        *used += 1;
        RequestId(uuid::Builder::from_random_bytes(id).into_uuid())
    })
}

/// Reads the body whole, up to [`BODY_MAX`].
pub(crate) async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Failure> {
    read_up_to(BODY_MAX, headers, body).await
}

/// Reads the body whole, up to [`STRANGERS_BODY_MAX`]: on paths that nobody needs to be known for,
/// where many may send half a body and keep it waiting.
pub(crate) async fn read_strangers_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Failure> {
    read_up_to(STRANGERS_BODY_MAX, headers, body).await
}

async fn read_up_to(most: usize, headers: &HeaderMap, body: Body) -> Result<Bytes, Failure> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(too_large(most));
    }
    let mut body = Limited::new(body, most);
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(unread(most))?.into_data() else { continue };
        // Most bodies come in one piece. Others are copied: a thousand pieces of a byte would each cost fifty.
        if first.is_empty() && all.is_empty() {
            first = piece;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&piece);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn unread(most: usize) -> impl Fn(BoxError) -> Failure {
    move |error| {
        if error.is::<LengthLimitError>() {
            return too_large(most);
        }
        if is_too_slow(&*error) {
            return Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                "body-too-slow",
                "the body did not come to its end in time",
                "send it again, over a faster line or in several requests",
            );
        }
        let message = format!("the body could not be read to its end: {error}");
        Failure::bad_request("body-cut", message, "send it again")
    }
}

fn is_too_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<BodyTooSlow>())
}

fn too_large(most: usize) -> Failure {
    Failure::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body-too-large",
        format!("the body is longer than {most} bytes"),
        "split it into several requests",
    )
    .with_details(serde_json::json!({ "limit": most }))
}

pub(crate) fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::bad_request("bad-json", format!("the body is not what this path takes: {error}"), "see /openapi.json")
    })
}

/// The query string as `T`; an unknown value is an error.
pub(crate) fn read_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Failure> {
    axum::extract::Query::try_from_uri(uri).map(|axum::extract::Query(value)| value).map_err(|rejection| {
        Failure::bad_request(
            "bad-query",
            format!("the query string is wrong: {}", rejection.body_text()),
            "see /openapi.json",
        )
    })
}

/// The part of a path that names something, or a tuple of several.
pub(crate) struct Named<T = String>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named<T>, Failure> {
        let name = Path::<T>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Named(name)).map_err(|rejection| {
            let message = format!("the path cannot be read: {}", rejection.body_text());
            Failure::bad_request("bad-path", message, "percent-encode the bytes of UTF-8 text")
        })
    }
}

/// How long a caller waits: 10 ms to 60 s; 10 s when it says nothing.
pub(crate) fn patience(timeout_ms: Option<u64>) -> Result<Duration, Failure> {
    match timeout_ms {
        None => Ok(PATIENCE_DEFAULT),
        Some(ms) if (PATIENCE_MIN_MS..=PATIENCE_MAX_MS).contains(&ms) => Ok(Duration::from_millis(ms)),
        Some(ms) => Err(Failure::bad_request(
            "bad-timeout",
            format!("timeout_ms is {ms}"),
            format!("give {PATIENCE_MIN_MS} to {PATIENCE_MAX_MS} milliseconds"),
        )),
    }
}

/// The query string of a mutation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Patience {
    pub timeout_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn a_body_in_pieces_is_read_whole() {
        for pieces in [&[][..], &["a"], &["", "a", "bc", ""], &["ab", "c"]] {
            let frames = pieces.iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece.as_bytes())));
            let body = Body::from_stream(futures_util::stream::iter(frames.collect::<Vec<_>>()));
            let read = read_body(&HeaderMap::new(), body).await.unwrap();
            assert_eq!(read, pieces.concat(), "{pieces:?}");
        }
    }

    #[test]
    fn fresh_ids_are_random_uuids_and_never_repeat() {
        let ids: BTreeSet<RequestId> = (0..1_000).map(|_| fresh_id()).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.0.get_version_num() == 4));
    }

    #[test]
    fn one_idempotency_key_is_one_id() {
        let id = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(IDEMPOTENCY_KEY, key.parse().unwrap());
            request_id(&headers)
        };
        assert_eq!(id("order-17").unwrap(), id("\"order-17\"").unwrap());
        assert_ne!(id("order-17").unwrap(), id("order-18").unwrap());
        let uuid = "7f1de2d3-7d53-4f5c-9f30-d5ab9b0b7d2e";
        assert_eq!(id(uuid).unwrap().to_string(), uuid);
        assert!(id("").is_err());
        assert!(id(&"x".repeat(256)).is_err());
    }
}
