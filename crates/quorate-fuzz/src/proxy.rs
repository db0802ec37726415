//! The gateway: heads of requests from clients, routing tables from managers.

use crate::head;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use quorate_gateway::fuzzing;
use quorate_model::routing::RoutingTable;

/// What a request or a response may carry over one connection only.
const HOP_BY_HOP: &[&str] = &[
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
];

/// A head: a line `METHOD TARGET`, a line for each header.
///
/// # Panics
/// When what goes on to a replica still has what is between the client and the gateway only, speaks in
/// the gateway's name, does not say who asked, or can be read in two ways.
pub fn proxy(data: &[u8]) -> bool {
    scan(data);
    let Some((mut request, mut headers)) = request(head(data).0) else { return false };
    fuzzing::answer(&mut headers);
    assert!(!headers.contains_key("connection") && !headers.contains_key("x-quorate-error"));
    assert!(HOP_BY_HOP.iter().all(|name| !headers.contains_key(*name)), "a response keeps {headers:?}");

    let client = HeaderValue::from_static("192.0.2.7");
    if !fuzzing::admit(&mut request, &client) {
        return false;
    }
    let headers = request.headers();
    assert!(HOP_BY_HOP.iter().all(|name| !headers.contains_key(*name)), "a request keeps {headers:?}");
    assert!(headers.keys().all(|name| !name.as_str().starts_with("x-quorate-")), "a client speaks for the gateway");
    assert!(headers.get_all("host").iter().count() <= 1, "two hosts");
    assert!(request.uri().authority().is_none() && request.uri().scheme().is_none(), "an absolute target");
    let forwarded: Vec<&HeaderValue> = headers.get_all("x-forwarded-for").iter().collect();
    assert!(
        matches!(forwarded[..], [chain] if chain.as_bytes().ends_with(client.as_bytes())),
        "the client is not named last: {forwarded:?}"
    );
    let connection: Vec<&HeaderValue> = headers.get_all("connection").iter().collect();
    assert!(connection.is_empty() || (connection == ["upgrade"] && headers.contains_key("upgrade")));
    true
}

/// The scan for `Content-Length` sees the head in any pieces as it sees the whole of it, and as a slow
/// reading of its lines does.
fn scan(data: &[u8]) {
    let whole = fuzzing::says_length([data]);
    let bytes = data.chunks(1);
    assert_eq!(whole, fuzzing::says_length(bytes), "a head torn into bytes says something else");
    let mut said = false;
    // The last line may not have ended: its name may be complete all the same.
    for line in data.split(|byte| *byte == b'\n').skip(1) {
        let line = &line[line.iter().take_while(|byte| **byte == b'\r').count()..];
        if line.is_empty() {
            break;
        }
        said |= line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:"));
    }
    assert_eq!(whole, said, "the scan and the lines differ");
}

/// As hyper would hand it over; the headers also alone, for a response.
fn request(head: &[u8]) -> Option<(Request<()>, HeaderMap)> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next()?).ok()?;
    let (method, target) = first.split_once(' ')?;
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    let mut request = Request::builder().method(method).uri(target).body(()).ok()?;
    *request.headers_mut() = headers.clone();
    Some((request, headers))
}

/// A line `HOST PATH` that a client may ask for, an empty line, a routing table as JSON.
///
/// # Panics
/// When a table is another after it was written again, or leads to a service that no route names.
pub fn routes(data: &[u8]) -> bool {
    let (asked, table) = head(data);
    let Ok(table) = serde_json::from_slice::<RoutingTable>(table) else { return false };
    let written = serde_json::to_vec(&table).expect("a table has string keys and no failing Serialize");
    assert_eq!(table, serde_json::from_slice(&written).expect("a table that was written can be read"));
    let asked = String::from_utf8_lossy(asked);
    let (host, path) = asked.split_once(' ').unwrap_or((&asked, "/"));
    for service in fuzzing::route(table.clone(), &[(host, path), ("", "/"), (host, "")]).into_iter().flatten() {
        assert!(table.routes.iter().any(|route| route.service.as_str() == service), "no route names {service}");
    }
    true
}
