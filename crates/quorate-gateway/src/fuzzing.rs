//! What decodes bytes of others here, for those who try to break it. Not an interface.

use crate::downstream::HeadScan;
use crate::plane::{Origin, Plane};
use crate::{GatewayConfig, Limits, headers};
use http::{HeaderMap, HeaderValue, Request};
use quorate_model::routing::RoutingTable;
use std::net::SocketAddr;
use std::sync::Arc;

/// Puts a table in force as if a manager had sent it, and answers which service each `(host, path)`
/// is sent to on the default listener.
#[must_use]
pub fn route(table: RoutingTable, asked: &[(&str, &str)]) -> Vec<Option<String>> {
    let address = SocketAddr::from(([127, 0, 0, 1], 8000));
    let config = GatewayConfig {
        name: "gateway".into(),
        listen: address,
        url: "http://127.0.0.1:8000".into(),
        tls: None,
        token_file: None,
        managers: Vec::new(),
        snapshot_file: None,
        retries: true,
        draining: true,
        active_checks: false,
        beside: None,
    };
    let plane = Arc::new(Plane::new(config, Limits::default(), address));
    plane.install(table, Origin::Manager);
    plane.tidy(0);
    let table = plane.table.load_full().expect("the first table is always put in force");
    let service = |(host, path): &(&str, &str)| {
        let service = table.route(crate::table::DEFAULT, host, path)?;
        service.pick(&crate::table::Avoid::default(), true);
        Some(service.name.to_string())
    };
    asked.iter().map(service).collect()
}

/// Makes a client's request the one that a replica gets; `false` if it is refused.
pub fn admit(request: &mut Request<()>, forwarded_for: &HeaderValue) -> bool {
    if headers::admit(request).is_err() {
        return false;
    }
    let upgrade = headers::wanted_upgrade(request.headers());
    headers::prepare_request(request.headers_mut(), forwarded_for, upgrade);
    true
}

/// Makes a replica's headers those that the client gets.
pub fn answer(headers: &mut HeaderMap) {
    headers::prepare_response(headers);
}

/// Whether the head of a request, arriving in these pieces, has a line `Content-Length`.
pub fn says_length<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut scan = HeadScan::default();
    pieces.into_iter().any(|piece| scan.feed(piece))
}
