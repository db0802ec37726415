//! What a request and a response must look like on the other side of the gateway.
//!
//! Framing is hyper's work on each side; here go the headers that belong to one connection only, the
//! ones that tell a replica who asks, and the requests that two parsers could read in two ways.
//!
//! # Sources
//! RFC 9110 7.6.1 (Connection), 7.2 (Host), 10.1.1 (Expect); RFC 9112 3.2.2, 6.1, 6.3.

use crate::reply::{ERROR_HEADER, Refusal};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Uri, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Headers with this prefix are ours to say; what a client sends under it is removed.
const OWN_PREFIX: &str = "x-quorate-";

/// Refuses what could be read in two ways and makes the target and the Host header agree.
///
/// Run before the request is routed. hyper has refused the rest already: malformed lines, a length
/// that is no number or contradicts another one, Transfer-Encoding in HTTP/1.0.
///
/// # Errors
/// The answer to give; the connection should be closed after a [`Refusal::Malformed`].
pub(crate) fn admit<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::NotImplemented);
    }
    let version = request.version();
    let headers = request.headers();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::Malformed("Transfer-Encoding may only be `chunked`, once\n"));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(Refusal::Malformed(BOTH_LENGTHS));
        }
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Refusal::Malformed("there is more than one Host header\n")),
        (None, None) if version >= Version::HTTP_11 => {
            return Err(Refusal::Malformed("HTTP/1.1 needs a Host header\n"));
        }
        (Some(host), None) if !is_host(host) => return Err(Refusal::Malformed("the Host header is not a host\n")),
        (Some(_) | None, None) => {}
    }
    for token in connection_tokens(headers) {
        if is_protected(token) {
            return Err(Refusal::Malformed("Connection names a header that must not be dropped\n"));
        }
    }
    if let Some(expect) = headers.get(EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Refusal::Expectation);
    }
    if let Some(authority) = request.uri().authority() {
        // Absolute form: the target says which host is meant, whatever the header says.
        let host = HeaderValue::from_str(authority.as_str().rsplit('@').next().unwrap_or_default())
            .map_err(|_| Refusal::Malformed("the target's host is not a host\n"))?;
        request.headers_mut().insert(HOST, host);
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    Ok(())
}

/// Why a request with both lengths is refused.
pub(crate) const BOTH_LENGTHS: &str = "a request has Content-Length or Transfer-Encoding, not both\n";

/// Makes a request's headers those that a replica gets. `forwarded_for` is the client's address.
pub(crate) fn prepare_request(headers: &mut HeaderMap, forwarded_for: &HeaderValue, upgrade: Option<HeaderValue>) {
    remove_hop_by_hop(headers);
    // hyper asks the client to go on when a replica's connection begins to read the body.
    headers.remove(EXPECT);
    remove_own(headers);
    match joined(headers, forwarded_for) {
        Some(chain) => headers.insert(FORWARDED_FOR, chain),
        None => headers.insert(FORWARDED_FOR, forwarded_for.clone()),
    };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    match headers.get(HOST).cloned() {
        Some(host) => headers.insert(FORWARDED_HOST, host),
        None => headers.remove(FORWARDED_HOST),
    };
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Makes a response's headers those that the client gets.
pub(crate) fn prepare_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.remove(ERROR_HEADER);
}

/// The protocol that a request wants to change to, if it says so in both headers.
pub(crate) fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    connection_tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade")).then(|| protocol.clone())
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        // Almost always `keep-alive` or `close`, which are no headers we would find.
        let named: Vec<HeaderName> = connection_tokens(headers)
            .filter(|token| !token.eq_ignore_ascii_case("close") && !is_protected(token))
            .filter_map(|token| token.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in
        [KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE]
    {
        headers.remove(name);
    }
}

fn remove_own(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with(OWN_PREFIX)) {
        let own: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(OWN_PREFIX)).cloned().collect();
        for name in own {
            headers.remove(name);
        }
    }
}

fn joined(headers: &HeaderMap, address: &HeaderValue) -> Option<HeaderValue> {
    headers.get(FORWARDED_FOR)?;
    let mut chain = Vec::new();
    for earlier in headers.get_all(FORWARDED_FOR) {
        chain.extend_from_slice(earlier.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(address.as_bytes());
    HeaderValue::from_bytes(&chain).ok()
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Headers whose loss would change what the message means or where it came from.
fn is_protected(token: &str) -> bool {
    ["content-length", "transfer-encoding", "host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]
        .iter()
        .any(|name| token.eq_ignore_ascii_case(name))
}

fn is_host(value: &HeaderValue) -> bool {
    // An empty Host is allowed (RFC 9112 3.2: a target without an authority).
    value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn admitted(target: &str, pairs: &[(&str, &str)]) -> Result<Request<()>, Refusal> {
        let mut request = Request::builder().uri(target).body(()).unwrap();
        *request.headers_mut() = map(pairs);
        admit(&mut request).map(|()| request)
    }

    #[test]
    fn an_ambiguous_request_is_refused() {
        for pairs in [
            &[][..],
            &[("host", "a"), ("host", "a")],
            &[("host", "a b")],
            &[("host", "a/b")],
            &[("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "3")],
            &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
            &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("host", "a"), ("connection", "close, Content-Length")],
            &[("host", "a"), ("connection", "X-Forwarded-For")],
        ] {
            assert!(matches!(admitted("/", pairs), Err(Refusal::Malformed(_))), "{pairs:?}");
        }
        assert_eq!(admitted("/", &[("host", "a"), ("expect", "tea")]).unwrap_err(), Refusal::Expectation);
        assert!(admitted("/", &[("host", "a.example:80"), ("transfer-encoding", "Chunked")]).is_ok());
    }

    #[test]
    fn the_target_wins_over_the_host_header() {
        let request = admitted("http://real.example/x?y=1", &[("host", "other.example")]).unwrap();
        assert_eq!(request.headers()[HOST], "real.example");
        assert_eq!(request.uri(), "/x?y=1");
    }

    #[test]
    fn a_replica_gets_no_header_of_the_connection_and_learns_who_asks() {
        let mut headers = map(&[
            ("host", "a.example"),
            ("connection", "keep-alive, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("proxy-authorization", "x"),
            ("expect", "100-continue"),
            ("x-quorate-error", "fake"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-kept", "1"),
        ]);
        prepare_request(&mut headers, &HeaderValue::from_static("127.0.0.1"), None);
        let mut left: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "host: a.example",
                "x-forwarded-for: 192.0.2.1, 192.0.2.2, 127.0.0.1",
                "x-forwarded-host: a.example",
                "x-forwarded-proto: http",
                "x-kept: 1",
            ]
        );
    }
}
