//! The gateway's own checks: is an endpoint there, as seen from here?
//!
//! Nodes check replicas too, with the service's own rules; this one notices within two periods what
//! no node can see: that the path from this gateway is broken, or that a whole server is gone.

use crate::control;
use crate::endpoint::Endpoint;
use crate::plane::Plane;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request};
use http_body_util::Empty;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Checks an endpoint until the returned handle is used.
pub(crate) fn start(plane: Arc<Plane>, endpoint: Arc<Endpoint>, path: Option<String>) -> AbortHandle {
    let period = plane.limits.check_every;
    tokio::spawn(async move {
        // Spread over the period, so that many endpoints are not asked all at once.
        let (_, low) = endpoint.replica.0.as_u64_pair();
        tokio::time::sleep(period.mul_f64((low % 1000) as f64 / 1000.0)).await;
        loop {
            let passed = tokio::time::timeout(period, check(endpoint.address, path.as_deref())).await;
            if endpoint.checked(passed == Ok(true)) {
                plane.tell_changed();
            }
            tokio::time::sleep(period).await;
        }
    })
    .abort_handle()
}

async fn check(address: SocketAddr, path: Option<&str>) -> bool {
    let Some(path) = path else {
        return TcpStream::connect(address).await.is_ok();
    };
    let Ok(host) = HeaderValue::from_str(&address.to_string()) else { return false };
    let Ok(mut request) = Request::builder().method(Method::GET).uri(path).body(Empty::<Bytes>::new()) else {
        return false;
    };
    request.headers_mut().insert(HOST, host);
    let Ok(mut sender) = control::open(address).await else { return false };
    match sender.send_request(request).await {
        Ok(response) => (200..400).contains(&response.status().as_u16()),
        Err(_) => false,
    }
}
